//go:build !linux

package demo

import (
	"context"

	"github.com/postern-dev/postern/internal/lab"
)

// Run returns lab.ErrUnsupported.
func Run(context.Context, Options) error { return lab.ErrUnsupported }
