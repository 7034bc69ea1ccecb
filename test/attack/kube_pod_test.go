//go:build linux

package attack

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"

	"github.com/postern-dev/postern/internal/lab"
	"github.com/postern-dev/postern/internal/packet/packettest"
)

// terminating removes a Pod object whose interface goes on sending.
func (x *try) terminating() {
	w := x.w
	old, err := w.lab.AddPod(x.Context(), lab.PodSpec{Namespace: "shop", Name: "dying", Labels: map[string]string{"app": "dying"}, Servers: []lab.Server{}}, lab.AddPodOptions{})
	if err != nil {
		x.Fatal(err)
	}
	w.manifests()
	w.state("shop/dying", "enforced")
	defer func() {
		w.closeSenders()
		if err := w.lab.DeletePod("shop/dying"); err != nil {
			x.Error(err)
		}
		w.manifests()
	}()
	frame := func(tok packettest.Token, to netip.Addr, port uint16) []byte {
		return packettest.Build(old.Eth(), ipHeader(old.IP(to), to), packettest.UDP{SrcPort: x.port(), DstPort: port}, tok)
	}
	if x.on {
		if err := os.Remove(filepath.Join(w.agent.Manifests, "lab", "lab-pod_shop_dying.yaml")); err != nil {
			x.Fatal(err)
		}
	}
	// While the object goes, and for good afterwards.
	deadline := time.Now().Add(600 * time.Millisecond)
	for i := 0; time.Now().Before(deadline) && (x.on || i < 4); i++ {
		v := i % 2
		x.sendFrom(old, lab.Raw, frame(x.attackToken(fmt.Sprintf("packet %d after the object went", i), 1), evil(v), 443))
		time.Sleep(5 * time.Millisecond)
	}
	if !x.on {
		return
	}
	s, err := w.agent.Client.Status(x.Context())
	if err != nil {
		x.Fatal(err)
	}
	if s.Endpoints["quarantined"] != 1 {
		x.Errorf("status says %v, want one quarantined", s.Endpoints)
	}
	// An agent that starts now finds an interface of nobody.
	if err := w.agent.Kill(); err != nil {
		x.Fatal(err)
	}
	x.restart()
	for v := range 2 {
		for _, to := range []netip.Addr{evil(v), web(v)} {
			x.sendFrom(old, lab.Raw, frame(x.attackToken("after a restart "+family(v), 1), to, controlPort))
		}
	}
	if !slices.ContainsFunc(s.Problems, func(p problem) bool { return strings.Contains(p.Message, "shop/dying") }) {
		x.Errorf("no problem names the interface: %v", s.Problems)
	}
	x.settle()
	x.recount()
}

// sameName deletes a pod and starts another of the same name with other labels.
func (x *try) sameName() {
	w := x.w
	for round, labels := range []map[string]string{{"app": "frontend"}, {"app": "job"}} {
		p, err := w.lab.AddPod(x.Context(), lab.PodSpec{Namespace: "shop", Name: "job", Labels: labels, Servers: []lab.Server{}}, lab.AddPodOptions{})
		if err != nil {
			x.Fatal(err)
		}
		w.manifests()
		w.state("shop/job", "enforced")
		before := w.drops(x.T, p)
		for v := range 2 {
			to := web(v)
			var tok packettest.Token
			if round == 0 {
				tok = x.controlToken("allowed by the first one's labels " + family(v))
			} else {
				tok = x.attackToken("denied by the second one's labels "+family(v), 1)
			}
			x.sendFrom(p, lab.Raw, packettest.Build(p.Eth(), ipHeader(p.IP(to), to), packettest.UDP{SrcPort: 4000, DstPort: controlPort}, tok))
		}
		time.Sleep(20 * time.Millisecond)
		if x.on && round == 1 {
			if got := delta(before, w.drops(x.T, p)); got["networkpolicy shop/deny-all egress isolation"] != 2 {
				x.Errorf("drops of the second one: %v", got)
			}
		}
		w.closeSenders()
		if err := w.lab.DeletePod("shop/job"); err != nil {
			x.Fatal(err)
		}
		w.manifests()
		// Else the next one's "enforced" would be this one's.
		w.forgotten("shop/job")
	}
}

