package kube

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/postern-dev/postern/internal/packet"
	"github.com/postern-dev/postern/internal/policy"
)

// maxFindings bounds the findings of one object; the marks are not bounded.
const maxFindings = 100

// checker collects the findings of one object and, from the paths of its
// errors, the marks that close acts on (K1).
type checker struct {
	ref      ObjectRef
	findings []Finding
	left     int // findings that were not listed
	refs     []reference
	marks    marks
}

// marks says which parts of a policy were not understood.
type marks struct {
	any          bool // some error in spec
	shape        bool // one that says that lines are not where they belong
	rules        [2]map[int]bool
	swallowed    [2]map[int]bool // the rule may hold another one, that denies
	lists        [2]bool         // the whole list of a direction
	subject      bool
	priority     bool
	tier         bool
	policyTypes  bool
	defaultTypes bool // policyTypes is not given
	whole        bool // a field that is not known beside spec or in it, or spec itself
	lost         bool // such a field is a list, in which rules of any direction may be
	duplicate    bool // a second object of the same name
}

// newChecker starts with the findings of Decode.
func newChecker(ref ObjectRef, decoded []Finding) *checker {
	c := &checker{ref: ref}
	for _, f := range decoded {
		c.add(f)
	}
	return c
}

// reference is a place in which a policy names another object.
type reference struct {
	path    *field.Path
	accept  bool // of an Accept rule; known once settled
	settled bool
	peer    policy.Peer // a PeerSet or PeerService
}

func (c *checker) errorf(path *field.Path, reason Reason, format string, args ...any) {
	c.add(Finding{Object: c.ref, Path: path.String(), Severity: Error, Reason: reason, Message: fmt.Sprintf(format, args...)})
}

func (c *checker) warnf(path *field.Path, reason Reason, format string, args ...any) {
	c.add(Finding{Object: c.ref, Path: path.String(), Severity: Warning, Reason: reason, Message: fmt.Sprintf(format, args...)})
}

func (c *checker) add(f Finding) {
	if f.Severity == Error {
		c.mark(f.Path)
		switch f.Reason {
		case ReasonMisplaced:
			c.misplaced(f.Path)
			c.marks.shape = c.marks.any
		case ReasonUnknownField, ReasonUnknownList:
			// Beside spec, or directly in it; whatever another kind calls so.
			if c.marks.any && strings.Count(f.Path, ".") <= 1 && !strings.Contains(f.Path, "[") {
				c.marks.whole = true
				c.marks.lost = c.marks.lost || f.Reason == ReasonUnknownList
			}
			c.marks.shape = c.marks.shape || (c.marks.any && f.Reason == ReasonUnknownList)
		case ReasonWrongType, ReasonDuplicateField:
			c.marks.shape = c.marks.shape || c.marks.any
		default:
		}
		c.marks.duplicate = c.marks.duplicate || f.Reason == ReasonDuplicateObject
	}
	if len(c.findings) >= maxFindings {
		c.left++
		return
	}
	c.findings = append(c.findings, f)
}

// result returns the findings, with a last one for those that were left out.
func (c *checker) result() []Finding {
	if c.left == 0 {
		return c.findings
	}
	return append(c.findings, Finding{
		Object: c.ref, Severity: Warning, Reason: ReasonMoreFindings,
		Message: fmt.Sprintf("%d more findings are not listed: correct these first", c.left),
	})
}

// mark notes what an error at path concerns. Paths in metadata and status concern
// nothing; a field beside spec that is not known may be a part of spec, moved.
func (c *checker) mark(path string) {
	m := &c.marks
	switch top, _ := firstStep(path); top {
	case "metadata", "status", "":
		return
	case "spec":
		m.any = true
	default:
		m.any, m.whole = true, true
		return
	}
	rest := strings.TrimPrefix(path, "spec")
	name, index := firstStep(strings.TrimPrefix(rest, "."))
	switch name {
	case "egress":
		m.markList(policy.Egress, index)
	case "ingress":
		m.markList(policy.Ingress, index)
	case "podSelector", "subject", "serviceAccounts":
		m.subject = true
	case "priority":
		m.priority = true
	case "tier":
		m.tier = true
	case "policyTypes":
		m.policyTypes = true
	default:
		m.whole = true
	}
}

