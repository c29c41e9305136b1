package indexd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/capelin-io/capelin/control/index"
	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/fetcher/fetchertest"
	"github.com/capelin-io/capelin/internal/daemon/identity"
)

// An Index in the same process can take the place of a client.
var _ = []interface {
	Tag(ctx context.Context, repo, name string) (index.Tag, error)
	PutTag(ctx context.Context, repo, name string, desc ocispec.Descriptor) (index.Tag, error)
	DeleteTag(ctx context.Context, repo, name string) error
	Tags(ctx context.Context, repo, after string, limit int) (names []string, more bool, err error)
	Repositories(ctx context.Context, after string, limit int) ([]string, bool, error)
	Manifest(ctx context.Context, repo string, d digest.Digest) (index.Manifest, error)
	PutManifest(ctx context.Context, repo string, m index.Manifest) error
	DeleteManifest(ctx context.Context, repo string, d digest.Digest) error
	Manifests(ctx context.Context, repo string, after digest.Digest, limit int) ([]digest.Digest, bool, error)
	Referrers(ctx context.Context, repo string, d digest.Digest, artifactType string) ([]ocispec.Descriptor, error)
	LinkBlob(ctx context.Context, repo string, desc ocispec.Descriptor) error
	Blob(ctx context.Context, repo string, d digest.Digest) (ocispec.Descriptor, error)
	UnlinkBlob(ctx context.Context, repo string, d digest.Digest) error
	TokenKeys(ctx context.Context) ([]index.TokenKey, error)
}{(*Index)(nil), (*index.Client)(nil)}

// newServer serves the API of an index.
func newServer(t testing.TB, x *Index) *server {
	return &server{index: x, metrics: newMetrics(prometheus.NewRegistry(), x), slots: make(chan struct{}, 8)}
}

