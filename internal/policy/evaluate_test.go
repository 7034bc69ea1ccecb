package policy_test

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/postern-dev/postern/internal/packet"
	"github.com/postern-dev/postern/internal/policy"
)

// row is one line of a specification: a packet and what happens to it.
type row struct {
	dir                 policy.Direction
	protocol, src, dst  string
	port                uint16
	want                policy.Verdict
	by                  string // RuleRef.String
	translated, noLocal bool
}

func out(protocol, dst string, port uint16, want policy.Verdict, by string) row {
	src := "10.0.0.1"
	return row{dir: policy.Egress, protocol: protocol, src: src, dst: dst, port: port, want: want, by: by}
}

func in(protocol, src string, port uint16, want policy.Verdict, by string) row {
	return row{dir: policy.Ingress, protocol: protocol, src: src, dst: "10.0.0.1", port: port, want: want, by: by}
}

const (
	fwd  = policy.Forwarded
	drop = policy.Dropped
)

// specify checks rows against Evaluate, and that the compiled form agrees.
func specify(t *testing.T, s *policy.Snapshot, pod policy.PodKey, rows ...row) {
	t.Helper()
	c, err := policy.Compile(s, nil)
	if err != nil {
		t.Fatal(err)
	}
	fronts := policy.Frontends(s.Services, s.Nodes)
	for _, r := range rows {
		tu := tuple(r.protocol, r.src, r.dst, r.port)
		got := policy.Evaluate(s, pod, r.dir, tu)
		compiled := policy.LookupService(c, fronts, pod, r.dir, tu)
		if r.translated {
			got, compiled = policy.EvaluateTranslated(s, pod, r.dir, tu), policy.Lookup(c, pod, r.dir, tu)
		}
		if got.Verdict != r.want || got.Rule.String() != r.by {
			t.Errorf("%s of %s, %s: got %s, want %s by %s\n%s", r.dir, pod, tu, got, r.want, r.by, policy.Explain(s, pod, r.dir, tu))
		}
		if !r.noLocal && compiled != got {
			t.Errorf("%s of %s, %s: compiled %s, evaluated %s", r.dir, pod, tu, compiled, got)
		}
	}
}

// world is shop() with other policies: those given.
func world(policies ...policy.Policy) *policy.Snapshot {
	s := shop()
	s.Policies = policies
	return s
}

// cep is a ClusterEgressPolicy of a tier for every pod.
func cep(tier, name string, priority int32, rules ...policy.Rule) policy.Policy {
	for i := range rules {
		rules[i].Index = i
	}
	return policy.Policy{
		Kind: policy.KindClusterEgressPolicy, Name: name, Tier: tier, Priority: priority,
		Subject: policy.Subject{Any: true}, Rules: [2][]policy.Rule{rules},
	}
}

// np is a NetworkPolicy for every pod of shop.
func np(name string, isolates [2]bool, egress, ingress []policy.Rule) policy.Policy {
	for i := range egress {
		egress[i].Index = i
	}
	for i := range ingress {
		ingress[i].Index = i
	}
	return policy.Policy{
		Kind: policy.KindNetworkPolicy, Namespace: "shop", Name: name, Tier: policy.TierNetworkPolicy,
		Subject: policy.Subject{Selects: true, Namespace: "shop"}, Isolates: isolates,
		Rules: [2][]policy.Rule{egress, ingress},
	}
}

func to(action policy.Action, peers ...policy.Peer) policy.Rule {
	return policy.Rule{Action: action, Peers: peers, AnyPort: true}
}

func anywhere(action policy.Action) policy.Rule {
	return policy.Rule{Action: action, AnyPeer: true, AnyPort: true}
}

func on(r policy.Rule, ports ...policy.PortMatch) policy.Rule {
	r.AnyPort, r.Ports = false, ports
	return r
}

