package kube

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/postern-dev/postern/internal/policy"
)

// Findings returns everything that is wrong: with the objects one by one, and
// with what they say of each other. Sorted.
func (w *World) Findings() []Finding {
	w.refresh()
	var out []Finding
	for ref := range w.noted {
		e := w.objects[ref]
		out = append(out, e.findings...)
		out = append(out, e.doubt...)
	}
	for ref := range w.special {
		if e := w.objects[ref]; e.policy != nil {
			out = append(out, w.references(ref, e)...)
		}
	}
	for _, notes := range w.hostPortNotes {
		out = append(out, notes...)
	}
	out = append(out, w.placeFindings()...)
	out = append(out, w.tierFindings()...)
	out = append(out, w.podFindings()...)
	out = append(out, w.endFindings()...)
	return SortFindings(out)
}

// Expired returns a warning for each rule that has expired by now. It is not part
// of Findings, which know no clock.
func (w *World) Expired(now time.Time) []Finding {
	var out []Finding
	for ref := range w.expiring {
		for _, r := range expiringRules(w.objects[ref].policy) {
			if r.ExpiresAt.After(now) {
				continue
			}
			out = append(out, Finding{
				Object: ref, Path: field.NewPath("spec", "egress").Index(r.Index).Child("expiresAt").String(), Severity: Warning, Reason: ReasonWithoutEffect,
				Message: r.ExpiresAt.Format(time.RFC3339) + " has passed, and the rule matches nothing any more: remove the rule, or set a later time",
			})
		}
	}
	return SortFindings(out)
}

// expiringRules returns a policy's rules that expire.
func expiringRules(p *policy.Policy) []policy.Rule {
	var out []policy.Rule
	for _, r := range p.Rules[policy.Egress] {
		if !r.ExpiresAt.IsZero() {
			out = append(out, r)
		}
	}
	return out
}

// ObjectFindings returns the findings on one object alone, as Set did.
func (w *World) ObjectFindings(ref ObjectRef) []Finding {
	if e := w.objects[ref]; e != nil {
		return e.findings
	}
	return nil
}

// references reports what a policy names and does not exist.
func (w *World) references(ref ObjectRef, e *entry) []Finding {
	var out []Finding
	p := e.policy
	report := func(path string, sev Severity, reason Reason, format string, args ...any) {
		out = append(out, Finding{Object: ref, Path: path, Severity: sev, Reason: reason, Message: fmt.Sprintf(format, args...)})
	}
	if _, known := w.tiers.rows[p.Tier]; !known {
		report("spec.tier", Error, ReasonUnknownTier,
			"no valid Tier %q: the pods that this policy selects may send nothing until there is one; known are %s", p.Tier, strings.Join(w.tierNames(), ", "))
	}
	for _, r := range e.refs {
		switch r.peer.Kind {
		case policy.PeerSet:
			if _, ok := w.sets.rows[r.peer.Set]; ok {
				continue
			}
			effect := "the rule denies everything until there is one"
			if r.accept {
				effect = "the rule matches nothing until there is one"
			}
			report(r.path.String(), Error, ReasonUnknownSet, "no %s: %s", setName(r.peer.Set), effect)
		case policy.PeerService:
			svc := r.peer.Service
			if _, ok := w.services.rows[svc]; !ok {
				report(r.path.String(), Warning, ReasonUnknownService, "no Service %s/%s: it matches nothing until there is one", svc.Namespace, svc.Name)
			} else if w.serviceClosed(svc) {
				report(r.path.String(), Error, ReasonInvalidService, "Service %s/%s or one of its EndpointSlices was not understood: the rule is closed until that is corrected", svc.Namespace, svc.Name)
			}
		case policy.PeerNone, policy.PeerNetworks, policy.PeerPods, policy.PeerNodes, policy.PeerDomainNames:
		}
	}
	return out
}

func setName(r policy.SetRef) string {
	if r.Namespace == "" {
		return "ClusterDestinationSet " + r.Name
	}
	return "DestinationSet " + r.Namespace + "/" + r.Name
}

// tierNames returns the tiers that policies can name, in order.
func (w *World) tierNames() []string {
	tiers := slices.Clone(w.tiers.all())
	slices.SortFunc(tiers, compareTiers)
	var out []string
	for _, t := range tiers {
		if t.Name != tierInvalid && t.Name != policy.TierNetworkPolicy {
			out = append(out, t.Name)
		}
	}
	return out
}

