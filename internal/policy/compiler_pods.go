package policy

import (
	"maps"
	"net/netip"
	"reflect"
	"slices"

	"github.com/postern-dev/postern/internal/packet"
)

func (c *Compiler) applyNamespaces(ch Changes) {
	changed := map[string]struct{}{}
	for _, name := range ch.NamespacesDeleted {
		delete(c.namespaces, name)
		changed[name] = struct{}{}
	}
	for i := range ch.Namespaces {
		ns := &ch.Namespaces[i]
		if old := c.namespaces[ns.Name]; old != nil && maps.Equal(old.Labels, ns.Labels) {
			continue
		}
		c.namespaces[ns.Name] = ns
		changed[ns.Name] = struct{}{}
	}
	for name := range changed {
		for ps := range c.podIndex.byNamespace[name] {
			c.requery(ps, ps.pod)
		}
	}
}

// namespaceLabels returns a namespace's labels; one that is not known has its name only.
func (c *Compiler) namespaceLabels(name string) map[string]string {
	if ns := c.namespaces[name]; ns != nil {
		return ns.Labels
	}
	return map[string]string{LabelNamespaceName: name}
}

func (c *Compiler) applyPods(ch Changes) {
	for _, key := range ch.PodsDeleted {
		if ps := c.pods[key]; ps != nil {
			c.replacePod(ps, nil)
		}
	}
	for i := range ch.Pods {
		p := &ch.Pods[i]
		ps := c.pods[p.Key()]
		if ps == nil {
			ps = &podState{}
			c.pods[p.Key()] = ps
		}
		c.replacePod(ps, p)
	}
}

// replacePod makes ps what p says; nil p ends it.
func (c *Compiler) replacePod(ps *podState, p *Pod) {
	old := ps.pod
	wasDead := old == nil || ps.dead
	if p == nil {
		if wasDead {
			return
		}
		c.unindexPod(ps)
		c.move(ps, old, nil)
		ps.dead, ps.local = true, false
		c.dirtyEndpoints[ps] = struct{}{}
		c.portsChanged(old)
		return
	}
	local := !p.HostNetwork && (c.isLocal == nil || c.isLocal(p))
	if !wasDead && local == ps.local && reflect.DeepEqual(old, p) {
		return
	}
	if !wasDead {
		c.unindexPod(ps)
	} else {
		old = nil
	}
	reachable := old == nil || old.HostNetwork != p.HostNetwork ||
		!slices.Equal(old.IPs, p.IPs) || !slices.Equal(old.Ports, p.Ports)
	// Queries count their endpoints; the old and the new one are told apart here.
	for _, q := range ps.queries {
		c.countLocal(q, ps.local, local)
	}
	ps.dead, ps.local = false, local
	c.dirtyEndpoints[ps] = struct{}{}
	c.indexPod(ps, p)
	c.move(ps, old, p)
	if reachable {
		if old != nil {
			c.portsChanged(old)
		}
		c.portsChanged(p)
	}
}

func (c *Compiler) countLocal(q *podQuery, was, is bool) {
	if was == is {
		return
	}
	before := q.local
	if is {
		q.local++
	} else {
		q.local--
	}
	if before == 0 || q.local == 0 {
		// Whether a policy has an endpoint decides whether it is compiled.
		c.policiesDirty(q.subjects)
	}
}

func (c *Compiler) indexPod(ps *podState, p *Pod) {
	ps.pod = p
	if p.HostNetwork {
		return
	}
	c.podIndex.add(ps)
	for _, a := range p.IPs {
		a = packet.Unmap(a)
		if c.podsByAddr[a] == nil {
			c.podsByAddr[a] = map[*podState]struct{}{}
		}
		c.podsByAddr[a][ps] = struct{}{}
	}
}

