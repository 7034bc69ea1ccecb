//go:build linux

package attack

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/postern-dev/postern/internal/packet/packettest"
)

// nodeSysctl writes a setting of the node's namespace.
func (x *try) nodeSysctl(key, value string) {
	x.Helper()
	err := x.w.node.Do(func() error {
		return os.WriteFile(filepath.Join("/proc/sys/net", key), []byte(value), 0o600)
	})
	if err != nil {
		x.Fatal(err)
	}
}

// sourceAttacks are frames with somebody else's source address.
func sourceAttacks() []attack {
	return []attack{
		{id: "PKT-38", off: absent, try: func(x *try) {
			other := x.w.pod("payments/api")
			node := x.w.node
			for v := range 2 {
				for name, src := range map[string]netip.Addr{
					"another pod":     other.IP(web(v)),
					"a pod's service": []netip.Addr{netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("fd00:10:96::a")}[v],
					"the node":        node.IPs[v],
					"the gateway":     node.Gateways[v],
					"a host outside":  evil(v),
					"its destination": web(v),
					"nobody":          []netip.Addr{netip.MustParseAddr("10.244.1.250"), netip.MustParseAddr("fd00:10:244:1::250")}[v],
					"NAT64":           []netip.Addr{netip.MustParseAddr("192.0.0.8"), netip.MustParseAddr("64:ff9b::1")}[v],
					"site-local":      []netip.Addr{netip.MustParseAddr("169.254.1.1"), netip.MustParseAddr("fec0::1")}[v],
					"unspecified":     []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}[v],
					"loopback":        []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()}[v],
					"multicast":       []netip.Addr{netip.MustParseAddr("224.0.0.1"), netip.MustParseAddr("ff02::1")}[v],
					"broadcast":       []netip.Addr{netip.MustParseAddr("255.255.255.255"), netip.MustParseAddr("ff0e::1")}[v],
				} {
					x.denied(name+" "+family(v), "source-address", func(tok packettest.Token) []byte {
						return packettest.Build(x.pod.Eth(), ipHeader(src, web(v)), packettest.UDP{SrcPort: x.port(), DstPort: controlPort}, tok)
					}, everyMode...)
					switch name {
					case "unspecified", "loopback", "multicast", "broadcast", "site-local", "NAT64", "the node", "the gateway":
						for i := range everyMode { // martians to the kernel, some of them
							x.shots[len(x.shots)-1-i].maybe = true
						}
					}
				}
			}
			// A link-local source that is not the pod's own, to the node's link-local address.
			gw := linkLocal(x.pod.GatewayMAC())
			x.denied("another's link-local address", "source-address", func(tok packettest.Token) []byte {
				return packettest.Build(x.pod.Eth(), packettest.IPv6{Src: linkLocal(other.MAC()), Dst: gw}, packettest.UDP{SrcPort: x.port(), DstPort: 7}, tok)
			})
			x.denied("IPv4 source mapped", "malformed|source-address", func(tok packettest.Token) []byte {
				return packettest.Build(x.pod.Eth(), packettest.IPv6{Src: netip.AddrFrom16(x.src(web(0)).As16()), Dst: web(1)}, packettest.UDP{SrcPort: x.port(), DstPort: controlPort}, tok)
			})
			x.maybe()
		}},
	}
}

