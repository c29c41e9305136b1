package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"

	"cuelabs.dev/go/oci/ociregistry/ociref"
	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/capelin-io/capelin/internal/httpobject"
)

// MaxManifest is the size of a manifest in bytes at most, as in the distribution
// specification.
const MaxManifest = 4 << 20

// manifestTypes are asked for by name, because some registries take "*/*" for the
// oldest format.
var manifestTypes = []string{
	ocispec.MediaTypeImageManifest,
	ocispec.MediaTypeImageIndex,
	"application/vnd.docker.distribution.manifest.v2+json",
	"application/vnd.docker.distribution.manifest.list.v2+json",
	"*/*",
}

func isTag(ref string) bool { return ref != "" && ociref.IsValidTag(ref) } // which panics on ""

// ResolveTag returns what a tag is at the registry now.
func (b *Backend) ResolveTag(ctx context.Context, namespace, tag string) (ocispec.Descriptor, error) {
	if !isTag(tag) {
		return ocispec.Descriptor{}, b.fail("resolving", namespace, fmt.Errorf("%q is not a tag: %w", tag, errdefs.ErrInvalidArgument))
	}
	r, err := b.manifestRequest(http.MethodHead, namespace, tag)
	var desc ocispec.Descriptor
	if err == nil {
		desc, err = b.resolve(ctx, r)
	}
	if err != nil {
		return ocispec.Descriptor{}, b.fail("resolving", namespace+":"+tag, err)
	}
	return desc, nil
}

func (b *Backend) resolve(ctx context.Context, r request) (ocispec.Descriptor, error) {
	resp, err := b.send(ctx, r)
	var status *httpobject.StatusError
	if errors.As(err, &status) && (status.Code == http.StatusMethodNotAllowed || status.Code == http.StatusNotImplemented) {
		_, desc, err := b.manifest(ctx, r, "")
		return desc, err
	}
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	resp.Body.Close()
	desc := ocispec.Descriptor{
		MediaType: mediaType(resp.Header, nil),
		Digest:    digest.Digest(resp.Header.Get("Docker-Content-Digest")),
		Size:      resp.ContentLength,
	}
	if desc.MediaType == "" || desc.Digest.Validate() != nil || desc.Size < 0 {
		_, desc, err := b.manifest(ctx, r, "") // the header does not tell
		return desc, err
	}
	if desc.Size > MaxManifest {
		return ocispec.Descriptor{}, fmt.Errorf("a manifest of %d bytes is too large: %w", desc.Size, errdefs.ErrFailedPrecondition)
	}
	return desc, nil
}

// Manifest returns a manifest by its tag or digest. Its bytes have the descriptor's
// digest, which is the one asked for.
func (b *Backend) Manifest(ctx context.Context, namespace, ref string) ([]byte, ocispec.Descriptor, error) {
	want := digest.Digest(ref)
	name := namespace + "@" + ref
	if isTag(ref) {
		want, name = "", namespace+":"+ref
	} else if err := want.Validate(); err != nil {
		return nil, ocispec.Descriptor{}, b.fail("reading a manifest of", namespace,
			fmt.Errorf("%q is neither a tag nor a digest: %w", ref, errdefs.ErrInvalidArgument))
	}
	r, err := b.manifestRequest(http.MethodGet, namespace, ref)
	if err == nil {
		var data []byte
		var desc ocispec.Descriptor
		r.resolves = want == ""
		if data, desc, err = b.manifest(ctx, r, want); err == nil {
			return data, desc, nil
		}
	}
	return nil, ocispec.Descriptor{}, b.fail("reading manifest", name, err)
}

func (b *Backend) manifestRequest(method, namespace, ref string) (request, error) {
	repo, err := b.cfg.repository(namespace)
	return request{
		method:   method,
		repo:     repo,
		what:     "manifests/" + ref,
		header:   http.Header{"Accept": manifestTypes},
		resolves: true,
	}, err
}

// manifest reads a manifest that must have a digest; "": the one it comes with.
func (b *Backend) manifest(ctx context.Context, r request, want digest.Digest) ([]byte, ocispec.Descriptor, error) {
	r.method = http.MethodGet
	resp, err := b.send(ctx, r)
	if err != nil {
		return nil, ocispec.Descriptor{}, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, MaxManifest+1))
	switch {
	case ctx.Err() != nil:
		return nil, ocispec.Descriptor{}, ctx.Err()
	case err != nil:
		return nil, ocispec.Descriptor{}, &httpobject.NetworkError{Err: err}
	case len(data) > MaxManifest:
		return nil, ocispec.Descriptor{}, fmt.Errorf("it has more than %d bytes: %w", MaxManifest, errdefs.ErrFailedPrecondition)
	}
	if want == "" {
		want = digest.Digest(resp.Header.Get("Docker-Content-Digest"))
	}
	if want == "" {
		want = digest.FromBytes(data)
	}
	if err := want.Validate(); err != nil {
		return nil, ocispec.Descriptor{}, fmt.Errorf("it comes with the digest %q: %w: %w", want, err, errdefs.ErrUnavailable)
	}
	if got := want.Algorithm().FromBytes(data); got != want {
		return nil, ocispec.Descriptor{}, fmt.Errorf("its bytes have the digest %s instead of %s: %w", got, want, errdefs.ErrUnavailable)
	}
	return data, ocispec.Descriptor{MediaType: mediaType(resp.Header, data), Digest: want, Size: int64(len(data))}, nil
}

// mediaType returns a manifest's type as told by the header, or else by itself.
func mediaType(h http.Header, data []byte) string {
	t, _, _ := mime.ParseMediaType(h.Get("Content-Type"))
	switch t {
	case "", "application/json", "application/octet-stream", "text/plain":
		var m struct {
			MediaType string `json:"mediaType"`
		}
		if json.Unmarshal(data, &m) == nil && m.MediaType != "" {
			return m.MediaType
		}
	}
	return t
}
