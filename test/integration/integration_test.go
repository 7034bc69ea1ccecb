//go:build linux

// Package integration runs posternd on a lab and judges by packets.
package integration

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/postern-dev/postern/internal/control"
	"github.com/postern-dev/postern/internal/flow"
	"github.com/postern-dev/postern/internal/lab"
	"github.com/postern-dev/postern/internal/labagent"
	"github.com/postern-dev/postern/internal/packet/packettest"
	"github.com/postern-dev/postern/internal/testenv"
)

// binary builds posternd once for all tests.
var binary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "posternd")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "posternd")
	out, err := exec.Command("go", "build", "-o", path, "github.com/postern-dev/postern/cmd/posternd").CombinedOutput()
	if err != nil {
		return "", errors.New(string(out))
	}
	return path, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if path, err := binary(); err == nil {
		_ = os.RemoveAll(filepath.Dir(path))
	}
	os.Exit(code)
}

// world is a lab with an agent on its first node.
type world struct {
	t     *testing.T
	lab   *lab.Lab
	agent *labagent.Agent
}

func newWorld(t *testing.T, spec lab.Spec, args ...string) *world {
	t.Helper()
	testenv.RequireRoot(t)
	bin, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	l, err := lab.Up(ctx, spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Down(); err != nil {
			t.Error(err)
		}
	})
	a, err := labagent.Start(ctx, l, l.Nodes()[0], labagent.Options{Binary: bin, Args: args})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t, l, a}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("agent:\n%s", a.Log())
		}
		if err := a.Kill(); err != nil {
			t.Error(err)
		}
	})
	return w
}

func (w *world) write(name, content string) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 10*time.Second)
	defer cancel()
	if err := w.agent.Write(ctx, name, content); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) pod(key string) *lab.Pod {
	w.t.Helper()
	p, err := w.lab.Pod(key)
	if err != nil {
		w.t.Fatal(err)
	}
	return p
}

// reaches tries one exchange.
func (w *world) reaches(from *lab.Pod, network string, to netip.AddrPort, wait time.Duration) bool {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), wait)
	defer cancel()
	tok := packettest.NewToken(w.t.Name())
	_, err := from.Echo(ctx, network, to, tok[:])
	return err == nil
}

func (w *world) allowed(from *lab.Pod, network string, to netip.AddrPort) {
	w.t.Helper()
	if !w.reaches(from, network, to, 3*time.Second) {
		w.t.Errorf("%s -> %s/%s: blocked, want allowed", from.Spec.Key(), to, network)
	}
}

func (w *world) denied(from *lab.Pod, network string, to netip.AddrPort) {
	w.t.Helper()
	if w.reaches(from, network, to, 300*time.Millisecond) {
		w.t.Errorf("%s -> %s/%s: allowed, want denied", from.Spec.Key(), to, network)
	}
}

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
			w := newWorld(t, spec)
			front, cart, api := w.pod("shop/frontend"), w.pod("shop/cart"), w.pod("payments/api")
			targets := func(f func(network string, i int, a netip.Addr)) {
				for i, web := range []netip.Addr{lab.WebV4, lab.WebV6} {
					for _, network := range []string{"tcp", "udp"} {
						f(network, i, web)
					}
				}
			}
			targets(func(network string, i int, web netip.Addr) {
				w.allowed(front, network, netip.AddrPortFrom(web, lab.EchoPort))
				w.allowed(front, network, netip.AddrPortFrom(api.IPs[i], lab.EchoPort))
				w.allowed(api, network, netip.AddrPortFrom(cart.IPs[i], lab.EchoPort))
			})
			w.write("deny.yaml", denyAll)
			targets(func(network string, i int, web netip.Addr) {
				w.denied(front, network, netip.AddrPortFrom(web, lab.EchoPort))
				w.denied(front, network, netip.AddrPortFrom(api.IPs[i], lab.EchoPort))
				w.denied(api, network, netip.AddrPortFrom(cart.IPs[i], lab.EchoPort))
				w.allowed(front, network, netip.AddrPortFrom(front.IPs[i], lab.EchoPort))
			})
			w.write("allow.yaml", `
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
					w.allowed(front, network, to)
				} else {
					w.denied(front, network, to)
				}
				w.denied(front, network, netip.AddrPortFrom(api.IPs[i], lab.EchoPort))
				w.allowed(api, network, netip.AddrPortFrom(cart.IPs[i], lab.EchoPort))
			})
		})
	}
}

// TestAgentAway kills the agent and expects its last word to hold: an open
// connection goes on, a denied one stays denied, and the next agent takes over
// without cutting it; then a tightened policy does cut it.
func TestAgentAway(t *testing.T) {
	w := newWorld(t, lab.DefaultSpec("it-away"))
	front := w.pod("shop/frontend")
	allow := denyAll + `
---
apiVersion: postern.dev/v1alpha1
kind: EgressPolicy
metadata: {name: frontend, namespace: shop}
spec:
  podSelector: {matchLabels: {app: frontend}}
  egress: [{to: [{networks: [203.0.113.80/32]}]}]
`
	w.write("policy.yaml", allow)
	web, evil := netip.AddrPortFrom(lab.WebV4, lab.EchoPort), netip.AddrPortFrom(lab.EvilV4, lab.EchoPort)
	conn, err := front.Dial(t.Context(), "tcp", web.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	alive := func(what string, want bool) {
		t.Helper()
		err := exchange(conn)
		if (err == nil) != want {
			t.Fatalf("%s: connection alive: %v, want %v (%v)", what, err == nil, want, err)
		}
	}
	alive("at first", true)
	if err := w.agent.Kill(); err != nil {
		t.Fatal(err)
	}
	alive("agent killed", true)
	w.allowed(front, "tcp", web)
	w.denied(front, "tcp", evil)
	if err := w.agent.Start(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := w.agent.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	alive("agent back", true)
	w.denied(front, "tcp", evil)
	w.write("policy.yaml", denyAll)
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
	w := newWorld(t, lab.DefaultSpec("it-records"))
	w.write("deny.yaml", denyAll)
	w.denied(w.pod("shop/frontend"), "tcp", netip.AddrPortFrom(w.pod("payments/api").IPs[0], lab.EchoPort))
	var got []flow.Record
	err := w.agent.Client.Flows(t.Context(), control.Filter{Pod: "shop/frontend", Verdict: "dropped", To: "payments/api"}, func(r flow.Record) error {
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
	eps, err := w.agent.Client.Endpoints(t.Context())
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
	w := newWorld(t, lab.DefaultSpec("it-uninstall"))
	w.write("deny.yaml", denyAll)
	web := netip.AddrPortFrom(lab.WebV4, lab.EchoPort)
	w.denied(w.pod("shop/frontend"), "tcp", web)
	if err := w.agent.Stop(); err != nil {
		t.Fatal(err)
	}
	w.denied(w.pod("shop/frontend"), "tcp", web)
	if err := w.agent.Uninstall(); err != nil {
		t.Fatal(err)
	}
	w.allowed(w.pod("shop/frontend"), "tcp", web)
	bpffs, err := w.lab.BPFFS(w.agent.Node.Name)
	if err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(bpffs)
	if err != nil || len(left) != 0 {
		t.Errorf("left in bpffs: %v, %v", left, err)
	}
}
