package gcs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/fetcher/fetchertest"
)

func open(t *testing.T, endpoint string) *Backend {
	t.Helper()
	b, err := Open(Config{Bucket: fakeBucket, Prefix: "some/where/", Endpoint: endpoint})
	if err != nil {
		t.Fatal(err)
	}
	b.pause, b.chunk = time.Microsecond, 256<<10
	t.Cleanup(func() { b.Close() })
	return b
}

func serve(t *testing.T, h http.Handler) string {
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.URL
}

func TestContract(t *testing.T) {
	fetchertest.Run(t, func(t *testing.T) fetcher.Backend { return open(t, serve(t, newFake())) }, fetchertest.Options{
		Large: 2<<20 + 17,
		Again: func(t *testing.T, b fetcher.Backend) fetcher.Backend { return open(t, b.(*Backend).cfg.Endpoint) },
	})
}

func TestFaults(t *testing.T) {
	for _, keeps := range []int{0, 100 << 10} {
		t.Run(fmt.Sprint("keeps ", keeps), func(t *testing.T) {
			fetchertest.RunFaults(t, func(t *testing.T) (fetcher.Backend, *fetchertest.Proxy) {
				f := newFake()
				f.keeps = keeps
				server := serve(t, f)
				p := fetchertest.NewProxy(t, server)
				return open(t, p.URL(server)), p
			}, fetchertest.FaultOptions{
				Options:     fetchertest.Options{Large: 600 << 10},
				WritesAgain: true,
				Once: map[string]fetchertest.Fault{
					"408": {Status: 408}, "502": {Status: 502}, "504": {Status: 504},
					"rate": {Status: 403, Body: `{"error":{"code":403,"message":"slow down","errors":[{"reason":"rateLimitExceeded"}]}}`},
				},
			})
		})
	}
}

// always answers all requests alike.
func always(code int, body string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "application/json; charset=UTF-8")
		w.WriteHeader(code)
		fmt.Fprint(w, body)
	})
}

// calls are all that may be asked.
func calls(b *Backend) map[string]func(ctx context.Context) error {
	return map[string]func(ctx context.Context) error{
		"Check": b.Check,
		"Stat":  func(ctx context.Context) error { _, err := b.Stat(ctx, "a/key"); return err },
		"Open":  func(ctx context.Context) error { _, _, err := b.Open(ctx, "a/key", 5, 7); return err },
		"Write": func(ctx context.Context) error {
			_, err := b.Write(ctx, "a/key", 1, strings.NewReader("x"))
			return err
		},
		"Write large": func(ctx context.Context) error {
			_, err := b.Write(ctx, "a/key", -1, bytes.NewReader(make([]byte, b.chunk+1)))
			return err
		},
		"WriteIf": func(ctx context.Context) error { _, err := b.WriteIf(ctx, "a/key", nil, "7"); return err },
		"List":    func(ctx context.Context) error { _, _, err := b.List(ctx, "", "", 0); return err },
		"Delete":  func(ctx context.Context) error { return b.Delete(ctx, "a/key") },
	}
}

func TestClasses(t *testing.T) {
	reply := `{"error":{"code":%d,"message":"said\nGoogle","errors":[{"reason":%q}]}}`
	for _, tt := range []struct {
		code   int
		reason string
		want   error
	}{
		{401, "authError", errdefs.ErrUnauthenticated},
		{403, "forbidden", errdefs.ErrPermissionDenied},
		{403, "rateLimitExceeded", errdefs.ErrUnavailable},
		{404, "notFound", errdefs.ErrFailedPrecondition}, // no object's, if the bucket is not there, either
		{400, "invalid", errdefs.ErrUnavailable},
		{408, "", errdefs.ErrUnavailable},
		{416, "", errdefs.ErrUnavailable},
		{429, "rateLimitExceeded", errdefs.ErrUnavailable},
		{500, "", errdefs.ErrUnavailable},
		{503, "", errdefs.ErrUnavailable},
		{302, "", errdefs.ErrUnavailable},
		{200, "", errdefs.ErrUnavailable}, // nothing that is an object
	} {
		b := open(t, serve(t, always(tt.code, fmt.Sprintf(reply, tt.code, tt.reason))))
		for name, call := range calls(b) {
			err := call(t.Context())
			if tt.code == 200 && (name == "List" || name == "Check") {
				continue // an empty one
			}
			if !errors.Is(err, tt.want) {
				t.Errorf("%s, status %d %s: %v", name, tt.code, tt.reason, err)
				continue
			}
			for _, other := range []error{errdefs.ErrNotFound, errdefs.ErrConflict} {
				if errors.Is(err, other) {
					t.Errorf("%s, status %d %s: %v", name, tt.code, tt.reason, err)
				}
			}
			if !strings.HasPrefix(err.Error(), "gcs:capelin-test/some/where: ") || strings.ContainsAny(err.Error(), "\n") {
				t.Errorf("%s: %v", name, err)
			}
			if name != "Check" && name != "List" && !strings.Contains(err.Error(), "a/key") {
				t.Errorf("%s does not name the key: %v", name, err)
			}
		}
	}
}

