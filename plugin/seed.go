package plugin

import (
	"context"

	"github.com/capelin-io/capelin/internal/seeding"
	"github.com/capelin-io/capelin/swarm/piece"
)

// announcer is the trackers, for what is complete.
type announcer interface {
	Complete(id piece.ID, sumsHash *[32]byte)
	Gone(id piece.ID)
}

// maxHashed is how many blobs that came at once are announced with the hash of
// their sums, for which these are read. More come at the start, and when their sizes
// were learned after it; a tracker knows those hashes from others.
const maxHashed = 256

// newSeeder returns the agent's seeder. busy reports whether a fetch needs a blob's part
// in the swarm; trackers returns nil if there are none (yet).
func newSeeder(d *disk, busy func(piece.ID) bool, trackers func() announcer) *seeding.Seeder {
	store := seeding.Store{Blobs: d.Store}
	return seeding.New(seeding.Config{
		Store: store, Busy: busy,
		Announce: func(ctx context.Context, id piece.ID, together int) {
			if t := trackers(); t != nil {
				announce(ctx, t, store, id, together)
			}
		},
		Gone: func(id piece.ID) {
			if t := trackers(); t != nil {
				t.Gone(id)
			}
		},
		Find: func(_ context.Context, id piece.ID) (bool, error) { return d.Whole(id), nil },
	})
}

// announce is seeding.Config.Announce.
func announce(ctx context.Context, t announcer, store seeding.Store, id piece.ID, together int) {
	var hash *[32]byte // sums that are not stored are computed when somebody wants the blob
	if together <= maxHashed {
		hash = store.SumsHash(ctx, id)
	}
	if !store.Here(id) {
		return
	}
	t.Complete(id, hash)
	if !store.Here(id) { // its Gone may have come before
		t.Gone(id)
	}
}
