package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"tollgate/internal/providertest"
	"tollgate/internal/waittest"
)

// A wireFormat is a row of the table over which the tests of the gateway run: a format, and what is its own in them. A
// test that is for all formats runs over wireFormats, with cases that have names. A format that cannot have a case says
// why.
type wireFormat struct {
	endpoint   string // that speaks it in formatsConfig
	kind, path string
	members    string // of the endpoint
	prices     string // of every model
	isForm     bool
	ask        string // members that a request needs, or fields
	odd        string // ask as it may be spelled too, "" if there is no other spelling
	added      string // what the provider gets first, if a request has no more than ask
	stream     string // members that ask for a stream, each behind a comma; "" if it has none
	seen       string // what the first event with content has
	reason     string // what the event has that says why a stream ends
	end        string // what the end of a stream has

	limit   string // a member, behind a comma, with a limit of 10 output tokens, "" if it has none
	held    int    // for a request of ask and limit
	charged int    // for a response of a provider that works, which has the usage used
	used    endpointUsage
	ends    map[string]ending // of the conducts of TestGatewayCharges, if they are others than those of chat
	leaves  map[string]int    // charges of TestGatewayHangUps, if they are others than those of chat
	cannot  map[string]string // why it cannot have a case, by the name of that, or of all whose names begin with it
}

// An ending is what becomes of a response, and what it costs.
type ending struct {
	status int
	retry  string // X-Should-Retry
	tokens int
	end    relayEnd
}

const (
	noStreams   = "the format has no streams"
	noTools     = "the format has no tools"
	noLimit     = "the format has no limit of output tokens"
	asksNoUsage = "its streams have their usage without being asked"
)

// wireFormats returns the table. Responses are cut, fail and are left as those of chat are, but for what a row says.
func wireFormats() []wireFormat { return slices.Concat(textFormats(), otherFormats(), soundFormats()) }

func textFormats() []wireFormat {
	return []wireFormat{
		{
			endpoint: "chat", kind: "text", path: chatPath, prices: "{}", ask: `"messages":[{}]`,
			odd: `"messages" : [ {"role":"user","content":"\u00fcnd ünd"} ],"temperature":1.0e0`, added: `"model":"m","max_tokens":4096,`,
			stream: `,"stream":true`, seen: "ünd ",
			reason: `"finish_reason":"stop"`, end: "[DONE]", limit: `,"max_tokens":10`, held: 43, charged: 18,
			used: endpointUsage{Requests: 1, InputTokens: 11, CachedInputTokens: 5, OutputTokens: 7,
				TokensCharged: 18},
		},
		{
			endpoint: "claude", kind: "text", path: messagesPath, prices: "{}", ask: `"messages":[{}]`,
			odd: `"messages" : [ {"role":"user","content":"\u00fcnd ünd"} ],"temperature":1.0e0`, added: `"model":"m","max_tokens":4096,`,
			stream: `,"stream":true`, seen: "ünd ",
			reason: "message_delta", end: "message_stop", limit: `,"max_tokens":10`, held: 43, charged: 18,
			used: endpointUsage{Requests: 1, InputTokens: 11, CachedInputTokens: 3, CacheWriteTokens: 2, OutputTokens: 7,
				TokensCharged: 18},
			ends: map[string]ending{ // the input comes first
				"stream cut":                    {200, "", 11 + 4, broken},
				"stream ended early":            {200, "", 11 + 4, broken},
				"stream ended after its reason": {200, "", 11 + 10, broken},
				"stream with an error":          {200, "", 11 + 4, broken},
				"stream silent":                 {200, "", 11 + 4, broken},
			},
			leaves: map[string]int{"stream left in its middle": 11 + 4, "stream left, cancel": 11 + 4},
			cannot: map[string]string{
				"hard limit":              "only OpenAI refuses an account so",
				"cache of streams, usage": asksNoUsage,
			},
		},
		{
			endpoint: "agent", kind: "text", path: responsesRoute, prices: "{}", ask: `"input":[{"role":"user","content":""}],"store":false`,
			odd:    `"input" : [ {"role":"user","content":"\u00fcnd ünd"} ], "store" : false,"temperature":1.0e0`,
			added:  `"model":"m","max_output_tokens":4096,`,
			stream: `,"stream":true`, seen: "ünd ", end: "response.completed",
			limit: `,"max_output_tokens":16`, held: 93, charged: 18,
			used: endpointUsage{Requests: 1, InputTokens: 11, CachedInputTokens: 5, CacheWriteTokens: 2, OutputTokens: 7,
				TokensCharged: 18},
			ends: map[string]ending{
				"stream with an error":                {200, "", 4 + 4, failed}, // which is its end
				"stream with an error before content": {200, "", 0, failed},
				"stream ended after its reason":       {200, "", 4 + 10, broken},
				// It ends with the event that has its usage.
				"stream ended without a marker": {200, "", 18, complete},
				"stream cut with usage":         {200, "", 18, complete},
			},
			cannot: map[string]string{
				"earlier response":             "it may go on from one of its own",
				"cache of streams, usage":      asksNoUsage,
				"stream left after its reason": "it ends with the event that has its usage",
			},
		},
	}
}

