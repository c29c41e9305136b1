package indexd

import (
	"context"
	"fmt"
	"io"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/capelin-io/capelin/control/index"
	"github.com/capelin-io/capelin/control/origin"
	"github.com/capelin-io/capelin/indexd/replicate"
)

func checkDigest(repo string, d digest.Digest) error {
	if err := index.CheckRepository(repo); err != nil {
		return err
	}
	return index.CheckDigest(d)
}

// Manifest returns a manifest of a repository.
func (x *Index) Manifest(ctx context.Context, repo string, d digest.Digest) (index.Manifest, error) {
	if err := checkDigest(repo, d); err != nil {
		return index.Manifest{}, err
	}
	var o manifestObject
	_, err := x.read(ctx, manifestKey(repo, d), &o)
	if errdefs.IsNotFound(err) {
		err = fmt.Errorf("manifest %s@%s: %w", repo, d, errdefs.ErrNotFound)
	}
	return o.Manifest, err
}

// PutManifest records a manifest in a repository if it is complete
// (index.MissingError otherwise). Only the digest and the media type of given are
// looked at; the rest is read from the manifest's bytes, which an origin must have.
//
// The record is written last: what comes before it means nothing without it.
func (x *Index) PutManifest(ctx context.Context, repo string, given index.Manifest) error {
	d := given.Descriptor.Digest
	if err := checkDigest(repo, d); err != nil {
		return err
	}
	raw, err := x.manifestBytes(ctx, repo, d)
	if err != nil {
		return err
	}
	m, err := index.ParseManifest(given.Descriptor.MediaType, raw)
	if err != nil {
		return err
	}
	m.Descriptor.Digest = d // raw's, perhaps by another algorithm
	if err := x.complete(ctx, repo, &m); err != nil {
		return err
	}
	if err := x.addRepository(ctx, repo); err != nil {
		return err
	}
	if err := x.addReferrer(ctx, repo, &m); err != nil {
		return err
	}
	if m.Subject != nil {
		if err := x.outbox.Announce(ctx, replicate.Announcement{Key: replicate.Key{Repository: repo, Digest: d}, Revision: 1}); err != nil {
			return err
		}
		defer x.outbox.Written()
	}
	if err := x.write(ctx, manifestKey(repo, d), &manifestObject{formatVersion, m}); err != nil {
		return err
	}
	// Again, because who deletes the same manifest meanwhile removes the entry last, and
	// puts it back only if it sees the record.
	return x.addReferrer(ctx, repo, &m)
}

func (x *Index) addReferrer(ctx context.Context, repo string, m *index.Manifest) error {
	if m.Subject == nil {
		return nil
	}
	key := referrerKey(repo, m.Subject.Digest, m.Descriptor.Digest)
	if there, err := x.exists(ctx, key); there || err != nil {
		return err
	}
	return x.write(ctx, key, &referrerObject{formatVersion})
}

// manifestBytes reads a manifest from the origins, and verifies it.
func (x *Index) manifestBytes(ctx context.Context, repo string, d digest.Digest) ([]byte, error) {
	r, info, err := x.origins.Open(ctx, origin.Ref{Namespace: repo, Digest: d}, 0, -1)
	if errdefs.IsNotFound(err) {
		return nil, &index.MissingError{Repository: repo, Missing: []index.Missing{{
			Digest: d, Kind: "blob", NeededBy: d, Why: "no origin has the manifest's bytes"}}}
	}
	if err != nil {
		return nil, originError(d, err)
	}
	defer r.Close()
	if info.Size > index.MaxManifest {
		return nil, fmt.Errorf("manifest %s@%s has %d bytes, %d are allowed: %w",
			repo, d, info.Size, index.MaxManifest, errdefs.ErrInvalidArgument)
	}
	if err := x.memory.Acquire(ctx, index.MaxManifest); err != nil {
		return nil, originError(d, err)
	}
	defer x.memory.Release(index.MaxManifest)
	raw, err := io.ReadAll(io.LimitReader(r, index.MaxManifest+1))
	if err != nil {
		return nil, originError(d, err)
	}
	if len(raw) > index.MaxManifest {
		return nil, fmt.Errorf("manifest %s@%s has more than %d bytes: %w", repo, d, index.MaxManifest, errdefs.ErrInvalidArgument)
	}
	if d.Algorithm().FromBytes(raw) != d {
		return nil, fmt.Errorf("manifest %s@%s: an origin sent %d other bytes: %w", repo, d, len(raw), errdefs.ErrUnavailable)
	}
	return raw, nil
}

