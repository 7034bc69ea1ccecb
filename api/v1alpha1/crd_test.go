package v1alpha1_test

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

	"github.com/postern-dev/postern/api/v1alpha1"
	"github.com/postern-dev/postern/internal/kube/crdtest"
)

var update = flag.Bool("update", false, "write the expected messages of testdata")

func schemas(t *testing.T) crdtest.Schemas {
	t.Helper()
	files, err := filepath.Glob("../../deploy/crd/postern.dev_*.yaml")
	if err != nil || len(files) != 5 {
		t.Fatalf("CRD files: got %q, %v; want 5", files, err)
	}
	s, err := crdtest.Load(files...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestCRDs applies the documents of testdata to the schemas. A document's
// first comment lines hold its name and, as "# want: ...", every message that
// the API server is expected to give; without one it must be accepted.
// -update writes those lines.
func TestCRDs(t *testing.T) {
	s := schemas(t)
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no testdata: %v", err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var updated []string
		for doc := range strings.SplitSeq(string(data), "\n---\n") {
			name, want := header(doc)
			t.Run(filepath.Base(file)+"/"+name, func(t *testing.T) {
				got := s.Validate(decode(t, doc))
				updated = append(updated, withWant(doc, name, got))
				if diff := cmp.Diff(want, got); diff != "" && !*update {
					t.Errorf("%s\n(-want +got)\n%s", doc, diff)
				}
			})
		}
		if *update {
			if err := os.WriteFile(file, []byte(strings.Join(updated, "\n---\n")), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// withWant returns doc with its header replaced.
func withWant(doc, name string, want []string) string {
	var out strings.Builder
	out.WriteString("# " + name + "\n")
	for _, w := range want {
		out.WriteString("# want: " + w + "\n")
	}
	for line := range strings.Lines(doc) {
		if !strings.HasPrefix(line, "# ") {
			out.WriteString(line)
		}
	}
	return out.String()
}

func header(doc string) (name string, want []string) {
	for line := range strings.Lines(doc) {
		text, ok := strings.CutPrefix(strings.TrimSpace(line), "# ")
		if !ok {
			continue
		}
		if w, ok := strings.CutPrefix(text, "want: "); ok {
			want = append(want, w)
		} else if name == "" {
			name = text
		}
	}
	return name, want
}

func decode(t *testing.T, doc string) map[string]any {
	t.Helper()
	raw, err := yaml.YAMLToJSONStrict([]byte(doc))
	if err != nil {
		t.Fatal(err)
	}
	var obj map[string]any
	if err := json.UnmarshalCaseSensitivePreserveInts(raw, &obj); err != nil {
		t.Fatal(err)
	}
	return obj
}

// TestRoundTrip makes sure that no accepted document changes its meaning on
// its way through the Go types: an empty list or object must not vanish, and
// an absent one must not appear (POL-01).
func TestRoundTrip(t *testing.T) {
	s := schemas(t)
	data, err := os.ReadFile("testdata/good.yaml")
	if err != nil {
		t.Fatal(err)
	}
	kinds := map[string]func() any{
		"EgressPolicy":          func() any { return &v1alpha1.EgressPolicy{} },
		"ClusterEgressPolicy":   func() any { return &v1alpha1.ClusterEgressPolicy{} },
		"Tier":                  func() any { return &v1alpha1.Tier{} },
		"DestinationSet":        func() any { return &v1alpha1.DestinationSet{} },
		"ClusterDestinationSet": func() any { return &v1alpha1.ClusterDestinationSet{} },
	}
	for doc := range strings.SplitSeq(string(data), "\n---\n") {
		name, _ := header(doc)
		t.Run(name, func(t *testing.T) {
			want := decode(t, doc)
			kind, _ := want["kind"].(string)
			typed := kinds[kind]()
			if err := yaml.UnmarshalStrict([]byte(doc), typed); err != nil {
				t.Fatal(err)
			}
			raw, err := runtime.DefaultUnstructuredConverter.ToUnstructured(typed)
			if err != nil {
				t.Fatal(err)
			}
			delete(raw, "status")
			if errs := s.Validate(raw); errs != nil {
				t.Errorf("typed form is refused: %q", errs)
			}
			s.Validate(want) // sets the defaults
			dropEmptySelectors(raw)
			dropEmptySelectors(want)
			if diff := cmp.Diff(want["spec"], raw["spec"]); diff != "" {
				t.Errorf("(-document +typed)\n%s", diff)
			}
		})
	}
}

// dropEmptySelectors removes namespaceSelector: {} from NamespacedPod, where
// it means the same as leaving it out.
func dropEmptySelectors(v any) {
	switch v := v.(type) {
	case map[string]any:
		if pods, ok := v["pods"].(map[string]any); ok {
			if ns, ok := pods["namespaceSelector"].(map[string]any); ok && len(ns) == 0 {
				delete(pods, "namespaceSelector")
			}
		}
		for _, e := range v {
			dropEmptySelectors(e)
		}
	case []any:
		for _, e := range v {
			dropEmptySelectors(e)
		}
	}
}

func TestAddToScheme(t *testing.T) {
	scheme := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{"EgressPolicy", "ClusterEgressPolicy", "Tier", "DestinationSet", "ClusterDestinationSet"} {
		if !scheme.Recognizes(v1alpha1.GroupVersion.WithKind(kind)) {
			t.Errorf("%s is not registered", kind)
		}
	}
}

// TestEveryFieldIsDocumented: descriptions of the CRDs are the users' reference (A3).
func TestEveryFieldIsDocumented(t *testing.T) {
	files, err := filepath.Glob("../../deploy/crd/postern.dev_*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var crd map[string]any
		if err := yaml.Unmarshal(data, &crd); err != nil {
			t.Fatal(err)
		}
		walk(t, filepath.Base(file), crd)
		if bytes.Contains(data, []byte("TODO")) {
			t.Errorf("%s: a TODO shows to users", file)
		}
	}
}

func walk(t *testing.T, path string, v any) {
	t.Helper()
	switch v := v.(type) {
	case map[string]any:
		if props, ok := v["properties"].(map[string]any); ok {
			for name, p := range props {
				prop, _ := p.(map[string]any)
				if text, _ := prop["description"].(string); text == "" && name != "metadata" {
					t.Errorf("%s.%s has no description", path, name)
				}
				if prop["type"] == "array" && prop["maxItems"] == nil && !fromApimachinery(name) {
					t.Errorf("%s.%s has no maxItems (A2)", path, name)
				}
			}
		}
		for k, e := range v {
			walk(t, path+"."+k, e)
		}
	case []any:
		for _, e := range v {
			walk(t, path+"[]", e)
		}
	}
}

// fromApimachinery: lists of metav1.LabelSelector, which sets no limits.
func fromApimachinery(name string) bool {
	return name == "matchExpressions" || name == "values"
}
