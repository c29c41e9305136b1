package unpack

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A full disk is asked for room, and what failed is done again, as often as some is made.
func TestRoom(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	if err := unix.Mount("capelin-test", dir, "tmpfs", 0, "size=4m"); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	var es []entry
	for i := range 20 {
		es = append(es, reg(fmt.Sprint("small", i), strings.Repeat("x", 50_000)))
	}
	plain := layer(t, append(es, reg("big", strings.Repeat("y", 2_000_000)))...)
	for i, want := range []error{nil, unix.ENOSPC} {
		kept := 0
		for ; ; kept++ {
			if err := os.WriteFile(filepath.Join(dir, fmt.Sprint("cache", kept)), make([]byte, 500_000), 0o600); err != nil {
				break
			}
		}
		asked := 0
		o := Options{Room: func(_ context.Context, fd int, do func() error) error {
			var st, at unix.Stat_t
			if unix.Fstat(fd, &st) != nil || unix.Stat(dir, &at) != nil || st.Dev != at.Dev {
				t.Error("not the file that there is no room for")
			}
			asked++
			for kept > 0 && want == nil {
				kept--
				if err := os.Remove(filepath.Join(dir, fmt.Sprint("cache", kept))); err != nil {
					return err
				}
				if err := do(); err != unix.ENOSPC {
					return err
				}
			}
			return unix.ENOSPC
		}, Workers: 1}
		root := filepath.Join(dir, fmt.Sprint(i))
		if err := os.Mkdir(root, 0o755); err != nil {
			t.Fatal(err)
		}
		if _, err := applyBytes(t.Context(), root, plain, o); !errors.Is(err, want) || asked == 0 {
			t.Errorf("%v, asked %d times; want %v", err, asked, want)
		}
	}
}
