package manifests

import (
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// line returns the line of a field of an object, or of the nearest thing around
// it that can be found; 0 if the text is not kept. The file's text is parsed
// again for it: findings are few, and the nodes of every file are many.
func (p *parsed) line(o *object, path string) int {
	line, path := foldedLine(p.runs, o, path)
	if line > 0 {
		return line
	}
	if p.text == nil {
		return 0
	}
	if p.docs == nil {
		err := eachDocument(p.text, func(doc int, n *yaml.Node) {
			p.docs = append(p.docs, document{doc, n})
		})
		if err != nil {
			return 0
		}
	}
	for _, d := range p.docs {
		if d.index != o.doc {
			continue
		}
		n := d.node
		if items := listItems(n); o.item >= 0 && o.item < len(items) {
			n = items[o.item]
		}
		line = lineOf(n, path)
	}
	return originalLine(p.runs, line)
}

// document is a parsed document, while lines are looked up in it.
type document struct {
	index int
	node  *yaml.Node
}

// lineOf follows a field path as far as it goes.
func lineOf(n *yaml.Node, path string) int {
	line := n.Line
	for path != "" {
		if n.Kind == yaml.AliasNode && n.Alias != nil {
			n = n.Alias
		}
		var next *yaml.Node
		var step string
		if rest, ok := strings.CutPrefix(path, "["); ok {
			step, path, _ = strings.Cut(rest, "]")
			path = strings.TrimPrefix(path, ".")
			if n.Kind == yaml.SequenceNode {
				if i, err := strconv.Atoi(step); err == nil && i >= 0 && i < len(n.Content) {
					next = n.Content[i]
					line = next.Line
				}
			} else if key := keyNode(n, step); key != nil {
				line, next = key.Line, field(n, step)
			}
		} else {
			end := strings.IndexAny(path, ".[")
			if end < 0 {
				end = len(path)
			}
			step, path = path[:end], strings.TrimPrefix(path[end:], ".")
			if key := keyNode(n, step); key != nil {
				line, next = key.Line, field(n, step)
			}
		}
		if next == nil {
			return line
		}
		n = next
	}
	return line
}

func keyNode(n *yaml.Node, name string) *yaml.Node {
	if n.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == name {
			return n.Content[i]
		}
	}
	return nil
}
