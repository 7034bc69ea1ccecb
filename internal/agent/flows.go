package agent

import (
	"context"
	"encoding/json"
	"net/http"
	"time"

	"github.com/postern-dev/postern/internal/control"
)

// lossEvery is how often followers are told of events that the kernel lost, and
// of records that were lost at the end of what they have read.
const lossEvery = time.Second

// flowStream serves records, and says where some are missing.
type flowStream struct {
	records *recordRing
	// events returns how many events the kernel has lost so far; false if that can't be told.
	events func(context.Context) (uint64, bool)
	now    func() time.Time
	every  time.Duration
}

func (s *flowStream) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	filter, err := control.ParseFilter(r.URL.Query())
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	enc := json.NewEncoder(w)
	kept, f := s.records.snapshot(filter.Matches, filter.Limit, filter.Follow)
	if f != nil {
		defer s.records.unfollow(f)
	}
	for i := range kept {
		if enc.Encode(&kept[i]) != nil {
			return
		}
	}
	if f != nil {
		s.follow(r.Context(), w, enc, f)
	}
}

// follow writes what comes until the reader goes.
func (s *flowStream) follow(ctx context.Context, w http.ResponseWriter, enc *json.Encoder, f *follower) {
	flusher, _ := w.(http.Flusher)
	tick := time.NewTicker(s.every)
	defer tick.Stop()
	known, ok := s.events(ctx)
	lost := func(where string, n uint64) error {
		if n == 0 {
			return nil
		}
		return enc.Encode(control.Lost{Type: control.TypeLost, Time: s.now(), Where: where, Lost: n})
	}
	for {
		if flusher != nil {
			flusher.Flush()
		}
		var err error
		select {
		case <-ctx.Done():
			return
		case next := <-f.ch:
			if err = lost(control.LostByReader, next.lost); err == nil {
				err = enc.Encode(&next.rec)
			}
		case <-tick.C:
			if err = lost(control.LostByReader, s.records.missed(f)); err != nil {
				return
			}
			if n, now := s.events(ctx); now {
				if ok && n > known {
					err = lost(control.LostByKernel, n-known)
				}
				known, ok = n, true
			}
		}
		if err != nil {
			return
		}
	}
}
