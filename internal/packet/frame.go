package packet

import (
	"encoding/binary"
	"net/netip"
)

// EtherType is what an Ethernet frame says that it carries. Source: IANA ieee-802-numbers.
type EtherType uint16

// The ethertypes that the reader treats by name.
const (
	EtherTypeIPv4  EtherType = 0x0800
	EtherTypeARP   EtherType = 0x0806
	EtherTypeVLAN  EtherType = 0x8100 // IEEE 802.1Q
	EtherTypeIPv6  EtherType = 0x86dd
	EtherTypeQinQ  EtherType = 0x88a8 // IEEE 802.1ad
	EtherTypeQinQ1 EtherType = 0x9100 // before 802.1ad
)

// Fault is why a frame is not understood: whatever is not fully understood has one.
type Fault uint8

// Faults, in the order in which a frame's headers come.
const (
	FaultNone      Fault = iota
	FaultVLAN            // a tag hides what will be acted on
	FaultEtherType       // not IPv4, IPv6 or ARP
	FaultMalformed       // headers contradict themselves or the frame's length
	FaultFragment        // a fragment too small, too far or not in steps of 8 bytes
	FaultIPOptions       // IPv4 options
	FaultIPv6Ext         // an extension header that is not permitted, or too many
	FaultTCPFlags        // flags that no connection has
)

// String returns the fault's word, the same as that of the datapath's reason.
func (f Fault) String() string {
	switch f {
	case FaultNone:
		return "none"
	case FaultVLAN:
		return "vlan"
	case FaultEtherType:
		return "ethertype"
	case FaultMalformed:
		return "malformed"
	case FaultFragment:
		return "fragment"
	case FaultIPOptions:
		return "ip-options"
	case FaultIPv6Ext:
		return "ipv6-extension"
	case FaultTCPFlags:
		return "tcp-flags"
	}
	return "unknown"
}

// TCP flags. Source: RFC 9293 section 3.1.
const (
	TCPFin = 1 << iota
	TCPSyn
	TCPRst
	TCPPsh
	TCPAck
	TCPUrg
)

// FragmentPlace says which part of a datagram a packet carries.
type FragmentPlace uint8

// Places. The zero value is a whole datagram.
const (
	FragmentWhole FragmentPlace = iota // an IPv6 atomic fragment (RFC 6946) too
	FragmentFirst
	FragmentLater
)

// Fragment is what an IPv4 header or an IPv6 fragment header says.
type Fragment struct {
	Place          FragmentPlace
	More           bool   // not the last one
	ID             uint32 // 16 bits in IPv4
	Offset, Length int    // bytes of the datagram's payload
}

// Hints is what is known of a frame beside its bytes.
type Hints struct {
	// Segments is the number of packets that the frame will be cut into by
	// segmentation offload; 0 if it goes out as it is. Such a frame's length
	// fields may be 0 or those of a segment.
	Segments int
	// Options permits IPv4 options other than source routes.
	Options bool
}

// Packet is what a frame says. What follows a fault is not filled in; the
// addresses are, if the fixed IP header is all there, and are invalid otherwise.
type Packet struct {
	Fault     Fault
	EtherType EtherType
	// Tuple has the echo identifier in both ports, for ICMP and ICMPv6. A later fragment has no ports.
	Tuple    Tuple
	HopLimit uint8
	Fragment Fragment
	// Transport is the number of bytes from the frame's start to the header
	// after the last IP header, End to the end of the IP packet. What comes
	// behind is the link's padding.
	Transport, End int
	TCPFlags       uint8 // TCPFin to TCPUrg
	ICMPType       uint8
	// Neighbour is set for neighbour discovery (RFC 4861) and multicast listener discovery (RFC 2710, RFC 3810).
	Neighbour bool
	// ICMPError is set for a message about another packet; HasInner if that
	// packet's tuple could be read, as it was when it was sent. InnerICMPType
	// says whether the inner echo is a request.
	ICMPError, HasInner bool
	Inner               Tuple
	InnerICMPType       uint8
}

