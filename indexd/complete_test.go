package indexd

import (
	"encoding/json"
	"errors"
	"fmt"
	"testing"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/capelin-io/capelin/control/index"
)

// Manifests are accepted when all that they reach is there; what is missing is named.
func TestComplete(t *testing.T) {
	const repo = "team/app"
	image := func(config ocispec.Descriptor, layers ...ocispec.Descriptor) ocispec.Manifest {
		m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: config, Layers: layers}
		m.SchemaVersion = 2
		return m
	}
	config := func(w *world) ocispec.Descriptor { return w.blob(repo, ocispec.MediaTypeImageConfig, "{}") }
	layer := func(w *world) ocispec.Descriptor { return w.blob(repo, ocispec.MediaTypeImageLayerGzip, "layer") }
	nowhere := func(mediaType string) ocispec.Descriptor {
		return ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromString("nowhere"), Size: 7}
	}
	for _, tt := range []struct {
		name string
		push func(w *world) ocispec.Descriptor // the manifest to put
		err  error
		say  []string
	}{
		{name: "whole", push: func(w *world) ocispec.Descriptor {
			return w.bytes(ocispec.MediaTypeImageManifest, image(config(w), layer(w), layer(w)))
		}},
		{"no bytes", func(w *world) ocispec.Descriptor {
			return nowhere(ocispec.MediaTypeImageManifest)
		}, errdefs.ErrFailedPrecondition, []string{"no origin has the manifest's bytes"}},
		{"config missing", func(w *world) ocispec.Descriptor {
			return w.bytes(ocispec.MediaTypeImageManifest, image(nowhere(ocispec.MediaTypeImageConfig), layer(w)))
		}, errdefs.ErrFailedPrecondition, []string{"blob " + string(nowhere("").Digest), "not pushed to the repository"}},
		{"layer missing", func(w *world) ocispec.Descriptor {
			return w.bytes(ocispec.MediaTypeImageManifest, image(config(w), layer(w), nowhere(ocispec.MediaTypeImageLayerGzip)))
		}, errdefs.ErrFailedPrecondition, []string{"blob " + string(nowhere("").Digest)}},
		{"layer of another repository", func(w *world) ocispec.Descriptor {
			return w.bytes(ocispec.MediaTypeImageManifest, image(config(w), w.blob("team/other", ocispec.MediaTypeImageLayer, "theirs")))
		}, errdefs.ErrFailedPrecondition, []string{digest.FromString("theirs").String(), "not pushed to the repository"}},
		{"layer linked, lost by the origins", func(w *world) ocispec.Descriptor {
			l := layer(w)
			delete(w.origins.blobs, l.Digest)
			return w.bytes(ocispec.MediaTypeImageManifest, image(config(w), l))
		}, errdefs.ErrFailedPrecondition, []string{"no origin has it"}},
		{"origins cannot say", func(w *world) ocispec.Descriptor {
			l := layer(w)
			w.origins.dark[l.Digest] = true
			return w.bytes(ocispec.MediaTypeImageManifest, image(config(w), l))
		}, errdefs.ErrUnavailable, nil},
		{"origins refuse us", func(w *world) ocispec.Descriptor {
			d := w.bytes(ocispec.MediaTypeImageManifest, image(config(w)))
			w.origins.down = fmt.Errorf("no rights: %w", errdefs.ErrPermissionDenied)
			return d
		}, errdefs.ErrUnavailable, nil},
		{"one missing, of another the origins cannot say", func(w *world) ocispec.Descriptor {
			l := layer(w)
			d := w.bytes(ocispec.MediaTypeImageManifest, image(nowhere("a/b"), l, w.blob(repo, "a/b", "more")))
			w.origins.dark[l.Digest] = true
			return d
		}, errdefs.ErrFailedPrecondition, []string{string(nowhere("").Digest)}},
		{name: "foreign and inline", push: func(w *world) ocispec.Descriptor {
			inline := ocispec.DescriptorEmptyJSON
			foreign := nowhere("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip")
			other := nowhere(ocispec.MediaTypeImageLayerNonDistributableZstd) //nolint:staticcheck // there are some
			return w.bytes(ocispec.MediaTypeImageManifest, image(inline, foreign, other))
		}},
		{"size wrong", func(w *world) ocispec.Descriptor {
			l := layer(w)
			l.Size++
			return w.bytes(ocispec.MediaTypeImageManifest, image(config(w), l))
		}, errdefs.ErrFailedPrecondition, []string{"with 5 bytes, not 6"}},
		{"two sizes", func(w *world) ocispec.Descriptor {
			l := layer(w)
			l.Size++
			return w.bytes(ocispec.MediaTypeImageManifest, image(config(w), layer(w), l))
		}, errdefs.ErrInvalidArgument, []string{"has 6 bytes, elsewhere it has 5"}},
		{name: "index", push: func(w *world) ocispec.Descriptor {
			return w.indexOf(w.image(repo, "a"), w.image(repo, "b"))
		}},
		{"child missing", func(w *world) ocispec.Descriptor {
			return w.indexOf(w.image(repo, "a"), w.bytes(ocispec.MediaTypeImageManifest, image(config(w))))
		}, errdefs.ErrFailedPrecondition, []string{"manifest sha256:", "not pushed to the repository", "refers to it"}},
		{"child of another repository", func(w *world) ocispec.Descriptor {
			return w.indexOf(w.image("team/other", "a"))
		}, errdefs.ErrFailedPrecondition, []string{"manifest sha256:"}},
		{"child's layer unlinked", func(w *world) ocispec.Descriptor {
			d := w.image(repo, "a")
			if err := w.UnlinkBlob(w.t.Context(), repo, digest.FromString("base")); err != nil {
				w.t.Fatal(err)
			}
			return w.indexOf(d)
		}, errdefs.ErrFailedPrecondition, []string{digest.FromString("base").String()}},
		{"grandchild's layer lost", func(w *world) ocispec.Descriptor {
			d := w.put(repo, w.indexOf(w.image(repo, "a")))
			delete(w.origins.blobs, digest.FromString("layer of a"))
			return w.indexOf(d)
		}, errdefs.ErrFailedPrecondition, []string{digest.FromString("layer of a").String(), "no origin has it"}},
		{"child's bytes lost", func(w *world) ocispec.Descriptor {
			d := w.image(repo, "a")
			delete(w.origins.blobs, d.Digest)
			return w.indexOf(d)
		}, errdefs.ErrFailedPrecondition, []string{"manifest sha256:", "no origin has it"}},
		{"child's size wrong", func(w *world) ocispec.Descriptor {
			d := w.image(repo, "a")
			d.Size++
			return w.indexOf(d)
		}, errdefs.ErrInvalidArgument, nil},
		{name: "build cache: an index of layers", push: func(w *world) ocispec.Descriptor {
			return w.indexOf(layer(w), w.blob(repo, "application/vnd.buildkit.cacheconfig.v0", "cache"))
		}},
		{"build cache, layer missing", func(w *world) ocispec.Descriptor {
			return w.indexOf(nowhere(ocispec.MediaTypeImageLayerGzip))
		}, errdefs.ErrFailedPrecondition, []string{"blob "}},
		{"manifest of a type that nobody knows", func(w *world) ocispec.Descriptor {
			return w.bytes("application/vnd.example+json", map[string]any{"schemaVersion": 2, "mediaType": "application/vnd.example+json"})
		}, errdefs.ErrInvalidArgument, []string{"a type that is not known"}},
		{"manifest pushed as another type", func(w *world) ocispec.Descriptor {
			d := w.indexOf()
			d.MediaType = "application/x-www-form-urlencoded"
			return d
		}, errdefs.ErrInvalidArgument, []string{"was pushed as application/x-www-form-urlencoded"}},
		{name: "subject missing", push: func(w *world) ocispec.Descriptor {
			m := image(config(w))
			subject := nowhere(ocispec.MediaTypeImageManifest)
			m.Subject = &subject
			return w.bytes(m.MediaType, m)
		}},
		{name: "eight deep", push: func(w *world) ocispec.Descriptor {
			d := w.image(repo, "a")
			for range maxDepth - 1 {
				d = w.put(repo, w.indexOf(d))
			}
			return w.indexOf(d)
		}},
		{"nine deep", func(w *world) ocispec.Descriptor {
			d := w.image(repo, "a")
			for range maxDepth {
				d = w.put(repo, w.indexOf(d))
			}
			return w.indexOf(d)
		}, errdefs.ErrInvalidArgument, []string{"more than 8 deep"}},
		{"too many", func(w *world) ocispec.Descriptor {
			var children []ocispec.Descriptor
			for i := range 2 {
				m := image(config(w))
				for j := range maxReached/2 + 1 {
					m.Layers = append(m.Layers, ocispec.Descriptor{
						MediaType: ocispec.MediaTypeImageLayerNonDistributable, //nolint:staticcheck // there are some
						Digest:    digest.FromString(fmt.Sprint(i, j)),
					})
				}
				m.Layers = append(m.Layers, layer(w))
				children = append(children, w.put(repo, w.bytes(m.MediaType, m)))
			}
			// What need not be there counts nothing.
			w.put(repo, w.indexOf(children...))
			for i := range children {
				m := image(config(w))
				for j := range maxReached/2 + 1 {
					m.Layers = append(m.Layers, ocispec.Descriptor{MediaType: "a/b", Digest: digest.FromString(fmt.Sprint(i, j))})
				}
				d := w.bytes(m.MediaType, m)
				raw, _ := w.origins.get(ref(d.Digest))
				parsed, err := index.ParseManifest(m.MediaType, raw)
				if err != nil {
					w.t.Fatal(err)
				}
				// As if it had been complete once.
				if err := w.write(w.t.Context(), manifestKey(repo, d.Digest), &manifestObject{formatVersion, parsed}); err != nil {
					w.t.Fatal(err)
				}
				children[i] = d
			}
			return w.indexOf(children...)
		}, errdefs.ErrInvalidArgument, []string{"more than 10000"}},
		{"other media type", func(w *world) ocispec.Descriptor {
			d := w.bytes(ocispec.MediaTypeImageManifest, image(config(w)))
			d.MediaType = ocispec.MediaTypeImageIndex
			return d
		}, errdefs.ErrInvalidArgument, nil},
		{"too large", func(w *world) ocispec.Descriptor {
			return w.bytes("a/b", make([]byte, index.MaxManifest))
		}, errdefs.ErrInvalidArgument, []string{"4194304 are allowed"}},
		{"an origin lies", func(w *world) ocispec.Descriptor {
			d := w.bytes("a/b", 1)
			w.origins.blobs[d.Digest] = []byte("2")
			return d
		}, errdefs.ErrUnavailable, []string{"other bytes"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			d := tt.push(w)
			err := w.PutManifest(t.Context(), repo, index.Manifest{Descriptor: d})
			_, have := w.Manifest(t.Context(), repo, d.Digest)
			if tt.err != nil {
				w.wantErr("put", err, tt.err, tt.say...)
				w.wantErr("get", have, errdefs.ErrNotFound)
				_, err := w.PutTag(t.Context(), repo, "v1", d)
				w.wantErr("tag", err, errdefs.ErrFailedPrecondition)
				return
			}
			if err != nil || have != nil {
				t.Fatalf("put %v, then %v", err, have)
			}
			if _, err := w.PutTag(t.Context(), repo, "v1", ocispec.Descriptor{Digest: d.Digest}); err != nil {
				t.Errorf("tag: %v", err)
			}
		})
	}
}

