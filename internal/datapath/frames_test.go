package datapath_test

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/postern-dev/postern/internal/datapath"
	"github.com/postern-dev/postern/internal/flow"
	"github.com/postern-dev/postern/internal/packet"
	"github.com/postern-dev/postern/internal/packet/packettest"
	"github.com/postern-dev/postern/internal/policy"
)

// framesWanted is how many frames the kernel and the reader in Go are compared
// on. `make test` asks for more through the environment.
func framesWanted(t *testing.T) int {
	t.Helper()
	if s := os.Getenv("POSTERN_FRAMES"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatalf("POSTERN_FRAMES=%q: %v", s, err)
		}
		return n
	}
	return 30_000
}

// TestKernelAgreesOnFrames gives the kernel's programs short conversations of
// right, wrong and random frames, and compares verdict, reason and tuple with a
// second opinion: packet.Read, then the rules of docs/design/datapath.md as
// frameModel has them, then policy.Evaluate (I1, I10).
func TestKernelAgreesOnFrames(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("POSTERN_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("seed %d", seed)
	w := newFrameWorld(t)
	rng := rand.New(rand.NewPCG(seed, 0))
	seen := map[string]int{}
	for n := framesWanted(t); w.compared < n; {
		pod := w.pods[rng.IntN(len(w.pods))]
		g := generator{rng: rng, pod: pod}
		talk := g.talk()
		bad := w.play(pod, talk, seen)
		if bad == "" {
			continue
		}
		after := w.compared
		talk = w.shrink(pod, talk)
		t.Fatalf("seed %d, after %d frames: %s\nsmallest, at the pod %s:\n%s%s", seed, after, bad, pod.key, talk, w.play(pod, talk, nil))
	}
	// A generator that reaches nothing proves nothing.
	var lines []string
	for _, what := range slices.Sorted(maps.Keys(seen)) {
		lines = append(lines, fmt.Sprintf("%s %d", what, seen[what]))
	}
	t.Logf("%d frames: %s", w.compared, strings.Join(lines, ", "))
	if w.compared >= 30_000 {
		for _, what := range []string{
			"accept", "accept later fragment", "accept ICMP error", "accept neighbour", "accept live", "accept not understood",
			"vlan", "source-mac", "destination-mac", "ethertype", "malformed", "ip-options", "ipv6-extension", "source-address", "arp", "ndp", "fragment",
			"tcp-flags", "no-flow", "icmp-error", "martian", "rule",
		} {
			if seen[what] < 10 {
				t.Errorf("only %d frames met %q", seen[what], what)
			}
		}
	}
}

// sent is one frame of a conversation with a hook.
type sent struct {
	dir      policy.Direction
	frame    []byte
	segments int  // GSO
	marked   bool // received: it came through some pod's hook
}

type talk []sent

func (c talk) String() string {
	var sb strings.Builder
	for _, s := range c {
		fmt.Fprintf(&sb, "  %s, %d segments, marked %v: %s\n", s.dir, s.segments, s.marked, hex.EncodeToString(s.frame))
	}
	return sb.String()
}

// framePod is a pod and what is known of its interface.
type framePod struct {
	key      policy.PodKey
	spec     datapath.EndpointSpec
	host     packettest.MAC
	governed [2]bool
}

type frameWorld struct {
	t    *testing.T
	r    *rig
	ev   *events
	s    *policy.Snapshot
	pods []*framePod
	// compared counts the frames that were played.
	compared int
}

// newFrameWorld has pods that are governed in both directions, in one and in
// none, routed and on a bridge, under a policy with something of everything.
func newFrameWorld(t *testing.T) *frameWorld {
	t.Helper()
	prefixes := func(list ...string) (out []policy.Peer) {
		p := policy.Peer{Kind: policy.PeerNetworks}
		for _, s := range list {
			p.Networks = append(p.Networks, netip.MustParsePrefix(s))
		}
		return []policy.Peer{p}
	}
	ports := func(p packet.Protocol, first, last uint16) policy.PortMatch {
		return policy.PortMatch{Protocol: p, First: first, Last: last}
	}
	egress := []policy.Rule{
		{Index: 0, Action: policy.Accept, Peers: prefixes("192.0.2.0/24", "2001:db8::/32"), Ports: []policy.PortMatch{
			ports(packet.ProtocolTCP, 80, 80), ports(packet.ProtocolTCP, 1000, 2000), ports(packet.ProtocolUDP, 53, 53), ports(packet.ProtocolSCTP, 5000, 5000),
			ports(packet.ProtocolICMP, 0, 0), ports(packet.ProtocolICMPv6, 0, 0), ports(packet.ProtocolESP, 0, 0),
		}},
		{Index: 1, Action: policy.Accept, Peers: prefixes("198.51.100.0/24", "2001:db8:5::/48", "fe80::/10", "ff02::/16"), AnyPort: true},
	}
	ingress := []policy.Rule{
		{Index: 0, Action: policy.Accept, Peers: prefixes("192.0.2.0/25", "2001:db8::/33"), Ports: []policy.PortMatch{ports(packet.ProtocolTCP, 8080, 8080), ports(packet.ProtocolUDP, 53, 5353)}},
		{Index: 1, Action: policy.Accept, Peers: prefixes("198.51.100.0/25", "2001:db8:5::/49"), AnyPort: true},
	}
	w := &frameWorld{t: t, r: newRig(t, datapath.Config{NoCatchAll: true}), s: &policy.Snapshot{Tiers: policy.BuiltinTiers(), Nodes: []policy.Node{{Name: "node1", IPs: []netip.Addr{netip.MustParseAddr("10.0.0.254")}}}}}
	isolates := map[string][2]bool{
		"both": {policy.Egress: true, policy.Ingress: true}, "egress": {policy.Egress: true}, "free": {},
		"bridged": {policy.Egress: true, policy.Ingress: true}, "bridged-free": {},
	}
	for i, name := range []string{"both", "egress", "free", "bridged", "bridged-free"} {
		last := byte(i + 1)
		w.s.Pods = append(w.s.Pods, policy.Pod{
			Namespace: name, Name: "pod", UID: name, Node: "node1",
			IPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, last}), netip.AddrFrom16([16]byte{0: 0xfd, 15: last})},
		})
		if isolates[name] == [2]bool{} {
			continue
		}
		p := policy.Policy{
			Kind: policy.KindEgressPolicy, Namespace: name, Name: "p", Tier: policy.TierNetworkPolicy, Isolates: isolates[name],
			Subject: policy.Subject{Selects: true, Namespace: name},
		}
		p.Rules[policy.Egress] = egress
		if isolates[name][policy.Ingress] {
			p.Rules[policy.Ingress] = ingress
		}
		w.s.Policies = append(w.s.Policies, p)
	}
	c := w.r.load(w.s)
	for i := range w.s.Pods {
		key := w.s.Pods[i].Key()
		spec := w.r.pods[key]
		if strings.HasPrefix(w.s.Pods[i].Namespace, "bridged") {
			spec.Bridged = true
			if err := w.r.d.Arm(spec, binding(c, key)); err != nil {
				t.Fatal(err)
			}
		}
		b := binding(c, key)
		if b.Governed != isolates[w.s.Pods[i].Namespace] {
			t.Fatalf("%s is governed %v", key, b.Governed)
		}
		w.pods = append(w.pods, &framePod{key: key, spec: spec, host: hostMAC(t, spec), governed: b.Governed})
	}
	w.ev = newEvents(t, w.r)
	return w
}

