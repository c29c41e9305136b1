package indexd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/capelin-io/capelin/control/index"
	"github.com/capelin-io/capelin/control/origin"
	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/fetcher/fetchertest"
)

func ref(d digest.Digest) origin.Ref { return origin.Ref{Digest: d} }

// opaque pushes a manifest that refers to nothing.
func (w *world) opaque(repo, name string) ocispec.Descriptor {
	w.t.Helper()
	m := ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{}, Annotations: map[string]string{"name": name}}
	m.SchemaVersion = 2
	return w.put(repo, w.bytes(m.MediaType, m))
}

// A tag's revisions, through moves and deletions.
func TestTagHistory(t *testing.T) {
	w := newWorld(t)
	a, b := w.opaque("r", "a"), w.opaque("r", "b")
	ctx := t.Context()
	_, err := w.Tag(ctx, "r", "v")
	w.wantErr("before", err, errdefs.ErrNotFound)
	w.wantErr("delete before", w.DeleteTag(ctx, "r", "v"), errdefs.ErrNotFound)
	stamp := uint64(0)
	for i, step := range []struct {
		to       ocispec.Descriptor
		previous []digest.Digest
	}{
		{a, nil},
		{a, nil}, // a write, and no move
		{b, []digest.Digest{a.Digest}},
		{a, []digest.Digest{b.Digest, a.Digest}},
		{ocispec.Descriptor{}, []digest.Digest{a.Digest, b.Digest, a.Digest}},
		{b, []digest.Digest{a.Digest, b.Digest, a.Digest}},
	} {
		x := w.another()
		want := index.Tag{Repository: "r", Name: "v", Descriptor: step.to, Revision: uint64(i + 1), Cluster: "test", Previous: step.previous}
		if step.to.Digest == "" {
			if err := w.DeleteTag(ctx, "r", "v"); err != nil {
				t.Fatal(err)
			}
			_, err := x.Tag(ctx, "r", "v")
			w.wantErr("deleted", err, errdefs.ErrNotFound)
			w.wantErr("delete again", x.DeleteTag(ctx, "r", "v"), errdefs.ErrNotFound)
			if o, _, err := x.readTag(ctx, "r", "v"); err != nil || o.Revision != want.Revision || !slices.Equal(o.Previous, want.Previous) {
				t.Errorf("step %d: tombstone %+v, %v", i, o, err)
			}
			continue
		}
		stamp++ // above the one before
		put, err := w.PutTag(ctx, "r", "v", ocispec.Descriptor{Digest: step.to.Digest})
		if err != nil {
			t.Fatal(err)
		}
		got, err := x.Tag(ctx, "r", "v") // another index, and at once
		for _, g := range []index.Tag{put, got} {
			if g.Updated.IsZero() {
				t.Errorf("step %d: no time", i)
			}
			if g.Stamp < stamp {
				t.Errorf("step %d: stamp %d after %d", i, g.Stamp, stamp)
			}
			stamp = g.Stamp
			g.Updated, g.Stamp = want.Updated, 0
			if fmt.Sprint(g) != fmt.Sprint(want) || err != nil {
				t.Errorf("step %d: got %+v, %v, want %+v", i, g, err, want)
			}
		}
	}
	for i := range 40 {
		if _, err := w.PutTag(ctx, "r", "v", []ocispec.Descriptor{a, b}[i%2]); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := w.Tag(ctx, "r", "v"); err != nil || got.Revision != 46 || len(got.Previous) != maxPrevious || got.Previous[0] != a.Digest {
		t.Errorf("got %+v, %v", got, err)
	}
}

// Many writers on several indexes: each acknowledged write is a revision of its own.
func TestRacingWriters(t *testing.T) {
	w := newWorld(t)
	const writers, each = 8, 10
	var descs []ocispec.Descriptor
	for i := range writers {
		descs = append(descs, w.opaque("r", fmt.Sprint(i)))
	}
	indexes := []*Index{w.Index, w.another(), w.another(), w.another()}
	var mu sync.Mutex
	seen := map[uint64]digest.Digest{}
	add := func(rev uint64, d digest.Digest) {
		mu.Lock()
		defer mu.Unlock()
		if _, twice := seen[rev]; twice {
			t.Errorf("revision %d was acknowledged twice", rev)
		}
		seen[rev] = d
	}
	var wg sync.WaitGroup
	for i := range writers {
		x := indexes[i%len(indexes)]
		wg.Go(func() {
			for range each {
				tag, err := x.PutTag(t.Context(), "r", "v", descs[i])
				if err != nil {
					t.Error(err)
					return
				}
				add(tag.Revision, descs[i].Digest)
				if got, err := indexes[(i+1)%len(indexes)].Tag(t.Context(), "r", "v"); err != nil || got.Revision < tag.Revision {
					t.Errorf("after revision %d: %d, %v", tag.Revision, got.Revision, err)
				}
			}
		})
	}
	wg.Wait()
	got, err := w.Tag(t.Context(), "r", "v")
	if err != nil || got.Revision != writers*each || len(seen) != writers*each || seen[got.Revision] != got.Descriptor.Digest {
		t.Errorf("%d acknowledged, tag %+v, %v", len(seen), got, err)
	}
}

// A writer that always loses gives up, and says that it may be tried again.
func TestHopelessRace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a := w.opaque("r", "a")
		faster := func(op fetchertest.Op, key string) error {
			if op == fetchertest.OpWriteIf && strings.Contains(key, "_tags") {
				return errdefs.ErrConflict
			}
			return nil
		}
		w.storage.Fail = faster
		_, err := w.PutTag(t.Context(), "r", "v", a)
		w.wantErr("put", err, errdefs.ErrUnavailable, "try again")
		if n := w.conflicts.Load(); n != maxTries {
			t.Errorf("%d tries", n)
		}
		ctx, cancel := context.WithCancel(t.Context())
		w.storage.Fail = func(op fetchertest.Op, key string) error {
			err := faster(op, key)
			if err != nil {
				cancel()
			}
			return err
		}
		_, err = w.PutTag(ctx, "r", "v", a)
		w.wantErr("cancelled", err, errdefs.ErrUnavailable)
	})
}

