package httpobject

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

// served returns the object that a handler serves.
func served(t *testing.T, h http.HandlerFunc) *Object {
	srv := httptest.NewUnstartedServer(h)
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.Start()
	t.Cleanup(srv.Close)
	client := srv.Client()
	return &Object{
		Fail: func(op string, err error) error { return fmt.Errorf("%s it: %w", op, err) },
		Send: func(ctx context.Context, r Request) (*http.Response, error) {
			req, err := http.NewRequestWithContext(ctx, r.Method, srv.URL, nil)
			if err != nil {
				return nil, err
			}
			req.Header = http.Header{"Accept-Encoding": {"identity"}}
			for k, v := range r.Header {
				req.Header[k] = v
			}
			resp, err := client.Do(req)
			if err != nil {
				return nil, &NetworkError{err}
			}
			for _, ok := range append(r.Accept, http.StatusOK) {
				if resp.StatusCode == ok {
					return resp, nil
				}
			}
			return nil, Failure(resp, nil)
		},
	}
}

// cut breaks the connection after some bytes.
type cut struct {
	http.ResponseWriter
	left int
}

func (c *cut) Write(p []byte) (int, error) {
	if len(p) > c.left {
		_, _ = c.ResponseWriter.Write(p[:c.left])
		c.ResponseWriter.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}
	c.left -= len(p)
	return c.ResponseWriter.Write(p)
}

// A connection breaks after 1,000 bytes, and the object is another one by then, or not: a
// reader goes on only if it is certainly the same.
func TestVersions(t *testing.T) {
	one, two := bytes.Repeat([]byte("1"), 3000), bytes.Repeat([]byte("2"), 3000)
	then := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, tt := range []struct {
		name            string
		etag, later     string // of the first answer, and of the others
		time, timeLater time.Time
		changed         bool // the bytes, after the first answer
		ignores         string
		goes            bool // on
	}{
		{name: "the same by ETag", etag: `"a"`, later: `"a"`, goes: true},
		{name: "another one by ETag", etag: `"a"`, later: `"b"`, changed: true},
		{name: "another one by ETag, at a server that does not know If-Range", etag: `"a"`, later: `"b"`, changed: true, ignores: "If-Range"},
		{name: "the same by ETag, at a server that does not know ranges", etag: `"a"`, later: `"a"`, ignores: "Range", goes: true},
		{name: "another one by ETag, at a server that does not know ranges", etag: `"a"`, later: `"b"`, changed: true, ignores: "Range"},
		{name: "the ETag is no longer told", etag: `"a"`, time: then, timeLater: then, ignores: "If-Range"},
		{name: "the same by time", time: then, timeLater: then, goes: true},
		{name: "another one by time", time: then, timeLater: then.Add(time.Second), changed: true},
		{name: "another one by time, at a server that does not know If-Range", time: then, timeLater: then.Add(time.Second),
			changed: true, ignores: "If-Range"},
		{name: "a time that is too young to tell", time: time.Now().Add(time.Hour), timeLater: time.Now().Add(time.Hour), changed: true},
		{name: "a weak ETag", etag: `W/"a"`, later: `W/"a"`, changed: true},
		{name: "a weak ETag and a time", etag: `W/"a"`, later: `W/"a"`, time: then, timeLater: then, goes: true},
		{name: "nothing", changed: true},
		{name: "nothing, at a server that does not know ranges", changed: true, ignores: "Range"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			asked := 0
			o := served(t, func(w http.ResponseWriter, r *http.Request) {
				asked++
				data, etag, at := one, tt.etag, tt.time
				if asked > 1 {
					if etag, at = tt.later, tt.timeLater; tt.changed {
						data = two
					}
				}
				if etag != "" {
					w.Header().Set("ETag", etag)
				}
				for h := range strings.FieldsSeq(tt.ignores) {
					r.Header.Del(h)
				}
				http.ServeContent(&cut{w, 1000}, r, "", at, bytes.NewReader(data))
			})
			r, info, err := o.Open(t.Context(), 0, -1)
			if err != nil || info.Size != 3000 || !tt.time.IsZero() && !info.Modified.Equal(tt.time.Truncate(time.Second)) {
				t.Fatalf("%+v, %v", info, err)
			}
			defer r.Close()
			got, err := io.ReadAll(r)
			if tt.ignores == "Range" && tt.goes { // the same bytes again and again
				if !bytes.Equal(got, one[:1000]) || !errors.Is(err, io.ErrUnexpectedEOF) {
					t.Errorf("%d bytes, %v", len(got), err)
				}
				return
			}
			if tt.goes && (err != nil || !bytes.Equal(got, one)) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
			if !tt.goes && (!errors.Is(err, io.ErrUnexpectedEOF) || !errdefs.IsUnavailable(err) || !bytes.Equal(got, one[:1000])) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
		})
	}
}

