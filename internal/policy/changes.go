package policy

import (
	"maps"
	"net/netip"
	"slices"
	"time"
)

// Changes is the input of one incremental compilation. Deletes are applied
// before upserts, so an object in both is replaced; of two upserts of one
// object the last one counts. Deleting what does not exist is no error.
// Everything pointed to must not be changed afterwards.
type Changes struct {
	// Revision is that of the resulting state; 0 leaves it as it was.
	Revision uint64
	// Time is what ExpiresAt is compared with; zero leaves it as it was.
	Time time.Time
	// Protected, if not nil, replaces Snapshot.Protected.
	Protected *[]netip.Prefix

	Tiers      []Tier
	Policies   []Policy
	Namespaces []Namespace
	Pods       []Pod
	Nodes      []Node
	Services   []Service
	Sets       []DestinationSet

	TiersDeleted      []string // a built-in tier falls back to its default
	PoliciesDeleted   []PolicyKey
	NamespacesDeleted []string
	PodsDeleted       []PodKey
	NodesDeleted      []string
	ServicesDeleted   []ServiceRef
	SetsDeleted       []SetRef
}

// ChangesFrom returns the changes that lead from nothing to s.
func ChangesFrom(s *Snapshot) Changes {
	return Changes{
		Revision: s.Revision, Time: s.Time, Protected: &s.Protected,
		Tiers: s.Tiers, Policies: s.Policies, Namespaces: s.Namespaces, Pods: s.Pods,
		Nodes: s.Nodes, Services: s.Services, Sets: s.Sets,
	}
}

// Compile returns the rulesets of every pod for which local is true (nil: every
// pod), host-network pods excluded. The error joins a CapacityError for each
// endpoint whose rules do not fit; the Compiled is complete and closed even so.
func Compile(s *Snapshot, local func(*Pod) bool) (*Compiled, error) {
	c := NewCompiler(local)
	_, err := c.Apply(ChangesFrom(s))
	return c.Compiled(), err
}

// Apply makes c what it is after the changes of d, as a consumer of Deltas would.
func (c *Compiled) Apply(d Delta) {
	c.Revision, c.NextExpiry = d.Revision, d.NextExpiry
	if c.Rulesets == nil {
		c.Rulesets, c.Endpoints = map[string]*Ruleset{}, map[PodKey][2]string{}
		c.Addresses, c.Sets = map[PodKey][]netip.Addr{}, map[SetID][]netip.Prefix{}
	}
	for id, change := range d.SetsChanged {
		gone := map[netip.Prefix]bool{}
		for _, p := range change.Remove {
			gone[p] = true
		}
		next := slices.DeleteFunc(slices.Clone(c.Sets[id]), func(p netip.Prefix) bool { return gone[p] })
		next = append(next, change.Add...)
		slices.SortFunc(next, comparePrefixes)
		c.Sets[id] = next
	}
	maps.Copy(c.Rulesets, d.RulesetsAdded)
	maps.Copy(c.Endpoints, d.Endpoints)
	maps.Copy(c.Addresses, d.Addresses)
	for _, key := range d.EndpointsGone {
		delete(c.Endpoints, key)
		delete(c.Addresses, key)
	}
	for _, id := range d.RulesetsRemoved {
		delete(c.Rulesets, id)
	}
	for _, id := range d.SetsRemoved {
		delete(c.Sets, id)
	}
}
