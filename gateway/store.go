package gateway

import (
	"context"
	"io"
	"net/http"

	"cuelabs.dev/go/oci/ociregistry"
	"github.com/containerd/errdefs"
	lru "github.com/hashicorp/golang-lru/v2"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/capelin-io/capelin/control/index"
	"github.com/capelin-io/capelin/control/origin"
	"github.com/capelin-io/capelin/internal/ociapi"
)

// Origin is what a gateway needs of origins; [origin.Client] is one.
type Origin interface {
	Open(ctx context.Context, ref origin.Ref, off, n int64) (io.ReadCloser, origin.Info, error)
	BeginUpload(ctx context.Context, u origin.NewUpload) (id string, err error)
	Append(ctx context.Context, id string, off int64, r io.Reader) (end int64, err error)
	Upload(ctx context.Context, id string) (origin.Upload, error)
	Commit(ctx context.Context, id string, d digest.Digest) (origin.Info, error)
	Cancel(ctx context.Context, id string) error
}

// Index is what a gateway needs of the index; [index.Client] is one.
type Index interface {
	Tag(ctx context.Context, repo, name string) (index.Tag, error)
	PutTag(ctx context.Context, repo, name string, desc ocispec.Descriptor) (index.Tag, error)
	DeleteTag(ctx context.Context, repo, name string) error
	TagState(ctx context.Context, repo, name string) (index.Tag, error)
	PutTagFrom(ctx context.Context, repo, name string, desc ocispec.Descriptor, from index.Source) (index.Tag, error)
	DeleteTagFrom(ctx context.Context, repo, name string, from index.Source) (index.Tag, error)
	Tags(ctx context.Context, repo, after string, limit int) (names []string, more bool, err error)
	Repositories(ctx context.Context, after string, limit int) (names []string, more bool, err error)
	Manifest(ctx context.Context, repo string, d digest.Digest) (index.Manifest, error)
	PutManifest(ctx context.Context, repo string, m index.Manifest) error
	DeleteManifest(ctx context.Context, repo string, d digest.Digest) error
	ReferrersPage(
		ctx context.Context, repo string, d digest.Digest, artifactType string, after digest.Digest, limit int,
	) (index.Referrers, error)
	LinkBlob(ctx context.Context, repo string, desc ocispec.Descriptor) error
	Blob(ctx context.Context, repo string, d digest.Digest) (ocispec.Descriptor, error)
	UnlinkBlob(ctx context.Context, repo string, d digest.Digest) error
	keySource
}

// store is a registry whose blobs are at origins and whose names are in the index.
// Every method asks first whether the request's caller may do it, so that what is
// checked is what is done.
type store struct {
	origin Origin
	index  Index
	// seen are the repositories in which blobs were seen last, for mounts that do not say from which one. They may
	// have them no longer.
	seen *lru.Cache[digest.Digest, string]
}

// maxSeen is how many blobs a gateway remembers.
const maxSeen = 8192

func newStore(o Origin, x Index) (*store, error) {
	seen, err := lru.New[digest.Digest, string](maxSeen)
	return &store{origin: o, index: x, seen: seen}, err
}

const blobType = "application/octet-stream"

// findBlob finds a blob for who pulls it.
func (s *store) findBlob(ctx context.Context, repo string, d digest.Digest) (ocispec.Descriptor, error) {
	if err := allow(ctx, Pull, repo); err != nil {
		return ocispec.Descriptor{}, err
	}
	return s.linked(ctx, repo, d)
}

// linked finds a blob of a repository; its manifests can be asked for as blobs, too.
func (s *store) linked(ctx context.Context, repo string, d digest.Digest) (ocispec.Descriptor, error) {
	desc, err := s.index.Blob(ctx, repo, d)
	if errdefs.IsNotFound(err) {
		m, merr := s.index.Manifest(ctx, repo, d)
		if merr == nil || !errdefs.IsNotFound(merr) {
			desc, err = m.Descriptor, merr
		}
	}
	if err != nil {
		return desc, translate(err, noBlob(repo, d))
	}
	s.seen.Add(d, repo)
	return ocispec.Descriptor{MediaType: blobType, Digest: d, Size: desc.Size}, nil
}

func noBlob(repo string, d digest.Digest) error {
	return notFound(ociregistry.ErrBlobUnknown, "%s has no blob %s", repo, d)
}

