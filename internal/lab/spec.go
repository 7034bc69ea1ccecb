package lab

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"

	"sigs.k8s.io/yaml"
)

// Errors that callers branch on.
var (
	// ErrUnsupported is returned by Up and Open on a system that is not Linux.
	ErrUnsupported = errors.New("the lab needs Linux network namespaces")
	// ErrInUse is returned if a live process other than the caller owns the lab.
	ErrInUse = errors.New("lab is in use")
	// ErrNotFound is returned for a lab, pod, node or service that does not exist.
	ErrNotFound = errors.New("not found")
	// ErrExhausted is returned if a node has no free pod address, or a lab no free service address.
	ErrExhausted = errors.New("no free address")
)

// CNI says how pods are connected to their node.
type CNI string

// Ways to connect pods.
const (
	// PTP is the CNI ptp plugin's way: a routed veth per pod, a /32 and /128
	// route to it, the gateway's address on every host side.
	PTP CNI = "ptp"
	// Bridge is the CNI bridge plugin's way: host sides are ports of one bridge,
	// which has the gateway's address.
	Bridge CNI = "bridge"
)

// Spec describes a lab. The zero value but for Name is an empty world with one
// node; DefaultSpec is a populated one.
type Spec struct {
	// Name names the lab on this machine: lower-case letters, digits and dashes, at most 32.
	Name string `json:"name"`
	// CNI is how pods are connected; empty means PTP.
	CNI CNI `json:"cni"`
	// Nodes of the cluster; none means one, called node1. At most 200.
	Nodes []NodeSpec `json:"nodes"`
	// Namespaces lists namespaces with labels; those that only pods name are added.
	Namespaces []NamespaceSpec `json:"namespaces"`
	// Pods that Up starts. AddPod starts more.
	Pods []PodSpec `json:"pods"`
	// Services of the cluster.
	Services []ServiceSpec `json:"services"`
	// Hosts of the internet.
	Hosts []HostSpec `json:"hosts"`
	// Records are answered by every DNS server of the lab, beside the Names of
	// hosts and the cluster's own zone: owner name to addresses, or to one name
	// (an alias). Names are absolute, without the trailing dot.
	Records map[string][]string `json:"records"`
	// MTU of every link in bytes; 0 means 1500.
	MTU int `json:"mtu"`
	// NoConntrack leaves out every nftables rule: no masquerade, no Services, no
	// connection tracking and so no defragmentation on the nodes. The outside
	// has routes to the pods all the same.
	NoConntrack bool `json:"noConntrack"`
	// DropInvalid adds kube-proxy's drop of packets in conntrack state invalid when forwarding.
	DropInvalid bool `json:"dropInvalid"`
	// NoServers leaves out every server. Serve starts them in another process.
	NoServers bool `json:"-"`
	// Persistent keeps the lab when its process ends; only Cleanup or another
	// Up with the same name removes it.
	Persistent bool `json:"persistent"`
}

// NodeSpec describes a node. Node i, counted from 1, has 172.31.0.(10+i) and fd00:172:31::(10+i).
type NodeSpec struct {
	Name   string            `json:"name"`
	Labels map[string]string `json:"labels"`
	// PodCIDRs are one IPv4 and one IPv6 prefix; none means 10.244.i.0/24 and fd00:10:244:i::/64.
	PodCIDRs []netip.Prefix `json:"podCIDRs"`
	// Servers listen on every address of the node; nil means DefaultNodeServers.
	Servers []Server `json:"servers"`
}

// NamespaceSpec describes a Kubernetes namespace.
type NamespaceSpec struct {
	Name   string            `json:"name"`
	Labels map[string]string `json:"labels"`
}

// PodSpec describes a pod.
type PodSpec struct {
	Namespace      string            `json:"namespace"`
	Name           string            `json:"name"`
	Labels         map[string]string `json:"labels"`
	ServiceAccount string            `json:"serviceAccount"` // empty means default
	// Node is the name of the pod's node; empty means the first.
	Node string `json:"node"`
	// IPs are the pod's addresses, at most one of each family; none means the
	// lowest that are free in the node's PodCIDRs, so that the address of a
	// deleted pod is given to the next one.
	IPs []netip.Addr `json:"ips"`
	// Servers listen on every address of the pod and are its container ports;
	// nil means DefaultPodServers, empty means none.
	Servers []Server `json:"servers"`
}

