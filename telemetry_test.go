package main

import (
	"fmt"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"tollgate/internal/gateway"
	"tollgate/internal/redistest"
	"tollgate/internal/telemetry"
	"tollgate/internal/waittest"
)

// metricsStory creates a tenant in r, sends requests of all kinds for it and returns its ID and the secrets that were
// used.
func metricsStory(t *testing.T, s *service, r *redistest.Server) (id string, secrets []string) {
	t.Helper()
	id = newTenantIn(t, r, `{"user_groups":{"anonymous":{"tokens":10,"rate_limit":4,"rate_limit_window":1000},"a\"b\\c\nd":{"tokens":5}}}`)
	for _, token := range []string{"", "Bearer x"} {
		s.do(t, "GET", "/metrics", "", "Authorization: "+token).want(t, 401, `{"error":"Unauthorized"}`)
	}
	key := s.login(t, id)
	s.login(t, id)
	user := s.issue(t, id, `"userId":"u-secret","group":"a\"b\\c\nd"`)
	s.consume(t, id, key, `{"tokens":3}`, retryKey+"k").want(t, 200, "")
	s.consume(t, id, key, `{"tokens":3}`, retryKey+"k").want(t, 200, "") // a replay takes nothing
	s.consume(t, id, key, `{"tokens":4}`, retryKey+"k").want(t, 422, "")
	s.do(t, "PROPFIND", "/"+id+"/auth/verify?tokens=2", "", bearer(key)).want(t, 200, "")
	s.consume(t, id, key, `{"tokens":100}`).want(t, 402, "")
	s.consume(t, id, key, "").want(t, 200, "")
	s.consume(t, id, key, "").want(t, 200, "")
	s.consume(t, id, key, "").want(t, 429, "")
	s.consume(t, id, someKey, "").want(t, 401, "")
	s.do(t, "GET", "/nothing/there/"+key, "").want(t, 404, "")
	s.do(t, "DELETE", "/healthz", "").want(t, 405, "")
	return id, []string{key, user, someKey, "u-secret", testAdminToken}
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	r := redistest.New(t)
	s := newService(t, "REDIS_URL="+r.URL(), "MAX_CONNECTIONS=64")
	id, secrets := metricsStory(t, s, r)
	page := s.admin(t, "GET", "/metrics", "").body

	tenant := `tenant="` + id + `"`
	for _, test := range []struct {
		sample string
		want   float64
	}{
		{`http_requests_total{route="/{tenantId}/tokens/consume",method="POST",status="200"}`, 4},
		{`http_requests_total{route="/{tenantId}/tokens/consume",method="POST",status="402"}`, 1},
		{`http_requests_total{route="/{tenantId}/tokens/consume",method="POST",status="429"}`, 1},
		{`http_requests_total{route="/{tenantId}/tokens/consume",method="POST",status="422"}`, 1},
		{`http_requests_total{route="/{tenantId}/tokens/consume",method="POST",status="401"}`, 1},
		{`http_requests_total{route="/{tenantId}/auth/verify",method="other",status="200"}`, 1},
		{`http_requests_total{route="/{tenantId}/auth/anonymous",method="POST",status="200"}`, 2},
		{`http_requests_total{route="/metrics",method="GET",status="401"}`, 2},
		{`http_requests_total{route="other",method="GET",status="404"}`, 1},
		{`http_requests_total{route="other",method="DELETE",status="405"}`, 1},
		{`http_request_duration_seconds_count{route="/{tenantId}/tokens/consume"}`, 8},
		{`http_request_duration_seconds_bucket{route="/{tenantId}/tokens/consume",le="+Inf"}`, 8},
		{`http_request_duration_seconds_bucket{route="/{tenantId}/auth/verify",le="2"}`, 1},
		{`tokens_charged_total{` + tenant + `}`, 3 + 2 + 2},
		{`charges_refused_total{` + tenant + `,reason="balance"}`, 1},
		{`charges_refused_total{` + tenant + `,reason="rate"}`, 1},
		{`charges_refused_total{` + tenant + `,reason="key"}`, 1},
		{`charges_refused_total{` + tenant + `,reason="idempotency_key"}`, 1},
		{`keys_issued_total{` + tenant + `,group="anonymous"}`, 2},
		{`keys_issued_total{` + tenant + `,group="a\"b\\c\nd"}`, 1},
		{`http_max_connections`, 64},
		{`tenant_config_loads_total`, 1},
		{`redis_up`, 1},
		{`redis_errors_total`, 0},
	} {
		if got := s.sample(t, test.sample); got != test.want {
			t.Errorf("%s is %v, want %v", test.sample, got, test.want)
		}
	}
	for _, positive := range []string{
		"http_connections", "redis_probe_seconds", "redis_pool_connections", "go_goroutines", "go_memstats_heap_alloc_bytes",
		"process_resident_memory_bytes", "process_open_fds", "process_max_fds",
	} {
		if got := s.sample(t, positive); got <= 0 {
			t.Errorf("%s is %v", positive, got)
		}
	}
	began, now := s.sample(t, "process_start_time_seconds"), float64(time.Now().UnixMilli())/1000
	if began > now || began < now-3600 {
		t.Errorf("the process began at %v", began)
	}
	for _, secret := range secrets {
		if strings.Contains(page, secret) {
			t.Errorf("the page shows %s", secret)
		}
	}

	t.Run("each family appears once, with its kind, and each sample once", func(t *testing.T) {
		sample := regexp.MustCompile(`^[a-z_]+(\{([a-z]+="([^"\\]|\\["\\n])*",?)+\})? [0-9.e+-]+\n$`)
		seen := make(map[string]bool)
		for line := range strings.Lines(page) {
			name := line[:strings.LastIndexByte(line, ' ')]
			if strings.HasPrefix(line, "#") {
				name = strings.Join(strings.Fields(line)[:3], " ")
			} else if !sample.MatchString(line) {
				t.Errorf("malformed: %s", line)
			}
			if seen[name] {
				t.Errorf("%s is duplicated", name)
			}
			seen[name] = true
		}
	})
	t.Run("without Redis", func(t *testing.T) {
		r.Kill()
		if up := s.sample(t, "redis_up"); up != 0 || s.sample(t, "redis_errors_total") < 1 {
			t.Errorf("redis_up is %v", up)
		}
	})
}

