package unpack

import (
	"os"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		childMain()
	}
	// containerd's own decoder, whatever the machine has: igzip, for one, says nothing of
	// bytes behind a layer's end.
	for _, v := range []string{"CONTAINERD_DISABLE_IGZIP", "CONTAINERD_DISABLE_PIGZ"} {
		if err := os.Setenv(v, "1"); err != nil {
			panic(err)
		}
	}
	// A disk takes six times as long to make as many files.
	if dir := "/dev/shm"; os.Getenv("TMPDIR") == "" && takesAttributes(dir) {
		os.Setenv("TMPDIR", dir)
	}
	goleak.VerifyTestMain(m)
}

// takesAttributes reports whether files in a directory may have extended attributes.
func takesAttributes(dir string) bool {
	f, err := os.CreateTemp(dir, "unpack-")
	if err != nil {
		return false
	}
	defer os.Remove(f.Name())
	defer f.Close()
	return unix.Fsetxattr(int(f.Fd()), "user.x", []byte("1"), 0) == nil
}
