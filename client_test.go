package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"tollgate/internal/waittest"
)

const (
	uuidPattern = `[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}`
	timeLayout  = "2006-01-02T15:04:05.000Z"

	// someKey looks like an API key, but no test creates it.
	someKey = "user_11111111-2222-4333-8444-555555555555"

	retryKey = "Idempotency-Key: "
)

// reply is a response of the service.
type reply struct {
	status int
	header http.Header
	body   string
}

// client keeps a connection for each of the goroutines that race in tests, and follows no redirect.
var client = &http.Client{
	Transport:     &http.Transport{MaxIdleConnsPerHost: 64, DialContext: dialClientConn},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	Timeout:       30 * time.Second,
}

// A clientConn is a connection of client, which knows whether it was used.
type clientConn struct {
	net.Conn
	hasRead atomic.Bool
}

func dialClientConn(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return &clientConn{Conn: conn}, nil
}

func (c *clientConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.hasRead.Store(true)
	}
	return n, err
}

// send sends one request. Each header is written "Name: value"; body may be empty.
func (s *service) send(method, path, body string, headers ...string) (reply, error) {
	r, err := http.NewRequest(method, s.url+path, strings.NewReader(body))
	if err != nil {
		return reply{}, err
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		r.Header.Add(name, value)
	}
	if kind := contentTypeOf(body); kind != "" && r.Header["Content-Type"] == nil {
		r.Header.Set("Content-Type", kind)
	}
	isNew := true // also if it was dialled for another request, which did not use it
	response, err := client.Do(r.WithContext(httptrace.WithClientTrace(r.Context(), &httptrace.ClientTrace{
		GotConn: func(c httptrace.GotConnInfo) {
			conn, ok := c.Conn.(*clientConn)
			isNew = ok && !conn.hasRead.Load()
		},
	})))
	if err != nil && isNew {
		return reply{}, fmt.Errorf("%w: %w", errNewConn, err)
	}
	if err != nil {
		return reply{}, err
	}
	defer response.Body.Close()
	var content bytes.Buffer
	_, err = content.ReadFrom(response.Body)
	return reply{response.StatusCode, response.Header, content.String()}, err
}

// errNewConn means that a request failed before, or on, the first use of a connection.
var errNewConn = errors.New("on a new connection")

func (s *service) do(t testing.TB, method, path, body string, headers ...string) reply {
	t.Helper()
	got, err := s.send(method, path, body, headers...)
	if err != nil {
		t.Fatal(err)
	}
	got.wantDocumented(t, method, path)
	return got
}

// admin sends a request with the operator's token.
func (s *service) admin(t testing.TB, method, path, body string, headers ...string) reply {
	t.Helper()
	return s.do(t, method, path, body, append(headers, bearer(testAdminToken))...)
}

// login creates an anonymous key.
func (s *service) login(t testing.TB, tenant string) string {
	t.Helper()
	got := repeat(func() reply { return s.do(t, "POST", "/"+tenant+"/auth/anonymous", "") })
	got.want(t, 200, "")
	return got.text(t, "apiKey")
}

// issue creates a registered user's key from the members of a request's body.
func (s *service) issue(t testing.TB, tenant, members string) string {
	t.Helper()
	got := repeat(func() reply { return s.admin(t, "POST", "/"+tenant+"/admin/keys", "{"+members+"}") })
	got.want(t, 201, "")
	return got.text(t, "apiKey")
}

// repeat sends a request up to three times while it is 503: a busy machine may miss a deadline.
func repeat(request func() reply) (got reply) {
	for range 3 {
		if got = request(); got.status != 503 {
			break
		}
	}
	return got
}

func (s *service) consume(t testing.TB, tenant, key, body string, headers ...string) reply {
	t.Helper()
	return s.do(t, "POST", "/"+tenant+"/tokens/consume", body, append(headers, bearer(key))...)
}

// putConfig replaces a tenant's config.
func (s *service) putConfig(t testing.TB, tenant, config string, headers ...string) reply {
	t.Helper()
	return s.admin(t, "PUT", "/"+tenant+"/admin/config", `{"config":`+config+`}`, headers...)
}

// saveConfig replaces a tenant's config, to prepare a test.
func (s *service) saveConfig(t testing.TB, tenant, config string) {
	t.Helper()
	repeat(func() reply { return s.putConfig(t, tenant, config) }).want(t, 200, "")
}

// savedVersion is an element of a config's history.
type savedVersion struct{ ETag, SavedAt, SavedBy string }

// history returns the list of a config's versions.
func (s *service) history(t testing.TB, tenant string) []savedVersion {
	t.Helper()
	got := s.admin(t, "GET", "/"+tenant+"/admin/config/history", "")
	got.want(t, 200, "")
	var list struct{ Versions []savedVersion }
	if err := json.Unmarshal([]byte(got.body), &list); err != nil || list.Versions == nil {
		t.Fatalf("%s: %v", got.body, err)
	}
	return list.Versions
}

