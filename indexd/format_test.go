package indexd

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// The storage after a few writes is what testdata/storage.txt says, byte for byte
// (FORMAT.md, "Example"). If this fails by intention, the format's version changes.
func TestFormat(t *testing.T) {
	w := newWorld(t)
	w.now = func() time.Time { return time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC) }
	writes := 0
	w.newID = func() string { writes++; return fmt.Sprint("write", writes) }
	ctx := t.Context()
	const repo = "team/my-app.v2"
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest,
		Config: w.blob(repo, ocispec.MediaTypeImageConfig, "{}"),
		Layers: []ocispec.Descriptor{w.blob(repo, ocispec.MediaTypeImageLayerGzip, "layer")}}
	m.SchemaVersion = 2
	image := w.put(repo, w.bytes(m.MediaType, m))
	m.ArtifactType, m.Layers, m.Subject = "application/vnd.example.signature", nil, &image
	m.Annotations = map[string]string{"example": "<&>"}
	signature := w.put(repo, w.bytes(m.MediaType, m))
	for _, d := range []ocispec.Descriptor{image, signature} {
		if _, err := w.PutTag(ctx, repo, "v1", d); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.PutTag(ctx, repo, "old", image); err != nil {
		t.Fatal(err)
	}
	if err := w.DeleteTag(ctx, repo, "old"); err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	page, _, err := w.storage.List(ctx, "", "", 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, info := range page {
		r, _, err := w.storage.Open(ctx, info.Key, 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		data, _ := io.ReadAll(r)
		r.Close()
		fmt.Fprintf(&got, "%s\n%s", info.Key, data)
	}
	want, err := os.ReadFile("testdata/storage.txt")
	if err != nil || got.String() != string(want) {
		t.Errorf("testdata/storage.txt (%v) differs from:\n%s", err, got.String())
	}
	// And it is read back.
	for _, name := range []string{"v1", "old"} {
		if o, _, err := w.readTag(ctx, repo, name); err != nil || o.Name != name || o.Revision != 2 {
			t.Errorf("%+v, %v", o, err)
		}
	}
}
