package shim

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	stdlog "log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/swarm/piece"
)

// A client pulls with its own credentials, whatever the registry asks for; blobs
// come from the registry once, and are not had without credentials.
func TestMirrorPull(t *testing.T) {
	for _, auth := range []string{"basic", "bearer"} {
		t.Run(auth, func(t *testing.T) {
			m := newTestMirror(t, "", nil)
			img, err := random.Image(200<<10, 3)
			if err != nil {
				t.Fatal(err)
			}
			put, err := name.ParseReference(m.up.host() + "/team/app:1")
			if err != nil {
				t.Fatal(err)
			}
			tr := &http.Transport{}
			defer tr.CloseIdleConnections()
			if err := remote.Write(put, img, remote.WithTransport(tr)); err != nil {
				t.Fatal(err)
			}
			m.up.auth = auth
			m.up.asked = nil

			ref, err := name.ParseReference(strings.TrimPrefix(m.url, "http://") + "/team/app:1")
			if err != nil {
				t.Fatal(err)
			}
			creds := remote.WithAuth(&authn.Basic{Username: mirrorUser, Password: mirrorPassword})
			for range 2 {
				got, err := remote.Image(ref, creds, remote.WithTransport(tr))
				if err == nil {
					err = readImage(got)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			// Three layers and the configuration.
			if n := m.up.count("GET ", "/blobs/"); n != 4 {
				t.Errorf("%d GETs of blobs at the registry, want 4: %q", n, m.up.asked)
			}
			if n := m.requested(kindBlobRelayed); n != 0 {
				t.Errorf("%d blobs were relayed", n)
			}

			if _, err := remote.Image(ref, remote.WithTransport(tr)); err == nil {
				t.Error("an image without credentials")
			}
			l, err := img.Layers()
			if err != nil {
				t.Fatal(err)
			}
			d, err := l[0].Digest()
			if err != nil {
				t.Fatal(err)
			}
			opens := m.swarm.opens
			for _, method := range []string{http.MethodGet, http.MethodHead} {
				resp, body, err := m.do(method, "/v2/team/app/blobs/"+d.String(), "Authorization", "Bearer wrong")
				direct, derr := http.Get(m.up.URL + "/v2/team/app/blobs/" + d.String())
				if err != nil || derr != nil {
					t.Fatal(err, derr)
				}
				direct.Body.Close()
				got, want := resp.Header.Values("WWW-Authenticate"), direct.Header.Values("WWW-Authenticate")
				if resp.StatusCode != http.StatusUnauthorized || !slices.Equal(got, want) {
					t.Errorf("%s: %s, challenge %q, want %q", method, resp.Status, got, want)
				}
				if method == http.MethodGet && !strings.Contains(string(body), "UNAUTHORIZED") {
					t.Errorf("the registry's explanation is lost: %q", body)
				}
			}
			http.DefaultClient.CloseIdleConnections()
			if m.swarm.opens != opens {
				t.Error("the swarm was asked for a blob that the client may not have")
			}
		})
	}
}

// readImage reads all of an image; what it reads is checked against its digests.
func readImage(img v1.Image) error {
	if _, err := img.RawConfigFile(); err != nil {
		return err
	}
	layers, err := img.Layers()
	if err != nil {
		return err
	}
	for _, l := range layers {
		r, err := l.Compressed()
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, r)
		if err := errors.Join(err, r.Close()); err != nil {
			return err
		}
	}
	return nil
}

func TestMirrorRelays(t *testing.T) {
	m := newTestMirror(t, "", nil)
	m.up.wrap = func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Docker-Content-Digest", "sha256:abc")
			w.Header().Set("Link", `</v2/a/tags/list?last=x>; rel="next"`)
			w.Header().Set("Location", "https://elsewhere.example/x?sig=1")
			w.Header().Set("Set-Cookie", "a=b")
			w.WriteHeader(http.StatusTemporaryRedirect)
			fmt.Fprintf(w, "%s %s", r.Header.Get("Accept"), r.URL.RawQuery)
		})
	}
	resp, body, err := m.do("GET", "/v2/a/tags/list?n=5&last=b", "Accept", "application/x", "Cookie", "c=d", "User-Agent", "test")
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusTemporaryRedirect || string(body) != "application/x last=b&n=5" ||
		resp.Header.Get("Docker-Content-Digest") != "sha256:abc" || resp.Header.Get("Link") != `</v2/a/tags/list?last=x>; rel="next"` ||
		resp.Header.Get("Location") != "https://elsewhere.example/x?sig=1" || resp.Header.Get("Set-Cookie") != "" {
		t.Errorf("%s %v %q", resp.Status, resp.Header, body)
	}
	h := m.up.headers[0]
	if h.Get("Cookie") != "" || h.Get("User-Agent") != "test" || h.Get("X-Forwarded-For") != "" {
		t.Errorf("the registry got %v", h)
	}

	m.up.Close()
	resp, body, err = m.do("GET", "/v2/")
	if err != nil || resp.StatusCode != http.StatusBadGateway || !strings.Contains(string(body), `"UNAVAILABLE"`) {
		t.Errorf("of a registry that is down: %v %q (%v)", resp, body, err)
	}
}

