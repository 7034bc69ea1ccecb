package kube

import (
	"encoding/json"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"

	"go.yaml.in/yaml/v3"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	// maxProblems bounds the findings of one document; more close the whole object.
	maxProblems = 1000
	// maxNodes bounds the nodes of one document with its aliases written out:
	// a small file can name a structure of any size (the "billion laughs").
	maxNodes = 8_000_000
	// maxDepth bounds nesting; an alias can name what it is part of.
	maxDepth = 200
)

// problem is a mistake in the form of a document: a field that is unknown, twice
// there, missing or of the wrong type.
type problem struct {
	path    string
	line    int
	reason  Reason
	message string
}

// decoder fills typed objects from YAML nodes. Unlike encoding/json it goes on
// after a mistake, so that all of them are reported at once, with their paths.
type decoder struct {
	path     []string
	problems []problem
	more     bool // there were more problems than maxProblems
	nodes    int
	depth    int
	// strict makes an explicit null in spec a mistake. A list that lost its
	// entries reads as null, and for policies null often means "any".
	strict bool
}

// fieldsCache remembers fieldsOf, which depends on the type only.
var fieldsCache sync.Map // reflect.Type -> structFields

type structFields struct {
	index    map[string][]int
	required []string
}

func (d *decoder) problem(n *yaml.Node, reason Reason, format string, args ...any) {
	if len(d.problems) >= maxProblems {
		d.more = true
		return
	}
	d.problems = append(d.problems, problem{
		path: d.at(""), line: n.Line, reason: reason, message: fmt.Sprintf(format, args...),
	})
}

// at returns the current path and a field of it.
func (d *decoder) at(field string) string {
	path := strings.Join(d.path, "")
	if field != "" {
		path += "." + field
	}
	return strings.TrimPrefix(path, ".")
}

// in runs f with a path that is one step longer.
func (d *decoder) in(step string, f func()) {
	d.path = append(d.path, step)
	f()
	d.path = d.path[:len(d.path)-1]
}

// resolve follows aliases; nil if the document is larger than it may be.
func (d *decoder) resolve(n *yaml.Node) *yaml.Node {
	for range 100 {
		if d.nodes++; d.nodes > maxNodes {
			return nil
		}
		if n.Kind != yaml.AliasNode {
			return n
		}
		if n = n.Alias; n == nil {
			return nil
		}
	}
	return nil
}

// value fills v, which must be settable, from n.
func (d *decoder) value(n *yaml.Node, v reflect.Value) {
	node := d.resolve(n)
	if node == nil {
		d.problem(n, ReasonSyntax, "the document is too large with its aliases written out: write it without aliases")
		return
	}
	n = node
	if isNull(n) {
		if d.strict && strings.HasPrefix(d.at(""), "spec") {
			d.problem(n, ReasonWrongType, "is null, which can mean nothing or everything: give it a value or remove the field")
		}
		return
	}
	if u, ok := reflect.TypeAssert[json.Unmarshaler](v.Addr()); ok {
		d.unmarshal(n, u)
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		p := reflect.New(v.Type().Elem())
		d.value(n, p.Elem())
		v.Set(p)
	case reflect.Struct:
		d.structure(n, v)
	case reflect.Map:
		d.mapping(n, v)
	case reflect.Slice:
		d.sequence(n, v)
	case reflect.Interface:
		if x, ok := d.any(n); ok {
			v.Set(reflect.ValueOf(x))
		}
	default:
		d.scalar(n, v)
	}
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }

// unmarshal leaves n to a type that reads its own JSON, such as a time.
func (d *decoder) unmarshal(n *yaml.Node, u json.Unmarshaler) {
	x, ok := d.any(n)
	if !ok {
		return
	}
	raw, err := json.Marshal(x)
	if err == nil {
		err = u.UnmarshalJSON(raw)
	}
	if err == nil {
		return
	}
	if _, ok := u.(*metav1.Time); ok {
		d.problem(n, ReasonWrongType, "%s is no time: write one such as 2026-01-31T15:04:05Z", describe(n))
		return
	}
	d.problem(n, ReasonWrongType, "%s is not understood: %v", describe(n), err)
}

func (d *decoder) structure(n *yaml.Node, v reflect.Value) {
	if n.Kind != yaml.MappingNode {
		d.problem(n, ReasonWrongType, "is %s where an object is due: write `field: value` pairs", describe(n))
		return
	}
	fields := fieldsOf(v.Type())
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, val := n.Content[i], n.Content[i+1]
		name := key.Value
		if key.Kind != yaml.ScalarNode {
			name = "?"
		}
		d.in("."+name, func() {
			index, known := fields.index[name]
			switch {
			case (!known || seen[name]) && d.strict && slices.Contains(ruleWords, name):
				d.problem(key, ReasonMisplaced, "does not belong here, or is given twice: look at the indentation of this rule and the next one")
			case !known:
				reason := ReasonUnknownField
				if key.Kind != yaml.ScalarNode || val.Kind == yaml.SequenceNode {
					reason = ReasonUnknownList
				}
				d.problem(key, reason, "is no field of this object%s: remove it or correct its name", suggest(name, fields.index))
			case seen[name] && val.Kind == yaml.SequenceNode:
				d.problem(key, ReasonUnknownList, "is given twice, and here it is a list: keep one, or look at the indentation")
			case seen[name]:
				d.problem(key, ReasonDuplicateField, "is given twice: keep one")
			default:
				d.value(val, v.FieldByIndex(index))
			}
		})
		seen[name] = true
	}
	for _, name := range fields.required {
		if !seen[name] {
			d.in("."+name, func() { d.problem(n, ReasonRequired, "is missing: it must be given") })
		}
	}
}

