package datapath_test

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/postern-dev/postern/internal/flow"
	"github.com/postern-dev/postern/internal/packet"
	"github.com/postern-dev/postern/internal/packet/packettest"
	"github.com/postern-dev/postern/internal/policy"
)

// frameModel is what docs/design/datapath.md says of frames, step by step and
// as naive as it gets. It shares no code with the programs. Nothing expires and
// no policy changes while it lives.
type frameModel struct {
	s      *policy.Snapshot
	pod    *framePod
	flows  map[modelFlow]*modelState
	trails map[modelTrail]int // offset of the fragment that must come next
}

// modelFlow is a conversation. The pod's end is the place of its address in the
// list, -1 for link-local and multicast addresses.
type modelFlow struct {
	local                 int
	remote                netip.Addr
	proto                 packet.Protocol
	localPort, remotePort uint16
	asker                 policy.Direction // of an ICMP echo: who asked
	echo                  bool
}

// modelState is how far a TCP connection has ended: RFC 9293 section 3.6.
type modelState struct {
	fin   [2]bool // seen from the pod, to the pod
	reset [2]bool // the last packet was a reset
	ended bool
}

type modelTrail struct {
	dir    policy.Direction
	local  int
	remote netip.Addr
	proto  packet.Protocol
	id     uint32
}

// opinion is what should become of a frame.
type opinion struct {
	accept bool
	// reason is the word of the reason that drops.
	reason string
	// asked: the policy decided, and an event must say so.
	asked    bool
	decision policy.Decision
	// how an accepted frame came through without a verdict of its own.
	how string
	p   packet.Packet
}

const ungovernedWithoutFlow = "ungoverned without a flow"

func (o opinion) String() string {
	switch {
	case o.asked:
		return fmt.Sprintf("%v by %v", o.decision.Verdict, o.decision.Rule)
	case o.accept:
		return "accept " + o.how
	}
	return "drop by " + o.reason
}

// class is what o is counted under.
func (o opinion) class() string {
	switch {
	case o.accept && o.asked:
		return "accept"
	case o.asked:
		return "rule"
	case o.accept:
		return "accept " + o.how
	}
	return o.reason
}

// judge says what should become of a frame, and remembers it.
func (m *frameModel) judge(s sent) opinion {
	governed := m.pod.governed[s.dir]
	p := packet.Read(s.frame, packet.Hints{Segments: s.segments, Options: !governed})
	drop := func(r flow.Reason) opinion { return opinion{reason: r.String(), p: p} }
	pass := func(how string) opinion { return opinion{accept: true, how: how, p: p} }
	fault := func() opinion {
		if !governed {
			return pass("not understood")
		}
		return opinion{reason: p.Fault.String(), p: p}
	}
	to, from := packettest.MAC(s.frame[:6]), packettest.MAC(s.frame[6:12])
	out := s.dir == policy.Egress

	if p.Fault == packet.FaultVLAN {
		return drop(flow.ReasonVLAN)
	}
	if out && from != packettest.MACFrom(m.pod.spec.MAC) {
		return drop(flow.ReasonSourceMAC)
	}
	switch p.EtherType {
	case packet.EtherTypeARP:
		if out && !m.mayResolve(s.frame) {
			return drop(flow.ReasonARP)
		}
		return pass("neighbour")
	case packet.EtherTypeIPv4, packet.EtherTypeIPv6:
	default:
		return fault()
	}

	ok, own := p.Fault == packet.FaultNone, p.Tuple.Src
	if out {
		if ok && len(s.frame) > p.End && len(s.frame) > 60 {
			// What is behind the packet is nobody's to judge; 60 bytes are a frame's least.
			ok, p.Fault = false, packet.FaultMalformed
		}
		if p.Neighbour {
			return m.neighbour(p, s.frame)
		}
		if !own.IsValid() || (m.index(own) < 0 && !m.ownLinkLocal(own)) {
			return drop(flow.ReasonSource)
		}
		if wrong := m.wrongReceiver(to, p, governed); wrong {
			return drop(flow.ReasonDestMAC)
		}
		if ok && martian(packet.Judged(p.Tuple.Dst)) {
			return drop(flow.ReasonMartian)
		}
	} else {
		own = p.Tuple.Dst
		fresh := p.HopLimit == 255 || (p.HopLimit == 1 && linkLocal(p.Tuple.Src))
		if p.Neighbour && ok && fresh && p.Fragment.Place == packet.FragmentWhole && alone(p, s.frame) {
			return pass("neighbour")
		}
		if ok && (martian(p.Tuple.Src) || (m.index(p.Tuple.Src) >= 0 && !s.marked)) {
			if !governed {
				return pass("not understood")
			}
			return drop(flow.ReasonMartian)
		}
		if m.pod.spec.Bridged && ok && m.index(own) < 0 && unicast(own) && !linkLocal(own) {
			return drop(flow.ReasonDestMAC)
		}
	}
	if !ok {
		return fault()
	}
	o := m.conversation(p, s.dir)
	o.p = p
	if !o.accept && !o.asked && !governed {
		return pass(ungovernedWithoutFlow)
	}
	return o
}

