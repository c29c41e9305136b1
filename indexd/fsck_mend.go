package indexd

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"sync"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/capelin-io/capelin/control/index"
)

// How faults are mended. Each mend is what an index does for its clients, with the same care for those who write at the same time, or
// a compare-and-swap of what was found.

// rewrite writes an object that follows from its key, if it is still as damaged as it was found.
func (f *fsck) rewrite(p place, v any) func(context.Context) error {
	return func(ctx context.Context) error {
		info, err := f.x.backend.Stat(ctx, p.key)
		if err != nil {
			return f.x.storageError("looking for", p.key, err)
		}
		l := &faults{p: p} // it is read again, so that nothing that somebody has written since is replaced
		faults, err := f.looks(ctx, p)
		if err != nil || len(faults) == 0 || faults[0].Kind != "damaged" || faults[0].state != info.Version {
			return errors.Join(err, l.changed())
		}
		return f.x.writeIf(ctx, p.key, v, info.Version)
	}
}

func (l *faults) changed() error {
	return fmt.Errorf("object %s has changed meanwhile: %w", l.p.key, errdefs.ErrUnavailable)
}

func (f *fsck) catalogue(p place) func(context.Context) error {
	return func(ctx context.Context) error { return f.x.addRepository(ctx, p.repo) }
}

// remake records a manifest of which all is at the origins: what it needs, and then itself.
func (f *fsck) remake(repo string, d digest.Digest) func(context.Context) error {
	return func(ctx context.Context) error { return f.record(ctx, repo, d, 0) }
}

func (f *fsck) record(ctx context.Context, repo string, d digest.Digest, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("manifest %s is more than %d deep: %w", d, maxDepth, errdefs.ErrInvalidArgument)
	}
	raw, err := f.x.manifestBytes(ctx, repo, d)
	if err != nil {
		return err
	}
	m, err := index.ParseManifest("", raw)
	if err != nil {
		return err
	}
	for _, b := range m.Blobs {
		if !index.NeedsBlob(b) {
			continue
		}
		linked, err := f.x.exists(ctx, blobKey(repo, b.Digest))
		if err == nil && !linked {
			linked, err = f.x.exists(ctx, manifestKey(repo, b.Digest))
		}
		if err == nil && !linked {
			err = f.x.LinkBlob(ctx, repo, b)
		}
		if err != nil {
			return err
		}
	}
	for _, c := range m.Manifests {
		is, err := f.x.exists(ctx, manifestKey(repo, c.Digest))
		if err == nil && !is {
			err = f.record(ctx, repo, c.Digest, depth+1)
		}
		if err != nil {
			return err
		}
	}
	return f.x.PutManifest(ctx, repo, index.Manifest{Descriptor: ocispec.Descriptor{Digest: d}})
}

// retag records the manifest that a tag names, or else deletes the tag, if it is still at that revision.
func (f *fsck) retag(p place, d digest.Digest, revision uint64) func(context.Context) error {
	return func(ctx context.Context) error {
		err := f.record(ctx, p.repo, d, 0)
		if err == nil || !errdefs.IsFailedPrecondition(err) && !errdefs.IsInvalidArgument(err) {
			return err
		}
		if err := f.trusted(err); err != nil {
			return err
		}
		_, err = f.x.update(ctx, p.repo, p.name, tagWrite{id: f.x.newID()}, func(t *tagObject) error {
			there, err := f.x.exists(ctx, manifestKey(p.repo, d))
			if err == nil && (there || t.Revision != revision || t.Descriptor.Digest != d) {
				err = errSame
			}
			t.Descriptor, t.Deleted = ocispec.Descriptor{}, true
			return err
		})
		if errors.Is(err, errSame) {
			err = nil // somebody else has mended it
		}
		return err
	}
}

