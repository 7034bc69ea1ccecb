//go:build linux

package attack

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"github.com/postern-dev/postern/internal/packet/packettest"
)

func transportAttacks() []attack {
	return []attack{
		{id: "PKT-06", off: absent, try: func(x *try) {
			x.deniedMaybe("IPv6 as IPv4", "malformed|source-address", func(tok packettest.Token) []byte {
				eth := x.pod.Eth()
				eth.Type = new(uint16(packettest.EtherTypeIPv4))
				return packettest.Build(eth, ipHeader(x.src(evil(1)), evil(1)), packettest.UDP{SrcPort: x.port(), DstPort: 443}, tok)
			})
			x.deniedMaybe("IPv4 as IPv6", "malformed|source-address", func(tok packettest.Token) []byte {
				eth := x.pod.Eth()
				eth.Type = new(uint16(packettest.EtherTypeIPv6))
				return packettest.Build(eth, ipHeader(x.src(evil(0)), evil(0)), packettest.UDP{SrcPort: x.port(), DstPort: 443}, tok)
			})
			for version := range uint8(16) {
				if version == 4 {
					continue
				}
				x.deniedMaybe(fmt.Sprintf("version %d", version), "malformed", func(tok packettest.Token) []byte {
					return x.v4(packettest.IPv4{Dst: evil(0), Version: new(version)}, packettest.UDP{SrcPort: x.port(), DstPort: 443}, tok)
				})
			}
			// What such frames are without the trick.
			x.denied("as it should be", isolation, func(tok packettest.Token) []byte { return x.udp(evil(0), 443, tok) })
		}},
		{id: "PKT-24", off: open, try: func(x *try) {
			for v := range 2 {
				for proto := range 256 {
					reason := isolation
					switch {
					case proto == 58 && v == 0, proto == 1 && v == 1:
						reason = "malformed" // the other family's
					case v == 1 && (proto == 0 || proto == 43 || proto == 44 || proto == 59 || proto == 60 || proto == 135 || proto == 139 || proto == 140):
						reason = extension + "|fragment"
					}
					x.denied(fmt.Sprintf("protocol %d %s", proto, family(v)), reason, func(tok packettest.Token) []byte {
						if proto == protoTCP || proto == protoUDP { // to a port of theirs that is not allowed
							to := netip.AddrPortFrom(web(v), deniedPort)
							return packettest.Simple(x.pod.MAC(), x.pod.GatewayMAC(), uint8(proto), netip.AddrPortFrom(x.src(web(v)), x.port()), to, tok[:])
						}
						return x.ip(web(v), packettest.Raw{Proto: uint8(proto)}, tok, packettest.Payload(make([]byte, 32)))
					})
					if proto == 0 || proto == 43 || proto == 44 || proto == 60 {
						x.maybe() // read as a header on the way
					}
				}
				for _, proto := range []uint8{132, 136, 33} { // with ports that are allowed for TCP and UDP
					x.denied(fmt.Sprintf("protocol %d with an allowed port %s", proto, family(v)), isolation, func(tok packettest.Token) []byte {
						return x.ip(web(v), packettest.Raw{Proto: proto, Data: []byte{15, 160, 19, 143, 0, 0, 0, 0, 0, 0, 0, 0}}, tok)
					})
				}
				tok := x.attackToken("UDP-Lite socket "+family(v), 1)
				if err := x.sendUDP(udpFrom{proto: unix.IPPROTO_UDPLITE}, web(v), controlPort, tok[:]); err != nil {
					// A kernel without it can't be asked by a socket; the frames above ask all the same.
					x.maybe()
					x.shots[len(x.shots)-1].packets = 0
				} else {
					x.expect(isolation, 1)
				}
			}
			for _, inner := range []packettest.Layer{packettest.IPv4{Src: x.src(evil(0)), Dst: evil(0)}, packettest.IPv6{Src: x.src(evil(1)), Dst: evil(1)}} {
				for v := range 2 {
					x.denied(fmt.Sprintf("%T in IP %s", inner, family(v)), isolation, func(tok packettest.Token) []byte {
						return x.ip(web(v), inner, packettest.UDP{SrcPort: 4000, DstPort: 443}, tok)
					})
					x.denied(fmt.Sprintf("%T in GRE %s", inner, family(v)), isolation, func(tok packettest.Token) []byte {
						return x.ip(web(v), packettest.GRE{}, inner, packettest.UDP{SrcPort: 4000, DstPort: 443}, tok)
					})
				}
			}
		}},
		{id: "PKT-41", off: open, try: func(x *try) {
			for v := range 2 {
				for flags := range 64 {
					f := uint8(flags)
					frame := func(tok packettest.Token) []byte { return x.tcp(web(v), controlPort, f, tok) }
					const open = packettest.SYN | packettest.ACK | packettest.FIN | packettest.RST
					switch {
					case f&open == packettest.SYN:
						x.allowed(fmt.Sprintf("flags %06b %s", flags, family(v)), frame)
					case f&packettest.SYN != 0 && f&(packettest.FIN|packettest.RST) != 0, f&(packettest.SYN|packettest.RST|packettest.ACK) == 0:
						x.denied(fmt.Sprintf("flags %06b %s", flags, family(v)), "tcp-flags", frame)
					default:
						x.denied(fmt.Sprintf("flags %06b %s", flags, family(v)), "no-flow", frame)
					}
				}
			}
		}},
		{id: "PKT-42", off: open, try: func(x *try) {
			for v := range 2 {
				for _, size := range []uint16{0, 1, 7, 8, 23, 25, 1500, 65535} {
					x.denied(fmt.Sprintf("UDP length %d of 24 %s", size, family(v)), "malformed", func(tok packettest.Token) []byte {
						return x.ip(web(v), packettest.UDP{SrcPort: x.port(), DstPort: controlPort, Length: new(size)}, tok)
					})
				}
				x.allowed("no checksum "+family(v), func(tok packettest.Token) []byte {
					return x.ip(web(v), packettest.UDP{SrcPort: x.port(), DstPort: controlPort, Checksum: new(uint16(0))}, tok)
				})
				for off := range uint8(5) {
					x.denied(fmt.Sprintf("TCP data offset %d %s", off, family(v)), "malformed", func(tok packettest.Token) []byte {
						return x.ip(web(v), packettest.TCP{SrcPort: x.port(), DstPort: controlPort, Flags: packettest.SYN, DataOffset: new(off)}, tok)
					})
				}
				x.denied("TCP data offset beyond the packet "+family(v), "malformed", func(tok packettest.Token) []byte {
					return x.ip(web(v), packettest.TCP{SrcPort: x.port(), DstPort: controlPort, Flags: packettest.SYN, DataOffset: new(uint8(15))}, tok)
				})
			}
		}},
		{id: "PKT-43", off: open, try: func(x *try) {
			for v := range 2 {
				tok := x.attackToken("ten segments in one buffer "+family(v), 10)
				if err := x.sendUDP(udpFrom{segment: 1000}, evil(v), 443, bytes.Repeat(filled(tok, 1000), 10)); err != nil {
					x.Fatal(err)
				}
				x.expect(isolation, 10) // counted as the packets that they would be
				tok = x.controlToken("ten segments " + family(v))
				if err := x.sendUDP(udpFrom{segment: 1000}, web(v), controlPort, bytes.Repeat(filled(tok, 1000), 10)); err != nil {
					x.Fatal(err)
				}
			}
		}},
		{id: "PKT-44", off: open, try: func(x *try) {
			for v := range 2 {
				tok := x.attackToken("MSG_ZEROCOPY "+family(v), 1)
				if err := x.sendUDP(udpFrom{zerocopy: true}, evil(v), 443, filled(tok, 8000)); err != nil {
					x.Fatal(err)
				}
				x.expect(isolation, 1)
				tok = x.controlToken("MSG_ZEROCOPY " + family(v))
				if err := x.sendUDP(udpFrom{zerocopy: true}, web(v), controlPort, filled(tok, 8000)); err != nil {
					x.Fatal(err)
				}
				tok = x.attackToken("splice "+family(v), 1)
				if err := x.splice(v, evilPort(v, 443), tok); err != nil {
					x.Fatal(err)
				}
				x.expect(isolation, 1)
			}
		}},
		{id: "PKT-51", off: open, try: func(x *try) {
			for v := range 2 {
				for _, mark := range []int{0x2000, 0xffffffff >> 1, 0x4000} {
					tok := x.attackToken(fmt.Sprintf("SO_MARK %#x %s", mark, family(v)), 1)
					if err := x.sendUDP(udpFrom{mark: mark}, evil(v), 443, tok[:]); err != nil {
						x.Fatal(err)
					}
					x.expect(isolation, 1)
				}
			}
		}},
	}
}

// splice sends the content of a pipe, whose pages the socket takes over.
func (x *try) splice(v int, to unix.Sockaddr, tok packettest.Token) error {
	return x.pod.Do(func() (err error) {
		fd, err := unix.Socket([]int{unix.AF_INET, unix.AF_INET6}[v], unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, unix.Close(fd)) }()
		if err := unix.Connect(fd, to); err != nil {
			return err
		}
		r, w, err := os.Pipe()
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, r.Close(), w.Close()) }()
		if _, err := w.Write(filled(tok, 4000)); err != nil {
			return err
		}
		_, err = unix.Splice(int(r.Fd()), nil, fd, nil, 4000, 0)
		return err
	})
}

func evilPort(v int, port uint16) unix.Sockaddr { return sockaddr(evil(v), port, 0) }
