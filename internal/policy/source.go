package policy

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/postern-dev/postern/internal/packet"
)

// source is the content behind a SetID. A source made of pods or nodes counts
// who has which address, so that one pod's change costs one address.
type source struct {
	id      SetID
	content []netip.Prefix // canonical, never changed in place: earlier results hold it
	counts  map[netip.Addr]int
	pending map[netip.Addr]struct{} // addresses whose presence may have changed
	without []netip.Prefix          // canonical, taken out of the content
}

// rebuildAt is the number of pending addresses from which on building anew is
// cheaper than changing the list address by address.
const rebuildAt = 64

func (s *source) count(addrs []netip.Addr, by int) {
	for _, a := range addrs {
		a = packet.Unmap(a)
		if !a.IsValid() {
			continue
		}
		if s.counts[a] += by; s.counts[a] == 0 {
			delete(s.counts, a)
		}
		s.pending[a] = struct{}{}
	}
}

// flush brings content up to date.
func (s *source) flush() {
	if s.counts == nil || len(s.pending) == 0 {
		return
	}
	if len(s.pending) >= rebuildAt || len(s.content) == 0 {
		list := make([]netip.Prefix, 0, len(s.counts))
		for a := range s.counts {
			list = append(list, netip.PrefixFrom(a, a.BitLen()))
		}
		s.content = subtractPrefixes(canonicalPrefixes(list), s.without)
	} else {
		list, fresh := slices.Clone(s.content), true
		for a := range s.pending {
			if s.counts[a] == 0 {
				list = withoutAddr(list, a, fresh)
			} else if len(overlapping(s.without, netip.PrefixFrom(a, a.BitLen()))) == 0 {
				list = withAddr(list, a, fresh)
			}
		}
		s.content = list
	}
	clear(s.pending)
}

// source returns the counting source of an ID, making it if need be.
func (c *Compiler) countingSource(id SetID, without []netip.Prefix) *source {
	s := &source{
		id: id, counts: map[netip.Addr]int{}, pending: map[netip.Addr]struct{}{}, without: without,
	}
	c.sources[id] = s
	c.touched[id] = struct{}{}
	return s
}

// fixedSource sets the content of a source that is computed as a whole.
func (c *Compiler) fixedSource(id SetID, content []netip.Prefix) {
	c.sources[id] = &source{id: id, content: content}
	c.touched[id] = struct{}{}
}

func (c *Compiler) dropSource(id SetID) {
	delete(c.sources, id)
	c.touched[id] = struct{}{}
}

// dependency is something that the compiled form of policies was made from.
// It lives as long as a policy uses it.
type dependency interface {
	usedBy() map[*policyState]struct{}
	drop(c *Compiler)
}

type users map[*policyState]struct{}

func (u users) usedBy() map[*policyState]struct{} { return u }

// podGroup is a set made of a query's members: all their addresses, or those
// of the members that have a container port of a name, by its number.
type podGroup struct {
	users
	query  *podQuery
	key    groupKey
	plain  *source
	byPort map[portKey]*portGroup
}

type portGroup struct {
	*source
	pods int
}

// group returns the group of a query, made of its members if it is new.
func (c *Compiler) group(q *podQuery, key groupKey) *podGroup {
	if g := q.groups[key]; g != nil {
		return g
	}
	g := &podGroup{users: users{}, query: q, key: key, byPort: map[portKey]*portGroup{}}
	q.groups[key] = g
	if key.port == "" {
		g.plain = c.countingSource(g.id(portKey{}), c.without(key))
	}
	for ps := range q.members {
		g.count(c, ps.pod, 1)
	}
	return g
}

func (c *Compiler) without(key groupKey) []netip.Prefix {
	if key.guarded {
		return c.protected
	}
	return nil
}

func (g *podGroup) id(k portKey) SetID {
	id := "pods:" + g.query.text
	if g.key.port != "" {
		id += ":port=" + plainOrQuoted(g.key.port) + "/" + k.String()
	}
	if g.key.guarded {
		id += ":unprotected"
	}
	return SetID(id)
}

