package origind

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/content"
	"github.com/capelin-io/capelin/control/origin"
	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/internal/daemon/identity"
	"github.com/capelin-io/capelin/internal/diskfull"
	"github.com/capelin-io/capelin/swarm/piece"
)

// server is a running origin.
type server struct {
	cfg      Config
	store    *content.Store
	records  *records
	uploads  *uploads
	backends Backends
	finder   *finder
	cold     *coldReads
	queue    *queue
	seeder   *seeder
	metrics  *metrics
	identity *identity.Source // nil: none

	// work is what background goroutines run under; wg waits for them.
	work context.Context
	wg   sync.WaitGroup
	// requests are those that the API answers.
	requests sync.WaitGroup
}

// spawn runs f in the background; its context ends with the server, which waits for
// it.
func (s *server) spawn(f func(ctx context.Context)) { s.wg.Go(func() { f(s.work) }) }

// local returns the name of a blob that is whole and visible here, and its record.
// ok is false if it is not.
func (s *server) local(d digest.Digest) (id piece.ID, r *record, ok bool, err error) {
	if s.store.PresenceOf(d) < content.Cached {
		return id, nil, false, nil
	}
	r, err = s.records.get(d)
	if err != nil || r == nil {
		return id, nil, false, err
	}
	if id, err = piece.ParseID(string(d), r.Size); err != nil {
		return id, nil, false, err
	}
	return id, r, s.store.Presence(id) >= content.Cached, nil
}

// homeOf returns where blobs of a namespace live.
func (s *server) homeOf(namespace string, d digest.Digest) (home, error) {
	name, b, ok := s.backends.Match(namespace)
	if !ok {
		return home{}, fmt.Errorf("no backend takes the namespace %q: %w", namespace, errdefs.ErrFailedPrecondition)
	}
	h := home{Backend: name}
	if b == nil {
		return h, nil
	}
	if !b.Capabilities().Write {
		return home{}, fmt.Errorf("backend %s, which has the namespace %q, is read only: %w", name, namespace, errdefs.ErrFailedPrecondition)
	}
	if d == "" {
		return h, nil
	}
	var err error
	h.Key, err = fetcher.Locate(b, namespace, d)
	return h, err
}

// startUpload begins a push to a namespace, unless it could not be stored.
func (s *server) startUpload(namespace string) (string, error) {
	if namespace == "" {
		return "", fmt.Errorf("starting an upload: no namespace: %w", errdefs.ErrInvalidArgument)
	}
	if _, err := s.homeOf(namespace, ""); err != nil {
		return "", fmt.Errorf("starting an upload: %w", err)
	}
	return s.uploads.start(namespace)
}

// commit makes an upload the blob d. It may be called again for one that was
// committed. How durable the blob is, settled says.
func (s *server) commit(ctx context.Context, id string, d digest.Digest) error {
	done := func() bool {
		was, ok := s.uploads.committed.Get(id)
		return ok && was == d
	}
	if done() {
		return nil
	}
	u, free, err := s.uploads.take(id)
	if err != nil {
		if done() { // just now
			return nil
		}
		return err
	}
	defer free()
	sums, err := u.verify(ctx, d)
	if err != nil {
		return err
	}
	if sums != nil {
		if err := s.keep(ctx, u, d, sums); err != nil {
			return err
		}
	}
	s.uploads.committed.Add(id, d)
	if err := s.uploads.forget(u); err != nil {
		log.G(ctx).WithError(err).WithField("upload", id).Warn("cannot remove a committed upload")
	}
	return nil
}

// keep takes a verified upload into the store, pinned, with its record. Both are
// durable, and the blob is visible, when it returns nil.
func (s *server) keep(ctx context.Context, u *upload, d digest.Digest, sums *piece.Sums) error {
	h, err := s.homeOf(u.namespace, d)
	if err != nil {
		return err
	}
	unlock := s.records.lock(d)
	defer unlock()
	r, err := s.records.get(d)
	if err != nil && !errdefs.IsDataLoss(err) { // a damaged one is replaced
		return err
	}
	if r == nil {
		r = &record{Digest: d}
	}
	r.Size = sums.ID().Size
	r.add(h, u.namespace)
	// The bytes first: a record says that they are here.
	if err := s.store.Import(ctx, u.path(), sums); err != nil {
		return fmt.Errorf("upload %s: %w", u.id, err)
	}
	if err := s.putRecord(ctx, r); err != nil {
		return fmt.Errorf("upload %s: %w", u.id, err)
	}
	s.finder.pushed(d)
	if r.pending() {
		s.queue.add(d)
	} else if !r.pinned() {
		s.unpin(ctx, d)
	}
	hash := sums.Hash()
	s.seeder.complete(sums.ID(), &hash)
	s.metrics.pushed(sums.ID().Size)
	log.G(ctx).WithFields(log.Fields{"digest": d, "size": r.Size, "namespace": u.namespace}).Debug("blob pushed")
	return nil
}

// putRecord is records.put that makes room if the disk is full.
func (s *server) putRecord(ctx context.Context, r *record) error {
	err := s.records.put(r)
	if diskfull.Is(err) && s.store.MakeRoom(ctx, 1<<20) > 0 {
		err = s.records.put(r)
	}
	return diskfull.Classed(err)
}

