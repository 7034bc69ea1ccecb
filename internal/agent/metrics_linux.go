package agent

import (
	"context"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics. Names are postern_<subsystem>_<what>_<unit>.
var (
	descEndpoints = prometheus.NewDesc("postern_endpoints", "Pods of this node by state.", []string{"state"}, nil)
	descRevision  = prometheus.NewDesc("postern_datapath_revision", "Number of the revision that the kernel enforces.", nil, nil)
	descPackets   = prometheus.NewDesc("postern_dropped_packets_total", "Packets of or to a pod that a rule or reason dropped. Exact.", []string{"namespace", "pod", "rule", "reason"}, nil)
	descBytes     = prometheus.NewDesc("postern_dropped_bytes_total", "Bytes of those packets, whole frames.", []string{"namespace", "pod", "rule", "reason"}, nil)
	descAccepted  = prometheus.NewDesc("postern_accepted_flows_total", "First packets of or to a pod that policy admitted. Exact.", []string{"namespace", "pod"}, nil)
	descRule      = prometheus.NewDesc("postern_rule_accepted_flows_total", "First packets that a rule admitted on this node. Exact.", []string{"rule"}, nil)
	descLost      = prometheus.NewDesc("postern_events_lost_total", "Events for which the ring buffer had no room. Counters are exact all the same.", nil, nil)
	descRefused   = prometheus.NewDesc("postern_flows_refused_total", "Flows for which a pod's flow table had no room.", nil, nil)
	descProblems  = prometheus.NewDesc("postern_problems", "What postern status lists.", []string{"severity"}, nil)
	descEntries   = prometheus.NewDesc("postern_datapath_entries", "What the kernel's maps hold.", []string{"what"}, nil)
)

type collector struct {
	a   *Agent
	ctx context.Context
}

// Describe is prometheus.Collector's.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descEndpoints, descRevision, descPackets, descBytes, descAccepted, descRule, descLost, descRefused, descProblems, descEntries} {
		ch <- d
	}
}

// Collect is prometheus.Collector's.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	c.a.do(c.ctx, func() {
		s, err := c.a.status()
		if err != nil {
			ch <- prometheus.NewInvalidMetric(descRevision, err)
			return
		}
		gauge := func(d *prometheus.Desc, v float64, labels ...string) {
			ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
		}
		counter := func(d *prometheus.Desc, v float64, labels ...string) {
			ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, labels...)
		}
		for _, state := range []string{stateEnforced, stateFailed, stateQuarantined, stateNotCovered} {
			gauge(descEndpoints, float64(s.Endpoints[state]), state)
		}
		gauge(descRevision, float64(s.Revision))
		counter(descLost, float64(s.EventsLost))
		counter(descRefused, float64(s.FlowsRefused))
		problems := map[string]int{"error": 0, "warning": 0}
		for _, p := range s.Problems {
			problems[p.Severity]++
		}
		for sev, n := range problems {
			gauge(descProblems, float64(n), sev)
		}
		for what, n := range s.Kernel {
			gauge(descEntries, float64(n), what)
		}
		eps, err := c.a.listEndpoints()
		if err != nil {
			ch <- prometheus.NewInvalidMetric(descPackets, err)
			return
		}
		for _, ep := range eps {
			if ep.State == stateQuarantined {
				continue // it has no pod, and the name of its last one may be another's now
			}
			counter(descAccepted, float64(ep.Forwarded), ep.Namespace, ep.Name)
			for _, r := range ep.Rules {
				text := r.Rule.Text
				if r.Rule.Reason != "" {
					text = ""
				}
				counter(descPackets, float64(r.Packets), ep.Namespace, ep.Name, text, r.Rule.Reason)
				counter(descBytes, float64(r.Bytes), ep.Namespace, ep.Name, text, r.Rule.Reason)
			}
		}
		accepted, err := c.a.dp.AcceptedByRule(c.a.names.ids())
		if err != nil {
			ch <- prometheus.NewInvalidMetric(descRule, err)
			return
		}
		for id, n := range accepted {
			counter(descRule, float64(n.Packets), c.a.rule(id).Text)
		}
	})
}
