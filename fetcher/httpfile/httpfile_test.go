package httpfile

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/fetcher/fetchertest"
	"github.com/capelin-io/capelin/internal/daemon/config"
	"github.com/capelin-io/capelin/internal/httpclient/memnet"
)

// site is a web server with files below /blobs, unless before says otherwise.
type site struct {
	*httptest.Server

	mu     sync.Mutex
	files  map[string][]byte // by path
	log    []*http.Request
	before func(http.ResponseWriter, *http.Request) (done bool)
}

func newSite(t *testing.T, before func(http.ResponseWriter, *http.Request) bool) *site {
	s := &site{files: map[string][]byte{}, before: before}
	s.Server = httptest.NewUnstartedServer(s)
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.Start()
	t.Cleanup(s.Close)
	return s
}

func (s *site) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.log = append(s.log, r.Clone(context.Background()))
	before := s.before
	data, ok := s.files[r.URL.Path]
	s.mu.Unlock()
	if before != nil && before(w, r) {
		return
	}
	if !ok {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("ETag", `"`+digest.FromBytes(data).Encoded()[:8]+`"`)
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
}

// put returns the key of a file.
func (s *site) put(data []byte) string {
	d := digest.FromBytes(data)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.files["/blobs/sha256/"+d.Encoded()[:2]+"/"+d.Encoded()+"/data"] = data
	key, _ := fetcher.BlobKey(d)
	return key
}

func (s *site) url() string { return s.URL + "/blobs/{alg}/{hex2}/{hex}/data" }

func (s *site) requests() []*http.Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.log)
}

func backend(t *testing.T, cfg Config) *Backend {
	t.Helper()
	if cfg.Retry == 0 {
		cfg.Retry = config.Duration(time.Hour) // what takes time is tested in bubbles
	}
	b, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	b.backoff = time.Millisecond
	t.Cleanup(func() { b.Close() })
	return b
}

func read(t *testing.T, b *Backend, key string, off, n int64) ([]byte, error) {
	t.Helper()
	r, _, err := b.Open(t.Context(), key, off, n)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(b)
	return b
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

var missing, _ = fetcher.BlobKey(digest.FromString("missing"))

// cutter breaks the connection after some bytes.
type cutter struct {
	http.ResponseWriter
	left int
}

func (c *cutter) Write(p []byte) (int, error) {
	if len(p) > c.left {
		_, _ = c.ResponseWriter.Write(p[:c.left])
		panic(http.ErrAbortHandler)
	}
	c.left -= len(p)
	return c.ResponseWriter.Write(p)
}

// Servers answer ranges in many ways, and some answer none.
func TestConformance(t *testing.T) {
	for name, before := range map[string]func(*site) func(http.ResponseWriter, *http.Request) bool{
		"as specified": nil,
		"ignores ranges": func(*site) func(http.ResponseWriter, *http.Request) bool {
			return func(_ http.ResponseWriter, r *http.Request) bool { r.Header.Del("Range"); return false }
		},
		"ignores conditions": func(*site) func(http.ResponseWriter, *http.Request) bool {
			return func(_ http.ResponseWriter, r *http.Request) bool { r.Header.Del("If-Range"); return false }
		},
		"refuses ranges": func(*site) func(http.ResponseWriter, *http.Request) bool {
			return func(w http.ResponseWriter, r *http.Request) bool {
				if r.Header.Get("Range") != "" {
					w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
				}
				return r.Header.Get("Range") != ""
			}
		},
		"allows no HEAD": func(*site) func(http.ResponseWriter, *http.Request) bool {
			return func(w http.ResponseWriter, r *http.Request) bool {
				if r.Method == http.MethodHead {
					w.WriteHeader(http.StatusForbidden)
				}
				return r.Method == http.MethodHead
			}
		},
		"sends at most 100,000 bytes of a range": func(*site) func(http.ResponseWriter, *http.Request) bool {
			return func(_ http.ResponseWriter, r *http.Request) bool {
				var first, last int
				if n, _ := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &first, &last); n == 2 && last-first > 100_000 {
					r.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", first, first+99_999))
				}
				return false
			}
		},
		"breaks off again and again": func(s *site) func(http.ResponseWriter, *http.Request) bool {
			return func(w http.ResponseWriter, r *http.Request) bool {
				if _, ok := w.(*cutter); ok {
					return false
				}
				s.ServeHTTP(&cutter{w, 700_000}, r)
				return true
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			var s *site
			fetchertest.Run(t, func(t *testing.T) fetcher.Backend {
				s = newSite(t, nil)
				if before != nil {
					s.before = before(s)
				}
				return backend(t, Config{URL: s.url()})
			}, fetchertest.Options{Missing: missing, Put: func(_ *testing.T, _ fetcher.Backend, data []byte) string { return s.put(data) }})
		})
	}
}

