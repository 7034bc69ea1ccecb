package manifests

import (
	"bufio"
	"bytes"
	"math/rand/v2"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

func newReader(data []byte) *bufio.Reader { return bufio.NewReader(bytes.NewReader(data)) }

// mutate damages a manifest once, as text or as a tree, and says how. others are
// files to take strange parts from.
func mutate(rng *rand.Rand, data []byte, others map[string][]byte) (what string, out []byte) {
	for range 100 {
		if rng.IntN(2) == 0 {
			what, out = mutateText(rng, data)
		} else {
			what, out = mutateTree(rng, data, others)
		}
		if !bytes.Equal(out, data) {
			break
		}
	}
	return what, out
}

// mutateText changes bytes and lines.
func mutateText(rng *rand.Rand, data []byte) (string, []byte) {
	out := slices.Clone(data)
	at := rng.IntN(len(out))
	lines := slices.Collect(bytes.Lines(out))
	i, j := rng.IntN(len(lines)), rng.IntN(len(lines))
	const odd = "{}[]:,#&*!|>'\"%@`-? \t\n\r\x00\xff019azAZ./~\\"
	switch rng.IntN(11) {
	case 0:
		out[at] = odd[rng.IntN(len(odd))]
		return "byte replaced", out
	case 1:
		out[at] ^= 1 << rng.IntN(7)
		return "bit flipped", out
	case 2:
		return "byte inserted", slices.Insert(out, at, odd[rng.IntN(len(odd))])
	case 3:
		return "byte removed", slices.Delete(out, at, at+1)
	case 4:
		return "bytes removed", slices.Delete(out, at, min(len(out), at+1+rng.IntN(40)))
	case 5:
		return "cut off", out[:at]
	case 6:
		return "line removed", bytes.Join(slices.Delete(lines, i, i+1), nil)
	case 7:
		return "line repeated", bytes.Join(slices.Insert(lines, i, lines[i]), nil)
	case 8:
		lines[i], lines[j] = lines[j], lines[i]
		return "lines swapped", bytes.Join(lines, nil)
	case 9:
		lines[i] = append([]byte("  "), lines[i]...)
		return "line indented", bytes.Join(lines, nil)
	}
	lines[i] = bytes.TrimPrefix(lines[i], []byte("  "))
	return "line moved left", bytes.Join(lines, nil)
}

// place is a node of a document with what it takes to change it.
type place struct {
	parent *yaml.Node
	index  int // of the node in parent.Content; for a mapping, of the value
}

func (p place) node() *yaml.Node { return p.parent.Content[p.index] }

func places(n *yaml.Node) []place {
	var out []place
	for i, c := range n.Content {
		if n.Kind != yaml.MappingNode || i%2 == 1 {
			out = append(out, place{n, i})
		}
		out = append(out, places(c)...)
	}
	return out
}

func documents(data []byte) []*yaml.Node {
	var out []*yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(data))
	for {
		var n yaml.Node
		if err := dec.Decode(&n); err != nil {
			return out
		}
		out = append(out, &n)
	}
}

// mutateTree changes keys and values.
func mutateTree(rng *rand.Rand, data []byte, others map[string][]byte) (string, []byte) {
	docs := documents(data)
	doc := docs[rng.IntN(len(docs))]
	all := places(doc)[1:] // without the document itself
	p := all[rng.IntN(len(all))]
	what := mutatePlace(rng, p, all, others)
	var b bytes.Buffer
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	for _, d := range docs {
		if err := enc.Encode(d); err != nil {
			return "not written", data
		}
	}
	if err := enc.Close(); err != nil {
		return "not written", data
	}
	return what, b.Bytes()
}

