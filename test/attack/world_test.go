//go:build linux

package attack

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/postern-dev/postern/internal/flow"
	"github.com/postern-dev/postern/internal/lab"
	"github.com/postern-dev/postern/internal/labagent"
	"github.com/postern-dev/postern/internal/packet/packettest"
	"github.com/postern-dev/postern/internal/testenv"
	"github.com/postern-dev/postern/test/harness"
)

// phase is what is there to stop an attack.
type phase int

const (
	absent phase = iota // no agent
	open                // an agent, and no policy for the pod
	on                  // the policy
)

func (p phase) String() string { return [...]string{"off, no agent", "off, no policy", "on"}[p] }

// attack is a row of the catalogue and how it is tried.
type attack struct {
	id string
	// from is the attacker's pod; empty means shop/frontend.
	from string
	// off is where the attack must succeed: absent for what an agent refuses
	// every pod, policy or not.
	off phase
	// limit marks a documented limit: try itself checks that it behaves as documented.
	limit bool
	try   func(x *try)
}

// world is a lab with an agent that comes later, and sniffers around it all.
type world struct {
	t     *testing.T
	lab   *lab.Lab
	node  *lab.Node
	agent *labagent.Agent
	tap   *lab.Tap
	phase phase

	args []string // of the agent
	// behindBridge leaves out what a bridge hands up to its node: Services are
	// looked at again behind that, in the node's forward path.
	behindBridge bool
	beside       []string // drops that happen beside those of the attacks
	senders      map[string]*lab.Sender
	ports        uint16
	denied       []packettest.Token // of the phase, looked for again at its end
}

func newWorld(t *testing.T, spec lab.Spec) *world {
	t.Helper()
	testenv.RequireRoot(t)
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
	w := &world{t: t, lab: l, node: l.Nodes()[0], senders: map[string]*lab.Sender{}, ports: 20000}
	w.retap()
	t.Cleanup(w.closeSenders)
	return w
}

// retap puts sniffers around the pods that are there now.
func (w *world) retap() {
	w.t.Helper()
	if w.tap != nil {
		if err := w.tap.Close(); err != nil {
			w.t.Fatal(err)
		}
	}
	tap, err := w.lab.Tap(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	w.tap = tap
}

// install starts an agent, with no policy.
func (w *world) install(args ...string) {
	w.t.Helper()
	bin, err := harness.Binary()
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(w.t.Context(), 30*time.Second)
	defer cancel()
	a, err := labagent.Start(ctx, w.lab, w.node, labagent.Options{Binary: bin, Args: args})
	if err != nil {
		w.t.Fatal(err)
	}
	w.agent = a
	w.t.Cleanup(func() {
		if w.t.Failed() {
			w.t.Logf("agent:\n%s", a.Log())
		}
		if err := a.Kill(); err != nil {
			w.t.Error(err)
		}
	})
}

// write puts a manifest in force.
func (w *world) write(name, content string) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 10*time.Second)
	defer cancel()
	if err := w.agent.Write(ctx, name, content); err != nil {
		w.t.Fatal(err)
	}
}