const (
	ethernetHeader = 14
	ipv4Header     = 20
	ipv6Header     = 40

	// An ICMP error is not longer than this. Source: RFC 1812 section 4.3.2.3, RFC 4443 section 2.4(c).
	maxICMPError   = 576
	maxICMPv6Error = 1280

	// What a chain of IPv6 extension headers may be; RFC 8504 section 5.3 lets a node limit it.
	maxExtensions      = 8
	maxExtensionLength = 256
)

// Read reads an Ethernet frame from its first byte. It is the second opinion on
// bpf/parse.h: written from the RFCs, naive, and held against the kernel's
// program by a test in internal/datapath. It never allocates.
func Read(frame []byte, hints Hints) Packet {
	var p Packet
	if len(frame) < ethernetHeader {
		p.Fault = FaultMalformed
		return p
	}
	p.EtherType = EtherType(binary.BigEndian.Uint16(frame[12:]))
	switch p.EtherType {
	case EtherTypeVLAN, EtherTypeQinQ, EtherTypeQinQ1:
		p.Fault = FaultVLAN
	case EtherTypeIPv4:
		p.Fault = p.readIPv4(frame[ethernetHeader:], hints)
	case EtherTypeIPv6:
		p.Fault = p.readIPv6(frame[ethernetHeader:], hints)
	case EtherTypeARP:
	default:
		p.Fault = FaultEtherType
	}
	return p
}

// readIPv4 reads a packet and the link's padding. Source: RFC 791, RFC 1858.
func (p *Packet) readIPv4(b []byte, hints Hints) Fault {
	if len(b) < ipv4Header {
		return FaultMalformed
	}
	p.Tuple.Src = netip.AddrFrom4([4]byte(b[12:16]))
	p.Tuple.Dst = netip.AddrFrom4([4]byte(b[16:20]))
	p.Tuple.Protocol = Protocol(b[9])
	p.HopLimit = b[8]

	version, header := b[0]>>4, int(b[0]&0xf)*4
	total := int(binary.BigEndian.Uint16(b[2:]))
	if total == 0 && hints.Segments > 0 && p.Tuple.Protocol == ProtocolTCP {
		total = len(b) // big TCP: include/linux/ip.h, iph_totlen
	}
	if version != 4 || header < ipv4Header || total < header || total > len(b) {
		return FaultMalformed
	}
	options, payload := b[ipv4Header:header], b[header:total]
	p.Transport, p.End = ethernetHeader+header, ethernetHeader+total

	word := binary.BigEndian.Uint16(b[6:])
	more, offset := word&0x2000 != 0, int(word&0x1fff)*8
	if f := p.setFragment(uint32(binary.BigEndian.Uint16(b[4:])), offset, more, payload); f != FaultNone {
		return f
	}
	// A piece that begins within the transport header rewrites it. Source: RFC 3128.
	if offset == 8 {
		return FaultFragment
	}
	if len(options) > 0 && (!hints.Options || !optionsHarmless(options)) {
		return FaultIPOptions
	}
	if p.Fragment.Place == FragmentLater {
		return FaultNone
	}
	return p.readTransport(payload, hints)
}

// setFragment judges a fragment by its own: RFC 791 section 3.2, RFC 8200 section 4.5.
func (p *Packet) setFragment(id uint32, offset int, more bool, payload []byte) Fault {
	if offset == 0 && !more {
		return FaultNone
	}
	p.Fragment = Fragment{Place: FragmentFirst, More: more, ID: id, Offset: offset, Length: len(payload)}
	if offset > 0 {
		p.Fragment.Place = FragmentLater
	}
	if more && (len(payload) == 0 || len(payload)%8 != 0) {
		return FaultFragment
	}
	if offset+len(payload) > 65535 {
		return FaultFragment
	}
	return FaultNone
}