func TestTemplates(t *testing.T) {
	d := digest.FromString("x")
	hex := d.Encoded()
	for template, want := range map[string]string{
		"https://x/{hex}":                       "https://x/" + hex,
		"http://x:81/a/{alg}/{hex2}/{hex}/data": "http://x:81/a/sha256/" + hex[:2] + "/" + hex + "/data",
		"https://x/get?d={alg}:{hex}":           "https://x/get?d=sha256:" + hex,
		"":                                      "",
		"https://x/":                            "",
		"https://x/{hex2}":                      "",
		"https://x/{hex}/{name}":                "",
		"https://x/{hex}/{}":                    "",
		"https://{hex}/":                        "",
		"https://{hex}":                         "",
		"ftp://x/{hex}":                         "",
		"file:///x/{hex}":                       "",
		"/x/{hex}":                              "",
		"x/{hex}":                               "",
		"https://me:secret@x/{hex}":             "",
		"https://x/{hex}#secret":                "",
		"https://x/{hex}#":                      "",
		"https://x:secret/{hex}":                "",
		"https://x/\x7f{hex}secret":             "",
	} {
		errs := Config{URL: template}.Check("p.")
		if (errs == nil) != (want != "") {
			t.Errorf("%q: %v", template, errs)
		}
		if errs != nil && (!strings.HasPrefix(errs[0].Error(), "p.url") || strings.Contains(errs[0].Error(), "secret")) {
			t.Errorf("%q: %v", template, errs)
		}
		if got := expand(template, d); want != "" && got != want {
			t.Errorf("%q: %q", template, got)
		}
	}
	var keys []string
	for _, err := range (Config{URL: "https://x/{hex}", HeaderFile: "x", CA: "y", Timeout: -1, Stall: -1, Retry: -1}).Check("") {
		key, _, _ := strings.Cut(err.Error(), ":")
		keys = append(keys, key)
	}
	if got := strings.Join(keys, " "); got != "header_file ca timeout stall retry" {
		t.Error(got)
	}
}

func TestKeys(t *testing.T) {
	hex := digest.FromString("x").Encoded()
	for key, ok := range map[string]bool{
		"blobs/sha256/" + hex[:2] + "/" + hex: true,
		"blobs/sha256/00/" + hex:              false,
		"blobs/md5/" + hex[:2] + "/" + hex:    false,
		"blobs/sha256/" + hex:                 false,
		"x/sha256/" + hex[:2] + "/" + hex:     false,
		"index/tags":                          false,
	} {
		if _, err := blobOf(key); (err == nil) != ok || err != nil && !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", key, err)
		}
	}
}

