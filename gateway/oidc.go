package gateway

import (
	"context"
	"crypto"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"golang.org/x/time/rate"

	"github.com/capelin-io/capelin/internal/daemon/config"
	"github.com/capelin-io/capelin/internal/daemon/identity"
	"github.com/capelin-io/capelin/internal/daemon/ops"
	"github.com/capelin-io/capelin/internal/httpclient"
	"github.com/capelin-io/capelin/internal/reload"
)

// OIDCConfig believes the tokens of an issuer: those that a CI system gives its jobs, or Kubernetes its service accounts.
type OIDCConfig struct {
	Issuer    string   `toml:"issuer" comment:"What tokens have as \"iss\", an https URL: \"https://token.actions.githubusercontent.com\" of GitHub, \"https://gitlab.com\" of GitLab, of Kubernetes what \"kubectl get --raw /.well-known/openid-configuration\" says."`
	Audiences []string `toml:"audiences" comment:"What tokens have as \"aud\", one of these: whom they were made for. Choose one that only this cluster's gateways use."`
	User      string   `toml:"user" comment:"The user that a token's owner is in rules: text that begins with a word and a colon, with claims in braces, such as \"github:{repository}\" or \"k8s:{sub}\"."`
	Claims    []string `toml:"claims" comment:"What else a token must say, \"claim=value\" each; * stands for any characters. Of a claim with several values, one has to match."`
	Keys      string   `toml:"keys" comment:"File with the issuer's public keys (a JSON Web Key Set), for issuers that gateways do not reach; \"kubectl get --raw /openid/v1/jwks\" prints that of Kubernetes. A changed file is read again. Empty: the issuer is asked for its keys, over https."`
	CA        string   `toml:"ca" comment:"PEM file of authorities that the issuer's certificate may be from, beside the system's."`
}

// Example returns what a printed configuration shows.
func (OIDCConfig) Example() any {
	return OIDCConfig{
		Issuer: "https://token.actions.githubusercontent.com", Audiences: []string{"capelin.example.com"}, User: "github:{repository}",
		Claims: []string{"repository_owner=octo-org", "ref=refs/heads/*"},
	}
}

const (
	maxClaimed  = 256     // bytes of a user's name that is made of claims
	maxIssuer   = 1 << 20 // bytes of an issuer's answer
	issuerWaits = 10 * time.Second
	issuerEvery = 10 * time.Second // between questions to one, beyond the first few: any stranger can make us ask
	issuerBurst = 4
)

// algorithms are what issuers sign with: none that needs a secret.
var algorithms = []jose.SignatureAlgorithm{
	jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512, jose.ES256, jose.ES384, jose.ES512, jose.EdDSA,
}

// issuers are those whose tokens are believed. They are safe for concurrent use.
type issuers []*issuer

type issuer struct {
	cfg     OIDCConfig
	claims  []claimed
	client  *http.Client
	file    *reload.Files[*oidc.StaticKeySet] // nil: the issuer is asked
	looking chan struct{}                     // held by who finds out where its keys are
	remote  oidc.KeySet                       // what that has found
	known   atomic.Bool                       // some key has come
}

type claimed struct{ name, pattern string }

var inBraces = regexp.MustCompile(`\{([^{}]*)\}`)

// check reports what of a configuration cannot work, by its keys below a prefix.
func (c *OIDCConfig) check(prefix string) (errs []error) {
	bad := func(key, format string, args ...any) {
		errs = append(errs, config.Invalid(prefix+key, format, args...))
	}
	u, err := url.Parse(c.Issuer)
	switch {
	case err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" || u.RawQuery != "" || u.Fragment != "":
		bad("issuer", "%q is not an https URL", c.Issuer)
	case u.Scheme == "http" && c.Keys == "" && !identity.IsLoopback(u.Host):
		bad("issuer", "%q is not https, so that anybody on the way could say which keys it has: use https, or name them in keys", c.Issuer)
	}
	if len(c.Audiences) == 0 || slices.Contains(c.Audiences, "") {
		bad("audiences", "must name for whom tokens are: those for others must not do here")
	}
	begin, _, _ := strings.Cut(c.User, "{")
	word, _, ok := strings.Cut(begin, ":")
	switch {
	case !ok || word == "":
		bad("user", "%q does not begin with a word and a colon, which keep these users apart: such as \"github:{repository}\"", c.User)
	case slices.Contains(identity.Roles, identity.Role(word)):
		bad("user", "%q begins with a role: that is how owners of certificates are called", c.User)
	case !inBraces.MatchString(c.User) || strings.ContainsAny(inBraces.ReplaceAllString(c.User, ""), "{}") || strings.Contains(c.User, "{}"):
		bad("user", "%q needs claims in braces, such as {sub}", c.User)
	}
	for _, s := range c.Claims {
		name, pattern, ok := strings.Cut(s, "=")
		if _, err := path.Match(pattern, ""); !ok || name == "" || err != nil {
			bad("claims", "%q is not \"claim=value\"", s)
		}
	}
	return errs
}

