//go:build linux

// Package docs holds the documentation to the product: every command and every
// block of YAML, JSON or Go in it is run, or is one of a short list that says
// what runs it instead.
package docs

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/postern-dev/postern/internal/kube"
	"github.com/postern-dev/postern/internal/manifests"
)

const root = "../.."

// executed are pages whose blocks of sh, and of yaml with a file name, a test
// runs in order; the test must name the page.
var executed = map[string]string{
	"docs/getting-started.md": "test/demo/docs_test.go",
}

// elsewhere are commands that run somewhere else: which file runs them, and by
// which words of it.
var elsewhere = map[string][2]string{
	"make demo":          {"test/demo/demo_test.go", `postern(t, "demo")`},
	"make test":          {".ci/run", "make test"},
	"make lint":          {".ci/run", "make lint"},
	"make generate":      {".ci/run", "make generate"},
	"make help":          {"test/docs/docs_test.go", "TestMakeHelp"},
	"make bench":         {"Makefile", "go run ./test/bench"},
	"posternd uninstall": {"test/integration/integration_test.go", "Uninstall()"},
	// The agent's own command line, as labagent starts it on a node of a lab.
	"posternd agent --manifests /etc/postern/manifests --metrics 127.0.0.1:9464": {"internal/labagent/labagent_linux.go", `"agent", "--manifests"`},
	"postern status": {"docs/getting-started.md", "bin/postern status --lab lab"},
	// The lab mounts one itself.
	"mount -t bpf bpf /sys/fs/bpf": {"internal/lab/lab_linux.go", `unix.Mount("bpf"`},
}

// generated are pages that a program writes and a test compares; their commands
// must parse, and the tests of that package run them.
var generated = map[string]string{
	"docs/cli.md":      "internal/cli/reference_test.go",
	"docs/posternd.md": "internal/daemon/reference_linux_test.go",
	"docs/attacks.md":  "test/attack/table_test.go",
}

// block is a fenced block of a page.
type block struct {
	page string
	line int // of the fence, from 1
	// kind is the first word behind the fence; words are the others.
	kind  string
	words []string
	text  string
}

func (b block) at() string { return fmt.Sprintf("%s:%d", b.page, b.line) }

func (b block) has(word string) bool { return slices.Contains(b.words, word) }

