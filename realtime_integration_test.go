//go:build integration

package main

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
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

// realtimePrice returns what sessions cost in these tests: each kind of token has a price of its own.
func realtimePrice() (price, transcription map[string]int64) {
	return map[string]int64{
		"input": 4, "cached_input": 1, "audio_input": 32, "cached_audio_input": 2, "image_input": 5, "output": 16, "audio_output": 64,
	}, map[string]int64{"input": 6, "output": 10, "second": 3}
}

// realtimeCost returns what the usages cost.
func realtimeCost(usages []providertest.RealtimeUsage) (sum int) {
	price, transcription := realtimePrice()
	for _, u := range usages {
		sum += int(u.Cost(price, transcription))
	}
	return sum
}

// talkTokens is what a key of realtimeTenant has: enough for some sessions at once.
const talkTokens = 10_000_000

// realtimeTenant creates a tenant whose sessions go to that URL.
func realtimeTenant(t *testing.T, url string) string {
	t.Helper()
	price, transcription := realtimePrice()
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

// certificate makes a certificate for localhost. env lets Node.js trust it, and have a WebSocket as browsers do: before
// version 22 it must be told to, and some versions cannot.
func certificate(t *testing.T) (config *tls.Config, env []string) {
	t.Helper()
	certFile, keyFile := redistest.NewCertificate(t)
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	env = []string{"NODE_EXTRA_CA_CERTS=" + certFile}
	const flag = "--experimental-websocket"
	if exec.Command("node", flag, "-e", "").Run() == nil {
		env = append(env, "NODE_OPTIONS="+flag)
	}
	return &tls.Config{Certificates: []tls.Certificate{pair}, NextProtos: []string{"http/1.1"}}, env
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

// wantPaid waits until nothing is held of the key, and checks that it has paid for all usages and for nothing else.
func wantPaid(t *testing.T, key string, usages []providertest.RealtimeUsage) {
	t.Helper()
	if len(usages) == 0 {
		t.Error("nothing was used")
	}
	g := &gatewayTest{key: key}
	if got, want := g.charged(t, talkTokens), realtimeCost(usages); got != want {
		t.Errorf("%d tokens were charged, want %d, for %+v", got, want, usages)
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

// What the other tests compare with is what the SDKs make of the stand-in for the provider alone.
func TestIntegrationRealtimeStandIn(t *testing.T) {
	script := compileCalls(t, "realtime", "realtime-talk")
	config, env := certificate(t)
	p := providertest.NewRealtime(t)
	server := httptest.NewUnstartedServer(p)
	server.TLS = config
	server.StartTLS()
	defer server.Close()
	defer p.Stop()
	url := strings.Replace(server.URL, "127.0.0.1", "localhost", 1)
	for i, name := range []string{"ws", "native", "agents"} {
		p.On(talkConduct(transcripts()[i%2]))
		want := talked
		if name == "agents" {
			p.On(agentConduct())
			want = agentTalked
		}
		runSDK(t, script, []sdkCall{{Name: name, BaseURL: url, Key: providertest.Key, Model: realtimeModel, want: `"returned":` + want}}, env...)
		if name != "agents" {
			wantTalk(t, p.Session(t, i+1))
		}
	}
	p.On(talkConduct(transcripts()[0]))
	talkInBrowser(t, filepath.Dir(script), url, providertest.Key)
}

// The SDK's classes for Node.js and for browsers have the same conversation through tollgate as without it, and pay for
// what the provider reports.
func TestIntegrationRealtime(t *testing.T) {
	script := compileCalls(t, "realtime", "realtime-talk")
	config, env := certificate(t)
	s := newService(t)
	url := s.behindTLS(t, config)
	for i, name := range []string{"ws", "native"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := providertest.NewRealtime(t)
			p.On(talkConduct(transcripts()[i]))
			tenant := realtimeTenant(t, p.URL)
			key := s.issue(t, tenant, `"userId":"u-1","group":"pro"`)
			runSDK(t, script, []sdkCall{{Name: name, BaseURL: url + "/" + tenant, Key: key, Model: realtimeModel,
				want: `"returned":` + talked}}, env...)
			wantTalk(t, p.Session(t, 1))
			wantPaid(t, key, p.Usages())
			wantNoKey(t, s, p, key)
		})
	}
}

// wantNoKey checks that neither the log nor the provider has seen the key, and that the provider has got no offer of an
// extension or a subprotocol.
func wantNoKey(t *testing.T, s *service, p *providertest.Realtime, key string) {
	t.Helper()
	if strings.Contains(s.log.String(), key) {
		t.Errorf("the key is in the log:\n%s", s.log)
	}
	for _, r := range p.Requests() {
		if text := fmt.Sprint(r.URL, r.Header); strings.Contains(text, key) || strings.Contains(text, "Sec-Websocket-Protocol") ||
			strings.Contains(text, "Sec-Websocket-Extensions") {
			t.Errorf("the provider got %s", text)
		}
	}
}

// A session that is refused is, before the 101; the answer to a browser names the subprotocol and no more.
func TestIntegrationRealtimeHandshakes(t *testing.T) {
	script := compileCalls(t, "realtime", "realtime-talk")
	config, env := certificate(t)
	p, s := providertest.NewRealtime(t), newService(t)
	tenant := realtimeTenant(t, p.URL)
	key := s.issue(t, tenant, `"userId":"u-1","group":"pro"`)
	poor := s.issue(t, tenant, `"userId":"u-2","group":"poor"`)
	refused := func(status int) string {
		return fmt.Sprintf(`"returned":["1006",["Unexpected server response: %d"]]`, status)
	}
	calls := []sdkCall{
		{Name: "handshake", Key: key, want: `"returned":{"protocol":"realtime","extensions":"","names":["connection",…` +
			`"sec-websocket-accept","sec-websocket-protocol","upgrade"…],"hasKey":false}`},
		{Name: "wsRefused 401", Key: someKey, want: refused(401)},
		{Name: "wsRefused 402", Key: poor, want: refused(402)},
		{Name: "wsRefused 404", Key: key, Model: "other", want: refused(404)},
		{Name: "nativeRefused 402", Key: poor, want: `"returned":"…"`},
	}
	url := s.behindTLS(t, config) + "/" + tenant
	for i := range calls {
		calls[i].BaseURL = url
		if calls[i].Model == "" {
			calls[i].Model = realtimeModel
		}
	}
	runSDK(t, script, calls, env...)
	if n := len(p.Requests()); n != 1 {
		t.Errorf("the provider got %d requests", n)
	}
	wantNoKey(t, s, p, poor)
	if got := (&gatewayTest{key: key}).charged(t, talkTokens); got != 0 {
		t.Errorf("%d tokens were charged", got)
	}
}

// An agent of OpenAI's agents SDK talks, calls a function and is interrupted.
func TestIntegrationRealtimeAgents(t *testing.T) {
	script := compileCalls(t, "realtime", "realtime-talk")
	config, env := certificate(t)
	p, s := providertest.NewRealtime(t), newService(t)
	p.On(agentConduct())
	tenant := realtimeTenant(t, p.URL)
	key := s.issue(t, tenant, `"userId":"u-1","group":"pro"`)
	runSDK(t, script, []sdkCall{{Name: "agents", BaseURL: s.behindTLS(t, config) + "/" + tenant, Key: key, Model: realtimeModel,
		want: `"returned":` + agentTalked}}, env...)
	wantPaid(t, key, p.Usages())
	session := p.Session(t, 1)
	session.Wait(t, `"function_call_output"`, 1)
	if traced := session.Texts(`"tracing"`); len(traced) > 0 {
		t.Errorf("the provider got %s", traced)
	}
}

// A page in Chromium has the same conversation, with the SDK and with the key in the subprotocol.
func TestIntegrationRealtimeBrowser(t *testing.T) {
	script := compileCalls(t, "realtime", "realtime-talk")
	config, _ := certificate(t)
	s, p := newService(t), providertest.NewRealtime(t)
	p.On(talkConduct(transcripts()[0]))
	tenant := realtimeTenant(t, p.URL)
	key := s.issue(t, tenant, `"userId":"u-1","group":"pro"`)
	talkInBrowser(t, filepath.Dir(script), s.behindTLS(t, config)+"/"+tenant, key)
	wantTalk(t, p.Session(t, 1))
	wantPaid(t, key, p.Usages())
	wantNoKey(t, s, p, key)
}

// talkInBrowser opens a page that has the conversation of realtime-talk.ts, which was compiled into dir, and checks what
// came of it.
func talkInBrowser(t *testing.T, dir, url, key string) {
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
		filepath.Base(dir), url+"/v1", key, realtimeModel)
	reports := make(chan []byte, 1)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		fmt.Fprint(w, page)
	})
	mux.HandleFunc("POST /report", func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		reports <- body
	})
	mux.Handle("GET /files/", http.StripPrefix("/files/", http.FileServer(http.Dir(sdkDir))))
	server := httptest.NewServer(mux)
	defer server.Close()
	report := browse(t, server.URL, reports, "--ignore-certificate-errors")
	pattern := strings.ReplaceAll(regexp.QuoteMeta(talked), "…", ".*")
	if !regexp.MustCompile("^" + pattern + "$").Match(report) {
		t.Errorf("got  %s\nwant %s", report, talked)
	}
}

