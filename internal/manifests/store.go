package manifests

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/postern-dev/postern/internal/kube"
	"github.com/postern-dev/postern/internal/policy"
)

// maxFileSize bounds a file, in bytes; 1,000,000 networks take about 20 MB.
const maxFileSize = 256 << 20

// deletionGrace is how long a file must be gone to count as deleted.
const deletionGrace = 200 * time.Millisecond

// maxGrace is how long other changes of a watched directory, and other deletions,
// can put that off. It bounds how late the system may tell of the file itself.
const maxGrace = time.Second

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
	// dirs are the directories of the last listing, relative to root, each as it
	// was before it was read.
	dirs map[string]*dirInfo
	// watches says whether touched tells of every change in a directory; nil: of none.
	watches func(dir string) bool
	// taken are the versions of files whose objects are accounted for below.
	taken map[string]*parsed
	// claims are the objects of each name, in the order of files, and dups what is
	// to be said about names that are claimed twice.
	claims map[kube.ObjectRef][]claim
	dups   map[kube.ObjectRef][]kube.Finding
	// placed are the objects as they are in world, and from where.
	placed map[kube.ObjectRef]placed
	closed map[string]bool // files for which everything is denied (M1)
	// unsettled are the files that were not read since they may be half-written.
	unsettled map[string]*unsettled
	bindings  []Binding
	findings  []kube.Finding // of files and bindings
	skipped   []skipped      // what is there and not read
	unlisted  string         // why a part of the directory could not be listed last time
}

// skipped is something in the directory that is not read, though it may be meant to be.
type skipped struct{ path, why string }

// file is one file of the directory.
type file struct {
	path    string
	info    fs.FileInfo // of the version that was read last; nil if there was none
	sum     [sha256.Size]byte
	missing absence
	good    *parsed        // the last version that could be read as a whole
	partly  *parsed        // the current version, while there is no good one
	bad     []kube.Finding // why the current version is not the one in force
}

// absence is what is known of a file that was not found.
type absence struct {
	since time.Time // when it may have been there for the last time; zero if it is there
	told  time.Time // when that was certain
	dir   *dirInfo  // the directory that it was missed in, before it was read
}

// dirInfo is a directory as it was at some time.
type dirInfo struct {
	fs.FileInfo
	born time.Time
}

