//go:build linux

package integration

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/postern-dev/postern/internal/control"
	"github.com/postern-dev/postern/internal/lab"
	"github.com/postern-dev/postern/test/harness"
)

// endpoint waits until the agent says of a pod what is wanted.
func endpoint(t *testing.T, w *harness.World, key, state, message string) {
	t.Helper()
	var got []control.Endpoint
	for range 500 {
		eps, err := w.Agent.Client.Endpoints(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		got = eps
		for _, e := range eps {
			if e.Namespace+"/"+e.Name == key && e.State == state && strings.Contains(e.Message, message) {
				return
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("%s: want %s, %q; got %+v", key, state, message, got)
}

// TestInterfaceInPod makes an interface inside a pod, and leaves it down: nobody
// tells the agent of what happens in there.
func TestInterfaceInPod(t *testing.T) {
	w := harness.New(t, lab.DefaultSpec("it-inpod"))
	front := w.Pod("shop/frontend")
	endpoint(t, w, "shop/frontend", "enforced", "")
	ph, err := front.Netlink()
	if err != nil {
		t.Fatal(err)
	}
	defer ph.Close()
	side := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "side0"}, PeerName: "side1"}
	if err := ph.LinkAdd(side); err != nil {
		t.Fatal(err)
	}
	endpoint(t, w, "shop/frontend", "not-covered", "side0 (veth)")
	if err := ph.LinkDel(side); err != nil {
		t.Fatal(err)
	}
	endpoint(t, w, "shop/frontend", "enforced", "")
}

// TestBorrowedInterface: a Pod object that names another's interface, spelt
// differently, gets nothing, before and after a restart.
func TestBorrowedInterface(t *testing.T) {
	w := harness.New(t, lab.DefaultSpec("it-borrow"))
	front := w.Pod("shop/frontend")
	w.Write("deny.yaml", denyAll)
	evil := netip.AddrPortFrom(lab.EvilV4, lab.EchoPort)
	dir := front.Path[:strings.LastIndexByte(front.Path, '/')]
	for name, at := range map[string]string{
		"aaa": "postern.dev/netns: " + dir + "/.." + dir[strings.LastIndexByte(dir, '/'):] + front.Path[len(dir):],
		"aab": "postern.dev/interface: " + front.HostInterface,
	} {
		w.Write(name+".yaml", fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {namespace: aaa, name: %s, uid: %s, annotations: {%s}}
spec: {nodeName: node1, containers: [{name: main, image: none}]}
status: {podIP: %s, podIPs: [{ip: %s}]}
`, name, name, at, front.IPs[0], front.IPs[0]))
	}
	said := func() {
		t.Helper()
		for range 3 {
			for _, name := range []string{"aaa", "aab"} {
				endpoint(t, w, "aaa/"+name, "failed", "already pod shop/frontend's")
			}
			endpoint(t, w, "shop/frontend", "enforced", "")
			w.Denied(front, "tcp", evil)
			time.Sleep(600 * time.Millisecond) // the audit looks once a second
		}
	}
	said()
	if err := w.Agent.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := w.Agent.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(300 * time.Millisecond)
	said()
	for _, name := range []string{"aaa.yaml", "aab.yaml"} {
		if err := w.Agent.Remove(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	endpoint(t, w, "shop/frontend", "enforced", "")
}

// TestRenamedInterface: the pod stays enforced under its old name's rules, and
// status says what to correct.
func TestRenamedInterface(t *testing.T) {
	w := harness.New(t, lab.DefaultSpec("it-rename"))
	front := w.Pod("shop/frontend")
	w.Write("deny.yaml", denyAll)
	h, err := w.Lab.Nodes()[0].Netlink()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	l, err := h.LinkByName(front.HostInterface)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.LinkSetName(l, "renamed0"); err != nil {
		t.Fatal(err)
	}
	endpoint(t, w, "shop/frontend", "failed", "now called renamed0")
	time.Sleep(1500 * time.Millisecond) // the audit must not take that back
	endpoint(t, w, "shop/frontend", "failed", "now called renamed0")
	w.Denied(front, "tcp", netip.AddrPortFrom(lab.EvilV4, lab.EchoPort))
	if !strings.Contains(w.Agent.Log(), "catch-all put back") {
		t.Errorf("the log says nothing of the catch-all:\n%s", w.Agent.Log())
	}
	if err := h.LinkSetName(l, front.HostInterface); err != nil {
		t.Fatal(err)
	}
	endpoint(t, w, "shop/frontend", "enforced", "")
}

// TestAltname: an interface may be named by another name of its; it is the device that
// is enforced, catch-all and all.
func TestAltname(t *testing.T) {
	w := harness.New(t, lab.DefaultSpec("it-altname"))
	front := w.Pod("shop/frontend")
	w.Write("deny.yaml", denyAll)
	h, err := w.Lab.Nodes()[0].Netlink()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	l, err := h.LinkByName(front.HostInterface)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.LinkAddAltName(l, "by-altname"); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(w.Agent.Manifests, "lab", "lab-pod_shop_frontend.yaml")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	next := strings.Replace(string(text), "postern.dev/interface: "+front.HostInterface, "postern.dev/interface: by-altname", 1)
	if next == string(text) {
		t.Fatalf("no interface to rename in\n%s", text)
	}
	if err := w.Agent.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := w.Agent.Uninstall(); err != nil { // what it armed by another name is hooked
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(next), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := w.Agent.Start(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := w.Agent.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	endpoint(t, w, "shop/frontend", "enforced", "")
	time.Sleep(1200 * time.Millisecond) // an audit finds nothing to mend
	if log := w.Agent.Log(); strings.Contains(log, "catch-all put back") {
		t.Errorf("there was no catch-all:\n%s", log)
	}
	// With the programs gone the catch-all is what is left.
	w.Write("again.yaml", strings.ReplaceAll(denyAll, "name: deny", "name: again"))
	if err := w.Agent.Kill(); err != nil {
		t.Fatal(err)
	}
	bpffs, err := w.Lab.BPFFS(w.Agent.Node.Name)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(bpffs, "postern", "links")); err != nil {
		t.Fatal(err)
	}
	for _, to := range []netip.Addr{lab.EvilV4, lab.EvilV6} {
		w.Denied(front, "tcp", netip.AddrPortFrom(to, lab.EchoPort))
	}
}
