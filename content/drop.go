package content

import (
	"fmt"

	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/swarm/piece"
)

// DropCached forgets a whole blob that containerd does not hold, and has Run give
// its space back. Those who have it open keep their file. What containerd holds, and
// what is not here or not whole, is left alone without an error; for an unfinished
// blob there is [Blob.Drop].
func (s *Store) DropCached(id piece.ID) error {
	d := digest.Digest(id.Digest())
	if _, err := s.learn(d); err != nil {
		return fmt.Errorf("dropping %s: %w", id, err)
	}
	unlock := s.places.Lock(d)
	s.mu.Lock()
	e := s.index[d]
	if e == nil || e.place != Cached || e.bad || e.size != id.Size {
		s.mu.Unlock()
		unlock()
		return nil
	}
	s.forget(e)
	s.mu.Unlock()
	s.files.remove(d)
	err := s.toTrash(s.blobPath(d, Cached))
	unlock()
	s.blobGone(d, id.Size)
	if err != nil {
		return fmt.Errorf("dropping %s: %w", id, err)
	}
	return nil
}
