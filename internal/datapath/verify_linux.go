package datapath

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"

	"github.com/cilium/ebpf"

	"github.com/postern-dev/postern/internal/datapath/bpf"
	"github.com/postern-dev/postern/internal/datapath/mapstate"
	"github.com/postern-dev/postern/internal/packet"
)

// ErrNotEnforced is wrapped by Verify's errors: what the kernel holds is not what it should.
var ErrNotEnforced = errors.New("not enforced")

// Verify reads back from the kernel that an interface is enforced as wanted
// (D5): programs attached, pinned and at the head; its entry, flow table and
// rulesets in the maps; the catch-all's chain in place.
func (d *Datapath) Verify(ifindex int) error {
	ep := d.endpoints[ifindex]
	if ep == nil {
		return fmt.Errorf("interface %d: not armed: %w", ifindex, ErrNotEnforced)
	}
	ep.verified = false
	err := d.verify(ep)
	ep.verified = err == nil
	return err
}

func (d *Datapath) verify(ep *endpoint) error {
	ifindex := ep.spec.Ifindex
	bad := func(format string, args ...any) error {
		return fmt.Errorf("interface %s: %s: %w", ep.spec.Interface, fmt.Sprintf(format, args...), ErrNotEnforced)
	}
	for hook := range hookTypes {
		if ep.links[hook] == nil {
			return bad("no program at %s", hookTypes[hook])
		}
		head, err := d.atHead(ep, hook)
		if err != nil {
			return err
		}
		if !head {
			return bad("the program at %s is not attached or not the first", hookTypes[hook])
		}
	}
	var slot uint32
	if err := d.objs.EndpointSlots.Lookup(uint32(ifindex), &slot); err != nil || slot != ep.slot {
		return bad("slot %d in the kernel, want %d (%v)", slot, ep.slot, err)
	}
	var e bpf.PosternEndpoint
	if err := d.objs.Endpoints.Lookup(d.active.load(int(slot), 0), &e); err != nil {
		return bad("entry: %v", err)
	}
	if e != ep.entry {
		return bad("the kernel's entry differs from what was written")
	}
	if d.behind {
		return bad("the last change of policy is not in the kernel yet; it is judged by the one before")
	}
	for _, a := range addrsOf(&e) {
		var owner uint32
		if err := d.objs.EndpointAddrs.Lookup(a, &owner); err != nil || (owner&^addrShared != slot && owner&addrShared == 0) {
			return bad("address %s belongs to slot %d, want %d (%v)", packet.Unmap(netip.AddrFrom16(a.B)), owner, slot, err)
		}
	}
	var table *ebpf.Map
	if err := d.objs.Flows.Lookup(slot, &table); err != nil {
		return bad("flow table: %v", err)
	}
	if err := table.Close(); err != nil {
		return fmt.Errorf("flow table: %w", err)
	}
	for dir, id := range e.Ruleset[0] {
		if id == 0 {
			return bad("no ruleset for direction %d; everything is denied", dir)
		}
		if d.world == nil || uint32(e.World) != d.world.index {
			continue // adopted: judged by a world of a former process
		}
		c := d.state.Contents()
		page, err := d.world.readCell(id)
		if err != nil || page != c.Cells[id] {
			return bad("ruleset %d is not in the kernel as written (%v)", id, err)
		}
		if list, err := d.world.readCell(uint32(page)); err != nil || list != c.Cells[page] {
			return bad("the default list of ruleset %d is not in the kernel as written (%v)", id, err)
		}
	}
	if d.catchAll != nil && d.catchAll.devices[chainName(ifindex)] != ep.spec.Interface {
		return bad("no catch-all")
	}
	return nil
}

// Audit puts back what somebody else removed: programs that are no longer at
// the head, pins, the catch-all. It returns what it mended.
func (d *Datapath) Audit() ([]string, error) {
	var mended []string
	var errs []error
	present, err := interfaces()
	if err != nil {
		return nil, err
	}
	pins, err := d.repairPins()
	mended, errs = append(mended, pins...), append(errs, err)
	if d.behind && d.state != nil {
		if err := d.commit(&mapstate.Changes{}, true); err != nil {
			errs = append(errs, fmt.Errorf("the last change of policy is not in force, the one before is: %w", err))
		} else {
			mended = append(mended, "the last change of policy, which the kernel had no room for")
		}
	}
	renamed, err := d.follow(present)
	mended, errs = append(mended, renamed...), append(errs, err)
	for _, ifindex := range d.Endpoints() {
		ep := d.endpoints[ifindex]
		if present[ifindex] == "" {
			continue // gone: the caller disarms it
		}
		before := ep.links
		if err := d.attach(ep); err != nil {
			errs = append(errs, err)
			continue
		}
		if before != ep.links {
			mended = append(mended, "interface "+ep.spec.Interface+": programs attached again")
		}
	}
	looks, err := d.repairLook()
	mended, errs = append(mended, looks...), append(errs, err)
	if d.catchAll != nil {
		back, err := d.catchAll.repair()
		errs = append(errs, err)
		for _, dev := range back {
			mended = append(mended, "interface "+dev+": catch-all put back")
		}
	}
	slices.Sort(mended)
	return mended, errors.Join(errs...)
}

