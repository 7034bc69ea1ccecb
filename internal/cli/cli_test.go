package cli

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/postern-dev/postern/internal/control"
)

var update = flag.Bool("update", false, "write testdata")

// run runs the program and returns what it prints and its exit code.
func run(t *testing.T, std IO, args ...string) (out, errs string, code int) {
	t.Helper()
	var o, e bytes.Buffer
	std.Out, std.Err, std.In = &o, &e, strings.NewReader("")
	if std.Getenv == nil {
		std.Getenv = func(string) string { return "" }
	}
	std.Now = func() time.Time { return now }
	std.Version = "v0.1.0"
	if std.Name == "" {
		std.Name = "postern"
	}
	code = Main(t.Context(), args, std)
	return o.String(), e.String(), code
}

// golden compares text with a file of testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".txt")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got)\n%s", path, diff)
	}
}

// sick returns an agent with much that is wrong.
func sick() *fakeAgent {
	f := healthy()
	f.status.Endpoints = map[string]int{"enforced": 1, "failed": 1, "not-covered": 1}
	f.status.EventsLost, f.status.FlowsRefused = 17, 3
	f.status.Problems = []control.Problem{
		{Severity: "error", Object: "Pod shop/cart", Message: "failed: interface pl02: Link not found"},
		{Severity: "error", Object: "EgressPolicy shop/frontend", Path: "spec.egress[2].to[0].networks[1]", Message: `"10.0.0.0/33" is no network: write ADDRESS/LENGTH`, Reason: "InvalidNetwork", File: "shop/frontend.yaml", Line: 27},
		{Severity: "error", Message: "the file can't be read: permission denied", File: "shop/cart.yaml"},
		{Severity: "warning", Object: "Pod kube-system/proxy", Message: "not-covered: the pod uses the node's network; policies do not reach it"},
	}
	f.endpoints[1].State, f.endpoints[1].Message = "failed", "interface pl02: Link not found"
	f.policies[1].Problems = f.status.Problems[1:2]
	return f
}

// cutOffs are total outages: a file that was never read, no Pod at all, and some.
func cutOffs() (file, pods, some *fakeAgent) {
	file, pods, some = healthy(), healthy(), healthy()
	file.status.Problems = []control.Problem{
		{Severity: "error", Message: "what this file would deny is not known, so all pods are cut off", Reason: "AllPodsCutOff", File: "x.yaml"},
		{Severity: "error", Message: "the file can't be read", Reason: "Syntax", File: "x.yaml", Line: 1},
	}
	gone := control.Problem{Severity: "error", Object: "interface pl01", Message: "quarantined: it belongs to no pod, so everything on it is dropped"}
	pods.status.Endpoints, pods.status.Problems = map[string]int{"quarantined": 2}, []control.Problem{gone}
	for i := range pods.endpoints {
		e := &pods.endpoints[i]
		e.State, e.Egress, e.Ingress, e.Message, e.Addrs = "quarantined", "isolated", "isolated", gone.Message, nil
	}
	pods.endpoints[1].Namespace, pods.endpoints[1].Name = "", ""
	some.status.Endpoints = map[string]int{"quarantined": 1, "enforced": 1, "not-covered": 1}
	some.status.Problems = []control.Problem{gone, {Severity: "warning", Object: "Pod kube-system/proxy", Message: "not-covered"}}
	return file, pods, some
}

// kept returns agents on which what was read last is in force: of a file, of the
// whole directory, and of a file beside one with a mistake; and one without pins.
func kept() (file, dir, both, pins *fakeAgent) {
	file, dir, both, pins = healthy(), healthy(), healthy(), healthy()
	file.status.Problems = []control.Problem{
		{Severity: "error", Message: "the file can't be read", Reason: "Syntax", File: "x.yaml", Line: 1},
		{Severity: "warning", Message: "the last version of this file that could be read stays in force: 1 object", Reason: "LastVersion", File: "x.yaml"},
	}
	dir.status.Problems = []control.Problem{{Severity: "error", Object: "Directory /etc/m", Message: "can't be listed", Reason: "Unreadable"}}
	both.status.Problems = slices.Concat(file.status.Problems, []control.Problem{{Severity: "error", Object: "NetworkPolicy a/b", Message: "is wrong", Reason: "WrongType", File: "y.yaml"}})
	pins.status.Problems = []control.Problem{{Severity: "error", Object: "datapath", Message: "/sys/fs/bpf/postern/links is gone\ninterface a: pin link: no\x1b[1m such file"}}
	return file, dir, both, pins
}

