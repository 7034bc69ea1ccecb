package manifests

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/postern-dev/postern/internal/kube"
	"github.com/postern-dev/postern/internal/packet"
	"github.com/postern-dev/postern/internal/policy"
)

const podWeb = `apiVersion: v1
kind: Pod
metadata:
  namespace: shop
  name: web
  labels: {app: web}
  annotations: {postern.dev/interface: veth1}
status: {podIP: 10.0.0.1}
`

const isolate = `apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: shop, name: isolate}
spec:
  podSelector: {}
  policyTypes: [Egress]
  egress: [{to: [{ipBlock: {cidr: 192.0.2.0/24}}]}]
`

// world is a directory with a Store and a clock.
type world struct {
	t   *testing.T
	dir string
	now time.Time
	*Store
}

func newWorld(t *testing.T, files map[string]string) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir(), now: time.Now().Add(time.Hour)}
	w.Store = NewStore(w.dir, Options{Now: func() time.Time { return w.now }})
	for name, text := range files {
		w.write(name, text)
	}
	w.rescan()
	return w
}

func (w *world) write(name, text string) {
	w.t.Helper()
	path := filepath.Join(w.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		w.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) remove(name string) {
	w.t.Helper()
	if err := os.Remove(filepath.Join(w.dir, name)); err != nil {
		w.t.Fatal(err)
	}
}

// rescan rescans with every file touched that is there, so that equal times don't matter.
func (w *world) rescan() Result {
	w.t.Helper()
	touched := map[string]bool{}
	for path := range w.files {
		if _, err := os.Stat(filepath.Join(w.dir, path)); err == nil {
			touched[path] = true
		}
	}
	res := w.Rescan(touched)
	if res.Err != nil {
		w.t.Fatal(res.Err)
	}
	return res
}

// sends reports what happens to a packet from shop/web.
func (w *world) sends(to string) string {
	w.t.Helper()
	return policy.Evaluate(w.Snapshot(), policy.PodKey{Namespace: "shop", Name: "web"}, policy.Egress, packet.Tuple{
		Protocol: packet.ProtocolTCP, Src: netip.MustParseAddr("10.0.0.1"), Dst: netip.MustParseAddr(to), SrcPort: 40000, DstPort: 443,
	}).String()
}

func (w *world) wantFinding(text string) {
	w.t.Helper()
	var all []string
	for _, f := range w.Findings() {
		if strings.Contains(f.String(), text) {
			return
		}
		all = append(all, f.String())
	}
	w.t.Errorf("no finding holds %q; there are\n%s", text, strings.Join(all, "\n"))
}

func (w *world) wantVerdict(to, want string) {
	w.t.Helper()
	if got := w.sends(to); got != want {
		w.t.Errorf("to %s: got %s, want %s", to, got, want)
	}
}

const (
	byIsolation = "dropped by networkpolicy shop/isolate egress isolation"
	byRule      = "forwarded by networkpolicy shop/isolate egress[0]"
	byNobody    = "forwarded by egress no-match"
)

func TestRescan(t *testing.T) {
	w := newWorld(t, map[string]string{"web.yaml": podWeb, "deep/er/p.yml": isolate, "notes.txt": "x", ".hidden.yaml": "[", ".git/x.yaml": "["})
	w.wantVerdict("192.0.2.1", byRule)
	w.wantVerdict("192.0.3.1", byIsolation)
	if diff := cmp.Diff([]Binding{{Pod: policy.PodKey{Namespace: "shop", Name: "web"}, Interface: "veth1"}}, w.Bindings()); diff != "" {
		t.Errorf("bindings (-want +got)\n%s", diff)
	}
	if res := w.rescan(); res.Changed {
		t.Error("an unchanged directory changed")
	}
	w.Flush()

	w.write("deep/er/p.yml", strings.ReplaceAll(isolate, "192.0.2.0/24", "192.0.3.0/24"))
	if res := w.rescan(); !res.Changed {
		t.Error("the change was not seen")
	}
	w.wantVerdict("192.0.3.1", byRule)
	ch := w.Flush()
	if len(ch.Policies) != 1 || len(ch.Pods)+len(ch.Tiers)+len(ch.PoliciesDeleted) != 0 {
		t.Errorf("a changed policy made %+v", ch)
	}

	w.remove("deep/er/p.yml")
	if res := w.rescan(); res.Changed || res.Retry != deletionGrace {
		t.Errorf("a file that has just gone: got %+v", res)
	}
	w.wantVerdict("192.0.2.1", byIsolation)
	w.now = w.now.Add(deletionGrace)
	w.rescan()
	w.wantVerdict("192.0.2.1", byNobody)
}

func TestRename(t *testing.T) {
	w := newWorld(t, map[string]string{"web.yaml": podWeb, "p.yaml": isolate})
	w.Flush()
	if err := os.Rename(filepath.Join(w.dir, "p.yaml"), filepath.Join(w.dir, "q.yaml")); err != nil {
		t.Fatal(err)
	}
	w.rescan()
	w.now = w.now.Add(deletionGrace)
	w.rescan()
	if ch := w.Flush(); len(ch.Policies)+len(ch.PoliciesDeleted) != 0 {
		t.Errorf("renaming a file changed %+v", ch)
	}
	if errs := w.Findings(); kube.HasErrors(errs) {
		t.Errorf("got %v", errs)
	}
}

// TestUnreadableKeepsLastGood: whatever happens to a file that was once good,
// its objects stay until it is deleted or good again (I6, M1, M2).
func TestUnreadableKeepsLastGood(t *testing.T) {
	for name, c := range map[string]struct{ text, finding string }{
		"syntax":         {"apiVersion: v1\nkind: [\n", "p.yaml:"},
		"no object":      {"just text\n", "p.yaml:1: error: is the text"},
		"empty":          {"", "p.yaml: error: the file holds no objects any more"},
		"comments":       {"# nothing\n", "p.yaml: error: the file holds no objects any more"},
		"unknown kind":   {strings.ReplaceAll(isolate, "kind: NetworkPolicy", "kind: NetworkPolice"), "p.yaml:1: error: NetworkPolice kind:"},
		"wrong version":  {strings.ReplaceAll(isolate, "networking.k8s.io/v1", "networking.k8s.io/v2"), `NetworkPolicy apiVersion: is "networking.k8s.io/v2"`},
		"no name":        {strings.ReplaceAll(isolate, "name: isolate", "nme: isolate"), "NetworkPolicy metadata.name: name is missing"},
		"no namespace":   {strings.ReplaceAll(isolate, "namespace: shop", "namspace: shop"), "metadata.namspace: is no field"},
		"kind twice":     {"kind: NetworkPolicy\n" + isolate, "kind is given twice"},
		"one of several": {isolate + "---\n{\n", "p.yaml:"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, map[string]string{"web.yaml": podWeb, "p.yaml": isolate})
			w.write("p.yaml", c.text)
			w.rescan()
			w.wantVerdict("192.0.2.1", byRule)
			w.wantVerdict("192.0.3.1", byIsolation)
			w.wantFinding(c.finding)
			w.wantFinding("the last version of this file that could be read stays in force: 1 object;")
			if !w.Complete() {
				t.Error("not complete, though the file was read once")
			}
			w.write("p.yaml", isolate)
			w.rescan()
			if fs := w.Findings(); kube.HasErrors(fs) {
				t.Errorf("still wrong after the file is good again: %v", fs)
			}
		})
	}
}

