//go:build linux

package lab

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"sigs.k8s.io/yaml"
)

func TestTwoLabsSideBySide(t *testing.T) {
	a, b := up(t, DefaultSpec("lt-a")), up(t, DefaultSpec("lt-b"))
	for _, l := range []*Lab{a, b} {
		if _, err := pod(t, l, "ci/runner").Echo(soon(t), "udp", netip.AddrPortFrom(WebV4, EchoPort), []byte("x")); err != nil {
			t.Errorf("%s: %v", l.Name(), err)
		}
	}
	pa, pb := pod(t, a, "ci/runner"), pod(t, b, "ci/runner")
	if pa.MAC() == pb.MAC() || pa.HostInterface != pb.HostInterface || pa.IPs[0] != pb.IPs[0] {
		t.Errorf("MACs %x %x, links %s %s, addresses %s %s", pa.MAC(), pb.MAC(), pa.HostInterface, pb.HostInterface, pa.IPs, pb.IPs)
	}
	for _, p := range []*Pod{pa, pb} {
		for place, want := range map[*Namespace]struct {
			ifname string
			mac    [6]byte
		}{p.Namespace: {podInterface, p.MAC()}, p.Node.Namespace: {p.HostInterface, p.GatewayMAC()}} {
			got, err := place.MAC(want.ifname)
			if err != nil || !bytes.Equal(got, want.mac[:]) {
				t.Errorf("%s of %s: MAC %s, want %x, %v", want.ifname, place.Name, got, want.mac, err)
			}
		}
	}
}

