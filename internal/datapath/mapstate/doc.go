// Package mapstate is the exact contents of a world's kernel maps as plain Go
// values: what datapath writes and what tests compare and print.
//
// Flow of data:
//
//	policy.Ruleset, policy.SetDelta, policy.Service
//	   -> prefixes with atoms -> trie (address -> class)
//	   -> (ruleset, class) -> list of intervals (port -> rule)
//	   -> Changes: what to write, in an order that is safe at each step
//
// An atom is one policy.SetID. A class is a set of atoms: all addresses that
// are in exactly the same sets share one. Class 0 is the address in no set.
//
// Invariants:
//
//	M1 A class is in the tables of every ruleset it matters to before an address
//	   gets it, and a ruleset is in the tables of every class before an endpoint
//	   names it.
//	M2 Lines of the trie are copied on write: the kernel sees an old or a new subtree.
//	M3 What is freed is reused only after Freed is called, that is after a
//	   grace period.
//	M5 Every directory has a cell for every class of the world.
//	M4 Lookup on a World gives what the kernel gives.
//
// Layer 2; pure: it must not import cilium/ebpf, and does no I/O.
package mapstate
