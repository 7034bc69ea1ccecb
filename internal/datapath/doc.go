// Package datapath makes the kernel enforce what mapstate says: it loads and
// attaches the programs, writes the maps, and reads back what holds.
//
// Flow of data:
//
//	policy.Delta -> mapstate.World -> Apply -> kernel maps -> packets
//	kernel -> ring buffer -> Events -> flow.Event
//
// Everything is pinned below one directory of a bpffs, so that enforcement does
// not depend on the process: a new process adopts what is there (Open), builds a
// fresh world beside the old one, moves the endpoints over one by one with a
// single store each, and only then frees the old world.
//
// Invariants:
//
//	D1 An interface is in the nftables catch-all before its program is attached,
//	   and leaves it after the program is detached, so a gap drops (I5).
//	D2 An endpoint's entry is written as a whole to the copy that is not in use,
//	   then made current by one 32-bit store (no packet sees a mixture).
//	D3 Nothing is removed or reused before a grace period has passed since it
//	   was last reachable.
//	D4 The revision is bumped last: a flow with the new revision was judged by
//	   the new state.
//	D5 Enforced means read back: link, program, map contents and catch-all are
//	   as wanted (Verify).
//
// Layer 2. It and internal/datapath/bpf are the only importers of cilium/ebpf.
package datapath
