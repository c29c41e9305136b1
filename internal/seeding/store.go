package seeding

import (
	"context"
	"iter"

	"github.com/containerd/log"

	"github.com/capelin-io/capelin/content"
	"github.com/capelin-io/capelin/swarm"
	"github.com/capelin-io/capelin/swarm/piece"
)

// Store is a content.Store as a swarm.Node and a [Seeder] need it.
type Store struct{ *content.Store }

// Open implements swarm.Store. Who opens closes a whole blob when the Seeder asks for it.
func (s Store) Open(ctx context.Context, id piece.ID, create bool) (swarm.Blob, error) {
	b, err := s.Lend(ctx, id, create)
	if err != nil {
		return nil, err // not a nil *content.Blob
	}
	return b, nil
}

// Whole returns the blobs that are whole.
func (s Store) Whole() iter.Seq[piece.ID] {
	return func(yield func(piece.ID) bool) {
		s.Blobs(func(id piece.ID, _ content.Presence) bool { return yield(id) })
	}
}

// Here reports whether a blob is whole.
func (s Store) Here(id piece.ID) bool { return s.Presence(id) >= content.Cached }

// SumsHash returns the hash of a blob's proven sums if they are stored, and nil otherwise.
func (s Store) SumsHash(ctx context.Context, id piece.ID) *[32]byte {
	sums, err := s.StoredSums(id) // not Blob: asking is not using
	if err != nil && ctx.Err() == nil {
		log.G(ctx).WithError(err).WithField("digest", id.Digest()).Warn("cannot read a blob's sums")
	}
	if sums == nil || err != nil {
		return nil
	}
	h := sums.Hash()
	return &h
}
