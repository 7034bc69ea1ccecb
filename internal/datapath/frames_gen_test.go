package datapath_test

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"

	"github.com/postern-dev/postern/internal/packet/packettest"
	"github.com/postern-dev/postern/internal/policy"
)

// generator makes conversations: mostly right, with one or two things wrong,
// sometimes noise. Addresses and ports come from few, so that frames meet.
type generator struct {
	rng *rand.Rand
	pod *framePod
}

// one in n.
func (g *generator) oneIn(n int) bool { return g.rng.IntN(n) == 0 }

func pick[T any](g *generator, list ...T) T { return list[g.rng.IntN(len(list))] }

// rarely gives a pointer to a random value once in n, else nil: the right one.
func rarely[T uint8 | uint16](g *generator, n int) *T {
	if !g.oneIn(n) {
		return nil
	}
	v := T(g.rng.Uint32())
	if g.oneIn(2) {
		v = T(g.rng.IntN(48))
	}
	return &v
}

func (g *generator) bytes(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(g.rng.Uint32())
	}
	return b
}

func (g *generator) port() uint16 {
	if g.oneIn(8) {
		return uint16(g.rng.Uint32())
	}
	return pick[uint16](g, 80, 80, 53, 53, 1000, 2000, 2001, 8080, 5000, 4000, 4000, 4000, 0)
}

func (g *generator) remote(v6 bool) netip.Addr {
	list := []string{
		"192.0.2.1", "192.0.2.1", "192.0.2.1", "192.0.2.200", "198.51.100.7", "198.51.100.7", "198.51.100.200", "203.0.113.1", "10.0.0.254", "10.0.0.2", "169.254.1.1",
		"224.0.0.1", "240.0.0.1", "255.255.255.255", "127.0.0.1", "127.9.9.9", "0.0.0.0", "0.1.2.3",
	}
	if v6 {
		list = []string{
			"2001:db8::1", "2001:db8::1", "2001:db8::1", "2001:db8:8000::1", "2001:db8:5::1", "2001:db8:5::1", "2001:db8:5:8000::1", "2001:db9::1", "fd00::2", "fd00::1:9", "fd00:0:0:1::9",
			"fe80::1", "ff02::1", "ff02::1:ff00:1", "ff05::2", "fec0::1", "::1", "::", "::2", "::ffff:192.0.2.1", "::ffff:0:0",
		}
	}
	if g.oneIn(30) {
		return g.own(v6)
	}
	a := netip.MustParseAddr(list[g.rng.IntN(len(list))])
	// The first ones are what most of the talk is with.
	if g.oneIn(2) {
		a = netip.MustParseAddr(list[g.rng.IntN(6)])
	}
	return a
}

func (g *generator) own(v6 bool) netip.Addr {
	for _, a := range g.pod.spec.Addrs {
		if a.Is6() == v6 {
			return a
		}
	}
	return netip.Addr{}
}

func (g *generator) linkLocal(m packettest.MAC) netip.Addr {
	return netip.AddrFrom16([16]byte{0xfe, 0x80, 8: m[0] ^ 2, 9: m[1], 10: m[2], 11: 0xff, 12: 0xfe, 13: m[3], 14: m[4], 15: m[5]})
}

// local is mostly an address of the pod.
func (g *generator) local(v6 bool) netip.Addr {
	switch g.rng.IntN(20) {
	case 0:
		return g.remote(v6)
	case 1:
		if v6 {
			return g.linkLocal(packettest.MACFrom(podMAC))
		}
		return netip.MustParseAddr("10.0.0.77")
	case 2:
		if v6 {
			a := g.linkLocal(packettest.MACFrom(podMAC)).As16()
			a[g.rng.IntN(16)] ^= 1 << g.rng.IntN(8)
			return netip.AddrFrom16(a)
		}
	}
	return g.own(v6)
}

