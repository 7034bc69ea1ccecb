package packet_test

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/postern-dev/postern/internal/packet"
	"github.com/postern-dev/postern/internal/packet/packettest"
)

var (
	a4, b4 = netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("192.0.2.1")
	a6, b6 = netip.MustParseAddr("fd00::1"), netip.MustParseAddr("2001:db8::1")
	eth    = packettest.Eth{Src: packettest.MAC{2, 0, 0, 0, 0, 1}, Dst: packettest.MAC{2, 0, 0, 0, 0, 2}}
)

func build4(h packettest.IPv4, rest ...packettest.Layer) []byte {
	h.Src, h.Dst = a4, b4
	return packettest.Build(append([]packettest.Layer{eth, h}, rest...)...)
}

func build6(rest ...packettest.Layer) []byte {
	return packettest.Build(append([]packettest.Layer{eth, packettest.IPv6{Src: a6, Dst: b6}}, rest...)...)
}

// faulty are frames with what must be found wrong with them.
func faulty() []struct {
	name  string
	frame []byte
	hints packet.Hints
	want  packet.Fault
} {
	udp := packettest.UDP{SrcPort: 4000, DstPort: 53}
	tcp := packettest.TCP{SrcPort: 4000, DstPort: 80, Flags: packettest.SYN}
	echo := packettest.ICMP{Type: packettest.ICMPEchoRequest, ID: 7}
	flags := func(f uint8) []byte { t := tcp; t.Flags = f; return build4(packettest.IPv4{}, t) }
	opts := func(b ...byte) []byte { return build4(packettest.IPv4{Options: b}, udp) }
	allow := packet.Hints{Options: true}
	pad := packettest.DestOpts{}
	route := packettest.OptSourceRoute(false, b4)
	return []struct {
		name  string
		frame []byte
		hints packet.Hints
		want  packet.Fault
	}{
		{name: "UDP", frame: build4(packettest.IPv4{}, udp)},
		{name: "UDP v6", frame: build6(udp)},
		{name: "empty", want: packet.FaultMalformed},
		{name: "no header", frame: build6(udp)[:14], want: packet.FaultMalformed},
		{name: "half a header", frame: build6(udp)[:53], want: packet.FaultMalformed},
		{name: "VLAN", frame: packettest.Build(eth, packettest.VLAN{}, packettest.IPv4{Src: a4, Dst: b4}, udp), want: packet.FaultVLAN},
		{name: "MPLS", frame: packettest.Build(packettest.Eth{Type: new(uint16(0x8847))}), want: packet.FaultEtherType},
		{name: "ARP", frame: packettest.Build(eth, packettest.ARP{SenderIP: a4, TargetIP: b4})},
		{name: "version 6 as IPv4", frame: build4(packettest.IPv4{Version: new(uint8(6))}, udp), want: packet.FaultMalformed},
		{name: "header of 16 bytes", frame: build4(packettest.IPv4{IHL: new(uint8(4))}, udp), want: packet.FaultMalformed},
		{name: "total beyond the frame", frame: build4(packettest.IPv4{TotalLen: new(uint16(29))}, udp), want: packet.FaultMalformed},
		{name: "total within the header", frame: build4(packettest.IPv4{TotalLen: new(uint16(19))}, udp), want: packet.FaultMalformed},
		{name: "total 0", frame: build4(packettest.IPv4{TotalLen: new(uint16(0))}, tcp), want: packet.FaultMalformed},
		{name: "total 0, big TCP", frame: build4(packettest.IPv4{TotalLen: new(uint16(0))}, tcp), hints: packet.Hints{Segments: 2}},
		{name: "total 0, big UDP", frame: build4(packettest.IPv4{TotalLen: new(uint16(0))}, udp), hints: packet.Hints{Segments: 2}, want: packet.FaultMalformed},
		{name: "trailer", frame: append(build4(packettest.IPv4{}, udp), 1, 2, 3)},
		{name: "options", frame: opts(1, 1, 1, 1), want: packet.FaultIPOptions},
		{name: "options, permitted", frame: opts(1, 1, 1, 0), hints: allow},
		{name: "source route, permitted or not", frame: opts(route...), hints: allow, want: packet.FaultIPOptions},
		{name: "source route behind the end", frame: opts(append([]byte{0}, route...)...), hints: allow},
		{name: "option past the header", frame: opts(1, 1, 7, 3), hints: allow, want: packet.FaultIPOptions},
		{name: "option of 1 byte that says 1", frame: opts(7, 1, 0, 0), hints: allow, want: packet.FaultIPOptions},
		{name: "option without a length", frame: opts(1, 1, 1, 7), hints: allow, want: packet.FaultIPOptions},
		{name: "fragment not in steps of 8", frame: build4(packettest.IPv4{MoreFragments: true, Offset: 5}, packettest.Raw{Proto: 17, Data: make([]byte, 9)}), want: packet.FaultFragment},
		{name: "fragment without data", frame: build4(packettest.IPv4{MoreFragments: true, Offset: 5}, packettest.Raw{Proto: 17}), want: packet.FaultFragment},
		{name: "fragment at 8", frame: build4(packettest.IPv4{Offset: 1}, packettest.Raw{Proto: 6, Data: make([]byte, 8)}), want: packet.FaultFragment},
		{name: "fragment past 65535", frame: build4(packettest.IPv4{Offset: 0x1fff}, packettest.Raw{Proto: 17, Data: make([]byte, 8)}), want: packet.FaultFragment},
		{name: "fragment up to 65535", frame: build4(packettest.IPv4{Offset: 0x1fff}, packettest.Raw{Proto: 17, Data: make([]byte, 7)})},
		{name: "first fragment with half of TCP", frame: build4(packettest.IPv4{MoreFragments: true}, packettest.Raw{Proto: 6, Data: make([]byte, 16)}), want: packet.FaultFragment},
		{name: "half of TCP", frame: build4(packettest.IPv4{}, packettest.Raw{Proto: 6, Data: make([]byte, 16)}), want: packet.FaultMalformed},
		{name: "TCP header of 16 bytes", frame: build4(packettest.IPv4{}, packettest.TCP{Flags: packettest.SYN, DataOffset: new(uint8(4))}), want: packet.FaultMalformed},
		{name: "TCP header past the end", frame: build4(packettest.IPv4{}, packettest.TCP{Flags: packettest.SYN, DataOffset: new(uint8(6))}), want: packet.FaultMalformed},
		{name: "no flags", frame: flags(0), want: packet.FaultTCPFlags},
		{name: "all flags", frame: flags(0xff), want: packet.FaultTCPFlags},
		{name: "FIN alone", frame: flags(packettest.FIN), want: packet.FaultTCPFlags},
		{name: "SYN and FIN", frame: flags(packettest.SYN | packettest.FIN), want: packet.FaultTCPFlags},
		{name: "SYN and RST", frame: flags(packettest.SYN | packettest.RST), want: packet.FaultTCPFlags},
		{name: "FIN and ACK", frame: flags(packettest.FIN | packettest.ACK)},
		{name: "RST", frame: flags(packettest.RST)},
		{name: "UDP length too long", frame: build4(packettest.IPv4{}, packettest.UDP{Length: new(uint16(9))}), want: packet.FaultMalformed},
		{name: "UDP length 0", frame: build6(packettest.UDP{Length: new(uint16(0))}), want: packet.FaultMalformed},
		{name: "UDP length of a segment", frame: build4(packettest.IPv4{}, packettest.UDP{Length: new(uint16(9))}, packettest.Payload("abc")), hints: packet.Hints{Segments: 3}},
		{name: "SCTP of 11 bytes", frame: build6(packettest.Raw{Proto: 132, Data: make([]byte, 11)}), want: packet.FaultMalformed},
		{name: "ICMPv6 in IPv4", frame: build4(packettest.IPv4{}, packettest.ICMPv6{Type: 128}), want: packet.FaultMalformed},
		{name: "ICMP in IPv6", frame: build6(echo), want: packet.FaultMalformed},
		{name: "payload length past the frame", frame: packettest.Build(eth, packettest.IPv6{Src: a6, Dst: b6, PayloadLen: new(uint16(9))}, udp), want: packet.FaultMalformed},
		{name: "payload length 0", frame: packettest.Build(eth, packettest.IPv6{Src: a6, Dst: b6, PayloadLen: new(uint16(0))}, tcp), want: packet.FaultMalformed},
		{name: "payload length 0, big TCP", frame: packettest.Build(eth, packettest.IPv6{Src: a6, Dst: b6, PayloadLen: new(uint16(0))}, tcp), hints: packet.Hints{Segments: 2}},
		{name: "IPv4 in an IPv6 address", frame: packettest.Build(eth, packettest.IPv6{Src: netip.MustParseAddr("::ffff:10.0.0.1"), Dst: b6}, udp), want: packet.FaultMalformed},
		{name: "hop-by-hop, options", frame: build6(packettest.HopByHop{}, packettest.DestOpts{}, udp)},
		{name: "options, hop-by-hop", frame: build6(packettest.DestOpts{}, packettest.HopByHop{}, udp), want: packet.FaultIPv6Ext},
		{name: "8 headers", frame: build6(pad, pad, pad, pad, pad, pad, pad, pad, udp)},
		{name: "9 headers", frame: build6(pad, pad, pad, pad, pad, pad, pad, pad, pad, udp), want: packet.FaultIPv6Ext},
		{name: "header of 264 bytes", frame: build6(packettest.DestOpts{Options: make([]byte, 262)}, udp), want: packet.FaultIPv6Ext},
		{name: "header past the end", frame: build6(packettest.DestOpts{Len: new(uint8(9))}, udp), want: packet.FaultIPv6Ext},
		{name: "routing header", frame: build6(packettest.Routing{}, udp), want: packet.FaultIPv6Ext},
		{name: "two fragment headers", frame: build6(packettest.Fragment{}, packettest.Fragment{}, udp), want: packet.FaultIPv6Ext},
		{name: "atomic fragment", frame: build6(packettest.Fragment{ID: 5}, udp)},
		{name: "no next header", frame: build6(packettest.DestOpts{}), want: packet.FaultIPv6Ext},
		{name: "AH", frame: build6(packettest.Raw{Proto: 51, Data: make([]byte, 12)})},
	}
}

