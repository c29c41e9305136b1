package gateway

import (
	"errors"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"cuelabs.dev/go/oci/ociregistry"

	"github.com/capelin-io/capelin/control/index"
	"github.com/capelin-io/capelin/internal/ociapi"
)

// Gateway is a registry over origins and an index, for those who may use it.
type Gateway struct {
	store   *store
	users   *users
	tokens  *tokens
	issuers issuers
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
	issuers, err := openIssuers(cfg.OIDC)
	if err != nil {
		return nil, err
	}
	s, err := newStore(o, x)
	if err != nil {
		return nil, err
	}
	return &Gateway{
		store: s, users: u, tokens: newTokens(x), issuers: issuers, rules: rules, guarded: cfg.Guarded(), cluster: cfg.Cluster,
	}, nil
}

// ServeHTTP implements http.Handler: who is it, then what is asked for.
func (g *Gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c, err := g.caller(r)
	if err != nil {
		auditRefusal(r, err)
		g.refuse(w, r, err)
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
	ociapi.Token:     {"GET": (*Gateway).giveToken, "POST": (*Gateway).giveToken},
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
	if c := callerOf(r.Context()); g.guarded && c.user == Anonymous && c.access == nil {
		g.refuse(w, r.Request, errAsked)
		return nil
	}
	w.Header().Set(index.HeaderCluster, g.cluster)
	return writeJSON(w, "application/json", struct{}{})
}