func client(t testing.TB, addrs ...string) *index.Client {
	t.Helper()
	c, err := index.New(index.Config{Indexes: addrs})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func serveHTTP(t testing.TB, h http.Handler) *httptest.Server {
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s
}

// Everything through the client and the API.
func TestClientAndServer(t *testing.T) {
	w := newWorld(t)
	c := client(t, serveHTTP(t, newServer(t, w.Index).handler()).URL)
	ctx := t.Context()
	base := w.blob("", "a/b", "base")
	w.wantErr("blob", second(c.Blob(ctx, "team/app", base.Digest)), errdefs.ErrNotFound)
	if err := c.LinkBlob(ctx, "team/app", base); err != nil {
		t.Fatal(err)
	}
	if d, err := c.Blob(ctx, "team/app", base.Digest); err != nil || d.Size != 4 || d.MediaType != "a/b" {
		t.Errorf("blob: %v, %v", d, err)
	}
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: w.blob("", "a/c", "config"), Layers: []ocispec.Descriptor{base},
		Subject: &base, Annotations: map[string]string{"html": "<&>"}}
	m.SchemaVersion = 2
	d := w.bytes(m.MediaType, m)
	var missing *index.MissingError
	err := c.PutManifest(ctx, "team/app", index.Manifest{Descriptor: d})
	if !errors.As(err, &missing) || missing.Repository != "team/app" || len(missing.Missing) != 1 ||
		missing.Missing[0].Digest != m.Config.Digest || missing.Missing[0].NeededBy != d.Digest {
		t.Errorf("incomplete: %v", err)
	}
	if err := c.LinkBlob(ctx, "team/app", m.Config); err != nil {
		t.Fatal(err)
	}
	if err := c.PutManifest(ctx, "team/app", index.Manifest{Descriptor: d}); err != nil {
		t.Fatal(err)
	}
	got, err := c.Manifest(ctx, "team/app", d.Digest)
	if err != nil || len(got.Blobs) != 2 || got.Annotations["html"] != "<&>" || got.Subject.Digest != base.Digest {
		t.Errorf("manifest: %+v, %v", got, err)
	}
	put, err := c.PutTag(ctx, "team/app", "v1", d)
	if err != nil || put.Revision != 1 {
		t.Fatal(put, err)
	}
	tag, err := c.Tag(ctx, "team/app", "v1")
	if err != nil || fmt.Sprint(tag) != fmt.Sprint(put) || tag.Descriptor.Digest != d.Digest || tag.Cluster != "test" {
		t.Errorf("tag: %+v, %v, want %+v", tag, err, put)
	}
	if names, more, err := c.Tags(ctx, "team/app", "", 10); err != nil || more || !slices.Equal(names, []string{"v1"}) {
		t.Errorf("tags: %v, %v, %v", names, more, err)
	}
	if names, more, err := c.Repositories(ctx, "", 10); err != nil || more || !slices.Equal(names, []string{"team/app"}) {
		t.Errorf("repositories: %v, %v, %v", names, more, err)
	}
	if all, more, err := c.Manifests(ctx, "team/app", "", 10); err != nil || more || !slices.Equal(all, []digest.Digest{d.Digest}) {
		t.Errorf("manifests: %v, %v, %v", all, more, err)
	}
	for kind, n := range map[string]int{"": 1, "a/c": 1, "a/d": 0} {
		if refs, err := c.Referrers(ctx, "team/app", base.Digest, kind); err != nil || len(refs) != n || refs == nil {
			t.Errorf("referrers %q: %v, %v", kind, refs, err)
		}
	}
	if err := c.DeleteTag(ctx, "team/app", "v1"); err != nil {
		t.Error(err)
	}
	w.wantErr("tag", second(c.Tag(ctx, "team/app", "v1")), errdefs.ErrNotFound, "team/app:v1")
	if err := c.DeleteManifest(ctx, "team/app", d.Digest); err != nil {
		t.Error(err)
	}
	w.wantErr("delete again", c.DeleteManifest(ctx, "team/app", d.Digest), errdefs.ErrNotFound)
	if err := c.UnlinkBlob(ctx, "team/app", base.Digest); err != nil {
		t.Error(err)
	}
	w.wantErr("repository", second(c.Tag(ctx, "Team", "v1")), errdefs.ErrInvalidArgument)
	w.origins.down = errors.New("gone")
	w.wantErr("origins down", c.LinkBlob(ctx, "team/app", base), errdefs.ErrUnavailable)
}

func second[T any](_ T, err error) error { return err }

