package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// DestinationSet is a named list of networks and domain names that the
// EgressPolicies of its namespace can refer to.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:shortName=dset,categories=postern
// +kubebuilder:printcolumn:name="Accepted",type=string,JSONPath=`.status.conditions[?(@.type=="Accepted")].status`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type DestinationSet struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// Spec is the content of the set.
	//
	// +required
	Spec DestinationSetSpec `json:"spec"`

	// Status is written by Postern.
	//
	// +optional
	Status PolicyStatus `json:"status,omitempty"`
}

// DestinationSetList is a list of DestinationSet.
//
// +kubebuilder:object:root=true
type DestinationSetList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []DestinationSet `json:"items"`
}

// ClusterDestinationSet is a named list of networks and domain names that any
// EgressPolicy and ClusterEgressPolicy can refer to.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=cdset,categories=postern
// +kubebuilder:printcolumn:name="Accepted",type=string,JSONPath=`.status.conditions[?(@.type=="Accepted")].status`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type ClusterDestinationSet struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// Spec is the content of the set.
	//
	// +required
	Spec DestinationSetSpec `json:"spec"`

	// Status is written by Postern.
	//
	// +optional
	Status PolicyStatus `json:"status,omitempty"`
}

// ClusterDestinationSetList is a list of ClusterDestinationSet.
//
// +kubebuilder:object:root=true
type ClusterDestinationSetList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []ClusterDestinationSet `json:"items"`
}

// MaxSetNetworks is the largest number of networks, and of exceptions, of one
// set that is loaded from a file. The API server's limit is lower: see Networks.
const MaxSetNetworks = 1_000_000

// DestinationSetSpec is the content of a set. An empty set is valid and matches nothing.
//
// +kubebuilder:validation:XValidation:rule="!has(self.except) || has(self.networks)",message="except takes addresses out of networks: set networks beside it"
type DestinationSetSpec struct {
	// Networks are the networks of the set. In an object of the API server at
	// most 20,000, since an object is limited to about 1.5 MiB; in a manifest
	// file that the agent reads, 1,000,000.
	//
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=20000
	Networks []CIDR `json:"networks,omitempty"`

	// Except takes these networks out of networks of this set. The limits are
	// the same. Another set or rule may still match them.
	//
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=20000
	Except []CIDR `json:"except,omitempty"`

	// DomainNames are the domain names of the set. Accepted but without effect
	// in this version: they match nothing, and the Enforced condition says so.
	//
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=10000
	DomainNames []DomainName `json:"domainNames,omitempty"`
}
