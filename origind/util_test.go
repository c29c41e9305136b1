package origind

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	digest "github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/capelin-io/capelin/content"
	"github.com/capelin-io/capelin/control/origin"
	"github.com/capelin-io/capelin/control/ring"
	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/internal/daemon/config"
	"github.com/capelin-io/capelin/origind/record"
	"github.com/capelin-io/capelin/origind/ringstate/mirror"
	"github.com/capelin-io/capelin/swarm/piece"
)

func init() { _ = log.SetLevel("fatal") }

// stores are Backends whose namespaces begin with the backend's name and a slash;
// "kept/" is the origin's own.
type stores map[string]fetcher.Backend

func (s stores) Match(namespace string) (string, fetcher.Backend, bool) {
	name, _, _ := strings.Cut(namespace, "/")
	if name == "kept" {
		return name, nil, true
	}
	b, ok := s[name]
	return name, b, ok
}

func (s stores) Get(name string) (fetcher.Backend, bool) {
	b, ok := s[name]
	return b, ok
}

func (s stores) All() map[string]fetcher.Backend { return s }

// gated is a backend whose readers get only as many bytes as were let through.
type gated struct {
	fetcher.Backend
	mu    sync.Mutex
	left  int64
	moved chan struct{}
}

func newGated(b fetcher.Backend) *gated { return &gated{Backend: b, moved: make(chan struct{})} }

// let lets n more bytes through.
func (g *gated) let(n int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.left += n
	close(g.moved)
	g.moved = make(chan struct{})
}

// only lets n more bytes through, whatever was said before.
func (g *gated) only(n int64) {
	g.mu.Lock()
	g.left = 0
	g.mu.Unlock()
	g.let(n)
}

func (g *gated) Open(ctx context.Context, key string, off, n int64) (io.ReadCloser, fetcher.Info, error) {
	r, info, err := g.Backend.Open(ctx, key, off, n)
	if err != nil {
		return nil, info, err
	}
	return &gatedReader{r, g, ctx}, info, nil
}

type gatedReader struct {
	io.ReadCloser
	g   *gated
	ctx context.Context
}

func (r *gatedReader) Read(p []byte) (int, error) {
	for {
		r.g.mu.Lock()
		n := min(int64(len(p)), r.g.left)
		r.g.left -= n
		moved := r.g.moved
		r.g.mu.Unlock()
		if n > 0 {
			return r.ReadCloser.Read(p[:n])
		}
		select {
		case <-moved:
		case <-r.ctx.Done():
			return 0, r.ctx.Err()
		}
	}
}

// byRepository is a backend that needs to know the repository, as registries do.
type byRepository struct{ fetcher.Backend }

func (b byRepository) Capabilities() fetcher.Capabilities {
	return fetcher.Capabilities{NeedsRepository: true}
}

func (b byRepository) Locate(namespace string, d digest.Digest) (string, error) {
	if namespace == "" {
		return "", errdefs.ErrInvalidArgument
	}
	return namespace + "/" + d.Encoded(), nil
}

// running is an origin of a test.
type running struct {
	t      testing.TB
	addr   string // of the API
	swarm  string
	client *origin.Client
	stop   func()
}

func testConfig(t testing.TB, dir string, s Backends) Config {
	cfg := DefaultConfig()
	cfg.Root = dir
	cfg.Listen, cfg.Swarm.Listen, cfg.Metrics = "127.0.0.1:0", "127.0.0.1:0", ""
	cfg.Node = "origin"
	cfg.Cache.FreeFloor = -1
	cfg.Stores = s
	cfg.Lookup.Budget = config.Duration(5e9) // a busy machine is not what is tested
	cfg.Queue.Backoff = config.Duration(10e6)
	return cfg
}

// start runs an origin until the test ends, or stop is called.
func start(t testing.TB, cfg Config) *running {
	t.Helper()
	return startWith(t, cfg, nil)
}

// startWith is start for those who want to know where the metrics are.
func startWith(t testing.TB, cfg Config, metrics func(addr string)) *running {
	t.Helper()
	up := make(chan [2]net.Addr, 1)
	cfg.OnListen = func(api, swarm, m net.Addr) {
		if metrics != nil {
			metrics(m.String())
		}
		up <- [2]net.Addr{api, swarm}
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, cfg) }()
	var at [2]net.Addr
	select {
	case at = <-up:
	case err := <-done:
		cancel()
		t.Fatalf("the origin did not start: %v", err)
	}
	r := &running{t: t, addr: at[0].String(), swarm: at[1].String()}
	c, err := origin.New(origin.Config{Origins: []string{r.addr}})
	if err != nil {
		t.Fatal(err)
	}
	r.client = c
	stopped := false
	r.stop = func() {
		if stopped {
			return
		}
		stopped = true
		c.Close()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the origin ended with %v", err)
		}
	}
	t.Cleanup(r.stop)
	return r
}

// testBlob returns size pseudo-random bytes and their digest.
func testBlob(size int, seed uint64) ([]byte, digest.Digest) {
	data := make([]byte, size)
	var s [32]byte
	for i := range 8 {
		s[i] = byte(seed >> (8 * i))
	}
	rand.NewChaCha8(s).Read(data)
	return data, digest.FromBytes(data)
}

