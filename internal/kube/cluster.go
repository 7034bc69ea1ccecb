package kube

import (
	"math"
	"net/netip"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	cnpv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"github.com/postern-dev/postern/api/v1alpha1"
	"github.com/postern-dev/postern/internal/packet"
	"github.com/postern-dev/postern/internal/policy"
)

// Limits of policy.networking.k8s.io/v1alpha2. What exceeds them is enforced as
// written and reported, since it was understood.
const (
	cnpMaxItems = 25
	maxRuleName = 100
	maxPriority = 1000
)

// ClusterNetworkPolicy translates a policy.networking.k8s.io/v1alpha2
// ClusterNetworkPolicy. decoded are Decode's findings on it, or nil; they are
// part of the result. A peer or protocol with no field set, which is what a
// newer version's field looks like, fails closed as the standard says.
func ClusterNetworkPolicy(cnp *cnpv1alpha2.ClusterNetworkPolicy, decoded []Finding) (policy.Policy, []Finding) {
	c := newChecker(RefOf(cnp), decoded)
	p := c.clusterNetworkPolicy(cnp)
	return p, c.result()
}

func (c *checker) clusterNetworkPolicy(cnp *cnpv1alpha2.ClusterNetworkPolicy) policy.Policy {
	spec := field.NewPath("spec")
	p := policy.Policy{
		Kind: policy.KindClusterNetworkPolicy, Name: cnp.Name, Tier: policy.TierAdmin, Priority: cnp.Spec.Priority,
		Subject: c.cnpSubject(spec.Child("subject"), &cnp.Spec.Subject),
	}
	switch cnp.Spec.Tier {
	case cnpv1alpha2.AdminTier:
	case cnpv1alpha2.BaselineTier:
		p.Tier = policy.TierBaseline
	default:
		c.errorf(spec.Child("tier"), ReasonInvalidValue, "%q is neither Admin nor Baseline", cnp.Spec.Tier)
	}
	c.priority(spec, cnp.Spec.Priority)
	c.atMost(spec.Child("ingress"), len(cnp.Spec.Ingress), cnpMaxItems)
	c.atMost(spec.Child("egress"), len(cnp.Spec.Egress), cnpMaxItems)
	for i := range cnp.Spec.Ingress {
		r := &cnp.Spec.Ingress[i]
		path := spec.Child("ingress").Index(i)
		out := c.clusterRule(path, i, r.Name, string(r.Action))
		c.someOf(path.Child("from"), len(r.From))
		for j := range r.From {
			out.Peers = append(out.Peers, c.cnpPeer(path.Child("from").Index(j), out.Action, &cnpv1alpha2.ClusterNetworkPolicyEgressPeer{
				Namespaces: r.From[j].Namespaces, Pods: r.From[j].Pods,
			}, "namespaces and pods"))
		}
		c.cnpProtocols(path.Child("protocols"), &out, r.Protocols)
		p.Rules[policy.Ingress] = append(p.Rules[policy.Ingress], out)
	}
	for i := range cnp.Spec.Egress {
		r := &cnp.Spec.Egress[i]
		path := spec.Child("egress").Index(i)
		out := c.clusterRule(path, i, r.Name, string(r.Action))
		c.someOf(path.Child("to"), len(r.To))
		for j := range r.To {
			out.Peers = append(out.Peers, c.cnpPeer(path.Child("to").Index(j), out.Action, &r.To[j], "namespaces, pods, nodes, networks and domainNames"))
		}
		c.cnpProtocols(path.Child("protocols"), &out, r.Protocols)
		c.namedPorts(path, &out)
		p.Rules[policy.Egress] = append(p.Rules[policy.Egress], out)
	}
	c.close(&p)
	return p
}

func (c *checker) priority(spec *field.Path, priority int32) {
	if priority < 0 || priority > maxPriority {
		c.errorf(spec.Child("priority"), ReasonInvalidValue, "%d is not between 0 and %d", priority, maxPriority)
	}
}

// atMost warns of lists that the API would refuse.
func (c *checker) atMost(path *field.Path, have, most int) {
	if have > most {
		c.warnf(path, ReasonTooMany, "has %d entries, and an API server takes %d: it is enforced as written, split it before it goes to a cluster", have, most)
	}
}

// someOf reports a list that must have entries. An empty one is closed, since
// elsewhere it means everything.
func (c *checker) someOf(path *field.Path, have int) {
	if have == 0 {
		c.errorf(path, ReasonRequired, "is empty: name at least one peer; for everything write the networks 0.0.0.0/0 and ::/0")
	}
	c.atMost(path, have, cnpMaxItems)
}

func (c *checker) clusterRule(path *field.Path, index int, name, action string) policy.Rule {
	r := policy.Rule{Index: index, Name: name}
	c.ruleName(path, name)
	switch action {
	case "Accept":
		r.Action = policy.Accept
	case "Deny":
		r.Action = policy.Deny
	case "Pass":
		r.Action = policy.Pass
	default:
		c.errorf(path.Child("action"), ReasonInvalidValue, "%q is none of Accept, Deny and Pass", action)
	}
	return r
}

