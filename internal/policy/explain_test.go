package policy_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/postern-dev/postern/internal/policy"
	"github.com/postern-dev/postern/internal/policy/policytest"
)

func TestExplainDecidesAsEvaluate(t *testing.T) {
	for i := range uint64(400) {
		seed := baseSeed(t)*1_000_003 + i
		rng := newRand(seed)
		s := policytest.RandomSnapshot(rng, 1+int(i%12))
		pods := append(policytest.Endpoints(s), policy.PodKey{Namespace: "no", Name: "such"})
		for _, pod := range pods {
			for _, dir := range policy.Directions {
				for _, tu := range policytest.Tuples(rng, s, pod, dir, 10) {
					e, want := policy.Explain(s, pod, dir, tu), policy.Evaluate(s, pod, dir, tu)
					if e.Decision != want {
						t.Fatalf("seed %d: %s of %s, %s: Explain says %s, Evaluate %s\n%s", seed, dir, pod, tu, e.Decision, want, e)
					}
					if text := e.String(); !strings.Contains(strings.ToLower(text), want.Rule.String()[1:]) && !strings.Contains(text, want.Rule.String()) {
						t.Fatalf("seed %d: the text does not name %s:\n%s", seed, want.Rule, text)
					}
					checkMatched(t, e)
				}
			}
		}
	}
}

// checkMatched expects that the deciding rule is marked, and no rule after it.
func checkMatched(t *testing.T, e policy.Explanation) {
	t.Helper()
	if e.Service != nil || e.Decision.Rule.Index < 0 {
		return
	}
	var last policy.RuleRef
	for _, tier := range e.Tiers {
		for _, p := range tier.Policies {
			for _, r := range p.Rules {
				if r.Matched {
					last = r.Rule
				}
			}
		}
	}
	if last != e.Decision.Rule {
		t.Fatalf("the last rule that is marked is %s:\n%s", last, e)
	}
}

func TestExplainSurvivesJSON(t *testing.T) {
	s := shop()
	e := policy.Explain(s, podWeb, policy.Egress, tuple("tcp", "10.0.0.1", "10.96.0.10", 80))
	b, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	var back policy.Explanation
	if err := json.Unmarshal(b, &back); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(e, back, compiledEqual, cmp.Comparer(func(a, b policy.BackendTrace) bool { return a.Backend == b.Backend && a.Decision == b.Decision })); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestExplainText(t *testing.T) {
	s := shop()
	for _, tt := range []struct {
		name, dst string
		port      uint16
		want      string
	}{
		{"accepted by the app's own policy", "10.0.0.2", 5432, `
egress of shop/web: tcp 10.0.0.1:40000 -> 10.0.0.2:5432 (pod shop/db)
Forwarded by networkpolicy shop/web egress[0] "to-db"
  the first rule that matches, in tier networkpolicy
tier admin: no rule matches; on to the next tier
  ClusterNetworkPolicy guard priority 10
    egress[0] "metadata" Deny to 169.254.169.254/32: no peer is 10.0.0.2
    egress[1] Pass to 10.96.0.0/12 on udp/53: no peer is 10.0.0.2
tier networkpolicy: accepted by networkpolicy shop/web egress[0] "to-db" (1 policy does not select the pod)
  NetworkPolicy shop/web: isolates egress
  > egress[0] "to-db" Accept to pods app=db in shop on tcp/pg: matches [the shop's own data]
tier baseline: not reached
`},
		{"denied by isolation, an expired rule in sight", "1.2.3.4", 443, `
egress of shop/web: tcp 10.0.0.1:40000 -> 1.2.3.4:443
Dropped by networkpolicy shop/web egress isolation
  no rule accepts, and the pod is isolated for egress
tier admin: no rule matches; on to the next tier
  ClusterNetworkPolicy guard priority 10
    egress[0] "metadata" Deny to 169.254.169.254/32: no peer is 1.2.3.4
    egress[1] Pass to 10.96.0.0/12 on udp/53: no peer is 1.2.3.4
tier networkpolicy: no rule accepts, and the pod is isolated for egress (1 policy does not select the pod)
  NetworkPolicy shop/web: isolates egress
    egress[0] "to-db" Accept to pods app=db in shop on tcp/pg: no peer is 1.2.3.4 [the shop's own data]
    egress[1] "trial" Accept to 1.2.3.0/24 except 1.2.3.128/25: expired at 2026-01-02 03:00:00Z
    egress[2] Accept to anywhere on tcp/80-90, tcp/8443: the peer matches, tcp/443 does not
tier baseline: not reached
`},
		{"a Service with two kinds of backends", "10.96.0.10", 80, `
egress of shop/web: tcp 10.0.0.1:40000 -> 10.96.0.10:80 (service shop/front)
Deferred by egress deferred "shop/front"
  the backends get different verdicts; the one that is chosen decides
service shop/front port 80, 2 backends
backend 10.0.0.2:5432 (pod shop/db): forwarded by networkpolicy shop/web egress[0] "to-db"
  the first rule that matches, in tier networkpolicy
  tier admin: no rule matches; on to the next tier
    ClusterNetworkPolicy guard priority 10
      egress[0] "metadata" Deny to 169.254.169.254/32: no peer is 10.0.0.2
      egress[1] Pass to 10.96.0.0/12 on udp/53: no peer is 10.0.0.2
  tier networkpolicy: accepted by networkpolicy shop/web egress[0] "to-db" (1 policy does not select the pod)
    NetworkPolicy shop/web: isolates egress
    > egress[0] "to-db" Accept to pods app=db in shop on tcp/pg: matches [the shop's own data]
  tier baseline: not reached
backend 10.0.0.9:9999: dropped by networkpolicy shop/web egress isolation
  no rule accepts, and the pod is isolated for egress
  tier admin: no rule matches; on to the next tier
    ClusterNetworkPolicy guard priority 10
      egress[0] "metadata" Deny to 169.254.169.254/32: no peer is 10.0.0.9
      egress[1] Pass to 10.96.0.0/12 on udp/53: no peer is 10.0.0.9
  tier networkpolicy: no rule accepts, and the pod is isolated for egress (1 policy does not select the pod)
    NetworkPolicy shop/web: isolates egress
      egress[0] "to-db" Accept to pods app=db in shop on tcp/pg: no peer is 10.0.0.9 [the shop's own data]
      egress[1] "trial" Accept to 1.2.3.0/24 except 1.2.3.128/25: expired at 2026-01-02 03:00:00Z
      egress[2] Accept to anywhere on tcp/80-90, tcp/8443: the peer matches, tcp/9999 does not
  tier baseline: not reached
`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := policy.Explain(s, podWeb, policy.Egress, tuple("tcp", "10.0.0.1", tt.dst, tt.port)).String()
			if diff := cmp.Diff(strings.TrimPrefix(tt.want, "\n"), got); diff != "" {
				t.Errorf("(-want +got)\n%s\n%s", diff, got)
			}
		})
	}
}

