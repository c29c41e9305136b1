package seeding

import (
	"context"
	"errors"
	"iter"
	"math"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/capelin-io/capelin/swarm"
	"github.com/capelin-io/capelin/swarm/piece"
)

// Bounds of a Seeder.
const (
	// IdleAfter is for how long, up to twice as much, a blob is open that nobody takes
	// anything of.
	IdleAfter = 20 * time.Second
	// MaxWanted bounds what peers have asked for and is not opened yet.
	MaxWanted = 1024
	// closeWithin is how long Unlend waits for the swarm to close blobs.
	closeWithin = time.Second
)

// Swarm is a swarm.Node as a Seeder needs it.
type Swarm interface {
	Join(ctx context.Context, id piece.ID, o swarm.JoinOptions) error
	Leave(id piece.ID)
	// LeaveNow is Leave that returns when the blob is closed.
	LeaveNow(ctx context.Context, id piece.ID)
	Status(id piece.ID) (swarm.BlobStatus, bool)
}

// Config is what a Seeder needs to know of its owner.
type Config struct {
	// Store is a [Store].
	Store interface {
		Whole() iter.Seq[piece.ID]
		// Here reports whether a blob is whole.
		Here(id piece.ID) bool
	}
	// Announce tells the trackers of a blob, if it is whole still. together is how many
	// became known at once, math.MaxInt at the start: less may be told of many than of a
	// few. It looks again when it has told of it, and takes it back if the blob went
	// meanwhile: its Gone may have come before.
	Announce func(ctx context.Context, id piece.ID, together int)
	// Gone tells the trackers that a blob is not here any more.
	Gone func(id piece.ID)
	// Find reports whether a blob that a peer wants is here, whole. It may begin to get
	// one that is not, whose part in the swarm is then not the Seeder's.
	Find func(ctx context.Context, id piece.ID) (bool, error)
	// Busy reports whether somebody else needs the blob's part in the swarm: until it is
	// not, the Seeder does not leave it.
	Busy func(id piece.ID) bool
}

// Seeder offers whole blobs to the swarm.
type Seeder struct {
	cfg  Config
	open *set // whole blobs, for the swarm
	// wakeAnnounce and wakeOpen are 1-buffered: added or wanted is not empty.
	wakeAnnounce, wakeOpen chan struct{}

	mu     sync.Mutex
	swarm  Swarm      // nil before Run
	added  []piece.ID // to be announced
	wanted []piece.ID // by peers, to be opened
	asked  map[piece.ID]bool
}

// New returns a Seeder that must be run. Before that, it notes what peers want.
func New(cfg Config) *Seeder {
	s := &Seeder{
		cfg: cfg, wakeAnnounce: make(chan struct{}, 1), wakeOpen: make(chan struct{}, 1), asked: map[piece.ID]bool{},
	}
	s.open = newSet(s.Taken, cfg.Busy, s.leave)
	return s
}

func kick(wake chan<- struct{}) {
	select {
	case wake <- struct{}{}:
	default:
	}
}

// node returns the swarm, or nil before Run.
func (s *Seeder) node() Swarm {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.swarm
}

// Added tells that a blob is whole.
func (s *Seeder) Added(id piece.ID) {
	s.mu.Lock()
	if s.swarm != nil { // otherwise it is among those that Run begins with
		s.added = append(s.added, id)
	}
	s.mu.Unlock()
	kick(s.wakeAnnounce)
}

// Gone tells that a blob is not here any more. It may come late: one that is here again
// is announced again.
func (s *Seeder) Gone(id piece.ID) {
	s.cfg.Gone(id)
	if s.cfg.Store.Here(id) {
		s.Added(id)
	}
	if n := s.node(); s.open.remove(id) && n != nil {
		n.Leave(id)
	}
}

// Wanted tells that a peer wants a blob that is not joined. One that is being looked for,
// or is too much at once, is not looked for again.
func (s *Seeder) Wanted(id piece.ID) {
	s.mu.Lock()
	if !s.asked[id] && len(s.asked) < MaxWanted {
		s.asked[id] = true
		s.wanted = append(s.wanted, id)
	}
	s.mu.Unlock()
	kick(s.wakeOpen)
}

