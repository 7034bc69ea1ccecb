package lab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// loadTimeout bounds every system call of a load, so that one that finds no answer ends.
	loadTimeout = time.Second
	// listenTimeout is how soon a server that waits notices that the load is over.
	listenTimeout = 50 * time.Millisecond
)

// load is one run.
type load struct {
	spec   LoadSpec
	ctx    context.Context
	domain int
	end    time.Duration // on the monotonic clock
	ops    atomic.Int64  // started, against MaxOps
	over   atomic.Bool   // tells servers to end

	mu     sync.Mutex
	result LoadResult
	hist   histogram
	first  time.Duration
	last   time.Duration
}

// monotonic reads the clock that measures a load.
func monotonic() time.Duration {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) // fails for an unknown clock only
	return time.Duration(ts.Nano())
}

// Load runs a load and returns what it did. Clients and servers are threads of
// this process with blocking sockets, so that what is measured is the kernel's
// path and not a scheduler's. Cancelling ctx ends it within a second.
func (l *Lab) Load(ctx context.Context, spec LoadSpec) (LoadResult, error) {
	if err := spec.normalise(); err != nil {
		return LoadResult{}, err
	}
	client, err := l.Find(spec.Client)
	if err != nil {
		return LoadResult{}, err
	}
	server, err := l.Find(spec.Server)
	if err != nil {
		return LoadResult{}, err
	}
	r := &load{spec: spec, ctx: ctx, domain: unix.AF_INET}
	if spec.Listen.Addr().Is6() {
		r.domain = unix.AF_INET6
	}
	ln, bound, err := r.listen(server)
	if err != nil {
		return LoadResult{}, fmt.Errorf("load server at %s: %w", spec.Listen, err)
	}
	defer func() { _ = unix.Close(ln) }()
	if !spec.Target.IsValid() {
		r.spec.Target = netip.AddrPortFrom(spec.Listen.Addr(), bound)
	}
	if r.spec.Target.Addr().Is4() != spec.Listen.Addr().Is4() {
		return LoadResult{}, fmt.Errorf("load target %s and listener %s are of different families", r.spec.Target, spec.Listen)
	}
	var servers, clients sync.WaitGroup
	for i := range spec.Clients {
		servers.Go(func() { r.note(server.Do(func() error { return errors.Join(r.pin(2*i+1), r.serve(ln)) })) })
	}
	start := monotonic()
	r.end, r.first = start+spec.Duration, start
	for i := range spec.Clients {
		clients.Go(func() { r.note(client.Do(func() error { return errors.Join(r.pin(2*i), r.client()) })) })
	}
	clients.Wait()
	r.over.Store(true)
	servers.Wait()
	out := r.result
	out.Kind, out.Elapsed, out.Max = spec.Kind, r.last-r.first, r.hist.max
	out.P50, out.P90, out.P99 = r.hist.quantile(0.5), r.hist.quantile(0.9), r.hist.quantile(0.99)
	return out, ctx.Err()
}

// pin keeps the calling thread, which ends with the load, on one of its CPUs.
func (r *load) pin(i int) error {
	if !r.spec.Pinned {
		return nil
	}
	var all unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		return err
	}
	i %= all.Count()
	for cpu := 0; ; cpu++ {
		if !all.IsSet(cpu) {
			continue
		}
		if i == 0 {
			var one unix.CPUSet
			one.Set(cpu)
			return unix.SchedSetaffinity(0, &one)
		}
		i--
	}
}

// note counts an error that ended a client or server.
func (r *load) note(err error) {
	if err == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.result.Errors++
	if r.result.FirstError == nil {
		r.result.FirstError = err
	}
}

func (r *load) socketType() int {
	if r.spec.Kind == UDPRR {
		return unix.SOCK_DGRAM
	}
	return unix.SOCK_STREAM
}

func (r *load) listen(server *Namespace) (fd int, port uint16, err error) {
	err = server.Do(func() error {
		if fd, err = unix.Socket(r.domain, r.socketType()|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		err := errors.Join(
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
			setTimeouts(fd, listenTimeout),
			unix.Bind(fd, sockaddr(r.spec.Listen)),
		)
		if err == nil && r.spec.Kind != UDPRR {
			err = unix.Listen(fd, 4096)
		}
		var at unix.Sockaddr
		if err == nil {
			at, err = unix.Getsockname(fd)
		}
		if err != nil {
			_ = unix.Close(fd)
			return err
		}
		switch a := at.(type) {
		case *unix.SockaddrInet4:
			port = uint16(a.Port)
		case *unix.SockaddrInet6:
			port = uint16(a.Port)
		}
		return nil
	})
	return fd, port, err
}

func setTimeouts(fd int, d time.Duration) error {
	tv := unix.NsecToTimeval(int64(d))
	return errors.Join(
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &tv),
	)
}

func sockaddr(ap netip.AddrPort) unix.Sockaddr {
	if ap.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: ap.Addr().As4(), Port: int(ap.Port())}
	}
	return &unix.SockaddrInet6{Addr: ap.Addr().As16(), Port: int(ap.Port())}
}

