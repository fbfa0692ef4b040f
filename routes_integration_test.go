//go:build integration

package main

import (
	"fmt"
	"regexp"
	"strings"
	"testing"

	"tollgate/internal/providertest"
)

// routesTenant creates a tenant whose endpoints are p for every kind, each at prices of its own. Its group pro has 5,000
// tokens, and poor 20.
func routesTenant(t *testing.T, p *providertest.Provider) string {
	t.Helper()
	endpoint := func(name, path, members string) string {
		return fmt.Sprintf(`"%s":{"url":"%s%s","api_key":"%s","default_model":"m",%s}`, name, p.URL, path, providertest.Key, members)
	}
	const whisper, faulty = `"whisper-1":{"second":4}`, `"cut":{},"error":{},"busy":{}`
	kinds := map[string]string{
		"text": endpoint("responses", responsesRoute,
			`"models":{"gpt-6-luna":{},"gpt-6-sol":{"input":2,"cached_input":1,"cache_write":3,"output":4},`+faulty+`}`),
		"embeddings": endpoint("embeddings", "/v1/embeddings", `"models":{"text-embedding-3-small":{"input":2},`+faulty+`}`),
		"moderation": endpoint("moderation", "/v1/moderations", `"models":{"omni-moderation-latest":{"request":5}}`),
		"images": endpoint("images", "/v1/images/generations",
			`"image_tokens":100,"models":{"gpt-image-1":{"image_output":3}}`),
		"transcription": endpoint("transcription", "/v1/audio/transcriptions",
			`"models":{"gpt-4o-transcribe":{"audio_input":2,"output":3},`+whisper+","+faulty+`}`) + "," +
			endpoint("translation", "/v1/audio/translations", `"models":{`+whisper+`}`),
		"speech": endpoint("speech", "/v1/audio/speech",
			`"models":{"tts-1":{"character":2},"gpt-4o-mini-tts":{"character":3},`+faulty+`}`),
	}
	var providers []string
	for kind, endpoints := range kinds {
		providers = append(providers, fmt.Sprintf(`%q:{"endpoints":{%s}}`, kind, endpoints))
	}
	return newTenantIn(t, testRedis, fmt.Sprintf(`{"user_groups":{"pro":{"tokens":5000},"poor":{"tokens":20}},"providers":{%s}}`,
		strings.Join(providers, ",")))
}

// The official SDK does all that it does with OpenAI's other routes, and each call is charged what the response reports.
func TestIntegrationRoutes(t *testing.T) {
	script := compileCalls(t, "routes")
	p := providertest.New(t)
	s := newService(t)
	tenant := routesTenant(t, p)
	const (
		words    = `"word ünd word ünd word ünd "`
		vector   = `[0.25,-0.5,1]`
		toolUsed = `"tool":"weather","arguments":"{\"city\":\"Zürich\"}"`
	)
	calls := []sdkCall{
		{Name: "response", want: `"returned":{"content":"word ünd ","status":"completed","usage":18,"charged":"18"}`, charged: 18},
		// Of 11 input tokens 5 are cached and 2 written.
		{Name: "response at prices", Model: "gpt-6-sol", want: `"returned":{…"usage":18,"charged":"47"}`, charged: 4*2 + 5 + 2*3 + 7*4},
		{Name: "response with a limit", MaxTokens: 3, want: `"returned":{…"status":"incomplete","usage":14,"charged":"14"}`, charged: 14},
		{Name: "responseStream", want: `"returned":{"content":` + words + `,"usage":18,"types":9}`, charged: 18},
		{Name: "responseStreamHelper", want: `"returned":{"content":` + words + `,"status":"completed","usage":18}`, charged: 18},
		{Name: "responseTools", want: `"returned":{` + toolUsed + `,"content":"word ünd ","usage":54}`, charged: 54},
		{Name: "responseToolsStream", want: `"returned":{` + toolUsed + `}`, charged: 18},
		{Name: "responseState", charged: 18 + 36 + 25, want: `"returned":{"content":"word ünd ","items":["message","message","message"],` +
			`"gone":["NotFoundError",…],"usage":[18,36,25]}`},
		{Name: "responseCompact", want: `"returned":{"types":["message","compaction"],"usage":18}`, charged: 18},
		{Name: "responseCount", want: `"returned":11`},
		{Name: "embedding", Model: "text-embedding-3-small", charged: 22,
			want: `"returned":{"vectors":[` + vector + `,` + vector + `],"usage":11,"charged":…}`},
		{Name: "embeddingFloat", Model: "text-embedding-3-small", charged: 22,
			want: `"returned":{"vectors":[[0.25,-0.5,1,0.25,-0.5,1]],"usage":11}`},
		{Name: "moderation", Model: "omni-moderation-latest", want: `"returned":{"flagged":false,"charged":"5"}`, charged: 5},
		{Name: "image", Model: "gpt-image-1", charged: 11 + 7*3,
			want: `"returned":{"images":["iVBORw0KGgoA","iVBORw0KGgoA"],"usage":18}`},
		{Name: "imageStream", Model: "gpt-image-1", charged: 11 + 7*3, want: `"returned":{"types":["image_generation.partial_image",` +
			`"image_generation.partial_image","image_generation.completed"],"usage":18}`},
		{Name: "transcription", Model: "gpt-4o-transcribe", charged: 11*2 + 7*3,
			want: `"returned":{"text":"word ünd ","usage":18,"charged":"43"}`},
		{Name: "transcription by length", Model: "whisper-1", want: `"returned":{"text":"word ünd ","usage":3,"charged":"12"}`, charged: 3 * 4},
		{Name: "transcriptionText", Model: "gpt-4o-transcribe", want: `"returned":"word ünd …"`, charged: 43},
		{Name: "transcriptionText by length", Model: "whisper-1", want: `"returned":"word ünd …"`, charged: 12},
		{Name: "transcriptionVerbose", Model: "whisper-1", want: `"returned":{"text":"word ünd ","duration":3}`, charged: 12},
		{Name: "transcriptionStream", Model: "gpt-4o-transcribe", want: `"returned":{"text":` + words + `,"usage":18}`, charged: 43},
		// The JSON of a translation has no usage, so what was held for the second is charged: 10 tokens in and 5 out.
		{Name: "translation", Model: "whisper-1", want: `"returned":"word ünd "`, charged: 15},
		{Name: "speech", Model: "tts-1", want: `"returned":{"type":"audio/mpeg","bytes":"` + strings.Repeat("fffb9000000b", 3) + `"}`,
			charged: 33 * 2},
		{Name: "speechStream", Model: "gpt-4o-mini-tts", charged: 3 * 3,
			want: `"returned":{"types":["speech.audio.delta",…"speech.audio.done"],"usage":18}`},
	}
	s.runRoutes(t, tenant, script, calls)
	for _, call := range calls {
		wantCharged(t, call)
	}
	for _, r := range p.Requests() {
		if agent := r.Header.Get("User-Agent"); !regexp.MustCompile(`^OpenAI/JS 6\.`).MatchString(agent) {
			t.Errorf("%s: the provider got the User-Agent %q", r.Path, agent)
		}
	}
}