// An answer of the storage that got lost: the tag is read again, and says whether it was written. If that cannot be said, who asks
// again with the same id writes nothing twice, at whatever index, unless others have written in between.
func TestLostAnswer(t *testing.T) {
	w := newWorld(t)
	a, b := w.opaque("r", "a"), w.opaque("r", "b")
	var deaf bool // the storage does not answer afterwards, either
	fail := func(op fetchertest.Op, key string) error {
		if op == fetchertest.OpWriteIf {
			if deaf {
				w.storage.Fail = func(fetchertest.Op, string) error { return errors.New("away") }
			}
			return errors.New("connection reset")
		}
		return nil
	}
	w.storage.FailAfter = fail
	if got, err := w.PutTag(t.Context(), "r", "v", a); err != nil || got.Revision != 1 {
		t.Errorf("put: %+v, %v", got, err)
	}
	deaf = true
	_, err := w.PutTagOnce(t.Context(), "r", "v", b, "once")
	w.wantErr("put", err, errdefs.ErrUnavailable, "connection reset")
	w.storage.Fail, w.storage.FailAfter = nil, nil
	for range 2 {
		got, err := w.another().PutTagOnce(t.Context(), "r", "v", b, "once")
		if err != nil || got.Revision != 2 || got.Descriptor.Digest != b.Digest {
			t.Errorf("again: %+v, %v", got, err)
		}
	}
	if got, err := w.PutTag(t.Context(), "r", "v", a); err != nil || got.Revision != 3 {
		t.Errorf("somebody else: %+v, %v", got, err)
	}
	if got, err := w.PutTagOnce(t.Context(), "r", "v", b, "once"); err != nil || got.Revision != 4 {
		t.Errorf("after somebody else: %+v, %v", got, err)
	}
	_, err = w.PutTagOnce(t.Context(), "r", "v", b, "a b")
	w.wantErr("no id", err, errdefs.ErrInvalidArgument)

	// A write that was not done, and whose storage does not say so, is no success.
	w.storage.Fail = func(op fetchertest.Op, key string) error {
		if op == fetchertest.OpWriteIf {
			return errors.New("connection refused")
		}
		return nil
	}
	_, err = w.PutTag(t.Context(), "r", "v", b)
	w.wantErr("put", err, errdefs.ErrUnavailable, "connection refused")
}

