package plugin

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/capelin-io/capelin/content"
	"github.com/capelin-io/capelin/internal/seeding"
	"github.com/capelin-io/capelin/swarm/piece"
)

// announcer is the trackers, for what is complete.
type announcer interface {
	Complete(id piece.ID, sumsHash *[32]byte)
	Gone(id piece.ID)
}

// seeder offers whole blobs: it announces them to the trackers, and opens them
// for the swarm when a peer first wants them. Its methods do not block.
type seeder struct {
	disk    *disk
	fetches *fetches
	wake    chan struct{}
	open    *seeding.Set // whole blobs, for the swarm

	mu       sync.Mutex
	peers    peers
	announce announcer
	ready    bool       // peers and announce are set, and everything was announced once
	added    []piece.ID // to be announced
	wanted   []piece.ID // by peers, to be joined
	asked    map[piece.ID]bool
}

// maxHashed is how many blobs that came at once are announced with the hash of
// their sums, for which these are read. More come only when their sizes were
// learned after the start, and a tracker knows those hashes from others.
const maxHashed = 256

// maxWanted bounds what peers have asked for and is not opened yet.
const maxWanted = 1024

func newSeeder(d *disk, fs *fetches) *seeder {
	s := &seeder{disk: d, fetches: fs, wake: make(chan struct{}, 1), asked: map[piece.ID]bool{}}
	s.open = seeding.New(s.takes, s.leave)
	return s
}

func (s *seeder) kick() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// blobAdded tells that a blob is complete.
func (s *seeder) blobAdded(id piece.ID) {
	s.mu.Lock()
	if s.ready { // otherwise it is found when everything is announced
		s.added = append(s.added, id)
	}
	s.mu.Unlock()
	s.kick()
}

// blobGone tells that a blob is not here any more.
func (s *seeder) blobGone(id piece.ID) {
	s.mu.Lock()
	announce, peers := s.announce, s.peers
	s.mu.Unlock()
	if announce != nil {
		announce.Gone(id)
	}
	if s.open.Remove(id) && peers != nil {
		peers.Leave(id)
	}
}

// blobWanted tells that a peer wants a blob that is not joined.
func (s *seeder) blobWanted(id piece.ID) {
	if !s.disk.Whole(id) {
		return
	}
	s.mu.Lock()
	if !s.asked[id] && len(s.wanted) < maxWanted {
		s.asked[id] = true
		s.wanted = append(s.wanted, id)
	}
	s.mu.Unlock()
	s.kick()
}

// run announces everything there is, and then what comes, until ctx is done.
func (s *seeder) run(ctx context.Context, p peers, a announcer) {
	s.mu.Lock()
	s.peers, s.announce, s.ready = p, a, true
	s.mu.Unlock()
	if a != nil {
		// The client batches; sums that are not stored are computed when somebody
		// wants the blob.
		s.disk.Blobs(func(id piece.ID, _ content.Presence) bool {
			a.Complete(id, nil)
			return ctx.Err() == nil
		})
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	tick := time.NewTicker(seeding.IdleAfter)
	defer tick.Stop()
	for {
		s.mu.Lock()
		added, wanted := s.added, s.wanted
		s.added, s.wanted = nil, nil
		s.mu.Unlock()
		for _, id := range added {
			s.tell(ctx, id, a, len(added) <= maxHashed)
		}
		for _, id := range wanted {
			wg.Go(func() { s.join(ctx, id, p) }) // at most maxWanted, and computing sums is bounded
		}
		select {
		case <-s.wake:
		case <-tick.C:
			s.open.LeaveIdle()
		case <-ctx.Done():
			return
		}
	}
}

// takes reports whether a peer takes something of a blob, or may yet.
func (s *seeder) takes(id piece.ID) bool {
	p := s.swarm()
	if p == nil {
		return false
	}
	st, _ := p.Status(id)
	return st.Useful > 0
}

// leave leaves a whole blob; a peer that wants it will have it opened again.
func (s *seeder) leave(id piece.ID) {
	if p := s.swarm(); p != nil && s.fetches.lookup(id) == nil {
		p.Leave(id)
	}
}

// swarm returns the swarm, or nil before run.
func (s *seeder) swarm() peers {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.peers
}

// tell announces a blob, with the hash of its sums if they are to be read.
func (s *seeder) tell(ctx context.Context, id piece.ID, a announcer, read bool) {
	if a == nil {
		return
	}
	if !read {
		a.Complete(id, nil)
		return
	}
	hash, err := s.disk.sumsHash(ctx, id)
	if err != nil {
		if !errdefs.IsNotFound(err) && ctx.Err() == nil {
			log.G(ctx).WithError(err).WithField("digest", id.Digest()).Warn("cannot read a blob's sums")
		}
		return
	}
	a.Complete(id, hash)
}

// join opens a whole blob for the swarm.
func (s *seeder) join(ctx context.Context, id piece.ID, p peers) {
	defer func() {
		s.mu.Lock()
		delete(s.asked, id)
		s.mu.Unlock()
	}()
	if err := p.Join(ctx, id, joinAs{}, func(error) {}); err != nil {
		if ctx.Err() == nil && !errors.Is(err, errdefs.ErrNotFound) {
			log.G(ctx).WithError(err).WithField("digest", id.Digest()).Warn("cannot offer a blob to peers")
		}
		return
	}
	s.open.Add(id)
}
