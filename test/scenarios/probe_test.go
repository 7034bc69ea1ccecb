package scenarios

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/postern-dev/postern/internal/packet"
	"github.com/postern-dev/postern/internal/policy"
)

// question is one line of probes.txt:
//
//	egress  shop/frontend -> 203.0.113.80:443/tcp
//	ingress ci/runner -> shop/cart:8080/tcp
//	egress  shop/frontend -> [2001:db8::1]:443/tcp
//	egress  shop/frontend -> 203.0.113.80/icmp
//
// The direction says who is judged: the sender's egress or the receiver's ingress.
// Ends are pods, Services or addresses; "6" behind the direction asks over IPv6.
type question struct {
	pod   policy.PodKey
	dir   policy.Direction
	tuple packet.Tuple
}

// sourcePort stands for the opener's ephemeral port.
const sourcePort = 40000

func parseQuestion(s *policy.Snapshot, line string) (q question, err error) {
	fields := strings.Fields(line)
	if len(fields) != 4 || fields[2] != "->" {
		return q, fmt.Errorf("%q: want DIRECTION FROM -> TO:PORT/PROTOCOL", line)
	}
	dir, v6 := strings.CutSuffix(fields[0], "6")
	if err := q.dir.UnmarshalText([]byte(dir)); err != nil {
		return q, err
	}
	to, proto, ok := strings.Cut(fields[3], "/")
	if rest, p, twice := strings.Cut(proto, "/"); twice { // namespace/pod:80/tcp
		to, proto = to+"/"+rest, p
	}
	if !ok {
		return q, fmt.Errorf("%q: no protocol", line)
	}
	if q.tuple.Protocol, err = packet.ParseProtocol(proto); err != nil {
		return q, err
	}
	if q.tuple.Protocol.HasPorts() {
		i := strings.LastIndexByte(to, ':')
		port, err := strconv.ParseUint(to[i+1:], 10, 16)
		if i < 0 || err != nil {
			return q, fmt.Errorf("%q: no port", line)
		}
		q.tuple.SrcPort, q.tuple.DstPort, to = sourcePort, uint16(port), to[:i]
	}
	from := fields[1]
	to = strings.Trim(to, "[]")
	v6 = v6 || strings.Contains(to, "::") || strings.Contains(from, "::")
	if q.tuple.Src, err = addrOf(s, from, v6); err != nil {
		return q, err
	}
	if q.tuple.Dst, err = addrOf(s, to, v6); err != nil {
		return q, err
	}
	pod := from
	if q.dir == policy.Ingress {
		pod = to
	}
	namespace, name, _ := strings.Cut(pod, "/")
	q.pod = policy.PodKey{Namespace: namespace, Name: name}
	return q, nil
}

func addrOf(s *policy.Snapshot, name string, v6 bool) (netip.Addr, error) {
	if a, err := netip.ParseAddr(name); err == nil {
		return a, nil
	}
	pick := func(ips []netip.Addr) (netip.Addr, error) {
		for _, a := range ips {
			if a.Is6() == v6 {
				return a, nil
			}
		}
		return netip.Addr{}, fmt.Errorf("%s has no address of this family", name)
	}
	for i := range s.Pods {
		if s.Pods[i].Key().String() == name {
			return pick(s.Pods[i].IPs)
		}
	}
	for i := range s.Services {
		if s.Services[i].Namespace+"/"+s.Services[i].Name == name {
			return pick(s.Services[i].IPs)
		}
	}
	for i := range s.Nodes {
		if s.Nodes[i].Name == name {
			return pick(s.Nodes[i].IPs)
		}
	}
	return netip.Addr{}, fmt.Errorf("no pod, Service or node %s", name)
}
