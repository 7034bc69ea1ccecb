package packettest

import (
	"encoding/binary"
	"net/netip"
)

// Ethertypes.
const (
	EtherTypeIPv4  = 0x0800
	EtherTypeARP   = 0x0806
	EtherTypeIPv6  = 0x86dd
	EtherType8021Q = 0x8100
	EtherTypeQinQ  = 0x88a8
	EtherType9100  = 0x9100
)

// Eth is an Ethernet II header.
type Eth struct {
	Dst, Src MAC
	// Type nil: by the next layer. A value below 1536 makes an 802.3 length field.
	Type *uint16
	// Trailer is put after everything else, beyond the length that IP states.
	Trailer []byte
}

func (e Eth) marshal(p pseudo, rest []Layer) []byte {
	b := make([]byte, 0, 128)
	b = append(b, e.Dst[:]...)
	b = append(b, e.Src[:]...)
	b = binary.BigEndian.AppendUint16(b, nextEtherType(e.Type, rest))
	b = append(b, marshalAll(p, rest)...)
	return append(b, e.Trailer...)
}

// etherType is transparent Ethernet bridging, for GRE. Source: RFC 1701.
func (Eth) etherType() uint16 { return 0x6558 }

// proto is EtherIP's, without its header. Source: RFC 3378.
func (Eth) proto() int { return 97 }

// VLAN is an 802.1Q tag; tags stack by repeating it.
type VLAN struct {
	TPID uint16 // 0: 0x8100
	VID  uint16 // low 12 bits
	PCP  uint8  // priority, low 3 bits
	DEI  bool
	Type *uint16 // nil: by the next layer
}

func (v VLAN) marshal(p pseudo, rest []Layer) []byte {
	tci := v.VID&0x0fff | uint16(v.PCP&7)<<13
	if v.DEI {
		tci |= 1 << 12
	}
	b := binary.BigEndian.AppendUint16(nil, tci)
	b = binary.BigEndian.AppendUint16(b, nextEtherType(v.Type, rest))
	return append(b, marshalAll(p, rest)...)
}

func (v VLAN) etherType() uint16 {
	if v.TPID == 0 {
		return EtherType8021Q
	}
	return v.TPID
}
func (VLAN) proto() int { return noProto }

// ARP operations.
const (
	ARPRequest = 1
	ARPReply   = 2
)

// ARP is an ARP packet for IPv4 over Ethernet. Source: RFC 826.
type ARP struct {
	Op                   uint16 // 0: request
	SenderMAC, TargetMAC MAC
	SenderIP, TargetIP   netip.Addr
}

func (a ARP) marshal(p pseudo, rest []Layer) []byte {
	op := a.Op
	if op == 0 {
		op = ARPRequest
	}
	b := []byte{0, 1, 8, 0, 6, 4}
	b = binary.BigEndian.AppendUint16(b, op)
	b = append(b, a.SenderMAC[:]...)
	b = append(b, addr4(a.SenderIP)...)
	b = append(b, a.TargetMAC[:]...)
	b = append(b, addr4(a.TargetIP)...)
	return append(b, marshalAll(p, rest)...)
}
func (ARP) etherType() uint16 { return EtherTypeARP }
func (ARP) proto() int        { return noProto }

// addr4 returns 4 bytes; an address of the other family gives zeros (B1).
func addr4(a netip.Addr) []byte {
	a = a.Unmap()
	if !a.Is4() {
		return make([]byte, 4)
	}
	b := a.As4()
	return b[:]
}

// addr16 returns 16 bytes; an IPv4 address gives its mapped form, none gives zeros.
func addr16(a netip.Addr) []byte {
	if !a.IsValid() {
		return make([]byte, 16)
	}
	b := a.As16()
	return b[:]
}