// count adds (by 1) or removes (by -1) a member.
func (g *podGroup) count(c *Compiler, p *Pod, by int) {
	if g.plain != nil {
		g.plain.count(p.IPs, by)
		c.touched[g.plain.id] = struct{}{}
		return
	}
	for _, k := range namedPorts(p, g.key.port) {
		pg := g.byPort[k]
		if pg == nil {
			pg = &portGroup{source: c.countingSource(g.id(k), c.without(g.key))}
			g.byPort[k] = pg
			c.policiesDirty(g.users)
		}
		pg.count(p.IPs, by)
		pg.pods += by
		c.touched[pg.id] = struct{}{}
		if pg.pods == 0 {
			delete(g.byPort, k)
			c.dropSource(pg.id)
			c.policiesDirty(g.users)
		}
	}
}

func (g *podGroup) drop(c *Compiler) {
	delete(g.query.groups, g.key)
	if g.plain != nil {
		c.dropSource(g.plain.id)
	}
	for _, pg := range g.byPort {
		c.dropSource(pg.id)
	}
	c.releaseQuery(g.query)
}

// ports returns the numbers that a name stands for, sorted.
func (g *podGroup) ports(m PortMatch) []portKey {
	var out []portKey
	for _, k := range slices.SortedFunc(maps.Keys(g.byPort), comparePorts) {
		if m.AnyProtocol || m.Protocol == k.protocol {
			out = append(out, k)
		}
	}
	return out
}

// namedPorts returns the distinct numbers of a pod's container ports of a name.
func namedPorts(p *Pod, name string) []portKey {
	var out []portKey
	for _, cp := range p.Ports {
		k := portKey{cp.Protocol, cp.Port}
		if cp.Name == name && cp.Protocol.HasPorts() && !slices.Contains(out, k) {
			out = append(out, k)
		}
	}
	return out
}

func comparePorts(a, b portKey) int {
	if a.protocol != b.protocol {
		return int(a.protocol) - int(b.protocol)
	}
	return int(a.port) - int(b.port)
}

// nodeGroup is the set of the addresses of the nodes that a selector selects.
type nodeGroup struct {
	users
	text  string
	tests []labelTest
	set   *source
}

func (c *Compiler) nodeGroup(sel Selector) *nodeGroup {
	sel = NewSelector(sel.Requirements...)
	text := sel.String()
	if g := c.nodeGroups[text]; g != nil {
		return g
	}
	g := &nodeGroup{users: users{}, text: text, tests: labelTests(sel)}
	g.set = c.countingSource(SetID("nodes:"+text), nil)
	for _, n := range c.nodes {
		g.count(c, n, 1)
	}
	c.nodeGroups[text] = g
	return g
}

func (g *nodeGroup) count(c *Compiler, n *Node, by int) {
	if holds(g.tests, n.Labels) {
		g.set.count(n.IPs, by)
		c.touched[g.set.id] = struct{}{}
	}
}

func (g *nodeGroup) drop(c *Compiler) {
	delete(c.nodeGroups, g.text)
	c.dropSource(g.set.id)
}

// netGroup is a fixed list of networks, named by its content.
type netGroup struct {
	users
	id SetID
}

func (c *Compiler) netGroup(content []netip.Prefix) *netGroup {
	id := netSetID(content)
	if g := c.netGroups[id]; g != nil {
		return g
	}
	g := &netGroup{users: users{}, id: id}
	c.netGroups[id] = g
	c.fixedSource(id, content)
	return g
}

func (g *netGroup) drop(c *Compiler) {
	delete(c.netGroups, g.id)
	c.dropSource(g.id)
}

// setGroup is a DestinationSet: as it is, and less the protected networks that
// it does not name, if that is a difference.
type setGroup struct {
	users
	ref          SetRef
	bad          bool // missing or invalid
	id, openID   SetID
	full, opened []netip.Prefix
}

func (c *Compiler) setGroup(ref SetRef) *setGroup {
	g := c.setGroups[ref]
	if g == nil {
		g = &setGroup{users: users{}, ref: ref}
		g.id = SetID("set:" + plainOrQuoted(ref.Namespace) + "/" + plainOrQuoted(ref.Name))
		c.setGroups[ref] = g
		g.refresh(c)
	}
	return g
}

