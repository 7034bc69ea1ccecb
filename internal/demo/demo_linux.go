package demo

import (
	"context"
	_ "embed" // the app's manifests
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"os/signal"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-dev/postern/deploy/baseline"
	"github.com/postern-dev/postern/internal/lab"
)

//go:embed frontend.yaml
var frontendYAML string

//go:embed cart.yaml
var cartYAML string

// demo is one telling of the story.
type demo struct {
	Options
	*world
	start  time.Time
	n      int // chapters
	claims int
	failed []string

	front, cart, api, runner, dns *lab.Pod
	cartVIP, dnsVIP               []netip.Addr
}

// Run tells the story. The error wraps ErrClaim if something in it is not true,
// and ErrUnheard if its output can't be written any more.
func Run(ctx context.Context, opts Options) (err error) {
	ctx, hush := context.WithCancelCause(ctx)
	defer hush(nil)
	opts.Out = &listener{opts.Out, hush}
	// Without a receiver a closed pipe or terminal would end this process, with
	// the lab left behind. What it starts gets the defaults back (execve(2)).
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, unix.SIGPIPE, unix.SIGHUP)
	go func() {
		for s := range hangup {
			if s == unix.SIGHUP {
				hush(fmt.Errorf("%w: %s", ErrUnheard, s))
			}
		}
	}()
	d := &demo{Options: opts, start: opts.Now()}
	d.print("%s\n", d.paint(bold, "Postern: from \"any pod reaches anything\" to default deny for egress, on real packets"))
	if d.world, err = newWorld(ctx, opts.Posternd); err != nil {
		if cause := context.Cause(ctx); errors.Is(cause, ErrUnheard) {
			return cause
		}
		return err
	}
	defer func() {
		if cause := context.Cause(ctx); errors.Is(cause, ErrUnheard) {
			err = cause // everything else follows from it
		}
		err = errors.Join(err, d.close())
		if err == nil {
			d.end()
		}
	}()
	if err := d.cast(); err != nil {
		return err
	}
	d.print("A node of network namespaces is up: pods shop/frontend, shop/cart, payments/api,")
	d.print("ci/runner, kube-system/coredns; an internet with web, evil and a metadata service.")
	d.print("posternd runs on the node. A sniffer sits at every destination (203.0.113.66 is evil,")
	d.print("169.254.169.254 the metadata service, and so on in IPv6) and has the last word.")
	for _, part := range []func(context.Context) error{d.leaks, d.baseline, d.blocked, d.app, d.tighten, d.killed} {
		if err := errors.Join(part(ctx), ctx.Err()); err != nil {
			return err
		}
	}
	if len(d.failed) > 0 {
		return fmt.Errorf("%w: %s", ErrClaim, strings.Join(d.failed, "; "))
	}
	return nil
}

// listener notices that nobody reads any more what is written.
type listener struct {
	io.Writer
	hush context.CancelCauseFunc
}

// Write is io.Writer's.
func (l *listener) Write(p []byte) (int, error) {
	n, err := l.Writer.Write(p)
	if err != nil {
		l.hush(fmt.Errorf("%w: %w", ErrUnheard, err))
	}
	return n, err
}

// cast finds the pods and Services of the story.
func (d *demo) cast() error {
	for key, p := range map[string]**lab.Pod{
		"shop/frontend": &d.front, "shop/cart": &d.cart, "payments/api": &d.api, "ci/runner": &d.runner, "kube-system/coredns": &d.dns,
	} {
		var err error
		if *p, err = d.lab.Pod(key); err != nil {
			return err
		}
	}
	for key, ips := range map[string]*[]netip.Addr{"shop/cart": &d.cartVIP, "kube-system/kube-dns": &d.dnsVIP} {
		s, err := d.lab.Service(key)
		if err != nil {
			return err
		}
		*ips = s.ClusterIPs
	}
	return nil
}

// Rules that the story expects to see, as "tier policy".
const (
	byBaseline = "baseline default-deny"
	byMetadata = "admin metadata-denied"
	byDNS      = "admin dns-clients"
	byApp      = "networkpolicy shop/frontend"
	byCart     = "networkpolicy shop/cart"
)

