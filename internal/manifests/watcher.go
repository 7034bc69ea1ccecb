package manifests

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"
)

// Times of a Watcher.
const (
	// debounce is how long the directory must be quiet before it is read.
	debounce = 10 * time.Millisecond
	// maxDebounce is how long events can put that off.
	maxDebounce = 200 * time.Millisecond
	// eager takes the place of debounce while a file is away: where one is replaced
	// all the time, and sometimes deleted first, the directory is quiet only then.
	eager = time.Millisecond
	// DefaultRescan is how often the directory is looked at without an event.
	DefaultRescan = 5 * time.Second
	// maxFirst is how long the first reading is put off.
	maxFirst = 3 * time.Second
	// pollRescan takes its place while the system's notifications don't work.
	pollRescan = time.Second
)

// Watcher keeps a Store in line with its directory.
type Watcher struct {
	Store *Store
	// Log gets what is not about a manifest: notifications that do not work.
	Log *slog.Logger
	// Rescan is how often to look without an event; 0 is DefaultRescan.
	Rescan time.Duration
}

// Run reads the directory and then calls onChange with the Store, again after
// every change, until ctx is done; it then returns nil. onChange is called from
// the goroutine of Run only and must not keep the Store.
//
// An error that keeps the directory from being listed at the start is returned;
// later ones are logged and in Findings, and what was read before stays in force (I6).
func (w *Watcher) Run(ctx context.Context, onChange func(*Store)) error {
	n := w.notifications()
	defer n.close()
	w.Store.watches = n.tells
	res, err := w.first(ctx, n)
	if err != nil {
		return err
	}
	onChange(w.Store)

	wait := newWait(w.Store.opts.Now)
	defer wait.timer.Stop()
	wait.retry(res)
	poll := time.NewTimer(w.every(n))
	defer poll.Stop()
	failed := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case e, ok := <-n.events:
			if !ok {
				n.close() // from now on, polled
				poll.Reset(w.every(n))
				continue
			}
			n.take(w.Store.root, e)
			wait.event()
			continue
		case err := <-n.errs:
			// The queue of events overflowed, so any file may have changed.
			w.Log.Warn("file notifications were lost, rescanning", "error", err)
			n.touched["."] = true
			wait.event()
			continue
		case <-poll.C:
		case <-wait.timer.C:
		}
		wait.reset()
		res := w.rescan(n)
		if res.Err != nil && !failed {
			w.Log.Warn("manifests can't be listed, the last ones stay in force", "error", res.Err)
		}
		failed = res.Err != nil
		wait.retry(res)
		if poll.Reset(w.every(n)); failed {
			poll.Reset(min(w.every(n), pollRescan)) // nobody tells when it is back
		}
		if res.Changed {
			onChange(w.Store)
		}
	}
}

// every is how long to go without looking.
func (w *Watcher) every(n *notifications) time.Duration {
	every := w.Rescan
	if every == 0 {
		every = DefaultRescan
	}
	if n.blind() {
		every = min(every, pollRescan)
	}
	return every
}

// rescan reads the directory and watches what it found. What happened in a
// directory before it was watched is looked for right afterwards.
func (w *Watcher) rescan(n *notifications) Result {
	res := w.Store.Rescan(n.touched)
	clear(n.touched)
	if n.follow(w.Store.root, w.Store.dirs, res.Err == nil) {
		res.again(debounce)
	}
	return res
}

// first reads the directory. It waits for files that may be half-written: what
// they deny must not be missing from the start.
func (w *Watcher) first(ctx context.Context, n *notifications) (Result, error) {
	end := w.Store.opts.Now().Add(maxFirst)
	for {
		res := w.rescan(n)
		if res.Err != nil {
			return res, fmt.Errorf("read manifests: %w", res.Err)
		}
		if res.Retry == 0 {
			return res, nil
		}
		rest := end.Sub(w.Store.opts.Now())
		if rest <= 0 {
			w.Store.closeUnsettled()
			return res, nil
		}
		select {
		case <-ctx.Done():
			return res, nil
		case <-time.After(min(res.Retry, rest)):
		}
	}
}

// wait is a timer that events put off, but not for ever.
type wait struct {
	timer *time.Timer
	now   func() time.Time
	first time.Time // of the events that wait; zero if there are none
	at    time.Time // when to look again without an event; zero for never
	away  bool      // see Result
}

