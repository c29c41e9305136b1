package shim

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"cuelabs.dev/go/oci/ociregistry/ociref"
	"github.com/containerd/log"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/capelin-io/capelin/internal/daemon/config"
	"github.com/capelin-io/capelin/internal/daemon/identity"
	"github.com/capelin-io/capelin/internal/daemon/ops"
	"github.com/capelin-io/capelin/internal/ociapi"
	"github.com/capelin-io/capelin/swarm/piece"
)

// Limits of what a Mirror takes from clients and registries.
const (
	maxHeader       = 64 << 10         // bytes, of a request and of an answer; tokens are long
	maxTarget       = 4 << 10          // bytes of a request's path and query
	upstreamTimeout = 30 * time.Second // for a registry's answer to begin
	upstreamStall   = 30 * time.Second // without a byte of a blob
	maxRedirects    = 10
	headerAfter     = 10 * time.Second // clients wait for an answer's header, some for 30 s
)

// Tail is what an authorizing registry sends of each blob.
const Tail = 64 << 10

// MirrorConfig configures a [Mirror]. The comments are those of the agent's
// configuration file, where it is the table shim.
type MirrorConfig struct {
	Listen    string   `toml:"listen" comment:"Address of the registry API, host:port. It speaks plain HTTP, and whoever reaches it reaches registries through it: beyond loopback only with insecure = true. On loopback it answers to localhost and loopback addresses, to no other name. Empty: none."`
	Upstream  string   `toml:"upstream" comment:"Registry of requests that name none, http(s)://host[:port]: those of Docker, and pulls by the shim's own name. containerd's name theirs (?ns=)."`
	CA        string   `toml:"ca" comment:"PEM file of CAs that are trusted besides the system's when registries are spoken to. A changed file is read again. Empty: identity.ca, if there is one."`
	PlainHTTP []string `toml:"plain_http" comment:"Registries, as host or host:port, that are spoken to over HTTP when requests name them. All others over HTTPS."`

	// AuthorizeBlob: that the registry knows a blob's name and size is not enough, it has to
	// send the last Tail bytes of each to this client.
	AuthorizeBlob bool `toml:"-"`
	// OnRelayed, if not nil, is told of bytes that were relayed from a registry.
	// What the blobs' readers take is not among them.
	OnRelayed func(bytes int) `toml:"-"`
}

// DefaultMirrorConfig returns the defaults.
func DefaultMirrorConfig() MirrorConfig {
	return MirrorConfig{Listen: "127.0.0.1:7405", Upstream: "https://registry-1.docker.io", PlainHTTP: []string{}}
}

// Check reports every value that cannot work, by its key, which begins with
// prefix. insecure allows to listen beyond loopback.
func (c *MirrorConfig) Check(prefix string, insecure bool) (errs []error) {
	bad := func(key, format string, args ...any) {
		errs = append(errs, config.Invalid(prefix+key, format, args...))
	}
	if c.Listen != "" {
		if !config.IsListen(c.Listen) {
			bad("listen", "%q is not host:port", c.Listen)
		} else if !insecure && !identity.IsLoopback(c.Listen) {
			bad("listen", "%q is reached from other machines, and they would pull through this node: "+
				"use a loopback address, or say insecure = true", c.Listen)
		}
	}
	if _, err := parseUpstream(c.Upstream); err != nil {
		bad("upstream", "%v", err)
	}
	for _, h := range c.PlainHTTP {
		if !validHost(h) {
			bad("plain_http", "%q is neither host nor host:port", h)
		}
	}
	return errs
}

// Kinds of requests, for metrics.
const (
	kindPing        = "ping"
	kindManifest    = "manifest"
	kindList        = "list"         // tags, repositories, referrers
	kindToken       = "token"        // of the registry's own, for the client
	kindBlobHead    = "blob_head"    // whether and how long
	kindBlob        = "blob"         // from the swarm, or downloaded into it
	kindBlobRelayed = "blob_relayed" // the registry refused it, or the swarm could not serve it
	kindRefused     = "refused"      // what this Mirror does not do
)

