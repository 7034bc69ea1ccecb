package mapstate

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"

	"github.com/postern-dev/postern/internal/packet"
	"github.com/postern-dev/postern/internal/policy"
)

// Dump prints what the maps say, for people and golden files: read back through
// the same lookups as the kernel's, so the numbers and places that things happen
// to have leave no trace. names labels rulesets by their ID; those without a label
// are left out, and so are addresses and classes in no set.
//
//	addresses
//	  10.0.0.0/8 {set:a}
//	ruleset LABEL
//	  elsewhere
//	    any: dropped by baseline deny egress[0]
//	  {set:a}
//	    tcp/80: forwarded by ...
//	services
//	  tcp 10.96.0.1:80 -> {pods:...} port 8080
//
// A label may be given to several rulesets only if they are the same.
func (w *World) Dump(names map[string]string) string {
	var b strings.Builder
	b.WriteString("addresses\n")
	inUse := map[classID]bool{}
	for family := range w.trie.prefixes {
		for _, r := range w.ranges(family) {
			inUse[r.class] = true
			fmt.Fprintf(&b, "  %s %s\n", r, w.classText(r.class))
		}
	}
	labels := map[string]string{} // label to ID
	for id, label := range names {
		if _, ok := w.rulesets[id]; ok {
			labels[label] = id
		}
	}
	for _, label := range sortedStrings(labels) {
		w.dumpRuleset(&b, label, w.rulesets[labels[label]], inUse)
	}
	if len(w.services) > 0 {
		b.WriteString("services\n")
		var lines []string
		for k, s := range w.services {
			lines = append(lines, "  "+serviceKeyText(k)+" -> "+w.serviceText(s)+"\n")
		}
		slices.Sort(lines)
		b.WriteString(strings.Join(lines, ""))
	}
	return b.String()
}

// addressRange is a run of addresses of one class.
type addressRange struct {
	first, last netip.Addr
	class       classID
}

// String prints r as a prefix if it is one.
func (r addressRange) String() string {
	for bits := range r.first.BitLen() + 1 {
		if p := netip.PrefixFrom(r.first, bits); p.Masked() == p && lastOf(p) == r.last {
			return p.String()
		}
	}
	return r.first.String() + "-" + r.last.String()
}

// ranges walks the addresses of a family from border to border and asks the
// trie about each run. Runs in no set are left out.
func (w *World) ranges(family int) []addressRange {
	zero := netip.IPv4Unspecified()
	if family == 1 {
		zero = netip.IPv6Unspecified()
	}
	borders := []netip.Addr{zero}
	for _, p := range w.trie.prefixes[family] {
		net := p.netip(family)
		borders = append(borders, net.Addr())
		if next := lastOf(net).Next(); next.IsValid() {
			borders = append(borders, next)
		}
	}
	slices.SortFunc(borders, netip.Addr.Compare)
	borders = slices.Compact(borders)
	var out []addressRange
	for i, first := range borders {
		last := lastOf(netip.PrefixFrom(zero, 0))
		if i+1 < len(borders) {
			last = borders[i+1].Prev()
		}
		class := classID(w.trie.lookup(first) & ClassMask)
		if n := len(out); n > 0 && out[n-1].class == class {
			out[n-1].last = last
			continue
		}
		out = append(out, addressRange{first, last, class})
	}
	return slices.DeleteFunc(out, func(r addressRange) bool { return r.class == 0 })
}

// netip is the inverse of toPrefix.
func (p prefix) netip(family int) netip.Prefix {
	if family == 0 {
		v := uint32(p.hi >> 32)
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)}), int(p.bits))
	}
	var b [16]byte
	for i := range 8 {
		b[i], b[8+i] = byte(p.hi>>(56-8*i)), byte(p.lo>>(56-8*i))
	}
	return netip.PrefixFrom(netip.AddrFrom16(b), int(p.bits))
}