func TestWhatNoPolicyChanges(t *testing.T) {
	closed := np("closed", [2]bool{true, true}, nil, nil)
	specify(t, world(closed), podWeb,
		out("tcp", "10.0.0.1", 80, fwd, "egress self"),
		out("tcp", "::ffff:10.0.0.1", 80, fwd, "egress self"),
		out("icmpv6", "fd00::1", 0, fwd, "egress self"),
		in("tcp", "10.0.0.1", 80, fwd, "ingress self"),
		in("tcp", "192.168.0.1", 8080, fwd, "ingress own-node"),
		in("tcp", "fd00:f::1", 8080, fwd, "ingress own-node"),
		in("tcp", "192.168.0.2", 8080, drop, "networkpolicy shop/closed ingress isolation"),
		out("tcp", "192.168.0.1", 10250, drop, "networkpolicy shop/closed egress isolation"),
	)
	specify(t, world(), podWeb,
		out("tcp", "1.1.1.1", 443, fwd, "egress no-match"),
		in("tcp", "1.1.1.1", 443, fwd, "ingress no-match"),
		out("tcp", "nonsense", 443, drop, "egress unknown-endpoint"),
	)
	specify(t, world(), policy.PodKey{Namespace: "shop", Name: "ghost"},
		out("tcp", "1.1.1.1", 443, drop, "egress unknown-endpoint"))
	host := out("tcp", "1.1.1.1", 443, fwd, "egress no-match")
	host.noLocal = true // Compile leaves host-network pods out
	specify(t, world(closed), policy.PodKey{Namespace: "shop", Name: "host"}, host)
}

func TestTiersAndOrder(t *testing.T) {
	one := networks("1.1.1.1/32")
	isolate := np("np", [2]bool{true, false}, []policy.Rule{to(policy.Accept, one)}, nil)
	t.Run("admin decides before the networkpolicy tier, baseline after it", func(t *testing.T) {
		s := world(isolate, cep("admin", "a", 1, to(policy.Deny, networks("1.1.1.1/32")), to(policy.Accept, networks("2.2.2.2/32"))),
			cep("baseline", "b", 1, anywhere(policy.Deny)))
		specify(t, s, podWeb,
			out("tcp", "1.1.1.1", 443, drop, "admin a egress[0]"),
			out("tcp", "2.2.2.2", 443, fwd, "admin a egress[1]"),
			out("tcp", "3.3.3.3", 443, drop, "networkpolicy shop/np egress isolation"))
		specify(t, s, policy.PodKey{Namespace: "bank", Name: "db"},
			out("tcp", "3.3.3.3", 443, drop, "baseline b egress[0]"))
	})
	t.Run("Pass skips the rest of its tier only", func(t *testing.T) {
		s := world(isolate, cep("admin", "a", 1, to(policy.Pass, one), anywhere(policy.Deny)), cep("admin", "z", 2, anywhere(policy.Deny)))
		specify(t, s, podWeb,
			out("tcp", "1.1.1.1", 443, fwd, "networkpolicy shop/np egress[0]"),
			out("tcp", "2.2.2.2", 443, drop, "admin a egress[1]"))
	})
	t.Run("Pass in the last tier arrives at Kubernetes' default", func(t *testing.T) {
		specify(t, world(cep("baseline", "b", 1, to(policy.Pass, one), anywhere(policy.Deny))), podWeb,
			out("tcp", "1.1.1.1", 443, fwd, "egress no-match"))
	})
	t.Run("priority, then kind, namespace, name", func(t *testing.T) {
		s := world(cep("admin", "late", 2, anywhere(policy.Accept)), cep("admin", "b", 1, anywhere(policy.Deny)), cep("admin", "a", 1, anywhere(policy.Accept)))
		specify(t, s, podWeb, out("tcp", "1.1.1.1", 443, fwd, "admin a egress[0]"))
		cnp := cep("admin", "0", 1, anywhere(policy.Deny)) // the lower name, but of the higher kind
		cnp.Kind = policy.KindClusterNetworkPolicy
		s.Policies = append(s.Policies, cnp)
		specify(t, s, podWeb, out("tcp", "1.1.1.1", 443, fwd, "admin a egress[0]"))
	})
	t.Run("POL-02: order decides, not the length of a prefix", func(t *testing.T) {
		specify(t, world(cep("admin", "a", 1, to(policy.Deny, networks("10.0.0.0/8")), to(policy.Accept, networks("10.0.0.2/32")))), podWeb,
			out("tcp", "10.0.0.2", 5432, drop, "admin a egress[0]"))
	})
	t.Run("a tier's default Deny", func(t *testing.T) {
		s := world(cep("security", "s", 1, to(policy.Accept, one)))
		s.Tiers = append(s.Tiers, policy.Tier{Name: "security", Order: 1500, DefaultDeny: true})
		s.Policies[0].Subject = policy.Subject{Selects: true, Namespace: "shop"}
		specify(t, s, podWeb,
			out("tcp", "1.1.1.1", 443, fwd, "security s egress[0]"),
			out("tcp", "2.2.2.2", 443, drop, "security s egress tier-default"),
			in("tcp", "2.2.2.2", 443, fwd, "ingress no-match"))
		specify(t, s, policy.PodKey{Namespace: "bank", Name: "db"}, out("tcp", "2.2.2.2", 443, fwd, "egress no-match"))
	})
	t.Run("a policy of an unknown tier comes last in admin, and only denies", func(t *testing.T) {
		s := world(isolate, cep("gone", "g", 0, to(policy.Accept, networks("3.3.3.3/32")), to(policy.Deny, networks("4.4.4.4/31"))),
			cep("admin", "a", 9, to(policy.Accept, networks("4.4.4.4/32"))))
		specify(t, s, podWeb,
			out("tcp", "3.3.3.3", 443, drop, "networkpolicy shop/np egress isolation"),
			out("tcp", "4.4.4.4", 443, fwd, "admin a egress[0]"),
			out("tcp", "4.4.4.5", 443, drop, "admin g egress[1]"))
	})
}

