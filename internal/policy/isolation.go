package policy

import (
	"net/netip"
	"slices"
)

// Isolation is how far the policies close a direction of an endpoint.
type Isolation string

// Isolations.
const (
	// Open: no policy governs the direction.
	Open Isolation = "open"
	// Governed: policies have a say, and what none of them denies is accepted.
	Governed Isolation = "governed"
	// Isolated: what no rule accepts is denied, whatever address it comes from or goes to.
	Isolated Isolation = "isolated"
)

// Isolation returns how far an endpoint's policies close a direction; Open for
// what is no endpoint.
func (c *Compiler) Isolation(pod PodKey, dir Direction) Isolation {
	ps := c.pods[pod]
	if ps == nil || !ps.exists {
		return Open
	}
	rs := c.rulesets[ps.ids[dir]].ruleset
	switch {
	case !rs.Selected:
		return Open
	case c.deniesRest(rs, netip.IPv4Unspecified()) && c.deniesRest(rs, netip.IPv6Unspecified()):
		return Isolated
	}
	return Governed
}

// deniesRest reports what becomes of an address that only rules for all addresses
// of its family are about. zero is the family's address of zeros.
func (c *Compiler) deniesRest(rs *Ruleset, zero netip.Addr) bool {
	all := netip.PrefixFrom(zero, 0)
	passed := -1
	for i := range rs.Rules {
		r := &rs.Rules[i]
		if r.Tier <= passed || !slices.ContainsFunc(r.Matches, func(m Match) bool {
			return m.AnyPort && (m.AnyAddress || slices.Contains(c.published[m.Set], all))
		}) {
			continue
		}
		if r.Action != Pass {
			return r.Action == Deny
		}
		passed = r.Tier
	}
	return true // nothing accepts it
}
