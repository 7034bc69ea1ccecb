package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"

	"github.com/postern-dev/postern/internal/control"
	"github.com/postern-dev/postern/internal/datapath"
	"github.com/postern-dev/postern/internal/datapath/mapstate"
	"github.com/postern-dev/postern/internal/kube"
	"github.com/postern-dev/postern/internal/manifests"
	"github.com/postern-dev/postern/internal/policy"
)

// Config is what an agent needs to know.
type Config struct {
	// Node is this node's name: pods whose nodeName is it, or empty, are ours.
	Node string
	// Manifests is the directory to enforce.
	Manifests string
	// Socket is the control socket's path; StateDir keeps names over restarts.
	Socket, StateDir string
	// Metrics, if not empty, is a TCP address that serves /metrics alone.
	Metrics  string
	Datapath datapath.Config
	// IPv4Options judges packets with IPv4 options other than source routes by
	// their policy; without it they are dropped.
	IPv4Options bool
	Version     string
	// Records is how many flow records are kept in memory.
	Records int
	// Now is the clock.
	Now func() time.Time
	Log *slog.Logger
}

// Agent is a running node daemon. Its fields belong to the loop.
type Agent struct {
	cfg     Config
	started time.Time
	dp      *datapath.Datapath
	names   *nameLog
	memory  *memory
	records *recordRing
	work    chan func()

	compiler *policy.Compiler
	snapshot *policy.Snapshot
	findings []kube.Finding
	bindings map[policy.PodKey]manifests.Binding
	// manifestNodes are the Node objects as written; nodeAddrs this node's addresses as last seen.
	manifestNodes []policy.Node
	nodeAddrs     []netip.Addr
	synced        bool // the manifests have been read

	links     map[manifests.Binding]resolved // since the last change of an interface
	endpoints map[policy.PodKey]*podEndpoint
	// orphans are the interfaces that have lost their pod and are quarantined, by ifindex.
	orphans  map[int]orphan
	rulesets map[policy.PodKey][2]string
	content  map[string]*policy.Ruleset // by ruleset ID
	addrs    map[netip.Addr]identity
	podAddrs map[policy.PodKey][]netip.Addr // those in addrs
	services map[netip.AddrPort]identity
	problems map[string]control.Problem // of the agent itself, by what they are about
	told     *told                      // nil until the first revision is enforced
	clock    func() time.Duration
}

// podEndpoint is a pod of this node.
type podEndpoint struct {
	key     policy.PodKey
	uid     string
	ifindex int // 0: no interface
	state   string
	message string
	// audited: the audit set the failure, so it may clear it.
	audited bool
	// holder has the interface that this pod claims, too; zero if none has.
	holder policy.PodKey
}

// orphan is an interface that lost its pod.
type orphan struct {
	name string
	pod  podName // the last one; zero if it is not known
}

// States of an endpoint.
const (
	stateEnforced    = "enforced"
	stateFailed      = "failed"
	stateQuarantined = "quarantined"
	stateNotCovered  = "not-covered"
)

// identity is what an address belongs to.
type identity struct{ kind, namespace, name string }

// Run enforces until ctx is done; it then returns nil and leaves everything in
// the kernel in force.
func Run(ctx context.Context, cfg Config) error {
	if err := alone(cfg.Socket); err != nil {
		return err // before anything in the kernel is touched
	}
	cfg.Log.Info("posternd starts", "version", cfg.Version, "node", cfg.Node, "manifests", cfg.Manifests, "socket", cfg.Socket)
	a := &Agent{
		cfg: cfg, started: cfg.Now(), work: make(chan func()), records: newRecordRing(max(cfg.Records, 1024)),
		links:     map[manifests.Binding]resolved{},
		endpoints: map[policy.PodKey]*podEndpoint{}, rulesets: map[policy.PodKey][2]string{}, content: map[string]*policy.Ruleset{},
		problems: map[string]control.Problem{}, clock: bootClock, memory: newMemory(),
	}
	a.compiler = policy.NewCompiler(a.local)
	var err error
	if a.names, err = openNameLog(cfg.StateDir); err != nil {
		return err
	}
	if a.dp, err = datapath.Open(cfg.Datapath, a.names.ruleID); err != nil {
		return errors.Join(err, a.names.close())
	}
	if err = a.names.outlive(cfg.Datapath.PinDir, len(a.dp.Endpoints()) > 0); err == nil {
		err = a.run(ctx)
	}
	return errors.Join(err, a.dp.Close(), a.names.close())
}

