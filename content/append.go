package content

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/capelin-io/capelin/internal/durable"
	"github.com/capelin-io/capelin/internal/durable/disk"
	"github.com/capelin-io/capelin/swarm/piece"
)

// Appender is a sequential writer of a blob: the session in which containerd
// downloads it. Several may be at work on one blob, and peers' pieces may arrive
// at the same time; each piece is written once, by whoever has it first.
//
// Bytes of pieces that count are compared with what is there. Others are
// gathered until their piece is whole, then hashed from the state before it,
// compared with the state after it if the list has that, and written. If the
// list ends there, the new state is appended to it: so pieces can go to others
// while the blob is still arriving.
//
// An Appender is not safe for concurrent use.
type Appender struct {
	b       *Blob // a handle of its own
	off     int64
	buf     []byte // the beginning of a piece that does not count yet
	err     error  // sticky
	inPlace bool   // the bytes are in the data file already (AdoptIngest)

	waits context.Context // ends with that of Append, or when nobody wants the blob
	over  func()          // lets go of it
}

// Append returns a writer of the bytes from off on, which must be at most
// Prefix, and need not be a piece's boundary. When ctx is done its writes do not wait for
// room on a full disk any more; nothing else depends on it.
func (b *Blob) Append(ctx context.Context, off int64) (*Appender, error) {
	st := b.st
	st.s.mu.Lock()
	st.refs++
	st.s.mu.Unlock()
	a := &Appender{b: &Blob{st: st}, off: off}
	waits, cancel := context.WithCancel(st.whileWanted())
	stop := context.AfterFunc(ctx, cancel)
	a.waits, a.over = waits, func() { stop(); cancel() }
	st.mu.Lock()
	err := b.usable()
	st.mu.Unlock()
	if prefix := b.Prefix(); err == nil && (off < 0 || off > prefix) {
		err = fmt.Errorf("appending to %s at %d, of which %d bytes are there: %w", st.dgst, off, prefix, ErrIncomplete)
	}
	if err != nil {
		a.Close()
		return nil, err
	}
	return a, nil
}

// Offset returns where the next byte goes.
func (a *Appender) Offset() int64 { return a.off }

// Write takes the bytes at Offset. Bytes that contradict what counts, or beyond
// the blob's size, are piece.ErrMismatch (see Blob, "Disproof"), and a full disk
// is [ErrNoSpace]. After an error every Write fails with it.
func (a *Appender) Write(p []byte) (n int, err error) {
	if a.err != nil {
		return 0, a.err
	}
	id := a.b.st.id
	if int64(len(p)) > id.Size-a.off {
		a.err = fmt.Errorf("appending %d bytes to %s at %d, more than its size: %w", len(p), id, a.off, piece.ErrMismatch)
		return 0, a.err
	}
	for len(p) > 0 {
		m, err := a.step(p)
		n += m
		a.off += int64(m)
		p = p[m:]
		if err != nil {
			a.err = err
			return n, err
		}
	}
	return n, nil
}

