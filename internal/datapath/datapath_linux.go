package datapath

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/postern-dev/postern/internal/datapath/bpf"
	"github.com/postern-dev/postern/internal/datapath/mapstate"
	"github.com/postern-dev/postern/internal/policy"
)

// ErrCapacity is wrapped by errors that say what does not fit in the kernel's maps.
var ErrCapacity = mapstate.ErrCapacity

// Limits of the layout. Source: bpf/types.h.
const (
	LayoutVersion = 3
	MaxEndpoints  = 1024
	MaxAddrs      = 8
	maxWorlds     = 4
)

// DefaultMark is the "inspected" bit. kube-proxy owns 0x4000 and 0x8000,
// Cilium 0x0f00 and the upper half, Calico the upper half, Istio 0x0539.
const DefaultMark = 0x2000

// Config says where and how to enforce. The zero value of a field means its default.
type Config struct {
	// PinDir is a directory of a mounted bpffs, for this node alone.
	PinDir string
	// Mark is the one bit of skb->mark that says "inspected". It takes part in
	// the catch-all of every interface: changing it needs an uninstall.
	Mark uint32
	// FlowQuota is the number of flows that one pod may have; default 16384.
	FlowQuota uint32
	Timeouts  Timeouts
	// NoCatchAll leaves the nftables table away; for tests of the programs alone.
	NoCatchAll bool
}

// Timeouts are the idle times after which flow state is removed.
type Timeouts struct {
	Opening, TCP, Closing, UDP, ICMP time.Duration
}

func (c Config) withDefaults() Config {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	if c.Mark == 0 {
		c.Mark = DefaultMark
	}
	if c.FlowQuota == 0 {
		c.FlowQuota = 16384
	}
	// As netfilter's conntrack, with kube-proxy's 24 hours for idle connections.
	def(&c.Timeouts.Opening, time.Minute)
	def(&c.Timeouts.TCP, 24*time.Hour)
	def(&c.Timeouts.Closing, 10*time.Second)
	def(&c.Timeouts.UDP, 2*time.Minute)
	def(&c.Timeouts.ICMP, 30*time.Second)
	return c
}

// Datapath is the node's enforcement. It is not safe for concurrent use, except
// for what a method says.
type Datapath struct {
	cfg    Config
	spec   *ebpf.CollectionSpec
	objs   bpf.PosternObjects
	ruleID func(policy.RuleRef) uint32

	config, active *shared
	state          *mapstate.World
	world          *world
	catchAll       *catchAll

	endpoints map[int]*endpoint                          // by ifindex
	owners    map[bpf.PosternAddr]map[*endpoint]struct{} // endpoints by their addresses, without those in quarantine
	prepared  map[int]prepared                           // what Arm will take, by ifindex
	first     map[int]string                             // interfaces that were there at the first install: their names by ifindex
	unseeded  []int                                      // armed since the last Seed, by ifindex
	older     connections                                // what Arm seeds before it attaches; may be nil
	nfLinks   map[string]link.Link                       // by look.name
	revision  uint32
	// behind: the kernel could not be given all that state says. Until it is,
	// endpoints keep the rulesets of their world.
	behind bool
	// deferrable: what look_after_dnat needs is attached.
	deferrable bool
	lookErr    error
}

