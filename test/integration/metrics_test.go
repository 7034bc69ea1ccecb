//go:build linux

package integration

import (
	"bufio"
	"context"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/postern-dev/postern/internal/lab"
	"github.com/postern-dev/postern/test/harness"
)

// exposition is what /metrics says.
type exposition struct {
	help, types map[string]string
	values      map[string]float64 // by name and labels, as written
}

// scrape asks an agent for its metrics, and fails the test if something is not in
// order. Source: Prometheus text format 0.0.4.
func scrape(t *testing.T, socket string) exposition {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://agent/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	if ct := res.Header.Get("Content-Type"); res.StatusCode != http.StatusOK || !strings.HasPrefix(ct, "text/plain; version=0.0.4") {
		t.Fatalf("%s, %q", res.Status, ct)
	}
	e := exposition{map[string]string{}, map[string]string{}, map[string]float64{}}
	lines := bufio.NewScanner(res.Body)
	for lines.Scan() {
		line := lines.Text()
		if text, ok := strings.CutPrefix(line, "# HELP "); ok {
			name, help, _ := strings.Cut(text, " ")
			e.help[name] = help
			continue
		}
		if text, ok := strings.CutPrefix(line, "# TYPE "); ok {
			name, kind, _ := strings.Cut(text, " ")
			e.types[name] = kind
			continue
		}
		i := strings.LastIndexByte(line, ' ')
		v, err := strconv.ParseFloat(line[i+1:], 64)
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		e.values[line[:i]] = v
		if name, _, _ := strings.Cut(line[:i], "{"); e.help[name] == "" || e.types[name] == "" {
			t.Errorf("%q has no HELP or no TYPE before it", line)
		}
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	return e
}

// TestMetrics: the names are what dashboards are made of, and the counters count.
func TestMetrics(t *testing.T) {
	w := harness.New(t, lab.DefaultSpec("it-metrics"))
	web := netip.AddrPortFrom(lab.WebV4, lab.EchoPort)
	w.Allowed(w.Pod("shop/frontend"), "tcp", web)
	w.Write("deny.yaml", denyAll)
	w.Denied(w.Pod("shop/frontend"), "udp", web)
	before := scrape(t, w.Agent.Socket)

	types := map[string]string{
		"postern_endpoints": "gauge", "postern_datapath_revision": "gauge", "postern_datapath_entries": "gauge", "postern_problems": "gauge",
		"postern_dropped_packets_total": "counter", "postern_dropped_bytes_total": "counter", "postern_accepted_flows_total": "counter",
		"postern_rule_accepted_flows_total": "counter", "postern_events_lost_total": "counter", "postern_flows_refused_total": "counter",
	}
	if diff := cmp.Diff(types, before.types); diff != "" {
		t.Errorf("names and types (-want +got)\n%s", diff)
	}
	for name, help := range before.help {
		if !strings.HasSuffix(help, ".") {
			t.Errorf("HELP of %s: %q", name, help)
		}
	}
	pods := float64(len(w.Lab.Pods()))
	for series, want := range map[string]float64{
		`postern_endpoints{state="enforced"}`: pods, `postern_endpoints{state="failed"}`: 0, `postern_endpoints{state="quarantined"}`: 0, `postern_endpoints{state="not-covered"}`: 0,
		`postern_problems{severity="error"}`: 0, `postern_problems{severity="warning"}`: 0,
		"postern_events_lost_total": 0, "postern_flows_refused_total": 0,
		`postern_accepted_flows_total{namespace="shop",pod="frontend"}`: 1,
	} {
		if got, ok := before.values[series]; !ok || got != want {
			t.Errorf("%s is %v (there: %v), want %v", series, got, ok, want)
		}
	}

	w.Denied(w.Pod("shop/frontend"), "udp", web)
	w.Write("more.yaml", strings.ReplaceAll(denyAll, "deny-all", "deny-more")) // another revision
	after := scrape(t, w.Agent.Socket)
	grew := func(prefix string) float64 {
		t.Helper()
		n := 0.0
		for _, series := range slices.Sorted(maps.Keys(after.values)) {
			if strings.HasPrefix(series, prefix) && strings.Contains(series, "deny-all") {
				n += after.values[series] - before.values[series]
			}
		}
		return n
	}
	packets := grew(`postern_dropped_packets_total{namespace="shop",pod="frontend",`)
	if bytes := grew(`postern_dropped_bytes_total{namespace="shop",pod="frontend",`); packets != 1 || bytes < 42 {
		t.Errorf("one dropped datagram is %v packets of %v bytes", packets, bytes)
	}
	if a, b := before.values["postern_datapath_revision"], after.values["postern_datapath_revision"]; b <= a {
		t.Errorf("revision %v, then %v", a, b)
	}
}
