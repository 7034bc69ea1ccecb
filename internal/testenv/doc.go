// Package testenv holds what privileged tests need of their surroundings: a
// probe for the privilege itself, and checks that a test left nothing behind.
//
// Flow of data: a test calls RequireRoot first and, for what must not leak,
// CheckLeaks; both report through testing.TB.
//
// Invariants:
//
//	T1  A skip hides no hole: with POSTERN_REQUIRE_PRIVILEGED=1 every skip is a failure.
//	T2  Privileges are probed by doing, never by looking at the uid.
//
// Only tests import this package.
package testenv