// sample returns the value of a sample of /metrics, which is given as it is written there, or -1 if it is missing.
func (s *service) sample(t testing.TB, sample string) float64 {
	t.Helper()
	got := s.admin(t, "GET", "/metrics", "")
	if got.status != 200 || got.header.Get("Content-Type") != "text/plain; version=0.0.4; charset=utf-8" {
		t.Fatalf("%d %s %s", got.status, got.header.Get("Content-Type"), got.body)
	}
	for line := range strings.Lines(got.body) {
		if value, ok := strings.CutPrefix(line, sample+" "); ok {
			n, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			if err != nil {
				t.Errorf("%s: %v", line, err)
			}
			return n
		}
	}
	return -1
}

// loads returns how often the service has loaded tenant's config from Redis.
func (s *service) loads(tenant string) int {
	return s.log.Count("[INFO] Loaded tenant config for " + tenant + "\n")
}

func (s *service) address() string { return strings.TrimPrefix(s.url, "http://") }

// dial opens a connection to the service, for requests that net/http does not send.
func (s *service) dial(t testing.TB) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", s.address())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(in(30 * time.Second))
	return c.(*net.TCPConn)
}

// begin sends the head of a request on a connection of its own and returns the connection once the service waits for
// the body.
func (s *service) begin(t testing.TB, method, path string, bodySize int, headers ...string) *net.TCPConn {
	t.Helper()
	const going = "HTTP/1.1 100 Continue\r\n\r\n"
	c := s.dial(t)
	fmt.Fprintf(c, "%s %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nExpect: 100-continue\r\nContent-Length: %d\r\n%s\r\n\r\n",
		method, path, bodySize, strings.Join(headers, "\r\n"))
	got := make([]byte, len(going))
	if n, err := io.ReadFull(c, got); err != nil || string(got) != going {
		t.Fatalf("%s %s: got %q, %v, want %q", method, path, got[:n], err, going)
	}
	return c
}

// readAll returns all that comes until the other side closes the connection, or the deadline.
func readAll(c net.Conn) string {
	content, _ := io.ReadAll(c)
	return string(content)
}

// trustTest is the setting with which the service believes fromElsewhere.
const trustTest = "TRUSTED_PROXIES=127.0.0.0/8"

var elsewhere atomic.Int64

// fromElsewhere returns the header of a client at an address that no other has: the service delays refusals to one that
// sends many wrong tokens.
func fromElsewhere() string {
	n := elsewhere.Add(1)
	return fmt.Sprintf("X-Forwarded-For: 10.%d.%d.%d", n>>16, n>>8&255, n&255)
}

func bearer(token string) string { return "Authorization: Bearer " + token }

// want compares a response with the contract. A body of "" stands for any body.
func (got reply) want(t testing.TB, status int, body string) {
	t.Helper()
	if got.status != status || body != "" && got.body != body+"\n" {
		t.Errorf("got %d %s\nwant %d %s", got.status, got.body, status, body)
	}
	if got.status != http.StatusNoContent && got.header.Get("Content-Type") != "application/json; charset=utf-8" {
		t.Errorf("Content-Type is %q", got.header.Get("Content-Type"))
	}
}

func (got reply) wantHeader(t testing.TB, name, value string) {
	t.Helper()
	if v := got.header.Get(name); v != value {
		t.Errorf("%d %s: %s is %q, want %q", got.status, strings.TrimSpace(got.body), name, v, value)
	}
}

// wantError checks that the response is an error in JSON with that message.
func (got reply) wantError(t testing.TB, status int, message string) {
	t.Helper()
	got.want(t, status, "")
	if text := got.field(t, "error"); text != message {
		t.Errorf("got the error %q, want %q", text, message)
	}
}

// field returns a member of the response's JSON object.
func (got reply) field(t testing.TB, name string) any {
	t.Helper()
	var object map[string]any
	if err := json.Unmarshal([]byte(got.body), &object); err != nil {
		t.Fatalf("%d %s: %v", got.status, got.body, err)
	}
	return object[name]
}

// text returns a member of the response's JSON object that is a string, and not empty.
func (got reply) text(t testing.TB, name string) string {
	t.Helper()
	text, _ := got.field(t, name).(string)
	if text == "" {
		t.Fatalf("%d %s: there is no %s", got.status, got.body, name)
	}
	return text
}

// etag returns the response's ETag, in its quotes.
func (got reply) etag(t testing.TB) string {
	t.Helper()
	etag := got.header.Get("ETag")
	if len(etag) < 10 || etag[0] != '"' || etag[len(etag)-1] != '"' {
		t.Fatalf("%d %s: ETag is %q", got.status, got.body, etag)
	}
	return etag
}

// bare returns an ETag without its quotes.
func bare(etag string) string { return strings.Trim(etag, `"`) }

// is returns an error unless the response has that status.
func (got reply) is(status int) error {
	if got.status != status {
		return fmt.Errorf("got %d %s, want %d", got.status, strings.TrimSpace(got.body), status)
	}
	return nil
}

// wantConfig waits until the service serves that config, or none if it is "".
func (s *service) wantConfig(t testing.TB, tenant, config string) {
	t.Helper()
	waittest.Eventually(t, time.Second+busy, func() error {
		got := s.admin(t, "GET", "/"+tenant+"/admin/config", "")
		if config == "" {
			return got.is(400)
		}
		if want := `{"config":` + config + "}\n"; got.body != want {
			return fmt.Errorf("got %d %s, want %s", got.status, got.body, want)
		}
		return nil
	})
}
