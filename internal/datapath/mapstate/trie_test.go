package mapstate

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"strconv"
	"testing"

	"github.com/postern-dev/postern/internal/policy"
)

// crowd draws prefixes that nest, touch and crowd: below a few bytes that many
// share, at all depths, so that every kind of line comes up.
type crowd struct {
	*rand.Rand
	stems []netip.Prefix
}

func newCrowd(rng *rand.Rand) crowd {
	c := crowd{Rand: rng}
	for _, s := range []string{"10.0.0.0/8", "10.1.0.0/16", "192.0.2.0/24", "0.0.0.0/0", "255.255.0.0/16", "2001:db8::/32", "2001:db8:1::/48", "2001:db8:1:2::/64", "2001:db8:1:2:3:4:5:0/112", "fd00::/8", "ffff:ffff::/32", "::/0"} {
		c.stems = append(c.stems, netip.MustParsePrefix(s))
	}
	return c
}

func (c crowd) addr() netip.Addr {
	stem := c.stems[c.IntN(len(c.stems))]
	b := stem.Addr().As16()
	hi, lo := binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])
	bits := stem.Bits() + 128 - stem.Addr().BitLen()
	rest := c.Uint64()
	switch c.IntN(4) {
	case 0:
		rest = 0 // the first address
	case 1:
		rest = ^uint64(0) // the last one
	}
	if bits < 64 {
		hi |= rest >> bits
		lo = c.Uint64() & rest
	} else if bits < 128 {
		lo |= rest >> (bits - 64)
	}
	binary.BigEndian.PutUint64(b[:8], hi)
	binary.BigEndian.PutUint64(b[8:], lo)
	if stem.Addr().Is4() {
		return netip.AddrFrom4([4]byte(b[12:]))
	}
	return netip.AddrFrom16(b)
}

func (c crowd) prefix() netip.Prefix {
	a := c.addr()
	return netip.PrefixFrom(a, c.IntN(a.BitLen()+1)).Masked()
}

// TestTrie changes tries at random and compares them with a list of prefixes.
func TestTrie(t *testing.T) {
	for seed := range uint64(4) {
		rng := rand.New(rand.NewPCG(seed, 1))
		c := newCrowd(rng)
		classes := newClasses()
		tr := newTrie(classes, 0, &Changes{})
		atoms := make([]atomID, 5)
		for i := range atoms {
			atoms[i] = classes.atom(policy.SetID(strconv.Itoa(i)))
		}
		have := map[netip.Prefix]classID{}
		kinds := map[uint32]int{}
		for step := range 30 {
			n := []int{1, 3, 40, 3000}[rng.IntN(4)]
			var edits []edit
			changed := map[netip.Prefix]bool{}
			for range n {
				p := c.prefix()
				if rng.IntN(3) == 0 && len(have) > 0 {
					for p = range have {
						break
					}
				}
				if changed[p] {
					continue
				}
				changed[p] = true
				e := edit{familyOf(p.Addr()), toPrefix(p)}
				delete(have, p)
				if rng.IntN(4) > 0 {
					e.prefix.class = classes.intern([]atomID{atoms[rng.IntN(len(atoms))]})
					have[p] = e.prefix.class
				}
				edits = append(edits, e)
			}
			tr.apply(edits)
			tr.reclaim()
			used := rootLines
			for i := range uint32(Roots) {
				used += tr.size(t, *tr.word(i))
			}
			if used != tr.used {
				t.Fatalf("seed %d, step %d: %d lines are reachable, %d in use", seed, step, used, tr.used)
			}
			for range 1500 {
				a := c.addr()
				want := classID(0)
				for bits := 0; bits <= a.BitLen(); bits++ {
					if p, err := a.Prefix(bits); err == nil {
						want = classes.union(want, have[p])
					}
				}
				hi, lo := addrBits(a)
				for v, at := *tr.word(rootWord(familyOf(a), uint32(hi>>48))), 16; v&TrieChild != 0; {
					kinds[v&TrieKind]++
					var next uint32
					next, at, _ = tr.step(v, prefix{hi: hi, lo: lo}, at)
					v = *tr.word(next)
				}
				if got := tr.lookup(a); got != uint32(want) {
					t.Fatalf("seed %d, step %d: %s: got class %v, want %v", seed, step, a, classes.sets[got], classes.sets[want])
				}
			}
		}
		for _, k := range []uint32{TrieDense, TrieLeaf, TrieTree, TrieSkip} {
			if kinds[k] == 0 {
				t.Errorf("seed %d: no line of kind %#x", seed, k)
			}
		}
	}
}

// size counts the lines below a value.
func (t *trie) size(tb testing.TB, value uint32) int {
	tb.Helper()
	if value&TrieChild == 0 {
		return 0
	}
	before := len(t.limbo)
	saved := t.used
	t.release(value)
	n := saved - t.used
	t.used = saved
	for _, b := range t.limbo[before:] {
		for i := range b.Len {
			if t.lines[b.Off+i] == (Line{}) {
				tb.Fatal("a line that is in use is empty")
			}
		}
	}
	t.limbo = t.limbo[:before]
	return n
}
