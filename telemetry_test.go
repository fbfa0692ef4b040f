package main

import (
	"fmt"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestMetrics(t *testing.T) {
	r := newRedis(t)
	s := newService(t, "REDIS_URL="+r.url())
	id := r.newTenant(t, `{"user_groups":{"anonymous":{"tokens":10,"rate_limit":4,"rate_limit_window":100},"a\"b\\c\nd":{"tokens":5}}}`)
	for _, status := range []string{"", "Bearer x"} {
		s.do(t, "GET", "/metrics", "", "Authorization: "+status).want(t, 401, `{"error":"Unauthorized"}`)
	}
	key := s.login(t, id)
	s.login(t, id)
	user := s.issue(t, id, `"userId":"u-secret","group":"a\"b\\c\nd"`)
	s.consume(t, id, key, `{"tokens":3}`, retryKey+"k").want(t, 200, "")
	s.consume(t, id, key, `{"tokens":3}`, retryKey+"k").want(t, 200, "") // a replay takes nothing
	s.consume(t, id, key, `{"tokens":4}`, retryKey+"k").want(t, 422, "")
	s.do(t, "PROPFIND", "/"+id+"/auth/verify?tokens=2", "", bearer(key)).want(t, 200, "")
	s.consume(t, id, key, `{"tokens":100}`).want(t, 402, "")
	for range 2 {
		s.consume(t, id, key, "").want(t, 200, "")
	}
	s.consume(t, id, key, "").want(t, 429, "")
	s.consume(t, id, someKey, "").want(t, 401, "")
	s.do(t, "GET", "/nothing/there/"+key, "").want(t, 404, "")
	s.do(t, "DELETE", "/healthz", "").want(t, 405, "")

	tenant := `tenant="` + id + `"`
	const consumed = `http_requests_total{route="/{tenantId}/tokens/consume",method="POST",status=`
	for sample, want := range map[string]float64{
		consumed + `"200"}`: 4, consumed + `"402"}`: 1, consumed + `"429"}`: 1, consumed + `"422"}`: 1, consumed + `"401"}`: 1,
		`http_requests_total{route="/{tenantId}/auth/verify",method="other",status="200"}`:   1,
		`http_requests_total{route="/{tenantId}/auth/anonymous",method="POST",status="200"}`: 2,
		`http_requests_total{route="/metrics",method="GET",status="401"}`:                    2,
		`http_requests_total{route="other",method="GET",status="404"}`:                       1,
		`http_requests_total{route="other",method="DELETE",status="405"}`:                    1,
		`http_request_duration_seconds_count{route="/{tenantId}/tokens/consume"}`:            8,
		`http_request_duration_seconds_bucket{route="/{tenantId}/tokens/consume",le="+Inf"}`: 8,
		`http_request_duration_seconds_bucket{route="/{tenantId}/auth/verify",le="2"}`:       1,
		`tokens_charged_total{` + tenant + `}`:                                               3 + 2 + 2,
		`charges_refused_total{` + tenant + `,reason="balance"}`:                             1,
		`charges_refused_total{` + tenant + `,reason="rate"}`:                                1,
		`charges_refused_total{` + tenant + `,reason="key"}`:                                 1,
		`charges_refused_total{` + tenant + `,reason="idempotency_key"}`:                     1,
		`keys_issued_total{` + tenant + `,group="anonymous"}`:                                2,
		`keys_issued_total{` + tenant + `,group="a\"b\\c\nd"}`:                               1,
		`tenant_config_loads_total`:                                                          1, `redis_up`: 1, `redis_errors_total`: 0,
	} {
		if got := s.sample(t, sample); got != want {
			t.Errorf("%s is %v, want %v", sample, got, want)
		}
	}
	for _, positive := range []string{"redis_pool_connections", "go_goroutines", "go_memstats_heap_alloc_bytes", "process_resident_memory_bytes", "process_open_fds", "process_max_fds"} {
		if s.sample(t, positive) <= 0 {
			t.Errorf("%s is %v", positive, s.sample(t, positive))
		}
	}
	if began := s.sample(t, "process_start_time_seconds"); began > float64(time.Now().UnixMilli())/1000 || began < float64(time.Now().Add(-time.Hour).Unix()) {
		t.Errorf("the process began at %v", began)
	}
	page := s.admin(t, "GET", "/metrics", "").body
	for _, secret := range []string{key, user, someKey, "u-secret", testAdminToken} {
		if strings.Contains(page, secret) {
			t.Errorf("it shows %s", secret)
		}
	}
	// Each family is there once, with its kind, and each sample once.
	seen := make(map[string]bool)
	for line := range strings.Lines(page) {
		name := line[:strings.LastIndexByte(line, ' ')]
		if strings.HasPrefix(line, "#") {
			name = strings.Join(strings.Fields(line)[:3], " ")
		} else if !regexp.MustCompile(`^[a-z_]+(\{([a-z]+="([^"\\]|\\["\\n])*",?)+\})? [0-9.e+-]+\n$`).MatchString(line) {
			t.Errorf("malformed: %s", line)
		}
		if seen[name] {
			t.Errorf("%s is there twice", name)
		}
		seen[name] = true
	}
	if promtool, err := exec.LookPath("promtool"); err == nil {
		check := exec.Command(promtool, "check", "metrics")
		check.Stdin = strings.NewReader(page)
		if out, err := check.CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("promtool: %v\n%s", err, out)
		}
	}
	r.kill()
	if up := s.sample(t, "redis_up"); up != 0 || s.sample(t, "redis_errors_total") < 1 {
		t.Errorf("without Redis redis_up is %v", up)
	}
}

