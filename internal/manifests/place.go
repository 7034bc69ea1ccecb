package manifests

import (
	"cmp"
	"fmt"
	"reflect"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/postern-dev/postern/internal/kube"
	"github.com/postern-dev/postern/internal/policy"
)

// claim is an object of a file that says it has a name.
type claim struct {
	file   string
	source *parsed
	index  int // in source.objects
}

func compareClaims(a, b claim) int {
	return cmp.Or(strings.Compare(a.file, b.file), cmp.Compare(a.index, b.index))
}

// placed is an object in the World.
type placed struct {
	claim
	findings []kube.Finding // of decoding
	doubt    []kube.Finding // a second object of the same name
}

// place brings the World in line with the files. The work is in proportion to
// the objects of the files that changed, and to the number of files.
func (s *Store) place() {
	dirty := map[kube.ObjectRef]bool{}
	for path, p := range s.taken {
		if f := s.files[path]; f == nil || f.inForce() != p {
			s.unclaim(path, p, dirty)
			delete(s.taken, path)
		}
	}
	for path, f := range s.files {
		if p := f.inForce(); p != nil && s.taken[path] == nil {
			s.claim(path, p, dirty)
			s.taken[path] = p
		}
	}
	for ref := range dirty {
		s.resolve(ref)
	}
	s.findings, s.bindings = nil, nil
	for _, path := range sortedPaths(s.files) {
		s.fileFindings(s.files[path])
	}
	s.collectBindings()
	s.closeUnread()
	for _, p := range s.taken {
		p.docs = nil
	}
}

func (s *Store) claim(path string, p *parsed, dirty map[kube.ObjectRef]bool) {
	for i := range p.objects {
		ref := p.objects[i].ref
		c := claim{path, p, i}
		at, _ := slices.BinarySearchFunc(s.claims[ref], c, compareClaims)
		s.claims[ref] = slices.Insert(s.claims[ref], at, c)
		dirty[ref] = true
	}
}

func (s *Store) unclaim(path string, p *parsed, dirty map[kube.ObjectRef]bool) {
	for i := range p.objects {
		ref := p.objects[i].ref
		s.claims[ref] = slices.DeleteFunc(s.claims[ref], func(c claim) bool { return c.file == path })
		if len(s.claims[ref]) == 0 {
			delete(s.claims, ref)
		}
		dirty[ref] = true
	}
}

// resolve puts the objects that claim a name into the World. Of several the first
// by file stands, and the others are there too, closed, under other names: a
// policy keeps what it denies and isolates. If they are no policies, the first is
// closed as well: which of them is right is not known (M4).
func (s *Store) resolve(ref kube.ObjectRef) {
	delete(s.dups, ref)
	var want []placed
	for _, c := range s.claims[ref] {
		o := &c.source.objects[c.index]
		next := placed{claim: c, findings: o.findings}
		if len(want) == 0 {
			want = append(want, next)
			continue
		}
		first := &want[0]
		dup := kube.Finding{
			Object: ref, Path: "metadata.name", Reason: kube.ReasonDuplicateObject, File: c.file, Line: c.source.line(o, "metadata.name"),
			Message: fmt.Sprintf("%s is already in %s: remove one of them", ref, first.file),
		}
		switch {
		case !o.large && reflect.DeepEqual(o.obj, first.source.objects[first.index].obj): // a large one is gone: nil
			dup.Severity = kube.Warning
			s.dups[ref] = append(s.dups[ref], dup)
			continue
		case isPolicy(ref):
			dup.Message += "; until then this one accepts nothing"
			next.findings = append(slices.Clip(o.findings), dup)
		default:
			dup.Message += "; until then both are closed"
			next.doubt = []kube.Finding{dup}
			first.doubt = append(slices.Clip(first.doubt), dup)
		}
		want = append(want, next)
	}
	for n := 0; ; n++ {
		name := nthName(ref, n)
		have, placed := s.placed[name]
		if n >= len(want) {
			if !placed {
				return
			}
			s.world.Delete(name)
			delete(s.placed, name)
			continue
		}
		if !placed || have.claim != want[n].claim || !slices.Equal(have.findings, want[n].findings) {
			s.set(name, want[n])
		}
		s.world.Doubt(name, want[n].doubt)
		s.placed[name] = want[n]
	}
}

// nthName is the name under which the World has the object that claims ref as the
// nth, from 0. No object can have a name with a #.
func nthName(ref kube.ObjectRef, n int) kube.ObjectRef {
	if n > 0 {
		ref.Name = fmt.Sprintf("%s#%d", ref.Name, n+1)
	}
	return ref
}

