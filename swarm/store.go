package swarm

import (
	"context"
	"os"

	"github.com/capelin-io/capelin/swarm/piece"
)

// Store is where a [Node] keeps blobs.
type Store interface {
	// Open opens a blob; if create, one of which there is nothing yet is made.
	// Several Opens of one blob share what is stored. It may block.
	Open(ctx context.Context, id piece.ID, create bool) (Blob, error)
}

// Blob is an open blob of a [Store]. Its methods are safe for concurrent use;
// WritePiece and Recheck of different pieces, and ReadAt, run in parallel. The
// Node calls Adopt, Complete and ComputeSums alone, with no other call but ReadAt
// under way.
type Blob interface {
	// Have returns a snapshot of the pieces that are stored and verified; the
	// caller owns it.
	Have() *piece.Bits
	// Sums returns a snapshot of the list that the stored pieces count against,
	// which the caller owns, and whether every link of it was verified here. The
	// list may be empty.
	Sums() (sums *piece.Sums, proven bool)
	// Adopt makes sums the list that counts. It returns the stored pieces whose
	// links differ in it, which are missing again.
	Adopt(sums *piece.Sums) (dropped []int, err error)
	// WritePiece verifies a claim, unless that was done, and stores the piece. It
	// keeps no reference to the data. A mismatch is a piece.ErrMismatch.
	WritePiece(c *piece.Claim) error
	// Recheck reads piece i from the disk and verifies it again; if that fails,
	// it is missing.
	Recheck(i int) error
	// ReadAt reads from stored pieces.
	ReadAt(p []byte, off int64) (int, error)
	// File returns the file in which the blob's bytes are at their offsets, for
	// sendfile, or nil if there is none. It is valid until Close.
	File() *os.File
	// Complete makes a blob of which every piece is stored durable, and confirms
	// that every link was verified under one list: the digest is proven.
	Complete(ctx context.Context) error
	// ComputeSums reads and hashes a complete blob that has no sums, which are
	// there, and proven, afterwards.
	ComputeSums(ctx context.Context) error
	Close() error
}
