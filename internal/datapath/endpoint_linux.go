package datapath

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/postern-dev/postern/internal/datapath/bpf"
)

// Bits of struct endpoint's flags. Source: enum endpoint_flags.
const (
	flagGovernedEgress  = 1 << 0
	flagGovernedIngress = 1 << 1
	flagBridged         = 1 << 2
	flagIPOptions       = 1 << 3
	flagDenyAll         = 1 << 4

	addrShared = 1 << 31 // ADDR_SHARED in endpoint_addrs
)

// EndpointSpec is one incarnation of a pod's interface.
type EndpointSpec struct {
	// Interface and Ifindex name the host side.
	Interface string
	Ifindex   int
	// MAC is the pod side's.
	MAC net.HardwareAddr
	// Addrs are the pod's addresses, unmapped; at most MaxAddrs.
	Addrs []netip.Addr
	// Bridged: the host side is a bridge port.
	Bridged bool
	// IPOptions permits IPv4 options other than source routes.
	IPOptions bool
	// Quarantine denies everything, neighbour discovery included.
	Quarantine bool
}

// endpoint is what the process knows of an armed interface.
type endpoint struct {
	spec    EndpointSpec
	binding Binding
	slot    uint32
	copy    uint32 // which of the slot's two entries is current, 0 or 1
	entry   bpf.PosternEndpoint
	written bool
	// verified: Verify has read back what is in force now.
	verified bool
	// adopted: taken over from a former process and judged by its world until a binding comes.
	adopted bool
	// rebound: a binding has come.
	rebound bool
	self    map[bpf.PosternSelfKey]uint32
	links   [2]link.Link
}

// prepared is an interface that has a slot and a flow table.
type prepared struct {
	slot uint32
	spec EndpointSpec
}

func (e *endpoint) close() error {
	var errs []error
	for _, l := range e.links {
		if l != nil {
			errs = append(errs, l.Close())
		}
	}
	return errors.Join(errs...)
}

func (d *Datapath) linkPath(ifindex, hook int) string {
	return filepath.Join(d.cfg.PinDir, "links", fmt.Sprintf("%d_%s", ifindex, [2]string{"from_pod", "to_pod"}[hook]))
}

// Arm puts an interface under enforcement with a binding whose rulesets are
// already applied. Until it returns nil the interface passes nothing (D1); if
// it fails the interface stays in the catch-all. Arming what is armed updates it.
func (d *Datapath) Arm(spec EndpointSpec, b Binding) error {
	if len(spec.Addrs) > MaxAddrs {
		return fmt.Errorf("interface %s: %d addresses, limit %d: %w", spec.Interface, len(spec.Addrs), MaxAddrs, ErrCapacity)
	}
	if len(spec.MAC) != 6 {
		return fmt.Errorf("interface %s: MAC %q: want 6 bytes", spec.Interface, spec.MAC)
	}
	ep := d.endpoints[spec.Ifindex]
	if ep != nil {
		var err error
		if d.catchAll != nil {
			if err := d.catchAll.add(spec.Interface, spec.Ifindex); err != nil {
				return err
			}
		}
		if spec.Addrs, err = keepPlaces(ep.spec.Addrs, spec.Addrs); err != nil {
			// The new address must not inherit the old one's flows (I3).
			if err := d.Renew(spec.Ifindex); err != nil {
				return err
			}
		}
		ep.spec, ep.binding, ep.rebound = spec, b, true
		ep.adopted = ep.adopted && d.behind
		return errors.Join(d.writeEndpoint(ep, true), d.attach(ep))
	}
	if err := d.Prepare([]EndpointSpec{spec}); err != nil {
		return err
	}
	slot := d.prepared[spec.Ifindex].slot
	gen, err := d.nextGeneration()
	if err != nil {
		return err
	}
	ep = &endpoint{spec: spec, binding: b, slot: slot, entry: bpf.PosternEndpoint{Gen: gen}}
	delete(d.prepared, spec.Ifindex)
	d.endpoints[spec.Ifindex] = ep
	if err := d.writeEndpoint(ep, true); err != nil {
		return err
	}
	if err := d.objs.EndpointSlots.Put(uint32(spec.Ifindex), slot); err != nil {
		return fmt.Errorf("endpoint_slots: %w", err)
	}
	if d.seedable(spec) {
		// Before the attach, so that no packet of theirs is dropped meanwhile; what
		// fails here is tried and told by Seed.
		d.unseeded = append(d.unseeded, spec.Ifindex)
		_ = d.seed(ep, d.older)
		delete(d.first, spec.Ifindex) // armed once more it is another pod's
	}
	return d.attach(ep)
}