// A client that is killed in mid-response has what it has used cancelled, and charged as the provider reports it.
func TestIntegrationRealtimeClientGone(t *testing.T) {
	script := compileCalls(t, "realtime", "realtime-talk")
	config, env := certificate(t)
	p, s := providertest.NewRealtime(t), newService(t)
	p.On(providertest.RealtimeConduct{Response: providertest.RealtimeResponse{Hang: providertest.InContent}})
	tenant := realtimeTenant(t, p.URL)
	key := s.issue(t, tenant, `"userId":"u-1","group":"pro"`)
	client := startNode(t, script, sdkCall{Name: "wsStays", BaseURL: s.behindTLS(t, config) + "/" + tenant, Key: key, Model: realtimeModel}, env)
	session := p.Session(t, 1)
	session.Wait(t, `"response.create"`, 1)
	client.kill()
	session.Ended(t)
	wantPaid(t, key, p.Usages())
	if got := len(session.Texts(`"response.cancel"`)); got != 1 {
		t.Errorf("the provider got %d cancellations", got)
	}
}

// When tollgate is killed in mid-response, the client learns of it, and has its tokens back within 90 s.
func TestIntegrationRealtimeKilled(t *testing.T) {
	script := compileCalls(t, "realtime", "realtime-talk")
	config, env := certificate(t)
	p := providertest.NewRealtime(t)
	p.On(providertest.RealtimeConduct{Response: providertest.RealtimeResponse{Hang: providertest.InContent}})
	process := startRealtimeProcess(t)
	s := process.service(t)
	tenant := realtimeTenant(t, p.URL)
	key := s.issue(t, tenant, `"userId":"u-1","group":"pro"`)
	client := startNode(t, script, sdkCall{Name: "wsStays", BaseURL: s.behindTLS(t, config) + "/" + tenant, Key: key, Model: realtimeModel}, env)
	session := p.Session(t, 1)
	session.Wait(t, `"response.create"`, 1)
	process.kill()
	<-client.done
	if got := client.stdout.String(); !strings.Contains(got, `"returned":["1006"`) {
		t.Errorf("the client got %s", got)
	}
	if code := session.Ended(t); code != websocket.CloseLost {
		t.Errorf("the provider's side has ended with %d", code)
	}
	due := testRedis.Int(t, "HGET", "apiKey:"+key, "holdsDue")
	if until := time.Until(time.UnixMilli(int64(due))); until > 90*time.Second || until < 0 {
		t.Errorf("the tokens are held for another %s", until)
	}
	(&gatewayTest{key: key}).expireHolds(t) // the time is over
	got := newService(t).do(t, "GET", "/"+tenant+"/auth/key", "", bearer(key))
	if got.field(t, "tokensLeft") != float64(talkTokens) || strings.Contains(got.body, "tokensHeld") {
		t.Errorf("got %s", got.body)
	}
}

