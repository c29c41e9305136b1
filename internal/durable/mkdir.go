package durable

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/capelin-io/capelin/internal/durable/disk"
)

// MkdirAll is os.MkdirAll, after which the directories that it made survive a power
// cut. Those that were there are taken to do so: for a tree in which an earlier
// process may have been killed before it came to a sync, see [Dirs].
func MkdirAll(dir string, perm os.FileMode) error {
	if fi, err := os.Stat(dir); err == nil && fi.IsDir() {
		return nil
	}
	if parent := filepath.Dir(dir); parent != dir {
		if err := MkdirAll(parent, perm); err != nil {
			return err
		}
	}
	return mkdir(nil, dir, perm)
}

// mkdir makes a directory, unless it is there, and syncs the one that it is in.
func mkdir(root *disk.Root, dir string, perm os.FileMode) error {
	do, stat, syncDir := disk.Mkdir, os.Stat, SyncDir
	if root != nil {
		do, stat = root.Mkdir, root.Lstat // a link leads elsewhere, or is somebody's mistake
		syncDir = func(dir string) error { return SyncDirIn(root, dir) }
	}
	if err := do(dir, perm); err != nil {
		if !errors.Is(err, os.ErrExist) {
			return err
		}
		if fi, err := stat(dir); err != nil {
			return err
		} else if !fi.IsDir() {
			return &os.PathError{Op: "mkdir", Path: dir, Err: syscall.ENOTDIR}
		}
	}
	return syncDir(filepath.Dir(dir))
}

// maxDirs bounds what is remembered of directories.
const maxDirs = 4096

// Dirs makes the directories of one tree. Each is synced once, with all above it,
// also if it was there: whoever made it may not have come to that.
type Dirs struct {
	top  string
	root *disk.Root // nil: names are paths
	perm os.FileMode

	mu   sync.Mutex
	done map[string]struct{} // durable up to the top
}

// NewDirs makes directories below top, which must be there and durable.
func NewDirs(top string, perm os.FileMode) *Dirs {
	return &Dirs{top: filepath.Clean(top), perm: perm, done: map[string]struct{}{}}
}

// NewDirsIn makes directories below a root. Their names are relative to it.
func NewDirsIn(root *disk.Root, perm os.FileMode) *Dirs {
	return &Dirs{top: ".", root: root, perm: perm, done: map[string]struct{}{}}
}

// Make makes a directory, which is the top or below it.
func (d *Dirs) Make(dir string) error {
	dir = filepath.Clean(dir)
	if dir == d.top {
		return nil
	}
	d.mu.Lock()
	_, ok := d.done[dir]
	d.mu.Unlock()
	if ok {
		return nil
	}
	if parent := filepath.Dir(dir); parent != dir {
		if err := d.Make(parent); err != nil {
			return err
		}
	}
	if err := mkdir(d.root, dir, d.perm); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.done) >= maxDirs {
		clear(d.done)
	}
	d.done[dir] = struct{}{}
	return nil
}

// Forget is for when somebody has removed directories.
func (d *Dirs) Forget() {
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(d.done)
}
