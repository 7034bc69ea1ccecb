//go:build linux

package attack

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-dev/postern/internal/control"
	"github.com/postern-dev/postern/internal/lab"
	"github.com/postern-dev/postern/internal/packet/packettest"
)

// TestState is section 2, on a node with conntrack and masquerade.
func TestState(t *testing.T) {
	spec := lab.DefaultSpec("at-state")
	// Isolated for egress only: the world may open connections to it.
	spec.Pods = append(spec.Pods, lab.PodSpec{Namespace: "solo", Name: "out", Labels: map[string]string{"app": "out"}})
	w := newWorld(t, spec)
	w.args = []string{"--flow-quota", "512"}
	w.beside = []string{"no-flow"} // what the pods' own stacks say on cut connections
	w.run(narrow+solo, stateAttacks())
}

const solo = `---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: out, namespace: solo}
spec:
  podSelector: {}
  policyTypes: [Egress]
  egress: [{to: [{ipBlock: {cidr: 203.0.113.80/32}}, {ipBlock: {cidr: "2001:db8:80::80/128"}}]}]
`

const soloIsolation = "networkpolicy solo/out egress isolation"

// evilToo also lets shop/frontend reach evil.
const evilToo = `---
apiVersion: postern.dev/v1alpha1
kind: EgressPolicy
metadata: {name: evil-too, namespace: shop}
spec:
  podSelector: {matchLabels: {app: frontend}}
  egress: [{name: accept-evil, to: [{networks: [203.0.113.66/32, "2001:db8:66::66/128"]}]}]
`

func echoAt(a netip.Addr) netip.AddrPort { return netip.AddrPortFrom(a, lab.EchoPort) }

// dial opens a connection from the pod that the test closes.
func (x *try) dial(network string, to netip.AddrPort) net.Conn {
	x.Helper()
	ctx, cancel := context.WithTimeout(x.Context(), 3*time.Second)
	defer cancel()
	c, err := x.pod.Dial(ctx, network, to.String())
	if err != nil {
		x.Fatalf("dial %s: %v", to, err)
	}
	x.Cleanup(func() { _ = c.Close() })
	return c
}

// says sends a token over a connection; whether it arrives is for the sniffers to say.
func (x *try) says(c net.Conn, tok packettest.Token) {
	_ = c.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
	_, _ = c.Write(append(tok[:], '\n')) // cut off connections fail in their own ways
}

// alive reports whether the other end still answers.
func alive(c net.Conn) bool {
	tok := packettest.NewToken("alive")
	if c.SetDeadline(time.Now().Add(time.Second)) != nil {
		return false
	}
	if _, err := c.Write(append(tok[:], '\n')); err != nil {
		return false
	}
	_, err := c.Read(make([]byte, 4096))
	return err == nil
}

// expectSome says that packets must have been dropped for a reason, one or more.
func (x *try) expectSome(reason string) {
	if x.wants[reason] == 0 {
		x.wants[reason] = 1
	}
	x.beside = append(x.beside, reason)
}

// fromOutside sends a packet to a pod as a host outside would.
func (x *try) fromOutside(src, dst netip.Addr, layers ...packettest.Layer) {
	x.Helper()
	s := x.w.senders["outside"]
	if s == nil {
		var err error
		if s, err = x.w.lab.Outside().OpenSender("w-"+x.w.node.Name, lab.Raw); err != nil {
			x.Fatal(err)
		}
		x.w.senders["outside"] = s
	}
	mac, err := x.w.node.MAC("eth0")
	if err != nil {
		x.Fatal(err)
	}
	eth := packettest.Eth{Src: packettest.MAC{2, 0xee, 0, 0, 0, 1}, Dst: packettest.MACFrom(mac)}
	if err := s.Send(packettest.Build(append([]packettest.Layer{eth, ipHeader(src, dst)}, layers...)...)); err != nil {
		x.Fatal(err)
	}
	time.Sleep(5 * time.Millisecond)
}