// trusted is an error if the origins lack more than they have: are they the ones that have this index's blobs?
func (f *fsck) trusted(why error) error {
	if has, lacks := f.has.Load(), f.lacks.Load(); lacks >= has {
		return fmt.Errorf("%w; nothing is removed, because the origins lack %d blobs of %d: are they the right ones?", why, lacks, has+lacks)
	}
	return nil
}

// refer adds a manifest to its subject's referrers.
func (f *fsck) refer(repo string, m *index.Manifest) func(context.Context) error {
	return func(ctx context.Context) error {
		if err := f.x.addReferrer(ctx, repo, m); err != nil {
			return err
		}
		// Who deletes the manifest removes the entry last.
		d := m.Descriptor.Digest
		there, err := f.x.exists(ctx, manifestKey(repo, d))
		if err != nil || there {
			return err
		}
		key := referrerKey(repo, m.Subject.Digest, d)
		return f.unrefer(place{kind: aReferrer, key: key, repo: repo, digest: d, subject: m.Subject.Digest})(ctx)
	}
}

// unrefer removes an entry that leads nowhere, and puts it back if it leads somewhere by now: as DeleteManifest does.
func (f *fsck) unrefer(p place) func(context.Context) error {
	return func(ctx context.Context) error {
		if leads, err := f.leads(ctx, p); err != nil || leads {
			return err
		}
		if err := f.x.remove(ctx, p.key); err != nil {
			return err
		}
		if leads, err := f.leads(ctx, p); err != nil || !leads {
			return err
		}
		return f.x.write(ctx, p.key, &referrerObject{formatVersion})
	}
}

// relink links a blob whose link is damaged.
func (f *fsck) relink(p place) func(context.Context) error {
	return func(ctx context.Context) error {
		return f.x.LinkBlob(ctx, p.repo, ocispec.Descriptor{Digest: p.digest})
	}
}

// unlink removes the link of a blob that no origin has, and puts it back if one has it by now: who links it has pushed it before.
func (f *fsck) unlink(p place) func(context.Context) error {
	return func(ctx context.Context) error {
		desc, err := f.x.Blob(ctx, p.repo, p.digest)
		if errdefs.IsNotFound(err) {
			return nil
		}
		if err != nil {
			return err
		}
		why, err := f.lacking(ctx, p.repo, p.digest, desc.Size)
		if err != nil || why == "" {
			return err
		}
		if err := f.trusted(errors.New(why)); err != nil {
			return err
		}
		if err := f.x.remove(ctx, p.key); err != nil {
			return err
		}
		f.links.Remove(p.key)
		err = f.x.LinkBlob(ctx, p.repo, ocispec.Descriptor{MediaType: desc.MediaType, Digest: p.digest})
		if errdefs.IsFailedPrecondition(err) {
			err = nil
		}
		return err
	}
}

// maxReached is how many manifests of a repository are kept in mind to know which are orphans: about 40 MiB. Of a repository
// with more nothing is said of orphans.
const maxReachedManifests = 1 << 20

// reached is which manifests of a repository there are, and which of them something reaches.
type reached struct {
	mu  sync.Mutex
	all map[[16]byte]uint8
}

const (
	isThere uint8 = 1 << iota
	isReached
)

func newReached() *reached { return &reached{all: map[[16]byte]uint8{}} }

func (r *reached) mark(d digest.Digest, how uint8) {
	sum := sha256.Sum256([]byte(d))
	key := [16]byte(sum[:])
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, known := r.all[key]; known || len(r.all) < maxReachedManifests {
		r.all[key] |= how
	}
}

func (r *reached) is(d digest.Digest)     { r.mark(d, isThere) }
func (r *reached) by(d digest.Digest)     { r.mark(d, isReached) }
func (r *reached) tagged(d digest.Digest) { r.mark(d, isReached) }

// any reports whether there are manifests, and something is known of all of them.
func (r *reached) any() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.all) > 0 && len(r.all) < maxReachedManifests
}

func (r *reached) orphan(d digest.Digest) bool {
	sum := sha256.Sum256([]byte(d))
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.all[[16]byte(sum[:])] == isThere
}
