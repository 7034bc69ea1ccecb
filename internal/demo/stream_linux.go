package demo

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/postern-dev/postern/internal/lab"
)

// beat is how often a stream sends.
const beat = time.Millisecond

// stream is a live connection: it sends a number every beat and counts what an
// echo server sends back.
type stream struct {
	conn net.Conn
	stop chan struct{}
	wg   sync.WaitGroup
	sent atomic.Uint64
	// echoed is how many numbers came back; a datagram that is lost is missing.
	echoed atomic.Uint64
	failed atomic.Bool
}

// message is the size of what a stream sends, in bytes.
const message = 8

func openStream(ctx context.Context, from *lab.Pod, network string, to netip.AddrPort) (*stream, error) {
	dial, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	conn, err := from.Dial(dial, network, to.String())
	if err != nil {
		return nil, err
	}
	s := &stream{conn: conn, stop: make(chan struct{})}
	s.wg.Go(s.send)
	s.wg.Go(func() { s.receive(network == "tcp") })
	return s, nil
}

func (s *stream) send() {
	tick := time.NewTicker(beat)
	defer tick.Stop()
	for n := uint64(0); ; n++ {
		select {
		case <-s.stop:
			return
		case <-tick.C:
		}
		if _, err := s.conn.Write(binary.BigEndian.AppendUint64(nil, n)); err != nil {
			// A datagram's error may be that of an earlier one.
			if _, ok := s.conn.(*net.UDPConn); !ok {
				s.failed.Store(!errors.Is(err, net.ErrClosed))
				return
			}
			continue
		}
		s.sent.Add(1)
	}
}

func (s *stream) receive(tcp bool) {
	buf := make([]byte, 64<<10)
	bytes, first := 0, true
	for {
		n, err := s.conn.Read(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			if tcp {
				s.failed.Store(true)
				return
			}
			continue
		}
		if !tcp {
			s.echoed.Add(1)
			continue
		}
		if first { // the server's own line
			first = false
			for i, c := range buf[:n] {
				if c == '\n' {
					n -= i + 1
					break
				}
			}
		}
		bytes += n
		s.echoed.Store(uint64(bytes / message))
	}
}

// alive reports whether something that is sent from now on comes back.
func (s *stream) alive(ctx context.Context, within time.Duration) bool {
	want := s.sent.Load() + 2
	deadline := time.NewTimer(within)
	defer deadline.Stop()
	for s.echoed.Load() < want {
		select {
		case <-ctx.Done():
			return false
		case <-deadline.C:
			return false
		case <-time.After(beat):
		}
	}
	return !s.failed.Load()
}

// quiet ends the sending and waits for what is under way.
func (s *stream) quiet() {
	s.halt()
	for range 500 {
		if s.echoed.Load() >= s.sent.Load() {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

func (s *stream) halt() {
	select {
	case <-s.stop:
	default:
		close(s.stop)
	}
}

func (s *stream) close() {
	s.halt()
	_ = s.conn.Close()
	s.wg.Wait()
}
