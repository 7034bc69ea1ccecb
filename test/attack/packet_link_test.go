//go:build linux

package attack

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/postern-dev/postern/internal/lab"
	"github.com/postern-dev/postern/internal/packet/packettest"
)

// TestPackets is section 1 on a routed veth, on a node without conntrack: what
// conntrack would refuse is ours to refuse.
func TestPackets(t *testing.T) {
	spec := lab.DefaultSpec("at-packets")
	spec.NoConntrack, spec.MTU = true, 9000
	w := newWorld(t, spec)
	untranslated := attack{id: "K8S-16b", off: open, try: func(x *try) {
		if x.on {
			x.w.write("captor.yaml", captor([2]netip.Addr{evil(0), evil(1)}, x.w.pod("shop/cart")))
			x.w.write("cart.yaml", cartToo)
		}
		for v := range 2 {
			x.denied("an external address that nobody translates "+family(v), isolation, func(tok packettest.Token) []byte { return x.udp(evil(v), 7, tok) }, everyMode...)
			x.denied("a large one "+family(v), isolation, func(tok packettest.Token) []byte {
				return x.udp(evil(v), 7, packettest.Payload(make([]byte, 3000)), tok)
			})
		}
		x.settle()
		if x.on {
			x.w.remove("cart.yaml")
			x.w.remove("captor.yaml")
		}
	}}
	w.run(narrow, slices.Concat([]attack{untranslated}, offloadAttacks(), linkAttacks(), ipv4Attacks(), ipv6Attacks(), fragmentAttacks(), transportAttacks(), icmpAttacks(), sourceAttacks(), placeAttacks()))
}

// cartToo lets shop/frontend reach the pods shop/cart.
const cartToo = `apiVersion: postern.dev/v1alpha1
kind: EgressPolicy
metadata: {name: zz-cart, namespace: shop}
spec:
  podSelector: {matchLabels: {app: frontend}}
  egress: [{name: accept-cart, to: [{pods: {podSelector: {matchLabels: {app: cart}}}}]}]
`

// TestPacketsOnBridge is what a bridge between the pods adds.
func TestPacketsOnBridge(t *testing.T) {
	spec := lab.DefaultSpec("at-bridge")
	spec.CNI, spec.NoConntrack = lab.Bridge, true
	w := newWorld(t, spec)
	w.run(narrow, bridgeAttacks())
}

// family names the family with index v.
func family(v int) string { return []string{"v4", "v6"}[v] }

func linkAttacks() []attack {
	return []attack{
		{id: "PKT-01", off: open, try: func(x *try) {
			big := packettest.Payload(make([]byte, 5000))
			for v := range 2 {
				x.denied("udp "+family(v), isolation, func(tok packettest.Token) []byte { return x.udp(evil(v), 443, tok) }, everyMode...)
				x.denied("udp of 5000 bytes "+family(v), isolation, func(tok packettest.Token) []byte { return x.udp(evil(v), 443, tok, big) }, everyMode...)
				x.denied("tcp "+family(v), isolation, func(tok packettest.Token) []byte { return x.tcp(web(v), deniedPort, packettest.SYN, tok) }, everyMode...)
				x.allowed("udp of 5000 bytes "+family(v), func(tok packettest.Token) []byte { return x.udp(web(v), controlPort, big, tok) }, everyMode...)
				x.allowed("tcp "+family(v), func(tok packettest.Token) []byte { return x.tcp(web(v), controlPort, packettest.SYN, tok) }, everyMode...)
			}
		}},
		{id: "PKT-02", off: absent, try: func(x *try) { x.tagged(2) }},
		{id: "PKT-03", off: absent, try: func(x *try) { x.tagged(1) }},
		{id: "PKT-39", off: absent, try: func(x *try) {
			for v := range 2 {
				f := func(eth packettest.Eth) func(tok packettest.Token) []byte {
					return func(tok packettest.Token) []byte {
						return packettest.Build(eth, ipHeader(x.src(web(v)), web(v)), packettest.UDP{SrcPort: x.port(), DstPort: controlPort}, tok)
					}
				}
				eth := x.pod.Eth()
				x.denied("source MAC of nobody "+family(v), "source-mac", f(packettest.Eth{Src: packettest.MAC{2, 1, 2, 3, 4, 5}, Dst: eth.Dst}), everyMode...)
				x.denied("source MAC of the gateway "+family(v), "source-mac", f(packettest.Eth{Src: eth.Dst, Dst: eth.Dst}))
				// The kernel refuses to route these; no state may come of them.
				x.deniedMaybe("destination MAC of nobody "+family(v), "destination-mac", f(packettest.Eth{Src: eth.Src, Dst: packettest.MAC{2, 1, 2, 3, 4, 5}}))
				x.deniedMaybe("destination MAC broadcast "+family(v), "destination-mac", f(packettest.Eth{Src: eth.Src, Dst: packettest.Broadcast}))
			}
		}},
		{id: "PKT-49", off: absent, try: (*try).movedPod},
	}
}

