package packettest

import (
	"encoding/binary"
	"hash/crc32"
)

const (
	protoICMP    = 1
	protoTCP     = 6
	protoUDP     = 17
	protoICMPv6  = 58
	protoSCTP    = 132
	protoUDPLite = 136
)

// TCP flags.
const (
	FIN = 1 << iota
	SYN
	RST
	PSH
	ACK
	URG
	ECE
	CWR
)

// TCP is a TCP header. Source: RFC 9293 section 3.1.
type TCP struct {
	SrcPort, DstPort uint16
	Seq, Ack         uint32
	Flags            uint8
	Reserved         uint8   // low 4 bits
	Window           *uint16 // nil: 64240
	Urgent           uint16
	Options          []byte // padded with zeros to a multiple of 4 bytes

	DataOffset *uint8  // nil: right; in units of 4 bytes
	Checksum   *uint16 // nil: right
}

func (h TCP) marshal(p pseudo, rest []Layer) []byte {
	opts := pad(h.Options, 4)
	b := make([]byte, 20+len(opts))
	binary.BigEndian.PutUint16(b, h.SrcPort)
	binary.BigEndian.PutUint16(b[2:], h.DstPort)
	binary.BigEndian.PutUint32(b[4:], h.Seq)
	binary.BigEndian.PutUint32(b[8:], h.Ack)
	b[12] = or(h.DataOffset, uint8(len(b)/4))<<4 | h.Reserved&0xf
	b[13] = h.Flags
	binary.BigEndian.PutUint16(b[14:], or(h.Window, 64240))
	binary.BigEndian.PutUint16(b[18:], h.Urgent)
	copy(b[20:], opts)
	b = append(b, marshalAll(p, rest)...)
	binary.BigEndian.PutUint16(b[16:], or(h.Checksum, checksum(p.sum(protoTCP, len(b)), b)))
	return b
}
func (TCP) etherType() uint16 { return 0 }
func (TCP) proto() int        { return protoTCP }

// UDP is a UDP header. Source: RFC 768.
type UDP struct {
	SrcPort, DstPort uint16
	Length           *uint16 // nil: right; in bytes
	Checksum         *uint16 // nil: right
}

func (h UDP) marshal(p pseudo, rest []Layer) []byte {
	b := make([]byte, 8)
	binary.BigEndian.PutUint16(b, h.SrcPort)
	binary.BigEndian.PutUint16(b[2:], h.DstPort)
	b = append(b, marshalAll(p, rest)...)
	binary.BigEndian.PutUint16(b[4:], or(h.Length, uint16(len(b))))
	sum := checksum(p.sum(protoUDP, len(b)), b)
	if sum == 0 {
		sum = 0xffff // 0 says that there is no checksum
	}
	binary.BigEndian.PutUint16(b[6:], or(h.Checksum, sum))
	return b
}
func (UDP) etherType() uint16 { return 0 }
func (UDP) proto() int        { return protoUDP }

// UDPLite is a UDP-Lite header. Source: RFC 3828.
type UDPLite struct {
	SrcPort, DstPort uint16
	Coverage         uint16  // in bytes; 0: everything
	Checksum         *uint16 // nil: right
}

func (h UDPLite) marshal(p pseudo, rest []Layer) []byte {
	b := make([]byte, 8)
	binary.BigEndian.PutUint16(b, h.SrcPort)
	binary.BigEndian.PutUint16(b[2:], h.DstPort)
	binary.BigEndian.PutUint16(b[4:], h.Coverage)
	b = append(b, marshalAll(p, rest)...)
	covered := b
	if n := int(h.Coverage); n >= 8 && n < len(b) {
		covered = b[:n]
	}
	sum := checksum(p.sum(protoUDPLite, len(b)), covered)
	if sum == 0 {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(b[6:], or(h.Checksum, sum))
	return b
}
func (UDPLite) etherType() uint16 { return 0 }
func (UDPLite) proto() int        { return protoUDPLite }

// SCTP is the SCTP common header; chunks follow as payload. Source: RFC 9260 section 3.1.
type SCTP struct {
	SrcPort, DstPort uint16
	Tag              uint32
	Checksum         *uint32 // nil: right (CRC-32C)
}

func (h SCTP) marshal(p pseudo, rest []Layer) []byte {
	b := make([]byte, 12)
	binary.BigEndian.PutUint16(b, h.SrcPort)
	binary.BigEndian.PutUint16(b[2:], h.DstPort)
	binary.BigEndian.PutUint32(b[4:], h.Tag)
	b = append(b, marshalAll(p, rest)...)
	// The CRC is written in little-endian order. Source: RFC 9260 appendix A.
	sum := crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli))
	if h.Checksum != nil {
		sum = *h.Checksum
	}
	binary.LittleEndian.PutUint32(b[8:], sum)
	return b
}
func (SCTP) etherType() uint16 { return 0 }
func (SCTP) proto() int        { return protoSCTP }