func (g *generator) eth(dir policy.Direction) packettest.Eth {
	pod, host := packettest.MACFrom(podMAC), g.pod.host
	e := packettest.Eth{Src: pod, Dst: host}
	if dir == policy.Ingress {
		e.Src, e.Dst = host, pod
	}
	other := packettest.MAC{2, 0, 0, 0, 0, 9}
	switch g.rng.IntN(30) {
	case 0:
		e.Src = other
	case 1:
		e.Dst = other
	case 2:
		e.Dst = packettest.Broadcast
	case 3:
		e.Dst = packettest.MAC{0x33, 0x33, 0, 0, 0, 1}
	case 4:
		e.Type = new(uint16(g.rng.Uint32()))
	case 5:
		e.Type = new(pick[uint16](g, 0x0800, 0x86dd, 0x0806, 0x8100, 0x88a8, 0x9100, 4, 0x05dc, 0x0600, 0x8847))
	case 6:
		e.Src[g.rng.IntN(6)] ^= 1 << g.rng.IntN(8)
	}
	if g.oneIn(8) {
		e.Trailer = make([]byte, g.rng.IntN(20))
	}
	return e
}

func (g *generator) flags() uint8 {
	if g.oneIn(6) {
		return uint8(g.rng.Uint32())
	}
	return pick[uint8](g, packettest.SYN, packettest.SYN, packettest.SYN, packettest.SYN|packettest.ECE|packettest.CWR, packettest.SYN|packettest.ACK, packettest.ACK, packettest.ACK|packettest.PSH, packettest.ACK|packettest.FIN, packettest.RST, packettest.RST|packettest.ACK)
}

// transport is what follows the last IP header.
func (g *generator) transport(v6 bool, sp, dp uint16, depth int) []packettest.Layer {
	payload := packettest.Payload(g.bytes(g.rng.IntN(40)))
	switch g.rng.IntN(22) {
	case 0, 1, 2, 3, 4, 5:
		h := packettest.TCP{SrcPort: sp, DstPort: dp, Flags: g.flags(), DataOffset: rarely[uint8](g, 25)}
		if g.oneIn(5) {
			h.Options = g.bytes(g.rng.IntN(41))
		}
		return []packettest.Layer{h, payload}
	case 6, 7, 8, 9, 10:
		return []packettest.Layer{packettest.UDP{SrcPort: sp, DstPort: dp, Length: rarely[uint16](g, 20)}, payload}
	case 11:
		return []packettest.Layer{packettest.SCTP{SrcPort: sp, DstPort: dp}, payload}
	case 12, 13:
		return g.echo(v6 != g.oneIn(20), g.oneIn(2), sp, payload)
	case 14, 15:
		if depth > 0 {
			return g.icmpError(v6, g.ip(v6, g.remote(v6), g.own(v6), dp, sp, depth-1))
		}
		return []packettest.Layer{packettest.UDPLite{SrcPort: sp, DstPort: dp}, payload}
	case 16:
		if v6 {
			return []packettest.Layer{packettest.ICMPv6{Type: uint8(g.rng.IntN(256)), Code: uint8(g.rng.IntN(8)), ID: sp}, payload}
		}
		return []packettest.Layer{packettest.ICMP{Type: uint8(g.rng.IntN(20)), Code: uint8(g.rng.IntN(8)), ID: sp}, payload}
	case 17:
		return []packettest.Layer{packettest.UDPLite{SrcPort: sp, DstPort: dp}, payload}
	case 18:
		// Another protocol, or a header without its end.
		return []packettest.Layer{packettest.Raw{Proto: pick[uint8](g, 2, 4, 41, 47, 50, 51, 59, 89, 108, 115, 135, 139, 140, 253, 255)}, payload}
	case 19:
		return []packettest.Layer{packettest.Raw{Proto: uint8(g.rng.Uint32())}, payload}
	case 20:
		return []packettest.Layer{packettest.Raw{Proto: pick[uint8](g, 6, 17, 132, 1, 58), Data: g.bytes(g.rng.IntN(24))}}
	default:
		if v6 && g.oneIn(3) {
			return packettest.RouterAdvertisement(netip.MustParsePrefix("2001:db8::/64"), 1800, g.pod.host)
		}
		return []packettest.Layer{packettest.UDP{SrcPort: sp, DstPort: dp}, payload}
	}
}

func (g *generator) echo(v6, request bool, id uint16, payload packettest.Payload) []packettest.Layer {
	switch {
	case v6 && request:
		return []packettest.Layer{packettest.ICMPv6{Type: 128, ID: id}, payload}
	case v6:
		return []packettest.Layer{packettest.ICMPv6{Type: 129, ID: id}, payload}
	case request:
		return []packettest.Layer{packettest.ICMP{Type: 8, ID: id}, payload}
	}
	return []packettest.Layer{packettest.ICMP{Type: 0, ID: id}, payload}
}