func (a *Agent) run(ctx context.Context) error {
	if ok, err := a.dp.Deferrable(); !ok {
		a.problem("services", "warning", "Service", fmt.Sprintf("flows to Services whose backends get different verdicts are denied: the look after DNAT is not attached: %v", err))
	}
	listener, err := listen(a.cfg.Socket, a.cfg.StateDir)
	if err != nil {
		return err
	}
	events, err := a.dp.Events()
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return a.loop(ctx) })
	g.Go(func() error { return a.serve(ctx, listener) })
	g.Go(func() error { return a.readEvents(events) })
	g.Go(func() error {
		<-ctx.Done()
		return events.Close()
	})
	g.Go(func() error { return a.watchLinks(ctx) })
	g.Go(func() error {
		w := &manifests.Watcher{
			Store: manifests.NewStore(a.cfg.Manifests, manifests.Options{Kube: kube.Options{Protected: kube.DefaultProtected()}, Now: a.cfg.Now}),
			Log:   a.cfg.Log,
		}
		return w.Run(ctx, func(s *manifests.Store) { a.do(ctx, func() { a.update(s) }) })
	})
	if err := g.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// do runs f in the loop and waits for it; it reports false if ctx ended first.
func (a *Agent) do(ctx context.Context, f func()) bool {
	done := make(chan struct{})
	select {
	case a.work <- func() { defer close(done); f() }:
	case <-ctx.Done():
		return false
	}
	select {
	case <-done:
		return true
	case <-ctx.Done():
		return false
	}
}

// audit intervals.
const (
	auditEvery   = time.Second
	collectEvery = 5 * time.Second
)

func (a *Agent) loop(ctx context.Context) error {
	audit := time.NewTicker(auditEvery)
	defer audit.Stop()
	collect := time.NewTicker(collectEvery)
	defer collect.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case f := <-a.work:
			f()
		case <-audit.C:
			if a.synced {
				a.audit()
				a.report()
			}
		case <-collect.C:
			a.collect()
		}
	}
}

// local reports whether a pod is this node's to enforce.
func (a *Agent) local(p *policy.Pod) bool { return p.Node == a.cfg.Node || p.Node == "" }

// problem notes or, with an empty message, clears what is wrong with one thing.
func (a *Agent) problem(about, severity, object, message string) {
	if message == "" {
		delete(a.problems, about)
		return
	}
	if a.problems[about].Message != message {
		a.cfg.Log.Warn("problem", "object", object, "message", message)
	}
	a.problems[about] = control.Problem{Severity: severity, Object: object, Message: message}
}

// update takes over what changed in the manifests.
func (a *Agent) update(s *manifests.Store) {
	changes := s.Flush()
	a.snapshot = s.Snapshot()
	a.manifestNodes = a.snapshot.Nodes
	renamed, addrs := a.renamed(&changes), a.nodeAddrs
	a.ownNode(&changes)
	a.findings = s.Findings()
	a.bindings = map[policy.PodKey]manifests.Binding{}
	for _, b := range s.Bindings() {
		a.bindings[b.Pod] = b
	}
	if renamed || !slices.Equal(addrs, a.nodeAddrs) {
		a.index()
	}
	a.apply(changes)
	a.synced = true
	a.reconcile()
	a.report()
	a.memory.tidy()
}