// startRealtimeProcess starts tollgate in a process of its own.
func startRealtimeProcess(t *testing.T) *process {
	t.Helper()
	return startProcess(t, []string{
		"REDIS_URL=" + testRedis.URL(), "ADDR=127.0.0.1:0", "ADMIN_TOKEN=" + testAdminToken, "LOGIN_LIMIT=0"})
}

// Two sessions with one key, in two processes at the same time, are charged exactly.
func TestIntegrationRealtimeTwoProcesses(t *testing.T) {
	script := compileCalls(t, "realtime", "realtime-talk")
	config, env := certificate(t)
	p := providertest.NewRealtime(t)
	p.On(talkConduct(transcripts()[1]))
	tenant := realtimeTenant(t, p.URL)
	services := []*service{startRealtimeProcess(t).service(t), startRealtimeProcess(t).service(t)}
	key := services[0].issue(t, tenant, `"userId":"u-1","group":"pro"`)
	var running sync.WaitGroup
	for _, s := range services {
		url := s.behindTLS(t, config)
		running.Add(1)
		go func() {
			defer running.Done()
			call := sdkCall{Name: "ws", BaseURL: url + "/" + tenant, Key: key, Model: realtimeModel, want: `"returned":` + talked}
			runSDK(t, script, []sdkCall{call, call}, env...)
		}()
	}
	running.Wait()
	if n := len(p.Sessions()); n != 4 {
		t.Errorf("%d sessions, want 4", n)
	}
	wantPaid(t, key, p.Usages())
}

