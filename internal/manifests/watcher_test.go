package manifests

import (
	"context"
	"errors"
	"fmt"
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
	verdicts := make(chan string, 10000)
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

// TestWatcherFlapping: a policy that comes and goes, in any way, stays in force:
// it goes only if it stays away.
func TestWatcherFlapping(t *testing.T) {
	for name, c := range map[string]struct {
		away, back func(dir string, i int) error
	}{
		"file": {
			func(dir string, _ int) error { return os.Remove(filepath.Join(dir, "sub/p.yaml")) },
			func(dir string, i int) error { return replace(filepath.Join(dir, "sub/p.yaml"), i) },
		},
		"file by rename": {
			func(dir string, _ int) error {
				return os.Rename(filepath.Join(dir, "sub/p.yaml"), filepath.Join(dir, "p~"))
			},
			func(dir string, _ int) error {
				return os.Rename(filepath.Join(dir, "p~"), filepath.Join(dir, "sub/p.yaml"))
			},
		},
		"directory": {
			func(dir string, _ int) error { return os.RemoveAll(filepath.Join(dir, "sub")) },
			func(dir string, i int) error {
				err := os.Mkdir(filepath.Join(dir, "sub"), 0o700)
				pause(i / 2)
				return errors.Join(err, replace(filepath.Join(dir, "sub/p.yaml"), i))
			},
		},
		"directory by rename": {
			func(dir string, _ int) error {
				return os.Rename(filepath.Join(dir, "sub"), filepath.Join(dir, ".away"))
			},
			func(dir string, _ int) error {
				return os.Rename(filepath.Join(dir, ".away"), filepath.Join(dir, "sub"))
			},
		},
		"root": {
			func(dir string, _ int) error { return os.RemoveAll(dir) },
			func(dir string, i int) error {
				err := errors.Join(os.MkdirAll(filepath.Join(dir, "sub"), 0o700), os.WriteFile(filepath.Join(dir, "web.yaml"), []byte(podWeb), 0o600))
				pause(i / 2)
				return errors.Join(err, replace(filepath.Join(dir, "sub/p.yaml"), i))
			},
		},
		"root by rename": {
			func(dir string, _ int) error { return os.Rename(dir, dir+".away") },
			func(dir string, _ int) error { return os.Rename(dir+".away", dir) },
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join(t.TempDir(), "root")
			write(t, filepath.Join(dir, "web.yaml"), podWeb)
			write(t, filepath.Join(dir, "sub/p.yaml"), isolate)
			verdicts := start(t, dir)
			wantNext(t, verdicts, byIsolation)
			for i, end := 0, time.Now().Add(3*time.Second); time.Now().Before(end); i++ {
				if err := c.away(dir, i); err != nil {
					t.Fatal(err)
				}
				pause(i)
				if err := c.back(dir, i); err != nil {
					t.Fatal(err)
				}
				pause(2)
			}
			for len(verdicts) > 0 {
				// With its directory the pod may have gone; it is then nobody's.
				if v := <-verdicts; v == byNobody {
					t.Fatalf("the policy was not in force for a moment: %s", v)
				}
			}
			if err := os.Remove(filepath.Join(dir, "sub/p.yaml")); err != nil {
				t.Fatal(err)
			}
			wantNext(t, verdicts, byNobody)
		})
	}
}

// pause waits for up to 10 ms.
func pause(i int) { time.Sleep(time.Duration(i%40) * time.Millisecond / 4) }

// replace puts a version of the policy in place, as a whole.
func replace(path string, i int) error {
	return errors.Join(os.WriteFile(path+"~", fmt.Appendf(nil, "%s# %d\n", isolate, i), 0o600), os.Rename(path+"~", path))
}

