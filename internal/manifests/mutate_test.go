package manifests

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

	"github.com/postern-dev/postern/internal/kube"
	"github.com/postern-dev/postern/internal/kube/crdtest"
	"github.com/postern-dev/postern/internal/packet"
	"github.com/postern-dev/postern/internal/policy"
)

var (
	mutants    = flag.Int("mutants", 10_000, "how many mutated manifests to try")
	mutantSeed = flag.Uint64("mutant-seed", 1, "seed of the mutations")
	mutantOnly = flag.Int("mutant", -1, "try only the mutant of this number, and print it")
)

// mutationTime is the clock of the mutation test.
var mutationTime = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// TestMutants damages manifests in ways that editors, scripts and people do,
// and checks of each mutant that
//
//   - nothing crashes;
//   - if it is not valid, there is a finding with a file and a field path or line.
//     What is valid is not ours to say: sigs.k8s.io/yaml and the API's own schemas do;
//   - if there is an error that the original does not have, no probe gets a wider
//     verdict than with the original: neither when the mutant replaces the original
//     in a running Store, nor when it is all that a new Store has ever seen.
//
// A mutant without an error is valid, and means something else: that its author
// changed a port is no failure of ours. It is not compared. One mutation can do
// both, as when two lines change places: one rule loses its ports and another one
// gets a field that it can't have. If such a mutant is wider than the original, it
// is compared with the original in which the understood part of the change has
// been made, see partly. Those are counted as mixed. A probe whose pod is no longer
// there is dropped by Evaluate, which is never wider.
func TestMutants(t *testing.T) {
	r := newMutationRig(t)
	var next atomic.Int64
	var mu sync.Mutex
	counts := map[string]int{}
	var wg sync.WaitGroup
	first, last := 0, *mutants
	if *mutantOnly >= 0 {
		first, last = *mutantOnly, *mutantOnly+1
	}
	if raceEnabled && *mutantOnly < 0 {
		last = *mutants / 10 // the detector makes it ten times slower and finds nothing new: the code has no goroutines
	}
	next.Store(int64(first))
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for n := int(next.Add(1) - 1); n < last && !t.Failed(); n = int(next.Add(1) - 1) {
				class := r.try(t, n)
				mu.Lock()
				counts[class]++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	t.Logf("seed %d: %d mutants: %v, %d probes each", *mutantSeed, last-first, counts, len(r.probes))
	if last-first >= 1000 && counts["closed"]+counts["unreadable"] < (last-first)/3 {
		t.Errorf("too few mutants were damaged to prove anything: %v", counts)
	}
}

// mutationRig is the original directory and what it decides.
type mutationRig struct {
	files   map[string][]byte
	names   []string // sorted
	good    map[string]*parsed
	errors  map[string]bool // of the original
	schemas crdtest.Schemas
	probes  []probe
	snap    *policy.Snapshot // of the original
	want    []policy.Verdict // of the probes
}

type probe struct {
	pod   policy.PodKey
	dir   policy.Direction
	tuple packet.Tuple
}

func newMutationRig(t *testing.T) *mutationRig {
	t.Helper()
	r := &mutationRig{files: map[string][]byte{}, good: map[string]*parsed{}, errors: map[string]bool{}}
	paths, err := filepath.Glob("testdata/mutate/*.yaml")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no testdata: %v", err)
	}
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Base(path)
		p := parse(name, data)
		r.files[name], r.good[name] = data, &p
		r.names = append(r.names, name)
	}
	s := r.store("", nil, nil)
	for _, f := range s.Findings() {
		if f.Severity == kube.Error {
			t.Errorf("the original is wrong: %s", f)
		}
	}
	snap := s.Snapshot()
	r.snap, r.probes = snap, probesOf(snap)
	for _, p := range r.probes {
		r.want = append(r.want, policy.Evaluate(snap, p.pod, p.dir, p.tuple).Verdict)
	}
	for v, n := range count(r.want) {
		if n < len(r.want)/100 {
			t.Errorf("only %d of %d probes are %s", n, len(r.want), v)
		}
	}
	crds, err := filepath.Glob("../../deploy/crd/postern.dev_*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/network-policy-api").Output()
	if err != nil {
		t.Fatal(err)
	}
	crds = append(crds, filepath.Join(strings.TrimSpace(string(out)), "config/crd/experimental/policy.networking.k8s.io_clusternetworkpolicies.yaml"))
	if r.schemas, err = crdtest.Load(crds...); err != nil {
		t.Fatal(err)
	}
	return r
}

