package mapstate

import (
	"cmp"
	"encoding/binary"
	"math/bits"
	"net/netip"
	"slices"
)

// prefix is a masked prefix with the class of the atoms that name exactly it.
// IPv4 stands in the first 32 bits.
type prefix struct {
	hi, lo uint64
	bits   uint8
	class  classID
}

func comparePrefix(a, b prefix) int {
	if c := cmp.Compare(a.hi, b.hi); c != 0 {
		return c
	}
	if c := cmp.Compare(a.lo, b.lo); c != 0 {
		return c
	}
	return cmp.Compare(a.bits, b.bits)
}

// family indexes the two halves of the root.
func familyOf(p netip.Addr) int {
	if p.Is4() {
		return 0
	}
	return 1
}

func toPrefix(p netip.Prefix) prefix {
	hi, lo := addrBits(p.Addr())
	return prefix{hi: hi, lo: lo, bits: uint8(p.Bits())}
}

func addrBits(a netip.Addr) (hi, lo uint64) {
	if a.Is4() {
		b := a.As4()
		return uint64(binary.BigEndian.Uint32(b[:])) << 32, 0
	}
	b := a.As16()
	return binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])
}

// byteAt returns the address byte that begins at bit depth, a multiple of 8.
func (p prefix) byteAt(depth int) int {
	if depth < 64 {
		return int(p.hi >> (56 - depth) & 0xff)
	}
	return int(p.lo >> (120 - depth) & 0xff)
}

// masked returns p cut to n bits.
func (p prefix) masked(n int) prefix {
	if n <= 64 {
		p.lo = 0
		if n < 64 {
			p.hi &= ^(^uint64(0) >> n)
		}
	} else if n < 128 {
		p.lo &= ^(^uint64(0) >> (n - 64))
	}
	p.bits = uint8(n)
	return p
}

// last returns the highest address below p's first n bits, as a prefix that
// sorts after everything in that range.
func (p prefix) last(n int) prefix {
	p = p.masked(n)
	if n < 64 {
		p.hi |= ^uint64(0) >> n
		p.lo = ^uint64(0)
	} else if n < 128 {
		p.lo |= ^uint64(0) >> (n - 64)
	}
	p.bits = 255
	return p
}

// trie is the address -> class structure: kernel arrays and the sorted
// prefixes they are built from.
type trie struct {
	classes *classes
	nodesAt atomID // class values with this atom carry ClassNode

	prefixes [2][]prefix  // by family, sorted
	short    [2][]classID // per root slot: classes of prefixes of 16 bits or fewer
	roots    []uint32     // Roots slots
	nodes    []Node
	runs     []uint32

	freeNodes []uint32
	freeRuns  map[int][]uint32 // by length
	limbo     []freed          // freed, but the kernel may still look (M3)
	changes   *Changes
}

// freed is a node (length 0) or a block of runs.
type freed struct {
	index  uint32
	length int
}

func newTrie(c *classes, nodesAt atomID, ch *Changes) *trie {
	t := &trie{classes: c, nodesAt: nodesAt, roots: make([]uint32, Roots), freeRuns: map[int][]uint32{}, changes: ch}
	for f := range t.short {
		t.short[f] = make([]classID, 65536)
	}
	return t
}

// edit is a prefix whose own class changes; class 0 removes it.
type edit struct {
	family int
	prefix prefix
}

// direct returns the class of the atoms that name exactly p.
func (t *trie) direct(family int, p prefix) classID {
	s := t.prefixes[family]
	if i, ok := slices.BinarySearchFunc(s, p, comparePrefix); ok {
		return s[i].class
	}
	return 0
}

// apply merges edits, sorted or not, and rebuilds what they touch.
func (t *trie) apply(edits []edit) {
	for family := range 2 {
		var own []prefix
		for _, e := range edits {
			if e.family == family {
				own = append(own, e.prefix)
			}
		}
		if len(own) == 0 {
			continue
		}
		slices.SortFunc(own, comparePrefix)
		t.merge(family, own)
		t.rebuild(family, own)
	}
}

// merge takes the sorted edits into the sorted prefixes in one pass.
func (t *trie) merge(family int, edits []prefix) {
	old := t.prefixes[family]
	if len(edits) < 64 && len(old) > 1024 {
		for _, e := range edits {
			i, ok := slices.BinarySearchFunc(t.prefixes[family], e, comparePrefix)
			switch {
			case ok && e.class == 0:
				t.prefixes[family] = slices.Delete(t.prefixes[family], i, i+1)
			case ok:
				t.prefixes[family][i].class = e.class
			case e.class != 0:
				t.prefixes[family] = slices.Insert(t.prefixes[family], i, e)
			}
		}
		return
	}
	out := make([]prefix, 0, len(old)+len(edits))
	i := 0
	for _, e := range edits {
		for i < len(old) && comparePrefix(old[i], e) < 0 {
			out = append(out, old[i])
			i++
		}
		if i < len(old) && comparePrefix(old[i], e) == 0 {
			i++
		}
		if e.class != 0 {
			out = append(out, e)
		}
	}
	t.prefixes[family] = append(out, old[i:]...)
}

