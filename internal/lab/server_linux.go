package lab

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// RunningServer is a server that runs in this process. Its sockets are inside
// its namespace. Close stops it and waits for everything it started.
type RunningServer struct {
	Place  string
	Server Server

	served  atomic.Int64
	mu      sync.Mutex
	closed  bool
	conns   map[net.Conn]struct{}
	sockets []io.Closer
	wg      sync.WaitGroup
}

// Served returns how many connections and datagrams have reached the server.
func (s *RunningServer) Served() int64 { return s.served.Load() }

// Close stops the server and cuts its connections.
func (s *RunningServer) Close() error {
	s.mu.Lock()
	s.closed = true
	var errs []error
	for _, c := range s.sockets {
		if err := c.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	for c := range s.conns {
		_ = c.Close() // the peer may have gone first
	}
	s.mu.Unlock()
	s.wg.Wait()
	return errors.Join(errs...)
}

// track keeps c for Close; it returns false, and closes c, after Close.
func (s *RunningServer) track(c net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		_ = c.Close()
		return false
	}
	s.conns[c] = struct{}{}
	return true
}

func (s *RunningServer) untrack(c net.Conn) {
	_ = c.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
}

// startServers starts the servers of hosts and nodes.
func (l *Lab) startServers(ctx context.Context) error {
	for _, h := range l.spec.Hosts {
		for _, srv := range h.Servers {
			if _, err := l.Serve(ctx, l.outside, h.Name, srv, h.IPs...); err != nil {
				return err
			}
		}
	}
	for _, n := range l.nodes {
		for _, srv := range n.Spec.Servers {
			if _, err := l.Serve(ctx, n.Namespace, n.Name, srv); err != nil {
				return err
			}
		}
	}
	return nil
}

func (l *Lab) startPodServers(ctx context.Context, p *Pod) error {
	for _, srv := range p.Spec.Servers {
		s, err := l.serve(ctx, p.Namespace, p.Spec.Key(), srv)
		if err != nil {
			return err
		}
		l.mu.Lock()
		p.closers = append(p.closers, s)
		l.mu.Unlock()
	}
	return nil
}

// Serve starts one more server in a namespace of the lab. It listens on addrs,
// or on every address of both families if there are none. Down closes it.
func (l *Lab) Serve(ctx context.Context, ns *Namespace, place string, srv Server, addrs ...netip.Addr) (*RunningServer, error) {
	s, err := l.serve(ctx, ns, place, srv, addrs...)
	if err != nil {
		return nil, err
	}
	l.own(s)
	return s, nil
}

func (l *Lab) serve(ctx context.Context, ns *Namespace, place string, srv Server, addrs ...netip.Addr) (*RunningServer, error) {
	s := &RunningServer{Place: place, Server: srv, conns: map[net.Conn]struct{}{}}
	if len(addrs) == 0 {
		addrs = []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}
	}
	for _, a := range addrs {
		if err := l.listen(ctx, ns, s, netip.AddrPortFrom(a, srv.Port)); err != nil {
			return nil, errors.Join(fmt.Errorf("%s of %s on %s: %w", srv.Kind, place, a, err), s.Close())
		}
	}
	return s, nil
}

func (l *Lab) listen(ctx context.Context, ns *Namespace, s *RunningServer, at netip.AddrPort) error {
	// A wildcard socket of either family takes its own family only: the two
	// never compete for the port, and IPv4 addresses stay IPv4 addresses.
	tcp, udp := "tcp4", "udp4"
	if at.Addr().Is6() {
		tcp, udp = "tcp6", "udp6"
	}
	stream := func(handle func(net.Conn)) error {
		ln, err := ns.Listen(ctx, tcp, at.String())
		if err != nil {
			return err
		}
		s.sockets = append(s.sockets, ln)
		s.wg.Go(func() { s.accept(ln, handle) })
		return nil
	}
	datagram := func(answer func(Echo) []byte) error {
		conn, err := ns.ListenPacket(ctx, udp, at.String())
		if err != nil {
			return err
		}
		if err := wantDestination(conn, at.Addr().Is6()); err != nil {
			_ = conn.Close()
			return err
		}
		s.sockets = append(s.sockets, conn)
		s.wg.Go(func() { s.answer(conn, at, answer) })
		return nil
	}
	switch s.Server.Kind {
	case TCPEcho:
		return stream(s.echoStream)
	case UDPEcho:
		return datagram(func(e Echo) []byte {
			return append([]byte(echoLine(e.Client, e.Server, e.Place)), e.Data...)
		})
	case DNS:
		if err := stream(l.zone.stream); err != nil {
			return err
		}
		return datagram(func(e Echo) []byte { return l.zone.answer(e.Data, maxUDPAnswer) })
	case HTTP, HTTPS:
		ln, err := ns.Listen(ctx, tcp, at.String())
		if err != nil {
			return err
		}
		if s.Server.Kind == HTTPS {
			ln = tls.NewListener(ln, l.certs.config())
		}
		s.serveHTTP(ln)
		return nil
	}
	return fmt.Errorf("kind %q: %w", s.Server.Kind, ErrNotFound)
}

