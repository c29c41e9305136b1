package disk

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Kind is what an operation does.
type Kind string

// The kinds of operations.
const (
	OpOpen     Kind = "open" // for writing
	OpMkdir    Kind = "mkdir"
	OpRename   Kind = "rename"
	OpRemove   Kind = "remove" // of a tree, too
	OpWrite    Kind = "write"
	OpTruncate Kind = "truncate"
	OpChtimes  Kind = "chtimes"
	OpSync     Kind = "fsync" // of a file, or of a directory's names
	OpDatasync Kind = "fdatasync"
	OpSyncFS   Kind = "syncfs" // everything that a file system has
)

// Op is one operation.
type Op struct {
	Kind  Kind
	Path  string   // absolute, if the name that was given is
	To    string   // what Path is renamed to
	File  *os.File // what is written, truncated or synced
	Bytes int      // to be written
	Off   int64    // where
}

// A Hook performs the operations below a directory.
type Hook interface {
	// Do performs op by calling do, or fails it. A write takes as many of its bytes
	// as do is called with; for others do's argument means nothing.
	Do(op Op, do func(n int) error) error
}

type watch struct {
	dir  string
	hook Hook
}

var (
	watchMu sync.Mutex
	watches atomic.Pointer[[]*watch]
)

// Intercept has h perform the operations below dir until stop is called. It is for
// tests, and for the time in which nobody uses the directory otherwise.
func Intercept(dir string, h Hook) (stop func()) {
	w := &watch{filepath.Clean(dir), h}
	change := func(f func([]*watch) []*watch) {
		watchMu.Lock()
		defer watchMu.Unlock()
		var old []*watch
		if p := watches.Load(); p != nil {
			old = *p
		}
		if l := f(old); len(l) > 0 {
			watches.Store(&l)
		} else {
			watches.Store(nil)
		}
	}
	change(func(old []*watch) []*watch { return append([]*watch{w}, old...) })
	return func() {
		change(func(old []*watch) (l []*watch) {
			for _, o := range old {
				if o != w {
					l = append(l, o)
				}
			}
			return l
		})
	}
}

// hookOf returns who performs what is done at path, or nil.
func hookOf(path string) Hook {
	p := watches.Load()
	if p == nil {
		return nil
	}
	for _, w := range *p {
		if rest, ok := strings.CutPrefix(path, w.dir); ok && (rest == "" || rest[0] == '/' || w.dir == "/") {
			return w.hook
		}
	}
	return nil
}

// perform does what op says.
func perform(op Op, do func() error) error {
	if h := hookOf(op.Path); h != nil {
		return h.Do(op, func(int) error { return do() })
	}
	return do()
}

// OpenFile is os.OpenFile.
func OpenFile(path string, flag int, perm os.FileMode) (f *os.File, err error) {
	err = perform(Op{Kind: OpOpen, Path: path}, func() error {
		f, err = os.OpenFile(path, flag, perm)
		return err
	})
	return f, err
}

// CreateTemp is os.CreateTemp.
func CreateTemp(dir, pattern string) (f *os.File, err error) {
	err = perform(Op{Kind: OpOpen, Path: filepath.Join(dir, pattern)}, func() error {
		f, err = os.CreateTemp(dir, pattern)
		return err
	})
	return f, err
}

// Mkdir is os.Mkdir. Directories that are to last are made by package durable.
func Mkdir(path string, perm os.FileMode) error {
	return perform(Op{Kind: OpMkdir, Path: path}, func() error { return os.Mkdir(path, perm) })
}

// Rename is os.Rename.
func Rename(from, to string) error {
	return perform(Op{Kind: OpRename, Path: from, To: to}, func() error { return os.Rename(from, to) })
}

// Remove is os.Remove.
func Remove(path string) error {
	return perform(Op{Kind: OpRemove, Path: path}, func() error { return os.Remove(path) })
}

// RemoveAll is os.RemoveAll.
func RemoveAll(path string) error {
	return perform(Op{Kind: OpRemove, Path: path}, func() error { return os.RemoveAll(path) })
}

// Chtimes is os.Chtimes.
func Chtimes(path string, atime, mtime time.Time) error {
	return perform(Op{Kind: OpChtimes, Path: path}, func() error { return os.Chtimes(path, atime, mtime) })
}

// Truncate is f.Truncate.
func Truncate(f *os.File, size int64) error {
	return perform(Op{Kind: OpTruncate, Path: f.Name(), File: f}, func() error { return f.Truncate(size) })
}

// WriteAt is f.WriteAt.
func WriteAt(f *os.File, p []byte, off int64) (n int, err error) {
	h := hookOf(f.Name())
	if h == nil {
		return f.WriteAt(p, off)
	}
	err = h.Do(Op{Kind: OpWrite, Path: f.Name(), File: f, Bytes: len(p), Off: off}, func(most int) (err error) {
		n, err = f.WriteAt(p[:most], off)
		return err
	})
	return n, err
}

// Write is f.Write.
func Write(f *os.File, p []byte) (n int, err error) {
	h := hookOf(f.Name())
	if h == nil {
		return f.Write(p)
	}
	off, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		return 0, err
	}
	err = h.Do(Op{Kind: OpWrite, Path: f.Name(), File: f, Bytes: len(p), Off: off}, func(most int) (err error) {
		n, err = f.Write(p[:most])
		return err
	})
	return n, err
}

// Sync makes a file's data, size and times durable, or a directory's names; not
// the name of f itself, which is its directory's.
func Sync(f *os.File) error {
	return perform(Op{Kind: OpSync, Path: f.Name(), File: f}, f.Sync)
}

// Datasync makes a file's data and size durable.
func Datasync(f *os.File) error {
	return perform(Op{Kind: OpDatasync, Path: f.Name(), File: f}, func() error {
		c, err := f.SyscallConn()
		if err != nil {
			return err
		}
		var serr error
		err = c.Control(func(fd uintptr) {
			for {
				if serr = unix.Fdatasync(int(fd)); !errors.Is(serr, unix.EINTR) {
					return
				}
			}
		})
		if err = errors.Join(err, serr); err != nil {
			return &os.PathError{Op: "fdatasync", Path: f.Name(), Err: err}
		}
		return nil
	})
}

// SyncFS makes everything durable that the file system has on which a file is.
func SyncFS(f *os.File) error {
	return perform(Op{Kind: OpSyncFS, Path: f.Name(), File: f}, func() error {
		if err := unix.Syncfs(int(f.Fd())); err != nil {
			return &os.PathError{Op: "syncfs", Path: f.Name(), Err: err}
		}
		return nil
	})
}
