package replicate

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"cuelabs.dev/go/oci/ociregistry"
	"cuelabs.dev/go/oci/ociregistry/ociauth"
	"cuelabs.dev/go/oci/ociregistry/ociclient"
	"github.com/containerd/errdefs"
	lru "github.com/hashicorp/golang-lru/v2"
	digest "github.com/opencontainers/go-digest"
	"golang.org/x/time/rate"

	"github.com/capelin-io/capelin/control/index"
	"github.com/capelin-io/capelin/internal/daemon/version"
	"github.com/capelin-io/capelin/internal/httpclient"
	"github.com/capelin-io/capelin/internal/keylock"
)

const (
	// stall ends a request by which nothing moves.
	stall = time.Minute
	// chunk is how much of a blob is sent in one request, and again if that is broken off.
	chunk = 16 << 20
	// burst is how many bytes go at once, however low the bandwidth is.
	burst = 256 << 10
	// whoFor is how long it is believed what a registry is.
	whoFor = time.Minute
)

// remote is the registry that a rule names. It is safe for concurrent use.
type remote struct {
	rule  *Rule
	base  string
	reg   ociregistry.Interface
	http  *http.Client
	limit *rate.Limiter
	close func()
	sent  *atomic.Int64 // bytes of blobs

	// mounts are where at the remote blobs are that were brought there.
	mounts *lru.Cache[digest.Digest, string]
	// subjects are those whose list of referrers is written.
	subjects keylock.Locks[string]

	mu      sync.Mutex
	cluster string    // whose gateway it is; "": it is another kind of registry
	asked   time.Time // when that was found out
}

// newRemote reads the files that a rule names.
func newRemote(r *Rule, sent *atomic.Int64) (*remote, error) {
	bad := func(err error) (*remote, error) {
		return nil, fmt.Errorf("rule %s: %w: %w", r.Name, err, errdefs.ErrFailedPrecondition)
	}
	if err := r.CheckFiles(""); err != nil {
		return bad(err)
	}
	u, err := url.Parse(r.URL)
	if err != nil {
		return bad(err)
	}
	t := httpclient.NewTransport()
	t.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	if r.CA != "" {
		pem, err := os.ReadFile(r.CA)
		if err != nil {
			return bad(err)
		}
		t.TLSClientConfig.RootCAs = x509.NewCertPool()
		if !t.TLSClientConfig.RootCAs.AppendCertsFromPEM(pem) {
			return bad(fmt.Errorf("ca: %s has no certificate in PEM", r.CA))
		}
	}
	if r.Cert != "" {
		cert, err := tls.LoadX509KeyPair(r.Cert, r.Key)
		if err != nil {
			return bad(err)
		}
		t.TLSClientConfig.Certificates = []tls.Certificate{cert}
	}
	creds, err := credentials(r)
	if err != nil {
		return bad(err)
	}
	o := &remote{rule: r, base: u.Scheme + "://" + u.Host, close: t.CloseIdleConnections, sent: sent, limit: rate.NewLimiter(rate.Inf, burst)}
	if r.Bandwidth > 0 {
		o.limit = rate.NewLimiter(rate.Limit(r.Bandwidth), burst)
	}
	if o.mounts, err = lru.New[digest.Digest, string](1 << 14); err != nil {
		return bad(err)
	}
	rt := &noting{ociauth.NewStdTransport(ociauth.StdTransportParams{Config: creds, Transport: &guarded{t}})}
	o.http = &http.Client{Transport: rt}
	if o.reg, err = ociclient.New(u.Host, &ociclient.Options{Transport: rt, Insecure: u.Scheme == "http"}); err != nil {
		return bad(err)
	}
	return o, nil
}

// credentials are those for a rule's registry.
func credentials(r *Rule) (ociauth.Config, error) {
	switch {
	case r.TokenFile != "":
		text, err := os.ReadFile(r.TokenFile)
		return token(strings.TrimSpace(string(text))), err
	case r.DockerConfig != "":
		text, err := os.ReadFile(r.DockerConfig)
		if err != nil {
			return nil, err
		}
		c, err := ociauth.LoadWithEnv(nil, append(os.Environ(), "DOCKER_AUTH_CONFIG="+string(text)))
		if err != nil {
			return nil, fmt.Errorf("docker_config: %s: %w", r.DockerConfig, err)
		}
		return c, nil
	}
	return token(""), nil
}

// token is a bearer token for all registries; "": none.
type token string

