//go:build linux

package integration

import (
	"net/netip"
	"testing"
	"time"

	"github.com/postern-dev/postern/internal/lab"
	"github.com/postern-dev/postern/test/harness"
)

// TestServiceBackends puts an allowed and a denied pod behind one Service: a
// flow may reach the one, never the other, whichever DNAT picks, at the cluster
// IP, the node port and an external IP, with and without the agent alive.
func TestServiceBackends(t *testing.T) {
	spec := mixedSpec("it-svc")
	for i := range spec.Services {
		if spec.Services[i].Name == "cart" {
			spec.Services[i].ExternalIPs = []netip.Addr{netip.MustParseAddr("192.0.2.10"), netip.MustParseAddr("2001:db8:10::10")}
		}
	}
	w := harness.New(t, spec)
	w.Write("deny.yaml", mixed)
	front, cart, canary := w.Pod("shop/frontend"), w.Pod("shop/cart"), w.Pod("shop/canary")
	svc, err := w.Lab.Service("shop/cart")
	if err != nil {
		t.Fatal(err)
	}
	node := w.Agent.Node
	for v := range 2 {
		w.Allowed(front, "tcp", netip.AddrPortFrom(cart.IPs[v], lab.EchoPort))
		w.Denied(front, "tcp", netip.AddrPortFrom(canary.IPs[v], lab.EchoPort))
		for name, vip := range map[string]netip.AddrPort{
			"cluster IP":  netip.AddrPortFrom(svc.ClusterIPs[v], lab.EchoPort),
			"node port":   netip.AddrPortFrom(node.IPs[v], 30007),
			"external IP": netip.AddrPortFrom(spec.Services[0].ExternalIPs[v], lab.EchoPort),
		} {
			for _, network := range []string{"tcp", "udp"} {
				ok := 0
				for range 12 {
					if w.Reaches(front, network, vip, 150*time.Millisecond) {
						ok++
					}
				}
				// Random or alternating choice: some reach cart, some would have reached canary.
				if ok == 0 || ok == 12 {
					t.Errorf("%s v%d/%s: %d of 12 reached a backend, want some and not all", name, 4+2*v, network, ok)
				}
			}
		}
	}
	// Now both backends get the same verdict: decided at the interface.
	w.Write("deny.yaml", denyAll)
	for v := range 2 {
		w.Denied(front, "tcp", netip.AddrPortFrom(svc.ClusterIPs[v], lab.EchoPort))
		w.Denied(front, "tcp", netip.AddrPortFrom(node.IPs[v], 30007))
	}
}
