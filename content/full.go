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
	// patience is for how long a full disk is waited for while others give up what they
	// had begun: a pull that failed a moment ago has its other blobs open still.
	patience  = 500 * time.Millisecond
	lookAgain = 25 * time.Millisecond
)

// space returns the free bytes that we may use, and the size of the file system.
func (s *Store) space() (free, total int64, err error) {
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
	free, total, err := s.space()
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

// withRoom does what needs so much space at most, and does it again if the disk was
// full and there is room then. No digest is locked.
func (s *Store) withRoom(ctx context.Context, need int64, do func() error) error {
	err := do()
	if isNoSpace(err) && s.makeRoom(ctx, need) > 0 {
		err = do()
	}
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
	free, _, _ := st.s.space()
	return fmt.Errorf("%s: %d bytes to come, %d bytes free: %w: %w", st.s.partialPath(st.id, ".data"), st.missing(), free, ErrNoSpace, err)
}

// reserve allocates the blob's space if there is enough, so that the disk cannot
// be full in the middle and the data are in few extents. If there would be
// enough only after eviction, it leaves that to the writes, since a size is only
// a claim until the blob is proven. If not even then, it says so now. In memory
// nothing is allocated: tmpfs would clear all of it first, with the download waiting.
func (st *state) reserve() error {
	s := st.s
	free, _, err := s.space()
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
		s.emptyTrash(context.Background())
		free, _, err := s.space()
		return err == nil && free+s.evictableBytes() >= need
	}
	if enough() {
		return nil
	}
	if s.cfg.GiveUp != nil {
		s.cfg.GiveUp(context.Background())
	}
	if !s.await(st, enough) {
		return fmt.Errorf("storing %s: %w", st.dgst, st.noSpace(unix.ENOSPC))
	}
	return nil
}

// await waits for a while until there is enough, as long as partial blobs other than st's
// are open: they may have no room either, and be about to end. st, which may be nil, waits
// once, not with each of its pieces, and not when nobody wants it any more.
func (s *Store) await(st *state, enough func() bool) bool {
	end := time.Now().Add(patience)
	if st != nil {
		st.mu.Lock()
		if st.full.IsZero() {
			st.full = end
		}
		end = st.full
		st.mu.Unlock()
	}
	for !enough() {
		if !s.othersOpen(st) || !time.Now().Before(end) || st != nil && st.isGone() {
			return false
		}
		time.Sleep(lookAgain)
	}
	if st != nil {
		st.mu.Lock()
		st.full = time.Time{}
		st.mu.Unlock()
	}
	return true
}

func (st *state) isGone() bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.gone != nil
}

// othersOpen reports whether partial blobs other than st's take space and are open, or
// something is being unlinked.
func (s *Store) othersOpen(st *state) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.trash) > 0 || len(s.unlinking) > 0 || len(s.dropped) > 0 {
		return true
	}
	for _, p := range s.parts {
		if p.open != nil && p.open != st {
			return true
		}
	}
	return false
}
