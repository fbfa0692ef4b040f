package main

import (
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"tollgate/internal/gateway"
	"tollgate/internal/providertest"
	"tollgate/internal/strict"
	"tollgate/internal/waittest"
)

const (
	embeddingsPath  = "/v1/embeddings"
	moderationsPath = "/v1/moderations"
	imagesPath      = "/v1/images/generations"
)

// kindsConfig returns the config of a tenant that has an endpoint e of each of four kinds.
func kindsConfig(p *providertest.Provider, tokens int64, members, more string) string {
	var kinds []string
	for _, kind := range []struct{ name, path, members string }{
		{"text", chatPath, ""}, {"embeddings", embeddingsPath, ""}, {"images", imagesPath, `,"image_tokens":50`},
		{"moderation", moderationsPath, ""},
	} {
		kinds = append(kinds, fmt.Sprintf(`%q:{"endpoints":{%s}}`, kind.name, endpointJSON(p, "e", kind.path, kind.members+members)))
	}
	return fmt.Sprintf(`{"user_groups":{"anonymous":{"tokens":%d}},"providers":{%s}%s}`, tokens, strings.Join(kinds, ","), more)
}

// Each route of another kind than text holds what its request can cost, charges what it has cost and counts it by the
// kind.
func TestGatewayOtherKinds(t *testing.T) {
	t.Parallel()
	p := providertest.New(t)
	s := newService(t)
	g := s.gatewayTest(t, p, kindsConfig(p, 10_000, "", `,"cors":{"allowed_origins":["https://a.example"]}`))
	charged := 0
	for _, test := range []struct {
		name, path, body string
		held, charged    int // charged is -1 if the header does not say so
		want             string
	}{
		{"embeddings", embeddingsPath, `{"model":"v","input":["a","b"],"encoding_format":"base64"}`, 58, 11, `"AACAPgAAAL8AAIA/"`},
		{"moderation", moderationsPath, `{"model":"v","input":"a"}`, 1, 0, `"flagged":false`},
		{"images", imagesPath, `{"model":"v","prompt":"abc","n":2}`, 103, 18, `"b64_json"`},
		{"images", imagesPath, `{"model":"v","prompt":"abc","stream":true,"partial_images":1}`, 153, -1, "image_generation.completed"},
	} {
		charged += max(test.charged, 0)
		got := g.call(t, test.path, test.body, "Origin: https://a.example")
		if got.status != 200 || !strings.Contains(got.body, test.want) {
			t.Fatalf("%s: got %d %s", test.path, got.status, got.body)
		}
		if h := got.header.Get("X-Tokens-Held"); h != fmt.Sprint(test.held) {
			t.Errorf("%s: %s held, want %d", test.path, h, test.held)
		}
		if h := got.header.Get("X-Tokens-Charged"); test.charged >= 0 && h != fmt.Sprint(test.charged) || test.charged < 0 && h != "" {
			t.Errorf("%s: %q charged, want %d", test.path, h, test.charged)
		}
		if test.charged < 0 {
			charged += 18
		}
		if n := g.charged(t, 10_000); n != charged {
			t.Errorf("%s: %d are charged in all, want %d", test.path, n, charged)
		}
		if h := got.header.Get("Access-Control-Allow-Origin"); h != "https://a.example" {
			t.Errorf("%s: Access-Control-Allow-Origin is %q", test.path, h)
		}
		if last := p.Last(t); last.Path != test.path || string(last.Body) != test.body {
			t.Errorf("%s: the provider got %s %s", test.path, last.Path, last.Body)
		}
		sample := fmt.Sprintf(`gateway_requests_total{tenant=%q,endpoint="%s/e",status="200"}`, g.tenant, test.name)
		if strings.Contains(test.body, `"stream"`) {
			continue
		}
		if n := g.sample(t, sample); n != 1 {
			t.Errorf("%s is %v", sample, n)
		}
	}
	_ = g.call(t, chatPath, `{"model":"v","messages":[]}`)
	want := map[string]endpointUsage{
		"embeddings/e": {Requests: 1, InputTokens: 11, TokensCharged: 11}, "moderation/e": {Requests: 1},
		"images/e": {Requests: 2, InputTokens: 22, OutputTokens: 14, TokensCharged: 36},
		"text/e":   {Requests: 1, InputTokens: 11, CachedInputTokens: 5, OutputTokens: 7, TokensCharged: 18},
	}
	waittest.Eventually(t, 10*time.Second, func() error {
		if got := s.usage(t, g.tenant, today()).ByEndpoint; !maps.Equal(got, want) {
			return fmt.Errorf("got %v, want %v", got, want)
		}
		return nil
	})
}