// closed returns an agent with objects that it does not understand.
func closed() *fakeAgent {
	f := healthy()
	f.policies = append(f.policies,
		control.Policy{
			Kind: "ClusterNetworkPolicy", Name: "guard", Tier: "admin", Endpoints: 3,
			Problems: []control.Problem{{Severity: "error", Object: "ClusterNetworkPolicy guard", Path: "spec.priority", Message: "99999 is not between 0 and 1000", File: "guard.yaml", Line: 4}},
		},
		control.Policy{
			Kind: "Manifest", Name: "bad.yaml", Tier: "(invalid)", Endpoints: 3,
			Problems: []control.Problem{{Severity: "error", Message: "is no YAML", File: "bad.yaml", Line: 1}},
		})
	return f
}

func TestOutput(t *testing.T) {
	empty := &fakeAgent{status: control.Status{Node: "node1", Version: "v0.1.0", Started: now, Now: now}, endpoints: []control.Endpoint{}, policies: []control.Policy{}}
	open := healthy()
	open.status.Policies = nil
	cutFile, cutPods, cutSome := cutOffs()
	keptFile, keptDir, keptBoth, noPins := kept()
	failed := sick()
	failed.endpoints[0].State, failed.endpoints[0].Rules, failed.endpoints[0].Message = "failed", nil, "interface lo is the node's loopback"
	for name, c := range map[string]struct {
		agent *fakeAgent
		args  string
		code  int
	}{
		"status":                {healthy(), "status", ExitOK},
		"status-json":           {healthy(), "status -o json", ExitOK},
		"status-sick":           {sick(), "status", ExitProblem},
		"status-sick-json":      {sick(), "status -o json", ExitProblem},
		"status-cut-off-file":   {cutFile, "status", ExitProblem},
		"status-cut-off-pods":   {cutPods, "status", ExitProblem},
		"status-cut-off-some":   {cutSome, "status", ExitProblem},
		"status-kept-file":      {keptFile, "status", ExitProblem},
		"status-kept-directory": {keptDir, "status", ExitProblem},
		"status-kept-both":      {keptBoth, "status", ExitProblem},
		"status-no-pins":        {noPins, "status", ExitProblem},
		"endpoints-quarantined": {cutPods, "endpoints", ExitProblem},
		"endpoints-failed":      {failed, "endpoints shop/frontend", ExitProblem},
		"status-empty":          {empty, "status", ExitOK},
		"status-open":           {open, "status", ExitOK},
		"endpoints":             {healthy(), "endpoints", ExitOK},
		"endpoints-one":         {healthy(), "endpoints shop/frontend", ExitOK},
		"endpoints-short-name":  {healthy(), "endpoints cart", ExitOK},
		"endpoints-unknown":     {healthy(), "endpoints shop/nobody", ExitUsage},
		"endpoints-sick":        {sick(), "endpoints", ExitProblem},
		"endpoints-json":        {healthy(), "endpoints shop/cart -o json", ExitOK},
		"endpoints-empty":       {empty, "endpoints", ExitOK},
		"policies":              {healthy(), "policies", ExitOK},
		"policies-sick":         {sick(), "policies", ExitProblem},
		"policies-invalid":      {closed(), "policies", ExitProblem},
		"policies-empty":        {empty, "policies", ExitOK},
		"flows":                 {healthy(), "flows", ExitOK},
		"flows-json":            {healthy(), "flows -o json --limit 1", ExitOK},
		"flows-empty":           {empty, "flows", ExitOK},
		"flows-pod":             {healthy(), "flows --pod ci/runner", ExitOK},
		"flows-dropped":         {healthy(), "flows --verdict dropped", ExitOK},
		"flows-to-network":      {healthy(), "flows --to 203.0.113.0/24", ExitOK},
		"flows-to-namespace":    {healthy(), "flows --to shop/", ExitOK},
		"flows-rule":            {healthy(), "flows --rule default-deny", ExitOK},
		"flows-reason":          {healthy(), "flows --rule no-flow", ExitOK},
		"flows-since":           {healthy(), "flows --since 100s", ExitOK},
		"flows-since-time":      {healthy(), "flows --since 2026-03-14T15:09:00Z", ExitOK},
		"flows-limit":           {healthy(), "flows --limit 2", ExitOK},
		"explain":               {healthy(), "explain shop/frontend 203.0.113.66 --port 443", ExitProblem},
		"explain-allowed":       {healthy(), "explain shop/frontend 192.0.2.1 --port 53 --protocol udp", ExitOK},
		"explain-json":          {healthy(), "explain shop/frontend 203.0.113.66 --port 443 -o json", ExitProblem},
		"explain-no-pod":        {healthy(), "explain shop/nobody 203.0.113.66 --port 443", ExitUsage},
		"explain-no-port":       {healthy(), "explain shop/frontend 203.0.113.66", ExitUsage},
		"explain-bad-proto":     {healthy(), "explain shop/frontend 203.0.113.66 --protocol tpc", ExitUsage},
		"explain-offline":       {nil, "explain shop/frontend 203.0.113.66 --port 443 --manifests testdata/bad", ExitProblem},
		"explain-offline-nopod": {nil, "explain shop/x 203.0.113.66 --port 443 --manifests testdata/bad", ExitUsage},
		"explain-icmp-port":     {healthy(), "explain shop/frontend 203.0.113.66 --protocol icmp --port 3", ExitUsage},
		"explain-two-sources":   {nil, "explain shop/frontend 203.0.113.66 --port 443 --manifests testdata/bad --lab lab", ExitUsage},
		"validate":              {nil, "policy validate testdata/good", ExitOK},
		"validate-bad":          {nil, "policy validate testdata/bad", ExitProblem},
		"validate-json":         {nil, "policy validate testdata/bad -o json", ExitProblem},
		"validate-strict":       {nil, "policy validate --strict testdata/warning", ExitProblem},
		"validate-warning":      {nil, "policy validate testdata/warning", ExitOK},
		"validate-no-dir":       {nil, "policy validate testdata/nowhere", ExitUsage},
		"validate-file":         {nil, "policy validate testdata/bad/policy.yaml", ExitUsage},
		"validate-empty":        {nil, "policy validate testdata/empty", ExitOK},
		"validate-empty-strict": {nil, "policy validate --strict testdata/empty", ExitProblem},
		"validate-empty-json":   {nil, "policy validate --strict -o json testdata/empty", ExitProblem},
		"validate-unreadable":   {nil, "policy validate testdata/unreadable", ExitProblem},
		"explain-network":       {healthy(), "explain shop/frontend 203.0.113.0/24 --port 443", ExitUsage},
		"validate-no-args":      {nil, "policy validate", ExitUsage},
		"usage-command":         {nil, "stauts", ExitUsage},
		"usage-flag":            {nil, "flows --verdit dropped", ExitUsage},
		"usage-verdict":         {healthy(), "flows --verdict denied", ExitUsage},
		"usage-to":              {healthy(), "flows --to 1.2.3.400", ExitUsage},
		"usage-port":            {healthy(), "explain shop/frontend 203.0.113.66 --port 70000", ExitUsage},
		"usage-lab-name":        {nil, "lab up ../../x", ExitUsage},
		"usage-since":           {healthy(), "flows --since yesterday", ExitUsage},
		"usage-limit":           {healthy(), "flows --limit 0", ExitUsage},
		"usage-output":          {healthy(), "status -o yaml", ExitUsage},
		"help":                  {nil, "--help", ExitOK},
	} {
		t.Run(name, func(t *testing.T) {
			args := strings.Fields(c.args)
			if c.agent != nil {
				socket := c.agent.start(t)
				args = append(args, "--socket", socket)
			}
			out, errs, code := run(t, IO{}, args...)
			if code != c.code {
				t.Errorf("exit code %d, want %d", code, c.code)
			}
			golden(t, name, fmt.Sprintf("$ postern %s\n%s%s[exit code %d]\n", c.args, out, errs, code))
		})
	}
}

