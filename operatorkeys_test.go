package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tollgate/internal/providertest"
)

// newKeysFile writes a file of the operator's keys, and returns the setting that names it. The key k is the one that p
// accepts, for the tenants that are given.
func newKeysFile(t *testing.T, p *providertest.Provider, tenants string) (setting string) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "keys.json")
	content := fmt.Sprintf(`{"k":{"api_key":%q,"url_prefix":"%s/v1/","tenants":[%s]}}`, providertest.Key, p.URL, tenants)
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return "PROVIDER_KEYS_FILE=" + name
}

// namedKey returns a config whose text endpoint e is at url, with more members.
func namedKey(kind, url, members string) string {
	return fmt.Sprintf(`{"user_groups":{"anonymous":{"tokens":1000}},"providers":{%q:{"endpoints":{"e":{"url":%q,`+
		`"default_model":"m"%s}}}}}`, kind, url, members)
}

// A tenant's admin may use the operator's key that is for the tenant, where it is for, and never sees it.
func TestProviderKeys(t *testing.T) {
	t.Parallel()
	p := providertest.New(t)
	mine, other := newTenant(t, 1000), newTenant(t, 1000)
	s := newService(t, newKeysFile(t, p, `"`+mine+`","new-`+mine+`"`))
	tokens := make(map[string]string)
	for _, tenant := range []string{mine, other} {
		got := s.admin(t, "POST", "/"+tenant+"/admin/tokens", "")
		got.want(t, 201, "")
		tokens[tenant] = got.text(t, "adminToken")
	}
	chat := p.URL + chatPath
	const path = "Invalid config: providers.text.endpoints.e."
	const name = path + "api_key_name must name a key that the operator has for this tenant"
	const url = path + "url must be below the URL that the operator has set for the key of api_key_name"
	for _, test := range []struct{ tenant, url, members, want string }{
		{mine, chat, `,"api_key_name":"k","api_key":"x"`, path + "api_key_name must not stand beside api_key"},
		{mine, chat, `,"api_key":"","api_key_name":"k"`, path + "api_key_name must not stand beside api_key"},
		{mine, chat, `,"api_key_name":"other"`, name},
		{mine, chat, `,"api_key_name":""`, name},
		{mine, chat, `,"api_key_name":["k"]`, name},
		{other, chat, `,"api_key_name":"k"`, name},
		{mine, "http://evil.example/v1/chat/completions", `,"api_key_name":"k"`, url},
		{mine, p.URL + "/v1/../v2/chat/completions", `,"api_key_name":"k"`, url},
		{mine, p.URL + "/v1%2f..%2fv2/chat/completions", `,"api_key_name":"k"`, url},
		{mine, strings.Replace(chat, "://", "://user@", 1), `,"api_key_name":"k"`, url},
		{mine, chat, `,"api_key_name":"k"`, ""},
	} {
		for _, kind := range []string{"text", "realtime"} {
			config := namedKey(kind, test.url, test.members)
			got := s.do(t, "PUT", "/"+test.tenant+"/admin/config", `{"config":`+config+`}`, bearer(tokens[test.tenant]))
			if test.want == "" {
				got.want(t, 200, "")
			} else {
				got.wantError(t, 400, strings.Replace(test.want, "text", kind, 1))
			}
		}
	}
	created := `{"tenantId":"%s","config":` + namedKey("text", chat, `,"api_key_name":"k"`) + `}`
	s.admin(t, "POST", "/admin/tenants", fmt.Sprintf(created, "new-"+mine)).want(t, 201, `{"success":true}`)
	s.admin(t, "POST", "/admin/tenants", fmt.Sprintf(created, "new-"+other)).wantError(t, 400, name)

	own := bearer(tokens[mine])
	s.do(t, "PUT", "/"+mine+"/admin/config", `{"config":`+namedKey("text", chat, `,"api_key_name":"k"`)+`}`, own).want(t, 200, "")
	g := &gatewayTest{service: s, provider: p, tenant: mine, key: s.login(t, mine)}
	if err := g.call(t, chatPath, `{}`).is(200); err != nil {
		t.Error(err)
	}
	if got := p.Last(t).Header.Get("Authorization"); got != "Bearer "+providertest.Key {
		t.Errorf("the provider got %q", got)
	}
	p.On("", providertest.Conduct{Status: 400, Body: `{"error":{"message":"bad key ` + providertest.Key + `"}}`})
	seen := g.call(t, chatPath, `{}`).body
	for _, route := range []string{"/admin/config", "/admin/config/history", "/v1/models"} {
		key := own
		if route == "/v1/models" {
			key = bearer(g.key)
		}
		got := s.do(t, "GET", "/"+mine+route, "", key)
		got.want(t, 200, "")
		seen += got.body
	}
	for _, version := range s.history(t, mine) {
		seen += s.do(t, "GET", "/"+mine+"/admin/config/history/"+version.ETag, "", own).body
	}
	if strings.Contains(seen+s.log.String(), providertest.Key) {
		t.Errorf("the key is in\n%s\nor the log\n%s", seen, s.log)
	}
}