func count(vs []policy.Verdict) map[policy.Verdict]int {
	out := map[policy.Verdict]int{policy.Dropped: 0, policy.Forwarded: 0, policy.Deferred: 0}
	for _, v := range vs {
		out[v]++
	}
	return out
}

// store returns a Store with the original files, one of them replaced: by before
// first, if it is not nil, and then by after.
func (r *mutationRig) store(name string, before, after *parsed) *Store {
	s := NewStore("/nowhere", Options{
		Now:  func() time.Time { return mutationTime },
		Kube: kube.Options{Protected: kube.DefaultProtected()},
	})
	for n, p := range r.good {
		s.files[n] = &file{path: n}
		if n != name {
			s.files[n].take(*p)
		}
	}
	for _, p := range []*parsed{before, after} {
		if p != nil {
			s.files[name].take(*p)
			s.place()
		}
	}
	if name == "" {
		s.place()
	}
	return s
}

// try makes and judges one mutant and says what became of it.
func (r *mutationRig) try(t *testing.T, n int) string {
	t.Helper()
	rng := rand.New(rand.NewPCG(*mutantSeed, uint64(n)))
	name := r.names[rng.IntN(len(r.names))]
	how, data := mutate(rng, r.files[name], r.files)
	if *mutantOnly >= 0 {
		t.Logf("%s: %s\n%s", name, how, data)
	}
	fail := func(format string, args ...any) {
		t.Errorf("mutant %d (go test -run TestMutants -mutant-seed %d -mutant %d) of %s: %s: %s\n%s",
			n, *mutantSeed, n, name, how, fmt.Sprintf(format, args...), diffLines(r.files[name], data))
	}
	defer func() {
		if e := recover(); e != nil {
			fail("panic: %v", e)
		}
	}()
	p := parse(name, data)
	cold := r.store(name, nil, &p)
	p2 := parse(name, data)
	warm := r.store(name, r.good[name], &p2)
	var located, wrong bool
	for _, f := range slices.Concat(cold.Findings(), warm.Findings()) {
		wrong = wrong || f.Severity == kube.Error
		located = located || (f.File == name && (f.Path != "" || f.Line > 0) && !r.errors[f.String()])
		if f.Severity == kube.Error && (f.File == "" || (f.Path == "" && f.Line == 0 && f.Reason != kube.ReasonUnreadable && f.Reason != kube.ReasonCutOff && f.Reason != kube.ReasonEmptyFile && f.Reason != kube.ReasonSyntax)) {
			fail("an error without a place: %s", f)
		}
	}
	if why := r.invalid(data); why != "" && !located {
		fail("is not valid, and there is no finding: %s", why)
	}
	if !wrong {
		return "valid"
	}
	class := "closed"
	if p.unreadable || len(p.objects) == 0 {
		class = "unreadable"
	}
	for what, s := range map[string]*Store{"a new Store": cold, "a running Store": warm} {
		snap := s.Snapshot()
		var mixed *policy.Snapshot
		for i, pr := range r.probes {
			got := policy.Evaluate(snap, pr.pod, pr.dir, pr.tuple)
			// Two pods can become one by a mutation of a name, and a pod reaches itself.
			if width(got.Verdict) <= width(r.want[i]) || got.Rule.Index == policy.IndexSelf {
				continue
			}
			if mixed == nil {
				mixed, class = partly(r.snap, snap, s.Findings(), removes(how)), "mixed"
			}
			if want := policy.Evaluate(mixed, pr.pod, pr.dir, pr.tuple); width(got.Verdict) > width(want.Verdict) {
				fail("in %s, %s %s %s: got %s, wider than %s, and than %s with what was understood; findings\n%s",
					what, pr.pod, pr.dir, pr.tuple, got, r.want[i], want, findingLines(s))
				return "wider"
			}
		}
	}
	return class
}

