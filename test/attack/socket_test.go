//go:build linux

package attack

import (
	"errors"
	"net/netip"

	"golang.org/x/sys/unix"
)

const ifaNoDAD = unix.IFA_F_NODAD

// udpFrom says how a datagram socket of the pod is made.
type udpFrom struct {
	local    string // source address
	port     uint16
	proto    int    // 0: UDP
	options  []byte // IP_OPTIONS
	mark     int    // SO_MARK
	segment  int    // UDP_SEGMENT
	zerocopy bool
	zone     bool // the destination is link-local, on eth0
	uid      int  // user; 0 is root
}

// sendUDP sends one datagram through a socket, as a process without any capability can.
func (x *try) sendUDP(how udpFrom, to netip.Addr, port uint16, data []byte) error {
	return x.pod.Do(func() (err error) {
		if how.uid != 0 { // of this thread alone, which is thrown away
			if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(how.uid), uintptr(how.uid), uintptr(how.uid)); errno != 0 {
				return errno
			}
		}
		domain := unix.AF_INET
		if to.Is6() {
			domain = unix.AF_INET6
		}
		fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, how.proto)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, unix.Close(fd)) }()
		if how.local != "" || how.port != 0 {
			a := netip.IPv6Unspecified()
			if to.Is4() {
				a = netip.IPv4Unspecified()
			}
			if how.local != "" {
				a = netip.MustParseAddr(how.local)
			}
			if err := unix.Bind(fd, sockaddr(a, how.port, 0)); err != nil {
				return err
			}
		}
		if how.options != nil {
			if err := unix.SetsockoptString(fd, unix.IPPROTO_IP, unix.IP_OPTIONS, string(how.options)); err != nil {
				return err
			}
		}
		if how.mark != 0 {
			if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, how.mark); err != nil {
				return err
			}
		}
		if how.segment != 0 {
			if err := unix.SetsockoptInt(fd, unix.SOL_UDP, unix.UDP_SEGMENT, how.segment); err != nil {
				return err
			}
		}
		flags := 0
		if how.zerocopy {
			if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ZEROCOPY, 1); err != nil {
				return err
			}
			flags = unix.MSG_ZEROCOPY
		}
		zone := uint32(0)
		if how.zone {
			zone = eth0Index(fd)
		}
		return unix.Sendto(fd, data, flags, sockaddr(to, port, zone))
	})
}

// eth0Index is the index of eth0 in the namespace that fd is of.
func eth0Index(fd int) uint32 {
	req, err := unix.NewIfreq("eth0")
	if err != nil {
		return 0
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, req); err != nil {
		return 0
	}
	return req.Uint32()
}

func sockaddr(a netip.Addr, port uint16, zone uint32) unix.Sockaddr {
	if a.Is4() {
		return &unix.SockaddrInet4{Addr: a.As4(), Port: int(port)}
	}
	return &unix.SockaddrInet6{Addr: a.As16(), Port: int(port), ZoneId: zone}
}