// wrongReceiver: the frame and the packet in it are for different hosts.
func (m *frameModel) wrongReceiver(to packettest.MAC, p packet.Packet, governed bool) bool {
	switch {
	case to == m.pod.host:
		return false
	case to[0]&1 == 0: // another host's
		return !m.pod.spec.Bridged
	}
	return p.Fault == packet.FaultNone && unicast(p.Tuple.Dst) && (!m.pod.spec.Bridged || governed)
}

// conversation follows flows and fragments and asks the policy about first packets.
func (m *frameModel) conversation(p packet.Packet, dir policy.Direction) opinion {
	drop := func(r flow.Reason) opinion { return opinion{reason: r.String()} }
	live := opinion{accept: true, how: "live"}
	key := m.key(p, dir)
	trail := modelTrail{dir, key.local, key.remote, p.Tuple.Protocol, p.Fragment.ID}
	if key.remote.Is6() {
		trail.proto = 0 // RFC 8200 section 4.5
	}

	if p.Fragment.Place == packet.FragmentLater {
		next, known := m.trails[trail]
		if !known || next != p.Fragment.Offset {
			delete(m.trails, trail)
			return drop(flow.ReasonFragment)
		}
		m.trails[trail] = next + p.Fragment.Length
		if !p.Fragment.More {
			delete(m.trails, trail)
		}
		return opinion{accept: true, how: "later fragment"}
	}
	if p.ICMPError {
		if m.knowsInner(p, dir) {
			return opinion{accept: true, how: "ICMP error"}
		}
		return drop(flow.ReasonICMPError)
	}
	_, reply := echo(p.Tuple.Protocol, p.ICMPType)
	tcp := p.Tuple.Protocol == packet.ProtocolTCP
	opens := !tcp || p.TCPFlags&(packet.TCPSyn|packet.TCPAck) == packet.TCPSyn
	icmp := p.Tuple.Protocol == packet.ProtocolICMP || p.Tuple.Protocol == packet.ProtocolICMPv6
	state := m.flows[key]
	o := live
	if state == nil || (tcp && opens) {
		if !opens || reply {
			return drop(flow.ReasonNoFlow)
		}
		d := policy.Evaluate(m.s, m.pod.key, dir, p.Tuple)
		if d.Verdict != policy.Forwarded {
			return opinion{asked: true, decision: d}
		}
		if state == nil || state.ended {
			o = opinion{accept: true, asked: true, decision: d}
			if !icmp || key.echo {
				m.remember(key)
			}
		}
	}
	if p.Fragment.Place == packet.FragmentFirst {
		if _, again := m.trails[trail]; again {
			delete(m.trails, trail)
			return drop(flow.ReasonFragment)
		}
		if m.trails == nil {
			m.trails = map[modelTrail]int{}
		}
		m.trails[trail] = p.Fragment.Length
	}
	if state != nil && tcp && !opens {
		state.fin[dir] = state.fin[dir] || p.TCPFlags&packet.TCPFin != 0
		// Who goes on after a reset has sent none: it was forged.
		state.reset[dir] = p.TCPFlags&packet.TCPRst != 0
		state.ended = state.reset != [2]bool{} || state.fin == [2]bool{true, true}
	}
	return o
}