// partly is the original with that part of the change which was understood: the
// mutant, in which every part that is closed is put back as it was.
func partly(original, mutant *policy.Snapshot, findings []kube.Finding, removed bool) *policy.Snapshot {
	out := *mutant
	out.Tiers, out.Policies = slices.Clone(mutant.Tiers), nil
	for _, t := range original.Tiers {
		if !slices.ContainsFunc(out.Tiers, func(u policy.Tier) bool { return u.Name == t.Name }) {
			out.Tiers = append(out.Tiers, t)
		}
	}
	moved := map[policy.PolicyKey]bool{}
	for _, f := range findings {
		switch f.Reason {
		case kube.ReasonMisplaced, kube.ReasonUnknownField, kube.ReasonUnknownList, kube.ReasonDuplicateField, kube.ReasonWrongType:
			moved[policy.PolicyKey{Kind: policy.Kind(f.Object.Kind), Namespace: f.Object.Namespace, Name: f.Object.Name}] = true
		default:
		}
	}
	before := map[policy.PolicyKey]policy.Policy{}
	for _, p := range original.Policies {
		before[p.Key()] = p
	}
	closed := map[policy.PolicyKey]bool{}
	for _, p := range mutant.Policies {
		if old, ok := before[p.Key()]; p.Tier == "(invalid)" && !ok {
			closed[p.Key()] = true // made by kube, for an object that is no policy
		} else if p.Invalid && ok {
			out.Policies = append(out.Policies, putBack(old, p, removed || !moved[p.Key()]))
		} else {
			out.Policies = append(out.Policies, p)
		}
	}
	isClosed := func(kind, namespace, name string) bool {
		return closed[policy.PolicyKey{Kind: policy.Kind(kind), Namespace: namespace, Name: name}] ||
			closed[policy.PolicyKey{Kind: policy.Kind(kind), Namespace: namespace, Name: name + " (peer)"}]
	}
	out.Pods = merge(original.Pods, mutant.Pods,
		func(p policy.Pod) string { return p.Key().String() }, func(p policy.Pod) bool { return isClosed("Pod", p.Namespace, p.Name) })
	out.Namespaces = merge(original.Namespaces, mutant.Namespaces,
		func(n policy.Namespace) string { return n.Name }, func(n policy.Namespace) bool { return isClosed("Namespace", "", n.Name) })
	out.Nodes = merge(original.Nodes, mutant.Nodes,
		func(n policy.Node) string { return n.Name }, func(n policy.Node) bool { return isClosed("Node", "", n.Name) })
	out.Services = merge(original.Services, mutant.Services,
		func(s policy.Service) string { return s.Namespace + "/" + s.Name }, func(s policy.Service) bool { return isClosed("Service", s.Namespace, s.Name) })
	out.Sets = merge(original.Sets, mutant.Sets,
		func(s policy.DestinationSet) string { return s.Ref.Namespace + "/" + s.Ref.Name }, func(s policy.DestinationSet) bool { return s.Invalid })
	return &out
}

