package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/postern-dev/postern/internal/packet/packettest"
)

// setUp writes settings and brings lo up, in a namespace that was just made.
func (n *Namespace) setUp(settings [][2]string) error {
	return n.Do(func() error {
		for _, s := range settings {
			if err := sysctl(s[0], s[1]); err != nil {
				return err
			}
		}
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		lo, err := h.LinkByName("lo")
		if err != nil {
			return err
		}
		return h.LinkSetUp(lo)
	})
}

// Settings that every namespace gets before its first link. A namespace starts
// with some of the initial namespace's, which differ from machine to machine
// (L4). No duplicate address detection: addresses work at once. No limit on ICMP
// errors: the second of two refusals is as quick as the first.
var baseSettings = [][2]string{
	{"ipv4/conf/all/rp_filter", "0"},
	{"ipv4/conf/default/rp_filter", "0"},
	{"ipv4/conf/all/accept_source_route", "0"},
	{"ipv4/conf/default/accept_source_route", "0"},
	{"ipv4/conf/all/send_redirects", "0"},
	{"ipv4/conf/default/send_redirects", "0"},
	{"ipv4/conf/all/accept_redirects", "0"},
	{"ipv4/conf/default/accept_redirects", "0"},
	{"ipv6/conf/all/disable_ipv6", "0"},
	{"ipv6/conf/default/disable_ipv6", "0"},
	{"ipv6/conf/all/accept_dad", "0"},
	{"ipv6/conf/default/accept_dad", "0"},
	{"ipv6/conf/default/dad_transmits", "0"},
	{"ipv6/conf/all/accept_ra", "0"},
	{"ipv6/conf/default/accept_ra", "0"},
	{"ipv6/conf/default/router_solicitations", "0"},
	{"ipv4/icmp_ratelimit", "0"},
	{"ipv6/icmp/ratelimit", "0"},
}

var (
	routerSettings = append(slices.Clone(baseSettings),
		[2]string{"ipv4/ip_forward", "1"},
		[2]string{"ipv6/conf/all/forwarding", "1"},
		[2]string{"ipv6/conf/default/forwarding", "1"},
	)
	// podSettings are those that container runtimes write. Source: containerd's
	// enable_unprivileged_icmp and enable_unprivileged_ports.
	podSettings = append(slices.Clone(baseSettings),
		[2]string{"ipv4/ping_group_range", "0 2147483647"},
		[2]string{"ipv4/ip_unprivileged_port_start", "0"},
		[2]string{"ipv4/ip_local_port_range", "10000 65535"},
	)
)

// setBridgeNetfilter makes bridged frames visit the IP hooks, as Kubernetes
// asks of a node with a bridge, or keeps them from it. A kernel without
// br_netfilter has nothing to set.
func setBridgeNetfilter(on bool) error {
	v := "0"
	if on {
		v = "1"
	}
	for _, key := range []string{"bridge-nf-call-iptables", "bridge-nf-call-ip6tables"} {
		if _, err := os.Stat(filepath.Join("/proc/sys/net/bridge", key)); err != nil {
			continue
		}
		if err := sysctl("bridge/"+key, v); err != nil {
			return err
		}
	}
	return nil
}

// Netlink opens a netlink socket inside the namespace for the caller to close.
func (n *Namespace) Netlink() (*netlink.Handle, error) {
	fd, err := n.dup()
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Close(fd) }()
	h, err := netlink.NewHandleAt(netns.NsHandle(fd), unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("netlink in %s: %w", n.Name, err)
	}
	return h, nil
}

// Addrs returns the addresses of an interface of the namespace, link-local ones
// without their zone.
func (n *Namespace) Addrs(ifname string) ([]netip.Addr, error) {
	h, err := n.Netlink()
	if err != nil {
		return nil, err
	}
	defer h.Close()
	link, err := h.LinkByName(ifname)
	if err != nil {
		return nil, fmt.Errorf("interface %s of %s: %w", ifname, n.Name, err)
	}
	list, err := h.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return nil, err
	}
	var out []netip.Addr
	for _, a := range list {
		if ip, ok := netip.AddrFromSlice(a.IP); ok {
			out = append(out, ip.Unmap())
		}
	}
	return out, nil
}

