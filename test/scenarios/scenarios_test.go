// Package scenarios reads scenarios/*.txtar: what policies mean, in examples.
//
// A file has a text that says what it is about, and the parts
//
//	manifests/*.yaml  policies; cluster.yaml beside this file is the cluster
//	now               the time, for expiry; 2026-01-01T00:00:00Z if it is left out
//	probes.txt        a packet a line, and what becomes of it; "at TIME" sets the clock
//	findings.txt      what is wrong with the manifests; must be there if something is
//	ruleset.txt       what the policies are compiled to
//	mapstate.txt      what the kernel's maps hold
//
// Every probe is asked of Evaluate (the meaning), Explain, the compiled rulesets
// and the maps; all have to agree. -update writes what comes out.
package scenarios

import (
	"cmp"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"

	"github.com/postern-dev/postern/internal/datapath/mapstate"
	"github.com/postern-dev/postern/internal/kube"
	"github.com/postern-dev/postern/internal/manifests"
	"github.com/postern-dev/postern/internal/packet"
	"github.com/postern-dev/postern/internal/policy"
)

var update = flag.Bool("update", false, "write what comes out into the files")

func TestScenarios(t *testing.T) {
	files, err := filepath.Glob("*.txtar")
	if err != nil || len(files) < 20 {
		t.Fatalf("%d scenarios (%v)", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(file, ".txtar"), func(t *testing.T) { play(t, file) })
	}
}

