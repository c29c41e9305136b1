package indexd

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/capelin-io/capelin/control/index"
	"github.com/capelin-io/capelin/control/origin"
	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/fetcher/fetchertest"
)

// origins is a fake ring of origins.
type origins struct {
	mu    sync.Mutex
	blobs map[digest.Digest][]byte
	down  error // what all calls answer, if not nil
	// dark are blobs of which the origins cannot say.
	dark map[digest.Digest]bool
}

func newOrigins() *origins {
	return &origins{blobs: map[digest.Digest][]byte{}, dark: map[digest.Digest]bool{}}
}

func (o *origins) get(ref origin.Ref) ([]byte, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.down != nil {
		return nil, o.down
	}
	if o.dark[ref.Digest] {
		return nil, fmt.Errorf("origin: %w", errdefs.ErrUnavailable)
	}
	b, ok := o.blobs[ref.Digest]
	if !ok {
		return nil, fmt.Errorf("origin: %s: %w", ref.Digest, errdefs.ErrNotFound)
	}
	return b, nil
}

func (o *origins) Stat(_ context.Context, ref origin.Ref) (origin.Info, error) {
	b, err := o.get(ref)
	return origin.Info{Size: int64(len(b))}, err
}

func (o *origins) Open(_ context.Context, ref origin.Ref, off, n int64) (io.ReadCloser, origin.Info, error) {
	b, err := o.get(ref)
	return io.NopCloser(bytes.NewReader(b)), origin.Info{Size: int64(len(b))}, err
}

func (o *origins) add(b []byte) digest.Digest {
	o.mu.Lock()
	defer o.mu.Unlock()
	d := digest.FromBytes(b)
	o.blobs[d] = b
	return d
}

// world is an index, its storage and origins.
type world struct {
	t testing.TB
	*Index
	storage *fetchertest.Faulty
	counts  *fetchertest.Counting
	origins *origins
}

func newWorld(t testing.TB) *world {
	counts := &fetchertest.Counting{Backend: &fetchertest.Memory{}}
	w := &world{t: t, storage: &fetchertest.Faulty{Backend: counts}, counts: counts, origins: newOrigins()}
	w.Index = w.another()
	return w
}

// object puts an object into the storage.
func (w *world) object(key, data string) {
	w.t.Helper()
	if _, err := w.counts.Write(w.t.Context(), key, int64(len(data)), strings.NewReader(data)); err != nil {
		w.t.Fatal(err)
	}
}

// capable is a storage that cannot do all.
type capable struct {
	fetcher.Backend
	caps fetcher.Capabilities
}

func (c capable) Capabilities() fetcher.Capabilities { return c.caps }

// another is an index over the same storage, without what this one remembers.
func (w *world) another() *Index {
	x, err := New(w.storage, w.origins, "test")
	if err != nil {
		w.t.Fatal(err)
	}
	return x
}

// blob puts a blob at the origins and links it, if repo is not empty.
func (w *world) blob(repo, mediaType, content string) ocispec.Descriptor {
	d := ocispec.Descriptor{MediaType: mediaType, Digest: w.origins.add([]byte(content)), Size: int64(len(content))}
	if repo != "" {
		if err := w.LinkBlob(w.t.Context(), repo, d); err != nil {
			w.t.Fatal(err)
		}
	}
	return d
}

// bytes puts a manifest's bytes at the origins.
func (w *world) bytes(mediaType string, v any) ocispec.Descriptor {
	raw, err := json.Marshal(v)
	if err != nil {
		w.t.Fatal(err)
	}
	return ocispec.Descriptor{MediaType: mediaType, Digest: w.origins.add(raw), Size: int64(len(raw))}
}

func (w *world) put(repo string, d ocispec.Descriptor) ocispec.Descriptor {
	w.t.Helper()
	if err := w.PutManifest(w.t.Context(), repo, index.Manifest{Descriptor: d}); err != nil {
		w.t.Fatal(err)
	}
	return d
}

// image pushes a whole image of two layers, different for each name.
func (w *world) image(repo, name string) ocispec.Descriptor {
	w.t.Helper()
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest,
		Config: w.blob(repo, ocispec.MediaTypeImageConfig, "{\"name\":\""+name+"\"}"),
		Layers: []ocispec.Descriptor{
			w.blob(repo, ocispec.MediaTypeImageLayerGzip, "base"),
			w.blob(repo, ocispec.MediaTypeImageLayerGzip, "layer of "+name),
		}}
	m.SchemaVersion = 2
	return w.put(repo, w.bytes(m.MediaType, m))
}

// index returns an index of these manifests, whose bytes are at the origins.
func (w *world) indexOf(children ...ocispec.Descriptor) ocispec.Descriptor {
	m := ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: children}
	m.SchemaVersion = 2
	return w.bytes(m.MediaType, m)
}

func (w *world) wantErr(what string, err error, is error, texts ...string) {
	w.t.Helper()
	if class, _ := index.Class(is); err == nil || !errIs(err, is) {
		w.t.Errorf("%s: got %v, want %s", what, err, class)
		return
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			w.t.Errorf("%s: %q does not say %q", what, err, text)
		}
	}
}

func errIs(err, is error) bool {
	got, _ := index.Class(err)
	want, _ := index.Class(is)
	return got == want
}
