package agent

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/postern-dev/postern/internal/datapath"
	"github.com/postern-dev/postern/internal/manifests"
	"github.com/postern-dev/postern/internal/packet"
)

// errNotCovered is wrapped by errors that say why an interface can't be
// enforced for good (I11); other errors may pass.
var errNotCovered = errors.New("not covered")

// resolved is what resolve said of a binding.
type resolved struct {
	spec datapath.EndpointSpec
	side podSide
	err  error
}

// podSide is what is known of the pod's end and its network namespace.
type podSide struct {
	nsid  int // the namespace's id in ours
	index int // of the pod's end, there
	mac   string
	extra string // other interfaces, which nothing enforces
}

// resolve finds the host side of a pod's interface and looks at the pod's side.
func resolve(b manifests.Binding) (spec datapath.EndpointSpec, side podSide, err error) {
	name := b.Interface
	if b.Netns != "" {
		if name, err = hostSide(b.Netns); err != nil {
			return spec, side, err
		}
	}
	link, err := netlink.LinkByName(name)
	if err != nil {
		return spec, side, fmt.Errorf("interface %s: %w", name, err)
	}
	attrs := link.Attrs()
	name = attrs.Name // it may be known by others, which nothing can be hooked to
	if link.Type() != "veth" {
		kind := "a " + link.Type()
		switch {
		case attrs.Flags&net.FlagLoopback != 0:
			kind = "the node's loopback"
		case link.Type() == "device":
			kind = "no virtual interface"
		}
		return spec, side, fmt.Errorf("interface %s is %s; only the host side of a veth can be enforced: %w", name, kind, errNotCovered)
	}
	if attrs.NetNsID < 0 {
		return spec, side, fmt.Errorf("interface %s: its other end is in this network namespace: %w", name, errNotCovered)
	}
	if side, err = lookInto(attrs.NetNsID, attrs.ParentIndex); err != nil {
		return spec, side, fmt.Errorf("interface %s: %w", name, err)
	}
	spec = datapath.EndpointSpec{Interface: name, Ifindex: attrs.Index, MAC: net.HardwareAddr(side.mac)}
	if attrs.MasterIndex != 0 {
		master, err := netlink.LinkByIndex(attrs.MasterIndex)
		if err != nil {
			return spec, side, fmt.Errorf("interface %s: master: %w", name, err)
		}
		spec.Bridged = master.Type() == "bridge"
	}
	return spec, side, nil
}

// fallback are the interfaces that the kernel makes in every namespace once the
// module of a tunnel is loaded. They lead nowhere while they are down.
var fallback = []string{"erspan0", "gre0", "gretap0", "ip6_vti0", "ip6gre0", "ip6tnl0", "ip_vti0", "sit0", "tunl0"}

// lookInto looks at a pod's network namespace, of which nobody tells when an
// interface comes or goes there.
func lookInto(nsid, index int) (podSide, error) {
	side := podSide{nsid: nsid, index: index}
	links, err := linksOf(nsid)
	if err != nil {
		return side, fmt.Errorf("pod side: %w", err)
	}
	var extra []string
	for _, l := range links {
		switch a := l.Attrs(); {
		case a.Index == index:
			side.mac = string(a.HardwareAddr)
		case a.Flags&net.FlagLoopback != 0, a.Flags&net.FlagUp == 0 && slices.Contains(fallback, a.Name):
		default:
			extra = append(extra, a.Name+" ("+l.Type()+")")
		}
	}
	if side.mac == "" {
		return side, fmt.Errorf("no pod side with index %d", index)
	}
	slices.Sort(extra)
	side.extra = strings.Join(extra, ", ")
	return side, nil
}

// hostSide returns the name of our end of the first veth in a pod's namespace.
func hostSide(path string) (string, error) {
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return "", fmt.Errorf("network namespace %s: %w", path, err)
	}
	defer func() { _ = ns.Close() }()
	h, err := netlink.NewHandleAt(ns)
	if err != nil {
		return "", fmt.Errorf("network namespace %s: %w", path, err)
	}
	defer h.Close()
	links, err := h.LinkList()
	if err != nil {
		return "", fmt.Errorf("network namespace %s: %w", path, err)
	}
	for _, l := range links {
		if l.Type() != "veth" {
			continue
		}
		ours, err := netlink.LinkByIndex(l.Attrs().ParentIndex)
		if err == nil && ours.Type() == "veth" && ours.Attrs().ParentIndex == l.Attrs().Index {
			return ours.Attrs().Name, nil
		}
	}
	return "", fmt.Errorf("network namespace %s: no veth that leads here", path)
}

// skipStats is RTEXT_FILTER_SKIP_STATS, missing in x/sys.
const skipStats = 1 << 3

// linksOf lists the interfaces of another namespace by its id, without
// entering it. Source: IFLA_TARGET_NETNSID, rtnetlink(7), Linux 4.20.
func linksOf(nsid int) ([]netlink.Link, error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETLINK, unix.NLM_F_DUMP)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(nl.NewRtAttr(unix.IFLA_TARGET_NETNSID, nl.Uint32Attr(uint32(nsid))))
	req.AddData(nl.NewRtAttr(unix.IFLA_EXT_MASK, nl.Uint32Attr(skipStats)))
	msgs, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK)
	if err != nil {
		return nil, err
	}
	out := make([]netlink.Link, 0, len(msgs))
	for _, m := range msgs {
		l, err := netlink.LinkDeserialize(nil, m)
		if err != nil {
			return nil, err
		}
		out = append(out, l)
	}
	return out, nil
}

// localAddrs returns the addresses of this network namespace but loopback and
// link-local ones, sorted.
func localAddrs() ([]netip.Addr, error) {
	list, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("addresses: %w", err)
	}
	var out []netip.Addr
	for _, a := range list {
		ip, ok := netip.AddrFromSlice(a.IP)
		if ip = packet.Unmap(ip); ok && !ip.IsLoopback() && !ip.IsLinkLocalUnicast() {
			out = append(out, ip)
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out), nil
}
