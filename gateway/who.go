package gateway

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"cuelabs.dev/go/oci/ociregistry"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/capelin-io/capelin/internal/daemon/identity"
	"github.com/capelin-io/capelin/internal/ociapi"
)

// owner is who somebody was found to be.
type owner struct {
	user    string
	also    []string  // other names of the same owner of a certificate, one per role
	all     bool      // may do everything
	expires time.Time // until when that is known; zero: for ever
	access  *access   // what a token is limited to; nil: nothing
}

// caller finds out who a request comes from. An error: the credentials are wrong (errWrong), or cannot be checked.
func (g *Gateway) caller(r *http.Request) (*caller, error) {
	c := &caller{
		owner: owner{user: Anonymous, all: !g.guarded}, rules: g.rules, remote: r.RemoteAddr,
		challenge: func(err error) string { return g.challenge(r, err) },
	}
	auth := r.Header.Get("Authorization")
	if !g.guarded {
		return c, nil
	}
	if auth == "" {
		if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
			return c, nil
		}
		id, err := identity.PeerID(*r.TLS) // the chain was verified in the handshake
		if err != nil {
			return nil, err
		}
		c.owner = ownerOf(id)
		return c, nil
	}
	c.shown = true
	var err error
	if scheme, secret, _ := strings.Cut(auth, " "); strings.EqualFold(scheme, "Bearer") {
		c.owner, err = g.bearer(r.Context(), strings.TrimSpace(secret))
	} else if user, password, ok := r.BasicAuth(); ok {
		c.owner, err = g.basic(r.Context(), user, password, r.RemoteAddr)
	} else {
		err = errWrong
	}
	return c, err
}

func ownerOf(id identity.ID) owner {
	o := owner{all: id.Has(identity.RoleAdmin)}
	for i, role := range id.Roles {
		name := string(role) + ":" + id.Name
		if i == 0 {
			o.user = name
		} else {
			o.also = append(o.also, name)
		}
	}
	return o
}

// bearer finds out whose a secret is: a token of the file's, one that a gateway of this cluster has given, or one of an OIDC issuer's.
func (g *Gateway) bearer(ctx context.Context, secret string) (owner, error) {
	if t, ok, err := g.users.whose(secret); ok {
		return owner{user: t.user, expires: t.expires}, err
	}
	if ours, ok, err := g.tokens.verify(ctx, secret); ok {
		return ours, err
	}
	return g.issuers.verify(ctx, secret)
}

// basic finds out who a name and a password are of. Without both it is nobody, which skopeo and others say so. A token
// does for a password: one of the file's with its user's name, one of an OIDC issuer's with any.
func (g *Gateway) basic(ctx context.Context, user, password, from string) (owner, error) {
	if user == "" && password == "" {
		return owner{user: Anonymous}, nil
	}
	if t, ok, err := g.users.whose(password); ok && t.user == user {
		return owner{user: t.user, expires: t.expires}, err
	}
	if g.issuers.know(password) {
		return g.issuers.verify(ctx, password)
	}
	if err := g.users.password(ctx, user, password, from); err != nil {
		return owner{}, fmt.Errorf("user %q: %w", user, err)
	}
	return owner{user: user}, nil
}

// refuse answers that the credentials are wrong, that some are needed, or that they cannot be checked.
func (g *Gateway) refuse(w http.ResponseWriter, r *http.Request, why error) {
	var many *tooMany
	switch {
	case errors.As(why, &many):
		w.Header().Set("Retry-After", strconv.Itoa(int(max(many.after, time.Second).Round(time.Second)/time.Second)))
		why = fmt.Errorf("%w: %w", ociregistry.ErrTooManyRequests, why)
	case errdefs.IsUnavailable(why):
		why = ociapi.WithStatus(http.StatusServiceUnavailable, "UNAVAILABLE", why)
	default:
		why = fmt.Errorf("%w: %w", ociregistry.ErrUnauthorized, why)
		w.Header().Set("WWW-Authenticate", g.challenge(r, why))
	}
	ociapi.WriteError(w, why, told(why))
}

// auditRefusal logs that credentials were refused: not that a token has run out, which clients renew then, nor every one of
// many guesses, which are logged once when they become too many.
func auditRefusal(r *http.Request, err error) {
	var many *tooMany
	l := log.G(r.Context()).WithError(err).WithFields(log.Fields{"remote": r.RemoteAddr, "result": "refused"})
	switch {
	case errors.Is(err, errExpired), r.Context().Err() != nil:
	case errors.As(err, &many):
		l.Debug("audit")
	default:
		l.Warn("audit")
	}
}

const basicChallenge = `Basic realm="Capelin", charset="UTF-8"`

// challenge is what a client is to do that was refused with an error: get a token from this gateway, or, while there is no key to
// sign one with, show name and password.
func (g *Gateway) challenge(r *http.Request, err error) string {
	if r.URL.Path == tokenPath || !g.tokens.able(r.Context()) {
		return basicChallenge
	}
	c := fmt.Sprintf("Bearer realm=%q,service=%q", realm(r), tokenService)
	if s := scopeOf(r); s != "" {
		c += fmt.Sprintf(",scope=%q", s)
	}
	switch {
	case errors.Is(err, errScope):
		c += `,error="insufficient_scope"`
	case errors.Is(err, errWrong):
		c += `,error="invalid_token"`
	}
	return c
}

var (
	errWrong = fmt.Errorf("wrong user name, password or token: %w", errdefs.ErrUnauthenticated)
	// errExpired is of a token of this service's.
	errExpired = fmt.Errorf("the token has expired: %w", errWrong)
	// errAsked is of who has shown nothing yet.
	errAsked = errors.New("log in")
	// errScope is of a token that is limited to something else.
	errScope = errors.New("the token is not for this")
)
