package file

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/fetcher/fetchertest"
)

func open(t *testing.T, dir string) *Backend {
	t.Helper()
	b, err := Open(Config{Path: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

func put(t *testing.T, b *Backend, key, data string) fetcher.Info {
	t.Helper()
	info, err := b.Write(t.Context(), key, int64(len(data)), strings.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	return info
}

func get(t *testing.T, b *Backend, key string) (string, error) {
	t.Helper()
	r, _, err := b.Open(t.Context(), key, 0, -1)
	if err != nil {
		return "", err
	}
	defer r.Close()
	data, err := io.ReadAll(r)
	return string(data), err
}

func TestConformance(t *testing.T) {
	fetchertest.Run(t,
		func(t *testing.T) fetcher.Backend { return open(t, filepath.Join(t.TempDir(), "a", "b")) },
		fetchertest.Options{Again: func(t *testing.T, b fetcher.Backend) fetcher.Backend {
			return open(t, b.(*Backend).path)
		}},
	)
}

// Only regular files are objects, and nothing leads out.
func TestForeignFiles(t *testing.T) {
	dir := t.TempDir()
	outside := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(outside, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	b := open(t, dir)
	put(t, b, "d/real", "real")
	at := func(name string) string { return filepath.Join(dir, name) }
	if err := errors.Join(
		os.WriteFile(at("by-hand"), []byte("by hand"), 0o644),
		os.WriteFile(at("not a key"), nil, 0o644),
		os.Symlink(outside, at("d/out")),
		os.Symlink(filepath.Dir(outside), at("d/outdir")),
		os.Symlink("real", at("d/in")),
		os.Symlink("nowhere", at("d/dangling")),
		os.Symlink(".", at("d/loop")),
		syscall.Mkfifo(at("d/fifo"), 0o600),
		os.Mkdir(at("d/empty"), 0o700),
	); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"d/out", "d/in", "d/dangling", "d/loop", "d/fifo", "d/empty", "d", "d/real/below"} {
		if _, err := b.Stat(t.Context(), key); !errdefs.IsNotFound(err) {
			t.Errorf("stat of %s: %v", key, err)
		}
		if got, err := get(t, b, key); !errdefs.IsNotFound(err) {
			t.Errorf("read of %s: %q, %v", key, got, err)
		}
	}
	if got, err := get(t, b, "d/outdir/secret"); !errdefs.IsPermissionDenied(err) {
		t.Errorf("read outside: %q, %v", got, err)
	}
	if _, err := b.Write(t.Context(), "d/outdir/new", 1, strings.NewReader("x")); err == nil {
		t.Error("wrote outside")
	}
	if err := b.Delete(t.Context(), "d/outdir/secret"); !errdefs.IsPermissionDenied(err) {
		t.Errorf("delete outside: %v", err)
	}
	if _, err := os.Stat(outside); err != nil {
		t.Error(err)
	}
	page, more, err := b.List(t.Context(), "", "", 0)
	if err != nil || more || len(page) != 2 || page[0].Key != "by-hand" || page[1].Key != "d/real" {
		t.Errorf("listed %+v, %v, %v", page, more, err)
	}
	if got, err := get(t, b, "by-hand"); got != "by hand" || err != nil {
		t.Errorf("read %q, %v", got, err)
	}
	for _, key := range []string{".capelin", ".capelin/lock", ".capelin/tmp/x"} {
		if _, err := b.Stat(t.Context(), key); !errdefs.IsInvalidArgument(err) {
			t.Errorf("stat of %s: %v", key, err)
		}
	}
	for _, key := range []string{"d", "d/real/below", "d/empty"} {
		if _, err := b.Write(t.Context(), key, 1, strings.NewReader("x")); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("write of %s: %v", key, err)
		}
		if err := b.Delete(t.Context(), key); err != nil {
			t.Errorf("delete of %s: %v", key, err)
		}
	}
	if fi, err := os.Stat(at("d/empty")); err != nil || !fi.IsDir() {
		t.Errorf("a directory was deleted: %v", err)
	}
	// A link is replaced, not written through.
	put(t, b, "d/out", "mine")
	if data, _ := os.ReadFile(outside); string(data) != "secret" {
		t.Errorf("wrote through a link: %q", data)
	}
}

// What the dead were writing goes at Open; what the living write does not.
func TestTemporaryFiles(t *testing.T) {
	dir := t.TempDir()
	b := open(t, dir)
	dead := filepath.Join(dir, tmpDir, "DEAD")
	if err := errors.Join(
		os.Mkdir(dead, 0o700),
		os.WriteFile(filepath.Join(dead, "lock"), nil, 0o600),
		os.WriteFile(filepath.Join(dead, "1"), []byte("half"), 0o600),
		os.Mkdir(filepath.Join(dir, tmpDir, "UNLOCKED"), 0o700),
		os.WriteFile(filepath.Join(dir, tmpDir, "file"), nil, 0o600),
	); err != nil {
		t.Fatal(err)
	}
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		_, err := b.Write(t.Context(), "k", 10, r)
		done <- err
	}()
	_, _ = w.Write([]byte("01234"))

	other := open(t, dir)
	names, err := os.ReadDir(filepath.Join(dir, tmpDir))
	if err != nil || len(names) != 2 {
		t.Errorf("left: %v, %v", names, err)
	}
	_, _ = w.Write([]byte("56789"))
	w.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if got, err := get(t, other, "k"); got != "0123456789" || err != nil {
		t.Errorf("read %q, %v", got, err)
	}
	for _, tmp := range []string{b.tmp, other.tmp} {
		if names, err := os.ReadDir(filepath.Join(dir, tmp)); err != nil || len(names) != 1 {
			t.Errorf("temporary files: %v, %v", names, err)
		}
	}
}

// Times rise even if the clock goes back, and for files with times of their own.
func TestVersionsRise(t *testing.T) {
	dir := t.TempDir()
	b := open(t, dir)
	put(t, b, "k", "a")
	future := time.Now().Add(100 * 24 * time.Hour)
	if err := os.Chtimes(filepath.Join(dir, "k"), future, future); err != nil {
		t.Fatal(err)
	}
	last, err := b.Stat(t.Context(), "k")
	if err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		info, err := b.WriteIf(t.Context(), "k", []byte("a"), last.Version)
		if err != nil {
			t.Fatal(err)
		}
		if !info.Modified.After(last.Modified) {
			t.Fatalf("write %d: %v is not after %v", i, info.Modified, last.Modified)
		}
		last = info
	}
	if d := last.Modified.Sub(future); d > time.Second {
		t.Errorf("times run away: %v", d)
	}
}

// Directories that somebody removes are made again.
func TestRemovedDirectories(t *testing.T) {
	dir := t.TempDir()
	b := open(t, dir)
	put(t, b, "a/b/c", "1")
	if err := os.RemoveAll(filepath.Join(dir, "a")); err != nil {
		t.Fatal(err)
	}
	put(t, b, "a/b/c", "2")
	if got, err := get(t, b, "a/b/c"); got != "2" || err != nil {
		t.Errorf("read %q, %v", got, err)
	}
}

func TestLockIsCancelled(t *testing.T) {
	dir := t.TempDir()
	a, b := open(t, dir), open(t, dir)
	unlock, err := a.lock(t.Context(), "k")
	if err != nil {
		t.Fatal(err)
	}
	for _, side := range []*Backend{a, b} { // waiting in the process, and for another one
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
		if _, err := side.Write(ctx, "k", 1, strings.NewReader("x")); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("write: %v", err)
		}
		cancel()
	}
	unlock()
	put(t, a, "k", "a")
	put(t, b, "k", "b")
}

