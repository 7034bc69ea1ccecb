package flow

import (
	"net/netip"
	"time"

	"github.com/postern-dev/postern/internal/packet"
	"github.com/postern-dev/postern/internal/policy"
)

// Record is what is kept of a flow or of a dropped packet, with names. It is
// the unit of the record stream and of replay.
type Record struct {
	// Time is when the record was made: first packet, drop, or end of the flow.
	Time time.Time `json:"time"`
	// Type is "verdict" for a first or dropped packet, "close" for an ended flow.
	Type      string           `json:"type"`
	Node      string           `json:"node"`
	Direction policy.Direction `json:"-"`
	// Dir is Direction's word: egress or ingress, as the pod Local sees it.
	Dir      string          `json:"direction"`
	Protocol packet.Protocol `json:"-"`
	Proto    string          `json:"protocol"`
	// Local is the pod that is enforced, Remote the other end.
	Local  End `json:"local"`
	Remote End `json:"remote"`
	// Verdict is forwarded, dropped or deferred (to the look after DNAT).
	Verdict string `json:"verdict"`
	Rule    Rule   `json:"rule"`
	// Staged is what the staged ruleset says, if there is one.
	Staged *Rule `json:"staged,omitempty"`
	// PacketsOut and BytesOut are from the opener, PacketsBack and BytesBack the answer.
	PacketsOut  uint64 `json:"packets_out"`
	BytesOut    uint64 `json:"bytes_out"`
	PacketsBack uint64 `json:"packets_back"`
	BytesBack   uint64 `json:"bytes_back"`
	// Started is when the flow's first packet was seen, for Type "close".
	Started  time.Time `json:"started,omitzero"`
	Revision uint32    `json:"revision"`
}

// End is one end of a flow.
type End struct {
	Addr netip.Addr `json:"addr"`
	Port uint16     `json:"port,omitempty"`
	// Kind is pod, node, service or world.
	Kind string `json:"kind"`
	// Namespace and Name name the pod, node or service; a world end has none.
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name,omitempty"`
}

// Rule names what decided.
type Rule struct {
	// ID is the datapath's number: a Reason below ReasonMax.
	ID        uint32 `json:"id"`
	Tier      string `json:"tier,omitempty"`
	Kind      string `json:"kind,omitempty"`
	Namespace string `json:"namespace,omitempty"`
	Policy    string `json:"policy,omitempty"`
	// Index is the rule's place in the policy's list for the direction; negative for rules that no author wrote.
	Index int    `json:"index"`
	Name  string `json:"name,omitempty"`
	// Text is the whole in one line, for people.
	Text string `json:"text"`
	// Reason is the datapath's reason, if no rule decided.
	Reason string `json:"reason,omitempty"`
	// Verdict is set for Staged only.
	Verdict string `json:"verdict,omitempty"`
}