// keeping is a storage of checksums that sees whether different writes are ever the same bytes.
type keeping struct {
	*fetchertest.Memory
	mu   sync.Mutex
	seen map[string]int // by key and version
}

func (k *keeping) WriteIf(ctx context.Context, key string, data []byte, version string) (fetcher.Info, error) {
	info, err := k.Memory.WriteIf(ctx, key, data, version)
	if err == nil {
		k.mu.Lock()
		k.seen[key+" "+info.Version]++
		k.mu.Unlock()
	}
	return info, err
}

// In a storage whose versions are checksums, that come back with the bytes, no two writes under compare-and-swap are the same
// bytes, at one time and by one clock either, and no revision is lost.
func TestChecksums(t *testing.T) {
	w := newWorld(t)
	k := &keeping{Memory: &fetchertest.Memory{Checksums: true}, seen: map[string]int{}}
	w.storage.Backend = k
	a, b := w.opaque("r", "a"), w.opaque("r", "b")
	const writers, each = 8, 20
	var wg sync.WaitGroup
	for i := range writers {
		x := w.another()
		x.now = func() time.Time { return time.Time{} } // a clock that tells nothing apart
		wg.Go(func() {
			for n := range each {
				var err error
				switch d := []ocispec.Descriptor{a, b}[(i+n)%2]; n % 4 {
				case 3:
					if err = x.DeleteTag(t.Context(), "r", "v"); errdefs.IsNotFound(err) {
						err = second(x.PutTag(t.Context(), "r", "v", d))
					}
				default:
					err = second(x.PutTag(t.Context(), "r", "v", d))
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	got, _, err := w.readTag(t.Context(), "r", "v")
	if err != nil || got.Revision != writers*each {
		t.Errorf("%+v, %v", got, err)
	}
	for what, n := range k.seen {
		if n > 1 {
			t.Errorf("%s was written %d times", what, n)
		}
	}
	// Two indexes that write the same tag to the same digest at the same instant, of which one hears nothing: it is not told
	// that the other's write was its own.
	one, other := w.another(), w.another()
	now := time.Now()
	one.now, other.now = func() time.Time { return now }, func() time.Time { return now }
	w.storage.Fail = func(op fetchertest.Op, key string) error {
		if op != fetchertest.OpWriteIf {
			return nil
		}
		w.storage.Fail = nil
		if _, err := other.PutTag(t.Context(), "r", "v", a); err != nil {
			t.Error(err)
		}
		return errors.New("no answer")
	}
	_, err = one.PutTag(t.Context(), "r", "v", a)
	w.wantErr("put", err, errdefs.ErrUnavailable, "no answer")
}

// What is wrong with the storage is never taken for an answer.
func TestStorageFailures(t *testing.T) {
	for _, tt := range []struct {
		name string
		err  error
	}{
		{"down", errdefs.ErrUnavailable}, {"no rights", errdefs.ErrPermissionDenied}, {"something", errors.New("something")},
	} {
		for _, op := range []fetchertest.Op{"stat", "open", "write", "writeif", "list", "delete"} {
			t.Run(tt.name+"/"+string(op), func(t *testing.T) {
				w := newWorld(t)
				a := w.image("r", "a")
				if _, err := w.PutTag(t.Context(), "r", "v", a); err != nil {
					t.Fatal(err)
				}
				w.storage.Fail = func(o fetchertest.Op, _ string) error {
					if o == op {
						return tt.err
					}
					return nil
				}
				ctx := t.Context()
				_, err1 := w.Tag(ctx, "r", "v")
				_, err2 := w.PutTag(ctx, "r", "v", a)
				_, _, err3 := w.another().Tags(ctx, "r", "", 0)
				_, err4 := w.Blob(ctx, "r", digest.FromString("base"))
				_, err5 := w.Manifest(ctx, "r", a.Digest)
				_, err6 := w.Referrers(ctx, "r", a.Digest, "")
				_, _, err7 := w.Repositories(ctx, "", 0)
				_, _, err8 := w.Manifests(ctx, "r", "", 0)
				failed := 0
				for i, err := range []error{err1, err2, err3, err4, err5, err6, err7, err8,
					w.PutManifest(ctx, "r", index.Manifest{Descriptor: a}),
					w.LinkBlob(ctx, "r", ocispec.Descriptor{Digest: digest.FromString("base")}),
					w.UnlinkBlob(ctx, "r", digest.FromString("layer of a")),
					w.DeleteManifest(ctx, "r", a.Digest),
				} {
					if err != nil {
						failed++
						w.wantErr(fmt.Sprint("call ", i), err, errdefs.ErrUnavailable)
					}
				}
				if failed == 0 {
					t.Error("nothing failed")
				}
			})
		}
	}
}

// Objects that are damaged, or newer, are refused by name.
func TestDamagedObjects(t *testing.T) {
	for name, data := range map[string]string{
		"newer":     `{"version":2}`,
		"no object": `[]`,
		"cut":       `{"version":1,"tag`,
		"empty":     ``,
		"type":      `{"version":1,"revision":"x"}`,
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			a := w.opaque("r", "a")
			key := tagKey("r", "v")
			w.object(key, data)
			_, err := w.Tag(t.Context(), "r", "v")
			w.wantErr("get", err, errdefs.ErrDataLoss, key)
			_, err = w.PutTag(t.Context(), "r", "v", a)
			w.wantErr("put", err, errdefs.ErrDataLoss, key)
			_, _, err = w.Tags(t.Context(), "r", "", 0)
			w.wantErr("list", err, errdefs.ErrDataLoss, key)
		})
	}
}

// A storage that cannot do what the index needs is refused at the start.
func TestCapabilities(t *testing.T) {
	all := fetcher.Capabilities{Write: true, List: true, Delete: true, CompareAndSwap: true}
	for name, change := range map[string]func(*fetcher.Capabilities){
		"compare and swap": func(c *fetcher.Capabilities) { c.CompareAndSwap = false },
		"write":            func(c *fetcher.Capabilities) { c.Write = false },
		"list":             func(c *fetcher.Capabilities) { c.List = false },
		"delete":           func(c *fetcher.Capabilities) { c.Delete = false },
	} {
		caps := all
		change(&caps)
		_, err := New(capable{&fetchertest.Memory{}, caps}, newOrigins(), "c")
		if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "cannot "+name) ||
			!strings.Contains(err.Error(), "storage memory:") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestNames(t *testing.T) {
	w := newWorld(t)
	a := w.opaque("r", "a")
	for _, tt := range []struct {
		repo, tag string
		d         digest.Digest
	}{
		{"", "v", a.Digest}, {"R", "v", a.Digest}, {"_tags", "v", a.Digest}, {"a/_tags/b", "v", a.Digest}, {"a//b", "v", a.Digest},
		{"../r", "v", a.Digest}, {"r", "", a.Digest}, {"r", "..", a.Digest}, {"r", "a/b", a.Digest}, {"r", strings.Repeat("v", 129), a.Digest},
		{strings.Repeat("a", 201), "v", a.Digest}, {strings.Repeat("a/", 127) + "aa", "v", a.Digest},
		{"r", "v", ""}, {"r", "v", "sha256:1"}, {"r", "v", "sha256:../../x"}, {"r", "v", "md5:d41d8cd98f00b204e9800998ecf8427e"},
	} {
		_, err := w.PutTag(t.Context(), tt.repo, tt.tag, ocispec.Descriptor{Digest: tt.d})
		w.wantErr(fmt.Sprintf("%+v", tt), err, errdefs.ErrInvalidArgument)
	}
	// The longest names still have keys.
	repo := strings.Repeat("a", 200) + "/" + strings.Repeat("b", 54)
	tag := strings.Repeat("v", 128)
	d := w.opaque(repo, "a")
	if _, err := w.PutTag(t.Context(), repo, tag, d); err != nil {
		t.Error(err)
	}
	if err := fetcher.CheckKey(referrerKey(repo, digest.SHA512.FromString("a"), digest.SHA512.FromString("b"))); err != nil {
		t.Error(err)
	}
	// Names that look like those of a deeper repository.
	for _, r := range []string{"a", "a/b", "a/tags", "a/b/c"} {
		d := w.opaque(r, "x"+r)
		if _, err := w.PutTag(t.Context(), r, "_tags", d); err != nil {
			t.Error(err)
		}
		if names, _, err := w.Tags(t.Context(), r, "", 0); err != nil || !slices.Equal(names, []string{"_tags"}) {
			t.Errorf("%s: %v, %v", r, names, err)
		}
	}
}
