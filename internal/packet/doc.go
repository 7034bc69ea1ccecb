// Package packet holds the vocabulary of one packet: protocols, addresses, the
// tuple that a policy decides on, and a naive reader of frames.
//
// Flow of data: a frame's headers (bpf/parse.h in the kernel; Read, the second opinion
// on it) -> Tuple -> policy.Evaluate.
//
// This package is layer 0: it imports the standard library only, does no I/O,
// and does not allocate.
package packet
