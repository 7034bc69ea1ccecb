package demo

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/postern-dev/postern/internal/control"
	"github.com/postern-dev/postern/internal/flow"
	"github.com/postern-dev/postern/internal/lab"
)

// Waits of a probe. A denied packet is dropped without an answer, so that a probe
// that should fail takes all of its time.
const (
	waitAllowed = 3 * time.Second
	waitDenied  = 400 * time.Millisecond
	recordWait  = 2 * time.Second
)

// probe is one way out that is tried, over IPv4 and IPv6.
type probe struct {
	from *lab.Pod // nil: from outside of the cluster
	what string   // the destination, for people
	// to are the addresses that the pod dials, at those the sniffers look.
	to, at [2]netip.AddrPort
	speak  string // http, https or dns
	// rule is what the record of a drop has to name, as "tier policy".
	rule string
}

// newProbe dials the same addresses that it arrives at.
func newProbe(from *lab.Pod, what string, v4, v6 netip.Addr, port uint16, speak, rule string) probe {
	to := [2]netip.AddrPort{netip.AddrPortFrom(v4, port), netip.AddrPortFrom(v6, port)}
	return probe{from: from, what: what, to: to, at: to, speak: speak, rule: rule}
}

// result is what came of a probe.
type result struct {
	reached [2]bool
	frames  [2]int // that arrived at the destination
	rules   [2]flow.Rule
}

// try makes the probes, all at once, and gives them so long.
func (w *world) try(ctx context.Context, probes []probe, wait time.Duration, now func() time.Time) ([]result, error) {
	out := make([]result, len(probes))
	before := make([]result, len(probes))
	for i := range probes {
		for v := range probes[i].at {
			n, err := w.seen(ctx, probes[i].from, probes[i].at[v])
			if err != nil {
				return nil, err
			}
			before[i].frames[v] = n
		}
	}
	start := now()
	var wg sync.WaitGroup
	for i := range probes {
		for v := range probes[i].to {
			wg.Go(func() { out[i].reached[v] = w.speak(ctx, &probes[i], v, wait) })
		}
	}
	wg.Wait()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	for i := range probes {
		for v := range probes[i].at {
			n, err := w.seen(ctx, probes[i].from, probes[i].at[v])
			if err != nil {
				return nil, err
			}
			out[i].frames[v] = n - before[i].frames[v]
			if out[i].reached[v] || w.agent.PID() == 0 {
				continue
			}
			if out[i].rules[v], err = w.dropRule(ctx, &probes[i], v, start); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

// speak makes one request and reports whether it was answered.
func (w *world) speak(ctx context.Context, p *probe, v int, wait time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	var err error
	switch {
	case p.from == nil:
		_, err = w.lab.Outside().Get(ctx, p.speak, p.to[v], "demo.example.com")
	case p.speak == "dns":
		_, err = p.from.Resolve(ctx, "udp", p.to[v], "web.example.com", "A")
	default:
		_, err = p.from.Get(ctx, p.speak, p.to[v], "demo.example.com")
	}
	return err == nil
}

// errNoRecord says that a drop has no record.
var errNoRecord = errors.New("a packet was dropped, and no flow record tells")

// dropRule finds out from the flow records which rule dropped a probe.
func (w *world) dropRule(ctx context.Context, p *probe, v int, since time.Time) (flow.Rule, error) {
	ctx, cancel := context.WithTimeout(ctx, recordWait)
	defer cancel()
	f := control.Filter{Verdict: "dropped", To: p.to[v].Addr().String(), Since: since.Add(-20 * time.Millisecond)}
	from := "outside"
	if p.from != nil {
		f.Pod, from = p.from.Name, p.from.Name
	}
	for {
		var rule flow.Rule
		err := w.agent.Client.Flows(ctx, f, func(r flow.Record) error {
			if p.from == nil && r.Remote.Kind != "world" {
				return nil // another probe's to the same pod
			}
			if r.Remote.Port == p.to[v].Port() || r.Local.Port == p.to[v].Port() {
				rule = r.Rule
			}
			return nil
		})
		if err != nil || rule.Text != "" {
			return rule, err
		}
		select {
		case <-ctx.Done():
			return rule, fmt.Errorf("%w: %s to %s", errNoRecord, from, p.to[v])
		case <-time.After(10 * time.Millisecond):
		}
	}
}
