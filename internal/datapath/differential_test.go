package datapath_test

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/postern-dev/postern/internal/datapath"
	"github.com/postern-dev/postern/internal/datapath/mapstate"
	"github.com/postern-dev/postern/internal/flow"
	"github.com/postern-dev/postern/internal/packet"
	"github.com/postern-dev/postern/internal/packet/packettest"
	"github.com/postern-dev/postern/internal/policy"
	"github.com/postern-dev/postern/internal/policy/policytest"
)

// comparisons is how many first packets the kernel and Evaluate are compared
// on. `make test` asks for 1,000,000 through the environment.
func comparisons(t *testing.T) int {
	t.Helper()
	if s := os.Getenv("POSTERN_COMPARISONS"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatalf("POSTERN_COMPARISONS=%q: %v", s, err)
		}
		return n
	}
	return 50_000
}

// TestKernelAgreesWithEvaluate gives the kernel's programs the first packet of
// random and boundary flows and compares verdict and rule with the oracle (I10).
func TestKernelAgreesWithEvaluate(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("POSTERN_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("seed %d", seed)
	want, done := comparisons(t), 0
	for round := uint64(0); done < want; round++ {
		ok := t.Run(fmt.Sprintf("round-%d", round), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, round))
			s := policytest.RandomSnapshot(rng, 6+rng.IntN(14))
			n, bad := compareKernel(t, s, seed, round, min(want-done, 20_000))
			done += n
			if bad == nil {
				return
			}
			if os.Getenv("POSTERN_NOSHRINK") != "" {
				t.Fatal(bad)
			}
			small := policytest.Shrink(s, func(s *policy.Snapshot) bool {
				var failed bool
				t.Run("shrink", func(t *testing.T) {
					_, b := compareOne(t, s, bad.pod, bad.dir, []packet.Tuple{bad.tuple})
					failed = b != nil
				})
				return failed
			})
			t.Fatalf("seed %d round %d: %v\nsmallest: %+v", seed, round, bad, small)
		})
		if !ok {
			return
		}
	}
	t.Logf("%d comparisons", done)
}

type mismatch struct {
	pod   policy.PodKey
	dir   policy.Direction
	tuple packet.Tuple
	text  string
}

func (m *mismatch) String() string { return fmt.Sprintf("%s %s %s: %s", m.pod, m.dir, m.tuple, m.text) }

func compareOne(t *testing.T, s *policy.Snapshot, pod policy.PodKey, dir policy.Direction, tuples []packet.Tuple) (int, *mismatch) {
	t.Helper()
	r := newRig(t, datapath.Config{NoCatchAll: true})
	c := r.load(s)
	if _, ok := r.pods[pod]; !ok {
		return 0, nil
	}
	ev := newEvents(t, r)
	ev.stage(s, c)
	return ev.compare(s, pod, dir, tuples)
}

func compareKernel(t *testing.T, s *policy.Snapshot, seed, round uint64, budget int) (int, *mismatch) {
	t.Helper()
	r := newRig(t, datapath.Config{NoCatchAll: true})
	c := r.load(s)
	ev := newEvents(t, r)
	ev.stage(s, c)
	rng := rand.New(rand.NewPCG(seed^1, round))
	done := 0
	per := max(budget/(2*max(len(r.pods), 1)), 1)
	for _, pod := range policytest.Endpoints(s) {
		if _, ok := r.pods[pod]; !ok {
			continue
		}
		for _, dir := range policy.Directions {
			n, bad := ev.compare(s, pod, dir, policytest.Tuples(rng, s, pod, dir, per))
			done += n
			if bad != nil {
				return done, bad
			}
		}
	}
	return done, nil
}

// events runs frames and pairs them with what the ring buffer tells.
type events struct {
	t      *testing.T
	r      *rig
	reader *datapath.EventReader
	mark   uint32 // that frames to a pod have
	// staged is what the staged rulesets come to; nil if there are none.
	staged    *policy.Compiled
	frontends map[policy.Frontend]policy.Target
}