// Open loads the programs and adopts what is pinned in cfg.PinDir. Packets go
// on being judged by what was there before: nothing is changed yet but the
// programs themselves, each by an atomic exchange.
func Open(cfg Config, ruleID func(policy.RuleRef) uint32) (d *Datapath, err error) {
	cfg = cfg.withDefaults()
	if cfg.Mark&(cfg.Mark-1) != 0 {
		return nil, fmt.Errorf("mark %#x: want exactly one bit", cfg.Mark)
	}
	for _, dir := range []string{cfg.PinDir, filepath.Join(cfg.PinDir, "links")} {
		if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("pin directory: %w (is a bpffs mounted there? mount -t bpf bpf %s)", err, filepath.Dir(cfg.PinDir))
		}
	}
	if err := rcuOf(cfg.PinDir).repair(); err != nil {
		return nil, err
	}
	d = &Datapath{cfg: cfg, ruleID: ruleID, endpoints: map[int]*endpoint{}, owners: map[bpf.PosternAddr]map[*endpoint]struct{}{}, prepared: map[int]prepared{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.Close())
			d = nil
		}
	}()
	if d.spec, err = bpf.LoadPostern(); err != nil {
		return d, fmt.Errorf("embedded programs: %w", err)
	}
	d.spec.Maps["flows"].InnerMap.MaxEntries = cfg.FlowQuota
	for name, m := range d.spec.Maps {
		if name != "scratch" && name[0] != '.' {
			m.Pinning = ebpf.PinByName
		}
	}
	if err = d.spec.LoadAndAssign(&d.objs, &ebpf.CollectionOptions{Maps: ebpf.MapOptions{PinPath: cfg.PinDir}}); err != nil {
		if errors.Is(err, ebpf.ErrMapIncompatible) {
			return d, fmt.Errorf("pinned maps in %s are of another layout; uninstall, then start again: %w", cfg.PinDir, err)
		}
		return d, fmt.Errorf("load programs: %w", err)
	}
	if d.config, err = mapShared(d.objs.Config); err != nil {
		return d, err
	}
	if d.active, err = mapShared(d.objs.Active); err != nil {
		return d, err
	}
	if err = d.openConfig(); err != nil {
		return d, err
	}
	if err = d.rememberFirst(); err != nil {
		return d, err
	}
	if !cfg.NoCatchAll {
		if d.catchAll, err = openCatchAll(cfg.Mark); err != nil {
			return d, err
		}
	}
	if err = d.adopt(); err != nil {
		return d, err
	}
	if err = d.attachLook(); err != nil {
		return d, err
	}
	d.state = mapstate.New(ruleID)
	return d, nil
}

// openConfig writes the settings, keeping what lives longer than a process.
func (d *Datapath) openConfig() error {
	var s bpf.PosternSettings
	if err := d.objs.Config.Lookup(uint32(0), &s); err != nil {
		return fmt.Errorf("settings: %w", err)
	}
	switch {
	case s.Layout == 0:
		s.Layout, s.Revision, s.NextGen, s.Mark = LayoutVersion, 1, 1, d.cfg.Mark
	case s.Layout != LayoutVersion:
		return fmt.Errorf("pinned state has layout %d, this version has %d; uninstall, then start again", s.Layout, LayoutVersion)
	case s.Mark != d.cfg.Mark:
		return fmt.Errorf("mark %#x: pinned state uses %#x; uninstall, then start again", d.cfg.Mark, s.Mark)
	}
	t := d.cfg.Timeouts
	s.TimeoutOpeningNs = uint64(t.Opening)
	s.TimeoutTcpNs = uint64(t.TCP)
	s.TimeoutClosingNs = uint64(t.Closing)
	s.TimeoutUdpNs = uint64(t.UDP)
	s.TimeoutIcmpNs = uint64(t.ICMP)
	d.revision = s.Revision
	if err := d.objs.Config.Put(uint32(0), s); err != nil {
		return fmt.Errorf("settings: %w", err)
	}
	return nil
}

// Byte offsets of 32-bit words in struct settings.
const (
	settingsRevision = 4
	settingsPostDNAT = 12
	settingsNextGen  = 16
)

func (d *Datapath) nextGeneration() (uint32, error) {
	gen := d.config.load(0, settingsNextGen)
	if gen == 0 {
		gen = 1
	}
	return gen, d.config.store(0, settingsNextGen, gen+1)
}

// Binding says which rulesets an endpoint has, by policy.Ruleset ID.
type Binding struct {
	// Rulesets and Governed are by policy.Direction.
	Rulesets [2]string
	Governed [2]bool
	// Staged rulesets are judged in the same pass and change no verdict (I9); empty for none.
	Staged [2]string
}

// Apply makes a revision real: contents first, then the endpoints' bindings
// (by ifindex; endpoints that are not named keep theirs), then the revision
// number. When it returns without an error, no packet is judged
// by the state before. Errors about single rulesets are joined; the endpoints
// that name such a ruleset are denied (I6).
func (d *Datapath) Apply(u mapstate.Update, bindings map[int]Binding) error {
	ch, stateErr := d.state.Apply(u)
	for _, ifindex := range slices.Sorted(maps.Keys(bindings)) {
		if ep, ok := d.endpoints[ifindex]; ok {
			ep.binding, ep.rebound = bindings[ifindex], true
		}
	}
	return errors.Join(stateErr, d.commit(ch, u.Topology != nil))
}