// pages returns the documentation, by path from the root.
func pages(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	names := []string{"README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md"}
	err := filepath.WalkDir(filepath.Join(root, "docs"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && filepath.Ext(path) == ".md" {
			rel, rerr := filepath.Rel(root, path)
			names, err = append(names, filepath.ToSlash(rel)), rerr
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		text, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		out[name] = string(text)
	}
	return out
}

// blocks returns the fenced blocks of a page, and the page without them.
func blocks(t *testing.T, page, text string) (out []block, prose string) {
	t.Helper()
	var open *block
	var sb strings.Builder
	n := 0
	for line := range strings.Lines(text) {
		n++
		info, fence := strings.CutPrefix(strings.TrimSpace(line), "```")
		switch {
		case fence && open == nil:
			open = &block{page: page, line: n}
			if f := strings.Fields(info); len(f) > 0 {
				open.kind, open.words = f[0], f[1:]
			}
		case fence:
			out, open = append(out, *open), nil
		case open != nil:
			open.text += line
		default:
			sb.WriteString(line)
		}
	}
	if open != nil {
		t.Errorf("%s: the block is not closed", open.at())
	}
	return out, sb.String()
}

// commands splits a block of a shell into commands: comments are dropped,
// continued lines joined, a prompt of a console and sudo removed.
func commands(b block) (out []string) {
	text := strings.ReplaceAll(b.text, "\\\n", " ")
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if b.kind == "console" {
			after, prompt := strings.CutPrefix(line, "$ ")
			if !prompt {
				continue // what it prints
			}
			line = after
		}
		if i := strings.Index(" "+line, " #"); i >= 0 {
			line = line[:i]
		}
		line = strings.TrimPrefix(strings.TrimSpace(line), "sudo ")
		if line = strings.TrimPrefix(line, "bin/"); line != "" {
			out = append(out, line)
		}
	}
	return out
}

// looksLikeCommand: a line of a block that is no shell's, and yet to be typed.
var looksLikeCommand = regexp.MustCompile(`^(sudo|make|go|git|curl|kubectl|nft|(bin/)?posternd?) [a-z.-]`)

func TestBlocks(t *testing.T) {
	for page, text := range pages(t) {
		list, _ := blocks(t, page, text)
		for _, b := range list {
			switch b.kind {
			case "sh", "console":
				checkCommands(t, b, commands(b))
			case "yaml":
				checkYAML(t, b)
			case "json":
				if !json.Valid([]byte(b.text)) {
					t.Errorf("%s: this is not JSON", b.at())
				}
			case "go":
				checkGo(t, b)
			case "", "text":
				// Output and pictures. What is to be typed is held to the same list.
				if generated[page] != "" {
					continue
				}
				var typed []string
				for _, c := range commands(block{kind: "sh", text: b.text}) {
					if looksLikeCommand.MatchString(c) || elsewhere[c] != [2]string{} {
						typed = append(typed, c)
					}
				}
				for _, c := range typed {
					listed(t, b, c)
				}
			default:
				t.Errorf("%s: nothing checks blocks of %q: use sh, console, yaml, json, go or text", b.at(), b.kind)
			}
		}
	}
}

func checkCommands(t *testing.T, b block, list []string) {
	t.Helper()
	if by, ok := executed[b.page]; ok {
		if b.kind != "sh" {
			t.Errorf("%s: %s runs blocks of sh only", b.at(), by)
		}
		return
	}
	if len(list) == 0 {
		t.Errorf("%s: no command in it", b.at())
	}
	for _, c := range list {
		listed(t, b, c)
	}
}

func listed(t *testing.T, b block, command string) {
	t.Helper()
	if _, ok := elsewhere[command]; !ok {
		t.Errorf("%s: no test runs %q: move it to a page that is executed, or say in elsewhere what runs it", b.at(), command)
	}
}

// checkYAML: manifests without errors; with errors if the fence says "invalid".
func checkYAML(t *testing.T, b block) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "block.yaml"), []byte(b.text), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := manifests.Load(dir, manifests.Options{Kube: kube.Options{Protected: kube.DefaultProtected()}, Now: func() time.Time { return time.Unix(1800000000, 0) }})
	if err != nil {
		t.Fatal(err)
	}
	if s.Objects() == 0 {
		t.Errorf("%s: no object in it", b.at())
	}
	var wrong []string
	for _, f := range s.Findings() {
		if f.Severity == kube.Error {
			f.File, f.Line = b.page, b.line+f.Line
			wrong = append(wrong, f.String())
		}
	}
	switch invalid := b.has("invalid"); {
	case invalid && len(wrong) == 0:
		t.Errorf("%s: stands there as an example of an error, and has none", b.at())
	case !invalid && len(wrong) > 0:
		t.Errorf("%s:\n%s", b.at(), strings.Join(wrong, "\n"))
	}
	if by, ok := executed[b.page]; ok && !strings.Contains(text(t, by), "yaml") {
		t.Errorf("%s: %s does not use it", b.at(), by)
	}
}

// checkGo compiles a block: a whole file of a package.
func checkGo(t *testing.T, b block) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "block.go")
	if err := os.WriteFile(file, []byte(b.text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "go", "vet", file)
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%s: %v\n%s", b.at(), err, out)
	}
}

func text(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, path))
	if err != nil {
		t.Error(err)
	}
	return string(b)
}

// TestLists: what the lists promise is there, and nothing in them is left over.
func TestLists(t *testing.T) {
	all := pages(t)
	for _, m := range []map[string]string{executed, generated} {
		for page, by := range m {
			if _, ok := all[page]; !ok {
				t.Errorf("there is no page %s", page)
			}
			if !strings.Contains(text(t, by), filepath.Base(page)) {
				t.Errorf("%s does not speak of %s", by, page)
			}
		}
	}
	var everything strings.Builder
	for page, s := range all {
		if generated[page] == "" {
			everything.WriteString(s)
		}
	}
	for command, by := range elsewhere {
		if !strings.Contains(text(t, by[0]), by[1]) {
			t.Errorf("%q: %s has no %q any more", command, by[0], by[1])
		}
		if !strings.Contains(everything.String(), command) {
			t.Errorf("%q stands on no page any more", command)
		}
	}
}

// inline is code within a sentence.
var inline = regexp.MustCompile("`([^`\n]+)`")

