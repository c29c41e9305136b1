package indexd

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/capelin-io/capelin/control/index"
	"github.com/capelin-io/capelin/fetcher/fetchertest"
)

// about pushes an artifact about a subject.
func (w *world) about(repo string, subject digest.Digest, artifactType, name string) ocispec.Descriptor {
	w.t.Helper()
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, ArtifactType: artifactType,
		Config: ocispec.DescriptorEmptyJSON, Annotations: map[string]string{"name": name},
		Subject: &ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: subject, Size: 1}}
	m.SchemaVersion = 2
	return w.put(repo, w.bytes(m.MediaType, m))
}

func TestReferrers(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	subject := digest.FromString("subject") // not there, and need not be
	if got, err := w.Referrers(ctx, "r", subject, ""); err != nil || len(got) != 0 || got == nil {
		t.Errorf("none: %v, %v", got, err)
	}
	types := []string{"a/sbom", "a/signature", ""}
	want := map[string][]digest.Digest{}
	for i := range 250 {
		kind := types[i%len(types)]
		d := w.about("r", subject, kind, fmt.Sprint(i))
		if kind == "" {
			kind = ocispec.MediaTypeEmptyJSON // its config's type stands for it
		}
		want[kind] = append(want[kind], d.Digest)
		want[""] = append(want[""], d.Digest)
	}
	w.about("r", digest.FromString("another"), "a/sbom", "x")
	w.about("r2", subject, "a/sbom", "y")
	for kind, digests := range want {
		slices.Sort(digests)
		got, err := w.Referrers(ctx, "r", subject, kind)
		var have []digest.Digest
		for _, r := range got {
			have = append(have, r.Digest)
			if kind != "" && r.ArtifactType != kind || r.Annotations["name"] == "" || r.Size == 0 || r.MediaType != ocispec.MediaTypeImageManifest {
				t.Errorf("%q: %+v", kind, r)
			}
		}
		if err != nil || !slices.Equal(have, digests) {
			t.Errorf("%q: %d referrers, %v, want %d", kind, len(have), err, len(digests))
		}
		have = pages(t, 7, func(after digest.Digest, limit int) (page []digest.Digest, more bool, err error) {
			p, err := w.ReferrersPage(ctx, "r", subject, kind, after, limit)
			for _, r := range p.Referrers {
				page = append(page, r.Digest)
			}
			return page, p.More, err
		})
		if !slices.Equal(have, digests) {
			t.Errorf("%q in pages: %d referrers", kind, len(have))
		}
	}
	if got, err := w.Referrers(ctx, "r", subject, "a/none"); err != nil || len(got) != 0 {
		t.Errorf("another type: %v, %v", got, err)
	}
	gone := want[""][100]
	if err := w.DeleteManifest(ctx, "r", gone); err != nil {
		t.Fatal(err)
	}
	got, err := w.Referrers(ctx, "r", subject, "")
	if err != nil || len(got) != 249 || slices.ContainsFunc(got, func(d ocispec.Descriptor) bool { return d.Digest == gone }) {
		t.Errorf("after a deletion: %d, %v", len(got), err)
	}
	if _, err := w.storage.Stat(ctx, referrerKey("r", subject, gone)); !errdefs.IsNotFound(err) {
		t.Errorf("its entry: %v", err)
	}
}

// Pages of referrers with large annotations stay small.
func TestLargeReferrers(t *testing.T) {
	w := newWorld(t)
	subject := digest.FromString("subject")
	for i := range 40 {
		w.about("r", subject, "a/b", strings.Repeat("x", index.MaxAnnotations-20)+fmt.Sprint(i))
	}
	page, err := w.ReferrersPage(t.Context(), "r", subject, "", "", 0)
	if err != nil || !page.More || len(page.Referrers) > 20 {
		t.Errorf("%d in a page, %v", len(page.Referrers), err)
	}
	if all, err := w.Referrers(t.Context(), "r", subject, ""); err != nil || len(all) != 40 {
		t.Errorf("%d in all, %v", len(all), err)
	}
}

