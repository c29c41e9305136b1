package indexd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
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
	"github.com/capelin-io/capelin/fetcher/fetchertest"
	"github.com/capelin-io/capelin/fetcher/walk"
)

// fsck looks through a world's storage, and returns what is said.
func (w *world) fsck(repair bool) (findings []index.Finding, orphans []string, result index.FsckResult) {
	w.t.Helper()
	opts := index.DefaultFsck
	opts.Repair = repair
	err := w.Fsck(w.t.Context(), opts, func(e index.FsckEvent) error {
		switch {
		case e.Finding != nil:
			findings = append(findings, *e.Finding)
		case e.Orphan != nil:
			orphans = append(orphans, e.Orphan.Repository+"@"+string(e.Orphan.Digest))
		case e.Unknown != "":
			w.t.Error(e.Unknown)
		case e.Done != nil:
			result = *e.Done
		}
		return nil
	})
	if err != nil {
		w.t.Error(err)
	}
	return findings, orphans, result
}

// dump is all that is in the storage.
func (w *world) dump() map[string]string {
	w.t.Helper()
	all := map[string]string{}
	for info, err := range walk.All(w.t.Context(), w.storage, "", "") {
		if err != nil {
			w.t.Fatal(err)
		}
		r, _, err := w.storage.Open(w.t.Context(), info.Key, 0, -1)
		if err != nil {
			w.t.Fatal(err)
		}
		data, _ := io.ReadAll(r)
		r.Close()
		all[info.Key] = string(data)
	}
	return all
}

// healthy is a world in which nothing is wrong: an image, an index of it and another one, a signature, an orphan, tags of several
// repositories, one of which is within another's name.
type healthy struct {
	*world
	image, both, signature, orphan ocispec.Descriptor
	layer                          digest.Digest // of image
}

func newHealthy(t *testing.T) *healthy {
	w := newWorld(t)
	w.now = func() time.Time { return time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC) }
	writes := 0
	w.newID = func() string { writes++; return fmt.Sprint("w", writes) }
	h := &healthy{world: w}
	const repo = "team/app"
	h.image = w.image(repo, "a")
	h.layer = digest.FromString("layer of a")
	h.both = w.put(repo, w.indexOf(h.image, w.image(repo, "b")))
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: w.blob(repo, ocispec.MediaTypeImageConfig, "{}"),
		Subject:      &h.both,
		ArtifactType: "application/vnd.example.signature"}
	m.SchemaVersion = 2
	h.signature = w.put(repo, w.bytes(m.MediaType, m))
	h.orphan = w.image(repo, "orphan")
	for _, r := range []string{"team", "team/app", "team/app/0", "team/app0", "team/app/z"} {
		for _, name := range []string{"v1", "gone"} {
			d := h.both
			if r != repo {
				d = w.image(r, "a")
			}
			if _, err := w.PutTag(t.Context(), r, name, d); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.DeleteTag(t.Context(), r, "gone"); err != nil {
			t.Fatal(err)
		}
	}
	return h
}

func (h *healthy) drop(keys ...string) {
	h.t.Helper()
	for _, key := range keys {
		if _, ok := h.dump()[key]; !ok {
			h.t.Fatalf("there is no %s", key)
		}
		if err := h.storage.Delete(h.t.Context(), key); err != nil {
			h.t.Fatal(err)
		}
	}
}

