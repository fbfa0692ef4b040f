package main

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	"tollgate/internal/gateway"
	"tollgate/internal/providertest"
	"tollgate/internal/strict"
)

// What a request has is forwarded, taken out or refused as the members of its endpoint say.
func TestGatewayMembers(t *testing.T) {
	t.Parallel()
	s, p := newService(t), providertest.New(t)
	const web = `"tools":[{"type":"web_search_20250305","name":"web"},{"name":"mine","input_schema":{}}]`
	for _, test := range []struct {
		name, path, members, body string
		want                      string // members of what the provider gets, with their values; "" is a 400
	}{
		{"a limit of the other name", chatPath, ``, `"max_completion_tokens":9`, "max_tokens=9 max_completion_tokens="},
		{"the limit that the server obeys", chatPath, `,"limit_member":"max_completion_tokens"`, `"max_tokens":9`,
			"max_tokens= max_completion_tokens=9"},
		{"the larger of two", chatPath, ``, `"max_tokens":9,"max_completion_tokens":20`, "max_tokens=20 max_completion_tokens="},
		{"no limit", chatPath, `,"limit_member":"max_completion_tokens","max_output_tokens":77`, `"n":1`, "max_tokens= max_completion_tokens=77"},
		{"usage of streams", chatPath, ``, `"stream":true`, `stream_options={"include_usage":true}`},
		{"no usage of streams", chatPath, `,"stream_usage":false`, `"stream":true`, "stream_options="},
		{"usage that the client asks for", chatPath, `,"stream_usage":false`, `"stream":true,"stream_options":{"include_usage":true}`,
			`stream_options={"include_usage":true}`},
		{"server tools", messagesPath, ``, web, ""},
		{"server tools that are allowed", messagesPath, `,"server_tools":true`, web,
			`tools=[{"type":"web_search_20250305","name":"web"},{"name":"mine","input_schema":{}}]`},
		{"server tools that are dropped", messagesPath, `,"server_tools":"drop"`, web, `tools=[{"name":"mine","input_schema":{}}]`},
		{"a server tool that is asked for by name", messagesPath, `,"server_tools":"drop"`,
			web + `,"tool_choice":{"type":"tool","name":"web"}`, ""},
		{"unknown members", chatPath, ``, `"plugins":[],"route":"x"`, ""},
		{"one that is not allowed", chatPath, `,"allow":["plugins"]`, `"plugins":[1],"route":"x"`, ""},
		{"unknown members that are allowed", chatPath, `,"allow":["plugins","route"]`, `"plugins":[1],"route":"x"`, `plugins=[1] route="x"`},
		{"all members", chatPath, `,"allow":["*"]`, `"models":["a"],"service_tier":"priority"`, `models=["a"] service_tier="priority"`},
		{"a price class", chatPath, ``, `"service_tier":"priority"`, ""},
		{"another model", messagesPath, ``, `"fallbacks":[{"model":"dear","max_tokens":64000}]`, ""},
		{"a model that the provider chooses", messagesPath, ``, `"fallbacks":"default"`, ""},
		{"a fast price class", messagesPath, ``, `"speed":"fast"`, ""},
		{"a dear region", messagesPath, ``, `"inference_geo":"us"`, ""},
		{"the usual price class", chatPath, ``, `"service_tier":"default"`, `service_tier="default"`},
		{"a thread", messagesPath, `,"allow":["*"],"server_tools":true`, `"thread":{"type":"new"}`, ""},
		{"an advisor", messagesPath, `,"server_tools":true`, `"tools":[{"type":"advisor_20260301","name":"advisor","model":"dear"}]`, ""},
		{"an advisor that is allowed", messagesPath, `,"server_tools":true,"models":{"dear":{"output":9}}`,
			`"tools":[{"type":"advisor_20260301","name":"advisor","model":"dear"}]`,
			`tools=[{"type":"advisor_20260301","name":"advisor","model":"dear"}]`},
		{"users", messagesPath, ``, `"metadata":{"user_id":"me"}`, `metadata={"user_id":"me"}`},
	} {
		t.Run(test.name, func(t *testing.T) {
			g := s.gatewayTest(t, p, textConfig(100_000, fmt.Sprintf(`"e":{"url":"%s%s","default_model":"m"%s}`, p.URL, test.path, test.members)))
			before := len(p.Requests())
			got := g.call(t, test.path, `{`+test.body+`}`)
			if test.want == "" {
				if got.status != 400 || len(p.Requests()) != before || g.charged(t, 100_000) != 0 {
					t.Errorf("got %d %s", got.status, got.body)
				}
				return
			}
			if err := got.is(200); err != nil {
				t.Fatal(err)
			}
			for member := range strings.SplitSeq(test.want, " ") {
				name, value, _ := strings.Cut(member, "=")
				if got := p.Last(t).Member(t, name); got != value {
					t.Errorf("%s is %s, want %s", name, got, value)
				}
			}
		})
	}
}

