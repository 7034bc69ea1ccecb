package packettest

import (
	"encoding/binary"
	"net/netip"
)

// IPv4 is an IPv4 header. Source: RFC 791.
type IPv4 struct {
	Src, Dst netip.Addr
	TOS      uint8
	ID       uint16
	// DontFragment, MoreFragments and Evil (the reserved bit, RFC 3514) are the flags.
	DontFragment, MoreFragments, Evil bool
	// Offset is the fragment offset in units of 8 bytes, low 13 bits.
	Offset uint16
	// Options is padded with zeros (end of list) to a multiple of 4 bytes, at most 40 count.
	Options []byte

	Version  *uint8  // nil: 4
	IHL      *uint8  // nil: right; in units of 4 bytes
	TotalLen *uint16 // nil: right; in bytes
	TTL      *uint8  // nil: 64
	Proto    *uint8  // nil: by the next layer
	Checksum *uint16 // nil: right
}

func (h IPv4) marshal(_ pseudo, rest []Layer) []byte {
	opts := pad(h.Options, 4)
	hlen := 20 + len(opts)
	inner := marshalAll(pseudo{h.Src, h.Dst}, rest)
	b := make([]byte, hlen, hlen+len(inner))
	b[0] = or(h.Version, 4)<<4 | or(h.IHL, uint8(hlen/4))&0xf
	b[1] = h.TOS
	binary.BigEndian.PutUint16(b[2:], or(h.TotalLen, uint16(hlen+len(inner))))
	binary.BigEndian.PutUint16(b[4:], h.ID)
	frag := h.Offset & 0x1fff
	for _, f := range []struct {
		on  bool
		bit uint16
	}{{h.Evil, 0x8000}, {h.DontFragment, 0x4000}, {h.MoreFragments, 0x2000}} {
		if f.on {
			frag |= f.bit
		}
	}
	binary.BigEndian.PutUint16(b[6:], frag)
	b[8] = or(h.TTL, 64)
	b[9] = nextProto(h.Proto, rest, 253)
	copy(b[12:], addr4(h.Src))
	copy(b[16:], addr4(h.Dst))
	copy(b[20:], opts)
	binary.BigEndian.PutUint16(b[10:], or(h.Checksum, checksum(0, b)))
	return append(b, inner...)
}
func (IPv4) etherType() uint16 { return EtherTypeIPv4 }
func (IPv4) proto() int        { return 4 }

// IPv4 options, as the bytes of one option.

// OptNOP returns n no-operation options.
func OptNOP(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = 1
	}
	return b
}

// OptRecordRoute returns a record-route option with slots empty places.
func OptRecordRoute(slots int) []byte {
	b := make([]byte, 3+4*slots)
	b[0], b[1], b[2] = 7, uint8(len(b)), 4
	return b
}

// OptTimestamp returns an internet-timestamp option with slots empty places, timestamps only.
func OptTimestamp(slots int) []byte {
	b := make([]byte, 4+4*slots)
	b[0], b[1], b[2] = 68, uint8(len(b)), 5
	return b
}

// OptRouterAlert returns a router-alert option. Source: RFC 2113.
func OptRouterAlert() []byte { return []byte{148, 4, 0, 0} }

// OptSourceRoute returns a loose (LSRR) or strict (SSRR) source route through hops.
func OptSourceRoute(strict bool, hops ...netip.Addr) []byte {
	b := []byte{131, uint8(3 + 4*len(hops)), 4}
	if strict {
		b[0] = 137
	}
	for _, h := range hops {
		b = append(b, addr4(h)...)
	}
	return b
}

// IPv6 is an IPv6 header. Source: RFC 8200 section 3.
type IPv6 struct {
	Src, Dst     netip.Addr
	TrafficClass uint8
	FlowLabel    uint32 // low 20 bits

	Version    *uint8  // nil: 6
	PayloadLen *uint16 // nil: right; in bytes
	NextHeader *uint8  // nil: by the next layer
	HopLimit   *uint8  // nil: 255 before neighbour discovery, else 64
}

func (h IPv6) marshal(_ pseudo, rest []Layer) []byte {
	inner := marshalAll(pseudo{h.Src, h.Dst}, rest)
	hop := uint8(64)
	if len(rest) > 0 {
		if c, ok := rest[0].(ICMPv6); ok && c.Type >= NDRouterSolicitation && c.Type <= NDRedirect {
			hop = 255 // RFC 4861 section 7.1: others are dropped
		}
	}
	b := make([]byte, 40, 40+len(inner))
	binary.BigEndian.PutUint32(b, uint32(or(h.Version, 6))<<28|uint32(h.TrafficClass)<<20|h.FlowLabel&0xfffff)
	binary.BigEndian.PutUint16(b[4:], or(h.PayloadLen, uint16(len(inner))))
	b[6] = nextProto(h.NextHeader, rest, 59)
	b[7] = or(h.HopLimit, hop)
	copy(b[8:], addr16(h.Src))
	copy(b[24:], addr16(h.Dst))
	return append(b, inner...)
}
func (IPv6) etherType() uint16 { return EtherTypeIPv6 }
func (IPv6) proto() int        { return 41 }

// options is what hop-by-hop and destination options headers have in common.
func options(next uint8, opts []byte, hdrLen *uint8, inner []byte) []byte {
	b := append([]byte{next, 0}, opts...)
	switch short := (8 - len(b)%8) % 8; short {
	case 0:
	case 1:
		b = append(b, 0) // Pad1
	default:
		b = append(b, PadN(short)...)
	}
	b[1] = or(hdrLen, uint8(len(b)/8-1))
	return append(b, inner...)
}

