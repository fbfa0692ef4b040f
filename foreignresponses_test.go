package main

import (
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"tollgate/internal/providertest"
	"tollgate/internal/waittest"
)

// storedTest is what a user has stored at a provider, behind a key that others use too.
type storedTest struct {
	*service
	provider *providertest.Provider
	response string
	items    []string
}

// user is a key of a tenant, and a response of its own.
type user struct{ tenant, key, response string }

// secret is what the user says whose responses others want.
const secret = "where the treasure is"

// store makes a response of u's, and returns its ID and those of the items of its output.
func (s *storedTest) store(t *testing.T, u user, model, members string) (id string, items []string) {
	t.Helper()
	body := fmt.Sprintf(`{"model":%q,"input":%q%s}`, model, secret, members)
	return s.do(t, "POST", "/"+u.tenant+responsesRoute, body, bearer(u.key)).storedIDs(t)
}

// wantSuccess checks that a provider's response has come.
func (got reply) wantSuccess(t *testing.T) {
	t.Helper()
	if err := got.is(200); err != nil {
		t.Fatal(err)
	}
}

// percent returns text with every byte percent-encoded.
func percent(text string) (all string) {
	for i := range len(text) {
		all += fmt.Sprintf("%%%02x", text[i])
	}
	return all
}

// escaped returns text with every byte as an escape of JSON.
func escaped(text string) (all string) {
	for i := range len(text) {
		all += fmt.Sprintf(`\u%04x`, text[i])
	}
	return all
}

// paths returns paths by which a user may try to reach the response with an ID, through their own too.
func (u user) paths(id string) (all []string) {
	for _, spelled := range []string{
		id, percent(id), percent(percent(id)), strings.ToUpper(id), id + "%00", "%20" + id, id + "%0a", id + ";a", id + "%3f",
		id + "%23",
		"./" + id, "%2e/" + id, "/" + id, "%2f" + id, u.response + "/../" + id, u.response + "/%2e%2e/" + id,
		u.response + "%2f..%2f" + id, u.response + "%2f%2e%2e%2f" + id, u.response + "%252f%252e%252e%252f" + id,
		u.response + "%5c..%5c" + id, u.response + "/" + id, u.response + "%2f" + id, u.response + "," + id, "compact/../" + id,
		u.response + "/input_items/../../" + id, u.response + "%3f/../" + id,
	} {
		all = append(all, spelled, spelled+"/", spelled+"/input_items", spelled+"%2finput_items", spelled+"/cancel", spelled+"/other")
	}
	return all
}

// bodies returns requests in which a user may try to name a response and an item.
func (u user) bodies(response, item string) []string {
	previous := func(id string) string { return fmt.Sprintf(`{"input":"more","previous_response_id":%s}`, id) }
	quoted, own := fmt.Sprintf("%q", response), fmt.Sprintf("%q", u.response)
	all := []string{
		previous(quoted), previous(`"` + escaped(response) + `"`), previous(`"\u0072` + response[1:] + `"`),
		previous(`" ` + response + `"`), previous(`"` + response + `\u0000"`), previous(`[` + quoted + `]`), previous(`{"id":` + quoted + `}`),
		`{"previous\u005fresponse_id":` + quoted + `}`, `{"` + escaped("previous_response_id") + `":` + quoted + `}`,
		`{"previous_response_id":` + own + `,"previous_response_id":` + quoted + `}`,
		`{"previous_response_id":` + quoted + `,"previous_response_id":` + own + `}`,
		`{"previous_response_id":null,"previous_response_id":` + quoted + `}`,
		`{"previous_response_id":` + quoted + `,"previous\u005fresponse_id":null}`,
		`{"Previous_Response_ID":` + quoted + `}`, `{"PREVIOUS_RESPONSE_ID":` + quoted + `}`,
		`{"conversation":` + quoted + `}`, `{"conversation":{"id":` + quoted + `}}`, `{"prompt":{"id":` + quoted + `}}`,
		`{"prompt_cache_options":{"comparison_response_id":` + quoted + `}}`,
		`{"input":` + quoted + `,"background":true,"previous_response_id":` + quoted + `}`,
	}
	for _, id := range []string{item, response} {
		for _, reference := range []string{
			`{"type":"item_reference","id":"%s"}`, `{"id":"%s","type":"item_reference"}`, `{"id":"%s"}`, `{"type":null,"id":"%s"}`,
			`{"type":"item\u005freference","id":"%s"}`, `{"type":"message","type":"item_reference","id":"%s"}`,
			`{"type":"item_reference","id":"x","id":"%s"}`, `{"type":"item_reference","i\u0064":"%s"}`, `{"Type":"item_reference","ID":"%s"}`,
			`{"id":"%s","role":null}`, `{"id":"%s","type":""}`, `{"id":"%s","content":"more"}`,
			`{"id":"%s","role":"assistant"}`, `{"type":"message","id":"%s","role":"assistant","status":"completed","content":null}`,
			`{"type":"function_call","id":"%s"}`, `{"type":"compaction","id":"%s"}`, `{"type":"reasoning","id":"%s","summary":[]}`,
		} {
			all = append(all, `{"input":[`+fmt.Sprintf(reference, id)+`]}`, `{"input":[`+fmt.Sprintf(reference, escaped(id))+`]}`,
				`{"input":[{"role":"user","content":"more"},`+fmt.Sprintf(reference, id)+`]}`)
		}
	}
	return all
}

