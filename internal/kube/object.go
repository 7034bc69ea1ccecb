package kube

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	cnpv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"github.com/postern-dev/postern/api/v1alpha1"
	"github.com/postern-dev/postern/internal/policy"
)

// kindInfo is what is known about a kind that takes part in policy.
type kindInfo struct {
	apiVersion string
	namespaced bool
	policy     bool // rules come from it: an explicit null in its spec is a mistake
	new        func() metav1.Object
}

// kinds lists every kind that is read.
func kinds() map[string]kindInfo {
	const ours = v1alpha1.GroupName + "/v1alpha1"
	return map[string]kindInfo{
		"Namespace":             {"v1", false, false, func() metav1.Object { return &corev1.Namespace{} }},
		"Node":                  {"v1", false, false, func() metav1.Object { return &corev1.Node{} }},
		"Pod":                   {"v1", true, false, func() metav1.Object { return &corev1.Pod{} }},
		"Service":               {"v1", true, false, func() metav1.Object { return &corev1.Service{} }},
		"EndpointSlice":         {"discovery.k8s.io/v1", true, false, func() metav1.Object { return &discoveryv1.EndpointSlice{} }},
		"NetworkPolicy":         {"networking.k8s.io/v1", true, true, func() metav1.Object { return &networkingv1.NetworkPolicy{} }},
		"ClusterNetworkPolicy":  {cnpv1alpha2.GroupName + "/v1alpha2", false, true, func() metav1.Object { return &cnpv1alpha2.ClusterNetworkPolicy{} }},
		"EgressPolicy":          {ours, true, true, func() metav1.Object { return &v1alpha1.EgressPolicy{} }},
		"ClusterEgressPolicy":   {ours, false, true, func() metav1.Object { return &v1alpha1.ClusterEgressPolicy{} }},
		"Tier":                  {ours, false, true, func() metav1.Object { return &v1alpha1.Tier{} }},
		"DestinationSet":        {ours, true, true, func() metav1.Object { return &v1alpha1.DestinationSet{} }},
		"ClusterDestinationSet": {ours, false, true, func() metav1.Object { return &v1alpha1.ClusterDestinationSet{} }},
	}
}

// Kinds returns the kinds that are read, sorted, as "apiVersion Kind".
func Kinds() []string {
	var out []string
	for kind, info := range kinds() {
		out = append(out, info.apiVersion+" "+kind)
	}
	slices.Sort(out)
	return out
}

// harmless lists kinds of the groups that we read from which have no part in policy.
// Any other kind of these groups may be a misspelt policy.
var harmless = map[string][]string{
	"v1": {
		"Binding", "ConfigMap", "Endpoints", "Event", "LimitRange", "PersistentVolume", "PersistentVolumeClaim",
		"PodTemplate", "ReplicationController", "ResourceQuota", "Secret", "ServiceAccount",
	},
	"networking.k8s.io/v1": {"Ingress", "IngressClass", "IPAddress", "ServiceCIDR"},
}

// Decoded is one object of a document, or what is wrong with the document.
type Decoded struct {
	Ref ObjectRef
	// Object is the typed object. It is nil if the document is of a kind that is
	// not read (the Findings are warnings) or can't be told (they hold an error).
	Object metav1.Object
	// Findings are the mistakes of form, to be handed to World.Set with the object.
	Findings []Finding
}