func otherFormats() []wireFormat {
	return []wireFormat{
		{
			endpoint: "vectors", kind: "embeddings", path: embeddingsPath, prices: "{}", ask: `"input":"a"`,
			odd: `"input" : "\u00fcnd ünd"`, added: `"model":"m",`,
			held: 13, charged: 11, used: endpointUsage{Requests: 1, InputTokens: 11, TokensCharged: 11},
			ends: map[string]ending{
				"whole":                  {200, "", 11, noStream},
				"no usage":               {200, "", 1, noStream}, // a quarter of the bytes
				"silent":                 {200, "", 1, cutShort}, // which is relayed as it comes
				"error with usage in it": {200, "", 11, noStream},
				"more than was held":     {200, "", 50, noStream},
			},
			leaves: map[string]int{"left, not streamed": 11},
			cannot: map[string]string{"stream": noStreams, "cache, tool": noTools, "cache, limit": noLimit},
		},
		{
			endpoint: "guard", kind: "moderation", path: moderationsPath, prices: `{"request":3}`, ask: `"input":"a"`,
			odd: `"input" : "\u00fcnd ünd"`, added: `"model":"m",`,
			held: 3, charged: 3, used: endpointUsage{Requests: 1, TokensCharged: 3},
			ends: map[string]ending{
				"whole":                  {200, "", 3, noStream},
				"no usage":               {200, "", 3, noStream}, // it never has one
				"error with usage in it": {200, "", 0, noStream}, // it has failed
			},
			leaves: map[string]int{"left, not streamed": 3},
			cannot: map[string]string{
				"stream":             noStreams,
				"cache":              "moderations are not cached",
				"more than was held": "its price is that of a request, which is held", "error in a 200, with usage": "it has no usage",
			},
		},
		{
			endpoint: "painter", kind: "images", path: imagesPath, prices: "{}", members: `,"image_tokens":50`, ask: `"prompt":"a"`,
			odd: `"prompt" : "\u00fcnd ünd"`, added: `"model":"m",`,
			stream: `,"stream":true,"partial_images":3`, seen: "partial_image_index", end: "image_generation.completed", held: 51, charged: 18,
			used: endpointUsage{Requests: 1, InputTokens: 11, OutputTokens: 7,
				TokensCharged: 18},
			ends: merged(unseenStreams(351), map[string]ending{
				"no usage":             {200, "", 51, noStream},
				"silent":               {200, "", 51, cutShort}, // which is relayed as it comes
				"stream without usage": {200, "", 351, complete},
			}),
			leaves: map[string]int{"stream left, cancel": 351},
			cannot: merged(notText(), map[string]string{
				"cache":                     "images are not cached",
				"stream left in its middle": "it is drained, since nobody can estimate it",
				"stream left before it comes, nothing hidden": "it is drained, since nobody can estimate it",
			}),
		},
	}
}

