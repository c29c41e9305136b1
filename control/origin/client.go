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
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	lru "github.com/hashicorp/golang-lru/v2"
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/control/ring"
	"github.com/capelin-io/capelin/internal/httpclient"
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

// Config says where the origins are.
type Config struct {
	// Origins are host:port, or http(s)://host:port; at least one. All clients of a
	// cluster should write them in the same way: an upload that was started by one
	// is then found by the others, and each blob is asked for at the same origin.
	Origins []string
	// TLS is for origins that are named by host:port (nil: plain HTTP) or https.
	TLS *tls.Config
	// Dial, if not nil, is used instead of TCP.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
}

// Client asks origins: for each blob in an order of its own, the next one if one
// fails, those that failed lately last.
type Client struct {
	http    *httpclient.Client
	names   []string                      // bases of all
	origins map[string]*httpclient.Server // by base
	// moved are uploads that go on at another origin than the one that gave out their id.
	moved *lru.Cache[string, *httpclient.Server]
}

// maxMoved is how many uploads a client remembers to have moved; others are found again.
const maxMoved = 1024

// New returns a client. It does not connect yet.
func New(cfg Config) (*Client, error) {
	h, err := httpclient.New(httpclient.Options{
		What: "origin", Servers: cfg.Origins, TLS: cfg.TLS,
		DialTimeout: dialTimeout, Bulk: true, MaxIdle: 32,
		Redirects: 3, // an origin may name another one, that has the blob
		Dial:      cfg.Dial,
	})
	if err != nil {
		return nil, err
	}
	moved, err := lru.New[string, *httpclient.Server](maxMoved)
	if err != nil {
		return nil, err
	}
	c := &Client{http: h, origins: map[string]*httpclient.Server{}, moved: moved}
	for _, o := range h.Servers() {
		c.names = append(c.names, o.Base)
		c.origins[o.Base] = o
	}
	return c, nil
}

// tagOf tells an origin's uploads from others'.
func tagOf(o *httpclient.Server) string {
	sum := sha256.Sum256([]byte(o.Base))
	return hex.EncodeToString(sum[:4])
}

// Close closes idle connections. Calls that are under way go on.
func (c *Client) Close() { c.http.Close() }

