package kube

import (
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	cnpv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"github.com/postern-dev/postern/api/v1alpha1"
	"github.com/postern-dev/postern/internal/policy"
)

// Options are settings of a World.
type Options struct {
	// Protected are the networks that an Accept reaches only by naming them, see
	// policy.Snapshot. DefaultProtected returns what most want.
	Protected []netip.Prefix
}

// DefaultProtected returns the addresses at which clouds serve credentials to
// machines: AWS, Azure, GCP, OpenStack and others, ECS tasks, Alibaba; and the
// IPv6 networks in which a translator or relay finds an IPv4 address that policy
// does not see: local NAT64, Teredo, 6to4, IPv4-translated and IPv4-compatible.
// Sources: the providers' documentation of their metadata services; RFC 8215,
// RFC 4380, RFC 3056, RFC 7915, RFC 4291.
func DefaultProtected() []netip.Prefix {
	return []netip.Prefix{
		netip.MustParsePrefix("100.100.100.200/32"),
		netip.MustParsePrefix("169.254.169.254/32"),
		netip.MustParsePrefix("169.254.170.2/32"),
		netip.MustParsePrefix("169.254.170.23/32"),
		netip.MustParsePrefix("fd00:ec2::23/128"),
		netip.MustParsePrefix("fd00:ec2::254/128"),
		netip.MustParsePrefix("fd20:ce::254/128"),
		netip.MustParsePrefix("::/96"),
		netip.MustParsePrefix("::ffff:0:0:0/96"),
		netip.MustParsePrefix("64:ff9b:1::/48"),
		netip.MustParsePrefix("2001::/32"),
		netip.MustParsePrefix("2002::/16"),
	}
}

// World holds the translated objects of a cluster and says what they make up.
// It is not safe for concurrent use.
type World struct {
	opts     Options
	revision uint64
	started  bool // Protected has been handed out by Flush

	objects map[ObjectRef]*entry
	dirty   map[ObjectRef]struct{}
	// removed are the objects deleted since the last refresh that may be held, and
	// held those that are (K6).
	removed map[ObjectRef]*entry
	held    map[ObjectRef]struct{}
	podsIn  map[string]int // pods by namespace, without those that have ended
	// Indexes of what depends on what.
	slicesOf  map[policy.ServiceRef]map[ObjectRef]struct{}
	usersOf   map[policy.ServiceRef]map[ObjectRef]struct{} // policies that name a Service
	hostPorts map[ObjectRef]struct{}                       // pods with hostPorts
	// noted are the objects with findings of their own, special those that say
	// something of each other: Tiers, and policies in one of them or with references.
	noted, special map[ObjectRef]struct{}
	expiring       map[ObjectRef]struct{} // policies with rules that expire
	podsMoved      uint64                 // changes of which pods there are, and of their addresses
	podNotes       podNotes
	// hostPortRows are the Services that stand for a pod's hostPorts.
	hostPortRows map[ObjectRef][]policy.ServiceRef
	// claimed counts the Services at a frontend. hostPortsWant are those of a pod's
	// hostPorts, wanted is its reverse, and hostPortNotes what is to be said of them.
	claimed       map[frontend]int
	hostPortsWant map[ObjectRef][]frontend
	wanted        map[frontend]map[ObjectRef]struct{}
	hostPortNotes map[ObjectRef][]Finding
	lateHostPorts map[ObjectRef]struct{} // pods to look at in this refresh

	tiers      *table[string, policy.Tier]
	policies   *table[policy.PolicyKey, policy.Policy]
	namespaces *table[string, policy.Namespace]
	pods       *table[policy.PodKey, policy.Pod]
	nodes      *table[string, policy.Node]
	services   *table[policy.ServiceRef, policy.Service]
	sets       *table[policy.SetRef, policy.DestinationSet]
}

