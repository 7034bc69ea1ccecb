package manifests

import (
	"context"
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
	// DefaultRescan is how often the directory is looked at without an event.
	DefaultRescan = 5 * time.Second
	// maxFirst is how often the first reading is put off.
	maxFirst = 3
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
// later ones are logged, and what was read before stays in force (I6).
func (w *Watcher) Run(ctx context.Context, onChange func(*Store)) error {
	notify, events, errs := w.watch()
	if notify != nil {
		defer func() { _ = notify.Close() }()
	}
	res, err := w.first(ctx)
	if err != nil {
		return err
	}
	onChange(w.Store)

	every := w.Rescan
	if every == 0 {
		every = DefaultRescan
	}
	if notify == nil {
		every = min(every, pollRescan)
	}
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	wait := newWait(res.Retry)
	defer wait.timer.Stop()
	touched := map[string]bool{}
	failed := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case e, ok := <-events:
			if !ok {
				events = nil
				continue
			}
			w.event(notify, e, touched)
			wait.soon(debounce, w.Store.opts.Now())
			continue
		case err, ok := <-errs:
			if !ok {
				errs = nil
				continue
			}
			// The queue of events overflowed, so any file may have changed.
			w.Log.Warn("file notifications were lost, rescanning", "error", err)
			wait.soon(debounce, w.Store.opts.Now())
			continue
		case <-ticker.C:
			w.addDirs(notify)
		case <-wait.timer.C:
		}
		wait.reset()
		res := w.Store.Rescan(touched)
		clear(touched)
		if res.Err != nil && !failed {
			w.Log.Warn("manifests can't be listed, the last ones stay in force", "error", res.Err)
		}
		failed = res.Err != nil
		if res.Retry > 0 {
			wait.soon(res.Retry, w.Store.opts.Now())
		}
		if res.Changed {
			onChange(w.Store)
		}
	}
}

// first reads the directory. It waits for files that may be half-written: what
// they deny must not be missing from the start.
func (w *Watcher) first(ctx context.Context) (Result, error) {
	for tries := 0; ; tries++ {
		res := w.Store.Rescan(nil)
		if res.Err != nil {
			return res, fmt.Errorf("read manifests: %w", res.Err)
		}
		if res.Retry == 0 || tries == maxFirst {
			return res, nil
		}
		select {
		case <-ctx.Done():
			return res, nil
		case <-time.After(res.Retry):
		}
	}
}

// wait is a timer that events put off, but not for ever.
type wait struct {
	timer *time.Timer
	since time.Time // of the first event; zero if there is none
}

func newWait(retry time.Duration) *wait {
	w := &wait{timer: time.NewTimer(time.Hour)}
	w.timer.Stop()
	if retry > 0 {
		w.timer.Reset(retry)
	}
	return w
}

func (w *wait) soon(d time.Duration, now time.Time) {
	if w.since.IsZero() {
		w.since = now
	}
	if now.Sub(w.since) < maxDebounce {
		w.timer.Reset(d)
	}
}

func (w *wait) reset() {
	w.timer.Stop()
	w.since = time.Time{}
}

// watch starts the system's notifications; nil if there are none.
func (w *Watcher) watch() (*fsnotify.Watcher, <-chan fsnotify.Event, <-chan error) {
	notify, err := fsnotify.NewWatcher()
	if err == nil {
		err = notify.Add(w.Store.root)
	}
	if err != nil {
		w.Log.Warn("no file notifications, manifests are polled", "error", err)
		if notify != nil {
			_ = notify.Close()
		}
		return nil, nil, nil
	}
	w.addDirs(notify)
	return notify, notify.Events, notify.Errors
}

// addDirs watches every directory below the Store's; one that is watched already
// stays so. A directory that can't be watched is still rescanned.
func (w *Watcher) addDirs(notify *fsnotify.Watcher) {
	if notify == nil {
		return
	}
	_ = filepath.WalkDir(w.Store.root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			_ = notify.Add(path)
		}
		return nil
	})
}

func (w *Watcher) event(notify *fsnotify.Watcher, e fsnotify.Event, touched map[string]bool) {
	if rel, err := filepath.Rel(w.Store.root, e.Name); err == nil {
		touched[filepath.ToSlash(rel)] = true
	}
	if e.Has(fsnotify.Create) {
		w.addDirs(notify)
	}
}
