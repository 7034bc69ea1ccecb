package datapath

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/ti-mo/conntrack"
	"golang.org/x/sys/unix"

	"github.com/postern-dev/postern/internal/datapath/bpf"
	"github.com/postern-dev/postern/internal/packet"
)

// Seed takes over the connections of a newly armed interface that the kernel's
// conntrack knows, so that arming cuts none that policy permits. They are
// written with revision 0, which no policy has: the first packet of each is
// judged before it passes.
func (d *Datapath) Seed(ifindex int) error {
	ep := d.endpoints[ifindex]
	if ep == nil {
		return nil
	}
	c, err := conntrack.Dial(nil)
	if err != nil {
		return fmt.Errorf("conntrack: %w", err)
	}
	defer func() { _ = c.Close() }()
	list, err := c.Dump(nil)
	if err != nil {
		return fmt.Errorf("conntrack: %w", err)
	}
	var table *ebpf.Map
	if err := d.objs.Flows.Lookup(ep.slot, &table); err != nil {
		return fmt.Errorf("flow table: %w", err)
	}
	defer func() { _ = table.Close() }()
	now := monotonicNow()
	for i := range list {
		k, f, ok := d.seed(ep, &list[i], now)
		if !ok {
			continue
		}
		// What the programs saw meanwhile is newer.
		if err := table.Update(k, f, ebpf.UpdateNoExist); err != nil && !errors.Is(err, ebpf.ErrKeyExist) {
			return fmt.Errorf("flow table: %w", err)
		}
	}
	return nil
}

func (d *Datapath) seed(ep *endpoint, c *conntrack.Flow, now uint64) (k bpf.PosternFlowKey, f bpf.PosternFlow, ok bool) {
	proto := packet.Protocol(c.TupleOrig.Proto.Protocol)
	if !proto.HasPorts() || !c.Status.SeenReply() {
		return k, f, false
	}
	if ti := c.ProtoInfo.TCP; ti != nil && ti.State != tcpEstablished {
		return k, f, false
	}
	o, r := c.TupleOrig, c.TupleReply
	src, dst := packet.Unmap(o.IP.SourceAddress), packet.Unmap(o.IP.DestinationAddress)
	var remote netip.Addr
	local := slices.Index(ep.spec.Addrs, src)
	if local >= 0 {
		// The pod opened it: at its interface the destination is the original one.
		remote, k.Lport, k.Rport = dst, o.Proto.SourcePort, o.Proto.DestinationPort
	} else {
		// Somebody opened it to the pod: there both ends are the translated ones.
		if local = slices.Index(ep.spec.Addrs, packet.Unmap(r.IP.SourceAddress)); local < 0 {
			return k, f, false
		}
		remote, k.Lport, k.Rport = packet.Unmap(r.IP.DestinationAddress), r.Proto.SourcePort, r.Proto.DestinationPort
		f.Opener = 1
	}
	k.Raddr.B, k.Proto, k.Local = remote.As16(), uint8(proto), uint8(local)
	f.Created, f.LastSeen, f.State = now, now, stateOpen
	return k, f, true
}

const (
	stateOpen      = 1 // STATE_OPEN, bpf/types.h
	tcpEstablished = 3 // TCP_CONNTRACK_ESTABLISHED, nf_conntrack_tcp.h
)

// monotonicNow is the programs' clock.
func monotonicNow() uint64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return 0
	}
	return uint64(ts.Nano())
}
