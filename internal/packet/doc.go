// Package packet holds the vocabulary of one packet: protocols, addresses and
// the tuple that a policy decides on, and readers that turn a frame's bytes
// into them.
//
// Flow of data: frame bytes -> Parse -> Frame -> Tuple -> policy.Evaluate.
//
// The readers are the reference for bpf/parse.h: both are driven with the same
// frames in tests and must agree on every one (I10).
//
// This package is layer 0: it imports the standard library only, does no I/O,
// and does not allocate on the paths a packet takes.
package packet
