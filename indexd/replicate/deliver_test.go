package replicate

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"cuelabs.dev/go/oci/ociregistry/ocimem"
	"cuelabs.dev/go/oci/ociregistry/ociserver"
	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/capelin-io/capelin/control/index"
	"github.com/capelin-io/capelin/control/origin"
)

// here is an index and its origins, of one repository.
type here struct {
	t         *testing.T
	mu        sync.Mutex
	blobs     map[digest.Digest][]byte
	manifests map[digest.Digest]index.Manifest
	tags      map[string]index.Tag
}

func newHere(t *testing.T) *here {
	return &here{t: t, blobs: map[digest.Digest][]byte{}, manifests: map[digest.Digest]index.Manifest{}, tags: map[string]index.Tag{}}
}

func (h *here) TagState(_ context.Context, _, name string) (index.Tag, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	t, ok := h.tags[name]
	if !ok {
		return t, fmt.Errorf("tag %s: %w", name, errdefs.ErrNotFound)
	}
	return t, nil
}

func (h *here) TagNames(_ context.Context, _, after string, _ int) ([]string, bool, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	all := slices.Sorted(maps.Keys(h.tags))
	return slices.DeleteFunc(all, func(n string) bool { return n <= after }), false, nil
}

func (h *here) Repositories(_ context.Context, after string, _ int) ([]string, bool, error) {
	if after < "app" {
		return []string{"app"}, false, nil
	}
	return nil, false, nil
}

func (h *here) Manifest(_ context.Context, _ string, d digest.Digest) (index.Manifest, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	m, ok := h.manifests[d]
	if !ok {
		return m, fmt.Errorf("manifest %s: %w", d, errdefs.ErrNotFound)
	}
	return m, nil
}

func (h *here) ReferrersPage(
	_ context.Context, _ string, d digest.Digest, _ string, _ digest.Digest, _ int,
) (p index.Referrers, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, m := range h.manifests {
		if m.Subject != nil && m.Subject.Digest == d {
			p.Referrers = append(p.Referrers, m.Referrer())
		}
	}
	return p, nil
}

func (h *here) Open(_ context.Context, ref origin.Ref, off, _ int64) (io.ReadCloser, origin.Info, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	b, ok := h.blobs[ref.Digest]
	if !ok {
		return nil, origin.Info{}, fmt.Errorf("blob %s: %w", ref.Digest, errdefs.ErrNotFound)
	}
	return io.NopCloser(bytes.NewReader(b[off:])), origin.Info{Size: int64(len(b))}, nil
}

func (h *here) blob(mediaType string, data []byte) ocispec.Descriptor {
	h.mu.Lock()
	defer h.mu.Unlock()
	d := digest.FromBytes(data)
	h.blobs[d] = data
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(data))}
}

func (h *here) record(v any) ocispec.Descriptor {
	raw, err := json.Marshal(v)
	if err != nil {
		h.t.Fatal(err)
	}
	m, err := index.ParseManifest("", raw)
	if err != nil {
		h.t.Fatal(err)
	}
	h.blob(m.Descriptor.MediaType, raw)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.manifests[m.Descriptor.Digest] = m
	return m.Descriptor
}

// image records one, with a layer of its own and one that all have; subject may be nil.
func (h *here) image(name string, subject *ocispec.Descriptor) ocispec.Descriptor {
	return h.record(ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: h.blob(ocispec.MediaTypeImageConfig, []byte("{}")), Subject: subject,
		Layers: []ocispec.Descriptor{
			h.blob(ocispec.MediaTypeImageLayer, []byte("layer of "+name)), h.blob(ocispec.MediaTypeImageLayer, []byte("base"))}})
}

func (h *here) indexOf(of ...ocispec.Descriptor) ocispec.Descriptor {
	return h.record(ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex,
		Manifests: of})
}

