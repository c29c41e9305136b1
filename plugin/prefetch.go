package plugin

import (
	"context"
	"encoding/json"
	"strings"
	"sync"
	"time"

	ctrdcontent "github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	lru "github.com/hashicorp/golang-lru/v2"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/capelin-io/capelin/plugin/fetch"
	"github.com/capelin-io/capelin/swarm/piece"
)

// Limits of what is learned from manifests, which anybody may have written.
const (
	maxManifest = 4 << 20 // bytes; containerd refuses longer ones itself
	maxLayers   = 512     // remembered of one manifest
	maxImages   = 256     // remembered; the least recently used is forgotten
)

// images remembers the order of the layers in the manifests that containerd
// committed or read lately. When it opens one layer, those above it will follow
// (it skips layers below whose snapshots exist), so they are fetched from the
// swarm ahead of it.
type images struct {
	fetches *fetch.Fetches
	store   ctrdcontent.Store
	queue   chan digest.Digest // to be parsed by run

	mu     sync.Mutex
	known  *lru.Cache[digest.Digest, *image]   // by manifest
	others *lru.Cache[digest.Digest, struct{}] // looked at, and no manifest of an image
	images map[piece.ID]*image                 // by layer or configuration: the image learned last
	news   chan struct{}                       // closed and replaced when one is learned
	early  *lru.Cache[piece.ID, struct{}]      // opened while no image with them was known
}

type image struct {
	manifest digest.Digest
	layers   []piece.ID
	config   piece.ID // zero: none that the swarm could carry
}

// blobs returns what the manifest names.
func (i *image) blobs() []piece.ID {
	if i.config == (piece.ID{}) {
		return i.layers
	}
	return append(i.layers[:len(i.layers):len(i.layers)], i.config)
}

func newImages(fs *fetch.Fetches, store ctrdcontent.Store) *images {
	im := &images{fetches: fs, store: store, queue: make(chan digest.Digest, 64), images: map[piece.ID]*image{}, news: make(chan struct{})}
	var err error
	if im.known, err = lru.NewWithEvict(maxImages, im.forgetLocked); err != nil {
		panic(err) // only for a size of 0
	}
	if im.others, err = lru.New[digest.Digest, struct{}](16 * maxImages); err != nil {
		panic(err)
	}
	if im.early, err = lru.New[piece.ID, struct{}](maxImages); err != nil {
		panic(err)
	}
	return im
}

// forgetLocked is called by the cache, with mu held by whoever adds.
func (im *images) forgetLocked(_ digest.Digest, img *image) {
	for _, id := range img.blobs() {
		if im.images[id] == img {
			delete(im.images, id)
		}
	}
}

// committed tells that containerd committed a manifest or an index.
func (im *images) committed(d digest.Digest, size int64) {
	if size > 0 && size <= maxManifest {
		im.look(d)
	}
}

// read tells that containerd read a blob from its beginning. A manifest that was
// committed before this agent started is learned so.
func (im *images) read(d digest.Digest) {
	im.mu.Lock()
	_, known := im.known.Get(d)
	known = known || im.others.Contains(d)
	im.mu.Unlock()
	if !known {
		im.look(d)
	}
}

func (im *images) look(d digest.Digest) {
	select {
	case im.queue <- d:
	default: // a hint was lost; layers are then fetched when they are opened
	}
}

// opened tells that containerd opened a blob for writing.
func (im *images) opened(id piece.ID, ref string) {
	if _, key, _ := strings.Cut(ref, "/"); !strings.Contains(key, "/layer-") {
		return
	}
	im.ahead(id)
}

// ahead starts what lies above a layer, bottom first.
func (im *images) ahead(id piece.ID) {
	im.mu.Lock()
	img := im.images[id]
	if img == nil {
		im.early.Add(id, struct{}{})
	}
	im.mu.Unlock()
	if img == nil {
		return
	}
	above := false
	for i, l := range img.layers {
		if above {
			im.fetches.Prefetch(l, i)
		}
		above = above || l == id
	}
}

// run parses manifests and keeps the prefetches of images alive that containerd
// works on.
func (im *images) run(ctx context.Context, live func() []piece.ID) {
	tick := time.NewTicker(im.fetches.Config().Prefetch/4 + 1)
	defer tick.Stop()
	for {
		select {
		case d := <-im.queue:
			im.learn(ctx, d)
		case <-tick.C:
			for _, id := range live() {
				im.mu.Lock()
				img := im.images[id]
				im.mu.Unlock()
				if img == nil {
					continue
				}
				for _, l := range img.layers {
					im.fetches.Prolong(l)
				}
			}
		case <-ctx.Done():
			return
		}
	}
}

func (im *images) learn(ctx context.Context, d digest.Digest) {
	var img *image
	p, err := readBlob(ctx, im.store, d, maxManifest)
	switch {
	case err == nil:
		img = parseManifest(p)
	case !errdefs.IsNotFound(err) && !errdefs.IsOutOfRange(err):
		log.G(ctx).WithError(err).WithField("digest", d).Debug("cannot read a manifest")
		return
	}
	im.mu.Lock()
	if img == nil {
		im.others.Add(d, struct{}{})
	} else {
		img.manifest = d
		im.known.Add(d, img)
		for _, id := range img.blobs() {
			im.images[id] = img
		}
		close(im.news)
		im.news = make(chan struct{})
	}
	im.mu.Unlock()
	if img == nil {
		return
	}
	// containerd may have been faster.
	for _, id := range img.layers {
		if im.early.Remove(id) || im.fetches.InUse(id) {
			im.ahead(id)
			return
		}
	}
}

// manifest returns the manifest, learned last, that names a blob. containerd may open the
// blob before that has been read here.
func (im *images) manifest(ctx context.Context, id piece.ID) (digest.Digest, error) {
	for {
		im.mu.Lock()
		img, news := im.images[id], im.news
		im.mu.Unlock()
		if img != nil {
			return img.manifest, nil
		}
		select {
		case <-news:
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
}

// parseManifest returns the layers of an OCI or Docker image manifest, bottom
// first, or nil if p is none (an index, a config, an artifact without layers).
func parseManifest(p []byte) *image {
	if len(p) == 0 || p[0] != '{' {
		return nil
	}
	var m struct {
		Config ocispec.Descriptor   `json:"config"`
		Layers []ocispec.Descriptor `json:"layers"`
	}
	if json.Unmarshal(p, &m) != nil || len(m.Layers) == 0 {
		return nil
	}
	img := &image{}
	if id, err := piece.ParseID(m.Config.Digest.String(), m.Config.Size); err == nil {
		img.config = id
	}
	for _, l := range m.Layers {
		if id, err := piece.ParseID(l.Digest.String(), l.Size); err == nil && len(img.layers) < maxLayers {
			img.layers = append(img.layers, id)
		}
	}
	return img
}
