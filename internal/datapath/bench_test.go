package datapath_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/postern-dev/postern/internal/datapath"
	"github.com/postern-dev/postern/internal/datapath/bpf"
	"github.com/postern-dev/postern/internal/packet"
	"github.com/postern-dev/postern/internal/packet/packettest"
	"github.com/postern-dev/postern/internal/policy"
)

var (
	benchPod4 = netip.MustParseAddr("10.244.0.5")
	benchPod6 = netip.MustParseAddr("fd00:10:244::5")
)

// benchSnapshot is one pod under rules accept rules, each with its own
// networks and ports, that hold cidrs networks of each family in all.
func benchSnapshot(rng *rand.Rand, rules, cidrs int) *policy.Snapshot {
	s := &policy.Snapshot{
		Revision: 1, Tiers: policy.BuiltinTiers(),
		Namespaces: []policy.Namespace{{Name: "bench", Labels: map[string]string{"kubernetes.io/metadata.name": "bench"}}},
		Pods:       []policy.Pod{{Namespace: "bench", Name: "pod", UID: "1", Node: "n", IPs: []netip.Addr{benchPod4, benchPod6}}},
		Nodes:      []policy.Node{{Name: "n", IPs: []netip.Addr{netip.MustParseAddr("172.31.0.1")}}},
	}
	networks := make([][]netip.Prefix, rules)
	for i := range cidrs {
		networks[i%rules] = append(networks[i%rules], randomPrefix(rng, false), randomPrefix(rng, true))
	}
	p := policy.Policy{
		Kind: policy.KindEgressPolicy, Namespace: "bench", Name: "allow", Tier: policy.TierNetworkPolicy,
		Subject: policy.Subject{Selects: true, Namespace: "bench"}, Isolates: [2]bool{true, false},
	}
	for i := range rules {
		r := policy.Rule{
			Index: i, Action: policy.Accept,
			Ports: []policy.PortMatch{{Protocol: packet.ProtocolTCP, First: uint16(1 + i*5), Last: uint16(1 + i*5 + 3)}, {Protocol: packet.ProtocolTCP, First: 443, Last: 443}},
		}
		if len(networks[i]) > 0 {
			r.Peers = []policy.Peer{{Kind: policy.PeerNetworks, Networks: networks[i]}}
		} else {
			r.Peers = []policy.Peer{{Kind: policy.PeerNetworks, Networks: []netip.Prefix{randomPrefix(rng, false), randomPrefix(rng, true)}}}
		}
		p.Rules[policy.Egress] = append(p.Rules[policy.Egress], r)
	}
	// What is measured must be accepted: the last rule accepts the rest.
	p.Rules[policy.Egress] = append(p.Rules[policy.Egress], policy.Rule{Index: rules, Action: policy.Accept, AnyPeer: true, Ports: []policy.PortMatch{{Protocol: packet.ProtocolTCP, First: 443, Last: 443}}})
	s.Policies = []policy.Policy{p}
	return s
}

// randomPrefix is from /12 to /32, mostly /24 and /32 as in published feeds;
// IPv6 from /32 to /128, mostly /48, /64 and /128.
func randomPrefix(rng *rand.Rand, v6 bool) netip.Prefix {
	if v6 {
		var b [16]byte
		binary.BigEndian.PutUint64(b[:], 0x2000000000000000|rng.Uint64()>>3)
		binary.BigEndian.PutUint64(b[8:], rng.Uint64())
		bits := []int{32, 36, 40, 48, 48, 48, 56, 64, 64, 64, 128, 128}[rng.IntN(12)]
		return netip.PrefixFrom(netip.AddrFrom16(b), bits).Masked()
	}
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], 0x01000000+rng.Uint32N(0xdf000000-0x01000000))
	bits := []int{12 + rng.IntN(12), 20, 22, 24, 24, 24, 24, 32, 32, 32, 32, 32}[rng.IntN(12)]
	return netip.PrefixFrom(netip.AddrFrom4(b), bits).Masked()
}

func benchFrame(v6 bool, dst netip.Addr) []byte {
	src := benchPod4
	if v6 {
		src = benchPod6
	}
	return packettest.Simple(packettest.MACFrom(podMAC), packettest.MAC{}, uint8(packet.ProtocolTCP), netip.AddrPortFrom(src, 4000), netip.AddrPortFrom(dst, 443), make([]byte, 64))
}

// benchSize is how much a pod's policy holds.
type benchSize struct{ rules, cidrs int }

