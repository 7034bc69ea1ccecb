// Package attack tries the ways around egress enforcement that the catalogue
// lists (catalogue_test.go), on a lab, and judges on its wires.
//
// Flow of data:
//
//	catalogue -> attack (a row's frames, sockets and moves) -> try, once for each phase
//	try -> tokens -> Tap (every wire away from the pods, every node's stack) -> leaked or not
//	try -> drop reasons that must have been counted -> the agent's exact counters
//	ledger -> docs/attacks.md
//
// A lab goes through phases: agent absent; agent there, no policy; policy in
// force. Each attack is tried in one of the first two, where its packets must be
// seen, and in the last, where none may be. In each, a packet that policy
// allows must arrive on the same path in the same minute.
//
// The package holds tests only. They need root, and send nothing outside of
// namespaces of their own.
package attack
