package kube

import (
	"cmp"
	"maps"
	"math"
	"net/netip"
	"slices"

	"github.com/postern-dev/postern/internal/policy"
)

// labelClosed marks a pod that is cut off (K3), for the policy that does it.
// Its value is the pod's name, which need not be a valid label value here.
const labelClosed = "postern.dev/closed"

// peerSuffix ends the name of the policy that closes an object as a peer.
const peerSuffix = " (peer)"

// maxOwnTiers leaves room for the built-in tiers and for tierInvalid.
const maxOwnTiers = policy.MaxTiers - 4

// refresh brings the tables up to date with the dirty objects, in an order in
// which nothing is visited before what it depends on.
func (w *World) refresh() {
	if len(w.dirty) == 0 && w.revision > 0 {
		return
	}
	before := w.changes()
	w.hold()
	w.spread()
	refs := slices.SortedFunc(maps.Keys(w.dirty), compareRefs)
	if w.revision == 0 || slices.ContainsFunc(refs, func(r ObjectRef) bool { return r.Kind == "Tier" }) {
		w.refreshTiers()
	}
	for _, ref := range refs {
		w.refreshObject(ref, w.objects[ref])
	}
	for ref := range w.lateHostPorts {
		w.refreshHostPorts(ref, w.objects[ref])
	}
	empty(&w.lateHostPorts)
	empty(&w.dirty)
	if w.revision == 0 || w.changes() != before {
		w.revision++
	}
}

func (w *World) changes() uint64 {
	return w.tiers.changes + w.policies.changes + w.namespaces.changes + w.pods.changes +
		w.nodes.changes + w.services.changes + w.sets.changes
}

// spread makes dirty what depends on dirty objects: a Tier's policies, a slice's
// Service, a node's hostPorts, a Service's users. Users come last.
func (w *World) spread() {
	for _, ref := range slices.Collect(maps.Keys(w.dirty)) {
		switch e := w.objects[ref]; {
		case ref.Kind == "Tier":
			for r, o := range w.objects {
				if o.policy != nil && o.policy.Kind == policy.KindClusterEgressPolicy {
					w.dirty[r] = struct{}{}
				}
			}
		case e != nil && e.slice != nil:
			w.dirty[serviceObject(e.slice.service)] = struct{}{}
		case ref.Kind == "Pod":
			if ns := namespaceObject(ref.Namespace); w.objects[ns] != nil && w.objects[ns].ending == endedUnseen {
				w.dirty[ns] = struct{}{}
			}
		case ref.Kind == "Node":
			for r := range w.hostPorts {
				if w.objects[r].pod.pod.Node == ref.Name {
					w.dirty[r] = struct{}{}
				}
			}
		}
	}
	for _, ref := range slices.Collect(maps.Keys(w.dirty)) {
		if ref.Kind == "Service" {
			maps.Copy(w.dirty, w.usersOf[policy.ServiceRef{Namespace: ref.Namespace, Name: ref.Name}])
		}
	}
}

// refreshObject derives the rows of one object; e is nil if it is gone.
func (w *World) refreshObject(ref ObjectRef, e *entry) {
	switch ref.Kind {
	case "NetworkPolicy", "ClusterNetworkPolicy", "EgressPolicy", "ClusterEgressPolicy":
		w.refreshPolicy(ref, e)
	case "DestinationSet", "ClusterDestinationSet":
		key := policy.SetRef{Namespace: ref.Namespace, Name: ref.Name}
		if e == nil {
			w.sets.put(key, nil)
		} else {
			set := *e.set
			set.Invalid = set.Invalid || e.isClosed()
			w.sets.put(key, &set)
		}
	case "Namespace":
		if e == nil {
			w.namespaces.put(ref.Name, nil)
		} else {
			w.namespaces.put(ref.Name, e.namespace)
		}
		closed := e != nil && e.isClosed()
		w.closeSubject(ref, closed || w.policiesUnknown(ref), policy.Subject{Selects: true, Namespace: ref.Name})
		w.closePeer(ref, closed, policy.Peer{Kind: policy.PeerPods, Pods: policy.PodPeer{Namespace: ref.Name}})
	case "Node":
		w.refreshNode(ref, e)
	case "Pod":
		w.refreshPod(ref, e)
	case "Service":
		w.refreshService(ref, e)
	}
}

