package control

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/postern-dev/postern/internal/flow"
	"github.com/postern-dev/postern/internal/packet"
	"github.com/postern-dev/postern/internal/policy"
)

// explainSourcePort stands for the opener's ephemeral port, which no rule sees.
const explainSourcePort = 40000

// Explain answers an ExplainRequest from a snapshot: the egress of From if it
// is a pod, and unless that already drops, the ingress of every pod that the
// flow can end at: To, or if To is a Service's address each of its ready
// backends, which sees its own address and port. Where both ends have addresses
// of both families, IPv4 is asked.
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
	if !proto.HasPorts() && q.Port != 0 {
		return res, fmt.Errorf("port: %s has no ports, leave it out", proto)
	}
	from, err := openerOf(s, q.From)
	if err != nil {
		return res, err
	}
	to, err := endOf(s, q.To, "to")
	if err != nil {
		return res, err
	}
	src, dst, ok := common(from.addrs, to.addrs)
	if !ok {
		return res, fmt.Errorf("%s and %s have no address family in common", q.From, q.To)
	}
	t := packet.Tuple{Protocol: proto, Src: src, Dst: dst}
	if proto.HasPorts() {
		t.SrcPort, t.DstPort = explainSourcePort, q.Port
	}
	if err := serves(to.svc, t); err != nil {
		return res, err
	}
	w := way{s: s, t: t, shown: map[policy.Decision]bool{}}
	ends := w.egress(from.pod, to.pod)
	verdict := w.ingress(ends)
	if len(w.explanations) == 0 {
		return res, fmt.Errorf("neither %s nor %s is a pod; policies say nothing about the flow", q.From, q.To)
	}
	return ExplainResponse{Verdict: verdict.String(), Explanations: w.explanations, Text: strings.Join(w.text, "\n")}, nil
}

// way is one flow on its way, as far as it was followed.
type way struct {
	s            *policy.Snapshot
	t            packet.Tuple
	explanations []policy.Explanation
	text         []string
	shown        map[policy.Decision]bool // of ingress, with the whole way
}

// arrival is where the flow may end, and what the egress says of it.
type arrival struct {
	pod    *policy.Pod    // nil: no pod that policies could reach
	dst    netip.AddrPort // as the receiver sees it
	egress policy.Verdict
}

// egress asks the sender, if it is a pod, and returns where the flow may end.
func (w *way) egress(from, to *policy.Pod) []arrival {
	direct := arrival{to, netip.AddrPortFrom(w.t.Dst, w.t.DstPort), policy.Forwarded}
	var backends []arrival
	if from == nil {
		key := policy.Frontend{Addr: packet.Judged(w.t.Dst), Protocol: w.t.Protocol, Port: w.t.DstPort}
		for _, b := range policy.Frontends(w.s.Services, w.s.Nodes)[key].Backends {
			backends = append(backends, arrival{podAt(w.s, b.Addr()), b, policy.Forwarded})
		}
	} else {
		e := policy.Explain(w.s, from.Key(), policy.Egress, w.t)
		if !from.HostNetwork && isMartian(packet.Judged(w.t.Dst)) {
			byDatapath(&e, "the destination is on no wire, as loopback or unspecified, and the datapath drops it before policy is asked; what a pod sends to its own loopback does not leave it")
		}
		w.explanations = append(w.explanations, e)
		w.text = append(w.text, e.String())
		direct.egress = e.Decision.Verdict
		if e.Service != nil {
			for _, b := range e.Service.Backends {
				backends = append(backends, arrival{podAt(w.s, b.Backend.Addr()), b.Backend, b.Decision.Verdict})
			}
		}
	}
	if len(backends) > 0 {
		return backends
	}
	return []arrival{direct}
}

// ingress asks the receivers that the egress lets through, and says what becomes
// of the flow: Deferred if that depends on where it ends.
func (w *way) ingress(ends []arrival) policy.Verdict {
	admitted := 0
	for _, end := range ends {
		verdict := end.egress
		if end.pod != nil && verdict == policy.Forwarded {
			t := w.t
			t.Dst, t.DstPort = end.dst.Addr(), end.dst.Port()
			e := policy.Explain(w.s, end.pod.Key(), policy.Ingress, t)
			if isMartian(t.Src) && governed(&e) {
				byDatapath(&e, "nothing can be answered to the source, which is loopback or unspecified: the datapath drops it where policies govern the pod's ingress")
			}
			w.explanations = append(w.explanations, e)
			w.text = append(w.text, w.receiver(e))
			verdict = e.Decision.Verdict
		}
		if verdict == policy.Forwarded {
			admitted++
		}
	}
	switch admitted {
	case len(ends):
		return policy.Forwarded
	case 0:
		return policy.Dropped
	}
	return policy.Deferred
}

// isMartian reports whether the datapath takes an address for one that is on no
// wire: is_martian in bpf/postern.c. Source: RFC 1122 section 3.2.1.3, RFC 4291
// section 2.5.
func isMartian(a netip.Addr) bool {
	return a.IsLoopback() || a.IsUnspecified() || (a.Is4() && a.As4()[0] == 0)
}

// governed reports whether some policy has a say in e: if none decided, those that
// it lists have rules.
func governed(e *policy.Explanation) bool {
	return e.Decision.Rule.Index != policy.IndexNoMatch || slices.ContainsFunc(e.Tiers, func(t policy.TierTrace) bool {
		return slices.ContainsFunc(t.Policies, func(p policy.PolicyTrace) bool { return len(p.Rules) > 0 })
	})
}

