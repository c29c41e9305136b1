package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	ggcr "github.com/google/go-containerregistry/pkg/registry"
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/fetcher/fetchertest"
	"github.com/capelin-io/capelin/internal/daemon/config"
)

var missing = "team/app@" + digest.FromString("missing").String()

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(b)
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

// go-containerregistry's registry takes no range without an end.
func TestConformanceGoContainerregistry(t *testing.T) {
	var srv *httptest.Server
	fetchertest.Run(t, func(t *testing.T) fetcher.Backend {
		srv = httptest.NewServer(ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0))))
		t.Cleanup(srv.Close)
		return backend(t, Config{Host: strings.TrimPrefix(srv.URL, "http://")})
	}, fetchertest.Options{
		Missing: missing,
		Put: func(t *testing.T, b fetcher.Backend, data []byte) string {
			t.Helper()
			d := digest.FromBytes(data)
			resp, err := http.Post(srv.URL+"/v2/team/app/blobs/uploads/?digest="+d.String(), "application/octet-stream", bytes.NewReader(data))
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			http.DefaultClient.CloseIdleConnections()
			if resp.StatusCode != http.StatusCreated {
				t.Fatal(resp.Status)
			}
			key, err := fetcher.Locate(b, "team/app", d)
			if err != nil {
				t.Fatal(err)
			}
			return key
		},
	})
}

// Registries answer ranges in many ways.
func TestConformance(t *testing.T) {
	for name, before := range map[string]func(http.ResponseWriter, *http.Request) bool{
		"as specified": nil,
		"ignores ranges": func(_ http.ResponseWriter, r *http.Request) bool {
			r.Header.Del("Range")
			return false
		},
		"refuses ranges": func(w http.ResponseWriter, r *http.Request) bool {
			if r.Header.Get("Range") != "" {
				w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
				return true
			}
			return false
		},
		"knows no HEAD": func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method == http.MethodHead {
				w.WriteHeader(http.StatusMethodNotAllowed)
				return true
			}
			return false
		},
		"sends at most 100,000 bytes of a range": func(w http.ResponseWriter, r *http.Request) bool {
			var first, last int
			if n, _ := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &first, &last); n == 2 && last-first > 100_000 {
				r.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", first, first+99_999))
			}
			return false
		},
		"breaks off again and again": func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != http.MethodGet {
				return false
			}
			w.Header().Set("X-Cut", "1")
			return false
		},
	} {
		t.Run(name, func(t *testing.T) {
			var f *fake
			fetchertest.Run(t, func(t *testing.T) fetcher.Backend {
				f = unstarted(t)
				f.before = before
				h := http.Handler(f)
				if strings.HasPrefix(name, "breaks") {
					h = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						f.ServeHTTP(&cutter{ResponseWriter: w, left: 700_000}, r)
					})
				}
				f.Server = httptest.NewServer(h)
				f.Config.ErrorLog = log.New(io.Discard, "", 0)
				t.Cleanup(f.Close)
				return f.backend()
			}, fetchertest.Options{
				Missing: missing,
				Put: func(t *testing.T, b fetcher.Backend, data []byte) string {
					return f.put("team/app", data)
				},
			})
		})
	}
}

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

func TestClasses(t *testing.T) {
	for _, tt := range []struct {
		status int
		is     func(error) bool
		tries  int
	}{
		{400, errdefs.IsUnavailable, 1},
		{401, errdefs.IsUnauthorized, 2}, // once more with fresh secrets
		{403, errdefs.IsPermissionDenied, 2},
		{404, errdefs.IsNotFound, 1},
		{410, errdefs.IsUnavailable, 1},
		{416, errdefs.IsUnavailable, 1},
	} {
		t.Run(fmt.Sprint(tt.status), func(t *testing.T) {
			f := newFake(t)
			b := f.backend()
			classified(t, f, b, tt.status, tt.is)
			if n := f.requests("HEAD"); n != tt.tries {
				t.Errorf("%d requests, want %d", n, tt.tries)
			}
		})
	}
	for _, status := range []int{408, 429, 500, 503, 504} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f, b := bubbleFake(t, Config{})
				start := time.Now()
				classified(t, f, b, status, errdefs.IsUnavailable)
				if n, took := f.requests("HEAD"), time.Since(start); n < 3 || took < 15*time.Second || took > 30*time.Second {
					t.Errorf("%d requests, and %v for two of them with all attempts, want several, and up to 15 s each", n, took)
				}
			})
		})
	}
	t.Run("no answer", func(t *testing.T) {
		f := newFake(t)
		b := backend(t, Config{Host: f.host(), PlainHTTP: true, Retry: config.Duration(1)})
		f.Close()
		if _, err := b.Stat(t.Context(), missing); !errdefs.IsUnavailable(err) || errdefs.IsNotFound(err) {
			t.Error(err)
		}
	})
	t.Run("slow answer", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f, b := bubbleFake(t, Config{})
			f.before = func(_ http.ResponseWriter, r *http.Request) bool { <-r.Context().Done(); return true }
			if _, err := b.Stat(t.Context(), missing); !errdefs.IsUnavailable(err) || errors.Is(err, context.DeadlineExceeded) {
				t.Error(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			if _, err := b.Stat(ctx, missing); !errors.Is(err, context.DeadlineExceeded) {
				t.Error(err)
			}
		})
	})
}

