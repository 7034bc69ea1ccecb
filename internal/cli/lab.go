package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/postern-dev/postern/internal/lab"
)

// defaultLab is the name of the lab that is meant if none is named.
const defaultLab = "lab"

func (a *app) labCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "lab", Short: "A small world of network namespaces to try policies in", GroupID: "lab", Args: cobra.NoArgs,
		Long: `A small world of network namespaces to try policies in: nodes, pods, Services, and an
internet with web servers, a resolver and a metadata service, on this machine. Nothing
of it touches the machine's own network, and 'lab down' leaves nothing behind.

It needs Linux and root.`,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.labUpCommand(), a.labAgentCommand(), a.labDownCommand(), a.labStatusCommand(), a.labExecCommand(), a.labListCommand(), a.labServeCommand())
	return cmd
}

// labName is the optional first argument.
func labName(args []string) string {
	if len(args) == 0 {
		return defaultLab
	}
	return args[0]
}

// labErr says of an error from the lab what to do.
func (a *app) labErr(name string, err error) error {
	switch {
	case errors.Is(err, lab.ErrInUse):
		return fmt.Errorf("%w: 'postern lab down %s' removes it", err, name)
	case errors.Is(err, lab.ErrNotFound):
		return &exitError{ExitUsage, fmt.Errorf("%w; 'postern lab list' has the labs, 'postern lab status NAME' what is in one", err)}
	}
	return a.privileged(err)
}

func (a *app) labUpCommand() *cobra.Command {
	var nodes int
	var cni, daemon string
	var agent bool
	cmd := &cobra.Command{
		Use: "up [NAME]", Short: "Start a lab, which then runs in the background", Args: cobra.MaximumNArgs(1),
		Long: `Start a lab, which then runs in the background until 'lab down'. NAME is "lab" if left
out. With --agent posternd runs on every node, on a directory of manifests that you
write policies into.`,
		Example: "  sudo postern lab up --agent\n  sudo postern lab up big --nodes 3 --cni bridge",
	}
	cmd.Flags().IntVar(&nodes, "nodes", 1, "number of nodes; the pods are spread over them")
	cmd.Flags().StringVar(&cni, "cni", string(lab.PTP), "how pods are connected: ptp or bridge")
	cmd.Flags().BoolVar(&agent, "agent", false, "run posternd on every node")
	cmd.Flags().StringVar(&daemon, "posternd", "", "path of posternd (default: beside this program, or in PATH)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		name := labName(args)
		if err := lab.CheckName(name); err != nil {
			return &exitError{ExitUsage, err}
		}
		if nodes < 1 || nodes > 200 {
			return usagef("--nodes %d: want 1 to 200", nodes)
		}
		if cni != string(lab.PTP) && cni != string(lab.Bridge) {
			return usagef("--cni %q: want ptp or bridge", cni)
		}
		if agent {
			var err error
			if daemon, err = a.posternd(daemon); err != nil {
				return err
			}
		}
		done := a.progress("starting lab " + name)
		defer done()
		if err := a.labUp(cmd.Context(), name, nodes, lab.CNI(cni)); err != nil {
			return a.labErr(name, err)
		}
		var agents []labAgent
		if agent {
			var err error
			if agents, err = a.startAgents(cmd.Context(), name, daemon); err != nil {
				return errors.Join(a.labErr(name, err), lab.Cleanup(context.WithoutCancel(cmd.Context()), name))
			}
		}
		done()
		return a.printUp(name, agents)
	}
	return cmd
}

func (a *app) labUp(ctx context.Context, name string, nodes int, cni lab.CNI) error {
	spec := lab.DefaultSpec(name)
	spec.CNI, spec.NoServers, spec.Persistent = cni, true, true
	for i := range nodes {
		spec.Nodes = append(spec.Nodes, lab.NodeSpec{Name: "node" + strconv.Itoa(i+1)})
	}
	for i := range spec.Pods {
		spec.Pods[i].Node = spec.Nodes[i%nodes].Name
	}
	l, err := lab.Up(ctx, spec)
	if err != nil {
		return err
	}
	if err := l.Detach(ctx, a.Executable, "lab", "serve", name); err != nil {
		return errors.Join(err, lab.Cleanup(context.WithoutCancel(ctx), name))
	}
	return nil
}

// posternd finds the daemon's program.
func (a *app) posternd(path string) (string, error) {
	if path == "" {
		path = filepath.Join(filepath.Dir(a.Executable), "posternd")
		if _, err := os.Stat(path); err != nil {
			for _, dir := range filepath.SplitList(a.Getenv("PATH")) {
				if p := filepath.Join(dir, "posternd"); isFile(p) {
					return p, nil
				}
			}
		}
	}
	if !isFile(path) {
		return "", usagef("no posternd at %s: build it ('make build') or name it with --posternd", path)
	}
	return filepath.Abs(path)
}

func isFile(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
}

