package demo

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-dev/postern/internal/lab"
	"github.com/postern-dev/postern/internal/labagent"
)

// labName is the demo's lab, apart from those of users.
const labName = "demo"

// streamPort is where web answers a long-lived connection.
const streamPort = 8443

// world is the lab, its agent, and a sniffer at every destination.
type world struct {
	lab   *lab.Lab
	agent *labagent.Agent
	node  *lab.Node
	wire  *lab.Sniffer // frames on their way to the internet
	pods  map[*lab.Pod]*lab.Sniffer
	stack *stackSniffer // what the node's own sockets get
}

// newWorld starts everything. On an error nothing is left.
func newWorld(ctx context.Context, posternd string) (w *world, err error) {
	l, err := lab.Up(ctx, lab.DefaultSpec(labName))
	if err != nil {
		return nil, err
	}
	w = &world{lab: l, node: l.Nodes()[0], pods: map[*lab.Pod]*lab.Sniffer{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.close())
			w = nil
		}
	}()
	if _, err := l.Serve(ctx, l.Outside(), "web", lab.Server{Kind: lab.TCPEcho, Port: streamPort}, lab.WebV4, lab.WebV6); err != nil {
		return w, err
	}
	if w.wire, err = l.Sniff(ctx, l.Outside(), lab.SniffOptions{Interface: "w-" + w.node.Name, Direction: lab.In}); err != nil {
		return w, err
	}
	for _, p := range l.Pods() {
		if w.pods[p], err = l.Sniff(ctx, p.Namespace, lab.SniffOptions{Interface: "eth0", Direction: lab.In, ProbeFrom: w.node.Namespace, ProbeInterface: p.HostInterface}); err != nil {
			return w, err
		}
	}
	if w.stack, err = sniffStack(ctx, w.node); err != nil {
		return w, err
	}
	w.agent, err = labagent.Start(ctx, l, w.node, labagent.Options{Binary: posternd})
	return w, err
}

// close removes everything.
func (w *world) close() error {
	var errs []error
	if w.agent != nil {
		errs = append(errs, w.agent.Kill())
	}
	if w.stack != nil {
		errs = append(errs, w.stack.close())
	}
	return errors.Join(append(errs, w.lab.Down())...)
}

// seen counts the frames that arrived for a destination, where it is; if that is
// a pod, those of one sender, unless from is nil. It fails if a sniffer may have
// missed some.
func (w *world) seen(ctx context.Context, from *lab.Pod, to netip.AddrPort) (int, error) {
	for _, ip := range w.node.IPs {
		if ip == to.Addr() {
			return w.stack.count(ctx, to)
		}
	}
	s, source := w.wire, netip.Addr{} // on the wire the node's address stands for its pods
	for p, ps := range w.pods {
		if p.IP(to.Addr()) == to.Addr() {
			if s = ps; from != nil {
				source = from.IP(to.Addr())
			}
		}
	}
	if err := s.Verify(ctx); err != nil {
		return 0, err
	}
	times, err := framesTo(s, source, to)
	return len(times), err
}

// framesTo returns the times of the frames for a destination, of one sender if
// from is valid.
func framesTo(s *lab.Sniffer, from netip.Addr, to netip.AddrPort) ([]time.Time, error) {
	frames, err := s.Frames()
	var out []time.Time
	for i := range frames {
		if src, dst := ends(frames[i].Data); dst == to && (src == from || !from.IsValid()) {
			out = append(out, frames[i].Time)
		}
	}
	return out, err
}

// Offsets within an Ethernet frame. Sources: IEEE 802.3, RFC 791, RFC 8200. The
// demo's traffic has neither IPv6 extension headers nor fragments.
const (
	etherHeader = 14
	ipv6Header  = 40
)

