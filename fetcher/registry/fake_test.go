package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	digest "github.com/opencontainers/go-digest"
	"google.golang.org/grpc/test/bufconn"

	"github.com/capelin-io/capelin/internal/daemon/config"
)

// fake is a registry that keeps the specification, unless before says otherwise.
type fake struct {
	*httptest.Server
	t *testing.T

	mu     sync.Mutex
	blobs  map[string][]byte // by repository@digest
	tags   map[string][]byte // by repository:tag
	log    []*http.Request
	before func(http.ResponseWriter, *http.Request) (done bool)
}

func newFake(t *testing.T) *fake {
	f := unstarted(t)
	f.Server = httptest.NewServer(f)
	t.Cleanup(f.Close)
	return f
}

// bubbleFake is a fake in memory, for bubbles, and a backend that asks it. Its
// hosts must not be loaded again.
func bubbleFake(t *testing.T, cfg Config) (*fake, *Backend) {
	f := unstarted(t)
	l := bufconn.Listen(64 << 10)
	f.Server = &httptest.Server{Listener: l, Config: &http.Server{Handler: f}}
	f.Start()
	f.URL = "http://registry.test"
	t.Cleanup(f.Close)
	cfg.Host, cfg.PlainHTTP = f.host(), true
	b, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	for tr := range b.hosts.transports {
		tr.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) { return l.DialContext(ctx) }
	}
	t.Cleanup(func() { b.Close() })
	return f, b
}

func unstarted(t *testing.T) *fake {
	return &fake{t: t, blobs: map[string][]byte{}, tags: map[string][]byte{}}
}

func (f *fake) host() string {
	return strings.TrimPrefix(strings.TrimPrefix(f.URL, "https://"), "http://")
}

// put returns the key of a blob.
func (f *fake) put(repo string, data []byte) string {
	key := repo + "@" + digest.FromBytes(data).String()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.blobs[key] = data
	return key
}

// requests returns how many requests there were whose method and path begin so.
func (f *fake) requests(prefix string) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range f.log {
		if strings.HasPrefix(r.Method+" "+r.URL.Path, prefix) {
			n++
		}
	}
	return n
}

func (f *fake) last() *http.Request {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.log[len(f.log)-1]
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	f.log = append(f.log, r)
	before := f.before
	f.mu.Unlock()
	if before != nil && before(w, r) {
		return
	}
	if r.URL.Path == "/v2/" {
		w.WriteHeader(http.StatusOK)
		return
	}
	repo, name, ok := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v2/"), "/blobs/")
	if ok {
		f.mu.Lock()
		data, ok := f.blobs[repo+"@"+name]
		f.mu.Unlock()
		if !ok {
			refuse(w, http.StatusNotFound, "BLOB_UNKNOWN", "no such blob")
			return
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
		return
	}
	repo, name, _ = strings.Cut(strings.TrimPrefix(r.URL.Path, "/v2/"), "/manifests/")
	f.mu.Lock()
	data, ok := f.tags[repo+":"+name]
	f.mu.Unlock()
	if !ok {
		refuse(w, http.StatusNotFound, "MANIFEST_UNKNOWN", "no such manifest")
		return
	}
	w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
	w.Header().Set("Docker-Content-Digest", digest.FromBytes(data).String())
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
}

func refuse(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	text, _ := json.Marshal(message)
	fmt.Fprintf(w, `{"errors":[{"code":%q,"message":%s}]}`, code, text)
}

// backend opens the registry at a host, with pauses that a test can wait for. What
// takes the time of Config.Retry is tested in bubbles.
func backend(t *testing.T, cfg Config) *Backend {
	t.Helper()
	if cfg.Retry == 0 {
		cfg.Retry = config.Duration(time.Hour)
	}
	b, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	b.reloadPause = 0
	b.backoff = time.Millisecond
	t.Cleanup(func() { b.Close() })
	return b
}

func (f *fake) backend() *Backend {
	f.t.Helper()
	return backend(f.t, Config{Host: f.host(), PlainHTTP: true})
}

// hostsDir makes a directory with a hosts.toml for one host.
func hostsDir(t *testing.T, host, content string) string {
	t.Helper()
	root := t.TempDir()
	dir := filepath.Join(root, strings.Replace(host, ":", "_", 1)+strings.Repeat("_", strings.Count(host, ":")))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "hosts.toml"), content)
	return root
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}
