package kube

import (
	"math"
	"regexp"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/postern-dev/postern/api/v1alpha1"
	"github.com/postern-dev/postern/internal/policy"
)

// Limits of the schemas of postern.dev/v1alpha1, see api/v1alpha1.
const (
	egressPolicyMaxRules        = 64
	clusterEgressPolicyMaxRules = 100
	maxPeerEntries              = 100
	maxReason                   = 256
	maxServiceAccounts          = 64
)

const protocolFields = "tcp, udp, sctp, icmp, number and destinationNamedPort"

// egressRule is what the rules of our two kinds have in common.
type egressRule struct {
	name, reason string
	expiresAt    *metav1.Time
	serverName   v1alpha1.ServerNameMode
	protocols    []v1alpha1.Protocol
}

// EgressPolicy translates a postern.dev/v1alpha1 EgressPolicy. decoded are
// Decode's findings on it, or nil; they are part of the result.
func EgressPolicy(ep *v1alpha1.EgressPolicy, decoded []Finding) (policy.Policy, []Finding) {
	c := newChecker(RefOf(ep), decoded)
	p := c.egressPolicy(ep)
	return p, c.result()
}

func (c *checker) egressPolicy(ep *v1alpha1.EgressPolicy) policy.Policy {
	spec := field.NewPath("spec")
	p := policy.Policy{
		Kind: policy.KindEgressPolicy, Namespace: ep.Namespace, Name: ep.Name, Tier: policy.TierNetworkPolicy,
		Subject:  policy.Subject{Selects: true, Namespace: ep.Namespace},
		Isolates: [2]bool{policy.Egress: true},
	}
	if ep.Spec.PodSelector == nil {
		c.errorf(spec.Child("podSelector"), ReasonRequired, "is missing: select pods by label, or write {} for every pod of the namespace")
	} else {
		p.Subject.Pods = c.selector(spec.Child("podSelector"), ep.Spec.PodSelector)
	}
	p.Subject.ServiceAccounts = c.serviceAccounts(spec.Child("serviceAccounts"), ep.Spec.ServiceAccounts)
	c.atMost(spec.Child("egress"), len(ep.Spec.Egress), egressPolicyMaxRules)
	for i := range ep.Spec.Egress {
		r := &ep.Spec.Egress[i]
		path := spec.Child("egress").Index(i)
		out := policy.Rule{Index: i, Action: policy.Accept}
		c.someOf(path.Child("to"), len(r.To))
		for j := range r.To {
			out.Peers = append(out.Peers, c.localPeer(path.Child("to").Index(j), ep.Namespace, &r.To[j])...)
		}
		c.egressRule(path, &out, egressRule{r.Name, r.Reason, r.ExpiresAt, r.ServerName, r.Protocols})
		c.settleRefs(out.Action)
		p.Rules[policy.Egress] = append(p.Rules[policy.Egress], out)
	}
	c.close(&p)
	return p
}

// ClusterEgressPolicy translates a postern.dev/v1alpha1 ClusterEgressPolicy.
// Whether its tier exists is decided later, by World.
func ClusterEgressPolicy(cp *v1alpha1.ClusterEgressPolicy, decoded []Finding) (policy.Policy, []Finding) {
	c := newChecker(RefOf(cp), decoded)
	p := c.clusterEgressPolicy(cp)
	return p, c.result()
}

func (c *checker) clusterEgressPolicy(cp *v1alpha1.ClusterEgressPolicy) policy.Policy {
	spec := field.NewPath("spec")
	p := policy.Policy{
		Kind: policy.KindClusterEgressPolicy, Name: cp.Name,
		Tier: c.tierName(spec.Child("tier"), cp.Spec.Tier), Subject: c.clusterSubject(spec.Child("subject"), &cp.Spec.Subject),
	}
	if cp.Spec.Priority == nil {
		c.errorf(spec.Child("priority"), ReasonRequired, "is missing: write a number from 0, looked at first, to %d", maxPriority)
	} else {
		p.Priority = *cp.Spec.Priority
		c.priority(spec, p.Priority)
	}
	c.atMost(spec.Child("egress"), len(cp.Spec.Egress), clusterEgressPolicyMaxRules)
	for i := range cp.Spec.Egress {
		r := &cp.Spec.Egress[i]
		path := spec.Child("egress").Index(i)
		out := c.clusterRule(path, i, r.Name, string(r.Action))
		c.someOf(path.Child("to"), len(r.To))
		for j := range r.To {
			out.Peers = append(out.Peers, c.clusterPeer(path.Child("to").Index(j), &r.To[j])...)
		}
		c.egressRule(path, &out, egressRule{r.Name, r.Reason, r.ExpiresAt, r.ServerName, r.Protocols})
		c.settleRefs(out.Action)
		p.Rules[policy.Egress] = append(p.Rules[policy.Egress], out)
	}
	c.close(&p)
	if c.marks.tier {
		closeTier(&p)
	}
	return p
}

