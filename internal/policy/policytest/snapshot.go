package policytest

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"github.com/postern-dev/postern/internal/packet"
	"github.com/postern-dev/postern/internal/policy"
)

// Start is the Time of a random Snapshot; rules expire within an hour around it.
var Start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// RandomSnapshot returns a valid Snapshot of about size pods and size policies.
// It holds at least one pod that is not on the host network.
func RandomSnapshot(rng *rand.Rand, size int) *policy.Snapshot {
	g := gen{rng}
	size = max(size, 1)
	s := &policy.Snapshot{Revision: 1, Time: Start, Tiers: policy.BuiltinTiers()}
	for i := range s.Tiers {
		s.Tiers[i].DefaultDeny = g.chance(6)
	}
	for i := range g.IntN(3) {
		s.Tiers = append(s.Tiers, g.tier(i))
	}
	for i := range namespaceNames {
		if !g.chance(8) {
			s.Namespaces = append(s.Namespaces, g.namespace(i))
		}
	}
	for i := range 1 + g.IntN(3) {
		s.Nodes = append(s.Nodes, g.node(i))
	}
	for i := range 1 + g.IntN(size) {
		s.Pods = append(s.Pods, g.pod(i))
	}
	s.Pods[0].HostNetwork = false
	for i := range g.IntN(5) {
		s.Services = append(s.Services, g.service(i))
	}
	for i := range setNames {
		if !g.chance(3) {
			s.Sets = append(s.Sets, g.set(i))
		}
	}
	if g.chance(2) {
		s.Protected = g.protected()
	}
	for i := range 1 + g.IntN(size) {
		s.Policies = append(s.Policies, g.policy(i))
	}
	return s
}

// Endpoints returns the pods of s that can be endpoints.
func Endpoints(s *policy.Snapshot) []policy.PodKey {
	var out []policy.PodKey
	for i := range s.Pods {
		if !s.Pods[i].HostNetwork {
			out = append(out, s.Pods[i].Key())
		}
	}
	return out
}

var (
	namespaceNames = []string{"shop", "bank", "kube-system", "dev"}
	podLabelKeys   = []string{"app", "role", "tier"}
	labelValues    = []string{"web", "db", "x"}
	accounts       = []string{"default", "builder", "robot"}
	portNames      = []string{"http", "dns", "admin"}
	portNumbers    = []uint16{1, 53, 80, 443, 8080, 8081, 65535}
	protocols      = []packet.Protocol{packet.ProtocolTCP, packet.ProtocolTCP, packet.ProtocolUDP, packet.ProtocolSCTP}
	setNames       = []policy.SetRef{{Name: "feeds"}, {Namespace: "shop", Name: "feeds"}, {Name: "partners"}}
	tierNames      = []string{"security", "platform"}
)

type gen struct{ *rand.Rand }

// chance is true once in n.
func (g gen) chance(n int) bool { return g.IntN(n) == 0 }

func pick[T any](g gen, list []T) T { return list[g.IntN(len(list))] }

func (g gen) labels(keys []string) map[string]string {
	out := map[string]string{}
	for _, k := range keys {
		if !g.chance(3) {
			out[k] = pick(g, labelValues)
		}
	}
	return out
}

func (g gen) tier(i int) policy.Tier {
	return policy.Tier{
		Name: tierNames[i], Order: pick(g, []int32{500, 1500, 2500, 3500}), DefaultDeny: g.chance(2),
	}
}

func (g gen) namespace(i int) policy.Namespace {
	ns := policy.Namespace{Name: namespaceNames[i], Labels: g.labels([]string{"team", "env"})}
	ns.Labels[policy.LabelNamespaceName] = ns.Name
	return ns
}

func (g gen) node(i int) policy.Node {
	n := policy.Node{Name: fmt.Sprintf("node%d", i), Labels: g.labels([]string{"zone", "app"})}
	n.IPs = []netip.Addr{netip.AddrFrom4([4]byte{192, 168, 0, byte(i + 1)})}
	if g.chance(2) {
		n.IPs = append(n.IPs, v6(0xf0, byte(i+1)))
	}
	return n
}

func v6(net, host byte) netip.Addr {
	return netip.AddrFrom16([16]byte{0xfd, 0, 12: net, 15: host})
}

// pod returns pod i; its addresses sometimes collide with another's.
func (g gen) pod(i int) policy.Pod {
	p := policy.Pod{
		Namespace: pick(g, namespaceNames), Name: fmt.Sprintf("pod%d", i), UID: fmt.Sprintf("uid%d", i),
		Labels: g.labels(podLabelKeys), ServiceAccount: pick(g, accounts),
		HostNetwork: g.chance(10),
	}
	if !g.chance(10) {
		p.Node = fmt.Sprintf("node%d", g.IntN(3))
	}
	host := byte(i + 1)
	if g.chance(12) {
		host = byte(1 + g.IntN(4))
	}
	if g.chance(10) {
		p.IPs = append(p.IPs, netip.MustParseAddr("169.254.169.254"))
	}
	if !g.chance(8) {
		p.IPs = append(p.IPs, netip.AddrFrom4([4]byte{10, 0, 0, host}))
	}
	if g.chance(2) {
		p.IPs = append(p.IPs, v6(1, host))
	}
	for range g.IntN(4) {
		p.Ports = append(p.Ports, policy.ContainerPort{
			Name: pick(g, portNames), Protocol: pick(g, protocols), Port: pick(g, portNumbers),
		})
	}
	return p
}

