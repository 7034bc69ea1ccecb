package policy

import (
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"time"

	"github.com/postern-dev/postern/internal/packet"
)

// Compiler compiles incrementally: each Apply costs in proportion to what it
// changed, and leaves exactly what Compile makes of the same state (P3).
//
// How it stays small: selectors are shared queries that know their members
// (query.go); sets count addresses (source.go); a policy is compiled only while
// it selects an endpoint (compile_policy.go); endpoints that are governed by the
// same policies share a Ruleset (compile_endpoint.go).
//
// It is synchronous and must not be used concurrently. Results that it has
// returned are never changed afterwards.
type Compiler struct {
	isLocal func(*Pod) bool

	// The state, as in Snapshot.
	revision     uint64
	now          time.Time
	tiers        map[string]Tier
	protected    []netip.Prefix // canonical
	protectedRaw []netip.Prefix // as written, cleaned: "inside one of them" is about these
	namespaces   map[string]*Namespace
	pods         map[PodKey]*podState
	nodes        map[string]*Node
	policies     map[PolicyKey]*policyState
	services     map[ServiceRef]*Service
	sets         map[SetRef]*DestinationSet

	// Indexes.
	tierOrder  []Tier
	tierIndex  map[string]int
	queries    queryIndex
	podIndex   podIndex
	podsByAddr map[netip.Addr]map[*podState]struct{}
	expiring   map[*policyState]struct{} // policies with an Accept that expires

	// What policies are compiled into.
	sources       map[SetID]*source
	nodeGroups    map[string]*nodeGroup
	netGroups     map[SetID]*netGroup
	setGroups     map[SetRef]*setGroup
	serviceGroups map[ServiceRef]*serviceGroup
	rulesets      map[string]*rulesetState
	setUses       map[SetID]int // rulesets that name a set
	published     map[SetID][]netip.Prefix
	capacity      map[PodKey][2]error

	// What the present Apply has to look at again.
	dirtyPolicies  map[*policyState]struct{}
	dirtyEndpoints map[*podState]struct{}
	staleServices  map[*serviceGroup]struct{}
	touched        map[SetID]struct{}
	retired        []*policyState // gone or replaced; released when their successors are compiled
	made           int            // policies so far, for numbering
}

// podState is a pod with what follows from it.
type podState struct {
	pod     *Pod
	queries []*podQuery // that select it, in their order
	local   bool        // it is an endpoint
	dead    bool        // deleted; its endpoint goes
	// of the endpoint, if there is one
	exists bool
	uid    string
	ids    [2]string
	addrs  []netip.Addr
}

// NewCompiler returns a Compiler of the empty Snapshot. local says which pods
// are endpoints, asked at each upsert of a pod; nil means all of them.
// Host-network pods never are.
func NewCompiler(local func(*Pod) bool) *Compiler {
	c := &Compiler{
		isLocal:    local,
		tiers:      map[string]Tier{},
		namespaces: map[string]*Namespace{},
		pods:       map[PodKey]*podState{},
		nodes:      map[string]*Node{},
		policies:   map[PolicyKey]*policyState{},
		services:   map[ServiceRef]*Service{},
		sets:       map[SetRef]*DestinationSet{},
		queries:    queryIndex{byText: map[string]*podQuery{}, buckets: map[bucket]map[*podQuery]struct{}{}},
		podIndex: podIndex{
			byNamespace: map[string]map[*podState]struct{}{}, byLabel: map[labelPair]map[*podState]struct{}{},
		},
		podsByAddr:     map[netip.Addr]map[*podState]struct{}{},
		expiring:       map[*policyState]struct{}{},
		sources:        map[SetID]*source{},
		nodeGroups:     map[string]*nodeGroup{},
		netGroups:      map[SetID]*netGroup{},
		setGroups:      map[SetRef]*setGroup{},
		serviceGroups:  map[ServiceRef]*serviceGroup{},
		rulesets:       map[string]*rulesetState{},
		setUses:        map[SetID]int{},
		published:      map[SetID][]netip.Prefix{},
		capacity:       map[PodKey][2]error{},
		dirtyPolicies:  map[*policyState]struct{}{},
		dirtyEndpoints: map[*podState]struct{}{},
		staleServices:  map[*serviceGroup]struct{}{},
		touched:        map[SetID]struct{}{},
	}
	c.fixedSource(SetIDProtected, nil)
	c.orderTiers()
	return c
}

