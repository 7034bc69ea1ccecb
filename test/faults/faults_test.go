//go:build linux

// Package faults breaks things while traffic flows: 0 leaked packets, and 0
// lost packets of allowed flows.
package faults

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/postern-dev/postern/internal/control"
	"github.com/postern-dev/postern/internal/lab"
	"github.com/postern-dev/postern/internal/packet/packettest"
	"github.com/postern-dev/postern/internal/testenv"
	"github.com/postern-dev/postern/test/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

const policy = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny-all, namespace: shop}
spec: {podSelector: {}, policyTypes: [Ingress, Egress]}
---
apiVersion: postern.dev/v1alpha1
kind: EgressPolicy
metadata: {name: frontend, namespace: shop}
spec:
  podSelector: {matchLabels: {app: frontend}}
  egress: [{to: [{networks: [203.0.113.80/32, "2001:db8:80::80/128"]}]}]
`

var (
	web  = netip.AddrPortFrom(lab.WebV4, lab.EchoPort)
	web6 = netip.AddrPortFrom(lab.WebV6, lab.EchoPort)
	evil = netip.AddrPortFrom(lab.EvilV4, lab.EchoPort)
)

// load is traffic of one pod until stop: what policy denies, with a token that
// must never be seen on any wire, and what it allows, which must never be lost.
type load struct {
	t     *testing.T
	w     *harness.World
	front *lab.Pod
	tap   *lab.Tap
	token packettest.Token

	cancel  context.CancelFunc
	wg      sync.WaitGroup
	sent    atomic.Int64 // denied packets
	answers atomic.Int64 // of allowed flows
	mu      sync.Mutex
	lost    []string
}

func startLoad(t *testing.T, w *harness.World) *load {
	t.Helper()
	front := w.Pod("shop/frontend")
	tap, err := w.Lab.Tap(t.Context(), front)
	if err != nil {
		t.Fatal(err)
	}
	l := &load{t: t, w: w, front: front, tap: tap, token: packettest.NewToken(t.Name())}
	if err := tap.Verify(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	l.cancel = cancel
	for _, f := range []func(context.Context){
		l.denied, func(ctx context.Context) { l.echo(ctx, "tcp", web) }, func(ctx context.Context) { l.echo(ctx, "tcp", web6) },
		func(ctx context.Context) { l.echo(ctx, "udp", web) }, l.connections,
	} {
		l.wg.Go(func() { f(ctx) })
	}
	return l
}

func (l *load) lose(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lost = append(l.lost, fmt.Sprintf(format, args...))
}

// denied sends datagrams and connection attempts to where policy says no.
func (l *load) denied(ctx context.Context) {
	c, err := l.front.Dial(ctx, "udp", evil.String())
	if err != nil {
		l.lose("dial: %v", err)
		return
	}
	defer func() { _ = c.Close() }()
	for ctx.Err() == nil {
		if _, err := c.Write(l.token[:]); err == nil {
			l.sent.Add(1)
		}
		time.Sleep(200 * time.Microsecond)
	}
}

// echo keeps one flow busy.
func (l *load) echo(ctx context.Context, network string, to netip.AddrPort) {
	c, err := l.front.Dial(ctx, network, to.String())
	if err != nil {
		l.lose("dial %s: %v", network, err)
		return
	}
	defer func() { _ = c.Close() }()
	buf := make([]byte, 2048)
	for i := 0; ctx.Err() == nil; i++ {
		msg := fmt.Sprintf("n%09d\n", i)
		if err := c.SetDeadline(time.Now().Add(900 * time.Millisecond)); err != nil {
			l.lose("%v", err)
			return
		}
		if _, err := c.Write([]byte(msg)); err != nil {
			l.lose("%s %s: write %d: %v", network, to, i, err)
			return
		}
		n, err := c.Read(buf)
		if err != nil || !bytes.Contains(buf[:n], []byte(msg[:10])) {
			if ctx.Err() == nil {
				l.lose("%s %s: answer %d: %q, %v", network, to, i, buf[:n], err)
			}
			return
		}
		l.answers.Add(1)
		time.Sleep(time.Millisecond)
	}
}

// connections opens new allowed connections.
func (l *load) connections(ctx context.Context) {
	for i := 0; ctx.Err() == nil; i++ {
		dctx, cancel := context.WithTimeout(ctx, 900*time.Millisecond)
		_, err := l.front.Echo(dctx, "tcp", web, []byte("new"))
		cancel()
		if err != nil && ctx.Err() == nil {
			l.lose("new connection %d: %v", i, err)
		}
		l.answers.Add(1)
		time.Sleep(5 * time.Millisecond)
	}
}

// stop ends the load and judges it. losses says whether allowed traffic may be cut.
func (l *load) stop(mayLose bool) {
	l.t.Helper()
	l.cancel()
	l.wg.Wait()
	if err := l.tap.Verify(l.t.Context()); err != nil {
		l.t.Errorf("the sniffers are blind: %v", err)
	}
	if n := l.tap.Count(l.token); n != 0 {
		l.t.Errorf("%d packets leaked, seen at %v", n, l.tap.Seen(l.token))
	}
	if l.sent.Load() < 100 || l.answers.Load() < 5 || (!mayLose && l.answers.Load() < 50) {
		l.t.Errorf("no load: %d denied packets sent, %d answers", l.sent.Load(), l.answers.Load())
	}
	if !mayLose && len(l.lost) > 0 {
		l.t.Errorf("%d losses of allowed traffic, first: %s", len(l.lost), l.lost[0])
	}
	l.t.Logf("%d denied packets sent, 0 want on the wire; %d answers of allowed flows", l.sent.Load(), l.answers.Load())
	if err := l.tap.Close(); err != nil {
		l.t.Error(err)
	}
}

func newWorld(t *testing.T, name string) *harness.World {
	t.Helper()
	w := harness.New(t, lab.DefaultSpec(name))
	// The control: with no policy the denied packets do arrive.
	front := w.Pod("shop/frontend")
	tap, err := w.Lab.Tap(t.Context(), front)
	if err != nil {
		t.Fatal(err)
	}
	tok := packettest.NewToken("control")
	if _, err := front.Echo(t.Context(), "udp", evil, tok[:]); err != nil {
		t.Fatal(err)
	}
	for i := 0; tap.Count(tok) == 0; i++ {
		if i == 200 {
			t.Fatal("the sniffers see nothing with no policy")
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err := tap.Close(); err != nil {
		t.Fatal(err)
	}
	w.Write("policy.yaml", policy)
	return w
}

// rounds is how often the agent is killed: 200 unless the environment says otherwise.
func rounds(t *testing.T) int {
	t.Helper()
	if s := os.Getenv("POSTERN_KILLS"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	return 200
}

// TestKill kills the agent at random moments of its life: while it loads,
// adopts, applies, or idles.
func TestKill(t *testing.T) {
	w := newWorld(t, "ft-kill")
	l := startLoad(t, w)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	for i := range rounds(t) {
		// A change that allows and denies nothing that the load does.
		extra := fmt.Sprintf(`
