package demo

import (
	"fmt"
	"strings"
)

// Styles of text. Source: ECMA-48 section 8.3.117 (SGR).
const (
	bold   = "1"
	dim    = "2"
	red    = "31"
	green  = "32"
	yellow = "33"
)

func (d *demo) paint(style, s string) string {
	if !d.Colour {
		return s
	}
	return "\x1b[" + style + "m" + s + "\x1b[0m"
}

func (d *demo) print(format string, args ...any) {
	_, _ = fmt.Fprintf(d.Out, format+"\n", args...)
}

// chapter starts a part of the story.
func (d *demo) chapter(title string, lines ...string) {
	d.n++
	d.print("\n%s", d.paint(bold, fmt.Sprintf("%d. %s", d.n, title)))
	for _, l := range lines {
		d.print("   %s", l)
	}
}

// command shows a command that does by hand what happens now.
func (d *demo) command(format string, args ...any) {
	d.print("\n   %s", d.paint(bold, "$ "+fmt.Sprintf(format, args...)))
}

// yaml shows a manifest without its comments.
func (d *demo) yaml(text string) {
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		if !strings.HasPrefix(strings.TrimSpace(line), "#") && line != "" {
			d.print("   %s", d.paint(dim, "| "+line))
		}
	}
}

// row prints what became of a probe.
func (d *demo) row(from, to, outcome, style, detail string) {
	d.print("   %-39s %s  %s", fmt.Sprintf("%-13s -> %s", from, to), d.paint(style, fmt.Sprintf("%-7s", outcome)), detail)
}

// claim prints a fact that was measured, or notes that it is not true.
func (d *demo) claim(ok bool, format string, args ...any) {
	d.claims++
	text := fmt.Sprintf(format, args...)
	if ok {
		d.print("   %s %s", d.paint(green, "true:"), text)
		return
	}
	d.failed = append(d.failed, text)
	d.print("   %s %s", d.paint(red, "NOT TRUE:"), text)
}