func TestCutShort(t *testing.T) {
	dir := t.TempDir()
	b := open(t, dir)
	put(t, b, "k", strings.Repeat("x", 1000))
	r, _, err := b.Open(t.Context(), "k", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := os.Truncate(filepath.Join(dir, "k"), 500); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(r); len(got) != 500 || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

// Empty directories fill no page.
func TestListManyEmptyDirectories(t *testing.T) {
	dir := t.TempDir()
	b := open(t, dir)
	for i := range 50 {
		if err := os.MkdirAll(filepath.Join(dir, fmt.Sprintf("d%02d/x", i)), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	put(t, b, "d30/x/y", "1")
	put(t, b, "e", "2")
	for limit := 1; limit < 4; limit++ {
		page, more, err := b.List(t.Context(), "", "", limit)
		if err != nil || len(page) != min(limit, 2) || more != (limit < 2) || page[0].Key != "d30/x/y" {
			t.Errorf("limit %d: %+v, %v, %v", limit, page, more, err)
		}
	}
}

func TestClasses(t *testing.T) {
	for errno, is := range map[syscall.Errno]func(error) bool{
		syscall.ENOSPC: errdefs.IsResourceExhausted,
		syscall.EDQUOT: errdefs.IsResourceExhausted,
		syscall.EFBIG:  errdefs.IsResourceExhausted,
		syscall.EIO:    errdefs.IsUnavailable,
		syscall.ESTALE: errdefs.IsUnavailable,
		syscall.EMFILE: errdefs.IsUnavailable,
		syscall.EACCES: errdefs.IsPermissionDenied,
		syscall.EROFS:  errdefs.IsPermissionDenied,
		syscall.ENOENT: errdefs.IsNotFound,
	} {
		if err := classed(&os.PathError{Op: "write", Path: "x", Err: errno}); !is(err) || !errors.Is(err, errno) {
			t.Errorf("%v: %v", errno, err)
		}
	}
	if _, err := Open(Config{Path: "relative"}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("relative path: %v", err)
	}
	file := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Config{Path: file}); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("a file instead of a directory: %v", err)
	}
}

// TestDiskFull needs root: it mounts a small file system that only it sees.
func TestDiskFull(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	dir := t.TempDir()
	data := make([]byte, 3<<20)
	_, _ = rand.Read(data)
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS)
		if err == nil {
			err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
		}
		if err == nil {
			err = unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m")
		}
		if err != nil {
			t.Logf("not tested: %v", err)
			return
		}
		b, err := Open(Config{Path: dir})
		if err != nil {
			t.Error(err)
			return
		}
		defer b.Close()
		for range 2 {
			if _, err := b.Write(t.Context(), "a/big", int64(len(data)), bytes.NewReader(data)); !errdefs.IsResourceExhausted(err) {
				t.Errorf("a full disk: %v", err)
			}
			if _, err := b.Write(t.Context(), "a/small", 500<<10, bytes.NewReader(data[:500<<10])); err != nil {
				t.Errorf("afterwards: %v", err)
			}
			if err := b.Delete(t.Context(), "a/small"); err != nil {
				t.Error(err)
			}
		}
	}()
	<-done
}