func (h *here) tag(name string, d ocispec.Descriptor) {
	h.mu.Lock()
	defer h.mu.Unlock()
	t := h.tags[name]
	t.Name, t.Descriptor, t.Deleted, t.Cluster = name, d, d.Digest == "", "here"
	t.Revision++
	t.Stamp++
	h.tags[name] = t
}

// there is a registry of another kind.
type there struct {
	*httptest.Server
	mu     sync.Mutex
	seen   []string // successful writes
	before func(w http.ResponseWriter, r *http.Request) (done bool)
	bytes  atomic.Int64 // of uploads
	lists  bool         // it keeps lists of referrers
}

func newThere(t *testing.T) *there {
	o := &there{lists: true}
	api := ociserver.New(ocimem.New(), nil)
	o.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if o.before != nil && o.before(w, r) {
			return
		}
		rec := httptest.NewRecorder()
		if r.Method == "PATCH" || r.Method == "PUT" && strings.Contains(r.URL.Path, "/uploads/") {
			body, err := io.ReadAll(r.Body)
			if o.bytes.Add(int64(len(body))); err != nil {
				panic(http.ErrAbortHandler)
			}
			r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
		}
		api.ServeHTTP(rec, r)
		if !o.lists {
			rec.Header().Del("OCI-Subject")
		}
		if rec.Code < 300 && (r.Method == "PUT" || r.Method == "DELETE") {
			o.mu.Lock()
			what := r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]
			if d := r.URL.Query().Get("digest"); d != "" {
				what = d
			}
			o.seen = append(o.seen, r.Method+" "+what)
			o.mu.Unlock()
		}
		maps.Copy(w.Header(), rec.Header())
		w.WriteHeader(rec.Code)
		_, _ = w.Write(rec.Body.Bytes())
	}))
	t.Cleanup(o.Close)
	return o
}

func (h *here) to(o *there, change func(*index.Rule)) *delivery {
	h.t.Helper()
	r := index.Rule{Name: "r", URL: o.URL, Namespaces: []string{".*"}}.Filled()
	if change != nil {
		change(&r)
	}
	rule, err := newRule(r, "1")
	if err != nil {
		h.t.Fatal(err)
	}
	m, err := newRemote(&rule, new(atomic.Int64))
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(m.close)
	d, err := newDelivery(h.t.Context(), h, h, "here", m, "app")
	if err != nil {
		h.t.Fatal(err)
	}
	return d
}

func (h *here) deliver(o *there, name string, change func(*index.Rule)) error {
	h.t.Helper()
	_, err := h.to(o, change).tag(h.t.Context(), name, 0)
	return err
}

// wants says which writes there have to have been, in that order, and no others.
func (o *there) wants(t *testing.T, what string, want ...string) {
	t.Helper()
	o.mu.Lock()
	defer o.mu.Unlock()
	if !slices.Equal(o.seen, want) {
		t.Errorf("%s: writes\n%s\nwant\n%s", what, strings.Join(o.seen, "\n"), strings.Join(want, "\n"))
	}
	o.seen = nil
}

