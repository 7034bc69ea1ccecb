// Package v1alpha1 holds Postern's own API kinds, group postern.dev: what
// networking.k8s.io/v1 NetworkPolicy and policy.networking.k8s.io/v1alpha2
// ClusterNetworkPolicy cannot say. Field names follow ClusterNetworkPolicy, so
// a rule of that kind can be copied into ours.
//
// Flow of data: YAML -> these types -> kube.Translate -> policy.Policy.
//
// Invariants kept here:
//
//	A1 Nothing is permitted by leaving a field out: lists of peers hold at least
//	   one entry, subjects are required, and "everything" has to be written.
//	A2 Every list and string is bounded, and every cross-field rule has a
//	   message that says what to do.
//	A3 The comments of fields are the user's reference: meaning, default, unit,
//	   and what happens on a conflict.
//
// This package imports apimachinery only.
//
// +kubebuilder:object:generate=true
// +groupName=postern.dev
package v1alpha1
