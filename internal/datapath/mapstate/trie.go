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

// trie is the address -> class structure: the kernel's array of lines and the
// sorted prefixes it is built from. The first Roots words are the root slots.
type trie struct {
	classes *classes
	nodesAt atomID // class values with this atom carry ClassNode

	prefixes [2][]prefix  // by family, sorted
	short    [2][]classID // per root slot: classes of prefixes of 16 bits or fewer
	lines    []Line
	used     int // lines that are in use

	free    map[int][]uint32 // first lines of free blocks, by length
	limbo   []Block          // freed, but the kernel may still look (M3)
	changes *Changes
}

const rootLines = Roots / LineWords

func newTrie(c *classes, nodesAt atomID, ch *Changes) *trie {
	t := &trie{classes: c, nodesAt: nodesAt, lines: make([]Line, rootLines), free: map[int][]uint32{}, changes: ch, used: rootLines}
	for f := range t.short {
		t.short[f] = make([]classID, 65536)
	}
	return t
}

// word returns the word at index i: of line i/LineWords.
func (t *trie) word(i uint32) *uint32 { return &t.lines[i/LineWords][i%LineWords] }

func rootWord(family int, slot uint32) uint32 { return uint32(family)*65536 + slot }

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

// smallSlot is the number of prefixes up to which a root slot is built anew as a whole.
const smallSlot = 512