// ownNode gives this node's object all addresses of the node: probes come from
// the address that is nearest to the pod, and a service behind any of them is
// the node's. Without a Node object one is made up.
func (a *Agent) ownNode(changes *policy.Changes) {
	local, err := localAddrs()
	a.note("addresses", "error", "node", err)
	if err != nil {
		return
	}
	a.nodeAddrs = local
	nodes := slices.Clone(a.manifestNodes)
	i := slices.IndexFunc(nodes, func(n policy.Node) bool { return n.Name == a.cfg.Node })
	if i < 0 {
		nodes = append(nodes, policy.Node{Name: a.cfg.Node})
		i = len(nodes) - 1
	}
	for _, ip := range local {
		if !slices.Contains(nodes[i].IPs, ip) {
			nodes[i].IPs = append(slices.Clone(nodes[i].IPs), ip)
		}
	}
	a.snapshot.Nodes = nodes
	changes.NodesDeleted = slices.DeleteFunc(changes.NodesDeleted, func(n string) bool { return n == a.cfg.Node })
	changes.Nodes = append(slices.DeleteFunc(slices.Clone(changes.Nodes), func(n policy.Node) bool { return n.Name == a.cfg.Node }), nodes[i])
}

// apply compiles changes and makes them real.
func (a *Agent) apply(changes policy.Changes) {
	delta, err := a.compiler.Apply(changes)
	a.note("compile", "error", "policies", err)
	maps.Copy(a.content, delta.RulesetsAdded)
	maps.Copy(a.rulesets, delta.Endpoints)
	for _, key := range delta.EndpointsGone {
		delete(a.rulesets, key)
	}
	u := mapstate.Update{
		Sets: delta.SetsChanged, RulesetsAdded: delta.RulesetsAdded,
		RulesetsRemoved: delta.RulesetsRemoved, SetsRemoved: delta.SetsRemoved,
	}
	if delta.ServicesChanged || !a.synced {
		u.Topology = &mapstate.Topology{Services: a.snapshot.Services, Nodes: a.snapshot.Nodes}
	}
	bindings := map[int]datapath.Binding{}
	for key, ep := range a.endpoints {
		if _, ok := a.rulesets[key]; ok && ep.ifindex != 0 {
			bindings[ep.ifindex] = a.binding(key)
		}
	}
	if !a.synced {
		// What a former agent left: bind it in the same revision (A1).
		adopted := map[int]bool{}
		for _, i := range a.dp.Endpoints() {
			adopted[i] = true
		}
		for ifindex, key := range a.holders(a.localPods()) {
			if _, ok := a.rulesets[key]; ok && adopted[ifindex] {
				bindings[ifindex] = a.binding(key)
			}
		}
	}
	a.note("apply", "error", "datapath", a.dp.Apply(u, bindings))
	for _, id := range delta.RulesetsRemoved {
		delete(a.content, id)
	}
	a.saveNames()
}

// note keeps err as a problem, or clears it.
func (a *Agent) note(about, severity, object string, err error) {
	if err == nil {
		a.problem(about, "", "", "")
		return
	}
	a.problem(about, severity, object, err.Error())
}

func (a *Agent) binding(key policy.PodKey) datapath.Binding {
	b := datapath.Binding{Rulesets: a.rulesets[key]}
	for _, dir := range policy.Directions {
		b.Governed[dir] = a.isGoverned(key, dir)
	}
	return b
}

// isGoverned reports whether some policy governs a direction of a pod.
func (a *Agent) isGoverned(key policy.PodKey, dir policy.Direction) bool {
	rs := a.content[a.rulesets[key][dir]]
	return rs != nil && rs.Selected
}

func (a *Agent) localPods() map[policy.PodKey]*policy.Pod {
	pods := map[policy.PodKey]*policy.Pod{}
	for i := range a.snapshot.Pods {
		if p := &a.snapshot.Pods[i]; a.local(p) {
			pods[p.Key()] = p
		}
	}
	return pods
}

