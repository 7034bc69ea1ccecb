// Package demo tells the first of Postern's five steps as a story on a lab: what
// leaks without policies, the baseline, an app's own policy, a tightened policy
// that cuts a live connection, and an agent that is killed.
//
// Flow of data:
//
//	lab -> probes (real connections) + sniffers (at every destination) -> claims -> text
//	deploy/baseline, app.yaml -> the agent's directory -> posternd -> flow records -> "by which rule"
//
// Invariants:
//
//	D1 Nothing is printed as a fact that was not measured in this run.
//	D2 A claim that is not true ends the demo with ErrClaim.
//	D3 However it ends, the lab is gone; after kill -9 the next run of any lab removes it.
//
// Layer 6.
package demo
