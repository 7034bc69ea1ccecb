package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// natTable is the nftables table of a node's Services and masquerade.
const natTable = "lab-nat"

// masqueradeMark is the mark bit that kube-proxy uses for traffic to masquerade.
// Source: kube-proxy's --iptables-masquerade-bit, default 14.
const masqueradeMark = 1 << 14

// placeService gives a service addresses and makes it known, without rules yet.
func (l *Lab) placeService(s *ServiceSpec) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(s.ClusterIPs) == 0 {
		used := map[netip.Addr]bool{}
		for _, o := range l.services {
			for _, a := range o.ClusterIPs {
				used[a] = true
			}
		}
		for n := uint32(1); n < 255 && len(s.ClusterIPs) == 0; n++ {
			if a, b := nth(service4, n), nth(service6, n); !used[a] && !used[b] {
				s.ClusterIPs = []netip.Addr{a, b}
			}
		}
		if len(s.ClusterIPs) == 0 {
			return fmt.Errorf("service %s: %w", s.Key(), ErrExhausted)
		}
	}
	if err := l.saveService(s); err != nil {
		return err
	}
	l.services[s.Key()] = s
	l.zone.setService(s.Key(), s.ClusterIPs)
	return nil
}

// SetService adds or replaces a service and returns it filled in. The rules are
// replaced in one step; connections that are tracked stay with their backend.
func (l *Lab) SetService(spec ServiceSpec) (ServiceSpec, error) {
	if err := spec.normalise(); err != nil {
		return spec, fmt.Errorf("service spec: %w", err)
	}
	if len(spec.ClusterIPs) == 0 {
		if old, err := l.Service(spec.Key()); err == nil {
			spec.ClusterIPs = old.ClusterIPs
		}
	}
	if err := l.placeService(&spec); err != nil {
		return spec, err
	}
	return spec, l.applyServices()
}

// SetBackends makes a service lead to these addresses and to no selected pod.
func (l *Lab) SetBackends(key string, backends ...netip.Addr) error {
	s, err := l.Service(key)
	if err != nil {
		return err
	}
	s.Selector, s.Backends = nil, slices.Clone(backends)
	_, err = l.SetService(s)
	return err
}

// DeleteService removes a service and its rules.
func (l *Lab) DeleteService(key string) error {
	l.mu.Lock()
	s := l.services[key]
	delete(l.services, key)
	l.mu.Unlock()
	if s == nil {
		return fmt.Errorf("service %q: %w", key, ErrNotFound)
	}
	l.zone.setService(key, nil)
	err := os.Remove(filepath.Join(l.dir, "services", s.Namespace+"_"+s.Name+".json"))
	return errors.Join(err, l.applyServices())
}

// Service returns a service by "namespace/name".
func (l *Lab) Service(key string) (ServiceSpec, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s := l.services[key]; s != nil {
		return *s, nil
	}
	return ServiceSpec{}, fmt.Errorf("service %q: %w", key, ErrNotFound)
}

// Services returns all services by namespace and name.
func (l *Lab) Services() []ServiceSpec {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.servicesLocked()
}

func (l *Lab) servicesLocked() []ServiceSpec {
	out := make([]ServiceSpec, 0, len(l.services))
	for _, s := range l.services {
		out = append(out, *s)
	}
	slices.SortFunc(out, func(a, b ServiceSpec) int { return strings.Compare(a.Key(), b.Key()) })
	return out
}

// Backends returns the addresses that a service leads to, sorted.
func (l *Lab) Backends(s ServiceSpec) []netip.Addr {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.backendsLocked(&s)
}

