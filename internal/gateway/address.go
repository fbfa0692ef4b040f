package gateway

import (
	"net/netip"
	"slices"
)

// DefaultDeny has the networks in which clouds keep the metadata and the credentials of their machines, in the form of
// -gateway-deny. TestDefaultDeny has a source for each.
const DefaultDeny = "169.254.0.0/16,fe80::/10," + // link-local: nearly all clouds
	"fd00:ec2::/32,fd20:ce::254/128," + // AWS, Google
	"168.63.129.16/32," + // Azure
	"100.100.100.200/32,fd00:100::100:200/128," + // Alibaba
	"192.0.0.192/32,fd00:c1::a9fe:a9fe/128," + // Oracle
	"fd00:42::42/128,fd00:a9fe:a9fe::1/128" // Scaleway, Akamai

// An embedding is a network of IPv6 whose addresses hold one of IPv4.
type embedding struct {
	network netip.Prefix
	at      [4]int // the bytes of the address that are the IPv4 one
	mask    byte   // with which each of them is xored
}

// embeddings are the networks whose addresses a router, a translator or the system may take for the IPv4 address in
// them. Translators may use any part of their local prefix, which has room for several lengths (RFC 6052, section 2.2).
var embeddings = [...]embedding{
	{netip.MustParsePrefix("::/96"), [4]int{12, 13, 14, 15}, 0},           // RFC 4291, section 2.5.5.1
	{netip.MustParsePrefix("::ffff:0:0:0/96"), [4]int{12, 13, 14, 15}, 0}, // RFC 2765, section 2.1
	{netip.MustParsePrefix("64:ff9b::/96"), [4]int{12, 13, 14, 15}, 0},    // RFC 6052, section 2.1
	{netip.MustParsePrefix("64:ff9b:1::/48"), [4]int{6, 7, 9, 10}, 0},     // RFC 8215; a prefix of 48 bits
	{netip.MustParsePrefix("64:ff9b:1::/48"), [4]int{7, 9, 10, 11}, 0},    // of 56
	{netip.MustParsePrefix("64:ff9b:1::/48"), [4]int{9, 10, 11, 12}, 0},   // of 64
	{netip.MustParsePrefix("64:ff9b:1::/48"), [4]int{12, 13, 14, 15}, 0},  // of 96
	{netip.MustParsePrefix("2002::/16"), [4]int{2, 3, 4, 5}, 0},           // 6to4: RFC 3056, section 2
	{netip.MustParsePrefix("2001::/32"), [4]int{4, 5, 6, 7}, 0},           // Teredo's server: RFC 4380, section 4
	{netip.MustParsePrefix("2001::/32"), [4]int{12, 13, 14, 15}, 0xff},    // its client
}

// isDenied reports whether deny has an address, or one that it may be taken for: the unspecified address is that of
// this machine, and an IPv6 address may hold an IPv4 one.
func isDenied(address netip.Addr, deny []netip.Prefix) bool {
	address = address.WithZone("").Unmap()
	same := []netip.Addr{address}
	switch {
	case address.IsUnspecified():
		same = append(same, netip.IPv6Loopback(), netip.AddrFrom4([4]byte{127, 0, 0, 1}))
	case address.Is6() && !address.IsLoopback():
		same = append(same, embedded(address)...)
	}
	return slices.ContainsFunc(same, func(a netip.Addr) bool {
		return slices.ContainsFunc(deny, func(prefix netip.Prefix) bool { return prefix.Contains(a) })
	})
}

// embedded returns the IPv4 addresses that an IPv6 address may hold.
func embedded(address netip.Addr) (all []netip.Addr) {
	b := address.As16()
	for _, e := range embeddings {
		if e.network.Contains(address) {
			ipv4 := [4]byte{b[e.at[0]] ^ e.mask, b[e.at[1]] ^ e.mask, b[e.at[2]] ^ e.mask, b[e.at[3]] ^ e.mask}
			all = append(all, netip.AddrFrom4(ipv4))
		}
	}
	if isatap := [4]byte{b[8] &^ 2, b[9], b[10], b[11]}; isatap == [4]byte{0, 0, 0x5e, 0xfe} { // RFC 5214, section 6.1
		all = append(all, netip.AddrFrom4([4]byte(b[12:])))
	}
	return all
}
