package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-dev/postern/internal/lab"
	"github.com/postern-dev/postern/internal/labagent"
)

// startAgents runs posternd on every node of a lab where it does not run. All of
// them enforce one directory, which has the lab's own objects below lab/.
func (a *app) startAgents(ctx context.Context, name, daemon string) ([]labAgent, error) {
	l, err := lab.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = l.Close() }()
	dir := filepath.Join(l.Dir(), "manifests")
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, err
	}
	if err := l.Manifests(filepath.Join(dir, "lab")); err != nil {
		return nil, err
	}
	pods := map[string]int{}
	for _, p := range l.Pods() {
		pods[p.Node.Name]++
	}
	var out []labAgent
	for _, n := range l.Nodes() {
		ag, err := labagent.New(l, n, labagent.Options{Binary: daemon, Manifests: dir, LogFile: filepath.Join(l.Dir(), "agent-"+n.Name+".log")})
		if err != nil {
			return nil, err
		}
		if pid, ok := listener(ag.Socket); ok {
			out = append(out, labAgent{Node: n.Name, Socket: ag.Socket, PID: pid, manifests: dir})
			continue
		}
		if err := ag.Start(); err != nil {
			return nil, err
		}
		if err := waitEnforced(ctx, ag, pods[n.Name]); err != nil {
			return nil, err
		}
		out = append(out, labAgent{Node: n.Name, Socket: ag.Socket, PID: ag.PID(), manifests: dir, started: true})
	}
	return out, nil
}

// listener returns the process that answers at a socket. Source: unix(7), SO_PEERCRED.
func listener(socket string) (pid int, ok bool) {
	c, err := net.Dial("unix", socket) //nolint:noctx // a unix socket connects at once or not at all
	if err != nil {
		return 0, false
	}
	defer func() { _ = c.Close() }()
	uc, isUnix := c.(*net.UnixConn)
	if !isUnix {
		return 0, true
	}
	raw, err := uc.SyscallConn()
	if err != nil {
		return 0, true
	}
	err = raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid = int(cred.Pid)
		}
	})
	return pid, err == nil
}

// waitEnforced waits until an agent enforces on all pods of its node, or says why
// it can't.
func waitEnforced(ctx context.Context, ag *labagent.Agent, pods int) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for {
		s, err := ag.Client.Status(ctx)
		if err == nil && (s.Endpoints["enforced"] >= pods || s.Endpoints["failed"]+s.Endpoints["not-covered"] > 0) {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("posternd on %s does not enforce:\n%s", ag.Node.Name, ag.Log()), ctx.Err(), err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}