// originError says that the origins gave no answer about a blob.
func originError(d digest.Digest, err error) error {
	return fmt.Errorf("asking the origins for %s: %v: %w", d, err, errdefs.ErrUnavailable) //nolint:errorlint // its class must not show
}

// DeleteManifest removes a manifest, all tags that name it, and its entry among the
// referrers of its subject. Indexes that refer to it stay.
func (x *Index) DeleteManifest(ctx context.Context, repo string, d digest.Digest) error {
	m, err := x.Manifest(ctx, repo, d)
	if err != nil {
		return err
	}
	// Tags first, so that none names a manifest that is not there if this ends half
	// way; and once more, for those that were written in between (PutTag).
	if err := x.untagAll(ctx, repo, d); err != nil {
		return err
	}
	if err := x.remove(ctx, manifestKey(repo, d)); err != nil {
		return err
	}
	if err := x.untagAll(ctx, repo, d); err != nil {
		return err
	}
	if m.Subject == nil {
		return nil
	}
	if err := x.remove(ctx, referrerKey(repo, m.Subject.Digest, d)); err != nil {
		return err
	}
	if there, err := x.exists(ctx, manifestKey(repo, d)); err != nil || !there {
		return err
	}
	return x.addReferrer(ctx, repo, &m) // it was pushed again
}

// Manifests lists the manifests of a repository after the digest or string after, in
// the order of their digests, at most limit (1..1000, otherwise 1000).
func (x *Index) Manifests(ctx context.Context, repo string, after digest.Digest, limit int) ([]digest.Digest, bool, error) {
	if err := index.CheckRepository(repo); err != nil {
		return nil, false, err
	}
	if err := checkAfter(string(after), ":"); err != nil {
		return nil, false, err
	}
	prefix := manifestsPrefix(repo)
	digests, more, err := x.digests(ctx, prefix, after, index.Limit(limit))
	if err == nil && len(digests) == 0 && after == "" {
		err = x.checkKnown(ctx, repo)
	}
	return digests, more, err
}

// digests lists the digests that are keys below prefix.
func (x *Index) digests(ctx context.Context, prefix string, after digest.Digest, limit int) ([]digest.Digest, bool, error) {
	page, more, err := x.list(ctx, prefix, prefix+digestPath(after), limit)
	if err != nil {
		return nil, false, err
	}
	all := make([]digest.Digest, len(page))
	for i, info := range page {
		if all[i], err = digestOf(prefix, info.Key); err != nil {
			return nil, false, err
		}
	}
	return all, more, nil
}

// maxPageBytes is how many bytes of annotations a page of referrers has, about.
const maxPageBytes = 4 << 20

// ReferrersPage lists the manifests whose subject is d, and that have the
// artifactType if that is not empty, after the digest after, in the order of their
// digests, at most limit (1..1000, otherwise 1000).
func (x *Index) ReferrersPage(
	ctx context.Context, repo string, d digest.Digest, artifactType string, after digest.Digest, limit int,
) (index.Referrers, error) {
	page := index.Referrers{Referrers: []ocispec.Descriptor{}}
	if err := checkDigest(repo, d); err != nil {
		return page, err
	}
	if err := checkAfter(string(after), ":"); err != nil {
		return page, err
	}
	limit = index.Limit(limit)
	size := 0
	for {
		digests, more, err := x.digests(ctx, referrersPrefix(repo, d), after, min(limit, 100))
		if err != nil {
			return page, err
		}
		found, err := x.referrers(ctx, repo, digests)
		if err != nil {
			return page, err
		}
		for _, r := range found {
			if r == nil || artifactType != "" && r.ArtifactType != artifactType {
				continue
			}
			if len(page.Referrers) == limit || size > maxPageBytes {
				page.More = true
				return page, nil
			}
			page.Referrers = append(page.Referrers, *r)
			for k, v := range r.Annotations {
				size += len(k) + len(v)
			}
		}
		if !more {
			return page, nil
		}
		after = digests[len(digests)-1]
	}
}

// referrers reads several; nil of those that are not there.
func (x *Index) referrers(ctx context.Context, repo string, digests []digest.Digest) ([]*ocispec.Descriptor, error) {
	found := make([]*ocispec.Descriptor, len(digests))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for i, d := range digests {
		g.Go(func() error {
			m, err := x.Manifest(ctx, repo, d)
			if errdefs.IsNotFound(err) {
				return nil
			}
			r := m.Referrer()
			found[i] = &r
			return err
		})
	}
	return found, g.Wait()
}
