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
	"github.com/capelin-io/capelin/origind/record"
	"github.com/capelin-io/capelin/origind/ringstate"
	"github.com/capelin-io/capelin/swarm/piece"
)

// server is a running origin.
type server struct {
	cfg      Config
	store    *disks
	blobs    *holdings
	homes    homes
	uploads  *uploads
	finder   *finder
	cold     *coldReads
	member   *member
	objects  *objects
	copies   *copies
	storages *storages
	peers    *peers
	scrub    *scrub
	verified *verified
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

// kept reports whether a blob that was pushed is still here, or in a backend.
func (s *server) kept(d digest.Digest) error {
	if origin.IsEmpty(d) {
		return nil
	}
	e, err := s.blobs.ledger.get(d)
	if err == nil && (!visible(e) || !isDurable(e) && s.store.PresenceOf(d) < content.Cached) {
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

// keep takes a verified upload into the store, pinned. Its bytes are durable when it returns nil; that they are a blob of a
// namespace is then for the ring to say (acknowledge), here or at the member that leads the upload.
func (s *server) keep(ctx context.Context, u *upload, d digest.Digest, sums *piece.Sums) error {
	if _, err := s.homes.of(u.meta.Namespace, d); err != nil {
		return err
	}
	s.member.imports(d)
	if err := s.store.Import(ctx, u.path(), sums); err != nil {
		return fmt.Errorf("upload %s: %w", u.id, err)
	}
	s.metrics.pushed(sums.ID().Size)
	return nil
}

// acknowledge has as many members as have to keep a blob whose bytes are here, and at those mirrors, and waits until it is as
// durable as is promised. It returns how many copies there are.
func (s *server) acknowledge(
	ctx context.Context, d digest.Digest, namespace string, mirrors []string,
) (info origin.Info, copies int, err error) {
	if origin.IsEmpty(d) {
		return origin.Info{Durable: true}, 0, nil
	}
	at, err := s.homes.of(namespace, d)
	if err != nil {
		return info, 0, err
	}
	copies, err = s.member.push(ctx, ringstate.EvPut{Digest: d, Place: at, Namespace: namespace, Mirrors: mirrors})
	if err == nil && s.cfg.Durability == "backend" {
		err = s.member.written(ctx, d)
	}
	if err != nil {
		return info, copies, err
	}
	e, err := s.blobs.ledger.get(d)
	if err != nil {
		return info, copies, err
	}
	if e == nil || !visible(e) {
		return info, copies, fmt.Errorf("%s was deleted meanwhile: %w", d, errdefs.ErrNotFound)
	}
	log.G(ctx).WithFields(log.Fields{"digest": d, "size": e.Record.Size, "namespace": namespace, "copies": copies}).Debug("blob pushed")
	return origin.Info{Size: e.Record.Size, Durable: isDurable(e)}, copies, nil
}

// errMoved: the blob was here, and cannot be read here any more; it is to be located again.
var errMoved = fmt.Errorf("it was evicted meanwhile, or is wrong on this origin's disk: %w", errdefs.ErrUnavailable)

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

// delete removes a blob from a namespace, from all if none is given, and from sight. It returns when the ring will not forget that;
// its members then remove it from the backends where nothing else needs it.
func (s *server) delete(ctx context.Context, ref origin.Ref) error {
	d := ref.Digest
	if origin.IsEmpty(d) {
		return nil
	}
	defer s.finder.forget(d)
	e, err := s.blobs.ledger.get(d)
	if err != nil {
		return err
	}
	places := s.homes.removed(ref, e)
	for _, at := range places {
		if err := s.homes.erasable(at, d); err != nil {
			return err
		}
	}
	if len(places) == 0 {
		places = []record.Place{{}} // it lives here alone, or at members that know
	}
	var errs []error
	for _, at := range places {
		errs = append(errs, s.member.remove(ctx, d, ref.Namespace, at))
	}
	return errors.Join(errs...)
}

// recorded has everybody know of what has changed of a blob.
func (s *server) recorded(d digest.Digest, was, is *record.Entry) {
	s.finder.pushed(d)
	switch {
	case visible(was) && !visible(is):
		s.cold.stop(d)
		if id, p := s.store.Find(d); p >= content.Cached {
			s.seeder.gone(id)
		}
	case !visible(was) && visible(is):
		if id, p := s.store.Find(d); p >= content.Cached {
			s.tasks.run(func(ctx context.Context) { s.seeder.check(ctx, id) })
		}
	}
}

// membersChanged has everybody know of how the ring is seen.
func (s *server) membersChanged(all []ringstate.Peer) {
	s.peers.changed(all)
	s.tasks.run(func(context.Context) { s.uploads.membersChanged() }) // an upload may end by that, and its files go
}
