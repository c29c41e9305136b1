package durable

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestWriteFile(t *testing.T) {
	dir := t.TempDir()
	p := filepath.Join(dir, "x")
	for _, want := range []string{"one", "", "three"} {
		if err := WriteFile(p, []byte(want), 0o640); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(p)
		if err != nil || string(got) != want {
			t.Errorf("read %q, %v; want %q", got, err, want)
		}
	}
	fi, _ := os.Stat(p)
	if fi.Mode().Perm() != 0o640 {
		t.Errorf("mode %v", fi.Mode())
	}
	names, _ := os.ReadDir(dir)
	if len(names) != 1 {
		t.Errorf("left behind: %v", names)
	}
}

func TestWriteFileLeavesNothingOnError(t *testing.T) {
	dir := t.TempDir()
	p := filepath.Join(dir, "x")
	if err := os.MkdirAll(filepath.Join(p, "full"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := WriteFile(p, []byte("a"), 0o600); err == nil {
		t.Fatal("a file replaced a directory")
	}
	names, _ := os.ReadDir(dir)
	if len(names) != 1 || IsTemp(names[0].Name()) {
		t.Errorf("left behind: %v", names)
	}
	var se *SyncError
	if err := SyncDir(filepath.Join(dir, "missing")); !errors.As(err, &se) || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("syncing a missing directory: %v", err)
	}
}
