package mapstate

import (
	"encoding/binary"
	"slices"

	"github.com/postern-dev/postern/internal/policy"
)

// atomID is an interned policy.SetID.
type atomID uint32

// classID is an interned set of atoms. 0 is the empty set.
type classID uint32

// classes interns sets of atoms. IDs are never reused within one World.
type classes struct {
	atoms   map[policy.SetID]atomID
	sets    [][]atomID // by classID; sorted
	ids     map[string]classID
	unions  map[[2]classID]classID
	ofAtom  map[atomID][]classID // classes that hold the atom
	created []classID            // since the last take
	last    struct {             // what internCopy said last of one atom
		atom  atomID
		class classID
	}
}

func newClasses() *classes {
	return &classes{
		atoms:  map[policy.SetID]atomID{},
		sets:   [][]atomID{nil},
		ids:    map[string]classID{"": 0},
		unions: map[[2]classID]classID{},
		ofAtom: map[atomID][]classID{},
	}
}

func (c *classes) atom(id policy.SetID) atomID {
	a, ok := c.atoms[id]
	if !ok {
		a = atomID(len(c.atoms) + 1)
		c.atoms[id] = a
	}
	return a
}

func key(set []atomID) string {
	b := make([]byte, 0, 4*len(set))
	for _, a := range set {
		b = binary.LittleEndian.AppendUint32(b, uint32(a))
	}
	return string(b)
}

// intern returns the class of a sorted set without duplicates; it keeps the slice.
func (c *classes) intern(set []atomID) classID {
	k := key(set)
	if id, ok := c.ids[k]; ok {
		return id
	}
	id := classID(len(c.sets))
	c.sets = append(c.sets, set)
	c.ids[k] = id
	for _, a := range set {
		c.ofAtom[a] = append(c.ofAtom[a], id)
	}
	c.created = append(c.created, id)
	return id
}

// internCopy is intern for a slice that the caller goes on to use.
func (c *classes) internCopy(set []atomID) classID {
	if len(set) == 1 && c.last.atom == set[0] && c.last.class != 0 {
		return c.last.class
	}
	id, ok := c.ids[key(set)]
	if !ok {
		id = c.intern(slices.Clone(set))
	}
	if len(set) == 1 {
		c.last.atom, c.last.class = set[0], id
	}
	return id
}

func (c *classes) union(a, b classID) classID {
	if a == b || b == 0 {
		return a
	}
	if a == 0 {
		return b
	}
	if id, ok := c.unions[[2]classID{a, b}]; ok {
		return id
	}
	set := slices.Concat(c.sets[a], c.sets[b])
	slices.Sort(set)
	id := c.intern(slices.Compact(set))
	c.unions[[2]classID{a, b}] = id
	return id
}

func (c *classes) has(id classID, a atomID) bool {
	_, found := slices.BinarySearch(c.sets[id], a)
	return found
}
