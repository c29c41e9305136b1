package indexd

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/capelin-io/capelin/control/index"
)

// pages gathers a listing in pages of limit.
func pages[T ~string](t *testing.T, limit int, list func(after T, limit int) ([]T, bool, error)) (all []T) {
	t.Helper()
	var after T
	for {
		page, more, err := list(after, limit)
		if err != nil {
			t.Fatal(err)
		}
		if len(page) > limit || more && len(page) < limit {
			t.Fatalf("a page of %d, with more: %v", len(page), more)
		}
		all = append(all, page...)
		if !more {
			return all
		}
		after = page[len(page)-1]
	}
}

func TestTenThousandTags(t *testing.T) {
	w := newWorld(t)
	d := w.opaque("r", "a")
	w.opaque("r2", "a")
	var want []string
	for i := range 10000 {
		name := fmt.Sprintf("%s%d.%d-x", []string{"v", "V", "_", ""}[i%4], i%7, i)
		o := tagObject{Version: formatVersion, Repository: "r", Name: name, Revision: 1, Descriptor: d}
		if i%10 == 3 {
			o.Descriptor, o.Deleted = ocispec.Descriptor{}, true
		} else {
			want = append(want, name)
		}
		if err := w.write(t.Context(), tagKey("r", name), &o); err != nil {
			t.Fatal(err)
		}
	}
	slices.Sort(want)
	for _, limit := range []int{1000, 333} {
		got := pages(t, limit, func(after string, limit int) ([]string, bool, error) { return w.Tags(t.Context(), "r", after, limit) })
		if !slices.Equal(got, want) {
			t.Fatalf("pages of %d: %d tags, want %d", limit, len(got), len(want))
		}
	}
	// Listings read each version once.
	opens := w.counts.Opens()
	if names, more, err := w.Tags(t.Context(), "r", "v5", 7); err != nil || !more || len(names) != 7 || names[0] < "v5" {
		t.Errorf("got %v, %v, %v", names, more, err)
	}
	if w.counts.Opens() != opens {
		t.Errorf("%d objects read again", w.counts.Opens()-opens)
	}
	// What another index changes is seen at once.
	x := w.another()
	if _, err := x.PutTag(t.Context(), "r", "v3.3-x", d); err != nil { // was deleted
		t.Fatal(err)
	}
	if err := x.DeleteTag(t.Context(), "r", want[0]); err != nil {
		t.Fatal(err)
	}
	names, _, err := w.Tags(t.Context(), "r", "", 1)
	if err != nil || names[0] != want[1] {
		t.Errorf("got %v, %v, want %s", names, err, want[1])
	}
	all := pages(t, 1000, func(after string, limit int) ([]string, bool, error) { return w.Tags(t.Context(), "r", after, limit) })
	if len(all) != len(want) {
		t.Errorf("%d tags, want %d", len(all), len(want))
	}
}

func TestListBounds(t *testing.T) {
	w := newWorld(t)
	d := w.opaque("r", "a")
	_, _, err := w.Tags(t.Context(), "r2", "", 0)
	w.wantErr("unknown repository", err, errdefs.ErrNotFound)
	_, _, err = w.Manifests(t.Context(), "r2", "", 0)
	w.wantErr("unknown repository", err, errdefs.ErrNotFound)
	if names, more, err := w.Tags(t.Context(), "r", "", 0); err != nil || more || len(names) != 0 || names == nil {
		t.Errorf("no tags: %v, %v, %v", names, more, err)
	}
	for _, name := range []string{"a", "b", "c"} {
		if _, err := w.PutTag(t.Context(), "r", name, d); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.DeleteTag(t.Context(), "r", "c"); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		after string
		limit int
		want  []string
		more  bool
	}{
		{"", 0, []string{"a", "b"}, false},
		{"", -1, []string{"a", "b"}, false},
		{"", 1001, []string{"a", "b"}, false},
		{"", 1, []string{"a"}, true},
		{"", 2, []string{"a", "b"}, false}, // c is deleted
		{"a", 1, []string{"b"}, false},
		{"Z", 1, []string{"a"}, true},
		{"..", 1, []string{"a"}, true},
		{"zzz", 1, []string{}, false},
	} {
		names, more, err := w.Tags(t.Context(), "r", tt.after, tt.limit)
		if err != nil || !slices.Equal(names, tt.want) || more != tt.more {
			t.Errorf("after %q, %d: %v, %v, %v", tt.after, tt.limit, names, more, err)
		}
	}
	for _, after := range []string{"a/b", "a b", "ä", strings.Repeat("a", 256)} {
		_, _, err := w.Tags(t.Context(), "r", after, 0)
		w.wantErr(after, err, errdefs.ErrInvalidArgument)
	}
}