// Verified reports whether an interface is armed just so, and was read back since.
func (d *Datapath) Verified(spec EndpointSpec, b Binding) bool {
	ep := d.endpoints[spec.Ifindex]
	return ep != nil && ep.verified && !ep.adopted && !d.behind && ep.binding == b && ep.spec.equal(spec)
}

func (s EndpointSpec) equal(o EndpointSpec) bool {
	addrs, err := keepPlaces(s.Addrs, o.Addrs)
	return s.Interface == o.Interface && s.Ifindex == o.Ifindex && slices.Equal(s.MAC, o.MAC) && err == nil && slices.Equal(s.Addrs, addrs) &&
		s.Bridged == o.Bridged && s.IPOptions == o.IPOptions && s.Quarantine == o.Quarantine
}

// errReplaced is keepPlaces' word that an address went.
var errReplaced = errors.New("an address of the pod was replaced")

// keepPlaces returns the addresses of now in the places that they had before: a
// flow knows the pod's end by its place. New ones follow.
func keepPlaces(before, now []netip.Addr) ([]netip.Addr, error) {
	out := slices.Clone(before)
	for _, a := range before {
		if !slices.Contains(now, a) {
			return now, errReplaced
		}
	}
	for _, a := range now {
		if !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out, nil
}

// Generation returns the number of the incarnation behind ifindex; 0 if it is not armed.
func (d *Datapath) Generation(ifindex int) uint32 {
	if ep := d.endpoints[ifindex]; ep != nil {
		return ep.entry.Gen
	}
	return 0
}

// Endpoints returns the ifindexes of what is armed, sorted.
func (d *Datapath) Endpoints() []int {
	out := make([]int, 0, len(d.endpoints))
	for i := range d.endpoints {
		out = append(out, i)
	}
	slices.Sort(out)
	return out
}

// Prepare does for many interfaces at once what Arm would do for each: the
// catch-all in one transaction, flow tables in one batch, and one look at the
// connections that are there. The kernel waits for a grace period, some
// milliseconds, for the first two.
func (d *Datapath) Prepare(specs []EndpointSpec) error {
	var fresh []EndpointSpec
	for _, s := range specs {
		_, armed := d.endpoints[s.Ifindex]
		if _, ready := d.prepared[s.Ifindex]; !armed && !ready {
			fresh = append(fresh, s)
		}
	}
	if len(fresh) == 0 {
		return nil
	}
	if d.catchAll != nil {
		if err := d.catchAll.addAll(fresh); err != nil {
			return err
		}
	}
	// Those behind one that finds no room fail; those before it do not.
	slots, fds := make([]uint32, 0, len(fresh)), make([]uint32, 0, len(fresh))
	var failed error
	for i, s := range fresh {
		slot, m, err := d.room()
		if err != nil {
			failed, fresh = fmt.Errorf("interface %s: %w", s.Interface, err), fresh[:i]
			break
		}
		defer func() { _ = m.Close() }() // the outer map holds it
		d.prepared[s.Ifindex] = prepared{slot, s}
		slots, fds = append(slots, slot), append(fds, uint32(m.FD()))
	}
	if len(fresh) == 0 {
		return failed
	}
	if _, err := d.objs.Flows.BatchUpdate(slots, fds, nil); err != nil {
		for _, s := range fresh {
			delete(d.prepared, s.Ifindex)
		}
		return errors.Join(failed, fmt.Errorf("flow tables: %w", err))
	}
	if old := slices.DeleteFunc(fresh, func(s EndpointSpec) bool { return !d.seedable(s) }); len(old) > 1 {
		d.older, _ = readConnections(old) // if not, Seed says why
	}
	return failed
}

// room returns a free slot and an empty flow table for it.
func (d *Datapath) room() (uint32, *ebpf.Map, error) {
	slot, err := d.freeSlot()
	if err != nil {
		return 0, nil, err
	}
	if err := d.resetAccepted(slot); err != nil {
		return 0, nil, err
	}
	m, err := d.flowTable(slot)
	return slot, m, err
}

func (d *Datapath) freeSlot() (uint32, error) {
	used := make(map[uint32]bool, len(d.endpoints))
	for _, ep := range d.endpoints {
		used[ep.slot] = true
	}
	for _, p := range d.prepared {
		used[p.slot] = true
	}
	for s := range uint32(MaxEndpoints) {
		if !used[s] {
			return s, nil
		}
	}
	return 0, fmt.Errorf("%d endpoints: %w", MaxEndpoints, ErrCapacity)
}

// newFlowTable gives the slot an empty table: nothing is inherited (I3).
func (d *Datapath) newFlowTable(slot uint32) error {
	m, err := d.flowTable(slot)
	if err != nil {
		return err
	}
	defer func() { _ = m.Close() }() // the outer map holds it
	if err := d.objs.Flows.Put(slot, m); err != nil {
		return fmt.Errorf("flow table: %w", err)
	}
	return nil
}

func (d *Datapath) flowTable(slot uint32) (*ebpf.Map, error) {
	spec := d.spec.Maps["flows"].InnerMap.Copy()
	spec.Name = fmt.Sprintf("flows_%d", slot)
	m, err := ebpf.NewMap(spec)
	if err != nil {
		return nil, fmt.Errorf("flow table: %w", err)
	}
	return m, nil
}

// writeEndpoint brings the endpoint's entry up to date (D2). services asks to
// look again at which services it stands behind.
func (d *Datapath) writeEndpoint(ep *endpoint, services bool) error {
	if ep.adopted {
		return nil
	}
	e := bpf.PosternEndpoint{Gen: ep.entry.Gen, Ifindex: uint32(ep.spec.Ifindex)}
	for dir := range 2 {
		if d.behind {
			break
		}
		if d.state != nil {
			e.Ruleset[0][dir] = d.state.RulesetID(ep.binding.Rulesets[dir])
			e.Ruleset[1][dir] = d.state.RulesetID(ep.binding.Staged[dir])
		}
		if ep.binding.Governed[dir] {
			e.Flags |= [2]uint32{flagGovernedEgress, flagGovernedIngress}[dir]
		}
	}
	if ep.spec.Bridged {
		e.Flags |= flagBridged
	}
	if ep.spec.IPOptions {
		e.Flags |= flagIPOptions
	}
	if ep.spec.Quarantine {
		e.Flags |= flagDenyAll
	}
	switch {
	case d.behind && ep.written:
		// What the rulesets' numbers mean is not in the kernel yet.
		e.Ruleset, e.World = ep.entry.Ruleset, ep.entry.World
		e.Flags |= ep.entry.Flags & (flagGovernedEgress | flagGovernedIngress)
		if e.Ruleset[0] == [2]uint32{} {
			e.Flags |= flagDenyAll // nothing was ever in force
		}
	case d.behind:
		e.Flags |= flagDenyAll
	case d.world != nil:
		e.World = uint8(d.world.index)
	}
	copy(e.Mac[:], ep.spec.MAC)
	e.Naddrs = uint8(len(ep.spec.Addrs))
	for i, a := range ep.spec.Addrs {
		e.Addrs[i].B = a.As16()
	}
	// Missing, they deny: no ground to leave the entry as it was.
	var selfErr error
	if services {
		selfErr = d.writeSelfBackends(ep)
	}
	if ep.written && e == ep.entry {
		return selfErr
	}
	ep.verified = false
	if err := d.writeAddrs(ep, &e); err != nil {
		return err
	}
	next := ep.copy
	if ep.written {
		next ^= 1
	}
	index := ep.slot*2 + next
	if err := d.objs.Endpoints.Put(index, e); err != nil {
		return fmt.Errorf("endpoints: %w", err)
	}
	if err := d.active.store(int(ep.slot), 0, index); err != nil {
		return err
	}
	ep.entry, ep.copy, ep.written = e, next, true
	return selfErr
}

// addrsOf returns the addresses of an entry that packets may come from: none while
// it is quarantined.
func addrsOf(e *bpf.PosternEndpoint) []bpf.PosternAddr {
	if e.Flags&flagDenyAll != 0 {
		return nil
	}
	return e.Addrs[:e.Naddrs]
}

// writeAddrs keeps the address index of the look after DNAT, for an endpoint
// whose entry becomes e: an address is the newest incarnation's that has it, and
// marked if others live that have it too.
func (d *Datapath) writeAddrs(ep *endpoint, e *bpf.PosternEndpoint) error {
	for _, a := range addrsOf(&ep.entry) {
		delete(d.owners[a], ep)
	}
	for _, a := range addrsOf(e) {
		if d.owners[a] == nil {
			d.owners[a] = map[*endpoint]struct{}{}
		}
		d.owners[a][ep] = struct{}{}
	}
	for _, a := range slices.Concat(addrsOf(&ep.entry), addrsOf(e)) {
		if err := d.writeAddr(a, ep, e.Gen); err != nil {
			return err
		}
	}
	return nil
}

// writeAddr writes who has an address; gen is ep's generation from now on.
func (d *Datapath) writeAddr(a bpf.PosternAddr, ep *endpoint, gen uint32) error {
	owners := d.owners[a]
	if len(owners) == 0 {
		delete(d.owners, a)
		if err := d.objs.EndpointAddrs.Delete(a); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("endpoint_addrs: %w", err)
		}
		return nil
	}
	var newest *endpoint
	generation := func(o *endpoint) uint32 {
		if o == ep {
			return gen
		}
		return o.entry.Gen
	}
	for o := range owners {
		if newest == nil || generation(o) > generation(newest) {
			newest = o
		}
	}
	slot := newest.slot
	if len(owners) > 1 {
		slot |= addrShared
	}
	if err := d.objs.EndpointAddrs.Put(a, slot); err != nil {
		return fmt.Errorf("endpoint_addrs: %w", err)
	}
	return nil
}