func (c *checker) ruleName(path *field.Path, name string) {
	if len(name) > maxRuleName {
		c.warnf(path.Child("name"), ReasonTooMany, "has %d characters, and an API server takes %d", len(name), maxRuleName)
	}
}

func (c *checker) cnpSubject(path *field.Path, s *cnpv1alpha2.ClusterNetworkPolicySubject) policy.Subject {
	if (s.Namespaces != nil) == (s.Pods != nil) {
		c.errorf(path, ReasonRequired, "must have exactly one of namespaces and pods; for every pod of the cluster write namespaces: {}")
		return policy.Subject{}
	}
	if s.Namespaces != nil {
		return policy.Subject{Selects: true, Namespaces: c.selector(path.Child("namespaces"), s.Namespaces)}
	}
	pods := c.namespacedPod(path.Child("pods"), &s.Pods.NamespaceSelector, &s.Pods.PodSelector)
	return policy.Subject{Selects: true, Namespaces: pods.Namespaces, Pods: pods.Pods}
}

func (c *checker) namespacedPod(path *field.Path, namespaces, pods *metav1.LabelSelector) policy.PodPeer {
	return policy.PodPeer{
		Namespaces: c.selector(path.Child("namespaceSelector"), namespaces),
		Pods:       c.selector(path.Child("podSelector"), pods),
	}
}

func (c *checker) cnpPeer(path *field.Path, action policy.Action, peer *cnpv1alpha2.ClusterNetworkPolicyEgressPeer, known string) policy.Peer {
	set := 0
	for _, is := range []bool{
		peer.Namespaces != nil, peer.Pods != nil, peer.Nodes != nil, peer.Networks != nil, peer.DomainNames != nil,
	} {
		if is {
			set++
		}
	}
	if set != 1 {
		c.errorf(path, ReasonRequired, "must have exactly one of %s: write one entry for each", known)
		return policy.Peer{}
	}
	switch {
	case peer.Namespaces != nil:
		return policy.Peer{Kind: policy.PeerPods, Pods: policy.PodPeer{
			Namespaces: c.selector(path.Child("namespaces"), peer.Namespaces),
		}}
	case peer.Pods != nil:
		return policy.Peer{Kind: policy.PeerPods, Pods: c.namespacedPod(path.Child("pods"), &peer.Pods.NamespaceSelector, &peer.Pods.PodSelector)}
	case peer.Nodes != nil:
		return policy.Peer{Kind: policy.PeerNodes, Nodes: c.selector(path.Child("nodes"), peer.Nodes)}
	case peer.Networks != nil:
		return c.networksPeer(path, texts(peer.Networks), nil, cnpMaxItems)
	}
	if action != policy.Accept {
		c.errorf(path.Child("domainNames"), ReasonConflict, "goes with Accept only: deny what is not accepted with a later rule")
	}
	return c.domainNamesPeer(path, texts(peer.DomainNames), cnpMaxItems)
}

// texts keeps the difference between an empty and an absent list.
func texts[T ~string](list []T) []string {
	if list == nil {
		return nil
	}
	out := make([]string, len(list))
	for i, t := range list {
		out[i] = string(t)
	}
	return out
}

// networksPeer reads networks less except. except must take something out,
// else it is a slip that leaves more open than was meant.
func (c *checker) networksPeer(path *field.Path, networks, except []string, most int) policy.Peer {
	if len(networks) == 0 {
		c.errorf(path.Child("networks"), ReasonRequired, "is empty: name at least one network; for everything write 0.0.0.0/0 and ::/0")
	}
	c.atMost(path.Child("networks"), len(networks), most)
	c.atMost(path.Child("except"), len(except), most)
	out := policy.Peer{Kind: policy.PeerNetworks, Networks: c.networks(path.Child("networks"), networks)}
	if except != nil {
		out.Except = c.networks(path.Child("except"), except)
	}
	for i, e := range except {
		p, err := netip.ParsePrefix(e)
		if err == nil && !overlapsAny(out.Networks, packet.JudgedPrefix(p)) {
			c.errorf(path.Child("except").Index(i), ReasonConflict, "%s lies outside of networks and takes nothing out: correct one or the other", e)
		}
	}
	c.repeated(path.Child("networks"), networks)
	return out
}

// repeated warns of entries that the API, where the list is a set, would refuse.
func (c *checker) repeated(path *field.Path, list []string) {
	seen := make(map[string]bool, len(list))
	for i, s := range list {
		if seen[s] {
			c.warnf(path.Index(i), ReasonWithoutEffect, "%q is already in the list: remove it", s)
		}
		seen[s] = true
	}
}

func overlapsAny(list []netip.Prefix, p netip.Prefix) bool {
	for _, n := range list {
		if n.Overlaps(p) {
			return true
		}
	}
	return false
}