func play(t *testing.T, file string) {
	t.Helper()
	ar, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if len(strings.TrimSpace(string(ar.Comment))) == 0 {
		t.Error("the file does not say what it is about")
	}
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	parts := map[string]string{}
	for _, f := range ar.Files {
		parts[f.Name] = string(f.Data)
	}
	if text, ok := parts["now"]; ok {
		if now, err = time.Parse(time.RFC3339, strings.TrimSpace(text)); err != nil {
			t.Fatal(err)
		}
	}
	store := load(t, ar, now)
	st := build(t, store.Snapshot())
	want := map[string]string{
		"probes.txt": st.probes(t, parts["probes.txt"]), "ruleset.txt": st.rulesets(), "mapstate.txt": st.world.Dump(st.names),
	}
	var findings strings.Builder
	for _, f := range store.Findings() {
		fmt.Fprintln(&findings, f)
	}
	if findings.Len() > 0 || parts["findings.txt"] != "" {
		want["findings.txt"] = findings.String()
	}
	for name, text := range want {
		if *update {
			set(ar, name, text)
		} else if diff := gocmp.Diff(parts[name], text); diff != "" {
			t.Errorf("%s (-want +got)\n%s", name, diff)
		}
	}
	if *update {
		if err := os.WriteFile(file, txtar.Format(ar), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// set replaces or adds a part.
func set(ar *txtar.Archive, name, text string) {
	for i := range ar.Files {
		if ar.Files[i].Name == name {
			ar.Files[i].Data = []byte(text)
			return
		}
	}
	ar.Files = append(ar.Files, txtar.File{Name: name, Data: []byte(text)})
}

// load reads the manifests through the same door as the agent.
func load(t *testing.T, ar *txtar.Archive, now time.Time) *manifests.Store {
	t.Helper()
	dir := t.TempDir()
	cluster, err := os.ReadFile("cluster.yaml")
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{"cluster.yaml": cluster}
	for _, f := range ar.Files {
		if name, ok := strings.CutPrefix(f.Name, "manifests/"); ok {
			files[name] = f.Data
		}
	}
	// A manifest of one line names a file of the repository.
	for name, data := range files {
		if ref, ok := strings.CutPrefix(strings.TrimSpace(string(data)), "# see "); ok && !strings.Contains(ref, "\n") {
			if files[name], err = os.ReadFile(filepath.Join("..", "..", ref)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	store, err := manifests.Load(dir, manifests.Options{
		Kube: kube.Options{Protected: kube.DefaultProtected()}, Now: func() time.Time { return now },
	})
	if err != nil {
		t.Fatal(err)
	}
	return store
}

// state is a snapshot in all its forms.
type state struct {
	snapshot  *policy.Snapshot
	compiled  *policy.Compiled
	frontends map[policy.Frontend]policy.Target
	world     *mapstate.World
	refs      map[uint32]policy.RuleRef
	names     map[string]string // ruleset ID to "egress of shop/cart, shop/frontend", those that say something
}

// firstRuleID is where rules begin; see flow.ReasonMax.
const firstRuleID = 64

func build(t *testing.T, s *policy.Snapshot) *state {
	t.Helper()
	st := &state{snapshot: s, frontends: policy.Frontends(s.Services, s.Nodes), refs: map[uint32]policy.RuleRef{}}
	c := policy.NewCompiler(nil)
	delta, err := c.Apply(policy.ChangesFrom(s))
	if err != nil {
		t.Fatal(err)
	}
	st.compiled = c.Compiled()
	ids := map[policy.RuleRef]uint32{}
	st.world = mapstate.New(func(r policy.RuleRef) uint32 {
		id, ok := ids[r]
		if !ok {
			id = firstRuleID + uint32(len(ids))
			ids[r], st.refs[id] = id, r
		}
		return id
	})
	_, err = st.world.Apply(mapstate.Update{
		Sets: delta.SetsChanged, RulesetsAdded: delta.RulesetsAdded, RulesetsRemoved: delta.RulesetsRemoved, SetsRemoved: delta.SetsRemoved,
		Topology: &mapstate.Topology{Services: s.Services, Nodes: s.Nodes},
	})
	if err != nil {
		t.Fatal(err)
	}
	st.label()
	return st
}

// label names the rulesets that some policy has a part in by who has them.
func (st *state) label() {
	users := map[string][]string{}
	for key, ids := range st.compiled.Endpoints {
		for _, dir := range policy.Directions {
			if st.compiled.Rulesets[ids[dir]].Selected {
				users[ids[dir]] = append(users[ids[dir]], key.String())
			}
		}
	}
	st.names = map[string]string{}
	for id, keys := range users {
		slices.Sort(keys)
		st.names[id] = st.compiled.Rulesets[id].Direction.String() + " of " + strings.Join(keys, ", ")
	}
}

// probes answers every line and returns them with the answers.
func (st *state) probes(t *testing.T, text string) string {
	t.Helper()
	var b strings.Builder
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if line == "" || strings.HasPrefix(line, "#") {
			b.WriteString(line + "\n")
			continue
		}
		if at, ok := strings.CutPrefix(line, "at "); ok {
			now, err := time.Parse(time.RFC3339, at)
			if err != nil {
				t.Fatal(err)
			}
			later := *st.snapshot
			later.Time = now
			st = build(t, &later)
			b.WriteString(line + "\n")
			continue
		}
		q, _, _ := strings.Cut(line, "  ")
		fmt.Fprintf(&b, "%s  %s\n", q, st.ask(t, q))
	}
	return b.String()
}

// ask answers one question by every means, which have to agree.
func (st *state) ask(t *testing.T, line string) policy.Decision {
	t.Helper()
	q, err := parseQuestion(st.snapshot, line)
	if err != nil {
		t.Fatal(err)
	}
	want := policy.Evaluate(st.snapshot, q.pod, q.dir, q.tuple)
	if got := policy.Explain(st.snapshot, q.pod, q.dir, q.tuple).Decision; got != want {
		t.Errorf("%s\nEvaluate: %s\nExplain:  %s", line, want, got)
	}
	if got := policy.LookupService(st.compiled, st.frontends, q.pod, q.dir, q.tuple); got != want {
		t.Errorf("%s\nEvaluate: %s\nLookup:   %s", line, want, got)
	}
	st.askWorld(t, line, q)
	return want
}

// askWorld compares the maps with the compiled rulesets, behind the Service if
// the destination is one.
func (st *state) askWorld(t *testing.T, line string, q question) {
	t.Helper()
	tuples := []question{q}
	if target, ok := st.frontends[policy.Frontend{Addr: q.tuple.Dst, Protocol: q.tuple.Protocol, Port: q.tuple.DstPort}]; ok && q.dir == policy.Egress {
		tuples = nil
		for _, b := range target.Backends {
			q.tuple.Dst, q.tuple.DstPort = b.Addr(), b.Port()
			tuples = append(tuples, q)
		}
	}
	for _, q := range tuples {
		want := policy.Lookup(st.compiled, q.pod, q.dir, q.tuple)
		if want.Rule.Index == policy.IndexSelf || want.Rule.Index == policy.IndexUnknown {
			continue // not in a ruleset
		}
		remote := packet.Judged(q.tuple.Dst)
		if q.dir == policy.Ingress {
			remote = q.tuple.Src
		}
		v := st.world.Lookup(st.world.RulesetID(st.compiled.Endpoints[q.pod][q.dir]), st.world.Class(remote), q.tuple.Protocol, q.tuple.DstPort)
		got := policy.Decision{Rule: st.refs[v&mapstate.RuleMask]}
		if v&mapstate.RuleForwarded != 0 {
			got.Verdict = policy.Forwarded
		}
		if got != want {
			t.Errorf("%s\nLookup: %s\nmaps:   %s", line, want, got)
		}
	}
}

// rulesets prints what the policies are compiled to, and the sets that are named.
func (st *state) rulesets() string {
	var b strings.Builder
	sets := map[policy.SetID]bool{}
	ids := slices.SortedFunc(maps.Keys(st.names), func(x, y string) int { return cmp.Compare(st.names[x], st.names[y]) })
	for _, id := range ids {
		fmt.Fprintf(&b, "%s\n", st.names[id])
		for i, r := range st.compiled.Rulesets[id].Rules {
			var matches []string
			for _, m := range r.Matches {
				matches = append(matches, matchText(m))
				if !m.AnyAddress {
					sets[m.Set] = true
				}
			}
			fmt.Fprintf(&b, "  %d %-6s %s: %s\n", i, r.Action, r.Ref, strings.Join(matches, "; "))
		}
	}
	if len(sets) > 0 {
		b.WriteString("sets\n")
	}
	for _, id := range slices.Sorted(maps.Keys(sets)) {
		var parts []string
		for _, p := range st.compiled.Sets[id] {
			parts = append(parts, p.String())
		}
		fmt.Fprintf(&b, "  %s = %s\n", short(id), cmp.Or(strings.Join(parts, " "), "nothing"))
	}
	return b.String()
}

func matchText(m policy.Match) string {
	out := short(m.Set)
	switch {
	case m.AnyAddress && m.NotProtected:
		out = "anywhere but protected"
	case m.AnyAddress:
		out = "anywhere"
	}
	if m.AnyPort {
		return out
	}
	var ports []string
	for _, p := range m.Ports {
		ports = append(ports, p.String())
	}
	return out + " on " + cmp.Or(strings.Join(ports, ", "), "no port")
}

// short cuts a digest of networks as mapstate.txt does.
func short(id policy.SetID) string {
	if digest, ok := strings.CutPrefix(string(id), "net:"); ok && len(digest) > 8 {
		return "net:" + digest[:8]
	}
	return string(id)
}
