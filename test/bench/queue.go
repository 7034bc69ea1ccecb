//go:build linux

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"

	"github.com/postern-dev/postern/internal/datapath/mapstate"
	"github.com/postern-dev/postern/internal/lab"
	"github.com/postern-dev/postern/internal/packet"
	"github.com/postern-dev/postern/internal/policy"
)

// Numbers of the queue's messages. Source: include/uapi/linux/netfilter/nfnetlink_queue.h.
const (
	nfqPacket  = 0
	nfqVerdict = 1
	nfqConfig  = 2

	nfqaPacketHeader  = 1
	nfqaVerdictHeader = 2
	nfqaPayload       = 10

	nfqaConfigCommand = 1
	nfqaConfigParams  = 2
	nfqaConfigMaxLen  = 3

	nfqBind       = 1
	nfqCopyPacket = 2
	nfqCopyBytes  = 128

	nfDrop   = 0 // include/uapi/linux/netfilter.h
	nfAccept = 1

	netlinkHeader = 16
	nfgenHeader   = 4
)

// queue decides in user space about the first packet of each connection, with
// the same tables in memory as the kernel's programs have.
type queue struct {
	fd      int
	world   *mapstate.World
	ruleset uint32
	stop    atomic.Bool
	done    chan error
	out     []byte
	frame   []byte
}

// useQueue enforces the policy by verdicts in user space; the function that it
// returns ends that.
func useQueue(l *lab.Lab, c *policy.Compiled) (stop func() error, err error) {
	key, ip, node, err := ipPod(l, "shop/nfqueue")
	if err != nil {
		return nil, err
	}
	ids := uint32(64)
	q := &queue{world: mapstate.New(func(policy.RuleRef) uint32 { ids++; return ids }), done: make(chan error, 1), frame: make([]byte, 14+65536)}
	binary.BigEndian.PutUint16(q.frame[12:], uint16(packet.EtherTypeIPv4))
	u := mapstate.Update{Sets: map[policy.SetID]policy.SetDelta{}, RulesetsAdded: c.Rulesets, Topology: &mapstate.Topology{}}
	for id, content := range c.Sets {
		u.Sets[id] = policy.SetDelta{Add: content}
	}
	if _, err := q.world.Apply(u); err != nil {
		return nil, err
	}
	if q.ruleset = q.world.RulesetID(c.Endpoints[key][policy.Egress]); q.ruleset == 0 {
		return nil, fmt.Errorf("no ruleset for %s", key)
	}
	if err := node.Do(q.open); err != nil {
		return nil, err
	}
	x, err := newNft(node, ip)
	if err == nil {
		// iptables' target, as iptables-nft would write it: not every kernel has the
		// queue expression. Info is struct xt_NFQ_info_v3: queue 0, of 1, no flags.
		info := xt.Unknown([]byte{0, 0, 0, 0, 0, 0, 0, 0})
		binary.NativeEndian.PutUint16(info[2:], 1)
		x.c.AddRule(&nftables.Rule{Table: x.table, Chain: x.chain, Exprs: []expr.Any{&expr.Target{Name: "NFQUEUE", Rev: 3, Info: &info}}})
		err = errors.Join(x.c.Flush(), x.c.CloseLasting())
	}
	if err != nil {
		return nil, errors.Join(err, unix.Close(q.fd))
	}
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		q.done <- q.serve()
	}()
	return func() error {
		q.stop.Store(true)
		return errors.Join(<-q.done, unix.Close(q.fd))
	}, nil
}

// open binds queue 0 of the namespace it is called in.
func (q *queue) open() error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return err
	}
	wait := unix.Timeval{Usec: 100_000}
	err = errors.Join(
		unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20),
		unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_NO_ENOBUFS, 1),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait),
	)
	q.fd = fd
	for _, a := range []struct {
		kind uint16
		data []byte
	}{
		{nfqaConfigCommand, []byte{nfqBind, 0, 0, unix.AF_INET}},
		{nfqaConfigParams, []byte{0, 0, 0, nfqCopyBytes, nfqCopyPacket}},
		{nfqaConfigMaxLen, []byte{0, 0, 0x40, 0}},
	} {
		if err == nil {
			err = q.configure(a.kind, a.data)
		}
	}
	if err != nil {
		return errors.Join(err, unix.Close(fd))
	}
	return nil
}

