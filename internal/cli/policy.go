package cli

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/postern-dev/postern/internal/control"
	"github.com/postern-dev/postern/internal/kube"
	"github.com/postern-dev/postern/internal/policy"
)

func (a *app) policyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "policy", Short: "Check policies before they are used", GroupID: "policy", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.validateCommand())
	return cmd
}

// validation is the JSON answer of policy validate.
type validation struct {
	Files    int       `json:"files"`
	Objects  int       `json:"objects"`
	Errors   int       `json:"errors"`
	Warnings int       `json:"warnings"`
	Findings []finding `json:"findings"`
}

// finding is a kube.Finding with File from where the user is.
type finding struct {
	File     string `json:"file,omitempty"`
	Line     int    `json:"line,omitempty"`
	Severity string `json:"severity"`
	Object   string `json:"object,omitempty"`
	Path     string `json:"path,omitempty"`
	Reason   string `json:"reason"`
	Message  string `json:"message"`
}

func (a *app) validateCommand() *cobra.Command {
	var strict bool
	cmd := &cobra.Command{
		Use: "validate DIR", Short: "Find every mistake in a directory of manifests", Args: cobra.ExactArgs(1),
		Long: `Find every mistake in a directory of manifests, all at once: file and line, the field,
what is wrong and what to do. It reads what 'posternd agent --manifests' would.

An error means that something was not understood and is closed: what an allowing rule
would allow stays denied, a denying one denies more. A warning means that a policy is
enforced as written but probably not as meant.

A directory without a manifest is a warning: the path may be wrong.

The exit code is 0 without errors, 1 with errors, 2 if DIR can't be read. --strict
counts warnings as errors.`,
		Example: "  postern policy validate ./policies\n  postern policy validate --strict -o json ./policies | jq .errors",
	}
	asJSON := outputFlag(cmd)
	cmd.Flags().BoolVar(&strict, "strict", false, "warnings fail, too")
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		js, err := asJSON()
		if err != nil {
			return err
		}
		store, err := a.load(args[0])
		if err != nil {
			return err
		}
		v := validation{Files: store.Files(), Objects: store.Objects(), Findings: []finding{}}
		for _, f := range store.Findings() {
			if f.File != "" {
				f.File = filepath.Join(args[0], filepath.FromSlash(f.File))
			}
			if f.Severity == kube.Error {
				v.Errors++
			} else {
				v.Warnings++
			}
			v.Findings = append(v.Findings, finding{f.File, f.Line, f.Severity.String(), f.Object.String(), f.Path, string(f.Reason), f.Message})
		}
		if v.Files == 0 {
			v.Warnings++
			v.Findings = append(v.Findings, finding{
				File: args[0], Severity: kube.Warning.String(), Reason: reasonNoManifests,
				Message: "there is no .yaml, .yml or .json file here: is this the right directory?",
			})
		}
		if js {
			err = a.printJSON(v)
		} else {
			a.printFindings(v, strict)
		}
		if err == nil && (v.Errors > 0 || (strict && v.Warnings > 0)) {
			err = errProblem
		}
		return err
	}
	return cmd
}

// reasonNoManifests is beside kube's: what a directory as a whole lacks.
const reasonNoManifests = "NoManifests"

// printFindings prints a finding in two lines: where, so that editors can jump
// there, and what; in one if it is about a file as a whole.
func (a *app) printFindings(v validation, strict bool) {
	for _, f := range v.Findings {
		st := yellow
		if f.Severity == kube.Error.String() {
			st = red
		}
		where := f.File
		if f.Line > 0 {
			where += ":" + strconv.Itoa(f.Line)
		}
		if where != "" {
			where += ": "
		}
		about := f.Object
		if f.Path != "" {
			about += " " + f.Path
		}
		if about == "" { // the file as a whole
			a.outf("%s%s %s (%s)\n", clean(where), paint(a.colour, st, f.Severity+":"), clean(f.Message), clean(f.Reason))
			continue
		}
		a.outf("%s%s %s\n    %s (%s)\n", clean(where), paint(a.colour, st, f.Severity+":"), clean(about), clean(f.Message), clean(f.Reason))
	}
	what := plural(v.Objects, "object") + " in " + plural(v.Files, "file")
	switch {
	case v.Errors > 0:
		a.say(red, fmt.Sprintf("NOT OK: %s, %s; %s.", plural(v.Errors, "error"), plural(v.Warnings, "warning"), what))
	case v.Warnings > 0 && strict:
		a.say(red, fmt.Sprintf("NOT OK: %s, and --strict; %s.", plural(v.Warnings, "warning"), what))
	case v.Warnings > 0:
		a.say(yellow, fmt.Sprintf("OK, WITH %s: %s.", strings.ToUpper(plural(v.Warnings, "warning")), what))
	default:
		a.say(green, "OK: "+what+".")
	}
}