// MAC returns the Ethernet address of an interface of the namespace.
func (n *Namespace) MAC(ifname string) (net.HardwareAddr, error) {
	h, err := n.Netlink()
	if err != nil {
		return nil, err
	}
	defer h.Close()
	link, err := h.LinkByName(ifname)
	if err != nil {
		return nil, fmt.Errorf("interface %s of %s: %w", ifname, n.Name, err)
	}
	return link.Attrs().HardwareAddr, nil
}

// MAC returns the Ethernet address of the pod's interface.
func (p *Pod) MAC() packettest.MAC {
	return packettest.MACFrom(mac(p.lab, p.Name, podInterface))
}

// GatewayMAC returns the Ethernet address that the pod's routed frames go to:
// the host side's, or the bridge's.
func (p *Pod) GatewayMAC() packettest.MAC {
	if p.cni == Bridge {
		return packettest.MACFrom(mac(p.lab, p.Node.Name, bridgeInterface))
	}
	return packettest.MACFrom(mac(p.lab, p.Node.Name, p.HostInterface))
}

// Eth returns the Ethernet header of a frame from the pod to its gateway.
func (p *Pod) Eth() packettest.Eth {
	return packettest.Eth{Src: p.MAC(), Dst: p.GatewayMAC()}
}

// prefixed returns a netlink address without duplicate address detection and
// without the route for its prefix if the prefix is one address.
func prefixed(a netip.Addr, bits int) *netlink.Addr {
	addr := &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(a, bits))}
	if a.Is6() {
		addr.Flags = unix.IFA_F_NODAD
	}
	return addr
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func hostPrefix(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// anywhere is the default route's destination in a's family.
func anywhere(a netip.Addr) netip.Prefix {
	if a.Is4() {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
}

// upWithAddrs gives a link addresses and brings it up.
func upWithAddrs(h *netlink.Handle, link netlink.Link, addrs ...*netlink.Addr) error {
	name := link.Attrs().Name
	for _, a := range addrs {
		if err := h.AddrAdd(link, a); err != nil {
			return fmt.Errorf("%s: address %s: %w", name, a.IPNet, err)
		}
	}
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("%s: up: %w", name, err)
	}
	return nil
}

// addRoute adds a route over an interface; via may be the zero Addr.
func addRoute(h *netlink.Handle, index int, dst netip.Prefix, via netip.Addr) error {
	r := &netlink.Route{LinkIndex: index, Dst: ipNet(dst), Scope: netlink.SCOPE_LINK}
	if via.IsValid() {
		r.Gw, r.Scope = via.AsSlice(), netlink.SCOPE_UNIVERSE
	}
	if err := h.RouteAdd(r); err != nil {
		return fmt.Errorf("route %s: %w", dst, err)
	}
	return nil
}

// makeOutside sets up the bridge that is the wire, and the addresses of the hosts.
func (l *Lab) makeOutside() error {
	ns := l.outside
	if err := ns.setUp(baseSettings); err != nil {
		return err
	}
	if err := ns.Do(func() error { return setBridgeNetfilter(false) }); err != nil {
		return err
	}
	h, err := ns.Netlink()
	if err != nil {
		return err
	}
	defer h.Close()
	br, err := makeBridge(h, "wire", l.mac("outside", "wire"), l.spec.MTU)
	if err != nil {
		return err
	}
	if err := upWithAddrs(h, br, prefixed(outside4, wire4.Bits()), prefixed(outside6, wire6.Bits())); err != nil {
		return err
	}
	lo, err := h.LinkByName("lo")
	if err != nil {
		return err
	}
	for _, host := range l.spec.Hosts {
		for _, a := range host.IPs {
			if err := h.AddrAdd(lo, prefixed(a, a.BitLen())); err != nil {
				return fmt.Errorf("host %s: address %s: %w", host.Name, a, err)
			}
		}
	}
	return nil
}

func makeBridge(h *netlink.Handle, name string, mac net.HardwareAddr, mtu int) (netlink.Link, error) {
	snooping := false
	br := &netlink.Bridge{
		LinkAttrs:         netlink.LinkAttrs{Name: name, HardwareAddr: mac, MTU: mtu, TxQLen: -1},
		MulticastSnooping: &snooping,
	}
	if err := h.LinkAdd(br); err != nil {
		return nil, fmt.Errorf("bridge %s: %w", name, err)
	}
	return br, nil
}

// makeNode wires a node's namespace to the outside.
func (l *Lab) makeNode(n *Node) error {
	if err := n.setUp(routerSettings); err != nil {
		return err
	}
	if err := n.Do(func() error { return setBridgeNetfilter(l.spec.CNI == Bridge) }); err != nil {
		return err
	}
	h, err := l.outside.Netlink()
	if err != nil {
		return err
	}
	defer h.Close()
	wire, err := h.LinkByName("wire")
	if err != nil {
		return err
	}
	port := wirePort(n.Spec.Name)
	if err := l.makeVeth(h, "outside", port, n.Namespace, wireInterface); err != nil {
		return err
	}
	link, err := h.LinkByName(port)
	if err != nil {
		return err
	}
	if err := h.LinkSetMaster(link, wire); err != nil {
		return fmt.Errorf("%s: master: %w", port, err)
	}
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("%s: up: %w", port, err)
	}
	if n.nl, err = n.Netlink(); err != nil {
		return err
	}
	eth, err := n.nl.LinkByName(wireInterface)
	if err != nil {
		return err
	}
	if err := upWithAddrs(n.nl, eth, prefixed(n.IPs[0], wire4.Bits()), prefixed(n.IPs[1], wire6.Bits())); err != nil {
		return err
	}
	for _, gw := range []netip.Addr{outside4, outside6} {
		if err := addRoute(n.nl, eth.Attrs().Index, anywhere(gw), gw); err != nil {
			return err
		}
	}
	for i, cidr := range n.Spec.PodCIDRs {
		if err := addRoute(h, wire.Attrs().Index, cidr, n.IPs[i]); err != nil {
			return err
		}
	}
	if l.spec.CNI != Bridge {
		return nil
	}
	br, err := makeBridge(n.nl, bridgeInterface, l.mac(n.Spec.Name, bridgeInterface), l.spec.MTU)
	if err != nil {
		return err
	}
	gw := gateways(n.Spec.PodCIDRs)
	return upWithAddrs(n.nl, br, prefixed(gw[0], n.Spec.PodCIDRs[0].Bits()), prefixed(gw[1], n.Spec.PodCIDRs[1].Bits()))
}

