package mapstate

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/postern-dev/postern/internal/packet"
	"github.com/postern-dev/postern/internal/policy"
)

// ErrCapacity is wrapped by errors that say what does not fit: the structure,
// the need and the limit. Nothing is ever cut to fit.
var ErrCapacity = errors.New("does not fit")

// setAllNodes is the set of every node's addresses; its class bit lets the
// kernel know where NodePorts answer.
const setAllNodes policy.SetID = "nodes:all-addresses"

// Block is a run of Len array entries from Off.
type Block struct{ Off, Len uint32 }

// Changes is what to write to the kernel, in the order of the fields. Each
// group may be written in any order within itself.
type Changes struct {
	// Early: not reachable yet.
	Lines   []Block // new lines of the trie
	Entries []Block // new blocks of entries
	Cells   []Block // cells that nobody asks for yet, in this order
	// Pointers: each is one store; the address range changes class at once.
	Pointers        []uint32 // words of the trie
	Services        map[ServiceKey]Service
	ServicesRemoved []ServiceKey
	// Relayout: directories moved; only the whole Contents make sense.
	Relayout bool
}

// Empty reports whether there is nothing to write.
func (c *Changes) Empty() bool {
	return !c.Relayout && len(c.Lines)+len(c.Entries)+len(c.Cells)+len(c.Pointers)+
		len(c.Services)+len(c.ServicesRemoved) == 0
}

// World is the contents of one world. It is not safe for concurrent use.
type World struct {
	classes   *classes
	trie      *trie
	lists     *lists
	protected atomID
	allNodes  atomID
	ruleID    func(policy.RuleRef) uint32

	rulesets map[string]*ruleset
	ofAtom   map[atomID]map[*ruleset]struct{}
	cells    *cells

	nodeAddrs    map[netip.Prefix]struct{}
	servicePorts []servicePort
	services     map[ServiceKey]Service
	serviceIDs   map[serviceName]uint32

	changes *Changes
}

// New returns an empty World. ruleID numbers rules; the numbers must fit in
// RuleMask and be at least 64 (bpf/types.h REASON_MAX).
func New(ruleID func(policy.RuleRef) uint32) *World {
	c := newClasses()
	w := &World{
		classes: c, lists: newLists(), ruleID: ruleID,
		protected: c.atom(policy.SetIDProtected), allNodes: c.atom(setAllNodes),
		rulesets: map[string]*ruleset{}, ofAtom: map[atomID]map[*ruleset]struct{}{},
		cells: newCells(), nodeAddrs: map[netip.Prefix]struct{}{},
		services: map[ServiceKey]Service{}, serviceIDs: map[serviceName]uint32{},
		changes: &Changes{},
	}
	w.trie = newTrie(c, w.allNodes, w.changes)
	return w
}

// Update is what a revision changes.
type Update struct {
	Sets            map[policy.SetID]policy.SetDelta
	RulesetsAdded   map[string]*policy.Ruleset
	RulesetsRemoved []string
	SetsRemoved     []policy.SetID
	// Topology, if not nil, replaces all Services and Nodes.
	Topology *Topology
}

// Topology is what Services translate.
type Topology struct {
	Services []policy.Service
	Nodes    []policy.Node
}

// Apply changes w and returns what to write. The World is unchanged in what it
// answers if an error is returned for a ruleset: that ruleset is missing.
func (w *World) Apply(u Update) (*Changes, error) {
	*w.changes = Changes{}
	w.classes.created = w.classes.created[:0]

	w.trie.apply(w.edits(u))
	w.growClasses()

	var errs []error
	for _, id := range sortedStrings(u.RulesetsAdded) {
		if _, ok := w.rulesets[id]; ok {
			continue
		}
		if err := w.addRuleset(id, u.RulesetsAdded[id]); err != nil {
			errs = append(errs, fmt.Errorf("ruleset %s: %w", id, err))
		}
	}
	if err := w.fillNewClasses(); err != nil {
		errs = append(errs, err)
	}
	if u.Topology != nil {
		w.setServices(u.Topology.Services)
	}
	if u.Topology != nil || len(w.changes.Pointers) > 0 {
		w.updateServices()
	}
	for _, id := range u.RulesetsRemoved {
		w.removeRuleset(id)
	}
	return w.changes, errors.Join(errs...)
}

// Freed tells that a grace period has passed since the last Changes were
// written, so that what they freed can be used again (M3).
func (w *World) Freed() {
	w.trie.reclaim()
	w.lists.reclaim()
	w.cells.reclaim()
}