// optionsHarmless walks a list of options: none is a source route, none
// reaches past the header. Source: RFC 791 section 3.1, RFC 7126.
func optionsHarmless(b []byte) bool {
	for len(b) > 0 {
		switch b[0] {
		case 0: // end of the list
			return true
		case 1: // no operation, one byte
			b = b[1:]
			continue
		case 131, 137: // loose and strict source route
			return false
		}
		if len(b) < 2 || b[1] < 2 || int(b[1]) > len(b) {
			return false
		}
		b = b[b[1]:]
	}
	return true
}

// readIPv6 reads a packet and the link's padding. Source: RFC 8200.
func (p *Packet) readIPv6(b []byte, hints Hints) Fault {
	if len(b) < ipv6Header {
		return FaultMalformed
	}
	p.Tuple.Src = netip.AddrFrom16([16]byte(b[8:24]))
	p.Tuple.Dst = netip.AddrFrom16([16]byte(b[24:40]))
	p.HopLimit = b[7]
	length := int(binary.BigEndian.Uint16(b[4:]))
	if length == 0 && hints.Segments > 0 {
		length = len(b) - ipv6Header // big TCP: no jumbo header on the wire
	}
	if b[0]>>4 != 6 || length > len(b)-ipv6Header {
		return FaultMalformed
	}
	// Addresses that stand for IPv4 have no business on a wire. Source: draft-itojun-v6ops-v4mapped-harmful.
	if p.Tuple.Src.Is4In6() || p.Tuple.Dst.Is4In6() {
		return FaultMalformed
	}
	next, rest := b[6], b[ipv6Header:ipv6Header+length]
	p.End = ethernetHeader + ipv6Header + length
	fragmented := false
	for n := 0; ; n++ {
		switch next {
		case 0, 60: // hop-by-hop and destination options
			if next == 0 && n > 0 {
				return FaultIPv6Ext // hop-by-hop comes first: section 4.1
			}
			if n == maxExtensions || len(rest) < 8 {
				return FaultIPv6Ext
			}
			size := 8 * (int(rest[1]) + 1)
			if size > maxExtensionLength || size > len(rest) {
				return FaultIPv6Ext
			}
			next, rest = rest[0], rest[size:]
		case 44:
			if n == maxExtensions || len(rest) < 8 || fragmented {
				return FaultIPv6Ext
			}
			fragmented = true
			word, id := binary.BigEndian.Uint16(rest[2:]), binary.BigEndian.Uint32(rest[4:])
			next, rest = rest[0], rest[8:]
			if f := p.setFragment(id, int(word&^7), word&1 != 0, rest); f != FaultNone {
				return f
			}
			if p.Fragment.Place == FragmentLater {
				p.Tuple.Protocol, p.Transport = Protocol(next), p.End-len(rest)
				return FaultNone
			}
		case 43, 59, 135, 139, 140:
			// A routing header changes the destination; no next header, mobility,
			// HIP and shim6 have nothing to judge behind them.
			return FaultIPv6Ext
		default:
			p.Tuple.Protocol, p.Transport = Protocol(next), p.End-len(rest)
			return p.readTransport(rest, hints)
		}
	}
}

