package backup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"
	"go.uber.org/goleak"

	"github.com/capelin-io/capelin/control/origin"
	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/fetcher/fetchertest"
	"github.com/capelin-io/capelin/fetcher/walk"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// origins are fake ones. A blob belongs to namespaces.
type origins struct {
	mu      sync.Mutex
	blobs   map[origin.Ref][]byte
	uploads map[string][]byte
	refs    map[string]origin.Ref
	read    int64 // bytes
	opens   int
	cut     int // how many Appends end early
	lie     bool
	down    func(digest.Digest) bool
	opened  func(origin.Ref)
}

func newOrigins() *origins {
	return &origins{blobs: map[origin.Ref][]byte{}, uploads: map[string][]byte{}, refs: map[string]origin.Ref{}}
}

func (o *origins) Open(_ context.Context, ref origin.Ref, off, _ int64) (io.ReadCloser, origin.Info, error) {
	if o.opened != nil {
		o.opened(ref)
	}
	if o.down != nil && o.down(ref.Digest) {
		return nil, origin.Info{}, fmt.Errorf("origin: %w", errdefs.ErrUnavailable)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	data, ok := o.blobs[ref]
	if !ok {
		return nil, origin.Info{}, fmt.Errorf("origin: %s: %w", ref, errdefs.ErrNotFound)
	}
	o.opens++
	o.read += int64(len(data))
	if o.lie {
		data = bytes.ToUpper(data)
	}
	return io.NopCloser(bytes.NewReader(data[off:])), origin.Info{Size: int64(len(data))}, nil
}

func (o *origins) Stat(_ context.Context, ref origin.Ref) (origin.Info, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	data, ok := o.blobs[ref]
	if !ok {
		return origin.Info{}, fmt.Errorf("origin: %s: %w", ref, errdefs.ErrNotFound)
	}
	return origin.Info{Size: int64(len(data))}, nil
}

func (o *origins) StartUpload(_ context.Context, namespace string, d digest.Digest) (string, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	id := fmt.Sprint(len(o.refs))
	o.refs[id], o.uploads[id] = origin.Ref{Namespace: namespace, Digest: d}, nil
	return id, nil
}

func (o *origins) UploadOffset(_ context.Context, id string) (int64, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return int64(len(o.uploads[id])), nil
}

func (o *origins) Append(_ context.Context, id string, off int64, r io.Reader) (int64, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if off != int64(len(o.uploads[id])) {
		return 0, fmt.Errorf("upload at %d: %w", len(o.uploads[id]), errdefs.ErrOutOfRange)
	}
	data, err := io.ReadAll(r)
	if o.cut > 0 && len(data) > 1 {
		o.cut--
		data, err = data[:len(data)/2], errdefs.ErrUnavailable
	}
	o.uploads[id] = append(o.uploads[id], data...)
	return int64(len(o.uploads[id])), err
}

func (o *origins) Commit(_ context.Context, id string, d digest.Digest) (origin.Info, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if digest.FromBytes(o.uploads[id]) != d {
		return origin.Info{}, fmt.Errorf("upload is another blob: %w", errdefs.ErrInvalidArgument)
	}
	o.blobs[o.refs[id]] = o.uploads[id]
	return origin.Info{Size: int64(len(o.uploads[id]))}, nil
}

func (o *origins) Cancel(context.Context, string) error { return nil }

// world is an index's storage with images, and the origins.
type world struct {
	t       *testing.T
	index   *fetchertest.Memory
	origins *origins
}

func newWorld(t *testing.T) *world { return &world{t, new(fetchertest.Memory), newOrigins()} }

func put(t *testing.T, b fetcher.Backend, key, text string) {
	t.Helper()
	if _, err := b.Write(t.Context(), key, int64(len(text)), strings.NewReader(text)); err != nil {
		t.Fatal(err)
	}
}

func path(d digest.Digest) string { return strings.Replace(string(d), ":", "/", 1) }

func tagText(revision int, d digest.Digest) string {
	return fmt.Sprintf(`{"version":1,"revision":%d,"descriptor":{"digest":%q}}`, revision, d)
}

// push pushes an image of a layer and a manifest, as a gateway does.
func (w *world) push(repo, tag string, revision int, layer string) (manifest digest.Digest) {
	ld := digest.FromString(layer)
	text := "manifest of " + string(ld)
	d := digest.FromString(text)
	w.origins.mu.Lock()
	w.origins.blobs[origin.Ref{Namespace: repo, Digest: ld}] = []byte(layer)
	w.origins.blobs[origin.Ref{Namespace: repo, Digest: d}] = []byte(text)
	w.origins.mu.Unlock()
	put(w.t, w.index, repoPrefix+repo+"/_blobs/"+path(ld), `{"version":1}`)
	put(w.t, w.index, "index/catalog/"+repo, `{"version":1}`)
	put(w.t, w.index, repoPrefix+repo+"/_manifests/"+path(d), `{"version":1}`)
	put(w.t, w.index, repoPrefix+repo+"/_tags/"+tag, tagText(revision, d))
	return d
}

func (w *world) backup(to fetcher.Backend, verify bool) Report {
	w.t.Helper()
	r, err := (&Backup{Index: w.index, Origins: w.origins, To: to, Verify: verify}).Run(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

func all(t *testing.T, b fetcher.Backend, prefix string) map[string]string {
	t.Helper()
	m := map[string]string{}
	for info, err := range walk.All(t.Context(), b, prefix, "") {
		if err != nil {
			t.Fatal(err)
		}
		data, _, err := walk.Read(t.Context(), b, info.Key, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		m[info.Key] = string(data)
	}
	return m
}

func TestParse(t *testing.T) {
	d := digest.FromString("x")
	for key, want := range map[string]parsed{
		"index/catalog/a":                                     {},
		"index/repositories/a/b/_tags/v1":                     {kind: tag, repo: "a/b"},
		"index/repositories/a/_blobs/" + path(d):              {blob, "a", d},
		"index/repositories/a/_manifests/" + path(d):          {blob, "a", d},
		"index/repositories/a/_manifests/sha256/x":            {repo: "a"},
		"index/repositories/a/_referrers/" + path(d) + "/x/y": {repo: "a"},
		"index/repositories/tags/_blobs/" + path(d):           {blob, "tags", d},
		"other/repositories/a/_tags/v1":                       {},
	} {
		if got := parse(key); got != want {
			t.Errorf("%s: %+v, want %+v", key, got, want)
		}
	}
}

// A back-up is a copy of all, and the second one moves what is new.
func TestBackup(t *testing.T) {
	w := newWorld(t)
	for i := range 30 {
		w.push(fmt.Sprintf("r%d", i%3), fmt.Sprintf("t%d", i), 1, fmt.Sprint("layer ", i/2))
	}
	put(t, w.index, "index/proved/x", `{"version":1}`)
	to := new(fetchertest.Memory)
	r := w.backup(to, false)
	if !r.Whole || r.Tags != 30 || r.Phase != "done" || r.MissingBlobs != 0 || r.BlobsCopied != 30 || r.BlobsCopied != int64(w.origins.opens) {
		t.Errorf("%+v, %d opens", r, w.origins.opens)
	}
	want := all(t, w.index, indexPrefix)
	delete(want, "index/proved/x")
	if got := all(t, to, indexPrefix); !maps.Equal(got, want) {
		t.Errorf("the back-up has %d objects, want %d", len(got), len(want))
	}
	for ref, data := range w.origins.blobs {
		key, _ := fetcher.BlobKey(ref.Digest)
		if got, _, err := walk.Read(t.Context(), to, key, 1<<20); !bytes.Equal(got, data) || err != nil {
			t.Errorf("%s: %q, %v", ref, got, err)
		}
	}

	before := w.origins.read
	r = w.backup(to, false)
	if !r.Whole || r.Written != 0 || r.Bytes != 0 || w.origins.read != before {
		t.Errorf("nothing was new: %+v", r)
	}
	w.push("r1", "t1", 2, "layer 99") // the tag's object is as long as it was
	gone := digest.FromString("layer 0")
	if err := w.index.Delete(t.Context(), repoPrefix+"r0/_blobs/"+path(gone)); err != nil {
		t.Fatal(err)
	}
	r = w.backup(to, false)
	if !r.Whole || r.Written != 3 || r.BlobsCopied != 2 || r.Bytes != w.origins.read-before || r.Removed != 1 {
		t.Errorf("an image was new, and a name gone: %+v", r)
	}
	if got := all(t, to, repoPrefix+"r1/_tags/")[repoPrefix+"r1/_tags/t1"]; !strings.Contains(got, `"revision":2`) {
		t.Errorf("the tag is %s", got)
	}
}

// What disks have made of a back-up is found, and copied anew.
func TestVerify(t *testing.T) {
	w := newWorld(t)
	d := w.push("r", "t", 1, "layer")
	to := new(fetchertest.Memory)
	w.backup(to, false)
	key, _ := fetcher.BlobKey(digest.FromString("layer"))
	put(t, to, key, "LAYER")
	put(t, to, repoPrefix+"r/_manifests/"+path(d), `{"version":9}`)
	if r := w.backup(to, false); r.Bytes != 0 {
		t.Errorf("%+v", r)
	}
	if r := w.backup(to, true); r.Mended != 1 || r.Written != 1 || all(t, to, "")[key] != "layer" || !r.Whole {
		t.Errorf("%+v", r)
	}
}

func TestMissing(t *testing.T) {
	w := newWorld(t)
	w.push("r", "t", 1, "layer")
	d := digest.FromString("layer")
	delete(w.origins.blobs, origin.Ref{Namespace: "r", Digest: d})
	to := new(fetchertest.Memory)
	r := w.backup(to, false)
	if r.Whole || r.MissingBlobs != 1 || len(r.Missing) != 1 || r.Missing[0].Digest != string(d) || r.Missing[0].Repository != "r" {
		t.Errorf("%+v", r)
	}
	if kept, err := readReport(t.Context(), to); err != nil || kept.Whole || kept.MissingBlobs != 1 {
		t.Errorf("%+v, %v", kept, err)
	}
	into := newWorld(t)
	restore := Restore{From: to, Origins: into.origins, Index: into.index}
	if _, err := restore.Run(t.Context()); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a back-up that is not whole: %v", err)
	}
	restore = Restore{From: to, Origins: into.origins, Index: into.index, Incomplete: true}
	if r, err := restore.Run(t.Context()); err != nil || r.Whole || r.MissingBlobs != 1 || r.Tags != 1 {
		t.Errorf("%+v, %v", r, err)
	}

	// Other bytes never get into it.
	w.origins.blobs[origin.Ref{Namespace: "r", Digest: d}] = []byte("layer")
	w.origins.lie = true
	if r := w.backup(to, false); r.Whole || r.MissingBlobs != 1 {
		t.Errorf("%+v", r)
	}
	w.origins.lie = false
	if r := w.backup(to, false); !r.Whole {
		t.Errorf("%+v", r)
	}

	// What is deleted while the back-up is made is no error.
	w.push("r", "u", 1, "layer 2")
	d = digest.FromString("layer 2")
	w.origins.opened = func(ref origin.Ref) {
		if ref.Digest == d {
			w.origins.mu.Lock()
			delete(w.origins.blobs, ref)
			w.origins.mu.Unlock()
			if err := w.index.Delete(t.Context(), repoPrefix+"r/_blobs/"+path(d)); err != nil {
				t.Error(err)
			}
		}
	}
	if r := w.backup(to, false); !r.Whole || r.Removed != 1 {
		t.Errorf("%+v", r)
	}
}

// A blob that may be where nobody can ask is missing, and the rest is copied; if no origin answers at all that is an error.
func TestUnavailable(t *testing.T) {
	w := newWorld(t)
	for i := range 30 {
		w.push("r", fmt.Sprint(i), 1, fmt.Sprint(i))
	}
	lost := map[digest.Digest]bool{}
	for i := range 5 {
		lost[digest.FromString(fmt.Sprint(i))] = true
	}
	w.origins.down = func(d digest.Digest) bool { return lost[d] }
	to := new(fetchertest.Memory)
	if r := w.backup(to, false); r.Whole || r.MissingBlobs != 5 || r.BlobsCopied != 55 {
		t.Errorf("%+v", r)
	}
	w.origins.down = func(digest.Digest) bool { return true }
	r, err := (&Backup{Index: w.index, Origins: w.origins, To: new(fetchertest.Memory)}).Run(t.Context())
	if !errdefs.IsUnavailable(err) || r.MissingBlobs > tooSilent+streams {
		t.Errorf("%d missing, %v", r.MissingBlobs, err)
	}
}

// pushing pushes when something is first written.
type pushing struct {
	fetcher.Backend
	at   func(key string) bool
	push func()
	once sync.Once
}

func (p *pushing) Write(ctx context.Context, key string, size int64, r io.Reader) (fetcher.Info, error) {
	if p.at(key) {
		p.once.Do(p.push)
	}
	return p.Backend.Write(ctx, key, size, r)
}

func (p *pushing) Open(ctx context.Context, key string, off, n int64) (io.ReadCloser, fetcher.Info, error) {
	if p.at("read " + key) {
		p.once.Do(p.push)
	}
	return p.Backend.Open(ctx, key, off, n)
}

// What a tag of the back-up reaches is in it, whenever it was pushed.
func TestWhilePushing(t *testing.T) {
	text := "manifest of " + string(digest.FromString("layer 2"))
	for _, at := range []string{"/_manifests/", "/_tags/"} {
		for _, reads := range []bool{false, true} {
			w := newWorld(t)
			w.push("m", "t", 1, "layer")
			push := new(pushing)
			push.at = func(key string) bool { return strings.HasPrefix(key, "read ") == reads && strings.Contains(key, at) }
			push.push = func() {
				for _, repo := range []string{"a", "m", "z"} {
					w.push(repo, "t", 2, "layer 2")
				}
			}
			to := new(fetchertest.Memory)
			b := Backup{Index: w.index, Origins: w.origins, To: to}
			if reads {
				push.Backend, b.Index = w.index, push
			} else {
				push.Backend, b.To = to, push
			}
			if r, err := b.Run(t.Context()); err != nil || !r.Whole {
				t.Errorf("%s: %+v, %v", at, r, err)
			}
			got := all(t, to, "")
			seen := 0
			for _, repo := range []string{"a", "m", "z"} {
				if !strings.Contains(got[repoPrefix+repo+"/_tags/t"], `"revision":2`) {
					continue
				}
				seen++
				if got[repoPrefix+repo+"/_manifests/"+path(digest.FromString(text))] == "" {
					t.Errorf("%s: the tag of %s is there, and its manifest is not", at, repo)
				}
			}
			if reads && seen == 0 {
				t.Errorf("%s: no tag was pushed in time, and nothing is tested", at)
			}
		}
	}
}

func TestRefused(t *testing.T) {
	w := newWorld(t)
	to := new(fetchertest.Memory)
	if _, err := (&Backup{Index: w.index, Origins: w.origins, To: to}).Run(t.Context()); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("an empty index: %v", err)
	}
	w.push("r", "t", 1, "layer")
	put(t, to, markKey, `{"format":2,"whole":true}`)
	if _, err := (&Backup{Index: w.index, Origins: w.origins, To: to}).Run(t.Context()); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("another format: %v", err)
	}
	into := newWorld(t)
	for _, from := range []fetcher.Backend{to, new(fetchertest.Memory)} {
		if _, err := (&Restore{From: from, Origins: into.origins, Index: into.index}).Run(t.Context()); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("another format, or none: %v", err)
		}
	}
	ok := new(fetchertest.Memory)
	w.backup(ok, false)
	into.push("other", "t", 1, "x")
	if _, err := (&Restore{From: ok, Origins: into.origins, Index: into.index}).Run(t.Context()); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("into an index: %v", err)
	}
}

