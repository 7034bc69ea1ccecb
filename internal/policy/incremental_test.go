package policy_test

import (
	"errors"
	"maps"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/postern-dev/postern/internal/packet"
	"github.com/postern-dev/postern/internal/policy"
	"github.com/postern-dev/postern/internal/policy/policytest"
)

var compiledEqual = cmp.Options{
	cmpopts.EquateEmpty(),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
}

// sameCompiled is compiledEqual without the time that it takes.
func sameCompiled(a, b *policy.Compiled) bool {
	return a.Revision == b.Revision && a.NextExpiry.Equal(b.NextExpiry) &&
		maps.EqualFunc(a.Rulesets, b.Rulesets, func(x, y *policy.Ruleset) bool { return reflect.DeepEqual(x, y) }) &&
		maps.Equal(a.Endpoints, b.Endpoints) &&
		maps.EqualFunc(a.Addresses, b.Addresses, slices.Equal[[]netip.Addr]) &&
		maps.EqualFunc(a.Sets, b.Sets, slices.Equal[[]netip.Prefix])
}

// onNodeZero makes a pod's move between nodes one between endpoint and not.
func onNodeZero(p *policy.Pod) bool { return p.Node == "node0" }

// follower is a Compiler with what a consumer of its Deltas knows.
type follower struct {
	c    *policy.Compiler
	seen policy.Compiled
}

func (f *follower) apply(t *testing.T, ch policy.Changes) {
	t.Helper()
	d, err := f.c.Apply(ch)
	if err != nil {
		t.Fatal(err)
	}
	for id, change := range d.SetsChanged {
		for _, p := range change.Remove {
			if !slices.Contains(f.seen.Sets[id], p) {
				t.Fatalf("set %s: Delta removes %s, which it does not hold", id, p)
			}
		}
		for _, p := range change.Add {
			if slices.Contains(f.seen.Sets[id], p) {
				t.Fatalf("set %s: Delta adds %s, which it holds", id, p)
			}
		}
	}
	for id := range d.RulesetsAdded {
		if f.seen.Rulesets[id] != nil {
			t.Fatalf("Delta adds ruleset %s, which is there", id)
		}
	}
	f.seen.Apply(d)
}

func (f *follower) check(t *testing.T, want *policy.Compiled, what string) {
	t.Helper()
	if got := f.c.Compiled(); !sameCompiled(want, got) {
		diff := cmp.Diff(want, got, compiledEqual)
		t.Fatalf("%s: incremental result differs from Compile (-want +got):\n%s", what, diff)
	}
	if !sameCompiled(want, &f.seen) {
		diff := cmp.Diff(want, &f.seen, compiledEqual)
		t.Fatalf("%s: sum of the Deltas differs from Compile (-want +got):\n%s", what, diff)
	}
}

func newFollower(local func(*policy.Pod) bool) *follower {
	return &follower{c: policy.NewCompiler(local)}
}

func TestIncrementalEqualsCompile(t *testing.T) {
	base := baseSeed(t)
	for i := range uint64(200) {
		seed := base*1_000_003 + i
		runSequence(t, seed, 1+int(i%10))
		if t.Failed() {
			return
		}
	}
}

func runSequence(t *testing.T, seed uint64, size int) {
	t.Helper()
	defer func() {
		if t.Failed() {
			t.Logf("seed %d (POSTERN_TEST_SEED=%d)", seed, baseSeed(t))
		}
	}()
	rng := newRand(seed)
	var local func(*policy.Pod) bool
	if rng.IntN(2) == 0 {
		local = onNodeZero
	}
	s := policytest.RandomSnapshot(rng, size)
	start := policy.ChangesFrom(s)
	plain, split, double := newFollower(local), newFollower(local), newFollower(local)
	plain.apply(t, start)
	for _, ch := range policytest.Split(start) {
		split.apply(t, ch)
	}
	double.apply(t, start)
	squashed := start
	for range 8 {
		ch := policytest.RandomChanges(rng, s, 1+rng.IntN(4))
		s = policytest.Update(s, ch)
		plain.apply(t, ch)
		for _, one := range policytest.Split(ch) {
			split.apply(t, one)
			if rng.IntN(2) == 0 {
				split.apply(t, one)
			}
		}
		double.apply(t, ch)
		double.apply(t, ch)
		squashed = policytest.Squash(squashed, ch)

		want, err := policy.Compile(s, local)
		if err != nil {
			t.Fatal(err)
		}
		plain.check(t, want, "as it comes")
		split.check(t, want, "split and in parts doubled")
		double.check(t, want, "doubled")
	}
	want, _ := policy.Compile(s, local)
	one := newFollower(local)
	one.apply(t, squashed)
	one.check(t, want, "squashed")
	back := newFollower(local)
	for _, ch := range slices.Backward(policytest.Split(policy.ChangesFrom(s))) {
		back.apply(t, ch)
	}
	back.check(t, want, "reversed and split")
	mixed := newFollower(local)
	parts := policytest.Split(policy.ChangesFrom(s))
	rng.Shuffle(len(parts), func(i, j int) { parts[i], parts[j] = parts[j], parts[i] })
	for _, ch := range parts {
		mixed.apply(t, ch)
	}
	mixed.check(t, want, "in random order")
	emptied(t, plain, s)
}

