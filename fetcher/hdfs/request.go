package hdfs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/containerd/errdefs"

	"github.com/capelin-io/capelin/internal/daemon/version"
	"github.com/capelin-io/capelin/internal/httpclient"
)

const (
	// maxAnswer is how much is read of an answer that is not a listing or an object, in bytes.
	maxAnswer = 256 << 10
	// maxPause is the longest pause between two rounds.
	maxPause = 3 * time.Second
	// dialTimeout is for a connection: who refuses says so at once, and who is gone should not
	// take the time of the others.
	dialTimeout = 10 * time.Second
	// continueTimeout is how long a datanode may take to say that it wants the body, before it is sent all the same.
	continueTimeout = 2 * time.Second
	// maxPlaces is how many datanodes are tried.
	maxPlaces = 4
)

// request is for a namenode.
type request struct {
	method, op string
	path       string // absolute
	query      url.Values
	// redirects: it may send the request on to a datanode. Otherwise that is an error.
	redirects bool
	// short: the answer is read before it counts, into "into" if there is something in it; into may be nil.
	short bool
	into  any
	// doubt is set, unless it is nil, if the request may have been carried out although there is an error or
	// another answer.
	doubt *bool
}

// namenode is one of the servers of the configuration.
type namenode struct {
	url   *url.URL
	token *token // nil without Kerberos
}

func newTransport(cfg Config) (*http.Transport, error) {
	tlsConfig, err := cfg.tlsConfig()
	if err != nil {
		return nil, err
	}
	return &http.Transport{
		DialContext:           (&net.Dialer{Timeout: min(dialTimeout, cfg.Timeout.D())}).DialContext,
		TLSClientConfig:       tlsConfig,
		TLSHandshakeTimeout:   cfg.Timeout.D(),
		MaxIdleConnsPerHost:   16,
		IdleConnTimeout:       30 * time.Second,
		ExpectContinueTimeout: continueTimeout,
		DisableCompression:    true,
		WriteBufferSize:       64 << 10,
		ReadBufferSize:        64 << 10,
	}, nil
}

// send asks the namenodes one after the other, the one that answered last first, until one
// answers that is not in standby; again and again after pauses, as long as Retry allows.
func (b *Backend) send(ctx context.Context, r request) (*http.Response, error) {
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.MaxInterval = b.backoff, maxPause
	return backoff.Retry(ctx, func() (*http.Response, error) { return b.round(ctx, r) },
		backoff.WithBackOff(pause), backoff.WithMaxElapsedTime(b.cfg.Retry.D()), backoff.WithMaxTries(b.tries))
}

