package content

import (
	"cmp"
	"container/list"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/capelin-io/capelin/internal/durable/disk"
	"github.com/capelin-io/capelin/swarm/piece"
)

const (
	// sweepEvery is how often Run looks at budget and free space unasked: others fill
	// the disk, too, and the cache is to be gone before kubelet finds out.
	sweepEvery = time.Second
	// grace is how long something stays without a cache budget.
	grace = 10 * time.Minute
	// floorGrace is how long something stays that came although too little is free, so
	// that a layer that has just been fetched ahead is not fetched twice. A disk that
	// is full waits for nothing.
	floorGrace = 2 * time.Minute
)

// A reason is what something is evicted for.
type reason uint8

const (
	forBudget  reason = iota // more is kept than may be
	forNoCache               // nothing is to be kept
	forFloor                 // too little is free
	forRoom                  // the disk is full
)

// spares reports whether an *entry or *partial stays nevertheless. Store.mu is held.
func (why reason) spares(v any) bool {
	switch v := v.(type) {
	case *entry:
		switch why {
		case forNoCache:
			return !v.spent && time.Since(time.Unix(0, max(v.created, v.updated))) < grace
		case forFloor:
			return !v.spent && time.Since(time.Unix(0, v.created)) < floorGrace
		}
	case *partial:
		switch why {
		case forNoCache:
			return time.Since(v.used) < grace
		case forFloor:
			return time.Since(v.used) < floorGrace
		}
	}
	return false
}

// Run does the work that nobody waits for: unlinking, evicting, learning sizes,
// writing maps. It blocks until ctx ends and its goroutines are gone, and
// returns nil then. Errors of single files go to Config.Report.
func (s *Store) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { s.checkpoints(ctx); return nil })
	g.Go(func() error { s.fill(ctx); return nil })
	g.Go(func() error {
		t := time.NewTicker(sweepEvery)
		defer t.Stop()
		for {
			s.sweep(ctx)
			select {
			case <-ctx.Done():
				return nil
			case <-s.kick:
			case <-t.C:
			}
		}
	})
	return g.Wait()
}

