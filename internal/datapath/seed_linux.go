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

// seedBatch is how many interfaces are armed between two looks at conntrack: one
// costs some milliseconds, whatever it finds.
const seedBatch = 32

// connections are what conntrack knows, by the addresses of pods.
type connections map[netip.Addr][]*conntrack.Flow

// seedable reports whether the connections of an interface's addresses are its
// own: it was there at the first install. A later one is a new incarnation, and
// what conntrack knows of its addresses may be a dead pod's (I3).
func (d *Datapath) seedable(s EndpointSpec) bool {
	return d.first[s.Ifindex] == s.Interface && s.Interface != ""
}

// rememberFirst notes which interfaces are there, if nothing was armed yet by
// this process or one before it.
func (d *Datapath) rememberFirst() error {
	if d.config.load(0, settingsNextGen) > 1 {
		return nil
	}
	var err error
	d.first, err = interfaces()
	return err
}

// readConnections reads what is about the addresses of specs.
func readConnections(specs []EndpointSpec) (connections, error) {
	out := connections{}
	for _, s := range specs {
		for _, a := range s.Addrs {
			out[a] = nil
		}
	}
	if len(out) == 0 {
		return out, nil
	}
	c, err := conntrack.Dial(nil)
	if err != nil {
		return nil, fmt.Errorf("conntrack: %w", err)
	}
	defer func() { _ = c.Close() }()
	list, err := c.Dump(nil)
	if err != nil {
		return nil, fmt.Errorf("conntrack: %w", err)
	}
	for i := range list {
		opener, answerer := packet.Unmap(list[i].TupleOrig.IP.SourceAddress), packet.Unmap(list[i].TupleReply.IP.SourceAddress)
		if _, ok := out[opener]; ok {
			out[opener] = append(out[opener], &list[i])
		}
		if _, ok := out[answerer]; ok && answerer != opener {
			out[answerer] = append(out[answerer], &list[i])
		}
	}
	return out, nil
}

// SeedDue reports whether so many interfaces were armed since the last Seed that
// it is time for the next.
func (d *Datapath) SeedDue() bool { return len(d.unseeded) >= seedBatch }

// Seed takes over the connections of newly armed interfaces that the kernel's
// conntrack knows, so that the first install cuts none that policy permits;
// interfaces that come later begin with none. They are
// written with revision 0, which no policy has: the first packet of each is
// judged before it passes. It is for all interfaces since the last call; more
// says that others are about to be armed.
func (d *Datapath) Seed(more bool) error {
	d.older = nil
	if len(d.unseeded) == 0 {
		return nil
	}
	var eps []*endpoint
	var specs []EndpointSpec
	for _, ifindex := range d.unseeded {
		if ep := d.endpoints[ifindex]; ep != nil {
			eps, specs = append(eps, ep), append(specs, ep.spec)
		}
	}
	d.unseeded = nil
	if more {
		for _, p := range d.prepared {
			if d.seedable(p.spec) {
				specs = append(specs, p.spec)
			}
		}
	}
	known, err := readConnections(specs)
	if err != nil {
		return err
	}
	if more {
		d.older = known
	}
	var errs []error
	for _, ep := range eps {
		errs = append(errs, d.seed(ep, known))
	}
	return errors.Join(errs...)
}

// seed writes the connections of one endpoint into its flow table.
func (d *Datapath) seed(ep *endpoint, known connections) error {
	now := monotonicNow()
	var keys []bpf.PosternFlowKey
	var flows []bpf.PosternFlow
	for i, a := range ep.spec.Addrs {
		if slices.Index(ep.spec.Addrs, a) < i {
			continue
		}
		for _, c := range known[a] {
			if k, f, ok := seedOf(ep, c, now); ok {
				keys, flows = append(keys, k), append(flows, f)
			}
		}
	}
	if len(keys) == 0 {
		return nil
	}
	var table *ebpf.Map
	if err := d.objs.Flows.Lookup(ep.slot, &table); err != nil {
		return fmt.Errorf("interface %s: flow table: %w", ep.spec.Interface, err)
	}
	defer func() { _ = table.Close() }()
	for i := range keys {
		// What the programs saw meanwhile is newer.
		if err := table.Update(keys[i], flows[i], ebpf.UpdateNoExist); err != nil && !errors.Is(err, ebpf.ErrKeyExist) {
			return fmt.Errorf("interface %s: flow table: %w", ep.spec.Interface, err)
		}
	}
	return nil
}

func seedOf(ep *endpoint, c *conntrack.Flow, now uint64) (k bpf.PosternFlowKey, f bpf.PosternFlow, ok bool) {
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
		if c.Status.DstNAT() {
			f.Service = 1
		}
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