// settled waits until a blob that is committed is as durable as is promised.
func (s *server) settled(ctx context.Context, d digest.Digest) (origin.Info, error) {
	if origin.IsEmpty(d) {
		return origin.Info{Durable: true}, nil
	}
	r, err := s.records.get(d)
	if err == nil && r != nil && r.pending() && s.cfg.Durability == "backend" {
		if err = s.queue.wait(ctx, d); err == nil {
			r, err = s.records.get(d)
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

// written notes that a blob is where the home h says, and unpins it when nothing
// else needs it here; or that writing it there ended with an error, which it returns.
// What was deleted meanwhile does not stay behind in either case.
func (s *server) written(ctx context.Context, d digest.Digest, h home, failed error) error {
	unlock := s.records.lock(d)
	defer unlock()
	r, err := s.records.get(d)
	if err != nil {
		return err
	}
	i := -1
	if r != nil {
		i = slices.IndexFunc(r.Homes, func(o home) bool { return o.Backend == h.Backend && o.Key == h.Key })
	}
	if i < 0 { // deleted while it was being written
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), eraseWithin)
		defer cancel()
		return s.erase(ctx, h, d)
	}
	if failed != nil {
		return failed
	}
	r.Homes[i].Written = true
	if err := s.putRecord(ctx, r); err != nil {
		return err
	}
	s.finder.forget(d)
	if !r.pinned() {
		s.unpin(ctx, d)
	}
	return nil
}

// eraseWithin is how long an origin that stops takes at most to remove what nothing
// else will know of.
const eraseWithin = 5 * time.Second

// unpin lets a blob be evicted. Its digest is locked.
func (s *server) unpin(ctx context.Context, d digest.Digest) {
	if err := s.store.Delete(ctx, d); err != nil {
		log.G(ctx).WithError(err).WithField("digest", d).Warn("cannot move a blob to the cache")
	}
}

// located is where a blob can be read now: here, or in a backend.
type located struct {
	id    piece.ID
	info  origin.Info
	place *place // nil: here
}

// locate finds a blob, which is not the empty one.
func (s *server) locate(ctx context.Context, ref origin.Ref) (located, error) {
	id, r, ok, err := s.local(ref.Digest)
	if err != nil {
		return located{}, err
	}
	if ok {
		return located{id: id, info: origin.Info{Size: id.Size, Durable: r.durable()}}, nil
	}
	// Before the finder: until the last byte was verified there is no record.
	at, ok := s.cold.find(ref.Digest)
	if !ok {
		if at, err = s.finder.find(ctx, ref); err != nil {
			return located{}, err
		}
	}
	return located{at.id, origin.Info{Size: at.id.Size, Durable: true}, &at}, nil
}

// stat returns what is known of a blob.
func (s *server) stat(ctx context.Context, ref origin.Ref) (origin.Info, error) {
	if origin.IsEmpty(ref.Digest) {
		return origin.Info{Durable: true}, nil
	}
	at, err := s.locate(ctx, ref)
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
	unlock := s.records.lock(d)
	defer unlock()
	defer s.finder.forget(d)
	s.cold.stop(d)
	r, err := s.records.get(d)
	if err != nil {
		return err
	}
	var gone []home
	if r == nil {
		// Never here, or an earlier call has got so far.
		gone = s.unrecorded(ref)
	} else {
		gone = r.remove(ref.Namespace)
	}
	for _, h := range gone {
		if err := s.erasable(h, d); err != nil {
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
		errs = append(errs, s.erase(ctx, h, d))
	}
	return errors.Join(errs...)
}

// shrink writes a record that lost homes; without any, it goes, and the blob too.
// The digest is locked.
func (s *server) shrink(ctx context.Context, r *record) error {
	if len(r.Homes) > 0 {
		if err := s.records.put(r); err != nil {
			return err
		}
	} else {
		if err := s.records.remove(r.Digest); err != nil {
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
		s.unpin(ctx, r.Digest)
	}
	return nil
}

// unrecorded returns where a blob without a record may live.
func (s *server) unrecorded(ref origin.Ref) (homes []home) {
	if ref.Namespace != "" {
		if h, err := s.homeOf(ref.Namespace, ref.Digest); err == nil {
			return []home{h}
		}
		return nil
	}
	for name, b := range s.backends.All() {
		if caps := b.Capabilities(); caps.NeedsRepository || !caps.Delete {
			continue
		}
		if key, err := fetcher.Locate(b, "", ref.Digest); err == nil {
			homes = append(homes, home{Backend: name, Key: key})
		}
	}
	return homes
}

// erasable reports why a backend could not remove a blob.
func (s *server) erasable(h home, d digest.Digest) error {
	if h.kept() {
		return nil
	}
	b, _ := s.backends.Get(h.Backend)
	if b == nil {
		return fmt.Errorf("%s lives in backend %q, which is not configured any more: %w", d, h.Backend, errdefs.ErrFailedPrecondition)
	}
	if !b.Capabilities().Delete {
		return fmt.Errorf("backend %s cannot delete %s: %w", h.Backend, d, errdefs.ErrNotImplemented)
	}
	return nil
}

// erase removes a blob and its record from a backend.
func (s *server) erase(ctx context.Context, h home, d digest.Digest) error {
	if h.kept() {
		return nil
	}
	if err := s.erasable(h, d); err != nil {
		return err
	}
	b, _ := s.backends.Get(h.Backend)
	if b.Capabilities().Write {
		if err := b.Delete(ctx, recordKey(d)); err != nil {
			return err
		}
	}
	return b.Delete(ctx, h.Key)
}
