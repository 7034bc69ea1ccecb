package datapath_test

import (
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/postern-dev/postern/internal/datapath"
	"github.com/postern-dev/postern/internal/packet"
	"github.com/postern-dev/postern/internal/packet/packettest"
	"github.com/postern-dev/postern/internal/policy"
)

// crowded draws addresses and prefixes below a few stems that many share, so
// that every kind of line of the trie comes up in the kernel.
func crowded(rng *rand.Rand) netip.Addr {
	stems := []struct {
		from string
		bits int
	}{
		{"11.0.0.0", 8},
		{"11.1.0.0", 16},
		{"11.1.2.0", 24},
		{"192.0.2.0", 24},
		{"220.255.0.0", 16},
		{"2001:db8::", 32},
		{"2001:db8:1::", 48},
		{"2001:db8:1:2::", 64},
		{"2001:db8:1:2:3:4:5:0", 112},
		{"2a00::", 8},
		{"3fff:ffff::", 32},
	}
	s := stems[rng.IntN(len(stems))]
	return randomIn(rng, netip.PrefixFrom(netip.MustParseAddr(s.from), s.bits))
}

// TestKernelAgreesOnCrowdedSets compares the kernel with a list of prefixes
// where many crowd: the random snapshots of the other comparisons are small.
func TestKernelAgreesOnCrowdedSets(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 7))
	const rules, perRule = 12, 1500
	s := benchSnapshot(rng, 0, 0)
	p := &s.Policies[0]
	p.Rules[policy.Egress] = nil
	var networks [rules]map[netip.Prefix]bool
	for i := range rules {
		networks[i] = map[netip.Prefix]bool{}
		var list []netip.Prefix
		for range perRule {
			a := crowded(rng)
			n := netip.PrefixFrom(a, a.BitLen()-rng.IntN(a.BitLen()-10)).Masked()
			if rng.IntN(3) > 0 {
				n = netip.PrefixFrom(a, a.BitLen()-rng.IntN(9)).Masked()
			}
			networks[i][n] = true
			list = append(list, n)
		}
		p.Rules[policy.Egress] = append(p.Rules[policy.Egress], policy.Rule{
			Index: i, Action: policy.Accept, Peers: []policy.Peer{{Kind: policy.PeerNetworks, Networks: list}},
			Ports: []policy.PortMatch{{Protocol: packet.ProtocolTCP, First: uint16(1000 + i), Last: uint16(1000 + i)}},
		})
	}
	r := newRig(t, datapath.Config{NoCatchAll: true})
	r.load(s)
	spec := r.pods[policy.PodKey{Namespace: "bench", Name: "pod"}]
	host := hostMAC(t, spec)
	accepted := 0
	const frames = 60_000
	for n := range frames {
		if n%8000 == 7999 {
			if err := r.d.ResetFlows(spec.Ifindex); err != nil { // a table is bounded
				t.Fatal(err)
			}
		}
		rule := rng.IntN(rules)
		dst := crowded(rng)
		want := false
		for bits := 0; bits <= dst.BitLen(); bits++ {
			if in, err := dst.Prefix(bits); err == nil && networks[rule][in] {
				want = true
			}
		}
		src := benchPod4
		if dst.Is6() {
			src = benchPod6
		}
		frame := packettest.Build(packettest.Eth{Src: packettest.MACFrom(podMAC), Dst: host}, ipLayer(src, dst),
			packettest.TCP{SrcPort: uint16(rng.UintN(60000)), DstPort: uint16(1000 + rule), Flags: packettest.SYN})
		got := r.run(spec, policy.Egress, frame) == tcxNext
		if got != want {
			t.Fatalf("%s by rule %d: kernel %v, want %v", dst, rule, got, want)
		}
		if got {
			accepted++
		}
	}
	if accepted < frames/20 || accepted > frames*19/20 {
		t.Errorf("%d of %d accepted: the comparison says little", accepted, frames)
	}
}

func ipLayer(src, dst netip.Addr) packettest.Layer {
	if dst.Is4() {
		return packettest.IPv4{Src: src, Dst: dst}
	}
	return packettest.IPv6{Src: src, Dst: dst}
}
