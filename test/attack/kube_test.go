//go:build linux

package attack

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/postern-dev/postern/internal/lab"
	"github.com/postern-dev/postern/internal/packet/packettest"
)

// TestKubernetes is section 3, as far as a node without a cluster has it.
func TestKubernetes(t *testing.T) {
	w := newWorld(t, kubeSpec("at-kube", lab.PTP))
	w.beside = []string{"no-flow"}
	w.run(narrow+kubePolicy, slices.Concat(serviceAttacks(), objectAttacks()))
}

// TestServicesOnBridge is what a bridge changes for Services.
func TestServicesOnBridge(t *testing.T) {
	w := newWorld(t, kubeSpec("at-kubebr", lab.Bridge))
	w.behindBridge = true
	w.beside = []string{"no-flow"}
	w.run(narrow+kubePolicy, serviceAttacks())
}

func kubeSpec(name string, cni lab.CNI) lab.Spec {
	spec := lab.DefaultSpec(name)
	spec.CNI = cni
	spec.Pods = append(spec.Pods, lab.PodSpec{Namespace: "shop", Name: "open", Labels: map[string]string{"app": "open", "tier": "both"}})
	for i := range spec.Pods {
		if spec.Pods[i].Name == "cart" {
			spec.Pods[i].Labels["tier"] = "both"
		}
	}
	udp := func(name string, selector map[string]string) lab.ServiceSpec {
		return lab.ServiceSpec{Namespace: "shop", Name: name, Selector: selector, Ports: []lab.ServicePort{{Name: "echo", Protocol: "UDP", Port: 7}, {Name: "echo-tcp", Port: 7}}}
	}
	spec.Services = append(spec.Services, udp("open", map[string]string{"app": "open"}), udp("mixed", map[string]string{"tier": "both"}))
	return spec
}

// kubePolicy lets shop/frontend reach the addresses of all Services and of the
// node, and of pods shop/open alone.
const kubePolicy = `---
apiVersion: postern.dev/v1alpha1
kind: EgressPolicy
metadata: {name: frontend-places, namespace: shop}
spec:
  podSelector: {matchLabels: {app: frontend}}
  egress:
  - name: accept-places
    to: [{networks: [10.96.0.0/16, "fd00:10:96::/64", 172.31.0.11/32, "fd00:172:31::b/128"]}]
  - name: accept-open
    to: [{pods: {podSelector: {matchLabels: {app: open}}}}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: backends, namespace: shop}
spec:
  podSelector: {matchExpressions: [{key: app, operator: In, values: [cart, open]}]}
  policyTypes: [Ingress]
  ingress: [{}]
`

// placesIsolation is what drops, with two policies that select the pod: the first by name.
const placesIsolation = isolation

func serviceAttacks() []attack {
	return []attack{
		{id: "K8S-14", off: open, try: func(x *try) {
			cart, ok := x.service("shop/cart"), x.service("shop/open")
			for v := range 2 {
				x.denied("cluster IP of a denied backend "+family(v), placesIsolation, func(tok packettest.Token) []byte { return x.udp(cart.ClusterIPs[v], 7, tok) }, everyMode...)
				x.denied("TCP to it "+family(v), placesIsolation, func(tok packettest.Token) []byte {
					return x.tcp(cart.ClusterIPs[v], 7, packettest.SYN, tok)
				})
				x.allowed("cluster IP of an allowed backend "+family(v), func(tok packettest.Token) []byte { return x.udp(ok.ClusterIPs[v], 7, tok) }, everyMode...)
				x.denied("the backend itself "+family(v), placesIsolation, func(tok packettest.Token) []byte { return x.udp(x.w.pod("shop/cart").IPs[v], 7, tok) })
			}
			x.mixed()
		}},
		{id: "K8S-16", off: open, try: (*try).capturedAddress},
		{id: "K8S-18", off: open, try: func(x *try) {
			n := x.w.node
			cart := x.w.pod("shop/cart")
			for v := range 2 {
				// The node's address is allowed, the pod behind its port is not.
				x.denied("node port of a denied backend "+family(v), placesIsolation, func(tok packettest.Token) []byte { return x.udp(n.IPs[v], 30007, tok) }, everyMode...)
				x.denied("node port by TCP "+family(v), placesIsolation, func(tok packettest.Token) []byte {
					return x.tcp(n.IPs[v], 30080, packettest.SYN, tok)
				})
				x.allowed("another port of the node "+family(v), func(tok packettest.Token) []byte { return x.udp(n.IPs[v], 7, tok) })
			}
			// A host port, by rules that the agent is not told of.
			undo := x.dnat(netip.AddrPortFrom(n.IPs[0], 8007), netip.AddrPortFrom(cart.IPs[0], 7))
			x.denied("host port of a denied pod", placesIsolation, func(tok packettest.Token) []byte { return x.udp(n.IPs[0], 8007, tok) }, everyMode...)
			x.settle()
			undo()
			undo = x.dnat(netip.AddrPortFrom(n.IPs[0], 8008), netip.AddrPortFrom(evil(0), 443))
			x.denied("a node's port that leads outside", placesIsolation, func(tok packettest.Token) []byte { return x.udp(n.IPs[0], 8008, tok) })
			x.settle()
			undo()
		}},
		{id: "K8S-22", off: open, try: func(x *try) {
			// A node-local resolver's address is the node's as any other.
			local := []netip.Addr{netip.MustParseAddr("169.254.20.10"), netip.MustParseAddr("fd00:20::10")}
			h, err := x.w.node.Netlink()
			if err != nil {
				x.Fatal(err)
			}
			defer h.Close()
			lo, err := h.LinkByName("lo")
			if err != nil {
				x.Fatal(err)
			}
			for v, a := range local {
				addr, err := netlink.ParseAddr(netip.PrefixFrom(a, a.BitLen()).String())
				if err != nil {
					x.Fatal(err)
				}
				if err := h.AddrAdd(lo, addr); err != nil {
					x.Fatal(err)
				}
				defer func() {
					if err := h.AddrDel(lo, addr); err != nil {
						x.Error(err)
					}
				}()
				for _, port := range []uint16{53, 7, 9253} {
					x.denied(fmt.Sprintf("udp/%d %s", port, family(v)), placesIsolation, func(tok packettest.Token) []byte { return x.udp(a, port, tok) })
					x.denied(fmt.Sprintf("tcp/%d %s", port, family(v)), placesIsolation, func(tok packettest.Token) []byte { return x.tcp(a, port, packettest.SYN, tok) })
				}
			}
			x.settle()
		}},
	}
}

