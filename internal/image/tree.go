package image

import (
	"context"
	"errors"
	"fmt"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sync/errgroup"

	"github.com/capelin-io/capelin/control/tracker"
	"github.com/capelin-io/capelin/swarm/piece"
)

// Bounds of a tree.
const (
	maxDepth     = 4
	maxManifests = 1000
	maxBlobs     = 10_000 // of one manifest
)

// Manifest is a manifest with all that it refers to. Sizes are in bytes.
type Manifest struct {
	Digest       string            `json:"digest"`
	MediaType    string            `json:"media_type"`
	ArtifactType string            `json:"artifact_type,omitempty"`
	Size         int64             `json:"size"` // of the manifest itself
	Platform     string            `json:"platform,omitempty"`
	Annotations  map[string]string `json:"annotations,omitempty"`
	Config       *Blob             `json:"config,omitempty"`
	Layers       []Blob            `json:"layers,omitempty"` // lowest first
	Manifests    []Manifest        `json:"manifests,omitempty"`
	Referrers    []Manifest        `json:"referrers,omitempty"` // by Tree alone

	platform *v1.Platform // nil: none is given
}

// Blob is a config or a layer.
type Blob struct {
	Digest    string   `json:"digest"`
	MediaType string   `json:"media_type"`
	Size      int64    `json:"size"`
	URLs      []string `json:"urls,omitempty"`  // where it is instead of in the registry
	Nodes     []string `json:"nodes,omitempty"` // that have all of it, if a tracker was asked
}

// item is an image or an index of images, wherever it is.
type item struct {
	index v1.ImageIndex
	image v1.Image
}

func (i item) raw() (raw []byte, mt types.MediaType, err error) {
	var m interface {
		RawManifest() ([]byte, error)
		MediaType() (types.MediaType, error)
	} = i.image
	if i.index != nil {
		m = i.index
	}
	if raw, err = m.RawManifest(); err != nil {
		return nil, "", err
	}
	mt, err = m.MediaType()
	return raw, mt, err
}

func (i item) digest() (v1.Hash, error) {
	if i.index != nil {
		return i.index.Digest()
	}
	return i.image.Digest()
}

// tree reads an item's manifests, one after the other.
func (i item) tree(ctx context.Context) (*Manifest, error) {
	n := 0
	return i.read(ctx, nil, 0, &n)
}

func (i item) read(ctx context.Context, platform *v1.Platform, depth int, n *int) (*Manifest, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if *n++; depth > maxDepth || *n > maxManifests {
		return nil, fmt.Errorf("the image has more than %d levels or %d manifests", maxDepth, maxManifests)
	}
	raw, mt, err := i.raw()
	if err != nil {
		return nil, err
	}
	h, err := i.digest()
	if err != nil {
		return nil, err
	}
	m := &Manifest{Digest: h.String(), MediaType: string(mt), Size: int64(len(raw)), platform: platform}
	if platform != nil {
		m.Platform = platform.String()
	}
	if i.index == nil {
		return m, i.readImage(m)
	}
	im, err := i.index.IndexManifest()
	if err != nil {
		return nil, fmt.Errorf("index %s: %w", h, err)
	}
	m.Annotations = im.Annotations
	for _, d := range im.Manifests {
		child, err := i.child(d)
		if err != nil {
			return nil, fmt.Errorf("index %s: manifest %s: %w", h, d.Digest, err)
		}
		if child == (item{}) { // of a kind that is not an image's
			m.Manifests = append(m.Manifests, Manifest{
				Digest: d.Digest.String(), MediaType: string(d.MediaType), ArtifactType: d.ArtifactType, Size: d.Size,
			})
			continue
		}
		c, err := child.read(ctx, d.Platform, depth+1, n)
		if err != nil {
			return nil, err
		}
		m.Manifests = append(m.Manifests, *c)
	}
	return m, nil
}

// child returns one of an index's manifests; it is empty if its kind is unknown.
func (i item) child(d v1.Descriptor) (item, error) {
	switch {
	case d.MediaType.IsIndex():
		ii, err := i.index.ImageIndex(d.Digest)
		return item{index: ii}, err
	case d.MediaType.IsImage():
		img, err := i.index.Image(d.Digest)
		return item{image: img}, err
	}
	return item{}, nil
}

func (i item) readImage(m *Manifest) error {
	im, err := i.image.Manifest()
	if err != nil {
		return fmt.Errorf("manifest %s: %w", m.Digest, err)
	}
	if len(im.Layers) > maxBlobs {
		return fmt.Errorf("manifest %s has %d layers, more than %d", m.Digest, len(im.Layers), maxBlobs)
	}
	m.Annotations = im.Annotations
	m.ArtifactType = im.ArtifactType
	blob := func(d v1.Descriptor) Blob {
		return Blob{Digest: d.Digest.String(), MediaType: string(d.MediaType), Size: d.Size, URLs: d.URLs}
	}
	config := blob(im.Config)
	m.Config = &config
	for _, l := range im.Layers {
		m.Layers = append(m.Layers, blob(l))
	}
	return nil
}

// suits returns an error if i is an image, no index, and for another platform. Whoever asked for a platform is
// told so; what does not say for which one it is, such as an artifact, is for all.
func (i item) suits(p v1.Platform) error {
	if i.index != nil {
		return nil
	}
	m, err := i.image.Manifest()
	if err != nil {
		return err
	}
	if !m.Config.MediaType.IsConfig() {
		return nil
	}
	c, err := i.image.ConfigFile()
	if err != nil {
		return err
	}
	if is := c.Platform(); is != nil && is.OS != "" && is.Architecture != "" && !is.Satisfies(p) {
		return fmt.Errorf("it is an image for %s, not for %s", is, p)
	}
	return nil
}