func stateAttacks() []attack {
	return []attack{
		{id: "CT-01", off: open, try: func(x *try) {
			if x.on {
				x.w.write("evil.yaml", evilToo)
			}
			var cut, kept []net.Conn
			for v := range 2 {
				for _, network := range []string{"tcp", "udp"} {
					cut = append(cut, x.dial(network, echoAt(evil(v))))
					kept = append(kept, x.dial(network, echoAt(web(v))))
				}
			}
			for _, c := range append(cut, kept...) {
				if !alive(c) {
					x.Fatalf("%s does not answer while it is allowed", c.RemoteAddr())
				}
			}
			if x.on {
				x.w.remove("evil.yaml")
				x.expectSome(isolation)
			}
			for i, c := range cut {
				x.says(c, x.attackToken(fmt.Sprintf("connection %d, from before", i), 1))
			}
			for _, c := range kept {
				if !alive(c) {
					x.Errorf("%s: cut, though both policies allow it", c.RemoteAddr())
				}
			}
		}},
		{id: "CT-02", off: open, try: func(x *try) {
			// The same tuple, denied, allowed, denied.
			for v := range 2 {
				port := x.port()
				frame := func(tok packettest.Token) []byte {
					return x.ip(evil(v), packettest.UDP{SrcPort: port, DstPort: 7}, tok)
				}
				x.denied("before "+family(v), isolation, frame)
				if x.on {
					x.w.write("evil.yaml", evilToo)
					x.allowed("at once "+family(v), frame)
					x.w.remove("evil.yaml")
				}
				x.denied("after "+family(v), isolation, frame)
			}
			x.beside = append(x.beside, isolation) // the pod's own complaint about the answer
		}},
		{id: "CT-03", off: absent, try: func(x *try) {
			victim := x.w.pod("solo/out")
			for v := range 2 {
				port, flow := x.port(), x.port()
				vic := victim.IP(web(v))
				// From the attacker's link, as if evil had opened a connection to the attacker, or to the victim.
				for _, dst := range []netip.Addr{x.src(web(v)), vic} {
					for _, l := range []packettest.Layer{
						packettest.TCP{SrcPort: 443, DstPort: port, Flags: packettest.SYN}, packettest.UDP{SrcPort: 443, DstPort: port},
					} {
						x.deniedMaybe("forged first packet "+family(v), "source-address", func(tok packettest.Token) []byte {
							return packettest.Build(x.pod.Eth(), ipHeader(evil(v), dst), l, tok)
						})
					}
				}
				// And as if the victim had asked.
				x.denied("forged question of the victim "+family(v), "source-address", func(tok packettest.Token) []byte {
					return packettest.Build(x.pod.Eth(), ipHeader(vic, evil(v)), packettest.UDP{SrcPort: flow, DstPort: 443}, tok)
				})
				x.denied("answer to the forged UDP "+family(v), isolation, func(tok packettest.Token) []byte {
					return x.ip(evil(v), packettest.UDP{SrcPort: port, DstPort: 443}, tok)
				})
				x.denied("answer to the forged SYN "+family(v), "no-flow", func(tok packettest.Token) []byte {
					return x.ip(evil(v), packettest.TCP{SrcPort: port, DstPort: 443, Flags: packettest.SYN | packettest.ACK}, tok)
				})
				// The victim's own packets find nothing that the attacker made.
				before := x.w.drops(x.T, victim)
				x.sendFrom(victim, lab.Raw, packettest.Build(victim.Eth(), ipHeader(vic, evil(v)), packettest.UDP{SrcPort: flow, DstPort: 443}, x.attackToken("the victim's on the same tuple "+family(v), 1)))
				x.sendFrom(victim, lab.Raw, packettest.Build(victim.Eth(), ipHeader(vic, evil(v)), packettest.TCP{SrcPort: port, DstPort: 443, Flags: packettest.SYN | packettest.ACK}, x.attackToken("the victim's answer "+family(v), 1)))
				if x.on {
					if got := delta(before, x.w.drops(x.T, victim)); got[soloIsolation] != 1 || got["no-flow"] != 1 {
						x.Errorf("the victim's drops: %v", got)
					}
				} else {
					x.maybe() // conntrack has seen the forgery, and makes of it what it likes
					x.shots[len(x.shots)-2].maybe = true
				}
			}
		}},
		{id: "CT-04", from: "solo/out", off: open, try: func(x *try) {
			for v := range 2 {
				for _, to := range []netip.Addr{web(v), evil(v)} {
					for name, flags := range map[string]uint8{
						"SYN-ACK": packettest.SYN | packettest.ACK, "ACK": packettest.ACK, "RST": packettest.RST, "FIN-ACK": packettest.FIN | packettest.ACK, "PSH-ACK": packettest.PSH | packettest.ACK,
					} {
						x.denied(fmt.Sprintf("%s first, to %s", name, to), "no-flow", func(tok packettest.Token) []byte { return x.tcp(to, 443, flags, tok) })
						x.maybe() // the masquerade has nothing to go by
					}
				}
				// A server that helps: it opens a connection to the port of our denied one.
				port := x.port()
				seg := func(flags uint8) func(tok packettest.Token) []byte {
					return func(tok packettest.Token) []byte {
						return x.ip(evil(v), packettest.TCP{SrcPort: port, DstPort: 443, Seq: 1, Ack: 2, Flags: flags}, tok)
					}
				}
				x.denied("SYN "+family(v), soloIsolation, seg(packettest.SYN))
				x.fromOutside(evil(v), x.src(web(v)), packettest.TCP{SrcPort: 443, DstPort: port, Seq: 1, Flags: packettest.SYN})
				x.denied("SYN against their SYN "+family(v), soloIsolation, seg(packettest.SYN))
				x.maybe()
				// Another server's answer to nobody's question.
				x.fromOutside(evil(v), x.src(web(v)), packettest.TCP{SrcPort: 443, DstPort: port + 1000, Seq: 1, Ack: 1, Flags: packettest.SYN | packettest.ACK})
				x.denied("ACK to their SYN-ACK "+family(v), "no-flow", func(tok packettest.Token) []byte {
					return x.ip(evil(v), packettest.TCP{SrcPort: port + 1000, DstPort: 443, Seq: 1, Ack: 2, Flags: packettest.ACK}, tok)
				})
				x.maybe()
				// What the world may open to this pod, it may answer.
				u := x.port()
				x.fromOutside(evil(v), x.src(web(v)), packettest.UDP{SrcPort: 443, DstPort: u}, packettest.Payload("hello"))
				x.allowed("answer to what they opened "+family(v), func(tok packettest.Token) []byte {
					return x.ip(evil(v), packettest.UDP{SrcPort: u, DstPort: 443}, tok)
				})
				x.denied("to another port than they came from "+family(v), soloIsolation, func(tok packettest.Token) []byte {
					return x.ip(evil(v), packettest.UDP{SrcPort: u, DstPort: 444}, tok)
				})
			}
		}},
		{id: "CT-06", off: open, try: func(x *try) {
			// payments/api opens and resets a connection to our port 7; then we use its tuple.
			peer := x.w.pod("payments/api")
			for v := range 2 {
				port := x.port()
				to := peer.IP(web(v))
				theirs := func(flags uint8) {
					x.sendFrom(peer, lab.Raw, packettest.Build(peer.Eth(), ipHeader(to, x.src(to)), packettest.TCP{SrcPort: port, DstPort: 4242, Seq: 100, Ack: 1, Flags: flags}))
					time.Sleep(5 * time.Millisecond)
				}
				ours := func(flags uint8) func(tok packettest.Token) []byte {
					return func(tok packettest.Token) []byte {
						return x.ip(to, packettest.TCP{SrcPort: 4242, DstPort: port, Seq: 500, Ack: 101, Flags: flags}, tok)
					}
				}
				theirs(packettest.SYN)
				x.denied("SYN on the tuple of their open connection "+family(v), isolation, ours(packettest.SYN))
				x.maybe()
				theirs(packettest.RST)
				x.denied("SYN on the tuple of their reset connection "+family(v), isolation, ours(packettest.SYN))
				x.maybe()
			}
			// Our own, allowed, closed, then denied: the same local port again.
			for v := range 2 {
				if x.on {
					x.w.write("evil.yaml", evilToo)
				}
				local := netip.AddrPortFrom(x.src(evil(v)), x.port())
				if err := x.reuse(local, echoAt(evil(v)), nil); err != nil {
					x.Fatalf("while allowed: %v", err)
				}
				if x.on {
					x.w.remove("evil.yaml")
				}
				port := local.Port()
				x.denied("SYN on the tuple of our closed connection "+family(v), isolation, func(tok packettest.Token) []byte {
					return x.ip(evil(v), packettest.TCP{SrcPort: port, DstPort: 7, Seq: 9_000_000, Flags: packettest.SYN}, tok)
				})
				x.maybe()
				tok := x.attackToken("UDP on the same ports "+family(v), 1)
				x.send(lab.Raw, x.ip(evil(v), packettest.UDP{SrcPort: port, DstPort: 7}, tok))
				x.expect(isolation, 1)
			}
			x.beside = append(x.beside, isolation) // resets and ICMP errors of the pod's own stack
		}},
		{id: "CT-08", from: "ci/runner", off: open, try: func(x *try) {
			const wideIsolation = "networkpolicy ci/wide egress isolation"
			quiet := x.w.pod("shop/frontend")
			idle, err := quiet.Dial(x.Context(), "tcp", echoAt(web(0)).String())
			if err != nil {
				x.Fatal(err)
			}
			defer func() { _ = idle.Close() }()
			if !alive(idle) {
				x.Error("the quiet pod's connection does not answer")
			}
			if x.on {
				for i := range uint16(1200) { // the quota is 512
					x.send(lab.Raw, x.ip(web(int(i%2)), packettest.UDP{SrcPort: 30000 + i, DstPort: 5000}))
				}
				x.expectSome("table-full")
				x.denied("a new flow beyond the quota, itself allowed", "table-full", func(tok packettest.Token) []byte { return x.udp(web(0), controlPort, tok) })
				x.maybe()
			}
			for v := range 2 {
				x.denied("a denied one "+family(v), wideIsolation, func(tok packettest.Token) []byte { return x.udp(metadata(v), 80, tok) }, everyMode...)
			}
			if !alive(idle) {
				x.Error("the quiet pod's connection was lost to another pod's flood")
			}
			conn, err := quiet.Dial(x.Context(), "tcp", echoAt(web(1)).String())
			if err != nil {
				x.Fatalf("the quiet pod's new connection: %v", err)
			}
			if !alive(conn) {
				x.Error("the quiet pod's new connection does not answer")
			}
			_ = conn.Close()
			x.also("CT-09")
			x.beside = append(x.beside, wideIsolation, "icmp-error")
		}},
		{id: "CT-11", off: open, try: func(x *try) {
			c := x.dial("tcp", echoAt(web(0)))
			for _, line := range []string{"227 Entering Passive Mode (203,0,113,66,19,137)\r\n", "PORT 10,244,1,2,19,137\r\n", "EPRT |2|2001:db8:66::66|5001|\r\n"} {
				if _, err := c.Write([]byte(line)); err != nil {
					x.Fatal(err)
				}
				if _, err := c.Read(make([]byte, 500)); err != nil {
					x.Fatal(err)
				}
			}
			for v := range 2 {
				x.denied("the data connection that was announced "+family(v), isolation, func(tok packettest.Token) []byte {
					return x.tcp(evil(v), 5001, packettest.SYN, tok)
				})
			}
		}},
		{id: "CT-12", off: open, try: (*try).reusedAddress},
		{id: "CT-13", off: open, try: (*try).sharedAddress},
		{id: "CT-14", off: absent, try: (*try).lateDelete},
	}
}

