package agent

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sys/unix"

	"github.com/postern-dev/postern/internal/control"
	"github.com/postern-dev/postern/internal/datapath"
	"github.com/postern-dev/postern/internal/kube"
	"github.com/postern-dev/postern/internal/policy"
)

// socketDirFile, in the state directory, has the path of the control socket's
// directory if an agent made it, so that RemoveSocket knows whose it is.
const socketDirFile = "socket-dir"

// alone fails if an agent answers at a control socket.
func alone(socket string) error {
	c, err := net.Dial("unix", socket) //nolint:noctx // a unix socket connects at once or not at all
	if err != nil {
		return nil // nobody is there
	}
	defer func() { _ = c.Close() }()
	who := "another agent is running on this node"
	if cred, err := peerCred(c); err == nil {
		who += fmt.Sprintf(", as process %d", cred.Pid)
	}
	return fmt.Errorf("%s: it answers at %s", who, socket)
}

// listen opens the control socket; one that a dead agent left is replaced.
func listen(path, stateDir string) (net.Listener, error) {
	dir := filepath.Dir(path)
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("control socket: %w", err)
		}
		// A full disk costs no more than an empty directory that outlives an uninstall.
		_ = os.WriteFile(filepath.Join(stateDir, socketDirFile), []byte(dir), 0o600)
	}
	if err := alone(path); err != nil {
		return nil, err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	old := unix.Umask(0o177)
	l, err := net.Listen("unix", path)
	unix.Umask(old)
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	return &rootListener{l}, nil
}

// RemoveSocket removes what an agent that has ended left of its control socket,
// with the directory if an agent made it and nothing else is in it.
func RemoveSocket(path, stateDir string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	dir := filepath.Dir(path)
	made, err := os.ReadFile(filepath.Join(stateDir, socketDirFile)) //nolint:gosec // the operator names the directory
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if string(made) != dir && path != control.DefaultSocket {
		return nil
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) {
		return err
	}
	return nil
}

// rootListener accepts connections of root's processes only, whatever the
// socket's mode has become.
type rootListener struct{ net.Listener }

func (l *rootListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if cred, err := peerCred(c); err == nil && cred.Uid == 0 {
			return c, nil
		}
		_ = c.Close()
	}
}

// peerCred says who connected, or who listens if c was dialled. Source: unix(7), SO_PEERCRED.
func peerCred(c net.Conn) (*unix.Ucred, error) {
	uc, ok := c.(*net.UnixConn)
	if !ok {
		return nil, errors.New("not a unix socket")
	}
	raw, err := uc.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return nil, err
	}
	return cred, credErr
}

func (a *Agent) serve(ctx context.Context, l net.Listener) error {
	reg := prometheus.NewRegistry()
	if err := reg.Register(&collector{a, ctx}); err != nil {
		return errors.Join(fmt.Errorf("metrics: %w", err), l.Close())
	}
	metrics := promhttp.HandlerFor(reg, promhttp.HandlerOpts{})
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", answer(ctx, a, a.status))
	mux.HandleFunc("GET /v1/endpoints", answer(ctx, a, a.listEndpoints))
	mux.HandleFunc("GET /v1/policies", answer(ctx, a, a.listPolicies))
	mux.Handle("GET /v1/flows", &flowStream{a.records, a.eventsLost, a.cfg.Now, lossEvery})
	mux.HandleFunc("POST /v1/explain", a.explain)
	mux.Handle("GET /metrics", metrics)
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second, BaseContext: func(net.Listener) context.Context { return ctx }}
	servers := []*http.Server{srv}
	errs := make(chan error, 2)
	go func() { errs <- srv.Serve(l) }()
	if a.cfg.Metrics != "" {
		ml, err := net.Listen("tcp", a.cfg.Metrics)
		if err != nil {
			return errors.Join(fmt.Errorf("--metrics: %w", err), srv.Close())
		}
		mmux := http.NewServeMux()
		mmux.Handle("GET /metrics", metrics)
		msrv := &http.Server{Handler: mmux, ReadHeaderTimeout: 10 * time.Second}
		servers = append(servers, msrv)
		go func() { errs <- msrv.Serve(ml) }()
	}
	var first error
	select {
	case <-ctx.Done():
	case first = <-errs:
	}
	for _, s := range servers {
		_ = s.Close()
	}
	if errors.Is(first, http.ErrServerClosed) {
		first = nil
	}
	return first
}

