package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"tollgate/internal/strict"
)

// A config that breaks a rule is refused; the error names the member by its path and shows no value.
func TestInvalidConfigs(t *testing.T) {
	s := newService(t)
	id := newTenant(t, 10)
	const (
		amount   = " must be a whole number ≥ 0"
		large    = " must be a whole number from 0 to 9007199254740991"
		rate     = " must be a whole number from 0 to 100000"
		url      = "providers.text.endpoints.b.url must be an absolute http or https URL"
		endpoint = "providers.text.default must name an endpoint"
		fee      = "caching.fee_percentage must be a number from 0 to 100"
	)
	for _, test := range []struct{ config, want string }{
		{`7`, "it must be an object"},
		{`{"user_groups":7}`, "user_groups must be an object"},
		{`{"user_groups":{"anonymous":"S3"}}`, "user_groups.anonymous must be an object"},
		{`{"user_groups":{"anonymous":{"tokens":-1}}}`, "user_groups.anonymous.tokens" + amount},
		{`{"user_groups":{"anonymous":{"tokens":"S3"}}}`, "user_groups.anonymous.tokens" + amount},
		{`{"user_groups":{"anonymous":{"tokens":1.5}}}`, "user_groups.anonymous.tokens" + amount},
		{`{"user_groups":{"anonymous":{"tokens":null}}}`, "user_groups.anonymous.tokens" + amount},
		{`{"user_groups":{"anonymous":{"tokens":9007199254740992}}}`, "user_groups.anonymous.tokens" + large},
		{`{"user_groups":{"a.b":{"tokens":-1}}}`, `user_groups["a.b"].tokens` + amount},
		{`{"user_groups":{"a":{"rate_limit":-1,"rate_limit_window":1}}}`, "user_groups.a.rate_limit" + rate},
		{`{"user_groups":{"a":{"rate_limit":100001,"rate_limit_window":1}}}`, "user_groups.a.rate_limit" + rate},
		{`{"user_groups":{"a":{"rate_limit":1,"rate_limit_window":0}}}`, "user_groups.a.rate_limit_window must be a whole number ≥ 1"},
		{`{"user_groups":{"a":{"rate_limit":1}}}`, "user_groups.a.rate_limit_window is missing beside rate_limit"},
		{`{"user_groups":{"a":{"models":"gpt-4o"}}}`, "user_groups.a.models must be an array"},
		{`{"user_groups":{"a":{"models":["x",7]}}}`, "user_groups.a.models[1] must be a string"},
		{`{"user_groups":{"a":{"models":["x"` + strings.Repeat(`,"x"`, 1000) + `]}}}`,
			"user_groups.a.models must have at most 1000 names"},
		{`{"user_groups":{"a":{"max_concurrent":0}}}`, "user_groups.a.max_concurrent must be a whole number from 1 to 1000"},
		{`{"user_groups":{"a":{"tokens":1,"tokens":2}}}`, "user_groups.a.tokens is duplicated"},
		{`{"user_groups":{"a":{},"\u0061":{}}}`, "user_groups.a is duplicated"},
		{`{"user_groups":{},"user_groups":{}}`, "user_groups is duplicated"},
		{`{"auth":[]}`, "auth must be an object"},
		{`{"auth":{"stripe":"S3"}}`, "auth.stripe must be an object"},
		{`{"auth":{"stripe":{"api_key":7}}}`, "auth.stripe.api_key must be a string"},
		{`{"auth":{"google_oauth":{"client_secret":{}}}}`, "auth.google_oauth.client_secret must be a string"},
		{`{"cors":{"allowed_origins":["*",7]}}`, "cors.allowed_origins[1] must be an origin such as https://app.example.com, " +
			"or the only one *"},
		{`{"cors":{"allowed_origins":["*","https://a.example"]}}`, "cors.allowed_origins must have * as its only entry, or not at all"},
		{`{"providers":[]}`, "providers must be an object"},
		{`{"providers":{"text":{"default":7}}}`, "providers.text.default must be a string"},
		{`{"providers":{"text":{"default":"S3"}}}`, endpoint},
		{`{"providers":{"text":{"default":"S3","endpoints":{"b":{}}}}}`, endpoint},
		{`{"providers":{"text":{"endpoints":{"b":7}}}}`, "providers.text.endpoints.b must be an object"},
		{`{"providers":{"text":{"endpoints":{"b":{"url":"S3"}}}}}`, url},
		{`{"providers":{"text":{"endpoints":{"b":{"url":"/S3"}}}}}`, url},
		{`{"providers":{"text":{"endpoints":{"b":{"url":"ftp://S3"}}}}}`, url},
		{`{"providers":{"text":{"endpoints":{"b":{"url":"https://"}}}}}`, url},
		{`{"providers":{"text":{"endpoints":{"b":{"url":"//S3"}}}}}`, url},
		{`{"providers":{"text":{"endpoints":{"b":{"url":"http:///S3"}}}}}`, url},
		{`{"providers":{"text":{"endpoints":{"b":{"url":"http://S3/\ud800"}}}}}`, url},
		{`{"providers":{"text":{"endpoints":{"b":{"url":7}}}}}`, url},
		{`{"providers":{"text":{"endpoints":{"b":{"url":null}}}}}`, url},
		{`{"providers":{"text":{"endpoints":{"b":{"url":["http://S3"]}}}}}`, url},
		{`{"providers":{"text":{"endpoints":{"b":{"api_key":7}}}}}`, "providers.text.endpoints.b.api_key must be a string"},
		{`{"auth":{"x":{"client_id":7}}}`, "auth.x.client_id must be a string"},
		{`{"providers":{"text":7}}`, "providers.text must be an object"},
		{`{"providers":{"text":{"endpoints":7}}}`, "providers.text.endpoints must be an object"},
		{`{"providers":{"text":{"endpoints":null}}}`, "providers.text.endpoints must be an object"},
		{`{"providers":{"text":{"endpoints":{"b":{"default_model":7}}}}}`, "providers.text.endpoints.b.default_model must be a string"},
		{`{"providers":{"text":{"endpoints":{"b":{"model":null}}}}}`, "providers.text.endpoints.b.model must be a string"},
		{`{"providers":{"text":{"endpoints":{"b":{"voice":7}}}}}`, "providers.text.endpoints.b.voice must be a string"},
		{`{"providers":{"text":{"endpoints":{"b":{"encoding":7}}}}}`, "providers.text.endpoints.b.encoding must be a string"},
		{`{"providers":{"text":{"endpoints":{"b":{"sampleRate":"S3"}}}}}`, "providers.text.endpoints.b.sampleRate must be a number"},
		{`{"user_groups":{"\ud800":{"tokens":1}}}`, "user_groups[\"\ufffd\"] must not have half of a surrogate pair"},
		{`{"caching":7}`, "caching must be an object"},
		{`{"caching":{"enabled":1}}`, "caching.enabled must be true or false"},
		{`{"caching":{"text_ttl":-1}}`, "caching.text_ttl" + amount},
		{`{"caching":{"transcription_ttl":"S3"}}`, "caching.transcription_ttl" + amount},
		{`{"caching":{"fee_percentage":100.5}}`, fee},
		{`{"caching":{"fee_percentage":-1}}`, fee},
		{`{"caching":{"fee_percentage":"S3"}}`, fee},
	} {
		t.Run(test.config, func(t *testing.T) {
			got := s.putConfig(t, id, test.config)
			got.wantError(t, 400, "Invalid config: "+test.want)
			if strings.Contains(got.body+s.log.String(), "S3") {
				t.Errorf("a value is shown: %s", got.body)
			}
		})
	}
	t.Run("nothing has changed", func(t *testing.T) {
		s.admin(t, "GET", "/"+id+"/admin/config", "").
			want(t, 200, `{"config":{"user_groups":{"anonymous":{"tokens":10},"pro":{"tokens":5000}}}}`)
	})
	for _, test := range []struct{ name, config string }{
		{"empty", `{}`},
		{"a fraction of a percent", `{"caching":{"fee_percentage":0.5,"text_ttl":0}}`},
		{"no requests, and no limit", `{"user_groups":{"a":{"rate_limit":0,"rate_limit_window":1},"b":{"rate_limit_window":1}}}`},
		{"an address", `{"providers":{"text":{"endpoints":{"b":{"url":"http://[::1]:80/x?y"}},"default":"b"}}}`},
		{"the seed", string(seedConfig)},
	} {
		t.Run("accepted: "+test.name, func(t *testing.T) {
			s.putConfig(t, id, test.config).want(t, 200, "")
		})
	}
}

