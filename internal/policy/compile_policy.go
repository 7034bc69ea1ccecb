package policy

import (
	"crypto/sha256"
	"encoding/hex"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

// policyState is a policy with what follows from it.
type policyState struct {
	policy   *Policy
	number   int
	query    *podQuery // nil if it selects nothing
	expiries []time.Time
	gone     bool
	// While some endpoint is selected:
	compiled     bool
	dependencies map[dependency]struct{}
	rules        [2][]builtRule
	ownPorts     bool // an ingress rule names ports of the subject
	perPorts     map[string][]builtRule
}

// builtRule is a compiled rule, and what has to be filled in per endpoint: an
// Ingress rule's named ports are those of the endpoint itself.
type builtRule struct {
	rule   CompiledRule
	digest [sha256.Size]byte
	named  []PortMatch
	bases  []Match
	ranges []PortRange
}

// governs mirrors what Policy and its Kind promise about a direction.
func (p *policyState) governs(dir Direction) bool {
	pol := p.policy
	if pol.Kind == KindClusterEgressPolicy {
		return dir == Egress
	}
	if pol.Kind == KindNetworkPolicy || pol.Kind == KindEgressPolicy {
		return pol.Isolates[dir]
	}
	if len(pol.Rules[dir]) > 0 {
		return true
	}
	return pol.Kind != KindClusterNetworkPolicy && pol.Isolates[dir]
}

func (c *Compiler) applyPolicies(ch Changes) {
	for _, key := range ch.PoliciesDeleted {
		if p := c.policies[key]; p != nil {
			delete(c.policies, key)
			c.retire(p)
		}
	}
	for i := range ch.Policies {
		pol := &ch.Policies[i]
		old := c.policies[pol.Key()]
		if old != nil && reflect.DeepEqual(old.policy, pol) {
			continue
		}
		c.made++
		p := &policyState{policy: pol, number: c.made}
		c.policies[pol.Key()] = p
		c.attach(p)
		if old != nil {
			c.retire(old)
		}
	}
}

// attach connects a policy with the pods that it selects.
func (c *Compiler) attach(p *policyState) {
	for _, dir := range Directions {
		for i := range p.policy.Rules[dir] {
			if r := &p.policy.Rules[dir][i]; r.Action == Accept && !r.ExpiresAt.IsZero() && p.governs(dir) {
				p.expiries = append(p.expiries, r.ExpiresAt)
				c.expiring[p] = struct{}{}
			}
		}
	}
	s := &p.policy.Subject
	switch {
	case s.Any:
		p.query = c.query(newPodQuery("", Selector{}, Selector{}, s.ServiceAccounts))
	case s.Selects:
		p.query = c.query(newPodQuery(s.Namespace, s.Namespaces, s.Pods, s.ServiceAccounts))
	default:
		return
	}
	p.query.subjects[p] = struct{}{}
	c.dirtyPolicies[p] = struct{}{}
	c.endpointsDirty(p)
}

// retire disconnects a policy; what it was compiled from is released later, so
// that a successor can take it over as it is.
func (c *Compiler) retire(p *policyState) {
	c.endpointsDirty(p)
	if p.query != nil {
		delete(p.query.subjects, p)
	}
	p.gone = true
	delete(c.expiring, p)
	c.retired = append(c.retired, p)
}

func (c *Compiler) endpointsDirty(p *policyState) {
	if p.query == nil || p.query.local == 0 {
		return
	}
	for ps := range p.query.members {
		if ps.local {
			c.dirtyEndpoints[ps] = struct{}{}
		}
	}
}

// compilePolicies brings every dirty policy up to date.
func (c *Compiler) compilePolicies() {
	for p := range c.dirtyPolicies {
		switch {
		case p.gone:
		case p.query == nil || p.query.local == 0:
			c.release(p)
		case c.compilePolicy(p):
			c.endpointsDirty(p)
		}
	}
	clear(c.dirtyPolicies)
	for _, p := range c.retired {
		c.release(p)
		if p.query != nil {
			c.releaseQuery(p.query)
		}
	}
	c.retired = nil
}

// release takes a policy's compiled form away.
func (c *Compiler) release(p *policyState) {
	c.depend(p, nil)
	p.rules, p.perPorts, p.ownPorts, p.compiled = [2][]builtRule{}, nil, false, false
}

// depend replaces what a policy was compiled from.
func (c *Compiler) depend(p *policyState, on map[dependency]struct{}) {
	for dep := range on {
		dep.usedBy()[p] = struct{}{}
	}
	for dep := range p.dependencies {
		if _, still := on[dep]; still {
			continue
		}
		delete(dep.usedBy(), p)
		if len(dep.usedBy()) == 0 {
			dep.drop(c)
		}
	}
	p.dependencies = on
}

// compilePolicy compiles p and reports whether anything changed.
func (c *Compiler) compilePolicy(p *policyState) bool {
	on := map[dependency]struct{}{}
	var rules [2][]builtRule
	own := false
	for _, dir := range Directions {
		if !p.governs(dir) {
			continue
		}
		for i := range p.policy.Rules[dir] {
			b := ruleBuilder{c: c, policy: p.policy, dir: dir, on: on}
			if br, ok := b.build(&p.policy.Rules[dir][i]); ok {
				rules[dir] = append(rules[dir], br)
				own = own || len(br.named) > 0
			}
		}
	}
	c.depend(p, on)
	same := func(a, b builtRule) bool { return a.digest == b.digest }
	changed := !p.compiled || slices.ContainsFunc(Directions[:], func(dir Direction) bool {
		return !slices.EqualFunc(p.rules[dir], rules[dir], same)
	})
	p.rules, p.ownPorts, p.perPorts, p.compiled = rules, own, nil, true
	return changed
}

// tierOf returns the index and name of the tier that a policy is evaluated in,
// and whether it is the one that it asks for.
func (c *Compiler) tierOf(p *Policy) (index int, name string, known bool) {
	if i, ok := c.tierIndex[p.Tier]; ok {
		return i, p.Tier, true
	}
	return c.tierIndex[TierAdmin], TierAdmin, false
}

// ruleBuilder compiles one rule.
type ruleBuilder struct {
	c      *Compiler
	policy *Policy
	dir    Direction
	on     map[dependency]struct{}

	guard  bool // an Accept for Egress: protected networks have to be named
	any    bool
	ranges []PortRange
	named  []PortMatch
	bases  []Match // address only; the rule's ports are still to be added
	exact  []Match // complete
	nets   []netip.Prefix
}

// build returns the compiled rule; ok is false for a rule that can't match.
func (b *ruleBuilder) build(r *Rule) (_ builtRule, ok bool) {
	_, tier, known := b.c.tierOf(b.policy)
	action := r.Action
	switch action {
	case Accept, Pass, Deny:
	default:
		action = Deny
	}
	ref := RuleRef{
		Tier: tier, Kind: b.policy.Kind, Namespace: b.policy.Namespace, Policy: b.policy.Name,
		Direction: b.dir, Index: r.Index, Name: r.Name,
	}
	if b.badSet(r) {
		if action == Accept {
			return builtRule{}, false
		}
		return newBuiltRule(CompiledRule{
			Ref: ref, Action: Deny, Matches: []Match{{AnyAddress: true, AnyPort: true}},
		}), true
	}
	switch {
	case action == Accept && !r.ExpiresAt.IsZero() && !r.ExpiresAt.After(b.c.now),
		action == Pass && tier == TierNetworkPolicy,
		action != Deny && !known:
		return builtRule{}, false
	}
	b.guard = action == Accept && b.dir == Egress
	b.ports(r)
	b.peers(r)
	rule := CompiledRule{Ref: ref, Action: action}
	if b.dir == Ingress && len(b.named) > 0 {
		br := builtRule{rule: rule, named: b.named, bases: b.bases, ranges: b.ranges}
		br.digest = sha256.Sum256([]byte(br.openText()))
		return br, len(b.bases) > 0
	}
	rule.Matches = combine(b.bases, b.any, b.ranges, b.exact)
	return newBuiltRule(rule), len(rule.Matches) > 0
}

// badSet reports whether the rule names a set that is missing or invalid.
func (b *ruleBuilder) badSet(r *Rule) bool {
	bad := false
	for i := range r.Peers {
		if r.Peers[i].Kind == PeerSet && !r.AnyPeer {
			g := b.c.setGroup(r.Peers[i].Set)
			b.on[g] = struct{}{}
			bad = bad || g.bad
		}
	}
	return bad
}

// ports sorts the rule's ports into ranges and names.
func (b *ruleBuilder) ports(r *Rule) {
	b.any = r.AnyPort
	if b.any {
		return
	}
	for _, m := range r.Ports {
		switch {
		case m.Named != "":
			b.named = append(b.named, m)
		case !m.Protocol.HasPorts():
			b.ranges = append(b.ranges, PortRange{m.Protocol, 0, 65535})
		case m.First <= m.Last:
			b.ranges = append(b.ranges, PortRange{m.Protocol, m.First, m.Last})
		}
	}
	b.ranges = mergeRanges(b.ranges)
}

// peers collects what the rule's peers are.
func (b *ruleBuilder) peers(r *Rule) {
	if r.AnyPeer {
		if b.needsBase() {
			b.bases = append(b.bases, Match{AnyAddress: true, NotProtected: b.guard})
		}
		if b.dir == Egress {
			b.podPorts(newPodQuery("", Selector{}, Selector{}, nil), b.guard)
		}
		return
	}
	for i := range r.Peers {
		b.peer(&r.Peers[i])
	}
	if nets := canonicalPrefixes(b.nets); len(nets) > 0 && b.needsBase() {
		g := b.c.netGroup(nets)
		b.on[g] = struct{}{}
		b.bases = append(b.bases, Match{Set: g.id})
	}
}

// needsBase reports whether the address alone is a part of the rule: not if
// all of its ports are names of the destination's.
func (b *ruleBuilder) needsBase() bool {
	return b.any || len(b.ranges) > 0 || (b.dir == Ingress && len(b.named) > 0)
}

func (b *ruleBuilder) peer(p *Peer) {
	switch p.Kind {
	case PeerNetworks:
		full, opened := b.c.networks(p.Networks, p.Except)
		if b.guard {
			full = opened
		}
		b.nets = append(b.nets, full...)
	case PeerSet:
		if !b.needsBase() {
			return
		}
		g := b.c.setGroup(p.Set)
		b.on[g] = struct{}{}
		id := g.id
		if b.guard {
			id = g.openID
		}
		b.bases = append(b.bases, Match{Set: id})
	case PeerPods:
		q := newPodQuery(p.Pods.Namespace, p.Pods.Namespaces, p.Pods.Pods, nil)
		if b.needsBase() {
			g := b.c.group(b.c.query(q), groupKey{})
			b.on[g] = struct{}{}
			b.bases = append(b.bases, Match{Set: g.plain.id})
		}
		if b.dir == Egress {
			b.podPorts(q, false)
		}
	case PeerNodes:
		if b.needsBase() {
			g := b.c.nodeGroup(p.Nodes)
			b.on[g] = struct{}{}
			b.bases = append(b.bases, Match{Set: g.set.id})
		}
	case PeerService:
		if b.dir == Egress {
			b.service(p.Service)
		}
	case PeerNone, PeerDomainNames:
	}
}

// podPorts adds a match for every number that the rule's port names stand for
// among the pods of q.
func (b *ruleBuilder) podPorts(q *podQuery, guarded bool) {
	for _, m := range b.named {
		g := b.c.group(b.c.query(q), groupKey{port: m.Named, guarded: guarded})
		b.on[g] = struct{}{}
		for _, k := range g.ports(m) {
			b.exact = append(b.exact, Match{Set: g.id(k), Ports: []PortRange{{k.protocol, k.port, k.port}}})
		}
	}
}

// service adds a match for every target port of a Service that the rule's ports admit.
func (b *ruleBuilder) service(ref ServiceRef) {
	g := b.c.serviceGroup(ref)
	b.on[g] = struct{}{}
	for _, m := range b.named {
		g.named(b.c, m.Named)
	}
	for k, id := range g.sets {
		var admitted bool
		if k.name == "" {
			admitted = b.any || slices.ContainsFunc(b.ranges, func(r PortRange) bool {
				return r.Protocol == k.protocol && r.First <= k.port && k.port <= r.Last
			})
		} else {
			admitted = slices.ContainsFunc(b.named, func(m PortMatch) bool {
				return m.Named == k.name && (m.AnyProtocol || m.Protocol == k.protocol)
			})
		}
		if admitted {
			b.exact = append(b.exact, Match{Set: id, Ports: []PortRange{{k.protocol, k.port, k.port}}})
		}
	}
}

// forPorts returns a policy's Ingress rules for an endpoint with these ports.
func (p *policyState) forPorts(text string, ports []ContainerPort) []builtRule {
	if out, ok := p.perPorts[text]; ok {
		return out
	}
	var out []builtRule
	for _, br := range p.rules[Ingress] {
		if len(br.named) == 0 {
			out = append(out, br)
			continue
		}
		ranges := slices.Clone(br.ranges)
		for _, m := range br.named {
			for _, k := range namedPorts(&Pod{Ports: ports}, m.Named) {
				if m.AnyProtocol || m.Protocol == k.protocol {
					ranges = append(ranges, PortRange{k.protocol, k.port, k.port})
				}
			}
		}
		rule := br.rule
		rule.Matches = combine(br.bases, false, mergeRanges(ranges), nil)
		if len(rule.Matches) > 0 {
			out = append(out, newBuiltRule(rule))
		}
	}
	if p.perPorts == nil || len(p.perPorts) > 256 {
		p.perPorts = map[string][]builtRule{}
	}
	p.perPorts[text] = out
	return out
}

// portsText writes a pod's container ports so that equal ports have equal text.
func portsText(ports []ContainerPort) string {
	parts := make([]string, 0, len(ports))
	for _, cp := range ports {
		parts = append(parts, plainOrQuoted(cp.Name)+"="+portKey{cp.Protocol, cp.Port}.String())
	}
	slices.Sort(parts)
	return strings.Join(parts, ",")
}

// netSetID names a canonical list of prefixes by its content.
func netSetID(list []netip.Prefix) SetID {
	h := sha256.New()
	var buf []byte
	for _, p := range list {
		buf = append(p.AppendTo(buf[:0]), ' ')
		h.Write(buf)
	}
	return SetID("net:" + hex.EncodeToString(h.Sum(nil)[:16]))
}

// openText is the text of a rule whose named ports are not filled in yet.
func (br *builtRule) openText() string {
	var b strings.Builder
	b.WriteString("open ")
	br.rule.appendText(&b)
	for _, m := range combine(br.bases, false, []PortRange{{}}, nil) {
		m.appendText(&b)
	}
	for _, r := range br.ranges {
		r.appendText(&b)
	}
	for _, m := range br.named {
		b.WriteString(strconv.Quote(m.Named) + m.Protocol.String() + strconv.FormatBool(m.AnyProtocol))
	}
	return b.String()
}
