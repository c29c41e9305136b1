package diskfull

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/containerd/errdefs"
)

// Is reports whether an error is that of a full file system (ENOSPC) or a used-up
// quota (EDQUOT): writing works again when something has been removed.
func Is(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// Classed makes an error that is one of a full disk errdefs.ErrResourceExhausted, too.
// So is EFBIG: the file is larger than the file system or a limit of the process allows.
// Removing others does not help against that, and so Is does not report it.
func Classed(err error) error {
	if (Is(err) || errors.Is(err, syscall.EFBIG)) && !errdefs.IsResourceExhausted(err) {
		return fmt.Errorf("%w: %w", err, errdefs.ErrResourceExhausted)
	}
	return err
}
