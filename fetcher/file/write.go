package file

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	mrand "math/rand/v2"
	"os"
	"path"
	"strconv"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/internal/durable"
	"github.com/capelin-io/capelin/internal/durable/disk"
)

const (
	// copySize is how much is copied between two looks at the context, in bytes.
	copySize = 256 << 10
	// writeBack is after how many bytes the kernel is told to begin with the disk.
	writeBack = 8 << 20
)

// Write implements fetcher.Backend.
func (b *Backend) Write(ctx context.Context, key string, size int64, r io.Reader) (fetcher.Info, error) {
	info, err := b.write(ctx, key, size, r, nil)
	if err != nil {
		return fetcher.Info{}, b.fail("writing", key, err)
	}
	return info, nil
}

// WriteIf implements fetcher.Backend.
func (b *Backend) WriteIf(ctx context.Context, key string, data []byte, version string) (fetcher.Info, error) {
	info, err := b.write(ctx, key, int64(len(data)), bytes.NewReader(data), &version)
	if err != nil {
		return fetcher.Info{}, b.fail("writing", key, err)
	}
	return info, nil
}

// write makes key hold what r has, if what is there has the version that is
// wanted; nil: whatever is there.
func (b *Backend) write(ctx context.Context, key string, size int64, r io.Reader, want *string) (_ fetcher.Info, err error) {
	if err := errors.Join(checkKey(key), ctx.Err()); err != nil {
		return fetcher.Info{}, err
	}
	if want != nil { // tell losers early; what counts is the second look, under the lock
		if _, err := b.current(key, want); err != nil {
			return fetcher.Info{}, err
		}
	}
	tmp := b.tmp + "/" + strconv.FormatUint(b.seq.Add(1), 36)
	f, err := b.root.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, fileMode)
	if err != nil {
		return fetcher.Info{}, err
	}
	published := false
	defer func() {
		f.Close()
		if !published {
			_ = b.root.Remove(tmp)
		}
	}()
	if err := fill(ctx, f, size, r); err != nil {
		return fetcher.Info{}, err
	}
	if err := b.date(f, tmp, time.Now()); err != nil {
		return fetcher.Info{}, err
	}

	unlock, err := b.lock(ctx, key)
	if err != nil {
		return fetcher.Info{}, err
	}
	defer unlock()
	old, err := b.current(key, want)
	if err != nil {
		return fetcher.Info{}, err
	}
	if err := b.dateAfter(f, tmp, old); err != nil {
		return fetcher.Info{}, err
	}
	fi, err := f.Stat()
	if err != nil {
		return fetcher.Info{}, err
	}
	if err := b.publish(tmp, key); err != nil {
		var sync *durable.SyncError
		published = errors.As(err, &sync)
		return fetcher.Info{}, err
	}
	published = true
	return infoOf(key, fi)
}

// current returns the file at key, nil if there is none, and errdefs.ErrConflict if
// its version is not the one that is wanted.
func (b *Backend) current(key string, want *string) (os.FileInfo, error) {
	fi, err := b.root.Lstat(key)
	switch {
	case errors.Is(err, os.ErrNotExist):
		fi = nil
	case err != nil:
		return nil, prefixed(err)
	case fi.IsDir():
		return nil, prefixed(syscall.EISDIR)
	}
	if want == nil {
		return fi, nil
	}
	have := ""
	if fi != nil {
		info, err := infoOf(key, fi)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errdefs.ErrConflict, err)
		}
		have = info.Version
	}
	if have != *want {
		return nil, fmt.Errorf("its version is %q, not %q: %w", have, *want, errdefs.ErrConflict)
	}
	return fi, nil
}

// prefixed explains what happens if a key is another one and "/…".
func prefixed(err error) error {
	if errors.Is(err, syscall.ENOTDIR) || errors.Is(err, syscall.EISDIR) {
		return fmt.Errorf("an object and a directory cannot have one name: %w: %w", err, errdefs.ErrFailedPrecondition)
	}
	return err
}