func TestReadFaults(t *testing.T) {
	for _, tc := range faulty() {
		if got := packet.Read(tc.frame, tc.hints); got.Fault != tc.want {
			t.Errorf("%s: %s, want %s\n%x", tc.name, got.Fault, tc.want, tc.frame)
		}
	}
}

// TestReadBuilt builds frames and reads back what went in.
func TestReadBuilt(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for range 20_000 {
		sp, dp, flags := uint16(rng.Uint32()), uint16(rng.Uint32()), []uint8{packettest.SYN, packettest.ACK, packettest.ACK | packettest.PSH, packettest.RST}[rng.IntN(4)]
		payload := packettest.Payload(make([]byte, rng.IntN(64)))
		want := packet.Packet{EtherType: packet.EtherTypeIPv4, Tuple: packet.Tuple{Src: a4, Dst: b4, SrcPort: sp, DstPort: dp}, HopLimit: uint8(rng.Uint32())}
		v6 := rng.IntN(2) == 0
		var l packettest.Layer
		size := 8
		switch rng.IntN(5) {
		case 0:
			want.Tuple.Protocol, want.TCPFlags, l, size = packet.ProtocolTCP, flags, packettest.TCP{SrcPort: sp, DstPort: dp, Flags: flags}, 20
		case 1:
			want.Tuple.Protocol, l = packet.ProtocolUDP, packettest.UDP{SrcPort: sp, DstPort: dp}
		case 2:
			want.Tuple.Protocol, l, size = packet.ProtocolSCTP, packettest.SCTP{SrcPort: sp, DstPort: dp}, 12
		case 3:
			want.Tuple.DstPort = sp
			if v6 {
				want.Tuple.Protocol, want.ICMPType, l = packet.ProtocolICMPv6, 129, packettest.ICMPv6{Type: 129, ID: sp}
			} else {
				want.Tuple.Protocol, want.ICMPType, l = packet.ProtocolICMP, 8, packettest.ICMP{Type: 8, ID: sp}
			}
		default:
			want.Tuple.SrcPort, want.Tuple.DstPort = 0, 0
			want.Tuple.Protocol, l, size = packet.Protocol(200), packettest.Raw{Proto: 200}, 0
		}
		layers, hints := []packettest.Layer{packettest.Eth{Trailer: make([]byte, rng.IntN(8))}}, packet.Hints{}
		want.Transport = 34
		if v6 {
			want.EtherType, want.Tuple.Src, want.Tuple.Dst, want.Transport = packet.EtherTypeIPv6, a6, b6, 54
			layers = append(layers, packettest.IPv6{Src: a6, Dst: b6, HopLimit: &want.HopLimit})
			for range rng.IntN(3) {
				layers, want.Transport = append(layers, packettest.DestOpts{}), want.Transport+8
			}
		} else {
			h := packettest.IPv4{Src: a4, Dst: b4, TTL: &want.HopLimit, Evil: rng.IntN(2) == 0, DontFragment: rng.IntN(2) == 0}
			if rng.IntN(3) == 0 {
				h.Options, hints.Options, want.Transport = packettest.OptNOP(8), true, want.Transport+8
			}
			layers = append(layers, h)
		}
		want.End = want.Transport + size + len(payload)
		frame := packettest.Build(append(layers, l, payload)...)
		if got := packet.Read(frame, hints); got != want {
			t.Fatalf("read\n%+v, want\n%+v\n%x", got, want, frame)
		}
	}
}

