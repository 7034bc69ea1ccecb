package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// podState is what a pod's file holds.
type podState struct {
	Spec          PodSpec      `json:"spec"`
	UID           string       `json:"uid"`
	IPs           []netip.Addr `json:"ips"`
	HostInterface string       `json:"hostInterface"`
	HostIfindex   int          `json:"hostIfindex"`
	Netns         string       `json:"netns"`
}

func (l *Lab) podFile(p *Pod) string {
	return filepath.Join(l.dir, "pods", p.Spec.Namespace+"_"+p.Spec.Name+".json")
}

func (l *Lab) savePod(p *Pod) error {
	return writeJSON(l.podFile(p), podState{
		Spec: p.Spec, UID: p.UID, IPs: p.IPs, HostInterface: p.HostInterface, HostIfindex: p.HostIfindex, Netns: p.Path,
	})
}

func (l *Lab) saveSpec() error { return writeJSON(filepath.Join(l.dir, "state.json"), l.spec) }

func (l *Lab) saveService(s *ServiceSpec) error {
	return writeJSON(filepath.Join(l.dir, "services", s.Namespace+"_"+s.Name+".json"), s)
}

// writeJSON replaces a file in one step.
func writeJSON(path string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(path, b)
}

func writeFile(path string, b []byte) error {
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

func readJSON(path string, v any) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// Open returns a running lab that another process owns, or nobody: everything
// works but Down. Close it after use.
func Open(name string) (*Lab, error) {
	if !labName.MatchString(name) {
		return nil, fmt.Errorf("lab %q: %w", name, ErrNotFound)
	}
	dir := filepath.Join(Root, name)
	var spec Spec
	if err := readJSON(filepath.Join(dir, "state.json"), &spec); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("lab %q: %w", name, ErrNotFound)
		}
		return nil, fmt.Errorf("lab %q: %w", name, err)
	}
	spec.NoServers = true // they are the owner's
	l := newLab(spec, dir)
	if err := l.attach(); err != nil {
		return nil, errors.Join(fmt.Errorf("lab %q: %w", name, err), l.Close())
	}
	return l, nil
}

// attach opens what the files say there is.
func (l *Lab) attach() error {
	l.outside = newNamespace("outside", l.netnsPath("outside"))
	if err := l.outside.open(); err != nil {
		return err
	}
	for i, spec := range l.spec.Nodes {
		n := l.newNode(i, spec)
		l.nodes = append(l.nodes, n)
		if err := n.open(); err != nil {
			return err
		}
		var err error
		if n.nl, err = n.Netlink(); err != nil {
			return err
		}
	}
	return l.reload()
}

// reload takes over pods and services that other processes added, changed or removed.
func (l *Lab) reload() error {
	files, err := filepath.Glob(filepath.Join(l.dir, "pods", "*.json"))
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	there := map[string]string{} // key to UID
	for _, f := range files {
		var st podState
		if err := readJSON(f, &st); err != nil {
			if errors.Is(err, os.ErrNotExist) {
				continue // removed meanwhile
			}
			return err
		}
		key := st.Spec.Key()
		there[key] = st.UID
		if old := l.pods[key]; old != nil && old.UID == st.UID {
			continue
		}
		i := slices.IndexFunc(l.nodes, func(n *Node) bool { return n.Spec.Name == st.Spec.Node })
		if i < 0 {
			return fmt.Errorf("pod %s: node %q: %w", key, st.Spec.Node, ErrNotFound)
		}
		ns := newNamespace(key, st.Netns)
		err := ns.open()
		if errors.Is(err, os.ErrNotExist) {
			delete(there, key)
			continue
		}
		if err != nil {
			return err
		}
		l.pods[key] = &Pod{
			Namespace: ns, Spec: st.Spec, UID: st.UID, IPs: st.IPs, Node: l.nodes[i],
			HostInterface: st.HostInterface, HostIfindex: st.HostIfindex,
			lab: l.spec.Name, cni: l.spec.CNI,
		}
	}
	for key, p := range l.pods {
		if there[key] == p.UID {
			continue
		}
		for _, c := range p.closers {
			_ = c.Close()
		}
		p.close()
		if _, ok := there[key]; !ok {
			delete(l.pods, key)
		}
	}
	files, err = filepath.Glob(filepath.Join(l.dir, "services", "*.json"))
	if err != nil {
		return err
	}
	for key := range l.services {
		l.zone.setService(key, nil)
	}
	clear(l.services)
	for _, f := range files {
		var s ServiceSpec
		if err := readJSON(f, &s); err != nil {
			return err
		}
		l.services[s.Key()] = &s
		l.zone.setService(s.Key(), s.ClusterIPs)
	}
	return nil
}

