package manifests

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/postern-dev/postern/internal/kube"
	"github.com/postern-dev/postern/internal/policy"
)

// Annotations of a Pod that say what belongs to it on this node.
const (
	// AnnotationInterface names the host's end of the pod's interface.
	AnnotationInterface = "postern.dev/interface"
	// AnnotationNetns is the path of the pod's network namespace.
	AnnotationNetns = "postern.dev/netns"
)

// Binding says which interface of this node belongs to a pod. Exactly one of
// Interface and Netns is set.
type Binding struct {
	Pod       policy.PodKey
	Interface string // name of the host's end
	Netns     string // path of the network namespace
}

// object is one object of a file.
type object struct {
	ref      kube.ObjectRef
	obj      metav1.Object
	findings []kube.Finding // of decoding, with lines
	doc      int            // which document of the file
	item     int            // which item of a List, or -1
	large    bool           // obj is a set that is not kept once it is translated
	// set and setFindings take the place of a large obj.
	set         policy.DestinationSet
	setFindings []kube.Finding
}

// parsed is what one version of a file says.
type parsed struct {
	objects []object
	// text is what was given to the YAML parser, for finding lines later; nil
	// if it is too large to keep.
	text     []byte
	runs     []run
	docs     []document // of text, while lines are looked up
	bindings []podBinding
	// findings are those that belong to no object. unreadable says that some of
	// them keep the file from being understood as a whole.
	findings   []kube.Finding
	unreadable bool
}

// keepText bounds what is kept of a file for finding lines.
const keepText = 1 << 20

// largeSet is the number of networks from which on a set's strings are not kept.
const largeSet = 10_000

// parse reads a file. It never fails: what can't be read is in the findings.
func parse(path string, data []byte) parsed {
	text, runs := foldRuns(data)
	if len(runs) > 0 {
		if p, ok := parseText(path, text, runs); ok {
			return p
		}
	}
	p, _ := parseText(path, data, nil)
	return p
}

// parseText reads a file whose runs are folded. ok is false if the fold can't be
// undone, since a run is not a list of a set after all.
func parseText(path string, text []byte, runs []run) (p parsed, ok bool) {
	p = parsed{runs: runs}
	if len(text) <= keepText {
		p.text = text
	}
	unfolded := 0
	err := eachDocument(text, func(doc int, n *yaml.Node) {
		p.document(path, doc, n, &unfolded)
	})
	if err != nil {
		p.unreadable = true
		p.findings = append(p.findings, syntaxFinding(path, text, err, runs))
	}
	for i := range p.findings {
		p.findings[i].File = path
	}
	return p, unfolded == len(runs) && err == nil
}

// eachDocument calls f for every document that is not empty.
func eachDocument(text []byte, f func(doc int, n *yaml.Node)) (err error) {
	// The parser is not ours, and a manifest must not be able to stop the agent.
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("yaml: %v", r)
		}
	}()
	dec := yaml.NewDecoder(bytes.NewReader(text))
	for doc := 0; ; doc++ {
		var n yaml.Node
		if err := dec.Decode(&n); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if len(n.Content) == 1 && (n.Content[0].Kind != yaml.ScalarNode || n.Content[0].ShortTag() != "!!null") {
			f(doc, n.Content[0])
		}
	}
}

var errorLine = regexp.MustCompile(`line (\d+)`)

func syntaxFinding(path string, text []byte, err error, runs []run) kube.Finding {
	line := 0
	if m := errorLine.FindStringSubmatch(err.Error()); m != nil {
		line, _ = strconv.Atoi(m[1]) // digits; one that overflows is no line
	}
	if line == 0 {
		line = oddLine(text)
	}
	return kube.Finding{
		File: path, Line: originalLine(runs, line), Severity: kube.Error, Reason: kube.ReasonSyntax,
		Message: "the file can't be read: " + strings.TrimPrefix(err.Error(), "yaml: "),
	}
}

// oddLine returns the line of the first character that YAML does not allow, of
// which its parser does not tell the place; or else the last line.
// Source: YAML 1.2.2, section 5.1.
func oddLine(text []byte) int {
	line := 1
	for i := 0; i < len(text); {
		r, size := utf8.DecodeRune(text[i:])
		switch {
		case r == '\n':
			line++
		case r == utf8.RuneError && size == 1, r < ' ' && r != '\t' && r != '\r', r >= 0x7f && r < 0xa0 && r != 0x85,
			r >= 0xfffe && r <= 0xffff:
			return line
		}
		i += size
	}
	return line
}

