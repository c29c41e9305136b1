package origind

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/content"
	"github.com/capelin-io/capelin/control/origin"
	"github.com/capelin-io/capelin/control/tracker"
	"github.com/capelin-io/capelin/control/trackerpb"
	"github.com/capelin-io/capelin/internal/seeding"
	"github.com/capelin-io/capelin/swarm"
	"github.com/capelin-io/capelin/swarm/piece"
)

// Bounds of the seeder.
const (
	maxAsked   = 1024 // blobs that trackers have asked for, and that are looked for
	maxPreheat = 8    // blobs that are fetched at once because a tracker said so
)

// seeder is the origin's part in the swarm: it announces what is here, opens it for
// peers who want it, and begins to read from a backend what they or trackers ask
// for. But for arriving and run, its methods do not block.
type seeder struct {
	*seeding.Seeder
	s        *server
	store    seeding.Store // set before run, as are those that follow
	node     *swarm.Node
	trackers *tracker.Client // nil: none

	preheat chan struct{} // holds a token per blob

	mu    sync.Mutex
	asked map[piece.ID]bool // by trackers, being looked for
	up    atomic.Bool
}

func newSeeder(s *server) *seeder {
	sd := &seeder{s: s, preheat: make(chan struct{}, maxPreheat), asked: map[piece.ID]bool{}}
	sd.Seeder = seeding.New(seeding.Config{
		Store:    &sd.store,
		Announce: func(ctx context.Context, id piece.ID, _ int) { sd.check(ctx, id) },
		Gone: func(id piece.ID) {
			if sd.trackers != nil {
				sd.trackers.Announce(id, tracker.StateGone)
			}
		},
		Find: sd.find,
		Busy: func(id piece.ID) bool { return sd.s.cold.wanted(id, 0) },
	})
	return sd
}

// complete announces a whole, visible blob, with the hash of its sums if it is
// known.
func (sd *seeder) complete(id piece.ID, hash *[32]byte) {
	if sd.trackers != nil {
		sd.trackers.AnnounceComplete(id, hash)
	}
	if sd.node != nil {
		sd.node.Proven(id) // if it is joined
	}
}

// gone says that a blob is not here any more.
func (sd *seeder) gone(id piece.ID) {
	sd.Gone(id)
	if sd.node != nil {
		sd.node.Leave(id)
	}
}

// arriving offers a blob that is being read from a backend.
func (sd *seeder) arriving(ctx context.Context, id piece.ID) {
	if sd.node == nil {
		return
	}
	if err := sd.node.Join(ctx, id, swarm.JoinOptions{}); err != nil {
		log.G(ctx).WithError(err).WithField("digest", id.Digest()).Warn("cannot offer a blob to peers")
		return
	}
	if sd.trackers != nil {
		sd.trackers.Announce(id, tracker.StatePartial)
	}
}

// find reports whether a blob that a peer wants is here; if not, it begins to get it.
func (sd *seeder) find(ctx context.Context, id piece.ID) (bool, error) {
	_, _, ok, err := sd.s.local(digest.Digest(id.Digest()))
	if err == nil && !ok {
		err = sd.begin(ctx, id)
	}
	if err != nil && !errdefs.IsNotFound(err) && ctx.Err() == nil {
		log.G(ctx).WithError(err).WithField("digest", id.Digest()).Debug("cannot get a blob that a peer wants")
	}
	return err == nil && ok, nil
}

// Lookup implements tracker.Handler: a tracker asks whether the blob can be had
// here.
func (sd *seeder) Lookup(id piece.ID) {
	ok := sd.ask(id, func(ctx context.Context) {
		if err := sd.begin(ctx, id); err != nil {
			sd.trackers.NotHere(id)
		}
	})
	if !ok {
		sd.trackers.NotHere(id)
	}
}

// ask runs f for a blob, unless that is under way, or too much is.
func (sd *seeder) ask(id piece.ID, f func(ctx context.Context)) bool {
	sd.mu.Lock()
	defer sd.mu.Unlock()
	if sd.asked[id] {
		return true
	}
	if len(sd.asked) >= maxAsked {
		return false
	}
	sd.asked[id] = true
	sd.s.spawn(func(ctx context.Context) {
		f(ctx)
		sd.mu.Lock()
		delete(sd.asked, id)
		sd.mu.Unlock()
	})
	return true
}

// begin says that the origin will deliver a blob, whole or from a backend from now
// on, or returns an error.
func (sd *seeder) begin(ctx context.Context, id piece.ID) error {
	d := digest.Digest(id.Digest())
	is, _, ok, err := sd.s.local(d)
	switch {
	case err != nil:
		return err
	case ok && is != id:
		return fmt.Errorf("%s has %d bytes: %w", id, is.Size, errdefs.ErrNotFound)
	case ok:
		sd.announce(ctx, id)
		return nil
	case sd.s.cold.wanted(id, swarmInterest):
		sd.partial(id)
		return nil
	}
	at, err := sd.s.finder.find(ctx, origin.Ref{Digest: d})
	if err != nil {
		return err
	}
	if at.id != id {
		return fmt.Errorf("%s has %d bytes in backend %s: %w", id, at.id.Size, at.name, errdefs.ErrNotFound)
	}
	if err := sd.s.cold.want(at, swarmInterest); err != nil {
		return err
	}
	sd.partial(id)
	return nil
}

// partial answers a tracker at once; the blob itself is opened meanwhile.
func (sd *seeder) partial(id piece.ID) {
	if sd.trackers != nil {
		sd.s.cold.promise(id, func() { sd.trackers.Announce(id, tracker.StatePartial) })
	}
}

