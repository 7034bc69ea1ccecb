package daemon

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestPrivileged(t *testing.T) {
	for name, c := range map[string]struct {
		err  error
		euid int
		want bool
	}{
		"EPERM":              {fmt.Errorf("load programs: %w", unix.EPERM), 1000, true},
		"EACCES":             {fmt.Errorf("state: %w", unix.EACCES), 1000, true},
		"root has it":        {fmt.Errorf("nftables: %w", unix.EPERM), 0, false},
		"something else":     {unix.ENOENT, 1000, false},
		"wrong arguments":    {fmt.Errorf("%w: %w", errUsage, unix.EPERM), 1000, false},
		"several, one is it": {errors.Join(unix.ENOENT, unix.EPERM), 1000, true},
	} {
		got := privileged(c.err, c.euid)
		if !errors.Is(got, c.err) || strings.Contains(got.Error(), "needs root: run it with sudo") != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
	if privileged(nil, 1000) != nil {
		t.Error("an error of nothing")
	}
}

// TestCommandLine: what is wrong with it is said, and ends with exit code 2.
func TestCommandLine(t *testing.T) {
	for args, want := range map[string]string{
		"bogus":                                  "unknown command",
		"agent extra":                            "unknown command",
		"uninstall extra":                        "unknown command",
		"version extra":                          "unknown command",
		"agent":                                  "--manifests names the directory",
		"agent --bogus":                          "unknown flag",
		"agent --manifests . --mark 0":           "want exactly one bit",
		"agent --manifests . --mark 3":           "want exactly one bit",
		"agent --manifests . --mark 0x100000000": "want exactly one bit",
		"uninstall --mark 3":                     "want exactly one bit",
		"agent --manifests . --flow-quota 0":     "want a number from 1 to 1048576",
		"agent --manifests . --flow-quota 4000000000":             "want a number from 1 to 1048576",
		"agent --manifests . --records -1":                        "want a number from 1024 to 10000000",
		"agent --manifests . --node-name BAD_NAME!":               `--node-name "BAD_NAME!"`,
		"agent --manifests . --metrics banana":                    `--metrics "banana": want ADDRESS:PORT`,
		"agent --manifests . --metrics 127.0.0.1:99999":           "want ADDRESS:PORT",
		"agent --manifests . --log-level loud":                    "want debug, info, warn or error",
		"agent --manifests . --node-name n --ipv4-options Accept": "want Drop or Parse",
	} {
		var out, errs bytes.Buffer
		if code := run(t.Context(), strings.Fields(args), &out, &errs); code != exitUsage || !strings.Contains(errs.String(), want) || out.Len() > 0 {
			t.Errorf("posternd %s: exit code %d, %q, %q; want %d, %q", args, code, out.String(), errs.String(), exitUsage, want)
		}
	}
	for args, want := range map[string]string{"version": "posternd ", "--version": "posternd ", "": "Usage:", "agent --help": "0x2000"} {
		var out, errs bytes.Buffer
		if code := run(t.Context(), strings.Fields(args), &out, &errs); code != exitOK || !strings.Contains(out.String(), want) {
			t.Errorf("posternd %s: exit code %d, %q, %q; want %q", args, code, out.String(), errs.String(), want)
		}
	}
}

func TestMark(t *testing.T) {
	for s, want := range map[string]string{"8192": "0x2000", "0x2000": "0x2000", "0x80000000": "0x80000000", "1": "0x1"} {
		var m markValue
		if err := m.Set(s); err != nil || m.String() != want {
			t.Errorf("%s: %s, %v; want %s", s, m.String(), err, want)
		}
	}
}

func TestMissingCapabilities(t *testing.T) {
	bit := func(bits ...uint) (set uint64) {
		for _, b := range bits {
			set |= 1 << b
		}
		return set
	}
	for name, c := range map[string]struct {
		set  uint64
		want string
	}{
		"all":                {1<<41 - 1, ""},
		"none":               {0, "CAP_NET_ADMIN CAP_SYS_ADMIN CAP_BPF CAP_PERFMON"},
		"the two that do":    {bit(unix.CAP_NET_ADMIN, unix.CAP_SYS_ADMIN), ""},
		"the new ones":       {bit(unix.CAP_NET_ADMIN, unix.CAP_BPF, unix.CAP_PERFMON), "CAP_SYS_ADMIN"},
		"no CAP_NET_ADMIN":   {bit(unix.CAP_SYS_ADMIN, unix.CAP_BPF, unix.CAP_PERFMON), "CAP_NET_ADMIN"},
		"a container's own":  {0xa80425fb, "CAP_NET_ADMIN CAP_SYS_ADMIN CAP_BPF CAP_PERFMON"}, // Docker's default
		"neither of the bpf": {bit(unix.CAP_NET_ADMIN), "CAP_SYS_ADMIN CAP_BPF CAP_PERFMON"},
	} {
		status := fmt.Sprintf("Name:\tposternd\nCapPrm:\t%016x\nCapEff:\t%016x\nCapBnd:\t%016x\n", uint64(1<<41-1), c.set, uint64(1<<41-1))
		if got := strings.Join(missing(status), " "); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
	if got := missing("Name:\tposternd\n"); got != nil {
		t.Errorf("of a file that does not tell: %q", got)
	}
}