// commit makes state real. If that fails, all of what the kernel was to get is
// given to it as a new world the next time.
func (d *Datapath) commit(ch *mapstate.Changes, services bool) error {
	c := d.state.Contents()
	var old *world
	if d.world == nil || d.behind || ch.Relayout || !d.world.fits(c) {
		w, err := d.replaceWorld(c)
		if err != nil {
			d.behind = true
			return err
		}
		old = w
	} else if err := d.world.early(c, ch); err != nil {
		// A hash map may be full before its count says so.
		w, err2 := d.replaceWorld(c)
		if err2 != nil {
			d.behind = true
			return errors.Join(err, err2)
		}
		old = w
	}
	services = services || d.behind
	d.behind = false
	var errs []error
	for _, ifindex := range slices.Sorted(maps.Keys(d.endpoints)) {
		ep := d.endpoints[ifindex]
		ep.adopted = ep.adopted && !ep.rebound
		errs = append(errs, d.writeEndpoint(ep, services))
		// What its entry names must stay as it is until it is written.
		d.behind = d.behind || (!ep.adopted && uint32(ep.entry.World) != d.world.index)
	}
	d.revision++
	errs = append(errs, d.config.store(0, settingsRevision, d.revision), grace())
	if !d.behind && errors.Join(errs...) == nil {
		d.state.Freed()
	}
	if old != nil {
		errs = append(errs, old.close()) // endpoints that still name it keep it
	}
	return errors.Join(append(errs, d.dropWorlds())...)
}

// dropWorlds takes worlds that no endpoint names out of the outer maps.
func (d *Datapath) dropWorlds() error {
	used := map[uint8]bool{uint8(d.world.index): true}
	for _, ep := range d.endpoints {
		used[ep.entry.World] = true
	}
	for i := range uint8(maxWorlds) {
		if used[i] {
			continue
		}
		for _, m := range d.outer() {
			if err := m.Delete(uint32(i)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
				return fmt.Errorf("world %d: %w", i, err)
			}
		}
	}
	return nil
}

// replaceWorld makes a new world of c the current one and returns the old, to
// be closed when no endpoint names it any more.
func (d *Datapath) replaceWorld(c mapstate.Contents) (old *world, err error) {
	used := map[uint8]bool{}
	for _, ep := range d.endpoints {
		used[ep.entry.World] = true
	}
	if d.world != nil {
		used[uint8(d.world.index)] = true
	}
	for i := range uint8(maxWorlds) {
		if used[i] {
			continue
		}
		w, err := d.newWorld(uint32(i), c)
		if err != nil {
			return nil, err
		}
		old, d.world = d.world, w
		return old, nil
	}
	return nil, fmt.Errorf("no free world of %d: %w", maxWorlds, ErrCapacity)
}

// Revision is the number of the last revision applied.
func (d *Datapath) Revision() uint32 { return d.revision }

// Contents is what the kernel should hold now, for status and tests.
func (d *Datapath) Contents() *mapstate.World { return d.state }

// Close releases the process's hold. Enforcement goes on: everything is pinned.
func (d *Datapath) Close() error {
	var errs []error
	for _, ep := range d.endpoints {
		errs = append(errs, ep.close())
	}
	for _, l := range d.nfLinks {
		errs = append(errs, l.Close())
	}
	if d.world != nil {
		errs = append(errs, d.world.close())
	}
	if d.catchAll != nil {
		errs = append(errs, d.catchAll.close())
	}
	errs = append(errs, d.config.close(), d.active.close(), d.objs.Close())
	return errors.Join(errs...)
}

// Program returns the program of a direction, for BPF_PROG_TEST_RUN.
func (d *Datapath) Program(dir policy.Direction) *ebpf.Program { return d.programs()[dir] }

// LoadOver loads other programs over the same maps; for benchmarks.
func (d *Datapath) LoadOver(spec *ebpf.CollectionSpec, to any) error {
	spec.Maps["flows"].InnerMap.MaxEntries = d.cfg.FlowQuota
	for name, m := range spec.Maps {
		if _, ours := d.spec.Maps[name]; ours && name != "scratch" && name[0] != '.' {
			m.Pinning = ebpf.PinByName
		}
	}
	return spec.LoadAndAssign(to, &ebpf.CollectionOptions{Maps: ebpf.MapOptions{PinPath: d.cfg.PinDir}})
}
