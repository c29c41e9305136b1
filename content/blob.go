package content

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/capelin-io/capelin/internal/durable"
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
	closed atomic.Bool
}

// state is a blob that somebody has open, or whose map is to be written.
type state struct {
	s    *Store
	id   piece.ID
	dgst digest.Digest

	refs  int           // Store.mu
	ready chan struct{} // closed when load has ended
	err   error         // why it failed

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
	room     bool                  // space was looked for, and allocated if possible
	added    []addition            // for the observer
	telling  bool                  // somebody is telling it
}

type addition struct {
	piece int
	state []byte
}

// Checkpoints come after this many bytes, or this long after the first.
const (
	checkpointBytes = 64 << 20
	checkpointEvery = 2 * time.Second
)

// Blob opens a blob of a swarm. If there is none, create makes an empty partial
// one, otherwise the error is [ErrNotFound]. A complete blob of this digest and
// another size is [ErrSize]. One in quarantine is [ErrQuarantined], but create
// begins it anew beside the wrong one, which it replaces when it is complete. The
// first opening of a partial blob after another boot reads and verifies what it has.
func (s *Store) Blob(ctx context.Context, id piece.ID, create bool) (*Blob, error) {
	if err := id.Validate(); err != nil {
		return nil, err
	}
	d := digest.Digest(id.Digest())
	for {
		if _, err := s.learn(d); err != nil {
			return nil, fmt.Errorf("opening %s: %w", d, err)
		}
		s.mu.Lock()
		if s.closed {
			s.mu.Unlock()
			return nil, fmt.Errorf("opening %s: store: %w", d, ErrClosed)
		}
		var slot **state
		var v any
		var complete bool
		if e := s.index[d]; e != nil && (!e.bad || s.parts[id] == nil && !create) {
			switch {
			case e.bad:
				s.mu.Unlock()
				return nil, fmt.Errorf("opening %s: %w", d, ErrQuarantined)
			case e.size < 0:
				s.mu.Unlock()
				continue
			case e.size != id.Size:
				size := e.size
				s.mu.Unlock()
				return nil, fmt.Errorf("opening %s: it has %d bytes: %w", id, size, ErrSize)
			}
			slot, v, complete = &e.open, e, true
		} else {
			p := s.parts[id]
			if p == nil {
				if !create {
					s.mu.Unlock()
					return nil, fmt.Errorf("opening %s: %w", id, ErrNotFound)
				}
				p = &partial{id: id}
				s.parts[id] = p
			}
			slot, v = &p.open, p
		}
		st, first := *slot, false
		if st == nil {
			st, first = newState(s, id), true
			*slot = st
		}
		st.refs++
		s.unkeep(v)
		s.mu.Unlock()
		if first {
			st.load(ctx, complete)
			close(st.ready)
		} else {
			select {
			case <-st.ready:
			case <-ctx.Done():
				s.release(st)
				return nil, ctx.Err()
			}
		}
		if st.err != nil {
			err := st.err
			s.release(st)
			if !first && (errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)) && ctx.Err() == nil {
				continue // another opener gave up, we do not
			}
			if isNoSpace(err) {
				err = fmt.Errorf("%w: %w", ErrNoSpace, err)
			}
			return nil, fmt.Errorf("opening %s: %w", id, err)
		}
		return &Blob{st: st}, nil
	}
}

func newState(s *Store, id piece.ID) *state {
	return &state{
		s: s, id: id, dgst: digest.Digest(id.Digest()),
		ready:   make(chan struct{}),
		op:      make(chan struct{}, 1),
		ck:      make(chan struct{}, 1),
		have:    piece.NewBits(id.Pieces()),
		onDisk:  piece.NewBits(id.Pieces()),
		sums:    piece.NewSums(id),
		claims:  make(map[int]chan struct{}),
		changed: make(chan struct{}),
	}
}

// load reads what is on disk; it runs before anybody else sees the state.
func (st *state) load(ctx context.Context, complete bool) {
	if complete {
		st.err = st.loadComplete()
		if errors.Is(st.err, ErrNotFound) {
			st.s.blobGone(st.dgst, st.id.Size)
		}
	} else {
		st.err = st.loadPartial(ctx)
	}
}

