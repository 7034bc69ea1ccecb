package policy

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/postern-dev/postern/internal/packet"
)

// Evaluate says what happens to the first packet of a flow, and which rule says
// so. It is the meaning of the language: a naive walk of the uncompiled model,
// meant to be read. Compile and the kernel must agree with it (I10).
//
// t is the packet as it was sent, before any translation: for Egress t.Src is
// the pod and t.Dst the remote end, for Ingress the reverse. The pod's own end
// is not looked at (anti-spoofing is the datapath's affair); v4-mapped addresses
// stand for the IPv4 address, as do destinations in 64:ff9b::/96 (packet.Judged). An Egress flow to a Service is decided on each of
// its ready backends: one verdict for all is the verdict, with the rule of the
// first backend by address and port; differing verdicts are Deferred, with
// IndexDeferred and the Service's "namespace/name" as the RuleRef's Name.
//
// A pod that s does not hold, or a remote end that is no address, is Dropped
// with IndexUnknown (I1). A host-network pod is never selected.
func Evaluate(s *Snapshot, pod PodKey, dir Direction, t packet.Tuple) Decision {
	w, d, done := newWalk(s, pod, dir, t)
	if done {
		return d
	}
	if svc, port := w.service(); port != nil {
		return w.onBackends(svc, port)
	}
	return w.decide()
}

// EvaluateTranslated is Evaluate for a packet whose destination is already the
// one chosen by the Service translation: it never looks at Services' own
// addresses. Peers of kind PeerService match as ever.
func EvaluateTranslated(s *Snapshot, pod PodKey, dir Direction, t packet.Tuple) Decision {
	w, d, done := newWalk(s, pod, dir, t)
	if done {
		return d
	}
	return w.decide()
}

// walk is one evaluation. Explain uses its parts too; Compile never does.
type walk struct {
	s      *Snapshot
	pod    *Pod
	dir    Direction
	t      packet.Tuple
	remote netip.Addr
	raw    netip.Addr // remote as it stands in the packet
}

// newWalk prepares an evaluation. If done, there is nothing to walk.
func newWalk(s *Snapshot, key PodKey, dir Direction, t packet.Tuple) (w *walk, d Decision, done bool) {
	unknown := Decision{Verdict: Dropped, Rule: RuleRef{Direction: dir, Index: IndexUnknown}}
	t.Src, t.Dst = packet.Unmap(t.Src), packet.Unmap(t.Dst)
	w = &walk{s: s, dir: dir, raw: t.Dst}
	if dir == Ingress {
		w.raw = t.Src
	} else {
		t.Dst = packet.Judged(t.Dst)
	}
	w.t, w.remote = t, t.Dst
	if dir == Ingress {
		w.remote = t.Src
	}
	for i := range s.Pods {
		if s.Pods[i].Key() == key {
			w.pod = &s.Pods[i]
		}
	}
	return w, unknown, w.pod == nil || !w.remote.IsValid()
}

// service finds the Service port that the packet is addressed to, or nil. A
// Service's own address comes before a NodePort, as in kube-proxy's chains. Of
// several the lowest namespace and name wins, then the first port.
func (w *walk) service() (*Service, *ServicePort) {
	if w.dir != Egress || !w.t.Protocol.HasPorts() || hasAddr(w.pod.IPs, w.raw) {
		return nil, nil
	}
	svc, port := w.servicePort(func(svc *Service, sp *ServicePort) bool {
		return sp.Port == w.t.DstPort && hasAddr(svc.IPs, w.remote)
	})
	if svc == nil && w.isNode(w.remote) {
		svc, port = w.servicePort(func(_ *Service, sp *ServicePort) bool {
			return sp.NodePort != 0 && sp.NodePort == w.t.DstPort
		})
	}
	return svc, port
}

func (w *walk) servicePort(is func(*Service, *ServicePort) bool) (*Service, *ServicePort) {
	var found *Service
	var port *ServicePort
	for i := range w.s.Services {
		svc := &w.s.Services[i]
		if found != nil && compareNames(found.Namespace, found.Name, svc.Namespace, svc.Name) <= 0 {
			continue
		}
		for j := range svc.Ports {
			if sp := &svc.Ports[j]; sp.Protocol == w.t.Protocol && is(svc, sp) {
				found, port = svc, sp
				break
			}
		}
	}
	return found, port
}