// edits turns set changes into changes of each prefix's own class.
func (w *World) edits(u Update) []edit {
	n := 0
	for _, d := range u.Sets {
		n += len(d.Add) + len(d.Remove)
	}
	all := make([]atomEdit, 0, n)
	at := func(p netip.Prefix, a atomID, add bool) {
		k := toPrefix(p)
		all = append(all, atomEdit{k.hi, k.lo, a, k.bits, uint8(familyOf(p.Addr())), add})
	}
	for id, d := range u.Sets {
		a := w.classes.atom(id)
		for _, p := range d.Add {
			at(p, a, true)
		}
		for _, p := range d.Remove {
			at(p, a, false)
		}
	}
	if u.Topology != nil {
		fresh := map[netip.Prefix]struct{}{}
		for i := range u.Topology.Nodes {
			for _, ip := range u.Topology.Nodes[i].IPs {
				p := netip.PrefixFrom(ip, ip.BitLen())
				if _, twice := fresh[p]; twice {
					continue
				}
				fresh[p] = struct{}{}
				if _, ok := w.nodeAddrs[p]; !ok {
					at(p, w.allNodes, true)
				}
			}
		}
		for p := range w.nodeAddrs {
			if _, ok := fresh[p]; !ok {
				at(p, w.allNodes, false)
			}
		}
		w.nodeAddrs = fresh
	}
	slices.SortFunc(all, func(a, b atomEdit) int {
		return cmp.Or(cmp.Compare(a.family, b.family), cmp.Compare(a.hi, b.hi), cmp.Compare(a.lo, b.lo), cmp.Compare(a.bits, b.bits))
	})
	gone := map[atomID]struct{}{}
	for _, id := range u.SetsRemoved {
		if a, ok := w.classes.atoms[id]; ok && id != policy.SetIDProtected {
			gone[a] = struct{}{}
		}
	}
	var out []edit
	if len(gone) > 0 {
		changed := make(map[prefixKey]struct{}, len(all))
		for _, e := range all {
			changed[prefixKey{int(e.family), e.hi, e.lo, e.bits}] = struct{}{}
		}
		out = w.forget(gone, changed, out)
	}
	if cap(out) == 0 {
		out = make([]edit, 0, len(all))
	}
	var set []atomID
	for len(all) > 0 {
		first := all[0]
		e := edit{int(first.family), prefix{hi: first.hi, lo: first.lo, bits: first.bits}}
		old := w.trie.direct(e.family, e.prefix)
		set = set[:0]
		for _, a := range w.classes.sets[old] {
			if _, g := gone[a]; !g {
				set = append(set, a)
			}
		}
		n := 0
		for n < len(all) && all[n].same(first) {
			if !all[n].add {
				set = slices.DeleteFunc(set, func(a atomID) bool { return a == all[n].atom })
			}
			n++
		}
		for _, c := range all[:n] {
			if c.add {
				set = append(set, c.atom)
			}
		}
		all = all[n:]
		slices.Sort(set)
		set = slices.Compact(set)
		e.prefix.class = w.classes.internCopy(set)
		if e.prefix.class != old {
			out = append(out, e)
		}
	}
	return out
}

// atomEdit is an atom that a prefix gets or loses. It holds no pointers: there
// are a million of them.
type atomEdit struct {
	hi, lo uint64
	atom   atomID
	bits   uint8
	family uint8
	add    bool
}

func (e atomEdit) same(o atomEdit) bool {
	return e.family == o.family && e.hi == o.hi && e.lo == o.lo && e.bits == o.bits
}

// prefixKey is a prefix without its class.
type prefixKey struct {
	family int
	hi, lo uint64
	bits   uint8
}

func keyOf(family int, p prefix) prefixKey { return prefixKey{family, p.hi, p.lo, p.bits} }

// forget appends the edits that take atoms out of every prefix that is not
// changed anyway: one edit a prefix.
func (w *World) forget(gone map[atomID]struct{}, changed map[prefixKey]struct{}, out []edit) []edit {
	becomes := map[classID]classID{}
	for family := range w.trie.prefixes {
		for _, p := range w.trie.prefixes[family] {
			to, ok := becomes[p.class]
			if !ok {
				set := slices.DeleteFunc(slices.Clone(w.classes.sets[p.class]), func(a atomID) bool {
					_, g := gone[a]
					return g
				})
				to = w.classes.intern(set)
				becomes[p.class] = to
			}
			if _, also := changed[keyOf(family, p)]; !also && to != p.class {
				p.class = to
				out = append(out, edit{family, p})
			}
		}
	}
	return out
}

