package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/postern-dev/postern/internal/agent"
	"github.com/postern-dev/postern/internal/control"
	"github.com/postern-dev/postern/internal/datapath"
)

// Exit codes.
const (
	exitOK    = 0
	exitError = 1
	exitUsage = 2
)

// errUsage is wrapped by errors of the command line.
var errUsage = errors.New("wrong command line")

// Main runs posternd and returns its exit code.
func Main(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return run(ctx, args, os.Stdout, os.Stderr)
}

func run(ctx context.Context, args []string, out, errs io.Writer) int {
	cmd := command()
	cmd.SetArgs(args)
	cmd.SetOut(out)
	cmd.SetErr(errs)
	ran := false // a command began: other errors are of the command line
	cmd.PersistentPreRun = func(*cobra.Command, []string) { ran = true }
	cmd, err := cmd.ExecuteContextC(ctx)
	if err == nil {
		return exitOK
	}
	_, _ = fmt.Fprintln(errs, "posternd:", privileged(err, os.Geteuid()))
	if !ran || errors.Is(err, errUsage) {
		_, _ = fmt.Fprintf(errs, "Run '%s --help' for usage.\n", cmd.CommandPath())
		return exitUsage
	}
	return exitError
}

// privileged says before an error of something that only root may do what it takes.
func privileged(err error, euid int) error {
	if euid == 0 || errors.Is(err, errUsage) || !errors.Is(err, fs.ErrPermission) {
		return err
	}
	return fmt.Errorf("needs root: run it with sudo\n%w", err)
}

func command() *cobra.Command {
	root := &cobra.Command{
		Use: "posternd", Short: "Postern's node daemon", SilenceErrors: true, SilenceUsage: true,
		Version: version(), CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
	}
	root.SetVersionTemplate("posternd {{.Version}}\n")
	root.AddCommand(agentCommand(), uninstallCommand(), versionCommand())
	return root
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		Run: func(cmd *cobra.Command, _ []string) {
			_, _ = fmt.Fprintln(cmd.OutOrStdout(), "posternd", version())
		},
	}
}

func version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "devel"
}

// paths are flags that agent and uninstall share.
type paths struct {
	bpffs, state, socket string
	mark                 markValue
}

func (p *paths) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&p.bpffs, "bpffs", "/sys/fs/bpf", "mounted bpffs; what is pinned stands in its directory postern")
	f.StringVar(&p.state, "state-dir", "/var/lib/postern", "directory for names that must outlive a restart")
	f.StringVar(&p.socket, "socket", control.DefaultSocket, "control socket")
	p.mark = datapath.DefaultMark
	f.Var(&p.mark, "mark", "the one bit of the packet mark that says \"inspected\"; no other agent may use it")
}

