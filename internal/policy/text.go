package policy

import (
	"fmt"
	"strconv"
	"strings"
)

// String prints r for people: `networkpolicy shop/web egress[0] "to-db"`,
// `networkpolicy shop/web egress isolation`, `egress no-match`.
// It leaves out the Kind; two kinds may hold policies of one name.
func (r RuleRef) String() string {
	var b strings.Builder
	if r.Tier != "" {
		b.WriteString(r.Tier + " ")
	}
	if r.Namespace != "" {
		b.WriteString(r.Namespace + "/")
	}
	if r.Policy != "" {
		b.WriteString(r.Policy + " ")
	}
	b.WriteString(r.Direction.String())
	if r.Index >= 0 {
		b.WriteString("[" + strconv.Itoa(r.Index) + "]")
	} else {
		b.WriteString(" " + indexText(r.Index))
	}
	if r.Name != "" {
		b.WriteString(" " + strconv.Quote(r.Name))
	}
	return b.String()
}

// indexText names a negative Index.
func indexText(index int) string {
	switch index {
	case IndexNoMatch:
		return "no-match"
	case IndexIsolation:
		return "isolation"
	case IndexTierDefault:
		return "tier-default"
	case IndexSelf:
		return "self"
	case IndexNode:
		return "own-node"
	case IndexNoBackend:
		return "no-backend"
	case IndexProtected:
		return "protected"
	case IndexUnknown:
		return "unknown-endpoint"
	case IndexDeferred:
		return "deferred"
	case IndexCapacity:
		return "capacity"
	case IndexDatapath:
		return "datapath"
	}
	return "index" + strconv.Itoa(index)
}

// String prints d as "dropped by networkpolicy shop/web egress isolation".
func (d Decision) String() string { return d.Verdict.String() + " by " + d.Rule.String() }

// MarshalText returns String, for JSON.
func (d Direction) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText is the inverse of MarshalText.
func (d *Direction) UnmarshalText(b []byte) error {
	for _, v := range Directions {
		if v.String() == string(b) {
			*d = v
			return nil
		}
	}
	return fmt.Errorf("direction %q: want egress or ingress", b)
}

// MarshalText returns String, for JSON.
func (a Action) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// UnmarshalText is the inverse of MarshalText.
func (a *Action) UnmarshalText(b []byte) error {
	for _, v := range []Action{Deny, Accept, Pass} {
		if v.String() == string(b) {
			*a = v
			return nil
		}
	}
	return fmt.Errorf("action %q: want Accept, Deny or Pass", b)
}

// MarshalText returns String, for JSON.
func (v Verdict) MarshalText() ([]byte, error) { return []byte(v.String()), nil }

// UnmarshalText is the inverse of MarshalText.
func (v *Verdict) UnmarshalText(b []byte) error {
	for _, w := range []Verdict{Dropped, Forwarded, Deferred} {
		if w.String() == string(b) {
			*v = w
			return nil
		}
	}
	return fmt.Errorf("verdict %q: want dropped, forwarded or deferred", b)
}
