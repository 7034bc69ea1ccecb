package policy

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/postern-dev/postern/internal/packet"
)

// labelPair is one label, or with any set every value of a key.
type labelPair struct {
	key, value string
	any        bool
}

// podQuery is one distinct way to select pods, shared by every subject and
// peer that says the same. It always knows its members.
type podQuery struct {
	text       string // canonical; also the SetID's
	namespace  string // "" means by labels
	namespaces []labelTest
	pods       []labelTest
	accounts   []string
	place      bucket
	alts       []string // further buckets of one requirement: its other values
	order      int      // place among queries, for a steady order of work

	members map[*podState]struct{}
	local   int // members that are endpoints
	// subjects are the policies whose Subject this is; groups are the sets
	// made of the members, by port name ("" is the plain addresses).
	subjects map[*policyState]struct{}
	groups   map[groupKey]*podGroup
}

// groupKey tells the sets of a query apart.
type groupKey struct {
	port    string // name of a container port, or "" for the addresses alone
	guarded bool   // less Snapshot.Protected
}

// labelTest is a Requirement prepared for the compiler.
type labelTest struct {
	key    string
	op     Operator
	values map[string]struct{}
	sorted []string
}

func labelTests(s Selector) []labelTest {
	var out []labelTest
	for _, r := range NewSelector(s.Requirements...).Requirements {
		t := labelTest{key: r.Key, op: r.Op, values: map[string]struct{}{}, sorted: r.Values}
		for _, v := range r.Values {
			t.values[v] = struct{}{}
		}
		out = append(out, t)
	}
	return out
}

// holds reports whether every test holds for labels. An unknown operator never does.
func holds(tests []labelTest, labels map[string]string) bool {
	for i := range tests {
		t := &tests[i]
		value, present := labels[t.key]
		_, listed := t.values[value]
		ok := false
		switch t.op {
		case OpIn:
			ok = present && listed
		case OpNotIn:
			ok = !present || !listed
		case OpExists:
			ok = present
		case OpDoesNotExist:
			ok = !present
		}
		if !ok {
			return false
		}
	}
	return true
}

func (q *podQuery) selects(p *Pod, namespaceLabels map[string]string) bool {
	if len(q.accounts) > 0 && !slices.Contains(q.accounts, p.ServiceAccount) {
		return false
	}
	if q.namespace != "" {
		return p.Namespace == q.namespace && holds(q.pods, p.Labels)
	}
	return holds(q.pods, p.Labels) && holds(q.namespaces, namespaceLabels)
}

// newPodQuery writes a query canonically. The text is injective: a name stands
// bare, selectors stand in braces, and anything unusual is quoted.
func newPodQuery(namespace string, namespaces, pods Selector, accounts []string) *podQuery {
	q := &podQuery{
		namespace: namespace,
		pods:      labelTests(pods),
		members:   map[*podState]struct{}{},
		subjects:  map[*policyState]struct{}{},
		groups:    map[groupKey]*podGroup{},
	}
	pods = NewSelector(pods.Requirements...)
	if namespace != "" {
		q.text = plainOrQuoted(namespace) + "/{" + pods.String() + "}"
	} else {
		namespaces = NewSelector(namespaces.Requirements...)
		q.namespaces = labelTests(namespaces)
		q.text = "{" + namespaces.String() + "}/{" + pods.String() + "}"
	}
	if len(accounts) > 0 {
		q.accounts = slices.Compact(slices.Sorted(slices.Values(accounts)))
		var b strings.Builder
		for _, a := range q.accounts {
			b.WriteString("," + strconv.Quote(a))
		}
		q.text += "/accounts" + b.String()
	}
	return q
}

// bucket is where the index keeps a query. A pod is looked up in the few
// buckets that its own labels name.
type bucket struct {
	scope byte   // 'n' pod label within a namespace, 'p' pod label, 'l' namespace label, '*' all
	ns    string // for 'n'
	label labelPair
}

// queryIndex finds the queries that select a pod without asking all of them,
// by one positive requirement of each: felix' label index, turned around.
type queryIndex struct {
	byText  map[string]*podQuery
	buckets map[bucket]map[*podQuery]struct{}
	made    int
}

// add files q under the positive requirement with the emptiest buckets.
func (x *queryIndex) add(q *podQuery) {
	x.byText[q.text] = q
	x.made++
	q.order = x.made
	base := bucket{scope: 'p'}
	if q.namespace != "" {
		base = bucket{scope: 'n', ns: q.namespace}
	}
	best := -1
	choose := func(base bucket, tests []labelTest) {
		for _, t := range tests {
			var places []labelPair
			switch t.op {
			case OpIn:
				for _, v := range t.sorted {
					places = append(places, labelPair{key: t.key, value: v})
				}
			case OpExists:
				places = append(places, labelPair{key: t.key, any: true})
			case OpNotIn, OpDoesNotExist:
			}
			if len(places) == 0 {
				continue
			}
			size := 0
			for _, l := range places {
				b := base
				b.label = l
				size += len(x.buckets[b])
			}
			if best < 0 || size < best {
				best = size
				q.place, q.alts = base, nil
				q.place.label = places[0]
				for _, l := range places[1:] {
					q.alts = append(q.alts, l.value)
				}
			}
		}
	}
	choose(base, q.pods)
	if best < 0 {
		choose(bucket{scope: 'l'}, q.namespaces)
	}
	if best < 0 {
		q.place = bucket{scope: '*'}
		if q.namespace != "" {
			q.place = base
		}
	}
	x.each(q, func(b bucket) {
		if x.buckets[b] == nil {
			x.buckets[b] = map[*podQuery]struct{}{}
		}
		x.buckets[b][q] = struct{}{}
	})
}

