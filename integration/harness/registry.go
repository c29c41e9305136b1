package harness

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"golang.org/x/time/rate"
)

// Registry is a registry in the cluster behind a Proxy of ours. Pushes go
// around the proxy.
type Registry struct {
	*Proxy
	Addr string // host:port on the cluster's network, as in image names

	backend string // host:port for pushes, reached from the switch
	host    *Host
	server  *http.Server
}

// Kind is which registry serves.
type Kind int

const (
	// Distribution is the reference registry, a process of its own.
	Distribution Kind = iota
	// InProcess is go-containerregistry's, which answers open-ended ranges with 416.
	InProcess
)

// NewRegistry starts a registry.
func (c *Cluster) NewRegistry(ctx context.Context, kind Kind) (*Registry, error) {
	c.mu.Lock()
	c.registries++
	n := c.registries
	c.mu.Unlock()
	r := &Registry{
		Addr:    fmt.Sprintf("%s:%d", switchAddr, 5000+n),
		backend: fmt.Sprintf("127.0.0.1:%d", 6000+n),
		host:    c.Switch,
	}
	quiet := log.New(io.Discard, "", 0)
	transport := &http.Transport{DialContext: c.Switch.DialContext, DisableCompression: true}
	switch kind {
	case Distribution:
		name := fmt.Sprintf("registry%d", n)
		if _, err := startDistribution(ctx, c.Switch, name, filepath.Join(c.Dir, name), r.backend); err != nil {
			return nil, err
		}
	case InProcess:
		l, err := c.Switch.Listen("tcp", r.backend)
		if err != nil {
			return nil, err
		}
		s := &http.Server{Handler: registry.New(registry.Logger(quiet)), ReadHeaderTimeout: time.Minute, ErrorLog: quiet}
		c.onClose(func() { s.Close() })
		go s.Serve(l) //nolint:errcheck // ends with Close
	}
	u := &url.URL{Scheme: "http", Host: r.backend}
	r.Proxy = newProxy(&httputil.ReverseProxy{
		Rewrite: func(p *httputil.ProxyRequest) {
			p.SetURL(u)
			p.Out.Host = p.In.Host // absolute Location headers lead back here
		},
		Transport: transport,
		ErrorLog:  quiet,
	}, c.nameOf)
	l, err := c.Switch.Listen("tcp", r.Addr)
	if err != nil {
		return nil, err
	}
	r.server = &http.Server{Handler: r.Proxy, ReadHeaderTimeout: time.Minute, ErrorLog: quiet}
	c.onClose(func() {
		r.server.Close()
		transport.CloseIdleConnections()
	})
	go r.server.Serve(l) //nolint:errcheck // ends with Close
	return r, nil
}

// Push pushes an image as repo:tag with go-containerregistry's client and
// returns the name to pull it by.
func (r *Registry) Push(ctx context.Context, img *Image, repoTag string) (string, error) {
	return r.Addr + "/" + repoTag, push(ctx, r.host, r.backend, img, repoTag)
}

func push(ctx context.Context, h *Host, addr string, img *Image, repoTag string) error {
	ref, err := name.ParseReference(addr+"/"+repoTag, name.Insecure)
	if err != nil {
		return err
	}
	t := &http.Transport{DialContext: h.DialContext}
	defer t.CloseIdleConnections()
	if err := remote.Write(ref, img.V1, remote.WithTransport(t), remote.WithContext(ctx)); err != nil {
		return fmt.Errorf("pushing %s: %w", repoTag, err)
	}
	return nil
}

// startDistribution starts the reference registry on a host and waits until it
// listens on addr. Its files are below dir; those of blobs below what it returns.
func startDistribution(ctx context.Context, h *Host, name, dir, addr string) (data string, err error) {
	config := filepath.Join(dir, "config.yml")
	data = filepath.Join(dir, "data")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	if err := os.WriteFile(config, []byte(fmt.Sprintf(`version: 0.1
log: {level: error, accesslog: {disabled: true}}
storage:
  filesystem: {rootdirectory: %s, maxthreads: 100}
  delete: {enabled: true}
http: {addr: %q}
`, data, addr)), 0o644); err != nil {
		return "", err
	}
	bin, err := Tool("registry")
	if err != nil {
		return "", err
	}
	p, err := h.Start(name, []string{"OTEL_TRACES_EXPORTER=none"}, nil, bin, "serve", config)
	if err != nil {
		return "", err
	}
	return filepath.Join(data, "docker/registry/v2/blobs/sha256"), p.await(ctx, func(ctx context.Context) error {
		conn, err := h.DialContext(ctx, "tcp", addr)
		if err == nil {
			conn.Close()
		}
		return err
	})
}

