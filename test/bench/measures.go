//go:build linux

package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/postern-dev/postern/internal/lab"
	"github.com/postern-dev/postern/internal/labagent"
)

// kernel runs the program benchmarks; a figure is the median of their rounds.
func kernel(ctx context.Context, b *bench) error {
	est, err := goBench(ctx, "./internal/datapath", "BenchmarkEstablished", "2000000x", b.rounds, "kernel-ns/op")
	if err != nil {
		return err
	}
	first, err := goBench(ctx, "./internal/datapath", "BenchmarkFirst", "500000x", b.rounds, "net-ns/op", "open-ns/op")
	if err != nil {
		return err
	}
	least, most := est[0].value, est[0].value
	for _, e := range est {
		least, most = min(least, e.value), max(most, e.value)
		b.add("established packet, BPF_PROG_TEST_RUN, "+e.name, "60 ns", fmt.Sprintf("%.0f ns", e.value), "a run of an empty program, 20 ns here, is part of it")
	}
	b.add("established packet, slowest of these to fastest", "1.3", fmt.Sprintf("%.2f", most/least), "")
	at := map[string]float64{}
	for _, f := range first {
		if f.unit == "open-ns/op" {
			b.add("the same, memory for the flow and the reader's event included, "+f.name, "", fmt.Sprintf("%.0f ns", f.value), "4,096 flows at a time")
			continue
		}
		at[f.name] = f.value
		b.add("first packet, random destinations, "+f.name, "300 ns at 10,000 rules and 100,000 CIDRs", fmt.Sprintf("%.0f ns", f.value), "with the removal of the flow again")
	}
	for _, v6 := range []string{"false", "true"} {
		ratio := func(what, target, of, to string) {
			b.add("first packet, "+what+", v6="+v6, target, fmt.Sprintf("%.2f", at[of+"/v6="+v6]/at[to+"/v6="+v6]), "")
		}
		ratio("10,000 rules to 10 at 100,000 CIDRs", "1.1", "rules=10000/cidrs=100000", "rules=10/cidrs=100000")
		ratio("1,000,000 CIDRs to 1,000 at 1,000 rules", "2", "rules=1000/cidrs=1000000", "rules=1000/cidrs=1000")
	}
	return nil
}

// languageWords say what the benchmarks of internal/policy measure.
var languageWords = map[string]string{
	"cluster":                  "compiler: labels of one pod change, 10,000 pods and 5,000 policies, for all pods",
	"node":                     "compiler: labels of one pod change, 10,000 pods and 5,000 policies, for the 100 pods of a node",
	"BenchmarkPolicyChange":    "compiler: one NetworkPolicy changes, 10,000 pods and 5,000 policies, for all pods",
	"BenchmarkBaselineChange":  "compiler: a policy of all pods changes, 250 pods and 1,000 policies",
	"pods=250/policies=1000":   "compiler: everything from nothing, 250 pods and 1,000 policies",
	"pods=10000/policies=5000": "compiler: everything from nothing, 10,000 pods and 5,000 policies",
	"BenchmarkSet":             "compiler: one set of 1,000,000 networks from nothing",
	"BenchmarkEvaluate":        "reference evaluator: one packet, a small random cluster",
}

func language(ctx context.Context, b *bench) error {
	rows, err := goBench(ctx, "./internal/policy", ".", "1s", b.rounds, "ns/op")
	if err != nil {
		return err
	}
	for _, r := range rows {
		what := languageWords[r.name]
		if what == "" {
			what = r.name + " of internal/policy"
		}
		b.add(what, "", time.Duration(r.value).Round(time.Microsecond).String(), "in memory, without the kernel")
	}
	return nil
}

type figure struct {
	name, unit string
	value      float64
}