// If several members are wrong, all of them are named: the first in error, all in errors, none with its value.
func TestAllProblems(t *testing.T) {
	s := newService(t)
	id := newTenant(t, 1)
	t.Run("several", func(t *testing.T) {
		got := s.putConfig(t, id, `{"caching":{"enabled":"S3","text_ttl":-1},"user_groups":{"a":{"tokens":"S3","rate_limit":1}}}`)
		got.want(t, 400, `{"error":"Invalid config: caching.enabled must be true or false","errors":[`+strings.Join([]string{
			`"Invalid config: caching.enabled must be true or false"`,
			`"Invalid config: caching.text_ttl must be a whole number ≥ 0"`,
			`"Invalid config: user_groups.a.tokens must be a whole number ≥ 0"`,
			`"Invalid config: user_groups.a.rate_limit_window is missing beside rate_limit"`,
		}, ",")+`]}`)
	})
	t.Run("one is not listed", func(t *testing.T) {
		if got := s.putConfig(t, id, `{"caching":7}`); got.field(t, "errors") != nil {
			t.Errorf("got %s", got.body)
		}
	})
	t.Run("more than are listed", func(t *testing.T) {
		var many []string
		for i := range 5000 {
			many = append(many, fmt.Sprintf(`"%s%d":7`, strings.Repeat(`\u0000`, 20), i))
		}
		got := s.putConfig(t, id, `{"user_groups":{`+strings.Join(many, ",")+`}}`)
		got.want(t, 400, "")
		if !strings.Contains(got.body, `"Invalid config: 4900 more members are wrong"]`) {
			t.Error("the response does not say that there are more problems")
		}
		if n := len(got.field(t, "errors").([]any)); n != strict.MaxProblems+1 || len(got.body) > 100_000 {
			t.Errorf("%d of 5000 problems are listed in %d bytes", n, len(got.body))
		}
	})
	t.Run("a long name", func(t *testing.T) {
		got := s.admin(t, "POST", "/"+id+"/admin/keys", `{"`+strings.Repeat(`\u0000`, 100_000)+`":1}`)
		got.want(t, 400, "")
		if len(got.body) > 1000 {
			t.Errorf("an unknown member makes a response of %d bytes", len(got.body))
		}
	})
}

