package policy_test

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/postern-dev/postern/internal/policy"
)

func TestRuleRefText(t *testing.T) {
	for want, ref := range map[string]policy.RuleRef{
		`networkpolicy shop/web egress[0] "to-db"`: {
			Tier: "networkpolicy", Kind: policy.KindNetworkPolicy, Namespace: "shop", Policy: "web", Name: "to-db",
		},
		`admin baseline ingress[12]`:              {Tier: "admin", Kind: policy.KindClusterNetworkPolicy, Policy: "baseline", Direction: policy.Ingress, Index: 12},
		`networkpolicy shop/web egress isolation`: {Tier: "networkpolicy", Namespace: "shop", Policy: "web", Index: policy.IndexIsolation},
		`ingress own-node`:                        {Direction: policy.Ingress, Index: policy.IndexNode},
		`egress no-match`:                         {Index: policy.IndexNoMatch},
		`egress index-99`:                         {Index: -99},
	} {
		if got := ref.String(); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
		b, err := json.Marshal(policy.Decision{Verdict: policy.Forwarded, Rule: ref})
		if err != nil {
			t.Fatal(err)
		}
		var back policy.Decision
		if err := json.Unmarshal(b, &back); err != nil || back.Rule != ref || back.Verdict != policy.Forwarded {
			t.Errorf("%s through JSON: %+v, %v", b, back, err)
		}
	}
}

func TestWordsThatAreNone(t *testing.T) {
	for _, text := range []string{"", "Egress", "both"} {
		if err := new(policy.Direction).UnmarshalText([]byte(text)); err == nil {
			t.Errorf("direction %q was taken", text)
		}
		if err := new(policy.Action).UnmarshalText([]byte(text)); err == nil {
			t.Errorf("action %q was taken", text)
		}
		if err := new(policy.Verdict).UnmarshalText([]byte(text)); err == nil {
			t.Errorf("verdict %q was taken", text)
		}
	}
}

// Different selectors must have different text, since sets are named by it.
func TestSelectorTextIsInjective(t *testing.T) {
	in := func(key string, values ...string) policy.Selector {
		return policy.NewSelector(policy.Requirement{Key: key, Op: policy.OpIn, Values: values})
	}
	exists := func(key string) policy.Selector {
		return policy.NewSelector(policy.Requirement{Key: key, Op: policy.OpExists})
	}
	all := []policy.Selector{
		{},
		in("a", "b,c"), in("a", "b", "c"), in("a"), in("a", ""), in("a", "", "b"), in("a=b", "c"), exists("a=b"), exists("a"),
		exists("a in (b)"), in("a", "b"), exists("*"), exists(`"a"`), in("a", "}/{"),
		policy.NewSelector(policy.Requirement{Key: "a", Op: policy.OpNotIn, Values: []string{"b"}}),
		policy.NewSelector(policy.Requirement{Key: "a", Op: policy.OpDoesNotExist}), exists("!a"),
		policy.NewSelector(policy.Requirement{Key: "a", Op: "Near"}), exists("?a"),
	}
	seen := map[string]policy.Selector{}
	for _, s := range all {
		if other, ok := seen[s.String()]; ok {
			t.Errorf("%s is the text of %+v and of %+v", s, s, other)
		}
		seen[s.String()] = s
	}
}

func TestConflicts(t *testing.T) {
	everywhere := cep("admin", "everywhere", 5, anywhere(policy.Deny))
	shopOnly := cep("admin", "shop-only", 5, anywhere(policy.Accept))
	shopOnly.Subject = policy.Subject{Selects: true, Namespace: "shop"}
	bankOnly := cep("admin", "bank-only", 5, anywhere(policy.Accept))
	bankOnly.Subject = policy.Subject{Selects: true, Namespace: "bank"}
	other := cep("admin", "other-priority", 6, anywhere(policy.Accept))
	later := cep("baseline", "other-tier", 5, anywhere(policy.Accept))
	ingress := cep("admin", "other-direction", 5)
	ingress.Kind, ingress.Rules = policy.KindClusterNetworkPolicy, [2][]policy.Rule{nil, {anywhere(policy.Deny)}}
	s := world(bankOnly, np("a", [2]bool{true, true}, nil, nil), np("b", [2]bool{true, true}, nil, nil),
		shopOnly, everywhere, other, later, ingress)
	want := []policy.Conflict{
		{Tier: "admin", Priority: 5, First: bankOnly.Key(), Second: everywhere.Key(), Pod: policy.PodKey{Namespace: "bank", Name: "db"}, Pods: 1},
		{Tier: "admin", Priority: 5, First: everywhere.Key(), Second: shopOnly.Key(), Pod: podDB, Pods: 2},
	}
	if diff := cmp.Diff(want, policy.Conflicts(s)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	const text = "ClusterEgressPolicy everywhere and ClusterEgressPolicy shop-only both have priority 5 in tier admin " +
		"and select 2 pods, such as shop/db; the first wins"
	if got := want[1].String(); got != text {
		t.Errorf("got %s", got)
	}
}
