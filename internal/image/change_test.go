package image

import (
	"io"
	"log"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// A tag is given without moving a byte, to another repository by a copy, and taken away alone.
func TestTagAndRemove(t *testing.T) {
	reg := newRegistry(t, nil)
	c := newClient(t, Config{})
	ctx := t.Context()
	r := copyTo(t, c, newLayout(t, item{index: multi(t)}, ""), reg+"/a/b:v1", Options{})
	at := func(s string) Place { p, err := c.Reference(reg + s); return c.must(t, p, err) }
	got, err := c.Tag(ctx, at("/a/b:v1"), at("/a/b:v2"))
	if err != nil || got.Digest != r.Digest || got.Reference != reg+"/a/b:v2@"+r.Digest || got.Bytes != 0 {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err = c.Tag(ctx, at("/a/b@"+r.Digest), at("/other/x:1")); err != nil || got.Digest != r.Digest {
		t.Errorf("to another repository: %+v, %v", got, err)
	}
	for _, ref := range []string{"/a/b:v2", "/other/x:1"} {
		if m, err := c.Inspect(ctx, at(ref)); err != nil || m.Digest != r.Digest {
			t.Errorf("%s: %v, %v", ref, m, err)
		}
	}
	if _, err := c.Tag(ctx, at("/a/b:v1"), at("/a/b@"+r.Digest)); err == nil {
		t.Error("a digest as a tag")
	}
	if _, err := c.Tag(ctx, at("/a/b:none"), at("/a/b:v3")); err == nil || !strings.Contains(err.Error(), "a/b:none") {
		t.Errorf("of what is not there: %v", err)
	}
	if err := c.Remove(ctx, at("/a/b:v1")); err != nil {
		t.Error(err)
	}
	if _, err := c.Inspect(ctx, at("/a/b:v1")); err == nil {
		t.Error("it is still there")
	}
	if _, err := c.Inspect(ctx, at("/a/b:v2")); err != nil {
		t.Errorf("another tag: %v", err)
	}
	if err := c.Remove(ctx, at("/a/b:v1")); err == nil || !strings.Contains(err.Error(), "a/b:v1") {
		t.Errorf("twice: %v", err)
	}
}

// A tree has what refers to an image, to the images in it, and to that.
func TestTree(t *testing.T) {
	s := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0)), registry.WithReferrersSupport(true)))
	t.Cleanup(s.Close)
	reg := strings.TrimPrefix(s.URL, "http://")
	c := newClient(t, Config{})
	ii := multi(t)
	copyTo(t, c, newLayout(t, item{index: ii}, ""), reg+"/a/b:v1", Options{})
	repo, err := name.NewRepository(reg + "/a/b")
	if err != nil {
		t.Fatal(err)
	}
	refer := func(to v1.Descriptor) v1.Descriptor {
		t.Helper()
		img, err := random.Image(10, 1)
		if err != nil {
			t.Fatal(err)
		}
		img, ok := mutate.Subject(img, to).(v1.Image)
		if !ok {
			t.Fatal("no image")
		}
		d, err := partial.Descriptor(img)
		if err != nil {
			t.Fatal(err)
		}
		if err := remote.Write(repo.Digest(d.Digest.String()), img); err != nil {
			t.Fatal(err)
		}
		return *d
	}
	top, err := partial.Descriptor(ii)
	if err != nil {
		t.Fatal(err)
	}
	im, err := ii.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	signed := refer(*top)
	again := refer(signed)
	below := refer(im.Manifests[1])
	p, err := c.Reference(reg + "/a/b:v1")
	if err != nil {
		t.Fatal(err)
	}
	m, err := c.Tree(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	if len(m.Referrers) != 1 || m.Referrers[0].Digest != signed.Digest.String() || len(m.Referrers[0].Referrers) != 1 ||
		m.Referrers[0].Referrers[0].Digest != again.Digest.String() || len(m.Manifests) != 2 || len(m.Manifests[0].Referrers) != 0 ||
		len(m.Manifests[1].Referrers) != 1 || m.Manifests[1].Referrers[0].Digest != below.Digest.String() {
		t.Errorf("%+v", m)
	}
	if _, err := c.Tree(t.Context(), Place{Kind: Layout, Path: "x"}); err == nil {
		t.Error("of a layout")
	}
}