// The labels that tenants choose are bounded.
func TestMetricsBounds(t *testing.T) {
	m := newMetrics()
	for i := range 3 * maxNamedTenants {
		m.tenant(fmt.Sprint("t", i)).tokensCharged.Add(1)
		m.keyIssued(fmt.Sprint("t", i), fmt.Sprint("g", i))
	}
	if n := len(m.tenants); n != 1000+1 {
		t.Errorf("%d tenants have names", n)
	}
	if n := len(m.issued); n != maxNamedGroups+1 {
		t.Errorf("%d groups have names", n)
	}
	long := newMetrics()
	long.keyIssued("t", strings.Repeat("g", maxGroupBytes+1))
	if long.issued[issuedLabels{"t", otherName}] != 1 {
		t.Error("a long group has its name")
	}
	if n := m.tenant("late").tokensCharged.Load(); n != 2*maxNamedTenants {
		t.Errorf("the others were charged %d tokens", n)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 1000 {
				m.request("GET /healthz", "GET", 200, 3*time.Millisecond)
				m.request("GET /healthz", "BREW", 418, time.Hour)
				m.request("", "GET", 404, 0)
				m.request("GET /readyz", "GET", 200, 5*time.Millisecond)
			}
		})
	}
	wg.Wait()
	e := new(exposition)
	m.write(e)
	for _, want := range []string{
		`http_requests_total{route="/healthz",method="GET",status="200"} 8000`, `http_requests_total{route="/healthz",method="other",status="other"} 8000`,
		`http_request_duration_seconds_bucket{route="/healthz",le="0.0025"} 0`, `http_request_duration_seconds_bucket{route="/healthz",le="0.005"} 8000`,
		`http_request_duration_seconds_bucket{route="/readyz",le="0.0025"} 0`, `http_request_duration_seconds_bucket{route="/readyz",le="0.005"} 8000`,
		`http_request_duration_seconds_sum{route="/readyz"} 40`, `http_request_duration_seconds_bucket{route="/healthz",le="2"} 8000`, `http_request_duration_seconds_bucket{route="/healthz",le="+Inf"} 16000`,
	} {
		if !strings.Contains(e.String(), want+"\n") {
			t.Errorf("%s is missing", want)
		}
	}
}

