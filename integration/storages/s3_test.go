package storages

import (
	"bytes"
	"crypto/sha256"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"

	"context"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/fetcher/fetchertest"
	"github.com/capelin-io/capelin/fetcher/s3"
)

// s3Large is more than one part.
const s3Large = 16<<20 + 17

// newPrefix returns a place in the bucket where nothing is yet.
func newPrefix() string { return fmt.Sprintf("p%d/", prefixes.Add(1)) }

var prefixes atomic.Int64

func openS3(t testing.TB, cfg s3.Config) *s3.Backend {
	t.Helper()
	b, err := s3.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

func TestS3(t *testing.T) {
	v := StartVersitygw(t, t.TempDir())
	v.Setenv(t)
	open := func(checksums string) func(t *testing.T) fetcher.Backend {
		return func(t *testing.T) fetcher.Backend {
			cfg := v.Config(v.URL(), newPrefix())
			cfg.Checksums = checksums
			return openS3(t, cfg)
		}
	}
	o := fetchertest.Options{Large: s3Large, Again: func(t *testing.T, b fetcher.Backend) fetcher.Backend {
		return openS3(t, v.Config(v.URL(), strings.TrimPrefix(b.Name(), "s3:"+strings.TrimPrefix(v.URL(), "http://")+"/"+v.Bucket+"/")+"/"))
	}}
	t.Run("auto", func(t *testing.T) { fetchertest.Run(t, open("auto"), o) })
	t.Run("when_supported", func(t *testing.T) { fetchertest.Run(t, open("when_supported"), o) })
	v.noUploads(t)
}

func TestS3Faults(t *testing.T) {
	v := StartVersitygw(t, t.TempDir())
	v.Setenv(t)
	fetchertest.RunFaults(t, func(t *testing.T) (fetcher.Backend, *fetchertest.Proxy) {
		p := fetchertest.NewProxy(t, v.URL())
		return openS3(t, v.Config(p.URL(v.URL()), newPrefix())), p
	}, fetchertest.FaultOptions{
		Options:     fetchertest.Options{Large: s3Large},
		WritesAgain: true,
		Once: map[string]fetchertest.Fault{
			"SlowDown": s3Fault(503, "SlowDown"), "InternalError": s3Fault(500, "InternalError"),
			"RequestTimeout": s3Fault(400, "RequestTimeout"), "conflict": s3Fault(409, "ConditionalRequestConflict"),
		},
		Denied: s3Fault(403, "AccessDenied"),
		Clean:  func(t *testing.T, _ fetcher.Backend) { v.noUploads(t) },
	})
}

// s3Fault is an answer with a code of S3's.
func s3Fault(status int, code string) fetchertest.Fault {
	return fetchertest.Fault{
		Status: status, Header: map[string][]string{"Content-Type": {"application/xml"}},
		Body: "<Error><Code>" + code + "</Code><Message>said the proxy</Message></Error>",
	}
}

// TestS3Proves: what is promised of compare-and-swap holds between two gateways of one directory, too.
func TestS3Proves(t *testing.T) {
	dir := t.TempDir()
	v, other := StartVersitygw(t, dir), StartVersitygw(t, dir)
	v.Setenv(t)
	prefix := newPrefix()
	a, b := openS3(t, v.Config(v.URL(), prefix)), openS3(t, v.Config(other.URL(), prefix))
	if err := fetcher.Prove(t.Context(), a, b); err != nil {
		t.Error(err)
	}
	if left, _, err := a.List(context.Background(), "", "", 0); err != nil || len(left) > 0 {
		t.Errorf("it left %v, %v", left, err)
	}
}

// noUploads fails if there are multipart uploads that were neither completed nor aborted.
func (v *Versitygw) noUploads(t *testing.T) {
	t.Helper()
	for _, name := range v.uploads(t) {
		t.Errorf("an upload was left behind: %s", name)
	}
}

// uploads returns the directories in which the server keeps unfinished uploads.
func (v *Versitygw) uploads(t *testing.T) (names []string) {
	t.Helper()
	err := filepath.WalkDir(filepath.Join(v.dir, "data", v.Bucket), func(path string, d fs.DirEntry, err error) error {
		if err == nil && strings.Contains(path, "/multipart/") && strings.Count(path[strings.Index(path, "/multipart/"):], "/") == 3 {
			names = append(names, path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// TestS3Requests: what an image of ten layers costs in requests, with its config and its manifest; each of 3 MiB but for one of two parts.
func TestS3Requests(t *testing.T) {
	v := StartVersitygw(t, t.TempDir())
	v.Setenv(t)
	p := fetchertest.NewProxy(t, v.URL())
	cfg := v.Config(p.URL(v.URL()), newPrefix())
	var blobs [][]byte
	for i := range 12 {
		size := 3 << 20
		if i == 0 {
			size = s3Large
		}
		blob := make([]byte, size)
		_, _ = rand.NewChaCha8([32]byte{byte(i)}).Read(blob)
		blobs = append(blobs, blob)
	}
	cost := func(what string, want map[string]int, do func(ctx context.Context, o *Origin)) {
		t.Helper()
		p.Requests()
		o := StartOrigin(t, t.TempDir(), unchecked{openS3(t, cfg)})
		do(t.Context(), o)
		o.Stop()
		got := map[string]int{}
		for _, r := range p.Requests() {
			got[kindOf(r)]++
		}
		delete(got, "GET uploads") // in the background, once a day
		if !maps.Equal(got, want) {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	cost("a push", map[string]int{
		"GET byte": 12, // is it there?
		"PUT blob": 11, "POST uploads": 1, "PUT part": 2, "POST complete": 1, "PUT record": 12,
	}, func(ctx context.Context, o *Origin) {
		for _, blob := range blobs {
			if err := o.Push(ctx, blob); err != nil {
				t.Error(err)
			}
		}
	})
	cost("a pull of what nobody has", map[string]int{"GET byte": 12, "GET blob": 12}, func(ctx context.Context, o *Origin) {
		for _, blob := range blobs {
			if got, err := o.Pull(ctx, digest.FromBytes(blob)); err != nil || !bytes.Equal(got, blob) {
				t.Errorf("%d bytes, %v, want %d", len(got), err, len(blob))
			}
		}
	})
}

// unchecked does not ask whether it can be used, which an origin wants to know each minute.
type unchecked struct{ fetcher.Backend }

func (unchecked) Check(context.Context) error { return nil }

// kindOf says what a request is for.
func kindOf(r fetchertest.Request) string {
	kind := r.Method + " blob"
	switch {
	case strings.Contains(r.Query, "partNumber="):
		kind = "PUT part"
	case strings.Contains(r.Query, "uploads"):
		kind = r.Method + " uploads"
	case r.Method == http.MethodPost:
		kind = "POST complete"
	case strings.Contains(r.Query, "list-type"):
		kind = "LIST"
	case !strings.Contains(r.Path, "/blobs/"):
		kind = r.Method + " record"
	case r.Header.Get("Range") == "bytes=0-0":
		kind = "GET byte"
	}
	return kind
}

// TestS3Crash: the server is killed when it has some parts of an object, and started again.
func TestS3Crash(t *testing.T) {
	v := StartVersitygw(t, t.TempDir())
	v.Setenv(t)
	b := openS3(t, v.Config(v.URL(), newPrefix()))
	old := strings.Repeat("old", 1000)
	if _, err := b.Write(t.Context(), "there", -1, strings.NewReader(old)); err != nil {
		t.Fatal(err)
	}
	const size = 3*16<<20 + 17
	for _, again := range []bool{false, true} { // is it back for the next request?
		for _, key := range []string{"there", fmt.Sprint("new-", again)} {
			crash := readerFunc(func([]byte) (int, error) {
				v.Kill()
				if again {
					v.Restart()
				}
				return 0, io.EOF
			})
			_, err := b.Write(t.Context(), key, size, io.MultiReader(bytes.NewReader(make([]byte, size)), crash))
			if !again {
				v.Restart()
				if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), key) {
					t.Errorf("%s: %v", key, err)
				}
			}
			switch got, serr := b.Stat(t.Context(), key); {
			case err == nil && (serr != nil || got.Size != size):
				t.Errorf("%s was written: %+v, %v", key, got, serr)
			case err != nil && key == "there" && (serr != nil || got.Size != int64(len(old))):
				t.Errorf("%s was not written: %+v, %v", key, got, serr)
			case err != nil && key != "there" && !errdefs.IsNotFound(serr):
				t.Errorf("%s was not written: %+v, %v", key, got, serr)
			}
			if _, err := b.Write(t.Context(), "there", -1, strings.NewReader(old)); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestS3ThereAndBack(t *testing.T) {
	v := StartVersitygw(t, t.TempDir())
	v.Setenv(t)
	thereAndBack(t, openS3(t, v.Config(v.URL(), newPrefix())), func() {
		v.Kill()
		v.Restart()
	})
	v.noUploads(t)
}

// TestS3Large: there and back, with the memory of two parts and what little else is needed.
func TestS3Large(t *testing.T) {
	size := int64(200e6)
	if *full {
		size = 5e9
	}
	v := StartVersitygw(t, t.TempDir())
	v.Setenv(t)
	b := openS3(t, v.Config(v.URL(), newPrefix()))
	content := func() io.Reader { return io.LimitReader(rand.NewChaCha8([32]byte{}), size) }
	sum := func(r io.Reader) string {
		h := sha256.New()
		if _, err := io.Copy(h, r); err != nil {
			t.Fatal(err)
		}
		return string(h.Sum(nil))
	}
	m := startMemory(t)
	if info, err := b.Write(t.Context(), "large", size, content()); err != nil || info.Size != size {
		t.Fatalf("%+v, %v", info, err)
	}
	written := m.above()
	r, _, err := b.Open(t.Context(), "large", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	got := sum(r)
	read := m.above()
	if got != sum(content()) {
		t.Error("other bytes came back")
	}
	t.Logf("%d bytes; at most %d MiB above idle when writing, %d MiB also reading", size, written>>20, read>>20)
	if *full && read > 64<<20 {
		t.Errorf("it took %d MiB more than idle", read>>20)
	}
}
