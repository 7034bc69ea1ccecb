package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// GroupName is the API group of every kind in this package.
const GroupName = "postern.dev"

// GroupVersion is the group and version of every kind in this package.
var GroupVersion = schema.GroupVersion{Group: GroupName, Version: "v1alpha1"}

// AddToScheme registers the kinds of this package.
func AddToScheme(s *runtime.Scheme) error {
	s.AddKnownTypes(GroupVersion,
		&EgressPolicy{}, &EgressPolicyList{},
		&ClusterEgressPolicy{}, &ClusterEgressPolicyList{},
		&Tier{}, &TierList{},
		&DestinationSet{}, &DestinationSetList{},
		&ClusterDestinationSet{}, &ClusterDestinationSetList{},
	)
	metav1.AddToGroupVersion(s, GroupVersion)
	return nil
}