// names reports whether the provider was asked for an ID: in the path, or in a member of the body.
func names(r providertest.Request, id string) bool {
	path, _ := url.PathUnescape(r.Path)
	var body any
	_ = json.Unmarshal(r.Body, &body) // there may be none
	decoded, _ := json.Marshal(body)
	return strings.Contains(path, id) || strings.Contains(string(decoded), id)
}

// attack sends a request, follows it where the mux redirects it to, and checks that it does not reach what is stored.
func (s *storedTest) attack(t *testing.T, u user, method, path, body string) {
	t.Helper()
	before := len(s.provider.Requests())
	for target := "/" + u.tenant + path; target != ""; {
		got, err := s.send(method, target, body, bearer(u.key))
		if err != nil {
			return // the path cannot be sent
		}
		if got.status < 300 && !strings.Contains(got.body, u.response) || strings.Contains(got.body, secret) {
			t.Errorf("%s %s %s: got %d %s", method, path, body, got.status, got.body)
		}
		target = got.header.Get("Location")
	}
	for _, r := range s.provider.Requests()[before:] {
		for _, id := range append([]string{s.response}, s.items...) {
			if names(r, id) {
				t.Errorf("%s %s %s: the provider got %s %s %s", method, path, body, r.Method, r.Path, r.Body)
			}
		}
	}
}

// Behind one key of a provider, for which any ID works, nobody reaches what another user has stored: neither another
// tenant's user of the same name, nor another user of the tenant, however the ID is written and wherever it stands.
func TestForeignResponses(t *testing.T) {
	t.Parallel()
	s := &storedTest{service: newService(t), provider: providertest.New(t)}
	s.provider.On("thinking", providertest.Conduct{Reasoning: "hm"})
	config := fmt.Sprintf(`{"user_groups":{"anonymous":{"tokens":100000},"pro":{"tokens":100000}},
		"providers":{"text":{"endpoints":{%s,%s}}}}`,
		endpointJSON(s.provider, "responses", responsesRoute, `,"allow":["*"]`), endpointJSON(s.provider, "chat", chatPath, ""))
	one, other := newTenantIn(t, testRedis, config), newTenantIn(t, testRedis, config)
	const name = `"userId":"u-1","group":"pro"`
	owner := user{tenant: one, key: s.issue(t, one, name)}
	s.response, s.items = s.store(t, owner, "thinking", "")
	for _, u := range []user{
		{tenant: one, key: s.issue(t, one, `"userId":"u-2","group":"pro"`)},
		{tenant: one, key: s.login(t, one)},
		{tenant: other, key: s.issue(t, other, name)},
	} {
		u.response, _ = s.store(t, u, "m", "")
		for _, path := range u.paths(s.response) {
			for _, method := range []string{"GET", "DELETE", "HEAD", "POST"} {
				s.attack(t, u, method, responsesRoute+"/"+path, "")
			}
		}
		for _, body := range u.bodies(s.response, s.items[len(s.items)-1]) {
			for _, route := range []string{"", "/compact", "/input_tokens"} {
				s.attack(t, u, "POST", responsesRoute+route, body)
			}
			s.attack(t, u, "POST", responsesRoute, strings.Replace(body, "{", `{"stream":true,`, 1))
			s.attack(t, u, "POST", chatPath, strings.Replace(body, "{", `{"messages":[],`, 1))
		}
	}
	// The owner's other key still reaches all of it.
	second := user{tenant: one, key: s.issue(t, one, name)}
	for _, path := range []string{s.response, percent(s.response), s.response + "/input_items"} {
		s.do(t, "GET", "/"+one+responsesRoute+"/"+path, "", bearer(second.key)).wantSuccess(t)
	}
	for _, route := range []string{"", "/compact", "/input_tokens"} {
		for _, body := range []string{
			fmt.Sprintf(`{"input":"more","previous_response_id":%q}`, s.response),
			fmt.Sprintf(`{"input":[{"type":"item_reference","id":"%s"}]}`, escaped(s.items[0])),
		} {
			s.do(t, "POST", "/"+one+responsesRoute+route, body, bearer(second.key)).wantSuccess(t)
		}
	}
	s.do(t, "DELETE", "/"+one+responsesRoute+"/"+s.response, "", bearer(second.key)).wantSuccess(t)
}

