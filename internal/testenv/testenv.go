package testenv

import (
	"os"
	"testing"
)

// RequireEnv is the variable that turns every skip for want of privileges into a failure.
const RequireEnv = "POSTERN_REQUIRE_PRIVILEGED"

// RequireRoot skips the test, with the reason, unless this process can make
// network namespaces, mount and use packet sockets. It fails instead if
// POSTERN_REQUIRE_PRIVILEGED is 1.
func RequireRoot(tb testing.TB) {
	tb.Helper()
	if err := probe(); err != nil {
		Skip(tb, "needs root on Linux: "+err.Error())
	}
}

// Skip skips the test with reason, or fails it if POSTERN_REQUIRE_PRIVILEGED is 1.
func Skip(tb testing.TB, reason string) {
	tb.Helper()
	if os.Getenv(RequireEnv) == "1" {
		tb.Fatalf("%s (%s=1: not skipped)", reason, RequireEnv)
	}
	tb.Skip(reason)
}
