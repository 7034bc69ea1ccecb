package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// CIDR is an IPv4 or IPv6 network such as "10.0.0.0/8" or "2001:db8::/32".
// One address is written with its full length: "192.0.2.1/32". Bits beyond the
// length are ignored and reported ("10.1.2.3/8" is read as "10.0.0.0/8"); octets
// with leading zeros and addresses with a zone are refused.
//
// +kubebuilder:validation:MinLength=3
// +kubebuilder:validation:MaxLength=43
// +kubebuilder:validation:XValidation:rule="isCIDR(self)",message="not a network: write ADDRESS/LENGTH, such as 10.0.0.0/8, 192.0.2.1/32 or 2001:db8::/32"
type CIDR string

// DomainName is a domain name, or "*." and a domain name. "example.com" is that
// name only; "*.example.com" is every name below it, at any depth, and not
// example.com itself. Case and a trailing dot make no difference. An
// internationalised name is written in its ASCII form (xn--...).
//
// +kubebuilder:validation:MaxLength=253
// +kubebuilder:validation:Pattern=`^(\*\.)?([a-zA-Z0-9]([-a-zA-Z0-9_]*[a-zA-Z0-9])?\.)+[a-zA-Z0-9]([-a-zA-Z0-9_]*[a-zA-Z0-9])?\.?$`
type DomainName string

// ObjectName is the name of a Kubernetes object.
//
// +kubebuilder:validation:MinLength=1
// +kubebuilder:validation:MaxLength=253
// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`
type ObjectName string

// NamespaceName is the name of a namespace.
//
// +kubebuilder:validation:MinLength=1
// +kubebuilder:validation:MaxLength=63
// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`
type NamespaceName string

// ServerNameMode says whether a TLS client must ask for a name that the rule allows.
//
// +enum
// +kubebuilder:validation:Enum=Verify;Ignore
type ServerNameMode string

// Values of ServerNameMode.
const (
	// ServerNameVerify requires a TLS server name that one of the rule's domainNames matches.
	ServerNameVerify ServerNameMode = "Verify"
	// ServerNameIgnore looks at addresses only.
	ServerNameIgnore ServerNameMode = "Ignore"
)

// Protocol matches one protocol and, where it has ports, destination ports.
// Exactly one field must be set.
//
// +kubebuilder:validation:XValidation:rule="[has(self.tcp), has(self.udp), has(self.sctp), has(self.icmp), has(self.number), has(self.destinationNamedPort)].exists_one(x, x)",message="set exactly one of tcp, udp, sctp, icmp, number and destinationNamedPort; write one entry per protocol"
type Protocol struct {
	// TCP matches TCP with a destination port.
	//
	// +optional
	TCP *ProtocolPort `json:"tcp,omitempty"`

	// UDP matches UDP with a destination port.
	//
	// +optional
	UDP *ProtocolPort `json:"udp,omitempty"`

	// SCTP matches SCTP with a destination port.
	//
	// +optional
	SCTP *ProtocolPort `json:"sctp,omitempty"`

	// ICMP matches every message of ICMP over IPv4 and of ICMPv6 over IPv6.
	// Write `icmp: {}`. Errors that belong to a permitted flow pass without it.
	//
	// +optional
	ICMP *ProtocolICMP `json:"icmp,omitempty"`

	// Number matches a whole IP protocol by its number, such as 47 for GRE or
	// 50 for ESP; for one with ports (6, 17, 132) it matches every port. Numbers
	// are those of IANA's "Assigned Internet Protocol Numbers", from 1 to 255.
	//
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=255
	Number *int32 `json:"number,omitempty"`

	// DestinationNamedPort matches the container port of this name, of any
	// protocol, of the destination pod. A pod that has no port of this name is
	// not matched. It can only be used if every entry of `to` is pods or namespaces.
	//
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	DestinationNamedPort string `json:"destinationNamedPort,omitempty"`
}

// ProtocolPort is the destination port of TCP, UDP or SCTP.
type ProtocolPort struct {
	// DestinationPort is one port or a range of ports. For every port write the
	// range from 1 to 65535.
	//
	// +required
	DestinationPort *Port `json:"destinationPort,omitempty"`
}

// ProtocolICMP has no fields yet: it stands for every ICMP message.
type ProtocolICMP struct{}

// Port is a port or a range of ports. Exactly one field must be set.
//
// +kubebuilder:validation:XValidation:rule="has(self.number) != has(self.range)",message="set either number or range"
type Port struct {
	// Number is one port, from 1 to 65535.
	//
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=65535
	Number int32 `json:"number,omitempty"`

	// Range is an inclusive range of ports.
	//
	// +optional
	Range *PortRange `json:"range,omitempty"`
}

// PortRange is an inclusive range of ports.
//
// +kubebuilder:validation:XValidation:rule="self.start < self.end",message="start must be less than end; for a single port use number"
type PortRange struct {
	// Start is the first port, from 1 to 65535. It must be less than end.
	//
	// +required
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=65535
	Start int32 `json:"start"`

	// End is the last port, from 1 to 65535.
	//
	// +required
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=65535
	End int32 `json:"end"`
}

// NamespacedPod selects pods by their own labels and those of their namespace.
type NamespacedPod struct {
	// NamespaceSelector selects namespaces by label; `{}`, and leaving it out,
	// select every namespace. The label kubernetes.io/metadata.name is the
	// namespace's name.
	//
	// +optional
	NamespaceSelector metav1.LabelSelector `json:"namespaceSelector"`

	// PodSelector selects pods by label within those namespaces; `{}` selects
	// every pod. Pods of the host network are never selected.
	//
	// +required
	PodSelector *metav1.LabelSelector `json:"podSelector,omitempty"`
}

// LocalPod selects pods, by default of the policy's own namespace.
type LocalPod struct {
	// NamespaceSelector selects namespaces by label; `{}` selects every
	// namespace. If it is left out, only the policy's own namespace is meant.
	//
	// +optional
	NamespaceSelector *metav1.LabelSelector `json:"namespaceSelector,omitempty"`

	// PodSelector selects pods by label within those namespaces; `{}` selects
	// every pod. Pods of the host network are never selected.
	//
	// +required
	PodSelector *metav1.LabelSelector `json:"podSelector,omitempty"`
}

// PolicyStatus is what Postern says about a policy or a set.
type PolicyStatus struct {
	// Conditions are Accepted and Enforced; their reasons and messages name the
	// fields that are wrong or without effect.
	//
	// +optional
	// +patchMergeKey=type
	// +patchStrategy=merge
	// +listType=map
	// +listMapKey=type
	// +kubebuilder:validation:MaxItems=8
	Conditions []metav1.Condition `json:"conditions,omitempty" patchStrategy:"merge" patchMergeKey:"type"`
}
