package policy

import (
	"cmp"
	"encoding/binary"
	"net/netip"
	"slices"
	"sort"

	"github.com/postern-dev/postern/internal/packet"
)

// The compiler's algebra of address sets. A canonical list of prefixes is
// masked, unmapped, sorted by address, disjoint, and the shortest one there is
// for its addresses; equal sets of addresses have equal canonical lists.

// comparePrefixes orders by address (IPv4 first), then by length.
func comparePrefixes(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

// cleanPrefix masks p and writes a v4-mapped one, and one of NAT64, as IPv4. ok is false for an
// invalid prefix, which holds no address.
func cleanPrefix(p netip.Prefix) (_ netip.Prefix, ok bool) {
	if !p.IsValid() {
		return p, false
	}
	return packet.JudgedPrefix(p).Masked(), true
}

// cleanPrefixes cleans every prefix and leaves invalid ones out.
func cleanPrefixes(in []netip.Prefix) []netip.Prefix {
	out := make([]netip.Prefix, 0, len(in))
	for _, p := range in {
		if p, ok := cleanPrefix(p); ok {
			out = append(out, p)
		}
	}
	return out
}

// canonicalPrefixes returns the canonical list of the union of in, in memory of its own.
func canonicalPrefixes(in []netip.Prefix) []netip.Prefix {
	sorted := cleanPrefixes(in)
	sortPrefixes(sorted)
	out := sorted[:0] // the writer never passes the reader
	for _, p := range sorted {
		if n := len(out); n > 0 && out[n-1].Overlaps(p) {
			continue // sorted, so the earlier one is the wider
		}
		out = append(out, p)
		for n := len(out); n > 1 && siblings(out[n-2], out[n-1]); n = len(out) {
			out[n-2] = parentPrefix(out[n-2])
			out = out[:n-1]
		}
	}
	return slices.Clip(out)
}

// sortPrefixes sorts masked prefixes. Long lists are of IPv4 for the most part,
// and as numbers those are sorted several times as fast.
func sortPrefixes(list []netip.Prefix) {
	if len(list) < 1024 {
		slices.SortFunc(list, comparePrefixes)
		return
	}
	var v4 []uint64
	var v6 []netip.Prefix
	for _, p := range list {
		if a := p.Addr(); a.Is4() {
			b := a.As4()
			v4 = append(v4, uint64(binary.BigEndian.Uint32(b[:]))<<8|uint64(p.Bits()))
		} else {
			v6 = append(v6, p)
		}
	}
	slices.Sort(v4)
	for i, v := range v4 {
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], uint32(v>>8))
		list[i] = netip.PrefixFrom(netip.AddrFrom4(b), int(v&0xff))
	}
	slices.SortFunc(v6, comparePrefixes)
	copy(list[len(v4):], v6)
}

// siblings reports whether a and b, in order, are the halves of one prefix.
func siblings(a, b netip.Prefix) bool {
	return a.Bits() == b.Bits() && a.Bits() > 0 && a.Addr().BitLen() == b.Addr().BitLen() &&
		a != b && parentPrefix(a) == parentPrefix(b)
}

func parentPrefix(p netip.Prefix) netip.Prefix {
	return netip.PrefixFrom(p.Addr(), p.Bits()-1).Masked()
}

// halves splits a prefix that is longer than one address.
func halves(p netip.Prefix) (lo, hi netip.Prefix) {
	bits := p.Bits()
	lo = netip.PrefixFrom(p.Addr(), bits+1)
	if p.Addr().Is4() {
		b := p.Addr().As4()
		b[bits/8] |= 0x80 >> (bits % 8)
		return lo, netip.PrefixFrom(netip.AddrFrom4(b), bits+1)
	}
	b := p.Addr().As16()
	b[bits/8] |= 0x80 >> (bits % 8)
	return lo, netip.PrefixFrom(netip.AddrFrom16(b), bits+1)
}

