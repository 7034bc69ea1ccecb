//go:build linux

package lab

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/postern-dev/postern/internal/packet/packettest"
	"github.com/postern-dev/postern/internal/testenv"
)

// up starts a lab that is taken down, and checked for leaks, with the test.
func up(t *testing.T, spec Spec) *Lab {
	t.Helper()
	testenv.RequireRoot(t)
	testenv.CheckLeaks(t)
	l, err := Up(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Down(); err != nil {
			t.Error(err)
		}
		requireNothingLeft(t, spec.Name)
	})
	return l
}

func pod(t *testing.T, l *Lab, key string) *Pod {
	t.Helper()
	p, err := l.Pod(key)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func soon(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// world is DefaultSpec with a second backend of shop/cart, on the last node.
func world(name string, cni CNI, nodes int) Spec {
	s := DefaultSpec(name)
	s.CNI = cni
	for i := range nodes {
		s.Nodes = append(s.Nodes, NodeSpec{Name: fmt.Sprintf("node%d", i+1)})
	}
	s.Pods = append(s.Pods, PodSpec{
		Namespace: "shop", Name: "cart-2", Node: fmt.Sprintf("node%d", nodes),
		Labels: map[string]string{"app": "cart"},
	})
	return s
}

func TestConnectivity(t *testing.T) {
	for _, tc := range []struct {
		cni   CNI
		nodes int
	}{{PTP, 1}, {PTP, 2}, {Bridge, 1}, {Bridge, 2}} {
		t.Run(fmt.Sprintf("%s-%d", tc.cni, tc.nodes), func(t *testing.T) {
			l := up(t, world("lt-conn", tc.cni, tc.nodes))
			testConnectivity(t, l)
		})
	}
}

func testConnectivity(t *testing.T, l *Lab) {
	t.Helper()
	from := pod(t, l, "shop/frontend")
	near, far := pod(t, l, "payments/api"), pod(t, l, "shop/cart-2")
	node := l.Nodes()[0]
	svc, err := l.Service("shop/cart")
	if err != nil {
		t.Fatal(err)
	}
	for v, web := range []netip.Addr{WebV4, WebV6} {
		for _, network := range []string{"tcp", "udp"} {
			for _, c := range []struct {
				name   string
				to     netip.Addr
				port   uint16
				client netip.Addr // as the server must see it; invalid: any
			}{
				{"pod-pod", near.IPs[v], EchoPort, from.IPs[v]},
				{"pod-far-pod", far.IPs[v], EchoPort, from.IPs[v]},
				{"pod-itself", from.IPs[v], EchoPort, from.IPs[v]},
				{"pod-node", node.IPs[v], EchoPort, from.IPs[v]},
				{"pod-gateway", node.Gateways[v], EchoPort, from.IPs[v]},
				{"pod-outside", web, EchoPort, node.IPs[v]},
				{"pod-wire", []netip.Addr{outside4, outside6}[v], 0, netip.Addr{}},
				{"pod-service", svc.ClusterIPs[v], EchoPort, from.IPs[v]},
				{"pod-nodeport", node.IPs[v], 30007, netip.Addr{}},
			} {
				if c.port == 0 {
					continue
				}
				t.Run(fmt.Sprintf("%s/v%d/%s", c.name, 4+2*v, network), func(t *testing.T) {
					tok := packettest.NewToken(t.Name())
					e, err := from.Echo(soon(t), network, netip.AddrPortFrom(c.to, c.port), tok[:])
					if err != nil {
						t.Fatal(err)
					}
					if string(e.Data) != string(tok[:]) {
						t.Errorf("data %x, want %x", e.Data, tok)
					}
					if c.client.IsValid() && e.Client.Addr() != c.client {
						t.Errorf("server %s saw client %s, want %s", e.Place, e.Client, c.client)
					}
				})
			}
		}
		for name, to := range map[string]netip.Addr{"pod": near.IPs[v], "outside": web, "node": node.IPs[v]} {
			if err := from.Ping(soon(t), to, []byte("lab")); err != nil {
				t.Errorf("ping %s %s: %v", name, to, err)
			}
		}
		for _, scheme := range []string{"http", "https"} {
			port := map[string]uint16{"http": 80, "https": 443}[scheme]
			e, err := from.Get(soon(t), scheme, netip.AddrPortFrom(web, port), "web.example.com")
			if err != nil || e.Place != "web" || e.Client.Addr() != node.IPs[v] {
				t.Errorf("%s %s: %+v, %v", scheme, web, e, err)
			}
		}
		// The internet and the node reach pods and services too.
		if _, err := l.Outside().Echo(soon(t), "udp", netip.AddrPortFrom(node.IPs[v], 30007), []byte("x")); err != nil {
			t.Errorf("outside to node port: %v", err)
		}
		if _, err := node.Echo(soon(t), "tcp", netip.AddrPortFrom(svc.ClusterIPs[v], EchoPort), []byte("x")); err != nil {
			t.Errorf("node to service: %v", err)
		}
		if _, err := node.Echo(soon(t), "tcp", netip.AddrPortFrom(near.IPs[v], EchoPort), []byte("x")); err != nil {
			t.Errorf("node to pod: %v", err)
		}
	}
	// A link-local address of the node, with the pod's interface as the zone.
	if l.Spec().CNI == PTP {
		addrs, err := node.Addrs(from.HostInterface)
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range addrs {
			if !a.IsLinkLocalUnicast() {
				continue
			}
			e, err := from.Echo(soon(t), "tcp", netip.AddrPortFrom(a.WithZone(podInterface), EchoPort), []byte("x"))
			if err != nil || e.Place != node.Name {
				t.Errorf("link-local %s: %+v, %v", a, e, err)
			}
		}
	}
	for _, network := range []string{"udp", "tcp"} {
		got, err := from.Resolve(soon(t), network, netip.MustParseAddrPort("10.96.0.10:53"), "www.example.com", "AAAA")
		if err != nil || len(got) != 1 || got[0] != WebV6 {
			t.Errorf("resolve over %s: %v, %v", network, got, err)
		}
		got, err = from.Resolve(soon(t), network, netip.AddrPortFrom(ResolverV6, 53), "cart.shop.svc.cluster.local", "A")
		if err != nil || len(got) != 1 || got[0] != svc.ClusterIPs[0] {
			t.Errorf("resolve over %s: %v, %v", network, got, err)
		}
	}
}
