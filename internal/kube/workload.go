package kube

import (
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
		hp := hostPort{port: policy.ServicePort{Name: port.Name, Protocol: proto, Port: host}}
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

// hostPortServices returns Services that stand for a pod's hostPorts: one for
// every address of the node, and one per hostIP.
func hostPortServices(r *podResult, nodeIPs []netip.Addr) []policy.Service {
	byIP := map[netip.Addr][]policy.ServicePort{}
	for _, hp := range r.hostPorts {
		byIP[hp.ip] = append(byIP[hp.ip], hp.port)
	}
	var out []policy.Service
	for _, ip := range slices.SortedFunc(maps.Keys(byIP), netip.Addr.Compare) {
		svc := policy.Service{Namespace: r.pod.Namespace, Name: hostPortPrefix + r.pod.Name, Ports: byIP[ip]}
		if ip.IsValid() {
			svc.Name += ":" + ip.String()
			svc.IPs = []netip.Addr{ip}
		} else {
			for _, a := range slices.Concat(nodeIPs, r.hostIPs) {
				if !slices.Contains(svc.IPs, a) {
					svc.IPs = append(svc.IPs, a)
				}
			}
		}
		out = append(out, svc)
	}
	return out
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
