package policy_test

import (
	"net/netip"

	"github.com/postern-dev/postern/internal/packet"
)

// tuple returns a flow-opening packet; invalid text gives an invalid address.
func tuple(protocol, src, dst string, port uint16) packet.Tuple {
	p, _ := packet.ParseProtocol(protocol)
	a, _ := netip.ParseAddr(src)
	b, _ := netip.ParseAddr(dst)
	return packet.Tuple{Protocol: p, Src: a, Dst: b, SrcPort: 40000, DstPort: port}
}