// reconcile brings the armed interfaces in line with the pods and the links.
func (a *Agent) reconcile() {
	pods := a.localPods()
	owned := map[int]policy.PodKey{}
	var specs []datapath.EndpointSpec
	for key, pod := range pods {
		if b, ok := a.bindings[key]; ok && !pod.HostNetwork {
			if r := a.resolve(b); r.err == nil && a.dp.Generation(r.spec.Ifindex) == 0 {
				r.spec.Addrs = slices.Clone(pod.IPs)
				specs = append(specs, r.spec)
			}
		}
	}
	end := a.dp.Expedite(len(specs))
	defer func() { a.note("expedite", "error", "node", end()) }()
	a.note("prepare", "error", "datapath", a.dp.Prepare(specs))
	holders := a.holders(pods)
	for _, key := range sortedPods(pods) {
		a.reconcilePod(key, pods[key], holders, owned)
		if a.dp.SeedDue() {
			a.seed(true)
		}
	}
	a.seed(false)
	for key := range a.endpoints {
		if _, ok := pods[key]; !ok {
			delete(a.endpoints, key)
		}
	}
	// Interfaces without a pod: denied while they exist, forgotten when not (A2).
	a.orphans = map[int]orphan{}
	for _, ifindex := range a.dp.Endpoints() {
		if _, ok := owned[ifindex]; ok {
			continue
		}
		about := fmt.Sprintf("interface-%d", ifindex)
		link, err := netlink.LinkByIndex(ifindex)
		if err != nil {
			a.note(about, "error", "interface", a.dp.Disarm(ifindex))
			continue
		}
		a.orphans[ifindex] = orphan{link.Attrs().Name, a.names.pods[a.dp.Generation(ifindex)]}
		a.note(about, "error", "interface", a.dp.Quarantine(ifindex))
	}
	a.saveNames()
}

// saveNames writes names that there was no room for before, and notes if there still is none.
func (a *Agent) saveNames() {
	a.names.flush()
	a.note("names", "warning", "state", errors.Join(a.names.err, a.names.keep()))
}

// seed keeps connections from before their pods were armed.
func (a *Agent) seed(more bool) {
	if err := a.dp.Seed(more); err != nil {
		a.cfg.Log.Warn("connections from before a pod was armed may be cut", "error", err)
	}
}

// holders says which pod has an interface that several claim, by ifindex: they
// may have written it differently. The one that it was armed for keeps it.
func (a *Agent) holders(pods map[policy.PodKey]*policy.Pod) map[int]policy.PodKey {
	out := map[int]policy.PodKey{}
	for _, key := range sortedPods(pods) {
		b, bound := a.bindings[key]
		if !bound || pods[key].HostNetwork {
			continue
		}
		r := a.resolve(b)
		if r.err != nil {
			continue
		}
		had := a.names.pods[a.dp.Generation(r.spec.Ifindex)] == podName{key.Namespace, key.Name, pods[key].UID}
		if _, taken := out[r.spec.Ifindex]; !taken || had {
			out[r.spec.Ifindex] = key
		}
	}
	return out
}

// fail notes why a pod is not enforced, and logs what is new.
func (a *Agent) fail(ep *podEndpoint, message string) {
	if ep.message != message {
		a.cfg.Log.Warn("pod is not enforced", "pod", ep.key.String(), "message", message)
	}
	ep.state, ep.message, ep.audited = stateFailed, message, false
}