// announce announces a whole blob with what is known of its sums.
func (sd *seeder) announce(ctx context.Context, id piece.ID) {
	sd.complete(id, sd.store.SumsHash(ctx, id))
}

// arrived says what becomes of a blob that has been read from a backend: as long
// as peers are taking of it, it stays open for them.
func (sd *seeder) arrived(id piece.ID) {
	if sd.node == nil {
		return
	}
	if !sd.Taken(id) {
		sd.node.Leave(id)
		return
	}
	sd.Keep(id)
}

// PiecesAdded, BlobAdded and BlobGone make the seeder the store's observer.
func (sd *seeder) PiecesAdded(id piece.ID, from, to int, states []byte) {
	if sd.up.Load() {
		sd.node.Appended(id, from, to, states)
	}
}

func (sd *seeder) BlobAdded(id piece.ID) { sd.Added(id) }

func (sd *seeder) BlobGone(id piece.ID) {
	if sd.up.Load() {
		sd.gone(id)
	}
}

// check puts right what a crash may have left of a whole blob, queues it if it is
// still to be written to a backend, and announces it. A blob without a record was
// never acknowledged: it becomes evictable, and stays out of sight.
func (sd *seeder) check(ctx context.Context, id piece.ID) {
	d := digest.Digest(id.Digest())
	unlock := sd.s.records.lock(d) // a push has both, once it lets go
	defer unlock()
	r, err := sd.s.records.get(d)
	if err != nil {
		log.G(ctx).WithError(err).Error("a blob cannot be served")
		return // and stays pinned, if it is
	}
	switch p := sd.s.store.Presence(id); {
	case p < content.Cached:
		return
	case r == nil:
		sd.s.unpin(ctx, d)
		return
	case r.Size != id.Size:
		return
	case r.pinned() && p == content.Cached:
		if _, err := sd.s.store.Info(ctx, d); err != nil { // which pins it
			log.G(ctx).WithError(err).WithField("digest", d).Error("cannot pin a blob")
		}
	case !r.pinned() && p == content.Committed:
		sd.s.unpin(ctx, d)
	}
	if r.pending() {
		sd.s.queue.remember(d)
	}
	sd.announce(ctx, id)
}

// Peers, PeersGone, Share, SumsHash and Verdict implement tracker.Handler. An origin wants
// nothing from the swarm, so it is told none of it.
func (sd *seeder) Peers(piece.ID, []tracker.Peer)    {}
func (sd *seeder) PeersGone(piece.ID, []string)      {}
func (sd *seeder) Share(piece.ID, uint16)            {}
func (sd *seeder) SumsHash(piece.ID, [32]byte)       {}
func (sd *seeder) Verdict(piece.ID, tracker.Verdict) {}

// Command does what a tracker asks for: Preheat reads blobs from their backends,
// Report tells what is here. Drop is for nodes: an origin's cache empties itself.
func (sd *seeder) Command(cmd *trackerpb.Command) {
	r := &trackerpb.CommandResult{Id: cmd.GetId()}
	switch k := cmd.GetKind().(type) {
	case *trackerpb.Command_Preheat:
		r.Supported = true
		sd.s.spawn(func(ctx context.Context) {
			sd.warm(ctx, k.Preheat.GetBlobs(), r)
			sd.trackers.Result(r)
		})
		return
	case *trackerpb.Command_Report:
		r.Supported = true
		for _, b := range k.Report.GetBlobs() {
			id, err := b.ID()
			if err != nil {
				continue
			}
			st := trackerpb.State_STATE_GONE
			switch p := sd.s.store.Presence(id); {
			case p >= content.Cached:
				st = trackerpb.State_STATE_COMPLETE
			case p == content.Partial:
				st = trackerpb.State_STATE_PARTIAL
			}
			r.Blobs = append(r.Blobs, &trackerpb.Announce{Blob: b, State: st})
		}
	}
	sd.trackers.Result(r)
}

// warm has blobs here before anybody wants them.
func (sd *seeder) warm(ctx context.Context, blobs []*trackerpb.Blob, r *trackerpb.CommandResult) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, b := range blobs {
		id, err := b.ID()
		if err != nil {
			continue
		}
		select {
		case sd.preheat <- struct{}{}:
		case <-ctx.Done():
		}
		if ctx.Err() != nil {
			break
		}
		wg.Go(func() {
			err := sd.bring(ctx, id)
			<-sd.preheat
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				r.Bytes += id.Size
				return
			}
			r.Error = err.Error()
			if len(r.Blobs) < trackerpb.MaxBatch/2 {
				r.Blobs = append(r.Blobs, &trackerpb.Announce{Blob: b, State: trackerpb.State_STATE_GONE})
			}
		})
	}
	wg.Wait()
	if err := ctx.Err(); err != nil {
		r.Error = err.Error()
	}
}

// bring reads a blob from its backend, unless it is here.
func (sd *seeder) bring(ctx context.Context, id piece.ID) error {
	at, err := sd.s.locate(ctx, origin.Ref{Digest: digest.Digest(id.Digest())})
	if err != nil {
		return err
	}
	if at.id != id {
		return fmt.Errorf("%s has %d bytes: %w", id, at.id.Size, errdefs.ErrNotFound)
	}
	if at.place == nil {
		return nil
	}
	c, release, err := sd.s.cold.join(ctx, *at.place)
	if err != nil {
		return err
	}
	defer release()
	select {
	case <-c.done:
		return c.err
	case <-ctx.Done():
		return ctx.Err()
	}
}