func (l *Lab) backendsLocked(s *ServiceSpec) []netip.Addr {
	out := slices.Clone(s.Backends)
	if s.Selector != nil {
		out = nil
		for _, p := range l.pods {
			if p.Spec.Namespace == s.Namespace && matches(s.Selector, p.Spec.Labels) {
				out = append(out, p.IPs...)
			}
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}

// selected reports whether a service chooses p by label.
func (l *Lab) selected(p *Pod) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.services {
		if s.Namespace == p.Spec.Namespace && matches(s.Selector, p.Spec.Labels) {
			return true
		}
	}
	return false
}

// frontend is one thing that is translated.
type frontend struct {
	addr     netip.Addr
	protocol uint8
	port     uint16
	// always masquerades every client: external addresses and node ports, as
	// for externalTrafficPolicy Cluster. Otherwise clients that are not pods.
	always   bool
	backends []netip.AddrPort
}

// frontends lists what node n translates, in a fixed order.
func (l *Lab) frontends(n *Node) []frontend {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []frontend
	for _, s := range l.servicesLocked() {
		addrs := l.backendsLocked(&s)
		for _, port := range s.Ports {
			proto := uint8(unix.IPPROTO_TCP)
			if port.Protocol == "UDP" {
				proto = unix.IPPROTO_UDP
			}
			add := func(a netip.Addr, p uint16, always bool) {
				f := frontend{addr: a, protocol: proto, port: p, always: always}
				for _, b := range addrs {
					if b.Is4() == a.Is4() {
						f.backends = append(f.backends, netip.AddrPortFrom(b, port.TargetPort))
					}
				}
				out = append(out, f)
			}
			for _, a := range s.ClusterIPs {
				add(a, port.Port, false)
			}
			for _, a := range s.ExternalIPs {
				add(a, port.Port, true)
			}
			if port.NodePort != 0 {
				for _, a := range n.IPs {
					add(a, port.NodePort, true)
				}
			}
		}
	}
	return out
}

// applyServices replaces the rules of every node, each in one transaction.
func (l *Lab) applyServices() error {
	if l.spec.NoConntrack {
		return nil
	}
	l.natMu.Lock()
	defer l.natMu.Unlock()
	for _, n := range l.nodes {
		if err := l.applyNAT(n, l.frontends(n)); err != nil {
			return fmt.Errorf("node %s: nftables: %w", n.Spec.Name, err)
		}
	}
	return nil
}

func (l *Lab) applyNAT(n *Node, fronts []frontend) error {
	c, err := n.Nftables()
	if err != nil {
		return err
	}
	defer func() { _ = c.CloseLasting() }()
	t := &nftables.Table{Family: nftables.TableFamilyINet, Name: natTable}
	c.AddTable(t) // so that there is one to delete
	c.DelTable(t)
	c.AddTable(t)
	b := &natBuilder{c: c, t: t, podCIDRs: n.Spec.PodCIDRs}
	b.services(fronts)
	b.postrouting()
	b.filter(l.spec.DropInvalid)
	if b.err != nil {
		return b.err
	}
	return c.Flush()
}

// Nftables opens an nftables connection inside the namespace; the caller closes
// it with CloseLasting.
func (n *Namespace) Nftables() (*nftables.Conn, error) {
	fd, err := n.dup()
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Close(fd) }()
	// A connection that lasts: the descriptor is only good until we return.
	return nftables.New(nftables.WithNetNSFd(fd), nftables.AsLasting())
}

// natBuilder writes one table; after the first error it writes nothing that counts.
type natBuilder struct {
	c        *nftables.Conn
	t        *nftables.Table
	podCIDRs []netip.Prefix
	err      error

	noBackend [2]*nftables.Set // per family
	hairpin   [2]*nftables.Set
}

// Registers of a key that is looked up: the address starts at register 1, and
// each further field at the next 32-bit register. Source: linux/netfilter/nf_tables.h.
func keyRegisters(v6 bool) (proto, port uint32) {
	if v6 {
		return unix.NFT_REG32_04, unix.NFT_REG32_05
	}
	return unix.NFT_REG32_01, unix.NFT_REG32_02
}

