//go:build integration

package main

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tollgate/internal/providertest"
	"tollgate/internal/redistest"
	"tollgate/internal/websocket"
)

const realtimeModel = "gpt-realtime"

// talkPrice returns what sessions cost in these tests: each kind of token has a price of its own.
func talkPrice() (price, transcription map[string]int64) {
	return map[string]int64{
		"input": 4, "cached_input": 1, "audio_input": 32, "cached_audio_input": 2, "image_input": 5, "output": 16, "audio_output": 64,
	}, map[string]int64{"input": 6, "output": 10, "second": 3}
}

// talkTokens is what a key of the group pro has: enough for some sessions at once.
const talkTokens = 10_000_000

// newTalkTenant creates a tenant whose sessions go to that URL.
func newTalkTenant(t *testing.T, url string) string {
	t.Helper()
	price, transcription := talkPrice()
	members := map[string]any{"transcription": transcription}
	for kind, rate := range price {
		members[kind] = rate
	}
	text, err := json.Marshal(members)
	if err != nil {
		t.Fatal(err)
	}
	return newTenantIn(t, testRedis, fmt.Sprintf(`{"user_groups":{"pro":{"tokens":%d},"poor":{"tokens":20}},"providers":{"realtime":{
		"default":"openai","endpoints":{"openai":{"url":%q,"model":%q,"api_key":%q,"price":%s}}}}}`,
		talkTokens, url, realtimeModel, providertest.Key, text))
}

// talkClients are the programs of testdata/sdk that open sessions, and what they need to reach tollgate over TLS.
type talkClients struct {
	script string
	tls    *tls.Config
	env    []string
}

// newTalkClients makes a certificate for localhost, which Node.js is to trust. It is also to have a WebSocket as browsers
// do: before version 22 it must be told to, and some versions cannot.
func newTalkClients(t *testing.T) *talkClients {
	t.Helper()
	certFile, keyFile := redistest.NewCertificate(t)
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	c := &talkClients{
		script: compileCalls(t, "realtime", "realtime-talk"),
		tls:    &tls.Config{Certificates: []tls.Certificate{pair}}, env: []string{"NODE_EXTRA_CA_CERTS=" + certFile},
	}
	const flag = "--experimental-websocket"
	if exec.Command("node", flag, "-e", "").Run() == nil {
		c.env = append(c.env, "NODE_OPTIONS="+flag)
	}
	return c
}

// A talker is a key of a tenant whose sessions go to a provider of its own.
type talker struct {
	*gatewayTest
	*talkClients
	provider *providertest.Realtime
	url      string // of the tenant, over TLS
}

func (c *talkClients) newTalker(t *testing.T, s *service, conduct providertest.RealtimeConduct) *talker {
	t.Helper()
	p := providertest.NewRealtime(t)
	p.On(conduct)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("%s", s.log)
		}
	})
	tenant := newTalkTenant(t, p.URL)
	g := &gatewayTest{service: s, tenant: tenant, key: s.issue(t, tenant, `"userId":"u-1","group":"pro"`)}
	return &talker{g, c, p, s.behindTLS(t, c.tls) + "/" + tenant}
}

// call returns a call of realtime.ts, and what it is to return.
func (k *talker) call(name, want string) sdkCall {
	return sdkCall{Name: name, BaseURL: k.url, Key: k.key, Model: realtimeModel, want: `"returned":` + want}
}

// talk makes calls, one after the other.
func (k *talker) talk(t *testing.T, calls ...sdkCall) {
	t.Helper()
	runSDK(t, k.script, calls, k.env...)
}

// stay begins a response in the background, which the provider does not end, and returns the session as that has it.
func (k *talker) stay(t *testing.T) (client *process, session *providertest.RealtimeSession) {
	t.Helper()
	input, err := json.Marshal([]sdkCall{k.call("wsStays", "")})
	if err != nil {
		t.Fatal(err)
	}
	client = startCommand(t, nodeCommand(t.Context(), k.script, input), k.env)
	session = k.provider.Session(t, 1)
	session.Wait(t, `"response.create"`, 1)
	return client, session
}

// behindTLS returns the URL at which the service is reached over TLS, as behind a load balancer.
func (s *service) behindTLS(t *testing.T, config *tls.Config) string {
	t.Helper()
	listener, err := tls.Listen("tcp", "127.0.0.1:0", config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			go passOn(c, s.address())
		}
	}()
	return strings.Replace("https://"+listener.Addr().String(), "127.0.0.1", "localhost", 1)
}

