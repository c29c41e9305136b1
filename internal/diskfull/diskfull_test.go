package diskfull

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
)

func TestDiskFull(t *testing.T) {
	for _, tt := range []struct {
		err             error
		full, exhausted bool
	}{
		{nil, false, false},
		{syscall.ENOSPC, true, true},
		{syscall.EDQUOT, true, true},
		{syscall.EFBIG, false, true},
		{&os.PathError{Op: "write", Path: "x", Err: syscall.EDQUOT}, true, true},
		{fmt.Errorf("writing: %w", errors.Join(io.ErrShortWrite, syscall.ENOSPC)), true, true},
		{fmt.Errorf("%w: %w", syscall.ENOSPC, errdefs.ErrResourceExhausted), true, true},
		{errdefs.ErrResourceExhausted, false, true}, // of something else than a disk
		{syscall.EIO, false, false},
		{syscall.EROFS, false, false},
		{syscall.EMFILE, false, false},
		{io.ErrShortWrite, false, false},
	} {
		if got := Is(tt.err); got != tt.full {
			t.Errorf("Is(%v) = %t, want %t", tt.err, got, tt.full)
		}
		got := Classed(tt.err)
		if errdefs.IsResourceExhausted(got) != tt.exhausted || !errors.Is(got, tt.err) {
			t.Errorf("Classed(%v) = %v, want exhausted: %t", tt.err, got, tt.exhausted)
		}
		if again := Classed(got); again != got {
			t.Errorf("Classed(%v) twice = %v", tt.err, again)
		}
	}
}
