package shim

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/capelin-io/capelin/swarm/piece"
)

func TestMirrorBlob(t *testing.T) {
	m := newTestMirror(t, "", nil)
	data := randomBytes(300<<10, 1)
	id := m.up.put(t, data)
	path, last := blobPath(id), len(data)-1

	resp, _, err := m.do("HEAD", path)
	if err != nil || resp.StatusCode != 200 || resp.ContentLength != id.Size || resp.Header.Get("Docker-Content-Digest") != id.Digest() {
		t.Errorf("HEAD: %v (%v)", resp, err)
	}
	if m.swarm.opens != 0 || m.up.count("GET", "") != 0 {
		t.Errorf("HEAD downloads: %q", m.up.asked)
	}

	etag := fmt.Sprintf("%q", id.Digest())
	for _, tt := range []struct {
		header   []string
		status   int
		from, to int // to is included
	}{
		{nil, 200, 0, last},
		{[]string{"Range", "bytes=0-0"}, 206, 0, 0},
		{[]string{"Range", "bytes=100-"}, 206, 100, last},
		{[]string{"Range", "bytes=65536-65600"}, 206, 65536, 65600},
		{[]string{"Range", "bytes=-5"}, 206, last - 4, last},
		{[]string{"Range", "bytes=0-99999999999"}, 206, 0, last},
		{[]string{"Range", fmt.Sprintf("bytes=%d-", last)}, 206, last, last},
		{[]string{"Range", fmt.Sprintf("bytes=%d-", last+1)}, 416, 0, -1},
		{[]string{"Range", "bytes=5-4"}, 416, 0, -1},
		{[]string{"Range", "bytes=99999999999999999999-"}, 416, 0, -1},
		{[]string{"Range", "lines=1-2"}, 416, 0, -1},
		{[]string{"Range", "bytes=1-2,5-6"}, 200, 0, last},
		{[]string{"Range", "bytes=" + strings.Repeat("1-2,", 1000)}, 200, 0, last},
		{[]string{"Range", "bytes=1-2", "If-Range", etag}, 206, 1, 2},
		{[]string{"Range", "bytes=1-2", "If-Range", `"other"`}, 200, 0, last},
		{[]string{"If-None-Match", etag}, 304, 0, -1},
	} {
		resp, body, err := m.do("GET", path, tt.header...)
		if err != nil || resp.StatusCode != tt.status {
			t.Errorf("%.80q: %v (%v), want %d", tt.header, resp, err, tt.status)
			continue
		}
		if tt.status == 416 {
			if got := resp.Header.Get("Content-Range"); tt.header[1] != "lines=1-2" && tt.header[1] != "bytes=5-4" &&
				tt.header[1] != "bytes=99999999999999999999-" && got != fmt.Sprintf("bytes */%d", id.Size) {
				t.Errorf("%q: Content-Range %q", tt.header, got)
			}
			continue
		}
		if !bytes.Equal(body, data[tt.from:tt.to+1]) || tt.to >= 0 && resp.ContentLength != int64(tt.to+1-tt.from) {
			t.Errorf("%.80q: %d bytes, length %d, want %d", tt.header, len(body), resp.ContentLength, tt.to+1-tt.from)
		}
		if want := fmt.Sprintf("bytes %d-%d/%d", tt.from, tt.to, id.Size); tt.status == 206 && resp.Header.Get("Content-Range") != want {
			t.Errorf("%q: Content-Range %q, want %q", tt.header, resp.Header.Get("Content-Range"), want)
		}
		if got := resp.Header.Get("Docker-Content-Digest"); got != id.Digest() {
			t.Errorf("%.80q: digest %q", tt.header, got)
		}
	}
	if n := m.up.count("GET", "/blobs/"); n != 1 {
		t.Errorf("%d GETs at the registry, want 1", n)
	}
	if n := m.requested(kindBlobRelayed); n != 0 {
		t.Errorf("%d blobs were relayed", n)
	}
}