// List returns the names of the labs on this machine, stale ones included.
func List() ([]string, error) {
	entries, err := os.ReadDir(Root)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() && labName.MatchString(e.Name()) {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// Cleanup removes a lab that this process does not own, or what a killed
// process left of it. It stops the process that Detach started; if any other
// live process owns the lab it returns ErrInUse and removes nothing. A lab that
// does not exist is not an error.
func Cleanup(ctx context.Context, name string) error {
	if !labName.MatchString(name) {
		return fmt.Errorf("lab %q: %w", name, ErrNotFound)
	}
	dir := filepath.Join(Root, name)
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err := stopServer(ctx, dir); err != nil {
		return fmt.Errorf("lab %s: %w", name, err)
	}
	lock, err := waitForDir(ctx, dir)
	if err != nil {
		return fmt.Errorf("lab %s: %w", name, err)
	}
	defer func() { _ = lock.Close() }()
	if err := errors.Join(sweep(ctx, dir), removeDir(dir)); err != nil {
		return fmt.Errorf("lab %s: %w", name, err)
	}
	return nil
}

// ReapStale removes every lab whose process is gone, persistent ones excepted.
func ReapStale(ctx context.Context) error {
	names, err := List()
	if err != nil {
		return err
	}
	for _, name := range names {
		dir := filepath.Join(Root, name)
		var spec Spec
		err := readJSON(filepath.Join(dir, "state.json"), &spec)
		if err == nil && spec.Persistent {
			continue
		}
		lock, err := lockDir(dir)
		if err != nil {
			continue // somebody's
		}
		err = errors.Join(sweep(ctx, dir), removeDir(dir))
		_ = lock.Close()
		if err != nil {
			return fmt.Errorf("stale lab %s: %w", name, err)
		}
	}
	return nil
}

// lockPatience is how long Up and Cleanup wait for a lock: another process may
// hold it just to remove a stale lab.
var lockPatience = time.Second

// waitForDir is lockDir with patience.
func waitForDir(ctx context.Context, dir string) (*os.File, error) {
	const step = 20 * time.Millisecond
	for waited := time.Duration(0); ; waited += step {
		lock, err := lockDir(dir)
		if !errors.Is(err, ErrInUse) || waited >= lockPatience {
			return lock, err
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(err, ctx.Err())
		case <-time.After(step):
		}
	}
}

// lockDir makes dir if need be and locks it for this process. The kernel gives
// the lock up with the last copy of the descriptor (L3).
func lockDir(dir string) (*os.File, error) {
	path := filepath.Join(dir, "lock")
	for {
		if err := os.MkdirAll(dir, 0o750); err != nil {
			return nil, err
		}
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
		if errors.Is(err, os.ErrNotExist) {
			continue // the last owner removed the directory meanwhile
		}
		if err != nil {
			return nil, err
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			_ = f.Close()
			if errors.Is(err, unix.EWOULDBLOCK) {
				return nil, ErrInUse
			}
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		// The file that is locked must still be the one at path.
		var have, want unix.Stat_t
		if unix.Fstat(int(f.Fd()), &have) == nil && unix.Stat(path, &want) == nil && have.Ino == want.Ino {
			return f, nil
		}
		_ = f.Close()
	}
}

// sweep removes everything of a lab but its directory and lock: processes
// inside its namespaces, mounts, files. The caller holds the lock.
func sweep(ctx context.Context, dir string) error {
	mounts, err := mountsBelow(dir)
	if err != nil {
		return err
	}
	inside := map[nsID]bool{}
	for _, m := range mounts {
		var st unix.Stat_t
		var fs unix.Statfs_t
		if unix.Stat(m, &st) == nil && unix.Statfs(m, &fs) == nil && fs.Type == unix.NSFS_MAGIC {
			inside[nsID{st.Dev, st.Ino}] = true
		}
	}
	if len(inside) > 0 {
		if err := killInside(inside); err != nil {
			return err
		}
	}
	var errs []error
	for _, m := range slices.Backward(mounts) {
		errs = append(errs, unmount(m))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() != "lock" {
			errs = append(errs, os.RemoveAll(filepath.Join(dir, e.Name())))
		}
	}
	return errors.Join(errs...)
}

// removeDir removes the directory of a swept lab, and Root if that was the last.
func removeDir(dir string) error {
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	_ = os.Remove(Root) // fails if there are other labs
	return nil
}

// unmount detaches a mount; one that is gone is fine.
func unmount(path string) error {
	err := unix.Unmount(path, unix.MNT_DETACH)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	return nil
}

// mountsBelow returns the mount points below dir, in the order they were made.
// Source: proc_pid_mountinfo(5).
func mountsBelow(dir string) ([]string, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var out []string
	for line := range bytes.Lines(b) {
		fields := strings.Fields(string(line))
		if len(fields) < 5 {
			continue
		}
		// Our names need none of the escapes of this field.
		if strings.HasPrefix(fields[4], dir+"/") {
			out = append(out, fields[4])
		}
	}
	return out, nil
}
