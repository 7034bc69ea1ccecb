package policy

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
)

// The compiler's prefix algebra is compared with counting addresses in a tiny
// universe: the last 5 bits of an IPv4 and of an IPv6 network.

const universeBits = 5

func universe() []netip.Addr {
	var out []netip.Addr
	for i := range byte(1 << universeBits) {
		out = append(out, netip.AddrFrom4([4]byte{10, 0, 0, i}), netip.AddrFrom16([16]byte{0xfd, 15: i}))
	}
	return out
}

func randomPrefixes(rng *rand.Rand, n int) []netip.Prefix {
	all := universe()
	var out []netip.Prefix
	for range n {
		a := all[rng.IntN(len(all))]
		out = append(out, netip.PrefixFrom(a, a.BitLen()-rng.IntN(universeBits+1))) // host bits and all
	}
	return out
}

// checkCanonical expects the shortest sorted list for exactly the addresses that want holds.
func checkCanonical(t *testing.T, what string, list []netip.Prefix, want func(netip.Addr) bool) {
	t.Helper()
	for _, a := range universe() {
		got := slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a) })
		if got != want(a) {
			t.Fatalf("%s: %v holds %s: got %t, want %t", what, list, a, got, want(a))
		}
		if holdsAddr(list, a) != got {
			t.Fatalf("%s: holdsAddr(%v, %s) is not %t", what, list, a, got)
		}
	}
	for i, p := range list {
		if p != p.Masked() || !p.IsValid() {
			t.Fatalf("%s: %s is not masked", what, p)
		}
		if i == 0 {
			continue
		}
		if before := list[i-1]; before.Addr().Compare(p.Addr()) >= 0 || before.Overlaps(p) {
			t.Fatalf("%s: %s and %s are out of order or overlap", what, before, p)
		} else if before.Bits() == p.Bits() && before.Addr().Is4() == p.Addr().Is4() &&
			netip.PrefixFrom(before.Addr(), p.Bits()-1).Masked() == netip.PrefixFrom(p.Addr(), p.Bits()-1).Masked() {
			t.Fatalf("%s: %s and %s are not merged", what, before, p)
		}
	}
}

func holder(list []netip.Prefix) func(netip.Addr) bool {
	return func(a netip.Addr) bool {
		return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Masked().Contains(a) })
	}
}

func TestPrefixAlgebra(t *testing.T) {
	for seed := range uint64(3000) {
		rng := rand.New(rand.NewPCG(seed, 1))
		rawA, rawB := randomPrefixes(rng, rng.IntN(9)), randomPrefixes(rng, rng.IntN(9))
		a, b := canonicalPrefixes(rawA), canonicalPrefixes(rawB)
		inA, inB := holder(rawA), holder(rawB)
		checkCanonical(t, "canonical", a, inA)
		checkCanonical(t, "union", canonicalPrefixes(slices.Concat(a, b)), func(x netip.Addr) bool { return inA(x) || inB(x) })
		checkCanonical(t, "subtract", subtractPrefixes(a, b), func(x netip.Addr) bool { return inA(x) && !inB(x) })
		common := slices.ContainsFunc(universe(), func(x netip.Addr) bool { return inA(x) && inB(x) })
		if overlaps(a, b) != common {
			t.Fatalf("seed %d: overlaps(%v, %v) is not %t", seed, a, b, common)
		}
		checkDiff(t, a, b)

		x := universe()[rng.IntN(len(universe()))]
		kept := slices.Clone(a)
		checkCanonical(t, "with", withAddr(a, x, false), func(y netip.Addr) bool { return inA(y) || x == y })
		checkCanonical(t, "without", withoutAddr(a, x, false), func(y netip.Addr) bool { return inA(y) && x != y })
		if !slices.Equal(a, kept) {
			t.Fatalf("seed %d: a shared list was changed", seed)
		}
	}
}

func checkDiff(t *testing.T, from, to []netip.Prefix) {
	t.Helper()
	d := diffPrefixes(from, to)
	left := slices.DeleteFunc(slices.Clone(from), func(p netip.Prefix) bool { return slices.Contains(d.Remove, p) })
	got := slices.SortedFunc(slices.Values(slices.Concat(left, d.Add)), comparePrefixes)
	if !slices.Equal(got, to) || len(left)+len(d.Remove) != len(from) {
		t.Fatalf("diff of %v and %v: %+v", from, to, d)
	}
	for _, p := range d.Add {
		if slices.Contains(d.Remove, p) {
			t.Fatalf("%s is added and removed", p)
		}
	}
}

