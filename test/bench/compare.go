//go:build linux

package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/postern-dev/postern/internal/lab"
	"github.com/postern-dev/postern/internal/labagent"
	"github.com/postern-dev/postern/internal/manifests"
	"github.com/postern-dev/postern/internal/packet"
	"github.com/postern-dev/postern/internal/policy"
)

const (
	compareTable = "bench"
	// elementsPerBatch go to the kernel in one transaction.
	elementsPerBatch = 4000
)

// compare opens connections under the same policy, enforced by Postern, by
// nftables sets and by a verdict in user space, each on a node of its own, and
// on a node without policy.
func compare(ctx context.Context, b *bench) (err error) {
	spec := lab.DefaultSpec("bench-compare")
	spec.Nodes, spec.Pods, spec.Services = nil, nil, nil
	ways := []string{"none", "postern", "nftables", "nfqueue"}
	for _, w := range ways {
		spec.Nodes = append(spec.Nodes, lab.NodeSpec{Name: w})
		spec.Pods = append(spec.Pods, lab.PodSpec{Namespace: "shop", Name: w, Node: w, Labels: map[string]string{"app": "load"}})
	}
	l, err := lab.Up(ctx, spec)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Down()) }()
	node, err := l.Node("postern")
	if err != nil {
		return err
	}
	a, err := labagent.Start(ctx, l, node, labagent.Options{Binary: b.posternd()})
	if err != nil {
		return err
	}
	defer func() { _ = a.Kill() }()
	if err := a.Write(ctx, "big.yaml", bigPolicy()); err != nil {
		return err
	}
	// The others enforce what the same files compile to.
	store, err := manifests.Load(a.Manifests, manifests.Options{Now: time.Now})
	if err != nil {
		return err
	}
	compiled, err := policy.Compile(store.Snapshot(), nil)
	if err != nil {
		return err
	}
	if err := useNftables(l, compiled); err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	stop, err := useQueue(l, compiled)
	if err != nil {
		return fmt.Errorf("nfqueue: %w", err)
	}
	defer func() { err = errors.Join(err, stop()) }()
	for _, w := range ways {
		if err := probe(ctx, l, "shop/"+w, w != "none"); err != nil {
			return err
		}
	}
	rates, shares := map[string][]float64{}, map[string][]float64{}
	for range b.rounds {
		got, err := turns(ctx, l, lab.TCPConn, ways)
		if err != nil {
			return err
		}
		for _, w := range ways[1:] {
			rates[w] = append(rates[w], got[w])
			shares[w] = append(shares[w], 100*got[w]/got["none"])
		}
	}
	for i, name := range []string{"Postern", "nftables sets", "NFQUEUE"} {
		w := ways[i+1]
		b.add("TCP connections/s, 1,000 rules and 100,000 CIDRs, against no policy: "+name, "", fmt.Sprintf("%.1f %%", median(shares[w])), fmt.Sprintf("%.3g/s", median(rates[w])))
	}
	return nil
}

// turns returns what each way's pod does in a second. They take turns of a quarter
// of a second, in another order each time, so that what else the machine does
// is shared.
func turns(ctx context.Context, l *lab.Lab, kind lab.LoadKind, ways []string) (map[string]float64, error) {
	type sum struct {
		done, errors, ops int64
		elapsed           time.Duration
		first             error
	}
	sums := map[string]*sum{}
	for turn := range 2 * len(ways) {
		for i := range ways {
			w := ways[(turn+i)%len(ways)]
			r, err := l.Load(ctx, lab.LoadSpec{Kind: kind, Client: "shop/" + w, Server: "outside", Listen: netip.AddrPortFrom(lab.WebV4, 0), Duration: 250 * time.Millisecond, Pinned: true})
			if err != nil {
				return nil, fmt.Errorf("%s: %w", w, err)
			}
			if sums[w] == nil {
				sums[w] = &sum{}
			}
			s := sums[w]
			s.ops, s.errors, s.elapsed = s.ops+r.Ops, s.errors+r.Errors, s.elapsed+r.Elapsed
			s.done += r.Ops
			if kind == lab.TCPBulk {
				s.done += 8*r.Bytes - r.Ops
			}
			if s.first == nil {
				s.first = r.FirstError
			}
		}
	}
	rates := map[string]float64{}
	for _, w := range ways {
		s := sums[w]
		// An interrupted system call now and then is the client's.
		if s.errors*500 > s.ops+500 {
			return nil, fmt.Errorf("%s: %d errors in %d: %w", w, s.errors, s.ops, s.first)
		}
		rates[w] = float64(s.done) / s.elapsed.Seconds()
	}
	return rates, nil
}

