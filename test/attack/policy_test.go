//go:build linux

package attack

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/postern-dev/postern/internal/lab"
	"github.com/postern-dev/postern/internal/packet/packettest"
)

// TestPolicySemantics is section 4, on packets. What the language means is
// tested at length in internal/policy and test/scenarios.
func TestPolicySemantics(t *testing.T) {
	spec := lab.DefaultSpec("at-policy")
	// A node with a pod's labels.
	spec.Nodes = []lab.NodeSpec{{Name: "node1", Labels: map[string]string{"app": "api", "team": "payments"}}}
	w := newWorld(t, spec)
	w.beside = []string{"no-flow"}
	var attacks []attack
	for _, c := range meanings {
		attacks = append(attacks, attack{id: c.id, from: c.from, off: open, try: c.try})
	}
	w.run(narrow, append(
		attacks,
		attack{id: "POL-18", off: open, try: (*try).mixedRevisions},
		attack{id: "POL-19", off: open, try: (*try).someOfSeveral},
		attack{id: "POL-22", off: open, try: (*try).oddTexts},
	))
}

// meaning is a policy beside "narrow", what it must not open and what it must.
type meaning struct {
	id, name, from string
	policy         string
	denied         []netip.AddrPort
	// reason is what drops them; empty means isolation.
	reason  string
	allowed []netip.AddrPort
}

// caseFile holds the policy of one case at a time.
const caseFile = "case.yaml"

func (c meaning) try(x *try) {
	if x.on {
		x.w.write(caseFile, c.policy)
		if c.from != "" {
			x.recount()
		}
	}
	reason := c.reason
	if reason == "" {
		reason = isolation
	}
	for _, to := range c.denied {
		x.denied(fmt.Sprintf("%s: %s", c.name, to), reason, func(tok packettest.Token) []byte { return x.udp(to.Addr(), to.Port(), tok) })
	}
	for _, to := range c.allowed {
		x.allowed(fmt.Sprintf("%s: %s", c.name, to), func(tok packettest.Token) []byte { return x.udp(to.Addr(), to.Port(), tok) })
	}
	if x.on && c.from != "" {
		x.settle()
		x.w.write(caseFile, egressPolicy(`{to: [{networks: [192.0.2.1/32]}]}`)) // the next case starts without
	}
}

func at(port uint16, addrs ...netip.Addr) []netip.AddrPort {
	out := make([]netip.AddrPort, len(addrs))
	for i, a := range addrs {
		out[i] = netip.AddrPortFrom(a, port)
	}
	return out
}

// egressPolicy is an EgressPolicy for shop/frontend with these rules.
func egressPolicy(rules ...string) string {
	return "apiVersion: postern.dev/v1alpha1\nkind: EgressPolicy\nmetadata: {name: zz-case, namespace: shop}\nspec:\n  podSelector: {matchLabels: {app: frontend}}\n  egress:\n  - " + strings.Join(rules, "\n  - ") + "\n"
}

// networkPolicy is a NetworkPolicy of a namespace with this spec.
func networkPolicy(namespace, spec string) string {
	return "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: zz-case, namespace: " + namespace + "}\nspec:\n  podSelector: {}\n  " + spec + "\n"
}

// adminPolicy is a ClusterNetworkPolicy for all pods with these egress rules.
func adminPolicy(rules ...string) string {
	return "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {name: zz-admin}\nspec:\n  tier: Admin\n  priority: 10\n  subject: {namespaces: {}}\n  egress:\n  - " + strings.Join(rules, "\n  - ") + "\n"
}

