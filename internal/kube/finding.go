package kube

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// ObjectRef names an object. The zero value stands for no object: a file, or a
// document whose object could not be told.
type ObjectRef struct {
	Kind, Namespace, Name string
}

// String returns "Kind namespace/name", or "Kind name" for a cluster-scoped kind.
func (r ObjectRef) String() string {
	if r.Namespace == "" {
		return strings.TrimSpace(r.Kind + " " + r.Name)
	}
	return r.Kind + " " + r.Namespace + "/" + r.Name
}

func compareRefs(a, b ObjectRef) int {
	return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}

// Severity says what a Finding does to enforcement.
type Severity uint8

// Severities.
const (
	// Error: a part of the object was not understood and is closed.
	Error Severity = 0
	// Warning: the object is enforced as written, but probably not as meant.
	Warning Severity = 1
)

// String returns "error" or "warning".
func (s Severity) String() string {
	if s == Warning {
		return "warning"
	}
	return "error"
}

// MarshalText returns String, for JSON.
func (s Severity) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Reason is a Finding's kind, for machines. The list is closed.
type Reason string

// Reasons.
const (
	ReasonSyntax             Reason = "Syntax"             // the text is no YAML or JSON, or no object
	ReasonUnknownKind        Reason = "UnknownKind"        // apiVersion and kind name nothing that is read
	ReasonIgnoredKind        Reason = "IgnoredKind"        // a kind of Kubernetes that has no part in policy
	ReasonIdentity           Reason = "Identity"           // name or namespace can't be told
	ReasonUnknownField       Reason = "UnknownField"       // the kind has no such field
	ReasonUnknownList        Reason = "UnknownList"        // the same, or given twice, and a list: rules may have got lost in it
	ReasonMisplaced          Reason = "Misplaced"          // a rule's field where none is due: a rule may have slipped into another
	ReasonDuplicateField     Reason = "DuplicateField"     // a field is given twice
	ReasonWrongType          Reason = "WrongType"          // a number where text is due, and the like
	ReasonRequired           Reason = "Required"           // a field is missing or null
	ReasonInvalidValue       Reason = "InvalidValue"       // a value outside of what the field takes
	ReasonInvalidNetwork     Reason = "InvalidNetwork"     // text that is no network or address
	ReasonNotCanonical       Reason = "NotCanonical"       // a network with bits beyond its length
	ReasonConflict           Reason = "Conflict"           // fields that exclude each other
	ReasonTooMany            Reason = "TooMany"            // more entries than the API takes
	ReasonUnknownTier        Reason = "UnknownTier"        // no Tier has the name
	ReasonUnknownSet         Reason = "UnknownSet"         // no DestinationSet has the name
	ReasonUnknownService     Reason = "UnknownService"     // no Service has the name
	ReasonInvalidService     Reason = "InvalidService"     // the Service that is named was not understood
	ReasonUnknownNamespace   Reason = "UnknownNamespace"   // no Namespace object
	ReasonEqualPriority      Reason = "EqualPriority"      // two policies claim one place
	ReasonNotEnforced        Reason = "NotEnforced"        // accepted, but without effect in this version
	ReasonWithoutEffect      Reason = "WithoutEffect"      // understood, and changes nothing as written
	ReasonDuplicateObject    Reason = "DuplicateObject"    // a second object of the same kind and name
	ReasonEmptyFile          Reason = "EmptyFile"          // a file lost its objects without being deleted
	ReasonUnreadable         Reason = "Unreadable"         // the file can't be read
	ReasonCutOff             Reason = "AllPodsCutOff"      // all pods are cut off because of a file that was never read
	ReasonLastVersion        Reason = "LastVersion"        // a file's last good version is in force, not the one that is there
	ReasonNotCovered         Reason = "NotCovered"         // traffic that can't be enforced (I11)
	ReasonAnnotation         Reason = "Annotation"         // a postern.dev annotation that says nothing usable
	ReasonHeld               Reason = "Held"               // deleted, and in force until its namespace's pods have ended
	ReasonMoreFindings       Reason = "MoreFindings"       // the object's list was cut off
	ReasonDuplicateAddress   Reason = "DuplicateAddress"   // two pods claim one address
	ReasonDuplicateInterface Reason = "DuplicateInterface" // two pods claim one interface
)

// Finding is one mistake, or one warning, in one place of one object.
type Finding struct {
	Object   ObjectRef
	Path     string // of the field, as `spec.egress[2].to[0].networks[1]`; empty for the whole object
	Severity Severity
	Reason   Reason
	Message  string // what is wrong and what to do
	// File and Line, from 1, are set for objects from files. Line 0 is unknown.
	File string `json:",omitempty"`
	Line int    `json:",omitempty"`
}

// String prints f on one line: `a.yaml:7: error: EgressPolicy shop/web spec.egress[0].to: ... (Required)`.
func (f Finding) String() string {
	var b strings.Builder
	if f.File != "" {
		b.WriteString(f.File)
		if f.Line > 0 {
			b.WriteString(":" + strconv.Itoa(f.Line))
		}
		b.WriteString(": ")
	}
	b.WriteString(f.Severity.String() + ": ")
	if f.Object != (ObjectRef{}) {
		b.WriteString(f.Object.String() + " ")
	}
	if f.Path != "" {
		b.WriteString(f.Path + ": ")
	}
	fmt.Fprintf(&b, "%s (%s)", f.Message, f.Reason)
	return b.String()
}

// SortFindings orders findings by file, line, object and path, and removes duplicates.
func SortFindings(fs []Finding) []Finding {
	slices.SortFunc(fs, func(a, b Finding) int {
		return cmp.Or(
			cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line), compareRefs(a.Object, b.Object),
			cmp.Compare(a.Path, b.Path), cmp.Compare(a.Severity, b.Severity), cmp.Compare(a.Reason, b.Reason),
			cmp.Compare(a.Message, b.Message),
		)
	})
	return slices.Compact(fs)
}

// HasErrors reports whether some finding is an error.
func HasErrors(fs []Finding) bool {
	return slices.ContainsFunc(fs, func(f Finding) bool { return f.Severity == Error })
}
