package policy

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/postern-dev/postern/internal/packet"
)

// Lookup says what a Compiled does with the first packet of a flow: the naive
// interpreter of a Ruleset that the kernel's is compared with. t is as in
// Evaluate, except that an Egress destination is the address after Service
// translation; see LookupService. A pod that is no endpoint is Dropped
// with IndexUnknown.
func Lookup(c *Compiled, pod PodKey, dir Direction, t packet.Tuple) Decision {
	raw, remote := packet.Unmap(t.Dst), packet.Judged(t.Dst)
	if dir == Ingress {
		raw = packet.Unmap(t.Src)
		remote = raw
	}
	ids, ok := c.Endpoints[pod]
	rs := c.Rulesets[ids[dir]]
	if !ok || rs == nil || !remote.IsValid() {
		return Decision{Dropped, RuleRef{Direction: dir, Index: IndexUnknown}}
	}
	if slices.Contains(c.Addresses[pod], raw) {
		return Decision{Forwarded, RuleRef{Direction: dir, Index: IndexSelf}}
	}
	passed := -1 // rules of tiers up to this one are passed by
	for i := range rs.Rules {
		r := &rs.Rules[i]
		if r.Tier <= passed || !c.matches(r, remote, t) {
			continue
		}
		switch r.Action {
		case Pass:
			passed = r.Tier
		case Accept:
			return Decision{Forwarded, r.Ref}
		default:
			return Decision{Dropped, r.Ref}
		}
	}
	return Decision{Dropped, RuleRef{Direction: dir, Index: IndexUnknown}}
}

func (c *Compiled) matches(r *CompiledRule, remote netip.Addr, t packet.Tuple) bool {
	for i := range r.Matches {
		m := &r.Matches[i]
		if m.AnyAddress {
			if m.NotProtected && holdsAddr(c.Sets[SetIDProtected], remote) {
				continue
			}
		} else if !holdsAddr(c.Sets[m.Set], remote) {
			continue
		}
		if m.AnyPort {
			return true
		}
		for _, p := range m.Ports {
			if p.Protocol == t.Protocol && (!p.Protocol.HasPorts() || (p.First <= t.DstPort && t.DstPort <= p.Last)) {
				return true
			}
		}
	}
	return false
}

// holdsAddr searches a sorted, disjoint list.
func holdsAddr(list []netip.Prefix, a netip.Addr) bool {
	i, found := slices.BinarySearchFunc(list, a, func(p netip.Prefix, a netip.Addr) int { return p.Addr().Compare(a) })
	return found || (i > 0 && list[i-1].Contains(a))
}

// Frontend is an address that the Service translation replaces by a backend's.
type Frontend struct {
	Addr     netip.Addr
	Protocol packet.Protocol
	Port     uint16
}

// Target is what a Frontend leads to.
type Target struct {
	Service ServiceRef
	// Backends are the ready ones of the Frontend's family, by address and port.
	Backends []netip.AddrPort
}

// Frontends returns every address and port that Services take over: their own,
// and their NodePorts on the addresses of nodes. A Service's own address comes
// before a NodePort, as in kube-proxy's chains. Where two Services claim the same
// one, the lower namespace and name has it.
func Frontends(services []Service, nodes []Node) map[Frontend]Target {
	order := make([]*Service, 0, len(services))
	for i := range services {
		order = append(order, &services[i])
	}
	slices.SortStableFunc(order, func(a, b *Service) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	out := map[Frontend]Target{}
	each := func(f func(svc *Service, sp *ServicePort)) {
		for _, svc := range order {
			for i := range svc.Ports {
				if sp := &svc.Ports[i]; sp.Protocol.HasPorts() {
					f(svc, sp)
				}
			}
		}
	}
	each(func(svc *Service, sp *ServicePort) {
		for _, a := range svc.IPs {
			addFrontend(out, svc, sp, a, sp.Port)
		}
	})
	each(func(svc *Service, sp *ServicePort) {
		if sp.NodePort == 0 {
			return
		}
		for j := range nodes {
			for _, a := range nodes[j].IPs {
				addFrontend(out, svc, sp, a, sp.NodePort)
			}
		}
	})
	return out
}

func addFrontend(out map[Frontend]Target, svc *Service, sp *ServicePort, a netip.Addr, port uint16) {
	f := Frontend{packet.Unmap(a), sp.Protocol, port}
	if _, taken := out[f]; taken || !f.Addr.IsValid() {
		return
	}
	t := Target{Service: ServiceRef{svc.Namespace, svc.Name}}
	for _, b := range sp.Backends {
		if b = netip.AddrPortFrom(packet.Unmap(b.Addr()), b.Port()); b.Addr().IsValid() && b.Addr().Is4() == f.Addr.Is4() {
			t.Backends = append(t.Backends, b)
		}
	}
	slices.SortFunc(t.Backends, netip.AddrPort.Compare)
	t.Backends = slices.Compact(t.Backends)
	out[f] = t
}

// LookupService is Lookup for a packet before Service translation; frontends
// are those of Frontends. It equals Evaluate.
func LookupService(c *Compiled, frontends map[Frontend]Target, pod PodKey, dir Direction, t packet.Tuple) Decision {
	ids, ok := c.Endpoints[pod]
	dst := packet.Judged(t.Dst)
	target, isFrontend := frontends[Frontend{dst, t.Protocol, t.DstPort}]
	if dir != Egress || !ok || !isFrontend || slices.Contains(c.Addresses[pod], packet.Unmap(t.Dst)) {
		return Lookup(c, pod, dir, t)
	}
	if len(target.Backends) == 0 {
		if rs := c.Rulesets[ids[dir]]; rs == nil || rs.Selected {
			return Decision{Dropped, RuleRef{Direction: dir, Index: IndexNoBackend}}
		}
		return Decision{Forwarded, RuleRef{Direction: dir, Index: IndexNoMatch}}
	}
	var first Decision
	for i, b := range target.Backends {
		t.Dst, t.DstPort = b.Addr(), b.Port()
		d := Lookup(c, pod, dir, t)
		if i == 0 {
			first = d
		} else if d.Verdict != first.Verdict {
			return Decision{Deferred, RuleRef{
				Direction: dir, Index: IndexDeferred, Name: target.Service.Namespace + "/" + target.Service.Name,
			}}
		}
	}
	return first
}
