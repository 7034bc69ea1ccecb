package kube

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/postern-dev/postern/internal/packet"
	"github.com/postern-dev/postern/internal/policy"
)

// hostPortPrefix begins the names of the Services that stand for hostPorts. No
// object's name can hold a colon, so no rule can name them.
const hostPortPrefix = "hostport:"

// podResult is what a Pod is translated to.
type podResult struct {
	pod policy.Pod
	// gone says that the pod has ended (phase Succeeded or Failed): its
	// addresses are free and it is part of nothing.
	gone bool
	// hostPorts are the ports that the node translates to the pod, without the node's addresses.
	hostPorts []hostPort
	hostIPs   []netip.Addr // status.hostIPs
	closed    bool
	findings  []Finding
}

type hostPort struct {
	path *field.Path
	ip   netip.Addr // of the node; not valid: all of them
	port policy.ServicePort
}

// translatePod translates a Pod. A pod of which a part that policy depends on
// was not understood is closed (K3): its labels decide who it is.
func translatePod(p *corev1.Pod, decoded []Finding) podResult {
	c := newChecker(RefOf(p), decoded)
	out := podResult{
		gone: p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed,
		pod: policy.Pod{
			Namespace: p.Namespace, Name: p.Name, UID: string(p.UID), Labels: p.Labels,
			ServiceAccount: p.Spec.ServiceAccountName, Node: p.Spec.NodeName, HostNetwork: p.Spec.HostNetwork,
		},
	}
	if out.pod.ServiceAccount == "" {
		out.pod.ServiceAccount = "default"
	}
	c.labels(p.Labels)
	status := field.NewPath("status")
	for i, ip := range p.Status.PodIPs {
		out.pod.IPs = c.appendAddress(out.pod.IPs, status.Child("podIPs").Index(i).Child("ip"), ip.IP)
	}
	if len(p.Status.PodIPs) == 0 && p.Status.PodIP != "" {
		out.pod.IPs = c.appendAddress(out.pod.IPs, status.Child("podIP"), p.Status.PodIP)
	}
	for i, ip := range p.Status.HostIPs {
		out.hostIPs = c.appendAddress(out.hostIPs, status.Child("hostIPs").Index(i).Child("ip"), ip.IP)
	}
	if len(p.Status.HostIPs) == 0 && p.Status.HostIP != "" {
		out.hostIPs = c.appendAddress(out.hostIPs, status.Child("hostIP"), p.Status.HostIP)
	}
	c.containerPorts(&out, p)
	out.findings = c.result()
	out.closed = doubtful(out.findings, "metadata.managedFields", "metadata.ownerReferences",
		"spec.volumes", "spec.affinity", "spec.tolerations", "spec.topologySpreadConstraints",
		"status.conditions", "status.containerStatuses", "status.initContainerStatuses", "status.qosClass")
	return out
}

// labels checks labels, of which selectors decide.
func (c *checker) labels(labels map[string]string) {
	path := field.NewPath("metadata", "labels")
	for _, key := range sortedKeys(labels) {
		c.labelKey(path.Key(key), key)
		c.labelValue(path.Key(key), labels[key])
	}
}

func (c *checker) appendAddress(list []netip.Addr, path *field.Path, text string) []netip.Addr {
	a, ok := c.address(path, text)
	if !ok || slices.Contains(list, a) {
		return list
	}
	return append(list, a)
}

// containerPorts collects the named ports and the hostPorts of the containers
// that run as long as the pod does: also init containers that are restarted always.
func (c *checker) containerPorts(out *podResult, p *corev1.Pod) {
	spec := field.NewPath("spec")
	for i := range p.Spec.Containers {
		c.portsOf(out, spec.Child("containers").Index(i), &p.Spec.Containers[i])
	}
	for i := range p.Spec.InitContainers {
		ctr := &p.Spec.InitContainers[i]
		if ctr.RestartPolicy != nil && *ctr.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			c.portsOf(out, spec.Child("initContainers").Index(i), ctr)
		}
	}
}

func (c *checker) portsOf(out *podResult, path *field.Path, ctr *corev1.Container) {
	for i, port := range ctr.Ports {
		p := path.Child("ports").Index(i)
		proto, ok := packet.ProtocolTCP, true
		if port.Protocol != "" {
			proto, ok = c.protocol(p.Child("protocol"), port.Protocol)
		}
		number, okN := c.portNumber(p.Child("containerPort"), port.ContainerPort)
		if !ok || !okN {
			continue
		}
		if port.Name != "" {
			c.portName(p.Child("name"), port.Name)
			out.pod.Ports = append(out.pod.Ports, policy.ContainerPort{Name: port.Name, Protocol: proto, Port: number})
		}
		if port.HostPort == 0 || out.pod.HostNetwork {
			continue
		}
		host, ok := c.portNumber(p.Child("hostPort"), port.HostPort)
		if !ok {
			continue
		}
		hp := hostPort{path: p, port: policy.ServicePort{Name: port.Name, Protocol: proto, Port: host}}
		if port.HostIP != "" {
			a, okA := c.address(p.Child("hostIP"), port.HostIP)
			if !okA {
				continue
			}
			if !a.IsUnspecified() {
				hp.ip = a
			}
		}
		for _, a := range out.pod.IPs {
			hp.port.Backends = append(hp.port.Backends, netip.AddrPortFrom(a, number))
		}
		slices.SortFunc(hp.port.Backends, netip.AddrPort.Compare)
		out.hostPorts = append(out.hostPorts, hp)
	}
}

// frontend is one address and port at which something is translated.
type frontend struct {
	ip       netip.Addr
	protocol packet.Protocol
	port     uint16
}

