package daemon

import (
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
		if !errors.Is(got, c.err) || strings.Contains(got.Error(), "needs root (CAP_NET_ADMIN") != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
	if privileged(nil, 1000) != nil {
		t.Error("an error of nothing")
	}
}