// TestAliases: an alias that names what it is part of does not stop anything,
// and a field that is not known beside spec closes the policy.
func TestAliases(t *testing.T) {
	w := newWorld(t, map[string]string{"web.yaml": podWeb, "p.yaml": "a: &a [*a]\n" + isolate})
	w.wantVerdict("192.0.2.1", byIsolation)
	w.wantFinding("p.yaml:1: error: NetworkPolicy shop/isolate a: is no field")
	w.write("p.yaml", isolate+"  policyTypes: &t [Egress]\n")
	w.rescan()
	w.wantVerdict("192.0.2.1", byIsolation)
	w.wantFinding("spec.policyTypes: is given twice")
	w.write("p.yaml", "metadata: &m {namespace: shop, name: other, labels: {a: b}}\n"+strings.Replace(isolate, "{namespace: shop, name: isolate}", "*m", 1))
	w.rescan()
	w.wantVerdict("192.0.2.1", byIsolation)
	w.wantFinding("NetworkPolicy metadata: must be there once")
}

// TestNeverRead: what a file that was never good denies is not known (M1).
func TestNeverRead(t *testing.T) {
	w := newWorld(t, map[string]string{"web.yaml": podWeb, "p.yaml": isolate + "---\n{\n"})
	w.wantVerdict("192.0.2.1", `dropped by (invalid) p.yaml egress[0] "not understood"`)
	w.wantFinding("all pods are cut off until it can be read")
	if w.Complete() {
		t.Error("complete")
	}
	w.write("p.yaml", isolate)
	w.rescan()
	w.wantVerdict("192.0.2.1", byRule)
	if !w.Complete() {
		t.Error("not complete")
	}
	w.write("q.yaml", "{")
	w.rescan()
	w.now = w.now.Add(time.Hour)
	w.rescan()
	w.wantVerdict("192.0.2.1", `dropped by (invalid) q.yaml egress[0] "not understood"`)
	w.remove("q.yaml")
	w.rescan()
	w.now = w.now.Add(time.Hour)
	w.rescan()
	w.wantVerdict("192.0.2.1", byRule)
}