// subtractPrefixes returns the canonical list of the addresses in a and not in
// b. Both must be canonical.
func subtractPrefixes(a, b []netip.Prefix) []netip.Prefix {
	if len(b) == 0 || len(a) == 0 {
		return a
	}
	out := make([]netip.Prefix, 0, len(a))
	for _, p := range a {
		out = appendLess(out, p, overlapping(b, p))
	}
	return out
}

// overlapping returns the part of the canonical list b that overlaps p.
func overlapping(b []netip.Prefix, p netip.Prefix) []netip.Prefix {
	lo := sort.Search(len(b), func(i int) bool { return comparePrefixes(b[i], p) >= 0 })
	if lo > 0 && b[lo-1].Overlaps(p) {
		return b[lo-1 : lo] // it starts before p and so holds all of it
	}
	n := sort.Search(len(b)-lo, func(i int) bool { return !b[lo+i].Overlaps(p) })
	return b[lo : lo+n]
}

// appendLess appends p less the prefixes of b, all of which overlap p.
func appendLess(out []netip.Prefix, p netip.Prefix, b []netip.Prefix) []netip.Prefix {
	if len(b) == 0 {
		return append(out, p)
	}
	if b[0].Bits() <= p.Bits() {
		return out // b[0] holds p
	}
	lo, hi := halves(p)
	n := sort.Search(len(b), func(i int) bool { return b[i].Overlaps(hi) })
	return appendLess(appendLess(out, lo, b[:n]), hi, b[n:])
}

// overlaps reports whether two canonical lists share an address.
func overlaps(a, b []netip.Prefix) bool {
	if len(a) < len(b) {
		a, b = b, a
	}
	return slices.ContainsFunc(b, func(p netip.Prefix) bool { return len(overlapping(a, p)) > 0 })
}

// diffPrefixes returns the change from one sorted list to another. It may share
// their memory.
func diffPrefixes(from, to []netip.Prefix) SetDelta {
	if len(from) == 0 {
		return SetDelta{Add: slices.Clip(to)}
	}
	var d SetDelta
	for len(from) > 0 && len(to) > 0 {
		switch c := comparePrefixes(from[0], to[0]); {
		case c == 0:
			from, to = from[1:], to[1:]
		case c < 0:
			d.Remove = append(d.Remove, from[0])
			from = from[1:]
		default:
			d.Add = append(d.Add, to[0])
			to = to[1:]
		}
	}
	d.Remove = append(d.Remove, from...)
	d.Add = append(d.Add, to...)
	return d
}

// withAddr returns the canonical list with one more address, in new memory
// unless fresh says that list may be changed in place.
func withAddr(list []netip.Prefix, a netip.Addr, fresh bool) []netip.Prefix {
	p := netip.PrefixFrom(a, a.BitLen())
	if len(overlapping(list, p)) > 0 {
		return list
	}
	if !fresh {
		list = slices.Clone(list)
	}
	i, _ := slices.BinarySearchFunc(list, p, comparePrefixes)
	list = slices.Insert(list, i, p)
	for {
		switch {
		case i > 0 && siblings(list[i-1], list[i]):
			i--
		case i+1 < len(list) && siblings(list[i], list[i+1]):
		default:
			return list
		}
		list[i] = parentPrefix(list[i])
		list = slices.Delete(list, i+1, i+2)
	}
}

// withoutAddr is the inverse of withAddr.
func withoutAddr(list []netip.Prefix, a netip.Addr, fresh bool) []netip.Prefix {
	p := netip.PrefixFrom(a, a.BitLen())
	i := sort.Search(len(list), func(i int) bool { return comparePrefixes(list[i], p) > 0 }) - 1
	if i < 0 || !list[i].Contains(a) {
		return list
	}
	if !fresh {
		list = slices.Clone(list)
	}
	rest := appendLess(nil, list[i], []netip.Prefix{p})
	return slices.Replace(list, i, i+1, rest...)
}