// TestReadFragments cuts datagrams and reads the pieces.
func TestReadFragments(t *testing.T) {
	udp := packettest.UDP{SrcPort: 4000, DstPort: 53}
	for _, frame := range [][]byte{build4(packettest.IPv4{}, udp, packettest.Payload(make([]byte, 40))), build6(udp, packettest.Payload(make([]byte, 40)))} {
		pieces, err := packettest.Cut(frame, 0x1234, 16, 32)
		if err != nil {
			t.Fatal(err)
		}
		for i, f := range pieces {
			want := packet.Fragment{Place: packet.FragmentLater, More: i < 2, ID: 0x1234, Offset: 16 * i, Length: 16}
			if i == 0 {
				want.Place = packet.FragmentFirst
			}
			got := packet.Read(f, packet.Hints{})
			if got.Fault != packet.FaultNone || got.Fragment != want || got.Tuple.Protocol != packet.ProtocolUDP {
				t.Errorf("piece %d: %+v", i, got)
			}
			if (i == 0) != (got.Tuple.SrcPort == 4000) {
				t.Errorf("piece %d: ports %d", i, got.Tuple.SrcPort)
			}
		}
	}
}

// TestReadInner reads what ICMP errors are about.
func TestReadInner(t *testing.T) {
	in4 := []packettest.Layer{packettest.ICMP{Type: 3}, packettest.IPv4{Src: b4, Dst: a4}, packettest.UDP{SrcPort: 53, DstPort: 4000}}
	in6 := []packettest.Layer{packettest.ICMPv6{Type: 1}, packettest.IPv6{Src: b6, Dst: a6}, packettest.TCP{SrcPort: 53, DstPort: 4000}}
	ping := []packettest.Layer{packettest.ICMP{Type: 11}, packettest.IPv4{Src: b4, Dst: a4}, packettest.ICMP{Type: 8, ID: 9}}
	for _, tc := range []struct {
		name  string
		frame []byte
		want  packet.Tuple // zero: not readable
	}{
		{"UDP", build4(packettest.IPv4{}, in4...), packet.Tuple{Protocol: 17, Src: b4, Dst: a4, SrcPort: 53, DstPort: 4000}},
		{"TCP v6", build6(in6...), packet.Tuple{Protocol: 6, Src: b6, Dst: a6, SrcPort: 53, DstPort: 4000}},
		{"echo", build4(packettest.IPv4{}, ping...), packet.Tuple{Protocol: 1, Src: b4, Dst: a4, SrcPort: 9, DstPort: 9}},
		{"too long", build4(packettest.IPv4{}, append(in4, packettest.Payload(make([]byte, 600)))...), packet.Tuple{}},
		{"too long v6", build6(append(in6, packettest.Payload(make([]byte, 1300)))...), packet.Tuple{}},
		{"7 bytes inside", build4(packettest.IPv4{}, packettest.ICMP{Type: 3}, packettest.IPv4{Src: b4, Dst: a4}, packettest.Raw{Proto: 17, Data: make([]byte, 7)}), packet.Tuple{}},
		{"a later fragment inside", build4(packettest.IPv4{}, packettest.ICMP{Type: 3}, packettest.IPv4{Src: b4, Dst: a4, Offset: 5}, packettest.Raw{Proto: 17, Data: make([]byte, 8)}), packet.Tuple{}},
	} {
		got := packet.Read(tc.frame, packet.Hints{})
		if got.Fault != packet.FaultNone || !got.ICMPError || got.Inner != tc.want || got.HasInner != (tc.want != packet.Tuple{}) {
			t.Errorf("%s: %+v", tc.name, got)
		}
	}
}

