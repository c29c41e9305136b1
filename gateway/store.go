package gateway

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"mime"
	"net/http"

	"cuelabs.dev/go/oci/ociregistry"
	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/capelin-io/capelin/control/index"
	"github.com/capelin-io/capelin/control/origin"
	"github.com/capelin-io/capelin/internal/ociapi"
)

// maxManifest is the longest manifest, in bytes, as the distribution spec has it
// ("Pushing Manifests").
const maxManifest = 4 << 20

// Origin is what a gateway needs of origins; [origin.Client] is one.
type Origin interface {
	Open(ctx context.Context, ref origin.Ref, off, n int64) (io.ReadCloser, origin.Info, error)
	StartUpload(ctx context.Context, namespace string, d digest.Digest) (id string, err error)
	Append(ctx context.Context, id string, off int64, r io.Reader) (end int64, err error)
	UploadOffset(ctx context.Context, id string) (int64, error)
	Commit(ctx context.Context, id string, d digest.Digest) (origin.Info, error)
	Cancel(ctx context.Context, id string) error
}

// Index is what a gateway needs of the index; [index.Client] is one.
type Index interface {
	Tag(ctx context.Context, repo, name string) (index.Tag, error)
	PutTag(ctx context.Context, repo, name string, desc ocispec.Descriptor) (index.Tag, error)
	DeleteTag(ctx context.Context, repo, name string) error
	Tags(ctx context.Context, repo, after string, limit int) (names []string, more bool, err error)
	Repositories(ctx context.Context, after string, limit int) (names []string, more bool, err error)
	Manifest(ctx context.Context, repo string, d digest.Digest) (index.Manifest, error)
	PutManifest(ctx context.Context, repo string, m index.Manifest) error
	DeleteManifest(ctx context.Context, repo string, d digest.Digest) error
	Referrers(ctx context.Context, repo string, d digest.Digest, artifactType string) ([]ocispec.Descriptor, error)
	LinkBlob(ctx context.Context, repo string, desc ocispec.Descriptor) error
	Blob(ctx context.Context, repo string, d digest.Digest) (ocispec.Descriptor, error)
	UnlinkBlob(ctx context.Context, repo string, d digest.Digest) error
}

// store is a registry whose blobs are at origins and whose names are in the index.
// Every method asks first whether the request's caller may do it, so that what is
// checked is what is done, however the request's path was read.
type store struct {
	*ociregistry.Funcs // for the interface's private method
	origin             Origin
	index              Index
}

var _ ociregistry.Interface = (*store)(nil)

const blobType = "application/octet-stream"

// Blobs.

func (s *store) blob(ctx context.Context, repo string, d digest.Digest) (ocispec.Descriptor, error) {
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
		return desc, translate(err, ociregistry.ErrBlobUnknown)
	}
	return ocispec.Descriptor{MediaType: blobType, Digest: d, Size: desc.Size}, nil
}

func (s *store) ResolveBlob(ctx context.Context, repo string, d ociregistry.Digest) (ociregistry.Descriptor, error) {
	return s.blob(ctx, repo, d)
}

func (s *store) GetBlob(ctx context.Context, repo string, d ociregistry.Digest) (ociregistry.BlobReader, error) {
	return s.GetBlobRange(ctx, repo, d, 0, -1)
}

func (s *store) GetBlobRange(ctx context.Context, repo string, d ociregistry.Digest, from, to int64) (ociregistry.BlobReader, error) {
	desc, err := s.blob(ctx, repo, d)
	if err != nil {
		return nil, err
	}
	if from < 0 || from >= desc.Size && from > 0 || to >= 0 && to <= from {
		return nil, fmt.Errorf("bytes %d to %d of %s, which has %d: %w", from, to, d, desc.Size, ociregistry.ErrRangeInvalid)
	}
	n := int64(-1)
	if to >= 0 {
		n = min(to, desc.Size) - from
	}
	r, _, err := s.origin.Open(ctx, origin.Ref{Namespace: repo, Digest: d}, from, n)
	if err != nil {
		return nil, translate(err, ociregistry.ErrBlobUnknown)
	}
	return reader{r, desc}, nil
}

