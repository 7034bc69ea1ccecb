// Package test holds tests of the repository as a whole.
package test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/postern-dev/postern"

// layers places every package, by the first directory below internal/, api/ or
// cmd/. Imports point to a lower layer, or to the same one if sideways says so.
var layers = map[string]int{
	"api": -1, // imports nothing of ours, may be imported from L3 on

	"internal/packet":    0,
	"internal/policy":    1,
	"internal/flow":      1,
	"internal/datapath":  2,
	"internal/control":   2, // the agent's interface: what agent and cli agree on
	"internal/kube":      3,
	"internal/manifests": 3,
	"internal/agent":     4,
	"internal/lab":       4,
	"internal/daemon":    5, // the command line around the agent
	"internal/labagent":  5, // posternd on a node of a lab
	"internal/demo":      6,
	"internal/cli":       7,
	"deploy/baseline":    0, // manifests, embedded
}

// sideways lists the imports within a layer that are allowed, with the reason.
var sideways = map[[2]string]string{
	{"internal/flow", "internal/policy"}:    "a record names the rule that decided",
	{"internal/manifests", "internal/kube"}: "files hold the objects that kube translates",
}

// forTests are packages that only tests import, and who else may.
var forTests = map[string][]string{
	"internal/testenv":           nil,
	"internal/packet/packettest": {"internal/lab", "internal/testenv"}, // the lab sends frames
	"internal/policy/policytest": nil,
	"internal/kube/crdtest":      nil,
	"internal/cmdref":            nil,
}

// rule forbids packages to depend on others, directly or not.
type rule struct {
	from      []string // directories of the module; everything below is meant
	forbidden string   // import path; everything below is meant
	// witness is a package below forbidden, to see that the path still exists.
	witness string
	direct  bool     // only direct imports are forbidden
	except  []string // directories that may
	why     string
}

var rules = []rule{
	{
		from:      []string{"internal/packet", "internal/policy", "internal/flow"},
		forbidden: "os/exec", witness: "os/exec", why: "the language does no I/O",
	},
	{
		from:      []string{"internal/packet", "internal/policy", "internal/flow"},
		forbidden: "net/http", witness: "net/http", why: "the language does no I/O",
	},
	{
		from:      []string{"internal/packet", "internal/policy", "internal/flow", "internal/datapath", "internal/control"},
		forbidden: "k8s.io", witness: "k8s.io/apimachinery/pkg/runtime", why: "Kubernetes is known from L3 on",
	},
	{
		from:      []string{"internal/packet", "internal/policy", "internal/flow", "internal/datapath", "internal/control"},
		forbidden: "sigs.k8s.io", witness: "sigs.k8s.io/yaml", why: "Kubernetes is known from L3 on",
	},
	{
		from:      []string{"internal/packet", "internal/policy", "internal/flow", "internal/control", "internal/kube", "internal/manifests", "internal/cli", "cmd/postern"},
		forbidden: "github.com/cilium/ebpf", witness: "github.com/cilium/ebpf", why: "must build on macOS and Windows",
	},
	{
		from: []string{""}, except: []string{"internal/datapath", "internal/testenv"}, direct: true,
		forbidden: "github.com/cilium/ebpf", witness: "github.com/cilium/ebpf", why: "only the datapath speaks to the kernel's BPF",
	},
	{
		from: []string{""}, except: []string{"internal/datapath"}, direct: true,
		forbidden: module + "/internal/datapath/bpf", witness: module + "/internal/datapath/bpf", why: "generated, and the datapath's affair",
	},
	{
		from: []string{""}, except: []string{"internal/kube"}, direct: true,
		forbidden: "k8s.io/client-go", witness: "k8s.io/client-go/rest", why: "objects come through kube",
	},
	{
		from:      []string{"internal/cli", "cmd/postern"},
		forbidden: "k8s.io/client-go", witness: "k8s.io/client-go/rest", why: "files and the agent's socket are all that the CLI reads",
	},
	{
		from:      []string{"api", "internal", "cmd"},
		forbidden: "sigs.k8s.io/controller-runtime", why: "the agent uses plain informers; it would come with everything",
	},
	{
		from:      []string{"api"},
		forbidden: module + "/internal", witness: module + "/internal/packet", why: "an API has no implementation",
	},
}

// pkg is what go list says of a package.
type pkg struct {
	ImportPath string
	Imports    []string
	Deps       []string
}

