package policy_test

import (
	"testing"

	"github.com/postern-dev/postern/internal/policy"
)

// TestIsolation: isolated is what no address passes that no rule accepts.
func TestIsolation(t *testing.T) {
	rule := func(action policy.Action, peers ...policy.Peer) policy.Rule {
		return policy.Rule{Action: action, AnyPort: true, Peers: peers}
	}
	baseline := func(rules ...policy.Rule) policy.Policy {
		return policy.Policy{
			Kind: policy.KindClusterNetworkPolicy, Name: "b", Tier: policy.TierBaseline, Subject: policy.Subject{Any: true},
			Rules: [2][]policy.Rule{policy.Egress: rules},
		}
	}
	app := func(rules ...policy.Rule) policy.Policy {
		p := baseline(rules...)
		p.Kind, p.Namespace, p.Tier, p.Isolates[policy.Egress] = policy.KindNetworkPolicy, "shop", policy.TierNetworkPolicy, true
		return p
	}
	allPods := policy.Peer{Kind: policy.PeerPods}
	onePort := rule(policy.Deny, networks("0.0.0.0/0", "::/0"))
	onePort.AnyPort, onePort.Ports = false, []policy.PortMatch{tcp(80, 80)}
	anywhere := policy.Rule{Action: policy.Accept, AnyPort: true, AnyPeer: true}
	for name, c := range map[string]struct {
		policies []policy.Policy
		want     policy.Isolation
	}{
		"no policy":                         {nil, policy.Open},
		"everything denied by networks":     {[]policy.Policy{baseline(rule(policy.Deny, networks("0.0.0.0/0", "::/0")))}, policy.Isolated},
		"in halves":                         {[]policy.Policy{baseline(rule(policy.Deny, networks("0.0.0.0/1", "128.0.0.0/1", "::/0")))}, policy.Isolated},
		"one family":                        {[]policy.Policy{baseline(rule(policy.Deny, networks("0.0.0.0/0")))}, policy.Governed},
		"a port":                            {[]policy.Policy{baseline(onePort)}, policy.Governed},
		"pods, as the standard's ingress":   {[]policy.Policy{baseline(rule(policy.Deny, allPods))}, policy.Governed},
		"passed on":                         {[]policy.Policy{baseline(rule(policy.Pass, networks("0.0.0.0/0", "::/0")), rule(policy.Deny, networks("0.0.0.0/0", "::/0")))}, policy.Governed},
		"the end of the networkpolicy tier": {[]policy.Policy{app()}, policy.Isolated},
		"one network accepted":              {[]policy.Policy{app(rule(policy.Accept, networks("10.0.0.0/8")))}, policy.Isolated},
		"all of it accepted":                {[]policy.Policy{app(anywhere)}, policy.Governed},
		"IPv4 accepted":                     {[]policy.Policy{app(rule(policy.Accept, networks("0.0.0.0/0")))}, policy.Governed},
		"the first that decides":            {[]policy.Policy{app(rule(policy.Accept, allPods)), baseline(rule(policy.Deny, allPods))}, policy.Isolated},
	} {
		s := shop()
		s.Policies = c.policies
		compiler := policy.NewCompiler(nil)
		if _, err := compiler.Apply(policy.ChangesFrom(s)); err != nil {
			t.Fatal(err)
		}
		if got := compiler.Isolation(podWeb, policy.Egress); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
		if got := compiler.Isolation(policy.PodKey{Namespace: "shop", Name: "nobody"}, policy.Egress); got != policy.Open {
			t.Errorf("no endpoint: %s", got)
		}
	}
}
