package origind

import (
	"os"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if os.Getenv("CAPELIN_ORIGIN_CHILD") != "" {
		child()
		return
	}
	// Hundreds of fsyncs, which are free in memory; a process that is killed loses nothing without them.
	if fi, err := os.Stat("/dev/shm"); err == nil && fi.IsDir() && os.Getenv("TMPDIR") == "" {
		os.Setenv("TMPDIR", "/dev/shm")
	}
	goleak.VerifyTestMain(m)
}