// atSizes builds a rig once for each size, which takes longer than to measure
// it, and measures both families on it.
func atSizes(b *testing.B, sizes []benchSize, measure func(b *testing.B, r *rig, s *policy.Snapshot, v6 bool)) {
	b.Helper()
	for _, size := range sizes {
		b.Run(fmt.Sprintf("rules=%d/cidrs=%d", size.rules, size.cidrs), func(b *testing.B) {
			r := newRig(b, datapath.Config{NoCatchAll: true})
			s := benchSnapshot(rand.New(rand.NewPCG(1, 1)), size.rules, size.cidrs)
			r.load(s)
			thread, err := unix.PidfdOpen(unix.Gettid(), unix.PIDFD_THREAD)
			if err != nil {
				b.Fatal(err)
			}
			defer func() { _ = unix.Close(thread) }()
			for _, v6 := range []bool{false, true} {
				b.Run(fmt.Sprintf("v6=%v", v6), func(b *testing.B) {
					// A goroutine of its own, whose thread is thrown away as the rig's is.
					runtime.LockOSThread()
					if err := errors.Join(unix.Unshare(unix.CLONE_FS), unix.Setns(thread, unix.CLONE_NEWNET|unix.CLONE_NEWNS)); err != nil {
						b.Fatal(err)
					}
					measure(b, r, s, v6)
				})
			}
		})
	}
}

// BenchmarkEstablished is a packet of a flow that is there already.
func BenchmarkEstablished(b *testing.B) {
	atSizes(b, []benchSize{{10, 0}, {10000, 0}, {10000, 100000}, {10000, 1000000}}, func(b *testing.B, r *rig, _ *policy.Snapshot, v6 bool) {
		b.Helper()
		spec := r.pods[policy.PodKey{Namespace: "bench", Name: "pod"}]
		dst := netip.MustParseAddr("192.0.2.1")
		if v6 {
			dst = netip.MustParseAddr("2001:db8::1")
		}
		frame := benchFrame(v6, dst)
		host := hostMAC(b, spec)
		copy(frame, host[:])
		if got := r.run(spec, policy.Egress, frame); got != tcxNext {
			b.Fatalf("first packet: %d", int32(got))
		}
		// An ACK: a SYN would be judged each time.
		ack := append([]byte(nil), frame...)
		ack[14+map[bool]int{false: 20, true: 40}[v6]+13] = packettest.ACK
		b.ResetTimer()
		ns := testRun(b, r.d.Program(policy.Egress), spec, ack)
		b.ReportMetric(ns, "kernel-ns/op")
	})
}

// testRun runs a program b.N times and returns the mean time of a run. The
// library gives the kernel's own figure only without a context; with 100,000
// repetitions in one system call the thread's processor time says the same, and
// does not count what others run on a busy machine.
func testRun(b *testing.B, prog *ebpf.Program, spec datapath.EndpointSpec, frame []byte) float64 {
	b.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var total time.Duration
	for done := 0; done < b.N; {
		n := min(b.N-done, 100000)
		start := threadTime(b)
		ret, err := prog.Run(&ebpf.RunOptions{Data: frame, Context: &skb{Ifindex: uint32(spec.Ifindex)}, Repeat: uint32(n)})
		total += threadTime(b) - start
		if err != nil || ret != tcxNext {
			b.Fatalf("test run: %d, %v", int32(ret), err)
		}
		done += n
	}
	return float64(total.Nanoseconds()) / float64(b.N)
}

// openRun is testRun for a program that leaves a flow at each repetition.
func openRun(b *testing.B, r *rig, prog *ebpf.Program, spec datapath.EndpointSpec, frame []byte) float64 {
	b.Helper()
	events, err := r.d.Events()
	if err != nil {
		b.Fatal(err)
	}
	defer func() {
		if err := events.Close(); err != nil {
			b.Error(err)
		}
	}()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var total time.Duration
	done := 0
	for done < min(b.N, 100_000) {
		const batch = 4096
		start := threadTime(b)
		ret, err := prog.Run(&ebpf.RunOptions{Data: frame, Context: &skb{Ifindex: uint32(spec.Ifindex)}, Repeat: batch})
		total += threadTime(b) - start
		if err != nil || ret != tcxNext {
			b.Fatalf("test run: %d, %v", int32(ret), err)
		}
		done += batch
		if err := r.d.ResetFlows(spec.Ifindex); err != nil {
			b.Fatal(err)
		}
		events.SetDeadline(time.Now())
		for {
			if _, err := events.Read(); err != nil {
				break
			}
		}
	}
	return float64(total.Nanoseconds()) / float64(done)
}

