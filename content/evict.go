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
	"golang.org/x/sys/unix"

	"github.com/capelin-io/capelin/internal/durable/disk"
)

const (
	// sweepEvery is how often Run looks at budget and free space unasked.
	sweepEvery = 10 * time.Second
	// grace is how long something stays without a cache budget.
	grace = 10 * time.Minute
	// floorGrace is how long something stays although too little is free, so that
	// a layer that has just been fetched ahead is not fetched twice. A disk that
	// is full waits for nothing.
	floorGrace = 2 * time.Minute
)

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
	if e.bad {
		s.junk = append(s.junk, s.sumsPath(e.dgst)+".bad")
	}
}

// keep puts an *entry or *partial, if it is there still and nobody uses it, at
// the young end of what may be evicted. s.mu is held.
func (s *Store) keep(v any) {
	s.unkeep(v)
	switch v := v.(type) {
	case *entry:
		if v.place == Cached && v.open == nil && s.index[v.dgst] == v {
			v.counted = max(v.size, 0)
			v.el = s.evictable.PushBack(v)
			if v.counted > s.cfg.CacheBytes {
				s.evictable.MoveToFront(v.el) // rather than everything else first
			}
			s.kept += v.counted
		}
	case *partial:
		if v.open == nil && s.parts[v.id] == v {
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
		s.evictable.Remove(*el)
		s.kept -= *counted
		*el, *counted = nil, 0
	}
}

// toTrash renames a file or directory into the trash, and has Run unlink it. A
// file that is not there is no error.
func (s *Store) toTrash(p string) error {
	t := s.path("swarm/trash", fmt.Sprintf("%d-%d-%s", time.Now().UnixNano(), s.trashSeq.Add(1), filepath.Base(p)))
	if err := disk.Rename(p, t); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return err
	}
	s.mu.Lock()
	s.trash = append(s.trash, t)
	s.mu.Unlock()
	s.wake()
	return nil
}

// emptyTrash unlinks what is in the trash.
func (s *Store) emptyTrash(ctx context.Context) {
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
		return disk.RemoveAll(p)
	}
	// Sums and quarantine marks are written under their digest's lock.
	name, bad := strings.CutSuffix(filepath.Base(p), ".bad")
	if d, ok := blobDigest(filepath.Base(filepath.Dir(p)), name); ok {
		defer s.places.Lock(d)()
		s.mu.Lock()
		e := s.index[d]
		used := e != nil && (bad && e.bad || !bad && e.sums)
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
	budget, young := s.cfg.CacheBytes, time.Duration(0)
	if budget < 0 {
		budget, young = 0, grace
	}
	for ctx.Err() == nil {
		s.mu.Lock()
		over := s.kept > budget
		s.mu.Unlock()
		if !over {
			break
		}
		if _, ok := s.evictOne(young); !ok {
			break
		}
	}
	s.emptyTrash(ctx)
	if s.cfg.FreeFloor > 0 {
		if free, total, err := s.space(); err != nil {
			s.report(err)
		} else if need := int64(s.cfg.FreeFloor*float64(total)) - free; need > 0 {
			s.evict(ctx, need, floorGrace)
		}
	}
}

// makeRoom evicts until need bytes are unlinked, or nothing is left to evict,
// and returns how many it freed. It is for a disk that is full now.
func (s *Store) makeRoom(ctx context.Context, need int64) (freed int64) {
	return s.evict(ctx, need, 0)
}

// withRoom does what needs so much space at most, and does it again if the disk was
// full and something could be evicted. No digest is locked.
func (s *Store) withRoom(ctx context.Context, need int64, do func() error) error {
	err := do()
	if isNoSpace(err) && s.makeRoom(ctx, need) > 0 {
		err = do()
	}
	return err
}

// evict is makeRoom that leaves alone what was used in the last young; then it has
// nothing closed either.
func (s *Store) evict(ctx context.Context, need int64, young time.Duration) (freed int64) {
	mayClose := young == 0 && s.cfg.CloseIdle != nil
	for freed < need && ctx.Err() == nil {
		n, ok := s.evictOne(young)
		switch {
		case ok:
			freed += n
		case mayClose:
			mayClose = false
			s.cfg.CloseIdle(ctx, need-freed)
		default:
			need = freed // nothing is left
		}
	}
	s.emptyTrash(ctx)
	return freed
}

// evictableBytes returns how much evicting everything would free.
func (s *Store) evictableBytes() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.kept
}

// evictOne moves the least recently used evictable thing into the trash, unless
// it was used in the last young, and returns its size. It reports false when
// there is nothing to evict.
func (s *Store) evictOne(young time.Duration) (int64, bool) {
	s.mu.Lock()
	el := s.evictable.Front()
	if el == nil {
		s.mu.Unlock()
		return 0, false
	}
	var err error
	switch v := el.Value.(type) {
	case *entry:
		if young > 0 && time.Since(time.Unix(0, max(v.created, v.updated))) < young {
			s.mu.Unlock()
			return 0, false
		}
		s.unkeep(v)
		s.mu.Unlock()
		unlock := s.places.Lock(v.dgst)
		s.mu.Lock()
		if s.index[v.dgst] != v || v.place != Cached || v.open != nil {
			s.mu.Unlock()
			unlock()
			return 0, true
		}
		s.forget(v)
		s.mu.Unlock()
		err = s.toTrash(s.blobPath(v.dgst, Cached))
		unlock()
		s.report(err)
		s.blobGone(v.dgst, v.size)
		return max(v.size, 0), true
	case *partial:
		if young > 0 && time.Since(v.used) < young {
			s.mu.Unlock()
			return 0, false
		}
		s.unkeep(v)
		s.mu.Unlock()
		unlock := s.places.Lock(digest.Digest(v.id.Digest()))
		defer unlock()
		s.mu.Lock()
		if s.parts[v.id] != v || v.open != nil {
			s.mu.Unlock()
			return 0, true
		}
		delete(s.parts, v.id)
		s.mu.Unlock()
		s.report(s.trashPartial(v.id))
		return v.bytes, true
	}
	panic("content: unknown thing to evict")
}

// space returns the free bytes that we may use, and the size of the file system.
func (s *Store) space() (free, total int64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(s.cfg.Root, &st); err != nil {
		return 0, 0, fmt.Errorf("free space of %s: %w", s.cfg.Root, err)
	}
	return int64(st.Bavail) * st.Bsize, int64(st.Blocks) * st.Bsize, nil
}

// inMemory reports whether a directory is on a tmpfs.
func inMemory(dir string) bool {
	var st unix.Statfs_t
	return unix.Statfs(dir, &st) == nil && st.Type == unix.TMPFS_MAGIC
}

// allocated returns the bytes that a file takes on disk.
func allocated(p string) int64 {
	var st unix.Stat_t
	if unix.Stat(p, &st) != nil {
		return 0
	}
	return st.Blocks * 512
}

// MakeRoom evicts what may be evicted until need bytes are free that were not, or
// nothing is left, and returns how many bytes it freed. It is for a caller that
// writes to the same file system and finds it full.
func (s *Store) MakeRoom(ctx context.Context, need int64) (freed int64) {
	return s.makeRoom(ctx, need)
}
