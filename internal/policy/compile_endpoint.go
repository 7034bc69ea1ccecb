package policy

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/netip"
	"slices"
	"strconv"

	"github.com/postern-dev/postern/internal/packet"
)

// rulesetState is a Ruleset with the number of endpoint directions that use it.
type rulesetState struct {
	ruleset *Ruleset
	uses    int
	sets    []SetID
}

// compileEndpoints brings every dirty endpoint up to date.
func (c *Compiler) compileEndpoints(d *Delta) error {
	d.RulesetsAdded = map[string]*Ruleset{}
	d.Endpoints = map[PodKey][2]string{}
	d.Addresses = map[PodKey][]netip.Addr{}
	seen := map[string]*Ruleset{} // by signature: endpoints of the same policies
	var idle []string             // rulesets that lost a user
	for ps := range c.dirtyEndpoints {
		key := ps.pod.Key()
		before, existed := ps.ids, ps.exists
		if !ps.local {
			delete(c.capacity, key)
			ps.exists, ps.ids, ps.addrs = false, [2]string{}, nil
			if existed {
				d.EndpointsGone = append(d.EndpointsGone, key)
				idle = append(idle, before[:]...)
			}
			if ps.dead {
				delete(c.pods, key)
			}
			continue
		}
		var problems [2]error
		for _, dir := range Directions {
			var rs *Ruleset
			rs, problems[dir] = c.ruleset(ps, dir, seen)
			ps.ids[dir] = rs.ID
			c.use(rs, d)
		}
		if problems != [2]error{} {
			c.capacity[key] = problems
		} else {
			delete(c.capacity, key)
		}
		if existed {
			idle = append(idle, before[:]...)
		}
		if !existed || before != ps.ids || ps.uid != ps.pod.UID {
			d.Endpoints[key] = ps.ids
		}
		addrs := ownAddresses(ps.pod)
		if !existed || !slices.Equal(addrs, ps.addrs) {
			d.Addresses[key] = addrs
			ps.addrs = addrs
		}
		ps.exists, ps.uid = true, ps.pod.UID
	}
	clear(c.dirtyEndpoints)
	for _, id := range idle {
		c.unuse(id, d)
	}
	slices.Sort(d.RulesetsRemoved)
	slices.SortFunc(d.EndpointsGone, comparePodKeys)
	return c.capacityErrors()
}

// capacityErrors joins the present problems in a steady order.
func (c *Compiler) capacityErrors() error {
	keys := make([]PodKey, 0, len(c.capacity))
	for key := range c.capacity {
		keys = append(keys, key)
	}
	slices.SortFunc(keys, comparePodKeys)
	var all []error
	for _, key := range keys {
		problems := c.capacity[key]
		all = append(all, problems[:]...)
	}
	return errors.Join(all...)
}

func comparePodKeys(a, b PodKey) int {
	return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}

