package content

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/capelin-io/capelin/internal/durable"
	"github.com/capelin-io/capelin/internal/durable/disk"
	"github.com/capelin-io/capelin/swarm/piece"
)

// Checkpoints come after this many bytes, or this long after the first.
const (
	checkpointBytes = 64 << 20
	checkpointEvery = 2 * time.Second
)

// checkpoint makes what counts now durable: the data first, then the map. It
// blocks no writer.
func (st *state) checkpoint() error {
	st.ck <- struct{}{}
	defer func() { <-st.ck }()
	st.mu.Lock()
	if st.complete || st.gone != nil || st.f == nil {
		st.mu.Unlock()
		return nil
	}
	r := record{kind: kindMap, proven: st.proven, boot: bootID(), sums: st.sums.Clone(), have: st.have.Clone()}
	if st.dirty == 0 && same(st.have, st.onDisk) {
		st.mu.Unlock()
		return nil
	}
	dirty := st.dirty
	st.dirty = 0
	// Until the new map is known to be there, the old one may be.
	for i := r.have.NextSet(0); i >= 0; i = r.have.NextSet(i + 1) {
		st.onDisk.Set(i)
	}
	st.mu.Unlock()
	err := st.sync(r.have)
	if err == nil {
		err = st.s.writeMap(st.s.partialPath(st.id, ".map"), &r)
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	if err != nil {
		st.dirty += dirty
		st.since = time.Now()
		return fmt.Errorf("writing the map of %s: %w", st.dgst, err)
	}
	st.onDisk = r.have
	return nil
}

// sync makes the data of pieces that count durable. If that fails the pieces that
// were not synced before do not count any more, and come again: the kernel takes
// what it could not write for written, so that the next sync would succeed without
// them. The caller holds the token of ck.
func (st *state) sync(have *piece.Bits) error {
	err := disk.Datasync(st.f)
	if err == nil {
		st.mu.Lock()
		st.synced = have.Clone()
		st.mu.Unlock()
		return nil
	}
	done := st.holdAnew()
	for i := st.have.NextSet(0); i >= 0; i = st.have.NextSet(i + 1) {
		if !st.synced.Has(i) {
			st.have.Clear(i)
		}
	}
	done()
	st.mu.Unlock()
	return err
}

func same(a, b *piece.Bits) bool {
	if a.Count() != b.Count() {
		return false
	}
	x, y := a.Words(), b.Words()
	for i := range x {
		if x[i] != y[i] {
			return false
		}
	}
	return true
}

// dirtyNote says what the Store must know of st's unsaved progress. st.mu is
// held; noteDirty is called without it.
func (st *state) dirtyNote() (n int64) { return st.dirty }

// noteDirty has Run write st's map before long, or soon if n bytes are many.
func (st *state) noteDirty(n int64) {
	if n == 0 {
		return
	}
	s := st.s
	s.mu.Lock()
	_, known := s.dirty[st]
	if !known && !s.closed {
		s.dirty[st] = struct{}{}
	}
	s.mu.Unlock()
	if n >= checkpointBytes {
		s.wakeCheckpoints()
	}
}

func (s *Store) wakeCheckpoints() {
	select {
	case s.ckick <- struct{}{}:
	default:
	}
}

// checkpoints writes the maps of partial blobs that made progress, until ctx ends.
func (s *Store) checkpoints(ctx context.Context) {
	t := time.NewTicker(checkpointEvery / 2)
	defer t.Stop()
	for {
		s.writeMaps(false)
		select {
		case <-ctx.Done():
			return
		case <-s.ckick:
		case <-t.C:
		}
	}
}

// writeMaps writes the maps that are due, or all that are not up to date, and
// lets go of states that only waited for that.
func (s *Store) writeMaps(all bool) {
	s.mu.Lock()
	var due []*state
	for st := range s.dirty {
		st.mu.Lock()
		if all || st.refs == 0 || st.dirty >= checkpointBytes || st.dirty > 0 && time.Since(st.since) >= checkpointEvery {
			due = append(due, st)
		} else if st.dirty == 0 {
			delete(s.dirty, st)
		}
		st.mu.Unlock()
	}
	s.mu.Unlock()
	for _, st := range due {
		err := st.checkpoint()
		if err == nil {
			s.mu.Lock()
			idle := st.refs == 0
			s.mu.Unlock()
			if idle {
				err = st.trim()
			}
		}
		if isNoSpace(err) && s.giveUp(st) {
			continue
		}
		if err != nil {
			s.report(err)
			continue // and try again
		}
		s.mu.Lock()
		st.mu.Lock()
		clean := st.dirty == 0 && (!st.room || st.refs > 0)
		st.mu.Unlock()
		if clean {
			delete(s.dirty, st)
		}
		s.mu.Unlock()
		if clean {
			s.settle(st)
		}
	}
}

// giveUp drops a partial blob that nobody uses and for whose map there is no room, and
// reports whether it did.
func (s *Store) giveUp(st *state) bool {
	st.ck <- struct{}{}
	s.mu.Lock()
	p := s.parts[st.id]
	if p == nil || p.open != st || st.refs > 0 {
		s.mu.Unlock()
		<-st.ck
		return false
	}
	defer s.evicts(p)()
	s.mu.Unlock()
	return s.evictPartial(p, st) > 0
}

// trim gives the space back that was allocated for pieces that are not there.
func (st *state) trim() error {
	done := st.hold()
	if done == nil {
		return nil
	}
	var err error
	if !st.complete && st.gone == nil && st.room {
		have, f := st.have.Clone(), st.f
		st.mu.Unlock()
		err = punch(f, st.id, have)
		st.mu.Lock()
		st.room = false
	}
	done()
	st.mu.Unlock()
	return err
}

// hold waits until no piece is being written, and keeps new ones from being
// begun until the function that it returns is called, with st.mu held. It
// returns with st.mu held, or returns nil, without it, after somebody else held.
func (st *state) hold() (done func()) {
	st.mu.Lock()
	if wait := st.drain; wait != nil {
		st.mu.Unlock()
		<-wait
		return nil
	}
	ch := make(chan struct{})
	st.drain = ch
	for len(st.claims) > 0 {
		for _, wait := range st.claims {
			st.mu.Unlock()
			<-wait
			st.mu.Lock()
			break
		}
	}
	return func() {
		st.drain = nil
		close(ch)
		st.notify()
	}
}

// holdAnew is hold that waits for who else holds.
func (st *state) holdAnew() (done func()) {
	for done == nil {
		done = st.hold()
	}
	return done
}

// punch makes holes where no piece is.
func punch(f *os.File, id piece.ID, have *piece.Bits) error {
	for i := have.NextClear(0); i >= 0; i = have.NextClear(i) {
		j := have.NextSet(i)
		if j < 0 {
			j = id.Pieces()
		}
		from, to := id.Offset(i), min(id.Offset(j), id.Size)
		err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, from, to-from)
		if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("giving back space of %s: %w", id, err)
		}
		i = j
	}
	return nil
}

// writeMap replaces a map, durably, making room if it must: it waits for nobody, as others may
// wait for what is given up when there is no room for its map. No digest is locked.
func (s *Store) writeMap(path string, r *record) error {
	b := r.encode()
	err := durable.WriteFile(path, b, 0o600)
	if isNoSpace(err) && s.makeRoom(context.Background(), max(int64(len(b)), 1<<20)) > 0 {
		err = durable.WriteFile(path, b, 0o600)
	}
	if isNoSpace(err) {
		err = fmt.Errorf("%s: %d bytes: %w: %w", path, len(b), ErrNoSpace, err)
	}
	return err
}
