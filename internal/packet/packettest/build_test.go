package packettest

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"testing"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

var (
	a4 = netip.MustParseAddr("10.244.0.2")
	b4 = netip.MustParseAddr("203.0.113.80")
	a6 = netip.MustParseAddr("fd00:10:244::2")
	b6 = netip.MustParseAddr("2001:db8:80::80")
	m1 = MAC{2, 0, 0, 0, 0, 1}
	m2 = MAC{2, 0, 0, 0, 0, 2}
)

// onesSum is a second implementation of the internet checksum: over bytes that
// contain a right checksum it gives 0xffff.
func onesSum(bs ...[]byte) uint16 {
	var sum uint64
	for i, b := range bytes.Join(bs, nil) {
		if i%2 == 0 {
			sum += uint64(b) << 8
		} else {
			sum += uint64(b)
		}
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return uint16(sum)
}

func TestKnownFrame(t *testing.T) {
	// UDP 10.0.0.1:1000 -> 10.0.0.2:2000 "hi", worked out by hand.
	got := Build(
		Eth{Src: m1, Dst: m2},
		IPv4{Src: netip.MustParseAddr("10.0.0.1"), Dst: netip.MustParseAddr("10.0.0.2"), ID: 1},
		UDP{SrcPort: 1000, DstPort: 2000},
		Payload("hi"),
	)
	want := "020000000002" + "020000000001" + "0800" +
		"4500001e000100004011" + "66cc" + "0a000001" + "0a000002" +
		"03e807d0000a" + "77b6" + "6869"
	if hex.EncodeToString(got) != want {
		t.Errorf("got  %x\nwant %s", got, want)
	}
}

func TestChecksums(t *testing.T) {
	tok := NewToken("sum")
	for _, tc := range []struct {
		name  string
		proto byte
		layer Layer
	}{
		{"tcp", 6, TCP{SrcPort: 1, DstPort: 2, Flags: SYN, Options: []byte{2, 4, 5, 180}}},
		{"udp", 17, UDP{SrcPort: 1, DstPort: 2}},
		{"udplite", 136, UDPLite{SrcPort: 1, DstPort: 2}},
		{"icmpv6", 58, ICMPv6{Type: ICMPv6EchoRequest, ID: 7, Seq: 1}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, odd := range []string{"", "x"} {
				f := Build(Eth{}, IPv6{Src: a6, Dst: b6}, tc.layer, tok, Payload(odd))
				l4 := f[54:]
				ph := append(a6.AsSlice(), b6.AsSlice()...)
				ph = binary.BigEndian.AppendUint32(ph, uint32(len(l4)))
				ph = append(ph, 0, 0, 0, tc.proto)
				if s := onesSum(ph, l4); s != 0xffff {
					t.Errorf("v6 odd=%q: sum %#x", odd, s)
				}
				if tc.proto == 58 {
					continue
				}
				f = Build(Eth{}, IPv4{Src: a4, Dst: b4, Options: OptNOP(3)}, tc.layer, tok, Payload(odd))
				if s := onesSum(f[14:38]); s != 0xffff {
					t.Errorf("v4 header: sum %#x", s)
				}
				l4 = f[38:]
				ph = append(a4.AsSlice(), b4.AsSlice()...)
				ph = append(ph, 0, tc.proto)
				ph = binary.BigEndian.AppendUint16(ph, uint16(len(l4)))
				if s := onesSum(ph, l4); s != 0xffff {
					t.Errorf("v4 odd=%q: sum %#x", odd, s)
				}
			}
		})
	}
}

// TestAgainstXNet reads frames back with golang.org/x/net, a third opinion.
func TestAgainstXNet(t *testing.T) {
	f := Build(Eth{}, IPv4{Src: a4, Dst: b4, ID: 9, DontFragment: true, Options: OptRecordRoute(2)},
		ICMP{Type: ICMPEchoRequest, ID: 5, Seq: 6}, Payload("ping"))
	h, err := ipv4.ParseHeader(f[14:])
	if err != nil {
		t.Fatal(err)
	}
	if h.Len != 32 || h.ID != 9 || h.Flags != ipv4.DontFragment || h.Protocol != 1 || h.TTL != 64 || h.TotalLen != 44 {
		t.Errorf("header %+v", h)
	}
	m, err := icmp.ParseMessage(1, f[14+h.Len:])
	if err != nil {
		t.Fatal(err)
	}
	if e, ok := m.Body.(*icmp.Echo); !ok || e.ID != 5 || e.Seq != 6 || string(e.Data) != "ping" {
		t.Errorf("message %+v body %+v", m, m.Body)
	}
	f = Build(Eth{}, IPv6{Src: a6, Dst: b6, FlowLabel: 0xabcde, TrafficClass: 3}, HopByHop{}, DestOpts{Options: PadN(20)},
		UDP{SrcPort: 1, DstPort: 2})
	h6, err := ipv6.ParseHeader(f[14:])
	if err != nil {
		t.Fatal(err)
	}
	if h6.NextHeader != 0 || h6.PayloadLen != 8+24+8 || h6.FlowLabel != 0xabcde || h6.TrafficClass != 3 {
		t.Errorf("header %+v", h6)
	}
	if ext := f[54:]; ext[0] != 60 || ext[1] != 0 || ext[8] != 17 || ext[9] != 2 {
		t.Errorf("extension headers %x", ext)
	}
}

