package daemon

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// capabilities are those that the kernel asks for. Source: capabilities(7);
// bpf_capable and perfmon_capable in include/linux/capability.h take CAP_SYS_ADMIN
// for the newer ones.
var capabilities = []struct {
	bit   uint
	name  string
	admin bool // CAP_SYS_ADMIN stands for it
}{
	{unix.CAP_NET_ADMIN, "CAP_NET_ADMIN", false}, // tcx, nftables, netlink
	{unix.CAP_SYS_ADMIN, "CAP_SYS_ADMIN", false}, // maps by their ids, pods' network namespaces
	{unix.CAP_BPF, "CAP_BPF", true},
	{unix.CAP_PERFMON, "CAP_PERFMON", true},
}

// checkCapabilities fails with the names of the capabilities that this process
// lacks: what the kernel says of them later is EPERM, of anything.
func checkCapabilities() error {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return nil //nolint:nilerr // without /proc, the kernel's own errors have to do
	}
	lacking := missing(string(status))
	switch {
	case len(lacking) == 0:
		return nil
	case os.Geteuid() != 0:
		return fmt.Errorf("needs root, or %s: run it with sudo", strings.Join(lacking, ", "))
	}
	return fmt.Errorf("this process runs as root, but without %s: add them to the capabilities of its container or its systemd unit (CapabilityBoundingSet=)",
		strings.Join(lacking, ", "))
}

// missing returns the names of the capabilities that are not in the effective set
// of a status file; none if it does not tell. Source: proc_pid_status(5), CapEff.
func missing(status string) []string {
	_, rest, _ := strings.Cut(status, "\nCapEff:")
	text, _, _ := strings.Cut(rest, "\n")
	set, err := strconv.ParseUint(strings.TrimSpace(text), 16, 64)
	if err != nil {
		return nil
	}
	var out []string
	for _, c := range capabilities {
		if set>>c.bit&1 == 0 && (!c.admin || set>>unix.CAP_SYS_ADMIN&1 == 0) {
			out = append(out, c.name)
		}
	}
	return out
}
