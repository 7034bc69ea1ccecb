//go:build linux

// Package demo runs the programs as a user does: the demo, and the lab from the
// command line.
package demo

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/postern-dev/postern/internal/flow"
	"github.com/postern-dev/postern/internal/lab"
	"github.com/postern-dev/postern/internal/testenv"
)

// programs builds both once and returns the directory that they are in.
var programs = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "postern")
	if err != nil {
		return "", err
	}
	if err := os.Chmod(dir, 0o755); err != nil { // others run the programs too
		return dir, err
	}
	out, err := exec.Command("go", "build", "-o", dir, "github.com/postern-dev/postern/cmd/...").CombinedOutput()
	if err != nil {
		return dir, errors.New(string(out))
	}
	return dir, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if dir, err := programs(); err == nil {
		_ = os.RemoveAll(dir)
	}
	os.Exit(code)
}

func postern(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	testenv.RequireRoot(t)
	dir, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	return exec.CommandContext(t.Context(), filepath.Join(dir, "postern"), args...)
}

// gone fails the test if a lab is left.
func gone(t *testing.T, name string) {
	t.Helper()
	if _, err := os.Stat(filepath.Join(lab.Root, name)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("lab %s is left: %v", name, err)
	}
}

// TestDemo expects the demo to succeed within a minute and to leave nothing.
func TestDemo(t *testing.T) {
	cmd := postern(t, "demo")
	start := time.Now()
	out, err := cmd.CombinedOutput()
	took := time.Since(start)
	t.Logf("%s", out)
	if err != nil {
		t.Fatal(err)
	}
	if took > time.Minute {
		t.Errorf("took %s, want less than a minute", took)
	}
	for _, want := range []string{"claims, all true", "1. No policy", "6. The agent is killed", "default-deny", "kill -9", "from outside of the cluster shop/cart is still reached", "closes it to the outside too"} {
		if !bytes.Contains(out, []byte(want)) {
			t.Errorf("does not say %q", want)
		}
	}
	// What follows a command is its output, or narration.
	if bytes.Contains(out, []byte("$ postern flows")) {
		t.Error("shows a command whose output it does not show")
	}
	if bytes.Contains(out, []byte("NOT TRUE")) || bytes.Contains(out, []byte("\x1b")) {
		t.Error("a false claim, or colour without a terminal")
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if last := lines[len(lines)-1]; !strings.Contains(last, "lab up --agent") {
		t.Errorf("last line %q does not say how to go on", last)
	}
	gone(t, "demo")
}

// interrupt starts the demo, does something when it is at its third chapter, and
// returns its exit code.
func interrupt(t *testing.T, what func(cmd *exec.Cmd, stdout io.ReadCloser) error) int {
	t.Helper()
	cmd := postern(t, "demo")
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for sc := bufio.NewScanner(stdout); sc.Scan(); {
		if strings.HasPrefix(sc.Text(), "3. ") {
			break
		}
	}
	if err := what(cmd, stdout); err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, stdout)
	_ = cmd.Wait()
	return cmd.ProcessState.ExitCode()
}

// TestDemoInterrupted ends the demo half-way: it cleans up itself, and what
// kill -9 leaves the next run does.
func TestDemoInterrupted(t *testing.T) {
	for _, c := range []struct {
		name string
		want int
		what func(cmd *exec.Cmd, stdout io.ReadCloser) error
	}{
		{"Ctrl-C", 130, func(cmd *exec.Cmd, _ io.ReadCloser) error { return cmd.Process.Signal(syscall.SIGINT) }},
		{"kill", 130, func(cmd *exec.Cmd, _ io.ReadCloser) error { return cmd.Process.Signal(syscall.SIGTERM) }},
		{"a terminal that closes", 4, func(cmd *exec.Cmd, _ io.ReadCloser) error { return cmd.Process.Signal(syscall.SIGHUP) }},
		{"a pipe that closes", 4, func(_ *exec.Cmd, stdout io.ReadCloser) error { return stdout.Close() }},
	} {
		if code := interrupt(t, c.what); code != c.want {
			t.Errorf("%s: exit code %d, want %d", c.name, code, c.want)
		}
		gone(t, "demo")
	}
	interrupt(t, func(cmd *exec.Cmd, _ io.ReadCloser) error { return cmd.Process.Kill() })
	if out, err := postern(t, "demo").CombinedOutput(); err != nil {
		t.Errorf("after kill -9: %v\n%s", err, out)
	}
	gone(t, "demo")
}

// kill ends the process that listens at a socket, and waits for its end.
func kill(t *testing.T, socket string) {
	t.Helper()
	c, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	raw, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var cred *syscall.Ucred
	if cerr := raw.Control(func(fd uintptr) {
		cred, err = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	}); cerr != nil || err != nil {
		t.Fatal(cerr, err)
	}
	if err := syscall.Kill(int(cred.Pid), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		again, err := net.Dial("unix", socket)
		if err != nil {
			return
		}
		_ = again.Close()
		if time.Now().After(deadline) {
			t.Fatal("the agent does not end")
		}
	}
}