func (t token) EntryForRegistry(string) (ociauth.ConfigEntry, error) {
	return ociauth.ConfigEntry{AccessToken: string(t)}, nil
}

// guarded ends requests that stand still.
type guarded struct{ next http.RoundTripper }

func (g *guarded) RoundTrip(req *http.Request) (*http.Response, error) {
	return httpclient.Guard(req, stall, g.next.RoundTrip)
}

// exchange is what goes with a request, and comes with its answer, beside what the API's client knows.
type exchange struct {
	source     string // of the request
	is         string // HeaderSource of the answer
	superseded bool
	subject    bool // the registry keeps lists of referrers
}

type exchangeKey struct{}

func withExchange(ctx context.Context, x *exchange) context.Context {
	return context.WithValue(ctx, exchangeKey{}, x)
}

type noting struct{ next http.RoundTripper }

func (n *noting) RoundTrip(req *http.Request) (*http.Response, error) {
	x, _ := req.Context().Value(exchangeKey{}).(*exchange)
	req = req.Clone(req.Context())
	req.Header.Set("User-Agent", version.Software())
	if x != nil && x.source != "" {
		req.Header.Set(index.HeaderSource, x.source)
	}
	resp, err := n.next.RoundTrip(req)
	if err == nil && x != nil {
		x.is = resp.Header.Get(index.HeaderSource)
		x.superseded = resp.Header.Get(index.HeaderSuperseded) != ""
		x.subject = resp.Header.Get("OCI-Subject") != ""
	}
	return resp, err
}

// who returns whose gateway the registry is; "": it is another kind of one.
func (o *remote) who(ctx context.Context) (cluster string, err error) {
	o.mu.Lock()
	cluster, asked := o.cluster, o.asked
	o.mu.Unlock()
	if time.Since(asked) < whoFor {
		return cluster, nil
	}
	ctx = ociauth.ContextWithRequestInfo(ctx, ociauth.RequestInfo{})
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, o.base+"/v2/", nil)
	if err != nil {
		return "", err
	}
	resp, err := o.http.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 8<<10))
	if resp.StatusCode != http.StatusOK {
		return "", ociregistry.NewHTTPError(errors.New("is it a registry?"), resp.StatusCode, resp, body)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.cluster, o.asked = resp.Header.Get(index.HeaderCluster), time.Now()
	return o.cluster, nil
}

// tag returns what a tag of the remote names; "": nothing. In another cluster the Source says which write that was, or of which its
// deletion was; a zero one: never.
func (o *remote) tag(ctx context.Context, repo, name string) (digest.Digest, index.Source, error) {
	x := &exchange{source: "?"} // asks for the state of what was deleted, too
	desc, err := o.reg.ResolveTag(withExchange(ctx, x), repo, name)
	var from index.Source
	if x.is != "" {
		var perr error
		if from, perr = index.ParseSource(x.is); perr != nil {
			return "", from, fmt.Errorf("registry %s: %s:%s: %w", o.base, repo, name, perr)
		}
	}
	if notThere(err) {
		return "", from, nil
	}
	return desc.Digest, from, err
}

// has reports whether the remote has a manifest.
func (o *remote) has(ctx context.Context, repo string, d digest.Digest) (bool, error) {
	_, err := o.reg.ResolveManifest(ctx, repo, d)
	if notThere(err) {
		return false, nil
	}
	return err == nil, err
}

func notThere(err error) bool {
	he, ok := errors.AsType[ociregistry.HTTPError](err)
	return ok && he.StatusCode() == http.StatusNotFound
}

// paced reads no faster than the bandwidth, and counts.
type paced struct {
	ctx context.Context
	r   io.Reader
	o   *remote
}

func (p *paced) Read(b []byte) (int, error) {
	n, err := p.r.Read(b[:min(len(b), burst)])
	p.o.sent.Add(int64(n))
	if werr := p.o.limit.WaitN(p.ctx, n); werr != nil {
		return 0, fmt.Errorf("waiting for bandwidth: %w: %w", werr, errdefs.ErrUnavailable)
	}
	return n, err
}

// pushBlob brings a blob to the remote, if it is not there. open reads it from an offset on.
func (o *remote) pushBlob(
	ctx context.Context, repo string, desc ociregistry.Descriptor, open func(off int64) (io.ReadCloser, error),
) error {
	_, err := o.reg.ResolveBlob(ctx, repo, desc.Digest)
	if err == nil {
		o.mounts.Add(desc.Digest, repo)
		return nil
	}
	if !notThere(err) {
		return err
	}
	if from, ok := o.mounts.Get(desc.Digest); ok && from != repo {
		if _, err := o.reg.MountBlob(ctx, from, repo, desc.Digest); err == nil {
			return nil
		}
	}
	if err := o.upload(ctx, repo, desc, open); err != nil {
		return err
	}
	o.mounts.Add(desc.Digest, repo)
	return nil
}