// ICMP types.
const (
	ICMPEchoReply       = 0
	ICMPUnreachable     = 3
	ICMPRedirect        = 5
	ICMPEchoRequest     = 8
	ICMPTimeExceeded    = 11
	ICMPParameterProb   = 12
	ICMPv6Unreachable   = 1
	ICMPv6PacketTooBig  = 2
	ICMPv6TimeExceeded  = 3
	ICMPv6ParameterProb = 4
	ICMPv6EchoRequest   = 128
	ICMPv6EchoReply     = 129

	NDRouterSolicitation    = 133
	NDRouterAdvertisement   = 134
	NDNeighborSolicitation  = 135
	NDNeighborAdvertisement = 136
	NDRedirect              = 137
)

// ICMP is an ICMP header of 8 bytes. For an error, ID and Seq are the unused
// half-words (Seq the next-hop MTU) and the layers of the packet in error follow.
// Source: RFC 792.
type ICMP struct {
	Type, Code uint8
	ID, Seq    uint16
	Checksum   *uint16 // nil: right
}

func (h ICMP) marshal(p pseudo, rest []Layer) []byte {
	b := []byte{h.Type, h.Code, 0, 0}
	b = binary.BigEndian.AppendUint16(b, h.ID)
	b = binary.BigEndian.AppendUint16(b, h.Seq)
	b = append(b, marshalAll(p, rest)...)
	binary.BigEndian.PutUint16(b[2:], or(h.Checksum, checksum(0, b)))
	return b
}
func (ICMP) etherType() uint16 { return 0 }
func (ICMP) proto() int        { return protoICMP }

// ICMPv6 is an ICMPv6 header of 8 bytes. For packet too big, ID and Seq are the
// halves of the MTU. Source: RFC 4443.
type ICMPv6 struct {
	Type, Code uint8
	ID, Seq    uint16
	Checksum   *uint16 // nil: right
}

func (h ICMPv6) marshal(p pseudo, rest []Layer) []byte {
	b := []byte{h.Type, h.Code, 0, 0}
	b = binary.BigEndian.AppendUint16(b, h.ID)
	b = binary.BigEndian.AppendUint16(b, h.Seq)
	b = append(b, marshalAll(p, rest)...)
	binary.BigEndian.PutUint16(b[2:], or(h.Checksum, checksum(p.sum(protoICMPv6, len(b)), b)))
	return b
}
func (ICMPv6) etherType() uint16 { return 0 }
func (ICMPv6) proto() int        { return protoICMPv6 }

// sum is the unfolded sum of the pseudo header. Source: RFC 793 section 3.1, RFC 8200 section 8.1.
func (p pseudo) sum(proto uint8, length int) uint32 {
	var b []byte
	if p.src.Is4() || p.dst.Is4() {
		b = append(addr4(p.src), addr4(p.dst)...)
	} else {
		b = append(addr16(p.src), addr16(p.dst)...)
	}
	return add(uint32(proto)+uint32(length>>16)+uint32(length&0xffff), b)
}

// add adds b as big-endian 16-bit words to sum; frames are far too short to overflow it.
func add(sum uint32, b []byte) uint32 {
	for ; len(b) >= 2; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	return sum
}

// checksum is the internet checksum of b, whose checksum field must be zero. Source: RFC 1071.
func checksum(sum uint32, b []byte) uint16 {
	sum = add(sum, b)
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