// classified checks what becomes of a status: the class of the error, and what it says.
func classified(t *testing.T, f *fake, b *Backend, status int, is func(error) bool) {
	t.Helper()
	f.before = func(w http.ResponseWriter, r *http.Request) bool {
		refuse(w, status, "SOME_CODE", "some reason\n\x00")
		return true
	}
	key := f.put("team/app", []byte("x"))
	if _, err := b.Stat(t.Context(), key); !is(err) || !strings.Contains(err.Error(), key) || !strings.Contains(err.Error(), f.host()) {
		t.Errorf("stat: %v", err)
	}
	if _, _, err := b.Open(t.Context(), key, 0, -1); !is(err) || !strings.Contains(err.Error(), "some reason") ||
		strings.ContainsAny(err.Error(), "\n\x00") {
		t.Errorf("open: %v", err)
	}
}

func TestRetryAfter(t *testing.T) { synctest.Test(t, testRetryAfter) }

func testRetryAfter(t *testing.T) {
	f, b := bubbleFake(t, Config{})
	key := f.put("team/app", []byte("hello"))
	var after atomic.Value
	var left atomic.Int32
	f.before = func(w http.ResponseWriter, r *http.Request) bool {
		if left.Add(-1) < 0 {
			return false
		}
		w.Header().Set("Retry-After", after.Load().(string))
		refuse(w, http.StatusTooManyRequests, "TOOMANYREQUESTS", "slow down")
		return true
	}
	// Twice put off, by as long as it says.
	for v, want := range map[string]time.Duration{"0": 0, "3": 6 * time.Second} {
		after.Store(v)
		left.Store(2)
		start := time.Now()
		if got, err := read(t, b, key, 0, -1); err != nil || string(got) != "hello" || time.Since(start) != want {
			t.Errorf("put off twice by %s s: %q, %v, after %v", v, got, err, time.Since(start))
		}
	}
	// An hour is too long, and there is no use in asking before.
	after.Store("3600")
	left.Store(2)
	before := f.requests("")
	if _, err := b.Stat(t.Context(), key); !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "1h0m0s") {
		t.Error(err)
	}
	if n := f.requests("") - before; n != 1 {
		t.Errorf("%d requests", n)
	}
	// While it waits it can be cancelled.
	b.cfg.Retry = config.Duration(2 * time.Hour)
	left.Store(1)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	start := time.Now()
	if _, err := b.Stat(ctx, key); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != time.Minute {
		t.Errorf("cancelled after a minute: %v, after %v", err, time.Since(start))
	}
}

func TestResume(t *testing.T) { synctest.Test(t, testResume) }

func testResume(t *testing.T) {
	data := random(1 << 20)
	f, b := bubbleFake(t, Config{})
	key := f.put("team/app", data)
	var mode atomic.Value
	f.before = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet {
			return false
		}
		switch mode.Load().(string) {
		case "stalls":
			var first, last int
			_, _ = fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &first, &last)
			if first > 0 {
				return false
			}
			w.Header().Set("Content-Length", fmt.Sprint(len(data)))
			_, _ = w.Write(data[:1000])
			w.(http.Flusher).Flush()
			<-r.Context().Done()
			return true
		case "empty":
			w.Header().Set("Content-Length", fmt.Sprint(len(data)))
			w.WriteHeader(http.StatusOK)
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		case "gone":
			if r.Header.Get("Range") != "" {
				refuse(w, http.StatusNotFound, "BLOB_UNKNOWN", "deleted")
				return true
			}
			w.Header().Set("Content-Length", fmt.Sprint(len(data)))
			_, _ = w.Write(data[:1000])
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}
		return false
	}
	mode.Store("stalls")
	start := time.Now()
	if got, err := read(t, b, key, 0, -1); err != nil || !bytes.Equal(got, data) || time.Since(start) != 30*time.Second {
		t.Errorf("%d bytes, %v, after %v", len(got), err, time.Since(start))
	}
	mode.Store("empty")
	got, err := read(t, b, key, 0, -1)
	if len(got) > 0 || !errdefs.IsUnavailable(err) || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	mode.Store("gone")
	if got, err = read(t, b, key, 0, -1); len(got) != 1000 || !errdefs.IsNotFound(err) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