// placeAttacks go to the node itself.
func placeAttacks() []attack {
	return []attack{
		{id: "PKT-34", off: open, try: func(x *try) {
			gw := linkLocal(x.pod.GatewayMAC())
			own := linkLocal(x.pod.MAC())
			for _, port := range []uint16{22, 7, 10250, 10255, 9100} {
				tok := x.attackToken(fmt.Sprintf("udp socket to [fe80::node]:%d", port), 1)
				if err := x.sendUDP(udpFrom{zone: true}, gw, port, tok[:]); err != nil {
					x.Fatal(err)
				}
				x.expect(isolation, 1)
				for name, src := range map[string]netip.Addr{"link-local": own, "global": x.src(web(1))} {
					x.denied(fmt.Sprintf("tcp from a %s address to [fe80::node]:%d", name, port), isolation, func(tok packettest.Token) []byte {
						return packettest.Build(x.pod.Eth(), packettest.IPv6{Src: src, Dst: gw}, packettest.TCP{SrcPort: x.port(), DstPort: port, Flags: packettest.SYN}, tok)
					})
				}
			}
			x.denied("all nodes", isolation, func(tok packettest.Token) []byte {
				all := netip.MustParseAddr("ff02::1")
				return packettest.Build(packettest.Eth{Src: x.pod.MAC(), Dst: packettest.MulticastMAC(all)}, packettest.IPv6{Src: own, Dst: all}, packettest.UDP{SrcPort: x.port(), DstPort: 7}, tok)
			})
		}},
		{id: "PKT-36", from: "ci/runner", off: absent, try: func(x *try) {
			// This pod may reach 0.0.0.0/0 and ::/0; the node's loopback is not in it.
			x.nodeSysctl("ipv4/conf/all/route_localnet", "1")
			for _, to := range []string{"127.0.0.1", "127.1.2.3", "127.255.255.254"} {
				x.denied("node's "+to, "martian", func(tok packettest.Token) []byte { return x.udp(netip.MustParseAddr(to), 7, tok) }, everyMode...)
				x.denied("node's "+to+" by TCP", "martian", func(tok packettest.Token) []byte {
					return x.tcp(netip.MustParseAddr(to), 10250, packettest.SYN, tok)
				})
			}
			x.deniedMaybe("node's ::1", "martian", func(tok packettest.Token) []byte { return x.udp(netip.IPv6Loopback(), 7, tok) })
			x.nodeSysctl("ipv4/conf/all/route_localnet", "0")
		}},
		{id: "K8S-11", off: open, try: func(x *try) {
			n := x.w.node
			for v := range 2 {
				for name, to := range map[string]netip.Addr{"address": n.IPs[v], "gateway address": n.Gateways[v]} {
					for _, port := range []uint16{7, 22, 10250, 30007, 30080} {
						x.denied(fmt.Sprintf("node's %s, udp/%d %s", name, port, family(v)), isolation, func(tok packettest.Token) []byte { return x.udp(to, port, tok) })
						x.denied(fmt.Sprintf("node's %s, tcp/%d %s", name, port, family(v)), isolation, func(tok packettest.Token) []byte {
							return x.tcp(to, port, packettest.SYN, tok)
						})
					}
				}
			}
		}},
		{id: "K8S-12", from: "ci/runner", off: open, try: func(x *try) {
			// Under an allow of 0.0.0.0/0 and ::/0.
			for v := range 2 {
				x.denied("metadata "+family(v), "networkpolicy ci/wide egress isolation", func(tok packettest.Token) []byte { return x.udp(metadata(v), 80, tok) }, everyMode...)
				x.denied("metadata by TCP "+family(v), "networkpolicy ci/wide egress isolation", func(tok packettest.Token) []byte {
					return x.tcp(metadata(v), 80, packettest.SYN, tok)
				})
			}
			for _, to := range []string{"169.254.170.2", "169.254.170.23", "100.100.100.200", "fd00:ec2::23", "fd20:ce::254"} {
				x.denied("metadata at "+to, "networkpolicy ci/wide egress isolation", func(tok packettest.Token) []byte { return x.udp(netip.MustParseAddr(to), 80, tok) })
			}
		}},
		{id: "PKT-26", off: open, try: (*try).tunnel},
	}
}

