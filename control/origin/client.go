package origin

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/containerd/errdefs"
	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/capelin-io/capelin/internal/httpclient"
)

// How long one origin may take before the next one is asked, or the call fails.
const (
	dialTimeout   = 2 * time.Second
	statTimeout   = 15 * time.Second // a registry behind the origin may be slow
	openTimeout   = 20 * time.Second // until the answer begins
	writeTimeout  = 30 * time.Second // of what has no body: starting, cancelling, deleting
	commitTimeout = 5 * time.Minute  // one attempt
	commitAgain   = time.Minute      // an origin that says that it could not is asked again
	commitFor     = time.Hour        // one that says that it is at it
	stallTimeout  = 30 * time.Second // without a byte, in the middle of an answer
)

// Config says where the origins are.
type Config struct {
	// Origins are host:port, or http(s)://host:port; at least one. Of a ring one is
	// enough, as long as it answers: it names the others, which are reached as the
	// members reach each other. Those that are named here are best written as members
	// have them, and by all clients in the same way.
	Origins []string
	// TLS is for origins that are named by host:port (nil: plain HTTP) or https, and for
	// the members of their rings.
	TLS *tls.Config
	// Dial, if not nil, is used instead of TCP.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
}

// Client asks origins: for each blob in an order of its own, the next one if one
// fails, those that failed lately last. The order is that of the names and zones that
// origins say they have, the same for all clients, trackers and origins; until they have
// said it, and of origins that do not, it is that of their addresses.
type Client struct {
	http    *httpclient.Client
	names   []string                      // bases of those that are configured
	origins map[string]*httpclient.Server // by base
	members *members
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
	c.members = newMembers(h, c.status)
	for _, o := range h.Servers() {
		c.names = append(c.names, o.Base)
		c.origins[o.Base] = o
	}
	return c, nil
}

// Close closes idle connections. Calls that are under way go on.
func (c *Client) Close() {
	c.members.close()
	c.http.Close()
}

