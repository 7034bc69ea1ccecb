package datapath

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/postern-dev/postern/internal/datapath/bpf"
	"github.com/postern-dev/postern/internal/packet"
)

// adopt takes over the endpoints that are pinned. Their programs are exchanged
// for this version's; their entries stay as they are until they get a binding.
func (d *Datapath) adopt() error {
	var ifindex, slot uint32
	var gone []uint32
	present, err := interfaces()
	if err != nil {
		return err
	}
	backends, err := d.selfBackends()
	if err != nil {
		return err
	}
	it := d.objs.EndpointSlots.Iterate()
	for it.Next(&ifindex, &slot) {
		ep, err := d.adoptOne(int(ifindex), slot, present[int(ifindex)], backends)
		if err != nil {
			if _, there := net.InterfaceByIndex(int(ifindex)); ep == nil || there == nil {
				return fmt.Errorf("adopt interface %d: %w", ifindex, err)
			}
			ep.spec.Interface = "" // it went meanwhile
		}
		d.endpoints[int(ifindex)] = ep
		for _, a := range addrsOf(&ep.entry) {
			if d.owners[a] == nil {
				d.owners[a] = map[*endpoint]struct{}{}
			}
			d.owners[a][ep] = struct{}{}
		}
		if ep.spec.Interface == "" {
			gone = append(gone, ifindex)
		}
	}
	if err := it.Err(); err != nil {
		return fmt.Errorf("endpoint_slots: %w", err)
	}
	for _, i := range gone {
		if err := d.Disarm(int(i)); err != nil {
			return err
		}
	}
	return d.dropStrayLinks()
}

// selfBackends reads which services the endpoints stand behind, by generation.
func (d *Datapath) selfBackends() (map[uint32]map[bpf.PosternSelfKey]uint32, error) {
	out := map[uint32]map[bpf.PosternSelfKey]uint32{}
	var k bpf.PosternSelfKey
	var others uint32
	it := d.objs.SelfBackends.Iterate()
	for it.Next(&k, &others) {
		if out[k.Gen] == nil {
			out[k.Gen] = map[bpf.PosternSelfKey]uint32{}
		}
		out[k.Gen][k] = others
	}
	if err := it.Err(); err != nil {
		return nil, fmt.Errorf("self_backends: %w", err)
	}
	return out, nil
}

// adoptOne takes over one endpoint. Its spec has no name if the interface, whose
// name is given, is gone. An error comes with the endpoint if that is known.
func (d *Datapath) adoptOne(ifindex int, slot uint32, name string, backends map[uint32]map[bpf.PosternSelfKey]uint32) (*endpoint, error) {
	ep := &endpoint{slot: slot, adopted: true, written: true}
	index := d.active.load(int(slot), 0)
	ep.copy = index & 1
	if err := d.objs.Endpoints.Lookup(index, &ep.entry); err != nil {
		return nil, fmt.Errorf("endpoints: %w", err)
	}
	ep.spec = EndpointSpec{
		Ifindex: ifindex, MAC: net.HardwareAddr(append([]byte(nil), ep.entry.Mac[:]...)),
		Bridged: ep.entry.Flags&flagBridged != 0, IPOptions: ep.entry.Flags&flagIPOptions != 0,
		Quarantine: ep.entry.Flags&flagDenyAll != 0,
	}
	for _, a := range ep.entry.Addrs[:min(int(ep.entry.Naddrs), MaxAddrs)] {
		ep.spec.Addrs = append(ep.spec.Addrs, packet.Unmap(netip.AddrFrom16(a.B)))
	}
	ep.self = backends[ep.entry.Gen]
	if name == "" || int(ep.entry.Ifindex) != ifindex {
		return ep, nil // the interface is gone: the caller disarms
	}
	ep.spec.Interface = name
	for hook, prog := range d.programs() {
		l, err := link.LoadPinnedLink(d.linkPath(ifindex, hook), nil)
		if errors.Is(err, fs.ErrNotExist) {
			continue // attach makes it again
		}
		if err != nil {
			return ep, fmt.Errorf("pinned link: %w", err)
		}
		if err := l.Update(prog); err != nil {
			// Detached with its interface, or by force: attach makes it again.
			if err := errors.Join(l.Unpin(), l.Close()); err != nil {
				return ep, fmt.Errorf("stale link: %w", err)
			}
			continue
		}
		ep.links[hook] = l
	}
	if d.catchAll != nil {
		if err := d.catchAll.add(ep.spec.Interface, ifindex); err != nil {
			return ep, err
		}
	}
	return ep, d.attach(ep)
}