// tagged sends every stack of tags of a depth to a denied and to an allowed destination.
func (x *try) tagged(depth int) {
	tpids, vids := []uint16{packettest.EtherType8021Q, packettest.EtherTypeQinQ, packettest.EtherType9100}, []uint16{0, 1, 5, 4095}
	var stacks [][]packettest.VLAN
	for _, tpid := range tpids {
		for _, vid := range vids {
			stacks = append(stacks, []packettest.VLAN{{TPID: tpid, VID: vid}})
		}
	}
	single := stacks
	for range depth - 1 {
		var deeper [][]packettest.VLAN
		for _, s := range stacks {
			for _, one := range single {
				deeper = append(deeper, append(slices.Clone(s), one...))
			}
		}
		stacks = deeper
	}
	for _, stack := range stacks {
		for v := range 2 {
			frame := func(tok packettest.Token) []byte {
				layers := []packettest.Layer{x.pod.Eth()}
				for _, tag := range stack {
					layers = append(layers, tag)
				}
				return packettest.Build(append(layers, ipHeader(x.src(evil(v)), evil(v)), packettest.UDP{SrcPort: x.port(), DstPort: 443}, tok)...)
			}
			x.denied(fmt.Sprintf("tags %v %s", stack, family(v)), "vlan", frame)
			// The kernel routes priority tags of the two standard kinds only.
			if slices.ContainsFunc(stack, func(tag packettest.VLAN) bool { return tag.VID != 0 || tag.TPID == packettest.EtherType9100 }) {
				x.maybe()
			}
		}
	}
}

// movedPod changes the pod's side as CAP_NET_ADMIN there may: addresses, MAC, a second link on top.
func (x *try) movedPod() {
	h, err := x.pod.Netlink()
	if err != nil {
		x.Fatal(err)
	}
	defer h.Close()
	eth, err := h.LinkByName("eth0")
	if err != nil {
		x.Fatal(err)
	}
	other := [2]string{"10.244.1.99", "fd00:10:244:1::99"}
	for v, a := range other {
		addr, err := netlink.ParseAddr(a + []string{"/32", "/128"}[v])
		if err != nil {
			x.Fatal(err)
		}
		addr.Flags = ifaNoDAD * v
		if err := h.AddrAdd(eth, addr); err != nil {
			x.Fatal(err)
		}
		tok := x.attackToken("address added "+family(v), 1)
		if err := x.sendUDP(udpFrom{local: a}, web(v), controlPort, tok[:]); err != nil {
			x.Fatal(err)
		}
		x.expect("source-address", 1)
		if err := h.AddrDel(eth, addr); err != nil {
			x.Fatal(err)
		}
	}
	// A macvlan on top of eth0 has a MAC of its own, and any address it likes.
	mv := &netlink.Macvlan{LinkAttrs: netlink.LinkAttrs{Name: "mv0", ParentIndex: eth.Attrs().Index, HardwareAddr: net.HardwareAddr{2, 9, 9, 9, 9, 9}}, Mode: netlink.MACVLAN_MODE_BRIDGE}
	if err := h.LinkAdd(mv); err != nil {
		x.Fatal(err)
	}
	if err := h.LinkSetUp(mv); err != nil {
		x.Fatal(err)
	}
	s, err := x.pod.OpenSender("mv0", lab.Raw)
	if err != nil {
		x.Fatal(err)
	}
	for v := range 2 {
		f := packettest.Build(packettest.Eth{Src: packettest.MAC{2, 9, 9, 9, 9, 9}, Dst: x.pod.GatewayMAC()}, ipHeader(x.src(evil(v)), evil(v)),
			packettest.UDP{SrcPort: x.port(), DstPort: 443}, x.attackToken("macvlan on eth0 "+family(v), 1))
		if err := s.Send(f); err != nil {
			x.Fatal(err)
		}
		x.expect("source-mac", 1)
	}
	if err := s.Close(); err != nil {
		x.Fatal(err)
	}
	if err := h.LinkDel(mv); err != nil {
		x.Fatal(err)
	}
	x.beside = append(x.beside, "source-mac") // a link that comes up joins multicast groups, from its own MAC
}
