package kube_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/postern-dev/postern/internal/kube"
	"github.com/postern-dev/postern/internal/packet"
	"github.com/postern-dev/postern/internal/policy"
)

const liveNamespace = `
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {env: prod}}
`

const dyingPods = `
apiVersion: v1
kind: Pod
metadata: {namespace: shop, name: web, labels: {app: web}}
status: {podIP: 10.0.0.1}
---
apiVersion: v1
kind: Pod
metadata: {namespace: shop, name: db, labels: {app: db}}
status: {podIP: 10.0.0.2}
`

// dyingPolicies go with their namespace; clusterPolicy selects it by its labels.
const dyingPolicies = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: shop, name: isolate}
spec:
  podSelector: {}
  policyTypes: [Egress, Ingress]
  egress: [{to: [{ipBlock: {cidr: 192.0.2.0/24}}]}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: shop, name: more}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Egress]
  egress: [{to: [{ipBlock: {cidr: 192.0.0.0/16}}, {ipBlock: {cidr: 198.51.0.0/16}}]}]
---
apiVersion: postern.dev/v1alpha1
kind: EgressPolicy
metadata: {namespace: shop, name: sets}
spec:
  podSelector: {matchLabels: {app: db}}
  egress: [{to: [{destinationSets: [{name: feed}]}]}]
---
apiVersion: postern.dev/v1alpha1
kind: DestinationSet
metadata: {namespace: shop, name: feed}
spec: {networks: [203.0.113.0/25], except: [203.0.113.64/26]}
`

const clusterPolicy = `
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: prod}
spec:
  tier: Admin
  priority: 1
  subject: {namespaces: {matchLabels: {env: prod}}}
  egress: [{name: never, action: Deny, to: [{networks: [192.0.2.128/25, 198.51.100.0/24]}]}]
