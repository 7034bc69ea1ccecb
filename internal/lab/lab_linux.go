package lab

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Lab is a running lab. It is safe for concurrent use.
type Lab struct {
	spec    Spec // as Up got it, filled in; Pods and Services are what Up started with
	dir     string
	lock    *os.File // nil if another process owns the lab
	down    bool
	outside *Namespace
	nodes   []*Node

	mu       sync.Mutex
	pods     map[string]*Pod // by namespace/name
	services map[string]*ServiceSpec
	closers  []io.Closer // servers of hosts and nodes, sniffers
	zone     *zone
	certs    *certSource

	natMu sync.Mutex // held while NAT rules are made from services and pods
}

// Node is a node of the lab and its namespace.
type Node struct {
	*Namespace
	Spec NodeSpec
	// IPs are the node's IPv4 and IPv6 address on the wire.
	IPs []netip.Addr
	// Gateways are the addresses that its pods route through.
	Gateways []netip.Addr

	nl *netlink.Handle
}

// WireInterface is the node's interface towards the outside.
func (n *Node) WireInterface() string { return wireInterface }

// Pod is a running pod and its namespace. Its interface there is eth0.
type Pod struct {
	*Namespace
	Spec PodSpec
	UID  string
	IPs  []netip.Addr
	Node *Node
	// HostInterface and HostIfindex are the veth's host side, in the node's namespace.
	HostInterface string
	HostIfindex   int

	lab     string
	cni     CNI
	closers []io.Closer
}

// IP returns the pod's address of a's family: IPv4 for an IPv4 address.
func (p *Pod) IP(a netip.Addr) netip.Addr {
	for _, ip := range p.IPs {
		if ip.Is4() == a.Is4() {
			return ip
		}
	}
	return netip.Addr{}
}

// Up builds the lab that spec describes and gives it to this process: when the
// process ends, however it ends, the lab is stale and the next Up of any lab
// removes it, unless spec.Persistent. It returns ErrInUse if a live process
// owns a lab of that name. On any other error nothing is left.
func Up(ctx context.Context, spec Spec) (*Lab, error) {
	if err := spec.normalise(); err != nil {
		return nil, fmt.Errorf("lab spec: %w", err)
	}
	if err := ReapStale(ctx); err != nil {
		return nil, err
	}
	dir := filepath.Join(Root, spec.Name)
	lock, err := waitForDir(ctx, dir)
	if err != nil {
		return nil, fmt.Errorf("lab %s: %w", spec.Name, err)
	}
	if err := sweep(ctx, dir); err != nil {
		_ = lock.Close()
		return nil, fmt.Errorf("lab %s: remove what an earlier one left: %w", spec.Name, err)
	}
	l := newLab(spec, dir)
	l.lock = lock
	if err := l.build(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("lab %s: %w", spec.Name, err), l.Down())
	}
	return l, nil
}

func newLab(spec Spec, dir string) *Lab {
	l := &Lab{
		spec: spec, dir: dir,
		pods: map[string]*Pod{}, services: map[string]*ServiceSpec{},
		certs: &certSource{},
	}
	l.zone = newZone(&l.spec)
	return l
}

// newNode describes node i, counted from 0, without its namespace.
func (l *Lab) newNode(i int, spec NodeSpec) *Node {
	return &Node{
		Namespace: newNamespace(spec.Name, l.netnsPath("node."+spec.Name)),
		Spec:      spec, IPs: nodeIPs(i + 1), Gateways: gateways(spec.PodCIDRs),
	}
}