// runRoutes makes the calls with a tenant, each with a key of its own, which is one of the group poor if that is its
// model.
func (s *service) runRoutes(t *testing.T, tenant, script string, calls []sdkCall) {
	t.Helper()
	for i := range calls {
		group := "pro"
		if calls[i].Model == "poor" {
			group, calls[i].Model = "poor", ""
		}
		calls[i].Key = s.issue(t, tenant, fmt.Sprintf(`"userId":"u-%d","group":%q`, i, group))
		calls[i].BaseURL = s.url + "/" + tenant
		if calls[i].Model == "" {
			calls[i].Model = "gpt-6-luna"
		}
	}
	runSDK(t, script, calls)
}

// What goes wrong reaches a program as the error that the SDK has for it, and never as a response that is shorter.
func TestIntegrationRoutesErrors(t *testing.T) {
	script := compileCalls(t, "routes")
	p := providertest.New(t)
	p.On("cut", providertest.Conduct{Cut: providertest.InContent})
	p.On("error", providertest.Conduct{Error: providertest.InContent})
	p.On("busy", providertest.Refuse(429, "Retry-After: 7"))
	s := newService(t)
	s.runRoutes(t, routesTenant(t, p), script, []sdkCall{
		{Name: "response without money", Model: "poor", want: `"threw":"APIError","status":402,"code":"insufficient_quota",…`},
		{Name: "response of an unknown model", Model: "other", want: `"threw":"NotFoundError","status":404,"code":"model_not_found",…`},
		{Name: "responseStream that is cut", Model: "cut", want: `"threw":"APIError",…`},
		{Name: "responseStream with an error", Model: "error", want: `"threw":"Error: The provider gives up."`},
		{Name: "responseStreamHelper that is cut", Model: "cut", want: `"threw":"…`},
		{Name: "response of a busy provider", Model: "busy", want: `"threw":"RateLimitError","status":429,…"retryAfter":"7"`},
		{Name: "embedding that is cut", Model: "cut", want: `"threw":"…`},
		{Name: "embedding with a model of text", want: `"threw":"NotFoundError","status":404,"code":"model_not_found",…`},
		{Name: "transcriptionSubtitles", Model: "whisper-1", want: `"threw":"BadRequestError","status":400,…`},
		{Name: "transcriptionStream that is cut", Model: "cut", want: `"threw":"…`},
		{Name: "speech that is cut", Model: "cut", want: `"threw":"…`},
		{Name: "speech of a busy provider", Model: "busy", want: `"threw":"RateLimitError","status":429,…"retryAfter":"7"`},
	})
}