func (c *checker) egressRule(path *field.Path, out *policy.Rule, r egressRule) {
	out.Name, out.Reason, out.ExpiresAt = r.name, r.reason, expiry(r.expiresAt)
	c.ruleName(path, r.name)
	if len(r.reason) > maxReason {
		c.warnf(path.Child("reason"), ReasonTooMany, "has %d characters, and an API server takes %d", len(r.reason), maxReason)
	}
	if r.protocols == nil {
		out.AnyPort = true
	} else {
		c.protocols(path.Child("protocols"), out, r.protocols, protocolFields)
	}
	c.namedPorts(path, out)
	if r.serverName == "" {
		return
	}
	serverName := path.Child("serverName")
	switch r.serverName {
	case v1alpha1.ServerNameVerify, v1alpha1.ServerNameIgnore:
		c.warnf(serverName, ReasonNotEnforced, "is accepted and has no effect in this version: no TLS server name is looked at")
	default:
		c.errorf(serverName, ReasonInvalidValue, "%q is neither Verify nor Ignore", r.serverName)
	}
	for _, peer := range out.Peers {
		if peer.Kind == policy.PeerDomainNames || peer.Kind == policy.PeerSet {
			return
		}
	}
	c.errorf(serverName, ReasonConflict, "is about domain names: remove it, or add domainNames or destinationSets to `to`")
}

// settleRefs notes the action of the rule whose references were collected last.
func (c *checker) settleRefs(a policy.Action) {
	for i := range c.refs {
		if !c.refs[i].settled {
			c.refs[i].accept, c.refs[i].settled = a == policy.Accept, true
		}
	}
}

// tierName reads the name of a tier; the standard's spellings are understood.
func (c *checker) tierName(path *field.Path, name string) string {
	switch name {
	case "Admin":
		return policy.TierAdmin
	case "Baseline":
		return policy.TierBaseline
	case policy.TierNetworkPolicy:
		c.errorf(path, ReasonConflict, "networkpolicy holds NetworkPolicy and EgressPolicy only: use EgressPolicy, or the tier admin, baseline or your own")
		return tierInvalid
	}
	if errs := validation.IsDNS1123Label(name); errs != nil {
		c.errorf(path, ReasonInvalidValue, "%q is no name of a tier: write admin, baseline or a Tier's name", name)
		return tierInvalid
	}
	return name
}

func (c *checker) clusterSubject(path *field.Path, s *v1alpha1.ClusterEgressPolicySubject) policy.Subject {
	out := policy.Subject{Selects: true}
	switch {
	case (s.Namespaces != nil) == (s.Pods != nil):
		c.errorf(path, ReasonRequired, "must have exactly one of namespaces and pods; for every pod of the cluster write namespaces: {}")
	case s.Namespaces != nil:
		out.Namespaces = c.selector(path.Child("namespaces"), s.Namespaces)
	default:
		pods := c.ourNamespacedPod(path.Child("pods"), s.Pods)
		out.Namespaces, out.Pods = pods.Namespaces, pods.Pods
	}
	out.ServiceAccounts = c.serviceAccounts(path.Child("serviceAccounts"), s.ServiceAccounts)
	return out
}

func (c *checker) ourNamespacedPod(path *field.Path, p *v1alpha1.NamespacedPod) policy.PodPeer {
	if p.PodSelector == nil {
		c.errorf(path.Child("podSelector"), ReasonRequired, "is missing: select pods by label, or write {} for every pod")
		return policy.PodPeer{}
	}
	return c.namespacedPod(path, &p.NamespaceSelector, p.PodSelector)
}

func (c *checker) serviceAccounts(path *field.Path, names []v1alpha1.ObjectName) []string {
	if names == nil {
		return nil
	}
	if len(names) == 0 {
		c.errorf(path, ReasonRequired, "is empty: remove it to select pods of every service account, or name one")
	}
	c.atMost(path, len(names), maxServiceAccounts)
	out := texts(names)
	for i, name := range out {
		c.objectName(path.Index(i), name)
	}
	c.repeated(path, out)
	return out
}

func (c *checker) objectName(path *field.Path, name string) {
	if errs := validation.IsDNS1123Subdomain(name); errs != nil {
		c.errorf(path, ReasonInvalidValue, "%q is no name: %s", name, errs[0])
	}
}

