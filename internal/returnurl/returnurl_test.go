package returnurl

import (
	"net/url"
	"strings"
	"testing"
)

func TestParseBase(t *testing.T) {
	for text, want := range map[string]bool{
		"https://app.example.com/":                      true,
		"https://app.example.com/app":                   true,
		"https://APP.example.com:8443/a/b/":             true,
		"https://app.example.com/caf%C3%A9/":            true,
		"https://192.0.2.1/":                            true,
		"https://[2001:db8::1]:8443/":                   true,
		"https://xn--bcher-kva.example/":                true,
		"https://a/" + strings.Repeat("p", maxBytes-10): true,
		"http://localhost/":                             true,
		"http://LOCALHOST:3000/shop":                    true,
		"http://127.0.0.1:8080/":                        true,
		"http://[::1]:8080/":                            true,

		"":                                             false,
		"/":                                            false,
		"//app.example.com/":                           false,
		"app.example.com/":                             false,
		"https://app.example.com":                      false, // no path
		"https://app.example.com?x":                    false,
		"https://app.example.com/?x":                   false,
		"https://app.example.com/?":                    false,
		"https://app.example.com/#x":                   false,
		"https://app.example.com/#":                    false,
		"https://user@app.example.com/":                false,
		"https://@app.example.com/":                    false,
		"https://app.example.com/a/../b":               false,
		"https://app.example.com/./":                   false,
		"https://app.example.com/..":                   false,
		"https://app.example.com/%2e/":                 false,
		"https://app.example.com//":                    false,
		"https://app.example.com/a%2fb":                false,
		"https://app.example.com\\":                    false,
		"https://app.example.com/\\":                   false,
		"https://app.example.com/%5c":                  false,
		"https://app.example.com/ ":                    false,
		" https://app.example.com/":                    false,
		"https://app.example.com/\n":                   false,
		"https://app.example.com/%0a":                  false,
		"https://bücher.example/":                      false,
		"https://b%C3%BCcher.example/":                 false,
		"https://%C5%A1.example/":                      false, // its last eight bits are those of a letter
		"https://*.example.com/":                       false,
		"https://a,b/":                                 false,
		"https:///":                                    false,
		"https:app.example.com/":                       false,
		"https://:443/":                                false,
		"https://app.example.com:0/":                   false,
		"https://app.example.com:65536/":               false,
		"https://app.example.com:x/":                   false,
		"https://[fe80::1%25eth0]/":                    false,
		"http://app.example.com/":                      false,
		"http://localhost.example.com/":                false,
		"http://127.0.0.2/":                            false,
		"http://[::2]/":                                false,
		"javascript:alert(1)":                          false,
		"ftp://app.example.com/":                       false,
		"app://x/":                                     false,
		"https://a/" + strings.Repeat("p", maxBytes-9): false,
	} {
		if _, ok := ParseBase(text); ok != want {
			t.Errorf("%.60q: got %v, want %v", text, ok, want)
		}
	}
}

// parse returns the bases of texts.
func parse(t testing.TB, texts ...string) (bases Bases) {
	t.Helper()
	for _, text := range texts {
		base, ok := ParseBase(text)
		if !ok {
			t.Fatalf("%q is not a base", text)
		}
		bases = append(bases, base)
	}
	return bases
}