// BareRegistry is the reference registry on a host of its own, with nothing in
// between: for measurements.
type BareRegistry struct {
	*Host
	Addr  string // host:port, as in image names
	blobs string
}

// NewBareRegistry makes a host and starts a registry on it.
func (c *Cluster) NewBareRegistry(ctx context.Context, name string) (*BareRegistry, error) {
	h, err := c.NewHost(name)
	if err != nil {
		return nil, err
	}
	r := &BareRegistry{Host: h, Addr: h.Addr + ":5000"}
	r.blobs, err = startDistribution(ctx, h, "registry", h.Dir, r.Addr)
	return r, err
}

// Push pushes an image as repo:tag and returns the name to pull it by.
func (r *BareRegistry) Push(ctx context.Context, img *Image, repoTag string) (string, error) {
	return r.Addr + "/" + repoTag, push(ctx, r.Host, r.Addr, img, repoTag)
}

// BlobFile is the path of a blob's file, on this machine.
func (r *BareRegistry) BlobFile(digest string) string {
	hex := strings.TrimPrefix(digest, "sha256:")
	return filepath.Join(r.blobs, hex[:2], hex, "data")
}

// Request is one line of a Proxy's log.
type Request struct {
	Client string // name of the host it came from
	Method string
	Path   string
	Repo   string // of a blob or manifest
	Blob   string // digest, if it is about a blob
	Range  string // the header, as sent
	Auth   bool   // credentials came with it

	Status     int
	Bytes      int64 // of the body, as far as it was sent
	Start      time.Time
	FirstByte  time.Time // zero: none
	End        time.Time // zero: still running
	Terminated string    // why the proxy cut it, or ""
}

func (r Request) String() string {
	s := fmt.Sprintf("%s %s %s", r.Client, r.Method, r.Path)
	if r.Range != "" {
		s += " [" + r.Range + "]"
	}
	end := "running"
	if !r.End.IsZero() {
		end = r.End.Format("05.000")
	}
	return strings.TrimSpace(fmt.Sprintf("%s → %d, %d bytes, %s to %s %s",
		s, r.Status, r.Bytes, r.Start.Format("15:04:05.000"), end, r.Terminated))
}

// Fault is what a Proxy does to a request instead of, or while, serving it.
type Fault struct {
	Status     int             // answer this at once (429, 503…), if not 0
	RetryAfter string          // header with it
	Location   string          // header with it, such as a blob store's URL
	HTML       string          // body with it
	Hold       <-chan struct{} // wait for it to be closed before the first byte of the body
	CutAfter   int64           // close the connection after so many bytes of the body, if Cut
	Cut        bool
	StallAfter int64           // stop sending after so many bytes until Stall is closed, if Stall is not nil
	Stall      <-chan struct{} //
}

// Proxy logs, limits and disturbs what passes to a registry.
type Proxy struct {
	next   http.Handler
	nameOf func(ip string) string

	mu      sync.Mutex
	log     []*Request
	changed chan struct{} // closed and replaced at each new log line or first byte
	fault   func(Request) Fault
	auth    map[string][2]string
	no206   bool
	limit   *rate.Limiter
}

func newProxy(next http.Handler, nameOf func(string) string) *Proxy {
	return &Proxy{next: next, nameOf: nameOf, changed: make(chan struct{}), auth: map[string][2]string{}}
}

// Limit caps what all blob answers together send, in bytes per second; 0: no limit.
func (p *Proxy) Limit(bytesPerSecond int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if bytesPerSecond == 0 {
		p.limit = nil
		return
	}
	p.limit = rate.NewLimiter(rate.Limit(bytesPerSecond), 64<<10)
}

