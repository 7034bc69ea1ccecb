//go:build linux

package lab

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/postern-dev/postern/internal/packet/packettest"
)

func tap(t *testing.T, l *Lab, except ...*Pod) *Tap {
	t.Helper()
	tp, err := l.Tap(soon(t), except...)
	if err != nil {
		t.Fatal(err)
	}
	return tp
}

// requireSeen fails unless token was seen at exactly these sniffers.
func requireSeen(t *testing.T, tp *Tap, token packettest.Token, want ...string) {
	t.Helper()
	if err := tp.Verify(soon(t)); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, s := range tp.Seen(token) {
		label, _, _ := strings.Cut(s, " ")
		got = append(got, label)
	}
	if strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("seen at %v, want %v", got, want)
	}
}

func TestTapSeesEveryWayOut(t *testing.T) {
	l := up(t, world("lt-tap", PTP, 2))
	from, other, far := pod(t, l, "shop/frontend"), pod(t, l, "payments/api"), pod(t, l, "shop/cart-2")
	node := l.Nodes()[0]
	tp := tap(t, l, from)
	for v, web := range []netip.Addr{WebV4, WebV6} {
		for _, mode := range []SendMode{Raw, Ring, Bypass} {
			for _, c := range []struct {
				name string
				to   netip.Addr
				want []string
			}{
				{"outside", web, []string{"outside:w-node1"}},
				{"pod", other.IPs[v], []string{"payments/api:eth0"}},
				// The answer of node2 and its pod, port unreachable, quotes the token.
				{"far", far.IPs[v], []string{"outside:w-node1", "outside:w-node2", "shop/cart-2:eth0"}},
				{"node", node.IPs[v], []string{"node1:stack"}},
				{"other-node", l.Nodes()[1].IPs[v], []string{"outside:w-node1", "outside:w-node2", "node2:stack"}},
			} {
				t.Run(c.name+"/"+mode.String(), func(t *testing.T) {
					tok := packettest.NewToken(t.Name())
					frame := packettest.Simple(from.MAC(), from.GatewayMAC(), 17,
						netip.AddrPortFrom(from.IPs[v], 4000), netip.AddrPortFrom(c.to, 9), tok[:])
					if err := from.Send(mode, frame); err != nil {
						t.Fatal(err)
					}
					requireSeen(t, tp, tok, c.want...)
				})
			}
		}
	}
}

