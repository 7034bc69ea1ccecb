package manifests

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/postern-dev/postern/api/v1alpha1"
)

// A set of a million networks is a list of a million lines that look alike. A
// YAML parser takes seconds and hundreds of megabytes for them, so they are
// folded: each run of such lines is replaced by one entry that stands for it,
// the small rest is parsed, and the entry is unfolded where it turns up again:
// in the networks or except of a set. If it turns up anywhere else, or not at
// all, the file is parsed as it is.

// minRun is the number of lines from which on folding pays.
const minRun = 1024

// run is a folded run of lines.
type run struct {
	mark   string // what stands for it
	values []v1alpha1.CIDR
	count  int // of values
	line   int // of the first value in the file
	at     int // of the mark in the folded text
	// Set by unfold.
	doc, item int
	list      string // "networks" or "except"
	index     int    // of the first value
}

// lineForm is what the lines of a run have in common around the value.
type lineForm struct{ before, after string }

// foldRuns returns the folded text, and no runs if there is nothing to fold.
func foldRuns(data []byte) ([]byte, []run) {
	if len(data) < minRun*8 {
		return data, nil
	}
	text := string(data)
	var runs []run
	var out strings.Builder
	var pending []v1alpha1.CIDR
	var form lineForm
	start, startLine, copied, outLine := 0, 0, 0, 0
	flush := func(end, endLine int) {
		if len(pending) >= minRun {
			kept := text[copied:start]
			out.WriteString(kept)
			outLine += strings.Count(kept, "\n")
			mark := "postern-folded-run-" + strconv.Itoa(len(runs))
			out.WriteString(form.before + mark + form.after + "\n")
			outLine++
			runs = append(runs, run{mark: mark, values: pending, count: len(pending), line: startLine, at: outLine})
			copied = end
			pending = nil
		}
		pending, start, startLine = pending[:0], end, endLine
	}
	for pos, line := 0, 1; pos < len(text); line++ {
		end := len(text)
		if i := strings.IndexByte(text[pos:], '\n'); i >= 0 {
			end = pos + i + 1
		}
		f, value, ok := splitLine(text[pos:end])
		if !ok || (len(pending) > 0 && f != form) {
			flush(pos, line)
		}
		if ok {
			form = f
			if len(pending) == minRun {
				pending = slices.Grow(pending, (len(text)-pos)/(end-pos)) // the rest, if it looks alike
			}
			pending = append(pending, v1alpha1.CIDR(value))
		} else {
			start, startLine = end, line+1
		}
		pos = end
	}
	flush(len(text), 0)
	if len(runs) == 0 {
		return data, nil
	}
	out.WriteString(text[copied:])
	return []byte(out.String()), runs
}

// splitLine splits `  - "10.0.0.0/8"` and `    "10.0.0.0/8",` into form and value.
func splitLine(line string) (f lineForm, value string, ok bool) {
	line = strings.TrimRight(line, "\r\n")
	i := 0
	for i < len(line) && line[i] == ' ' {
		i++
	}
	dash := strings.HasPrefix(line[i:], "- ")
	if dash {
		i += 2
	}
	quote := byte(0)
	if i < len(line) && (line[i] == '"' || line[i] == '\'') {
		quote = line[i]
		i++
	}
	j, slash := i, false
	for j < len(line) && isNetworkByte(line[j]) {
		slash = slash || line[j] == '/'
		j++
	}
	after := line[j:]
	switch {
	case !slash || line[j-1] == '/' || line[j-1] == ':':
		return lineForm{}, "", false
	case dash && quote == 0 && after == "":
	case dash && quote != 0 && len(after) == 1 && after[0] == quote:
	case !dash && quote == '"' && after == `",`:
	default:
		return lineForm{}, "", false
	}
	return lineForm{line[:i], after}, line[i:j], true
}

func isNetworkByte(c byte) bool {
	return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F') || c == '.' || c == ':' || c == '/'
}

// setSpec returns the content of a set, or nil if obj is none.
func setSpec(obj metav1.Object) *v1alpha1.DestinationSetSpec {
	switch o := obj.(type) {
	case *v1alpha1.DestinationSet:
		return &o.Spec
	case *v1alpha1.ClusterDestinationSet:
		return &o.Spec
	}
	return nil
}

// unfold replaces the marks in a list of o by their runs and returns how many.
func unfold(o *object, list *[]v1alpha1.CIDR, runs []run, name string) int {
	found, total := 0, 0
	for _, entry := range *list {
		if i := runOf(runs, entry); i >= 0 {
			found++
			total += len(runs[i].values)
		}
	}
	if found == 0 {
		return 0
	}
	out := make([]v1alpha1.CIDR, 0, len(*list)-found+total)
	for _, entry := range *list {
		i := runOf(runs, entry)
		if i < 0 {
			out = append(out, entry)
			continue
		}
		runs[i].doc, runs[i].item, runs[i].list, runs[i].index = o.doc, o.item, name, len(out)
		out = append(out, runs[i].values...)
		runs[i].values = nil // a second mark of the same name finds nothing
	}
	*list = out
	return found
}

func runOf(runs []run, entry v1alpha1.CIDR) int {
	if !strings.HasPrefix(string(entry), "postern-folded-run-") {
		return -1
	}
	return slices.IndexFunc(runs, func(r run) bool { return r.mark == string(entry) && r.values != nil })
}

// originalLine returns the line of the file for a line of the folded text.
func originalLine(runs []run, line int) int {
	for i := len(runs) - 1; i >= 0; i-- {
		if r := &runs[i]; line > r.at {
			return r.lastLine() + line - r.at
		} else if line == r.at {
			return r.line
		}
	}
	return line
}

func (r *run) lastLine() int { return r.line + r.count - 1 }

// foldedLine returns the line of an entry of a set's list that a run of o holds,
// or else 0 and the path by which the entry is found in the folded text.
func foldedLine(runs []run, o *object, path string) (int, string) {
	less, list := 0, ""
	n := -1
	for i := range runs {
		r := &runs[i]
		rest, ok := strings.CutPrefix(path, "spec."+r.list+"[")
		digits, _, closed := strings.Cut(rest, "]")
		at, err := strconv.Atoi(digits)
		if r.list == "" || r.doc != o.doc || r.item != o.item || !ok || !closed || err != nil || at < r.index {
			continue
		}
		if at < r.index+r.count {
			return r.line + at - r.index, path
		}
		less, list, n = less+r.count-1, r.list, at
	}
	if n < 0 {
		return 0, path
	}
	return 0, fmt.Sprintf("spec.%s[%d]", list, n-less)
}
