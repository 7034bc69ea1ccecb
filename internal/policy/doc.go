// Package policy is the language: what policies mean, independent of
// Kubernetes, of eBPF, of the clock and of I/O.
//
// Flow of data:
//
//	Snapshot -> Evaluate(snapshot, pod, direction, tuple) -> Decision   the meaning
//	Snapshot -> Compile -> Compiled{Rulesets, Sets}  -> datapath         the fast form
//	Changes  -> Compiler.Apply -> Delta              -> datapath         the same, in small steps
//	Compiled -> Lookup -> Decision                                      the fast form, read naively
//	Snapshot -> Explain -> Explanation                                  the way through tiers and rules
//	Snapshot -> Conflicts -> []Conflict                                 what authors should know
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
//	P5 What does not fit is denied and reported (ErrCapacity), never cut.
//	P6 A Compiler that has seen any sequence of Changes holds what Compile makes
//	   of the Snapshot they lead to, and the sum of its Deltas is that too.
//
// Package policytest makes the random inputs that hold P3, P6 and I10 to this.
//
// It is layer 1 and imports package packet and the standard library only.
package policy
