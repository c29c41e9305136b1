package origind

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/content"
	"github.com/capelin-io/capelin/control/origin"
	"github.com/capelin-io/capelin/internal/daemon/identity"
	"github.com/capelin-io/capelin/swarm/piece"
)

// server is a running origin.
type server struct {
	cfg      Config
	store    *content.Store
	blobs    *holdings
	homes    homes
	uploads  *uploads
	finder   *finder
	cold     *coldReads
	queue    *queue
	seeder   *seeder
	errands  *errands
	locator  *locator
	metrics  *metrics
	identity *identity.Source // nil: none
	tasks    *tasks
	// requests are those that the API answers.
	requests sync.WaitGroup
}

// tasks are what runs in the background.
type tasks struct {
	ctx context.Context // what runs ends with it
	wg  sync.WaitGroup  // for what runs, whoever ends it
}

// run runs f in the background, until it returns.
func (t *tasks) run(f func(ctx context.Context)) { t.wg.Go(func() { f(t.ctx) }) }

// startUpload begins a push to a namespace, unless it could not be stored. A member that
// leads an upload gives its id.
func (s *server) startUpload(id string, meta uploadMeta) (*upload, error) {
	if meta.Namespace == "" {
		return nil, fmt.Errorf("starting an upload: no namespace: %w", errdefs.ErrInvalidArgument)
	}
	if _, err := s.homes.of(meta.Namespace, ""); err != nil {
		return nil, fmt.Errorf("starting an upload: %w", err)
	}
	return s.uploads.begin(id, meta)
}

// kept reports whether a blob that was pushed is still here.
func (s *server) kept(d digest.Digest) error {
	if origin.IsEmpty(d) {
		return nil
	}
	r, err := s.blobs.records.get(d)
	if err == nil && r == nil {
		err = fmt.Errorf("%s was deleted meanwhile: %w", d, errdefs.ErrNotFound)
	}
	return err
}

// file opens the bytes of a blob that is here.
func (s *server) file(ctx context.Context, d digest.Digest, size int64) (*os.File, error) {
	id, err := piece.ParseID(string(d), size)
	if err != nil {
		return nil, err
	}
	b, err := s.openLocal(ctx, id)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	return b.Reopen()
}

// keep takes a verified upload into the store, pinned, with its record. Both are
// durable, and the blob is visible, when it returns nil.
func (s *server) keep(ctx context.Context, u *upload, d digest.Digest, sums *piece.Sums) error {
	h, err := s.homes.of(u.meta.Namespace, d)
	if err != nil {
		return err
	}
	unlock := s.blobs.records.lock(d)
	defer unlock()
	r, err := s.blobs.records.get(d)
	if err != nil && !errdefs.IsDataLoss(err) { // a damaged one is replaced
		return err
	}
	if r == nil {
		r = &record{Digest: d}
	}
	r.Size = sums.ID().Size
	r.add(h, u.meta.Namespace)
	// The bytes first: a record says that they are here.
	if err := s.store.Import(ctx, u.path(), sums); err != nil {
		return fmt.Errorf("upload %s: %w", u.id, err)
	}
	if err := s.blobs.put(ctx, r); err != nil {
		return fmt.Errorf("upload %s: %w", u.id, err)
	}
	s.finder.pushed(d)
	if r.pending() {
		s.queue.add(d)
	} else if !r.pinned() {
		s.blobs.unpin(ctx, d)
	}
	hash := sums.Hash()
	s.seeder.complete(sums.ID(), &hash)
	s.metrics.pushed(sums.ID().Size)
	log.G(ctx).WithFields(log.Fields{"digest": d, "size": r.Size, "namespace": u.meta.Namespace}).Debug("blob pushed")
	return nil
}

// settled waits until a blob that is committed is as durable as is promised.
func (s *server) settled(ctx context.Context, d digest.Digest) (origin.Info, error) {
	if origin.IsEmpty(d) {
		return origin.Info{Durable: true}, nil
	}
	r, err := s.blobs.records.get(d)
	if err == nil && r != nil && r.pending() && s.cfg.Durability == "backend" {
		if err = s.queue.wait(ctx, d); err == nil {
			r, err = s.blobs.records.get(d)
		}
	}
	if err != nil {
		return origin.Info{}, err
	}
	if r == nil {
		return origin.Info{}, fmt.Errorf("%s was deleted meanwhile: %w", d, errdefs.ErrNotFound)
	}
	return origin.Info{Size: r.Size, Durable: r.durable()}, nil
}

// stat returns what is known of a blob.
func (s *server) stat(ctx context.Context, ref origin.Ref) (origin.Info, error) {
	if origin.IsEmpty(ref.Digest) {
		return origin.Info{Durable: true}, nil
	}
	at, err := s.locator.locate(ctx, ref)
	return at.info, err
}

// errMoved: the blob was here, and is not any more; it is to be located again.
var errMoved = fmt.Errorf("it was evicted meanwhile: %w", errdefs.ErrUnavailable)

// openLocal opens a blob that was located here.
func (s *server) openLocal(ctx context.Context, id piece.ID) (*content.Blob, error) {
	b, err := s.store.Blob(ctx, id, false)
	switch {
	case errdefs.IsNotFound(err) || errors.Is(err, content.ErrQuarantined):
		return nil, errMoved
	case err != nil:
		return nil, err
	case !b.Completed():
		b.Close()
		return nil, errMoved
	}
	return b, nil
}

// delete removes a blob from a namespace; when none has it any more, or none is
// given, from its backends, from the record, and from sight. The digest is locked
// all the time, so that a push meanwhile is not taken for what is being removed.
func (s *server) delete(ctx context.Context, ref origin.Ref) error {
	d := ref.Digest
	if origin.IsEmpty(d) {
		return nil
	}
	unlock := s.blobs.records.lock(d)
	defer unlock()
	defer s.finder.forget(d)
	s.cold.stop(d)
	r, err := s.blobs.records.get(d)
	if err != nil {
		return err
	}
	var gone []home
	if r == nil {
		// Never here, or an earlier call has got so far.
		gone = s.homes.unrecorded(ref)
	} else {
		gone = r.remove(ref.Namespace)
	}
	for _, h := range gone {
		if err := s.homes.erasable(h, d); err != nil {
			return err
		}
	}
	// The record first: once it does not say that a backend has the blob, no push
	// will rely on that.
	if r != nil {
		if err := s.shrink(ctx, r); err != nil {
			return err
		}
	}
	var errs []error
	for _, h := range gone {
		errs = append(errs, s.homes.erase(ctx, h, d))
	}
	return errors.Join(errs...)
}

// shrink writes a record that lost homes; without any, it goes, and the blob too.
// The digest is locked.
func (s *server) shrink(ctx context.Context, r *record) error {
	if len(r.Homes) > 0 {
		if err := s.blobs.records.put(r); err != nil {
			return err
		}
	} else {
		if err := s.blobs.records.remove(r.Digest); err != nil {
			return err
		}
		if id, err := piece.ParseID(string(r.Digest), r.Size); err == nil {
			s.seeder.gone(id)
		}
	}
	if !r.pending() {
		s.queue.remove(r.Digest)
	}
	if !r.pinned() {
		s.blobs.unpin(ctx, r.Digest)
	}
	return nil
}