// Disturb sets what happens to blob requests from now on; nil: nothing. f is
// called with what is known before an answer; it must not call the Proxy.
func (p *Proxy) Disturb(f func(Request) Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fault = f
}

// RequireAuth lets only this user into a repository, by basic authentication.
func (p *Proxy) RequireAuth(repo, user, password string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.auth[repo] = [2]string{user, password}
}

// RefuseOpenRanges answers "bytes=N-" with 416, as some registries do.
func (p *Proxy) RefuseOpenRanges(refuse bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.no206 = refuse
}

// Reset forgets the log (running requests stay out of the new one).
func (p *Proxy) Reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.log = nil
}

// Requests returns a copy of the log.
func (p *Proxy) Requests() []Request {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := make([]Request, len(p.log))
	for i, r := range p.log {
		s[i] = *r
	}
	return s
}

// Blobs returns the log's GET requests of blobs, of these digests only if any are given.
func (p *Proxy) Blobs(digests ...string) []Request {
	var s []Request
	for _, r := range p.Requests() {
		if r.Blob == "" || r.Method != http.MethodGet {
			continue
		}
		keep := len(digests) == 0
		for _, d := range digests {
			keep = keep || d == r.Blob
		}
		if keep {
			s = append(s, r)
		}
	}
	return s
}

// BlobBytes sums up the bodies of blob answers by digest.
func (p *Proxy) BlobBytes() map[string]int64 {
	m := map[string]int64{}
	for _, r := range p.Blobs() {
		m[r.Blob] += r.Bytes
	}
	return m
}

// WaitFor waits until the log satisfies cond, which sees a copy of it at each change.
func (p *Proxy) WaitFor(ctx context.Context, what string, cond func([]Request) bool) error {
	for {
		p.mu.Lock()
		changed := p.changed
		p.mu.Unlock()
		if cond(p.Requests()) {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("waiting for the registry to see %s: %w", what, ctx.Err())
		}
	}
}

func (p *Proxy) touch() { // with mu
	close(p.changed)
	p.changed = make(chan struct{})
}

var (
	blobPath     = regexp.MustCompile(`^/v2/(.+)/blobs/([a-z0-9]+:[0-9a-f]+)$`)
	manifestPath = regexp.MustCompile(`^/v2/(.+)/manifests/`)
	openRange    = regexp.MustCompile(`^bytes=(\d+)-$`)
)

func (p *Proxy) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	ip, _, _ := net.SplitHostPort(req.RemoteAddr)
	r := &Request{Client: p.nameOf(ip), Method: req.Method, Path: req.URL.Path, Range: req.Header.Get("Range"), Start: time.Now()}
	if m := blobPath.FindStringSubmatch(r.Path); m != nil {
		r.Repo, r.Blob = m[1], m[2]
	} else if m := manifestPath.FindStringSubmatch(r.Path); m != nil {
		r.Repo = m[1]
	}
	user, password, ok := req.BasicAuth()
	r.Auth = ok

	p.mu.Lock()
	want, guarded := p.auth[r.Repo]
	no206, limit, fault := p.no206, p.limit, p.fault
	p.log = append(p.log, r)
	p.touch()
	var f Fault
	if fault != nil && r.Blob != "" && r.Method == http.MethodGet {
		f = fault(*r)
	}
	p.mu.Unlock()

	pw := &proxyWriter{ResponseWriter: w, ctx: req.Context(), p: p, r: r}
	defer func() {
		p.mu.Lock()
		r.End = time.Now()
		p.touch()
		p.mu.Unlock()
	}()
	switch {
	case guarded && (!ok || subtle.ConstantTimeCompare([]byte(user+":"+password), []byte(want[0]+":"+want[1])) == 0):
		pw.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		pw.WriteHeader(http.StatusUnauthorized)
		return
	case f.Status != 0:
		if f.RetryAfter != "" {
			pw.Header().Set("Retry-After", f.RetryAfter)
		}
		if f.Location != "" {
			pw.Header().Set("Location", f.Location)
		}
		if f.HTML != "" {
			pw.Header().Set("Content-Type", "text/html; charset=utf-8")
		}
		pw.WriteHeader(f.Status)
		_, _ = io.WriteString(pw.ResponseWriter, f.HTML) // not counted: no blob's
		return
	case no206 && openRange.MatchString(r.Range):
		pw.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
		return
	}
	if r.Blob != "" && r.Method == http.MethodGet {
		pw.f, pw.limit = f, limit
	}
	req.Header.Del("Authorization") // the backend has no users
	p.next.ServeHTTP(pw, req)
	if pw.cut {
		panic(http.ErrAbortHandler) // the only way to break off an answer
	}
}

