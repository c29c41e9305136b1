package gateway

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/coreos/go-oidc/v3/oidc/oidctest"
	"github.com/go-jose/go-jose/v4"
)

// issues is an issuer of tokens, as a CI system has it.
type issues struct {
	t     *testing.T
	url   string
	key   *ecdsa.PrivateKey
	ca    string // file
	asked atomic.Int32
	down  atomic.Bool
}

func newIssues(t *testing.T) *issues {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	x := &issues{t: t, key: key}
	s := &oidctest.Server{PublicKeys: []oidctest.PublicKey{{PublicKey: key.Public(), KeyID: "k", Algorithm: oidc.ES256}}}
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		x.asked.Add(1)
		if x.down.Load() {
			http.Error(w, "down", http.StatusInternalServerError)
			return
		}
		s.ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)
	s.SetIssuer(srv.URL)
	x.url, x.ca = srv.URL, filepath.Join(t.TempDir(), "ca")
	if err := os.WriteFile(x.ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	return x
}

// token is one of a job's of octo-org/app, with these claims instead.
func (x *issues) token(claims map[string]any) string {
	x.t.Helper()
	all := map[string]any{
		"iss": x.url, "aud": "capelin.test", "sub": "repo:octo-org/app:ref:refs/heads/main", "exp": time.Now().Add(time.Hour).Unix(),
		"repository": "octo-org/app", "repository_owner": "octo-org", "ref": "refs/heads/main", "protected": true, "groups": []string{"a", "b"},
	}
	maps.Copy(all, claims)
	for k, v := range all {
		if v == nil {
			delete(all, k)
		}
	}
	raw, err := json.Marshal(all)
	if err != nil {
		x.t.Fatal(err)
	}
	return oidctest.SignIDToken(x.key, "k", oidc.ES256, string(raw))
}

func (x *issues) config() OIDCConfig {
	return OIDCConfig{Issuer: x.url, Audiences: []string{"other.test", "capelin.test"}, User: "ci:{repository}", CA: x.ca,
		Claims: []string{"repository_owner=octo-org", "ref=refs/heads/*", "groups=b", "protected=true"}}
}

// newCI is a gateway that believes an issuer, whose jobs may push to their owner's namespace.
func newCI(t *testing.T, x *issues, more ...OIDCConfig) *gateway {
	return newGateway(t, func(c *Config) {
		c.OIDC = append([]OIDCConfig{x.config()}, more...)
		r := RuleConfig{Users: []string{"ci:octo-*"}, Namespaces: []string{"octo-org/.*"}, Actions: []string{"pull", "push"}}
		c.Rules = append(c.Rules, r)
	})
}

// Jobs of a CI system are who its tokens say, if those are for this cluster and say what they must.
func TestOIDC(t *testing.T) {
	x := newIssues(t)
	g := newCI(t, x)
	for _, tt := range []struct {
		name   string
		claims map[string]any
		want   int // of a push to octo-org/app
	}{
		{"good", nil, 202},
		{"several audiences", map[string]any{"aud": []string{"x", "capelin.test"}}, 202},
		{"another branch", map[string]any{"ref": "refs/heads/feature/x"}, 202},
		{"another repository's", map[string]any{"repository": "octo-cats/app"}, 202},
		{"a stranger's, whose name no rule has", map[string]any{"repository": "evil/app"}, 403},
		{"another audience", map[string]any{"aud": "registry.example.com"}, 401},
		{"another issuer", map[string]any{"iss": "https://evil.test"}, 401},
		{"expired", map[string]any{"exp": time.Now().Add(-time.Minute).Unix()}, 401},
		{"not yet", map[string]any{"nbf": time.Now().Add(time.Hour).Unix()}, 401},
		{"without expiry", map[string]any{"exp": nil}, 401},
		{"another owner", map[string]any{"repository_owner": "octo-org2"}, 401},
		{"a tag", map[string]any{"ref": "refs/tags/v1"}, 401},
		{"no claim", map[string]any{"ref": nil}, 401},
		{"not in the group", map[string]any{"groups": []string{"a"}}, 401},
		{"not protected", map[string]any{"protected": false}, 401},
		{"without a name", map[string]any{"repository": nil}, 401},
		{"with an empty name", map[string]any{"repository": ""}, 401},
		{"with several names", map[string]any{"repository": []string{"octo-org/app", "b"}}, 401},
		{"with a long name", map[string]any{"repository": "octo-" + strings.Repeat("x", maxClaimed)}, 401},
		{"with a strange name", map[string]any{"repository": "octo-\nuser=admin"}, 401},
	} {
		raw := x.token(tt.claims)
		if resp, body := g.do("Bearer "+raw, "POST", "/v2/octo-org/app/blobs/uploads/", ""); resp.StatusCode != tt.want {
			t.Errorf("%s: %s %s, want %d", tt.name, resp.Status, body, tt.want)
		}
	}
	if n := x.asked.Load(); n != 2 { // where its keys are, and for them
		t.Errorf("the issuer was asked %d times", n)
	}
	good := x.token(nil)
	parts := strings.Split(good, ".")
	other, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	for name, raw := range map[string]string{
		"cut":                    good[:len(good)-3],
		"of another's signature": parts[0] + "." + parts[1] + "." + strings.Split(x.token(map[string]any{"a": 1}), ".")[2],
		"forged":                 oidctest.SignIDToken(other, "k", oidc.ES256, `{"iss":"`+x.url+`","aud":"capelin.test","exp":9999999999}`),
		"unsigned":               "eyJhbGciOiJub25lIn0." + parts[1] + ".",
		"by a secret":            hs256(t, parts[1]),
	} {
		if resp, body := g.do("Bearer "+raw, "GET", "/v2/", ""); resp.StatusCode != 401 {
			t.Errorf("%s: %s %s", name, resp.Status, body)
		}
	}
}

