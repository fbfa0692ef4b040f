package main

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"tollgate/internal/redistest"
	"tollgate/internal/waittest"
)

// A benchSide is a server that is measured, or several ways to reach the provider.
type benchSide struct {
	address  string
	process  *process          // nil if it is not ours
	provider *process          // behind it; nil without one
	redis    *redistest.Server // nil without one
	binary   string
	works    map[string]func(b *testing.B, connections int) sample
}

// isRare reports whether a work takes long and varies little.
func isRare(work string) bool { return work == "memory" || work == "start" }

// startSides starts what the columns compare, and what they are compared with.
func startSides(b *testing.B, columns []string) map[string]*benchSide {
	provider := startBenchServer(b, "provider", cmp.Or(os.Getenv("PROVIDER_ADDR"), freeAddress))
	floor := startBenchServer(b, "floor", freeAddress)
	proxy := startBenchServer(b, "http://"+provider.address(b), freeAddress)
	sides := map[string]*benchSide{
		"floor":  {process: floor},
		"direct": {process: provider},
		"proxy":  {process: proxy, provider: provider},
	}
	for _, column := range columns {
		side := &benchSide{provider: provider}
		switch column {
		case "other":
			side.addOther(b)
		case "before":
			side.startTollgate(b, os.Getenv("BASE"))
		default:
			side.startTollgate(b, "")
		}
		sides[column] = side
	}
	for _, side := range sides {
		if side.process != nil {
			side.address = side.process.address(b)
		}
	}
	charge := workload{method: "POST", path: "/t/tokens/consume", tokens: []string{someKey}, body: oneToken}
	sides["floor"].add("charge", charge, 0)
	sides["floor"].addPaced("paced charge", charge)
	sides["floor"].set("memory", func(b *testing.B, _ int) sample {
		p := startBenchServer(b, "floor", freeAddress, littleGarbage)
		defer p.kill()
		return connectionMemory(b, p, idleRequest, nil)
	})
	sides["proxy"].set("memory", func(b *testing.B, _ int) sample {
		p := startBenchServer(b, "http://"+provider.address(b), freeAddress, littleGarbage)
		defer p.kill()
		completion := workload{"POST", chatPath, []string{someKey}, "", gatewayKinds[0].body}
		return connectionMemory(b, p, string(completion.requests()[0]), func(int) string { return silentStream("", someKey) })
	})
	for _, kind := range gatewayKinds {
		for _, name := range []string{"direct", "proxy"} {
			sides[name].add(kind.name, workload{"POST", kind.path, []string{someKey}, "", kind.body}, 0)
		}
	}
	return sides
}

// A tollgateWork is a work that tollgate does.
type tollgateWork struct {
	name string
	workload
	warmUp time.Duration // that comes before each round
	isNew  bool          // an earlier commit may not have it
}

// benchKeys is how many API keys send each kind of requests. What each has used is written to Redis once a second: if they
// were many, that would count for what is measured next.
const benchKeys = 16

// tollgateWorks makes the tenants and keys for what the service does with its Redis and the benchmarks' provider.
func tollgateWorks(b *testing.B, s *service, r *redistest.Server, provider string) []tollgateWork {
	b.Helper()
	tenant := func(config string, keys int) (id string, all []string) {
		id = newTenantIn(b, r, config)
		for range keys {
			all = append(all, s.login(b, id))
		}
		return id, all
	}
	group := fmt.Sprintf(`{"user_groups":{"anonymous":{"tokens":%d`, int64(maxAmount))
	plain, keys := tenant(group+`}}}`, benchKeys)
	limited, limitedKeys := tenant(group+`,"rate_limit":100000,"rate_limit_window":1}}}`, benchKeys)
	gateway, gatewayKeys := tenant(gatewayConfig(provider), benchKeys)
	caching, cachingKeys := tenant(strings.TrimSuffix(gatewayConfig(provider), "}")+`,"caching":{`+cachingForAnHour+`}}`, 1)

	charge := "/" + plain + "/tokens/consume"
	cached := workload{"POST", "/" + caching + chatPath, cachingKeys, "", gatewayKinds[0].body}
	works := []tollgateWork{
		{"charge", workload{"POST", charge, keys, "", oneToken}, 0, false},
		// Only after a window do requests leave the log of a rate limit, as they do in the long run.
		{"limited", workload{"POST", "/" + limited + "/tokens/consume", limitedKeys, "", oneToken}, time.Second, false},
		{"repeatable", workload{"POST", charge, keys, retryKey + serial + "\r\n", oneToken}, 0, false},
		{"verify", workload{"GET", "/" + plain + "/auth/verify?tokens=1", keys, "", ""}, 0, false},
		{"login", workload{"POST", "/" + plain + "/auth/anonymous", []string{""}, "", ""}, 0, false},
		{"config", workload{"GET", "/" + plain + "/admin/config", []string{testAdminToken}, "", ""}, 0, false},
		{"cached", cached, 0, false},
	}
	for _, kind := range gatewayKinds {
		works = append(works, tollgateWork{kind.name, workload{"POST", "/" + gateway + kind.path, gatewayKeys, "", kind.body}, 0, true})
	}
	waittest.Eventually(b, 10*time.Second, func() error {
		got := s.do(b, cached.method, cached.path, cached.body, bearer(cachingKeys[0]))
		if got.header.Get("X-Cache") != "HIT" {
			return fmt.Errorf("%+v", got)
		}
		return nil
	})
	return works
}

