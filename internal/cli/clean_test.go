package cli

import (
	"encoding/json"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/postern-dev/postern/internal/control"
)

func TestClean(t *testing.T) {
	for in, want := range map[string]string{
		"":                       "",
		"shop/frontend":          "shop/frontend",
		"Größe 大 ✓":              "Größe 大 ✓",
		"\x1b[2J\x1b]0;title\a":  `\x1b[2J\x1b]0;title\a`,
		"two\nlines\r\tand tab":  `two\nlines\r\tand tab`,
		"C1 \u009b31m":           `C1 \u009b31m`,
		"\xff\x9b31m":            `\xff\x9b31m`,
		"\u202egnp.exe":          `\u202egnp.exe`,
		"\u2066isolate\u2069":    `\u2066isolate\u2069`,
		"zero\u200bwidth\u00adx": `zero\u200bwidth\u00adx`,
		"\u2028line\u2029":       `\u2028line\u2029`,
		"del\x7f":                `del\x7f`,
		"a\x00b":                 `a\x00b`,
	} {
		if got := clean(in); got != want {
			t.Errorf("clean(%q) = %q, want %q", in, got, want)
		}
	}
	if got := cleanLines("a\nb\x1b\n"); got != "a\nb\\x1b\n" {
		t.Errorf("cleanLines: %q", got)
	}
}

// printable fails the test if text holds something that a terminal acts on.
func printable(t *testing.T, what, text string) {
	t.Helper()
	if !utf8.ValidString(text) {
		t.Errorf("%s: no UTF-8: %q", what, text)
	}
	for _, r := range text {
		if r != '\n' && !strconv.IsPrint(r) {
			t.Errorf("%s prints %U: %q", what, r, text)
			return
		}
	}
}

func FuzzClean(f *testing.F) {
	for _, s := range []string{"", "a", "\x1b[0m", "\u009b", "\xff", "\u202e", "𝄞\U000e0001"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		printable(t, "clean", clean(s))
		if got := clean(s); strings.Contains(got, "\n") {
			t.Errorf("a line end: %q", got)
		}
		b, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		cleaned := cleanJSON(b)
		printable(t, "cleanJSON", string(cleaned))
		var want, got string
		if err := json.Unmarshal(b, &want); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(cleaned, &got); err != nil || got != want {
			t.Errorf("%q became %q (%v)", want, got, err)
		}
	})
}

// evil is text that takes a terminal over if it gets there.
const evil = "x\x1b[2J\x1b]52;c;aGk=\a\u009b31m\u202e\r\n\x00y"

// hostile is an agent all of whose texts are evil.
func hostile() *fakeAgent {
	f := sick()
	poison(reflect.ValueOf(&f.status).Elem())
	poison(reflect.ValueOf(&f.endpoints).Elem())
	poison(reflect.ValueOf(&f.policies).Elem())
	poison(reflect.ValueOf(&f.records).Elem())
	f.snapshot.Policies[0].Name = evil
	f.snapshot.Policies[0].Rules[0][0].Name, f.snapshot.Policies[0].Rules[0][0].Reason = evil, evil
	f.endpoints[0].State = "failed" + evil
	f.status.Problems = append(f.status.Problems, control.Problem{Severity: evil, Object: evil, Path: evil, Message: evil})
	return f
}

// poison appends evil to every string that it can reach.
func poison(v reflect.Value) {
	switch v.Kind() {
	case reflect.String:
		if v.CanSet() {
			v.SetString(v.String() + evil)
		}
	case reflect.Struct:
		if v.Type().PkgPath() == "net/netip" || v.Type().PkgPath() == "time" {
			return
		}
		for _, f := range v.Fields() {
			poison(f)
		}
	case reflect.Slice:
		for i := range v.Len() {
			poison(v.Index(i))
		}
	case reflect.Map:
		if v.Type().Key().Kind() == reflect.String && v.Len() > 0 {
			v.SetMapIndex(reflect.ValueOf(evil), v.MapIndex(v.MapKeys()[0]))
		}
	default:
	}
}

// TestNothingReachesTheTerminal is OPS-11: names, labels, rule names and errors
// never print terminal control bytes, whatever the command and the format.
func TestNothingReachesTheTerminal(t *testing.T) {
	socket := hostile().start(t)
	for _, args := range [][]string{
		{"status"},
		{"endpoints"},
		{"endpoints", "frontend" + evil},
		{"policies"},
		{"flows"},
		{"explain", "shop/frontend", "203.0.113.66", "--port", "443"},
		{"explain", "shop/" + evil, "203.0.113.66", "--port", "443"},
		{"endpoints", evil},
		{"flows", "--verdict", evil},
		{"flows", "--since", evil},
	} {
		for _, format := range []string{"table", "json"} {
			out, errs, _ := run(t, IO{}, append(args, "-o", format, "--socket", socket)...)
			printable(t, strings.Join(args, " ")+" stdout", out)
			printable(t, strings.Join(args, " ")+" stderr", errs)
			if out+errs == "" {
				t.Errorf("%q prints nothing", args)
			}
		}
	}
	for _, args := range [][]string{
		{evil},
		{"--" + evil},
		{"status", "--socket", "/nowhere/" + evil},
		{"policy", "validate", "testdata/" + evil},
		{"policy", "validate", "testdata/evil"},
		{"policy", "validate", "-o", "json", "testdata/evil"},
		{"explain", "shop/a", "shop/b", "--port", "1", "--manifests", "testdata/evil"},
		{"lab", "status", evil},
		{"lab", "up", evil},
		{"lab", "down", evil},
		{"lab", "exec", "--lab", evil, "x", "--", "true"},
	} {
		out, errs, code := run(t, IO{}, args...)
		printable(t, strings.Join(args, " ")+" stdout", out)
		printable(t, strings.Join(args, " ")+" stderr", errs)
		if code == ExitOK {
			t.Errorf("%q ends with 0", args)
		}
	}
}