// mount makes a blob of one repository one of another, if the caller may have it.
func (s *store) mount(ctx context.Context, from, to string, d digest.Digest) (err error) {
	if err := allow(ctx, Push, to); err != nil {
		return err
	}
	if !callerOf(ctx).shows(from) { // as if it were not there
		return noBlob(from, d)
	}
	desc, err := s.linked(ctx, from, d)
	if err != nil {
		return err
	}
	defer func() { audit(ctx, Push, to, "mount from "+from, d.String(), err) }()
	return translate(s.index.LinkBlob(ctx, to, desc), noBlob(from, d))
}

func (s *store) deleteBlob(ctx context.Context, repo string, d digest.Digest) (err error) {
	if err := allow(ctx, Delete, repo); err != nil {
		return err
	}
	if _, err := s.index.Blob(ctx, repo, d); err != nil {
		return translate(err, noBlob(repo, d))
	}
	defer func() { audit(ctx, Delete, repo, "blob", d.String(), err) }()
	return translate(s.index.UnlinkBlob(ctx, repo, d), noBlob(repo, d))
}

// findManifest finds a manifest for who pulls it, by a digest or, if that is "", by a tag.
func (s *store) findManifest(ctx context.Context, repo string, d digest.Digest, tag string) (ocispec.Descriptor, error) {
	if err := allow(ctx, Pull, repo); err != nil {
		return ocispec.Descriptor{}, err
	}
	if d == "" {
		t, err := s.tag(ctx, repo, tag)
		return t.Descriptor, translate(err, noTag(repo, tag))
	}
	m, err := s.index.Manifest(ctx, repo, d)
	return m.Descriptor, translate(err, noManifest(repo, d))
}

func noManifest(repo string, d digest.Digest) error {
	return notFound(ociregistry.ErrManifestUnknown, "%s has no manifest %s", repo, d)
}

func noTag(repo, tag string) error {
	return notFound(ociregistry.ErrManifestUnknown, "%s has no tag %s", repo, tag)
}

// pushManifest stores a manifest and makes tags point to it. It returns those that do, after an error, too.
func (s *store) pushManifest(
	ctx context.Context, repo string, tags []string, raw []byte, desc ocispec.Descriptor,
) (done []string, err error) {
	if err := allow(ctx, Push, repo); err != nil {
		return nil, err
	}
	if err := mayBring(ctx, repo); err != nil {
		return nil, err
	}
	what := tags
	if len(what) == 0 {
		what = []string{"manifest"}
	}
	defer func() {
		for i, w := range what {
			var failed error
			if i >= len(done) {
				failed = err
			}
			audit(ctx, Push, repo, w, desc.Digest.String(), failed)
		}
	}()
	if err := s.storeBytes(ctx, repo, raw, desc.Digest); err != nil {
		return nil, err
	}
	if err := s.index.PutManifest(ctx, repo, index.Manifest{Descriptor: desc}); err != nil {
		return nil, incomplete(err, repo, desc.Digest)
	}
	for _, tag := range tags {
		if err := s.putTag(ctx, repo, tag, desc); err != nil {
			return done, incomplete(err, repo, desc.Digest)
		}
		done = append(done, tag)
	}
	return done, nil
}

// incomplete translates the index's refusal of what refers to something that is
// not there.
func incomplete(err error, repo string, d digest.Digest) error {
	switch {
	case errdefs.IsFailedPrecondition(err):
		return notFound(ociregistry.ErrManifestBlobUnknown, "%w", err)
	case errdefs.IsInvalidArgument(err):
		return ociapi.WithStatus(http.StatusBadRequest, ociregistry.ErrManifestInvalid.Code(), err)
	}
	return translate(err, noManifest(repo, d))
}

func (s *store) deleteManifest(ctx context.Context, repo string, d digest.Digest) (err error) {
	if err := allow(ctx, Delete, repo); err != nil {
		return err
	}
	if _, err := s.index.Manifest(ctx, repo, d); err != nil {
		return translate(err, noManifest(repo, d))
	}
	defer func() { audit(ctx, Delete, repo, "manifest", d.String(), err) }()
	return translate(s.index.DeleteManifest(ctx, repo, d), noManifest(repo, d))
}

func (s *store) deleteTag(ctx context.Context, repo, tag string) (err error) {
	if callerOf(ctx).from.source != nil {
		return s.deleteTagFrom(ctx, repo, tag)
	}
	if err := allow(ctx, Delete, repo); err != nil {
		return err
	}
	if _, err := s.index.Tag(ctx, repo, tag); err != nil {
		return translate(err, noTag(repo, tag))
	}
	defer func() { audit(ctx, Delete, repo, tag, "", err) }()
	return translate(s.index.DeleteTag(ctx, repo, tag), noTag(repo, tag))
}