// resumes is how often an upload goes on that was broken off, each time further on than before.
const resumes = 5

// upload sends a blob in chunks; what was broken off goes on from where the remote is.
func (o *remote) upload(ctx context.Context, repo string, desc ociregistry.Descriptor, open func(off int64) (io.ReadCloser, error)) error {
	id, left := "", resumes
	for at := int64(-1); ; {
		off, err := o.send(ctx, repo, desc, &id, open)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil || !transient(err) {
			return err
		}
		if off > at {
			at, left = off, resumes
		}
		if left--; left < 0 {
			return err
		}
		select {
		case <-time.After(firstWait):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// send sends what the remote lacks of a blob: in the upload with that id if there is one. It returns from where on it did.
func (o *remote) send(
	ctx context.Context, repo string, desc ociregistry.Descriptor, id *string, open func(off int64) (io.ReadCloser, error),
) (off int64, err error) {
	var w ociregistry.BlobWriter
	if *id == "" {
		w, err = o.reg.PushBlobChunked(ctx, repo, chunk)
	} else {
		w, err = o.reg.PushBlobChunkedResume(ctx, repo, *id, -1, chunk)
	}
	if err != nil {
		return 0, err
	}
	if off = w.Size(); off > desc.Size || off == 1 && desc.Size > 1 { // "0-0" is what some say of nothing
		*id = ""
		return 0, fmt.Errorf("registry %s has %d bytes of a blob of %d: %w", o.base, off, desc.Size, errdefs.ErrUnavailable)
	}
	defer func() {
		if at := w.ID(); w.Size() > 0 {
			*id = at
		}
	}()
	r, err := open(off)
	if err != nil {
		return off, err
	}
	defer r.Close()
	n, err := io.CopyBuffer(struct{ io.Writer }{w}, &paced{ctx, io.LimitReader(r, desc.Size-off), o}, make([]byte, 1<<20))
	if err == nil && off+n != desc.Size {
		err = fmt.Errorf("blob %s: an origin sent %d bytes from %d on, not %d: %w", desc.Digest, n, off, desc.Size-off, errdefs.ErrUnavailable)
	}
	if err == nil {
		_, err = w.Commit(desc.Digest)
	}
	return off, err
}

// transient reports whether something may go well if it is tried again.
func transient(err error) bool {
	outcome, _ := classify(err)
	return outcome == Later
}

// classify says what becomes of a delivery with an error: tried again, or parked, with a word for why.
func classify(err error) (Outcome, string) {
	if he, ok := errors.AsType[ociregistry.HTTPError](err); ok {
		return classifyStatus(he)
	}
	switch {
	case err == nil:
		return Done, ""
	case errors.Is(err, errSameName):
		return Refused, "name"
	case errdefs.IsUnavailable(err), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return Later, ""
	case errdefs.IsNotFound(err), errdefs.IsFailedPrecondition(err), errdefs.IsDataLoss(err), errdefs.IsInvalidArgument(err),
		errdefs.IsNotImplemented(err):
		return Refused, "here"
	case errors.Is(err, ociregistry.ErrUnsupported):
		return Refused, "unsupported"
	case errors.Is(err, ociauth.ErrNoAuth):
		return Refused, "unauthorized"
	}
	return Later, "" // the network
}

func classifyStatus(he ociregistry.HTTPError) (Outcome, string) {
	switch s := he.StatusCode(); s {
	case http.StatusUnauthorized:
		return Refused, "unauthorized"
	case http.StatusForbidden:
		return Refused, "denied"
	case http.StatusConflict:
		return Refused, "conflict"
	case http.StatusMethodNotAllowed, http.StatusNotImplemented:
		return Refused, "unsupported"
	case http.StatusRequestEntityTooLarge, http.StatusInsufficientStorage:
		return Refused, "quota"
	case http.StatusTooManyRequests, http.StatusRequestTimeout, http.StatusRequestedRangeNotSatisfiable:
		return Later, ""
	default:
		if s >= 400 && s < 500 {
			return Refused, "refused"
		}
		return Later, ""
	}
}