func (b *natBuilder) set(name string, isMap bool, elems []nftables.SetElement, types ...nftables.SetDatatype) *nftables.Set {
	key, err := nftables.ConcatSetType(types...)
	if err != nil {
		b.err = errors.Join(b.err, err)
		return nil
	}
	s := &nftables.Set{Table: b.t, Name: name, KeyType: key, Concatenation: true, IsMap: isMap}
	if isMap {
		s.DataType = nftables.TypeVerdict
	}
	if err := b.c.AddSet(s, elems); err != nil {
		b.err = errors.Join(b.err, err)
	}
	return s
}

func addrType(v6 bool) nftables.SetDatatype {
	if v6 {
		return nftables.TypeIP6Addr
	}
	return nftables.TypeIPAddr
}

// frontKey is address, protocol, port, each padded to 4 bytes.
func frontKey(f frontend) []byte {
	k := append(f.addr.AsSlice(), f.protocol, 0, 0, 0)
	k = binary.BigEndian.AppendUint16(k, f.port)
	return append(k, 0, 0)
}

// services writes the chains of every front end, and the maps that lead to them.
func (b *natBuilder) services(fronts []frontend) {
	var maps, rejects, hairpins [2][]nftables.SetElement
	seen := map[netip.Addr]bool{}
	for i, f := range fronts {
		v := family(f.addr)
		if len(f.backends) == 0 {
			rejects[v] = append(rejects[v], nftables.SetElement{Key: frontKey(f)})
			continue
		}
		chain := b.c.AddChain(&nftables.Chain{Table: b.t, Name: fmt.Sprintf("service-%d", i)})
		maps[v] = append(maps[v], nftables.SetElement{
			Key:         frontKey(f),
			VerdictData: &expr.Verdict{Kind: expr.VerdictGoto, Chain: chain.Name},
		})
		b.service(chain, f)
		for _, be := range f.backends {
			if a := be.Addr(); !seen[a] {
				seen[a] = true
				hairpins[v] = append(hairpins[v], nftables.SetElement{Key: append(a.AsSlice(), a.AsSlice()...)})
			}
		}
	}
	var lookups [2]*nftables.Set
	for v, suffix := range []string{"4", "6"} {
		at := addrType(v == 1)
		lookups[v] = b.set("service-ips"+suffix, true, maps[v], at, nftables.TypeInetProto, nftables.TypeInetService)
		b.noBackend[v] = b.set("no-backend"+suffix, false, rejects[v], at, nftables.TypeInetProto, nftables.TypeInetService)
		b.hairpin[v] = b.set("hairpin"+suffix, false, hairpins[v], at, at)
	}
	if b.err != nil {
		return
	}
	for _, h := range []struct {
		name string
		hook *nftables.ChainHook
	}{{"nat-prerouting", nftables.ChainHookPrerouting}, {"nat-output", nftables.ChainHookOutput}} {
		chain := b.c.AddChain(&nftables.Chain{
			Table: b.t, Name: h.name, Type: nftables.ChainTypeNAT,
			Hooknum: h.hook, Priority: nftables.ChainPriorityNATDest,
		})
		for v, set := range lookups {
			exprs := append(frontLookup(v == 1), &expr.Lookup{
				SourceRegister: unix.NFT_REG_1, SetName: set.Name, SetID: set.ID,
				DestRegister: unix.NFT_REG_VERDICT, IsDestRegSet: true,
			})
			b.rule(chain, exprs...)
		}
	}
}

