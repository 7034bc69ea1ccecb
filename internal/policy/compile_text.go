package policy

import (
	"cmp"
	"crypto/sha256"
	"slices"
	"strconv"
	"strings"
)

// combine gives every base the rule's ports and returns all matches in
// canonical order. A base without a port matches nothing and is left out.
func combine(bases []Match, anyPort bool, ranges []PortRange, exact []Match) []Match {
	out := slices.Clone(exact)
	for _, m := range bases {
		switch {
		case anyPort:
			m.AnyPort = true
		case len(ranges) > 0:
			m.Ports = ranges
		default:
			continue
		}
		out = append(out, m)
	}
	slices.SortFunc(out, compareMatches)
	return slices.CompactFunc(out, func(a, b Match) bool { return compareMatches(a, b) == 0 })
}

func compareMatches(a, b Match) int {
	return cmp.Or(
		-compareBools(a.AnyAddress, b.AnyAddress),
		compareBools(a.NotProtected, b.NotProtected),
		cmp.Compare(a.Set, b.Set),
		-compareBools(a.AnyPort, b.AnyPort),
		slices.CompareFunc(a.Ports, b.Ports, compareRanges))
}

func compareBools(a, b bool) int {
	if a == b {
		return 0
	}
	if b {
		return -1
	}
	return 1
}

func compareRanges(a, b PortRange) int {
	return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.First, b.First), cmp.Compare(a.Last, b.Last))
}

// mergeRanges sorts ranges and joins those that overlap or touch.
func mergeRanges(in []PortRange) []PortRange {
	slices.SortFunc(in, compareRanges)
	var out []PortRange
	for _, r := range in {
		if n := len(out); n > 0 && out[n-1].Protocol == r.Protocol && int(r.First) <= int(out[n-1].Last)+1 {
			out[n-1].Last = max(out[n-1].Last, r.Last)
			continue
		}
		out = append(out, r)
	}
	return out
}

func newBuiltRule(r CompiledRule) builtRule {
	var b strings.Builder
	r.appendText(&b)
	return builtRule{rule: r, digest: sha256.Sum256([]byte(b.String()))}
}

// appendText writes r without its tier's index, which a Ruleset adds. Strings
// that come from users are quoted: no two rules have the same text.
func (r *CompiledRule) appendText(b *strings.Builder) {
	for _, s := range []string{r.Ref.Tier, string(r.Ref.Kind), r.Ref.Namespace, r.Ref.Policy} {
		b.WriteString(strconv.Quote(s))
		b.WriteByte(' ')
	}
	b.WriteString(r.Ref.Direction.String() + " " + strconv.Itoa(r.Ref.Index) + " " +
		strconv.Quote(r.Ref.Name) + " " + r.Action.String())
	for i := range r.Matches {
		r.Matches[i].appendText(b)
	}
}

func (m *Match) appendText(b *strings.Builder) {
	b.WriteString(" (")
	switch {
	case m.AnyAddress && m.NotProtected:
		b.WriteString("any-unprotected")
	case m.AnyAddress:
		b.WriteString("any")
	default:
		b.WriteString(strconv.Quote(string(m.Set)))
	}
	if m.AnyPort {
		b.WriteString(" any")
	}
	for _, r := range m.Ports {
		r.appendText(b)
	}
	b.WriteByte(')')
}

func (r PortRange) appendText(b *strings.Builder) {
	b.WriteByte(' ')
	b.WriteString(r.String())
}

// String prints r as "tcp/80", "tcp/80-90" or, for a protocol without ports, "icmp".
func (r PortRange) String() string {
	switch {
	case !r.Protocol.HasPorts():
		return r.Protocol.String()
	case r.First == r.Last:
		return r.Protocol.String() + "/" + strconv.Itoa(int(r.First))
	}
	return r.Protocol.String() + "/" + strconv.Itoa(int(r.First)) + "-" + strconv.Itoa(int(r.Last))
}
