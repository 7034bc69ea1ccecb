package policy_test

import (
	"fmt"
	"net/netip"
	"strconv"
	"testing"

	"github.com/postern-dev/postern/internal/packet"
	"github.com/postern-dev/postern/internal/policy"
	"github.com/postern-dev/postern/internal/policy/policytest"
)

// cluster is a state of the size that the product promises: pods in namespaces
// of 50, five policies for every ten pods, each with peers in other namespaces,
// and a cluster-wide baseline of a few policies.
func cluster(pods, policies int) *policy.Snapshot {
	s := &policy.Snapshot{Revision: 1, Time: policytest.Start, Tiers: policy.BuiltinTiers()}
	namespaces := max(pods/50, 1)
	label := func(k, v string) policy.Selector {
		return policy.NewSelector(policy.Requirement{Key: k, Op: policy.OpIn, Values: []string{v}})
	}
	for i := range namespaces {
		name := fmt.Sprintf("ns%d", i)
		s.Namespaces = append(s.Namespaces, policy.Namespace{Name: name, Labels: map[string]string{
			policy.LabelNamespaceName: name, "team": fmt.Sprintf("team%d", i%20),
		}})
	}
	for i := range 100 {
		s.Nodes = append(s.Nodes, policy.Node{
			Name: fmt.Sprintf("node%d", i), IPs: []netip.Addr{netip.AddrFrom4([4]byte{192, 168, 0, byte(i)})},
		})
	}
	for i := range pods {
		s.Pods = append(s.Pods, policy.Pod{
			Namespace: fmt.Sprintf("ns%d", i%namespaces), Name: fmt.Sprintf("pod%d", i), ServiceAccount: "default",
			Labels: map[string]string{
				"app": fmt.Sprintf("app%d", i%500), "role": []string{"web", "db", "job"}[i%3], "env": []string{"prod", "test"}[i%2],
			},
			Node: fmt.Sprintf("node%d", i%100), IPs: []netip.Addr{netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})},
			Ports: []policy.ContainerPort{{Name: "http", Protocol: packet.ProtocolTCP, Port: 8080}},
		})
	}
	https := []policy.PortMatch{{Protocol: packet.ProtocolTCP, First: 443, Last: 443}}
	for i := range policies {
		ns := fmt.Sprintf("ns%d", i%namespaces)
		s.Policies = append(s.Policies, policy.Policy{
			Kind: policy.KindNetworkPolicy, Tier: policy.TierNetworkPolicy, Namespace: ns, Name: fmt.Sprintf("p%d", i),
			Subject:  policy.Subject{Selects: true, Namespace: ns, Pods: label("app", fmt.Sprintf("app%d", i%500))},
			Isolates: [2]bool{true, true},
			Rules: [2][]policy.Rule{{
				{Action: policy.Accept, Ports: https, Peers: []policy.Peer{
					{Kind: policy.PeerPods, Pods: policy.PodPeer{Namespace: ns, Pods: label("role", "db")}},
					{Kind: policy.PeerPods, Pods: policy.PodPeer{
						Namespaces: label("team", fmt.Sprintf("team%d", i%20)), Pods: label("app", fmt.Sprintf("app%d", (i+7)%500)),
					}},
				}},
				{Index: 1, Action: policy.Accept, AnyPort: true, Peers: []policy.Peer{{
					Kind: policy.PeerNetworks, Networks: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{20, byte(i >> 8), byte(i), 0}), 24)},
				}}},
			}, {
				{Action: policy.Accept, Ports: []policy.PortMatch{{Named: "http", Protocol: packet.ProtocolTCP}}, Peers: []policy.Peer{
					{Kind: policy.PeerPods, Pods: policy.PodPeer{Pods: label("role", "web")}},
				}},
			}},
		})
	}
	for i := range 10 {
		s.Policies = append(s.Policies, policy.Policy{
			Kind: policy.KindClusterNetworkPolicy, Tier: policy.TierAdmin, Name: fmt.Sprintf("base%d", i), Priority: int32(i),
			Subject: policy.Subject{Any: true},
			Rules: [2][]policy.Rule{{
				{Action: policy.Accept, AnyPort: true, Peers: []policy.Peer{
					{Kind: policy.PeerPods, Pods: policy.PodPeer{Namespace: fmt.Sprintf("ns%d", i), Pods: label("role", "web")}},
				}},
				{Index: 1, Action: policy.Deny, Ports: https, Peers: []policy.Peer{
					{Kind: policy.PeerPods, Pods: policy.PodPeer{Pods: label("env", "test")}},
				}},
				{Index: 2, Action: policy.Pass, AnyPort: true, AnyPeer: true},
			}},
		})
	}
	return s
}