func mutatePlace(rng *rand.Rand, p place, all []place, others map[string][]byte) string {
	n, c := p.node(), p.parent.Content
	mapping := p.parent.Kind == yaml.MappingNode
	scalar := func(tag, value string) *yaml.Node { return &yaml.Node{Kind: yaml.ScalarNode, Tag: tag, Value: value} }
	switch rng.IntN(13) {
	case 0:
		if mapping {
			p.parent.Content = slices.Delete(c, p.index-1, p.index+1)
		} else {
			p.parent.Content = slices.Delete(c, p.index, p.index+1)
		}
		return "entry removed"
	case 1:
		if mapping {
			c[p.index-1].Value = misspelt(rng, c[p.index-1].Value)
			return "key misspelt"
		}
	case 2:
		if mapping {
			p.parent.Content = append(slices.Clip(c), scalar("!!str", c[p.index-1].Value), copied(all[rng.IntN(len(all))].node()))
			return "key repeated"
		}
	case 3:
		if mapping {
			p.parent.Content = append(slices.Clip(c), scalar("!!str", []string{"to", "from", "except", "action", "unknown", "ports", "protocols", "selector", "x"}[rng.IntN(9)]), copied(all[rng.IntN(len(all))].node()))
			return "field added"
		}
	case 4:
		odd := [][2]string{
			{"!!int", "-1"},
			{"!!int", "0"},
			{"!!int", "65536"},
			{"!!int", "99999999999999999999"},
			{"!!int", "0x10"},
			{"!!float", "1.5"},
			{"!!float", ".inf"},
			{"!!bool", "true"},
			{"!!null", "null"},
			{"!!str", ""},
			{"!!str", "*"},
			{"!!str", "10.0.0.1"},
			{"!!str", "0.0.0.0/0"},
			{"!!str", "::ffff:0:0/96"},
			{"!!str", "::/0"},
			{"!!str", "010.0.0.0/8"},
			{"!!str", "10.9.8.7/8"},
			{"!!str", "fe80::1%eth0/64"},
			{"!!str", "Accept"},
			{"!!str", "Deny"},
			{"!!str", "Pass"},
			{"!!str", "Allow"},
			{"!!str", "http"},
			{"!!str", "in"},
			{"!!str", strings.Repeat("a", 300)},
		}[rng.IntN(25)]
		*n = *scalar(odd[0], odd[1])
		return "value replaced by " + odd[0] + " " + odd[1]
	case 5:
		*n = *copied(all[rng.IntN(len(all))].node())
		return "value replaced by another"
	case 6:
		*n = yaml.Node{Kind: yaml.SequenceNode, Content: []*yaml.Node{copied(n)}}
		return "value put into a list"
	case 7:
		*n = yaml.Node{Kind: yaml.MappingNode, Content: []*yaml.Node{scalar("!!str", "x"), copied(n)}}
		return "value put into an object"
	case 8:
		if len(n.Content) > 0 {
			n.Content = nil
			return "emptied"
		}
	case 9:
		if len(n.Content) > 0 {
			*n = *copied(n.Content[len(n.Content)-1])
			return "replaced by its content"
		}
	case 10:
		if n.Kind == yaml.ScalarNode {
			n.Value = misspelt(rng, n.Value)
			return "value misspelt"
		}
	case 11:
		q := all[rng.IntN(len(all))]
		*n, *q.node() = *copied(q.node()), *copied(n)
		return "values swapped"
	default:
		names := make([]string, 0, len(others))
		for name := range others {
			names = append(names, name)
		}
		slices.Sort(names)
		docs := documents(others[names[rng.IntN(len(names))]])
		theirs := places(docs[rng.IntN(len(docs))])
		*n = *copied(theirs[rng.IntN(len(theirs))].node())
		return "value replaced by one of another object"
	}
	return "nothing"
}

// copied is a deep copy, so that no node becomes its own part.
func copied(n *yaml.Node) *yaml.Node {
	c := *n
	c.Content = make([]*yaml.Node, len(n.Content))
	for i, e := range n.Content {
		c.Content[i] = copied(e)
	}
	return &c
}

func misspelt(rng *rand.Rand, s string) string {
	if s == "" {
		return "x"
	}
	b := []byte(s)
	i := rng.IntN(len(b))
	switch rng.IntN(4) {
	case 0:
		return string(slices.Delete(b, i, i+1))
	case 1:
		return string(slices.Insert(b, i, b[i]))
	case 2:
		b[i] ^= 0x20
		return string(b)
	}
	return s + "s"
}
