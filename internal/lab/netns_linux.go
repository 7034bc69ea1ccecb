package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Namespace is one network namespace of a lab, held open. It is safe for
// concurrent use. A socket made inside stays inside, wherever it is used from.
type Namespace struct {
	// Name is "outside", a node's name or a pod's "namespace/name".
	Name string
	// Path is where it is mounted, for setns(2) or nsenter --net=.
	Path string

	mu sync.Mutex
	fd int // -1 after close
}

func newNamespace(name, path string) *Namespace {
	return &Namespace{Name: name, Path: path, fd: -1}
}

// create makes the namespace, mounts it and opens it.
func (n *Namespace) create() error {
	f, err := os.OpenFile(n.Path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o400)
	if err != nil {
		return err
	}
	_ = f.Close()
	err = onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		if err := unix.Mount("/proc/thread-self/ns/net", n.Path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount %s: %w", n.Path, err)
		}
		return nil
	})
	if err != nil {
		_ = os.Remove(n.Path)
		return fmt.Errorf("namespace %s: %w", n.Name, err)
	}
	return n.open()
}

// open opens a namespace that is mounted at Path.
func (n *Namespace) open() error {
	fd, err := unix.Open(n.Path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("namespace %s: %w", n.Name, err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.fd = fd
	return nil
}

// close gives up this process's hold; the mount stays.
func (n *Namespace) close() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.fd >= 0 {
		_ = unix.Close(n.fd)
		n.fd = -1
	}
}

// dup returns a descriptor of its own for the caller to close, so that close
// never pulls one from under a Do.
func (n *Namespace) dup() (int, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.fd < 0 {
		return -1, fmt.Errorf("namespace %s: %w", n.Name, os.ErrClosed)
	}
	return unix.FcntlInt(uintptr(n.fd), unix.F_DUPFD_CLOEXEC, 0)
}

// onThread runs f on an OS thread that may change its network namespace, and
// puts the thread back. If that fails the thread is left locked: the runtime
// destroys it rather than run something else in a foreign namespace. f must
// not start goroutines that count on the namespace, nor keep the thread.
func onThread(f func() error) error {
	errc := make(chan error, 1)
	go func() {
		err := errors.New("left by runtime.Goexit")
		defer func() { errc <- err }() // also when f ends the goroutine (t.FailNow)
		runtime.LockOSThread()
		home, openErr := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if openErr != nil {
			runtime.UnlockOSThread()
			err = fmt.Errorf("open own namespace: %w", openErr)
			return
		}
		defer func() {
			if unix.Setns(home, unix.CLONE_NEWNET) == nil {
				runtime.UnlockOSThread()
			}
			_ = unix.Close(home)
		}()
		err = f()
	}()
	return <-errc
}

// Do runs f on a thread inside the namespace. f must not start goroutines that
// count on being inside; sockets that it makes may be used anywhere.
func (n *Namespace) Do(f func() error) error {
	fd, err := n.dup()
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	return onThread(func() error {
		if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter %s: %w", n.Name, err)
		}
		return f()
	})
}

// Start starts cmd inside the namespace. Its children are inside too; they are
// killed when the lab goes down.
func (n *Namespace) Start(cmd *exec.Cmd) error { return n.Do(cmd.Start) }

// Run starts cmd inside the namespace and waits for it.
func (n *Namespace) Run(cmd *exec.Cmd) error {
	if err := n.Start(cmd); err != nil {
		return err
	}
	return cmd.Wait()
}

// Sysctl writes value to net/<key> of the namespace, e.g. "ipv4/ip_forward".
func (n *Namespace) Sysctl(key, value string) error {
	return n.Do(func() error { return sysctl(key, value) })
}

// ReadSysctl reads net/<key> of the namespace.
func (n *Namespace) ReadSysctl(key string) (string, error) {
	var out string
	err := n.Do(func() error {
		b, err := os.ReadFile(filepath.Join("/proc/sys/net", key))
		out = strings.TrimSpace(string(b))
		return err
	})
	return out, err
}