func (x *queryIndex) remove(q *podQuery) {
	delete(x.byText, q.text)
	x.each(q, func(b bucket) {
		delete(x.buckets[b], q)
		if len(x.buckets[b]) == 0 {
			delete(x.buckets, b)
		}
	})
}

func (x *queryIndex) each(q *podQuery, f func(bucket)) {
	f(q.place)
	for _, v := range q.alts {
		b := q.place
		b.label.value = v
		f(b)
	}
}

// matching returns the queries that select p, in the order they were made.
func (x *queryIndex) matching(p *Pod, namespaceLabels map[string]string) []*podQuery {
	var out []*podQuery
	try := func(b bucket) {
		for q := range x.buckets[b] {
			if q.selects(p, namespaceLabels) {
				out = append(out, q)
			}
		}
	}
	try(bucket{scope: '*'})
	try(bucket{scope: 'n', ns: p.Namespace})
	for k, v := range p.Labels {
		for _, l := range []labelPair{{key: k, value: v}, {key: k, any: true}} {
			try(bucket{scope: 'p', label: l})
			try(bucket{scope: 'n', ns: p.Namespace, label: l})
		}
	}
	for k, v := range namespaceLabels {
		try(bucket{scope: 'l', label: labelPair{key: k, value: v}})
		try(bucket{scope: 'l', label: labelPair{key: k, any: true}})
	}
	slices.SortFunc(out, func(a, b *podQuery) int { return a.order - b.order })
	return out
}

// podIndex finds the pods that a new query selects.
type podIndex struct {
	byNamespace map[string]map[*podState]struct{}
	byLabel     map[labelPair]map[*podState]struct{}
}

func (x *podIndex) add(ps *podState) {
	put := func(m map[*podState]struct{}) map[*podState]struct{} {
		if m == nil {
			m = map[*podState]struct{}{}
		}
		m[ps] = struct{}{}
		return m
	}
	x.byNamespace[ps.pod.Namespace] = put(x.byNamespace[ps.pod.Namespace])
	for k, v := range ps.pod.Labels {
		l := labelPair{key: k, value: v}
		x.byLabel[l] = put(x.byLabel[l])
	}
}

func (x *podIndex) remove(ps *podState) {
	delete(x.byNamespace[ps.pod.Namespace], ps)
	if len(x.byNamespace[ps.pod.Namespace]) == 0 {
		delete(x.byNamespace, ps.pod.Namespace)
	}
	for k, v := range ps.pod.Labels {
		l := labelPair{key: k, value: v}
		delete(x.byLabel[l], ps)
		if len(x.byLabel[l]) == 0 {
			delete(x.byLabel, l)
		}
	}
}

// candidates calls f for a superset of the pods that q selects: those with one
// of a required label's values, or else those of the namespaces in question.
func (x *podIndex) candidates(q *podQuery, labelsOf func(namespace string) map[string]string, f func(*podState)) {
	best := -1
	var from []map[*podState]struct{}
	for i := range q.pods {
		t := &q.pods[i]
		if t.op != OpIn {
			continue
		}
		size := 0
		var sets []map[*podState]struct{}
		for _, v := range t.sorted {
			set := x.byLabel[labelPair{key: t.key, value: v}]
			size += len(set)
			sets = append(sets, set)
		}
		if best < 0 || size < best {
			best, from = size, sets
		}
	}
	switch {
	case q.namespace != "" && (best < 0 || len(x.byNamespace[q.namespace]) < best):
		from = []map[*podState]struct{}{x.byNamespace[q.namespace]}
	case best < 0:
		for ns, set := range x.byNamespace {
			if holds(q.namespaces, labelsOf(ns)) {
				from = append(from, set)
			}
		}
	}
	for _, set := range from {
		for ps := range maps.Keys(set) {
			f(ps)
		}
	}
}

// plainOrQuoted returns s as it is if it needs no quotes, so that texts made of
// such parts and separators cannot be mistaken for one another.
func plainOrQuoted(s string) string {
	if strings.ContainsFunc(s, func(c rune) bool { return !strings.ContainsRune(plainCharacters, c) }) {
		return strconv.Quote(s)
	}
	return s
}

// plainCharacters are those of names in Kubernetes; separators are not among them.
const plainCharacters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_."

// portKey is one numeric container port.
type portKey struct {
	protocol packet.Protocol
	port     uint16
}

func (k portKey) String() string {
	return k.protocol.String() + "/" + strconv.Itoa(int(k.port))
}
