package datapath

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"

	"github.com/postern-dev/postern/internal/datapath/bpf"
	"github.com/postern-dev/postern/internal/datapath/mapstate"
	"github.com/postern-dev/postern/internal/flow"
	"github.com/postern-dev/postern/internal/packet"
	"github.com/postern-dev/postern/internal/policy"
)

// ErrClosed is returned by EventReader.Read after Close.
var ErrClosed = os.ErrClosed

// EventReader reads the datapath's events. Only one process should read.
type EventReader struct {
	ring *ringbuf.Reader
	rec  ringbuf.Record
}

// Events returns a reader, independent of d: it may be used by another goroutine.
func (d *Datapath) Events() (*EventReader, error) {
	r, err := ringbuf.NewReader(d.objs.Events)
	if err != nil {
		return nil, fmt.Errorf("events: %w", err)
	}
	return &EventReader{ring: r}, nil
}

// Read waits for the next event. It returns ErrClosed after Close.
func (r *EventReader) Read() (flow.Event, error) {
	for {
		if err := r.ring.ReadInto(&r.rec); err != nil {
			if errors.Is(err, ringbuf.ErrClosed) {
				return flow.Event{}, ErrClosed
			}
			return flow.Event{}, fmt.Errorf("events: %w", err)
		}
		e, err := parseEvent(r.rec.RawSample)
		if err != nil {
			continue // cannot be from our program
		}
		return e, nil
	}
}

// errEvent is wrapped by what parseEvent returns.
var errEvent = errors.New("not an event of the datapath")

// parseEvent reads one record of the ring.
func parseEvent(record []byte) (flow.Event, error) {
	var e bpf.PosternEvent
	if want := binary.Size(&e); len(record) != want {
		return flow.Event{}, fmt.Errorf("%w: %d bytes, want %d", errEvent, len(record), want)
	}
	if _, err := binary.Decode(record, binary.NativeEndian, &e); err != nil {
		return flow.Event{}, fmt.Errorf("%w: %w", errEvent, err)
	}
	if t := flow.EventType(e.Type); t != flow.EventVerdict && t != flow.EventClose {
		return flow.Event{}, fmt.Errorf("%w: type %d", errEvent, e.Type)
	}
	if e.Dir > uint8(policy.Ingress) {
		return flow.Event{}, fmt.Errorf("%w: direction %d", errEvent, e.Dir)
	}
	return decodeEvent(&e), nil
}

// Close ends Read.
func (r *EventReader) Close() error { return r.ring.Close() }

func decodeEvent(e *bpf.PosternEvent) flow.Event {
	return flow.Event{
		Type: flow.EventType(e.Type), Time: time.Duration(e.Time), Created: time.Duration(e.Created),
		Generation: e.Gen, Revision: e.Revision, Direction: policy.Direction(e.Dir), Protocol: packet.Protocol(e.Proto),
		Local:   netip.AddrPortFrom(packet.Unmap(netip.AddrFrom16(e.Laddr.B)), e.Lport),
		Remote:  netip.AddrPortFrom(packet.Unmap(netip.AddrFrom16(e.Raddr.B)), e.Rport),
		Verdict: verdictOf(e.Rule), Rule: e.Rule & mapstate.RuleMask,
		StagedVerdict: verdictOf(e.Staged), StagedRule: e.Staged & mapstate.RuleMask,
		TCPFlags: e.TcpFlags, Packets: e.Packets, Bytes: e.Bytes,
	}
}

func verdictOf(rule uint32) policy.Verdict {
	switch {
	case rule&mapstate.RuleForwarded != 0:
		return policy.Forwarded
	case rule&mapstate.RuleDeferred != 0:
		return policy.Deferred
	}
	return policy.Dropped
}

// RuleKey names a counter: an endpoint's generation and a rule ID or flow.Reason.
type RuleKey struct{ Generation, Rule uint32 }

// RuleCount counts packets that a rule decided: drops, or first packets.
type RuleCount struct{ Packets, Bytes uint64 }

// RuleCounts reads the exact counters of drops.
func (d *Datapath) RuleCounts() (map[RuleKey]RuleCount, error) {
	out := map[RuleKey]RuleCount{}
	var k bpf.PosternStatsKey
	var per []bpf.PosternStats
	it := d.objs.RuleStats.Iterate()
	for it.Next(&k, &per) {
		var sum RuleCount
		for _, s := range per {
			sum.Packets += s.Packets
			sum.Bytes += s.Bytes
		}
		out[RuleKey{k.Gen, k.Rule}] = sum
	}
	if err := it.Err(); err != nil {
		return nil, fmt.Errorf("rule_stats: %w", err)
	}
	return out, nil
}

