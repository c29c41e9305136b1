package content

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/capelin-io/capelin/internal/durable/disk"
	"github.com/capelin-io/capelin/swarm/piece"
)

// Blob opens a blob of a swarm. If there is none, create makes an empty partial
// one, otherwise the error is [ErrNotFound]. A complete blob of this digest and
// another size is [ErrSize]. One in quarantine is [ErrQuarantined], but create
// begins it anew beside the wrong one, which it replaces when it is complete. The
// first opening of a partial blob after another boot reads and verifies what it has.
func (s *Store) Blob(ctx context.Context, id piece.ID, create bool) (*Blob, error) {
	return s.open(ctx, id, create, false)
}

// Lend is Blob for whoever closes a whole blob that containerd does not hold when
// Config.Unlend asks for it. So that such a blob is open does not keep it from eviction,
// and it counts for the cache.
func (s *Store) Lend(ctx context.Context, id piece.ID, create bool) (*Blob, error) {
	return s.open(ctx, id, create, true)
}

func (s *Store) open(ctx context.Context, id piece.ID, create, lend bool) (*Blob, error) {
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
		if lend {
			st.lent++
		}
		s.keep(v) // or not, as it is open now
		s.mu.Unlock()
		if first {
			st.load(ctx, complete)
			close(st.ready)
		} else {
			select {
			case <-st.ready:
			case <-ctx.Done():
				s.release(st, lend)
				return nil, ctx.Err()
			}
		}
		if st.err != nil {
			err := st.err
			s.release(st, lend)
			if !first && (errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)) && ctx.Err() == nil {
				continue // another opener gave up, we do not
			}
			if isNoSpace(err) {
				err = fmt.Errorf("%w: %w", ErrNoSpace, err)
			}
			return nil, fmt.Errorf("opening %s: %w", id, err)
		}
		st.want()
		return &Blob{st: st, lent: lend}, nil
	}
}

func newState(s *Store, id piece.ID) *state {
	st := &state{
		s: s, id: id, dgst: digest.Digest(id.Digest()),
		ready:   make(chan struct{}),
		op:      make(chan struct{}, 1),
		ck:      make(chan struct{}, 1),
		have:    piece.NewBits(id.Pieces()),
		onDisk:  piece.NewBits(id.Pieces()),
		synced:  piece.NewBits(id.Pieces()),
		sums:    piece.NewSums(id),
		claims:  make(map[int]chan struct{}),
		changed: make(chan struct{}),
	}
	st.wanted, st.unwant = context.WithCancel(context.Background())
	return st
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
		if st.err != nil {
			_, err := os.Lstat(st.s.partialPath(st.id, ".map"))
			st.stays = !errors.Is(err, fs.ErrNotExist)
		}
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
	place, sums, wrong := e.place, e.sums, e.wrong
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
	for _, i := range wrong {
		if i < st.id.Pieces() {
			st.have.Clear(i)
		}
	}
	if !sums {
		return nil
	}
	if st.id.Pieces() == 1 {
		st.proven = true
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
		err = disk.Remove(s.sumsPath(st.dgst))
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return err
}

func (st *state) loadPartial(ctx context.Context) error {
	s := st.s
	var f *os.File
	err := s.withRoom(ctx, st, 1<<20, func() (err error) { // for its name
		defer s.places.Lock(st.dgst)()
		if f, err = disk.OpenFile(s.partialPath(st.id, ".data"), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
			return err
		}
		if err = disk.Truncate(f, st.id.Size); err != nil { // a hole, if it is new
			f.Close()
		}
		return err
	})
	if err != nil {
		return err
	}
	st.f = f
	r, err := readRecord(s.partialPath(st.id, ".map"), kindMap, st.id)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case errors.Is(err, errRecord):
		_ = disk.Remove(s.partialPath(st.id, ".map"))
		return nil
	case err == nil:
		st.onDisk, st.synced = r.have.Clone(), r.have.Clone()
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
func (s *Store) release(st *state, lent bool) {
	s.mu.Lock()
	st.refs--
	if lent {
		st.lent--
	}
	if e := s.index[st.dgst]; st.refs > 0 && e != nil && e.open == st {
		s.keep(e) // if only borrowers have it open now
	}
	over := s.over() > 0
	s.mu.Unlock()
	s.settle(st)
	if over {
		s.wake()
	}
}

// settle closes a state that nobody uses any more, once its map is written. It holds
// the digest's lock, so that whoever opens the blob anew does so after this.
func (s *Store) settle(st *state) {
	defer s.places.Lock(st.dgst)()
	s.mu.Lock()
	if st.refs > 0 || s.closed {
		s.mu.Unlock()
		return
	}
	st.mu.Lock()
	unsaved := (st.dirty > 0 || st.room) && !st.complete && st.gone == nil && st.err == nil
	bytes := int64(st.have.Count()) * st.id.Length()
	empty := st.have.Count() == 0 && st.onDisk.Count() == 0
	st.mu.Unlock()
	if unsaved { // and space that it does not need is to be given back
		s.dirty[st] = struct{}{}
		if p := s.parts[st.id]; p != nil && p.open == st { // a full disk may have no room for its map
			p.used, p.bytes = time.Now(), bytes
			s.keep(p)
		}
		s.mu.Unlock()
		s.wakeCheckpoints()
		return
	}
	delete(s.dirty, st)
	remove := false
	if e := s.index[st.dgst]; e != nil && e.open == st {
		e.open = nil
		if e.place == Cached {
			e.updated = max(e.updated, time.Now().UnixNano())
		}
		s.keep(e)
	} else if p := s.parts[st.id]; p != nil && p.open == st {
		p.open = nil
		if st.err == nil {
			p.used, p.bytes = time.Now(), bytes
		}
		if remove = empty && !st.stays; remove { // nothing in it is worth a name
			delete(s.parts, st.id)
		} else {
			s.keep(p)
		}
	}
	over := s.over() > 0
	s.mu.Unlock()
	if remove {
		_ = disk.Remove(s.partialPath(st.id, ".map"))
		_ = disk.Remove(s.partialPath(st.id, ".data"))
	}
	st.shut(ErrClosed)
	s.mu.Lock()
	delete(s.dropped, st) // not before its space is there
	s.mu.Unlock()
	if over {
		s.wake()
	}
}

// shut closes the file and fails everybody who still uses the state.
func (st *state) shut(why error) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.gone == nil {
		st.end(why)
	}
	if st.f != nil {
		st.f.Close()
	}
	for _, f := range st.old {
		f.Close()
	}
	st.old = nil
}
