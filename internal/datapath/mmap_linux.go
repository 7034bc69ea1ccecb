package datapath

import (
	"fmt"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// shared is the memory of an array map, mapped into the process. Elements are
// stride bytes apart (the kernel rounds value sizes up to 8).
type shared struct {
	mem    []byte
	stride int
	len    int
}

// mapShared maps m, which needs BPF_F_MMAPABLE.
func mapShared(m *ebpf.Map) (*shared, error) {
	stride := (int(m.ValueSize()) + 7) &^ 7
	size := stride * int(m.MaxEntries())
	page := unix.Getpagesize()
	mem, err := unix.Mmap(m.FD(), 0, (size+page-1)/page*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map memory of %s: %w", m, err)
	}
	return &shared{mem: mem, stride: stride, len: int(m.MaxEntries())}, nil
}

func (s *shared) close() error {
	if s == nil || s.mem == nil {
		return nil
	}
	mem := s.mem
	s.mem = nil
	return unix.Munmap(mem)
}

// word returns a pointer to the 32-bit word at byte off of element i.
func (s *shared) word(i, off int) *uint32 {
	at := i*s.stride + off
	if off < 0 || off+4 > s.stride || i < 0 || i >= s.len {
		return nil
	}
	return (*uint32)(unsafe.Pointer(&s.mem[at])) //nolint:gosec // bounds are checked above; the map keeps its alignment
}

// store writes one 32-bit word: a program sees the old or the new value.
func (s *shared) store(i, off int, v uint32) error {
	p := s.word(i, off)
	if p == nil {
		return fmt.Errorf("element %d of %d: %w", i, s.len, ErrCapacity)
	}
	atomic.StoreUint32(p, v)
	return nil
}

// store64 writes one 64-bit element, likewise.
func (s *shared) store64(i int, v uint64) error {
	if i < 0 || i >= s.len || s.stride != 8 {
		return fmt.Errorf("element %d of %d: %w", i, s.len, ErrCapacity)
	}
	atomic.StoreUint64((*uint64)(unsafe.Pointer(&s.mem[i*8])), v) //nolint:gosec // bounds are checked above
	return nil
}

func (s *shared) load(i, off int) uint32 {
	p := s.word(i, off)
	if p == nil {
		return 0
	}
	return atomic.LoadUint32(p)
}

// copyIn writes n elements of size bytes each from src, from element at on.
// The elements must not be reachable by a program.
func copyIn[T any](s *shared, at int, src []T) error {
	if at < 0 || at+len(src) > s.len {
		return fmt.Errorf("elements %d to %d of %d: %w", at, at+len(src), s.len, ErrCapacity)
	}
	for i := range src {
		p := unsafe.Slice((*byte)(unsafe.Pointer(&src[i])), unsafe.Sizeof(src[i])) //nolint:gosec // plain structs without pointers
		copy(s.mem[(at+i)*s.stride:], p)
	}
	return nil
}

// grace waits until no program runs that began before the call.
// Source: membarrier(2); MEMBARRIER_CMD_GLOBAL is synchronize_rcu.
func grace() error {
	if _, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, 1, 0, 0); errno != 0 {
		return fmt.Errorf("membarrier: %w", errno)
	}
	return nil
}