// openIssuers reads the files that configurations name. No issuer is asked yet.
func openIssuers(configs []OIDCConfig) (all issuers, err error) {
	for i, c := range configs {
		x := &issuer{cfg: c, looking: make(chan struct{}, 1)}
		for _, s := range c.Claims {
			name, pattern, _ := strings.Cut(s, "=")
			x.claims = append(x.claims, claimed{name, pattern})
		}
		key := fmt.Sprintf("oidc[%d].", i)
		if x.client, err = c.client(key + "ca"); err != nil {
			return nil, err
		}
		if c.Keys != "" {
			read := func() (*oidc.StaticKeySet, error) { return readKeys(key+"keys", c.Keys) }
			if x.file, err = reload.Open(read, ops.Reread("keys of "+c.Issuer), c.Keys); err != nil {
				return nil, err
			}
		}
		all = append(all, x)
	}
	return all, nil
}

// client returns one that asks this issuer, seldom, and reads little.
func (c *OIDCConfig) client(key string) (*http.Client, error) {
	t := httpclient.NewTransport()
	t.DisableKeepAlives = true // it is asked once in a while
	var err error
	if t.TLSClientConfig, err = httpclient.TrustAlso(c.CA); err != nil {
		return nil, config.Unreadable(key, c.CA, err)
	}
	return &http.Client{Transport: &sparing{t, rate.NewLimiter(rate.Every(issuerEvery), issuerBurst)}, Timeout: issuerWaits}, nil
}

// sparing asks an issuer now and then, and takes what is no answer for none.
type sparing struct {
	http.RoundTripper
	limit *rate.Limiter
}

func (s *sparing) RoundTrip(r *http.Request) (*http.Response, error) {
	if !s.limit.Allow() {
		return nil, errSeldom
	}
	resp, err := s.RoundTripper.RoundTrip(r)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrUnavailable)
	}
	if resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		return nil, fmt.Errorf("%s says %s: %w", r.URL.Redacted(), resp.Status, errdefs.ErrUnavailable)
	}
	resp.Body = httpclient.Bounded(resp.Body, maxIssuer)
	return resp, nil
}

var errSeldom = fmt.Errorf("it is asked only every %v: %w", issuerEvery, errdefs.ErrUnavailable)

func readKeys(key, file string) (*oidc.StaticKeySet, error) {
	data, err := readFile(key, file)
	if err != nil {
		return nil, err
	}
	var set jose.JSONWebKeySet
	if err := json.Unmarshal(data, &set); err != nil {
		return nil, config.Invalid(key, "%s is no JSON Web Key Set: %v", file, err)
	}
	var keys []crypto.PublicKey
	for _, k := range set.Keys {
		if k.IsPublic() {
			keys = append(keys, k.Key)
		}
	}
	if len(keys) == 0 {
		return nil, config.Invalid(key, "%s has no public key", file)
	}
	return &oidc.StaticKeySet{PublicKeys: keys}, nil
}

// issuerOf returns whose token it says that it is; "" if it is none.
func issuerOf(raw string) string {
	if !looksSigned(raw) {
		return ""
	}
	var c jwt.Claims
	t, err := jwt.ParseSigned(raw, algorithms)
	if err != nil || t.UnsafeClaimsWithoutVerification(&c) != nil {
		return ""
	}
	return c.Issuer
}

// know reports whether a secret says that it is a token of one of the issuers.
func (all issuers) know(raw string) bool {
	if len(all) == 0 || !looksSigned(raw) {
		return false
	}
	by := issuerOf(raw)
	return slices.ContainsFunc(all, func(x *issuer) bool { return x.cfg.Issuer == by })
}

// verify returns whose token it is: that of the first configuration of its issuer that it suits. errdefs.ErrUnavailable: the issuer's
// keys are not known; else errWrong.
func (all issuers) verify(ctx context.Context, raw string) (owner, error) {
	why := errWrong
	by := issuerOf(raw)
	for _, x := range all {
		if x.cfg.Issuer != by {
			continue
		}
		o, err := x.verify(ctx, raw)
		if err == nil {
			return o, nil
		}
		if why = err; errdefs.IsUnavailable(err) {
			return owner{}, err
		}
	}
	return owner{}, why
}

