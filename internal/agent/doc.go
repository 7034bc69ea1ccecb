// Package agent is the node daemon: it keeps the datapath in line with the
// manifests and the interfaces of the node, and answers the control socket.
//
// Flow of data:
//
//	manifests.Watcher -> policy.Compiler -> datapath.Apply
//	netlink, bindings -> interfaces -> datapath.Arm, Quarantine, Disarm
//	datapath events -> names -> flow.Record -> ring -> control socket
//
// One goroutine, the loop, owns everything but the record ring; the watcher, the
// netlink subscription, the event reader and HTTP requests send it functions.
//
// Invariants:
//
//	A1 Nothing in the kernel is changed before the manifests have been read once
//	   as a whole: a starting agent adopts, it does not sweep.
//	A2 An interface that lost its pod is quarantined until it is gone.
//	A3 A pod is reported enforced only after its interface was read back.
//	A4 The process may die at any instruction: what is pinned goes on.
//	A5 A number that the kernel keeps, of a rule or an incarnation, means one thing as
//	   long as it is there, whether the state directory could be written or not. What
//	   a number means may be forgotten: an incarnation of nobody known is renewed (I3).
//
// Layer 4.
package agent
