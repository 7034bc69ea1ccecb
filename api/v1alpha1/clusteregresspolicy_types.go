package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// ClusterEgressPolicy is an ordered list of rules for what pods of the whole
// cluster send, in a tier of the administrator's choice. It says what
// ClusterNetworkPolicy says about egress, with the same words, and adds service
// accounts, exceptions, Services, destination sets, ICMP and other protocols,
// expiry dates and tiers of one's own.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=cegp,categories=postern
// +kubebuilder:printcolumn:name="Tier",type=string,JSONPath=`.spec.tier`
// +kubebuilder:printcolumn:name="Priority",type=integer,JSONPath=`.spec.priority`
// +kubebuilder:printcolumn:name="Accepted",type=string,JSONPath=`.status.conditions[?(@.type=="Accepted")].status`
// +kubebuilder:printcolumn:name="Enforced",type=string,JSONPath=`.status.conditions[?(@.type=="Enforced")].status`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type ClusterEgressPolicy struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// Spec is the policy.
	//
	// +required
	Spec ClusterEgressPolicySpec `json:"spec"`

	// Status is written by Postern.
	//
	// +optional
	Status PolicyStatus `json:"status,omitempty"`
}

// ClusterEgressPolicyList is a list of ClusterEgressPolicy.
//
// +kubebuilder:object:root=true
type ClusterEgressPolicyList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []ClusterEgressPolicy `json:"items"`
}

// ClusterEgressPolicySpec says where the policy stands, whom it is about and what its rules are.
type ClusterEgressPolicySpec struct {
	// Tier is the name of the Tier that the policy belongs to: admin, baseline or
	// a Tier object's. ClusterNetworkPolicy's spellings Admin and Baseline are
	// understood too. The networkpolicy tier is for EgressPolicy. While no Tier
	// has this name, the pods that the policy selects may send nothing.
	//
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:Pattern=`^(Admin|Baseline|[a-z0-9]([-a-z0-9]*[a-z0-9])?)$`
	// +kubebuilder:validation:XValidation:rule="self != 'networkpolicy'",message="the networkpolicy tier holds NetworkPolicy and EgressPolicy only: use EgressPolicy, or the tier admin, baseline or your own"
	Tier string `json:"tier,omitempty"`

	// Priority orders the policies of a tier, from 0 to 1000: a lower value is
	// looked at first. Policies with equal priority are ordered by kind
	// (ClusterEgressPolicy before ClusterNetworkPolicy) and name, and reported.
	//
	// +required
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=1000
	Priority *int32 `json:"priority,omitempty"`

	// Subject selects the pods that the policy applies to.
	//
	// +required
	Subject ClusterEgressPolicySubject `json:"subject"`

	// Egress are the rules, in order: the first one that matches a connection
	// decides. If none matches, the tier's later policies decide.
	//
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=100
	Egress []ClusterEgressPolicyRule `json:"egress,omitempty"`
}

// ClusterEgressPolicySubject selects pods. Exactly one of namespaces and pods
// must be set; serviceAccounts narrows either. Pods of the host network are
// never selected.
//
// +kubebuilder:validation:XValidation:rule="has(self.namespaces) != has(self.pods)",message="set either namespaces or pods; for every pod of the cluster write `namespaces: {}`"
type ClusterEgressPolicySubject struct {
	// Namespaces selects every pod of the namespaces with these labels; `{}`
	// selects every pod of the cluster.
	//
	// +optional
	Namespaces *metav1.LabelSelector `json:"namespaces,omitempty"`

	// Pods selects pods by their own labels and those of their namespace.
	//
	// +optional
	Pods *NamespacedPod `json:"pods,omitempty"`

	// ServiceAccounts, if given, narrows the selection to pods that run under a
	// service account of one of these names, in their own namespace.
	//
	// +optional
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	ServiceAccounts []ObjectName `json:"serviceAccounts,omitempty"`
}

// RuleAction is what a rule does with the connections that it matches.
//
// +enum
// +kubebuilder:validation:Enum=Accept;Deny;Pass
type RuleAction string

// Values of RuleAction.
const (
	// RuleActionAccept accepts; no later rule, policy or tier is looked at.
	RuleActionAccept RuleAction = "Accept"
	// RuleActionDeny drops; no later rule, policy or tier is looked at.
	RuleActionDeny RuleAction = "Deny"
	// RuleActionPass skips the rest of the tier; the next tier decides.
	RuleActionPass RuleAction = "Pass"
)

