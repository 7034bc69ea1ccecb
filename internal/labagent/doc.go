// Package labagent runs posternd on the nodes of a lab, as a process of its
// own that can be killed, for the demo, the tests and the benchmarks. Layer 4.
package labagent