// answer serves what f says in the loop as JSON.
func answer[T any](ctx context.Context, a *Agent, f func() (T, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		var v T
		var err error
		if !a.do(ctx, func() { v, err = f() }) {
			http.Error(w, "the agent is stopping", http.StatusServiceUnavailable)
			return
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(v)
	}
}

func (a *Agent) status() (control.Status, error) {
	s := control.Status{
		Node: a.cfg.Node, Version: a.cfg.Version, Started: a.started, Now: a.cfg.Now(), Revision: a.dp.Revision(),
		Endpoints: map[string]int{}, Policies: map[string]int{}, Problems: a.listProblems(), Kernel: map[string]int{}, Records: a.records.len(),
	}
	for _, ep := range a.endpoints {
		s.Endpoints[ep.state]++
	}
	if n := len(a.orphans); n > 0 {
		s.Endpoints[stateQuarantined] += n
	}
	if a.snapshot != nil {
		for i := range a.snapshot.Policies {
			if a.snapshot.Policies[i].Kind == kindManifest {
				continue // a file that was never read: a problem, no policy
			}
			s.Policies[string(a.snapshot.Policies[i].Kind)]++
			if a.snapshot.Policies[i].Invalid {
				s.PoliciesInvalid++
			}
		}
	}
	st := a.dp.Contents().Stats()
	s.Kernel = map[string]int{
		"prefixes": st.Prefixes, "classes": st.Classes, "trie_lines": st.Lines, "rulesets": st.Rulesets,
		"cells": st.Cells, "list_entries": st.ListEntries, "services": st.Services,
	}
	c, err := a.dp.Counters()
	s.EventsLost, s.FlowsRefused = c.EventsLost, c.FlowsRefused
	return s, err
}

// kindManifest is the kind of what denies everything because of a file that was
// never read, see kube.World.CloseAll.
const kindManifest = "Manifest"

// listProblems returns what is wrong, worst first: what cuts off all pods, then
// other errors.
func (a *Agent) listProblems() []control.Problem {
	out := []control.Problem{}
	told := map[string]bool{}           // pods of which a finding says that they use the node's network, with file and line
	claims := map[string]kube.Finding{} // of interfaces that the agent found taken, by pod
	for _, f := range a.findings {
		switch {
		case f.Reason == kube.ReasonNotCovered && f.Path == "spec.hostNetwork":
			told[f.Object.String()] = true
		case f.Reason == kube.ReasonDuplicateInterface:
			claims[f.Object.String()] = f
		}
	}
	moot := map[string]bool{} // pods of which claims say no more than the agent does
	for _, key := range a.sortedEndpoints() {
		ep := a.endpoints[key]
		object := "Pod " + key.String()
		if ep.state == stateEnforced || (ep.state == stateNotCovered && told[object]) {
			continue
		}
		sev := "error"
		if ep.state == stateNotCovered {
			sev = "warning"
		}
		p := control.Problem{Severity: sev, Object: object, Message: ep.state + ": " + ep.message}
		if ep.holder != (policy.PodKey{}) {
			if f, ok := claims[object]; ok {
				p.Path, p.File, p.Line, p.Reason = f.Path, f.File, f.Line, string(f.Reason)
				moot[object] = true
			}
			moot["Pod "+ep.holder.String()] = true
		}
		out = append(out, p)
	}
	for _, ifindex := range slices.Sorted(maps.Keys(a.orphans)) {
		o := a.orphans[ifindex]
		out = append(out, control.Problem{Severity: "error", Object: "interface " + o.name, Message: o.message()})
	}
	if a.snapshot == nil {
		out = append(out, control.Problem{Severity: "error", Object: "manifests", Message: "not read yet; what an earlier agent enforced stays in force"})
	}
	for _, about := range sortedKeys(a.problems) {
		out = append(out, a.problems[about])
	}
	for _, f := range a.findings {
		if f.Reason != kube.ReasonDuplicateInterface || !moot[f.Object.String()] {
			out = append(out, problemOf(f))
		}
	}
	slices.SortStableFunc(out, func(a, b control.Problem) int {
		return cmp.Compare(rank(b), rank(a))
	})
	return out
}

// rank is how bad a problem is.
func rank(p control.Problem) int {
	switch {
	case p.Reason == string(kube.ReasonCutOff):
		return 2
	case p.Severity == kube.Error.String():
		return 1
	}
	return 0
}

func (o *orphan) message() string {
	whose := ""
	if o.pod != (podName{}) {
		whose = fmt.Sprintf("; it was pod %s/%s's", o.pod.Namespace, o.pod.Name)
	}
	return "quarantined: it belongs to no pod, so everything on it is dropped, until it is gone or a Pod names it" + whose
}

// told is what report wrote last.
type told struct{ problems, uncovered int }

// report writes one line when the first revision is enforced, and one whenever
// the number of problems or of pods without enforcement has changed.
func (a *Agent) report() {
	enforced := 0
	for _, ep := range a.endpoints {
		if ep.state == stateEnforced {
			enforced++
		}
	}
	now := told{len(a.listProblems()), len(a.endpoints) - enforced}
	if a.told != nil && *a.told == now {
		return
	}
	level := slog.LevelInfo
	args := []any{"pods_enforced", enforced, "pods_not_covered", now.uncovered, "policies", len(a.snapshot.Policies), "problems", now.problems}
	if now.problems > 0 {
		level = slog.LevelWarn
		args = append(args, "see", "postern status")
	}
	if a.told == nil {
		a.cfg.Log.Log(context.Background(), level, "enforcing", args...)
	} else {
		a.cfg.Log.Log(context.Background(), level, "changed", args...)
	}
	a.told = &now
}

// eventsLost returns how many events had no room in the kernel's buffer.
func (a *Agent) eventsLost(ctx context.Context) (n uint64, ok bool) {
	var err error
	done := a.do(ctx, func() {
		var c datapath.Counters
		c, err = a.dp.Counters()
		n = c.EventsLost
	})
	return n, done && err == nil
}

func problemOf(f kube.Finding) control.Problem {
	return control.Problem{Severity: f.Severity.String(), Object: f.Object.String(), Path: f.Path, Message: f.Message, Reason: string(f.Reason), File: f.File, Line: f.Line}
}

func (a *Agent) sortedEndpoints() []policy.PodKey {
	keys := make([]policy.PodKey, 0, len(a.endpoints))
	for k := range a.endpoints {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b policy.PodKey) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	return keys
}

func (a *Agent) listEndpoints() ([]control.Endpoint, error) {
	counts, err := a.dp.RuleCounts()
	if err != nil {
		return nil, err
	}
	byGen := map[uint32][]control.RuleCount{}
	for k, c := range counts {
		byGen[k.Generation] = append(byGen[k.Generation], control.RuleCount{Rule: a.rule(k.Rule), Packets: c.Packets, Bytes: c.Bytes})
	}
	out := []control.Endpoint{}
	for _, key := range a.sortedEndpoints() {
		ep := a.endpoints[key]
		e := control.Endpoint{Namespace: key.Namespace, Name: key.Name, State: ep.state, Message: ep.message, Egress: string(policy.Open), Ingress: string(policy.Open)}
		if b := a.bindings[key]; b.Interface != "" {
			e.Interface = b.Interface
		}
		for i := range a.snapshot.Pods {
			if a.snapshot.Pods[i].Key() == key {
				e.Addrs = a.snapshot.Pods[i].IPs
			}
		}
		if ep.ifindex != 0 {
			e.Egress = string(a.compiler.Isolation(key, policy.Egress))
			e.Ingress = string(a.compiler.Isolation(key, policy.Ingress))
			if err := a.count(&e, ep.ifindex, byGen); err != nil {
				return nil, err
			}
		}
		out = append(out, e)
	}
	for _, ifindex := range slices.Sorted(maps.Keys(a.orphans)) {
		o := a.orphans[ifindex]
		e := control.Endpoint{
			Namespace: o.pod.Namespace, Name: o.pod.Name, Interface: o.name, State: stateQuarantined, Message: o.message(),
			Egress: string(policy.Isolated), Ingress: string(policy.Isolated),
		}
		if err := a.count(&e, ifindex, byGen); err != nil {
			return nil, err
		}
		out = append(out, e)
	}
	return out, nil
}

// count fills in the counters of an interface.
func (a *Agent) count(e *control.Endpoint, ifindex int, byGen map[uint32][]control.RuleCount) error {
	e.Rules = byGen[a.dp.Generation(ifindex)]
	slices.SortFunc(e.Rules, func(a, b control.RuleCount) int {
		return cmp.Or(cmp.Compare(b.Packets, a.Packets), cmp.Compare(a.Rule.ID, b.Rule.ID))
	})
	for _, r := range e.Rules {
		e.Dropped += r.Packets
	}
	accepted, err := a.dp.Accepted(ifindex)
	e.Forwarded = accepted.Packets
	return err
}

func (a *Agent) listPolicies() ([]control.Policy, error) {
	out := []control.Policy{}
	if a.snapshot == nil {
		return out, nil
	}
	problems := map[string][]control.Problem{}
	for _, f := range a.findings {
		about := f.Object
		if about == (kube.ObjectRef{}) {
			about = kube.ObjectRef{Kind: kindManifest, Name: f.File} // what is denied because of a file as a whole
		}
		problems[about.String()] = append(problems[about.String()], problemOf(f))
	}
	for i := range a.snapshot.Policies {
		p := &a.snapshot.Policies[i]
		ref := kube.ObjectRef{Kind: string(p.Kind), Namespace: p.Namespace, Name: p.Name}
		var priority *int32
		if p.Tier != policy.TierNetworkPolicy && p.Priority != kube.PriorityInvalid {
			priority = &p.Priority
		}
		out = append(out, control.Policy{
			Kind: string(p.Kind), Namespace: p.Namespace, Name: p.Name, Tier: p.Tier, Priority: priority,
			Endpoints: a.governedBy(p), Problems: problems[ref.String()],
		})
	}
	return out, nil
}

// governedBy counts the endpoints that have a rule of p, or are isolated by it.
func (a *Agent) governedBy(p *policy.Policy) int {
	n := 0
	for _, ids := range a.rulesets {
		for _, id := range ids {
			rs := a.content[id]
			if rs != nil && slices.ContainsFunc(rs.Rules, func(r policy.CompiledRule) bool {
				return r.Ref.Kind == p.Kind && r.Ref.Namespace == p.Namespace && r.Ref.Policy == p.Name
			}) {
				n++
				break
			}
		}
	}
	return n
}

func (a *Agent) explain(w http.ResponseWriter, r *http.Request) {
	var q control.ExplainRequest
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<16)).Decode(&q); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	var res control.ExplainResponse
	var err error
	ok := a.do(r.Context(), func() {
		if a.snapshot == nil {
			err = errors.New("the manifests have not been read yet")
			return
		}
		res, err = control.Explain(a.snapshot, q)
	})
	switch {
	case !ok:
		http.Error(w, "the agent is stopping", http.StatusServiceUnavailable)
	case err != nil:
		http.Error(w, err.Error(), http.StatusBadRequest)
	default:
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(res)
	}
}

func sortedKeys[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}
