package packet_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/postern-dev/postern/internal/packet"
	"github.com/postern-dev/postern/internal/packet/packettest"
)

// nameOf returns a name of any labels, by way of a message.
func nameOf(tb testing.TB, labels ...string) packet.Name {
	tb.Helper()
	var m packet.DNS
	b := packettest.DNS{Questions: []packettest.DNSQuestion{{Name: labels}}}.Bytes()
	if err := packet.ReadDNS(b, &m); err != nil {
		tb.Fatalf("%q: %v", labels, err)
	}
	return m.Question
}

func mustName(tb testing.TB, s string) packet.Name {
	tb.Helper()
	n, err := packet.ParseName(s)
	if err != nil {
		tb.Fatal(err)
	}
	return n
}

func TestParseName(t *testing.T) {
	l63 := strings.Repeat("a", 63)
	l61 := strings.Repeat("b", 61)
	longest := strings.Join([]string{l63, l63, l63, l61}, ".") // 253, and 255 on the wire
	for _, tc := range []struct{ in, wire, err string }{
		{in: "example.com", wire: "\x07example\x03com\x00"},
		{in: "Example.COM.", wire: "\x07example\x03com\x00"},
		{in: "AZaz.09-_", wire: "\x04azaz\x0409-_\x00"},
		{in: "com", wire: "\x03com\x00"},
		{in: "com.", wire: "\x03com\x00"},
		{in: "_dns.-a-.x_y.0", wire: "\x04_dns\x03-a-\x03x_y\x010\x00"},
		{in: "10.0.0.1", wire: "\x0210\x010\x010\x011\x00"},
		{in: l63, wire: "\x3f" + l63 + "\x00"},
		{in: longest, wire: "\x3f" + l63 + "\x3f" + l63 + "\x3f" + l63 + "\x3d" + l61 + "\x00"},
		{in: longest + ".", wire: "\x3f" + l63 + "\x3f" + l63 + "\x3f" + l63 + "\x3d" + l61 + "\x00"},
		{in: "", err: "is empty"},
		{in: ".", err: "an empty label"},
		{in: "..", err: "an empty label"},
		{in: ".com", err: "an empty label"},
		{in: "a..b", err: "an empty label"},
		{in: "a..", err: "an empty label"},
		{in: "a" + l63, err: "more than 63"},
		{in: "a" + l63 + ".com", err: "more than 63"},
		{in: longest + "b", err: "more than 253"},
		{in: longest + "b.", err: "more than 253"},
		{in: longest + ".b", err: "more than 253"},
		{in: strings.Repeat("a.", 127) + "a", err: "more than 253"},
		{in: strings.Repeat("a.", 128), err: "more than 253"},
		{in: strings.Repeat("a.", 127), wire: strings.Repeat("\x01a", 127) + "\x00"},
		{in: "bücher.example", err: "xn--"},
		{in: "\u212a.example", err: "xn--"}, // the Kelvin sign, which folds to k in Unicode
		{in: "a\xff", err: "xn--"},
		{in: "a\x80", err: "xn--"},
		{in: "*.example.com", err: "another character"},
		{in: "a b", err: "another character"},
		{in: "a\\.b", err: "another character"},
		{in: "a\x00", err: "another character"},
		{in: "a@b", err: "another character"},
		{in: "::1", err: "another character"},
	} {
		n, err := packet.ParseName(tc.in)
		if got := string(n.Wire()); got != tc.wire {
			t.Errorf("%q: got %q, want %q", tc.in, got, tc.wire)
		}
		switch {
		case tc.err == "" && err != nil:
			t.Errorf("%q: %v", tc.in, err)
		case tc.err != "" && (err == nil || !strings.Contains(err.Error(), tc.err)):
			t.Errorf("%q: got %v, want an error of %q", tc.in, err, tc.err)
		case err == nil:
			valid(t, n)
		}
	}
}

// valid holds a name against what Name says of itself.
func valid(tb testing.TB, n packet.Name) {
	tb.Helper()
	w := n.Wire()
	if len(w) < 1 || len(w) > 255 || len(w) != n.Len() {
		tb.Fatalf("%q of %d octets, Len %d", w, len(w), n.Len())
	}
	at, labels := 0, 0
	for ; w[at] != 0; at += 1 + int(w[at]) {
		if labels++; w[at] > 63 {
			tb.Fatalf("%q: label of %d octets", w, w[at])
		}
	}
	if at != len(w)-1 || labels != n.Labels() || n.IsRoot() != (labels == 0) {
		tb.Fatalf("%q: ends at %d, %d labels, Labels %d, IsRoot %t", w, at, labels, n.Labels(), n.IsRoot())
	}
	if strings.ContainsAny(string(w), "ABCDEFGHIJKLMNOPQRSTUVWXYZ") {
		tb.Fatalf("%q is not folded", w)
	}
	// The octets behind the end are nothing's: a name built anew is the same value.
	labelsOf := make([]string, 0, labels)
	for at := 0; w[at] != 0; at += 1 + int(w[at]) {
		labelsOf = append(labelsOf, string(w[at+1:at+1+int(w[at])]))
	}
	if again := nameOf(tb, labelsOf...); again != n {
		tb.Fatalf("%q is not equal to itself", w)
	}
}

