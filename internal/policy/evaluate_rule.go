package policy

import (
	"net/netip"
	"slices"

	"github.com/postern-dev/postern/internal/packet"
)

// why says how a rule answered. The order is that of telling: of several
// peers the highest reason is the one that Explain shows.
type why uint8

const (
	whyPeer      why = iota // no peer is the other end
	whyNames                // the peers are only names, which no address matches
	whyPort                 // a peer is, but the protocol or port is not
	whyProtected            // it would match, but the destination has to be named
	whyExpired              // the rule is past its expiry
	whySet                  // it names a set that is missing or invalid
	whyTier                 // its tier does not take such a rule
	whyMatch
)

// rule says whether r matches, and with which action: an invalid set turns a
// Pass into a Deny, and everything that is neither Accept nor Pass is a Deny.
func (w *walk) rule(tier Tier, p *Policy, r *Rule) (Action, why) {
	action := r.Action
	if action != Accept && action != Pass {
		action = Deny
	}
	if w.namesBadSet(r) {
		if action == Accept {
			return Accept, whySet
		}
		return Deny, whyMatch // P4: closed
	}
	if action == Accept && !r.ExpiresAt.IsZero() && !w.s.Time.Before(r.ExpiresAt) {
		return action, whyExpired
	}
	if tier.Name == TierNetworkPolicy && action == Pass {
		return action, whyTier // it would pass by the isolation
	}
	if p.Tier != tier.Name && action != Deny {
		return action, whyTier // an unknown tier: nothing may widen from the wrong place
	}
	return action, w.matches(r, action)
}

// namesBadSet reports whether r names a set that is missing or invalid.
func (w *walk) namesBadSet(r *Rule) bool {
	if r.AnyPeer {
		return false
	}
	for i := range r.Peers {
		if r.Peers[i].Kind == PeerSet {
			if set := w.set(r.Peers[i].Set); set == nil || set.Invalid {
				return true
			}
		}
	}
	return false
}

func (w *walk) set(ref SetRef) *DestinationSet {
	for i := range w.s.Sets {
		if w.s.Sets[i].Ref == ref {
			return &w.s.Sets[i]
		}
	}
	return nil
}

// matches reports whether a peer and a port of r match.
func (w *walk) matches(r *Rule, action Action) why {
	guard := action == Accept && w.protected()
	if r.AnyPeer {
		if guard {
			return whyProtected
		}
		return w.ports(r, w.podsAt(w.remote))
	}
	best := whyPeer
	for i := range r.Peers {
		best = max(best, w.peer(r, &r.Peers[i], guard))
	}
	return best
}

// peer reports whether one peer of r, with a port of r, matches. guard says
// that a network has to name the destination.
func (w *walk) peer(r *Rule, peer *Peer, guard bool) why {
	switch peer.Kind {
	case PeerNetworks:
		return w.networks(r, peer.Networks, peer.Except, guard)
	case PeerSet:
		set := w.set(peer.Set)
		return w.networks(r, set.Networks, set.Except, guard)
	case PeerPods:
		best := whyPeer
		for _, q := range w.podsAt(w.remote) {
			if w.podIs(q, peer.Pods.Namespace, peer.Pods.Namespaces, peer.Pods.Pods) {
				best = max(best, w.ports(r, []*Pod{q}))
			}
		}
		return best
	case PeerNodes:
		for i := range w.s.Nodes {
			if n := &w.s.Nodes[i]; hasAddr(n.IPs, w.remote) && peer.Nodes.Matches(n.Labels) {
				return w.ports(r, nil)
			}
		}
	case PeerService:
		if w.isBackend(peer.Service) {
			return w.ports(r, w.podsAt(w.remote))
		}
	case PeerDomainNames:
		return whyNames
	case PeerNone:
	}
	return whyPeer
}

// networks reports whether the remote end is in networks and not in except.
// With guard one of the networks that hold it must lie inside a protected one.
func (w *walk) networks(r *Rule, networks, except []netip.Prefix, guard bool) why {
	if !inAny(networks, w.remote) || inAny(except, w.remote) {
		return whyPeer
	}
	if guard && !slices.ContainsFunc(networks, w.namesProtected) {
		return whyProtected
	}
	return w.ports(r, nil)
}

// namesProtected reports whether n holds the remote end and lies inside a protected network.
func (w *walk) namesProtected(n netip.Prefix) bool {
	n = packet.JudgedPrefix(n)
	if !n.Contains(w.remote) {
		return false
	}
	for _, p := range w.s.Protected {
		if p = packet.JudgedPrefix(p); p.Bits() <= n.Bits() && p.Contains(n.Addr()) {
			return true
		}
	}
	return false
}

// isBackend reports whether the packet's destination is what some port of the
// Service leads to. A source is never a Service: ingress matches nothing.
func (w *walk) isBackend(ref ServiceRef) bool {
	if w.dir != Egress || !w.t.Protocol.HasPorts() {
		return false
	}
	for i := range w.s.Services {
		svc := &w.s.Services[i]
		if svc.Namespace != ref.Namespace || svc.Name != ref.Name {
			continue
		}
		for _, sp := range svc.Ports {
			for _, b := range sp.Backends {
				if sp.Protocol == w.t.Protocol && packet.Unmap(b.Addr()) == w.remote && b.Port() == w.t.DstPort {
					return true
				}
			}
		}
	}
	return false
}

// podsAt returns the pods that have an address, host-network pods excluded.
func (w *walk) podsAt(a netip.Addr) []*Pod {
	var out []*Pod
	for i := range w.s.Pods {
		if p := &w.s.Pods[i]; !p.HostNetwork && hasAddr(p.IPs, a) {
			out = append(out, p)
		}
	}
	return out
}

// ports reports whether a port of r matches. Names of ports are looked up on
// the destination: the pods given for Egress, the pod itself for Ingress.
func (w *walk) ports(r *Rule, destination []*Pod) why {
	if r.AnyPort {
		return whyMatch
	}
	if w.dir == Ingress {
		destination = []*Pod{w.pod}
	}
	for i := range r.Ports {
		if w.port(&r.Ports[i], destination) {
			return whyMatch
		}
	}
	return whyPort
}

func (w *walk) port(m *PortMatch, destination []*Pod) bool {
	if m.Named == "" {
		return m.Protocol == w.t.Protocol &&
			(!m.Protocol.HasPorts() || (m.First <= w.t.DstPort && w.t.DstPort <= m.Last))
	}
	for _, q := range destination {
		for _, cp := range q.Ports {
			if cp.Name == m.Named && cp.Protocol == w.t.Protocol && cp.Port == w.t.DstPort &&
				cp.Protocol.HasPorts() && (m.AnyProtocol || m.Protocol == cp.Protocol) {
				return true
			}
		}
	}
	return false
}