// lastOf returns the highest address of a masked prefix.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// classText prints a class as the sets it is in.
func (w *World) classText(c classID) string {
	byID := make(map[atomID]policy.SetID, len(w.classes.atoms))
	for name, a := range w.classes.atoms {
		byID[a] = name
	}
	var parts []string
	for _, a := range w.classes.sets[c] {
		parts = append(parts, shortSet(byID[a]))
	}
	slices.Sort(parts)
	return "{" + strings.Join(parts, ", ") + "}"
}

// shortSet cuts the digest of a set of networks to what tells it apart in a page.
func shortSet(id policy.SetID) string {
	const digits = 8
	if digest, ok := strings.CutPrefix(string(id), "net:"); ok && len(digest) > digits {
		return "net:" + digest[:digits]
	}
	return string(id)
}

func (w *World) dumpRuleset(b *strings.Builder, label string, rs *ruleset, inUse map[classID]bool) {
	fmt.Fprintf(b, "ruleset %s\n  elsewhere\n", label)
	w.dumpList(b, rs, 0)
	byText := map[string]classID{}
	for c := range inUse {
		if w.cells.lookup(rs.table.dir, uint32(c)) != w.cells.lookup(rs.table.dir, 0) {
			byText[w.classText(c)] = c
		}
	}
	for _, text := range sortedStrings(byText) {
		fmt.Fprintf(b, "  %s\n", text)
		w.dumpList(b, rs, byText[text])
	}
}

// dumpList prints the intervals that a class gets in a ruleset.
func (w *World) dumpList(b *strings.Builder, rs *ruleset, class classID) {
	texts := map[uint32]string{}
	for i := range rs.rules {
		texts[rs.rules[i]&RuleMask] = rs.content.Rules[i].Ref.String()
	}
	ref := w.cells.lookup(rs.table.dir, uint32(class))
	entries := w.lists.entries[ref.Off : ref.Off+ref.Len]
	for i, e := range entries {
		end := uint32(math.MaxUint8)<<16 | math.MaxUint16
		if i+1 < len(entries) {
			end = entries[i+1].Start - 1
		}
		verdict := policy.Dropped
		if e.Rule&RuleForwarded != 0 {
			verdict = policy.Forwarded
		}
		fmt.Fprintf(b, "    %s: %s by %s\n", intervalText(e.Start, end), verdict, texts[e.Rule&RuleMask])
	}
}

// intervalText prints an interval of protocol<<16|port.
func intervalText(start, end uint32) string {
	first, last := packet.Protocol(start>>16), packet.Protocol(end>>16)
	lo, hi := uint16(start), uint16(end)
	switch {
	case start == 0 && end == math.MaxUint8<<16|math.MaxUint16:
		return "any"
	case first == last:
		if lo == 0 && hi == math.MaxUint16 {
			return first.String()
		}
		return policy.PortRange{Protocol: first, First: lo, Last: hi}.String()
	}
	from, to := first.String(), last.String()
	if lo != 0 {
		from = fmt.Sprintf("%s/%d", from, lo)
	}
	if hi != math.MaxUint16 {
		to = fmt.Sprintf("%s/%d", to, hi)
	}
	return from + " to " + to
}

func serviceKeyText(k ServiceKey) string {
	proto := packet.Protocol(k.Proto).String()
	if k.NodePort != 0 {
		return fmt.Sprintf("%s any node's IPv%d address:%d", proto, k.NodePort, k.Port)
	}
	return proto + " " + netip.AddrPortFrom(netip.AddrFrom16(k.Addr).Unmap(), k.Port).String()
}

func (w *World) serviceText(s Service) string {
	switch s.NCombos {
	case 0:
		return "no backend"
	case CombosMany:
		return "many kinds of backends: decided behind DNAT"
	}
	var parts []string
	for _, c := range s.Combos[:s.NCombos] {
		parts = append(parts, fmt.Sprintf("%s port %d", w.classText(classID(c.Class&ClassMask)), c.Port))
	}
	slices.Sort(parts)
	return strings.Join(parts, ", ")
}