// settle waits until what was sent is where it goes, before a place is taken away.
func (x *try) settle() { time.Sleep(20 * time.Millisecond) }

func (x *try) service(key string) lab.ServiceSpec {
	x.Helper()
	s, err := x.w.lab.Service(key)
	if err != nil {
		x.Fatal(err)
	}
	return s
}

// mixed sends to a Service of which one backend is allowed: none may reach the other.
func (x *try) mixed() {
	s := x.service("shop/mixed")
	var toCart *lab.Sniffer
	for _, sn := range x.w.tap.Sniffers() {
		if sn.Label() == "shop/cart:eth0" {
			toCart = sn
		}
	}
	const n = 12
	reachedOpen, reachedCart := 0, 0
	for v := range 2 {
		var toks []packettest.Token
		for range n {
			tok := packettest.NewToken("mixed")
			toks = append(toks, tok)
			x.send(lab.Raw, x.udp(s.ClusterIPs[v], 7, tok))
		}
		time.Sleep(50 * time.Millisecond)
		if err := x.w.tap.Verify(x.Context()); err != nil {
			x.Fatal(err)
		}
		for _, tok := range toks {
			switch {
			case toCart.Count(tok) > 0:
				reachedCart++
			case len(x.w.seen(tok)) > 0:
				reachedOpen++
			}
		}
	}
	x.tried += n // half of what was sent is for the other one
	x.leaked += reachedCart
	if x.on {
		x.expect(placesIsolation, n)
		if reachedCart > 0 {
			x.Errorf("%d packets for the Service reached its denied backend", reachedCart)
		}
	}
	if reachedOpen != n {
		x.Errorf("%d of %d packets for the Service reached its allowed backend, want half", reachedOpen, 2*n)
	}
}

// captor is a Service with these external addresses and this backend.
func captor(external [2]netip.Addr, backend *lab.Pod) string {
	var m strings.Builder
	fmt.Fprintf(&m, `
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: captor}
spec:
  clusterIPs: [10.96.7.7, "fd00:10:96::7:7"]
  clusterIP: 10.96.7.7
  externalIPs: [%s, %q]
  ports: [{name: echo, protocol: UDP, port: 7, targetPort: 7}, {name: web, protocol: UDP, port: 5008, targetPort: 7}]
`, external[0], external[1].String())
	for v, fam := range []string{"IPv4", "IPv6"} {
		fmt.Fprintf(&m, `---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {namespace: shop, name: captor-%d, labels: {kubernetes.io/service-name: captor}}
addressType: %s
ports: [{name: echo, protocol: UDP, port: 7}, {name: web, protocol: UDP, port: 7}]
endpoints: [{addresses: [%q], conditions: {ready: true, serving: true, terminating: false}}]
`, v, fam, backend.IPs[v].String())
	}
	return m.String()
}

