package manifests

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// start runs a Watcher and returns the verdicts of shop/web to 192.0.3.1 after each change.
func start(t *testing.T, dir string) <-chan string {
	t.Helper()
	w := &world{t: t, dir: dir, Store: NewStore(dir, Options{Now: time.Now})}
	verdicts := make(chan string, 100)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	watcher := &Watcher{Store: w.Store, Log: slog.New(slog.DiscardHandler), Rescan: 100 * time.Millisecond}
	go func() {
		done <- watcher.Run(ctx, func(*Store) { verdicts <- w.sends("192.0.3.1") })
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	return verdicts
}

func wantNext(t *testing.T, verdicts <-chan string, want string) {
	t.Helper()
	timeout := time.After(10 * time.Second)
	var got []string
	for {
		select {
		case v := <-verdicts:
			if v == want {
				return
			}
			got = append(got, v)
		case <-timeout:
			t.Fatalf("got %q, want %q", got, want)
		}
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestWatcher(t *testing.T) {
	dir := t.TempDir()
	open := strings.ReplaceAll(isolate, "192.0.2.0/24", "192.0.3.0/24")
	write(t, filepath.Join(dir, "web.yaml"), podWeb)
	verdicts := start(t, dir)
	wantNext(t, verdicts, byNobody)
	write(t, filepath.Join(dir, "p.yaml"), isolate)
	wantNext(t, verdicts, byIsolation)
	write(t, filepath.Join(dir, "p.new"), open)
	if err := os.Rename(filepath.Join(dir, "p.new"), filepath.Join(dir, "p.yaml")); err != nil {
		t.Fatal(err)
	}
	wantNext(t, verdicts, byRule)
	if err := os.Remove(filepath.Join(dir, "p.yaml")); err != nil {
		t.Fatal(err)
	}
	wantNext(t, verdicts, byNobody)
	write(t, filepath.Join(dir, "new/dir/p.yaml"), isolate)
	wantNext(t, verdicts, byIsolation)
}

// TestWatcherNeverOpens writes a file in the worst ways that editors know, many
// times, while the pod must stay isolated.
func TestWatcherNeverOpens(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "p.yaml")
	write(t, filepath.Join(dir, "web.yaml"), podWeb)
	write(t, path, isolate)
	verdicts := start(t, dir)
	wantNext(t, verdicts, byIsolation)
	versions := []string{isolate, isolate + "# changed\n", strings.ReplaceAll(isolate, "shop, name", "shop,  name")}
	for i := range 30 {
		text := versions[i%len(versions)]
		switch i % 3 {
		case 0: // in place, slowly
			f, err := os.Create(path)
			if err != nil {
				t.Fatal(err)
			}
			for line := range strings.Lines(text) {
				if _, err := f.WriteString(line[:len(line)/2]); err != nil {
					t.Fatal(err)
				}
				time.Sleep(3 * time.Millisecond)
				if _, err := f.WriteString(line[len(line)/2:]); err != nil {
					t.Fatal(err)
				}
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
		case 1: // away, then anew
			if err := os.Rename(path, path+"~"); err != nil {
				t.Fatal(err)
			}
			time.Sleep(30 * time.Millisecond)
			write(t, path, text)
		case 2: // truncated, then written
			write(t, path, "")
			time.Sleep(15 * time.Millisecond)
			write(t, path, text)
		}
		time.Sleep(15 * time.Millisecond)
	}
	for {
		select {
		case v := <-verdicts:
			if !strings.HasPrefix(v, "dropped") {
				t.Fatalf("got %s", v)
			}
			continue
		case <-time.After(300 * time.Millisecond):
		}
		return
	}
}

func TestWatcherWithoutDirectory(t *testing.T) {
	w := &Watcher{Store: NewStore(filepath.Join(t.TempDir(), "none"), Options{Now: time.Now}), Log: slog.New(slog.DiscardHandler)}
	if err := w.Run(t.Context(), func(*Store) {}); err == nil || !strings.Contains(err.Error(), "read manifests") {
		t.Errorf("got %v", err)
	}
}