// The code and the reason with which the provider ends a session reach the SDK, unless that is in mid-response or
// without a close frame.
func TestIntegrationRealtimeCloses(t *testing.T) {
	script := compileCalls(t, "realtime", "realtime-talk")
	config, env := certificate(t)
	p, s := providertest.NewRealtime(t), newService(t)
	ends := []struct {
		kind string
		code websocket.Code // CloseLost: the connection is cut
		want string
	}{
		{"wsIdles", websocket.CloseNormal, `["1000 bye",[]]`}, {"wsIdles", websocket.CloseGoingAway, `["1001 bye",[]]`},
		{"wsIdles", websocket.CloseInternal, `["1011 bye",[]]`}, {"wsIdles", 3000, `["3000 bye",[]]`},
		{"wsIdles", 4001, `["4001 bye",[]]`}, {"wsIdles", websocket.CloseNoCode, `["1005",[]]`},
		{"wsIdles", websocket.CloseLost, `["1011…",[…]]`},
		{"wsStays", websocket.CloseNormal, `["1011…",["…"]]`}, {"wsStays", 4001, `["1011…",["…"]]`},
		{"wsStays", websocket.CloseLost, `["1011…",["…"]]`},
	}
	var n atomic.Int32
	p.On(providertest.RealtimeConduct{OnEvent: func(s *providertest.RealtimeSession, kind string, _ []byte) bool {
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
	tenant := realtimeTenant(t, p.URL)
	key := s.issue(t, tenant, `"userId":"u-1","group":"pro"`)
	url := s.behindTLS(t, config) + "/" + tenant
	var calls []sdkCall
	for _, end := range ends {
		calls = append(calls, sdkCall{Name: fmt.Sprint(end.kind, " until ", end.code), BaseURL: url, Key: key, Model: realtimeModel,
			want: `"returned":` + end.want})
	}
	runSDK(t, script, calls, env...)
	if got := (&gatewayTest{key: key}).charged(t, talkTokens); got != 0 {
		t.Errorf("%d tokens were charged", got)
	}
}

// Calls to Ultravox are timed, and charged in steps of 6 s.
func TestIntegrationUltravox(t *testing.T) {
	script := compileCalls(t, "realtime", "realtime-talk")
	s := newService(t)
	for seconds, millis := range map[int]string{6: "0", 12: "6500"} {
		t.Run(fmt.Sprint(seconds), func(t *testing.T) {
			t.Parallel()
			p := providertest.NewUltravox(t)
			tenant := newTenantIn(t, testRedis, fmt.Sprintf(`{"user_groups":{"pro":{"tokens":5000}},"providers":{"realtime":{"endpoints":{
				"ultravox":{"url":%q,"model":"ultravox-v0.7","sampleRate":16000,"encoding":"pcm_s16le","api_key":%q,"price":{"second":7}}}}}}`,
				p.URL, providertest.Key))
			key := s.issue(t, tenant, `"userId":"u-1","group":"pro"`)
			runSDK(t, script, []sdkCall{{Name: "ultravox", BaseURL: s.url + "/" + tenant, Key: key, Model: "ultravox", Prompt: millis,
				want: `"returned":{"got":["call_started","listening","How?","word"],"sound":6400,"code":1000}`}})
			call := p.Call(t, 1)
			call.Ended(t)
			_, billed, reason := call.Bill()
			if charged := (&gatewayTest{key: key}).charged(t, 5000); charged != 7*seconds || billed.Seconds() != float64(seconds) {
				t.Errorf("%d tokens were charged, and %s billed, want %d s", charged, billed, seconds)
			}
			if reason != "hangup" || len(call.Sound()) != 6400 || call.Max != 714*time.Second {
				t.Errorf("the call of at most %s has ended with %q and %d bytes", call.Max, reason, len(call.Sound()))
			}
		})
	}
}

// startNode makes a call with a program of testdata/sdk in the background.
func startNode(t *testing.T, script string, call sdkCall, env []string) *process {
	t.Helper()
	input, err := json.Marshal([]sdkCall{call})
	if err != nil {
		t.Fatal(err)
	}
	return startCommand(t, nodeCommand(t.Context(), script, input), env)
}