// entry is one object, translated on its own. One of the pointers is set.
type entry struct {
	findings []Finding
	closed   bool
	refs     []reference
	doubt    []Finding // see World.Doubt
	held     bool      // deleted, and kept for its namespace's pods (K6)

	policy    *policy.Policy
	pod       *podResult
	namespace *policy.Namespace
	ending    ending
	node      *policy.Node
	service   *serviceResult
	slice     *sliceResult
	set       *policy.DestinationSet
	tier      *policy.Tier
}

// NewWorld returns a World without objects.
func NewWorld(opts Options) *World {
	return &World{
		opts:         opts,
		objects:      map[ObjectRef]*entry{},
		dirty:        map[ObjectRef]struct{}{},
		removed:      map[ObjectRef]*entry{},
		held:         map[ObjectRef]struct{}{},
		podsIn:       map[string]int{},
		slicesOf:     map[policy.ServiceRef]map[ObjectRef]struct{}{},
		usersOf:      map[policy.ServiceRef]map[ObjectRef]struct{}{},
		hostPorts:    map[ObjectRef]struct{}{},
		noted:        map[ObjectRef]struct{}{},
		special:      map[ObjectRef]struct{}{},
		expiring:     map[ObjectRef]struct{}{},
		hostPortRows: map[ObjectRef][]policy.ServiceRef{},
		claimed:      map[frontend]int{}, hostPortsWant: map[ObjectRef][]frontend{}, wanted: map[frontend]map[ObjectRef]struct{}{},
		hostPortNotes: map[ObjectRef][]Finding{}, lateHostPorts: map[ObjectRef]struct{}{},
		tiers:      newTable[string, policy.Tier](strings.Compare),
		policies:   newTable[policy.PolicyKey, policy.Policy](comparePolicyKeys),
		namespaces: newTable[string, policy.Namespace](strings.Compare),
		pods:       newTable[policy.PodKey, policy.Pod](comparePodKeys),
		nodes:      newTable[string, policy.Node](strings.Compare),
		services:   newTable[policy.ServiceRef, policy.Service](compareServiceRefs),
		sets:       newTable[policy.SetRef, policy.DestinationSet](compareSetRefs),
	}
}

// Set adds an object or replaces the one of the same kind and name. obj must be
// a pointer to one of the types of Kinds and must not be changed afterwards; any
// other type is an error. decoded are Decode's findings on it, or nil if it
// comes from an API server. The returned findings, decoded included, are those
// on the object alone; Findings has those on objects together as well.
func (w *World) Set(obj metav1.Object, decoded []Finding) ([]Finding, error) {
	e := &entry{}
	switch o := obj.(type) {
	case *networkingv1.NetworkPolicy:
		c := newChecker(RefOf(o), decoded)
		e.setPolicy(c.networkPolicy(o), c)
	case *cnpv1alpha2.ClusterNetworkPolicy:
		c := newChecker(RefOf(o), decoded)
		e.setPolicy(c.clusterNetworkPolicy(o), c)
	case *v1alpha1.EgressPolicy:
		c := newChecker(RefOf(o), decoded)
		e.setPolicy(c.egressPolicy(o), c)
	case *v1alpha1.ClusterEgressPolicy:
		c := newChecker(RefOf(o), decoded)
		e.setPolicy(c.clusterEgressPolicy(o), c)
	case *v1alpha1.DestinationSet:
		set, fs := DestinationSet(o, decoded)
		e.set, e.findings = &set, fs
	case *v1alpha1.ClusterDestinationSet:
		set, fs := ClusterDestinationSet(o, decoded)
		e.set, e.findings = &set, fs
	case *v1alpha1.Tier:
		tier, closed, fs := translateTier(o, decoded)
		e.tier, e.closed, e.findings = &tier, closed, fs
	case *corev1.Namespace:
		ns, closed, fs := translateNamespace(o, decoded)
		e.namespace, e.closed, e.findings = &ns, closed, fs
		e.ending = w.endingOf(o)
	case *corev1.Node:
		node, closed, fs := translateNode(o, decoded)
		e.node, e.closed, e.findings = &node, closed, fs
	case *corev1.Pod:
		pod := translatePod(o, decoded)
		e.pod, e.closed, e.findings = &pod, pod.closed, pod.findings
	case *corev1.Service:
		svc := translateService(o, decoded)
		e.service, e.closed, e.findings = &svc, svc.closed, svc.findings
	case *discoveryv1.EndpointSlice:
		slice := translateSlice(o, decoded)
		e.slice, e.closed, e.findings = &slice, slice.closed, slice.findings
	default:
		return nil, fmt.Errorf("set object of type %T: want a pointer to a type of %s", obj, strings.Join(Kinds(), ", "))
	}
	ref := RefOf(obj)
	w.unindex(ref)
	w.objects[ref] = e
	w.index(ref, e)
	w.dirty[ref] = struct{}{}
	return e.findings, nil
}