func (c *Compiler) unindexPod(ps *podState) {
	if ps.pod.HostNetwork {
		return
	}
	c.podIndex.remove(ps)
	for _, a := range ps.pod.IPs {
		a = packet.Unmap(a)
		delete(c.podsByAddr[a], ps)
		if len(c.podsByAddr[a]) == 0 {
			delete(c.podsByAddr, a)
		}
	}
}

// requery finds the queries that select a pod again, the pod being the same.
func (c *Compiler) requery(ps *podState, p *Pod) { c.move(ps, p, p) }

// move takes a pod from the queries that selected it to those that select it now.
func (c *Compiler) move(ps *podState, old, p *Pod) {
	var next []*podQuery
	if p != nil && !p.HostNetwork {
		next = c.queries.matching(p, c.namespaceLabels(p.Namespace))
	}
	same := old == p || (old != nil && p != nil && slices.Equal(old.IPs, p.IPs) && slices.Equal(old.Ports, p.Ports))
	before := ps.queries
	ps.queries = next
	for len(before) > 0 || len(next) > 0 {
		switch {
		case len(next) == 0 || (len(before) > 0 && before[0].order < next[0].order):
			c.leave(before[0], ps, old)
			before = before[1:]
		case len(before) == 0 || next[0].order < before[0].order:
			c.join(next[0], ps, p)
			next = next[1:]
		default:
			if q := next[0]; !same {
				for _, g := range q.groups {
					g.count(c, p, 1)
				}
				for _, g := range q.groups {
					g.count(c, old, -1)
				}
			}
			before, next = before[1:], next[1:]
		}
	}
}

func (c *Compiler) leave(q *podQuery, ps *podState, old *Pod) {
	delete(q.members, ps)
	c.countLocal(q, ps.local, false)
	if len(q.subjects) > 0 {
		c.dirtyEndpoints[ps] = struct{}{}
	}
	for _, g := range q.groups {
		g.count(c, old, -1)
	}
}

func (c *Compiler) join(q *podQuery, ps *podState, p *Pod) {
	q.members[ps] = struct{}{}
	c.countLocal(q, false, ps.local)
	if len(q.subjects) > 0 {
		c.dirtyEndpoints[ps] = struct{}{}
	}
	for _, g := range q.groups {
		g.count(c, p, 1)
	}
}

// portsChanged tells the Services whose peers ask for container ports by name
// that a pod they may lead to changed.
func (c *Compiler) portsChanged(p *Pod) {
	if p.HostNetwork {
		return
	}
	for ref, g := range c.serviceGroups {
		if len(g.names) > 1 && leadsTo(c.services[ref], p.IPs) {
			c.staleServices[g] = struct{}{}
		}
	}
}

func leadsTo(svc *Service, addrs []netip.Addr) bool {
	if svc == nil {
		return false
	}
	for _, sp := range svc.Ports {
		for _, b := range sp.Backends {
			for _, a := range addrs {
				if packet.Unmap(a) == packet.Unmap(b.Addr()) {
					return true
				}
			}
		}
	}
	return false
}

// query returns the shared query for a text, with its members, making it if need be.
func (c *Compiler) query(q *podQuery) *podQuery {
	if have := c.queries.byText[q.text]; have != nil {
		return have
	}
	c.queries.add(q)
	c.podIndex.candidates(q, c.namespaceLabels, func(ps *podState) {
		if q.selects(ps.pod, c.namespaceLabels(ps.pod.Namespace)) {
			q.members[ps] = struct{}{}
			ps.queries = append(ps.queries, q) // the newest query has the highest order
			if ps.local {
				q.local++
			}
		}
	})
	return q
}

// releaseQuery forgets a query that nobody uses any more.
func (c *Compiler) releaseQuery(q *podQuery) {
	if len(q.subjects) > 0 || len(q.groups) > 0 || c.queries.byText[q.text] != q {
		return
	}
	c.queries.remove(q)
	for ps := range q.members {
		ps.queries = slices.DeleteFunc(ps.queries, func(o *podQuery) bool { return o == q })
	}
}
