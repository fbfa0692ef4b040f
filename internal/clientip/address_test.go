package clientip

import (
	"net/http"
	"net/netip"
	"testing"
)

// trusted are the proxies of these tests.
var trusted = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("::1/128")}

func TestOf(t *testing.T) {
	tests := []struct {
		name, peer string
		forwarded  []string
		want       string
	}{
		{"IPv4", "192.0.2.1:1234", nil, "192.0.2.1"},
		{"IPv6", "[2001:db8:1:2:3::4]:1234", nil, "2001:db8:1:2::/64"},
		{"IPv6 with a zone", "[fe80::1%eth0]:1234", nil, "fe80::/64"},
		{"IPv4 in IPv6", "[::ffff:192.0.2.1]:1234", nil, "192.0.2.1"},
		{"forwarded by a stranger", "192.0.2.1:1234", []string{"203.0.113.9"}, "192.0.2.1"},
		{"a proxy itself", "10.0.0.1:1234", nil, "10.0.0.1"},
		{"forwarded by a proxy", "10.0.0.1:1234", []string{"203.0.113.9"}, "203.0.113.9"},
		{"the client wrote the first itself", "10.0.0.1:1234", []string{"6.6.6.6, 203.0.113.9"}, "203.0.113.9"},
		{"two proxies", "10.0.0.1:1234", []string{"6.6.6.6,203.0.113.9 , 10.2.2.2"}, "203.0.113.9"},
		{"a header each", "10.0.0.1:1234", []string{"6.6.6.6", "203.0.113.9", "10.2.2.2"}, "203.0.113.9"},
		{"with a port", "10.0.0.1:1234", []string{"203.0.113.9:555"}, "203.0.113.9"},
		{"IPv6 with a port", "10.0.0.1:1234", []string{"[2001:db8::1]:555"}, "2001:db8::/64"},
		{"over IPv6", "[::1]:1234", []string{"2001:db8::1"}, "2001:db8::/64"},
		{"proxies alone", "10.0.0.1:1234", []string{"10.3.3.3"}, "10.3.3.3"},
		{"not an address", "10.0.0.1:1234", []string{"203.0.113.9, unknown, 10.2.2.2"}, "10.2.2.2"},
		{"an empty header", "10.0.0.1:1234", []string{""}, "10.0.0.1"},
		{"a Unix socket", "@", []string{"203.0.113.9"}, "@"},
		{"an empty element", "10.0.0.1:1234", []string{"203.0.113.9,"}, "10.0.0.1"},
	}
	for _, test := range tests {
		r := &http.Request{RemoteAddr: test.peer, Header: http.Header{"X-Forwarded-For": test.forwarded}}
		if got := Of(r, trusted); got != test.want {
			t.Errorf("%s: got %s, want %s", test.name, got, test.want)
		}
	}
}

func TestUntrustedProxy(t *testing.T) {
	for _, test := range []struct {
		name, peer string
		forwarded  []string
		want       string
	}{
		{"a client", "192.0.2.1:1234", nil, ""},
		{"a proxy that is not trusted", "192.0.2.1:1234", []string{"203.0.113.9"}, "192.0.2.1"},
		{"one over IPv6", "[2001:db8:1:2:3::4]:1234", []string{"203.0.113.9"}, "2001:db8:1:2:3::4"},
		{"an empty header", "192.0.2.1:1234", []string{""}, "192.0.2.1"},
		{"a trusted one", "[::ffff:10.0.0.1]:1234", []string{"203.0.113.9"}, ""},
		{"a Unix socket", "@", []string{"203.0.113.9"}, ""},
	} {
		r := &http.Request{RemoteAddr: test.peer, Header: http.Header{"X-Forwarded-For": test.forwarded}}
		got, ok := UntrustedProxy(r, trusted)
		if ok != (test.want != "") || ok && got.String() != test.want {
			t.Errorf("%s: got %s, %v, want %q", test.name, got, ok, test.want)
		}
	}
}

func FuzzOf(f *testing.F) {
	f.Add("10.0.0.1:1", "1.2.3.4, ::1")
	f.Add("[fe80::1%eth0]:1", "")
	f.Add("[::1]:1", "x,[::1]:2,1.2.3.4:5,::ffff:1.2.3.4,fe80::1%a:b")
	all := []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}
	f.Fuzz(func(t *testing.T, peer, forwarded string) {
		if _, err := netip.ParseAddrPort(peer); err != nil {
			return // net/http never has such a peer
		}
		got := Of(&http.Request{RemoteAddr: peer, Header: http.Header{"X-Forwarded-For": {forwarded}}}, all)
		if address, err := netip.ParseAddr(got); err == nil && address.Is4() {
			return
		}
		if prefix, err := netip.ParsePrefix(got); err != nil || prefix.Bits() != 64 || prefix.Masked() != prefix {
			t.Errorf("%q %q: got %q", peer, forwarded, got)
		}
	})
}
