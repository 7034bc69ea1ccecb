//go:build linux

package attack

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/postern-dev/postern/internal/lab"
	"github.com/postern-dev/postern/internal/packet/packettest"
)

// metricsPort is where the agent of TestNode serves its metrics, on the node's loopback.
const metricsPort = 9464

// TestNode is section 8: the node's integrity, and other agents on it.
func TestNode(t *testing.T) {
	w := newWorld(t, kubeSpec("at-node", lab.PTP))
	w.beside = []string{"no-flow"}
	w.args = []string{"--metrics", fmt.Sprintf("127.0.0.1:%d", metricsPort)}
	w.run(narrow+kubePolicy, []attack{
		{id: "OPS-01", off: open, try: (*try).legacyFilters},
		{id: "OPS-02", off: open, try: (*try).rivalAtHead},
		{id: "OPS-03", off: open, try: (*try).otherPolicy},
		{id: "OPS-04", off: open, try: (*try).flushed},
		{id: "OPS-06", off: open, try: (*try).unpinned},
		{id: "OPS-09", off: open, try: (*try).flooded},
		{id: "OPS-12", off: absent, from: "payments/api", try: (*try).scanned},
		{id: "OPS-17", off: open, try: func(x *try) {
			for _, uid := range []int{0, 1337, 65534} {
				for v := range 2 {
					tok := x.attackToken(fmt.Sprintf("a socket of user %d %s", uid, family(v)), 1)
					if err := x.sendUDP(udpFrom{uid: uid}, evil(v), 443, tok[:]); err != nil {
						x.Fatal(err)
					}
					x.expect(isolation, 1)
				}
			}
		}},
	})
}

// rival is another agent's program on the pod's interface, which answers ret.
func (x *try) rival(ret int32, hook ebpf.AttachType, anchor link.Anchor) (remove func()) {
	x.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "rival", Type: ebpf.SchedCLS, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, ret), asm.Return()},
	})
	if err != nil {
		x.Fatal(err)
	}
	var l link.Link
	err = x.w.node.Do(func() error {
		l, err = link.AttachTCX(link.TCXOptions{Interface: x.pod.HostIfindex, Program: p, Attach: hook, Anchor: anchor})
		return err
	})
	if err != nil {
		x.Fatal(err)
	}
	return func() {
		if err := l.Close(); err != nil {
			x.Error(err)
		}
		if err := p.Close(); err != nil {
			x.Error(err)
		}
	}
}

// Answers of tcx programs. Source: include/uapi/linux/bpf.h.
const (
	tcxNext = -1
	tcxPass = 0
	tcxDrop = 2
)

// deniedNow sends what must not pass, whatever has just been done.
func (x *try) deniedNow(what, reason string) {
	x.Helper()
	for v := range 2 {
		x.denied(what+" "+family(v), reason, func(tok packettest.Token) []byte { return x.udp(evil(v), 443, tok) }, everyMode...)
	}
}

// legacyFilters puts the older tc hooks on the interface and takes them away.
func (x *try) legacyFilters() {
	h, err := x.w.node.Netlink()
	if err != nil {
		x.Fatal(err)
	}
	defer h.Close()
	x.deniedNow("as it is", isolation)
	if !x.on {
		return
	}
	accept, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.SchedCLS, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()}, // TC_ACT_OK
	})
	if err != nil {
		x.Fatal(err)
	}
	defer func() { _ = accept.Close() }()
	for range 3 {
		q := &netlink.GenericQdisc{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: x.pod.HostIfindex, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}, QdiscType: "clsact"}
		if err := h.QdiscAdd(q); err != nil {
			x.Fatal(err)
		}
		x.deniedNow("with clsact", isolation)
		f := &netlink.BpfFilter{
			FilterAttrs: netlink.FilterAttrs{LinkIndex: x.pod.HostIfindex, Parent: netlink.HANDLE_MIN_INGRESS, Handle: 1, Priority: 1, Protocol: unix.ETH_P_ALL},
			Fd:          accept.FD(), Name: "rival", DirectAction: true,
		}
		if err := h.FilterAdd(f); err != nil {
			x.Fatal(err)
		}
		x.deniedNow("with a filter that accepts all", isolation)
		if err := h.QdiscDel(q); err != nil {
			x.Fatal(err)
		}
		x.deniedNow("without clsact again", isolation)
	}
	x.allowed("still", func(tok packettest.Token) []byte { return x.udp(web(0), controlPort, tok) })
}