// misplaced notes a rule's field where none is due. In a rule it is the rest of
// another rule that slipped into it; elsewhere it may be rules of any direction.
func (c *checker) misplaced(path string) {
	m := &c.marks
	name, index := firstStep(strings.TrimPrefix(path, "spec."))
	last := lastName(path)
	dir := policy.Egress
	switch {
	case !m.any: // in metadata
		return
	case (name != "egress" && name != "ingress") || index < 0 || last == "egress" || last == "ingress":
		m.whole, m.lost = true, true
		return
	case name == "ingress":
		dir = policy.Ingress
	}
	if m.swallowed[dir] == nil {
		m.swallowed[dir] = map[int]bool{}
	}
	m.swallowed[dir][index] = true
}

func (m *marks) markList(dir policy.Direction, index int) {
	if index < 0 {
		m.lists[dir] = true
		return
	}
	if m.rules[dir] == nil {
		m.rules[dir] = map[int]bool{}
	}
	m.rules[dir][index] = true
}

// firstStep splits off the first name of a path and its index, or -1.
func firstStep(path string) (name string, index int) {
	end := strings.IndexAny(path, ".[")
	if end < 0 {
		return path, -1
	}
	if path[end] == '.' {
		return path[:end], -1
	}
	digits, _, _ := strings.Cut(path[end+1:], "]")
	i, err := strconv.Atoi(digits)
	if err != nil {
		return path[:end], -1
	}
	return path[:end], i
}

// close closes what the marks name (K1, K2). p holds all rules of the object,
// with one entry per index, whatever could be made of them.
func (c *checker) close(p *policy.Policy) {
	m := &c.marks
	p.Invalid = m.any || m.duplicate
	if !p.Invalid {
		return
	}
	additive := p.Kind == policy.KindNetworkPolicy || p.Kind == policy.KindEgressPolicy
	if m.subject {
		p.Subject = policy.Subject{Any: p.Namespace == "", Selects: true, Namespace: p.Namespace}
	}
	if m.priority || m.tier {
		p.Priority = PriorityInvalid // before whatever it may have been meant to precede
	}
	// policyTypes that are left out may stand somewhere else.
	if (m.whole || m.policyTypes || (m.shape && m.defaultTypes)) && p.Kind == policy.KindNetworkPolicy {
		p.Isolates = [2]bool{true, true}
	}
	all := m.whole || m.subject || m.priority || m.tier || m.policyTypes || m.duplicate
	for _, dir := range policy.Directions {
		if m.lists[dir] && additive {
			p.Isolates[dir] = true
		}
		for i := range p.Rules[dir] {
			r := &p.Rules[dir][i]
			switch {
			case m.swallowed[dir][i] && !additive:
				*r = denyAll(i, r.Name)
			case m.rules[dir][i]:
				*r = closedRule(*r)
			case all || m.lists[dir]:
				*r = narrowedRule(*r)
			}
		}
		// A field that is not known may be the list of a direction, misspelt.
		if !additive && governs(p.Kind, dir) && (m.lists[dir] || m.lost || (m.whole && len(p.Rules[dir]) == 0)) {
			p.Rules[dir] = append(p.Rules[dir], denyAll(len(p.Rules[dir]), "not understood"))
		}
	}
}

func governs(kind policy.Kind, dir policy.Direction) bool {
	return dir == policy.Egress || kind == policy.KindClusterNetworkPolicy
}

// closedRule is r if some part of it was not understood.
func closedRule(r policy.Rule) policy.Rule {
	out := policy.Rule{Index: r.Index, Name: r.Name, Reason: r.Reason, Action: r.Action, Invalid: true}
	if r.Action != policy.Accept {
		out.Action, out.AnyPeer, out.AnyPort = policy.Deny, true, true
	}
	return out
}

// narrowedRule is r if it was understood but its place or subject was not.
func narrowedRule(r policy.Rule) policy.Rule {
	switch r.Action {
	case policy.Accept:
		return closedRule(r)
	case policy.Pass:
		r.Action = policy.Deny
	case policy.Deny:
	}
	r.Invalid = true
	return r
}

func denyAll(index int, name string) policy.Rule {
	return policy.Rule{Index: index, Name: name, Action: policy.Deny, AnyPeer: true, AnyPort: true, Invalid: true}
}