// goBench runs go test -bench and returns the medians of units by benchmark.
func goBench(ctx context.Context, pkg, name, benchtime string, rounds int, units ...string) ([]figure, error) {
	cmd := exec.CommandContext(ctx, "go", "test", pkg, "-run", "^$", "-bench", name, "-benchtime", benchtime, "-count", strconv.Itoa(rounds), "-timeout", "60m")
	// go test runs a program of its own, which must end with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%w: %s", err, out.String())
	}
	type key struct{ name, unit string }
	values := map[key][]float64{}
	var order []key
	sc := bufio.NewScanner(&out)
	for sc.Scan() {
		f := strings.Fields(sc.Text())
		if len(f) < 4 || !strings.HasPrefix(f[0], "Benchmark") {
			continue
		}
		for i := 2; i+1 < len(f); i += 2 {
			if !slices.Contains(units, f[i+1]) {
				continue
			}
			v, err := strconv.ParseFloat(f[i], 64)
			if err != nil {
				return nil, err
			}
			_, n, _ := strings.Cut(f[0], "/")
			if n == "" {
				n = f[0]
			}
			if j := strings.LastIndexByte(n, '-'); j > 0 {
				n = n[:j]
			}
			k := key{n, f[i+1]}
			if values[k] == nil {
				order = append(order, k)
			}
			values[k] = append(values[k], v)
		}
	}
	var res []figure
	for _, k := range order {
		res = append(res, figure{k.name, k.unit, median(values[k])})
	}
	return res, sc.Err()
}

// networks writes n random networks as a YAML list.
func networks(rng *rand.Rand, n int) string {
	var sb strings.Builder
	for range n {
		a := netip.AddrFrom4([4]byte{byte(1 + rng.IntN(200)), byte(rng.IntN(256)), byte(rng.IntN(256)), byte(rng.IntN(256))})
		fmt.Fprintf(&sb, "  - %s\n", netip.PrefixFrom(a, 24+8*rng.IntN(2)).Masked())
	}
	return sb.String()
}

// bigPolicy is about 1,000 rules with 100,000 networks, and one that lets the load pass.
func bigPolicy() string {
	rng := rand.New(rand.NewPCG(7, 7))
	var sb strings.Builder
	for p := range 10 {
		fmt.Fprintf(&sb, "---\napiVersion: postern.dev/v1alpha1\nkind: DestinationSet\nmetadata: {name: set%d, namespace: shop}\nspec:\n  networks:\n%s", p, networks(rng, 10000))
		fmt.Fprintf(&sb, "---\napiVersion: postern.dev/v1alpha1\nkind: EgressPolicy\nmetadata: {name: rules%d, namespace: shop}\nspec:\n  podSelector: {}\n  egress:\n", p)
		for r := range 100 {
			fmt.Fprintf(&sb, "  - to: [{destinationSets: [{name: set%d}]}]\n    protocols: [{tcp: {destinationPort: {number: %d}}}]\n", p, 1000+p*100+r)
		}
	}
	sb.WriteString("---\napiVersion: postern.dev/v1alpha1\nkind: EgressPolicy\nmetadata: {name: load, namespace: shop}\nspec:\n  podSelector: {}\n  egress: [{to: [{networks: [203.0.113.80/32]}]}]\n")
	return sb.String()
}

// traffic compares a pod under policy with a pod of a node without an agent.
func traffic(ctx context.Context, b *bench) error {
	spec := lab.DefaultSpec("bench-traffic")
	spec.Nodes = []lab.NodeSpec{{Name: "node1"}, {Name: "node2"}}
	spec.Pods = []lab.PodSpec{
		{Namespace: "shop", Name: "with", Node: "node1", Labels: map[string]string{"app": "load"}},
		{Namespace: "shop", Name: "without", Node: "node2", Labels: map[string]string{"app": "load"}},
	}
	spec.Services = nil
	l, err := lab.Up(ctx, spec)
	if err != nil {
		return err
	}
	defer func() { _ = l.Down() }()
	a, err := labagent.Start(ctx, l, l.Nodes()[0], labagent.Options{Binary: b.posternd()})
	if err != nil {
		return err
	}
	defer func() { _ = a.Kill() }()
	if err := a.Write(ctx, "big.yaml", bigPolicy()); err != nil {
		return err
	}
	for _, kind := range []struct {
		kind         lab.LoadKind
		what, target string
	}{
		{lab.TCPConn, "TCP connections/s, 1,000 rules and 100,000 CIDRs, against no policy", "95 %"},
		{lab.TCPBulk, "TCP bulk throughput, against no policy", "98 %"},
		{lab.TCPRR, "TCP request/response rate, against no policy", "98 %"},
	} {
		var ratios, rates []float64
		for range 2 * b.rounds {
			got, err := turns(ctx, l, kind.kind, []string{"without", "with"})
			if err != nil {
				return fmt.Errorf("%s: %w", kind.what, err)
			}
			ratios = append(ratios, 100*got["with"]/got["without"])
			rates = append(rates, got["with"])
		}
		b.add(kind.what, kind.target, fmt.Sprintf("%.1f %%", median(ratios)), fmt.Sprintf("%.3g/s with policy; from %.1f to %.1f %% in %d rounds of turns", median(rates), slices.Min(ratios), slices.Max(ratios), len(ratios)))
	}
	return nil
}