func sortedPaths(m map[string]*file) []string {
	out := make([]string, 0, len(m))
	for path := range m {
		out = append(out, path)
	}
	slices.Sort(out)
	return out
}

// fileFindings collects what is wrong with the file itself.
func (s *Store) fileFindings(f *file) {
	s.findings = append(s.findings, f.bad...)
	switch {
	case f.stale():
		s.findings = append(s.findings, kube.Finding{
			File: f.path, Severity: kube.Warning, Reason: kube.ReasonLastVersion,
			Message: "the last version of this file that could be read stays in force: " + objects(len(f.good.objects)) + "; correct what its other findings name, or delete the file to remove its objects",
		})
	case len(f.bad) > 0:
		s.findings = append(s.findings, kube.Finding{
			File: f.path, Severity: kube.Error, Reason: kube.ReasonCutOff,
			Message: "what this file would deny is not known, so all pods are cut off until it can be read: correct what its other findings name, or take the file out of the directory",
		})
	case f.good != nil:
		s.findings = append(s.findings, f.good.findings...)
	}
}

func objects(n int) string {
	if n == 1 {
		return "1 object"
	}
	return fmt.Sprintf("%d objects", n)
}

func isPolicy(ref kube.ObjectRef) bool {
	switch ref.Kind {
	case "NetworkPolicy", "ClusterNetworkPolicy", "EgressPolicy", "ClusterEgressPolicy":
		return true
	}
	return false
}

// set hands an object to the World.
func (s *Store) set(ref kube.ObjectRef, w placed) {
	o := &w.source.objects[w.index]
	if o.obj == nil {
		s.world.SetTranslated(ref, o.set, o.setFindings)
		return
	}
	obj := o.obj
	if ref != o.ref {
		obj = renamed(obj, ref.Name)
	}
	if _, err := s.world.Set(obj, w.findings); err != nil {
		// Decode returns only what Set takes.
		s.dups[o.ref] = append(s.dups[o.ref], kube.Finding{Object: ref, File: w.file, Severity: kube.Error, Reason: kube.ReasonUnknownKind, Message: err.Error()})
	}
	if o.large {
		o.set, o.setFindings, _ = s.world.Translated(ref)
		o.obj = nil
	}
}

// renamed returns a copy of a policy under another name.
func renamed(obj metav1.Object, name string) metav1.Object {
	v := reflect.New(reflect.TypeOf(obj).Elem())
	v.Elem().Set(reflect.ValueOf(obj).Elem())
	out, ok := reflect.TypeAssert[metav1.Object](v)
	if !ok {
		return obj
	}
	out.SetName(name)
	return out
}

// closeUnread denies everything while there is a file that was never read (M1).
func (s *Store) closeUnread() {
	for path := range s.closed {
		if f := s.files[path]; f == nil || f.good != nil || len(f.bad) == 0 {
			s.world.CloseAll(path, false)
			delete(s.closed, path)
		}
	}
	for path, f := range s.files {
		if f.good == nil && len(f.bad) > 0 && !s.closed[path] {
			s.world.CloseAll(path, true)
			s.closed[path] = true
		}
	}
}

// collectBindings collects what the files say about interfaces. Who has one that
// several pods claim is for the agent to tell: by the order of files, a new one
// could take an interface from the pod that is enforced behind it.
func (s *Store) collectBindings() {
	owners := map[string]policy.PodKey{}
	for _, path := range sortedPaths(s.files) {
		p := s.taken[path]
		if p == nil {
			continue
		}
		for _, pb := range p.bindings {
			o, f, bound := &p.objects[pb.index], pb.finding, pb.bound
			at := pb.binding.Interface + pb.binding.Netns
			if other, taken := owners[at]; bound && taken && other != pb.binding.Pod {
				f = &kube.Finding{
					Object: o.ref, Path: "metadata.annotations", Severity: kube.Error, Reason: kube.ReasonDuplicateInterface,
					Message: fmt.Sprintf("%s is also pod %s's: correct one of them; only the pod that had it first is enforced", at, other),
				}
			}
			if f != nil {
				located := *f
				located.File, located.Line = path, p.line(o, f.Path)
				s.findings = append(s.findings, located)
			}
			if bound {
				if _, taken := owners[at]; !taken {
					owners[at] = pb.binding.Pod
				}
				s.bindings = append(s.bindings, pb.binding)
			}
		}
	}
	slices.SortFunc(s.bindings, func(a, b Binding) int {
		return cmp.Or(strings.Compare(a.Pod.String(), b.Pod.String()), strings.Compare(a.Interface, b.Interface), strings.Compare(a.Netns, b.Netns))
	})
	s.bindings = slices.Compact(s.bindings)
}