// TestHalfWritten: a file without a last newline is not taken before it is quiet.
func TestHalfWritten(t *testing.T) {
	w := newWorld(t, map[string]string{"web.yaml": podWeb, "p.yaml": isolate})
	w.now = time.Now()
	w.write("p.yaml", strings.TrimSuffix(strings.ReplaceAll(isolate, "192.0.2.0/24", "192.0.0.0/16"), "\n"))
	res := w.rescan()
	if res.Changed || res.Retry <= 0 || res.Retry > settleTime {
		t.Errorf("got %+v", res)
	}
	w.wantVerdict("192.0.3.1", byIsolation)
	w.now = w.now.Add(2 * settleTime)
	if res := w.rescan(); !res.Changed {
		t.Error("not taken in the end")
	}
	w.wantVerdict("192.0.3.1", byRule)
}

// writeNow writes a file in place, at the time of w's clock.
func (w *world) writeNow(name, text string) {
	w.t.Helper()
	w.write(name, text)
	if err := os.Chtimes(filepath.Join(w.dir, name), w.now, w.now); err != nil {
		w.t.Fatal(err)
	}
}

// TestRewrittenInPlace: a file that is written in place again and again, and never
// left alone for long enough to tell whether it is whole, is taken over all the same.
func TestRewrittenInPlace(t *testing.T) {
	deny := func(i int) string {
		return fmt.Sprintf(`{"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"namespace": "shop", "name": "isolate",
 "labels": {"n": "%d"}}, "spec": {"podSelector": {}, "policyTypes": ["Egress"]}}`, i)
	}
	both := func(i int) string { return fmt.Sprintf("%s---\n%s# %d", isolate, podWeb, i) }
	less := func(i int) string { return fmt.Sprintf("%s# %d\n", podWeb, i) }
	for name, c := range map[string]struct {
		every  time.Duration
		before string // "": a new file
		text   func(i int) string
		want   string
	}{
		"new":               {400 * time.Millisecond, "", deny, byIsolation},
		"new, often":        {150 * time.Millisecond, "", deny, byIsolation},
		"new, all the time": {20 * time.Millisecond, "", deny, byIsolation},
		"another version":   {400 * time.Millisecond, podWeb + "---\n" + strings.ReplaceAll(isolate, "192.0.2.0/24", "192.0.3.0/24"), both, byIsolation},
		"same text":         {400 * time.Millisecond, "", func(int) string { return deny(0) }, byIsolation},
		"without an object": {100 * time.Millisecond, podWeb + "---\n" + isolate, less, byNobody},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, map[string]string{"web.yaml": podWeb})
			if c.before != "" {
				w.remove("web.yaml")
				w.write("p.json", c.before)
				w.rescan()
			}
			start := w.now
			for i := 0; w.now.Sub(start) <= 3*time.Second; i++ {
				w.writeNow("p.json", c.text(i))
				for next, step := w.now.Add(c.every), 10*time.Millisecond; w.now.Before(next); {
					w.now = w.now.Add(min(step, next.Sub(w.now)))
					if res := w.Rescan(nil); res.Retry > 0 {
						step = res.Retry
					}
				}
			}
			w.wantVerdict("192.0.3.1", c.want)
			if fs := w.Findings(); kube.HasErrors(fs) {
				t.Errorf("got %v", fs)
			}
		})
	}
}

