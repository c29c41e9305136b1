package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"cuelabs.dev/go/oci/ociregistry"
	"cuelabs.dev/go/oci/ociregistry/ociserver"
	"github.com/containerd/log"
	digest "github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"

	"github.com/capelin-io/capelin/control/index"
	"github.com/capelin-io/capelin/control/origin"
	"github.com/capelin-io/capelin/internal/daemon/config"
	"github.com/capelin-io/capelin/internal/daemon/identity"
	"github.com/capelin-io/capelin/internal/daemon/ops"
	"github.com/capelin-io/capelin/internal/ociapi"
	"github.com/capelin-io/capelin/internal/reload"
)

// Config is the configuration of `capelin gateway`; [DefaultConfig]
// has the defaults, and `capelin gateway config` prints both.
type Config struct {
	Listen  string `toml:"listen" comment:"Address of the registry API, host:port. Default 127.0.0.1:7500, which only this machine reaches; \":7500\" for all interfaces, with identity or a certificate."`
	Metrics string `toml:"metrics" comment:"Address of /metrics (Prometheus), /healthz and /readyz over HTTP. Default 127.0.0.1:7501. Empty: none."`
	Pprof   bool   `toml:"pprof" comment:"Serve /debug/pprof on the metrics address, which then must be a loopback address. Default false."`
	Cluster string `toml:"cluster" comment:"Name of the cluster, 1 to 64 bytes. Default \"default\"."`

	Origins []string `toml:"origins" comment:"Addresses of the origins' APIs, host:port each, where blobs are. Default 127.0.0.1:7480."`
	Indexes []string `toml:"indexes" comment:"Addresses of the indexes' APIs, host:port each, where tags are. Default 127.0.0.1:7490."`

	Cert string `toml:"cert" comment:"PEM file with the certificate that Docker, containerd and other clients see. Empty: the identity's, whose --host then must be the name by which they know the gateway. A changed file is read again."`
	Key  string `toml:"key" comment:"PEM file with its private key."`

	Users  string       `toml:"users" comment:"File of users and the bcrypt hashes of their passwords, as \"htpasswd -B\" writes it. A changed file is read again. Empty: nobody can log in by name."`
	Tokens string       `toml:"tokens" comment:"TOML file of bearer tokens: [[token]] tables with user, sha256 (of the token, hexadecimal) and expires. A changed file is read again. Empty: none."`
	Rules  []RuleConfig `toml:"rule" comment:"What users may do. What no rule allows is refused. Without identity, users and tokens there must be no rules, and everybody may do everything."`

	Identity identity.Config `toml:"identity" comment:"Who this gateway is. With identity it speaks to origins and indexes by mutual TLS. The certificate needs the role gateway."`
	Insecure bool            `toml:"insecure" comment:"Listen beyond loopback without TLS or without users: passwords can then be read by others, or everybody may do everything. Default false."`

	LogLevel string `toml:"log_level" comment:"trace, debug, info, warn or error. Pushes, deletions and refusals are logged as \"audit\". Default info."`

	// Listener, if not nil, is used instead of Listen. Run closes it.
	Listener net.Listener `toml:"-"`
	// OnListen, if not nil, is called once the listeners are open, with their
	// addresses; metrics is nil if off.
	OnListen func(api, metrics net.Addr) `toml:"-"`
}

// DefaultConfig returns the defaults, which serve this machine.
func DefaultConfig() Config {
	return Config{
		Listen: "127.0.0.1:7500", Metrics: "127.0.0.1:7501", Cluster: "default", LogLevel: "info",
		Origins: []string{"127.0.0.1:7480"}, Indexes: []string{"127.0.0.1:7490"}, Rules: []RuleConfig{},
	}
}

// Validate reports every value that cannot work.
func (c *Config) Validate() error {
	var errs []error
	bad := func(key, format string, args ...any) { errs = append(errs, config.Invalid(key, format, args...)) }
	if _, _, err := net.SplitHostPort(c.Listen); err != nil && c.Listener == nil {
		bad("listen", "%q is not host:port", c.Listen)
	}
	errs = append(errs, ops.Check(c.Metrics, c.Pprof)...)
	errs = append(errs, c.Identity.Check("identity.")...)
	if n := len(c.Cluster); n < 1 || n > 64 {
		bad("cluster", "must have 1 to 64 bytes, has %d", n)
	}
	if len(c.Origins) == 0 {
		bad("origins", "must name at least one")
	}
	if len(c.Indexes) == 0 {
		bad("indexes", "must name at least one")
	}
	if (c.Cert == "") != (c.Key == "") {
		bad("cert", "needs key, and key needs cert")
	}
	_, rules := readRules(c.Rules, "rule")
	errs = append(errs, rules...)
	if !c.guarded() && len(c.Rules) > 0 {
		bad("rule", "nobody can be told from anybody without identity, users or tokens")
	}
	if c.Listener == nil && !c.Insecure && !identity.IsLoopback(c.Listen) {
		switch {
		case c.Cert == "" && !c.Identity.Enabled():
			bad("listen", "%q is reached from other machines without TLS: configure [identity] or cert and key, or say insecure = true", c.Listen)
		case !c.guarded():
			bad("listen", "%q is reached from other machines, and everybody may do everything: configure [identity], users or tokens, or say insecure = true", c.Listen)
		}
	}
	switch c.LogLevel {
	case "trace", "debug", "info", "warn", "error":
	default:
		bad("log_level", "%q is not trace, debug, info, warn or error", c.LogLevel)
	}
	return errors.Join(errs...)
}

