package kube

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestHostPorts: a hostPort takes no address that is not its node's, and none
// that a Service has.
func TestHostPorts(t *testing.T) {
	w := NewWorld(Options{})
	set := func(o metav1.Object) {
		t.Helper()
		if _, err := w.Set(o, nil); err != nil {
			t.Fatal(err)
		}
	}
	node := func(address string) {
		set(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node1"}, Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: address}}}})
	}
	node("172.16.0.1")
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "aaa", Name: "web"},
		Spec: corev1.PodSpec{NodeName: "node1", Containers: []corev1.Container{{Name: "c", Ports: []corev1.ContainerPort{
			{ContainerPort: 5353, HostPort: 53, HostIP: "10.96.0.10", Protocol: corev1.ProtocolUDP},
			{ContainerPort: 8080, HostPort: 80},
			{ContainerPort: 8443, HostPort: 443},
			{ContainerPort: 9090, HostPort: 90, HostIP: "172.16.0.1"},
			{ContainerPort: 9191, HostPort: 91, HostIP: "127.0.0.1"},
		}}}},
		Status: corev1.PodStatus{PodIPs: []corev1.PodIP{{IP: "10.0.0.1"}}, HostIPs: []corev1.HostIP{{IP: "172.16.0.1"}, {IP: "172.16.0.2"}}},
	}
	set(pod)
	want := func(want ...string) {
		t.Helper()
		var got []string
		for _, s := range w.Snapshot(time.Time{}).Services {
			if !strings.HasPrefix(s.Name, hostPortPrefix) {
				continue
			}
			for _, f := range frontendsOf(&s) {
				got = append(got, netip.AddrPortFrom(f.ip, f.port).String())
			}
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	noted := func(path, message string, want bool) {
		t.Helper()
		if got := slices.ContainsFunc(w.Findings(), func(f Finding) bool { return f.Path == path && strings.Contains(f.Message, message) }); got != want {
			t.Errorf("finding %q: %v, want %v: %v", message, got, want, w.Findings())
		}
	}
	first := "spec.containers[0].ports[0].hostIP"
	all := []string{"127.0.0.1:91", "172.16.0.1:443", "172.16.0.1:80", "172.16.0.1:90", "172.16.0.2:443", "172.16.0.2:80"}
	want(all...)
	noted(first, "10.96.0.10 is no address of the pod's node", true)
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "zzz", Name: "web"},
		Spec:       corev1.ServiceSpec{ClusterIPs: []string{"10.96.0.1"}, ExternalIPs: []string{"172.16.0.2"}, Ports: []corev1.ServicePort{{Port: 80}}},
	}
	set(svc)
	want("127.0.0.1:91", "172.16.0.1:443", "172.16.0.1:80", "172.16.0.1:90", "172.16.0.2:443")
	noted("spec.containers[0].ports[1].hostPort", "172.16.0.2:80 is a Service's", true)
	svc.Spec.Ports[0].Port = 90
	svc.Spec.ExternalIPs = []string{"172.16.0.1"}
	set(svc)
	want("127.0.0.1:91", "172.16.0.1:443", "172.16.0.1:80", "172.16.0.2:443", "172.16.0.2:80")
	w.Delete(RefOf(svc))
	want(all...)
	noted("spec.containers[0].ports[1].hostPort", "is a Service's", false)
	// The node gets the address: then it is a hostPort like others.
	node("10.96.0.10")
	noted(first, "is no address", false)
	w.Delete(RefOf(pod))
	want()
	if len(w.wanted)+len(w.hostPortsWant)+len(w.claimed)+len(w.hostPortNotes) > 0 {
		t.Errorf("left: %v %v %v %v", w.wanted, w.hostPortsWant, w.claimed, w.hostPortNotes)
	}
}
