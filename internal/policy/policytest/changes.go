package policytest

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"github.com/postern-dev/postern/internal/policy"
)

// RandomChanges returns about n changes of s: new, changed and deleted objects of
// every kind, facets of pods most of all. Update(s, changes) is what they lead to.
func RandomChanges(rng *rand.Rand, s *policy.Snapshot, n int) policy.Changes {
	g := gen{rng}
	ch := policy.Changes{Revision: s.Revision + 1}
	for range n {
		switch g.IntN(16) {
		case 0, 1, 2, 3, 4:
			g.changePod(s, &ch)
		case 5, 6, 7, 8:
			i := g.IntN(len(s.Policies) + 2)
			if i < len(s.Policies) && g.chance(3) {
				ch.PoliciesDeleted = append(ch.PoliciesDeleted, s.Policies[i].Key())
			} else {
				ch.Policies = append(ch.Policies, g.policy(i))
			}
		case 9:
			i := g.IntN(len(namespaceNames))
			if g.chance(3) {
				ch.NamespacesDeleted = append(ch.NamespacesDeleted, namespaceNames[i])
			} else {
				ch.Namespaces = append(ch.Namespaces, g.namespace(i))
			}
		case 10:
			if n := g.node(g.IntN(3)); g.chance(3) {
				ch.NodesDeleted = append(ch.NodesDeleted, n.Name)
			} else {
				ch.Nodes = append(ch.Nodes, n)
			}
		case 11, 12:
			if svc := g.service(g.IntN(5)); g.chance(3) {
				ch.ServicesDeleted = append(ch.ServicesDeleted, policy.ServiceRef{Namespace: svc.Namespace, Name: svc.Name})
			} else {
				ch.Services = append(ch.Services, svc)
			}
		case 13:
			if set := g.set(g.IntN(len(setNames))); g.chance(3) {
				ch.SetsDeleted = append(ch.SetsDeleted, set.Ref)
			} else {
				ch.Sets = append(ch.Sets, set)
			}
		case 14:
			if t := g.tier(g.IntN(len(tierNames))); g.chance(3) {
				ch.TiersDeleted = append(ch.TiersDeleted, t.Name)
			} else {
				ch.Tiers = append(ch.Tiers, t)
			}
		default:
			if g.chance(2) {
				ch.Time = Start.Add(time.Duration(g.IntN(121)-60) * time.Minute)
			} else {
				var protected []netip.Prefix
				if !g.chance(3) {
					protected = g.protected()
				}
				ch.Protected = &protected
			}
		}
	}
	return ch
}

// changePod changes one facet of a pod, makes one or deletes one.
func (g gen) changePod(s *policy.Snapshot, ch *policy.Changes) {
	i := g.IntN(len(s.Pods) + 2)
	if i >= len(s.Pods) {
		ch.Pods = append(ch.Pods, g.pod(i))
		return
	}
	p, fresh := s.Pods[i], g.pod(i)
	switch g.IntN(8) {
	case 0:
		ch.PodsDeleted = append(ch.PodsDeleted, p.Key())
		return
	case 1:
		p.IPs = fresh.IPs
	case 2:
		p.Ports = fresh.Ports
	case 3:
		p.Node = fresh.Node
	case 4:
		p.HostNetwork = fresh.HostNetwork
	case 5:
		p.ServiceAccount = fresh.ServiceAccount
	default:
		p.Labels = fresh.Labels
	}
	ch.Pods = append(ch.Pods, p)
}

// Update returns what s is after ch, as policy.Compiler takes it. s is not changed.
func Update(s *policy.Snapshot, ch policy.Changes) *policy.Snapshot {
	out := *s
	if ch.Revision != 0 {
		out.Revision = ch.Revision
	}
	if !ch.Time.IsZero() {
		out.Time = ch.Time
	}
	if ch.Protected != nil {
		out.Protected = *ch.Protected
	}
	out.Tiers = update(s.Tiers, ch.Tiers, ch.TiersDeleted, tierKey)
	out.Policies = update(s.Policies, ch.Policies, ch.PoliciesDeleted, policyKey)
	out.Namespaces = update(s.Namespaces, ch.Namespaces, ch.NamespacesDeleted, namespaceKey)
	out.Pods = update(s.Pods, ch.Pods, ch.PodsDeleted, podKey)
	out.Nodes = update(s.Nodes, ch.Nodes, ch.NodesDeleted, nodeKey)
	out.Services = update(s.Services, ch.Services, ch.ServicesDeleted, serviceKey)
	out.Sets = update(s.Sets, ch.Sets, ch.SetsDeleted, setKey)
	return &out
}

func tierKey(t *policy.Tier) string               { return t.Name }
func policyKey(p *policy.Policy) policy.PolicyKey { return p.Key() }
func namespaceKey(n *policy.Namespace) string     { return n.Name }
func podKey(p *policy.Pod) policy.PodKey          { return p.Key() }
func nodeKey(n *policy.Node) string               { return n.Name }
func setKey(d *policy.DestinationSet) policy.SetRef {
	return d.Ref
}

func serviceKey(s *policy.Service) policy.ServiceRef {
	return policy.ServiceRef{Namespace: s.Namespace, Name: s.Name}
}

func update[T any, K comparable](list, upserts []T, deleted []K, key func(*T) K) []T {
	var out []T
	for i := range list {
		if !slices.Contains(deleted, key(&list[i])) {
			out = append(out, list[i])
		}
	}
	for i := range upserts {
		k := key(&upserts[i])
		at := slices.IndexFunc(out, func(t T) bool { return key(&t) == k })
		if at < 0 {
			out = append(out, upserts[i])
		} else {
			out[at] = upserts[i]
		}
	}
	return out
}

