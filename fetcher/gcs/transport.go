package gcs

import (
	"fmt"
	"io"
	"net"
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
		base: &http.Transport{
			Proxy:                 http.ProxyFromEnvironment,
			DialContext:           (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
			TLSHandshakeTimeout:   10 * time.Second,
			MaxIdleConnsPerHost:   16,
			IdleConnTimeout:       time.Minute,
			ExpectContinueTimeout: 2 * time.Second,
			DisableCompression:    true, // bytes are wanted as they lie there
			ReadBufferSize:        64 << 10,
			WriteBufferSize:       64 << 10,
		},
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
	stall := httpclient.NewStall(req.Context(), t.timeout)
	asked := req.Clone(stall.Context())
	if req.Body != nil && req.Body != http.NoBody {
		asked.Body = body{stall.Sending(req.Body), req.Body}
	} else {
		stall.Start(t.timeout)
	}
	resp, err := t.base.RoundTrip(asked)
	if err != nil {
		err = stall.Err(err)
		stall.End()
		return nil, err
	}
	resp.Request = req
	resp.Body = stall.Answer(resp.Body)
	if req.URL.Query().Get("alt") != "media" || resp.StatusCode >= 300 {
		resp.Body = &bounded{resp.Body, t.longest}
	}
	return resp, nil
}

// body is read through a Stall, and closed itself.
type body struct {
	io.Reader
	io.Closer
}

// bounded is an answer that ends with an error if it is too long.
type bounded struct {
	io.ReadCloser
	left int64
}

func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p[:min(int64(len(p)), b.left+1)])
	if b.left -= int64(n); b.left < 0 {
		return 0, fmt.Errorf("the answer is too long: %w", errdefs.ErrUnavailable)
	}
	return n, err
}
