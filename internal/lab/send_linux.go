package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// SendMode is the way a raw frame takes into the kernel. Names are those of the
// attack suite's verbs.
type SendMode int

// Ways to send.
const (
	// Raw is sendto(2) on an AF_PACKET socket.
	Raw SendMode = iota
	// Ring is PACKET_TX_RING: on the way only the Ethernet header is in the
	// linear part of the buffer, the rest is in page fragments.
	Ring
	// Bypass is PACKET_QDISC_BYPASS: past the sending side's tc and queues.
	Bypass
	// Offload is PACKET_VNET_HDR: the frame begins with an OffloadHeader.
	Offload
)

// OffloadHeader is a struct virtio_net_hdr that leaves a checksum for the device
// to fill in: the sum from byte start of the frame on, written offset bytes
// behind. Source: linux/virtio_net.h; VIRTIO_NET_HDR_F_NEEDS_CSUM.
func OffloadHeader(start, offset uint16) []byte {
	h := make([]byte, offloadHeader)
	h[0] = 1
	binary.NativeEndian.PutUint16(h[6:], start)
	binary.NativeEndian.PutUint16(h[8:], offset)
	return h
}

const offloadHeader = 10

// String returns the attack suite's verb.
func (m SendMode) String() string {
	switch m {
	case Ring:
		return "ring"
	case Bypass:
		return "bypass"
	case Offload:
		return "offload"
	case Raw:
	}
	return "raw"
}

// Shape of the transmit ring: frames of 64 KiB, so that any that the link's MTU
// admits fits. Source: packet_mmap.rst; data starts after the aligned header.
const (
	ringFrames    = 16
	ringFrameSize = 1 << 16
	ringData      = 32 // TPACKET_ALIGN(sizeof(struct tpacket2_hdr))
)

// Sender sends frames of any content from one interface. It is safe for concurrent use.
type Sender struct {
	mode SendMode
	addr unix.SockaddrLinklayer

	mu   sync.Mutex
	fd   int
	ring []byte
	next int
}

// OpenSender opens a sender on an interface of the namespace. In a pod that takes CAP_NET_RAW.
func (n *Namespace) OpenSender(ifname string, mode SendMode) (*Sender, error) {
	s := &Sender{mode: mode, fd: -1}
	err := n.Do(func() error {
		index, err := ifindex(ifname)
		if err != nil {
			return err
		}
		// Protocol 0: the socket receives nothing.
		if s.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		s.addr = unix.SockaddrLinklayer{Ifindex: index, Halen: 6}
		switch mode {
		case Bypass:
			return unix.SetsockoptInt(s.fd, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1)
		case Ring:
			return s.mapRing()
		case Offload:
			return unix.SetsockoptInt(s.fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1)
		case Raw:
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("sender on %s of %s: %w", ifname, n.Name, err), s.Close())
	}
	return s, nil
}

func (s *Sender) mapRing() error {
	if err := unix.SetsockoptInt(s.fd, unix.SOL_PACKET, unix.PACKET_VERSION, unix.TPACKET_V2); err != nil {
		return err
	}
	req := unix.TpacketReq{
		Block_size: ringFrameSize, Block_nr: ringFrames,
		Frame_size: ringFrameSize, Frame_nr: ringFrames,
	}
	if err := unix.SetsockoptTpacketReq(s.fd, unix.SOL_PACKET, unix.PACKET_TX_RING, &req); err != nil {
		return err
	}
	if err := unix.Bind(s.fd, &s.addr); err != nil {
		return err
	}
	var err error
	s.ring, err = unix.Mmap(s.fd, 0, ringFrames*ringFrameSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	return err
}

// Send sends one frame as it is, from the Ethernet header on.
func (s *Sender) Send(frame []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fd < 0 {
		return os.ErrClosed
	}
	if s.mode == Ring {
		return s.sendRing(frame)
	}
	if s.mode == Offload {
		copy(s.addr.Addr[:6], frame[min(offloadHeader, len(frame)):])
	} else {
		copy(s.addr.Addr[:6], frame)
	}
	var err error
	for range 50 {
		err = unix.Sendto(s.fd, frame, 0, &s.addr)
		if !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.ENOBUFS) {
			return err
		}
		time.Sleep(time.Millisecond) // a queue that is full, or a link that is down
	}
	return err
}

// sendRing fills one slot and has the kernel send it. The slot's status word is
// the kernel's again when send returns, as the socket is blocking.
func (s *Sender) sendRing(frame []byte) error {
	if len(frame) > ringFrameSize-ringData {
		return fmt.Errorf("frame of %d bytes: %w", len(frame), unix.EMSGSIZE)
	}
	slot := s.ring[s.next*ringFrameSize:][:ringFrameSize]
	s.next = (s.next + 1) % ringFrames
	copy(slot[ringData:], frame)
	binary.NativeEndian.PutUint32(slot[4:], uint32(len(frame))) // tp_len
	binary.NativeEndian.PutUint32(slot, unix.TP_STATUS_SEND_REQUEST)
	err := unix.Send(s.fd, nil, 0)
	if binary.NativeEndian.Uint32(slot) == unix.TP_STATUS_WRONG_FORMAT {
		err = errors.Join(err, unix.EINVAL)
	}
	return err
}

// Close closes the sender.
func (s *Sender) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fd < 0 {
		return nil
	}
	var err error
	if s.ring != nil {
		err = unix.Munmap(s.ring)
		s.ring = nil
	}
	err = errors.Join(err, unix.Close(s.fd))
	s.fd = -1
	return err
}

// Send sends frames from the pod's interface in one way.
func (p *Pod) Send(mode SendMode, frames ...[]byte) error {
	s, err := p.OpenSender(podInterface, mode)
	if err != nil {
		return err
	}
	for _, f := range frames {
		if err := s.Send(f); err != nil {
			return errors.Join(fmt.Errorf("%s send from pod %s: %w", mode, p.Spec.Key(), err), s.Close())
		}
	}
	return s.Close()
}
