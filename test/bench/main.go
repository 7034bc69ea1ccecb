//go:build linux

// Command bench measures what docs/performance.md states and prints its table.
// It needs root. Pairs are measured in turn in one run; figures are medians.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// row is one line of the table.
type row struct{ what, target, got, note string }

// measure fills rows; progress goes to stderr.
type measure struct {
	name string
	run  func(ctx context.Context, b *bench) error
}

// bench is what measures share.
type bench struct {
	dir    string // with the binaries
	rows   []row
	rounds int
}

func (b *bench) add(what, target, got, note string) {
	b.rows = append(b.rows, row{what, target, got, note})
	fmt.Fprintf(os.Stderr, "  %s: %s (target %s) %s\n", what, got, target, note)
}

func main() {
	only := flag.String("only", "", "comma-separated names of measures; default all")
	rounds := flag.Int("rounds", 5, "rounds of each pair")
	flag.Parse()
	if err := run(*only, *rounds); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(only string, rounds int) error {
	dir, err := os.MkdirTemp("", "postern-bench")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	b := &bench{dir: dir, rounds: rounds}
	build := exec.Command("go", "build", "-o", dir+"/", "./cmd/posternd")
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		return fmt.Errorf("build: %w", err)
	}
	// Interrupted, a measure returns and puts its lab and agent away.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var errs []error
	for _, m := range []measure{
		{"kernel", kernel}, {"traffic", traffic}, {"compare", compare}, {"scale", scale}, {"million", million}, {"label", label}, {"language", language},
	} {
		if only != "" && !slices.Contains(strings.Split(only, ","), m.name) {
			continue
		}
		if ctx.Err() != nil {
			errs = append(errs, ctx.Err())
			break
		}
		start := time.Now()
		fmt.Fprintf(os.Stderr, "%s ...\n", m.name)
		if err := m.run(ctx, b); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", m.name, err))
		}
		fmt.Fprintf(os.Stderr, "%s: %s\n", m.name, time.Since(start).Round(time.Second))
	}
	fmt.Println("| what | must reach | measured | |\n|---|---|---|---|")
	for _, r := range b.rows {
		fmt.Printf("| %s | %s | %s | %s |\n", r.what, r.target, r.got, r.note)
	}
	return errors.Join(errs...)
}

func (b *bench) posternd() string { return filepath.Join(b.dir, "posternd") }

func median[T int | int64 | float64 | time.Duration](v []T) T {
	if len(v) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(v))
	return s[len(s)/2]
}

func percentile(v []time.Duration, p float64) time.Duration {
	s := slices.Sorted(slices.Values(v))
	if len(s) == 0 {
		return 0
	}
	return s[min(int(float64(len(s))*p), len(s)-1)]
}