// Requests that are counted at the same time are all counted, by route, method and status that are known.
func TestMetricsRace(t *testing.T) {
	m := newMetrics([]string{"GET /healthz", "GET /readyz"})
	var counting sync.WaitGroup
	for range 8 {
		counting.Go(func() {
			for range 1000 {
				m.request("GET /healthz", "GET", 200, 3*time.Millisecond)
				m.request("GET /healthz", "BREW", 418, time.Hour)
				m.request("", "GET", 404, 0)
				m.request("GET /readyz", "GET", 200, 5*time.Millisecond)
			}
		})
	}
	counting.Wait()
	e := new(telemetry.Page)
	m.write(e)
	for _, want := range []string{
		`http_requests_total{route="/healthz",method="GET",status="200"} 8000`,
		`http_requests_total{route="/healthz",method="other",status="other"} 8000`,
		`http_request_duration_seconds_bucket{route="/healthz",le="0.0025"} 0`,
		`http_request_duration_seconds_bucket{route="/healthz",le="0.005"} 8000`,
		`http_request_duration_seconds_bucket{route="/readyz",le="0.0025"} 0`,
		`http_request_duration_seconds_bucket{route="/readyz",le="0.005"} 8000`,
		`http_request_duration_seconds_sum{route="/readyz"} 40`,
		`http_request_duration_seconds_bucket{route="/healthz",le="2"} 8000`,
		`http_request_duration_seconds_bucket{route="/healthz",le="+Inf"} 16000`,
	} {
		if !strings.Contains(e.String(), want+"\n") {
			t.Errorf("%s is missing", want)
		}
	}
}

// With -access-log each request has a line, in which no secret is.
func TestAccessLog(t *testing.T) {
	t.Parallel()
	s := newService(t, "ACCESS_LOG=true")
	id := newTenant(t, 10)
	login := s.do(t, "POST", "/"+id+"/auth/anonymous", "", "X-Request-Id: my-ID_1")
	login.wantHeader(t, "X-Request-Id", "my-ID_1")
	key := login.text(t, "apiKey")
	anywhere := "/" + id + "/auth/key"
	for _, test := range []struct {
		name, method, path string
		headers            []string
		status             int
		want               string
	}{
		{"a charge's route", "GET", anywhere, []string{bearer(key)}, 200,
			`GET /\{tenantId\}/auth/key tenant=` + id + ` status=200 bytes=%d duration=\d+\.\d\dms remote=127\.0\.0\.1 id=%s`},
		{"an ID that is an API key", "GET", anywhere, []string{bearer(key), "X-Request-Id: " + key}, 200,
			`GET /\{tenantId\}/auth/key tenant=` + id + ` status=200 bytes=%d duration=\d+\.\d\dms remote=127\.0\.0\.1 id=%s`},
		{"a tenant that does not exist", "GET", "/" + key + "/auth/key", []string{bearer(key)}, 400,
			`GET /\{tenantId\}/auth/key tenant=- status=400 bytes=%d .* id=%s`},
		{"a route without a tenant", "HEAD", "/healthz", nil, 200, `HEAD /healthz tenant=- status=200 bytes=%d .* id=%s`},
		{"no route", "GET", "/" + key + "/x/" + key, nil, 404, `GET - tenant=- status=404 bytes=%d .* id=%s`},
		{"a key in the path", "GET", "/" + id + "/admin/keys/" + key, []string{bearer(testAdminToken)}, 200,
			`GET /\{tenantId\}/admin/keys/\{apiKey\} tenant=` + id + ` status=200 bytes=%d .* id=%s`},
		{"a key for a method", key, "/healthz", nil, 405, `- - tenant=- status=405 bytes=%d .* id=%s`},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := s.do(t, test.method, test.path, "", test.headers...)
			if err := got.is(test.status); err != nil {
				t.Fatal(err)
			}
			want := fmt.Sprintf(test.want, len(got.body), got.header.Get("X-Request-Id"))
			line := regexp.MustCompile(`(?m)^\[INFO\] ` + want + `$`)
			waittest.Eventually(t, 10*time.Second, func() error { // it is written after the response
				if !line.MatchString(s.log.String()) {
					return fmt.Errorf("no line %s in\n%s", want, s.log)
				}
				return nil
			})
		})
	}
	t.Run("the request's own ID", func(t *testing.T) {
		want := regexp.MustCompile(`(?m)^\[INFO\] POST /\{tenantId\}/auth/anonymous tenant=` + id + ` .* id=my-ID_1$`)
		if !want.MatchString(s.log.String()) {
			t.Errorf("no line %s in\n%s", want, s.log)
		}
	})
	if s.log.Count(key)+s.log.Count(testAdminToken) > 0 {
		t.Errorf("a secret is in the log:\n%s", s.log)
	}
	t.Run("without the flag there is no access log", func(t *testing.T) {
		s := newService(t)
		s.do(t, "GET", "/healthz", "").want(t, 200, "")
		s.stop()
		if s.log.Count("/healthz") > 0 {
			t.Errorf("log:\n%s", s.log)
		}
	})
}