func idOf(t testing.TB, data []byte) piece.ID {
	t.Helper()
	id, err := piece.ParseID(string(digest.FromBytes(data)), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// push uploads data and returns what Commit said.
func (r *running) push(namespace string, data []byte, d digest.Digest) (origin.Info, error) {
	ctx := context.Background()
	id, err := r.client.StartUpload(ctx, namespace, "")
	if err != nil {
		return origin.Info{}, err
	}
	if end, err := r.client.Append(ctx, id, 0, strings.NewReader(string(data))); err != nil || end != int64(len(data)) {
		return origin.Info{}, fmt.Errorf("append: %d, %w", end, err)
	}
	return r.client.Commit(ctx, id, d)
}

func (r *running) mustPush(namespace string, data []byte) digest.Digest {
	r.t.Helper()
	d := digest.FromBytes(data)
	if info, err := r.push(namespace, data, d); err != nil || info.Size != int64(len(data)) {
		r.t.Fatalf("pushing: %+v, %v", info, err)
	}
	return d
}

// read returns a part of a blob.
func (r *running) read(ref origin.Ref, off, n int64) ([]byte, origin.Info, error) {
	return readFrom(r.client, ref, off, n)
}

func readFrom(c *origin.Client, ref origin.Ref, off, n int64) ([]byte, origin.Info, error) {
	rc, info, err := c.Open(context.Background(), ref, off, n)
	if err != nil {
		return nil, info, err
	}
	defer rc.Close()
	b, err := io.ReadAll(rc)
	return b, info, err
}

// put puts a blob into a backend, as another origin would have.
func put(t testing.TB, b fetcher.Backend, namespace string, data []byte) digest.Digest {
	t.Helper()
	d := digest.FromBytes(data)
	key, err := fetcher.Locate(b, namespace, d)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Write(t.Context(), key, int64(len(data)), strings.NewReader(string(data))); err != nil {
		t.Fatal(err)
	}
	return d
}

// class names an error's class, for tables.
func class(err error) string {
	name, _ := origin.Class(err)
	return name
}

// eventually waits until f reports true. The test's own deadline ends it.
func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for !f() {
		if t.Context().Err() != nil {
			t.Fatalf("never: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

// alone are uploads of an origin without a ring, which nobody commits.
func alone(dir string, max int) uploadsConfig {
	self := ring.Member{Name: "origin"}
	return uploadsConfig{
		dirs: []string{dir}, place: func() string { return dir }, failed: func(string, error) bool { return false }, max: max,
		mirror:  mirror.Config{Self: self, Replicas: 1, MinReplicas: 1, Expire: time.Hour},
		members: func() []mirror.Member { return []mirror.Member{{Member: self, Up: true}} },
		tasks:   &tasks{ctx: context.Background()},
	}
}

// newServer opens an origin without a network.
func newServer(t testing.TB, cfg Config) (*server, context.Context) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	s, err := openServer(ctx, ctx, cfg, nil, "127.0.0.1:0", prometheus.NewRegistry())
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		if err := s.close(); err != nil {
			t.Error(err)
		}
	})
	return s, ctx
}

// newHoldings opens an empty content directory and ledger.
func newHoldings(t testing.TB) *holdings {
	t.Helper()
	root := t.TempDir()
	store, err := content.Open(t.Context(), content.Config{Root: root, FreeFloor: -1})
	if err != nil {
		t.Fatal(err)
	}
	l, err := openLedger(root, "origin")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(l.close(), store.Close()); err != nil {
			t.Error(err)
		}
	})
	return &holdings{store, l}
}

// lives is a home that a blob was pushed to; with written, it was seen there since.
func lives(backend, key string, seen bool) record.Home {
	h := record.Home{Place: record.Place{Backend: backend, Key: key}, By: "origin", Since: 5, Namespaces: record.Stamps{backend + "/app": 5}}
	if seen {
		h.Written = 6
	}
	return h
}

// keep takes a blob in, as a push to some homes does.
func (h *holdings) keep(t testing.TB, data []byte, homes ...record.Home) digest.Digest {
	t.Helper()
	id := idOf(t, data)
	sums := piece.NewSums(id)
	if err := piece.NewHasher(sums).Write(sums, data); err != nil {
		t.Fatal(err)
	}
	store, ok := h.store.(*content.Store)
	if !ok {
		store = h.store.(*disks).pick().store
	}
	pushed := filepath.Join(t.TempDir(), "pushed")
	if err := os.WriteFile(pushed, data, 0o600); err != nil {
		t.Fatal(err)
	}
	d := digest.FromBytes(data)
	err := store.Import(t.Context(), pushed, sums)
	if len(homes) > 0 {
		err = errors.Join(err, h.record(&record.Record{Digest: d, Size: id.Size, Homes: homes}))
	}
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// record keeps a record.
func (h *holdings) record(r *record.Record) error {
	return h.ledger.commit(&changes{entries: map[digest.Digest]*record.Entry{r.Digest: {Record: r}}})
}