func (w *World) refreshTiers() {
	var own []policy.Tier
	for ref, e := range w.objects {
		if ref.Kind == "Tier" && !e.isClosed() {
			own = append(own, *e.tier)
		}
	}
	slices.SortFunc(own, compareTiers)
	if len(own) > maxOwnTiers {
		own = own[:maxOwnTiers] // the rest are not known, and reported
	}
	want := map[string]policy.Tier{tierInvalid: {Name: tierInvalid, Order: math.MinInt32}}
	for _, t := range slices.Concat(policy.BuiltinTiers(), own) {
		want[t.Name] = t
	}
	for _, name := range w.tiers.keys() {
		if _, ok := want[name]; !ok {
			w.tiers.put(name, nil)
		}
	}
	for name, t := range want {
		w.tiers.put(name, &t)
	}
}

func compareTiers(a, b policy.Tier) int {
	return cmp.Or(cmp.Compare(a.Order, b.Order), cmp.Compare(a.Name, b.Name))
}

func (w *World) refreshPolicy(ref ObjectRef, e *entry) {
	key := policy.PolicyKey{Kind: policy.Kind(ref.Kind), Namespace: ref.Namespace, Name: ref.Name}
	if e == nil {
		w.policies.put(key, nil)
		return
	}
	p := *e.policy
	if w.namesClosedService(&p) {
		p.Invalid = true
		for _, dir := range policy.Directions {
			p.Rules[dir] = slices.Clone(p.Rules[dir])
			for i := range p.Rules[dir] {
				if r := &p.Rules[dir][i]; w.ruleNamesClosedService(r) {
					*r = closedRule(*r)
				}
			}
		}
	}
	if _, known := w.tiers.rows[p.Tier]; !known {
		closeTier(&p)
	}
	w.policies.put(key, &p)
}

func (w *World) namesClosedService(p *policy.Policy) bool {
	return slices.ContainsFunc(servicesOf(p), w.serviceClosed)
}

func (w *World) ruleNamesClosedService(r *policy.Rule) bool {
	return slices.ContainsFunc(r.Peers, func(peer policy.Peer) bool {
		return peer.Kind == policy.PeerService && w.serviceClosed(peer.Service)
	})
}

// serviceClosed reports whether a Service or one of its slices was not understood.
func (w *World) serviceClosed(ref policy.ServiceRef) bool {
	if e := w.objects[serviceObject(ref)]; e != nil && e.isClosed() {
		return true
	}
	for slice := range w.slicesOf[ref] {
		if w.objects[slice].isClosed() {
			return true
		}
	}
	return false
}

func (w *World) refreshNode(ref ObjectRef, e *entry) {
	if e == nil {
		w.nodes.put(ref.Name, nil)
		w.closePeer(ref, false, policy.Peer{})
		return
	}
	w.nodes.put(ref.Name, e.node)
	w.closePeer(ref, e.isClosed(), addressPeer(e.node.IPs))
}

func (w *World) refreshPod(ref ObjectRef, e *entry) {
	key := policy.PodKey{Namespace: ref.Namespace, Name: ref.Name}
	marked := policy.NewSelector(policy.Requirement{Key: labelClosed, Op: policy.OpIn, Values: []string{ref.Name}})
	closed := e != nil && !e.pod.gone && e.isClosed()
	have, had := w.pods.rows[key]
	w.closeSubject(ref, closed, policy.Subject{Selects: true, Namespace: ref.Namespace, Pods: marked})
	w.closePeer(ref, closed, policy.Peer{Kind: policy.PeerPods, Pods: policy.PodPeer{Namespace: ref.Namespace, Pods: marked}})
	if e == nil || e.pod.gone {
		if had {
			w.podsMoved++
		}
		w.pods.put(key, nil)
		w.lateHostPorts[ref] = struct{}{}
		return
	}
	pod := e.pod.pod
	if closed {
		pod.Labels = maps.Clone(pod.Labels)
		if pod.Labels == nil {
			pod.Labels = map[string]string{}
		}
		pod.Labels[labelClosed] = ref.Name
	}
	if !had || have.HostNetwork != pod.HostNetwork || !slices.Equal(have.IPs, pod.IPs) {
		w.podsMoved++
	}
	w.pods.put(key, &pod)
	w.lateHostPorts[ref] = struct{}{}
}

