//go:build linux

package attack

import (
	"maps"
	"slices"
	"sync"
)

// ledger is what the run found, by row of the catalogue.
var ledger = struct {
	sync.Mutex
	rows map[string]*result
}{rows: map[string]*result{}}

// result of a row, over all its tries.
type result struct {
	// offTried packets with enforcement off, of which offSeen were seen on a wire.
	offTried, offSeen int
	// tried packets with enforcement on, of which leaked were seen.
	tried, leaked int
	failed, limit bool
	reasons       map[string]bool
}

func ledgerOf(id string) *result {
	ledger.Lock()
	defer ledger.Unlock()
	if ledger.rows[id] == nil {
		ledger.rows[id] = &result{reasons: map[string]bool{}}
	}
	return ledger.rows[id]
}

func (r *result) add(x *try) {
	ledger.Lock()
	defer ledger.Unlock()
	if x.on {
		r.tried += x.tried
		r.leaked += x.leaked
	} else {
		r.offTried += x.tried
		r.offSeen += x.leaked
	}
	r.failed = r.failed || x.Failed()
	r.limit = r.limit || x.a.limit
	maps.Copy(r.reasons, x.counted)
}

func (r *result) verdict() string {
	switch {
	case r.failed:
		return "FAILED"
	case r.limit:
		return "limit"
	}
	return "held"
}

func (r *result) reasonList() []string {
	if r.limit {
		return nil
	}
	return slices.Sorted(maps.Keys(r.reasons))
}
