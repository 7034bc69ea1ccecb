package cli

import (
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"
)

// TestWidth: on a terminal no line is longer than it is wide, and what tells the
// story is there whole.
func TestWidth(t *testing.T) {
	for _, c := range []struct {
		args  string
		width int
		want  []string
	}{
		{"flows", 200, []string{"DIR", "SENT", "5.4M", "(no rule of the pod's policies allows it)"}},
		{"flows", 160, []string{"DIR", "SENT", "5.4M", "[no-flow]"}},
		{"flows", 120, []string{"TIME", "15:09:25.000"}},
		{"flows", 100, []string{"TIME", "15:09:25.000"}},
		{"flows", 80, []string{"    not a first packet, and no live flow admits it [no-flow]\n"}},
		{"endpoints", 100, []string{"INTERFACE", "pl01"}},
		{"endpoints", 80, nil},
		{"endpoints", 72, nil},
		{"endpoints shop/frontend", 40, nil},
	} {
		socket := healthy().start(t)
		std := IO{OutTTY: true, Width: c.width, Getenv: func(k string) string { return map[string]string{"NO_COLOR": "1"}[k] }}
		out, _, _ := run(t, std, append(strings.Fields(c.args), "--socket", socket)...)
		want := c.want
		if c.args == "flows" {
			want = append(want, "VERDICT", "dropped", "forwarded", "shop/frontend", "service kube-system/kube-dns", "2001:db8:80::80", "ci/runner", "tcp/8080", "baseline default-deny", "no-flow")
		} else {
			want = append(want, "shop/frontend", "enforced", "isolated", "DROPPED", "10.244.1.2 fd00::2")
		}
		for _, w := range want {
			if !strings.Contains(out, w) {
				t.Errorf("%s at %d: no %q\n%s", c.args, c.width, w, out)
			}
		}
		for line := range strings.Lines(out) {
			if line = strings.TrimSuffix(line, "\n"); c.width >= 72 && utf8.RuneCountInString(line) > c.width || strings.HasSuffix(line, " ") {
				t.Errorf("%s at %d: %q", c.args, c.width, line)
			}
		}
	}
}

// TestPipeGetsEverything: a width is a terminal's.
func TestPipeGetsEverything(t *testing.T) {
	for _, args := range []string{"flows", "endpoints", "endpoints shop/frontend"} {
		socket := healthy().start(t)
		full, _, _ := run(t, IO{}, append(strings.Fields(args), "--socket", socket)...)
		if narrow, _, _ := run(t, IO{Width: 40}, append(strings.Fields(args), "--socket", socket)...); narrow != full {
			t.Errorf("%s: a pipe got\n%s", args, narrow)
		}
	}
}

// TestFollowedTableNarrows: rows that need another layout come with its headers.
func TestFollowedTableNarrows(t *testing.T) {
	var b strings.Builder
	a := newApp(IO{Out: &b, OutTTY: true, Width: 20, Getenv: func(string) string { return "" }})
	a.colour = false
	tab := a.newTable("NAME", "SIZE", "WHY")
	a.fit(tab, layout{hide: []int{1}}, layout{hide: []int{1}, below: true})
	for i, name := range []string{"a", "longer-than-that", "b"} {
		tab.add(text(name), number(strconv.Itoa(i)), text("one two three"))
		if err := tab.flush(); err != nil {
			t.Fatal(err)
		}
	}
	const want = `NAME  WHY
a     one two three
NAME
    WHY
longer-than-that
    one two three
b
    one two three
`
	if got := b.String(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