func (a *Agent) reconcilePod(key policy.PodKey, pod *policy.Pod, holders, owned map[int]policy.PodKey) {
	ep := a.endpoints[key]
	if ep == nil || ep.uid != pod.UID {
		ep = &podEndpoint{key: key, uid: pod.UID}
		a.endpoints[key] = ep
	}
	ep.holder = policy.PodKey{}
	b, bound := a.bindings[key]
	switch {
	case pod.HostNetwork:
		ep.state, ep.message, ep.ifindex = stateNotCovered, "the pod uses the node's network; policies do not reach it", 0
		return
	case !bound:
		ep.state, ep.ifindex = stateNotCovered, 0
		ep.message = fmt.Sprintf("no interface: annotate the Pod with %s or %s", manifests.AnnotationInterface, manifests.AnnotationNetns)
		return
	}
	r := a.resolve(b)
	if r.err != nil {
		message := r.err.Error()
		if holder, taken := holders[ep.ifindex]; taken && holder != key {
			ep.ifindex = 0
		}
		if ep.ifindex != 0 {
			owned[ep.ifindex] = key // keep what is armed: the link may come back
			if name := a.dp.Interface(ep.ifindex); b.Interface != "" && name != "" && name != b.Interface {
				message += fmt.Sprintf("; the pod's is still enforced and now called %s: correct the annotation", name)
			}
		}
		a.fail(ep, message)
		if errors.Is(r.err, errNotCovered) {
			ep.state = stateNotCovered
		}
		return
	}
	spec := r.spec
	spec.Addrs = slices.Clone(pod.IPs)
	if holder := holders[spec.Ifindex]; holder != key {
		ep.ifindex = 0 // what is verified there is the other's
		ep.holder = holder
		a.fail(ep, fmt.Sprintf("interface %s is already pod %s's: correct one of the annotations; this pod is not enforced", spec.Interface, holder))
		return
	}
	owned[spec.Ifindex] = key
	a.arm(ep, pod, spec, r.side.extra)
}

// arm brings the interface of a pod in line with its ruleset.
func (a *Agent) arm(ep *podEndpoint, pod *policy.Pod, spec datapath.EndpointSpec, extra string) {
	key := ep.key
	if _, ok := a.rulesets[key]; !ok {
		a.fail(ep, "no ruleset was compiled; see problems")
		return
	}
	// A new pod behind an old interface inherits nothing (I3), and so does one behind an
	// interface whose pod is not known: an agent ended that could not save its name.
	name := podName{key.Namespace, key.Name, pod.UID}
	if gen := a.dp.Generation(spec.Ifindex); gen != 0 && a.names.pods[gen] != name {
		if err := a.dp.Renew(spec.Ifindex); err != nil {
			a.fail(ep, err.Error())
			return
		}
	}
	ep.ifindex = spec.Ifindex
	if ep.state == stateEnforced && extra == "" && a.dp.Verified(spec, a.binding(key)) {
		return // the audit looks at it once in a while
	}
	err := a.dp.Arm(spec, a.binding(key))
	if gen := a.dp.Generation(spec.Ifindex); gen != 0 {
		a.names.setPod(gen, name) // if it was armed in part only, too: the next try goes on with it
	}
	if err != nil {
		a.fail(ep, err.Error())
		return
	}
	if err := a.dp.Verify(spec.Ifindex); err != nil {
		a.fail(ep, err.Error())
		return
	}
	ep.state, ep.message = stateEnforced, ""
	if extra != "" {
		ep.state = stateNotCovered
		ep.message = fmt.Sprintf("interface %s is enforced, but the pod has others that are not: %s", spec.Interface, extra)
	}
}

// audit reads the kernel back and mends what somebody else broke.
func (a *Agent) audit() {
	a.addressesChanged()
	if next := a.compiler.NextExpiry(); !next.IsZero() && !a.cfg.Now().Before(next) {
		a.apply(policy.Changes{Time: a.cfg.Now()})
	}
	a.saveNames()
	mended, err := a.dp.Audit()
	a.note("audit", "error", "datapath", a.unpinned(err))
	for _, m := range mended {
		a.cfg.Log.Warn("mended", "what", m)
	}
	if len(mended) > 0 {
		a.reconcile() // what failed for want of it
	}
	for _, ep := range a.endpoints {
		if ep.ifindex == 0 || ep.state == stateNotCovered {
			continue
		}
		switch err := a.dp.Verify(ep.ifindex); {
		case ep.state == stateFailed && !ep.audited: // reconcile's to clear
		case err != nil:
			ep.state, ep.message, ep.audited = stateFailed, err.Error(), true
		case ep.audited:
			ep.state, ep.message, ep.audited = stateEnforced, "", false
		}
	}
	if a.lookAgain() {
		a.reconcile()
	}
}