// What is verified is sent before the rest has arrived.
func TestMirrorStreams(t *testing.T) {
	m := newTestMirror(t, "", nil)
	data := randomBytes(200<<10, 2)
	id := m.up.put(t, data)
	b := m.swarm.has(id, data[:100], nil)
	resp, err := http.Get(m.url + blobPath(id))
	if err != nil {
		t.Fatal(err)
	}
	defer http.DefaultClient.CloseIdleConnections()
	defer resp.Body.Close()
	got := make([]byte, 100)
	if _, err := io.ReadFull(resp.Body, got); err != nil || !bytes.Equal(got, data[:100]) {
		t.Fatal(err)
	}
	b.deliver(data[100:70000], nil)
	b.deliver(data[70000:], nil)
	rest, err := io.ReadAll(resp.Body)
	if err != nil || !bytes.Equal(rest, data[100:]) {
		t.Errorf("%d bytes (%v)", len(rest), err)
	}
	if m.up.count("GET", "") != 0 {
		t.Error("the registry was asked, too")
	}
}

func TestMirrorTogether(t *testing.T) {
	m := newTestMirror(t, "", nil)
	data := randomBytes(1<<20, 3)
	id := m.up.put(t, data)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, body, err := m.do("GET", blobPath(id)); err != nil || !bytes.Equal(body, data) {
				t.Errorf("%d bytes (%v)", len(body), err)
			}
		})
	}
	wg.Wait()
	if n := m.up.count("GET", ""); n != 1 {
		t.Errorf("%d GETs at the registry, want 1", n)
	}
}

// A client never gets a whole answer that is not the blob.
func TestMirrorBreaksOff(t *testing.T) {
	data := randomBytes(300<<10, 4)
	for name, have := range map[string]func() ([]byte, error){
		"the rest is lost": func() ([]byte, error) { return data[:150000], errors.New("gone") },
		"false bytes": func() ([]byte, error) {
			lies := bytes.Clone(data)
			lies[1000] ^= 1
			return lies, nil
		},
		"a false last byte": func() ([]byte, error) {
			lies := bytes.Clone(data)
			lies[len(lies)-1] ^= 1
			return lies, nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := newTestMirror(t, "", nil)
			id := m.up.put(t, data)
			got, err := have()
			m.swarm.has(id, got, err)
			resp, body, err := m.do("GET", blobPath(id))
			if err == nil || resp == nil || resp.ContentLength != id.Size || len(body) >= len(data) {
				t.Errorf("%d bytes without an error: %v", len(body), resp)
			}
		})
	}
}

// What the swarm cannot have, or cannot begin to serve, the registry serves.
func TestMirrorRelaysBlobs(t *testing.T) {
	data := randomBytes(100<<10, 5)
	for name, tt := range map[string]struct {
		swarm func(*fakeSwarm, piece.ID)
		wrap  func(w http.ResponseWriter, r *http.Request) bool
	}{
		"not opened": {swarm: func(s *fakeSwarm, _ piece.ID) { s.fail = errdefs.ErrResourceExhausted }},
		"not begun":  {swarm: func(s *fakeSwarm, id piece.ID) { s.has(id, nil, errdefs.ErrUnavailable) }},
		"no HEAD": {wrap: func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method == http.MethodHead {
				w.WriteHeader(http.StatusMethodNotAllowed)
			}
			return r.Method == http.MethodHead
		}},
		"no size": {wrap: func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method == http.MethodHead {
				w.Header().Set("Transfer-Encoding", "chunked")
			}
			return r.Method == http.MethodHead
		}},
		"encoded": {wrap: func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method == http.MethodHead {
				w.Header().Set("Content-Encoding", "gzip")
				w.Header().Set("Content-Length", strconv.Itoa(len(data)))
			}
			return r.Method == http.MethodHead
		}},
	} {
		t.Run(name, func(t *testing.T) {
			relayed := 0
			m := newTestMirror(t, "", func(c *MirrorConfig) { c.OnRelayed = func(n int) { relayed += n } })
			id := m.up.put(t, data)
			if tt.swarm != nil {
				tt.swarm(m.swarm, id)
			}
			m.up.wrap = func(h http.Handler) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if tt.wrap == nil || !tt.wrap(w, r) {
						h.ServeHTTP(w, r)
					}
				})
			}
			resp, body, err := m.do("GET", blobPath(id))
			if err != nil || resp.StatusCode != 200 || !bytes.Equal(body, data) {
				t.Errorf("%v, %d bytes (%v)", resp, len(body), err)
			}
			if m.requested(kindBlobRelayed) != 1 || m.requested(kindBlob) != 0 || relayed != len(data) {
				t.Errorf("%d bytes counted as relayed", relayed)
			}
		})
	}
	t.Run("another algorithm", func(t *testing.T) {
		m := newTestMirror(t, "", nil)
		resp, _, err := m.do("GET", "/v2/a/blobs/sha384:"+strings.Repeat("a", 96))
		if err != nil || resp.StatusCode < 400 || m.swarm.opens != 0 || m.up.count("GET", "sha384") != 1 || m.up.count("HEAD", "") != 0 {
			t.Errorf("%v (%v), asked %q", resp, err, m.up.asked)
		}
	})
}