// TestGrowingFile: a file that grows is not taken before it has been left alone,
// and if it takes long that is said (I11).
func TestGrowingFile(t *testing.T) {
	for _, known := range []bool{false, true} {
		w := newWorld(t, map[string]string{"web.yaml": podWeb})
		want := byNobody
		if known {
			w.write("p.yaml", strings.ReplaceAll(isolate, "192.0.2.0/24", "192.0.9.0/24"))
			w.rescan()
			want = byIsolation
		}
		text := isolate + "# " // without its rule it would parse, too
		for i := range 100 {
			w.now = w.now.Add(100 * time.Millisecond)
			text += "x"
			w.writeNow("p.yaml", text)
			w.Rescan(nil)
			w.wantVerdict("192.0.2.1", want)
			if i == 10 && len(w.Findings()) > 1 {
				t.Errorf("told too early: %v", w.Findings())
			}
		}
		w.wantFinding("p.yaml: error: is written to without end")
		w.now = w.now.Add(settleTime)
		if res := w.Rescan(nil); !res.Changed {
			t.Error("not taken in the end")
		}
		w.wantVerdict("192.0.2.1", byRule)
		if fs := w.Findings(); kube.HasErrors(fs) {
			t.Errorf("still told: %v", fs)
		}
	}
}

// TestStalledFile: one that grew and rests for a moment is not whole yet.
func TestStalledFile(t *testing.T) {
	w := newWorld(t, map[string]string{"web.yaml": podWeb, "p.yaml": strings.ReplaceAll(isolate, "192.0.2.0/24", "192.0.9.0/24")})
	text := isolate + "# "
	for range 10 {
		text += "x"
		w.writeNow("p.yaml", text)
		for range 9 {
			w.now = w.now.Add(settleTime / 10)
			w.Rescan(nil)
		}
		w.wantVerdict("192.0.2.1", byIsolation)
	}
}

func TestDuplicates(t *testing.T) {
	t.Run("same", func(t *testing.T) {
		w := newWorld(t, map[string]string{"web.yaml": podWeb, "a.yaml": isolate, "b.yaml": isolate})
		w.wantVerdict("192.0.2.1", byRule)
		w.wantFinding("b.yaml:3: warning: NetworkPolicy shop/isolate metadata.name: NetworkPolicy shop/isolate is already in a.yaml")
	})
	t.Run("policy", func(t *testing.T) {
		other := strings.ReplaceAll(isolate, "192.0.2.0/24", "192.0.3.0/24")
		w := newWorld(t, map[string]string{"web.yaml": podWeb, "a.yaml": isolate, "b.yaml": other})
		w.wantVerdict("192.0.2.1", byRule)
		w.wantVerdict("192.0.3.1", byIsolation)
		w.wantFinding("b.yaml:3: error: NetworkPolicy shop/isolate metadata.name: NetworkPolicy shop/isolate is already in a.yaml: remove one of them; until then this one accepts nothing")
		w.remove("a.yaml")
		w.rescan()
		w.now = w.now.Add(time.Hour)
		w.rescan()
		w.wantVerdict("192.0.3.1", byRule)
	})
	t.Run("pod", func(t *testing.T) {
		w := newWorld(t, map[string]string{
			"a.yaml": podWeb, "b.yaml": strings.ReplaceAll(podWeb, "veth1", "veth2"), "p.yaml": isolate,
		})
		w.wantVerdict("192.0.2.1", `dropped by (invalid) shop/web egress[0] "not understood"`)
		w.wantFinding("until then both are closed")
		if len(w.Bindings()) != 2 {
			t.Errorf("got %v", w.Bindings())
		}
		w.remove("b.yaml")
		w.rescan()
		w.now = w.now.Add(time.Hour)
		w.rescan()
		w.wantVerdict("192.0.2.1", byRule)
	})
	t.Run("large set", func(t *testing.T) {
		set := bigSet(largeSet+1, "  - %s\n")
		w := newWorld(t, map[string]string{"a.yaml": set})
		w.write("b.yaml", set)
		w.rescan()
		if s := w.Snapshot().Sets[0]; !s.Invalid || len(s.Networks) != largeSet+1 {
			t.Errorf("got invalid=%t with %d networks", s.Invalid, len(s.Networks))
		}
		w.write("0.yaml", set)
		w.rescan()
		w.remove("b.yaml")
		w.remove("0.yaml")
		w.rescan()
		w.now = w.now.Add(time.Hour)
		w.rescan()
		if s := w.Snapshot().Sets[0]; s.Invalid || len(s.Networks) != largeSet+1 {
			t.Errorf("got invalid=%t with %d networks", s.Invalid, len(s.Networks))
		}
	})
}

