package content

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/internal/durable"
	"github.com/capelin-io/capelin/swarm/piece"
)

type addition struct {
	piece int
	state []byte
}

// Adopt makes s the list that counts. Pieces whose links differ in it, or that
// it does not reach, are missing again; their indices are returned. A proven list
// cannot be replaced by another: that is piece.ErrMismatch.
func (b *Blob) Adopt(s *piece.Sums) (dropped []int, err error) {
	st := b.st
	st.mu.Lock()
	defer st.mu.Unlock()
	if err := b.usable(); err != nil {
		return nil, err
	}
	if s.ID() != st.id {
		return nil, fmt.Errorf("adopting sums of %s for %s: %w", s.ID(), st.id, piece.ErrMismatch)
	}
	if st.proven || st.complete && st.sums.Complete() {
		if st.sums.HasPrefix(s) {
			return nil, nil
		}
		return nil, fmt.Errorf("adopting sums for %s, which has proven ones: %w", st.dgst, piece.ErrMismatch)
	}
	if st.complete {
		return nil, nil // ComputeSums decides
	}
	for i := st.have.NextSet(0); i >= 0; i = st.have.NextSet(i + 1) {
		if !st.sums.Agrees(s, i) {
			st.have.Clear(i)
			dropped = append(dropped, i)
		}
	}
	st.sums = s.Clone()
	st.dirty = max(st.dirty, 1)
	st.notify()
	return dropped, nil
}

// Recheck reads piece i again and verifies it. If it does not match it stops
// counting, and the error is piece.ErrMismatch; a complete blob is then out of
// the swarm: evicted from cache/ when its last user is gone, or quarantined if
// it is containerd's; or the piece is kept apart, if Config.Wrong is there to have it healed.
func (b *Blob) Recheck(i int) error {
	st := b.st
	st.mu.Lock()
	err := b.usable()
	has, sums, f := st.have.Has(i), st.sums.Clone(), st.f
	st.mu.Unlock()
	if err != nil {
		return err
	}
	if !has {
		return fmt.Errorf("rechecking piece %d of %s: %w", i, st.dgst, ErrIncomplete)
	}
	buf := make([]byte, st.id.PieceSize(i))
	_, err = f.ReadAt(buf, st.id.Offset(i))
	if err == nil {
		err = sums.Verify(i, buf)
	}
	if err == nil || errors.Is(err, piece.ErrInvalid) {
		return err
	}
	err = fmt.Errorf("rechecking piece %d of %s: %w", i, st.dgst, err)
	st.op <- struct{}{} // not in the middle of a Complete
	defer func() { <-st.op }()
	if st.mends() {
		return st.spoil(i, err, func() error {
			if _, err := f.ReadAt(buf, st.id.Offset(i)); err != nil {
				return err
			}
			return sums.Verify(i, buf)
		})
	}
	st.mu.Lock()
	if st.sums.Agrees(sums, i) && st.have.Clear(i) {
		st.dirty = max(st.dirty, 1)
		st.notify()
	}
	complete := st.complete
	note := st.dirtyNote()
	st.mu.Unlock()
	if complete {
		return errors.Join(err, st.quarantine())
	}
	st.noteDirty(note)
	return err
}

// quarantine takes a complete blob whose bytes are wrong out of the swarm.
func (st *state) quarantine() error {
	s := st.s
	unlock := s.places.Lock(st.dgst)
	s.mu.Lock()
	e := s.index[st.dgst]
	if e == nil || e.open != st {
		s.mu.Unlock()
		unlock()
		return nil
	}
	place := e.place
	was := e.bad
	e.bad = true
	if place == Cached { // ours: nobody may ever publish it
		s.forget(e)
	}
	s.mu.Unlock()
	var err error
	if place == Cached {
		err = s.toTrash(s.blobPath(st.dgst, Cached))
	} else {
		err = durable.WriteFile(s.sumsPath(st.dgst)+".bad", nil, 0o600)
	}
	unlock()
	if !was {
		s.blobGone(st.dgst, st.id.Size)
	}
	return err
}

// writeSums makes a complete blob's sums durable. The digest is locked. One piece has none.
func (s *Store) writeSums(sums *piece.Sums) error {
	if sums.MaxLen() == 0 {
		return nil
	}
	r := record{kind: kindSums, proven: true, sums: sums}
	return durable.WriteFile(s.sumsPath(digest.Digest(sums.ID().Digest())), r.encode(), 0o600)
}

