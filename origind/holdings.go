package origind

import (
	"context"

	"github.com/containerd/log"
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/content"
	"github.com/capelin-io/capelin/control/origin"
	"github.com/capelin-io/capelin/internal/diskfull"
	"github.com/capelin-io/capelin/internal/seeding"
	"github.com/capelin-io/capelin/swarm/piece"
)

// holdings are the blobs that are here: their bytes and their records. A blob is visible
// if it has both, and pinned as long as its record says that it has to be.
type holdings struct {
	store   *content.Store
	records *records
}

// seeds are the blobs, for seeding.
func (h *holdings) seeds() seeding.Store { return seeding.Store{Store: h.store} }

// local returns the name of a blob that is whole and visible here, and its record.
// ok is false if it is not.
func (h *holdings) local(d digest.Digest) (id piece.ID, r *record, ok bool, err error) {
	if h.store.PresenceOf(d) < content.Cached {
		return id, nil, false, nil
	}
	r, err = h.records.get(d)
	if err != nil || r == nil {
		return id, nil, false, err
	}
	if id, err = piece.ParseID(string(d), r.Size); err != nil {
		return id, nil, false, err
	}
	return id, r, h.store.Presence(id) >= content.Cached, nil
}

// put is records.put that makes room if the disk is full.
func (h *holdings) put(ctx context.Context, r *record) error {
	return diskfull.Classed(h.store.WithRoom(ctx, 1<<20, func() error { return h.records.put(r) }))
}

// unpin lets a blob be evicted. Its digest is locked.
func (h *holdings) unpin(ctx context.Context, d digest.Digest) {
	if err := h.store.Unpin(ctx, d); err != nil {
		log.G(ctx).WithError(err).WithField("digest", d).Warn("cannot move a blob to the cache")
	}
}

// located is where a blob can be read now: here, or in a backend.
type located struct {
	id    piece.ID
	info  origin.Info
	place *place // nil: here
}

// locator says where blobs are.
type locator struct {
	blobs  *holdings
	cold   *coldReads
	finder *finder
}

// locate finds a blob, which is not the empty one.
func (l *locator) locate(ctx context.Context, ref origin.Ref) (located, error) {
	id, r, ok, err := l.blobs.local(ref.Digest)
	if err != nil {
		return located{}, err
	}
	if ok {
		return located{id: id, info: origin.Info{Size: id.Size, Durable: r.durable()}}, nil
	}
	// Before the finder: until the last byte was verified there is no record.
	at, ok := l.cold.find(ref.Digest)
	if !ok {
		if at, err = l.finder.find(ctx, ref); err != nil {
			return located{}, err
		}
	}
	return located{at.id, origin.Info{Size: at.id.Size, Durable: at.name != ""}, &at}, nil
}
