package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Tier is a step of evaluation for ClusterEgressPolicy. Tiers are looked at by
// order; three are built in and need no object: admin (1000), networkpolicy
// (2000) and baseline (3000). At most 12 Tier objects are used, the first by order.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,categories=postern
// +kubebuilder:printcolumn:name="Order",type=integer,JSONPath=`.spec.order`
// +kubebuilder:printcolumn:name="Default",type=string,JSONPath=`.spec.defaultAction`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="!(self.metadata.name in ['admin', 'networkpolicy', 'baseline'])",message="the tiers admin, networkpolicy and baseline are built in: choose another name"
// +kubebuilder:validation:XValidation:rule="self.metadata.name.size() <= 63 && !self.metadata.name.contains('.')",message="a tier's name has at most 63 characters and no dots"
type Tier struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// Spec is the tier's place and its end.
	//
	// +required
	Spec TierSpec `json:"spec"`

	// Status is written by Postern.
	//
	// +optional
	Status PolicyStatus `json:"status,omitempty"`
}

// TierList is a list of Tier.
//
// +kubebuilder:object:root=true
type TierList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Tier `json:"items"`
}

// TierDefaultAction is what a tier does at its end.
//
// +enum
// +kubebuilder:validation:Enum=Pass;Deny
type TierDefaultAction string

// Values of TierDefaultAction.
const (
	// TierDefaultPass leaves the decision to the next tier.
	TierDefaultPass TierDefaultAction = "Pass"
	// TierDefaultDeny drops.
	TierDefaultDeny TierDefaultAction = "Deny"
)

// TierSpec is a tier's place and its end.
type TierSpec struct {
	// Order is the tier's place, from 1 to 9999: a lower value is looked at
	// first. 1000, 2000 and 3000 are taken by the built-in tiers. Tiers of equal
	// order are ordered by name, and reported.
	//
	// +required
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=9999
	// +kubebuilder:validation:XValidation:rule="!(self in [1000, 2000, 3000])",message="the orders 1000, 2000 and 3000 belong to the tiers admin, networkpolicy and baseline: choose another number"
	Order int32 `json:"order,omitempty"`

	// DefaultAction is what happens to a connection of a pod that some policy of
	// the tier selects if no rule of the tier matches: Pass (the next tier
	// decides) or Deny. Default: Pass.
	//
	// +optional
	// +kubebuilder:default=Pass
	DefaultAction TierDefaultAction `json:"defaultAction,omitempty"`
}