// ruleWords are fields of rules and the lists of rules. Where they are not due, a
// rule may have slipped into the one before it, and what it denied is lost.
var ruleWords = []string{
	"action", "egress", "expiresAt", "from", "ingress", "name", "protocols", "reason", "serverName", "to",
}

func (d *decoder) mapping(n *yaml.Node, v reflect.Value) {
	if n.Kind != yaml.MappingNode {
		d.problem(n, ReasonWrongType, "is %s where `key: value` pairs are due", describe(n))
		return
	}
	m := reflect.MakeMap(v.Type())
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, val := n.Content[i], n.Content[i+1]
		d.in("["+key.Value+"]", func() {
			k := reflect.ValueOf(key.Value).Convert(v.Type().Key())
			switch {
			case key.Kind != yaml.ScalarNode || !isString(key):
				d.problem(key, ReasonWrongType, "has a key that is %s: put it in quotes", describe(key))
			case m.MapIndex(k).IsValid():
				d.problem(key, ReasonDuplicateField, "is given twice: keep one")
			default:
				e := reflect.New(v.Type().Elem()).Elem()
				d.value(val, e)
				m.SetMapIndex(k, e)
			}
		})
	}
	v.Set(m)
}

func (d *decoder) sequence(n *yaml.Node, v reflect.Value) {
	if n.Kind != yaml.SequenceNode {
		d.problem(n, ReasonWrongType, "is %s where a list is due: put `- ` before each entry", describe(n))
		return
	}
	s := reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content))
	for i, e := range n.Content {
		d.in("["+strconv.Itoa(i)+"]", func() { d.value(e, s.Index(i)) })
	}
	v.Set(s)
}

func (d *decoder) scalar(n *yaml.Node, v reflect.Value) {
	ok := n.Kind == yaml.ScalarNode
	switch {
	case !ok:
	case v.Kind() == reflect.String:
		if ok = isString(n); ok {
			v.SetString(n.Value)
		}
	case v.Kind() == reflect.Bool:
		if ok = n.ShortTag() == "!!bool" && (n.Value == "true" || n.Value == "false"); ok {
			v.SetBool(n.Value == "true")
		}
	case v.CanInt():
		var i int64
		if i, ok = integer(n); ok && v.OverflowInt(i) {
			d.problem(n, ReasonInvalidValue, "%s is too large", n.Value)
			return
		}
		if ok {
			v.SetInt(i)
		}
	case v.CanFloat():
		f, err := strconv.ParseFloat(n.Value, 64)
		if ok = err == nil && !math.IsInf(f, 0) && !math.IsNaN(f); ok {
			v.SetFloat(f)
		}
	default:
		ok = false
	}
	if !ok {
		d.problem(n, ReasonWrongType, "is %s where %s", describe(n), due(v))
	}
}

func due(v reflect.Value) string {
	switch {
	case v.Kind() == reflect.String:
		return "text is due: put it in quotes"
	case v.Kind() == reflect.Bool:
		return "true or false is due"
	case v.CanInt():
		return "a whole number in decimal digits is due"
	}
	return "a number is due"
}

// integer reads decimal digits only: other readers of YAML take 010 for 8 and
// 1_000 for 1000, and a port must not depend on who reads it.
func integer(n *yaml.Node) (int64, bool) {
	digits := strings.TrimPrefix(n.Value, "-")
	if n.ShortTag() != "!!int" || (len(digits) > 1 && digits[0] == '0') {
		return 0, false
	}
	i, err := strconv.ParseInt(n.Value, 10, 64)
	return i, err == nil
}

// isString reports whether every reader of YAML takes n for text. YAML 1.1, which
// kubectl reads, takes y, n, yes, no, on and off for booleans.
func isString(n *yaml.Node) bool {
	switch n.ShortTag() {
	case "!!str":
		quoted := n.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle|yaml.LiteralStyle|yaml.FoldedStyle) != 0
		return quoted || !slices.Contains([]string{"y", "n", "yes", "no", "on", "off"}, strings.ToLower(n.Value))
	case "!!timestamp":
		return true
	}
	return false
}

