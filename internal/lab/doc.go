// Package lab builds a small world out of network namespaces: nodes, pods,
// services and an internet, on one Linux machine, as root. The demo, the
// integration tests, the attack suite and the benchmarks run on it.
//
// Flow of data:
//
//	Spec -> plan (addresses, names, MACs) -> Up -> namespaces, links, routes, NAT, servers
//	                                            -> state files -> Open, from any process
//	                                            -> Manifests (the same world as Kubernetes objects)
//
//	 pod eth0 ---- pl<hash>  node  eth0 ---- w-<node>  outside (a bridge, and every host's address on lo)
//	          veth           NAT        veth
//
// A node is a namespace that routes (or bridges) its pods as the CNI's ptp (or
// bridge) plugin does, with Services and masquerade as kube-proxy's nftables
// mode does them. The outside is one namespace that holds every address of the
// internet that a test talks to. Sniffers judge on the wires between them.
//
// Invariants:
//
//	L1  Nothing touches the initial network namespace: links are made inside the
//	    lab's namespaces, sysctls are written from threads that are in one.
//	L2  Everything that outlives a process is below /run/postern-lab/<name> or
//	    inside a namespace mounted there, so Cleanup finds it after kill -9.
//	L3  A lab belongs to the process that holds the lock on its directory. The
//	    kernel releases it when that process dies, however it dies; the next Up
//	    of any lab removes what is left.
//	L4  Same Spec, same world: addresses, MACs and interface names are functions of it.
//	L5  A sniffer that may have missed a frame says so (Verify), it never reports zero.
//
// The package compiles everywhere; outside Linux, Up and Open return
// ErrUnsupported. It knows no policy and imports neither Kubernetes nor eBPF.
package lab