// A response that comes from the cache has the ID of no response that is stored, and a request that names a stored one
// is no hit for another user.
func TestForeignResponsesCache(t *testing.T) {
	t.Parallel()
	s := &storedTest{service: newService(t), provider: providertest.New(t)}
	tenant := newTenantIn(t, testRedis, fmt.Sprintf(`{"user_groups":{"pro":{"tokens":100000}},"caching":{"enabled":true,"text_ttl":60},
		"providers":{"text":{"endpoints":{%s}}}}`, endpointJSON(s.provider, "responses", responsesRoute, "")))
	one := user{tenant: tenant, key: s.issue(t, tenant, `"userId":"u-1","group":"pro"`)}
	other := user{tenant: tenant, key: s.issue(t, tenant, `"userId":"u-2","group":"pro"`)}
	create := func(u user, body string) reply {
		return s.do(t, "POST", "/"+tenant+responsesRoute, body, bearer(u.key))
	}
	stored := make(map[string]bool)
	for _, u := range []user{one, other, one} {
		id, items := s.store(t, u, "m", "")
		for _, each := range append(items, id) {
			if stored[each] {
				t.Errorf("%s was given twice", each)
			}
			stored[each] = true
		}
	}
	const unstored = `{"model":"m","input":"more","store":false}`
	create(one, unstored).wantSuccess(t)
	var hit reply
	waittest.Eventually(t, 10*time.Second, func() error { // a response is cached after it was sent
		hit = create(other, unstored)
		if result := hit.header.Get("X-Cache"); result != "HIT" {
			return fmt.Errorf("X-Cache is %q", result)
		}
		return nil
	})
	id := hit.text(t, "id")
	if stored[id] {
		t.Errorf("%s is stored", id)
	}
	first, _ := s.store(t, one, "m", "")
	continued := fmt.Sprintf(`{"model":"m","input":"more","store":false,"previous_response_id":%q}`, first)
	create(one, continued).wantSuccess(t)
	before := len(s.provider.Requests())
	for name, got := range map[string]reply{
		"the ID of a hit":               s.do(t, "GET", "/"+tenant+responsesRoute+"/"+id, "", bearer(other.key)),
		"the ID of a hit, by the first": s.do(t, "GET", "/"+tenant+responsesRoute+"/"+id, "", bearer(one.key)),
		"a hit that is continued":       create(other, fmt.Sprintf(`{"input":"more","previous_response_id":%q}`, id)),
		"another's request":             create(other, continued),
	} {
		if got.status != 404 {
			t.Errorf("%s: got %d %s, want 404", name, got.status, got.body)
		}
	}
	for _, r := range s.provider.Requests()[before:] {
		t.Errorf("the provider got %s %s %s", r.Method, r.Path, r.Body)
	}
}
