package lab

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/postern-dev/postern/internal/packet/packettest"
)

// Tap is a sniffer on every wire that leads away from one pod, or from all: what
// none of them saw has not left.
//
//   - the outside's end of every node's link: frames that arrive there;
//   - every node's stack (HostSniffer), and its lo, frames that arrive;
//   - eth0 of every other pod: frames that arrive there;
//   - with bridges, what a node's bridge hands up to its node.
//
// Pods that start later are not tapped.
type Tap struct {
	sniffers []*Sniffer
	hosts    []*HostSniffer
}

// Tap starts sniffers around the pods in except, whose own interfaces are left
// out. Closing it, or Down, stops them.
func (l *Lab) Tap(ctx context.Context, except ...*Pod) (*Tap, error) {
	t := &Tap{}
	sniff := func(ns *Namespace, opts SniffOptions) error {
		s, err := l.Sniff(ctx, ns, opts)
		if err == nil {
			t.sniffers = append(t.sniffers, s)
		}
		return err
	}
	build := func() error {
		for _, n := range l.nodes {
			err := sniff(l.outside, SniffOptions{
				Interface: wirePort(n.Spec.Name), ProbeFrom: n.Namespace, ProbeInterface: wireInterface,
			})
			if err != nil {
				return err
			}
			if err := sniff(n.Namespace, SniffOptions{Interface: "lo"}); err != nil {
				return err
			}
			if l.spec.CNI == Bridge {
				if err := sniff(n.Namespace, SniffOptions{Interface: bridgeInterface}); err != nil {
					return err
				}
			}
			h, err := l.SniffHost(ctx, n.Namespace)
			if err != nil {
				return err
			}
			t.hosts = append(t.hosts, h)
		}
		for _, p := range l.Pods() {
			if slices.Contains(except, p) {
				continue
			}
			err := sniff(p.Namespace, SniffOptions{
				Interface: podInterface, ProbeFrom: p.Node.Namespace, ProbeInterface: p.HostInterface,
			})
			if err != nil {
				return err
			}
		}
		return nil
	}
	if err := build(); err != nil {
		return nil, errors.Join(err, t.Close())
	}
	return t, nil
}

// Count returns how many frames and packets with token all sniffers saw
// together. One packet is seen more than once if it passes several wires.
func (t *Tap) Count(token packettest.Token) int {
	n := 0
	for _, s := range t.sniffers {
		n += s.Count(token)
	}
	for _, h := range t.hosts {
		n += h.Count(token)
	}
	return n
}

// Seen says where token was seen and how often, e.g. "outside:w-node1 x2".
func (t *Tap) Seen(token packettest.Token) []string {
	var out []string
	note := func(label string, n int) {
		if n > 0 {
			out = append(out, fmt.Sprintf("%s x%d", label, n))
		}
	}
	for _, s := range t.sniffers {
		note(s.Label(), s.Count(token))
	}
	for _, h := range t.hosts {
		note(h.Label(), h.Count(token))
	}
	return out
}

// Sniffers returns the sniffers on interfaces.
func (t *Tap) Sniffers() []*Sniffer { return slices.Clone(t.sniffers) }

// Verify is every sniffer's Verify: after it, every frame that was on a wire
// before is counted, or there is an error.
func (t *Tap) Verify(ctx context.Context) error {
	return t.each(func(s *Sniffer) error { return s.Verify(ctx) }, func(h *HostSniffer) error { return h.Verify(ctx) })
}

// Close stops every sniffer.
func (t *Tap) Close() error {
	return t.each((*Sniffer).Close, (*HostSniffer).Close)
}

// each does the same with every sniffer, all at once: most of it is waiting for the kernel.
func (t *Tap) each(one func(*Sniffer) error, host func(*HostSniffer) error) error {
	errs := make([]error, len(t.sniffers)+len(t.hosts))
	var wg sync.WaitGroup
	for i, s := range t.sniffers {
		wg.Go(func() { errs[i] = one(s) })
	}
	for i, h := range t.hosts {
		wg.Go(func() { errs[len(t.sniffers)+i] = host(h) })
	}
	wg.Wait()
	return errors.Join(errs...)
}