// repairPins makes the directories again and pins the maps that somebody unpinned:
// without a pin enforcement would end with this process.
func (d *Datapath) repairPins() ([]string, error) {
	var mended []string
	for _, dir := range []string{d.cfg.PinDir, filepath.Join(d.cfg.PinDir, "links")} {
		switch err := os.Mkdir(dir, 0o700); {
		case err == nil:
			mended = append(mended, "pin directory "+dir+": made again")
		case !errors.Is(err, fs.ErrExist):
			return mended, fmt.Errorf("pin directory: %w; until it is there, enforcement ends with this process", err)
		}
	}
	pinned := reflect.ValueOf(d.objs.PosternMaps)
	for i := range pinned.NumField() {
		name := pinned.Type().Field(i).Tag.Get("ebpf")
		m, ok := reflect.TypeAssert[*ebpf.Map](pinned.Field(i))
		if spec := d.spec.Maps[name]; !ok || spec == nil || spec.Pinning != ebpf.PinByName {
			continue
		}
		path := filepath.Join(d.cfg.PinDir, name)
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		// The map remembers a path that was removed.
		if err := m.Unpin(); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return mended, fmt.Errorf("map %s: %w", name, err)
		}
		if err := m.Pin(path); err != nil {
			return mended, fmt.Errorf("map %s: %w; until it is pinned, enforcement ends with this process", name, err)
		}
		mended = append(mended, "map "+name+": pinned again")
	}
	return mended, nil
}

// FollowNames puts renamed interfaces under the catch-all again and returns what
// it mended.
func (d *Datapath) FollowNames() ([]string, error) {
	present, err := interfaces()
	if err != nil {
		return nil, err
	}
	return d.follow(present)
}

func (d *Datapath) follow(present map[int]string) (mended []string, err error) {
	var errs []error
	for _, ifindex := range d.Endpoints() {
		ep, name := d.endpoints[ifindex], present[ifindex]
		if name == "" || name == ep.spec.Interface {
			continue
		}
		ep.verified = false
		if d.catchAll != nil {
			if err := d.catchAll.add(name, ifindex); err != nil {
				errs = append(errs, err)
				continue
			}
		}
		mended = append(mended, "interface "+name+", before "+ep.spec.Interface+": catch-all put back")
		ep.spec.Interface = name
	}
	return mended, errors.Join(errs...)
}

// Interface returns the name of what is armed behind ifindex, as last seen; empty if nothing is.
func (d *Datapath) Interface(ifindex int) string {
	if ep := d.endpoints[ifindex]; ep != nil {
		return ep.spec.Interface
	}
	return ""
}

// interfaces returns the names of this network namespace's by ifindex, by one dump.
func interfaces() (map[int]string, error) {
	list, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("interfaces: %w", err)
	}
	out := make(map[int]string, len(list))
	for _, i := range list {
		out[i.Index] = i.Name
	}
	return out, nil
}

// Quarantine denies everything on an interface that has lost its pod. It stays
// attached until the interface is gone and Disarm is called.
func (d *Datapath) Quarantine(ifindex int) error {
	ep := d.endpoints[ifindex]
	if ep == nil || (ep.spec.Quarantine && !ep.adopted) {
		return nil
	}
	ep.spec.Quarantine, ep.adopted, ep.rebound, ep.binding = true, false, true, Binding{}
	return d.writeEndpoint(ep, true)
}

// Renew makes an armed interface a new incarnation: a new generation and an
// empty flow table. Until it is armed again it is quarantined.
func (d *Datapath) Renew(ifindex int) error {
	ep := d.endpoints[ifindex]
	if ep == nil {
		return nil
	}
	if err := d.Quarantine(ifindex); err != nil {
		return err
	}
	gen, err := d.nextGeneration()
	if err != nil {
		return err
	}
	if err := grace(); err != nil {
		return err
	}
	if err := d.newFlowTable(ep.slot); err != nil {
		return err
	}
	if err := d.dropStats(ep.entry.Gen); err != nil {
		return err
	}
	for k := range ep.self {
		if err := d.objs.SelfBackends.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("self_backends: %w", err)
		}
	}
	ep.self = nil
	ep.entry.Gen = gen
	ep.written, ep.verified = false, false // the entry differs in its generation
	return nil
}

// readCell asks the kernel, not the mapped memory.
func (w *world) readCell(i uint32) (uint64, error) {
	var v uint64
	if err := w.cells.Lookup(i, &v); err != nil {
		return 0, fmt.Errorf("cells: %w", err)
	}
	return v, nil
}
