package packet

import (
	"fmt"
	"net/netip"
	"strconv"
)

// Protocol is an IP protocol number: the IPv4 protocol field, or the IPv6 next
// header that follows the last extension header.
// Source: IANA protocol-numbers.
type Protocol uint8

// The protocols that policies and the parser treat by name.
const (
	ProtocolICMP    Protocol = 1
	ProtocolIGMP    Protocol = 2
	ProtocolTCP     Protocol = 6
	ProtocolUDP     Protocol = 17
	ProtocolGRE     Protocol = 47
	ProtocolESP     Protocol = 50
	ProtocolAH      Protocol = 51
	ProtocolICMPv6  Protocol = 58
	ProtocolSCTP    Protocol = 132
	ProtocolUDPLite Protocol = 136
)

// HasPorts reports whether policies match ports of p: TCP, UDP and SCTP, the
// protocols of networking.k8s.io/v1. Every other protocol is matched whole.
func (p Protocol) HasPorts() bool {
	return p == ProtocolTCP || p == ProtocolUDP || p == ProtocolSCTP
}

// String returns the lower-case name, or "proto-N" for a protocol without one.
func (p Protocol) String() string {
	switch p {
	case ProtocolICMP:
		return "icmp"
	case ProtocolIGMP:
		return "igmp"
	case ProtocolTCP:
		return "tcp"
	case ProtocolUDP:
		return "udp"
	case ProtocolGRE:
		return "gre"
	case ProtocolESP:
		return "esp"
	case ProtocolAH:
		return "ah"
	case ProtocolICMPv6:
		return "icmpv6"
	case ProtocolSCTP:
		return "sctp"
	case ProtocolUDPLite:
		return "udplite"
	}
	return "proto-" + strconv.Itoa(int(p))
}

// ParseProtocol is the inverse of String and also takes a bare number.
func ParseProtocol(s string) (Protocol, error) {
	for _, p := range []Protocol{
		ProtocolICMP, ProtocolIGMP, ProtocolTCP, ProtocolUDP, ProtocolGRE, ProtocolESP,
		ProtocolAH, ProtocolICMPv6, ProtocolSCTP, ProtocolUDPLite,
	} {
		if s == p.String() {
			return p, nil
		}
	}
	digits := s
	if len(s) > 6 && s[:6] == "proto-" {
		digits = s[6:]
	}
	n, err := strconv.ParseUint(digits, 10, 8)
	if err != nil {
		return 0, fmt.Errorf("protocol %q: want tcp, udp, sctp, icmp, icmpv6 or a number from 0 to 255", s)
	}
	return Protocol(n), nil
}

// Tuple is what one packet says about its two ends. Ports are in host byte
// order. For a protocol without ports both are 0, except ICMP and ICMPv6 echo,
// whose identifier stands in both so that a request and its reply are one flow.
// Addresses are unmapped (never ::ffff:a.b.c.d) and carry no zone; use Unmap.
type Tuple struct {
	Protocol         Protocol
	Src, Dst         netip.Addr
	SrcPort, DstPort uint16
}

// Reverse returns the tuple of the packet that answers t.
func (t Tuple) Reverse() Tuple {
	t.Src, t.Dst = t.Dst, t.Src
	t.SrcPort, t.DstPort = t.DstPort, t.SrcPort
	return t
}

// String prints t as "tcp 10.0.0.1:4000 -> 10.0.0.2:80".
func (t Tuple) String() string {
	if t.SrcPort == 0 && t.DstPort == 0 && !t.Protocol.HasPorts() {
		return fmt.Sprintf("%s %s -> %s", t.Protocol, t.Src, t.Dst)
	}
	return fmt.Sprintf("%s %s -> %s", t.Protocol,
		netip.AddrPortFrom(t.Src, t.SrcPort), netip.AddrPortFrom(t.Dst, t.DstPort))
}

// Unmap returns the address that the kernel routes by: a v4-mapped IPv6
// address becomes the IPv4 address it stands for and a zone is removed.
// Source: RFC 4291 section 2.5.5.2.
func Unmap(a netip.Addr) netip.Addr {
	return a.Unmap().WithZone("")
}