// A registry, or a proxy before it, that encodes a blob of which it has just said that it does not: nothing of that is taken for
// the blob, be it sent as a part or as a whole. The client gets what the registry sends, which says so.
func TestMirrorBlobEncodedAfterAll(t *testing.T) {
	data := randomBytes(300<<10, 6)
	for _, encoding := range []string{"gzip", "GZIP", "zstd"} {
		for _, authorize := range []bool{false, true} {
			m := newTestMirror(t, "", func(c *MirrorConfig) { c.AuthorizeBlob = authorize })
			id := m.up.put(t, data)
			m.up.wrap = func(h http.Handler) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if r.Method == http.MethodGet {
						w.Header().Set("Content-Encoding", encoding)
						w.Header().Set("Content-Length", strconv.Itoa(len(data))) // as long as the blob
						_, _ = w.Write(bytes.Repeat([]byte{'x'}, len(data)))
						return
					}
					h.ServeHTTP(w, r)
				})
			}
			resp, body, err := m.do("GET", blobPath(id), "Accept-Encoding", "identity")
			if err != nil || resp.StatusCode != 200 || resp.Header.Get("Content-Encoding") != encoding || len(body) != len(data) {
				t.Fatalf("%s: %v, %d bytes (%v)", encoding, resp, len(body), err)
			}
			if n := m.requested(kindBlobRelayed); n != 1 {
				t.Errorf("%s: %d blobs were relayed", encoding, n)
			}
			m.swarm.mu.Lock()
			b := m.swarm.blobs[id]
			m.swarm.mu.Unlock()
			if b != nil {
				b.mu.Lock()
				if len(b.data) != 0 {
					t.Errorf("%s: the swarm was given %d encoded bytes", encoding, len(b.data))
				}
				b.mu.Unlock()
			}
		}
	}
}

