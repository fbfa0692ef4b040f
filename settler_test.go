package main

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"tollgate/internal/bearertoken"
	"tollgate/internal/gateway"
	"tollgate/internal/providertest"
	"tollgate/internal/redisdb"
	"tollgate/internal/redistest"
	"tollgate/internal/telemetrytest"
)

// newTestStore returns a store on r, which logs to log if there is one.
func newTestStore(t testing.TB, r *redistest.Server, log ...*telemetrytest.Log) *store {
	t.Helper()
	return newTestStoreAt(t, r.URL(), log...)
}

// newTestStoreAt does what newTestStore does, for the Redis at rawURL.
func newTestStoreAt(t testing.TB, rawURL string, log ...*telemetrytest.Log) *store {
	t.Helper()
	url, err := redisdb.ParseURL(rawURL)
	if err != nil {
		t.Fatal(err)
	}
	logger := append(log, new(telemetrytest.Log))[0].Logger()
	st, closeStore, err := openStore(context.Background(), &settings{redisURL: url}, logger)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(closeStore)
	return st
}

// wantTenant returns the tenant of that ID, which must exist.
func (s *store) wantTenant(t testing.TB, id string) *tenant {
	t.Helper()
	tn, err := s.Tenant(in(10*time.Second), id)
	if err != nil {
		t.Fatal(err)
	}
	return tn
}

// tokensOf returns the tokens of a setting.
func tokensOf(t testing.TB, value string) *bearertoken.Set {
	t.Helper()
	tokens := new(bearertoken.Set)
	if err := tokens.Replace(value); err != nil {
		t.Fatal(err)
	}
	return tokens
}

// newBareServer returns a server on testRedis, without the process around it.
func newBareServer(t testing.TB, log *telemetrytest.Log) *server {
	t.Helper()
	st := newTestStore(t, testRedis, log)
	s, err := newServer(st, log.Logger(), serverOptions{
		adminTokens: tokensOf(t, testAdminToken), metricsTokens: new(bearertoken.Set),
		gateway: gateway.Options{
			HeaderTimeout: time.Minute, IdleTimeout: time.Minute, TotalTimeout: time.Minute, MaxWaiting: 10,
			TenantShare: 0.5, MaxDrains: 100, MaxIdle: 100,
		},
		maxGatewayBody: 1 << 20,
	}, notNearCapacity)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func notNearCapacity() bool { return false }

// panickingWriter fails as a bug would, when the response is under way.
type panickingWriter struct{ http.ResponseWriter }

func (w panickingWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w panickingWriter) Write(p []byte) (int, error) {
	if strings.Contains(string(p), "ünd") {
		panic("a bug")
	}
	return w.ResponseWriter.Write(p)
}

// A request that ends with a panic is settled, too.
func TestGatewayPanics(t *testing.T) {
	t.Parallel()
	const granted = 10_000
	log := new(telemetrytest.Log)
	handler := newBareServer(t, log).handler
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		handler.ServeHTTP(panickingWriter{w}, r)
	}))
	defer web.Close()
	p := providertest.New(t)
	p.Each(func(r providertest.Request) providertest.Conduct {
		if r.Stream {
			return providertest.Conduct{Hang: providertest.InContent}
		}
		return providertest.Conduct{}
	})
	g := (&service{url: web.URL}).gatewayTest(t, p, textConfig(granted, endpointJSON(p, "chat", chatPath, "")))
	for body, want := range map[string]int{`{"stream":true}`: 4, `{"stream":false}`: 18} {
		g.key = g.login(t, g.tenant)
		if _, err := g.send("POST", "/"+g.tenant+chatPath, body, bearer(g.key)); err == nil {
			t.Errorf("%s: the connection was not cut", body)
		}
		if n := g.charged(t, granted); n != want {
			t.Errorf("%s: charged %d, want %d", body, n, want)
		}
	}
	if log.Count("panic in POST /{tenantId}/v1/chat/completions") != 2 {
		t.Errorf("log:\n%s", log)
	}
}
