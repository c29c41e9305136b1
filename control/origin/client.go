package origin

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/control/ring"
)

// How long one origin may take before the next one is asked, or the call fails.
const (
	dialTimeout   = 2 * time.Second
	statTimeout   = 15 * time.Second // a registry behind the origin may be slow
	openTimeout   = 20 * time.Second // until the answer begins
	writeTimeout  = 30 * time.Second // of what has no body: starting, cancelling, deleting
	commitTimeout = 5 * time.Minute  // one attempt; a commit that takes longer is asked for again
	stallTimeout  = 30 * time.Second // without a byte, in the middle of an answer
)

// An origin that failed is asked after all others for so long, doubling.
const (
	downMin = time.Second
	downMax = 30 * time.Second
)

// errSlow ends a request that took too long.
var errSlow = errors.New("no answer in time")

// Config says where the origins are.
type Config struct {
	// Origins are host:port, or http(s)://host:port; at least one. All clients of a
	// cluster should write them in the same way: an upload that was started by one
	// is then found by the others, and each blob is asked for at the same origin.
	Origins []string
	// TLS is for origins that are named by host:port (nil: plain HTTP) or https.
	TLS *tls.Config
}

// Client asks origins: for each blob in an order of its own, the next one if one
// fails, those that failed lately last.
type Client struct {
	http    *http.Client
	names   []string           // bases of all
	origins map[string]*remote // by base
}

// remote is one origin.
type remote struct {
	base string // "http://host:port"
	tag  string // tells its uploads from others'

	mu    sync.Mutex
	until time.Time     // it is asked last before
	wait  time.Duration // how long that was
}

// New returns a client. It does not connect yet.
func New(cfg Config) (*Client, error) {
	if len(cfg.Origins) == 0 {
		return nil, fmt.Errorf("origin client: no origin is configured: %w", errdefs.ErrInvalidArgument)
	}
	c := &Client{origins: map[string]*remote{}}
	for _, addr := range cfg.Origins {
		base, err := baseURL(addr, cfg.TLS != nil)
		if err != nil {
			return nil, err
		}
		if c.origins[base] == nil {
			sum := sha256.Sum256([]byte(base))
			c.origins[base] = &remote{base: base, tag: hex.EncodeToString(sum[:4])}
			c.names = append(c.names, base)
		}
	}
	// HTTP/1.1: blobs are large, and a connection for each moves them faster than
	// streams that share one.
	tr := &http.Transport{
		DialContext:           (&net.Dialer{Timeout: dialTimeout}).DialContext,
		TLSHandshakeTimeout:   dialTimeout,
		MaxIdleConnsPerHost:   32,
		IdleConnTimeout:       time.Minute,
		ExpectContinueTimeout: 2 * time.Second,
		DisableCompression:    true,
		ReadBufferSize:        64 << 10,
		WriteBufferSize:       64 << 10,
	}
	if cfg.TLS != nil {
		tr.TLSClientConfig = cfg.TLS.Clone()
	}
	c.http = &http.Client{Transport: tr, CheckRedirect: checkRedirect}
	return c, nil
}

// checkRedirect lets an origin name another one, that has the blob.
func checkRedirect(req *http.Request, via []*http.Request) error {
	switch {
	case len(via) > 3:
		return errors.New("more than 3 redirects")
	case req.URL.Scheme != via[0].URL.Scheme:
		return fmt.Errorf("redirected from %s to %s", via[0].URL.Scheme, req.URL.Scheme)
	}
	return nil
}

func baseURL(addr string, secure bool) (string, error) {
	scheme, host, ok := strings.Cut(addr, "://")
	if !ok {
		scheme, host = "http", addr
		if secure {
			scheme = "https"
		}
	}
	host = strings.TrimSuffix(host, "/")
	name, port, err := net.SplitHostPort(host)
	if (scheme != "http" && scheme != "https") || err != nil || name == "" || port == "" || strings.ContainsAny(host, "/?#@ ") {
		return "", fmt.Errorf("origin %q is not host:port or http(s)://host:port: %w", addr, errdefs.ErrInvalidArgument)
	}
	return scheme + "://" + host, nil
}