// Each kind of damage is found and mended, nothing else is touched, and nothing is found afterwards.
func TestFsck(t *testing.T) {
	const repo = "team/app"
	none := digest.FromString("nobody has it")
	tag := func(name string, d digest.Digest) (key, data string) {
		return tagKey(repo, name), fmt.Sprintf(`{"version":1,"repository":%q,"name":%q,"revision":7,"descriptor":{"digest":%q,"size":3}}`,
			repo, name, d)
	}
	for _, tt := range []struct {
		name  string
		harm  func(h *healthy)
		finds string // kinds; a space between
		want  func(h *healthy, now map[string]string)
		stays bool // it cannot be mended
	}{
		{name: "nothing", harm: func(*healthy) {}},
		{name: "no catalogue entry", harm: func(h *healthy) { h.drop(catalogPrefix + catalogPath(repo)) }, finds: "catalog-lacks"},
		{name: "a damaged catalogue entry", harm: func(h *healthy) { h.object(catalogPrefix+catalogPath(repo), `{"ver`) }, finds: "damaged"},
		{name: "another one's catalogue entry", harm: func(h *healthy) {
			h.object(catalogPrefix+catalogPath(repo), `{"version":1,"repository":"other"}`)
		}, finds: "damaged"},
		{name: "a damaged referrer", harm: func(h *healthy) {
			h.object(referrerKey(repo, h.both.Digest, h.signature.Digest), "")
		}, finds: "damaged"},
		{name: "a damaged manifest", harm: func(h *healthy) { h.object(manifestKey(repo, h.image.Digest), `[]`) }, finds: "damaged"},
		{name: "another manifest's record", harm: func(h *healthy) {
			h.object(manifestKey(repo, h.image.Digest), h.dump()[manifestKey(repo, h.both.Digest)])
		}, finds: "damaged"},
		{name: "a damaged link", harm: func(h *healthy) { h.object(blobKey(repo, h.layer), `{"version":0}`) }, finds: "damaged",
			want: func(h *healthy, now map[string]string) { // what is lost is its media type
				key := blobKey(repo, h.layer)
				now[key] = strings.Replace(now[key], `"mediaType":"",`, `"mediaType":"`+ocispec.MediaTypeImageLayerGzip+`",`, 1)
			}},
		{name: "no link", harm: func(h *healthy) { h.drop(blobKey(repo, h.layer)) }, finds: "link-lacks"},
		{name: "a link to nothing", harm: func(h *healthy) {
			h.object(blobKey(repo, none), fmt.Sprintf(`{"version":1,"descriptor":{"mediaType":"a/b","digest":%q,"size":3}}`, none))
		}, finds: "link-dangles"},
		{name: "a manifest of an index is not recorded", harm: func(h *healthy) {
			h.drop(manifestKey(repo, h.image.Digest))
		}, finds: "child-lacks"},
		{name: "a tagged one, what it lists, and a link", harm: func(h *healthy) {
			h.drop(manifestKey(repo, h.both.Digest), manifestKey(repo, h.image.Digest), blobKey(repo, h.layer))
		}, finds: "tag-dangles"},
		{name: "a tag of nothing", harm: func(h *healthy) { h.object(tag("lost", none)) }, finds: "tag-dangles",
			want: func(h *healthy, now map[string]string) {
				key := tagKey(repo, "lost")
				if !strings.Contains(now[key], `"revision":8,`) || !strings.Contains(now[key], `"deleted":true,"previous":["`+string(none)) {
					t.Errorf("the tag is %s", now[key])
				}
				delete(now, key)
			}},
		{name: "no referrer", harm: func(h *healthy) { h.drop(referrerKey(repo, h.both.Digest, h.signature.Digest)) }, finds: "referrer-lacks"},
		{name: "a referrer that is not there", harm: func(h *healthy) {
			h.object(referrerKey(repo, h.both.Digest, none), `{"version":1}`)
		}, finds: "referrer-dangles"},
		{name: "a referrer of something else", harm: func(h *healthy) {
			h.object(referrerKey(repo, h.image.Digest, h.signature.Digest), `{"version":1}`)
		}, finds: "referrer-dangles"},
		{name: "a manifest's bytes", harm: func(h *healthy) { delete(h.origins.blobs, h.image.Digest) }, finds: "manifest-gone", stays: true},
		{name: "a blob", harm: func(h *healthy) { delete(h.origins.blobs, digest.FromString("layer of b")) }, finds: "blob-gone link-dangles",
			want: func(h *healthy, now map[string]string) {
				now[blobKey(repo, digest.FromString("layer of b"))] = "" // pushing it links it again
			}, stays: true},
		{name: "a stranger", harm: func(h *healthy) { h.object("index/repositories/team/_x/y", "z") }, finds: "stranger", stays: true},
		{name: "a stranger among referrers", harm: func(h *healthy) {
			h.object("index/repositories/team/_referrers/y", "z")
		}, finds: "stranger", stays: true},
		{name: "a newer object", harm: func(h *healthy) { h.object(tagKey(repo, "newer"), `{"version":2}`) }, finds: "newer", stays: true},
		{name: "a damaged tag", harm: func(h *healthy) {
			h.object(tagKey(repo, "bad"), `{"version":1,"revision":"x"}`)
		}, finds: "damaged", stays: true},
		{name: "another tag", harm: func(h *healthy) {
			h.object(tagKey(repo, "v2"), h.dump()[tagKey(repo, "v1")])
		}, finds: "damaged", stays: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHealthy(t)
				whole := h.dump()
				tt.harm(h)
				harmed := h.dump()
				for _, repair := range []bool{false, true, true, false} {
					start := time.Now()
					findings, orphans, result := h.fsck(repair)
					var kinds []string
					for _, f := range findings {
						kinds = append(kinds, f.Kind)
						if repair && f.Mended != (f.Mend != "") {
							t.Errorf("%+v", f)
						}
					}
					slices.Sort(kinds)
					if got := strings.Join(slices.Compact(kinds), " "); got != tt.finds {
						t.Errorf("repair %v: found %q, want %q: %+v", repair, got, tt.finds, findings)
					}
					if result.Findings != int64(len(findings)) || result.Repositories != 5 || result.Objects != int64(len(harmed)) {
						t.Errorf("%+v", result)
					}
					if !strings.Contains(strings.Join(orphans, " "), repo+"@"+string(h.orphan.Digest)) || tt.finds == "" && len(orphans) != 1 {
						t.Errorf("orphans %q", orphans)
					}
					if took := time.Since(start); tt.finds == "" && took > time.Minute {
						t.Errorf("nothing was wrong, and it took %v", took)
					}
					switch now := h.dump(); {
					case !repair && harmed != nil && !maps.Equal(now, harmed):
						t.Error("it wrote without --repair")
					case repair && !tt.stays:
						if tt.want != nil {
							tt.want(h, now)
						}
						if !maps.Equal(now, whole) {
							t.Errorf("now\n%s\nwant\n%s", now, whole)
						}
						tt.finds = "" // from now on
					case repair && tt.want == nil && !maps.Equal(now, harmed):
						t.Error("what it cannot mend was touched")
					}
					if repair {
						if tt.want != nil && tt.stays {
							tt.finds = "blob-gone"
						}
						harmed = h.dump()
					}
				}
			})
		})
	}
}