// TestFramesAreValid sends every kind of frame that the builder makes without
// overrides and expects the kernel to accept it (packettest's B2).
func TestFramesAreValid(t *testing.T) {
	l := up(t, world("lt-frames", PTP, 1))
	from := pod(t, l, "shop/frontend")
	node := l.Nodes()[0]
	tp := tap(t, l, from)
	p := packettest.Payload("payload of some length")
	for v, layers := range [][]packettest.Layer{
		{packettest.IPv4{Src: from.IPs[0], Dst: node.IPs[0]}},
		{packettest.IPv6{Src: from.IPs[1], Dst: node.IPs[1]}},
	} {
		icmp := packettest.Layer(packettest.ICMP{Type: packettest.ICMPEchoRequest})
		if v == 1 {
			icmp = packettest.ICMPv6{Type: packettest.ICMPv6EchoRequest}
		}
		for name, transport := range map[string][]packettest.Layer{
			"tcp":      {packettest.TCP{SrcPort: 4000, DstPort: EchoPort, Flags: packettest.SYN}},
			"udp":      {packettest.UDP{SrcPort: 4000, DstPort: EchoPort}},
			"icmp":     {icmp},
			"sctp":     {packettest.SCTP{SrcPort: 1, DstPort: 2}},
			"udplite":  {packettest.UDPLite{SrcPort: 1, DstPort: 2}},
			"gre":      {packettest.GRE{}, packettest.IPv4{Src: from.IPs[0], Dst: node.IPs[0]}, packettest.UDP{}},
			"raw":      {packettest.Raw{Proto: 253}},
			"priority": {},
		} {
			t.Run(name, func(t *testing.T) {
				tok := packettest.NewToken(t.Name())
				all := []packettest.Layer{from.Eth()}
				if name == "priority" {
					all = append(all, packettest.VLAN{})
					transport = []packettest.Layer{packettest.UDP{SrcPort: 4000, DstPort: EchoPort}}
				}
				all = append(append(append(all, layers...), transport...), tok, p)
				if err := from.Send(Raw, packettest.Build(all...)); err != nil {
					t.Fatal(err)
				}
				requireSeen(t, tp, tok, "node1:stack")
			})
		}
		t.Run("fragments", func(t *testing.T) {
			tok := packettest.NewToken(t.Name())
			whole := packettest.Build(append(append([]packettest.Layer{from.Eth()}, layers...),
				packettest.UDP{SrcPort: 4000, DstPort: EchoPort}, packettest.Payload(make([]byte, 40)), tok)...)
			parts, err := packettest.Cut(whole, 99, 24)
			if err != nil {
				t.Fatal(err)
			}
			if err := from.Send(Raw, parts...); err != nil {
				t.Fatal(err)
			}
			requireSeen(t, tp, tok, "node1:stack")
		})
	}
	t.Run("extension-headers", func(t *testing.T) {
		tok := packettest.NewToken(t.Name())
		frame := packettest.Build(from.Eth(), packettest.IPv6{Src: from.IPs[1], Dst: node.IPs[1]},
			packettest.HopByHop{}, packettest.DestOpts{Options: packettest.PadN(30)}, packettest.Fragment{ID: 7},
			packettest.DestOpts{}, packettest.UDP{SrcPort: 4000, DstPort: EchoPort}, tok)
		if err := from.Send(Raw, frame); err != nil {
			t.Fatal(err)
		}
		requireSeen(t, tp, tok, "node1:stack")
	})
	t.Run("bad-checksum", func(t *testing.T) {
		tok := packettest.NewToken(t.Name())
		frame := packettest.Build(from.Eth(),
			packettest.IPv4{Src: from.IPs[0], Dst: node.IPs[0], Checksum: new(uint16(0xdead))}, packettest.UDP{}, tok)
		if err := from.Send(Raw, frame); err != nil {
			t.Fatal(err)
		}
		requireSeen(t, tp, tok)
	})
}

func TestSnifferKeepsFrames(t *testing.T) {
	l := up(t, world("lt-keep", PTP, 1))
	from, to := pod(t, l, "shop/frontend"), pod(t, l, "payments/api")
	s, err := l.Sniff(soon(t), to.Namespace, SniffOptions{
		Interface: podInterface, ProbeFrom: to.Node.Namespace, ProbeInterface: to.HostInterface,
	})
	if err != nil {
		t.Fatal(err)
	}
	frame := packettest.Build(
		packettest.Eth{Src: from.MAC(), Dst: from.GatewayMAC()},
		packettest.IPv4{Src: from.IPs[0], Dst: to.IPs[0]}, packettest.UDP{SrcPort: 5, DstPort: 9}, packettest.NewToken("kept"))
	if err := from.Send(Raw, frame); err != nil {
		t.Fatal(err)
	}
	if err := s.Verify(soon(t)); err != nil {
		t.Fatal(err)
	}
	frames, err := s.Frames()
	if err != nil {
		t.Fatal(err)
	}
	var got *Frame
	for i := range frames {
		if strings.Contains(string(frames[i].Data), packettest.TokenMagic) {
			got = &frames[i]
		}
	}
	if got == nil || got.Out || got.Time.IsZero() || len(got.Data) != len(frame) || got.Data[22] != 63 {
		t.Errorf("frame %+v of %d", got, len(frames))
	}
}