func (d *Datapath) writeSelfBackends(ep *endpoint) error {
	if d.state == nil {
		return nil
	}
	want := map[bpf.PosternSelfKey]uint32{}
	for _, s := range d.state.SelfBackends(ep.spec.Addrs) {
		want[bpf.PosternSelfKey{Gen: ep.entry.Gen, Service: s.Service}] = s.Others
	}
	for k, v := range want {
		if old, ok := ep.self[k]; ok && old == v {
			continue
		}
		if err := d.objs.SelfBackends.Put(k, v); err != nil {
			return fmt.Errorf("self_backends: %w", err)
		}
	}
	for k := range ep.self {
		if _, ok := want[k]; !ok {
			if err := d.objs.SelfBackends.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
				return fmt.Errorf("self_backends: %w", err)
			}
		}
	}
	ep.self = want
	return nil
}

// Disarm ends enforcement of an interface: first its programs, then its state,
// and the catch-all last, so that a packet in between is dropped. While the
// interface exists and its pod may still send, arm it with Quarantine instead.
func (d *Datapath) Disarm(ifindex int) error {
	ep := d.endpoints[ifindex]
	if ep == nil {
		return nil
	}
	delete(d.endpoints, ifindex)
	errs := []error{d.detach(ep)}
	if err := d.objs.EndpointSlots.Delete(uint32(ifindex)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		errs = append(errs, fmt.Errorf("endpoint_slots: %w", err))
	}
	errs = append(errs, d.writeAddrs(ep, &bpf.PosternEndpoint{}))
	for k := range ep.self {
		if err := d.objs.SelfBackends.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			errs = append(errs, fmt.Errorf("self_backends: %w", err))
		}
	}
	if err := d.objs.Flows.Delete(ep.slot); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		errs = append(errs, fmt.Errorf("flow table: %w", err))
	}
	errs = append(errs, d.dropStats(ep.entry.Gen))
	if d.catchAll != nil {
		errs = append(errs, d.catchAll.remove(ifindex))
	}
	return errors.Join(errs...)
}

