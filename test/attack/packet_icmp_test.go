//go:build linux

package attack

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/postern-dev/postern/internal/packet/packettest"
)

// echo builds an ICMP or ICMPv6 layer.
func echo(v int, reply bool, id uint16) packettest.Layer {
	if v == 0 {
		typ := uint8(packettest.ICMPEchoRequest)
		if reply {
			typ = packettest.ICMPEchoReply
		}
		return packettest.ICMP{Type: typ, ID: id, Seq: 1}
	}
	typ := uint8(packettest.ICMPv6EchoRequest)
	if reply {
		typ = packettest.ICMPv6EchoReply
	}
	return packettest.ICMPv6{Type: typ, ID: id, Seq: 1}
}

// icmpError builds the start of "unreachable".
func icmpError(v int) packettest.Layer {
	if v == 0 {
		return packettest.ICMP{Type: packettest.ICMPUnreachable, Code: 3}
	}
	return packettest.ICMPv6{Type: packettest.ICMPv6Unreachable, Code: 4}
}

func icmpAttacks() []attack {
	return []attack{
		{id: "PKT-27", off: open, try: func(x *try) {
			for v := range 2 {
				for name, to := range map[string]netip.Addr{"a denied address": evil(v), "an address allowed for TCP and UDP": web(v)} {
					x.denied("echo request to "+name+" "+family(v), isolation, func(tok packettest.Token) []byte {
						return x.ip(to, echo(v, false, x.port()), tok)
					}, everyMode...)
					tok := x.attackToken("ping socket to "+name+" "+family(v), 1)
					ctx, cancel := context.WithTimeout(x.Context(), 30*time.Millisecond)
					_ = x.pod.Ping(ctx, to, tok[:]) // no answer is what we want
					cancel()
					x.expect(isolation, 1)
				}
			}
		}},
		{id: "PKT-28", off: open, try: func(x *try) {
			// payments/api may reach the pod (the pod's ingress), not the other way.
			other := x.w.pod("payments/api")
			for v := range 2 {
				peer := other.IP(web(v))
				id := x.port()
				ping := packettest.Build(other.Eth(), ipHeader(peer, x.src(peer)), echo(v, false, id), x.controlToken("their request "+family(v)))
				x.sendFrom(other, 0, ping)
				time.Sleep(5 * time.Millisecond)
				x.denied("our request with their id "+family(v), isolation, func(tok packettest.Token) []byte {
					return x.ip(peer, echo(v, false, id), tok)
				})
				x.denied("a reply to nothing "+family(v), "no-flow", func(tok packettest.Token) []byte {
					return x.ip(peer, echo(v, true, x.port()), tok)
				})
				x.allowed("a reply to their request "+family(v), func(tok packettest.Token) []byte { return x.ip(peer, echo(v, true, id), tok) })
				x.denied("a datagram to them "+family(v), isolation, func(tok packettest.Token) []byte { return x.udp(peer, 7, tok) })
			}
		}},
		{id: "PKT-29", off: open, try: func(x *try) {
			for v := range 2 {
				inner := func(from, to netip.Addr, port uint16) []packettest.Layer {
					return []packettest.Layer{ipHeader(from, to), packettest.UDP{SrcPort: 4000, DstPort: port}}
				}
				for name, to := range map[string]netip.Addr{"a denied address": evil(v), "an allowed one": web(v)} {
					x.denied("error about a packet that never was, to "+name+" "+family(v), "icmp-error", func(tok packettest.Token) []byte {
						return x.ip(to, append(append([]packettest.Layer{icmpError(v)}, inner(to, x.src(to), 4001)...), tok)...)
					})
					x.denied("error without a packet inside, to "+name+" "+family(v), "icmp-error", func(tok packettest.Token) []byte {
						return x.ip(to, icmpError(v), tok)
					})
				}
				// A live flow to web: an error about it may go to web, and to nobody else.
				port := x.port()
				flow := func(layers ...packettest.Layer) []byte {
					return x.ip(web(v), append([]packettest.Layer{packettest.UDP{SrcPort: port, DstPort: controlPort}}, layers...)...)
				}
				x.allowed("a flow "+family(v), func(tok packettest.Token) []byte { return flow(tok) })
				about := []packettest.Layer{ipHeader(web(v), x.src(web(v))), packettest.UDP{SrcPort: controlPort, DstPort: port}}
				x.allowed("error about it "+family(v), func(tok packettest.Token) []byte {
					return x.ip(web(v), append(append([]packettest.Layer{icmpError(v)}, about...), tok)...)
				})
				x.denied("error about it to somebody else "+family(v), "icmp-error", func(tok packettest.Token) []byte {
					return x.ip(evil(v), append(append([]packettest.Layer{icmpError(v)}, about...), tok)...)
				})
				x.denied("error about it with 1400 bytes "+family(v), "icmp-error", func(tok packettest.Token) []byte {
					return x.ip(web(v), append(append([]packettest.Layer{icmpError(v)}, about...), tok, packettest.Payload(make([]byte, 1400)))...)
				})
			}
			x.denied("redirect", "icmp-error", func(tok packettest.Token) []byte {
				return x.ip(web(0), packettest.ICMP{Type: packettest.ICMPRedirect}, packettest.IPv4{Src: web(0), Dst: x.src(web(0))}, packettest.UDP{SrcPort: 1, DstPort: 2}, tok)
			})
		}},
		{id: "PKT-54", off: absent, try: func(x *try) {
			own := x.src(web(1))
			b := own.As16()
			b[14], b[15] = 0xee, 0xee
			unused := netip.AddrFrom16(b)
			solicit := func(front []packettest.Layer, tok packettest.Token, back ...byte) []byte {
				layers := append([]packettest.Layer{x.pod.Eth(), packettest.IPv6{Src: own, Dst: unused, HopLimit: new(uint8(255))}}, front...)
				return append(packettest.Build(append(layers, packettest.NeighborSolicitation(netip.AddrFrom16(tok), x.pod.MAC())...)...), back...)
			}
			x.denied("to an unused address, the token its target", "ndp", func(tok packettest.Token) []byte { return solicit(nil, tok) })
			x.denied("behind destination options", "ndp", func(tok packettest.Token) []byte {
				return solicit([]packettest.Layer{packettest.DestOpts{Options: append([]byte{0x1e, 16}, tok[:]...)}}, packettest.NewToken("target"))
			})
			x.denied("behind a hop-by-hop header", "ndp", func(tok packettest.Token) []byte {
				return solicit([]packettest.Layer{packettest.HopByHop{Options: append([]byte{0x1e, 16}, tok[:]...)}}, packettest.NewToken("target"))
			})
			x.denied("in front of more bytes", "malformed", func(tok packettest.Token) []byte { return solicit(nil, packettest.NewToken("target"), tok[:]...) })
			x.maybe()
		}},
		{id: "PKT-31", off: absent, try: func(x *try) {
			for typ := range 256 {
				reason := isolation
				switch {
				case typ == 129:
					reason = "no-flow"
				case typ < 128:
					reason = "icmp-error"
				case typ >= 130 && typ <= 137, typ == 143:
					reason = "ndp"
				}
				x.denied(fmt.Sprintf("ICMPv6 type %d", typ), reason, func(tok packettest.Token) []byte {
					return packettest.Build(x.pod.Eth(), packettest.IPv6{Src: x.src(evil(1)), Dst: evil(1)}, packettest.ICMPv6{Type: uint8(typ)}, packettest.Payload(make([]byte, 16)), tok)
				})
			}
			// Neighbour discovery as it should be, but for what it carries.
			gw := x.w.node.Gateways[1]
			own := x.src(gw)
			onlink := func(src, dst netip.Addr, hop uint8, layers ...packettest.Layer) []byte {
				eth := x.pod.Eth()
				if dst.IsMulticast() {
					eth.Dst = packettest.MulticastMAC(dst)
				}
				return packettest.Build(append([]packettest.Layer{eth, packettest.IPv6{Src: src, Dst: dst, HopLimit: new(hop)}}, layers...)...)
			}
			for name, layers := range map[string][]packettest.Layer{
				"solicitation with a payload":         append(packettest.NeighborSolicitation(gw, x.pod.MAC()), packettest.Payload(make([]byte, 8))),
				"advertisement with a payload":        append(packettest.NeighborAdvertisement(own, x.pod.MAC(), false, true, true), packettest.Payload(make([]byte, 8))),
				"solicitation with an unknown option": append(packettest.NeighborSolicitation(gw, x.pod.MAC()), packettest.Payload{99, 3, 0, 0, 0, 0, 0, 0}),
				"advertisement, solicited form":       {packettest.ICMPv6{Type: packettest.NDNeighborAdvertisement}},
			} {
				x.denied(name, "ndp", func(tok packettest.Token) []byte { return onlink(own, gw, 255, append(layers, tok)...) })
			}
			x.denied("solicitation to the world", "ndp", func(tok packettest.Token) []byte {
				return onlink(own, evil(1), 255, append(packettest.NeighborSolicitation(gw, x.pod.MAC()), tok)...)
			})
			x.deniedMaybe("solicitation, hop limit 64", "ndp", func(tok packettest.Token) []byte {
				return onlink(own, gw, 64, append(packettest.NeighborSolicitation(gw, x.pod.MAC()), tok)...)
			})
			ll := linkLocal(x.pod.MAC())
			all := netip.MustParseAddr("ff02::16")
			for name, body := range map[string][]byte{
				"listener report with data behind its records":    {0, 0, 0, 0},
				"listener report that says it has auxiliary data": append([]byte{0, 0, 0, 1, 4, 4, 0, 0}, netip.MustParseAddr("ff02::1:ff00:1").AsSlice()...),
			} {
				x.denied(name, "ndp", func(tok packettest.Token) []byte {
					m := packettest.ICMPv6{Type: 143, ID: be16(body), Seq: be16(body[2:])}
					return onlink(ll, all, 1, m, packettest.Payload(body[4:]), tok)
				})
				x.maybe() // only a bridge carries it further
			}
			x.denied("listener query", "ndp", func(tok packettest.Token) []byte {
				return onlink(ll, netip.MustParseAddr("ff02::1"), 1, packettest.ICMPv6{Type: 130}, packettest.Payload(make([]byte, 16)), tok)
			})
			x.denied("old listener report with data", "ndp", func(tok packettest.Token) []byte {
				return onlink(ll, netip.MustParseAddr("ff02::1:ff00:1"), 1, packettest.ICMPv6{Type: 131}, packettest.Payload(netip.MustParseAddr("ff02::1:ff00:1").AsSlice()), tok)
			})
		}},
		{id: "PKT-32", off: absent, try: (*try).rogueRouter},
	}
}

// be16 reads a number in network order.
func be16(b []byte) uint16 { return uint16(b[0])<<8 | uint16(b[1]) }

// linkLocal is the address that the kernel makes of a MAC. Source: RFC 4291 appendix A.
func linkLocal(m packettest.MAC) netip.Addr {
	return netip.AddrFrom16([16]byte{0xfe, 0x80, 8: m[0] ^ 2, 9: m[1], 10: m[2], 11: 0xff, 12: 0xfe, 13: m[3], 14: m[4], 15: m[5]})
}