// key names the conversation that a packet belongs to.
func (m *frameModel) key(p packet.Packet, dir policy.Direction) modelFlow {
	k := modelFlow{local: m.index(p.Tuple.Src), remote: p.Tuple.Dst, localPort: p.Tuple.SrcPort, remotePort: p.Tuple.DstPort}
	if dir == policy.Ingress {
		k = modelFlow{local: m.index(p.Tuple.Dst), remote: p.Tuple.Src, localPort: p.Tuple.DstPort, remotePort: p.Tuple.SrcPort}
	}
	k.proto = p.Tuple.Protocol
	if request, reply := echo(k.proto, p.ICMPType); request || reply {
		k.echo, k.asker = true, dir
		if reply {
			k.asker = 1 - dir
		}
	}
	return k
}

func (m *frameModel) remember(k modelFlow) {
	if m.flows == nil {
		m.flows = map[modelFlow]*modelState{}
	}
	m.flows[k] = &modelState{}
}

// knowsInner: the error is about a packet of a live flow, and goes to its sender.
func (m *frameModel) knowsInner(p packet.Packet, dir policy.Direction) bool {
	redirect := p.Tuple.Protocol == packet.ProtocolICMP && p.ICMPType == 5 // changes routes
	if !p.HasInner || redirect || p.Inner.Src != p.Tuple.Dst {
		return false
	}
	in := p.Inner
	key := modelFlow{proto: in.Protocol}
	// What the pod complains about was sent to it.
	key.local, key.remote, key.localPort, key.remotePort = m.index(in.Dst), in.Src, in.DstPort, in.SrcPort
	sender := policy.Ingress
	if dir == policy.Ingress {
		key.local, key.remote, key.localPort, key.remotePort = m.index(in.Src), in.Dst, in.SrcPort, in.DstPort
		sender = policy.Egress
	}
	if in.Protocol == packet.ProtocolICMP || in.Protocol == packet.ProtocolICMPv6 {
		request, reply := echo(in.Protocol, p.InnerICMPType)
		if !request && !reply {
			return false
		}
		key.echo, key.asker = true, sender
		if reply {
			key.asker = 1 - sender
		}
	}
	return m.flows[key] != nil
}

func echo(p packet.Protocol, icmpType uint8) (request, reply bool) {
	if p == packet.ProtocolICMP {
		return icmpType == 8, icmpType == 0
	}
	return p == packet.ProtocolICMPv6 && icmpType == 128, p == packet.ProtocolICMPv6 && icmpType == 129
}

// index is the place of the pod's address in its list, -1 for any other.
func (m *frameModel) index(a netip.Addr) int {
	return slices.Index(m.pod.spec.Addrs, packet.Unmap(a))
}

// ownLinkLocal: the address that the kernel makes of the pod's MAC. Source: RFC 4291 appendix A.
func (m *frameModel) ownLinkLocal(a netip.Addr) bool {
	mac := m.pod.spec.MAC
	return a == netip.AddrFrom16([16]byte{0xfe, 0x80, 8: mac[0] ^ 2, 9: mac[1], 10: mac[2], 11: 0xff, 12: 0xfe, 13: mac[3], 14: mac[4], 15: mac[5]})
}

func linkLocal(a netip.Addr) bool { return a.Is6() && a.IsLinkLocalUnicast() }

// unicast: class E and the broadcast address of IPv4 are nobody's either.
func unicast(a netip.Addr) bool {
	if a.Is4() {
		return a.As4()[0] < 224
	}
	return !a.IsMulticast()
}

// martian addresses are on no wire. Source: RFC 1122 section 3.2.1.3, RFC 4291 section 2.5.
func martian(a netip.Addr) bool {
	return a.IsLoopback() || a.IsUnspecified() || (a.Is4() && a.As4()[0] == 0)
}