`

// dying is a World with these objects and what its pods could do at first.
type dying struct {
	*testing.T
	w     *kube.World
	clock int64
}

func newDying(t *testing.T, yaml ...string) *dying {
	t.Helper()
	d := &dying{T: t, w: kube.NewWorld(kube.Options{})}
	d.set(yaml...)
	return d
}

func (d *dying) set(yaml ...string) {
	d.Helper()
	for _, y := range yaml {
		for _, o := range decodeAll(d.T, []byte(y)) {
			if kube.HasErrors(o.Findings) {
				d.Fatalf("%v", o.Findings)
			}
			set(d.T, d.w, o)
		}
	}
}

func (d *dying) delete(yaml ...string) {
	d.Helper()
	for _, y := range yaml {
		for _, o := range decodeAll(d.T, []byte(y)) {
			d.w.Delete(o.Ref)
		}
	}
}

func (d *dying) flush() {
	d.Helper()
	d.clock++
	d.w.Flush(time.Unix(d.clock, 0))
}

// end sets the Namespace as the API server does when it is deleted.
func (d *dying) end() {
	d.Helper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop", Labels: map[string]string{"env": "prod"}}}
	ns.Status.Phase = corev1.NamespaceTerminating
	if d.clock%2 == 0 {
		ns.DeletionTimestamp = &metav1.Time{Time: time.Unix(d.clock, 0)}
		ns.Status.Phase = corev1.NamespaceActive // a cache may have one before the other
	}
	if _, err := d.w.Set(ns, nil); err != nil {
		d.Fatal(err)
	}
}

// verdicts are those of the pods that are there.
func (d *dying) verdicts() map[string]string {
	s := d.w.Snapshot(time.Unix(d.clock, 0))
	out := map[string]string{}
	for i := range s.Pods {
		p := &s.Pods[i]
		for _, to := range []string{"192.0.2.1", "192.0.2.200", "192.0.3.1", "198.51.100.1", "198.51.7.1", "203.0.113.1", "203.0.113.70", "8.8.8.8"} {
			for _, dir := range policy.Directions {
				tup := packet.Tuple{Protocol: packet.ProtocolTCP, Src: p.IPs[0], Dst: netip.MustParseAddr(to), SrcPort: 40000, DstPort: 443}
				if dir == policy.Ingress {
					tup.Src, tup.Dst = tup.Dst, tup.Src
				}
				out[fmt.Sprintf("%s %s %s", p.Name, dir, to)] = policy.Evaluate(s, p.Key(), dir, tup).String()
			}
		}
	}
	return out
}

func (d *dying) wantFinding(text string, want bool) {
	d.Helper()
	var all []string
	for _, f := range d.w.Findings() {
		all = append(all, f.String())
	}
	if got := strings.Contains(strings.Join(all, "\n"), text); got != want {
		d.Errorf("findings hold %q: %t, want %t; there are\n%s", text, got, want, strings.Join(all, "\n"))
	}
}

// TestNamespaceEnds (K6): in whatever order a namespace's objects go, the verdicts
// of its pods stay as they were as long as the pods are there.
func TestNamespaceEnds(t *testing.T) {
	for seed := range uint64(2000) {
		rng := rand.New(rand.NewPCG(seed, 6))
		d := newDying(t, liveNamespace, dyingPods, dyingPolicies, clusterPolicy)
		for range rng.IntN(3) {
			d.flush() // objects that are set and removed between two are none
		}
		if d.clock == 0 {
			d.flush()
		}
		before := d.verdicts()
		var gone []kube.ObjectRef
		for _, o := range slices.Concat(decodeAll(t, []byte(dyingPods)), decodeAll(t, []byte(dyingPolicies))) {
			gone = append(gone, o.Ref)
		}
		gone = append(gone, kube.ObjectRef{Kind: "Namespace", Name: "shop"})
		rng.Shuffle(len(gone), func(i, j int) { gone[i], gone[j] = gone[j], gone[i] })
		together := 0
		if rng.IntN(2) == 0 {
			d.end()
			if rng.IntN(2) == 0 {
				d.flush()
			}
		} else {
			// Without notice, the first ones go together with the namespace.
			together = slices.Index(gone, kube.ObjectRef{Kind: "Namespace", Name: "shop"}) + 1
		}
		for i, ref := range gone {
			d.w.Delete(ref)
			if i+1 < together {
				continue
			}
			if rng.IntN(8) == 0 {
				d.w.Delete(gone[rng.IntN(i+1)]) // twice is once
			}
			if rng.IntN(2) == 0 {
				d.flush()
			}
			for what, got := range d.verdicts() {
				if got != before[what] {
					t.Fatalf("seed %d: after %v: %s: got %s, was %s", seed, gone[:i+1], what, got, before[what])
				}
			}
		}
		d.flush()
		s := d.w.Snapshot(time.Unix(d.clock, 0))
		if len(s.Pods)+len(s.Namespaces)+len(s.Sets) != 0 || len(s.Policies) != 1 {
			t.Fatalf("seed %d: %d pods, %d namespaces, %d sets, %d policies are left", seed, len(s.Pods), len(s.Namespaces), len(s.Sets), len(s.Policies))
		}
		if fs := d.w.Findings(); len(fs) != 0 {
			t.Fatalf("seed %d: findings are left: %v", seed, fs)
		}
	}
}

// TestDeletedBefore: what was deleted while the namespace was there to stay is
// gone, and what is deleted while a pod alone is ending is, too.
func TestDeletedBefore(t *testing.T) {
	const key, denied, open = "web egress 8.8.8.8", "dropped by networkpolicy shop/isolate egress isolation", "forwarded by egress no-match"
	d := newDying(t, liveNamespace, strings.Replace(dyingPods, "labels: {app: web}", "labels: {app: web}, deletionTimestamp: 2026-01-01T00:00:00Z", 1), dyingPolicies)
	d.flush()
	want := func(when, verdict string) {
		t.Helper()
		if got := d.verdicts()[key]; got != verdict {
			t.Errorf("%s: got %s, want %s", when, got, verdict)
		}
	}
	want("at first", denied)
	d.delete(dyingPolicies)
	want("policies deleted", open)
	d.end()
	d.flush()
	want("then the namespace", open)
	d.wantFinding("(Held)", false)

	d.set(liveNamespace, dyingPolicies)
	d.end()
	d.delete(dyingPolicies)
	want("policies deleted with the namespace", denied)
	d.wantFinding("warning: NetworkPolicy shop/isolate is deleted, and stays in force until the last of 2 pods of namespace shop has ended (Held)", true)
	d.set(liveNamespace)
	want("the namespace anew", open)
	d.wantFinding("(Held)", false)

	d.set(dyingPolicies)
	d.flush()
	d.delete(liveNamespace, dyingPolicies)
	want("both without notice", denied)
	d.wantFinding("warning: Namespace shop is deleted, and its labels and policies stay in force", true)
	d.set(strings.ReplaceAll(dyingPods, "podIP", "phase: Succeeded, podIP"))
	d.flush()
	if s := d.w.Snapshot(time.Unix(d.clock, 0)); len(s.Policies)+len(s.Pods)+len(s.Namespaces) != 0 {
		t.Errorf("pods have ended, and %d policies and %d namespaces are there", len(s.Policies), len(s.Namespaces))
	}
	d.set(dyingPods, dyingPolicies)
	d.delete(dyingPolicies)
	want("a namespace without an object", open)
}

// TestEndedBeforeTheStart: which policies a namespace had that was being deleted
// before the first Flush is not known.
func TestEndedBeforeTheStart(t *testing.T) {
	const key, cut = "web egress 192.0.2.1", `dropped by (invalid) shop egress[0] "not understood"`
	d := newDying(t, dyingPods)
	d.end()
	want := func(when, verdict string) {
		t.Helper()
		if got := d.verdicts()[key]; got != verdict {
			t.Errorf("%s: got %s, want %s", when, got, verdict)
		}
	}
	want("before the first Flush", cut)
	d.wantFinding("error: Namespace shop metadata.deletionTimestamp: the namespace was being deleted before its policies were read", true)
	d.flush()
	d.flush()
	d.end()
	want("set again", cut)
	d.delete(liveNamespace)
	want("its object gone", cut)
	d.flush()
	d.delete(dyingPods)
	d.flush()
	if fs := d.w.Findings(); len(fs) != 0 {
		t.Errorf("findings are left: %v", fs)
	}
	if s := d.w.Snapshot(time.Unix(0, 0)); len(s.Policies)+len(s.Namespaces) != 0 {
		t.Errorf("left: %v %v", s.Policies, s.Namespaces)
	}

	d = newDying(t, liveNamespace, dyingPods)
	d.flush()
	d.end()
	want("ended after the first Flush", "forwarded by egress no-match")
}