// frontendsOf returns where a Service is translated, but for its NodePorts.
func frontendsOf(s *policy.Service) []frontend {
	var out []frontend
	if s == nil {
		return nil
	}
	for _, ip := range s.IPs {
		for _, p := range s.Ports {
			out = append(out, frontend{ip, p.Protocol, p.Port})
		}
	}
	return out
}

// hostPortServices returns Services that stand for a pod's hostPorts: one for
// every address of the node, and one per hostIP. A hostIP that is none of the
// node's has no effect, on the node or here. What a Service claims is the
// Service's; an address at which it claims a part has a Service of its own.
func hostPortServices(r *podResult, nodeIPs []netip.Addr, claimed func(frontend) bool) (out []policy.Service, notes []Finding) {
	ref := ObjectRef{Kind: "Pod", Namespace: r.pod.Namespace, Name: r.pod.Name}
	note := func(path *field.Path, reason Reason, format string, args ...any) {
		notes = append(notes, Finding{Object: ref, Path: path.String(), Severity: Warning, Reason: reason, Message: fmt.Sprintf(format, args...)})
	}
	var own []netip.Addr
	for _, a := range slices.Concat(nodeIPs, r.hostIPs) {
		if !slices.Contains(own, a) {
			own = append(own, a)
		}
	}
	byIP := map[netip.Addr][]hostPort{}
	for _, hp := range r.hostPorts {
		if hp.ip.IsValid() && !hp.ip.IsLoopback() && !slices.Contains(own, hp.ip) {
			note(hp.path.Child("hostIP"), ReasonWithoutEffect, "%s is no address of the pod's node, and the hostPort is ignored: name one of the node's, or none for all", hp.ip)
			continue
		}
		byIP[hp.ip] = append(byIP[hp.ip], hp)
	}
	for _, ip := range slices.SortedFunc(maps.Keys(byIP), netip.Addr.Compare) {
		svc := policy.Service{Namespace: r.pod.Namespace, Name: hostPortPrefix + r.pod.Name, IPs: own}
		if ip.IsValid() {
			svc.Name += ":" + ip.String()
			svc.IPs = []netip.Addr{ip}
		}
		var whole []netip.Addr
		for _, a := range svc.IPs {
			part := policy.Service{Namespace: svc.Namespace, Name: svc.Name + ":at:" + a.String(), IPs: []netip.Addr{a}}
			for _, hp := range byIP[ip] {
				if claimed(frontend{a, hp.port.Protocol, hp.port.Port}) {
					note(hp.path.Child("hostPort"), ReasonConflict, "%s is a Service's, which comes first: choose another port", netip.AddrPortFrom(a, hp.port.Port))
				} else {
					part.Ports = append(part.Ports, hp.port)
				}
			}
			switch len(part.Ports) {
			case len(byIP[ip]):
				whole = append(whole, a)
			case 0:
			default:
				out = append(out, part)
			}
		}
		if svc.IPs = whole; len(whole) > 0 {
			for _, hp := range byIP[ip] {
				svc.Ports = append(svc.Ports, hp.port)
			}
			out = append(out, svc)
		}
	}
	return out, notes
}

// translateNamespace translates a Namespace. closed says that its labels are in doubt.
func translateNamespace(n *corev1.Namespace, decoded []Finding) (ns policy.Namespace, closed bool, fs []Finding) {
	c := newChecker(RefOf(n), decoded)
	c.labels(n.Labels)
	labels := make(map[string]string, len(n.Labels)+1)
	maps.Copy(labels, n.Labels)
	// The API server sets this label; no file may claim another name by it.
	if v, ok := labels[policy.LabelNamespaceName]; ok && v != n.Name {
		c.warnf(field.NewPath("metadata", "labels").Key(policy.LabelNamespaceName), ReasonConflict, "is %q, and is read as the namespace's name %q: remove it", v, n.Name)
	}
	labels[policy.LabelNamespaceName] = n.Name
	fs = c.result()
	return policy.Namespace{Name: n.Name, Labels: labels}, doubtful(fs, "metadata.managedFields", "spec", "status"), fs
}

// translateNode translates a Node. Addresses of type Hostname and DNS names are no addresses.
func translateNode(n *corev1.Node, decoded []Finding) (node policy.Node, closed bool, fs []Finding) {
	c := newChecker(RefOf(n), decoded)
	c.labels(n.Labels)
	node = policy.Node{Name: n.Name, Labels: n.Labels}
	for i, a := range n.Status.Addresses {
		switch a.Type {
		case corev1.NodeInternalIP, corev1.NodeExternalIP:
			node.IPs = c.appendAddress(node.IPs, field.NewPath("status", "addresses").Index(i).Child("address"), a.Address)
		case corev1.NodeHostName, corev1.NodeInternalDNS, corev1.NodeExternalDNS:
		default:
			c.errorf(field.NewPath("status", "addresses").Index(i).Child("type"), ReasonInvalidValue,
				"%q is no type of address: write InternalIP, ExternalIP or Hostname", a.Type)
		}
	}
	fs = c.result()
	return node, doubtful(fs, "metadata.managedFields", "spec", "status.allocatable", "status.capacity",
		"status.conditions", "status.config", "status.daemonEndpoints", "status.features", "status.images",
		"status.nodeInfo", "status.runtimeHandlers", "status.volumes"), fs
}

// doubtful reports whether some finding is an error in a part of an object that
// policy looks at. The rest, given by prefixes, may be of a newer Kubernetes.
func doubtful(fs []Finding, rest ...string) bool {
	return slices.ContainsFunc(fs, func(f Finding) bool {
		return f.Severity == Error && !slices.ContainsFunc(rest, func(prefix string) bool {
			return strings.HasPrefix(f.Path, prefix)
		})
	})
}
