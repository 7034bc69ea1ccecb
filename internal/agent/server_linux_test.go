package agent

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/postern-dev/postern/internal/control"
	"github.com/postern-dev/postern/internal/kube"
	"github.com/postern-dev/postern/internal/policy"
)

// TestProblemSaysWhere: a finding's place in its file gets to the user.
func TestProblemSaysWhere(t *testing.T) {
	for want, f := range map[string]kube.Finding{
		"shop.yaml:12: EgressPolicy shop/web spec.egress": {Object: kube.ObjectRef{Kind: "EgressPolicy", Namespace: "shop", Name: "web"}, Path: "spec.egress", File: "shop.yaml", Line: 12},
		"shop.yaml: Pod shop/web":                         {Object: kube.ObjectRef{Kind: "Pod", Namespace: "shop", Name: "web"}, File: "shop.yaml"},
		"shop.yaml:3":                                     {File: "shop.yaml", Line: 3},
		"shop.yaml":                                       {File: "shop.yaml"},
		"Namespace shop":                                  {Object: kube.ObjectRef{Kind: "Namespace", Name: "shop"}},
	} {
		if got := problemOf(f).About(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// TestListProblems: what cuts off all pods comes first; a claim is told once, with
// its place; an interface without a pod is an error.
func TestListProblems(t *testing.T) {
	pod := func(name string) policy.PodKey { return policy.PodKey{Namespace: "shop", Name: name} }
	ref := func(name string) kube.ObjectRef {
		return kube.ObjectRef{Kind: "Pod", Namespace: "shop", Name: name}
	}
	dup := func(name string, line int) kube.Finding {
		return kube.Finding{Object: ref(name), Path: "metadata.annotations", Severity: kube.Error, Reason: kube.ReasonDuplicateInterface, File: "b.yaml", Line: line, Message: "is also another's"}
	}
	a := &Agent{
		snapshot: &policy.Snapshot{},
		endpoints: map[policy.PodKey]*podEndpoint{
			pod("a"): {state: stateEnforced},
			pod("b"): {state: stateFailed, message: "taken", holder: pod("a")},
			pod("c"): {state: stateFailed, message: "taken", holder: pod("d")},
			pod("d"): {state: stateEnforced},
		},
		orphans: map[int]orphan{7: {name: "pl7", pod: podName{"shop", "old", ""}}},
		findings: []kube.Finding{
			dup("b", 3), dup("d", 4), dup("e", 5),
			{File: "x.yaml", Severity: kube.Error, Reason: kube.ReasonSyntax, Message: "no YAML"},
			{File: "x.yaml", Severity: kube.Error, Reason: kube.ReasonCutOff, Message: "cut off"},
		},
	}
	var got []string
	for _, p := range a.listProblems() {
		got = append(got, p.Severity+" "+p.About()+" "+p.Message)
	}
	want := []string{
		"error x.yaml cut off",
		"error b.yaml:3: Pod shop/b metadata.annotations failed: taken",
		"error Pod shop/c failed: taken",
		"error interface pl7 " + (&orphan{"pl7", podName{"shop", "old", ""}}).message(),
		"error b.yaml:5: Pod shop/e metadata.annotations is also another's",
		"error x.yaml no YAML",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// TestFailIsLoggedOnce: reconciling again and again says nothing new.
func TestFailIsLoggedOnce(t *testing.T) {
	var log bytes.Buffer
	a := &Agent{cfg: Config{Log: slog.New(slog.NewTextHandler(&log, nil))}}
	ep := &podEndpoint{}
	for _, m := range []string{"one", "one", "two"} {
		a.fail(ep, m)
	}
	if n := strings.Count(log.String(), "pod is not enforced"); n != 2 {
		t.Errorf("%d lines:\n%s", n, log.String())
	}
}

// TestUnpinned: that the pins are gone is said with what it means.
func TestUnpinned(t *testing.T) {
	a := &Agent{}
	a.cfg.Datapath.PinDir = t.TempDir()
	cause := errors.New("pin link: no such file")
	if err := a.unpinned(cause); !errors.Is(err, cause) || !strings.Contains(err.Error(), "ends with it") {
		t.Error(err)
	}
	if err := os.Mkdir(filepath.Join(a.cfg.Datapath.PinDir, "links"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := a.unpinned(cause); err != cause { //nolint:errorlint // the same, unwrapped
		t.Error(err)
	}
}

// TestSocketDirectory: it goes with the socket if an agent made it.
func TestSocketDirectory(t *testing.T) {
	for name, c := range map[string]struct {
		exists, other, stays bool
	}{
		"made by the agent":          {false, false, false},
		"there before":               {true, false, true},
		"made, and used by somebody": {false, true, true},
	} {
		state, dir := t.TempDir(), filepath.Join(t.TempDir(), "postern")
		if c.exists {
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
		}
		socket := filepath.Join(dir, "agent.sock")
		for range 2 { // a second start finds the directory there
			l, err := listen(socket, state)
			if err != nil {
				t.Fatal(err)
			}
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if c.other {
			if err := os.WriteFile(filepath.Join(dir, "notes"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		for range 2 { // nothing is left to remove the second time
			if err := RemoveSocket(socket, state); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := os.Stat(dir); (err == nil) != c.stays {
			t.Errorf("%s: %v, want it to stay: %v", name, err, c.stays)
		}
	}
}

// TestSocketWithoutState: an agent that can't note whose the directory is starts all the same.
func TestSocketWithoutState(t *testing.T) {
	dir := t.TempDir()
	l, err := listen(filepath.Join(dir, "run", "agent.sock"), filepath.Join(dir, "none"))
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}

// TestSecondAgent: it says who is there, and touches nothing.
func TestSecondAgent(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "agent.sock")
	l, err := listen(socket, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	err = Run(t.Context(), Config{Socket: socket, StateDir: filepath.Join(t.TempDir(), "never")})
	if want := fmt.Sprintf("another agent is running on this node, as process %d", os.Getpid()); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("%v, want %q", err, want)
	}
}

// TestHostNetworkIsOneProblem: the one that has file and line.
func TestHostNetworkIsOneProblem(t *testing.T) {
	proxy, bare := policy.PodKey{Namespace: "kube-system", Name: "proxy"}, policy.PodKey{Namespace: "shop", Name: "bare"}
	a := &Agent{
		snapshot: &policy.Snapshot{},
		endpoints: map[policy.PodKey]*podEndpoint{
			proxy: {state: stateNotCovered, message: "the pod uses the node's network; policies do not reach it"},
			bare:  {state: stateNotCovered, message: "no interface"},
		},
		findings: []kube.Finding{{
			Object: kube.ObjectRef{Kind: "Pod", Namespace: "kube-system", Name: "proxy"}, Path: "spec.hostNetwork",
			Severity: kube.Warning, Reason: kube.ReasonNotCovered, File: "proxy.yaml", Line: 7,
		}},
	}
	var got []string
	for _, p := range a.listProblems() {
		got = append(got, p.About())
	}
	if want := "Pod shop/bare|proxy.yaml:7: Pod kube-system/proxy spec.hostNetwork"; strings.Join(got, "|") != want {
		t.Errorf("got %q, want %q", got, want)
	}
	a.endpoints[proxy].state = stateFailed // that is another problem
	if n := len(a.listProblems()); n != 3 {
		t.Errorf("%d problems, want 3", n)
	}
}

func TestReport(t *testing.T) {
	var log bytes.Buffer
	pod := &podEndpoint{state: stateEnforced}
	a := &Agent{
		cfg:      Config{Log: slog.New(slog.NewTextHandler(&log, nil))},
		snapshot: &policy.Snapshot{Policies: make([]policy.Policy, 3)}, problems: map[string]control.Problem{},
		endpoints: map[policy.PodKey]*podEndpoint{{Namespace: "shop", Name: "a"}: pod, {Namespace: "shop", Name: "b"}: {state: stateEnforced}},
	}
	for _, c := range []struct {
		change func()
		want   string // of the log
	}{
		{func() {}, "msg=enforcing pods_enforced=2 pods_not_covered=0 policies=3 problems=0\n"},
		{func() {}, ""},
		{func() { a.snapshot.Policies = nil }, ""},
		{func() { pod.state = stateNotCovered }, `level=WARN msg=changed pods_enforced=1 pods_not_covered=1 policies=0 problems=1 see="postern status"`},
		{func() {}, ""},
		{func() { a.problem("x", "error", "x", "y") }, "problems=2"},
		{func() { pod.state = stateEnforced; a.problem("x", "", "", "") }, "level=INFO msg=changed pods_enforced=2 pods_not_covered=0 policies=0 problems=0\n"},
	} {
		c.change()
		log.Reset()
		a.report()
		if got := log.String(); !strings.Contains(got, c.want) || (c.want == "") != (got == "") || strings.Count(got, "\n") > 1 {
			t.Errorf("log %q, want %q", got, c.want)
		}
	}
}

// TestPolicyOfFile: what an unreadable file denies comes with what is wrong with the file.
func TestPolicyOfFile(t *testing.T) {
	a := &Agent{
		snapshot: &policy.Snapshot{Policies: []policy.Policy{{Kind: "Manifest", Name: "shop/bad.yaml", Tier: "(invalid)"}, {Kind: policy.KindEgressPolicy, Namespace: "shop", Name: "web"}}},
		findings: []kube.Finding{{File: "shop/bad.yaml", Message: "is no YAML"}, {File: "shop/other.yaml", Message: "is no YAML either"}},
	}
	list, err := a.listPolicies()
	if err != nil {
		t.Fatal(err)
	}
	if len(list) != 2 || len(list[0].Problems) != 1 || list[0].Problems[0].Message != "is no YAML" || len(list[1].Problems) != 0 {
		t.Errorf("%+v", list)
	}
}
