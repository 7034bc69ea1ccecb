package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-dev/postern/internal/datapath"
	"github.com/postern-dev/postern/internal/flow"
	"github.com/postern-dev/postern/internal/policy"
)

// bootClock is the clock of the datapath's events.
func bootClock() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

// eventPoll is how long the reader waits: the datapath wakes it only when the
// ring fills.
const eventPoll = 20 * time.Millisecond

// readEvents turns events into records until the reader is closed. Names are
// looked up in the loop, a batch at a time.
func (a *Agent) readEvents(r *datapath.EventReader) error {
	batch := make([]flow.Event, 0, 512)
	for {
		batch = batch[:0]
		r.SetDeadline(a.cfg.Now().Add(eventPoll))
		for len(batch) < cap(batch) {
			e, err := r.Read()
			if errors.Is(err, datapath.ErrTimeout) {
				break
			}
			if errors.Is(err, datapath.ErrClosed) {
				return nil
			}
			if err != nil {
				return err
			}
			batch = append(batch, e)
		}
		if len(batch) == 0 {
			continue
		}
		if !a.do(context.Background(), func() {
			for i := range batch {
				a.records.add(a.record(&batch[i]))
			}
		}) {
			return nil
		}
	}
}

// renamed reports whether changes make a difference to the tables of names.
func (a *Agent) renamed(ch *policy.Changes) bool {
	if a.addrs == nil || len(ch.PodsDeleted)+len(ch.Nodes)+len(ch.NodesDeleted)+len(ch.Services)+len(ch.ServicesDeleted) > 0 {
		return true
	}
	return slices.ContainsFunc(ch.Pods, func(p policy.Pod) bool {
		addrs, ok := a.podAddrs[p.Key()]
		return ok == p.HostNetwork || !slices.Equal(addrs, p.IPs)
	})
}

// index makes the tables of names from the snapshot.
func (a *Agent) index() {
	a.podAddrs = make(map[policy.PodKey][]netip.Addr, len(a.snapshot.Pods))
	a.addrs = make(map[netip.Addr]identity, len(a.snapshot.Pods))
	for i := range a.snapshot.Nodes {
		n := &a.snapshot.Nodes[i]
		for _, ip := range n.IPs {
			a.addrs[ip] = identity{"node", "", n.Name}
		}
	}
	for i := range a.snapshot.Pods {
		p := &a.snapshot.Pods[i]
		if p.HostNetwork {
			continue
		}
		a.podAddrs[p.Key()] = p.IPs
		for _, ip := range p.IPs {
			a.addrs[ip] = identity{"pod", p.Namespace, p.Name}
		}
	}
	a.services = map[netip.AddrPort]identity{}
	for i := range a.snapshot.Services {
		s := &a.snapshot.Services[i]
		for _, ip := range s.IPs {
			for _, p := range s.Ports {
				a.services[netip.AddrPortFrom(ip, p.Port)] = identity{"service", s.Namespace, s.Name}
			}
		}
	}
}

func (a *Agent) end(ap netip.AddrPort) flow.End {
	e := flow.End{Addr: ap.Addr(), Port: ap.Port(), Kind: "world"}
	id, ok := a.services[ap]
	if !ok {
		id, ok = a.addrs[ap.Addr()]
	}
	if ok {
		e.Kind, e.Namespace, e.Name = id.kind, id.namespace, id.name
	}
	return e
}

func (a *Agent) record(e *flow.Event) flow.Record {
	now, boot := a.cfg.Now(), a.clock()
	at := func(d time.Duration) time.Time { return now.Add(d - boot) }
	r := flow.Record{
		Time: at(e.Time), Type: "verdict", Node: a.cfg.Node, Direction: e.Direction, Dir: e.Direction.String(),
		Protocol: e.Protocol, Proto: e.Protocol.String(), Local: a.end(e.Local), Remote: a.end(e.Remote),
		Verdict: e.Verdict.String(), Rule: a.rule(e.Rule), Revision: e.Revision,
		PacketsOut: e.Packets[0], BytesOut: e.Bytes[0], PacketsBack: e.Packets[1], BytesBack: e.Bytes[1],
	}
	// The incarnation knows its pod better than the address does.
	if p, ok := a.names.pods[e.Generation]; ok {
		r.Local.Kind, r.Local.Namespace, r.Local.Name = "pod", p.Namespace, p.Name
	}
	if e.Type == flow.EventClose {
		r.Type, r.Started = "close", at(e.Created)
	}
	if e.StagedRule != 0 {
		staged := a.rule(e.StagedRule)
		staged.Verdict = e.StagedVerdict.String()
		r.Staged = &staged
	}
	return r
}

// rule names a rule or reason by its number.
func (a *Agent) rule(id uint32) flow.Rule {
	if id < uint32(flow.ReasonMax) {
		reason := flow.Reason(id)
		return flow.Rule{ID: id, Index: -1, Reason: reason.String(), Text: reason.Text()}
	}
	ref, ok := a.names.refs[id]
	if !ok {
		return flow.Rule{ID: id, Index: -1, Text: fmt.Sprintf("rule %d of an earlier agent", id)}
	}
	return ruleOf(id, ref)
}

func ruleOf(id uint32, ref policy.RuleRef) flow.Rule {
	return flow.Rule{
		ID: id, Tier: ref.Tier, Kind: string(ref.Kind), Namespace: ref.Namespace, Policy: ref.Policy,
		Index: ref.Index, Name: ref.Name, Text: ref.String(),
	}
}
