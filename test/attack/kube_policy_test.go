//go:build linux

package attack

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/postern-dev/postern/internal/packet/packettest"
)

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
				time.Sleep(time.Duration(i%100) * time.Millisecond / 2) // well below the grace, on a busy machine too
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