// any returns n as encoding/json would hold it.
func (d *decoder) any(n *yaml.Node) (any, bool) {
	node := d.resolve(n)
	if node == nil {
		d.problem(n, ReasonSyntax, "the document is too large with its aliases written out: write it without aliases")
		return nil, false
	}
	n = node
	if d.depth++; d.depth > maxDepth {
		d.depth--
		d.problem(n, ReasonSyntax, "is nested too deeply")
		return nil, false
	}
	defer func() { d.depth-- }()
	ok := true
	switch n.Kind {
	case yaml.MappingNode:
		m := map[string]any{}
		for i := 0; i+1 < len(n.Content); i += 2 {
			d.in("."+n.Content[i].Value, func() {
				x, good := d.any(n.Content[i+1])
				m[n.Content[i].Value] = x
				ok = ok && good
			})
		}
		return m, ok
	case yaml.SequenceNode:
		s := make([]any, 0, len(n.Content))
		for i, e := range n.Content {
			d.in("["+strconv.Itoa(i)+"]", func() {
				x, good := d.any(e)
				s = append(s, x)
				ok = ok && good
			})
		}
		return s, ok
	default:
	}
	switch {
	case isNull(n):
		return nil, true
	case isString(n):
		return n.Value, true
	case n.ShortTag() == "!!bool" && (n.Value == "true" || n.Value == "false"):
		return n.Value == "true", true
	}
	if i, isInt := integer(n); isInt {
		return i, true
	}
	if f, err := strconv.ParseFloat(n.Value, 64); err == nil && n.ShortTag() == "!!float" && !math.IsInf(f, 0) && !math.IsNaN(f) {
		return f, true
	}
	d.problem(n, ReasonWrongType, "is %s, which readers of YAML do not agree about: put text in quotes and write numbers in decimal digits", describe(n))
	return nil, false
}

// describe says what a node is, for messages.
func describe(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "an object"
	case yaml.SequenceNode:
		return "a list"
	default:
	}
	text := n.Value
	if len(text) > 40 {
		text = text[:40] + "..."
	}
	switch n.ShortTag() {
	case "!!null":
		return "null"
	case "!!int", "!!float":
		return "the number " + strconv.Quote(text)
	case "!!bool":
		return "the boolean " + strconv.Quote(text)
	}
	if !isString(n) {
		return "the word " + strconv.Quote(text) + ", which YAML 1.1 takes for a boolean, like y, n, yes, no, on and off,"
	}
	return "the text " + strconv.Quote(text)
}

// fieldsOf returns the fields of a struct by their JSON names. In the types of
// policies a field without omitempty is required.
func fieldsOf(t reflect.Type) structFields {
	if f, ok := fieldsCache.Load(t); ok {
		fields, _ := f.(structFields)
		return fields
	}
	f := structFields{index: map[string][]int{}}
	for i := range t.NumField() {
		sf := t.Field(i)
		name, options, _ := strings.Cut(sf.Tag.Get("json"), ",")
		if name == "-" || (!sf.IsExported() && !sf.Anonymous) {
			continue
		}
		if sf.Anonymous && name == "" {
			for inner, index := range fieldsOf(sf.Type).index {
				f.index[inner] = append([]int{i}, index...)
			}
			continue
		}
		if name == "" {
			name = sf.Name
		}
		f.index[name] = []int{i}
		if isPolicyType(t) && !strings.Contains(options, "omit") && !optional(t, name) {
			f.required = append(f.required, name)
		}
	}
	fieldsCache.Store(t, f)
	return f
}

// optional reports whether a field may be left out although it has no omitempty
// in the standard's types.
func optional(t reflect.Type, name string) bool {
	switch name {
	case "metadata", "conditions", "namespaceSelector":
		return true
	case "podSelector":
		return t == reflect.TypeFor[networkingv1.NetworkPolicySpec]()
	}
	return false
}

func isPolicyType(t reflect.Type) bool {
	return strings.HasPrefix(t.PkgPath(), "sigs.k8s.io/network-policy-api/") ||
		strings.HasSuffix(t.PkgPath(), "/api/v1alpha1") || t.PkgPath() == "k8s.io/api/networking/v1"
}

// suggest names a field that name may have been meant for.
func suggest(name string, fields map[string][]int) string {
	if best := nearest(name, sortedKeys(fields)); best != "" {
		return fmt.Sprintf(" (did you mean %s?)", best)
	}
	return ""
}

// nearest returns the name of a list that is most like name, or "" if none is:
// one letter may differ, of longer names two.
func nearest(name string, list []string) string {
	best, bestDistance := "", min(3, 2+len(name)/6)
	for _, f := range list {
		if dist := editDistance(strings.ToLower(name), strings.ToLower(f)); dist < bestDistance {
			best, bestDistance = f, dist
		}
	}
	return best
}

// editDistance is Levenshtein's, cut off at 3.
func editDistance(a, b string) int {
	if len(a)-len(b) > 2 || len(b)-len(a) > 2 {
		return 3
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		prev := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			prev, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, prev+cost)
		}
	}
	return row[len(b)]
}