// A tag looks again, at everything, at the time of its writing.
func TestTagLooksAgain(t *testing.T) {
	const repo = "team/app"
	w := newWorld(t)
	d := w.put(repo, w.indexOf(w.image(repo, "a"), w.image(repo, "b")))
	if _, err := w.PutTag(t.Context(), repo, "v1", d); err != nil {
		t.Fatal(err)
	}
	w.origins.dark[digest.FromString("layer of b")] = true
	_, err := w.PutTag(t.Context(), repo, "v1", d)
	w.wantErr("origins cannot say", err, errdefs.ErrUnavailable)
	w.origins.dark = map[digest.Digest]bool{}
	for _, c := range []string{"layer of a", "layer of b"} {
		if err := w.UnlinkBlob(t.Context(), repo, digest.FromString(c)); err != nil {
			t.Fatal(err)
		}
	}
	_, err = w.PutTag(t.Context(), repo, "v2", d)
	var missing *index.MissingError
	if !errors.As(err, &missing) || len(missing.Missing) != 2 || missing.More != 0 || missing.Repository != repo {
		t.Fatalf("got %v", err)
	}
	for i, c := range []string{"layer of a", "layer of b"} {
		if m := missing.Missing[i]; m.Digest != digest.FromString(c) || m.Kind != "blob" || m.NeededBy == d.Digest {
			t.Errorf("missing %d: %+v", i, m)
		}
	}
	_, err = w.Tag(t.Context(), repo, "v2")
	w.wantErr("the refused tag", err, errdefs.ErrNotFound)
	if got, err := w.Tag(t.Context(), repo, "v1"); err != nil || got.Revision != 1 {
		t.Errorf("the first one: %+v, %v", got, err)
	}
	// Others say something of it that is not so.
	for _, o := range []ocispec.Descriptor{
		{Digest: d.Digest, Size: d.Size + 1}, {Digest: d.Digest, MediaType: ocispec.MediaTypeImageManifest},
	} {
		_, err = w.PutTag(t.Context(), repo, "v1", o)
		w.wantErr("another descriptor", err, errdefs.ErrInvalidArgument)
	}
}

