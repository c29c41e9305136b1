package durable

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/capelin-io/capelin/internal/durable/disk"
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

func TestInRoot(t *testing.T) {
	dir := t.TempDir()
	root, err := disk.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if err := errors.Join(root.Mkdir("d", 0o700), root.WriteFile("a", []byte("x"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := RenameIn(root, "a", "d/b"); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "d", "b")); err != nil || string(got) != "x" {
		t.Errorf("read %q, %v", got, err)
	}
	if err := RenameIn(root, "d/b", "../b"); err == nil {
		t.Error("renamed out of the root")
	}
	var se *SyncError
	if err := SyncDirIn(root, "missing"); !errors.As(err, &se) || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("syncing a missing directory: %v", err)
	}
}
