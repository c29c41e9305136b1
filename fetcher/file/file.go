package file

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/internal/daemon/config"
	"github.com/capelin-io/capelin/internal/durable"
	"github.com/capelin-io/capelin/internal/durable/disk"
)

// Config is a directory.
type Config struct {
	Path string `toml:"path" comment:"Directory of the objects, an absolute path; made if it is not there. Several processes, on several machines too, may share it, if its file system has working locks (flock)."`
}

// Check reports what is wrong, as config.Invalid errors whose keys begin with
// prefix, such as "backends.file.".
func (c Config) Check(prefix string) []error {
	if !filepath.IsAbs(c.Path) {
		return []error{config.Invalid(prefix+"path", "%q is not an absolute path", c.Path)}
	}
	return nil
}

const (
	private = ".capelin" // what is not an object
	tmpDir  = private + "/tmp"
	lockDir = private + "/locks"

	fileMode = 0o640
	dirMode  = 0o750
)

// Backend is a directory of objects.
type Backend struct {
	root    *disk.Root
	path    string
	tmp     string   // our directory of temporary files, below root
	tmpLock *os.File // its lock, held until Close
	seq     atomic.Uint64

	dirs  *durable.Dirs
	large *large

	locks [stripes]stripe
}

var _ fetcher.Backend = (*Backend)(nil)

// Open opens the directory, makes it if need be, and removes what processes that
// are gone were writing.
func Open(cfg Config) (_ *Backend, err error) {
	if errs := cfg.Check(""); errs != nil {
		return nil, fmt.Errorf("file backend: %w: %w", errors.Join(errs...), errdefs.ErrInvalidArgument)
	}
	b := &Backend{path: filepath.Clean(cfg.Path), large: newLarge()}
	defer func() {
		if err != nil {
			_ = b.Close()
			err = fmt.Errorf("opening %s: %w", b.Name(), classed(err))
		}
	}()
	if err := durable.MkdirAll(b.path, dirMode); err != nil {
		return nil, err
	}
	if b.root, err = disk.OpenRoot(b.path); err != nil {
		return nil, err
	}
	b.dirs = durable.NewDirsIn(b.root, dirMode)
	for _, dir := range []string{private, tmpDir, lockDir} {
		if err := b.root.Mkdir(dir, dirMode); err != nil && !errors.Is(err, os.ErrExist) { // they need not last
			return nil, err
		}
	}
	for i := range b.locks {
		b.locks[i].init(fmt.Sprintf("%s/%02x", lockDir, i))
	}
	return b, b.enter()
}

// enter makes our directory of temporary files and removes those of the dead. A
// directory belongs to a living process if its lock is held.
func (b *Backend) enter() error {
	gate, err := b.root.OpenFile(private+"/lock", os.O_RDWR|os.O_CREATE, fileMode)
	if err != nil {
		return err
	}
	defer gate.Close()
	if err := flock(gate, syscall.LOCK_EX); err != nil {
		return err
	}
	dir, err := b.root.Open(tmpDir)
	if err != nil {
		return err
	}
	names, err := dir.Readdirnames(-1)
	dir.Close()
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := b.removeDead(tmpDir + "/" + name); err != nil {
			return err
		}
	}
	b.tmp = tmpDir + "/" + rand.Text()
	if err := b.root.Mkdir(b.tmp, dirMode); err != nil {
		return err
	}
	if b.tmpLock, err = b.root.OpenFile(b.tmp+"/lock", os.O_RDWR|os.O_CREATE|os.O_EXCL, fileMode); err != nil {
		return err
	}
	return flock(b.tmpLock, syscall.LOCK_EX|syscall.LOCK_NB)
}

// removeDead removes a directory of temporary files, unless its process lives.
func (b *Backend) removeDead(dir string) error {
	f, err := b.root.OpenFile(dir+"/lock", os.O_RDWR, 0)
	if err == nil {
		defer f.Close()
		if err := flock(f, syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
			if err == syscall.EWOULDBLOCK {
				return nil
			}
			return err
		}
	} else if !errors.Is(err, os.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR) {
		return err
	}
	return b.root.RemoveAll(dir)
}

// Close lets go of the directory. Readers that are open stay usable; writes that
// are under way may fail.
func (b *Backend) Close() error {
	var errs []error
	b.large.close()
	if b.tmpLock != nil {
		errs = append(errs, b.root.RemoveAll(b.tmp), b.tmpLock.Close())
		b.tmpLock = nil
	}
	for i := range b.locks {
		b.locks[i].close()
	}
	if b.root != nil {
		errs = append(errs, b.root.Close())
	}
	return errors.Join(errs...)
}

// Name implements fetcher.Backend.
func (b *Backend) Name() string { return "file:" + b.path }

// Check implements fetcher.Backend: the directory is there, by its name too, and is not read-only.
func (b *Backend) Check(ctx context.Context) error {
	err := ctx.Err()
	if err == nil {
		err = b.check()
	}
	if err != nil {
		return fmt.Errorf("%s: checking the directory: %w", b.Name(), classed(err))
	}
	return nil
}