func TestDestinations(t *testing.T) {
	for s, want := range map[string]bool{
		"": true, "1.2.3.4": true, "2001:db8::1": true, "10.0.0.0/8": true, "10.0.0.1/8": true, "2001:db8::/32": true,
		"shop/cart": true, "cart": true, "shop/": true, "a1.b-2": true, "kube-system/kube-dns": true, "7up": true, "12": true,
		"1.2.3.400": false, "1.2.3": false, "10.0.0.0/33": false, "10.0.0/8": false, "2001:db8::g": false, "2001:db8::/129": false,
		"Shop/cart": false, "shop/cart/x": false, "/cart": false, "shop cart": false, "-x": false, "203.0.113.66:443": false,
	} {
		if got := isDestination(s); got != want {
			t.Errorf("%q: %v", s, got)
		}
	}
}

func TestNoAgent(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "none.sock")
	for _, args := range []string{"status", "endpoints", "flows", "policies", "explain shop/a 1.1.1.1 --port 1"} {
		out, errs, code := run(t, IO{}, append(strings.Fields(args), "--socket", socket)...)
		if code != ExitNoAgent || out != "" || !strings.Contains(errs, "is posternd agent running") {
			t.Errorf("%s: code %d, %q, %q", args, code, out, errs)
		}
	}
	_, errs, code := run(t, IO{Getenv: func(k string) string { return map[string]string{"POSTERN_SOCKET": socket}[k] }}, "status")
	if code != ExitNoAgent || !strings.Contains(errs, socket) {
		t.Errorf("POSTERN_SOCKET: code %d, %q", code, errs)
	}
}