func (a *app) policiesCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "policies", Short: "The policies that the agent knows, and what is wrong with them", GroupID: "policy", Args: cobra.NoArgs,
		Long: `The policies that the agent knows, and what is wrong with them.

ENDPOINTS counts the pods of this node that the policy governs. What the agent could not
understand as a whole, such as a file that is no YAML, stands in the tier (invalid), which
comes first and denies whatever it may have been meant to deny; a priority that is invalid
comes first in its tier.

The exit code is 1 if a policy has errors.`,
	}
	a.agentFlags(cmd)
	asJSON := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		js, err := asJSON()
		if err != nil {
			return err
		}
		var list []control.Policy
		err = a.ask(cmd.Context(), func(ctx context.Context, c *control.Client) error {
			list, err = c.Policies(ctx)
			return err
		})
		if err != nil {
			return err
		}
		if js {
			err = a.printJSON(list)
		} else {
			err = a.printPolicies(list)
		}
		for _, p := range list {
			if err == nil && countErrors(p.Problems) > 0 {
				err = errProblem
			}
		}
		return err
	}
	return cmd
}

func (a *app) printPolicies(list []control.Policy) error {
	if len(list) == 0 {
		a.errf("no policies: every pod may reach everything\n")
		return nil
	}
	slices.SortStableFunc(list, func(a, b control.Policy) int {
		return cmp.Or(cmp.Compare(tierRank(a.Tier), tierRank(b.Tier)), cmp.Compare(a.Tier, b.Tier), cmp.Compare(rank(a.Priority), rank(b.Priority)))
	})
	t := a.newTable("TIER", "PRIORITY", "KIND", "NAME", "ENDPOINTS", "PROBLEMS")
	for _, p := range list {
		name, prio := p.Name, "-" // where they add up
		if p.Namespace != "" {
			name = p.Namespace + "/" + p.Name
		}
		switch {
		case p.Priority != nil:
			prio = strconv.Itoa(int(*p.Priority))
		case p.Tier != policy.TierNetworkPolicy && p.Tier != tierInvalid:
			prio = "invalid" // comes first
		}
		problems := cell{text: "-"}
		if errs := countErrors(p.Problems); errs > 0 {
			problems = cell{text: plural(errs, "error"), style: red}
		} else if len(p.Problems) > 0 {
			problems = cell{text: plural(len(p.Problems), "warning"), style: yellow}
		}
		t.add(text(p.Tier), number(prio), text(p.Kind), text(name), number(strconv.Itoa(p.Endpoints)), problems)
	}
	if err := t.flush(); err != nil {
		return err
	}
	for _, p := range list {
		a.printProblems(p.Problems)
	}
	return nil
}

// rank puts an invalid priority first, as the agent does.
func rank(priority *int32) int32 {
	if priority == nil {
		return math.MinInt32
	}
	return *priority
}

// tierInvalid is the tier of what was not understood as a whole. It is the agent's
// name for it, and no object's.
const tierInvalid = "(invalid)"

// tierRank orders the built-in tiers as they are evaluated, a user's own among them.
func tierRank(tier string) int {
	switch tier {
	case tierInvalid:
		return -1
	case policy.TierAdmin:
		return 0
	case policy.TierNetworkPolicy:
		return 2
	case policy.TierBaseline:
		return 3
	}
	return 1
}