func (e *entry) setPolicy(p policy.Policy, c *checker) {
	e.policy, e.findings, e.refs = &p, c.result(), c.refs
}

// Translated returns a set as it was translated, so that it can be given back to
// SetTranslated without its object, which is larger. ok is false if ref is no set.
func (w *World) Translated(ref ObjectRef) (set policy.DestinationSet, fs []Finding, ok bool) {
	e := w.objects[ref]
	if e == nil || e.set == nil {
		return policy.DestinationSet{}, nil, false
	}
	return *e.set, e.findings, true
}

// SetTranslated is Set for what Translated returned.
func (w *World) SetTranslated(ref ObjectRef, set policy.DestinationSet, fs []Finding) {
	set.Ref = policy.SetRef{Namespace: ref.Namespace, Name: ref.Name}
	w.unindex(ref)
	e := &entry{set: &set, findings: fs}
	w.objects[ref] = e
	w.index(ref, e)
	w.dirty[ref] = struct{}{}
}

// Doubt closes an object, other than a policy, for reasons that do not lie in it,
// and adds fs to its findings; without fs it is as Set left it. Set and Delete
// end a doubt. It does nothing to an object that is not there.
func (w *World) Doubt(ref ObjectRef, fs []Finding) {
	e := w.objects[ref]
	if e == nil || e.policy != nil || (len(fs) == 0 && len(e.doubt) == 0) {
		return
	}
	e.doubt = fs
	w.note(ref, e)
	w.dirty[ref] = struct{}{}
}

// isClosed reports whether an object that is no policy is closed (K3).
func (e *entry) isClosed() bool { return e.closed || HasErrors(e.doubt) }

// Delete removes an object; removing one that is not there does nothing. What its
// namespace's pods need until they have ended stays in force until then (K6).
func (w *World) Delete(ref ObjectRef) {
	e := w.objects[ref]
	if e == nil || e.held {
		return
	}
	w.drop(ref)
	if holdable(ref) {
		w.removed[ref] = e
	}
}

func (w *World) drop(ref ObjectRef) {
	w.unindex(ref)
	delete(w.objects, ref)
	w.dirty[ref] = struct{}{}
}

// index notes what depends on the object; unindex is its exact reverse.
func (w *World) index(ref ObjectRef, e *entry) {
	w.note(ref, e)
	if e.tier != nil || (e.policy != nil && (len(e.refs) > 0 || e.policy.Tier != policy.TierNetworkPolicy)) {
		w.special[ref] = struct{}{}
	}
	if e.policy != nil && len(expiringRules(e.policy)) > 0 {
		w.expiring[ref] = struct{}{}
	}
	switch {
	case e.slice != nil:
		addTo(w.slicesOf, e.slice.service, ref)
	case e.policy != nil:
		for _, svc := range servicesOf(e.policy) {
			addTo(w.usersOf, svc, ref)
		}
	case e.pod != nil && !e.pod.gone:
		w.podsIn[ref.Namespace]++
		if len(e.pod.hostPorts) > 0 {
			w.hostPorts[ref] = struct{}{}
		}
	}
}