func (d *Datapath) programs() [2]*ebpf.Program {
	return [2]*ebpf.Program{d.objs.FromPod, d.objs.ToPod}
}

var hookTypes = [2]ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress}

// attach puts both programs at the head of the interface's chains, or back
// there. A link cannot be moved and a program cannot be in a chain twice: a
// second instance of the program takes the head before the first goes.
func (d *Datapath) attach(ep *endpoint) error {
	for hook := range hookTypes {
		prog := d.programs()[hook]
		path := d.linkPath(ep.spec.Ifindex, hook)
		if ep.links[hook] != nil {
			head, err := d.atHead(ep, hook)
			if err != nil {
				return err
			}
			if head {
				if _, err := os.Lstat(path); err == nil {
					continue
				}
				if err := pinAs(ep.links[hook], path); err != nil {
					return fmt.Errorf("interface %s: %w", ep.spec.Interface, err)
				}
				continue
			}
			if prog, err = d.anotherInstance(hook); err != nil {
				return err
			}
		}
		l, err := link.AttachTCX(link.TCXOptions{
			Interface: ep.spec.Ifindex, Program: prog, Attach: hookTypes[hook], Anchor: link.Head(),
		})
		if err != nil {
			return fmt.Errorf("interface %s: attach %s: %w", ep.spec.Interface, hookTypes[hook], err)
		}
		if err := pinAs(l, path); err != nil {
			return errors.Join(fmt.Errorf("interface %s: %w", ep.spec.Interface, err), l.Close())
		}
		ep.verified = false
		if old := ep.links[hook]; old != nil {
			if err := old.Close(); err != nil {
				return fmt.Errorf("interface %s: old link: %w", ep.spec.Interface, err)
			}
		}
		ep.links[hook] = l
	}
	return nil
}