func TestFollow(t *testing.T) {
	f := healthy()
	socket := f.start(t)
	ctx, cancel := context.WithCancel(t.Context())
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	done := make(chan int)
	go func() {
		std := IO{Out: w, Err: w, In: r, Getenv: func(string) string { return "" }, Now: func() time.Time { return now }, Name: "postern"}
		done <- Main(ctx, []string{"flows", "--follow", "--limit", "1", "--socket", socket}, std)
		_ = w.Close()
	}()
	buf := make([]byte, 4096)
	n, err := r.Read(buf)
	if err != nil || !strings.Contains(string(buf[:n]), "VERDICT") {
		t.Fatalf("%q, %v", buf[:n], err)
	}
	f.more <- f.records[1] // is shown at once, without an end in sight
	for !strings.Contains(string(buf[:n]), "203.0.113.66") {
		if n, err = r.Read(buf); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	if code := <-done; code != ExitOK {
		t.Errorf("exit code %d after Ctrl-C, want 0", code)
	}
}

// TestFollowSaysWhatIsMissing: beside the table, and in JSON as an object that is
// no record.
func TestFollowSaysWhatIsMissing(t *testing.T) {
	for args, want := range map[string][2]string{
		"flows --follow --limit 1":         {"(17 records lost here: they came faster than they were read)", "(1 event lost here by the kernel, of this pod or another; the counters"},
		"flows --follow --limit 1 -o json": {`{"type":"lost","time":"2026-03-14T15:09:26Z","where":"reader","lost":17}`, `"where":"kernel","lost":1}`},
	} {
		f := healthy()
		socket := f.start(t)
		ctx, cancel := context.WithCancel(t.Context())
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan int)
		go func() {
			std := IO{Out: w, Err: w, In: r, Getenv: func(string) string { return "" }, Now: func() time.Time { return now }, Name: "postern"}
			done <- Main(ctx, append(strings.Fields(args), "--socket", socket), std)
		}()
		lines := bufio.NewScanner(r)
		f.lost <- control.Lost{Type: control.TypeLost, Time: now, Where: control.LostByReader, Lost: 17}
		f.lost <- control.Lost{Type: control.TypeLost, Time: now, Where: control.LostByKernel, Lost: 1}
		for _, text := range want {
			for lines.Scan() && !strings.Contains(lines.Text(), text) {
				if strings.Contains(lines.Text(), "lost") {
					t.Errorf("%s: got %q, want %q", args, lines.Text(), text)
				}
			}
		}
		cancel()
		if code := <-done; code != ExitOK {
			t.Errorf("%s: exit code %d", args, code)
		}
		_, _ = r.Close(), w.Close()
	}
}

