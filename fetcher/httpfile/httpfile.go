package httpfile

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/internal/daemon/version"
	"github.com/capelin-io/capelin/internal/httpobject"
)

// maxRedirects is how many are followed.
const maxRedirects = 10

// probe is a digest that no blob has.
const probe = digest.Digest("sha256:0000000000000000000000000000000000000000000000000000000000000000")

// Backend is a web server.
type Backend struct {
	cfg     Config
	client  *http.Client
	backoff time.Duration // the first pause; the others grow
}

var _ fetcher.Backend = (*Backend)(nil)

// Open reads the certificates. It asks nobody.
func Open(cfg Config) (*Backend, error) {
	if errs := cfg.Check(""); errs != nil {
		return nil, fmt.Errorf("http backend: %w: %w", errors.Join(errs...), errdefs.ErrInvalidArgument)
	}
	b := &Backend{cfg: cfg.withDefaults(), backoff: 250 * time.Millisecond}
	tr := &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            (&net.Dialer{Timeout: b.cfg.Timeout.D()}).DialContext,
		TLSHandshakeTimeout:    b.cfg.Timeout.D(),
		ResponseHeaderTimeout:  b.cfg.Timeout.D(),
		MaxResponseHeaderBytes: 64 << 10,
		MaxIdleConns:           64,
		MaxIdleConnsPerHost:    16,
		IdleConnTimeout:        time.Minute,
		ReadBufferSize:         64 << 10,
		DisableCompression:     true,
	}
	if cfg.CA != "" {
		pool, err := authorities(cfg.CA)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", b.Name(), err)
		}
		tr.TLSClientConfig = &tls.Config{RootCAs: pool}
	}
	b.client = &http.Client{Transport: tr, CheckRedirect: b.checkRedirect}
	return b, nil
}

func authorities(path string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading ca: %w: %w", err, errdefs.ErrFailedPrecondition)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("ca: %s has no certificate in PEM: %w", path, errdefs.ErrFailedPrecondition)
	}
	return pool, nil
}

// Close closes idle connections. Readers that are open stay usable.
func (b *Backend) Close() error {
	b.client.CloseIdleConnections()
	return nil
}

// Name implements fetcher.Backend. It has no query, which may be a secret.
func (b *Backend) Name() string {
	name, _, _ := strings.Cut(b.cfg.URL, "?")
	return "http:" + name
}

// Capabilities implements fetcher.Backend.
func (b *Backend) Capabilities() fetcher.Capabilities { return fetcher.Capabilities{} }

func (b *Backend) fail(op, key string, err error) error {
	return fmt.Errorf("%s: %s %s: %w", b.Name(), op, key, err)
}

// blobOf returns the digest in a key.
func blobOf(key string) (digest.Digest, error) {
	if err := fetcher.CheckKey(key); err != nil {
		return "", err
	}
	e := strings.Split(key, "/")
	if len(e) == 4 {
		d := digest.Digest(e[1] + ":" + e[3])
		if k, err := fetcher.BlobKey(d); err == nil && k == key {
			return d, nil
		}
	}
	return "", fmt.Errorf("key %q is not that of a blob, blobs/<algorithm>/<two digits>/<digits>: %w", key, errdefs.ErrInvalidArgument)
}

// object is what a blob is at the server.
func (b *Backend) object(key string, d digest.Digest) *httpobject.Object {
	target := expand(b.cfg.URL, d)
	return &httpobject.Object{
		HeadRefused: []int{http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden},
		Fail:        func(op string, err error) error { return b.fail(op, key, err) },
		Send: func(ctx context.Context, r httpobject.Request) (*http.Response, error) {
			return httpobject.Retry(ctx, b.backoff, b.cfg.Retry.D(), nil, func() (*http.Response, error) { return b.ask(ctx, target, r) })
		},
	}
}

// ask sends a request once.
func (b *Backend) ask(ctx context.Context, target string, r httpobject.Request) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, r.Method, target, nil)
	if err != nil {
		return nil, fmt.Errorf("its URL cannot be asked for: %w", errdefs.ErrInvalidArgument)
	}
	own, err := readHeaders(b.cfg.HeaderFile)
	if err != nil {
		return nil, err
	}
	for _, header := range []http.Header{own, {"User-Agent": {version.Software()}, "Accept-Encoding": {"identity"}}, r.Header} {
		for k, v := range header {
			req.Header[k] = slices.Clone(v)
		}
	}
	resp, err := httpobject.Do(b.client, req.WithContext(context.WithValue(ctx, secretNames{}, own)), b.cfg.Stall.D())
	if network, ok := errors.AsType[*httpobject.NetworkError](err); ok {
		if r, ok := errors.AsType[*redirectError](network.Err); ok {
			return nil, r // it would be the same again
		}
	}
	if err != nil {
		return nil, err
	}
	if resp.StatusCode == http.StatusOK || slices.Contains(r.Accept, resp.StatusCode) {
		return resp, nil
	}
	status := httpobject.Failure(resp, nil)
	if at := resp.Request.URL; at.Host != req.URL.Host {
		return nil, fmt.Errorf("%s, to which it was redirected: %w", at.Host, status)
	}
	return nil, status
}