// rivalAtHead ends the chain before our program: what nobody looked at is dropped, then the head is ours again.
func (x *try) rivalAtHead() {
	x.deniedNow("as it is", isolation)
	if !x.on {
		return
	}
	for _, ret := range []int32{tcxPass, tcxNext} {
		remove := x.rival(ret, ebpf.AttachTCXIngress, link.Head())
		back := x.rival(ret, ebpf.AttachTCXEgress, link.Head())
		deadline := time.Now().Add(2200 * time.Millisecond) // two audits
		for time.Now().Before(deadline) {
			x.deniedNow(fmt.Sprintf("a program at the head answers %d", ret), "")
			tok := x.attackToken("with the mark", 1)
			if err := x.sendUDP(udpFrom{mark: 0x2000}, evil(0), 443, tok[:]); err != nil {
				x.Fatal(err)
			}
			time.Sleep(100 * time.Millisecond)
		}
		x.allowed("the head is ours again", func(tok packettest.Token) []byte { return x.udp(web(0), controlPort, tok) })
		x.settle()
		remove()
		back()
	}
	x.beside = append(x.beside, isolation)
}

// otherPolicy has the CNI's own program deny what we allow.
func (x *try) otherPolicy() {
	if x.on {
		remove := x.rival(tcxDrop, ebpf.AttachTCXIngress, link.Tail())
		defer remove()
	}
	for v := range 2 {
		x.denied("the CNI's own program denies it "+family(v), "", func(tok packettest.Token) []byte { return x.udp(web(v), 5009, tok) }, everyMode...)
	}
	x.settle()
}

// flushed empties the node's nftables as other agents' restarts do.
func (x *try) flushed() {
	s := x.storm(evil(0), evil(1))
	if x.on {
		for range 5 {
			c, err := x.w.node.Nftables()
			if err != nil {
				x.Fatal(err)
			}
			c.FlushRuleset()
			if err := c.Flush(); err != nil {
				x.Log(err)
			}
			tables, err := c.ListTables()
			if err != nil {
				x.Fatal(err)
			}
			if !slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == "postern" }) {
				x.Error("the catch-all went with the others")
			}
			for _, t := range tables {
				if t.Name == "postern" {
					c.DelTable(t)
					_ = c.Flush() // owned by the agent: refused
				}
			}
			_ = c.CloseLasting()
			time.Sleep(50 * time.Millisecond)
		}
		// kube-proxy's rules come back, and with them what the lab needs.
		if _, err := x.w.lab.SetService(x.service("shop/open")); err != nil {
			x.Fatal(err)
		}
	} else {
		time.Sleep(50 * time.Millisecond)
	}
	s.stop(true)
}

// unpinned removes pins, and kills the agent that holds the links.
func (x *try) unpinned() {
	x.deniedNow("as it is", isolation)
	if !x.on {
		return
	}
	bpffs, err := x.w.lab.BPFFS(x.w.node.Name)
	if err != nil {
		x.Fatal(err)
	}
	unpin := func() {
		x.Helper()
		pins, err := filepath.Glob(filepath.Join(bpffs, "postern", "links", "*"))
		if err != nil || len(pins) < 6 {
			x.Fatalf("pins: %v, %v", pins, err)
		}
		for _, p := range pins {
			if err := os.Remove(p); err != nil {
				x.Fatal(err)
			}
		}
	}
	s := x.storm(evil(0), evil(1))
	for range 2 {
		unpin()
		time.Sleep(1200 * time.Millisecond) // an audit pins them again
	}
	if err := x.w.agent.Kill(); err != nil {
		x.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond)
	s.stop(false)
	x.mixed() // the look after DNAT was pinned again as well
	unpin()   // now the programs go
	s = x.quietStorm(evil(0), evil(1))
	x.deniedNow("programs gone, catch-all there", "")
	tok := x.attackToken("with the mark", 1)
	if err := x.sendUDP(udpFrom{mark: 0x2000}, evil(0), 443, tok[:]); err != nil {
		x.Fatal(err)
	}
	time.Sleep(200 * time.Millisecond)
	s.stop(true)
	x.restart()
	x.beside = append(x.beside, isolation)
	x.wants = map[string]uint64{}
	x.allowed("with the agent back", func(tok packettest.Token) []byte { return x.udp(web(0), controlPort, tok) })
}