// While others write there is no finding, and what is wrong elsewhere is found and mended.
func TestFsckWriters(t *testing.T) {
	for seed := range uint64(3) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			rnd := rand.New(rand.NewPCG(seed, 1))
			var mu sync.Mutex
			slow := func(op fetchertest.Op, key string) error { // so that all are in the middle of something all the time
				mu.Lock()
				d := time.Duration(rnd.Int64N(int64(400 * time.Millisecond)))
				mu.Unlock()
				time.Sleep(d)
				return nil
			}
			bad := referrerKey("quiet", digest.FromString("x"), digest.FromString("y"))
			w.object(bad, `{"version":1}`)
			w.storage.Fail, w.storage.FailAfter = slow, slow
			ctx, cancel := context.WithCancel(t.Context())
			var wg sync.WaitGroup
			for i := range 6 {
				x := w.another()
				wg.Go(func() {
					rnd := rand.New(rand.NewPCG(seed, uint64(100+i)))
					for ctx.Err() == nil {
						if err := w.writeSomething(x, rnd); err != nil && !errdefs.IsNotFound(err) && !errdefs.IsFailedPrecondition(err) &&
							!errdefs.IsUnavailable(err) {
							t.Error(err)
						}
					}
				})
			}
			found := 0
			for range 3 {
				findings, _, _ := w.fsck(true)
				for _, f := range findings {
					if f.Key != bad || !f.Mended {
						t.Errorf("seed %d: %+v", seed, f)
					}
					found++
				}
			}
			if found != 1 {
				t.Errorf("seed %d: %d findings", seed, found)
			}
			cancel()
			wg.Wait()
		})
	}
}

