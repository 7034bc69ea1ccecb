// Package kube translates Kubernetes objects into the policy language.
//
// Flow of data:
//
//	YAML node -> Decode -> typed object + Findings   strict: every field is known or reported
//	typed object -> World.Set                        translated once per change
//	World -> Flush -> policy.Changes                 what changed since the last Flush
//	World -> Snapshot -> policy.Snapshot             everything
//	World -> Findings                                what is wrong, with field paths
//
// Objects may also come from an API server's informers: Set takes them as they are.
//
// Invariants kept here:
//
//	K1 A mistake in an object is closed where it lies, and closing is never left
//	   to the code that finds it: every error Finding marks the rule, the subject
//	   or the direction that its path points into, and close acts on the marks.
//	   Nothing is closed without a Finding, nothing reported as an error stays open.
//	K2 A closed rule keeps its index. A closed Accept matches nothing; a closed Deny
//	   or Pass denies everything, and so does a rule or a list of rules that may have
//	   swallowed another one. A subject that is not understood selects all of its
//	   scope; a field of spec that is not known leaves the subject as written.
//	K3 A pod, namespace, node or Service that is not understood is closed as well:
//	   the pod is cut off, the addresses can't be reached. See Lost for addresses
//	   that can't be read.
//	K4 Addresses are canonical from here on: masked, unmapped, without zones.
//	K5 The result depends on the objects only, not on the order of Set, but for K6.
//	K6 A namespace's end opens nothing. While a Namespace is being deleted, or is
//	   gone, and pods of it are there, its labels and the deletion of its policies
//	   and DestinationSets are held back; changes are not, nor is what was deleted
//	   before. A pod does not hold what its namespace lost before the first Flush:
//	   if its end had begun by then, the pod is cut off.
//
// The package is layer 3. It does no I/O, has no clock and builds on every system.
package kube