func TestNetworkPolicyTier(t *testing.T) {
	a := np("a", [2]bool{true, false}, []policy.Rule{to(policy.Accept, networks("1.1.1.1/32"))}, nil)
	b := np("b", [2]bool{true, false}, []policy.Rule{to(policy.Accept, networks("2.2.2.2/32"))}, nil)
	t.Run("the union of the policies' rules", func(t *testing.T) {
		specify(t, world(b, a), podWeb,
			out("tcp", "1.1.1.1", 443, fwd, "networkpolicy shop/a egress[0]"),
			out("tcp", "2.2.2.2", 443, fwd, "networkpolicy shop/b egress[0]"),
			out("tcp", "3.3.3.3", 443, drop, "networkpolicy shop/a egress isolation"),
			in("tcp", "3.3.3.3", 443, fwd, "ingress no-match"))
	})
	t.Run("POL-14: rules of a direction that policyTypes leave out do nothing", func(t *testing.T) {
		p := np("p", [2]bool{false, true}, []policy.Rule{to(policy.Accept, networks("1.1.1.1/32"))}, nil)
		specify(t, world(p, cep("baseline", "z", 0, anywhere(policy.Deny))), podWeb,
			out("tcp", "1.1.1.1", 443, drop, "baseline z egress[0]"),
			in("tcp", "1.1.1.1", 443, drop, "networkpolicy shop/p ingress isolation"))
	})
	t.Run("POL-13: isolation is of the pod, not of a family", func(t *testing.T) {
		specify(t, world(a), podWeb, out("tcp", "2001:db8::1", 443, drop, "networkpolicy shop/a egress isolation"))
	})
	t.Run("an EgressPolicy adds to NetworkPolicies and isolates alone", func(t *testing.T) {
		ep := np("e", [2]bool{true, false}, []policy.Rule{to(policy.Accept, networks("9.9.9.9/32"))}, nil)
		ep.Kind = policy.KindEgressPolicy
		specify(t, world(a, ep), podWeb,
			out("tcp", "9.9.9.9", 443, fwd, "networkpolicy shop/e egress[0]"),
			out("tcp", "1.1.1.1", 443, fwd, "networkpolicy shop/a egress[0]"))
		specify(t, world(ep), podWeb, out("tcp", "1.1.1.1", 443, drop, "networkpolicy shop/e egress isolation"))
	})
	t.Run("a Pass cannot go past isolation", func(t *testing.T) {
		specify(t, world(np("p", [2]bool{true, false}, []policy.Rule{anywhere(policy.Pass)}, nil)), podWeb,
			out("tcp", "1.1.1.1", 443, drop, "networkpolicy shop/p egress isolation"))
	})
}

func TestNothingMatchesByOmission(t *testing.T) {
	for name, r := range map[string]policy.Rule{
		"POL-01: no peers":         {Action: policy.Accept, AnyPort: true},
		"POL-01: empty peers":      {Action: policy.Accept, AnyPort: true, Peers: []policy.Peer{}},
		"a peer of nothing":        {Action: policy.Accept, AnyPort: true, Peers: []policy.Peer{{}}},
		"a peer without networks":  {Action: policy.Accept, AnyPort: true, Peers: []policy.Peer{{Kind: policy.PeerNetworks}}},
		"no ports":                 {Action: policy.Accept, AnyPeer: true},
		"domain names":             {Action: policy.Accept, AnyPort: true, Peers: []policy.Peer{{Kind: policy.PeerDomainNames, DomainNames: []string{"*"}}}},
		"a port range upside down": {Action: policy.Accept, AnyPeer: true, Ports: []policy.PortMatch{tcp(444, 443)}},
		"POL-09: a port name that is nowhere": {
			Action: policy.Accept, AnyPeer: true, Ports: []policy.PortMatch{{Named: "nowhere", AnyProtocol: true}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := world(np("p", [2]bool{true, true}, []policy.Rule{r}, []policy.Rule{r}))
			specify(t, s, podWeb,
				out("tcp", "10.0.0.2", 443, drop, "networkpolicy shop/p egress isolation"),
				in("tcp", "10.0.0.2", 443, drop, "networkpolicy shop/p ingress isolation"))
		})
	}
	t.Run("the zero Subject selects nothing", func(t *testing.T) {
		p := cep("admin", "p", 1, anywhere(policy.Deny))
		p.Subject = policy.Subject{}
		specify(t, world(p), podWeb, out("tcp", "1.1.1.1", 443, fwd, "egress no-match"))
	})
	t.Run("a Deny of domain names never denies by address", func(t *testing.T) {
		names := policy.Peer{Kind: policy.PeerDomainNames, DomainNames: []string{"example.com"}}
		specify(t, world(cep("admin", "p", 1, to(policy.Deny, names))), podWeb, out("tcp", "1.1.1.1", 443, fwd, "egress no-match"))
	})
}

