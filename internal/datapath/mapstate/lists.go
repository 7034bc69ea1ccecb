package mapstate

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/postern-dev/postern/internal/packet"
	"github.com/postern-dev/postern/internal/policy"
)

// ruleset is a policy.Ruleset prepared for the question "what does class C get".
type ruleset struct {
	table   *table
	content *policy.Ruleset
	atoms   []atomID             // that some rule names
	byAtom  map[atomID][]matched // rules by the atom of a match
	any     []matched            // rules that match every address
	anyOpen []matched            // those of any that also match protected addresses
	rules   []uint32             // rule index -> kernel rule ID without verdict bits
	lists   map[classID]int      // class -> list; a class that is not here has the default
	byClass map[string]int       // lists by the rules that matter: equal rules, equal list
}

// matched is one match of one rule: its rule's and its own index.
type matched struct {
	rule, index int
	match       *policy.Match
}

func newRuleset(rs *policy.Ruleset, c *classes, protected atomID, ruleID func(policy.RuleRef) uint32) *ruleset {
	r := &ruleset{
		content: rs, byAtom: map[atomID][]matched{},
		rules: make([]uint32, len(rs.Rules)), lists: map[classID]int{}, byClass: map[string]int{},
	}
	for i := range rs.Rules {
		rule := &rs.Rules[i]
		r.rules[i] = ruleID(rule.Ref)
		for j := range rule.Matches {
			m := &rule.Matches[j]
			if m.AnyAddress {
				r.any = append(r.any, matched{i, j, m})
				if !m.NotProtected {
					r.anyOpen = append(r.anyOpen, matched{i, j, m})
				}
				continue
			}
			a := c.atom(m.Set)
			if _, ok := r.byAtom[a]; !ok {
				r.atoms = append(r.atoms, a)
			}
			r.byAtom[a] = append(r.byAtom[a], matched{i, j, m})
		}
	}
	if len(r.any) != len(r.anyOpen) {
		if _, ok := r.byAtom[protected]; !ok {
			r.atoms = append(r.atoms, protected)
		}
	}
	slices.Sort(r.atoms)
	return r
}

// relevant returns the matches that hold for an address of the class, by rule.
func (r *ruleset) relevant(c *classes, class classID, protected atomID) []matched {
	base := r.any
	if c.has(class, protected) {
		base = r.anyOpen
	}
	var out []matched
	for _, a := range c.sets[class] {
		out = append(out, r.byAtom[a]...)
	}
	if out == nil {
		return base
	}
	out = append(out, base...)
	slices.SortStableFunc(out, func(a, b matched) int { return cmp.Compare(a.rule, b.rule) })
	return out
}

// span is an interval [start, next span's start) with the rule that decides it:
// an index into the ruleset, or -1.
type span struct {
	start uint32
	rule  int
}

const protoPortEnd = 256 << 16

// intervals computes the list for matches sorted by rule: for each protocol
// and port the rule that decides, Pass and tiers resolved.
//
// From the last tier to the first: what a tier does not decide, or passes, is
// what the tiers behind it decided.
func (r *ruleset) intervals(ms []matched) []span {
	after := []span{{0, -1}}
	for end := len(ms); end > 0; {
		tier := r.content.Rules[ms[end-1].rule].Tier
		begin := end
		for begin > 0 && r.content.Rules[ms[begin-1].rule].Tier == tier {
			begin--
		}
		after = r.overlay(firstMatches(ms[begin:end]), after)
		end = begin
	}
	return after
}

// overlay puts a tier's first matches over what follows it.
func (r *ruleset) overlay(tier, after []span) []span {
	var out []span
	i, j := 0, 0
	for at := uint32(0); at < protoPortEnd; {
		for i+1 < len(tier) && tier[i+1].start <= at {
			i++
		}
		for j+1 < len(after) && after[j+1].start <= at {
			j++
		}
		rule := tier[i].rule
		if rule < 0 || r.content.Rules[rule].Action == policy.Pass {
			rule = after[j].rule
		}
		if len(out) == 0 || out[len(out)-1].rule != rule {
			out = append(out, span{at, rule})
		}
		at = protoPortEnd
		if i+1 < len(tier) {
			at = min(at, tier[i+1].start)
		}
		if j+1 < len(after) {
			at = min(at, after[j+1].start)
		}
	}
	return out
}