func TestMirrorNames(t *testing.T) {
	h := &hosts{}
	cfg := DefaultMirrorConfig()
	cfg.PlainHTTP = []string{"Plain.example:5000", "[::1]:80"}
	m, err := newMirror(cfg, newFakeSwarm(), h)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ query, want string }{
		{"", "https://registry-1.docker.io/v2/a/manifests/1"},
		{"?ns=docker.io", "https://registry-1.docker.io/v2/a/manifests/1"},
		{"?ns=index.docker.io", "https://registry-1.docker.io/v2/a/manifests/1"},
		{"?ns=127.0.0.1:7405", "https://registry-1.docker.io/v2/a/manifests/1"},
		{"?ns=Docker.IO", "https://registry-1.docker.io/v2/a/manifests/1"},
		{"?ns=ghcr.io", "https://ghcr.io/v2/a/manifests/1"},
		{"?ns=ghcr.io:8443&x=y%20z", "https://ghcr.io:8443/v2/a/manifests/1?x=y+z"},
		{"?ns=plain.example:5000", "http://plain.example:5000/v2/a/manifests/1"},
		{"?ns=plain.example", "https://plain.example/v2/a/manifests/1"},
		{"?ns=10.0.0.1:5000", "https://10.0.0.1:5000/v2/a/manifests/1"},
		{"?ns=%5B::1%5D:80", "http://[::1]:80/v2/a/manifests/1"},
	} {
		h.urls = nil
		w := httptest.NewRecorder()
		r := httptest.NewRequest("GET", "/v2/a/manifests/1"+tt.query, nil)
		r.Host = "127.0.0.1:7405"
		m.ServeHTTP(w, r)
		if w.Code != http.StatusOK || len(h.urls) != 1 || h.urls[0].String() != tt.want {
			t.Errorf("%s: %d, asked %v, want %s", tt.query, w.Code, h.urls, tt.want)
		}
	}
	for _, ns := range []string{
		"", "a/b", "a@b", "a:b@c", "a b", "a:0", "a:65536", "a:", ":5000", "http://a", "a?b", "a#b", "a%2fb", "..", "-a", "a..b",
		"[::1", "::1", "[zz]", "[fe80::1%25eth0]", "a\x00", "a\r\nb", strings.Repeat("a.", 200) + "a", "ä.de", "a&ns=b",
	} {
		h.urls = nil
		w := httptest.NewRecorder()
		r := httptest.NewRequest("GET", "/v2/a/blobs/sha256:"+strings.Repeat("a", 64), nil)
		r.Host = "localhost"
		r.URL.RawQuery = "ns=" + url.QueryEscape(ns)
		if ns == "a&ns=b" {
			r.URL.RawQuery = "ns=" + ns
		}
		m.ServeHTTP(w, r)
		if w.Code != http.StatusBadRequest || len(h.urls) != 0 {
			t.Errorf("ns=%q: %d, asked %v", ns, w.Code, h.urls)
		}
	}
}

