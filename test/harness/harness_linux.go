//go:build linux

// Package harness is a lab with posternd on its first node, for the tests that
// judge by packets: integration, faults and attacks.
package harness

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	// posternd is built while the tests run. That it is part of them tells go
	// test to run them again, not to remember, when it has changed.
	_ "github.com/postern-dev/postern/internal/daemon"
	"github.com/postern-dev/postern/internal/lab"
	"github.com/postern-dev/postern/internal/labagent"
	"github.com/postern-dev/postern/internal/packet/packettest"
	"github.com/postern-dev/postern/internal/testenv"
)

// binary builds posternd once for all tests.
var binary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "posternd")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "posternd")
	out, err := exec.Command("go", "build", "-o", path, "github.com/postern-dev/postern/cmd/posternd").CombinedOutput()
	if err != nil {
		return "", errors.New(string(out))
	}
	return path, nil
})

// Binary builds posternd once and returns its path; Main removes it.
func Binary() (string, error) { return binary() }

// Main runs a package's tests; call it from TestMain.
func Main(m *testing.M) {
	code := m.Run()
	if path, err := binary(); err == nil {
		_ = os.RemoveAll(filepath.Dir(path))
	}
	os.Exit(code)
}

// World is a lab with an agent on its first node.
type World struct {
	T     *testing.T
	Lab   *lab.Lab
	Agent *labagent.Agent
}

// New brings a lab up and starts the agent; the test's end takes both down.
func New(t *testing.T, spec lab.Spec, args ...string) *World {
	t.Helper()
	testenv.RequireRoot(t)
	bin, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	l, err := lab.Up(ctx, spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Down(); err != nil {
			t.Error(err)
		}
	})
	a, err := labagent.Start(ctx, l, l.Nodes()[0], labagent.Options{Binary: bin, Args: args})
	if err != nil {
		t.Fatal(err)
	}
	w := &World{t, l, a}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("agent:\n%s", a.Log())
		}
		if err := a.Kill(); err != nil {
			t.Error(err)
		}
	})
	return w
}

// Write puts a manifest in place and waits until it is enforced.
func (w *World) Write(name, content string) {
	w.T.Helper()
	ctx, cancel := context.WithTimeout(w.T.Context(), 10*time.Second)
	defer cancel()
	if err := w.Agent.Write(ctx, name, content); err != nil {
		w.T.Fatal(err)
	}
}

// Pod returns a running pod.
func (w *World) Pod(key string) *lab.Pod {
	w.T.Helper()
	p, err := w.Lab.Pod(key)
	if err != nil {
		w.T.Fatal(err)
	}
	return p
}

// Reaches tries one exchange.
func (w *World) Reaches(from *lab.Pod, network string, to netip.AddrPort, wait time.Duration) bool {
	w.T.Helper()
	ctx, cancel := context.WithTimeout(w.T.Context(), wait)
	defer cancel()
	tok := packettest.NewToken(w.T.Name())
	_, err := from.Echo(ctx, network, to, tok[:])
	return err == nil
}

// Allowed fails the test if an exchange does not succeed.
func (w *World) Allowed(from *lab.Pod, network string, to netip.AddrPort) {
	w.T.Helper()
	if !w.Reaches(from, network, to, 3*time.Second) {
		w.T.Errorf("%s -> %s/%s: blocked, want allowed", from.Spec.Key(), to, network)
	}
}

// Denied fails the test if an exchange succeeds.
func (w *World) Denied(from *lab.Pod, network string, to netip.AddrPort) {
	w.T.Helper()
	if w.Reaches(from, network, to, 300*time.Millisecond) {
		w.T.Errorf("%s -> %s/%s: allowed, want denied", from.Spec.Key(), to, network)
	}
}
