package storages

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/fetcher/fetchertest"
	"github.com/capelin-io/capelin/fetcher/gcs"
)

// gcsLarge is more than one chunk.
const gcsLarge = 8<<20 + 17

var gcsBuckets atomic.Int64

// config returns that of a new bucket: a list has all that the server keeps in one to look through.
func (g *FakeGCS) config(t *testing.T, endpoint string) gcs.Config {
	t.Helper()
	name := fmt.Sprintf("capelin-%d", gcsBuckets.Add(1))
	g.Bucket(t, name)
	return gcs.Config{Bucket: name, Prefix: "some/where/", Endpoint: endpoint}
}

func openGCS(t *testing.T, cfg gcs.Config) fetcher.Backend {
	t.Helper()
	b, err := gcs.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestGCS(t *testing.T) {
	t.Parallel()
	g := StartFakeGCS(t, t.TempDir())
	fetchertest.Run(t, func(t *testing.T) fetcher.Backend { return openGCS(t, g.config(t, g.URL())) }, fetchertest.Options{
		Large: gcsLarge,
		Again: func(t *testing.T, b fetcher.Backend) fetcher.Backend {
			bucket, prefix, _ := strings.Cut(strings.TrimPrefix(b.Name(), "gcs:"), "/")
			return openGCS(t, gcs.Config{Bucket: bucket, Prefix: prefix + "/", Endpoint: g.URL()})
		},
	})
}

// TestGCSFaults has objects of one chunk: with several the server does not do what Google's does (see FakeGCS), which
// fetcher/gcs's own tests ask.
func TestGCSFaults(t *testing.T) {
	t.Parallel()
	g := StartFakeGCS(t, t.TempDir())
	fetchertest.RunFaults(t, func(t *testing.T) (fetcher.Backend, *fetchertest.Proxy) {
		p := fetchertest.NewProxy(t, g.URL())
		return openGCS(t, g.config(t, p.URL(g.URL()))), p
	}, fetchertest.FaultOptions{WritesAgain: true})
}

// TestGCSCrash: the server is killed when it has a part of an object.
func TestGCSCrash(t *testing.T) {
	t.Parallel()
	g := StartFakeGCS(t, t.TempDir())
	b := openGCS(t, g.config(t, g.URL()))
	defer b.Close()
	old := strings.Repeat("old", 1000)
	if _, err := b.Write(t.Context(), "there", -1, strings.NewReader(old)); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"there", "new"} {
		killed := false
		crash := readerFunc(func([]byte) (int, error) { // the first chunk was sent when more than it is asked for
			g.Kill()
			g.Restart()
			killed = true
			return 0, io.EOF
		})
		_, err := b.Write(t.Context(), key, -1, io.MultiReader(bytes.NewReader(make([]byte, gcsLarge)), crash))
		if !killed || !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), key) {
			t.Errorf("%s: %v", key, err)
		}
	}
	if got := readAll(t, b, "there"); string(got) != old {
		t.Errorf("there are %d bytes", len(got))
	}
	if _, err := b.Stat(t.Context(), "new"); !errdefs.IsNotFound(err) {
		t.Errorf("what was never written whole: %v", err)
	}
	if _, err := b.Write(t.Context(), "new", -1, strings.NewReader(old)); err != nil {
		t.Error(err)
	}
}

func TestGCSThereAndBack(t *testing.T) {
	t.Parallel()
	g := StartFakeGCS(t, t.TempDir())
	b := openGCS(t, g.config(t, g.URL()))
	defer b.Close()
	thereAndBack(t, b, func() {
		g.Kill()
		g.Restart()
	})
}

func readAll(t *testing.T, b fetcher.Backend, key string) []byte {
	t.Helper()
	r, _, err := b.Open(t.Context(), key, 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	got, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// TestGCSLarge is not of 5 GB: the server holds all of an object in memory, and reads it anew for each chunk.
func TestGCSLarge(t *testing.T) {
	const size = 200 << 20
	g := StartFakeGCS(t, t.TempDir())
	b := openGCS(t, g.config(t, g.URL()))
	defer b.Close()
	content := func() io.Reader { return io.LimitReader(rand.NewChaCha8([32]byte{}), size) }
	if info, err := b.Write(t.Context(), "large", size, content()); err != nil || info.Size != size {
		t.Fatalf("%+v, %v", info, err)
	}
	r, _, err := b.Open(t.Context(), "large", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	got, want := sha256.New(), sha256.New()
	if _, err := io.Copy(got, r); err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(want, content())
	if string(got.Sum(nil)) != string(want.Sum(nil)) {
		t.Error("other bytes came back")
	}
}