func (st *state) loadComplete() error {
	s := st.s
	unlock := s.places.Lock(st.dgst)
	defer unlock()
	s.mu.Lock()
	e := s.index[st.dgst]
	if e == nil {
		s.mu.Unlock()
		return ErrNotFound
	}
	place, sums := e.place, e.sums
	s.mu.Unlock()
	f, err := os.Open(s.blobPath(st.dgst, place))
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			s.mu.Lock()
			s.forget(e)
			s.mu.Unlock()
			return ErrNotFound
		}
		return err
	}
	if fi, err := f.Stat(); err != nil || fi.Size() != st.id.Size {
		f.Close()
		return fmt.Errorf("%s has changed its size: %w", f.Name(), errors.Join(err, ErrSize))
	}
	st.f, st.complete = f, true
	st.have.SetAll()
	if !sums {
		return nil
	}
	r, err := readRecord(s.sumsPath(st.dgst), kindSums, st.id)
	if err == nil {
		st.sums, st.proven = r.sums, true
		return nil
	}
	// Sums can be computed again.
	s.mu.Lock()
	e.sums = false
	s.mu.Unlock()
	if errors.Is(err, errRecord) {
		err = os.Remove(s.sumsPath(st.dgst))
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return err
}

func (st *state) loadPartial(ctx context.Context) error {
	s := st.s
	unlock := s.places.Lock(st.dgst)
	f, err := os.OpenFile(s.partialPath(st.id, ".data"), os.O_RDWR|os.O_CREATE, 0o600)
	if err == nil {
		err = f.Truncate(st.id.Size) // a hole, if it is new
	}
	unlock()
	if err != nil {
		if f != nil {
			f.Close()
		}
		return err
	}
	st.f = f
	r, err := readRecord(s.partialPath(st.id, ".map"), kindMap, st.id)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case errors.Is(err, errRecord):
		os.Remove(s.partialPath(st.id, ".map"))
		return nil
	case err == nil:
		st.onDisk = r.have.Clone()
		st.sums, st.proven = r.sums, r.proven
		if err = st.recover(ctx, r); r.boot != bootID() || !same(st.have, r.have) {
			st.dirty = 1 // so that the next map has this boot's id, and what we found
		}
	}
	if err != nil {
		f.Close()
		st.f = nil
	}
	return err
}