func TestAccessLog(t *testing.T) {
	s := newService(t, "ACCESS_LOG=true")
	id := newTenant(t, 10)
	answer := s.do(t, "POST", "/"+id+"/auth/anonymous", "", "X-Request-Id: my-ID_1")
	answer.wantHeader(t, "X-Request-Id", "my-ID_1")
	key := answer.field(t, "apiKey").(string)
	want := func(pattern string) {
		t.Helper()
		line := regexp.MustCompile(`(?m)^\[INFO\] ` + pattern + `$`)
		for deadline := in(5 * time.Second); !line.MatchString(s.log.String()); time.Sleep(time.Millisecond) { // it is written after the answer
			if time.Now().After(deadline) {
				t.Fatalf("no line %s in\n%s", pattern, s.log)
			}
		}
	}
	want(`POST /\{tenantId\}/auth/anonymous tenant=` + id + fmt.Sprintf(` status=200 bytes=%d duration=\d+\.\d\dms remote=127\.0\.0\.1 id=my-ID_1`, len(answer.body)))
	for _, given := range []string{"", "a b", "é", strings.Repeat("a", 65), "a\tb", key, "adm_" + key[5:]} {
		got := s.do(t, "GET", "/"+id+"/auth/key", "", bearer(key), "X-Request-Id: "+given).header.Get("X-Request-Id")
		if got == given || !validRequestID(got) {
			t.Errorf("X-Request-Id %q became %q", given, got)
		}
		want(`GET /\{tenantId\}/auth/key tenant=` + id + ` status=200 bytes=\d+ duration=\d+\.\d\dms remote=127\.0\.0\.1 id=` + got)
	}
	s.do(t, "GET", "/"+key+"/auth/key", "", bearer(key)).want(t, 400, "")
	want(`GET /\{tenantId\}/auth/key tenant=- status=400 bytes=\d+ .*`)
	s.do(t, "HEAD", "/healthz", "")
	want(`HEAD /healthz tenant=- status=200 bytes=0 .*`)
	missing := s.do(t, "GET", "/"+key+"/x/"+key, "")
	want(fmt.Sprintf(`GET - tenant=- status=404 bytes=%d .*`, len(missing.body)))
	s.admin(t, "GET", "/"+id+"/admin/keys/"+key, "").want(t, 200, "")
	want(`GET /\{tenantId\}/admin/keys/\{apiKey\} tenant=` + id + ` status=200 .*`)
	s.do(t, key, "/healthz", "").want(t, 405, "")
	want(`- - tenant=- status=405 .*`)
	if log := s.log.String(); strings.Contains(log, key) || strings.Contains(log, testAdminToken) {
		t.Errorf("a secret is in the log:\n%s", log)
	}
	quiet := newService(t)
	quiet.do(t, "GET", "/healthz", "", "X-Request-Id: mine").wantHeader(t, "X-Request-Id", "mine")
	ids := make(map[string]bool)
	for _, path := range []string{"/healthz", "/healthz", "/nothing", "/abc/auth/key"} {
		id := quiet.do(t, "GET", path, "").header.Get("X-Request-Id")
		if !validRequestID(id) || ids[id] {
			t.Errorf("%s: X-Request-Id is %q", path, id)
		}
		ids[id] = true
	}
	testRedis.do(t, "SET", "apiKey:"+someKey, "junk") // the line of an error names its request
	defer testRedis.do(t, "DEL", "apiKey:"+someKey)
	quiet.do(t, "GET", "/"+id+"/auth/key", "", bearer(someKey), "X-Request-Id: broken").want(t, 500, "")
	if log := quiet.log.String(); !strings.Contains(log, "\n[ERROR] GET /{tenantId}/auth/key id=broken: ") {
		t.Errorf("log:\n%s", log)
	}
	if strings.Contains(quiet.log.String(), "/healthz") {
		t.Error("without the flag there is an access log")
	}
}

// Whatever a request brings, it cannot forge a line of the log.
func TestLogLines(t *testing.T) {
	var out logBuffer
	log := newLogger(&out)
	log.infof("%s", "a\n[ERROR] b\r\x00\x1b[31m\u0085\u2028c\td é")
	log.warnings().Printf("http: %s\n[INFO] x", "y")
	want := "[INFO] a\\n[ERROR] b\\r\\x00\\x1b[31m\\u0085\\u2028c\td é\n[WARN] http: y\\n[INFO] x\n"
	if out.String() != want {
		t.Errorf("got  %q\nwant %q", out.String(), want)
	}
}
