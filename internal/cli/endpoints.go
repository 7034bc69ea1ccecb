package cli

import (
	"context"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/postern-dev/postern/internal/control"
	"github.com/postern-dev/postern/internal/flow"
	"github.com/postern-dev/postern/internal/policy"
)

func (a *app) endpointsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "endpoints [NAMESPACE/POD]", Aliases: []string{"endpoint", "ep"}, GroupID: "agent", Args: cobra.MaximumNArgs(1),
		Short: "The pods of this node: enforced or not, and what was dropped",
		Long: `The pods of this node: enforced or not, and what was dropped.

EGRESS and INGRESS are isolated if everything is denied that no rule accepts; governed
if policies have a say, and what none of them denies is accepted, such as traffic from
outside of the cluster under a ClusterNetworkPolicy that denies pods; open without a
policy, or where nothing is enforced.

An interface that is in force and that no Pod names any more is quarantined: everything
on it is dropped. It stands under the name of its last pod.

DROPPED and FORWARDED are exact counts of packets that a rule decided itself: drops,
and first packets of flows. With a pod, the rules and reasons that dropped something
are listed with their counts.

The exit code is 1 if an endpoint that is shown is failed or quarantined.`,
		Example: "  postern endpoints\n  postern endpoints shop/frontend",
	}
	a.agentFlags(cmd)
	asJSON := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		js, err := asJSON()
		if err != nil {
			return err
		}
		var list []control.Endpoint
		err = a.ask(cmd.Context(), func(ctx context.Context, c *control.Client) error {
			list, err = c.Endpoints(ctx)
			return err
		})
		if err != nil {
			return err
		}
		if len(args) == 1 {
			if list = onlyEndpoint(list, args[0]); len(list) == 0 {
				return usagef("no pod %q on this node; `postern endpoints` lists them", args[0])
			}
		}
		if js {
			err = a.printJSON(list)
		} else {
			err = a.printEndpoints(list, len(args) == 1)
		}
		if err != nil {
			return err
		}
		for _, e := range list {
			if e.State == "failed" || e.State == "quarantined" {
				return errProblem
			}
		}
		return nil
	}
	return cmd
}

// onlyEndpoint keeps the endpoints of a name, with or without a namespace.
func onlyEndpoint(list []control.Endpoint, name string) []control.Endpoint {
	out := []control.Endpoint{}
	for _, e := range list {
		if e.Namespace+"/"+e.Name == name || e.Name == name {
			out = append(out, e)
		}
	}
	return out
}

func (a *app) printEndpoints(list []control.Endpoint, rules bool) error {
	if len(list) == 0 {
		a.errf("no pods on this node\n")
		return nil
	}
	t := a.newTable("POD", "STATE", "EGRESS", "INGRESS", "DROPPED", "FORWARDED", "INTERFACE", "ADDRESSES")
	const forwardedColumn, interfaceColumn = 5, 6
	a.fit(t,
		layout{hide: []int{interfaceColumn}},
		layout{below: true},
		layout{below: true, hide: []int{interfaceColumn}},
		layout{below: true, hide: []int{interfaceColumn, forwardedColumn}},
	)
	for _, e := range list {
		var addrs []string
		for _, ip := range e.Addrs {
			addrs = append(addrs, ip.String())
		}
		t.add(text(podText(e)), cell{text: e.State, style: stateStyle(e.State)}, isolation(e.Egress), isolation(e.Ingress),
			number(strconv.FormatUint(e.Dropped, 10)), number(strconv.FormatUint(e.Forwarded, 10)),
			text(e.Interface), text(strings.Join(addrs, " ")))
	}
	if err := t.flush(); err != nil {
		return err
	}
	for _, e := range list {
		if e.Message != "" {
			a.printf("\n%s:\n", podText(e))
			for line := range strings.SplitSeq(e.Message, "\n") {
				a.printf("    %s\n", line)
			}
		}
		if rules {
			if err := a.printRules(e); err != nil {
				return err
			}
		}
	}
	return nil
}

// podText names an endpoint.
func podText(e control.Endpoint) string {
	if e.Name == "" {
		return "(no pod)"
	}
	return e.Namespace + "/" + e.Name
}

func (a *app) printRules(e control.Endpoint) error {
	if len(e.Rules) == 0 {
		switch e.State {
		case "failed", "not-covered":
			a.printf("\n%s is not enforced, and nothing was dropped\n", podText(e))
		default:
			a.printf("\n%s: nothing dropped yet\n", podText(e))
		}
		return nil
	}
	a.outf("\n")
	t := a.newTable("DROPPED", "BYTES", "RULE")
	a.fit(t, layout{brief: true}, layout{below: true})
	for _, r := range e.Rules {
		t.add(number(strconv.FormatUint(r.Packets, 10)), number(bytesText(r.Bytes)), ruleCell(r.Rule))
	}
	return t.flush()
}

// ruleCell is ruleText, briefly the rule alone, or the name of the reason.
func ruleCell(r flow.Rule) cell {
	c := cell{text: ruleText(r), brief: r.Text}
	if r.Reason != "" {
		c.brief = "[" + r.Reason + "]"
	}
	return c
}

// ruleText is a rule, with a word on those that no author wrote, or the datapath's
// reason with its name.
func ruleText(r flow.Rule) string {
	switch {
	case r.Reason != "":
		return r.Text + " [" + r.Reason + "]"
	case r.Index == policy.IndexNoMatch:
		return r.Text + " (no rule says no: Kubernetes' default)"
	case r.Index == policy.IndexIsolation:
		return r.Text + " (no rule of the pod's policies allows it)"
	case r.Index == policy.IndexTierDefault:
		return r.Text + " (no rule of the tier allows it)"
	case r.Index == policy.IndexNode:
		return r.Text + " (from the pod's own node)"
	case r.Index == policy.IndexProtected:
		return r.Text + " (an address that has to be named)"
	case r.Index == policy.IndexCapacity:
		return r.Text + " (the pod's rules do not fit)"
	}
	return r.Text
}

func stateStyle(s string) style {
	switch s {
	case "enforced":
		return green
	case "not-covered":
		return yellow
	}
	return red
}

func isolation(s string) cell {
	if s != string(policy.Isolated) {
		return cell{text: s, style: yellow}
	}
	return text(s)
}