// message writes a request with one attribute into q.out.
func (q *queue) message(kind, flags, attr uint16, data []byte) {
	n := netlinkHeader + nfgenHeader + 4 + (len(data)+3)&^3
	q.out = append(q.out[:0], make([]byte, n)...)
	binary.NativeEndian.PutUint32(q.out, uint32(n))
	binary.NativeEndian.PutUint16(q.out[4:], unix.NFNL_SUBSYS_QUEUE<<8|kind)
	binary.NativeEndian.PutUint16(q.out[6:], unix.NLM_F_REQUEST|flags)
	binary.NativeEndian.PutUint16(q.out[20:], uint16(4+len(data)))
	binary.NativeEndian.PutUint16(q.out[22:], attr)
	copy(q.out[24:], data)
}

func (q *queue) configure(attr uint16, data []byte) error {
	q.message(nfqConfig, unix.NLM_F_ACK, attr, data)
	if err := unix.Sendto(q.fd, q.out, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	buf := make([]byte, 4096)
	n, _, err := unix.Recvfrom(q.fd, buf, 0)
	if err != nil {
		return err
	}
	if n < netlinkHeader+4 || binary.NativeEndian.Uint16(buf[4:]) != unix.NLMSG_ERROR {
		return fmt.Errorf("unexpected answer %x", buf[:n])
	}
	if code := int32(binary.NativeEndian.Uint32(buf[netlinkHeader:])); code != 0 {
		return unix.Errno(-code)
	}
	return nil
}

func (q *queue) serve() error {
	buf := make([]byte, 128<<10)
	for !q.stop.Load() {
		n, _, err := unix.Recvfrom(q.fd, buf, 0)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		for b := buf[:n]; len(b) >= netlinkHeader; {
			size := int(binary.NativeEndian.Uint32(b))
			if size < netlinkHeader+nfgenHeader || size > len(b) {
				return fmt.Errorf("message of %d bytes in %d", size, len(b))
			}
			if binary.NativeEndian.Uint16(b[4:]) == unix.NFNL_SUBSYS_QUEUE<<8|nfqPacket {
				if err := q.decide(b[netlinkHeader+nfgenHeader : size]); err != nil {
					return err
				}
			}
			b = b[min((size+3)&^3, len(b)):]
		}
	}
	return nil
}

// decide answers one packet.
func (q *queue) decide(attrs []byte) error {
	var id [4]byte
	var payload []byte
	for len(attrs) >= 4 {
		size := int(binary.NativeEndian.Uint16(attrs))
		if size < 4 || size > len(attrs) {
			return fmt.Errorf("attribute of %d bytes in %d", size, len(attrs))
		}
		switch binary.NativeEndian.Uint16(attrs[2:]) & 0x3fff {
		case nfqaPacketHeader:
			copy(id[:], attrs[4:size])
		case nfqaPayload:
			payload = attrs[4:size]
		}
		attrs = attrs[min((size+3)&^3, len(attrs)):]
	}
	verdict := [8]byte{3: nfDrop, 4: id[0], 5: id[1], 6: id[2], 7: id[3]}
	n := copy(q.frame[14:], payload)
	if p := packet.Read(q.frame[:14+n], packet.Hints{}); p.Fault == packet.FaultNone {
		if q.world.Lookup(q.ruleset, q.world.Class(p.Tuple.Dst), p.Tuple.Protocol, p.Tuple.DstPort)&mapstate.RuleForwarded != 0 {
			verdict[3] = nfAccept
		}
	}
	q.message(nfqVerdict, 0, nfqaVerdictHeader, verdict[:])
	return unix.Sendto(q.fd, q.out, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
}
