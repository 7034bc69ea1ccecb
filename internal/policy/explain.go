package policy

import (
	"fmt"
	"net/netip"

	"github.com/postern-dev/postern/internal/packet"
)

// Explanation is the way of one flow through tiers and rules, for people
// (String) and for programs (JSON).
type Explanation struct {
	Pod       string    `json:"pod"`
	Direction Direction `json:"direction"`
	Packet    string    `json:"packet"`
	// Remote says who the other end is, as far as the Snapshot knows.
	Remote   []string `json:"remote,omitempty"`
	Decision Decision `json:"decision"`
	// Note says in a sentence why the Decision is what it is.
	Note string `json:"note"`
	// Service is set if the destination is a Service; it then has the ways.
	Service *ServiceTrace `json:"service,omitempty"`
	Tiers   []TierTrace   `json:"tiers,omitempty"`
}

// ServiceTrace is the part of an Explanation about a Service.
type ServiceTrace struct {
	Namespace string         `json:"namespace"`
	Name      string         `json:"name"`
	Port      uint16         `json:"port"`
	Backends  []BackendTrace `json:"backends,omitempty"`
}

// BackendTrace is the way of the flow as if Backend were its destination.
type BackendTrace struct {
	Backend  netip.AddrPort `json:"backend"`
	Remote   []string       `json:"remote,omitempty"`
	Decision Decision       `json:"decision"`
	Note     string         `json:"note"`
	Tiers    []TierTrace    `json:"tiers,omitempty"`
}

// TierTrace is what happened in one tier.
type TierTrace struct {
	Tier string `json:"tier"`
	// Reached is false for a tier behind the decision.
	Reached bool `json:"reached"`
	// Policies are those that select the pod, in the order of evaluation.
	Policies []PolicyTrace `json:"policies,omitempty"`
	// Others is the number of the tier's policies that do not select the pod.
	Others int `json:"others,omitempty"`
	// Outcome says how the tier ended.
	Outcome string `json:"outcome,omitempty"`
}

// PolicyTrace is what happened in one policy.
type PolicyTrace struct { //nolint:revive // beside TierTrace and RuleTrace
	Kind      Kind        `json:"kind"`
	Namespace string      `json:"namespace,omitempty"`
	Name      string      `json:"name"`
	Priority  int32       `json:"priority,omitempty"`
	Note      string      `json:"note,omitempty"`
	Rules     []RuleTrace `json:"rules,omitempty"`
}

// RuleTrace is what one rule said.
type RuleTrace struct {
	Rule    RuleRef `json:"rule"`
	Action  Action  `json:"action"`
	Says    string  `json:"says"` // peers and ports in short
	Matched bool    `json:"matched"`
	Why     string  `json:"why"`
	Reason  string  `json:"reason,omitempty"` // the author's
}

// Explain returns the way of a flow that Evaluate decides; the verdict and the
// rule are the same as Evaluate's.
func Explain(s *Snapshot, pod PodKey, dir Direction, t packet.Tuple) Explanation {
	w, d, done := newWalk(s, pod, dir, t)
	e := Explanation{Pod: pod.String(), Direction: dir, Packet: w.t.String(), Decision: d}
	if done {
		e.Note = "the other end is no address"
		if w.pod == nil {
			e.Note = "there is no such pod: what is unknown is denied"
		}
		return e
	}
	e.Remote = w.who(w.remote)
	svc, sp := w.service()
	if sp == nil {
		e.Tiers, e.Decision, e.Note = w.explain()
		return e
	}
	e.Service = &ServiceTrace{Namespace: svc.Namespace, Name: svc.Name, Port: w.t.DstPort}
	for _, b := range w.backends(sp) {
		bt := BackendTrace{Backend: b, Remote: w.who(b.Addr())}
		bt.Tiers, bt.Decision, bt.Note = w.to(b).explain()
		e.Service.Backends = append(e.Service.Backends, bt)
	}
	e.Decision = w.onBackends(svc, sp)
	e.Note = w.serviceNote(e.Decision, len(e.Service.Backends))
	return e
}