// placeFindings reports policies that claim the same place in a tier.
func (w *World) placeFindings() []Finding {
	type place struct {
		tier     string
		priority int32
	}
	claims := map[place][]ObjectRef{}
	for ref := range w.special {
		p := w.objects[ref].policy
		if p != nil && p.Tier != policy.TierNetworkPolicy && p.Tier != tierInvalid && !p.Invalid {
			claims[place{p.Tier, p.Priority}] = append(claims[place{p.Tier, p.Priority}], ref)
		}
	}
	var out []Finding
	for at, refs := range claims {
		if len(refs) < 2 {
			continue
		}
		slices.SortFunc(refs, compareRefs)
		var names []string
		for _, r := range refs {
			names = append(names, r.String())
		}
		for _, r := range refs {
			out = append(out, Finding{
				Object: r, Path: "spec.priority", Severity: Warning, Reason: ReasonEqualPriority,
				Message: fmt.Sprintf("%d is claimed %d times in tier %s, and the order is by kind and name (%s): give each policy its own",
					at.priority, len(refs), at.tier, strings.Join(names, ", ")),
			})
		}
	}
	return out
}

// tierFindings reports Tiers that share an order or are too many.
func (w *World) tierFindings() []Finding {
	var own []policy.Tier
	for ref := range w.special {
		if e := w.objects[ref]; e.tier != nil && !e.isClosed() {
			own = append(own, *e.tier)
		}
	}
	slices.SortFunc(own, compareTiers)
	var out []Finding
	for i, t := range own {
		ref := ObjectRef{Kind: "Tier", Name: t.Name}
		if i > 0 && own[i-1].Order == t.Order {
			out = append(out, Finding{
				Object: ref, Path: "spec.order", Severity: Warning, Reason: ReasonEqualPriority,
				Message: fmt.Sprintf("%d is also the order of Tier %s, which comes first by its name: choose another number", t.Order, own[i-1].Name),
			})
		}
		if i >= maxOwnTiers {
			out = append(out, Finding{
				Object: ref, Path: "metadata.name", Severity: Error, Reason: ReasonTooMany,
				Message: fmt.Sprintf("there are more than %d Tiers, and this one is not known to policies: remove some", maxOwnTiers),
			})
		}
	}
	return out
}

// podFindings reports pods without a Namespace object, pods that share an address,
// and host-network pods that some policy would select if it could.
func (w *World) podFindings() []Finding {
	if now := (podNotes{pods: w.podsMoved, namespaces: w.namespaces.changes}); now.pods != w.podNotes.pods || now.namespaces != w.podNotes.namespaces {
		now.findings = w.lookAtPods()
		w.podNotes = now
	}
	return w.podNotes.findings
}

// podNotes are the findings of podFindings, as of these changes.
type podNotes struct {
	pods, namespaces uint64
	findings         []Finding
}

func (w *World) lookAtPods() []Finding {
	var out []Finding
	owner := map[netip.Addr]policy.PodKey{}
	lastNamespace := "" // keys are sorted by namespace
	for _, key := range w.pods.keys() {
		p := w.pods.rows[key]
		ref := ObjectRef{Kind: "Pod", Namespace: key.Namespace, Name: key.Name}
		if _, ok := w.namespaces.rows[key.Namespace]; !ok && key.Namespace != lastNamespace {
			out = append(out, Finding{
				Object: ObjectRef{Kind: "Namespace", Name: key.Namespace}, Severity: Warning, Reason: ReasonUnknownNamespace,
				Message: fmt.Sprintf("is missing and pod %s is in it: it is taken to have no labels but its name", key),
			})
		}
		lastNamespace = key.Namespace
		if p.HostNetwork {
			out = append(out, Finding{
				Object: ref, Path: "spec.hostNetwork", Severity: Warning, Reason: ReasonNotCovered,
				Message: "the pod uses the node's network: no policy applies to it",
			})
			continue
		}
		for i, a := range p.IPs {
			if other, taken := owner[a]; taken {
				out = append(out, Finding{
					Object: ref, Path: field.NewPath("status", "podIPs").Index(i).Child("ip").String(), Severity: Warning, Reason: ReasonDuplicateAddress,
					Message: fmt.Sprintf("%s is also the address of pod %s: a rule that names either as a peer matches both; policies that select one of them apply at that one's interface only", a, other),
				})
			} else {
				owner[a] = key
			}
		}
	}
	return out
}