type reader struct {
	io.ReadCloser
	desc ociregistry.Descriptor
}

func (r reader) Descriptor() ociregistry.Descriptor { return r.desc }

func (s *store) PushBlob(ctx context.Context, repo string, desc ociregistry.Descriptor, r io.Reader) (ociregistry.Descriptor, error) {
	if err := allow(ctx, Push, repo); err != nil {
		return desc, err
	}
	w, err := s.start(ctx, repo, desc.Digest)
	if err != nil {
		return desc, err
	}
	if _, err := w.ReadFrom(r); err != nil {
		return desc, errors.Join(err, w.Cancel())
	}
	got, err := w.Commit(desc.Digest)
	if err != nil {
		return desc, errors.Join(err, w.Cancel())
	}
	return got, nil
}

func (s *store) PushBlobChunked(ctx context.Context, repo string, _ int) (ociregistry.BlobWriter, error) {
	if err := allow(ctx, Push, repo); err != nil {
		return nil, err
	}
	w, err := s.start(ctx, repo, callerOf(ctx).expects)
	if err != nil {
		return nil, err
	}
	return w, nil
}

// start begins an upload of a blob; d is "" if nobody has said yet which one it is. The API has
// no way to say so but for a POST with all of the blob, and a mount; most clients send the
// digest with the PUT that ends the upload, and some do not know it earlier.
func (s *store) start(ctx context.Context, repo string, d digest.Digest) (*writer, error) {
	id, err := s.origin.StartUpload(ctx, repo, d)
	if errdefs.IsFailedPrecondition(err) { // no storage takes this namespace
		return nil, fmt.Errorf("%w: %w", ociregistry.ErrDenied, err)
	}
	if err != nil {
		return nil, translate(err, ociregistry.ErrBlobUploadUnknown)
	}
	return &writer{s: s, ctx: ctx, repo: repo, id: id}, nil
}

// PushBlobChunkedResume continues an upload. Without a Content-Range ociserver says
// offset 0, and what is meant is where the upload stands.
func (s *store) PushBlobChunkedResume(ctx context.Context, repo, id string, offset int64, _ int) (ociregistry.BlobWriter, error) {
	if err := allow(ctx, Push, repo); err != nil {
		return nil, err
	}
	at, err := s.origin.UploadOffset(ctx, id)
	if err != nil {
		return nil, translate(err, ociregistry.ErrBlobUploadUnknown)
	}
	if offset >= 0 && offset != at && hasRange(ctx) {
		return nil, fmt.Errorf("the upload continues at %d, not %d: %w", at, offset, ociregistry.ErrRangeInvalid)
	}
	return &writer{s: s, ctx: ctx, repo: repo, id: id, at: at}, nil
}

// writer is an upload under way. Nothing of it is kept here: any gateway can
// continue it.
type writer struct {
	s    *store
	ctx  context.Context
	repo string
	id   string
	at   int64
}

func (w *writer) ID() string     { return w.id }
func (w *writer) Size() int64    { return w.at }
func (w *writer) ChunkSize() int { return 1 }
func (w *writer) Close() error   { return nil }

func (w *writer) Write(p []byte) (int, error) {
	n, err := w.ReadFrom(bytes.NewReader(p))
	return int(n), err
}

// ReadFrom makes io.Copy send all that comes in one request to the origin.
func (w *writer) ReadFrom(r io.Reader) (int64, error) {
	one := make([]byte, 1)
	if n, err := io.ReadFull(r, one); n == 0 {
		if errors.Is(err, io.EOF) {
			return 0, nil // a PUT that only ends the upload
		}
		return 0, err
	}
	end, err := w.s.origin.Append(w.ctx, w.id, w.at, io.MultiReader(bytes.NewReader(one), r))
	n := max(end-w.at, 0)
	if err != nil {
		return n, translate(err, ociregistry.ErrBlobUploadUnknown)
	}
	w.at = end
	return n, nil
}