// Decode reads one object from a YAML mapping, strictly: unknown, repeated,
// missing and ill-typed fields are Findings with their paths and lines, all of
// them. The object holds what was understood.
func Decode(n *yaml.Node) Decoded {
	if n.Kind == yaml.DocumentNode && len(n.Content) == 1 {
		n = n.Content[0]
	}
	if n.Kind != yaml.MappingNode {
		return notDecoded(ObjectRef{}, n, ReasonSyntax, Error, "", fmt.Sprintf("is %s where an object with apiVersion, kind and metadata is due", describe(n)))
	}
	apiVersion, errA := identity(n, "apiVersion")
	kind, errK := identity(n, "kind")
	if errA != "" || errK != "" {
		return notDecoded(ObjectRef{Kind: kind}, n, ReasonUnknownKind, Error, "", strings.Trim(errA+"; "+errK, "; "))
	}
	info, known := kinds()[kind]
	if !known || info.apiVersion != apiVersion {
		return otherKind(n, apiVersion, kind, info.apiVersion)
	}
	ref, path, msg := identify(n, kind, info.namespaced)
	if msg != "" {
		return notDecoded(ref, n, ReasonIdentity, Error, path, msg)
	}
	obj := info.new()
	d := &decoder{strict: info.policy}
	d.value(n, reflect.ValueOf(obj).Elem())
	out := Decoded{Ref: ref, Object: obj}
	unsure := false
	for _, p := range d.problems {
		f := Finding{Object: ref, Path: p.path, Severity: Error, Reason: p.reason, Message: p.message, Line: p.line}
		// Of objects that only state facts a few fields matter. A field that is none
		// of them, and none of them misspelt, may be of a newer Kubernetes.
		if (p.reason == ReasonUnknownField || p.reason == ReasonUnknownList) && !info.policy && nearest(lastName(p.path), factFields) == "" {
			f.Severity = Warning
			f.Message = "is not known and not looked at"
		}
		out.Findings = append(out.Findings, f)
		// A field of metadata that is unknown may be the namespace's, misspelt.
		unsure = unsure || (info.namespaced && mapValue(n, "metadata", "namespace") == nil &&
			strings.HasPrefix(p.path, "metadata.") && (p.reason == ReasonUnknownField || p.reason == ReasonUnknownList))
	}
	if d.more {
		out.Findings = append(out.Findings, Finding{
			Object: ref, Path: "spec", Severity: Error, Reason: ReasonMoreFindings, Line: n.Line,
			Message: fmt.Sprintf("has more than %d mistakes: only the first are listed", maxProblems),
		})
	}
	if unsure {
		out.Object = nil
		return out
	}
	if info.namespaced && obj.GetNamespace() == "" {
		out.Findings = append(out.Findings, Finding{
			Object: ref, Path: "metadata.namespace", Severity: Warning, Reason: ReasonIdentity, Line: n.Line,
			Message: "is missing: the namespace default is meant, write it down",
		})
		obj.SetNamespace("default")
	}
	if !info.namespaced && obj.GetNamespace() != "" {
		out.Findings = append(out.Findings, Finding{
			Object: ref, Path: "metadata.namespace", Severity: Warning, Reason: ReasonIdentity, Line: n.Line,
			Message: kind + " belongs to no namespace: remove it",
		})
		obj.SetNamespace("")
	}
	return out
}

// factFields are the fields that are read of a Namespace, Node, Pod, Service and EndpointSlice.
var factFields = []string{
	"address", "addressType", "addresses", "annotations", "apiVersion", "clusterIP", "clusterIPs", "conditions",
	"containerPort", "containers", "endpoints", "externalIPs", "hostIP", "hostIPs", "hostNetwork", "hostPort", "ingress",
	"initContainers", "ip", "ipMode", "kind", "labels", "loadBalancer", "metadata", "name", "namespace", "nodeName",
	"nodePort", "phase", "podIP", "podIPs", "port", "ports", "protocol", "ready", "restartPolicy", "serviceAccountName",
	"spec", "status", "targetPort", "type", "uid",
}

// lastName returns the last field name of a path.
func lastName(path string) string { return path[strings.LastIndexByte(path, '.')+1:] }

// Lost reports whether obj states addresses or ports that can't be read. Such an
// object can't be closed: what to keep from being reached is not known. decoded
// are Decode's findings; the result is what is to be said about it. A Namespace
// and the kinds that rules come from are never lost.
func Lost(obj metav1.Object, decoded []Finding) (fs []Finding, lost bool) {
	switch o := obj.(type) {
	case *corev1.Pod:
		r := translatePod(o, decoded)
		return r.findings, r.closed && outsideMetadata(r.findings)
	case *corev1.Node:
		_, closed, fs := translateNode(o, decoded)
		return fs, closed && outsideMetadata(fs)
	case *corev1.Service:
		r := translateService(o, decoded)
		return r.findings, r.closed && outsideMetadata(r.findings)
	case *discoveryv1.EndpointSlice:
		r := translateSlice(o, decoded)
		return r.findings, r.closed && (r.service == policy.ServiceRef{})
	}
	return nil, false
}

// outsideMetadata: a mistake in labels leaves the addresses known, unless they
// slipped into metadata.
func outsideMetadata(fs []Finding) bool {
	own := []string{"annotations", "labels", "name", "namespace", "uid"}
	return slices.ContainsFunc(fs, func(f Finding) bool {
		rest, ok := strings.CutPrefix(f.Path, "metadata.")
		name, _ := firstStep(rest)
		return f.Severity == Error && (!ok || nearest(name, own) == "")
	})
}

func notDecoded(ref ObjectRef, n *yaml.Node, reason Reason, sev Severity, path, msg string) Decoded {
	return Decoded{Ref: ref, Findings: []Finding{{
		Object: ref, Path: path, Severity: sev, Reason: reason, Message: msg, Line: n.Line,
	}}}
}