// mayResolve: an ARP request or reply of Ethernet and IPv4, in the pod's own
// name or in none, and nothing but zeros behind. Source: RFC 826, RFC 5227.
func (m *frameModel) mayResolve(frame []byte) bool {
	if len(frame) < 42 || len(frame) > 60 {
		return false
	}
	body, padding := frame[14:42], frame[42:]
	if string(body[:7]) != "\x00\x01\x08\x00\x06\x04\x00" || (body[7] != 1 && body[7] != 2) {
		return false
	}
	if slices.ContainsFunc(padding, func(b byte) bool { return b != 0 }) {
		return false
	}
	sender := netip.AddrFrom4([4]byte(body[14:18]))
	return string(body[8:14]) == string(m.pod.spec.MAC) && (sender.IsUnspecified() || m.index(sender) >= 0)
}

// neighbour judges neighbour and listener discovery that a pod sends: nothing
// but questions, answers in its own name, and memberships.
func (m *frameModel) neighbour(p packet.Packet, frame []byte) opinion {
	no := opinion{reason: flow.ReasonNDP.String(), p: p}
	yes := opinion{accept: true, how: "neighbour", p: p}
	src, dst := p.Tuple.Src, p.Tuple.Dst
	if p.Fault != packet.FaultNone {
		return opinion{reason: p.Fault.String(), p: p}
	}
	if p.Fragment.Place != packet.FragmentWhole || !alone(p, frame) {
		return no
	}
	if m.index(src) < 0 && !m.ownLinkLocal(src) && !src.IsUnspecified() {
		return opinion{reason: flow.ReasonSource.String(), p: p}
	}
	b := frame[p.Transport:p.End]
	toLink := dst.As16()[0] == 0xff && dst.As16()[1]&15 == 2
	switch p.ICMPType {
	case 131, 132, 143: // listener reports: RFC 2710, RFC 3810
		if p.HopLimit != 1 || !toLink || !m.groupsOnly(p.ICMPType, b) {
			return no
		}
		return yes
	case 133, 135, 136: // solicitations and an advertisement: RFC 4861 section 4
	default:
		return no
	}
	// A node's address too, if the kernel says that it is its own; here it routes
	// nothing and says nothing. test/integration asks on a node that does.
	near := toLink || linkLocal(dst)
	for _, a := range m.pod.spec.Addrs {
		if m.pod.spec.Bridged && a.Is6() && netip.PrefixFrom(a, 64).Masked().Contains(dst) {
			near = true
		}
	}
	fixed := 24
	if p.ICMPType == 133 {
		fixed = 8
	}
	if p.HopLimit != 255 || !near || b[1] != 0 || len(b) < fixed {
		return no
	}
	options := b[fixed:]
	if len(options) != 0 && len(options) != 8 && len(options) != 16 {
		return no
	}
	for ; len(options) > 0; options = options[8:] {
		address := options[0] == 1 || options[0] == 2
		nonce := options[0] == 14 // RFC 3971, which RFC 7527 uses
		if options[1] != 1 || (!address && !nonce) || (address && string(options[2:8]) != string(m.pod.spec.MAC)) {
			return no
		}
	}
	if p.ICMPType == 136 {
		target := netip.AddrFrom16([16]byte(b[8:24]))
		// An IPv4 address in IPv6's clothes is nobody's neighbour.
		if target.Is4In6() || (m.index(target) < 0 && !m.ownLinkLocal(target)) {
			return no
		}
	}
	return yes
}

// alone: nothing in front of the message but a listener report's router alert
// (RFC 2711, RFC 2710 section 3), and nothing behind it.
func alone(p packet.Packet, frame []byte) bool {
	report := p.ICMPType <= 132 || p.ICMPType == 143
	alert := report && p.Transport == 62 && string(frame[54:62]) == "\x3a\x00\x05\x02\x00\x00\x01\x00"
	return len(frame) == p.End && (p.Transport == 54 || alert)
}

// groupsOnly: a report that names groups and nothing more.
func (m *frameModel) groupsOnly(icmpType uint8, b []byte) bool {
	if icmpType != 143 {
		return len(b) == 24 && b[8] == 0xff
	}
	n := int(b[6])<<8 | int(b[7])
	if n > 16 || len(b) != 8+20*n {
		return false
	}
	for r := b[8:]; len(r) > 0; r = r[20:] {
		if r[1] != 0 || r[2] != 0 || r[3] != 0 || r[4] != 0xff {
			return false
		}
	}
	return true
}
