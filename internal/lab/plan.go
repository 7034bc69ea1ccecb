package lab

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
)

// The wire between the nodes and the outside.
var (
	wire4    = netip.MustParsePrefix("172.31.0.0/24")
	wire6    = netip.MustParsePrefix("fd00:172:31::/64")
	outside4 = netip.MustParseAddr("172.31.0.1")
	outside6 = netip.MustParseAddr("fd00:172:31::1")
	// cluster4 and cluster6 hold the default PodCIDRs of every node.
	cluster4 = netip.MustParsePrefix("10.244.0.0/16")
	cluster6 = netip.MustParsePrefix("fd00:10:244::/48")
	// service4 and service6 are where cluster IPs are allocated from.
	service4 = netip.MustParseAddr("10.96.1.0")
	service6 = netip.MustParseAddr("fd00:10:96::1:0")
)

// podInterface is the name of a pod's interface, as every CNI has it.
const podInterface = "eth0"

// wireInterface is a node's interface towards the outside, and bridgeInterface its bridge for pods.
const (
	wireInterface   = "eth0"
	bridgeInterface = "cni0"
)

func podCIDRs(node int) []netip.Prefix {
	return []netip.Prefix{
		netip.MustParsePrefix(fmt.Sprintf("10.244.%d.0/24", node)),
		netip.MustParsePrefix(fmt.Sprintf("fd00:10:244:%d::/64", node)),
	}
}

// nodeIPs returns the addresses of node i, counted from 1, on the wire.
func nodeIPs(i int) []netip.Addr {
	return []netip.Addr{nth(wire4.Addr(), uint32(10+i)), nth(wire6.Addr(), uint32(10+i))}
}

// gateways returns the addresses that pods of a node route through: the first of each PodCIDR.
func gateways(cidrs []netip.Prefix) []netip.Addr {
	return []netip.Addr{nth(cidrs[0].Addr(), 1), nth(cidrs[1].Addr(), 1)}
}

// nth returns base+n.
func nth(base netip.Addr, n uint32) netip.Addr {
	if base.Is4() {
		b := base.As4()
		binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])+n)
		return netip.AddrFrom4(b)
	}
	b := base.As16()
	binary.BigEndian.PutUint64(b[8:], binary.BigEndian.Uint64(b[8:])+uint64(n))
	return netip.AddrFrom16(b)
}

// hostVeth names the host side of a pod's veth: "pl" and 8 hexadecimal digits
// of the pod's name, within the kernel's 15 characters.
func hostVeth(namespace, name string) string {
	h := sha256.Sum256([]byte(namespace + "/" + name))
	return "pl" + hex.EncodeToString(h[:4])
}

// mac returns a locally administered unicast address for an interface of a place of the lab.
func mac(lab, place, ifname string) net.HardwareAddr {
	h := sha256.Sum256([]byte(lab + "\x00" + place + "\x00" + ifname))
	h[0] = h[0]&^0x03 | 0x02
	return h[:6:6]
}

// newUID returns a random UID in the form the API server gives them. Source: RFC 9562 section 5.4.
func newUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails since Go 1.24
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// allocate returns the lowest free pod addresses of a node: the same number in
// both families, counted from 2, so that 10.244.1.5 goes with fd00:10:244:1::5.
func allocate(cidrs []netip.Prefix, used map[netip.Addr]bool) ([]netip.Addr, error) {
	hosts := uint32(1)<<(32-cidrs[0].Bits()) - 1 // the last one is the broadcast address
	for n := uint32(2); n < hosts; n++ {
		v4, v6 := nth(cidrs[0].Addr(), n), nth(cidrs[1].Addr(), n)
		if !used[v4] && !used[v6] {
			return []netip.Addr{v4, v6}, nil
		}
	}
	return nil, fmt.Errorf("%s: %w", cidrs[0], ErrExhausted)
}

// matches reports whether labels hold everything of selector; a nil selector matches nothing.
func matches(selector, labels map[string]string) bool {
	if selector == nil {
		return false
	}
	for k, v := range selector {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}
