package content

import (
	"context"
	"fmt"
	"time"

	"github.com/capelin-io/capelin/internal/durable/disk"
	"github.com/capelin-io/capelin/swarm/piece"
)

// WritePiece verifies a claim, unless that was done, and writes the piece.
// Afterwards it counts. Bytes that do not match are piece.ErrMismatch, and so are
// sums that contradict the list that counts. A piece that counts already is not
// written again. The caller must not change sums or data meanwhile. Calls for
// different pieces run in parallel; nothing is synced here. A full disk is
// [ErrNoSpace], after evicting what may be evicted.
func (b *Blob) WritePiece(c *piece.Claim) error {
	st, i, sums := b.st, c.Piece(), c.Sums()
	if sums.ID() != st.id {
		return fmt.Errorf("sums of %s for piece %d of %s: %w", sums.ID(), i, st.id, piece.ErrMismatch)
	}
	if err := c.Verify(); err != nil {
		return err
	}
	waits := st.whileWanted()
	ok, err := b.claim(waits, i)
	if err != nil {
		return err
	}
	if !ok {
		st.mu.Lock()
		defer st.mu.Unlock()
		return st.accept(i, sums)
	}
	err = st.write(waits, i, c.Data())
	st.mu.Lock()
	st.unclaim(i)
	if err == nil {
		err = b.usable()
	}
	if err == nil {
		err = st.accept(i, sums)
	}
	if err == nil {
		st.count(i)
	}
	note := st.dirtyNote()
	st.mu.Unlock()
	st.noteDirty(note)
	if err != nil {
		return fmt.Errorf("storing piece %d of %s: %w", i, st.dgst, err)
	}
	return nil
}

// accept makes sure that the list that counts has piece i's link as sums has
// it. st.mu is held.
func (st *state) accept(i int, sums *piece.Sums) error {
	if st.sums.Agrees(sums, i) {
		if sums.Len() > st.sums.Len() && sums.HasPrefix(st.sums) {
			st.sums = sums.Clone()
		}
		return nil
	}
	if !st.proven && (sums.HasPrefix(st.sums) || st.have.Count() == 0) {
		st.sums = sums.Clone()
		return nil
	}
	return fmt.Errorf("its sums are not the list that counts: %w", piece.ErrMismatch)
}

// count makes piece i count. st.mu is held.
func (st *state) count(i int) {
	if !st.have.Set(i) {
		return
	}
	st.synced.Clear(i)
	if st.dirty == 0 {
		st.since = time.Now()
	}
	st.dirty += int64(st.id.PieceSize(i))
	st.notify()
}

// claim waits until nobody else writes piece i, and reports whether the caller
// must write it; if it counts already, it need not. A claim ends with unclaim. ctx is for
// the wait for room.
func (b *Blob) claim(ctx context.Context, i int) (bool, error) {
	st := b.st
	st.mu.Lock()
	for {
		if err := b.usable(); err != nil {
			st.mu.Unlock()
			return false, err
		}
		if st.have.Has(i) {
			st.mu.Unlock()
			return false, nil
		}
		if st.complete {
			st.mu.Unlock()
			return false, fmt.Errorf("piece %d of complete %s: %w", i, st.dgst, ErrQuarantined)
		}
		if wait := st.drain; wait != nil {
			st.mu.Unlock()
			<-wait
			st.mu.Lock()
			continue
		}
		if wait := st.claims[i]; wait != nil {
			st.mu.Unlock()
			<-wait
			st.mu.Lock()
			continue
		}
		if st.onDisk.Has(i) {
			// A map on disk says that we have it: that has to go first, or a crash
			// could make new bytes count under old sums.
			st.mu.Unlock()
			if err := st.checkpoint(); err != nil {
				return false, err
			}
			st.mu.Lock()
			continue
		}
		break
	}
	st.claims[i] = make(chan struct{})
	room := st.room
	st.room = true
	st.mu.Unlock()
	if !room {
		if err := st.reserve(ctx); err != nil {
			st.mu.Lock()
			st.room = false
			st.unclaim(i)
			st.mu.Unlock()
			return false, err
		}
	}
	return true, nil
}

// unclaim ends a claim. st.mu is held.
func (st *state) unclaim(i int) {
	close(st.claims[i])
	delete(st.claims, i)
}

// write writes a claimed piece at its place, making room if the disk is full, and waiting for
// some until ctx is done.
func (st *state) write(ctx context.Context, i int, data [][]byte) error {
	off := st.id.Offset(i)
	for _, d := range data {
		err := st.s.withRoom(ctx, st, max(int64(st.id.PieceSize(i)), 16<<20), func() error {
			n, err := disk.WriteAt(st.f, d, off)
			d, off = d[n:], off+int64(n)
			return err
		})
		if isNoSpace(err) {
			err = st.noSpace(err)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