// capturedAddress has a Service take over an address outside, which its author
// may not reach, or which the pod may reach while the backend may not be.
func (x *try) capturedAddress() {
	w := x.w
	open, cart := w.pod("shop/open"), w.pod("shop/cart")
	// The agent knows the Service, the node does not translate it (yet, or ever).
	if x.on {
		w.write("captor.yaml", captor([2]netip.Addr{evil(0), evil(1)}, open))
	}
	for v := range 2 {
		for _, port := range []uint16{7, 5008} {
			x.denied(fmt.Sprintf("a Service's external address that nobody translates, port %d %s", port, family(v)), placesIsolation, func(tok packettest.Token) []byte {
				return x.udp(evil(v), port, tok)
			}, everyMode...)
		}
	}
	x.settle()
	// The node translates an allowed address to a denied pod; the agent knows, or does not.
	for _, known := range []bool{false, true} {
		if x.on {
			if known {
				w.write("captor.yaml", captor([2]netip.Addr{web(0), web(1)}, cart))
			} else {
				w.remove("captor.yaml")
				time.Sleep(300 * time.Millisecond)
			}
		}
		_, err := w.lab.SetService(lab.ServiceSpec{
			Namespace: "shop", Name: "captor", Backends: cart.IPs, ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.7.7"), netip.MustParseAddr("fd00:10:96::7:7")},
			ExternalIPs: []netip.Addr{web(0), web(1)}, Ports: []lab.ServicePort{{Name: "web", Protocol: "UDP", Port: 5008, TargetPort: 7}},
		})
		if err != nil {
			x.Fatal(err)
		}
		for v := range 2 {
			x.denied(fmt.Sprintf("an allowed address that a Service captured, agent knows %v %s", known, family(v)), placesIsolation, func(tok packettest.Token) []byte {
				return x.udp(web(v), 5008, tok)
			}, everyMode...)
		}
		x.settle()
		if err := w.lab.DeleteService("shop/captor"); err != nil {
			x.Fatal(err)
		}
	}
	if x.on {
		w.remove("captor.yaml")
		time.Sleep(300 * time.Millisecond)
	}
}

// dnat adds a rule to the node as a host port's, and returns what removes it.
func (x *try) dnat(from, to netip.AddrPort) func() {
	x.Helper()
	c, err := x.w.node.Nftables()
	if err != nil {
		x.Fatal(err)
	}
	t := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "hostports"})
	chain := c.AddChain(&nftables.Chain{Table: t, Name: "pre", Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest})
	c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 4},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: from.Addr().AsSlice()},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(from.Port())},
		&expr.Immediate{Register: 1, Data: to.Addr().AsSlice()},
		&expr.Immediate{Register: 2, Data: binaryutil.BigEndian.PutUint16(to.Port())},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1, RegProtoMin: 2},
	}})
	if err := c.Flush(); err != nil {
		x.Fatal(err)
	}
	return func() {
		c.DelTable(t)
		if err := c.Flush(); err != nil {
			x.Error(err)
		}
		_ = c.CloseLasting()
	}
}

func objectAttacks() []attack {
	return []attack{
		{id: "K8S-03", off: open, try: func(x *try) {
			// The Pod object has no addresses yet; its interface is there.
			if x.on {
				defer x.replacePod(podObject("shop", "frontend", x.pod.UID, "Pending", "{app: frontend}", nil, x.pod))()
				x.w.state("shop/frontend", "enforced")
			}
			for v := range 2 {
				x.denied("before the address is known "+family(v), "source-address", func(tok packettest.Token) []byte { return x.udp(evil(v), 443, tok) }, everyMode...)
				x.denied("to an allowed address "+family(v), "source-address", func(tok packettest.Token) []byte { return x.udp(web(v), controlPort, tok) })
			}
			x.settle()
		}},
		{id: "K8S-04", off: open, try: (*try).relabel},
		{id: "K8S-07", off: open, try: (*try).replacePolicy},
		{id: "K8S-08", off: open, try: (*try).terminating},
		{id: "K8S-23", off: open, try: (*try).killed},
		{id: "K8S-24", off: open, try: (*try).badStart},
		{id: "K8S-27", off: open, try: (*try).lateInstall},
		{id: "K8S-28", off: open, try: (*try).sourceAway},
		{id: "K8S-29", off: open, try: (*try).tooManyRules},
		{id: "K8S-31", off: open, try: (*try).sameName},
		{id: "K8S-32", off: open, try: (*try).brokenState},
		{id: "K8S-07b", off: open, try: (*try).flappingPolicy},
		{id: "OPS-14", off: open, try: (*try).churn},
		{id: "PKT-37b", from: "ci/runner", off: open, try: func(x *try) {
			b := netip.MustParseAddr("64:ff9b::").As16()
			m := metadata(0).As4()
			copy(b[12:], m[:])
			x.denied("64:ff9b::169.254.169.254", "isolation|protected", func(tok packettest.Token) []byte { return x.udp(netip.AddrFrom16(b), 80, tok) })
		}},
		{id: "PKT-46", off: open, limit: true, try: (*try).secondInterface},
		{id: "PKT-48", off: open, limit: true, try: (*try).otherDevice},
		{id: "K8S-06", off: open, try: (*try).namespaceGone},
	}
}

// replacePod puts another object in place of the attacker's; the result puts it back.
func (x *try) replacePod(content string) func() {
	x.Helper()
	name := fmt.Sprintf("lab/lab-pod_%s_%s.yaml", x.pod.Spec.Namespace, x.pod.Spec.Name)
	old, err := os.ReadFile(filepath.Join(x.w.agent.Manifests, name))
	if err != nil {
		x.Fatal(err)
	}
	x.put(name, content)
	return func() {
		x.put(name, string(old))
		x.w.state(x.pod.Spec.Key(), "enforced")
	}
}