// selector translates a label selector.
func (c *checker) selector(path *field.Path, s *metav1.LabelSelector) policy.Selector {
	var reqs []policy.Requirement
	for _, key := range sortedKeys(s.MatchLabels) {
		p := path.Child("matchLabels").Key(key)
		c.labelKey(p, key)
		c.labelValue(p, s.MatchLabels[key])
		reqs = append(reqs, policy.Requirement{Key: key, Op: policy.OpIn, Values: []string{s.MatchLabels[key]}})
	}
	for i, e := range s.MatchExpressions {
		p := path.Child("matchExpressions").Index(i)
		c.labelKey(p.Child("key"), e.Key)
		for j, v := range e.Values {
			c.labelValue(p.Child("values").Index(j), v)
		}
		switch e.Operator {
		case metav1.LabelSelectorOpIn, metav1.LabelSelectorOpNotIn:
			if len(e.Values) == 0 {
				c.errorf(p.Child("values"), ReasonRequired, "%s needs at least one value", e.Operator)
			}
		case metav1.LabelSelectorOpExists, metav1.LabelSelectorOpDoesNotExist:
			if len(e.Values) > 0 {
				c.errorf(p.Child("values"), ReasonConflict, "%s takes no values: remove them, or use In or NotIn", e.Operator)
			}
		default:
			c.errorf(p.Child("operator"), ReasonInvalidValue, "%q is none of In, NotIn, Exists and DoesNotExist", e.Operator)
		}
		reqs = append(reqs, policy.Requirement{Key: e.Key, Op: policy.Operator(e.Operator), Values: e.Values})
	}
	return policy.NewSelector(reqs...)
}

func (c *checker) labelKey(path *field.Path, key string) {
	if errs := validation.IsQualifiedName(key); errs != nil {
		c.errorf(path, ReasonInvalidValue, "%q is no label key: %s", key, errs[0])
	}
}

func (c *checker) labelValue(path *field.Path, value string) {
	if errs := validation.IsValidLabelValue(value); errs != nil {
		c.errorf(path, ReasonInvalidValue, "%q is no label value: %s", value, errs[0])
	}
}

// network reads a network and makes it canonical (K4).
func (c *checker) network(path *field.Path, text string) (netip.Prefix, bool) {
	p, err := netip.ParsePrefix(text)
	if err != nil {
		if a, errA := netip.ParseAddr(text); errA == nil && a.Zone() == "" {
			c.errorf(path, ReasonInvalidNetwork, "%q has no length: for this one address write %s/%d", text, a, a.BitLen())
		} else {
			c.errorf(path, ReasonInvalidNetwork, "%q is no network: write ADDRESS/LENGTH, such as 10.0.0.0/8 or 2001:db8::/32, without leading zeros and zones", text)
		}
		return netip.Prefix{}, false
	}
	if p.Addr().Is4In6() {
		if p.Bits() < 96 {
			c.errorf(path, ReasonInvalidNetwork, "%q mixes IPv4 and IPv6: write the IPv4 network", text)
			return netip.Prefix{}, false
		}
		p = packet.JudgedPrefix(p)
		c.warnf(path, ReasonNotCanonical, "%q is an IPv4 network written as IPv6: it is read as %s", text, p.Masked())
	}
	if j := packet.JudgedPrefix(p); j != p {
		c.warnf(path, ReasonNotCanonical, "%q is the NAT64 form of an IPv4 network: it is read as %s, by which addresses of NAT64 are judged", text, j.Masked())
		p = j
	}
	if m := p.Masked(); m != p {
		c.warnf(path, ReasonNotCanonical, "%q has bits beyond its length: it is read as %s", text, m)
		p = m
	}
	return p, true
}

// networks reads a list of networks and its exceptions.
func (c *checker) networks(path *field.Path, list []string) []netip.Prefix {
	out := make([]netip.Prefix, 0, len(list))
	for i, text := range list {
		// The common case must not pay for the path: sets hold a million.
		if p, err := netip.ParsePrefix(text); err == nil && p == packet.JudgedPrefix(p).Masked() {
			out = append(out, p)
			continue
		}
		if p, ok := c.network(path.Index(i), text); ok {
			out = append(out, p)
		}
	}
	return out
}

// address reads an address and makes it canonical.
func (c *checker) address(path *field.Path, text string) (netip.Addr, bool) {
	a, err := netip.ParseAddr(text)
	if err != nil || a.Zone() != "" {
		c.errorf(path, ReasonInvalidNetwork, "%q is no address: write one such as 10.0.0.1 or 2001:db8::1, without leading zeros and zones", text)
		return netip.Addr{}, false
	}
	return a.Unmap(), true
}