// A long response passes, and is charged at its end; one that is cut ends with its connection.
func TestGatewayLongEmbeddings(t *testing.T) {
	t.Parallel()
	p := providertest.New(t)
	g := newService(t).gatewayTest(t, p, kindsConfig(p, 1000, "", ""))
	for i, at := range []providertest.Place{providertest.First, providertest.Middle, providertest.Last} {
		size := 1 << 20
		if at == providertest.Last {
			size = 17 << 20 // more than a response that is read whole
		}
		p.On("long", providertest.Conduct{Size: size, UsageAt: at})
		// Not with call: to compare a million numbers with openapi.json takes seconds.
		got, err := g.send("POST", "/"+g.tenant+embeddingsPath, `{"model":"long","input":"a"}`, bearer(g.key))
		if err != nil || got.status != 200 || len(got.body) < size || got.header.Get("X-Tokens-Charged") != "" {
			t.Fatalf("got %d, %d bytes, %v, %v", got.status, len(got.body), got.header, err)
		}
		if n := g.charged(t, 1000); n != 11*(i+1) {
			t.Errorf("%d are charged, want %d", n, 11*(i+1))
		}
	}
	p.On("cut", providertest.Conduct{Size: 1 << 20, Cut: providertest.InContent, UsageAt: providertest.First})
	if got, err := g.send("POST", "/"+g.tenant+embeddingsPath, `{"model":"cut","input":"a"}`, bearer(g.key)); err == nil {
		t.Errorf("got %d and %d bytes, whole", got.status, len(got.body))
	}
	if n := g.charged(t, 1000); n != 44 {
		t.Errorf("%d are charged, want 44", n)
	}
}

// Embeddings are cached for text_ttl.
func TestGatewayKindsCache(t *testing.T) {
	t.Parallel()
	p := providertest.New(t)
	g := newService(t).gatewayTest(t, p, kindsConfig(p, 1000, "", `,"caching":{"enabled":true,"text_ttl":60,"fee_percentage":20}`))
	const ask = `{"model":"v","input":"a"}`
	first := g.call(t, embeddingsPath, ask)
	first.wantHeader(t, "X-Cache", "MISS")
	waittest.Eventually(t, 10*time.Second, func() error {
		if n := len(g.cacheKeys(t)); n != 1 {
			return fmt.Errorf("%d responses are cached", n)
		}
		return nil
	})
	again := g.call(t, embeddingsPath, ask)
	if first.status != 200 || again.status != 200 || again.body != first.body {
		t.Errorf("got %d %s, then %d %s", first.status, first.body, again.status, again.body)
	}
	again.wantHeader(t, "X-Cache", "HIT")
	again.wantHeader(t, "X-Tokens-Charged", "3")
	if got := g.call(t, moderationsPath, ask); got.status != 200 || got.header.Get("X-Cache") != "" {
		t.Errorf("a moderation: %d %v", got.status, got.header)
	}
}