// service writes: masquerade if need be, then round robin over the backends.
// Round robin is by one counter per rule: rule i of N takes every (N-i)th
// connection that the rules before it left.
func (b *natBuilder) service(chain *nftables.Chain, f frontend) {
	v6 := f.addr.Is6()
	if f.always {
		b.rule(chain, markMasquerade()...)
	} else {
		b.rule(chain, append(b.inPodCIDR(v6, false, expr.CmpOpNeq), markMasquerade()...)...)
	}
	for i, be := range f.backends {
		var exprs []expr.Any
		if left := len(f.backends) - i; left > 1 {
			exprs = append(
				exprs,
				&expr.Numgen{Register: unix.NFT_REG_1, Modulus: uint32(left), Type: unix.NFT_NG_INCREMENTAL},
				&expr.Cmp{Op: expr.CmpOpEq, Register: unix.NFT_REG_1, Data: binaryutil.NativeEndian.PutUint32(0)},
			)
		}
		exprs = append(
			exprs,
			&expr.Immediate{Register: unix.NFT_REG_1, Data: be.Addr().AsSlice()},
			&expr.Immediate{Register: unix.NFT_REG_2, Data: binaryutil.BigEndian.PutUint16(be.Port())},
			&expr.NAT{
				Type: expr.NATTypeDestNAT, Family: nfproto(v6),
				RegAddrMin: unix.NFT_REG_1, RegProtoMin: unix.NFT_REG_2,
			},
		)
		b.rule(chain, exprs...)
	}
}

// postrouting masquerades what is marked, a pod that reaches itself through a
// service, and what leaves the cluster from a pod.
func (b *natBuilder) postrouting() {
	if b.err != nil {
		return
	}
	chain := b.c.AddChain(&nftables.Chain{
		Table: b.t, Name: "nat-postrouting", Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
	})
	mask := binaryutil.NativeEndian.PutUint32(masqueradeMark)
	b.rule(
		chain,
		&expr.Meta{Key: expr.MetaKeyMARK, Register: unix.NFT_REG_1},
		&expr.Bitwise{
			SourceRegister: unix.NFT_REG_1, DestRegister: unix.NFT_REG_2, Len: 4,
			Mask: mask, Xor: make([]byte, 4),
		},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: unix.NFT_REG_2, Data: make([]byte, 4)},
		&expr.Bitwise{
			SourceRegister: unix.NFT_REG_1, DestRegister: unix.NFT_REG_1, Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(^uint32(masqueradeMark)), Xor: make([]byte, 4),
		},
		&expr.Meta{Key: expr.MetaKeyMARK, Register: unix.NFT_REG_1, SourceRegister: true},
		&expr.Masq{FullyRandom: true},
	)
	for v := range 2 {
		v6 := v == 1
		size := addrLen(v6)
		second := unix.NFT_REG32_00 + size/4
		b.rule(chain, append(
			familyIs(v6),
			loadAddr(v6, false, unix.NFT_REG_1), loadAddr(v6, true, second),
			&expr.Lookup{SourceRegister: unix.NFT_REG_1, SetName: b.hairpin[v].Name, SetID: b.hairpin[v].ID},
			&expr.Masq{},
		)...)
		// Pods keep their address inside the cluster and on the wire.
		exprs := b.inPodCIDR(v6, false, expr.CmpOpEq)
		for _, p := range []netip.Prefix{[]netip.Prefix{cluster4, cluster6}[v], []netip.Prefix{wire4, wire6}[v], b.podCIDRs[v], multicast(v6)} {
			exprs = append(exprs, inPrefix(p, true, expr.CmpOpNeq)...)
		}
		b.rule(chain, append(exprs, &expr.Masq{})...)
	}
}