// A restore that fails anywhere goes on, and ends with what the back-up has.
func TestRestore(t *testing.T) {
	w := newWorld(t)
	for i := range 40 {
		w.push(fmt.Sprintf("r%d", i%3), fmt.Sprintf("t%d", i), 1, fmt.Sprint("layer ", i/2))
	}
	from := new(fetchertest.Memory)
	w.backup(from, false)
	into := newWorld(t)
	into.origins.cut = 3
	killed := errors.New("killed")
	tries := 0
	for ; ; tries++ {
		left := 10 * (tries + 1)
		var mu sync.Mutex
		die := func(op fetchertest.Op, _ string) error {
			mu.Lock()
			defer mu.Unlock()
			if left--; left < 0 {
				return killed
			}
			return nil
		}
		index := &fetchertest.Faulty{Backend: into.index, Fail: die}
		r, err := (&Restore{From: from, Origins: into.origins, Index: index, batch: 10}).Run(t.Context())
		if len(all(t, into.index, repoPrefix)) > 0 && len(into.origins.blobs) < len(w.origins.blobs) {
			t.Fatal("the index has names of blobs before the origins have all blobs")
		}
		for key := range all(t, into.index, repoPrefix) { // tags last
			if parse(key).kind == tag && len(all(t, into.index, repoPrefix)) < 80 {
				t.Fatalf("%s is there before all else is", key)
			}
		}
		if err == nil {
			if !r.Whole || r.Tags != 40 {
				t.Errorf("%+v", r)
			}
			break
		}
		if !errors.Is(err, killed) {
			t.Fatal(err)
		}
	}
	if tries < 3 {
		t.Errorf("killed %d times", tries)
	}
	if n := len(into.origins.refs); n > len(w.origins.blobs)+tries*14 {
		t.Errorf("%d uploads of %d blobs, killed %d times", n, len(w.origins.blobs), tries)
	}
	if got, want := all(t, into.index, ""), all(t, w.index, ""); !maps.Equal(got, want) {
		t.Errorf("the index has %d objects, want %d", len(got), len(want))
	}
	if len(into.origins.blobs) != len(w.origins.blobs) {
		t.Errorf("the origins have %d blobs, want %d", len(into.origins.blobs), len(w.origins.blobs))
	}
	for ref, data := range w.origins.blobs {
		if !bytes.Equal(into.origins.blobs[ref], data) {
			t.Errorf("%s is another one", ref)
		}
	}
	// Once more moves nothing.
	uploads := len(into.origins.refs)
	r, err := (&Restore{From: from, Origins: into.origins, Index: into.index, Merge: true}).Run(t.Context())
	if err != nil || r.Bytes != 0 || r.Written != 0 || r.Kept != 40 || len(into.origins.refs) != uploads {
		t.Errorf("%+v, %v", r, err)
	}
}

