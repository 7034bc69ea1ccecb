package lab

import (
	"io"
	"net/netip"
)

// Status describes a lab as it is now. It is plain data, for printing and for Manifests.
type Status struct {
	Name string `json:"name"`
	CNI  CNI    `json:"cni"`
	// Dir is the lab's directory.
	Dir        string `json:"dir"`
	Persistent bool   `json:"persistent"`
	// ServerPID is the process that Detach started and that runs the servers; 0 if there is none.
	ServerPID  int             `json:"serverPID"`
	Nodes      []NodeStatus    `json:"nodes"`
	Namespaces []NamespaceSpec `json:"namespaces"`
	Pods       []PodStatus     `json:"pods"`
	Services   []ServiceStatus `json:"services"`
	Hosts      []HostSpec      `json:"hosts"`
}

// NodeStatus describes a running node.
type NodeStatus struct {
	Name     string            `json:"name"`
	Labels   map[string]string `json:"labels"`
	IPs      []netip.Addr      `json:"ips"`
	PodCIDRs []netip.Prefix    `json:"podCIDRs"`
	// Netns is where the node's network namespace is mounted.
	Netns string `json:"netns"`
}

// PodStatus describes a running pod.
type PodStatus struct {
	Namespace      string            `json:"namespace"`
	Name           string            `json:"name"`
	UID            string            `json:"uid"`
	Labels         map[string]string `json:"labels"`
	ServiceAccount string            `json:"serviceAccount"`
	Node           string            `json:"node"`
	IPs            []netip.Addr      `json:"ips"`
	// HostInterface is the host side of the pod's veth, in its node's namespace.
	HostInterface string   `json:"hostInterface"`
	Netns         string   `json:"netns"`
	Servers       []Server `json:"servers"`
}

// ServiceStatus describes a Service and where it leads now.
type ServiceStatus struct {
	ServiceSpec
	Endpoints []netip.Addr `json:"endpoints"`
}

// Streams are what a command reads and writes; nil ones are the null device.
type Streams struct {
	In       io.Reader
	Out, Err io.Writer
}
