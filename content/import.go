package content

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/internal/durable"
	"github.com/capelin-io/capelin/internal/durable/disk"
	"github.com/capelin-io/capelin/swarm/piece"
)

// Import moves a file into blobs/ as the blob of sums, which the caller has made
// by hashing all of it, and keeps sums as proven. Only the last piece is hashed
// here, so that no other file's sums can pass for the blob's. The file must be on
// the store's file system, and nobody may write to it any more. When Import
// returns nil, the blob and its sums survive a power cut, and the file at path is
// gone; it is, too, if the blob was there already. Bytes that do not match are
// piece.ErrMismatch, and a full disk is [ErrNoSpace]; then the file is still there. If
// it cannot be synced it is removed, since a second sync would succeed without its bytes.
// ctx bounds what is evicted for room.
func (s *Store) Import(ctx context.Context, path string, sums *piece.Sums) error {
	id := sums.ID()
	if err := id.Validate(); err != nil {
		return fmt.Errorf("importing %s: %w", path, err)
	}
	var added bool
	err := s.checkImport(path, sums)
	if err == nil {
		err = s.withRoom(ctx, nil, 1<<20, func() (err error) { // for the sums
			added, err = s.importFile(path, sums)
			return err
		})
	}
	if isNoSpace(err) {
		err = fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	if err != nil {
		return fmt.Errorf("importing %s as %s: %w", path, id, err)
	}
	d := digest.Digest(id.Digest())
	if added {
		s.blobAdded(d, id.Size)
	}
	s.dropPartials(d)
	return nil
}

// checkImport verifies the file's size and the chain's last link, and syncs.
func (s *Store) checkImport(path string, sums *piece.Sums) error {
	id := sums.ID()
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if fi.Size() != id.Size || !sums.Complete() {
		return fmt.Errorf("%d bytes with %d of %d sums: %w", fi.Size(), sums.Len(), sums.MaxLen(), piece.ErrMismatch)
	}
	last := id.Pieces() - 1
	buf := make([]byte, id.PieceSize(last))
	if _, err := f.ReadAt(buf, id.Offset(last)); err != nil {
		return err
	}
	if err := sums.Verify(last, buf); err != nil {
		return err
	}
	if err := disk.Datasync(f); err != nil {
		return errors.Join(err, disk.Remove(path))
	}
	return nil
}

// importFile takes the durable steps of FORMAT.md section 3.6. It reports whether
// the blob is new.
func (s *Store) importFile(path string, sums *piece.Sums) (added bool, err error) {
	id := sums.ID()
	d := digest.Digest(id.Digest())
	unlock := s.places.Lock(d)
	defer unlock()
	s.mu.Lock()
	closed, e := s.closed, s.index[d]
	var place Presence
	var bad, known, has bool
	if e != nil {
		place, has = e.place, e.sums
		bad = e.bad || len(e.wrong) > 0 || e.size >= 0 && e.size != id.Size
		known = !bad
	}
	s.mu.Unlock()
	if closed {
		return false, fmt.Errorf("store: %w", ErrClosed)
	}
	if known {
		_, _, err := s.publishLocked(d)
		if err == nil && !has {
			if err = s.writeSums(sums); err == nil {
				s.mu.Lock()
				e.sums = true
				s.mu.Unlock()
			}
		}
		if err == nil {
			return false, disk.Remove(path)
		}
		if !errors.Is(err, ErrNotFound) {
			return false, err
		}
		bad = false // somebody has unlinked it behind our back
	}
	if bad && place == Cached {
		if err := s.toTrash(s.blobPath(d, Cached)); err != nil {
			return false, err
		}
	}
	if err := s.writeSums(sums); err != nil {
		return false, err
	}
	s.files.remove(d)
	to := s.blobPath(d, Committed)
	if err = s.dirs.Make(filepath.Dir(to)); err == nil {
		err = os.Chmod(path, 0o444)
	}
	if err == nil {
		err = disk.Rename(path, to)
	}
	if err != nil {
		return false, err
	}
	if err = s.syncDir(filepath.Dir(to)); err == nil && bad {
		err = durable.Remove(s.sumsPath(d) + ".bad")
	}
	if err != nil {
		return false, errors.Join(err, disk.Rename(to, path)) // so that it can be tried again
	}
	now := time.Now().UnixNano()
	s.mu.Lock()
	defer s.mu.Unlock()
	if old := s.index[d]; old != nil { // a wrong one, whose users keep the old file
		old.sums, old.bad, old.wrong = false, false, nil
		s.forget(old)
	}
	s.put(&entry{dgst: d, place: Committed, size: id.Size, sums: true, created: now, updated: now})
	return true, nil
}