func (w *walk) serviceNote(d Decision, backends int) string {
	switch {
	case backends == 0 && d.Verdict == Dropped:
		return "the Service has no ready backend of this address family, and policies govern the pod's egress"
	case backends == 0:
		return "the Service has no ready backend of this address family; no policy governs the pod's egress"
	case d.Verdict == Deferred:
		return "the backends get different verdicts; the one that is chosen decides"
	}
	if backends == 1 {
		return "its only backend gets this verdict"
	}
	return fmt.Sprintf("all %d backends get this verdict; the rule is the first one's", backends)
}

// explain walks as decide does, and writes down what it sees.
func (w *walk) explain() (tiers []TierTrace, d Decision, note string) {
	if d, ok := w.always(); ok {
		if d.Rule.Index == IndexSelf {
			return nil, d, "a pod always reaches itself"
		}
		return nil, d, "a pod's own node always reaches it (kubelet probes)"
	}
	decided := false
	for _, tier := range w.tiers() {
		if decided {
			tiers = append(tiers, TierTrace{Tier: tier.Name})
			continue
		}
		tt, td, ok := w.explainTier(tier)
		if ok {
			d, decided, note = td, true, tt.Outcome
			if d.Rule.Index >= 0 {
				note = "the first rule that matches, in tier " + tier.Name // which one, the Decision says
			}
		}
		tiers = append(tiers, tt)
	}
	if decided {
		return tiers, d, note
	}
	d = w.end()
	switch {
	case d.Rule.Index == IndexProtected:
		note = "the destination is protected: only a rule that names it admits it"
	case w.pod.HostNetwork:
		note = "host-network pods are not subject to policy"
	case w.governed():
		note = "no rule matches, and no policy isolates the pod: Kubernetes' default accepts"
	default:
		note = "no policy governs the pod's " + w.dir.String() + ": Kubernetes' default accepts"
	}
	return tiers, d, note
}

// explainTier returns the decision if the tier makes one.
func (w *walk) explainTier(tier Tier) (tt TierTrace, d Decision, decided bool) {
	tt = TierTrace{Tier: tier.Name, Reached: true}
	policies := w.policiesOf(tier)
	tt.Others = w.others(tier)
	for _, p := range w.inOrder(tier, policies) {
		if !governs(p, w.dir) {
			tt.Policies = append(tt.Policies, PolicyTrace{
				Kind: p.Kind, Namespace: p.Namespace, Name: p.Name, Priority: p.Priority,
				Note: "selects the pod, but says nothing about " + w.dir.String(),
			})
			continue
		}
		pt := PolicyTrace{Kind: p.Kind, Namespace: p.Namespace, Name: p.Name, Priority: p.Priority, Note: w.policyNote(tier, p)}
		for i := range p.Rules[w.dir] {
			r := &p.Rules[w.dir][i]
			action, reason := w.rule(tier, p, r)
			ref := ruleRef(tier, p, w.dir, r.Index, r.Name)
			pt.Rules = append(pt.Rules, RuleTrace{
				Rule: ref, Action: action, Says: ruleText(r, w.dir), Matched: reason == whyMatch,
				Why: w.whyText(r, reason), Reason: r.Reason,
			})
			if reason != whyMatch {
				continue
			}
			tt.Policies = append(tt.Policies, pt)
			switch action {
			case Pass:
				tt.Outcome = "passed on by " + ref.String()
				return tt, Decision{}, false
			case Accept:
				tt.Outcome = "accepted by " + ref.String()
				return tt, Decision{Forwarded, ref}, true
			default:
				tt.Outcome = "denied by " + ref.String()
				return tt, Decision{Dropped, ref}, true
			}
		}
		tt.Policies = append(tt.Policies, pt)
	}
	if d, ok := w.tierEnd(tier, policies); ok {
		tt.Outcome = "no rule matches, and the tier denies the rest of what it governs"
		if d.Rule.Index == IndexIsolation {
			tt.Outcome = "no rule accepts, and the pod is isolated for " + w.dir.String()
		}
		return tt, d, true
	}
	switch {
	case len(tt.Policies) == 0:
		tt.Outcome = "no policy selects the pod"
	case len(policies) == 0:
		tt.Outcome = "no policy governs " + w.dir.String()
	default:
		tt.Outcome = "no rule matches; on to the next tier"
	}
	return tt, Decision{}, false
}

