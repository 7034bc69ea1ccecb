package packettest

import (
	"encoding/binary"
	"net/netip"
)

// GRE is a GRE header without optional fields. Source: RFC 2784.
type GRE struct {
	Type *uint16 // nil: by the next layer
}

func (h GRE) marshal(p pseudo, rest []Layer) []byte {
	b := binary.BigEndian.AppendUint16([]byte{0, 0}, nextEtherType(h.Type, rest))
	return append(b, marshalAll(p, rest)...)
}
func (GRE) etherType() uint16 { return 0 }
func (GRE) proto() int        { return 47 }

// VXLAN is a VXLAN header; it follows UDP (port 4789 or 8472) and an Eth follows it.
// Source: RFC 7348 section 5.
type VXLAN struct{ VNI uint32 }

func (h VXLAN) marshal(p pseudo, rest []Layer) []byte {
	b := binary.BigEndian.AppendUint32([]byte{8, 0, 0, 0}, h.VNI<<8)
	return append(b, marshalAll(p, rest)...)
}
func (VXLAN) etherType() uint16 { return 0 }
func (VXLAN) proto() int        { return noProto }

// NeighborSolicitation returns the layers of "who has target", answered to
// from, after an IPv6 header. Source: RFC 4861 section 4.3.
func NeighborSolicitation(target netip.Addr, from MAC) []Layer {
	body := append(addr16(target), 1, 1) // option source link-layer address
	return []Layer{ICMPv6{Type: NDNeighborSolicitation}, Payload(append(body, from[:]...))}
}

// NeighborAdvertisement returns the layers of "target is at mac", after an
// IPv6 header. Source: RFC 4861 section 4.4.
func NeighborAdvertisement(target netip.Addr, mac MAC, router, solicited, override bool) []Layer {
	var flags uint16
	for i, on := range []bool{router, solicited, override} {
		if on {
			flags |= 0x8000 >> i
		}
	}
	body := append(addr16(target), 2, 1) // option target link-layer address
	return []Layer{ICMPv6{Type: NDNeighborAdvertisement, ID: flags}, Payload(append(body, mac[:]...))}
}

// RouterAdvertisement returns the layers of a router advertisement with one
// prefix for address configuration, after an IPv6 header. Source: RFC 4861 section 4.2.
func RouterAdvertisement(prefix netip.Prefix, lifetimeSeconds uint16, router MAC) []Layer {
	b := make([]byte, 8) // reachable time and retransmit timer: unspecified
	b = append(b, 1, 1)
	b = append(b, router[:]...)
	b = append(b, 3, 4, uint8(prefix.Bits()), 0xc0)
	b = binary.BigEndian.AppendUint32(b, uint32(lifetimeSeconds))
	b = binary.BigEndian.AppendUint32(b, uint32(lifetimeSeconds))
	b = append(b, 0, 0, 0, 0)
	b = append(b, addr16(prefix.Addr())...)
	return []Layer{
		ICMPv6{Type: NDRouterAdvertisement, ID: 64 << 8, Seq: lifetimeSeconds},
		Payload(b),
	}
}

// SolicitedNode returns the multicast group that a neighbour solicitation for a goes to.
func SolicitedNode(a netip.Addr) netip.Addr {
	b := a.As16()
	g := [16]byte{0xff, 0x02, 11: 1, 12: 0xff, 13: b[13], 14: b[14], 15: b[15]}
	return netip.AddrFrom16(g)
}
