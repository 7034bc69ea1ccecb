package demo

import (
	"errors"
	"io"
	"time"
)

// ErrClaim is wrapped by Run's error if something that the demo claims is not true.
var ErrClaim = errors.New("a claim of the demo is not true")

// Options of Run.
type Options struct {
	Out    io.Writer
	Colour bool
	// Posternd is the path of the daemon's program, Program how the user calls postern.
	Posternd, Program string
	// Now is the clock.
	Now func() time.Time
}