// What a status means, and how often it is asked for.
func TestClasses(t *testing.T) {
	for status, want := range map[int]struct {
		class error
		once  bool
	}{
		400: {errdefs.ErrUnavailable, true}, 401: {errdefs.ErrUnauthenticated, true}, 403: {errdefs.ErrPermissionDenied, true},
		404: {errdefs.ErrNotFound, true}, 410: {errdefs.ErrUnavailable, true}, 418: {errdefs.ErrUnavailable, true},
		204: {errdefs.ErrUnavailable, true}, 206: {errdefs.ErrUnavailable, true}, 304: {errdefs.ErrUnavailable, true},
		408: {errdefs.ErrUnavailable, false}, 429: {errdefs.ErrUnavailable, false}, 500: {errdefs.ErrUnavailable, false},
		502: {errdefs.ErrUnavailable, false}, 503: {errdefs.ErrUnavailable, false}, 504: {errdefs.ErrUnavailable, false},
	} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := 0
				b := bubble(t, func(w http.ResponseWriter, r *http.Request) {
					if r.Method == http.MethodGet {
						n++
					}
					w.Header().Set("Content-Type", "text/plain")
					w.WriteHeader(status)
					if status != 204 && status != 304 {
						fmt.Fprint(w, "some reason\n")
					}
				})
				start := time.Now()
				_, _, err := b.Open(t.Context(), missing, 0, -1)
				if !errors.Is(err, want.class) || !strings.Contains(err.Error(), missing) ||
					want.class != errdefs.ErrNotFound && errdefs.IsNotFound(err) {
					t.Errorf("open: %v", err)
				}
				// It ends when the next pause, 5 s and at most a half more, would be too long.
				took := time.Since(start)
				if (n == 1) != want.once || !want.once && (took < 7500*time.Millisecond || took > 15*time.Second) {
					t.Errorf("%d requests in %v", n, took)
				}
				if _, err := b.Stat(t.Context(), missing); !errors.Is(err, want.class) {
					t.Errorf("stat: %v", err)
				}
			})
		})
	}
	b := backend(t, Config{URL: "http://127.0.0.1:1/{hex}", Retry: 1})
	if _, err := b.Stat(t.Context(), missing); !errdefs.IsUnavailable(err) || errdefs.IsNotFound(err) {
		t.Error(err)
	}
}

// bubble is a backend of a server in memory.
func bubble(t *testing.T, h http.HandlerFunc) *Backend {
	network := memnet.New()
	t.Cleanup(network.Serve("files.test:80", h))
	b, err := Open(Config{URL: "http://files.test/{hex}?token=secret"})
	if err != nil {
		t.Fatal(err)
	}
	b.client.Transport.(*http.Transport).DialContext = network.Dial
	t.Cleanup(func() { b.Close() })
	return b
}

// A server that says nothing, or stops in the middle.
func TestTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		silent := true
		data := random(2000)
		b := bubble(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("ETag", `"a"`)
			if silent {
				<-r.Context().Done()
			}
			if r.Header.Get("Range") == "" {
				w.Header().Set("Content-Length", "2000")
				_, _ = w.Write(data[:1000])
				w.(http.Flusher).Flush()
				<-r.Context().Done()
			}
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
		})
		start := time.Now()
		if _, err := b.Stat(t.Context(), missing); !errdefs.IsUnavailable(err) || errors.Is(err, context.DeadlineExceeded) ||
			strings.Contains(err.Error(), "secret") {
			t.Error(err)
		}
		if took := time.Since(start); took != 30*time.Second {
			t.Errorf("no answer took %v", took)
		}
		silent = false
		start = time.Now()
		if got, err := read(t, b, missing, 0, -1); err != nil || !bytes.Equal(got, data) || time.Since(start) != 30*time.Second {
			t.Errorf("%d bytes, %v, after %v", len(got), err, time.Since(start))
		}
	})
}