// put writes a file below the manifests and waits for a newer revision.
func (x *try) put(name, content string) {
	x.Helper()
	before := x.revision()
	path := filepath.Join(x.w.agent.Manifests, name)
	tmp := filepath.Join(x.w.agent.Manifests, ".put.tmp")
	if err := os.WriteFile(tmp, []byte(content), 0o600); err != nil {
		x.Fatal(err)
	}
	if err := os.Rename(tmp, path); err != nil {
		x.Fatal(err)
	}
	for range 1000 {
		if x.revision() > before {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	x.Fatalf("%s: no new revision", name)
}

func (x *try) revision() uint32 {
	x.Helper()
	s, err := x.w.agent.Client.Status(x.Context())
	if err != nil {
		x.Fatal(err)
	}
	return s.Revision
}

// relabel changes the pod's labels and the policy that they choose, in every
// order. Evil is allowed while the label and the policy are both there.
func (x *try) relabel() {
	const trusted = `
apiVersion: postern.dev/v1alpha1
kind: EgressPolicy
metadata: {name: trusted, namespace: shop}
spec:
  podSelector: {matchLabels: {role: trusted}}
  egress: [{name: accept-evil, to: [{networks: [203.0.113.66/32, "2001:db8:66::66/128"]}]}]
`
	const other = `
apiVersion: postern.dev/v1alpha1
kind: EgressPolicy
metadata: {name: trusted, namespace: shop}
spec:
  podSelector: {matchLabels: {role: trusted}}
  egress: [{name: accept-other, to: [{networks: [192.0.2.1/32]}]}]
`
	pod := func(label string) string {
		return podObject("shop", "frontend", x.pod.UID, "Running", "{app: frontend, role: "+label+"}", x.pod.IPs, x.pod)
	}
	if !x.on {
		for v := range 2 {
			x.denied("no policy "+family(v), "", func(tok packettest.Token) []byte { return x.udp(evil(v), 443, tok) })
		}
		return
	}
	restore := x.replacePod(pod("none"))
	x.put("trusted.yaml", trusted)
	label, policy := false, true
	for i, step := range []string{"label", "label", "policy", "label", "policy", "label", "policy", "label", "policy", "policy", "label", "policy", "label", "label", "policy", "policy"} {
		switch step {
		case "label":
			label = !label
			x.put("lab/lab-pod_shop_frontend.yaml", pod(map[bool]string{true: "trusted", false: "none"}[label]))
		case "policy":
			policy = !policy
			x.put("trusted.yaml", map[bool]string{true: trusted, false: other}[policy])
		}
		for v := range 2 {
			frame := func(tok packettest.Token) []byte { return x.udp(evil(v), 443, tok) }
			if label && policy {
				x.allowed(fmt.Sprintf("step %d: label and policy %s", i, family(v)), frame)
			} else {
				x.denied(fmt.Sprintf("step %d: label %v, policy %v %s", i, label, policy, family(v)), isolation, frame)
			}
		}
		if label && policy {
			x.settle() // the answer, and the pod's complaint about it, belong to this step
		}
	}
	x.beside = append(x.beside, isolation, "icmp-error")
	// Both at once, in one file: never both there, so never allowed, at no moment.
	a := pod("trusted") + "---" + other
	b := pod("none") + "---" + trusted
	if err := os.Remove(filepath.Join(x.w.agent.Manifests, "trusted.yaml")); err != nil {
		x.Fatal(err)
	}
	x.put("lab/lab-pod_shop_frontend.yaml", a)
	time.Sleep(400 * time.Millisecond)
	s := x.storm(evil(0), evil(1))
	for i := range 100 {
		x.put("lab/lab-pod_shop_frontend.yaml", map[bool]string{true: a, false: b}[i%2 == 1])
	}
	s.stop(true)
	restore()
}

// replacePolicy replaces the policies as kubectl does, 1,000 times, under load.
func (x *try) replacePolicy() {
	s := x.storm(evil(0), evil(1))
	if x.on {
		path := filepath.Join(x.w.agent.Manifests, "policy.yaml")
		tmp := filepath.Join(x.w.agent.Manifests, ".policy.tmp")
		var gone time.Time
		for i := range 1000 {
			content := narrow + kubePolicy + fmt.Sprintf(`---
apiVersion: postern.dev/v1alpha1
kind: EgressPolicy
metadata: {name: more, namespace: shop}
spec: {podSelector: {}, egress: [{name: accept-more, to: [{networks: [192.0.2.%d/32]}]}]}
`, i%250)
			if i%10 == 9 { // delete, then create
				if err := os.Remove(path); err != nil {
					x.Fatal(err)
				}
				gone = time.Now()
				time.Sleep(time.Duration(i%100) * time.Millisecond)
			}
			if err := os.WriteFile(tmp, []byte(content), 0o600); err != nil {
				x.Fatal(err)
			}
			if err := os.Rename(tmp, path); err != nil {
				x.Fatal(err)
			}
			if away := time.Since(gone); i%10 == 9 && away > 150*time.Millisecond {
				x.Logf("replacement %d: a busy machine left the policies away for %s", i, away)
			}
			time.Sleep(2 * time.Millisecond)
		}
		x.beside = append(x.beside, isolation)
	} else {
		time.Sleep(50 * time.Millisecond)
	}
	s.stop(false)
	if x.on {
		x.w.write("policy.yaml", narrow+kubePolicy)
	}
}

// flappingPolicy deletes and creates the policies faster than the directory is read.
func (x *try) flappingPolicy() {
	s := x.storm(evil(0), evil(1))
	if x.on {
		path := filepath.Join(x.w.agent.Manifests, "policy.yaml")
		tmp := filepath.Join(x.w.agent.Manifests, ".policy.tmp")
		for i := range 500 {
			if err := os.Remove(path); err != nil {
				x.Fatal(err)
			}
			time.Sleep(time.Duration(i%40) * time.Millisecond / 4)
			if err := os.WriteFile(tmp, fmt.Appendf(nil, "%s# %d\n", narrow+kubePolicy, i), 0o600); err != nil {
				x.Fatal(err)
			}
			if err := os.Rename(tmp, path); err != nil {
				x.Fatal(err)
			}
			time.Sleep(2 * time.Millisecond)
		}
	} else {
		time.Sleep(50 * time.Millisecond)
	}
	s.stop(false)
	if x.on {
		x.w.write("policy.yaml", narrow+kubePolicy)
	}
}

// terminating removes a Pod object whose interface goes on sending.
func (x *try) terminating() {
	w := x.w
	old, err := w.lab.AddPod(x.Context(), lab.PodSpec{Namespace: "shop", Name: "dying", Labels: map[string]string{"app": "dying"}, Servers: []lab.Server{}}, lab.AddPodOptions{})
	if err != nil {
		x.Fatal(err)
	}
	w.manifests()
	w.state("shop/dying", "enforced")
	defer func() {
		w.closeSenders()
		if err := w.lab.DeletePod("shop/dying"); err != nil {
			x.Error(err)
		}
		w.manifests()
	}()
	frame := func(tok packettest.Token, to netip.Addr, port uint16) []byte {
		return packettest.Build(old.Eth(), ipHeader(old.IP(to), to), packettest.UDP{SrcPort: x.port(), DstPort: port}, tok)
	}
	if x.on {
		if err := os.Remove(filepath.Join(w.agent.Manifests, "lab", "lab-pod_shop_dying.yaml")); err != nil {
			x.Fatal(err)
		}
	}
	// While the object goes, and for good afterwards.
	deadline := time.Now().Add(600 * time.Millisecond)
	for i := 0; time.Now().Before(deadline) && (x.on || i < 4); i++ {
		v := i % 2
		x.sendFrom(old, lab.Raw, frame(x.attackToken(fmt.Sprintf("packet %d after the object went", i), 1), evil(v), 443))
		time.Sleep(5 * time.Millisecond)
	}
	if !x.on {
		return
	}
	s, err := w.agent.Client.Status(x.Context())
	if err != nil {
		x.Fatal(err)
	}
	if s.Endpoints["quarantined"] != 1 {
		x.Errorf("status says %v, want one quarantined", s.Endpoints)
	}
	// An agent that starts now finds an interface of nobody.
	if err := w.agent.Kill(); err != nil {
		x.Fatal(err)
	}
	x.restart()
	for v := range 2 {
		for _, to := range []netip.Addr{evil(v), web(v)} {
			x.sendFrom(old, lab.Raw, frame(x.attackToken("after a restart "+family(v), 1), to, controlPort))
		}
	}
	if !slices.ContainsFunc(s.Problems, func(p problem) bool { return strings.Contains(p.Message, "shop/dying") }) {
		x.Errorf("no problem names the interface: %v", s.Problems)
	}
	x.settle()
	x.recount()
}

// restart starts a killed agent and waits until it enforces.
func (x *try) restart() {
	x.Helper()
	if err := x.w.agent.Start(); err != nil {
		x.Fatal(err)
	}
	x.w.ready()
}

// killed kills the agent again and again under load; test/faults does so 200 times.
func (x *try) killed() {
	s := x.storm(evil(0), evil(1))
	if x.on {
		for i := range 20 {
			if err := x.w.agent.Kill(); err != nil {
				x.Fatal(err)
			}
			time.Sleep(time.Duration(i) * 3 * time.Millisecond)
			if err := x.w.agent.Start(); err != nil {
				x.Fatal(err)
			}
			time.Sleep(time.Duration(i*7) * time.Millisecond)
		}
		x.w.ready()
		x.beside = append(x.beside, isolation)
	} else {
		time.Sleep(50 * time.Millisecond)
	}
	s.stop(false)
	x.mixed() // what looks after DNAT was adopted too
}

// badStart starts the agent while its policies can't be read.
func (x *try) badStart() {
	s := x.storm(evil(0), evil(1))
	if x.on {
		path := filepath.Join(x.w.agent.Manifests, "policy.yaml")
		for _, bad := range []string{narrow[:len(narrow)/2], "{{{", "\x00\xff", "kind: NetworkPolicy\n"} {
			if err := x.w.agent.Kill(); err != nil {
				x.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(bad), 0o600); err != nil {
				x.Fatal(err)
			}
			if err := x.w.agent.Start(); err != nil {
				x.Fatal(err)
			}
			time.Sleep(300 * time.Millisecond)
			if err := x.w.agent.Kill(); err != nil {
				x.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(narrow+kubePolicy), 0o600); err != nil {
				x.Fatal(err)
			}
			x.restart()
		}
		x.beside = append(x.beside, isolation, "source-address")
	} else {
		time.Sleep(50 * time.Millisecond)
	}
	s.stop(true) // what to allow was not known
	if x.on {
		x.w.write("policy.yaml", narrow+kubePolicy+"# again\n")
		x.recountBeside()
	}
}

// recountBeside forgets all drops so far.
func (x *try) recountBeside() { x.settle(); x.recount() }

// lateInstall opens connections while nothing is installed, then installs.
func (x *try) lateInstall() {
	w := x.w
	if x.on {
		if err := w.agent.Kill(); err != nil {
			x.Fatal(err)
		}
		if err := w.agent.Uninstall(); err != nil {
			x.Fatal(err)
		}
	}
	var denied, kept []conn
	for v := range 2 {
		for _, network := range []string{"tcp", "udp"} {
			denied = append(denied, conn{network, x.dial(network, echoAt(evil(v)))})
			kept = append(kept, conn{network, x.dial(network, echoAt(web(v)))})
		}
	}
	for _, c := range append(slices.Clone(denied), kept...) {
		if !alive(c.Conn) {
			x.Fatalf("%s %s does not answer while nothing is installed", c.network, c.RemoteAddr())
		}
	}
	if x.on {
		x.restart()
		x.recount()
	}
	for _, c := range denied {
		x.says(c.Conn, x.attackToken(c.network+" connection to "+c.RemoteAddr().String()+" from before", 1))
	}
	for _, c := range kept {
		if !alive(c.Conn) {
			x.Errorf("%s connection to %s, which is allowed, was cut by the installation", c.network, c.RemoteAddr())
		}
	}
	if x.on {
		x.expectSome(isolation)
	}
}

// sourceAway takes the manifests away: as a whole, then file by file.
func (x *try) sourceAway() {
	dir := x.w.agent.Manifests
	s := x.storm(evil(0), evil(1))
	if x.on {
		if err := os.Rename(dir, dir+".away"); err != nil {
			x.Fatal(err)
		}
		time.Sleep(1200 * time.Millisecond) // longer than a rescan without notifications
		if err := os.Rename(dir+".away", dir); err != nil {
			x.Fatal(err)
		}
	}
	time.Sleep(100 * time.Millisecond)
	s.stop(false)
	s = x.storm(evil(0), evil(1))
	if x.on {
		files, err := filepath.Glob(filepath.Join(dir, "lab", "*.yaml"))
		if err != nil {
			x.Fatal(err)
		}
		files = append(files, filepath.Join(dir, "policy.yaml"))
		for _, f := range files {
			if err := os.Rename(f, f+".away"); err != nil {
				x.Fatal(err)
			}
		}
		time.Sleep(600 * time.Millisecond)
		for _, f := range files {
			if err := os.Rename(f+".away", f); err != nil {
				x.Fatal(err)
			}
		}
		time.Sleep(100 * time.Millisecond)
		x.w.ready()
		x.w.state("shop/frontend", "enforced")
		x.recountBeside()
	} else {
		time.Sleep(50 * time.Millisecond)
	}
	x.beside = append(x.beside, isolation)
	s.stop(true) // pods that nobody knows are cut off
	if x.on {
		x.recountBeside()
	}
}

// tooManyRules gives the pod more rules than a ruleset holds.
func (x *try) tooManyRules() {
	if x.on {
		var b strings.Builder
		for p := range 12 {
			fmt.Fprintf(&b, "---\napiVersion: postern.dev/v1alpha1\nkind: EgressPolicy\nmetadata: {name: many-%d, namespace: shop}\nspec:\n  podSelector: {matchLabels: {app: frontend}}\n  egress:\n", p)
			for r := range 6000 {
				fmt.Fprintf(&b, "  - {to: [{networks: [198.18.%d.%d/32]}]}\n", r/250, r%250)
			}
		}
		x.w.write("many.yaml", b.String())
	}
	for v := range 2 {
		x.denied("what was denied "+family(v), "", func(tok packettest.Token) []byte { return x.udp(evil(v), 443, tok) })
	}
	if x.on {
		x.settle()
		got := delta(x.before, x.drops())
		s, err := x.w.agent.Client.Status(x.Context())
		if err != nil {
			x.Fatal(err)
		}
		if got["egress capacity"] != 2 {
			x.Errorf("drops %v", got)
		}
		if !slices.ContainsFunc(s.Problems, func(p problem) bool { return strings.Contains(p.Message, "60000 fit") }) {
			x.Errorf("no problem says so: %v", s.Problems)
		}
		x.w.remove("many.yaml")
		x.recountBeside()
	}
}

// sameName deletes a pod and starts another of the same name with other labels.
func (x *try) sameName() {
	w := x.w
	for round, labels := range []map[string]string{{"app": "frontend"}, {"app": "job"}} {
		p, err := w.lab.AddPod(x.Context(), lab.PodSpec{Namespace: "shop", Name: "job", Labels: labels, Servers: []lab.Server{}}, lab.AddPodOptions{})
		if err != nil {
			x.Fatal(err)
		}
		w.manifests()
		w.state("shop/job", "enforced")
		before := w.drops(x.T, p)
		for v := range 2 {
			to := web(v)
			var tok packettest.Token
			if round == 0 {
				tok = x.controlToken("allowed by the first one's labels " + family(v))
			} else {
				tok = x.attackToken("denied by the second one's labels "+family(v), 1)
			}
			x.sendFrom(p, lab.Raw, packettest.Build(p.Eth(), ipHeader(p.IP(to), to), packettest.UDP{SrcPort: 4000, DstPort: controlPort}, tok))
		}
		time.Sleep(20 * time.Millisecond)
		if x.on && round == 1 {
			if got := delta(before, w.drops(x.T, p)); got["networkpolicy shop/deny-all egress isolation"] != 2 {
				x.Errorf("drops of the second one: %v", got)
			}
		}
		w.closeSenders()
		if err := w.lab.DeletePod("shop/job"); err != nil {
			x.Fatal(err)
		}
		w.manifests()
		// Else the next one's "enforced" would be this one's.
		w.forgotten("shop/job")
	}
}

// brokenState takes the pod's entry out of the kernel, behind the agent's back.
func (x *try) brokenState() {
	if !x.on {
		for v := range 2 {
			x.denied("no policy "+family(v), "", func(tok packettest.Token) []byte { return x.udp(evil(v), 443, tok) })
		}
		return
	}
	bpffs, err := x.w.lab.BPFFS(x.w.node.Name)
	if err != nil {
		x.Fatal(err)
	}
	m, err := ebpf.LoadPinnedMap(filepath.Join(bpffs, "postern", "endpoint_slots"), nil)
	if err != nil {
		x.Fatal(err)
	}
	defer func() { _ = m.Close() }()
	var slot uint32
	if err := m.Lookup(uint32(x.pod.HostIfindex), &slot); err != nil {
		x.Fatal(err)
	}
	if err := m.Delete(uint32(x.pod.HostIfindex)); err != nil {
		x.Fatal(err)
	}
	for v := range 2 {
		for _, to := range []netip.Addr{evil(v), web(v)} {
			x.denied("without an entry "+family(v), "", func(tok packettest.Token) []byte { return x.udp(to, controlPort, tok) }, everyMode...)
		}
	}
	x.w.state("shop/frontend", "failed")
	if err := m.Put(uint32(x.pod.HostIfindex), slot); err != nil {
		x.Fatal(err)
	}
	x.w.state("shop/frontend", "enforced")
	x.allowed("with its entry", func(tok packettest.Token) []byte { return x.udp(web(0), controlPort, tok) })
}

// churn starts and stops pods, each with denied packets, and looks at what is left.
func (x *try) churn() {
	w := x.w
	left := func() (pins, slots int) {
		if !x.on {
			return 0, 0
		}
		bpffs, err := w.lab.BPFFS(w.node.Name)
		if err != nil {
			x.Fatal(err)
		}
		files, err := filepath.Glob(filepath.Join(bpffs, "postern", "links", "*"))
		if err != nil {
			x.Fatal(err)
		}
		m, err := ebpf.LoadPinnedMap(filepath.Join(bpffs, "postern", "endpoint_slots"), nil)
		if err != nil {
			x.Fatal(err)
		}
		defer func() { _ = m.Close() }()
		var k, v uint32
		for it := m.Iterate(); it.Next(&k, &v); {
			slots++
		}
		return len(files), slots
	}
	pins, slots := left()
	for i := range 15 {
		p, err := w.lab.AddPod(x.Context(), lab.PodSpec{Namespace: "shop", Name: "churn", Labels: map[string]string{"app": "churn"}, Servers: []lab.Server{}}, lab.AddPodOptions{})
		if err != nil {
			x.Fatal(err)
		}
		w.manifests()
		w.state("shop/churn", "enforced")
		x.sendFrom(p, lab.Raw, packettest.Build(p.Eth(), ipHeader(p.IP(evil(i%2)), evil(i%2)), packettest.UDP{SrcPort: 4000, DstPort: 443}, x.attackToken(fmt.Sprintf("pod %d", i), 1)))
		x.settle()
		w.closeSenders()
		if err := w.lab.DeletePod("shop/churn"); err != nil {
			x.Fatal(err)
		}
		w.manifests()
	}
	for range 100 {
		if p, s := left(); p == pins && s == slots {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	p, s := left()
	x.Errorf("%d pins and %d entries are left, want %d and %d", p, s, pins, slots)
}

// secondInterface gives the pod another way out. It can't be enforced; it must be said.
func (x *try) secondInterface() {
	w := x.w
	h, err := w.node.Netlink()
	if err != nil {
		x.Fatal(err)
	}
	defer h.Close()
	ph, err := x.pod.Netlink()
	if err != nil {
		x.Fatal(err)
	}
	defer ph.Close()
	ns, err := os.Open(x.pod.Path)
	if err != nil {
		x.Fatal(err)
	}
	defer func() { _ = ns.Close() }()
	mac := packettest.MAC{2, 7, 7, 7, 7, 7}
	gw := packettest.MAC{2, 7, 7, 7, 7, 1}
	veth := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: "second", HardwareAddr: gw[:]}, PeerName: "eth1", PeerHardwareAddr: mac[:], PeerNamespace: netlink.NsFd(int(ns.Fd())),
	}
	if err := h.LinkAdd(veth); err != nil {
		x.Fatal(err)
	}
	defer func() {
		if err := h.LinkDel(veth); err != nil {
			x.Error(err)
		}
		w.state("shop/frontend", "enforced")
	}()
	eth1, err := ph.LinkByName("eth1")
	if err != nil {
		x.Fatal(err)
	}
	for hd, l := range map[*netlink.Handle]netlink.Link{h: veth, ph: eth1} {
		if err := hd.LinkSetUp(l); err != nil {
			x.Fatal(err)
		}
	}
	time.Sleep(20 * time.Millisecond)
	s, err := x.pod.OpenSender("eth1", lab.Raw)
	if err != nil {
		x.Fatal(err)
	}
	for v := range 2 {
		f := packettest.Build(packettest.Eth{Src: mac, Dst: gw}, ipHeader(x.src(evil(v)), evil(v)), packettest.UDP{SrcPort: 4000, DstPort: 443}, x.attackToken("through eth1 "+family(v), 1))
		if err := s.Send(f); err != nil {
			x.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		x.Fatal(err)
	}
	x.settle()
	if x.on {
		w.state("shop/frontend", "not-covered")
		x.beside = append(x.beside, isolation) // the pod's stack chooses eth0 for its answers
	}
}

// otherDevice names an interface for a Pod that is no veth.
func (x *try) otherDevice() {
	w := x.w
	h, err := w.node.Netlink()
	if err != nil {
		x.Fatal(err)
	}
	defer h.Close()
	br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "odd0"}}
	if err := h.LinkAdd(br); err != nil {
		x.Fatal(err)
	}
	defer func() {
		if err := h.LinkDel(br); err != nil {
			x.Error(err)
		}
	}()
	x.tried, x.leaked = 1, 1 // nothing is enforced there, with a policy or without
	if x.on {
		m := podObject("shop", "odd", "odd-1", "Running", "{app: odd}", []netip.Addr{netip.MustParseAddr("10.244.1.240"), netip.MustParseAddr("fd00:10:244:1::240")}, &lab.Pod{HostInterface: "odd0"})
		w.write("odd.yaml", m)
		w.state("shop/odd", "not-covered")
		w.remove("odd.yaml")
	}
}

// namespaceGone deletes a namespace: its policies go while a pod is still there.
func (x *try) namespaceGone() {
	if !x.on {
		for v := range 2 {
			x.denied("no policy "+family(v), "", func(tok packettest.Token) []byte { return x.udp(evil(v), 443, tok) })
		}
		return
	}
	cluster := "lab/lab-cluster.yaml"
	old, err := os.ReadFile(filepath.Join(x.w.agent.Manifests, cluster))
	if err != nil {
		x.Fatal(err)
	}
	var rest, ns []string
	for doc := range strings.SplitSeq(string(old), "---\n") {
		if strings.Contains(doc, "kind: Namespace\n") && strings.Contains(doc, " name: shop\n") {
			ns = append(ns, doc)
		} else {
			rest = append(rest, doc)
		}
	}
	if len(ns) != 1 {
		x.Fatalf("%s has the namespace shop %d times", cluster, len(ns))
	}
	for what, next := range map[string][]string{
		"being deleted":  append(slices.Clone(rest), ns[0]+"status: {phase: Terminating}\n"),
		"without notice": rest,
	} {
		x.put(cluster, strings.Join(next, "---\n"))
		x.w.remove("policy.yaml")
		for v := range 2 {
			x.denied("after the last policy of a namespace "+what+" "+family(v), isolation, func(tok packettest.Token) []byte { return x.udp(evil(v), 443, tok) }, everyMode...)
			x.allowed("what its policies allow "+family(v), func(tok packettest.Token) []byte { return x.udp(web(v), controlPort, tok) })
		}
		x.settle()
		x.w.write("policy.yaml", narrow+kubePolicy)
		x.put(cluster, string(old))
	}
}
