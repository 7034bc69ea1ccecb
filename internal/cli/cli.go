package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/postern-dev/postern/internal/control"
	"github.com/postern-dev/postern/internal/lab"
)

// Exit codes.
const (
	ExitOK          = 0
	ExitProblem     = 1   // the answer is no: denied, not enforced, errors found, a claim that is not true
	ExitUsage       = 2   // wrong arguments; nothing was done
	ExitNoAgent     = 3   // no agent answers at the socket
	ExitFailed      = 4   // it could not be found out or done
	ExitInterrupted = 130 // ended by Ctrl-C or SIGTERM; as shells count it
)

const exitCodes = `Exit codes:
  0    all is well: allowed, enforced, valid
  1    the answer is no: denied, not enforced, errors found, a claim of the demo not true
  2    wrong arguments; nothing was done
  3    no agent answers at the socket
  4    it could not be found out or done; the message says why
  130  interrupted
  lab exec ends with the code of its command.`

// IO is what the program sees of the world around it.
type IO struct {
	In       io.Reader
	Out, Err io.Writer
	// OutTTY and ErrTTY say that Out and Err are terminals.
	OutTTY, ErrTTY bool
	// Width is how many columns Out has, if it is a terminal; 0 if that is not known.
	Width  int
	Getenv func(string) string
	// Now is the clock; times are shown in its location.
	Now func() time.Time
	// Executable is the path of this program, Name what it was called as.
	Executable, Name string
	Version          string
}

// app is one run of the program.
type app struct {
	IO
	colour bool
	socket string // --socket
	lab    string // --lab
	ran    bool   // a command began: later errors are not about its arguments
	// patience is how long something takes before a progress line appears.
	patience time.Duration
}

// exitError is an error with an exit code of its own. Without err there is
// nothing to print: the output has said it.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// usagef returns an error about the arguments.
func usagef(format string, args ...any) error {
	return &exitError{ExitUsage, fmt.Errorf(format, args...)}
}

// errProblem ends a command whose output says what is wrong.
var errProblem = &exitError{code: ExitProblem}

// Main runs the program and returns its exit code.
func Main(ctx context.Context, args []string, std IO) int {
	a := newApp(std)
	cmd := a.command()
	cmd.SetArgs(args)
	cmd, err := cmd.ExecuteContextC(ctx)
	code := a.exitCode(ctx, err)
	var ee *exitError
	if err != nil && (!errors.As(err, &ee) || ee.err != nil) && code != ExitInterrupted {
		a.errf("%s: %s\n", a.name(), cleanLines(err.Error()))
		if !a.ran {
			a.errf("Run '%s --help' for usage.\n", cmd.CommandPath())
		}
	}
	return code
}

func newApp(std IO) *app {
	return &app{IO: std, patience: progressAfter, colour: std.OutTTY && std.Getenv("NO_COLOR") == "" && std.Getenv("TERM") != "dumb"}
}

func (a *app) exitCode(ctx context.Context, err error) int {
	var ee *exitError
	switch {
	case err == nil:
		return ExitOK
	case errors.As(err, &ee):
		return ee.code
	case errors.Is(err, control.ErrRequest):
		return ExitUsage
	case ctx.Err() != nil:
		return ExitInterrupted
	case !a.ran:
		return ExitUsage
	case errors.Is(err, control.ErrNoAgent):
		return ExitNoAgent
	}
	return ExitFailed
}

// name is what the user calls the program.
func (a *app) name() string {
	base := strings.TrimSuffix(filepath.Base(a.Name), ".exe")
	if base == "kubectl-postern" || base == "kubectl_postern" {
		return "kubectl postern"
	}
	return "postern"
}

