//go:build linux

package attack

import (
	"fmt"
	"net/netip"

	"github.com/postern-dev/postern/internal/lab"
	"github.com/postern-dev/postern/internal/packet/packettest"
)

// fragment is a piece of a datagram, at an offset in bytes.
func (x *try) fragment(to netip.Addr, proto uint8, id uint32, offset int, more bool, data ...[]byte) []byte {
	return x.fragmentFrom(x.src(to), to, proto, id, offset, more, data...)
}

func (x *try) fragmentFrom(from, to netip.Addr, proto uint8, id uint32, offset int, more bool, data ...[]byte) []byte {
	var piece []byte
	for _, d := range data {
		piece = append(piece, d...)
	}
	raw := packettest.Raw{Proto: proto, Data: piece}
	if to.Is4() {
		return packettest.Build(x.pod.Eth(), packettest.IPv4{Src: from, Dst: to, ID: uint16(id), Offset: uint16(offset / 8), MoreFragments: more}, raw)
	}
	return packettest.Build(x.pod.Eth(), packettest.IPv6{Src: from, Dst: to}, packettest.Fragment{ID: id, Offset: uint16(offset / 8), MoreFragments: more}, raw)
}

// udpHeader returns the first 8 bytes of a datagram of so many bytes in all.
func udpHeader(from, to uint16, size int) []byte {
	return []byte{byte(from >> 8), byte(from), byte(to >> 8), byte(to), byte(size >> 8), byte(size), 0, 0}
}

// filled returns a token and zeros up to size bytes.
func filled(tok packettest.Token, size int) []byte {
	return append(tok[:], make([]byte, size-len(tok))...)
}

const (
	protoTCP = 6
	protoUDP = 17
)

