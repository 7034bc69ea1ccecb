package manifests

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/postern-dev/postern/internal/kube"
	"github.com/postern-dev/postern/internal/policy"
)

// maxFileSize bounds a file, in bytes; 1,000,000 networks take about 20 MB.
const maxFileSize = 256 << 20

// settleTime is how long a file must have been left alone that does not end
// with a newline: it may be half-written.
const settleTime = time.Second

// deletionGrace is how long a file must be gone to count as deleted.
const deletionGrace = 200 * time.Millisecond

// Options are settings of a Store.
type Options struct {
	Kube kube.Options
	// Now is the clock. Required.
	Now func() time.Time
}

// Store holds the objects of a directory. It is not safe for concurrent use.
type Store struct {
	dir   string
	root  string // dir, as of the last rescan, with a link to it followed
	opts  Options
	world *kube.World
	files map[string]*file // by path relative to dir, with slashes
	// placed are the objects as they are in world, and from where.
	placed   map[kube.ObjectRef]placed
	closed   map[string]bool // files for which everything is denied (M1)
	bindings []Binding
	findings []kube.Finding // of files and of objects in relation to each other
}

// file is one file of the directory.
type file struct {
	path    string
	size    int64
	modTime time.Time
	sum     [sha256.Size]byte
	missing time.Time      // since when it is gone; zero if it is there
	good    *parsed        // the last version that could be read as a whole
	partly  *parsed        // the current version, while there is no good one
	bad     []kube.Finding // why the current version is not the one in force
}

// inForce is the version whose objects count.
func (f *file) inForce() *parsed {
	if f.good != nil {
		return f.good
	}
	return f.partly
}

// stale reports whether the version in force is not the one on disk.
func (f *file) stale() bool { return f.good != nil && len(f.bad) > 0 }

// placed is an object in the World.
type placed struct {
	file     string
	source   *parsed
	index    int            // in source.objects
	findings []kube.Finding // of decoding
	doubt    []kube.Finding // a second object of the same name
}

// NewStore returns a Store for a directory; nothing is read before Rescan.
func NewStore(dir string, opts Options) *Store {
	return &Store{
		dir: dir, root: followed(dir), opts: opts, world: kube.NewWorld(opts.Kube),
		files: map[string]*file{}, placed: map[kube.ObjectRef]placed{}, closed: map[string]bool{},
	}
}

// Load reads a directory once. It fails only if the directory can't be listed;
// everything else is in Findings.
func Load(dir string, opts Options) (*Store, error) {
	s := NewStore(dir, opts)
	if err := s.load(); err != nil {
		return nil, err
	}
	return s, nil
}

func (s *Store) load() error {
	return s.rescan(nil, false).Err
}

// Result is what a rescan did.
type Result struct {
	// Changed says that Flush, Findings or Bindings return something new.
	Changed bool
	// Retry, if not 0, is when to look again: a file may be half-written.
	Retry time.Duration
	// Err says that a part of the directory could not be listed. What was known
	// of it stays in force.
	Err error
}

// Rescan takes over what changed in the directory, all of it at once (M3).
// Files are read again if their size or time of change differ, or if their path,
// relative to the directory and with slashes, is in touched.
func (s *Store) Rescan(touched map[string]bool) Result { return s.rescan(touched, true) }

func (s *Store) rescan(touched map[string]bool, settle bool) Result {
	var res Result
	s.root = followed(s.dir)
	found, kept, err := s.list()
	res.Err = err
	for path, f := range s.files {
		if _, ok := found[path]; ok || slices.ContainsFunc(kept, func(dir string) bool { return inDir(path, dir) }) {
			f.missing = time.Time{}
			continue
		}
		gone, retry := s.gone(f, settle)
		if gone {
			delete(s.files, path)
			res.Changed = true
		}
		res.again(retry)
	}
	for path, info := range found {
		f := s.files[path]
		if f != nil && !touched[path] && f.size == info.Size() && f.modTime.Equal(info.ModTime()) {
			continue
		}
		changed, retry := s.read(path, info, settle)
		res.Changed = res.Changed || changed
		res.again(retry)
	}
	if res.Changed {
		s.place()
	}
	return res
}

func (r *Result) again(d time.Duration) {
	if d > 0 && (r.Retry == 0 || d < r.Retry) {
		r.Retry = d
	}
}

