package policy

import (
	"net/netip"
	"time"

	"github.com/postern-dev/postern/internal/packet"
)

// Direction is the direction of a flow's first packet as seen by the endpoint.
type Direction uint8

// Directions.
const (
	Egress  Direction = 0 // the pod opens the flow
	Ingress Direction = 1 // somebody opens a flow to the pod
)

// Directions lists both directions, for loops.
var Directions = [2]Direction{Egress, Ingress}

// String returns "egress" or "ingress".
func (d Direction) String() string {
	if d == Ingress {
		return "ingress"
	}
	return "egress"
}

// Action is what a rule asks for.
// Source: network-policy-api v1alpha2 ClusterNetworkPolicyRuleAction.
type Action uint8

// Actions. The zero value denies.
const (
	Deny   Action = 0
	Accept Action = 1
	Pass   Action = 2 // skip the rest of this tier
)

// String returns the API's word.
func (a Action) String() string {
	switch a {
	case Accept:
		return "Accept"
	case Pass:
		return "Pass"
	case Deny:
	}
	return "Deny"
}

// Names of the built-in tiers, in the order they are evaluated.
const (
	TierAdmin         = "admin"
	TierNetworkPolicy = "networkpolicy"
	TierBaseline      = "baseline"
)

// Orders of the built-in tiers. A Tier object may use any order but these.
const (
	TierOrderAdmin         = 1000
	TierOrderNetworkPolicy = 2000
	TierOrderBaseline      = 3000
)

// MaxTiers bounds the tiers of a Snapshot, the built-in ones included.
const MaxTiers = 16

// Tier is one step of evaluation. Tiers are evaluated by Order, then Name.
type Tier struct {
	Name  string
	Order int32
	// DefaultDeny ends the tier with a Deny for a direction of an endpoint
	// if some policy of the tier selects the endpoint for that direction.
	// Otherwise evaluation goes on in the next tier. It is not used for
	// the networkpolicy tier, whose isolation is per policy (Policy.Isolates).
	DefaultDeny bool
}

// BuiltinTiers returns the three tiers that always exist.
func BuiltinTiers() []Tier {
	return []Tier{
		{Name: TierAdmin, Order: TierOrderAdmin},
		{Name: TierNetworkPolicy, Order: TierOrderNetworkPolicy},
		{Name: TierBaseline, Order: TierOrderBaseline},
	}
}

// Kind is the API kind of an object that rules come from.
type Kind string

// Kinds of policies.
const (
	KindNetworkPolicy        Kind = "NetworkPolicy"
	KindClusterNetworkPolicy Kind = "ClusterNetworkPolicy"
	KindEgressPolicy         Kind = "EgressPolicy"
	KindClusterEgressPolicy  Kind = "ClusterEgressPolicy"
)

// Policy is one policy object, normalised. Policies of a tier are ordered by
// Priority, then Kind, Namespace, Name; those of the networkpolicy tier all have
// Priority 0 and only Accept rules.
type Policy struct {
	Kind      Kind
	Namespace string // empty for a cluster-scoped kind
	Name      string
	Tier      string // a policy of an unknown tier is evaluated as the last policy of the admin tier, with Invalid set
	Priority  int32
	Subject   Subject
	// Isolates says, per Direction, that a selected pod is isolated: what no
	// rule of the networkpolicy tier accepts is denied at the end of that tier.
	// A NetworkPolicy or EgressPolicy governs the directions that it isolates;
	// its rules of another direction are not looked at (policyTypes). A
	// ClusterEgressPolicy governs Egress, a ClusterNetworkPolicy the directions
	// that it has rules for.
	Isolates [2]bool
	// Rules holds the rules per Direction, in the order they were written.
	Rules [2][]Rule
	// Invalid is set if some part of the object was not understood; the parts
	// concerned are already closed (P4). The errors are reported elsewhere.
	// Of a policy of an unknown tier only the denying rules count.
	Invalid bool
}

// Subject selects endpoints. All conditions must hold. The zero value selects nothing.
type Subject struct {
	// Any selects every pod of every namespace, before ServiceAccounts is applied.
	// Otherwise Namespaces and Pods select.
	Any bool
	// Namespace, if not empty, restricts to one namespace by name (namespaced kinds).
	Namespace string
	// Namespaces selects by the namespace's labels; ignored if Namespace is set.
	Namespaces Selector
	// Pods selects by the pod's labels. A Selector's zero value selects everything.
	Pods Selector
	// Selects must be true for Namespace, Namespaces and Pods to be looked at (P1).
	Selects bool
	// ServiceAccounts, if not empty, lists the names of which one must be the pod's.
	ServiceAccounts []string
}

