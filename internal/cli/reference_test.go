package cli

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestReference expects docs/cli.md to say what the commands are; `make generate`
// or -update writes it.
func TestReference(t *testing.T) {
	path := filepath.Join("..", "..", "docs", "cli.md")
	got := Reference()
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
