//go:build linux

package attack

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/postern-dev/postern/internal/control"
)

type problem = control.Problem

// conn is a connection with its network's name.
type conn struct {
	network string
	net.Conn
}

// ready waits until the agent enforces.
func (w *world) ready() {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 10*time.Second)
	defer cancel()
	if err := w.agent.WaitReady(ctx); err != nil {
		w.t.Fatal(err)
	}
}

// storm sends without pause what must not arrive, and keeps up conversations
// that must not be cut, until stop.
type storm struct {
	x       *try
	shots   []int // in x.shots
	cancel  context.CancelFunc
	wg      sync.WaitGroup
	sent    []atomic.Int64
	answers atomic.Int64
	mu      sync.Mutex
	lost    []string
}

// quietStorm keeps up no conversations: nothing may pass.
func (x *try) quietStorm(to ...netip.Addr) *storm {
	s, _ := x.startStorm(to...)
	return s
}

func (x *try) storm(to ...netip.Addr) *storm {
	x.Helper()
	s, ctx := x.startStorm(to...)
	for v := range 2 {
		for _, network := range []string{"tcp", "udp"} {
			c := x.dial(network, echoAt(web(v)))
			s.wg.Go(func() { s.talk(ctx, network, c) })
		}
	}
	return s
}

func (x *try) startStorm(to ...netip.Addr) (*storm, context.Context) {
	x.Helper()
	ctx, cancel := context.WithCancel(x.Context())
	s := &storm{x: x, cancel: cancel, sent: make([]atomic.Int64, len(to))}
	for i, a := range to {
		tok := x.attackToken(fmt.Sprintf("storm to %s", a), 0)
		s.shots = append(s.shots, len(x.shots)-1)
		c := x.dial("udp", netip.AddrPortFrom(a, 9))
		s.wg.Go(func() {
			for ctx.Err() == nil {
				if _, err := c.Write(tok[:]); err == nil {
					s.sent[i].Add(1)
				}
				time.Sleep(300 * time.Microsecond)
			}
		})
	}
	return s, ctx
}

func (s *storm) lose(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lost = append(s.lost, fmt.Sprintf(format, args...))
}

// talk asks and waits for the answer, over and over.
func (s *storm) talk(ctx context.Context, network string, c net.Conn) {
	buf := make([]byte, 2048)
	for i := 0; ctx.Err() == nil; i++ {
		msg := fmt.Appendf(nil, "n%09d\n", i)
		if err := c.SetDeadline(time.Now().Add(900 * time.Millisecond)); err != nil {
			s.lose("%s: %v", network, err)
			return
		}
		_, err := c.Write(msg)
		n := 0
		if err == nil {
			n, err = c.Read(buf)
		}
		if err != nil || !bytes.Contains(buf[:n], msg[:10]) {
			if ctx.Err() == nil {
				s.lose("%s, message %d: %q, %v", network, i, buf[:n], err)
			}
			return
		}
		s.answers.Add(1)
		time.Sleep(time.Millisecond)
	}
}

// stop ends the storm. mayLose says that allowed conversations may be cut too.
func (s *storm) stop(mayLose bool) {
	s.x.Helper()
	s.cancel()
	s.wg.Wait()
	total := int64(0)
	for i, n := range s.shots {
		s.x.shots[n].packets = int(s.sent[i].Load())
		total += s.sent[i].Load()
	}
	if total < 20 {
		s.x.Errorf("no load: %d denied packets", total)
	}
	if !mayLose && (len(s.lost) > 0 || s.answers.Load() < 5) {
		s.x.Errorf("%d answers, and %d losses of allowed traffic: %v", s.answers.Load(), len(s.lost), s.lost)
	}
	if s.x.on {
		s.x.beside = append(s.x.beside, isolation)
	}
}
