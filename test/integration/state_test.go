//go:build linux

package integration

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-dev/postern/internal/lab"
	"github.com/postern-dev/postern/internal/packet/packettest"
	"github.com/postern-dev/postern/test/harness"
)

// raw sends IP packets from a namespace as they are, headers included.
func raw(t *testing.T, from *lab.Namespace, packets ...[]byte) {
	t.Helper()
	err := from.Do(func() error {
		for _, p := range packets {
			family, to := unix.AF_INET, unix.Sockaddr(&unix.SockaddrInet4{Addr: [4]byte(p[16:20])})
			if p[0]>>4 == 6 {
				family, to = unix.AF_INET6, &unix.SockaddrInet6{Addr: [16]byte(p[24:40])}
			}
			fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
			if err != nil {
				return err
			}
			err = unix.Sendto(fd, p, 0, to)
			if cerr := unix.Close(fd); err == nil {
				err = cerr
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func readManifest(t *testing.T, w *harness.World, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(w.Agent.Manifests, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// webOnly lets the shop reach one host outside, by both families.
const webOnly = `
apiVersion: postern.dev/v1alpha1
kind: EgressPolicy
metadata: {name: web, namespace: shop}
spec: {podSelector: {}, egress: [{to: [{networks: [203.0.113.80/32, "2001:db8:80::80/128"]}]}]}
`

// mixed lets frontend reach cart, and not canary, which is behind the same Service.
const mixed = denyAll + `
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: frontend, namespace: shop}
spec:
  podSelector: {matchLabels: {app: frontend}}
  policyTypes: [Egress]
  egress: [{to: [{podSelector: {matchLabels: {app: cart}, matchExpressions: [{key: track, operator: DoesNotExist}]}}]}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: cart, namespace: shop}
spec:
  podSelector: {matchLabels: {app: cart}}
  ingress: [{}]
`

// mixedSpec has a pod behind shop/cart that frontend may not reach.
func mixedSpec(name string) lab.Spec {
	spec := lab.DefaultSpec(name)
	spec.Pods = append(spec.Pods, lab.PodSpec{Namespace: "shop", Name: "canary", Labels: map[string]string{"app": "cart", "track": "canary"}})
	return spec
}

// vipOf is shop/cart's first cluster IP, and how many of 12 tries frontend gets through.
func vipOf(t *testing.T, w *harness.World) (netip.AddrPort, func() int) {
	t.Helper()
	svc, err := w.Lab.Service("shop/cart")
	if err != nil {
		t.Fatal(err)
	}
	vip := netip.AddrPortFrom(svc.ClusterIPs[0], lab.EchoPort)
	front := w.Pod("shop/frontend")
	return vip, func() int {
		ok := 0
		for range 12 {
			if w.Reaches(front, "udp", vip, 150*time.Millisecond) {
				ok++
			}
		}
		return ok
	}
}

// TestReusedAddressAndServices: a pod gets the address of one whose interface is
// still there. What the look after DNAT knows of the address is the new pod's.
func TestReusedAddressAndServices(t *testing.T) {
	w := harness.New(t, mixedSpec("it-reuse"))
	w.Write("deny.yaml", mixed)
	_, through := vipOf(t, w)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	old, err := w.Lab.AddPod(ctx, lab.PodSpec{Namespace: "shop", Name: "zzold", Labels: map[string]string{"app": "old"}}, lab.AddPodOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Lab.Manifests(filepath.Join(w.Agent.Manifests, "lab")); err != nil {
		t.Fatal(err)
	}
	front := w.Pod("shop/frontend")
	frontFile, oldFile := readManifest(t, w, "lab/lab-pod_shop_frontend.yaml"), readManifest(t, w, "lab/lab-pod_shop_zzold.yaml")
	borrowed := oldFile
	for v := range 2 {
		borrowed = strings.ReplaceAll(borrowed, old.IPs[v].String(), front.IPs[v].String())
	}
	if borrowed == oldFile {
		t.Fatal("the pod's addresses are not in its manifest")
	}
	// Without waiting for an agent that has everything enforced: it has not.
	put := func(name, text string) {
		t.Helper()
		path := filepath.Join(w.Agent.Manifests, "lab", name)
		tmp := filepath.Join(filepath.Dir(path), ".tmp")
		var err error
		if text == "" {
			err = os.Remove(path)
		} else if err = os.WriteFile(tmp, []byte(text), 0o600); err == nil {
			err = os.Rename(tmp, path)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	put("lab-pod_shop_frontend.yaml", "")
	put("lab-pod_shop_zzold.yaml", borrowed)
	endpoint(t, w, "shop/zzold", "enforced", "")
	for _, step := range []struct {
		name string
		do   func()
	}{
		{"two pods with the address", func() { put("lab-pod_shop_frontend.yaml", frontFile) }},
		{"while the old interface is there", func() { put("lab-pod_shop_zzold.yaml", "") }},
		{"after the old interface is gone", func() {
			if err := w.Lab.DeletePod("shop/zzold"); err != nil {
				t.Fatal(err)
			}
			time.Sleep(1500 * time.Millisecond)
		}},
		{"after one more change", func() { w.Write("deny.yaml", mixed+"# once more\n") }},
	} {
		step.do()
		time.Sleep(500 * time.Millisecond)
		endpoint(t, w, "shop/frontend", "enforced", "")
		if n := through(); n == 0 || n == 12 {
			t.Errorf("%s: %d of 12 reached a backend of the Service, want some and not all", step.name, n)
		}
		w.Denied(front, "udp", netip.AddrPortFrom(w.Pod("shop/canary").IPs[0], lab.EchoPort))
	}
}

// TestBackendThatOpened: that a denied backend has opened a flow to the pod, under
// a policy that is gone, leads no Service's packets to it (I4).
func TestBackendThatOpened(t *testing.T) {
	w := harness.New(t, mixedSpec("it-opened"))
	w.Write("deny.yaml", mixed+`
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: open, namespace: shop}
spec: {podSelector: {matchLabels: {track: canary}}, policyTypes: [Egress], egress: [{}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: open-front, namespace: shop}
spec: {podSelector: {matchLabels: {app: frontend}}, ingress: [{}]}
`)
	vip, _ := vipOf(t, w)
	front, canary := w.Pod("shop/frontend"), w.Pod("shop/canary")
	var packets [][]byte
	for port := uint16(5000); port < 5012; port++ {
		packets = append(packets, packettest.Build(packettest.IPv4{Src: canary.IPs[0], Dst: front.IPs[0]}, packettest.UDP{SrcPort: lab.EchoPort, DstPort: port}, packettest.Payload("open")))
	}
	raw(t, canary.Namespace, packets...)
	time.Sleep(100 * time.Millisecond)
	w.Write("deny.yaml", mixed)
	tok := packettest.NewToken("by way of the Service")
	stack, err := w.Lab.SniffHost(t.Context(), canary.Namespace)
	if err != nil {
		t.Fatal(err)
	}
	for _, first := range []uint16{5000, 6000} {
		for i := range uint16(12) {
			c, err := front.DialFrom(t.Context(), "udp", netip.AddrPortFrom(front.IPs[0], first+i), vip.String())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := c.Write(tok[:]); err != nil {
				t.Fatal(err)
			}
			if err := c.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
	time.Sleep(200 * time.Millisecond)
	if err := stack.Verify(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := stack.Count(tok); n != 0 {
		t.Errorf("%d datagrams reached the denied backend", n)
	}
}

// TestReadiness: a connection to a Service outlives its backend's readiness, as it
// does with kube-proxy; new ones go where backends are ready.
func TestReadiness(t *testing.T) {
	w := harness.New(t, lab.DefaultSpec("it-ready"))
	w.Write("deny.yaml", mixed)
	vip, _ := vipOf(t, w)
	front := w.Pod("shop/frontend")
	c, err := front.Dial(t.Context(), "tcp", vip.String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	const file = "lab/lab-service_shop_cart.yaml"
	ready := readManifest(t, w, file)
	for _, step := range []struct{ name, text string }{
		{"ready", ready}, {"not ready", strings.ReplaceAll(ready, "ready: true", "ready: false")}, {"ready again", ready},
	} {
		if step.name != "ready" {
			w.Write(file, step.text)
		}
		if err := exchange(c); err != nil {
			t.Errorf("%s: the connection: %v", step.name, err)
		}
		if got, want := w.Reaches(front, "tcp", vip, time.Second), step.name != "not ready"; got != want {
			t.Errorf("%s: a new connection: %v, want %v", step.name, got, want)
		}
	}
	// The backend itself is denied: that cuts.
	w.Write("deny.yaml", denyAll)
	if err := exchange(c); err == nil {
		t.Error("the connection goes on to a backend that is denied")
	}
}

// TestDeniedBackend: when a Service's backend is denied, a flow to it ends in both
// directions, ICMP errors included; when the Service goes too, nobody who has its
// address then is taken for it (I4).
func TestDeniedBackend(t *testing.T) {
	w := harness.New(t, lab.DefaultSpec("it-backend"))
	const cartOpen = `
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: cart, namespace: shop}
spec: {podSelector: {matchLabels: {app: cart}}, policyTypes: [Ingress, Egress], ingress: [{}], egress: [{}]}
`
	w.Write("deny.yaml", denyAll+cartOpen+`
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: frontend, namespace: shop}
spec: {podSelector: {matchLabels: {app: frontend}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: cart}}}]}]}
`)
	svc, err := w.Lab.Service("shop/cart")
	if err != nil {
		t.Fatal(err)
	}
	front, cart := w.Pod("shop/frontend"), w.Pod("shop/cart")
	vip := netip.AddrPortFrom(svc.ClusterIPs[0], lab.EchoPort)
	for v := range 2 {
		for port := uint16(5000); port < 5002; port++ {
			c, err := front.DialFrom(t.Context(), "udp", netip.AddrPortFrom(front.IPs[v], port), netip.AddrPortFrom(svc.ClusterIPs[v], lab.EchoPort).String())
			if err != nil {
				t.Fatal(err)
			}
			if err := exchange(c); err != nil {
				t.Fatal(err)
			}
			if err := c.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
	stacks := map[*lab.Pod]*lab.HostSniffer{}
	for _, p := range []*lab.Pod{front, cart} {
		if stacks[p], err = w.Lab.SniffHost(t.Context(), p.Namespace); err != nil {
			t.Fatal(err)
		}
	}
	// arrives sends a packet and says whether the stack of a pod has seen its token.
	arrives := func(from *lab.Namespace, at *lab.Pod, packet func(packettest.Token) []byte) bool {
		t.Helper()
		tok := packettest.NewToken(from.Name)
		raw(t, from, packet(tok))
		time.Sleep(150 * time.Millisecond)
		if err := stacks[at].Verify(t.Context()); err != nil {
			t.Fatal(err)
		}
		return stacks[at].Count(tok) > 0
	}
	look := func(when string, want bool) {
		t.Helper()
		for range 2 { // what was deferred once must not be admitted by that
			if got := arrives(cart.Namespace, front, func(tok packettest.Token) []byte {
				return packettest.Build(packettest.IPv4{Src: cart.IPs[0], Dst: front.IPs[0]}, packettest.UDP{SrcPort: lab.EchoPort, DstPort: 5000}, packettest.Payload(tok[:]))
			}); got != want {
				t.Errorf("%s: the backend's answer arrives: %v, want %v", when, got, want)
			}
			if got := arrives(front.Namespace, cart, func(tok packettest.Token) []byte {
				inner := packettest.Build(packettest.IPv4{Src: vip.Addr(), Dst: front.IPs[0]}, packettest.UDP{SrcPort: lab.EchoPort, DstPort: 5001}, packettest.Payload(tok[:]))
				return packettest.Build(packettest.IPv4{Src: front.IPs[0], Dst: vip.Addr()}, packettest.ICMP{Type: 3, Code: 3}, packettest.Payload(inner))
			}); got != want {
				t.Errorf("%s: an ICMP error's payload arrives at the backend: %v, want %v", when, got, want)
			}
		}
	}
	look("allowed", true)
	w.Write("deny.yaml", denyAll+cartOpen)
	look("denied", false)
	if err := w.Agent.Remove(t.Context(), "lab/lab-service_shop_cart.yaml"); err != nil {
		t.Fatal(err)
	}
	look("denied, and the Service is gone", false)
	if arrives(w.Lab.Outside(), front, func(tok packettest.Token) []byte {
		return packettest.Build(packettest.IPv6{Src: svc.ClusterIPs[1], Dst: front.IPs[1]}, packettest.UDP{SrcPort: lab.EchoPort, DstPort: 5000}, packettest.Payload(tok[:]))
	}) {
		t.Error("who has the Service's address now is taken for it")
	}
}

// TestFloodFromOutside: who fills a pod's quota from outside stops nothing that
// the pod opens itself.
func TestFloodFromOutside(t *testing.T) {
	w := harness.New(t, lab.DefaultSpec("it-flood"))
	w.Write("egress.yaml", webOnly)
	front := w.Pod("shop/frontend")
	web := netip.AddrPortFrom(lab.WebV6, lab.EchoPort)
	w.Allowed(front, "tcp", web)
	var packets [][]byte
	for port := range uint16(16500) {
		packets = append(packets, packettest.Build(packettest.IPv6{Src: lab.EvilV6, Dst: front.IPs[1]}, packettest.UDP{SrcPort: 1024 + port, DstPort: 12345}, packettest.Payload("x")))
	}
	raw(t, w.Lab.Outside(), packets...)
	for i := range 20 {
		if !w.Reaches(front, "tcp", web, time.Second) {
			t.Fatalf("connection %d after the flood fails", i)
		}
	}
	// Connections that a server's kernel answers and nobody goes on with.
	cart := w.Pod("shop/cart")
	packets = packets[:0]
	for port := range uint16(16500) {
		packets = append(packets, packettest.Build(packettest.IPv6{Src: lab.EvilV6, Dst: cart.IPs[1]}, packettest.TCP{SrcPort: 1024 + port, DstPort: lab.EchoPort, Seq: 1, Flags: packettest.SYN}))
	}
	raw(t, w.Lab.Outside(), packets...)
	for i := range 20 {
		if !w.Reaches(cart, "tcp", web, time.Second) {
			t.Fatalf("connection %d after the flood of SYNs fails", i)
		}
	}
}

// TestOwnAddressFromOutside: a packet that says it is from the pod itself and
// comes from elsewhere is judged like any other.
func TestOwnAddressFromOutside(t *testing.T) {
	w := harness.New(t, lab.DefaultSpec("it-self"))
	front := w.Pod("shop/frontend")
	stack, err := w.Lab.SniffHost(t.Context(), front.Namespace)
	if err != nil {
		t.Fatal(err)
	}
	send := func(what string) packettest.Token {
		tok := packettest.NewToken(what)
		raw(t, w.Lab.Outside(), packettest.Build(packettest.IPv6{Src: front.IPs[1], Dst: front.IPs[1]}, packettest.UDP{SrcPort: 2, DstPort: 9999}, packettest.Payload(tok[:])))
		time.Sleep(100 * time.Millisecond)
		if err := stack.Verify(t.Context()); err != nil {
			t.Fatal(err)
		}
		return tok
	}
	if stack.Count(send("no policy")) == 0 {
		t.Error("with no policy the packet does not arrive: the test sees nothing")
	}
	w.Write("deny.yaml", denyAll)
	if n := stack.Count(send("denied")); n != 0 {
		t.Errorf("%d packets from the pod's own address arrived", n)
	}
}

// TestForgedReset: a reset that neither end has sent ends no connection that goes on.
func TestForgedReset(t *testing.T) {
	w := harness.New(t, lab.DefaultSpec("it-reset"))
	w.Write("egress.yaml", webOnly)
	front := w.Pod("shop/frontend")
	c, err := front.Dial(t.Context(), "tcp", netip.AddrPortFrom(lab.WebV6, lab.EchoPort).String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if err := exchange(c); err != nil {
		t.Fatal(err)
	}
	local, err := netip.ParseAddrPort(c.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	raw(t, w.Lab.Outside(), packettest.Build(packettest.IPv6{Src: lab.WebV6, Dst: front.IPs[1]},
		packettest.TCP{SrcPort: lab.EchoPort, DstPort: local.Port(), Seq: 12345, Flags: packettest.RST}))
	if err := exchange(c); err != nil {
		t.Fatal(err)
	}
	time.Sleep(11500 * time.Millisecond) // longer than a closed flow is kept
	if err := exchange(c); err != nil {
		t.Errorf("after the reset that nobody sent: %v", err)
	}
}

// TestOrderOfAddresses: podIPs in another order are the same pod's.
func TestOrderOfAddresses(t *testing.T) {
	w := harness.New(t, lab.DefaultSpec("it-order"))
	w.Write("egress.yaml", webOnly)
	front := w.Pod("shop/frontend")
	c, err := front.Dial(t.Context(), "tcp", netip.AddrPortFrom(lab.WebV4, lab.EchoPort).String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	const file = "lab/lab-pod_shop_frontend.yaml"
	a, b := front.IPs[0].String(), front.IPs[1].String()
	text := readManifest(t, w, file)
	w.Write(file, strings.NewReplacer(a, b, b, a).Replace(text))
	if err := exchange(c); err != nil {
		t.Errorf("the order of podIPs changed: %v", err)
	}
	w.Allowed(front, "tcp", netip.AddrPortFrom(lab.WebV4, lab.EchoPort))
	// Another address is another pod to its flows.
	other := netip.MustParseAddr("10.244.1.77")
	w.Write(file, strings.ReplaceAll(text, a, other.String()))
	endpoint(t, w, "shop/frontend", "enforced", "")
	if err := exchange(c); err == nil {
		t.Error("the flow of an address that the pod has no more goes on")
	}
}

// TestNeighbourOnOtherNode: neighbour discovery reaches the pod's own node, not
// another one by way of it.
func TestNeighbourOnOtherNode(t *testing.T) {
	spec := lab.DefaultSpec("it-ndp")
	spec.Nodes = []lab.NodeSpec{{Name: "node1"}, {Name: "node2"}}
	w := harness.New(t, spec)
	w.Write("deny.yaml", denyAll)
	front := w.Pod("shop/frontend")
	host := front.HostInterface
	for i, n := range append(w.Lab.Nodes(), w.Lab.Nodes()[1]) {
		if i == 2 { // what routes is not the interface's setting
			if err := w.Agent.Node.Sysctl("ipv6/conf/"+host+"/forwarding", "0"); err != nil {
				t.Fatal(err)
			}
		}
		stack, err := w.Lab.SniffHost(t.Context(), n.Namespace)
		if err != nil {
			t.Fatal(err)
		}
		tok := packettest.NewToken("in the target, " + n.Name)
		body := tok[:]
		frame := packettest.Build(front.Eth(), packettest.IPv6{Src: front.IPs[1], Dst: n.IPs[1]}, packettest.ICMPv6{Type: 135}, packettest.Payload(body))
		for range 3 {
			if err := front.Send(lab.Raw, frame); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(100 * time.Millisecond)
		if err := stack.Verify(t.Context()); err != nil {
			t.Fatal(err)
		}
		own := n == w.Agent.Node
		if got := stack.Count(tok) > 0; got != own {
			t.Errorf("%s: the solicitation arrived: %v, want %v", n.Name, got, own)
		}
		if err := stack.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
