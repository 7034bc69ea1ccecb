package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// killInside kills every process all of whose threads are inside one of the
// namespaces, and waits until they are gone. Only a lab's own processes and
// their children ever are: a process that merely uses a lab, like this one,
// visits with single threads.
func killInside(inside map[nsID]bool) error {
	for range 100 { // a process may fork while we look
		pids, err := processesInside(inside)
		if err != nil || len(pids) == 0 {
			return err
		}
		for _, pid := range pids {
			if err := killPID(pid, unix.SIGKILL, func() bool { return allInside(pid, inside) }); err != nil {
				return err
			}
		}
	}
	return errors.New("processes inside the lab's namespaces do not end")
}

func processesInside(inside map[nsID]bool) ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err == nil && pid != os.Getpid() && allInside(pid, inside) {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// allInside reports whether all threads of a process are inside. A process
// that is gone, a zombie or a kernel thread is not.
func allInside(pid int, inside map[nsID]bool) bool {
	base := filepath.Join("/proc", strconv.Itoa(pid))
	if !isInside(filepath.Join(base, "ns/net"), inside) {
		return false
	}
	tasks, err := os.ReadDir(filepath.Join(base, "task"))
	if err != nil || len(tasks) == 0 {
		return false
	}
	for _, t := range tasks {
		if !isInside(filepath.Join(base, "task", t.Name(), "ns/net"), inside) {
			return false
		}
	}
	return true
}

func isInside(path string, inside map[nsID]bool) bool {
	var st unix.Stat_t
	return unix.Stat(path, &st) == nil && inside[nsID{st.Dev, st.Ino}]
}

// killPID signals a process if still says, once a descriptor pins the pid to
// the process, that it is the one that was meant; it then waits up to 2 s for
// its end. Source: pidfd_open(2).
func killPID(pid int, sig unix.Signal, still func() bool) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("process %d: %w", pid, err)
	}
	defer func() { _ = unix.Close(fd) }()
	if !still() {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, sig, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill process %d: %w", pid, err)
	}
	_, err = waitPidfd(fd, 2000)
	return err
}

// waitPidfd reports whether the process ended within timeout, in milliseconds.
func waitPidfd(fd, timeoutMS int) (bool, error) {
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, timeoutMS)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		return n > 0, err
	}
}

// process identifies a process beyond the reuse of its pid.
type process struct {
	PID int `json:"pid"`
	// StartTicks is when it started, in clock ticks since boot. Source: proc_pid_stat(5), field 22.
	StartTicks uint64 `json:"startTicks"`
}

// processOf identifies a process that runs.
func processOf(pid int) (process, error) {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return process{}, err
	}
	// The second field is the name in parentheses and may hold anything.
	i := bytes.LastIndexByte(b, ')')
	fields := bytes.Fields(b[i+1:])
	if i < 0 || len(fields) < 20 {
		return process{}, fmt.Errorf("process %d: odd stat line", pid)
	}
	if state := fields[0][0]; state == 'Z' || state == 'X' {
		return process{}, os.ErrProcessDone // it only waits for its parent to notice
	}
	ticks, err := strconv.ParseUint(string(fields[19]), 10, 64)
	return process{PID: pid, StartTicks: ticks}, err
}

func (p process) alive() bool {
	now, err := processOf(p.PID)
	return err == nil && now == p
}

// stopServer ends the process that Detach started for a lab, if there is one.
func stopServer(ctx context.Context, dir string) error {
	var p process
	err := readJSON(filepath.Join(dir, "serve.json"), &p)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
		if err := ctx.Err(); err != nil {
			return err
		}
		if p.PID == os.Getpid() || !p.alive() {
			return nil
		}
		if err := killPID(p.PID, sig, p.alive); err != nil {
			return err
		}
	}
	return nil
}
