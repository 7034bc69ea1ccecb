package flow

import "strconv"

// Reason is why the datapath decided without a policy's rule. Values are those
// of enum reason in bpf/types.h; rule IDs begin at ReasonMax.
type Reason uint32

// Reasons. Those up to ReasonUngoverned, and ReasonNeighbour and ReasonRelated, accept.
const (
	ReasonNone Reason = iota
	ReasonSelf
	ReasonUngoverned
	ReasonNoEndpoint
	ReasonEthertype
	ReasonVLAN
	ReasonMalformed
	ReasonIPOptions
	ReasonIPv6Ext
	ReasonSource
	ReasonSourceMAC
	ReasonDestMAC
	ReasonARP
	ReasonNDP
	ReasonFragment
	ReasonTCPFlags
	ReasonNoFlow
	ReasonICMPError
	ReasonTableFull
	ReasonNoBackend
	ReasonDeferred
	ReasonNoRuleset
	ReasonNeighbour
	ReasonRelated
	ReasonMartian
	ReasonQuarantine
	ReasonSharedAddress

	ReasonMax Reason = 64
)

var reasons = [...]struct{ name, text string }{
	ReasonNone:          {"none", "no rule decided"},
	ReasonSelf:          {"self", "a pod reaches itself"},
	ReasonUngoverned:    {"ungoverned", "no policy governs this direction of the pod"},
	ReasonNoEndpoint:    {"no-endpoint", "the interface has no armed endpoint"},
	ReasonEthertype:     {"ethertype", "not IPv4, IPv6 or ARP"},
	ReasonVLAN:          {"vlan", "VLAN-tagged frame"},
	ReasonMalformed:     {"malformed", "headers contradict themselves or the frame's length"},
	ReasonIPOptions:     {"ip-options", "IPv4 options"},
	ReasonIPv6Ext:       {"ipv6-extension", "IPv6 extension header that is not permitted, or too many"},
	ReasonSource:        {"source-address", "the source address is not the pod's"},
	ReasonSourceMAC:     {"source-mac", "the source MAC is not the pod's"},
	ReasonDestMAC:       {"destination-mac", "the frame is addressed to another host on a routed link"},
	ReasonARP:           {"arp", "ARP that claims what is not the pod's"},
	ReasonNDP:           {"ndp", "neighbour discovery that claims or carries what it must not"},
	ReasonFragment:      {"fragment", "fragment without an accepted first one, out of order, overlapping or too small"},
	ReasonTCPFlags:      {"tcp-flags", "TCP flags that no connection has"},
	ReasonNoFlow:        {"no-flow", "not a first packet, and no live flow admits it"},
	ReasonICMPError:     {"icmp-error", "ICMP error that belongs to no live flow"},
	ReasonTableFull:     {"table-full", "the pod's quota of flows is used up"},
	ReasonNoBackend:     {"no-backend", "the Service has no ready backend"},
	ReasonDeferred:      {"service-mixed", "the Service's backends get different verdicts and nothing looks after DNAT"},
	ReasonNoRuleset:     {"no-ruleset", "the pod's ruleset is missing"},
	ReasonNeighbour:     {"neighbour", "ARP or neighbour discovery"},
	ReasonRelated:       {"related", "ICMP error of a live flow"},
	ReasonMartian:       {"martian", "the destination is on no wire: loopback or unspecified"},
	ReasonQuarantine:    {"quarantined", "the interface belongs to no pod"},
	ReasonSharedAddress: {"shared-address", "several pods have the source address, and it is not known whose packet it is"},
}

// String returns the reason's word, as in metrics and filters.
func (r Reason) String() string {
	if int(r) < len(reasons) {
		return reasons[r].name
	}
	return "reason-" + strconv.Itoa(int(r))
}

// Accepts reports whether packets counted under r were forwarded.
func (r Reason) Accepts() bool {
	return r == ReasonSelf || r == ReasonUngoverned || r == ReasonNeighbour || r == ReasonRelated
}

// Text returns the reason as a sentence without a full stop.
func (r Reason) Text() string {
	if int(r) < len(reasons) {
		return reasons[r].text
	}
	return "unknown reason"
}
