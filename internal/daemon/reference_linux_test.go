package daemon

import (
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/postern-dev/postern/internal/cmdref"
)

//go:generate go test -run ^TestReference$ -update .

var update = flag.Bool("update", false, "write docs/posternd.md")

// TestReference expects docs/posternd.md to say what the commands are; `make
// generate` or -update writes it.
func TestReference(t *testing.T) {
	path := filepath.Join("..", "..", "docs", "posternd.md")
	got := cmdref.Page(command(), "posternd, the node's daemon", "The exit code is 0, 1 for an error, 2 for a wrong command line: then nothing was done.", "")
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
		t.Errorf("docs/posternd.md is out of date, run make generate (-want +got)\n%s", diff)
	}
}