func (c *checker) localPeer(path *field.Path, namespace string, peer *v1alpha1.EgressPolicyPeer) []policy.Peer {
	others := boolInt(peer.Pods != nil) + boolInt(peer.Services != nil) + boolInt(peer.DestinationSets != nil)
	out := c.sharedPeer(path, &v1alpha1.ClusterEgressPolicyPeer{
		Networks: peer.Networks, Except: peer.Except, Namespaces: peer.Namespaces, DomainNames: peer.DomainNames,
	}, others, "networks, pods, namespaces, services, destinationSets and domainNames")
	switch {
	case out != nil:
		return out
	case peer.Pods != nil:
		return c.localPods(path.Child("pods"), namespace, peer.Pods)
	case peer.DestinationSets != nil:
		return c.localSets(path.Child("destinationSets"), namespace, peer.DestinationSets)
	}
	refs := make([]v1alpha1.ServiceReference, len(peer.Services))
	for i, r := range peer.Services {
		refs[i] = v1alpha1.ServiceReference(r)
		if r.Namespace == "" {
			refs[i].Namespace = v1alpha1.NamespaceName(namespace)
		}
	}
	return c.services(path.Child("services"), refs)
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

func (c *checker) localPods(path *field.Path, namespace string, p *v1alpha1.LocalPod) []policy.Peer {
	if p.PodSelector == nil {
		c.errorf(path.Child("podSelector"), ReasonRequired, "is missing: select pods by label, or write {} for every pod")
		return []policy.Peer{{}}
	}
	pods := policy.PodPeer{Pods: c.selector(path.Child("podSelector"), p.PodSelector)}
	if p.NamespaceSelector == nil {
		pods.Namespace = namespace
	} else {
		pods.Namespaces = c.selector(path.Child("namespaceSelector"), p.NamespaceSelector)
	}
	return []policy.Peer{{Kind: policy.PeerPods, Pods: pods}}
}

func (c *checker) localSets(path *field.Path, namespace string, refs []v1alpha1.LocalSetReference) []policy.Peer {
	c.someRefs(path, len(refs))
	out := make([]policy.Peer, len(refs))
	for i, r := range refs {
		c.objectName(path.Index(i).Child("name"), string(r.Name))
		ref := policy.SetRef{Namespace: namespace, Name: string(r.Name)}
		switch r.Kind {
		case "", "DestinationSet":
		case "ClusterDestinationSet":
			ref.Namespace = ""
		default:
			c.errorf(path.Index(i).Child("kind"), ReasonInvalidValue, "%q is neither DestinationSet nor ClusterDestinationSet", r.Kind)
		}
		out[i] = policy.Peer{Kind: policy.PeerSet, Set: ref}
		c.refs = append(c.refs, reference{path: path.Index(i), peer: out[i]})
	}
	return out
}

func (c *checker) clusterPeer(path *field.Path, peer *v1alpha1.ClusterEgressPolicyPeer) []policy.Peer {
	others := boolInt(peer.Pods != nil) + boolInt(peer.Nodes != nil) + boolInt(peer.Services != nil) + boolInt(peer.DestinationSets != nil)
	out := c.sharedPeer(path, peer, others, "networks, pods, namespaces, nodes, services, destinationSets and domainNames")
	switch {
	case out != nil:
		return out
	case peer.Pods != nil:
		return []policy.Peer{{Kind: policy.PeerPods, Pods: c.ourNamespacedPod(path.Child("pods"), peer.Pods)}}
	case peer.Nodes != nil:
		return []policy.Peer{{Kind: policy.PeerNodes, Nodes: c.selector(path.Child("nodes"), peer.Nodes)}}
	case peer.Services != nil:
		return c.services(path.Child("services"), peer.Services)
	}
	sets := path.Child("destinationSets")
	c.someRefs(sets, len(peer.DestinationSets))
	out = make([]policy.Peer, len(peer.DestinationSets))
	for i, r := range peer.DestinationSets {
		c.objectName(sets.Index(i).Child("name"), string(r.Name))
		out[i] = policy.Peer{Kind: policy.PeerSet, Set: policy.SetRef{Name: string(r.Name)}}
		c.refs = append(c.refs, reference{path: sets.Index(i), peer: out[i]})
	}
	return out
}

// sharedPeer reads the peers that both kinds write alike. It returns nil if the
// peer is one of the others, and a peer that matches nothing if there is not
// exactly one; others is how many of the others are set.
func (c *checker) sharedPeer(path *field.Path, peer *v1alpha1.ClusterEgressPolicyPeer, others int, known string) []policy.Peer {
	set := others + boolInt(peer.Networks != nil) + boolInt(peer.Namespaces != nil) + boolInt(peer.DomainNames != nil)
	if set != 1 {
		c.errorf(path, ReasonRequired, "must have exactly one of %s: write one entry for each", known)
		return []policy.Peer{{}}
	}
	if peer.Except != nil && peer.Networks == nil {
		c.errorf(path.Child("except"), ReasonConflict, "takes addresses out of networks: set networks beside it")
	}
	switch {
	case peer.Networks != nil:
		return []policy.Peer{c.networksPeer(path, texts(peer.Networks), texts(peer.Except), maxPeerEntries)}
	case peer.Namespaces != nil:
		return []policy.Peer{{Kind: policy.PeerPods, Pods: policy.PodPeer{
			Namespaces: c.selector(path.Child("namespaces"), peer.Namespaces),
		}}}
	case peer.DomainNames != nil:
		return []policy.Peer{c.domainNamesPeer(path, texts(peer.DomainNames), maxPeerEntries)}
	}
	return nil
}

func (c *checker) services(path *field.Path, refs []v1alpha1.ServiceReference) []policy.Peer {
	c.someRefs(path, len(refs))
	out := make([]policy.Peer, len(refs))
	for i, r := range refs {
		c.objectName(path.Index(i).Child("name"), string(r.Name))
		if errs := validation.IsDNS1123Label(string(r.Namespace)); errs != nil {
			c.errorf(path.Index(i).Child("namespace"), ReasonInvalidValue, "%q is no namespace: %s", r.Namespace, errs[0])
		}
		out[i] = policy.Peer{Kind: policy.PeerService, Service: policy.ServiceRef{Namespace: string(r.Namespace), Name: string(r.Name)}}
		c.refs = append(c.refs, reference{path: path.Index(i), peer: out[i]})
	}
	return out
}

func (c *checker) someRefs(path *field.Path, have int) {
	if have == 0 {
		c.errorf(path, ReasonRequired, "is empty: name at least one")
	}
	c.atMost(path, have, cnpMaxItems)
}

// domainName is the form of a domain name. Source: DomainName of network-policy-api
// v1alpha2, whose [A-z] also takes the characters between Z and a; ours does not.
var domainName = regexp.MustCompile(`^(\*\.)?([a-zA-Z0-9]([-a-zA-Z0-9_]*[a-zA-Z0-9])?\.)+[a-zA-Z0-9]([-a-zA-Z0-9_]*[a-zA-Z0-9])?\.?$`)

const maxDomainName = 253

// domainNames makes names canonical: lower case, no trailing dot.
func (c *checker) domainNames(path *field.Path, names []string) []string {
	out := make([]string, 0, len(names))
	for i, name := range names {
		if len(name) > maxDomainName || !domainName.MatchString(name) {
			c.errorf(path.Index(i), ReasonInvalidValue, "%q is no domain name: write example.com or *.example.com, in ASCII", name)
			continue
		}
		out = append(out, strings.TrimSuffix(strings.ToLower(name), "."))
	}
	return out
}

func (c *checker) domainNamesPeer(path *field.Path, names []string, most int) policy.Peer {
	path = path.Child("domainNames")
	if len(names) == 0 {
		c.errorf(path, ReasonRequired, "is empty: name at least one")
	}
	c.atMost(path, len(names), most)
	c.repeated(path, names)
	out := policy.Peer{Kind: policy.PeerDomainNames, DomainNames: c.domainNames(path, names)}
	c.warnf(path, ReasonNotEnforced, "is accepted and matches nothing in this version: name networks or services until it does")
	return out
}

// tierInvalid is the tier of policies whose own is not known. It is the first of
// all, so that nothing that such a policy may have been meant to deny gets past.
// No object can have this name.
const tierInvalid = "(invalid)"

// PriorityInvalid is the priority of policies whose own is not known: before all others.
const PriorityInvalid = math.MinInt32

// closeTier closes a policy whose tier is not known: neither is what the tier
// denies at its end, so the policy denies the rest itself.
func closeTier(p *policy.Policy) {
	p.Tier, p.Priority, p.Invalid = tierInvalid, PriorityInvalid, true
	rules := make([]policy.Rule, 0, len(p.Rules[policy.Egress])+1)
	for _, r := range p.Rules[policy.Egress] {
		rules = append(rules, narrowedRule(r))
	}
	p.Rules[policy.Egress] = append(rules, denyAll(len(rules), "unknown tier"))
}
