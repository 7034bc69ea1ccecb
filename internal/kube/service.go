package kube

import (
	"cmp"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/postern-dev/postern/internal/packet"
	"github.com/postern-dev/postern/internal/policy"
)

// serviceResult is what a Service alone is translated to: its ports lead nowhere yet.
type serviceResult struct {
	service  policy.Service
	closed   bool
	findings []Finding
}

// translateService translates a Service. A headless Service has no addresses,
// and one of type ExternalName has neither addresses nor ports.
func translateService(s *corev1.Service, decoded []Finding) serviceResult {
	c := newChecker(RefOf(s), decoded)
	out := serviceResult{service: policy.Service{Namespace: s.Namespace, Name: s.Name}}
	if s.Spec.Type == corev1.ServiceTypeExternalName {
		out.findings = c.result()
		out.closed = HasErrors(out.findings)
		return out
	}
	svc, spec := &out.service, field.NewPath("spec")
	for i, ip := range s.Spec.ClusterIPs {
		if ip != corev1.ClusterIPNone && ip != "" {
			svc.IPs = c.appendAddress(svc.IPs, spec.Child("clusterIPs").Index(i), ip)
		}
	}
	if len(s.Spec.ClusterIPs) == 0 && s.Spec.ClusterIP != corev1.ClusterIPNone && s.Spec.ClusterIP != "" {
		svc.IPs = c.appendAddress(svc.IPs, spec.Child("clusterIP"), s.Spec.ClusterIP)
	}
	for i, ip := range s.Spec.ExternalIPs {
		svc.IPs = c.appendAddress(svc.IPs, spec.Child("externalIPs").Index(i), ip)
	}
	for i, in := range s.Status.LoadBalancer.Ingress {
		// With ipMode Proxy the address is a proxy's, and is not translated here.
		if in.IP != "" && (in.IPMode == nil || *in.IPMode != corev1.LoadBalancerIPModeProxy) {
			svc.IPs = c.appendAddress(svc.IPs, field.NewPath("status", "loadBalancer", "ingress").Index(i).Child("ip"), in.IP)
		}
	}
	names := map[string]bool{}
	for i, p := range s.Spec.Ports {
		path := spec.Child("ports").Index(i)
		proto, ok := packet.ProtocolTCP, true
		if p.Protocol != "" {
			proto, ok = c.protocol(path.Child("protocol"), p.Protocol)
		}
		port, okP := c.portNumber(path.Child("port"), p.Port)
		if names[p.Name] {
			c.errorf(path.Child("name"), ReasonConflict, "%q is another port's name: every port of a Service with several needs a name of its own", p.Name)
		}
		names[p.Name] = true
		sp := policy.ServicePort{Name: p.Name, Protocol: proto, Port: port}
		if p.NodePort != 0 {
			sp.NodePort, _ = c.portNumber(path.Child("nodePort"), p.NodePort)
		}
		// A port that was not understood closes the Service, and its nodePort with it.
		if ok && (okP || sp.NodePort != 0) {
			svc.Ports = append(svc.Ports, sp)
		}
	}
	out.findings = c.result()
	out.closed = HasErrors(out.findings)
	return out
}

// sliceResult is what an EndpointSlice is translated to.
type sliceResult struct {
	service  policy.ServiceRef // zero: belongs to none
	backends []backend
	closed   bool
	findings []Finding
}

// backend is one ready address at one port of a slice.
type backend struct {
	portName string
	protocol packet.Protocol
	addr     netip.AddrPort
}

// translateSlice translates an EndpointSlice. Endpoints are ready if
// conditions.ready is true or not given; slices of type FQDN hold no addresses.
func translateSlice(s *discoveryv1.EndpointSlice, decoded []Finding) sliceResult {
	c := newChecker(RefOf(s), decoded)
	out := sliceResult{}
	if name := s.Labels[discoveryv1.LabelServiceName]; name != "" {
		out.service = policy.ServiceRef{Namespace: s.Namespace, Name: name}
	} else {
		c.warnf(field.NewPath("metadata", "labels").Key(discoveryv1.LabelServiceName), ReasonWithoutEffect, "is missing, so the slice belongs to no Service: name it there")
	}
	switch s.AddressType {
	case discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6:
		for i := range s.Endpoints {
			c.endpoint(&out, field.NewPath("endpoints").Index(i), s, &s.Endpoints[i])
		}
	case discoveryv1.AddressTypeFQDN:
		c.warnf(field.NewPath("addressType"), ReasonNotCovered, "is FQDN: its endpoints have no addresses and are not looked at")
	default:
		c.errorf(field.NewPath("addressType"), ReasonInvalidValue, "%q is neither IPv4 nor IPv6", s.AddressType)
	}
	for i, p := range s.Ports {
		if p.Protocol != nil {
			c.protocol(field.NewPath("ports").Index(i).Child("protocol"), *p.Protocol)
		}
		if p.Port != nil {
			c.portNumber(field.NewPath("ports").Index(i).Child("port"), *p.Port)
		}
	}
	out.findings = c.result()
	out.closed = HasErrors(out.findings)
	return out
}

func (c *checker) endpoint(out *sliceResult, path *field.Path, s *discoveryv1.EndpointSlice, e *discoveryv1.Endpoint) {
	if e.Conditions.Ready != nil && !*e.Conditions.Ready {
		return
	}
	for i, text := range e.Addresses {
		p := path.Child("addresses").Index(i)
		a, ok := c.address(p, text)
		if !ok {
			continue
		}
		if a.Is4() != (s.AddressType == discoveryv1.AddressTypeIPv4) {
			c.errorf(p, ReasonConflict, "%s is no %s address, which is the slice's addressType", a, s.AddressType)
			continue
		}
		for _, port := range s.Ports {
			if port.Port == nil || *port.Port < 1 || *port.Port > 65535 {
				continue
			}
			b := backend{protocol: packet.ProtocolTCP, addr: netip.AddrPortFrom(a, uint16(*port.Port))}
			if port.Name != nil {
				b.portName = *port.Name
			}
			if port.Protocol != nil {
				b.protocol = protocolOf(*port.Protocol)
			}
			out.backends = append(out.backends, b)
		}
	}
}

// protocolOf is protocol for a value that is checked elsewhere; 0 is unknown.
func protocolOf(p corev1.Protocol) packet.Protocol {
	switch p {
	case corev1.ProtocolTCP:
		return packet.ProtocolTCP
	case corev1.ProtocolUDP:
		return packet.ProtocolUDP
	case corev1.ProtocolSCTP:
		return packet.ProtocolSCTP
	}
	return 0
}

// withBackends returns a Service whose ports lead to the backends of its slices.
// Slice ports are found by the name of the Service's port, which is how named
// target ports are resolved. Source: EndpointPort.Name.
func withBackends(svc policy.Service, slicesOf []sliceResult) policy.Service {
	ports := slices.Clone(svc.Ports)
	for i := range ports {
		var backends []netip.AddrPort
		for _, s := range slicesOf {
			for _, b := range s.backends {
				if b.portName == ports[i].Name && b.protocol == ports[i].Protocol {
					backends = append(backends, b.addr)
				}
			}
		}
		slices.SortFunc(backends, func(a, b netip.AddrPort) int {
			return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Port(), b.Port()))
		})
		ports[i].Backends = slices.Compact(backends)
	}
	svc.Ports = ports
	return svc
}