// hs256 signs claims by a secret that everybody knows.
func hs256(t *testing.T, payload string) string {
	t.Helper()
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.HS256, Key: []byte(strings.Repeat("k", 32))}, nil)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := s.Sign([]byte(payload))
	if err != nil {
		t.Fatal(err)
	}
	raw, err := signed.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// A token does for a password, whatever the name, so that docker login and kubelet's credential providers can show it; what is
// given for it ends when it does.
func TestOIDCAsPassword(t *testing.T) {
	x := newIssues(t)
	g := newCI(t, x)
	req, err := http.NewRequestWithContext(t.Context(), "GET", g.url+tokenPath+"?scope=repository:octo-org/app:push", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.SetBasicAuth("oidc", x.token(map[string]any{"exp": time.Now().Add(100 * time.Second).Unix()}))
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var v struct {
		Token     string
		ExpiresIn int `json:"expires_in"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&v); err != nil || v.ExpiresIn < 60 || v.ExpiresIn > 100 {
		t.Errorf("%s: %+v, %v", resp.Status, v, err)
	}
	if resp, body := g.do("Bearer "+v.Token, "POST", "/v2/octo-org/app/blobs/uploads/", ""); resp.StatusCode != 202 {
		t.Errorf("with what it gave: %s %s", resp.Status, body)
	}
}

// Of several configurations of an issuer the first one that suits decides; keys may be in a file, and then nobody is asked.
func TestOIDCKeysInAFile(t *testing.T) {
	x := newIssues(t)
	file := filepath.Join(t.TempDir(), "keys")
	set := jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: x.key.Public(), KeyID: "k"}}}
	raw, err := json.Marshal(set)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	accounts := OIDCConfig{Issuer: x.url, Audiences: []string{"capelin.test"}, User: "k8s:{sub}", Keys: file}
	g := newGateway(t, func(c *Config) {
		first := x.config()
		first.Keys = file
		c.OIDC = []OIDCConfig{first, accounts}
		r := RuleConfig{Users: []string{"k8s:system:serviceaccount:ci:*"}, Namespaces: []string{"ci/.*"}, Actions: []string{"push"}}
		c.Rules = append(c.Rules, r)
	})
	for sub, want := range map[string]int{"system:serviceaccount:ci:builder": 202, "system:serviceaccount:web:default": 403} {
		raw := x.token(map[string]any{"sub": sub, "repository": nil})
		if resp, body := g.do("Bearer "+raw, "POST", "/v2/ci/app/blobs/uploads/", ""); resp.StatusCode != want {
			t.Errorf("%s: %s %s", sub, resp.Status, body)
		}
	}
	if n := x.asked.Load(); n != 0 {
		t.Errorf("the issuer was asked %d times", n)
	}
	for _, bad := range []string{"", "{}", `{"keys":[]}`, `{"keys":[{"kty":"oct","k":"aaaa"}]}`} {
		if err := os.WriteFile(file, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := openIssuers([]OIDCConfig{accounts}); err == nil || !strings.HasPrefix(err.Error(), "oidc[0].keys") {
			t.Errorf("%q as keys: %v", bad, err)
		}
	}
}

// An issuer that does not answer makes its tokens no wrong ones; strangers cannot make us ask it all the time.
func TestOIDCIssuerIsAway(t *testing.T) {
	x := newIssues(t)
	g := newCI(t, x)
	x.down.Store(true)
	for range 3 * issuerBurst {
		resp, body := g.do("Bearer "+x.token(nil), "GET", "/v2/", "")
		if resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" || !strings.Contains(body, "OIDC issuer") {
			t.Errorf("%s %s", resp.Status, body)
		}
	}
	if n := x.asked.Load(); n > issuerBurst {
		t.Errorf("it was asked %d times", n)
	}
	all, err := openIssuers([]OIDCConfig{x.config()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := all.verify(t.Context(), x.token(nil)); !errdefs.IsUnavailable(err) {
		t.Errorf("away: %v", err)
	}
	x.down.Store(false)
	if o, err := all.verify(t.Context(), x.token(nil)); err != nil || o.user != "ci:octo-org/app" {
		t.Errorf("back: %+v, %v", o, err)
	}
	x.down.Store(true) // its keys are known
	if _, err := all.verify(t.Context(), x.token(nil)); err != nil {
		t.Errorf("away again: %v", err)
	}
	before := x.asked.Load()
	for i := range 3 * issuerBurst {
		_, _ = all.verify(t.Context(), oidctest.SignIDToken(x.key, fmt.Sprint("k", i), oidc.ES256, `{"iss":"`+x.url+`"}`))
	}
	if n := x.asked.Load() - before; n > issuerBurst {
		t.Errorf("forged keys made us ask %d times", n)
	}
}

func TestOIDCConfig(t *testing.T) {
	for _, tt := range []struct {
		change func(*OIDCConfig)
		want   string
	}{
		{func(*OIDCConfig) {}, ""},
		{func(c *OIDCConfig) { c.Issuer = "ftp://x" }, "oidc[0].issuer"},
		{func(c *OIDCConfig) { c.Issuer = "" }, "oidc[0].issuer"},
		{func(c *OIDCConfig) { c.Issuer = "http://ci.test" }, "oidc[0].issuer"},
		{func(c *OIDCConfig) { c.Issuer, c.Keys = "http://ci.test", "file" }, ""},
		{func(c *OIDCConfig) { c.Issuer = "http://127.0.0.1:80" }, ""},
		{func(c *OIDCConfig) { c.Audiences = nil }, "oidc[0].audiences"},
		{func(c *OIDCConfig) { c.Audiences = []string{""} }, "oidc[0].audiences"},
		{func(c *OIDCConfig) { c.User = "{sub}" }, "oidc[0].user"},
		{func(c *OIDCConfig) { c.User = ":{sub}" }, "oidc[0].user"},
		{func(c *OIDCConfig) { c.User = "admin:{sub}" }, "oidc[0].user"}, // nobody becomes the owner of a certificate
		{func(c *OIDCConfig) { c.User = "ci:all" }, "oidc[0].user"},
		{func(c *OIDCConfig) { c.User = "ci:{sub" }, "oidc[0].user"},
		{func(c *OIDCConfig) { c.User = "ci:{}" }, "oidc[0].user"},
		{func(c *OIDCConfig) { c.Claims = []string{"ref"} }, "oidc[0].claims"},
		{func(c *OIDCConfig) { c.Claims = []string{"ref=["} }, "oidc[0].claims"},
	} {
		cfg := DefaultConfig()
		x := OIDCConfig{}.Example().(OIDCConfig)
		tt.change(&x)
		cfg.OIDC = []OIDCConfig{x}
		switch err := cfg.Validate(); {
		case tt.want == "" && err != nil:
			t.Errorf("%+v: %v", x, err)
		case tt.want != "" && (err == nil || !strings.HasPrefix(err.Error(), tt.want+":")):
			t.Errorf("%+v: %v, want one of %s", x, err, tt.want)
		}
	}
}
