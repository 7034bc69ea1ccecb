package policy_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"

	"github.com/postern-dev/postern/internal/packet"
	"github.com/postern-dev/postern/internal/policy"
	"github.com/postern-dev/postern/internal/policy/policytest"
)

// baseSeed is that of POSTERN_TEST_SEED, so that a failure can be repeated.
func baseSeed(t *testing.T) uint64 {
	t.Helper()
	if s := os.Getenv("POSTERN_TEST_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatalf("POSTERN_TEST_SEED: %v", err)
		}
		return n
	}
	return 1
}

func newRand(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 7)) }

// difference returns what Evaluate and the compiled form disagree about, or "".
func difference(s *policy.Snapshot, seed uint64, tuples int) string {
	c, err := policy.Compile(s, nil)
	if err != nil {
		return err.Error()
	}
	fronts := policy.Frontends(s.Services, s.Nodes)
	for _, pod := range policytest.Endpoints(s) {
		for _, dir := range policy.Directions {
			for _, tu := range policytest.Tuples(newRand(seed), s, pod, dir, tuples) {
				if diff := compareOne(s, c, fronts, pod, dir, tu); diff != "" {
					return diff
				}
			}
		}
	}
	return ""
}

func compareOne(s *policy.Snapshot, c *policy.Compiled, fronts map[policy.Frontend]policy.Target,
	pod policy.PodKey, dir policy.Direction, tu packet.Tuple,
) string {
	want, got := policy.EvaluateTranslated(s, pod, dir, tu), policy.Lookup(c, pod, dir, tu)
	if got != want {
		return fmt.Sprintf("%s of %s, %s: Lookup got %s, EvaluateTranslated wants %s", dir, pod, tu, got, want)
	}
	want, got = policy.Evaluate(s, pod, dir, tu), policy.LookupService(c, fronts, pod, dir, tu)
	if got != want {
		return fmt.Sprintf("%s of %s, %s: LookupService got %s, Evaluate wants %s", dir, pod, tu, got, want)
	}
	return ""
}

func TestLookupEqualsEvaluate(t *testing.T) {
	base := baseSeed(t)
	verdicts := map[string]int{}
	for i := range uint64(700) {
		seed := base*1_000_003 + i
		s := policytest.RandomSnapshot(newRand(seed), 1+int(i%12))
		if diff := difference(s, seed, 50); diff != "" {
			small := policytest.Shrink(s, func(s *policy.Snapshot) bool { return difference(s, seed, 50) != "" })
			text, _ := json.MarshalIndent(small, "", " ")
			t.Fatalf("seed %d: %s\nsmallest: %s\n%s", seed, diff, difference(small, seed, 50), text)
		}
		for _, pod := range policytest.Endpoints(s)[:1] {
			for _, tu := range policytest.Tuples(newRand(seed), s, pod, policy.Egress, 20) {
				d := policy.Evaluate(s, pod, policy.Egress, tu)
				verdicts[d.Verdict.String()+strconv.Itoa(min(d.Rule.Index, 0))]++
			}
		}
	}
	t.Logf("what was decided, by verdict and index: %v", verdicts)
}

// FuzzCompile lets the fuzzer choose the seed: the compiled form must decide as
// Evaluate does, and so must the incremental one after changes.
func FuzzCompile(f *testing.F) {
	f.Add(uint64(1), uint8(3))
	f.Add(uint64(7777), uint8(12))
	f.Fuzz(func(t *testing.T, seed uint64, size uint8) {
		s := policytest.RandomSnapshot(newRand(seed), 1+int(size)%16)
		if diff := difference(s, seed, 16); diff != "" {
			t.Fatal(diff)
		}
		runSequence(t, seed, 1+int(size)%6)
	})
}