func TestReadDoesNotAllocate(t *testing.T) {
	cases := faulty()
	if n := testing.AllocsPerRun(100, func() {
		for _, tc := range cases {
			if p := packet.Read(tc.frame, tc.hints); p.Fault.String() == "" {
				t.Error("a fault without a word")
			}
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// FuzzRead: whatever the bytes, a frame that is understood does not contradict
// itself, and what lies behind its packet says nothing.
func FuzzRead(f *testing.F) {
	for _, tc := range faulty() {
		f.Add(tc.frame, uint8(tc.hints.Segments), tc.hints.Options)
	}
	f.Fuzz(func(t *testing.T, frame []byte, segments uint8, options bool) {
		hints := packet.Hints{Segments: int(segments), Options: options}
		p := packet.Read(frame, hints)
		if p.Fault.String() == "unknown" {
			t.Fatalf("fault %d", p.Fault)
		}
		if p.Fault != packet.FaultNone || p.EtherType == packet.EtherTypeARP {
			return
		}
		if segments == 0 {
			understood(t, frame, p)
			if got := packet.Read(frame[:p.End], hints); got != p {
				t.Errorf("padding matters: %+v, without it %+v", p, got)
			}
			if got := packet.Read(frame[:p.End-1], hints); got.Fault == packet.FaultNone {
				t.Errorf("understood without its last byte: %+v", got)
			}
		}
		if segments == 0 && !options {
			return
		}
		// A hint explains lengths and options, never anything else.
		bare := packet.Read(frame, packet.Hints{})
		if bare.Fault == packet.FaultNone && segments == 0 && bare != p {
			t.Errorf("%+v, without hints %+v", p, bare)
		}
	})
}

// understood holds what was read against the frame's own fields once more.
func understood(t *testing.T, frame []byte, p packet.Packet) {
	t.Helper()
	if p.Transport < 34 || p.End < p.Transport || p.End > len(frame) {
		t.Fatalf("transport at %d, end at %d of %d", p.Transport, p.End, len(frame))
	}
	says := int(binary.BigEndian.Uint16(frame[16:]))
	if p.EtherType == packet.EtherTypeIPv6 {
		says = int(binary.BigEndian.Uint16(frame[18:])) + 40
	}
	if says != p.End-14 {
		t.Errorf("the header says %d bytes, read %d", says, p.End-14)
	}
	if !p.Tuple.Src.IsValid() || p.Tuple.Src.Is4() != p.Tuple.Dst.Is4() || p.Tuple.Src.Is4In6() {
		t.Errorf("addresses %v", p.Tuple)
	}
	body := frame[p.Transport:p.End]
	switch {
	case p.Fragment.Place == packet.FragmentLater:
		if p.Tuple.SrcPort|p.Tuple.DstPort != 0 || p.TCPFlags != 0 || p.ICMPError || p.Neighbour {
			t.Errorf("a later fragment with a transport header: %+v", p)
		}
	case p.Tuple.Protocol == packet.ProtocolUDP:
		if n := int(binary.BigEndian.Uint16(body[4:])); n < len(body) || (n > len(body) && p.Fragment.Place == packet.FragmentWhole) {
			t.Errorf("UDP says %d of %d", n, len(body))
		}
	case p.Tuple.Protocol == packet.ProtocolTCP:
		if n := int(body[12]>>4) * 4; n < 20 || n > len(body) {
			t.Errorf("TCP header of %d in %d", n, len(body))
		}
	}
	if p.Fragment.Place != packet.FragmentWhole && p.Fragment.Length != len(body) && p.Fragment.Place == packet.FragmentLater {
		t.Errorf("fragment of %d, body %d", p.Fragment.Length, len(body))
	}
	if p.HasInner && !p.ICMPError {
		t.Error("an inner packet without an error")
	}
}