// Apply takes changes over and returns what they change in the result. The
// error joins, in a steady order, a CapacityError for every endpoint whose rules
// do not fit at present; the Delta is complete even so, and denies those.
func (c *Compiler) Apply(ch Changes) (Delta, error) {
	if ch.Revision != 0 {
		c.revision = ch.Revision
	}
	d := Delta{Revision: c.revision}
	c.applyTiers(ch)
	if ch.Protected != nil {
		c.applyProtected(*ch.Protected)
	}
	if !ch.Time.IsZero() {
		c.applyTime(ch.Time)
	}
	c.applySets(ch)
	c.applyNamespaces(ch)
	c.applyPods(ch)
	d.ServicesChanged = c.applyServices(ch)
	d.ServicesChanged = c.applyNodes(ch) || d.ServicesChanged
	c.applyPolicies(ch)

	c.compilePolicies()
	err := c.compileEndpoints(&d)
	c.publish(&d)
	d.NextExpiry = c.NextExpiry()
	return d, err
}

// Compiled returns the whole result as it is now. The maps are the caller's,
// what they hold is shared and must not be changed.
func (c *Compiler) Compiled() *Compiled {
	out := &Compiled{
		Revision: c.revision, NextExpiry: c.NextExpiry(),
		Rulesets: map[string]*Ruleset{}, Endpoints: map[PodKey][2]string{},
		Addresses: map[PodKey][]netip.Addr{}, Sets: maps.Clone(c.published),
	}
	for id, rs := range c.rulesets {
		out.Rulesets[id] = rs.ruleset
	}
	for key, ps := range c.pods {
		if ps.exists {
			out.Endpoints[key], out.Addresses[key] = ps.ids, ps.addrs
		}
	}
	return out
}

// NextExpiry returns when the result changes by time alone: the next expiry
// of an Accept that is in force for some endpoint. Zero means never.
func (c *Compiler) NextExpiry() time.Time {
	var next time.Time
	for p := range c.expiring {
		if p.query == nil || p.query.local == 0 {
			continue
		}
		for _, t := range p.expiries {
			if t.After(c.now) && (next.IsZero() || t.Before(next)) {
				next = t
			}
		}
	}
	return next
}

func (c *Compiler) policiesDirty(set map[*policyState]struct{}) {
	maps.Copy(c.dirtyPolicies, set)
}

func (c *Compiler) everythingDirty() {
	for _, p := range c.policies {
		c.dirtyPolicies[p] = struct{}{}
	}
	for _, ps := range c.pods {
		c.dirtyEndpoints[ps] = struct{}{}
	}
}

func (c *Compiler) applyTiers(ch Changes) {
	changed := false
	for _, name := range ch.TiersDeleted {
		_, ok := c.tiers[name]
		changed = changed || ok
		delete(c.tiers, name)
	}
	for _, t := range ch.Tiers {
		old, ok := c.tiers[t.Name]
		changed = changed || !ok || old != t
		c.tiers[t.Name] = t
	}
	if changed {
		c.orderTiers()
		c.everythingDirty()
	}
}

func (c *Compiler) orderTiers() {
	all := maps.Clone(c.tiers)
	for _, t := range BuiltinTiers() {
		if _, ok := all[t.Name]; !ok {
			all[t.Name] = t
		}
	}
	c.tierOrder = slices.SortedFunc(maps.Values(all), func(a, b Tier) int {
		if a.Order != b.Order {
			if a.Order < b.Order {
				return -1
			}
			return 1
		}
		if a.Name < b.Name {
			return -1
		}
		return 1
	})
	c.tierIndex = map[string]int{}
	for i, t := range c.tierOrder {
		c.tierIndex[t.Name] = i
	}
}

func (c *Compiler) applyProtected(protected []netip.Prefix) {
	clean := cleanPrefixes(protected)
	slices.SortFunc(clean, comparePrefixes)
	if slices.Equal(clean, c.protectedRaw) {
		return
	}
	c.protectedRaw, c.protected = clean, canonicalPrefixes(clean)
	c.fixedSource(SetIDProtected, c.protected)
	for _, q := range c.queries.byText {
		for key, g := range q.groups {
			if !key.guarded {
				continue
			}
			for _, pg := range g.byPort {
				c.recut(pg.source)
			}
			if g.plain != nil {
				c.recut(g.plain)
			}
		}
	}
	for _, g := range c.setGroups {
		g.refresh(c)
	}
	c.everythingDirty()
}

