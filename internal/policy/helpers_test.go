package policy_test

import (
	"net/netip"
	"time"

	"github.com/postern-dev/postern/internal/packet"
	"github.com/postern-dev/postern/internal/policy"
)

// tuple returns a flow-opening packet; invalid text gives an invalid address.
func tuple(protocol, src, dst string, port uint16) packet.Tuple {
	p, _ := packet.ParseProtocol(protocol)
	a, _ := netip.ParseAddr(src)
	b, _ := netip.ParseAddr(dst)
	t := packet.Tuple{Protocol: p, Src: a, Dst: b, SrcPort: 40000, DstPort: port}
	if !p.HasPorts() {
		t.SrcPort, t.DstPort = 0, 0
	}
	return t
}

func addrs(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func nets(list ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// labels returns a selector for "k=v" pairs.
func labels(pairs ...string) policy.Selector {
	var reqs []policy.Requirement
	for i := 0; i+1 < len(pairs); i += 2 {
		reqs = append(reqs, policy.Requirement{Key: pairs[i], Op: policy.OpIn, Values: []string{pairs[i+1]}})
	}
	return policy.NewSelector(reqs...)
}

func tcp(first, last uint16) policy.PortMatch {
	return policy.PortMatch{Protocol: packet.ProtocolTCP, First: first, Last: last}
}

func networks(list ...string) policy.Peer {
	return policy.Peer{Kind: policy.PeerNetworks, Networks: nets(list...)}
}

func podsIn(namespace string, pairs ...string) policy.Peer {
	return policy.Peer{Kind: policy.PeerPods, Pods: policy.PodPeer{Namespace: namespace, Pods: labels(pairs...)}}
}

var (
	podWeb = policy.PodKey{Namespace: "shop", Name: "web"}
	podDB  = policy.PodKey{Namespace: "shop", Name: "db"}
)

// shop is a small world: a web pod that may reach its database, a Service with
// a backend that it may reach and one that it may not, and a guard before it all.
func shop() *policy.Snapshot {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	return &policy.Snapshot{
		Time:  now,
		Tiers: policy.BuiltinTiers(),
		Namespaces: []policy.Namespace{
			{Name: "shop", Labels: map[string]string{policy.LabelNamespaceName: "shop", "team": "a"}},
			{Name: "bank", Labels: map[string]string{policy.LabelNamespaceName: "bank", "team": "b"}},
		},
		Nodes: []policy.Node{
			{Name: "n1", Labels: map[string]string{"zone": "x", "app": "db"}, IPs: addrs("192.168.0.1", "fd00:f::1")},
			{Name: "n2", Labels: map[string]string{"zone": "y"}, IPs: addrs("192.168.0.2")},
		},
		Pods: []policy.Pod{
			{
				Namespace: "shop", Name: "web", Labels: map[string]string{"app": "web"}, ServiceAccount: "web", Node: "n1",
				IPs:   addrs("10.0.0.1", "fd00::1"),
				Ports: []policy.ContainerPort{{Name: "http", Protocol: packet.ProtocolTCP, Port: 8080}},
			},
			{
				Namespace: "shop", Name: "db", Labels: map[string]string{"app": "db"}, Node: "n2",
				IPs:   addrs("10.0.0.2", "fd00::2"),
				Ports: []policy.ContainerPort{{Name: "pg", Protocol: packet.ProtocolTCP, Port: 5432}},
			},
			{Namespace: "bank", Name: "db", Labels: map[string]string{"app": "db"}, Node: "n2", IPs: addrs("10.0.0.3", "fd00::3")},
			{Namespace: "shop", Name: "host", Labels: map[string]string{"app": "db"}, Node: "n1", HostNetwork: true, IPs: addrs("192.168.0.1")},
		},
		Services: []policy.Service{{
			Namespace: "shop", Name: "front", IPs: addrs("10.96.0.10"),
			Ports: []policy.ServicePort{{
				Name: "http", Protocol: packet.ProtocolTCP, Port: 80, NodePort: 30080,
				Backends: []netip.AddrPort{netip.MustParseAddrPort("10.0.0.2:5432"), netip.MustParseAddrPort("10.0.0.9:9999")},
			}},
		}},
		Policies: []policy.Policy{
			{
				Kind: policy.KindClusterNetworkPolicy, Name: "guard", Tier: policy.TierAdmin, Priority: 10,
				Subject: policy.Subject{Any: true},
				Rules: [2][]policy.Rule{{
					{Index: 0, Name: "metadata", Action: policy.Deny, Peers: []policy.Peer{networks("169.254.169.254/32")}, AnyPort: true},
					{Index: 1, Action: policy.Pass, Peers: []policy.Peer{networks("10.96.0.0/12")}, Ports: []policy.PortMatch{
						{Protocol: packet.ProtocolUDP, First: 53, Last: 53},
					}},
				}},
			},
			{
				Kind: policy.KindNetworkPolicy, Namespace: "shop", Name: "web", Tier: policy.TierNetworkPolicy,
				Subject:  policy.Subject{Selects: true, Namespace: "shop", Pods: labels("app", "web")},
				Isolates: [2]bool{true, false},
				Rules: [2][]policy.Rule{{
					{
						Index: 0, Name: "to-db", Reason: "the shop's own data", Action: policy.Accept,
						Peers: []policy.Peer{podsIn("shop", "app", "db")},
						Ports: []policy.PortMatch{{Named: "pg", Protocol: packet.ProtocolTCP}},
					},
					{
						Index: 1, Name: "trial", Action: policy.Accept, ExpiresAt: now.Add(-4*time.Minute - 5*time.Second), AnyPort: true,
						Peers: []policy.Peer{{Kind: policy.PeerNetworks, Networks: nets("1.2.3.0/24"), Except: nets("1.2.3.128/25")}},
					},
					{Index: 2, Action: policy.Accept, AnyPeer: true, Ports: []policy.PortMatch{tcp(80, 90), tcp(8443, 8443)}},
				}},
			},
			{
				Kind: policy.KindNetworkPolicy, Namespace: "bank", Name: "closed", Tier: policy.TierNetworkPolicy,
				Subject: policy.Subject{Selects: true, Namespace: "bank"}, Isolates: [2]bool{true, true},
			},
		},
	}
}