// dropStrayLinks removes pins of links whose endpoint is not known: an attach
// that a former process did not finish. The interface stays in the catch-all.
func (d *Datapath) dropStrayLinks() error {
	dir := filepath.Join(d.cfg.PinDir, "links")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("pinned links: %w", err)
	}
	for _, e := range entries {
		var ifindex int
		if _, err := fmt.Sscanf(e.Name(), "%d_", &ifindex); err != nil {
			continue // netfilter links
		}
		name := filepath.Join(dir, e.Name())
		if ep, ok := d.endpoints[ifindex]; ok && (name == d.linkPath(ifindex, 0) || name == d.linkPath(ifindex, 1)) && ep != nil {
			continue
		}
		if err := os.Remove(name); err != nil {
			return fmt.Errorf("stray link: %w", err)
		}
	}
	return nil
}

// look is one place of the look after DNAT.
type look struct {
	name   string
	family link.NetfilterProtocolFamily
	hook   link.NetfilterInetHook
}

var looks = []look{
	{"nf_forward4", link.NetfilterProtoIPv4, link.NetfilterInetForward},
	{"nf_forward6", link.NetfilterProtoIPv6, link.NetfilterInetForward},
	{"nf_localin4", link.NetfilterProtoIPv4, link.NetfilterInetLocalIn},
	{"nf_localin6", link.NetfilterProtoIPv6, link.NetfilterInetLocalIn},
}

// lookPriorities are just before the filter tables (NF_IP_PRI_FILTER is 0). A
// priority holds one program: what a former process left has one, and the new
// one takes the other.
var lookPriorities = []int32{-10, -11}

func attachLookAt(lk look, prog *ebpf.Program) (link.Link, error) {
	var errs []error
	for _, priority := range lookPriorities {
		l, err := link.AttachNetfilter(link.NetfilterOptions{
			Program: prog, ProtocolFamily: lk.family, Hook: lk.hook, Priority: priority,
		})
		if err == nil {
			return l, nil
		}
		errs = append(errs, err)
		if !errors.Is(err, unix.EBUSY) {
			break
		}
	}
	return nil, errors.Join(errs...)
}

// attachLook attaches the look after DNAT. Netfilter links cannot be updated:
// a new one is attached beside the old, then takes its pin. Where the kernel
// cannot, services with mixed verdicts are denied and Deferrable says so.
func (d *Datapath) attachLook() error {
	var errs []error
	d.nfLinks = map[string]link.Link{}
	for _, lk := range looks {
		l, err := attachLookAt(lk, d.objs.LookAfterDnat)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", lk.name, err))
			continue
		}
		if err := pinAs(l, filepath.Join(d.cfg.PinDir, "links", lk.name)); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", lk.name, err), l.Close())
			continue
		}
		d.nfLinks[lk.name] = l
	}
	on := uint32(1)
	if len(errs) > 0 {
		on = 0
	}
	d.deferrable = on == 1
	if err := d.config.store(0, settingsPostDNAT, on); err != nil {
		return err
	}
	if on == 0 {
		d.lookErr = errors.Join(errs...)
	}
	return nil
}

// repairLook pins again what somebody unpinned: with this process the look would
// end, and the datapath would go on to leave verdicts to it.
func (d *Datapath) repairLook() ([]string, error) {
	var mended []string
	for _, name := range slices.Sorted(maps.Keys(d.nfLinks)) {
		path := filepath.Join(d.cfg.PinDir, "links", name)
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err := pinAs(d.nfLinks[name], path); err != nil {
			return mended, fmt.Errorf("%s: %w", name, err)
		}
		mended = append(mended, name+": pinned again")
	}
	return mended, nil
}

// Deferrable reports whether a Service whose backends get different verdicts
// can be decided after DNAT; if not, such flows are denied, and why.
func (d *Datapath) Deferrable() (bool, error) { return d.deferrable, d.lookErr }

// Uninstall removes every program, link, map and nft table below pinDir and of
// this network namespace, pods' interfaces last out of the catch-all. Nothing
// is enforced afterwards.
func Uninstall(cfg Config) error {
	cfg = cfg.withDefaults()
	var errs []error
	dir := filepath.Join(cfg.PinDir, "links")
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, err)
	}
	errs = append(errs, rcuOf(cfg.PinDir).repair())
	end := rcuOf(cfg.PinDir).expedite(len(entries) / 2)
	// The catch-all goes first: without the programs it would cut every pod off.
	errs = append(errs, removeCatchAll())
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if l, err := link.LoadPinnedLink(path, &ebpf.LoadPinOptions{}); err == nil {
			errs = append(errs, l.Unpin(), l.Close())
		} else {
			errs = append(errs, os.Remove(path))
		}
	}
	errs = append(errs, end())
	if err := os.RemoveAll(cfg.PinDir); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
