package manifests

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

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
	// taken are the versions of files whose objects are accounted for below.
	taken map[string]*parsed
	// claims are the objects of each name, in the order of files, and dups what is
	// to be said about names that are claimed twice.
	claims map[kube.ObjectRef][]claim
	dups   map[kube.ObjectRef][]kube.Finding
	// placed are the objects as they are in world, and from where.
	placed   map[kube.ObjectRef]placed
	closed   map[string]bool // files for which everything is denied (M1)
	bindings []Binding
	findings []kube.Finding // of files and bindings
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

// NewStore returns a Store for a directory; nothing is read before Rescan.
func NewStore(dir string, opts Options) *Store {
	return &Store{
		dir: dir, root: followed(dir), opts: opts, world: kube.NewWorld(opts.Kube),
		files: map[string]*file{}, taken: map[string]*parsed{}, claims: map[kube.ObjectRef][]claim{},
		dups: map[kube.ObjectRef][]kube.Finding{}, placed: map[kube.ObjectRef]placed{}, closed: map[string]bool{},
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
