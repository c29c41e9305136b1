package index

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Each class comes back as what it was, with the text, whatever wraps it.
func TestErrorsOnTheWire(t *testing.T) {
	for _, class := range []error{
		errdefs.ErrNotFound, errdefs.ErrInvalidArgument, errdefs.ErrFailedPrecondition, errdefs.ErrConflict, errdefs.ErrPermissionDenied,
		errdefs.ErrUnauthenticated, errdefs.ErrResourceExhausted, errdefs.ErrNotImplemented, errdefs.ErrDataLoss,
		errdefs.ErrUnavailable, errdefs.ErrInternal,
	} {
		rec := httptest.NewRecorder()
		WriteError(rec, fmt.Errorf("doing this: %w", class))
		err, ok := readError("x", rec.Body.Bytes())
		if !ok || !errors.Is(err, class) || !strings.Contains(err.Error(), "index x: doing this") || rec.Code < 400 {
			t.Errorf("%v: %d, %v", class, rec.Code, err)
		}
	}
	for _, tt := range []struct{ err, want error }{
		{context.DeadlineExceeded, errdefs.ErrUnavailable},
		{context.Canceled, errdefs.ErrUnavailable},
		{errors.New("anything"), errdefs.ErrInternal},
		{fmt.Errorf("%w: %w", errdefs.ErrNotFound, errdefs.ErrUnavailable), errdefs.ErrUnavailable},
	} {
		rec := httptest.NewRecorder()
		WriteError(rec, tt.err)
		if err, ok := readError("x", rec.Body.Bytes()); !ok || !errors.Is(err, tt.want) {
			t.Errorf("%v: %v", tt.err, err)
		}
	}
	d := digest.FromString("a")
	missing := &MissingError{Repository: "r", More: 3, Missing: []Missing{
		{d, "blob", digest.FromString("b"), "no origin has it"}, {d, "manifest", d, "gone"},
	}}
	rec := httptest.NewRecorder()
	WriteError(rec, fmt.Errorf("putting: %w", missing))
	err, ok := readError("x", rec.Body.Bytes())
	if !ok || err.Error() != missing.Error() || !errdefs.IsFailedPrecondition(err) || rec.Code != 412 {
		t.Errorf("%d, %v, want %v", rec.Code, err, missing)
	}
	if s := missing.Error(); strings.Count(s, "refers to it") != 1 || !strings.HasSuffix(s, "; and 3 more") {
		t.Error(s)
	}
	long := httptest.NewRecorder()
	WriteError(long, errors.New(strings.Repeat("ä", 1<<20)))
	if err, ok := readError("x", long.Body.Bytes()); !ok || len(err.Error()) > 5000 {
		t.Errorf("a long text: %d bytes", long.Body.Len())
	}
	for _, body := range []string{"", "{}", "404 page not found", `{"error":{"class":"ok"}}`, `{"error":"x"}`} {
		if err, ok := readError("x", []byte(body)); ok {
			t.Errorf("%s: %v", body, err)
		}
	}
}

// fake is an index that answers everything alike.
type fake struct {
	*httptest.Server
	asked atomic.Int64
}

func newFake(t *testing.T, h http.HandlerFunc) *fake {
	f := &fake{}
	f.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.asked.Add(1)
		h(w, r)
	}))
	t.Cleanup(f.Close)
	return f
}

func testClient(t *testing.T, indexes ...string) *Client {
	c, err := New(Config{Indexes: indexes})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// What makes a client ask the next index, and what it tells.
func TestFailOver(t *testing.T) {
	down := httptest.NewServer(nil)
	down.Close()
	answer := func(status int, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(status); fmt.Fprint(w, body) }
	}
	class := func(err error) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) { WriteError(w, err) }
	}
	for _, tt := range []struct {
		name  string
		first http.HandlerFunc // nil: nobody listens
		next  bool             // the second is asked
		err   error            // if it is not
	}{
		{"answers", answer(200, `{"revision":1}`), false, nil},
		{"nobody", nil, true, nil},
		{"unavailable", class(errdefs.ErrUnavailable), true, nil},
		{"not found", class(errdefs.ErrNotFound), false, errdefs.ErrNotFound},
		{"incomplete", class(&MissingError{Missing: []Missing{{}}}), false, errdefs.ErrFailedPrecondition},
		{"somebody else's 404", answer(404, "404 page not found"), true, nil},
		{"a proxy's 502", answer(502, "<html>"), true, nil},
		{"a redirect", answer(302, ""), true, nil},
		{"breaks off", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "100")
			fmt.Fprint(w, "{")
		}, true, nil},
		{"endless", func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				if _, err := w.Write(make([]byte, 1<<20)); err != nil {
					return
				}
			}
		}, true, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			url := down.URL
			if tt.first != nil {
				url = newFake(t, tt.first).URL
			}
			second := newFake(t, answer(200, `{"revision":2}`))
			c := testClient(t, url, second.URL)
			for i := range 2 {
				tag, err := c.Tag(t.Context(), "r", "v")
				if !errors.Is(err, tt.err) || tt.next != (second.asked.Load() == int64(i+1)) || tt.next && tag.Revision != 2 {
					t.Errorf("call %d: %v, %v, the second was asked %d times", i, tag, err, second.asked.Load())
				}
			}
		})
	}
}

