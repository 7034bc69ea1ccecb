package lab

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-dev/postern/internal/packet/packettest"
)

// Direction is which frames of an interface a Sniffer counts and keeps.
type Direction int

// Directions, as the interface sees them. On lo every frame is seen in both.
const (
	In   Direction = iota // frames that arrive at the interface
	Out                   // frames that are sent through it
	Both                  // either
)

// Frame is one frame as it was on the wire.
type Frame struct {
	// Time is the kernel's time of arrival.
	Time time.Time
	// Out is set on a frame that was sent through the interface.
	Out bool
	// Tags are the VLAN tag that the kernel took out of Data, if there was one:
	// the TPID and the TCI.
	Tagged    bool
	TPID, TCI uint16
	// Data starts at the Ethernet header. Frames that the sender's kernel left
	// for the hardware to segment are here in one piece, and with checksums not filled in.
	Data []byte
}

// SniffOptions says what to sniff. The zero value of all but Interface is useful.
type SniffOptions struct {
	Interface string
	Direction Direction
	// Keep is how many bytes of frames to keep for Frames, the newest; 0 means
	// 16 MiB, negative means none. Tokens are counted in all frames.
	Keep int
	// Buffer is how many bytes of kernel memory the sniffer may fall behind by; 0 means 64 MiB.
	Buffer int
	// ProbeFrom and ProbeInterface are the other end of the wire, from which
	// Verify sends its control frame, past tc and queues. The zero value means
	// the interface itself, which is sent through like for any frame.
	ProbeFrom      *Namespace
	ProbeInterface string
	// Label names the sniffer in errors; empty means namespace and interface.
	Label string
}

// Sniffer sees every frame of one interface, before tc and netfilter for
// arriving frames and after them for sent ones. It counts tokens
// (packettest.Token) anywhere in a frame. A frame with one token twice counts once.
type Sniffer struct {
	opts  SniffOptions
	ns    *Namespace
	probe *Sender // kept open: closing a packet socket takes the kernel milliseconds
	file  *os.File
	done  chan struct{}
	lab   *Lab

	mu      sync.Mutex
	changed chan struct{} // closed and replaced when a frame came in
	counts  map[packettest.Token]int
	total   int
	frames  []Frame
	kept    int // bytes in frames
	evicted int // frames that were kept and are not any more
	drops   int // frames that the kernel had no room for
	err     error
}

// Source of the values: linux/if_packet.h.
const (
	defaultBuffer = 64 << 20
	maxFrameSize  = 512 << 10 // beyond the largest GSO frame (gso_max_size)
	defaultKeep   = 16 << 20
)

// Sniff starts a sniffer on an interface of the namespace. Closing it, or Down, stops it.
func (l *Lab) Sniff(ctx context.Context, ns *Namespace, opts SniffOptions) (*Sniffer, error) {
	if opts.Keep == 0 {
		opts.Keep = defaultKeep
	}
	mode := Bypass
	if opts.ProbeFrom == nil {
		// Bypass hides a frame from the sniffers of the interface that it leaves through.
		opts.ProbeFrom, opts.ProbeInterface, mode = ns, opts.Interface, Raw
	}
	if opts.Buffer == 0 {
		opts.Buffer = defaultBuffer
	}
	if opts.Label == "" {
		opts.Label = ns.Name + ":" + opts.Interface
	}
	s := &Sniffer{
		opts: opts, ns: ns, lab: l, done: make(chan struct{}),
		changed: make(chan struct{}), counts: map[packettest.Token]int{},
	}
	if err := s.open(); err != nil {
		return nil, fmt.Errorf("sniff %s: %w", opts.Label, err)
	}
	sender, err := opts.ProbeFrom.OpenSender(opts.ProbeInterface, mode)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("sniff %s: control frames: %w", opts.Label, err), s.file.Close())
	}
	s.probe = sender
	go s.read()
	l.own(s)
	if err := s.Verify(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Sniffer) open() error {
	return s.ns.Do(func() error {
		index, err := ifindex(s.opts.Interface)
		if err != nil {
			return err
		}
		// Protocol 0 until bound: no frame of another interface is queued.
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return err
		}
		s.file = os.NewFile(uintptr(fd), "packet:"+s.opts.Label)
		for _, o := range []struct{ level, name, value int }{
			{unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, s.opts.Buffer},
			{unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1},
			{unix.SOL_PACKET, unix.PACKET_AUXDATA, 1},
		} {
			if err := unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil {
				_ = s.file.Close()
				return fmt.Errorf("socket option %d: %w", o.name, err)
			}
		}
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: index})
		if err != nil {
			_ = s.file.Close()
		}
		return err
	})
}

