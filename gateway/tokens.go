package gateway

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"cuelabs.dev/go/oci/ociregistry"
	"cuelabs.dev/go/oci/ociregistry/ociauth"
	"github.com/containerd/log"
	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/capelin-io/capelin/control/index"
	"github.com/capelin-io/capelin/internal/ociapi"
)

// The token service, as distribution specifies it (https://distribution.github.io/distribution/spec/auth/token/ and .../oauth/): a
// client that was challenged says who it is here, and what for, and gets a token that says both for some minutes. Any
// gateway of the cluster believes it, by the key that the index keeps for them.

const (
	tokenPath     = ociapi.TokenPath
	tokenService  = "capelin" // the audience of tokens, and who has issued them
	tokenFor      = 5 * time.Minute
	tokenLeeway   = 30 * time.Second // by which clocks of gateways may differ
	maxScopes     = 50               // of a token, which goes into a header
	maxTokenForm  = 64 << 10         // bytes of a POST
	typCatalog    = "registry"
	nameCatalog   = "catalog"
	keysFor       = 10 * time.Minute // after which the index is asked for newer ones
	keysPause     = 2 * time.Second  // before it is asked again for one that is not known
	keysPauseOld  = time.Minute      // and if those that there are do meanwhile
	keysAskedFor  = 5 * time.Second
	actionsOfAll  = "*"
	grantPassword = "password"
)

// access is what a token is limited to.
type access []resource

// resource is one that a token is for, in the form of distribution's tokens.
type resource struct {
	Type    string   `json:"type"`
	Name    string   `json:"name"`
	Actions []string `json:"actions"`
}

// allows reports whether a token is for something; nil is for everything.
func (a *access) allows(do Action, repo string) bool {
	if a == nil {
		return true
	}
	return slices.ContainsFunc(*a, func(r resource) bool {
		if do == List {
			return r.Type == typCatalog && r.Name == nameCatalog
		}
		if do == Replicate { // no scope of its own: it is how something is pushed or deleted
			return r.Type == ociauth.TypeRepository && r.Name == repo &&
				(slices.Contains(r.Actions, string(Push)) || slices.Contains(r.Actions, string(Delete)))
		}
		return r.Type == ociauth.TypeRepository && r.Name == repo && slices.Contains(r.Actions, string(do))
	})
}

// claims are what a token says, beside who issued it, for whom, and until when.
type claims struct {
	Access access   `json:"access"`
	Also   []string `json:"also,omitempty"` // caller.also
	All    bool     `json:"all,omitempty"`  // caller.all
}

// keySource has the cluster's keys; an index.Client does.
type keySource interface {
	TokenKeys(ctx context.Context) ([]index.TokenKey, error)
}

// tokens makes and reads the tokens of this cluster. It is safe for concurrent use.
type tokens struct {
	source keySource
	now    func() time.Time

	keys atomic.Pointer[keyring]
	// asking is held by who asks the index: a channel, so that others can give up.
	asking chan struct{}
	asked  time.Time // last; of who holds asking
}

// keyring is what the index has said.
type keyring struct {
	keys []index.TokenKey
	at   time.Time
}

func newTokens(source keySource) *tokens {
	t := &tokens{source: source, now: time.Now, asking: make(chan struct{}, 1)}
	t.keys.Store(&keyring{})
	return t
}

func (k *keyring) has(id string) bool {
	return slices.ContainsFunc(k.keys, func(k index.TokenKey) bool { return id == "" || k.ID == id })
}

// look returns the keys that are known, after it has asked for others if there is none of that id ("": any). If those that there
// are have become old one asks, and nobody waits for it.
func (t *tokens) look(ctx context.Context, id string) []index.TokenKey {
	k := t.keys.Load()
	switch {
	case k.has(id) && t.now().Sub(k.at) < keysFor:
		return k.keys
	case k.has(id):
		select {
		case t.asking <- struct{}{}:
		default:
			return k.keys
		}
	default:
		select {
		case t.asking <- struct{}{}:
		case <-ctx.Done():
			return k.keys
		}
	}
	defer func() { <-t.asking }()
	k = t.keys.Load()
	pause := keysPause
	if k.has(id) {
		pause = keysPauseOld
	}
	if k.has(id) && t.now().Sub(k.at) < keysFor || !t.asked.IsZero() && t.now().Sub(t.asked) < pause {
		return k.keys
	}
	ctx, cancel := context.WithTimeout(ctx, keysAskedFor)
	defer cancel()
	keys, err := t.source.TokenKeys(ctx)
	if t.asked = t.now(); err != nil {
		log.G(ctx).WithError(err).WithField("known", len(k.keys)).
			Warn("the index gives no key for tokens; without one, clients are asked for names and passwords with each request")
		return k.keys
	}
	t.keys.Store(&keyring{keys, t.asked})
	return keys
}

