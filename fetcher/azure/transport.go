package azure

import (
	"fmt"
	"io"
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
	base := httpclient.NewTransport()
	refuse := func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &transport{base, &http.Client{Transport: base, CheckRedirect: refuse}, stallLimit, maxAnswer}
}

// Do implements policy.Transporter.
func (t *transport) Do(req *http.Request) (*http.Response, error) {
	resp, err := httpclient.Guard(req, t.timeout, t.client.Do)
	if err != nil {
		return nil, err
	}
	if req.Method != http.MethodGet || resp.StatusCode >= 300 || req.URL.Query().Has("comp") || req.URL.Query().Has("restype") {
		resp.Body = httpclient.Bounded(resp.Body, t.longest)
	}
	return resp, nil
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