func TestSubjects(t *testing.T) {
	for name, tt := range map[string]struct {
		subject policy.Subject
		selects bool
	}{
		"any":                       {policy.Subject{Any: true}, true},
		"any, of another account":   {policy.Subject{Any: true, ServiceAccounts: []string{"db"}}, false},
		"any, of its account":       {policy.Subject{Any: true, ServiceAccounts: []string{"db", "web"}}, true},
		"its namespace":             {policy.Subject{Selects: true, Namespace: "shop"}, true},
		"another namespace":         {policy.Subject{Selects: true, Namespace: "bank"}, false},
		"its namespace's labels":    {policy.Subject{Selects: true, Namespaces: labels("team", "a")}, true},
		"another's labels":          {policy.Subject{Selects: true, Namespaces: labels("team", "b")}, false},
		"its labels":                {policy.Subject{Selects: true, Pods: labels("app", "web")}, true},
		"its labels elsewhere":      {policy.Subject{Selects: true, Namespace: "bank", Pods: labels("app", "web")}, false},
		"everything by selectors":   {policy.Subject{Selects: true}, true},
		"POL-11: labels of a node":  {policy.Subject{Selects: true, Pods: labels("zone", "x")}, false},
		"its namespace's name":      {policy.Subject{Selects: true, Namespaces: labels(policy.LabelNamespaceName, "shop")}, true},
		"its account, other labels": {policy.Subject{Selects: true, Pods: labels("app", "db"), ServiceAccounts: []string{"web"}}, false},
	} {
		t.Run(name, func(t *testing.T) {
			p := cep("admin", "p", 1, anywhere(policy.Deny))
			p.Subject = tt.subject
			want := out("tcp", "1.1.1.1", 443, fwd, "egress no-match")
			if tt.selects {
				want = out("tcp", "1.1.1.1", 443, drop, "admin p egress[0]")
			}
			specify(t, world(p), podWeb, want)
		})
	}
	t.Run("a namespace that is not known has its name for a label", func(t *testing.T) {
		s := world(cep("admin", "p", 1, anywhere(policy.Deny)))
		s.Namespaces = nil
		s.Policies[0].Subject = policy.Subject{Selects: true, Namespaces: labels(policy.LabelNamespaceName, "shop")}
		specify(t, s, podWeb, out("tcp", "1.1.1.1", 443, drop, "admin p egress[0]"))
	})
}

