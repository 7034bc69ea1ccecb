package kube

import (
	"math"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/postern-dev/postern/internal/packet"
	"github.com/postern-dev/postern/internal/policy"
)

// NetworkPolicy translates a networking.k8s.io/v1 NetworkPolicy. decoded are
// Decode's findings on it, or nil; they are part of the result.
//
// Empty and absent lists mean the same, as in the API: no `from`, `to` or
// `ports` matches everything, no rules accept nothing.
// Source: the comments of k8s.io/api/networking/v1, KEP-2079 (endPort).
func NetworkPolicy(np *networkingv1.NetworkPolicy, decoded []Finding) (policy.Policy, []Finding) {
	c := newChecker(RefOf(np), decoded)
	p := c.networkPolicy(np)
	return p, c.result()
}

func (c *checker) networkPolicy(np *networkingv1.NetworkPolicy) policy.Policy {
	spec := field.NewPath("spec")
	p := policy.Policy{
		Kind: policy.KindNetworkPolicy, Namespace: np.Namespace, Name: np.Name, Tier: policy.TierNetworkPolicy,
		Subject: policy.Subject{
			Selects: true, Namespace: np.Namespace,
			Pods: c.selector(spec.Child("podSelector"), &np.Spec.PodSelector),
		},
		Isolates: c.policyTypes(spec, np),
	}
	if p.Isolates[policy.Ingress] || c.marks.any {
		for i, r := range np.Spec.Ingress {
			path := spec.Child("ingress").Index(i)
			p.Rules[policy.Ingress] = append(p.Rules[policy.Ingress], c.npRule(path, i, np.Namespace, path.Child("from"), r.From, r.Ports))
		}
	}
	if p.Isolates[policy.Egress] || c.marks.any {
		for i, r := range np.Spec.Egress {
			path := spec.Child("egress").Index(i)
			p.Rules[policy.Egress] = append(p.Rules[policy.Egress], c.npRule(path, i, np.Namespace, path.Child("to"), r.To, r.Ports))
		}
	}
	c.close(&p)
	return p
}

// policyTypes returns the directions that the policy isolates. Left out, they
// are Ingress, and Egress if there is an egress rule.
// Source: SetDefaults_NetworkPolicy in k8s.io/kubernetes/pkg/apis/networking/v1.
func (c *checker) policyTypes(spec *field.Path, np *networkingv1.NetworkPolicy) (isolates [2]bool) {
	path := spec.Child("policyTypes")
	if len(np.Spec.PolicyTypes) == 0 {
		c.marks.defaultTypes = true
		if np.Spec.Egress != nil && len(np.Spec.Egress) == 0 {
			c.warnf(spec.Child("egress"), ReasonWithoutEffect, "is empty and policyTypes is not given, so egress is not isolated: add policyTypes: [Ingress, Egress] to isolate it, or remove egress")
		}
		return [2]bool{policy.Egress: len(np.Spec.Egress) > 0, policy.Ingress: true}
	}
	for i, t := range np.Spec.PolicyTypes {
		switch t {
		case networkingv1.PolicyTypeEgress:
			isolates[policy.Egress] = true
		case networkingv1.PolicyTypeIngress:
			isolates[policy.Ingress] = true
		default:
			c.errorf(path.Index(i), ReasonInvalidValue, "%q is neither Ingress nor Egress", t)
		}
	}
	if len(np.Spec.PolicyTypes) > 2 {
		c.errorf(path, ReasonTooMany, "has %d entries: write Ingress and Egress at most once", len(np.Spec.PolicyTypes))
	}
	if c.marks.policyTypes {
		return isolates
	}
	if !isolates[policy.Egress] && len(np.Spec.Egress) > 0 {
		c.warnf(spec.Child("egress"), ReasonWithoutEffect, "has no effect because policyTypes leaves out Egress: add it, or remove the rules")
	}
	if !isolates[policy.Ingress] && len(np.Spec.Ingress) > 0 {
		c.warnf(spec.Child("ingress"), ReasonWithoutEffect, "has no effect because policyTypes leaves out Ingress: add it, or remove the rules")
	}
	return isolates
}

func (c *checker) npRule(path *field.Path, index int, namespace string, peersPath *field.Path, peers []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort) policy.Rule {
	r := policy.Rule{Index: index, Action: policy.Accept, AnyPeer: len(peers) == 0, AnyPort: len(ports) == 0}
	for i := range peers {
		r.Peers = append(r.Peers, c.npPeer(peersPath.Index(i), namespace, &peers[i]))
	}
	for i := range ports {
		r.Ports = append(r.Ports, c.npPort(path.Child("ports").Index(i), &ports[i]))
	}
	return r
}

