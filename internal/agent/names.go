package agent

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/postern-dev/postern/internal/flow"
	"github.com/postern-dev/postern/internal/policy"
)

// nameLog numbers rules and remembers which pod an incarnation was, across
// restarts: events and counters of the kernel carry numbers only. It is a file
// of one JSON object a line, appended to; a torn line is dropped.
//
// If the file cannot be written, enforcement goes on, the error is reported and the
// lines are tried again. Numbers are handed out once even if an agent ends before
// they are saved: how far they went is kept beside the kernel's maps, see outlive. A
// pod whose name was not saved is a new one to the next agent (I3).
type nameLog struct {
	file  *os.File
	rules map[policy.RuleRef]uint32
	refs  map[uint32]policy.RuleRef
	next  uint32
	pods  map[uint32]podName // by generation
	lost  []nameLine         // not written yet, oldest first
	err   error
	// mark is the path of a link that leads nowhere and whose target is the highest
	// next that any agent wrote; marked is what it says.
	mark   string
	marked uint32
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
			continue // torn by a crash or a full disk: what it numbered is not known, see outlive
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

// markFile is the name of nameLog.mark. A bpffs takes no names with dots.
const markFile = "next_rule"

// outlive keeps, from now on, how far numbers went in the directory of the kernel's
// maps, and takes over what an earlier agent kept there. The directory lasts as long
// as those numbers do, and has room when the file system of the log has none. If
// nothing there is of an earlier agent, no incarnation of the log is alive: their
// generations will be handed out again.
func (n *nameLog) outlive(dir string, adopted bool) error {
	n.mark = filepath.Join(dir, markFile)
	switch to, err := os.Readlink(n.mark); {
	case err == nil:
		v, err := strconv.ParseUint(to, 10, 32)
		if err != nil {
			return fmt.Errorf("state: %s: %w", n.mark, err)
		}
		n.marked = uint32(v)
		n.next = max(n.next, n.marked)
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("state: %w", err)
	case !adopted:
		if err := n.forgetPods(); err != nil {
			return err
		}
	}
	return n.keep()
}

// forgetPods empties the log but for rules, whose numbers stay as they are. Emptied
// first, there is room for them.
func (n *nameLog) forgetPods() error {
	n.pods = map[uint32]podName{}
	if err := n.file.Truncate(0); err != nil {
		return fmt.Errorf("state: %w", err)
	}
	for _, id := range slices.Sorted(maps.Keys(n.refs)) {
		ref := n.refs[id]
		n.lost = append(n.lost, nameLine{ID: id, Rule: &ref})
	}
	n.flush()
	return nil
}

// keep writes how far numbers went.
func (n *nameLog) keep() error {
	if n.mark == "" || n.marked == n.next {
		return nil
	}
	tmp := n.mark + "_new"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("state: %w", err)
	}
	if err := os.Symlink(strconv.FormatUint(uint64(n.next), 10), tmp); err != nil {
		return fmt.Errorf("state: %w", err)
	}
	if err := os.Rename(tmp, n.mark); err != nil {
		return fmt.Errorf("state: %w", err)
	}
	n.marked = n.next
	return nil
}

func (n *nameLog) append(l nameLine) {
	n.lost = append(n.lost, l)
	n.flush()
}

// flush writes what is not written yet.
func (n *nameLog) flush() {
	n.err = nil
	for len(n.lost) > 0 {
		b, err := json.Marshal(n.lost[0])
		if err == nil {
			// A leading newline ends a line that a crash may have torn.
			_, err = n.file.Write(append(append([]byte{'\n'}, b...), '\n'))
		}
		if err != nil {
			n.err = errors.Join(fmt.Errorf("state: %w; an agent that starts before there is room, or after this one was ended without any, takes the pods that were armed meanwhile "+
				"for new ones and cuts their connections, and does not know the rules that flows and counters of now name", err), n.keep())
			return
		}
		n.lost = n.lost[1:]
	}
	n.lost = nil
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