// firstMatches sweeps over the protocol-port line; of the rules that match at
// a point the lowest index wins.
func firstMatches(ms []matched) []span {
	type event struct {
		at   uint32
		rule int
		open bool
	}
	var events []event
	always := -1
	for _, m := range ms {
		if m.match.AnyPort {
			if always < 0 || m.rule < always {
				always = m.rule
			}
			continue
		}
		if always >= 0 && m.rule > always {
			continue
		}
		for _, p := range m.match.Ports {
			first, last := protoPorts(p)
			events = append(events, event{first, m.rule, true}, event{last + 1, m.rule, false})
		}
	}
	slices.SortFunc(events, func(a, b event) int { return cmp.Compare(a.at, b.at) })
	var active ruleHeap
	out := []span{}
	put := func(at uint32) {
		rule := active.min()
		if always >= 0 && (rule < 0 || always < rule) {
			rule = always
		}
		if len(out) == 0 || out[len(out)-1].rule != rule {
			out = append(out, span{at, rule})
		}
	}
	i := 0
	if len(events) == 0 || events[0].at > 0 {
		put(0)
	}
	for i < len(events) {
		at := events[i].at
		for ; i < len(events) && events[i].at == at; i++ {
			if events[i].open {
				active.add(events[i].rule)
			} else {
				active.remove(events[i].rule)
			}
		}
		if at < protoPortEnd {
			put(at)
		}
	}
	return out
}

// protoPorts returns the inclusive range of proto<<16|port that p covers.
func protoPorts(p policy.PortRange) (first, last uint32) {
	base := uint32(p.Protocol) << 16
	if !p.Protocol.HasPorts() {
		return base, base | 0xffff
	}
	return base | uint32(p.First), base | uint32(p.Last)
}

// ruleHeap is a multiset of rule indexes with the smallest at hand. Removed
// rules stay in the heap until they surface.
type ruleHeap struct {
	heap  []int
	count map[int]int
}

func (h *ruleHeap) add(rule int) {
	if h.count == nil {
		h.count = map[int]int{}
	}
	h.count[rule]++
	if h.count[rule] > 1 {
		return
	}
	h.heap = append(h.heap, rule)
	for i := len(h.heap) - 1; i > 0; {
		up := (i - 1) / 2
		if h.heap[up] <= h.heap[i] {
			break
		}
		h.heap[up], h.heap[i] = h.heap[i], h.heap[up]
		i = up
	}
}

func (h *ruleHeap) remove(rule int) { h.count[rule]-- }

func (h *ruleHeap) min() int {
	for len(h.heap) > 0 {
		top := h.heap[0]
		if h.count[top] > 0 {
			return top
		}
		delete(h.count, top)
		n := len(h.heap) - 1
		h.heap[0] = h.heap[n]
		h.heap = h.heap[:n]
		for i := 0; ; {
			down := 2*i + 1
			if down >= n {
				break
			}
			if down+1 < n && h.heap[down+1] < h.heap[down] {
				down++
			}
			if h.heap[i] <= h.heap[down] {
				break
			}
			h.heap[i], h.heap[down] = h.heap[down], h.heap[i]
			i = down
		}
	}
	return -1
}

// encode turns spans into kernel entries. A hole, which a well-formed Ruleset
// does not have, drops.
func (r *ruleset) encode(spans []span) ([]Entry, error) {
	if len(spans) > MaxList {
		return nil, fmt.Errorf("list of %d intervals, limit %d: %w", len(spans), MaxList, ErrCapacity)
	}
	out := make([]Entry, 0, len(spans))
	for _, s := range spans {
		e := Entry{Start: s.start}
		if s.rule >= 0 {
			e.Rule = r.rules[s.rule]
			if r.content.Rules[s.rule].Action == policy.Accept {
				e.Rule |= RuleForwarded
			}
		}
		if n := len(out); n > 0 && out[n-1].Rule == e.Rule {
			continue
		}
		out = append(out, e)
	}
	return out, nil
}

