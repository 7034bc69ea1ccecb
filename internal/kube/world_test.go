package kube_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"

	"github.com/postern-dev/postern/internal/kube"
	"github.com/postern-dev/postern/internal/policy"
)

// everything returns the objects of all golden files, each under its own name.
func everything(t *testing.T) []kube.Decoded {
	t.Helper()
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil {
		t.Fatal(err)
	}
	var out []kube.Decoded
	seen := map[kube.ObjectRef]bool{}
	for i, file := range files {
		ar, err := txtar.ParseFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range decodeAll(t, part(ar, "input.yaml")) {
			for seen[kube.RefOf(d.Object)] {
				d.Object.SetName(fmt.Sprintf("%s-%d", d.Object.GetName(), i))
			}
			seen[kube.RefOf(d.Object)] = true
			out = append(out, d)
		}
	}
	return out
}

func set(t *testing.T, w *kube.World, d kube.Decoded) {
	t.Helper()
	if _, err := w.Set(d.Object, d.Findings); err != nil {
		t.Fatal(err)
	}
}

// TestOrderMakesNoDifference (K5), and every object can be taken back.
func TestOrderMakesNoDifference(t *testing.T) {
	objects := everything(t)
	reference := kube.NewWorld(kube.Options{})
	for _, d := range objects {
		set(t, reference, d)
	}
	want, wantFindings := reference.Snapshot(time.Unix(0, 0)), reference.Findings()
	rng := rand.New(rand.NewPCG(1, 2))
	for range 50 {
		w := kube.NewWorld(kube.Options{})
		for _, i := range rng.Perm(len(objects)) {
			set(t, w, objects[i])
			switch rng.IntN(6) {
			case 0:
				w.Flush(time.Unix(0, 0))
			case 1:
				gone := objects[rng.IntN(len(objects))]
				w.Delete(kube.RefOf(gone.Object))
			case 2:
				w.Doubt(kube.RefOf(objects[rng.IntN(len(objects))].Object), []kube.Finding{{Reason: kube.ReasonDuplicateObject}})
			}
		}
		for _, d := range objects { // what was deleted or doubted
			set(t, w, d)
		}
		got := w.Snapshot(time.Unix(0, 0))
		got.Revision = want.Revision
		if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b fmt.Stringer) bool { return a.String() == b.String() })); diff != "" {
			t.Fatalf("snapshot (-want +got)\n%s", diff)
		}
		if diff := cmp.Diff(wantFindings, w.Findings()); diff != "" {
			t.Fatalf("findings (-want +got)\n%s", diff)
		}
	}
	for _, d := range objects {
		reference.Delete(kube.RefOf(d.Object))
	}
	empty := reference.Snapshot(time.Unix(0, 0))
	if n := len(empty.Policies) + len(empty.Pods) + len(empty.Services) + len(empty.Sets) + len(empty.Nodes) + len(empty.Namespaces); n != 0 {
		t.Errorf("%d rows are left without objects: %+v", n, empty)
	}
	if fs := reference.Findings(); len(fs) != 0 {
		t.Errorf("findings are left without objects: %v", fs)
	}
}

// TestFlushAddsUp: the changes, applied one after the other, make the Snapshot.
func TestFlushAddsUp(t *testing.T) {
	objects := everything(t)
	w := kube.NewWorld(kube.Options{Protected: kube.DefaultProtected()})
	rng := rand.New(rand.NewPCG(3, 4))
	have := replica{
		map[string]policy.Tier{},
		map[policy.PolicyKey]policy.Policy{},
		map[string]policy.Namespace{},
		map[policy.PodKey]policy.Pod{},
		map[string]policy.Node{},
		map[policy.ServiceRef]policy.Service{},
		map[policy.SetRef]policy.DestinationSet{},
	}
	for i := range 1000 {
		d := objects[rng.IntN(len(objects))]
		if rng.IntN(3) == 0 {
			w.Delete(kube.RefOf(d.Object))
		} else {
			set(t, w, d)
		}
		if rng.IntN(4) != 0 {
			continue
		}
		ch := w.Flush(time.Unix(int64(i), 0))
		if first := len(have.tiers) == 0; (ch.Protected != nil) != first {
			t.Fatalf("step %d: protected networks sent: %t, first: %t", i, ch.Protected != nil, first)
		}
		have.apply(ch)
		if w.Changed() {
			t.Fatal("changed right after Flush")
		}
		if diff := cmp.Diff(replicaOf(w.Snapshot(time.Unix(int64(i), 0))), have, cmp.AllowUnexported(replica{}),
			cmp.Comparer(func(a, b fmt.Stringer) bool { return a.String() == b.String() })); diff != "" {
			t.Fatalf("step %d (-snapshot +changes)\n%s", i, diff)
		}
	}
}