// wake tells Run that there is something to unlink or evict.
func (s *Store) wake() {
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

// fill learns the sizes of blobs that Open found, those of cache/ first, and
// then orders those by their last use.
func (s *Store) fill(ctx context.Context) {
	s.report(s.loadIngests(ctx))
	s.mu.Lock()
	todo := s.unsized
	s.unsized = nil
	s.mu.Unlock()
	for i, d := range todo {
		if ctx.Err() != nil {
			s.mu.Lock()
			s.unsized = todo[i:]
			s.mu.Unlock()
			return
		}
		size, err := s.learn(d)
		if err != nil {
			s.report(err)
			continue
		}
		// Told even if somebody else has learned it: nobody else tells.
		s.mu.Lock()
		e := s.index[d]
		tell := e != nil && !e.bad
		s.mu.Unlock()
		if tell {
			s.blobAdded(d, size)
		}
	}
	type used struct {
		v any
		t int64
	}
	var all []used
	s.mu.Lock()
	for el := s.evictable.Front(); el != nil; el = el.Next() {
		switch v := el.Value.(type) {
		case *entry:
			all = append(all, used{v, max(v.created, v.updated)})
		case *partial:
			all = append(all, used{v, v.used.UnixNano()})
		}
	}
	s.mu.Unlock()
	slices.SortStableFunc(all, func(a, b used) int { return cmp.Compare(a.t, b.t) })
	for _, u := range all {
		s.mu.Lock()
		s.keep(u.v)
		s.mu.Unlock()
	}
}

// learn fills a blob's size and times in, unless they are known. A file that has
// vanished is forgotten.
func (s *Store) learn(d digest.Digest) (size int64, err error) {
	for {
		s.mu.Lock()
		e := s.index[d]
		if e == nil {
			s.mu.Unlock()
			return 0, nil
		}
		if e.size >= 0 {
			size = e.size
			s.mu.Unlock()
			return size, nil
		}
		place, open := e.place, e.open != nil
		s.mu.Unlock()
		fi, err := os.Stat(s.blobPath(d, place))
		s.mu.Lock()
		if s.index[d] != e || e.place != place {
			s.mu.Unlock()
			continue // it moved meanwhile
		}
		if err != nil {
			if errors.Is(err, os.ErrNotExist) && !open {
				s.forget(e)
				err = nil
			}
			s.mu.Unlock()
			return 0, err
		}
		e.stat(fi)
		if e.el != nil {
			s.kept += e.size - e.counted
			e.counted = e.size
		}
		s.mu.Unlock()
		return fi.Size(), nil
	}
}

// forget removes e from the index. s.mu is held.
func (s *Store) forget(e *entry) {
	s.unkeep(e)
	if s.index[e.dgst] == e {
		delete(s.index, e.dgst)
		if e.place == Committed {
			s.committed--
		}
	}
	if e.sums {
		s.junk = append(s.junk, s.sumsPath(e.dgst))
	}
	if e.bad || len(e.wrong) > 0 {
		s.junk = append(s.junk, s.sumsPath(e.dgst)+".bad")
	}
}

// keep puts an *entry or *partial, if it is there still and nobody uses it, at
// the young end of what may be evicted, at once or when borrowers have closed it, and
// otherwise takes it out. s.mu is held.
func (s *Store) keep(v any) {
	s.unkeep(v)
	switch v := v.(type) {
	case *entry:
		if v.place != Cached || s.index[v.dgst] != v || v.open != nil && v.open.refs > v.open.lent {
			return
		}
		l := &s.evictable
		if v.open != nil {
			l = &s.lent
		}
		v.counted = max(v.size, 0)
		v.el = l.PushBack(v)
		if v.counted > s.cfg.CacheBytes {
			l.MoveToFront(v.el) // rather than everything else first
		}
		s.kept += v.counted
	case *partial:
		if s.parts[v.id] == v && (v.open == nil || v.open.refs == 0) {
			v.el, v.counted = s.evictable.PushBack(v), v.bytes
			s.kept += v.counted
		}
	}
}

// unkeep takes an *entry or *partial out of what may be evicted. s.mu is held.
func (s *Store) unkeep(v any) {
	var el **list.Element
	var counted *int64
	switch v := v.(type) {
	case *entry:
		el, counted = &v.el, &v.counted
	case *partial:
		el, counted = &v.el, &v.counted
	}
	if *el != nil {
		s.evictable.Remove(*el) // a list leaves what is in another alone
		s.lent.Remove(*el)
		s.kept -= *counted
		*el, *counted = nil, 0
	}
}

// over returns by how many bytes more is kept than may be. s.mu is held.
func (s *Store) over() int64 { return s.kept - max(s.cfg.CacheBytes, 0) }

// toTrash renames a file or directory into the trash, and has Run unlink it. A
// file that is not there is no error.
func (s *Store) toTrash(p string) error {
	t := s.path("swarm/trash", fmt.Sprintf("%d-%d-%s", time.Now().UnixNano(), s.trashSeq.Add(1), filepath.Base(p)))
	err := disk.Rename(p, t)
	switch {
	case isNoSpace(err): // a full disk may have no room for the name
		return s.unlinkNow(p)
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return err
	}
	s.mu.Lock()
	s.trash = append(s.trash, t)
	s.mu.Unlock()
	s.wake()
	return nil
}

// unlinkNow removes a file or directory whose space is needed. If it is not there, that is
// no error.
func (s *Store) unlinkNow(p string) error {
	err := disk.RemoveAll(p)
	if err == nil {
		s.unlinked.Add(1)
	}
	return err
}

// emptyTrash unlinks what is in the trash, and returns when it is, whoever is at it.
func (s *Store) emptyTrash(ctx context.Context) {
	select {
	case s.unlinking <- struct{}{}:
		defer func() { <-s.unlinking }()
	case <-ctx.Done():
		return
	}
	for ctx.Err() == nil {
		s.mu.Lock()
		var p string
		trash := len(s.trash) > 0
		switch {
		case trash:
			p, s.trash = s.trash[0], s.trash[1:]
		case len(s.junk) > 0:
			p, s.junk = s.junk[0], s.junk[1:]
		default:
			s.trash, s.junk = nil, nil
			s.mu.Unlock()
			return
		}
		s.mu.Unlock()
		s.report(s.unlink(p, trash))
	}
}

// unlink removes a file or tree in the trash, or a sums file of a blob that is
// gone, if it still is.
func (s *Store) unlink(p string, trash bool) error {
	if trash {
		return s.unlinkNow(p)
	}
	// Sums and quarantine marks are written under their digest's lock.
	name, bad := strings.CutSuffix(filepath.Base(p), ".bad")
	if d, ok := blobDigest(filepath.Base(filepath.Dir(p)), name); ok {
		defer s.places.Lock(d)()
		s.mu.Lock()
		e := s.index[d]
		used := e != nil && (bad && (e.bad || len(e.wrong) > 0) || !bad && e.sums)
		s.mu.Unlock()
		if used {
			return nil
		}
	}
	if err := disk.Remove(p); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// sweep evicts down to the budget and the free floor, and unlinks.
func (s *Store) sweep(ctx context.Context) {
	why := forBudget
	if s.cfg.CacheBytes < 0 {
		why = forNoCache
	}
	s.mu.Lock()
	over := s.over()
	s.mu.Unlock()
	if over > 0 {
		s.evict(ctx, over, why)
	}
	s.emptyTrash(ctx)
	if s.cfg.FreeFloor <= 0 {
		return
	}
	if short := s.short(s.cfg.FreeFloor); short > 0 {
		s.evict(ctx, short, forFloor)
	}
	// Who else writes to a disk that is about to be full does not ask for room.
	if free, total, err := s.Space(); err == nil {
		if low := min(roomLow, total/100); free < low {
			s.evict(ctx, low-free, forRoom)
		}
	}
}

// evict evicts until need bytes are unlinked, or nothing is left to evict, and returns
// how many are. What borrowers have open comes after what nobody has, and on a full disk
// what others have open that nobody waits for is the last. No digest is locked.
func (s *Store) evict(ctx context.Context, need int64, why reason) (freed int64) {
	more := []func(){func() { s.unlend(ctx, s.borrowed(why), need-freed) }}
	if why == forRoom && s.cfg.GiveUp != nil {
		more = append(more, func() { s.cfg.GiveUp(ctx) })
	}
	for freed < need && ctx.Err() == nil {
		n, ok := s.evictOne(why)
		switch {
		case ok:
			freed += n
		case len(more) > 0:
			more[0]()
			more = more[1:]
		default:
			need = freed // nothing is left
		}
	}
	s.emptyTrash(ctx)
	return freed
}

// borrowed returns the blobs that may be evicted when borrowers have closed them.
func (s *Store) borrowed(why reason) (ids []piece.ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for el := s.lent.Front(); el != nil; el = el.Next() {
		e := el.Value.(*entry)
		if id, ok := swarmID(e.dgst, e.size); ok && !why.spares(e) {
			ids = append(ids, id)
		}
	}
	return ids
}

func (s *Store) unlend(ctx context.Context, ids []piece.ID, need int64) {
	if len(ids) > 0 && s.cfg.Unlend != nil {
		s.cfg.Unlend(ctx, ids, need)
	}
}

// evictableBytes returns how much evicting everything would free.
func (s *Store) evictableBytes() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.kept
}

// evictOne moves the least recently used evictable thing into the trash, of those that
// may go, and returns its size. It reports false when there is none.
func (s *Store) evictOne(why reason) (int64, bool) {
	s.mu.Lock()
	for el := s.evictable.Front(); el != nil; el = el.Next() {
		if why.spares(el.Value) {
			continue
		}
		switch v := el.Value.(type) {
		case *entry:
			defer s.evicts(v)()
			s.mu.Unlock()
			return s.evictEntry(v), true
		case *partial:
			st := v.open
			if st != nil { // it waits for its map
				select {
				case st.ck <- struct{}{}:
				default:
					continue // which is being written
				}
			}
			defer s.evicts(v)()
			s.mu.Unlock()
			return s.evictPartial(v, st), true
		}
	}
	s.mu.Unlock()
	return 0, false
}

// evicts takes an *entry or *partial that is evicted now out of what may be. Until the function
// that it returns is called, without s.mu, others know that its space will come. s.mu is held.
func (s *Store) evicts(v any) (done func()) {
	s.unkeep(v)
	s.evicting++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.evicting--
	}
}

// evictEntry evicts a blob that was evictable, unless somebody has opened it since.
func (s *Store) evictEntry(e *entry) (freed int64) {
	unlock := s.places.Lock(e.dgst)
	s.mu.Lock()
	if s.index[e.dgst] != e || e.place != Cached || e.open != nil {
		s.mu.Unlock()
		unlock()
		return 0
	}
	s.forget(e)
	s.mu.Unlock()
	err := s.toTrash(s.blobPath(e.dgst, Cached))
	unlock()
	s.report(err)
	s.blobGone(e.dgst, e.size)
	return max(e.size, 0)
}

// evictPartial evicts a partial blob that was evictable, unless somebody has opened it
// since. If st is not nil, it is what waits for the blob's map to be written, and the
// token of its ck is ours.
func (s *Store) evictPartial(p *partial, st *state) (freed int64) {
	if st != nil {
		defer func() { <-st.ck }()
	}
	defer s.places.Lock(digest.Digest(p.id.Digest()))()
	s.mu.Lock()
	if s.parts[p.id] != p || p.open != st || st != nil && st.refs > 0 {
		s.mu.Unlock()
		return 0
	}
	delete(s.parts, p.id)
	delete(s.dirty, st)
	s.mu.Unlock()
	freed = allocated(s.partialPath(p.id, ".data")) // what was reserved included
	s.report(s.trashPartial(p.id))
	if st != nil {
		st.shut(ErrDropped)
	}
	return freed
}
