package agent

import (
	"sync"

	"github.com/postern-dev/postern/internal/flow"
)

// recordRing keeps the newest records and hands new ones to followers. A
// follower that does not keep up loses records, which it is told of.
type recordRing struct {
	mu        sync.Mutex
	records   []flow.Record // ring
	next      int           // where the next one goes
	full      bool
	followers map[*follower]struct{}
}

// follower receives records until it is removed.
type follower struct {
	ch   chan flow.Record
	lost uint64 // guarded by recordRing.mu
}

func newRecordRing(size int) *recordRing {
	return &recordRing{records: make([]flow.Record, size), followers: map[*follower]struct{}{}}
}

func (r *recordRing) add(rec flow.Record) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.records[r.next] = rec
	r.next++
	if r.next == len(r.records) {
		r.next, r.full = 0, true
	}
	for f := range r.followers {
		select {
		case f.ch <- rec:
		default:
			f.lost++
		}
	}
}

func (r *recordRing) len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.full {
		return len(r.records)
	}
	return r.next
}

// snapshot returns the records that match, oldest first, and with follow a
// follower that misses none after them.
func (r *recordRing) snapshot(match func(*flow.Record) bool, limit int, follow bool) ([]flow.Record, *follower) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []flow.Record
	start, n := 0, r.next
	if r.full {
		start, n = r.next, len(r.records)
	}
	for i := range n {
		if rec := &r.records[(start+i)%len(r.records)]; match(rec) {
			out = append(out, *rec)
		}
	}
	if limit > 0 && len(out) > limit {
		out = out[len(out)-limit:]
	}
	if !follow {
		return out, nil
	}
	f := &follower{ch: make(chan flow.Record, 4096)}
	r.followers[f] = struct{}{}
	return out, f
}

func (r *recordRing) unfollow(f *follower) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.followers, f)
}
