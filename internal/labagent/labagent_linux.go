package labagent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/postern-dev/postern/internal/control"
	"github.com/postern-dev/postern/internal/lab"
)

// Agent is posternd on one node of a lab.
type Agent struct {
	Node *lab.Node
	// Manifests is the directory it enforces; write policies below it.
	Manifests string
	Client    *control.Client
	Socket    string

	binary  string
	logFile string
	args    []string
	dir     string
	cmd     *exec.Cmd
	done    chan error
	log     *logBuffer
}

// Options of Start.
type Options struct {
	// Binary is the path of posternd.
	Binary string
	// Manifests is the directory to enforce; empty: a fresh one with the lab's own objects.
	Manifests string
	// Args are further arguments of posternd agent.
	Args []string
	// LogFile, if not empty, takes what the agent prints, so that it can outlive
	// this process; Log then reads the file.
	LogFile string
}

// New prepares an agent for a node without starting it.
func New(l *lab.Lab, node *lab.Node, opts Options) (*Agent, error) {
	dir := filepath.Join(l.Dir(), "agent-"+node.Name)
	a := &Agent{
		Node: node, Manifests: opts.Manifests, Socket: filepath.Join(dir, "agent.sock"), binary: opts.Binary, logFile: opts.LogFile,
		dir: dir, log: &logBuffer{},
	}
	if a.Manifests == "" {
		a.Manifests = filepath.Join(dir, "manifests")
		if err := os.MkdirAll(filepath.Join(a.Manifests, "lab"), 0o750); err != nil {
			return nil, err
		}
		if err := l.Manifests(filepath.Join(a.Manifests, "lab")); err != nil {
			return nil, err
		}
	}
	bpffs, err := l.BPFFS(node.Name)
	if err != nil {
		return nil, err
	}
	a.args = append([]string{
		"agent", "--manifests", a.Manifests, "--node-name", node.Name, "--bpffs", bpffs,
		"--state-dir", filepath.Join(dir, "state"), "--socket", a.Socket,
	}, opts.Args...)
	a.Client = control.NewClient(a.Socket)
	return a, nil
}

// Start runs an agent and waits until it enforces.
func Start(ctx context.Context, l *lab.Lab, node *lab.Node, opts Options) (*Agent, error) {
	a, err := New(l, node, opts)
	if err != nil {
		return nil, err
	}
	if err := a.Start(); err != nil {
		return nil, err
	}
	if err := a.WaitReady(ctx); err != nil {
		return nil, errors.Join(err, a.Kill())
	}
	return a, nil
}

// Start runs the process and returns at once.
func (a *Agent) Start() error {
	cmd := exec.Command(a.binary, a.args...) //nolint:gosec // the caller names the binary
	cmd.Stdout, cmd.Stderr = a.log, a.log
	if a.logFile != "" {
		f, err := os.OpenFile(a.logFile, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }()
		cmd.Stdout, cmd.Stderr = f, f
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := a.Node.Start(cmd); err != nil {
		return fmt.Errorf("start %s: %w", a.binary, err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	a.cmd, a.done = cmd, done
	return nil
}

// WaitReady waits until the agent has read its manifests and no endpoint is failed.
func (a *Agent) WaitReady(ctx context.Context) error {
	return a.wait(ctx, func(s control.Status) bool { return s.Endpoints["failed"] == 0 && s.Endpoints["enforced"] > 0 })
}

// wait polls the status until ok says so.
func (a *Agent) wait(ctx context.Context, ok func(control.Status) bool) error {
	var last error
	for {
		s, err := a.Client.Status(ctx)
		if err == nil && ok(s) {
			return nil
		}
		if err == nil {
			err = fmt.Errorf("status %+v", s)
		}
		last = err
		select {
		case <-ctx.Done():
			return fmt.Errorf("agent on %s is not ready: %w\n%s", a.Node.Name, last, a.log)
		case err := <-a.done:
			a.done <- err
			return fmt.Errorf("agent on %s ended: %w\n%s", a.Node.Name, err, a.log)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// Write puts a manifest into the directory, by rename, and waits until a newer
// revision is enforced. name is a path in the directory.
func (a *Agent) Write(ctx context.Context, name, content string) error {
	return a.change(ctx, func() error {
		path := filepath.Join(a.Manifests, name)
		tmp := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".tmp")
		if err := os.WriteFile(tmp, []byte(content), 0o600); err != nil {
			return err
		}
		return os.Rename(tmp, path)
	})
}

// Remove deletes a manifest and waits likewise.
func (a *Agent) Remove(ctx context.Context, name string) error {
	return a.change(ctx, func() error { return os.Remove(filepath.Join(a.Manifests, name)) })
}

func (a *Agent) change(ctx context.Context, f func() error) error {
	before, err := a.Client.Status(ctx)
	if err != nil {
		return err
	}
	if err := f(); err != nil {
		return err
	}
	return a.wait(ctx, func(s control.Status) bool { return s.Revision > before.Revision })
}

// Kill ends the process with SIGKILL; what is pinned stays.
func (a *Agent) Kill() error { return a.end(syscall.SIGKILL) }

// Stop ends the process with SIGTERM.
func (a *Agent) Stop() error { return a.end(syscall.SIGTERM) }

func (a *Agent) end(sig syscall.Signal) error {
	if a.cmd == nil {
		return nil
	}
	cmd := a.cmd
	a.cmd = nil
	if err := cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case err := <-a.done:
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			return err
		}
		return nil
	case <-time.After(10 * time.Second):
		return errors.Join(fmt.Errorf("agent on %s does not end", a.Node.Name), cmd.Process.Kill())
	}
}

// Uninstall runs posternd uninstall on the node; the agent must not be running.
func (a *Agent) Uninstall() error {
	args := append([]string{"uninstall"}, a.shared()...)
	cmd := exec.Command(a.binary, args...) //nolint:gosec // the caller names the binary
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := a.Node.Run(cmd); err != nil {
		return fmt.Errorf("uninstall: %w: %s", err, out.String())
	}
	return nil
}

// shared are the arguments that agent and uninstall have in common.
func (a *Agent) shared() []string {
	var out []string
	for i := 0; i+1 < len(a.args); i++ {
		switch a.args[i] {
		case "--bpffs", "--state-dir", "--socket", "--mark":
			out = append(out, a.args[i], a.args[i+1])
		}
	}
	return out
}

// PID is the process's; 0 if it does not run.
func (a *Agent) PID() int {
	if a.cmd == nil {
		return 0
	}
	return a.cmd.Process.Pid
}

// Log returns what the process printed.
func (a *Agent) Log() string {
	if a.logFile != "" {
		b, err := os.ReadFile(a.logFile)
		if err != nil {
			return err.Error()
		}
		return strings.TrimSpace(string(b))
	}
	return a.log.String()
}

// logBuffer keeps the last part of a log.
type logBuffer struct {
	mu  sync.Mutex
	buf []byte
}

// Write is io.Writer's.
func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.buf = append(l.buf, p...)
	if len(l.buf) > 1<<20 {
		l.buf = append(l.buf[:0], l.buf[len(l.buf)-1<<19:]...)
	}
	return len(p), nil
}

// String is fmt.Stringer's.
func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.TrimSpace(string(l.buf))
}