// Members that are probably misspelled are accepted, and the response and the log say so.
func TestConfigWarnings(t *testing.T) {
	s := newService(t)
	for _, test := range []struct {
		config   string
		warnings []string // each a path and the name that was meant, "" if none was
	}{
		{`{"user_groups":{"anonymous":{"token":5}}}`, []string{"user_groups.anonymous.token", "tokens"}},
		{`{"user_group":{"anonymous":{"tokens":5}}}`, []string{"user_group", "user_groups"}},
		{`{"user_groups":{"a":{"rate_limits":5,"rate_limit_windw":1}}}`,
			[]string{"user_groups.a.rate_limits", "rate_limit", "user_groups.a.rate_limit_windw", "rate_limit_window"}},
		{`{"providers":{"text":{"endpoint":{},"endpoints":{"b":{"ulr":"x","apikey":"S3CRET"}}}}}`,
			[]string{"providers.text.endpoints.b.ulr", "url", "providers.text.endpoints.b.apikey", "api_key"}},
		{`{"caching":{"enable":true,"textttl":3},"auht":{}}`,
			[]string{"caching.enable", "enabled", "caching.textttl", "text_ttl", "auht", "auth"}},
		{`{"providers":{"text":{"endpoints":{"e":{"models":{"m":{"cache_writes":1,"reasonning":false}}}}}}}`,
			[]string{"providers.text.endpoints.e.models.m.cache_writes", "cache_write",
				"providers.text.endpoints.e.models.m.reasonning", "reasoning"}},
		{`{"auth":{"google":{"clientid":"x"}}}`, []string{"auth.google.clientid", "client_id"}},
		// Members of a group: whoever writes max_requests relies on it.
		{`{"user_groups":{"a":{"max_requests":1,"rpm":2,"tpm":3,"budget":4,"model":["x"],"models_allowed":[],"Tokens":1}}}`,
			[]string{"user_groups.a.max_requests", "", "user_groups.a.rpm", "", "user_groups.a.tpm", "", "user_groups.a.budget", "",
				"user_groups.a.model", "models", "user_groups.a.models_allowed", "", "user_groups.a.Tokens", "tokens"}},
		{`{"user_groups":{"a":{"tokens":5,"token":6,"refill":{"tokens":1,"every":"day","at":"06:00"}}}}`,
			[]string{"user_groups.a.refill.at", "", "user_groups.a.token", ""}},
		// Names that the tenant chooses, near one that means something.
		{`{"auth":{"google_oath":{},"aple_oauth":{},"Stripe":{},"github":{}}}`,
			[]string{"auth.google_oath", "google_oauth", "auth.aple_oauth", "apple_oauth", "auth.Stripe", "stripe"}},
		{`{"user_groups":{"anonymus":{"tokens":1},"google_loged_in":{},"apple_logged_im":{},"pro":{},"stripe_basic":{}}}`,
			[]string{"user_groups.anonymus", "anonymous", "user_groups.google_loged_in", "google_logged_in",
				"user_groups.apple_logged_im", "apple_logged_in"}},
		{`{"auth":{"google_oauth":{},"google_oath":{},"stripes":{},"stripe":{}},"user_groups":{"anonymous":{},"anonymous2":{}}}`, nil},
		// No warnings: what is far away, known members beside it, names that the tenant chooses.
		{`{"user_groups":{"anonymous":{"tokens":5}},"groups":{},"user":7,"x":1,"":2}`, nil},
		{`{"user_groups":{"tokens":{"tokens":1}},"providers":{"url":{}},"auth":{"auth":{}}}`, nil},
		{`{"other":{"token":1,"user_group":2},"caching":{"TEXTTTL":1,"` + strings.Repeat("x", 100) + `":2}}`, nil},
	} {
		id := newTenantID()
		var sentences []string
		for i := 0; i < len(test.warnings); i += 2 {
			sentence := test.warnings[i] + " is not known: it has no effect"
			if meant := test.warnings[i+1]; meant != "" {
				sentence = test.warnings[i] + " is not known: did you mean " + meant + "?"
			}
			sentences = append(sentences, sentence)
		}
		want := `{"success":true}`
		if sentences != nil {
			list, _ := json.Marshal(sentences)
			want = `{"success":true,"warnings":` + string(list) + `}`
		}
		created := s.createTenant(t, id, test.config)
		created.want(t, 201, want)
		s.putConfig(t, id, test.config).want(t, 200, want)
		restore := "/" + id + "/admin/config/history/" + bare(created.etag(t)) + "/restore"
		s.admin(t, "POST", restore, "").want(t, 200, want)
		for _, sentence := range sentences {
			if n := s.log.Count("[WARN] The config of tenant " + id + ": " + sentence + "\n"); n != 3 {
				t.Errorf("%s is %d times in the log", sentence, n)
			}
		}
		if n := s.log.Count("[WARN] The config of tenant " + id); n != 3*len(sentences) {
			t.Errorf("%s: %d lines of the log are warnings, want %d", test.config, n, 3*len(sentences))
		}
	}
	if s.log.Count("S3CRET") != 0 {
		t.Errorf("a value is in the log:\n%s", s.log)
	}
	// Very many of them cost little, and are not all listed.
	var members []string
	for i := range 40_000 {
		members = append(members, fmt.Sprintf(`"rate_limit_%06d":1`, i))
	}
	id := newTenantID()
	got := s.createTenant(t, id, `{"user_groups":{"a":{"token":1,`+strings.Join(members, ",")+`}}}`)
	got.want(t, 201, "")
	if list, _ := got.field(t, "warnings").([]any); len(list) == 0 || len(list) > 100 {
		t.Errorf("%d warnings", len(list))
	}
}

