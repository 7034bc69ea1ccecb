package mapstate

// The kernel's structures, laid out as in bpf/types.h; a test in package
// datapath compares them with the generated ones, field by field.

// Bits of trie values and rules, and limits. Source: bpf/types.h.
const (
	TrieChild = 0x80000000
	TrieIndex = 0x1fffffff
	TrieKind  = 0x60000000
	TrieDense = 0x00000000
	TrieLeaf  = 0x20000000
	TrieTree  = 0x40000000
	TrieSkip  = 0x60000000

	ClassNode = 0x40000000
	ClassMask = 0x3fffffff

	RuleForwarded = 0x80000000
	RuleDeferred  = 0x40000000
	RuleMask      = 0x3fffffff

	MaxCombos  = 8
	CombosMany = 0xff

	// MaxList bounds the entries of one list (LIST_STEPS of binary search).
	MaxList = 1 << 19

	// Roots is the number of first-level slots: IPv4, then IPv6, by their first 16 bits.
	Roots = 2 * 65536
)

// LineWords is the number of words in a Line.
const LineWords = 16

// Line is struct trie_line, a cache line of the trie: see bpf/lookup.h.
type Line [LineWords]uint32

// Places in a Line, by its kind. Source: bpf/types.h.
const (
	denseBefore = 8
	denseRuns   = 9

	leafSeps = 7 // values follow after one unused word
	leafVals = leafSeps + 1

	treeSeps   = 15
	treeLast   = 15
	treeLeaves = treeSeps + 1

	skipInfo   = 0
	skipMiss   = 1
	skipHi     = 2
	skipLo     = 4
	skipSep    = 6
	skipSeps   = 4
	skipVals   = 10
	skipBytes  = 0xff
	skipWindow = 0x100
	skipMax    = 13
)

// ListRef is a list of Len entries from Off; a cell holds it as Off<<24 | Len.
type ListRef struct{ Off, Len uint32 }

// Entry is struct entry: from Start (protocol<<16 | port) to the next entry's Start, Rule.
type Entry struct{ Start, Rule uint32 }

// ServiceKey is struct service_key. Addr is in network order, IPv4 as v4-mapped.
type ServiceKey struct {
	Addr  [16]byte
	Port  uint16
	Proto uint8
	// NodePort is 4 or 6 for any node's address of that family; Addr is then zero.
	NodePort uint8
	Pad      [4]uint8
}

// Combo is struct combo.
type Combo struct {
	Class uint32
	Port  uint16
	Pad   uint16
}

// Service is struct service.
type Service struct {
	ID      uint32
	NCombos uint8
	Pad     [3]uint8
	Combos  [MaxCombos]Combo
}