// accept runs handle for every connection, each in a goroutine that Close waits for.
func (s *RunningServer) accept(ln net.Listener, handle func(net.Conn)) {
	for {
		c, err := ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // the connection's own failure, e.g. reset before accept
		}
		s.served.Add(1)
		if !s.track(c) {
			return
		}
		s.wg.Go(func() {
			defer s.untrack(c)
			handle(c)
		})
	}
}

// echoStream answers the first data with Echo's line and everything with itself.
func (s *RunningServer) echoStream(c net.Conn) {
	client, server := addrPortOf(c.RemoteAddr()), addrPortOf(c.LocalAddr())
	line := []byte(echoLine(client, server, s.Place))
	buf := make([]byte, 64<<10)
	for {
		n, err := c.Read(buf)
		if n > 0 {
			if _, err := c.Write(append(line, buf[:n]...)); err != nil {
				return
			}
			line = nil
		}
		if err != nil {
			return
		}
	}
}

func addrPortOf(a net.Addr) netip.AddrPort {
	if t, ok := a.(*net.TCPAddr); ok {
		return unmapped(t.AddrPort())
	}
	return netip.AddrPort{}
}

// wantDestination asks for each datagram's destination address, so that the
// answer leaves from it also on a host with many addresses.
func wantDestination(conn *net.UDPConn, v6 bool) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var opErr error
	err = raw.Control(func(fd uintptr) {
		if v6 {
			opErr = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
		} else {
			opErr = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
		}
	})
	return errors.Join(err, opErr)
}

// answer serves datagrams. The control message of a request goes back with
// the answer: what was its destination becomes the source.
func (s *RunningServer) answer(conn *net.UDPConn, at netip.AddrPort, answer func(Echo) []byte) {
	buf, oob := make([]byte, 64<<10), make([]byte, 256)
	for {
		n, oobn, _, from, err := conn.ReadMsgUDPAddrPort(buf, oob)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP error for an earlier answer
		}
		s.served.Add(1)
		to := netip.AddrPortFrom(destination(oob[:oobn], at.Addr()), at.Port())
		if out := answer(Echo{Client: from, Server: to, Place: s.Place, Data: buf[:n]}); out != nil {
			_, _, _ = conn.WriteMsgUDPAddrPort(out, oob[:oobn], from)
		}
	}
}

// destination reads the packet info of a datagram, or returns otherwise.
func destination(oob []byte, otherwise netip.Addr) netip.Addr {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return otherwise
	}
	for _, m := range msgs {
		switch {
		case m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_PKTINFO && len(m.Data) >= unix.SizeofInet4Pktinfo:
			return netip.AddrFrom4([4]byte(m.Data[8:12])) // ipi_addr. Source: ip(7)
		case m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_PKTINFO && len(m.Data) >= unix.SizeofInet6Pktinfo:
			return netip.AddrFrom16([16]byte(m.Data[:16]))
		}
	}
	return otherwise
}

// serveHTTP answers every request with Echo's line.
func (s *RunningServer) serveHTTP(ln net.Listener) {
	srv := &http.Server{
		ReadHeaderTimeout: 10 * time.Second,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			s.served.Add(1)
			client, _ := netip.ParseAddrPort(r.RemoteAddr)
			var server netip.AddrPort
			if a, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok {
				server = addrPortOf(a)
			}
			_, _ = io.WriteString(w, echoLine(client, server, s.Place))
		}),
	}
	s.sockets = append(s.sockets, srv)
	s.wg.Go(func() { _ = srv.Serve(ln) }) // always an error: ErrServerClosed after Close
}