// pick returns the image of one platform.
func (i item) pick(p v1.Platform) (item, error) {
	if i.index == nil {
		return i, nil
	}
	im, err := i.index.IndexManifest()
	if err != nil {
		return item{}, err
	}
	var have []string
	for _, d := range im.Manifests {
		if d.Platform == nil {
			continue
		}
		if d.Platform.Satisfies(p) {
			return i.child(d)
		}
		have = append(have, d.Platform.String())
	}
	return item{}, fmt.Errorf("there is no image for %s, only for %v", p, have)
}

// Select returns the images of the platforms; none means all of them. A manifest
// that is no index is returned as it is.
func (m *Manifest) Select(platforms ...v1.Platform) ([]*Manifest, error) {
	var all []*Manifest
	var visit func(m *Manifest)
	visit = func(m *Manifest) {
		if m.Config != nil {
			all = append(all, m)
		}
		for i := range m.Manifests {
			visit(&m.Manifests[i])
		}
	}
	visit(m)
	if len(platforms) == 0 || m.Config != nil {
		return all, nil
	}
	var picked []*Manifest
	for _, p := range platforms {
		i := slices.IndexFunc(all, func(m *Manifest) bool { return m.platform != nil && m.platform.Satisfies(p) })
		if i < 0 {
			var have []string
			for _, m := range all {
				if m.Platform != "" {
					have = append(have, m.Platform)
				}
			}
			return nil, fmt.Errorf("%s has no image for %s, only for %v", m.Digest, p, have)
		}
		picked = append(picked, all[i])
	}
	return picked, nil
}

// Blobs returns the blobs of images, each once, in the order in which a pull needs
// them: the config, and the layers from the lowest on. Those that are elsewhere than
// in the registry are left out.
func Blobs(images ...*Manifest) ([]piece.ID, error) {
	var ids []piece.ID
	seen := map[string]bool{}
	add := func(b *Blob) error {
		if len(b.URLs) > 0 || seen[b.Digest] || b.Size == 0 {
			return nil
		}
		id, err := piece.ParseID(b.Digest, b.Size)
		if err != nil {
			return fmt.Errorf("blob %s: %w", b.Digest, err)
		}
		seen[b.Digest] = true
		ids = append(ids, id)
		return nil
	}
	for _, m := range images {
		if m.Config != nil {
			if err := add(m.Config); err != nil {
				return nil, err
			}
		}
		for i := range m.Layers {
			if err := add(&m.Layers[i]); err != nil {
				return nil, err
			}
		}
	}
	return ids, nil
}

// total returns what all blobs have together, each counted once, and how many they
// are.
func (m *Manifest) total() (sizes map[string]int64, bytes int64) {
	sizes = map[string]int64{}
	images, _ := m.Select() // fails only for platforms
	for _, im := range images {
		for _, b := range append([]Blob{*im.Config}, im.Layers...) {
			if len(b.URLs) == 0 {
				sizes[b.Digest] = b.Size
			}
		}
	}
	for _, n := range sizes {
		bytes += n
	}
	return sizes, bytes
}

// Members tells who has a blob; a tracker.Control does.
type Members interface {
	Members(ctx context.Context, id piece.ID) ([]tracker.Member, error)
}

// Locate fills in the nodes of every blob in the tree.
func (m *Manifest) Locate(ctx context.Context, who Members) error {
	images, err := m.Select()
	if err != nil {
		return err
	}
	blobs := map[string][]*Blob{}
	for _, im := range images {
		blobs[im.Config.Digest] = append(blobs[im.Config.Digest], im.Config)
		for i := range im.Layers {
			l := &im.Layers[i]
			blobs[l.Digest] = append(blobs[l.Digest], l)
		}
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(8)
	for digest, same := range blobs {
		g.Go(func() error {
			id, err := piece.ParseID(digest, same[0].Size)
			if err != nil {
				return nil //nolint:nilerr // nobody can have it
			}
			members, err := who.Members(ctx, id)
			if err != nil {
				return fmt.Errorf("asking who has %s: %w", digest, err)
			}
			for _, b := range same {
				b.Nodes = []string{}
				for _, n := range members {
					if n.Complete {
						b.Nodes = append(b.Nodes, n.Node)
					}
				}
			}
			return nil
		})
	}
	return g.Wait()
}

var errNothing = errors.New("there is no image in it")

// Blobs returns what nodes need of an image for some platforms (none: all): configs and
// layers. An image that is no index must be for all platforms if somebody asked for them, and
// else is taken for what it is.
func (c *Client) Blobs(ctx context.Context, ref string, asked bool, platforms ...v1.Platform) ([]piece.ID, error) {
	from, err := c.Reference(ref)
	if err != nil {
		return nil, err
	}
	i, done, err := c.open(ctx, from, newMeter(c.transport))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", from, err)
	}
	defer done()
	m, err := i.tree(ctx)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", from, err)
	}
	for _, p := range platforms {
		if !asked {
			break
		}
		if err := i.suits(p); err != nil {
			return nil, fmt.Errorf("%s: %w", from, err)
		}
	}
	images, err := m.Select(platforms...)
	if err != nil {
		return nil, err
	}
	return Blobs(images...)
}
