package agent

import (
	"os"
	"runtime/debug"
	"runtime/metrics"
)

// A directory with a million networks makes garbage of several times what stays.
// The limit makes the collector keep up with it; where more than that stays, the
// limit follows, so that it never has to fight for room that is not there.
const (
	softLimit = 350 << 20
	// tidyAfter is how much the heap may grow before what is free of it is given back.
	tidyAfter = 64 << 20
)

// memory keeps the process small beside large sets.
type memory struct {
	size    uint64 // of the heap, free parts included, when it was last tidied
	limited bool   // the limit is ours
}

func newMemory() *memory {
	m := &memory{limited: os.Getenv("GOMEMLIMIT") == ""}
	if m.limited {
		debug.SetMemoryLimit(softLimit)
	}
	return m
}

// tidy gives free memory back to the system if there is much.
func (m *memory) tidy() {
	size, _ := heapSize()
	if size < m.size+m.size/2+tidyAfter {
		return
	}
	debug.FreeOSMemory()
	size, live := heapSize()
	m.size = size
	if m.limited {
		debug.SetMemoryLimit(max(softLimit, int64(2*live)))
	}
}

// heapSize returns the bytes that the heap takes from the system, and those of
// them that were in use after the last collection.
func heapSize() (size, live uint64) {
	s := []metrics.Sample{
		{Name: "/memory/classes/heap/objects:bytes"},
		{Name: "/memory/classes/heap/unused:bytes"},
		{Name: "/memory/classes/heap/free:bytes"},
		{Name: "/gc/heap/live:bytes"},
	}
	metrics.Read(s)
	for _, v := range s[:3] {
		size += v.Value.Uint64()
	}
	return size, s[3].Value.Uint64()
}