// AcceptedByRule reads, by rule ID, what each rule admitted on this node.
func (d *Datapath) AcceptedByRule(ids []uint32) (map[uint32]RuleCount, error) {
	out := map[uint32]RuleCount{}
	for _, id := range ids {
		c, err := sumStats(d.objs.RuleAccepts, id)
		if err != nil {
			return nil, err
		}
		if c.Packets > 0 {
			out[id] = c
		}
	}
	return out, nil
}

// Accepted reads what an endpoint had admitted: first packets.
func (d *Datapath) Accepted(ifindex int) (RuleCount, error) {
	ep := d.endpoints[ifindex]
	if ep == nil {
		return RuleCount{}, nil
	}
	return sumStats(d.objs.SlotAccepts, ep.slot)
}

func sumStats(m *ebpf.Map, key uint32) (RuleCount, error) {
	var per []bpf.PosternStats
	if err := m.Lookup(key, &per); err != nil {
		return RuleCount{}, fmt.Errorf("%s: %w", m, err)
	}
	var sum RuleCount
	for _, s := range per {
		sum.Packets += s.Packets
		sum.Bytes += s.Bytes
	}
	return sum, nil
}

// resetAccepted makes a slot's count that of a new incarnation.
func (d *Datapath) resetAccepted(slot uint32) error {
	n, err := ebpf.PossibleCPU()
	if err != nil {
		return fmt.Errorf("cpus: %w", err)
	}
	if err := d.objs.SlotAccepts.Put(slot, make([]bpf.PosternStats, n)); err != nil {
		return fmt.Errorf("slot_accepts: %w", err)
	}
	return nil
}

func (d *Datapath) dropStats(gen uint32) error {
	counts, err := d.RuleCounts()
	if err != nil {
		return err
	}
	for k := range counts {
		if k.Generation != gen {
			continue
		}
		if err := d.objs.RuleStats.Delete(bpf.PosternStatsKey{Gen: k.Generation, Rule: k.Rule}); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("rule_stats: %w", err)
		}
	}
	return nil
}

// Counters are node-wide counts of what could not be told or kept.
type Counters struct {
	EventsLost uint64
	// UnattributedPackets and -Bytes were counted without their rule: rule_stats is full.
	UnattributedPackets, UnattributedBytes uint64
	// FlowsRefused counts flows for which a pod's table had no room.
	FlowsRefused uint64
}

// Counters reads the node-wide counters.
func (d *Datapath) Counters() (Counters, error) {
	var c Counters
	for i, dst := range []*uint64{&c.EventsLost, &c.UnattributedPackets, &c.UnattributedBytes, &c.FlowsRefused} {
		var per []uint64
		if err := d.objs.Counters.Lookup(uint32(i), &per); err != nil {
			return c, fmt.Errorf("counters: %w", err)
		}
		for _, v := range per {
			*dst += v
		}
	}
	return c, nil
}

// CollectFlows removes an endpoint's expired flows and returns how many.
func (d *Datapath) CollectFlows(ifindex int) (int, error) {
	ep := d.endpoints[ifindex]
	if ep == nil {
		return 0, nil
	}
	n, err := d.objs.CollectFlows.Run(&ebpf.RunOptions{Context: ep.slot})
	if err != nil {
		return 0, fmt.Errorf("collect flows: %w", err)
	}
	return int(n), nil
}

// SetDeadline makes Read return an error wrapping os.ErrDeadlineExceeded from t on.
func (r *EventReader) SetDeadline(t time.Time) { r.ring.SetDeadline(t) }

// ResetFlows empties an endpoint's flow table, as for a new incarnation.
func (d *Datapath) ResetFlows(ifindex int) error {
	ep := d.endpoints[ifindex]
	if ep == nil {
		return fmt.Errorf("interface %d is not armed", ifindex)
	}
	var k bpf.PosternFlowKey
	var m *ebpf.Map
	if err := d.objs.Flows.Lookup(ep.slot, &m); err != nil {
		return fmt.Errorf("flow table: %w", err)
	}
	defer func() { _ = m.Close() }()
	for {
		err := m.NextKey(nil, &k)
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil
		}
		if err == nil {
			err = m.Delete(k)
		}
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("flow table: %w", err)
		}
	}
}

// ErrTimeout is wrapped by EventReader.Read's error after its deadline.
var ErrTimeout = os.ErrDeadlineExceeded