// remove takes a manifest away.
func (w *world) remove(name string) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 10*time.Second)
	defer cancel()
	if err := w.agent.Remove(ctx, name); err != nil {
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

// seen says where a token was seen, as lab.Tap does.
func (w *world) seen(tok packettest.Token) []string {
	at := w.tap.Seen(tok)
	if w.behindBridge {
		at = slices.DeleteFunc(at, func(s string) bool { return strings.HasPrefix(s, w.node.Name+":cni0 ") })
	}
	return at
}

func (w *world) closeSenders() {
	for k, s := range w.senders {
		if err := s.Close(); err != nil {
			w.t.Error(err)
		}
		delete(w.senders, k)
	}
}

// sender keeps one packet socket for each pod and mode: closing one takes milliseconds.
func (w *world) sender(p *lab.Pod, mode lab.SendMode) *lab.Sender {
	w.t.Helper()
	key := p.UID + mode.String()
	if w.senders[key] == nil {
		s, err := p.OpenSender("eth0", mode)
		if err != nil {
			w.t.Fatal(err)
		}
		w.senders[key] = s
	}
	return w.senders[key]
}

// run takes attacks through the phases; policy is a manifest.
func (w *world) run(policy string, attacks []attack) {
	w.t.Helper()
	w.runPhase(absent, attacks)
	w.install(w.args...)
	w.runPhase(open, attacks)
	w.write("policy.yaml", policy)
	w.runPhase(on, attacks)
}

func (w *world) runPhase(p phase, attacks []attack) {
	w.t.Helper()
	w.phase, w.denied = p, nil
	w.t.Run(p.String(), func(t *testing.T) {
		for i := range attacks {
			a := &attacks[i]
			if p != on && a.off != p {
				continue
			}
			t.Run(a.id, func(t *testing.T) { w.try(t, a) })
		}
		// Denied is not "not yet": a while later, still nothing.
		if p == on {
			time.Sleep(300 * time.Millisecond)
			if err := w.tap.Verify(t.Context()); err != nil {
				t.Errorf("the sniffers are blind: %v", err)
			}
			for _, tok := range w.denied {
				if at := w.seen(tok); len(at) > 0 {
					t.Errorf("token %s was seen at last: %v", tok, at)
				}
			}
		}
	})
}

// try is one attack in one phase.
type try struct {
	*testing.T
	w   *world
	a   *attack
	pod *lab.Pod
	on  bool

	shots  []shot
	before map[string]uint64
	wants  map[string]uint64 // reasons, separated by |, and how many packets they must have dropped
	// counted are the reasons among them that the agent's counters showed.
	counted map[string]bool
	// beside are drops that may happen without being wanted, e.g. of answers.
	beside []string
	// extra attacks and leaks that no token stands for.
	tried, leaked int
	others        []string
}

// also says that the case is another row as well.
func (x *try) also(id string) { x.others = append(x.others, id) }

// shot is one token on its way.
type shot struct {
	name    string
	token   packettest.Token
	packets int
	control bool // policy allows it
	maybe   bool // with enforcement off it may be lost too: the kernel refuses it
}

func (w *world) try(t *testing.T, a *attack) {
	t.Helper()
	x := &try{T: t, w: w, a: a, on: w.phase == on, wants: map[string]uint64{}, counted: map[string]bool{}}
	from := a.from
	if from == "" {
		from = "shop/frontend"
	}
	x.pod = w.pod(from)
	if w.lab.Spec().CNI == lab.Bridge {
		// The sniffer of the bridge proves itself by a frame that all ports get.
		x.beside = append(x.beside, "ethertype")
	}
	x.beside = append(x.beside, w.beside...)
	x.recount()
	for v := range 2 {
		x.allowed("control", func(tok packettest.Token) []byte {
			return x.udp(web(v), controlPort, tok)
		})
	}
	a.try(x)
	x.judge()
	if x.on {
		x.judgeReasons()
	}
	for _, id := range append(x.others, a.id) {
		ledgerOf(id).add(x)
	}
}

// attackToken makes a token whose packets must not get through.
func (x *try) attackToken(name string, packets int) packettest.Token {
	tok := packettest.NewToken(x.a.id)
	x.shots = append(x.shots, shot{name: name, token: tok, packets: packets})
	return tok
}

// recount begins to count drops here: what was expected before is forgotten. A
// new incarnation of the pod begins with new counters.
func (x *try) recount() {
	x.before = x.drops()
	clear(x.wants)
}

// maybe marks the last token: with enforcement off it may be lost as well.
func (x *try) maybe() { x.shots[len(x.shots)-1].maybe = true }

// controlToken makes a token whose packets must get through.
func (x *try) controlToken(name string) packettest.Token {
	tok := packettest.NewToken(x.a.id)
	x.shots = append(x.shots, shot{name: name, token: tok, packets: 1, control: true})
	return tok
}

// expect says that n packets must have been dropped for a reason, or one of several separated by |.
// An empty reason expects nothing: the drop is not counted, or elsewhere.
func (x *try) expect(reason string, n int) {
	if reason != "" {
		x.wants[reason] += uint64(n)
	}
}

// send sends frames from the attacker's interface.
func (x *try) send(mode lab.SendMode, frames ...[]byte) { x.sendFrom(x.pod, mode, frames...) }

func (x *try) sendFrom(p *lab.Pod, mode lab.SendMode, frames ...[]byte) {
	x.Helper()
	s := x.w.sender(p, mode)
	for _, f := range frames {
		if err := s.Send(f); err != nil {
			x.Fatalf("%s: %v", mode, err)
		}
	}
}

// denied sends a frame in some ways (Raw if none is named), each of which must be dropped for reason.
func (x *try) denied(name, reason string, frame func(tok packettest.Token) []byte, modes ...lab.SendMode) {
	x.Helper()
	if len(modes) == 0 {
		modes = []lab.SendMode{lab.Raw}
	}
	for _, m := range modes {
		x.send(m, frame(x.attackToken(name+", "+m.String(), 1)))
		x.expect(reason, 1)
	}
}

// deniedMaybe is denied for a frame that the kernel may refuse by itself.
func (x *try) deniedMaybe(name, reason string, frame func(tok packettest.Token) []byte) {
	x.Helper()
	x.denied(name, reason, frame)
	x.maybe()
}

// allowed sends a frame that must arrive in every phase.
func (x *try) allowed(name string, frame func(tok packettest.Token) []byte, modes ...lab.SendMode) {
	x.Helper()
	if len(modes) == 0 {
		modes = []lab.SendMode{lab.Raw}
	}
	for _, m := range modes {
		x.send(m, frame(x.controlToken(name+", "+m.String())))
	}
}

// everyMode is the three ways to send a raw frame.
var everyMode = []lab.SendMode{lab.Raw, lab.Ring, lab.Bypass}

// port returns a source port that no other shot has.
func (x *try) port() uint16 {
	x.w.ports++
	return x.w.ports
}

// src is the attacker's address of a's family.
func (x *try) src(a netip.Addr) netip.Addr { return x.pod.IP(a) }

// ip builds a frame from the attacker to dst.
func (x *try) ip(dst netip.Addr, layers ...packettest.Layer) []byte {
	return packettest.Build(append([]packettest.Layer{x.pod.Eth(), ipHeader(x.src(dst), dst)}, layers...)...)
}

func ipHeader(src, dst netip.Addr) packettest.Layer {
	if dst.Is4() {
		return packettest.IPv4{Src: src, Dst: dst}
	}
	return packettest.IPv6{Src: src, Dst: dst}
}

// udp builds a datagram from a fresh port.
func (x *try) udp(dst netip.Addr, port uint16, payload ...packettest.Layer) []byte {
	return x.ip(dst, append([]packettest.Layer{packettest.UDP{SrcPort: x.port(), DstPort: port}}, payload...)...)
}

// tcp builds a segment from a fresh port.
func (x *try) tcp(dst netip.Addr, port uint16, flags uint8, payload ...packettest.Layer) []byte {
	return x.ip(dst, append([]packettest.Layer{packettest.TCP{SrcPort: x.port(), DstPort: port, Flags: flags}}, payload...)...)
}

// judge waits for what must arrive, lets the rest settle, and counts.
func (x *try) judge() {
	x.Helper()
	deadline := time.Now().Add(3 * time.Second)
	missing := func() []string {
		var out []string
		for _, s := range x.shots {
			if (s.control || (!x.on && !s.maybe)) && len(x.w.seen(s.token)) == 0 {
				out = append(out, s.name)
			}
		}
		return out
	}
	for len(missing()) > 0 && time.Now().Before(deadline) {
		time.Sleep(2 * time.Millisecond)
	}
	if x.on {
		time.Sleep(10 * time.Millisecond)
	}
	if err := x.w.tap.Verify(x.Context()); err != nil {
		x.Fatalf("the sniffers are blind: %v", err)
	}
	if m := missing(); len(m) > 0 {
		x.Errorf("%d of %d packets that must arrive did not: %s", len(m), len(x.shots), strings.Join(m, "; "))
	}
	for _, s := range x.shots {
		if s.control {
			continue
		}
		at := x.w.seen(s.token)
		x.tried += s.packets
		if len(at) > 0 {
			x.leaked += s.packets
		}
		if x.on && !x.a.limit {
			x.w.denied = append(x.w.denied, s.token)
			if len(at) > 0 {
				x.Errorf("leaked: %s, seen at %v", s.name, at)
			}
		}
	}
	if !x.on && x.leaked == 0 {
		x.Errorf("nothing leaks with enforcement off: the case shows nothing")
	}
}

// drops are the exact counters of the attacker's pod, by reason or rule.
func (x *try) drops() map[string]uint64 { return x.w.drops(x.T, x.pod) }

func (w *world) drops(t *testing.T, p *lab.Pod) map[string]uint64 {
	t.Helper()
	out := map[string]uint64{}
	if w.agent == nil || w.agent.PID() == 0 {
		return out
	}
	eps, err := w.agent.Client.Endpoints(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range eps {
		if e.Namespace != p.Spec.Namespace || e.Name != p.Spec.Name {
			continue
		}
		for _, r := range e.Rules {
			if name, drops := reasonOf(r.Rule); drops {
				out[name] += r.Packets
			}
		}
	}
	return out
}

// reasonOf names a rule as the table does, and says whether it drops. Rules of
// the suite's policies that accept have names that say so.
func reasonOf(r flow.Rule) (string, bool) {
	if r.Reason != "" {
		return r.Reason, !flow.Reason(r.ID).Accepts()
	}
	switch {
	case strings.HasSuffix(r.Text, "no-match"), strings.HasSuffix(r.Text, "own-node"), strings.HasSuffix(r.Text, "self"):
		return r.Text, false
	}
	return r.Text, !strings.HasPrefix(r.Name, "accept")
}

// judgeReasons compares what was counted since with what must have been.
func (x *try) judgeReasons() {
	x.Helper()
	var got map[string]uint64
	var bad []string
	for range 5 {
		got = delta(x.before, x.drops())
		if bad = compareReasons(x.wants, got, x.beside); len(bad) == 0 {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	for _, b := range bad {
		x.Errorf("%s; counted %v, want %v", b, got, x.wants)
	}
	for want := range x.wants {
		for r := range strings.SplitSeq(want, "|") {
			if got[r] > 0 {
				x.counted[r] = true
			}
		}
	}
}

func delta(before, after map[string]uint64) map[string]uint64 {
	out := map[string]uint64{}
	for k, v := range after {
		if d := v - before[k]; v > before[k] {
			out[k] = d
		}
	}
	return out
}

// compareReasons says what is wrong with what was counted. A want of several
// reasons takes what is left when the others have theirs.
func compareReasons(wants, got map[string]uint64, beside []string) []string {
	var bad []string
	left := maps.Clone(got)
	for _, w := range slices.Sorted(maps.Keys(wants)) {
		if strings.Contains(w, "|") {
			continue
		}
		if got[w] < wants[w] {
			bad = append(bad, fmt.Sprintf("%d packets dropped for %q, want %d", got[w], w, wants[w]))
		}
		left[w] -= min(left[w], wants[w])
	}
	for _, w := range slices.Sorted(maps.Keys(wants)) {
		if !strings.Contains(w, "|") {
			continue
		}
		n := wants[w]
		for r := range strings.SplitSeq(w, "|") {
			take := min(n, left[r])
			n -= take
			left[r] -= take
		}
		if n > 0 {
			bad = append(bad, fmt.Sprintf("%d packets not dropped for one of %q", n, w))
		}
	}
	for _, r := range slices.Sorted(maps.Keys(left)) {
		if left[r] > 0 && !slices.Contains(beside, r) {
			bad = append(bad, fmt.Sprintf("%d packets too many dropped for %q", left[r], r))
		}
	}
	return bad
}

// Addresses by family: 0 is IPv4, 1 is IPv6.
func web(v int) netip.Addr      { return []netip.Addr{lab.WebV4, lab.WebV6}[v] }
func evil(v int) netip.Addr     { return []netip.Addr{lab.EvilV4, lab.EvilV6}[v] }
func metadata(v int) netip.Addr { return []netip.Addr{lab.MetadataV4, lab.MetadataV6}[v] }

// Ports of the policies: what shop/frontend may reach at web, and what not.
const (
	controlPort = 5007
	deniedPort  = 22
)

// Rules that drop what a policy of the suite does not allow.
const isolation = "networkpolicy shop/frontend egress isolation"

// narrow lets shop/frontend reach web at port 7 and at ports above 1023, TCP and
// UDP, and nothing else; ci/runner may reach everything that "everything" means.
const narrow = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny-all, namespace: shop}
spec:
  podSelector: {}
  policyTypes: [Ingress, Egress]
---
apiVersion: postern.dev/v1alpha1
kind: EgressPolicy
metadata: {name: frontend, namespace: shop}
spec:
  podSelector: {matchLabels: {app: frontend}}
  egress:
  - name: accept-web
    to: [{networks: [203.0.113.80/32, "2001:db8:80::80/128"]}]
    protocols:
    - tcp: {destinationPort: {number: 7}}
    - udp: {destinationPort: {number: 7}}
    - tcp: {destinationPort: {range: {start: 1024, end: 65535}}}
    - udp: {destinationPort: {range: {start: 1024, end: 65535}}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: from-payments, namespace: shop}
spec:
  podSelector: {matchLabels: {app: frontend}}
  policyTypes: [Ingress]
  ingress: [{from: [{namespaceSelector: {matchLabels: {team: payments}}}]}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: wide, namespace: ci}
spec:
  podSelector: {}
  policyTypes: [Egress]
  egress: [{to: [{ipBlock: {cidr: 0.0.0.0/0}}, {ipBlock: {cidr: "::/0"}}]}]
`