func TestBindings(t *testing.T) {
	pod := func(name, annotations string) string {
		return "---\napiVersion: v1\nkind: Pod\nmetadata: {namespace: shop, name: " + name + ", annotations: {" + annotations + "}}\n"
	}
	w := newWorld(t, map[string]string{"pods.yaml": pod("a", "postern.dev/netns: /run/netns/a") +
		pod("b", "") + pod("c", "postern.dev/interface: veth/9") + pod("d", "postern.dev/netns: run") +
		pod("e", "postern.dev/interface: eth9, postern.dev/netns: /x") + pod("f", "postern.dev/interface: eth9")})
	want := []Binding{
		{Pod: policy.PodKey{Namespace: "shop", Name: "a"}, Netns: "/run/netns/a"},
		{Pod: policy.PodKey{Namespace: "shop", Name: "e"}, Interface: "eth9"},
		{Pod: policy.PodKey{Namespace: "shop", Name: "f"}, Interface: "eth9"},
	}
	if diff := cmp.Diff(want, w.Bindings()); diff != "" {
		t.Errorf("bindings (-want +got)\n%s", diff)
	}
	w.wantFinding("pods.yaml:12: error: Pod shop/c metadata.annotations[postern.dev/interface]")
	w.wantFinding("is no absolute path")
	w.wantFinding("excludes postern.dev/interface")
	w.wantFinding("eth9 is also pod shop/e's")
}

func TestLists(t *testing.T) {
	list := "apiVersion: v1\nkind: List\nitems:\n- " + strings.ReplaceAll(strings.TrimSpace(podWeb), "\n", "\n  ") +
		"\n- " + strings.ReplaceAll(strings.TrimSpace(strings.ReplaceAll(isolate, "192.0.2.0/24", "192.0.2.9")), "\n", "\n  ") + "\n"
	w := newWorld(t, map[string]string{"all.yaml": "# first\n---\n" + list})
	w.wantVerdict("192.0.2.9", byIsolation)
	w.wantFinding("all.yaml:20: error: NetworkPolicy shop/isolate spec.egress[0].to[0].ipBlock.cidr:")
}

func TestJSON(t *testing.T) {
	w := newWorld(t, map[string]string{"p.json": `{"apiVersion": "postern.dev/v1alpha1", "kind": "Tier",
 "metadata": {"name": "a"},
 "spec": {"order": 1000}}
`})
	w.wantFinding("p.json:3: error: Tier a spec.order: 1000 belongs to the tier admin")
}

func TestIgnoredKinds(t *testing.T) {
	w := newWorld(t, map[string]string{
		"web.yaml": podWeb, "p.yaml": isolate,
		"other.yaml": "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n",
	})
	w.wantVerdict("192.0.2.1", byRule)
	w.wantFinding("other.yaml:1: warning: Deployment kind: apps/v1 Deployment has no part in policy")
	if !w.Complete() {
		t.Error("not complete")
	}
}

// TestSymlinks: a mounted ConfigMap is a directory of links.
func TestSymlinks(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"v1/p.yaml": isolate, "v2/p.yaml": strings.ReplaceAll(isolate, "192.0.2.0/24", "192.0.3.0/24")} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(podWeb+"---\n"+text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	link := filepath.Join(dir, "current")
	if err := os.Symlink("v1", link); err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, dir: dir, Store: NewStore(link, Options{Now: time.Now})}
	w.rescan()
	w.wantVerdict("192.0.2.1", byRule)
	if err := os.Symlink("v2", link+".new"); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(link+".new", link); err != nil {
		t.Fatal(err)
	}
	w.rescan()
	w.wantVerdict("192.0.3.1", byRule)
	w.wantVerdict("192.0.2.1", byIsolation)
}

