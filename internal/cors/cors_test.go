package cors

import (
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"tollgate/internal/strict"
)

func TestRead(t *testing.T) {
	const one, alone = "[0] must be an origin such as https://app.example.com, or the only one *",
		"must have * as its only entry, or not at all"
	for _, test := range []struct{ origins, problem, want string }{
		{`[]`, "", ""}, {`["*"]`, "", "*"}, {`["https://a.example"]`, "", "https://a.example"},
		{`["http://127.0.0.1:3000","http://[::1]:3000"]`, "", "http://127.0.0.1:3000 http://[::1]:3000"},
		{`["https://xn--bcher-kva.example"]`, "", "https://xn--bcher-kva.example"},
		{`["HTTPS://A.example:8443"]`, "", "https://a.example:8443"},
		{`["https://a.example:443","http://a.example:80"]`, "", "https://a.example http://a.example"},
		{`["https://a.example:80","http://a.example:443"]`, "", "https://a.example:80 http://a.example:443"},
		{`"*"`, "must be an array", ""}, {`[7]`, one, ""}, {`[""]`, one, ""}, {`["null"]`, one, ""}, {`["a.example"]`, one, ""},
		{`["https://"]`, one, ""}, {`["https://a.example/"]`, one, ""}, {`["https://a.example/x"]`, one, ""},
		{`["https://a.example?x"]`, one, ""}, {`["https://a.example#"]`, one, ""}, {`["https://u@a.example"]`, one, ""},
		{`["ftp://a.example"]`, one, ""}, {`["https://*.example"]`, one, ""}, {`["https://a.example:"]`, one, ""},
		{`["https://a.example:0"]`, one, ""}, {`["https://a.example:65536"]`, one, ""}, {`["https://a b"]`, one, ""},
		{`["https://bücher.example"]`, one, ""}, {`["x","https://b.example"]`, one, "https://b.example"},
		{`["*","https://a.example"]`, alone, "* https://a.example"}, {`["https://a.example","*"]`, alone, "https://a.example *"},
	} {
		var origins Origins
		var wrong strict.Problems
		ok := origins.Read(&wrong, []byte(test.origins))
		if got := strings.Join(wrong.Sentences, "; "); got != test.problem || ok != (got == "") {
			t.Errorf("%s: got %q, %v, want %q", test.origins, got, ok, test.problem)
		}
		if got := strings.Join(origins, " "); got != test.want || origins == nil {
			t.Errorf("%s: got %q, want %q", test.origins, origins, test.want)
		}
	}
}

// request returns a request with these headers, each as it is on the wire.
func request(method string, headers ...string) *http.Request {
	r := httptest.NewRequest(method, "/", nil)
	for _, header := range headers {
		name, value, _ := strings.Cut(header, ": ")
		r.Header.Add(name, value)
	}
	return r
}

// wantHeaders checks all headers of a response.
func wantHeaders(t *testing.T, got http.Header, want map[string]string) {
	t.Helper()
	has := make(map[string]string)
	for name, values := range got {
		has[name] = strings.Join(values, "|")
	}
	if !maps.Equal(has, want) {
		t.Errorf("got %q, want %q", has, want)
	}
}