// TestLab is what the demo's last line leads to.
func TestLab(t *testing.T) {
	const name = "cli-test"
	var errs bytes.Buffer
	var user *syscall.Credential
	run := func(want int, args ...string) string {
		t.Helper()
		cmd := postern(t, args...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: user}
		var out bytes.Buffer
		errs.Reset()
		cmd.Stdout, cmd.Stderr = &out, &errs
		if err := cmd.Run(); err != nil {
			if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) {
				t.Fatal(err)
			}
		}
		if code := cmd.ProcessState.ExitCode(); code != want {
			t.Fatalf("postern %s: exit code %d, want %d\n%s%s", strings.Join(args, " "), code, want, out.String(), errs.String())
		}
		return out.String()
	}
	t.Cleanup(func() {
		if err := lab.Cleanup(t.Context(), name); err != nil && !errors.Is(err, lab.ErrNotFound) && t.Context().Err() == nil {
			t.Error(err)
		}
	})
	up := run(0, "lab", "up", name, "--agent", "--nodes", "2")
	defer func() { run(0, "lab", "down", name); gone(t, name) }()
	if !strings.Contains(up, "--lab "+name+"/node1") {
		t.Errorf("lab up: %s", up)
	}
	if out := run(0, "lab", "list"); !strings.Contains(out, name+"\n") {
		t.Errorf("lab list: %q", out)
	}
	if out := run(0, "lab", "status", name); !strings.Contains(out, "shop/frontend") || !strings.Contains(out, "agent on node2") {
		t.Errorf("lab status: %s", out)
	}
	run(4, "lab", "up", name)
	run(2, "status", "--lab", name) // which of the two
	node1, dir := name+"/node1", filepath.Join(lab.Root, name, "manifests")
	run(0, "status", "--lab", node1)
	run(3, "status", "--socket", dir)
	run(7, "lab", "exec", "--lab", name, "shop/frontend", "--", "sh", "-c", "exit 7")
	if out := run(0, "lab", "exec", "--lab", name, "shop/frontend", "--", "cat", "/proc/net/fib_trie"); !strings.Contains(out, "10.244.1.2") {
		t.Error("lab exec is not in the pod's network")
	}
	run(0, "explain", "shop/frontend", "203.0.113.66", "--port", "443", "--lab", node1)

	files, err := filepath.Glob("../../deploy/baseline/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, filepath.Base(f)), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for deadline := time.Now().Add(5 * time.Second); !strings.Contains(run(0, "policies", "--lab", node1), "default-deny"); {
		if time.Now().After(deadline) {
			t.Fatal("the baseline is not in force")
		}
	}
	run(1, "explain", "shop/frontend", "203.0.113.66", "--port", "443", "--lab", node1)
	// Without curl or the like: bash's own sockets.
	run(124, "lab", "exec", "--lab", name, "shop/frontend", "--", "timeout", "1", "bash", "-c", "exec 3<>/dev/tcp/203.0.113.66/443")
	var r flow.Record
	if err := json.Unmarshal([]byte(run(0, "flows", "--lab", node1, "--verdict", "dropped", "--pod", "shop/frontend", "-o", "json", "--limit", "1")), &r); err != nil {
		t.Fatal(err)
	}
	if r.Rule.Policy != "default-deny" || r.Remote.Addr != lab.EvilV4 || r.Local.Name != "frontend" {
		t.Errorf("record %+v", r)
	}
	if out := run(0, "endpoints", "shop/frontend", "--lab", node1); !strings.Contains(out, "nobody-out") {
		t.Errorf("endpoints: %s", out)
	}

	said := func(want string) {
		t.Helper()
		if !strings.Contains(errs.String(), want) {
			t.Errorf("says %q, want %q", errs.String(), want)
		}
	}
	run(3, "status", "--lab", "nowhere")
	said(`there is no lab "nowhere"`)
	run(3, "status", "--lab", name+"/node9")
	said("no agent in lab " + name + "/node9")
	socket := filepath.Join(lab.Root, name, "agent-node2", "agent.sock")
	user = &syscall.Credential{Uid: 65534, Gid: 65534}
	for _, args := range [][]string{{"status", "--lab", node1}, {"status", "--lab", "nowhere"}, {"status", "--socket", socket}, {"flows", "--socket", socket}, {"lab", "list"}} {
		run(4, args...)
		said("needs root")
	}
	user = nil
	kill(t, socket)
	run(3, "status", "--lab", name+"/node2")
	said("has ended")
	if strings.Contains(errs.String(), "there is one") {
		t.Errorf("says %q of the only agent that was asked for", errs.String())
	}
	if out := run(0, "lab", "status", name); !strings.Contains(out, "agent on node2: ENDED") || !strings.Contains(out, "lab agent "+name) {
		t.Errorf("lab status of a dead agent: %s", out)
	}
	if out := run(0, "lab", "agent", name); !strings.Contains(out, "runs already on node1") || !strings.Contains(out, "is started on node2") {
		t.Errorf("lab agent: %s", out)
	}
	run(0, "status", "--lab", name+"/node2")
	run(2, "lab", "agent", "nowhere")
}