// filter rejects what is sent to a service without backends, as kube-proxy does,
// and optionally drops what conntrack calls invalid.
func (b *natBuilder) filter(dropInvalid bool) {
	if b.err != nil {
		return
	}
	for _, h := range []struct {
		name string
		hook *nftables.ChainHook
	}{
		{"filter-forward", nftables.ChainHookForward},
		{"filter-input", nftables.ChainHookInput},
		{"filter-output", nftables.ChainHookOutput},
	} {
		chain := b.c.AddChain(&nftables.Chain{
			Table: b.t, Name: h.name, Type: nftables.ChainTypeFilter,
			Hooknum: h.hook, Priority: nftables.ChainPriorityFilter,
		})
		if dropInvalid && h.hook == nftables.ChainHookForward {
			b.rule(
				chain,
				&expr.Ct{Key: expr.CtKeySTATE, Register: unix.NFT_REG_1},
				&expr.Bitwise{
					SourceRegister: unix.NFT_REG_1, DestRegister: unix.NFT_REG_1, Len: 4,
					Mask: binaryutil.NativeEndian.PutUint32(expr.CtStateBitINVALID), Xor: make([]byte, 4),
				},
				&expr.Cmp{Op: expr.CmpOpNeq, Register: unix.NFT_REG_1, Data: make([]byte, 4)},
				&expr.Verdict{Kind: expr.VerdictDrop},
			)
		}
		for v, set := range b.noBackend {
			b.rule(chain, append(
				frontLookup(v == 1),
				&expr.Lookup{SourceRegister: unix.NFT_REG_1, SetName: set.Name, SetID: set.ID},
				&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_PORT_UNREACH},
			)...)
		}
	}
}

func (b *natBuilder) rule(chain *nftables.Chain, exprs ...expr.Any) {
	b.c.AddRule(&nftables.Rule{Table: b.t, Chain: chain, Exprs: exprs})
}

// frontLookup loads destination address, protocol and port for a lookup.
func frontLookup(v6 bool) []expr.Any {
	proto, port := keyRegisters(v6)
	return append(
		familyIs(v6),
		loadAddr(v6, true, unix.NFT_REG_1),
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: proto},
		&expr.Payload{DestRegister: port, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
	)
}

func markMasquerade() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: unix.NFT_REG_1},
		&expr.Bitwise{
			SourceRegister: unix.NFT_REG_1, DestRegister: unix.NFT_REG_1, Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(^uint32(masqueradeMark)),
			Xor:  binaryutil.NativeEndian.PutUint32(masqueradeMark),
		},
		&expr.Meta{Key: expr.MetaKeyMARK, Register: unix.NFT_REG_1, SourceRegister: true},
	}
}

// inPodCIDR compares source or destination with the node's pod network.
func (b *natBuilder) inPodCIDR(v6, dst bool, op expr.CmpOp) []expr.Any {
	p := b.podCIDRs[0]
	if v6 {
		p = b.podCIDRs[1]
	}
	return append(familyIs(v6), inPrefix(p, dst, op)...)
}

// inPrefix compares an address with a prefix; the family must be known to fit.
func inPrefix(p netip.Prefix, dst bool, op expr.CmpOp) []expr.Any {
	p = p.Masked()
	v6 := p.Addr().Is6()
	size := addrLen(v6)
	mask := make([]byte, size)
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return []expr.Any{
		loadAddr(v6, dst, unix.NFT_REG_1),
		&expr.Bitwise{
			SourceRegister: unix.NFT_REG_1, DestRegister: unix.NFT_REG_1, Len: size,
			Mask: mask, Xor: make([]byte, size),
		},
		&expr.Cmp{Op: op, Register: unix.NFT_REG_1, Data: p.Addr().AsSlice()},
	}
}

func multicast(v6 bool) netip.Prefix {
	if v6 {
		return netip.MustParsePrefix("ff00::/8")
	}
	return netip.MustParsePrefix("224.0.0.0/4")
}

func familyIs(v6 bool) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: unix.NFT_REG_1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: unix.NFT_REG_1, Data: []byte{byte(nfproto(v6))}},
	}
}

func nfproto(v6 bool) uint32 {
	if v6 {
		return unix.NFPROTO_IPV6
	}
	return unix.NFPROTO_IPV4
}

func addrLen(v6 bool) uint32 {
	if v6 {
		return 16
	}
	return 4
}

// loadAddr loads the source or destination address. Offsets: RFC 791, RFC 8200.
func loadAddr(v6, dst bool, reg uint32) expr.Any {
	offset := uint32(12)
	if v6 {
		offset = 8
	}
	if dst {
		offset += addrLen(v6)
	}
	return &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: addrLen(v6)}
}