func (w *World) unindex(ref ObjectRef) {
	e := w.objects[ref]
	delete(w.noted, ref)
	delete(w.special, ref)
	delete(w.expiring, ref)
	switch {
	case e == nil:
	case e.slice != nil:
		removeFrom(w.slicesOf, e.slice.service, ref)
		// The Service that lost the slice may not be the one that gets it.
		w.dirty[serviceObject(e.slice.service)] = struct{}{}
	case e.policy != nil:
		for _, svc := range servicesOf(e.policy) {
			removeFrom(w.usersOf, svc, ref)
		}
	case e.pod != nil && !e.pod.gone:
		delete(w.hostPorts, ref)
		if w.podsIn[ref.Namespace]--; w.podsIn[ref.Namespace] == 0 {
			delete(w.podsIn, ref.Namespace)
		}
	}
}

// note keeps World.noted.
func (w *World) note(ref ObjectRef, e *entry) {
	if len(e.findings)+len(e.doubt) > 0 {
		w.noted[ref] = struct{}{}
	} else {
		delete(w.noted, ref)
	}
}

func serviceObject(r policy.ServiceRef) ObjectRef {
	return ObjectRef{Kind: "Service", Namespace: r.Namespace, Name: r.Name}
}

// servicesOf returns the Services that a policy names.
func servicesOf(p *policy.Policy) []policy.ServiceRef {
	var out []policy.ServiceRef
	for _, dir := range policy.Directions {
		for i := range p.Rules[dir] {
			for _, peer := range p.Rules[dir][i].Peers {
				if peer.Kind == policy.PeerService {
					out = append(out, peer.Service)
				}
			}
		}
	}
	return out
}

func addTo[K comparable](m map[K]map[ObjectRef]struct{}, k K, ref ObjectRef) {
	if m[k] == nil {
		m[k] = map[ObjectRef]struct{}{}
	}
	m[k][ref] = struct{}{}
}

func removeFrom[K comparable](m map[K]map[ObjectRef]struct{}, k K, ref ObjectRef) {
	delete(m[k], ref)
	if len(m[k]) == 0 {
		delete(m, k)
	}
}

// CloseAll denies everything to every pod, or no longer does. It is for input
// that can't be read at all: what it would have denied is not known. name
// appears in flow records, with the kind "Manifest"; each name is on its own.
func (w *World) CloseAll(name string, on bool) {
	w.refresh()
	w.closeSubject(ObjectRef{Kind: "Manifest", Name: name}, on, policy.Subject{Any: true, Selects: true})
	w.revision++
}

// Snapshot returns everything at the given time, which expiry dates are compared
// with. It does not change what Flush returns next.
func (w *World) Snapshot(now time.Time) *policy.Snapshot {
	w.refresh()
	return &policy.Snapshot{
		Revision:   w.revision,
		Time:       now,
		Tiers:      w.tiers.all(),
		Policies:   w.policies.all(),
		Namespaces: w.namespaces.all(),
		Pods:       w.pods.all(),
		Nodes:      w.nodes.all(),
		Services:   w.services.all(),
		Sets:       w.sets.all(),
		Protected:  w.opts.Protected,
	}
}

// Flush returns what changed since the last Flush, at the given time. Applied
// to a policy.Compiler that has seen every earlier one, it leads to Snapshot.
func (w *World) Flush(now time.Time) policy.Changes {
	w.refresh()
	ch := policy.Changes{Revision: w.revision, Time: now}
	if !w.started {
		ch.Protected, w.started = &w.opts.Protected, true
	}
	ch.Tiers, ch.TiersDeleted = w.tiers.flush()
	ch.Policies, ch.PoliciesDeleted = w.policies.flush()
	ch.Namespaces, ch.NamespacesDeleted = w.namespaces.flush()
	ch.Pods, ch.PodsDeleted = w.pods.flush()
	ch.Nodes, ch.NodesDeleted = w.nodes.flush()
	ch.Services, ch.ServicesDeleted = w.services.flush()
	ch.Sets, ch.SetsDeleted = w.sets.flush()
	return ch
}