func TestMirrorRefuses(t *testing.T) {
	h := &hosts{}
	m, err := newMirror(DefaultMirrorConfig(), newFakeSwarm(), h)
	if err != nil {
		t.Fatal(err)
	}
	sum := "sha256:" + strings.Repeat("a", 64)
	for _, tt := range []struct {
		method, target, host string
		want                 int
	}{
		{"GET", "/v2/", "localhost:7405", 200},
		{"HEAD", "/v2/", "127.0.0.1", 200},
		{"GET", "/v2/", "[::1]:7405", 200},
		{"GET", "/v2/", "evil.example:7405", 403},
		{"GET", "/v2/", "10.1.2.3:7405", 403},
		{"GET", "/v2/", "", 403},
		{"GET", "/v2/_catalog", "localhost", 200},
		{"GET", "/v2/a/b/c/manifests/" + sum, "localhost", 200},
		{"GET", "/v2/a/referrers/" + sum, "localhost", 200},
		{"HEAD", "/v2/a/blobs/" + sum, "localhost", 200},
		{"GET", "/v2/a/blobs/sha256:ABC", "localhost", 200}, // the registry's to refuse
		{"GET", "/v2/a/blobs/blake3:abc", "localhost", 200},
		{"POST", "/v2/a/blobs/uploads/", "localhost", 405},
		{"PUT", "/v2/a/manifests/1", "localhost", 405},
		{"DELETE", "/v2/a/manifests/1", "localhost", 405},
		{"CONNECT", "a:443", "localhost", 405},
		{"OPTIONS", "*", "localhost", 405},
		{"GET", "/", "localhost", 404},
		{"GET", "/v2", "localhost", 200},
		{"GET", "/v1/search", "localhost", 404},
		{"GET", "//v2/", "localhost", 404},
		{"GET", "/v2/a/blobs/uploads/1", "localhost", 404},
		{"GET", "/v2/../admin", "localhost", 404},
		{"GET", "/v2/a/../../blobs/" + sum, "localhost", 404},
		{"GET", "/v2/a/%2e%2e/blobs/" + sum, "localhost", 404},
		{"GET", "/v2/a%2fb/blobs/" + sum, "localhost", 404},
		{"GET", "/v2/a//b/blobs/" + sum, "localhost", 404},
		{"GET", "/v2/A/blobs/" + sum, "localhost", 404},
		{"GET", "/v2/a/blobs/" + sum + "/", "localhost", 404},
		{"GET", "/v2/a/blobs/nodigest", "localhost", 404},
		{"GET", "/v2/a/manifests/.x", "localhost", 404},
		{"GET", "/v2/" + strings.Repeat("a", 256) + "/manifests/x", "localhost", 404},
		{"GET", "/v2/?ns=a&x=%zz", "localhost", 400},
		{"GET", "/v2/?" + strings.Repeat("a", maxTarget), "localhost", 414},
		{"GET", "http://other.example/v2/", "localhost", 404},
	} {
		h.urls = nil
		w := httptest.NewRecorder()
		r := httptest.NewRequest(tt.method, tt.target, nil)
		r.Host = tt.host
		m.ServeHTTP(w, r)
		if w.Code != tt.want || (len(h.urls) > 0) != (tt.want == 200) {
			t.Errorf("%s %.80s at %s: %d, asked %v, want %d", tt.method, tt.target, tt.host, w.Code, h.urls, tt.want)
		}
	}
}

// A Mirror that is told to ask itself says so instead.
func TestMirrorLoop(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cfg := DefaultMirrorConfig()
	cfg.Upstream = "http://" + l.Addr().String()
	m, err := NewMirror(cfg, newFakeSwarm())
	if err != nil {
		t.Fatal(err)
	}
	srv := &httptest.Server{Listener: l, Config: &http.Server{Handler: m}}
	srv.Start()
	defer m.Close()
	defer srv.Close()
	tm := &mirror{T: t, url: srv.URL}
	for _, p := range []string{"/v2/", "/v2/a/blobs/sha256:" + strings.Repeat("a", 64)} {
		if resp, _, err := tm.do("GET", p); err != nil || resp.StatusCode != http.StatusLoopDetected {
			t.Errorf("%s: %v (%v)", p, resp, err)
		}
	}
}

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
				w.Header().Set("Content-Length", "10")
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

// Registries are verified by the CAs of the file, besides the system's.
func TestMirrorCA(t *testing.T) {
	reg := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Host) }))
	reg.Config.ErrorLog = stdlog.New(io.Discard, "", 0)
	reg.StartTLS()
	defer reg.Close()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: reg.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	host := strings.TrimPrefix(reg.URL, "https://")
	for _, tt := range []struct {
		ca   string
		want int
	}{{ca, 200}, {"", 502}} {
		m := newTestMirror(t, "", func(c *MirrorConfig) { c.CA = tt.ca })
		resp, body, err := m.do("GET", "/v2/?ns="+host)
		if err != nil || resp.StatusCode != tt.want || tt.want == 200 && string(body) != host {
			t.Errorf("%v %q (%v)", resp, body, err)
		}
	}
	cfg := DefaultMirrorConfig()
	cfg.CA = ca + ".missing"
	if _, err := NewMirror(cfg, newFakeSwarm()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("of a CA that is not there: %v", err)
	}
}

func TestMirrorServe(t *testing.T) {
	data := randomBytes(100<<10, 8)
	for name, tt := range map[string]struct {
		stop time.Duration
		rest bool // arrives after the end was asked for
	}{"a request ends": {time.Minute, true}, "a request is broken off": {time.Millisecond, false}} {
		t.Run(name, func(t *testing.T) {
			up := newUpstream(t, "")
			id := up.put(t, data)
			swarm := newFakeSwarm()
			b := swarm.has(id, data[:1000], nil)
			cfg := DefaultMirrorConfig()
			cfg.Upstream = up.URL
			m, err := NewMirror(cfg, swarm)
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close()
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			served := make(chan error, 1)
			go func() { served <- m.Serve(ctx, l, tt.stop) }()
			resp, err := http.Get("http://" + l.Addr().String() + blobPath(id))
			if err != nil {
				t.Fatal(err)
			}
			defer http.DefaultClient.CloseIdleConnections()
			defer resp.Body.Close()
			if _, err := io.ReadFull(resp.Body, make([]byte, 1000)); err != nil {
				t.Fatal(err)
			}
			cancel()
			if tt.rest {
				b.deliver(data[1000:], nil)
			}
			rest, err := io.ReadAll(resp.Body)
			if (err == nil) != tt.rest || tt.rest && !bytes.Equal(rest, data[1000:]) {
				t.Errorf("%d bytes (%v)", len(rest), err)
			}
			if err := <-served; err != nil {
				t.Error(err)
			}
		})
	}
}