// A tool or a part of an unknown type is refused wherever it stands, also by an endpoint that allows all members: no
// provider gets it, and it costs nothing.
func TestGatewayToolPlaces(t *testing.T) {
	t.Parallel()
	g := newGatewayTest(t, 100_000, `,"allow":["*"]`)
	const invented, other = `{"type":"invented_20270101","name":"x"}`, `{"type":"function","name":"mine"}`
	for _, place := range []string{
		`"tools":[%s]`,
		`"tools":[{"type":"custom","tools":[%s]}]`,
		`"messages":[%s]`,
		`"messages":[{"role":"user","content":[%s]}]`,
		`"messages":[{"role":"user","content":[{"type":"tool_result","content":[%s]}]}]`,
		`"messages":[{"role":"user","content":[{"type":"document","source":{"type":"content","content":[%s]}}]}]`,
		`"messages":[{"role":"system","content":[{"type":"tool_addition","tool":%s}]}]`,
		`"messages":[{"role":"user","tools":[%s]}]`,
		`"system":[%s]`,
		`"input":[%s]`,
		`"input":[{"role":"user","content":[%s]}]`,
		`"input":[{"type":"message","tools":[%s]}]`,
		`"container":{"skills":[%s]}`,
		`"mcp_servers":[%s]`,
	} {
		for _, path := range []string{chatPath, messagesPath} {
			got := g.call(t, path, `{`+fmt.Sprintf(place, invented)+`}`)
			if got.status != 400 || !strings.Contains(string(got.body), "server_tools of the endpoint does not allow it") {
				t.Errorf("%s, %s: got %d %s", path, place, got.status, got.body)
			}
		}
	}
	if sent, charged := len(g.provider.Requests()), g.charged(t, 100_000); sent != 0 || charged != 0 {
		t.Errorf("the provider has got %d requests, %d tokens were charged", sent, charged)
	}
	for _, path := range []string{chatPath, messagesPath} { // so that it is the type
		if err := g.call(t, path, `{"tools":[`+other+`],"input":[{"content":[{"type":"text"}],"tools":[`+other+`]}]}`).is(200); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// Providers that are to tell users apart get the same ID for each request of a user, whatever the key is, and no part of
// it.
func TestGatewayUserIDs(t *testing.T) {
	t.Parallel()
	g := newGatewayTest(t, 100_000, `,"user_ids":true`)
	sent := func(path, body, member string) string {
		t.Helper()
		if err := g.call(t, path, body).is(200); err != nil {
			t.Fatal(err)
		}
		return g.provider.Last(t).Member(t, member)
	}
	id := sent(chatPath, `{}`, "safety_identifier")
	if len(id) != 64+len(`""`) || strings.Contains(g.key, strings.Trim(id, `"`)) {
		t.Errorf("the ID is %s", id)
	}
	if again := sent(chatPath, `{"safety_identifier":"another"}`, "safety_identifier"); again != id {
		t.Errorf("the ID is %s, and was %s", again, id)
	}
	if got := sent(messagesPath, `{"metadata":{"user_id":"another"}}`, "metadata"); got != `{"user_id":`+id+`}` {
		t.Errorf("Anthropic got %s, and OpenAI %s", got, id)
	}
	if got := sent(messagesPath+"/count_tokens", `{}`, "metadata"); got != "" {
		t.Errorf("a request that asks for the number of its tokens has the metadata %s, which Anthropic refuses", got)
	}
	of := func(key string) string {
		t.Helper()
		g.key = key
		return sent(chatPath, `{}`, "safety_identifier")
	}
	issue := func(user string) string {
		return g.issue(t, g.tenant, fmt.Sprintf(`"userId":%q,"group":"anonymous","tokens":1000`, user))
	}
	if again := of(g.rotate(t, g.tenant, g.key)); again != id {
		t.Errorf("the ID is %s, and was %s before the key was rotated", again, id)
	}
	first := issue("u-1")
	one := of(first)
	if again := of(issue("u-1")); again != one {
		t.Errorf("the IDs of two keys of a user are %s and %s", one, again)
	}
	if again := of(g.rotate(t, g.tenant, first)); again != one {
		t.Errorf("the ID is %s, and was %s before the key was rotated", again, one)
	}
	seen := map[string]bool{id: true, one: true}
	for _, key := range []string{issue("u-2"), g.login(t, g.tenant)} {
		if other := of(key); seen[other] {
			t.Errorf("two users have the ID %s", other)
		} else {
			seen[other] = true
		}
	}
}

// Members that no endpoint allows are named with what to put into the config, counted, and logged once.
func TestGatewayUnknownMembers(t *testing.T) {
	t.Parallel()
	g := newGatewayTest(t, 100_000, "")
	const body = `{"plugins":[{"id":"web"}],"route":"fallback"}`
	const sentence = `Unknown members: plugins, route. If the operator adds \"allow\": [\"plugins\", \"route\"] to the endpoint, ` +
		`they are forwarded`
	for _, path := range []string{chatPath, messagesPath} {
		got := g.call(t, path, body)
		got.wantWireError(t, path, 400, "invalid_request_error", "")
		if !strings.Contains(got.body, sentence) {
			t.Errorf("got %s", got.body)
		}
		g.call(t, path, body)
		g.do(t, "POST", "/"+g.tenant+path, body, bearer(someKey)).wantWireError(t, path, 401, // a stranger, who does not count
			map[string]string{chatPath: "invalid_request_error", messagesPath: "authentication_error"}[path],
			map[string]string{chatPath: "invalid_api_key"}[path])
	}
	for _, endpoint := range []string{"chat", "claude"} {
		for _, name := range []string{"plugins", "route"} {
			line := fmt.Sprintf("[WARN] The endpoint %s of tenant %s does not allow %q: requests with this member are refused",
				endpoint, g.tenant, name)
			if n := g.log.Count(line); n != 1 {
				t.Errorf("%q is logged %d times", line, n)
			}
		}
	}
	if got := g.sample(t, "gateway_unknown_members_total"); got != 8 {
		t.Errorf("%v members were counted, want 8", got)
	}
	if n := len(g.provider.Requests()); n > 0 || g.charged(t, 100_000) != 0 {
		t.Errorf("%d requests came to the provider", n)
	}
}

// A config that was stored when a member meant nothing is served, whatever its value, but an endpoint with a wrong one is
// not used. The config is not saved again.
func TestNewMembersOfStoredConfigs(t *testing.T) {
	t.Parallel()
	const form = `{"user_groups":{"anonymous":{"tokens":1000%s}},"providers":{"text":{"endpoints":{` +
		`"e":{"url":"%s/v1/messages","models":{"m":{"output":3%s}}%s}}}}}`
	parse := func(group, price, endpoint string, check func(*gateway.Endpoint, *strict.Problems) bool) (*tenantConfig, error) {
		return parseConfigWith(fmt.Appendf(nil, form, group, "http://x", price, endpoint), check)
	}
	plain, err := parse("", "", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	accept := func(*gateway.Endpoint, *strict.Problems) bool { return true }
	var all [3]string
	for _, test := range []struct {
		at      int // 0: in a group, 1: in a price, 2: in an endpoint
		members string
	}{
		{0, `"models":null`}, {0, `"max_concurrent":"3"`}, {0, `"max_concurrent":0`},
		{1, `"cached_input":"x"`}, {1, `"cache_write":-1`}, {1, `"cache_write_1h":null`}, {1, `"audio_input":{}`},
		{1, `"image_input":1e99`}, {1, `"cached_audio_input":true`}, {1, `"audio_output":[]`}, {1, `"image_output":""`},
		{1, `"search":"x"`}, {1, `"request":0.0000001`}, {1, `"second":"1"`}, {1, `"character":-1`},
		{1, `"reasoning":"low"`}, {1, `"above":200000`},
		{1, `"above":{"input":9}`}, {1, `"above":{"tokens":1,"input":"x"}`},
		{2, `"reasoning":"low"`}, {2, `"allow":"*"`}, {2, `"allow":["x",""]`}, {2, `"limit":100`}, {2, `"limit_member":"n_predict"`},
		{2, `"min_output_tokens":0`}, {2, `"file_tokens":"1"`}, {2, `"stream_usage":0`}, {2, `"user_ids":"yes"`},
		{2, `"image_tokens":"1"`},
	} {
		var in [3]string
		in[test.at] = "," + test.members
		if !strings.Contains(all[test.at], strings.SplitAfter(test.members, ":")[0]) {
			all[test.at] += "," + test.members
		}
		got, err := parse(in[0], in[1], in[2], nil)
		if err != nil {
			t.Errorf("%s: %v", test.members, err)
			continue
		}
		if test.at > 0 && len(got.endpoints) > 0 {
			t.Errorf("an endpoint with %s is used", test.members)
		}
		if !reflect.DeepEqual(got.groups, plain.groups) || len(got.ignored) != 1 {
			t.Errorf("%s is not as without it: %q", test.members, got.ignored)
		}
		if _, err := parse(in[0], in[1], in[2], accept); err == nil {
			t.Errorf("%s can be saved", test.members)
		}
	}

	s, p := newService(t), providertest.New(t)
	config := fmt.Sprintf(form, all[0], p.URL, all[1], all[2])
	g := s.gatewayTest(t, p, config)
	g.call(t, messagesPath, `{"model":"m","max_tokens":9}`).want(t, 404, "")
	g.consume(t, g.tenant, g.key, "").want(t, 200, `{"tokensLeft":999}`)
	line := "[WARN] The config of tenant " + g.tenant + ": user_groups.anonymous.models must be an array, and has no effect\n"
	if n := s.log.Count("[WARN] The config of tenant " + g.tenant); n < 20 || s.log.Count(line) != 1 {
		t.Errorf("log: %s", s.log)
	}
	s.putConfig(t, g.tenant, config).want(t, 400, "")
}

// A group whose models are wrong in a stored config does not have all models.
func TestWrongModelsOfStoredGroups(t *testing.T) {
	t.Parallel()
	many := `["n"` + strings.Repeat(`,"n"`, maxGroupModels-1) + `,"m"]`
	s := newService(t)
	for models, names := range map[string]bool{`"n"`: false, `{"n":{}}`: false, `true`: false, `[5]`: false, `["n",5]`: true, many: true} {
		p := providertest.New(t)
		config := fmt.Sprintf(`{"user_groups":{"anonymous":{"tokens":1000,"models":%s}},"providers":{"text":{"endpoints":{`+
			`"e":{"url":"%s/v1/messages","models":{"m":{},"n":{}}}}}}}`, models, p.URL)
		g := s.gatewayTest(t, p, config)
		g.call(t, messagesPath, `{"model":"m","max_tokens":9}`).want(t, 404, "")
		if got := g.call(t, messagesPath, `{"model":"n","max_tokens":9}`); (got.status == 200) != names {
			t.Errorf("%.20s: got %d %s", models, got.status, got.body)
		}
		if n := s.log.Count("[WARN] The config of tenant " + g.tenant + ": user_groups.anonymous.models"); n != 1 {
			t.Errorf("%.20s: %d lines are logged", models, n)
		}
		s.putConfig(t, g.tenant, config).want(t, 400, "")
	}
}

// The refusal of a member is logged and counted, too, if it comes from an endpoint that was only chosen because the
// group does not have the default model.
func TestGatewayUnknownMembersOfGroup(t *testing.T) {
	t.Parallel()
	p := providertest.New(t)
	endpoint := func(name, members string) string {
		return fmt.Sprintf(`%q:{"url":"%s%s"%s}`, name, p.URL, chatPath, members)
	}
	config := textConfig(1000, endpoint("first", `,"default_model":"m","allow":["plugins"]`), endpoint("second", `,"models":{"n":{}}`))
	g := newService(t).gatewayTest(t, p, strings.Replace(config, `{"tokens":1000}`, `{"tokens":1000,"models":["n"]}`, 1))
	g.call(t, chatPath, `{"plugins":[1]}`).wantWireError(t, chatPath, 400, "invalid_request_error", "")
	line := fmt.Sprintf(`[WARN] The endpoint second of tenant %s does not allow "plugins"`, g.tenant)
	if n, counted := g.log.Count(line), g.sample(t, "gateway_unknown_members_total"); n != 1 || counted != 1 {
		t.Errorf("%q is logged %d times, %v members are counted", line, n, counted)
	}
	g.call(t, chatPath, `{"model":"m","plugins":[1]}`).want(t, 404, "") // the group does not have it
	if counted := g.sample(t, "gateway_unknown_members_total"); counted != 1 {
		t.Errorf("%v members are counted, want 1", counted)
	}
}