func TestAllow(t *testing.T) {
	some, all := Origins{"https://a.example", "http://localhost:3000"}, Origins{"*"}
	for _, test := range []struct {
		origins Origins
		headers []string
		want    string // the origin that is allowed
	}{
		{some, []string{"Origin: https://a.example"}, "https://a.example"},
		{some, []string{"Origin: http://localhost:3000"}, "http://localhost:3000"},
		{some, []string{"Origin: HTTPS://A.example"}, "HTTPS://A.example"},
		{some, []string{"Origin: https://a.example.evil.org"}, ""},
		{some, []string{"Origin: http://a.example"}, ""},
		{some, []string{"Origin: https://a.example:8443"}, ""},
		{some, []string{"Origin: null"}, ""},
		{some, []string{"Origin: *"}, ""},
		{some, []string{"Origin: "}, ""},
		{some, []string{"Origin: https://a.example", "Origin: https://a.example"}, ""},
		{some, nil, ""},
		{all, []string{"Origin: https://b.example"}, "*"},
		{all, []string{"Origin: null"}, "*"},
		{all, nil, ""},
		{Origins{}, []string{"Origin: https://a.example"}, ""},
		{nil, []string{"Origin: https://a.example"}, ""},
	} {
		t.Run(fmt.Sprint(test.origins, test.headers), func(t *testing.T) {
			h := make(http.Header)
			if got := test.origins.Allow(h, request("GET", test.headers...), []string{"X-A, X-B"}); got != (test.want != "") {
				t.Errorf("got %v, want the origin %q", got, test.want)
			}
			want := make(map[string]string)
			if test.origins != nil {
				want["Vary"] = "Origin"
			}
			if test.want != "" {
				want["Access-Control-Allow-Origin"], want["Access-Control-Expose-Headers"] = test.want, "X-A, X-B"
			}
			wantHeaders(t, h, want)
		})
	}
}

func TestIsPreflight(t *testing.T) {
	const origin, asks = "Origin: https://a.example", "Access-Control-Request-Method: POST"
	for _, test := range []struct {
		method  string
		headers []string
		want    bool
	}{
		{"OPTIONS", []string{origin, asks}, true},
		{"OPTIONS", []string{asks}, false},
		{"OPTIONS", []string{origin}, false},
		{"GET", []string{origin, asks}, false},
		{"options", []string{origin, asks}, false},
	} {
		if got := IsPreflight(request("GET", test.headers...), test.method); got != test.want {
			t.Errorf("%s %q: got %v, want %v", test.method, test.headers, got, test.want)
		}
	}
}

func TestWritePreflight(t *testing.T) {
	const asks = "Access-Control-Request-Headers: "
	for _, headers := range [][]string{nil, {asks + "authorization,content-type"}, {asks + "a", asks + "b"}} {
		w := httptest.NewRecorder()
		r := request("OPTIONS", slices.Concat(headers, []string{"Origin: https://a.example"})...)
		for _, name := range []string{"Allow", "Content-Type", "X-Content-Type-Options"} { // of a 405
			w.Header().Set(name, "x")
		}
		Origins{"*"}.Allow(w.Header(), r, []string{"X-A"})
		WritePreflight(w, r, "GET, HEAD")
		want := map[string]string{
			"Vary": "Origin", "Access-Control-Allow-Origin": "*", "Access-Control-Allow-Methods": "GET, HEAD",
			"Access-Control-Max-Age": "600",
		}
		if len(headers) > 0 {
			want["Access-Control-Allow-Headers"] = strings.ReplaceAll(strings.Join(headers, ", "), asks, "")
		}
		wantHeaders(t, w.Header(), want)
		if w.Code != http.StatusNoContent {
			t.Errorf("got %d, want 204", w.Code)
		}
	}
}

// A request is refused if it has an origin, and only if somebody has said which are allowed.
func TestRefuse(t *testing.T) {
	const a, b = "Origin: https://a.example", "Origin: https://b.example"
	for _, test := range []struct {
		origins Origins
		headers []string
		want    bool
	}{
		{nil, nil, false}, {nil, []string{a}, false}, {nil, []string{"Origin: null"}, false},
		{Origins{}, nil, false}, {Origins{}, []string{a}, true},
		{Origins{"*"}, []string{a}, false}, {Origins{"*"}, []string{"Origin: null"}, false},
		{Origins{"https://a.example"}, nil, false}, {Origins{"https://a.example"}, []string{a}, false},
		{Origins{"https://a.example"}, []string{"Origin: HTTPS://A.example"}, false},
		{Origins{"https://a.example"}, []string{b}, true}, {Origins{"https://a.example"}, []string{"Origin: null"}, true},
		{Origins{"https://a.example"}, []string{"Origin: "}, true}, {Origins{"https://a.example"}, []string{a, a}, true},
	} {
		if got := test.origins.Refuse(request("GET", test.headers...)); got != test.want {
			t.Errorf("%q, %q: got %v, want %v", test.origins, test.headers, got, test.want)
		}
	}
}