// byDatapath makes e say that the datapath drops a martian.
func byDatapath(e *policy.Explanation, note string) {
	rule := policy.RuleRef{Direction: e.Direction, Index: policy.IndexDatapath, Name: flow.ReasonMartian.String()}
	e.Decision, e.Note = policy.Decision{Verdict: policy.Dropped, Rule: rule}, note
	e.Service, e.Tiers = nil, nil
}

// receiver prints the ingress of a pod: the whole way through the tiers once for
// each rule that decides, and the verdict for the others that it decides too.
func (w *way) receiver(e policy.Explanation) string {
	if w.shown[e.Decision] {
		e.Tiers = nil
	}
	w.shown[e.Decision] = true
	return e.String()
}

// podAt returns the pod that has an address of its own.
func podAt(s *policy.Snapshot, a netip.Addr) *policy.Pod {
	for i := range s.Pods {
		for _, ip := range s.Pods[i].IPs {
			if ip == a && !s.Pods[i].HostNetwork {
				return &s.Pods[i]
			}
		}
	}
	return nil
}

// end is a pod, a Service or an address.
type end struct {
	pod   *policy.Pod
	svc   *policy.Service // if it was named as one
	addrs []netip.Addr
}

// openerOf is endOf for the end that opens the flow, which no Service does.
func openerOf(s *policy.Snapshot, name string) (end, error) {
	if ns, n, ok := strings.Cut(name, "/"); ok && podNamed(s, ns, n) != nil {
		name = kindPod + "/" + name
	}
	e, err := endOf(s, name, "from")
	if e.svc != nil {
		return end{}, fmt.Errorf("from %q: a Service opens no flows; name a pod or an address", name)
	}
	return e, err
}

// What a name may begin with.
const (
	kindPod     = "pod"
	kindService = "service"
)

// cutKind takes the kind off KIND/NAMESPACE/NAME.
func cutKind(name string) (kind, rest string, ok bool) {
	kind, rest, ok = strings.Cut(name, "/")
	if !ok || !strings.Contains(rest, "/") {
		return "", name, false
	}
	switch kind {
	case kindPod, "pods", "po":
		return kindPod, rest, true
	case kindService, "services", "svc":
		return kindService, rest, true
	}
	return "", name, false
}

func endOf(s *policy.Snapshot, name, field string) (end, error) {
	if a, err := netip.ParseAddr(name); err == nil {
		a = packet.Unmap(a)
		return end{pod: podAt(s, packet.Judged(a)), addrs: []netip.Addr{a}}, nil
	}
	if _, err := netip.ParsePrefix(name); err == nil {
		return end{}, fmt.Errorf("%s %s: is a network; name one address of it", field, name)
	}
	kind, rest, _ := cutKind(name)
	ns, n, ok := strings.Cut(rest, "/")
	if !ok || strings.Contains(n, "/") {
		return end{}, fmt.Errorf("%s %q: want NAMESPACE/NAME of a pod or Service, pod/NAMESPACE/NAME, service/NAMESPACE/NAME or an address", field, name)
	}
	pod, svc := podNamed(s, ns, n), serviceNamed(s, ns, n)
	switch {
	case kind == "" && pod != nil && svc != nil:
		return end{}, fmt.Errorf("%s: %s is a pod and a Service: write pod/%s or service/%s", field, name, name, name)
	case kind != kindService && pod != nil:
		return end{pod: pod, addrs: pod.IPs}, nil
	case kind != kindPod && svc != nil && len(svc.IPs) == 0:
		return end{}, fmt.Errorf("%s: Service %s has no address of its own, so flows go to its pods: name one of them", field, rest)
	case kind != kindPod && svc != nil:
		return end{svc: svc, addrs: svc.IPs}, nil
	case kind != "":
		return end{}, fmt.Errorf("%s: no %s %s", field, kind, rest)
	}
	return end{}, fmt.Errorf("%s: no pod or service %s", field, name)
}

// serves fails if svc, unless it is nil, has no port for t: nothing answers there.
func serves(svc *policy.Service, t packet.Tuple) error {
	if svc == nil {
		return nil
	}
	var ports []string
	for i := range svc.Ports {
		sp := &svc.Ports[i]
		if sp.Protocol == t.Protocol && sp.Port == t.DstPort {
			return nil
		}
		ports = append(ports, fmt.Sprintf("%s/%d", sp.Protocol, sp.Port))
	}
	asked := t.Protocol.String()
	if t.Protocol.HasPorts() {
		asked += fmt.Sprintf("/%d", t.DstPort)
	}
	if len(ports) == 0 {
		ports = []string{"none"}
	}
	return fmt.Errorf("to: Service %s/%s has no port %s; it has %s", svc.Namespace, svc.Name, asked, strings.Join(ports, ", "))
}

func podNamed(s *policy.Snapshot, namespace, name string) *policy.Pod {
	for i := range s.Pods {
		if s.Pods[i].Namespace == namespace && s.Pods[i].Name == name {
			return &s.Pods[i]
		}
	}
	return nil
}

func serviceNamed(s *policy.Snapshot, namespace, name string) *policy.Service {
	for i := range s.Services {
		if s.Services[i].Namespace == namespace && s.Services[i].Name == name {
			return &s.Services[i]
		}
	}
	return nil
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
