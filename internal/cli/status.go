package cli

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/postern-dev/postern/internal/control"
)

func (a *app) statusCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "status", Short: "Is everything enforced, and if not, what to do", GroupID: "agent", Args: cobra.NoArgs,
		Long: `Is everything enforced, and if not, what to do.

The last line is the verdict. The exit code is 0 if there are no errors; warnings
alone don't change it.`,
	}
	a.agentFlags(cmd)
	asJSON := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		js, err := asJSON()
		if err != nil {
			return err
		}
		var s control.Status
		err = a.ask(cmd.Context(), func(ctx context.Context, c *control.Client) error {
			s, err = c.Status(ctx)
			return err
		})
		if err != nil {
			return err
		}
		s.Problems = append(s.Problems, losses(s)...)
		if js {
			if err := a.printJSON(s); err != nil {
				return err
			}
		} else {
			a.printStatus(s)
		}
		if countErrors(s.Problems) > 0 {
			return errProblem
		}
		return nil
	}
	return cmd
}

// losses turns counters that should be zero into problems.
func losses(s control.Status) []control.Problem {
	var out []control.Problem
	if s.FlowsRefused > 0 {
		out = append(out, control.Problem{
			Severity: "warning", Object: "flow table",
			Message: fmt.Sprintf("%d new flows were denied because a pod's quota of flows was used up: `postern flows --rule table-full` names the pods; posternd agent --flow-quota raises the quota", s.FlowsRefused),
		})
	}
	if s.EventsLost > 0 {
		out = append(out, control.Problem{
			Severity: "warning", Object: "flow records",
			Message: fmt.Sprintf("%d events were lost, so some flows have no record; enforcement and the counters of `postern endpoints` are exact nevertheless", s.EventsLost),
		})
	}
	return out
}

func countErrors(ps []control.Problem) int {
	n := 0
	for _, p := range ps {
		if p.Severity == "error" {
			n++
		}
	}
	return n
}

func (a *app) printStatus(s control.Status) {
	a.printf("Node %s, posternd %s, up %s, revision %d\n", s.Node, s.Version, durationText(s.Now.Sub(s.Started)), s.Revision)
	all := 0
	for _, n := range s.Endpoints {
		all += n
	}
	a.printf("Endpoints   %s\n", counts(s.Endpoints))
	a.printf("Policies    %s\n", counts(s.Policies))
	a.printf("Kernel      %d prefixes, %d rulesets, %d services\n", s.Kernel["prefixes"], s.Kernel["rulesets"], s.Kernel["services"])
	a.printf("Flows       %d records kept, %d events lost\n", s.Records, s.EventsLost)
	a.printProblems(s.Problems)
	a.outf("\n")
	a.say(verdict(s, all))
}

// verdict is the last line of status.
func verdict(s control.Status, all int) (style, string) {
	errs, warnings := countErrors(s.Problems), len(s.Problems)-countErrors(s.Problems)
	open := all - s.Endpoints["enforced"]
	switch {
	case open > 0 && errs > 0:
		return red, fmt.Sprintf("NOT OK: %d of %s not enforced; correct the %s above.", open, plural(all, "endpoint"), plural(errs, "error"))
	case errs > 0:
		return red, fmt.Sprintf("NOT OK: %s to correct, what was not understood is denied; apart from that, %s enforced.", plural(errs, "error"), allAre(all))
	case all == 0:
		return yellow, "NOTHING TO ENFORCE: no pod of this node is known. Pods come from the manifests; check that their nodeName is " + s.Node + "."
	case open > 0:
		return yellow, fmt.Sprintf("OK, WITH A GAP: %d of %s can't be enforced; see the warnings above.", open, plural(all, "endpoint"))
	case len(s.Policies) == 0:
		return yellow, fmt.Sprintf("NO POLICY: %s armed, and every pod may reach everything until there is a policy.", allAre(all))
	case warnings > 0:
		return yellow, fmt.Sprintf("OK, WITH %s: %s enforced.", strings.ToUpper(plural(warnings, "warning")), allAre(all))
	}
	return green, fmt.Sprintf("OK: %s enforced.", allAre(all))
}

// allAre returns "1 endpoint is" or "all n endpoints are".
func allAre(n int) string {
	if n == 1 {
		return "1 endpoint is"
	}
	return "all " + plural(n, "endpoint") + " are"
}

// counts prints numbers by name, the largest first.
func counts(m map[string]int) string {
	keys := slices.SortedFunc(maps.Keys(m), func(a, b string) int {
		if m[a] != m[b] {
			return m[b] - m[a]
		}
		return strings.Compare(a, b)
	})
	var parts []string
	for _, k := range keys {
		if m[k] > 0 {
			parts = append(parts, strconv.Itoa(m[k])+" "+k)
		}
	}
	if len(parts) == 0 {
		return "none"
	}
	return strings.Join(parts, ", ")
}

// printProblems prints one paragraph each: what it is about, then the sentence.
func (a *app) printProblems(ps []control.Problem) {
	for _, p := range ps {
		st := yellow
		if p.Severity == "error" {
			st = red
		}
		a.outf("\n%s %s\n    %s\n", paint(a.colour, st, clean(strings.ToUpper(p.Severity))), clean(p.About()), clean(p.Message))
	}
}
