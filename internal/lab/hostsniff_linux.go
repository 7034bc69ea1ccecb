package lab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/postern-dev/postern/internal/packet/packettest"
)

// HostSniffer sees every IP packet that a namespace's own stack takes in: after
// tc, netfilter and reassembly, right before the transport protocols, whether
// or not a socket waits for it. It is the wire between a pod and its node's
// sockets, where no interface can be sniffed: an interface shows an arriving
// frame before anything could drop it.
//
// It is a raw socket per protocol and family (raw(7)), 254 each. Source: the kernel
// hands a copy to raw sockets in ip_local_deliver_finish and ip6_protocol_deliver_rcu.
// ICMPv6 neighbour discovery is included.
type HostSniffer struct {
	ns    *Namespace
	lab   *Lab
	label string
	epoll int
	wake  *os.File // a byte asks the reader to drain every socket, closing it to end
	stop  int      // the reader's end
	fds   []int
	done  chan struct{}
	once  sync.Once

	mu      sync.Mutex
	changed chan struct{}
	counts  map[packettest.Token]int
	drained int // times that every socket was found empty after a request
	err     error
}

// SniffHost starts a host sniffer in a node or pod. Closing it, or Down, stops it.
func (l *Lab) SniffHost(ctx context.Context, ns *Namespace) (*HostSniffer, error) {
	h := &HostSniffer{
		ns: ns, lab: l, label: ns.Name + ":stack", epoll: -1, stop: -1, done: make(chan struct{}),
		changed: make(chan struct{}), counts: map[packettest.Token]int{},
	}
	if err := h.open(); err != nil {
		if h.wake != nil {
			_ = h.wake.Close()
		}
		h.closeFDs()
		return nil, fmt.Errorf("sniff %s: %w", h.label, err)
	}
	go h.read()
	l.own(h)
	if err := h.Verify(ctx); err != nil {
		return nil, errors.Join(err, h.Close())
	}
	return h, nil
}

func (h *HostSniffer) open() error {
	var err error
	if h.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return err
	}
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return err
	}
	h.stop, h.wake = p[0], os.NewFile(uintptr(p[1]), "wake")
	if err := h.watch(h.stop); err != nil {
		return err
	}
	return h.ns.Do(func() error {
		for _, domain := range []int{unix.AF_INET, unix.AF_INET6} {
			// 0 is no protocol to a socket and IPPROTO_RAW (255) is send-only.
			for proto := 1; proto < unix.IPPROTO_RAW; proto++ {
				fd, err := unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, proto)
				if err != nil {
					return fmt.Errorf("raw socket for protocol %d: %w", proto, err)
				}
				h.fds = append(h.fds, fd)
				if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20); err != nil {
					return err
				}
				if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RXQ_OVFL, 1); err != nil {
					return err
				}
				if err := h.watch(fd); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

func (h *HostSniffer) watch(fd int) error {
	return unix.EpollCtl(h.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)})
}

func (h *HostSniffer) read() {
	defer close(h.done)
	events := make([]unix.EpollEvent, 64)
	buf, oob := make([]byte, 1<<16), make([]byte, 64)
	asked := 0
	for {
		timeout := -1
		if asked > 0 {
			timeout = 0
		}
		n, err := unix.EpollWait(h.epoll, events, timeout)
		if err != nil && !errors.Is(err, unix.EINTR) {
			h.fail(err)
			return
		}
		if n == 0 {
			h.note(func() { h.drained += asked })
			asked = 0
		}
		for _, e := range events[:max(n, 0)] {
			if int(e.Fd) == h.stop {
				size, err := unix.Read(h.stop, buf)
				if size == 0 && err == nil {
					return
				}
				asked += max(size, 0)
				continue
			}
			size, oobn, _, _, err := unix.Recvmsg(int(e.Fd), buf, oob, 0)
			if err != nil {
				continue // EAGAIN; a pending socket error is read and gone
			}
			h.take(buf[:size], oob[:oobn])
		}
	}
}

// note changes state and wakes whoever waits for it.
func (h *HostSniffer) note(f func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f()
	close(h.changed)
	h.changed = make(chan struct{})
}

func (h *HostSniffer) fail(err error) { h.note(func() { h.err = errors.Join(h.err, err) }) }

