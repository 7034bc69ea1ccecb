package kube

import (
	"net/netip"
	"slices"

	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/postern-dev/postern/api/v1alpha1"
	"github.com/postern-dev/postern/internal/packet"
	"github.com/postern-dev/postern/internal/policy"
)

// DestinationSet translates a DestinationSet. decoded are Decode's findings on
// it, or nil; they are part of the result.
func DestinationSet(s *v1alpha1.DestinationSet, decoded []Finding) (policy.DestinationSet, []Finding) {
	return destinationSet(RefOf(s), policy.SetRef{Namespace: s.Namespace, Name: s.Name}, &s.Spec, decoded)
}

// ClusterDestinationSet translates a ClusterDestinationSet, as DestinationSet does.
func ClusterDestinationSet(s *v1alpha1.ClusterDestinationSet, decoded []Finding) (policy.DestinationSet, []Finding) {
	return destinationSet(RefOf(s), policy.SetRef{Name: s.Name}, &s.Spec, decoded)
}

func destinationSet(ref ObjectRef, set policy.SetRef, s *v1alpha1.DestinationSetSpec, decoded []Finding) (policy.DestinationSet, []Finding) {
	c := newChecker(ref, decoded)
	spec := field.NewPath("spec")
	c.atMost(spec.Child("networks"), len(s.Networks), setMaxItems)
	c.atMost(spec.Child("except"), len(s.Except), setMaxItems)
	out := policy.DestinationSet{
		Ref:      set,
		Networks: cidrs(c, spec.Child("networks"), s.Networks),
		Except:   cidrs(c, spec.Child("except"), s.Except),
	}
	if len(s.Networks) > v1alpha1.MaxSetNetworks || len(s.Except) > v1alpha1.MaxSetNetworks {
		c.errorf(spec, ReasonTooMany, "has more than %d networks: split the set", v1alpha1.MaxSetNetworks)
	}
	if s.Except != nil && s.Networks == nil {
		c.errorf(spec.Child("except"), ReasonConflict, "takes addresses out of networks: set networks beside it")
	} else if len(s.Except) > 0 && !c.marks.any {
		c.outsideNetworks(spec.Child("except"), out.Networks, out.Except)
	}
	if len(s.DomainNames) > 0 {
		out.DomainNames = c.domainNames(spec.Child("domainNames"), texts(s.DomainNames))
		c.warnf(spec.Child("domainNames"), ReasonNotEnforced, "are accepted and match nothing in this version")
	}
	out.Invalid = c.marks.any || c.marks.duplicate
	return out, c.result()
}

// setMaxItems is the limit of the schema; files may hold more.
const setMaxItems = 20000

// cidrs is networks without a copy of a million strings.
func cidrs(c *checker, path *field.Path, list []v1alpha1.CIDR) []netip.Prefix {
	if list == nil {
		return nil
	}
	out := make([]netip.Prefix, 0, len(list))
	for i, text := range list {
		if p, err := netip.ParsePrefix(string(text)); err == nil && p == packet.JudgedPrefix(p).Masked() {
			out = append(out, p)
		} else if p, ok := c.network(path.Index(i), string(text)); ok {
			out = append(out, p)
		}
	}
	return out
}

// outsideNetworks reports exceptions that take nothing out of networks.
func (c *checker) outsideNetworks(path *field.Path, networks, except []netip.Prefix) {
	sorted := slices.SortedFunc(slices.Values(networks), func(a, b netip.Prefix) int {
		return a.Addr().Compare(b.Addr())
	})
	// Networks are nested or disjoint, so an exception overlaps one of them if one
	// starts inside of it, or if one that starts before it contains it.
	reach := make([]netip.Prefix, len(sorted)) // the one that reaches furthest, so far
	for i, n := range sorted {
		reach[i] = n
		if i > 0 && reach[i-1].Overlaps(n) && reach[i-1].Bits() < n.Bits() {
			reach[i] = reach[i-1]
		}
	}
	for i, e := range except {
		at, _ := slices.BinarySearchFunc(sorted, e.Addr(), func(n netip.Prefix, a netip.Addr) int { return n.Addr().Compare(a) })
		inside := at < len(sorted) && e.Overlaps(sorted[at])
		before := at > 0 && e.Overlaps(reach[at-1])
		if !inside && !before {
			c.errorf(path.Index(i), ReasonConflict, "%s lies outside of networks and takes nothing out: correct one or the other", e)
		}
	}
}

// translateTier translates a Tier. A Tier that was not understood is not known:
// its policies are closed, since neither its place nor its end is certain.
func translateTier(t *v1alpha1.Tier, decoded []Finding) (tier policy.Tier, closed bool, fs []Finding) {
	c := newChecker(RefOf(t), decoded)
	spec := field.NewPath("spec")
	tier = policy.Tier{Name: t.Name, Order: t.Spec.Order}
	if errs := validation.IsDNS1123Label(t.Name); errs != nil {
		c.errorf(field.NewPath("metadata", "name"), ReasonInvalidValue, "%q is no name of a tier: %s", t.Name, errs[0])
	}
	for _, b := range policy.BuiltinTiers() {
		if t.Name == b.Name {
			c.errorf(field.NewPath("metadata", "name"), ReasonConflict, "%s is built in: choose another name", t.Name)
		}
		if t.Spec.Order == b.Order {
			c.errorf(spec.Child("order"), ReasonConflict, "%d belongs to the tier %s: choose another number", b.Order, b.Name)
		}
	}
	if t.Spec.Order < 1 || t.Spec.Order > maxTierOrder {
		c.errorf(spec.Child("order"), ReasonInvalidValue, "%d is not between 1 and %d", t.Spec.Order, maxTierOrder)
	}
	switch t.Spec.DefaultAction {
	case "", v1alpha1.TierDefaultPass:
	case v1alpha1.TierDefaultDeny:
		tier.DefaultDeny = true
	default:
		c.errorf(spec.Child("defaultAction"), ReasonInvalidValue, "%q is neither Pass nor Deny", t.Spec.DefaultAction)
	}
	fs = c.result()
	return tier, doubtful(fs, "status"), fs
}

const maxTierOrder = 9999
