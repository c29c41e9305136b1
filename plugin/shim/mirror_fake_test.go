package shim

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	stdlog "log"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"
	digest "github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/capelin-io/capelin/internal/ociapi"
	"github.com/capelin-io/capelin/swarm/piece"
)

// fakeSwarm is Blobs in memory. What it does not have it downloads, once, and
// does not try again.
type fakeSwarm struct {
	mu    sync.Mutex
	blobs map[piece.ID]*fakeBlob
	fail  error // of Open
	opens int
	want  Want // of the last Open
	wg    sync.WaitGroup
}

type fakeBlob struct {
	mu      sync.Mutex
	data    []byte // as much of it as is here
	err     error  // after data
	changed chan struct{}
}

func newFakeSwarm() *fakeSwarm { return &fakeSwarm{blobs: map[piece.ID]*fakeBlob{}} }

// has makes a blob begin with data, and end with err if it is not nil.
func (s *fakeSwarm) has(id piece.ID, data []byte, err error) *fakeBlob {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := &fakeBlob{data: data, err: err, changed: make(chan struct{})}
	s.blobs[id] = b
	return b
}

func (b *fakeBlob) deliver(data []byte, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.data, b.err = append(slices.Clip(b.data), data...), err
	close(b.changed)
	b.changed = make(chan struct{})
}

func (s *fakeSwarm) Open(ctx context.Context, id piece.ID, want Want) (io.ReadSeekCloser, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.opens++
	s.want = want
	if s.fail != nil {
		return nil, s.fail
	}
	b := s.blobs[id]
	if b == nil {
		b = &fakeBlob{changed: make(chan struct{})}
		s.blobs[id] = b
		s.wg.Go(func() {
			body, err := want.Upstream(context.WithoutCancel(ctx), 0)
			if err == nil {
				buf := make([]byte, 32<<10)
				for err == nil {
					var n int
					n, err = body.Read(buf)
					b.deliver(buf[:n], nil)
				}
				body.Close()
				if errors.Is(err, io.EOF) {
					err = nil
				}
			}
			if err != nil {
				b.deliver(nil, err)
			}
		})
	}
	return &fakeReader{b: b, ctx: ctx, size: id.Size}, nil
}

type fakeReader struct {
	b         *fakeBlob
	ctx       context.Context
	off, size int64
}

func (r *fakeReader) Seek(off int64, whence int) (int64, error) {
	if whence != io.SeekStart {
		return 0, errors.New("not expected")
	}
	r.off = off
	return off, nil
}

func (r *fakeReader) Read(p []byte) (int, error) {
	for {
		r.b.mu.Lock()
		data, err, changed := r.b.data, r.b.err, r.b.changed
		r.b.mu.Unlock()
		switch {
		case r.off >= r.size:
			return 0, io.EOF
		case r.off < int64(len(data)):
			n := copy(p, data[r.off:])
			r.off += int64(n)
			return n, nil
		case err != nil:
			return 0, err
		}
		select {
		case <-changed:
		case <-r.ctx.Done():
			return 0, r.ctx.Err()
		}
	}
}

func (r *fakeReader) Close() error { return nil }

// upstream is a registry that asks for credentials and notes what it is asked.
type upstream struct {
	*httptest.Server
	auth    string                          // basic, bearer or "": none
	wrap    func(http.Handler) http.Handler // what the registry does, if not what it should
	mu      sync.Mutex
	asked   []string // method and path
	headers []http.Header
	h       http.Handler
}

const (
	mirrorUser, mirrorPassword, mirrorToken = "alice", "secret", "t0ken"
)

func newUpstream(t testing.TB, auth string) *upstream {
	t.Helper()
	u := &upstream{auth: auth, h: registry.New(registry.Logger(stdlog.New(io.Discard, "", 0)))}
	u.Server = httptest.NewServer(http.HandlerFunc(u.serve))
	t.Cleanup(u.Close)
	return u
}

