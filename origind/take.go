package origind

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/content"
	"github.com/capelin-io/capelin/control/origin"
	"github.com/capelin-io/capelin/internal/diskfull"
	"github.com/capelin-io/capelin/swarm/piece"
)

// copies fetches blobs from other members of the ring, through the cold-read engine: verified, resumed, offered
// to the swarm meanwhile.
type copies struct {
	store   blobDisks
	cold    *coldReads
	member  func(name string) (donor, error) // another member, or errdefs.ErrUnavailable
	pace    *pace                            // of all that comes from members
	metrics *metrics
}

// newCopies returns copies that fetch at most so many bytes per second, all together; 0: no bound.
func newCopies(store blobDisks, cold *coldReads, member func(name string) (donor, error), perSecond int64, m *metrics) *copies {
	return &copies{store: store, cold: cold, member: member, pace: newPace(perSecond), metrics: m}
}

// take has a blob here, from the members that are named, best first: whole, verified and durable, and not
// evicted before release is called. No record is made of it. If it is being read from a backend, that read is
// joined. errdefs.ErrResourceExhausted if the disk is full, ErrUnavailable if no source delivers,
// ErrNotFound if the blob is deleted meanwhile.
func (c *copies) take(ctx context.Context, d digest.Digest, size int64, sources []string) (release func(), err error) {
	if origin.IsEmpty(d) {
		return func() {}, nil
	}
	id, err := piece.ParseID(string(d), size)
	if err != nil {
		return nil, fmt.Errorf("taking %s: %w", d, err)
	}
	for {
		if release, err = c.whole(ctx, id); release != nil || err != nil {
			return release, err
		}
		r, joined := c.cold.take(id, newDonors(id, sources, c.member, c.pace, c.metrics.repaired))
		err = r.wait(ctx)
		if err == nil {
			return sync.OnceFunc(func() { c.cold.leave(r) }), nil
		}
		c.cold.leave(r)
		if ctx.Err() != nil || !joined || errors.Is(err, errDeleted) {
			return nil, takeError(err)
		}
	}
}

// whole opens a blob, if all of it is here, until release is called; nil if it is not.
func (c *copies) whole(ctx context.Context, id piece.ID) (release func(), err error) {
	b, err := c.store.Blob(ctx, id, false)
	switch {
	case errdefs.IsNotFound(err) || errors.Is(err, content.ErrQuarantined):
		return nil, nil
	case err != nil:
		return nil, takeError(err)
	case !b.Completed():
		return nil, b.Close()
	}
	return sync.OnceFunc(func() { b.Close() }), nil
}

// takeError gives what went wrong the class that the ring decides by.
func takeError(err error) error {
	err = diskfull.Classed(err)
	switch {
	case errdefs.IsResourceExhausted(err), errdefs.IsUnavailable(err), errors.Is(err, errDeleted), errors.Is(err, context.Canceled):
		return err
	}
	return fmt.Errorf("%w: %w", err, errdefs.ErrUnavailable)
}

// take begins to read a blob from members, or joins those for whom it is read from wherever; then joined is
// true. Whoever called it calls leave.
func (cs *coldReads) take(id piece.ID, from *donors) (c *coldRead, joined bool) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	if c = cs.m[id]; c == nil {
		c = cs.begin(&coldRead{place: place{id: id, backend: from, key: id.Digest()}, from: from, whole: cs.announce})
	} else {
		joined = c.from == nil
	}
	c.refs++
	return c, joined
}

// wait waits for the end of a read, and returns what it came to.
func (c *coldRead) wait(ctx context.Context) error {
	select {
	case <-c.done:
		return c.err
	case <-ctx.Done():
		return fmt.Errorf("waiting for %s: %w", c.id, ctx.Err())
	}
}
