//go:build linux

package attack

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

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

// settle waits until what was sent is where it goes, before a place is taken away.
func (x *try) settle() { time.Sleep(20 * time.Millisecond) }

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
			x.denied("64:ff9b::169.254.169.254", "networkpolicy ci/wide egress isolation", func(tok packettest.Token) []byte { return x.udp(netip.AddrFrom16(b), 80, tok) })
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

// recountBeside forgets all drops so far.
func (x *try) recountBeside() { x.settle(); x.recount() }
