// Package packettest builds frames byte by byte, correct or deliberately wrong,
// for the tests of the readers, of the kernel program and of the whole node.
//
// Flow of data: layers, outermost first -> Build -> frame bytes.
//
//	f := packettest.Build(
//		packettest.Eth{Src: pod, Dst: gw},
//		packettest.IPv4{Src: a, Dst: b},
//		packettest.TCP{SrcPort: 4000, DstPort: 80, Flags: packettest.SYN},
//		packettest.NewToken("PKT-01"),
//	)
//
// Every length, checksum, ethertype and next-header field has the right value
// for what follows it, unless a test sets the field: such fields are pointers
// and nil means right (new(uint16(0xdead)) makes one). Layers nest without
// limit, so tunnels and ICMP errors are just more layers.
//
// Invariants:
//
//	B1  Build never fails: what is asked for is written, however wrong it is.
//	B2  A frame of layers without overrides is accepted by the Linux kernel.
//	B3  Nothing here is shared with internal/packet: the builder is a second
//	    opinion on the formats, not the same opinion twice.
//
// It imports the standard library only.
package packettest