// Paging through the API: more tags than a page has.
func TestPagesThroughAPI(t *testing.T) {
	w := newWorld(t)
	d := w.opaque("r", "a")
	for i := range 1500 {
		o := tagObject{Version: formatVersion, Repository: "r", Name: fmt.Sprintf("v%04d", i), Revision: 1, Descriptor: d}
		if err := w.write(t.Context(), tagKey("r", o.Name), &o); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 1100 {
		w.about("r", d.Digest, "a/b", fmt.Sprint(i))
	}
	c := client(t, serveHTTP(t, newServer(t, w.Index).handler()).URL)
	all := pages(t, 1000, func(after string, limit int) ([]string, bool, error) { return c.Tags(t.Context(), "r", after, limit) })
	if len(all) != 1500 || !slices.IsSorted(all) {
		t.Errorf("%d tags", len(all))
	}
	if refs, err := c.Referrers(t.Context(), "r", d.Digest, ""); err != nil || len(refs) != 1100 {
		t.Errorf("%d referrers, %v", len(refs), err)
	}
}

// Requests that no client of ours makes.
func TestBadRequests(t *testing.T) {
	w := newWorld(t)
	w.opaque("r", "a")
	h := newServer(t, w.Index).handler()
	good := `{"descriptor":{"mediaType":"a/b","digest":"` + string(digest.FromString("a")) + `","size":1}}`
	for _, tt := range []struct {
		method, target, body string
		status               int
		say                  string
	}{
		{"GET", "/v1/tag", "", 400, "no name of a repository"},
		{"GET", "/v1/tag?repository=r", "", 400, "no name of a tag"},
		{"GET", "/v1/tag?repository=r&name=%zz", "", 400, "parameters"},
		{"GET", "/v1/tag?repository=r&name=" + strings.Repeat("a", 5000), "", 400, "…"},
		{"GET", "/v1/tags?repository=r&limit=x", "", 400, "no number"},
		{"GET", "/v1/tags?repository=r&limit=99999999999999999999", "", 400, "no number"},
		{"GET", "/v1/tags?repository=r&limit=-5", "", 200, `{"names":[],"more":false}`},
		{"GET", "/v1/manifest?repository=r&digest=sha256:..%2f..", "", 400, "no digest"},
		{"GET", "/v1/referrers?repository=r&digest=x", "", 400, "no digest"},
		{"PUT", "/v1/tag?repository=r&name=v", "", 400, "body"},
		{"PUT", "/v1/tag?repository=r&name=v", "{", 400, "body"},
		{"PUT", "/v1/tag?repository=r&name=v", good + "x", 400, "body"},
		{"PUT", "/v1/tag?repository=r&name=v", `{"descriptor":{},"more":1}`, 400, "unknown field"},
		{"PUT", "/v1/tag?repository=r&name=v", strings.Repeat(" ", index.MaxRequest+1) + good, 400, "too large"},
		{"PUT", "/v1/tag?repository=r&name=v", good, 412, `"missing":[{"digest":"` + string(digest.FromString("a"))},
		{"PUT", "/v1/blob?repository=r&digest=" + string(digest.FromString("b")), good, 400, "its body about"},
		{"POST", "/v1/tag", "", 405, ""},
		{"GET", "/v1/none", "", 404, ""},
		{"GET", "/", "", 404, ""},
	} {
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, httptest.NewRequest(tt.method, tt.target, strings.NewReader(tt.body)))
		if body := rec.Body.String(); rec.Code != tt.status || !strings.Contains(body, tt.say) || len(body) > 8<<10 {
			t.Errorf("%s %.80s %.80s: %d %.300s", tt.method, tt.target, tt.body, rec.Code, body)
		}
	}
}

// Who may do what: roles that may read, roles that may write, and strangers.
func TestRoles(t *testing.T) {
	w := newWorld(t)
	s := newServer(t, w.Index)
	var id identity.ID
	var idErr error
	s.peer = func(*http.Request) (identity.ID, error) { return id, idErr }
	h := s.handler()
	ask := func(method, path string) int {
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, httptest.NewRequest(method, path+"?repository=R", strings.NewReader(`{"descriptor":{}}`)))
		return rec.Code
	}
	paths := map[string][]string{
		"GET": {
			index.PathRepositories, index.PathTags, index.PathTag, index.PathManifests, index.PathManifest, index.PathReferrers,
			index.PathBlob,
		},
		"PUT":    {index.PathTag, index.PathManifest, index.PathBlob},
		"DELETE": {index.PathTag, index.PathManifest, index.PathBlob},
	}
	for _, role := range append(slices.Clone(identity.Roles), "") {
		id = identity.ID{Cluster: "test", Name: "x", Roles: []identity.Role{role}}
		reads := slices.Contains([]identity.Role{"node", "gateway", "admin", "index"}, role)
		writes := slices.Contains([]identity.Role{"gateway", "admin", "index"}, role)
		for method, all := range paths {
			for _, path := range all {
				want := 403
				if method == "GET" && reads || writes {
					want = 400 // it got as far as the repository's name
				}
				if path == index.PathRepositories && want == 400 {
					want = 200
				}
				if got := ask(method, path); got != want {
					t.Errorf("%q %s %s: %d, want %d", role, method, path, got, want)
				}
			}
		}
	}
	for _, role := range append(slices.Clone(identity.Roles), "") { // a node could make itself a token with them
		id = identity.ID{Cluster: "test", Name: "x", Roles: []identity.Role{role}}
		want := 403
		if slices.Contains([]identity.Role{"gateway", "admin", "index"}, role) {
			want = 200
		}
		if got := ask("PUT", index.PathTokenKeys); got != want {
			t.Errorf("%q asks for the keys of tokens: %d, want %d", role, got, want)
		}
		if got := ask("GET", index.PathTokenKeys); got != 405 {
			t.Errorf("%q GETs the keys of tokens: %d", role, got)
		}
	}
	idErr = errors.New("no certificate")
	for method, all := range paths {
		for _, path := range all {
			if got := ask(method, path); got != 401 {
				t.Errorf("nobody: %s %s: %d", method, path, got)
			}
		}
	}
}

// A server that has no room left, or whose operation takes too long, says so.
func TestNoRoom(t *testing.T) {
	w := newWorld(t)
	s := newServer(t, w.Index)
	for range cap(s.slots) {
		s.slots <- struct{}{}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	rec := httptest.NewRecorder()
	s.handler().ServeHTTP(rec, httptest.NewRequestWithContext(ctx, "GET", index.PathRepositories, nil))
	if rec.Code != 503 || !strings.Contains(rec.Body.String(), "too many requests") {
		t.Errorf("%d %s", rec.Code, rec.Body)
	}
}

// The daemon: it serves, shows metrics, refuses what cannot work, and ends; another one
// over the same storage goes on where it was.
func TestRun(t *testing.T) {
	w := newWorld(t)
	w.opaque("r", "a")
	start := func(change func(*Config)) (addr, metrics string, stop func() error) {
		cfg := DefaultConfig()
		cfg.Listen, cfg.Metrics, cfg.Backend, cfg.Origin, cfg.Cluster = "127.0.0.1:0", "127.0.0.1:0", w.storage, w.origins, "run"
		addrs := make(chan [2]string, 1)
		cfg.OnListen = func(a, m net.Addr) { addrs <- [2]string{a.String(), m.String()} }
		if change != nil {
			change(&cfg)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- Run(ctx, cfg) }()
		select {
		case a := <-addrs:
			addr, metrics = a[0], a[1]
		case err := <-done:
			done <- err
		}
		return addr, metrics, func() error { cancel(); return <-done }
	}
	addr, metrics, stop := start(nil)
	a := w.opaque("r", "a")
	for i := range 3 {
		tag, err := client(t, addr).PutTag(t.Context(), "r", "v", a)
		if err != nil || tag.Revision != uint64(i+1) || tag.Cluster != "run" {
			t.Fatal(tag, err)
		}
		if i == 1 {
			resp, err := http.Get("http://" + metrics + "/metrics")
			if err != nil {
				t.Fatal(err)
			}
			body, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			for _, want := range []string{`capelin_index_requests_total{operation="put_tag",result="ok"} 1`,
				"capelin_index_request_seconds_bucket", "capelin_index_tag_conflicts_total 0"} {
				if !strings.Contains(string(body), want) {
					t.Errorf("no %s in the metrics", want)
				}
			}
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		addr, metrics, stop = start(nil)
	}
	if tag, err := client(t, addr).Tag(t.Context(), "r", "v"); err != nil || tag.Revision != 3 {
		t.Error(tag, err)
	}
	_, _, other := start(func(c *Config) { c.Listen = addr })
	if err := other(); err == nil || !strings.Contains(err.Error(), "listen address "+addr) {
		t.Errorf("taken address: %v", err)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	_, _, stop = start(func(c *Config) {
		c.Backend = capable{w.storage, fetcher.Capabilities{Write: true, List: true, Delete: true}}
	})
	if err := stop(); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "cannot compare and swap") {
		t.Errorf("storage without compare and swap: %v", err)
	}
	_, _, stop = start(func(c *Config) { c.Cluster, c.LogLevel, c.Listen = "", "loud", "x" })
	err := stop()
	for _, key := range []string{"cluster", "log_level", "listen"} {
		if err == nil || !strings.Contains(err.Error(), key+":") {
			t.Errorf("%s: %v", key, err)
		}
	}
	http.DefaultClient.CloseIdleConnections()
}

// A shutdown waits for what is under way.
func TestShutdownFinishes(t *testing.T) {
	w := newWorld(t)
	a := w.opaque("r", "a")
	ctx, cancel := context.WithCancel(t.Context())
	release := make(chan struct{})
	w.storage.FailAfter = func(op fetchertest.Op, key string) error {
		if op == fetchertest.OpWriteIf && strings.HasPrefix(key, repoPrefix) {
			cancel() // the daemon
			<-release
		}
		return nil
	}
	cfg := DefaultConfig()
	cfg.Listen, cfg.Metrics, cfg.Backend, cfg.Origin = "127.0.0.1:0", "", w.storage, w.origins
	addr := make(chan string, 1)
	cfg.OnListen = func(a, _ net.Addr) { addr <- a.String() }
	done := make(chan error, 1)
	go func() { done <- Run(ctx, cfg) }()
	put := make(chan error, 1)
	c := client(t, <-addr)
	go func() { put <- second(c.PutTag(t.Context(), "r", "v", a)) }()
	<-ctx.Done()
	select {
	case err := <-done:
		t.Fatalf("ended early: %v", err)
	case <-time.After(20 * time.Millisecond): // cannot fail wrongly
	}
	close(release)
	if err := <-put; err != nil {
		t.Error(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// Whatever is asked, the server answers with a status and JSON of its own, and never
// fails inside.
func FuzzAPI(f *testing.F) {
	w := newWorld(f)
	d := w.image("r", "a")
	if _, err := w.PutTag(f.Context(), "r", "v", d); err != nil {
		f.Fatal(err)
	}
	h := newServer(f, w.Index).handler()
	body := `{"descriptor":{"mediaType":"` + d.MediaType + `","digest":"` + string(d.Digest) + `","size":1}}`
	q := func(pairs ...string) string {
		v := url.Values{}
		for i := 0; i < len(pairs); i += 2 {
			v.Set(pairs[i], pairs[i+1])
		}
		return v.Encode()
	}
	f.Add(uint8(0), uint8(0), "", "")
	f.Add(uint8(0), uint8(1), q("repository", "r", "after", "a", "limit", "5"), "")
	f.Add(uint8(1), uint8(2), q("repository", "r", "name", "v"), body)
	f.Add(uint8(2), uint8(2), q("repository", "r", "name", "v"), "")
	f.Add(uint8(1), uint8(4), q("repository", "r", "digest", string(d.Digest)), body)
	f.Add(uint8(0), uint8(5), q("repository", "r", "digest", string(d.Digest), "artifactType", "a/b"), "")
	f.Add(uint8(1), uint8(6), q("repository", "r/a-b.c", "digest", string(d.Digest)), body)
	methods := []string{"GET", "PUT", "DELETE"}
	paths := []string{index.PathRepositories, index.PathTags, index.PathTag, index.PathManifests, index.PathManifest,
		index.PathReferrers, index.PathBlob}
	f.Fuzz(func(t *testing.T, method, path uint8, query, body string) {
		req := httptest.NewRequest(methods[int(method)%3], paths[int(path)%len(paths)], strings.NewReader(body))
		req.URL.RawQuery = query
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, req)
		switch rec.Code {
		case 200, 204, 400, 404, 405, 409, 412, 416:
		default:
			t.Errorf("%s %s %q: %d %s", req.Method, req.URL.Path, body, rec.Code, rec.Body)
		}
		if page, _, err := w.storage.List(t.Context(), "", "index0", 1); err != nil || len(page) > 0 {
			t.Errorf("objects %v, %v", page, err)
		}
		if page, _, err := w.storage.List(t.Context(), "", "", 1); err != nil || !strings.HasPrefix(page[0].Key, "index/") {
			t.Errorf("objects %v, %v", page, err)
		}
	})
}