// passOn carries bytes between a connection and an address until either end has closed.
func passOn(c net.Conn, address string) {
	defer c.Close()
	out, err := net.Dial("tcp", address)
	if err != nil {
		return
	}
	defer out.Close()
	go func() {
		_, _ = io.Copy(out, c)
		out.Close()
	}()
	_, _ = io.Copy(c, out)
}

// wantPaid waits until nothing is held of the key, and checks that it has paid for all usages and for nothing else, and
// that neither the log nor the provider has seen it.
func (k *talker) wantPaid(t *testing.T) {
	t.Helper()
	price, transcription := talkPrice()
	usages, want := k.provider.Usages(), 0
	for _, u := range usages {
		want += int(u.Cost(price, transcription))
	}
	if got := k.charged(t, talkTokens); got != want || want == 0 {
		t.Errorf("%d tokens were charged, want %d, for %+v", got, want, usages)
	}
	k.wantSecret(t, k.key)
}

// wantSecret checks that a key is neither in the log nor in what the provider has got, and that this has got no offer of
// an extension or a subprotocol.
func (k *talker) wantSecret(t *testing.T, key string) {
	t.Helper()
	if strings.Contains(k.log.String(), key) {
		t.Errorf("the key is in the log:\n%s", k.log)
	}
	for _, r := range k.provider.Requests() {
		text := fmt.Sprint(r.URL, r.Header)
		for _, no := range []string{key, "Sec-Websocket-Protocol", "Sec-Websocket-Extensions"} {
			if strings.Contains(text, no) {
				t.Errorf("the provider got %s", text)
			}
		}
	}
}

// stepPattern finds in an event what realtime-talk.ts asks for.
var stepPattern = regexp.MustCompile(`"step":"(\w+)"`)

// talkConduct is that of a provider with which realtime-talk.ts talks.
func talkConduct(transcript providertest.RealtimeUsage) providertest.RealtimeConduct {
	type usage = providertest.RealtimeUsage
	steps := map[string]providertest.RealtimeResponse{
		"":        {Usage: usage{Text: 119, Audio: 13, CachedText: 64, CachedAudio: 5, OutputText: 30, OutputAudio: 91}},
		"text":    {Text: "word ", Usage: usage{Text: 150, CachedText: 100, OutputText: 9}},
		"call":    {Call: "weather", Usage: usage{Text: 200, Image: 40, CachedText: 100, CachedImage: 10, OutputText: 15}},
		"large":   {Sound: 3 << 20, Deltas: 1},
		"limited": {Usage: usage{Text: 300, OutputText: 30, OutputAudio: 500}},
		"failed":  {Failed: true, Usage: usage{Text: 310, OutputText: 1}},
		"hang":    {Hang: providertest.InContent},
	}
	return providertest.RealtimeConduct{
		Turn: 3, Transcript: transcript, Respond: func(event []byte) providertest.RealtimeResponse {
			step := ""
			if found := stepPattern.FindSubmatch(event); found != nil {
				step = string(found[1])
			}
			return steps[step]
		},
	}
}

// talked is what realtime-talk.ts returns.
const talked = `["` + realtimeModel + `","words",{"status":"completed","tokens":253,"output":"message"},` +
	`"word ",{"status":"completed","tokens":159,"output":"message"},` +
	`{"city":"Zürich"},{"status":"completed","tokens":255,"output":"function_call"},` +
	`4194304,{"status":"completed","tokens":253,"output":"message"},` +
	`{"status":"incomplete","reason":"max_output_tokens","tokens":500,"output":"message"},` +
	`{"status":"failed","tokens":311,"output":"message"},` +
	`{"status":"completed","tokens":159,"output":"message"},` + // beside the one that hangs
	`{"status":"cancelled","reason":"client_cancelled","tokens":172,"output":"message"},` +
	`["conversation_already_has_active_response"],"1000…"]`

// wantTalk checks what the provider has got of a talk.
func wantTalk(t *testing.T, s *providertest.RealtimeSession) {
	t.Helper()
	if code := s.Ended(t); code != websocket.CloseNormal {
		t.Errorf("the session has ended with %d", code)
	}
	for member, want := range map[string]int{
		`"session.update"`: 1, `"input_audio_buffer.append"`: 4, `"response.create"`: 8, `"response.cancel"`: 1,
		`"function_call_output"`: 1,
	} {
		if got := len(s.Texts(member)); got < want {
			t.Errorf("the provider got %d messages with %s, want %d", got, member, want)
		}
	}
	appended := s.Texts(`"input_audio_buffer.append"`)
	if last := appended[len(appended)-1]; strings.Count(last, "A") != 12<<20 {
		t.Errorf("the last sound has %d bytes", len(last))
	}
}