// within returns the prefixes longer than depth below p's first depth bits.
func (t *trie) within(family int, p prefix, depth int) []prefix {
	s := t.prefixes[family]
	first := p.masked(depth)
	first.bits = uint8(depth + 1)
	lo, _ := slices.BinarySearchFunc(s, first, comparePrefix)
	hi, _ := slices.BinarySearchFunc(s[lo:], p.last(depth), comparePrefix)
	// Prefixes that begin at the same address but are not longer sort before first.
	return s[lo : lo+hi]
}

// inherited returns the class that prefixes of at most depth bits give to p.
func (t *trie) inherited(family int, p prefix, depth int) classID {
	class := t.short[family][p.hi>>48]
	for n := 17; n <= depth; n++ {
		class = t.classes.union(class, t.direct(family, p.masked(n)))
	}
	return class
}

func (t *trie) rebuild(family int, edits []prefix) {
	slots := map[uint32]int{} // root slot -> number of edits
	shortChanged := false
	for _, e := range edits {
		if e.bits <= 16 {
			shortChanged = true
		} else {
			slots[uint32(e.hi>>48)]++
		}
	}
	if shortChanged {
		for slot, class := range t.shortClasses(family) {
			if t.short[family][slot] != class {
				t.short[family][slot] = class
				slots[uint32(slot)] += 1 << 20
			}
		}
	}
	// A slot with few edits is rebuilt below the deepest pointer above each.
	for _, e := range edits {
		slot := uint32(e.hi >> 48)
		if n, ok := slots[slot]; ok && n <= 16 && e.bits > 16 {
			t.rebuildBelow(family, e)
		}
	}
	for _, slot := range sortedKeys(slots) {
		if slots[slot] <= 16 {
			continue
		}
		p := prefix{hi: uint64(slot) << 48}
		t.setRoot(family, slot, t.build(t.within(family, p, 16), 16, t.short[family][slot]))
	}
}

// shortClasses computes the class of each root slot from prefixes of at most 16 bits.
func (t *trie) shortClasses(family int) []classID {
	out := make([]classID, 65536)
	for _, p := range t.prefixes[family] {
		if p.bits > 16 {
			continue
		}
		first := int(p.hi >> 48)
		for i := first; i < first+1<<(16-p.bits); i++ {
			out[i] = t.classes.union(out[i], p.class)
		}
	}
	return out
}

func (t *trie) setRoot(family int, slot, value uint32) {
	i := uint32(family)*65536 + slot
	if t.roots[i] == value {
		return
	}
	t.release(t.roots[i])
	t.roots[i] = value
	t.changes.Roots = append(t.changes.Roots, i)
}

// rebuildBelow finds the deepest pointer on e's path that the kernel can
// exchange with one store (a root or an entry of runs; a node is never written
// in place) and rebuilds the subtree it leads to.
func (t *trie) rebuildBelow(family int, e prefix) {
	slot := uint32(e.hi >> 48)
	value := t.roots[uint32(family)*65536+slot]
	run, depth := -1, 16
	for at := 16; value&TrieChild != 0; {
		n := &t.nodes[value&^TrieChild]
		skipTo := at + 8*int(n.NSkip)
		if int(e.bits) <= skipTo+8 {
			break
		}
		skip := uint64(0)
		for d := at; d < skipTo; d += 8 {
			skip = skip<<8 | uint64(e.byteAt(d))
		}
		if skip != n.Skip {
			break
		}
		r := runIndex(n, e.byteAt(skipTo))
		at = skipTo + 8
		if n.Base == TrieInlined {
			value = n.Runs[r]
			continue
		}
		value = t.runs[n.Base+uint32(r)]
		if value&TrieChild != 0 {
			run, depth = int(n.Base)+r, at
		}
	}
	fresh := t.build(t.within(family, e, depth), depth, t.inherited(family, e, depth))
	if run < 0 {
		t.setRoot(family, slot, fresh)
		return
	}
	t.release(t.runs[run])
	t.runs[run] = fresh
	t.changes.Pointers = append(t.changes.Pointers, uint32(run))
}

// build makes the subtree for the bits from depth on and returns the value
// that leads to it. ents are the prefixes longer than depth in its range.
func (t *trie) build(ents []prefix, depth int, inherited classID) uint32 {
	if len(ents) == 0 {
		return t.leaf(inherited)
	}
	var n Node
	n.Miss = t.leaf(inherited)
	// Path compression: bytes that all prefixes share before any of them ends.
	for n.NSkip < MaxSkip {
		b := ents[0].byteAt(depth)
		same := true
		for _, e := range ents {
			if int(e.bits) <= depth+8 || e.byteAt(depth) != b {
				same = false
				break
			}
		}
		if !same {
			break
		}
		n.Skip = n.Skip<<8 | uint64(b)
		n.NSkip++
		depth += 8
	}
	var class [256]classID
	for i := range class {
		class[i] = inherited
	}
	// Sorted order has a prefix before those inside it.
	for _, e := range ents {
		if int(e.bits) > depth+8 {
			continue
		}
		b := e.byteAt(depth)
		for i := b; i < b+1<<(depth+8-int(e.bits)); i++ {
			class[i] = t.classes.union(class[i], e.class)
		}
	}
	var values [256]uint32
	var own []prefix
	i := 0
	for b := range values {
		start := i
		for i < len(ents) && ents[i].byteAt(depth) == b {
			i++
		}
		own = ents[start:i]
		// The shorter ones of this byte come first: all longer ones follow.
		for len(own) > 0 && int(own[0].bits) <= depth+8 {
			own = own[1:]
		}
		values[b] = t.build(own, depth+8, class[b])
	}
	return t.addNode(n, &values)
}