func soundFormats() []wireFormat {
	return []wireFormat{
		{
			endpoint: "ear", kind: "transcription", path: transcriptsPath, prices: "{}", isForm: true,
			ask: `"file":"` + tenSeconds + `"`, added: `"model":"m",`,
			stream: `,"stream":true`, seen: "transcript.text.delta", end: "transcript.text.done", held: 150, charged: 18,
			used: endpointUsage{Requests: 1, InputTokens: 11, AudioInputTokens: 11, OutputTokens: 7,
				TokensCharged: 18},
			ends: merged(unseenStreams(150), map[string]ending{
				"no usage":             {200, "", 150, noStream},
				"stream without usage": {200, "", 150, complete},
			}),
			leaves: map[string]int{
				"stream left, cancel": 150, "stream left in its middle": 150, "stream left before it comes, nothing hidden": 150,
			},
			cannot: merged(notText(), map[string]string{
				"too large":        "forms may be larger",
				"cache of streams": "streams of transcripts are not cached",
				"cache, tool":      noTools,
				"cache, limit":     noLimit,
			}),
		},
		{
			endpoint: "interpreter", kind: "transcription", path: translatesPath, prices: "{}", isForm: true,
			ask: `"file":"` + tenSeconds + `"`, added: `"model":"m",`,
			held: 150, charged: 150, used: endpointUsage{Requests: 1, TokensCharged: 150}, // it has no usage
			ends:   map[string]ending{"whole": {200, "", 150, noStream}, "no usage": {200, "", 150, noStream}},
			leaves: map[string]int{"left, not streamed": 150},
			cannot: map[string]string{
				"stream": noStreams, "too large": "forms may be larger", "cache": "without usage it is not cached",
				"error in a 200, with usage": "it has no usage",
			},
		},
		{
			endpoint: "voice", kind: "speech", path: speechPath, prices: "{}", ask: `"input":"abcd"`,
			odd: `"input" : "\u00fcndü"`, added: `"model":"m",`,
			stream: `,"stream_format":"sse"`, seen: "speech.audio.delta", end: "speech.audio.done", held: 4, charged: 4,
			used: endpointUsage{Requests: 1, TokensCharged: 4},
			ends: merged(unseenStreams(4), map[string]ending{
				"whole":                         {200, "", 4, noStream},
				"no usage":                      {200, "", 4, noStream},
				"ended early":                   {200, "", 4, noStream}, // which nobody can tell
				"cut":                           {200, "", 4, cutShort}, // it is relayed as it comes
				"silent":                        {200, "", 4, cutShort},
				"stream":                        {200, "", 4, complete},
				"stream without usage":          {200, "", 4, complete},
				"stream ended without a marker": {200, "", 4, complete},
				"stream cut with usage":         {200, "", 4, complete},
			}),
			leaves: map[string]int{
				"left, not streamed": 4, "stream left in its middle": 4, "stream left after its end": 4, "stream left, cancel": 4,
				"stream left before it comes": 4,
			},
			cannot: merged(notText(), map[string]string{
				"cache":                         "sounds are not cached",
				"more than was held":            "what it costs is known before",
				"error with usage in it":        "its usage does not count",
				"error in a 200, with usage":    "its usage does not count",
				"stream left, drain":            "what it costs is known: its rest is never awaited",
				"stream left before it comes, ": "its beginning is always awaited",
			}),
		},
	}
}

// notText returns what streams of no text cannot have.
func notText() map[string]string {
	return map[string]string{
		"stream left after its reason":        "it ends with the event that has its usage",
		"stream left, hidden reasoning":       "nothing is reasoned about",
		"stream left, thinking that was seen": "nothing is reasoned about",
	}
}

// unseenStreams returns the ends of streams of which nothing but the last event says what they cost: without it, that is
// what is held. They begin with content.
func unseenStreams(held int) map[string]ending {
	return map[string]ending{
		"stream cut before content":           {502, "false", 0, noStream},
		"stream with an error before content": {502, "", 0, noStream},
		"stream cut":                          {200, "", held, broken},
		"stream ended early":                  {200, "", held, broken},
		"stream with an error":                {200, "", held, broken},
		"stream silent":                       {200, "", held, broken},
		"stream ended after its reason":       {200, "", held, broken},
		"stream ended without a marker":       {200, "", 18, complete},
		"stream cut with usage":               {200, "", 18, complete},
	}
}

func merged[V any](all, more map[string]V) map[string]V {
	maps.Copy(all, more)
	return all
}

