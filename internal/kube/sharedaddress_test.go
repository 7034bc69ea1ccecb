package kube

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/postern-dev/postern/internal/packet"
	"github.com/postern-dev/postern/internal/policy"
)

// TestSharedAddress: what is said of two pods with one address is what happens. As
// peers they are one; the policies that select one leave the other alone.
func TestSharedAddress(t *testing.T) {
	w := NewWorld(Options{})
	set := func(o metav1.Object) {
		t.Helper()
		if _, err := w.Set(o, nil); err != nil {
			t.Fatal(err)
		}
	}
	app := func(name string) metav1.LabelSelector {
		return metav1.LabelSelector{MatchLabels: map[string]string{"app": name}}
	}
	for name, ip := range map[string]string{"one": "10.0.0.1", "two": "10.0.0.1", "peer": "10.0.0.9"} {
		set(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, Labels: app(name).MatchLabels}, Status: corev1.PodStatus{PodIPs: []corev1.PodIP{{IP: ip}}}})
	}
	toTwo := app("two")
	set(&networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "peer"}, Spec: networkingv1.NetworkPolicySpec{
		PodSelector: app("peer"), PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeEgress, networkingv1.PolicyTypeIngress},
		Egress: []networkingv1.NetworkPolicyEgressRule{{To: []networkingv1.NetworkPolicyPeer{{PodSelector: &toTwo}}}},
	}})
	set(&networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "one"}, Spec: networkingv1.NetworkPolicySpec{
		PodSelector: app("one"), PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeEgress},
	}})
	one, peer := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.9")
	for from, c := range map[string]struct {
		src, dst netip.Addr
		want     policy.Verdict
	}{
		"peer": {peer, one, policy.Forwarded}, // one's address, by a rule that names two
		"one":  {one, peer, policy.Dropped},
		"two":  {one, peer, policy.Forwarded},
	} {
		got := policy.Evaluate(w.Snapshot(time.Time{}), policy.PodKey{Namespace: "shop", Name: from}, policy.Egress, packet.Tuple{
			Protocol: packet.ProtocolTCP, Src: c.src, Dst: c.dst, SrcPort: 40000, DstPort: 80,
		})
		if got.Verdict != c.want {
			t.Errorf("%s: got %s, want %s", from, got, c.want)
		}
	}
	const want = "10.0.0.1 is also the address of pod shop/one: a rule that names either as a peer matches both; policies that select one of them apply at that one's interface only"
	if fs := w.Findings(); !slices.ContainsFunc(fs, func(f Finding) bool { return f.Object.Name == "two" && strings.Contains(f.Message, want) }) {
		t.Errorf("no finding says so: %v", fs)
	}
}