// The kinds of requests to the gateway.
var gatewayKinds = []struct{ name, path, body string }{
	{"completion", chatPath, `{"model":"m","max_tokens":100,` + benchMessages},
	{"stream", chatPath, `{"model":"m","max_tokens":200,"stream":true,` + benchMessages},
	{"response", responsesRoute, `{"model":"m","max_output_tokens":100,` + benchInput},
	{"response stream", responsesRoute, `{"model":"m","max_output_tokens":200,"stream":true,` + benchInput},
	{"embedding", embeddingsPath, `{"model":"m","encoding_format":"base64","input":"Hello!"}`},
	{"4 MB", embeddingsPath, `{"model":"m","encoding_format":"base64","dimensions":3072,"input":"Hello!"}`},
}

const (
	benchMessages = `"messages":[{"role":"user","content":"Hello!"}]}`
	benchInput    = `"input":[{"role":"user","content":"Hello!"}]}`
)

// addOther makes a side of the gateway OTHER. Of the kinds of requests it is sent the first two.
func (side *benchSide) addOther(b *testing.B) {
	target, err := url.Parse(os.Getenv("OTHER"))
	if err != nil || target.Scheme != "http" {
		b.Fatalf("OTHER is %q, not a URL of http", os.Getenv("OTHER"))
	}
	side.address = target.Host
	for _, kind := range gatewayKinds[:2] {
		side.add(kind.name, workload{"POST", target.RequestURI(), []string{os.Getenv("OTHER_KEY")}, "", kind.body}, 0)
	}
}

// startTollgate starts tollgate as it is at a commit, or here if that is "", with a Redis of its own, and makes the
// tenants for what it serves.
func (side *benchSide) startTollgate(b *testing.B, commit string) {
	side.binary = buildBinary(b, commit)
	side.redis = redistest.New(b, "--appendonly", "no")
	side.process = startCommand(b, exec.Command(side.binary), side.settings())
	side.address = side.process.address(b)
	s := &service{url: "http://" + side.address}
	for _, w := range tollgateWorks(b, s, side.redis, side.provider.address(b)) {
		if w.isNew && commit != "" {
			if got, err := s.send(w.method, w.path, w.body, bearer(w.tokens[0])); err != nil || got.status != 200 {
				continue
			}
		}
		side.add(w.name, w.workload, w.warmUp)
		if w.name == "charge" {
			side.addPaced("paced charge", w.workload)
		}
	}
	side.set("memory", side.memory)
	side.set("start", side.start)
	side.set("resident", side.resident)
}

func (side *benchSide) settings(more ...string) []string {
	return slices.Concat([]string{"REDIS_URL=" + side.redis.URL()}, benchSettings, more)
}

// add adds a work that sends w as fast as it goes, each time after it was sent for warmUp.
func (side *benchSide) add(name string, w workload, warmUp time.Duration) {
	requests := w.requests()
	side.set(name, func(b *testing.B, connections int) sample {
		if warmUp > 0 {
			during(warmUp, side.address, connections, requests).run(b)
		}
		return side.measure(b, during(roundTime, side.address, connections, requests))
	})
}

// addPaced adds a work that sends w 10,000 times a second.
func (side *benchSide) addPaced(name string, w workload) {
	requests := w.requests()
	side.set(name, func(b *testing.B, connections int) sample {
		d := during(2*roundTime, side.address, connections, requests)
		d.rate = 10_000
		return side.measure(b, d)
	})
}

func (side *benchSide) set(name string, take func(b *testing.B, connections int) sample) {
	if side.works == nil {
		side.works = make(map[string]func(*testing.B, int) sample)
	}
	side.works[name] = take
}

