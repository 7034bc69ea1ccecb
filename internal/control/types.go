package control

import (
	"fmt"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/postern-dev/postern/internal/flow"
	"github.com/postern-dev/postern/internal/policy"
)

// DefaultSocket is where the agent of a node listens.
const DefaultSocket = "/run/postern/agent.sock"

// Status is the agent's state in one answer.
type Status struct {
	Node    string    `json:"node"`
	Version string    `json:"version"`
	Started time.Time `json:"started"`
	Now     time.Time `json:"now"`
	// Revision is the datapath's; it grows with every change that is enforced.
	Revision uint32 `json:"revision"`
	// Endpoints counts by state: enforced, failed, quarantined, not-covered.
	Endpoints map[string]int `json:"endpoints"`
	// Policies counts by kind; PoliciesInvalid those with errors.
	Policies        map[string]int `json:"policies"`
	PoliciesInvalid int            `json:"policies_invalid"`
	// Problems are sentences that say what is wrong and what to do, worst first. Empty: all is well.
	Problems []Problem `json:"problems"`
	// Kernel is sizes of what the kernel holds.
	Kernel map[string]int `json:"kernel"`
	// Counters are node-wide counts of what could not be told or kept.
	EventsLost   uint64 `json:"events_lost"`
	FlowsRefused uint64 `json:"flows_refused"`
	// CatchAllDropped counts frames that reached the nftables catch-all.
	Records int `json:"records"`
}

// Problem is one thing that is wrong.
type Problem struct {
	Severity string `json:"severity"` // error or warning
	Object   string `json:"object"`   // what it is about; empty for a file as a whole
	Path     string `json:"path,omitempty"`
	Message  string `json:"message"` // what is wrong and what to do; some have several lines
	// Reason is a kube.Reason if this is about an object or a file, else empty.
	Reason string `json:"reason,omitempty"`
	// File is where the object is written, relative to the agent's manifests, and
	// Line, from 1, the place in it; 0 if it is not known.
	File string `json:"file,omitempty"`
	Line int    `json:"line,omitempty"`
}

// About names what the problem is about: "shop.yaml:12: EgressPolicy shop/web spec.egress".
func (p Problem) About() string {
	var parts []string
	switch {
	case p.File != "" && p.Line > 0:
		parts = append(parts, p.File+":"+strconv.Itoa(p.Line)+":")
	case p.File != "":
		parts = append(parts, p.File+":")
	}
	for _, s := range []string{p.Object, p.Path} {
		if s != "" {
			parts = append(parts, s)
		}
	}
	return strings.TrimSuffix(strings.Join(parts, " "), ":")
}

// Endpoint is a pod of this node, or an interface that has lost its pod: quarantined,
// under the name of its last pod, or without one.
type Endpoint struct {
	Namespace string       `json:"namespace"`
	Name      string       `json:"name"`
	Interface string       `json:"interface"`
	Addrs     []netip.Addr `json:"addrs"`
	// State is enforced, failed, quarantined or not-covered.
	State string `json:"state"`
	// Message says why the state is not enforced.
	Message string `json:"message,omitempty"`
	// Egress and Ingress are a policy.Isolation each: isolated if what no rule accepts
	// is denied, governed if what no rule denies is accepted, open without
	// a policy or where nothing is enforced.
	Egress  string `json:"egress"`
	Ingress string `json:"ingress"`
	// Dropped counts dropped packets, Forwarded first packets that were admitted. Both are exact.
	Dropped   uint64 `json:"dropped"`
	Forwarded uint64 `json:"forwarded"`
	// Rules are the exact counters of drops, most packets first.
	Rules []RuleCount `json:"rules,omitempty"`
}

// RuleCount is a rule's exact counters for one endpoint.
type RuleCount struct {
	Rule    flow.Rule `json:"rule"`
	Packets uint64    `json:"packets"`
	Bytes   uint64    `json:"bytes"`
}

// Policy is a policy object and what is wrong with it.
type Policy struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name"`
	Tier      string `json:"tier"`
	// Priority orders the policies of a tier; absent where it means nothing: in the
	// networkpolicy tier, where they add up, and for an invalid one, which comes first.
	Priority  *int32    `json:"priority,omitempty"`
	Endpoints int       `json:"endpoints"` // of this node that it governs
	Problems  []Problem `json:"problems,omitempty"`
}

// Lost is a line of followed flows that stands where records are missing.
type Lost struct {
	Type string    `json:"type"` // TypeLost, which no record has
	Time time.Time `json:"time"` // when it was noticed
	// Where is LostByReader or LostByKernel.
	Where string `json:"where"`
	// Lost is how many are missing: records that the filter selects, or events of the whole node.
	Lost uint64 `json:"lost"`
}

// What a Lost line says.
const (
	TypeLost     = "lost"
	LostByReader = "reader" // they came faster than this reader took them
	LostByKernel = "kernel" // the kernel's buffer had no room; counters are exact nevertheless
)

// ExplainRequest asks what would happen to a flow's first packet. From is
// "namespace/pod" or an address, To one of these or "namespace/service"; where a
// pod and a Service share a name, "pod/namespace/name" or "service/namespace/name"
// says which. A pod must be at one end, or behind the Service.
type ExplainRequest struct {
	From     string `json:"from"`
	To       string `json:"to"`
	Port     uint16 `json:"port"`
	Protocol string `json:"protocol"`
}

// ExplainResponse is one Explanation per pod that is asked: egress of From if it
// is one, ingress of To, or of each backend of the Service that the egress admits.
// Verdict is deferred if not all of the backends can be reached, nor none.
type ExplainResponse struct {
	Verdict      string               `json:"verdict"`
	Explanations []policy.Explanation `json:"explanations"`
	Text         string               `json:"text"`
}

// Filter selects records. Empty fields select everything; all must hold.
type Filter struct {
	Pod     string    // namespace/name, or name; either end
	Verdict string    // forwarded, dropped or deferred
	To      string    // destination: address, network, pod, or namespace/
	Rule    string    // part of the rule's text or its reason
	Since   time.Time // not before
	Limit   int       // newest ones only; 0: all that are kept
	Follow  bool
}

// Query returns f as URL parameters.
func (f Filter) Query() url.Values {
	q := url.Values{}
	set := func(k, v string) {
		if v != "" {
			q.Set(k, v)
		}
	}
	set("pod", f.Pod)
	set("verdict", f.Verdict)
	set("to", f.To)
	set("rule", f.Rule)
	if !f.Since.IsZero() {
		set("since", f.Since.Format(time.RFC3339Nano))
	}
	if f.Limit > 0 {
		set("limit", strconv.Itoa(f.Limit))
	}
	if f.Follow {
		set("follow", "1")
	}
	return q
}

// ParseFilter is the inverse of Query.
func ParseFilter(q url.Values) (Filter, error) {
	f := Filter{Pod: q.Get("pod"), Verdict: q.Get("verdict"), To: q.Get("to"), Rule: q.Get("rule"), Follow: q.Get("follow") == "1"}
	if s := q.Get("since"); s != "" {
		t, err := time.Parse(time.RFC3339Nano, s)
		if err != nil {
			return f, fmt.Errorf("since %q: want a time such as 2026-01-31T15:04:05Z", s)
		}
		f.Since = t
	}
	if s := q.Get("limit"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			return f, fmt.Errorf("limit %q: want a number", s)
		}
		f.Limit = n
	}
	return f, nil
}

// Matches reports whether f selects r, Limit and Follow aside.
func (f Filter) Matches(r *flow.Record) bool {
	if f.Verdict != "" && r.Verdict != f.Verdict {
		return false
	}
	if f.Pod != "" && !names(f.Pod, &r.Local) && !names(f.Pod, &r.Remote) {
		return false
	}
	if !f.Since.IsZero() && r.Time.Before(f.Since) {
		return false
	}
	if f.Rule != "" && !strings.Contains(r.Rule.Text, f.Rule) && r.Rule.Reason != f.Rule {
		return false
	}
	if f.To != "" {
		dst := &r.Remote
		if r.Direction == policy.Ingress || r.Dir == "ingress" {
			dst = &r.Local
		}
		if !to(f.To, dst) {
			return false
		}
	}
	return true
}

func names(s string, e *flow.End) bool {
	return e.Kind == "pod" && (e.Namespace+"/"+e.Name == s || e.Name == s)
}

func to(s string, e *flow.End) bool {
	if p, err := netip.ParsePrefix(s); err == nil {
		return p.Contains(e.Addr)
	}
	if a, err := netip.ParseAddr(s); err == nil {
		return a.Unmap() == e.Addr
	}
	if ns, ok := strings.CutSuffix(s, "/"); ok {
		return e.Namespace == ns
	}
	return e.Namespace+"/"+e.Name == s || e.Name == s
}