// unpinned adds to an error of the audit what it means that the pins are gone.
func (a *Agent) unpinned(err error) error {
	dir := filepath.Join(a.cfg.Datapath.PinDir, "links")
	if _, gone := os.Stat(dir); err == nil || !errors.Is(gone, fs.ErrNotExist) {
		return err
	}
	return fmt.Errorf("%s is gone: enforcement goes on while this agent runs, and ends with it. "+
		"Then all that leaves the pods is dropped, and what comes to them is not checked. "+
		"See that a bpffs is mounted there and that nothing removes its files: the agent then pins everything anew by itself\n%w", dir, err)
}

// lookAgain looks at what no event tells of: the interfaces in pods' network
// namespaces. It reports whether some pod has to be reconciled, which those are
// too that failed before.
func (a *Agent) lookAgain() bool {
	again := false
	for key, ep := range a.endpoints {
		b, bound := a.bindings[key]
		if !bound {
			continue
		}
		r, known := a.links[b]
		switch {
		case ep.state == stateFailed && !ep.audited:
			if r.err != nil {
				delete(a.links, b)
			}
			again = true
		case known && r.err == nil:
			if side, err := lookInto(r.side.nsid, r.side.index); err != nil || side != r.side {
				delete(a.links, b)
				again = true
			}
		}
	}
	return again
}

// collect removes expired flows, so that their last counters are told.
func (a *Agent) collect() {
	for _, ifindex := range a.dp.Endpoints() {
		if _, err := a.dp.CollectFlows(ifindex); err != nil {
			a.problem("collect", "warning", "datapath", err.Error())
			return
		}
	}
	a.problem("collect", "", "", "")
}

// addressesChanged applies a change of the node's own addresses.
func (a *Agent) addressesChanged() {
	local, err := localAddrs()
	if err != nil || slices.Equal(local, a.nodeAddrs) {
		a.note("addresses", "error", "node", err)
		return
	}
	changes := policy.Changes{}
	a.ownNode(&changes)
	a.index()
	a.apply(changes)
}

// resolve remembers what it found until an interface comes, goes or changes.
func (a *Agent) resolve(b manifests.Binding) resolved {
	if r, ok := a.links[b]; ok {
		return r
	}
	var r resolved
	r.spec, r.side, r.err = resolve(b)
	r.spec.IPOptions = a.cfg.IPv4Options
	a.links[b] = r
	return r
}

// watchLinks reconciles when interfaces come and go.
func (a *Agent) watchLinks(ctx context.Context) error {
	updates := make(chan netlink.LinkUpdate, 1024)
	done := make(chan struct{})
	if err := netlink.LinkSubscribe(updates, done); err != nil {
		return fmt.Errorf("watch interfaces: %w", err)
	}
	defer close(done)
	for {
		select {
		case <-ctx.Done():
			return nil
		case _, ok := <-updates:
			if !ok {
				return errors.New("watch interfaces: the subscription ended")
			}
			// Take what is there already: a pod's start is several updates.
			for drained := false; !drained; {
				select {
				case <-updates:
				default:
					drained = true
				}
			}
			a.do(ctx, func() {
				clear(a.links)
				mended, err := a.dp.FollowNames()
				a.note("interface names", "error", "datapath", err)
				for _, m := range mended {
					a.cfg.Log.Warn("mended", "what", m)
				}
				if a.synced {
					a.addressesChanged()
					a.reconcile()
					a.report()
				}
			})
		}
	}
}

func sortedPods(m map[policy.PodKey]*policy.Pod) []policy.PodKey {
	out := make([]policy.PodKey, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.SortFunc(out, func(a, b policy.PodKey) int {
		if a.Namespace != b.Namespace {
			if a.Namespace < b.Namespace {
				return -1
			}
			return 1
		}
		if a.Name < b.Name {
			return -1
		}
		return 1
	})
	return out
}