func TestPrefixEdges(t *testing.T) {
	p := netip.MustParsePrefix
	for name, tt := range map[string]struct{ in, except, want []netip.Prefix }{
		"everything less an address": {
			[]netip.Prefix{p("0.0.0.0/0")},
			[]netip.Prefix{p("128.0.0.0/1"), p("64.0.0.0/2"), p("0.0.0.0/32")},
			nil, // checked below by counting
		},
		"halves of everything":      {[]netip.Prefix{p("0.0.0.0/1"), p("128.0.0.0/1")}, nil, []netip.Prefix{p("0.0.0.0/0")}},
		"families never merge":      {[]netip.Prefix{p("::/0"), p("0.0.0.0/0")}, nil, []netip.Prefix{p("0.0.0.0/0"), p("::/0")}},
		"an except of the other":    {[]netip.Prefix{p("::/0")}, []netip.Prefix{p("0.0.0.0/0")}, []netip.Prefix{p("::/0")}},
		"all of it":                 {[]netip.Prefix{p("10.0.0.0/8")}, []netip.Prefix{p("0.0.0.0/0")}, nil},
		"v4-mapped":                 {[]netip.Prefix{p("::ffff:10.0.0.0/104")}, []netip.Prefix{p("10.128.0.0/9")}, []netip.Prefix{p("10.0.0.0/9")}},
		"an invalid prefix is none": {[]netip.Prefix{{}, p("10.0.0.0/8")}, []netip.Prefix{{}}, []netip.Prefix{p("10.0.0.0/8")}},
		"the last addresses":        {[]netip.Prefix{p("255.255.255.254/31")}, []netip.Prefix{p("255.255.255.255/32")}, []netip.Prefix{p("255.255.255.254/32")}},
	} {
		t.Run(name, func(t *testing.T) {
			got := subtractPrefixes(canonicalPrefixes(tt.in), canonicalPrefixes(tt.except))
			if name == "everything less an address" {
				if len(got) != 30 || got[0] != p("0.0.0.1/32") || got[29] != p("32.0.0.0/3") {
					t.Fatalf("got %v", got)
				}
				return
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

// FuzzPrefixAlgebra reads prefixes of the tiny universe out of bytes.
func FuzzPrefixAlgebra(f *testing.F) {
	f.Add([]byte{1, 2, 3}, []byte{0xff, 0x20})
	f.Add([]byte{}, []byte{})
	f.Fuzz(func(t *testing.T, one, two []byte) {
		all := universe()
		read := func(in []byte) []netip.Prefix {
			var out []netip.Prefix
			for i := 0; i+1 < min(len(in), 40); i += 2 {
				a := all[int(in[i])%len(all)]
				out = append(out, netip.PrefixFrom(a, a.BitLen()-int(in[i+1])%(universeBits+1)))
			}
			return out
		}
		rawA, rawB := read(one), read(two)
		inA, inB := holder(rawA), holder(rawB)
		a, b := canonicalPrefixes(rawA), canonicalPrefixes(rawB)
		checkCanonical(t, "canonical", a, inA)
		checkCanonical(t, "subtract", subtractPrefixes(a, b), func(x netip.Addr) bool { return inA(x) && !inB(x) })
		checkDiff(t, a, b)
	})
}

func TestMergeRanges(t *testing.T) {
	r := func(first, last uint16) PortRange { return PortRange{6, first, last} }
	for _, tt := range []struct{ in, want []PortRange }{
		{nil, nil},
		{[]PortRange{r(80, 80), r(81, 90)}, []PortRange{r(80, 90)}},
		{[]PortRange{r(82, 90), r(80, 80)}, []PortRange{r(80, 80), r(82, 90)}},
		{[]PortRange{r(1, 100), r(50, 60), r(100, 101)}, []PortRange{r(1, 101)}},
		{[]PortRange{r(60000, 65535), r(65535, 65535)}, []PortRange{r(60000, 65535)}},
		{[]PortRange{{17, 0, 65535}, {6, 80, 65535}, {17, 5, 6}}, []PortRange{r(80, 65535), {17, 0, 65535}}},
	} {
		if got := mergeRanges(slices.Clone(tt.in)); !slices.Equal(got, tt.want) {
			t.Errorf("%v: got %v, want %v", tt.in, got, tt.want)
		}
	}
}

func TestSortPrefixes(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	var list []netip.Prefix
	for range 3000 {
		var b [16]byte
		for i := range b {
			b[i] = byte(rng.IntN(4) * 85)
		}
		a := netip.AddrFrom16(b)
		if rng.IntN(2) == 0 {
			a = netip.AddrFrom4([4]byte(b[:]))
		}
		list = append(list, netip.PrefixFrom(a, rng.IntN(a.BitLen()+1)).Masked())
	}
	want := slices.Clone(list)
	slices.SortFunc(want, comparePrefixes)
	sortPrefixes(list)
	if !slices.Equal(list, want) {
		t.Error("the order differs from comparePrefixes'")
	}
}