// sysctl writes a setting of the calling thread's namespace.
func sysctl(key, value string) error {
	if err := os.WriteFile(filepath.Join("/proc/sys/net", key), []byte(value), 0); err != nil {
		return fmt.Errorf("sysctl net/%s=%s: %w", key, value, err)
	}
	return nil
}

// Dial connects from inside the namespace. addr is an address and a port, not a
// name; the zone of a link-local address is an interface of the namespace. The
// connection is used and closed like any other.
func (n *Namespace) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	return n.DialFrom(ctx, network, netip.AddrPort{}, addr)
}

// DialFrom is Dial from a given source address or port; zero parts are left to the kernel.
func (n *Namespace) DialFrom(ctx context.Context, network string, from netip.AddrPort, addr string) (net.Conn, error) {
	ap, err := netip.ParseAddrPort(addr)
	if err != nil {
		return nil, err
	}
	d := net.Dialer{}
	// Fallback from one family to the other and multipath TCP would make
	// sockets and frames that the test did not ask for.
	d.SetMultipathTCP(false)
	if from.IsValid() {
		switch network[:3] {
		case "tcp":
			d.LocalAddr = net.TCPAddrFromAddrPort(from)
		default:
			d.LocalAddr = net.UDPAddrFromAddrPort(from)
		}
	}
	var conn net.Conn
	err = n.Do(func() error {
		a, err := localZone(ap.Addr())
		if err != nil {
			return err
		}
		conn, err = d.DialContext(ctx, network, netip.AddrPortFrom(a, ap.Port()).String())
		return err
	})
	return conn, err
}

// localZone replaces an interface name in a's zone by its index in the calling
// thread's namespace. The net package caches that mapping for the process, as
// if there were one namespace.
func localZone(a netip.Addr) (netip.Addr, error) {
	if a.Zone() == "" {
		return a, nil
	}
	if _, err := strconv.Atoi(a.Zone()); err == nil {
		return a, nil
	}
	index, err := ifindex(a.Zone())
	if err != nil {
		return a, err
	}
	return a.WithZone(strconv.Itoa(index)), nil
}

// Ifindex returns the index of an interface of the namespace.
func (n *Namespace) Ifindex(name string) (int, error) {
	var index int
	err := n.Do(func() (err error) {
		index, err = ifindex(name)
		return err
	})
	return index, err
}

// ifindex returns the index of an interface of the calling thread's namespace.
func ifindex(name string) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer func() { _ = unix.Close(fd) }()
	req, err := unix.NewIfreq(name)
	if err != nil {
		return 0, err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, req); err != nil {
		return 0, fmt.Errorf("interface %s: %w", name, err)
	}
	return int(req.Uint32()), nil
}

// Listen listens for TCP inside the namespace.
func (n *Namespace) Listen(ctx context.Context, network, addr string) (net.Listener, error) {
	lc := net.ListenConfig{}
	lc.SetMultipathTCP(false)
	var ln net.Listener
	err := n.Do(func() (err error) {
		ln, err = lc.Listen(ctx, network, addr)
		return err
	})
	return ln, err
}

// ListenPacket listens for UDP inside the namespace.
func (n *Namespace) ListenPacket(ctx context.Context, network, addr string) (*net.UDPConn, error) {
	var conn *net.UDPConn
	err := n.Do(func() error {
		pc, err := (&net.ListenConfig{}).ListenPacket(ctx, network, addr)
		if err != nil {
			return err
		}
		var ok bool
		if conn, ok = pc.(*net.UDPConn); !ok {
			_ = pc.Close()
			return fmt.Errorf("network %q: want udp, udp4 or udp6", network)
		}
		return nil
	})
	return conn, err
}

// inode identifies the namespace on this machine while it exists.
func (n *Namespace) inode() (nsID, error) {
	fd, err := n.dup()
	if err != nil {
		return nsID{}, err
	}
	defer func() { _ = unix.Close(fd) }()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nsID{}, err
	}
	return nsID{st.Dev, st.Ino}, nil
}

// nsID is what stat(2) says of a namespace file.
type nsID struct{ dev, ino uint64 }