// reuse connects from a local port, says something and closes, so that the port is free again.
func (x *try) reuse(local, to netip.AddrPort, data []byte) error {
	return x.pod.Do(func() error {
		domain := unix.AF_INET
		if to.Addr().Is6() {
			domain = unix.AF_INET6
		}
		fd, err := unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer func() { _ = unix.Close(fd) }()
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return err
		}
		// Closing resets: no TIME_WAIT.
		if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
			return err
		}
		if err := unix.Bind(fd, sockaddr(local.Addr(), local.Port(), 0)); err != nil {
			return err
		}
		if err := unix.Connect(fd, sockaddr(to.Addr(), to.Port(), 0)); err != nil {
			return err
		}
		_, err = unix.Write(fd, append(data, '\n'))
		return err
	})
}

// manifests brings the agent's objects in line with the lab and waits for it.
func (w *world) manifests() {
	w.t.Helper()
	if w.agent == nil {
		return
	}
	if err := w.lab.Manifests(filepath.Join(w.agent.Manifests, "lab")); err != nil {
		w.t.Fatal(err)
	}
}

// enforced waits until the agent reports a state for a pod.
func (w *world) state(key, want string) {
	w.t.Helper()
	if w.agent == nil {
		return
	}
	deadline := time.Now().Add(5 * time.Second)
	got := "unknown to the agent"
	for time.Now().Before(deadline) {
		eps, err := w.agent.Client.Endpoints(w.t.Context())
		if err != nil {
			w.t.Fatal(err)
		}
		for _, e := range eps {
			if e.Namespace+"/"+e.Name == key {
				got = e.State + " " + e.Message
				if e.State == want {
					return
				}
			}
		}
		time.Sleep(5 * time.Millisecond)
	}
	w.t.Fatalf("pod %s: %s, want %s", key, got, want)
}