func (t *trie) rebuild(family int, edits []prefix) {
	changed := map[uint32][]prefix{} // root slot -> edits of more than 16 bits
	for i := 0; i < len(edits); {
		slot, first := uint32(edits[i].hi>>48), i
		for i < len(edits) && uint32(edits[i].hi>>48) == slot {
			i++
		}
		changed[slot] = edits[first:i]
	}
	whole := map[uint32]struct{}{}
	if slices.ContainsFunc(edits, func(e prefix) bool { return e.bits <= 16 }) {
		for slot, class := range t.shortClasses(family) {
			if t.short[family][slot] != class {
				t.short[family][slot] = class
				changed[uint32(slot)] = nil
				whole[uint32(slot)] = struct{}{}
			}
		}
	}
	for _, slot := range sortedKeys(changed) {
		own := t.within(family, prefix{hi: uint64(slot) << 48}, 16)
		root := rootWord(family, slot)
		_, all := whole[slot]
		if all || len(own) <= smallSlot || 4*len(changed[slot]) > len(own) || *t.word(root)&TrieChild == 0 {
			t.point(root, t.build(own, 16, t.short[family][slot]))
			continue
		}
		for _, e := range changed[slot] {
			if e.bits > 16 {
				t.rebuildBelow(family, e)
			}
		}
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

// point makes a word lead to value, with one store, and frees what it led to.
func (t *trie) point(word, value uint32) {
	w := t.word(word)
	if *w == value {
		return
	}
	t.release(*w)
	*w = value
	t.changes.Pointers = append(t.changes.Pointers, word)
}

// rebuildBelow finds the deepest pointer on e's path whose range holds e and
// rebuilds the subtree it leads to.
func (t *trie) rebuildBelow(family int, e prefix) {
	word, depth := rootWord(family, uint32(e.hi>>48)), 16
	for {
		next, at, ok := t.step(*t.word(word), e, depth)
		if !ok || int(e.bits) <= at || *t.word(next)&TrieChild == 0 {
			break
		}
		word, depth = next, at
	}
	t.point(word, t.build(t.within(family, e, depth), depth, t.inherited(family, e, depth)))
}

// step follows p from a value at depth bits: the word by which it goes on, and
// the bits that are behind it then. ok is false where p leaves the path: then
// the word holds the class.
func (t *trie) step(value uint32, p prefix, depth int) (word uint32, at int, ok bool) {
	base := value & TrieIndex * LineWords
	line := &t.lines[value&TrieIndex]
	switch value & TrieKind {
	case TrieDense:
		return base + denseRuns + uint32(denseRun(line, p.byteAt(depth))), depth + 8, true
	case TrieLeaf:
		return base + leafSeps + 1 + count(line[:leafSeps], p.window(depth)), depth + 32, true
	case TrieTree:
		i := min(count(line[:treeSeps], p.window(depth)), line[treeLast])
		leaf := &t.lines[value&TrieIndex+1+i]
		return base + (1+i)*LineWords + leafSeps + 1 + count(leaf[:leafSeps], p.window(depth)), depth + 32, true
	}
	n := int(line[skipInfo] & skipBytes)
	hi, lo := p.from(depth)
	if hi, lo = firstBytes(hi, lo, n); hi != uint64(line[skipHi])|uint64(line[skipHi+1])<<32 || lo != uint64(line[skipLo])|uint64(line[skipLo+1])<<32 {
		return base + skipMiss, depth, false
	}
	depth += 8 * n
	if line[skipInfo]&skipWindow == 0 {
		return base + skipVals, depth, true
	}
	return base + skipVals + count(line[skipSep:skipSep+skipSeps], p.window(depth)), depth + 32, true
}

// count returns how many of the sorted seps are at most key.
func count(seps []uint32, key uint32) uint32 {
	n := uint32(0)
	for _, s := range seps {
		if s <= key {
			n++
		}
	}
	return n
}

// from returns the address bits from depth on, left-aligned.
func (p prefix) from(depth int) (hi, lo uint64) {
	switch {
	case depth == 0:
		return p.hi, p.lo
	case depth < 64:
		return p.hi<<depth | p.lo>>(64-depth), p.lo << depth
	case depth < 128:
		return p.lo << (depth - 64), 0
	}
	return 0, 0
}

// window returns the 32 address bits from depth on.
func (p prefix) window(depth int) uint32 {
	hi, _ := p.from(depth)
	return uint32(hi >> 32)
}

// firstBytes cuts left-aligned bits to n bytes, 0 to 15.
func firstBytes(hi, lo uint64, n int) (uint64, uint64) {
	if n <= 8 {
		return hi &^ (^uint64(0) >> (8 * n)), 0
	}
	return hi, lo &^ (^uint64(0) >> (8*n - 64))
}

// build makes the subtree for the bits from depth on and returns the value
// that leads to it. ents are the prefixes longer than depth in its range.
func (t *trie) build(ents []prefix, depth int, inherited classID) uint32 {
	if len(ents) == 0 {
		return t.leaf(inherited)
	}
	for _, e := range ents {
		if int(e.bits) > depth+32 {
			if n := sharedBytes(ents, depth); n > 0 {
				return t.addSkip(ents, depth, n, inherited)
			}
			break
		}
	}
	spans := t.spans(ents, depth, inherited, leafVals*treeLeaves)
	switch {
	case spans == nil:
		return t.addDense(ents, depth, inherited)
	case len(spans) == 1 && spans[0].first == spans[0].end:
		return t.leaf(spans[0].class)
	case len(spans) <= leafVals:
		index := t.alloc(1)
		t.fillLeaf(index, t.values(ents, depth, spans), spans)
		return TrieChild | TrieLeaf | index
	}
	values := t.values(ents, depth, spans)
	leaves := (len(spans) + leafVals - 1) / leafVals
	index := t.alloc(1 + leaves)
	for i := range leaves {
		from, to := i*leafVals, min((i+1)*leafVals, len(spans))
		t.fillLeaf(index+1+uint32(i), values[from:to], spans[from:to])
	}
	top := &t.lines[index]
	for i := range treeSeps {
		top[i] = ^uint32(0)
		if i+1 < leaves {
			top[i] = spans[(i+1)*leafVals].start
		}
	}
	top[treeLast] = uint32(leaves - 1)
	return TrieChild | TrieTree | index
}

// sharedBytes returns how many bytes from depth on all prefixes share before any of them ends.
func sharedBytes(ents []prefix, depth int) int {
	n := 0
	for ; n < skipMax; n++ {
		b := ents[0].byteAt(depth + 8*n)
		for _, e := range ents {
			if int(e.bits) <= depth+8*n+8 || e.byteAt(depth+8*n) != b {
				return n
			}
		}
	}
	return n
}

// span is a range of window values from start to the next one's: of one class,
// or one value below which ents[first:end] lie and which has the class before them.
type span32 struct {
	start      uint32
	class      classID
	first, end int
}

// spans cuts the 32 bits from depth on into ranges; nil if there are more than most.
func (t *trie) spans(ents []prefix, depth int, inherited classID, most int) []span32 {
	type open struct {
		end   uint64
		class classID
	}
	stack := []open{{1 << 32, inherited}}
	out := make([]span32, 0, min(2*len(ents)+1, most+2))
	out = append(out, span32{class: inherited})
	emit := func(at uint64, class classID) {
		if at >= 1<<32 {
			return
		}
		last := &out[len(out)-1]
		if uint64(last.start) == at && last.first == last.end {
			last.class = class
			if n := len(out); n > 1 && out[n-2].first == out[n-2].end && out[n-2].class == class {
				out = out[:n-1]
			}
			return
		}
		if last.first != last.end || last.class != class {
			out = append(out, span32{start: uint32(at), class: class})
		}
	}
	closeUntil := func(at uint64) {
		for len(stack) > 1 && stack[len(stack)-1].end <= at {
			end := stack[len(stack)-1].end
			stack = stack[:len(stack)-1]
			emit(end, stack[len(stack)-1].class)
		}
	}
	for i := 0; i < len(ents); {
		e := ents[i]
		start := uint64(e.window(depth))
		closeUntil(start)
		outer := stack[len(stack)-1].class
		if int(e.bits) <= depth+32 {
			class := t.classes.union(outer, e.class)
			stack = append(stack, open{start + 1<<(depth+32-int(e.bits)), class})
			emit(start, class)
			i++
		} else {
			first := i
			for i < len(ents) && uint64(ents[i].window(depth)) == start {
				i++
			}
			if last := &out[len(out)-1]; uint64(last.start) == start {
				*last = span32{uint32(start), outer, first, i}
			} else {
				out = append(out, span32{uint32(start), outer, first, i})
			}
			emit(start+1, outer)
		}
		if len(out) > most+1 {
			return nil
		}
	}
	closeUntil(1 << 32)
	if len(out) > most {
		return nil
	}
	return out
}

// values returns the kernel's values of spans, building what lies below them.
func (t *trie) values(ents []prefix, depth int, spans []span32) []uint32 {
	out := make([]uint32, len(spans))
	for i, s := range spans {
		if s.first == s.end {
			out[i] = t.leaf(s.class)
		} else {
			out[i] = t.build(ents[s.first:s.end], depth+32, s.class)
		}
	}
	return out
}

// fillLeaf writes up to leafVals spans into a line: what is unused repeats the last.
func (t *trie) fillLeaf(index uint32, values []uint32, spans []span32) {
	var line Line
	fillSpans(line[:leafSeps], line[leafSeps+1:], values, spans)
	t.lines[index] = line
}

func fillSpans(seps, vals, values []uint32, spans []span32) {
	for i := range seps {
		seps[i] = ^uint32(0)
		if i+1 < len(spans) {
			seps[i] = spans[i+1].start
		}
	}
	for i := range vals {
		vals[i] = values[min(i, len(values)-1)]
	}
}

func (t *trie) addSkip(ents []prefix, depth, n int, inherited classID) uint32 {
	var line Line
	line[skipInfo] = uint32(n)
	line[skipMiss] = t.leaf(inherited)
	hi, lo := ents[0].from(depth)
	hi, lo = firstBytes(hi, lo, n)
	line[skipHi], line[skipHi+1] = uint32(hi), uint32(hi>>32)
	line[skipLo], line[skipLo+1] = uint32(lo), uint32(lo>>32)
	depth += 8 * n
	if spans := t.spans(ents, depth, inherited, skipSeps+1); spans != nil {
		line[skipInfo] |= skipWindow
		fillSpans(line[skipSep:skipSep+skipSeps], line[skipVals:skipVals+skipSeps+1], t.values(ents, depth, spans), spans)
	} else {
		line[skipVals] = t.build(ents, depth, inherited)
	}
	index := t.alloc(1)
	t.lines[index] = line
	return TrieChild | TrieSkip | index
}

func (t *trie) addDense(ents []prefix, depth int, inherited classID) uint32 {
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
	var starts [4]uint64
	runs := make([]uint32, 0, 256)
	i, last := 0, uint32(0)
	for b := range 256 {
		start := i
		for i < len(ents) && ents[i].byteAt(depth) == b {
			i++
		}
		own := ents[start:i]
		// The shorter ones of this byte come first: all longer ones follow.
		for len(own) > 0 && int(own[0].bits) <= depth+8 {
			own = own[1:]
		}
		v := t.build(own, depth+8, class[b])
		if b == 0 || v != last {
			starts[b>>6] |= 1 << (b & 63)
			runs = append(runs, v)
		}
		last = v
	}
	index := t.alloc(denseLines(len(runs)))
	line := &t.lines[index]
	before := uint32(0)
	total := 0
	for w, s := range starts {
		line[2*w], line[2*w+1] = uint32(s), uint32(s>>32)
		total += bits.OnesCount64(s)
		if w < 3 {
			before |= uint32(total) << (8 * w) // at most 192
		}
	}
	line[denseBefore] = before
	for i, v := range runs {
		*t.word(index*LineWords + denseRuns + uint32(i)) = v
	}
	return TrieChild | TrieDense | index
}

// leaf is the kernel's value for a class.
func (t *trie) leaf(c classID) uint32 {
	v := uint32(c)
	if t.nodesAt != 0 && t.classes.has(c, t.nodesAt) {
		v |= ClassNode
	}
	return v
}

// alloc returns the first of n lines.
func (t *trie) alloc(n int) uint32 {
	t.used += n
	index := uint32(len(t.lines))
	if free := t.free[n]; len(free) > 0 {
		index = free[len(free)-1]
		t.free[n] = free[:len(free)-1]
	} else {
		for range n {
			t.lines = append(t.lines, Line{})
		}
	}
	t.changes.Lines = append(t.changes.Lines, Block{index, uint32(n)})
	return index
}

// release frees the subtree that value leads to, after a grace period.
func (t *trie) release(value uint32) {
	if value&TrieChild == 0 {
		return
	}
	index := value & TrieIndex
	line := t.lines[index]
	n := 1
	switch value & TrieKind {
	case TrieDense:
		runs := 0
		for _, w := range line[:denseBefore] {
			runs += bits.OnesCount32(w)
		}
		n = denseLines(runs)
		for r := range runs {
			t.release(*t.word(index*LineWords + denseRuns + uint32(r)))
		}
	case TrieLeaf:
		t.releaseAll(line[leafSeps+1:])
	case TrieTree:
		n = 2 + int(line[treeLast])
		for i := 1; i < n; i++ {
			leaf := t.lines[index+uint32(i)]
			t.releaseAll(leaf[leafSeps+1:])
		}
	case TrieSkip:
		if line[skipInfo]&skipWindow != 0 {
			t.releaseAll(line[skipVals : skipVals+skipSeps+1])
		} else {
			t.release(line[skipVals])
		}
	}
	t.used -= n
	t.limbo = append(t.limbo, Block{index, uint32(n)})
}

// releaseAll releases values of which the last may be repeated.
func (t *trie) releaseAll(values []uint32) {
	for i, v := range values {
		if i == 0 || v != values[i-1] { //nolint:gosec // i-1 is in range where i is
			t.release(v)
		}
	}
}

// reclaim makes what was freed available; the caller knows that no reader is left.
func (t *trie) reclaim() {
	for _, b := range t.limbo {
		t.free[int(b.Len)] = append(t.free[int(b.Len)], b.Off)
	}
	t.limbo = t.limbo[:0]
}

func denseLines(runs int) int { return (denseRuns + runs + LineWords - 1) / LineWords }

func denseRun(line *Line, b int) int {
	w := b >> 6
	starts := uint64(line[2*w]) | uint64(line[2*w+1])<<32
	r := bits.OnesCount64(starts&(^uint64(0)>>(63-b&63))) - 1
	if w > 0 {
		r += int(line[denseBefore] >> (8 * (w - 1)) & 0xff)
	}
	return r
}

// lookup walks the lines as the kernel does.
func (t *trie) lookup(a netip.Addr) uint32 {
	hi, lo := addrBits(a)
	p := prefix{hi: hi, lo: lo}
	value, depth := *t.word(rootWord(familyOf(a), uint32(hi>>48))), 16
	for value&TrieChild != 0 {
		word, at, _ := t.step(value, p, depth)
		value, depth = *t.word(word), at
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
