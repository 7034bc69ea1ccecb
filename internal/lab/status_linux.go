package lab

import (
	"path/filepath"
	"slices"
)

// Status describes the lab as it is now, what other processes did to it included.
func (l *Lab) Status() (Status, error) {
	if l.lock == nil {
		if err := l.reload(); err != nil {
			return Status{}, err
		}
	}
	s := Status{
		Name: l.spec.Name, CNI: l.spec.CNI, Dir: l.dir, Persistent: l.spec.Persistent,
		Namespaces: slices.Clone(l.spec.Namespaces), Hosts: slices.Clone(l.spec.Hosts),
	}
	var p process
	if readJSON(filepath.Join(l.dir, "serve.json"), &p) == nil && p.alive() {
		s.ServerPID = p.PID
	}
	for _, n := range l.nodes {
		s.Nodes = append(s.Nodes, NodeStatus{
			Name: n.Spec.Name, Labels: n.Spec.Labels, IPs: n.IPs, PodCIDRs: n.Spec.PodCIDRs, Netns: n.Path,
		})
	}
	for _, p := range l.Pods() {
		s.Pods = append(s.Pods, PodStatus{
			Namespace: p.Spec.Namespace, Name: p.Spec.Name, UID: p.UID, Labels: p.Spec.Labels,
			ServiceAccount: p.Spec.ServiceAccount, Node: p.Spec.Node, IPs: p.IPs,
			HostInterface: p.HostInterface, Netns: p.Path, Servers: p.Spec.Servers,
		})
		// AddPod may bring a namespace that the Spec does not have.
		if !slices.ContainsFunc(s.Namespaces, func(ns NamespaceSpec) bool { return ns.Name == p.Spec.Namespace }) {
			s.Namespaces = append(s.Namespaces, NamespaceSpec{Name: p.Spec.Namespace})
		}
	}
	for _, v := range l.Services() {
		s.Services = append(s.Services, ServiceStatus{ServiceSpec: v, Endpoints: l.Backends(v)})
	}
	return s, nil
}

// Manifests makes the files lab-*.yaml in dir say what the lab is now: its
// Namespaces, Nodes, Pods, Services and EndpointSlices, for posternd agent
// --manifests. A file that is right already is left alone, one of something
// that is gone is removed, other files are not touched, and each file is
// replaced in one step. Call it again after a change.
func (l *Lab) Manifests(dir string) error {
	s, err := l.Status()
	if err != nil {
		return err
	}
	return writeManifests(s, dir)
}