// fill copies exactly size bytes, or all if it is negative.
func fill(ctx context.Context, f *os.File, size int64, r io.Reader) error {
	room := int64(copySize)
	if size >= 0 && size < room {
		room = size + 1 // one more, to see whether there is more
	}
	buf := make([]byte, room)
	var n, started int64
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		m, rerr := r.Read(buf)
		if size >= 0 && int64(m) > size-n {
			return fmt.Errorf("there are more than %d bytes to write: %w", size, errdefs.ErrInvalidArgument)
		}
		if _, err := disk.Write(f, buf[:m]); err != nil {
			return err
		}
		if n += int64(m); n-started >= writeBack {
			// So that the sync at the end has little left to do. It is only a hint.
			_ = unix.SyncFileRange(int(f.Fd()), started, n-started, unix.SYNC_FILE_RANGE_WRITE)
			started = n
		}
		if rerr == io.EOF {
			break
		}
		if rerr != nil {
			return &sourceError{n, rerr}
		}
	}
	if size >= 0 && n < size {
		return fmt.Errorf("there are %d bytes to write instead of %d: %w: %w", n, size, io.ErrUnexpectedEOF, errdefs.ErrInvalidArgument)
	}
	return ctx.Err()
}

// sourceError is not the storage's: it gets no class beyond its own.
type sourceError struct {
	at  int64
	err error
}

func (e *sourceError) Error() string { return fmt.Sprintf("its source failed at %d: %v", e.at, e.err) }
func (e *sourceError) Unwrap() error { return e.err }

// date gives a temporary file a modification time and syncs it.
func (b *Backend) date(f *os.File, tmp string, at time.Time) error {
	at = at.Add(time.Duration(1 + mrand.Int64N(int64(time.Millisecond))))
	if err := b.root.Chtimes(tmp, at, at); err != nil {
		return err
	}
	return disk.Sync(f)
}

// dateAfter sees to it that the file is later than the one that it replaces. File
// systems that keep whole seconds only need the second try.
func (b *Backend) dateAfter(f *os.File, tmp string, old os.FileInfo) error {
	if old == nil {
		return nil
	}
	for _, step := range []time.Duration{0, 2 * time.Second, -1} {
		fi, err := f.Stat()
		if err != nil {
			return err
		}
		if fi.ModTime().After(old.ModTime()) {
			return nil
		}
		if step < 0 {
			break
		}
		if err := b.date(f, tmp, old.ModTime().Add(step)); err != nil {
			return err
		}
	}
	return fmt.Errorf("the file system does not keep a modification time after %v: %w", old.ModTime(), errdefs.ErrFailedPrecondition)
}

// publish renames a synced file to its key.
func (b *Backend) publish(tmp, key string) error {
	dir := path.Dir(key)
	for range 2 {
		if err := b.dirs.Make(dir); err != nil {
			return prefixed(err)
		}
		err := durable.RenameIn(b.root, tmp, key)
		if !errors.Is(err, os.ErrNotExist) {
			return prefixed(err)
		}
		b.dirs.Forget() // somebody removed directories
	}
	return fmt.Errorf("the directory %s is removed again and again: %w", dir, errdefs.ErrUnavailable)
}

// Delete implements fetcher.Backend.
func (b *Backend) Delete(ctx context.Context, key string) error {
	if err := b.remove(ctx, key); err != nil {
		return b.fail("deleting", key, err)
	}
	return nil
}

func (b *Backend) remove(ctx context.Context, key string) error {
	if err := errors.Join(checkKey(key), ctx.Err()); err != nil {
		return err
	}
	unlock, err := b.lock(ctx, key)
	if err != nil {
		return err
	}
	defer unlock()
	fi, err := b.root.Lstat(key)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) || err == nil && !fi.Mode().IsRegular() {
		return nil
	}
	if err == nil {
		err = b.root.Remove(key)
	}
	if err != nil {
		return err
	}
	return durable.SyncDirIn(b.root, path.Dir(key))
}
