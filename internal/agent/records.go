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

// follower receives the records that match until it is removed.
type follower struct {
	match func(*flow.Record) bool
	ch    chan followed
	lost  uint64 // since what was sent last; guarded by recordRing.mu
}

// followed is a record, and how many are missing before it.
type followed struct {
	lost uint64
	rec  flow.Record
}

// followerBacklog is how many records a follower may be behind.
const followerBacklog = 4096

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
		if !f.match(&rec) {
			continue
		}
		select {
		case f.ch <- followed{f.lost, rec}:
			f.lost = 0
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
	f := &follower{match: match, ch: make(chan followed, followerBacklog)}
	r.followers[f] = struct{}{}
	return out, f
}

// missed returns how many records f has lost after all those that it was sent,
// and forgets them. It returns 0 while there are some to read.
func (r *recordRing) missed(f *follower) uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(f.ch) > 0 {
		return 0
	}
	n := f.lost
	f.lost = 0
	return n
}

func (r *recordRing) unfollow(f *follower) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.followers, f)
}