func (a *app) command() *cobra.Command {
	root := &cobra.Command{
		Use: "postern", Short: "See and check what may leave a pod",
		Long: `postern shows what Postern enforces on this node, explains why a flow is allowed or
denied, checks policies before they are used, and runs a lab to try all of it.

It talks to the agent (posternd) of this node over a unix socket, as root: --socket
or POSTERN_SOCKET names another one, --lab one in a lab. 'explain --manifests',
'policy validate' and the lab need no agent.

` + exitCodes,
		Example: `  postern status
  postern flows --verdict dropped --since 10m
  postern explain shop/frontend 203.0.113.66 --port 443
  postern policy validate ./policies`,
		SilenceErrors: true, SilenceUsage: true, Version: a.Version,
		Annotations:      map[string]string{cobra.CommandDisplayNameAnnotation: a.name()},
		PersistentPreRun: func(*cobra.Command, []string) { a.ran = true },
	}
	root.SetOut(a.Out)
	root.SetErr(a.Err)
	root.SetIn(a.In)
	root.SetVersionTemplate("postern {{.Version}}\n")
	root.AddGroup(
		&cobra.Group{ID: "agent", Title: "What this node enforces:"},
		&cobra.Group{ID: "policy", Title: "Policies:"},
		&cobra.Group{ID: "lab", Title: "Try it (Linux, root):"},
	)
	root.AddCommand(
		a.statusCommand(), a.endpointsCommand(), a.flowsCommand(),
		a.explainCommand(), a.policyCommand(), a.policiesCommand(),
		a.labCommand(), a.demoCommand(), a.versionCommand(),
	)
	return root
}

// agentFlags gives a command that talks to an agent its flags.
func (a *app) agentFlags(cmd *cobra.Command) {
	socket := control.DefaultSocket
	if s := a.Getenv("POSTERN_SOCKET"); s != "" {
		socket = s
	}
	cmd.Flags().StringVar(&a.socket, "socket", socket, "control socket of the agent; POSTERN_SOCKET changes the default")
	cmd.Flags().StringVar(&a.lab, "lab", "", "ask the agent in a lab instead: NAME, or NAME/NODE")
}

// client returns a client of the agent that the flags name.
func (a *app) client() (*control.Client, error) {
	if a.lab == "" {
		return control.NewClient(a.socket), nil
	}
	name, node, _ := strings.Cut(a.lab, "/")
	var nodes []string
	for _, s := range labSockets() {
		if s.lab == name && (node == "" || s.node == node) {
			nodes, a.socket = append(nodes, name+"/"+s.node), s.path
		}
	}
	switch len(nodes) {
	case 0:
		return nil, a.noLabAgent(name)
	case 1:
		return control.NewClient(a.socket), nil
	}
	return nil, usagef("lab %s has several agents: --lab %s", name, strings.Join(nodes, " or "))
}

// noLabAgent says why no agent of a lab was found.
func (a *app) noLabAgent(name string) error {
	names, err := lab.List()
	switch {
	case errors.Is(err, fs.ErrPermission):
		return a.privileged(err)
	case err == nil && !slices.Contains(names, name):
		return &exitError{ExitNoAgent, fmt.Errorf("%w: there is no lab %q%s; 'lab up %s --agent' starts it", control.ErrNoAgent, name, others(names), name)}
	}
	return &exitError{ExitNoAgent, fmt.Errorf("%w in lab %s: 'lab status %s' has its nodes, 'lab agent %s' starts posternd on them", control.ErrNoAgent, a.lab, name, name)}
}

// outputFlag adds -o and returns a function that tells whether it is json.
func outputFlag(cmd *cobra.Command) func() (bool, error) {
	var o string
	cmd.Flags().StringVarP(&o, "output", "o", "table", "table or json")
	return func() (bool, error) {
		switch o {
		case "table":
			return false, nil
		case "json":
			return true, nil
		}
		return false, usagef("--output %q: want table or json", o)
	}
}

// ask calls f with a client of the agent, with a progress line, and adds to
// errors what helps.
func (a *app) ask(ctx context.Context, f func(context.Context, *control.Client) error) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	done := a.progress("waiting for the agent at " + a.socket)
	defer done()
	return a.hint(f(ctx, c))
}

// hint adds to an error where else an agent listens.
func (a *app) hint(err error) error {
	if !errors.Is(err, control.ErrNoAgent) {
		return err
	}
	if a.lab != "" {
		name, _, _ := strings.Cut(a.lab, "/")
		return fmt.Errorf("%w\nthe agent in lab %s has ended, and what it enforced stays in force; its log is %s.log\n'lab agent %s' starts it again", err, a.lab, filepath.Dir(a.socket), name)
	}
	for _, s := range labSockets() {
		if s.answers() {
			return fmt.Errorf("%w\nthere is one in a lab: --lab %s", err, s.lab)
		}
	}
	return fmt.Errorf("%w\n--socket names another place; 'lab up --agent' starts a lab to try things in", err)
}

// privileged adds to an error of something that only root may do how to do it.
func (a *app) privileged(err error) error {
	if errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0 {
		return fmt.Errorf("%w\nthis needs root: run it with sudo", err)
	}
	return err
}