// leaf is the kernel's value for a class.
func (t *trie) leaf(c classID) uint32 {
	v := uint32(c)
	if t.nodesAt != 0 && t.classes.has(c, t.nodesAt) {
		v |= ClassNode
	}
	return v
}

func (t *trie) addNode(n Node, values *[256]uint32) uint32 {
	var distinct [256]uint32
	count := 0
	for b, v := range values {
		if b == 0 || v != values[b-1] {
			n.Starts[b>>6] |= 1 << (b & 63)
			distinct[count] = v
			count++
		}
	}
	if count == 1 && n.NSkip == 0 {
		return values[0]
	}
	total := 0
	for w := range n.Before {
		total += bits.OnesCount64(n.Starts[w])
		n.Before[w] = uint8(min(total, 255))
	}
	if count <= TrieInline {
		n.Base = TrieInlined
		copy(n.Runs[:], distinct[:count])
	} else {
		n.Base = t.allocRuns(count)
		copy(t.runs[n.Base:], distinct[:count])
		t.changes.Runs = append(t.changes.Runs, Block{n.Base, uint32(count)})
	}
	index := t.allocNode()
	t.nodes[index] = n
	t.changes.Nodes = append(t.changes.Nodes, index)
	return TrieChild | index
}

func (t *trie) allocNode() uint32 {
	if n := len(t.freeNodes); n > 0 {
		i := t.freeNodes[n-1]
		t.freeNodes = t.freeNodes[:n-1]
		return i
	}
	t.nodes = append(t.nodes, Node{})
	return uint32(len(t.nodes) - 1)
}

func (t *trie) allocRuns(n int) uint32 {
	if free := t.freeRuns[n]; len(free) > 0 {
		i := free[len(free)-1]
		t.freeRuns[n] = free[:len(free)-1]
		return i
	}
	i := uint32(len(t.runs))
	t.runs = append(t.runs, make([]uint32, n)...)
	return i
}

// release frees the subtree that value leads to, after a grace period.
func (t *trie) release(value uint32) {
	if value&TrieChild == 0 {
		return
	}
	index := value &^ TrieChild
	n := &t.nodes[index]
	count := runCount(n)
	for r := range count {
		if n.Base == TrieInlined {
			t.release(n.Runs[r])
		} else {
			t.release(t.runs[n.Base+uint32(r)])
		}
	}
	if n.Base != TrieInlined {
		t.limbo = append(t.limbo, freed{n.Base, count})
	}
	t.limbo = append(t.limbo, freed{index, 0})
}

// reclaim makes what was freed available; the caller knows that no reader is left.
func (t *trie) reclaim() {
	for _, f := range t.limbo {
		if f.length == 0 {
			t.freeNodes = append(t.freeNodes, f.index)
		} else {
			t.freeRuns[f.length] = append(t.freeRuns[f.length], f.index)
		}
	}
	t.limbo = t.limbo[:0]
}

func runCount(n *Node) int {
	c := 0
	for _, w := range n.Starts {
		c += bits.OnesCount64(w)
	}
	return c
}

func runIndex(n *Node, b int) int {
	r := bits.OnesCount64(n.Starts[b>>6]&(^uint64(0)>>(63-b&63))) - 1
	if w := b >> 6; w > 0 {
		r += int(n.Before[w-1])
	}
	return r
}

// lookup walks the arrays as the kernel does.
func (t *trie) lookup(a netip.Addr) uint32 {
	hi, lo := addrBits(a)
	p := prefix{hi: hi, lo: lo}
	value := t.roots[uint32(familyOf(a))*65536+uint32(hi>>48)]
	for depth := 16; value&TrieChild != 0; depth += 8 {
		n := &t.nodes[value&^TrieChild]
		skip := uint64(0)
		for range n.NSkip {
			skip = skip<<8 | uint64(p.byteAt(depth))
			depth += 8
		}
		if skip != n.Skip {
			return n.Miss
		}
		r := runIndex(n, p.byteAt(depth))
		if n.Base == TrieInlined {
			value = n.Runs[r]
		} else {
			value = t.runs[n.Base+uint32(r)]
		}
	}
	return value
}

func sortedKeys[V any](m map[uint32]V) []uint32 {
	out := make([]uint32, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}
