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
	"testing"
	"time"

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

// A client gets a gateway's tokens through the mirror, as it knows that and the registry; those of other services where they are.
func TestMirrorTokens(t *testing.T) {
	m := newTestMirror(t, "", nil)
	realm := "http://" + m.up.host() + "/v2/_token"
	m.up.wrap = func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/v2/_token" {
				fmt.Fprintf(w, "%s %s", r.Header.Get("Accept"), r.URL.RawQuery)
				return
			}
			w.Header().Set("WWW-Authenticate", `Bearer realm="`+realm+`",service="s",scope="repository:a:pull"`)
			w.WriteHeader(http.StatusUnauthorized)
		})
	}
	ns := "?ns=" + url.QueryEscape(m.up.host())
	for _, tt := range []struct{ path, realm, want string }{
		{"/v2/", realm, m.url + "/v2/_token"},
		{"/v2/" + ns, realm, m.url + "/v2/_token" + ns},
		{"/v2/a/manifests/x" + ns, realm, m.url + "/v2/_token" + ns},
		{"/v2/", "https://" + m.up.host() + "/v2/_token", m.url + "/v2/_token"}, // behind a proxy that does not say so
		{"/v2/", "https://auth.example.com/token", "https://auth.example.com/token"},
		{"/v2/", "https://auth.example.com/v2/_token", "https://auth.example.com/v2/_token"},
		{"/v2/", "http://" + m.up.host() + "/token", "http://" + m.up.host() + "/token"},
		{"/v2/", "http://u@" + m.up.host() + "/v2/_token", "http://u@" + m.up.host() + "/v2/_token"},
		{"/v2/", "%", "%"},
	} {
		realm = tt.realm
		resp, _, err := m.do("GET", tt.path)
		if err != nil {
			t.Fatal(err)
		}
		want := `Bearer realm="` + tt.want + `",service="s",scope="repository:a:pull"`
		if got := resp.Header.Get("WWW-Authenticate"); resp.StatusCode != 401 || got != want {
			t.Errorf("%s with %s: %s %s, want %s", tt.path, tt.realm, resp.Status, got, want)
		}
	}
	for _, query := range []string{"?scope=repository:a:pull", ns + "&scope=repository:a:pull"} {
		resp, body, err := m.do("GET", "/v2/_token"+query, "Accept", "x")
		if err != nil || resp.StatusCode != 200 || string(body) != "x scope=repository%3Aa%3Apull" {
			t.Errorf("a token: %v %q %v", resp, body, err)
		}
	}
	for _, method := range []string{"POST", "HEAD"} { // with a body, or for nothing
		if resp, _, err := m.do(method, "/v2/_token"); err != nil || resp.StatusCode < 400 {
			t.Errorf("%s: %v, %v", method, resp, err)
		}
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
		{"GET", "/v2/a/manifests/", "localhost", 404},
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

// The next page of a list is the same registry's, whatever its link looks like.
func TestMirrorLinks(t *testing.T) {
	m := newTestMirror(t, "", nil)
	var link string
	m.up.wrap = func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Link", link) })
	}
	ns := "ns=" + url.QueryEscape(m.up.host())
	for _, tt := range []struct{ target, link, want string }{
		{"/v2/a/tags/list?n=1&" + ns, `</v2/a/tags/list?n=1&last=x>; rel="next"`, `</v2/a/tags/list?n=1&last=x&` + ns + `>; rel="next"`},
		{"/v2/a/tags/list?n=1", `</v2/a/tags/list?n=1&last=x>; rel="next"`, `</v2/a/tags/list?n=1&last=x>; rel="next"`},
		{"/v2/a/tags/list?" + ns, `<` + m.up.URL + `/v2/a/tags/list?last=x>; rel="next"`, `</v2/a/tags/list?last=x&` + ns + `>; rel="next"`},
		{"/v2/a/tags/list?n=1", `<` + m.up.URL + `/v2/a/tags/list?last=x>; rel="next"`, `</v2/a/tags/list?last=x>; rel="next"`},
		{"/v2/_catalog?" + ns, `<?last=x>; rel="next"`, `</v2/_catalog?last=x&` + ns + `>; rel="next"`},
		{"/v2/_catalog?" + ns, `</v2/_catalog>; rel="next"`, `</v2/_catalog?` + ns + `>; rel="next"`},
		{"/v2/_catalog?" + ns, `<https://elsewhere.example/x>; rel="help"`, `<https://elsewhere.example/x>; rel="help"`},
		{"/v2/_catalog?" + ns, `</a>; rel="prev", </b>; rel="next"`, `</a?` + ns + `>; rel="prev", </b?` + ns + `>; rel="next"`},
		{"/v2/_catalog?" + ns, `nonsense`, `nonsense`},
	} {
		link = tt.link
		if resp, _, err := m.do("GET", tt.target); err != nil || resp.Header.Get("Link") != tt.want {
			t.Errorf("%s, %s: %s (%v), want %s", tt.target, tt.link, resp.Header.Get("Link"), err, tt.want)
		}
	}
}

// Methods that it does not have it names by those that it has.
func TestMirrorAllows(t *testing.T) {
	m := newTestMirror(t, "", nil)
	if resp, _, err := m.do("PUT", "/v2/a/manifests/1"); err != nil || resp.StatusCode != 405 || resp.Header.Get("Allow") != "GET, HEAD" {
		t.Errorf("%v (%v)", resp, err)
	}
}
