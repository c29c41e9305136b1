package disk

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// What cannot be synced says so: the kernel was asked.
func TestSyncAsksTheKernel(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	for name, sync := range map[string]func(*os.File) error{"fsync": Sync, "fdatasync": Datasync} {
		if err := sync(w); !errors.Is(err, unix.EINVAL) {
			t.Errorf("%s of a pipe: %v, want %v", name, err, unix.EINVAL)
		}
	}
	dir, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := SyncFS(dir); err != nil {
		t.Error(err)
	}
	dir.Close()
	if err := SyncFS(dir); !errors.Is(err, unix.EBADF) {
		t.Errorf("syncfs of nothing: %v, want %v", err, unix.EBADF)
	}
}

// hook counts what passes through it.
type hook struct{ ops int }

func (h *hook) Do(op Op, do func(int) error) error {
	h.ops++
	return do(op.Bytes)
}

// Of two hooks the one that came later has a directory, and none has its neighbour.
func TestIntercept(t *testing.T) {
	dir := t.TempDir()
	if err := errors.Join(Mkdir(dir+"/a", 0o700), Mkdir(dir+"/ab", 0o700), Mkdir(dir+"/a/b", 0o700)); err != nil {
		t.Fatal(err)
	}
	var outer, inner hook
	stop := Intercept(dir+"/a", &outer)
	stopInner := Intercept(dir+"/a/b", &inner)
	touch := func(name string, want1, want2 int) {
		t.Helper()
		f, err := OpenFile(dir+"/"+name, os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if n, err := Write(f, []byte("x")); n != 1 || err != nil {
			t.Errorf("wrote %d, %v", n, err)
		}
		if outer.ops != want1 || inner.ops != want2 {
			t.Errorf("%s: %d and %d operations, want %d and %d", name, outer.ops, inner.ops, want1, want2)
		}
	}
	touch("a/x", 2, 0)
	touch("a/b/x", 2, 2)
	touch("ab/x", 2, 2)
	stopInner()
	touch("a/b/y", 4, 2)
	stop()
	touch("a/z", 4, 2)
}