func htons(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}

// read runs until Close.
func (s *Sniffer) read() {
	defer close(s.done)
	raw, err := s.file.SyscallConn()
	if err != nil {
		s.fail(err)
		return
	}
	buf, oob := make([]byte, maxFrameSize), make([]byte, 256)
	for {
		var n, oobn, flags int
		var from unix.Sockaddr
		var rerr error
		err := raw.Read(func(fd uintptr) bool {
			n, oobn, flags, from, rerr = unix.Recvmsg(int(fd), buf, oob, 0)
			return !errors.Is(rerr, unix.EAGAIN)
		})
		switch {
		case err != nil:
			return // closed
		case errors.Is(rerr, unix.EINTR):
			continue
		case errors.Is(rerr, unix.ENETDOWN):
			s.fail(rerr) // reported once by the kernel; the socket goes on if the link comes back
			continue
		case rerr != nil:
			s.fail(rerr)
			return
		case flags&unix.MSG_TRUNC != 0:
			s.fail(fmt.Errorf("a frame of more than %d bytes was cut", len(buf)))
		}
		ll, ok := from.(*unix.SockaddrLinklayer)
		s.take(buf[:n], oob[:oobn], ok && ll.Pkttype == unix.PACKET_OUTGOING)
	}
}

func (s *Sniffer) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = errors.Join(s.err, err)
	s.wake()
}

// wake is called with mu held.
func (s *Sniffer) wake() {
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *Sniffer) take(data, oob []byte, out bool) {
	tokens := tokensIn(data)
	s.mu.Lock()
	defer s.mu.Unlock()
	if want := s.opts.Direction; want == Both || (want == Out) == out || s.onControl(tokens) {
		for _, t := range tokens {
			s.counts[t]++
		}
	} else {
		return
	}
	s.total++
	defer s.wake()
	if s.opts.Keep < 0 {
		return
	}
	f := Frame{Out: out, Data: bytes.Clone(data)}
	f.readControl(oob)
	s.frames = append(s.frames, f)
	s.kept += len(data)
	drop := 0
	for s.kept > s.opts.Keep && drop < len(s.frames) {
		s.kept -= len(s.frames[drop].Data)
		drop++
	}
	if drop > 0 {
		s.evicted += drop
		s.frames = slices.Delete(s.frames, 0, drop)
	}
}

// onControl lets control frames of Verify in, whatever their direction.
func (s *Sniffer) onControl(tokens []packettest.Token) bool {
	return len(tokens) == 1 && bytes.Equal(tokens[0][4:8], controlToken[4:8])
}

var controlToken = packettest.FixedToken("lab: control frame")

// readControl reads timestamp and VLAN tag. Source: packet(7), linux/if_packet.h struct tpacket_auxdata.
func (f *Frame) readControl(oob []byte) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return
	}
	for _, m := range msgs {
		switch {
		case m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SCM_TIMESTAMPNS && len(m.Data) >= 16:
			f.Time = time.Unix(int64(binary.NativeEndian.Uint64(m.Data)), int64(binary.NativeEndian.Uint64(m.Data[8:])))
		case m.Header.Level == unix.SOL_PACKET && m.Header.Type == unix.PACKET_AUXDATA && len(m.Data) >= 20:
			if binary.NativeEndian.Uint32(m.Data)&unix.TP_STATUS_VLAN_VALID != 0 {
				f.Tagged = true
				f.TCI = binary.NativeEndian.Uint16(m.Data[16:])
				f.TPID = binary.NativeEndian.Uint16(m.Data[18:])
			}
		}
	}
}

