//go:build linux

package attack

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/postern-dev/postern/internal/lab"
	"github.com/postern-dev/postern/internal/packet/packettest"
)

// bridgeAttacks are frames that a bridge carries to other pods. payments/api is
// the other pod; no policy of its own protects it.
func bridgeAttacks() []attack {
	return []attack{
		{id: "PKT-02", off: absent, try: func(x *try) { x.taggedToPod(2) }},
		{id: "PKT-04", off: absent, try: func(x *try) { x.taggedToPod(1) }},
		{id: "PKT-33", off: absent, try: (*try).claimNeighbour},
		{id: "PKT-33b", off: absent, limit: true, try: func(x *try) {
			tok := x.attackToken("a solicitation's target", 1)
			target := netip.AddrFrom16(tok)
			group := packettest.SolicitedNode(target)
			x.send(lab.Raw, packettest.Build(append([]packettest.Layer{packettest.Eth{Src: x.pod.MAC(), Dst: packettest.MulticastMAC(group)}, packettest.IPv6{Src: linkLocal(x.pod.MAC()), Dst: group}},
				packettest.NeighborSolicitation(target, x.pod.MAC())...)...))
		}},
		{id: "K8S-16c", off: open, try: func(x *try) {
			other := x.w.pod("payments/api")
			// Bridged frames past netfilter: nothing looks after the pod's hook.
			for _, f := range []string{"iptables", "ip6tables"} {
				x.nodeSysctl("bridge/bridge-nf-call-"+f, "0")
				defer x.nodeSysctl("bridge/bridge-nf-call-"+f, "1")
			}
			if x.on {
				x.w.write("captor.yaml", captor([2]netip.Addr{other.IPs[0], other.IPs[1]}, x.w.pod("shop/cart")))
				x.w.write("cart.yaml", cartToo)
			}
			for v := range 2 {
				x.denied("another pod's address, which is said to be a Service's "+family(v), isolation, func(tok packettest.Token) []byte {
					return packettest.Build(packettest.Eth{Src: x.pod.MAC(), Dst: other.MAC()}, ipHeader(x.src(web(v)), other.IP(web(v))), packettest.UDP{SrcPort: x.port(), DstPort: 7}, tok)
				}, everyMode...)
			}
			x.settle()
			if x.on {
				x.w.remove("cart.yaml")
				x.w.remove("captor.yaml")
			}
		}},
		{id: "PKT-38", off: absent, try: func(x *try) {
			other, third := x.w.pod("payments/api"), x.w.pod("shop/cart")
			for v := range 2 {
				x.denied("another pod's address "+family(v), "source-address", func(tok packettest.Token) []byte {
					return packettest.Build(packettest.Eth{Src: x.pod.MAC(), Dst: other.MAC()}, ipHeader(third.IP(web(v)), other.IP(web(v))), packettest.UDP{SrcPort: x.port(), DstPort: 7}, tok)
				}, everyMode...)
			}
			x.denied("another pod's link-local address", "source-address", func(tok packettest.Token) []byte {
				return packettest.Build(packettest.Eth{Src: x.pod.MAC(), Dst: other.MAC()}, packettest.IPv6{Src: linkLocal(third.MAC()), Dst: linkLocal(other.MAC())}, packettest.UDP{SrcPort: x.port(), DstPort: 7}, tok)
			})
		}},
		{id: "PKT-39", off: absent, try: func(x *try) {
			other := x.w.pod("payments/api")
			for v := range 2 {
				frame := func(dst packettest.MAC) func(tok packettest.Token) []byte {
					return func(tok packettest.Token) []byte {
						return packettest.Build(packettest.Eth{Src: x.pod.MAC(), Dst: dst}, ipHeader(x.src(web(v)), web(v)), packettest.UDP{SrcPort: x.port(), DstPort: controlPort}, tok)
					}
				}
				// The packet says web, which is allowed; the frame goes to another pod, which is not.
				tok := x.attackToken("to an allowed address, at another pod's MAC "+family(v), 1)
				x.send(lab.Raw, frame(other.MAC())(tok))
				x.denied("to an allowed address, at everybody's MAC "+family(v), "destination-mac", frame(packettest.Broadcast))
				x.denied("to an allowed address, at a group's MAC "+family(v), "destination-mac", frame(packettest.MulticastMAC(netip.MustParseAddr("ff02::1"))))
				// Judged at the receiver: what it is sent is not for it.
				tok = x.attackToken("to an allowed address, at an unknown MAC "+family(v), 1)
				x.maybe()
				x.send(lab.Raw, frame(packettest.MAC{2, 1, 2, 3, 4, 5})(tok))
				x.denied("to the pod itself "+family(v), isolation, func(tok packettest.Token) []byte {
					return packettest.Build(packettest.Eth{Src: x.pod.MAC(), Dst: other.MAC()}, ipHeader(x.src(web(v)), other.IP(web(v))), packettest.UDP{SrcPort: x.port(), DstPort: controlPort}, tok)
				}, everyMode...)
			}
		}},
		{id: "PKT-52", off: absent, try: func(x *try) {
			other := x.w.pod("payments/api")
			for name, typ := range map[string]uint16{"LLC": 60, "experimental": 0x88b5, "LACP": 0x8809, "LLDP": 0x88cc, "PPPoE": 0x8864, "MPLS": 0x8847, "EAPOL": 0x888e, "PROFINET": 0x8892, "RARP": 0x8035} {
				x.denied(name, "ethertype", func(tok packettest.Token) []byte {
					return packettest.Build(packettest.Eth{Src: x.pod.MAC(), Dst: other.MAC(), Type: new(typ)}, packettest.Payload(make([]byte, 44)), tok)
				})
				if typ < 1536 {
					x.maybe()
				}
			}
			x.deniedMaybe("spanning tree", "ethertype", func(tok packettest.Token) []byte {
				return packettest.Build(packettest.Eth{Src: x.pod.MAC(), Dst: packettest.MAC{1, 0x80, 0xc2}, Type: new(uint16(60))}, packettest.Payload{0x42, 0x42, 3}, packettest.Payload(make([]byte, 41)), tok)
			})
			x.denied("IPv6 as IPv4", "malformed|source-address", func(tok packettest.Token) []byte {
				return packettest.Build(packettest.Eth{Src: x.pod.MAC(), Dst: other.MAC(), Type: new(uint16(0x0800))}, ipHeader(x.src(web(1)), web(1)), packettest.UDP{SrcPort: 1, DstPort: controlPort}, tok)
			})
			x.maybe()
		}},
		{id: "PKT-31", off: absent, try: func(x *try) {
			ll := linkLocal(x.pod.MAC())
			group := netip.MustParseAddr("ff02::16")
			report := func(body []byte) func(tok packettest.Token) []byte {
				return func(tok packettest.Token) []byte {
					return packettest.Build(packettest.Eth{Src: x.pod.MAC(), Dst: packettest.MulticastMAC(group)}, packettest.IPv6{Src: ll, Dst: group, HopLimit: new(uint8(1))},
						packettest.ICMPv6{Type: 143, ID: be16(body), Seq: be16(body[2:])}, packettest.Payload(body[4:]), tok)
				}
			}
			x.denied("listener report with data behind its records", "ndp", report([]byte{0, 0, 0, 0}))
			record := netip.MustParseAddr("ff02::1:ff00:1").AsSlice()
			x.denied("listener report with sources", "ndp", report(append([]byte{0, 0, 0, 1, 4, 0, 0, 1}, record...)))
			x.denied("listener report with auxiliary data", "ndp", report(append([]byte{0, 0, 0, 1, 4, 4, 0, 0}, record...)))
			x.denied("listener report for something that is no group", "ndp", report([]byte{0, 0, 0, 1, 4, 0, 0, 0}))
		}},
	}
}