// Close closes idle connections. Calls that are under way go on.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Stat returns what is known of a blob. The error is errdefs.ErrNotFound only if
// every origin says that it is certainly not there.
func (c *Client) Stat(ctx context.Context, ref Ref) (Info, error) {
	if err := check(ref); err != nil {
		return Info{}, err
	}
	var info Info
	err := c.find(ctx, ref, func(o *remote) error {
		ctx, cancel := context.WithTimeoutCause(ctx, statTimeout, errSlow)
		defer cancel()
		resp, err := c.send(ctx, o, "HEAD", blobPath(ref), nil, nil)
		if err != nil {
			return err
		}
		resp.Body.Close()
		info, err = readInfo(o, resp)
		return err
	})
	return info, err
}

// Open reads n bytes of a blob from off on; a negative n: to its end. A range
// beyond the end is cut; an off beyond it is errdefs.ErrOutOfRange. The bytes are
// those that an origin gave: whoever needs them to be the blob's checks the digest.
// If an origin fails in the middle, the reader goes on with another; if none can, it
// returns the error, and never a short blob without one.
func (c *Client) Open(ctx context.Context, ref Ref, off, n int64) (io.ReadCloser, Info, error) {
	if err := check(ref); err != nil {
		return nil, Info{}, err
	}
	if off < 0 {
		return nil, Info{}, fmt.Errorf("reading %s at %d: %w", ref, off, errdefs.ErrOutOfRange)
	}
	if n == 0 { // HTTP has no such range
		info, err := c.Stat(ctx, ref)
		if err == nil && off > info.Size {
			err = fmt.Errorf("reading %s at %d of %d bytes: %w", ref, off, info.Size, errdefs.ErrOutOfRange)
		}
		if err != nil {
			return nil, Info{}, err
		}
		return http.NoBody, info, nil
	}
	r := &reader{c: c, ctx: ctx, ref: ref, off: off, n: n}
	info, err := r.open()
	if err != nil {
		return nil, Info{}, err
	}
	return r, info, nil
}

// StartUpload begins an upload to a namespace and returns its id, which is of
// lower-case hexadecimal digits and "-". errdefs.ErrFailedPrecondition if no backend
// takes the namespace. An upload is at one origin, and lost if that is.
func (c *Client) StartUpload(ctx context.Context, namespace string) (id string, err error) {
	if namespace == "" {
		return "", fmt.Errorf("starting an upload: no namespace: %w", errdefs.ErrInvalidArgument)
	}
	if err := CheckNamespace(namespace); err != nil {
		return "", fmt.Errorf("starting an upload: %w", err)
	}
	err = c.each(ctx, strconv.FormatUint(rand.Uint64(), 16), func(o *remote) error {
		ctx, cancel := context.WithTimeoutCause(ctx, writeTimeout, errSlow)
		defer cancel()
		resp, err := c.send(ctx, o, "POST", PathUploads+"?"+url.Values{ParamNamespace: {namespace}}.Encode(), nil, nil)
		if err != nil {
			return err
		}
		resp.Body.Close()
		at := resp.Header.Get(HeaderUpload)
		if err := CheckUploadID(at); err != nil {
			return fmt.Errorf("origin %s: starting an upload: %w: %w", o.base, err, errdefs.ErrUnavailable)
		}
		id = o.tag + "-" + at
		return nil
	})
	return id, err
}

// Append writes what r has to an upload, at its offset; any other off is
// errdefs.ErrOutOfRange. It returns where the upload ends now. After an error a part
// may have been written: UploadOffset says how much. Only one Append at a time
// (errdefs.ErrConflict).
func (c *Client) Append(ctx context.Context, id string, off int64, r io.Reader) (end int64, err error) {
	o, path, err := c.upload(id)
	if err != nil {
		return 0, err
	}
	if off < 0 || off > MaxSize {
		return 0, fmt.Errorf("appending at %d to upload %s: %w", off, id, errdefs.ErrOutOfRange)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	body := &sending{r: r, stall: time.AfterFunc(stallTimeout, func() { cancel(errSlow) })}
	defer body.end()
	resp, err := c.send(ctx, o, "PATCH", path+"?"+url.Values{ParamOffset: {strconv.FormatInt(off, 10)}}.Encode(), body,
		http.Header{"Content-Type": {"application/octet-stream"}, "Expect": {"100-continue"}})
	if err != nil {
		return 0, err
	}
	resp.Body.Close()
	return readNumber(o, resp, HeaderOffset)
}

// sending is the body of a request. While it is not being read, the origin takes
// nothing, or has yet to answer.
type sending struct {
	r     io.Reader
	stall *time.Timer
	mu    sync.Mutex
	ended bool
}

func (s *sending) Read(p []byte) (int, error) {
	s.arm(0)
	n, err := s.r.Read(p)
	s.arm(stallTimeout)
	return n, err
}

// arm sets the timer, or with 0 stops it; not any more after end.
func (s *sending) arm(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if d > 0 && !s.ended {
		s.stall.Reset(d)
	} else {
		s.stall.Stop()
	}
}

// end leaves the timer stopped for good.
func (s *sending) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	s.stall.Stop()
}