// ClusterEgressPolicyRule does its action to traffic to any of its peers over
// any of its protocols.
//
// +kubebuilder:validation:XValidation:rule="!has(self.protocols) || !self.protocols.exists(p, has(p.destinationNamedPort)) || self.to.all(t, has(t.pods) || has(t.namespaces))",message="destinationNamedPort is the name of a pod's port: use it only in a rule whose `to` holds pods and namespaces, or write the number"
// +kubebuilder:validation:XValidation:rule="!has(self.serverName) || self.to.exists(t, has(t.domainNames) || has(t.destinationSets))",message="serverName is about domain names: remove it or add domainNames or destinationSets to `to`"
type ClusterEgressPolicyRule struct {
	// Name appears wherever this rule decides: flow records, explanations,
	// metrics. At most 100 characters; it need not be unique.
	//
	// +optional
	// +kubebuilder:validation:MaxLength=100
	Name string `json:"name,omitempty"`

	// Action is Accept (final), Deny (final) or Pass (the next tier decides).
	//
	// +required
	Action RuleAction `json:"action,omitempty"`

	// To lists the destinations; a connection must match one of them. For every
	// destination write `networks: [0.0.0.0/0, "::/0"]`.
	//
	// +required
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=25
	To []ClusterEgressPolicyPeer `json:"to,omitempty"`

	// Protocols lists protocols and destination ports; a packet must match one
	// of them. If it is left out, every protocol and port matches.
	//
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=25
	Protocols []Protocol `json:"protocols,omitempty"`

	// ExpiresAt ends an Accept: from this moment on it matches nothing, and
	// connections that it admitted are judged anew. While no agent runs on a
	// node that waits until one starts. A Deny or a Pass stays. Default: never.
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

// ClusterEgressPolicyPeer is one kind of destination. Exactly one of networks,
// pods, namespaces, nodes, services, destinationSets and domainNames must be
// set; except goes with networks.
//
// +kubebuilder:validation:XValidation:rule="[has(self.networks), has(self.pods), has(self.namespaces), has(self.nodes), has(self.services), has(self.destinationSets), has(self.domainNames)].exists_one(x, x)",message="set exactly one of networks, pods, namespaces, nodes, services, destinationSets and domainNames; write one entry of `to` for each"
// +kubebuilder:validation:XValidation:rule="!has(self.except) || has(self.networks)",message="except takes addresses out of networks: set networks beside it"
type ClusterEgressPolicyPeer struct {
	// Networks matches destination addresses inside any of these networks, pods
	// and nodes included.
	//
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=100
	Networks []CIDR `json:"networks,omitempty"`

	// Except takes these networks out of networks of the same entry. Another
	// entry or rule may still match them.
	//
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=100
	Except []CIDR `json:"except,omitempty"`

	// Pods matches pods by their own labels and those of their namespace.
	//
	// +optional
	Pods *NamespacedPod `json:"pods,omitempty"`

	// Namespaces matches every pod of the namespaces with these labels; `{}`
	// matches every pod of the cluster.
	//
	// +optional
	Namespaces *metav1.LabelSelector `json:"namespaces,omitempty"`

	// Nodes matches the addresses in status.addresses of the nodes with these
	// labels; `{}` matches those of every node.
	//
	// +optional
	Nodes *metav1.LabelSelector `json:"nodes,omitempty"`

	// Services matches Services by name: their own addresses, and the ready
	// backends that they lead to at the target ports. The rule's protocols are
	// compared with the target port; without protocols exactly the Services'
	// ports are matched.
	//
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=25
	Services []ServiceReference `json:"services,omitempty"`

	// DestinationSets matches what any of the named ClusterDestinationSets
	// contains.
	//
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=25
	DestinationSets []SetReference `json:"destinationSets,omitempty"`

	// DomainNames matches addresses that a trusted resolver gave the pod for one
	// of these names; in a Deny rule, the question itself. Accepted but without
	// effect in this version: it matches nothing, and the Enforced condition
	// says so.
	//
	// +optional
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=100
	DomainNames []DomainName `json:"domainNames,omitempty"`
}

// ServiceReference names a Service of any namespace.
type ServiceReference struct {
	// Name of the Service.
	//
	// +required
	Name ObjectName `json:"name,omitempty"`

	// Namespace of the Service.
	//
	// +required
	Namespace NamespaceName `json:"namespace,omitempty"`
}

// SetReference names a ClusterDestinationSet.
type SetReference struct {
	// Name of the ClusterDestinationSet. While no set has this name, an Accept
	// matches nothing and a Deny or Pass denies everything.
	//
	// +required
	Name ObjectName `json:"name,omitempty"`
}
