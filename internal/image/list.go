package image

import (
	"context"
	"fmt"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"golang.org/x/sync/errgroup"
)

// Tag is a tag of a repository.
type Tag struct {
	Name      string   `json:"name"`
	Digest    string   `json:"digest,omitempty"`
	MediaType string   `json:"media_type,omitempty"`
	Size      int64    `json:"size"` // of all blobs that it reaches, in bytes
	Platforms []string `json:"platforms,omitempty"`
	Error     string   `json:"error,omitempty"` // why nothing else is known
}

// Repositories returns the names of a registry's repositories, at most limit of
// them, and whether there are more.
func (c *Client) Repositories(ctx context.Context, registry string, limit int) (names []string, more bool, err error) {
	reg, err := name.NewRegistry(registry, c.naming()...)
	if err != nil {
		return nil, false, err
	}
	p, err := remote.NewPuller(c.options(ctx, c.transport)...)
	if err != nil {
		return nil, false, err
	}
	pages, err := p.Catalogger(ctx, reg)
	if err != nil {
		return nil, false, fmt.Errorf("listing %s: %w", registry, err)
	}
	for pages.HasNext() && len(names) <= limit {
		page, err := pages.Next(ctx)
		if err != nil {
			return nil, false, fmt.Errorf("listing %s: %w", registry, err)
		}
		names = append(names, page.Repos...)
	}
	return names[:min(limit, len(names))], len(names) > limit, nil
}

// Tags returns a repository's tags, at most limit of them, and whether there are
// more. A tag whose manifest cannot be read has an Error.
func (c *Client) Tags(ctx context.Context, repository string, limit int) (tags []Tag, more bool, err error) {
	repo, err := name.NewRepository(repository, c.naming()...)
	if err != nil {
		return nil, false, err
	}
	p, err := remote.NewPuller(c.options(ctx, c.transport)...)
	if err != nil {
		return nil, false, err
	}
	pages, err := p.Lister(ctx, repo)
	if err != nil {
		return nil, false, fmt.Errorf("listing %s: %w", repository, err)
	}
	for pages.HasNext() && len(tags) <= limit {
		page, err := pages.Next(ctx)
		if err != nil {
			return nil, false, fmt.Errorf("listing %s: %w", repository, err)
		}
		for _, t := range page.Tags {
			tags = append(tags, Tag{Name: t})
		}
	}
	more = len(tags) > limit
	tags = tags[:min(limit, len(tags))]
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(8)
	for i := range tags {
		g.Go(func() error {
			t := &tags[i]
			m, err := c.Inspect(gctx, Place{Kind: Registry, Ref: repo.Tag(t.Name)})
			if err != nil {
				t.Error = err.Error()
				return ctx.Err()
			}
			t.Digest, t.MediaType = m.Digest, m.MediaType
			_, t.Size = m.total()
			images, err := m.Select()
			for _, im := range images {
				if im.Platform != "" {
					t.Platforms = append(t.Platforms, im.Platform)
				}
			}
			return err
		})
	}
	return tags, more, g.Wait()
}

// Inspect reads the manifests of an image.
func (c *Client) Inspect(ctx context.Context, p Place) (*Manifest, error) {
	i, done, err := c.open(ctx, p, newMeter(c.transport))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", p, err)
	}
	defer done()
	m, err := i.tree(ctx)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", p, err)
	}
	return m, nil
}
