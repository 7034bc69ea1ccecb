package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// EgressPolicy is an allow-list for what the pods of one namespace may send,
// written by the owner of the application. It isolates the pods that it selects
// for egress and accepts what its rules name. It is evaluated in the
// networkpolicy tier together with NetworkPolicy: a pod may send what any
// EgressPolicy or NetworkPolicy that selects it accepts, and nothing else. It can
// never deny: what an administrator's Admin tier refused stays refused.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:shortName=egp,categories=postern
// +kubebuilder:printcolumn:name="Accepted",type=string,JSONPath=`.status.conditions[?(@.type=="Accepted")].status`
// +kubebuilder:printcolumn:name="Enforced",type=string,JSONPath=`.status.conditions[?(@.type=="Enforced")].status`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type EgressPolicy struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// Spec is what the pods may send.
	//
	// +required
	Spec EgressPolicySpec `json:"spec"`

	// Status is written by Postern.
	//
	// +optional
	Status PolicyStatus `json:"status,omitempty"`
}

// EgressPolicyList is a list of EgressPolicy.
//
// +kubebuilder:object:root=true
type EgressPolicyList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []EgressPolicy `json:"items"`
}

// EgressPolicySpec says who is isolated and what they may still send.
type EgressPolicySpec struct {
	// PodSelector selects the pods of this namespace that the policy isolates;
	// `{}` selects all of them. Pods of the host network cannot be isolated.
	//
	// +required
	PodSelector *metav1.LabelSelector `json:"podSelector,omitempty"`

	// ServiceAccounts, if given, narrows the selection to pods that run under
	// one of these service accounts of this namespace. Unlike a label, a pod
	// cannot change its service account while it lives.
	//
	// +optional
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	ServiceAccounts []ObjectName `json:"serviceAccounts,omitempty"`

	// Egress is what the selected pods may send: whatever any one of the rules
	// accepts. Without rules they may send nothing. The order has no meaning.
	//
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=64
	Egress []EgressPolicyRule `json:"egress,omitempty"`
}

// EgressPolicyRule accepts traffic to any of its peers over any of its protocols.
//
// +kubebuilder:validation:XValidation:rule="!has(self.protocols) || !self.protocols.exists(p, has(p.destinationNamedPort)) || self.to.all(t, has(t.pods) || has(t.namespaces))",message="destinationNamedPort is the name of a pod's port: use it only in a rule whose `to` holds pods and namespaces, or write the number"
// +kubebuilder:validation:XValidation:rule="!has(self.serverName) || self.to.exists(t, has(t.domainNames) || has(t.destinationSets))",message="serverName is about domain names: remove it or add domainNames or destinationSets to `to`"
type EgressPolicyRule struct {
	// Name appears wherever this rule decides: flow records, explanations,
	// metrics. At most 100 characters; it need not be unique.
	//
	// +optional
	// +kubebuilder:validation:MaxLength=100
	Name string `json:"name,omitempty"`

	// To lists the destinations; a connection must match one of them. For every
	// destination write `networks: [0.0.0.0/0, "::/0"]`.
	//
	// +required
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=25
	To []EgressPolicyPeer `json:"to,omitempty"`

	// Protocols lists protocols and destination ports; a packet must match one
	// of them. If it is left out, every protocol and port matches.
	//
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=25
	Protocols []Protocol `json:"protocols,omitempty"`

	// ExpiresAt ends the rule: from this moment on it accepts nothing, and
	// connections that it admitted are cut. While no agent runs on a node that
	// waits until one starts. Default: never.
	//
	// +optional
	ExpiresAt *metav1.Time `json:"expiresAt,omitempty"`

	// Reason says why the rule exists, for the people who review it.
	//
	// +optional
	// +kubebuilder:validation:MaxLength=256
	Reason string `json:"reason,omitempty"`

	// ServerName says whether a TLS client must name, in its ClientHello, a host
	// that the rule's domainNames match: Verify or Ignore. Default: Verify for
	// TCP port 443, Ignore elsewhere. Accepted but without effect in this
	// version, as are domainNames.
	//
	// +optional
	ServerName ServerNameMode `json:"serverName,omitempty"`
}

// EgressPolicyPeer is one kind of destination. Exactly one of networks, pods,
// namespaces, services, destinationSets and domainNames must be set; except goes
// with networks.
//
// +kubebuilder:validation:XValidation:rule="[has(self.networks), has(self.pods), has(self.namespaces), has(self.services), has(self.destinationSets), has(self.domainNames)].exists_one(x, x)",message="set exactly one of networks, pods, namespaces, services, destinationSets and domainNames; write one entry of `to` for each"
// +kubebuilder:validation:XValidation:rule="!has(self.except) || has(self.networks)",message="except takes addresses out of networks: set networks beside it"
type EgressPolicyPeer struct {
	// Networks matches destination addresses inside any of these networks, pods
	// and nodes included.
	//
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=100
	Networks []CIDR `json:"networks,omitempty"`

	// Except takes these networks out of networks of the same entry. Another
	// entry or rule may still accept them.
	//
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=100
	Except []CIDR `json:"except,omitempty"`

	// Pods matches pods by label. Without a namespaceSelector only pods of the
	// policy's own namespace match.
	//
	// +optional
	Pods *LocalPod `json:"pods,omitempty"`

	// Namespaces matches every pod of the namespaces with these labels; `{}`
	// matches the pods of every namespace.
	//
	// +optional
	Namespaces *metav1.LabelSelector `json:"namespaces,omitempty"`

	// Services matches Services by name: their own addresses, and the ready
	// backends that they lead to at the target ports. The rule's protocols are
	// compared with the target port; without protocols exactly the Services'
	// ports are matched.
	//
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=25
	Services []LocalServiceReference `json:"services,omitempty"`

	// DestinationSets matches what any of the named sets contains.
	//
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=25
	DestinationSets []LocalSetReference `json:"destinationSets,omitempty"`

	// DomainNames matches addresses that a trusted resolver gave this pod for
	// one of these names. Accepted but without effect in this version: it
	// matches nothing, and the Enforced condition says so.
	//
	// +optional
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=100
	DomainNames []DomainName `json:"domainNames,omitempty"`
}

// LocalServiceReference names a Service.
type LocalServiceReference struct {
	// Name of the Service.
	//
	// +required
	Name ObjectName `json:"name,omitempty"`

	// Namespace of the Service. Default: the policy's namespace.
	//
	// +optional
	Namespace NamespaceName `json:"namespace,omitempty"`
}

// LocalSetReference names a DestinationSet of the policy's namespace or a ClusterDestinationSet.
type LocalSetReference struct {
	// Kind is DestinationSet, for one of the policy's own namespace, or
	// ClusterDestinationSet. Default: DestinationSet.
	//
	// +optional
	// +kubebuilder:default=DestinationSet
	// +kubebuilder:validation:Enum=DestinationSet;ClusterDestinationSet
	Kind string `json:"kind,omitempty"`

	// Name of the set. While no set has this name, nothing matches.
	//
	// +required
	Name ObjectName `json:"name,omitempty"`
}