// A server that does not know ranges sends all of it again, but not again and again.
func TestSkips(t *testing.T) {
	data := bytes.Repeat([]byte("x"), 100_000)
	for breaks, ok := range map[int]bool{maxSkips: true, maxSkips + 1: false} {
		sent, left := 0, breaks
		o := served(t, func(w http.ResponseWriter, r *http.Request) {
			r.Header.Del("Range")
			r.Header.Del("If-Range")
			w.Header().Set("ETag", `"a"`)
			if left > 0 {
				left--
				sent += 10_000
				w = &cut{w, sent}
			}
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
		})
		r, _, err := o.Open(t.Context(), 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		r.Close()
		if ok && (err != nil || !bytes.Equal(got, data)) {
			t.Errorf("%d breaks: %d bytes, %v", breaks, len(got), err)
		}
		if !ok && (!errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "does not know ranges")) {
			t.Errorf("%d breaks: %d bytes, %v", breaks, len(got), err)
		}
	}
}

// The size is asked for in another way where a HEAD is refused, or does not tell it; also
// at servers that refuse ranges.
func TestStat(t *testing.T) {
	data := []byte("0123456789")
	for _, tt := range []struct {
		name   string
		head   int // status of a HEAD; 0: as it should be; -1: without a length
		ranges int // status of a request with a range; 0: as it should be
		size   int64
		class  error
	}{
		{"as it should be", 0, 0, 10, nil},
		{"no HEAD", 405, 0, 10, nil},
		{"no HEAD", 501, 0, 10, nil},
		{"no HEAD for us", 403, 0, 10, nil},
		{"no HEAD, and no ranges", 405, 416, 10, nil},
		{"no length", -1, 0, 10, nil},
		{"a HEAD that fails", 500, 0, 0, errdefs.ErrUnavailable},
		{"nothing for us", 403, 403, 0, errdefs.ErrPermissionDenied},
		{"nothing", 404, 0, 0, errdefs.ErrNotFound},
	} {
		t.Run(fmt.Sprint(tt.name, " ", tt.head), func(t *testing.T) {
			o := served(t, func(w http.ResponseWriter, r *http.Request) {
				switch {
				case r.Method == http.MethodHead && tt.head > 0:
					w.WriteHeader(tt.head)
				case r.Method == http.MethodHead && tt.head < 0:
					w.Header().Set("Transfer-Encoding", "chunked")
				case r.Header.Get("Range") != "" && tt.ranges != 0:
					w.WriteHeader(tt.ranges)
				default:
					http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
				}
			})
			o.HeadRefused = []int{403}
			info, err := o.Stat(t.Context())
			if tt.class != nil {
				if !errors.Is(err, tt.class) {
					t.Errorf("%v", err)
				}
				return
			}
			if err != nil || info.Size != tt.size {
				t.Errorf("%+v, %v", info, err)
			}
		})
	}
}

// Bytes that were compressed on the way are not the object's, and their length is not its
// size.
func TestEncoded(t *testing.T) {
	o := served(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Encoding", "gzip")
		http.ServeContent(w, r, "", time.Time{}, strings.NewReader("compressed"))
	})
	o.Told = func(size int64) { t.Errorf("size %d", size) }
	check := func(err error) {
		t.Helper()
		if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), `"gzip"`) {
			t.Error(err)
		}
	}
	_, err := o.Stat(t.Context())
	check(err)
	for _, n := range []int64{-1, 5} {
		_, _, err = o.Open(t.Context(), 0, n)
		check(err)
	}
}