// Unknown members of text endpoints and their models may look like prices and bounds: each is a warning.
func TestUnknownEndpointMembers(t *testing.T) {
	const e, unknown = "providers.text.endpoints.e", " is not known: it has no effect"
	for members, want := range map[string]string{
		`"max_tokens_per_day":5`:                               e + ".max_tokens_per_day" + unknown,
		`"models":{"m":{"input":1,"max_output_tokens":9}}`:     e + ".models.m.max_output_tokens" + unknown,
		`"models":{"m":{"above":{"tokens":9,"per_minute":1}}}`: e + ".models.m.above.per_minute" + unknown,
		`"models":{"m":{"minute":1}}`:                          e + ".models.m.minute" + unknown,
		`"models":{"m":{"second":1,"character":0.5}}`:          "",
		`"models":{"*":{},"m":{"input":2}},"url":"http://h/v1/chat/completions"`: e +
			`.models has "*" cheaper than "m": other spellings of that name cost less`,
		`"models":{"m":{"input":1,"cached_input":0,"reasoning":true}}`: "",
	} {
		c, err := parseConfig([]byte(`{"providers":{"text":{"endpoints":{"e":{` + members + `}}}}}`))
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(c.warnings, "; "); got != want {
			t.Errorf("%s:\ngot  %s\nwant %s", members, got, want)
		}
	}
}