// can reports whether the format can have a case.
func (f wireFormat) can(name string) bool {
	for prefix := range f.cannot {
		if strings.HasPrefix(name, prefix) {
			return false
		}
	}
	return true
}

// forFormats runs a case, in parallel, for each format that can have it.
func forFormats(t *testing.T, name string, test func(t *testing.T, f wireFormat)) {
	for _, f := range wireFormats() {
		if f.can(name) {
			t.Run(name+" "+f.path, func(t *testing.T) {
				t.Parallel()
				test(t, f)
			})
		}
	}
}

// body returns a request with further members, which begin with commas.
func (f wireFormat) body(members ...string) string {
	return f.fill("{ASK" + strings.Join(members, "") + "}")
}

// fill returns a body in which ASK and ,STREAM stand for what the format needs. If its bodies are forms, the members of
// an object become fields; anything else stays as it is.
func (f wireFormat) fill(body string) string {
	body = strings.NewReplacer("ASK", f.ask, ",STREAM", f.stream).Replace(body)
	decoder := json.NewDecoder(strings.NewReader(body))
	if first, err := decoder.Token(); !f.isForm || err != nil || first != json.Delim('{') || !json.Valid([]byte(body)) {
		return body
	}
	var file string
	var fields []string
	for decoder.More() {
		name, _ := decoder.Token()
		var value json.RawMessage
		_ = decoder.Decode(&value) // it was found to be valid
		text := string(value)
		_ = json.Unmarshal(value, &text) // only of a string
		if name == "file" {
			file = text
			continue
		}
		fields = append(fields, fmt.Sprint(name, "=", text))
	}
	return soundForm(file, fields...)
}

// contentTypeOf returns the type of a body of soundForm, and "" for others.
func contentTypeOf(body string) string {
	if strings.HasPrefix(body, "--sound\r\n") {
		return strings.TrimPrefix(soundType, "Content-Type: ")
	}
	return ""
}

// wireError is the status, type and code of an error, as the format has them.
func (f wireFormat) wantError(t testing.TB, got reply, status int, openAI, code, anthropic string) {
	t.Helper()
	if strings.HasPrefix(f.path, messagesPath) {
		openAI, code = anthropic, ""
	}
	got.wantWireError(t, f.path, status, openAI, code)
}

// endpointOf returns a member of endpoints for an endpoint of the format.
func (f wireFormat) endpointOf(p *providertest.Provider, name, members string) string {
	return strings.Replace(endpointJSON(p, name, f.path, f.members+members), `"*":{}`, `"*":`+f.prices, 1)
}

// formatsConfig returns the config of a tenant that has an endpoint of each format, and whose anonymous users get that
// many tokens. members are added to all endpoints, and more to the config.
func formatsConfig(p *providertest.Provider, tokens int64, members, more string) string {
	endpoints := make(map[string][]string)
	for _, f := range wireFormats() {
		endpoints[f.kind] = append(endpoints[f.kind], f.endpointOf(p, f.endpoint, members))
	}
	var kinds []string
	for _, kind := range slices.Sorted(maps.Keys(endpoints)) {
		kinds = append(kinds, fmt.Sprintf(`%q:{"endpoints":{%s}}`, kind, strings.Join(endpoints[kind], ",")))
	}
	return fmt.Sprintf(`{"user_groups":{"anonymous":{"tokens":%d}},"providers":{%s}%s}`, tokens, strings.Join(kinds, ","), more)
}