func (c *checker) npPeer(path *field.Path, namespace string, peer *networkingv1.NetworkPolicyPeer) policy.Peer {
	if peer.IPBlock != nil {
		if peer.PodSelector != nil || peer.NamespaceSelector != nil {
			c.errorf(path, ReasonConflict, "ipBlock excludes podSelector and namespaceSelector: write them as separate entries")
		}
		return c.ipBlock(path.Child("ipBlock"), peer.IPBlock)
	}
	if peer.PodSelector == nil && peer.NamespaceSelector == nil {
		c.errorf(path, ReasonRequired, "names nothing: set podSelector, namespaceSelector or ipBlock")
		return policy.Peer{}
	}
	pods := policy.PodPeer{}
	if peer.NamespaceSelector != nil {
		pods.Namespaces = c.selector(path.Child("namespaceSelector"), peer.NamespaceSelector)
	} else {
		pods.Namespace = namespace
	}
	if peer.PodSelector != nil {
		pods.Pods = c.selector(path.Child("podSelector"), peer.PodSelector)
	}
	return policy.Peer{Kind: policy.PeerPods, Pods: pods}
}

func (c *checker) ipBlock(path *field.Path, b *networkingv1.IPBlock) policy.Peer {
	out := policy.Peer{Kind: policy.PeerNetworks}
	cidr, ok := c.network(path.Child("cidr"), b.CIDR)
	if ok {
		out.Networks = []netip.Prefix{cidr}
	}
	for i, text := range b.Except {
		p := path.Child("except").Index(i)
		e, okE := c.network(p, text)
		if okE && ok && (!cidr.Contains(e.Addr()) || e.Bits() <= cidr.Bits()) {
			c.errorf(p, ReasonConflict, "%s is not a smaller network inside of %s: it would take out nothing, or everything", e, cidr)
		}
		if okE {
			out.Except = append(out.Except, e)
		}
	}
	return out
}

func (c *checker) npPort(path *field.Path, port *networkingv1.NetworkPolicyPort) policy.PortMatch {
	out := policy.PortMatch{Protocol: packet.ProtocolTCP, Last: math.MaxUint16}
	if port.Protocol != nil {
		proto, ok := c.protocol(path.Child("protocol"), *port.Protocol)
		if !ok {
			return policy.PortMatch{}
		}
		out.Protocol = proto
	}
	if port.Port == nil {
		if port.EndPort != nil {
			c.errorf(path.Child("endPort"), ReasonConflict, "needs port, the first port of the range")
		}
		return out
	}
	if port.Port.Type == intstr.String {
		if port.EndPort != nil {
			c.errorf(path.Child("endPort"), ReasonConflict, "goes with a number only, and port is the name %q", port.Port.StrVal)
		}
		c.portName(path.Child("port"), port.Port.StrVal)
		return policy.PortMatch{Protocol: out.Protocol, Named: port.Port.StrVal}
	}
	first, ok := c.portNumber(path.Child("port"), port.Port.IntVal)
	if !ok {
		return policy.PortMatch{}
	}
	out.First, out.Last = first, first
	if port.EndPort != nil {
		last, ok := c.portNumber(path.Child("endPort"), *port.EndPort)
		if ok && last < first {
			c.errorf(path.Child("endPort"), ReasonInvalidValue, "%d is less than port %d", last, first)
		}
		out.Last = last
	}
	return out
}

func (c *checker) protocol(path *field.Path, p corev1.Protocol) (packet.Protocol, bool) {
	switch p {
	case corev1.ProtocolTCP:
		return packet.ProtocolTCP, true
	case corev1.ProtocolUDP:
		return packet.ProtocolUDP, true
	case corev1.ProtocolSCTP:
		return packet.ProtocolSCTP, true
	}
	c.errorf(path, ReasonInvalidValue, "%q is none of TCP, UDP and SCTP", p)
	return 0, false
}

func (c *checker) portNumber(path *field.Path, n int32) (uint16, bool) {
	if n < 1 || n > math.MaxUint16 {
		c.errorf(path, ReasonInvalidValue, "%d is no port: write a number from 1 to 65535", n)
		return 0, false
	}
	return uint16(n), true
}

func (c *checker) portName(path *field.Path, name string) {
	if errs := validation.IsValidPortName(name); errs != nil {
		c.errorf(path, ReasonInvalidValue, "%q is no port's name: %s", name, errs[0])
	}
}
