//go:build linux

package attack

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/postern-dev/postern/internal/packet/packettest"
)

// v4 builds an IPv4 frame with a header of the test's own.
func (x *try) v4(h packettest.IPv4, layers ...packettest.Layer) []byte {
	h.Src = x.src(h.Dst)
	return packettest.Build(append([]packettest.Layer{x.pod.Eth(), h}, layers...)...)
}

func ipv4Attacks() []attack {
	return []attack{
		{id: "PKT-07", off: open, try: func(x *try) {
			// Where a reader that ignores the header's length finds ports, these
			// options say 257 and 1799: an allowed pair. The datagram goes to port 22.
			fake := []byte{1, 1, 7, 7, 4, 0, 0, 0, 0}
			for name, opts := range map[string][]byte{"NOP, record route": fake, "record route": packettest.OptRecordRoute(2), "timestamp": packettest.OptTimestamp(2), "NOP": packettest.OptNOP(4), "router alert": packettest.OptRouterAlert()} {
				tok := x.attackToken("socket with "+name, 1)
				if err := x.sendUDP(udpFrom{options: opts}, web(0), deniedPort, tok[:]); err != nil {
					x.Fatalf("%s: %v", name, err)
				}
				x.expect("ip-options", 1)
				if name == "router alert" {
					x.maybe() // given to daemons on the way
				}
				x.denied("raw with "+name, "ip-options", func(tok packettest.Token) []byte {
					return x.v4(packettest.IPv4{Dst: web(0), Options: opts}, packettest.TCP{SrcPort: x.port(), DstPort: deniedPort, Flags: packettest.SYN}, tok)
				}, everyMode...)
				x.shots[len(x.shots)-1].maybe = name == "router alert"
				x.shots[len(x.shots)-2].maybe = name == "router alert"
				x.shots[len(x.shots)-3].maybe = name == "router alert"
			}
			for kind := range 256 {
				for _, size := range []int{0, 1, 2, 4, 8, 40} {
					opts := make([]byte, min(max(size, 2), 40))
					opts[0], opts[1] = uint8(kind), uint8(size)
					x.deniedMaybe(fmt.Sprintf("option %d of length %d", kind, size), "ip-options", func(tok packettest.Token) []byte {
						return x.v4(packettest.IPv4{Dst: web(0), Options: opts}, packettest.UDP{SrcPort: x.port(), DstPort: deniedPort}, tok)
					})
				}
			}
		}},
		{id: "PKT-08", off: open, try: func(x *try) {
			udp := func(tok packettest.Token) []packettest.Layer {
				return []packettest.Layer{packettest.UDP{SrcPort: x.port(), DstPort: 443}, tok, packettest.Payload(make([]byte, 60))}
			}
			for ihl := range uint8(16) {
				reason := "malformed"
				switch {
				case ihl == 5:
					reason = isolation
				case ihl > 5:
					reason = "ip-options"
				}
				x.denied(fmt.Sprintf("header length %d", ihl), reason, func(tok packettest.Token) []byte {
					return x.v4(packettest.IPv4{Dst: evil(0), IHL: new(ihl)}, udp(tok)...)
				})
				if ihl != 5 {
					x.maybe()
				}
			}
			for _, total := range []uint16{0, 1, 19, 20, 27, 28, 103, 104, 105, 1500, 65535} {
				reason := "malformed"
				if total == 104 {
					reason = isolation
				}
				x.denied(fmt.Sprintf("total length %d of 104", total), reason, func(tok packettest.Token) []byte {
					return x.v4(packettest.IPv4{Dst: evil(0), TotalLen: new(total)}, udp(tok)...)
				})
				if total != 104 {
					x.maybe()
				}
			}
			for _, plen := range []uint16{0, 7, 8, 83, 84, 85, 1500, 65535} {
				reason := "malformed"
				switch plen {
				case 84:
					reason = isolation
				case 0, 7, 8, 83:
					reason = "malformed"
				}
				x.denied(fmt.Sprintf("payload length %d of 84", plen), reason, func(tok packettest.Token) []byte {
					return packettest.Build(append([]packettest.Layer{x.pod.Eth(), packettest.IPv6{Src: x.src(evil(1)), Dst: evil(1), PayloadLen: new(plen)}}, udp(tok)...)...)
				})
				if plen != 84 {
					x.maybe()
				}
			}
			for v := range 2 {
				x.denied("bytes behind the packet "+family(v), "malformed", func(tok packettest.Token) []byte {
					eth := x.pod.Eth()
					eth.Trailer = make([]byte, 64)
					return packettest.Build(eth, ipHeader(x.src(evil(v)), evil(v)), packettest.UDP{SrcPort: x.port(), DstPort: 443}, tok)
				})
			}
		}},
		{id: "PKT-09", off: open, try: func(x *try) {
			x.nodeSysctl("ipv4/conf/all/accept_source_route", "1")
			x.nodeSysctl("ipv4/conf/"+x.pod.HostInterface+"/accept_source_route", "1")
			for _, strict := range []bool{false, true} {
				x.denied(fmt.Sprintf("source route to a denied address, strict %v", strict), "ip-options", func(tok packettest.Token) []byte {
					return x.v4(packettest.IPv4{Dst: web(0), Options: packettest.OptSourceRoute(strict, evil(0))}, packettest.UDP{SrcPort: x.port(), DstPort: controlPort}, tok)
				})
				if strict {
					x.maybe()
				}
			}
		}},
	}
}