// Blobs gives access to blobs that the swarm may have.
type Blobs interface {
	// Open returns a reader of the blob's bytes that waits for each until it is proven, or
	// was sent by the client's own registry. ctx is the reader's until Close.
	// A reader may have a method Proven() bool, which reports that the bytes are known
	// to be the digest's: they are not hashed again then.
	Open(ctx context.Context, id piece.ID, want Want) (io.ReadSeekCloser, error)
}

// Want is how a client wants a blob.
type Want struct {
	// Upstream is called for the bytes from an offset on, maybe several times, if this
	// node is to download the blob.
	Upstream Upstream
	// Registry is whom Upstream asks, as host or host:port.
	Registry string
	// Part: the client wants a part of the blob that ends before the blob does.
	Part bool
	// Tail, if not nil, is how the client's registry ends the blob. Bytes that this registry has
	// not sent are the client's only if the blob does end so.
	Tail []byte
}

// Upstream opens a blob at the registry, from off to its end. What may be another
// time is errdefs.ErrUnavailable.
type Upstream func(ctx context.Context, off int64) (io.ReadCloser, error)

// A Mirror is a pull-through mirror of any registry, for clients on this node.
//
// Which registry a request is for is said by its query parameter ns, as
// containerd sends it to mirrors (host or host:port; docker.io is
// registry-1.docker.io), or else it is MirrorConfig.Upstream, as for Docker's
// registry-mirrors.
//
// GET of a blob is preceded by a HEAD with the client's credentials: if the
// registry does not answer that with 200 and a size, the GET is relayed like
// anything else. So is it if each blob has to be authorized and the registry does not
// send its last bytes. What the client's own registry sends goes on to it as it comes; what
// comes from others is sent when all of the blob is here and proven, since somebody else's
// registry may lie. The answer's header is sent after headerAfter anyway. A whole blob's
// bytes are hashed on their way, too, unless all of it was here before, and its last
// ones are held back until that hash is the digest. If the rest cannot be had, or
// is false, the connection is broken off, so that the client sees that something
// is missing.
//
// A Mirror that listens on loopback answers only requests that call it by a
// loopback address or localhost: a web page's own name may resolve to this
// machine, too.
type Mirror struct {
	cfg      MirrorConfig
	blobs    Blobs
	upstream *url.URL
	plain    map[string]bool
	local    bool   // only this machine reaches it
	via      string // names this Mirror, so that it does not ask itself
	client   *http.Client
	proxy    *httputil.ReverseProxy
	requests *prometheus.CounterVec // by kind
	underway atomic.Int64           // requests
}

var (
	_ http.Handler         = (*Mirror)(nil)
	_ prometheus.Collector = (*Mirror)(nil)
)

// NewMirror returns a Mirror, or what is wrong with cfg.
func NewMirror(cfg MirrorConfig, blobs Blobs) (*Mirror, error) {
	t, err := newTrusting(cfg.CA)
	if err != nil {
		return nil, fmt.Errorf("CAs of registries: %w", err)
	}
	return newMirror(cfg, blobs, t)
}

func newMirror(cfg MirrorConfig, blobs Blobs, t http.RoundTripper) (*Mirror, error) {
	if err := errors.Join(cfg.Check("", true)...); err != nil {
		return nil, err
	}
	m := &Mirror{
		cfg: cfg, blobs: blobs, plain: map[string]bool{}, local: identity.IsLoopback(cfg.Listen),
		via:    "1.1 capelin-" + strings.ToLower(rand.Text()[:10]),
		client: &http.Client{Transport: t, CheckRedirect: checkRedirect},
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: "capelin", Subsystem: "agent", Name: "shim_requests_total",
			Help: "Requests to the registry shim, by kind: ping; manifest; list; blob_head; blob (from the swarm, or downloaded into it); " +
				"blob_relayed (the registry did not allow it, or the swarm could not serve it); refused (not a pull).",
		}, []string{"kind"}),
	}
	m.upstream, _ = parseUpstream(cfg.Upstream) // it was checked
	for _, h := range cfg.PlainHTTP {
		m.plain[strings.ToLower(h)] = true
	}
	for _, kind := range []string{kindPing, kindManifest, kindList, kindToken, kindBlobHead, kindBlob, kindBlobRelayed, kindRefused} {
		m.requests.WithLabelValues(kind)
	}
	m.proxy = &httputil.ReverseProxy{
		Rewrite: m.rewrite, Transport: t, ModifyResponse: m.relayed,
		ErrorHandler: unreachable, ErrorLog: ops.ErrorLog(context.Background()),
		FlushInterval: -1,
	}
	return m, nil
}

