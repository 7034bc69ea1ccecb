package cli

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

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
		t.Errorf("docs/cli.md is out of date, run make generate (-want +got)\n%s", diff)
	}
}