func newEvents(t *testing.T, r *rig) *events {
	t.Helper()
	reader, err := r.d.Events()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := reader.Close(); err != nil {
			t.Error(err)
		}
	})
	return &events{t: t, r: r, reader: reader}
}

// stage gives each pod another one's rulesets as its staged ones. They must be
// judged as well, and change nothing (I9).
func (e *events) stage(s *policy.Snapshot, c *policy.Compiled) {
	e.t.Helper()
	keys := slices.SortedFunc(maps.Keys(e.r.pods), func(a, b policy.PodKey) int { return cmp.Compare(a.String(), b.String()) })
	staged := *c
	staged.Endpoints = map[policy.PodKey][2]string{}
	for i, key := range keys {
		b := binding(c, key)
		b.Staged = c.Endpoints[keys[(i+1)%len(keys)]]
		staged.Endpoints[key] = b.Staged
		if err := e.r.d.Arm(e.r.pods[key], b); err != nil {
			e.t.Fatal(err)
		}
	}
	e.staged, e.frontends = &staged, policy.Frontends(s.Services, s.Nodes)
}

// differsStaged says what the staged rulesets' verdict is and should not be.
func (e *events) differsStaged(pod policy.PodKey, dir policy.Direction, tuple packet.Tuple, ev flow.Event) string {
	if e.staged == nil || ev.Rule < uint32(flow.ReasonMax) {
		return "" // decided before any ruleset
	}
	want := policy.LookupService(e.staged, e.frontends, pod, dir, tuple)
	switch want.Rule.Index {
	case policy.IndexNoBackend, policy.IndexSelf, policy.IndexDeferred:
		return "" // reasons, of which the kernel keeps the enforced ruleset's
	}
	if ev.StagedVerdict == want.Verdict && (ev.StagedVerdict == policy.Deferred || e.r.rule(ev.StagedRule) == want.Rule) {
		return ""
	}
	return fmt.Sprintf("staged: kernel %v by %v (%d), want %v by %v", ev.StagedVerdict, e.r.rule(ev.StagedRule), ev.StagedRule, want.Verdict, want.Rule)
}

// verdict runs one frame and returns tcx's answer and the event of it.
func (e *events) verdict(spec datapath.EndpointSpec, dir policy.Direction, frame []byte) (uint32, flow.Event) {
	e.t.Helper()
	ret := e.r.runMark(spec, dir, frame, e.mark)
	for {
		e.reader.SetDeadline(time.Now().Add(2 * time.Second))
		ev, err := e.reader.Read()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return ret, flow.Event{}
		}
		if err != nil {
			e.t.Fatal(err)
		}
		if ev.Type == flow.EventVerdict {
			return ret, ev
		}
	}
}

func (e *events) compare(s *policy.Snapshot, pod policy.PodKey, dir policy.Direction, tuples []packet.Tuple) (int, *mismatch) {
	spec := e.r.pods[pod]
	host := hostMAC(e.t, spec)
	done := 0
	e.mark = 0
	if dir == policy.Ingress {
		e.mark = datapath.DefaultMark // the pod's own packets, which come back
	}
	for _, tuple := range tuples {
		local := tuple.Src
		if dir == policy.Ingress {
			local = tuple.Dst
		}
		frame := frameOf(tuple, dir, host)
		if frame == nil || !slices.Contains(spec.Addrs, packet.Unmap(local)) {
			continue
		}
		if err := e.r.d.ResetFlows(spec.Ifindex); err != nil {
			e.t.Fatal(err)
		}
		want := policy.Evaluate(s, pod, dir, tuple)
		ret, ev := e.verdict(spec, dir, frame)
		if ev.Verdict == policy.Deferred && manyBackends(s, tuple) {
			continue // more kinds of backends than are listed: left to the look after DNAT
		}
		done++
		text := differs(e.r, want, ret, ev)
		if text == "" {
			text = e.differsStaged(pod, dir, tuple, ev)
		}
		if text != "" {
			text = fmt.Sprintf("%s (after %d; event %+v; class %#x)", text, done, ev, e.r.d.Contents().Class(packet.Unmap(tuple.Src)))
			return done, &mismatch{pod, dir, tuple, text}
		}
	}
	return done, nil
}