// refresh takes over the set as it is now.
func (g *setGroup) refresh(c *Compiler) {
	set := c.sets[g.ref]
	g.bad, g.full, g.opened = set == nil || set.Invalid, nil, nil
	if !g.bad {
		g.full, g.opened = c.networks(set.Networks, set.Except)
	}
	c.fixedSource(g.id, g.full)
	if g.openID != "" && g.openID != g.id {
		c.dropSource(g.openID)
	}
	g.openID = g.id
	if !slices.Equal(g.full, g.opened) {
		g.openID = g.id + ":unprotected"
		c.fixedSource(g.openID, g.opened)
	}
}

func (g *setGroup) drop(c *Compiler) {
	delete(c.setGroups, g.ref)
	c.dropSource(g.id)
	if g.openID != g.id {
		c.dropSource(g.openID)
	}
}

// networks returns networks less except, and the part of it that an Accept for
// Egress reaches: without what is protected and not named by one of networks.
func (c *Compiler) networks(networks, except []netip.Prefix) (full, opened []netip.Prefix) {
	out := canonicalPrefixes(except)
	full = subtractPrefixes(canonicalPrefixes(networks), out)
	if !overlaps(full, c.protected) {
		return full, full
	}
	var naming []netip.Prefix
	for _, n := range cleanPrefixes(networks) {
		if slices.ContainsFunc(c.protectedRaw, func(p netip.Prefix) bool {
			return p.Overlaps(n) && p.Bits() <= n.Bits()
		}) {
			naming = append(naming, n)
		}
	}
	named := subtractPrefixes(canonicalPrefixes(naming), out)
	opened = canonicalPrefixes(slices.Concat(subtractPrefixes(full, c.protected), named))
	return full, opened
}

// serviceGroup is a Service as a peer: for every target port the addresses of
// the backends that have it, of them all or of pods with a port of that name.
type serviceGroup struct {
	users
	ref   ServiceRef
	names map[string]struct{} // of container ports asked for; "" is always there
	sets  map[serviceKey]SetID
}

type serviceKey struct {
	portKey
	name string
}

func (c *Compiler) serviceGroup(ref ServiceRef) *serviceGroup {
	g := c.serviceGroups[ref]
	if g == nil {
		g = &serviceGroup{users: users{}, ref: ref, names: map[string]struct{}{"": {}}, sets: map[serviceKey]SetID{}}
		c.serviceGroups[ref] = g
		g.refresh(c)
	}
	return g
}

// named makes sure that the sets for a container port's name exist.
func (g *serviceGroup) named(c *Compiler, name string) {
	if _, ok := g.names[name]; !ok {
		g.names[name] = struct{}{}
		g.refresh(c)
	}
}

// refresh takes over the Service and its backends' pods as they are now.
func (g *serviceGroup) refresh(c *Compiler) {
	content := map[serviceKey][]netip.Prefix{}
	if svc := c.services[g.ref]; svc != nil {
		for _, sp := range svc.Ports {
			if !sp.Protocol.HasPorts() {
				continue
			}
			for _, b := range sp.Backends {
				addr := packet.Unmap(b.Addr())
				p := netip.PrefixFrom(addr, addr.BitLen())
				for name := range g.names {
					k := serviceKey{portKey{sp.Protocol, b.Port()}, name}
					if name == "" || c.podHasPort(addr, name, k.portKey) {
						content[k] = append(content[k], p)
					}
				}
			}
		}
	}
	for k, id := range g.sets {
		if content[k] == nil {
			c.dropSource(id)
			delete(g.sets, k)
		}
	}
	for k, list := range content {
		id := "svc:" + plainOrQuoted(g.ref.Namespace) + "/" + plainOrQuoted(g.ref.Name) + ":" + k.String()
		if k.name != "" {
			id += ":port=" + plainOrQuoted(k.name)
		}
		g.sets[k] = SetID(id)
		c.fixedSource(SetID(id), canonicalPrefixes(list))
	}
}

// podHasPort reports whether some pod with an address has a named container port.
func (c *Compiler) podHasPort(a netip.Addr, name string, k portKey) bool {
	for ps := range c.podsByAddr[a] {
		if slices.Contains(namedPorts(ps.pod, name), k) {
			return true
		}
	}
	return false
}

func (g *serviceGroup) drop(c *Compiler) {
	delete(c.serviceGroups, g.ref)
	for _, id := range g.sets {
		c.dropSource(id)
	}
}