// Rule is one entry of a policy. A rule matches if a peer and a port match.
type Rule struct {
	// Index is the rule's place in the object's list for its direction, from 0.
	Index int
	// Name and Reason are the author's; both may be empty.
	Name, Reason string
	Action       Action
	// ExpiresAt ends an Accept: at and after it, against Snapshot.Time, the rule matches nothing.
	// A Deny or Pass ignores it. Zero means never.
	ExpiresAt time.Time
	// AnyPeer matches every address of both families; Peers is then ignored.
	AnyPeer bool
	Peers   []Peer
	// AnyPort matches every protocol and port; Ports is then ignored.
	AnyPort bool
	Ports   []PortMatch
	// Invalid is set on a rule that was closed because part of it was not understood (P4).
	Invalid bool
}

// PeerKind says which field of a Peer is meant.
type PeerKind uint8

// Peer kinds. The zero value matches nothing.
const (
	PeerNone        PeerKind = iota
	PeerNetworks             // Networks less Except
	PeerPods                 // Pods
	PeerNodes                // Nodes
	PeerService              // Service
	PeerSet                  // Set
	PeerDomainNames          // DomainNames: matches nothing in this version
)

// Peer is the other end of a flow: exactly one thing, named by Kind.
type Peer struct {
	Kind PeerKind
	// Networks and Except are masked and unmapped prefixes. Except is
	// subtracted from Networks; it never reaches other peers of the rule.
	Networks, Except []netip.Prefix
	Pods             PodPeer
	Nodes            Selector
	Service          ServiceRef
	Set              SetRef
	DomainNames      []string
}

// PodPeer selects pods, host-network pods excluded.
type PodPeer struct {
	// Namespace, if not empty, restricts to one namespace by name; Namespaces is then ignored.
	Namespace  string
	Namespaces Selector
	Pods       Selector
}

// ServiceRef names a Service. As a peer it stands for what the Service's ports
// are translated to: every ready backend's address together with its target
// port, and so for the Service's own addresses too, which are judged by their
// backends. A rule's ports are compared with the target port. It is a
// destination only: in an Ingress rule it matches nothing.
type ServiceRef struct{ Namespace, Name string }

// SetRef names a DestinationSet, or with an empty Namespace a ClusterDestinationSet.
type SetRef struct{ Namespace, Name string }

// PortMatch matches a destination protocol and port.
type PortMatch struct {
	// Protocol must equal the packet's. It is ignored if Named is set and AnyProtocol is true.
	Protocol packet.Protocol
	// First and Last are an inclusive range of ports in host byte order.
	// They are ignored for a protocol without ports. Source: KEP-2079 (endPort).
	First, Last uint16
	// Named, if not empty, is a container port's name: it matches a destination
	// pod that has a port of that name and Protocol, at that port's number. For
	// Ingress the destination is the endpoint itself. For Egress it is a pod
	// that the peer selects (AnyPeer: any pod; PeerService: a backend that is a
	// pod); with other peers, and with a name that the pod does not have, it
	// matches nothing.
	Named string
	// AnyProtocol makes Named match the container port of any protocol
	// (ClusterNetworkPolicy's destinationNamedPort names no protocol).
	AnyProtocol bool
}

// Pod is a pod of the cluster: a possible endpoint and a possible peer.
// Pods whose phase is Succeeded or Failed are not part of a Snapshot.
type Pod struct {
	Namespace, Name string
	UID             string
	Labels          map[string]string
	ServiceAccount  string
	Node            string
	// IPs are the pod's addresses, unmapped, without duplicates.
	IPs         []netip.Addr
	HostNetwork bool
	Ports       []ContainerPort
}

// ContainerPort is a named port of a pod.
type ContainerPort struct {
	Name     string
	Protocol packet.Protocol
	Port     uint16
}

// PolicyKey names a policy object.
type PolicyKey struct { //nolint:revive // a key of Policies, beside PodKey
	Kind            Kind
	Namespace, Name string
}

// String returns "Kind namespace/name", or "Kind name" for a cluster-scoped kind.
func (k PolicyKey) String() string {
	if k.Namespace == "" {
		return string(k.Kind) + " " + k.Name
	}
	return string(k.Kind) + " " + k.Namespace + "/" + k.Name
}

// Key returns the policy's kind, namespace and name.
func (p *Policy) Key() PolicyKey { return PolicyKey{p.Kind, p.Namespace, p.Name} }

// Key returns the pod's namespace and name.
func (p *Pod) Key() PodKey { return PodKey{p.Namespace, p.Name} }

// PodKey names a pod.
type PodKey struct{ Namespace, Name string }

// String returns "namespace/name".
func (k PodKey) String() string { return k.Namespace + "/" + k.Name }

// LabelNamespaceName is the label that holds a namespace's name.
const LabelNamespaceName = "kubernetes.io/metadata.name"

