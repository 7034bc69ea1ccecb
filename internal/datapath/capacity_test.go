package datapath_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"github.com/postern-dev/postern/internal/datapath"
	"github.com/postern-dev/postern/internal/datapath/mapstate"
	"github.com/postern-dev/postern/internal/packet/packettest"
	"github.com/postern-dev/postern/internal/policy"
)

// TestEndpointsFull: one interface more than there are slots is not armed and
// passes nothing; those before it are, and when one of them goes there is room.
func TestEndpointsFull(t *testing.T) {
	r := newRig(t, datapath.Config{NoCatchAll: true})
	s := &policy.Snapshot{Tiers: policy.BuiltinTiers(), Pods: []policy.Pod{{Namespace: "a", Name: "b", UID: "1", Node: "n", IPs: []netip.Addr{benchPod4}}}}
	c, err := policy.Compile(s, nil)
	if err != nil {
		t.Fatal(err)
	}
	u := mapstate.Update{Sets: map[policy.SetID]policy.SetDelta{}, RulesetsAdded: c.Rulesets, Topology: &mapstate.Topology{}}
	for id, content := range c.Sets {
		u.Sets[id] = policy.SetDelta{Add: content}
	}
	if err := r.d.Apply(u, nil); err != nil {
		t.Fatal(err)
	}
	end := r.d.Expedite(datapath.MaxEndpoints)
	defer func() {
		if err := end(); err != nil {
			t.Error(err)
		}
	}()
	var specs []datapath.EndpointSpec
	for i := range datapath.MaxEndpoints + 2 {
		var a [4]byte
		binary.BigEndian.PutUint32(a[:], 0x0a000001+uint32(i))
		specs = append(specs, r.addVeth(fmt.Sprintf("c%d", i), netip.AddrFrom4(a)))
	}
	if err := r.d.Prepare(specs); !errors.Is(err, datapath.ErrCapacity) {
		t.Fatalf("got %v, want %v", err, datapath.ErrCapacity)
	}
	passes := func(spec datapath.EndpointSpec) bool {
		t.Helper()
		frame := packettest.Simple(packettest.MACFrom(podMAC), hostMAC(t, spec), 17, netip.AddrPortFrom(spec.Addrs[0], 4000), netip.MustParseAddrPort("192.0.2.1:53"), nil)
		return r.run(spec, policy.Egress, frame) == tcxNext
	}
	b := binding(c, s.Pods[0].Key())
	for i, spec := range specs {
		err := r.d.Arm(spec, b)
		if fits := i < datapath.MaxEndpoints; (err == nil) != fits || (!fits && !errors.Is(err, datapath.ErrCapacity)) || passes(spec) != fits {
			t.Fatalf("interface %d of %d: %v, passes: %v", i+1, datapath.MaxEndpoints, err, passes(spec))
		}
	}
	if err := r.d.Disarm(specs[7].Ifindex); err != nil {
		t.Fatal(err)
	}
	if err := r.d.Arm(specs[datapath.MaxEndpoints], b); err != nil || !passes(specs[datapath.MaxEndpoints]) {
		t.Errorf("after one went: %v", err)
	}
}
