//go:build linux

package attack

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/postern-dev/postern/internal/lab"
	"github.com/postern-dev/postern/internal/packet/packettest"
)

// offloadAttacks leave bytes of an allowed packet for a device to write, behind
// every verdict: a checksum is put where the sender says, of bytes that it chose.
func offloadAttacks() []attack {
	return []attack{{id: "PKT-53", off: open, try: func(x *try) {
		x.nodeChecksums(false)
		defer x.nodeChecksums(true)
		for v := range 2 {
			l4 := uint16([]int{34, 54}[v])
			for _, place := range []struct {
				what          string
				start, offset uint16
			}{
				{"the destination port", l4, 2},
				{"the source port", l4, 0},
				{"the destination address", l4 - 4, 0},
				{"the length", l4, 4},
				{"the port, from the addresses on", l4 - 8, 10},
				{"a place that is half the checksum's", l4, 7},
			} {
				x.denied(fmt.Sprintf("into %s %s", place.what, family(v)), "malformed", func(tok packettest.Token) []byte {
					return append(lab.OffloadHeader(place.start, place.offset), x.udp(web(v), controlPort, packettest.Payload{1, 2}, tok)...)
				}, lab.Offload)
			}
			x.allowed("where the checksum is "+family(v), func(tok packettest.Token) []byte {
				return append(lab.OffloadHeader(l4, 6), x.udp(web(v), controlPort, tok)...)
			}, lab.Offload)
			x.allowed("behind the header, as of a tunnel "+family(v), func(tok packettest.Token) []byte {
				return append(lab.OffloadHeader(l4+8, 2), x.udp(web(v), controlPort, packettest.Payload(make([]byte, 8)), tok)...)
			}, lab.Offload)
		}
		x.settle()
	}}}
}

// nodeChecksums has the node's interface to the outside compute checksums itself, or the kernel before it.
func (x *try) nodeChecksums(device bool) {
	x.Helper()
	err := x.w.node.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer func() { _ = unix.Close(fd) }()
		value := struct{ cmd, data uint32 }{cmd: 0x17} // ETHTOOL_STXCSUM, linux/ethtool.h
		if device {
			value.data = 1
		}
		var req struct {
			name [16]byte
			data unsafe.Pointer
			_    [16]byte
		}
		copy(req.name[:], x.w.node.WireInterface())
		req.data = unsafe.Pointer(&value)                                                                                          //nolint:gosec // the kernel wants a pointer in the request
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req))); errno != 0 { //nolint:gosec // as above
			return errno
		}
		return nil
	})
	if err != nil {
		x.Fatal(err)
	}
}