// TestInline: commands within sentences exist, with their flags: targets of the
// Makefile, commands of postern and posternd, packages and tests of go test.
func TestInline(t *testing.T) {
	bin := t.TempDir()
	build := exec.CommandContext(t.Context(), "go", "build", "-o", bin+"/", "./cmd/...")
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	makefile := text(t, "Makefile")
	found := 0
	check := func(page, command string) {
		words := strings.Fields(command)
		for len(words) > 0 && (words[0] == "sudo" || (strings.Contains(words[0], "=") && !strings.HasPrefix(words[0], "-"))) {
			words = words[1:]
		}
		if len(words) < 2 {
			return
		}
		found++
		switch name := strings.TrimPrefix(words[0], "bin/"); name {
		case "make":
			if !strings.Contains(makefile, "\n"+words[1]+":") {
				t.Errorf("%s: %q: the Makefile has no target %s", page, command, words[1])
			}
		case "postern", "posternd":
			if !helps(t, filepath.Join(bin, name), words[1:]) {
				t.Errorf("%s: %q: there is no such command, or no such flag", page, command)
			}
		case "go":
			checkGoTest(t, page, command, words[1:])
		default:
			found--
		}
	}
	for page, s := range pages(t) {
		list, prose := blocks(t, page, s)
		for _, m := range inline.FindAllStringSubmatch(prose, -1) {
			check(page, m[1])
		}
		for _, b := range list {
			if b.kind != "sh" && b.kind != "console" && b.kind != "text" {
				continue
			}
			for _, c := range commands(block{kind: "sh", text: b.text}) {
				if looksLikeCommand.MatchString(c) {
					check(page, c)
				}
			}
		}
	}
	if found < 30 {
		t.Errorf("only %d commands found", found)
	}
}

// helps runs a command with --help in place of its arguments: unknown commands
// and flags fail before help is printed.
func helps(t *testing.T, bin string, args []string) bool {
	t.Helper()
	var use []string
	for _, a := range args {
		if a == "--" || a == "|" {
			break
		}
		if strings.ContainsAny(a, "[]|<>") || a == strings.ToUpper(a) && strings.ContainsAny(a, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") {
			continue // a placeholder
		}
		use = append(use, a)
	}
	if len(use) > 1 && use[0] == "lab" && use[1] == "exec" {
		use = use[:2] // what follows is another program's, --help too
	}
	run := func(args ...string) error {
		out, err := exec.CommandContext(t.Context(), bin, append(args, "--help")...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%s %s: %w: %s", filepath.Base(bin), strings.Join(args, " "), err, out)
		}
		return nil
	}
	err := run(use...)
	if n := len(use) - 1; err != nil && n >= 0 && strings.HasPrefix(use[n], "--") {
		// A flag of which the sentence gives no value.
		err = run(append(slices.Clone(use[:n]), use[n]+"=x")...)
	}
	if err != nil {
		t.Log(err)
	}
	return err == nil
}

// checkGoTest: packages exist, and -run and -bench name something in them.
func checkGoTest(t *testing.T, page, command string, args []string) {
	t.Helper()
	if args[0] != "test" {
		return
	}
	want := ""
	for i, a := range args {
		if (a == "-run" || a == "-bench") && i+1 < len(args) && args[i+1] != "." {
			want = "func " + args[i+1]
		}
	}
	for _, a := range args {
		dir, ok := strings.CutPrefix(a, "./")
		if !ok {
			continue
		}
		files, err := filepath.Glob(filepath.Join(root, dir, "*_test.go"))
		if err != nil || len(files) == 0 {
			t.Errorf("%s: %q: no tests in %s", page, command, dir)
			continue
		}
		if want != "" && !slices.ContainsFunc(files, func(f string) bool {
			b, err := os.ReadFile(f)
			return err == nil && strings.Contains(string(b), want)
		}) {
			t.Errorf("%s: %q: no %s in %s", page, command, want, dir)
		}
	}
}

// TestMakeHelp runs `make help`, which CONTRIBUTING.md begins with.
func TestMakeHelp(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "make", "help")
	cmd.Dir = root
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "run all tests") {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestLinks: relative links and the files that sentences name lead somewhere.
func TestLinks(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)#: ]+)(?:#[^)]*)?\)`)
	for page, s := range pages(t) {
		for _, m := range link.FindAllStringSubmatch(s, -1) {
			if _, err := os.Stat(filepath.Join(root, filepath.Dir(page), m[1])); err != nil {
				t.Errorf("%s: the link %s leads nowhere", page, m[1])
			}
		}
	}
}
