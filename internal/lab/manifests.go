package lab

import (
	"bytes"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

// AnnotationInterface of a Pod manifest tells the agent where the pod's link is:
// the host side of its veth, in the agent's namespace.
const AnnotationInterface = "postern.dev/interface"

// manifestPrefix starts the name of every file that Manifests writes, and only of those.
const manifestPrefix = "lab-"

// object is a Kubernetes object on its way to YAML. Only what the lab knows is
// in it; this package does not import Kubernetes' types.
type object = map[string]any

// writeManifests makes the files lab-*.yaml in dir say what the lab is now: its
// Namespaces, Nodes, Pods, Services and EndpointSlices. A file that is right
// already is left alone, one of something that is gone is removed, other files
// are not touched. Each file is replaced in one step.
func writeManifests(s Status, dir string) error {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return err
	}
	files, err := manifests(s)
	if err != nil {
		return err
	}
	// Additions first, in the order of names: what a pod refers to is there before it.
	for _, name := range slices.Sorted(maps.Keys(files)) {
		path := filepath.Join(dir, name)
		if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, files[name]) {
			continue
		}
		tmp := filepath.Join(dir, "."+name+".tmp")
		if err := os.WriteFile(tmp, files[name], 0o600); err != nil {
			return err
		}
		if err := os.Rename(tmp, path); err != nil {
			return err
		}
	}
	old, err := filepath.Glob(filepath.Join(dir, manifestPrefix+"*.yaml"))
	if err != nil {
		return err
	}
	for _, path := range old {
		if _, ok := files[filepath.Base(path)]; !ok {
			if err := os.Remove(path); err != nil {
				return err
			}
		}
	}
	return nil
}

