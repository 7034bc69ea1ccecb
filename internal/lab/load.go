package lab

import (
	"errors"
	"fmt"
	"math/bits"
	"net/netip"
	"time"
)

// LoadKind is what a load does over and over.
type LoadKind string

// Kinds of loads; one operation of each.
const (
	TCPBulk LoadKind = "tcp-bulk" // write Size bytes to one long connection; the server discards
	TCPRR   LoadKind = "tcp-rr"   // request and response of Size bytes each on one long connection
	TCPConn LoadKind = "tcp-conn" // connect, request and response of Size bytes each, close
	UDPRR   LoadKind = "udp-rr"   // request and response datagrams of Size bytes each
)

// LoadSpec describes a load between two namespaces of a lab. It ends after
// Duration or MaxOps, whichever is first.
type LoadSpec struct {
	Kind LoadKind
	// Client and Server are namespace names, as Find takes them.
	Client, Server string
	// Listen is where the server listens; port 0 is chosen by the kernel.
	Listen netip.AddrPort
	// Target is what clients connect to; the zero value means where the server
	// listens. A Service's address makes the load go through its translation.
	Target netip.AddrPort
	// Clients run at once, each on a thread of its own; 0 means 1, at most 64.
	Clients int
	// Pinned keeps each client on a CPU and its server on the next one, so that two
	// loads differ by what they do and not by where the scheduler puts them.
	Pinned bool
	// Size in bytes; 0 means 128 KiB for TCPBulk and 1 for the others. At most 1 MiB, 1400 for UDPRR.
	Size int
	// Duration is at most 10 minutes; 0 means one second.
	Duration time.Duration
	// MaxOps bounds the operations of all clients together; 0 means no bound.
	MaxOps int64
}

// LoadResult is what a load did.
type LoadResult struct {
	Kind LoadKind
	// Ops that succeeded, and bytes that the server received in them.
	Ops, Bytes int64
	// Errors are operations that failed or took longer than a second;
	// FirstError is one of them.
	Errors     int64
	FirstError error
	// Elapsed is from the first operation to the end of the last.
	Elapsed time.Duration
	// P50, P90, P99 and Max are latencies of single operations, within 4 %.
	P50, P90, P99, Max time.Duration
}

// OpsPerSecond returns the rate of operations.
func (r LoadResult) OpsPerSecond() float64 {
	if r.Elapsed <= 0 {
		return 0
	}
	return float64(r.Ops) / r.Elapsed.Seconds()
}

// BitsPerSecond returns the rate of bytes that the server received, in bits.
func (r LoadResult) BitsPerSecond() float64 {
	if r.Elapsed <= 0 {
		return 0
	}
	return 8 * float64(r.Bytes) / r.Elapsed.Seconds()
}

// String prints r on one line.
func (r LoadResult) String() string {
	return fmt.Sprintf("%s: %d ops in %s (%.0f/s, %.3g Gbit/s), p50 %s p99 %s max %s, %d errors",
		r.Kind, r.Ops, r.Elapsed.Round(time.Millisecond), r.OpsPerSecond(), r.BitsPerSecond()/1e9, r.P50, r.P99, r.Max, r.Errors)
}

func (s *LoadSpec) normalise() error {
	switch s.Kind {
	case TCPBulk, TCPRR, TCPConn, UDPRR:
	default:
		return fmt.Errorf("load kind %q: want tcp-bulk, tcp-rr, tcp-conn or udp-rr", s.Kind)
	}
	if s.Size == 0 {
		s.Size = 1
		if s.Kind == TCPBulk {
			s.Size = 128 << 10
		}
	}
	if s.Clients == 0 {
		s.Clients = 1
	}
	if s.Duration == 0 {
		s.Duration = time.Second
	}
	if s.Size < 1 || s.Size > 1<<20 || (s.Kind == UDPRR && s.Size > 1400) {
		return fmt.Errorf("load size %d: want 1 to 1048576, or 1400 for udp-rr", s.Size)
	}
	if s.Clients < 1 || s.Clients > 64 {
		return fmt.Errorf("load clients %d: want 1 to 64", s.Clients)
	}
	if s.Duration < 0 || s.Duration > 10*time.Minute {
		return fmt.Errorf("load duration %s: want at most 10m", s.Duration)
	}
	if !s.Listen.IsValid() {
		return errors.New("load listen address: want one")
	}
	return nil
}

// histogram counts durations in buckets whose width is a 32nd of their power of two.
type histogram struct {
	counts [64 * 32]int64
	n      int64
	max    time.Duration
}

func (h *histogram) add(d time.Duration) {
	h.counts[bucket(uint64(max(d, 0)))]++
	h.n++
	h.max = max(h.max, d)
}

func (h *histogram) merge(o *histogram) {
	for i, c := range o.counts {
		h.counts[i] += c
	}
	h.n += o.n
	h.max = max(h.max, o.max)
}

// quantile returns the lower bound of the bucket that holds quantile q, 0 to 1.
func (h *histogram) quantile(q float64) time.Duration {
	left := int64(q * float64(h.n))
	for i, c := range h.counts {
		if left -= c; left < 0 {
			return time.Duration(lowerBound(i))
		}
	}
	return h.max
}

func bucket(v uint64) int {
	if v < 32 {
		return int(v)
	}
	exp := bits.Len64(v) - 6 // v>>exp is in 32..63
	return exp*32 + int(v>>exp)
}

func lowerBound(i int) uint64 {
	if i < 64 {
		return uint64(i)
	}
	exp := i/32 - 1
	return uint64(i-exp*32) << exp
}
