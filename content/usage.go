package content

import (
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/swarm/piece"
)

// Usage counts what a Store holds.
type Usage struct {
	Committed  int   // blobs of containerd's
	Cached     int   // complete blobs that containerd does not hold
	Partial    int   // unfinished blobs
	CacheBytes int64 // of what may be evicted: cached and unfinished blobs that nobody has open but borrowers
}

// Usage returns the counts, from memory.
func (s *Store) Usage() Usage {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Usage{
		Committed:  s.committed,
		Cached:     len(s.index) - s.committed,
		Partial:    len(s.parts),
		CacheBytes: s.kept,
	}
}

// PresenceOf is Presence for a blob whose size is not known. It is Absent for
// one that is not complete.
func (s *Store) PresenceOf(d digest.Digest) Presence {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.index[d]; e != nil {
		return e.place
	}
	return Absent
}

// Find is PresenceOf with the blob's name, which needs its size. It is Absent for one whose file has vanished, or cannot
// be looked at.
func (s *Store) Find(d digest.Digest) (id piece.ID, p Presence) {
	if p = s.PresenceOf(d); p == Absent {
		return id, Absent
	}
	size, err := s.learn(d)
	id, ok := swarmID(d, size)
	if err != nil || !ok {
		return id, Absent
	}
	return id, s.Presence(id)
}

// Whole returns the blobs that are whole, with where they are, from memory: also those whose size nobody has asked for yet,
// which [Store.Blobs] leaves out.
func (s *Store) Whole() map[digest.Digest]Presence {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make(map[digest.Digest]Presence, len(s.index))
	for d, e := range s.index {
		all[d] = e.place
	}
	return all
}
