//go:build !linux

package daemon

import (
	"fmt"
	"os"
)

// Main explains that the daemon needs Linux.
func Main([]string) int {
	fmt.Fprintln(os.Stderr, "posternd: the daemon runs on Linux only; the command line tool postern runs here")
	return 1
}
