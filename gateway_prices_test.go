package main

import (
	"fmt"
	"strings"
	"testing"

	"tollgate/internal/providertest"
)

// pricedBody returns a response of either format with that usage, from the given model.
func pricedBody(path, model, usage string) string {
	if path == messagesPath {
		return fmt.Sprintf(`{"type":"message","model":%q,"content":[{"type":"text","text":"Hello."}],"stop_reason":"end_turn","usage":{%s}}`,
			model, usage)
	}
	return fmt.Sprintf(`{"model":%q,"choices":[{"index":0,"message":{"content":"Hello."},"finish_reason":"stop"}],"usage":{%s}}`, model, usage)
}

// allPrices are prices that tell all kinds apart.
const allPrices = `{"input":1,"cached_input":0.1,"cache_write":1.25,"cache_write_1h":2,"audio_input":4,"cached_audio_input":0.4,` +
	`"image_input":3,"output":8,"audio_output":16,"image_output":32,"search":1000,"request":5}`

// A request with all kinds of tokens is charged, shown by day and counted in the metrics to the token.
func TestGatewayKinds(t *testing.T) {
	t.Parallel()
	first, p, s := today(), providertest.New(t), newService(t)
	const members = `,"server_tools":true,"models":{"m":` + allPrices + `}`
	endpoint := func(name, path string) string {
		return fmt.Sprintf(`%q:{"url":"%s%s","default_model":"m"%s}`, name, p.URL, path, members)
	}
	g := s.gatewayTest(t, p, textConfig(1_000_000, endpoint("chat", chatPath), endpoint("claude", messagesPath)))
	total := 0
	for _, test := range []struct {
		path, usage string
		charge      int
	}{
		{chatPath, `"prompt_tokens":1000,"prompt_tokens_details":{"cached_tokens":200,"cached_tokens_details":{"audio_tokens":50},` +
			`"cache_write_tokens":100,"audio_tokens":80,"image_tokens":60},` +
			`"completion_tokens":500,"completion_tokens_details":{"audio_tokens":70,"image_tokens":40,"reasoning_tokens":9},` +
			`"total_tokens":1500,"num_search_queries":3`,
			610 + 15 + 125 + 30*4 + 20 + 60*3 + 390*8 + 70*16 + 40*32 + 3000 + 5},
		{messagesPath, `"input_tokens":600,"cache_creation_input_tokens":150,"cache_read_input_tokens":250,"output_tokens":300,` +
			`"cache_creation":{"ephemeral_5m_input_tokens":100,"ephemeral_1h_input_tokens":50},"server_tool_use":{"web_search_requests":2}`,
			600 + 125 + 50*2 + 25 + 300*8 + 2000 + 5},
	} {
		p.On("m", providertest.Conduct{Body: pricedBody(test.path, "m", test.usage)})
		got := g.call(t, test.path, `{"max_tokens":9}`)
		if err := got.is(200); err != nil {
			t.Fatal(err)
		}
		got.wantHeader(t, "X-Tokens-Charged", fmt.Sprint(test.charge))
		total += test.charge
	}
	if charged := g.charged(t, 1_000_000); charged != total {
		t.Errorf("%d were charged, want %d", charged, total)
	}
	s.wantUsage(t, g.tenant, first, fmt.Sprintf(`"requests":2,"tokensCharged":%d,"tokensGranted":1000000,"byEndpoint":{`+
		`"chat":{"requests":1,"inputTokens":1000,"cachedInputTokens":200,"cacheWriteTokens":100,"audioInputTokens":80,`+
		`"outputTokens":500,"audioOutputTokens":70,"tokensCharged":9595},`+
		`"claude":{"requests":1,"inputTokens":1000,"cachedInputTokens":250,"cacheWriteTokens":150,"audioInputTokens":0,`+
		`"outputTokens":300,"audioOutputTokens":0,"tokensCharged":5255}},`+
		`"byGroup":{"anonymous":{"requests":2,"tokensCharged":%d}}`, total, total))
	for sample, want := range map[string]float64{
		`chat",direction="input",kind="input`: 610, `chat",direction="input",kind="cached_input`: 150,
		`chat",direction="input",kind="cache_write`: 100, `chat",direction="input",kind="cache_write_1h`: -1,
		`chat",direction="input",kind="audio_input`: 30, `chat",direction="input",kind="cached_audio_input`: 50,
		`chat",direction="input",kind="image_input`: 60, `chat",direction="output",kind="output`: 390,
		`chat",direction="output",kind="audio_output`: 70, `chat",direction="output",kind="image_output`: 40,
		`claude",direction="input",kind="input`: 600, `claude",direction="input",kind="cached_input`: 250,
		`claude",direction="input",kind="cache_write`: 100, `claude",direction="input",kind="cache_write_1h`: 50,
		`claude",direction="output",kind="output`: 300, `claude",direction="output",kind="audio_output`: -1,
	} {
		name := fmt.Sprintf(`gateway_tokens_total{tenant=%q,endpoint="%s"}`, g.tenant, sample)
		if got := s.sample(t, name); got != want { // -1: the metric has no such sample
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
}

// What a provider reports costs what the config says of each kind and each model.
func TestGatewayPrices(t *testing.T) {
	t.Parallel()
	p, s := providertest.New(t), newService(t)
	const agent = `"prompt_tokens":10000,"completion_tokens":10,"prompt_tokens_details":{"cached_tokens":9800}`
	const plain = `"prompt_tokens":1000,"completion_tokens":10`
	const message = `"input_tokens":11,"output_tokens":7`
	const advised = message + `,"iterations":[{"type":"message","input_tokens":11,"output_tokens":7},` +
		`{"type":"advisor_message","model":"%s","input_tokens":159419,"output_tokens":7805}]`
	for _, test := range []struct {
		name, path, models string
		asked, responded   string // models
		usage              string
		charge             int
	}{
		{"cached input", chatPath, `"m":{"input":2.5,"output":10,"cached_input":0.25}`, "m", "m", agent, 500 + 2450 + 100},
		{"cached input without a price", chatPath, `"m":{"input":2.5,"output":10}`, "m", "m", agent, 25_100},
		{"more cached than there is", chatPath, `"m":{"cached_input":0.25}`, "m", "m",
			`"prompt_tokens":100,"completion_tokens":10,"prompt_tokens_details":{"cached_tokens":9800}`, 25 + 10},
		{"long cache writes", messagesPath, `"m":{"cache_write":1.25,"cache_write_1h":2}`, "m", "m",
			message + `,"cache_creation_input_tokens":50000,"cache_creation":{"ephemeral_1h_input_tokens":50000}`, 100_018},
		{"short cache writes", messagesPath, `"m":{"cache_write":1.25,"cache_write_1h":2}`, "m", "m",
			message + `,"cache_creation_input_tokens":50000`, 62_518},
		{"searches", messagesPath, `"m":{"search":10}`, "m", "m",
			`"input_tokens":100,"output_tokens":10,"server_tool_use":{"web_search_requests":5}`, 160},
		{"a price for each request", chatPath, `"m":{"request":0.5}`, "m", "m", plain, 1011},
		{"much input", chatPath, `"m":{"above":{"tokens":999,"input":2}}`, "m", "m", plain, 2010},
		{"as much as is cheap", chatPath, `"m":{"above":{"tokens":1000,"input":2}}`, "m", "m", plain, 1010},
		{"a snapshot beside *", chatPath, `"*":{},"gpt-4o":{"input":2.5,"output":10}`, "gpt-4o-2024-08-06", "m", plain, 2600},
		{"another spelling, and what it is", chatPath, `"*":{},"gpt-4o":{"input":2.5,"output":10}`, "GPT-4o", "gpt-4o-2024-08-06", plain, 2600},
		{"a dearer model", chatPath, `"cheap":{"input":0.1},"dear":{"input":3}`, "cheap", "dear", plain, 3010},
		{"a model with a price for each request", chatPath, `"cheap":{"request":3},"dear":{"input":0,"output":0,"request":2000}`, "cheap", "dear",
			plain, 2000},
		{"a cheaper model", chatPath, `"cheap":{"input":0.1},"dear":{"input":3}`, "dear", "cheap", plain, 3010},
		{"an advisor", messagesPath, `"m":{},"opus":{"input":5,"output":25}`, "m", "m", fmt.Sprintf(advised, "opus"),
			18 + 159419*5 + 7805*25},
		{"an advisor without a price", messagesPath, `"m":{},"dear":{"output":2}`, "m", "m", fmt.Sprintf(advised, "unheard-of"),
			18 + 159419 + 7805*2},
		{"an advisor of a prefix", messagesPath, `"m":{},"o*":{"input":0.5}`, "m", "m", fmt.Sprintf(advised, "opus"),
			18 + 79709 + 1 + 7805}, // 79709.5
	} {
		t.Run(test.name, func(t *testing.T) {
			g := s.gatewayTest(t, p, textConfig(2_000_000,
				fmt.Sprintf(`"e":{"url":"%s%s","models":{%s}}`, p.URL, test.path, test.models)))
			p.On(test.asked, providertest.Conduct{Body: pricedBody(test.path, test.responded, test.usage)})
			got := g.call(t, test.path, fmt.Sprintf(`{"model":%q,"max_tokens":9}`, test.asked))
			got.wantHeader(t, "X-Tokens-Charged", fmt.Sprint(test.charge))
			if charged := g.charged(t, 2_000_000); got.status != 200 || charged != test.charge {
				t.Errorf("%d: %d were charged, want %d", got.status, charged, test.charge)
			}
		})
	}
}

// What is held for a request is the dearest that its tokens can cost.
func TestGatewayHeld(t *testing.T) {
	t.Parallel()
	p, s := providertest.New(t), newService(t)
	const members = `"max_tokens":100,"messages":[{"role":"user","content":%s}]`
	ask := func(content string) string { return fmt.Sprintf(`{`+members+`}`, content) }
	const image = `[{"type":"image","source":{"type":"url","url":"https://h/i.png"}}]`
	const file = `[{"type":"document","source":{"type":"file","file_id":"file_1"}}]`
	const sound = `[{"type":"input_audio","input_audio":{"data":"AAAA","format":"wav"}}]`
	cached := func(ttl string) string {
		return `[{"type":"text","text":"Hello","cache_control":{"type":"ephemeral"` + ttl + `}}]`
	}
	for _, test := range []struct {
		name, path, members, body string
		held                      func(bytes int) int
	}{
		{"text", messagesPath, ``, ask(`"Hello"`), func(n int) int { return n + 800 + 5 }},
		{"much text", messagesPath, ``, ask(`"` + strings.Repeat("x", 300_000) + `"`), func(n int) int { return n + 800 + 5 }},
		{"a stream", messagesPath, ``, strings.Replace(ask(`"Hello"`), "{", `{"stream":true,`, 1), func(n int) int { return n + 800 + 5 }},
		{"text in a small window", messagesPath, `,"max_input_tokens":10`, ask(`"Hello"`), func(int) int { return 10 + 800 + 5 }},
		{"a cached prompt", messagesPath, ``, ask(cached("")), func(n int) int { return (5*n+3)/4 + 800 + 5 }},
		{"one that is cached for an hour", messagesPath, ``, ask(cached(`,"ttl":"1h"`)), func(n int) int { return 2*n + 800 + 5 }},
		{"OpenAI's caches, which are written unasked", chatPath, ``, ask(`"Hello"`), func(n int) int { return (5*n+3)/4 + 800 + 5 }},
		{"an image", messagesPath, `,"media_tokens":10`, ask(image), func(n int) int { return 3*(n+10) + 800 + 5 }},
		{"a sound", chatPath, `,"media_tokens":10`, ask(sound), func(n int) int { return 4*(n-len("AAAA")+10) + 800 + 5 }},
		{"sounds in the output", chatPath, ``, strings.Replace(ask(`"Hello"`), "{", `{"modalities":["text","audio"],`, 1),
			func(n int) int { return (5*n+3)/4 + 3200 + 5 }},
		{"a file of any size, with images", messagesPath, ``, ask(file), func(n int) int { return 3*(n+200_000) + 800 + 5 }},
		{"a small file", messagesPath, `,"file_tokens":500`, ask(file), func(n int) int { return 3*(n+500) + 800 + 5 }},
		{"what fills the cache", messagesPath, ``, `{"max_tokens":0,"messages":[]}`, func(n int) int { return n + 5 }},
		{"a summary before the response", messagesPath, ``,
			strings.Replace(ask(`"Hello"`), "{", `{"context_management":{"edits":[{"type":"compact_20260112"}]},`, 1),
			func(n int) int { return 2*n + 1600 + 5 }},
	} {
		t.Run(test.name, func(t *testing.T) {
			g := s.gatewayTest(t, p, textConfig(1_000_000, fmt.Sprintf(`"e":{"url":"%s%s","default_model":"m","models":{"m":%s}%s}`,
				p.URL, test.path, allPrices, test.members)))
			got := g.call(t, test.path, test.body)
			if err := got.is(200); err != nil {
				t.Fatal(err)
			}
			got.wantHeader(t, "X-Tokens-Held", fmt.Sprint(test.held(len(test.body))))
		})
	}
}

// A coding agent, which sends 76 KB and asks for up to 128,000 tokens of output, works with a balance of 60,000. It is
// given no more than half of what is left, so that another works beside it.
func TestGatewayAgent(t *testing.T) {
	t.Parallel()
	p, s := providertest.New(t), newService(t)
	for _, limit := range []int{64_000, 128_000} {
		g := s.gatewayTest(t, p, textConfig(60_000, endpointsJSON(p, `,"bytes_per_token":3`)...))
		body := func(size int) string {
			return fmt.Sprintf(`{"max_tokens":%d,"stream":true,"messages":[{"role":"user","content":%q}]}`, limit, strings.Repeat("x", size))
		}
		p.On("m", providertest.Conduct{Hang: providertest.InContent})
		agent := g.open(t, messagesPath, body(76_000), "content_block_delta")
		defer agent.Close()
		input := (len(body(76_000)) + 2) / 3
		given := 4096 + (60_000-input-4096)/2
		if got := p.Last(t).Member(t, "max_tokens"); got != fmt.Sprint(given) {
			t.Errorf("the first was given %s tokens, want %d", got, given)
		}
		p.On("m", providertest.Conduct{})
		got := g.call(t, messagesPath, body(6000))
		if err := got.is(200); err != nil {
			t.Fatal(err)
		}
		left := 60_000 - input - given
		input = (len(body(6000)) + 2) / 3
		given = 4096 + (left-input-4096)/2
		got.wantHeader(t, "X-Max-Tokens", fmt.Sprint(given))
		got.wantHeader(t, "X-Tokens-Held", fmt.Sprint(input+given))
	}
}
