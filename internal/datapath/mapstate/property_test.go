package mapstate_test

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/postern-dev/postern/internal/datapath/mapstate"
	"github.com/postern-dev/postern/internal/packet"
	"github.com/postern-dev/postern/internal/policy"
	"github.com/postern-dev/postern/internal/policy/policytest"
)

// numbering gives rules numbers in the order they are asked for.
type numbering struct {
	ids  map[policy.RuleRef]uint32
	refs []policy.RuleRef
}

func (n *numbering) id(r policy.RuleRef) uint32 {
	if id, ok := n.ids[r]; ok {
		return id
	}
	n.refs = append(n.refs, r)
	id := uint32(63 + len(n.refs))
	n.ids[r] = id
	return id
}

func update(d policy.Delta, topology *mapstate.Topology) mapstate.Update {
	u := mapstate.Update{
		Sets: d.SetsChanged, RulesetsAdded: d.RulesetsAdded,
		RulesetsRemoved: d.RulesetsRemoved, SetsRemoved: d.SetsRemoved,
	}
	if d.ServicesChanged {
		u.Topology = topology
	}
	return u
}

// TestWorldAgreesWithLookup drives a World with the deltas of random changes
// and compares it, address by address, with the naive interpreter of the same
// compiled policies.
func TestWorldAgreesWithLookup(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	for round := range 40 {
		s := policytest.RandomSnapshot(rng, 4+rng.IntN(20))
		n := &numbering{ids: map[policy.RuleRef]uint32{}}
		w := mapstate.New(n.id)
		c := policy.NewCompiler(nil)
		ch := policy.ChangesFrom(s)
		for step := range 6 {
			delta, err := c.Apply(ch)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := w.Apply(update(delta, &mapstate.Topology{Services: s.Services, Nodes: s.Nodes})); err != nil {
				t.Fatal(err)
			}
			compareWorld(t, rng, s, c.Compiled(), w, n, round, step)
			if rng.IntN(2) == 0 {
				w.Freed()
			}
			ch = policytest.RandomChanges(rng, s, 1+rng.IntN(8))
			s = policytest.Update(s, ch)
		}
	}
}

func compareWorld(t *testing.T, rng *rand.Rand, s *policy.Snapshot, c *policy.Compiled, w *mapstate.World, n *numbering, round, step int) {
	t.Helper()
	for _, pod := range policytest.Endpoints(s) {
		for _, dir := range policy.Directions {
			for _, tuple := range policytest.Tuples(rng, s, pod, dir, 40) {
				want := policy.Lookup(c, pod, dir, tuple)
				if want.Rule.Index == policy.IndexSelf {
					continue // the kernel's own comparison, see bpf/decide.h
				}
				remote := packet.Judged(tuple.Dst)
				if dir == policy.Ingress {
					remote = tuple.Src
				}
				got := w.Lookup(w.RulesetID(c.Endpoints[pod][dir]), w.Class(packet.Unmap(remote)), tuple.Protocol, tuple.DstPort)
				if got&mapstate.RuleMask < 64 {
					t.Fatalf("round %d step %d: %s %s %s: got reason %#x, want %v", round, step, pod, dir, tuple, got, want)
				}
				verdict := policy.Dropped
				if got&mapstate.RuleForwarded != 0 {
					verdict = policy.Forwarded
				}
				if verdict != want.Verdict || n.refs[got&mapstate.RuleMask-64] != want.Rule {
					t.Fatalf("round %d step %d: %s %s %s:\n got %v by %v\nwant %v", round, step, pod, dir, tuple, verdict, n.refs[got&mapstate.RuleMask-64], want)
				}
			}
		}
	}
}
