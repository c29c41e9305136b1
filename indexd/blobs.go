package indexd

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/capelin-io/capelin/control/index"
	"github.com/capelin-io/capelin/control/origin"
)

// LinkBlob makes a blob part of a repository. An origin must have it
// (index.MissingError otherwise). The size is what the origin says; if desc has one it
// must be the same.
func (x *Index) LinkBlob(ctx context.Context, repo string, desc ocispec.Descriptor) error {
	d := desc.Digest
	if err := checkDigest(repo, d); err != nil {
		return err
	}
	if desc.MediaType != "" {
		if err := index.CheckMediaType(desc.MediaType); err != nil {
			return err
		}
	}
	info, err := x.origins.Stat(ctx, origin.Ref{Namespace: repo, Digest: d})
	if errdefs.IsNotFound(err) {
		return &index.MissingError{Repository: repo, Missing: []index.Missing{{Digest: d, Kind: "blob", Why: noOrigin}}}
	}
	if err != nil {
		return originError(d, err)
	}
	if desc.Size != 0 && desc.Size != info.Size {
		return fmt.Errorf("blob %s@%s has %d bytes, not %d: %w", repo, d, info.Size, desc.Size, errdefs.ErrInvalidArgument)
	}
	link := ocispec.Descriptor{MediaType: desc.MediaType, Digest: d, Size: info.Size}
	return x.write(ctx, blobKey(repo, d), &blobObject{formatVersion, link})
}

// Blob returns a blob of a repository: digest, size, and the media type that it was
// linked with, if any.
func (x *Index) Blob(ctx context.Context, repo string, d digest.Digest) (ocispec.Descriptor, error) {
	if err := checkDigest(repo, d); err != nil {
		return ocispec.Descriptor{}, err
	}
	var o blobObject
	_, err := x.read(ctx, blobKey(repo, d), &o)
	if errdefs.IsNotFound(err) {
		err = fmt.Errorf("blob %s@%s: %w", repo, d, errdefs.ErrNotFound)
	}
	return o.Descriptor, err
}

// UnlinkBlob makes a blob no longer part of a repository. Manifests that refer to it
// stay; tags for them are refused from then on.
func (x *Index) UnlinkBlob(ctx context.Context, repo string, d digest.Digest) error {
	if _, err := x.Blob(ctx, repo, d); err != nil {
		return err
	}
	return x.remove(ctx, blobKey(repo, d))
}
