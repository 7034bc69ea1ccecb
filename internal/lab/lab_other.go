//go:build !linux

package lab

import "context"

// Lab is a running lab. There is none outside Linux.
type Lab struct{}

// Up returns ErrUnsupported.
func Up(context.Context, Spec) (*Lab, error) { return nil, ErrUnsupported }

// Open returns ErrUnsupported.
func Open(string) (*Lab, error) { return nil, ErrUnsupported }

// Cleanup returns ErrUnsupported.
func Cleanup(context.Context, string) error { return ErrUnsupported }

// ReapStale returns ErrUnsupported.
func ReapStale(context.Context) error { return ErrUnsupported }

// List returns ErrUnsupported.
func List() ([]string, error) { return nil, ErrUnsupported }

// Serve returns ErrUnsupported.
func Serve(context.Context, string) error { return ErrUnsupported }

// Name returns nothing.
func (*Lab) Name() string { return "" }

// Dir returns nothing.
func (*Lab) Dir() string { return "" }

// Down returns ErrUnsupported.
func (*Lab) Down() error { return ErrUnsupported }

// Close does nothing.
func (*Lab) Close() error { return nil }

// Status returns ErrUnsupported.
func (*Lab) Status() (Status, error) { return Status{}, ErrUnsupported }

// Manifests returns ErrUnsupported.
func (*Lab) Manifests(string) error { return ErrUnsupported }

// Detach returns ErrUnsupported.
func (*Lab) Detach(context.Context, string, ...string) error { return ErrUnsupported }

// Exec returns ErrUnsupported.
func (*Lab) Exec(context.Context, string, Streams, string, ...string) error { return ErrUnsupported }