func TestPeers(t *testing.T) {
	exc := policy.Peer{Kind: policy.PeerNetworks, Networks: nets("10.0.0.0/8", "fd00::/16"), Except: nets("10.0.0.0/30", "fd00::/126")}
	for name, tt := range map[string]struct {
		peers []policy.Peer
		yes   []string
		no    []string
	}{
		"networks":                             {[]policy.Peer{networks("1.2.3.0/24")}, []string{"1.2.3.0", "1.2.3.255", "::ffff:1.2.3.4"}, []string{"1.2.2.255", "1.2.4.0", "::1.2.3.4"}},
		"POL-03: host bits":                    {[]policy.Peer{networks("10.161.7.1/8")}, []string{"10.0.0.2", "10.255.255.255"}, []string{"11.0.0.0"}},
		"POL-22: v4-mapped network":            {[]policy.Peer{networks("::ffff:1.2.3.0/120")}, []string{"1.2.3.9"}, []string{"1.2.4.0", "::1"}},
		"POL-13: every v4 address is no v6":    {[]policy.Peer{networks("0.0.0.0/0")}, []string{"0.0.0.0", "255.255.255.255"}, []string{"::", "2001:db8::1"}},
		"every v6 address is no v4":            {[]policy.Peer{networks("::/0")}, []string{"::", "2001:db8::1"}, []string{"1.1.1.1", "::ffff:1.1.1.1"}},
		"POL-04: except":                       {[]policy.Peer{exc}, []string{"10.0.0.4", "fd00::4"}, []string{"10.0.0.2", "fd00::2", "11.0.0.0"}},
		"POL-04: except is of its peer only":   {[]policy.Peer{exc, networks("10.0.0.2/32")}, []string{"10.0.0.2", "10.0.0.4"}, []string{"10.0.0.3"}},
		"pods by label, both namespaces":       {[]policy.Peer{podsIn("", "app", "db")}, []string{"10.0.0.2", "10.0.0.3", "fd00::2"}, []string{"192.168.0.1", "192.168.0.2"}},
		"pods of a namespace":                  {[]policy.Peer{podsIn("bank")}, []string{"10.0.0.3"}, []string{"10.0.0.2"}},
		"pods by their namespace's labels":     {[]policy.Peer{{Kind: policy.PeerPods, Pods: policy.PodPeer{Namespaces: labels("team", "a")}}}, []string{"10.0.0.2"}, []string{"10.0.0.3"}},
		"POL-11: nodes are not pods":           {[]policy.Peer{{Kind: policy.PeerNodes, Nodes: labels("app", "db")}}, []string{"192.168.0.1", "fd00:f::1"}, []string{"10.0.0.2", "192.168.0.2"}},
		"all nodes":                            {[]policy.Peer{{Kind: policy.PeerNodes}}, []string{"192.168.0.1", "192.168.0.2"}, []string{"10.0.0.2"}},
		"POL-11: host-network pods are no pod": {[]policy.Peer{podsIn("shop")}, []string{"10.0.0.2"}, []string{"192.168.0.1"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := world(np("p", [2]bool{true, true}, []policy.Rule{to(policy.Accept, tt.peers...)}, []policy.Rule{to(policy.Accept, tt.peers...)}))
			s.Pods[0].Node = "n3" // so that no node is its own
			for _, a := range tt.yes {
				specify(t, s, podWeb, out("tcp", a, 443, fwd, "networkpolicy shop/p egress[0]"), in("udp", a, 443, fwd, "networkpolicy shop/p ingress[0]"))
			}
			for _, a := range tt.no {
				specify(t, s, podWeb, out("tcp", a, 443, drop, "networkpolicy shop/p egress isolation"), in("udp", a, 443, drop, "networkpolicy shop/p ingress isolation"))
			}
		})
	}
}

func TestPorts(t *testing.T) {
	icmp := policy.PortMatch{Protocol: packet.ProtocolICMP}
	all := policy.PortMatch{Protocol: packet.ProtocolUDP, First: 0, Last: 65535}
	rule := on(anywhere(policy.Accept), tcp(80, 90), tcp(91, 91), icmp, all)
	const yes, no = "networkpolicy shop/p egress[0]", "networkpolicy shop/p egress isolation"
	specify(t, world(np("p", [2]bool{true, false}, []policy.Rule{rule}, nil)), podWeb,
		out("tcp", "1.1.1.1", 79, drop, no), out("tcp", "1.1.1.1", 80, fwd, yes), out("tcp", "1.1.1.1", 91, fwd, yes),
		out("tcp", "1.1.1.1", 92, drop, no), out("sctp", "1.1.1.1", 80, drop, no), out("icmp", "1.1.1.1", 0, fwd, yes),
		out("icmpv6", "fd00::9", 0, drop, no), out("udp", "1.1.1.1", 0, fwd, yes), out("udp", "1.1.1.1", 65535, fwd, yes),
		out("gre", "1.1.1.1", 0, drop, no))
	specify(t, world(np("p", [2]bool{true, false}, []policy.Rule{anywhere(policy.Accept)}, nil)), podWeb,
		out("gre", "1.1.1.1", 0, fwd, yes), out("icmpv6", "fd00::9", 0, fwd, yes), out("proto-255", "1.1.1.1", 0, fwd, yes))
}