// Describe and Collect make m's metrics known.
func (m *Mirror) Describe(ch chan<- *prometheus.Desc) { m.requests.Describe(ch) }

// Collect implements prometheus.Collector.
func (m *Mirror) Collect(ch chan<- prometheus.Metric) { m.requests.Collect(ch) }

// Close closes connections that are idle. Requests should have ended.
func (m *Mirror) Close() { m.client.CloseIdleConnections() }

// Serve serves on l until ctx is done. Then requests have stop to end before they
// are broken off; Serve returns when none is left. l is closed.
func (m *Mirror) Serve(ctx context.Context, l net.Listener, stop time.Duration) error {
	running := &running{h: m}
	defer running.wait()
	return ops.Serve(ctx, l, &http.Server{
		Handler:        ociapi.Patient(running), // a blob takes as long as its client does
		MaxHeaderBytes: maxHeader,
	}, stop)
}

// Quiet waits until no request is under way, or ctx is done.
func (m *Mirror) Quiet(ctx context.Context) {
	t := time.NewTicker(20 * time.Millisecond)
	defer t.Stop()
	for m.underway.Load() > 0 {
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
	}
}

// running counts the requests under way.
type running struct {
	h    http.Handler
	mu   sync.Mutex
	over bool
	wg   sync.WaitGroup
}

func (r *running) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	if r.over {
		r.mu.Unlock()
		panic(http.ErrAbortHandler)
	}
	r.wg.Add(1)
	r.mu.Unlock()
	defer r.wg.Done()
	r.h.ServeHTTP(w, req)
}

func (r *running) wait() {
	r.mu.Lock()
	r.over = true
	r.mu.Unlock()
	r.wg.Wait()
}

// parseUpstream parses a registry's address, http(s)://host[:port].
func parseUpstream(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || !validHost(u.Host) ||
		s != u.Scheme+"://"+u.Host && s != u.Scheme+"://"+u.Host+"/" {
		return nil, fmt.Errorf("%q is not http(s)://host or http(s)://host:port", s)
	}
	return &url.URL{Scheme: u.Scheme, Host: u.Host}, nil
}

// validHost reports whether s is host or host:port.
func validHost(s string) bool {
	if len(s) > 255 || !ociref.IsValidHost(s) {
		return false
	}
	u, err := url.Parse("https://" + s)
	if err != nil || u.Host != s || u.Hostname() == "" {
		return false
	}
	if strings.HasPrefix(s, "[") {
		if _, err := netip.ParseAddr(u.Hostname()); err != nil {
			return false
		}
	}
	if p := u.Port(); p != "" {
		n, err := strconv.ParseUint(p, 10, 16)
		return err == nil && n > 0
	}
	return true
}

// request is what a client wants, checked.
type request struct {
	kind     string
	upstream *url.URL // scheme and host
	query    string   // without ns
	ns       string   // as the client named the registry; "": not at all
	self     string   // by which name it knows this mirror, host:port
	digest   string   // of kindBlob
}

// url is where the registry has path.
func (r request) url(path string) *url.URL {
	if path == "/v2" {
		path = "/v2/"
	}
	return &url.URL{Scheme: r.upstream.Scheme, Host: r.upstream.Host, Path: path, RawQuery: r.query}
}