// transcripts are what a transcription may have used: a duration or tokens.
func transcripts() []providertest.RealtimeUsage {
	return []providertest.RealtimeUsage{{Seconds: 2.4}, {Audio: 21, Text: 3, OutputText: 8}}
}

// agentConduct is that of a provider with which the agent of realtime.ts talks, who returns agentTalked.
func agentConduct() providertest.RealtimeConduct {
	var n atomic.Int32
	return providertest.RealtimeConduct{Respond: func([]byte) (r providertest.RealtimeResponse) {
		switch n.Add(1) {
		case 1:
			r.Call = "weather"
		case 3:
			r.Hang = providertest.InContent
		}
		return r
	}}
}

const agentTalked = `{"text":"word …","called":[{"city":"Zürich"}],"interrupted":"cancelled","sound":true,"tokens":587,"errors":[]}`

// Sessions of all clients are charged exactly what the providers report.
func TestIntegrationRealtime(t *testing.T) {
	c := newTalkClients(t)
	for _, test := range []struct {
		name string
		run  func(*testing.T, *talkClients)
	}{
		{"stand-in", testTalkStandIn}, {"classes", testTalkClasses}, {"agents", testTalkAgents}, {"browser", testTalkBrowser},
		{"handshakes", testTalkHandshakes}, {"client gone", testTalkClientGone}, {"killed", testTalkKilled},
		{"two processes", testTalkTwoProcesses}, {"closes", testTalkCloses}, {"Ultravox", testTalkUltravox},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, c) })
	}
}

// What the other tests compare with is what the clients make of the stand-in for the provider alone.
func testTalkStandIn(t *testing.T, c *talkClients) {
	for name, want := range map[string]string{"ws": talked, "native": talked, "agents": agentTalked, "browser": talked} {
		p := providertest.NewRealtime(t)
		p.On(talkConduct(transcripts()[0]))
		if name == "agents" {
			p.On(agentConduct())
		}
		server := httptest.NewUnstartedServer(p)
		server.TLS = c.tls
		server.StartTLS()
		defer server.Close()
		defer p.Stop()
		k := &talker{&gatewayTest{key: providertest.Key}, c, p, strings.Replace(server.URL, "127.0.0.1", "localhost", 1)}
		if name == "browser" {
			k.browse(t)
		} else {
			k.talk(t, k.call(name, want))
		}
		if name != "agents" {
			wantTalk(t, p.Session(t, 1))
		}
	}
}

// The SDK's classes for Node.js and for browsers have the same conversation as without tollgate.
func testTalkClasses(t *testing.T, c *talkClients) {
	s := newService(t)
	for i, name := range []string{"ws", "native"} {
		k := c.newTalker(t, s, talkConduct(transcripts()[i]))
		k.talk(t, k.call(name, talked))
		wantTalk(t, k.provider.Session(t, 1))
		k.wantPaid(t)
	}
}

// An agent of OpenAI's agents SDK talks, calls a function and is interrupted.
func testTalkAgents(t *testing.T, c *talkClients) {
	k := c.newTalker(t, newService(t), agentConduct())
	k.talk(t, k.call("agents", agentTalked))
	k.wantPaid(t)
	session := k.provider.Session(t, 1)
	session.Wait(t, `"function_call_output"`, 1)
	if traced := session.Texts(`"tracing"`); len(traced) > 0 {
		t.Errorf("the provider got %s", traced)
	}
}

// A page in Chromium has the same conversation, with the SDK and with the key in the subprotocol.
func testTalkBrowser(t *testing.T, c *talkClients) {
	k := c.newTalker(t, newService(t), talkConduct(transcripts()[0]))
	k.browse(t)
	wantTalk(t, k.provider.Session(t, 1))
	k.wantPaid(t)
}