// taggedToPod sends stacks of tags to another pod.
func (x *try) taggedToPod(depth int) {
	other := x.w.pod("payments/api")
	for _, outer := range []uint16{packettest.EtherType8021Q, packettest.EtherTypeQinQ, packettest.EtherType9100} {
		for _, vid := range []uint16{0, 1, 5, 4094} {
			for v := range 2 {
				x.denied(fmt.Sprintf("tag %#x %d, depth %d %s", outer, vid, depth, family(v)), "vlan", func(tok packettest.Token) []byte {
					layers := []packettest.Layer{packettest.Eth{Src: x.pod.MAC(), Dst: other.MAC()}, packettest.VLAN{TPID: outer, VID: vid}}
					if depth == 2 {
						layers = append(layers, packettest.VLAN{VID: vid})
					}
					return packettest.Build(append(layers, ipHeader(x.src(web(v)), other.IP(web(v))), packettest.UDP{SrcPort: x.port(), DstPort: 7}, tok)...)
				}, lab.Raw, lab.Bypass)
			}
		}
	}
}

// claimNeighbour tells a third pod that another pod's address, and the
// gateway's, is at the attacker's MAC. What counts is what the third pod believes.
func (x *try) claimNeighbour() {
	victim, third := x.w.pod("payments/api"), x.w.pod("shop/cart")
	h, err := third.Netlink()
	if err != nil {
		x.Fatal(err)
	}
	defer h.Close()
	eth, err := h.LinkByName("eth0")
	if err != nil {
		x.Fatal(err)
	}
	type target struct {
		addr netip.Addr
		mac  packettest.MAC
	}
	var targets []target
	for v := range 2 {
		targets = append(targets, target{victim.IP(web(v)), victim.MAC()}, target{x.w.node.Gateways[v], third.GatewayMAC()})
	}
	targets = append(targets, target{linkLocal(third.GatewayMAC()), third.GatewayMAC()}, target{linkLocal(victim.MAC()), victim.MAC()})
	for _, to := range targets {
		neigh := &netlink.Neigh{LinkIndex: eth.Attrs().Index, IP: to.addr.AsSlice(), HardwareAddr: net.HardwareAddr(to.mac[:]), State: netlink.NUD_STALE}
		claims := map[string]func() []byte{}
		own := x.pod.MAC()
		if to.addr.Is4() {
			for name, arp := range map[string]packettest.ARP{
				"gratuitous request": {Op: packettest.ARPRequest, SenderMAC: own, SenderIP: to.addr, TargetIP: to.addr},
				"gratuitous reply":   {Op: packettest.ARPReply, SenderMAC: own, SenderIP: to.addr, TargetIP: to.addr, TargetMAC: third.MAC()},
				"reply":              {Op: packettest.ARPReply, SenderMAC: own, SenderIP: to.addr, TargetIP: third.IP(web(0)), TargetMAC: third.MAC()},
				"request":            {Op: packettest.ARPRequest, SenderMAC: own, SenderIP: to.addr, TargetIP: third.IP(web(0))},
			} {
				for _, dst := range []packettest.MAC{packettest.Broadcast, third.MAC()} {
					claims[fmt.Sprintf("ARP %s to %x", name, dst)] = func() []byte { return packettest.Build(packettest.Eth{Src: own, Dst: dst}, arp) }
				}
			}
		} else {
			all := netip.MustParseAddr("ff02::1")
			thirdLL := linkLocal(third.MAC())
			for name, src := range map[string]netip.Addr{"own address": x.src(web(1)), "own link-local": linkLocal(own), "the claimed one": to.addr} {
				claims["advertisement from "+name] = func() []byte {
					return packettest.Build(append([]packettest.Layer{packettest.Eth{Src: own, Dst: packettest.MulticastMAC(all)}, packettest.IPv6{Src: src, Dst: all}},
						packettest.NeighborAdvertisement(to.addr, own, true, false, true)...)...)
				}
			}
			claims["solicitation from the claimed one"] = func() []byte {
				return packettest.Build(append([]packettest.Layer{packettest.Eth{Src: own, Dst: third.MAC()}, packettest.IPv6{Src: to.addr, Dst: thirdLL}},
					packettest.NeighborSolicitation(thirdLL, own)...)...)
			}
		}
		for name, frame := range claims {
			if err := h.NeighSet(neigh); err != nil {
				x.Fatal(err)
			}
			for _, mode := range everyMode {
				x.send(mode, frame())
				x.tried++
			}
			reason := "arp"
			if to.addr.Is6() {
				reason = "ndp|source-address"
			}
			x.expect(reason, 3)
			time.Sleep(3 * time.Millisecond)
			if got := neighbour(x, h, eth.Attrs().Index, to.addr); got == own {
				x.leaked += 3
				if x.on {
					x.Errorf("%s for %s: believed", name, to.addr)
				}
			}
		}
		if err := h.NeighDel(neigh); err != nil && !errors.Is(err, unix.ENOENT) {
			x.Log(err)
		}
	}
	// An ARP frame carries no more than an ARP packet.
	x.denied("token behind an ARP request", "arp", func(tok packettest.Token) []byte {
		return packettest.Build(packettest.Eth{Src: x.pod.MAC(), Dst: packettest.Broadcast}, packettest.ARP{SenderMAC: x.pod.MAC(), SenderIP: x.src(web(0)), TargetIP: victim.IP(web(0))}, tok)
	})
	x.denied("long ARP request", "arp", func(tok packettest.Token) []byte {
		return packettest.Build(packettest.Eth{Src: x.pod.MAC(), Dst: packettest.Broadcast}, packettest.ARP{SenderMAC: x.pod.MAC(), SenderIP: x.src(web(0)), TargetIP: victim.IP(web(0))}, packettest.Payload(make([]byte, 100)), tok)
	})
}

// neighbour reads a pod's belief.
func neighbour(x *try, h *netlink.Handle, index int, a netip.Addr) packettest.MAC {
	family := netlink.FAMILY_V4
	if a.Is6() {
		family = netlink.FAMILY_V6
	}
	list, err := h.NeighList(index, family)
	if err != nil {
		x.Fatal(err)
	}
	for _, n := range list {
		if ip, ok := netip.AddrFromSlice(n.IP); ok && ip.Unmap() == a {
			return packettest.MACFrom(n.HardwareAddr)
		}
	}
	return packettest.MAC{}
}