var meanings = []meaning{
	{id: "POL-01", name: "no networks", policy: egressPolicy(`{to: [{networks: []}]}`, `{to: [{networks: [], except: [192.0.2.1/32]}]}`), denied: at(443, evil(0), evil(1))},
	{id: "POL-01", name: "nothing selected", policy: egressPolicy(`{to: [{pods: {podSelector: {matchExpressions: [{key: app, operator: In, values: []}]}}}]}`, `{to: [{}]}`, `{to: [{destinationSets: []}]}`, `{to: [{services: []}]}`), denied: at(443, evil(0), evil(1))},
	{id: "POL-01", name: "no egress rules", from: "payments/api", policy: networkPolicy("payments", "policyTypes: [Egress]\n  egress: []"), denied: at(443, evil(0), evil(1), web(0)), reason: "networkpolicy payments/zz-case egress isolation"},
	{id: "POL-01", name: "no rules, by an empty list of the standard's", policy: adminPolicy(`{action: Accept, to: [{networks: []}]}`), denied: at(443, evil(0), evil(1))},
	{
		id: "POL-02", name: "a narrower accept behind a deny", policy: adminPolicy(`{name: deny-doc, action: Deny, to: [{networks: [203.0.113.64/28, "2001:db8:66::/48"]}]}`, `{name: accept-one, action: Accept, to: [{networks: [203.0.113.66/32, "2001:db8:66::66/128"]}]}`) + "---\n" + egressPolicy(`{name: accept-two, to: [{networks: [203.0.113.66/32, "2001:db8:66::66/128"]}]}`),
		denied: at(443, evil(0), evil(1)), reason: `admin zz-admin egress[0] "deny-doc"`, allowed: at(controlPort, web(0), web(1)),
	},
	{
		id: "POL-03", name: "bits beyond the length", policy: adminPolicy(`{name: deny-odd, action: Deny, to: [{networks: [203.0.113.79/28, "2001:db8:66:0:ffff::/64"]}]}`) + "---\n" + egressPolicy(`{name: accept-all, to: [{networks: [203.0.113.77/24, "2001:db8:66:1:2:3:4:5/32"]}]}`),
		denied: at(443, evil(0), evil(1)), reason: `admin zz-admin egress[0] "deny-odd"`, allowed: at(deniedPort, web(0), web(1)),
	},
	{
		id: "POL-04", name: "exceptions of several blocks", policy: networkPolicy("shop", `policyTypes: [Egress]
  egress:
  - to: [{ipBlock: {cidr: 0.0.0.0/0, except: [203.0.113.64/28]}}, {ipBlock: {cidr: "::/0", except: ["2001:db8:66::/64"]}}]
  - to: [{ipBlock: {cidr: 203.0.0.0/8, except: [203.0.113.66/32]}}, {ipBlock: {cidr: "2001:db8::/32", except: ["2001:db8:66::66/128"]}}]`),
		denied: at(443, evil(0), evil(1)), allowed: at(deniedPort, netip.MustParseAddr("198.51.100.53"), netip.MustParseAddr("2001:db8:53::53")),
	},
	{
		id: "POL-08", name: "what is not understood", policy: egressPolicy(
			`{to: [{networks: [203.0.113.66/32, "2001:db8:66::66/128"]}], toPorts: [443]}`,
			`{to: [{networks: [203.0.113.66/32, "2001:db8:66::66/128"], ports: [443]}]}`,
			`{to: [{networks: [203.0.113.66/32, "2001:db8:66::66/128"]}], protocols: [{sctp: {destinationPort: {number: 443}}}]}`,
			`{to: [{networks: [203.0.113.66/32, "2001:db8:66::66/128"]}], protocols: [{tcp: {destinationPort: {number: 443}}}]}`,
			`{to: [{networks: [203.0.113.66/32, "2001:db8:66::66/128"]}], protocols: [{destinationNamedPort: nowhere}]}`,
			`{to: [{networks: [203.0.113.66/32, "2001:db8:66::66/128"]}], expiresAt: 2020-01-01T00:00:00Z}`,
			`{to: [{domainNames: [evil.example.net]}]}`,
		) + "---\n" + networkPolicy("shop", `policyTypes: [Egress]
  egress:
  - {to: [{ipBlock: {cidr: 0.0.0.0/0}}], ports: [{endPort: 500}]}
  - {to: [{ipBlock: {cidr: 0.0.0.0/0}}], ports: [{protocol: UDP, port: 500, endPort: 400}]}
  - {to: [{ipBlock: {cidr: "::/0"}}], ports: [{protocol: ICMP}]}
  - {to: [{ipBlock: {cidr: "::/0"}, podSelector: {}}]}`),
		denied: at(443, evil(0), evil(1)),
	},
	{
		id: "POL-08", name: "a policy type that does not exist isolates both ways", from: "payments/api", policy: networkPolicy("payments", "policyTypes: [Egres]\n  egress: [{}]"),
		denied: at(443, evil(0), evil(1)), reason: "networkpolicy payments/zz-case egress isolation|(invalid) payments/zz-case egress \"not understood\"",
	},
	{
		id: "POL-09", name: "a named port that the peer has not", policy: egressPolicy(`{name: accept-named, to: [{pods: {namespaceSelector: {}, podSelector: {}}}], protocols: [{destinationNamedPort: nowhere}]}`),
		denied: at(7, netip.MustParseAddr("10.244.1.4"), netip.MustParseAddr("fd00:10:244:1::4")),
	},
	{
		id: "POL-11", name: "nodes with a pod's labels", policy: adminPolicy(`{name: accept-nodes, action: Accept, to: [{nodes: {matchLabels: {app: api}}}]}`),
		denied: at(7, netip.MustParseAddr("10.244.1.4"), netip.MustParseAddr("fd00:10:244:1::4")), allowed: at(7, netip.MustParseAddr("172.31.0.11"), netip.MustParseAddr("fd00:172:31::b")),
	},
	{
		id: "POL-11", name: "pods with a node's labels", policy: adminPolicy(`{name: accept-pods, action: Accept, to: [{pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: api}}}}]}`),
		denied: at(7, netip.MustParseAddr("172.31.0.11"), netip.MustParseAddr("fd00:172:31::b")), allowed: at(7, netip.MustParseAddr("10.244.1.4"), netip.MustParseAddr("fd00:10:244:1::4")),
	},
	{id: "POL-13", name: "all of IPv4", policy: egressPolicy(`{name: accept-v4, to: [{networks: [0.0.0.0/0]}]}`), denied: at(443, evil(1)), allowed: at(443, evil(0))},
	{id: "POL-13", name: "all of IPv6", policy: egressPolicy(`{name: accept-v6, to: [{networks: ["::/0"]}]}`), denied: at(443, evil(0)), allowed: at(443, evil(1))},
	{
		id: "POL-14", name: "egress rules, no policyTypes", from: "payments/api", policy: networkPolicy("payments", `egress: [{to: [{ipBlock: {cidr: 203.0.113.80/32}}]}]`),
		denied: at(443, evil(0), evil(1), web(1)), reason: "networkpolicy payments/zz-case egress isolation", allowed: at(controlPort, web(0)),
	},
	{
		id: "POL-14", name: "policyTypes Egress, no rules", from: "payments/api", policy: networkPolicy("payments", `policyTypes: [Egress]`),
		denied: at(443, evil(0), evil(1)), reason: "networkpolicy payments/zz-case egress isolation",
	},
	{
		id: "POL-14", name: "policyTypes Ingress leaves egress alone, egress rules or not", from: "payments/api",
		policy: networkPolicy("payments", "policyTypes: [Ingress]\n  egress: [{to: [{ipBlock: {cidr: 203.0.113.80/32}}]}]") + "---\n" + adminPolicy(`{name: deny-evil6, action: Deny, to: [{networks: ["2001:db8:66::66/128"]}]}`),
		denied: at(443, evil(1)), reason: `admin zz-admin egress[0] "deny-evil6"`, allowed: at(443, evil(0)),
	},
	{
		id: "POL-21", name: "metadata in 0.0.0.0/0 and ::/0 of every kind of policy", policy: egressPolicy(`{name: accept-all, to: [{networks: [0.0.0.0/0, "::/0"]}]}`) + "---\n" + networkPolicy("shop", `policyTypes: [Egress]
  egress: [{to: [{ipBlock: {cidr: 0.0.0.0/0}}, {ipBlock: {cidr: "::/0"}}, {ipBlock: {cidr: 169.254.0.0/16}}]}]`) + "---\n" + adminPolicy(`{name: accept-any, action: Accept, to: [{networks: [0.0.0.0/0, "::/0"]}]}`),
		denied: at(80, metadata(0), metadata(1), netip.MustParseAddr("169.254.170.2"), netip.MustParseAddr("100.100.100.200"), netip.MustParseAddr("fd00:ec2::23")), allowed: at(443, evil(0), evil(1)),
	},
	{
		id: "POL-21", name: "metadata by name of its address", policy: egressPolicy(`{name: accept-metadata, to: [{networks: [169.254.169.254/32]}]}`),
		denied: at(80, metadata(1), netip.MustParseAddr("169.254.170.2")), allowed: at(80, metadata(0)),
	},
}