// BenchmarkLabelChange changes the labels of one pod among 10,000 with 5,000 policies.
func BenchmarkLabelChange(b *testing.B) {
	s := cluster(10_000, 5_000)
	for name, local := range map[string]func(*policy.Pod) bool{
		"node":    func(p *policy.Pod) bool { return p.Node == "node1" },
		"cluster": nil,
	} {
		b.Run(name, func(b *testing.B) {
			c := policy.NewCompiler(local)
			if _, err := c.Apply(policy.ChangesFrom(s)); err != nil {
				b.Fatal(err)
			}
			i := 0
			for b.Loop() {
				p := s.Pods[101+100*(i%50)] // on node1
				p.Labels = map[string]string{
					"app": fmt.Sprintf("app%d", i%500), "role": []string{"web", "db"}[i/50%2], "env": []string{"test", "prod"}[i/50%2],
				}
				i++
				if _, err := c.Apply(policy.Changes{Pods: []policy.Pod{p}}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkPolicyChange changes one namespaced policy in the same state.
func BenchmarkPolicyChange(b *testing.B) {
	s := cluster(10_000, 5_000)
	c := policy.NewCompiler(nil)
	if _, err := c.Apply(policy.ChangesFrom(s)); err != nil {
		b.Fatal(err)
	}
	i := 0
	for b.Loop() {
		p := s.Policies[i%5000]
		p.Isolates = [2]bool{true, i/5000%2 == 1}
		i++
		if _, err := c.Apply(policy.Changes{Policies: []policy.Policy{p}}); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkBaselineChange changes a policy that selects all 250 endpoints of a
// node with 1,000 policies.
func BenchmarkBaselineChange(b *testing.B) {
	s := cluster(250, 1_000)
	c := policy.NewCompiler(nil)
	if _, err := c.Apply(policy.ChangesFrom(s)); err != nil {
		b.Fatal(err)
	}
	p := s.Policies[len(s.Policies)-1]
	i := 0
	for b.Loop() {
		i++
		p.Rules[policy.Egress] = append([]policy.Rule(nil), p.Rules[policy.Egress]...)
		p.Rules[policy.Egress][0].Name = strconv.Itoa(i)
		if _, err := c.Apply(policy.Changes{Policies: []policy.Policy{p}}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCompile(b *testing.B) {
	for _, size := range []struct{ pods, policies int }{{250, 1_000}, {10_000, 5_000}} {
		s := cluster(size.pods, size.policies)
		b.Run(fmt.Sprintf("pods=%d/policies=%d", size.pods, size.policies), func(b *testing.B) {
			for b.Loop() {
				if _, err := policy.Compile(s, nil); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkSet compiles one destination set of a million networks.
func BenchmarkSet(b *testing.B) {
	s := cluster(1, 1)
	ref := policy.SetRef{Name: "feed"}
	set := policy.DestinationSet{Ref: ref}
	for i := range 1_000_000 {
		n := uint32(i) * 4099
		a := netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
		set.Networks = append(set.Networks, netip.PrefixFrom(a, 24+i%9))
	}
	s.Sets = []policy.DestinationSet{set}
	s.Policies[0].Subject = policy.Subject{Any: true}
	s.Policies[0].Rules[policy.Egress][0].Peers = []policy.Peer{{Kind: policy.PeerSet, Set: ref}}
	for b.Loop() {
		if _, err := policy.Compile(s, nil); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkEvaluate(b *testing.B) {
	s := policytest.RandomSnapshot(newRand(5), 12)
	pod := policytest.Endpoints(s)[0]
	tuples := policytest.Tuples(newRand(5), s, pod, policy.Egress, 1024)
	i := 0
	for b.Loop() {
		policy.Evaluate(s, pod, policy.Egress, tuples[i%1024])
		i++
	}
}