// putBack returns the mutant's policy with everything that is closed as it was.
// removed says that rules are missing since they were taken away, not since they
// can't be found any more.
func putBack(old, p policy.Policy, removed bool) policy.Policy {
	if p.Subject.Any || reflect.DeepEqual(p.Subject, policy.Subject{Selects: true, Namespace: old.Namespace}) {
		p.Subject = old.Subject
	}
	if p.Priority == kube.PriorityInvalid {
		p.Tier, p.Priority = old.Tier, old.Priority
	}
	for _, dir := range policy.Directions {
		if !removed {
			p.Isolates[dir] = old.Isolates[dir]
		}
		var rules []policy.Rule
		lost := !removed
		for i, r := range p.Rules[dir] {
			switch {
			case r.Name == "not understood" || r.Name == "unknown tier":
				lost = true
			case !r.Invalid, r.Action == policy.Deny && !r.AnyPeer && (i >= len(old.Rules[dir]) || old.Rules[dir][i].Action != policy.Pass):
				rules = append(rules, r) // understood; a Deny that only lost its place keeps its peers
			case i < len(old.Rules[dir]):
				rules = append(rules, old.Rules[dir][i])
			}
		}
		if lost && len(rules) < len(old.Rules[dir]) {
			rules = append(rules, old.Rules[dir][len(rules):]...)
		}
		p.Rules[dir] = rules
	}
	return p
}

// removes reports whether a mutation takes something away; then what is missing is
// missing in what was understood, too.
func removes(how string) bool {
	return slices.Contains([]string{"cut off", "bytes removed", "byte removed", "line removed", "entry removed", "emptied", "replaced by its content"}, how)
}

// merge returns the mutant's rows, the closed ones as they were.
func merge[V any](original, mutant []V, key func(V) string, closed func(V) bool) []V {
	before := map[string]V{}
	for _, v := range original {
		before[key(v)] = v
	}
	var out []V
	for _, v := range mutant {
		if old, ok := before[key(v)]; ok && closed(v) {
			v = old
		}
		out = append(out, v)
	}
	return out
}

// width orders verdicts: what is Deferred may still be dropped.
func width(v policy.Verdict) int {
	switch v {
	case policy.Dropped:
		return 0
	case policy.Deferred:
		return 1
	case policy.Forwarded:
	}
	return 2
}

func findingLines(s *Store) string {
	var b strings.Builder
	for _, f := range s.Findings() {
		fmt.Fprintln(&b, f)
	}
	return b.String()
}

// probesOf returns tuples around everything that the originals name.
func probesOf(s *policy.Snapshot) []probe {
	type proto struct {
		p    packet.Protocol
		port uint16
	}
	remotes := []string{
		"10.0.0.1", "fd00:10::1", "10.0.0.2", "10.0.1.1", "10.0.9.9", "172.16.0.1", "172.16.0.2", "10.96.0.1", "198.51.100.9",
		"192.0.2.5", "192.0.2.70", "198.51.100.3", "203.0.113.4", "203.0.113.5", "203.0.113.200", "169.254.169.254", "169.254.7.7",
		"2001:db8::5", "2001:db8:bad::1",
	}
	egress := []proto{
		{packet.ProtocolTCP, 80},
		{packet.ProtocolTCP, 443},
		{packet.ProtocolTCP, 8080},
		{packet.ProtocolTCP, 5432},
		{packet.ProtocolTCP, 30080},
		{packet.ProtocolTCP, 9090},
		{packet.ProtocolUDP, 53},
		{packet.ProtocolICMP, 0},
		{packet.ProtocolGRE, 0},
	}
	ingress := []proto{{packet.ProtocolTCP, 8080}, {packet.ProtocolTCP, 5432}, {packet.ProtocolUDP, 53}}
	var out []probe
	for i := range s.Pods {
		pod := &s.Pods[i]
		for _, r := range remotes {
			remote := netip.MustParseAddr(r)
			self := pod.IPs[0]
			for _, ip := range pod.IPs {
				if ip.Is4() == remote.Is4() {
					self = ip
				}
			}
			for _, pr := range egress {
				out = append(out, probe{pod.Key(), policy.Egress, packet.Tuple{Protocol: pr.p, Src: self, Dst: remote, SrcPort: 40000, DstPort: pr.port}})
			}
			for _, pr := range ingress {
				out = append(out, probe{pod.Key(), policy.Ingress, packet.Tuple{Protocol: pr.p, Src: remote, Dst: self, SrcPort: 40000, DstPort: pr.port}})
			}
		}
	}
	return out
}