// Key returns "namespace/name".
func (p *PodSpec) Key() string { return p.Namespace + "/" + p.Name }

// ServiceSpec describes a Service of both families.
type ServiceSpec struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	// Selector chooses backends among the pods of Namespace by label; nil means
	// that Backends are given.
	Selector map[string]string `json:"selector"`
	// Backends are addresses of either family; used if Selector is nil.
	Backends []netip.Addr `json:"backends"`
	// ClusterIPs are one address of each family; none means the next free of
	// 10.96.1.0/24 and fd00:10:96::1:0/112.
	ClusterIPs []netip.Addr `json:"clusterIPs"`
	// ExternalIPs are translated like the cluster IPs, with the source masqueraded.
	ExternalIPs []netip.Addr  `json:"externalIPs"`
	Ports       []ServicePort `json:"ports"`
}

// Key returns "namespace/name".
func (v *ServiceSpec) Key() string { return v.Namespace + "/" + v.Name }

// ServicePort is a port of a Service.
type ServicePort struct {
	Name     string `json:"name"`
	Protocol string `json:"protocol"` // TCP or UDP; empty means TCP
	Port     uint16 `json:"port"`
	// TargetPort is the backends' port; 0 means Port.
	TargetPort uint16 `json:"targetPort"`
	// NodePort, if not 0, is translated on the addresses of every node.
	NodePort uint16 `json:"nodePort"`
}

// HostSpec is a host of the internet. All hosts share the outside's namespace.
type HostSpec struct {
	Name string       `json:"name"`
	IPs  []netip.Addr `json:"ips"`
	// Names are what DNS answers with IPs for.
	Names []string `json:"names"`
	// Servers listen on IPs only; nil means DefaultHostServers.
	Servers []Server `json:"servers"`
}

// ServerKind is what a server speaks.
type ServerKind string

// Kinds of servers. See Echo for what the echo servers answer.
const (
	HTTP    ServerKind = "http"
	HTTPS   ServerKind = "https" // with a certificate of its own making
	TCPEcho ServerKind = "tcp-echo"
	UDPEcho ServerKind = "udp-echo"
	DNS     ServerKind = "dns" // UDP and TCP
)

// Server is something that listens.
type Server struct {
	Kind ServerKind `json:"kind"`
	Port uint16     `json:"port"`
	// Name is the container port's name; empty means kind and port.
	Name string `json:"name"`
}

func (s Server) portName() string {
	if s.Name != "" {
		return s.Name
	}
	return fmt.Sprintf("%s-%d", s.Kind, s.Port)
}

// EchoPort is where the default servers echo TCP and UDP. Source: RFC 862.
const EchoPort = 7

// Servers of a NodeSpec, PodSpec and HostSpec that name none. The node's HTTP
// server stands for the kubelet.
var (
	DefaultNodeServers = []Server{
		{Kind: HTTP, Port: 10250, Name: "kubelet"},
		{Kind: TCPEcho, Port: EchoPort},
		{Kind: UDPEcho, Port: EchoPort},
	}
	DefaultPodServers = []Server{
		{Kind: HTTP, Port: 8080, Name: "http"},
		{Kind: TCPEcho, Port: EchoPort, Name: "echo"},
		{Kind: UDPEcho, Port: EchoPort, Name: "echo-udp"},
	}
	DefaultHostServers = []Server{
		{Kind: HTTP, Port: 80},
		{Kind: HTTPS, Port: 443},
		{Kind: TCPEcho, Port: EchoPort},
		{Kind: UDPEcho, Port: EchoPort},
		{Kind: UDPEcho, Port: 443},
	}
)

// Addresses of the default hosts, from documentation ranges (RFC 5737, RFC 3849)
// and the clouds' metadata addresses. They only ever exist inside a lab.
var (
	WebV4      = netip.MustParseAddr("203.0.113.80")
	WebV6      = netip.MustParseAddr("2001:db8:80::80")
	EvilV4     = netip.MustParseAddr("203.0.113.66")
	EvilV6     = netip.MustParseAddr("2001:db8:66::66")
	ResolverV4 = netip.MustParseAddr("198.51.100.53")
	ResolverV6 = netip.MustParseAddr("2001:db8:53::53")
	MetadataV4 = netip.MustParseAddr("169.254.169.254")
	MetadataV6 = netip.MustParseAddr("fd00:ec2::254")
)

