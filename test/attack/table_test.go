//go:build linux

package attack

import (
	"bytes"
	"cmp"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/postern-dev/postern/internal/testenv"
	"github.com/postern-dev/postern/test/harness"
)

var update = flag.Bool("update", false, "write docs/attacks.md from this run")

const tablePath = "../../docs/attacks.md"

func TestMain(m *testing.M) { harness.Main(m) }

// TestTable comes last, by the name of its file. It compares docs/attacks.md
// with what this run found: every row, its result and the reasons of its drops.
func TestTable(t *testing.T) {
	testenv.RequireRoot(t)
	ran := map[string]bool{}
	for id := range ledger.rows {
		ran[id] = true
	}
	all := true
	for _, section := range catalogue {
		for _, r := range section.rows {
			switch {
			case r.not == "" && !ran[r.id]:
				all = false
			case r.not != "" && ran[r.id]:
				t.Errorf("%s is tried, and the catalogue says that it is not: %s", r.id, r.not)
			}
			delete(ran, r.id)
		}
	}
	for id := range ran {
		t.Errorf("%s is not in the catalogue", id)
	}
	if !all {
		if f := flag.Lookup("test.run"); f == nil || f.Value.String() == "" {
			t.Error("not every row was tried")
		}
		t.Skip("only some rows were asked for: the table stands for all")
	}
	if t.Failed() {
		return
	}
	got := table()
	if *update {
		if err := os.WriteFile(tablePath, got, 0o600); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(tablePath)
	if err != nil {
		t.Fatal(err)
	}
	if diff := compareTables(want, got); diff != "" {
		t.Errorf("docs/attacks.md does not say what this run found (go test ./test/attack -update writes it):\n%s", diff)
	}
}

// table writes the document.
func table() []byte {
	var b bytes.Buffer
	count := map[string]int{}
	for _, section := range catalogue {
		for _, r := range section.rows {
			count[resultOf(r)]++
		}
	}
	fmt.Fprint(&b, `# Attacks

Ways around egress enforcement, tried on this enforcer. `+"`go test ./test/attack -update`"+` writes this page, as root, and
`+"`go test ./test/attack`"+` fails if a run finds something else.

Each attack is tried twice on one lab of network namespaces, in both address families: with enforcement off (no policy for
the pod, or no agent where agents refuse it from every pod), where its packets must be seen, and with it on, where none
may be. Sniffers on every wire away from the pods and in every node's stack look for a token that is in each packet; in
both runs a packet that policy allows must pass. Where a reason is given, the agent's exact counters show it for the
dropped packets; drops that are no attack's, such as a pod's own resets, are left out. A limit is not held: its row says
what happens instead.

`)
	fmt.Fprintf(&b, "%d rows held, %d are limits, %d are not tried here.\n\n", count["held"], count["limit"], count["not run"])
	fmt.Fprint(&b, `Who: A0 a process in the pod without capabilities, A1 with CAP_NET_RAW, A2 with CAP_NET_ADMIN in the pod's namespace, A3 a
user with rights on a namespace's objects, A4 somebody outside. Off and on: packets seen of packets tried.
`)
	for _, section := range catalogue {
		fmt.Fprintf(&b, "\n## %s\n\n| id | what | who | result | off | on | reason |\n|---|---|---|---|---|---|---|\n", section.title)
		for _, r := range section.rows {
			off, on, reason := "", "", r.not
			if r.not == "" {
				l := ledger.rows[r.id]
				off, on = fmt.Sprintf("%d of %d", l.offSeen, l.offTried), fmt.Sprintf("%d of %d", l.leaked, l.tried)
				reason = strings.Join(l.reasonList(), "; ")
			}
			if r.note != "" {
				if reason != "" {
					reason += ". "
				}
				reason += strings.ToUpper(r.note[:1]) + r.note[1:]
			}
			fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s | %s |\n", r.id, r.what, r.who, resultOf(r), off, on, reason)
		}
	}
	return b.Bytes()
}

func resultOf(r row) string {
	if r.not != "" {
		return "not run"
	}
	return ledger.rows[r.id].verdict()
}

// compareTables compares the rows of two documents, without the numbers of
// packets: load is not the same in two runs.
func compareTables(want, got []byte) string {
	rows := func(b []byte) map[string]string {
		out := map[string]string{}
		for line := range strings.Lines(string(b)) {
			if c := strings.Split(line, "|"); len(c) == 9 && strings.Contains(c[1], "-") && !strings.Contains(c[1], "---") {
				out[strings.TrimSpace(c[1])] = strings.TrimSpace(strings.Join([]string{c[2], c[3], c[4], c[7]}, "|"))
			}
		}
		return out
	}
	w, g := rows(want), rows(got)
	var diff []string
	for id := range g {
		if w[id] != g[id] {
			diff = append(diff, fmt.Sprintf("%s:\n  page: %s\n  run:  %s", id, cmp.Or(w[id], "missing"), g[id]))
		}
	}
	for id := range w {
		if _, ok := g[id]; !ok {
			diff = append(diff, id+": on the page, not in the catalogue")
		}
	}
	slices.Sort(diff)
	return strings.Join(diff, "\n")
}