// Models of all kinds are listed for OpenAI's clients, with those that a provider lists.
func TestGatewayKindModels(t *testing.T) {
	t.Parallel()
	p := providertest.New(t)
	p.List("listed", "m1")
	s := newService(t)
	config := fmt.Sprintf(`{"user_groups":{"anonymous":{"tokens":9},"few":{"tokens":9,"models":["v1","listed"]}},"providers":{`+
		`"embeddings":{"endpoints":{"e":{"url":"%[1]s/v1/embeddings","default_model":"v1","models":{"m1":{}}}}},`+
		`"text":{"endpoints":{"e":{"url":"%[1]s/v1/chat/completions","models":{"m1":{},"m2":{}}},`+
		`"a":{"url":"%[1]s/v1/messages","models":{"c":{}}}}},`+
		`"images":{"endpoints":{"i":{"url":"%[1]s/v1/images/generations","models":{"*":{}},"api_key":"%[2]s"}}}}}`, p.URL, providertest.Key)
	g := s.gatewayTest(t, p, config)
	model := func(name, owner string) string {
		return fmt.Sprintf(`{"id":%q,"object":"model","created":0,"owned_by":%q}`, name, owner)
	}
	list := func(models ...string) string { return `{"object":"list","data":[` + strings.Join(models, ",") + `]}` }
	get := func(path, key string, headers ...string) reply {
		return g.do(t, "GET", "/"+g.tenant+path, "", append(headers, bearer(key))...)
	}
	get("/v1/models", g.key).want(t, 200, list(model("v1", "e"), model("m1", "e"), model("m2", "e"), model("listed", "i")))
	get("/v1/models/v1", g.key).want(t, 200, model("v1", "e"))
	get("/v1/models/any", g.key).want(t, 200, model("any", "i"))
	if got := get("/v1/models", g.key, anthropicVersion); !strings.HasPrefix(got.body, `{"data":[{"type":"model","id":"c"`) ||
		strings.Contains(got.body, "v1") {
		t.Errorf("got %s", got.body)
	}
	few := s.issue(t, g.tenant, `"userId":"u","group":"few"`)
	get("/v1/models", few).want(t, 200, list(model("v1", "e"), model("listed", "i")))
	get("/v1/models/m1", few).want(t, 404, "")
}

// Endpoints of a stored config whose kind had no rules then are not used if they break one, and change nothing else.
// Those of a config that is put are refused.
func TestKindsOfStoredConfigs(t *testing.T) {
	const url = `"url":"https://h/v1/embeddings"`
	for _, member := range []string{
		`"models":7`, `"models":["a"]`, `"models":{"":{}}`, `"models":{"m":{"input":-1}}`, `"models":{"m":7}`,
		`"max_output_tokens":"many"`, `"max_input_tokens":0`, `"bytes_per_token":9`, `"media_tokens":-1`, `"server_tools":1`,
		`"on_hangup":7`, `"allow":{}`, `"limit":{}`, `"image_tokens":"all"`, `"reasoning":[]`, `"models":{"m":{"above":{}}}`,
	} {
		config := `{"providers":{"embeddings":{"default":"b","endpoints":{"a":{` + url + `},"b":{` + url + `,` + member + `}}},` +
			`"speech":{"endpoints":{"c":{` + member + `}}},"other":{"endpoints":{"d":{` + member + `}}}}}`
		c, err := parseConfig([]byte(config))
		if err != nil {
			t.Errorf("%s: %v", member, err)
			continue
		}
		if len(c.endpoints) != 1 || c.endpoints[0].Name != "a" {
			t.Errorf("%s: %d endpoints are used", member, len(c.endpoints))
		}
		all := strings.Join(c.ignored, "\n")
		if !strings.Contains(all, "providers.embeddings.endpoints.b.") || !strings.Contains(all, notUsed) || strings.Contains(all, ".d.") {
			t.Errorf("%s: %q", member, all)
		}
		check := func(*gateway.Endpoint, *strict.Problems) bool { return true }
		if _, err := parseConfigWith([]byte(config), check); err == nil {
			t.Errorf("%s is saved", member)
		}
	}
}

// An endpoint of a kind whose path is of no format of the kind is a warning.
func TestKindWarnings(t *testing.T) {
	for kind, want := range map[string]string{
		"embeddings": "/embeddings", "moderation": "/moderations", "images": "/images/generations",
		"transcription": "/audio/transcriptions or /audio/translations", "speech": "/audio/speech",
	} {
		c, err := parseConfig([]byte(`{"providers":{"` + kind + `":{"endpoints":{"e":{"url":"https://h/v1/chat/completions"}}}}}`))
		if err != nil {
			t.Fatal(err)
		}
		sentence := "providers." + kind + ".endpoints.e.url is not used: its path should end in " + want
		if got := strings.Join(c.warnings, "; "); got != sentence || len(c.endpoints) > 0 {
			t.Errorf("got %s, want %s", got, sentence)
		}
	}
}