// DefaultHosts returns web, evil, resolver and metadata.
func DefaultHosts() []HostSpec {
	return []HostSpec{
		{Name: "web", IPs: []netip.Addr{WebV4, WebV6}, Names: []string{"web.example.com", "api.example.com"}},
		{Name: "evil", IPs: []netip.Addr{EvilV4, EvilV6}, Names: []string{"evil.example.net"}},
		{
			Name: "resolver", IPs: []netip.Addr{ResolverV4, ResolverV6}, Names: []string{"resolver.example.org"},
			Servers: []Server{{Kind: DNS, Port: 53}, {Kind: TCPEcho, Port: EchoPort}, {Kind: UDPEcho, Port: EchoPort}},
		},
		{Name: "metadata", IPs: []netip.Addr{MetadataV4, MetadataV6}, Servers: []Server{{Kind: HTTP, Port: 80}}},
	}
}

// DefaultSpec returns a world with the default hosts and a small shop: pods
// shop/frontend, shop/cart, payments/api, ci/runner and kube-system/coredns,
// services shop/cart and kube-system/kube-dns.
func DefaultSpec(name string) Spec {
	return Spec{
		Name: name,
		Namespaces: []NamespaceSpec{
			{Name: "shop", Labels: map[string]string{"team": "shop"}},
			{Name: "payments", Labels: map[string]string{"team": "payments"}},
			{Name: "ci"},
			{Name: "kube-system"},
		},
		Pods: []PodSpec{
			{Namespace: "shop", Name: "frontend", Labels: map[string]string{"app": "frontend"}},
			{Namespace: "shop", Name: "cart", Labels: map[string]string{"app": "cart"}},
			{Namespace: "payments", Name: "api", Labels: map[string]string{"app": "api"}, ServiceAccount: "payments"},
			{Namespace: "ci", Name: "runner", Labels: map[string]string{"app": "runner"}},
			{
				Namespace: "kube-system", Name: "coredns", Labels: map[string]string{"k8s-app": "kube-dns"},
				ServiceAccount: "coredns", Servers: []Server{{Kind: DNS, Port: 53, Name: "dns"}, {Kind: HTTP, Port: 8181, Name: "ready"}},
			},
		},
		Services: []ServiceSpec{
			{
				Namespace: "shop", Name: "cart", Selector: map[string]string{"app": "cart"},
				Ports: []ServicePort{
					{Name: "http", Port: 80, TargetPort: 8080, NodePort: 30080},
					{Name: "echo", Port: EchoPort, NodePort: 30007},
					{Name: "echo-udp", Protocol: "UDP", Port: EchoPort, NodePort: 30007},
				},
			},
			{
				Namespace: "kube-system", Name: "kube-dns", Selector: map[string]string{"k8s-app": "kube-dns"},
				ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("fd00:10:96::a")},
				Ports:      []ServicePort{{Name: "dns", Protocol: "UDP", Port: 53}, {Name: "dns-tcp", Port: 53}},
			},
		},
		Hosts:   DefaultHosts(),
		Records: map[string][]string{"www.example.com": {"web.example.com"}},
	}
}

// ParseSpec reads a Spec from YAML or JSON; fields that it does not know are errors.
func ParseSpec(b []byte) (Spec, error) {
	var s Spec
	if err := yaml.UnmarshalStrict(b, &s); err != nil {
		return s, fmt.Errorf("lab spec: %w", err)
	}
	check := s
	return s, check.normalise()
}

var (
	labName    = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,30}[a-z0-9])?$`)
	objectName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?$`)
)

// CheckName fails if a lab can't have this name.
func CheckName(name string) error {
	if !labName.MatchString(name) {
		return fmt.Errorf("name %q: want at most 32 lower-case letters, digits and dashes", name)
	}
	return nil
}