// replica is what somebody knows who only sees Flush.
type replica struct {
	tiers      map[string]policy.Tier
	policies   map[policy.PolicyKey]policy.Policy
	namespaces map[string]policy.Namespace
	pods       map[policy.PodKey]policy.Pod
	nodes      map[string]policy.Node
	services   map[policy.ServiceRef]policy.Service
	sets       map[policy.SetRef]policy.DestinationSet
}

func (r replica) apply(ch policy.Changes) {
	apply(r.tiers, ch.Tiers, ch.TiersDeleted, func(v policy.Tier) string { return v.Name })
	apply(r.policies, ch.Policies, ch.PoliciesDeleted, func(v policy.Policy) policy.PolicyKey { return v.Key() })
	apply(r.namespaces, ch.Namespaces, ch.NamespacesDeleted, func(v policy.Namespace) string { return v.Name })
	apply(r.pods, ch.Pods, ch.PodsDeleted, func(v policy.Pod) policy.PodKey { return v.Key() })
	apply(r.nodes, ch.Nodes, ch.NodesDeleted, func(v policy.Node) string { return v.Name })
	apply(r.services, ch.Services, ch.ServicesDeleted, func(v policy.Service) policy.ServiceRef {
		return policy.ServiceRef{Namespace: v.Namespace, Name: v.Name}
	})
	apply(r.sets, ch.Sets, ch.SetsDeleted, func(v policy.DestinationSet) policy.SetRef { return v.Ref })
}

func replicaOf(s *policy.Snapshot) replica {
	r := replica{
		map[string]policy.Tier{},
		map[policy.PolicyKey]policy.Policy{},
		map[string]policy.Namespace{},
		map[policy.PodKey]policy.Pod{},
		map[string]policy.Node{},
		map[policy.ServiceRef]policy.Service{},
		map[policy.SetRef]policy.DestinationSet{},
	}
	r.apply(policy.ChangesFrom(s))
	return r
}

func apply[K comparable, V any](m map[K]V, set []V, deleted []K, key func(V) K) {
	for _, k := range deleted {
		delete(m, k)
	}
	for _, v := range set {
		m[key(v)] = v
	}
}

// TestUnchangedIsNoChange: an object that is set again as it was changes nothing.
func TestUnchangedIsNoChange(t *testing.T) {
	w := kube.NewWorld(kube.Options{})
	objects := everything(t)
	for range 2 {
		for _, d := range objects {
			set(t, w, d)
		}
	}
	w.Flush(time.Unix(0, 0))
	revision := w.Snapshot(time.Unix(0, 0)).Revision
	for _, d := range objects {
		set(t, w, d)
	}
	if w.Changed() {
		ch := w.Flush(time.Unix(0, 0))
		t.Errorf("changed: %+v", ch)
	}
	if got := w.Snapshot(time.Unix(0, 0)).Revision; got != revision {
		t.Errorf("revision: got %d, want %d", got, revision)
	}
}

func TestSetRefusesOtherTypes(t *testing.T) {
	w := kube.NewWorld(kube.Options{})
	if _, err := w.Set(nil, nil); err == nil {
		t.Error("nil was taken")
	}
}

func TestCloseAll(t *testing.T) {
	w := kube.NewWorld(kube.Options{})
	w.CloseAll("a.yaml", true)
	w.CloseAll("b.yaml", true)
	w.CloseAll("a.yaml", false)
	var names []string
	for _, p := range w.Snapshot(time.Unix(0, 0)).Policies {
		names = append(names, p.Key().String())
	}
	if want := []string{"Manifest b.yaml"}; !slices.Equal(names, want) {
		t.Errorf("got %q, want %q", names, want)
	}
}

// TestKindsHaveRefs: what Decode returns, RefOf and Set know.
func TestKindsHaveRefs(t *testing.T) {
	got := map[string]bool{}
	for _, d := range everything(t) {
		if kube.RefOf(d.Object) == (kube.ObjectRef{}) {
			t.Errorf("%T has no ref", d.Object)
		}
		got[d.Ref.Kind] = true
	}
	if len(got) != len(kube.Kinds()) {
		t.Errorf("testdata has kinds %q, want all of %q", slices.Sorted(maps.Keys(got)), kube.Kinds())
	}
}