apiVersion: postern.dev/v1alpha1
kind: EgressPolicy
metadata: {name: extra, namespace: shop}
spec: {podSelector: {}, egress: [{to: [{networks: [192.0.2.%d/32]}]}]}
`, i%250)
		tmp := filepath.Join(w.Agent.Manifests, ".extra.tmp")
		if err := os.WriteFile(tmp, []byte(extra), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(tmp, filepath.Join(w.Agent.Manifests, "extra.yaml")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(rng.IntN(30)) * time.Millisecond)
		if err := w.Agent.Kill(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(rng.IntN(20)) * time.Millisecond)
		if err := w.Agent.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(rng.IntN(250)) * time.Millisecond)
		if t.Failed() {
			break
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := w.Agent.WaitReady(ctx); err != nil {
		t.Error(err)
	}
	l.stop(false)
}

// rival loads a program that returns ret and does nothing else.
func rival(t *testing.T, ret int32) *ebpf.Program {
	t.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "rival", Type: ebpf.SchedCLS, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, ret), asm.Return()},
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestRivalPrograms attaches other agents' programs before and after ours:
// one that ends the chain at the head must not open anything, and is displaced.
func TestRivalPrograms(t *testing.T) {
	w := newWorld(t, "ft-rival")
	l := startLoad(t, w)
	defer l.stop(true)
	for _, tc := range []struct {
		name   string
		ret    int32
		anchor link.Anchor
	}{
		{"head accepts (TCX_PASS)", 0, link.Head()}, {"head passes on (TCX_NEXT)", -1, link.Head()}, {"tail accepts", 0, link.Tail()},
	} {
		for _, hook := range []ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress} {
			p := rival(t, tc.ret)
			var rl link.Link
			err := w.Agent.Node.Do(func() error {
				var err error
				rl, err = link.AttachTCX(link.TCXOptions{Interface: l.front.HostIfindex, Program: p, Attach: hook, Anchor: tc.anchor})
				return err
			})
			if err != nil {
				t.Fatalf("%s: %v", tc.name, err)
			}
			// Two audits later ours is the first again.
			time.Sleep(2200 * time.Millisecond)
			w.Allowed(l.front, "tcp", web)
			w.Denied(l.front, "tcp", evil)
			if err := rl.Close(); err != nil {
				t.Fatal(err)
			}
			if err := p.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// nftablesFlush removes our table from a node or, as nft flush ruleset does, all tables.
// Neither takes that of a living agent.
func nftablesFlush(t *testing.T, w *harness.World, all, alive bool) {
	t.Helper()
	err := w.Agent.Node.Do(func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		if all {
			c.FlushRuleset()
			if err := c.Flush(); err != nil {
				return err
			}
		}
		tables, err := c.ListTables()
		if err != nil {
			return err
		}
		left := 0
		for _, tb := range tables {
			if tb.Name != "postern" {
				continue
			}
			left++
			c.DelTable(tb)
			if err := c.Flush(); err == nil && alive {
				t.Error("the catch-all of a living agent could be deleted")
			}
		}
		if alive && left != 1 {
			t.Errorf("a living agent has %d tables, want 1", left)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// restart starts a killed agent and waits until it enforces.
func restart(t *testing.T, w *harness.World) {
	t.Helper()
	if err := w.Agent.Start(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := w.Agent.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
}

// TestFlush removes our table and pins by force, with and without an agent to mend it.
func TestFlush(t *testing.T) {
	w := newWorld(t, "ft-flush")
	l := startLoad(t, w)
	bpffs, err := w.Lab.BPFFS(w.Agent.Node.Name)
	if err != nil {
		t.Fatal(err)
	}
	unpin := func() {
		t.Helper()
		pins, err := filepath.Glob(filepath.Join(bpffs, "postern", "links", "*"))
		if err != nil || len(pins) == 0 {
			t.Fatalf("pins: %v, %v", pins, err)
		}
		for _, p := range pins {
			if err := os.Remove(p); err != nil {
				t.Fatal(err)
			}
		}
	}
	for range 5 {
		nftablesFlush(t, w, false, true)
		unpin() // the agent holds the links and pins them again
		time.Sleep(1200 * time.Millisecond)
	}
	if err := w.Agent.Kill(); err != nil {
		t.Fatal(err)
	}
	nftablesFlush(t, w, false, false) // tcx alone goes on
	time.Sleep(300 * time.Millisecond)
	restart(t, w)
	l.stop(false)

	// Without agent, the pins removed: the programs are gone, and the catch-all
	// makes an outage of it, not a leak.
	l = startLoad(t, w)
	if err := w.Agent.Kill(); err != nil {
		t.Fatal(err)
	}
	unpin()
	time.Sleep(500 * time.Millisecond)
	l.stop(true)
}

// TestFlushRuleset empties nftables, which takes the lab's masquerading too, and
// allowed traffic with it.
func TestFlushRuleset(t *testing.T) {
	w := newWorld(t, "ft-ruleset")
	l := startLoad(t, w)
	time.Sleep(300 * time.Millisecond)
	nftablesFlush(t, w, true, true)
	time.Sleep(300 * time.Millisecond)
	if err := w.Agent.Kill(); err != nil {
		t.Fatal(err)
	}
	nftablesFlush(t, w, true, false)
	time.Sleep(300 * time.Millisecond)
	restart(t, w)
	l.stop(true)
}

// TestManifestsHalfWritten writes a policy in pieces; what was there stays.
func TestManifestsHalfWritten(t *testing.T) {
	w := newWorld(t, "ft-half")
	l := startLoad(t, w)
	path := filepath.Join(w.Agent.Manifests, "policy.yaml")
	for i := range 20 {
		cut := 1 + (i*37)%(len(policy)-1)
		for policy[cut-1] == '\n' {
			cut++ // a file that ends with a line is whole
		}
		if err := os.WriteFile(path, []byte(policy[:cut]), 0o600); err != nil {
			t.Fatal(err)
		}
		time.Sleep(60 * time.Millisecond)
		if err := os.WriteFile(path, []byte(policy), 0o600); err != nil {
			t.Fatal(err)
		}
		time.Sleep(60 * time.Millisecond)
	}
	l.stop(false)
}

// TestManifestsRewritten writes policies in place, without a newline at their end,
// faster than they can settle, while the agent runs and while it starts: what they
// deny stays denied, and a new one is enforced.
func TestManifestsRewritten(t *testing.T) {
	w := newWorld(t, "ft-rewrite")
	l := startLoad(t, w)
	stop := make(chan struct{})
	done := make(chan error, 1)
	go func() {
		for {
			for name, text := range map[string]string{"policy.yaml": policy, "runner.yaml": strings.ReplaceAll(policy, "shop", "ci")} {
				if err := os.WriteFile(filepath.Join(w.Agent.Manifests, name), []byte(strings.TrimSpace(text)), 0o600); err != nil {
					done <- err
					return
				}
			}
			select {
			case <-stop:
				done <- nil
				return
			case <-time.After(400 * time.Millisecond):
			}
		}
	}()
	time.Sleep(3 * time.Second)
	w.Denied(w.Pod("ci/runner"), "tcp", evil)
	if err := w.Agent.Kill(); err != nil {
		t.Fatal(err)
	}
	restart(t, w)
	w.Denied(w.Pod("ci/runner"), "tcp", evil)
	time.Sleep(time.Second)
	close(stop)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	l.stop(false)
}

// TestStateFull restarts the agent when it could not save who its pods are: a Pod
// object that then names the interface inherits no connection (I3), and one whose
// name was saved keeps its own.
func TestStateFull(t *testing.T) {
	for _, tc := range []struct {
		name          string
		full, renamed bool
		lives         bool // a connection that policy allows goes on
	}{
		{"full", true, true, false}, {"room", false, true, false}, {"same", false, false, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			testenv.RequireRoot(t)
			state := t.TempDir()
			if err := unix.Mount("tmpfs", state, "tmpfs", 0, "size=64k"); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := unix.Unmount(state, unix.MNT_DETACH); err != nil {
					t.Error(err)
				}
			})
			fill := filepath.Join(state, "fill")
			if tc.full {
				if err := os.WriteFile(fill, make([]byte, 1<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
					t.Fatalf("fill: %v", err)
				}
			}
			w := harness.New(t, lab.DefaultSpec("ft-state"), "--state-dir", state)
			w.Write("policy.yaml", policy)
			s, err := w.Agent.Client.Status(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			said := slices.ContainsFunc(s.Problems, func(p control.Problem) bool { return strings.Contains(p.Message, "no space left") })
			if said != tc.full {
				t.Errorf("problems: %+v", s.Problems)
			}
			c, err := w.Pod("shop/frontend").Dial(t.Context(), "tcp", web.String())
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = c.Close() }()
			lives := func() bool {
				if err := c.SetDeadline(time.Now().Add(700 * time.Millisecond)); err != nil {
					t.Fatal(err)
				}
				_, werr := c.Write([]byte("hello\n"))
				_, rerr := c.Read(make([]byte, 100))
				return werr == nil && rerr == nil
			}
			if !lives() {
				t.Fatal("the connection does not work")
			}
			if err := w.Agent.Kill(); err != nil {
				t.Fatal(err)
			}
			if tc.full {
				if err := os.Remove(fill); err != nil {
					t.Fatal(err)
				}
			}
			if tc.renamed {
				path := filepath.Join(w.Agent.Manifests, "lab", "lab-pod_shop_frontend.yaml")
				text, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				next := bytes.ReplaceAll(text, []byte("  name: frontend\n"), []byte("  name: another\n"))
				if bytes.Equal(next, text) {
					t.Fatalf("no pod to rename in\n%s", text)
				}
				if err := os.WriteFile(path, next, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			restart(t, w)
			if got := lives(); got != tc.lives {
				t.Errorf("after the restart the connection goes on: %t, want %t", got, tc.lives)
			}
			w.Allowed(w.Pod("shop/frontend"), "tcp", web)
			w.Denied(w.Pod("shop/frontend"), "tcp", evil)
		})
	}
}

// TestMapsFull fills what the kernel's programs write besides flows, with the agent
// dead: drops that can't be counted by rule and events that nobody reads are
// counted as such, and change no verdict.
func TestMapsFull(t *testing.T) {
	w := newWorld(t, "ft-maps")
	l := startLoad(t, w)
	if err := w.Agent.Kill(); err != nil {
		t.Fatal(err)
	}
	bpffs, err := w.Lab.BPFFS(w.Agent.Node.Name)
	if err != nil {
		t.Fatal(err)
	}
	pin := filepath.Join(bpffs, "postern", "rule_stats")
	m, err := ebpf.LoadPinnedMap(pin, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = m.Close() }()
	// Another incarnation's counters, until no more fit.
	type key struct{ Gen, Rule uint32 }
	type stats struct{ Packets, Bytes uint64 }
	perCPU := make([]stats, ebpf.MustPossibleCPU())
	n := uint32(0)
	for ; ; n++ {
		err := m.Put(key{1 << 30, n}, perCPU)
		// The kernel takes memory for it in the background.
		for i := 0; errors.Is(err, unix.ENOMEM) && i < 500; i++ {
			time.Sleep(10 * time.Millisecond)
			err = m.Put(key{1 << 30, n}, perCPU)
		}
		if errors.Is(err, unix.E2BIG) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d counters fill the map", n)
	// More drops than the ring has room for events.
	err = l.front.Do(func() error {
		for i := range 60000 {
			c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(lab.EvilV4, uint16(1024+i))))
			if err != nil {
				return err
			}
			_, _ = c.Write(l.token[:])
			if err := c.Close(); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Agent.Start(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := w.Agent.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	s, err := w.Agent.Client.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if s.EventsLost == 0 {
		t.Error("no events were lost: the ring was not full")
	}
	w.Allowed(l.front, "tcp", web)
	w.Denied(l.front, "tcp", evil)
	l.stop(false)
}

// TestNoRoomForPolicy makes a change of policy fail halfway, for want of file
// descriptors: what was in force stays so, status says it, and the change comes
// when there is room again.
func TestNoRoomForPolicy(t *testing.T) {
	w := newWorld(t, "ft-room")
	// What was removed leaves places behind that later rulesets take.
	var many strings.Builder
	for i := range 300 {
		fmt.Fprintf(&many, "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p%d, namespace: ci}\nspec: {podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.%d.%d.0/24}}]}]}\n", i, i/200, i%200)
	}
	w.Write("many.yaml", many.String())
	const deny = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: deny-all, namespace: shop}\nspec: {podSelector: {}, policyTypes: [Ingress, Egress]}\n"
	w.Write("policy.yaml", deny+"---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: all, namespace: shop}\nspec: {podSelector: {matchLabels: {app: frontend}}, policyTypes: [Egress], egress: [{}]}\n")
	front := w.Pod("shop/frontend")
	w.Allowed(front, "tcp", evil)
	w.Write("policy.yaml", deny)
	w.Denied(front, "tcp", evil)

	pid := w.Agent.PID()
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	var old unix.Rlimit
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &old); err != nil {
		t.Fatal(err)
	}
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(len(fds) + 3), Max: old.Max}, nil); err != nil {
		t.Fatal(err)
	}
	// More than the present world has room for.
	var big strings.Builder
	big.WriteString(deny + "---\napiVersion: postern.dev/v1alpha1\nkind: ClusterDestinationSet\nmetadata: {name: big}\nspec:\n  networks:\n")
	rng := rand.New(rand.NewPCG(1, 1))
	for range 60000 {
		fmt.Fprintf(&big, "  - %s/32\n", netip.AddrFrom4([4]byte{byte(1 + rng.IntN(9)), byte(rng.IntN(256)), byte(rng.IntN(256)), byte(rng.IntN(256))}))
	}
	big.WriteString("---\napiVersion: postern.dev/v1alpha1\nkind: EgressPolicy\nmetadata: {name: front, namespace: shop}\nspec: {podSelector: {matchLabels: {app: frontend}}, egress: [{to: [{clusterDestinationSets: [{name: big}]}, {networks: [203.0.113.80/32]}]}]}\n")
	tmp := filepath.Join(w.Agent.Manifests, ".tmp")
	if err := os.WriteFile(tmp, []byte(strings.Replace(big.String(), "clusterDestinationSets: [{name: big}]", "destinationSets: [{kind: ClusterDestinationSet, name: big}]", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(tmp, filepath.Join(w.Agent.Manifests, "policy.yaml")); err != nil {
		t.Fatal(err)
	}
	// A pod that comes now has no ruleset in the kernel: nothing of it passes.
	fresh, err := w.Lab.AddPod(t.Context(), lab.PodSpec{Namespace: "shop", Name: "fresh", Labels: map[string]string{"app": "fresh"}}, lab.AddPodOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Lab.Manifests(filepath.Join(w.Agent.Manifests, "lab")); err != nil {
		t.Fatal(err)
	}
	out, err := w.Lab.SniffHost(t.Context(), w.Lab.Outside())
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Second)
	tok := packettest.NewToken("fresh")
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		w.Denied(front, "udp", evil)
		if err := fresh.Send(lab.Raw, packettest.Build(fresh.Eth(), packettest.IPv4{Src: fresh.IPs[0], Dst: lab.EvilV4},
			packettest.TCP{SrcPort: 4000, DstPort: 7, Seq: 1, Ack: 1, Flags: packettest.ACK}, packettest.Payload(tok[:]))); err != nil {
			t.Fatal(err)
		}
	}
	if err := out.Verify(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := out.Count(tok); n != 0 {
		t.Errorf("%d packets of a pod without a ruleset passed", n)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	if w.Reaches(front, "tcp", web, 100*time.Millisecond) {
		t.Error("the change went through: the test makes nothing fail")
	}
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &old, nil); err != nil {
		t.Fatal(err)
	}
	s, err := w.Agent.Client.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Problems) == 0 {
		t.Error("status says nothing of it")
	}
	for range 100 {
		if w.Reaches(front, "tcp", web, 100*time.Millisecond) {
			break
		}
	}
	w.Allowed(front, "tcp", web)
	w.Denied(front, "tcp", evil)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := w.Agent.WaitReady(ctx); err != nil {
		t.Error(err)
	}
}

// TestServicesFull fills what the kernel knows of pods behind Services: a deny is
// enforced even so.
func TestServicesFull(t *testing.T) {
	w := newWorld(t, "ft-services")
	cart := w.Pod("shop/cart")
	bpffs, err := w.Lab.BPFFS(w.Agent.Node.Name)
	if err != nil {
		t.Fatal(err)
	}
	m, err := ebpf.LoadPinnedMap(filepath.Join(bpffs, "postern", "self_backends"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = m.Close() }()
	for n := uint32(0); ; n++ {
		if err := m.Put([2]uint32{1 << 30, n}, uint32(1)); err != nil {
			if !errors.Is(err, unix.E2BIG) {
				t.Fatal(err)
			}
			break
		}
	}
	if err := w.Agent.Remove(t.Context(), "policy.yaml"); err != nil {
		t.Fatal(err)
	}
	w.Allowed(cart, "udp", evil)
	put := func(name, text string) {
		t.Helper()
		tmp := filepath.Join(w.Agent.Manifests, ".tmp")
		if err := os.WriteFile(tmp, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(tmp, filepath.Join(w.Agent.Manifests, name)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
	}
	put("service.yaml", `