// The list of what is missing is cut.
func TestManyMissing(t *testing.T) {
	w := newWorld(t)
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: w.blob("a", "a/b", "c")}
	m.SchemaVersion = 2
	for i := range 25 {
		m.Layers = append(m.Layers, ocispec.Descriptor{MediaType: "a/b", Digest: digest.FromString(fmt.Sprint(i)), Size: 1})
	}
	err := w.PutManifest(t.Context(), "a", index.Manifest{Descriptor: w.bytes(m.MediaType, m)})
	var missing *index.MissingError
	if !errors.As(err, &missing) || len(missing.Missing) != index.MaxMissing || missing.More != 15 {
		t.Fatalf("got %v", err)
	}
	for i, got := range missing.Missing {
		if got.Digest != m.Layers[i].Digest {
			t.Errorf("missing %d is %s", i, got.Digest)
		}
	}
}

// The record says what the bytes say, not what the caller says.
func TestRecordIsOfTheBytes(t *testing.T) {
	w := newWorld(t)
	d := w.image("a", "x")
	lie := index.Manifest{Descriptor: d, ArtifactType: "a/lie", Annotations: map[string]string{"a": "lie"}, Blobs: []ocispec.Descriptor{}}
	lie.Descriptor.Size = 5
	if err := w.PutManifest(t.Context(), "a", lie); err != nil {
		t.Fatal(err)
	}
	got, err := w.Manifest(t.Context(), "a", d.Digest)
	raw, _ := w.origins.get(ref(d.Digest))
	want, _ := index.ParseManifest(d.MediaType, raw)
	a, _ := json.Marshal(got)
	b, _ := json.Marshal(want)
	if err != nil || string(a) != string(b) || len(got.Blobs) != 3 {
		t.Errorf("got %s, %v, want %s", a, err, b)
	}
	// sha512 digests name the same bytes.
	d5 := digest.SHA512.FromBytes(raw)
	w.origins.blobs[d5] = raw
	if err := w.PutManifest(t.Context(), "a", index.Manifest{Descriptor: ocispec.Descriptor{Digest: d5, MediaType: d.MediaType}}); err != nil {
		t.Fatal(err)
	}
	if got, err = w.Manifest(t.Context(), "a", d5); err != nil || got.Descriptor.Digest != d5 {
		t.Errorf("got %v, %v", got.Descriptor, err)
	}
}