// icmpError puts layers, from the IP header on, into an error about them.
func (g *generator) icmpError(v6 bool, inner []packettest.Layer) []packettest.Layer {
	if g.oneIn(12) {
		// About as long as an error may be, without options or extensions.
		whole := 576 - 20 - 8
		if v6 {
			whole = 1280 - 40 - 8
		}
		if n := whole - len(packettest.Build(inner...)) + pick(g, -1, 0, 0, 1, 1, 2, 4); n > 0 {
			inner = append(slices.Clone(inner), packettest.Payload(make([]byte, n)))
		}
	}
	if v6 {
		return append([]packettest.Layer{packettest.ICMPv6{Type: pick[uint8](g, 1, 2, 3, 4, 100, 127)}}, inner...)
	}
	return append([]packettest.Layer{packettest.ICMP{Type: pick[uint8](g, 3, 3, 4, 5, 11, 12)}}, inner...)
}

// ip is an IP header, what may follow it, and a transport.
func (g *generator) ip(v6 bool, src, dst netip.Addr, sp, dp uint16, depth int) []packettest.Layer {
	return append(g.headers(v6, src, dst), g.transport(v6, sp, dp, depth)...)
}

func (g *generator) headers(v6 bool, src, dst netip.Addr) []packettest.Layer {
	if !v6 {
		h := packettest.IPv4{Src: src, Dst: dst, ID: uint16(g.rng.IntN(3)), Version: rarely[uint8](g, 60), IHL: rarely[uint8](g, 40), TotalLen: rarely[uint16](g, 40), Proto: rarely[uint8](g, 60), TTL: rarely[uint8](g, 20)}
		h.DontFragment, h.Evil = g.oneIn(3), g.oneIn(20)
		if g.oneIn(12) {
			h.MoreFragments, h.Offset = g.oneIn(2), pick[uint16](g, 0, 0, 1, 2, 3, uint16(g.rng.IntN(8192)), 8191)
		}
		if g.oneIn(8) {
			for len(h.Options) < 36 && !g.oneIn(3) {
				o := pick(g, []byte{1}, []byte{0}, packettest.OptRouterAlert(), packettest.OptRecordRoute(g.rng.IntN(5)), packettest.OptTimestamp(1), packettest.OptSourceRoute(g.oneIn(2), src), g.bytes(1+g.rng.IntN(4)))
				if len(h.Options)+len(o) <= 40 {
					h.Options = append(h.Options, o...)
				}
			}
		}
		return []packettest.Layer{h}
	}
	h := packettest.IPv6{Src: src, Dst: dst, Version: rarely[uint8](g, 60), PayloadLen: rarely[uint16](g, 40), NextHeader: rarely[uint8](g, 60), TrafficClass: uint8(g.rng.IntN(2) * 255)}
	if g.oneIn(6) {
		h.HopLimit = new(pick[uint8](g, 0, 1, 64, 255))
	}
	out := []packettest.Layer{h}
	n := 0
	if g.oneIn(4) {
		n = 1 + g.rng.IntN(3)
	}
	if g.oneIn(20) {
		n = 0
		for range 6 + g.rng.IntN(4) { // as many as there may be, and one more
			out = append(out, packettest.DestOpts{})
		}
	}
	for i := range n {
		opts := g.bytes(g.rng.IntN(16))
		if g.oneIn(10) {
			opts = make([]byte, pick(g, 246, 254, 262))
		}
		switch g.rng.IntN(12) {
		case 0, 1, 2, 3, 4:
			out = append(out, packettest.DestOpts{Options: opts, Len: rarely[uint8](g, 15), Next: rarely[uint8](g, 30)})
		case 5, 6, 7:
			if i == 0 || g.oneIn(4) {
				out = append(out, packettest.HopByHop{Options: opts, Len: rarely[uint8](g, 15)})
			}
		case 8:
			out = append(out, packettest.Fragment{ID: uint32(g.rng.IntN(3))}) // atomic
		case 9:
			out = append(out, packettest.Fragment{ID: uint32(g.rng.IntN(3)), Offset: pick[uint16](g, 0, 0, 1, 2, 8191), MoreFragments: g.oneIn(2)})
		case 10:
			out = append(out, packettest.Routing{Type: uint8(g.rng.IntN(5)), SegmentsLeft: uint8(g.rng.IntN(2)), Addrs: []netip.Addr{dst}})
		case 11:
			// AH: next header, length in 4 bytes less 2, SPI, sequence (RFC 4302).
			out = append(out, packettest.Raw{Proto: 51, Data: append([]byte{pick[uint8](g, 6, 17, 58, 60), 1}, g.bytes(10)...)})
		}
	}
	return out
}

