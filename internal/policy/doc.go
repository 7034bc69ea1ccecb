// Package policy is the language: what policies mean, independent of
// Kubernetes, of eBPF, of the clock and of I/O.
//
// Flow of data:
//
//	Snapshot -> Evaluate(snapshot, pod, direction, tuple) -> Decision   the meaning
//	Snapshot -> Compile -> Compiled{Rulesets, Sets}  -> datapath         the fast form
//	Snapshot -> Explain -> Explanation                                  the way through tiers and rules
//
// Evaluate is a naive walk of the uncompiled model and the oracle of the
// product. Compile shares no matching helper with it, so that a mistake in one
// shows as a difference (I10).
//
// Invariants kept here:
//
//	P1 The zero value of every type permits nothing more: a Rule without peers
//	   matches nothing; matching everything has to be said (AnyPeer, AnyPort).
//	P2 Every Decision names its tier, policy and rule.
//	P3 Output depends on the Snapshot only, never on the order in which its
//	   parts arrived nor on Go's map order.
//	P4 What could not be understood is closed: an invalid Accept matches
//	   nothing, an invalid Deny or Pass denies everything its subject sends.
//
// It is layer 1 and imports package packet and the standard library only.
package policy
