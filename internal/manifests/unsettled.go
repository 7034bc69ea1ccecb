package manifests

import (
	"crypto/sha256"
	"time"

	"github.com/postern-dev/postern/internal/kube"
)

// settleTime is how long a file must have been left alone that does not end
// with a newline: it may be half-written.
const settleTime = time.Second

// maxUnsettled bounds that for a file that is replaced, or written in place, all the
// time: each version is left alone, but none for long enough to tell. See patience.
const maxUnsettled = time.Second

// unsettled is a file of which a part may be missing.
type unsettled struct {
	since time.Time // of the first look
	// born, sum and size are of the last look: the file, and what it held.
	born time.Time
	sum  [sha256.Size]byte
	size int
	// grows says that the last look but one that differed was its beginning.
	grows bool
	told  bool // in Findings
}

// mayLack reports whether data may be the beginning only of what a file is to hold.
func (f *file) mayLack(data []byte) bool {
	if len(data) == 0 {
		return f.good == nil // else it keeps what it has, see take
	}
	return data[len(data)-1] != '\n'
}

// patience notes what a file holds and returns how long it must have been left alone
// if a part may be missing: less for one that has been replaced, or written anew,
// for so long that to wait would keep what it said before in force for ever. What
// grows is not whole.
func (s *Store) patience(path, full string, data []byte, sum [sha256.Size]byte) time.Duration {
	now, at := s.opts.Now(), born(full)
	u := s.unsettled[path]
	if u == nil {
		u = &unsettled{since: now, born: at}
		s.unsettled[path] = u
	}
	replaced := !at.Equal(u.born)
	switch {
	case replaced || len(data) < u.size || sha256.Sum256(data[:u.size]) != u.sum:
		u.grows = false
	case len(data) > u.size && u.size > 0:
		u.grows = true
	}
	u.born, u.sum, u.size = at, sum, len(data)
	switch waited := now.Sub(u.since); {
	case waited < maxUnsettled || len(data) == 0 || u.grows:
		return settleTime
	case waited < 2*maxUnsettled && !replaced:
		return deletionGrace
	}
	return 0
}

// wait notes that a file is not taken yet; it reports whether that is to be told from now on.
func (s *Store) wait(path string) bool {
	u := s.unsettled[path]
	if u.told || s.closed[path] || s.opts.Now().Sub(u.since) < 2*maxUnsettled {
		return false
	}
	u.told = true
	return true
}

// settle notes that a file is not waited for; it reports whether that it was had been told.
func (s *Store) settle(path string) bool {
	u := s.unsettled[path]
	delete(s.unsettled, path)
	return u != nil && u.told
}

// waitedFor are findings about the files that are waited for.
func (s *Store) waitedFor() []kube.Finding {
	var out []kube.Finding
	for path, u := range s.unsettled {
		if u.told {
			out = append(out, kube.Finding{
				File: path, Severity: kube.Error, Reason: kube.ReasonUnreadable,
				Message: isWritten + "; until then " + s.meanwhile(path),
			})
		}
	}
	return out
}

// meanwhile says what counts while a file is waited for.
func (s *Store) meanwhile(path string) string {
	if s.files[path] == nil {
		return "it is not in force"
	}
	return "its last version that could be read stays in force"
}

// closeUnsettled takes files that are waited for and were never read for unreadable
// ones: what they deny is not known (M1).
func (s *Store) closeUnsettled() {
	for path := range s.unsettled {
		if s.files[path] == nil {
			s.reject(&file{path: path}, nil, "the file "+isWritten)
		}
	}
	s.place()
}

// isWritten is what is told of a file that is waited for.
const isWritten = "is written to without end, and may lack a part: let it rest for a second, or rename whole files to its name"