// backends returns the backends of the destination's family by address and port.
func (w *walk) backends(sp *ServicePort) []netip.AddrPort {
	var out []netip.AddrPort
	for _, b := range sp.Backends {
		b = netip.AddrPortFrom(packet.Unmap(b.Addr()), b.Port())
		if b.Addr().IsValid() && b.Addr().Is4() == w.remote.Is4() {
			out = append(out, b)
		}
	}
	slices.SortFunc(out, netip.AddrPort.Compare)
	return slices.Compact(out)
}

// to returns the walk of the same packet after translation to b.
func (w *walk) to(b netip.AddrPort) *walk {
	c := *w
	c.t.Dst, c.t.DstPort, c.remote, c.raw = b.Addr(), b.Port(), b.Addr(), b.Addr()
	return &c
}

func (w *walk) onBackends(svc *Service, sp *ServicePort) Decision {
	backends := w.backends(sp)
	if len(backends) == 0 {
		if w.governed() {
			return Decision{Dropped, RuleRef{Direction: w.dir, Index: IndexNoBackend}}
		}
		return Decision{Forwarded, RuleRef{Direction: w.dir, Index: IndexNoMatch}}
	}
	first := w.to(backends[0]).decide()
	for _, b := range backends[1:] {
		if w.to(b).decide().Verdict != first.Verdict {
			return Decision{Deferred, RuleRef{
				Direction: w.dir, Index: IndexDeferred, Name: svc.Namespace + "/" + svc.Name,
			}}
		}
	}
	return first
}

// decide walks the tiers.
func (w *walk) decide() Decision {
	if d, ok := w.always(); ok {
		return d
	}
	for _, tier := range w.tiers() {
		policies := w.policiesOf(tier)
		d, action, matched := w.firstMatch(tier, policies)
		if matched && action == Pass {
			continue
		}
		if matched {
			return d
		}
		if d, ok := w.tierEnd(tier, policies); ok {
			return d
		}
	}
	return w.end()
}

// always decides what no policy can change.
func (w *walk) always() (Decision, bool) {
	if hasAddr(w.pod.IPs, w.raw) {
		return Decision{Forwarded, RuleRef{Direction: w.dir, Index: IndexSelf}}, true
	}
	if w.dir == Ingress && w.pod.Node != "" {
		for i := range w.s.Nodes {
			if n := &w.s.Nodes[i]; n.Name == w.pod.Node && hasAddr(n.IPs, w.remote) {
				return Decision{Forwarded, RuleRef{Direction: w.dir, Index: IndexNode}}, true
			}
		}
	}
	return Decision{}, false
}

// firstMatch finds the first rule of a tier's policies that matches.
func (w *walk) firstMatch(tier Tier, policies []*Policy) (d Decision, a Action, matched bool) {
	for _, p := range policies {
		for i := range p.Rules[w.dir] {
			r := &p.Rules[w.dir][i]
			action, why := w.rule(tier, p, r)
			if why != whyMatch {
				continue
			}
			d = Decision{Dropped, ruleRef(tier, p, w.dir, r.Index, r.Name)}
			if action == Accept {
				d.Verdict = Forwarded
			}
			return d, action, true
		}
	}
	return Decision{}, Deny, false
}

// tierEnd decides what no rule of the tier matched, if the tier denies by itself.
func (w *walk) tierEnd(tier Tier, policies []*Policy) (Decision, bool) {
	for _, p := range policies {
		if tier.Name == TierNetworkPolicy && p.Isolates[w.dir] {
			return Decision{Dropped, ruleRef(tier, p, w.dir, IndexIsolation, "")}, true
		}
		if tier.Name != TierNetworkPolicy && tier.DefaultDeny {
			return Decision{Dropped, ruleRef(tier, p, w.dir, IndexTierDefault, "")}, true
		}
	}
	return Decision{}, false
}

// end decides what no tier decided.
func (w *walk) end() Decision {
	if w.protected() && w.governed() {
		return Decision{Dropped, RuleRef{Direction: w.dir, Index: IndexProtected}}
	}
	return Decision{Forwarded, RuleRef{Direction: w.dir, Index: IndexNoMatch}}
}

func ruleRef(tier Tier, p *Policy, dir Direction, index int, name string) RuleRef {
	return RuleRef{
		Tier: tier.Name, Kind: p.Kind, Namespace: p.Namespace, Policy: p.Name,
		Direction: dir, Index: index, Name: name,
	}
}

// tiers returns the tiers in the order of evaluation. The built-in ones are
// there even if the Snapshot forgot them.
func (w *walk) tiers() []Tier {
	out := slices.Clone(w.s.Tiers)
	for _, b := range BuiltinTiers() {
		if !slices.ContainsFunc(out, func(t Tier) bool { return t.Name == b.Name }) {
			out = append(out, b)
		}
	}
	slices.SortFunc(out, func(a, b Tier) int {
		return cmp.Or(cmp.Compare(a.Order, b.Order), cmp.Compare(a.Name, b.Name))
	})
	return out
}

