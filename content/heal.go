package content

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"

	"github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/internal/durable"
	"github.com/capelin-io/capelin/internal/durable/disk"
	"github.com/capelin-io/capelin/swarm/piece"
)

// Wrong returns the blobs of blobs/ of which pieces are wrong, and which; all of them of a blob in quarantine.
func (s *Store) Wrong() map[piece.ID][]int {
	s.mu.Lock()
	var found []digest.Digest
	for d, e := range s.index {
		if e.bad || len(e.wrong) > 0 {
			found = append(found, d)
		}
	}
	s.mu.Unlock()
	all := make(map[piece.ID][]int, len(found))
	for _, d := range found {
		size, err := s.learn(d)
		s.report(err)
		if id, ok := swarmID(d, size); ok {
			if wrong := s.WrongOf(id); len(wrong) > 0 {
				all[id] = wrong
			}
		}
	}
	return all
}

// WrongOf returns which pieces of a blob of blobs/ are wrong, in ascending order; all of them if it is in
// quarantine.
func (s *Store) WrongOf(id piece.ID) (wrong []int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.index[digest.Digest(id.Digest())]
	switch {
	case e == nil || !e.bad && len(e.wrong) == 0:
	case e.bad:
		for i := range id.Pieces() {
			wrong = append(wrong, i)
		}
	default:
		wrong = slices.Clone(e.wrong)
	}
	return wrong
}

// Readable returns how many of the n bytes from off on count, without a gap. It may be asked of any blob.
func (b *Blob) Readable(off, n int64) int64 {
	id := b.st.id
	if off < 0 || off >= id.Size || n <= 0 {
		return 0
	}
	n = min(n, id.Size-off)
	b.st.mu.Lock()
	defer b.st.mu.Unlock()
	if i := b.st.have.NextClear(int(off / id.Length())); i >= 0 {
		n = min(n, max(0, id.Offset(i)-off))
	}
	return n
}

// mends reports whether a piece of a complete blob that is found wrong is kept apart, to be healed, while the others
// go on to count.
func (st *state) mends() bool {
	s := st.s
	if s.cfg.Wrong == nil {
		return false
	}
	s.mu.Lock()
	e := s.index[st.dgst]
	ours := e != nil && e.open == st && e.place == Committed && !e.bad
	s.mu.Unlock()
	st.mu.Lock()
	defer st.mu.Unlock()
	return ours && st.complete && st.proven
}

// spoil keeps piece i apart, which was found wrong because of why, unless look says that it is right by now. It
// returns what look does. The caller holds the token of op.
func (st *state) spoil(i int, why error, look func() error) error {
	if err := look(); err == nil {
		return nil // it was healed meanwhile
	}
	st.mu.Lock()
	st.have.Clear(i)
	st.notify()
	st.mu.Unlock()
	s := st.s
	unlock := s.places.Lock(st.dgst)
	s.mu.Lock()
	e := s.index[st.dgst]
	if e == nil || e.open != st || e.place != Committed { // unpinned meanwhile
		s.mu.Unlock()
		unlock()
		return errors.Join(why, st.quarantine())
	}
	at, known := slices.BinarySearch(e.wrong, i)
	if !known {
		e.wrong = slices.Insert(slices.Clone(e.wrong), at, i)
	}
	s.mu.Unlock()
	err := why
	if !known {
		err = errors.Join(why, s.writeWrong(e))
	}
	unlock()
	if !known {
		s.cfg.Wrong(st.id, i)
	}
	return err
}

// writeWrong makes it durable which pieces of a blob are wrong. The digest is locked.
func (s *Store) writeWrong(e *entry) error {
	s.mu.Lock()
	wrong := e.wrong
	s.mu.Unlock()
	path := s.sumsPath(e.dgst) + ".bad"
	if len(wrong) == 0 {
		return durable.Remove(path)
	}
	var text []byte
	for _, i := range wrong {
		text = append(strconv.AppendInt(text, int64(i), 10), '\n')
	}
	return durable.WriteFile(path, text, 0o600)
}

// readWrong reads what writeWrong has written; nil if it is something else.
func readWrong(path string) (wrong []int) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	for line := range bytes.Lines(text) {
		i, err := strconv.Atoi(string(bytes.TrimSuffix(line, []byte("\n"))))
		if err != nil || i < 0 || len(wrong) > 0 && i <= wrong[len(wrong)-1] {
			return nil
		}
		wrong = append(wrong, i)
	}
	return wrong
}