func TestNamedPorts(t *testing.T) {
	pg := policy.PortMatch{Named: "pg", Protocol: packet.ProtocolTCP}
	http := policy.PortMatch{Named: "http", AnyProtocol: true}
	const yes, no = "networkpolicy shop/p egress[0]", "networkpolicy shop/p egress isolation"
	egress := func(r policy.Rule) *policy.Snapshot {
		return world(np("p", [2]bool{true, false}, []policy.Rule{r}, nil))
	}
	specify(t, egress(on(anywhere(policy.Accept), pg)), podWeb,
		out("tcp", "10.0.0.2", 5432, fwd, yes), out("udp", "10.0.0.2", 5432, drop, no),
		out("tcp", "10.0.0.3", 5432, drop, no), out("tcp", "1.1.1.1", 5432, drop, no))
	specify(t, egress(on(to(policy.Accept, podsIn("", "app", "db")), pg)), podWeb,
		out("tcp", "fd00::2", 5432, fwd, yes), out("tcp", "10.0.0.3", 5432, drop, no))
	specify(t, egress(on(to(policy.Accept, networks("10.0.0.0/8")), pg)), podWeb, out("tcp", "10.0.0.2", 5432, drop, no))
	t.Run("ingress asks the endpoint's own ports, whatever the peer is", func(t *testing.T) {
		s := world(np("p", [2]bool{false, true}, nil, []policy.Rule{on(to(policy.Accept, networks("1.0.0.0/8")), http, tcp(9, 9))}))
		specify(t, s, podWeb,
			in("tcp", "1.1.1.1", 8080, fwd, "networkpolicy shop/p ingress[0]"),
			in("udp", "1.1.1.1", 8080, drop, "networkpolicy shop/p ingress isolation"),
			in("tcp", "1.1.1.1", 9, fwd, "networkpolicy shop/p ingress[0]"))
		r := in("tcp", "1.1.1.1", 8080, drop, "networkpolicy shop/p ingress isolation")
		r.dst = "10.0.0.2"
		specify(t, s, podDB, r)
	})
}

func TestExpiry(t *testing.T) {
	rule := to(policy.Accept, networks("1.1.1.1/32"))
	deny := to(policy.Deny, networks("2.2.2.2/32"))
	s := world(cep("admin", "p", 1, rule, deny, anywhere(policy.Deny)))
	at := s.Time.Add(time.Minute)
	s.Policies[0].Rules[0][0].ExpiresAt, s.Policies[0].Rules[0][1].ExpiresAt = at, at
	c, err := policy.Compile(s, nil)
	if err != nil || !c.NextExpiry.Equal(at) {
		t.Errorf("NextExpiry: got %v, %v, want %v", c.NextExpiry, err, at)
	}
	specify(t, s, podWeb, out("tcp", "1.1.1.1", 443, fwd, "admin p egress[0]"), out("tcp", "2.2.2.2", 443, drop, "admin p egress[1]"))
	s.Time = at.Add(-1)
	specify(t, s, podWeb, out("tcp", "1.1.1.1", 443, fwd, "admin p egress[0]"))
	s.Time = at
	specify(t, s, podWeb, out("tcp", "1.1.1.1", 443, drop, "admin p egress[2]"), out("tcp", "2.2.2.2", 443, drop, "admin p egress[1]"))
	if c, _ = policy.Compile(s, nil); !c.NextExpiry.IsZero() {
		t.Errorf("NextExpiry after it: got %v, want never", c.NextExpiry)
	}
}

func TestSets(t *testing.T) {
	feed := policy.Peer{Kind: policy.PeerSet, Set: policy.SetRef{Name: "feed"}}
	good := policy.DestinationSet{Ref: feed.Set, Networks: nets("5.0.0.0/8"), Except: nets("5.5.0.0/16")}
	for _, action := range []policy.Action{policy.Accept, policy.Deny, policy.Pass} {
		for _, state := range []string{"good", "missing", "invalid", "of a namespace"} {
			t.Run(fmt.Sprintf("%s a set that is %s", action, state), func(t *testing.T) {
				other := policy.Deny
				if action == policy.Deny {
					other = policy.Accept
				}
				s := world(cep("admin", "p", 1, to(action, feed, networks("7.0.0.0/8")), anywhere(other)))
				set := good
				switch state {
				case "invalid":
					set.Invalid = true
				case "of a namespace":
					set.Ref.Namespace = "shop"
				}
				if state != "missing" {
					s.Sets = []policy.DestinationSet{set}
				}
				verdict, by := fwd, "admin p egress[0]"
				switch action {
				case policy.Deny:
					verdict = drop
				case policy.Pass:
					by = "egress no-match"
				case policy.Accept:
				}
				rest := out("tcp", "9.9.9.9", 443, drop, "admin p egress[1]")
				if other == policy.Accept {
					rest.want = fwd
				}
				if state == "good" {
					rows := []row{rest, rest}
					rows[1].dst = "5.5.0.0"
					specify(t, s, podWeb, append(rows, out("tcp", "5.1.1.1", 443, verdict, by), out("tcp", "7.1.1.1", 443, verdict, by))...)
					return
				}
				if action == policy.Accept {
					specify(t, s, podWeb, rest, out("tcp", "5.1.1.1", 443, drop, "admin p egress[1]"), out("tcp", "7.1.1.1", 443, drop, "admin p egress[1]"))
					return
				}
				specify(t, s, podWeb, out("tcp", "9.9.9.9", 443, drop, "admin p egress[0]"), out("icmp", "5.1.1.1", 0, drop, "admin p egress[0]"))
			})
		}
	}
}

