package policytest

import (
	"slices"

	"github.com/postern-dev/postern/internal/policy"
)

// Shrink returns a Snapshot that is as small as it finds and for which fails
// still is true. It removes objects, then rules, then peers and ports.
func Shrink(s *policy.Snapshot, fails func(*policy.Snapshot) bool) *policy.Snapshot {
	best := *s
	try := func(next policy.Snapshot) bool {
		if fails(&next) {
			best = next
			return true
		}
		return false
	}
	for again := true; again; {
		again = false
		again = shrinkList(&best, try, func(s *policy.Snapshot) *[]policy.Policy { return &s.Policies }) || again
		again = shrinkList(&best, try, func(s *policy.Snapshot) *[]policy.Pod { return &s.Pods }) || again
		again = shrinkList(&best, try, func(s *policy.Snapshot) *[]policy.Service { return &s.Services }) || again
		again = shrinkList(&best, try, func(s *policy.Snapshot) *[]policy.DestinationSet { return &s.Sets }) || again
		again = shrinkList(&best, try, func(s *policy.Snapshot) *[]policy.Namespace { return &s.Namespaces }) || again
		again = shrinkList(&best, try, func(s *policy.Snapshot) *[]policy.Node { return &s.Nodes }) || again
		again = shrinkList(&best, try, func(s *policy.Snapshot) *[]policy.Tier { return &s.Tiers }) || again
		for i := range best.Policies {
			for _, dir := range policy.Directions {
				again = shrinkList(&best, try, func(s *policy.Snapshot) *[]policy.Rule {
					s.Policies = slices.Clone(s.Policies)
					return &s.Policies[i].Rules[dir]
				}) || again
				for j := range best.Policies[i].Rules[dir] {
					rule := func(s *policy.Snapshot) *policy.Rule {
						s.Policies = slices.Clone(s.Policies)
						s.Policies[i].Rules[dir] = slices.Clone(s.Policies[i].Rules[dir])
						return &s.Policies[i].Rules[dir][j]
					}
					again = shrinkList(&best, try, func(s *policy.Snapshot) *[]policy.Peer { return &rule(s).Peers }) || again
					again = shrinkList(&best, try, func(s *policy.Snapshot) *[]policy.PortMatch { return &rule(s).Ports }) || again
				}
			}
		}
	}
	return &best
}

// shrinkList tries to do without each element of the list that field finds in a
// copy of best.
func shrinkList[T any](
	best *policy.Snapshot, try func(policy.Snapshot) bool, field func(*policy.Snapshot) *[]T,
) bool {
	shrunk := false
	for i := 0; ; {
		next := *best
		list := field(&next)
		if i >= len(*list) {
			return shrunk
		}
		*list = slices.Delete(slices.Clone(*list), i, i+1)
		if try(next) {
			shrunk = true
		} else {
			i++
		}
	}
}
