package durable

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// TempPrefix begins the names of temporary files. Those left by a crash can be
// removed by whoever owns the directory.
const TempPrefix = ".tmp-"

// IsTemp reports whether name, without a directory, is a temporary file's.
func IsTemp(name string) bool { return strings.HasPrefix(name, TempPrefix) }

// WriteFile makes path hold data. After a nil error it does so after a power
// cut too; after an error or a crash path holds what it held before, or data.
func WriteFile(path string, data []byte, perm os.FileMode) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), TempPrefix+"*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	if _, err = f.Write(data); err == nil {
		err = f.Chmod(perm)
	}
	if err == nil {
		err = f.Sync()
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
	if err := os.Rename(from, to); err != nil {
		return err
	}
	return SyncDir(filepath.Dir(to))
}

// RenameIn is Rename below a root: neither name leads out of it.
func RenameIn(root *os.Root, from, to string) error {
	if err := root.Rename(from, to); err != nil {
		return err
	}
	return SyncDirIn(root, filepath.Dir(to))
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
func SyncDirIn(root *os.Root, dir string) error {
	d, err := root.Open(dir)
	return syncDir(dir, d, err)
}

func syncDir(dir string, d *os.File, err error) error {
	if err != nil {
		return &SyncError{err}
	}
	err = errors.Join(d.Sync(), d.Close())
	if err != nil {
		return &SyncError{fmt.Errorf("syncing %s: %w", dir, err)}
	}
	return nil
}
