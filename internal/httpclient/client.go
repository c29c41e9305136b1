package httpclient

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/containerd/errdefs"
)

// Options say which servers there are, and how they are talked to.
type Options struct {
	// What the servers are, as errors call them: "origin".
	What string
	// Servers are host:port, or http(s)://host:port; at least one. One that is named
	// twice counts once.
	Servers []string
	// TLS is for servers that are named by host:port (nil: plain HTTP) or https.
	TLS *tls.Config
	// DialTimeout is for a connection, and as long again for TLS. 0: as long as the request has.
	DialTimeout time.Duration
	// Bulk: bodies are large. Each has a connection for itself (HTTP/1.1), which moves
	// them faster than streams that share one.
	Bulk bool
	// MaxIdle is how many idle connections are kept to each server.
	MaxIdle int
	// Redirects is how many are followed, to the same scheme only. 0: a redirect is the
	// answer.
	Redirects int

	// Dial, if not nil, is used instead of TCP.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
}

// Client sends requests to servers.
type Client struct {
	what    string
	servers []*Server // that are configured
	secure  bool      // whether host:port means https
	http    *http.Client

	mu     sync.Mutex
	learnt map[string]*Server // others, by base
}

// maxLearnt is how many servers that are not configured are remembered.
const maxLearnt = 256

// When a question is asked again for which no server was there.
const (
	maxRounds = 3
	pauseMin  = 100 * time.Millisecond
	pauseMax  = 400 * time.Millisecond
	retryFor  = time.Second // no round begins later than so long after the first
)

// New returns a client. It does not connect yet.
func New(o Options) (*Client, error) {
	if len(o.Servers) == 0 {
		return nil, fmt.Errorf("%s client: no %s is configured: %w", o.What, o.What, errdefs.ErrInvalidArgument)
	}
	c := &Client{what: o.What, secure: o.TLS != nil, learnt: map[string]*Server{}}
	for _, addr := range o.Servers {
		base, err := baseURL(addr, o.TLS != nil)
		if err != nil {
			return nil, fmt.Errorf("%s %q %w: %w", o.What, addr, err, errdefs.ErrInvalidArgument)
		}
		if !slices.ContainsFunc(c.servers, func(s *Server) bool { return s.Base == base }) {
			c.servers = append(c.servers, newServer(base))
		}
	}
	dial := o.Dial
	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	tr := &http.Transport{
		DialContext:           dialed(dial, o.DialTimeout),
		TLSHandshakeTimeout:   o.DialTimeout,
		MaxIdleConnsPerHost:   o.MaxIdle,
		IdleConnTimeout:       time.Minute,
		ExpectContinueTimeout: 2 * time.Second,
		DisableCompression:    true,
		ForceAttemptHTTP2:     !o.Bulk,
	}
	if o.Bulk {
		tr.ReadBufferSize, tr.WriteBufferSize = 64<<10, 64<<10
	}
	if o.TLS != nil {
		tr.TLSClientConfig = o.TLS.Clone()
	}
	c.http = &http.Client{Transport: tr, CheckRedirect: follow(o.Redirects)}
	return c, nil
}

// baseURL returns "http://host:port" of a server's address.
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
		return "", errors.New("is not host:port or http(s)://host:port")
	}
	return scheme + "://" + host, nil
}

func follow(most int) func(*http.Request, []*http.Request) error {
	return func(req *http.Request, via []*http.Request) error {
		switch {
		case most == 0:
			return http.ErrUseLastResponse
		case len(via) > most:
			return fmt.Errorf("more than %d redirects", most)
		case req.URL.Scheme != via[0].URL.Scheme:
			return fmt.Errorf("redirected from %s to %s", via[0].URL.Scheme, req.URL.Scheme)
		}
		return nil
	}
}

// Servers returns the servers that are configured, in their order.
func (c *Client) Servers() []*Server { return slices.Clone(c.servers) }