func (a *app) labAgentCommand() *cobra.Command {
	var daemon string
	cmd := &cobra.Command{
		Use: "agent [NAME]", Short: "Run posternd on every node of a lab where it does not run", Args: cobra.MaximumNArgs(1),
		Long: `Run posternd on every node of a lab where it does not run: where it was ended, or in a
lab that was started without --agent. It takes over what an earlier one enforced.`,
	}
	cmd.Flags().StringVar(&daemon, "posternd", "", "path of posternd (default: beside this program, or in PATH)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		name := labName(args)
		daemon, err := a.posternd(daemon)
		if err != nil {
			return err
		}
		done := a.progress("starting posternd in lab " + name)
		defer done()
		agents, err := a.startAgents(cmd.Context(), name, daemon)
		if err != nil {
			return a.labErr(name, err)
		}
		done()
		for _, ag := range agents {
			verb := "runs already"
			if ag.started {
				verb = "is started"
			}
			a.printf("posternd %s on %s, process %d: '%s status --lab %s' says what it enforces\n", verb, ag.Node, ag.PID, a.self(), name+"/"+ag.Node)
		}
		return nil
	}
	return cmd
}

// labAgent is an agent in a lab.
type labAgent struct {
	Node   string `json:"node"`
	Socket string `json:"socket"`
	// PID is 0 if it has ended.
	PID       int `json:"pid"`
	manifests string
	started   bool // just now
}

// self is how the user runs this program as root.
func (a *app) self() string {
	name := a.name()
	if strings.ContainsRune(a.Name, filepath.Separator) && name == "postern" {
		name = a.Name
	}
	if a.Getenv("SUDO_USER") != "" {
		name = "sudo " + name
	}
	return name
}

// printUp says how to go on.
func (a *app) printUp(name string, agents []labAgent) error {
	lab, self := "", a.self()
	if name != defaultLab {
		lab = " --lab " + name
	}
	a.printf("Lab %s is up.\n\n", name)
	if len(agents) == 0 {
		a.printf("  %s lab status %s\n", self, name)
		a.printf("  %s lab exec%s shop/frontend -- curl -sm 2 http://203.0.113.80/\n", self, lab)
		a.printf("  %s lab down %s\n", self, name)
		return nil
	}
	node := ""
	if len(agents) > 1 {
		node = "/" + agents[0].Node
	}
	a.printf("posternd runs on %s and enforces what is in\n  %s\n", plural(len(agents), "node"), agents[0].manifests)
	a.printf("\nThere is no policy yet, so this reaches a host that it should not:\n")
	a.printf("  %s lab exec%s shop/frontend -- curl -sm 2 http://203.0.113.66/\n", self, lab)
	a.printf("\nPut the baseline in force, try again, and see what was dropped and why:\n")
	a.printf("  sudo cp deploy/baseline/*.yaml %s/\n", agents[0].manifests)
	a.printf("  %s status --lab %s\n", self, name+node)
	a.printf("  %s flows --lab %s --verdict dropped\n", self, name+node)
	a.printf("\nThe end of it:\n  %s lab down %s\n", self, name)
	return nil
}

func (a *app) labDownCommand() *cobra.Command {
	return &cobra.Command{
		Use: "down [NAME]", Short: "Stop a lab and remove every trace of it", Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			name := labName(args)
			names, err := lab.List()
			if err != nil {
				return a.labErr(name, err)
			}
			found := false
			for _, n := range names {
				found = found || n == name
			}
			if !found {
				return usagef("there is no lab %q%s", name, others(names))
			}
			done := a.progress("removing lab " + name)
			defer done()
			if err := lab.Cleanup(cmd.Context(), name); err != nil {
				return a.labErr(name, err)
			}
			done()
			a.printf("Lab %s is gone.\n", name)
			return nil
		},
	}
}

func others(names []string) string {
	if len(names) == 0 {
		return ", nor any other"
	}
	return "; there is " + strings.Join(names, ", ")
}

func (a *app) labListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "The labs of this machine, one name a line", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			names, err := lab.List()
			if err != nil {
				return a.labErr("", err)
			}
			for _, n := range names {
				a.printf("%s\n", n)
			}
			if len(names) == 0 {
				a.errf("no labs; 'postern lab up' starts one\n")
			}
			return nil
		},
	}
}

func (a *app) labStatusCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "status [NAME]", Short: "What is in a lab: nodes, pods, Services and hosts with their addresses", Args: cobra.MaximumNArgs(1),
	}
	asJSON := outputFlag(cmd)
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		js, err := asJSON()
		if err != nil {
			return err
		}
		name := labName(args)
		l, err := lab.Open(name)
		if err != nil {
			return a.labErr(name, err)
		}
		s, err := l.Status()
		if err := errors.Join(err, l.Close()); err != nil {
			return a.labErr(name, err)
		}
		agents := labAgents(name)
		if js {
			return a.printJSON(struct {
				lab.Status
				Agents []labAgent `json:"agents"`
			}{s, agents})
		}
		return a.printLab(s, agents)
	}
	return cmd
}

// labAgents returns the agents of a lab, ended ones too.
func labAgents(name string) []labAgent {
	out := []labAgent{}
	for _, socket := range labSockets() {
		if socket.lab == name {
			pid, _ := listener(socket.path)
			out = append(out, labAgent{Node: socket.node, Socket: socket.path, PID: pid})
		}
	}
	return out
}

