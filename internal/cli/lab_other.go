//go:build !linux

package cli

import (
	"context"

	"github.com/postern-dev/postern/internal/lab"
)

// startAgents is never reached: there is no lab here.
func (*app) startAgents(context.Context, string, string) ([]labAgent, error) {
	return nil, lab.ErrUnsupported
}

// listener finds nobody.
func listener(string) (int, bool) { return 0, false }
