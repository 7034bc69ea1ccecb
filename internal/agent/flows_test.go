package agent

import (
	"context"
	"net"
	"net/http"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/postern-dev/postern/internal/control"
	"github.com/postern-dev/postern/internal/flow"
)

// serveFlows serves a ring on a socket of its own.
func serveFlows(t *testing.T, ring *recordRing, events func() uint64) *control.Client {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{ReadHeaderTimeout: time.Second, Handler: &flowStream{
		ring, func(context.Context) (uint64, bool) { return events(), true }, time.Now, 10 * time.Millisecond,
	}}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close(); <-done })
	return control.NewClient(socket)
}

// TestSlowReaderIsTold: a reader that does not read for a while is told of every
// record that it missed, between those that it got.
func TestSlowReaderIsTold(t *testing.T) {
	const all = 200_000
	ring := newRecordRing(16)
	c := serveFlows(t, ring, func() uint64 { return 0 })
	ring.add(flow.Record{Type: "verdict", Verdict: "dropped"})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	next, lost, gaps := uint32(0), uint64(0), 0
	full := make(chan struct{})
	go func() {
		<-full
		for i := range uint32(all) {
			ring.add(flow.Record{Type: "verdict", Verdict: "dropped", Revision: i + 1})
			ring.add(flow.Record{Type: "verdict", Verdict: "forwarded"}) // not asked for: no loss
		}
		full <- struct{}{}
	}()
	err := c.FlowsAndLosses(ctx, control.Filter{Verdict: "dropped", Follow: true}, func(r flow.Record) error {
		if r.Verdict != "dropped" {
			t.Fatalf("got %+v", r)
		}
		if r.Revision == 0 { // does not read until all have come
			full <- struct{}{}
			<-full
			return nil
		}
		if next++; r.Revision != next {
			t.Fatalf("record %d after %d, without a word", r.Revision, next-1)
		}
		if next == all {
			cancel()
		}
		return nil
	}, func(l control.Lost) error {
		if l.Where != control.LostByReader || l.Time.IsZero() {
			t.Errorf("got %+v", l)
		}
		next, lost, gaps = next+uint32(l.Lost), lost+l.Lost, gaps+1
		if next >= all {
			cancel()
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if next != all || gaps == 0 || lost < all/2 {
		t.Errorf("told of %d records, of %d in %d gaps that they are lost; want all %d", next, lost, gaps, all)
	}
}

// TestKernelLossesAreTold: what the kernel lost while somebody follows is said
// then, and what it lost before is not.
func TestKernelLossesAreTold(t *testing.T) {
	var n atomic.Uint64
	n.Store(1000)
	ring := newRecordRing(16)
	c := serveFlows(t, ring, n.Load)
	ring.add(flow.Record{Type: "verdict"})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	var got []uint64
	err := c.FlowsAndLosses(ctx, control.Filter{Follow: true}, func(flow.Record) error {
		time.AfterFunc(100*time.Millisecond, func() { n.Add(7) })
		time.AfterFunc(200*time.Millisecond, func() { n.Add(5) })
		return nil
	}, func(l control.Lost) error {
		if l.Where != control.LostByKernel {
			t.Errorf("got %+v", l)
		}
		if got = append(got, l.Lost); len(got) == 2 {
			cancel()
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 || got[0] != 7 || got[1] != 5 {
		t.Errorf("got %d, want 7 and 5", got)
	}
}