// frame is one frame in a direction.
func (g *generator) frame(dir policy.Direction) []byte {
	switch g.rng.IntN(24) {
	case 0:
		return packettest.Build(g.eth(dir), packettest.VLAN{TPID: pick[uint16](g, 0x8100, 0x88a8, 0x9100)}, packettest.IPv4{Src: g.own(false), Dst: g.remote(false)}, packettest.UDP{SrcPort: g.port(), DstPort: g.port()})
	case 1:
		return g.arp(dir)
	case 2, 3:
		return g.discovery(dir)
	case 4:
		// Noise, under a right link header more often than not.
		b := g.bytes(14 + g.rng.IntN(120))
		copy(b, packettest.Build(g.eth(dir), packettest.Raw{EtherType: pick[uint16](g, 0x0800, 0x86dd, 0x0806)}))
		if g.oneIn(2) {
			copy(b[14:], packettest.Build(g.headers(b[12] == 0x86, g.own(b[12] == 0x86), g.remote(b[12] == 0x86))...))
		}
		return b
	}
	v6 := g.oneIn(2)
	src, dst := g.local(v6), g.remote(v6)
	if dir == policy.Ingress {
		src, dst = dst, src
	}
	return packettest.Build(append([]packettest.Layer{g.eth(dir)}, g.ip(v6, src, dst, g.port(), g.port(), 1)...)...)
}

func (g *generator) arp(dir policy.Direction) []byte {
	a := packettest.ARP{Op: pick[uint16](g, 1, 1, 1, 2, 2, 3, 8), SenderMAC: packettest.MACFrom(podMAC), SenderIP: g.own(false), TargetIP: g.remote(false)}
	switch g.rng.IntN(8) {
	case 0:
		a.SenderIP = g.remote(false)
	case 1:
		a.SenderMAC[5] ^= 3
	case 2:
		a.SenderIP = netip.IPv4Unspecified()
	}
	e := g.eth(dir)
	if g.oneIn(2) {
		e.Trailer = make([]byte, pick(g, 1, 18, 18, 19))
		if g.oneIn(4) {
			e.Trailer[g.rng.IntN(len(e.Trailer))] = 1
		}
	}
	return packettest.Build(e, a)
}

// discovery is neighbour or listener discovery, with the pod's claims or others'.
func (g *generator) discovery(dir policy.Direction) []byte {
	mac := packettest.MACFrom(podMAC)
	if g.oneIn(5) {
		mac = g.pod.host
	}
	src := pick(g, g.linkLocal(packettest.MACFrom(podMAC)), g.own(true), netip.IPv6Unspecified(), g.local(true))
	dst := pick(g, netip.MustParseAddr("ff02::1"), netip.MustParseAddr("ff02::16"), packettest.SolicitedNode(g.remote(true)), g.remote(true), g.linkLocal(g.pod.host), netip.MustParseAddr("fd00::99"))
	target := pick(g, g.linkLocal(packettest.MACFrom(podMAC)), g.own(true), g.own(true), g.remote(true), netip.AddrFrom16(g.own(false).As16()))
	h := packettest.IPv6{Src: src, Dst: dst, HopLimit: new(uint8(255))}
	if g.oneIn(10) {
		h.HopLimit = rarely[uint8](g, 1) // any
	}
	if dir == policy.Ingress {
		h.Src, h.Dst = h.Dst, h.Src
	}
	var l []packettest.Layer
	option := append([]byte{pick[uint8](g, 1, 2, 14, 14, 3, 5), 1}, mac[:]...)
	if g.oneIn(10) {
		option[1] = uint8(g.rng.IntN(3))
	}
	switch g.rng.IntN(7) {
	case 0, 1:
		l = packettest.NeighborSolicitation(target, mac)
	case 2:
		l = packettest.NeighborAdvertisement(target, mac, false, g.oneIn(2), true)
	case 3:
		l = []packettest.Layer{packettest.ICMPv6{Type: 133, Code: uint8(g.rng.IntN(20) / 19)}}
	case 4:
		l = []packettest.Layer{packettest.ICMPv6{Type: uint8(130 + g.rng.IntN(14))}, packettest.Payload(g.bytes(16))}
	default:
		h.HopLimit = new(pick[uint8](g, 1, 1, 1, 1, 255))
		h.Dst = pick(g, netip.MustParseAddr("ff02::16"), dst)
		group := pick(g, netip.MustParseAddr("ff02::1:ff00:1"), netip.MustParseAddr("ff05::5"), netip.MustParseAddr("ff02::1"), g.remote(true))
		if g.oneIn(3) {
			l = []packettest.Layer{packettest.ICMPv6{Type: pick[uint8](g, 130, 131, 132)}, packettest.Payload(group.AsSlice())}
			break
		}
		n := g.rng.IntN(4)
		if g.oneIn(10) {
			n = 15 + g.rng.IntN(4)
		}
		l = []packettest.Layer{packettest.ICMPv6{Type: 143, Seq: uint16(n)}}
		for range n {
			r := append([]byte{4, 0, 0, 0}, group.AsSlice()...)
			if g.oneIn(15) {
				r[1+g.rng.IntN(3)] = 1
			}
			l = append(l, packettest.Payload(r))
		}
	}
	if g.oneIn(4) {
		l = append(l, packettest.Payload(option))
	}
	layers := []packettest.Layer{g.eth(dir), h}
	if g.oneIn(6) {
		layers = append(layers, packettest.HopByHop{Options: []byte{5, 2, 0, 0}}) // router alert: RFC 2711
	}
	return packettest.Build(append(layers, l...)...)
}