func TestAllDown(t *testing.T) {
	a := newFake(t, func(w http.ResponseWriter, r *http.Request) {
		WriteError(w, fmt.Errorf("busy: %w", errdefs.ErrUnavailable))
	})
	b := newFake(t, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(500) })
	err := testClient(t, a.URL, b.URL).DeleteTag(t.Context(), "r", "v")
	if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "busy") || !strings.Contains(err.Error(), b.URL) {
		t.Errorf("got %v", err)
	}
}

// A deletion whose answer got lost is not "not found" at the next index.
func TestDeleteTwice(t *testing.T) {
	lost := newFake(t, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	gone := newFake(t, func(w http.ResponseWriter, r *http.Request) { WriteError(w, errdefs.ErrNotFound) })
	if err := testClient(t, lost.URL, gone.URL).DeleteTag(t.Context(), "r", "v"); err != nil {
		t.Errorf("after a lost answer: %v", err)
	}
	if err := testClient(t, gone.URL).DeleteTag(t.Context(), "r", "v"); !errdefs.IsNotFound(err) {
		t.Errorf("otherwise: %v", err)
	}
	if _, err := testClient(t, lost.URL, gone.URL).Tag(t.Context(), "r", "v"); !errdefs.IsNotFound(err) {
		t.Errorf("reading: %v", err)
	}
}

// A call ends with its context.
func TestCallEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	hang := newFake(t, func(w http.ResponseWriter, r *http.Request) {
		cancel()
		<-r.Context().Done()
	})
	_, err := testClient(t, hang.URL, newFake(t, nil).URL).Tag(ctx, "r", "v")
	if !errors.Is(err, context.Canceled) || !errdefs.IsUnavailable(err) || hang.asked.Load() != 1 {
		t.Errorf("%v, asked %d times", err, hang.asked.Load())
	}
}

func TestNew(t *testing.T) {
	for _, bad := range [][]string{nil, {"h"}, {"h:1", "ftp://h:1"}} {
		if _, err := New(Config{Indexes: bad}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// An index that lists for ever is left.
func TestTooManyReferrers(t *testing.T) {
	n := 0
	_, err := AllReferrers("r", digest.FromString("a"), func(digest.Digest) (Referrers, error) {
		n++
		return Referrers{Referrers: make([]ocispec.Descriptor, MaxPage), More: true}, nil
	})
	if !errdefs.IsResourceExhausted(err) || n != 11 {
		t.Errorf("%v after %d pages", err, n)
	}
}

func TestNames(t *testing.T) {
	for name, ok := range map[string]bool{
		"a": true, "a/b": true, "a-b/c.d/e_f/g__h/i---j": true, "library/nginx": true, strings.Repeat("a", 200): true,
		"": false, "A": false, "a/": false, "/a": false, "a//b": false, "_a": false, "a/_tags": false, "a..b": false, "a___b": false,
		"a\n": false, strings.Repeat("a", 201): false, strings.Repeat("a/", 127) + "a": true, strings.Repeat("a/", 127) + "ab": false,
	} {
		if err := CheckRepository(name); (err == nil) != ok || err != nil && !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", name, err)
		}
	}
	for name, ok := range map[string]bool{
		"a": true, "_": true, "v1.0-RC_1": true, strings.Repeat("a", 128): true,
		"": false, ".": false, "..": false, "-a": false, "a/b": false, "a b": false, "ä": false, strings.Repeat("a", 129): false, "a\n": false,
	} {
		if err := CheckTag(name); (err == nil) != ok || err != nil && !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", name, err)
		}
	}
}