func (g gen) service(i int) policy.Service {
	s := policy.Service{
		Namespace: pick(g, namespaceNames[:2]), Name: fmt.Sprintf("svc%d", i),
		IPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 96, 0, byte(1 + g.IntN(4))})},
	}
	if g.chance(2) {
		s.IPs = append(s.IPs, v6(0x96, byte(1+g.IntN(4))))
	}
	if g.chance(6) {
		s.IPs = append(s.IPs, netip.AddrFrom4([4]byte{192, 168, 0, 1})) // an external IP that is a node's
	}
	for range 1 + g.IntN(2) {
		sp := policy.ServicePort{Name: "p", Protocol: pick(g, protocols), Port: pick(g, portNumbers)}
		if g.chance(3) {
			sp.NodePort = pick(g, portNumbers)
		}
		for range g.IntN(4) {
			sp.Backends = append(sp.Backends, netip.AddrPortFrom(g.address(), pick(g, portNumbers)))
		}
		slices.SortFunc(sp.Backends, netip.AddrPort.Compare)
		sp.Backends = slices.Compact(sp.Backends)
		s.Ports = append(s.Ports, sp)
	}
	return s
}

// address returns an address that something is likely to be about.
func (g gen) address() netip.Addr {
	switch g.IntN(8) {
	case 0:
		return v6(1, byte(1+g.IntN(8)))
	case 1:
		return netip.AddrFrom4([4]byte{192, 168, 0, byte(g.IntN(4))})
	case 2:
		return netip.MustParseAddr("169.254.169.254")
	case 3:
		return netip.AddrFrom4([4]byte{10, 96, 0, byte(g.IntN(6))})
	case 4:
		return netip.AddrFrom4([4]byte{byte(g.IntN(256)), byte(g.IntN(256)), byte(g.IntN(256)), byte(g.IntN(256))})
	case 5:
		return v6(byte(g.IntN(256)), byte(g.IntN(256)))
	}
	return netip.AddrFrom4([4]byte{10, 0, 0, byte(1 + g.IntN(12))})
}

// prefix returns a prefix; they nest and touch often. A few are as they should
// never arrive: with host bits, v4-mapped or invalid.
func (g gen) prefix() netip.Prefix {
	switch g.IntN(40) {
	case 0:
		a := g.address()
		return netip.PrefixFrom(a, g.IntN(a.BitLen()+1))
	case 1:
		return netip.PrefixFrom(netip.AddrFrom16(g.address().As16()), 90+g.IntN(39))
	case 2:
		return netip.Prefix{}
	case 3:
		return netip.PrefixFrom(nat64(netip.AddrFrom4([4]byte{10, 0, 0, 1})), 90+g.IntN(39))
	}
	switch g.IntN(12) {
	case 0:
		return netip.MustParsePrefix("0.0.0.0/0")
	case 1:
		return netip.MustParsePrefix("::/0")
	case 2:
		return netip.MustParsePrefix("169.254.169.254/32")
	case 3:
		return netip.MustParsePrefix("169.254.0.0/16")
	}
	a := g.address()
	bits := a.BitLen() - g.IntN(9)
	if g.chance(4) {
		bits = g.IntN(a.BitLen() + 1)
	}
	p, err := a.Prefix(bits)
	if err != nil {
		return netip.PrefixFrom(a, a.BitLen())
	}
	return p
}

func (g gen) prefixes(n int) []netip.Prefix {
	var out []netip.Prefix
	for range n {
		out = append(out, g.prefix())
	}
	return out
}

func (g gen) networks() (networks, except []netip.Prefix) {
	networks = g.prefixes(1 + g.IntN(3))
	if g.chance(2) {
		except = g.prefixes(1 + g.IntN(2))
	}
	return networks, except
}

func (g gen) set(i int) policy.DestinationSet {
	s := policy.DestinationSet{Ref: setNames[i], Invalid: g.chance(8)}
	s.Networks, s.Except = g.networks()
	if g.chance(6) {
		s.Networks, s.Except, s.DomainNames = nil, nil, []string{"example.com"}
	}
	return s
}

func (g gen) protected() []netip.Prefix {
	out := []netip.Prefix{netip.MustParsePrefix("169.254.169.254/32")}
	if g.chance(2) {
		out = append(out, netip.MustParsePrefix("fd00:ec2::254/128"))
	}
	if g.chance(4) {
		out = append(out, g.prefix())
	}
	return out
}
