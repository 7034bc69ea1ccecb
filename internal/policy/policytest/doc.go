// Package policytest makes random inputs of the policy language for tests: of
// the compiler against Evaluate, and of the kernel's program against both.
//
//	RandomSnapshot -> policy.Evaluate, policy.Compile
//	RandomChanges  -> policy.Compiler, and the Snapshot that it must equal
//	Tuples         -> random and boundary packets for one endpoint of a Snapshot
//	Shrink         -> the smallest Snapshot that still fails
//
// Universes are small on purpose (few labels, addresses that collide, prefixes
// that nest), since bugs live where things meet. Everything follows from the
// generator that the caller seeds: print the seed.
//
// It may import packages packet and policy and the standard library only.
package policytest