// readTransport reads what ports, flags and types are judged by. b ends where
// the IP packet does.
func (p *Packet) readTransport(b []byte, hints Hints) Fault {
	v4 := p.Tuple.Src.Is4()
	need := 0
	switch p.Tuple.Protocol {
	case ProtocolTCP:
		need = 20
	case ProtocolSCTP:
		need = 12
	case ProtocolUDP, ProtocolICMP, ProtocolICMPv6:
		need = 8
	default: // matched whole
	}
	// ICMP belongs to IPv4 and ICMPv6 to IPv6: RFC 792, RFC 4443 section 2.1.
	if (p.Tuple.Protocol == ProtocolICMP && !v4) || (p.Tuple.Protocol == ProtocolICMPv6 && v4) {
		return FaultMalformed
	}
	// The first fragment holds what is judged: RFC 1858, RFC 7112.
	short := FaultMalformed
	if p.Fragment.Place != FragmentWhole {
		short = FaultFragment
	}
	if len(b) < need {
		return short
	}
	if p.Tuple.Protocol.HasPorts() {
		p.Tuple.SrcPort = binary.BigEndian.Uint16(b)
		p.Tuple.DstPort = binary.BigEndian.Uint16(b[2:])
	}
	switch p.Tuple.Protocol {
	case ProtocolTCP:
		p.TCPFlags = b[13] & 0x3f
		if header := int(b[12]>>4) * 4; header < 20 || header > len(b) {
			return short
		}
		return flagsOf(p.TCPFlags)
	case ProtocolUDP:
		return p.lengthOfUDP(int(binary.BigEndian.Uint16(b[4:])), len(b), hints)
	case ProtocolICMP:
		p.ICMPType = b[0]
		switch b[0] {
		case 0, 8:
			p.setEcho(b)
		case 3, 4, 5, 11, 12:
			p.ICMPError = true
			p.readInner(b[8:])
		}
	case ProtocolICMPv6:
		p.ICMPType = b[0]
		switch t := b[0]; {
		case t < 128: // section 2.1
			p.ICMPError = true
			p.readInner(b[8:])
		case t == 128 || t == 129:
			p.setEcho(b)
		case t <= 137 || t == 143:
			p.Neighbour = true
		}
	default:
	}
	return FaultNone
}

func (p *Packet) setEcho(b []byte) {
	p.Tuple.SrcPort = binary.BigEndian.Uint16(b[4:])
	p.Tuple.DstPort = p.Tuple.SrcPort
}

// flagsOf: every segment but the first and a reset acknowledges; a first one
// does not end. Source: RFC 9293 section 3.5.
func flagsOf(f uint8) Fault {
	if f&(TCPSyn|TCPRst|TCPAck) == 0 || (f&TCPSyn != 0 && f&(TCPFin|TCPRst) != 0) {
		return FaultTCPFlags
	}
	return FaultNone
}

// lengthOfUDP compares the header's length with that of the datagram (RFC 768).
func (p *Packet) lengthOfUDP(says, have int, hints Hints) Fault {
	switch {
	case says < 8:
		return FaultMalformed
	case p.Fragment.Place != FragmentWhole:
		// The whole datagram's, of which this is a part.
		if says < have {
			return FaultMalformed
		}
	case hints.Segments == 0 && says != have:
		return FaultMalformed
	}
	return FaultNone
}

// readInner reads the packet that an ICMP error is about: a fixed header, its
// options, and the first 8 bytes behind. Source: RFC 792, RFC 4443 section 3.
func (p *Packet) readInner(b []byte) {
	if p.Fragment.Place != FragmentWhole {
		return
	}
	size := p.End - ethernetHeader
	in := Tuple{}
	if p.Tuple.Src.Is4() {
		if size > maxICMPError || len(b) < ipv4Header {
			return
		}
		header := int(b[0]&0xf) * 4
		if b[0]>>4 != 4 || header < ipv4Header || binary.BigEndian.Uint16(b[6:])&0x1fff != 0 {
			return
		}
		in.Protocol, in.Src, in.Dst = Protocol(b[9]), netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
		if len(b) < header {
			return
		}
		b = b[header:]
	} else {
		if size > maxICMPv6Error || len(b) < ipv6Header {
			return
		}
		in.Protocol, in.Src, in.Dst = Protocol(b[6]), netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
		b = b[ipv6Header:]
	}
	if len(b) < 8 {
		return
	}
	switch {
	case in.Protocol.HasPorts():
		in.SrcPort, in.DstPort = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
	case in.Protocol == ProtocolICMP || in.Protocol == ProtocolICMPv6:
		p.InnerICMPType = b[0]
		in.SrcPort = binary.BigEndian.Uint16(b[4:])
		in.DstPort = in.SrcPort
	}
	p.Inner, p.HasInner = in, true
}