// damage changes a frame in one place or two.
func (g *generator) damage(frame []byte) []byte {
	f := slices.Clone(frame)
	for range 1 + g.rng.IntN(2) {
		at := g.rng.IntN(len(f))
		if len(f) > 14 && !g.oneIn(5) {
			at = 14 + g.rng.IntN(min(len(f)-14, 80))
		}
		switch g.rng.IntN(8) {
		case 0, 1:
			f[at] ^= 1 << g.rng.IntN(8)
		case 2:
			f[at] = pick[byte](g, 0, 1, 0x7f, 0x80, 0xff, byte(g.rng.Uint32()))
		case 3:
			if at+2 <= len(f) {
				binary.BigEndian.PutUint16(f[at:], binary.BigEndian.Uint16(f[at:])+uint16(g.rng.IntN(17))-8)
			}
		case 4:
			f = f[:max(14, len(f)-1-g.rng.IntN(min(len(f), 30)))]
		case 5:
			f = append(f, g.bytes(1+g.rng.IntN(20))...)
		case 6:
			if to := g.rng.IntN(len(f)); to > at && len(f)-(to-at) >= 14 {
				f = slices.Delete(f, at, to)
			}
		case 7:
			if len(f) < 1000 {
				f = slices.Insert(f, at, g.bytes(pick(g, 1, 4, 8))...)
			}
		}
	}
	return f
}

// talk is a conversation: frames that have to do with each other, or not.
func (g *generator) talk() talk {
	dir := policy.Directions[g.rng.IntN(2)]
	switch g.rng.IntN(8) {
	case 0, 1, 2:
		return g.finish(talk{{dir: dir, frame: g.frame(dir)}})
	case 3:
		var c talk
		for range 1 + g.rng.IntN(4) {
			d := policy.Directions[g.rng.IntN(2)]
			c = append(c, sent{dir: d, frame: g.frame(d)})
		}
		return g.finish(c)
	case 4:
		return g.finish(g.fragments(dir))
	}
	return g.finish(g.dialogue(dir))
}

// finish damages some frames and makes some of them big.
func (g *generator) finish(c talk) talk {
	for i := range c {
		if g.oneIn(5) {
			c[i].frame = g.damage(c[i].frame)
		}
		c[i].marked = g.oneIn(2)
		if g.oneIn(25) {
			c[i].segments = 1 + g.rng.IntN(4)
			if f := c[i].frame; g.oneIn(2) && len(f) >= 20 {
				// Big TCP has no length.
				if f[12] == 0x08 {
					f[16], f[17] = 0, 0
				} else {
					f[18], f[19] = 0, 0
				}
			}
		}
	}
	return c
}