// pinAs pins l at path, in place of what may be pinned there.
func pinAs(l link.Link, path string) error {
	fresh := path + "_new"
	// The link remembers a path that may have been renamed or removed since.
	if err := l.Unpin(); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("pin link: %w", err)
	}
	if err := os.Remove(fresh); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("pin link: %w", err)
	}
	if err := l.Pin(fresh); err != nil {
		return fmt.Errorf("pin link: %w", err)
	}
	if err := os.Rename(fresh, path); err != nil {
		return fmt.Errorf("pin link: %w", err)
	}
	return nil
}

// anotherInstance loads a hook's program once more over the same maps.
func (d *Datapath) anotherInstance(hook int) (*ebpf.Program, error) {
	var fresh bpf.PosternPrograms
	err := d.spec.LoadAndAssign(&fresh, &ebpf.CollectionOptions{
		Maps: ebpf.MapOptions{PinPath: d.cfg.PinDir}, MapReplacements: map[string]*ebpf.Map{"scratch": d.objs.Scratch},
	})
	if err != nil {
		return nil, fmt.Errorf("load programs: %w", err)
	}
	old := d.objs.PosternPrograms
	d.objs.PosternPrograms = fresh
	return d.programs()[hook], old.Close()
}

// atHead reports whether our link is attached and the first of its chain.
func (d *Datapath) atHead(ep *endpoint, hook int) (bool, error) {
	info, err := ep.links[hook].Info()
	if err != nil {
		return false, fmt.Errorf("interface %s: link: %w", ep.spec.Interface, err)
	}
	if tcx := info.TCX(); tcx == nil || int(tcx.Ifindex) != ep.spec.Ifindex {
		return false, nil
	}
	res, err := link.QueryPrograms(link.QueryOptions{Target: ep.spec.Ifindex, Attach: hookTypes[hook]})
	if err != nil {
		return false, fmt.Errorf("interface %s: query %s: %w", ep.spec.Interface, hookTypes[hook], err)
	}
	if len(res.Programs) == 0 {
		return false, nil
	}
	id, ok := res.Programs[0].LinkID()
	return ok && id == info.ID, nil
}

func (d *Datapath) detach(ep *endpoint) error {
	var errs []error
	for hook, l := range ep.links {
		if err := os.Remove(d.linkPath(ep.spec.Ifindex, hook)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("unpin link: %w", err))
		}
		if l != nil {
			errs = append(errs, l.Close())
		}
	}
	return errors.Join(errs...)
}