// TestGoneOnlyIfQuiet: a file counts as deleted after a time in which it cannot
// have been there, however often a listing missed it.
func TestGoneOnlyIfQuiet(t *testing.T) {
	const step = deletionGrace - time.Millisecond
	all := func(string) bool { return true }
	for name, c := range map[string]struct {
		watches func(string) bool
		touched string         // by events between two listings
		between func(w *world) // what happens to the directory then
		most    time.Duration  // how long the policy must stay; 0: for ever
	}{
		"told of":              {watches: all, touched: "sub/p.yaml"},
		"its directory anew":   {watches: all, touched: "sub"},
		"events lost":          {watches: all, touched: "."},
		"polled, and back":     {between: func(w *world) { w.write("sub/p.yaml", isolate); w.remove("sub/p.yaml") }},
		"polled, or another":   {between: func(w *world) { w.write("sub/q.txt", ""); w.remove("sub/q.txt") }},
		"another file":         {watches: all, between: func(w *world) { w.write("sub/q.txt", ""); w.remove("sub/q.txt") }, most: maxGrace},
		"another's directory":  {watches: all, touched: "other", most: deletionGrace},
		"another missing":      {watches: all, touched: "other/gone.yaml", most: maxGrace},
		"in another directory": {touched: "other/p.yaml", between: func(w *world) { w.write("other/q.txt", ""); w.remove("other/q.txt") }, most: deletionGrace},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, map[string]string{"web.yaml": podWeb, "sub/p.yaml": isolate, "sub/other.yaml": "", "other/z.yaml": "", "other/gone.yaml": ""})
			w.watches = c.watches
			w.remove("sub/p.yaml")
			if c.touched == "other/gone.yaml" {
				w.remove(c.touched)
			}
			w.rescan()
			start := w.now
			for range 20 {
				w.now = w.now.Add(step)
				if c.between != nil {
					c.between(w)
				}
				w.Rescan(map[string]bool{c.touched: true})
				if c.most == 0 || w.now.Sub(start) < c.most {
					w.wantVerdict("192.0.3.1", byIsolation)
				}
			}
			if c.most != 0 {
				w.wantVerdict("192.0.3.1", byNobody)
			}
			w.rescan()
			w.now = w.now.Add(deletionGrace)
			w.rescan()
			w.wantVerdict("192.0.3.1", byNobody)
		})
	}
}

// TestDirectoryAnew: another directory in a file's directory's place is no proof
// that the file was not there before.
func TestDirectoryAnew(t *testing.T) {
	w := newWorld(t, map[string]string{"web.yaml": podWeb, "sub/p.yaml": isolate})
	w.watches = func(string) bool { return true }
	sub := filepath.Join(w.dir, "sub")
	if err := os.RemoveAll(sub); err != nil {
		t.Fatal(err)
	}
	w.rescan()
	for i := range 20 {
		w.now = w.now.Add(deletionGrace / 2)
		if i%2 == 0 {
			w.write("sub/notes.txt", "") // the directory is there, the file is not yet, or no longer
		} else if err := os.RemoveAll(sub); err != nil {
			t.Fatal(err)
		}
		w.Rescan(nil)
		w.wantVerdict("192.0.3.1", byIsolation)
	}
}

const namespaceShop = `apiVersion: v1
kind: Namespace
metadata: {name: shop}
`

// TestNamespaceFilesGo: the files of a namespace are deleted one after the other,
// in any order, and the pod's last: it stays isolated until it is gone.
func TestNamespaceFilesGo(t *testing.T) {
	for _, order := range [][]string{{"p.yaml", "ns.yaml"}, {"ns.yaml", "p.yaml"}} {
		w := newWorld(t, map[string]string{"ns.yaml": namespaceShop, "p.yaml": isolate, "web.yaml": podWeb})
		w.Flush()
		for _, name := range order {
			w.remove(name)
			w.rescan()
			w.now = w.now.Add(deletionGrace / 2)
			w.rescan()
		}
		for range 10 {
			w.now = w.now.Add(deletionGrace / 2)
			w.rescan()
			w.wantVerdict("192.0.3.1", byIsolation)
		}
		w.wantFinding("Namespace shop is deleted, and its labels and policies stay in force until the last of its 1 pods has ended")
		w.write("ns.yaml", namespaceShop) // without the policy, that is what was meant
		w.rescan()
		w.wantVerdict("192.0.3.1", byNobody)
		w.remove("ns.yaml")
		w.remove("web.yaml")
		w.rescan()
		w.now = w.now.Add(deletionGrace)
		w.rescan()
		if s := w.Snapshot(); len(s.Policies)+len(s.Namespaces)+len(s.Pods) != 0 || len(w.Findings()) != 0 {
			t.Errorf("left: %+v, %v", s, w.Findings())
		}
	}
}