func (p pkg) dir() string { return strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/") }

// packages lists the packages of the module, without their tests, as built for Linux.
func packages(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Imports,Deps", "./...")
	cmd.Dir = ".."
	cmd.Env = append(cmd.Environ(), "GOOS=linux")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	var pkgs []pkg
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
}

func below(path, dir string) bool {
	return dir == "" || path == dir || strings.HasPrefix(path, dir+"/")
}

func belowAny(path string, dirs []string) bool {
	return slices.ContainsFunc(dirs, func(d string) bool { return below(path, d) })
}

// row is the key of layers that a directory falls under, or "".
func row(dir string) string {
	for d := range layers {
		if below(dir, d) {
			return d
		}
	}
	return ""
}

func isForTests(dir string) bool {
	_, ok := forTests[dir]
	return ok
}

// TestLayers: imports point one way (L4 to L0), and every package has its place.
func TestLayers(t *testing.T) {
	used := map[string]bool{}
	usedSideways := map[[2]string]bool{}
	for _, p := range packages(t) {
		dir := p.dir()
		used[dir], used[row(dir)] = true, true
		if isForTests(dir) || below(dir, "cmd") || below(dir, "test") {
			continue
		}
		from := row(dir)
		if from == "" {
			t.Errorf("%s has no layer: add a row to layers", dir)
			continue
		}
		for _, imp := range p.Imports {
			to, ours := strings.CutPrefix(imp, module+"/")
			if !ours || below(to, from) || isForTests(to) {
				continue
			}
			switch target := row(to); {
			case target == "":
				t.Errorf("%s imports %s, which has no layer", dir, to)
			case target == "api" && layers[from] < 3:
				t.Errorf("%s (L%d) imports %s: the API is known from L3 on", dir, layers[from], to)
			case layers[target] > layers[from]:
				t.Errorf("%s (L%d) imports %s (L%d): imports point downwards", dir, layers[from], to, layers[target])
			case layers[target] == layers[from]:
				key := [2]string{from, target}
				if sideways[key] == "" {
					t.Errorf("%s imports %s of the same layer: move what both need down, or give the reason in sideways", dir, to)
				}
				usedSideways[key] = true
			}
		}
	}
	for d := range layers {
		if !used[d] {
			t.Errorf("stale row: layers has %s, and there is no such package", d)
		}
	}
	for d := range forTests {
		if !used[d] {
			t.Errorf("stale row: forTests has %s, and there is no such package", d)
		}
	}
	for key := range sideways {
		if !usedSideways[key] {
			t.Errorf("stale row: sideways has %s -> %s, and there is no such import", key[0], key[1])
		}
	}
}

// TestForTests: what is made for tests stays out of the product.
func TestForTests(t *testing.T) {
	for _, p := range packages(t) {
		dir := p.dir()
		if below(dir, "test") {
			continue
		}
		for _, imp := range p.Imports {
			to := strings.TrimPrefix(imp, module+"/")
			if allowed, ok := forTests[to]; ok && !belowAny(dir, allowed) {
				t.Errorf("%s imports %s, which is for tests", dir, to)
			}
		}
	}
}

// TestRules walks the table of forbidden dependencies.
func TestRules(t *testing.T) {
	pkgs := packages(t)
	for _, r := range rules {
		if r.witness != "" && !exists(t, r.witness) {
			t.Errorf("stale row: %s is forbidden, and %s does not exist any more", r.forbidden, r.witness)
		}
		for _, from := range slices.Concat(r.from, r.except) {
			if !slices.ContainsFunc(pkgs, func(p pkg) bool { return below(p.dir(), from) }) {
				t.Errorf("stale row: %s is forbidden to %s, where there is no package", r.forbidden, from)
			}
		}
		for _, p := range pkgs {
			if !belowAny(p.dir(), r.from) || (len(r.except) > 0 && belowAny(p.dir(), r.except)) {
				continue
			}
			list := p.Deps
			if r.direct {
				list = p.Imports
			}
			for _, dep := range list {
				if below(dep, r.forbidden) {
					t.Errorf("%s depends on %s: %s", p.dir(), dep, r.why)
					break
				}
			}
		}
	}
}

// exists reports whether a package can be found.
func exists(t *testing.T, path string) bool {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-find", path)
	cmd.Dir = ".."
	return cmd.Run() == nil
}

// TestAPIImports: api/ imports apimachinery only, so that others can use it.
func TestAPIImports(t *testing.T) {
	for _, p := range packages(t) {
		if !below(p.dir(), "api") {
			continue
		}
		for _, imp := range p.Imports {
			first, _, _ := strings.Cut(imp, "/")
			if strings.Contains(first, ".") && !below(imp, "k8s.io/apimachinery") {
				t.Errorf("%s imports %s: the API imports apimachinery only", p.dir(), imp)
			}
		}
	}
}

// TestOtherSystems: what the CLI is made of has files for macOS and Windows,
// down to its dependencies, and leaves the kernel's BPF behind there. Whether
// they compile, only a build can tell.
func TestOtherSystems(t *testing.T) {
	for _, goos := range []string{"darwin", "windows"} {
		cmd := exec.CommandContext(t.Context(), "go", "list", "-deps", "-f", `{{if .Error}}{{.ImportPath}}: {{.Error}}{{end}}{{if eq .ImportPath "github.com/cilium/ebpf"}}depends on {{.ImportPath}}{{end}}`,
			"./api/...", "./internal/packet", "./internal/policy", "./internal/flow", "./internal/control", "./internal/kube", "./internal/manifests", "./cmd/postern")
		cmd.Dir = ".."
		cmd.Env = append(cmd.Environ(), "GOOS="+goos)
		if out, err := cmd.CombinedOutput(); err != nil || len(bytes.TrimSpace(out)) > 0 {
			t.Errorf("%s: %v\n%s", goos, err, out)
		}
	}
}