// browse opens a page that has the conversation of realtime-talk.ts, and checks what comes of it.
func (k *talker) browse(t *testing.T) {
	t.Helper()
	page := fmt.Sprintf(`<!doctype html><script type="importmap">{"imports": {"openai": "/files/node_modules/openai/index.mjs",
"openai/realtime/websocket": "/files/node_modules/openai/realtime/websocket.mjs"}}</script><script type="module">
const report = async () => {
	const { default: OpenAI } = await import("openai");
	const { OpenAIRealtimeWebSocket } = await import("openai/realtime/websocket");
	const { converse } = await import("/files/%s/realtime-talk.js");
	const client = new OpenAI({ baseURL: %q, apiKey: %q, dangerouslyAllowBrowser: true });
	return converse(new OpenAIRealtimeWebSocket({ model: %q, dangerouslyAllowBrowser: true }, client));
};
await fetch("/report", { method: "POST", body: JSON.stringify(await report().catch((error) => String(error.stack))) });</script>`,
		filepath.Base(filepath.Dir(k.script)), k.url+"/v1", k.key, realtimeModel)
	origin, reports := servePage(t, page)
	report := browse(t, origin, reports, "--ignore-certificate-errors")
	pattern := strings.ReplaceAll(regexp.QuoteMeta(talked), "…", ".*")
	if !regexp.MustCompile("^" + pattern + "$").Match(report) {
		t.Errorf("got  %s\nwant %s", report, talked)
	}
}

// A session that is refused is, before the 101; the answer to a browser names the subprotocol and no more.
func testTalkHandshakes(t *testing.T, c *talkClients) {
	s := newService(t)
	k := c.newTalker(t, s, providertest.RealtimeConduct{})
	poor := s.issue(t, k.tenant, `"userId":"u-2","group":"poor"`)
	call := func(name, key, model, want string) sdkCall {
		return sdkCall{Name: name, BaseURL: k.url, Key: key, Model: model, want: `"returned":` + want}
	}
	const refused = `["1006",["Unexpected server response: %d"]]`
	k.talk(t,
		k.call("handshake", `{"protocol":"realtime","extensions":"",`+
			`"names":["connection","sec-websocket-accept","sec-websocket-protocol","upgrade","x-request-id"],"hasKey":false}`),
		call("wsRefused 401", someKey, realtimeModel, fmt.Sprintf(refused, 401)),
		call("wsRefused 402", poor, realtimeModel, fmt.Sprintf(refused, 402)),
		call("wsRefused 404", k.key, "other", fmt.Sprintf(refused, 404)),
		call("nativeRefused 402", poor, realtimeModel, `"…"`),
	)
	if n := len(k.provider.Requests()); n != 1 {
		t.Errorf("the provider got %d requests", n)
	}
	k.wantSecret(t, k.key)
	k.wantSecret(t, poor)
	if got := k.charged(t, talkTokens); got != 0 {
		t.Errorf("%d tokens were charged", got)
	}
}

// hangConduct is that of a provider whose responses do not end.
func hangConduct() providertest.RealtimeConduct {
	return providertest.RealtimeConduct{Response: providertest.RealtimeResponse{Hang: providertest.InContent}}
}

// When a client is killed in mid-response, the response is cancelled, and charged as the provider reports it.
func testTalkClientGone(t *testing.T, c *talkClients) {
	k := c.newTalker(t, newService(t), hangConduct())
	client, session := k.stay(t)
	client.kill()
	session.Ended(t)
	k.wantPaid(t)
	if got := len(session.Texts(`"response.cancel"`)); got != 1 {
		t.Errorf("the provider got %d cancellations", got)
	}
}

// startTalkProcess starts tollgate in a process of its own.
func startTalkProcess(t *testing.T) *process {
	t.Helper()
	return startProcess(t, []string{"REDIS_URL=" + testRedis.URL(), "ADDR=127.0.0.1:0", "ADMIN_TOKEN=" + testAdminToken})
}

// When tollgate is killed in mid-response, the client learns of it, and has its tokens back within 90 s.
func testTalkKilled(t *testing.T, c *talkClients) {
	process := startTalkProcess(t)
	k := c.newTalker(t, process.service(t), hangConduct())
	client, session := k.stay(t)
	process.kill()
	<-client.done
	if got := client.stdout.String(); !strings.Contains(got, `"returned":["1006",`) {
		t.Errorf("the client got %s", got)
	}
	if code := session.Ended(t); code != websocket.CloseLost {
		t.Errorf("the provider's side has ended with %d", code)
	}
	if left := tokensLeft(t, k.key); left == talkTokens {
		t.Error("nothing is held")
	}
	due := testRedis.Int(t, "HGET", "apiKey:"+k.key, "holdsDue")
	if until := time.Until(time.UnixMilli(int64(due))); until > 90*time.Second {
		t.Errorf("the tokens are held for another %s", until)
	}
	k.expireHolds(t) // the time is over
	got := newService(t).do(t, "GET", "/"+k.tenant+"/auth/key", "", bearer(k.key))
	if got.field(t, "tokensLeft") != float64(talkTokens) || strings.Contains(got.body, "tokensHeld") {
		t.Errorf("got %s", got.body)
	}
}

