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
func RequireRoot(t testing.TB) {
	t.Helper()
	if err := probe(); err != nil {
		Skip(t, "needs root on Linux: "+err.Error())
	}
}

// Skip skips the test with reason, or fails it if POSTERN_REQUIRE_PRIVILEGED is 1.
func Skip(t testing.TB, reason string) {
	t.Helper()
	if os.Getenv(RequireEnv) == "1" {
		t.Fatalf("%s (%s=1: not skipped)", reason, RequireEnv)
	}
	t.Skip(reason)
}