func (b *Backend) round(ctx context.Context, r request) (*http.Response, error) {
	first := int(b.active.Load())
	var errs []error
	for i := range b.namenodes {
		at := (first + i) % len(b.namenodes)
		resp, err := b.ask(ctx, b.namenodes[at], r)
		if err == nil && r.short {
			err = answer(resp, r.into)
			r.doubtful(err != nil)
		}
		switch {
		case err == nil:
			b.active.Store(int32(at))
			return resp, nil
		case ctx.Err() != nil:
			return nil, backoff.Permanent(ctx.Err())
		}
		err = fmt.Errorf("%s: %w", b.namenodes[at].url.Host, err)
		if !errdefs.IsUnavailable(err) {
			b.active.Store(int32(at))
			return nil, backoff.Permanent(err)
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

// ask sends a request to one namenode. If it is refused it may be because of a token that is old,
// so that it is tried with a fresh one, too.
func (b *Backend) ask(ctx context.Context, n *namenode, r request) (*http.Response, error) {
	for again := false; ; again = true {
		q := maps.Clone(r.query)
		if q == nil {
			q = url.Values{}
		}
		q.Set("op", r.op)
		used, err := b.authorize(ctx, n, q)
		if err != nil {
			return nil, err
		}
		resp, err := b.exchange(ctx, n, r, q, nil)
		if n.token == nil || again || !errdefs.IsUnauthorized(err) {
			return resp, err
		}
		n.token.drop(ctx, used)
	}
}

func (b *Backend) exchange(ctx context.Context, n *namenode, r request, q url.Values, header http.Header) (*http.Response, error) {
	u := *n.url
	u.Path, u.RawQuery = "/webhdfs/v1"+r.path, q.Encode()
	req, err := http.NewRequestWithContext(ctx, r.method, u.String(), nil)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	maps.Copy(req.Header, header)
	resp, err := b.do(req)
	if err != nil {
		r.doubtful(!neverSent(err))
		return nil, err
	}
	switch {
	case resp.StatusCode == http.StatusOK, resp.StatusCode == http.StatusTemporaryRedirect && r.redirects:
		return resp, nil
	}
	err = failure(resp)
	var remote *remoteError
	r.doubtful(!errors.As(err, &remote) || remote.exception == "" && remote.code >= 500)
	return nil, err
}

func (r request) doubtful(is bool) {
	if is && r.doubt != nil {
		*r.doubt = true
	}
}

// neverSent reports whether there was no connection at all.
func neverSent(err error) bool {
	var network *networkError
	var op *net.OpError
	return errors.As(err, &network) && errors.As(network.err, &op) && op.Op == "dial"
}

// do sends a request whose answer begins in time, and whose body then does not stand still.
func (b *Backend) do(req *http.Request) (*http.Response, error) {
	ctx := req.Context()
	stall := httpclient.NewStall(ctx, b.cfg.Stall.D())
	stall.Start(b.cfg.Timeout.D())
	req.Header.Set("User-Agent", version.Software())
	resp, err := b.http.Do(req.WithContext(stall.Context()))
	if err != nil {
		err = stall.Err(err)
		stall.End()
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, &networkError{err}
	}
	resp.Body = stall.Answer(resp.Body)
	return resp, nil
}

// call sends a request whose answer is short, and reads it; into may be nil. An answer without a body leaves into as it is.
func (b *Backend) call(ctx context.Context, r request, into any) error {
	r.short, r.into = true, into
	_, err := b.send(ctx, r) //nolint:bodyclose // it is read and closed already
	return err
}

// answer reads a short answer and closes it.
func answer(resp *http.Response, into any) error {
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	switch {
	case err != nil:
		return &networkError{err}
	case len(data) > maxAnswer:
		return fmt.Errorf("its answer has more than %d bytes: %w", maxAnswer, errdefs.ErrUnavailable)
	case into == nil || len(data) == 0:
		return nil
	}
	if err := json.Unmarshal(data, into); err != nil {
		return fmt.Errorf("its answer makes no sense: %w: %w", err, errdefs.ErrUnavailable)
	}
	return nil
}

// place returns where a namenode sends a request on to. It must not be less secret than the
// way to the namenode.
func place(resp *http.Response) (*url.URL, error) {
	u, err := url.Parse(resp.Header.Get("Location"))
	asked := resp.Request.URL
	if err != nil || u.Scheme != asked.Scheme && u.Scheme != "https" || u.Host == "" || u.User != nil {
		to := "nowhere"
		if err == nil && u.Host != "" {
			to = u.Scheme + "://" + u.Host
		}
		return nil, fmt.Errorf("%s sends the request on to %s: %w", asked.Host, to, errdefs.ErrUnavailable)
	}
	return u, nil
}

// fileStatus is what is used of WebHDFS' FileStatus.
type fileStatus struct {
	PathSuffix       string `json:"pathSuffix"`
	Type             string `json:"type"`
	Length           int64  `json:"length"`
	ModificationTime int64  `json:"modificationTime"` // in ms
	FileID           int64  `json:"fileId"`           // of the inode, never used again; 0: the server does not say
}

func (s fileStatus) isFile() bool { return s.Type == "FILE" && s.Length >= 0 }

// same reports whether two answers are about the same file with the same bytes.
func (s fileStatus) same(t fileStatus) bool {
	return s.isFile() && t.isFile() && s.FileID == t.FileID && s.Length == t.Length && s.ModificationTime == t.ModificationTime
}

func (b *Backend) status(ctx context.Context, path string) (fileStatus, error) {
	var a struct{ FileStatus *fileStatus }
	if err := b.call(ctx, request{method: http.MethodGet, op: "GETFILESTATUS", path: path}, &a); err != nil {
		return fileStatus{}, err
	}
	if a.FileStatus == nil {
		return fileStatus{}, fmt.Errorf("its answer has no FileStatus: %w", errdefs.ErrUnavailable)
	}
	return *a.FileStatus, nil
}

// boolean is the answer of what can be done or not; nil: there was none.
type boolean struct {
	Boolean *bool `json:"boolean"`
}

func (a boolean) is(v bool) bool { return a.Boolean != nil && *a.Boolean == v }