func (x *issuer) verify(ctx context.Context, raw string) (o owner, err error) {
	keys, err := x.keys(ctx)
	if err != nil {
		return o, err
	}
	noted := &notedKeys{KeySet: keys}
	names := make([]string, len(algorithms))
	for i, a := range algorithms {
		names[i] = string(a)
	}
	// Whom it is for is compared below: there may be several.
	t, err := oidc.NewVerifier(x.cfg.Issuer, noted, &oidc.Config{SkipClientIDCheck: true, SupportedSigningAlgs: names}).Verify(ctx, raw)
	switch {
	case err == nil:
		x.known.Store(true)
	case errors.Is(noted.err, errSeldom) && x.known.Load():
		return o, errors.Join(errWrong, err) // most likely: it asks again whenever a signature is wrong
	case errdefs.IsUnavailable(noted.err):
		return o, fmt.Errorf("the keys of the OIDC issuer %s: %w", x.host(), noted.err)
	default:
		return o, errors.Join(errWrong, err)
	}
	wrong := func(format string, args ...any) (owner, error) {
		return owner{}, errors.Join(errWrong, fmt.Errorf("the token of %s, for %q: %s", x.cfg.Issuer, t.Subject, fmt.Sprintf(format, args...)))
	}
	if !slices.ContainsFunc(t.Audience, func(a string) bool { return slices.Contains(x.cfg.Audiences, a) }) {
		return wrong("its audience is %q, not one of %q", t.Audience, x.cfg.Audiences)
	}
	var all map[string]any
	if err := t.Claims(&all); err != nil {
		return wrong("%v", err)
	}
	for _, c := range x.claims {
		if !slices.ContainsFunc(values(all[c.name]), func(v string) bool { return matches(c.pattern, v) }) {
			return wrong("its claim %s is %.100q, not %q", c.name, values(all[c.name]), c.pattern)
		}
	}
	name, lacks := x.name(all)
	switch {
	case lacks != "":
		return wrong("it has no single %s, of which its user's name is made", lacks)
	case len(name) > maxClaimed || strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return wrong("%.100q is no user's name", name)
	}
	return owner{user: name, expires: t.Expiry}, nil
}

// host is how clients are told of it, who see no URLs.
func (x *issuer) host() string {
	_, host, _ := strings.Cut(x.cfg.Issuer, "://")
	return host
}

// name makes the user's name of claims, or says which one lacks.
func (x *issuer) name(all map[string]any) (name, lacks string) {
	name = inBraces.ReplaceAllStringFunc(x.cfg.User, func(s string) string {
		v := values(all[strings.Trim(s, "{}")])
		if len(v) != 1 || v[0] == "" {
			lacks = s
			return ""
		}
		return v[0]
	})
	return name, lacks
}

// values are those of a claim that can be compared.
func values(claim any) []string {
	switch v := claim.(type) {
	case string:
		return []string{v}
	case bool, float64:
		return []string{fmt.Sprint(v)}
	case []any:
		var all []string
		for _, e := range v {
			if s, ok := e.(string); ok {
				all = append(all, s)
			}
		}
		return all
	}
	return nil
}

// keys returns the issuer's, from its file, or as itself says where they are.
func (x *issuer) keys(ctx context.Context) (oidc.KeySet, error) {
	if x.file != nil {
		return x.file.Get(), nil
	}
	select {
	case x.looking <- struct{}{}:
		defer func() { <-x.looking }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if x.remote != nil {
		return x.remote, nil
	}
	ctx = oidc.ClientContext(ctx, x.client)
	p, err := oidc.NewProvider(ctx, x.cfg.Issuer)
	var says struct {
		Keys string `json:"jwks_uri"`
	}
	if err == nil {
		err = p.Claims(&says)
	}
	if err != nil {
		return nil, fmt.Errorf("asking the OIDC issuer %s for its keys: %w: %w", x.host(), err, errdefs.ErrUnavailable)
	}
	x.remote = oidc.NewRemoteKeySet(ctx, says.Keys)
	return x.remote, nil
}

// notedKeys notes why a signature was not found to be good: a Verifier does not pass that on.
type notedKeys struct {
	oidc.KeySet
	err error
}

func (k *notedKeys) VerifySignature(ctx context.Context, raw string) ([]byte, error) {
	payload, err := k.KeySet.VerifySignature(ctx, raw)
	k.err = err
	return payload, err
}