func ownAddresses(p *Pod) []netip.Addr {
	out := make([]netip.Addr, 0, len(p.IPs))
	for _, a := range p.IPs {
		if a.IsValid() {
			out = append(out, packet.Unmap(a))
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}

// use counts a user of a ruleset, which becomes part of the result with the first.
func (c *Compiler) use(rs *Ruleset, d *Delta) {
	st := c.rulesets[rs.ID]
	if st == nil {
		st = &rulesetState{ruleset: rs}
		c.rulesets[rs.ID] = st
		d.RulesetsAdded[rs.ID] = rs
		st.sets = setsOf(rs)
		for _, id := range st.sets {
			if c.setUses[id]++; c.setUses[id] == 1 {
				c.touched[id] = struct{}{}
			}
		}
	}
	st.uses++
}

func (c *Compiler) unuse(id string, d *Delta) {
	st := c.rulesets[id]
	if st.uses--; st.uses > 0 {
		return
	}
	delete(c.rulesets, id)
	if _, ok := d.RulesetsAdded[id]; ok {
		delete(d.RulesetsAdded, id) // never seen outside
	} else {
		d.RulesetsRemoved = append(d.RulesetsRemoved, id)
	}
	for _, set := range st.sets {
		if c.setUses[set]--; c.setUses[set] == 0 {
			delete(c.setUses, set)
			c.touched[set] = struct{}{}
		}
	}
}

// setsOf returns the distinct sets that a ruleset names.
func setsOf(rs *Ruleset) []SetID {
	seen := map[SetID]struct{}{}
	var out []SetID
	for i := range rs.Rules {
		for j := range rs.Rules[i].Matches {
			m := &rs.Rules[i].Matches[j]
			if m.AnyAddress {
				continue
			}
			if _, ok := seen[m.Set]; !ok {
				seen[m.Set] = struct{}{}
				out = append(out, m.Set)
			}
		}
	}
	return out
}

// placed is a policy in the order of evaluation.
type placed struct {
	*policyState
	tier  int
	known bool
}

// policiesFor returns the policies that select an endpoint and govern a
// direction, in the order of evaluation.
func (c *Compiler) policiesFor(ps *podState, dir Direction) []placed {
	var out []placed
	for _, q := range ps.queries {
		for p := range q.subjects {
			if p.governs(dir) {
				tier, _, known := c.tierOf(p.policy)
				out = append(out, placed{p, tier, known})
			}
		}
	}
	slices.SortFunc(out, func(a, b placed) int {
		return cmp.Or(
			cmp.Compare(a.tier, b.tier),
			-compareBools(a.known, b.known),
			cmp.Compare(a.policy.Priority, b.policy.Priority),
			cmp.Compare(a.policy.Kind, b.policy.Kind),
			cmp.Compare(a.policy.Namespace, b.policy.Namespace),
			cmp.Compare(a.policy.Name, b.policy.Name))
	})
	return out
}

// ruleset returns the ruleset of one direction of an endpoint. seen holds those
// made in this Apply. With an error it denies everything.
func (c *Compiler) ruleset(ps *podState, dir Direction, seen map[string]*Ruleset) (*Ruleset, error) {
	policies := c.policiesFor(ps, dir)
	if n := len(c.tierOrder); n > MaxTiers && len(policies) > 0 {
		return denyAll(dir), &CapacityError{ps.pod.Key(), dir, "tiers", n, MaxTiers}
	}
	own := "" // what the endpoint itself puts into the ruleset
	if dir == Ingress {
		own = portsText(ps.pod.Ports)
	}
	sig := []byte{byte(dir)}
	for _, p := range policies {
		sig = strconv.AppendInt(append(sig, ','), int64(p.number), 10)
		if dir == Ingress && p.ownPorts {
			sig = append(append(sig, '='), own...)
		}
	}
	if dir == Ingress {
		sig = append(append(sig, '@'), ps.pod.Node...)
	}
	if rs := seen[string(sig)]; rs != nil {
		return c.checked(rs, ps)
	}
	rs := c.assemble(ps, dir, own, policies)
	seen[string(sig)] = rs
	return c.checked(rs, ps)
}

// checked returns rs, or the ruleset that denies everything if rs is too long.
func (c *Compiler) checked(rs *Ruleset, ps *podState) (*Ruleset, error) {
	if len(rs.Rules) > MaxRules {
		return denyAll(rs.Direction), &CapacityError{ps.pod.Key(), rs.Direction, "rules", len(rs.Rules), MaxRules}
	}
	return rs, nil
}

func denyAll(dir Direction) *Ruleset {
	a := assembler{rs: &Ruleset{Direction: dir, Selected: true}}
	a.add(0, Deny, RuleRef{Direction: dir, Index: IndexCapacity}, Match{AnyAddress: true, AnyPort: true})
	return a.finish()
}

// assemble lays the rules of the policies out in order, with what the end of
// each tier and of them all adds.
func (c *Compiler) assemble(ps *podState, dir Direction, own string, policies []placed) *Ruleset {
	a := assembler{rs: &Ruleset{Direction: dir, Selected: len(policies) > 0}}
	if dir == Ingress && ps.pod.Node != "" {
		a.add(0, Accept, RuleRef{Direction: dir, Index: IndexNode}, Match{Set: SetIDOwnNode(ps.pod.Node), AnyPort: true})
	}
	everything := Match{AnyAddress: true, AnyPort: true}
	for i, tier := range c.tierOrder {
		var ender *Policy // the first policy that makes the tier deny at its end
		index := IndexTierDefault
		for len(policies) > 0 && policies[0].tier == i {
			p := policies[0]
			policies = policies[1:]
			if p.ownPorts && dir == Ingress {
				a.addAll(i, p.forPorts(own, ps.pod.Ports))
			} else {
				a.addAll(i, p.rules[dir])
			}
			if tier.Name == TierNetworkPolicy {
				index = IndexIsolation
				if !p.policy.Isolates[dir] {
					continue
				}
			} else if !tier.DefaultDeny {
				continue
			}
			if ender == nil {
				ender = p.policy
			}
		}
		if ender != nil {
			a.add(i, Deny, RuleRef{
				Tier: tier.Name, Kind: ender.Kind, Namespace: ender.Namespace, Policy: ender.Name,
				Direction: dir, Index: index,
			}, everything)
		}
	}
	last := len(c.tierOrder)
	if dir == Egress && a.rs.Selected {
		a.add(last, Deny, RuleRef{Direction: dir, Index: IndexProtected}, Match{Set: SetIDProtected, AnyPort: true})
	}
	a.add(last, Accept, RuleRef{Direction: dir, Index: IndexNoMatch}, everything)
	return a.finish()
}

// assembler collects rules and the digest of their texts.
type assembler struct {
	rs   *Ruleset
	text []byte
}

func (a *assembler) add(tier int, action Action, ref RuleRef, m Match) {
	a.addAll(tier, []builtRule{newBuiltRule(CompiledRule{Ref: ref, Action: action, Matches: []Match{m}})})
}

func (a *assembler) addAll(tier int, rules []builtRule) {
	for i := range rules {
		r := rules[i].rule
		r.Tier = tier
		a.rs.Rules = append(a.rs.Rules, r)
		a.text = append(strconv.AppendInt(a.text, int64(tier), 10), ' ')
		a.text = append(a.text, rules[i].digest[:]...)
	}
}

// finish sets the ID: a digest of the direction and of every rule's tier and
// text, so that equal content has an equal ID in every process.
func (a *assembler) finish() *Ruleset {
	head := "ruleset v1 " + a.rs.Direction.String() + " " + strconv.FormatBool(a.rs.Selected) + "\n"
	sum := sha256.Sum256(append([]byte(head), a.text...))
	a.rs.ID = hex.EncodeToString(sum[:16])
	return a.rs
}