// PadN returns a padding option of n bytes in all, n from 2 to 257.
func PadN(n int) []byte {
	b := make([]byte, max(n, 2))
	b[0], b[1] = 1, uint8(len(b)-2)
	return b
}

// HopByHop is the hop-by-hop options header. Options is padded to whole 8 bytes.
type HopByHop struct {
	Options []byte
	Next    *uint8 // nil: by the next layer
	Len     *uint8 // nil: right; in units of 8 bytes, not counting the first
}

func (h HopByHop) marshal(p pseudo, rest []Layer) []byte {
	return options(nextProto(h.Next, rest, 59), h.Options, h.Len, marshalAll(p, rest))
}
func (HopByHop) etherType() uint16 { return 0 }
func (HopByHop) proto() int        { return 0 }

// DestOpts is the destination options header. Options is padded to whole 8 bytes.
type DestOpts struct {
	Options []byte
	Next    *uint8 // nil: by the next layer
	Len     *uint8 // nil: right; in units of 8 bytes, not counting the first
}

func (h DestOpts) marshal(p pseudo, rest []Layer) []byte {
	return options(nextProto(h.Next, rest, 59), h.Options, h.Len, marshalAll(p, rest))
}
func (DestOpts) etherType() uint16 { return 0 }
func (DestOpts) proto() int        { return 60 }

// Routing is a routing header. Data stands between the four fixed bytes and
// Addrs (type 0 and 2: 4 reserved bytes; nil means 4 zeros). Source: RFC 8200 section 4.4.
type Routing struct {
	Type         uint8
	SegmentsLeft uint8
	Data         []byte
	Addrs        []netip.Addr
	Next         *uint8 // nil: by the next layer
	Len          *uint8 // nil: right; in units of 8 bytes, not counting the first
}

func (h Routing) marshal(p pseudo, rest []Layer) []byte {
	if h.SegmentsLeft > 0 && len(h.Addrs) > 0 {
		p.dst = h.Addrs[len(h.Addrs)-1] // RFC 8200 section 8.1: the final destination
	}
	data := h.Data
	if data == nil {
		data = make([]byte, 4)
	}
	b := append([]byte{nextProto(h.Next, rest, 59), 0, h.Type, h.SegmentsLeft}, data...)
	for _, a := range h.Addrs {
		b = append(b, addr16(a)...)
	}
	b = pad(b, 8)
	b[1] = or(h.Len, uint8(len(b)/8-1))
	return append(b, marshalAll(p, rest)...)
}
func (Routing) etherType() uint16 { return 0 }
func (Routing) proto() int        { return 43 }

// Fragment is the fragment header. What follows is written as it is; use
// Transport and Raw to put a piece of a datagram after it.
type Fragment struct {
	Offset        uint16 // in units of 8 bytes, low 13 bits
	MoreFragments bool
	ID            uint32
	Reserved      uint8
	Next          *uint8 // nil: by the next layer
}

func (h Fragment) marshal(p pseudo, rest []Layer) []byte {
	off := h.Offset << 3
	if h.MoreFragments {
		off |= 1
	}
	b := []byte{nextProto(h.Next, rest, 59), h.Reserved}
	b = binary.BigEndian.AppendUint16(b, off)
	b = binary.BigEndian.AppendUint32(b, h.ID)
	return append(b, marshalAll(p, rest)...)
}
func (Fragment) etherType() uint16 { return 0 }
func (Fragment) proto() int        { return 44 }

// AH is an authentication header, for either family. Its length counts units
// of 4 bytes, unlike every other extension header. Source: RFC 4302.
type AH struct {
	SPI, Seq uint32
	ICV      []byte // nil: 12 zeros
	Next     *uint8 // nil: by the next layer
	Len      *uint8 // nil: right; in units of 4 bytes, not counting the first two
}

func (h AH) marshal(p pseudo, rest []Layer) []byte {
	icv := h.ICV
	if icv == nil {
		icv = make([]byte, 12)
	}
	b := []byte{nextProto(h.Next, rest, 59), 0, 0, 0}
	b = binary.BigEndian.AppendUint32(b, h.SPI)
	b = binary.BigEndian.AppendUint32(b, h.Seq)
	b = append(b, pad(icv, 4)...)
	b[1] = or(h.Len, uint8(len(b)/4-2))
	return append(b, marshalAll(p, rest)...)
}
func (AH) etherType() uint16 { return 0 }
func (AH) proto() int        { return 51 }

// ESP is the start of an encapsulated security payload; what follows stands for the ciphertext.
type ESP struct{ SPI, Seq uint32 }

func (h ESP) marshal(p pseudo, rest []Layer) []byte {
	b := binary.BigEndian.AppendUint32(nil, h.SPI)
	b = binary.BigEndian.AppendUint32(b, h.Seq)
	return append(b, marshalAll(p, rest)...)
}
func (ESP) etherType() uint16 { return 0 }
func (ESP) proto() int        { return 50 }

// NoNext ends an IPv6 header chain with next header 59; bytes may follow it all the same.
type NoNext struct{}

func (NoNext) marshal(p pseudo, rest []Layer) []byte { return marshalAll(p, rest) }
func (NoNext) etherType() uint16                     { return 0 }
func (NoNext) proto() int                            { return 59 }

// pad returns a copy of b extended with zeros to a multiple of n.
func pad(b []byte, n int) []byte {
	out := append(make([]byte, 0, len(b)+n), b...)
	for len(out)%n != 0 {
		out = append(out, 0)
	}
	return out
}