// Answers that make no sense are no reason for wrong bytes.
func TestBrokenRanges(t *testing.T) {
	f := newFake(t)
	key := f.put("team/app", []byte("0123456789"))
	for _, tt := range []struct {
		status        int
		contentRange  string
		want          string
		unavailable   bool
		wantFromStart bool
	}{
		{206, "bytes 3-9/10", "", true, false},
		{206, "bytes 2-9/1", "", true, false},
		{206, "bytes 2-1/10", "", true, false},
		{206, "bytes -2-9/10", "", true, false},
		{206, "bytes 2-99999999999999999999/10", "", true, false},
		{206, "bytes=2-9/10", "", true, false},
		{206, "bytes */10", "", true, false},
		{206, "", "", true, false},
		{206, "bytes 2-9/*", "23456789", false, false},
		{206, "bytes 2-9/10", "23456789", false, false},
		{416, "bytes */10", "", true, false}, // always, even without a range
	} {
		f.before = func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method == http.MethodHead {
				return false
			}
			if tt.contentRange != "" {
				w.Header().Set("Content-Range", tt.contentRange)
			}
			w.WriteHeader(tt.status)
			if tt.status == 206 {
				fmt.Fprint(w, "23456789")
			}
			return true
		}
		b := f.backend()
		got, err := read(t, b, key, 2, -1)
		if string(got) != tt.want || errdefs.IsUnavailable(err) != tt.unavailable || !tt.unavailable && err != nil {
			t.Errorf("%d, %q: %q, %v", tt.status, tt.contentRange, got, err)
		}
	}

	// A length that is not told, and a blob that is longer or shorter than before.
	f.before = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodHead {
			return true
		}
		w.WriteHeader(http.StatusOK)
		w.(http.Flusher).Flush()
		fmt.Fprint(w, "0123456789")
		return true
	}
	b := f.backend()
	for _, tt := range []struct {
		off, n int64
		want   string
	}{{0, -1, "0123456789"}, {3, -1, "3456789"}, {3, 4, "3456"}, {8, 10, "89"}, {10, -1, ""}} {
		if got, err := read(t, b, key, tt.off, tt.n); string(got) != tt.want || err != nil {
			t.Errorf("without a length, %d+%d: %q, %v", tt.off, tt.n, got, err)
		}
	}
	if _, err := read(t, b, key, 11, -1); !errdefs.IsOutOfRange(err) {
		t.Error(err)
	}
}

func TestLocate(t *testing.T) {
	d := digest.FromString("x")
	for _, tt := range []struct {
		cfg             Config
		namespace, want string // "": refused
	}{
		{Config{Host: "r.example"}, "team/app", "team/app"},
		{Config{Host: "r.example"}, "app", "app"},
		{Config{Host: "r.example"}, "", ""},
		{Config{Host: "r.example"}, "Team/App", ""},
		{Config{Host: "r.example"}, "../x", ""},
		{Config{Host: "r.example"}, "a//b", ""},
		{Config{Host: "r.example"}, strings.Repeat("a", 199), ""},
		{Config{Host: "r.example"}, strings.Repeat("a/", 150) + "a", ""},
		{Config{Host: "r.example", StripPrefix: "r/"}, "r/team/app", "team/app"},
		{Config{Host: "r.example", StripPrefix: "r/"}, "team/app", ""},
		{Config{Host: "r.example", StripPrefix: "r/"}, "r/", ""},
		{Config{Host: "r.example", StripPrefix: "r/", AddPrefix: "mirror/x/"}, "r/team/app", "mirror/x/team/app"},
		{Config{Host: "docker.io"}, "nginx", "library/nginx"},
		{Config{Host: "registry-1.docker.io", StripPrefix: "hub/"}, "hub/nginx", "library/nginx"},
		{Config{Host: "docker.io"}, "team/app", "team/app"},
	} {
		b := backend(t, tt.cfg)
		key, err := fetcher.Locate(b, tt.namespace, d)
		if tt.want == "" {
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("%+v, %q: %q, %v", tt.cfg, tt.namespace, key, err)
			}
			continue
		}
		if want := tt.want + "@" + d.String(); key != want || err != nil {
			t.Errorf("%+v, %q: %q, %v, want %q", tt.cfg, tt.namespace, key, err, want)
		}
		if bl, err := parse(key); err != nil || bl.repo != tt.want || bl.digest != d {
			t.Errorf("%q: parsed %+v, %v", key, bl, err)
		}
	}
	for _, key := range []string{"x", "blobs/sha256/ab/cd", "@" + d.String(), "X@" + d.String(), "a@sha256:12",
		"a@b@" + d.String(), "a@" + d.String() + "/b"} {
		if _, err := parse(key); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", key, err)
		}
	}
}

