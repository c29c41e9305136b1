package origind

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/content"
	"github.com/capelin-io/capelin/control/origin"
	"github.com/capelin-io/capelin/swarm/piece"
)

// heal replaces pieces of a blob that are wrong here by those of the first member whose verify, and returns all
// pieces that are wrong still. A blob that is wrong as a whole, because its sums are lost, or that is not kept here, is taken anew.
func (c *copies) heal(ctx context.Context, d digest.Digest, size int64, pieces []int, from []string) (left []int) {
	id, err := piece.ParseID(string(d), size)
	if err != nil {
		return pieces
	}
	b, err := c.store.Blob(ctx, id, false)
	switch {
	case err == nil && b.Completed() && c.store.PresenceOf(d) == content.Pinned:
		err = errors.Join(c.healPieces(ctx, b, pieces, from), b.Close())
	case err == nil, errdefs.IsNotFound(err), errors.Is(err, content.ErrQuarantined):
		if err == nil {
			b.Close()
		}
		var release func()
		if release, err = c.take(ctx, d, size, from); err == nil {
			err = c.store.Pin(d)
			release()
		}
	}
	if left = c.wrong(d, size); len(left) == id.Pieces() && c.store.PresenceOf(d) < content.Cached {
		log.G(ctx).WithError(err).WithField("digest", d).Debug("no member could give what a disk had that has failed")
	} else if len(left) > 0 && ctx.Err() == nil {
		log.G(ctx).WithError(err).WithField("digest", d).WithField("pieces", len(left)).
			Error("pieces of a blob are wrong on this disk, and no member could heal them")
	}
	return left
}

// wrong returns the pieces of a blob that is to be kept here which are wrong: all, if it is not kept.
func (c *copies) wrong(d digest.Digest, size int64) []int {
	id, err := piece.ParseID(string(d), size)
	if err != nil {
		return nil
	}
	if c.store.PresenceOf(d) == content.Pinned {
		return c.store.WrongOf(id)
	}
	return numbered()[:id.Pieces():id.Pieces()]
}

// numbered are the numbers of a blob's pieces, of one with the most. They are the same for all blobs, of which there may be many that are
// wrong as a whole, and nobody changes them.
var numbered = sync.OnceValue(func() []int {
	all := make([]int, int(piece.MaxSize/piece.MaxLength))
	for i := range all {
		all[i] = i
	}
	return all
})

// healPieces heals what it can, and returns what went wrong with the rest.
func (c *copies) healPieces(ctx context.Context, b *content.Blob, pieces []int, from []string) error {
	sums, proven := b.Sums()
	if !proven {
		return fmt.Errorf("%s has no sums: %w", b.ID(), errdefs.ErrFailedPrecondition)
	}
	var errs []error
	silent := map[string]bool{} // members that are not asked again
	for _, i := range pieces {
		if i < 0 || i >= b.ID().Pieces() || b.Mend(i) == nil { // perhaps only a read went wrong
			continue
		}
		for _, name := range from {
			if silent[name] {
				continue
			}
			data, err := c.piece(ctx, b.ID(), i, name)
			if err != nil {
				silent[name] = true
			} else if err = b.Heal(piece.NewClaim(sums, i, data)); err == nil {
				log.G(ctx).WithField("digest", b.ID().Digest()).WithField("piece", i).WithField("member", name).
					Warn("healed a piece that was wrong on this disk")
				break
			}
			errs = append(errs, fmt.Errorf("member %s: %w", name, err))
			if ctx.Err() != nil {
				return ctx.Err()
			}
		}
	}
	return errors.Join(errs...)
}

// piece reads a piece from another member.
func (c *copies) piece(ctx context.Context, id piece.ID, i int, name string) ([]byte, error) {
	m, err := c.member(name)
	if err != nil {
		return nil, err
	}
	data := make([]byte, id.PieceSize(i))
	r, info, err := m.Open(ctx, origin.Ref{Digest: digest.Digest(id.Digest())}, id.Offset(i), int64(len(data)))
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if info.Size != id.Size {
		return nil, fmt.Errorf("its blob has %d bytes: %w", info.Size, piece.ErrMismatch)
	}
	if err := c.pace.wait(ctx, len(data)); err != nil {
		return nil, err
	}
	n, err := io.ReadFull(r, data)
	c.metrics.repaired(n)
	return data, err
}

// recheck looks which of the pieces that a part of a blob is in are wrong, after a reader of it was not content: who
// heals is told.
func recheck(b *content.Blob, off, n int64) {
	id := b.ID()
	for i := int(off / id.Length()); i < id.Pieces() && id.Offset(i) < off+n; i++ {
		_ = b.Recheck(i) // the store tells whom it concerns
	}
}