// Deleting a manifest deletes the tags that name it, those that are written at the
// same time included.
func TestDeleteManifest(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	a, b := w.opaque("r", "a"), w.opaque("r", "b")
	for tag, d := range map[string]ocispec.Descriptor{"a1": a, "a2": a, "b1": b} {
		if _, err := w.PutTag(ctx, "r", tag, d); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.DeleteManifest(ctx, "r", a.Digest); err != nil {
		t.Fatal(err)
	}
	if names, _, err := w.another().Tags(ctx, "r", "", 0); err != nil || !slices.Equal(names, []string{"b1"}) {
		t.Errorf("tags %v, %v", names, err)
	}
	_, err := w.Manifest(ctx, "r", a.Digest)
	w.wantErr("get", err, errdefs.ErrNotFound)
	w.wantErr("delete again", w.DeleteManifest(ctx, "r", a.Digest), errdefs.ErrNotFound)
	_, err = w.PutTag(ctx, "r", "a1", a)
	w.wantErr("tag", err, errdefs.ErrFailedPrecondition)
	// It can be pushed again.
	w.put("r", a)
	if got, err := w.PutTag(ctx, "r", "a1", a); err != nil || got.Revision != 3 {
		t.Errorf("tag after another push: %+v, %v", got, err)
	}
}

// At each step of a deletion another index writes a tag for the manifest, and at
// each step of that another deletes it. In the end the tag names what is there, or is not.
func TestDeleteRacesTag(t *testing.T) {
	for _, deleter := range []bool{true, false} {
		for step := range 20 {
			w := newWorld(t)
			other := w.another()
			a := w.opaque("r", "a")
			ctx := t.Context()
			if _, err := w.PutTag(ctx, "r", "old", a); err != nil {
				t.Fatal(err)
			}
			del := func(x *Index) error { return x.DeleteManifest(ctx, "r", a.Digest) }
			put := func(x *Index) error { _, err := x.PutTag(ctx, "r", "new", a); return err }
			outer, inner := put, del
			if deleter {
				outer, inner = del, put
			}
			var n atomic.Int64
			done := false
			w.storage.Fail = func(fetchertest.Op, string) error {
				if n.Add(1) == int64(step) {
					done = true
					if err := inner(other); err != nil && !errdefs.IsFailedPrecondition(err) {
						t.Errorf("step %d: %v", step, err)
					}
				}
				return nil
			}
			if err := outer(w.Index); err != nil && !errdefs.IsFailedPrecondition(err) {
				t.Errorf("step %d: %v", step, err)
			}
			w.storage.Fail = nil
			if !done {
				continue
			}
			_, there := other.Manifest(ctx, "r", a.Digest)
			tag, err := other.Tag(ctx, "r", "new")
			if err == nil && there != nil {
				t.Errorf("deleter %v, step %d: the tag is %+v, its manifest: %v", deleter, step, tag, there)
			}
		}
	}
}

// The same with pushing a referrer anew while it is deleted.
func TestDeleteRacesPut(t *testing.T) {
	for _, deleter := range []bool{true, false} {
		for step := range 20 {
			w := newWorld(t)
			other := w.another()
			subject := digest.FromString("subject")
			a := w.about("r", subject, "a/b", "x")
			ctx := t.Context()
			del := func(x *Index) error { return x.DeleteManifest(ctx, "r", a.Digest) }
			put := func(x *Index) error { return x.PutManifest(ctx, "r", index.Manifest{Descriptor: a}) }
			outer, inner := put, del
			if deleter {
				outer, inner = del, put
			}
			var n atomic.Int64
			w.storage.Fail = func(fetchertest.Op, string) error {
				if n.Add(1) == int64(step) {
					if err := inner(other); err != nil {
						t.Errorf("step %d: %v", step, err)
					}
				}
				return nil
			}
			if err := outer(w.Index); err != nil {
				t.Errorf("step %d: %v", step, err)
			}
			w.storage.Fail = nil
			_, err := other.Manifest(ctx, "r", a.Digest)
			refs, err2 := other.Referrers(ctx, "r", subject, "")
			if err2 != nil || (err == nil) != (len(refs) == 1) {
				t.Errorf("deleter %v, step %d: manifest %v, referrers %v, %v", deleter, step, err, refs, err2)
			}
		}
	}
}

// Referrers returns all manifests whose subject is d, as index.Client does.
func (x *Index) Referrers(ctx context.Context, repo string, d digest.Digest, artifactType string) ([]ocispec.Descriptor, error) {
	return index.AllReferrers(repo, d, func(after digest.Digest) (index.Referrers, error) {
		return x.ReferrersPage(ctx, repo, d, artifactType, after, 0)
	})
}
