package origind

import (
	"context"
	"errors"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/content"
	"github.com/capelin-io/capelin/swarm/piece"
)

// scrub reads what is pinned again and again, from the disk itself, and sees to it that others know which pieces are wrong.
//
// It goes through all pinned blobs in an order of chance, and then begins anew. So it needs no place that survives a
// restart: each blob comes once in a pass, and is as likely as any other to come soon after a start.
type scrub struct {
	store   blobDisks
	pace    *pace // nil: it does not run
	lost    func(id piece.ID, i int)
	bad     func(d digest.Digest, pieces []int)
	metrics *metrics
	pause   time.Duration // between passes, and before the first
}

// scrubPause is a pause for the disk when little is pinned.
const scrubPause = 10 * time.Second

// newScrub returns a scrub of so many bytes per second; 0: it only tells what others find. lost is told of each
// piece that is wrong, bad of all those of a blob: neither may block. bad is told anew at the start and after each
// pass of those that nobody has healed.
func newScrub(
	store blobDisks, perSecond int64, lost func(piece.ID, int), bad func(digest.Digest, []int), m *metrics,
) *scrub {
	s := &scrub{store: store, lost: lost, bad: bad, metrics: m, pause: scrubPause}
	if perSecond > 0 {
		s.pace = newPace(perSecond)
	}
	return s
}

// found is content.Config.Wrong: somebody has found a piece of a pinned blob wrong.
func (s *scrub) found(id piece.ID, i int) {
	s.metrics.scrubBad.Inc()
	s.lost(id, i)
	s.bad(digest.Digest(id.Digest()), s.store.WrongOf(id))
}

// run scrubs until ctx ends.
func (s *scrub) run(ctx context.Context) {
	for {
		for id, pieces := range s.store.Wrong() {
			s.bad(digest.Digest(id.Digest()), pieces)
		}
		select {
		case <-time.After(s.pause):
		case <-ctx.Done():
			return
		}
		if s.pace == nil {
			<-ctx.Done()
			return
		}
		s.store.Blobs(func(id piece.ID, p content.Presence) bool { // in the order of a map
			if p == content.Pinned {
				if err := s.blob(ctx, id); err != nil && ctx.Err() == nil {
					log.G(ctx).WithError(err).WithField("digest", id.Digest()).Error("what is kept here was found wrong")
				}
			}
			return ctx.Err() == nil
		})
	}
}

// blob reads one blob. It returns what is wrong with it.
func (s *scrub) blob(ctx context.Context, id piece.ID) error {
	b, err := s.store.Blob(ctx, id, false)
	if errdefs.IsNotFound(err) || errors.Is(err, content.ErrQuarantined) {
		return nil // since we have asked
	}
	if err != nil {
		return err
	}
	defer b.Close()
	if _, proven := b.Sums(); !proven {
		if err := b.ComputeSums(ctx); err != nil { // which verifies all of it, against the digest
			if errors.Is(err, piece.ErrMismatch) {
				s.metrics.scrubBad.Inc()
				s.bad(digest.Digest(id.Digest()), s.store.WrongOf(id))
			}
			return err
		}
	}
	sc, err := b.Scan()
	if err != nil {
		return err
	}
	defer sc.Close()
	var errs []error
	for i := range id.Pieces() {
		if s.store.Presence(id) != content.Pinned {
			return nil // it may be evicted now
		}
		n, err := sc.Check(i)
		if err != nil && len(errs) < 3 {
			errs = append(errs, err)
		}
		s.metrics.scrubBytes.Add(float64(n))
		if err := s.pace.wait(ctx, n); err != nil {
			return err
		}
	}
	return errors.Join(errs...)
}
