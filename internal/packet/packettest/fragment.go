package packettest

import (
	"encoding/binary"
	"errors"
)

// ErrCut is returned by Cut for a frame it can't cut or a place that is not a
// multiple of 8 bytes inside the datagram.
var ErrCut = errors.New("can't cut this frame there")

// Cut splits the datagram of an untagged frame into fragments at the given
// places, in bytes from the start of what follows the IPv4 header or the IPv6
// fixed header, ascending, each a multiple of 8. The fragments are in order; a
// test may send them in any other. IPv4 options are copied to each fragment.
// IPv6 extension headers are cut like the rest: they belong to the fragmentable
// part here, which RFC 8200 allows for destination options only.
func Cut(frame []byte, id uint32, at ...int) ([][]byte, error) {
	if len(frame) < 34 {
		return nil, ErrCut
	}
	link, ip := frame[:14], frame[14:]
	switch binary.BigEndian.Uint16(frame[12:]) {
	case EtherTypeIPv4:
		hlen := int(ip[0]&0xf) * 4
		total := int(binary.BigEndian.Uint16(ip[2:]))
		if hlen < 20 || total < hlen || total > len(ip) {
			return nil, ErrCut
		}
		return cut(ip[hlen:total], at, func(off int, piece []byte, more bool) []byte {
			h := append(append([]byte{}, link...), ip[:hlen]...)
			v4 := h[14:]
			binary.BigEndian.PutUint16(v4[2:], uint16(hlen+len(piece)))
			binary.BigEndian.PutUint16(v4[4:], uint16(id))
			f := uint16(off / 8)
			if more {
				f |= 0x2000
			}
			binary.BigEndian.PutUint16(v4[6:], f)
			v4[10], v4[11] = 0, 0
			binary.BigEndian.PutUint16(v4[10:], checksum(0, v4[:hlen]))
			return append(h, piece...)
		})
	case EtherTypeIPv6:
		if len(ip) < 40 || len(ip) < 40+int(binary.BigEndian.Uint16(ip[4:])) {
			return nil, ErrCut
		}
		data := ip[40 : 40+int(binary.BigEndian.Uint16(ip[4:]))]
		return cut(data, at, func(off int, piece []byte, more bool) []byte {
			h := append(append([]byte{}, link...), ip[:40]...)
			v6 := h[14:]
			binary.BigEndian.PutUint16(v6[4:], uint16(8+len(piece)))
			v6[6] = 44
			h = append(h, Fragment{
				Next: new(ip[6]), Offset: uint16(off / 8), MoreFragments: more, ID: id,
			}.marshal(pseudo{}, nil)...)
			return append(h, piece...)
		})
	}
	return nil, ErrCut
}

// cut calls make for each piece of data between the places in at.
func cut(data []byte, at []int, make func(off int, piece []byte, more bool) []byte) ([][]byte, error) {
	var out [][]byte
	from := 0
	for _, to := range append(append([]int{}, at...), len(data)) {
		last := to == len(data) && len(out) == len(at)
		if to <= from || to > len(data) || (!last && to%8 != 0) {
			return nil, ErrCut
		}
		out = append(out, make(from, data[from:to], !last))
		from = to
	}
	return out, nil
}