// forgotten waits until the agent no longer knows a pod.
func (w *world) forgotten(key string) {
	w.t.Helper()
	if w.agent == nil {
		return
	}
	for range 1000 {
		eps, err := w.agent.Client.Endpoints(w.t.Context())
		if err != nil {
			w.t.Fatal(err)
		}
		if !slices.ContainsFunc(eps, func(e control.Endpoint) bool { return e.Namespace+"/"+e.Name == key }) {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	w.t.Fatalf("pod %s is still known to the agent", key)
}

// reusedAddress gives a dead pod's addresses to another tenant's, which goes on
// with the connections of the dead.
func (x *try) reusedAddress() {
	w := x.w
	old, err := w.lab.AddPod(x.Context(), lab.PodSpec{Namespace: "payments", Name: "old", Labels: map[string]string{"app": "old"}, Servers: []lab.Server{}}, lab.AddPodOptions{})
	if err != nil {
		x.Fatal(err)
	}
	w.manifests()
	w.state("payments/old", "enforced")
	ips := old.IPs
	ports := []uint16{x.port(), x.port()}
	for v := range 2 {
		x.sendFrom(old, lab.Raw, packettest.Build(old.Eth(), ipHeader(ips[v], evil(v)), packettest.UDP{SrcPort: ports[v], DstPort: 7}, x.controlToken("the old pod's "+family(v))))
		x.sendFrom(old, lab.Raw, packettest.Build(old.Eth(), ipHeader(ips[v], evil(v)), packettest.TCP{SrcPort: ports[v], DstPort: 7, Flags: packettest.SYN}))
	}
	time.Sleep(20 * time.Millisecond)
	w.closeSenders()
	if err := w.lab.DeletePod("payments/old"); err != nil {
		x.Fatal(err)
	}
	fresh, err := w.lab.AddPod(x.Context(), lab.PodSpec{Namespace: "shop", Name: "fresh", Labels: map[string]string{"app": "fresh"}, IPs: ips, Servers: []lab.Server{}}, lab.AddPodOptions{})
	if err != nil {
		x.Fatal(err)
	}
	w.manifests()
	w.state("shop/fresh", "enforced")
	for v := range 2 {
		x.sendFrom(fresh, lab.Raw, packettest.Build(fresh.Eth(), ipHeader(ips[v], evil(v)), packettest.UDP{SrcPort: ports[v], DstPort: 7}, x.attackToken("the new pod's on the old one's flow "+family(v), 1)))
		x.sendFrom(fresh, lab.Raw, packettest.Build(fresh.Eth(), ipHeader(ips[v], evil(v)), packettest.TCP{SrcPort: ports[v], DstPort: 7, Seq: 2, Ack: 2, Flags: packettest.ACK}, x.attackToken("the new pod's on the old one's connection "+family(v), 1)))
		x.maybe() // conntrack may not know the connection
	}
	time.Sleep(20 * time.Millisecond)
	if x.on {
		got := w.drops(x.T, fresh)
		if got["networkpolicy shop/deny-all egress isolation"] < 2 || got["no-flow"] < 2 {
			x.Errorf("the new pod's drops: %v", got)
		}
	}
	w.closeSenders()
	if err := w.lab.DeletePod("shop/fresh"); err != nil {
		x.Fatal(err)
	}
	w.manifests()
}

// podObject is a Pod manifest that has the address of another, or its interface.
func podObject(namespace, name, uid, phase string, labels string, ips []netip.Addr, of *lab.Pod) string {
	m := fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {namespace: %s, name: %s, uid: %s, labels: %s", namespace, name, uid, labels)
	if of != nil {
		m += fmt.Sprintf(", annotations: {%s: %s}", lab.AnnotationInterface, of.HostInterface)
	}
	m += "}\nspec: {nodeName: node1, containers: [{name: main, image: none}]}\nstatus:\n  phase: " + phase + "\n"
	if len(ips) == 2 {
		m += fmt.Sprintf("  podIP: %s\n  podIPs: [{ip: %s}, {ip: %q}]\n", ips[0], ips[0], ips[1].String())
	}
	return m
}

// sharedAddress has two Pod objects with the attacker's addresses, and removes one.
func (x *try) sharedAddress() {
	w := x.w
	ghosts := map[string]string{
		"ghost":  podObject("payments", "ghost", "ghost-1", "Running", "{app: ghost}", x.pod.IPs, nil),
		"job":    podObject("payments", "job", "job-1", "Succeeded", "{app: job}", x.pod.IPs, nil),
		"failed": podObject("payments", "failed", "failed-1", "Failed", "{app: failed}", x.pod.IPs, x.pod),
	}
	for name, m := range ghosts {
		if w.agent != nil {
			w.write("ghost.yaml", m)
		}
		for v := range 2 {
			x.denied("beside "+name+" "+family(v), isolation, func(tok packettest.Token) []byte { return x.udp(evil(v), 443, tok) })
		}
		if w.agent != nil {
			w.remove("ghost.yaml")
		}
		for v := range 2 {
			x.denied("after "+name+" "+family(v), isolation, func(tok packettest.Token) []byte { return x.udp(evil(v), 443, tok) })
			x.allowed("after "+name+" "+family(v), func(tok packettest.Token) []byte { return x.udp(web(v), controlPort, tok) })
		}
	}
	x.also("K8S-09")
}

// lateDelete writes the pod's object anew, elsewhere, before the old one goes.
func (x *try) lateDelete() {
	w := x.w
	name := fmt.Sprintf("lab-pod_%s_%s.yaml", x.pod.Spec.Namespace, x.pod.Spec.Name)
	for round := range 6 {
		if w.agent != nil {
			path := filepath.Join(w.agent.Manifests, "lab", name)
			old, err := os.ReadFile(path)
			if err != nil {
				x.Fatal(err)
			}
			again := podObject("shop", "frontend", fmt.Sprintf("uid-%d", round), "Running", "{app: frontend}", x.pod.IPs, x.pod)
			steps := []func(){
				func() { w.write("again.yaml", again) },
				func() {
					if err := os.Remove(path); err != nil {
						x.Fatal(err)
					}
				},
			}
			if round%2 == 1 { // the new one first, or the old one
				steps[0], steps[1] = steps[1], steps[0]
			}
			for _, s := range steps {
				s()
				time.Sleep(time.Duration(round*50) * time.Millisecond)
				x.denied(fmt.Sprintf("round %d, between", round), "", func(tok packettest.Token) []byte { return x.udp(evil(round%2), 443, tok) })
			}
			time.Sleep(250 * time.Millisecond)
			if err := os.WriteFile(path, old, 0o600); err != nil {
				x.Fatal(err)
			}
			w.remove("again.yaml")
			time.Sleep(300 * time.Millisecond) // a file counts as gone after a while only
			w.state("shop/frontend", "enforced")
			x.recount()
		}
		x.denied(fmt.Sprintf("round %d, after", round), isolation, func(tok packettest.Token) []byte { return x.udp(evil(round%2), 443, tok) })
	}
}
