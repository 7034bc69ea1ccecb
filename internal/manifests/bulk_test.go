package manifests

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/postern-dev/postern/internal/kube"
)

// bigSet writes a set of n networks, in every form that is folded.
func bigSet(n int, form string) string {
	var b strings.Builder
	b.WriteString("# a feed\napiVersion: postern.dev/v1alpha1\nkind: ClusterDestinationSet\nmetadata: {name: feed}\nspec:\n")
	if form == "json" {
		b.Reset()
		b.WriteString(`{"apiVersion": "postern.dev/v1alpha1", "kind": "ClusterDestinationSet", "metadata": {"name": "feed"}, "spec": {"networks": [` + "\n")
		for i := range n - 1 {
			fmt.Fprintf(&b, "  %q,\n", cidr(i))
		}
		fmt.Fprintf(&b, "  %q\n]}}\n", cidr(n-1))
		return b.String()
	}
	b.WriteString("  networks:\n")
	for i := range n {
		fmt.Fprintf(&b, form, cidr(i))
	}
	b.WriteString("  domainNames: [example.com]\n")
	return b.String()
}

func cidr(i int) string {
	if i%10 == 9 {
		return fmt.Sprintf("2001:db8:%x:%x::/64", i>>16, i&0xffff)
	}
	return fmt.Sprintf("%d.%d.%d.%d/32", 11+i>>24, i>>16&255, i>>8&255, i&255)
}

func TestFoldMeansTheSame(t *testing.T) {
	for _, form := range []string{"  - %s\n", "    - \"%s\"\n", "  - '%s'\n", "  - %s\r\n", "json"} {
		t.Run(form, func(t *testing.T) {
			text := []byte(bigSet(3000, form))
			folded, runs := foldRuns(text)
			if len(runs) != 1 || len(folded) > 500 {
				t.Fatalf("got %d runs and %d bytes", len(runs), len(folded))
			}
			fast := parse("a", text)
			slow, _ := parseText("a", text, nil)
			if len(fast.runs) != 1 || len(slow.objects) != 1 || len(fast.objects) != 1 {
				t.Fatalf("got %d and %d objects, %v", len(fast.objects), len(slow.objects), fast.findings)
			}
			if !reflect.DeepEqual(fast.objects[0].obj, slow.objects[0].obj) {
				t.Error("folded and plain text differ")
			}
			for _, path := range []string{"spec.networks[0]", "spec.networks[2998]", "spec.networks[2999]"} {
				got, want := fast.line(&fast.objects[0], path), slow.line(&slow.objects[0], path)
				if got != want || want == 0 {
					t.Errorf("line of %s: got %d, want %d", path, got, want)
				}
			}
			if form != "json" {
				got, want := fast.line(&fast.objects[0], "spec.domainNames"), slow.line(&slow.objects[0], "spec.domainNames")
				if got != want {
					t.Errorf("line after the run: got %d, want %d", got, want)
				}
			}
		})
	}
}

// TestFoldOnlyInSets: lines that look like networks elsewhere are what they are.
func TestFoldOnlyInSets(t *testing.T) {
	lines := strings.Repeat("    - 10.0.0.0/8\n", minRun)
	for name, text := range map[string]string{
		"literal":      "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: a\n  annotations:\n   a: |\n" + lines,
		"other list":   "apiVersion: postern.dev/v1alpha1\nkind: DestinationSet\nmetadata: {name: a}\nspec:\n  domainNames:\n" + lines,
		"continuation": "apiVersion: postern.dev/v1alpha1\nkind: DestinationSet\nmetadata: {name: a}\nspec:\n  networks:\n" + lines + "      more\n",
		"comment":      "apiVersion: postern.dev/v1alpha1\nkind: DestinationSet\nmetadata: {name: a}\nspec: {}\n# x\n" + strings.ReplaceAll(lines, "    -", "#   -"),
		"not closed":   "{\"a\": [\n" + strings.Repeat("\"10.0.0.0/8\",\n", minRun),
	} {
		t.Run(name, func(t *testing.T) {
			got, _ := parseText("a", []byte(text), nil)
			fast := parse("a", []byte(text))
			if len(fast.runs) > 0 {
				t.Error("was folded")
			}
			if !reflect.DeepEqual(got.objects, fast.objects) || !reflect.DeepEqual(got.findings, fast.findings) {
				t.Errorf("got %v %v, want %v %v", fast.objects, fast.findings, got.objects, got.findings)
			}
		})
	}
}

func TestLargeSetFindingsHaveLines(t *testing.T) {
	dir := t.TempDir()
	text := strings.Replace(bigSet(20_000, "  - %s\n"), cidr(15_000)+"\n", "10.0.0.1/8\n", 1)
	if err := os.WriteFile(filepath.Join(dir, "feed.yaml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := Load(dir, Options{Now: func() time.Time { return time.Unix(0, 0) }})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range s.Findings() {
		if f.Path == "spec.networks[15000]" && f.Line == 7+15_000 && f.File == "feed.yaml" && f.Reason == kube.ReasonNotCanonical {
			return
		}
	}
	t.Errorf("got %v", s.Findings())
}

func BenchmarkLoadSet(b *testing.B) {
	for _, form := range []string{"  - %s\n", "json"} {
		for _, n := range []int{10_000, 1_000_000} {
			b.Run(fmt.Sprintf("%s/%d", map[bool]string{true: "json", false: "yaml"}[form == "json"], n), func(b *testing.B) {
				dir := b.TempDir()
				if err := os.WriteFile(filepath.Join(dir, "feed.yaml"), []byte(bigSet(n, form)), 0o600); err != nil {
					b.Fatal(err)
				}
				b.ReportAllocs()
				for b.Loop() {
					s, err := Load(dir, Options{Now: func() time.Time { return time.Unix(0, 0) }})
					if err != nil {
						b.Fatal(err)
					}
					if got := len(s.Snapshot().Sets[0].Networks); got != n {
						b.Fatalf("got %d networks, want %d", got, n)
					}
				}
			})
		}
	}
}
