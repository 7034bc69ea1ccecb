//go:build linux

package integration

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-dev/postern/internal/lab"
	"github.com/postern-dev/postern/internal/labagent"
	"github.com/postern-dev/postern/internal/packet/packettest"
	"github.com/postern-dev/postern/test/harness"
)

const onlyEcho = denyAll + `---
apiVersion: postern.dev/v1alpha1
kind: EgressPolicy
metadata: {name: frontend, namespace: shop}
spec:
  podSelector: {matchLabels: {app: frontend}}
  egress:
  - to: [{networks: [203.0.113.80/32]}]
    protocols: [{udp: {destinationPort: {number: 7}}}]
`

// TestIPv4Options: with Parse, a packet with options is judged as any other one;
// with Drop, which is the default, and for source routes it is dropped.
func TestIPv4Options(t *testing.T) {
	w := harness.New(t, lab.DefaultSpec("it-options"))
	w.Write("only.yaml", onlyEcho)
	front := w.Pod("shop/frontend")
	echo, denied := netip.AddrPortFrom(lab.WebV4, lab.EchoPort), netip.AddrPortFrom(lab.WebV4, 9)
	kinds := map[string][]byte{
		"NOP": packettest.OptNOP(4), "record route": packettest.OptRecordRoute(2), "both": append(packettest.OptNOP(1), packettest.OptRecordRoute(3)...),
		"timestamp": packettest.OptTimestamp(2),
	}
	const optionsReason, isolation = "ip-options", "networkpolicy shop/frontend egress isolation"
	check := func(mode string, parse bool) {
		t.Helper()
		if !asks(t, front, nil, echo, true) {
			t.Errorf("%s: a packet without options gets no answer", mode)
		}
		for name, opts := range kinds {
			before := drops(t, w)
			if got := asks(t, front, opts, echo, parse); got != parse {
				t.Errorf("%s, %s: answered %t, want %t", mode, name, got, parse)
			}
			if n := drops(t, w)[optionsReason] - before[optionsReason]; (n == 0) != parse {
				t.Errorf("%s, %s: %d packets dropped for their options", mode, name, n)
			}
			reason := optionsReason
			if parse {
				reason = isolation
			}
			before = drops(t, w)
			asks(t, front, opts, denied, false)
			if n := drops(t, w)[reason] - before[reason]; n != 1 {
				t.Errorf("%s, %s to a denied port: %d packets dropped for %q, want 1", mode, name, n, reason)
			}
		}
		for name, opts := range map[string][]byte{
			"loose source route": packettest.OptSourceRoute(false, lab.WebV4), "strict source route": packettest.OptSourceRoute(true, lab.WebV4),
			"a list that ends early": {7, 40, 4, 0}, "an option of no length": {7, 0, 4, 0},
		} {
			before := drops(t, w)
			s, err := front.OpenSender("eth0", lab.Raw)
			if err != nil {
				t.Fatal(err)
			}
			err = s.Send(packettest.Build(front.Eth(), packettest.IPv4{Src: front.IPs[0], Dst: lab.WebV4, Options: opts},
				packettest.UDP{SrcPort: 4001, DstPort: lab.EchoPort}, packettest.NewToken(name)))
			if err := errors.Join(err, s.Close()); err != nil {
				t.Fatal(err)
			}
			time.Sleep(20 * time.Millisecond)
			if n := drops(t, w)[optionsReason] - before[optionsReason]; n != 1 {
				t.Errorf("%s, %s: %d packets dropped for their options, want 1", mode, name, n)
			}
		}
	}
	check("default", false)
	bin, err := harness.Binary()
	if err != nil {
		t.Fatal(err)
	}
	for _, mode := range []string{"Parse", "Drop"} { // each takes over the endpoints of the one before
		if err := w.Agent.Kill(); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		a, err := labagent.Start(ctx, w.Lab, w.Agent.Node, labagent.Options{Binary: bin, Manifests: w.Agent.Manifests, Args: []string{"--ipv4-options=" + mode}})
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		w.Agent = a
		t.Cleanup(func() {
			if err := a.Kill(); err != nil {
				t.Error(err)
			}
		})
		check(mode, mode == "Parse")
	}
}

// asks sends a datagram with IPv4 options and reports whether it is answered.
func asks(t *testing.T, from *lab.Pod, options []byte, to netip.AddrPort, patient bool) bool {
	t.Helper()
	answered := false
	err := from.Do(func() (err error) {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, unix.Close(fd)) }()
		if options != nil {
			if err := unix.SetsockoptString(fd, unix.IPPROTO_IP, unix.IP_OPTIONS, string(options)); err != nil {
				return err
			}
		}
		wait := unix.Timeval{Usec: 200_000}
		if patient {
			wait = unix.Timeval{Sec: 3}
		}
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait); err != nil {
			return err
		}
		tok := packettest.NewToken(t.Name())
		if err := unix.Sendto(fd, tok[:], 0, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())}); err != nil {
			return err
		}
		n, _, err := unix.Recvfrom(fd, make([]byte, 2048), 0)
		if err != nil && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.ECONNREFUSED) {
			return err
		}
		answered = err == nil && n > 0
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return answered
}

// drops returns the packets of shop/frontend that were dropped, by rule or reason.
func drops(t *testing.T, w *harness.World) map[string]uint64 {
	t.Helper()
	eps, err := w.Agent.Client.Endpoints(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]uint64{}
	for _, e := range eps {
		if e.Namespace != "shop" || e.Name != "frontend" {
			continue
		}
		for _, r := range e.Rules {
			if r.Rule.Reason != "" {
				out[r.Rule.Reason] += r.Packets
			} else {
				out[r.Rule.Text] += r.Packets
			}
		}
	}
	return out
}