// able reports whether there is a key to sign with.
func (t *tokens) able(ctx context.Context) bool { return len(t.look(ctx, "")) > 0 }

// issue returns a token for its owner, and for how long it is good.
func (t *tokens) issue(ctx context.Context, o owner, a access) (token string, at time.Time, lasts time.Duration, err error) {
	keys := t.look(ctx, "")
	if len(keys) == 0 {
		return "", at, 0, unavailable(errors.New("the index has no key for tokens: it does not answer, or is older than this gateway"))
	}
	at, lasts = t.now(), tokenFor
	if !o.expires.IsZero() {
		lasts = min(lasts, o.expires.Sub(at))
	}
	if lasts <= 0 {
		return "", at, 0, fmt.Errorf("%w: %w", ociregistry.ErrUnauthorized, errExpired)
	}
	by := new(jose.SignerOptions).WithHeader("kid", keys[0].ID)
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.HS256, Key: keys[0].Secret}, by)
	if err != nil {
		return "", at, 0, err
	}
	token, err = jwt.Signed(signer).Claims(jwt.Claims{
		Issuer: tokenService, Audience: jwt.Audience{tokenService}, Subject: o.user,
		IssuedAt: jwt.NewNumericDate(at), Expiry: jwt.NewNumericDate(at.Add(lasts)),
	}).Claims(claims{a, o.also, o.all}).Serialize()
	return token, at, lasts, err
}

// verify reads a token. ok is false if it is none that this cluster has issued, for all that it says itself.
func (t *tokens) verify(ctx context.Context, raw string) (o owner, ok bool, err error) {
	if !looksSigned(raw) {
		return o, false, nil
	}
	signed, err := jwt.ParseSigned(raw, []jose.SignatureAlgorithm{jose.HS256})
	if err != nil || len(signed.Headers) != 1 {
		return o, false, nil //nolint:nilerr // it is another one's
	}
	id := signed.Headers[0].KeyID
	keys := t.look(ctx, id)
	i := slices.IndexFunc(keys, func(k index.TokenKey) bool { return k.ID == id })
	if i < 0 {
		if len(keys) == 0 {
			return o, true, unavailable(errors.New("the index does not answer, which has the key that tokens are signed with"))
		}
		return o, true, errExpired // by a key that is no longer good, for all that is known
	}
	var std jwt.Claims
	var more claims
	if err := signed.Claims(keys[i].Secret, &std, &more); err != nil {
		return o, true, errors.Join(errWrong, err)
	}
	expected := jwt.Expected{Issuer: tokenService, AnyAudience: jwt.Audience{tokenService}, Time: t.now()}
	switch err := std.ValidateWithLeeway(expected, tokenLeeway); {
	case errors.Is(err, jwt.ErrExpired):
		return o, true, errExpired
	case err != nil || std.Expiry == nil || std.Subject == "":
		return o, true, errors.Join(errWrong, err)
	}
	return owner{user: std.Subject, also: more.Also, all: more.All, expires: std.Expiry.Time(), access: &more.Access}, true, nil
}

// looksSigned reports whether a secret has the form of a JSON Web Token.
func looksSigned(raw string) bool {
	return strings.HasPrefix(raw, "ey") && strings.Count(raw, ".") == 2
}

// realm is where the gateway that was asked gives tokens, as the client knows it.
func realm(r *http.Request) string {
	u := url.URL{Scheme: "http", Host: r.Host, Path: tokenPath}
	if r.TLS != nil || strings.EqualFold(r.Header.Get("X-Forwarded-Proto"), "https") { // whoever lies in it misleads itself only
		u.Scheme = "https"
	}
	return u.String()
}

// scopeOf is what a token is needed for to make a request, in the grammar of
// https://distribution.github.io/distribution/spec/auth/scope/.
func scopeOf(r *http.Request) string {
	at, err := ociapi.Parse(r.URL.Path)
	switch {
	case err != nil:
		return ""
	case at.Kind == ociapi.Catalog:
		return ociauth.CatalogScope.ResourceType + ":" + ociauth.CatalogScope.Resource + ":" + ociauth.CatalogScope.Action
	case at.Repository == "":
		return ""
	}
	actions := "pull,push"
	switch {
	case at.Kind == ociapi.Uploads || at.Kind == ociapi.Upload:
	case r.Method == http.MethodGet || r.Method == http.MethodHead:
		actions = string(Pull)
	case r.Method == http.MethodDelete:
		actions = string(Delete)
	}
	s := "repository:" + at.Repository + ":" + actions
	if from := r.URL.Query().Get("from"); at.Kind == ociapi.Uploads && index.CheckRepository(from) == nil {
		s += " repository:" + from + ":pull"
	}
	return s
}