// writeSomething is one request of somebody, and all of them are of the same few images and tags.
func (w *world) writeSomething(x *Index, rnd *rand.Rand) error {
	const repo = "busy"
	ctx := context.Background()
	blob := func(mediaType, text string) (ocispec.Descriptor, error) {
		d := ocispec.Descriptor{MediaType: mediaType, Digest: w.origins.add([]byte(text)), Size: int64(len(text))}
		return d, x.LinkBlob(ctx, repo, d)
	}
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest}
	m.SchemaVersion = 2
	subject := ocispec.Descriptor{MediaType: m.MediaType, Digest: digest.FromString("subject"), Size: 7}
	if rnd.IntN(2) == 0 {
		m.Subject = &subject
	}
	var err error
	if m.Config, err = blob("a/b", fmt.Sprint("config ", rnd.IntN(3))); err != nil {
		return err
	}
	d := w.bytes(m.MediaType, m)
	name := fmt.Sprint("v", rnd.IntN(3))
	switch rnd.IntN(5) {
	case 0:
		return x.DeleteTag(ctx, repo, name)
	case 1:
		return x.DeleteManifest(ctx, repo, d.Digest)
	default:
		if err := x.PutManifest(ctx, repo, index.Manifest{Descriptor: d}); err != nil {
			return err
		}
		return second(x.PutTag(ctx, repo, name, d))
	}
}

// Origins that have next to nothing are not believed: nothing is removed because of them.
func TestFsckWrongOrigins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHealthy(t)
		none := digest.FromString("nobody has it")
		h.object(tagKey("team", "lost"), fmt.Sprintf(
			`{"version":1,"repository":"team","name":"lost","revision":7,"descriptor":{"digest":%q,"size":3}}`, none))
		before := h.dump()
		h.origins.blobs = map[digest.Digest][]byte{}
		findings, _, result := h.fsck(true)
		if result.Mended != 0 || !maps.Equal(h.dump(), before) {
			t.Errorf("%+v: %+v", result, findings)
		}
		for _, f := range findings {
			if f.Mend != "" && !strings.Contains(f.Error, "are they the right ones?") {
				t.Errorf("%+v", f)
			}
		}
	})
}

// What somebody has written since it was found is not touched.
func TestFsckMendsWhatItFound(t *testing.T) {
	h := newHealthy(t)
	ctx := t.Context()
	f, err := h.newFsck(index.DefaultFsck, nil)
	if err != nil {
		t.Fatal(err)
	}
	f.has.Store(1 << 20)
	const repo = "team/app"
	none := digest.FromString("nobody has it")
	tag := placeOf(tagKey(repo, "v1"))
	h.object(tagKey(repo, "lost"), fmt.Sprintf(
		`{"version":1,"repository":%q,"name":"lost","revision":8,"descriptor":{"digest":%q,"size":3}}`, repo, none))
	catalog := placeOf(catalogPrefix + catalogPath(repo))
	referrer := placeOf(referrerKey(repo, h.both.Digest, h.signature.Digest))
	before := h.dump()
	for name, mend := range map[string]func(context.Context) error{
		"a tag that has moved":                     f.retag(tag, none, 1),
		"a tag of a later revision":                f.retag(placeOf(tagKey(repo, "lost")), none, 7),
		"a referrer whose manifest is back":        f.unrefer(referrer),
		"a link whose blob is back":                f.unlink(placeOf(blobKey(repo, h.layer))),
		"a link that is gone":                      f.unlink(placeOf(blobKey(repo, none))),
		"a catalogue entry that is there":          f.catalogue(place{kind: aRepository, repo: repo}),
		"a catalogue entry that was written anew":  f.rewrite(catalog, &catalogObject{formatVersion, "other"}),
		"a manifest that was recorded by somebody": f.remake(repo, h.both.Digest),
	} {
		err := mend(ctx)
		if err != nil && !errdefs.IsUnavailable(err) {
			t.Errorf("%s: %v", name, err)
		}
		if now := h.dump(); !maps.Equal(now, before) {
			t.Errorf("%s was touched:\n%s", name, now)
		}
	}

	// Somebody pushes the blob again, and links it, while its link is being removed; and likewise a referrer's manifest.
	back := func(key string, do func()) {
		h.storage.FailAfter = func(op fetchertest.Op, at string) error {
			if op == fetchertest.OpDelete && at == key {
				h.storage.FailAfter = nil
				do()
			}
			return nil
		}
	}
	f.blobs.Purge()
	raw := h.origins.blobs[h.layer]
	delete(h.origins.blobs, h.layer)
	back(blobKey(repo, h.layer), func() { h.origins.add(raw) })
	if err := f.unlink(placeOf(blobKey(repo, h.layer)))(ctx); err != nil || !maps.Equal(h.dump(), before) {
		t.Errorf("a link that came back: %v", err)
	}
	record := before[manifestKey(repo, h.signature.Digest)]
	h.drop(manifestKey(repo, h.signature.Digest))
	back(referrer.key, func() { h.object(manifestKey(repo, h.signature.Digest), record) })
	if err := f.unrefer(referrer)(ctx); err != nil || !maps.Equal(h.dump(), before) {
		t.Errorf("a referrer that came back: %v", err)
	}
}

