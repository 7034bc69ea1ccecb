package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/postern-dev/postern/internal/control"
	"github.com/postern-dev/postern/internal/kube"
	"github.com/postern-dev/postern/internal/manifests"
	"github.com/postern-dev/postern/internal/policy"
)

func (a *app) explainCommand() *cobra.Command {
	var q control.ExplainRequest
	var dir string
	cmd := &cobra.Command{
		Use: "explain FROM TO", GroupID: "policy", Args: cobra.ExactArgs(2),
		Short: "Would this flow be allowed, and which rule says so",
		Long: `Would this flow be allowed, and which rule says so: the way through tiers, policies
and rules, for the sender's egress and the receiver's ingress. Behind the address of a
Service each of its ready backends is a receiver, on the backend's port.

FROM and TO are NAMESPACE/POD, NAMESPACE/SERVICE (TO only) or an address; where a pod
and a Service share a name, pod/NAMESPACE/NAME or service/NAMESPACE/NAME says which.
Without --manifests the agent of this node is asked; with it, the files of the
directory are, and no agent is needed.

The exit code is 0 if the flow is allowed and 1 if it is denied, or if it depends on
the backend that a Service chooses.`,
		Example: `  postern explain shop/frontend 203.0.113.66 --port 443
  postern explain shop/frontend kube-system/kube-dns --port 53 --protocol udp
  postern explain shop/frontend service/shop/cart --port 80
  postern explain shop/frontend payments/api --port 8080 --manifests ./cluster`,
	}
	a.agentFlags(cmd)
	asJSON := outputFlag(cmd)
	cmd.Flags().Var((*portValue)(&q.Port), "port", "destination port, of TCP, UDP and SCTP")
	cmd.Flags().StringVar(&q.Protocol, "protocol", "tcp", "tcp, udp, sctp, icmp, icmpv6 or a number")
	cmd.Flags().StringVar(&dir, "manifests", "", "directory of manifests to ask instead of the agent")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		js, err := asJSON()
		if err != nil {
			return err
		}
		for _, other := range []string{"lab", "socket"} {
			if dir != "" && cmd.Flags().Changed(other) {
				return usagef("--manifests and --%s: the one asks files, the other an agent; leave one out", other)
			}
		}
		q.From, q.To = args[0], args[1]
		var res control.ExplainResponse
		if dir != "" {
			res, err = a.explainOffline(dir, q)
		} else {
			err = a.ask(cmd.Context(), func(ctx context.Context, c *control.Client) error {
				res, err = c.Explain(ctx, q)
				return err
			})
		}
		if err != nil {
			return err
		}
		if js {
			err = a.printJSON(res)
		} else {
			a.printExplanation(res)
		}
		if err == nil && res.Verdict != policy.Forwarded.String() {
			err = errProblem
		}
		return err
	}
	return cmd
}

// portValue is a flag that is a port.
type portValue uint16

// Set is pflag.Value's.
func (p *portValue) Set(s string) error {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return errors.New("want a port from 1 to 65535")
	}
	*p = portValue(n)
	return nil
}

// Type is pflag.Value's.
func (*portValue) Type() string { return "port" }

// String is pflag.Value's.
func (p *portValue) String() string {
	if *p == 0 {
		return ""
	}
	return strconv.Itoa(int(*p))
}

func (a *app) explainOffline(dir string, q control.ExplainRequest) (control.ExplainResponse, error) {
	store, err := a.load(dir)
	if err != nil {
		return control.ExplainResponse{}, err
	}
	if kube.HasErrors(store.Findings()) {
		a.errf("%s: %s has errors, and what was not understood is denied; see 'policy validate %s'\n", a.name(), clean(dir), clean(dir))
	}
	res, err := control.Explain(store.Snapshot(), q)
	if err != nil {
		return res, &exitError{ExitUsage, err}
	}
	return res, nil
}

// load reads a directory of manifests.
func (a *app) load(dir string) (*manifests.Store, error) {
	if info, err := os.Stat(dir); err != nil {
		return nil, &exitError{ExitUsage, err}
	} else if !info.IsDir() {
		return nil, usagef("%s is a file: name the directory", dir)
	}
	done := a.progress("reading " + dir)
	defer done()
	store, err := manifests.Load(dir, manifests.Options{Kube: kube.Options{Protected: kube.DefaultProtected()}, Now: a.Now})
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", dir, err)
	}
	return store, nil
}

func (a *app) printExplanation(res control.ExplainResponse) {
	for line := range strings.Lines(res.Text) {
		line = clean(strings.TrimSuffix(line, "\n"))
		st := plain
		switch {
		case strings.HasPrefix(line, "Dropped by "):
			st = red
		case strings.HasPrefix(line, "Forwarded by "):
			st = green
		case strings.HasPrefix(line, "Deferred by "):
			st = yellow
		case strings.HasPrefix(strings.TrimLeft(line, " "), "> "):
			st = bold
		}
		a.outf("%s\n", paint(a.colour, st, line))
	}
	switch res.Verdict {
	case policy.Forwarded.String():
		a.say(green, "ALLOWED")
	case policy.Deferred.String():
		a.say(yellow, "DEPENDS on the backend that the Service chooses")
	default:
		a.say(red, "DENIED")
	}
}