// Each tag is written last, after all that it reaches and that refers to it, the deepest first; what is there is not sent again.
func TestOrder(t *testing.T) {
	h, o := newHere(t), newThere(t)
	a, b := h.image("a", nil), h.image("b", nil)
	outer := h.indexOf(h.indexOf(a), b)
	inner := h.manifests[outer.Digest].Manifests[0]
	signature := h.image("signature", &a)
	h.tag("v1", outer)
	cosign := strings.Replace(string(b.Digest), ":", "-", 1) + ".sig"
	h.tag(cosign, signature)
	if err := h.deliver(o, "v1", nil); err != nil {
		t.Fatal(err)
	}
	o.mu.Lock()
	var manifests []string
	blobs := map[string]int{}
	for i, w := range o.seen {
		if name, _ := strings.CutPrefix(w, "PUT "); h.manifests[digest.Digest(name)].Descriptor.Digest != "" || !strings.Contains(name, ":") {
			manifests = append(manifests, w)
			for _, d := range h.manifests[digest.Digest(name)].Blobs {
				if blobs[string(d.Digest)] == 0 {
					t.Errorf("%s is written (%d) before its blob %s", name, i, d.Digest)
				}
			}
		} else {
			blobs[name]++
		}
	}
	o.seen = manifests
	o.mu.Unlock()
	for d, n := range blobs {
		if n != 1 {
			t.Errorf("%s was sent %d times", d, n)
		}
	}
	put := func(d ocispec.Descriptor) string { return "PUT " + string(d.Digest) }
	o.wants(t, "first", put(a), put(inner), put(b), put(outer), put(signature), "PUT "+cosign, "PUT v1")
	h.tag("v2", outer)
	if err := h.deliver(o, "v2", nil); err != nil {
		t.Fatal(err)
	}
	o.wants(t, "another tag of the same", "PUT v2")
	h.tag("v1", ocispec.Descriptor{})
	if err := h.deliver(o, "v1", nil); err != nil {
		t.Fatal(err)
	}
	o.wants(t, "deleted", "DELETE v1")
	if err := h.deliver(o, "v1", func(r *index.Rule) { r.Deletes = index.DeleteNone }); err != nil {
		t.Fatal(err)
	}
	o.wants(t, "deleted, with a rule that does not delete")
}

// A registry without lists of referrers gets OCI's tag for that, with all of them.
func TestReferrersTag(t *testing.T) {
	h, o := newHere(t), newThere(t)
	o.lists = false
	a := h.image("a", nil)
	one, two := h.image("one", &a), h.image("two", &a)
	h.tag("v1", a)
	if err := h.deliver(o, "v1", nil); err != nil {
		t.Fatal(err)
	}
	d := h.to(o, nil)
	r, err := d.o.reg.GetTag(t.Context(), "app", strings.Replace(string(a.Digest), ":", "-", 1))
	if err != nil {
		t.Fatal(err)
	}
	var list ocispec.Index
	if err := json.NewDecoder(r).Decode(&list); err != nil || len(list.Manifests) != 2 {
		t.Errorf("%+v, %v", list, err)
	}
	for _, m := range list.Manifests {
		if m.Digest != one.Digest && m.Digest != two.Digest || m.ArtifactType != ocispec.MediaTypeImageConfig {
			t.Errorf("%+v", m)
		}
	}
}

// A signature that comes after its subject goes where that is, and nowhere else.
func TestLateSignature(t *testing.T) {
	h, o := newHere(t), newThere(t)
	a := h.image("a", nil)
	h.tag("v1", a)
	signature := h.image("signature", &a)
	referrer := func() {
		t.Helper()
		if recorded, err := h.to(o, nil).referrer(t.Context(), signature.Digest); err != nil || !recorded {
			t.Errorf("%v, %v", recorded, err)
		}
	}
	referrer()
	o.wants(t, "before the subject is there")
	if err := h.deliver(o, "v1", func(r *index.Rule) { r.NoReferrers = true }); err != nil {
		t.Fatal(err)
	}
	o.seen = nil
	referrer()
	if n := len(o.seen); n != 2 || o.seen[1] != "PUT "+string(signature.Digest) {
		t.Errorf("writes %q", o.seen)
	}
	if recorded, err := h.to(o, nil).referrer(t.Context(), digest.FromString("x")); recorded || err != nil {
		t.Errorf("a manifest that is not recorded: %v, %v", recorded, err)
	}
}