// refreshHostPorts puts the Services that stand for a pod's hostPorts. It comes
// after all Services, which it gives way to.
func (w *World) refreshHostPorts(pod ObjectRef, e *entry) {
	var services []policy.Service
	delete(w.hostPortNotes, pod)
	for _, f := range w.hostPortsWant[pod] {
		removeFrom(w.wanted, f, pod)
	}
	delete(w.hostPortsWant, pod)
	if e != nil && !e.pod.gone && len(e.pod.hostPorts) > 0 {
		var nodeIPs []netip.Addr
		if n := w.objects[ObjectRef{Kind: "Node", Name: e.pod.pod.Node}]; n != nil {
			nodeIPs = n.node.IPs
		}
		var want []frontend
		services, w.hostPortNotes[pod] = hostPortServices(e.pod, nodeIPs, func(f frontend) bool {
			want = append(want, f)
			return w.claimed[f] > 0
		})
		w.hostPortsWant[pod] = want
		for _, f := range want {
			addTo(w.wanted, f, pod)
		}
	}
	old := w.hostPortRows[pod]
	delete(w.hostPortRows, pod)
	for _, svc := range services {
		k := policy.ServiceRef{Namespace: svc.Namespace, Name: svc.Name}
		w.services.put(k, &svc)
		w.hostPortRows[pod] = append(w.hostPortRows[pod], k)
	}
	for _, k := range old {
		if !slices.Contains(w.hostPortRows[pod], k) {
			w.services.put(k, nil)
		}
	}
}

// putService puts a Service, and makes way for it among hostPorts.
func (w *World) putService(key policy.ServiceRef, svc *policy.Service) {
	var before []frontend
	if old, ok := w.services.rows[key]; ok {
		before = frontendsOf(&old)
	}
	w.services.put(key, svc)
	after := frontendsOf(svc)
	for _, f := range after {
		w.claimed[f]++
	}
	for _, f := range before {
		if w.claimed[f]--; w.claimed[f] == 0 {
			delete(w.claimed, f)
		}
	}
	for _, f := range slices.Concat(before, after) {
		maps.Copy(w.lateHostPorts, w.wanted[f])
	}
}

func (w *World) refreshService(ref ObjectRef, e *entry) {
	key := policy.ServiceRef{Namespace: ref.Namespace, Name: ref.Name}
	if e == nil {
		w.putService(key, nil)
		w.closePeer(ref, false, policy.Peer{})
		return
	}
	var slicesOf []sliceResult
	for slice := range w.slicesOf[key] {
		slicesOf = append(slicesOf, *w.objects[slice].slice)
	}
	closed := w.serviceClosed(key)
	if closed {
		slicesOf = nil // some backends may be unknown: to none of them, then
	}
	svc := withBackends(e.service.service, slicesOf)
	w.putService(key, &svc)
	w.closePeer(ref, closed, addressPeer(svc.IPs))
}

func addressPeer(ips []netip.Addr) policy.Peer {
	peer := policy.Peer{Kind: policy.PeerNetworks}
	for _, a := range ips {
		peer.Networks = append(peer.Networks, netip.PrefixFrom(a, a.BitLen()))
	}
	return peer
}

// closeSubject puts or removes the policy that cuts off the pods of an object
// that was not understood.
func (w *World) closeSubject(ref ObjectRef, closed bool, subject policy.Subject) {
	key := policy.PolicyKey{Kind: policy.Kind(ref.Kind), Namespace: ref.Namespace, Name: ref.Name}
	if !closed {
		w.policies.put(key, nil)
		return
	}
	deny := []policy.Rule{denyAll(0, "not understood")}
	w.policies.put(key, &policy.Policy{
		Kind: key.Kind, Namespace: key.Namespace, Name: key.Name, Tier: tierInvalid, Subject: subject,
		Rules: [2][]policy.Rule{policy.Egress: deny, policy.Ingress: deny}, Invalid: true,
	})
}

// closePeer puts or removes the policy that keeps every pod from an object that
// was not understood: rules that deny it may no longer recognise it.
func (w *World) closePeer(ref ObjectRef, closed bool, peer policy.Peer) {
	key := policy.PolicyKey{Kind: policy.Kind(ref.Kind), Namespace: ref.Namespace, Name: ref.Name + peerSuffix}
	if !closed {
		w.policies.put(key, nil)
		return
	}
	deny := []policy.Rule{{
		Name: "not understood", Action: policy.Deny, Peers: []policy.Peer{peer}, AnyPort: true, Invalid: true,
	}}
	w.policies.put(key, &policy.Policy{
		Kind: key.Kind, Namespace: key.Namespace, Name: key.Name, Tier: tierInvalid,
		Subject: policy.Subject{Any: true, Selects: true},
		Rules:   [2][]policy.Rule{policy.Egress: deny, policy.Ingress: deny}, Invalid: true,
	})
}

func comparePolicyKeys(a, b policy.PolicyKey) int {
	return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}

func comparePodKeys(a, b policy.PodKey) int {
	return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}

func compareServiceRefs(a, b policy.ServiceRef) int {
	return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}

func compareSetRefs(a, b policy.SetRef) int {
	return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}