// Changed reports whether Flush would return anything.
func (w *World) Changed() bool {
	w.refresh()
	return !w.started || len(w.tiers.touched)+len(w.policies.touched)+len(w.namespaces.touched)+len(w.pods.touched)+
		len(w.nodes.touched)+len(w.services.touched)+len(w.sets.touched) > 0
}

// table holds the values of one kind, and which of them changed since flush.
type table[K comparable, V any] struct {
	compare func(a, b K) int
	rows    map[K]V
	touched map[K]struct{}
	changes uint64

	// What all returned last, its keys, and the keys of what changed since.
	list   []V
	sorted []K
	stale  map[K]struct{}
}

func newTable[K comparable, V any](compare func(a, b K) int) *table[K, V] {
	return &table[K, V]{compare: compare, rows: map[K]V{}, touched: map[K]struct{}{}, stale: map[K]struct{}{}}
}

// put sets or, if v is nil, removes a value. A value that stays the same is no change.
func (t *table[K, V]) put(k K, v *V) {
	have, ok := t.rows[k]
	switch {
	case v == nil && !ok:
		return
	case v == nil:
		delete(t.rows, k)
	case ok && equal(&have, v):
		return
	default:
		t.rows[k] = *v
	}
	t.touched[k], t.stale[k] = struct{}{}, struct{}{}
	t.changes++
}

// equal is reflect.DeepEqual, but for sets, whose lists are long.
func equal[V any](a, b *V) bool {
	if sa, ok := any(a).(*policy.DestinationSet); ok {
		sb, _ := any(b).(*policy.DestinationSet)
		return sa.Ref == sb.Ref && sa.Invalid == sb.Invalid && slices.Equal(sa.DomainNames, sb.DomainNames) &&
			slices.Equal(sa.Networks, sb.Networks) && slices.Equal(sa.Except, sb.Except)
	}
	return reflect.DeepEqual(a, b)
}

// few changes are taken into a list one by one.
const few = 64

// all returns the values by key. It must not be changed.
func (t *table[K, V]) all() []V {
	t.catchUp()
	return t.list
}

// keys returns the keys in order. It must not be changed, and holds until the next change.
func (t *table[K, V]) keys() []K {
	t.catchUp()
	return t.sorted
}

// catchUp brings list and sorted up to date.
func (t *table[K, V]) catchUp() {
	switch {
	case len(t.stale) == 0 && t.list != nil:
		return
	case len(t.stale) > few || t.list == nil:
		t.sorted = slices.SortedFunc(maps.Keys(t.rows), t.compare)
		t.list = make([]V, 0, len(t.rows))
		for _, k := range t.sorted {
			t.list = append(t.list, t.rows[k])
		}
	default:
		t.list = slices.Clone(t.list) // who got it keeps it as it was
		for k := range t.stale {
			i, known := slices.BinarySearchFunc(t.sorted, k, t.compare)
			switch v, ok := t.rows[k]; {
			case ok && known:
				t.list[i] = v
			case ok:
				t.list, t.sorted = slices.Insert(t.list, i, v), slices.Insert(t.sorted, i, k)
			case known:
				t.list, t.sorted = slices.Delete(t.list, i, i+1), slices.Delete(t.sorted, i, i+1)
			}
		}
	}
	empty(&t.stale)
}

// empty clears a map. One that was large would go on to cost as one that is.
func empty[K comparable](m *map[K]struct{}) {
	if len(*m) > 16*few {
		*m = map[K]struct{}{}
		return
	}
	clear(*m)
}

func (t *table[K, V]) flush() (set []V, deleted []K) {
	keys := make([]K, 0, len(t.touched))
	for k := range t.touched {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, t.compare)
	for _, k := range keys {
		if v, ok := t.rows[k]; ok {
			set = append(set, v)
		} else {
			deleted = append(deleted, k)
		}
	}
	empty(&t.touched)
	return set, deleted
}
