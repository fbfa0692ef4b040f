package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
	"tollgate/internal/redisdb"
	"tollgate/internal/redistest"
	"tollgate/internal/telemetry"
	"tollgate/internal/telemetrytest"
)

// newTestStore returns a store on r, which logs to log if there is one.
func newTestStore(t testing.TB, r *redistest.Server, log ...*telemetrytest.Log) *store {
	t.Helper()
	url, err := redisdb.ParseURL(r.URL())
	if err != nil {
		t.Fatal(err)
	}
	st, closeStore, err := openStore(context.Background(), &settings{redisURL: url}, telemetry.New(append(log, new(telemetrytest.Log))[0]))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(closeStore)
	return st
}

// newBareGateway returns a gateway on testRedis and its handler, without the process around it.
func newBareGateway(t testing.TB, log *telemetrytest.Log) (*gateway, http.Handler) {
	t.Helper()
	st := newTestStore(t, testRedis, log)
	srv, err := newServer(st, telemetry.New(log), serverOptions{adminToken: testAdminToken, nearCapacity: func() bool { return false }})
	if err != nil {
		t.Fatal(err)
	}
	g := newGateway(srv, gatewayOptions{
		headerTimeout: time.Minute, idleTimeout: time.Minute, totalTimeout: time.Minute, maxBody: 1 << 20, maxStreams: 10,
	})
	return g, srv.handler(g)
}

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
	const granted = 10_000
	log := new(telemetrytest.Log)
	_, handler := newBareGateway(t, log)
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		handler.ServeHTTP(panickingWriter{w}, r)
	}))
	defer web.Close()
	p := newProvider(t)
	p.each(func(r received) conduct {
		if r.stream {
			return conduct{at: inContent, then: hang}
		}
		return conduct{}
	})
	g := (&service{url: web.URL}).gatewayTest(t, p, textConfig(granted, endpointJSON(p, "chat", chatPath, "")))
	for body, want := range map[string]int{`{"stream":true}`: 4 + 4, `{"stream":false}`: 18} {
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

// While too many settlements wait for Redis, nothing more is held. One that is given up is counted and logged.
func TestSettlerBounds(t *testing.T) {
	log := new(telemetrytest.Log)
	gate, handler := newBareGateway(t, log)
	web := httptest.NewServer(handler)
	defer web.Close()
	p := newProvider(t)
	g := (&service{url: web.URL, log: log}).gatewayTest(t, p, textConfig(1000, endpointJSON(p, "chat", chatPath, "")))
	waiting := &gate.metrics.gateway.waiting
	waiting.Store(maxSettlements)
	got := g.call(t, chatPath, `{}`)
	got.wantWireError(t, chatPath, 503, "api_error", "")
	got.wantHeader(t, "Retry-After", "1")
	waiting.Store(maxSettlements - 1)
	if err := g.call(t, chatPath, `{}`).is(200); err != nil {
		t.Error(err)
	}
	waiting.Store(0)

	h := heldTokens{tenant: &tenant{id: g.tenant}, key: g.key, tokens: 100}
	for err, logged := range map[error]int{fmt.Errorf("x: %w", ErrUnavailable): 1, ErrNoHold: 0, ErrNoKey: 0, errors.New("y"): 1} {
		before, lines := gate.metrics.gateway.unpaid.Load(), log.Count("[ERROR]")
		gate.settler.begin()
		gate.settler.settled(h, 70, settlement{}, err)
		if n := gate.metrics.gateway.unpaid.Load() - before; n != 70 || log.Count("[ERROR]")-lines != logged {
			t.Errorf("%v: %d unpaid tokens\n%s", err, n, log)
		}
	}
	if strings.Contains(log.String(), g.key) {
		t.Error("the log has a key")
	}
	if n := gate.metrics.gateway.holds.Load(); n != 0 {
		t.Errorf("%d holds are open", n)
	}
}