func TestAllow(t *testing.T) {
	bases := parse(t, "https://app.example.com/app/", "https://Shop.example.com:8443/buy", "http://localhost:3000/", "http://[::1]/x")
	for text, want := range map[string]bool{
		"https://app.example.com/app/":                                 true,
		"https://app.example.com/app/ok?s={CHECKOUT_SESSION_ID}":       true,
		"https://app.example.com/app/{CHECKOUT_SESSION_ID}/ok#/a?b":    true,
		"https://app.example.com/app/a/../b":                           true,
		"https://app.example.com/app/a/..":                             true,
		"https://app.example.com/app/a/%2E%2e/.":                       true,
		"https://app.example.com/x/../app/":                            true,
		"https://app.example.com/app/?next=https://evil.example/%0d%0": true, // the page's own matter
		"https://app.example.com/app/caf%C3%A9":                        true,
		"https://app.example.com/app/a%20b":                            true,
		"https://APP.EXAMPLE.COM/app/":                                 true,
		"HTTPS://app.example.com/app/":                                 true,
		"https://app.example.com:443/app/":                             true,
		"https://app.example.com:/app/":                                true,
		"https://app.example.com/%61pp/":                               true,
		"https://shop.example.com:8443/buy":                            true,
		"https://shop.example.com:8443/buy/":                           true,
		"https://shop.example.com:8443/buy/x":                          true,
		"https://shop.example.com:8443/buy?x":                          true,
		"http://localhost:3000":                                        true,
		"http://localhost:3000?x":                                      true,
		"http://[::1]:80/x":                                            true,

		"":                                                             false,
		"https://app.example.com/":                                     false,
		"https://app.example.com/app":                                  false,
		"https://app.example.com/App/":                                 false,
		"https://app.example.com/apple/":                               false,
		"https://shop.example.com:8443/buyer":                          false,
		"https://shop.example.com:8443/":                               false,
		"https://shop.example.com/buy":                                 false,
		"https://shop.example.com:08443/buy":                           false,
		"http://app.example.com/app/":                                  false,
		"http://app.example.com:443/app/":                              false,
		"https://localhost:3000/":                                      false,
		"http://localhost:80/":                                         false,
		"http://127.0.0.1:3000/":                                       false,
		"http://[0:0:0:0:0:0:0:1]/x":                                   false,
		"https://app.example.com/app/../x":                             false,
		"https://app.example.com/app/..":                               false,
		"https://app.example.com/app/%2e%2e/x":                         false,
		"https://app.example.com/app/.%2E/x":                           false,
		"https://app.example.com/app/..%2fx":                           false,
		"https://app.example.com/app/..%2Fx":                           false,
		"https://app.example.com/app/..%5cx":                           false,
		"https://app.example.com/app/..\\x":                            false,
		"https://app.example.com/app%2fx":                              false,
		"https://app.example.com//app/":                                false,
		"https://app.example.com/evil//../app/":                        false, // to a browser /evil/app/
		"https://app.example.com/app//../../x":                         false,
		"https://app.example.com/app/%00":                              false,
		"https://app.example.com/app/%7f":                              false,
		"https://app.example.com/app/\t":                               false,
		"https://app.example.com/app/é":                                false,
		"https:app.example.com/app/":                                   false,
		"https:/app.example.com/app/":                                  false,
		"https:///app.example.com/app/":                                false,
		"https:\\\\app.example.com/app/":                               false,
		"//app.example.com/app/":                                       false,
		"/app/":                                                        false,
		"https://app.example.com@evil.example/app/":                    false,
		"https://app.example.com:443@evil.example/app/":                false,
		"https://evil.example\\@app.example.com/app/":                  false,
		"https://evil.example@app.example.com/app/":                    false,
		"https://app.example.com%40evil.example/app/":                  false,
		"https://app.example.com%2eevil.example/app/":                  false,
		"https://app.example.com.evil.example/app/":                    false,
		"https://app.example.com./app/":                                false,
		"https://app.example.com%00.evil.example/app/":                 false,
		"https://app%E3%80%82example.com/app/":                         false, // an ideographic full stop
		"https://\uff41pp.example.com/app/":                            false,
		"https://{CHECKOUT_SESSION_ID}.example.com/app/":               false,
		"javascript://app.example.com/app/%0aalert(1)":                 false,
		"data:text/html,https://app.example.com/app/":                  false,
		"https://evil.example/https://app.example.com/":                false,
		"https://evil.example?https://app.example.com/":                false,
		"https://evil.example#https://app.example.com/":                false,
		"https://app.example.com/app/" + strings.Repeat("a", maxBytes): false,
	} {
		if got := bases.Allow(text); got != want {
			t.Errorf("%.80q: got %v, want %v", text, got, want)
		}
	}
	if Bases(nil).Allow("https://app.example.com/") {
		t.Error("no bases allow something")
	}
	if small, large := bases[:1].Bytes(), bases.Bytes(); small < len("https://app.example.com/app/") || large <= small {
		t.Errorf("got %d and %d bytes", small, large)
	}
}

// browserPath resolves the dot segments of a path as browsers do (https://url.spec.whatwg.org/#path-state).
func browserPath(escaped string) string {
	segments := strings.Split(strings.TrimPrefix(escaped, "/"), "/")
	var kept []string
	for i, segment := range segments {
		last := i == len(segments)-1
		switch strings.ReplaceAll(strings.ToLower(segment), "%2e", ".") {
		case ".":
		case "..":
			kept = kept[:max(len(kept)-1, 0)]
		default:
			kept = append(kept, segment)
			last = false
		}
		if last {
			kept = append(kept, "")
		}
	}
	return "/" + strings.Join(kept, "/")
}

// Whatever is allowed leads to the base's origin, and as browsers resolve it to a path below the base's.
func FuzzAllow(f *testing.F) {
	for _, text := range []string{
		"https://app.example.com/app/", "https://app.example.com:443/app/a/../%2e?x#y", "https://x@app.example.com/app/",
		"https://app.example.com/app/..//x", "https://app.example.com\\app/", "https://app.example.com/%61pp/./..",
	} {
		f.Add(text)
	}
	bases := parse(f, "https://app.example.com/app/")
	f.Fuzz(func(t *testing.T, text string) {
		if !bases.Allow(text) {
			return
		}
		scheme, rest, _ := strings.Cut(text, "://")
		end := strings.IndexAny(rest, "/?#\\")
		if !strings.EqualFold(scheme, "https") || end < 0 {
			t.Fatalf("%q", text)
		}
		host := strings.ToLower(rest[:end])
		if host != "app.example.com" && host != "app.example.com:443" && host != "app.example.com:" {
			t.Errorf("%q leads to the host %q", text, host)
		}
		escaped := rest[end:]
		if cut := strings.IndexAny(escaped, "?#"); cut >= 0 {
			escaped = escaped[:cut]
		}
		decoded, err := url.PathUnescape(browserPath(escaped))
		if err != nil || !strings.HasPrefix(decoded, "/app/") || strings.Contains(decoded, "\\") {
			t.Errorf("%q leads to the path %q, %v", text, decoded, err)
		}
	})
}