// normalise fills in what s leaves open and reports everything that is wrong with it.
func (s *Spec) normalise() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if err := CheckName(s.Name); err != nil {
		errs = append(errs, err)
	}
	switch s.CNI {
	case "":
		s.CNI = PTP
	case PTP, Bridge:
	default:
		bad("cni %q: want ptp or bridge", s.CNI)
	}
	if s.MTU == 0 {
		s.MTU = 1500
	}
	if len(s.Nodes) == 0 {
		s.Nodes = []NodeSpec{{Name: "node1"}}
	}
	if len(s.Nodes) > 200 {
		bad("%d nodes: want at most 200", len(s.Nodes))
	}
	s.Nodes = slices.Clone(s.Nodes)
	seen := map[string]bool{"outside": true}
	for i := range s.Nodes {
		n := &s.Nodes[i]
		if n.Name == "" {
			n.Name = fmt.Sprintf("node%d", i+1)
		}
		// An interface of the outside is named after the node.
		if !objectName.MatchString(n.Name) || len(n.Name) > 13 || seen[n.Name] {
			bad("nodes[%d].name %q: want a DNS name of at most 13 characters, not outside, once", i, n.Name)
		}
		seen[n.Name] = true
		if len(n.PodCIDRs) == 0 {
			n.PodCIDRs = podCIDRs(i + 1)
		}
		if len(n.PodCIDRs) != 2 || !n.PodCIDRs[0].Addr().Is4() || !n.PodCIDRs[1].Addr().Is6() {
			bad("nodes[%d].podCIDRs: want one IPv4 and one IPv6 prefix", i)
		}
		if n.Servers == nil {
			n.Servers = DefaultNodeServers
		}
	}
	names := map[string]bool{}
	s.Namespaces = slices.Clone(s.Namespaces)
	for _, ns := range s.Namespaces {
		names[ns.Name] = true
	}
	s.Pods = slices.Clone(s.Pods)
	for i := range s.Pods {
		p := &s.Pods[i]
		if err := p.normalise(s); err != nil {
			bad("pods[%d].%w", i, err)
		}
		if seen[p.Key()] {
			bad("pods[%d]: %s is there twice", i, p.Key())
		}
		seen[p.Key()] = true
		if !names[p.Namespace] {
			names[p.Namespace] = true
			s.Namespaces = append(s.Namespaces, NamespaceSpec{Name: p.Namespace})
		}
	}
	s.Services = slices.Clone(s.Services)
	for i := range s.Services {
		if err := s.Services[i].normalise(); err != nil {
			bad("services[%d].%w", i, err)
		}
	}
	s.Hosts = slices.Clone(s.Hosts)
	for i := range s.Hosts {
		if s.Hosts[i].Servers == nil {
			s.Hosts[i].Servers = DefaultHostServers
		}
	}
	s.Records = maps.Clone(s.Records)
	return errors.Join(errs...)
}

func (p *PodSpec) normalise(s *Spec) error {
	if !objectName.MatchString(p.Namespace) || !objectName.MatchString(p.Name) {
		return fmt.Errorf("name %q: want DNS names for namespace and name", p.Key())
	}
	if p.Node == "" {
		p.Node = s.Nodes[0].Name
	}
	if !slices.ContainsFunc(s.Nodes, func(n NodeSpec) bool { return n.Name == p.Node }) {
		return fmt.Errorf("node %q: %w", p.Node, ErrNotFound)
	}
	if p.ServiceAccount == "" {
		p.ServiceAccount = "default"
	}
	if p.Servers == nil {
		p.Servers = DefaultPodServers
	}
	var v4, v6 int
	for _, a := range p.IPs {
		if a.Is4() {
			v4++
		} else {
			v6++
		}
	}
	if v4 > 1 || v6 > 1 {
		return errors.New("ips: want at most one address of each family")
	}
	return nil
}

func (v *ServiceSpec) normalise() error {
	if !objectName.MatchString(v.Namespace) || !objectName.MatchString(v.Name) {
		return fmt.Errorf("name %q: want DNS names for namespace and name", v.Key())
	}
	v.Ports = slices.Clone(v.Ports)
	for i := range v.Ports {
		p := &v.Ports[i]
		if p.Protocol == "" {
			p.Protocol = "TCP"
		}
		if p.Protocol != "TCP" && p.Protocol != "UDP" {
			return fmt.Errorf("ports[%d].protocol %q: want TCP or UDP", i, p.Protocol)
		}
		if p.TargetPort == 0 {
			p.TargetPort = p.Port
		}
	}
	return nil
}