// probe sees that a pod's policy is in force: a measure of what lets everything
// pass says nothing.
func probe(ctx context.Context, l *lab.Lab, key string, enforced bool) error {
	pod, err := l.Pod(key)
	if err != nil {
		return err
	}
	try := func(a netip.Addr) error {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		_, err := pod.Echo(ctx, "tcp", netip.AddrPortFrom(a, lab.EchoPort), []byte("x"))
		return err
	}
	if err := try(lab.WebV4); err != nil {
		return fmt.Errorf("%s cannot reach what it may: %w", key, err)
	}
	if err := try(lab.EvilV4); (err == nil) == enforced {
		return fmt.Errorf("%s reaches what it must not (%t), or the other way round: %w", key, enforced, err)
	}
	return nil
}

// matchesOf are the matches of what a pod may reach: everything up to the deny of all else.
func matchesOf(c *policy.Compiled, pod policy.PodKey) ([]policy.Match, error) {
	rs := c.Rulesets[c.Endpoints[pod][policy.Egress]]
	if rs == nil {
		return nil, fmt.Errorf("no ruleset for %s", pod)
	}
	var out []policy.Match
	for _, r := range rs.Rules {
		if r.Action == policy.Accept {
			out = append(out, r.Matches...)
			continue
		}
		if len(r.Matches) != 1 || !r.Matches[0].AnyAddress || !r.Matches[0].AnyPort || r.Matches[0].NotProtected {
			return nil, fmt.Errorf("%v of %v is more than the other ways are made for", r.Action, r.Ref)
		}
		return out, nil
	}
	return nil, errors.New("nothing is denied")
}

// ipPod returns the pod's key, and its IPv4 address.
func ipPod(l *lab.Lab, key string) (policy.PodKey, netip.Addr, *lab.Node, error) {
	p, err := l.Pod(key)
	if err != nil {
		return policy.PodKey{}, netip.Addr{}, nil, err
	}
	n, err := l.Node(p.Spec.Node)
	i := slices.IndexFunc(p.IPs, netip.Addr.Is4)
	if err != nil || i < 0 {
		return policy.PodKey{}, netip.Addr{}, nil, fmt.Errorf("pod %s: %v, %w", key, p.IPs, err)
	}
	ns, name, _ := strings.Cut(key, "/")
	return policy.PodKey{Namespace: ns, Name: name}, p.IPs[i], n, nil
}

// nft builds a table for one pod's IPv4 traffic.
type nft struct {
	c     *nftables.Conn
	table *nftables.Table
	chain *nftables.Chain
}

// newNft begins a forward chain that lets established connections and others'
// packets pass, in that order, as one would by hand.
func newNft(n *lab.Node, pod netip.Addr) (*nft, error) {
	c, err := n.Nftables()
	if err != nil {
		return nil, err
	}
	t := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: compareTable})
	chain := c.AddChain(&nftables.Chain{Table: t, Name: "forward", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter})
	x := &nft{c, t, chain}
	established := make([]byte, 4)
	binary.NativeEndian.PutUint32(established, expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED)
	x.rule(chain, expr.VerdictAccept,
		&expr.Ct{Register: 1, Key: expr.CtKeySTATE},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: established, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)})
	x.rule(chain, expr.VerdictAccept, load(12, 4), &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: pod.AsSlice()})
	return x, nil
}

// load reads len bytes of the IPv4 header.
func load(at, size uint32) expr.Any {
	return &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: at, Len: size}
}

func (x *nft) rule(chain *nftables.Chain, kind expr.VerdictKind, match ...expr.Any) {
	x.c.AddRule(&nftables.Rule{Table: x.table, Chain: chain, Exprs: append(match, &expr.Verdict{Kind: kind})})
}

