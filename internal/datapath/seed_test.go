package datapath_test

import (
	"net/netip"
	"testing"

	"github.com/ti-mo/conntrack"

	"github.com/postern-dev/postern/internal/datapath"
	"github.com/postern-dev/postern/internal/datapath/mapstate"
	"github.com/postern-dev/postern/internal/packet/packettest"
	"github.com/postern-dev/postern/internal/policy"
)

// TestSeed: the connections that others opened to a pod before the first install
// go on; a later interface with the same address inherits none of them (I3).
func TestSeed(t *testing.T) {
	own, evil := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("192.0.2.66")
	s := &policy.Snapshot{
		Tiers: policy.BuiltinTiers(),
		Pods:  []policy.Pod{{Namespace: "shop", Name: "web", UID: "1", Node: "node1", IPs: []netip.Addr{own}}},
		Policies: []policy.Policy{{
			Kind: policy.KindNetworkPolicy, Namespace: "shop", Name: "deny", Tier: policy.TierNetworkPolicy,
			Subject: policy.Subject{Namespace: "shop", Selects: true}, Isolates: [2]bool{policy.Egress: true},
		}},
	}
	c, err := policy.Compile(s, nil)
	if err != nil {
		t.Fatal(err)
	}
	r := newRig(t, datapath.Config{NoCatchAll: true})
	r.reinstall()
	track, err := conntrack.Dial(nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := track.Create(conntrack.NewFlow(17, conntrack.StatusConfirmed|conntrack.StatusSeenReply, evil, own, 5555, 7, 600, 0)); err != nil {
		t.Fatal(err)
	}
	if err := track.Close(); err != nil {
		t.Fatal(err)
	}
	apply := func() {
		t.Helper()
		u := mapstate.Update{Sets: map[policy.SetID]policy.SetDelta{}, RulesetsAdded: c.Rulesets, Topology: &mapstate.Topology{}}
		for id, content := range c.Sets {
			u.Sets[id] = policy.SetDelta{Add: content}
		}
		if err := r.d.Apply(u, nil); err != nil {
			t.Fatal(err)
		}
	}
	answers := func(spec datapath.EndpointSpec, want bool) {
		t.Helper()
		if err := r.d.Arm(spec, binding(c, s.Pods[0].Key())); err != nil {
			t.Fatal(err)
		}
		if err := r.d.Seed(false); err != nil {
			t.Fatal(err)
		}
		answer := packettest.Build(packettest.Eth{Src: packettest.MACFrom(podMAC), Dst: hostMAC(t, spec)},
			packettest.IPv4{Src: own, Dst: evil}, packettest.UDP{SrcPort: 7, DstPort: 5555})
		if got := r.run(spec, policy.Egress, answer) == tcxNext; got != want {
			t.Errorf("interface %s: the answer passes: %v, want %v", spec.Interface, got, want)
		}
		if err := r.d.Disarm(spec.Ifindex); err != nil {
			t.Fatal(err)
		}
	}
	before := r.addVeth("before", own)
	if err := r.d.Close(); err != nil {
		t.Fatal(err)
	}
	r.open() // nothing was armed yet: still the first install
	apply()
	answers(before, true)
	answers(before, false) // armed once more: another pod's
	answers(r.addVeth("later", own), false)
	between := r.addVeth("between", own)
	if err := r.d.Close(); err != nil {
		t.Fatal(err)
	}
	r.open()
	apply()
	answers(between, false)
}

// reinstall removes everything and opens the datapath anew.
func (r *rig) reinstall() {
	r.tb.Helper()
	if err := r.d.Close(); err != nil {
		r.tb.Fatal(err)
	}
	r.d = nil
	if err := datapath.Uninstall(r.cfg); err != nil {
		r.tb.Fatal(err)
	}
	r.open()
}