// recover decides which pieces count. What the map covers was synced before, and
// is believed as long as the machine has not been down since. Otherwise it is
// verified again. In the same boot, pieces written after the last map are in the
// page cache, so those that the sums reach are verified where they lie.
func (st *state) recover(ctx context.Context, r *record) error {
	sameBoot := r.boot == bootID() && r.boot != [16]byte{}
	var todo []int
	if !sameBoot {
		for i := r.have.NextSet(0); i >= 0; i = r.have.NextSet(i + 1) {
			todo = append(todo, i)
		}
	} else {
		st.have = r.have.Clone()
		data := int64(-1) // no hole before here, as far as we know
		for i := 0; i < st.sums.Verifiable(); i++ {
			if st.have.Has(i) {
				continue
			}
			off := st.id.Offset(i)
			if data < off {
				var err error
				if data, err = st.f.Seek(off, unix.SEEK_DATA); err != nil {
					break // holes only, or a file system that cannot tell
				}
			}
			if data >= off+int64(st.id.PieceSize(i)) {
				continue
			}
			data = -1
			todo = append(todo, i)
		}
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	next := 0
	for range min(runtime.GOMAXPROCS(0), len(todo)) {
		wg.Go(func() {
			buf := make([]byte, st.id.PieceSize(0))
			for ctx.Err() == nil {
				mu.Lock()
				if next == len(todo) {
					mu.Unlock()
					return
				}
				i := todo[next]
				next++
				mu.Unlock()
				p := buf[:st.id.PieceSize(i)]
				if _, err := st.f.ReadAt(p, st.id.Offset(i)); err != nil || st.sums.Verify(i, p) != nil {
					continue
				}
				mu.Lock()
				st.have.Set(i)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return ctx.Err()
}

// release gives a handle up.
func (s *Store) release(st *state) {
	s.mu.Lock()
	st.refs--
	closeIt := s.idle(st)
	s.mu.Unlock()
	if closeIt != nil {
		closeIt()
	}
}

// idle does what is to be done when nobody uses st any more, and returns what
// must be done without s.mu. s.mu is held.
func (s *Store) idle(st *state) func() {
	if st.refs > 0 || s.closed {
		return nil
	}
	st.mu.Lock()
	complete, gone := st.complete, st.gone != nil
	dirty := (st.dirty > 0 || st.room) && !complete && !gone && st.err == nil
	bytes := int64(st.have.Count()) * st.id.Length()
	empty := st.have.Count() == 0 && st.onDisk.Count() == 0
	st.mu.Unlock()
	if dirty {
		// It stays until its map is written, and space that it does not need is
		// given back.
		s.dirty[st] = struct{}{}
		s.wakeCheckpoints()
		return nil
	}
	delete(s.dirty, st)
	shut := func() { st.shut(ErrClosed) }
	if e := s.index[st.dgst]; e != nil && e.open == st {
		e.open = nil
		if e.place == Cached {
			e.updated = max(e.updated, time.Now().UnixNano())
		}
		s.keep(e)
		if s.cfg.CacheBytes > 0 && s.kept > s.cfg.CacheBytes {
			s.wake()
		}
		return shut
	}
	p := s.parts[st.id]
	if p == nil || p.open != st {
		return shut
	}
	p.open = nil
	if st.err == nil {
		p.used, p.bytes = time.Now(), bytes
	}
	if empty {
		// Nothing in it is worth a directory entry. Remove it before anybody can
		// open it again: that takes the digest's lock, which is free to take here
		// only without s.mu, so keep the name reserved until then.
		p.open, st.refs = st, 1
		return func() { s.removeEmpty(p, st) }
	}
	s.keep(p)
	if s.cfg.CacheBytes > 0 && s.kept > s.cfg.CacheBytes {
		s.wake()
	}
	return shut
}

// removeEmpty removes a partial blob without pieces, unless somebody has opened
// it meanwhile, or it only could not be opened.
func (s *Store) removeEmpty(p *partial, st *state) {
	unlock := s.places.Lock(st.dgst)
	s.mu.Lock()
	st.refs--
	st.mu.Lock()
	used := st.refs > 0 || st.have.Count() > 0 || st.onDisk.Count() > 0 || st.complete
	st.mu.Unlock()
	s.mu.Unlock()
	failed := false
	if st.err != nil {
		_, err := os.Lstat(s.partialPath(st.id, ".map"))
		failed = !errors.Is(err, fs.ErrNotExist)
	}
	s.mu.Lock()
	if failed && p.open == st {
		p.open = nil
		s.keep(p)
	}
	used = used || st.refs > 0
	if used || failed || s.parts[st.id] != p {
		closeIt := func() {}
		if st.refs == 0 {
			if c := s.idle(st); c != nil {
				closeIt = c
			}
		}
		s.mu.Unlock()
		unlock()
		closeIt()
		return
	}
	delete(s.parts, st.id)
	s.mu.Unlock()
	os.Remove(s.partialPath(st.id, ".map"))
	os.Remove(s.partialPath(st.id, ".data"))
	unlock()
	st.shut(ErrClosed)
}

// shut closes the file and fails everybody who still uses the state.
func (st *state) shut(why error) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.gone == nil {
		st.gone = why
	}
	st.notify()
	if st.f != nil {
		st.f.Close()
	}
	for _, f := range st.old {
		f.Close()
	}
	st.old = nil
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
		b.st.s.release(b.st)
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
// durable, in cache/ or blobs/.
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
	ok, err := b.claim(i)
	if err != nil {
		return err
	}
	if !ok {
		st.mu.Lock()
		defer st.mu.Unlock()
		return st.accept(i, sums)
	}
	err = st.write(i, c.Data())
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
	if st.dirty == 0 {
		st.since = time.Now()
	}
	st.dirty += int64(st.id.PieceSize(i))
	st.notify()
}

// claim waits until nobody else writes piece i, and reports whether the caller
// must write it; if it counts already, it need not. A claim ends with unclaim.
func (b *Blob) claim(i int) (bool, error) {
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
		if err := st.reserve(); err != nil {
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

// write writes a claimed piece at its place, making room if the disk is full.
func (st *state) write(i int, data [][]byte) error {
	off := st.id.Offset(i)
	for _, d := range data {
		for try := 0; ; try++ {
			n, err := st.f.WriteAt(d, off)
			if err == nil {
				off += int64(len(d))
				break
			}
			if !isNoSpace(err) {
				return err
			}
			need := max(int64(st.id.PieceSize(i)), 16<<20)
			if freed := st.s.makeRoom(context.Background(), need); freed == 0 || try > 10 {
				return st.noSpace(err)
			}
			d, off = d[n:], off+int64(n)
		}
	}
	return nil
}

// missing returns how many bytes the blob's file has yet to be given.
func (st *state) missing() int64 {
	var fi unix.Stat_t
	if err := unix.Fstat(int(st.f.Fd()), &fi); err != nil {
		return st.id.Size
	}
	return max(0, st.id.Size-fi.Blocks*512)
}

func (st *state) noSpace(err error) error {
	free, _, _ := st.s.space()
	return fmt.Errorf("%s: %d bytes to come, %d bytes free: %w: %w", st.s.partialPath(st.id, ".data"), st.missing(), free, ErrNoSpace, err)
}

// reserve allocates the blob's space if there is enough, so that the disk cannot
// be full in the middle and the data are in few extents. If there would be
// enough only after eviction, it leaves that to the writes, since a size is only
// a claim until the blob is proven. If not even then, it says so now. In memory
// nothing is allocated: tmpfs would clear all of it first, with the download waiting.
func (st *state) reserve() error {
	free, _, err := st.s.space()
	if err != nil {
		return err
	}
	need := st.missing()
	if free >= need && !st.s.memory {
		err := unix.Fallocate(int(st.f.Fd()), 0, 0, st.id.Size)
		if err == nil || !isNoSpace(err) {
			return nil // a file system may not know how
		}
	}
	st.s.mu.Lock()
	kept := st.s.kept
	st.s.mu.Unlock()
	if free+kept < need {
		return fmt.Errorf("storing %s: %w", st.dgst, st.noSpace(unix.ENOSPC))
	}
	return nil
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
// it is containerd's.
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
	err = st.finish()
	if isNoSpace(err) { // for the sums; not with the digest locked
		if st.s.makeRoom(ctx, 1<<20) > 0 {
			err = st.finish()
		}
		if isNoSpace(err) {
			err = st.noSpace(err)
		}
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
	sums := st.sums.Clone()
	st.mu.Unlock()
	if err := fdatasync(st.f); err != nil {
		return err
	}
	st.ck <- struct{}{} // no map is written any more
	defer func() { <-st.ck }()
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
			err = os.Rename(from, to)
		}
		if err == nil {
			err = s.syncDir(filepath.Dir(to))
		}
		if err != nil {
			return err
		}
		if heals {
			if err := os.Remove(s.sumsPath(st.dgst) + ".bad"); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
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
	s.unkeep(e)
	s.unkeep(p)
	delete(s.parts, st.id)
	delete(s.dirty, st)
	s.mu.Unlock()
	os.Remove(s.partialPath(st.id, ".map"))
	if other != nil && !heals { // the stock store has committed it meanwhile
		s.report(s.toTrash(from))
	}
	st.mu.Lock()
	st.complete, st.dirty = true, 0
	st.notify()
	st.mu.Unlock()
	return nil
}

// writeSums makes a complete blob's sums durable. The digest is locked.
func (s *Store) writeSums(sums *piece.Sums) error {
	r := record{kind: kindSums, proven: true, sums: sums}
	return durable.WriteFile(s.sumsPath(digest.Digest(sums.ID().Digest())), r.encode(), 0o600)
}

// writeMap replaces a map, durably, making room if it must. No digest is locked.
func (s *Store) writeMap(path string, r *record) error {
	b := r.encode()
	err := durable.WriteFile(path, b, 0o600)
	if isNoSpace(err) {
		if s.makeRoom(context.Background(), max(int64(len(b)), 1<<20)) > 0 {
			err = durable.WriteFile(path, b, 0o600)
		}
		if isNoSpace(err) {
			err = fmt.Errorf("%s: %d bytes: %w: %w", path, len(b), ErrNoSpace, err)
		}
	}
	return err
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
	err = st.storeSums(sums)
	if isNoSpace(err) && st.s.makeRoom(ctx, 1<<20) > 0 {
		err = st.storeSums(sums)
	}
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
	s.mu.Unlock()
	st.mu.Lock()
	st.gone = ErrDropped
	st.notify()
	st.mu.Unlock()
	if err := s.trashPartial(st.id); err != nil {
		return fmt.Errorf("dropping %s: %w", st.id, err)
	}
	return nil
}

// trashPartial removes a partial's files, the map first. The digest is locked.
func (s *Store) trashPartial(id piece.ID) error {
	if err := os.Remove(s.partialPath(id, ".map")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return s.toTrash(s.partialPath(id, ".data"))
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

func fdatasync(f *os.File) error {
	c, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	err = c.Control(func(fd uintptr) {
		for {
			if serr = unix.Fdatasync(int(fd)); !errors.Is(serr, unix.EINTR) {
				return
			}
		}
	})
	if err := errors.Join(err, serr); err != nil {
		return fmt.Errorf("syncing %s: %w", f.Name(), err)
	}
	return nil
}