// TestTerminatingNamespace: a file that says that the namespace ends keeps the
// policies that are deleted after that, and no others.
func TestTerminatingNamespace(t *testing.T) {
	w := newWorld(t, map[string]string{"ns.yaml": namespaceShop, "p.yaml": isolate, "web.yaml": podWeb})
	w.Flush()
	w.write("ns.yaml", strings.Replace(namespaceShop, "name: shop", "name: shop, deletionTimestamp: 2026-01-01T00:00:00Z", 1)+"status: {phase: Terminating}\n")
	w.rescan()
	w.remove("p.yaml")
	w.rescan()
	w.now = w.now.Add(time.Hour)
	w.rescan()
	w.wantVerdict("192.0.3.1", byIsolation)
	w.wantFinding("NetworkPolicy shop/isolate is deleted, and stays in force until the last of 1 pods of namespace shop has ended")
	w.remove("web.yaml")
	w.rescan()
	w.now = w.now.Add(time.Hour)
	w.rescan()
	if s := w.Snapshot(); len(s.Policies) != 0 {
		t.Errorf("left: %+v", s.Policies)
	}
}

// TestSameTimeAndSize: another file of the same size and time is another file.
func TestSameTimeAndSize(t *testing.T) {
	w := newWorld(t, map[string]string{"web.yaml": podWeb, "p.yaml": isolate, "p.new": strings.ReplaceAll(isolate, "192.0.2.0/24", "192.0.3.0/24")})
	at := time.Unix(1_000_000_000, 0)
	for _, name := range []string{"p.yaml", "p.new"} {
		if err := os.Chtimes(filepath.Join(w.dir, name), at, at); err != nil {
			t.Fatal(err)
		}
	}
	w.rescan()
	if err := os.Rename(filepath.Join(w.dir, "p.new"), filepath.Join(w.dir, "p.yaml")); err != nil {
		t.Fatal(err)
	}
	w.Rescan(nil)
	w.wantVerdict("192.0.3.1", byRule)
}

