//go:build linux

package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-dev/postern/internal/testenv"
)

// childEnv makes the test binary be another process of a lab; see TestMain.
const childEnv = "POSTERN_LAB_TEST_CHILD"

func TestMain(m *testing.M) {
	lockPatience = 100 * time.Millisecond
	role, name, ok := strings.Cut(os.Getenv(childEnv), ":")
	if !ok {
		os.Exit(m.Run())
	}
	if err := play(role, name); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// play is what the child process does.
func play(role, name string) error {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	if role == "serve" {
		return Serve(ctx, name)
	}
	return hold(ctx, name)
}

// hold builds a lab with everything in it, says so, and waits to be killed.
func hold(ctx context.Context, name string) error {
	l, err := Up(ctx, DefaultSpec(name))
	if err != nil {
		return err
	}
	if _, err := l.BPFFS("node1"); err != nil {
		return err
	}
	if _, err := l.Tap(ctx); err != nil {
		return err
	}
	// A process that would outlive its parent, in a pod and in a node.
	for _, target := range []string{"shop/cart", "node1"} {
		ns, err := l.Find(target)
		if err != nil {
			return err
		}
		cmd := exec.Command("sleep", "1000")
		cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
		if err := ns.Start(cmd); err != nil {
			return err
		}
		fmt.Println("child", cmd.Process.Pid)
	}
	fmt.Println("up")
	<-ctx.Done()
	return nil
}

// child starts the test binary in a role and returns what it says until "up".
func child(t *testing.T, role, name string) (*exec.Cmd, []int) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+role+":"+name)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	var pids []int
	lines := bufio.NewScanner(out)
	for lines.Scan() && lines.Text() != "up" {
		var pid int
		if _, err := fmt.Sscanf(lines.Text(), "child %d", &pid); err == nil {
			pids = append(pids, pid)
		}
	}
	if lines.Text() != "up" {
		t.Fatal("the child did not bring the lab up")
	}
	return cmd, pids
}

// requireNothingLeft fails unless every trace of the lab is gone from the file system and the mounts.
func requireNothingLeft(t *testing.T, name string) {
	t.Helper()
	dir := filepath.Join(Root, name)
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is still there: %v", dir, err)
	}
	mounts, err := mountsBelow(dir)
	if err != nil || len(mounts) > 0 {
		t.Errorf("mounts below %s: %v, %v", dir, mounts, err)
	}
}

// namespacesOf returns what identifies a lab's namespaces, from its mounts.
func namespacesOf(t *testing.T, name string) map[nsID]bool {
	t.Helper()
	mounts, err := mountsBelow(filepath.Join(Root, name))
	if err != nil {
		t.Fatal(err)
	}
	ids := map[nsID]bool{}
	for _, m := range mounts {
		var st unix.Stat_t
		if err := unix.Stat(m, &st); err != nil {
			t.Fatal(err)
		}
		ids[nsID{st.Dev, st.Ino}] = true
	}
	return ids
}

// requireNoProcess fails if a thread of any process is in one of the namespaces.
func requireNoProcess(t *testing.T, ids map[nsID]bool) {
	t.Helper()
	tasks, err := filepath.Glob("/proc/[0-9]*/task/*/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		if isInside(task, ids) {
			t.Errorf("%s is in a namespace of the lab", task)
		}
	}
}

func hostLinks(t *testing.T) string {
	t.Helper()
	entries, err := os.ReadDir("/sys/class/net")
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(entries)
}

func TestCleanupAfterKill(t *testing.T) {
	testenv.RequireRoot(t)
	links := hostLinks(t)
	for _, how := range []string{"Cleanup", "Up", "ReapStale"} {
		t.Run(how, func(t *testing.T) {
			cmd, pids := child(t, "hold", "lt-killed")
			ids := namespacesOf(t, "lt-killed")
			if len(ids) < 8 || len(pids) != 2 {
				t.Fatalf("%d mounts, children %v", len(ids), pids)
			}
			if err := Cleanup(t.Context(), "lt-killed"); !errors.Is(err, ErrInUse) {
				t.Fatalf("Cleanup of a lab in use: %v", err)
			}
			if _, err := Up(t.Context(), DefaultSpec("lt-killed")); !errors.Is(err, ErrInUse) {
				t.Fatalf("Up of a lab in use: %v", err)
			}
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait()
			switch how {
			case "Cleanup":
				if err := Cleanup(t.Context(), "lt-killed"); err != nil {
					t.Fatal(err)
				}
			case "ReapStale":
				if err := ReapStale(t.Context()); err != nil {
					t.Fatal(err)
				}
			case "Up":
				l, err := Up(t.Context(), DefaultSpec("lt-killed"))
				if err != nil {
					t.Fatal(err)
				}
				if err := l.Down(); err != nil {
					t.Fatal(err)
				}
			}
			requireNothingLeft(t, "lt-killed")
			requireNoProcess(t, ids)
			for _, pid := range pids {
				if p, err := processOf(pid); err == nil {
					t.Errorf("child %+v is alive", p)
				}
			}
			if now := hostLinks(t); now != links {
				t.Errorf("links of this machine: %s, before %s", now, links)
			}
		})
	}
}

// TestKillAtAnyMoment kills a process while it builds a lab.
func TestKillAtAnyMoment(t *testing.T) {
	testenv.RequireRoot(t)
	for i := range 12 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childEnv+"=hold:lt-torn")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(i*i) * time.Millisecond)
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		ids := namespacesOf(t, "lt-torn")
		if err := Cleanup(t.Context(), "lt-torn"); err != nil {
			t.Fatal(err)
		}
		requireNothingLeft(t, "lt-torn")
		requireNoProcess(t, ids)
	}
}

func TestDetach(t *testing.T) {
	testenv.RequireRoot(t)
	testenv.CheckLeaks(t)
	spec := DefaultSpec("lt-detach")
	spec.NoServers, spec.Persistent = true, true
	l, err := Up(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv(childEnv, "serve:lt-detach")
	if err := l.Detach(soon(t), os.Args[0]); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := Cleanup(context.Background(), "lt-detach"); err != nil {
			t.Error(err)
		}
		requireNothingLeft(t, "lt-detach")
	})
	if l, err = Open("lt-detach"); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	from := pod(t, l, "shop/frontend")
	if _, err := from.Echo(soon(t), "udp", netip.AddrPortFrom(WebV6, EchoPort), []byte("x")); err != nil {
		t.Error(err)
	}
	svc, err := l.Service("shop/cart")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.SetBackends("shop/cart"); err != nil {
		t.Fatal(err)
	}
	// A pod that this process adds gets its servers from the other one.
	p, err := l.AddPod(t.Context(), PodSpec{Namespace: "shop", Name: "late"}, AddPodOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.SetBackends("shop/cart", p.IPs...); err != nil {
		t.Fatal(err)
	}
	for {
		e, err := from.Echo(soon(t), "tcp", netip.AddrPortFrom(svc.ClusterIPs[1], EchoPort), []byte("x"))
		if err == nil && e.Place == "shop/late" {
			break
		}
		if t.Context().Err() != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
	}
	st, err := l.Status()
	if err != nil || st.ServerPID == 0 || len(st.Pods) != len(spec.Pods)+1 {
		t.Errorf("status %+v, %v", st, err)
	}
	if err := l.Down(); !errors.Is(err, ErrInUse) {
		t.Errorf("Down by a process that does not own the lab: %v", err)
	}
	if err := ReapStale(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(l.Dir()); err != nil {
		t.Errorf("ReapStale took a persistent lab: %v", err)
	}
}