func TestConfig(t *testing.T) {
	for _, tt := range []struct {
		cfg  Config
		want string // keys
	}{
		{Config{Host: "docker.io"}, ""},
		{Config{Host: "[::1]:5000", StripPrefix: "a/b/", HostsDir: "/x", DockerConfig: "/y"}, ""},
		{Config{}, "p.host"},
		{Config{Host: "http://x"}, "p.host"},
		{Config{Host: "x/y"}, "p.host"},
		{Config{Host: "x.y", StripPrefix: "a", AddPrefix: "B/", HostsDir: "x", DockerConfig: "y", Timeout: -1, Stall: -1, Retry: -1},
			"p.strip_prefix p.add_prefix p.hosts_dir p.docker_config p.timeout p.stall p.retry"},
	} {
		var keys []string
		for _, err := range tt.cfg.Check("p.") {
			key, _, _ := strings.Cut(err.Error(), ":")
			keys = append(keys, key)
		}
		if got := strings.Join(keys, " "); got != tt.want {
			t.Errorf("%+v: %q, want %q", tt.cfg, got, tt.want)
		}
	}
}

func BenchmarkRead(b *testing.B) {
	data := random(64 << 20)
	d := digest.FromBytes(data)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
	}))
	defer srv.Close()
	be, err := Open(Config{Host: strings.TrimPrefix(srv.URL, "http://"), PlainHTTP: true})
	if err != nil {
		b.Fatal(err)
	}
	defer be.Close()
	buf := make([]byte, 256<<10)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		r, _, err := be.Open(b.Context(), "team/app@"+d.String(), 0, -1)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.CopyBuffer(io.Discard, onlyReader{r}, buf); err != nil {
			b.Fatal(err)
		}
		r.Close()
	}
}

type onlyReader struct{ io.Reader }

// TestCheck: a host that answers as a registry is one, also to those that it does not know yet.
func TestCheck(t *testing.T) {
	f := newFake(t)
	b := backend(t, Config{Host: f.host(), Retry: config.Duration(time.Nanosecond)})
	for code, ok := range map[int]func(error) bool{
		200: func(err error) bool { return err == nil }, 401: func(err error) bool { return err == nil },
		403: errdefs.IsPermissionDenied, 404: errdefs.IsNotFound, 503: errdefs.IsUnavailable,
	} {
		f.before = func(w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path != "/v2/" {
				t.Errorf("asked for %s", r.URL.Path)
			}
			w.WriteHeader(code)
			return true
		}
		if err := b.Check(t.Context()); !ok(err) || err != nil && !strings.Contains(err.Error(), f.host()) {
			t.Errorf("status %d: %v", code, err)
		}
	}
}

func TestFaults(t *testing.T) {
	var f *fake
	fetchertest.RunFaults(t, func(t *testing.T) (fetcher.Backend, *fetchertest.Proxy) {
		f = newFake(t)
		p := fetchertest.NewProxy(t, f.URL)
		b := backend(t, Config{Host: strings.TrimPrefix(p.URL(f.URL), "http://"), Retry: config.Duration(time.Second)})
		b.backoff = time.Millisecond
		return b, p
	}, fetchertest.FaultOptions{Options: fetchertest.Options{
		Missing: missing,
		Put:     func(t *testing.T, _ fetcher.Backend, data []byte) string { return f.put("team/app", data) },
	}})
}
