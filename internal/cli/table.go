package cli

import (
	"io"
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
	style style
	right bool // flush right: numbers
}

func text(s string) cell { return cell{text: s} }

func number(s string) cell { return cell{text: s, right: true} }

// table writes rows in columns that fit what came so far. The last column takes
// whatever room it needs.
type table struct {
	out    io.Writer
	colour bool
	width  []int
	rows   [][]cell
}

// newTable starts a table; headers in bold.
func (a *app) newTable(headers ...string) *table {
	t := &table{out: a.Out, colour: a.colour, width: make([]int, len(headers))}
	row := make([]cell, len(headers))
	for i, h := range headers {
		row[i] = cell{text: h, style: bold}
	}
	t.add(row...)
	return t
}

// add keeps a row for flush.
func (t *table) add(row ...cell) {
	for i := range row {
		row[i].text = clean(row[i].text)
		if i < len(t.width) {
			t.width[i] = max(t.width[i], utf8.RuneCountInString(row[i].text))
		}
	}
	t.rows = append(t.rows, row)
}

// flush writes the rows that were kept. More may follow; columns then only grow.
func (t *table) flush() error {
	var b strings.Builder
	for _, row := range t.rows {
		for len(row) > 0 && row[len(row)-1].text == "" {
			row = row[:len(row)-1]
		}
		for i, c := range row {
			pad := 0
			if i < len(t.width) {
				pad = t.width[i] - utf8.RuneCountInString(c.text)
			}
			if c.right {
				b.WriteString(strings.Repeat(" ", pad))
			}
			b.WriteString(paint(t.colour, c.style, c.text))
			if i == len(row)-1 {
				break
			}
			if !c.right {
				b.WriteString(strings.Repeat(" ", pad))
			}
			b.WriteString("  ")
		}
		b.WriteByte('\n')
	}
	t.rows = t.rows[:0]
	_, err := io.WriteString(t.out, b.String())
	return err
}

// paint wraps text in a style's escape sequence if there is to be colour.
func paint(colour bool, s style, text string) string {
	if !colour || s == plain || text == "" {
		return text
	}
	return "\x1b[" + string(s) + "m" + text + "\x1b[0m"
}
