package agent

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/postern-dev/postern/internal/flow"
	"github.com/postern-dev/postern/internal/policy"
)

// nameLog numbers rules and remembers which pod an incarnation was, across
// restarts: events and counters of the kernel carry numbers only. It is a file
// of one JSON object a line, appended to; a torn last line is dropped.
//
// Numbers are handed out once. If the file cannot be written, enforcement goes
// on and the error is reported: after a restart old numbers would be unknown.
type nameLog struct {
	file  *os.File
	rules map[policy.RuleRef]uint32
	refs  map[uint32]policy.RuleRef
	next  uint32
	pods  map[uint32]podName // by generation
	err   error
}

type podName struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	UID       string `json:"uid,omitempty"`
}

// nameLine is one line: a rule's number or a generation's pod.
type nameLine struct {
	ID   uint32          `json:"id,omitempty"`
	Rule *policy.RuleRef `json:"rule,omitempty"`
	Gen  uint32          `json:"gen,omitempty"`
	Pod  *podName        `json:"pod,omitempty"`
}

func openNameLog(dir string) (*nameLog, error) {
	n := &nameLog{
		rules: map[policy.RuleRef]uint32{}, refs: map[uint32]policy.RuleRef{},
		next: uint32(flow.ReasonMax), pods: map[uint32]podName{},
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	path := filepath.Join(dir, "names.jsonl")
	if err := n.read(path); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600) //nolint:gosec // the operator names the directory
	if err != nil {
		return nil, fmt.Errorf("state: %w", err)
	}
	n.file = f
	return n, nil
}

func (n *nameLog) read(path string) error {
	f, err := os.Open(path) //nolint:gosec // the operator names the directory
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("state: %w", err)
	}
	defer func() { _ = f.Close() }()
	sc := bufio.NewScanner(f)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		var l nameLine
		if err := json.Unmarshal(sc.Bytes(), &l); err != nil {
			continue // torn by a crash or a full disk: its number is not in use by anything newer
		}
		if l.Rule != nil && l.ID >= uint32(flow.ReasonMax) {
			n.rules[*l.Rule], n.refs[l.ID] = l.ID, *l.Rule
			n.next = max(n.next, l.ID+1)
		}
		if l.Pod != nil {
			n.pods[l.Gen] = *l.Pod
		}
	}
	if err := sc.Err(); err != nil {
		return fmt.Errorf("state: %w", err)
	}
	return nil
}

func (n *nameLog) append(l nameLine) {
	b, err := json.Marshal(l)
	if err == nil {
		// A leading newline ends a line that a crash may have torn.
		_, err = n.file.Write(append(append([]byte{'\n'}, b...), '\n'))
	}
	if err != nil {
		n.err = fmt.Errorf("state %s: %w; after a restart, older flows will lack the names of their rules", n.file.Name(), err)
	} else {
		n.err = nil
	}
}

// ruleID returns the number of a rule.
func (n *nameLog) ruleID(ref policy.RuleRef) uint32 {
	if id, ok := n.rules[ref]; ok {
		return id
	}
	id := n.next
	n.next++
	n.rules[ref], n.refs[id] = id, ref
	n.append(nameLine{ID: id, Rule: &ref})
	return id
}

// ids returns the numbers of all rules that are known.
func (n *nameLog) ids() []uint32 {
	out := make([]uint32, 0, len(n.refs))
	for id := range n.refs {
		out = append(out, id)
	}
	return out
}

func (n *nameLog) setPod(gen uint32, p podName) {
	if n.pods[gen] == p {
		return
	}
	n.pods[gen] = p
	n.append(nameLine{Gen: gen, Pod: &p})
}

func (n *nameLog) close() error { return n.file.Close() }