func (w *walk) policyNote(tier Tier, p *Policy) string {
	switch {
	case p.Tier != tier.Name:
		return fmt.Sprintf("its tier %q does not exist: only its denying rules count", p.Tier)
	case p.Invalid:
		return "invalid in part: what was not understood is closed"
	case tier.Name == TierNetworkPolicy && p.Isolates[w.dir]:
		return "isolates " + w.dir.String()
	}
	return ""
}

// inOrder puts between the tier's policies, as policiesOf returns them, those that
// select the pod but do not govern the direction.
func (w *walk) inOrder(tier Tier, policies []*Policy) []*Policy {
	var out, unknown []*Policy
	for _, p := range policies {
		if p.Tier == tier.Name {
			out = append(out, p)
		} else {
			unknown = append(unknown, p)
		}
	}
	for i := range w.s.Policies {
		if p := &w.s.Policies[i]; p.Tier == tier.Name && !governs(p, w.dir) && w.selects(&p.Subject) {
			out = append(out, p)
		}
	}
	sortPolicies(out)
	return append(out, unknown...)
}

// others counts the tier's policies that do not select the pod.
func (w *walk) others(tier Tier) int {
	n := 0
	for i := range w.s.Policies {
		if p := &w.s.Policies[i]; p.Tier == tier.Name && !w.selects(&p.Subject) {
			n++
		}
	}
	return n
}

// whyText says in a few words how a rule answered.
func (w *walk) whyText(r *Rule, reason why) string {
	switch reason {
	case whyMatch:
		if !r.AnyPeer && w.namesBadSet(r) {
			return "a set that it names is missing or invalid, so it denies everything"
		}
		return "matches"
	case whyPeer:
		if len(r.Peers) == 0 {
			return "it has no peer that could match"
		}
		return "no peer is " + w.remote.String()
	case whyNames:
		return "domain names match no address in this version"
	case whyPort:
		return "the peer matches, " + portText(w.t) + " does not"
	case whyProtected:
		return w.remote.String() + " is protected and has to be named"
	case whyExpired:
		return "expired at " + r.ExpiresAt.UTC().Format("2006-01-02 15:04:05Z")
	case whySet:
		return "a set that it names is missing or invalid, so it accepts nothing"
	case whyTier:
		return "its tier takes no " + r.Action.String() + " from it"
	}
	return ""
}

func portText(t packet.Tuple) string {
	if !t.Protocol.HasPorts() {
		return t.Protocol.String()
	}
	return fmt.Sprintf("%s/%d", t.Protocol, t.DstPort)
}

// who names the pods, nodes and Services that have an address.
func (w *walk) who(a netip.Addr) []string {
	var out []string
	for i := range w.s.Pods {
		if p := &w.s.Pods[i]; hasAddr(p.IPs, a) {
			text := "pod " + p.Key().String()
			if p.HostNetwork {
				text += " (host network)"
			}
			out = append(out, text)
		}
	}
	for i := range w.s.Nodes {
		if n := &w.s.Nodes[i]; hasAddr(n.IPs, a) {
			out = append(out, "node "+n.Name)
		}
	}
	for i := range w.s.Services {
		if s := &w.s.Services[i]; hasAddr(s.IPs, a) {
			out = append(out, "service "+s.Namespace+"/"+s.Name)
		}
	}
	if inAny(w.s.Protected, a) {
		out = append(out, "protected")
	}
	return out
}