// Heal writes a piece over one that was found wrong (Config.Wrong), in place. When it returns nil the right bytes are
// durable, and the piece counts again; so it did, if nothing was to be healed. Who reads the file meanwhile may see
// either bytes. A claim that is not true is piece.ErrMismatch.
func (b *Blob) Heal(c *piece.Claim) error {
	st, i := b.st, c.Piece()
	if err := c.Verify(); err != nil {
		return err
	}
	st.op <- struct{}{} // nobody looks whether the piece is right while it is written
	defer func() { <-st.op }()
	st.mu.Lock()
	err := b.usable()
	has, sums := st.have.Has(i), st.sums.Clone()
	complete := st.complete && st.proven
	st.mu.Unlock()
	switch {
	case err != nil:
		return err
	case !sums.Agrees(c.Sums(), i):
		return fmt.Errorf("healing piece %d of %s by other sums: %w", i, st.dgst, piece.ErrMismatch)
	case !complete:
		return fmt.Errorf("healing piece %d of %s: %w", i, st.dgst, ErrIncomplete)
	case has:
		return nil
	}
	if err := st.overwrite(c); err != nil {
		return fmt.Errorf("healing piece %d of %s: %w", i, st.dgst, err)
	}
	st.mu.Lock()
	st.have.Set(i)
	st.added = append(st.added, addition{i, slices.Clone(sums.Range(i, 1))})
	st.notify()
	st.mu.Unlock()
	st.tell()
	return nil
}

// Mend is Heal with what is read from the file now, if that is right: what was wrong may have been a read, or be on
// the disk while the page cache has the right bytes.
func (b *Blob) Mend(i int) error {
	st := b.st
	st.mu.Lock()
	err := b.usable()
	sums, f := st.sums.Clone(), st.f
	st.mu.Unlock()
	if err != nil {
		return err
	}
	buf := make([]byte, st.id.PieceSize(i))
	if _, err := f.ReadAt(buf, st.id.Offset(i)); err != nil {
		return fmt.Errorf("mending piece %d of %s: %w", i, st.dgst, err)
	}
	return b.Heal(piece.NewClaim(sums, i, buf))
}

// overwrite takes the durable steps of healing, FORMAT.md section 3.9. The caller holds the token of op.
func (st *state) overwrite(c *piece.Claim) error {
	s, i := st.s, c.Piece()
	unlock := s.places.Lock(st.dgst)
	e, f, err := st.writable()
	unlock()
	if err != nil {
		return err
	}
	defer f.Close()
	off := st.id.Offset(i)
	for _, d := range c.Data() {
		err := s.withRoom(context.Background(), nil, int64(len(d)), func() error { // where nothing is written in place
			n, err := disk.WriteAt(f, d, off)
			d, off = d[n:], off+int64(n)
			return err
		})
		if err != nil {
			return err
		}
	}
	if err := disk.Datasync(f); err != nil {
		return err
	}
	defer s.places.Lock(st.dgst)()
	s.mu.Lock()
	if at, found := slices.BinarySearch(e.wrong, i); found {
		e.wrong = slices.Delete(slices.Clone(e.wrong), at, at+1)
	}
	gone := s.index[st.dgst] != e
	s.mu.Unlock()
	if gone {
		return nil // with its mark
	}
	return s.writeWrong(e)
}

// writable opens the blob's file for writing. The digest is locked.
func (st *state) writable() (*entry, *os.File, error) {
	s := st.s
	s.mu.Lock()
	e := s.index[st.dgst]
	if e == nil || e.open != st {
		s.mu.Unlock()
		return nil, nil, fmt.Errorf("another file has taken its place: %w", ErrDropped)
	}
	path := s.blobPath(st.dgst, e.place)
	s.mu.Unlock()
	f, err := disk.OpenFile(path, os.O_WRONLY, 0)
	if errors.Is(err, fs.ErrPermission) { // complete blobs have mode 0444
		if err = st.f.Chmod(0o644); err != nil {
			return nil, nil, err
		}
		f, err = disk.OpenFile(path, os.O_WRONLY, 0)
		err = errors.Join(err, st.f.Chmod(0o444))
		if err != nil && f != nil {
			f.Close()
		}
	}
	return e, f, err
}
