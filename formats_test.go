package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"tollgate/internal/providertest"
)

// A wireFormat is a row of the table over which the tests of the gateway run: a format, and what is its own in them. A
// test that is for all formats runs over wireFormats, with cases that have names. A format that cannot have a case says
// why.
type wireFormat struct {
	endpoint   string // that speaks it in formatsConfig
	kind, path string
	members    string // of the endpoint
	prices     string // of every model
	ask        string // members that a request needs
	stream     string // members that ask for a stream, each behind a comma; "" if it has none
	seen       string // what the first event with content has
	reason     string // what the event has that says why a stream ends
	end        string // what the end of a stream has

	held    int // for a request of ask and nothing else, at the least
	charged int // for a response of a provider that works, which has the usage used
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
	noStreams = "the format has no streams"
)

// wireFormats returns the table. Responses are cut, fail and are left as those of chat are, but for what a row says.
func wireFormats() []wireFormat {
	return []wireFormat{
		{
			endpoint: "chat", kind: "text", path: chatPath, prices: "{}", ask: `"messages":[{}]`,
			stream: `,"stream":true`, seen: "ünd ", reason: `"finish_reason":"stop"`, end: "[DONE]", held: 18, charged: 18, used: endpointUsage{Requests: 1, InputTokens: 11, CachedInputTokens: 5, OutputTokens: 7, TokensCharged: 18},
		},
		{
			endpoint: "claude", kind: "text", path: messagesPath, prices: "{}", ask: `"messages":[{}]`,
			stream: `,"stream":true`, seen: "ünd ", reason: "message_delta", end: "message_stop", held: 18, charged: 18,
			used: endpointUsage{Requests: 1, InputTokens: 11, CachedInputTokens: 3, CacheWriteTokens: 2, OutputTokens: 7, TokensCharged: 18},
			ends: map[string]ending{ // the input comes first
				"stream cut":                    {200, "", 11 + 4, broken},
				"stream ended early":            {200, "", 11 + 4, broken},
				"stream ended after its reason": {200, "", 11 + 10, broken},
				"stream with an error":          {200, "", 11 + 4, broken},
				"stream silent":                 {200, "", 11 + 4, broken},
			},
			leaves: map[string]int{"stream left in its middle": 11 + 4, "stream left, cancel": 11 + 4},
			cannot: map[string]string{"hard limit": "only OpenAI refuses an account so"},
		},
		{
			endpoint: "vectors", kind: "embeddings", path: embeddingsPath, prices: "{}", ask: `"input":"a"`,
			held: 13, charged: 11, used: endpointUsage{Requests: 1, InputTokens: 11, TokensCharged: 11},
			ends: map[string]ending{
				"whole":                  {200, "", 11, noStream},
				"no usage":               {200, "", 1, noStream}, // a quarter of the bytes
				"silent":                 {200, "", 1, cutShort}, // which is relayed as it comes
				"error with usage in it": {200, "", 11, noStream},
				"more than was held":     {200, "", 50, noStream},
			},
			leaves: map[string]int{"left, not streamed": 11},
			cannot: map[string]string{"stream": noStreams},
		},
		{
			endpoint: "guard", kind: "moderation", path: moderationsPath, prices: `{"request":3}`, ask: `"input":"a"`,
			held: 3, charged: 3, used: endpointUsage{Requests: 1, TokensCharged: 3},
			ends: map[string]ending{
				"whole":                  {200, "", 3, noStream},
				"no usage":               {200, "", 3, noStream}, // it never has one
				"error with usage in it": {200, "", 0, noStream}, // it has failed
			},
			leaves: map[string]int{"left, not streamed": 3},
			cannot: map[string]string{
				"stream":             noStreams,
				"more than was held": "its price is that of a request, which is held", "error in a 200, with usage": "it has no usage",
			},
		},
		{
			endpoint: "painter", kind: "images", path: imagesPath, prices: "{}", members: `,"image_tokens":50`, ask: `"prompt":"a"`,
			stream: `,"stream":true,"partial_images":3`, seen: "partial_image_index", end: "image_generation.completed", held: 51, charged: 18, used: endpointUsage{Requests: 1, InputTokens: 11, OutputTokens: 7, TokensCharged: 18},
			ends: map[string]ending{
				"no usage": {200, "", 51, noStream},
				"silent":   {200, "", 51, cutShort}, // which is relayed as it comes
				// What has come of a stream says nothing of its cost, so that it costs the hold.
				"stream without usage":                {200, "", 351, complete},
				"stream cut before content":           {502, "false", 0, noStream}, // which begins it
				"stream cut":                          {200, "", 351, broken},
				"stream ended early":                  {200, "", 351, broken},
				"stream with an error":                {200, "", 351, broken},
				"stream with an error before content": {502, "", 0, noStream},
				"stream silent":                       {200, "", 351, broken},
				"stream ended after its reason":       {200, "", 351, broken},
				// It ends with the event that has its usage.
				"stream ended without a marker": {200, "", 18, complete},
				"stream cut with usage":         {200, "", 18, complete},
			},
			leaves: map[string]int{"stream left, cancel": 351},
			cannot: map[string]string{
				"stream left in its middle":                   "it is drained, since nobody can estimate it",
				"stream left before it comes, nothing hidden": "it is drained, since nobody can estimate it",
				"stream left after its reason":                "it ends with the event that has its usage",
				"stream left, hidden reasoning":               "images are not reasoned about",
				"stream left, thinking that was seen":         "images are not reasoned about",
			},
		},
	}
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

// body returns a request with further members, each of which begins with a comma.
func (f wireFormat) body(members ...string) string {
	return "{" + f.ask + strings.Join(members, "") + "}"
}

// fill returns a body in which ASK and ,STREAM stand for what the format needs.
func (f wireFormat) fill(body string) string {
	return strings.NewReplacer("ASK", f.ask, ",STREAM", f.stream).Replace(body)
}

// wireError is the status, type and code of an error, as the format has them.
func (f wireFormat) wantError(t testing.TB, got reply, status int, openAI, code, anthropic string) {
	t.Helper()
	if f.path == messagesPath {
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
