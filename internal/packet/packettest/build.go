package packettest

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"net/netip"
	"slices"
)

// Layer is one header, or the bytes after the last one.
type Layer interface {
	// marshal returns the layer followed by rest.
	marshal(p pseudo, rest []Layer) []byte
	// etherType is what an Ethernet or VLAN header before this layer carries, 0 if nothing fits.
	etherType() uint16
	// proto is what an IP header before this layer carries, or noProto.
	proto() int
}

// noProto is the proto of a layer that does not follow an IP header. An IP
// header before it says 59 (no next header) for IPv6 and 253 for IPv4.
const noProto = -1

// pseudo carries the addresses of the innermost IP header for transport checksums.
type pseudo struct{ src, dst netip.Addr }

// Build returns the bytes of layers, outermost first.
func Build(layers ...Layer) []byte { return marshalAll(pseudo{}, layers) }

// Transport returns the bytes of layers as they stand after an IP header with
// these addresses: the transport checksum is right for them. Tests cut the
// result into fragments of their own.
func Transport(src, dst netip.Addr, layers ...Layer) []byte {
	return marshalAll(pseudo{src, dst}, layers)
}

func marshalAll(p pseudo, layers []Layer) []byte {
	if len(layers) == 0 {
		return nil
	}
	return layers[0].marshal(p, layers[1:])
}

// nextEtherType is the ethertype of the first of rest, or v if it is set.
func nextEtherType(v *uint16, rest []Layer) uint16 {
	if v != nil {
		return *v
	}
	if len(rest) > 0 && rest[0].etherType() != 0 {
		return rest[0].etherType()
	}
	return 0x88b5 // IEEE 802 local experimental ethertype 1
}

// nextProto is the IP protocol number of the first of rest, or v if it is set.
func nextProto(v *uint8, rest []Layer, none uint8) uint8 {
	if v != nil {
		return *v
	}
	if len(rest) > 0 && rest[0].proto() != noProto {
		return uint8(rest[0].proto())
	}
	return none
}

// or returns *p, or d if p is nil.
func or[T any](p *T, d T) T {
	if p != nil {
		return *p
	}
	return d
}

// MAC is an Ethernet address.
type MAC [6]byte

// Broadcast is ff:ff:ff:ff:ff:ff.
var Broadcast = MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// MACFrom copies b, which must hold at least 6 bytes to count; a shorter one gives the zero MAC.
func MACFrom(b []byte) MAC {
	if len(b) < 6 {
		return MAC{}
	}
	return MAC(b[:6])
}

// MulticastMAC returns the Ethernet address for a multicast IP address.
// Source: RFC 1112 section 6.4, RFC 2464 section 7.
func MulticastMAC(a netip.Addr) MAC {
	if a.Is4() {
		b := a.As4()
		return MAC{0x01, 0x00, 0x5e, b[1] & 0x7f, b[2], b[3]}
	}
	b := a.As16()
	return MAC{0x33, 0x33, b[12], b[13], b[14], b[15]}
}

// TokenSize is the length of a Token in bytes.
const TokenSize = 16

// TokenMagic starts every Token, so that a sniffer finds tokens that it was not told of.
const TokenMagic = "\xa5PTK"

// Token is a marker that a test puts in a payload and a sniffer looks for
// anywhere in a frame. It is a Layer. It is TokenMagic, then bytes of its own.
type Token [TokenSize]byte

// NewToken returns a token that nothing else carries, in this run or any other:
// 8 of its bytes are random, 4 are made from name.
func NewToken(name string) Token {
	t := FixedToken(name)
	_, _ = rand.Read(t[8:]) // crypto/rand.Read never fails since Go 1.24
	return t
}

// FixedToken returns the token for name that is the same in every run.
func FixedToken(name string) Token {
	var t Token
	h := sha256.Sum256([]byte(name))
	copy(t[:], TokenMagic)
	copy(t[len(TokenMagic):], h[:])
	return t
}

// String prints t in hexadecimal.
func (t Token) String() string { return hex.EncodeToString(t[:]) }

func (t Token) marshal(p pseudo, rest []Layer) []byte {
	return append(slices.Clone(t[:]), marshalAll(p, rest)...)
}
func (Token) etherType() uint16 { return 0 }
func (Token) proto() int        { return noProto }

// Payload is any bytes: the data of a transport protocol.
type Payload []byte

func (b Payload) marshal(p pseudo, rest []Layer) []byte {
	return append(slices.Clone([]byte(b)), marshalAll(p, rest)...)
}
func (Payload) etherType() uint16 { return 0 }
func (Payload) proto() int        { return noProto }

// Raw is any bytes under a chosen protocol number and ethertype: a header that
// has no type here, or a piece of one.
type Raw struct {
	Proto     uint8
	EtherType uint16
	Data      []byte
}

func (r Raw) marshal(p pseudo, rest []Layer) []byte {
	return append(slices.Clone(r.Data), marshalAll(p, rest)...)
}
func (r Raw) etherType() uint16 { return r.EtherType }
func (r Raw) proto() int        { return int(r.Proto) }

// Simple builds one ordinary frame: Ethernet, IPv4 or IPv6 by the family of
// src, then proto with payload. TCP is a SYN. For ICMP and ICMPv6 it is an echo
// request whose identifier is src's port. For SCTP it is an INIT chunk's common
// header. Any other proto carries payload as it is.
func Simple(srcMAC, dstMAC MAC, proto uint8, src, dst netip.AddrPort, payload []byte) []byte {
	layers := []Layer{Eth{Src: srcMAC, Dst: dstMAC}}
	if src.Addr().Is4() {
		layers = append(layers, IPv4{Src: src.Addr(), Dst: dst.Addr()})
	} else {
		layers = append(layers, IPv6{Src: src.Addr(), Dst: dst.Addr()})
	}
	switch proto {
	case protoTCP:
		layers = append(layers, TCP{SrcPort: src.Port(), DstPort: dst.Port(), Flags: SYN})
	case protoUDP:
		layers = append(layers, UDP{SrcPort: src.Port(), DstPort: dst.Port()})
	case protoUDPLite:
		layers = append(layers, UDPLite{SrcPort: src.Port(), DstPort: dst.Port()})
	case protoSCTP:
		layers = append(layers, SCTP{SrcPort: src.Port(), DstPort: dst.Port()})
	case protoICMP:
		layers = append(layers, ICMP{Type: ICMPEchoRequest, ID: src.Port(), Seq: 1})
	case protoICMPv6:
		layers = append(layers, ICMPv6{Type: ICMPv6EchoRequest, ID: src.Port(), Seq: 1})
	default:
		layers = append(layers, Raw{Proto: proto})
	}
	return Build(append(layers, Payload(payload))...)
}