// Statuses that the docs name count by themselves, others together.
func TestMetricsStatuses(t *testing.T) {
	m := newMetrics(nil)
	for _, status := range []int{200, 499, 508, 418, 599} {
		m.request("", "GET", status, 0)
		m.gateway.count("t", &gateway.Outcome{Endpoint: "e"}, status, 0)
	}
	for status, want := range map[string]int{"200": 1, "499": 1, "508": 1, "other": 2} {
		wantSamples(t, m, fmt.Sprintf(`http_requests_total{route="other",method="GET",status=%q} %d`, status, want),
			fmt.Sprintf(`gateway_requests_total{tenant="t",endpoint="e",status=%q} %d`, status, want))
	}
}

func TestRouteOf(t *testing.T) {
	for pattern, want := range map[string][2]string{
		"GET /x/{id}": {"GET", "/x/{id}"}, "/x": {"", "/x"}, "": {"", "other"}, "DELETE /": {"DELETE", "/"},
	} {
		if method, path := routeOf(pattern); method != want[0] || path != want[1] {
			t.Errorf("%q: got %q, %q", pattern, method, path)
		}
	}
}

// The labels that tenants choose are bounded.
func TestMetricsBounds(t *testing.T) {
	m := newMetrics(nil)
	for i := range 3 * maxNamedTenants {
		m.charged(fmt.Sprint("t", i), 1)
		m.refusedCharge(fmt.Sprint("t", i), refusedRate)
		m.keyIssued(fmt.Sprint("t", i), fmt.Sprint("g", i))
	}
	m.charged("t1", 2)
	m.charged("late", 5)
	if n := len(*m.tenants.Load()); n != maxNamedTenants+1 {
		t.Errorf("%d tenants have names", n)
	}
	if n := len(m.issued); n != maxNamedGroups+1 {
		t.Errorf("%d groups have names", n)
	}
	m.keyIssued("t1", strings.Repeat("g", maxGroupBytes))
	wantSamples(t, m,
		`tokens_charged_total{tenant="t1"} 3`, `tokens_charged_total{tenant="t999"} 1`, `tokens_charged_total{tenant="other"} 2005`,
		`charges_refused_total{tenant="t1",reason="rate"} 1`, `charges_refused_total{tenant="t1",reason="key"} 0`,
		`charges_refused_total{tenant="other",reason="rate"} 2000`,
		`keys_issued_total{tenant="t1",group="g1"} 1`, `keys_issued_total{tenant="other",group="other"} 2001`)
}

// A tenant may be called other. Nobody's charges get lost for that.
func TestTenantCalledOther(t *testing.T) {
	m := newMetrics(nil)
	m.charged(otherName, 1)
	for i := range maxNamedTenants + 10 {
		m.charged(fmt.Sprint("t", i), 1)
	}
	wantSamples(t, m, `tokens_charged_total{tenant="other"} 12`, `tokens_charged_total{tenant="t998"} 1`)
}

// wantSamples expects lines of the page that m writes, each once.
func wantSamples(t *testing.T, m *metrics, lines ...string) {
	t.Helper()
	e := new(telemetry.Page)
	m.write(e)
	for _, want := range lines {
		if n := strings.Count(e.String(), "\n"+want+"\n"); n != 1 {
			t.Errorf("the page has %s %d times", want, n)
		}
	}
}

func BenchmarkCharged(b *testing.B) {
	m := newMetrics(nil)
	for i := range 500 {
		m.charged(fmt.Sprint("tenant-", i), 1)
	}
	for b.Loop() {
		m.charged("tenant-250", 1)
	}
}
