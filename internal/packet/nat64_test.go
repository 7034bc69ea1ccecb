package packet

import (
	"net/netip"
	"testing"
)

func TestJudged(t *testing.T) {
	for in, want := range map[string]string{
		"10.0.0.1": "10.0.0.1", "::ffff:10.0.0.1": "10.0.0.1", "64:ff9b::10.0.0.1": "10.0.0.1",
		"64:ff9b::1:0:0": "64:ff9b::1:0:0", "64:ff9b:1::10.0.0.1": "64:ff9b:1::a00:1", "2002:a00:1::": "2002:a00:1::",
		"fe80::1%eth0": "fe80::1", "::10.0.0.1": "::a00:1",
	} {
		if got := Judged(netip.MustParseAddr(in)).String(); got != want {
			t.Errorf("%s: got %s, want %s", in, got, want)
		}
	}
	if Judged(netip.Addr{}).IsValid() {
		t.Error("the zero address became one")
	}
	for in, want := range map[string]string{
		"10.0.0.0/8": "10.0.0.0/8", "::ffff:10.0.0.0/104": "10.0.0.0/8", "64:ff9b::/96": "0.0.0.0/0", "64:ff9b::a00:0/104": "10.0.0.0/8",
		"64:ff9b::/95": "64:ff9b::/95", "::/0": "::/0",
	} {
		if got := JudgedPrefix(netip.MustParsePrefix(in)).String(); got != want {
			t.Errorf("%s: got %s, want %s", in, got, want)
		}
	}
	if JudgedPrefix(netip.Prefix{}).IsValid() {
		t.Error("the zero prefix became one")
	}
}
