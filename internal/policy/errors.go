package policy

import (
	"errors"
	"fmt"
)

// ErrCapacity says that rules do not fit into the limits of a Ruleset. The
// endpoint concerned is denied everything; nothing is ever left out in silence.
var ErrCapacity = errors.New("over capacity")

// MaxRules bounds the rules of one Ruleset.
const MaxRules = 60000

// CapacityError says which endpoint and limit are meant. It wraps ErrCapacity.
type CapacityError struct {
	Pod         PodKey
	Direction   Direction
	What        string // "rules" or "tiers"
	Need, Limit int
}

// Error implements error.
func (e *CapacityError) Error() string {
	return fmt.Sprintf("endpoint %s %s: %d %s, at most %d fit: everything is denied: %v",
		e.Pod, e.Direction, e.Need, e.What, e.Limit, ErrCapacity)
}

// Unwrap returns ErrCapacity.
func (e *CapacityError) Unwrap() error { return ErrCapacity }