// A connection that breaks costs a chunk at most.
func TestBlobGoesOn(t *testing.T) {
	h, o := newHere(t), newThere(t)
	big := make([]byte, 3*chunk+1000)
	for i := range big {
		big[i] = byte(i >> 12)
	}
	desc := h.blob(ocispec.MediaTypeImageLayer, big)
	h.tag("v1", h.record(ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: h.blob(ocispec.MediaTypeImageConfig, []byte("{}")), Layers: []ocispec.Descriptor{desc}}))
	var patches atomic.Int32
	o.before = func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Method == "PATCH" && patches.Add(1) == 2 {
			n, _ := io.Copy(io.Discard, io.LimitReader(r.Body, chunk/2))
			o.bytes.Add(n)
			panic(http.ErrAbortHandler)
		}
		return false
	}
	if err := h.deliver(o, "v1", nil); err != nil {
		t.Fatal(err)
	}
	if n := o.bytes.Load(); n > int64(len(big))+chunk+2 {
		t.Errorf("%d bytes were sent for a blob of %d", n, len(big))
	}
	if patches.Load() < 3 {
		t.Errorf("%d chunks", patches.Load())
	}
}

// What has become of a delivery that failed.
func TestOutcomes(t *testing.T) {
	for _, tt := range []struct {
		status  int
		outcome Outcome
		reason  string
	}{
		{401, Refused, "unauthorized"}, {403, Refused, "denied"}, {400, Refused, "refused"}, {405, Refused, "unsupported"},
		{409, Refused, "conflict"}, {413, Refused, "quota"}, {507, Refused, "quota"}, {429, Later, ""}, {500, Later, ""}, {503, Later, ""},
	} {
		h, o := newHere(t), newThere(t)
		h.tag("v1", h.image("a", nil))
		d := h.to(o, nil)
		o.before = func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method == "PUT" && strings.HasSuffix(r.URL.Path, "/manifests/v1") {
				w.WriteHeader(tt.status)
				return true
			}
			return false
		}
		revision, err := d.tag(t.Context(), "v1", 0)
		if outcome, reason := classify(err); outcome != tt.outcome || reason != tt.reason || revision != 1 {
			t.Errorf("%d: revision %d, %v, %q: %v", tt.status, revision, outcome, reason, err)
		}
	}
	h, o := newHere(t), newThere(t)
	h.tag("v1", h.image("a", nil))
	d := h.to(o, nil)
	o.Close()
	_, err := d.tag(t.Context(), "v1", 0)
	if outcome, _ := classify(err); outcome != Later {
		t.Errorf("nobody there: %v, %v", outcome, err)
	}
}

// A registry that says that it has a manifest, and has lost what that needs, gets all of it again.
func TestLostBelow(t *testing.T) {
	h, o := newHere(t), newThere(t)
	a := h.image("a", nil)
	h.tag("v1", a)
	var lost atomic.Bool
	lost.Store(true)
	o.before = func(w http.ResponseWriter, r *http.Request) bool {
		switch {
		case r.Method == "HEAD" && strings.HasSuffix(r.URL.Path, string(a.Digest)) && lost.Load():
			w.Header().Set("Docker-Content-Digest", string(a.Digest))
			w.Header().Set("Content-Length", fmt.Sprint(a.Size))
			return true
		case r.Method == "PUT" && strings.HasSuffix(r.URL.Path, "/manifests/v1") && lost.Swap(false):
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(404)
			fmt.Fprint(w, `{"errors":[{"code":"MANIFEST_BLOB_UNKNOWN","message":"gone"}]}`)
			return true
		}
		return false
	}
	if err := h.deliver(o, "v1", nil); err != nil {
		t.Fatal(err)
	}
	if n := len(o.seen); n < 2 || o.seen[n-1] != "PUT v1" {
		t.Errorf("writes %q", o.seen)
	}
	if is, err := h.to(o, nil).lacking(t.Context(), a.Digest, 0); is || err != nil {
		t.Errorf("lacking: %v, %v", is, err)
	}
	h.image("signature", &a)
	if is, err := h.to(o, nil).lacking(t.Context(), a.Digest, 0); !is || err != nil {
		t.Errorf("with a signature that is not there, lacking: %v, %v", is, err)
	}
}