func (a *app) printLab(s lab.Status, agents []labAgent) error {
	servers := "no servers run: 'postern lab down' and up again"
	if s.ServerPID != 0 {
		servers = fmt.Sprintf("servers run as process %d", s.ServerPID)
	}
	a.printf("Lab %s, cni %s, %s\n\n", s.Name, string(s.CNI), servers)
	t := a.newTable("WHAT", "NAME", "NODE", "ADDRESSES", "PORTS")
	for _, n := range s.Nodes {
		t.add(text("node"), text(n.Name), text(""), text(addrsText(n.IPs)), text(""))
	}
	for _, p := range s.Pods {
		t.add(text("pod"), text(p.Namespace+"/"+p.Name), text(p.Node), text(addrsText(p.IPs)), text(serversText(p.Servers)))
	}
	for _, v := range s.Services {
		var ports []string
		for _, p := range v.Ports {
			ports = append(ports, strings.ToLower(p.Protocol)+"/"+strconv.Itoa(int(p.Port)))
		}
		t.add(text("service"), text(v.Namespace+"/"+v.Name), text(""), text(addrsText(v.ClusterIPs)), text(strings.Join(ports, " ")))
	}
	for _, h := range s.Hosts {
		t.add(text("host"), text(h.Name), text("internet"), text(addrsText(h.IPs)), text(serversText(h.Servers)))
	}
	if err := t.flush(); err != nil {
		return err
	}
	a.outf("\n")
	for _, ag := range agents {
		if ag.PID == 0 {
			a.printf("agent on %s: ENDED; what it enforced stays in force, and '%s lab agent %s' starts it again\n", ag.Node, a.self(), s.Name)
			continue
		}
		a.printf("agent on %s: --lab %s, socket %s, process %d\n", ag.Node, s.Name+"/"+ag.Node, ag.Socket, ag.PID)
	}
	if len(agents) == 0 {
		a.printf("no agent: '%s lab agent %s' starts posternd on every node\n", a.self(), s.Name)
	}
	return nil
}

func addrsText(addrs []netip.Addr) string {
	var out []string
	for _, ip := range addrs {
		out = append(out, ip.String())
	}
	return strings.Join(out, " ")
}

func serversText(servers []lab.Server) string {
	var out []string
	for _, s := range servers {
		out = append(out, string(s.Kind)+"/"+strconv.Itoa(int(s.Port)))
	}
	return strings.Join(out, " ")
}

func (a *app) labExecCommand() *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use: "exec TARGET -- COMMAND [ARG...]", Short: "Run a command in the network of a pod, a node or the outside", Args: cobra.MinimumNArgs(2),
		Long: `Run a command in the network of a pod (NAMESPACE/NAME), a node (its name) or the
internet ("outside"). The command is a program of this machine and sees its files.
The exit code is the command's.`,
		Example: "  postern lab exec shop/frontend -- curl -s http://203.0.113.80/\n  postern lab exec node1 -- nft list ruleset",
	}
	cmd.Flags().StringVar(&name, "lab", defaultLab, "name of the lab")
	cmd.Flags().SetInterspersed(false)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		target, args := args[0], args[1:]
		if args[0] == "--" { // flag parsing ended at TARGET already
			args = args[1:]
		}
		if len(args) == 0 {
			return usagef("no command: postern lab exec %s -- COMMAND", target)
		}
		l, err := lab.Open(name)
		if err != nil {
			return a.labErr(name, err)
		}
		err = errors.Join(l.Exec(cmd.Context(), target, lab.Streams{In: a.In, Out: a.Out, Err: a.Err}, args[0], args[1:]...), l.Close())
		var exit *exec.ExitError
		if errors.As(err, &exit) && exit.ExitCode() > 0 {
			return &exitError{code: exit.ExitCode()}
		}
		return a.labErr(name, err)
	}
	return cmd
}

// labServeCommand is what runs a lab in the background.
func (a *app) labServeCommand() *cobra.Command {
	return &cobra.Command{
		Use: "serve NAME", Hidden: true, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM)
			defer stop()
			return lab.Serve(ctx, args[0])
		},
	}
}

// labSocket is the control socket of an agent in a lab.
type labSocket struct{ lab, node, path string }

// answers reports whether somebody listens.
func (s labSocket) answers() bool {
	c, err := net.Dial("unix", s.path) //nolint:noctx // a unix socket connects at once or not at all
	if err != nil {
		return false
	}
	_ = c.Close()
	return true
}

// labSockets returns all of them, by lab and node.
func labSockets() []labSocket {
	found, err := filepath.Glob(filepath.Join(lab.Root, "*", "agent-*", "agent.sock"))
	if err != nil {
		return nil
	}
	out := make([]labSocket, 0, len(found))
	for _, path := range found {
		dir := filepath.Dir(path)
		out = append(out, labSocket{filepath.Base(filepath.Dir(dir)), strings.TrimPrefix(filepath.Base(dir), "agent-"), path})
	}
	return out
}