func TestMirrorConfig(t *testing.T) {
	for _, tt := range []struct {
		change   func(*MirrorConfig)
		insecure bool
		want     string // of the one error; empty: none
	}{
		{func(*MirrorConfig) {}, false, ""},
		{func(c *MirrorConfig) { c.Listen = "" }, false, ""},
		{func(c *MirrorConfig) { c.Listen = "7405" }, false, "shim.listen"},
		{func(c *MirrorConfig) { c.Listen = ":7405" }, false, "shim.listen"},
		{func(c *MirrorConfig) { c.Listen = ":7405" }, true, ""},
		{func(c *MirrorConfig) { c.Upstream = "http://a:5000/" }, false, ""},
		{func(c *MirrorConfig) { c.Upstream = "docker.io" }, false, "shim.upstream"},
		{func(c *MirrorConfig) { c.Upstream = "" }, false, "shim.upstream"},
		{func(c *MirrorConfig) { c.Upstream = "https://u:p@a" }, false, "shim.upstream"},
		{func(c *MirrorConfig) { c.Upstream = "https://a/v2" }, false, "shim.upstream"},
		{func(c *MirrorConfig) { c.PlainHTTP = []string{"a:1", "http://b"} }, false, "shim.plain_http"},
	} {
		c := DefaultMirrorConfig()
		tt.change(&c)
		errs := c.Check("shim.", tt.insecure)
		if tt.want == "" && len(errs) > 0 || tt.want != "" && (len(errs) != 1 || !strings.Contains(errs[0].Error(), tt.want)) {
			t.Errorf("%+v: %v, want %q", c, errs, tt.want)
		}
	}
}

// Whatever is asked for, nobody but the registry that ns names, or the
// configured one, is asked, and only below /v2/.
func FuzzMirror(f *testing.F) {
	sum := digest.FromString("x").String()
	for _, s := range []string{
		"/v2/", "/v2/?ns=ghcr.io", "/v2/a/b/manifests/latest?ns=docker.io", "/v2/a/blobs/" + sum, "/v2/a/blobs/" + sum + "?ns=a:5000&ns=b",
		"/v2/..%2f..%2fx", "//evil/v2/", "/v2/@evil/", "/v2/a/tags/list?n=1&last=%00", "http://evil/v2/",
		"/v2/?ns=evil/..&ns=", "/v2/a/blobs/" + sum + "?ns=[::1]:1",
	} {
		f.Add("GET", s, "bytes=0-1")
		f.Add("HEAD", s, "bytes=-1,2-")
	}
	h := &hosts{}
	swarm := newFakeSwarm()
	id, err := piece.ParseID(sum, 1)
	if err != nil {
		f.Fatal(err)
	}
	swarm.has(id, []byte("x"), nil)
	m, err := newMirror(DefaultMirrorConfig(), swarm, h)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, method, target, rng string) {
		u, err := url.ParseRequestURI(target)
		if err != nil {
			return
		}
		h.mu.Lock()
		h.urls = nil
		h.mu.Unlock()
		swarm.mu.Lock()
		swarm.blobs = map[piece.ID]*fakeBlob{id: swarm.blobs[id]}
		swarm.mu.Unlock()
		r := &http.Request{Method: method, URL: u, RequestURI: target, Host: "localhost", Header: http.Header{"Range": {rng}}, Body: http.NoBody}
		func() {
			defer func() {
				if e := recover(); e != nil && e != http.ErrAbortHandler {
					panic(e)
				}
			}()
			m.ServeHTTP(httptest.NewRecorder(), r.WithContext(t.Context()))
		}()
		swarm.wg.Wait()
		ns := u.Query()["ns"]
		for _, a := range h.urls {
			named := a.Host == "registry-1.docker.io" && (len(ns) == 0 || strings.EqualFold(ns[0], "docker.io"))
			named = named || len(ns) == 1 && strings.EqualFold(a.Host, ns[0])
			if !named || a.Scheme != "https" || a.User != nil || !strings.HasPrefix(a.Path, "/v2/") || strings.Contains(a.Path, "..") {
				t.Errorf("%s %q asks %v", method, target, &a)
			}
			if method != "GET" && method != "HEAD" {
				t.Errorf("%s %q was relayed", method, target)
			}
		}
	})
}