// serve answers until the load is over. Several run on one listener.
func (r *load) serve(ln int) error {
	buf := make([]byte, max(r.spec.Size, 64<<10))
	for !r.over.Load() {
		if r.spec.Kind == UDPRR {
			n, from, err := unix.Recvfrom(ln, buf, 0)
			if err == nil {
				err = unix.Sendto(ln, buf[:n], 0, from)
			}
			if err != nil && !isTimeout(err) {
				return err
			}
			continue
		}
		fd, _, err := unix.Accept4(ln, unix.SOCK_CLOEXEC)
		if isTimeout(err) || errors.Is(err, unix.ECONNABORTED) {
			continue
		}
		if err != nil {
			return err
		}
		r.serveConn(fd, buf)
		_ = unix.Close(fd)
	}
	return nil
}

// serveConn serves one connection to its end. For TCPConn the server closes
// first: the client's ports are free at once.
func (r *load) serveConn(fd int, buf []byte) {
	if err := errors.Join(setTimeouts(fd, loadTimeout), unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)); err != nil {
		return
	}
	var total uint64
	for {
		want := buf
		if r.spec.Kind != TCPBulk {
			want = buf[:r.spec.Size]
		}
		n, err := readSome(fd, want, r.spec.Kind != TCPBulk)
		total += uint64(n)
		switch {
		case err != nil:
			return
		case r.spec.Kind == TCPBulk && n == 0:
			_ = writeAll(fd, binary.BigEndian.AppendUint64(nil, total))
			return
		case n == 0:
			return
		case r.spec.Kind == TCPBulk:
			continue
		}
		if writeAll(fd, want) != nil || r.spec.Kind == TCPConn {
			return
		}
	}
}

// client runs operations until the load's end, and adds what it did to the result.
func (r *load) client() error {
	var (
		hist       histogram
		ops, bytes int64
		errs       int64
		firstErr   error
		buf        = make([]byte, r.spec.Size)
		fd         = -1
		err        error
	)
	if r.spec.Kind != TCPConn {
		if fd, err = r.connect(); err != nil {
			return err
		}
		defer func() { _ = unix.Close(fd) }()
	}
	for {
		begin := monotonic()
		if begin >= r.end || r.ctx.Err() != nil || (r.spec.MaxOps > 0 && r.ops.Add(1) > r.spec.MaxOps) {
			break
		}
		if err := r.operate(fd, buf); err != nil {
			errs++
			if firstErr == nil {
				firstErr = err
			}
			if r.spec.Kind != TCPConn && r.spec.Kind != UDPRR {
				break // the connection is gone
			}
			continue
		}
		hist.add(monotonic() - begin)
		ops++
		bytes += int64(len(buf))
	}
	if r.spec.Kind == TCPBulk && errs == 0 {
		// What counts is what has arrived.
		if bytes, err = confirmBulk(fd); err != nil {
			errs, firstErr = errs+1, err
		}
	}
	now := monotonic()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.hist.merge(&hist)
	r.result.Ops += ops
	r.result.Bytes += bytes
	r.result.Errors += errs
	if r.result.FirstError == nil {
		r.result.FirstError = firstErr
	}
	r.last = max(r.last, now)
	return nil
}

// confirmBulk ends a bulk connection and returns how many bytes the server got.
func confirmBulk(fd int) (int64, error) {
	if err := unix.Shutdown(fd, unix.SHUT_WR); err != nil {
		return 0, err
	}
	var total [8]byte
	n, err := readSome(fd, total[:], true)
	if err == nil && n < len(total) {
		err = errors.New("the server did not confirm what it got")
	}
	return int64(binary.BigEndian.Uint64(total[:])), err
}

func (r *load) connect() (int, error) {
	fd, err := unix.Socket(r.domain, r.socketType()|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	err = setTimeouts(fd, loadTimeout)
	if err == nil && r.spec.Kind != UDPRR {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	}
	if err == nil {
		err = unix.Connect(fd, sockaddr(r.spec.Target)) // writes to it: not one for all
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("connect %s: %w", r.spec.Target, err)
	}
	return fd, nil
}

// operate does one operation; fd is the long connection, if the kind has one.
func (r *load) operate(fd int, buf []byte) error {
	if r.spec.Kind == TCPConn {
		var err error
		if fd, err = r.connect(); err != nil {
			return err
		}
		defer func() { _ = unix.Close(fd) }()
	}
	if err := writeAll(fd, buf); err != nil || r.spec.Kind == TCPBulk {
		return err
	}
	n, err := readSome(fd, buf, true)
	if err == nil && n < len(buf) {
		err = fmt.Errorf("%d of %d bytes of the response", n, len(buf))
	}
	if err != nil || r.spec.Kind != TCPConn {
		return err
	}
	// The end of the stream belongs to the operation.
	n, err = readSome(fd, buf, false)
	if err == nil && n > 0 {
		err = errors.New("more than the response")
	}
	return err
}

// readSome reads once, or until b is full or the stream ends; 0 bytes is the end.
func readSome(fd int, b []byte, full bool) (int, error) {
	got := 0
	for got < len(b) {
		n, err := unix.Read(fd, b[got:])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return got, err
		}
		got += n
		if n == 0 || !full {
			break
		}
	}
	return got, nil
}

func writeAll(fd int, b []byte) error {
	for len(b) > 0 {
		// No signal for a connection that the server has closed.
		n, err := unix.SendmsgN(fd, b, nil, nil, unix.MSG_NOSIGNAL)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

func isTimeout(err error) bool {
	return errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR)
}