// Where each blob is authorized, it comes from the swarm if the registry sends its end to this
// client; else the registry serves all of it, or does not.
func TestMirrorAuthorizesBlobs(t *testing.T) {
	data, small := randomBytes(300<<10, 8), randomBytes(Tail, 9)
	no := func(serve func(w http.ResponseWriter, r *http.Request)) func(http.Handler) http.Handler {
		return func(h http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Method == http.MethodHead {
					h.ServeHTTP(w, r)
					return
				}
				serve(w, r)
			})
		}
	}
	for name, tt := range map[string]struct {
		data   []byte
		wrap   func(http.Handler) http.Handler
		status int
		opens  int
		asked  []string // Range of each GET
	}{
		"sends its end": {data: data, status: 200, opens: 1, asked: []string{"bytes=241664-307199"}},
		"small":         {data: small, status: 200, asked: []string{""}},
		"answers a HEAD": {data: data, status: 404, asked: []string{"bytes=241664-307199", ""},
			wrap: no(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotFound) })},
		"without ranges": {data: data, status: 200, asked: []string{"bytes=241664-307199", ""},
			wrap: no(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(data) })},
		"ends too early": {data: data, status: 206, asked: []string{"bytes=241664-307199", ""},
			wrap: no(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Range", "bytes 241664-307199/307200")
				w.WriteHeader(http.StatusPartialContent)
				_, _ = w.Write(data[:100])
			})},
	} {
		t.Run(name, func(t *testing.T) {
			m := newTestMirror(t, "", func(c *MirrorConfig) { c.AuthorizeBlob = true })
			id := m.up.put(t, tt.data)
			m.up.wrap = tt.wrap
			m.swarm.has(id, tt.data, nil)
			resp, body, err := m.do("GET", blobPath(id))
			if err != nil || resp.StatusCode != tt.status || tt.status == 200 && !bytes.Equal(body, tt.data) {
				t.Errorf("%v, %d bytes (%v)", resp, len(body), err)
			}
			if m.swarm.opens != tt.opens || tt.opens > 0 && !bytes.Equal(m.swarm.want.Tail, data[len(data)-Tail:]) {
				t.Errorf("the swarm was asked %d times, for a blob that ends with %d bytes", m.swarm.opens, len(m.swarm.want.Tail))
			}
			var asked []string
			for i, a := range m.up.asked {
				if strings.HasPrefix(a, "GET") {
					asked = append(asked, m.up.headers[i].Get("Range"))
				}
			}
			if !slices.Equal(asked, tt.asked) {
				t.Errorf("the registry was asked for %q, want %q", asked, tt.asked)
			}
		})
	}
}

func TestIsPart(t *testing.T) {
	for rng, want := range map[string]bool{
		"": false, "bytes=0-": false, "bytes=70000-": false, "bytes=0-99": false, "bytes=0-500": false, "bytes=0-98": true,
		"bytes=1-99": true, "bytes=-5": true,
	} {
		if got := isPart(rng, 100); got != want {
			t.Errorf("%q: %v", rng, got)
		}
	}
}

// upstreamOf returns the Upstream of a blob that the registry's answers serve.
func upstreamOf(t *testing.T, size int, serve http.HandlerFunc) Upstream {
	t.Helper()
	m := newTestMirror(t, "", nil)
	m.up.wrap = func(http.Handler) http.Handler { return serve }
	u, err := url.Parse(m.up.URL + "/v2/a/blobs/x")
	if err != nil {
		t.Fatal(err)
	}
	s := &source{m: m.Mirror, url: u, header: http.Header{"Authorization": {""}}, size: int64(size)}
	return s.open
}

func TestUpstream(t *testing.T) {
	const size = 1000
	data := randomBytes(size, 6)
	serve := func(status int, contentRange string, body []byte) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if contentRange != "" {
				w.Header().Set("Content-Range", contentRange)
			}
			w.WriteHeader(status)
			_, _ = w.Write(body)
		}
	}
	for name, tt := range map[string]struct {
		off   int64
		serve http.HandlerFunc
		class error // nil: none
	}{
		"whole":       {0, serve(200, "", data), nil},
		"rest":        {400, serve(206, "bytes 400-999/1000", data[400:]), nil},
		"no ranges":   {400, serve(200, "", data), nil},
		"other range": {400, serve(206, "bytes 300-999/1000", data[300:]), errdefs.ErrUnavailable},
		"cut range":   {400, serve(206, "bytes 400-900/1000", data[400:901]), errdefs.ErrUnavailable},
		"other size":  {400, serve(206, "bytes 400-1000/1001", append(data[400:size:size], 0)), errdefs.ErrUnavailable},
		"no range":    {400, serve(206, "", data[400:]), errdefs.ErrUnavailable},
		"hostile":     {400, serve(206, "bytes 99999999999999999999-/x", data[400:]), errdefs.ErrUnavailable},
		"unasked":     {0, serve(206, "bytes 0-999/1000", data), errdefs.ErrUnavailable},
		"long":        {0, serve(200, "", append(data[:size:size], 0)), errdefs.ErrUnavailable},
		"401":         {0, serve(401, "", nil), errdefs.ErrUnauthenticated},
		"403":         {0, serve(403, "", nil), errdefs.ErrPermissionDenied},
		"404":         {0, serve(404, "", nil), errdefs.ErrNotFound},
		"416":         {400, serve(416, "", nil), errdefs.ErrUnavailable},
		"429":         {0, serve(429, "", nil), errdefs.ErrUnavailable},
		"503":         {0, serve(503, "", nil), errdefs.ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := upstreamOf(t, size, tt.serve)(t.Context(), tt.off)
			if !errors.Is(err, tt.class) || tt.class == nil && err != nil {
				t.Fatalf("error %v, want %v", err, tt.class)
			}
			if err != nil {
				return
			}
			defer r.Close()
			got, err := io.ReadAll(r)
			if err != nil || !bytes.Equal(got, data[tt.off:]) {
				t.Errorf("%d bytes (%v)", len(got), err)
			}
		})
	}
	t.Run("dies", func(t *testing.T) {
		r, err := upstreamOf(t, size, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "1000")
			_, _ = w.Write(data[:500])
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		})(t.Context(), 0)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if got, err := io.ReadAll(r); err == nil || !bytes.Equal(got, data[:500]) {
			t.Errorf("%d bytes (%v)", len(got), err)
		}
	})
}