apiVersion: v1
kind: Service
metadata: {name: more, namespace: shop}
spec: {selector: {app: cart}, clusterIP: 10.96.77.7, clusterIPs: [10.96.77.7], ports: [{name: a, port: 99, protocol: UDP}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: more-1, namespace: shop, labels: {kubernetes.io/service-name: more}}
addressType: IPv4
endpoints: [{addresses: [`+cart.IPs[0].String()+`], conditions: {ready: true}}]
ports: [{name: a, port: 7, protocol: UDP}]
`)
	s, err := w.Agent.Client.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Problems) == 0 {
		t.Error("status says nothing of it")
	}
	put("policy.yaml", policy)
	w.Denied(cart, "udp", evil)
}

// TestFlowTableFull fills one pod's quota; its denied flows stay denied, other
// pods lose nothing.
func TestFlowTableFull(t *testing.T) {
	w := newWorld(t, "ft-full")
	l := startLoad(t, w)
	greedy := w.Pod("ci/runner")
	err := greedy.Do(func() error {
		for i := range 20000 {
			c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(lab.WebV4, uint16(1024+i))))
			if err != nil {
				return err
			}
			if _, err := c.Write([]byte("x")); err != nil {
				_ = c.Close()
				continue
			}
			if err := c.Close(); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	s, err := w.Agent.Client.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if s.FlowsRefused == 0 {
		t.Error("the quota of 16,384 flows was never reached")
	}
	l.stop(false)
}