type requestKey struct{}

func requestOf(ctx context.Context) request { return ctx.Value(requestKey{}).(request) }

func (m *Mirror) count(kind string) { m.requests.WithLabelValues(kind).Inc() }

// ServeHTTP implements http.Handler.
func (m *Mirror) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	m.underway.Add(1)
	defer m.underway.Add(-1)
	req, err := m.parse(r)
	if err != nil {
		m.count(kindRefused)
		if ociapi.Status(err) == http.StatusMethodNotAllowed {
			w.Header().Set("Allow", "GET, HEAD")
		}
		ociapi.WriteError(w, err, "")
		return
	}
	r = r.WithContext(context.WithValue(r.Context(), requestKey{}, req))
	r.Body, r.ContentLength, r.TransferEncoding = http.NoBody, 0, nil // nothing here has one
	if req.kind == kindBlob {
		m.blob(w, r, req)
		return
	}
	m.count(req.kind)
	m.proxy.ServeHTTP(w, r)
}

// parse checks a request.
func (m *Mirror) parse(r *http.Request) (req request, err error) {
	switch {
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		return req, ociapi.Refuse(http.StatusMethodNotAllowed, "UNSUPPORTED",
			"this is a mirror for pulls, method %s is for the registry itself", r.Method)
	case m.local && !loopbackName(r.Host):
		return req, ociapi.Refuse(http.StatusForbidden, "DENIED",
			"this mirror serves its own machine, as localhost or by a loopback address, not as %q", r.Host)
	case len(r.RequestURI) > maxTarget:
		return req, ociapi.Refuse(http.StatusRequestURITooLong, "UNSUPPORTED", "the request's target has more than %d bytes", maxTarget)
	case slices.Contains(r.Header.Values("Via"), m.via):
		return req, ociapi.Refuse(http.StatusLoopDetected, "UNSUPPORTED",
			"this mirror was told to ask itself: see the request's ns, and shim.upstream in the agent's configuration")
	}
	if req.kind, req.digest = classify(r); req.kind == "" {
		return req, ociapi.Refuse(http.StatusNotFound, "NAME_INVALID",
			"%q is not a path of the distribution API that has to do with pulls", r.URL.Path)
	}
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return req, ociapi.Refuse(http.StatusBadRequest, "UNSUPPORTED", "the request's query: %w", err)
	}
	ns, named := q["ns"]
	q.Del("ns")
	req.query, req.self = q.Encode(), r.Host
	if !named {
		req.upstream = m.upstream
		return req, nil
	}
	req.ns = ns[0]
	if len(ns) == 1 && ns[0] == r.Host { // a pull by this mirror's own name
		req.upstream = m.upstream
		return req, nil
	}
	if len(ns) != 1 || !validHost(ns[0]) {
		return req, ociapi.Refuse(http.StatusBadRequest, "NAME_INVALID",
			"ns=%q does not name one registry as host or host:port", strings.Join(ns, ","))
	}
	req.upstream = m.registry(ns[0])
	return req, nil
}

// registry returns where the registry is that images call host.
func (m *Mirror) registry(host string) *url.URL {
	if host = strings.ToLower(host); host == "docker.io" || host == "index.docker.io" {
		host = "registry-1.docker.io"
	}
	if m.plain[host] {
		return &url.URL{Scheme: "http", Host: host}
	}
	return &url.URL{Scheme: "https", Host: host}
}

// loopbackName reports whether host, maybe with a port, is a name by which only
// this machine means itself.
func loopbackName(host string) bool {
	u := url.URL{Host: host}
	ip, err := netip.ParseAddr(u.Hostname())
	return u.Hostname() == "localhost" || err == nil && ip.IsLoopback()
}

