package seeding

import (
	"context"
	"iter"

	"github.com/containerd/log"

	"github.com/capelin-io/capelin/content"
	"github.com/capelin-io/capelin/swarm"
	"github.com/capelin-io/capelin/swarm/piece"
)

// Blobs are a content.Store, or several.
type Blobs interface {
	Lend(ctx context.Context, id piece.ID, create bool) (*content.Blob, error)
	Blobs(fn func(id piece.ID, p content.Presence) bool)
	Presence(id piece.ID) content.Presence
	StoredSums(id piece.ID) (*piece.Sums, error)
}

// Store is Blobs as a swarm.Node and a [Seeder] need them.
type Store struct{ Blobs }

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
		s.Blobs.Blobs(func(id piece.ID, _ content.Presence) bool { return yield(id) })
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
