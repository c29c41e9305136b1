package indexd

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/capelin-io/capelin/control/index"
	"github.com/capelin-io/capelin/control/origin"
)

// Limits of what one manifest reaches. Digests make cycles impossible.
const (
	maxDepth   = 8        // indexes within each other, and an image in the last one
	maxReached = 10000    // manifests and blobs
	maxBytes   = 64 << 20 // of manifests
)

const (
	noOrigin        = "no origin has it"
	notInRepository = "it was not pushed to the repository"
)

// need is something that a manifest refers to.
type need struct {
	desc     ocispec.Descriptor
	neededBy digest.Digest
	manifest bool
}

func (n *need) missing(why string) index.Missing {
	kind := "blob"
	if n.manifest {
		kind = "manifest"
	}
	return index.Missing{Digest: n.desc.Digest, Kind: kind, NeededBy: n.neededBy, Why: why}
}

// complete verifies that all that a manifest reaches is there: manifests are recorded
// in the repository, blobs are linked in it, and an origin has the bytes of both. The
// subject is no part of it: it may come later, or never. What is certainly not there is
// an index.MissingError; if that cannot be said, errdefs.ErrUnavailable.
func (x *Index) complete(ctx context.Context, repo string, m *index.Manifest) error {
	needs, missing, err := x.reach(ctx, repo, m)
	if err != nil {
		return err
	}
	why, err := x.whyMissing(ctx, repo, needs)
	for i, w := range why {
		if w != "" {
			missing = append(missing, needs[i].missing(w))
		}
	}
	if len(missing) == 0 {
		return err
	}
	first := missing[:min(len(missing), index.MaxMissing)]
	return &index.MissingError{Repository: repo, Missing: first, More: len(missing) - len(first)}
}

// reach walks through the manifests below m, one level after another. It collects
// what must be there, each digest once, and the manifests that are not recorded.
func (x *Index) reach(ctx context.Context, repo string, m *index.Manifest) (needs []need, missing []index.Missing, err error) {
	sizes := map[digest.Digest]int64{m.Descriptor.Digest: m.Descriptor.Size}
	bytes := int64(0)
	check := func(n *need) (isNew bool, err error) {
		d := n.desc
		size, seen := sizes[d.Digest]
		sizes[d.Digest] = d.Size
		if n.manifest && !seen {
			bytes += d.Size
		}
		switch {
		case seen && size != d.Size:
			err = fmt.Errorf("manifest %s says that %s has %d bytes, elsewhere it has %d: %w",
				n.neededBy, d.Digest, d.Size, size, errdefs.ErrInvalidArgument)
		case len(sizes) > maxReached || n.manifest && d.Size > index.MaxManifest || bytes > maxBytes:
			err = fmt.Errorf("manifest %s reaches more than %d others and blobs, or %d bytes of manifests: %w",
				m.Descriptor.Digest, maxReached, maxBytes, errdefs.ErrInvalidArgument)
		}
		return !seen, err
	}
	needs = []need{{m.Descriptor, m.Descriptor.Digest, true}}
	level := []*index.Manifest{m}
	for depth := 0; len(level) > 0; depth++ {
		if depth > maxDepth {
			return nil, nil, fmt.Errorf("manifest %s has indexes within each other, more than %d deep: %w",
				m.Descriptor.Digest, maxDepth, errdefs.ErrInvalidArgument)
		}
		var children []need
		for _, p := range level {
			for i, d := range append(slices.Clone(p.Blobs), p.Manifests...) {
				n := need{d, p.Descriptor.Digest, i >= len(p.Blobs)}
				if !n.manifest && !index.NeedsBlob(d) {
					continue
				}
				isNew, err := check(&n)
				switch {
				case err != nil:
					return nil, nil, err
				case isNew && n.manifest:
					children = append(children, n)
				case isNew:
					needs = append(needs, n)
				}
			}
		}
		if level, err = x.children(ctx, repo, children); err != nil {
			return nil, nil, err
		}
		for i, n := range children {
			if level[i] == nil {
				missing = append(missing, n.missing(notInRepository))
			} else {
				needs = append(needs, n)
			}
		}
		level = slices.DeleteFunc(level, func(m *index.Manifest) bool { return m == nil })
	}
	return needs, missing, nil
}

// children reads the records of manifests; nil of those that are not there.
func (x *Index) children(ctx context.Context, repo string, needs []need) ([]*index.Manifest, error) {
	found := make([]*index.Manifest, len(needs))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for i, n := range needs {
		g.Go(func() error {
			m, err := x.Manifest(ctx, repo, n.desc.Digest)
			switch {
			case errdefs.IsNotFound(err):
				return nil
			case err == nil && m.Descriptor.Size != n.desc.Size:
				return fmt.Errorf("manifest %s says that %s has %d bytes, it has %d: %w",
					n.neededBy, n.desc.Digest, n.desc.Size, m.Descriptor.Size, errdefs.ErrInvalidArgument)
			}
			found[i] = &m
			return err
		})
	}
	return found, g.Wait()
}

// whyMissing says of each need why it is missing; "" if it is not, or if that was not asked: after the first of which it cannot
// say so, the error, only those that were begun are.
func (x *Index) whyMissing(ctx context.Context, repo string, needs []need) (why []string, err error) {
	why = make([]string, len(needs))
	var failed atomic.Bool
	var g errgroup.Group // what is certain of one is, whatever becomes of another
	g.SetLimit(parallel)
	for i := range needs {
		if i >= parallel && failed.Load() {
			break
		}
		g.Go(func() (err error) {
			why[i], err = x.whyOneIsMissing(ctx, repo, &needs[i])
			failed.CompareAndSwap(false, err != nil)
			return err
		})
	}
	return why, g.Wait()
}

func (x *Index) whyOneIsMissing(ctx context.Context, repo string, n *need) (why string, err error) {
	d := n.desc.Digest
	if !n.manifest {
		linked, err := x.exists(ctx, blobKey(repo, d))
		if err == nil && !linked {
			// An index may list a manifest of a type that nobody knows.
			linked, err = x.exists(ctx, manifestKey(repo, d))
		}
		if err != nil {
			return "", err
		}
		if !linked {
			return notInRepository, nil
		}
	}
	info, err := x.origins.Stat(ctx, origin.Ref{Namespace: repo, Digest: d})
	switch {
	case errdefs.IsNotFound(err):
		return noOrigin, nil
	case err != nil:
		return "", originError(d, err)
	case info.Size != n.desc.Size:
		return fmt.Sprintf("an origin has it with %d bytes, not %d", info.Size, n.desc.Size), nil
	}
	return "", nil
}