// flooded is denied more often than events can tell, and counts every packet.
func (x *try) flooded() {
	n := 100_000
	if !x.on {
		n = 100
	}
	tok := x.attackToken("flood", n)
	frame := x.udp(evil(0), 443, tok)
	for range n {
		x.send(lab.Raw, frame)
	}
	x.expect(isolation, n)
}

// scanned looks for the agent from a pod that may go anywhere, and from users of the node.
func (x *try) scanned() {
	x.nodeSysctl("ipv4/conf/all/route_localnet", "1")
	defer x.nodeSysctl("ipv4/conf/all/route_localnet", "0")
	n := x.w.node
	for _, to := range append(slices.Concat(n.IPs, n.Gateways), netip.MustParseAddr("127.0.0.1"), linkLocal(x.pod.GatewayMAC()).WithZone("eth0")) {
		for port, wanted := range map[uint16]bool{metricsPort: false, 10250: true} {
			if wanted && x.on {
				continue // the scan itself, on a port that is open
			}
			c, err := dialFrom(x.pod, netip.AddrPortFrom(to, port))
			x.tried++
			if err == nil {
				x.leaked++
				_ = c.Close()
				if x.on {
					x.Errorf("the metrics answer a pod at %s", to)
				}
			}
		}
	}
	if !x.on {
		return
	}
	st, err := os.Stat(x.w.agent.Socket)
	if err != nil {
		x.Fatal(err)
	}
	if st.Mode().Perm() != 0o600 {
		x.Errorf("the socket's mode is %v", st.Mode())
	}
	// Even if somebody opens it up, it answers root only.
	dir := filepath.Dir(x.w.agent.Socket)
	for p := dir; p != "/run"; p = filepath.Dir(p) {
		st, err := os.Stat(p)
		if err != nil {
			x.Fatal(err)
		}
		if err := os.Chmod(p, 0o755); err != nil {
			x.Fatal(err)
		}
		defer func() {
			if err := os.Chmod(p, st.Mode().Perm()); err != nil {
				x.Error(err)
			}
		}()
	}
	if err := os.Chmod(x.w.agent.Socket, 0o666); err != nil {
		x.Fatal(err)
	}
	defer func() {
		if err := os.Chmod(x.w.agent.Socket, 0o600); err != nil {
			x.Error(err)
		}
	}()
	for _, uid := range []int{1000, 65534} {
		x.tried++
		err := asUser(uid, func() error {
			c, err := net.Dial("unix", x.w.agent.Socket)
			if err != nil {
				return err
			}
			defer func() { _ = c.Close() }()
			if err := c.SetDeadline(time.Now().Add(time.Second)); err != nil {
				return err
			}
			if _, err := c.Write([]byte("GET /v1/status HTTP/1.1\r\nHost: agent\r\n\r\n")); err != nil {
				return err
			}
			_, err = c.Read(make([]byte, 100))
			return err
		})
		if err == nil {
			x.leaked++
			x.Errorf("the control socket answers user %d", uid)
		}
	}
	x.beside = append(x.beside, "martian")
}

// asUser runs f on a thread of its own with another user's identity.
func asUser(uid int, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread is thrown away
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); errno != 0 {
			done <- errno
			return
		}
		done <- f()
	}()
	return <-done
}

// dialFrom tries one TCP connection from a pod.
func dialFrom(p *lab.Pod, to netip.AddrPort) (c net.Conn, err error) {
	err = p.Do(func() error {
		d := net.Dialer{Timeout: 150 * time.Millisecond}
		c, err = d.Dial("tcp", to.String())
		return err
	})
	return c, err
}
