// Package packet holds the vocabulary of one packet: protocols, addresses and
// the tuple that a policy decides on.
//
// Flow of data: a frame's headers (bpf/parse.h in the kernel) -> Tuple -> policy.Evaluate.
//
// This package is layer 0: it imports the standard library only, does no I/O,
// and does not allocate.
package packet