func BenchmarkWrite(b *testing.B) {
	be, err := Open(Config{Path: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	defer be.Close()
	data := make([]byte, 64<<20)
	b.SetBytes(int64(len(data)))
	for i := 0; b.Loop(); i++ {
		if _, err := be.Write(b.Context(), fmt.Sprintf("blobs/%d", i%4), int64(len(data)), bytes.NewReader(data)); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkWriteIf(b *testing.B) {
	be, err := Open(Config{Path: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	defer be.Close()
	version := ""
	for b.Loop() {
		info, err := be.WriteIf(b.Context(), "index/tag", []byte("x"), version)
		if err != nil {
			b.Fatal(err)
		}
		version = info.Version
	}
}

func BenchmarkList(b *testing.B) {
	be, err := Open(Config{Path: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	defer be.Close()
	for i := range 20000 {
		if err := be.root.MkdirAll("d", 0o700); err != nil {
			b.Fatal(err)
		}
		if err := be.root.WriteFile(fmt.Sprintf("d/%08d", i*7919%20000), nil, 0o600); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		if _, _, err := be.List(b.Context(), "d/", "d/00010000", 100); err != nil {
			b.Fatal(err)
		}
	}
}

// TestCheck: a directory that is gone, or is another one, is told from one that is there.
func TestCheck(t *testing.T) {
	path := filepath.Join(t.TempDir(), "objects")
	b, err := Open(Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	if err := b.Check(t.Context()); err != nil {
		t.Error(err)
	}
	if err := os.Rename(path, path+".was"); err != nil {
		t.Fatal(err)
	}
	if err := b.Check(t.Context()); !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), path) {
		t.Errorf("gone: %v", err)
	}
	if err := os.Mkdir(path, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := b.Check(t.Context()); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "restart") {
		t.Errorf("another one: %v", err)
	}
}
