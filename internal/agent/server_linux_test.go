package agent

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/postern-dev/postern/internal/kube"
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
