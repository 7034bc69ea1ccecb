package cli

import (
	"fmt"
	"time"
	"unicode/utf8"
)

// progressAfter is how long something takes before a line says what is going on.
const progressAfter = 2 * time.Second

// progress shows, on stderr if that is a terminal, what is being done and for how
// long, once it takes longer than a.patience. The returned function takes the
// line away; it may be called more than once.
func (a *app) progress(what string) (done func()) {
	if !a.ErrTTY {
		return func() {}
	}
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		shown := 0
		defer func() {
			if shown > 0 {
				a.errf("\r%*s\r", shown, "")
			}
		}()
		wait := time.NewTimer(a.patience)
		defer wait.Stop()
		for elapsed := a.patience; ; elapsed += time.Second {
			select {
			case <-stop:
				return
			case <-wait.C:
			}
			line := fmt.Sprintf("%s ... %d s", clean(what), int(elapsed.Seconds()))
			a.errf("\r%s", line)
			shown = max(shown, utf8.RuneCountInString(line))
			wait.Reset(time.Second)
		}
	}()
	closed := false
	return func() {
		if !closed {
			closed = true
			close(stop)
			<-ended
		}
	}
}
