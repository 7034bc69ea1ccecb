package datapath

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// The kernel waits for a grace period, 8 ms at HZ=250, for each program that is
// attached or detached, under the one lock of all interfaces. Expedited grace
// periods take some 100 us, and cost every CPU an interrupt each. So they are
// switched on while many interfaces are armed, and off again afterwards.
// Source: Documentation/admin-guide/kernel-parameters.txt, rcupdate.rcu_expedited;
// kernel/bpf/tcx.c.

// manyInterfaces is the number of interfaces above which it is worth it.
const manyInterfaces = 8

// rcu is the kernel's switch.
type rcu struct {
	// sys holds the files rcu_expedited and rcu_normal.
	sys string
	// marker exists while the switch is on on our behalf. It is on the bpffs, and
	// so lives as long as the kernel whose switch it is about.
	marker string
}

func rcuOf(pinDir string) rcu {
	return rcu{sys: "/sys/kernel", marker: filepath.Join(pinDir, "rcu_expedited")}
}

// expedite switches on for work on n interfaces and returns what switches off.
// Somebody else's setting is left alone, and where /sys can't be written
// everything is just slower.
func (r rcu) expedite(n int) (end func() error) {
	nothing := func() error { return nil }
	if n <= manyInterfaces || !r.is("rcu_expedited", "0") || !r.is("rcu_normal", "0") {
		return nothing
	}
	// Marker first: if this process is killed, the next one knows.
	if err := os.Mkdir(r.marker, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nothing
	}
	_ = r.set("1") // or it stays slow
	return r.repair
}

// repair switches off if it was us, or a process before us, who switched on.
func (r rcu) repair() error {
	if _, err := os.Lstat(r.marker); err != nil {
		return nil //nolint:nilerr // there is none
	}
	if !r.is("rcu_expedited", "0") {
		if err := r.set("0"); err != nil {
			return fmt.Errorf("rcu_expedited can't be set back to 0: %w", err)
		}
	}
	if err := os.Remove(r.marker); err != nil {
		return fmt.Errorf("rcu_expedited: marker: %w", err)
	}
	return nil
}

func (r rcu) is(name, value string) bool {
	have, err := os.ReadFile(filepath.Join(r.sys, name)) //nolint:gosec // G304: below /sys/kernel
	return err == nil && string(bytes.TrimSpace(have)) == value
}

func (r rcu) set(value string) error {
	f, err := os.OpenFile(filepath.Join(r.sys, "rcu_expedited"), os.O_WRONLY, 0) // never made
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

// Expedite makes what follows fast if it is about many interfaces. What it
// returns must be called afterwards; if the process is killed before, the next
// Open or Uninstall does so.
func (d *Datapath) Expedite(interfaces int) (end func() error) {
	return rcuOf(d.cfg.PinDir).expedite(interfaces)
}
