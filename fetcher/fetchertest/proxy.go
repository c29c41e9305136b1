package fetchertest

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"

	"golang.org/x/time/rate"
)

// Proxy stands between a backend and the HTTP server of its storage. It counts requests, and lets some fail.
type Proxy struct {
	t  testing.TB
	rt *http.Transport

	mu       sync.Mutex
	servers  map[string]string // host of a storage's server → URL here
	fail     func(r *http.Request) *Fault
	requests []Request
	stalled  chan struct{}
}

// Request is one that came.
type Request struct {
	Method, Path, Query string
	Header              http.Header
}

// Fault is what happens to a request.
type Fault struct {
	// Status, if not 0, is the answer, with Header and Body. The storage does not hear of the request.
	Status int
	Header http.Header
	Body   string
	// Refused: the connection is cut. The storage does not hear of the request.
	Refused bool
	// Lost: the storage does what is asked, and the connection is cut instead of its answer.
	Lost bool
	// BodyAfter, if not 0: the request's body ends after so many bytes, and both connections are cut.
	BodyAfter int64
	// AnswerAfter, if not 0: the connection is cut after so many bytes of the answer's body.
	AnswerAfter int64
	// Stalls: after AnswerAfter bytes the answer does not go on, and the connection stays.
	Stalls bool
	// BytesPerSecond, if not 0, is how fast the answer's body comes.
	BytesPerSecond int64
}

// NewProxy returns a proxy before the server at that URL, until the test ends.
func NewProxy(t testing.TB, server string) *Proxy {
	p := &Proxy{t: t, servers: map[string]string{}, stalled: make(chan struct{}, 100), rt: &http.Transport{DisableCompression: true}}
	t.Cleanup(p.rt.CloseIdleConnections)
	p.Add(server)
	return p
}

// Add puts the proxy before another server of the storage, and returns the URL that stands for it. Redirects to servers that
// the proxy is before lead to the proxy.
func (p *Proxy) Add(server string) string {
	to, err := url.Parse(server)
	if err != nil {
		p.t.Fatal(err)
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { p.serve(w, r, to) }))
	p.t.Cleanup(s.Close)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.servers[to.Host] = s.URL
	return s.URL
}

// URL returns the URL that stands for a server, which NewProxy or Add was given.
func (p *Proxy) URL(server string) string {
	u, err := url.Parse(server)
	if err != nil {
		p.t.Fatal(err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.servers[u.Host]
}

// Fail has f be asked about each request; nil, or an f that returns nil: nothing happens to it. f is called concurrently.
func (p *Proxy) Fail(f func(r *http.Request) *Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fail = f
}

// Requests returns what came since it was last called, in this order.
func (p *Proxy) Requests() []Request {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := p.requests
	p.requests = nil
	return all
}

// Stalled has a value for each answer that does not go on.
func (p *Proxy) Stalled() <-chan struct{} { return p.stalled }

func (p *Proxy) serve(w http.ResponseWriter, r *http.Request, to *url.URL) {
	p.mu.Lock()
	p.requests = append(p.requests, Request{r.Method, r.URL.EscapedPath(), r.URL.RawQuery, r.Header.Clone()})
	fail := p.fail
	p.mu.Unlock()
	f := &Fault{}
	if fail != nil {
		if asked := fail(r); asked != nil {
			f = asked
		}
	}
	switch {
	case f.Refused:
		panic(http.ErrAbortHandler)
	case f.Status != 0:
		_, _ = io.Copy(io.Discard, r.Body)
		for k, v := range f.Header {
			w.Header()[k] = v
		}
		w.WriteHeader(f.Status)
		if r.Method != http.MethodHead {
			_, _ = io.WriteString(w, f.Body)
		}
		return
	}
	p.pass(w, r, to, f)
}

// pass sends a request on, and its answer back.
func (p *Proxy) pass(w http.ResponseWriter, r *http.Request, to *url.URL, f *Fault) {
	out := r.Clone(r.Context())
	out.URL.Scheme, out.URL.Host, out.RequestURI = to.Scheme, to.Host, ""
	if r.ContentLength == 0 {
		out.Body = nil
	} else if f.BodyAfter > 0 {
		out.Body = io.NopCloser(io.MultiReader(io.LimitReader(r.Body, f.BodyAfter), cut{}))
	}
	resp, err := p.rt.RoundTrip(out)
	if err != nil || f.Lost {
		if err == nil {
			_ = resp.Body.Close()
		}
		panic(http.ErrAbortHandler)
	}
	defer resp.Body.Close()
	for k, v := range resp.Header {
		w.Header()[k] = v
	}
	if at := resp.Header.Get("Location"); at != "" {
		w.Header().Set("Location", p.relocated(at))
	}
	w.WriteHeader(resp.StatusCode)
	p.copy(r.Context(), w, resp.Body, f)
}

// relocated returns where a redirect leads to.
func (p *Proxy) relocated(location string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	for host, here := range p.servers {
		if scheme, rest, ok := strings.Cut(location, "://"); ok && (scheme == "http" || scheme == "https") {
			if tail, ok := strings.CutPrefix(rest, host); ok && (tail == "" || strings.ContainsAny(tail[:1], "/?")) {
				return here + tail
			}
		}
	}
	return location
}

func (p *Proxy) copy(ctx context.Context, w http.ResponseWriter, body io.Reader, f *Fault) {
	if f.AnswerAfter > 0 || f.Stalls {
		body = io.LimitReader(body, f.AnswerAfter)
	}
	if f.BytesPerSecond > 0 {
		limit := rate.NewLimiter(rate.Limit(f.BytesPerSecond), slowChunk)
		body = &through{ReadCloser: io.NopCloser(body), before: func(b []byte) ([]byte, error) { return b[:min(len(b), slowChunk)], nil },
			after: func(n int, err error) (int, error) {
				if werr := limit.WaitN(ctx, n); werr != nil {
					return 0, werr
				}
				return n, err
			}}
	}
	_, err := io.Copy(w, body)
	switch {
	case f.Stalls:
		_ = http.NewResponseController(w).Flush()
		p.stalled <- struct{}{}
		<-ctx.Done()
		panic(http.ErrAbortHandler)
	case f.AnswerAfter > 0:
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	case err != nil:
		panic(http.ErrAbortHandler)
	}
}

// cut is a body that breaks off.
type cut struct{}

func (cut) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }
