package cli

import (
	"encoding/json"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"github.com/postern-dev/postern/internal/control"
	"github.com/postern-dev/postern/internal/flow"
	"github.com/postern-dev/postern/internal/policy"
)

// now is when the tests run.
var now = time.Date(2026, 3, 14, 15, 9, 26, 0, time.UTC)

// fakeAgent answers as the agent does, on a socket of its own.
type fakeAgent struct {
	status    control.Status
	endpoints []control.Endpoint
	policies  []control.Policy
	records   []flow.Record
	snapshot  *policy.Snapshot
	// more is followed after records.
	more  chan flow.Record
	lost  chan control.Lost // likewise
	delay time.Duration
}

func (f *fakeAgent) start(t *testing.T) string {
	t.Helper()
	answer := func(v any) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			time.Sleep(f.delay)
			_ = json.NewEncoder(w).Encode(v)
		}
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", answer(&f.status))
	mux.HandleFunc("GET /v1/endpoints", answer(&f.endpoints))
	mux.HandleFunc("GET /v1/policies", answer(&f.policies))
	mux.HandleFunc("GET /v1/flows", f.flows)
	mux.HandleFunc("POST /v1/explain", f.explain)
	socket := filepath.Join(t.TempDir(), "agent.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: time.Second}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close(); <-done })
	return socket
}

func (f *fakeAgent) flows(w http.ResponseWriter, r *http.Request) {
	filter, err := control.ParseFilter(r.URL.Query())
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	enc := json.NewEncoder(w)
	var out []flow.Record
	for _, rec := range f.records {
		if filter.Matches(&rec) {
			out = append(out, rec)
		}
	}
	if filter.Limit > 0 && len(out) > filter.Limit {
		out = out[len(out)-filter.Limit:]
	}
	for _, rec := range out {
		_ = enc.Encode(rec)
	}
	for filter.Follow {
		w.(http.Flusher).Flush()
		select {
		case <-r.Context().Done():
			return
		case rec := <-f.more:
			_ = enc.Encode(rec)
		case l := <-f.lost:
			_ = enc.Encode(l)
		}
	}
}

func (f *fakeAgent) explain(w http.ResponseWriter, r *http.Request) {
	var q control.ExplainRequest
	if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	res, err := control.Explain(f.snapshot, q)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	_ = json.NewEncoder(w).Encode(res)
}

func pod(namespace, name, addr string, port uint16) flow.End {
	return flow.End{Addr: netip.MustParseAddr(addr), Port: port, Kind: "pod", Namespace: namespace, Name: name}
}

func world(addr string, port uint16) flow.End {
	return flow.End{Addr: netip.MustParseAddr(addr), Port: port, Kind: "world"}
}

// healthy is an agent with nothing wrong.
func healthy() *fakeAgent {
	front := pod("shop", "frontend", "10.244.1.2", 40000)
	deny := flow.Rule{ID: 71, Tier: "baseline", Kind: "ClusterNetworkPolicy", Policy: "default-deny", Name: "nobody-out", Text: `baseline default-deny egress[0] "nobody-out"`}
	allow := flow.Rule{ID: 72, Tier: "networkpolicy", Kind: "EgressPolicy", Namespace: "shop", Policy: "frontend", Index: 1, Text: "networkpolicy shop/frontend egress[1]"}
	in := flow.Rule{ID: 73, Tier: "networkpolicy", Kind: "NetworkPolicy", Namespace: "shop", Policy: "cart", Index: policy.IndexIsolation, Text: "networkpolicy shop/cart ingress isolation"}
	noFlow := flow.Rule{ID: uint32(flow.ReasonNoFlow), Index: -1, Reason: flow.ReasonNoFlow.String(), Text: flow.ReasonNoFlow.Text()}
	at := func(d time.Duration) time.Time { return now.Add(-d) }
	return &fakeAgent{
		status: control.Status{
			Node: "node1", Version: "v0.1.0", Started: now.Add(-26 * time.Hour), Now: now, Revision: 42,
			Endpoints: map[string]int{"enforced": 3}, Policies: map[string]int{"ClusterNetworkPolicy": 2, "EgressPolicy": 1, "NetworkPolicy": 1},
			Kernel: map[string]int{"prefixes": 12, "rulesets": 5, "services": 2}, Records: 5, Problems: []control.Problem{},
		},
		endpoints: []control.Endpoint{
			{
				Namespace: "shop", Name: "frontend", Interface: "pl01", State: "enforced", Egress: "isolated", Ingress: "governed", Dropped: 3, Forwarded: 1200,
				Addrs: []netip.Addr{netip.MustParseAddr("10.244.1.2"), netip.MustParseAddr("fd00::2")},
				Rules: []control.RuleCount{{Rule: deny, Packets: 2, Bytes: 148}, {Rule: noFlow, Packets: 1, Bytes: 60}},
			},
			{Namespace: "shop", Name: "cart", Interface: "pl02", State: "enforced", Egress: "isolated", Ingress: "isolated", Addrs: []netip.Addr{netip.MustParseAddr("10.244.1.3")}},
		},
		policies: []control.Policy{
			{Kind: "ClusterNetworkPolicy", Name: "default-deny", Tier: "baseline", Priority: new(int32(1000)), Endpoints: 3},
			{Kind: "EgressPolicy", Namespace: "shop", Name: "frontend", Tier: "networkpolicy", Endpoints: 1},
			{Kind: "ClusterNetworkPolicy", Name: "metadata-denied", Tier: "admin", Priority: new(int32(20)), Endpoints: 3},
		},
		records: []flow.Record{
			{Time: at(25 * time.Hour), Type: "verdict", Dir: "egress", Proto: "udp", Local: front, Remote: flow.End{Addr: netip.MustParseAddr("10.96.0.10"), Port: 53, Kind: "service", Namespace: "kube-system", Name: "kube-dns"}, Verdict: "forwarded", Rule: allow, PacketsOut: 1, BytesOut: 86},
			{Time: at(3 * time.Minute), Type: "verdict", Dir: "egress", Proto: "tcp", Local: front, Remote: world("203.0.113.66", 443), Verdict: "dropped", Rule: deny, PacketsOut: 1, BytesOut: 74},
			{Time: at(2 * time.Minute), Type: "verdict", Dir: "ingress", Proto: "tcp", Local: pod("shop", "cart", "10.244.1.3", 8080), Remote: pod("ci", "runner", "10.244.1.5", 40001), Verdict: "dropped", Rule: in, PacketsOut: 1, BytesOut: 74},
			{Time: at(90 * time.Second), Type: "close", Dir: "egress", Proto: "tcp", Local: front, Remote: world("2001:db8:80::80", 443), Verdict: "forwarded", Rule: allow, PacketsOut: 12, BytesOut: 1834, PacketsBack: 4000, BytesBack: 5_400_000},
			{Time: at(time.Second), Type: "verdict", Dir: "egress", Proto: "icmp", Local: front, Remote: flow.End{Addr: netip.MustParseAddr("172.31.0.11"), Kind: "node", Name: "node1"}, Verdict: "dropped", Rule: noFlow, PacketsOut: 1, BytesOut: 60},
		},
		more: make(chan flow.Record), lost: make(chan control.Lost),
		snapshot: &policy.Snapshot{
			Tiers: policy.BuiltinTiers(),
			Pods:  []policy.Pod{{Namespace: "shop", Name: "frontend", IPs: []netip.Addr{netip.MustParseAddr("10.244.1.2")}}},
			Policies: []policy.Policy{{
				Kind: policy.KindClusterNetworkPolicy, Name: "default-deny", Tier: policy.TierBaseline, Priority: 1000, Subject: policy.Subject{Any: true},
				Rules: [2][]policy.Rule{{{Name: "nobody-out", AnyPort: true, Peers: []policy.Peer{{Kind: policy.PeerNetworks, Networks: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")}}}}}, nil},
			}},
		},
	}
}