func (b *Backend) check() error {
	named, err := os.Stat(b.path)
	if err != nil {
		return err
	}
	open, err := b.root.Stat(".")
	if err != nil {
		return err
	}
	if !os.SameFile(named, open) {
		return fmt.Errorf("another directory has been put or mounted there; restart: %w", errdefs.ErrFailedPrecondition)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(b.path, &fs); err != nil {
		return err
	}
	if fs.Flags&unix.ST_RDONLY != 0 {
		return fmt.Errorf("the file system is read-only: %w", syscall.EROFS)
	}
	return nil
}

// Capabilities implements fetcher.Backend: a directory can do all.
func (b *Backend) Capabilities() fetcher.Capabilities {
	return fetcher.Capabilities{Write: true, List: true, Delete: true, CompareAndSwap: true, Generations: true}
}

func checkKey(key string) error {
	if err := fetcher.CheckKey(key); err != nil {
		return err
	}
	if key == private || strings.HasPrefix(key, private+"/") {
		return fmt.Errorf("key %q begins with %q, which is not for objects: %w", key, private, errdefs.ErrInvalidArgument)
	}
	return nil
}

// fail names the backend, the operation and the key, and gives an error its class.
func (b *Backend) fail(op, key string, err error) error {
	return fmt.Errorf("%s: %s %s: %w", b.Name(), op, key, classed(err))
}

// Stat implements fetcher.Backend.
func (b *Backend) Stat(ctx context.Context, key string) (fetcher.Info, error) {
	info, err := b.stat(ctx, key)
	if err != nil {
		return fetcher.Info{}, b.fail("looking for", key, err)
	}
	return info, nil
}

func (b *Backend) stat(ctx context.Context, key string) (fetcher.Info, error) {
	if err := errors.Join(checkKey(key), ctx.Err()); err != nil {
		return fetcher.Info{}, err
	}
	fi, err := b.root.Lstat(key)
	if err != nil {
		return fetcher.Info{}, err
	}
	return infoOf(key, fi)
}

// infoOf returns what a file says of its object; errdefs.ErrNotFound if it is none.
func infoOf(key string, fi os.FileInfo) (fetcher.Info, error) {
	if !fi.Mode().IsRegular() {
		return fetcher.Info{}, fmt.Errorf("it is not a regular file: %w", errdefs.ErrNotFound)
	}
	var ino uint64
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		ino = st.Ino
	}
	version := strconv.FormatInt(fi.ModTime().UnixNano(), 16) + "-" + strconv.FormatUint(ino, 16)
	return fetcher.Info{Key: key, Size: fi.Size(), Version: version, Modified: fi.ModTime()}, nil
}

// Open implements fetcher.Backend. A read that has begun goes on with the same
// bytes when the object is replaced or deleted.
func (b *Backend) Open(ctx context.Context, key string, off, n int64) (io.ReadCloser, fetcher.Info, error) {
	r, info, err := b.open(ctx, key, off, n)
	if err != nil {
		return nil, fetcher.Info{}, b.fail("reading", key, err)
	}
	return r, info, nil
}

func (b *Backend) open(ctx context.Context, key string, off, n int64) (_ io.ReadCloser, info fetcher.Info, err error) {
	if _, err := b.stat(ctx, key); err != nil {
		return nil, info, err // so that no link is followed, which a root does if it leads inside
	}
	// O_NONBLOCK: opening a pipe, if it is one by now, would wait for its writer.
	f, err := b.root.OpenFile(key, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, info, err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	fi, err := f.Stat()
	if err != nil {
		return nil, info, err
	}
	if info, err = infoOf(key, fi); err != nil {
		return nil, info, err
	}
	if off < 0 || off > info.Size {
		return nil, info, fmt.Errorf("offset %d is outside of %d bytes: %w", off, info.Size, errdefs.ErrOutOfRange)
	}
	if n < 0 || n > info.Size-off {
		n = info.Size - off
	}
	return &reader{ctx: ctx, b: b, f: f, key: key, off: off, left: n}, info, nil
}

// reader is a range of a file.
type reader struct {
	ctx       context.Context
	b         *Backend
	f         *os.File
	key       string
	off, left int64
}

func (r *reader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, r.b.fail("reading", r.key, err)
	}
	if r.left == 0 {
		return 0, io.EOF
	}
	n, err := r.f.ReadAt(p[:min(int64(len(p)), r.left)], r.off)
	r.off += int64(n)
	r.left -= int64(n)
	switch {
	case err == nil || r.left == 0:
		return n, nil
	case err == io.EOF:
		err = fmt.Errorf("the file was cut short, at %d: %w", r.off, io.ErrUnexpectedEOF)
	}
	return n, r.b.fail("reading", r.key, err)
}

func (r *reader) Close() error { return r.f.Close() }
