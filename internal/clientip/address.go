// Package clientip says which client a request comes from, also if it comes through proxies.
package clientip

import (
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

// Of returns where a request comes from, as clients are counted: an IPv4 address, or the /64 of an IPv6 one, which is
// what one customer gets. X-Forwarded-For counts only as far as trusted proxies vouch for it: of its hops, from the
// last one back, the first that is not trusted itself. If the request did not come by TCP, it is its RemoteAddr.
func Of(r *http.Request, trusted []netip.Prefix) string {
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	address := peer.Addr().Unmap()
	hops := strings.Split(strings.Join(r.Header["X-Forwarded-For"], ","), ",")
	for i := len(hops) - 1; i >= 0 && isTrusted(address, trusted); i-- {
		hop, ok := parseHop(strings.TrimSpace(hops[i]))
		if !ok {
			break
		}
		address = hop
	}
	if address.Is4() {
		return address.String()
	}
	return netip.PrefixFrom(address.WithZone(""), 64).Masked().String()
}

// UntrustedProxy returns the address of the peer that sent a request with X-Forwarded-For although it is not trusted.
// ok is false if there is no such header, or the peer is trusted.
func UntrustedProxy(r *http.Request, trusted []netip.Prefix) (address netip.Addr, ok bool) {
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil || len(r.Header["X-Forwarded-For"]) == 0 {
		return netip.Addr{}, false
	}
	address = peer.Addr().Unmap()
	return address, !isTrusted(address, trusted)
}

// parseHop parses a hop of X-Forwarded-For, which some proxies write with its port.
func parseHop(hop string) (netip.Addr, bool) {
	if withPort, err := netip.ParseAddrPort(hop); err == nil {
		return withPort.Addr().Unmap(), true
	}
	address, err := netip.ParseAddr(hop)
	return address.Unmap(), err == nil
}

func isTrusted(address netip.Addr, trusted []netip.Prefix) bool {
	return slices.ContainsFunc(trusted, func(prefix netip.Prefix) bool { return prefix.Contains(address.WithZone("")) })
}