func TestTagsAndNesting(t *testing.T) {
	f := Build(Eth{}, VLAN{TPID: EtherTypeQinQ}, VLAN{VID: 5, PCP: 3}, IPv6{Src: a6, Dst: b6}, UDP{})
	if got, want := hex.EncodeToString(f[12:22]), "88a8"+"00008100"+"600586dd"; got != want {
		t.Errorf("got %s want %s", got, want)
	}
	f = Build(Eth{Type: new(uint16(EtherTypeIPv4)), Trailer: []byte{1, 2, 3}}, IPv6{Src: a6, Dst: b6}, NoNext{})
	if f[12] != 8 || f[13] != 0 || f[14]>>4 != 6 || f[20] != 59 || len(f) != 14+40+3 {
		t.Errorf("mismatch frame %x", f)
	}
	// An error about a UDP datagram: the embedded checksum is the embedded addresses'.
	f = Build(Eth{}, IPv4{Src: a4, Dst: b4}, ICMP{Type: ICMPUnreachable, Code: 3},
		IPv4{Src: b4, Dst: a4}, UDP{SrcPort: 53, DstPort: 4000}, Payload("x"))
	inner := f[14+20+8+20:]
	ph := append(b4.AsSlice(), a4.AsSlice()...)
	ph = append(ph, 0, 17, 0, 9)
	if s := onesSum(ph, inner); s != 0xffff {
		t.Errorf("embedded datagram: sum %#x", s)
	}
	f = Build(Eth{}, IPv4{Src: a4, Dst: b4}, UDP{DstPort: 4789}, VXLAN{VNI: 7}, Eth{Src: m1}, IPv4{Src: a4, Dst: b4}, TCP{})
	if len(f) != 14+20+8+8+14+20+20 {
		t.Errorf("vxlan frame is %d bytes", len(f))
	}
}

func TestOverrides(t *testing.T) {
	f := Build(Eth{}, IPv4{
		Src: a4, Dst: b4, Version: new(uint8(6)), IHL: new(uint8(4)), TotalLen: new(uint16(3)),
		TTL: new(uint8(0)), Proto: new(uint8(200)), Checksum: new(uint16(0xbeef)),
	}, TCP{DataOffset: new(uint8(1)), Checksum: new(uint16(1))})
	if f[14] != 0x64 || f[16] != 0 || f[17] != 3 || f[22] != 0 || f[23] != 200 ||
		f[24] != 0xbe || f[34+12] != 0x10 || f[34+17] != 1 {
		t.Errorf("frame %x", f)
	}
	if got := Build(Eth{}, IPv4{Src: a6, Dst: netip.Addr{}}); !bytes.Equal(got[26:34], make([]byte, 8)) {
		t.Errorf("an address of the wrong family must give zeros: %x", got)
	}
}

func TestCut(t *testing.T) {
	for _, frame := range [][]byte{
		Build(Eth{}, IPv4{Src: a4, Dst: b4}, UDP{SrcPort: 1, DstPort: 2}, Payload(bytes.Repeat([]byte("ab"), 50))),
		Build(Eth{}, IPv6{Src: a6, Dst: b6}, UDP{SrcPort: 1, DstPort: 2}, Payload(bytes.Repeat([]byte("ab"), 50))),
	} {
		hlen := 34
		if frame[12] == 0x86 {
			hlen = 54
		}
		parts, err := Cut(frame, 77, 8, 64)
		if err != nil || len(parts) != 3 {
			t.Fatalf("%d parts, %v", len(parts), err)
		}
		var joined []byte
		for _, p := range parts {
			skip := hlen
			if hlen == 54 {
				skip += 8
			} else if s := onesSum(p[14:34]); s != 0xffff {
				t.Errorf("fragment header: sum %#x", s)
			}
			joined = append(joined, p[skip:]...)
		}
		if !bytes.Equal(joined, frame[hlen:]) {
			t.Errorf("fragments don't join to the datagram")
		}
		for _, bad := range [][]int{{4}, {8, 8}, {400}, {16, 8}} {
			if _, err := Cut(frame, 1, bad...); err == nil {
				t.Errorf("Cut at %v: no error", bad)
			}
		}
	}
}

func TestTokens(t *testing.T) {
	one, other := NewToken("a"), NewToken("a")
	if one == other {
		t.Error("two tokens of one name are equal")
	}
	one, other = FixedToken("a"), FixedToken("a")
	if one != other || one == FixedToken("b") {
		t.Error("fixed tokens")
	}
	tok := NewToken("x")
	for _, proto := range []uint8{1, 6, 17, 58, 132, 136, 253} {
		for _, ends := range [][2]netip.Addr{{a4, b4}, {a6, b6}} {
			f := Simple(m1, m2, proto, netip.AddrPortFrom(ends[0], 1), netip.AddrPortFrom(ends[1], 2), tok[:])
			if !bytes.Contains(f, tok[:]) {
				t.Errorf("proto %d: no token in %x", proto, f)
			}
		}
	}
}
