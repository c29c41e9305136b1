package origind

import (
	"context"

	"github.com/containerd/log"
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/control/tracker"
	"github.com/capelin-io/capelin/control/trackerpb"
	"github.com/capelin-io/capelin/internal/seeding"
	"github.com/capelin-io/capelin/swarm"
	"github.com/capelin-io/capelin/swarm/piece"
)

// seeder is the origin's part in the swarm: it announces what is here and opens it for
// peers who want it. It is the store's observer, and offers what is being read from
// backends. But for arriving and Run, its methods do not block.
type seeder struct {
	*seeding.Seeder
	blobs    *holdings
	node     swarmNode
	trackers announcer
}

// swarmNode is a swarm.Node, for a seeder.
type swarmNode interface {
	Join(ctx context.Context, id piece.ID, o swarm.JoinOptions) error
	Leave(id piece.ID)
	Appended(id piece.ID, from, to int, states []byte)
	Proven(id piece.ID)
	Lost(id piece.ID, i int)
}

// announcer is a client of the trackers, for a seeder.
type announcer interface {
	Announce(id piece.ID, state tracker.State)
	AnnounceComplete(id piece.ID, sumsHash *[32]byte)
}

// newSeeder returns a seeder that knows neither swarm nor trackers yet. wanted is
// seeding.Config.Find, busy its Busy.
func newSeeder(blobs *holdings, wanted func(context.Context, piece.ID) (bool, error), busy func(piece.ID) bool) *seeder {
	sd := &seeder{blobs: blobs, node: offline{}, trackers: offline{}}
	sd.Seeder = seeding.New(seeding.Config{
		Store:    blobs.seeds(),
		Announce: func(ctx context.Context, id piece.ID, _ int) { sd.check(ctx, id) },
		Gone:     func(id piece.ID) { sd.trackers.Announce(id, tracker.StateGone) },
		Find:     wanted,
		Busy:     busy,
	})
	return sd
}

// complete announces a whole, visible blob, with the hash of its sums if it is
// known. One that went meanwhile is gone: that may have been said before.
func (sd *seeder) complete(id piece.ID, hash *[32]byte) {
	sd.trackers.AnnounceComplete(id, hash)
	if !sd.blobs.seeds().Here(id) {
		sd.trackers.Announce(id, tracker.StateGone)
		return
	}
	sd.node.Proven(id) // if it is joined
}

// announce announces a whole blob with what is known of its sums.
func (sd *seeder) announce(ctx context.Context, id piece.ID) {
	sd.complete(id, sd.blobs.seeds().SumsHash(ctx, id))
}

// gone says that a blob is not here any more.
func (sd *seeder) gone(id piece.ID) {
	sd.Gone(id)
	sd.node.Leave(id)
}

// lost says that a piece of a whole blob is wrong, and is offered no more until it is healed.
func (sd *seeder) lost(id piece.ID, i int) { sd.node.Lost(id, i) }

// arriving offers a blob that is being read from a backend.
func (sd *seeder) arriving(ctx context.Context, id piece.ID) {
	if err := sd.node.Join(ctx, id, swarm.JoinOptions{}); err != nil {
		log.G(ctx).WithError(err).WithField("digest", id.Digest()).Warn("cannot offer a blob to peers")
		return
	}
	sd.partial(id)
}

// partial announces a blob that is being read.
func (sd *seeder) partial(id piece.ID) { sd.trackers.Announce(id, tracker.StatePartial) }

// arrived says what becomes of a blob that has been read from a backend: as long
// as peers are taking of it, it stays open for them.
func (sd *seeder) arrived(id piece.ID) {
	if !sd.Taken(id) {
		sd.node.Leave(id)
		return
	}
	sd.Keep(id)
}

// PiecesAdded, BlobAdded and BlobGone make the seeder the store's observer.
func (sd *seeder) PiecesAdded(id piece.ID, from, to int, states []byte) {
	sd.node.Appended(id, from, to, states)
}

// BlobAdded tells that a blob is whole.
func (sd *seeder) BlobAdded(id piece.ID) { sd.Added(id) }

// BlobGone tells that a blob is not here any more.
func (sd *seeder) BlobGone(id piece.ID) { sd.gone(id) }

// check announces a blob that is whole, unless it was removed.
func (sd *seeder) check(ctx context.Context, id piece.ID) {
	is, _, ok, err := sd.blobs.local(digest.Digest(id.Digest()))
	if err != nil {
		log.G(ctx).WithError(err).Error("a blob cannot be served")
	}
	if ok && is == id {
		sd.announce(ctx, id)
	}
}

// offline is a swarm and trackers where there are none, and an observer of a store that
// nobody observes.
type offline struct{}

func (offline) Join(context.Context, piece.ID, swarm.JoinOptions) error { return nil }
func (offline) Leave(piece.ID)                                          {}
func (offline) Appended(piece.ID, int, int, []byte)                     {}
func (offline) Proven(piece.ID)                                         {}
func (offline) Lost(piece.ID, int)                                      {}
func (offline) Announce(piece.ID, tracker.State)                        {}
func (offline) AnnounceComplete(piece.ID, *[32]byte)                    {}
func (offline) NotHere(piece.ID)                                        {}
func (offline) Result(*trackerpb.CommandResult)                         {}
func (offline) PiecesAdded(piece.ID, int, int, []byte)                  {}
func (offline) BlobAdded(piece.ID)                                      {}
func (offline) BlobGone(piece.ID)                                       {}
