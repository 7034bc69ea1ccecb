package policy

import (
	"fmt"
	"strings"
)

// Leftovers says what the Compiler still holds that only policies and pods
// account for. It is empty if there are neither: nothing leaks.
func (c *Compiler) Leftovers() string {
	var out []string
	for name, n := range map[string]int{
		"policies": len(c.policies), "pods": len(c.pods), "queries": len(c.queries.byText), "buckets": len(c.queries.buckets),
		"namespaces indexed": len(c.podIndex.byNamespace), "labels indexed": len(c.podIndex.byLabel),
		"addresses indexed": len(c.podsByAddr), "expiring": len(c.expiring), "sources": len(c.sources) - 1, // SetIDProtected
		"node groups": len(c.nodeGroups), "net groups": len(c.netGroups), "set groups": len(c.setGroups),
		"service groups": len(c.serviceGroups), "rulesets": len(c.rulesets), "set uses": len(c.setUses),
		"published sets": len(c.published) - 1, "capacity errors": len(c.capacity), "touched sets": len(c.touched),
		"dirty policies": len(c.dirtyPolicies), "dirty endpoints": len(c.dirtyEndpoints), "stale services": len(c.staleServices),
		"retired": len(c.retired),
	} {
		if n != 0 {
			out = append(out, fmt.Sprintf("%d %s", n, name))
		}
	}
	return strings.Join(out, ", ")
}

// Sources returns how many sets the Compiler keeps up to date.
func (c *Compiler) Sources() int { return len(c.sources) }
