// Package cmdref writes the reference of a program's commands and flags, from the
// commands themselves.
package cmdref

import (
	"fmt"
	"os"
	"strings"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Page returns the reference as Markdown: every command of root that is not
// hidden, with its flags. intro follows the heading. The text verbatim, where a
// command's help holds it, keeps its lines.
func Page(root *cobra.Command, title, intro, verbatim string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# %s\n\n<!-- Written by `make generate` from the commands themselves. -->\n\n%s\n\n", title, intro)
	walk(root, func(cmd *cobra.Command) {
		if cmd != root {
			fmt.Fprintf(&b, "- [%s](#%s): %s\n", cmd.CommandPath(), anchor(cmd.CommandPath()), cmd.Short)
		}
	})
	walk(root, func(cmd *cobra.Command) { describe(&b, cmd, verbatim) })
	return b.String()
}

// Compare fails, with what differs, if the file does not hold the page; with
// update it writes the file instead.
func Compare(file, page string, update bool) error {
	if update {
		return os.WriteFile(file, []byte(page), 0o644) //nolint:gosec // a page of the documentation
	}
	have, err := os.ReadFile(file) //nolint:gosec // the caller's
	if err != nil {
		return err
	}
	if diff := cmp.Diff(string(have), page); diff != "" {
		return fmt.Errorf("%s is out of date, run make generate (-have +want)\n%s", file, diff)
	}
	return nil
}

// walk calls f for cmd and what is below it, in the order of the help.
func walk(cmd *cobra.Command, f func(*cobra.Command)) {
	if cmd.Hidden || cmd.Name() == "help" {
		return
	}
	f(cmd)
	if cmd.Name() == "completion" {
		return // its subcommands are cobra's, one per shell
	}
	for _, c := range cmd.Commands() {
		walk(c, f)
	}
}

// anchor is GitHub's for a heading.
func anchor(heading string) string { return strings.ReplaceAll(heading, " ", "-") }

func describe(b *strings.Builder, cmd *cobra.Command, verbatim string) {
	fmt.Fprintf(b, "\n## %s\n\n", cmd.CommandPath())
	text := cmd.Long
	if text == "" || cmd.Name() == "completion" {
		text = cmd.Short + "."
	}
	prose, rest, found := text, "", false
	if verbatim != "" {
		prose, rest, found = strings.Cut(text, verbatim)
	}
	b.WriteString(strings.TrimSpace(prose) + "\n")
	if found {
		fmt.Fprintf(b, "\n```text\n%s\n```\n%s", verbatim, rest)
	}
	if cmd.Runnable() && !cmd.HasSubCommands() {
		fmt.Fprintf(b, "\n```text\n%s\n```\n", cmd.UseLine())
	}
	if len(cmd.Aliases) > 0 {
		fmt.Fprintf(b, "\nAlso: %s\n", strings.Join(cmd.Aliases, ", "))
	}
	if cmd.Example != "" {
		fmt.Fprintf(b, "\nExamples:\n\n```text\n%s\n```\n", dedent(cmd.Example))
	}
	var rows strings.Builder
	cmd.LocalNonPersistentFlags().VisitAll(func(f *pflag.Flag) {
		if f.Hidden || f.Name == "help" || f.Name == "version" {
			return
		}
		name := "--" + f.Name
		if f.Shorthand != "" {
			name = "-" + f.Shorthand + ", " + name
		}
		def := f.DefValue
		if def == "" || def == "false" || (def == "0" && f.Value.Type() != "string") {
			def = "-"
		}
		fmt.Fprintf(&rows, "| `%s` | %s | %s |\n", name, def, strings.ReplaceAll(f.Usage, "|", `\|`))
	})
	if rows.Len() > 0 {
		fmt.Fprintf(b, "\n| flag | default | |\n|---|---|---|\n%s", rows.String())
	}
}

// dedent takes two leading blanks from every line.
func dedent(s string) string {
	lines := strings.Split(s, "\n")
	for i := range lines {
		lines[i] = strings.TrimPrefix(lines[i], "  ")
	}
	return strings.Join(lines, "\n")
}
