// Package crdtest judges objects as an API server would: by the structural
// schema and the CEL rules of CustomResourceDefinitions. Only tests import it.
//
// It is a second opinion on validity that shares no code with package kube.
// It does not see what needs the store, such as whether a name is taken.
package crdtest

import (
	"context"
	"fmt"
	"os"
	"slices"

	apiext "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	crdvalidation "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/validation"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/defaulting"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/listtype"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/pruning"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	apiservercel "k8s.io/apiserver/pkg/apis/cel"
	"sigs.k8s.io/yaml"
)

// Schemas holds the compiled schemas of CRDs by "apiVersion/kind".
type Schemas map[string]*compiled

type compiled struct {
	structural *schema.Structural
	openapi    validation.SchemaValidator
	cel        *cel.Validator
}

// Load reads CRD manifests, one per file, and checks each as an API server
// does when it is created, the estimated cost of CEL rules included.
func Load(files ...string) (Schemas, error) {
	out := Schemas{}
	for _, file := range files {
		data, err := os.ReadFile(file) //nolint:gosec // G304: tests name their own files
		if err != nil {
			return nil, err
		}
		if err := out.add(data); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
	}
	return out, nil
}

func (s Schemas) add(data []byte) error {
	var v1 apiextv1.CustomResourceDefinition
	if err := yaml.UnmarshalStrict(data, &v1); err != nil {
		return err
	}
	apiextv1.SetDefaults_CustomResourceDefinition(&v1)
	apiextv1.SetDefaults_CustomResourceDefinitionSpec(&v1.Spec)
	var crd apiext.CustomResourceDefinition
	if err := apiextv1.Convert_v1_CustomResourceDefinition_To_apiextensions_CustomResourceDefinition(&v1, &crd, nil); err != nil {
		return err
	}
	// The API server sets this list when it stores a CRD.
	crd.Status.StoredVersions = []string{crd.Spec.Versions[0].Name}
	if errs := crdvalidation.ValidateCustomResourceDefinition(context.Background(), &crd); len(errs) > 0 {
		return errs.ToAggregate()
	}
	for i := range v1.Spec.Versions {
		v := &v1.Spec.Versions[i]
		var props apiext.JSONSchemaProps
		if err := apiextv1.Convert_v1_JSONSchemaProps_To_apiextensions_JSONSchemaProps(v.Schema.OpenAPIV3Schema, &props, nil); err != nil {
			return err
		}
		structural, err := schema.NewStructural(&props)
		if err != nil {
			return err
		}
		openapi, _, err := validation.NewSchemaValidator(&props)
		if err != nil {
			return err
		}
		s[v1.Spec.Group+"/"+v.Name+"/"+v1.Spec.Names.Kind] = &compiled{
			structural: structural,
			openapi:    openapi,
			cel:        cel.NewValidator(structural, true, apiservercel.PerCallLimit),
		}
	}
	return nil
}

// Knows reports whether obj is of a kind whose schema was loaded.
func (s Schemas) Knows(obj map[string]any) bool { return s[key(obj)] != nil }

func key(obj map[string]any) string {
	version, _ := obj["apiVersion"].(string)
	kind, _ := obj["kind"].(string)
	return version + "/" + kind
}

// Validate returns what an API server with strict field validation would say
// against creating obj, sorted; nil if it would accept it. It changes obj:
// unknown fields are removed and defaults are set. Numbers must be int64 or
// float64, as sigs.k8s.io/json decodes them.
func (s Schemas) Validate(obj map[string]any) []string {
	c := s[key(obj)]
	if c == nil {
		return []string{"no schema for " + key(obj)}
	}
	var out []string
	unknown := pruning.PruneWithOptions(obj, c.structural, true, schema.UnknownFieldPathOptions{TrackUnknownFieldPaths: true})
	for _, path := range unknown {
		out = append(out, fmt.Sprintf("unknown field %q", path))
	}
	defaulting.PruneNonNullableNullsWithoutDefaults(obj, c.structural)
	defaulting.Default(obj, c.structural)
	errs := validation.ValidateCustomResource(nil, obj, c.openapi)
	errs = append(errs, listtype.ValidateListSetsAndMaps(nil, c.structural, obj)...)
	// As in the API server, CEL is not run on an object that has the wrong shape.
	if len(errs) == 0 {
		celErrs, _ := c.cel.Validate(context.Background(), nil, c.structural, obj, nil, apiservercel.RuntimeCELCostBudget)
		errs = append(errs, celErrs...)
	}
	for _, e := range errs {
		out = append(out, e.Error())
	}
	slices.Sort(out)
	return slices.Compact(out)
}