// play runs a conversation in an empty flow table and says where kernel and
// model part, or "".
func (w *frameWorld) play(pod *framePod, c talk, seen map[string]int) string {
	w.t.Helper()
	m := frameModel{s: w.s, pod: pod}
	defer func() {
		if err := w.r.d.ResetFlows(pod.spec.Ifindex); err != nil {
			w.t.Fatal(err)
		}
	}()
	for i, s := range c {
		// The kernel gives no frame to a test run whose fixed IP header is cut short.
		if short(s.frame) {
			continue
		}
		ctx := skb{Ifindex: uint32(pod.spec.Ifindex), GSOSegs: uint32(s.segments)}
		if s.marked {
			ctx.Mark = datapath.DefaultMark
		}
		ret, err := w.r.d.Program(s.dir).Run(&ebpf.RunOptions{Data: s.frame, Context: &ctx})
		if err != nil {
			w.t.Fatalf("test run of %d bytes: %v\n%x", len(s.frame), err, s.frame)
		}
		w.compared++
		told := w.told()
		want := m.judge(s)
		if seen != nil {
			seen[want.class()]++
		}
		if text := w.compare(want, ret, told, s); text != "" {
			return fmt.Sprintf("frame %d: %s", i, text)
		}
	}
	return ""
}

func short(frame []byte) bool {
	switch binary.BigEndian.Uint16(frame[12:]) {
	case packettest.EtherTypeIPv4:
		return len(frame) < 14+20
	case packettest.EtherTypeIPv6:
		return len(frame) < 14+40
	}
	return len(frame) == 14 // nor one without any data
}