// step takes some bytes of one piece.
func (a *Appender) step(p []byte) (int, error) {
	st := a.b.st
	i := int(a.off / st.id.Length())
	size := st.id.PieceSize(i)
	at := int(a.off - st.id.Offset(i)) // within the piece
	p = p[:min(len(p), size-at)]
	if len(a.buf) > 0 {
		if len(a.buf)+len(p) < size {
			a.buf = append(a.buf, p...)
			return len(p), nil
		}
		err := a.store(i, a.buf, p)
		a.buf = a.buf[:0]
		if err != nil {
			return 0, err
		}
		return len(p), nil
	}
	st.mu.Lock()
	err := a.b.usable()
	has := st.have.Has(i)
	st.mu.Unlock()
	switch {
	case err != nil:
		return 0, err
	case has:
		return a.compare(i, p)
	case at > 0:
		return 0, fmt.Errorf("appending to %s at %d: the beginning of piece %d is gone: %w", st.dgst, a.off, i, ErrIncomplete)
	case len(p) < size:
		if cap(a.buf) < size {
			a.buf = make([]byte, 0, size)
		}
		a.buf = append(a.buf, p...)
		return len(p), nil
	}
	if err := a.store(i, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

var compareBuf = sync.Pool{New: func() any { b := make([]byte, 256<<10); return &b }}

// compare compares p, which goes at a.off, with a piece that counts, and
// returns how many bytes are equal.
func (a *Appender) compare(i int, p []byte) (n int, err error) {
	st := a.b.st
	bp := compareBuf.Get().(*[]byte)
	defer compareBuf.Put(bp)
	st.mu.Lock()
	f, list := st.f, st.sums.Clone()
	st.mu.Unlock()
	for n < len(p) {
		b := (*bp)[:min(len(*bp), len(p)-n)]
		if _, err := f.ReadAt(b, a.off+int64(n)); err != nil {
			return n, fmt.Errorf("comparing %s at %d: %w", st.dgst, a.off+int64(n), err)
		}
		if !bytes.Equal(b, p[n:n+len(b)]) {
			for b[0] == p[n] {
				b, n = b[1:], n+1
			}
			err := fmt.Errorf("appending to %s: byte %d is another than the one that is there: %w", st.dgst, a.off+int64(n), piece.ErrMismatch)
			return n, errors.Join(err, st.disprove(i, list))
		}
		n += len(b)
	}
	return n, nil
}

// store hashes a whole piece and writes it, unless somebody else did meanwhile.
func (a *Appender) store(i int, data ...[]byte) error {
	st := a.b.st
	claimed, err := a.b.claim(a.waits, i)
	if err != nil {
		return err
	}
	st.mu.Lock()
	list := st.sums.Clone()
	st.mu.Unlock()
	whole, state, err := hashPiece(list, i, data)
	if !claimed {
		if err == nil {
			return nil // it is there, and ours is equal
		}
		if !errors.Is(err, piece.ErrMismatch) {
			return err
		}
		return a.differs(i, list, data, err)
	}
	if err == nil && !a.inPlace {
		err = st.write(a.waits, i, data)
	}
	st.mu.Lock()
	st.unclaim(i)
	if err == nil {
		err = a.b.usable()
	}
	if err == nil {
		if err = st.accept(i, whole); err == nil {
			st.count(i)
			st.added = append(st.added, addition{i, state})
		}
	}
	note := st.dirtyNote()
	st.mu.Unlock()
	st.noteDirty(note)
	st.tell()
	if err == nil {
		return nil
	}
	err = fmt.Errorf("appending piece %d of %s, bytes %d to %d: %w", i, st.dgst,
		st.id.Offset(i), st.id.Offset(i)+int64(st.id.PieceSize(i))-1, err)
	if errors.Is(err, piece.ErrMismatch) {
		err = errors.Join(err, st.disprove(i, list))
	}
	return err
}

// hashPiece verifies piece i if the list has its link. If the list ends right
// before, the link is made. It returns a list that has the link, and the state
// after the piece, nil for the last one. list is changed.
func hashPiece(list *piece.Sums, i int, data [][]byte) (whole *piece.Sums, state []byte, err error) {
	switch {
	case i < list.Verifiable():
		err = list.Verify(i, data...)
	case i == list.Len():
		h := piece.NewHasher(list)
		for _, d := range data {
			if err = h.Write(list, d); err != nil {
				break
			}
		}
	default:
		return nil, nil, fmt.Errorf("%d states do not reach piece %d: %w", list.Len(), i, ErrIncomplete)
	}
	return list, list.Range(i, 1), err
}

// differs names the first byte in which data differs from piece i, which counts.
func (a *Appender) differs(i int, list *piece.Sums, data [][]byte, err error) error {
	st := a.b.st
	at := st.id.Offset(i)
	buf := make([]byte, st.id.PieceSize(i))
	if _, rerr := a.b.ReadAt(buf, at); rerr == nil {
		for _, d := range data {
			n := 0
			for n < len(d) && d[n] == buf[n] {
				n++
			}
			at += int64(n)
			if n < len(d) {
				break
			}
			buf = buf[n:]
		}
	}
	err = fmt.Errorf("appending to %s: byte %d is another than the one that is there: %w", st.dgst, at, err)
	return errors.Join(err, st.disprove(i, list))
}

// disprove drops what a sequential writer's piece i has put in doubt: see Blob,
// "Disproof". list is the list that the writer looked at.
func (st *state) disprove(i int, list *piece.Sums) error {
	st.mu.Lock()
	if st.proven || st.complete || st.gone != nil || i < st.sums.Verifiable() && !st.sums.Agrees(list, i) {
		st.mu.Unlock()
		return nil //nolint:nilerr // a blob that is gone has nothing to disprove
	}
	if i == st.id.Pieces()-1 {
		st.mu.Unlock()
		return st.wipe(list)
	}
	keep := piece.NewSums(st.id)
	if err := keep.Append(st.sums.Range(0, i)); err != nil {
		st.mu.Unlock()
		return err
	}
	for j := st.have.NextSet(i); j >= 0; j = st.have.NextSet(j + 1) {
		st.have.Clear(j)
	}
	st.sums = keep
	st.dirty = max(st.dirty, 1)
	st.notify()
	st.mu.Unlock()
	return nil
}

// wipe empties a partial blob whose chain was found false, on disk too, unless
// that was done, or the chain proven, meanwhile.
func (st *state) wipe(list *piece.Sums) error {
	return st.empty(func() bool { return st.sums.Agrees(list, st.id.Pieces()-1) })
}

// Empty forgets what there is of a partial blob, on disk too, unless all of it is here:
// somebody has found out that it may be false. It waits for pieces that are being written.
func (b *Blob) Empty() error {
	b.st.mu.Lock()
	err := b.usable()
	b.st.mu.Unlock()
	if err != nil {
		return err
	}
	defer b.st.tell()
	return b.st.empty(func() bool { return true })
}

// empty forgets all pieces and sums, if still says so, which is called with st.mu held.
func (st *state) empty(still func() bool) error {
	st.ck <- struct{}{}
	defer func() { <-st.ck }()
	done := st.holdAnew()
	defer func() {
		done()
		st.mu.Unlock()
	}()
	if st.proven || st.complete || st.gone != nil || st.have.Full() || !still() {
		return nil // a claim that was under way has proven the chain
	}
	st.have, st.sums = piece.NewBits(st.id.Pieces()), piece.NewSums(st.id)
	st.dirty, st.room, st.added = 0, false, nil
	st.notify()
	st.mu.Unlock()
	err := durable.Remove(st.s.partialPath(st.id, ".map"))
	if err == nil {
		err = disk.Truncate(st.f, 0)
	}
	if err == nil {
		err = disk.Truncate(st.f, st.id.Size)
	}
	st.mu.Lock()
	if err != nil {
		return fmt.Errorf("wiping %s: %w", st.dgst, err)
	}
	st.onDisk = piece.NewBits(st.id.Pieces())
	return nil
}

// Finish ends the blob: every byte must have been written or be there. It proves
// and syncs it as Complete does. If the bytes make another digest the error is
// piece.ErrMismatch, and nothing false stays on disk. The Appender is then still
// to be closed.
func (a *Appender) Finish(ctx context.Context) error {
	if a.err != nil {
		return a.err
	}
	if size := a.b.st.id.Size; a.off != size {
		return fmt.Errorf("finishing %s at %d of %d bytes: %w", a.b.st.dgst, a.off, size, ErrIncomplete)
	}
	return a.b.Complete(ctx)
}

// Close ends the session. Whole pieces stay; what came of one that is not whole
// is forgotten.
func (a *Appender) Close() error {
	if a.err == nil {
		a.err = fmt.Errorf("appending to %s: %w", a.b.st.dgst, ErrClosed)
	}
	a.buf = nil
	a.over()
	return a.b.Close()
}

// takeFile makes the file at path the blob's data file, if nothing counts, and
// reports whether it did. It waits for pieces that are being written.
func (st *state) takeFile(path string) (taken bool, err error) {
	st.ck <- struct{}{} // nobody syncs the old file, or writes a map
	defer func() { <-st.ck }()
	done := st.holdAnew()
	defer func() {
		done()
		st.mu.Unlock()
	}()
	if st.gone != nil || st.complete || st.have.Count() > 0 || st.onDisk.Count() > 0 {
		return false, nil
	}
	st.mu.Unlock()
	f, err := st.moveIn(path)
	st.mu.Lock()
	if f != nil {
		st.old = append(st.old, st.f) // somebody may hold it
		st.f = f
	}
	return f != nil, err
}

// moveIn renames the file at path to the blob's data file's name, durably, and opens
// it. It returns the file also if it only could not be made as long as the blob.
func (st *state) moveIn(path string) (*os.File, error) {
	s := st.s
	defer s.places.Lock(st.dgst)()
	s.mu.Lock()
	p := s.parts[st.id]
	ours := p != nil && p.open == st
	s.mu.Unlock()
	if !ours {
		return nil, nil
	}
	f, err := disk.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	to := s.partialPath(st.id, ".data")
	if err := disk.Rename(path, to); err != nil {
		f.Close()
		return nil, err
	}
	if err := disk.Truncate(f, st.id.Size); err != nil { // not before: in ingest/ the length is an offset
		return f, err
	}
	return f, s.syncDir(filepath.Dir(to)) // before a map can cover what is in it
}