// ComputeSums reads a complete blob that has no sums, hashes it once and stores
// them, so that it can be seeded; Sums and the observer see them grow. It
// verifies the blob by that: a mismatch is piece.ErrMismatch and takes the blob
// out of the swarm (a blob of blobs/ is never deleted, only quarantined). Nil if
// there are sums already. Several callers share one computation.
func (b *Blob) ComputeSums(ctx context.Context) error {
	st := b.st
	select {
	case st.op <- struct{}{}:
		defer func() { <-st.op }()
	case <-ctx.Done():
		return ctx.Err()
	}
	st.mu.Lock()
	err := b.usable()
	proven, complete, sums := st.proven, st.complete, st.sums.Clone()
	st.mu.Unlock()
	switch {
	case err != nil:
		return err
	case proven:
		return nil
	case !complete:
		return fmt.Errorf("computing sums of %s: %w", st.dgst, ErrIncomplete)
	}
	h := piece.NewHasher(sums) // goes on where an interrupted call stopped
	buf := make([]byte, st.id.PieceSize(0))
	for h.Offset() < st.id.Size {
		if err := ctx.Err(); err != nil {
			return err
		}
		i := int(h.Offset() / st.id.Length())
		p := buf[:st.id.PieceSize(i)]
		if _, err := st.f.ReadAt(p, h.Offset()); err != nil {
			return fmt.Errorf("computing sums of %s: %w", st.dgst, err)
		}
		if err := h.Write(sums, p); err != nil {
			err = fmt.Errorf("computing sums of %s: %w", st.dgst, err)
			st.mu.Lock()
			st.have, st.sums = piece.NewBits(st.id.Pieces()), piece.NewSums(st.id)
			st.notify()
			st.mu.Unlock()
			return errors.Join(err, st.quarantine())
		}
		st.mu.Lock()
		st.sums = sums.Clone()
		st.added = append(st.added, addition{i, slices.Clone(sums.Range(i, 1))})
		st.mu.Unlock()
		st.tell()
	}
	err = st.s.withRoom(ctx, st, 1<<20, func() error { return st.storeSums(sums) })
	st.mu.Lock()
	st.proven = true
	st.notify()
	st.mu.Unlock()
	if err != nil {
		st.s.report(fmt.Errorf("storing sums of %s: %w", st.dgst, err)) // they serve from memory
	}
	return nil
}

func (st *state) storeSums(sums *piece.Sums) error {
	s := st.s
	unlock := s.places.Lock(st.dgst)
	defer unlock()
	s.mu.Lock()
	e := s.index[st.dgst]
	s.mu.Unlock()
	if e == nil {
		return nil
	}
	if err := s.writeSums(sums); err != nil {
		return err
	}
	s.mu.Lock()
	e.sums = true
	s.mu.Unlock()
	return nil
}

// StoredSums returns the proven sums of a complete blob, or nil if they are not
// stored. Unlike Blob it does not count as a use.
func (s *Store) StoredSums(id piece.ID) (*piece.Sums, error) {
	d := digest.Digest(id.Digest())
	s.mu.Lock()
	e := s.index[d]
	stored := e != nil && e.sums && !e.bad
	s.mu.Unlock()
	if !stored {
		return nil, nil
	}
	if id.Pieces() == 1 {
		return piece.NewSums(id), nil
	}
	r, err := readRecord(s.sumsPath(d), kindSums, id)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errRecord) {
		return nil, nil // Blob puts that right
	}
	if err != nil {
		return nil, err
	}
	return r.sums, nil
}

// tell tells the observer of additions, in order, one caller at a time: if
// somebody is at it, they tell ours too.
func (st *state) tell() {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.telling {
		return
	}
	st.telling = true
	for len(st.added) > 0 {
		batch := st.added
		st.added = nil
		st.mu.Unlock()
		if o := st.s.cfg.Observer; o != nil {
			for i := 0; i < len(batch); {
				from, states := batch[i].piece, []byte(nil)
				j := i
				for ; j < len(batch) && batch[j].piece == from+j-i; j++ {
					states = append(states, batch[j].state...)
				}
				o.PiecesAdded(st.id, from, from+j-i, states)
				i = j
			}
		}
		st.mu.Lock()
	}
	st.telling = false
}
