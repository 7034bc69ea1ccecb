package manifests

import (
	"time"

	"golang.org/x/sys/unix"
)

// born returns when a file was created; the zero time if the file system does not
// say. A directory that is made anew often has the number of the one before it.
func born(path string) time.Time {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_BTIME, &st); err != nil || st.Mask&unix.STATX_BTIME == 0 {
		return time.Time{}
	}
	return time.Unix(st.Btime.Sec, int64(st.Btime.Nsec))
}
