package cli

import (
	"io"
	"slices"
	"strings"
	"unicode/utf8"
)

// style is how a cell looks on a terminal with colour.
type style string

// Styles are parameters of SGR. Source: ECMA-48 section 8.3.117.
const (
	plain  style = ""
	bold   style = "1"
	dim    style = "2"
	red    style = "31"
	green  style = "32"
	yellow style = "33"
)

// cell is one field of a table. Its text is cleaned when it is written (C1).
type cell struct {
	text  string
	brief string // instead of text where there is little room; empty: text
	style style
	right bool // flush right: numbers
}

func text(s string) cell { return cell{text: s} }

func number(s string) cell { return cell{text: s, right: true} }

// layout is a way to write a table in less room.
type layout struct {
	hide  []int // columns, from 0
	brief bool  // of the last column
	below bool  // the last column gets lines of its own, below the others
}

// table writes rows in columns that fit what came so far. The last column takes
// whatever room it needs.
type table struct {
	out    io.Writer
	colour bool
	width  []int
	brief  int // width of the last column where it is brief
	rows   [][]cell
	header []cell
	begun  bool // the headers are written

	// room is how wide a line may be; 0 without a limit. If the columns need more,
	// the first of layouts is used that fits, or the last one.
	room    int
	layouts []layout
	now     layout
}

// below is how far lines of the last column are indented.
const below = 4

// newTable starts a table; headers in bold.
func (a *app) newTable(headers ...string) *table {
	t := &table{out: a.Out, colour: a.colour, width: make([]int, len(headers))}
	for _, h := range headers {
		t.header = append(t.header, cell{text: h, style: bold})
	}
	t.add(t.header...)
	return t
}

// fit makes a table fit a terminal by one of layouts, the best first.
func (a *app) fit(t *table, layouts ...layout) {
	if a.OutTTY {
		t.room, t.layouts = a.Width, layouts
	}
}

// add keeps a row for flush.
func (t *table) add(row ...cell) {
	for i := range row {
		row[i].text, row[i].brief = clean(row[i].text), clean(row[i].brief)
		if row[i].brief == "" {
			row[i].brief = row[i].text
		}
		if i < len(t.width) {
			t.width[i] = max(t.width[i], utf8.RuneCountInString(row[i].text))
		}
		if i == len(t.width)-1 {
			t.brief = max(t.brief, utf8.RuneCountInString(row[i].brief))
		}
	}
	t.rows = append(t.rows, row)
}

// needs returns the width of a line of a layout, as far as rows came.
func (t *table) needs(l layout) int {
	n, last := -2, len(t.width)-1
	for i, w := range t.width {
		switch {
		case slices.Contains(l.hide, i) || (i == last && l.below):
			continue
		case i == last && l.brief:
			w = t.brief
		}
		n += w + 2
	}
	return n
}

// layOut goes on to a layout that fits, and reports whether it is another one.
// While rows come it never goes back.
func (t *table) layOut() (changed bool) {
	for t.room > 0 && len(t.layouts) > 0 && t.needs(t.now) > t.room {
		t.now, t.layouts = t.layouts[0], t.layouts[1:]
		changed = true
	}
	return changed
}

// flush writes the rows that were kept. More may follow; columns then only grow,
// and the headers come again where the layout changes.
func (t *table) flush() error {
	if t.layOut() && t.begun {
		t.rows = slices.Insert(t.rows, 0, t.header)
	}
	t.begun = true
	var b strings.Builder
	for _, row := range t.rows {
		t.write(&b, row)
	}
	t.rows = t.rows[:0]
	_, err := io.WriteString(t.out, b.String())
	return err
}

func (t *table) write(b *strings.Builder, row []cell) {
	last := len(t.width) - 1
	beside, under := -1, "" // the last column that is written, and what is written below
	for i, c := range row {
		switch {
		case slices.Contains(t.now.hide, i):
		case i == last && t.now.below:
			under = c.text
		case c.text != "":
			beside = i
		}
	}
	for i := range beside + 1 {
		c := row[i]
		if slices.Contains(t.now.hide, i) {
			continue
		}
		if i == last && t.now.brief {
			c.text = c.brief
		}
		pad := 0
		if i < len(t.width) {
			pad = t.width[i] - utf8.RuneCountInString(c.text)
		}
		if c.right {
			b.WriteString(strings.Repeat(" ", pad))
		}
		b.WriteString(paint(t.colour, c.style, c.text))
		if i == beside {
			break
		}
		if !c.right {
			b.WriteString(strings.Repeat(" ", pad))
		}
		b.WriteString("  ")
	}
	b.WriteByte('\n')
	if under == "" {
		return
	}
	for _, line := range wrap(under, t.room-below) {
		b.WriteString(strings.Repeat(" ", below) + paint(t.colour, row[last].style, line) + "\n")
	}
}

// wrap breaks text between words into lines of a width, where words permit.
func wrap(text string, width int) []string {
	var lines []string
	line := ""
	for w := range strings.FieldsSeq(text) {
		switch {
		case line == "":
			line = w
		case utf8.RuneCountInString(line)+1+utf8.RuneCountInString(w) > width:
			lines, line = append(lines, line), w
		default:
			line += " " + w
		}
	}
	return append(lines, line)
}

// paint wraps text in a style's escape sequence if there is to be colour.
func paint(colour bool, s style, text string) string {
	if !colour || s == plain || text == "" {
		return text
	}
	return "\x1b[" + string(s) + "m" + text + "\x1b[0m"
}