// Credentials go to the registry that asked for them, not to where it redirects.
func TestMirrorRedirect(t *testing.T) {
	data := randomBytes(100<<10, 7)
	cdn := newUpstream(t, "")
	id := cdn.put(t, data)
	m := newTestMirror(t, "basic", nil)
	// Another host for net/http, which compares names.
	target := strings.Replace(cdn.URL, "127.0.0.1", "localhost", 1)
	m.up.wrap = func(http.Handler) http.Handler {
		return http.RedirectHandler(target+blobPath(id), http.StatusTemporaryRedirect)
	}
	basic := []string{"Authorization", "Basic YWxpY2U6c2VjcmV0"}
	resp, body, err := m.do("GET", blobPath(id), basic...)
	if err != nil || resp.StatusCode != 200 || !bytes.Equal(body, data) {
		t.Fatalf("%v, %d bytes (%v)", resp, len(body), err)
	}
	if cdn.count("HEAD", "") != 1 || cdn.count("GET", "") != 1 {
		t.Errorf("asked %q", cdn.asked)
	}
	// HEAD is the client's to follow.
	if resp, _, err := m.do("HEAD", blobPath(id), basic...); err != nil || resp.StatusCode != http.StatusTemporaryRedirect ||
		resp.Header.Get("Location") != target+blobPath(id) {
		t.Errorf("HEAD: %v (%v)", resp, err)
	}
	// A store whose signatures are of GETs.
	cdn.asked = nil
	cdn.wrap = func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodHead {
				w.WriteHeader(http.StatusForbidden)
				return
			}
			h.ServeHTTP(w, r)
		})
	}
	relayed := m.requested(kindBlobRelayed)
	if resp, body, err := m.do("GET", blobPath(id), basic...); err != nil || resp.StatusCode != 200 || !bytes.Equal(body, data) {
		t.Errorf("%v, %d bytes (%v)", resp, len(body), err)
	}
	if m.requested(kindBlobRelayed) != relayed {
		t.Errorf("a blob was relayed; asked %q", cdn.asked)
	}

	// A relative one must not lead here.
	m.up.wrap = func(http.Handler) http.Handler {
		return http.RedirectHandler("/v2/elsewhere/", http.StatusTemporaryRedirect)
	}
	if resp, _, err := m.do("GET", "/v2/a/manifests/1", basic...); err != nil || resp.Header.Get("Location") != m.up.URL+"/v2/elsewhere/" {
		t.Errorf("redirected to %v (%v)", resp, err)
	}
	via := []*http.Request{httptest.NewRequest("GET", "https://a/", nil)}
	if err := checkRedirect(httptest.NewRequest("GET", "http://b/", nil), via); err == nil {
		t.Error("redirected from HTTPS to HTTP")
	}
}