// tokensIn returns the distinct tokens in b.
func tokensIn(b []byte) []packettest.Token {
	var out []packettest.Token
	for {
		i := bytes.Index(b, []byte(packettest.TokenMagic))
		if i < 0 || len(b) < i+packettest.TokenSize {
			return out
		}
		t := packettest.Token(b[i:])
		if !slices.Contains(out, t) {
			out = append(out, t)
		}
		b = b[i+len(packettest.TokenMagic):]
	}
}

// Label names the sniffer.
func (s *Sniffer) Label() string { return s.opts.Label }

// Count returns how many frames carried t. Call Verify first: only then is a
// frame that was on the wire before surely counted.
func (s *Sniffer) Count(t packettest.Token) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.counts[t]
}

// Total returns how many frames there were, those of Verify included.
func (s *Sniffer) Total() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.total
}

// Frames returns the frames that are kept, oldest first, without those of
// Verify. The error says how many were not kept for want of room.
func (s *Sniffer) Frames() ([]Frame, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := slices.DeleteFunc(slices.Clone(s.frames), func(f Frame) bool { return s.onControl(tokensIn(f.Data)) })
	if s.evicted > 0 {
		return out, fmt.Errorf("sniffer %s: %d frames were not kept", s.opts.Label, s.evicted)
	}
	return out, nil
}

// Wait waits until t was counted at least n times, or ctx is done.
func (s *Sniffer) Wait(ctx context.Context, t packettest.Token, n int) error {
	for {
		s.mu.Lock()
		got, err, changed := s.counts[t], s.err, s.changed
		s.mu.Unlock()
		switch {
		case got >= n:
			return nil
		case err != nil:
			return fmt.Errorf("sniffer %s: %w", s.opts.Label, err)
		}
		select {
		case <-changed:
		case <-s.done:
			return fmt.Errorf("sniffer %s: %w", s.opts.Label, os.ErrClosed)
		case <-ctx.Done():
			return fmt.Errorf("sniffer %s: %d of %d frames with token %s: %w", s.opts.Label, got, n, t, ctx.Err())
		}
	}
}

// verifyTimeout bounds the wait for a control frame.
const verifyTimeout = 2 * time.Second

// Verify proves that the sniffer has seen every frame so far: it sends a
// control frame through the wire, waits until the sniffer counts it, and reads the kernel's count of frames it had no room for. An
// error means that a count of zero says nothing (L5).
func (s *Sniffer) Verify(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, verifyTimeout)
	defer cancel()
	t, fresh := controlToken, packettest.NewToken("")
	copy(t[8:], fresh[8:])
	frame := packettest.Build(packettest.Eth{
		// A multicast group of the bridge range is not forwarded by bridges.
		// Source: IEEE 802.1Q table 8-1.
		Dst: packettest.MAC{0x01, 0x80, 0xc2, 0, 0, 0x0e},
		Src: packettest.MAC{0x02, 'v', 'e', 'r', 'i', 'f'},
	}, t)
	if err := s.probe.Send(frame); err != nil {
		return fmt.Errorf("sniffer %s: control frame: %w", s.opts.Label, err)
	}
	if err := s.Wait(ctx, t, 1); err != nil {
		return fmt.Errorf("blind: %w", err)
	}
	drops, err := s.Drops()
	if err != nil {
		return err
	}
	if drops > 0 {
		return fmt.Errorf("sniffer %s: blind to %d frames: the buffer was full", s.opts.Label, drops)
	}
	return nil
}

// Drops returns how many frames the kernel could not queue for the sniffer since it started.
func (s *Sniffer) Drops() (int, error) {
	raw, err := s.file.SyscallConn()
	if err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var opErr error
	err = raw.Control(func(fd uintptr) {
		var st *unix.TpacketStats
		if st, opErr = unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS); opErr == nil {
			s.drops += int(st.Drops) // reading resets the kernel's count
		}
	})
	return s.drops, errors.Join(err, opErr)
}

// Close stops the sniffer. Counts and frames stay readable.
func (s *Sniffer) Close() error {
	err := s.file.Close()
	if errors.Is(err, os.ErrClosed) {
		err = nil
	}
	<-s.done
	s.lab.disown(s)
	return errors.Join(err, s.probe.Close())
}