func (h *HostSniffer) take(b, oob []byte) {
	tokens := tokensIn(b)
	var lost uint32
	if msgs, err := unix.ParseSocketControlMessage(oob); err == nil {
		for _, m := range msgs {
			// The count of packets that found no room, with the next packet that did.
			if m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SO_RXQ_OVFL && len(m.Data) >= 4 {
				lost = binary.NativeEndian.Uint32(m.Data)
			}
		}
	}
	h.note(func() {
		for _, t := range tokens {
			h.counts[t]++
		}
		if lost > 0 {
			h.err = fmt.Errorf("blind to %d packets: the buffer was full", lost)
		}
	})
}

// Label names the sniffer.
func (h *HostSniffer) Label() string { return h.label }

// Count returns how many packets with t the namespace took in, for any protocol.
func (h *HostSniffer) Count(t packettest.Token) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.counts[t]
}

// Verify proves that the sniffer is at work, by a datagram over lo in each
// family, and that it missed nothing.
func (h *HostSniffer) Verify(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, verifyTimeout)
	defer cancel()
	for _, to := range []string{"127.0.0.1:9", "[::1]:9"} { // discard. Source: RFC 863
		t, fresh := controlToken, packettest.NewToken("")
		copy(t[8:], fresh[8:])
		c, err := h.ns.Dial(ctx, "udp", to)
		if err != nil {
			return fmt.Errorf("sniffer %s: control packet: %w", h.label, err)
		}
		_, err = c.Write(t[:])
		_ = c.Close()
		if err != nil {
			return fmt.Errorf("sniffer %s: control packet: %w", h.label, err)
		}
		if err := h.wait(ctx, func() bool { return h.counts[t] > 0 }); err != nil {
			return fmt.Errorf("blind: sniffer %s: %w", h.label, err)
		}
	}
	h.mu.Lock()
	before := h.drained
	h.mu.Unlock()
	if _, err := h.wake.Write([]byte{0}); err != nil {
		return fmt.Errorf("sniffer %s: %w", h.label, err)
	}
	if err := h.wait(ctx, func() bool { return h.drained > before }); err != nil {
		return fmt.Errorf("sniffer %s: drain: %w", h.label, err)
	}
	lost, err := h.lost()
	if err != nil {
		return fmt.Errorf("sniffer %s: %w", h.label, err)
	}
	if lost > 0 {
		return fmt.Errorf("sniffer %s: blind to %d packets: the buffer was full", h.label, lost)
	}
	return nil
}

// lost sums what the kernel could not queue for any of the sockets. Source:
// the last column of /proc/net/raw and raw6, drops; the tenth is the inode. The
// ICMPv6 socket is left out: packets with a wrong checksum count there, and
// nothing in the stack takes those.
func (h *HostSniffer) lost() (int, error) {
	ours := map[string]bool{}
	for _, fd := range h.fds {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return 0, err
		}
		ours[strconv.FormatUint(st.Ino, 10)] = true
	}
	sum := 0
	err := h.ns.Do(func() error {
		for _, file := range []string{"/proc/thread-self/net/raw", "/proc/thread-self/net/raw6"} {
			b, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			for line := range strings.Lines(string(b)) {
				f := strings.Fields(line)
				if len(f) < 13 || !ours[f[9]] || (file[len(file)-1] == '6' && strings.HasSuffix(f[1], ":003A")) {
					continue
				}
				n, err := strconv.Atoi(f[len(f)-1])
				if err != nil {
					return fmt.Errorf("%s: %w", file, err)
				}
				sum += n
			}
		}
		return nil
	})
	return sum, err
}

// wait waits until cond, which is called with mu held, is true.
func (h *HostSniffer) wait(ctx context.Context, cond func() bool) error {
	for {
		h.mu.Lock()
		ok, err, changed := cond(), h.err, h.changed
		h.mu.Unlock()
		if err != nil || ok {
			return err
		}
		select {
		case <-changed:
		case <-h.done:
			return os.ErrClosed
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Close stops the sniffer. Counts stay readable.
func (h *HostSniffer) Close() error {
	h.once.Do(func() {
		_ = h.wake.Close()
		<-h.done
		h.closeFDs()
		h.lab.disown(h)
	})
	return nil
}

func (h *HostSniffer) closeFDs() {
	for _, fd := range append(h.fds, h.stop, h.epoll) {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
	h.fds, h.stop, h.epoll = nil, -1, -1
}
