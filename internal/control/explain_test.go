package control_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/postern-dev/postern/internal/control"
	"github.com/postern-dev/postern/internal/packet"
	"github.com/postern-dev/postern/internal/policy"
)

func addrs(list ...string) (out []netip.Addr) {
	for _, a := range list {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

func backends(list ...string) (out []netip.AddrPort) {
	for _, a := range list {
		out = append(out, netip.MustParseAddrPort(a))
	}
	return out
}

// apps selects by the label app; values in their order.
func apps(values ...string) policy.Selector {
	return policy.Selector{Requirements: []policy.Requirement{{Key: "app", Op: policy.OpIn, Values: values}}}
}

// shop is a cluster whose pods may open everything. Services: cart has the one
// backend cart, mixed has cart and shop/open, plain has open and an address
// outside, empty none.
func shop(policies ...policy.Policy) *policy.Snapshot {
	pod := func(ns, name string, ips ...string) policy.Pod {
		return policy.Pod{Namespace: ns, Name: name, Labels: map[string]string{"app": name}, IPs: addrs(ips...), Node: "node1"}
	}
	svc := func(name, ip string, nodePort uint16, b ...string) policy.Service {
		return policy.Service{
			Namespace: "shop", Name: name, IPs: addrs(ip),
			Ports: []policy.ServicePort{{Protocol: packet.ProtocolTCP, Port: 80, NodePort: nodePort, Backends: backends(b...)}},
		}
	}
	cart := svc("cart", "10.96.1.1", 30080, "10.244.1.3:8080")
	cart.IPs = append(cart.IPs, netip.MustParseAddr("198.51.100.7"))
	headless := svc("headless", "10.96.1.9", 0, "10.244.1.3:8080")
	headless.IPs = nil
	proxy := pod("kube-system", "proxy", "172.31.0.11")
	proxy.HostNetwork = true
	return &policy.Snapshot{
		Tiers:      policy.BuiltinTiers(),
		Namespaces: []policy.Namespace{{Name: "shop", Labels: map[string]string{policy.LabelNamespaceName: "shop"}}},
		Nodes:      []policy.Node{{Name: "node1", IPs: addrs("172.31.0.11")}, {Name: "node2", IPs: addrs("172.31.0.12")}},
		Pods: []policy.Pod{
			pod("shop", "frontend", "10.244.1.2", "fd00::2"), pod("shop", "cart", "10.244.1.3", "fd00::3"),
			pod("shop", "open", "10.244.1.4"), pod("shop", "twin", "10.244.1.5"), proxy,
		},
		Services: []policy.Service{
			cart, headless, svc("mixed", "10.96.1.2", 0, "10.244.1.3:8080", "10.244.1.4:8080"),
			svc("plain", "10.96.1.3", 0, "10.244.1.4:8080", "192.0.2.9:80"), svc("empty", "10.96.1.4", 0),
			svc("both", "10.96.1.5", 0, "10.244.1.3:8080", "10.244.1.5:8080"), svc("node", "10.96.1.6", 0, "172.31.0.11:10250"),
		},
		Policies: policies,
	}
}

// isolated denies the ingress of cart and twin, in the baseline tier.
func isolated() policy.Policy {
	return policy.Policy{
		Kind: policy.KindClusterNetworkPolicy, Name: "default-deny", Tier: policy.TierBaseline, Priority: 1000,
		Subject: policy.Subject{Selects: true, Pods: apps("cart", "twin")},
		Rules:   [2][]policy.Rule{policy.Ingress: {{Name: "nobody-in", AnyPeer: true, AnyPort: true}}},
	}
}

// admitted lets frontend in to cart, on one port.
func admitted(port uint16) policy.Policy {
	return policy.Policy{
		Kind: policy.KindNetworkPolicy, Namespace: "shop", Name: "cart", Tier: policy.TierNetworkPolicy,
		Subject: policy.Subject{Selects: true, Namespace: "shop", Pods: apps("cart")}, Isolates: [2]bool{policy.Ingress: true},
		Rules: [2][]policy.Rule{policy.Ingress: {{
			Action: policy.Accept,
			Peers:  []policy.Peer{{Kind: policy.PeerPods, Pods: policy.PodPeer{Namespace: "shop", Pods: apps("frontend")}}},
			Ports:  []policy.PortMatch{{Protocol: packet.ProtocolTCP, First: port, Last: port}},
		}}},
	}
}

// toCartOnly lets frontend open flows to cart alone.
func toCartOnly() policy.Policy {
	return policy.Policy{
		Kind: policy.KindEgressPolicy, Namespace: "shop", Name: "frontend", Tier: policy.TierNetworkPolicy,
		Subject: policy.Subject{Selects: true, Namespace: "shop", Pods: apps("frontend")}, Isolates: [2]bool{policy.Egress: true},
		Rules: [2][]policy.Rule{policy.Egress: {{
			Action: policy.Accept, AnyPort: true,
			Peers: []policy.Peer{{Kind: policy.PeerPods, Pods: policy.PodPeer{Namespace: "shop", Pods: apps("cart")}}},
		}}},
	}
}

func TestExplainAsksEveryReceiver(t *testing.T) {
	const nobodyIn = `Dropped by baseline default-deny ingress[0] "nobody-in"`
	for name, c := range map[string]struct {
		policies []policy.Policy
		from, to string
		port     uint16
		verdict  policy.Verdict
		asked    int // explanations
		text     string
	}{
		"the address of a Service whose backend denies":      {[]policy.Policy{isolated()}, "shop/frontend", "10.96.1.1", 80, policy.Dropped, 2, nobodyIn},
		"its external address":                               {[]policy.Policy{isolated()}, "shop/frontend", "198.51.100.7", 80, policy.Dropped, 2, nobodyIn},
		"its NodePort":                                       {[]policy.Policy{isolated()}, "shop/frontend", "172.31.0.12", 30080, policy.Dropped, 2, nobodyIn},
		"its name":                                           {[]policy.Policy{isolated()}, "shop/frontend", "service/shop/cart", 80, policy.Dropped, 2, nobodyIn},
		"the pod's address":                                  {[]policy.Policy{isolated()}, "shop/frontend", "10.244.1.3", 8080, policy.Dropped, 2, nobodyIn},
		"the pod's address, mapped":                          {[]policy.Policy{isolated()}, "shop/frontend", "::ffff:10.244.1.3", 8080, policy.Dropped, 2, nobodyIn},
		"the backend's port is what it admits":               {[]policy.Policy{isolated(), admitted(8080)}, "shop/frontend", "10.96.1.1", 80, policy.Forwarded, 2, "10.244.1.3:8080"},
		"the Service's port is not":                          {[]policy.Policy{isolated(), admitted(80)}, "shop/frontend", "10.96.1.1", 80, policy.Dropped, 2, "ingress isolation"},
		"one of two backends denies":                         {[]policy.Policy{isolated()}, "shop/frontend", "shop/mixed", 80, policy.Deferred, 3, nobodyIn},
		"both deny":                                          {[]policy.Policy{isolated()}, "shop/frontend", "shop/both", 80, policy.Dropped, 3, "ingress of shop/twin"},
		"a backend outside, and one that admits":             {[]policy.Policy{isolated()}, "shop/frontend", "shop/plain", 80, policy.Forwarded, 2, "ingress of shop/open"},
		"a backend on the node's network":                    {[]policy.Policy{isolated()}, "shop/frontend", "shop/node", 80, policy.Forwarded, 1, "egress of shop/frontend"},
		"no backend, no policy":                              {[]policy.Policy{isolated()}, "shop/frontend", "shop/empty", 80, policy.Forwarded, 1, "no ready backend"},
		"no backend":                                         {[]policy.Policy{toCartOnly()}, "shop/frontend", "shop/empty", 80, policy.Dropped, 1, "no ready backend"},
		"egress admits one backend, which denies":            {[]policy.Policy{isolated(), toCartOnly()}, "shop/frontend", "shop/mixed", 80, policy.Dropped, 2, nobodyIn},
		"egress admits one backend, which admits":            {[]policy.Policy{toCartOnly()}, "shop/frontend", "shop/mixed", 80, policy.Deferred, 2, "ingress of shop/cart"},
		"egress denies, and nobody else is asked":            {[]policy.Policy{toCartOnly()}, "shop/frontend", "shop/open", 80, policy.Dropped, 1, "egress isolation"},
		"from outside through a NodePort":                    {[]policy.Policy{isolated()}, "192.0.2.1", "172.31.0.12", 30080, policy.Dropped, 1, nobodyIn},
		"from outside to a pod":                              {[]policy.Policy{isolated()}, "192.0.2.1", "pod/shop/cart", 8080, policy.Dropped, 1, nobodyIn},
		"from a pod's address":                               {[]policy.Policy{isolated()}, "10.244.1.2", "10.96.1.1", 80, policy.Dropped, 2, nobodyIn},
		"the opener's name is a pod's, whatever else has it": {nil, "shop/cart", "shop/open", 80, policy.Forwarded, 2, "egress of shop/cart"},
		"svc is short for service":                           {nil, "pod/shop/frontend", "svc/shop/cart", 80, policy.Forwarded, 2, "10.244.1.3:8080"},
	} {
		t.Run(name, func(t *testing.T) {
			res, err := control.Explain(shop(c.policies...), control.ExplainRequest{From: c.from, To: c.to, Port: c.port})
			if err != nil {
				t.Fatal(err)
			}
			if res.Verdict != c.verdict.String() || len(res.Explanations) != c.asked || !strings.Contains(res.Text, c.text) {
				t.Errorf("got %s after %d questions, want %s after %d and %q\n%s", res.Verdict, len(res.Explanations), c.verdict, c.asked, c.text, res.Text)
			}
		})
	}
}

// TestExplainPrintsAWayOnce: of backends that one rule decides on, the first
// shows the way there.
func TestExplainPrintsAWayOnce(t *testing.T) {
	res, err := control.Explain(shop(isolated()), control.ExplainRequest{From: "shop/frontend", To: "shop/both", Port: 80})
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(res.Text, "ClusterNetworkPolicy default-deny"); n != 1 {
		t.Errorf("%d times:\n%s", n, res.Text)
	}
	if n := strings.Count(res.Text, "Dropped by baseline default-deny"); n != 2 {
		t.Errorf("%d verdicts:\n%s", n, res.Text)
	}
	if len(res.Explanations[2].Tiers) == 0 {
		t.Error("a program gets all of it")
	}
}

func TestExplainRefuses(t *testing.T) {
	for _, c := range []struct {
		from, to string
		port     uint16
		want     string
	}{
		{"shop/frontend", "shop/cart", 80, "shop/cart is a pod and a Service: write pod/shop/cart or service/shop/cart"},
		{"shop/frontend", "pod/shop/mixed", 80, "no pod shop/mixed"},
		{"shop/frontend", "service/shop/open", 80, "no service shop/open"},
		{"shop/frontend", "shop/nobody", 80, "no pod or service shop/nobody"},
		{"shop/frontend", "node/shop/cart", 80, "want NAMESPACE/NAME"},
		{"shop/frontend", "cart", 80, "want NAMESPACE/NAME"},
		{"shop/frontend", "service/shop/cart", 443, "no port tcp/443; it has tcp/80"},
		{"shop/frontend", "shop/headless", 80, "no address of its own"},
		{"shop/frontend", "192.0.2.1", 0, "want one from 1 to 65535"},
		{"shop/mixed", "shop/open", 80, "a Service opens no flows"},
		{"service/shop/cart", "shop/open", 80, "a Service opens no flows"},
		{"192.0.2.1", "192.0.2.2", 80, "policies say nothing"},
		{"shop/frontend", "shop/open", 0, "want one from 1 to 65535"},
		{"fd00::2", "10.244.1.3", 80, "no address family in common"},
	} {
		_, err := control.Explain(shop(), control.ExplainRequest{From: c.from, To: c.to, Port: c.port})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s to %s: %v, want %q", c.from, c.to, err, c.want)
		}
	}
}

// TestExplainNetwork: a flow has an address at its end.
func TestExplainNetwork(t *testing.T) {
	for _, q := range []control.ExplainRequest{
		{From: "shop/frontend", To: "203.0.113.0/24", Port: 443}, {From: "2001:db8::/32", To: "shop/open", Port: 443},
	} {
		if _, err := control.Explain(shop(), q); err == nil || !strings.Contains(err.Error(), "is a network; name one address of it") {
			t.Errorf("%+v: %v", q, err)
		}
	}
}

// TestExplainMartians: what the datapath drops whatever policy says is not allowed.
func TestExplainMartians(t *testing.T) {
	everywhere := policy.Policy{
		Kind: policy.KindNetworkPolicy, Namespace: "shop", Name: "all", Tier: policy.TierNetworkPolicy,
		Subject: policy.Subject{Selects: true, Namespace: "shop"}, Isolates: [2]bool{policy.Egress: true},
		Rules: [2][]policy.Rule{policy.Egress: {{Action: policy.Accept, AnyPeer: true, AnyPort: true}}},
	}
	const dropped = `Dropped by egress datapath "martian"`
	for _, c := range []struct {
		from, to string
		policies []policy.Policy
		verdict  policy.Verdict
		text     string
	}{
		{"shop/frontend", "127.0.0.1", []policy.Policy{everywhere}, policy.Dropped, dropped},
		{"shop/frontend", "127.255.255.254", []policy.Policy{everywhere}, policy.Dropped, dropped},
		{"shop/frontend", "64:ff9b::7f00:1", []policy.Policy{everywhere}, policy.Dropped, dropped},
		{"shop/frontend", "64:ff9b::1", nil, policy.Dropped, dropped}, // 0.0.0.1
		{"shop/frontend", "0.0.0.0", nil, policy.Dropped, dropped},
		{"shop/frontend", "0.255.0.1", nil, policy.Dropped, dropped},
		{"shop/frontend", "::", nil, policy.Dropped, dropped},
		{"shop/frontend", "::1", nil, policy.Dropped, dropped},
		{"shop/frontend", "::2", nil, policy.Forwarded, "Forwarded by"},
		{"shop/frontend", "128.0.0.1", []policy.Policy{everywhere}, policy.Forwarded, "Forwarded by networkpolicy shop/all egress[0]"},
		{"shop/frontend", "64:ff9b::808:808", []policy.Policy{everywhere}, policy.Forwarded, "Forwarded by networkpolicy shop/all egress[0]"},
		{"127.0.0.1", "pod/shop/cart", nil, policy.Forwarded, "Forwarded by"},
		{"127.0.0.1", "pod/shop/cart", []policy.Policy{isolated()}, policy.Dropped, `Dropped by ingress datapath "martian"`},
		{"127.0.0.1", "pod/shop/cart", []policy.Policy{admitted(80)}, policy.Dropped, `Dropped by ingress datapath "martian"`},
		{"127.0.0.1", "shop/open", []policy.Policy{isolated(), admitted(80)}, policy.Forwarded, "Forwarded by"},
		{"::1", "pod/shop/cart", []policy.Policy{isolated()}, policy.Dropped, `Dropped by ingress datapath "martian"`},
	} {
		res, err := control.Explain(shop(c.policies...), control.ExplainRequest{From: c.from, To: c.to, Port: 443})
		if err != nil || res.Verdict != c.verdict.String() || !strings.Contains(res.Text, c.text) {
			t.Errorf("%s to %s: %s, %v\n%s", c.from, c.to, res.Verdict, err, res.Text)
		}
	}
}