// What was done before its context ended was done: an answer would be left open otherwise.
func TestEndedAfterwards(t *testing.T) {
	b := open(t, serve(t, newFake()))
	ctx, cancel := context.WithCancel(t.Context())
	if err := b.ask(ctx, func(*api) error { cancel(); return nil }); err != nil {
		t.Error(err)
	}
	if err := b.ask(ctx, func(*api) error { return io.ErrUnexpectedEOF }); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// TestNotFound: an object is not there only if the bucket is.
func TestNotFound(t *testing.T) {
	f := newFake()
	var asked atomic.Int32
	f.before = func(*http.Request) { asked.Add(1) }
	b := open(t, serve(t, f))
	for want := range int32(4) { // the bucket is asked for once
		if _, err := b.Stat(t.Context(), "x"); !errdefs.IsNotFound(err) || asked.Load() != want+2 {
			t.Errorf("%v after %d requests", err, asked.Load())
		}
	}
	b.seen.Store(time.Now().Add(-2 * seenFor).UnixNano())
	if _, _, err := b.Open(t.Context(), "x", 0, -1); !errdefs.IsNotFound(err) || asked.Load() != 7 {
		t.Errorf("%v after %d requests", err, asked.Load())
	}
	b.cfg.Bucket = "another"
	for name, call := range calls(b) {
		if err := call(t.Context()); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), `no bucket "another"`) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCheck(t *testing.T) {
	f := newFake()
	b := open(t, serve(t, f))
	if err := b.Check(t.Context()); err != nil {
		t.Error(err)
	}
	f.permissions = []string{"storage.objects.list", "storage.objects.get"}
	if err := b.Check(t.Context()); !errdefs.IsPermissionDenied(err) ||
		!strings.Contains(err.Error(), "storage.objects.create, storage.objects.delete is missing") {
		t.Error(err)
	}
}

// TestSourceFails: what was begun is never ended.
func TestSourceFails(t *testing.T) {
	f := newFake()
	b := open(t, serve(t, f))
	boom := errors.New("boom")
	for _, n := range []int64{0, 1, b.chunk - 1, b.chunk, b.chunk + 1, 2 * b.chunk, 3*b.chunk + 5} {
		for _, size := range []int64{-1, n, n + 1} {
			ctx, cancel := context.WithCancel(t.Context())
			for _, src := range []io.Reader{
				io.MultiReader(io.LimitReader(zeros{}, n), errReader{boom}),
				io.MultiReader(io.LimitReader(zeros{}, n), readerFunc(func([]byte) (int, error) { cancel(); return 0, nil })),
			} {
				if _, err := b.Write(ctx, "x", size, src); err == nil {
					t.Errorf("%d bytes of %d were written", n, size)
				}
			}
			cancel()
		}
	}
	if len(f.objects) > 0 {
		t.Errorf("there are %d objects", len(f.objects))
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

type errReader struct{ error }

func (e errReader) Read([]byte) (int, error) { return 0, e.error }

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// TestOthers: what others do between two of our requests is not undone.
func TestOthers(t *testing.T) {
	f := newFake()
	url := serve(t, f)
	b, other := open(t, url), open(t, url)
	write := func(b *Backend, data string) fetcher.Info {
		t.Helper()
		info, err := b.Write(t.Context(), "x", -1, strings.NewReader(data))
		if err != nil {
			t.Fatal(err)
		}
		return info
	}
	var once atomic.Bool
	between := func(method string, then func()) { // then is called before the next request of that method
		once.Store(true)
		f.before = func(r *http.Request) {
			if r.Method == method && once.CompareAndSwap(true, false) {
				then()
			}
		}
	}
	write(b, "ours")
	between(http.MethodDelete, func() { write(other, "theirs") })
	if err := b.Delete(t.Context(), "x"); err != nil {
		t.Error(err)
	}
	if o := f.objects["some/where/x"]; o == nil || string(o.data) != "theirs" {
		t.Error("a deletion removed what was written after it began")
	}

	var seen fetcher.Info
	between(http.MethodPost, func() { seen = write(other, "theirs again") })
	if info := write(b, "ours again"); info.Version <= seen.Version || string(f.objects["some/where/x"].data) != "ours again" {
		t.Errorf("%+v after %+v", info, seen)
	}

	// Always somebody is faster.
	f.before = func(r *http.Request) {
		if r.Method == http.MethodPost {
			f.mu.Lock()
			f.store(f.objects["some/where/x"].Object, []byte("theirs"))
			f.mu.Unlock()
		}
	}
	if _, err := b.Write(t.Context(), "x", -1, strings.NewReader("ours")); !errdefs.IsUnavailable(err) {
		t.Error(err)
	}
	if _, err := b.WriteIf(t.Context(), "x", []byte("ours"), seen.Version); !errdefs.IsConflict(err) {
		t.Error(err)
	}
}

// TestDoubt: an answer is lost, and before the write can be looked at others have replaced it.
func TestDoubt(t *testing.T) {
	f := newFake()
	server := serve(t, f)
	p := fetchertest.NewProxy(t, server)
	b := open(t, p.URL(server))
	var n atomic.Int32
	p.Fail(func(r *http.Request) *fetchertest.Fault {
		if r.Method != http.MethodPost || n.Add(1) > 1 {
			if o := f.objects["some/where/x"]; o != nil && r.Method == http.MethodGet && n.Load() == 1 {
				f.mu.Lock()
				f.store(f.objects["some/where/x"].Object, []byte("theirs")).Metadata = nil
				f.mu.Unlock()
			}
			return nil
		}
		return &fetchertest.Fault{Lost: true}
	})
	if _, err := b.WriteIf(t.Context(), "x", []byte("ours"), ""); !errdefs.IsConflict(err) {
		t.Error(err)
	}
	if string(f.objects["some/where/x"].data) != "theirs" {
		t.Error("what others wrote was overwritten")
	}
}

func TestAnswers(t *testing.T) {
	f := newFake()
	b := open(t, serve(t, f))
	large := make([]byte, b.chunk+1)

	f.elsewhere = "http://127.0.0.2:1/upload"
	if _, err := b.Write(t.Context(), "x", -1, bytes.NewReader(large)); !errdefs.IsFailedPrecondition(err) ||
		!strings.Contains(err.Error(), "127.0.0.2:1, which is not the endpoint") || strings.Contains(err.Error(), "upload_id") {
		t.Errorf("an upload that is to go on elsewhere: %v", err)
	}
	f.elsewhere = ""
	if _, err := b.Write(t.Context(), "x", -1, bytes.NewReader(large)); err != nil {
		t.Error(err)
	}
	f.objects["some/where/x"].ContentEncoding = "gzip"
	if _, _, err := b.Open(t.Context(), "x", 0, -1); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("stored compressed: %v", err)
	}
	f.store(f.objects["some/where/x"].Object, nil).Name = "some/where/\n"
	f.objects["some/where/y"] = f.objects["some/where/x"]
	if page, more, err := b.List(t.Context(), "", "", 0); err != nil || more || len(page) > 0 {
		t.Errorf("names that are no keys: %v, %v, %v", page, more, err)
	}

	long := open(t, serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for r.Context().Err() == nil {
			if _, err := w.Write(make([]byte, 64<<10)); err != nil {
				return
			}
		}
	})))
	long.transport.longest = 64 << 10
	for name, call := range calls(long) {
		if name == "Open" {
			continue
		}
		if err := call(t.Context()); !errdefs.IsUnavailable(err) {
			t.Errorf("%s: an answer that does not end: %v", name, err)
		}
	}
}

// TestStands: a storage that does not answer is given up.
func TestStands(t *testing.T) {
	stop := make(chan struct{})
	url := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		<-stop
	}))
	defer close(stop)
	b := open(t, url)
	b.transport.timeout = time.Millisecond
	for name, call := range calls(b) {
		if err := call(t.Context()); !errdefs.IsUnavailable(err) || errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestStartAfter(t *testing.T) {
	for after, want := range map[string]string{"": "", "a": "a!", "a/é": "a/é!", "a\xffb": "a", "\x00": "", "a\x00b": "a", "\xff": ""} {
		if got := startAfter(after); got != want {
			t.Errorf("after %q: %q, want %q", after, got, want)
		}
	}
}
