package daemon

import (
	"flag"
	"path/filepath"
	"testing"

	"github.com/postern-dev/postern/internal/cmdref"
)

//go:generate go test -run ^TestReference$ -update .

var update = flag.Bool("update", false, "write docs/posternd.md")

// TestReference expects docs/posternd.md to say what the commands are; `make
// generate` or -update writes it.
func TestReference(t *testing.T) {
	path := filepath.Join("..", "..", "docs", "posternd.md")
	got := cmdref.Page(command(), "posternd, the node's daemon", "The exit code is 0, 1 for an error, 2 for a wrong command line: then nothing was done.", "")
	if err := cmdref.Compare(path, got, *update); err != nil {
		t.Error(err)
	}
}
