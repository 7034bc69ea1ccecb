package testenv

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// probe does what the lab does, once: a namespace, a mount in a mount
// namespace of its own, a packet socket.
var probe = sync.OnceValue(func() error { return onLastThread(try) })

// onLastThread runs f on a thread that ends afterwards, with whatever f did to
// it. The main thread never ends, so it is kept busy if the choice falls on it.
func onLastThread(f func() error) error {
	errc := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == os.Getpid() {
			errc <- onLastThread(f)
			runtime.UnlockOSThread()
			return
		}
		errc <- f()
	}()
	return <-errc
}

func try() error {
	if err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("packet socket: %w", err)
	}
	_ = unix.Close(fd)
	return nil
}

// CheckLeaks fails the test at its end if goroutines, file descriptors
// or threads in a foreign network namespace are left that were not there now.
// It waits up to two seconds for them to go. Not for parallel tests.
func CheckLeaks(tb testing.TB) {
	tb.Helper()
	before, err := take()
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		var after snapshot
		for range 200 {
			if after, err = take(); err != nil {
				tb.Error(err)
				return
			}
			if after.within(before) {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
		buf := make([]byte, 1<<20)
		buf = buf[:runtime.Stack(buf, true)]
		tb.Errorf("left behind:\nbefore %+v\nafter  %+v\n%s", before, after, buf)
	})
}

type snapshot struct {
	Goroutines, FDs, ForeignThreads int
}

func (s snapshot) within(o snapshot) bool {
	return s.Goroutines <= o.Goroutines && s.FDs <= o.FDs && s.ForeignThreads <= o.ForeignThreads
}

func take() (snapshot, error) {
	runtime.GC() // closes what only finalizers would
	s := snapshot{Goroutines: runtime.NumGoroutine()}
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return s, err
	}
	s.FDs = len(fds)
	home, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return s, err
	}
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return s, err
	}
	for _, task := range tasks {
		ns, err := os.Readlink("/proc/self/task/" + task.Name() + "/ns/net")
		if errors.Is(err, os.ErrNotExist) {
			continue // ended meanwhile
		}
		if err == nil && ns != home {
			s.ForeignThreads++
		}
	}
	return s, nil
}
