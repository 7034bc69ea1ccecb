package packet

import "net/netip"

// nat64 is the well-known prefix of IPv6 forms of IPv4 addresses, which a
// translator on the way turns back. Source: RFC 6052 section 2.1.
var nat64 = netip.MustParsePrefix("64:ff9b::/96")

// Judged returns the address that policy judges an end of a flow by: as Unmap,
// and the IPv4 address that an address of the well-known NAT64 prefix stands for,
// so that a denied address has no second form that is not.
func Judged(a netip.Addr) netip.Addr {
	a = Unmap(a)
	if !nat64.Contains(a) {
		return a
	}
	b := a.As16()
	return netip.AddrFrom4([4]byte(b[12:]))
}

// JudgedPrefix is Judged for a network: one inside ::ffff:0:0/96 or 64:ff9b::/96
// is the IPv4 network that it stands for, any other is p itself.
func JudgedPrefix(p netip.Prefix) netip.Prefix {
	a := p.Addr()
	if p.Bits() < 96 || (!a.Is4In6() && !nat64.Contains(a)) {
		return p
	}
	return netip.PrefixFrom(Judged(a), p.Bits()-96)
}