// Caching that is enabled and caches nothing is a warning.
func TestIdleCachingWarning(t *testing.T) {
	const warning = `{"success":true,"warnings":["caching.enabled is true but text_ttl and transcription_ttl are 0: nothing is cached"]}`
	s := newService(t)
	id := newTenant(t, 1)
	for caching, want := range map[string]string{
		`{"enabled":true}`:                           warning,
		`{"text_ttl":0,"enabled":true}`:              warning,
		`{"enabled":true,"transcription_ttl":0}`:     warning,
		`{"enabled":true,"transcription_ttl":60}`:    `{"success":true}`,
		`{"enabled":true,"text_ttl":1}`:              `{"success":true}`,
		`{"enabled":false}`:                          `{"success":true}`,
		`{"enabled":false,"text_ttl":0,"x":{"y":1}}`: `{"success":true}`,
		`{}`: `{"success":true}`,
	} {
		before := s.log.Count("[WARN]")
		s.putConfig(t, id, `{"caching":`+caching+`}`).want(t, 200, want)
		if got := s.log.Count("[WARN]") - before; (got == 1) != (want == warning) {
			t.Errorf("%s: %d lines of the log are warnings", caching, got)
		}
	}
}

// A whole number counts in any spelling that JSON has for it; the config keeps its own.
func TestSpellingsOfWholeNumbers(t *testing.T) {
	s := newService(t)
	id := newTenant(t, 1)
	const config = `{"user_groups":{"anonymous":{"tokens":1e2,"rate_limit":5.0,"rate_limit_window":0.1e4}},"caching":{"text_ttl":1E+2}}`
	s.putConfig(t, id, config).want(t, 200, `{"success":true}`)
	s.admin(t, "GET", "/"+id+"/admin/config", "").want(t, 200, `{"config":`+config+`}`)
	key := s.login(t, id)
	left := 100
	for _, test := range []struct {
		spelling string
		n        int
	}{{"1.0", 1}, {"1e1", 10}, {"0.3E+1", 3}, {"200e-2", 2}} {
		left -= test.n
		got := s.consume(t, id, key, `{"tokens":`+test.spelling+`}`)
		got.want(t, 200, fmt.Sprintf(`{"tokensLeft":%d}`, left))
		got.wantHeader(t, "RateLimit-Policy", `"requests";q=5;w=1000`)
	}
	s.consume(t, id, key, `{"tokens":1.5}`).want(t, 400, "")
	s.consume(t, id, key, `{"tokens":9.007199254740992e15}`).want(t, 400, "")
	s.admin(t, "PATCH", "/"+id+"/admin/keys/"+key, `{"addTokens":-2.0e0}`).want(t, 200, "")
	if tokensLeft(t, key) != left-2 {
		t.Errorf("%d tokens are left, want %d", tokensLeft(t, key), left-2)
	}
	user := s.issue(t, id, `"userId":"u","group":"anonymous","tokens":7.0,"expiresIn":1e3`)
	if ttl := testRedis.Int(t, "TTL", "apiKey:"+user); tokensLeft(t, user) != 7 || ttl < 990 || ttl > 1000 {
		t.Errorf("%d tokens, for %d s", tokensLeft(t, user), ttl)
	}
	s.do(t, "GET", "/"+id+"/auth/verify?tokens=1e0", "", bearer(user)).want(t, 400, "")
}

