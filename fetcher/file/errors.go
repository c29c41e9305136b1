package file

import (
	"context"
	"errors"
	"fmt"
	"io"
	"syscall"

	"github.com/containerd/errdefs"

	"github.com/capelin-io/capelin/internal/diskfull"
)

// classed gives an error its class, unless it has one. What is not known to say
// more is errdefs.ErrUnavailable.
func classed(err error) error {
	var source *sourceError
	if errors.As(err, &source) {
		return err
	}
	if err = diskfull.Classed(err); hasClass(err) {
		return err
	}
	return fmt.Errorf("%w: %w", err, classOf(err))
}

func hasClass(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) ||
		errdefs.IsNotFound(err) || errdefs.IsInvalidArgument(err) || errdefs.IsOutOfRange(err) ||
		errdefs.IsConflict(err) || errdefs.IsFailedPrecondition(err) || errdefs.IsResourceExhausted(err) || errdefs.IsUnavailable(err) ||
		errors.Is(err, io.ErrUnexpectedEOF)
}

func classOf(err error) error {
	var errno syscall.Errno
	if !errors.As(err, &errno) { // os.Root's own: a link that leads out
		return errdefs.ErrPermissionDenied
	}
	switch errno {
	case syscall.ENOENT, syscall.ENOTDIR:
		return errdefs.ErrNotFound
	case syscall.EACCES, syscall.EPERM, syscall.EROFS, syscall.ELOOP:
		return errdefs.ErrPermissionDenied
	}
	return errdefs.ErrUnavailable
}
