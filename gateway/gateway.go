package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"cuelabs.dev/go/oci/ociregistry"
	"cuelabs.dev/go/oci/ociregistry/ociserver"
	"github.com/containerd/log"
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/control/index"
	"github.com/capelin-io/capelin/internal/daemon/identity"
)

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
		if err := g.putManifest(w, r); err != nil {
			writeError(w, r, err)
		}
		return
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

// putManifest stores a manifest, by tag or by digest. ociserver takes sha256 only, and
// answers 500 to what it cannot read.
func (g *Gateway) putManifest(w http.ResponseWriter, r *http.Request) error {
	at := strings.LastIndex(r.URL.Path, "/manifests/")
	repo, ref := strings.TrimPrefix(r.URL.Path[:at], "/v2/"), r.URL.Path[at+len("/manifests/"):]
	if index.CheckRepository(repo) != nil {
		return ociregistry.ErrNameInvalid
	}
	tag, d := ref, digest.Digest("")
	if strings.Contains(ref, ":") {
		if tag, d = "", digest.Digest(ref); index.CheckDigest(d) != nil {
			return fmt.Errorf("%w: %.100q is no digest", ociregistry.ErrDigestInvalid, ref)
		}
	}
	if r.ContentLength > maxManifest {
		return tooLarge(r.ContentLength)
	}
	raw, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxManifest))
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		return tooLarge(maxManifest + 1)
	case err != nil:
		return fmt.Errorf("%w: reading it: %w", ociregistry.ErrManifestInvalid, err)
	case d == "":
		d = digest.FromBytes(raw)
	case d.Algorithm().FromBytes(raw) != d:
		return fmt.Errorf("%w: the manifest has another digest than %s", ociregistry.ErrDigestInvalid, d)
	}
	m, err := g.store.push(r.Context(), repo, tag, raw, r.Header.Get("Content-Type"), d)
	if err != nil {
		return err
	}
	if m.Subject != nil {
		w.Header().Set("OCI-Subject", m.Subject.Digest.String())
	}
	w.Header().Set("Location", "/v2/"+repo+"/manifests/"+d.String())
	w.Header().Set("Docker-Content-Digest", d.String())
	w.WriteHeader(http.StatusCreated)
	return nil
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
// distribution spec wants it ("Mounting a blob from another repository"). What is
// uploaded then is most likely the blob that was to be mounted.
func (g *Gateway) mountOrUpload(r *http.Request) {
	q := r.URL.Query()
	if q.Get("mount") == "" {
		return
	}
	to := strings.TrimSuffix(strings.TrimPrefix(r.URL.Path, "/v2/"), "/blobs/uploads/")
	d := digest.Digest(q.Get("mount"))
	_, err := g.store.mountable(r.Context(), q.Get("from"), to, d)
	if q.Get("from") == "" || err != nil {
		if index.CheckDigest(d) == nil {
			callerOf(r.Context()).expects = d
		}
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