// parseConfig never panics, and what it accepts it accepts again, compact, as the same.
func FuzzParseConfig(f *testing.F) {
	f.Add(seedConfig)
	f.Add([]byte(`{"providers":{"realtime":{"default":"openai","endpoints":{"openai":{"url":"ws://h/v1/realtime","price":{"input":1},` +
		`"models":{"*":{"above":{"tokens":1},"transcription":{"second":0}}}},"x":{"type":"ultravox","call":{"metadata":{}}}}}}}`))
	f.Add([]byte(`{"user_groups":{"a":{"tokens":1,"rate_limit":1}},` +
		`"providers":{"x":{"default":"y","endpoints":{"y":{"url":"http://h"}}}}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		config, err := parseConfig(data)
		if err != nil {
			if _, ok := err.(*configError); !ok || err.Error() == "" {
				t.Errorf("%q: %v", data, err)
			}
			return
		}
		again, err := parseConfig(config.compact)
		if err != nil || string(again.compact) != string(config.compact) ||
			!reflect.DeepEqual(again.groups, config.groups) || len(again.realtime) != len(config.realtime) {
			t.Errorf("%q: %v", data, err)
		}
	})
}

// hostileConfig has endpoints, each with members that are not known and as long as those that are.
func hostileConfig(endpoints, members int) []byte {
	var b strings.Builder
	b.WriteString(`{"providers":{"text":{"endpoints":{`)
	for i := range endpoints {
		fmt.Fprintf(&b, `"%d":{`, i)
		for j := range members {
			fmt.Fprintf(&b, `"%010d_token":1,`, j)
		}
		b.WriteString(`"api_key":""},`)
	}
	return []byte(strings.TrimSuffix(b.String(), ",") + `}}}}`)
}

// manyProblems is a config of n bytes, each member of which is wrong, below a path that is long when it is quoted.
func manyProblems(n int) []byte {
	const wrong = `,"":7`
	name := strings.Repeat(`\u0000`, 64)
	return []byte(`{"providers":{"text":{"endpoints":{"` + name + `":{"models":{"` + name + `":7` +
		strings.Repeat(wrong, n/len(wrong)) + `}}}}}}`)
}

// A config's unknown members are compared with known ones up to a bound, which leaves room for all that are misspelled
// in an ordinary config; and its problems are worded up to a bound.
func TestLinearConfig(t *testing.T) {
	c, err := parseConfig(hostileConfig(474, 100))
	if err != nil || c.compared != maxCompared {
		t.Fatalf("%d members are compared; %v", c.compared, err)
	}
	c, err = parseConfig(bytes.Replace(hostileConfig(9, 10), []byte(`"api_key"`), []byte(`"apikey"`), 9))
	if err != nil || len(c.warnings) != 99 ||
		c.warnings[98] != "providers.text.endpoints.8.apikey is not known: did you mean api_key?" {
		t.Errorf("warnings %q; %v", c.warnings, err)
	}
	var groups []string
	for i := range 2 * maxCompared {
		groups = append(groups, fmt.Sprintf(`"anonym%04d":{}`, i))
	}
	c, err = parseConfig([]byte(`{"user_groups":{` + strings.Join(groups, ",") + `,"anonymus":{}},"provider":{}}`))
	if err != nil || len(c.warnings) != 1 { // the name of the group comes too late
		t.Errorf("warnings %q; %v", c.warnings, err)
	}
	_, err = parseConfig(manyProblems(1 << 18))
	wrong, _ := err.(*configError)
	if wrong == nil || wrong.problems.More < 10_000 {
		t.Fatal("the config has too few problems to prove something")
	}
	if n := len(strings.Join(wrong.problems.Sentences, "")); n > strict.MaxProblems*1000 {
		t.Errorf("the problems have %d bytes", n)
	}
}

func BenchmarkConfig(b *testing.B) {
	var groups strings.Builder
	for i := range 16_000 {
		fmt.Fprintf(&groups, `,"group-%d":{"tokens":%d,"rate_limit":100,"rate_limit_window":60}`, i, i)
	}
	for _, c := range []struct {
		name   string
		config []byte
	}{
		{"seed", seedConfig}, {"groups", []byte(`{"user_groups":{` + groups.String()[1:] + `}}`)},
		{"spelling", hostileConfig(474, 100)}, {"problems", manyProblems(1 << 20)},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.SetBytes(int64(len(c.config)))
			b.ReportAllocs()
			for b.Loop() {
				_, _ = parseConfig(c.config)
			}
		})
	}
}

// The default endpoint is tried first, then the others in the order of the config. The default one of another kind has
// no say.
func TestEndpointOrder(t *testing.T) {
	const text = `"text":{%s"endpoints":{"a":%[2]s,"b":%[2]s,"c":%[2]s}}`
	const endpoint = `{"url":"https://h/v1/chat/completions"}`
	const realtime = `"realtime":{"default":"b","endpoints":{"b":{"url":"https://h"}}}`
	for _, test := range []struct{ chosen, want string }{
		{"", "abc"}, {`"default":"a",`, "abc"}, {`"default":"c",`, "cab"},
	} {
		kinds := fmt.Sprintf(text, test.chosen, endpoint)
		for _, providers := range []string{kinds, kinds + "," + realtime, realtime + "," + kinds} {
			config, err := parseConfig([]byte(`{"providers":{` + providers + `}}`))
			if err != nil {
				t.Fatal(err)
			}
			got := ""
			for _, e := range config.endpoints {
				got += e.Name
			}
			if got != test.want {
				t.Errorf("%s: the order is %s, want %s", providers, got, test.want)
			}
		}
	}
}