// TestLinkToNothing: a link says nothing while its file is away, and is not
// deleted (M1). A ConfigMap's files are such links while it is replaced by hand.
func TestLinkToNothing(t *testing.T) {
	w := newWorld(t, map[string]string{"web.yaml": podWeb, "..v1/p.yaml": isolate})
	link := func(name, to string) {
		t.Helper()
		if err := os.Symlink(to, filepath.Join(w.dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	link("..data", "..v1")
	link("p.yaml", "..data/p.yaml")
	w.rescan()
	w.wantVerdict("192.0.3.1", byIsolation)
	for range 3 {
		w.remove("..data")
		for range 3 {
			w.Rescan(nil)
			w.now = w.now.Add(time.Hour)
			w.wantVerdict("192.0.3.1", byIsolation)
			w.wantFinding("p.yaml: error: the file is a link to nothing")
			w.wantFinding("the last version of this file that could be read stays in force: 1 object;")
		}
		link("..data", "..v1")
		w.Rescan(nil)
		if fs := w.Findings(); kube.HasErrors(fs) {
			t.Errorf("still wrong: %v", fs)
		}
	}
	w.remove("..data")
	w.Rescan(nil)
	w.remove("p.yaml")
	w.Rescan(nil)
	w.now = w.now.Add(deletionGrace)
	w.Rescan(nil)
	w.wantVerdict("192.0.3.1", byNobody)

	link("q.yaml", "nowhere") // never read
	w.Rescan(nil)
	w.wantVerdict("192.0.3.1", `dropped by (invalid) q.yaml egress[0] "not understood"`)
}

// TestSpecialFiles: what is no file is not read, and it is told (I11).
func TestSpecialFiles(t *testing.T) {
	w := newWorld(t, map[string]string{"web.yaml": podWeb})
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "unix", filepath.Join(w.dir, "socket.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	w.rescan()
	w.wantFinding("socket.yaml: warning: no regular file")
}

// TestLinkToDirectory: what is not read is said (I11), but for the hidden links of
// a mounted ConfigMap.
func TestLinkToDirectory(t *testing.T) {
	w := newWorld(t, map[string]string{"web.yaml": podWeb, ".elsewhere/p.yaml": isolate})
	for _, name := range []string{"..data", "more", "more.yaml"} {
		if err := os.Symlink(".elsewhere", filepath.Join(w.dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if res := w.rescan(); !res.Changed {
		t.Error("nothing to tell")
	}
	w.wantVerdict("192.0.3.1", byNobody)
	for _, name := range []string{"more", "more.yaml"} {
		w.wantFinding(name + ": warning: a link to a directory, whose manifests are not read")
	}
	before := len(w.Findings())
	w.remove("more")
	w.remove("more.yaml")
	if res := w.rescan(); !res.Changed || len(w.Findings()) != before-2 {
		t.Errorf("were %d findings: %+v, %v", before, res, w.Findings())
	}
}

// TestWrittenInPlace: a file that is written in place and lacks an object that it
// had is not taken before it has been left alone; one that takes its place is.
func TestWrittenInPlace(t *testing.T) {
	w := newWorld(t, map[string]string{"all.yaml": podWeb + "---\n" + isolate})
	w.now = time.Now()
	for range 5 {
		w.write("all.yaml", podWeb)
		if res := w.rescan(); res.Changed || res.Retry <= 0 || res.Retry > deletionGrace {
			t.Errorf("got %+v", res)
		}
		w.wantVerdict("192.0.3.1", byIsolation)
	}
	w.now = w.now.Add(time.Hour)
	w.rescan()
	w.wantVerdict("192.0.3.1", byNobody)

	w = newWorld(t, map[string]string{"all.yaml": podWeb + "---\n" + isolate})
	w.now = time.Now()
	w.write("new", podWeb)
	if err := os.Rename(filepath.Join(w.dir, "new"), filepath.Join(w.dir, "all.yaml")); err != nil {
		t.Fatal(err)
	}
	w.rescan()
	w.wantVerdict("192.0.3.1", byNobody)
}

// TestDirectoryGone: what was read stays in force (I6), and it is told (I11).
func TestDirectoryGone(t *testing.T) {
	w := newWorld(t, map[string]string{"sub/web.yaml": podWeb, "sub/p.yaml": isolate})
	if err := os.Rename(w.dir, w.dir+".away"); err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		if res := w.Rescan(nil); res.Err == nil || res.Changed != (i == 0) {
			t.Errorf("rescan %d: %+v", i, res)
		}
		w.now = w.now.Add(time.Hour)
	}
	w.wantFinding("error: Directory " + w.dir + " can't be listed: ")
	w.wantVerdict("192.0.3.1", byIsolation)
	if err := os.Rename(w.dir+".away", w.dir); err != nil {
		t.Fatal(err)
	}
	if res := w.rescan(); !res.Changed || kube.HasErrors(w.Findings()) {
		t.Errorf("it is back: %+v, %v", res, w.Findings())
	}
	w.wantVerdict("192.0.3.1", byIsolation)
}

// TestExpiredRule: a rule whose time has passed is said to be without effect.
func TestExpiredRule(t *testing.T) {
	policyUntil := func(at time.Time) string {
		return "apiVersion: postern.dev/v1alpha1\nkind: EgressPolicy\nmetadata: {namespace: shop, name: p}\nspec:\n  podSelector: {}\n  egress:\n  - to: [{networks: [192.0.2.0/24]}]\n    expiresAt: " +
			at.UTC().Format(time.RFC3339) + "\n"
	}
	start := time.Now().Add(time.Hour)
	w := newWorld(t, map[string]string{"p.yaml": policyUntil(start.Add(time.Hour))})
	const want = "EgressPolicy shop/p spec.egress[0].expiresAt"
	for _, f := range w.Findings() {
		if strings.Contains(f.String(), want) {
			t.Errorf("not yet expired: %s", f)
		}
	}
	w.now = w.now.Add(3 * time.Hour)
	w.wantFinding("p.yaml:8: warning: " + want)
}
