package datapath_test

import (
	"net/netip"
	"testing"

	"github.com/postern-dev/postern/internal/datapath"
	"github.com/postern-dev/postern/internal/flow"
	"github.com/postern-dev/postern/internal/packet/packettest"
	"github.com/postern-dev/postern/internal/policy"
)

// TestShapes gives single frames to the programs: what the attack suite found
// on wires, as small as it gets. The pod is isolated and may reach every
// address: what is dropped is dropped for its shape.
func TestShapes(t *testing.T) {
	own4, own6 := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")
	web4, web6 := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	var networks []netip.Prefix
	for _, s := range []string{"0.0.0.0/0", "::/0"} {
		networks = append(networks, netip.MustParsePrefix(s))
	}
	s := &policy.Snapshot{
		Tiers: policy.BuiltinTiers(),
		Pods:  []policy.Pod{{Namespace: "shop", Name: "web", UID: "1", Node: "node1", IPs: []netip.Addr{own4, own6}}},
		Policies: []policy.Policy{{
			Kind: policy.KindEgressPolicy, Namespace: "shop", Name: "p", Tier: policy.TierNetworkPolicy,
			Subject: policy.Subject{Any: true}, Isolates: [2]bool{policy.Egress: true},
			Rules: [2][]policy.Rule{policy.Egress: {{Action: policy.Accept, Peers: []policy.Peer{{Kind: policy.PeerNetworks, Networks: networks}}, AnyPort: true}}},
		}},
	}
	r := newRig(t, datapath.Config{NoCatchAll: true})
	c := r.load(s)
	key := s.Pods[0].Key()
	spec := r.pods[key]
	ev := newEvents(t, r)
	mac, gw := packettest.MACFrom(podMAC), hostMAC(t, spec)
	other := packettest.MAC{2, 0, 0, 0, 0, 2}
	ll := func(m packettest.MAC) netip.Addr {
		return netip.AddrFrom16([16]byte{0xfe, 0x80, 8: m[0] ^ 2, 9: m[1], 10: m[2], 11: 0xff, 12: 0xfe, 13: m[3], 14: m[4], 15: m[5]})
	}
	eth := packettest.Eth{Src: mac, Dst: gw}
	udp := packettest.UDP{SrcPort: 4000, DstPort: 53}
	nodes := netip.MustParseAddr("ff02::1")
	group := packettest.Eth{Src: mac, Dst: packettest.MulticastMAC(nodes)}
	hop := func(n uint8) *uint8 { return &n }
	report := func(body ...byte) []byte {
		return packettest.Build(group, packettest.IPv6{Src: ll(mac), Dst: nodes, HopLimit: hop(1)}, packettest.ICMPv6{Type: 143, Seq: uint16(body[3])}, packettest.Payload(body[4:]))
	}
	record := append([]byte{0, 0, 0, 1, 4, 0, 0, 0}, nodes.AsSlice()...)
	arp := packettest.ARP{SenderMAC: mac, SenderIP: own4, TargetIP: netip.MustParseAddr("10.0.0.254")}
	padded := func(b byte) packettest.Eth {
		pad := make([]byte, 18)
		pad[17] = b
		return packettest.Eth{Src: mac, Dst: packettest.Broadcast, Trailer: pad}
	}
	for _, tc := range []struct {
		name    string
		frame   []byte
		dir     policy.Direction
		bridged bool
		mark    uint32
		silent  bool        // accepted without an event: neighbour discovery
		want    flow.Reason // 0: accepted
	}{
		{name: "allowed", frame: packettest.Build(eth, packettest.IPv4{Src: own4, Dst: web4}, udp)},
		{name: "allowed v6", frame: packettest.Build(eth, packettest.IPv6{Src: own6, Dst: web6}, udp)},
		{name: "loopback", frame: packettest.Build(eth, packettest.IPv4{Src: own4, Dst: netip.MustParseAddr("127.0.0.1")}, udp), want: flow.ReasonMartian},
		{name: "loopback, elsewhere", frame: packettest.Build(eth, packettest.IPv4{Src: own4, Dst: netip.MustParseAddr("127.1.2.3")}, udp), want: flow.ReasonMartian},
		{name: "loopback v6", frame: packettest.Build(eth, packettest.IPv6{Src: own6, Dst: netip.IPv6Loopback()}, udp), want: flow.ReasonMartian},
		{name: "unspecified", frame: packettest.Build(eth, packettest.IPv4{Src: own4, Dst: netip.MustParseAddr("0.1.2.3")}, udp), want: flow.ReasonMartian},
		{name: "unspecified v6", frame: packettest.Build(eth, packettest.IPv6{Src: own6, Dst: netip.IPv6Unspecified()}, udp), want: flow.ReasonMartian},
		{name: "just beyond loopback v6", frame: packettest.Build(eth, packettest.IPv6{Src: own6, Dst: netip.MustParseAddr("::2")}, udp)},
		{name: "two fragment headers, the first with id 0", frame: packettest.Build(eth, packettest.IPv6{Src: own6, Dst: web6}, packettest.Fragment{}, packettest.Fragment{ID: 1}, udp), want: flow.ReasonIPv6Ext},
		{name: "one fragment header with id 0", frame: packettest.Build(eth, packettest.IPv6{Src: own6, Dst: web6}, packettest.Fragment{}, udp)},
		{name: "own link-local address", frame: packettest.Build(eth, packettest.IPv6{Src: ll(mac), Dst: ll(gw)}, udp)},
		{name: "another's link-local address", frame: packettest.Build(eth, packettest.IPv6{Src: ll(other), Dst: ll(gw)}, udp), want: flow.ReasonSource},
		{name: "link-local address with bits in the middle", frame: packettest.Build(eth, packettest.IPv6{Src: netip.MustParseAddr("fe80:0:1::ff:fe00:1"), Dst: ll(gw)}, udp), want: flow.ReasonSource},
		{name: "speaking for oneself", silent: true, frame: packettest.Build(append([]packettest.Layer{group, packettest.IPv6{Src: ll(mac), Dst: nodes}}, packettest.NeighborAdvertisement(ll(mac), mac, false, false, true)...)...)},
		{name: "speaking for another", frame: packettest.Build(append([]packettest.Layer{group, packettest.IPv6{Src: ll(mac), Dst: nodes}}, packettest.NeighborAdvertisement(ll(other), mac, false, false, true)...)...), want: flow.ReasonNDP},
		{name: "asking as another", frame: packettest.Build(append([]packettest.Layer{group, packettest.IPv6{Src: ll(other), Dst: nodes}}, packettest.NeighborSolicitation(ll(gw), mac)...)...), want: flow.ReasonSource},
		{name: "listener report", silent: true, frame: report(record...)},
		{name: "listener report with data behind", frame: report(append(record, 1, 2, 3, 4)...), want: flow.ReasonNDP},
		{name: "listener report with auxiliary data", frame: report(append([]byte{0, 0, 0, 1, 4, 1, 0, 0}, nodes.AsSlice()...)...), want: flow.ReasonNDP},
		{name: "listener report with a source", frame: report(append([]byte{0, 0, 0, 1, 4, 0, 0, 1}, nodes.AsSlice()...)...), want: flow.ReasonNDP},
		{name: "listener report for an address", frame: report(append([]byte{0, 0, 0, 1, 4, 0, 0, 0}, web6.AsSlice()...)...), want: flow.ReasonNDP},
		{name: "listener query", frame: packettest.Build(group, packettest.IPv6{Src: ll(mac), Dst: nodes, HopLimit: hop(1)}, packettest.ICMPv6{Type: 130}, packettest.Payload(make([]byte, 16))), want: flow.ReasonNDP},
		{name: "old listener report", silent: true, frame: packettest.Build(group, packettest.IPv6{Src: ll(mac), Dst: nodes, HopLimit: hop(1)}, packettest.ICMPv6{Type: 131}, packettest.Payload(nodes.AsSlice()))},
		{name: "old listener report with data", frame: packettest.Build(group, packettest.IPv6{Src: ll(mac), Dst: nodes, HopLimit: hop(1)}, packettest.ICMPv6{Type: 131}, packettest.Payload(append(nodes.AsSlice(), 1))), want: flow.ReasonNDP},
		{name: "ARP", silent: true, frame: packettest.Build(packettest.Eth{Src: mac, Dst: packettest.Broadcast}, arp)},
		{name: "ARP, padded", silent: true, frame: packettest.Build(padded(0), arp)},
		{name: "ARP with data", frame: packettest.Build(padded(1), arp), want: flow.ReasonARP},
		{name: "an address at everybody's MAC", frame: packettest.Build(packettest.Eth{Src: mac, Dst: packettest.Broadcast}, packettest.IPv4{Src: own4, Dst: web4}, udp), want: flow.ReasonDestMAC},
		{name: "an address at a group's MAC", frame: packettest.Build(group, packettest.IPv6{Src: own6, Dst: web6}, udp), want: flow.ReasonDestMAC},
		{name: "the same on a bridge", bridged: true, frame: packettest.Build(packettest.Eth{Src: mac, Dst: packettest.Broadcast}, packettest.IPv4{Src: own4, Dst: web4}, udp), want: flow.ReasonDestMAC},
		{name: "a group at its MAC", bridged: true, frame: packettest.Build(group, packettest.IPv6{Src: own6, Dst: nodes}, udp)},
		{name: "another MAC on a bridge", bridged: true, frame: packettest.Build(packettest.Eth{Src: mac, Dst: other}, packettest.IPv4{Src: own4, Dst: web4}, udp)},
		{name: "received: for the pod", dir: policy.Ingress, bridged: true, frame: packettest.Build(packettest.Eth{Src: other, Dst: mac}, packettest.IPv4{Src: web4, Dst: own4}, udp)},
		{name: "received: for somebody else", dir: policy.Ingress, bridged: true, frame: packettest.Build(packettest.Eth{Src: other, Dst: mac}, packettest.IPv4{Src: netip.MustParseAddr("10.0.0.2"), Dst: web4}, udp), want: flow.ReasonDestMAC},
		{name: "received: for somebody else v6", dir: policy.Ingress, bridged: true, frame: packettest.Build(packettest.Eth{Src: other, Dst: mac}, packettest.IPv6{Src: netip.MustParseAddr("fd00::2"), Dst: web6}, udp), want: flow.ReasonDestMAC},
		{name: "received: from the pod itself", dir: policy.Ingress, mark: datapath.DefaultMark, frame: packettest.Build(packettest.Eth{Src: other, Dst: mac}, packettest.IPv6{Src: own6, Dst: own6}, udp)},
		{name: "received: for a group", dir: policy.Ingress, bridged: true, frame: packettest.Build(packettest.Eth{Src: other, Dst: packettest.MulticastMAC(nodes)}, packettest.IPv6{Src: netip.MustParseAddr("fd00::2"), Dst: nodes}, udp)},
	} {
		// No subtests: the namespaces are this goroutine's.
		spec.Bridged = tc.bridged
		if err := r.d.Arm(spec, binding(c, key)); err != nil {
			t.Fatal(err)
		}
		if err := r.d.ResetFlows(spec.Ifindex); err != nil {
			t.Fatal(err)
		}
		if tc.silent {
			if ret := r.run(spec, tc.dir, tc.frame); ret != tcxNext {
				t.Errorf("%s: answer %d, want it accepted", tc.name, ret)
			}
			continue
		}
		ev.mark = tc.mark
		ret, e := ev.verdict(spec, tc.dir, tc.frame)
		if tc.want == 0 && ret != tcxNext {
			t.Errorf("%s: answer %d by %s, want it accepted", tc.name, ret, flow.Reason(e.Rule))
		}
		if tc.want != 0 && (ret != tcxDrop || flow.Reason(e.Rule) != tc.want) {
			t.Errorf("%s: answer %d by %s, want it dropped by %s", tc.name, ret, flow.Reason(e.Rule), tc.want)
		}
	}
}
