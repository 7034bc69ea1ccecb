package mapstate

import "slices"

// A page holds the cells of 64 classes. Source: bpf/types.h CELL_PAGE_BITS.
const (
	pageSize    = 64
	cellLenBits = 24
)

// cells is the array of directories and pages. Directories all have a cell for
// each page of classCap classes, so the kernel needs no bound of its own (M5).
type cells struct {
	data     []uint64
	classCap int // multiple of pageSize
	free     map[int][]uint32
	limbo    []Block
}

func newCells() *cells {
	// Cell 0 is never used: directory 0 is no directory.
	return &cells{data: make([]uint64, 1), classCap: 16 * pageSize, free: map[int][]uint32{}}
}

func (c *cells) dirSize() int { return c.classCap / pageSize }

func (c *cells) alloc(n int) uint32 {
	if free := c.free[n]; len(free) > 0 {
		off := free[len(free)-1]
		c.free[n] = free[:len(free)-1]
		return off
	}
	off := uint32(len(c.data))
	c.data = append(c.data, make([]uint64, n)...)
	return off
}

func (c *cells) release(off uint32, n int) { c.limbo = append(c.limbo, Block{off, uint32(n)}) }

func (c *cells) reclaim() {
	for _, b := range c.limbo {
		c.free[int(b.Len)] = append(c.free[int(b.Len)], b.Off)
	}
	c.limbo = c.limbo[:0]
}

// table is one ruleset's directory and pages.
type table struct {
	dir      uint32
	fallback uint32   // page of nothing but the default list
	pages    []uint32 // by class / pageSize
}

func cellOf(r ListRef) uint64 { return uint64(r.Off)<<cellLenBits | uint64(r.Len) }

// newTable makes a table in which every class has the default list.
func (c *cells) newTable(def ListRef, ch *Changes) *table {
	t := &table{dir: c.alloc(c.dirSize()), fallback: c.alloc(pageSize)}
	for i := range uint32(pageSize) {
		c.data[t.fallback+i] = cellOf(def)
	}
	t.pages = slices.Repeat([]uint32{t.fallback}, c.dirSize())
	for i := range uint32(len(t.pages)) {
		c.data[t.dir+i] = uint64(t.fallback)
	}
	ch.Cells = append(ch.Cells, Block{t.fallback, pageSize}, Block{t.dir, uint32(c.dirSize())})
	return t
}

// set gives a class that no address has yet its list (M1).
func (c *cells) set(t *table, class classID, ref ListRef, ch *Changes) {
	page, in := uint32(class)/pageSize, uint32(class)%pageSize
	if t.pages[page] == t.fallback {
		own := c.alloc(pageSize)
		copy(c.data[own:own+pageSize], c.data[t.fallback:t.fallback+pageSize])
		t.pages[page] = own
		c.data[own+in] = cellOf(ref)
		c.data[t.dir+page] = uint64(own)
		ch.Cells = append(ch.Cells, Block{own, pageSize}, Block{t.dir + page, 1})
		return
	}
	at := t.pages[page] + in
	c.data[at] = cellOf(ref)
	ch.Cells = append(ch.Cells, Block{at, 1})
}

func (c *cells) drop(t *table) {
	c.release(t.dir, len(t.pages))
	for _, p := range t.pages {
		if p != t.fallback {
			c.release(p, pageSize)
		}
	}
	c.release(t.fallback, pageSize)
}

// lookup walks as the kernel does; 0 if dir is 0.
func (c *cells) lookup(dir, class uint32) ListRef {
	if dir == 0 || int(class) >= c.classCap {
		return ListRef{}
	}
	v := c.data[uint32(c.data[dir+class/pageSize])+class%pageSize]
	return ListRef{Off: uint32(v >> cellLenBits), Len: uint32(v & (1<<cellLenBits - 1))}
}