// same reports whether both are one directory.
func (d *dirInfo) same(other *dirInfo) bool {
	return d != nil && other != nil && os.SameFile(d.FileInfo, other.FileInfo) && d.born.Equal(other.born)
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

// NewStore returns a Store for a directory; nothing is read before Rescan.
func NewStore(dir string, opts Options) *Store {
	return &Store{
		dir: dir, root: followed(dir), opts: opts, world: kube.NewWorld(opts.Kube),
		files: map[string]*file{}, taken: map[string]*parsed{}, claims: map[kube.ObjectRef][]claim{},
		dups: map[kube.ObjectRef][]kube.Finding{}, placed: map[kube.ObjectRef]placed{}, closed: map[string]bool{},
		unsettled: map[string]*unsettled{},
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
	// Away says that a file was missed that may come back.
	Away bool
	// Err says that a part of the directory could not be listed. What was known
	// of it stays in force.
	Err error
}

// Rescan takes over what changed in the directory, all of it at once (M3).
// Files are read again if they are other files, if their size or time of change
// differ, or if their path or that of a directory above them, relative to the
// directory and with slashes, is in touched; "." is the directory itself. What is
// touched was there, if only for a moment.
func (s *Store) Rescan(touched map[string]bool) Result { return s.rescan(touched, true) }

func (s *Store) rescan(touched map[string]bool, settle bool) Result {
	var res Result
	s.root = followed(s.dir)
	l := s.list()
	res.Err, s.dirs = l.err, l.dirs
	unlisted := ""
	if l.err != nil {
		unlisted = strings.ReplaceAll(l.err.Error(), "\n", "; ")
	}
	res.Changed = !slices.Equal(s.skipped, l.skipped) || s.unlisted != unlisted
	s.skipped, s.unlisted = l.skipped, unlisted
	var deleted []*file
	going := false // some file is missing, and not yet deleted
	for path, f := range s.files {
		if _, ok := l.found[path]; ok || slices.ContainsFunc(l.kept, func(dir string) bool { return inDir(path, dir) }) {
			f.missing = absence{}
			continue
		}
		gone, retry := s.gone(f, touches(touched, path), settle)
		if gone {
			deleted = append(deleted, f)
		}
		going = going || !gone
		res.Away = going
		res.again(retry)
	}
	// What is deleted together goes together: the policies of a directory must not
	// go before the namespaces and pods that are deleted right after them.
	for _, f := range deleted {
		if !settle || !going || s.opts.Now().Sub(f.missing.since) >= maxGrace {
			delete(s.files, f.path)
			res.Changed = true
		}
	}
	for path, info := range l.found {
		f := s.files[path]
		if f != nil && f.info != nil && !touches(touched, path) && sameVersion(f.info, info) {
			res.Changed = s.settle(path) || res.Changed
			continue
		}
		changed, retry := s.read(path, info, settle)
		res.Changed = res.Changed || changed
		res.again(retry)
	}
	for path, u := range s.unsettled {
		// It may be away for a moment only.
		if _, ok := l.found[path]; !ok && s.opts.Now().Sub(u.since) > 4*maxUnsettled {
			res.Changed = s.settle(path) || res.Changed
		}
	}
	for _, path := range l.dangling {
		res.Changed = s.dangles(path) || res.Changed
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
// renamed meanwhile: its objects must not vanish for that moment. Nor must they if
// every listing falls into such a moment: a file is gone only after a time in
// which it cannot have been there.
func (s *Store) gone(f *file, touched, settle bool) (bool, time.Duration) {
	if !settle {
		return true, 0
	}
	now, m := s.opts.Now(), &f.missing
	dir, info := s.nearest(f.path)
	watched := s.watches != nil && s.watches(dir)
	switch {
	case m.since.IsZero(), touched, !m.dir.same(info):
		*m = absence{since: now, told: now, dir: info}
	case !m.dir.ModTime().Equal(info.ModTime()) && (!watched || now.Sub(m.told) < maxGrace):
		// Something came or went in the directory. Where the system tells of the
		// file, it was another one; where not, it may have been this one.
		m.since, m.dir = now, info
	}
	rest := deletionGrace - now.Sub(m.since)
	return rest <= 0, max(rest, 0)
}

// nearest returns the innermost directory above a file that is there.
func (s *Store) nearest(file string) (string, *dirInfo) {
	dir := path.Dir(file)
	for dir != "." && s.dirs[dir] == nil {
		dir = path.Dir(dir)
	}
	return dir, s.dirs[dir]
}

// touches reports whether a path or a directory above it is in touched.
func touches(touched map[string]bool, file string) bool {
	for len(touched) > 0 {
		if touched[file] {
			return true
		}
		if file == "." {
			return false
		}
		file = path.Dir(file)
	}
	return false
}

func sameVersion(a, b fs.FileInfo) bool {
	return a.Size() == b.Size() && a.ModTime().Equal(b.ModTime()) && os.SameFile(a, b)
}

// listing is what a walk through the directory found.
type listing struct {
	found    map[string]fs.FileInfo
	dirs     map[string]*dirInfo // see Store.dirs
	kept     []string            // what could not be listed, whose files are to be kept
	dangling []string            // links to nothing
	skipped  []skipped           // what is not read
	err      error
}

func (l *listing) keep(rel string, err error) {
	l.kept = append(l.kept, rel)
	l.err = errors.Join(l.err, err)
}

func (s *Store) list() listing {
	l := listing{found: map[string]fs.FileInfo{}, dirs: map[string]*dirInfo{}}
	err := filepath.WalkDir(s.root, func(path string, d fs.DirEntry, err error) error {
		rel, relErr := filepath.Rel(s.root, path)
		if relErr != nil {
			return relErr
		}
		rel = filepath.ToSlash(rel)
		if err == nil && (rel == "." || !strings.HasPrefix(d.Name(), ".")) {
			return s.visit(&l, rel, path, d)
		}
		if err != nil {
			l.keep(rel, err)
		}
		if d != nil && d.IsDir() {
			return fs.SkipDir
		}
		return nil
	})
	l.err = errors.Join(l.err, err)
	return l
}

// visit takes note of one entry that is not hidden.
func (s *Store) visit(l *listing, rel, path string, d fs.DirEntry) error {
	if d.IsDir() {
		info, err := os.Lstat(path) // before it is read: what changes later shows in the next one
		if err != nil {
			l.keep(rel, err)
			return fs.SkipDir
		}
		l.dirs[rel] = &dirInfo{info, born(path)}
		return nil
	}
	if d.Type()&fs.ModeSymlink != 0 {
		if info, err := os.Stat(path); err == nil && info.IsDir() {
			l.skipped = append(l.skipped, skipped{rel, "a link to a directory, whose manifests are not read: put the directory itself here, or links to its files"})
			return nil
		}
	}
	if !isManifest(rel) {
		return nil
	}
	info, err := os.Stat(path) // follows links, as those of a mounted ConfigMap
	switch {
	case errors.Is(err, fs.ErrNotExist):
		l.missed(rel, path)
	case err != nil:
		l.keep(rel, err)
	case info.Mode().IsRegular():
		l.found[rel] = info
	default:
		l.skipped = append(l.skipped, skipped{rel, "no regular file but a pipe, socket or device, which is not read: put a file here"})
	}
	return nil
}

// missed notes that a path was listed and leads nowhere.
func (l *listing) missed(rel, path string) {
	link, err := os.Lstat(path)
	switch {
	case err != nil: // gone
	case link.Mode()&fs.ModeSymlink != 0:
		l.kept, l.dangling = append(l.kept, rel), append(l.dangling, rel)
	default:
		l.kept = append(l.kept, rel) // there again
	}
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
func (s *Store) read(path string, listed fs.FileInfo, settle bool) (changed bool, retry time.Duration) {
	f := s.files[path]
	if f == nil {
		f = &file{path: path}
	}
	full := filepath.Join(s.root, filepath.FromSlash(path))
	if listed.Size() > maxFileSize {
		return s.reject(f, listed, fmt.Sprintf("the file is larger than %d MiB: split it", maxFileSize>>20)), 0
	}
	data, info, err := readFile(full)
	if errors.Is(err, fs.ErrNotExist) {
		return false, settleTime / 10 // gone since it was listed
	}
	if err != nil {
		return s.reject(f, listed, fmt.Sprintf("the file can't be read: %v: let the agent read it, or delete it to remove its objects", err)), 0
	}
	sum := sha256.Sum256(data)
	var need time.Duration
	if settle {
		need = s.patience(path, full, data, sum)
	}
	if info == nil {
		if settle {
			return s.wait(path), settleTime / 10 // it is being written right now
		}
		info = listed
	}
	if s.files[path] != nil && sum == f.sum {
		f.info = info
		return s.settle(path), 0
	}
	quiet := s.opts.Now().Sub(info.ModTime()).Abs()
	if quiet < need && f.mayLack(data) {
		return s.wait(path), need - quiet
	}
	p := parse(path, data)
	// Written in place, and the rest may follow.
	if need = min(need, deletionGrace); quiet < need && f.good != nil && f.info != nil && os.SameFile(f.info, info) && f.good.loses(&p) {
		return s.wait(path), need - quiet
	}
	s.settle(path)
	s.files[path] = f
	f.info, f.sum = info, sum
	f.take(p)
	return true, 0
}

// readFile reads one file, whatever takes its place meanwhile. The result has no
// info if the file was written to at the same time.
func readFile(path string) (data []byte, info fs.FileInfo, err error) {
	f, err := os.Open(path) //nolint:gosec // G304: the path is from a listing of the directory that the user names
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = f.Close() }()
	before, err := f.Stat()
	if err != nil {
		return nil, nil, err
	}
	if data, err = io.ReadAll(io.LimitReader(f, maxFileSize+1)); err != nil {
		return nil, nil, err
	}
	after, err := f.Stat()
	if err != nil {
		return nil, nil, err
	}
	if !sameVersion(before, after) || int64(len(data)) != after.Size() {
		return data, nil, nil
	}
	return data, after, nil
}

// loses reports whether an object of p is not in the next version, though that
// one can be read.
func (p *parsed) loses(next *parsed) bool {
	if next.unreadable || len(next.objects) == 0 {
		return false // kept by take
	}
	have := make(map[kube.ObjectRef]bool, len(next.objects))
	for i := range next.objects {
		have[next.objects[i].ref] = true
	}
	return slices.ContainsFunc(p.objects, func(o object) bool { return !have[o.ref] })
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
func (s *Store) reject(f *file, info fs.FileInfo, message string) bool {
	s.settle(f.path)
	s.files[f.path] = f
	f.info, f.sum = info, [sha256.Size]byte{}
	f.bad = []kube.Finding{{File: f.path, Severity: kube.Error, Reason: kube.ReasonUnreadable, Message: message}}
	return true
}

// dangles takes over that a link leads nowhere: what it would say is not known (M1).
func (s *Store) dangles(path string) bool {
	f := s.files[path]
	switch {
	case f == nil:
		f = &file{path: path}
	case f.info == nil:
		return false // as before
	}
	return s.reject(f, nil, "the file is a link to nothing: correct it, or remove it to delete its objects")
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
	for _, fs := range s.dups {
		out = append(out, fs...)
	}
	for _, f := range slices.Concat(s.world.Findings(), s.world.Expired(s.opts.Now())) {
		if w, ok := s.placed[f.Object]; ok {
			f = s.located(f, w)
		}
		out = append(out, f)
	}
	out = append(out, s.waitedFor()...)
	for _, it := range s.skipped {
		out = append(out, kube.Finding{File: it.path, Severity: kube.Warning, Reason: kube.ReasonUnreadable, Message: it.why})
	}
	if s.unlisted != "" {
		out = append(out, kube.Finding{
			Object: kube.ObjectRef{Kind: "Directory", Name: s.dir}, Severity: kube.Error, Reason: kube.ReasonUnreadable,
			Message: "can't be listed: " + s.unlisted + ". What was read there before stays in force, and changes are not seen: put the directory back, or correct its permissions",
		})
	}
	for _, p := range s.taken {
		p.docs = nil
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