// secretNames is the key of a request's context under which its http.Header of secrets is.
type secretNames struct{}

// redirectError is a redirect that is not followed.
type redirectError struct{ why string }

func (e *redirectError) Error() string { return e.why }

// Is makes it errdefs.ErrFailedPrecondition.
func (e *redirectError) Is(target error) bool { return target == errdefs.ErrFailedPrecondition }

func (b *Backend) checkRedirect(next *http.Request, via []*http.Request) error {
	first := via[0].URL
	switch {
	case len(via) > maxRedirects:
		return &redirectError{fmt.Sprintf("it is redirected more than %d times", maxRedirects)}
	case next.URL.Scheme != "https" && next.URL.Scheme != first.Scheme:
		return &redirectError{fmt.Sprintf("it is redirected from %s to %s://%s: that is not followed",
			first.Scheme, next.URL.Scheme, next.URL.Host)}
	}
	next.Header.Del("Referer") // has the query
	if sameHost(next.URL, first) {
		return nil
	}
	own, _ := next.Context().Value(secretNames{}).(http.Header)
	for k := range own {
		next.Header.Del(k)
	}
	return nil
}

// sameHost reports whether a may be told what b is told.
func sameHost(a, b *url.URL) bool {
	return strings.EqualFold(a.Host, b.Host) && (a.Scheme == b.Scheme || a.Scheme == "https")
}

// Check implements fetcher.Backend: the server says that it does not have what nobody has.
func (b *Backend) Check(ctx context.Context) error {
	_, err := b.object("", probe).Stat(ctx)
	switch {
	case errdefs.IsNotFound(err):
		return nil
	case err == nil:
		err = fmt.Errorf("it has an answer for a blob that cannot exist (%s): what is not there must be 404, or every blob seems to be there: %w",
			probe, errdefs.ErrFailedPrecondition)
	case errdefs.IsUnauthorized(err), errdefs.IsPermissionDenied(err):
		err = fmt.Errorf("%w; set header_file to what it demands, or, if it says so of what it does not have, let it say 404 "+
			"(storages like S3 do so for those who may list)", err)
	}
	return fmt.Errorf("%s: asking for a blob that nobody has: %w", b.Name(), err)
}

// Stat implements fetcher.Backend.
func (b *Backend) Stat(ctx context.Context, key string) (fetcher.Info, error) {
	d, err := blobOf(key)
	if err == nil {
		err = ctx.Err()
	}
	if err == nil {
		var info httpobject.Info
		if info, err = b.object(key, d).Stat(ctx); err == nil {
			return fetcher.Info{Key: key, Size: info.Size, Modified: info.Modified}, nil
		}
	}
	return fetcher.Info{}, b.fail("looking for", key, err)
}

// Open implements fetcher.Backend.
func (b *Backend) Open(ctx context.Context, key string, off, n int64) (io.ReadCloser, fetcher.Info, error) {
	d, err := blobOf(key)
	if err == nil {
		var r io.ReadCloser
		var info httpobject.Info
		if r, info, err = b.object(key, d).Open(ctx, off, n); err == nil {
			return r, fetcher.Info{Key: key, Size: info.Size, Modified: info.Modified}, nil
		}
	}
	return nil, fetcher.Info{}, b.fail("reading", key, err)
}

func (b *Backend) readOnly(op, key string) error {
	return b.fail(op, key, fmt.Errorf("a web server is only read: %w", errdefs.ErrNotImplemented))
}

// Write implements fetcher.Backend: it is refused.
func (b *Backend) Write(_ context.Context, key string, _ int64, _ io.Reader) (fetcher.Info, error) {
	return fetcher.Info{}, b.readOnly("writing", key)
}

// WriteIf implements fetcher.Backend: it is refused.
func (b *Backend) WriteIf(_ context.Context, key string, _ []byte, _ string) (fetcher.Info, error) {
	return fetcher.Info{}, b.readOnly("writing", key)
}

// List implements fetcher.Backend: it is refused.
func (b *Backend) List(_ context.Context, prefix, _ string, _ int) ([]fetcher.Info, bool, error) {
	return nil, false, b.readOnly("listing", prefix)
}

// Delete implements fetcher.Backend: it is refused.
func (b *Backend) Delete(_ context.Context, key string) error {
	return b.readOnly("deleting", key)
}