// grant returns what of some scopes a caller may have. What it may not, and what is no resource here, is left out, as the
// specification has it.
func grant(c *caller, scopes []string) (access, error) {
	a := access{}
	fields := strings.Fields(strings.Join(scopes, " "))
	// No name is what ociauth takes for the catalog's.
	fields = slices.DeleteFunc(fields, func(s string) bool { return strings.Contains(s, "::") })
	wanted := ociauth.ParseScope(strings.Join(fields, " "))
	if wanted.Len() > 4*maxScopes {
		return nil, fmt.Errorf("more than %d scopes", maxScopes)
	}
	for s := range wanted.Iter() {
		kind, _, _ := strings.Cut(s.ResourceType, "(") // its class, such as repository(plugin)
		var actions []string
		switch {
		case s == ociauth.CatalogScope && c.may(List, ""):
			actions = []string{s.Action}
		case kind == ociauth.TypeRepository && index.CheckRepository(s.Resource) == nil:
			for _, do := range []Action{Pull, Push, Delete} {
				if (s.Action == string(do) || s.Action == actionsOfAll) && c.may(do, s.Resource) {
					actions = append(actions, string(do))
				}
			}
		}
		if len(actions) == 0 {
			continue
		}
		if n := len(a); n > 0 && a[n-1].Type == kind && a[n-1].Name == s.Resource {
			actions = append(a[n-1].Actions, actions...)
			a = a[:n-1]
		}
		slices.Sort(actions)
		actions = slices.Compact(actions)
		a = append(a, resource{kind, s.Resource, actions})
	}
	if len(a) > maxScopes {
		return nil, fmt.Errorf("more than %d repositories", maxScopes)
	}
	return a, nil
}

// giveToken answers a request for a token.
func (g *Gateway) giveToken(w http.ResponseWriter, r *request) error {
	w.Header().Set("Cache-Control", "no-store")
	if !g.guarded { // nobody is asked for one
		return ociapi.Refuse(http.StatusNotFound, ociregistry.ErrUnsupported.Code(), "everybody may do everything here, without a token")
	}
	c, scopes := callerOf(r.Context()), r.query["scope"]
	if r.Method == http.MethodPost {
		var err error
		if scopes, err = g.oauth(w, r.Request, c); err != nil {
			auditRefusal(r.Request, err)
			g.refuse(w, r.Request, err)
			return nil
		}
	}
	a, err := grant(c, scopes)
	if err != nil {
		return ociapi.WithStatus(http.StatusBadRequest, ociregistry.ErrUnsupported.Code(), err)
	}
	token, at, lasts, err := g.tokens.issue(r.Context(), c.owner, a)
	if err != nil {
		return err
	}
	return writeJSON(w, "application/json", struct {
		Token       string `json:"token"`
		AccessToken string `json:"access_token"`
		ExpiresIn   int    `json:"expires_in"` // seconds
		IssuedAt    string `json:"issued_at"`
		Scope       string `json:"scope,omitempty"`
	}{token, token, int(lasts / time.Second), at.UTC().Format(time.RFC3339), a.String()})
}

// String is in the grammar of scopes.
func (a access) String() string {
	all := make([]string, len(a))
	for i, r := range a {
		all[i] = r.Type + ":" + r.Name + ":" + strings.Join(r.Actions, ",")
	}
	return strings.Join(all, " ")
}

// oauth reads who asks for a token from a form, instead of headers.
func (g *Gateway) oauth(w http.ResponseWriter, r *http.Request, c *caller) (scopes []string, err error) {
	r.Body = http.MaxBytesReader(w, r.Body, maxTokenForm)
	if err := r.ParseForm(); err != nil {
		return nil, errors.Join(errWrong, err)
	}
	switch grant := r.PostForm.Get("grant_type"); grant {
	case grantPassword:
		c.owner, err = g.basic(r.Context(), r.PostForm.Get("username"), r.PostForm.Get("password"), r.RemoteAddr)
	case "refresh_token": // which may be any token that does for a password
		c.owner, err = g.bearer(r.Context(), r.PostForm.Get("refresh_token"))
	default:
		err = errors.Join(errWrong, fmt.Errorf("grant_type %.40q is neither password nor refresh_token", grant))
	}
	return r.PostForm["scope"], err
}
