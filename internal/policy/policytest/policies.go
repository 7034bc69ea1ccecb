package policytest

import (
	"fmt"
	"time"

	"github.com/postern-dev/postern/internal/packet"
	"github.com/postern-dev/postern/internal/policy"
)

func (g gen) policy(i int) policy.Policy {
	p := policy.Policy{Name: fmt.Sprintf("policy%d", i)}
	switch g.IntN(4) {
	case 0:
		p.Kind, p.Tier = policy.KindNetworkPolicy, policy.TierNetworkPolicy
		p.Namespace = g.policyNamespace(i)
		p.Isolates = [2]bool{g.chance(2), g.chance(2)}
	case 1:
		p.Kind, p.Tier = policy.KindEgressPolicy, policy.TierNetworkPolicy
		p.Namespace = g.policyNamespace(i)
		p.Isolates = [2]bool{true, false}
	case 2:
		p.Kind = policy.KindClusterNetworkPolicy
		p.Tier = pick(g, []string{policy.TierAdmin, policy.TierBaseline})
		p.Priority = int32(g.IntN(4))
	default:
		p.Kind = policy.KindClusterEgressPolicy
		p.Tier = pick(g, []string{policy.TierAdmin, policy.TierBaseline, tierNames[0], tierNames[1]})
		if g.chance(12) {
			p.Tier = policy.TierNetworkPolicy // where it adds rules, but isolates nobody
		}
		p.Priority = int32(g.IntN(4))
	}
	p.Subject = g.subject(p.Namespace)
	for _, dir := range policy.Directions {
		if dir == policy.Ingress && p.Kind != policy.KindNetworkPolicy && p.Kind != policy.KindClusterNetworkPolicy {
			continue
		}
		for j := range g.IntN(4) {
			p.Rules[dir] = append(p.Rules[dir], g.rule(j, p.Tier == policy.TierNetworkPolicy))
		}
	}
	return p
}

// policyNamespace depends on the number only, so that a changed policy keeps its key.
func (g gen) policyNamespace(i int) string { return namespaceNames[i%len(namespaceNames)] }

func (g gen) subject(namespace string) policy.Subject {
	s := policy.Subject{Selects: !g.chance(30), Namespace: namespace}
	if !g.chance(3) {
		s.Pods = g.selector(podLabelKeys)
	}
	if namespace == "" {
		s.Any = g.chance(4)
		if g.chance(2) {
			s.Namespaces = g.selector([]string{"team", "env", policy.LabelNamespaceName})
		}
	}
	if g.chance(8) {
		s.ServiceAccounts = []string{pick(g, accounts)}
	}
	return s
}

func (g gen) selector(keys []string) policy.Selector {
	var reqs []policy.Requirement
	for range g.IntN(3) {
		r := policy.Requirement{Key: pick(g, keys), Op: pick(g, []policy.Operator{
			policy.OpIn, policy.OpIn, policy.OpNotIn, policy.OpExists, policy.OpDoesNotExist,
		})}
		if r.Op == policy.OpIn || r.Op == policy.OpNotIn {
			values := labelValues
			if r.Key == policy.LabelNamespaceName {
				values = namespaceNames
			}
			for range 1 + g.IntN(2) {
				r.Values = append(r.Values, pick(g, values))
			}
		}
		reqs = append(reqs, r)
	}
	return policy.NewSelector(reqs...)
}

func (g gen) rule(i int, acceptOnly bool) policy.Rule {
	r := policy.Rule{Index: i, Action: pick(g, []policy.Action{policy.Accept, policy.Deny, policy.Pass})}
	if acceptOnly && !g.chance(20) {
		r.Action = policy.Accept
	}
	if g.chance(2) {
		r.Name = fmt.Sprintf("rule-%d", i)
	}
	if g.chance(4) {
		r.ExpiresAt = Start.Add(time.Duration(g.IntN(121)-60) * time.Minute)
	}
	if r.AnyPeer = g.chance(4); !r.AnyPeer {
		for range g.IntN(4) {
			r.Peers = append(r.Peers, g.peer())
		}
	}
	if r.AnyPort = g.chance(3); !r.AnyPort {
		for range 1 + g.IntN(3) {
			r.Ports = append(r.Ports, g.port())
		}
	}
	return r
}

func (g gen) peer() policy.Peer {
	switch g.IntN(8) {
	case 0, 1:
		p := policy.Peer{Kind: policy.PeerNetworks}
		p.Networks, p.Except = g.networks()
		return p
	case 2, 3:
		p := policy.Peer{Kind: policy.PeerPods}
		if g.chance(2) {
			p.Pods.Namespace = pick(g, namespaceNames)
		} else {
			p.Pods.Namespaces = g.selector([]string{"team", "env", policy.LabelNamespaceName})
		}
		p.Pods.Pods = g.selector(podLabelKeys)
		return p
	case 4:
		return policy.Peer{Kind: policy.PeerNodes, Nodes: g.selector([]string{"zone", "app"})}
	case 5:
		ref := policy.ServiceRef{Namespace: pick(g, namespaceNames[:2]), Name: fmt.Sprintf("svc%d", g.IntN(5))}
		return policy.Peer{Kind: policy.PeerService, Service: ref}
	case 6:
		return policy.Peer{Kind: policy.PeerSet, Set: pick(g, setNames)}
	}
	return pick(g, []policy.Peer{
		{Kind: policy.PeerDomainNames, DomainNames: []string{"example.com"}},
		{Kind: policy.PeerNone},
		{Kind: policy.PeerNetworks},
	})
}

func (g gen) port() policy.PortMatch {
	switch g.IntN(4) {
	case 0:
		return policy.PortMatch{Named: pick(g, portNames), Protocol: pick(g, protocols), AnyProtocol: g.chance(3)}
	case 1:
		if g.chance(2) {
			return policy.PortMatch{Protocol: pick(g, []packet.Protocol{
				packet.ProtocolICMP, packet.ProtocolICMPv6, packet.ProtocolGRE, 0,
			})}
		}
		return policy.PortMatch{Protocol: pick(g, protocols), First: 0, Last: 65535}
	}
	m := policy.PortMatch{Protocol: pick(g, protocols), First: pick(g, portNumbers)}
	m.Last = m.First
	if g.chance(2) {
		m.Last = pick(g, portNumbers) // may be lower: a range that holds nothing
	}
	return m
}
