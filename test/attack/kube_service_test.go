//go:build linux

package attack

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/postern-dev/postern/internal/lab"
	"github.com/postern-dev/postern/internal/packet/packettest"
)

func serviceAttacks() []attack {
	return []attack{
		{id: "K8S-14", off: open, try: func(x *try) {
			cart, ok := x.service("shop/cart"), x.service("shop/open")
			for v := range 2 {
				x.denied("cluster IP of a denied backend "+family(v), placesIsolation, func(tok packettest.Token) []byte { return x.udp(cart.ClusterIPs[v], 7, tok) }, everyMode...)
				x.denied("TCP to it "+family(v), placesIsolation, func(tok packettest.Token) []byte {
					return x.tcp(cart.ClusterIPs[v], 7, packettest.SYN, tok)
				})
				x.allowed("cluster IP of an allowed backend "+family(v), func(tok packettest.Token) []byte { return x.udp(ok.ClusterIPs[v], 7, tok) }, everyMode...)
				x.denied("the backend itself "+family(v), placesIsolation, func(tok packettest.Token) []byte { return x.udp(x.w.pod("shop/cart").IPs[v], 7, tok) })
			}
			x.mixed()
		}},
		{id: "K8S-16", off: open, try: (*try).capturedAddress},
		{id: "K8S-16d", off: open, try: func(x *try) {
			if x.on {
				x.w.write("captor.yaml", captor([2]netip.Addr{evil(0), evil(1)}, x.w.pod("shop/open")))
			}
			for v := range 2 {
				port := x.port()
				x.fromOutside(evil(v), x.pod.IP(evil(v)), packettest.UDP{SrcPort: 7, DstPort: port}, packettest.Payload("knock"))
				x.expect("networkpolicy shop/deny-all ingress isolation", 1)
				x.denied("the answer "+family(v), placesIsolation, func(tok packettest.Token) []byte {
					return x.ip(evil(v), packettest.UDP{SrcPort: port, DstPort: 7}, tok)
				}, everyMode...)
			}
			x.settle()
			if x.on {
				x.w.remove("captor.yaml")
			}
		}},
		{id: "K8S-16e", off: open, try: func(x *try) {
			if x.on {
				x.w.write("evil.yaml", evilToo)
			}
			ports := [2]uint16{x.port(), x.port()}
			for v := range 2 {
				x.allowed("while it is allowed "+family(v), func(tok packettest.Token) []byte {
					return x.ip(evil(v), packettest.UDP{SrcPort: ports[v], DstPort: 7}, tok)
				})
			}
			x.settle()
			if x.on {
				x.w.write("captor.yaml", captor([2]netip.Addr{evil(0), evil(1)}, x.w.pod("shop/open")))
				x.w.remove("evil.yaml")
			}
			for v := range 2 {
				x.denied("when it is no more "+family(v), placesIsolation, func(tok packettest.Token) []byte {
					return x.ip(evil(v), packettest.UDP{SrcPort: ports[v], DstPort: 7}, tok)
				}, everyMode...)
			}
			x.settle()
			if x.on {
				x.w.remove("captor.yaml")
			}
		}},
		{id: "K8S-18", off: open, try: func(x *try) {
			n := x.w.node
			cart := x.w.pod("shop/cart")
			for v := range 2 {
				// The node's address is allowed, the pod behind its port is not.
				x.denied("node port of a denied backend "+family(v), placesIsolation, func(tok packettest.Token) []byte { return x.udp(n.IPs[v], 30007, tok) }, everyMode...)
				x.denied("node port by TCP "+family(v), placesIsolation, func(tok packettest.Token) []byte {
					return x.tcp(n.IPs[v], 30080, packettest.SYN, tok)
				})
				x.allowed("another port of the node "+family(v), func(tok packettest.Token) []byte { return x.udp(n.IPs[v], 7, tok) })
			}
			// A host port, by rules that the agent is not told of.
			undo := x.dnat(netip.AddrPortFrom(n.IPs[0], 8007), netip.AddrPortFrom(cart.IPs[0], 7))
			x.denied("host port of a denied pod", placesIsolation, func(tok packettest.Token) []byte { return x.udp(n.IPs[0], 8007, tok) }, everyMode...)
			x.settle()
			undo()
			undo = x.dnat(netip.AddrPortFrom(n.IPs[0], 8008), netip.AddrPortFrom(evil(0), 443))
			x.denied("a node's port that leads outside", placesIsolation, func(tok packettest.Token) []byte { return x.udp(n.IPs[0], 8008, tok) })
			x.settle()
			undo()
		}},
		{id: "K8S-22", off: open, try: func(x *try) {
			// A node-local resolver's address is the node's as any other.
			local := []netip.Addr{netip.MustParseAddr("169.254.20.10"), netip.MustParseAddr("fd00:20::10")}
			h, err := x.w.node.Netlink()
			if err != nil {
				x.Fatal(err)
			}
			defer h.Close()
			lo, err := h.LinkByName("lo")
			if err != nil {
				x.Fatal(err)
			}
			for v, a := range local {
				addr, err := netlink.ParseAddr(netip.PrefixFrom(a, a.BitLen()).String())
				if err != nil {
					x.Fatal(err)
				}
				if err := h.AddrAdd(lo, addr); err != nil {
					x.Fatal(err)
				}
				defer func() {
					if err := h.AddrDel(lo, addr); err != nil {
						x.Error(err)
					}
				}()
				for _, port := range []uint16{53, 7, 9253} {
					x.denied(fmt.Sprintf("udp/%d %s", port, family(v)), placesIsolation, func(tok packettest.Token) []byte { return x.udp(a, port, tok) })
					x.denied(fmt.Sprintf("tcp/%d %s", port, family(v)), placesIsolation, func(tok packettest.Token) []byte { return x.tcp(a, port, packettest.SYN, tok) })
				}
			}
			x.settle()
		}},
	}
}