var errCut = errors.New("cut by the proxy")

// proxyWriter applies a Fault and the limit to a body, and counts it.
type proxyWriter struct {
	http.ResponseWriter
	ctx   context.Context
	p     *Proxy
	r     *Request
	f     Fault
	limit *rate.Limiter
	sent  int64
	cut   bool
}

func (w *proxyWriter) WriteHeader(status int) {
	w.p.mu.Lock()
	w.r.Status = status
	w.p.mu.Unlock()
	w.ResponseWriter.WriteHeader(status)
}

func (w *proxyWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *proxyWriter) Write(b []byte) (int, error) {
	n := 0
	for len(b) > 0 {
		c := b[:min(len(b), 32<<10)]
		switch {
		case w.f.Hold != nil && w.sent == 0:
			if err := w.wait(w.f.Hold, "held"); err != nil {
				return n, err
			}
			w.f.Hold = nil
		case w.f.Stall != nil && w.sent >= w.f.StallAfter:
			if err := w.wait(w.f.Stall, "stalled"); err != nil {
				return n, err
			}
			w.f.Stall = nil
		case w.f.Cut && w.sent >= w.f.CutAfter:
			w.cut = true
			w.terminated("cut")
			return n, errCut
		}
		if w.f.Stall != nil {
			c = c[:min(int64(len(c)), w.f.StallAfter-w.sent)]
		}
		if w.f.Cut {
			c = c[:min(int64(len(c)), w.f.CutAfter-w.sent)]
		}
		if w.limit != nil {
			if err := w.limit.WaitN(w.ctx, len(c)); err != nil {
				w.terminated("client gone")
				return n, err
			}
		}
		m, err := w.ResponseWriter.Write(c)
		n += m
		w.sent += int64(m)
		w.p.mu.Lock()
		if w.r.FirstByte.IsZero() {
			w.r.FirstByte = time.Now()
		}
		w.r.Bytes = w.sent
		w.p.touch()
		w.p.mu.Unlock()
		if err != nil {
			w.terminated("client gone")
			return n, err
		}
		if w.limit != nil {
			_ = http.NewResponseController(w.ResponseWriter).Flush()
		}
		b = b[m:]
	}
	return n, nil
}

func (w *proxyWriter) wait(c <-chan struct{}, why string) error {
	_ = http.NewResponseController(w.ResponseWriter).Flush()
	select {
	case <-c:
		return nil
	case <-w.ctx.Done():
		w.terminated("client gone while " + why)
		return w.ctx.Err()
	}
}

func (w *proxyWriter) terminated(why string) {
	w.p.mu.Lock()
	defer w.p.mu.Unlock()
	if w.r.Terminated == "" {
		w.r.Terminated = why
	}
}

// From is the first byte that the request asks for.
func (r Request) From() int64 {
	s, _, _ := strings.Cut(strings.TrimPrefix(r.Range, "bytes="), "-")
	n, _ := strconv.ParseInt(s, 10, 64)
	return n
}

// DeleteBlob takes a blob out of a repository.
func (r *Registry) DeleteBlob(ctx context.Context, repo, digest string) error {
	t := &http.Transport{DialContext: r.host.DialContext, DisableKeepAlives: true}
	req, err := http.NewRequestWithContext(ctx, http.MethodDelete, fmt.Sprintf("http://%s/v2/%s/blobs/%s", r.backend, repo, digest), nil)
	if err != nil {
		return err
	}
	resp, err := (&http.Client{Transport: t}).Do(req)
	if err != nil {
		return err
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusAccepted {
		return fmt.Errorf("deleting %s of %s: %s", digest, repo, resp.Status)
	}
	return nil
}
