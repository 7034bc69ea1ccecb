//go:build linux

package lab

import (
	"net/netip"
	"testing"
	"time"
)

func TestHistogram(t *testing.T) {
	for v := uint64(0); v < 1<<40; v = v*33/32 + 1 {
		i := bucket(v)
		lo, hi := lowerBound(i), lowerBound(i+1)
		if v < lo || v >= hi || (v > 64 && float64(hi-lo) > 0.04*float64(lo)) {
			t.Fatalf("%d is in bucket %d of %d to %d", v, i, lo, hi)
		}
	}
	var h histogram
	for i := range 1000 {
		h.add(time.Duration(i) * time.Microsecond)
	}
	for q, want := range map[float64]time.Duration{0: 0, 0.5: 500 * time.Microsecond, 0.99: 990 * time.Microsecond} {
		if got := h.quantile(q); got > want || got < want*95/100 {
			t.Errorf("quantile %v: %s, want %s", q, got, want)
		}
	}
}

func TestLoad(t *testing.T) {
	l := up(t, DefaultSpec("lt-load"))
	to := pod(t, l, "payments/api")
	for v := range 2 {
		for _, kind := range []LoadKind{TCPBulk, TCPRR, TCPConn, UDPRR} {
			spec := LoadSpec{
				Kind: kind, Client: "shop/frontend", Server: "payments/api", Clients: 2,
				Listen: netip.AddrPortFrom(to.IPs[v], 0), Duration: 100 * time.Millisecond,
			}
			r, err := l.Load(t.Context(), spec)
			if err != nil {
				t.Fatal(err)
			}
			t.Log(r)
			if r.Errors > 0 || r.Ops < 2 || r.Elapsed < spec.Duration || r.Bytes < r.Ops {
				t.Errorf("%+v", r)
			}
		}
	}
	r, err := l.Load(t.Context(), LoadSpec{
		Kind: TCPConn, Client: "shop/frontend", Server: "outside", Listen: netip.AddrPortFrom(WebV4, 0), MaxOps: 50,
	})
	if err != nil || r.Ops != 50 || r.Errors > 0 {
		t.Errorf("%+v, %v", r, err)
	}
	// Nobody answers: errors, in bounded time.
	r, err = l.Load(t.Context(), LoadSpec{
		Kind: TCPConn, Client: "shop/frontend", Server: "outside", Listen: netip.AddrPortFrom(WebV4, 0),
		Target: netip.MustParseAddrPort("172.31.0.250:1"), MaxOps: 1,
	})
	if err != nil || r.Ops != 0 || r.Errors != 1 || r.FirstError == nil {
		t.Errorf("%+v, %v", r, err)
	}
}