// Keep counts a whole blob among the open ones that somebody else has joined, and does
// not need any longer.
func (s *Seeder) Keep(id piece.ID) { s.open.add(id) }

// Taken reports whether a peer takes something of a blob, or may yet.
func (s *Seeder) Taken(id piece.ID) bool {
	n := s.node()
	if n == nil {
		return false
	}
	st, _ := n.Status(id)
	return st.Useful > 0
}

// leave leaves a whole blob; a peer that wants it will have it opened again.
func (s *Seeder) leave(id piece.ID) {
	if n := s.node(); n != nil {
		n.Leave(id)
	}
}

// Unlend closes those of ids that are open, need bytes of them or all that there are: in
// their order, but those last that a peer takes something of. It is content.Config's.
func (s *Seeder) Unlend(ctx context.Context, ids []piece.ID, need int64) {
	n := s.node()
	if n == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, closeWithin)
	defer cancel()
	var taken []piece.ID
	shut := func(id piece.ID) {
		if need > 0 && ctx.Err() == nil && !s.cfg.Busy(id) && s.open.remove(id) {
			n.LeaveNow(ctx, id)
			need -= id.Size
		}
	}
	for _, id := range ids {
		if s.Taken(id) {
			taken = append(taken, id)
		} else {
			shut(id)
		}
	}
	for _, id := range taken {
		shut(id)
	}
}

// Run announces everything that there is, and then what comes, and opens what peers want,
// until ctx is done. Peers do not wait for announcements: at an origin each of these reads
// the disk, and may wait for whoever has the blob locked.
func (s *Seeder) Run(ctx context.Context, n Swarm) {
	s.mu.Lock()
	s.swarm = n
	s.mu.Unlock()
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { s.serve(ctx, n) })
	s.announce(ctx)
}

// announce announces what is whole, until ctx is done.
func (s *Seeder) announce(ctx context.Context) {
	for id := range s.cfg.Store.Whole() {
		if ctx.Err() != nil {
			return
		}
		s.cfg.Announce(ctx, id, math.MaxInt)
	}
	for {
		s.mu.Lock()
		added := s.added
		s.added = nil
		s.mu.Unlock()
		for _, id := range added {
			if ctx.Err() != nil {
				return
			}
			s.cfg.Announce(ctx, id, len(added))
		}
		select {
		case <-s.wakeAnnounce:
		case <-ctx.Done():
			return
		}
	}
}

// serve opens what peers want and leaves what they do not want any more, until ctx is done.
func (s *Seeder) serve(ctx context.Context, n Swarm) {
	var wg sync.WaitGroup
	defer wg.Wait()
	tick := time.NewTicker(IdleAfter)
	defer tick.Stop()
	for {
		s.mu.Lock()
		wanted := s.wanted
		s.wanted = nil
		s.mu.Unlock()
		for _, id := range wanted {
			wg.Go(func() { s.offer(ctx, id, n) }) // at most MaxWanted, and computing sums is bounded
		}
		select {
		case <-s.wakeOpen:
		case <-tick.C:
			s.open.leaveIdle()
		case <-ctx.Done():
			return
		}
	}
}

// offer opens a blob that a peer wants, if it is here.
func (s *Seeder) offer(ctx context.Context, id piece.ID, n Swarm) {
	defer func() {
		s.mu.Lock()
		delete(s.asked, id)
		s.mu.Unlock()
	}()
	whole, err := s.cfg.Find(ctx, id)
	if err == nil && whole {
		if err = n.Join(ctx, id, swarm.JoinOptions{}); err == nil {
			s.open.add(id)
		}
	}
	if err != nil && !errors.Is(err, errdefs.ErrNotFound) && ctx.Err() == nil {
		log.G(ctx).WithError(err).WithField("digest", id.Digest()).Warn("cannot offer a blob to peers")
	}
}

// Len returns how many blobs are open.
func (s *Seeder) Len() int { return s.open.len() }