// Namespace is a namespace with its labels.
// The label kubernetes.io/metadata.name is always present.
type Namespace struct {
	Name   string
	Labels map[string]string
}

// Node is a node of the cluster.
type Node struct {
	Name   string
	Labels map[string]string
	IPs    []netip.Addr
}

// Service is a Service with the addresses and ports that are translated to backends.
type Service struct {
	Namespace, Name string
	// IPs are the cluster IPs, external IPs and load-balancer IPs.
	IPs []netip.Addr
	// Ports of the Service; each is translated on its own.
	Ports []ServicePort
}

// ServicePort is one port of a Service and where it leads.
type ServicePort struct {
	Name     string
	Protocol packet.Protocol
	Port     uint16
	// NodePort, if not 0, is also translated on every address of every Node.
	NodePort uint16
	// Backends are the ready endpoints of both families, sorted by address, then port.
	Backends []netip.AddrPort
}

// DestinationSet is a reusable list of networks and names.
type DestinationSet struct {
	Ref SetRef
	// Networks less Except are the set's addresses.
	Networks, Except []netip.Prefix
	DomainNames      []string
	// Invalid marks a set of which some part was not understood: an Accept
	// that names it matches nothing, not even by its other peers; a Deny or Pass
	// that names it denies everything (P4). The same holds for a set that is missing.
	Invalid bool
}

// Snapshot is the whole input of the language at one revision. It and
// everything it points to are immutable once made.
type Snapshot struct {
	Revision uint64
	// Time is what ExpiresAt is compared with.
	Time       time.Time
	Tiers      []Tier // must hold the built-in tiers; order does not matter
	Policies   []Policy
	Namespaces []Namespace
	Pods       []Pod
	Nodes      []Node
	Services   []Service
	Sets       []DestinationSet
	// Protected are networks that an Accept reaches only by naming them: by a
	// network that lies inside one of them, or by a peer that is not a network.
	// AnyPeer and wider networks do not. An endpoint that some policy selects
	// for egress is denied them at the end of all tiers (IndexProtected).
	// Meant for cloud metadata addresses; masked, unmapped.
	Protected []netip.Prefix
}

// Verdict is what happens to a packet; distinct from Action, what a rule asks.
type Verdict uint8

// Verdicts. The zero value drops.
const (
	Dropped   Verdict = 0
	Forwarded Verdict = 1
	// Deferred: the destination is a Service whose backends get different
	// verdicts; the decision is made on the backend that is chosen.
	Deferred Verdict = 2
)

// String returns the lower-case word.
func (v Verdict) String() string {
	switch v {
	case Forwarded:
		return "forwarded"
	case Deferred:
		return "deferred"
	case Dropped:
	}
	return "dropped"
}

// RuleRef names the rule that decided. It is comparable, and the same rule has
// the same RuleRef in every Ruleset and revision.
type RuleRef struct {
	Tier      string    `json:"tier,omitempty"`
	Kind      Kind      `json:"kind,omitempty"`
	Namespace string    `json:"namespace,omitempty"`
	Policy    string    `json:"policy,omitempty"`
	Direction Direction `json:"direction"`
	Index     int       `json:"index"` // rule index, or one of the negative values below
	Name      string    `json:"name,omitempty"`
}

// Index values of rules that no author wrote.
const (
	// IndexNoMatch: no rule of any tier matched; Kubernetes' default accepts.
	IndexNoMatch = -1
	// IndexIsolation: the end of the networkpolicy tier for an isolated pod.
	IndexIsolation = -2
	// IndexTierDefault: the end of a tier whose default action is Deny; the
	// RuleRef names the first policy of the tier that governs the endpoint, as
	// that of IndexIsolation names the first policy that isolates it.
	IndexTierDefault = -3
	// IndexSelf: a pod reaches itself.
	IndexSelf = -4
	// IndexNode: traffic from a pod's own node to the pod (kubelet probes).
	IndexNode = -5
	// IndexNoBackend: a Service address without a ready backend.
	IndexNoBackend = -6
	// IndexProtected: the destination is in Snapshot.Protected and no rule names it.
	IndexProtected = -7
	// IndexUnknown: the endpoint is not part of the Snapshot, or the other end is no address.
	IndexUnknown = -8
	// IndexDeferred: no single rule decided, see Deferred; Name is the Service's "namespace/name".
	IndexDeferred = -9
	// IndexCapacity: the endpoint's rules do not fit, so everything is denied (ErrCapacity).
	IndexCapacity = -10
	// IndexDatapath: the datapath drops the packet whatever policy says; Name is its
	// reason. Evaluate never answers it.
	IndexDatapath = -11
)

// Decision is the answer of Evaluate.
type Decision struct {
	Verdict Verdict `json:"verdict"`
	Rule    RuleRef `json:"rule"`
}