// ways are the ways out that leak without policies.
func (d *demo) ways(rest string) []probe {
	return []probe{
		newProbe(d.front, "evil.example.net:443", lab.EvilV4, lab.EvilV6, 443, "https", rest),
		newProbe(d.front, "metadata service:80", lab.MetadataV4, lab.MetadataV6, 80, "http", byMetadata),
		newProbe(d.front, "payments/api:8080", d.api.IPs[0], d.api.IPs[1], 8080, "http", rest),
		newProbe(d.front, "kubelet "+d.node.Name+":10250", d.node.IPs[0], d.node.IPs[1], 10250, "http", rest),
		newProbe(d.front, "other resolver:53/udp", lab.ResolverV4, lab.ResolverV6, 53, "dns", byDNS),
	}
}

// runnerToCart is a way in, from another team.
func (d *demo) runnerToCart() probe {
	return newProbe(d.runner, "shop/cart:8080", d.cart.IPs[0], d.cart.IPs[1], 8080, "http", byBaseline)
}

// served is a way that must work; at is behind a Service, where there is one.
func served(p probe, at []netip.Addr, port uint16) probe {
	p.at = [2]netip.AddrPort{netip.AddrPortFrom(at[0], port), netip.AddrPortFrom(at[1], port)}
	return p
}

func (d *demo) dnsQuestion() probe {
	return served(newProbe(d.front, "kube-dns:53/udp", d.dnsVIP[0], d.dnsVIP[1], 53, "dns", ""), d.dns.IPs, 53)
}

func (d *demo) upstream() probe {
	return newProbe(d.dns, "upstream:53/udp", lab.ResolverV4, lab.ResolverV6, 53, "dns", "")
}

func (d *demo) toWeb() probe {
	return newProbe(d.front, "web.example.com:443", lab.WebV4, lab.WebV6, 443, "https", "")
}

func (d *demo) toCart() probe {
	return served(newProbe(d.front, "service shop/cart:80", d.cartVIP[0], d.cartVIP[1], 80, "http", ""), d.cart.IPs, 8080)
}

// round makes probes and prints a row for each. It claims that the good ones get
// through and the bad ones don't.
func (d *demo) round(ctx context.Context, good, bad []probe) error {
	if err := d.reach(ctx, good); err != nil {
		return err
	}
	return d.block(ctx, bad)
}

func (d *demo) reach(ctx context.Context, probes []probe) error {
	results, err := d.try(ctx, probes, waitAllowed, d.Now)
	if err != nil {
		return err
	}
	all := true
	for i := range results {
		p, r := &probes[i], &results[i]
		outcome, style, detail := "reached", green, "IPv4 and IPv6"
		if p.rule != "" {
			style = yellow // it is a leak
		}
		for v := range r.reached {
			if !r.reached[v] || r.frames[v] == 0 {
				all, outcome, style, detail = false, "blocked", red, r.rules[v].Text
			}
		}
		d.row(p.from.Name, p.what, outcome, style, detail)
	}
	d.claim(all, "%d connections, IPv4 and IPv6, were answered and seen by a sniffer at the other end", 2*len(probes))
	return nil
}

func (d *demo) block(ctx context.Context, probes []probe) error {
	results, err := d.try(ctx, probes, waitDenied, d.Now)
	if err != nil {
		return err
	}
	records := d.agent.PID() != 0
	none, frames, named := true, 0, true
	for i := range results {
		p, r := &probes[i], &results[i]
		outcome, style, detail := "blocked", green, "IPv4 and IPv6"
		if records {
			detail = r.rules[0].Text
		}
		for v := range r.reached {
			frames += r.frames[v]
			named = named && strings.HasPrefix(r.rules[v].Text, p.rule)
			if r.reached[v] {
				none, outcome, style = false, "reached", red
			}
		}
		d.row(p.from.Name, p.what, outcome, style, detail)
	}
	d.claim(none && frames == 0, "%d connections were not answered; the sniffers at their destinations saw %d frames", 2*len(probes), frames)
	if records {
		d.claim(named, "the flow records name the rule that dropped each of them")
	}
	return nil
}

func (d *demo) leaks(ctx context.Context) error {
	d.chapter("No policy: everything leaks")
	return d.reach(ctx, append(d.ways(byBaseline), d.runnerToCart()))
}

