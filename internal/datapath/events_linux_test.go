package datapath

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/postern-dev/postern/internal/datapath/bpf"
	"github.com/postern-dev/postern/internal/datapath/mapstate"
	"github.com/postern-dev/postern/internal/flow"
	"github.com/postern-dev/postern/internal/packet"
	"github.com/postern-dev/postern/internal/policy"
)

// record is e as the ring holds it.
func record(tb testing.TB, e bpf.PosternEvent) []byte {
	tb.Helper()
	b, err := binary.Append(nil, binary.NativeEndian, &e)
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// anEvent has another value in each field.
func anEvent() bpf.PosternEvent {
	e := bpf.PosternEvent{
		Time: 1, Created: 2, Packets: [2]uint64{3, 4}, Bytes: [2]uint64{5, 6}, Gen: 7, Revision: 8,
		Rule: 9 | mapstate.RuleForwarded, Staged: 10 | mapstate.RuleDeferred, Lport: 11, Rport: 12,
		Type: uint8(flow.EventClose), Dir: uint8(policy.Ingress), Proto: 17, TcpFlags: 13,
	}
	e.Laddr.B = netip.MustParseAddr("::ffff:10.0.0.1").As16()
	e.Raddr.B = netip.MustParseAddr("2001:db8::1").As16()
	return e
}

func TestParseEvent(t *testing.T) {
	got, err := parseEvent(record(t, anEvent()))
	if err != nil {
		t.Fatal(err)
	}
	want := flow.Event{
		Type: flow.EventClose, Time: 1 * time.Nanosecond, Created: 2 * time.Nanosecond, Generation: 7, Revision: 8, Direction: policy.Ingress, Protocol: packet.ProtocolUDP,
		Local: netip.MustParseAddrPort("10.0.0.1:11"), Remote: netip.MustParseAddrPort("[2001:db8::1]:12"),
		Verdict: policy.Forwarded, Rule: 9, StagedVerdict: policy.Deferred, StagedRule: 10, TCPFlags: 13, Packets: [2]uint64{3, 4}, Bytes: [2]uint64{5, 6},
	}
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	good := record(t, anEvent())
	for name, b := range map[string][]byte{
		"nothing": nil, "short": good[:len(good)-1], "long": append(record(t, anEvent()), 0), "zeros": make([]byte, len(good)),
	} {
		if e, err := parseEvent(b); !errors.Is(err, errEvent) || e != (flow.Event{}) {
			t.Errorf("%s: %+v, %v", name, e, err)
		}
	}
}

// FuzzParseEvent: any bytes are an event or an error, and an event's numbers
// are within what it promises.
func FuzzParseEvent(f *testing.F) {
	good := record(f, anEvent())
	f.Add(good)
	f.Add(good[:40])
	f.Add(make([]byte, len(good)))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := parseEvent(b)
		if err != nil {
			if !errors.Is(err, errEvent) || e != (flow.Event{}) {
				t.Fatalf("%+v with the error %v", e, err)
			}
			return
		}
		if len(b) != len(good) {
			t.Fatalf("%d bytes were taken for an event", len(b))
		}
		if !e.Local.IsValid() || !e.Remote.IsValid() || e.Local.Addr().Is4In6() || e.Remote.Addr().Is4In6() || e.Local.Addr().Zone() != "" {
			t.Errorf("addresses %v, %v", e.Local, e.Remote)
		}
		if e.Rule > mapstate.RuleMask || e.StagedRule > mapstate.RuleMask || e.Verdict > policy.Deferred || e.StagedVerdict > policy.Deferred || e.Direction > policy.Ingress {
			t.Errorf("out of range: %+v", e)
		}
	})
}