func fragmentAttacks() []attack {
	return []attack{
		{id: "PKT-11", off: open, try: func(x *try) {
			for v := range 2 {
				for _, first := range []int{8, 16} {
					id := uint32(x.port())
					head := packettest.Transport(x.src(web(v)), web(v), packettest.TCP{SrcPort: x.port(), DstPort: controlPort, Flags: packettest.SYN})
					// The port is an allowed one; the flags come in the second piece.
					x.deniedMaybe(fmt.Sprintf("first fragment of %d bytes %s", first, family(v)), "fragment", func(packettest.Token) []byte {
						return x.fragment(web(v), protoTCP, id, 0, true, head[:first])
					})
					x.denied(fmt.Sprintf("what follows %d bytes %s", first, family(v)), "fragment", func(tok packettest.Token) []byte {
						return x.fragment(web(v), protoTCP, id, first, false, head[first:], tok[:])
					})
				}
				x.denied("offset of 8 bytes alone "+family(v), "fragment", func(tok packettest.Token) []byte {
					return x.fragment(web(v), protoTCP, uint32(x.port()), 8, false, make([]byte, 12), tok[:])
				})
				x.denied("a fragment without its first "+family(v), "fragment", func(tok packettest.Token) []byte {
					return x.fragment(evil(v), protoUDP, uint32(x.port()), 1480, false, tok[:])
				}, everyMode...)
				x.denied("first fragment of a denied flow "+family(v), isolation, func(tok packettest.Token) []byte {
					return x.fragment(evil(v), protoUDP, uint32(x.port()), 0, true, udpHeader(x.port(), 443, 1000), filled(tok, 64))
				}, everyMode...)
				// Whole and in order it passes.
				id, port := uint32(x.port()), x.port()
				x.allowed("first fragment "+family(v), func(tok packettest.Token) []byte {
					return x.fragment(web(v), protoUDP, id, 0, true, udpHeader(port, controlPort, 8+64+64), filled(tok, 64))
				})
				x.allowed("second fragment "+family(v), func(tok packettest.Token) []byte {
					return x.fragment(web(v), protoUDP, id, 72, false, filled(tok, 64))
				})
			}
		}},
		{id: "PKT-12", off: open, try: func(x *try) {
			for v := range 2 {
				for _, k := range []struct {
					name   string
					offset int
					data   func(tok packettest.Token) []byte
					reason string
				}{
					// The ports of an accepted first fragment are written anew.
					{"the same again with other ports", 0, func(tok packettest.Token) []byte {
						return append(udpHeader(4000, deniedPort, 200), filled(tok, 64)...)
					}, isolation},
					{"over the first one's second half", 40, func(tok packettest.Token) []byte { return filled(tok, 64) }, "fragment"},
					{"over its payload from the start", 8, func(tok packettest.Token) []byte { return filled(tok, 64) }, "fragment"},
					{"around it", 0, func(tok packettest.Token) []byte {
						return append(udpHeader(4000, deniedPort, 200), filled(tok, 128)...)
					}, isolation},
					{"a gap left", 80, func(tok packettest.Token) []byte { return filled(tok, 64) }, "fragment"},
				} {
					first := func(id uint32) {
						x.allowed("first", func(tok packettest.Token) []byte {
							return x.fragment(web(v), protoUDP, id, 0, true, udpHeader(4000, controlPort, 200), filled(tok, 64))
						})
					}
					id := uint32(x.port())
					first(id)
					x.denied(k.name+", behind it "+family(v), k.reason, func(tok packettest.Token) []byte {
						return x.fragment(web(v), protoUDP, id, k.offset, true, k.data(tok))
					})
					if k.reason == "fragment" && (v == 1 || k.offset != 8) {
						// The trail is burnt: what would have been right is no more.
						// IPv4's offset 8 is refused whatever came before it.
						x.denied(k.name+", then what fits "+family(v), "fragment", func(tok packettest.Token) []byte {
							return x.fragment(web(v), protoUDP, id, 72, false, filled(tok, 64))
						})
					}
					id = uint32(x.port())
					x.denied(k.name+", before it "+family(v), k.reason, func(tok packettest.Token) []byte {
						return x.fragment(web(v), protoUDP, id, k.offset, true, k.data(tok))
					})
					first(id)
				}
				id := uint32(x.port())
				x.allowed("first", func(tok packettest.Token) []byte {
					return x.fragment(web(v), protoUDP, id, 0, true, udpHeader(4000, controlPort, 200), filled(tok, 64))
				})
				x.denied("an accepted first one again "+family(v), "fragment", func(tok packettest.Token) []byte {
					return x.fragment(web(v), protoUDP, id, 0, true, udpHeader(4000, controlPort, 200), filled(tok, 64))
				})
			}
		}},
		{id: "PKT-13", off: open, try: func(x *try) {
			for v := range 2 {
				for _, order := range [][]int{{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}} {
					id, port := uint32(x.port()), x.port()
					piece := func(to netip.Addr, dport uint16, n int, tok packettest.Token) []byte {
						if n == 0 {
							return x.fragment(to, protoUDP, id, 0, true, udpHeader(port, dport, 8+56+64+64), filled(tok, 56))
						}
						return x.fragment(to, protoUDP, id, 64*n, n < 2, filled(tok, 64))
					}
					for _, n := range order {
						reason := "fragment"
						if n == 0 {
							reason = isolation
						}
						x.denied(fmt.Sprintf("denied, order %v, piece %d %s", order, n, family(v)), reason, func(tok packettest.Token) []byte {
							return piece(evil(v), 443, n, tok)
						})
					}
				}
				id, port := uint32(x.port()), x.port()
				for n := range 3 {
					x.allowed(fmt.Sprintf("allowed in order, piece %d %s", n, family(v)), func(tok packettest.Token) []byte {
						if n == 0 {
							return x.fragment(web(v), protoUDP, id, 0, true, udpHeader(port, controlPort, 8+56+64+64), filled(tok, 56))
						}
						return x.fragment(web(v), protoUDP, id, 64*n, n < 2, filled(tok, 64))
					})
				}
			}
		}},
		{id: "PKT-14", off: absent, try: func(x *try) {
			// Another pod makes the trail: with its own address, and with ours.
			other := x.w.pod("payments/api")
			for v := range 2 {
				for _, spoof := range []bool{false, true} {
					id := uint32(x.port())
					from := other.IP(web(v))
					if spoof {
						from = x.src(web(v))
					}
					raw := packettest.Raw{Proto: protoUDP, Data: append(udpHeader(4000, controlPort, 136), make([]byte, 64)...)}
					seed := packettest.Build(other.Eth(), packettest.IPv4{Src: from, Dst: web(v), ID: uint16(id), MoreFragments: true}, raw)
					if v == 1 {
						seed = packettest.Build(other.Eth(), packettest.IPv6{Src: from, Dst: web(v)}, packettest.Fragment{ID: id, MoreFragments: true}, raw)
					}
					x.sendFrom(other, lab.Raw, seed)
					x.denied(fmt.Sprintf("a fragment behind another pod's first, spoofed %v %s", spoof, family(v)), "fragment", func(tok packettest.Token) []byte {
						return x.fragment(web(v), protoUDP, id, 72, false, filled(tok, 64))
					})
				}
			}
		}},
	}
}