// limitConntrack keeps closed connections of a load from filling the nodes'
// connection tables, whose size is the machine's and not ours to change (L1).
func (l *Lab) limitConntrack() error {
	if l.spec.NoConntrack {
		return nil
	}
	for _, n := range l.nodes {
		err := n.Do(func() error {
			return errors.Join(
				sysctl("netfilter/nf_conntrack_tcp_timeout_time_wait", "2"),
				sysctl("netfilter/nf_conntrack_tcp_timeout_close", "1"),
			)
		})
		if err != nil {
			return fmt.Errorf("node %s: %w", n.Name, err)
		}
	}
	return nil
}

// deleteGroup is the interface group that links are put in to be deleted together.
const deleteGroup = 0x706c

// deleteLinks deletes links of the node; those that are gone are fine.
func (n *Node) deleteLinks(names []string) error {
	found := 0
	for _, name := range names {
		link, err := n.nl.LinkByName(name)
		if err != nil {
			continue
		}
		if len(names) == 1 {
			return n.nl.LinkDel(link)
		}
		if err := n.nl.LinkSetGroup(link, deleteGroup); err != nil {
			return fmt.Errorf("%s: group: %w", name, err)
		}
		found++
	}
	if found == 0 {
		return nil
	}
	return n.Do(func() error {
		req := nl.NewNetlinkRequest(unix.RTM_DELLINK, unix.NLM_F_ACK)
		req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
		req.AddData(nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(deleteGroup)))
		if _, err := req.Execute(unix.NETLINK_ROUTE, 0); err != nil {
			return fmt.Errorf("delete %d links: %w", found, err)
		}
		return nil
	})
}