// intervals adds a set of networks, a range of addresses per element.
func (x *nft) intervals(name string, prefixes []netip.Prefix) (*nftables.Set, error) {
	s := &nftables.Set{Table: x.table, Name: name, KeyType: nftables.TypeIPAddr, Interval: true}
	if err := x.c.AddSet(s, nil); err != nil {
		return nil, err
	}
	var elems []nftables.SetElement
	// The first address after the last range; prefixes are sorted and disjoint.
	var after netip.Addr
	for _, p := range prefixes {
		if !p.Addr().Is4() {
			continue
		}
		next := last(p).Next()
		if len(elems) > 0 && after == p.Addr() {
			elems = elems[:len(elems)-1]
		} else {
			elems = append(elems, nftables.SetElement{Key: p.Addr().AsSlice()})
		}
		if !next.IsValid() {
			break // up to the last address of all
		}
		elems, after = append(elems, nftables.SetElement{Key: next.AsSlice(), IntervalEnd: true}), next
	}
	for part := range slices.Chunk(elems, elementsPerBatch) {
		// One message's list is not longer than 64 KiB.
		for list := range slices.Chunk(part, 500) {
			if err := x.c.SetAddElements(s, list); err != nil {
				return nil, err
			}
		}
		if err := x.c.Flush(); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func last(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().As4()
	binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])|uint32(uint64(1)<<(32-p.Bits())-1))
	return netip.AddrFrom4(b)
}

// useNftables enforces the policy by sets, in the best way known: the port
// leads, through a hash, to a chain with one set of networks; what allows every
// port is looked up after that.
func useNftables(l *lab.Lab, c *policy.Compiled) (err error) {
	key, ip, node, err := ipPod(l, "shop/nftables")
	if err != nil {
		return err
	}
	matches, err := matchesOf(c, key)
	if err != nil {
		return err
	}
	x, err := newNft(node, ip)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, x.c.CloseLasting()) }()
	chains := map[policy.SetID]*nftables.Chain{}
	sets := map[policy.SetID]*nftables.Set{}
	ports := &nftables.Set{Table: x.table, Name: "ports", KeyType: nftables.TypeInetService, DataType: nftables.TypeVerdict, IsMap: true}
	var jumps []nftables.SetElement
	var anyPort []*nftables.Set
	for i, m := range matches {
		if m.AnyAddress {
			return fmt.Errorf("match %d: any address", i)
		}
		if sets[m.Set] == nil {
			if sets[m.Set], err = x.intervals(fmt.Sprintf("set%d", len(sets)), c.Sets[m.Set]); err != nil {
				return err
			}
		}
		if m.AnyPort {
			anyPort = append(anyPort, sets[m.Set])
			continue
		}
		if chains[m.Set] == nil {
			chain := x.c.AddChain(&nftables.Chain{Table: x.table, Name: sets[m.Set].Name})
			x.rule(chain, expr.VerdictAccept, load(16, 4), &expr.Lookup{SourceRegister: 1, SetName: sets[m.Set].Name, SetID: sets[m.Set].ID})
			chains[m.Set] = chain
		}
		for _, p := range m.Ports {
			if p.Protocol != packet.ProtocolTCP {
				return fmt.Errorf("match %d: protocol %s", i, p.Protocol)
			}
			for port := int(p.First); port <= int(p.Last); port++ {
				jumps = append(jumps, nftables.SetElement{Key: binary.BigEndian.AppendUint16(nil, uint16(port)), VerdictData: &expr.Verdict{Kind: expr.VerdictJump, Chain: chains[m.Set].Name}})
			}
		}
	}
	if err := x.c.AddSet(ports, nil); err != nil {
		return err
	}
	for list := range slices.Chunk(jumps, 500) {
		if err := x.c.SetAddElements(ports, list); err != nil {
			return err
		}
	}
	x.c.AddRule(&nftables.Rule{Table: x.table, Chain: x.chain, Exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Lookup{SourceRegister: 1, SetName: ports.Name, SetID: ports.ID, DestRegister: unix.NFT_REG_VERDICT, IsDestRegSet: true},
	}})
	for _, s := range anyPort {
		x.rule(x.chain, expr.VerdictAccept, load(16, 4), &expr.Lookup{SourceRegister: 1, SetName: s.Name, SetID: s.ID})
	}
	x.rule(x.chain, expr.VerdictDrop)
	return x.c.Flush()
}