func newWait(now func() time.Time) *wait {
	w := &wait{timer: time.NewTimer(time.Hour), now: now}
	w.timer.Stop()
	return w
}

func (w *wait) event() {
	now := w.now()
	if w.first.IsZero() {
		w.first = now
	}
	at := now.Add(debounce)
	if w.away {
		at = now.Add(eager)
	}
	for _, limit := range []time.Time{w.first.Add(maxDebounce), w.at} {
		if !limit.IsZero() && limit.Before(at) {
			at = limit
		}
	}
	w.timer.Reset(at.Sub(now))
}

// retry is called after reset, so there are no events that wait.
func (w *wait) retry(res Result) {
	w.away = res.Away
	if res.Retry > 0 {
		w.at = w.now().Add(res.Retry)
		w.timer.Reset(res.Retry)
	}
}

func (w *wait) reset() {
	w.timer.Stop()
	w.first, w.at = time.Time{}, time.Time{}
}

// notifications are what the system tells of a directory. The zero value tells
// nothing.
type notifications struct {
	log    *slog.Logger
	notify *fsnotify.Watcher
	events <-chan fsnotify.Event
	errs   <-chan error
	// touched are the paths of which there was an event, see Store.Rescan.
	touched map[string]bool
	watched map[string]*dirInfo // directories, by full path
	told    map[string]bool     // directories by path relative to the root, watched since before the last listing
	failed  bool                // some directory can't be watched
}

func (w *Watcher) notifications() *notifications {
	n := &notifications{log: w.Log, touched: map[string]bool{}, watched: map[string]*dirInfo{}, told: map[string]bool{}}
	notify, err := fsnotify.NewWatcher()
	if err != nil {
		w.Log.Warn("no file notifications, manifests are polled", "error", err)
		return n
	}
	// The library holds a lock of Add's while it hands over some errors: they must
	// be taken by somebody who never calls it.
	errs := make(chan error, 1)
	go func() {
		for err := range notify.Errors {
			select {
			case errs <- err:
			default: // one is there already
			}
		}
	}()
	n.notify, n.events, n.errs = notify, notify.Events, errs
	return n
}

func (n *notifications) close() {
	if n.notify != nil {
		_ = n.notify.Close()
	}
	n.notify, n.events, n.errs = nil, nil, nil
	clear(n.watched)
	clear(n.told)
}

// tells reports whether every change in a directory since the last rescan is, or
// will soon be, in touched.
func (n *notifications) tells(dir string) bool { return n.told[dir] }

// blind reports whether there are changes that nobody tells of.
func (n *notifications) blind() bool { return n.notify == nil || n.failed }

// take notes what an event is about.
func (n *notifications) take(root string, e fsnotify.Event) {
	if rel, err := filepath.Rel(root, e.Name); err == nil {
		n.touched[filepath.ToSlash(rel)] = true
	}
	if e.Has(fsnotify.Remove) || e.Has(fsnotify.Rename) {
		delete(n.watched, e.Name) // a directory of that name would be another one
	}
}

// follow watches the directories that were found, and no others. It reports
// whether one is watched that was not before.
func (n *notifications) follow(root string, dirs map[string]*dirInfo, complete bool) (more bool) {
	clear(n.told)
	if n.notify == nil {
		return false
	}
	// What is not where it was must go first: the system knows directories by what
	// they are, and would go on telling of a renamed one by its old name.
	now := make(map[string]*dirInfo, len(dirs))
	for rel, info := range dirs {
		now[filepath.Join(root, filepath.FromSlash(rel))] = info
	}
	for path, have := range n.watched {
		if info := now[path]; (info == nil && complete) || (info != nil && !have.same(info)) {
			_ = n.notify.Remove(path) // fails if the directory is gone
			delete(n.watched, path)
		}
	}
	failed := false
	for rel, info := range dirs {
		path := filepath.Join(root, filepath.FromSlash(rel))
		if n.watched[path] != nil {
			n.told[rel] = true
			continue
		}
		if err := n.notify.Add(path); err != nil {
			if !n.failed && !errors.Is(err, fs.ErrNotExist) {
				n.log.Warn("no notifications of a directory, it is polled", "directory", rel, "error", err)
			}
			failed = true
			continue
		}
		n.watched[path], more = info, true
	}
	n.failed = failed
	return more
}