// emptied deletes everything and expects that nothing is left behind.
func emptied(t *testing.T, f *follower, s *policy.Snapshot) {
	t.Helper()
	ch := policy.Changes{Protected: new([]netip.Prefix)}
	for i := range s.Pods {
		ch.PodsDeleted = append(ch.PodsDeleted, s.Pods[i].Key())
	}
	f.apply(t, ch)
	if n := f.c.Sources(); n != 1 {
		t.Fatalf("without endpoints it still keeps %d sets, want the protected one alone", n)
	}
	ch = policy.Changes{}
	for i := range s.Policies {
		ch.PoliciesDeleted = append(ch.PoliciesDeleted, s.Policies[i].Key())
	}
	f.apply(t, ch)
	want := &policy.Compiled{
		Revision: s.Revision, Sets: map[policy.SetID][]netip.Prefix{policy.SetIDProtected: nil},
	}
	f.check(t, want, "emptied")
	if left := f.c.Leftovers(); left != "" {
		t.Fatalf("emptied, but it still holds %s", left)
	}
}

// TestDelta restates what a Delta says of single changes to the shop.
func TestDelta(t *testing.T) {
	setUp := func(t *testing.T, s *policy.Snapshot) *policy.Compiler {
		t.Helper()
		c := policy.NewCompiler(nil)
		if _, err := c.Apply(policy.ChangesFrom(s)); err != nil {
			t.Fatal(err)
		}
		return c
	}
	apply := func(t *testing.T, c *policy.Compiler, ch policy.Changes) policy.Delta {
		t.Helper()
		d, err := c.Apply(ch)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	empty := func(d policy.Delta) bool {
		return len(d.SetsChanged)+len(d.RulesetsAdded)+len(d.Endpoints)+len(d.Addresses)+len(d.EndpointsGone)+
			len(d.RulesetsRemoved)+len(d.SetsRemoved) == 0 && !d.ServicesChanged
	}
	t.Run("the same again is nothing", func(t *testing.T) {
		c := setUp(t, shop())
		if d := apply(t, c, policy.ChangesFrom(shop())); !empty(d) {
			t.Errorf("got %+v", d)
		}
	})
	t.Run("a new pod of a peer is one address of one set", func(t *testing.T) {
		s := world(np("p", [2]bool{true, false}, []policy.Rule{to(policy.Accept, podsIn("bank"))}, nil))
		c := setUp(t, s)
		d := apply(t, c, policy.Changes{Pods: []policy.Pod{{Namespace: "bank", Name: "new", Node: "n2", IPs: addrs("10.0.0.77")}}})
		want := map[policy.SetID]policy.SetDelta{"pods:bank/{*}": {Add: nets("10.0.0.77/32")}}
		if diff := cmp.Diff(want, d.SetsChanged, compiledEqual); diff != "" {
			t.Errorf("sets (-want +got)\n%s", diff)
		}
		if len(d.RulesetsAdded) != 0 || len(d.Endpoints) != 1 {
			t.Errorf("got rulesets %v, endpoints %v, want none and the new one", d.RulesetsAdded, d.Endpoints)
		}
	})
	t.Run("a pod made anew is an endpoint anew", func(t *testing.T) {
		s := shop()
		c := setUp(t, s)
		pod := s.Pods[0]
		pod.UID = "another"
		d := apply(t, c, policy.Changes{PodsDeleted: []policy.PodKey{podWeb}, Pods: []policy.Pod{pod}})
		if _, ok := d.Endpoints[podWeb]; !ok || len(d.EndpointsGone) != 0 {
			t.Errorf("got %+v", d)
		}
	})
	t.Run("a changed address", func(t *testing.T) {
		s := shop()
		c := setUp(t, s)
		pod := s.Pods[0]
		pod.IPs = addrs("10.0.0.7")
		d := apply(t, c, policy.Changes{Pods: []policy.Pod{pod}})
		if diff := cmp.Diff(map[policy.PodKey][]netip.Addr{podWeb: addrs("10.0.0.7")}, d.Addresses, compiledEqual); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
	})
	t.Run("a pod that moves to a protected address leaves the set of its port's name", func(t *testing.T) {
		rule := on(anywhere(policy.Accept), policy.PortMatch{Named: "pg", Protocol: packet.ProtocolTCP})
		s := world(np("p", [2]bool{true, false}, []policy.Rule{rule}, nil))
		s.Protected = nets("169.254.169.254/32")
		other := s.Pods[1]
		other.Name, other.IPs = "other", addrs("10.0.0.8")
		s.Pods = append(s.Pods, other)
		c := setUp(t, s)
		db := s.Pods[1]
		db.IPs = addrs("169.254.169.254")
		d := apply(t, c, policy.Changes{Pods: []policy.Pod{db}})
		want := map[policy.SetID]policy.SetDelta{
			"pods:{*}/{*}:port=pg/tcp/5432:unprotected": {Remove: nets("10.0.0.2/32", "fd00::2/128")},
		}
		if diff := cmp.Diff(want, d.SetsChanged, compiledEqual); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
	})
	t.Run("a backend's container port gets the name that a Service peer asks for", func(t *testing.T) {
		front := policy.Peer{Kind: policy.PeerService, Service: policy.ServiceRef{Namespace: "shop", Name: "front"}}
		rule := on(to(policy.Accept, front), policy.PortMatch{Named: "data", AnyProtocol: true})
		s := world(np("p", [2]bool{true, false}, []policy.Rule{rule}, nil))
		c := setUp(t, s)
		before := policy.Lookup(c.Compiled(), podWeb, policy.Egress, tuple("tcp", "10.0.0.1", "10.0.0.2", 5432))
		db := s.Pods[1]
		db.Ports = []policy.ContainerPort{{Name: "data", Protocol: packet.ProtocolTCP, Port: 5432}}
		apply(t, c, policy.Changes{Pods: []policy.Pod{db}})
		after := policy.Lookup(c.Compiled(), podWeb, policy.Egress, tuple("tcp", "10.0.0.1", "10.0.0.2", 5432))
		if before.Verdict != policy.Dropped || after.Verdict != policy.Forwarded {
			t.Errorf("got %s, then %s", before, after)
		}
	})
}

func TestOrderOfObjectsDoesNotMatter(t *testing.T) {
	for i := range uint64(100) {
		seed := baseSeed(t)*1_000_003 + i
		rng := newRand(seed)
		s := policytest.RandomSnapshot(rng, 10)
		want, err := policy.Compile(s, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, other := range []*policy.Snapshot{policytest.Reverse(s), policytest.Shuffle(rng, s)} {
			got, err := policy.Compile(other, nil)
			if err != nil {
				t.Fatal(err)
			}
			if !sameCompiled(want, got) {
				diff := cmp.Diff(want, got, compiledEqual)
				t.Fatalf("seed %d: (-want +got)\n%s", seed, diff)
			}
			sameEvaluation(t, rng, s, other)
		}
	}
}

func sameEvaluation(t *testing.T, rng *rand.Rand, a, b *policy.Snapshot) {
	t.Helper()
	for _, pod := range policytest.Endpoints(a) {
		for _, dir := range policy.Directions {
			for _, tu := range policytest.Tuples(rng, a, pod, dir, 20) {
				if x, y := policy.Evaluate(a, pod, dir, tu), policy.Evaluate(b, pod, dir, tu); x != y {
					t.Fatalf("%s of %s, %s: %s, in another order %s", dir, pod, tu, x, y)
				}
			}
		}
	}
}

func TestCapacityDeniesAndSaysSo(t *testing.T) {
	pod := policy.Pod{Namespace: "shop", Name: "web", IPs: []netip.Addr{netip.MustParseAddr("10.0.0.1")}}
	free := policy.Pod{Namespace: "dev", Name: "free", IPs: []netip.Addr{netip.MustParseAddr("10.0.0.2")}}
	p := policy.Policy{
		Kind: policy.KindClusterEgressPolicy, Name: "long", Tier: policy.TierAdmin,
		Subject: policy.Subject{Selects: true, Namespace: "shop"},
	}
	for i := range policy.MaxRules {
		p.Rules[policy.Egress] = append(p.Rules[policy.Egress],
			policy.Rule{Index: i, Action: policy.Accept, AnyPeer: true, AnyPort: true})
	}
	tiers := policy.BuiltinTiers()
	for i := range policy.MaxTiers {
		tiers = append(tiers, policy.Tier{Name: "t" + string(rune('a'+i)), Order: int32(i)})
	}
	short := p
	short.Rules = [2][]policy.Rule{p.Rules[0][:1]}
	for name, s := range map[string]*policy.Snapshot{
		"rules": {Tiers: policy.BuiltinTiers(), Pods: []policy.Pod{pod, free}, Policies: []policy.Policy{p}},
		"tiers": {Tiers: tiers, Pods: []policy.Pod{pod, free}, Policies: []policy.Policy{short}},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := policy.Compile(s, nil)
			var ce *policy.CapacityError
			if !errors.Is(err, policy.ErrCapacity) || !errors.As(err, &ce) || ce.Pod != pod.Key() || ce.What != name {
				t.Fatalf("got error %v, want a CapacityError about %s of %s", err, name, pod.Key())
			}
			got := policy.Lookup(c, pod.Key(), policy.Egress, tuple("tcp", "10.0.0.1", "1.1.1.1", 443))
			want := policy.Decision{Rule: policy.RuleRef{Index: policy.IndexCapacity}}
			if got != want {
				t.Errorf("got %s, want %s", got, want)
			}
			got = policy.Lookup(c, free.Key(), policy.Egress, tuple("tcp", "10.0.0.2", "1.1.1.1", 443))
			if got.Verdict != policy.Forwarded {
				t.Errorf("an endpoint without policies: got %s, want forwarded", got)
			}
		})
	}
}
