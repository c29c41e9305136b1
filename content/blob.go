package content

import (
	"context"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/swarm/piece"
)

// Blob is one user's handle of a blob; all handles of a blob share its state. A
// Blob that is open is not evicted. Its methods are safe for concurrent use and
// return [ErrClosed] after Close.
//
// # Which list counts
//
// A partial blob has one list of sums, and a piece is in Have only if its bytes
// were verified against that list (or, by a sequential writer, made that list).
// The list grows when WritePiece brings a longer one that begins the same, or
// when a sequential writer passes a boundary at its end. It is replaced by Adopt
// only; while no piece counts and nothing is proven, WritePiece replaces it too.
// When every piece counts, the list is proven, since its last link is the digest.
//
// # Disproof
//
// When a sequential writer's bytes contradict a list that is not proven, nobody
// can tell which of the two is false: the writer gets an error, and the pieces
// and states from there on are dropped. When its last byte makes a wrong digest,
// all of them are. Pieces of a proven list stay.
type Blob struct {
	st     *state
	lent   bool // see Store.Lend
	closed atomic.Bool
}

// state is a blob that somebody has open, or whose map is to be written.
//
// # A blob's life
//
//	partial     entered as a partial (Store.parts), its pieces in swarm/partial. They
//	            count one by one; checkpoint makes them and their map durable.
//	completing  all pieces count: finish proves the list, syncs the data, stores the sums
//	            and renames. A step that fails leaves it partial.
//	cached      whole, in cache/: an entry (Store.index), evictable while nobody has it open;
//	            those who borrowed it close it when they are asked to.
//	committed   whole, in blobs/: an entry, containerd's, or pinned. Publish and Info bring
//	            it there from cache/; Delete brings it back, or to the trash.
//	            If Config.Wrong heals, pieces of it may not count because they were found wrong.
//	bad         an entry of blobs/ whose bytes are wrong, marked by a .bad file. A partial may
//	            arrive beside it; completing, it takes the place in blobs/.
//	gone        dropped, evicted, or the store was closed: who has it open keeps the file,
//	            and every write fails.
//
// complete says cached, committed or bad; gone says gone; neither, partial or
// completing. A state outlives its place: whoever has a blob open reads on when it is
// renamed or unlinked. When the last handle is closed, settle closes it, or has its map
// written first; a partial without any piece is removed.
//
// The order of locks is on Store.
type state struct {
	s    *Store
	id   piece.ID
	dgst digest.Digest

	refs  int           // handles; Store.mu
	lent  int           // those of them that are borrowers'; Store.mu
	ready chan struct{} // closed when load has ended
	err   error         // why it failed
	stays bool          // it failed, and what is on disk may be worth something

	op chan struct{} // holds a token during Complete and ComputeSums
	ck chan struct{} // holds a token while the map on disk is being replaced

	// mu guards what follows and is never held over I/O or hashing.
	mu       sync.Mutex
	f        *os.File
	old      []*os.File // what f was before takeFile
	complete bool       // the file is, or was, in cache/ or blobs/, and all pieces count
	have     *piece.Bits
	sums     *piece.Sums
	proven   bool
	gone     error                 // dropped or closed: every write fails with it
	claims   map[int]chan struct{} // pieces being hashed and written; closed at the end
	drain    chan struct{}         // not nil: pieces are being wiped, no claim is given until it is closed
	changed  chan struct{}         // closed and replaced on progress
	dirty    int64                 // bytes that count and are not covered by the map on disk
	since    time.Time             // when dirty became positive
	onDisk   *piece.Bits           // pieces that a map on disk may cover
	synced   *piece.Bits           // pieces whose data were synced
	room     bool                  // space was looked for, and allocated if possible
	full     time.Time             // until when it waits for room, or did; zero: there is some
	wanted   context.Context       // done when nobody wants it any more: it waits for no room then
	unwant   context.CancelFunc    // ends wanted
	added    []addition            // for the observer
	telling  bool                  // somebody is telling it
}

// notify wakes those who wait for progress. st.mu is held.
func (st *state) notify() {
	close(st.changed)
	st.changed = make(chan struct{})
}

// Close gives the handle up. The pieces stay; their map is written by Run, or
// by Store.Close.
func (b *Blob) Close() error {
	if !b.closed.Swap(true) {
		b.st.s.release(b.st, b.lent)
	}
	return nil
}