func (w *writer) Commit(d ociregistry.Digest) (desc ociregistry.Descriptor, err error) {
	defer func() { audit(w.ctx, Push, w.repo, "blob", d.String(), err) }()
	info, err := w.s.origin.Commit(w.ctx, w.id, d)
	if errdefs.IsOutOfRange(err) {
		// The origin that took the last bytes is lost, and with them what no other had yet. Clients push again what is unavailable.
		return desc, unavailable(err)
	}
	if errdefs.IsInvalidArgument(err) {
		return desc, fmt.Errorf("%w: %w", ociregistry.ErrDigestInvalid, err)
	}
	if err != nil {
		return desc, translate(err, ociregistry.ErrBlobUploadUnknown)
	}
	desc = ociregistry.Descriptor{MediaType: blobType, Digest: d, Size: info.Size}
	return desc, translate(w.s.index.LinkBlob(w.ctx, w.repo, desc), ociregistry.ErrNameUnknown)
}

func (w *writer) Cancel() error { return w.s.origin.Cancel(w.ctx, w.id) }

// mountable returns the blob that a mount asks for, if the caller may have it.
func (s *store) mountable(ctx context.Context, from, to string, d digest.Digest) (ocispec.Descriptor, error) {
	if err := allow(ctx, Push, to); err != nil {
		return ocispec.Descriptor{}, err
	}
	if !permitted(ctx, Pull, from) { // as if it were not there
		return ocispec.Descriptor{}, ociregistry.ErrBlobUnknown
	}
	return s.linked(ctx, from, d)
}

func (s *store) MountBlob(ctx context.Context, from, to string, d ociregistry.Digest) (desc ociregistry.Descriptor, err error) {
	if desc, err = s.mountable(ctx, from, to, d); err != nil {
		return desc, err
	}
	defer func() { audit(ctx, Push, to, "mount from "+from, d.String(), err) }()
	return desc, translate(s.index.LinkBlob(ctx, to, desc), ociregistry.ErrBlobUnknown)
}

func (s *store) DeleteBlob(ctx context.Context, repo string, d ociregistry.Digest) (err error) {
	if err := allow(ctx, Delete, repo); err != nil {
		return err
	}
	if _, err := s.index.Blob(ctx, repo, d); err != nil {
		return translate(err, ociregistry.ErrBlobUnknown)
	}
	defer func() { audit(ctx, Delete, repo, "blob", d.String(), err) }()
	return translate(s.index.UnlinkBlob(ctx, repo, d), ociregistry.ErrBlobUnknown)
}

// Manifests.

func (s *store) ResolveManifest(ctx context.Context, repo string, d ociregistry.Digest) (ociregistry.Descriptor, error) {
	if err := allow(ctx, Pull, repo); err != nil {
		return ociregistry.Descriptor{}, err
	}
	m, err := s.index.Manifest(ctx, repo, d)
	return m.Descriptor, translate(err, ociregistry.ErrManifestUnknown)
}

func (s *store) ResolveTag(ctx context.Context, repo, tag string) (ociregistry.Descriptor, error) {
	if err := allow(ctx, Pull, repo); err != nil {
		return ociregistry.Descriptor{}, err
	}
	t, err := s.index.Tag(ctx, repo, tag)
	return t.Descriptor, translate(err, ociregistry.ErrManifestUnknown)
}

func (s *store) GetManifest(ctx context.Context, repo string, d ociregistry.Digest) (ociregistry.BlobReader, error) {
	desc, err := s.ResolveManifest(ctx, repo, d)
	if err != nil {
		return nil, err
	}
	return s.manifest(ctx, repo, desc)
}

func (s *store) GetTag(ctx context.Context, repo, tag string) (ociregistry.BlobReader, error) {
	desc, err := s.ResolveTag(ctx, repo, tag)
	if err != nil {
		return nil, err
	}
	return s.manifest(ctx, repo, desc)
}

