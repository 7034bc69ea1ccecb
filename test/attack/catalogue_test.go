//go:build linux

package attack

// row is a line of the catalogue of threats, sections 1 to 4 and 8. IDs with a
// gap between them belong to a row that another one covers.
type row struct {
	id, what string
	// who: A0 is a process in the pod without capabilities, A1 one with
	// CAP_NET_RAW, A2 one with CAP_NET_ADMIN in the pod's namespace, A3 a user
	// with rights on a namespace's objects, A4 somebody outside. Empty: an accident.
	who string
	// not says why the row is not tried here; empty: it is.
	not string
	// note says what a result means that needs to be said.
	note string
}

const (
	needsCNI    = "needs the CNI plugin, which comes later"
	needsGW     = "gateways come later"
	needsNames  = "domain names come later"
	needsAPI    = "needs an API server; the node here has none"
	kernelLacks = "the test kernel has no such device"
)

var catalogue = []struct {
	title string
	rows  []row
}{
	{"Packets", []row{
		{id: "PKT-01", what: "headers not in the linear part of the buffer, and frames of 5 kB", who: "A1"},
		{id: "PKT-02", what: "two VLAN tags: every pair of 8100, 88a8, 9100 and VID 0, 1, 5, 4095, routed and bridged", who: "A1"},
		{id: "PKT-03", what: "one VLAN or priority tag, routed", who: "A1"},
		{id: "PKT-04", what: "VLAN tag to another pod on the bridge", who: "A1"},
		{id: "PKT-06", what: "ethertype and IP version contradict each other; every version number", who: "A1"},
		{id: "PKT-07", what: "IPv4 options move the ports: by socket, raw, and every kind with six lengths", who: "A0"},
		{id: "PKT-08", what: "header, total and payload lengths that lie; bytes behind the packet", who: "A1"},
		{id: "PKT-09", what: "source routes past an allowed hop", who: "A1"},
		{id: "PKT-11", what: "first fragments too small to judge, fragments alone, at offset 8", who: "A1"},
		{id: "PKT-12", what: "overlapping and repeated fragments that write ports anew", who: "A1"},
		{id: "PKT-13", what: "fragments in every order of three", who: "A1"},
		{id: "PKT-14", what: "fragments behind the first one of another pod", who: "A1"},
		{id: "PKT-16", what: "1 to 40 IPv6 extension headers, 8 to 2048 bytes", who: "A1"},
		{id: "PKT-17", what: "every sequence of up to four of hop-by-hop, options, routing, fragment, AH, against a reference", who: "A1"},
		{id: "PKT-18", what: "extension headers out of order, repeated, unknown", who: "A1"},
		{id: "PKT-19", what: "routing headers of every type past an allowed address", who: "A1"},
		{id: "PKT-21", what: "atomic fragments", who: "A1"},
		{id: "PKT-22", what: "a payload behind No Next Header", who: "A1"},
		{id: "PKT-23", what: "ports hidden by ESP and AH", who: "A1, A2", note: "frames as a pod's xfrm would send them"},
		{id: "PKT-24", what: "all 256 IP protocols, UDP-Lite by socket, IP in IP, GRE", who: "A0, A1, A2"},
		{id: "PKT-26", what: "frames wrapped for the node's own overlay", who: "A0", note: "towards a gateway: later"},
		{id: "PKT-27", what: "payload in pings, by ping socket and raw", who: "A0"},
		{id: "PKT-28", what: "echo request with the id of an echo that was asked of us", who: "A0"},
		{id: "PKT-29", what: "forged ICMP errors as a channel", who: "A1"},
		{id: "PKT-31", what: "every ICMPv6 type to the world; neighbour discovery and listener reports with a payload", who: "A0, A1"},
		{id: "PKT-32", what: "router advertisements and redirects to the node", who: "A1"},
		{id: "PKT-33", what: "ARP and NDP that claim another pod's or the gateway's address, link-local ones too", who: "A1"},
		{id: "PKT-33b", what: "16 bytes as the target of a solicitation, 4 as that of an ARP request, to all pods of a bridge", who: "A1", note: "leaks between pods of one bridge: it is what neighbour discovery says. Not beyond the bridge, nor beyond the node"},
		{id: "PKT-34", what: "the node's link-local address", who: "A0"},
		{id: "PKT-36", what: "the node's loopback with route_localnet on, under an allow of 0.0.0.0/0", who: "A0, A1"},
		{id: "PKT-37", what: "other forms of a denied address: NAT64, 6to4, mapped, compatible; addresses of no wire", who: "A0"},
		{id: "PKT-37b", what: "the NAT64 form of metadata under an allow of ::/0", who: "A0"},
		{id: "PKT-38", what: "somebody else's source address, thirteen kinds, three ways to send", who: "A1"},
		{id: "PKT-39", what: "somebody else's source MAC; destination MACs that are not the packet's way, on a bridge another pod's", who: "A1"},
		{id: "PKT-41", what: "all 64 combinations of TCP flags as a first packet", who: "A1"},
		{id: "PKT-42", what: "UDP lengths and TCP data offsets that lie", who: "A1"},
		{id: "PKT-43", what: "ten datagrams in one buffer (UDP_SEGMENT), counted as ten", who: "A0"},
		{id: "PKT-44", what: "MSG_ZEROCOPY and splice", who: "A0"},
		{id: "PKT-46", what: "a second interface in the pod", who: "A3", note: "not enforced; the pod is reported not covered, by name of the interface"},
		{id: "PKT-47", what: "RDMA, DPDK, vsock and others past the kernel's network", who: "A3", not: kernelLacks},
		{id: "PKT-48", what: "a pod behind a device that is no veth", who: "A3", note: "not enforced; the pod is reported not covered. netkit and ipvlan: the test kernel has none"},
		{id: "PKT-49", what: "addresses added in the pod; macvlan on its interface", who: "A2"},
		{id: "PKT-51", what: "the pod sets our own mark", who: "A2"},
		{id: "PKT-52", what: "ethertypes that are not IP to another pod on the bridge: LLC, LACP, LLDP, MPLS and others", who: "A1"},
		{id: "PKT-53", what: "checksums left to the device, to be written over ports, addresses and lengths (PACKET_VNET_HDR)", who: "A1"},
		{id: "PKT-54", what: "neighbour discovery behind extension headers, in front of more bytes, to an unused address of the pod's network", who: "A1"},
		{id: "PKT-37c", what: "NAT64 forms of the pod's own address, of loopback and of addresses of no wire", who: "A0"},
	}},
	{"Connection state", []row{
		{id: "CT-01", what: "open connections when policy tightens; those still allowed go on", who: "A0"},
		{id: "CT-02", what: "a denied flow is allowed, then denied again: nothing is remembered", who: "A0"},
		{id: "CT-03", what: "state forged on the attacker's link for itself and for another pod", who: "A1"},
		{id: "CT-04", what: "answers to what nobody asked; a server that opens back", who: "A1, A4"},
		{id: "CT-06", what: "the tuple of a connection that was closed, in both directions", who: "A0"},
		{id: "CT-07", what: "garbage collection against 3,000 connections a second for 30 minutes", not: "takes half an hour"},
		{id: "CT-08", what: "a full flow table", who: "A0"},
		{id: "CT-09", what: "a flood of one pod's flows against another pod's", who: "A0"},
		{id: "CT-11", what: "FTP's announcements of data connections", who: "A0, A4"},
		{id: "CT-12", what: "a new pod with a dead one's address, on its flows", who: "A0"},
		{id: "CT-13", what: "two Pod objects with one address, one of them removed"},
		{id: "CT-14", what: "objects deleted after, or before, they were created anew"},
		{id: "CT-16", what: "answers that take another path", not: needsGW},
		{id: "CT-17", what: "the clock jumps", not: "flow times are CLOCK_MONOTONIC, which a namespace can't move; see bpf/types.h"},
		{id: "CT-18", what: "one name or address of several is revoked", not: needsNames + "; for addresses it is CT-01"},
		{id: "CT-19", what: "port collisions of the kernel's masquerade", not: "the kernel's, before and after us alike; nothing of ours looks at translated ports"},
	}},
	{"Kubernetes", []row{
		{id: "K8S-01", what: "the first packets of a new pod", who: "A0", not: needsCNI, note: "without it a new interface is open until the agent has armed it, and its pod is not reported enforced before"},
		{id: "K8S-02", what: "init, sidecar and ephemeral containers", who: "A0", not: "they share the pod's interface; " + needsCNI},
		{id: "K8S-03", what: "the pod's address is not known yet"},
		{id: "K8S-04", what: "labels and policies changed in every order, and at once", who: "A3"},
		{id: "K8S-06", what: "a namespace's policies go before its pods", who: "A3", note: "the deletions are held back until the namespace's pods have ended"},
		{id: "K8S-07", what: "policies replaced 1,000 times under load, 900 times by rename and 100 times by delete and create", who: "A3"},
		{id: "K8S-07b", what: "policy files deleted and created anew every few milliseconds", who: "A3", note: "a file counts as deleted after 200 ms in which it cannot have been there"},
		{id: "K8S-08", what: "a pod whose object is gone and whose interface is not, also after a restart of the agent", who: "A0", note: "quarantined: everything is dropped, and status names the interface"},
		{id: "K8S-09", what: "a completed pod's object with a running pod's address"},
		{id: "K8S-11", what: "the pod's own node: kubelet, SSH, node ports", who: "A0"},
		{id: "K8S-12", what: "cloud metadata under an allow of 0.0.0.0/0 and ::/0", who: "A0"},
		{id: "K8S-13", what: "the API server as a relay", who: "A3", not: needsAPI},
		{id: "K8S-14", what: "a cluster IP of denied, of allowed and of mixed backends, all Service addresses allowed", who: "A0"},
		{id: "K8S-16", what: "a Service's external address: translated by nobody, or taking over an allowed address", who: "A3"},
		{id: "K8S-16b", what: "the former, on a node where netfilter tracks no connections", who: "A3"},
		{id: "K8S-16d", what: "a packet from outside that is dropped, and the answer to it, at an address that a Service claims", who: "A3, A4"},
		{id: "K8S-16e", what: "an open flow whose address a Service claims before the rule that allowed it goes", who: "A3"},
		{id: "K8S-16c", what: "a Service that claims the address of a pod on the same bridge", who: "A3"},
		{id: "K8S-17", what: "ExternalName", who: "A3", not: needsNames},
		{id: "K8S-18", what: "node ports and host ports of denied pods, the node's address allowed", who: "A0"},
		{id: "K8S-19", what: "a pod that reaches itself through its Service", who: "A0", not: "allowed by design; compared with Evaluate in internal/datapath"},
		{id: "K8S-21", what: "translation at connect time", who: "A0", not: "the packet then names the backend, which is what every other row tries"},
		{id: "K8S-22", what: "a node-local resolver's addresses", who: "A0", note: "by address and port; its names come later"},
		{id: "K8S-23", what: "the agent is killed 20 times under load", note: "200 times in test/faults"},
		{id: "K8S-24", what: "the agent starts with policies that can't be read", note: "what is denied is not known, so everything is until they can be read"},
		{id: "K8S-26", what: "pods that start before the agent after a reboot", who: "A0", not: needsCNI},
		{id: "K8S-27", what: "connections from before the agent was installed"},
		{id: "K8S-28", what: "the manifests vanish, as a whole and one by one", note: "a directory that can't be listed changes nothing; a pod without an object is quarantined"},
		{id: "K8S-29", what: "72,000 rules for one pod, where 60,000 fit", who: "A3", note: "everything is denied, and status says why"},
		{id: "K8S-31", what: "a pod of the same name with other labels", who: "A3", note: "dropped by the policies of its own labels"},
		{id: "K8S-32", what: "a pod's state taken out of the kernel behind the agent's back", note: "an interface without an entry passes nothing; the pod is reported failed"},
		{id: "K8S-33", what: "huge policies delay enforcement", who: "A3", not: "a matter of speed: make bench"},
		{id: "K8S-34", what: "a tenant's churn starves the agent", who: "A3", not: "a matter of speed: make bench"},
		{id: "K8S-36", what: "the node's own mounts, pulls and logs as a way out", who: "A3", not: "out of scope: not a pod's packets"},
		{id: "K8S-37", what: "virtual machines behind a pod's interface", who: "A3", not: "their addresses are not the pod's and are dropped, as in PKT-38"},
		{id: "K8S-38", what: "live migration: two interfaces with one address", who: "A3", not: needsCNI},
		{id: "K8S-39", what: "other tenants' proxies as relays", who: "A0", not: "not visible in packets"},
	}},
	{"Policy semantics", []row{
		{id: "POL-01", what: "empty lists", who: "A3"},
		{id: "POL-02", what: "a narrower accept against a broader deny", who: "A3"},
		{id: "POL-03", what: "networks with bits beyond their length", who: "A3"},
		{id: "POL-04", what: "exceptions of several blocks, both families", who: "A3"},
		{id: "POL-06", what: "a port range drops a name's condition", who: "A3", not: needsNames},
		{id: "POL-07", what: "names and networks allowed together", who: "A3", not: needsNames},
		{id: "POL-08", what: "fields that are not understood or can't be resolved", who: "A3"},
		{id: "POL-09", what: "a named port that the peer does not have", who: "A3"},
		{id: "POL-11", what: "nodes and pods with the same labels", who: "A3"},
		{id: "POL-12", what: "a node's labels come late", not: "a manifest has them from the start; " + needsAPI},
		{id: "POL-13", what: "a rule of one family opens the other", who: "A3"},
		{id: "POL-14", what: "policyTypes left out", who: "A3"},
		{id: "POL-16", what: "a deny by suffix", who: "A3", not: needsNames},
		{id: "POL-17", what: "a staged policy changes a verdict", not: "no object stages a policy yet; that a staged ruleset is judged and changes no verdict is compared in internal/datapath, 1,000,000 times in make test"},
		{id: "POL-18", what: "150 changes between policies that share nothing: no packet sees both", who: "A3"},
		{id: "POL-19", what: "some of several policies come and go, against a model", who: "A3"},
		{id: "POL-21", what: "metadata in an allow of everything, of each kind of policy; named, it is allowed", who: "A3"},
		{id: "POL-22", what: "addresses in odd forms", who: "A3"},
	}},
	{"Node integrity", []row{
		{id: "OPS-01", what: "older tc hooks come, accept all, and go"},
		{id: "OPS-02", what: "another program at the head of the chain, with our mark from the pod", who: "A2", note: "what comes from a pod and no program of ours has seen is dropped by the catch-all; packets to the pod have no such net until the head is taken back, within a second or two (README, limits)"},
		{id: "OPS-03", what: "the CNI's own program denies what we allow", note: "an accepted packet goes on to the next program"},
		{id: "OPS-04", what: "nft flush ruleset, five times under load"},
		{id: "OPS-06", what: "pins removed, the agent killed: the catch-all holds, and our mark from the pod does not open it", who: "A2", note: "for what comes from a pod; packets to it pass (README, limits)"},
		{id: "OPS-07", what: "the programs don't load on this kernel", not: "needs kernels to try; a program that does not load ends the agent's start, and what was pinned stays"},
		{id: "OPS-08", what: "out of memory, of descriptors, of CPU", not: "of memory and CPU: needs limits of a cluster's DaemonSet; of descriptors: test/faults"},
		{id: "OPS-09", what: "100,000 denied packets: each is counted, whatever events are lost", who: "A0"},
		{id: "OPS-11", what: "log lines forged by names", who: "A3", not: "no packets: internal/cli tests it"},
		{id: "OPS-12", what: "the agent's socket and metrics, from a pod that may go anywhere and from users of the node", who: "A0", note: "off is the same scan for the kubelet's port; the socket answers root only, whatever its mode"},
		{id: "OPS-13", what: "secrets in logs and bundles", not: "there are no bundles yet, and the agent is given no secrets"},
		{id: "OPS-14", what: "15 pods come and go: the pins and entries of each go with it", note: "a soak over hours is not run"},
		{id: "OPS-16", what: "bugs of dependencies", not: "not packets: CI"},
		{id: "OPS-17", what: "sockets of root and of others in the pod", who: "A0"},
		{id: "OPS-18", what: "uninstalling", not: "test/integration: stopping leaves everything denied, uninstalling leaves nothing behind"},
	}},
}