// mixedRevisions changes between two policies that share nothing, and asks for
// what a mixture of the two would allow.
func (x *try) mixedRevisions() {
	revision := func(net string, port int) string {
		return egressPolicy(fmt.Sprintf(`{name: accept-one, to: [{networks: [%s]}], protocols: [{udp: {destinationPort: {number: %d}}}]}`, net, port))
	}
	a, b := revision(`203.0.113.66/32, "2001:db8:66::66/128"`, 101), revision(`198.51.100.53/32, "2001:db8:53::53/128"`, 102)
	if x.on {
		x.w.write(caseFile, a)
	}
	var conns []conn
	var toks []packettest.Token
	for _, to := range []netip.AddrPort{
		netip.AddrPortFrom(evil(0), 102), netip.AddrPortFrom(evil(1), 102), netip.AddrPortFrom(lab.ResolverV4, 101), netip.AddrPortFrom(lab.ResolverV6, 101),
	} {
		toks = append(toks, x.attackToken("a mixture: "+to.String(), 0))
		conns = append(conns, conn{"udp", x.dial("udp", to)})
	}
	done := make(chan struct{})
	stopped := make(chan struct{})
	sent := 0
	go func() {
		defer close(stopped)
		for {
			select {
			case <-done:
				return
			default:
			}
			for i, c := range conns {
				_, _ = c.Write(toks[i][:])
			}
			sent++
			time.Sleep(200 * time.Microsecond)
		}
	}()
	if x.on {
		path := filepath.Join(x.w.agent.Manifests, caseFile)
		for i := range 150 {
			tmp := filepath.Join(x.w.agent.Manifests, ".case.tmp")
			if err := os.WriteFile(tmp, []byte(map[bool]string{true: a, false: b}[i%2 == 1]), 0o600); err != nil {
				x.Fatal(err)
			}
			if err := os.Rename(tmp, path); err != nil {
				x.Fatal(err)
			}
			time.Sleep(15 * time.Millisecond)
		}
	} else {
		time.Sleep(20 * time.Millisecond)
	}
	close(done)
	<-stopped
	for i := range x.shots {
		if strings.HasPrefix(x.shots[i].name, "a mixture") {
			x.shots[i].packets = sent
		}
	}
	x.beside = append(x.beside, isolation)
}