func (w *World) addRuleset(name string, content *policy.Ruleset) error {
	rs := newRuleset(content, w.classes, w.protected, w.ruleID)
	list, err := rs.listFor(w, 0)
	if err != nil {
		return err
	}
	rs.lists[0] = list
	w.lists.hold(list)
	rs.table = w.cells.newTable(w.lists.refs[list], w.changes)
	for _, a := range rs.atoms {
		for _, class := range w.classes.ofAtom[a] {
			if err := w.fill(rs, class); err != nil {
				w.dropTables(rs)
				return err
			}
		}
	}
	w.rulesets[name] = rs
	for _, a := range rs.atoms {
		m := w.ofAtom[a]
		if m == nil {
			m = map[*ruleset]struct{}{}
			w.ofAtom[a] = m
		}
		m[rs] = struct{}{}
	}
	return nil
}

// fill gives the class its entry in the ruleset's table, unless it is the default's.
func (w *World) fill(rs *ruleset, class classID) error {
	if _, ok := rs.lists[class]; ok {
		return nil
	}
	list, err := rs.listFor(w, class)
	if err != nil {
		return err
	}
	if list != rs.lists[0] {
		w.setTable(rs, class, list)
	}
	return nil
}

func (w *World) setTable(rs *ruleset, class classID, list int) {
	rs.lists[class] = list
	w.lists.hold(list)
	w.cells.set(rs.table, class, w.lists.refs[list], w.changes)
}

// growClasses gives every ruleset a larger directory when there are more
// classes than the present ones have room for (M5).
func (w *World) growClasses() {
	if len(w.classes.sets) <= w.cells.classCap {
		return
	}
	old := w.cells
	w.cells = newCells()
	for w.cells.classCap = old.classCap; w.cells.classCap < 2*len(w.classes.sets); {
		w.cells.classCap *= 2
	}
	w.changes.Relayout = true
	for _, name := range sortedStrings(w.rulesets) {
		rs := w.rulesets[name]
		rs.table = w.cells.newTable(w.lists.refs[rs.lists[0]], w.changes)
		for class, list := range rs.lists {
			if class != 0 {
				w.cells.set(rs.table, class, w.lists.refs[list], w.changes)
			}
		}
	}
}

// fillNewClasses does for classes what addRuleset does for rulesets (M1).
func (w *World) fillNewClasses() error {
	var errs []error
	for _, class := range w.classes.created {
		for _, a := range w.classes.sets[class] {
			for rs := range w.ofAtom[a] {
				if err := w.fill(rs, class); err != nil {
					errs = append(errs, err)
				}
			}
		}
	}
	return errors.Join(errs...)
}

func (w *World) removeRuleset(name string) {
	rs, ok := w.rulesets[name]
	if !ok {
		return
	}
	delete(w.rulesets, name)
	for _, a := range rs.atoms {
		delete(w.ofAtom[a], rs)
	}
	w.dropTables(rs)
}

func (w *World) dropTables(rs *ruleset) {
	for _, list := range rs.lists {
		w.lists.drop(list)
	}
	w.cells.drop(rs.table)
}

// RulesetID returns the kernel's number of a ruleset, its directory; 0, which no
// ruleset has and which therefore denies, if it is not here. Apply may change it.
func (w *World) RulesetID(name string) uint32 {
	if rs, ok := w.rulesets[name]; ok {
		return rs.table.dir
	}
	return 0
}

// Class returns the class of an address with its property bits.
func (w *World) Class(a netip.Addr) uint32 { return w.trie.lookup(packet.Unmap(a)) }

// Lookup returns what a ruleset says of an address and port: Rule bits and a
// rule ID, as the kernel would find it; 0 if the ruleset is not here.
func (w *World) Lookup(rulesetID uint32, class uint32, proto packet.Protocol, port uint16) uint32 {
	if !proto.HasPorts() {
		port = 0
	}
	ref := w.cells.lookup(rulesetID, class&ClassMask)
	if ref.Len == 0 {
		return 0
	}
	return w.lists.lookup(ref, proto, port)
}

// Contents are the arrays and tables to write when a world is new.
type Contents struct {
	Trie     []Line
	Entries  []Entry
	Cells    []uint64
	Services map[ServiceKey]Service
}

// Contents returns w's own slices and maps; they must not be changed.
func (w *World) Contents() Contents {
	return Contents{w.trie.lines, w.lists.entries, w.cells.data, w.services}
}

// Stats are sizes for status and metrics.
type Stats struct {
	Prefixes, Classes, Lines, Rulesets, Cells, ListEntries, Services int
}

// Stats returns the sizes of w.
func (w *World) Stats() Stats {
	return Stats{
		Prefixes: len(w.trie.prefixes[0]) + len(w.trie.prefixes[1]), Classes: len(w.classes.sets),
		Lines:    w.trie.used,
		Rulesets: len(w.rulesets), Cells: len(w.cells.data), ListEntries: len(w.lists.entries), Services: len(w.services),
	}
}

func sortedStrings[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}