// measure runs d, and returns what it took.
func (side *benchSide) measure(b *testing.B, d drive) sample {
	b.Helper()
	d.isTimed = true
	before := side.used(b)
	got := d.run(b)
	after := side.used(b)
	if got.requests == 0 {
		b.Fatal("no response came")
	}
	s := sample{
		perSecond: float64(got.requests) / got.took.Seconds(),
		medianMS:  got.times[len(got.times)/2].Seconds() * 1000,
		slowMS:    got.times[len(got.times)*99/100].Seconds() * 1000,
	}
	if len(got.firsts) > 0 {
		s[firstMS] = got.firsts[len(got.firsts)/2].Seconds() * 1000
	}
	for m := range after {
		s[m] = (after[m] - before[m]) / float64(got.requests)
	}
	if side.process != nil {
		s[allCPU] = s[serverCPU] + s[redisCPU]
	}
	return s
}

// used returns the microseconds that all have used so far.
func (side *benchSide) used(b *testing.B) sample {
	b.Helper()
	used := sample{loadCPU: cpuMicros(b, os.Getpid())}
	if side.provider != nil {
		used[loadCPU] += cpuMicros(b, side.provider.cmd.Process.Pid)
	}
	if side.process != nil {
		used[serverCPU] = cpuMicros(b, side.process.cmd.Process.Pid)
	}
	if side.redis != nil {
		used[redisCPU] = cpuMicros(b, side.redis.PID())
		used[scriptTime] = scriptMicros(b, side.redis)
	}
	return used
}

// scriptMicros is how long scripts have taken so far, as Redis says.
func scriptMicros(b *testing.B, r *redistest.Server) float64 {
	b.Helper()
	return redistest.ScriptMicros(r.String(b, "INFO", "commandstats"))
}

// start starts the service, and returns how long it takes to respond.
func (side *benchSide) start(b *testing.B, _ int) sample {
	info, err := os.Stat(side.binary)
	if err != nil {
		b.Fatal(err)
	}
	began := time.Now()
	p := startCommand(b, exec.Command(side.binary), side.settings())
	defer p.kill()
	(&service{url: "http://" + p.address(b)}).do(b, "GET", "/readyz", "").want(b, 200, "")
	return sample{medianMS: time.Since(began).Seconds() * 1000, binaryMB: float64(info.Size()) / 1e6}
}

// resident returns the memory of the service that the loads go to.
func (side *benchSide) resident(b *testing.B, _ int) sample {
	return sample{residentMB: float64(residentKiB(b, side.process.cmd.Process.Pid)) * 1024 / 1e6}
}

// memory returns what a fresh service takes for connections.
func (side *benchSide) memory(b *testing.B, _ int) sample {
	p := startCommand(b, exec.Command(side.binary), side.settings(littleGarbage))
	defer p.kill()
	s := &service{url: "http://" + p.address(b)}
	tenant := newTenantIn(b, side.redis, gatewayConfig(side.provider.address(b)))
	key := ""
	return connectionMemory(b, p, idleRequest, func(i int) string {
		if i%200 == 0 { // within the share of one key
			key = s.login(b, tenant)
		}
		return silentStream("/"+tenant, key)
	})
}

const (
	littleGarbage = "GOGC=25" // what counts is what connections need
	idleRequest   = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
)

// silentStream returns the request for a stream of the benchmarks' provider that is silent after its first event.
func silentStream(prefix, key string) string {
	const body = `{"stream":true,"max_tokens":10,"user":"silent"}`
	return fmt.Sprintf("POST %s%s HTTP/1.1\r\nHost: x\r\nx-api-key: %s\r\nContent-Length: %d\r\n\r\n%s",
		prefix, chatPath, key, len(body), body)
}

// connectionMemory returns what a fresh server takes for connections that are idle after one request each and, beside
// them, for as many streams that are silent, unless stream is nil.
func connectionMemory(b *testing.B, p *process, request string, stream func(i int) string) sample {
	b.Helper()
	const connections = 1000
	address := p.address(b) // once it listens
	var opened []net.Conn
	defer func() {
		for _, c := range opened {
			c.Close()
		}
	}()
	open := func(request string) *bufio.Reader {
		c, err := net.Dial("tcp", address)
		if err != nil {
			b.Fatal(err)
		}
		opened = append(opened, c)
		_, _ = io.WriteString(c, request)
		return bufio.NewReader(c)
	}
	resident := func() float64 { return float64(residentKiB(b, p.cmd.Process.Pid)) * 1024 }
	fresh := resident()
	for range connections {
		if _, err := readResponse(open(request)); err != nil {
			b.Fatal(err)
		}
	}
	idle := resident()
	const n = connections * 1000
	got := sample{idleKB: (idle - fresh) / n}
	if stream == nil {
		return got
	}
	for i := range connections {
		if head, err := open(stream(i)).ReadString('}'); err != nil || !strings.HasPrefix(head, "HTTP/1.1 200 ") {
			b.Fatalf("%q, %v", head, err)
		}
	}
	silent := resident()
	got[silentKB], got[streamsMB] = (silent-idle)/n, (silent-idle+fresh)/1e6
	return got
}
