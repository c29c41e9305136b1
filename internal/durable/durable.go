package durable

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/capelin-io/capelin/internal/durable/disk"
)

// TempPrefix begins the names of temporary files. Those left by a crash can be
// removed by whoever owns the directory.
const TempPrefix = ".tmp-"

// IsTemp reports whether name, without a directory, is a temporary file's.
func IsTemp(name string) bool { return strings.HasPrefix(name, TempPrefix) }

// WriteFile makes path hold data. After a nil error it does so after a power
// cut too; after an error or a crash path holds what it held before, or data.
func WriteFile(path string, data []byte, perm os.FileMode) (err error) {
	f, err := disk.CreateTemp(filepath.Dir(path), TempPrefix+"*")
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			_ = disk.Remove(f.Name())
		}
	}()
	if _, err = disk.Write(f, data); err == nil {
		err = f.Chmod(perm)
	}
	if err == nil {
		err = disk.Sync(f)
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return Rename(f.Name(), path)
}

// Rename renames a file that is already synced and syncs the directory that it
// comes into. If only the sync fails the file has its new name nonetheless, and
// the error is a [SyncError].
func Rename(from, to string) error {
	if err := disk.Rename(from, to); err != nil {
		return err
	}
	return SyncDir(filepath.Dir(to))
}

// RenameIn is Rename below a root: neither name leads out of it.
func RenameIn(root *disk.Root, from, to string) error {
	if err := root.Rename(from, to); err != nil {
		return err
	}
	return SyncDirIn(root, filepath.Dir(to))
}

// Remove removes a file, durably. It syncs as well when the file is not there:
// whoever removed it may not have come to that. A missing directory is no error.
func Remove(path string) error {
	if err := disk.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := SyncDir(filepath.Dir(path)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// SyncError says that a directory could not be synced: what was renamed into it
// is there, but may be gone after a power cut.
type SyncError struct{ Err error }

func (e *SyncError) Error() string { return e.Err.Error() }
func (e *SyncError) Unwrap() error { return e.Err }

// SyncDir makes the names in a directory durable.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	return syncDir(dir, d, err)
}

// SyncDirIn is SyncDir of a directory below a root, or of the root itself (".").
func SyncDirIn(root *disk.Root, dir string) error {
	d, err := root.Open(dir)
	return syncDir(dir, d, err)
}

func syncDir(dir string, d *os.File, err error) error {
	if err != nil {
		return &SyncError{err}
	}
	err = errors.Join(disk.Sync(d), d.Close())
	if err != nil {
		return &SyncError{fmt.Errorf("syncing %s: %w", dir, err)}
	}
	return nil
}
