package gateway

import (
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// keysFile writes a file of keys and returns its name.
func keysFile(t testing.TB, content string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "keys.json")
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// keyJSON returns a member of a file of keys.
func keyJSON(name, key, prefix, tenants string) string {
	return fmt.Sprintf(`%q:{"api_key":%q,"url_prefix":%q,"tenants":%s}`, name, key, prefix, tenants)
}

func TestLoadOperatorKeys(t *testing.T) {
	const secret = "sk-secret-1234567890"
	key := func(members string) string {
		return `{"a":{"api_key":"` + secret + `","url_prefix":"https://h/","tenants":["acme"]` + members + `}}`
	}
	replaced := func(old, new string) string { return strings.Replace(key(""), old, new, 1) }
	const plain = "a.url_prefix must be an http or https URL without user, query, fragment, special characters or dot segments"
	const ascii = "a.api_key must be a string of printable ASCII characters without white space"
	for _, test := range []struct{ name, content, want string }{
		{"one", key(""), ""},
		{"none", ` {} `, ""},
		{"for all", replaced(`"acme"`, `"*"`), ""},
		{"for none", replaced(`"acme"`, ``), ""},
		{"empty", ``, "it is not valid JSON: unexpected end of JSON input at byte 0"},
		{"no JSON", `{"a":` + secret, "it is not valid JSON: invalid character 's' looking for beginning of value at byte 6"},
		{"no object", `["` + secret + `"]`, "must be an object"},
		{"a key alone", `{"a":"` + secret + `"}`, "a must be an object"},
		{"without a name", `{"":{}}`, `[""] must have a name of 1 to 64 bytes`},
		{"duplicated", `{"a":{},"a":{}}`, "a is duplicated"},
		{"empty key", `{"a":{}}`, "a.api_key is missing; a.url_prefix is missing; a.tenants is missing"},
		{"unknown member", key(`,"tenant":"x"`), "a.tenant is not a known member"},
		{"member twice", key(`,"tenants":[]`), "a.tenants is duplicated"},
		{"white space", replaced(secret, secret+` x`), ascii},
		{"line end", replaced(secret, secret+`\r\nX: y`), ascii},
		{"other letters", replaced(secret, `sk-ü`), ascii},
		{"no key", replaced(secret, ``), ascii},
		{"number", replaced(`"`+secret+`"`, `1`), ascii},
		{"tenants", replaced(`["acme"]`, `"acme"`), "a.tenants must be an array"},
		{"a tenant", replaced(`"acme"`, `"ac me"`), "a.tenants[0] must be a tenant ID, or *"},
		{"all and one", replaced(`"acme"`, `"acme","*"`), "a.tenants must have * as its only entry, or not at all"},
		{"path", replaced("https://h/", "https://h/v1"), ""},
		{"scheme", replaced("https://h/", "ftp://h/"), plain},
		{"no host", replaced("https://h/", "https:///v1"), plain},
		{"user", replaced("https://h/", "https://u:p@h/"), plain},
		{"query", replaced("https://h/", "https://h/?"), plain},
		{"fragment", replaced("https://h/", "https://h/#"), plain},
		{"dot segments", replaced("https://h/", "https://h/a/../b"), plain},
		{"empty segment", replaced("https://h/", "https://h/a//b"), plain},
		{"escape", replaced("https://h/", "https://h/%61"), plain},
		{"host of other letters", replaced("https://h/", "https://ü/"), plain},
		{"too long", `{` + strings.Repeat(" ", maxKeysFile) + `}`, "has more than 1048576 bytes"},
	} {
		keys := new(OperatorKeys)
		if err := keys.Load(keysFile(t, `{"old":{"api_key":"x","url_prefix":"https://h/","tenants":["*"]}}`)); err != nil {
			t.Fatal(err)
		}
		err := keys.Load(keysFile(t, test.content))
		if test.want == "" && err == nil {
			continue
		}
		if err == nil || test.want == "" || !strings.HasSuffix(err.Error(), test.want) || strings.Contains(err.Error(), secret) {
			t.Errorf("%s: got %v, want %s", test.name, err, test.want)
		}
		if (*keys.current.Load())["old"] == nil {
			t.Errorf("%s: the old keys are gone", test.name)
		}
	}
	keys := new(OperatorKeys)
	if err := keys.Load(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("a file that does not exist is read")
	}
	if err := keys.Load(""); err != nil {
		t.Error(err)
	}
}

// Only URLs that nobody can take for one elsewhere may have a key.
func TestOperatorKeyCovers(t *testing.T) {
	for _, test := range []struct {
		prefix string
		in     []string
		out    []string
	}{
		{"https://api.openai.com/", []string{
			"https://api.openai.com/v1/chat/completions", "https://api.openai.com:443/v1/chat/completions", "HTTPS://API.OpenAI.com/v1",
			"https://api.openai.com/v1/chat/completions?a=https://evil/", "https://api.openai.com:/v1", "https://api.openai.com",
			"https://api.openai.com/v1/chat/completions#x", "https://api.openai.com/v1/../v2",
		}, []string{
			"http://api.openai.com/v1", "https://api.openai.com:444/v1", "https://api.openai.com:80/v1", "https://api.openai.com:0443/v1",
			"https://api.openai.com./v1", "https://api.openai.com.evil/v1", "https://evil/api.openai.com/", "https://eviI.openai.com/",
			"https://api.openai.com@evil/v1", "https://api.openai.com:x@evil/v1", "https://evil@api.openai.com/v1", "https://@api.openai.com/v1",
			"https://api.open\u212ai.com/", "https://\uff41pi.openai.com/", "https://api\u3002openai.com/", "https://api.openai.com%2eevil/v1",
			"https://xn--api.openai.com/", "//api.openai.com/v1", "https:api.openai.com/v1", "https:///api.openai.com/v1", "api.openai.com/v1", "",
			"https://evil\\@api.openai.com/v1", "https://api.openai.com\\.evil/v1", "https://api.openai.com%00.evil/", "ws://api.openai.com/v1",
			"https://[::ffff:api.openai.com]/", "https://api.openai.com /v1", "https://api.openai.com\t/v1", "https://api.openai.com/v1/é",
		}},
		{"https://h:8443/team/a", []string{
			"https://h:8443/team/a", "https://h:8443/team/a/", "https://h:8443/team/a/v1/messages", "https://h:8443/team/a/x/../y",
			"https://h:8443/team/a/./y", "https://h:8443/team/a//y", "https://h:8443/team/a/...", "https://h:8443/team/a/..y",
		}, []string{
			"https://h/team/a", "https://h:8443/team",
			"https://h:8443/team/", "https://h:8443/team/ab", "https://h:8443/team/a.b", "https://h:8443/",
			"https://h:8443/Team/a", "https://h:8443/team/a/..", "https://h:8443/team/a/../b", "https://h:8443/team/a/x/../../b",
			"https://h:8443/team/a/../../team/b/messages", "https://h:8443/team/b/../a", "https://h:8443/x/../team/a", "https://h:8443//team/a",
			"https://h:8443/team//a", "https://h:8443/team/a//../b/..", "https://h:8443/team/./a",
			"https://h:8443/team/a/%2e%2e/b", "https://h:8443/team/a/%2E./b",
			"https://h:8443/team/a/..%2fb", "https://h:8443/team/a%2f..%2f..%2fb",
			"https://h:8443/team/a%2fb", "https://h:8443/team%2fa/b", "https://h:8443/team/a/%252e%252e/b", "https://h:8443/team/a/..;/b",
			"https://h:8443/team/a/..;x=y/b", "https://h:8443/team/a/..\\b", "https://h:8443/team/a/..%5cb", "https://h:8443/team/a\\..\\b",
			"https://h:8443/team/a/%00", "https://h:8443/team/%61", "https://h:8443/team/a;/b",
		}},
		{"http://[2001:db8::1]/", []string{"http://[2001:db8::1]:80/v1", "http://[2001:DB8::1]/v1"}, []string{
			"http://[2001:db8::2]/v1", "http://[2001:db8:0::1]/v1", "http://2001:db8::1/v1", "http://[2001:db8::1%25lo]/v1",
		}},
	} {
		keys := new(OperatorKeys)
		if err := keys.Load(keysFile(t, "{"+keyJSON("k", "x", test.prefix, `["*"]`)+"}")); err != nil {
			t.Fatal(err)
		}
		key := (*keys.current.Load())["k"]
		for want, urls := range map[bool][]string{true: test.in, false: test.out} {
			for _, text := range urls {
				u, err := url.Parse(text)
				if got := err == nil && key.covers(u); got != want {
					t.Errorf("%s covers %q: %v, want %v", test.prefix, text, got, want)
				}
			}
		}
	}
}

// An endpoint has the operator's key that it names if its tenant may use that one, there and now.
func TestUsable(t *testing.T) {
	got := make(chan http.Header, 10)
	server := newServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got <- r.Header
		if key := r.Header.Get("Authorization"); key == "Bearer old-key" {
			w.WriteHeader(400)
			fmt.Fprintf(w, `{"error":{"message":"not with %s"}}`, key)
			return
		}
		jsonBody(completion).ServeHTTP(w, r)
	}))
	origin := strings.TrimSuffix(server, "v1/chat/completions")
	named := newEndpoint(t, "e", fmt.Sprintf(`"url":%q,"default_model":"m","api_key_name":"k"`, server))
	g := newTestGateway(t)
	g.options.Keys = new(OperatorKeys)
	load := func(keys ...string) {
		t.Helper()
		if err := g.options.Keys.Load(keysFile(t, "{"+strings.Join(keys, ",")+"}")); err != nil {
			t.Fatal(err)
		}
	}
	ask := func(status int, key string) {
		t.Helper()
		g.endpoints = g.Usable(Endpoints{named}, "acme")
		response, body, err := g.post(t, whole)
		if err != nil || response.StatusCode != status || strings.Contains(body, "old-key") {
			t.Fatalf("got %v %s, %v; want %d", response, body, err, status)
		}
		if key == "" {
			return
		}
		if sent := (<-got).Get("Authorization"); sent != "Bearer "+key {
			t.Errorf("%q was sent, want %q", sent, key)
		}
	}
	load(keyJSON("k", "old-key", origin, `["acme"]`))
	ask(400, "old-key") // without the key in the error
	load(keyJSON("k", "new-key", origin, `["other","acme"]`))
	ask(200, "new-key")
	for _, keys := range []string{
		keyJSON("k", "new-key", origin, `["other"]`), keyJSON("k", "new-key", origin, `[]`), keyJSON("l", "new-key", origin, `["*"]`),
		keyJSON("k", "new-key", origin+"v2/", `["acme"]`), keyJSON("k", "new-key", "https://h/", `["acme"]`),
	} {
		load(keys)
		ask(404, "")
	}
	if n := g.log.count("[WARN] The endpoint e of tenant acme is not used: its api_key_name must name a key"); n != 1 {
		t.Errorf("log:\n%s", g.log.text.String())
	}
	load(keyJSON("k", "new-key", origin, `["*"]`))
	ask(200, "new-key")
	if n := g.log.count("-key\""); n != 0 {
		t.Errorf("log:\n%s", g.log.text.String())
	}
	for _, members := range []string{
		`"api_key_name":"k","api_key":"x"`, `"api_key_name":"k","api_key":""`, `"api_key_name":5`, `"api_key_name":""`,
	} {
		e := newEndpoint(t, "e", fmt.Sprintf(`"url":%q,%s`, server, members))
		other := newEndpoint(t, "f", fmt.Sprintf(`"url":%q,"api_key":"own"`, server))
		if usable := g.Usable(Endpoints{e, other}, "acme"); len(usable) != 1 || usable[0].Name != "f" || usable[0].apiKey != "own" {
			t.Errorf("%s: got %v", members, usable)
		}
	}
	g.options.Keys = nil
	ask(404, "")
}
