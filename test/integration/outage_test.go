//go:build linux

package integration

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/postern-dev/postern/internal/control"
	"github.com/postern-dev/postern/internal/kube"
	"github.com/postern-dev/postern/internal/lab"
	"github.com/postern-dev/postern/test/harness"
)

// TestOutagesAreTold: what takes the ground from the agent is an error in status,
// and what cuts off all pods is the first one.
func TestOutagesAreTold(t *testing.T) {
	w := harness.New(t, lab.DefaultSpec("it-outage"))
	dir := w.Agent.Manifests
	until := func(what string, ok func(control.Status) bool) {
		t.Helper()
		for deadline := time.Now().Add(15 * time.Second); ; time.Sleep(50 * time.Millisecond) {
			s, err := w.Agent.Client.Status(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if ok(s) {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: %+v", what, s)
			}
		}
	}
	fine := func(s control.Status) bool {
		return len(s.Problems) == 0 && s.Endpoints["enforced"] == len(w.Lab.Pods())
	}
	until("at the start", fine)

	if err := os.Rename(dir, dir+".away"); err != nil {
		t.Fatal(err)
	}
	until("the directory is gone", func(s control.Status) bool {
		return s.Endpoints["enforced"] == len(w.Lab.Pods()) && slices.ContainsFunc(s.Problems, func(p control.Problem) bool {
			return p.Severity == "error" && p.Object == "Directory "+dir && strings.Contains(p.Message, "stays in force")
		})
	})
	if err := os.Rename(dir+".away", dir); err != nil {
		t.Fatal(err)
	}
	until("the directory is back", fine)

	broken := filepath.Join(dir, "x.yaml")
	if err := os.WriteFile(broken, []byte("a: ["), 0o600); err != nil {
		t.Fatal(err)
	}
	until("a file that can't be read", func(s control.Status) bool {
		return len(s.Problems) > 0 && s.Problems[0].Reason == string(kube.ReasonCutOff) && s.Problems[0].File == "x.yaml" && s.Policies["Manifest"] == 0
	})
	if err := os.Remove(broken); err != nil {
		t.Fatal(err)
	}
	until("the file is gone", fine)

	if err := os.Rename(filepath.Join(dir, "lab"), filepath.Join(dir, ".lab")); err != nil {
		t.Fatal(err)
	}
	until("no pods", func(s control.Status) bool { return s.Endpoints["quarantined"] == len(w.Lab.Pods()) })
	list, err := w.Agent.Client.Endpoints(t.Context())
	if err != nil || len(list) != len(w.Lab.Pods()) {
		t.Fatal(list, err)
	}
	for _, e := range list {
		if e.State != "quarantined" || e.Name == "" || e.Interface == "" || e.Egress != "isolated" {
			t.Errorf("%+v", e)
		}
	}
	if err := os.Rename(filepath.Join(dir, ".lab"), filepath.Join(dir, "lab")); err != nil {
		t.Fatal(err)
	}
	until("the pods are back", fine)
}