// Sessions with one key, in two processes at the same time, are charged exactly.
func testTalkTwoProcesses(t *testing.T, c *talkClients) {
	one, other := startTalkProcess(t).service(t), startTalkProcess(t).service(t)
	k := c.newTalker(t, one, talkConduct(transcripts()[1]))
	beside := &talker{&gatewayTest{service: other, tenant: k.tenant, key: k.key}, c, k.provider, other.behindTLS(t, c.tls) + "/" + k.tenant}
	var running sync.WaitGroup
	for _, k := range []*talker{k, beside} {
		running.Add(1)
		go func() {
			defer running.Done()
			k.talk(t, k.call("ws", talked), k.call("ws", talked))
		}()
	}
	running.Wait()
	if n := len(k.provider.Sessions()); n != 4 {
		t.Errorf("%d sessions, want 4", n)
	}
	k.wantPaid(t)
	beside.wantPaid(t)
}

// The code and the reason with which the provider ends a session reach the client, unless that is in mid-response or
// without a close frame.
func testTalkCloses(t *testing.T, c *talkClients) {
	ends := []struct {
		kind string
		code websocket.Code // CloseLost: the connection is cut
		want string
	}{
		{"wsIdles", websocket.CloseNormal, `["1000 bye",[]]`}, {"wsIdles", websocket.CloseGoingAway, `["1001 bye",[]]`},
		{"wsIdles", websocket.CloseInternal, `["1011 bye",[]]`}, {"wsIdles", 3000, `["3000 bye",[]]`},
		{"wsIdles", 4001, `["4001 bye",[]]`}, {"wsIdles", websocket.CloseNoCode, `["1005",[]]`},
		{"wsIdles", websocket.CloseLost, `["1011…",["…"]]`},
		{"wsStays", websocket.CloseNormal, `["1011…",["…"]]`}, {"wsStays", 4001, `["1011…",["…"]]`},
		{"wsStays", websocket.CloseLost, `["1011…",["…"]]`},
	}
	var n atomic.Int32
	k := c.newTalker(t, newService(t), providertest.RealtimeConduct{
		OnEvent: func(s *providertest.RealtimeSession, kind string, _ []byte) bool {
			if kind == "session.update" {
				return false
			}
			if end := ends[n.Add(1)-1]; end.code == websocket.CloseLost {
				s.Abort()
			} else {
				s.Close(end.code, "bye")
			}
			return true
		}})
	var calls []sdkCall
	for _, end := range ends {
		calls = append(calls, k.call(fmt.Sprint(end.kind, " until ", end.code), end.want))
	}
	k.talk(t, calls...)
	if got := k.charged(t, talkTokens); got != 0 {
		t.Errorf("%d tokens were charged", got)
	}
}

// Calls to Ultravox are timed, and charged in steps of 6 s.
func testTalkUltravox(t *testing.T, c *talkClients) {
	s := newService(t)
	for seconds, millis := range map[int]string{6: "0", 12: "6500"} {
		p := providertest.NewUltravox(t)
		tenant := newTenantIn(t, testRedis, fmt.Sprintf(`{"user_groups":{"pro":{"tokens":5000}},"providers":{"realtime":{"endpoints":{
			"ultravox":{"url":%q,"model":"ultravox-v0.7","sampleRate":16000,"encoding":"pcm_s16le","api_key":%q,"price":{"second":7}}}}}}`,
			p.URL, providertest.Key))
		g := &gatewayTest{key: s.issue(t, tenant, `"userId":"u-1","group":"pro"`)}
		runSDK(t, c.script, []sdkCall{{Name: "ultravox", BaseURL: s.url + "/" + tenant, Key: g.key, Model: "ultravox", Prompt: millis,
			want: `"returned":{"got":["call_started","listening","How?","word"],"sound":6400,"code":1000}`}})
		call := p.Call(t, 1)
		call.Ended(t)
		_, billed, reason := call.Bill()
		if charged := g.charged(t, 5000); charged != 7*seconds || billed.Seconds() != float64(seconds) {
			t.Errorf("%d tokens were charged, and %s billed, want %d s", charged, billed, seconds)
		}
		if reason != "hangup" || len(call.Sound()) != 6400 || call.Max != 714*time.Second { // which 5,000 tokens pay for
			t.Errorf("the call of at most %s has ended with %q and %d bytes", call.Max, reason, len(call.Sound()))
		}
	}
}
