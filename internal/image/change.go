package image

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// maxReferrers bounds what Tree reads of one image.
const maxReferrers = 1000

// Remove deletes a tag, or, by digest, a manifest with all of its tags.
func (c *Client) Remove(ctx context.Context, p Place) error {
	if p.Kind != Registry {
		return fmt.Errorf("%s is in no registry", p)
	}
	err := remote.Delete(p.Ref, c.options(ctx, c.transport)...)
	if err == nil {
		return nil
	}
	err = fmt.Errorf("deleting %s: %w", p, c.explain(ctx, err, p))
	refused, ok := errors.AsType[*transport.Error](err)
	_, tag := p.Ref.(name.Tag)
	if ok && tag && (refused.StatusCode == http.StatusMethodNotAllowed || refused.StatusCode == http.StatusBadRequest) {
		return fmt.Errorf("%w (this registry may delete by digest only: REPOSITORY@sha256:…, with all tags of that image)", err)
	}
	return err
}

// Tag makes a tag point to an image: in its own repository without moving a byte, else by a Copy.
func (c *Client) Tag(ctx context.Context, from, to Place) (Copied, error) {
	tag, ok := to.Ref.(name.Tag)
	if from.Kind != Registry || to.Kind != Registry || !ok {
		return Copied{}, fmt.Errorf("%s cannot be a tag of %s: both must be in a registry, and the new one without a digest", to, from)
	}
	if from.Ref.Context().Name() != to.Ref.Context().Name() {
		return c.Copy(ctx, from, to, Options{})
	}
	d, err := remote.Get(from.Ref, c.options(ctx, c.transport)...)
	if err != nil {
		return Copied{}, fmt.Errorf("reading %s: %w", from, c.explain(ctx, err, from))
	}
	if err := remote.Tag(tag, d, c.options(ctx, c.transport)...); err != nil {
		return Copied{}, fmt.Errorf("writing %s: %w", to, c.explain(ctx, err, to))
	}
	return Copied{Reference: tag.Name() + "@" + d.Digest.String(), Digest: d.Digest.String(), MediaType: string(d.MediaType)}, nil
}

// Tree is Inspect with what refers to the image's manifests, such as signatures and SBOMs, and what refers to those.
func (c *Client) Tree(ctx context.Context, p Place) (*Manifest, error) {
	if p.Kind != Registry {
		return nil, fmt.Errorf("%s is in no registry", p)
	}
	m, err := c.Inspect(ctx, p)
	if err != nil {
		return nil, err
	}
	left := maxReferrers
	return m, c.refer(ctx, p, m, 0, &left)
}

// refer reads what refers to m and to what is in it.
func (c *Client) refer(ctx context.Context, p Place, m *Manifest, depth int, left *int) error {
	for i := range m.Manifests {
		if err := c.refer(ctx, p, &m.Manifests[i], depth, left); err != nil {
			return err
		}
	}
	if depth == maxDepth {
		return nil
	}
	ii, err := remote.Referrers(p.Ref.Context().Digest(m.Digest), c.options(ctx, c.transport)...)
	var im *v1.IndexManifest
	if err == nil {
		im, err = ii.IndexManifest()
	}
	if err != nil {
		return fmt.Errorf("reading what refers to %s of %s: %w", m.Digest, p, c.explain(ctx, err, p))
	}
	for _, d := range im.Manifests {
		if *left--; *left < 0 {
			return fmt.Errorf("%s has more than %d referrers", p, maxReferrers)
		}
		r := Manifest{Digest: d.Digest.String(), MediaType: string(d.MediaType), ArtifactType: d.ArtifactType, Size: d.Size,
			Annotations: d.Annotations}
		if err := c.refer(ctx, p, &r, depth+1, left); err != nil {
			return err
		}
		m.Referrers = append(m.Referrers, r)
	}
	return nil
}
