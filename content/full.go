package content

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"
)

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
	kept := st.s.evictableBytes()
	if free+kept < need && st.s.cfg.CloseIdle != nil {
		st.s.cfg.CloseIdle(context.Background(), need-free-kept)
		kept = st.s.evictableBytes()
	}
	if free+kept < need {
		return fmt.Errorf("storing %s: %w", st.dgst, st.noSpace(unix.ENOSPC))
	}
	return nil
}
