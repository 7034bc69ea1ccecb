// Package packet holds the vocabulary of one packet: protocols, addresses, the
// tuple that a policy decides on, and a naive reader of frames. It reads what names
// are learnt from too: DNS messages and the hellos of TLS clients.
//
// Flow of data: a frame's headers (bpf/parse.h in the kernel; Read, the second opinion
// on it) -> Tuple -> policy.Evaluate. A DNS message -> ReadDNS -> Name and addresses;
// a stream's first octets -> ReadClientHello -> Name.
//
// This package is layer 0: it imports the standard library only, does no I/O,
// and does not allocate.
package packet
