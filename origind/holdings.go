package origind

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/content"
	"github.com/capelin-io/capelin/control/origin"
	"github.com/capelin-io/capelin/internal/seeding"
	"github.com/capelin-io/capelin/origind/record"
	"github.com/capelin-io/capelin/origind/ringstate"
	"github.com/capelin-io/capelin/swarm/piece"
)

// holdings are the blobs that are here: their bytes, and what is kept of them. A blob is visible if it is whole and was not
// removed.
type holdings struct {
	store  blobDisks
	ledger *ledger
}

// seeds are the blobs, for seeding.
func (h *holdings) seeds() seeding.Store { return seeding.Store{Blobs: h.store} }

// visible reports whether a blob of which e is kept may be read, if its bytes are here.
func visible(e *record.Entry) bool { return e == nil || len(e.Record.Removed) == 0 || e.Record.Live() }

// local returns the name of a blob that is whole and visible here, and what is kept of it, which may be nil.
// ok is false if it is not.
func (h *holdings) local(d digest.Digest) (id piece.ID, e *record.Entry, ok bool, err error) {
	id, p := h.store.Find(d)
	if p < content.Cached {
		return id, nil, false, nil
	}
	e, err = h.ledger.get(d)
	if err != nil || !visible(e) {
		return id, nil, false, err
	}
	return id, e, true, nil
}

// isDurable is origin.Info.Durable of a blob of which e is kept.
func isDurable(e *record.Entry) bool { return e != nil && (len(e.Found) > 0 || e.Record.Durable()) }

// located is where a blob can be read now: here, in a backend, or at another member.
type located struct {
	id     piece.ID
	info   origin.Info
	place  *place // nil: here, or
	member string // at this one; then nothing else is known
}

// locator says where blobs are.
type locator struct {
	blobs  *holdings
	cold   *coldReads
	finder *finder
	ring   ringLooks
	peers  *peers
}

// ringLooks says what members know of a blob: a member.
type ringLooks interface {
	serving() bool
	peers() []ringstate.Peer
	where(ctx context.Context, d digest.Digest, hop bool) (ringstate.ActFound, error)
	reader(ctx context.Context, d digest.Digest) (member string, err error)
}

// here finds a blob that can be read here without asking anybody. ok is false if it cannot.
func (l *locator) here(d digest.Digest) (at located, ok bool, err error) {
	if !l.ring.serving() {
		return at, false, nil
	}
	id, e, ok, err := l.blobs.local(d)
	if err != nil {
		return at, false, err
	}
	if ok {
		return located{id: id, info: origin.Info{Size: id.Size, Durable: isDurable(e)}}, true, nil
	}
	p, ok := l.cold.find(d)
	if !ok {
		return at, false, nil
	}
	return located{id: p.id, info: origin.Info{Size: p.id.Size, Durable: p.name != ""}, place: &p}, true, nil
}

// locate finds a blob, which is not the empty one. hop: another member, or somebody whom it has sent, asks, so that this one asks
// no other.
func (l *locator) locate(ctx context.Context, ref origin.Ref, hop bool) (located, error) {
	began := time.Now()
	for range 3 {
		at, ok, err := l.here(ref.Digest)
		if ok && hop && at.place != nil && at.place.name == "" { // who copies it from here might wait for itself
			return located{}, fmt.Errorf("%s is just being copied here from other members: %w", ref, errdefs.ErrUnavailable)
		}
		if ok || err != nil {
			return at, err
		}
		f, err := l.ring.where(ctx, ref.Digest, hop)
		if err != nil {
			return located{}, fmt.Errorf("looking for %s: %w", ref, err)
		}
		switch f.Where {
		case ringstate.Here: // since a moment
			continue
		case ringstate.Elsewhere:
			return located{member: f.Member}, nil
		case ringstate.Unavailable:
			return located{}, fmt.Errorf("%s: %s cannot say yet what was deleted lately: %w",
				ref, strings.Join(f.Missing, ", "), errdefs.ErrUnavailable)
		}
		return l.backend(ctx, ref, f, began)
	}
	return located{}, fmt.Errorf("%s comes and goes: %w", ref, errdefs.ErrUnavailable)
}

// backend looks for a blob that no member has. One of them reads it for all. What is remembered of backends is older than what members
// have just said, and so does not go together with it, unless there are no others.
func (l *locator) backend(ctx context.Context, ref origin.Ref, f ringstate.ActFound, began time.Time) (located, error) {
	if f.Member != "" {
		err := l.at(ctx, f.Member, ref)
		if err == nil {
			return located{member: f.Member}, nil
		}
		if errdefs.IsNotFound(err) {
			return located{}, missing(ref, f.Missing, err)
		}
		if !errdefs.IsUnavailable(err) {
			return located{}, err
		}
	}
	if len(l.ring.peers()) <= 1 {
		began = time.Time{}
	}
	p, err := l.finder.findSince(ctx, ref, began)
	if err != nil {
		return located{}, missing(ref, f.Missing, err)
	}
	return located{id: p.id, info: origin.Info{Size: p.id.Size, Durable: true}, place: &p}, nil
}

// at reports whether a member can read a blob.
func (l *locator) at(ctx context.Context, name string, ref origin.Ref) error {
	m, err := l.peers.get(name)
	if err == nil {
		_, err = m.Stat(ctx, ref)
	}
	return err
}

// missing is why a blob cannot be read: that it is nowhere is only said if nobody else can have it.
func missing(ref origin.Ref, members []string, err error) error {
	if !errdefs.IsNotFound(err) || len(members) == 0 {
		return err
	}
	return fmt.Errorf("%s is not here, and may be at %s, who cannot say: %w", ref, strings.Join(members, ", "), errdefs.ErrUnavailable)
}