// What a request of a format holds, costs and has used is what the row says: in its headers, in the balance, by day, in
// the metrics and in the access log. One token fewer is refused.
func TestFormatCharges(t *testing.T) {
	t.Parallel()
	const granted = 10_000
	g := newGatewayTest(t, granted, "", "ACCESS_LOG=true")
	want, charged := make(map[string]endpointUsage), 0
	for _, f := range wireFormats() {
		t.Run(f.path, func(t *testing.T) {
			key := func(tokens int) string {
				return g.issue(t, g.tenant, fmt.Sprintf(`"userId":"u","group":"anonymous","tokens":%d`, tokens))
			}
			got := g.do(t, "POST", "/"+g.tenant+f.path, f.body(f.limit), bearer(key(f.held-1)))
			f.wantError(t, got, 402, "insufficient_quota", "insufficient_quota", "billing_error")
			got = g.do(t, "POST", "/"+g.tenant+f.path, f.body(f.limit), bearer(key(f.held)))
			if err := got.is(200); err != nil {
				t.Fatal(err)
			}
			got.wantHeader(t, "X-Tokens-Held", fmt.Sprint(f.held))
			got.wantHeader(t, "X-Tokens-Charged", fmt.Sprint(f.charged))
			got.wantHeader(t, "X-Tokens-Left", fmt.Sprint(f.held-f.charged))
			want[f.endpoint], charged = f.used, charged+f.charged
			waittest.Eventually(t, 10*time.Second, func() error {
				if n := g.log.Count(fmt.Sprintf(` endpoint=%q model="m"`, f.endpoint)); n != 1 {
					return fmt.Errorf("%d lines of the access log", n)
				}
				return nil
			})
			labels := fmt.Sprintf(`{tenant=%q,endpoint=%q,status="200"}`, g.tenant, f.endpoint)
			if n := g.sample(t, "gateway_requests_total"+labels); n != 1 {
				t.Errorf("gateway_requests_total is %v", n)
			}
			route := fmt.Sprintf(`http_requests_total{route="/{tenantId}%s",method="POST",status="200"}`, f.path)
			if n := g.sample(t, route); n != 1 {
				t.Errorf("%s is %v", route, n)
			}
			if !f.can("stream") {
				return
			}
			g.key = g.login(t, g.tenant)
			got = g.call(t, f.path, f.fill("{ASK,STREAM}"))
			got.wantHeader(t, "X-Tokens-Charged", "") // it comes too early to be known
			if n := g.charged(t, granted); n != f.charged {
				t.Errorf("a stream costs %d, want %d", n, f.charged)
			}
			double := reflect.ValueOf(&f.used).Elem()
			for i := range double.NumField() {
				double.Field(i).SetInt(2 * double.Field(i).Int())
			}
			want[f.endpoint], charged = f.used, charged+f.charged
		})
	}
	waittest.Eventually(t, 10*time.Second, func() error {
		got := g.usage(t, g.tenant, today())
		if !maps.Equal(got.ByEndpoint, want) || got.TokensCharged != int64(charged) {
			return fmt.Errorf("got %+v, want %v and %d", got, want, charged)
		}
		return nil
	})
	if n := g.sample(t, `tokens_charged_total{tenant="`+g.tenant+`"}`); n != float64(charged) {
		t.Errorf("%v are charged in all, want %d", n, charged)
	}
}

// The same request is served from the cache to each key of the tenant, for the fee, in formats whose responses are kept.
func TestFormatCache(t *testing.T) {
	t.Parallel()
	const granted = 10_000
	p := providertest.New(t)
	g := newService(t).gatewayTest(t, p, formatsConfig(p, granted, "", `,"caching":{`+cachingForAnHour+`}`))
	for _, f := range wireFormats() {
		for _, body := range []string{"{ASK}", "{ASK,STREAM}"} {
			name := "cache"
			if strings.Contains(body, "STREAM") {
				if name = "cache of streams"; !f.can("stream") {
					continue
				}
			}
			t.Run(f.path+body, func(t *testing.T) {
				body := f.fill(body)
				g.key = g.login(t, g.tenant)
				if !f.can(name) {
					for range 2 {
						got := g.call(t, f.path, body)
						if got.status != 200 || got.header.Get("X-Cache") == "HIT" {
							t.Errorf("got %d %v", got.status, got.header)
						}
					}
					return
				}
				g.call(t, f.path, body, "Cache-Control: no-store").wantHeader(t, "X-Cache", "MISS")
				first := g.miss(t, f.path, body)
				g.key = g.login(t, g.tenant)
				got := g.hit(t, f.path, body)
				fee := (f.charged + 4) / 5
				got.wantHeader(t, "X-Tokens-Charged", fmt.Sprint(fee))
				if n := g.charged(t, granted); n != fee || got.body != first.body {
					t.Errorf("charged %d, want %d; got %q, want %q", n, fee, got.body, first.body)
				}
				g.miss(t, f.path, body, "Cache-Control: no-cache")
			})
		}
	}
}
