package flow

import (
	"net/netip"
	"time"

	"github.com/postern-dev/postern/internal/packet"
	"github.com/postern-dev/postern/internal/policy"
)

// EventType says what an Event tells.
type EventType uint8

// Event types. Source: enum event_type in bpf/types.h.
const (
	EventVerdict EventType = 1 // a first packet or a dropped one
	EventClose   EventType = 2 // a flow ended; its counters are final
)

// Event is one message of the datapath. Local is the pod's end, Remote the other.
type Event struct {
	Type EventType
	// Time and Created (EventClose) are since the node's boot, to the jiffy.
	Time, Created time.Duration
	// Generation is the incarnation of the endpoint's interface.
	Generation uint32
	Revision   uint32
	// Direction is the packet's for EventVerdict, the opener's for EventClose.
	Direction policy.Direction
	Protocol  packet.Protocol
	Local     netip.AddrPort
	Remote    netip.AddrPort
	Verdict   policy.Verdict
	// Rule is a rule ID, or a Reason if below ReasonMax.
	Rule uint32
	// StagedVerdict and StagedRule are what the staged ruleset says; StagedRule 0 if there is none.
	StagedVerdict policy.Verdict
	StagedRule    uint32
	TCPFlags      uint8
	// Packets and Bytes are [from the opener, back]; bytes count whole frames.
	Packets, Bytes [2]uint64
}