// Secrets go to the host that they are for, and changes count at once.
func TestHeaders(t *testing.T) {
	other := newSite(t, nil)
	var want string
	s := newSite(t, func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Authorization") != want || r.Header.Get("X-Key") != "k" {
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}
		if rest, ok := strings.CutPrefix(r.URL.Path, "/away"); ok {
			http.Redirect(w, r, other.URL+rest+"?signature=secret-2", http.StatusFound)
		} else if rest, ok := strings.CutPrefix(r.URL.Path, "/here"); ok {
			http.Redirect(w, r, rest, http.StatusFound)
		} else {
			return false
		}
		return true
	})
	path := filepath.Join(t.TempDir(), "headers")
	write(t, path, "# a comment\n\nAuthorization: Bearer secret-1 \r\nX-Key: k")
	want = "Bearer secret-1"
	key := s.put([]byte("hello"))
	other.put([]byte("hello"))
	at := func(prefix string) *Backend {
		return backend(t, Config{URL: s.URL + prefix + "/blobs/{alg}/{hex2}/{hex}/data", HeaderFile: path})
	}
	for _, prefix := range []string{"", "/here", "/away"} {
		if got, err := read(t, at(prefix), key, 0, -1); err != nil || string(got) != "hello" {
			t.Errorf("%q: %q, %v", prefix, got, err)
		}
	}
	for _, r := range other.requests() {
		for k, v := range r.Header {
			if s := fmt.Sprint(k, v); strings.Contains(s, "secret") || k == "X-Key" || k == "Referer" {
				t.Errorf("the other host was told %s", s)
			}
		}
	}
	b := at("")
	want = "Bearer secret-3"
	if _, err := read(t, b, key, 0, -1); !errdefs.IsUnauthorized(err) {
		t.Error(err)
	}
	write(t, path, "Authorization: Bearer secret-3\nX-Key: k\n")
	if _, err := read(t, b, key, 0, -1); err != nil {
		t.Error(err)
	}
	for _, bad := range []string{"secret", "secret: a\x01", "se cret: a", strings.Repeat("a: secret\n", 7000)} {
		write(t, path, "Authorization: x\n"+bad)
		if _, err := b.Stat(t.Context(), key); !errdefs.IsFailedPrecondition(err) || strings.Contains(err.Error(), "secret") ||
			!strings.Contains(err.Error(), path) {
			t.Errorf("%.20q: %v", bad, err)
		}
	}
	os.Remove(path)
	if _, err := b.Stat(t.Context(), key); !errdefs.IsFailedPrecondition(err) {
		t.Error(err)
	}
	// A failure at the other host has nothing of the URL that leads there.
	write(t, path, "Authorization: Bearer secret-3\nX-Key: k\n")
	for status, class := range map[int]error{403: errdefs.ErrPermissionDenied, 500: errdefs.ErrUnavailable, 404: errdefs.ErrNotFound} {
		other.before = func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(status); return true }
		b := backend(t, Config{URL: s.URL + "/away/{hex}", HeaderFile: path, Retry: 1})
		_, err := b.Stat(t.Context(), key)
		if !errors.Is(err, class) || strings.Contains(err.Error(), "secret") ||
			!strings.Contains(err.Error(), strings.TrimPrefix(other.URL, "http://")) {
			t.Errorf("%d: %v", status, err)
		}
	}
}