// document reads one document: an object, or a List of them.
func (p *parsed) document(path string, doc int, n *yaml.Node, unfolded *int) {
	if items := listItems(n); items != nil {
		for i, item := range items {
			p.object(path, doc, i, item, unfolded)
		}
		return
	}
	p.object(path, doc, -1, n, unfolded)
}

// listItems returns the items of a List or of a typed list such as PodList.
func listItems(n *yaml.Node) []*yaml.Node {
	kind, items := field(n, "kind"), field(n, "items")
	if kind == nil || items == nil || items.Kind != yaml.SequenceNode || !strings.HasSuffix(kind.Value, "List") {
		return nil
	}
	return items.Content
}

func field(n *yaml.Node, name string) *yaml.Node {
	if n.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == name {
			return n.Content[i+1]
		}
	}
	return nil
}

func (p *parsed) object(path string, doc, item int, n *yaml.Node, unfolded *int) {
	d := kube.Decode(n)
	for i := range d.Findings {
		d.Findings[i].File = path
		d.Findings[i].Line = originalLine(p.runs, d.Findings[i].Line)
	}
	if d.Object == nil {
		p.unreadable = p.unreadable || kube.HasErrors(d.Findings)
		p.findings = append(p.findings, d.Findings...)
		return
	}
	o := object{ref: d.Ref, obj: d.Object, findings: d.Findings, doc: doc, item: item}
	if fs, lost := kube.Lost(d.Object, d.Findings); lost {
		p.unreadable = true
		for _, f := range fs {
			if f.Line == 0 {
				f.Line = originalLine(p.runs, lineOf(n, f.Path))
			}
			p.findings = append(p.findings, f)
		}
	}
	if spec := setSpec(d.Object); spec != nil {
		*unfolded += unfold(&o, &spec.Networks, p.runs, "networks") + unfold(&o, &spec.Except, p.runs, "except")
		o.large = len(spec.Networks)+len(spec.Except) > largeSet
	}
	p.objects = append(p.objects, o)
	if pod, ok := d.Object.(*corev1.Pod); ok && pod.Status.Phase != corev1.PodSucceeded && pod.Status.Phase != corev1.PodFailed {
		b, bound, f := bindingOf(pod)
		if bound || f != nil {
			p.bindings = append(p.bindings, podBinding{index: len(p.objects) - 1, binding: b, bound: bound, finding: f})
		}
	}
}

// podBinding is what a Pod of a file says about its interface.
type podBinding struct {
	index   int // in objects
	binding Binding
	bound   bool
	finding *kube.Finding
}

// bindingOf reads the annotations of a Pod. A Pod without them lives elsewhere.
func bindingOf(pod *corev1.Pod) (Binding, bool, *kube.Finding) {
	b := Binding{
		Pod:       policy.PodKey{Namespace: pod.Namespace, Name: pod.Name},
		Interface: pod.Annotations[AnnotationInterface],
		Netns:     pod.Annotations[AnnotationNetns],
	}
	if b.Interface == "" && b.Netns == "" {
		return Binding{}, false, nil
	}
	f := &kube.Finding{Object: kube.RefOf(pod), Severity: kube.Error, Reason: kube.ReasonAnnotation}
	switch {
	case b.Interface != "" && b.Netns != "":
		f.Path = "metadata.annotations[" + AnnotationNetns + "]"
		f.Message = "excludes " + AnnotationInterface + ": keep one of them; the interface is used"
		b.Netns = ""
	case b.Interface != "" && (len(b.Interface) > 15 || strings.ContainsAny(b.Interface, "/ \t\n") || b.Interface == "." || b.Interface == ".."):
		f.Path = "metadata.annotations[" + AnnotationInterface + "]"
		f.Message = fmt.Sprintf("%q is no name of an interface: at most 15 characters, no slashes and blanks; the pod is not enforced", b.Interface)
		return Binding{}, false, f
	case b.Netns != "" && !strings.HasPrefix(b.Netns, "/"):
		f.Path = "metadata.annotations[" + AnnotationNetns + "]"
		f.Message = fmt.Sprintf("%q is no absolute path; the pod is not enforced", b.Netns)
		return Binding{}, false, f
	default:
		f = nil
	}
	return b, true, f
}