func TestProtected(t *testing.T) {
	const meta = "169.254.169.254"
	accept := func(peers ...policy.Peer) *policy.Snapshot {
		s := world(cep("admin", "p", 1, to(policy.Accept, peers...)))
		s.Protected = nets("169.254.169.0/24")
		return s
	}
	const named, denied = "admin p egress[0]", "egress protected"
	t.Run("POL-21: wider networks do not name it", func(t *testing.T) {
		specify(t, accept(networks("0.0.0.0/0", "169.254.0.0/16")), podWeb,
			out("tcp", meta, 80, drop, denied), out("tcp", "169.254.168.255", 80, fwd, named), out("tcp", "1.1.1.1", 80, fwd, named))
		s := accept()
		s.Policies[0].Rules[0][0] = anywhere(policy.Accept)
		specify(t, s, podWeb, out("tcp", meta, 80, drop, denied), out("tcp", "1.1.1.1", 80, fwd, named))
	})
	t.Run("a network inside does, for its own addresses", func(t *testing.T) {
		specify(t, accept(networks("0.0.0.0/0", "169.254.169.254/32")), podWeb, out("tcp", meta, 80, fwd, named), out("tcp", "169.254.169.253", 80, drop, denied))
		specify(t, accept(networks("169.254.169.0/24")), podWeb, out("tcp", meta, 80, fwd, named))
		specify(t, accept(policy.Peer{Kind: policy.PeerNetworks, Networks: nets("169.254.169.0/24"), Except: nets(meta + "/32")}), podWeb,
			out("tcp", meta, 80, drop, denied), out("tcp", "169.254.169.253", 80, fwd, named))
	})
	t.Run("another peer's network does not", func(t *testing.T) {
		specify(t, accept(networks("0.0.0.0/0"), networks("169.254.169.1/32")), podWeb, out("tcp", meta, 80, drop, denied))
	})
	t.Run("a network that begins inside and ends outside does not", func(t *testing.T) {
		s := accept(networks("169.254.0.0/16"))
		s.Protected = nets("169.254.0.0/24")
		specify(t, s, podWeb, out("tcp", "169.254.0.1", 80, drop, denied), out("tcp", "169.254.1.1", 80, fwd, named))
	})
	t.Run("a set does, by the same rule", func(t *testing.T) {
		s := accept(policy.Peer{Kind: policy.PeerSet, Set: policy.SetRef{Name: "s"}})
		s.Sets = []policy.DestinationSet{{Ref: policy.SetRef{Name: "s"}, Networks: nets("0.0.0.0/0", meta+"/32")}}
		specify(t, s, podWeb, out("tcp", meta, 80, fwd, named), out("tcp", "169.254.169.253", 80, drop, denied))
	})
	t.Run("a pod there does", func(t *testing.T) {
		s := accept(podsIn("bank"))
		s.Pods[2].IPs = addrs(meta)
		specify(t, s, podWeb, out("tcp", meta, 80, fwd, named))
	})
	t.Run("a port by name does not name it either", func(t *testing.T) {
		s := accept()
		s.Pods[1].IPs = addrs(meta, "10.0.0.2")
		s.Policies[0].Rules[0][0] = on(anywhere(policy.Accept), policy.PortMatch{Named: "pg", Protocol: packet.ProtocolTCP})
		specify(t, s, podWeb, out("tcp", meta, 5432, drop, denied), out("tcp", "10.0.0.2", 5432, fwd, named))
	})
	t.Run("Deny and Pass reach it, ingress knows it not, ungoverned pods do not either", func(t *testing.T) {
		s := accept()
		s.Policies[0].Rules[0] = []policy.Rule{anywhere(policy.Deny)}
		specify(t, s, podWeb, out("tcp", meta, 80, drop, "admin p egress[0]"), in("tcp", meta, 80, fwd, "ingress no-match"))
		s.Policies[0].Rules[0] = []policy.Rule{anywhere(policy.Pass)}
		specify(t, s, podWeb, out("tcp", meta, 80, drop, denied))
		s.Policies = nil
		specify(t, s, podWeb, out("tcp", meta, 80, fwd, "egress no-match"))
	})
}