// wirePort names the outside's end of a node's link.
func wirePort(node string) string { return "w-" + node }

// connectNodes adds routes to the pods of the other nodes.
func (l *Lab) connectNodes() error {
	for _, from := range l.nodes {
		eth, err := from.nl.LinkByName(wireInterface)
		if err != nil {
			return err
		}
		for _, to := range l.nodes {
			if to == from {
				continue
			}
			for i, cidr := range to.Spec.PodCIDRs {
				if err := addRoute(from.nl, eth.Attrs().Index, cidr, to.IPs[i]); err != nil {
					return fmt.Errorf("node %s: %w", from.Name, err)
				}
			}
		}
	}
	return nil
}

// makeVeth makes a veth whose near side is in h's namespace and far side in
// peer, without either ever being anywhere else (L1).
func (l *Lab) makeVeth(h *netlink.Handle, place, near string, peer *Namespace, far string) error {
	fd, err := peer.dup()
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	veth := &netlink.Veth{
		LinkAttrs:        netlink.LinkAttrs{Name: near, HardwareAddr: l.mac(place, near), MTU: l.spec.MTU, TxQLen: -1},
		PeerName:         far,
		PeerHardwareAddr: l.mac(peer.Name, far),
		PeerNamespace:    netlink.NsFd(fd),
	}
	if err := h.LinkAdd(veth); err != nil {
		return fmt.Errorf("veth %s: %w", near, err)
	}
	return nil
}

func (l *Lab) mac(place, ifname string) net.HardwareAddr { return mac(l.spec.Name, place, ifname) }

// connectPod makes a pod's link in the order a CNI plugin does: veth, pod side,
// host side. The pod is reachable when it returns.
func (l *Lab) connectPod(p *Pod) error {
	n := p.Node
	if err := l.makeVeth(n.nl, n.Name, p.HostInterface, p.Namespace, podInterface); err != nil {
		return err
	}
	gws := gateways(n.Spec.PodCIDRs)
	h, err := p.Netlink()
	if err != nil {
		return err
	}
	defer h.Close()
	eth, err := h.LinkByName(podInterface)
	if err != nil {
		return err
	}
	var addrs []*netlink.Addr
	for _, a := range p.IPs {
		bits := a.BitLen()
		if l.spec.CNI == Bridge {
			bits = n.Spec.PodCIDRs[family(a)].Bits()
		}
		addrs = append(addrs, prefixed(a, bits))
	}
	if err := upWithAddrs(h, eth, addrs...); err != nil {
		return err
	}
	for _, a := range p.IPs {
		gw := gws[family(a)]
		if l.spec.CNI == PTP {
			if err := addRoute(h, eth.Attrs().Index, hostPrefix(gw), netip.Addr{}); err != nil {
				return err
			}
		}
		if err := addRoute(h, eth.Attrs().Index, anywhere(gw), gw); err != nil {
			return err
		}
	}
	host, err := n.nl.LinkByName(p.HostInterface)
	if err != nil {
		return err
	}
	p.HostIfindex = host.Attrs().Index
	if l.spec.CNI == Bridge {
		br, err := n.nl.LinkByName(bridgeInterface)
		if err != nil {
			return err
		}
		if err := n.nl.LinkSetMaster(host, br); err != nil {
			return fmt.Errorf("%s: master: %w", p.HostInterface, err)
		}
		return upWithAddrs(n.nl, host)
	}
	if err := upWithAddrs(n.nl, host, prefixed(gws[0], 32), prefixed(gws[1], 128)); err != nil {
		return err
	}
	for _, a := range p.IPs {
		if err := addRoute(n.nl, p.HostIfindex, hostPrefix(a), netip.Addr{}); err != nil {
			return err
		}
	}
	return nil
}

// family indexes a pair of one IPv4 and one IPv6 value.
func family(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}