// knownTier reports whether p names a tier that exists. If not, p comes last in
// the admin tier, and of its rules only the denying ones count (P4).
func (w *walk) knownTier(p *Policy) bool {
	return slices.ContainsFunc(w.tiers(), func(t Tier) bool { return t.Name == p.Tier })
}

// policiesOf returns the policies of a tier that select the pod and govern the
// direction, in the order of evaluation.
func (w *walk) policiesOf(tier Tier) []*Policy {
	var known, unknown []*Policy
	for i := range w.s.Policies {
		p := &w.s.Policies[i]
		if !governs(p, w.dir) || !w.selects(&p.Subject) {
			continue
		}
		if p.Tier == tier.Name {
			known = append(known, p)
		} else if tier.Name == TierAdmin && !w.knownTier(p) {
			unknown = append(unknown, p)
		}
	}
	sortPolicies(known)
	sortPolicies(unknown)
	return append(known, unknown...)
}

// sortPolicies puts the policies of one tier in the order of evaluation.
func sortPolicies(list []*Policy) {
	slices.SortFunc(list, func(a, b *Policy) int {
		return cmp.Or(cmp.Compare(a.Priority, b.Priority), cmp.Compare(a.Kind, b.Kind),
			compareNames(a.Namespace, a.Name, b.Namespace, b.Name))
	})
}

// governed reports whether some policy governs this direction of the pod.
func (w *walk) governed() bool {
	for i := range w.s.Policies {
		if p := &w.s.Policies[i]; governs(p, w.dir) && w.selects(&p.Subject) {
			return true
		}
	}
	return false
}

// governs reports whether p says anything about a direction of the pods that it
// selects. Rules of a direction that p does not govern are not looked at:
// a NetworkPolicy whose policyTypes leave out Egress has no egress rules.
func governs(p *Policy, dir Direction) bool {
	switch p.Kind {
	case KindNetworkPolicy, KindEgressPolicy:
		return p.Isolates[dir]
	case KindClusterEgressPolicy:
		return dir == Egress
	case KindClusterNetworkPolicy:
		return len(p.Rules[dir]) > 0
	}
	return p.Isolates[dir] || len(p.Rules[dir]) > 0
}

// selects reports whether a subject selects the pod.
func (w *walk) selects(s *Subject) bool {
	if w.pod.HostNetwork {
		return false
	}
	if len(s.ServiceAccounts) > 0 && !slices.Contains(s.ServiceAccounts, w.pod.ServiceAccount) {
		return false
	}
	if s.Any {
		return true
	}
	return s.Selects && w.podIs(w.pod, s.Namespace, s.Namespaces, s.Pods)
}

// podIs reports whether a pod is in the namespace, or else in a namespace with
// the labels, and has the labels.
func (w *walk) podIs(p *Pod, namespace string, namespaces, pods Selector) bool {
	if namespace != "" {
		return p.Namespace == namespace && pods.Matches(p.Labels)
	}
	return namespaces.Matches(w.namespaceLabels(p.Namespace)) && pods.Matches(p.Labels)
}

// namespaceLabels returns a namespace's labels; one that the Snapshot does not
// hold has but its name.
func (w *walk) namespaceLabels(name string) map[string]string {
	for i := range w.s.Namespaces {
		if w.s.Namespaces[i].Name == name {
			return w.s.Namespaces[i].Labels
		}
	}
	return map[string]string{LabelNamespaceName: name}
}

// protected reports whether the destination is reached only by naming it.
func (w *walk) protected() bool {
	return w.dir == Egress && inAny(w.s.Protected, w.remote)
}

func (w *walk) isNode(a netip.Addr) bool {
	for i := range w.s.Nodes {
		if hasAddr(w.s.Nodes[i].IPs, a) {
			return true
		}
	}
	return false
}

func compareNames(ns1, name1, ns2, name2 string) int {
	return cmp.Or(cmp.Compare(ns1, ns2), cmp.Compare(name1, name2))
}

func hasAddr(addrs []netip.Addr, a netip.Addr) bool {
	for _, b := range addrs {
		if packet.Unmap(b) == a {
			return true
		}
	}
	return false
}

func inAny(prefixes []netip.Prefix, a netip.Addr) bool {
	for _, p := range prefixes {
		if packet.JudgedPrefix(p).Contains(a) {
			return true
		}
	}
	return false
}