// TestWatcherChurn: a file that is put in place anew all the time is taken over
// all the same, a version now and then.
func TestWatcherChurn(t *testing.T) {
	open := strings.ReplaceAll(isolate, "192.0.2.0/24", "192.0.3.0/24")
	for name, c := range map[string]struct {
		end  string
		away func(i int) bool
	}{
		"by rename":                  {"\n", func(int) bool { return false }},
		"deleted in between":         {"\n", func(i int) bool { return i%5 == 0 }},
		"deleted each time":          {"\n", func(int) bool { return true }},
		"away when it is quiet":      {"\n", func(i int) bool { return i%10 == 9 }},
		"without a newline":          {"", func(int) bool { return false }},
		"deleted, without a newline": {"", func(i int) bool { return i%5 == 0 }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			path := filepath.Join(dir, "p.yaml")
			write(t, filepath.Join(dir, "web.yaml"), podWeb)
			write(t, path, isolate)
			verdicts := start(t, dir)
			wantNext(t, verdicts, byIsolation)
			taken := 0
			for i, end := 0, time.Now().Add(4*time.Second); time.Now().Before(end); i++ {
				text := fmt.Sprintf("%s# %d%s", []string{isolate, open}[i/100%2], i, c.end)
				if err := os.WriteFile(path+"~", []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
				if c.away(i) {
					if err := os.Remove(path); err != nil {
						t.Fatal(err)
					}
					time.Sleep(time.Millisecond)
					if i%10 == 9 {
						time.Sleep(2 * debounce)
					}
				}
				if err := os.Rename(path+"~", path); err != nil {
					t.Fatal(err)
				}
				time.Sleep(2 * time.Millisecond)
				for ; len(verdicts) > 0; taken++ {
					if v := <-verdicts; v == byNobody {
						t.Fatalf("the policy was not in force for a moment: %s", v)
					}
				}
			}
			if taken < 2 || (taken < 8 && c.end == "\n") {
				t.Errorf("%d versions were taken over in 4 s", taken)
			}
			t.Logf("%d versions", taken)
		})
	}
}

// rewrite writes a file in place, every so often, until the test ends.
func rewrite(t *testing.T, path string, every time.Duration, text func(i int) string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	write(t, path, text(0))
	go func() {
		for i := 1; ; i++ {
			select {
			case <-ctx.Done():
				done <- nil
				return
			case <-time.After(every):
			}
			if err := os.WriteFile(path, []byte(text(i)), 0o600); err != nil {
				done <- err
				return
			}
		}
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// TestWatcherRewritten: a file that is written in place all the time, and does not
// end with a newline, is enforced, in a running Watcher and from the start of
// another one.
func TestWatcherRewritten(t *testing.T) {
	for name, c := range map[string]struct {
		every time.Duration
		text  func(i int) string
	}{
		"now and then": {400 * time.Millisecond, func(int) string { return strings.TrimSuffix(isolate, "\n") }},
		"often":        {50 * time.Millisecond, func(i int) string { return fmt.Sprintf("%s# %d", isolate, i) }},
		"all the time": {time.Millisecond, func(i int) string { return fmt.Sprintf("%s# %d", isolate, i) }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			write(t, filepath.Join(dir, "web.yaml"), podWeb)
			running := start(t, dir)
			wantNext(t, running, byNobody)
			rewrite(t, filepath.Join(dir, "p.yaml"), c.every, c.text)
			wantNext(t, running, byIsolation)
			select {
			case got := <-start(t, dir):
				if got != byIsolation {
					t.Errorf("from the start: got %s, want %s", got, byIsolation)
				}
			case <-time.After(10 * time.Second):
				t.Error("no first reading")
			}
		})
	}
}

// TestWatcherGrown: a file that grows from the start on is closed, and opened when
// it is whole.
func TestWatcherGrown(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "web.yaml"), podWeb)
	f, err := os.Create(filepath.Join(dir, "p.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(isolate + "# "); err != nil {
		t.Fatal(err)
	}
	verdicts := start(t, dir)
	for closed := false; !closed; {
		if _, err := f.WriteString("x"); err != nil {
			t.Fatal(err)
		}
		select {
		case got := <-verdicts:
			if want := `dropped by (invalid) p.yaml egress[0] "not understood"`; got != want {
				t.Fatalf("first: got %s, want %s", got, want)
			}
			closed = true
		case <-time.After(20 * time.Millisecond):
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	wantNext(t, verdicts, byIsolation)
}