func TestServices(t *testing.T) {
	front := policy.Peer{Kind: policy.PeerService, Service: policy.ServiceRef{Namespace: "shop", Name: "front"}}
	allow := func(rules ...policy.Rule) *policy.Snapshot {
		return world(np("p", [2]bool{true, false}, rules, nil))
	}
	const yes, no = "networkpolicy shop/p egress[0]", "networkpolicy shop/p egress isolation"
	t.Run("a Service is what its backends are", func(t *testing.T) {
		specify(t, allow(to(policy.Accept, networks("10.0.0.0/24"))), podWeb,
			out("tcp", "10.96.0.10", 80, fwd, yes), out("tcp", "192.168.0.2", 30080, fwd, yes),
			out("tcp", "10.96.0.10", 81, drop, no), out("udp", "10.96.0.10", 80, drop, no), out("icmp", "10.96.0.10", 0, drop, no))
	})
	t.Run("its own address does not count", func(t *testing.T) {
		s := allow(to(policy.Accept, networks("10.96.0.0/16")))
		translated := out("tcp", "10.96.0.10", 80, fwd, yes)
		translated.translated = true
		specify(t, s, podWeb, out("tcp", "10.96.0.10", 80, drop, no), out("tcp", "10.96.0.10", 81, fwd, yes), translated)
	})
	t.Run("backends that differ defer", func(t *testing.T) {
		s := allow(to(policy.Accept, networks("10.0.0.9/32")))
		specify(t, s, podWeb, out("tcp", "10.96.0.10", 80, policy.Deferred, `egress deferred "shop/front"`),
			out("tcp", "10.0.0.9", 9999, fwd, yes), out("tcp", "10.0.0.2", 5432, drop, no))
	})
	t.Run("the peer is pairs of address and target port", func(t *testing.T) {
		s := allow(to(policy.Accept, front))
		specify(t, s, podWeb, out("tcp", "10.96.0.10", 80, fwd, yes), out("tcp", "10.0.0.9", 9999, fwd, yes),
			out("tcp", "10.0.0.9", 5432, drop, no), out("udp", "10.0.0.9", 9999, drop, no), out("icmp", "10.0.0.9", 0, drop, no))
		specify(t, allow(on(to(policy.Accept, front), tcp(80, 80))), podWeb, out("tcp", "10.96.0.10", 80, drop, no))
		specify(t, allow(on(to(policy.Accept, front), tcp(5432, 5432))), podWeb,
			out("tcp", "10.96.0.10", 80, policy.Deferred, `egress deferred "shop/front"`))
		pg := policy.PortMatch{Named: "pg", Protocol: packet.ProtocolTCP}
		specify(t, allow(on(to(policy.Accept, front), pg)), podWeb, out("tcp", "10.0.0.2", 5432, fwd, yes), out("tcp", "10.0.0.9", 9999, drop, no))
	})
	t.Run("no backend", func(t *testing.T) {
		s := allow(anywhere(policy.Accept))
		s.Services[0].Ports[0].Backends = []netip.AddrPort{netip.MustParseAddrPort("[fd00::2]:1")}
		specify(t, s, podWeb, out("tcp", "10.96.0.10", 80, drop, "egress no-backend"))
		s.Policies = nil
		specify(t, s, podWeb, out("tcp", "10.96.0.10", 80, fwd, "egress no-match"))
	})
	t.Run("a backend that is the pod itself", func(t *testing.T) {
		s := allow()
		s.Services[0].Ports[0].Backends = []netip.AddrPort{netip.MustParseAddrPort("10.0.0.1:8080")}
		specify(t, s, podWeb, out("tcp", "10.96.0.10", 80, fwd, "egress self"))
	})
	t.Run("the lower name has an address that two claim", func(t *testing.T) {
		s := allow(to(policy.Accept, networks("10.0.0.0/24")))
		s.Services = append(s.Services, policy.Service{
			Namespace: "bank", Name: "zz", IPs: addrs("10.96.0.10"),
			Ports: []policy.ServicePort{{Protocol: packet.ProtocolTCP, Port: 80}},
		})
		specify(t, s, podWeb, out("tcp", "10.96.0.10", 80, drop, "egress no-backend"))
	})
	t.Run("ingress knows no Services", func(t *testing.T) {
		s := world(np("p", [2]bool{false, true}, nil, []policy.Rule{to(policy.Accept, front)}))
		specify(t, s, podWeb, in("tcp", "10.0.0.9", 9999, drop, "networkpolicy shop/p ingress isolation"))
	})
}
