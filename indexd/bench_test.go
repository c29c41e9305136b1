package indexd

import (
	"fmt"
	"sync/atomic"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/capelin-io/capelin/fetcher/file"
)

// onDisk is a world whose storage is a directory.
func onDisk(b *testing.B) *world {
	storage, err := file.Open(file.Config{Path: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { storage.Close() })
	w := newWorld(b)
	w.storage.Backend = storage
	return w
}

// BenchmarkPutTag moves one tag, and one of each goroutine, of an image with eleven
// blobs, through the checks, on a directory.
func BenchmarkPutTag(b *testing.B) {
	for _, same := range []bool{true, false} {
		b.Run(fmt.Sprintf("same=%v", same), func(b *testing.B) {
			w := onDisk(b)
			m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: w.blob("r", "a/b", "{}")}
			m.SchemaVersion = 2
			for i := range 10 {
				m.Layers = append(m.Layers, w.blob("r", "a/b", fmt.Sprint("layer ", i)))
			}
			d := w.put("r", w.bytes(m.MediaType, m))
			var n atomic.Int64
			b.RunParallel(func(pb *testing.PB) {
				name := "v"
				if !same {
					name = fmt.Sprint("v", n.Add(1))
				}
				for pb.Next() {
					if _, err := w.PutTag(b.Context(), "r", name, d); err != nil {
						b.Fatal(err)
					}
				}
			})
		})
	}
}

// BenchmarkTag reads a tag from a directory.
func BenchmarkTag(b *testing.B) {
	w := onDisk(b)
	if _, err := w.PutTag(b.Context(), "r", "v", w.image("r", "a")); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := w.Tag(b.Context(), "r", "v"); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkTags lists 1,000 of 10,000 tags in a directory; first is what an index does
// that has just started.
func BenchmarkTags(b *testing.B) {
	w := onDisk(b)
	d := w.opaque("r", "a")
	for i := range 10000 {
		o := tagObject{Version: formatVersion, Repository: "r", Name: fmt.Sprintf("v%05d", i), Revision: 1, Descriptor: d}
		if err := w.write(b.Context(), tagKey("r", o.Name), &o); err != nil {
			b.Fatal(err)
		}
	}
	for _, first := range []bool{true, false} {
		b.Run(fmt.Sprintf("first=%v", first), func(b *testing.B) {
			x := w.Index
			for b.Loop() {
				if first {
					x = w.another()
				}
				if names, _, err := x.Tags(b.Context(), "r", "v05", 1000); err != nil || len(names) != 1000 {
					b.Fatal(len(names), err)
				}
			}
		})
	}
}
