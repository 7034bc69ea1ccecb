//go:build linux

package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/postern-dev/postern/internal/lab"
	"github.com/postern-dev/postern/internal/labagent"
)

// Sizes of the label measure.
const (
	labelNamespaces = 100 // of 100 pods each; the first half have 100 policies each
	labelLocal      = 50  // pods of this node, one in each of the first namespaces
)

// labelPods is the file of a namespace's pods, which live elsewhere. The first
// has the given app label.
func labelPods(ns int, app string) string {
	var out strings.Builder
	for i := range 100 {
		if i == 99 && ns < labelLocal {
			break // the node's own
		}
		a := "a" + strconv.Itoa(i%20)
		if i == 0 {
			a = app
		}
		fmt.Fprintf(&out, "---\napiVersion: v1\nkind: Pod\nmetadata: {namespace: ns%d, name: p%d, uid: u%d-%d, labels: {app: %s}}\n"+
			"spec: {nodeName: elsewhere%d, containers: [{name: c, ports: [{name: http, containerPort: 80}]}]}\nstatus: {podIP: 10.100.%d.%d}\n",
			ns, i, ns, i, a, i%8, ns, i+1)
	}
	return out.String()
}

func labelPolicies(ns int) string {
	var out strings.Builder
	for i := range 100 {
		fmt.Fprintf(&out, "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {namespace: ns%d, name: p%d}\nspec:\n"+
			"  podSelector: {matchLabels: {app: a%d}}\n  policyTypes: [Ingress, Egress]\n"+
			"  ingress: [{from: [{podSelector: {matchLabels: {app: a%d}}}], ports: [{port: %d}]}]\n"+
			"  egress: [{to: [{podSelector: {matchLabels: {app: a%d}}}, {ipBlock: {cidr: 192.0.%d.0/24}}]}]\n", ns, i, i%20, (i+1)%20, 1000+i, (i+2)%20, i)
	}
	return out.String()
}

// label changes one label among 10,000 pods and 5,000 policies: of a pod
// elsewhere that policies here name as a peer, and of one of this node.
func label(ctx context.Context, b *bench) error {
	spec := lab.Spec{Name: "bench-label", Hosts: lab.DefaultHosts(), Nodes: []lab.NodeSpec{{Name: "node1", PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/22"), netip.MustParsePrefix("fd00:10:244::/64")}}}}
	for i := range labelLocal {
		spec.Pods = append(spec.Pods, lab.PodSpec{Namespace: fmt.Sprintf("ns%d", i), Name: "local", Labels: map[string]string{"app": "a5"}, Servers: []lab.Server{}})
	}
	l, err := lab.Up(ctx, spec)
	if err != nil {
		return err
	}
	defer func() { _ = l.Down() }()
	a, err := labagent.New(l, l.Nodes()[0], labagent.Options{Binary: b.posternd()})
	if err != nil {
		return err
	}
	files := map[string]string{}
	for ns := range labelNamespaces {
		files[fmt.Sprintf("pods%d.yaml", ns)] = labelPods(ns, "a0")
		if ns < labelNamespaces/2 {
			files[fmt.Sprintf("policies%d.yaml", ns)] = labelPolicies(ns)
		}
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(a.Manifests, name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	if err := a.Start(); err != nil {
		return err
	}
	defer func() { _ = a.Kill() }()
	sctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := a.WaitReady(sctx); err != nil {
		return err
	}
	local := filepath.Join("lab", "lab-pod_ns7_local.yaml")
	text, err := os.ReadFile(filepath.Join(a.Manifests, local))
	if err != nil {
		return err
	}
	for _, kind := range []struct {
		what, file string
		text       [2]string
	}{
		{"of a peer, in a file of 100 pods", "pods7.yaml", [2]string{labelPods(7, "a6"), labelPods(7, "a0")}},
		{"of a pod of this node", local, [2]string{strings.Replace(string(text), "app: a5", "app: a9", 1), string(text)}},
	} {
		if kind.text[0] == kind.text[1] {
			return fmt.Errorf("%s: no label to change", kind.file)
		}
		if err := b.oneLabel(ctx, a, kind.what, kind.file, kind.text); err != nil {
			return err
		}
	}
	return nil
}

// oneLabel replaces a file by one and the other text. The agent's work is its CPU
// time, less what it takes when nothing happens.
func (b *bench) oneLabel(ctx context.Context, a *labagent.Agent, what, file string, text [2]string) error {
	path := filepath.Join(a.Manifests, file)
	put := func(i int) error {
		tmp := filepath.Join(a.Manifests, ".label.tmp")
		if err := os.WriteFile(tmp, []byte(text[i%2]), 0o600); err != nil {
			return err
		}
		return os.Rename(tmp, path)
	}
	const pause = 100 * time.Millisecond
	n := 10 * b.rounds
	before, err := cpuTime(a.PID())
	if err != nil {
		return err
	}
	for i := range 2 * n {
		if err := put(i); err != nil {
			return err
		}
		time.Sleep(pause)
	}
	busy, err := cpuTime(a.PID())
	if err != nil {
		return err
	}
	time.Sleep(time.Duration(2*n) * pause)
	idle, err := cpuTime(a.PID())
	if err != nil {
		return err
	}
	work := ((busy - before) - (idle - busy)) / time.Duration(2*n)
	var times []time.Duration
	for i := range 2 * n {
		s, err := a.Client.Status(ctx)
		if err != nil {
			return err
		}
		was := s.Revision
		start := time.Now()
		if err := put(i); err != nil {
			return err
		}
		for s.Revision == was {
			if time.Since(start) > 5*time.Second {
				return fmt.Errorf("%s: not applied", file)
			}
			time.Sleep(time.Millisecond)
			if s, err = a.Client.Status(ctx); err != nil {
				return err
			}
		}
		times = append(times, time.Since(start))
	}
	b.add("one label change among 10,000 pods and 5,000 policies, "+what, "10 ms of work", work.Round(100*time.Microsecond).String(),
		"CPU time of the agent; from the file's rename to the kernel p50 "+median(times).Round(100*time.Microsecond).String()+", 10 ms of it the wait for a quiet directory")
	return nil
}

// cpuTime is what a process has used of the CPUs, by the scheduler's account.
func cpuTime(pid int) (time.Duration, error) {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil {
		return 0, err
	}
	var sum time.Duration
	for _, t := range tasks {
		text, err := os.ReadFile(t)
		if err != nil {
			return 0, err
		}
		f := strings.Fields(string(text))
		if len(f) != 3 {
			return 0, fmt.Errorf("%s: %q", t, text)
		}
		ns, err := strconv.ParseInt(f[0], 10, 64)
		if err != nil {
			return 0, err
		}
		sum += time.Duration(ns)
	}
	return sum, nil
}