// manifests returns the files by name: one for namespaces and nodes, one per pod and service.
func manifests(s Status) (map[string][]byte, error) {
	out := map[string][]byte{}
	add := func(name string, objects ...object) error {
		var b bytes.Buffer
		for i, o := range objects {
			if i > 0 {
				b.WriteString("---\n")
			}
			doc, err := yaml.Marshal(o)
			if err != nil {
				return fmt.Errorf("manifest %s: %w", name, err)
			}
			b.Write(doc)
		}
		out[manifestPrefix+name+".yaml"] = b.Bytes()
		return nil
	}
	var cluster []object
	for _, ns := range s.Namespaces {
		cluster = append(cluster, namespaceObject(ns))
	}
	for _, n := range s.Nodes {
		cluster = append(cluster, nodeObject(n))
	}
	if err := add("cluster", cluster...); err != nil {
		return nil, err
	}
	nodeIP := map[string][]netip.Addr{}
	for _, n := range s.Nodes {
		nodeIP[n.Name] = n.IPs
	}
	byIP := map[netip.Addr]PodStatus{}
	for _, p := range s.Pods {
		for _, a := range p.IPs {
			byIP[a] = p
		}
		if err := add("pod_"+p.Namespace+"_"+p.Name, podObject(p, nodeIP[p.Node])); err != nil {
			return nil, err
		}
	}
	for _, v := range s.Services {
		if err := add("service_"+v.Namespace+"_"+v.Name, append([]object{serviceObject(v)}, sliceObjects(v, byIP)...)...); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func meta(namespace, name string, labels map[string]string) object {
	m := object{"name": name}
	if namespace != "" {
		m["namespace"] = namespace
	}
	if len(labels) > 0 {
		m["labels"] = labels
	}
	return m
}

// with returns labels and one more.
func with(labels map[string]string, key, value string) map[string]string {
	out := maps.Clone(labels)
	if out == nil {
		out = map[string]string{}
	}
	out[key] = value
	return out
}

func namespaceObject(ns NamespaceSpec) object {
	return object{
		"apiVersion": "v1", "kind": "Namespace",
		"metadata": meta("", ns.Name, with(ns.Labels, "kubernetes.io/metadata.name", ns.Name)),
	}
}

func nodeObject(n NodeStatus) object {
	addresses := []object{{"type": "Hostname", "address": n.Name}}
	for _, a := range n.IPs {
		addresses = append(addresses, object{"type": "InternalIP", "address": a.String()})
	}
	cidrs := make([]string, len(n.PodCIDRs))
	for i, c := range n.PodCIDRs {
		cidrs[i] = c.String()
	}
	return object{
		"apiVersion": "v1", "kind": "Node",
		"metadata": meta("", n.Name, with(n.Labels, "kubernetes.io/hostname", n.Name)),
		"spec":     object{"podCIDR": cidrs[0], "podCIDRs": cidrs},
		"status":   object{"addresses": addresses},
	}
}

func podObject(p PodStatus, hostIPs []netip.Addr) object {
	m := meta(p.Namespace, p.Name, p.Labels)
	m["uid"] = p.UID
	m["annotations"] = map[string]string{AnnotationInterface: p.HostInterface}
	var ports []object
	for _, s := range p.Servers {
		for i, proto := range s.protocols() {
			name := s.portName()
			if i > 0 {
				name += "-" + strings.ToLower(proto)
			}
			ports = append(ports, object{"name": name, "containerPort": s.Port, "protocol": proto})
		}
	}
	container := object{"name": "main", "image": "postern.dev/lab"}
	if len(ports) > 0 {
		container["ports"] = ports
	}
	ips := make([]object, len(p.IPs))
	for i, a := range p.IPs {
		ips[i] = object{"ip": a.String()}
	}
	status := object{
		"phase": "Running", "podIPs": ips,
		"conditions": []object{{"type": "Ready", "status": "True"}},
	}
	if len(p.IPs) > 0 {
		status["podIP"] = p.IPs[0].String()
	}
	if len(hostIPs) > 0 {
		status["hostIP"] = hostIPs[0].String()
	}
	return object{
		"apiVersion": "v1", "kind": "Pod", "metadata": m,
		"spec": object{
			"nodeName": p.Node, "serviceAccountName": p.ServiceAccount,
			"containers": []object{container},
		},
		"status": status,
	}
}

// protocols returns the transport protocols that the server listens on, TCP last
// for DNS: the port's plain name goes to UDP, as in CoreDNS's manifests.
func (s Server) protocols() []string {
	switch s.Kind {
	case UDPEcho:
		return []string{"UDP"}
	case DNS:
		return []string{"UDP", "TCP"}
	case HTTP, HTTPS, TCPEcho:
	}
	return []string{"TCP"}
}

func serviceObject(v ServiceStatus) object {
	var ports []object
	kind := "ClusterIP"
	for _, p := range v.Ports {
		o := object{"name": p.Name, "protocol": p.Protocol, "port": p.Port, "targetPort": p.TargetPort}
		if p.NodePort != 0 {
			o["nodePort"], kind = p.NodePort, "NodePort"
		}
		ports = append(ports, o)
	}
	var families, ips []string
	for _, a := range v.ClusterIPs {
		ips = append(ips, a.String())
		families = append(families, familyName(a))
	}
	spec := object{
		"type": kind, "ports": ports, "clusterIP": ips[0], "clusterIPs": ips,
		"ipFamilies": families, "ipFamilyPolicy": "PreferDualStack",
	}
	if v.Selector != nil {
		spec["selector"] = v.Selector
	}
	if len(v.ExternalIPs) > 0 {
		var external []string
		for _, a := range v.ExternalIPs {
			external = append(external, a.String())
		}
		spec["externalIPs"] = external
	}
	return object{
		"apiVersion": "v1", "kind": "Service", "metadata": meta(v.Namespace, v.Name, nil), "spec": spec,
	}
}

func familyName(a netip.Addr) string {
	if a.Is4() {
		return "IPv4"
	}
	return "IPv6"
}

// sliceObjects returns the EndpointSlices of a service, one per family, as the
// endpoint slice controller makes them.
func sliceObjects(v ServiceStatus, pods map[netip.Addr]PodStatus) []object {
	var out []object
	for _, fam := range []string{"IPv4", "IPv6"} {
		endpoints := []object{}
		for _, a := range v.Endpoints {
			if familyName(a) != fam {
				continue
			}
			e := object{
				"addresses":  []string{a.String()},
				"conditions": object{"ready": true, "serving": true, "terminating": false},
			}
			if p, ok := pods[a]; ok {
				e["nodeName"] = p.Node
				e["targetRef"] = object{"kind": "Pod", "namespace": p.Namespace, "name": p.Name, "uid": p.UID}
			}
			endpoints = append(endpoints, e)
		}
		var ports []object
		for _, p := range v.Ports {
			ports = append(ports, object{"name": p.Name, "protocol": p.Protocol, "port": p.TargetPort})
		}
		out = append(out, object{
			"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
			"metadata": meta(v.Namespace, v.Name+"-"+strings.ToLower(fam), map[string]string{
				"kubernetes.io/service-name": v.Name,
			}),
			"addressType": fam, "endpoints": endpoints, "ports": ports,
		})
	}
	return out
}
