package image

import (
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
)

// meter counts the blobs that pass through a transport.
type meter struct {
	next http.RoundTripper
	up   atomic.Int64 // bytes of blobs sent
	down atomic.Int64 // and received

	mu    sync.Mutex
	there map[string]bool          // blobs that the registry had when it was asked, or took from another repository
	sent  map[string]bool          // blobs that it took from us
	got   map[string]*atomic.Int64 // bytes received of a blob
}

func newMeter(next http.RoundTripper) *meter {
	return &meter{next: next, there: map[string]bool{}, sent: map[string]bool{}, got: map[string]*atomic.Int64{}}
}

// maxRedirects is as in net/http, whose limit go-containerregistry overrides.
const maxRedirects = 10

var blobURL = regexp.MustCompile(`/v2/.+/blobs/([a-z0-9]+:[a-f0-9]+)$`)

func (m *meter) RoundTrip(req *http.Request) (*http.Response, error) {
	upload := req.Body != nil && (req.Method == http.MethodPatch || req.Method == http.MethodPut) &&
		!strings.Contains(req.URL.Path, "/manifests/")
	if upload {
		req = req.Clone(req.Context())
		req.Body = counted{req.Body, []*atomic.Int64{&m.up}}
	}
	first := req // of a chain of redirects
	for n := 0; first.Response != nil && first.Response.Request != nil; n++ {
		if n == maxRedirects {
			if req.Body != nil {
				req.Body.Close()
			}
			return nil, fmt.Errorf("%s: more than %d redirects", req.URL.Redacted(), maxRedirects)
		}
		first = first.Response.Request
	}
	resp, err := m.next.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	blob, query := blobURL.FindStringSubmatch(first.URL.Path), req.URL.Query()
	switch {
	case blob != nil && req.Method == http.MethodHead && resp.StatusCode == http.StatusOK:
		m.there[blob[1]] = true
	case req.Method == http.MethodPost && query.Get("mount") != "" && resp.StatusCode == http.StatusCreated:
		m.there[query.Get("mount")] = true
	case req.Method == http.MethodPut && query.Get("digest") != "" && resp.StatusCode == http.StatusCreated:
		m.sent[query.Get("digest")] = true
	case blob != nil && req.Method == http.MethodGet && (resp.StatusCode == http.StatusOK || resp.StatusCode == http.StatusPartialContent):
		if m.got[blob[1]] == nil {
			m.got[blob[1]] = &atomic.Int64{}
		}
		resp.Body = counted{resp.Body, []*atomic.Int64{&m.down, m.got[blob[1]]}}
	}
	return resp, nil
}

// took reports whether the registry took the blob from us.
func (m *meter) took(digest string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.sent[digest]
}

// gave reports whether the registry gave us all of a blob.
func (m *meter) gave(digest string, size int64) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.got[digest]
	return n != nil && n.Load() >= size
}

// counted counts what is read.
type counted struct {
	io.ReadCloser
	ns []*atomic.Int64
}

func (c counted) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	for _, x := range c.ns {
		x.Add(int64(n))
	}
	return n, err
}