// Of a tag that both have the higher revision stays.
func TestMerge(t *testing.T) {
	w, into := newWorld(t), newWorld(t)
	from := new(fetchertest.Memory)
	for _, tt := range []struct {
		tag           string
		backup, there int
	}{{"newer", 5, 2}, {"older", 2, 5}, {"same", 3, 3}, {"new", 1, 0}} {
		w.push("r", tt.tag, tt.backup, "backup "+tt.tag)
		if tt.there > 0 {
			into.push("r", tt.tag, tt.there, "there "+tt.tag)
		}
	}
	w.backup(from, false)
	r, err := (&Restore{From: from, Origins: into.origins, Index: into.index, Merge: true}).Run(t.Context())
	if err != nil || r.Kept != 2 {
		t.Errorf("%+v, %v", r, err)
	}
	got := all(t, into.index, "")
	for tag, want := range map[string]string{"newer": "backup", "older": "there", "same": "there", "new": "backup"} {
		d := digest.FromString("manifest of " + string(digest.FromString(want+" "+tag)))
		if !strings.Contains(got[repoPrefix+"r/_tags/"+tag], string(d)) {
			t.Errorf("%s: %s", tag, got[repoPrefix+"r/_tags/"+tag])
		}
	}
	if got[restoreKey] != "" {
		t.Error("the restore has not ended")
	}
}