// dialogue opens a conversation, answers it, and complains about it.
func (g *generator) dialogue(dir policy.Direction) talk {
	v6 := g.oneIn(2)
	own, remote, lp, rp := g.local(v6), g.remote(v6), g.port(), g.port()
	send := func(d policy.Direction, l ...packettest.Layer) sent {
		src, dst := own, remote
		if d == policy.Ingress {
			src, dst = dst, src
		}
		return sent{dir: d, frame: packettest.Build(append(append([]packettest.Layer{g.eth(d)}, g.headers(v6, src, dst)...), l...)...)}
	}
	kind := g.rng.IntN(4)
	say := func(d policy.Direction, first bool) []packettest.Layer {
		sp, dp := lp, rp
		if d == policy.Ingress {
			sp, dp = rp, lp
		}
		payload := packettest.Payload(g.bytes(g.rng.IntN(24)))
		switch kind {
		case 0:
			flags := g.flags()
			if first {
				flags = packettest.SYN
			}
			return []packettest.Layer{packettest.TCP{SrcPort: sp, DstPort: dp, Flags: flags}, payload}
		case 1:
			return []packettest.Layer{packettest.UDP{SrcPort: sp, DstPort: dp}, payload}
		case 2:
			return g.echo(v6, first || g.oneIn(3), lp, payload)
		}
		return []packettest.Layer{packettest.SCTP{SrcPort: sp, DstPort: dp}, payload}
	}
	// The network answers from anywhere with an error.
	complain := func(d policy.Direction) sent {
		about := 1 - d
		isrc, idst, src, dst := own, remote, g.remote(v6), own
		if d == policy.Egress {
			isrc, idst, src, dst = remote, own, own, remote
		}
		var inner packettest.Layer = packettest.IPv4{Src: isrc, Dst: idst}
		if v6 {
			inner = packettest.IPv6{Src: isrc, Dst: idst}
		}
		if g.oneIn(20) {
			dst = g.remote(v6)
		}
		body := say(about, g.oneIn(2))
		if g.oneIn(6) {
			body = g.transport(v6, lp, rp, 0)
		}
		l := append(g.headers(v6, src, dst), g.icmpError(v6, append([]packettest.Layer{inner}, body...))...)
		return sent{dir: d, frame: packettest.Build(append([]packettest.Layer{g.eth(d)}, l...)...)}
	}
	c := talk{send(dir, say(dir, true)...)}
	for range 1 + g.rng.IntN(4) {
		d := policy.Directions[g.rng.IntN(2)]
		switch g.rng.IntN(5) {
		case 0, 1:
			c = append(c, complain(d))
		case 2:
			c = append(c, sent{dir: d, frame: g.frame(d)})
		default:
			c = append(c, send(d, say(d, g.oneIn(5))...))
		}
	}
	return c
}

// fragments are a datagram's, in order or not, with strangers between.
func (g *generator) fragments(dir policy.Direction) talk {
	v6 := g.oneIn(2)
	src, dst := g.local(v6), g.remote(v6)
	if dir == policy.Ingress {
		src, dst = dst, src
	}
	l := []packettest.Layer{packettest.Eth{Src: packettest.MACFrom(podMAC), Dst: g.pod.host}, packettest.IPv4{Src: src, Dst: dst}}
	if v6 {
		l[1] = packettest.IPv6{Src: src, Dst: dst}
		if g.oneIn(5) {
			l = append(l, packettest.DestOpts{})
		}
	}
	l = append(append(l, g.transport(v6, g.port(), g.port(), 1)...), packettest.Payload(g.bytes(48+g.rng.IntN(16))))
	if dir == policy.Ingress {
		l[0] = packettest.Eth{Src: g.pod.host, Dst: packettest.MACFrom(podMAC)}
	}
	at := pick(g, []int{8, 24}, []int{16, 24}, []int{24, 32}, []int{24}, []int{32}, []int{40})
	pieces, err := packettest.Cut(packettest.Build(l...), uint32(g.rng.IntN(3)), at...)
	if err != nil {
		return talk{{dir: dir, frame: g.frame(dir)}}
	}
	var c talk
	for _, p := range pieces {
		c = append(c, sent{dir: dir, frame: p})
		switch g.rng.IntN(12) {
		case 0:
			c = append(c, sent{dir: dir, frame: p})
		case 1:
			c = append(c, sent{dir: dir, frame: g.frame(dir)})
		case 2:
			c = append(c, sent{dir: 1 - dir, frame: p})
		}
	}
	if g.oneIn(6) {
		g.rng.Shuffle(len(c), func(i, j int) { c[i], c[j] = c[j], c[i] })
	}
	return c
}
