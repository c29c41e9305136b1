package gateway

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"cuelabs.dev/go/oci/ociregistry"
	"github.com/containerd/log"

	"github.com/capelin-io/capelin/control/index"
	"github.com/capelin-io/capelin/internal/daemon/identity"
	"github.com/capelin-io/capelin/internal/ociapi"
)

// Gateway is a registry over origins and an index, for those who may use it.
type Gateway struct {
	store   *store
	users   *users
	rules   []rule
	guarded bool
	cluster string
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
	s, err := newStore(o, x)
	if err != nil {
		return nil, err
	}
	return &Gateway{store: s, users: u, rules: rules, guarded: cfg.guarded(), cluster: cfg.Cluster}, nil
}

// ServeHTTP implements http.Handler: who is it, then what is asked for.
func (g *Gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c, err := g.caller(r)
	if err != nil {
		log.G(r.Context()).WithError(err).WithFields(log.Fields{"remote": r.RemoteAddr, "result": "refused"}).Warn("audit")
		refuse(w, err)
		return
	}
	if c.from, err = whence(r, w); err != nil {
		writeError(w, r, err)
		return
	}
	r = r.WithContext(withCaller(r.Context(), c))
	w.Header().Set("Docker-Distribution-API-Version", "registry/2.0")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if err := g.serve(w, r); err != nil {
		writeError(w, r, err)
	}
}

// request is one that was read.
type request struct {
	*http.Request
	ociapi.Route
	query url.Values
}

type handler func(g *Gateway, w http.ResponseWriter, r *request) error

// endpoints are the API: what is done by which method.
var endpoints = map[ociapi.Kind]map[string]handler{
	ociapi.Ping:      {"GET": (*Gateway).ping, "HEAD": (*Gateway).ping},
	ociapi.Catalog:   {"GET": (*Gateway).catalog, "HEAD": (*Gateway).catalog},
	ociapi.Tags:      {"GET": (*Gateway).tags, "HEAD": (*Gateway).tags},
	ociapi.Referrers: {"GET": (*Gateway).referrers, "HEAD": (*Gateway).referrers},
	ociapi.Manifest: {"GET": (*Gateway).manifest, "HEAD": (*Gateway).manifest, "PUT": (*Gateway).putManifest,
		"DELETE": (*Gateway).deleteManifest},
	ociapi.Blob:    {"GET": (*Gateway).blob, "HEAD": (*Gateway).blob, "DELETE": (*Gateway).deleteBlob},
	ociapi.Uploads: {"POST": (*Gateway).startUpload},
	ociapi.Upload: {"GET": (*Gateway).upload, "HEAD": (*Gateway).upload, "PATCH": (*Gateway).patchUpload, "PUT": (*Gateway).putUpload,
		"DELETE": (*Gateway).deleteUpload},
}

// serve does what a request asks for. Its error is to be answered; nothing was answered before.
func (g *Gateway) serve(w http.ResponseWriter, r *http.Request) error {
	at, err := ociapi.Parse(r.URL.Path)
	if err != nil {
		return err
	}
	if at.Repository != "" && index.CheckRepository(at.Repository) != nil {
		return ociapi.Refuse(http.StatusBadRequest, ociregistry.ErrNameInvalid.Code(), "%q is no name of a repository", at.Repository)
	}
	if at.Digest != "" && index.CheckDigest(at.Digest) != nil {
		return noDigest(string(at.Digest))
	}
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return ociapi.Refuse(http.StatusBadRequest, ociregistry.ErrUnsupported.Code(), "the request's query: %w", err)
	}
	methods := endpoints[at.Kind]
	do := methods[r.Method]
	if do == nil {
		w.Header().Set("Allow", strings.Join(slices.Sorted(maps.Keys(methods)), ", "))
		return ociapi.Refuse(http.StatusMethodNotAllowed, ociregistry.ErrUnsupported.Code(), "%.20s is not done here", r.Method)
	}
	return do(g, w, &request{r, at, q})
}

// ping is where clients learn whether to send credentials at all.
func (g *Gateway) ping(w http.ResponseWriter, r *request) error {
	if g.guarded && callerOf(r.Context()).user == Anonymous {
		refuse(w, errors.New("log in"))
		return nil
	}
	w.Header().Set(index.HeaderCluster, g.cluster)
	return writeJSON(w, "application/json", struct{}{})
}

// caller finds out who a request comes from. An error: the credentials are wrong.
func (g *Gateway) caller(r *http.Request) (*caller, error) {
	c := &caller{user: Anonymous, rules: g.rules, remote: r.RemoteAddr, all: !g.guarded}
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
