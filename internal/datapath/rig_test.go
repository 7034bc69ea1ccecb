package datapath_test

import (
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/postern-dev/postern/internal/datapath"
	"github.com/postern-dev/postern/internal/datapath/mapstate"
	"github.com/postern-dev/postern/internal/flow"
	"github.com/postern-dev/postern/internal/packet/packettest"
	"github.com/postern-dev/postern/internal/policy"
	"github.com/postern-dev/postern/internal/testenv"
)

// rig is a Datapath in a network and mount namespace of its own, with one veth
// per pod. It belongs to the test's goroutine, whose thread ends with it.
type rig struct {
	tb  testing.TB
	dir string
	d   *datapath.Datapath
	cfg datapath.Config

	ids  map[policy.RuleRef]uint32
	refs []policy.RuleRef
	pods map[policy.PodKey]datapath.EndpointSpec
}

func newRig(tb testing.TB, cfg datapath.Config) *rig {
	tb.Helper()
	testenv.RequireRoot(tb)
	runtime.LockOSThread() // never unlocked: the thread is thrown away
	if err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWNS); err != nil {
		tb.Fatal(err)
	}
	if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		tb.Fatal(err)
	}
	r := &rig{tb: tb, dir: tb.TempDir(), cfg: cfg, ids: map[policy.RuleRef]uint32{}, pods: map[policy.PodKey]datapath.EndpointSpec{}}
	if err := unix.Mount("bpf", r.dir, "bpf", 0, ""); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if r.d != nil {
			if err := r.d.Close(); err != nil {
				tb.Error(err)
			}
		}
		if err := unix.Unmount(r.dir, unix.MNT_DETACH); err != nil && !os.IsNotExist(err) {
			tb.Error(err)
		}
	})
	r.cfg.PinDir = r.dir + "/postern"
	r.open()
	return r
}

func (r *rig) open() {
	r.tb.Helper()
	var err error
	if r.d, err = datapath.Open(r.cfg, r.ruleID); err != nil {
		r.tb.Fatalf("%+v", err)
	}
}

func (r *rig) ruleID(ref policy.RuleRef) uint32 {
	id, ok := r.ids[ref]
	if !ok {
		r.refs = append(r.refs, ref)
		id = uint32(flow.ReasonMax) - 1 + uint32(len(r.refs))
		r.ids[ref] = id
	}
	return id
}

// rule returns the RuleRef of an ID.
func (r *rig) rule(id uint32) policy.RuleRef {
	if i := int(id) - int(flow.ReasonMax); i >= 0 && i < len(r.refs) {
		return r.refs[i]
	}
	return policy.RuleRef{}
}

var podMAC = net.HardwareAddr{2, 0, 0, 0, 0, 1}

// addVeth makes a veth pair whose pod end lives in the same namespace, unused.
func (r *rig) addVeth(name string, addrs ...netip.Addr) datapath.EndpointSpec {
	r.tb.Helper()
	v := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: "p" + name, PeerHardwareAddr: podMAC}
	if err := netlink.LinkAdd(v); err != nil {
		r.tb.Fatal(err)
	}
	l, err := netlink.LinkByName(name)
	if err != nil {
		r.tb.Fatal(err)
	}
	for _, n := range []string{name, "p" + name} {
		l, err := netlink.LinkByName(n)
		if err != nil {
			r.tb.Fatal(err)
		}
		// No addresses of its own: the kernel's neighbour discovery would mix with the test's frames.
		if err := netlink.LinkSetIP6AddrGenMode(l, 1); err != nil { // IN6_ADDR_GEN_MODE_NONE
			r.tb.Fatal(err)
		}
		if err := netlink.LinkSetUp(l); err != nil {
			r.tb.Fatal(err)
		}
	}
	return datapath.EndpointSpec{Interface: name, Ifindex: l.Attrs().Index, MAC: podMAC, Addrs: addrs}
}

// load compiles s, applies it and arms every pod of it.
func (r *rig) load(s *policy.Snapshot) *policy.Compiled {
	r.tb.Helper()
	c, err := policy.Compile(s, nil)
	if err != nil {
		r.tb.Fatal(err)
	}
	u := mapstate.Update{Sets: map[policy.SetID]policy.SetDelta{}, RulesetsAdded: c.Rulesets, Topology: &mapstate.Topology{Services: s.Services, Nodes: s.Nodes}}
	for id, content := range c.Sets {
		u.Sets[id] = policy.SetDelta{Add: content}
	}
	if err := r.d.Apply(u, nil); err != nil {
		r.tb.Fatal(err)
	}
	for i := range s.Pods {
		p := &s.Pods[i]
		if _, ok := c.Endpoints[p.Key()]; !ok || len(p.IPs) > datapath.MaxAddrs {
			continue
		}
		spec := r.addVeth("v"+string(rune('a'+i/26))+string(rune('a'+i%26)), p.IPs...)
		r.pods[p.Key()] = spec
		if err := r.d.Arm(spec, binding(c, p.Key())); err != nil {
			r.tb.Fatal(err)
		}
	}
	return c
}

func binding(c *policy.Compiled, pod policy.PodKey) datapath.Binding {
	b := datapath.Binding{Rulesets: c.Endpoints[pod]}
	for dir, id := range b.Rulesets {
		b.Governed[dir] = c.Rulesets[id].Selected
	}
	return b
}

// run gives one frame to a hook of a pod's interface and returns tcx's answer.
func (r *rig) run(spec datapath.EndpointSpec, dir policy.Direction, frame []byte) uint32 {
	r.tb.Helper()
	return r.runMark(spec, dir, frame, 0)
}

func (r *rig) runMark(spec datapath.EndpointSpec, dir policy.Direction, frame []byte, mark uint32) uint32 {
	r.tb.Helper()
	ctx := skb{Mark: mark, Ifindex: uint32(spec.Ifindex)}
	ret, err := r.d.Program(dir).Run(&ebpf.RunOptions{Data: frame, Context: &ctx})
	if err != nil {
		r.tb.Fatalf("test run of %d bytes: %v", len(frame), err)
	}
	return ret
}

// skb is struct __sk_buff. Source: include/uapi/linux/bpf.h.
type skb struct {
	Len, PktType, Mark, QueueMapping, Protocol, VlanPresent, VlanTCI, VlanProto, Priority,
	IngressIfindex, Ifindex, TCIndex uint32
	CB                                                                  [5]uint32
	Hash, TCClassid, Data, DataEnd, NapiID, Family, RemoteIP4, LocalIP4 uint32
	RemoteIP6, LocalIP6                                                 [4]uint32
	RemotePort, LocalPort, DataMeta                                     uint32
	FlowKeys, Tstamp                                                    uint64
	WireLen, GSOSegs                                                    uint32
	SK                                                                  uint64
	GSOSize, TstampType                                                 uint32
	Hwtstamp                                                            uint64
}

const (
	tcxNext = 0xffffffff
	tcxDrop = 2
)

// hostMAC is the address of the interface's host side.
func hostMAC(tb testing.TB, spec datapath.EndpointSpec) packettest.MAC {
	tb.Helper()
	i, err := net.InterfaceByIndex(spec.Ifindex)
	if err != nil {
		tb.Fatal(err)
	}
	return packettest.MACFrom(i.HardwareAddr)
}