// chainHeader is one kind of extension header that the kernel forwards.
type chainHeader uint8

const (
	hbh chainHeader = iota
	dst
	rh
	frag
	ah
	chainKinds
)

func (c chainHeader) String() string { return [...]string{"HBH", "DST", "RH", "FRAG", "AH"}[c] }

func (c chainHeader) layer() packettest.Layer {
	switch c {
	case hbh:
		return packettest.HopByHop{Options: packettest.PadN(6)}
	case rh:
		return packettest.Routing{Type: 0}
	case frag:
		return packettest.Fragment{ID: 77}
	case ah:
		return packettest.AH{SPI: 1}
	default:
		return packettest.DestOpts{Options: packettest.PadN(6)}
	}
}

// permitted is the reference: which chains a reader may look through. A hop-by-hop
// header comes first, a fragment header that fragments nothing once, destination
// options anywhere, eight in all; what is encrypted, authenticated or changes the
// destination ends it.
func permitted(chain []chainHeader) bool {
	fragments := 0
	for i, c := range chain {
		switch c {
		case hbh:
			if i > 0 {
				return false
			}
		case frag:
			fragments++
		case dst:
		default:
			return false
		}
	}
	return len(chain) <= 8 && fragments <= 1
}

// chains returns every sequence without repetition of 1 to n kinds.
func chains(n int) [][]chainHeader {
	var out [][]chainHeader
	var grow func(c []chainHeader)
	grow = func(c []chainHeader) {
		if len(c) > 0 {
			out = append(out, slices.Clone(c))
		}
		if len(c) == n {
			return
		}
		for k := range chainKinds {
			if !slices.Contains(c, k) {
				grow(append(c, k))
			}
		}
	}
	grow(nil)
	return out
}

// v6 builds an IPv6 frame to d with a chain of headers before a datagram.
func (x *try) v6(d netip.Addr, port uint16, tok packettest.Token, chain ...packettest.Layer) []byte {
	layers := append([]packettest.Layer{x.pod.Eth(), packettest.IPv6{Src: x.src(d), Dst: d}}, chain...)
	return packettest.Build(append(layers, packettest.UDP{SrcPort: x.port(), DstPort: port}, tok)...)
}

const extension = "ipv6-extension"