// classify says what a request is for, "" for what is not served, by the
// distribution API's grammar. No path in it needs an escape.
func classify(r *http.Request) (kind, dgst string) {
	if r.URL.RawPath != "" || r.URL.Opaque != "" || r.URL.IsAbs() || strings.ContainsRune(r.URL.EscapedPath(), '%') {
		return "", ""
	}
	at, err := ociapi.Parse(r.URL.Path)
	if err != nil {
		return "", ""
	}
	switch at.Kind {
	case ociapi.Ping:
		return kindPing, ""
	case ociapi.Manifest:
		return kindManifest, ""
	case ociapi.Catalog, ociapi.Tags, ociapi.Referrers:
		return kindList, ""
	case ociapi.Token:
		if r.Method == http.MethodGet {
			return kindToken, ""
		}
	case ociapi.Blob:
		if r.Method == http.MethodHead {
			return kindBlobHead, ""
		}
		return kindBlob, string(at.Digest)
	}
	return "", "" // of a push
}

// rewrite directs a request to its registry.
func (m *Mirror) rewrite(p *httputil.ProxyRequest) {
	p.Out.URL = requestOf(p.In.Context()).url(p.In.URL.Path)
	p.Out.Host = ""
	p.Out.Header.Del("Cookie")
	p.Out.Header.Add("Via", m.via)
	if p.In.Header.Get("User-Agent") == "" {
		p.Out.Header.Set("User-Agent", "") // or net/http names itself
	}
}

// relayed completes a registry's answer, and counts its bytes.
func (m *Mirror) relayed(resp *http.Response) error {
	resp.Header.Del("Set-Cookie")
	if at, err := resp.Location(); err == nil { // a relative one would lead here, without ns
		resp.Header.Set("Location", at.String())
	}
	for i, l := range resp.Header["Link"] {
		resp.Header["Link"][i] = linkPattern.ReplaceAllStringFunc(l, func(at string) string {
			return "<" + here(resp.Request.URL, strings.Trim(at, "<>"), requestOf(resp.Request.Context()).ns) + ">"
		})
	}
	for i, c := range resp.Header["Www-Authenticate"] {
		resp.Header["Www-Authenticate"][i] = requestOf(resp.Request.Context()).throughUs(c)
	}
	if m.cfg.OnRelayed != nil {
		resp.Body = &countedBody{resp.Body, m.cfg.OnRelayed}
	}
	return nil
}

var linkPattern = regexp.MustCompile(`<[^<>]*>`)

// here returns by which URL a client finds here what a registry's answer from a URL links to. The
// next page of a list is of the same registry. Links to elsewhere stay.
func here(from *url.URL, link, ns string) string {
	at, err := from.Parse(link)
	if err != nil || at.Scheme != from.Scheme || at.Host != from.Host {
		return link
	}
	at.Scheme, at.Host, at.User = "", "", nil
	if ns != "" {
		at.RawQuery = strings.TrimPrefix(at.RawQuery+"&ns="+url.QueryEscape(ns), "&")
	}
	return at.String()
}

type countedBody struct {
	io.ReadCloser
	count func(int)
}

func (b *countedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if n > 0 {
		b.count(n)
	}
	return n, err
}

// unreachable answers a request whose registry did not.
func unreachable(w http.ResponseWriter, r *http.Request, err error) {
	if r.Context().Err() != nil {
		panic(http.ErrAbortHandler) // nobody is there to read it
	}
	req := requestOf(r.Context())
	err = fmt.Errorf("registry %s: %w", req.upstream.Host, err)
	log.G(r.Context()).WithError(err).Debug("mirror: registry not reached")
	ociapi.WriteError(w, ociapi.WithStatus(http.StatusBadGateway, "UNAVAILABLE", err), "")
}

// checkRedirect follows redirects as net/http does, which sends credentials only
// to the host they are for, but not from HTTPS to HTTP.
func checkRedirect(r *http.Request, via []*http.Request) error {
	if len(via) >= maxRedirects {
		return errors.New("too many redirects")
	}
	if r.URL.Scheme != "https" && via[len(via)-1].URL.Scheme == "https" {
		return fmt.Errorf("redirected from HTTPS to %s://%s", r.URL.Scheme, r.URL.Host)
	}
	return nil
}