func TestName(t *testing.T) {
	var zero packet.Name
	root := nameOf(t)
	com, example, www := mustName(t, "com"), mustName(t, "example.com"), mustName(t, "www.example.com")
	odd := nameOf(t, "a.b", "\x00\x7f\\", "Ä[", "!~")

	for _, tc := range []struct {
		n      packet.Name
		text   string
		labels int
		parent packet.Name
	}{
		{zero, "", 0, zero},
		{root, ".", 0, root},
		{com, "com", 1, root},
		{www, "www.example.com", 3, example},
		{odd, `a\.b.\000\127\\.\195\132[.!~`, 4, nameOf(t, "\x00\x7f\\", "Ä[", "!~")},
		{nameOf(t, " ", "\xff"), `\032.\255`, 2, nameOf(t, "\xff")},
	} {
		if got := tc.n.String(); got != tc.text {
			t.Errorf("%q: got %s, want %s", tc.n.Wire(), got, tc.text)
		}
		if got := tc.n.Labels(); got != tc.labels {
			t.Errorf("%s: got %d labels, want %d", tc.n, got, tc.labels)
		}
		if got := tc.n.Parent(); got != tc.parent {
			t.Errorf("%s: got parent %s, want %s", tc.n, got, tc.parent)
		}
	}

	for _, tc := range []struct {
		n, other packet.Name
		want     bool
	}{
		{www, example, true},
		{www, com, true},
		{www, root, true},
		{com, root, true},
		{www, www, false},
		{root, root, false},
		{root, com, false},
		{example, www, false},
		{com, zero, false},
		{zero, root, false},
		{zero, zero, false},
		{mustName(t, "wwwexample.com"), example, false},
		{mustName(t, "example.com.org"), example, false},
		// The octets end as example.com does, and the labels do not.
		{nameOf(t, "www\x07example", "com"), example, false},
		{nameOf(t, "a.example", "com"), example, false},
	} {
		if got := tc.n.IsBelow(tc.other); got != tc.want {
			t.Errorf("%q below %q: got %t", tc.n.Wire(), tc.other.Wire(), got)
		}
	}

	names := []packet.Name{www, com, root, odd, zero, example}
	slices.SortFunc(names, packet.Name.Compare)
	if names[0] != zero || names[1] != root || !slices.IsSortedFunc(names, packet.Name.Compare) {
		t.Errorf("order: %v", names)
	}
	if com.Compare(mustName(t, "COM.")) != 0 || com.Compare(www) != -www.Compare(com) {
		t.Error("Compare is no order")
	}
	if n := testing.AllocsPerRun(100, func() {
		if !www.IsBelow(example) || www.Parent() != example || len(www.Wire()) != 17 || www.Compare(com) == 0 {
			t.Error("changed")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func FuzzParseName(f *testing.F) {
	for _, s := range []string{"example.com", "Example.COM.", "_a.-.0", "a..b", ".", "", "*.a", "bücher", strings.Repeat("a.", 127), strings.Repeat("a", 64)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := packet.ParseName(s)
		// A second opinion, by splitting.
		labels := strings.Split(strings.TrimSuffix(s, "."), ".")
		size, ok := 1, s != "" && s != "."
		for _, l := range labels {
			size += 1 + len(l)
			ok = ok && l != "" && len(l) <= 63
		}
		ok = ok && size <= 255
		for _, c := range []byte(s) {
			ok = ok && strings.IndexByte("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.", c) >= 0
		}
		if ok != (err == nil) {
			t.Fatalf("%q: %v, want it accepted: %t", s, err, ok)
		}
		if err != nil {
			if n != (packet.Name{}) {
				t.Errorf("%q: an error and %q", s, n.Wire())
			}
			return
		}
		valid(t, n)
		if want := strings.ToLower(strings.TrimSuffix(s, ".")); n.String() != want {
			t.Errorf("%q: got %q, want %q", s, n.String(), want)
		}
		if again, err := packet.ParseName(n.String()); err != nil || again != n {
			t.Errorf("%q: read again: %q, %v", s, again.Wire(), err)
		}
		if n.Labels() != len(labels) || n != nameOf(t, labels...) {
			t.Errorf("%q: %d labels of %d", s, n.Labels(), len(labels))
		}
	})
}
