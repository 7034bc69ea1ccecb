package agent

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/postern-dev/postern/internal/policy"
)

// openNames opens the log in dir as an agent does whose pins are in dir/pins.
func openNames(t *testing.T, dir string, adopted bool) *nameLog {
	t.Helper()
	pins := filepath.Join(dir, "pins")
	if err := os.MkdirAll(pins, 0o700); err != nil {
		t.Fatal(err)
	}
	n, err := openNameLog(filepath.Join(dir, "state"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.close() })
	if err := n.outlive(pins, adopted); err != nil {
		t.Fatal(err)
	}
	return n
}

// full makes what n writes fail, until it is called again.
func full(t *testing.T, n *nameLog) (room func()) {
	t.Helper()
	f, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip(err)
	}
	file := n.file
	n.file = f
	return func() {
		n.file = file
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
}

func rule(name string) policy.RuleRef {
	return policy.RuleRef{Kind: policy.KindEgressPolicy, Namespace: "shop", Policy: name}
}

// TestNumbersOnce: a number that was handed out and could not be saved is not handed
// out again, by any later agent.
func TestNumbersOnce(t *testing.T) {
	dir := t.TempDir()
	seen := map[uint32]string{}
	for i, name := range []string{"a", "b", "c", "d"} {
		n := openNames(t, dir, i > 0)
		if i > 0 {
			defer full(t, n)()
		}
		id := n.ruleID(rule(name))
		if other, ok := seen[id]; ok {
			t.Errorf("%s has number %d, which was %s's", name, id, other)
		}
		seen[id] = name
		if (n.err != nil) != (i > 0) {
			t.Errorf("%s: error %v", name, n.err)
		}
	}
	// Without its log, too.
	if err := os.RemoveAll(filepath.Join(dir, "state")); err != nil {
		t.Fatal(err)
	}
	if id := openNames(t, dir, true).ruleID(rule("e")); seen[id] != "" {
		t.Errorf("e has number %d, which was %s's", id, seen[id])
	}
}

// TestNamesSavedLater: what there was no room for is written when there is.
func TestNamesSavedLater(t *testing.T) {
	dir := t.TempDir()
	n := openNames(t, dir, false)
	room := full(t, n)
	id := n.ruleID(rule("a"))
	n.setPod(7, podName{Namespace: "shop", Name: "web"})
	room()
	n.flush()
	if n.err != nil {
		t.Error(n.err)
	}
	n = openNames(t, dir, true)
	if got := n.ruleID(rule("a")); got != id {
		t.Errorf("number %d, was %d", got, id)
	}
	if got := n.pods[7].Name; got != "web" {
		t.Errorf("generation 7 is %q's", got)
	}
}

// TestNamesOfFormerLife: after a reboot, generations are handed out again; the pods of
// before are nobody's, and rules keep their numbers.
func TestNamesOfFormerLife(t *testing.T) {
	dir := t.TempDir()
	n := openNames(t, dir, false)
	id := n.ruleID(rule("a"))
	n.setPod(1, podName{Namespace: "shop", Name: "web"})
	for _, adopted := range []bool{true, false} {
		if err := os.RemoveAll(filepath.Join(dir, "pins")); err != nil {
			t.Fatal(err)
		}
		n = openNames(t, dir, adopted) // adopted: by an agent that kept no mark yet
		if _, known := n.pods[1]; known != adopted {
			t.Errorf("adopted %t: known %t", adopted, known)
		}
		if got := n.ruleID(rule("a")); got != id {
			t.Errorf("number %d, was %d", got, id)
		}
	}
	if n = openNames(t, dir, true); len(n.pods) != 0 || n.refs[id] != rule("a") {
		t.Errorf("after one more restart: %v, %v", n.pods, n.refs)
	}
}
