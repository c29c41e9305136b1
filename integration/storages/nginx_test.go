package storages

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/fetcher/fetchertest"
	"github.com/capelin-io/capelin/fetcher/httpfile"
	"github.com/capelin-io/capelin/internal/daemon/config"
)

const layout = "{alg}/{hex2}/{hex}/data"

func httpBackend(t *testing.T, cfg httpfile.Config) *httpfile.Backend {
	t.Helper()
	cfg.Retry = config.Duration(time.Second)
	b, err := httpfile.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// path is where a digest's file is.
func (n *Nginx) path(t *testing.T, d digest.Digest) string {
	t.Helper()
	dir := filepath.Join(n.Root, d.Algorithm().String(), d.Encoded()[:2], d.Encoded())
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "data")
}

// put returns the key of a file with these bytes.
func (n *Nginx) put(t *testing.T, data []byte) string {
	t.Helper()
	d := digest.FromBytes(data)
	path := n.path(t, d)
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
	// A time that tells this file from any that is written now.
	then := time.Now().Add(-time.Minute)
	if err := os.Chtimes(path, then, then); err != nil {
		t.Fatal(err)
	}
	key, err := fetcher.BlobKey(d)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func missingBlob(t *testing.T) string {
	t.Helper()
	key, err := fetcher.BlobKey(digest.FromString("missing"))
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestHTTP(t *testing.T) {
	t.Parallel()
	n := StartNginx(t, t.TempDir())
	o := fetchertest.Options{
		Missing: missingBlob(t),
		Put:     func(t *testing.T, _ fetcher.Backend, data []byte) string { return n.put(t, data) },
	}
	for _, at := range []string{"files", "plain", "away"} {
		t.Run(at, func(t *testing.T) {
			fetchertest.Run(t, func(t *testing.T) fetcher.Backend {
				return httpBackend(t, httpfile.Config{URL: n.URL() + "/" + at + "/" + layout})
			}, o)
		})
	}
	for _, at := range []string{"files", "plain"} {
		t.Run("faults/"+at, func(t *testing.T) {
			fetchertest.RunFaults(t, func(t *testing.T) (fetcher.Backend, *fetchertest.Proxy) {
				p := fetchertest.NewProxy(t, n.URL())
				return httpBackend(t, httpfile.Config{URL: p.URL(n.URL()) + "/" + at + "/" + layout}), p
			}, fetchertest.FaultOptions{Options: o})
		})
	}
}

// What an operator is told before the first blob is wanted.
func TestHTTPCheck(t *testing.T) {
	t.Parallel()
	n := StartNginx(t, t.TempDir())
	headers := filepath.Join(t.TempDir(), "headers")
	if err := os.WriteFile(headers, []byte("Authorization: Bearer not-much-of-a-secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	key := n.put(t, []byte("hello"))
	for _, tt := range []struct {
		at, headers string
		class       error
	}{
		{"files", "", nil},
		{"members", headers, nil},
		{"members", "", errdefs.ErrUnauthenticated},
		{"pages", "", errdefs.ErrFailedPrecondition},
	} {
		b := httpBackend(t, httpfile.Config{URL: n.URL() + "/" + tt.at + "/" + layout, HeaderFile: tt.headers})
		if err := b.Check(t.Context()); !errors.Is(err, tt.class) {
			t.Errorf("%+v: %v", tt, err)
		}
		if _, err := b.Stat(t.Context(), key); tt.class == nil && err != nil {
			t.Errorf("%+v: %v", tt, err)
		}
		b.Close()
	}
}

// The server is killed while a file is read: the reader goes on when it is back, and never with another file.
func TestHTTPKilled(t *testing.T) {
	t.Parallel()
	n := StartNginx(t, t.TempDir())
	data := make([]byte, 20<<20)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(data)
	for _, replaced := range []bool{false, true} {
		key := n.put(t, data)
		b, err := httpfile.Open(httpfile.Config{URL: n.URL() + "/files/" + layout, Retry: config.Duration(time.Hour)})
		if err != nil {
			t.Fatal(err)
		}
		r, _, err := b.Open(t.Context(), key, 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		first := make([]byte, 1000)
		if _, err := io.ReadFull(r, first); err != nil {
			t.Fatal(err)
		}
		n.Kill()
		if replaced {
			if err := os.WriteFile(n.path(t, digest.FromBytes(data)), bytes.Repeat([]byte("x"), len(data)), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		n.Restart()
		rest, err := io.ReadAll(r)
		got := slices.Concat(first, rest)
		if !bytes.HasPrefix(data, got) || !replaced && (err != nil || len(got) != len(data)) {
			t.Errorf("replaced %v: %d bytes, %v", replaced, len(got), err)
		}
		if replaced && (!errors.Is(err, io.ErrUnexpectedEOF) || !strings.Contains(err.Error(), "changed")) {
			t.Errorf("replaced: %d bytes, %v", len(got), err)
		}
		r.Close()
		b.Close()
	}
}

// A large file needs no more memory than a small one.
func TestHTTPLarge(t *testing.T) {
	n := StartNginx(t, t.TempDir())
	size := int64(200 << 20)
	if *full {
		size = 5 << 30
	}
	d := digest.FromString("large")
	if err := os.WriteFile(n.path(t, d), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(n.path(t, d), size); err != nil {
		t.Fatal(err)
	}
	key, err := fetcher.BlobKey(d)
	if err != nil {
		t.Fatal(err)
	}
	b := httpBackend(t, httpfile.Config{URL: n.URL() + "/files/" + layout})
	defer b.Close()
	inUse := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapInuse
	}
	idle, most := inUse(), uint64(0)
	r, info, err := b.Open(t.Context(), key, 0, -1)
	if err != nil || info.Size != size {
		t.Fatalf("%+v, %v", info, err)
	}
	defer r.Close()
	var got int64
	for {
		m, err := io.CopyN(io.Discard, r, size/10)
		got += m
		most = max(most, inUse())
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if got != size {
		t.Errorf("%d bytes of %d", got, size)
	}
	if most > idle+16<<20 {
		t.Errorf("the heap grew from %d to %d bytes", idle, most)
	}
	t.Logf("%d bytes, heap %d KiB idle, %d KiB at most", got, idle>>10, most>>10)
	http.DefaultClient.CloseIdleConnections()
}