// Stat returns what is known of a blob. The error is errdefs.ErrNotFound only if
// every origin says that it is certainly not there.
func (c *Client) Stat(ctx context.Context, ref Ref) (Info, error) {
	if err := check(ref); err != nil {
		return Info{}, err
	}
	var info Info
	err := c.find(ctx, ref, func(o *httpclient.Server) error {
		ctx, cancel := httpclient.Within(ctx, statTimeout)
		defer cancel()
		resp, err := c.send(ctx, o, &httpclient.Request{Method: "HEAD", Path: blobPath(ref)})
		if err != nil {
			return err
		}
		resp.Body.Close()
		info, err = c.readInfo(o, resp)
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
// lower-case hexadecimal digits and "-". It is begun where the blob d belongs, if that is not ""; it may
// become another one. errdefs.ErrFailedPrecondition if no backend takes the namespace. An upload is
// at one origin, and at its mirrors if that is in a ring. After an error that is
// errdefs.ErrUnavailable, UploadOffset finds out where it goes on.
func (c *Client) StartUpload(ctx context.Context, namespace string, d digest.Digest) (id string, err error) {
	if namespace == "" {
		return "", fmt.Errorf("starting an upload: no namespace: %w", errdefs.ErrInvalidArgument)
	}
	if err := CheckNamespace(namespace); err != nil {
		return "", fmt.Errorf("starting an upload: %w", err)
	}
	key, q := strconv.FormatUint(rand.Uint64(), 16), url.Values{ParamNamespace: {namespace}}
	if CheckDigest(d) == nil { // else Commit will say so
		key = string(d)
		q.Set(ParamDigest, key)
	}
	err = c.each(ctx, key, func(o *httpclient.Server) error {
		at, err := c.startAt(ctx, o, q)
		if errdefs.IsInvalidArgument(err) && q.Has(ParamDigest) { // of version 1
			q.Del(ParamDigest)
			at, err = c.startAt(ctx, o, q)
		}
		if err == nil {
			id = tagOf(o) + "-" + at
		}
		return err
	})
	return id, err
}

// startAt begins an upload at one origin, and returns the id that it has there.
func (c *Client) startAt(ctx context.Context, o *httpclient.Server, q url.Values) (string, error) {
	ctx, cancel := httpclient.Within(ctx, writeTimeout)
	defer cancel()
	resp, err := c.send(ctx, o, &httpclient.Request{Method: "POST", Path: PathUploads + "?" + q.Encode()})
	if err != nil {
		return "", err
	}
	resp.Body.Close()
	at := resp.Header.Get(HeaderUpload)
	if err := CheckUploadID(at); err != nil {
		return "", fmt.Errorf("origin %s: starting an upload: %w: %w", o.Base, err, errdefs.ErrUnavailable)
	}
	return at, nil
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
	stall := httpclient.NewStall(ctx, stallTimeout)
	defer stall.End()
	resp, err := c.send(stall.Context(), o, &httpclient.Request{
		Method: "PATCH", Path: path + "?" + url.Values{ParamOffset: {strconv.FormatInt(off, 10)}}.Encode(), Body: stall.Sending(r),
		Header: http.Header{"Content-Type": {"application/octet-stream"}, "Expect": {"100-continue"}},
	})
	if err != nil {
		return 0, err
	}
	resp.Body.Close()
	return c.readNumber(o, resp, HeaderOffset)
}

// UploadOffset returns where the next byte of an upload goes. If its origin does not answer, and
// another member of its ring has a copy, the upload goes on there, where it may be shorter.
func (c *Client) UploadOffset(ctx context.Context, id string) (int64, error) {
	at, path, err := c.upload(id)
	if err != nil {
		return 0, err
	}
	off, err := c.offsetAt(ctx, at, id, path)
	if !errdefs.IsUnavailable(err) {
		return off, err
	}
	for o := range c.http.Turns(ctx, c.order(id), false) {
		if o == at {
			continue
		}
		if off, oerr := c.offsetAt(ctx, o, id, path); oerr == nil {
			return off, nil
		}
	}
	return 0, err // what others say is of no consequence: the upload's own origin may come back
}

// offsetAt asks one origin, which may send the question on to the one that has the upload.
func (c *Client) offsetAt(ctx context.Context, o *httpclient.Server, id, path string) (int64, error) {
	ctx, cancel := httpclient.Within(ctx, writeTimeout)
	defer cancel()
	resp, err := c.send(ctx, o, &httpclient.Request{Method: "HEAD", Path: path})
	if err != nil {
		return 0, err
	}
	resp.Body.Close()
	off, err := c.readNumber(o, resp, HeaderOffset)
	if err == nil {
		c.found(id, o, resp.Request.URL)
	}
	return off, err
}

// found remembers where an upload is: at o, or at another origin whose URL an answer has.
func (c *Client) found(id string, o *httpclient.Server, at *url.URL) {
	if there := c.origins[at.Scheme+"://"+at.Host]; there != nil {
		o = there
	}
	if tag, _, _ := strings.Cut(id, "-"); tag == tagOf(o) {
		c.moved.Remove(id)
	} else {
		c.moved.Add(id, o)
	}
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
		if errdefs.IsUnavailable(err) {
			if at, moved := c.elsewhere(ctx, id, o); moved {
				o = at
				continue
			}
		}
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

// elsewhere looks for an upload after its origin has failed.
func (c *Client) elsewhere(ctx context.Context, id string, was *httpclient.Server) (at *httpclient.Server, moved bool) {
	if _, err := c.UploadOffset(ctx, id); err != nil {
		return nil, false
	}
	at, _, err := c.upload(id)
	return at, err == nil && at != was
}

// commit asks for a commit; not done: the origin is at it still.
func (c *Client) commit(ctx context.Context, o *httpclient.Server, path string) (_ Info, done bool, _ error) {
	ctx, cancel := httpclient.Within(ctx, commitTimeout)
	defer cancel()
	resp, err := c.send(ctx, o, &httpclient.Request{Method: "PUT", Path: path})
	if err != nil {
		return Info{}, false, err
	}
	resp.Body.Close()
	if resp.StatusCode == http.StatusAccepted {
		return Info{}, false, nil
	}
	info, err := c.readInfo(o, resp)
	return info, true, err
}

// Cancel removes an upload. It is no error if there is none.
func (c *Client) Cancel(ctx context.Context, id string) error {
	o, path, err := c.upload(id)
	if err != nil {
		return err
	}
	ctx, cancel := httpclient.Within(ctx, writeTimeout)
	defer cancel()
	resp, err := c.send(ctx, o, &httpclient.Request{Method: "DELETE", Path: path})
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
			ctx, cancel := httpclient.Within(ctx, writeTimeout)
			defer cancel()
			resp, err := c.send(ctx, o, &httpclient.Request{Method: "DELETE", Path: blobPath(ref)})
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
func (c *Client) upload(id string) (*httpclient.Server, string, error) {
	tag, at, ok := strings.Cut(id, "-")
	if !ok || CheckUploadID(at) != nil {
		return nil, "", fmt.Errorf("%q is not the id of an upload: %w", shorten(id), errdefs.ErrInvalidArgument)
	}
	if o, ok := c.moved.Get(id); ok {
		return o, PathUploads + "/" + at, nil
	}
	for _, o := range c.origins {
		if tagOf(o) == tag {
			return o, PathUploads + "/" + at, nil
		}
	}
	return nil, "", fmt.Errorf("upload %s: its origin is none of %s: %w", id, strings.Join(c.names, ", "), errdefs.ErrNotFound)
}

// order returns the origins in the order in which they are asked for key.
func (c *Client) order(key string) []*httpclient.Server {
	all := make([]*httpclient.Server, 0, len(c.names))
	for _, name := range ring.Top(c.names, key, len(c.names)) {
		all = append(all, c.origins[name])
	}
	return all
}

// each calls ask with one origin after the other until one is not unavailable. It asks
// none twice: what ask asks for may have been done although no answer came.
func (c *Client) each(ctx context.Context, key string, ask func(*httpclient.Server) error) error {
	var errs []error
	for o := range c.http.Turns(ctx, c.order(key), false) {
		err := ask(o)
		if err == nil || !errdefs.IsUnavailable(err) {
			return err
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// find is each for reading a blob, as often as it takes: that one origin does not have it
// says nothing of the others. If one could not say, the blob is unavailable.
func (c *Client) find(ctx context.Context, ref Ref, ask func(*httpclient.Server) error) error {
	var missing, errs []error
	for o := range c.http.Turns(ctx, c.order(string(ref.Digest)), true) {
		err := ask(o)
		switch {
		case err == nil:
			return nil
		case errdefs.IsNotFound(err):
			missing = append(missing, err)
		case errdefs.IsUnavailable(err) || errdefs.IsDataLoss(err):
			errs = append(errs, err)
		default:
			return err
		}
	}
	if len(errs) > 0 {
		return c.http.LastRound(errs)
	}
	return missing[0]
}

// send makes a request and returns an answer that is not an error; its body is
// to be closed.
func (c *Client) send(ctx context.Context, o *httpclient.Server, r *httpclient.Request) (*http.Response, error) {
	resp, err := c.http.Do(ctx, o, r)
	if err != nil || resp.StatusCode/100 == 2 {
		return resp, err
	}
	defer resp.Body.Close()
	_, _ = io.CopyN(io.Discard, resp.Body, 2*MaxReason)  // so that the connection can be used again
	if resp.StatusCode == http.StatusTemporaryRedirect { // and the body cannot be sent again
		text := fmt.Sprintf("%s %s: another origin has it: %s", r.Method, r.Path, shorten(resp.Header.Get("Location")))
		return resp, httpclient.Refused("origin "+o.Base, text, errdefs.ErrUnavailable)
	}
	class := ClassOf(resp.Header.Get(HeaderError))
	if class == nil {
		return nil, c.http.Stranger(o, r, fmt.Sprintf("status %d without an origin's answer", resp.StatusCode))
	}
	text := resp.Header.Get(HeaderReason)
	if text == "" {
		text = r.Method + " " + r.Path + ": " + class.Error()
	}
	return resp, httpclient.Refused("origin "+o.Base, text[:min(len(text), MaxReason)], class)
}

func (c *Client) readInfo(o *httpclient.Server, resp *http.Response) (Info, error) {
	size, err := c.readNumber(o, resp, HeaderSize)
	return Info{Size: size, Durable: resp.Header.Get(HeaderDurable) == "true"}, err
}

func (c *Client) readNumber(o *httpclient.Server, resp *http.Response, header string) (int64, error) {
	n, err := strconv.ParseInt(resp.Header.Get(header), 10, 64)
	if err != nil || n < 0 || n > MaxSize {
		asked := &httpclient.Request{Method: resp.Request.Method, Path: resp.Request.URL.RequestURI()}
		return 0, c.http.Stranger(o, asked, fmt.Sprintf("%s is %q", header, shorten(resp.Header.Get(header))))
	}
	return n, nil
}
