package policy

import (
	"cmp"
	"fmt"
	"slices"
)

// Conflict is a pair of policies of one tier and equal priority that select a
// pod in common and both govern a direction of it: which of them comes first is
// settled by kind, namespace and name, which is hardly what the authors meant.
// The networkpolicy tier has no conflicts: its policies only add up.
type Conflict struct {
	Tier     string    `json:"tier"`
	Priority int32     `json:"priority"`
	First    PolicyKey `json:"first"`  // the one that is evaluated first
	Second   PolicyKey `json:"second"` //
	Pod      PodKey    `json:"pod"`    // the first pod by name that both select
	Pods     int       `json:"pods"`   // how many there are
}

// String prints c as a sentence.
func (c Conflict) String() string {
	return fmt.Sprintf("%s and %s both have priority %d in tier %s and select %d pods, such as %s; the first wins",
		c.First, c.Second, c.Priority, c.Tier, c.Pods, c.Pod)
}

// Conflicts returns every Conflict of s, by tier, priority and names. A policy
// of an unknown tier has none: that it is out of place is reported elsewhere.
func Conflicts(s *Snapshot) []Conflict {
	type place struct {
		tier     string
		priority int32
	}
	groups := map[place][]*Policy{}
	for i := range s.Policies {
		p := &s.Policies[i]
		if (&walk{s: s}).knownTier(p) && p.Tier != TierNetworkPolicy {
			at := place{p.Tier, p.Priority}
			groups[at] = append(groups[at], p)
		}
	}
	pods := sortedPods(s)
	var out []Conflict
	for _, group := range groups {
		if len(group) > 1 {
			sortPolicies(group)
			out = append(out, conflictsOf(s, group, pods)...)
		}
	}
	slices.SortFunc(out, func(a, b Conflict) int {
		return cmp.Or(cmp.Compare(a.Tier, b.Tier), cmp.Compare(a.Priority, b.Priority),
			comparePolicyKeys(a.First, b.First), comparePolicyKeys(a.Second, b.Second))
	})
	return out
}

// conflictsOf returns the pairs of policies of one place that share a pod.
func conflictsOf(s *Snapshot, group []*Policy, pods []*Pod) []Conflict {
	type pair struct{ first, second int }
	found := map[pair]*Conflict{}
	for _, pod := range pods {
		w := &walk{s: s, pod: pod}
		var selecting []int
		for i, p := range group {
			if w.selects(&p.Subject) {
				selecting = append(selecting, i)
			}
		}
		for n, i := range selecting {
			for _, j := range selecting[n+1:] {
				a, b := group[i], group[j]
				if !slices.ContainsFunc(Directions[:], func(dir Direction) bool { return governs(a, dir) && governs(b, dir) }) {
					continue
				}
				c := found[pair{i, j}]
				if c == nil {
					c = &Conflict{Tier: a.Tier, Priority: a.Priority, First: a.Key(), Second: b.Key(), Pod: pod.Key()}
					found[pair{i, j}] = c
				}
				c.Pods++
			}
		}
	}
	out := make([]Conflict, 0, len(found))
	for _, c := range found {
		out = append(out, *c)
	}
	return out
}

func comparePolicyKeys(a, b PolicyKey) int {
	return cmp.Or(cmp.Compare(a.Kind, b.Kind), compareNames(a.Namespace, a.Name, b.Namespace, b.Name))
}

func sortedPods(s *Snapshot) []*Pod {
	out := make([]*Pod, 0, len(s.Pods))
	for i := range s.Pods {
		out = append(out, &s.Pods[i])
	}
	slices.SortFunc(out, func(a, b *Pod) int { return compareNames(a.Namespace, a.Name, b.Namespace, b.Name) })
	return out
}