// manifest reads a manifest whole, so that an error can still be one.
func (s *store) manifest(ctx context.Context, repo string, desc ociregistry.Descriptor) (ociregistry.BlobReader, error) {
	if desc.Size > maxManifest {
		return nil, fmt.Errorf("manifest %s of %s has %d bytes: %w", desc.Digest, repo, desc.Size, errdefs.ErrOutOfRange)
	}
	r, _, err := s.origin.Open(ctx, origin.Ref{Namespace: repo, Digest: desc.Digest}, 0, -1)
	if err != nil {
		// The index says that it is there.
		return nil, unavailable(fmt.Errorf("manifest %s of %s: %w", desc.Digest, repo, err))
	}
	defer r.Close()
	raw := make([]byte, desc.Size)
	if _, err := io.ReadFull(r, raw); err != nil {
		return nil, unavailable(fmt.Errorf("manifest %s of %s: %w", desc.Digest, repo, err))
	}
	shown := ociregistry.Descriptor{MediaType: desc.MediaType, Digest: desc.Digest, Size: desc.Size}
	return reader{io.NopCloser(bytes.NewReader(raw)), shown}, nil
}

// push stores a manifest whose digest was checked, and makes a tag point to it if
// one is given. mediaType is the request's Content-Type, or "".
func (s *store) push(
	ctx context.Context, repo, tag string, raw []byte, mediaType string, d digest.Digest,
) (m index.Manifest, err error) {
	if err := allow(ctx, Push, repo); err != nil {
		return m, err
	}
	what := tag
	if what == "" {
		what = "manifest"
	}
	defer func() { audit(ctx, Push, repo, what, d.String(), err) }()
	if tag != "" {
		if err := index.CheckTag(tag); err != nil {
			return m, translate(err, ociregistry.ErrManifestUnknown)
		}
	}
	if t, _, err := mime.ParseMediaType(mediaType); err == nil {
		mediaType = t // without parameters
	}
	// Before anything is stored: what cannot be read is nobody's manifest.
	if m, err = index.ParseManifest(mediaType, raw); err != nil {
		return m, fmt.Errorf("%w: %w", ociregistry.ErrManifestInvalid, err)
	}
	m.Descriptor.Digest = d // raw's, perhaps by another algorithm
	return m, s.record(ctx, repo, tag, raw, m.Descriptor)
}

// record stores a manifest's bytes, and its names.
func (s *store) record(ctx context.Context, repo, tag string, raw []byte, desc ocispec.Descriptor) error {
	w, err := s.start(ctx, repo, desc.Digest)
	if err != nil {
		return err
	}
	if _, err = w.ReadFrom(bytes.NewReader(raw)); err == nil {
		_, err = s.origin.Commit(ctx, w.id, desc.Digest)
	}
	if err != nil {
		return errors.Join(translate(err, ociregistry.ErrBlobUploadUnknown), w.Cancel())
	}
	if err := s.index.PutManifest(ctx, repo, index.Manifest{Descriptor: desc}); err != nil {
		return incomplete(err)
	}
	if tag != "" {
		if _, err := s.index.PutTag(ctx, repo, tag, desc); err != nil {
			return incomplete(err)
		}
	}
	return nil
}

// incomplete translates the index's refusal of what refers to something that is
// not there.
func incomplete(err error) error {
	if errdefs.IsFailedPrecondition(err) {
		return fmt.Errorf("%w: %w", ociregistry.ErrManifestBlobUnknown, err)
	}
	if errdefs.IsInvalidArgument(err) {
		return fmt.Errorf("%w: %w", ociregistry.ErrManifestInvalid, err)
	}
	return translate(err, ociregistry.ErrManifestUnknown)
}

func (s *store) DeleteManifest(ctx context.Context, repo string, d ociregistry.Digest) (err error) {
	if err := allow(ctx, Delete, repo); err != nil {
		return err
	}
	if _, err := s.index.Manifest(ctx, repo, d); err != nil {
		return translate(err, ociregistry.ErrManifestUnknown)
	}
	defer func() { audit(ctx, Delete, repo, "manifest", d.String(), err) }()
	return translate(s.index.DeleteManifest(ctx, repo, d), ociregistry.ErrManifestUnknown)
}

