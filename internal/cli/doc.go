// Package cli is the command line postern, also installed as kubectl-postern.
//
// Flow of data:
//
//	arguments -> cobra -> control.Client (the agent of a node) -> tables, JSON
//	                   -> manifests.Load (files, offline)      -> explain, policy validate
//	                   -> lab, demo (Linux, as root)
//
// Invariants kept here:
//
//	C1 Text that comes from outside (names, labels, rule names, errors) reaches
//	   the terminal through clean or cleanJSON only: no control character, no
//	   change of writing direction.
//	C2 Colour and progress lines only on a terminal; NO_COLOR and TERM=dumb switch
//	   colour off. What a script reads is the same bytes as without a terminal.
//	C3 Results go to stdout, everything else to stderr.
//	C4 The exit code says what kind of end it was; see the constants Exit*.
//
// Layer 7, the topmost. It builds on every system and reaches neither eBPF nor a
// Kubernetes client.
package cli