// TestBlindSnifferSaysSo takes the sniffer's interface away.
func TestBlindSnifferSaysSo(t *testing.T) {
	l := up(t, world("lt-blind", PTP, 1))
	p := pod(t, l, "payments/api")
	s, err := l.Sniff(soon(t), p.Namespace, SniffOptions{
		Interface: podInterface, ProbeFrom: p.Node.Namespace, ProbeInterface: p.HostInterface,
	})
	if err != nil {
		t.Fatal(err)
	}
	h, err := p.Netlink()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	link, err := h.LinkByName(podInterface)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.LinkSetDown(link); err != nil {
		t.Fatal(err)
	}
	if err := s.Verify(soon(t)); err == nil {
		t.Error("the sniffer of an interface that is down says that it sees")
	}
}

// TestOverrunSnifferSaysSo floods a sniffer that has no room.
func TestOverrunSnifferSaysSo(t *testing.T) {
	l := up(t, world("lt-overrun", PTP, 1))
	from, to := pod(t, l, "shop/frontend"), pod(t, l, "payments/api")
	s, err := l.Sniff(soon(t), to.Namespace, SniffOptions{
		Interface: podInterface, Buffer: 1, ProbeFrom: to.Node.Namespace, ProbeInterface: to.HostInterface,
	})
	if err != nil {
		t.Fatal(err)
	}
	sender, err := from.OpenSender(podInterface, Raw)
	if err != nil {
		t.Fatal(err)
	}
	frame := packettest.Simple(from.MAC(), from.GatewayMAC(), 17,
		netip.AddrPortFrom(from.IPs[0], 4000), netip.AddrPortFrom(to.IPs[0], 9), make([]byte, 1000))
	for range 2000 {
		if err := sender.Send(frame); err != nil {
			t.Fatal(err)
		}
	}
	if err := sender.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Verify(soon(t)); err == nil || !strings.Contains(err.Error(), "blind") {
		drops, _ := s.Drops()
		t.Errorf("Verify after %d drops: %v", drops, err)
	}
}

func TestDropInvalid(t *testing.T) {
	for _, drop := range []bool{false, true} {
		spec := DefaultSpec("lt-invalid")
		spec.DropInvalid = drop
		l := up(t, spec)
		from := pod(t, l, "shop/frontend")
		tp := tap(t, l, from)
		tok := packettest.NewToken("invalid")
		frame := packettest.Build(from.Eth(), packettest.IPv4{Src: from.IPs[0], Dst: WebV4},
			packettest.TCP{SrcPort: 1, DstPort: 2, Flags: packettest.SYN | packettest.FIN}, tok)
		if err := from.Send(Raw, frame); err != nil {
			t.Fatal(err)
		}
		if drop {
			requireSeen(t, tp, tok)
		} else {
			requireSeen(t, tp, tok, "outside:w-node1")
		}
		if err := l.Down(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestBridgePassesWhatRoutingDoesNot(t *testing.T) {
	l := up(t, world("lt-bridge", Bridge, 1))
	from, to := pod(t, l, "shop/frontend"), pod(t, l, "payments/api")
	tp := tap(t, l, from)
	tok := packettest.NewToken("tagged")
	frame := packettest.Build(packettest.Eth{Src: from.MAC(), Dst: to.MAC()}, packettest.VLAN{VID: 5},
		packettest.IPv4{Src: from.IPs[0], Dst: to.IPs[0]}, packettest.UDP{DstPort: 9}, tok)
	if err := from.Send(Raw, frame); err != nil {
		t.Fatal(err)
	}
	requireSeen(t, tp, tok, "payments/api:eth0")
	for _, s := range tp.Sniffers() {
		frames, _ := s.Frames()
		for _, f := range frames {
			if len(tokensIn(f.Data)) > 0 && (!f.Tagged || f.TCI != 5 || f.TPID != packettest.EtherType8021Q) {
				t.Errorf("frame %+v", f)
			}
		}
	}
}
