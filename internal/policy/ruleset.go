package policy

import (
	"net/netip"
	"time"

	"github.com/postern-dev/postern/internal/packet"
)

// SetID names a set of addresses by what it means, canonically: equal meaning
// written equally gives an equal SetID, so rules that share a peer share a set.
// Forms: "net:<sha256 of the sorted prefixes>", "pods:<namespaces>/<pods>",
// "nodes:<selector>", "set:<namespace>/<name>", "svc:<namespace>/<name>:<n>", ...
type SetID string

// PortRange is an inclusive range of destination ports of one protocol, in
// host byte order. A protocol without ports has First 0 and Last 65535.
type PortRange struct {
	Protocol    packet.Protocol
	First, Last uint16
}

// Match is one way for a rule to match: the remote address is in Set (or
// AnyAddress), and the protocol and port are in Ports (or AnyPort).
// The zero value matches nothing (P1).
type Match struct {
	AnyAddress bool
	// NotProtected, with AnyAddress, leaves out Snapshot.Protected.
	NotProtected bool
	Set          SetID
	AnyPort      bool
	Ports        []PortRange // sorted by protocol and port, disjoint, not adjacent
}

// CompiledRule is a rule of a Ruleset. It matches if one of its Matches does.
type CompiledRule struct {
	Ref RuleRef
	// Tier is the index of the tier in evaluation order, from 0; the rules
	// behind all tiers (IndexProtected, IndexNoMatch) have the number of tiers,
	// at most MaxTiers, so that a Pass of the last tier arrives at them.
	Tier    int
	Action  Action
	Matches []Match
}

// Ruleset is the ordered, resolved rules for one direction of every endpoint
// that is selected by the same policies. The first rule that matches decides;
// a Pass goes on at the first rule of a later tier. The last rule matches
// everything, so there is always a decision.
//
// That a pod reaches itself (IndexSelf) is not in a Ruleset: whoever uses it
// compares with Compiled.Addresses first, as Lookup and the kernel do. The first
// rule of every Ingress ruleset accepts the pod's own node (IndexNode).
type Ruleset struct {
	// ID is a digest of the content: equal Rulesets have equal IDs, across restarts too.
	ID        string
	Direction Direction
	// Selected says that some policy governs this direction. If not, there is
	// only the Kubernetes default (IndexNoMatch), behind IndexNode for Ingress.
	Selected bool
	Rules    []CompiledRule
}

// SetIDProtected is the set of Snapshot.Protected; it exists in every Compiled.
const SetIDProtected SetID = "protected"

// SetIDOwnNode returns the set of the addresses of a node, used by IndexNode.
func SetIDOwnNode(node string) SetID { return SetID("node:" + node) }

// Compiled is the result of compiling a Snapshot for a set of endpoints.
type Compiled struct {
	Revision  uint64
	Rulesets  map[string]*Ruleset      // by ID
	Endpoints map[PodKey][2]string     // ruleset ID per Direction
	Addresses map[PodKey][]netip.Addr  // an endpoint's own addresses, sorted (IndexSelf)
	Sets      map[SetID][]netip.Prefix // disjoint, sorted, merged; every set that a Ruleset names
	// NextExpiry is when the result changes by time alone; zero if never.
	NextExpiry time.Time
}

// SetDelta is a change of a set's content. Add and Remove are disjoint.
type SetDelta struct{ Add, Remove []netip.Prefix }

// Delta is what an incremental compilation changed. Applying it in the order
// of the fields' comments never removes what is still in use.
type Delta struct {
	SetsChanged     map[SetID]SetDelta      // 1: new sets (all Add) and changed ones
	RulesetsAdded   map[string]*Ruleset     // 2
	Endpoints       map[PodKey][2]string    // 3: new and changed endpoints
	Addresses       map[PodKey][]netip.Addr // 3: own addresses of new endpoints, and changed ones
	EndpointsGone   []PodKey                // 3
	ServicesChanged bool                    // 3: the Services or Nodes of the Snapshot differ
	RulesetsRemoved []string                // 4: no endpoint uses them any more
	SetsRemoved     []SetID                 // 5: no Ruleset names them any more

	Revision   uint64    // of the result
	NextExpiry time.Time // of the result, see Compiled
}