func (s *sending) Close() error { return nil }

// UploadOffset returns where the next byte of an upload goes.
func (c *Client) UploadOffset(ctx context.Context, id string) (int64, error) {
	o, path, err := c.upload(id)
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, writeTimeout, errSlow)
	defer cancel()
	resp, err := c.send(ctx, o, "HEAD", path, nil, nil)
	if err != nil {
		return 0, err
	}
	resp.Body.Close()
	return readNumber(o, resp, HeaderOffset)
}

// Commit ends an upload: its bytes become the blob d, which is as durable as the
// origin is configured to promise when Commit returns. errdefs.ErrInvalidArgument if
// they have another digest; the upload is still there then. It may be repeated.
func (c *Client) Commit(ctx context.Context, id string, d digest.Digest) (Info, error) {
	if err := CheckDigest(d); err != nil {
		return Info{}, err
	}
	o, path, err := c.upload(id)
	if err != nil {
		return Info{}, err
	}
	path += "?" + url.Values{ParamDigest: {string(d)}}.Encode()
	for {
		info, done, err := c.commit(ctx, o, path)
		if done || err != nil {
			return info, err
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return Info{}, fmt.Errorf("committing upload %s: %w", id, ctx.Err())
		}
	}
}

// commit asks for a commit; not done: the origin is at it still.
func (c *Client) commit(ctx context.Context, o *remote, path string) (_ Info, done bool, _ error) {
	ctx, cancel := context.WithTimeoutCause(ctx, commitTimeout, errSlow)
	defer cancel()
	resp, err := c.send(ctx, o, "PUT", path, nil, nil)
	if err != nil {
		return Info{}, false, err
	}
	resp.Body.Close()
	if resp.StatusCode == http.StatusAccepted {
		return Info{}, false, nil
	}
	info, err := readInfo(o, resp)
	return info, true, err
}

// Cancel removes an upload. It is no error if there is none.
func (c *Client) Cancel(ctx context.Context, id string) error {
	o, path, err := c.upload(id)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, writeTimeout, errSlow)
	defer cancel()
	resp, err := c.send(ctx, o, "DELETE", path, nil, nil)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// Delete removes a blob from a namespace, at every origin; when no namespace has
// it any more, or none is given, from its backend too. It is no error if it is not
// there.
func (c *Client) Delete(ctx context.Context, ref Ref) error {
	if err := check(ref); err != nil {
		return err
	}
	var errs []error
	for _, name := range c.names {
		o := c.origins[name]
		err := func() error {
			ctx, cancel := context.WithTimeoutCause(ctx, writeTimeout, errSlow)
			defer cancel()
			resp, err := c.send(ctx, o, "DELETE", blobPath(ref), nil, nil)
			if err != nil {
				return err
			}
			return resp.Body.Close()
		}()
		if err != nil && !errdefs.IsNotFound(err) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func check(ref Ref) error {
	if err := CheckDigest(ref.Digest); err != nil {
		return err
	}
	return CheckNamespace(ref.Namespace)
}

func blobPath(ref Ref) string {
	p := PathBlobs + "/" + string(ref.Digest)
	if ref.Namespace != "" {
		p += "?" + url.Values{ParamNamespace: {ref.Namespace}}.Encode()
	}
	return p
}

// upload returns the origin of an upload and the path that it has there.
func (c *Client) upload(id string) (*remote, string, error) {
	tag, at, ok := strings.Cut(id, "-")
	if !ok || CheckUploadID(at) != nil {
		return nil, "", fmt.Errorf("%q is not the id of an upload: %w", shorten(id), errdefs.ErrInvalidArgument)
	}
	for _, o := range c.origins {
		if o.tag == tag {
			return o, PathUploads + "/" + at, nil
		}
	}
	return nil, "", fmt.Errorf("upload %s: its origin is none of %s: %w", id, strings.Join(c.names, ", "), errdefs.ErrNotFound)
}

// order returns the origins in the order in which they are asked for key.
func (c *Client) order(key string) []*remote {
	now := time.Now()
	all := make([]*remote, 0, len(c.names))
	for _, name := range ring.Top(c.names, key, len(c.names)) {
		all = append(all, c.origins[name])
	}
	down := map[*remote]bool{}
	for _, o := range all {
		o.mu.Lock()
		down[o] = o.until.After(now)
		o.mu.Unlock()
	}
	slices.SortStableFunc(all, func(a, b *remote) int {
		switch {
		case down[a] == down[b]:
			return 0
		case down[b]:
			return -1
		}
		return 1
	})
	return all
}

// failed notes that an origin did not answer, answered that it does.
func (o *remote) failed() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.wait = min(max(2*o.wait, downMin), downMax)
	o.until = time.Now().Add(o.wait)
}

func (o *remote) answered() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.wait, o.until = 0, time.Time{}
}