func ipv6Attacks() []attack {
	return []attack{
		{id: "PKT-16", off: open, try: func(x *try) {
			x.beside = append(x.beside, "icmp-error") // web's complaints: what they quote has headers that are not followed
			for n := 1; n <= 40; n++ {
				var chain []packettest.Layer
				for range n {
					chain = append(chain, dst.layer())
				}
				reason := extension
				if n <= 8 {
					reason = isolation
					x.allowed(fmt.Sprintf("%d headers", n), func(tok packettest.Token) []byte { return x.v6(web(1), controlPort, tok, chain...) })
				} else {
					x.denied(fmt.Sprintf("%d headers to an allowed port", n), reason, func(tok packettest.Token) []byte { return x.v6(web(1), controlPort, tok, chain...) })
				}
				x.denied(fmt.Sprintf("%d headers", n), reason, func(tok packettest.Token) []byte { return x.v6(evil(1), 443, tok, chain...) })
			}
			for size := 8; size <= 2048; size *= 2 {
				reason := isolation
				if size > 256 {
					reason = extension
				}
				x.denied(fmt.Sprintf("header of %d bytes", size), reason, func(tok packettest.Token) []byte {
					var opts []byte
					for left := size - 2; left > 0; {
						n := min(left, 257)
						if left-n == 1 {
							n--
						}
						opts = append(opts, packettest.PadN(n)...)
						left -= n
					}
					return x.v6(evil(1), 443, tok, packettest.DestOpts{Options: opts})
				})
			}
		}},
		{id: "PKT-17", off: open, try: func(x *try) {
			x.beside = append(x.beside, "icmp-error") // web's complaints: what they quote has headers that are not followed
			for _, chain := range chains(4) {
				var layers []packettest.Layer
				for _, c := range chain {
					layers = append(layers, c.layer())
				}
				name := fmt.Sprintf("%v", chain)
				reason := isolation
				if !permitted(chain) {
					reason = extension + "|" + isolation // behind AH nothing is read: it is a protocol of its own
				}
				x.denied(name+" to a denied address", reason, func(tok packettest.Token) []byte { return x.v6(evil(1), 443, tok, layers...) })
				if permitted(chain) {
					x.allowed(name, func(tok packettest.Token) []byte { return x.v6(web(1), controlPort, tok, layers...) })
				} else {
					x.denied(name+" to an allowed one", reason, func(tok packettest.Token) []byte { return x.v6(web(1), controlPort, tok, layers...) })
				}
			}
		}},
		{id: "PKT-18", off: open, try: func(x *try) {
			x.beside = append(x.beside, "icmp-error") // web's complaints: what they quote has headers that are not followed
			for name, c := range map[string]struct {
				chain  []packettest.Layer
				reason string
			}{
				"hop-by-hop second":             {[]packettest.Layer{dst.layer(), hbh.layer()}, extension},
				"hop-by-hop twice":              {[]packettest.Layer{hbh.layer(), hbh.layer()}, extension},
				"fragment header twice":         {[]packettest.Layer{frag.layer(), frag.layer()}, extension},
				"fragment headers, ids 0 and 1": {[]packettest.Layer{packettest.Fragment{}, packettest.Fragment{ID: 1}}, extension},
				"unknown header 253":            {[]packettest.Layer{packettest.Raw{Proto: 253, Data: []byte{17, 0, 0, 0, 0, 0, 0, 0}}}, isolation},
				"unknown header behind options": {[]packettest.Layer{dst.layer(), packettest.Raw{Proto: 254, Data: []byte{17, 0, 0, 0, 0, 0, 0, 0}}}, isolation},
				"mobility header":               {[]packettest.Layer{packettest.Raw{Proto: 135, Data: []byte{17, 0, 0, 0, 0, 0, 0, 0}}}, extension},
				"HIP":                           {[]packettest.Layer{packettest.Raw{Proto: 139, Data: []byte{17, 0, 0, 0, 0, 0, 0, 0}}}, extension},
				"shim6":                         {[]packettest.Layer{packettest.Raw{Proto: 140, Data: []byte{17, 0, 0, 0, 0, 0, 0, 0}}}, extension},
			} {
				x.denied(name, c.reason, func(tok packettest.Token) []byte { return x.v6(web(1), controlPort, tok, c.chain...) })
			}
		}},
		{id: "PKT-19", off: open, try: func(x *try) {
			for _, typ := range []uint8{0, 2, 3, 4, 253} {
				for left := range uint8(2) {
					x.denied(fmt.Sprintf("routing header type %d, %d segments left", typ, left), extension, func(tok packettest.Token) []byte {
						return x.v6(web(1), controlPort, tok, packettest.Routing{Type: typ, SegmentsLeft: left, Addrs: []netip.Addr{evil(1)}})
					})
				}
			}
			x.denied("routing header behind options", extension, func(tok packettest.Token) []byte {
				return x.v6(web(1), controlPort, tok, hbh.layer(), dst.layer(), packettest.Routing{SegmentsLeft: 1, Addrs: []netip.Addr{evil(1)}})
			})
		}},
		{id: "PKT-21", off: open, try: func(x *try) {
			x.beside = append(x.beside, "icmp-error") // web's complaints: what they quote has headers that are not followed
			x.denied("atomic fragment", isolation, func(tok packettest.Token) []byte { return x.v6(evil(1), 443, tok, packettest.Fragment{ID: 9}) })
			x.denied("atomic fragment to a denied port", isolation, func(tok packettest.Token) []byte { return x.v6(web(1), deniedPort, tok, packettest.Fragment{ID: 9}) })
			x.allowed("atomic fragment", func(tok packettest.Token) []byte { return x.v6(web(1), controlPort, tok, packettest.Fragment{ID: 9}) })
		}},
		{id: "PKT-22", off: open, try: func(x *try) {
			x.denied("no next header", extension, func(tok packettest.Token) []byte { return x.ip(web(1), packettest.NoNext{}, tok) })
			x.denied("no next header behind options", extension, func(tok packettest.Token) []byte { return x.ip(web(1), dst.layer(), packettest.NoNext{}, tok) })
		}},
		{id: "PKT-23", off: open, try: func(x *try) {
			for v := range 2 {
				x.denied("ESP "+family(v), isolation, func(tok packettest.Token) []byte { return x.ip(web(v), packettest.ESP{SPI: 7}, tok) })
				x.denied("AH "+family(v), isolation, func(tok packettest.Token) []byte {
					return x.ip(web(v), packettest.AH{SPI: 7}, packettest.UDP{SrcPort: x.port(), DstPort: controlPort}, tok)
				})
				x.denied("ESP in UDP to a denied port "+family(v), isolation, func(tok packettest.Token) []byte {
					return x.udp(web(v), 500, packettest.ESP{SPI: 7}, tok)
				})
			}
		}},
		{id: "PKT-37", off: absent, try: func(x *try) {
			e4 := evil(0).As4()
			embed := func(prefix string, at int) netip.Addr {
				b := netip.MustParseAddr(prefix).As16()
				copy(b[at:], e4[:])
				return netip.AddrFrom16(b)
			}
			for _, to := range []struct {
				name   string
				addr   netip.Addr
				reason string
				maybe  bool
			}{
				{"NAT64 form", embed("64:ff9b::", 12), isolation, false},
				{"local NAT64 form", embed("64:ff9b:1::", 12), isolation, false},
				{"6to4 form", embed("2002::", 2), isolation, false},
				{"v4-mapped form on the wire", embed("::ffff:0:0", 12), "malformed", true},
				{"v4-compatible form", embed("::", 12), isolation, false},
				{"unspecified v6", netip.IPv6Unspecified(), "martian", true},
				{"loopback v6", netip.IPv6Loopback(), "martian", true},
				{"shared address space", netip.MustParseAddr("100.64.0.1"), isolation, false},
				{"class E", netip.MustParseAddr("240.0.0.1"), isolation, true},
				{"0.0.0.0", netip.IPv4Unspecified(), "martian", true},
				{"0.0.0.1", netip.MustParseAddr("0.0.0.1"), "martian", true},
				{"limited broadcast", netip.MustParseAddr("255.255.255.255"), isolation, true},
				{"multicast", netip.MustParseAddr("224.0.0.1"), isolation, true},
				{"multicast v6", netip.MustParseAddr("ff02::1"), isolation, true},
				{"site-local v6", netip.MustParseAddr("fec0::1"), isolation, false},
			} {
				x.denied(to.name, to.reason, func(tok packettest.Token) []byte { return x.udp(to.addr, controlPort, tok) })
				x.shots[len(x.shots)-1].maybe = to.maybe
			}
		}},
		{id: "PKT-37c", off: absent, try: func(x *try) {
			for name, to := range map[string]struct {
				addr   string
				reason string
			}{
				"its own address":   {x.src(web(0)).String(), isolation},
				"loopback":          {"127.0.0.1", "martian"},
				"unspecified":       {"0.0.0.0", "martian"},
				"a group":           {"224.0.0.1", isolation},
				"limited broadcast": {"255.255.255.255", isolation},
			} {
				b := netip.MustParseAddr("64:ff9b::").As16()
				m := netip.MustParseAddr(to.addr).As4()
				copy(b[12:], m[:])
				x.denied(name, to.reason, func(tok packettest.Token) []byte { return x.udp(netip.AddrFrom16(b), controlPort, tok) })
			}
		}},
	}
}