// What cannot be looked at is no finding, and too much of it ends the look.
func TestFsckUnknown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHealthy(t)
		h.origins.dark[h.image.Digest] = true
		var unknown []string
		var done *index.FsckResult
		look := func() error {
			unknown, done = nil, nil
			return h.Fsck(t.Context(), index.DefaultFsck, func(e index.FsckEvent) error {
				if e.Unknown != "" {
					unknown = append(unknown, e.Unknown)
				}
				if e.Finding != nil {
					t.Errorf("%+v", e.Finding)
				}
				done = e.Done
				return nil
			})
		}
		if err := look(); err != nil || len(unknown) != 5 || done == nil || done.Unknown != 5 {
			t.Errorf("%v: %q, %+v", err, unknown, done)
		}
		for i := range maxUnknown {
			h.blob("many", "a/b", fmt.Sprint("blob ", i))
			h.origins.dark[digest.FromString(fmt.Sprint("blob ", i))] = true
		}
		if err := look(); !errdefs.IsUnavailable(err) || done != nil {
			t.Errorf("%v: %d, %+v", err, len(unknown), done)
		}
		h.storage.Fail = func(op fetchertest.Op, key string) error {
			if op == fetchertest.OpList {
				return errors.New("away")
			}
			return nil
		}
		if err := look(); err == nil || done != nil {
			t.Error("it did not list, and came to its end")
		}
	})
}

// Through the API: by one at a time, and an answer that is broken off is no result.
func TestFsckAPI(t *testing.T) {
	h := newHealthy(t)
	h.drop(catalogPrefix + catalogPath("team/app"))
	s := newServer(t, h.Index)
	c := client(t, serveHTTP(t, s.handler()).URL)
	opts := index.FsckOptions{Repair: true, Rate: 1e6}
	var said []index.FsckEvent
	err := c.Fsck(t.Context(), opts, func(e index.FsckEvent) error { said = append(said, e); return nil })
	if err != nil || len(said) != 3 || said[0].Orphan == nil || said[1].Finding == nil || said[2].Done == nil ||
		said[2].Done.Findings != 1 || said[2].Done.Mended != 1 {
		t.Errorf("%v: %+v", err, said)
	}
	lists, goOn := make(chan struct{}), make(chan struct{})
	h.storage.Fail = func(op fetchertest.Op, _ string) error {
		if op == fetchertest.OpList {
			lists <- struct{}{}
			<-goOn
			return errors.New("the storage is away")
		}
		return nil
	}
	done := make(chan error)
	last := ""
	go func() {
		done <- c.Fsck(t.Context(), opts, func(e index.FsckEvent) error { last = e.Unknown; return nil })
	}()
	<-lists
	if err := c.Fsck(t.Context(), opts, nil); !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "already") {
		t.Errorf("a second one: %v", err)
	}
	close(goOn)
	if err := <-done; !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "broken off") ||
		!strings.Contains(last, "the storage is away") {
		t.Errorf("one that was broken off: %v, said %q", err, last)
	}
	opts.Rate = 0
	if err := c.Fsck(t.Context(), opts, nil); !errdefs.IsInvalidArgument(err) {
		t.Error(err)
	}
}