func (s *store) DeleteTag(ctx context.Context, repo, tag string) (err error) {
	if err := allow(ctx, Delete, repo); err != nil {
		return err
	}
	if _, err := s.index.Tag(ctx, repo, tag); err != nil {
		return translate(err, ociregistry.ErrManifestUnknown)
	}
	defer func() { audit(ctx, Delete, repo, tag, "", err) }()
	return translate(s.index.DeleteTag(ctx, repo, tag), ociregistry.ErrManifestUnknown)
}

// Lists.

const listPage = 1000

func (s *store) Repositories(ctx context.Context, after string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		if err := allow(ctx, List, ""); err != nil {
			yield("", err)
			return
		}
		pages(yield, after, ociregistry.ErrNameUnknown, func(after string) ([]string, bool, error) {
			return s.index.Repositories(ctx, after, listPage)
		}, func(repo string) bool { return permitted(ctx, Pull, repo) })
	}
}

func (s *store) Tags(ctx context.Context, repo, after string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		if err := allow(ctx, Pull, repo); err != nil {
			yield("", err)
			return
		}
		pages(yield, after, ociregistry.ErrNameUnknown, func(after string) ([]string, bool, error) {
			return s.index.Tags(ctx, repo, after, listPage)
		}, func(string) bool { return true })
	}
}

// pages yields the names of all pages that are to be shown.
func pages(
	yield func(string, error) bool, after string, unknown ociregistry.Error,
	page func(after string) ([]string, bool, error), show func(string) bool,
) {
	for more := true; more; {
		var names []string
		var err error
		if names, more, err = page(after); err != nil {
			yield("", translate(err, unknown))
			return
		}
		for _, n := range names {
			if after = n; show(n) && !yield(n, nil) {
				return
			}
		}
		more = more && len(names) > 0
	}
}

func (s *store) Referrers(
	ctx context.Context, repo string, d ociregistry.Digest, artifactType string,
) iter.Seq2[ociregistry.Descriptor, error] {
	return func(yield func(ociregistry.Descriptor, error) bool) {
		if err := allow(ctx, Pull, repo); err != nil {
			yield(ociregistry.Descriptor{}, err)
			return
		}
		all, err := s.index.Referrers(ctx, repo, d, artifactType)
		if err != nil && !errdefs.IsNotFound(err) {
			yield(ociregistry.Descriptor{}, translate(err, ociregistry.ErrNameUnknown))
			return
		}
		for _, desc := range all {
			if !yield(desc, nil) {
				return
			}
		}
	}
}

// translate makes a registry's error of one of errdefs' classes. Not found is what
// the caller says.
func translate(err error, notFound ociregistry.Error) error {
	var known ociregistry.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &known):
		return err
	case errdefs.IsNotFound(err):
		return fmt.Errorf("%w: %w", notFound, err)
	case errdefs.IsOutOfRange(err):
		return fmt.Errorf("%w: %w", ociregistry.ErrRangeInvalid, err)
	case errdefs.IsInvalidArgument(err):
		return fmt.Errorf("%w: %w", ociregistry.ErrUnsupported, err)
	case errdefs.IsConflict(err):
		return ociapi.WithStatus(http.StatusConflict, "CONFLICT", err)
	case errdefs.IsPermissionDenied(err), errdefs.IsUnauthorized(err):
		// Of us, by our own servers or a storage: the client can do nothing about it.
		return ociapi.WithStatus(http.StatusBadGateway, "UNAVAILABLE", err)
	case errdefs.IsResourceExhausted(err):
		return ociapi.WithStatus(http.StatusInsufficientStorage, "UNAVAILABLE", err)
	}
	return unavailable(err)
}

func unavailable(err error) error {
	return ociapi.WithStatus(http.StatusServiceUnavailable, "UNAVAILABLE", err)
}

func tooLarge(n int64) error {
	return ociapi.WithStatus(http.StatusRequestEntityTooLarge, "SIZE_INVALID_MANIFEST",
		fmt.Errorf("a manifest of %d bytes is larger than %d", n, maxManifest))
}