// recut builds a guarded source anew for other protected networks.
func (c *Compiler) recut(s *source) {
	s.without, s.content = c.protected, nil
	for a := range s.counts {
		s.pending[a] = struct{}{}
	}
	c.touched[s.id] = struct{}{}
}

func (c *Compiler) applyTime(now time.Time) {
	before := c.now
	c.now = now
	for p := range c.expiring {
		for _, t := range p.expiries {
			if t.After(before) != t.After(now) {
				c.dirtyPolicies[p] = struct{}{}
				break
			}
		}
	}
}

func (c *Compiler) applySets(ch Changes) {
	changed := map[SetRef]struct{}{}
	for _, ref := range ch.SetsDeleted {
		delete(c.sets, ref)
		changed[ref] = struct{}{}
	}
	for i := range ch.Sets {
		set := &ch.Sets[i]
		if old := c.sets[set.Ref]; old != nil && reflect.DeepEqual(old, set) {
			continue
		}
		c.sets[set.Ref] = set
		changed[set.Ref] = struct{}{}
	}
	for ref := range changed {
		if g := c.setGroups[ref]; g != nil {
			g.refresh(c)
			c.policiesDirty(g.users)
		}
	}
}

func (c *Compiler) applyServices(ch Changes) bool {
	changed := map[ServiceRef]struct{}{}
	for _, ref := range ch.ServicesDeleted {
		if _, ok := c.services[ref]; ok {
			delete(c.services, ref)
			changed[ref] = struct{}{}
		}
	}
	for i := range ch.Services {
		svc := &ch.Services[i]
		ref := ServiceRef{svc.Namespace, svc.Name}
		if old := c.services[ref]; old != nil && reflect.DeepEqual(old, svc) {
			continue
		}
		c.services[ref] = svc
		changed[ref] = struct{}{}
	}
	for ref := range changed {
		if g := c.serviceGroups[ref]; g != nil {
			g.refresh(c)
			c.policiesDirty(g.users)
		}
	}
	for g := range c.staleServices {
		g.refresh(c)
		c.policiesDirty(g.users)
	}
	clear(c.staleServices)
	return len(changed) > 0
}

func (c *Compiler) applyNodes(ch Changes) bool {
	changed := false
	set := func(name string, n *Node) {
		old := c.nodes[name]
		if old == n || (old != nil && n != nil && reflect.DeepEqual(old, n)) {
			return
		}
		changed = true
		for _, g := range c.nodeGroups {
			if old != nil {
				g.count(c, old, -1)
			}
			if n != nil {
				g.count(c, n, 1)
			}
		}
		if n == nil {
			delete(c.nodes, name)
		} else {
			c.nodes[name] = n
		}
		c.touched[SetIDOwnNode(name)] = struct{}{}
	}
	for _, name := range ch.NodesDeleted {
		set(name, nil)
	}
	for i := range ch.Nodes {
		set(ch.Nodes[i].Name, &ch.Nodes[i])
	}
	return changed
}

// ownNode returns the addresses of a node.
func (c *Compiler) ownNode(name string) []netip.Prefix {
	n := c.nodes[name]
	if n == nil {
		return nil
	}
	var list []netip.Prefix
	for _, a := range n.IPs {
		a = packet.Unmap(a)
		list = append(list, netip.PrefixFrom(a, a.BitLen()))
	}
	return canonicalPrefixes(list)
}

// publish works out how the sets of the result changed.
func (c *Compiler) publish(d *Delta) {
	d.SetsChanged = map[SetID]SetDelta{}
	for id := range c.touched {
		old, was := c.published[id]
		if c.setUses[id] == 0 && id != SetIDProtected {
			if was {
				delete(c.published, id)
				d.SetsRemoved = append(d.SetsRemoved, id)
			}
			continue
		}
		content := c.content(id)
		change := diffPrefixes(old, content)
		if !was || len(change.Add) > 0 || len(change.Remove) > 0 {
			c.published[id] = content
			d.SetsChanged[id] = change
		}
	}
	clear(c.touched)
	slices.Sort(d.SetsRemoved)
}

func (c *Compiler) content(id SetID) []netip.Prefix {
	if s := c.sources[id]; s != nil {
		s.flush()
		return s.content
	}
	if len(id) > len("node:") && id[:len("node:")] == "node:" {
		return c.ownNode(string(id[len("node:"):]))
	}
	return nil
}
