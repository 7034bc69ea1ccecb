package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Descriptors that the process of Detach finds: the lab's lock, and a pipe on
// which it says that it is ready. Source: os/exec.Cmd.ExtraFiles.
const (
	serveLockFD  = 3
	serveReadyFD = 4
)

// servePoll is how often Serve looks for pods that other processes added.
const servePoll = 200 * time.Millisecond

// Detach hands the lab over to a process of its own and closes it here: the
// process runs command, which must call Serve with the lab's name, holds the
// lab's lock and runs its servers until Cleanup ends it. It outlives this
// process. Up must have been called with NoServers and Persistent.
func (l *Lab) Detach(ctx context.Context, command string, args ...string) error {
	if l.lock == nil {
		return fmt.Errorf("lab %s: detach: %w", l.spec.Name, ErrInUse)
	}
	ready, theirs, err := os.Pipe()
	if err != nil {
		return err
	}
	defer func() { _ = ready.Close() }()
	defer func() { _ = theirs.Close() }()
	logFile, err := os.Create(filepath.Join(l.dir, "serve.log"))
	if err != nil {
		return err
	}
	defer func() { _ = logFile.Close() }()
	cmd := exec.Command(command, args...)
	cmd.Stdout, cmd.Stderr = logFile, logFile
	cmd.ExtraFiles = []*os.File{l.lock, theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("lab %s: %w", l.spec.Name, err)
	}
	_ = theirs.Close()
	stop := context.AfterFunc(ctx, func() { _ = ready.Close() })
	defer stop()
	if _, err := io.ReadFull(ready, make([]byte, 1)); err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		said, _ := os.ReadFile(logFile.Name())
		return errors.Join(fmt.Errorf("lab %s: its server did not start: %s", l.spec.Name, said), ctx.Err())
	}
	_ = cmd.Process.Release()
	return l.Close() // the lock stays with the other process
}

// Serve is the process that Detach starts: it runs the lab's servers, those of
// pods that come later included, until ctx is done.
func Serve(ctx context.Context, name string) error {
	lock := os.NewFile(serveLockFD, "lock")
	ready := os.NewFile(serveReadyFD, "ready")
	if lock == nil || ready == nil {
		return errors.New("serve is started by Detach only")
	}
	// Children must not hold the lab.
	unix.CloseOnExec(serveLockFD)
	unix.CloseOnExec(serveReadyFD)
	defer func() { _ = lock.Close() }()
	defer func() { _ = ready.Close() }()
	l, err := Open(name)
	if err != nil {
		return err
	}
	defer func() { _ = l.Close() }()
	if err := l.startServers(ctx); err != nil {
		return err
	}
	if err := l.startMissing(ctx); err != nil {
		return err
	}
	self, err := processOf(os.Getpid())
	if err != nil {
		return err
	}
	if err := writeJSON(filepath.Join(l.dir, "serve.json"), self); err != nil {
		return err
	}
	if _, err := ready.Write([]byte{1}); err != nil {
		return err
	}
	_ = ready.Close()
	tick := time.NewTicker(servePoll)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if err := errors.Join(l.reload(), l.startMissing(ctx)); err != nil {
			// A pod that goes while we look; the next look sees what is.
			fmt.Fprintln(os.Stderr, "lab:", err)
		}
	}
}

// startMissing starts the servers of pods that have none yet.
func (l *Lab) startMissing(ctx context.Context) error {
	var errs []error
	for _, p := range l.Pods() {
		l.mu.Lock()
		has := len(p.closers) > 0
		l.mu.Unlock()
		if !has {
			errs = append(errs, l.startPodServers(ctx, p))
		}
	}
	return errors.Join(errs...)
}