// ID returns the blob's name.
func (b *Blob) ID() piece.ID { return b.st.id }

// Have returns the pieces that count: those verified under the list that Sums
// returns. It is a copy.
func (b *Blob) Have() *piece.Bits {
	b.st.mu.Lock()
	defer b.st.mu.Unlock()
	return b.st.have.Clone()
}

// Sums returns a copy of the list that counts, and whether it is proven, that is
// whether every link was verified here, now or earlier. A blob that stock
// containerd pulled has none until ComputeSums has reached them.
func (b *Blob) Sums() (s *piece.Sums, proven bool) {
	b.st.mu.Lock()
	defer b.st.mu.Unlock()
	return b.st.sums.Clone(), b.st.proven
}

// Completed reports whether the blob is complete: every piece counts, and is
// durable, in cache/ or blobs/. Pieces that were found wrong since then, and are to be healed
// (Config.Wrong), do not count.
func (b *Blob) Completed() bool {
	b.st.mu.Lock()
	defer b.st.mu.Unlock()
	return b.st.complete
}

// Prefix returns how many bytes from the beginning count, without a gap.
func (b *Blob) Prefix() int64 {
	b.st.mu.Lock()
	defer b.st.mu.Unlock()
	return min(int64(b.st.have.Prefix())*b.st.id.Length(), b.st.id.Size)
}

// Changed returns a channel that is closed on the next progress: pieces added
// or dropped, sums replaced, completion, the end of the blob.
func (b *Blob) Changed() <-chan struct{} {
	b.st.mu.Lock()
	defer b.st.mu.Unlock()
	return b.st.changed
}

// File returns the blob's file, for sendfile. It is valid until the last handle
// is closed, renames notwithstanding, and belongs to the Store: do not close it
// or move its offset. Only pieces that count hold what they should. Ask for it
// when one does: as long as none does, AdoptIngest may bring another file.
func (b *Blob) File() *os.File {
	b.st.mu.Lock()
	defer b.st.mu.Unlock()
	return b.st.f
}

// usable returns why st cannot be used. st.mu is held.
func (b *Blob) usable() error {
	if b.closed.Load() {
		return fmt.Errorf("%s: %w", b.st.dgst, ErrClosed)
	}
	if b.st.gone != nil {
		return fmt.Errorf("%s: %w", b.st.dgst, b.st.gone)
	}
	return nil
}

// ReadAt reads bytes of pieces that count. A range that touches others is
// [ErrIncomplete]; one that leaves the blob is an error, too.
func (b *Blob) ReadAt(p []byte, off int64) (int, error) {
	id := b.st.id
	if off < 0 || int64(len(p)) > id.Size-off {
		return 0, fmt.Errorf("reading %d bytes at %d of %s: outside the blob", len(p), off, id)
	}
	if len(p) == 0 {
		return 0, nil
	}
	l := id.Length()
	b.st.mu.Lock()
	err := b.usable()
	if last := int((off + int64(len(p)) - 1) / l); err == nil {
		if i := b.st.have.NextClear(int(off / l)); i >= 0 && i <= last {
			err = fmt.Errorf("reading piece %d of %s: %w", i, b.st.dgst, ErrIncomplete)
		}
	}
	f := b.st.f
	b.st.mu.Unlock()
	if err != nil {
		return 0, err
	}
	n, err := f.ReadAt(p, off)
	if err != nil {
		return n, fmt.Errorf("reading %d bytes at %d of %s: %w", len(p), off, b.st.dgst, err)
	}
	return n, nil
}

// Reopen opens a complete blob's file anew, for a caller that reads it from an
// offset of its own, and closes it. [ErrIncomplete] if it is not complete.
func (b *Blob) Reopen() (*os.File, error) {
	st := b.st
	st.mu.Lock()
	err := b.usable()
	if err == nil && !st.complete {
		err = fmt.Errorf("%s: %w", st.dgst, ErrIncomplete)
	}
	st.mu.Unlock()
	if err != nil {
		return nil, fmt.Errorf("opening %w", err)
	}
	s := st.s
	unlock := s.places.Lock(st.dgst)
	defer unlock()
	s.mu.Lock()
	e := s.index[st.dgst]
	if e == nil || e.bad {
		s.mu.Unlock()
		return nil, fmt.Errorf("opening %s: %w", st.dgst, ErrNotFound)
	}
	place := e.place
	s.mu.Unlock()
	return os.Open(s.blobPath(st.dgst, place))
}