func TestColour(t *testing.T) {
	env := func(m map[string]string) func(string) string { return func(k string) string { return m[k] } }
	for name, c := range map[string]struct {
		io   IO
		want bool
	}{
		"terminal":         {IO{OutTTY: true}, true},
		"pipe":             {IO{}, false},
		"only stderr":      {IO{ErrTTY: true}, false},
		"NO_COLOR":         {IO{OutTTY: true, Getenv: env(map[string]string{"NO_COLOR": "1"})}, false},
		"dumb":             {IO{OutTTY: true, Getenv: env(map[string]string{"TERM": "dumb"})}, false},
		"empty NO_COLOR":   {IO{OutTTY: true, Getenv: env(map[string]string{"NO_COLOR": ""})}, true},
		"another TERM":     {IO{OutTTY: true, Getenv: env(map[string]string{"TERM": "xterm-256color"})}, true},
		"a pipe and xterm": {IO{Getenv: env(map[string]string{"TERM": "xterm-256color"})}, false},
	} {
		t.Run(name, func(t *testing.T) {
			socket := sick().start(t)
			for _, args := range [][]string{{"status"}, {"flows"}, {"endpoints"}, {"policies"}, {"explain", "shop/frontend", "203.0.113.66", "--port", "443"}} {
				out, _, _ := run(t, c.io, append(args, "--socket", socket)...)
				if got := strings.Contains(out, "\x1b["); got != c.want {
					t.Errorf("%s: colour %v, want %v", args[0], got, c.want)
				}
			}
		})
	}
	socket := healthy().start(t)
	out, _, _ := run(t, IO{OutTTY: true}, "flows", "--socket", socket)
	golden(t, "flows-colour", strconv.QuoteToASCII(out)+"\n")
}

func TestProgress(t *testing.T) {
	for _, tty := range []bool{true, false} {
		var out, errs bytes.Buffer
		a := newApp(IO{Out: &out, Err: &errs, ErrTTY: tty, Getenv: func(string) string { return "" }})
		a.patience = time.Millisecond
		done := a.progress("reading \x1b[31m")
		time.Sleep(50 * time.Millisecond)
		done()
		done()
		got := errs.String()
		if !tty && got != "" {
			t.Errorf("without a terminal: %q", got)
		}
		if tty && (!strings.HasPrefix(got, "\rreading \\x1b[31m ... ") || !strings.HasSuffix(got, "\r") || strings.Contains(got, "\x1b")) {
			t.Errorf("on a terminal: %q", got)
		}
		if out.Len() > 0 {
			t.Errorf("on stdout: %q", out.String())
		}
	}
	var errs bytes.Buffer
	a := newApp(IO{Err: &errs, ErrTTY: true, Getenv: func(string) string { return "" }})
	a.progress("fast")()
	if errs.Len() > 0 {
		t.Errorf("something fast: %q", errs.String())
	}
}

func TestNames(t *testing.T) {
	for called, want := range map[string]string{
		"postern": "postern", "/usr/bin/kubectl-postern": "kubectl postern", "kubectl-postern.exe": "kubectl postern", "bin/postern": "postern",
	} {
		out, _, _ := run(t, IO{Name: called}, "--help")
		if !strings.Contains(out, "\n  "+want+" [command]\n") {
			t.Errorf("%s: %s", called, out)
		}
		_, errs, _ := run(t, IO{Name: called}, "status", "extra")
		if !strings.HasPrefix(errs, want+": ") {
			t.Errorf("%s: %s", called, errs)
		}
	}
}

func TestVersion(t *testing.T) {
	out, _, code := run(t, IO{}, "version")
	if code != ExitOK || !strings.HasPrefix(out, "postern v0.1.0 go") {
		t.Errorf("%d %q", code, out)
	}
}

func TestJSONIsJSON(t *testing.T) {
	socket := hostile().start(t)
	for _, args := range []string{"status", "endpoints", "policies", "explain shop/frontend 203.0.113.66 --port 443"} {
		out, _, _ := run(t, IO{}, append(strings.Fields(args), "-o", "json", "--socket", socket)...)
		var v any
		if err := json.Unmarshal([]byte(out), &v); err != nil {
			t.Errorf("%s: %v\n%s", args, err, out)
		}
	}
	out, _, _ := run(t, IO{}, "flows", "-o", "json", "--socket", socket)
	for line := range strings.Lines(out) {
		if !json.Valid([]byte(line)) {
			t.Errorf("flows: %s", line)
		}
	}
}
