package plugin

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/log"
	"github.com/sirupsen/logrus"
	logtest "github.com/sirupsen/logrus/hooks/test"
)

// A directory that a socket's path names by mistake is not made without a word, and several are not made at all.
func TestSocketDirectory(t *testing.T) {
	root, err := os.MkdirTemp("", "s")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(root)
	logger, hook := logtest.NewNullLogger()
	ctx := log.WithLogger(t.Context(), logrus.NewEntry(logger))
	for _, tt := range []struct {
		path, err string
		warnings  int
	}{
		{"s", "", 0},
		{"run/s", "", 1},
		{"run/t", "", 0},
		{"rnu/capelin/s", "there is no directory " + filepath.Join(root, "rnu"), 0},
	} {
		hook.Reset()
		l, err := listenUnix(ctx, filepath.Join(root, tt.path))
		if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%s: %v, want %q", tt.path, err, tt.err)
		}
		if err == nil {
			l.Close()
		}
		if n := len(hook.AllEntries()); n != tt.warnings {
			t.Errorf("%s: the log says %d things, want %d", tt.path, n, tt.warnings)
		}
	}
	if _, err := os.Stat(filepath.Join(root, "rnu")); !os.IsNotExist(err) {
		t.Errorf("it was made: %v", err)
	}
}
