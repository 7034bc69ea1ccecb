package policy

import (
	"slices"
	"strconv"
	"strings"
)

// Operator of a Requirement. Source: metav1.LabelSelectorOperator.
type Operator string

// Operators.
const (
	OpIn           Operator = "In"
	OpNotIn        Operator = "NotIn"
	OpExists       Operator = "Exists"
	OpDoesNotExist Operator = "DoesNotExist"
)

// Requirement is one condition on a set of labels.
type Requirement struct {
	Key    string
	Op     Operator
	Values []string // sorted, without duplicates; empty for Exists and DoesNotExist
}

// Selector is a conjunction of requirements on labels, sorted by key, operator
// and values. The zero value has none and so selects everything, as in
// metav1.LabelSelector; whether there is a selector at all is the user's affair (P1).
// Source: metav1.LabelSelector.
type Selector struct {
	Requirements []Requirement
}

// NewSelector returns the canonical selector for the requirements.
func NewSelector(reqs ...Requirement) Selector {
	out := make([]Requirement, 0, len(reqs))
	for _, r := range reqs {
		r.Values = slices.Compact(slices.Sorted(slices.Values(r.Values)))
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b Requirement) int {
		if c := strings.Compare(a.Key, b.Key); c != 0 {
			return c
		}
		if c := strings.Compare(string(a.Op), string(b.Op)); c != 0 {
			return c
		}
		return slices.Compare(a.Values, b.Values)
	})
	return Selector{Requirements: out}
}

// Matches reports whether labels fulfil every requirement.
// NotIn holds for a label that is absent.
func (s Selector) Matches(labels map[string]string) bool {
	for _, r := range s.Requirements {
		v, ok := labels[r.Key]
		switch r.Op {
		case OpIn:
			if !ok || !slices.Contains(r.Values, v) {
				return false
			}
		case OpNotIn:
			if ok && slices.Contains(r.Values, v) {
				return false
			}
		case OpExists:
			if !ok {
				return false
			}
		case OpDoesNotExist:
			if ok {
				return false
			}
		default:
			return false
		}
	}
	return true
}

// String returns the canonical text form: "a in (x,y),b,!c", or "*" if s
// selects everything. Different selectors have different text: a key or value
// with a character that labels can't have is quoted.
func (s Selector) String() string {
	if len(s.Requirements) == 0 {
		return "*"
	}
	var b strings.Builder
	for i, r := range s.Requirements {
		if i > 0 {
			b.WriteByte(',')
		}
		key := labelText(r.Key)
		switch r.Op {
		case OpIn:
			if len(r.Values) == 1 {
				b.WriteString(key + "=" + labelText(r.Values[0]))
				continue
			}
			b.WriteString(key + " in " + valuesText(r.Values))
		case OpNotIn:
			b.WriteString(key + " notin " + valuesText(r.Values))
		case OpExists:
			b.WriteString(key)
		case OpDoesNotExist:
			b.WriteString("!" + key)
		default:
			b.WriteString("?" + key)
		}
	}
	return b.String()
}

func valuesText(values []string) string {
	out := make([]string, len(values))
	for i, v := range values {
		out[i] = labelText(v)
	}
	return "(" + strings.Join(out, ",") + ")"
}

// labelText quotes what is neither a label's key nor its value.
func labelText(s string) string {
	if strings.ContainsFunc(s, func(c rune) bool { return !strings.ContainsRune(plainCharacters+"/", c) }) {
		return strconv.Quote(s)
	}
	return s
}