// gone reports whether a file that was not found is really deleted. Editors
// rename a file before they write it anew, and a listing can miss a file that is
// renamed meanwhile: its objects must not vanish for that moment.
func (s *Store) gone(f *file, settle bool) (bool, time.Duration) {
	if !settle {
		return true, 0
	}
	now := s.opts.Now()
	if f.missing.IsZero() {
		f.missing = now
	}
	rest := deletionGrace - now.Sub(f.missing)
	return rest <= 0, max(rest, 0)
}

// list returns the files of the directory, and the directories that could not be
// listed, whose files are to be kept.
func (s *Store) list() (found map[string]fs.FileInfo, kept []string, err error) {
	found = map[string]fs.FileInfo{}
	var errs []error
	walkErr := filepath.WalkDir(s.root, func(path string, d fs.DirEntry, err error) error {
		rel, relErr := filepath.Rel(s.root, path)
		if relErr != nil {
			return relErr
		}
		rel = filepath.ToSlash(rel)
		if err != nil {
			errs = append(errs, err)
			kept = append(kept, rel)
			if d != nil && d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if rel != "." && strings.HasPrefix(d.Name(), ".") {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if d.IsDir() || !isManifest(rel) {
			return nil
		}
		info, err := os.Stat(path) // follows links, as those of a mounted ConfigMap
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			errs = append(errs, err)
			kept = append(kept, rel)
			return nil
		}
		if info.Mode().IsRegular() {
			found[rel] = info
		}
		return nil
	})
	return found, kept, errors.Join(append(errs, walkErr)...)
}

// followed is a directory with a link to it followed. A link that is replaced
// changes all files at once.
func followed(dir string) string {
	if d, err := filepath.EvalSymlinks(dir); err == nil {
		return d
	}
	return dir
}

func isManifest(path string) bool {
	switch strings.ToLower(filepath.Ext(path)) {
	case ".yaml", ".yml", ".json":
		return true
	}
	return false
}

func inDir(path, dir string) bool {
	return dir == "." || path == dir || strings.HasPrefix(path, dir+"/")
}

// read takes over a file's new version.
func (s *Store) read(path string, info fs.FileInfo, settle bool) (changed bool, retry time.Duration) {
	f := s.files[path]
	if f == nil {
		f = &file{path: path}
	}
	full := filepath.Join(s.root, filepath.FromSlash(path))
	if info.Size() > maxFileSize {
		return s.reject(f, info, kube.ReasonUnreadable, fmt.Sprintf("the file is larger than %d MiB: split it", maxFileSize>>20)), 0
	}
	data, err := os.ReadFile(full) //nolint:gosec // G304: the path is from a listing of the directory that the user names
	if errors.Is(err, fs.ErrNotExist) {
		return false, settleTime // gone since it was listed
	}
	if err != nil {
		return s.reject(f, info, kube.ReasonUnreadable, fmt.Sprintf("the file can't be read: %v", err)), 0
	}
	after, err := os.Stat(full)
	if settle && (err != nil || int64(len(data)) != after.Size() || !after.ModTime().Equal(info.ModTime())) {
		return false, settleTime / 10 // it is being written right now
	}
	if quiet := s.opts.Now().Sub(info.ModTime()); settle && len(data) > 0 && data[len(data)-1] != '\n' && quiet < settleTime && quiet > -settleTime {
		return false, min(settleTime-quiet, settleTime)
	}
	known := s.files[path] != nil
	s.files[path] = f
	f.size, f.modTime = info.Size(), info.ModTime()
	sum := sha256.Sum256(data)
	if known && sum == f.sum {
		return false, 0
	}
	f.sum = sum
	f.take(parse(path, data))
	return true, 0
}

// take puts a version of the file in force, or says why not (M1, M2).
func (f *file) take(p parsed) {
	switch {
	case p.unreadable:
		f.bad = p.findings
		if f.good == nil {
			f.partly = &p
		}
	case len(p.objects) == 0 && f.good != nil && len(f.good.objects) > 0:
		f.bad = append(slices.Clip(p.findings), kube.Finding{
			File: f.path, Severity: kube.Error, Reason: kube.ReasonEmptyFile,
			Message: "the file holds no objects any more: to remove them, delete the file",
		})
	default:
		f.good, f.partly, f.bad = &p, nil, nil
	}
}

// reject notes that a file can't be read at all.
func (s *Store) reject(f *file, info fs.FileInfo, reason kube.Reason, message string) bool {
	s.files[f.path] = f
	f.size, f.modTime, f.sum = info.Size(), info.ModTime(), [sha256.Size]byte{}
	f.bad = []kube.Finding{{File: f.path, Severity: kube.Error, Reason: reason, Message: message}}
	return true
}

// place brings the World in line with the files.
func (s *Store) place() {
	s.findings, s.bindings = nil, nil
	want := map[kube.ObjectRef]placed{}
	for _, path := range sortedPaths(s.files) {
		f := s.files[path]
		s.fileFindings(f)
		p := f.inForce()
		if p == nil {
			continue
		}
		for i := range p.objects {
			s.want(want, path, p, i)
		}
	}
	for ref := range s.placed {
		if _, ok := want[ref]; !ok {
			s.world.Delete(ref)
			delete(s.placed, ref)
		}
	}
	for ref, w := range want {
		have, ok := s.placed[ref]
		if !ok || have.source != w.source || have.index != w.index || len(have.findings) != len(w.findings) {
			s.set(ref, w)
		}
		s.world.Doubt(ref, w.doubt)
		s.placed[ref] = w
	}
	s.collectBindings()
	s.closeUnread()
	for _, f := range s.files {
		if p := f.inForce(); p != nil {
			p.docs = nil
		}
	}
}

func sortedPaths(m map[string]*file) []string {
	out := make([]string, 0, len(m))
	for path := range m {
		out = append(out, path)
	}
	slices.Sort(out)
	return out
}

// fileFindings collects what is wrong with the file itself.
func (s *Store) fileFindings(f *file) {
	s.findings = append(s.findings, f.bad...)
	switch {
	case f.stale():
		s.findings = append(s.findings, kube.Finding{
			File: f.path, Severity: kube.Warning, Reason: kube.ReasonUnreadable,
			Message: fmt.Sprintf("the last version of this file that could be read stays in force: %d objects", len(f.good.objects)),
		})
	case len(f.bad) > 0:
		s.findings = append(s.findings, kube.Finding{
			File: f.path, Severity: kube.Error, Reason: kube.ReasonUnreadable,
			Message: "what this file would deny is not known, so all pods are cut off until it can be read",
		})
	case f.good != nil:
		s.findings = append(s.findings, f.good.findings...)
	}
}

// want adds an object to those that are to be in the World. Of two with one name
// the first by path stands, and the second is there too, closed, under another
// name: a policy keeps what it denies and isolates. If they are no policies, the
// first is closed as well: which of them is right is not known (M4).
func (s *Store) want(want map[kube.ObjectRef]placed, path string, p *parsed, i int) {
	o := &p.objects[i]
	first, taken := want[o.ref]
	if !taken {
		want[o.ref] = placed{file: path, source: p, index: i, findings: o.findings}
		return
	}
	same := !o.large && reflect.DeepEqual(o.obj, first.source.objects[first.index].obj) // a large one is gone: nil
	dup := kube.Finding{
		Object: o.ref, Path: "metadata.name", Reason: kube.ReasonDuplicateObject, File: path, Line: p.line(o, "metadata.name"),
		Message: fmt.Sprintf("%s is already in %s: remove one of them", o.ref, first.file),
	}
	if same {
		dup.Severity = kube.Warning
		s.findings = append(s.findings, dup)
		return
	}
	second := placed{file: path, source: p, index: i, findings: o.findings}
	if isPolicy(o.ref) {
		dup.Message += "; until then this one accepts nothing"
		second.findings = append(slices.Clip(o.findings), dup)
	} else {
		dup.Message += "; until then both are closed"
		second.doubt = []kube.Finding{dup}
		first.doubt = append(slices.Clip(first.doubt), dup)
		want[o.ref] = first
	}
	ref := o.ref
	for n := 2; ; n++ {
		ref.Name = fmt.Sprintf("%s#%d", o.ref.Name, n)
		if _, taken := want[ref]; !taken {
			break
		}
	}
	want[ref] = second
}

func isPolicy(ref kube.ObjectRef) bool {
	switch ref.Kind {
	case "NetworkPolicy", "ClusterNetworkPolicy", "EgressPolicy", "ClusterEgressPolicy":
		return true
	}
	return false
}

// set hands an object to the World.
func (s *Store) set(ref kube.ObjectRef, w placed) {
	o := &w.source.objects[w.index]
	if o.obj == nil {
		s.world.SetTranslated(ref, o.set, o.setFindings)
		return
	}
	obj := o.obj
	if ref != o.ref {
		obj = renamed(obj, ref.Name)
	}
	if _, err := s.world.Set(obj, w.findings); err != nil {
		// Decode returns only what Set takes.
		s.findings = append(s.findings, kube.Finding{Object: ref, File: w.file, Severity: kube.Error, Reason: kube.ReasonUnknownKind, Message: err.Error()})
	}
	if o.large {
		o.set, o.setFindings, _ = s.world.Translated(ref)
		o.obj = nil
	}
}

// renamed returns a copy of a policy under another name.
func renamed(obj metav1.Object, name string) metav1.Object {
	v := reflect.New(reflect.TypeOf(obj).Elem())
	v.Elem().Set(reflect.ValueOf(obj).Elem())
	out, ok := reflect.TypeAssert[metav1.Object](v)
	if !ok {
		return obj
	}
	out.SetName(name)
	return out
}

// closeUnread denies everything while there is a file that was never read (M1).
func (s *Store) closeUnread() {
	for path := range s.closed {
		if f := s.files[path]; f == nil || f.good != nil || len(f.bad) == 0 {
			s.world.CloseAll(path, false)
			delete(s.closed, path)
		}
	}
	for path, f := range s.files {
		if f.good == nil && len(f.bad) > 0 && !s.closed[path] {
			s.world.CloseAll(path, true)
			s.closed[path] = true
		}
	}
}

func (s *Store) collectBindings() {
	byInterface := map[string]policy.PodKey{}
	for _, path := range sortedPaths(s.files) {
		p := s.files[path].inForce()
		if p == nil {
			continue
		}
		for i := range p.objects {
			o := &p.objects[i]
			pod, ok := o.obj.(*corev1.Pod)
			if !ok || pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed {
				continue
			}
			b, bound, f := bindingOf(pod)
			at := b.Interface + b.Netns
			if other, taken := byInterface[at]; bound && taken && other != b.Pod {
				f = &kube.Finding{
					Object: o.ref, Path: "metadata.annotations", Severity: kube.Error, Reason: kube.ReasonDuplicateInterface,
					Message: fmt.Sprintf("%s belongs to pod %s: correct one of them; this pod is not enforced", at, other),
				}
				bound = false
			}
			if f != nil {
				f.File, f.Line = path, p.line(o, f.Path)
				s.findings = append(s.findings, *f)
			}
			if bound && !slices.Contains(s.bindings, b) {
				byInterface[at] = b.Pod
				s.bindings = append(s.bindings, b)
			}
		}
	}
	slices.SortFunc(s.bindings, func(a, b Binding) int {
		return strings.Compare(a.Pod.String()+"\x00"+a.Interface+a.Netns, b.Pod.String()+"\x00"+b.Interface+b.Netns)
	})
}

// Flush returns what changed since the last Flush, see kube.World.Flush.
func (s *Store) Flush() policy.Changes { return s.world.Flush(s.opts.Now()) }

// Snapshot returns everything, see kube.World.Snapshot.
func (s *Store) Snapshot() *policy.Snapshot { return s.world.Snapshot(s.opts.Now()) }

// Bindings returns what says which interface belongs to which pod, by pod. A
// pod has several if it is in several files. The slice must not be changed.
func (s *Store) Bindings() []Binding { return s.bindings }

// Complete reports whether every file could be read at some time. If not,
// everything is denied (M1).
func (s *Store) Complete() bool { return len(s.closed) == 0 }

// Objects returns the number of objects in force.
func (s *Store) Objects() int { return len(s.placed) }

// Files returns the number of files, readable or not.
func (s *Store) Files() int { return len(s.files) }

// Findings returns everything that is wrong, with files and lines, sorted.
func (s *Store) Findings() []kube.Finding {
	out := slices.Clone(s.findings)
	for _, f := range s.world.Findings() {
		if w, ok := s.placed[f.Object]; ok {
			f = s.located(f, w)
		}
		out = append(out, f)
	}
	for _, w := range s.placed {
		w.source.docs = nil
	}
	return kube.SortFindings(out)
}

// located adds to a finding where its object is written.
func (s *Store) located(f kube.Finding, w placed) kube.Finding {
	o := &w.source.objects[w.index]
	f.Object = o.ref
	if f.File == "" {
		f.File = w.file
	}
	if f.File != w.file {
		return f
	}
	if file := s.files[w.file]; file != nil && file.stale() {
		f.Line = 0 // lines would be those of another version
	} else if f.Line == 0 {
		f.Line = w.source.line(o, f.Path)
	}
	return f
}