// someOfSeveral adds and removes policies at random and compares with a model:
// allowed is what one that is there allows; isolated is isolated.
func (x *try) someOfSeveral() {
	pieces := []struct {
		doc  string
		open [2]bool // evil, by family
	}{
		{networkPolicy("shop", `policyTypes: [Egress]
  egress: [{to: [{ipBlock: {cidr: 203.0.113.66/32}}]}]`), [2]bool{true, false}},
		{egressPolicy(`{name: accept-v6, to: [{networks: ["2001:db8:66::66/128"]}]}`), [2]bool{false, true}},
		{strings.Replace(networkPolicy("shop", `policyTypes: [Ingress]
  ingress: [{}]`), "zz-case", "zz-in", 1), [2]bool{}},
		{strings.Replace(networkPolicy("shop", `policyTypes: [Ingress, Egress]`), "zz-case", "zz-closed", 1), [2]bool{}},
		{strings.Replace(egressPolicy(`{name: accept-nothing, to: [{networks: [192.0.2.1/32]}]}`), "zz-case", "zz-other", 1), [2]bool{}},
	}
	rng := rand.New(rand.NewPCG(19, 19))
	steps := 30
	if !x.on {
		steps = 1
	}
	for step := range steps {
		set := rng.IntN(1 << len(pieces))
		var docs []string
		open := [2]bool{}
		for i, p := range pieces {
			if set>>i&1 == 1 {
				docs = append(docs, p.doc)
				open[0], open[1] = open[0] || p.open[0], open[1] || p.open[1]
			}
		}
		if x.on {
			docs = append(docs, strings.Replace(egressPolicy(fmt.Sprintf(`{to: [{networks: [192.0.2.%d/32]}]}`, step)), "zz-case", "zz-step", 1))
			x.w.write(caseFile, strings.Join(docs, "---\n"))
		}
		for v := range 2 {
			frame := func(tok packettest.Token) []byte { return x.udp(evil(v), 443, tok) }
			if x.on && open[v] {
				x.allowed(fmt.Sprintf("step %d, set %05b %s", step, set, family(v)), frame)
			} else {
				x.denied(fmt.Sprintf("step %d, set %05b %s", step, set, family(v)), isolation, frame)
			}
		}
	}
	x.beside = append(x.beside, isolation, "icmp-error")
}

// oddTexts writes evil's address as other readers would read it.
func (x *try) oddTexts() {
	for i, text := range []string{
		"203.0.113.066/32", "0313.0.0161.0102/32", "0xcb.0.0x71.0x42/32", "3405803842/32", "203.0.29026/32", "203.0.113.66%eth0/32", " 203.0.113.66/32",
		"203.0.113.66/032", "203.0.113.66/+32", "203.0.113.66/255.255.255.255", "203.0.113.66-203.0.113.67", "203.0.113.66/33", "203.0.113.66", "2001:db8:66::66%eth0/128", "2001:db8:66::66/0128",
	} {
		if x.on {
			x.w.write(caseFile, egressPolicy(fmt.Sprintf(`{to: [{networks: [%q]}]}`, text), fmt.Sprintf(`{to: [{networks: [192.0.2.%d/32]}]}`, i)))
		}
		for v := range 2 {
			x.denied(fmt.Sprintf("%q %s", text, family(v)), isolation, func(tok packettest.Token) []byte { return x.udp(evil(v), 443, tok) })
		}
	}
}
