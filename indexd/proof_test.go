package indexd

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/fetcher/fetchertest"
)

// lying is a storage that ignores the condition of a write, from when it is told to.
type lying struct {
	fetcher.Backend
	lies atomic.Bool
}

func (l *lying) WriteIf(ctx context.Context, key string, data []byte, version string) (fetcher.Info, error) {
	if l.lies.Load() {
		return l.Write(ctx, key, int64(len(data)), bytes.NewReader(data))
	}
	return l.Backend.WriteIf(ctx, key, data, version)
}

// away is a storage that is not there.
type away struct {
	fetcher.Backend
	is atomic.Bool
}

func (a *away) Check(ctx context.Context) error {
	if a.is.Load() {
		return errors.New("the storage is away")
	}
	return a.Backend.Check(ctx)
}

func (a *away) Open(ctx context.Context, key string, off, n int64) (io.ReadCloser, fetcher.Info, error) {
	if err := a.Check(ctx); err != nil {
		return nil, fetcher.Info{}, err
	}
	return a.Backend.Open(ctx, key, off, n)
}

// process is an index that runs in this process.
type process struct {
	api, metrics string
	stop         func() error // ends it, and returns what Run has
	ended        <-chan error
}

func startIndex(t *testing.T, b fetcher.Backend, o *origins) *process {
	t.Helper()
	cfg := DefaultConfig()
	cfg.Listen, cfg.Metrics, cfg.Backend, cfg.Origin = "127.0.0.1:0", "127.0.0.1:0", b, o
	up := make(chan *process, 1)
	cfg.OnListen = func(a, m net.Addr) { up <- &process{api: a.String(), metrics: m.String()} }
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- Run(ctx, cfg) }()
	p := <-up
	p.ended = ended
	p.stop = func() error {
		cancel()
		return <-ended
	}
	t.Cleanup(cancel)
	return p
}

func (p *process) ready(t *testing.T) (code int) {
	resp, err := http.Get("http://" + p.metrics + "/readyz")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	return resp.StatusCode
}

// A storage is proved by the first index that finds it, and not by those that come later.
func TestProvedOnce(t *testing.T) {
	memory := &fetchertest.Memory{}
	w := newWorld(t)
	for i, want := range []bool{true, false} {
		counts := &fetchertest.Counting{Backend: memory}
		p := startIndex(t, counts, w.origins)
		c := client(t, p.api)
		if err := c.LinkBlob(t.Context(), "r", ocispec.Descriptor{Digest: w.origins.add([]byte("x"))}); err != nil { // it waits for the proof
			t.Fatal(err)
		}
		if raced := counts.Writes() > 100; raced != want {
			t.Errorf("start %d: %d writes", i, counts.Writes())
		}
		if code := p.ready(t); code != http.StatusOK {
			t.Errorf("start %d: readyz is %d", i, code)
		}
		if err := p.stop(); err != nil {
			t.Error(err)
		}
	}
	// What was copied to another storage does not count there.
	var o proofObject
	if _, err := w.another().read(t.Context(), proofKey("other:"), &o); !errdefs.IsNotFound(err) {
		t.Error(err)
	}
	if page, _, err := memory.List(t.Context(), provedPrefix, "", 0); err != nil || len(page) != 1 || page[0].Key != proofKey("memory:") {
		t.Error(page, err)
	}
	if page, _, _ := memory.List(t.Context(), "capelin-prove/", "", 0); len(page) != 0 {
		t.Errorf("it left %v", page)
	}
}

// An index ends if its storage does not compare and swap, at its start or when that is found out by hand, and says what it did.
func TestRefuted(t *testing.T) {
	b := &lying{Backend: &fetchertest.Memory{}}
	b.lies.Store(true)
	p := startIndex(t, b, newOrigins())
	const want = "index: this storage cannot keep an index: tags that were acknowledged would be lost: memory:: " +
		"finding out whether it compares and swaps: creating capelin-prove/"
	if err := <-p.ended; err == nil || !strings.HasPrefix(err.Error(), want) ||
		!strings.Contains(err.Error(), "of 16 writers at the same time 16 won") {
		t.Error(err)
	}
	if page, _, _ := b.List(t.Context(), "index/", "", 0); len(page) != 0 {
		t.Errorf("it left %v", page)
	}

	b.lies.Store(false)
	p = startIndex(t, b, newOrigins())
	for p.ready(t) != http.StatusOK { // what it finds out at its start is not to be disturbed
		if t.Context().Err() != nil {
			t.Fatal("it is never ready")
		}
	}
	c := client(t, p.api)
	if is, err := c.Prove(t.Context()); err != nil || is.Storage != "memory:" || is.By == "" || is.Proved.IsZero() {
		t.Errorf("%+v, %v", is, err)
	}
	b.lies.Store(true)
	if _, err := c.Prove(t.Context()); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "16 won") {
		t.Error(err)
	}
	if err := <-p.ended; err == nil || !strings.Contains(err.Error(), "16 won") {
		t.Error(err)
	}
	if page, _, _ := b.List(t.Context(), provedPrefix, "", 0); len(page) != 0 {
		t.Errorf("it is remembered that the storage was proved: %v", page)
	}
}

// An index starts without its storage, says so, writes nothing, and does when the storage is there.
func TestStorageAway(t *testing.T) {
	b := &away{Backend: &fetchertest.Memory{}}
	b.is.Store(true)
	w := newWorld(t)
	p := startIndex(t, b, w.origins)
	c := client(t, p.api)
	d := ocispec.Descriptor{Digest: w.origins.add([]byte("x"))}
	if err := c.LinkBlob(t.Context(), "r", d); !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "the storage is away") {
		t.Error(err)
	}
	if code := p.ready(t); code != http.StatusServiceUnavailable {
		t.Errorf("readyz is %d", code)
	}
	b.is.Store(false)
	for c.LinkBlob(t.Context(), "r", d) != nil {
		if t.Context().Err() != nil {
			t.Fatal("it never wrote")
		}
	}
	if code := p.ready(t); code != http.StatusOK {
		t.Errorf("readyz is %d", code)
	}
	if err := p.stop(); err != nil {
		t.Error(err)
	}
}

// Who comes during the proof waits for it.
func TestProofWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.storage.Backend = &fetchertest.Slow{Backend: &fetchertest.Memory{}, Latency: time.Second}
		p := newProof(w.Index, func() (fetcher.Backend, error) { return w.storage, nil })
		done := make(chan error, 1)
		go func() { done <- p.wait(t.Context()) }()
		synctest.Wait()
		if len(done) != 0 || p.is() {
			t.Error("nobody has found it out")
		}
		if err := p.find(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil || !p.is() {
			t.Error(err)
		}
	})
}
