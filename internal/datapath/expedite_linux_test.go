package datapath

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// fakeRCU is a kernel whose switches are two files.
func fakeRCU(t *testing.T, expedited, normal string) rcu {
	t.Helper()
	r := rcu{sys: t.TempDir(), marker: filepath.Join(t.TempDir(), "marker")}
	for name, v := range map[string]string{"rcu_expedited": expedited, "rcu_normal": normal} {
		if err := os.WriteFile(filepath.Join(r.sys, name), []byte(v+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

func (r rcu) expedited(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(r.sys, "rcu_expedited"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))[:1] // a file keeps the old newline, a switch does not
}

func (r rcu) marked() bool {
	_, err := os.Lstat(r.marker)
	return err == nil
}

func TestExpedite(t *testing.T) {
	for _, tt := range []struct {
		name              string
		expedited, normal string
		interfaces        int
		want              string // meanwhile
	}{
		{"many", "0", "0", manyInterfaces + 1, "1"},
		{"few", "0", "0", manyInterfaces, "0"},
		{"somebody else switched on", "1", "0", 100, "1"},
		{"never expedited", "0", "1", 100, "0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := fakeRCU(t, tt.expedited, tt.normal)
			end := r.expedite(tt.interfaces)
			if got := r.expedited(t); got != tt.want {
				t.Errorf("meanwhile: got %s, want %s", got, tt.want)
			}
			if got, want := r.marked(), tt.want != tt.expedited; got != want {
				t.Errorf("marker: got %v, want %v", got, want)
			}
			if err := end(); err != nil {
				t.Fatal(err)
			}
			if got := r.expedited(t); got != tt.expedited || r.marked() {
				t.Errorf("afterwards: got %s (marker %v), want %s", got, r.marked(), tt.expedited)
			}
		})
	}
}

func TestExpediteAfterKill(t *testing.T) {
	r := fakeRCU(t, "0", "0")
	r.expedite(100) // and killed
	if err := r.repair(); err != nil {
		t.Fatal(err)
	}
	if got := r.expedited(t); got != "0" || r.marked() {
		t.Errorf("got %s (marker %v), want 0", got, r.marked())
	}
	// What is not ours stays.
	r = fakeRCU(t, "1", "0")
	if err := r.repair(); err != nil || r.expedited(t) != "1" {
		t.Errorf("got %s (%v), want 1", r.expedited(t), err)
	}
}

func TestExpediteReadOnly(t *testing.T) {
	r := fakeRCU(t, "0", "0")
	if err := os.RemoveAll(r.sys); err != nil {
		t.Fatal(err)
	}
	if err := r.expedite(100)(); err != nil || r.marked() {
		t.Errorf("got %v (marker %v)", err, r.marked())
	}
}