// listFor returns the class's entries; the default's if nothing sets it apart.
func (r *ruleset) listFor(w *World, class classID) (int, error) {
	ms := r.relevant(w.classes, class, w.protected)
	k := matchKey(ms)
	if id, ok := r.byClass[k]; ok {
		return id, nil
	}
	entries, err := r.encode(r.intervals(ms))
	if err != nil {
		return 0, err
	}
	id := w.lists.intern(entries, w.changes)
	r.byClass[k] = id
	return id, nil
}

func matchKey(ms []matched) string {
	b := make([]byte, 0, 8*len(ms))
	for _, m := range ms {
		b = binary.LittleEndian.AppendUint32(b, uint32(m.rule))
		// Matches of one rule differ in their ports.
		b = binary.LittleEndian.AppendUint32(b, uint32(m.index))
	}
	return string(b)
}

// lists interns lists of entries in one array.
type lists struct {
	entries []Entry
	refs    []ListRef
	ids     map[string]int
	users   []int
	free    map[uint32][]uint32 // by length: offsets
	limbo   []int
	freeIDs []int
}

func newLists() *lists {
	return &lists{ids: map[string]int{}, free: map[uint32][]uint32{}}
}

func entriesKey(es []Entry) string {
	b := make([]byte, 0, 8*len(es))
	for _, e := range es {
		b = binary.LittleEndian.AppendUint32(b, e.Start)
		b = binary.LittleEndian.AppendUint32(b, e.Rule)
	}
	return string(b)
}

// intern returns the list with the content, made if there is none. It is in
// use from the first hold on.
func (l *lists) intern(es []Entry, ch *Changes) int {
	k := entriesKey(es)
	if id, ok := l.ids[k]; ok {
		return id
	}
	ref := ListRef{Len: uint32(len(es))}
	if free := l.free[ref.Len]; len(free) > 0 {
		ref.Off = free[len(free)-1]
		l.free[ref.Len] = free[:len(free)-1]
	} else {
		ref.Off = uint32(len(l.entries))
		l.entries = append(l.entries, make([]Entry, len(es))...)
	}
	copy(l.entries[ref.Off:], es)
	ch.Entries = append(ch.Entries, Block(ref))
	id := len(l.refs)
	if n := len(l.freeIDs); n > 0 {
		id = l.freeIDs[n-1]
		l.freeIDs = l.freeIDs[:n-1]
		l.refs[id], l.users[id] = ref, 0
	} else {
		l.refs = append(l.refs, ref)
		l.users = append(l.users, 0)
	}
	l.ids[k] = id
	return id
}

func (l *lists) hold(id int) { l.users[id]++ }

func (l *lists) drop(id int) {
	l.users[id]--
	if l.users[id] == 0 {
		ref := l.refs[id]
		delete(l.ids, entriesKey(l.entries[ref.Off:ref.Off+ref.Len]))
		l.limbo = append(l.limbo, id)
	}
}

func (l *lists) reclaim() {
	for _, id := range l.limbo {
		ref := l.refs[id]
		l.free[ref.Len] = append(l.free[ref.Len], ref.Off)
		l.freeIDs = append(l.freeIDs, id)
	}
	l.limbo = l.limbo[:0]
}

// lookup searches as the kernel does.
func (l *lists) lookup(ref ListRef, proto packet.Protocol, port uint16) uint32 {
	at := uint32(proto)<<16 | uint32(port)
	es := l.entries[ref.Off : ref.Off+ref.Len]
	i, ok := slices.BinarySearchFunc(es, at, func(e Entry, at uint32) int { return cmp.Compare(e.Start, at) })
	if !ok {
		i--
	}
	return es[i].Rule
}