func TestAddAndDeletePods(t *testing.T) {
	l := up(t, DefaultSpec("lt-pods"))
	node := l.Nodes()[0]
	var order []string
	spec := PodSpec{Namespace: "ci", Name: "job", Labels: map[string]string{"app": "job"}}
	first, err := l.AddPod(t.Context(), spec, AddPodOptions{
		BeforeLink: func(p *Pod) error {
			if _, err := p.Ifindex(podInterface); err == nil {
				t.Error("there is a link before the link")
			}
			order = append(order, "before")
			return nil
		},
		Chained: func(p *Pod) error {
			if _, err := node.Ifindex(p.HostInterface); err != nil {
				t.Error(err)
			}
			order = append(order, "chained")
			return nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(order) != "[before chained]" {
		t.Errorf("order %v", order)
	}
	if _, err := l.AddPod(t.Context(), spec, AddPodOptions{}); !errors.Is(err, os.ErrExist) {
		t.Errorf("the same pod twice: %v", err)
	}
	cmd := exec.Command("sleep", "1000")
	if err := first.Start(cmd); err != nil {
		t.Fatal(err)
	}
	if err := l.DeletePod("ci/job"); err != nil {
		t.Fatal(err)
	}
	var status *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &status) || status.ExitCode() != -1 {
		t.Errorf("process of a deleted pod: %v", err)
	}
	if _, err := node.Ifindex(first.HostInterface); err == nil {
		t.Error("the link of a deleted pod is there")
	}
	second, err := l.AddPod(t.Context(), PodSpec{Namespace: "payments", Name: "heir", Servers: []Server{}}, AddPodOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if second.IPs[0] != first.IPs[0] || second.IPs[1] != first.IPs[1] || second.UID == first.UID {
		t.Errorf("addresses %s of a new pod, %s before; UIDs %s, %s", second.IPs, first.IPs, second.UID, first.UID)
	}
	boom := errors.New("boom")
	if _, err := l.AddPod(t.Context(), spec, AddPodOptions{Chained: func(*Pod) error { return boom }}); !errors.Is(err, boom) {
		t.Errorf("a plugin's error: %v", err)
	}
	if _, err := l.Pod("ci/job"); !errors.Is(err, ErrNotFound) {
		t.Errorf("a pod whose plugin failed: %v", err)
	}
}

func TestPodStartsAreQuick(t *testing.T) {
	l := up(t, DefaultSpec("lt-quick"))
	const n = 50
	for round := range 2 {
		var keys []string
		start := monotonic()
		for i := range n {
			p, err := l.AddPod(t.Context(), PodSpec{Namespace: "ci", Name: fmt.Sprintf("p%d", i), Servers: []Server{}}, AddPodOptions{})
			if err != nil {
				t.Fatal(err)
			}
			keys = append(keys, p.Name)
		}
		started := monotonic()
		if err := l.DeletePods(keys...); err != nil {
			t.Fatal(err)
		}
		add, del := (started-start)/n, (monotonic()-started)/n
		t.Logf("round %d: start of a pod %s, delete %s", round, add, del)
		if add+del > 200*time.Millisecond {
			t.Errorf("start and delete of a pod takes %s", add+del)
		}
	}
	if _, err := l.Nodes()[0].Ifindex(hostVeth("ci", "p0")); err == nil {
		t.Error("the link of a deleted pod is there")
	}
	if _, err := l.Nodes()[0].Ifindex(pod(t, l, "ci/runner").HostInterface); err != nil {
		t.Errorf("the link of a pod that stays: %v", err)
	}
}

func TestServices(t *testing.T) {
	l := up(t, world("lt-svc", PTP, 2))
	from := pod(t, l, "shop/frontend")
	svc, err := l.Service("shop/cart")
	if err != nil {
		t.Fatal(err)
	}
	ask := func(a netip.Addr, network string, port uint16) string {
		t.Helper()
		e, err := from.Echo(soon(t), network, netip.AddrPortFrom(a, port), []byte("x"))
		if err != nil {
			return err.Error()
		}
		return e.Place
	}
	// Round robin reaches every backend in as many connections as there are.
	for _, network := range []string{"tcp", "udp"} {
		for _, a := range svc.ClusterIPs {
			got := []string{ask(a, network, EchoPort), ask(a, network, EchoPort)}
			if got[0] == got[1] || !strings.HasPrefix(got[0], "shop/cart") || !strings.HasPrefix(got[1], "shop/cart") {
				t.Errorf("%s %s: backends %v", network, a, got)
			}
		}
	}
	// A pod behind the service reaches itself through it.
	if err := l.SetBackends("shop/cart", from.IPs...); err != nil {
		t.Fatal(err)
	}
	for _, a := range svc.ClusterIPs {
		if got := ask(a, "tcp", EchoPort); got != "shop/frontend" {
			t.Errorf("hairpin %s: %s", a, got)
		}
	}
	// No backend: refused, not sent to the outside. The error may come back while
	// the connecting socket is busy with its own SYN; then the next SYN, a second
	// later, is the one that is refused.
	if err := l.SetBackends("shop/cart"); err != nil {
		t.Fatal(err)
	}
	for _, a := range svc.ClusterIPs {
		if got := ask(a, "tcp", EchoPort); !strings.Contains(got, "refused") {
			t.Errorf("no backend %s: %s", a, got)
		}
	}
	external := netip.MustParseAddr("198.51.100.200")
	api := pod(t, l, "payments/api")
	placed, err := l.SetService(ServiceSpec{
		Namespace: "payments", Name: "api", Selector: map[string]string{"app": "api"}, ExternalIPs: []netip.Addr{external},
		Ports: []ServicePort{{Name: "echo", Port: 77, TargetPort: EchoPort}},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range append(placed.ClusterIPs, external) {
		if got := ask(a, "tcp", 77); got != api.Name {
			t.Errorf("service %s: %s", a, got)
		}
	}
	if err := l.DeletePod(api.Name); err != nil {
		t.Fatal(err)
	}
	if got := ask(placed.ClusterIPs[0], "tcp", 77); !strings.Contains(got, "refused") {
		t.Errorf("service without its pod: %s", got)
	}
	if err := l.DeleteService("payments/api"); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Service("payments/api"); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
}

func TestNoConntrack(t *testing.T) {
	spec := DefaultSpec("lt-noct")
	spec.NoConntrack = true
	l := up(t, spec)
	from := pod(t, l, "shop/frontend")
	for v, web := range []netip.Addr{WebV4, WebV6} {
		e, err := from.Echo(soon(t), "tcp", netip.AddrPortFrom(web, EchoPort), []byte("x"))
		if err != nil || e.Client.Addr() != from.IPs[v] {
			t.Errorf("echo %+v, %v: want the pod's own address", e, err)
		}
	}
}

func TestExecAndBPFFS(t *testing.T) {
	l := up(t, DefaultSpec("lt-exec"))
	var out bytes.Buffer
	if err := l.Exec(soon(t), "shop/cart", Streams{Out: &out}, "cat", "/proc/self/net/if_inet6"); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), "fd000010024400010000000000000003") {
		t.Errorf("addresses of shop/cart:\n%s", out.String())
	}
	var exit *exec.ExitError
	if err := l.Exec(soon(t), "node1", Streams{}, "false"); !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Errorf("exit code: %v", err)
	}
	if err := l.Exec(soon(t), "nowhere/at-all", Streams{}, "true"); !errors.Is(err, ErrNotFound) {
		t.Errorf("unknown pod: %v", err)
	}
	dir, err := l.BPFFS("node1")
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil || st.Type != unix.BPF_FS_MAGIC {
		t.Errorf("%s: type %x, %v", dir, st.Type, err)
	}
	if err := os.Mkdir(filepath.Join(dir, "pins"), 0o700); err != nil {
		t.Error(err)
	}
}

func TestManifests(t *testing.T) {
	l := up(t, world("lt-yaml", PTP, 2))
	dir := t.TempDir()
	foreign := filepath.Join(dir, "policy.yaml")
	if err := os.WriteFile(foreign, []byte("kind: X\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := l.Manifests(dir); err != nil {
		t.Fatal(err)
	}
	kinds := map[string]int{}
	for _, doc := range documents(t, dir) {
		var kind struct{ Kind string }
		if err := yaml.Unmarshal(doc, &kind); err != nil {
			t.Fatal(err)
		}
		kinds[kind.Kind]++
		into := map[string]any{
			"Namespace": &corev1.Namespace{}, "Node": &corev1.Node{}, "Pod": &corev1.Pod{},
			"Service": &corev1.Service{}, "EndpointSlice": &discoveryv1.EndpointSlice{},
		}[kind.Kind]
		if into == nil {
			t.Fatalf("kind %q", kind.Kind)
		}
		if err := yaml.UnmarshalStrict(doc, into); err != nil {
			t.Errorf("%v in\n%s", err, doc)
		}
		if p, ok := into.(*corev1.Pod); ok && p.Name == "cart" {
			want := pod(t, l, "shop/cart")
			if p.Annotations[AnnotationInterface] != want.HostInterface ||
				p.Status.PodIP != want.IPs[0].String() || len(p.Status.PodIPs) != 2 || p.Spec.NodeName != "node1" {
				t.Errorf("pod %+v", p)
			}
		}
		if s, ok := into.(*discoveryv1.EndpointSlice); ok && s.Labels[discoveryv1.LabelServiceName] == "cart" && len(s.Endpoints) != 2 {
			t.Errorf("endpoints %+v", s.Endpoints)
		}
	}
	if want := map[string]int{"Namespace": 4, "Node": 2, "Pod": 6, "Service": 2, "EndpointSlice": 4}; fmt.Sprint(kinds) != fmt.Sprint(want) {
		t.Errorf("kinds %v, want %v", kinds, want)
	}
	before, err := os.Stat(filepath.Join(dir, "lab-pod_shop_cart.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if err := l.DeletePod("shop/cart-2"); err != nil {
		t.Fatal(err)
	}
	if err := l.Manifests(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "lab-pod_shop_cart-2.yaml")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("manifest of a deleted pod: %v", err)
	}
	after, err := os.Stat(filepath.Join(dir, "lab-pod_shop_cart.yaml"))
	if err != nil || !after.ModTime().Equal(before.ModTime()) {
		t.Errorf("a manifest that was right was written again: %v", err)
	}
	if _, err := os.Stat(foreign); err != nil {
		t.Errorf("a file that is not ours: %v", err)
	}
}

func TestParseSpec(t *testing.T) {
	s, err := ParseSpec([]byte("name: x\ncni: bridge\npods:\n- {namespace: a, name: b, ips: [10.244.1.9]}\n"))
	if err != nil || s.CNI != Bridge || s.Pods[0].IPs[0].String() != "10.244.1.9" {
		t.Errorf("%+v, %v", s, err)
	}
	for _, bad := range []string{
		"name: x\ncolour: red\n", "name: X\n", "name: x\ncni: magic\n", "name: x\nnodes: [{name: a-very-long-name}]\n",
		"name: x\npods: [{namespace: a, name: b, node: none}]\n", "name: x\npods: [{namespace: a, name: b}, {namespace: a, name: b}]\n",
		"name: x\nservices: [{namespace: a, name: b, ports: [{protocol: SCTP, port: 1}]}]\n",
	} {
		if _, err := ParseSpec([]byte(bad)); err == nil {
			t.Errorf("no error for %q", bad)
		}
	}
}

func documents(t *testing.T, dir string) [][]byte {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, manifestPrefix+"*.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var out [][]byte
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, bytes.Split(b, []byte("---\n"))...)
	}
	return out
}