// TestExplainListsPoliciesInOrder: those that say nothing about the direction
// stand where they would be evaluated.
func TestExplainListsPoliciesInOrder(t *testing.T) {
	s := shop()
	s.Policies = nil
	for _, p := range []struct {
		name     string
		priority int32
		dir      policy.Direction
		tier     string
	}{
		{"d", 20, policy.Ingress, policy.TierAdmin},
		{"a", 30, policy.Egress, policy.TierAdmin},
		{"c", 10, policy.Egress, policy.TierAdmin},
		{"b", 20, policy.Ingress, policy.TierAdmin},
		{"lost", 0, policy.Egress, "nowhere"},
	} {
		c := policy.Policy{Kind: policy.KindClusterNetworkPolicy, Name: p.name, Tier: p.tier, Priority: p.priority, Subject: policy.Subject{Any: true}}
		c.Rules[p.dir] = []policy.Rule{{Action: policy.Deny, AnyPort: true}}
		s.Policies = append(s.Policies, c)
	}
	e := policy.Explain(s, podWeb, policy.Egress, tuple("tcp", "10.0.0.1", "1.2.3.4", 80))
	var got []string
	for _, p := range e.Tiers[0].Policies {
		got = append(got, p.Name)
	}
	if diff := cmp.Diff([]string{"c", "b", "d", "a", "lost"}, got); diff != "" {
		t.Errorf("(-want +got)\n%s\n%s", diff, e)
	}
}

func TestExplainNotes(t *testing.T) {
	s := shop()
	for i := range s.Services {
		for j := range s.Services[i].Ports {
			s.Services[i].Ports[j].Backends = s.Services[i].Ports[j].Backends[:1]
		}
	}
	e := policy.Explain(s, podWeb, policy.Egress, tuple("tcp", "10.0.0.1", "10.96.0.10", 80))
	if e.Note != "its only backend gets this verdict" {
		t.Errorf("%q", e.Note)
	}
}