// threadTime is the processor time of the calling thread.
func threadTime(tb testing.TB) time.Duration {
	tb.Helper()
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(ts.Nano())
}

// benchPrograms loads the benchmark programs over the rig's maps.
func benchPrograms(b *testing.B, r *rig, targets []netip.Addr) *bpf.BenchPrograms {
	b.Helper()
	spec, err := bpf.LoadBench()
	if path := os.Getenv("POSTERN_BENCH_OBJECT"); path != "" {
		spec, err = ebpf.LoadCollectionSpec(path) // to compare variants of the C
	}
	if err != nil {
		b.Fatal(err)
	}
	var objs bpf.BenchObjects
	if err := r.d.LoadOver(spec, &objs); err != nil {
		b.Fatalf("%+v", err)
	}
	b.Cleanup(func() {
		if err := objs.Close(); err != nil {
			b.Error(err)
		}
	})
	keys := make([]uint32, len(targets))
	values := make([][16]byte, len(targets))
	for i, a := range targets {
		keys[i], values[i] = uint32(i), a.As16()
	}
	if _, err := objs.BenchTargets.BatchUpdate(keys, values, nil); err != nil {
		b.Fatal(err)
	}
	return &objs.BenchPrograms
}

// BenchmarkFirst is the first packet of a flow to a random destination; half
// of the destinations are in some network of the policy. The metric "net" is
// less what changing the packet costs.
func BenchmarkFirst(b *testing.B) {
	sizes := []benchSize{{10, 1000}, {1000, 1000}, {10, 100000}, {10000, 100000}, {1000, 1000000}}
	atSizes(b, sizes, func(b *testing.B, r *rig, s *policy.Snapshot, v6 bool) {
		b.Helper()
		spec := r.pods[policy.PodKey{Namespace: "bench", Name: "pod"}]
		progs := benchPrograms(b, r, benchTargets(rand.New(rand.NewPCG(2, 2)), s, v6))
		frame := benchFrame(v6, netip.MustParseAddr("192.0.2.1"))
		if v6 {
			frame = benchFrame(v6, netip.MustParseAddr("2001:db8::1"))
		}
		host := hostMAC(b, spec)
		copy(frame, host[:])
		b.ResetTimer()
		b.ReportMetric(testRun(b, progs.BenchEmpty, spec, frame), "empty-ns/op")
		nothing := testRun(b, progs.BenchNothing, spec, frame)
		first := testRun(b, progs.BenchFirst, spec, frame)
		b.ReportMetric(first-nothing, "net-ns/op")
		opened := openRun(b, r, progs.BenchOpen, spec, frame)
		b.ReportMetric(opened-nothing, "open-ns/op")
	})
}

func benchTargets(rng *rand.Rand, s *policy.Snapshot, v6 bool) []netip.Addr {
	var nets []netip.Prefix
	for _, r := range s.Policies[0].Rules[policy.Egress] {
		for _, p := range r.Peers {
			for _, n := range p.Networks {
				if n.Addr().Is6() == v6 {
					nets = append(nets, n)
				}
			}
		}
	}
	out := make([]netip.Addr, 1<<20)
	for i := range out {
		p := randomPrefix(rng, v6)
		if i%2 == 0 {
			p = nets[rng.IntN(len(nets))]
		}
		for out[i] = randomIn(rng, p); out[i].IsLoopback(); {
			out[i] = randomIn(rng, randomPrefix(rng, v6)) // dropped before any rule
		}
	}
	return out
}

func randomIn(rng *rand.Rand, p netip.Prefix) netip.Addr {
	if p.Addr().Is4() {
		b := p.Addr().As4()
		n := binary.BigEndian.Uint32(b[:]) | rng.Uint32()&uint32(uint64(0xffffffff)>>p.Bits())
		binary.BigEndian.PutUint32(b[:], n)
		return netip.AddrFrom4(b)
	}
	b := p.Addr().As16()
	if p.Bits() < 64 {
		binary.BigEndian.PutUint64(b[:], binary.BigEndian.Uint64(b[:])|rng.Uint64()>>p.Bits())
		binary.BigEndian.PutUint64(b[8:], rng.Uint64())
	} else if p.Bits() < 128 {
		binary.BigEndian.PutUint64(b[8:], binary.BigEndian.Uint64(b[8:])|rng.Uint64()>>(p.Bits()-64))
	}
	return netip.AddrFrom16(b)
}