func (u *upstream) serve(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/token" {
		if user, pass, _ := r.BasicAuth(); user != mirrorUser || pass != mirrorPassword {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]string{"token": mirrorToken})
		return
	}
	u.mu.Lock()
	u.asked = append(u.asked, r.Method+" "+r.URL.RequestURI())
	u.headers = append(u.headers, r.Header.Clone())
	wrap := u.wrap
	u.mu.Unlock()
	want, challenge := "", ""
	switch u.auth {
	case "basic":
		want = "Basic " + base64.StdEncoding.EncodeToString([]byte(mirrorUser+":"+mirrorPassword))
		challenge = `Basic realm="test"`
	case "bearer":
		want, challenge = "Bearer "+mirrorToken, fmt.Sprintf(`Bearer realm="%s/token",service="test"`,
			strings.Replace(u.URL, "127.0.0.1", "localhost", 1))
	}
	if r.Header.Get("Authorization") != want {
		w.Header().Set("WWW-Authenticate", challenge)
		w.WriteHeader(http.StatusUnauthorized)
		fmt.Fprint(w, `{"errors":[{"code":"UNAUTHORIZED"}]}`)
		return
	}
	h := u.h
	if wrap != nil {
		h = wrap(h)
	}
	h.ServeHTTP(w, r)
}

// count returns how many requests began with prefix, and had part in them.
func (u *upstream) count(prefix, part string) (n int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, a := range u.asked {
		if strings.HasPrefix(a, prefix) && strings.Contains(a, part) {
			n++
		}
	}
	return n
}

func (u *upstream) host() string { return strings.TrimPrefix(u.URL, "http://") }

// put stores a blob and returns its digest; the registry must not ask for
// credentials.
func (u *upstream) put(t testing.TB, data []byte) piece.ID {
	t.Helper()
	d := digest.FromBytes(data)
	r := httptest.NewRequest(http.MethodPost, "/v2/a/b/blobs/uploads/?digest="+d.String(), bytes.NewReader(data))
	w := httptest.NewRecorder()
	u.h.ServeHTTP(w, r)
	if w.Code != http.StatusCreated {
		t.Fatalf("putting a blob: %d %s", w.Code, w.Body)
	}
	id, err := piece.ParseID(d.String(), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// mirror is a Mirror on a server, with one registry.
type mirror struct {
	*testing.T
	*Mirror
	up    *upstream
	swarm *fakeSwarm
	url   string
}

func newTestMirror(t *testing.T, auth string, change func(*MirrorConfig)) *mirror {
	t.Helper()
	m := &mirror{T: t, up: newUpstream(t, auth), swarm: newFakeSwarm()}
	cfg := DefaultMirrorConfig()
	cfg.Upstream = m.up.URL
	cfg.PlainHTTP = []string{m.up.host()}
	if change != nil {
		change(&cfg)
	}
	var err error
	if m.Mirror, err = NewMirror(cfg, m.swarm); err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(ociapi.Patient(m.Mirror))
	m.url = srv.URL
	t.Cleanup(func() {
		srv.Close()
		m.swarm.wg.Wait()
		m.Mirror.Close()
	})
	return m
}

// do makes a request; the body is read as far as it comes.
func (m *mirror) do(method, target string, header ...string) (*http.Response, []byte, error) {
	m.Helper()
	req, err := http.NewRequestWithContext(m.Context(), method, m.url+target, nil)
	if err != nil {
		m.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		if header[i] == "Host" {
			req.Host = header[i+1]
		}
		req.Header.Add(header[i], header[i+1])
	}
	tr := &http.Transport{DisableKeepAlives: true}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp, body, err
}

func (m *mirror) requested(kind string) int {
	m.Helper()
	reg := prometheus.NewRegistry()
	reg.MustRegister(m.Mirror)
	families, err := reg.Gather()
	if err != nil {
		m.Fatal(err)
	}
	for _, f := range families {
		for _, x := range f.Metric {
			if f.GetName() == "capelin_agent_shim_requests_total" && x.Label[0].GetValue() == kind {
				return int(x.Counter.GetValue())
			}
		}
	}
	m.Fatalf("no metric of %s", kind)
	return 0
}

func blobPath(id piece.ID) string { return "/v2/a/b/blobs/" + id.Digest() }

func randomBytes(n int, seed byte) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

// hosts is a transport that answers everything itself, and notes who was asked.
type hosts struct {
	mu   sync.Mutex
	urls []url.URL
}

func (h *hosts) RoundTrip(r *http.Request) (*http.Response, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.urls = append(h.urls, *r.URL)
	return &http.Response{
		StatusCode: http.StatusOK, Status: "200 OK", Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{}, Body: io.NopCloser(strings.NewReader("x")), ContentLength: 1, Request: r,
	}, nil
}