func (l *Lab) build(ctx context.Context) error {
	for _, d := range []string{"netns", "pods", "services"} {
		if err := os.MkdirAll(filepath.Join(l.dir, d), 0o750); err != nil {
			return err
		}
	}
	if err := l.saveSpec(); err != nil {
		return err
	}
	l.outside = newNamespace("outside", l.netnsPath("outside"))
	if err := l.outside.create(); err != nil {
		return err
	}
	if err := l.makeOutside(); err != nil {
		return fmt.Errorf("outside: %w", err)
	}
	for i, spec := range l.spec.Nodes {
		n := l.newNode(i, spec)
		l.nodes = append(l.nodes, n)
		if err := n.create(); err != nil {
			return err
		}
		if err := l.makeNode(n); err != nil {
			return fmt.Errorf("node %s: %w", spec.Name, err)
		}
	}
	if err := l.connectNodes(); err != nil {
		return err
	}
	for i := range l.spec.Services {
		if err := l.placeService(&l.spec.Services[i]); err != nil {
			return err
		}
	}
	if !l.spec.NoServers {
		if err := l.startServers(ctx); err != nil {
			return err
		}
	}
	for i := range l.spec.Pods {
		if _, err := l.addPod(ctx, l.spec.Pods[i], AddPodOptions{}); err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	if err := l.applyServices(); err != nil {
		return err
	}
	return l.limitConntrack()
}

func (l *Lab) netnsPath(name string) string { return filepath.Join(l.dir, "netns", name) }

// Name returns the lab's name.
func (l *Lab) Name() string { return l.spec.Name }

// Dir returns the lab's own directory, which Down removes with everything in it.
func (l *Lab) Dir() string { return l.dir }

// Spec returns the lab's description with everything filled in. Pods and
// Services are those that it started with.
func (l *Lab) Spec() Spec { return l.spec }

// Outside returns the internet's namespace. Its bridge is called wire, with one
// port w-<node> per node; every host's address is on lo.
func (l *Lab) Outside() *Namespace { return l.outside }

// Nodes returns the nodes in the order of the Spec.
func (l *Lab) Nodes() []*Node { return slices.Clone(l.nodes) }

// Node returns a node by name; an empty name means the first.
func (l *Lab) Node(name string) (*Node, error) {
	for _, n := range l.nodes {
		if name == "" || n.Spec.Name == name {
			return n, nil
		}
	}
	return nil, fmt.Errorf("node %q: %w", name, ErrNotFound)
}

// Pod returns a pod by "namespace/name".
func (l *Lab) Pod(key string) (*Pod, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if p := l.pods[key]; p != nil {
		return p, nil
	}
	return nil, fmt.Errorf("pod %q: %w", key, ErrNotFound)
}

// Pods returns the pods, by namespace and name.
func (l *Lab) Pods() []*Pod {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make([]*Pod, 0, len(l.pods))
	for _, p := range l.pods {
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b *Pod) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// Find returns the namespace of "outside", a node, or a pod as "namespace/name".
func (l *Lab) Find(target string) (*Namespace, error) {
	if target == "outside" {
		return l.outside, nil
	}
	if strings.Contains(target, "/") {
		p, err := l.Pod(target)
		if err != nil {
			return nil, err
		}
		return p.Namespace, nil
	}
	if target == "" {
		return nil, fmt.Errorf("target %q: %w", target, ErrNotFound)
	}
	n, err := l.Node(target)
	if err != nil {
		return nil, err
	}
	return n.Namespace, nil
}

// AddPodOptions are the moments of a pod's start that a test can act in. Each
// function may be nil; an error from one ends the start and removes the pod.
type AddPodOptions struct {
	// BeforeLink runs when the namespace exists and has no link yet: a process
	// started here sends as early as any can.
	BeforeLink func(*Pod) error
	// Chained runs when the link is up and before any server of the pod: the
	// place of a chained CNI plugin.
	Chained func(*Pod) error
}

// AddPod starts a pod. Services that select it lead to it when AddPod returns.
func (l *Lab) AddPod(ctx context.Context, spec PodSpec, opts AddPodOptions) (*Pod, error) {
	if err := spec.normalise(&l.spec); err != nil {
		return nil, fmt.Errorf("pod spec: %w", err)
	}
	p, err := l.addPod(ctx, spec, opts)
	if err != nil {
		return nil, err
	}
	if l.selected(p) {
		if err := l.applyServices(); err != nil {
			return nil, errors.Join(err, l.DeletePod(p.Name))
		}
	}
	return p, nil
}

func (l *Lab) addPod(ctx context.Context, spec PodSpec, opts AddPodOptions) (*Pod, error) {
	p, err := l.claim(spec)
	if err != nil {
		return nil, err
	}
	if err := l.startPod(ctx, p, opts); err != nil {
		return nil, errors.Join(fmt.Errorf("pod %s: %w", spec.Key(), err), l.removePods([]*Pod{p}))
	}
	return p, nil
}

// claim reserves the pod's name and addresses.
func (l *Lab) claim(spec PodSpec) (*Pod, error) {
	node, err := l.Node(spec.Node)
	if err != nil {
		return nil, err
	}
	if l.lock == nil {
		// Another process may have added pods since.
		if err := l.reload(); err != nil {
			return nil, err
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.pods[spec.Key()] != nil {
		return nil, fmt.Errorf("pod %s: %w", spec.Key(), os.ErrExist)
	}
	used := map[netip.Addr]bool{}
	for _, p := range l.pods {
		for _, a := range p.IPs {
			used[a] = true
		}
	}
	ips := slices.Clone(spec.IPs)
	if len(ips) == 0 {
		if ips, err = allocate(node.Spec.PodCIDRs, used); err != nil {
			return nil, fmt.Errorf("pod %s: %w", spec.Key(), err)
		}
	}
	path := l.netnsPath("pod." + spec.Namespace + "." + spec.Name)
	p := &Pod{
		Namespace: newNamespace(spec.Key(), path),
		Spec:      spec, UID: newUID(), IPs: ips, Node: node,
		HostInterface: hostVeth(spec.Namespace, spec.Name), lab: l.spec.Name, cni: l.spec.CNI,
	}
	l.pods[spec.Key()] = p
	return p, nil
}

func (l *Lab) startPod(ctx context.Context, p *Pod, opts AddPodOptions) error {
	if err := p.create(); err != nil {
		return err
	}
	if err := p.setUp(podSettings); err != nil {
		return err
	}
	if opts.BeforeLink != nil {
		if err := opts.BeforeLink(p); err != nil {
			return err
		}
	}
	if err := l.connectPod(p); err != nil {
		return err
	}
	if opts.Chained != nil {
		if err := opts.Chained(p); err != nil {
			return err
		}
	}
	if err := l.savePod(p); err != nil {
		return err
	}
	if l.spec.NoServers {
		return nil
	}
	return l.startPodServers(ctx, p)
}

// DeletePod stops a pod: its servers, its link, its processes and its
// namespace. Its addresses are free when it returns.
func (l *Lab) DeletePod(key string) error { return l.DeletePods(key) }

// DeletePods is DeletePod for many at once: the kernel takes some 40 ms to
// remove a link, and no longer to remove many together.
func (l *Lab) DeletePods(keys ...string) error {
	pods := make([]*Pod, len(keys))
	affected := false
	for i, key := range keys {
		p, err := l.Pod(key)
		if err != nil {
			return err
		}
		pods[i] = p
		affected = affected || l.selected(p)
	}
	if err := l.removePods(pods); err != nil {
		return fmt.Errorf("delete pods: %w", err)
	}
	if affected {
		return l.applyServices()
	}
	return nil
}

func (l *Lab) removePods(pods []*Pod) error {
	l.mu.Lock()
	var closers []io.Closer
	for _, p := range pods {
		closers = append(closers, p.closers...)
		p.closers = nil
	}
	l.mu.Unlock()
	var errs []error
	for _, c := range closers {
		errs = append(errs, c.Close())
	}
	inside := map[nsID]bool{}
	links := map[*Node][]string{}
	for _, p := range pods {
		if id, err := p.inode(); err == nil {
			inside[id] = true
		}
		links[p.Node] = append(links[p.Node], p.HostInterface)
	}
	if len(inside) > 0 {
		errs = append(errs, killInside(inside))
	}
	for n, names := range links {
		errs = append(errs, n.deleteLinks(names))
	}
	for _, p := range pods {
		p.close()
		errs = append(errs, unmount(p.Path))
		for _, f := range []string{p.Path, l.podFile(p)} {
			if err := os.Remove(f); err != nil && !errors.Is(err, os.ErrNotExist) {
				errs = append(errs, err)
			}
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range pods {
		if l.pods[p.Spec.Key()] == p {
			delete(l.pods, p.Spec.Key())
		}
	}
	return errors.Join(errs...)
}

// own makes Down close c.
func (l *Lab) own(c io.Closer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closers = append(l.closers, c)
}

// disown undoes own for a closer that is closed already.
func (l *Lab) disown(c io.Closer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closers = slices.DeleteFunc(l.closers, func(o io.Closer) bool { return o == c })
}

// Close ends this process's part in the lab and leaves the lab as it is:
// servers and sniffers of this process stop, descriptors are closed, and if
// this process owned the lab, nobody does now.
func (l *Lab) Close() error {
	err := l.release()
	if l.lock != nil {
		err = errors.Join(err, l.lock.Close())
		l.lock = nil
	}
	return err
}

// release closes everything but the lock.
func (l *Lab) release() error {
	l.mu.Lock()
	closers := l.closers
	l.closers = nil
	for _, p := range l.pods {
		closers = append(closers, p.closers...)
		p.closers = nil
	}
	l.mu.Unlock()
	var errs []error
	for _, c := range slices.Backward(closers) {
		errs = append(errs, c.Close())
	}
	for _, p := range l.Pods() {
		p.close()
	}
	for _, n := range l.nodes {
		if n.nl != nil {
			n.nl.Close()
		}
		n.close()
	}
	if l.outside != nil {
		l.outside.close()
	}
	return errors.Join(errs...)
}

// Down removes the lab: its servers, every process inside one of its
// namespaces, its mounts and its directory. Only the owner can; others use
// Cleanup. Links and rules go with the namespaces, which the kernel takes apart
// in its own time, moments later.
//
// Down of a lab that is down is nothing.
func (l *Lab) Down() error {
	if l.down {
		return nil
	}
	if l.lock == nil {
		return fmt.Errorf("lab %s: down by a process that does not own it: %w", l.spec.Name, ErrInUse)
	}
	err := l.release()
	err = errors.Join(err, sweep(context.Background(), l.dir), removeDir(l.dir), l.lock.Close())
	l.lock, l.down = nil, true
	return err
}

// BPFFS returns a directory of the lab with a BPF file system mounted on it,
// which Down unmounts. node keeps the nodes' pins apart.
func (l *Lab) BPFFS(node string) (string, error) {
	dir := filepath.Join(l.dir, "bpf")
	if err := EnsureBPFFS(dir); err != nil {
		return "", err
	}
	sub := filepath.Join(dir, node)
	return sub, os.MkdirAll(sub, 0o700)
}

// EnsureBPFFS mounts a BPF file system at dir unless there is one.
func EnsureBPFFS(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("statfs %s: %w", dir, err)
	}
	if st.Type == unix.BPF_FS_MAGIC {
		return nil
	}
	if err := unix.Mount("bpf", dir, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700"); err != nil {
		return fmt.Errorf("mount bpf at %s: %w", dir, err)
	}
	return nil
}
