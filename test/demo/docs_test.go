//go:build linux

package demo

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/postern-dev/postern/internal/lab"
	"github.com/postern-dev/postern/internal/testenv"
)

// block is a fenced block of a page, with the comment before it: "exit N" is the
// code that a block of sh ends with, "file NAME" where the text is saved.
var block = regexp.MustCompile("(?m)(?:^<!-- (exit|file) ([^ :]+).* -->\n)?^```(sh|yaml)\n((?s:.*?))^```$")

// TestGettingStarted runs every command of docs/getting-started.md, in order, in
// a directory that looks like the repository.
func TestGettingStarted(t *testing.T) {
	testenv.RequireRoot(t)
	if _, err := exec.LookPath("curl"); err != nil {
		testenv.Skip(t, "the page uses curl")
	}
	if _, err := os.Stat(filepath.Join(lab.Root, "lab")); err == nil {
		testenv.Skip(t, "a lab named lab is up, and the page would take it down")
	}
	page, err := os.ReadFile("../../docs/getting-started.md")
	if err != nil {
		t.Fatal(err)
	}
	bin, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for from, to := range map[string]string{bin: "bin", filepath.Join(root, "deploy"): "deploy"} {
		if err := os.Symlink(from, filepath.Join(dir, to)); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if t.Failed() {
			_ = exec.Command(filepath.Join(bin, "postern"), "lab", "down").Run()
		}
	})
	blocks := block.FindAllStringSubmatch(string(page), -1)
	if len(blocks) < 10 {
		t.Fatalf("%d blocks", len(blocks))
	}
	for _, b := range blocks {
		comment, value, kind, text := b[1], b[2], b[3], b[4]
		if kind == "yaml" {
			if comment != "file" {
				t.Errorf("a block of yaml without a file name:\n%s", text)
				continue
			}
			if err := os.WriteFile(filepath.Join(dir, value), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		want := 0
		if comment == "exit" {
			if want, err = strconv.Atoi(value); err != nil {
				t.Fatal(err)
			}
		}
		if want != 0 {
			time.Sleep(time.Second) // "a moment later", as the page says
		}
		// The programs are built, and we are root.
		cmd := exec.CommandContext(t.Context(), "bash", "-ec", "make() { :; }; sudo() { \"$@\"; }\n"+text)
		cmd.Dir = dir
		out, _ := cmd.CombinedOutput()
		if got := cmd.ProcessState.ExitCode(); got != want {
			t.Fatalf("exit code %d, want %d\n%s\n%s", got, want, text, out)
		}
		if strings.Contains(text, "lab exec") && want == 0 && !strings.Contains(string(out), "172.31.0.11") && !strings.Contains(string(out), "10.244.1.2") {
			t.Errorf("%s\ndid not answer: %s", text, out)
		}
	}
	gone(t, "lab")
}
