package httpclient

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/containerd/errdefs"
)

// NewTransport returns a transport to servers that are not Capelin's: through the environment's proxies, for bytes as they lie
// there, in bulk. A connection whose machine has vanished ends within seconds.
func NewTransport() *http.Transport {
	return &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           dialed(new(net.Dialer).DialContext, 10*time.Second),
		TLSHandshakeTimeout:   10 * time.Second,
		MaxIdleConnsPerHost:   16,
		IdleConnTimeout:       time.Minute,
		ExpectContinueTimeout: 2 * time.Second,
		DisableCompression:    true,
		ReadBufferSize:        64 << 10,
		WriteBufferSize:       64 << 10,
	}
}

// Guard sends a request by do, and ends it when nothing has moved for limit: neither what is sent, nor the answer's
// beginning, nor its body, which is to be closed.
func Guard(req *http.Request, limit time.Duration, do func(*http.Request) (*http.Response, error)) (*http.Response, error) {
	stall := NewStall(req.Context(), limit)
	out := req.WithContext(stall.Context())
	if req.Body != nil && req.Body != http.NoBody {
		out.Body = sent{stall.Sending(req.Body), req.Body}
	} else {
		stall.Start(limit)
	}
	resp, err := do(out)
	if err != nil {
		err = stall.Err(err)
		stall.End()
		return nil, err
	}
	resp.Body = stall.Answer(resp.Body)
	return resp, nil
}

// sent is read through a Stall, and closed itself.
type sent struct {
	io.Reader
	io.Closer
}

// Bounded returns a body that ends with an error, which is errdefs.ErrUnavailable, if it has more than n bytes.
func Bounded(body io.ReadCloser, n int64) io.ReadCloser { return &bounded{body, n} }

type bounded struct {
	io.ReadCloser
	left int64
}

func (b *bounded) Read(p []byte) (int, error) {
	n := 0
	var err error
	if b.left >= 0 {
		n, err = b.ReadCloser.Read(p[:min(int64(len(p)), b.left+1)])
		b.left -= int64(n)
	}
	if b.left < 0 {
		return 0, fmt.Errorf("the answer is too long: %w", errdefs.ErrUnavailable)
	}
	return n, err
}
