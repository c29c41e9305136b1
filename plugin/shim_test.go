package plugin

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"cuelabs.dev/go/oci/ociregistry"
	"cuelabs.dev/go/oci/ociregistry/ociauth"
	"cuelabs.dev/go/oci/ociregistry/ociclient"
	"cuelabs.dev/go/oci/ociregistry/ocimem"
	"cuelabs.dev/go/oci/ociregistry/ociserver"
	"github.com/containerd/containerd/v2/core/content/proxy"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/capelin-io/capelin/internal/daemon/config"
	"github.com/capelin-io/capelin/internal/daemon/identity"
	"github.com/capelin-io/capelin/plugin/fetch/fetchtest"
)

// bearerRegistry is a registry that wants bearer tokens, and gives them to "me".
type bearerRegistry struct {
	*httptest.Server

	mu   sync.Mutex
	gets map[string]int // of blobs, by digest
}

func newBearerRegistry(t *testing.T) *bearerRegistry {
	r := &bearerRegistry{gets: map[string]int{}}
	api := ociserver.New(ocimem.New(), nil)
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path == "/token" {
			if user, password, _ := req.BasicAuth(); user != "me" || password != "secret" {
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			fmt.Fprint(w, `{"token":"letmein"}`)
			return
		}
		if req.Header.Get("Authorization") != "Bearer letmein" {
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="test"`, r.Listener.Addr()))
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		if _, d, ok := strings.Cut(req.URL.Path, "/blobs/"); ok && req.Method == http.MethodGet {
			r.mu.Lock()
			r.gets[d]++
			r.mu.Unlock()
		}
		api.ServeHTTP(w, req)
	}))
	t.Cleanup(r.Close)
	return r
}

// downloads returns how often each blob was asked for since the last call.
func (r *bearerRegistry) downloads() (n []int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, times := range r.gets {
		n = append(n, times)
	}
	r.gets = map[string]int{}
	return n
}

// credentials are for all registries.
type credentials ociauth.ConfigEntry

func (c credentials) EntryForRegistry(string) (ociauth.ConfigEntry, error) {
	return ociauth.ConfigEntry(c), nil
}

func random(size int) []byte {
	b := make([]byte, size)
	rand.Read(b)
	return b
}

func put(t *testing.T, c ociregistry.Interface, data []byte) ocispec.Descriptor {
	t.Helper()
	desc := ocispec.Descriptor{MediaType: "application/octet-stream", Digest: digest.FromBytes(data), Size: int64(len(data))}
	if _, err := c.PushBlob(t.Context(), "team/app", desc, bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	return desc
}

func read(r ociregistry.BlobReader, err error) ([]byte, error) {
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

// Clients that know nothing of Capelin pull through the shims of two nodes: the
// registry decides who may, and gives each blob once.
func TestShim(t *testing.T) {
	t.Parallel()
	up := newBearerRegistry(t)
	tracker := startTracker(t)
	var agents []*testAgent
	for range 2 {
		cfg := testConfig(t)
		cfg.Trackers = []string{tracker}
		cfg.Shim.Listen, cfg.Shim.Upstream = "127.0.0.1:0", up.URL
		agents = append(agents, start(t, cfg))
	}
	plain := &http.Transport{}
	defer plain.CloseIdleConnections()
	// A client of its own for each pull, as if it had never been here. It takes
	// the registry's challenge from the shim and its token from the registry.
	client := func(host string, who ociauth.ConfigEntry) ociregistry.Interface {
		c, err := ociclient.New(host, &ociclient.Options{Insecure: true, Transport: ociauth.NewStdTransport(ociauth.StdTransportParams{
			Transport: plain, Config: credentials(who),
		})})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	me := ociauth.ConfigEntry{Username: "me", Password: "secret"}
	push := func(tag string, layers ...[]byte) {
		t.Helper()
		c := client(strings.TrimPrefix(up.URL, "http://"), me)
		m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: put(t, c, []byte(fmt.Sprintf("{%q:0}", tag)))}
		m.SchemaVersion = 2
		for _, l := range layers {
			m.Layers = append(m.Layers, put(t, c, l))
		}
		raw, err := json.Marshal(m)
		if err == nil {
			_, err = c.PushManifest(t.Context(), "team/app", tag, raw, m.MediaType)
		}
		if err != nil {
			t.Fatal(err)
		}
		up.downloads()
	}
	pull := func(a *testAgent, tag string) {
		t.Helper()
		c := client(a.status(t).Shim, me)
		raw, err := read(c.GetTag(t.Context(), "team/app", tag))
		var m ocispec.Manifest
		if err == nil {
			err = json.Unmarshal(raw, &m)
		}
		if err != nil {
			t.Error(err)
			return
		}
		for _, desc := range append(m.Layers, m.Config) {
			got, err := read(c.GetBlob(t.Context(), "team/app", desc.Digest))
			if err != nil || digest.FromBytes(got) != desc.Digest {
				t.Errorf("pulled %d bytes of %s, which has %d: %v", len(got), desc.Digest, desc.Size, err)
			}
		}
	}

	push("first", random(3<<20+7), random(70_000), random(2))
	if _, err := client(agents[0].status(t).Shim, ociauth.ConfigEntry{}).GetTag(t.Context(), "team/app", "first"); err == nil ||
		!strings.Contains(err.Error(), "401") {
		t.Errorf("without credentials: %v", err)
	}
	pull(agents[0], "first")
	if got := up.downloads(); len(got) != 4 || slices.Max(got) > 1 {
		t.Errorf("for the first node blobs were downloaded %v times", got)
	}
	pull(agents[1], "first")
	pull(agents[0], "first")
	if got := up.downloads(); len(got) != 0 {
		t.Errorf("for the second node blobs were downloaded %v times", got)
	}
	agents[1].until(t, func(st Status) bool { return st.Bytes.FromPeers >= 3<<20+70_000 })

	// Both at once.
	push("second", random(5<<20), random(4<<20), random(100_000))
	var wg sync.WaitGroup
	for _, a := range agents {
		wg.Go(func() { pull(a, "second") })
	}
	wg.Wait()
	if got := up.downloads(); len(got) != 4 || slices.Max(got) > 1 {
		t.Errorf("for two nodes blobs were downloaded %v times", got)
	}

	// Request by request.
	data := random(300_000)
	push("third", data)
	d := digest.FromBytes(data)
	ask := func(method, rng, token string) (*http.Response, string) {
		t.Helper()
		req, _ := http.NewRequestWithContext(t.Context(), method, "http://"+agents[0].status(t).Shim+"/v2/team/app/blobs/"+d.String(), nil)
		req.Header.Set("Authorization", "Bearer "+token)
		if rng != "" {
			req.Header.Set("Range", rng)
		}
		resp, err := plain.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp, string(b)
	}
	if resp, _ := ask("HEAD", "", "letmein"); resp.StatusCode != http.StatusOK || resp.ContentLength != int64(len(data)) {
		t.Errorf("HEAD: %s, %d bytes", resp.Status, resp.ContentLength)
	}
	agents[0].until(t, func(st Status) bool { return st.Store.Cached == 8 }) // the last one of before, at its own time
	if got := up.downloads(); len(got) != 0 || agents[0].status(t).Store.Cached != 8 {
		t.Errorf("HEAD downloaded %v; in the cache are %d", got, agents[0].status(t).Store.Cached)
	}
	for _, tt := range []struct {
		rng, token  string
		status      int
		from, until int
	}{
		{"bytes=200000-", "letmein", 206, 200_000, 300_000},
		{"", "letmein", 200, 0, 300_000},
		{"bytes=0-0", "letmein", 206, 0, 1},
		{"bytes=-5", "letmein", 206, 299_995, 300_000},
		{"bytes=300000-", "letmein", 416, 0, 0},
		{"bytes=10-19,30-39", "letmein", 200, 0, 300_000},
		{"bytes=a-b", "letmein", 416, 0, 0},
	} {
		resp, got := ask("GET", tt.rng, tt.token)
		if resp.StatusCode != tt.status || tt.until > 0 && got != string(data[tt.from:tt.until]) {
			t.Errorf("range %q: %s, %d bytes", tt.rng, resp.Status, len(got))
		}
		if want := fmt.Sprintf("bytes %d-%d/%d", tt.from, tt.until-1, len(data)); tt.status == 206 && resp.Header.Get("Content-Range") != want {
			t.Errorf("range %q: %q, want %q", tt.rng, resp.Header.Get("Content-Range"), want)
		}
	}
	if got := up.downloads(); len(got) != 1 || got[0] != 1 {
		t.Errorf("for ranges it was downloaded %v times", got)
	}
	// What is here already is only for those whom the registry allows it.
	if resp, got := ask("GET", "", "guess"); resp.StatusCode != http.StatusUnauthorized ||
		resp.Header.Get("WWW-Authenticate") == "" || len(got) > 1000 {
		t.Errorf("with a wrong token: %s, %d bytes", resp.Status, len(got))
	}
	if resp, _ := ask("DELETE", "", "letmein"); resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("DELETE: %s", resp.Status)
	}
}

// blobServer is a registry of one blob, which cuts its answers as it is told.
type blobServer struct {
	*httptest.Server
	data []byte
	gets atomic.Int64
	// cut is after how many bytes an answer is broken off, or if hang is not nil,
	// waits for that; 0: never.
	cut  int
	hang chan struct{}
}

func newBlobServer(t *testing.T, s *blobServer) {
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
}

func (s *blobServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodGet {
		s.gets.Add(1)
		if s.cut > 0 {
			w = &cutWriter{w, s, s.cut}
		}
	}
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(s.data))
}

type cutWriter struct {
	http.ResponseWriter
	s    *blobServer
	left int
}

func (c *cutWriter) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p[:min(len(p), c.left)])
	if c.left -= n; c.left > 0 || err != nil {
		return n, err
	}
	_ = http.NewResponseController(c.ResponseWriter).Flush()
	if c.s.hang != nil {
		<-c.s.hang
	}
	panic(http.ErrAbortHandler)
}

// getBlob asks a shim for a blob, and returns a reader of the answer.
func getBlob(t testing.TB, a *testAgent, d digest.Digest) io.ReadCloser {
	t.Helper()
	plain := &http.Transport{}
	t.Cleanup(plain.CloseIdleConnections)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+a.status(t).Shim+"/v2/team/app/blobs/"+d.String(), nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := plain.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK {
		t.Fatal(resp.Status)
	}
	return resp.Body
}

// A registry that breaks its answers off is asked for the rest.
func TestShimRegistryBreaksOff(t *testing.T) {
	t.Parallel()
	s := &blobServer{data: random(4<<20 + 5), cut: 1<<20 + 100}
	newBlobServer(t, s)
	cfg := testConfig(t)
	cfg.Shim.Listen, cfg.Shim.Upstream = "127.0.0.1:0", s.URL
	a := start(t, cfg)
	for range 2 {
		body := getBlob(t, a, digest.FromBytes(s.data))
		got, err := io.ReadAll(body)
		body.Close()
		if err != nil || !bytes.Equal(got, s.data) {
			t.Fatalf("%d bytes of %d: %v", len(got), len(s.data), err)
		}
	}
	if n := s.gets.Load(); n != 4 {
		t.Errorf("the registry was asked %d times", n)
	}
}

// A registry whose blob is another one is the client's to find out if nothing was
// sent when it was noticed, and else the answer is broken off; nothing of it stays.
func TestShimFalseBlob(t *testing.T) {
	t.Parallel()
	s := &blobServer{data: random(300_000)}
	newBlobServer(t, s)
	cfg := testConfig(t)
	cfg.Shim.Listen, cfg.Shim.Upstream = "127.0.0.1:0", s.URL
	a := start(t, cfg)
	right := slices.Clone(s.data)
	right[200_000] ^= 1
	body := getBlob(t, a, digest.FromBytes(right))
	defer body.Close()
	if got, err := io.ReadAll(body); err == nil && !bytes.Equal(got, s.data) || err != nil && len(got) >= len(right) {
		t.Errorf("%d bytes that are neither's: %v", len(got), err)
	}
	if n := s.gets.Load(); n > 2 {
		t.Errorf("the registry was asked %d times", n)
	}
	a.until(t, func(st Status) bool { return len(st.Blobs) == 0 })
	if st := a.status(t); st.Store.Cached+st.Store.Committed > 0 {
		t.Errorf("in the store: %+v", st.Store)
	}
}

// An agent stops although a registry hangs; the client sees that it does not have
// all of the blob.
func TestShimStops(t *testing.T) {
	t.Parallel()
	s := &blobServer{data: random(4 << 20), cut: 2 << 20, hang: make(chan struct{})}
	newBlobServer(t, s)
	defer close(s.hang)
	cfg := testConfig(t)
	cfg.Shim.Listen, cfg.Shim.Upstream = "127.0.0.1:0", s.URL
	cfg.Wait.Stop = config.Duration(50 * time.Millisecond)
	a := start(t, cfg)
	body := getBlob(t, a, digest.FromBytes(s.data))
	defer body.Close()
	got := make([]byte, 1<<20)
	if _, err := io.ReadFull(body, got); err != nil || !bytes.Equal(got, s.data[:len(got)]) {
		t.Errorf("what has come so far: %v", err)
	}
	a.end(t)
	if n, err := io.Copy(io.Discard, body); err == nil {
		t.Errorf("%d bytes more, and no error", n)
	}
}

// As long as containerd downloads, an agent that is told to stop answers everybody, the shim's
// clients included; and the download ends well.
func TestStoppingAgentServes(t *testing.T) {
	t.Parallel()
	s := &blobServer{data: random(1 << 20)}
	newBlobServer(t, s)
	cfg := testConfig(t)
	cfg.Shim.Listen, cfg.Shim.Upstream = "127.0.0.1:0", s.URL
	cfg.Wait.Stop = config.Duration(time.Millisecond)
	a := start(t, cfg)
	id, data := fetchtest.Random(t, 3<<16, 59)
	slow := &slowFetcher{data: data, started: make(chan struct{}), release: make(chan struct{})}
	ctx := namespaces.WithNamespace(t.Context(), "ns")
	db := a.db(t).ContentStore()
	fetched := make(chan error, 1)
	go func() { fetched <- remotes.Fetch(ctx, db, slow, layer(id)) }()
	<-slow.started
	a.stop()
	a.until(t, func(st Status) bool { return st.Stopping })
	for range 3 {
		body := getBlob(t, a, digest.FromBytes(s.data))
		got, err := io.ReadAll(body)
		body.Close()
		if err != nil || !bytes.Equal(got, s.data) {
			t.Errorf("the shim of an agent that stops: %d bytes, %v", len(got), err)
		}
		if _, err := proxy.NewContentStore(a.conn).Info(ctx, digest.FromString("none")); !errdefs.IsNotFound(err) {
			t.Errorf("a content store that stops: %v", err)
		}
		time.Sleep(60 * time.Millisecond) // into another turn of its door
	}
	close(slow.release)
	if err := <-fetched; err != nil {
		t.Errorf("what containerd downloaded: %v", err)
	}
	a.end(t)
}

// Whoever has identity trusts the cluster's CA for the gateway's certificate.
func TestShimTrustsCA(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ca, err := identity.InitCA(filepath.Join(dir, "ca"), "default")
	if err != nil {
		t.Fatal(err)
	}
	cfg := testConfig(t)
	issue := func(name string, role identity.Role, hosts ...string) identity.Config {
		to := filepath.Join(dir, name)
		if err := ca.Issue(to, identity.ID{Name: name, Roles: []identity.Role{role}}, hosts, time.Hour); err != nil {
			t.Fatal(err)
		}
		return identity.Config{
			CA: filepath.Join(to, identity.CACert), Cert: filepath.Join(to, identity.Cert), Key: filepath.Join(to, identity.Key),
		}
	}
	gw := issue("gw", identity.RoleGateway, "127.0.0.1")
	pair, err := tls.LoadX509KeyPair(gw.Cert, gw.Key)
	if err != nil {
		t.Fatal(err)
	}
	s := &blobServer{data: random(100_000)}
	s.Server = httptest.NewUnstartedServer(s)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	s.StartTLS()
	defer s.Close()
	cfg.Identity = issue(cfg.Node, identity.RoleNode)
	cfg.Shim.Listen, cfg.Shim.Upstream = "127.0.0.1:0", s.URL
	body := getBlob(t, start(t, cfg), digest.FromBytes(s.data))
	defer body.Close()
	if got, err := io.ReadAll(body); err != nil || !bytes.Equal(got, s.data) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

// BenchmarkShim reads a blob that is on disk through the shim.
func BenchmarkShim(b *testing.B) {
	s := &blobServer{data: random(256 << 20)}
	s.Server = httptest.NewServer(s)
	defer s.Close()
	cfg := testConfig(b)
	cfg.Shim.Listen, cfg.Shim.Upstream = "127.0.0.1:0", s.URL
	a := start(b, cfg)
	b.SetBytes(int64(len(s.data)))
	d := digest.FromBytes(s.data)
	for b.Loop() {
		body := getBlob(b, a, d)
		if n, err := io.Copy(io.Discard, body); err != nil || n != int64(len(s.data)) {
			b.Fatal(n, err)
		}
		body.Close()
	}
}
