// Package baseline holds the manifests of the baseline: everything denied that leaves
// a pod or comes from one, the cluster's DNS, no cloud metadata. They are what the
// demo and the tests enforce; a cluster applies the same files.
//
// Layer 0; data only.
package baseline

import "embed"

// Files are the manifests, in the order in which they are read best.
//
//go:embed *.yaml
var Files embed.FS

// Closed closes one namespace to what comes from outside of the cluster too.
//
//go:embed namespace/closed.yaml
var Closed string