// rogueRouter advertises a route to the pod as the node's way out.
func (x *try) rogueRouter() {
	x.nodeSysctl("ipv6/conf/"+x.pod.HostInterface+"/accept_ra", "2")
	defer x.nodeSysctl("ipv6/conf/"+x.pod.HostInterface+"/accept_ra", "0")
	ll := linkLocal(x.pod.MAC())
	all := netip.MustParseAddr("ff02::1")
	prefix := netip.MustParsePrefix("2001:db8:bad::/64")
	for name, to := range map[string]netip.Addr{"advertisement to all": all, "advertisement to the node": linkLocal(x.pod.GatewayMAC())} {
		eth := x.pod.Eth()
		if to.IsMulticast() {
			eth.Dst = packettest.MulticastMAC(to)
		}
		x.send(0, packettest.Build(append([]packettest.Layer{eth, packettest.IPv6{Src: ll, Dst: to}}, packettest.RouterAdvertisement(prefix, 1800, x.pod.MAC())...)...))
		x.expect("ndp", 1)
		x.tried++
		_ = name
	}
	x.denied("redirect", "ndp", func(tok packettest.Token) []byte {
		b := append(evil(1).AsSlice(), evil(1).AsSlice()...)
		return packettest.Build(x.pod.Eth(), packettest.IPv6{Src: ll, Dst: linkLocal(x.pod.GatewayMAC())}, packettest.ICMPv6{Type: packettest.NDRedirect}, packettest.Payload(b), tok)
	})
	x.maybe()
	time.Sleep(50 * time.Millisecond)
	h, err := x.w.node.Netlink()
	if err != nil {
		x.Fatal(err)
	}
	defer h.Close()
	routes, err := h.RouteList(nil, netlink.FAMILY_V6)
	if err != nil {
		x.Fatal(err)
	}
	rogue := 0
	for i := range routes {
		r := &routes[i]
		if r.LinkIndex == x.pod.HostIfindex && (r.Gw != nil || r.Dst != nil && r.Dst.IP.Equal(net.IP(prefix.Addr().AsSlice()))) {
			rogue++
			if err := h.RouteDel(r); err != nil {
				x.Log(err)
			}
		}
	}
	if rogue > 0 {
		x.leaked += 2
	}
	if x.on && rogue > 0 {
		x.Errorf("the node took %d routes from the pod", rogue)
	}
}

// tunnel wraps a frame for an overlay that the node is part of: the node would
// unwrap it and send what is inside, past the pod's interface.
func (x *try) tunnel() {
	h, err := x.w.node.Netlink()
	if err != nil {
		x.Fatal(err)
	}
	defer h.Close()
	mac := net.HardwareAddr{2, 0x42, 0, 0, 0, 1}
	const vni = 42
	vx := &netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: "overlay", HardwareAddr: mac}, VxlanId: vni, Port: 8472, Learning: false}
	if err := h.LinkAdd(vx); err != nil {
		x.Fatal(err)
	}
	if err := h.LinkSetUp(vx); err != nil {
		x.Fatal(err)
	}
	for v := range 2 {
		for name, to := range map[string]netip.Addr{"node": x.w.node.IPs[0], "gateway": x.w.node.Gateways[0]} {
			x.denied("VXLAN to the "+name+" with "+family(v)+" inside", isolation, func(tok packettest.Token) []byte {
				return x.udp(to, 8472, packettest.VXLAN{VNI: vni}, packettest.Eth{Src: x.pod.MAC(), Dst: packettest.MACFrom(mac)},
					ipHeader(x.w.pod("payments/api").IP(evil(v)), evil(v)), packettest.UDP{SrcPort: 4000, DstPort: 443}, tok)
			})
		}
		for _, port := range []uint16{4789, 6081, 51820} {
			x.denied(fmt.Sprintf("overlay port %d %s", port, family(v)), isolation, func(tok packettest.Token) []byte { return x.udp(x.w.node.IPs[v], port, tok) })
		}
	}
	time.Sleep(20 * time.Millisecond)
	if err := h.LinkDel(vx); err != nil {
		x.Fatal(err)
	}
}