// churn starts and stops pods, each with denied packets, and looks at what is left.
func (x *try) churn() {
	w := x.w
	left := func() (pins, slots int) {
		if !x.on {
			return 0, 0
		}
		bpffs, err := w.lab.BPFFS(w.node.Name)
		if err != nil {
			x.Fatal(err)
		}
		files, err := filepath.Glob(filepath.Join(bpffs, "postern", "links", "*"))
		if err != nil {
			x.Fatal(err)
		}
		m, err := ebpf.LoadPinnedMap(filepath.Join(bpffs, "postern", "endpoint_slots"), nil)
		if err != nil {
			x.Fatal(err)
		}
		defer func() { _ = m.Close() }()
		var k, v uint32
		for it := m.Iterate(); it.Next(&k, &v); {
			slots++
		}
		return len(files), slots
	}
	pins, slots := left()
	for i := range 15 {
		p, err := w.lab.AddPod(x.Context(), lab.PodSpec{Namespace: "shop", Name: "churn", Labels: map[string]string{"app": "churn"}, Servers: []lab.Server{}}, lab.AddPodOptions{})
		if err != nil {
			x.Fatal(err)
		}
		w.manifests()
		w.state("shop/churn", "enforced")
		x.sendFrom(p, lab.Raw, packettest.Build(p.Eth(), ipHeader(p.IP(evil(i%2)), evil(i%2)), packettest.UDP{SrcPort: 4000, DstPort: 443}, x.attackToken(fmt.Sprintf("pod %d", i), 1)))
		x.settle()
		w.closeSenders()
		if err := w.lab.DeletePod("shop/churn"); err != nil {
			x.Fatal(err)
		}
		w.manifests()
	}
	for range 100 {
		if p, s := left(); p == pins && s == slots {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	p, s := left()
	x.Errorf("%d pins and %d entries are left, want %d and %d", p, s, pins, slots)
}

// secondInterface gives the pod another way out. It can't be enforced; it must be said.
func (x *try) secondInterface() {
	w := x.w
	h, err := w.node.Netlink()
	if err != nil {
		x.Fatal(err)
	}
	defer h.Close()
	ph, err := x.pod.Netlink()
	if err != nil {
		x.Fatal(err)
	}
	defer ph.Close()
	ns, err := os.Open(x.pod.Path)
	if err != nil {
		x.Fatal(err)
	}
	defer func() { _ = ns.Close() }()
	mac := packettest.MAC{2, 7, 7, 7, 7, 7}
	gw := packettest.MAC{2, 7, 7, 7, 7, 1}
	veth := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: "second", HardwareAddr: gw[:]}, PeerName: "eth1", PeerHardwareAddr: mac[:], PeerNamespace: netlink.NsFd(int(ns.Fd())),
	}
	if err := h.LinkAdd(veth); err != nil {
		x.Fatal(err)
	}
	defer func() {
		if err := h.LinkDel(veth); err != nil {
			x.Error(err)
		}
		w.state("shop/frontend", "enforced")
	}()
	eth1, err := ph.LinkByName("eth1")
	if err != nil {
		x.Fatal(err)
	}
	for hd, l := range map[*netlink.Handle]netlink.Link{h: veth, ph: eth1} {
		if err := hd.LinkSetUp(l); err != nil {
			x.Fatal(err)
		}
	}
	time.Sleep(20 * time.Millisecond)
	s, err := x.pod.OpenSender("eth1", lab.Raw)
	if err != nil {
		x.Fatal(err)
	}
	for v := range 2 {
		f := packettest.Build(packettest.Eth{Src: mac, Dst: gw}, ipHeader(x.src(evil(v)), evil(v)), packettest.UDP{SrcPort: 4000, DstPort: 443}, x.attackToken("through eth1 "+family(v), 1))
		if err := s.Send(f); err != nil {
			x.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		x.Fatal(err)
	}
	x.settle()
	if x.on {
		w.state("shop/frontend", "not-covered")
		// What eth1 sent is answered through eth0, and the pod's stack chooses eth0
		// for what it says to that.
		x.beside = append(x.beside, isolation, "networkpolicy shop/deny-all ingress isolation")
	}
}

// otherDevice names an interface for a Pod that is no veth.
func (x *try) otherDevice() {
	w := x.w
	h, err := w.node.Netlink()
	if err != nil {
		x.Fatal(err)
	}
	defer h.Close()
	br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "odd0"}}
	if err := h.LinkAdd(br); err != nil {
		x.Fatal(err)
	}
	defer func() {
		if err := h.LinkDel(br); err != nil {
			x.Error(err)
		}
	}()
	x.tried, x.leaked = 1, 1 // nothing is enforced there, with a policy or without
	if x.on {
		m := podObject("shop", "odd", "odd-1", "Running", "{app: odd}", []netip.Addr{netip.MustParseAddr("10.244.1.240"), netip.MustParseAddr("fd00:10:244:1::240")}, &lab.Pod{HostInterface: "odd0"})
		w.write("odd.yaml", m)
		w.state("shop/odd", "not-covered")
		w.remove("odd.yaml")
	}
}