func agentCommand() *cobra.Command {
	var p paths
	var manifests, node, metrics, level, options string
	quota := rangeValue{16384, 1, maxQuota}
	records := rangeValue{65536, minRecords, maxRecords}
	cmd := &cobra.Command{
		Use: "agent --manifests DIR", Short: "Enforce the policies of a directory on this node", Args: cobra.NoArgs,
		Long: `Enforce the policies of a directory on this node.

DIR holds YAML or JSON: Namespace, Node, Pod, Service, EndpointSlice, NetworkPolicy,
ClusterNetworkPolicy and Postern's own kinds. It is watched. A Pod names its interface
in the annotation postern.dev/interface, or its network namespace in postern.dev/netns.

When the agent ends, for whatever reason, enforcement goes on as it was; the next
agent takes over. 'posternd uninstall' ends enforcement.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if manifests == "" {
				return fmt.Errorf("%w: --manifests names the directory to enforce", errUsage)
			}
			if node == "" {
				host, err := os.Hostname()
				if err != nil {
					return fmt.Errorf("--node-name: %w", err)
				}
				node = strings.ToLower(host) // as kubelet does
			}
			if err := errors.Join(checkNodeName(node), checkMetrics(metrics)); err != nil {
				return err
			}
			var lv slog.Level
			if err := lv.UnmarshalText([]byte(level)); err != nil {
				return fmt.Errorf("%w: --log-level %q: want debug, info, warn or error", errUsage, level)
			}
			parse, err := parseOptions(options)
			if err != nil {
				return err
			}
			if err := checkCapabilities(); err != nil {
				return err
			}
			if _, err := os.ReadDir(manifests); err != nil {
				return fmt.Errorf("--manifests: %w", err)
			}
			if err := checkBPFFS(p.bpffs); err != nil {
				return err
			}
			return agent.Run(cmd.Context(), agent.Config{
				Node: node, Manifests: manifests, Socket: p.socket, StateDir: p.state, Metrics: metrics,
				Datapath:    datapath.Config{PinDir: filepath.Join(p.bpffs, "postern"), Mark: uint32(p.mark), FlowQuota: uint32(quota.n)},
				IPv4Options: parse, Version: version(), Records: records.n, Now: time.Now, //nolint:forbidigo // the program's clock starts here
				Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: lv})),
			})
		},
	}
	p.flags(cmd)
	f := cmd.Flags()
	f.StringVar(&manifests, "manifests", "", "directory of manifests to enforce (required)")
	f.StringVar(&node, "node-name", "", "this node's name; Pods with this or no nodeName are enforced here (default: the host's name)")
	f.StringVar(&metrics, "metrics", "", "TCP address that serves /metrics, such as 127.0.0.1:9464 (default: the control socket only)")
	f.StringVar(&level, "log-level", "info", "debug, info, warn or error")
	f.Var(&quota, "flow-quota", fmt.Sprintf("flows that one pod may have at a time, at most %d", maxQuota))
	f.StringVar(&options, "ipv4-options", optionsDrop, "what to do with packets that have IPv4 options: Drop them, or Parse them and judge them by policy; source routes are always dropped")
	f.Var(&records, "records", fmt.Sprintf("flow records kept in memory, %d to %d", minRecords, maxRecords))
	return cmd
}

// Limits of flags. The kernel takes 16 bytes for each flow of a quota before there
// is one, for every pod; a record takes some hundred bytes here.
const (
	maxQuota               = 1 << 20
	minRecords, maxRecords = 1024, 10_000_000
)

// Values of --ipv4-options.
const (
	optionsDrop  = "Drop"
	optionsParse = "Parse"
)

func parseOptions(s string) (parse bool, err error) {
	if s != optionsDrop && s != optionsParse {
		return false, fmt.Errorf("%w: --ipv4-options %q: want %s or %s", errUsage, s, optionsDrop, optionsParse)
	}
	return s == optionsParse, nil
}

func uninstallCommand() *cobra.Command {
	var p paths
	var keepState bool
	cmd := &cobra.Command{
		Use: "uninstall", Short: "End enforcement on this node and remove every trace of it", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkCapabilities(); err != nil {
				return err
			}
			switch _, err := control.NewClient(p.socket).Status(cmd.Context()); {
			case err == nil:
				return fmt.Errorf("an agent is running (%s); stop it first, or it would enforce again", p.socket)
			case errors.Is(err, fs.ErrPermission):
				return fmt.Errorf("uninstall: %w", err) // there may be one
			}
			if err := datapath.Uninstall(datapath.Config{PinDir: filepath.Join(p.bpffs, "postern"), Mark: uint32(p.mark)}); err != nil {
				return fmt.Errorf("uninstall: %w", err)
			}
			if err := agent.RemoveSocket(p.socket, p.state); err != nil {
				return fmt.Errorf("uninstall: %w", err)
			}
			if !keepState {
				if err := os.RemoveAll(p.state); err != nil {
					return fmt.Errorf("uninstall: %w", err)
				}
			}
			_, _ = fmt.Fprintln(cmd.OutOrStdout(), "Postern is removed from this node: no policy is enforced any more.")
			return nil
		},
	}
	p.flags(cmd)
	cmd.Flags().BoolVar(&keepState, "keep-state", false, "leave the state directory")
	return cmd
}

// checkBPFFS fails with the cure if dir is not a bpffs.
func checkBPFFS(dir string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("--bpffs %s: %w", dir, err)
	}
	if st.Type != unix.BPF_FS_MAGIC {
		return fmt.Errorf("--bpffs %s: not a bpffs; mount one: mount -t bpf bpf %s", dir, dir)
	}
	return nil
}
