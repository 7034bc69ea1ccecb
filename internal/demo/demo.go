package demo

import (
	"errors"
	"io"
	"time"
)

// ErrClaim is wrapped by Run's error if something that the demo claims is not true.
var ErrClaim = errors.New("a claim of the demo is not true")

// ErrUnheard is wrapped by Run's error if the demo ended early because nobody reads
// its output; nothing is left then either.
var ErrUnheard = errors.New("the demo was given up and removed, as nobody reads its output")

// Options of Run.
type Options struct {
	Out    io.Writer
	Colour bool
	// Posternd is the path of the daemon's program, Program how the user calls postern.
	Posternd, Program string
	// Now is the clock.
	Now func() time.Time
}
