package gcs

import (
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/containerd/errdefs"

	"github.com/capelin-io/capelin/internal/httpclient"
)

// maxAnswer is how long an answer that is no object's bytes may be: a page of a list has 1,000
// names of up to 1,024 bytes.
const maxAnswer = 16 << 20

// transport is where all requests come through. It bounds answers, ends what stands still, and sends nothing, a
// token least of all, to another host than the configured one, whatever that says of where an upload goes on.
type transport struct {
	base    *http.Transport
	host    *url.URL
	timeout time.Duration
	longest int64 // answer, in bytes
}

func newTransport(endpoint string, timeout time.Duration) *transport {
	host, _ := url.Parse(endpoint) // Config.Check has done so before
	return &transport{
		base:    httpclient.NewTransport(),
		host:    host,
		timeout: timeout,
		longest: maxAnswer,
	}
}

func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme != t.host.Scheme || req.URL.Host != t.host.Host {
		if req.Body != nil {
			req.Body.Close()
		}
		return nil, fmt.Errorf("the storage sends us on to %s://%s, which is not the endpoint: %w",
			req.URL.Scheme, req.URL.Host, errdefs.ErrFailedPrecondition)
	}
	resp, err := httpclient.Guard(req, t.timeout, func(r *http.Request) (*http.Response, error) {
		return t.base.RoundTrip(r.Clone(r.Context())) // a RoundTripper does not change what it is given
	})
	if err != nil {
		return nil, err
	}
	resp.Request = req
	if req.URL.Query().Get("alt") != "media" || resp.StatusCode >= 300 {
		resp.Body = httpclient.Bounded(resp.Body, t.longest)
	}
	return resp, nil
}