func (x *try) service(key string) lab.ServiceSpec {
	x.Helper()
	s, err := x.w.lab.Service(key)
	if err != nil {
		x.Fatal(err)
	}
	return s
}

// mixed sends to a Service of which one backend is allowed: none may reach the other.
func (x *try) mixed() {
	s := x.service("shop/mixed")
	var toCart *lab.Sniffer
	for _, sn := range x.w.tap.Sniffers() {
		if sn.Label() == "shop/cart:eth0" {
			toCart = sn
		}
	}
	const n = 12
	reachedOpen, reachedCart := 0, 0
	for v := range 2 {
		var toks []packettest.Token
		for range n {
			tok := packettest.NewToken("mixed")
			toks = append(toks, tok)
			x.send(lab.Raw, x.udp(s.ClusterIPs[v], 7, tok))
		}
		time.Sleep(50 * time.Millisecond)
		if err := x.w.tap.Verify(x.Context()); err != nil {
			x.Fatal(err)
		}
		for _, tok := range toks {
			switch {
			case toCart.Count(tok) > 0:
				reachedCart++
			case len(x.w.seen(tok)) > 0:
				reachedOpen++
			}
		}
	}
	x.tried += n // half of what was sent is for the other one
	x.leaked += reachedCart
	if x.on {
		x.expect(placesIsolation, n)
		if reachedCart > 0 {
			x.Errorf("%d packets for the Service reached its denied backend", reachedCart)
		}
	}
	if reachedOpen != n {
		x.Errorf("%d of %d packets for the Service reached its allowed backend, want half", reachedOpen, 2*n)
	}
}

// captor is a Service with these external addresses and this backend.
func captor(external [2]netip.Addr, backend *lab.Pod) string {
	var m strings.Builder
	fmt.Fprintf(&m, `
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: captor}
spec:
  clusterIPs: [10.96.7.7, "fd00:10:96::7:7"]
  clusterIP: 10.96.7.7
  externalIPs: [%s, %q]
  ports: [{name: echo, protocol: UDP, port: 7, targetPort: 7}, {name: web, protocol: UDP, port: 5008, targetPort: 7}]
`, external[0], external[1].String())
	for v, fam := range []string{"IPv4", "IPv6"} {
		fmt.Fprintf(&m, `---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {namespace: shop, name: captor-%d, labels: {kubernetes.io/service-name: captor}}
addressType: %s
ports: [{name: echo, protocol: UDP, port: 7}, {name: web, protocol: UDP, port: 7}]
endpoints: [{addresses: [%q], conditions: {ready: true, serving: true, terminating: false}}]
`, v, fam, backend.IPs[v].String())
	}
	return m.String()
}

// capturedAddress has a Service take over an address outside, which its author
// may not reach, or which the pod may reach while the backend may not be.
func (x *try) capturedAddress() {
	w := x.w
	open, cart := w.pod("shop/open"), w.pod("shop/cart")
	// The agent knows the Service, the node does not translate it (yet, or ever).
	if x.on {
		w.write("captor.yaml", captor([2]netip.Addr{evil(0), evil(1)}, open))
	}
	for v := range 2 {
		for _, port := range []uint16{7, 5008} {
			x.denied(fmt.Sprintf("a Service's external address that nobody translates, port %d %s", port, family(v)), placesIsolation, func(tok packettest.Token) []byte {
				return x.udp(evil(v), port, tok)
			}, everyMode...)
		}
	}
	x.settle()
	// The node translates an allowed address to a denied pod; the agent knows, or does not.
	for _, known := range []bool{false, true} {
		if x.on {
			if known {
				w.write("captor.yaml", captor([2]netip.Addr{web(0), web(1)}, cart))
			} else {
				w.remove("captor.yaml")
				time.Sleep(300 * time.Millisecond)
			}
		}
		_, err := w.lab.SetService(lab.ServiceSpec{
			Namespace: "shop", Name: "captor", Backends: cart.IPs, ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.7.7"), netip.MustParseAddr("fd00:10:96::7:7")},
			ExternalIPs: []netip.Addr{web(0), web(1)}, Ports: []lab.ServicePort{{Name: "web", Protocol: "UDP", Port: 5008, TargetPort: 7}},
		})
		if err != nil {
			x.Fatal(err)
		}
		for v := range 2 {
			x.denied(fmt.Sprintf("an allowed address that a Service captured, agent knows %v %s", known, family(v)), placesIsolation, func(tok packettest.Token) []byte {
				return x.udp(web(v), 5008, tok)
			}, everyMode...)
		}
		x.settle()
		if err := w.lab.DeleteService("shop/captor"); err != nil {
			x.Fatal(err)
		}
	}
	if x.on {
		w.remove("captor.yaml")
		time.Sleep(300 * time.Millisecond)
	}
}

// dnat adds a rule to the node as a host port's, and returns what removes it.
func (x *try) dnat(from, to netip.AddrPort) func() {
	x.Helper()
	c, err := x.w.node.Nftables()
	if err != nil {
		x.Fatal(err)
	}
	t := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "hostports"})
	chain := c.AddChain(&nftables.Chain{Table: t, Name: "pre", Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest})
	c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 4},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: from.Addr().AsSlice()},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(from.Port())},
		&expr.Immediate{Register: 1, Data: to.Addr().AsSlice()},
		&expr.Immediate{Register: 2, Data: binaryutil.BigEndian.PutUint16(to.Port())},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1, RegProtoMin: 2},
	}})
	if err := c.Flush(); err != nil {
		x.Fatal(err)
	}
	return func() {
		c.DelTable(t)
		if err := c.Flush(); err != nil {
			x.Error(err)
		}
		_ = c.CloseLasting()
	}
}