func (c *checker) cnpProtocols(path *field.Path, r *policy.Rule, list []cnpv1alpha2.ClusterNetworkPolicyProtocol) {
	if list == nil {
		r.AnyPort = true
		return
	}
	var out []v1alpha1.Protocol
	for i := range list {
		p := &list[i]
		o := v1alpha1.Protocol{DestinationNamedPort: p.DestinationNamedPort}
		if p.TCP != nil {
			o.TCP = &v1alpha1.ProtocolPort{DestinationPort: cnpPort(p.TCP.DestinationPort)}
		}
		if p.UDP != nil {
			o.UDP = &v1alpha1.ProtocolPort{DestinationPort: cnpPort(p.UDP.DestinationPort)}
		}
		if p.SCTP != nil {
			o.SCTP = &v1alpha1.ProtocolPort{DestinationPort: cnpPort(p.SCTP.DestinationPort)}
		}
		out = append(out, o)
	}
	c.protocols(path, r, out, "tcp, udp, sctp and destinationNamedPort")
}

func cnpPort(p *cnpv1alpha2.Port) *v1alpha1.Port {
	if p == nil {
		return nil
	}
	out := &v1alpha1.Port{Number: p.Number}
	if p.Range != nil {
		out.Range = &v1alpha1.PortRange{Start: p.Range.Start, End: p.Range.End}
	}
	return out
}

// protocols reads a rule's protocols; list is not nil.
func (c *checker) protocols(path *field.Path, r *policy.Rule, list []v1alpha1.Protocol, known string) {
	if len(list) == 0 {
		c.errorf(path, ReasonRequired, "is empty: remove it to match every protocol, or name one")
	}
	c.atMost(path, len(list), cnpMaxItems)
	for i := range list {
		r.Ports = append(r.Ports, c.oneProtocol(path.Index(i), &list[i], known)...)
	}
}

func (c *checker) oneProtocol(path *field.Path, p *v1alpha1.Protocol, known string) []policy.PortMatch {
	set := 0
	for _, is := range []bool{
		p.TCP != nil, p.UDP != nil, p.SCTP != nil, p.ICMP != nil, p.Number != nil, p.DestinationNamedPort != "",
	} {
		if is {
			set++
		}
	}
	if set != 1 {
		c.errorf(path, ReasonRequired, "must have exactly one of %s: write one entry for each", known)
		return nil
	}
	switch {
	case p.TCP != nil:
		return c.destinationPort(path.Child("tcp", "destinationPort"), packet.ProtocolTCP, p.TCP.DestinationPort)
	case p.UDP != nil:
		return c.destinationPort(path.Child("udp", "destinationPort"), packet.ProtocolUDP, p.UDP.DestinationPort)
	case p.SCTP != nil:
		return c.destinationPort(path.Child("sctp", "destinationPort"), packet.ProtocolSCTP, p.SCTP.DestinationPort)
	case p.ICMP != nil:
		return []policy.PortMatch{
			{Protocol: packet.ProtocolICMP, Last: math.MaxUint16},
			{Protocol: packet.ProtocolICMPv6, Last: math.MaxUint16},
		}
	case p.Number != nil:
		if *p.Number < 1 || *p.Number > math.MaxUint8 {
			c.errorf(path.Child("number"), ReasonInvalidValue, "%d is no protocol: write a number from 1 to 255", *p.Number)
			return nil
		}
		return []policy.PortMatch{{Protocol: packet.Protocol(*p.Number), Last: math.MaxUint16}}
	}
	c.portName(path.Child("destinationNamedPort"), p.DestinationNamedPort)
	return []policy.PortMatch{{Named: p.DestinationNamedPort, AnyProtocol: true}}
}

func (c *checker) destinationPort(path *field.Path, proto packet.Protocol, p *v1alpha1.Port) []policy.PortMatch {
	if p == nil || (p.Number != 0) == (p.Range != nil) {
		c.errorf(path, ReasonRequired, "must have either number or range; for every port write the range from 1 to 65535")
		return nil
	}
	if p.Range == nil {
		n, _ := c.portNumber(path.Child("number"), p.Number)
		return []policy.PortMatch{{Protocol: proto, First: n, Last: n}}
	}
	first, ok1 := c.portNumber(path.Child("range", "start"), p.Range.Start)
	last, ok2 := c.portNumber(path.Child("range", "end"), p.Range.End)
	if ok1 && ok2 && first >= last {
		c.errorf(path.Child("range"), ReasonInvalidValue, "start %d is not less than end %d; for a single port write number", first, last)
	}
	return []policy.PortMatch{{Protocol: proto, First: first, Last: last}}
}

// namedPorts reports a named port in an egress rule whose peers have no ports of
// their own. Source: the XValidation of ClusterNetworkPolicyEgressRule.
func (c *checker) namedPorts(path *field.Path, r *policy.Rule) {
	for i, m := range r.Ports {
		if m.Named == "" {
			continue
		}
		for _, peer := range r.Peers {
			if peer.Kind != policy.PeerPods {
				c.errorf(path.Child("protocols").Index(i).Child("destinationNamedPort"), ReasonConflict,
					"is the name of a pod's port, and a peer of this rule is not pods or namespaces: write the number, or split the rule")
				return
			}
		}
	}
}

// expiry translates expiresAt.
func expiry(t *metav1.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.UTC()
}
