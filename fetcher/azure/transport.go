package azure

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/containerd/errdefs"

	"github.com/capelin-io/capelin/internal/httpclient"
)

// maxAnswer is how long an answer that is no object's bytes may be: a page of a list has 1,000
// names of up to 1,024 bytes.
const maxAnswer = 16 << 20

// transport sends requests, ends those by which nothing moves any more, and bounds answers.
type transport struct {
	base    *http.Transport
	client  *http.Client
	timeout time.Duration
	longest int64 // answer, in bytes
}

func newTransport() *transport {
	base := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
		TLSHandshakeTimeout:   10 * time.Second,
		MaxIdleConnsPerHost:   16,
		IdleConnTimeout:       time.Minute,
		ExpectContinueTimeout: 2 * time.Second,
		DisableCompression:    true, // bytes are wanted as they lie there
		ReadBufferSize:        64 << 10,
		WriteBufferSize:       64 << 10,
	}
	refuse := func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &transport{base, &http.Client{Transport: base, CheckRedirect: refuse}, stallLimit, maxAnswer}
}

// Do implements policy.Transporter.
func (t *transport) Do(req *http.Request) (*http.Response, error) {
	stall := httpclient.NewStall(req.Context(), t.timeout)
	out := req.WithContext(stall.Context())
	if req.Body != nil && req.Body != http.NoBody {
		out.Body = body{stall.Sending(req.Body), req.Body}
	} else {
		stall.Start(t.timeout)
	}
	resp, err := t.client.Do(out)
	if err != nil {
		err = stall.Err(err)
		stall.End()
		return nil, err
	}
	resp.Body = stall.Answer(resp.Body)
	if req.Method != http.MethodGet || resp.StatusCode >= 300 || req.URL.Query().Has("comp") || req.URL.Query().Has("restype") {
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

// signature is a policy that adds a shared access signature, which is read anew from its file each time.
type signature struct{ file string }

func (s signature) Do(req *policy.Request) (*http.Response, error) {
	text, err := readCredentials(s.file)
	if err != nil {
		return nil, err
	}
	u := req.Raw().URL
	sas, err := url.ParseQuery(strings.TrimPrefix(text, "?"))
	if err != nil || !sas.Has("sig") {
		return nil, fmt.Errorf("%s has no shared access signature any more: %w", s.file, errdefs.ErrUnauthenticated)
	}
	q := u.Query()
	for k, v := range sas {
		q[k] = v
	}
	u.RawQuery = strings.ReplaceAll(q.Encode(), "+", "%20")
	return req.Next()
}

// readCredentials returns what is in the file, which is short.
func readCredentials(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", fmt.Errorf("credentials: %w: %w", err, errdefs.ErrUnauthenticated)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, 64<<10))
	if err != nil {
		return "", fmt.Errorf("credentials: %w: %w", err, errdefs.ErrUnauthenticated)
	}
	return strings.TrimSpace(string(data)), nil
}
