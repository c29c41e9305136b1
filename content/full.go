package content

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// roomLow, or a hundredth of the disk if that is less, is how little free space
	// makes a disk one that is about to be full.
	roomLow = 64 << 20
	// patience is for how long a full disk is waited for while others have partial blobs
	// open: a pull that failed a moment ago may have its other blobs open still.
	patience = 500 * time.Millisecond
	// endsWithin is for how long it is waited for what is being given up: that has to do
	// with the disk only, which may be slow, and with nobody who may never come.
	endsWithin = 5 * time.Second
	lookAgain  = 25 * time.Millisecond
)

// Space returns the free bytes that we may use, and the size of the file system, in bytes.
func (s *Store) Space() (free, total int64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(s.cfg.Root, &st); err != nil {
		return 0, 0, fmt.Errorf("free space of %s: %w", s.cfg.Root, err)
	}
	return int64(st.Bavail) * st.Bsize, int64(st.Blocks) * st.Bsize, nil
}

// short returns how many bytes are missing to a fraction of the file system that is to be
// free.
func (s *Store) short(floor float64) int64 {
	if floor <= 0 {
		return 0
	}
	free, total, err := s.Space()
	if err != nil {
		s.report(err)
		return 0
	}
	return max(0, int64(floor*float64(total))-free)
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

// WithRoom does what takes so much space, at most, of the same file system, and when that is
// full does it again and again: after evicting, and while others are about to give space up,
// for some seconds at most. It returns do's last error.
func (s *Store) WithRoom(ctx context.Context, need int64, do func() error) error {
	return s.withRoom(ctx, nil, need, do)
}

// makeRoom evicts until need bytes are unlinked, or nothing is left to evict,
// and returns how many it freed: 0 only if there is no more room than before. It is for
// a disk that is full now. No digest is locked.
func (s *Store) makeRoom(ctx context.Context, need int64) (freed int64) {
	before := s.unlinked.Load()
	freed = s.evict(ctx, need, forRoom)
	if freed == 0 && s.unlinked.Load() != before {
		freed = 1 // by somebody else
	}
	return freed
}

// withRoom is WithRoom for what st needs, which may be nil. It is do that finds out whether
// there is room: space comes back also when somebody closes a file. No digest is locked.
func (s *Store) withRoom(ctx context.Context, st *state, need int64, do func() error) error {
	err := do()
	if !isNoSpace(err) {
		return err
	}
	s.await(ctx, st, func() bool {
		for freed := int64(1); freed > 0 && isNoSpace(err); err = do() {
			freed = s.makeRoom(ctx, need)
		}
		return !isNoSpace(err)
	})
	return err
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
	free, _, _ := st.s.Space()
	return fmt.Errorf("%s: %d bytes to come, %d bytes free: %w: %w", st.s.partialPath(st.id, ".data"), st.missing(), free, ErrNoSpace, err)
}

// reserve allocates the blob's space if there is enough, so that the disk cannot
// be full in the middle and the data are in few extents. If there would be
// enough only after eviction, it leaves that to the writes, since a size is only
// a claim until the blob is proven. If not even then, it says so now. In memory
// nothing is allocated: tmpfs would clear all of it first, with the download waiting.
// Room is waited for until ctx is done.
func (st *state) reserve(ctx context.Context) error {
	s := st.s
	free, _, err := s.Space()
	if err != nil {
		return err
	}
	need := st.missing()
	if free >= need && !s.memory {
		err := unix.Fallocate(int(st.f.Fd()), 0, 0, st.id.Size)
		if err == nil || !isNoSpace(err) {
			return nil // a file system may not know how
		}
	}
	enough := func() bool {
		s.emptyTrash(ctx)
		free, _, err := s.Space()
		return err == nil && free+s.evictableBytes() >= need
	}
	if enough() {
		return nil
	}
	if s.cfg.GiveUp != nil {
		s.cfg.GiveUp(ctx)
	}
	if !s.await(ctx, st, enough) {
		return fmt.Errorf("storing %s: %w", st.dgst, st.noSpace(unix.ENOSPC))
	}
	return nil
}

// await waits until there is enough, or ctx is done: for a moment while partial blobs other
// than st's are open, as they may have no room either and be about to end, and for
// longer while something is being given up. st, which may be nil, waits for others once,
// not with each of its pieces.
func (s *Store) await(ctx context.Context, st *state, enough func() bool) bool {
	began := time.Now()
	end := began.Add(patience)
	if st != nil {
		st.mu.Lock()
		if st.full.IsZero() {
			st.full = end
		}
		end = st.full
		st.mu.Unlock()
	}
	for {
		open, ending := s.others(st) // before looking: what ends meanwhile has given its space back
		if enough() {
			break
		}
		now := time.Now()
		if ctx.Err() != nil || !(open && now.Before(end)) && !(ending && now.Before(began.Add(endsWithin))) {
			return false
		}
		select {
		case <-time.After(lookAgain):
		case <-ctx.Done():
		}
	}
	if st != nil {
		st.mu.Lock()
		st.full = time.Time{}
		st.mu.Unlock()
	}
	return true
}

// others reports whether partial blobs other than st's take space and are open, and whether
// some are being given up, or something is being unlinked.
func (s *Store) others(st *state) (open, ending bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ending = s.evicting > 0 || len(s.trash) > 0 || len(s.unlinking) > 0 || len(s.dropped) > 0
	for _, p := range s.parts {
		if p.open == nil || p.open == st {
			continue
		}
		open = true
		ending = ending || p.open.refs == 0 || p.open.whileWanted().Err() != nil
	}
	return open, ending
}

// GiveUp says that nobody waits for the blob any more: what waits for room for it
// fails now, so that it can be closed. Until it is opened again, that is so.
func (b *Blob) GiveUp() {
	b.st.mu.Lock()
	defer b.st.mu.Unlock()
	b.st.unwant()
}

// whileWanted returns a context that ends when nobody wants the blob any more.
func (st *state) whileWanted() context.Context {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.wanted
}

// want says that somebody wants the blob, again if nobody did.
func (st *state) want() {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.gone == nil && st.wanted.Err() != nil {
		st.wanted, st.unwant = context.WithCancel(context.Background())
	}
}

// end makes every use of the blob fail from now on. st.mu is held.
func (st *state) end(why error) {
	st.gone = why
	st.unwant()
	st.notify()
}
