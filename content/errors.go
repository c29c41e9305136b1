package content

import (
	"errors"
	"fmt"

	"github.com/containerd/errdefs"

	"github.com/capelin-io/capelin/internal/diskfull"
)

// Errors that this package's functions wrap, besides those of containerd's
// errdefs and piece.ErrMismatch. Those that containerd may see wrap a class of
// errdefs, too.
var (
	// ErrLocked: another process uses the directory.
	ErrLocked = errors.New("content directory is in use by another process")
	// ErrFormat: the directory was written by a Capelin that this one does not know.
	ErrFormat = errors.New("unknown format of content directory")
	// ErrNotFound: no such blob.
	ErrNotFound = fmt.Errorf("no such blob: %w", errdefs.ErrNotFound)
	// ErrNoSpace: the disk is full, and evicting what may be evicted did not help.
	ErrNoSpace = fmt.Errorf("no space for blob: %w", errdefs.ErrResourceExhausted)
	// ErrSize: the blob is known, with another size.
	ErrSize = fmt.Errorf("blob has another size: %w", errdefs.ErrFailedPrecondition)
	// ErrIncomplete: pieces are missing.
	ErrIncomplete = fmt.Errorf("blob is incomplete: %w", errdefs.ErrFailedPrecondition)
	// ErrQuarantined: the bytes in blobs/ do not match their digest; the blob takes no part in the swarm.
	ErrQuarantined = errors.New("blob is quarantined: its bytes do not match its digest")
	// ErrDropped: the partial blob was dropped or evicted while it was open.
	ErrDropped = errors.New("partial blob was dropped")
	// ErrClosed: the Store, Blob or Appender was closed.
	ErrClosed = errors.New("closed")
)

func isNoSpace(err error) bool {
	return diskfull.Is(err)
}