// ends returns where a frame comes from and the address and port that it goes to;
// nothing for what is no TCP or UDP.
func ends(b []byte) (src netip.Addr, dst netip.AddrPort) {
	if len(b) < etherHeader+20 {
		return src, dst
	}
	ip := b[etherHeader:]
	var proto byte
	var addr netip.Addr
	var rest []byte
	switch binary.BigEndian.Uint16(b[12:]) {
	case unix.ETH_P_IP:
		header := int(ip[0]&0x0f) * 4
		if len(ip) < header {
			return src, dst
		}
		src = netip.AddrFrom4([4]byte(ip[12:16]))
		proto, addr, rest = ip[9], netip.AddrFrom4([4]byte(ip[16:20])), ip[header:]
	case unix.ETH_P_IPV6:
		if len(ip) < ipv6Header {
			return src, dst
		}
		src = netip.AddrFrom16([16]byte(ip[8:24]))
		proto, addr, rest = ip[6], netip.AddrFrom16([16]byte(ip[24:40])), ip[ipv6Header:]
	}
	if (proto != unix.IPPROTO_TCP && proto != unix.IPPROTO_UDP) || len(rest) < 4 {
		return src, dst
	}
	return src, netip.AddrPortFrom(addr, binary.BigEndian.Uint16(rest[2:]))
}

// stackSniffer counts the TCP segments that a node's own stack takes in, behind
// everything that could drop them: raw sockets get a copy of each. Source: raw(7).
type stackSniffer struct {
	node  *lab.Node
	conns []net.PacketConn
	wg    sync.WaitGroup

	mu    sync.Mutex
	ports map[stackPort]int
}

type stackPort struct {
	v6   bool
	port uint16
}

func sniffStack(_ context.Context, n *lab.Node) (*stackSniffer, error) {
	s := &stackSniffer{node: n, ports: map[stackPort]int{}}
	for _, v6 := range []bool{false, true} {
		network, local := "ip4:tcp", "0.0.0.0"
		if v6 {
			network, local = "ip6:tcp", "::"
		}
		var conn net.PacketConn
		err := n.Do(func() (err error) {
			conn, err = net.ListenPacket(network, local) //nolint:noctx // a raw socket opens at once
			return err
		})
		if err != nil {
			return nil, errors.Join(fmt.Errorf("sniff the stack of %s: %w", n.Name, err), s.close())
		}
		s.conns = append(s.conns, conn)
		s.wg.Go(func() { s.read(conn, v6) })
	}
	return s, nil
}

func (s *stackSniffer) read(conn net.PacketConn, v6 bool) {
	buf := make([]byte, 64<<10)
	for {
		n, _, err := conn.ReadFrom(buf)
		if err != nil {
			return
		}
		if n >= 4 {
			s.mu.Lock()
			s.ports[stackPort{v6, binary.BigEndian.Uint16(buf[2:])}]++
			s.mu.Unlock()
		}
	}
}

func (s *stackSniffer) get(p stackPort) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ports[p]
}

// controlPort is where the node knocks at its own door to see that the sniffer
// is awake. Nothing listens there. Source: RFC 863 (discard).
const controlPort = 9

// count returns the segments for a port, after one of the node's own was seen.
func (s *stackSniffer) count(ctx context.Context, to netip.AddrPort) (int, error) {
	control := stackPort{to.Addr().Is6(), controlPort}
	before := s.get(control)
	if c, err := s.node.Dial(ctx, "tcp", netip.AddrPortFrom(to.Addr(), controlPort).String()); err == nil {
		_ = c.Close()
	}
	for s.get(control) == before {
		select {
		case <-ctx.Done():
			return 0, fmt.Errorf("the sniffer of %s is blind: %w", s.node.Name, ctx.Err())
		case <-time.After(time.Millisecond):
		}
	}
	return s.get(stackPort{to.Addr().Is6(), to.Port()}), nil
}

func (s *stackSniffer) close() error {
	var errs []error
	for _, c := range s.conns {
		errs = append(errs, c.Close())
	}
	s.wg.Wait()
	return errors.Join(errs...)
}

// write puts a policy into the agent's directory and waits until it is enforced.
func (w *world) write(ctx context.Context, name, content string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return w.agent.Write(ctx, name, content)
}

// replace does the same without waiting, and returns the moment before.
func (w *world) replace(now func() time.Time, name, content string) (time.Time, error) {
	tmp := filepath.Join(w.agent.Manifests, "."+name+".tmp")
	if err := os.WriteFile(tmp, []byte(content), 0o600); err != nil {
		return time.Time{}, err
	}
	at := now()
	return at, os.Rename(tmp, filepath.Join(w.agent.Manifests, name))
}
