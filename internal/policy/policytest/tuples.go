package policytest

import (
	"math/rand/v2"
	"net/netip"

	"github.com/postern-dev/postern/internal/packet"
	"github.com/postern-dev/postern/internal/policy"
)

// Tuples returns n flow-opening packets of a pod in a direction, as Evaluate
// takes them. Half are drawn at random from what is likely to matter, the rest from
// the boundaries of everything that s names: first and last address of each
// prefix and their neighbours, ends of port ranges and theirs, Services and
// their backends, other protocols, the other family, v4-mapped addresses, those of NAT64.
func Tuples(rng *rand.Rand, s *policy.Snapshot, pod policy.PodKey, dir policy.Direction, n int) []packet.Tuple {
	g := gen{rng}
	b := bounds(s)
	own := netip.AddrFrom4([4]byte{10, 0, 0, 1})
	var ownIPs []netip.Addr
	for i := range s.Pods {
		if s.Pods[i].Key() == pod {
			ownIPs = s.Pods[i].IPs
		}
	}
	out := make([]packet.Tuple, 0, n)
	for i := range n {
		var remote netip.Addr
		t := packet.Tuple{Protocol: g.protocol(), DstPort: pick(g, portNumbers)}
		if i%2 == 0 {
			remote = g.address()
		} else {
			remote = pick(g, b.addrs)
			t.DstPort = pick(g, b.ports)
		}
		if g.chance(8) && len(b.frontends) > 0 {
			f := pick(g, b.frontends)
			remote, t.Protocol, t.DstPort = f.Addr, f.Protocol, f.Port
		}
		if remote.Is4() && g.chance(12) {
			remote = nat64(remote)
		}
		for _, a := range ownIPs {
			if a.Is4() == remote.Is4() {
				own = a
			}
		}
		if remote.Is4() && g.chance(16) {
			remote = netip.AddrFrom16(remote.As16()) // v4-mapped
		}
		t.SrcPort = uint16(g.IntN(65536))
		if !t.Protocol.HasPorts() {
			t.SrcPort, t.DstPort = 0, 0
			if t.Protocol == packet.ProtocolICMP || t.Protocol == packet.ProtocolICMPv6 {
				t.DstPort = pick(g, b.ports) // an echo's identifier
				t.SrcPort = t.DstPort
			}
		}
		t.Src, t.Dst = own, remote
		if dir == policy.Ingress {
			t.Src, t.Dst = remote, own
		}
		out = append(out, t)
	}
	return out
}

// nat64 returns the form of an IPv4 address that a translator turns back (RFC 6052).
func nat64(a netip.Addr) netip.Addr {
	b := a.As16()
	copy(b[:], []byte{0, 0x64, 0xff, 0x9b, 8: 0, 9: 0, 10: 0, 11: 0})
	return netip.AddrFrom16(b)
}

func (g gen) protocol() packet.Protocol {
	if g.chance(4) {
		return pick(g, []packet.Protocol{
			packet.ProtocolICMP, packet.ProtocolICMPv6, packet.ProtocolGRE, packet.ProtocolUDPLite, 0, 255,
		})
	}
	return pick(g, protocols)
}

type boundaries struct {
	addrs     []netip.Addr
	ports     []uint16
	frontends []policy.Frontend
}

// bounds collects the boundaries of everything that s names.
func bounds(s *policy.Snapshot) boundaries {
	b := boundaries{ports: []uint16{0, 1, 65534, 65535}}
	addAddr := func(a netip.Addr) {
		for _, a := range []netip.Addr{a.Prev(), a, a.Next()} {
			if a.IsValid() {
				b.addrs = append(b.addrs, a)
			}
		}
	}
	addPrefixes := func(lists ...[]netip.Prefix) {
		for _, list := range lists {
			for _, p := range list {
				addAddr(p.Masked().Addr())
				addAddr(Last(p))
			}
		}
	}
	addPort := func(p uint16) { b.ports = append(b.ports, p-1, p, p+1) }
	addAddr(netip.MustParseAddr("0.0.0.0"))
	addAddr(netip.MustParseAddr("::"))
	addPrefixes(s.Protected)
	for i := range s.Policies {
		for _, rules := range s.Policies[i].Rules {
			for _, r := range rules {
				for _, p := range r.Peers {
					addPrefixes(p.Networks, p.Except)
				}
				for _, m := range r.Ports {
					addPort(m.First)
					addPort(m.Last)
				}
			}
		}
	}
	for i := range s.Sets {
		addPrefixes(s.Sets[i].Networks, s.Sets[i].Except)
	}
	for i := range s.Pods {
		b.addrs = append(b.addrs, s.Pods[i].IPs...)
		for _, cp := range s.Pods[i].Ports {
			b.ports = append(b.ports, cp.Port)
		}
	}
	for i := range s.Nodes {
		b.addrs = append(b.addrs, s.Nodes[i].IPs...)
	}
	for i := range s.Services {
		svc := &s.Services[i]
		for _, sp := range svc.Ports {
			for _, a := range svc.IPs {
				b.frontends = append(b.frontends, policy.Frontend{Addr: a, Protocol: sp.Protocol, Port: sp.Port})
			}
			for j := range s.Nodes {
				for _, a := range s.Nodes[j].IPs {
					if sp.NodePort != 0 {
						b.frontends = append(b.frontends, policy.Frontend{Addr: a, Protocol: sp.Protocol, Port: sp.NodePort})
					}
				}
			}
			for _, be := range sp.Backends {
				b.frontends = append(b.frontends, policy.Frontend{Addr: be.Addr(), Protocol: sp.Protocol, Port: be.Port()})
			}
		}
	}
	return b
}

// Last returns the last address of a prefix.
func Last(p netip.Prefix) netip.Addr {
	b := p.Addr().As16()
	shift := 128 - p.Addr().BitLen()
	for i := shift + p.Bits(); i < 128; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a := netip.AddrFrom16(b)
	if p.Addr().Is4() {
		return a.Unmap()
	}
	return a
}