// manyBackends reports whether the destination is a Service with more backends
// than the kernel's entry has room for kinds of them.
func manyBackends(s *policy.Snapshot, t packet.Tuple) bool {
	target, ok := policy.Frontends(s.Services, s.Nodes)[policy.Frontend{Addr: packet.Unmap(t.Dst), Protocol: t.Protocol, Port: t.DstPort}]
	return ok && len(target.Backends) > mapstate.MaxCombos
}

func differs(r *rig, want policy.Decision, ret uint32, ev flow.Event) string {
	got := policy.Dropped
	if ret == tcxNext {
		got = policy.Forwarded
	} else if ret != tcxDrop {
		return fmt.Sprintf("tcx answer %d", int32(ret))
	}
	if ev.Rule == 0 {
		return "no event"
	}
	if ret == tcxNext && ev.Verdict == policy.Deferred {
		got = policy.Deferred
	}
	// A pod behind its own Service: the kernel leaves it to the look after DNAT,
	// or names the rule that accepts the other backends.
	if want.Verdict == policy.Forwarded && want.Rule.Index == policy.IndexSelf && got != policy.Dropped {
		return ""
	}
	if got != want.Verdict {
		return fmt.Sprintf("kernel %v by %v (%d), Evaluate %v by %v", got, r.rule(ev.Rule), ev.Rule, want.Verdict, want.Rule)
	}
	switch want.Rule.Index {
	case policy.IndexSelf:
		if ev.Rule == uint32(flow.ReasonSelf) {
			return ""
		}
	case policy.IndexNoBackend:
		if ev.Rule == uint32(flow.ReasonNoBackend) {
			return ""
		}
	}
	if got == policy.Deferred || r.rule(ev.Rule) == want.Rule {
		return ""
	}
	if ev.Rule == uint32(flow.ReasonUngoverned) && want.Rule.Index == policy.IndexNoMatch {
		return ""
	}
	return fmt.Sprintf("kernel's rule %v (%d), Evaluate's %v", r.rule(ev.Rule), ev.Rule, want.Rule)
}

// frameOf builds the first packet of a flow; nil if no such frame can reach the
// decision (the parser has tests of its own).
func frameOf(t packet.Tuple, dir policy.Direction, host packettest.MAC) []byte {
	t.Src, t.Dst = packet.Unmap(t.Src), packet.Unmap(t.Dst)
	if t.Src.Is4() != t.Dst.Is4() {
		return nil
	}
	if remote := map[policy.Direction]netip.Addr{policy.Egress: t.Dst, policy.Ingress: t.Src}[dir]; martian(remote) || (dir == policy.Egress && martian(packet.Judged(remote))) {
		return nil
	}
	src, dst := packettest.MACFrom(podMAC), host
	if dir == policy.Ingress {
		src, dst = dst, src
	}
	v6only := t.Protocol == packet.ProtocolICMPv6
	// ICMP is IPv4's; the others are extension headers of IPv6.
	v4only := slices.Contains([]packet.Protocol{0, packet.ProtocolICMP, 43, 44, 59, 60, 135, 139, 140}, t.Protocol)
	if (v6only && t.Src.Is4()) || (v4only && t.Src.Is6()) {
		return nil
	}
	return packettest.Simple(src, dst, uint8(t.Protocol), netip.AddrPortFrom(t.Src, t.SrcPort), netip.AddrPortFrom(t.Dst, t.DstPort), []byte("0123456789abcdef"))
}
