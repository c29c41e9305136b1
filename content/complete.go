package content

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/internal/durable"
	"github.com/capelin-io/capelin/internal/durable/disk"
	"github.com/capelin-io/capelin/swarm/piece"
)

// Complete proves and syncs a blob of which every piece counts, and moves it to
// cache/, so that a Publish is a rename. Its data, its name and its sums survive
// a power cut from then on. [ErrIncomplete] if pieces are missing. A complete
// blob is complete already. ctx bounds the wait for another Complete only.
//
// Every piece was verified, or made, under one list whose first state is the
// hash's own and whose last link is the digest, so nothing is hashed again.
func (b *Blob) Complete(ctx context.Context) error {
	st := b.st
	select {
	case st.op <- struct{}{}:
		defer func() { <-st.op }()
	case <-ctx.Done():
		return ctx.Err()
	}
	st.mu.Lock()
	err := b.usable()
	complete, full, n := st.complete, st.have.Full(), st.have.Count()
	st.mu.Unlock()
	switch {
	case err != nil:
		return err
	case complete:
		return nil
	case !full:
		return fmt.Errorf("completing %s: %d of %d pieces: %w", st.dgst, n, st.id.Pieces(), ErrIncomplete)
	}
	err = st.s.withRoom(ctx, st, 1<<20, func() error { // for the sums
		// Pieces that a failed sync has taken away are missing then: the first error says why.
		if again := st.finish(); err == nil || !errors.Is(again, ErrIncomplete) {
			err = again
		}
		return err
	})
	if isNoSpace(err) {
		err = st.noSpace(err)
	}
	if err != nil {
		return fmt.Errorf("completing %s: %w", st.dgst, err)
	}
	st.s.blobAdded(st.dgst, st.id.Size)
	st.s.dropPartials(st.dgst)
	return nil
}

// finish takes the durable steps of completion, FORMAT.md section 3.4:
//
//	fdatasync(partial/x.data)
//	write, fsync(sums/.tmp-1), rename(sums/.tmp-1, sums/x), fsync(sums)
//	fchmod(partial/x.data, 0444)
//	rename(partial/x.data, cache/x), fsync(cache)
//	unlink(partial/x.map)
func (st *state) finish() error {
	s := st.s
	// From here on nothing changes the pieces: they all count, and a list that is
	// proven is not replaced.
	st.mu.Lock()
	if !st.have.Full() {
		st.mu.Unlock()
		return ErrIncomplete
	}
	st.proven = true
	sums, have := st.sums.Clone(), st.have.Clone()
	st.mu.Unlock()
	st.ck <- struct{}{} // no map is written any more
	defer func() { <-st.ck }()
	if err := st.sync(have); err != nil {
		return err
	}
	unlock := s.places.Lock(st.dgst)
	defer unlock()
	s.mu.Lock()
	p, other := s.parts[st.id], s.index[st.dgst]
	s.mu.Unlock()
	if p == nil || p.open != st {
		return ErrDropped
	}
	if err := s.writeSums(sums); err != nil {
		return err
	}
	from, to := s.partialPath(st.id, ".data"), s.blobPath(st.dgst, Cached)
	e := other
	heals := other != nil && other.bad
	if heals {
		s.files.remove(st.dgst)
		to = s.blobPath(st.dgst, Committed)
	}
	if other == nil || heals {
		// Now, so that the name is never visible with another mode.
		err := st.f.Chmod(0o444)
		if err == nil {
			err = disk.Rename(from, to)
		}
		if err != nil {
			return err
		}
		if err = s.syncDir(filepath.Dir(to)); err == nil && heals {
			err = durable.Remove(s.sumsPath(st.dgst) + ".bad")
		}
		if err != nil {
			return errors.Join(err, disk.Rename(to, from)) // so that it can be tried again
		}
		now := time.Now().UnixNano()
		e = &entry{dgst: st.dgst, place: Cached, size: st.id.Size, created: now, updated: now}
	}
	s.mu.Lock()
	e.sums = true
	switch {
	case other == nil:
		s.put(e)
	case heals: // the old entry's users keep the old file
		e.place = Committed
		s.index[st.dgst] = e
	}
	if e.open == nil {
		e.open = st
	}
	s.unkeep(p)
	delete(s.parts, st.id)
	delete(s.dirty, st)
	s.keep(e)
	over := s.over() > 0
	s.mu.Unlock()
	if over {
		s.wake()
	}
	_ = disk.Remove(s.partialPath(st.id, ".map"))
	if other != nil && !heals { // the stock store has committed it meanwhile
		s.report(s.toTrash(from))
	}
	st.mu.Lock()
	st.complete, st.dirty = true, 0
	st.notify()
	st.mu.Unlock()
	return nil
}

// Publish makes a complete blob containerd's: a rename into blobs/ and a
// directory fsync; nothing if it is there already.
func (b *Blob) Publish(ctx context.Context) error {
	st := b.st
	st.mu.Lock()
	err := b.usable()
	complete := st.complete
	st.mu.Unlock()
	if err != nil {
		return err
	}
	if !complete {
		return fmt.Errorf("publishing %s: %w", st.dgst, ErrIncomplete)
	}
	s := st.s
	s.mu.Lock()
	e := s.index[st.dgst]
	done := e != nil && e.place == Committed && !e.unsynced
	s.mu.Unlock()
	if done {
		return nil
	}
	_, err = s.publish(st.dgst)
	return err
}

// Drop forgets a partial blob and gives its space back; other handles get
// [ErrDropped]. A complete blob stays.
func (b *Blob) Drop() error {
	st := b.st
	s := st.s
	st.ck <- struct{}{} // no map may be written after we removed it
	defer func() { <-st.ck }()
	unlock := s.places.Lock(st.dgst)
	defer unlock()
	s.mu.Lock()
	p := s.parts[st.id]
	if p == nil || p.open != st {
		s.mu.Unlock()
		return nil
	}
	s.unkeep(p)
	delete(s.parts, st.id)
	delete(s.dirty, st)
	s.dropped[st] = struct{}{}
	s.mu.Unlock()
	st.mu.Lock()
	st.end(ErrDropped)
	st.mu.Unlock()
	if err := s.trashPartial(st.id); err != nil {
		return fmt.Errorf("dropping %s: %w", st.id, err)
	}
	return nil
}

// trashPartial removes a partial's files, the map first, and durably: it must not be
// back after a power cut beside the data of one that was begun anew. The digest is
// locked.
func (s *Store) trashPartial(id piece.ID) error {
	path := s.partialPath(id, ".map")
	err := disk.Remove(path)
	switch {
	case err == nil:
		err = s.syncDir(filepath.Dir(path))
	case errors.Is(err, fs.ErrNotExist):
		err = nil
	default:
		return err
	}
	return errors.Join(err, s.toTrash(s.partialPath(id, ".data")))
}

// dropPartials removes partials of a digest that is now complete and that
// nobody has open: they can never be of use, whatever size they claim.
func (s *Store) dropPartials(d digest.Digest) {
	unlock := s.places.Lock(d)
	defer unlock()
	s.mu.Lock()
	var idle []piece.ID
	for id, p := range s.parts {
		if p.open == nil && digest.Digest(id.Digest()) == d {
			s.unkeep(p)
			delete(s.parts, id)
			idle = append(idle, id)
		}
	}
	s.mu.Unlock()
	for _, id := range idle {
		s.report(s.trashPartial(id))
	}
}
