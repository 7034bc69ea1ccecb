//go:build linux

// Package integration runs posternd on a lab and judges by packets.
package integration

import (
	"context"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/postern-dev/postern/internal/control"
	"github.com/postern-dev/postern/internal/flow"
	"github.com/postern-dev/postern/internal/lab"
	"github.com/postern-dev/postern/internal/packet/packettest"
	"github.com/postern-dev/postern/test/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

const denyAll = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny-all, namespace: shop}
spec:
  podSelector: {}
  policyTypes: [Ingress, Egress]
`

func TestPolicyOnPackets(t *testing.T) {
	for _, cni := range []lab.CNI{lab.PTP, lab.Bridge} {
		t.Run(string(cni), func(t *testing.T) {
			spec := lab.DefaultSpec("it-policy")
			spec.CNI = cni
			w := harness.New(t, spec)
			front, cart, api := w.Pod("shop/frontend"), w.Pod("shop/cart"), w.Pod("payments/api")
			targets := func(f func(network string, i int, a netip.Addr)) {
				for i, web := range []netip.Addr{lab.WebV4, lab.WebV6} {
					for _, network := range []string{"tcp", "udp"} {
						f(network, i, web)
					}
				}
			}
			targets(func(network string, i int, web netip.Addr) {
				w.Allowed(front, network, netip.AddrPortFrom(web, lab.EchoPort))
				w.Allowed(front, network, netip.AddrPortFrom(api.IPs[i], lab.EchoPort))
				w.Allowed(api, network, netip.AddrPortFrom(cart.IPs[i], lab.EchoPort))
			})
			w.Write("deny.yaml", denyAll)
			targets(func(network string, i int, web netip.Addr) {
				w.Denied(front, network, netip.AddrPortFrom(web, lab.EchoPort))
				w.Denied(front, network, netip.AddrPortFrom(api.IPs[i], lab.EchoPort))
				w.Denied(api, network, netip.AddrPortFrom(cart.IPs[i], lab.EchoPort))
				w.Allowed(front, network, netip.AddrPortFrom(front.IPs[i], lab.EchoPort))
			})
			w.Write("allow.yaml", `
apiVersion: postern.dev/v1alpha1
kind: EgressPolicy
metadata: {name: frontend, namespace: shop}
spec:
  podSelector: {matchLabels: {app: frontend}}
  egress:
  - to: [{networks: [203.0.113.0/24, "2001:db8:80::/64"]}]
    protocols: [{tcp: {destinationPort: {number: 7}}}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: cart, namespace: shop}
spec:
  podSelector: {matchLabels: {app: cart}}
  ingress: [{from: [{namespaceSelector: {matchLabels: {team: payments}}}]}]
`)
			targets(func(network string, i int, web netip.Addr) {
				to := netip.AddrPortFrom(web, lab.EchoPort)
				if network == "tcp" {
					w.Allowed(front, network, to)
				} else {
					w.Denied(front, network, to)
				}
				w.Denied(front, network, netip.AddrPortFrom(api.IPs[i], lab.EchoPort))
				w.Allowed(api, network, netip.AddrPortFrom(cart.IPs[i], lab.EchoPort))
			})
		})
	}
}

// TestAgentAway kills the agent and expects its last word to hold: an open
// connection goes on, a denied one stays denied, and the next agent takes over
// without cutting it; then a tightened policy does cut it.
func TestAgentAway(t *testing.T) {
	w := harness.New(t, lab.DefaultSpec("it-away"))
	front := w.Pod("shop/frontend")
	allow := denyAll + `
---
apiVersion: postern.dev/v1alpha1
kind: EgressPolicy
metadata: {name: frontend, namespace: shop}
spec:
  podSelector: {matchLabels: {app: frontend}}
  egress: [{to: [{networks: [203.0.113.80/32]}]}]
`
	w.Write("policy.yaml", allow)
	web, evil := netip.AddrPortFrom(lab.WebV4, lab.EchoPort), netip.AddrPortFrom(lab.EvilV4, lab.EchoPort)
	conn, err := front.Dial(t.Context(), "tcp", web.String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	alive := func(what string, want bool) {
		t.Helper()
		err := exchange(conn)
		if (err == nil) != want {
			t.Fatalf("%s: connection alive: %v, want %v (%v)", what, err == nil, want, err)
		}
	}
	alive("at first", true)
	if err := w.Agent.Kill(); err != nil {
		t.Fatal(err)
	}
	alive("agent killed", true)
	w.Allowed(front, "tcp", web)
	w.Denied(front, "tcp", evil)
	if err := w.Agent.Start(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := w.Agent.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	alive("agent back", true)
	w.Denied(front, "tcp", evil)
	w.Write("policy.yaml", denyAll)
	alive("policy tightened", false)
}

func exchange(c net.Conn) error {
	tok := packettest.NewToken("alive")
	if err := c.SetDeadline(time.Now().Add(500 * time.Millisecond)); err != nil {
		return err
	}
	if _, err := c.Write(append(tok[:], '\n')); err != nil {
		return err
	}
	_, err := c.Read(make([]byte, 4096))
	return err
}

// TestRecords checks that a drop is attributed to its rule, with names.
func TestRecords(t *testing.T) {
	w := harness.New(t, lab.DefaultSpec("it-records"))
	w.Write("deny.yaml", denyAll)
	w.Denied(w.Pod("shop/frontend"), "tcp", netip.AddrPortFrom(w.Pod("payments/api").IPs[0], lab.EchoPort))
	var got []flow.Record
	err := w.Agent.Client.Flows(t.Context(), control.Filter{Pod: "shop/frontend", Verdict: "dropped", To: "payments/api"}, func(r flow.Record) error {
		got = append(got, r)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(got) == 0 {
		t.Fatal("no record of the drop")
	}
	r := got[0]
	if r.Rule.Kind != "NetworkPolicy" || r.Rule.Policy != "deny-all" || r.Remote.Name != "api" || r.Remote.Kind != "pod" || r.Dir != "egress" {
		t.Errorf("record %+v", r)
	}
	eps, err := w.Agent.Client.Endpoints(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range eps {
		if e.Namespace == "shop" && e.Name == "frontend" && (e.Dropped == 0 || e.Egress != "isolated" || !strings.Contains(e.Rules[0].Rule.Text, "deny-all")) {
			t.Errorf("endpoint %+v", e)
		}
	}
}

// TestUninstall expects nothing left and everything open.
func TestUninstall(t *testing.T) {
	w := harness.New(t, lab.DefaultSpec("it-uninstall"))
	w.Write("deny.yaml", denyAll)
	web := netip.AddrPortFrom(lab.WebV4, lab.EchoPort)
	w.Denied(w.Pod("shop/frontend"), "tcp", web)
	if err := w.Agent.Stop(); err != nil {
		t.Fatal(err)
	}
	w.Denied(w.Pod("shop/frontend"), "tcp", web)
	if err := w.Agent.Uninstall(); err != nil {
		t.Fatal(err)
	}
	w.Allowed(w.Pod("shop/frontend"), "tcp", web)
	bpffs, err := w.Lab.BPFFS(w.Agent.Node.Name)
	if err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(bpffs)
	if err != nil || len(left) != 0 {
		t.Errorf("left in bpffs: %v, %v", left, err)
	}
}