// From HTTPS no redirect leads to HTTP, and none leads for ever.
func TestRedirects(t *testing.T) {
	plain := newSite(t, nil)
	data := []byte("hello")
	key := plain.put(data)
	to, hops := "", 0
	secure := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case to == "loop":
			hops++
			http.Redirect(w, r, r.URL.Path, http.StatusFound)
		case to != "":
			http.Redirect(w, r, to+r.URL.Path, http.StatusTemporaryRedirect)
		default:
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
		}
	}))
	t.Cleanup(secure.Close)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	write(t, ca, certificate(secure))
	b := backend(t, Config{URL: secure.URL + "/blobs/{alg}/{hex2}/{hex}/data", CA: ca})
	if got, err := read(t, b, key, 1, 3); err != nil || string(got) != "ell" {
		t.Errorf("%q, %v", got, err)
	}
	to = plain.URL
	if got, err := read(t, b, key, 0, -1); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), plain.URL) {
		t.Errorf("%q, %v", got, err)
	}
	if n := len(plain.requests()); n != 0 {
		t.Errorf("%d requests over HTTP", n)
	}
	to = "loop"
	if _, err := b.Stat(t.Context(), key); !errdefs.IsFailedPrecondition(err) || hops != maxRedirects+1 {
		t.Errorf("%d requests, %v", hops, err)
	}
	// From HTTP to HTTPS.
	to = ""
	plain.before = func(w http.ResponseWriter, r *http.Request) bool {
		http.Redirect(w, r, secure.URL+r.URL.Path, http.StatusMovedPermanently)
		return true
	}
	b = backend(t, Config{URL: plain.url(), CA: ca})
	if got, err := read(t, b, key, 0, -1); err != nil || string(got) != "hello" {
		t.Errorf("%q, %v", got, err)
	}
	// An authority that is not known, or none at all.
	b = backend(t, Config{URL: secure.URL + "/{hex}", Retry: 1})
	if _, err := b.Stat(t.Context(), key); !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "certificate") {
		t.Error(err)
	}
	for _, content := range []string{"", "x"} {
		write(t, ca, content)
		if _, err := Open(Config{URL: secure.URL + "/{hex}", CA: ca}); !errdefs.IsFailedPrecondition(err) {
			t.Error(err)
		}
	}
}

func TestCheck(t *testing.T) {
	for status, want := range map[int]struct {
		class error
		text  string
	}{
		404: {nil, ""},
		200: {errdefs.ErrFailedPrecondition, "404"},
		401: {errdefs.ErrUnauthenticated, "header_file"},
		403: {errdefs.ErrPermissionDenied, "header_file"},
		500: {errdefs.ErrUnavailable, "500"},
	} {
		s := newSite(t, func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(status); return true })
		err := backend(t, Config{URL: s.url() + "?secret", Retry: 1}).Check(t.Context())
		if want.class == nil && err != nil || want.class != nil && (!errors.Is(err, want.class) || !strings.Contains(err.Error(), want.text)) {
			t.Errorf("%d: %v", status, err)
		}
		if err != nil && strings.Contains(err.Error(), "?secret") {
			t.Error(err)
		}
		if n := len(s.requests()); n > 2 {
			t.Errorf("%d: %d requests", status, n)
		}
	}
}

// A file that is replaced while it is read is never mixed with the one that was there.
func TestReplaced(t *testing.T) {
	one, two := bytes.Repeat([]byte("1"), 2_000_000), bytes.Repeat([]byte("2"), 2_000_000)
	s := newSite(t, nil)
	key := s.put(one)
	path := slices.Collect(maps.Keys(s.files))[0]
	s.before = func(w http.ResponseWriter, r *http.Request) bool {
		if _, ok := w.(*cutter); ok || r.Method == http.MethodHead {
			return false
		}
		defer func() {
			s.mu.Lock()
			s.files[path] = two
			s.mu.Unlock()
		}()
		s.ServeHTTP(&cutter{w, 1_000_000}, r)
		return true
	}
	got, err := read(t, backend(t, Config{URL: s.url()}), key, 0, -1)
	if !errors.Is(err, io.ErrUnexpectedEOF) || !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "changed") ||
		bytes.Contains(got, []byte("2")) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

func certificate(s *httptest.Server) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}))
}

func TestFaults(t *testing.T) {
	var s *site
	fetchertest.RunFaults(t, func(t *testing.T) (fetcher.Backend, *fetchertest.Proxy) {
		s = newSite(t, nil)
		p := fetchertest.NewProxy(t, s.URL)
		return backend(t, Config{URL: strings.Replace(s.url(), s.URL, p.URL(s.URL), 1), Retry: config.Duration(time.Second)}), p
	}, fetchertest.FaultOptions{
		Options: fetchertest.Options{Missing: missing, Put: func(_ *testing.T, _ fetcher.Backend, data []byte) string { return s.put(data) }},
		Once:    map[string]fetchertest.Fault{"502": {Status: 502}, "408": {Status: 408}},
	})
}