// The catalog's order is that of the names, whatever is in them, and however long.
func TestRepositories(t *testing.T) {
	w := newWorld(t)
	long := strings.Repeat("x/", 95)
	want := []string{"a", "a-b", "a.b", "a/b", "a/b-c", "a/b/c", "a0", "a_b", "ab", "a--b", "a__b", "1/a-b.c_d",
		long + "aaaaaaaa", long + "aaaaaaaaa", long + "aaaaaaaaaa", long + "aaaaaaaaa/b",
		long + "aaaaaaaaa-b", long + "aaaaaaaaa.b", long + strings.Repeat("b", 65)}
	alphabet := "ab0/.-_"
	for len(want) < 500 {
		b := make([]byte, 1+rand.N(60))
		for i := range b {
			b[i] = alphabet[rand.N(len(alphabet))]
		}
		if name := string(b); index.CheckRepository(name) == nil {
			want = append(want, name)
		}
	}
	slices.Sort(want)
	want = slices.Compact(want)
	for _, name := range want {
		if err := w.addRepository(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	for _, limit := range []int{1, 7, 1000} {
		got := pages(t, limit, func(after string, limit int) ([]string, bool, error) {
			return w.Repositories(t.Context(), after, limit)
		})
		if !slices.Equal(got, want) {
			t.Fatalf("pages of %d:\n%q\nwant\n%q", limit, got, want)
		}
	}
	// Any prefix can be listed from.
	for range 500 {
		name := want[rand.N(len(want))]
		after := name[:rand.N(len(name))]
		i, found := slices.BinarySearch(want, after)
		if found {
			i++
		}
		got, _, err := w.Repositories(t.Context(), after, 1)
		if err != nil || len(got) != 1 || got[0] != want[i] {
			t.Errorf("after %q: %q, %v, want %q", after, got, err, want[i])
		}
	}
	w.object(catalogPrefix+"Strange", "{}")
	_, _, err := w.Repositories(t.Context(), "", 0)
	w.wantErr("strange object", err, errdefs.ErrDataLoss)
}

func TestManifestsAndBlobs(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	var want []digest.Digest
	for i := range 25 {
		want = append(want, w.opaque("r", fmt.Sprint(i)).Digest)
	}
	slices.Sort(want)
	for _, limit := range []int{1, 10, 1000} {
		got := pages(t, limit, func(after digest.Digest, limit int) ([]digest.Digest, bool, error) {
			return w.Manifests(ctx, "r", after, limit)
		})
		if !slices.Equal(got, want) {
			t.Errorf("pages of %d: %v", limit, got)
		}
	}
	b := w.blob("r", "a/b", "content")
	if got, err := w.Blob(ctx, "r", b.Digest); err != nil || got.Size != 7 || got.MediaType != "a/b" {
		t.Errorf("got %v, %v", got, err)
	}
	if err := w.LinkBlob(ctx, "r", ocispec.Descriptor{Digest: b.Digest}); err != nil {
		t.Error(err)
	}
	if got, err := w.Blob(ctx, "r", b.Digest); err != nil || got.Size != 7 || got.MediaType != "" {
		t.Errorf("linked again: %v, %v", got, err)
	}
	w.wantErr("size", w.LinkBlob(ctx, "r", ocispec.Descriptor{Digest: b.Digest, Size: 8}), errdefs.ErrInvalidArgument)
	w.wantErr("nowhere", w.LinkBlob(ctx, "r", ocispec.Descriptor{Digest: digest.FromString("?")}), errdefs.ErrFailedPrecondition,
		"no origin has it")
	w.origins.dark[b.Digest] = true
	w.wantErr("dark", w.LinkBlob(ctx, "r", b), errdefs.ErrUnavailable)
	_, err := w.Blob(ctx, "r2", b.Digest)
	w.wantErr("another repository", err, errdefs.ErrNotFound)
	if err := w.UnlinkBlob(ctx, "r", b.Digest); err != nil {
		t.Error(err)
	}
	w.wantErr("unlink again", w.UnlinkBlob(ctx, "r", b.Digest), errdefs.ErrNotFound)
	_, err = w.Blob(ctx, "r", b.Digest)
	w.wantErr("unlinked", err, errdefs.ErrNotFound)
}