// A config in Redis that uses a key which is not for it is served without the endpoint. It cannot be restored, either.
func TestProviderKeysOfStoredConfigs(t *testing.T) {
	t.Parallel()
	p := providertest.New(t)
	s := newService(t, newKeysFile(t, p, `"somebody"`))
	for members, fault := range map[string]string{
		`,"api_key_name":"k"`:               "api_key_name must name a key that the operator has for this tenant",
		`,"api_key_name":{}`:                "api_key_name must name a key that the operator has for this tenant",
		`,"api_key_name":"k","api_key":"x"`: "api_key_name must not stand beside api_key",
	} {
		g := s.gatewayTest(t, p, namedKey("text", p.URL+chatPath, members))
		for range 3 {
			g.call(t, chatPath, `{}`).wantWireError(t, chatPath, 404, "invalid_request_error", "model_not_found")
			g.do(t, "GET", "/"+g.tenant+"/v1/models", "", bearer(g.key)).want(t, 200, `{"object":"list","data":[]}`)
		}
		line := "[WARN] The endpoint e of tenant " + g.tenant + " is not used: its " + fault + "\n"
		if n := s.log.Count(line); n != 1 {
			t.Errorf("%s: %d lines\n%s", members, n, s.log)
		}
		s.putConfig(t, g.tenant, `{}`).want(t, 200, "")
		stored := s.history(t, g.tenant)[1].ETag
		got := s.admin(t, "POST", "/"+g.tenant+"/admin/config/history/"+stored+"/restore", "")
		got.wantError(t, 400, "Invalid config: providers.text.endpoints.e."+fault)
	}
	if n := len(p.Requests()); n > 0 {
		t.Errorf("%d requests came to the provider", n)
	}
}

// On SIGHUP the file of keys is read again: another key, and who may use it, count from the next request on. A file that
// is malformed changes nothing.
func TestProviderKeysAreReadAgain(t *testing.T) {
	t.Parallel()
	provider := providertest.New(t)
	setting := newKeysFile(t, provider, `"*"`)
	_, name, _ := strings.Cut(setting, "=")
	p := startProcess(t, []string{"REDIS_URL=" + testRedis.URL(), "ADDR=127.0.0.1:0", "ADMIN_TOKEN=" + testAdminToken, setting})
	g := p.service(t).gatewayTest(t, provider, namedKey("text", provider.URL+chatPath, `,"api_key_name":"k"`))
	right, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	for i, step := range []struct {
		content, line string
		status        int
	}{
		{string(right), "[INFO] PROVIDER_KEYS_FILE was read again", 200},
		{strings.Replace(string(right), providertest.Key, "sk-another", 1), "[INFO] PROVIDER_KEYS_FILE was read again", 502},
		{string(right), "[INFO] PROVIDER_KEYS_FILE was read again", 200},
		{`{"k":`, "[ERROR] PROVIDER_KEYS_FILE was not read again, and the old value stays", 200},
		{strings.Replace(string(right), `"*"`, `"other"`, 1), "[INFO] PROVIDER_KEYS_FILE was read again", 404},
	} {
		p.reload(t, name, step.content, step.line)
		if err := g.call(t, chatPath, `{}`).is(step.status); err != nil {
			t.Errorf("step %d: %v", i, err)
		}
	}
	if p.log.Count(providertest.Key)+p.log.Count("sk-another") > 0 {
		t.Errorf("a key is in the log:\n%s", p.log)
	}
}

// A file of keys that cannot be read is named at start, without its content.
func TestProviderKeysFileSetting(t *testing.T) {
	name := filepath.Join(t.TempDir(), "keys.json")
	if err := os.WriteFile(name, []byte(`{"k":{"api_key":"sk-1 2","url_prefix":"https://h/","tenants":[]}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for setting, want := range map[string]string{
		name: "-provider-keys-file: \"" + name + "\": k.api_key must be a string of printable ASCII characters without white space",
		"x":  "-provider-keys-file: open x: no such file or directory",
		"":   "",
	} {
		s, err := parseSettings([]string{"-provider-keys-file=" + setting}, os.Getenv, os.Stdout)
		if fmt.Sprint(err) != want && want != "" || want == "" && (err != nil || len(s.reloadables) > 0) {
			t.Errorf("%s: got %v, want %s", setting, err, want)
		}
	}
}