// Stat returns what is known of a blob. The error is errdefs.ErrNotFound only if
// every origin that is alone, and a member of each ring, says that it is certainly not there.
func (c *Client) Stat(ctx context.Context, ref Ref) (Info, error) {
	if err := check(ref); err != nil {
		return Info{}, err
	}
	var info Info
	err := c.find(ctx, ref, func(o *httpclient.Server, path string) error {
		ctx, cancel := httpclient.Within(ctx, statTimeout)
		defer cancel()
		resp, err := c.send(ctx, o, &httpclient.Request{Method: "HEAD", Path: path})
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

// Delete removes a blob from a namespace; when no namespace has it any more, or none is given,
// from its backend too. It is no error if it is not there. Every origin that is alone has to do
// it, and one member of each ring; the error says who did not.
func (c *Client) Delete(ctx context.Context, ref Ref) error {
	if err := check(ref); err != nil {
		return err
	}
	v := c.members.known(ctx)
	var t tries
	for o := range c.http.Turns(ctx, v.order(string(ref.Digest)), false) {
		g := v.ring(o)
		if t.done(g) {
			continue
		}
		err := func() error {
			ctx, cancel := httpclient.Within(ctx, writeTimeout)
			defer cancel()
			resp, err := c.send(ctx, o, &httpclient.Request{Method: "DELETE", Path: blobPath(ref)})
			if err != nil {
				return err
			}
			return resp.Body.Close()
		}()
		switch {
		case err == nil || errdefs.IsNotFound(err):
			t.settle(g)
		case errdefs.IsUnavailable(err):
			c.members.soon()
			t.failed(o, g, err)
		default: // nor would the others
			t.settle(g)
			t.failed(o, nil, err)
		}
	}
	return errors.Join(t.errs(), ctx.Err())
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

// hopPath is blobPath for who is to answer by what it has itself.
func hopPath(ref Ref) string {
	q := url.Values{ParamHop: {"1"}}
	if ref.Namespace != "" {
		q.Set(ParamNamespace, ref.Namespace)
	}
	return PathBlobs + "/" + string(ref.Digest) + "?" + q.Encode()
}

// order returns the origins in the order in which they are asked for key.
func (c *Client) order(key string) []*httpclient.Server { return c.members.now().order(key) }

// tries are the failures of one call.
type tries struct {
	settled []*group // rings that have answered for all their members
	list    []try
}

type try struct {
	o   *httpclient.Server
	g   *group
	err error
}

func (t *tries) settle(g *group) {
	if g != nil {
		t.settled = append(t.settled, g)
	}
}

func (t *tries) done(g *group) bool { return g != nil && slices.Contains(t.settled, g) }

// failed notes the last failure of an origin.
func (t *tries) failed(o *httpclient.Server, g *group, err error) {
	i := slices.IndexFunc(t.list, func(f try) bool { return f.o == o })
	if i < 0 {
		t.list = append(t.list, try{o, g, err})
	} else {
		t.list[i] = try{o, g, err}
	}
}

// errs joins the failures, but for those of rings that have answered all the same.
func (t *tries) errs() error {
	var errs []error
	for _, f := range t.list {
		if !t.done(f.g) {
			errs = append(errs, f.err)
		}
	}
	return errors.Join(errs...)
}

// find asks one origin after the other for a blob, as often as it takes. That one does not have it
// says nothing of the others, unless it answers for all of its ring. If one could not say, the blob is
// unavailable.
//
// An origin may send a request on to another one, which does not answer, as others would do, too, until
// they have noticed. So from then on each member of that ring is asked for what it has itself: one
// that has the blob is enough, and that one has not does not count.
func (c *Client) find(ctx context.Context, ref Ref, ask func(o *httpclient.Server, path string) error) error {
	v := c.members.now()
	var t tries
	var missing error
	var vain *group // that has sent a request on in vain
	for o := range c.http.Turns(ctx, v.order(string(ref.Digest)), true) {
		g := v.ring(o)
		if t.done(g) {
			continue
		}
		path, alone := blobPath(ref), g != nil && g == vain
		if alone {
			path = hopPath(ref)
		}
		err := ask(o, path)
		if err != nil && alone && !errdefs.IsDataLoss(err) && !errdefs.IsOutOfRange(err) {
			err = fmt.Errorf("%s: %w", err.Error(), errdefs.ErrUnavailable) // and nothing else any more
		}
		switch {
		case err == nil:
			return nil
		case errdefs.IsNotFound(err):
			if missing == nil {
				missing = err
			}
			t.settle(g)
			continue
		case !errdefs.IsUnavailable(err) && !errdefs.IsDataLoss(err):
			return err
		}
		c.members.soon()
		if errdefs.IsDataLoss(err) {
			t.failed(o, nil, err) // whatever others say
			continue
		}
		t.failed(o, g, err)
		if _, sent := errors.AsType[*httpclient.SentOnError](err); sent {
			vain = g
		}
	}
	if err := errors.Join(t.errs(), ctx.Err()); err != nil {
		return err
	}
	return missing
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
	at := c.answered(o, resp)
	class := ClassOf(resp.Header.Get(HeaderError))
	text := resp.Header.Get(HeaderReason)
	switch {
	case class == nil:
		err = c.http.Stranger(at, r, fmt.Sprintf("status %d without an origin's answer", resp.StatusCode))
		resp = nil
	case text == "":
		text = r.Method + " " + r.Path + ": " + class.Error()
	}
	if at != o && errdefs.IsNotFound(class) && resp.Request.URL.Query().Has(ParamHop) {
		class = errdefs.ErrUnavailable // o thought that it was there, and nobody has looked elsewhere
	}
	if class != nil {
		err = httpclient.Refused("origin "+at.Base, text[:min(len(text), MaxReason)], class)
	}
	if at != o {
		err = fmt.Errorf("origin %s: %w", o.Base, &httpclient.SentOnError{To: at.Base, Err: err})
	}
	return resp, err
}

// answered returns who has answered a request: o, or to whom it has sent it on.
func (c *Client) answered(o *httpclient.Server, resp *http.Response) *httpclient.Server {
	if resp.Request.Response == nil { // there was no redirect
		return o
	}
	if at, err := c.http.At(resp.Request.URL); err == nil {
		return at
	}
	return o
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