// The expanders say the same thing in other words, after felix' calculation
// graph tests: whatever order and grouping updates come in, the result of the
// whole sequence must be the same.

// Split returns ch as one Changes for each object, in an order that keeps its
// meaning: deletes before upserts.
func Split(ch policy.Changes) []policy.Changes {
	out := []policy.Changes{{Revision: ch.Revision, Time: ch.Time, Protected: ch.Protected}}
	add := func(c policy.Changes) { out = append(out, c) }
	for _, k := range ch.TiersDeleted {
		add(policy.Changes{TiersDeleted: []string{k}})
	}
	for _, k := range ch.PoliciesDeleted {
		add(policy.Changes{PoliciesDeleted: []policy.PolicyKey{k}})
	}
	for _, k := range ch.NamespacesDeleted {
		add(policy.Changes{NamespacesDeleted: []string{k}})
	}
	for _, k := range ch.PodsDeleted {
		add(policy.Changes{PodsDeleted: []policy.PodKey{k}})
	}
	for _, k := range ch.NodesDeleted {
		add(policy.Changes{NodesDeleted: []string{k}})
	}
	for _, k := range ch.ServicesDeleted {
		add(policy.Changes{ServicesDeleted: []policy.ServiceRef{k}})
	}
	for _, k := range ch.SetsDeleted {
		add(policy.Changes{SetsDeleted: []policy.SetRef{k}})
	}
	for _, v := range ch.Tiers {
		add(policy.Changes{Tiers: []policy.Tier{v}})
	}
	for _, v := range ch.Policies {
		add(policy.Changes{Policies: []policy.Policy{v}})
	}
	for _, v := range ch.Namespaces {
		add(policy.Changes{Namespaces: []policy.Namespace{v}})
	}
	for _, v := range ch.Pods {
		add(policy.Changes{Pods: []policy.Pod{v}})
	}
	for _, v := range ch.Nodes {
		add(policy.Changes{Nodes: []policy.Node{v}})
	}
	for _, v := range ch.Services {
		add(policy.Changes{Services: []policy.Service{v}})
	}
	for _, v := range ch.Sets {
		add(policy.Changes{Sets: []policy.DestinationSet{v}})
	}
	return out
}

// Squash returns one Changes with the effect of a followed by b.
func Squash(a, b policy.Changes) policy.Changes {
	if b.Revision != 0 {
		a.Revision = b.Revision
	}
	if !b.Time.IsZero() {
		a.Time = b.Time
	}
	if b.Protected != nil {
		a.Protected = b.Protected
	}
	a.Tiers, a.TiersDeleted = squash(a.Tiers, b.Tiers, a.TiersDeleted, b.TiersDeleted, tierKey)
	a.Policies, a.PoliciesDeleted = squash(a.Policies, b.Policies, a.PoliciesDeleted, b.PoliciesDeleted, policyKey)
	a.Namespaces, a.NamespacesDeleted = squash(a.Namespaces, b.Namespaces, a.NamespacesDeleted, b.NamespacesDeleted, namespaceKey)
	a.Pods, a.PodsDeleted = squash(a.Pods, b.Pods, a.PodsDeleted, b.PodsDeleted, podKey)
	a.Nodes, a.NodesDeleted = squash(a.Nodes, b.Nodes, a.NodesDeleted, b.NodesDeleted, nodeKey)
	a.Services, a.ServicesDeleted = squash(a.Services, b.Services, a.ServicesDeleted, b.ServicesDeleted, serviceKey)
	a.Sets, a.SetsDeleted = squash(a.Sets, b.Sets, a.SetsDeleted, b.SetsDeleted, setKey)
	return a
}

func squash[T any, K comparable](a, b []T, aGone, bGone []K, key func(*T) K) ([]T, []K) {
	a = slices.DeleteFunc(slices.Clone(a), func(t T) bool { return slices.Contains(bGone, key(&t)) })
	return append(a, b...), slices.Concat(aGone, bGone)
}

// Reverse returns the same objects of s in the opposite order, which must not matter.
func Reverse(s *policy.Snapshot) *policy.Snapshot {
	out := *s
	out.Tiers, out.Policies, out.Pods = reversed(s.Tiers), reversed(s.Policies), reversed(s.Pods)
	out.Namespaces, out.Nodes = reversed(s.Namespaces), reversed(s.Nodes)
	out.Services, out.Sets = reversed(s.Services), reversed(s.Sets)
	return &out
}

func reversed[T any](list []T) []T {
	out := slices.Clone(list)
	slices.Reverse(out)
	return out
}

// Shuffle returns the same objects of s in a random order.
func Shuffle(rng *rand.Rand, s *policy.Snapshot) *policy.Snapshot {
	out := Reverse(s)
	rng.Shuffle(len(out.Tiers), func(i, j int) { out.Tiers[i], out.Tiers[j] = out.Tiers[j], out.Tiers[i] })
	rng.Shuffle(len(out.Policies), func(i, j int) { out.Policies[i], out.Policies[j] = out.Policies[j], out.Policies[i] })
	rng.Shuffle(len(out.Pods), func(i, j int) { out.Pods[i], out.Pods[j] = out.Pods[j], out.Pods[i] })
	rng.Shuffle(len(out.Nodes), func(i, j int) { out.Nodes[i], out.Nodes[j] = out.Nodes[j], out.Nodes[i] })
	rng.Shuffle(len(out.Services), func(i, j int) { out.Services[i], out.Services[j] = out.Services[j], out.Services[i] })
	rng.Shuffle(len(out.Sets), func(i, j int) { out.Sets[i], out.Sets[j] = out.Sets[j], out.Sets[i] })
	return out
}
