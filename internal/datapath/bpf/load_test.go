package bpf

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/postern-dev/postern/internal/testenv"
)

// TestLoad has the verifier take every program, and shows what it cost.
func TestLoad(t *testing.T) {
	testenv.RequireRoot(t)
	var objs PosternObjects
	err := LoadPosternObjects(&objs, &ebpf.CollectionOptions{Programs: ebpf.ProgramOptions{LogLevel: ebpf.LogLevelStats}})
	if ve, ok := errors.AsType[*ebpf.VerifierError](err); ok {
		t.Fatalf("%v\n%s", err, strings.Join(ve.Log[max(0, len(ve.Log)-60):], "\n"))
	}
	if err != nil {
		t.Fatal(err)
	}
	for name, p := range map[string]*ebpf.Program{"from_pod": objs.FromPod, "to_pod": objs.ToPod, "look_after_dnat": objs.LookAfterDnat, "collect_flows": objs.CollectFlows} {
		for line := range strings.Lines(p.VerifierLog) {
			if strings.HasPrefix(line, "processed") {
				t.Logf("%s: %s", name, strings.TrimSpace(line))
			}
		}
	}
	if err := objs.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestObjectsMatchSources compares the sources with the digest that `make
// generate` wrote beside the objects, so that a change of the C without new
// objects fails without a compiler. CI builds the objects anew and compares bytes.
func TestObjectsMatchSources(t *testing.T) {
	want, err := os.ReadFile("sources.sha256")
	if err != nil {
		t.Fatal(err)
	}
	h := sha256.New()
	var files []string
	for _, pattern := range []string{"*.c", "*.h", "headers/*.h"} {
		m, err := filepath.Glob(filepath.Join("../../../bpf", pattern))
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, m...)
	}
	slices.Sort(files)
	if len(files) < 8 {
		t.Fatalf("only %d sources found", len(files))
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		h.Write(b)
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != strings.TrimSpace(string(want)) {
		t.Errorf("bpf/ changed since its objects were built: run `make generate` (got %s, want %s)", got, want)
	}
}