// each calls ask with one origin after the other until one is not unavailable.
func (c *Client) each(ctx context.Context, key string, ask func(*remote) error) error {
	var errs []error
	for _, o := range c.order(key) {
		err := ask(o)
		if err == nil || !errdefs.IsUnavailable(err) {
			return err
		}
		if errs = append(errs, err); ctx.Err() != nil {
			break
		}
	}
	return errors.Join(errs...)
}

// find is each for a blob: that one origin does not have it says nothing of the
// others. If one could not say, the blob is unavailable.
func (c *Client) find(ctx context.Context, ref Ref, ask func(*remote) error) error {
	var missing, errs []error
	for _, o := range c.order(string(ref.Digest)) {
		err := ask(o)
		switch {
		case err == nil:
			return nil
		case errdefs.IsNotFound(err):
			missing = append(missing, err)
			continue
		case !errdefs.IsUnavailable(err) && !errdefs.IsDataLoss(err):
			return err
		}
		if errs = append(errs, err); ctx.Err() != nil {
			break
		}
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	return missing[0]
}

// send makes a request and returns an answer that is not an error; its body is
// to be closed.
func (c *Client) send(ctx context.Context, o *remote, method, path string, body io.ReadCloser, header http.Header) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, o.base+path, nil)
	if err != nil {
		return nil, fmt.Errorf("origin %s: %w: %w", o.base, err, errdefs.ErrInvalidArgument)
	}
	if body != nil {
		req.Body, req.ContentLength = body, -1
	}
	for k, v := range header {
		req.Header[k] = v
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if cause := context.Cause(ctx); cause == nil || errors.Is(cause, errSlow) {
			o.failed() // otherwise the caller gave up
		}
		return nil, fmt.Errorf("origin %s: %s %s: %w: %w", o.base, method, path, unwrapURL(err), errdefs.ErrUnavailable)
	}
	o.answered()
	if resp.StatusCode/100 == 2 {
		return resp, nil
	}
	defer resp.Body.Close()
	_, _ = io.CopyN(io.Discard, resp.Body, 2*MaxReason) // so that the connection can be used again
	class := ClassOf(resp.Header.Get(HeaderError))
	if class == nil {
		// Not even "not found" can be believed of whoever this is.
		return nil, fmt.Errorf("origin %s: %s %s: status %d without an origin's answer; is this an origin's address? %w", o.base, method, path, resp.StatusCode, errdefs.ErrUnavailable)
	}
	text := resp.Header.Get(HeaderReason)
	if text == "" {
		text = method + " " + path + ": " + class.Error()
	}
	return resp, &remoteError{origin: o.base, text: text[:min(len(text), MaxReason)], class: class}
}

// unwrapURL leaves out the method and URL, which our messages have.
func unwrapURL(err error) error {
	if u, ok := errors.AsType[*url.Error](err); ok {
		return u.Err
	}
	return err
}

func readInfo(o *remote, resp *http.Response) (Info, error) {
	size, err := readNumber(o, resp, HeaderSize)
	return Info{Size: size, Durable: resp.Header.Get(HeaderDurable) == "true"}, err
}

func readNumber(o *remote, resp *http.Response, header string) (int64, error) {
	n, err := strconv.ParseInt(resp.Header.Get(header), 10, 64)
	if err != nil || n < 0 || n > MaxSize {
		return 0, fmt.Errorf("origin %s: %s is %q; is this an origin's address? %w", o.base, header, shorten(resp.Header.Get(header)), errdefs.ErrUnavailable)
	}
	return n, nil
}
