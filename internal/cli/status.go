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
	"github.com/postern-dev/postern/internal/kube"
)

func (a *app) statusCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "status", Short: "Is everything enforced, and if not, what to do", GroupID: "agent", Args: cobra.NoArgs,
		Long: `Is everything enforced, and if not, what to do.

The last line is the verdict; if all pods are cut off, the first line says so too. Pods
are cut off, everything from and to them is dropped, while a file of the manifests can't
be read that never could be (AllPodsCutOff), and while no Pod names their interface
(quarantined).

The exit code is 0 if there are no errors; warnings alone don't change it.`,
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
	if line := outage(s); line != "" {
		a.say(red, line)
		a.outf("\n")
	}
	a.printf("Node %s, posternd %s, up %s, revision %d\n", s.Node, s.Version, durationText(s.Now.Sub(s.Started)), s.Revision)
	all := 0
	for _, n := range s.Endpoints {
		all += n
	}
	a.printf("Endpoints   %s\n", counts(s.Endpoints))
	a.printf("Policies    %s\n", counts(s.Policies))
	a.printf("Kernel      %d prefixes, %d rulesets, %d addresses and ports of services\n", s.Kernel["prefixes"], s.Kernel["rulesets"], s.Kernel["services"])
	a.printf("Flows       %d records kept, %d events lost\n", s.Records, s.EventsLost)
	a.printProblems(s.Problems)
	a.outf("\n")
	a.say(verdict(s, all))
}

// outage says that all pods are cut off and why, or nothing.
func outage(s control.Status) string {
	if files := cutOff(s.Problems); len(files) > 0 {
		return fmt.Sprintf("ALL PODS ARE CUT OFF because of %s: what it would deny is not known.", strings.Join(files, ", "))
	}
	if n := s.Endpoints["quarantined"]; n > 0 && s.Endpoints["enforced"]+s.Endpoints["failed"] == 0 {
		return fmt.Sprintf("ALL PODS ARE CUT OFF: the manifests have no Pod of this node any more for what is in force on %s.", plural(n, "interface"))
	}
	return ""
}

// cutOff returns the files because of which all pods are cut off.
func cutOff(ps []control.Problem) []string {
	var files []string
	for _, p := range ps {
		if p.Reason == string(kube.ReasonCutOff) {
			files = append(files, p.File)
		}
	}
	return files
}

// meanwhile says what is in force in the place of what has errors.
func meanwhile(ps []control.Problem) string {
	kept := map[string]bool{}
	for _, p := range ps {
		if p.Reason == string(kube.ReasonLastVersion) {
			kept[p.File] = true
		}
	}
	closed, stays := false, len(kept) > 0
	for _, p := range ps {
		switch {
		case p.Severity != kube.Error.String() || kept[p.File]:
		case p.Reason == string(kube.ReasonUnreadable):
			stays = true
		case p.Reason != "":
			closed = true
		}
	}
	switch {
	case closed && stays:
		return ", until then each file's last good version is in force, and of other files what was not understood is denied"
	case closed:
		return ", what was not understood is denied"
	case stays:
		return ", until then what could be read last is in force"
	}
	return ""
}

// verdict is the last line of status.
func verdict(s control.Status, all int) (style, string) {
	errs, warnings := countErrors(s.Problems), len(s.Problems)-countErrors(s.Problems)
	dropped := s.Endpoints["quarantined"]
	open := all - s.Endpoints["enforced"] - dropped
	var lacks []string
	if dropped > 0 {
		lacks = append(lacks, fmt.Sprintf("%d of %s cut off (quarantined)", dropped, plural(all, "endpoint")))
	}
	if open > 0 {
		lacks = append(lacks, fmt.Sprintf("%d of %s not enforced", open, plural(all, "endpoint")))
	}
	switch files := cutOff(s.Problems); {
	case len(files) > 0:
		return red, fmt.Sprintf("NOT OK: all pods are cut off until %s can be read: correct it or take it out of the directory; %s in all.", strings.Join(files, ", "), plural(errs, "error"))
	case len(lacks) > 0 && errs > 0:
		return red, fmt.Sprintf("NOT OK: %s; correct the %s above.", strings.Join(lacks, ", "), plural(errs, "error"))
	case errs > 0:
		return red, fmt.Sprintf("NOT OK: %s to correct%s; apart from that, %s enforced.", plural(errs, "error"), meanwhile(s.Problems), allAre(all))
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
		a.outf("\n%s %s\n", paint(a.colour, st, clean(strings.ToUpper(p.Severity))), clean(p.About()))
		for line := range strings.SplitSeq(p.Message, "\n") {
			a.outf("    %s\n", clean(line))
		}
	}
}