// Server returns the server at an address that was learnt, of the same form as in Options,
// and always the same one until Keep forgets it.
func (c *Client) Server(addr string) (*Server, error) {
	base, err := baseURL(addr, c.secure)
	if err != nil {
		return nil, fmt.Errorf("%s %q %w: %w", c.what, addr, err, errdefs.ErrInvalidArgument)
	}
	for _, s := range c.servers {
		if s.Base == base {
			return s, nil
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.learnt[base]
	if s == nil {
		s = newServer(base)
		if len(c.learnt) < maxLearnt {
			c.learnt[base] = s
		}
	}
	return s, nil
}

// Keep forgets all servers that were learnt but for those of which keep is true.
func (c *Client) Keep(keep func(*Server) bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	maps.DeleteFunc(c.learnt, func(_ string, s *Server) bool { return !keep(s) })
}

// At returns the server at a URL that an answer came from.
func (c *Client) At(u *url.URL) (*Server, error) { return c.Server(u.Scheme + "://" + u.Host) }

// Close closes idle connections. Calls that are under way go on.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Turns hands out servers in turn, those that did not answer lately last, until the
// caller breaks off or all have had theirs; again and again, after pauses, if none was
// there and the request may be carried out twice. It ends with ctx.
func (c *Client) Turns(ctx context.Context, servers []*Server, twice bool) iter.Seq[*Server] {
	return func(yield func(*Server) bool) {
		began := time.Now()
		pause := backoff.ExponentialBackOff{InitialInterval: pauseMin, MaxInterval: pauseMax, Multiplier: 2, RandomizationFactor: 0.5}
		for round := 1; ; round++ {
			answered := false
			for left := slices.Clone(servers); len(left) > 0; {
				// Now, not once for all: a server may have failed because of what another one was asked.
				i := healthiest(left)
				s := left[i]
				left = slices.Delete(left, i, i+1)
				before := s.absences.Load()
				if !yield(s) || ctx.Err() != nil {
					return
				}
				answered = answered || s.absences.Load() == before
			}
			if answered || !twice || round == maxRounds {
				return
			}
			wait := pause.NextBackOff()
			if time.Since(began)+wait > retryFor {
				return
			}
			select {
			case <-time.After(wait):
			case <-ctx.Done():
				return
			}
		}
	}
}

// LastRound joins the errors of Turns' last round, one of each server at most.
func (c *Client) LastRound(errs []error) error {
	return errors.Join(errs[max(0, len(errs)-len(c.servers)):]...)
}

// Do sends a request and returns the answer, whatever it says; its body is to be
// closed. A lack of an answer is errdefs.ErrUnavailable, and held against the server
// unless the caller gave up. If it is one to which s has sent the request on, it is held
// against that one, and the error is a [SentOnError].
func (c *Client) Do(ctx context.Context, s *Server, r *Request) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, r.Method, s.Base+r.Path, r.Body)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w: %w", c.what, s.Base, err, errdefs.ErrInvalidArgument)
	}
	maps.Copy(req.Header, r.Header)
	resp, err := c.http.Do(req)
	if err == nil && wantsTLS(resp) {
		resp.Body.Close()
		err = errPlain
	}
	if err == nil {
		s.answered()
		return resp, nil
	}
	at := s
	if u, ok := errors.AsType[*url.Error](err); ok {
		err = u.Err // without method and URL, which our text has
		if last, perr := url.Parse(u.URL); perr == nil {
			if to, perr := c.At(last); perr == nil && to.Base != s.Base {
				s.answered()
				at = to
			}
		}
	}
	if absent(err) {
		at.absences.Add(1)
	}
	err = fmt.Errorf("%w: %w", err, errdefs.ErrUnavailable)
	switch cause := context.Cause(ctx); {
	case errors.Is(cause, ErrTimeout):
		at.Failed()
		err = cause
	case cause == nil:
		at.Failed()
	}
	if at != s {
		err = &SentOnError{at.Base, err}
	}
	return nil, fmt.Errorf("%s %s: %s %s: %w", c.what, s.Base, r.Method, r.Path, err)
}

// errPlain: a server is asked without TLS, and takes nothing else.
var errPlain = errors.New("it wants TLS and a certificate, and is asked without: give the identity (in a file), or --ca, --cert and --key")

// wantsTLS reports whether an answer is the one of Go's servers to who speaks plain HTTP to TLS.
func wantsTLS(resp *http.Response) bool {
	if resp.StatusCode != http.StatusBadRequest || resp.TLS != nil || resp.ProtoAtLeast(1, 1) {
		return false
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, 256))
	return err == nil && strings.Contains(string(b), "HTTP request to an HTTPS server")
}

// SentOnError is the error of a server to which another one has sent a request on.
type SentOnError struct {
	To  string // its base
	Err error
}

func (e *SentOnError) Error() string { return "sent on to " + e.To + ": " + e.Err.Error() }
func (e *SentOnError) Unwrap() error { return e.Err }

// Stranger is the error for an answer that is none of such a server. Not even "not
// found" can be believed of whoever this is: it is errdefs.ErrUnavailable.
func (c *Client) Stranger(s *Server, r *Request, text string) error {
	return fmt.Errorf("%s %s: %s %s: %s; is this the address of an %s? %w",
		c.what, s.Base, r.Method, r.Path, text, c.what, errdefs.ErrUnavailable)
}

// Answered reports whether an error is what a server has answered.
func Answered(err error) bool {
	_, ok := errors.AsType[*refusal](err)
	return ok
}

// Refused is the error that a server ("origin http://host:port") answered: its text,
// and its class.
func Refused(server, text string, class error) error {
	return &refusal{server + ": " + text, class}
}

// refusal wraps a class whose own words are not part of the text.
type refusal struct {
	text  string
	class error
}

func (e *refusal) Error() string { return e.text }
func (e *refusal) Unwrap() error { return e.class }