// otherKind tells kinds that have no part in policy from those that may be
// meant to have one.
func otherKind(n *yaml.Node, apiVersion, kind, want string) Decoded {
	ref := ObjectRef{Kind: kind}
	if want != "" {
		return notDecoded(ref, n, ReasonUnknownKind, Error, "apiVersion",
			fmt.Sprintf("is %q: this version reads %s of %s", apiVersion, kind, want))
	}
	group, _, _ := strings.Cut(apiVersion, "/")
	ours := false
	for _, info := range kinds() {
		g, _, _ := strings.Cut(info.apiVersion, "/")
		ours = ours || g == group
	}
	if ours && !slices.Contains(harmless[apiVersion], kind) {
		var names []string
		for k, info := range kinds() {
			if g, _, _ := strings.Cut(info.apiVersion, "/"); g == group {
				names = append(names, k)
			}
		}
		slices.Sort(names)
		return notDecoded(ref, n, ReasonUnknownKind, Error, "kind",
			fmt.Sprintf("%s has no kind %q that is read: write one of %s", apiVersion, kind, strings.Join(names, ", ")))
	}
	return notDecoded(ref, n, ReasonIgnoredKind, Warning, "kind", fmt.Sprintf("%s %s has no part in policy and is not read", apiVersion, kind))
}

// identity reads a field that says what an object is; it must be there once.
func identity(n *yaml.Node, field string) (value, problem string) {
	count := 0
	var found *yaml.Node
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == field {
			count, found = count+1, n.Content[i+1]
		}
	}
	switch {
	case count == 0:
		return "", field + " is missing"
	case count > 1:
		return "", field + " is given twice: keep one"
	case found.Kind != yaml.ScalarNode || !isString(found) || found.Value == "":
		return "", field + " is " + describe(found) + " where text is due"
	}
	return found.Value, ""
}

// identify reads namespace and name. They must be beyond doubt: an object that
// is taken for another one leaves the pods of its own namespace open.
func identify(n *yaml.Node, kind string, namespaced bool) (ref ObjectRef, path, problem string) {
	ref = ObjectRef{Kind: kind}
	metas := 0
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == "metadata" {
			metas++
		}
	}
	meta := mapValue(n, "metadata")
	if metas != 1 || meta.Kind != yaml.MappingNode {
		return ref, "metadata", "must be there once, an object with the name"
	}
	name, msg := identity(meta, "name")
	if msg != "" {
		return ref, "metadata.name", msg
	}
	if errs := validation.IsDNS1123Subdomain(name); errs != nil {
		return ref, "metadata.name", fmt.Sprintf("%q is no name: %s", name, errs[0])
	}
	ref.Name = name
	if !namespaced {
		return ref, "", ""
	}
	ref.Namespace = "default"
	if mapValue(meta, "namespace") == nil {
		return ref, "", ""
	}
	namespace, msg := identity(meta, "namespace")
	if msg != "" {
		return ref, "metadata.namespace", msg
	}
	if errs := validation.IsDNS1123Label(namespace); errs != nil {
		return ref, "metadata.namespace", fmt.Sprintf("%q is no name: %s", namespace, errs[0])
	}
	ref.Namespace = namespace
	return ref, "", ""
}

// mapValue walks mappings by keys; nil if there is no such field.
func mapValue(n *yaml.Node, keys ...string) *yaml.Node {
	for _, key := range keys {
		var next *yaml.Node
		for i := 0; n.Kind == yaml.MappingNode && i+1 < len(n.Content); i += 2 {
			if n.Content[i].Value == key {
				next = n.Content[i+1]
			}
		}
		if next == nil {
			return nil
		}
		n = next
	}
	return n
}

// RefOf returns the reference of a typed object of one of Kinds; the zero value for another type.
func RefOf(obj metav1.Object) ObjectRef {
	var kind string
	switch obj.(type) {
	case *corev1.Namespace:
		kind = "Namespace"
	case *corev1.Node:
		kind = "Node"
	case *corev1.Pod:
		kind = "Pod"
	case *corev1.Service:
		kind = "Service"
	case *discoveryv1.EndpointSlice:
		kind = "EndpointSlice"
	case *networkingv1.NetworkPolicy:
		kind = "NetworkPolicy"
	case *cnpv1alpha2.ClusterNetworkPolicy:
		kind = "ClusterNetworkPolicy"
	case *v1alpha1.EgressPolicy:
		kind = "EgressPolicy"
	case *v1alpha1.ClusterEgressPolicy:
		kind = "ClusterEgressPolicy"
	case *v1alpha1.Tier:
		kind = "Tier"
	case *v1alpha1.DestinationSet:
		kind = "DestinationSet"
	case *v1alpha1.ClusterDestinationSet:
		kind = "ClusterDestinationSet"
	default:
		return ObjectRef{}
	}
	return ObjectRef{Kind: kind, Namespace: obj.GetNamespace(), Name: obj.GetName()}
}

func sortedKeys[K ~string, V any](m map[K]V) []K {
	return slices.Sorted(maps.Keys(m))
}