// guarded reports whether callers are told apart.
func (c *Config) guarded() bool {
	return c.Identity.Enabled() || c.Users != "" || c.Tokens != ""
}

// Gateway is a registry over origins and an index, for those who may use it.
type Gateway struct {
	store   *store
	users   *users
	rules   []rule
	guarded bool
	api     http.Handler
}

// New returns the registry API as an http.Handler.
func New(cfg Config, o Origin, x Index) (*Gateway, error) {
	rules, errs := readRules(cfg.Rules, "rule")
	if errs != nil {
		return nil, errors.Join(errs...)
	}
	u, err := newUsers(cfg.Users, cfg.Tokens)
	if err != nil {
		return nil, err
	}
	g := &Gateway{store: &store{origin: o, index: x}, users: u, rules: rules, guarded: cfg.guarded()}
	g.api = ociserver.New(g.store, &ociserver.Options{WriteError: writeError})
	return g, nil
}

// writeError adds what ociserver leaves out: a challenge to 401, and when to come
// back to 503.
func writeError(w http.ResponseWriter, _ *http.Request, err error) {
	body, status := ociregistry.MarshalError(err)
	switch status {
	case http.StatusUnauthorized:
		challenge(w.Header())
	case http.StatusServiceUnavailable:
		w.Header().Set("Retry-After", "2")
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(body)
}

// ServeHTTP implements http.Handler: who is it, then what ociserver does not do
// itself, then ociserver.
func (g *Gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c, err := g.caller(r)
	if err != nil {
		log.G(r.Context()).WithError(err).WithFields(log.Fields{"remote": r.RemoteAddr, "result": "refused"}).Warn("audit")
		refuse(w, err)
		return
	}
	ctx := withCaller(r.Context(), c)
	r = r.WithContext(ctx)
	w.Header().Set("Docker-Distribution-API-Version", "registry/2.0")
	switch {
	case r.URL.Path == "/v2/" || r.URL.Path == "/v2":
		// Clients learn here whether to send credentials at all.
		if g.guarded && c.user == Anonymous {
			refuse(w, errors.New("log in"))
			return
		}
	case r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/manifests/"):
		if r.ContentLength > maxManifest {
			writeError(w, r, tooLarge(r.ContentLength))
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, maxManifest+1) // the store refuses the last one
		if g.putByDigest(w, r) {
			return
		}
	case r.Method == http.MethodGet && strings.HasPrefix(r.Header.Get("Range"), "bytes=-"):
		if err := g.suffixRange(r); err != nil {
			writeError(w, r, err)
			return
		}
	case r.Header.Get("Content-Range") == "0-0" && r.ContentLength == 1:
		// ociserver takes it for a range of nothing; the caller knows that there was one.
		r.Header = r.Header.Clone()
		r.Header.Del("Content-Range")
	case r.Method == http.MethodPost && strings.HasSuffix(r.URL.Path, "/blobs/uploads/"):
		g.mountOrUpload(r)
	case r.Method == http.MethodDelete && strings.Contains(r.URL.Path, "/blobs/uploads/"):
		g.cancel(w, r)
		return
	}
	g.api.ServeHTTP(w, r)
}

// putByDigest does what ociserver does not when a manifest is pushed by its digest:
// it takes other algorithms than sha256, and says 400 of what is no digest. It
// reports whether it has answered.
func (g *Gateway) putByDigest(w http.ResponseWriter, r *http.Request) bool {
	path, ref, _ := strings.Cut(r.URL.Path, "/manifests/")
	d := digest.Digest(ref)
	switch {
	case !strings.Contains(ref, ":"):
		return false
	case index.CheckDigest(d) != nil:
		writeError(w, r, fmt.Errorf("%w: %.100q is no digest", ociregistry.ErrDigestInvalid, ref))
		return true
	case d.Algorithm() == digest.SHA256:
		return false
	}
	repo := strings.TrimPrefix(path, "/v2/")
	raw, err := io.ReadAll(r.Body)
	if err == nil && index.CheckRepository(repo) != nil {
		err = ociregistry.ErrNameInvalid
	}
	if err == nil && d.Algorithm().FromBytes(raw) != d {
		err = ociregistry.ErrDigestInvalid
	}
	var desc ociregistry.Descriptor
	if err == nil {
		desc, err = g.store.push(r.Context(), repo, "", raw, r.Header.Get("Content-Type"), d)
	}
	if err != nil {
		writeError(w, r, err)
		return true
	}
	if m, err := index.ParseManifest(desc.MediaType, raw); err == nil && m.Subject != nil {
		w.Header().Set("OCI-Subject", m.Subject.Digest.String())
	}
	w.Header().Set("Location", r.URL.Path)
	w.Header().Set("Docker-Content-Digest", d.String())
	w.WriteHeader(http.StatusCreated)
	return true
}

// suffixRange writes a range of the last bytes as one from the beginning, which
// ociserver understands.
func (g *Gateway) suffixRange(r *http.Request) error {
	path, ref, ok := strings.Cut(r.URL.Path, "/blobs/")
	d := digest.Digest(ref)
	n, err := strconv.ParseInt(strings.TrimPrefix(r.Header.Get("Range"), "bytes=-"), 10, 64)
	if !ok || err != nil || n <= 0 || index.CheckDigest(d) != nil {
		return nil //nolint:nilerr // for ociserver to refuse
	}
	desc, err := g.store.ResolveBlob(r.Context(), strings.TrimPrefix(path, "/v2/"), d)
	if err != nil {
		return err
	}
	r.Header = r.Header.Clone()
	r.Header.Set("Range", fmt.Sprintf("bytes=%d-", max(desc.Size-n, 0)))
	return nil
}

// mountOrUpload turns a mount of what cannot be mounted into an upload, as the
// distribution spec wants it ("Mounting a blob from another repository").
func (g *Gateway) mountOrUpload(r *http.Request) {
	q := r.URL.Query()
	if q.Get("mount") == "" {
		return
	}
	to := strings.TrimSuffix(strings.TrimPrefix(r.URL.Path, "/v2/"), "/blobs/uploads/")
	_, err := g.store.mountable(r.Context(), q.Get("from"), to, digest.Digest(q.Get("mount")))
	if q.Get("from") == "" || err != nil {
		u := *r.URL
		u.RawQuery = ""
		r.URL = &u
	}
}

// cancel ends an upload, which ociserver has no request for.
func (g *Gateway) cancel(w http.ResponseWriter, r *http.Request) {
	repo, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v2/"), "/blobs/uploads/")
	err := allow(r.Context(), Push, repo)
	if err == nil {
		// ociserver writes upload IDs in base64; only it can read them back.
		probe := r.Clone(r.Context())
		probe.Method = http.MethodGet
		catch := &uploadID{Funcs: g.store.Funcs}
		ociserver.New(catch, nil).ServeHTTP(discard{http.Header{}}, probe)
		if catch.id == "" {
			err = ociregistry.ErrBlobUploadUnknown
		} else {
			err = translate(g.store.origin.Cancel(r.Context(), catch.id), ociregistry.ErrBlobUploadUnknown)
		}
	}
	if err != nil {
		writeError(w, r, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// uploadID is a registry that only notes which upload it is asked about.
type uploadID struct {
	*ociregistry.Funcs
	id string
}

func (u *uploadID) PushBlobChunkedResume(_ context.Context, _, id string, _ int64, _ int) (ociregistry.BlobWriter, error) {
	u.id = id
	return nil, ociregistry.ErrUnsupported
}

type discard struct{ h http.Header }

func (d discard) Header() http.Header         { return d.h }
func (d discard) Write(p []byte) (int, error) { return len(p), nil }
func (d discard) WriteHeader(int)             {}

// caller finds out who a request comes from. An error: the credentials are wrong.
func (g *Gateway) caller(r *http.Request) (*caller, error) {
	c := &caller{user: Anonymous, rules: g.rules, remote: r.RemoteAddr, hasRange: r.Header.Get("Content-Range") != "", all: !g.guarded}
	auth := r.Header.Get("Authorization")
	scheme, secret, _ := strings.Cut(auth, " ")
	switch {
	case auth != "" && !g.users.enabled() && g.guarded:
		return nil, errWrong
	case auth == "" || !g.guarded:
		if g.guarded && r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
			id, err := identity.PeerID(*r.TLS) // the chain was verified in the handshake
			if err != nil {
				return nil, err
			}
			c.all = id.Has(identity.RoleAdmin)
			for i, role := range id.Roles {
				name := string(role) + ":" + id.Name
				if i == 0 {
					c.user = name
				} else {
					c.also = append(c.also, name)
				}
			}
		}
		return c, nil
	case strings.EqualFold(scheme, "Bearer"):
		user, err := g.users.who(strings.TrimSpace(secret))
		if err != nil {
			return nil, err
		}
		c.user = user
		return c, nil
	}
	user, password, ok := r.BasicAuth()
	if !ok {
		return nil, errWrong
	}
	if err := g.users.password(r.Context(), user, password); err != nil {
		return nil, fmt.Errorf("user %q: %w", user, err)
	}
	c.user = user
	return c, nil
}

// shutdownTimeout is what requests have to end when the gateway stops.
const shutdownTimeout = 10 * time.Second

// Run is the gateway. It returns nil after ctx is cancelled and all requests
// have ended, or an error if it cannot listen or its files cannot be read.
func Run(ctx context.Context, cfg Config) error {
	if err := cfg.Validate(); err != nil {
		return fmt.Errorf("gateway: %w", err)
	}
	var id *identity.Source
	var toOrigins, toIndexes, secure *tls.Config
	if cfg.Identity.Enabled() {
		var err error
		if id, err = identity.Load(cfg.Identity, cfg.Cluster); err != nil {
			return fmt.Errorf("gateway: %w", err)
		}
		ops.Watch(ctx, id)
		toOrigins, toIndexes = id.ClientTLS(identity.RoleOrigin), id.ClientTLS(identity.RoleIndex)
		secure = id.ServerTLSOptional(identity.Roles...)
	}
	if cfg.Cert != "" {
		pair, err := reload.Open(func() (*tls.Certificate, error) {
			c, err := tls.LoadX509KeyPair(cfg.Cert, cfg.Key)
			if err != nil {
				return nil, fmt.Errorf("%s with %s: %w", cfg.Cert, cfg.Key, err)
			}
			return &c, nil
		}, ops.Reread("certificate and key"), cfg.Cert, cfg.Key)
		if err != nil {
			return fmt.Errorf("gateway: %w", err)
		}
		if secure == nil {
			secure = &tls.Config{MinVersion: tls.VersionTLS12}
		}
		secure.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return pair.Get(), nil }
	}
	if secure != nil {
		secure.MinVersion = tls.VersionTLS12 // clients of all kinds
	}
	o, err := origin.New(origin.Config{Origins: cfg.Origins, TLS: toOrigins})
	if err != nil {
		return fmt.Errorf("gateway: %w", err)
	}
	defer o.Close()
	x, err := index.New(index.Config{Indexes: cfg.Indexes, TLS: toIndexes})
	if err != nil {
		return fmt.Errorf("gateway: %w", err)
	}
	defer x.Close()
	gw, err := New(cfg, o, x)
	if err != nil {
		return fmt.Errorf("gateway: %w", err)
	}

	ln := cfg.Listener
	if ln == nil {
		if ln, err = net.Listen("tcp", cfg.Listen); err != nil {
			return fmt.Errorf("gateway: listening: %w", err)
		}
	}
	defer ln.Close()
	var metricsLn net.Listener
	if cfg.Metrics != "" {
		if metricsLn, err = net.Listen("tcp", cfg.Metrics); err != nil {
			return fmt.Errorf("gateway: listening for metrics: %w", err)
		}
		defer metricsLn.Close()
	}
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	if id != nil {
		reg.MustRegister(ops.Expiry(id))
	}
	seconds := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "capelin_gateway_request_seconds", Help: "Requests of the registry API, by method and status.",
		Buckets: []float64{.005, .02, .1, .5, 2, 10, 60, 600},
	}, []string{"method", "code"})
	reg.MustRegister(seconds)

	var ready atomic.Bool
	group, gctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		return ops.Serve(gctx, ln, &http.Server{
			Handler: ociapi.Patient(promhttp.InstrumentHandlerDuration(seconds, gw)), TLSConfig: secure, MaxHeaderBytes: 32 << 10,
		}, shutdownTimeout)
	})
	f := log.Fields{"listen": ln.Addr().String(), "cluster": cfg.Cluster, "tls": secure != nil, "guarded": cfg.guarded()}
	var metricsAddr net.Addr
	if metricsLn != nil {
		group.Go(func() error { return ops.ServeMetrics(gctx, metricsLn, reg, ready.Load, cfg.Pprof) })
		metricsAddr = metricsLn.Addr()
		f["metrics"] = metricsAddr.String()
	}
	if id != nil {
		group.Go(func() error { return id.Run(gctx) })
	}
	ready.Store(true)
	log.G(ctx).WithFields(f).Info("gateway is up")
	if cfg.OnListen != nil {
		cfg.OnListen(ln.Addr(), metricsAddr)
	}
	group.Go(func() error {
		<-gctx.Done()
		ready.Store(false)
		return nil
	})
	return group.Wait()
}