func (d *demo) baseline(ctx context.Context) error {
	d.chapter("The baseline: three files that fit every cluster",
		"Admin tier: cloud metadata denied; DNS to the cluster's resolver only, and for the",
		"resolver exactly what it needs. Baseline tier: everything else that leaves a pod",
		"denied, and everything else that comes from a pod:")
	names, err := fs.Glob(baseline.Files, "*.yaml")
	if err != nil {
		return err
	}
	deny, err := baseline.Files.ReadFile("default-deny.yaml")
	if err != nil {
		return err
	}
	d.print("")
	d.yaml(string(deny))
	d.command("cp deploy/baseline/*.yaml %s/", d.agent.Manifests)
	start := d.Now()
	for _, name := range names {
		content, err := baseline.Files.ReadFile(name)
		if err != nil {
			return err
		}
		if err := d.write(ctx, name, string(content)); err != nil {
			return err
		}
	}
	took := d.Now().Sub(start)
	s, err := d.agent.Client.Status(ctx)
	if err != nil {
		return err
	}
	pods := len(d.lab.Pods())
	for _, p := range s.Problems {
		d.print("   %s: %s %s: %s", p.Severity, p.Object, p.Path, p.Message)
	}
	d.claim(s.Endpoints["enforced"] == pods && len(s.Problems) == 0, "read back from the kernel %s later: enforced on %d of %d pods, no problems", ms(took), s.Endpoints["enforced"], pods)
	return nil
}

func (d *demo) blocked(ctx context.Context) error {
	d.chapter("What is blocked now, and by which rule",
		"The same connections again. Beside what is blocked stands the rule that its flow",
		"record names; by hand, 'postern flows --verdict dropped' lists the records.", "")
	good := []probe{d.dnsQuestion(), d.upstream()}
	bad := append(d.ways(byBaseline), d.runnerToCart())
	if err := d.round(ctx, good, bad); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	_, err := d.node.Get(ctx, "http", netip.AddrPortFrom(d.cart.IPs[0], 8080), "probe")
	d.claim(err == nil, "the kubelet's health check of shop/cart, from its own node, goes on")
	d.print("")
	d.print("   What comes from outside of the cluster is another matter: the standard's cluster-wide")
	d.print("   ingress rules know pods and namespaces only. It takes a NetworkPolicy, as below, or for")
	d.print("   a namespace as a whole deploy/baseline/namespace/closed.yaml.")
	return d.outside(ctx, true)
}

// outside reaches for shop/cart from an address outside of the cluster, and claims
// that it gets there or does not.
func (d *demo) outside(ctx context.Context, open bool) error {
	p := probe{what: "shop/cart:8080", speak: "http"}
	for v, ip := range d.cart.IPs[:2] {
		p.to[v] = netip.AddrPortFrom(ip, 8080)
	}
	p.at = p.to
	wait := waitDenied
	if open {
		wait = waitAllowed
	}
	results, err := d.try(ctx, []probe{p}, wait, d.Now)
	if err != nil {
		return err
	}
	r := &results[0]
	if open {
		d.row("outside", p.what, "reached", yellow, "not denied by the baseline")
		d.claim(r.reached[0] && r.reached[1] && r.frames[0] > 0 && r.frames[1] > 0, "from outside of the cluster shop/cart is still reached, IPv4 and IPv6")
		return nil
	}
	d.row("outside", p.what, "blocked", green, r.rules[0].Text)
	d.claim(!r.reached[0] && !r.reached[1] && r.frames == [2]int{} && strings.HasPrefix(r.rules[0].Text, byCart), "shop/cart's NetworkPolicy closes it to the outside too: no answer, no frame at the pod")
	return nil
}

func (d *demo) app(ctx context.Context) error {
	d.chapter("The app's owner opens what the app needs",
		"It stands in the networkpolicy tier, before the baseline and behind the admins' rules:", "")
	d.yaml(frontendYAML)
	d.print("   %s", d.paint(dim, "| ---"))
	d.yaml(cartYAML)
	d.command("cp internal/demo/*.yaml %s/", d.agent.Manifests)
	if err := d.write(ctx, "frontend.yaml", frontendYAML); err != nil {
		return err
	}
	if err := d.write(ctx, "cart.yaml", cartYAML); err != nil {
		return err
	}
	good := []probe{d.toWeb(), d.toCart(), d.dnsQuestion()}
	bad := append(d.ways(byApp), d.runnerToCart())
	if err := d.round(ctx, good, bad); err != nil {
		return err
	}
	if err := d.outside(ctx, false); err != nil {
		return err
	}
	return d.explain(ctx)
}
