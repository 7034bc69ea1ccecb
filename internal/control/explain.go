package control

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/postern-dev/postern/internal/packet"
	"github.com/postern-dev/postern/internal/policy"
)

// explainSourcePort stands for the opener's ephemeral port, which no rule sees.
const explainSourcePort = 40000

// Explain answers an ExplainRequest from a snapshot: the egress of From if it
// is a pod, and unless that already drops, the ingress of To if it is one. Where
// both ends have addresses of both families, IPv4 is asked.
func Explain(s *policy.Snapshot, q ExplainRequest) (ExplainResponse, error) {
	var res ExplainResponse
	proto := packet.ProtocolTCP
	if q.Protocol != "" {
		var err error
		if proto, err = packet.ParseProtocol(strings.ToLower(q.Protocol)); err != nil {
			return res, err
		}
	}
	if proto.HasPorts() && q.Port == 0 {
		return res, fmt.Errorf("port: want one from 1 to 65535 for %s", proto)
	}
	from, err := endOf(s, q.From, "from")
	if err != nil {
		return res, err
	}
	to, err := endOf(s, q.To, "to")
	if err != nil {
		return res, err
	}
	if from.pod == nil && to.pod == nil {
		return res, fmt.Errorf("neither %s nor %s is a pod; policies say nothing about the flow", q.From, q.To)
	}
	src, dst, ok := common(from.addrs, to.addrs)
	if !ok {
		return res, fmt.Errorf("%s and %s have no address family in common", q.From, q.To)
	}
	t := packet.Tuple{Protocol: proto, Src: src, Dst: dst}
	if proto.HasPorts() {
		t.SrcPort, t.DstPort = explainSourcePort, q.Port
	}
	res.Verdict = policy.Forwarded.String()
	var text []string
	add := func(pod policy.PodKey, dir policy.Direction) {
		e := policy.Explain(s, pod, dir, t)
		res.Explanations = append(res.Explanations, e)
		text = append(text, e.String())
		if e.Decision.Verdict != policy.Forwarded {
			res.Verdict = e.Decision.Verdict.String()
		}
	}
	if from.pod != nil {
		add(from.pod.Key(), policy.Egress)
	}
	if to.pod != nil && res.Verdict != policy.Dropped.String() {
		add(to.pod.Key(), policy.Ingress)
	}
	res.Text = strings.Join(text, "\n")
	return res, nil
}

// end is a pod or an address.
type end struct {
	pod   *policy.Pod
	addrs []netip.Addr
}

func endOf(s *policy.Snapshot, name, field string) (end, error) {
	if a, err := netip.ParseAddr(name); err == nil {
		a = packet.Unmap(a)
		for i := range s.Pods {
			for _, ip := range s.Pods[i].IPs {
				if ip == a && !s.Pods[i].HostNetwork {
					return end{&s.Pods[i], []netip.Addr{a}}, nil
				}
			}
		}
		return end{nil, []netip.Addr{a}}, nil
	}
	ns, pod, ok := strings.Cut(name, "/")
	if !ok {
		return end{}, fmt.Errorf("%s %q: want namespace/pod, namespace/service or an address", field, name)
	}
	for i := range s.Pods {
		if s.Pods[i].Namespace == ns && s.Pods[i].Name == pod {
			return end{&s.Pods[i], s.Pods[i].IPs}, nil
		}
	}
	for i := range s.Services {
		if s.Services[i].Namespace == ns && s.Services[i].Name == pod {
			return end{nil, s.Services[i].IPs}, nil
		}
	}
	return end{}, fmt.Errorf("%s: no pod or service %s", field, name)
}

func common(a, b []netip.Addr) (x, y netip.Addr, ok bool) {
	for _, v6 := range []bool{false, true} {
		for _, x := range a {
			for _, y := range b {
				if x.Is6() == v6 && y.Is6() == v6 {
					return x, y, true
				}
			}
		}
	}
	return x, y, false
}