// scale is a node with 250 pods and 1,000 policies.
func scale(ctx context.Context, b *bench) error {
	const pods, policies = 250, 1000
	spec := lab.Spec{Name: "bench-scale", Hosts: lab.DefaultHosts(), Nodes: []lab.NodeSpec{{Name: "node1", PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/22"), netip.MustParsePrefix("fd00:10:244::/64")}}}}
	for i := range pods {
		ps := lab.PodSpec{Namespace: fmt.Sprintf("ns%d", i%25), Name: fmt.Sprintf("pod%d", i), Labels: map[string]string{"app": fmt.Sprintf("app%d", i%50), "i": strconv.Itoa(i)}, Servers: []lab.Server{}}
		spec.Pods = append(spec.Pods, ps)
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
	var sb strings.Builder
	for i := range policies {
		fmt.Fprintf(&sb, "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p%d, namespace: ns%d}\nspec:\n  podSelector: {matchLabels: {app: app%d}}\n  policyTypes: [Ingress, Egress]\n"+
			"  ingress: [{from: [{namespaceSelector: {}, podSelector: {matchLabels: {app: app%d}}}], ports: [{port: %d}]}]\n  egress: [{to: [{ipBlock: {cidr: 10.%d.%d.0/24}}]}]\n", i, i%25, i%50, (i+1)%50, 1000+i, i%200, i%250)
	}
	sb.WriteString("---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: web, namespace: ns0}\nspec: {podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 203.0.113.80/32}}]}]}\n")
	if err := os.WriteFile(filepath.Join(a.Manifests, "policies.yaml"), []byte(sb.String()), 0o600); err != nil {
		return err
	}
	var starts []time.Duration
	for range b.rounds {
		t := time.Now()
		if err := a.Start(); err != nil {
			return err
		}
		sctx, cancel := context.WithTimeout(ctx, 60*time.Second)
		err := a.WaitReady(sctx)
		cancel()
		if err != nil {
			return errors.Join(err, a.Kill())
		}
		starts = append(starts, time.Since(t))
		if len(starts) < b.rounds {
			if err := errors.Join(a.Kill(), a.Uninstall()); err != nil {
				return err
			}
		}
	}
	defer func() { _ = a.Kill() }()
	b.add("agent cold start, 250 endpoints, 1,000 policies", "2 s", median(starts).Round(time.Millisecond).String(), "from exec to every pod read back as enforced")
	if err := b.memory(a, "resident memory of that agent"); err != nil {
		return err
	}
	return b.timeToEnforce(ctx, l, a)
}

// memory adds the agent's resident set, and beside it the kernel's memory of the
// maps that the agent holds open: all but the pods' flow tables.
func (b *bench) memory(a *labagent.Agent, what string) error {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", a.PID()))
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "VmRSS:" {
			kb, err := strconv.Atoi(f[1])
			if err != nil {
				return err
			}
			b.add(what, "400 MiB", fmt.Sprintf("%d MiB", kb/1024), residentNote)
		}
	}
	locked, err := mapMemory(a.PID())
	if err != nil {
		return err
	}
	b.add(what+": the kernel's maps", "", fmt.Sprintf("%d MiB", locked>>20), "memlock of the maps that it holds open, those that are mapped included; without the pods' flow tables")
	return nil
}

// residentNote says what is in a resident set.
const residentNote = "VmRSS: the process, and what it has touched of the maps that it has mapped (networks, rules, ring buffer); flow tables, counters and other maps are the kernel's and not in it"

// mapMemory sums what the kernel takes for the BPF maps that a process has open, in
// bytes. Source: bpf_map_show_fdinfo in kernel/bpf/syscall.c.
func mapMemory(pid int) (int, error) {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/fdinfo/*", pid))
	if err != nil {
		return 0, err
	}
	maps := map[string]int{} // by id: a map may be open more than once
	for _, path := range files {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // closed meanwhile
		}
		fields := map[string]string{}
		for line := range strings.Lines(string(text)) {
			if k, v, ok := strings.Cut(line, ":"); ok {
				fields[k] = strings.TrimSpace(v)
			}
		}
		if id := fields["map_id"]; id != "" {
			if maps[id], err = strconv.Atoi(fields["memlock"]); err != nil {
				return 0, fmt.Errorf("%s: %w", path, err)
			}
		}
	}
	sum := 0
	for _, n := range maps {
		sum += n
	}
	return sum, nil
}

// timeToEnforce toggles a policy under a stream of datagrams and takes the time
// from the file's rename to the last datagram that arrives.
func (b *bench) timeToEnforce(ctx context.Context, l *lab.Lab, a *labagent.Agent) error {
	pod, err := l.Pod("ns0/pod0")
	if err != nil {
		return err
	}
	deny := "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {name: cut}\nspec:\n  tier: Admin\n  priority: 1\n  subject: {pods: {namespaceSelector: {}, podSelector: {matchLabels: {i: \"0\"}}}}\n  egress: [{action: Deny, to: [{networks: [203.0.113.80/32]}]}]\n"
	conn, err := pod.Dial(ctx, "udp", netip.AddrPortFrom(lab.WebV4, lab.EchoPort).String())
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	var times []time.Duration
	for i := range 20 * b.rounds {
		stop := make(chan struct{})
		answers := make(chan time.Time, 1<<16)
		go func() {
			defer close(answers)
			buf := make([]byte, 2048)
			for {
				if conn.SetReadDeadline(time.Now().Add(30*time.Millisecond)) != nil {
					return
				}
				if _, err := conn.Read(buf); err == nil {
					answers <- time.Now()
					continue
				}
				select {
				case <-stop:
					return
				default:
				}
			}
		}()
		quit := make(chan struct{})
		go func() {
			for {
				select {
				case <-quit:
					return
				default:
					_, _ = conn.Write([]byte("x"))
					time.Sleep(200 * time.Microsecond)
				}
			}
		}()
		time.Sleep(30 * time.Millisecond)
		tmp := filepath.Join(a.Manifests, ".cut.tmp")
		if err := os.WriteFile(tmp, []byte(deny), 0o600); err != nil {
			return err
		}
		start := time.Now()
		if err := os.Rename(tmp, filepath.Join(a.Manifests, "cut.yaml")); err != nil {
			return err
		}
		time.Sleep(400 * time.Millisecond)
		close(quit)
		close(stop)
		last := start
		n := 0
		for t := range answers {
			n++
			if t.After(last) {
				last = t
			}
		}
		if n == 0 {
			return fmt.Errorf("round %d: no answers before the cut", i)
		}
		times = append(times, last.Sub(start))
		if err := a.Remove(ctx, "cut.yaml"); err != nil {
			return err
		}
	}
	b.add("policy change to last packet admitted, 250 endpoints, 1,000 policies", "p99 50 ms",
		"p99 "+percentile(times, .99).Round(100*time.Microsecond).String(), "p50 "+percentile(times, .5).Round(100*time.Microsecond).String()+"; 10 ms of it is the wait for a quiet directory")
	return nil
}

// million loads one set of 1,000,000 networks.
func million(ctx context.Context, b *bench) error {
	l, err := lab.Up(ctx, lab.DefaultSpec("bench-million"))
	if err != nil {
		return err
	}
	defer func() { _ = l.Down() }()
	a, err := labagent.New(l, l.Nodes()[0], labagent.Options{Binary: b.posternd()})
	if err != nil {
		return err
	}
	rng := rand.New(rand.NewPCG(3, 3))
	yaml := "apiVersion: postern.dev/v1alpha1\nkind: DestinationSet\nmetadata: {name: feed, namespace: shop}\nspec:\n  networks:\n" + networks(rng, 1_000_000) +
		"---\napiVersion: postern.dev/v1alpha1\nkind: EgressPolicy\nmetadata: {name: feed, namespace: shop}\nspec: {podSelector: {}, egress: [{to: [{destinationSets: [{name: feed}]}]}]}\n"
	if err := os.WriteFile(filepath.Join(a.Manifests, "feed.yaml"), []byte(yaml), 0o600); err != nil {
		return err
	}
	start := time.Now()
	if err := a.Start(); err != nil {
		return err
	}
	defer func() { _ = a.Kill() }()
	mctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	if err := a.WaitReady(mctx); err != nil {
		return err
	}
	took := time.Since(start)
	s, err := a.Client.Status(ctx)
	if err != nil {
		return err
	}
	b.add("1,000,000 CIDRs loaded, cold start", "5 s", took.Round(10*time.Millisecond).String(), fmt.Sprintf("%d prefixes after merging, from YAML", s.Kernel["prefixes"]))
	return b.memory(a, "resident memory of the agent with 1,000,000 CIDRs")
}