// invalid says why an API server with strict field validation would refuse
// something in data, as far as can be told without one; "" if it would not.
func (r *mutationRig) invalid(data []byte) string {
	// A carriage return alone ends a line in YAML, and not for this reader.
	reader := utilyaml.NewYAMLReader(newReader(bytes.ReplaceAll(data, []byte("\r"), []byte("\n"))))
	for {
		doc, err := reader.Read()
		if errors.Is(err, io.EOF) {
			return ""
		}
		if err != nil {
			return err.Error()
		}
		raw, err := yaml.YAMLToJSONStrict(doc)
		if err != nil {
			return err.Error()
		}
		if string(raw) == "null" {
			continue
		}
		var obj map[string]any
		if err := json.UnmarshalCaseSensitivePreserveInts(raw, &obj); err != nil {
			return err.Error()
		}
		if r.schemas.Knows(obj) {
			if errs := r.schemas.Validate(obj); errs != nil {
				return strings.Join(errs, "; ")
			}
			continue
		}
		typed := coreType(obj)
		if typed == nil {
			return fmt.Sprintf("no kind %v of %v", obj["kind"], obj["apiVersion"])
		}
		strict, err := json.UnmarshalStrict(raw, typed)
		if err != nil {
			return err.Error()
		}
		if len(strict) > 0 {
			return errors.Join(strict...).Error()
		}
	}
}

func coreType(obj map[string]any) any {
	switch fmt.Sprint(obj["apiVersion"], " ", obj["kind"]) {
	case "v1 Namespace":
		return &corev1.Namespace{}
	case "v1 Node":
		return &corev1.Node{}
	case "v1 Pod":
		return &corev1.Pod{}
	case "v1 Service":
		return &corev1.Service{}
	case "discovery.k8s.io/v1 EndpointSlice":
		return &discoveryv1.EndpointSlice{}
	case "networking.k8s.io/v1 NetworkPolicy":
		return &networkingv1.NetworkPolicy{}
	}
	return nil
}

// FuzzParse: no file stops the agent, and what it yields can be translated. Run it
// with -fuzzminimizetime 10x: minimising, which is the default, takes all the time.
func FuzzParse(f *testing.F) {
	paths, err := filepath.Glob("testdata/mutate/*.yaml")
	if err != nil {
		f.Fatal(err)
	}
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		s := NewStore("/nowhere", Options{Now: func() time.Time { return mutationTime }})
		s.files["a.yaml"] = &file{path: "a.yaml"}
		s.files["a.yaml"].take(parse("a.yaml", data))
		s.place()
		again := NewStore("/nowhere", s.opts)
		again.files["a.yaml"] = &file{path: "a.yaml"}
		again.files["a.yaml"].take(parse("a.yaml", data))
		again.place()
		if a, b := s.Findings(), again.Findings(); !slices.Equal(a, b) {
			t.Errorf("findings differ between two readings: %v, %v", a, b)
		}
		if a, b := s.Snapshot(), again.Snapshot(); !reflect.DeepEqual(a, b) {
			t.Errorf("snapshots differ between two readings: %v, %v", a, b)
		}
	})
}

// diffLines shows the lines in which two texts differ.
func diffLines(a, b []byte) string {
	old := map[string]int{}
	for line := range bytes.Lines(a) {
		old[string(line)]++
	}
	var out strings.Builder
	for line := range bytes.Lines(b) {
		if old[string(line)] > 0 {
			old[string(line)]--
			continue
		}
		fmt.Fprintf(&out, "+ %s\n", bytes.TrimRight(line, "\n"))
	}
	for _, line := range slices.Sorted(maps.Keys(old)) {
		for range old[line] {
			fmt.Fprintf(&out, "- %s\n", strings.TrimRight(line, "\n"))
		}
	}
	return out.String()
}