// told reads the verdicts that the ring holds.
func (w *frameWorld) told() (out []flow.Event) {
	w.t.Helper()
	w.ev.reader.SetDeadline(time.Unix(1, 0))
	for {
		e, err := w.ev.reader.Read()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return out
		}
		if err != nil {
			w.t.Fatal(err)
		}
		if e.Type == flow.EventVerdict {
			out = append(out, e)
		}
	}
}

func (w *frameWorld) compare(want opinion, ret uint32, told []flow.Event, s sent) string {
	got := "drop"
	if ret == tcxNext {
		got = "accept"
	} else if ret != tcxDrop {
		return fmt.Sprintf("tcx answer %d", int32(ret))
	}
	if len(told) > 1 {
		return fmt.Sprintf("%d events: %+v", len(told), told)
	}
	var ev flow.Event
	if len(told) > 0 {
		ev = told[len(told)-1]
		got += fmt.Sprintf(" by %d (%s, %v)", ev.Rule, flow.Reason(ev.Rule), w.r.rule(ev.Rule))
	}
	fails := func() string { return fmt.Sprintf("kernel: %s; model: %s; %+v", got, want, want.p) }
	if (ret == tcxNext) != want.accept {
		return fails()
	}
	if want.how == ungovernedWithoutFlow {
		return "" // whether the policy was asked before is not told
	}
	if want.asked {
		if ev.Rule == 0 {
			return fails() + ": no event"
		}
		if text := differs(w.r, want.decision, ret, ev); text != "" {
			return text
		}
	} else if !want.accept && flow.Reason(ev.Rule).String() != want.reason || want.accept && ev.Rule != 0 {
		return fails()
	}
	if ev.Rule == 0 {
		return ""
	}
	return sameTuple(ev, want.p, s)
}

// sameTuple compares what the kernel has read, as far as the frame was understood.
func sameTuple(ev flow.Event, p packet.Packet, s sent) string {
	if p.Fault != packet.FaultNone || (p.EtherType != packet.EtherTypeIPv4 && p.EtherType != packet.EtherTypeIPv6) || ev.Rule == uint32(flow.ReasonSourceMAC) {
		return ""
	}
	src, dst := ev.Local, ev.Remote
	if s.dir == policy.Ingress {
		src, dst = dst, src
	}
	got := packet.Tuple{Protocol: ev.Protocol, Src: src.Addr(), Dst: dst.Addr(), SrcPort: src.Port(), DstPort: dst.Port()}
	if got != p.Tuple || ev.TCPFlags != p.TCPFlags || ev.Direction != s.dir {
		return fmt.Sprintf("kernel read %s %s, flags %#x; Read says %+v", ev.Direction, got, ev.TCPFlags, p)
	}
	if want := uint64(max(s.segments, 1)); ev.Packets[0] != want || ev.Bytes[0] != uint64(len(s.frame)) {
		return fmt.Sprintf("kernel counts %d packets, %d bytes", ev.Packets[0], ev.Bytes[0])
	}
	return ""
}

// shrink makes a conversation that fails smaller: fewer frames, shorter ones, zeros.
func (w *frameWorld) shrink(pod *framePod, c talk) talk {
	fails := func(c talk) bool { return w.play(pod, c, nil) != "" }
	for i := 0; i < len(c); {
		if less := slices.Delete(slices.Clone(c), i, i+1); fails(less) {
			c = less
		} else {
			i++
		}
	}
	with := func(i int, f []byte) bool {
		n := slices.Clone(c)
		n[i].frame = f
		if !fails(n) {
			return false
		}
		c = n
		return true
	}
	for i := range c {
		for step := len(c[i].frame) / 2; step > 0; {
			if n := len(c[i].frame) - step; n < 14 || !with(i, c[i].frame[:n]) {
				step /= 2
			}
		}
		for at := range c[i].frame {
			if c[i].frame[at] != 0 {
				f := slices.Clone(c[i].frame)
				f[at] = 0
				with(i, f)
			}
		}
	}
	return c
}
