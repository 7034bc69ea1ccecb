package cli

import (
	"path/filepath"
	"testing"

	"github.com/postern-dev/postern/internal/cmdref"
)

//go:generate go test -run ^TestReference$ -update .

// TestReference expects docs/cli.md to say what the commands are; `make generate`
// or -update writes it.
func TestReference(t *testing.T) {
	path := filepath.Join("..", "..", "docs", "cli.md")
	root := newApp(IO{Getenv: func(string) string { return "" }, Name: "postern"}).command() // nobody's program
	root.InitDefaultCompletionCmd()
	got := cmdref.Page(root, "postern, the command line", "Called `kubectl-postern` and put into the PATH, the same program is `kubectl postern`.", exitCodes)
	if err := cmdref.Compare(path, got, *update); err != nil {
		t.Error(err)
	}
}
