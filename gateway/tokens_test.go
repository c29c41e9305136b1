package gateway

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/capelin-io/capelin/control/index"
)

// token asks for one, as somebody (do), and returns it and the scope that it was given for.
func (g *gateway) token(as string, scopes ...string) (token, scope string) {
	g.t.Helper()
	resp, body := g.do(as, "GET", tokenPath+"?"+url.Values{"service": {tokenService}, "scope": scopes}.Encode(), "")
	return g.given(resp, body)
}

func (g *gateway) given(resp *http.Response, body string) (token, scope string) {
	g.t.Helper()
	var v struct {
		Token       string `json:"token"`
		AccessToken string `json:"access_token"`
		ExpiresIn   int    `json:"expires_in"`
		IssuedAt    string `json:"issued_at"`
		Scope       string `json:"scope"`
	}
	if err := json.Unmarshal([]byte(body), &v); err != nil || resp.StatusCode != 200 {
		g.t.Fatalf("%s %s", resp.Status, body)
	}
	at, err := time.Parse(time.RFC3339, v.IssuedAt)
	if v.Token == "" || v.Token != v.AccessToken || v.ExpiresIn < 60 || v.ExpiresIn > 300 || err != nil ||
		time.Since(at).Abs() > time.Minute ||
		resp.Header.Get("Cache-Control") != "no-store" {
		g.t.Errorf("%s %v", body, resp.Header)
	}
	return v.Token, v.Scope
}

// What may be asked for, in the grammar of scopes, and what of it is given.
func TestTokenScopes(t *testing.T) {
	g := newGateway(t, nil)
	for _, tt := range []struct {
		as    string
		ask   []string
		given string
	}{
		{"alice", []string{"repository:team/app:pull,push"}, "repository:team/app:pull,push"},
		{"alice", []string{"repository:team/app:push,pull repository:public/x:pull"}, "repository:public/x:pull repository:team/app:pull,push"},
		{"alice", []string{"repository:team/app:pull", "repository:public/x:pull,push"}, "repository:public/x:pull repository:team/app:pull"},
		{"alice", []string{"repository:team/app:*"}, "repository:team/app:delete,pull,push"},
		{"alice", []string{"repository:team/app:pull,delete,fly"}, "repository:team/app:delete,pull"},
		{"alice", []string{"repository(plugin):team/app:pull"}, "repository:team/app:pull"},
		{"bob", []string{"repository:team/app:pull,push"}, "repository:team/app:pull"},
		{"bob", []string{"repository:other/app:pull"}, ""},
		{"bob", []string{"registry:catalog:*"}, "registry:catalog:*"},
		{"Bearer good", []string{"repository:team/app:pull"}, "repository:team/app:pull"},
		{"", []string{"repository:public/x:pull"}, "repository:public/x:pull"},
		{"", []string{"repository:team/app:pull"}, ""},
		{"", []string{"registry:catalog:*"}, "registry:catalog:*"},
		{"nobody", []string{"repository:public/x:pull"}, "repository:public/x:pull"},
		{"alice", nil, ""},
		{"alice", []string{"nonsense", "repository:team/app", "repository:TEAM/App:pull", "repository::pull", "::", "registry:other:*"}, ""},
	} {
		if _, got := g.token(tt.as, tt.ask...); got != tt.given {
			t.Errorf("%q asks for %q, and gets %q, want %q", tt.as, tt.ask, got, tt.given)
		}
	}
	many := make([]string, maxScopes+1)
	for i := range many {
		many[i] = fmt.Sprintf("repository:team/app%d:pull", i)
	}
	if resp, body := g.do("alice", "GET", tokenPath+"?"+url.Values{"scope": many}.Encode(), ""); resp.StatusCode != 400 {
		t.Errorf("too many: %s %s", resp.Status, body)
	}
	if resp, _ := g.do("alice", "PUT", tokenPath, ""); resp.StatusCode != 405 {
		t.Errorf("PUT: %s", resp.Status)
	}
	resp, _ := g.do("mallory", "GET", tokenPath, "")
	if c := resp.Header.Get("WWW-Authenticate"); resp.StatusCode != 401 || !strings.HasPrefix(c, "Basic ") {
		t.Errorf("a wrong password: %s %s", resp.Status, c)
	}
}

// A token does what it is for, and no more, whatever its owner may do; and no more than its owner may by now.
func TestTokenIsLimited(t *testing.T) {
	g := newGateway(t, nil)
	d := g.blob("team/app", "layer")
	p := g.blob("public/app", "free")
	pull, _ := g.token("alice", "repository:team/app:pull")
	list, _ := g.token("alice", "registry:catalog:*")
	none, _ := g.token("alice")
	anon, _ := g.token("", "repository:public/app:pull", "repository:team/app:pull")
	bobs, _ := g.token("bob", "repository:team/app:pull,push")
	team, public := "repository:team/app:", "repository:public/app:pull"
	for _, tt := range []struct {
		name, token, method, path string
		status                    int
		challenge                 string // what it has
	}{
		{"nothing", none, "GET", "/v2/", 200, ""},
		{"anonymous", anon, "GET", "/v2/", 200, ""},
		{"pull", pull, "GET", "/v2/team/app/blobs/" + d.String(), 200, ""},
		{"pull", pull, "POST", "/v2/team/app/blobs/uploads/", 401, `scope="` + team + `pull,push",error="insufficient_scope"`},
		{"pull", pull, "PUT", "/v2/team/app/manifests/x", 401, `scope="` + team + `pull,push",error="insufficient_scope"`},
		{"pull", pull, "DELETE", "/v2/team/app/manifests/x", 401, `scope="` + team + `delete",error="insufficient_scope"`},
		{"pull", pull, "DELETE", "/v2/team/app/blobs/uploads/x", 401, `scope="` + team + `pull,push"`},
		{"pull", pull, "GET", "/v2/team/other/tags/list", 401, `scope="repository:team/other:pull"`},
		{"pull", pull, "GET", "/v2/team/app/blobs/uploads/eA", 401, `scope="` + team + `pull,push"`},
		{"pull", pull, "GET", "/v2/_catalog", 401, `scope="registry:catalog:*",error="insufficient_scope"`},
		{"pull", pull, "POST", "/v2/team/app/blobs/uploads/?mount=" + p.String() + "&from=public/app", 401, public + `"`},
		{"list", list, "GET", "/v2/_catalog", 200, ""},
		{"list", list, "GET", "/v2/team/app/blobs/" + d.String(), 401, `error="insufficient_scope"`},
		{"anonymous", anon, "GET", "/v2/public/app/blobs/" + p.String(), 200, ""},
		{"anonymous", anon, "GET", "/v2/team/app/blobs/" + d.String(), 401, `error="insufficient_scope"`},
		{"bob's", bobs, "GET", "/v2/team/app/blobs/" + d.String(), 200, ""},
		{"bob's", bobs, "POST", "/v2/team/app/blobs/uploads/", 403, ""}, // another token would not help
	} {
		resp, body := g.do("Bearer "+tt.token, tt.method, tt.path, "")
		if c := resp.Header.Get("WWW-Authenticate"); resp.StatusCode != tt.status || !strings.Contains(c, tt.challenge) {
			t.Errorf("%s %s with a token for %s: %s %s %s; want %d with %s", tt.method, tt.path, tt.name, resp.Status, c, body,
				tt.status, tt.challenge)
		}
	}
	if _, body := g.do("Bearer "+list, "GET", "/v2/_catalog", ""); !strings.Contains(body, `["public/app","team/app"]`) {
		t.Errorf("the catalog: %s", body)
	}
	// A token gets no more than it has by asking for another.
	if _, scope := g.token("Bearer "+pull, "repository:team/app:*"); scope != "repository:team/app:pull" {
		t.Errorf("a token for pull becomes one for %q", scope)
	}
}

// Another cluster's index brings tags with a token for push, or delete, since there is no scope of its own for that.
func TestTokenReplicates(t *testing.T) {
	for action, want := range map[Action]bool{Pull: false, Push: true, Delete: true} {
		a := access{{"repository", "team/app", []string{string(action)}}}
		if got := a.allows(Replicate, "team/app"); got != want || a.allows(Replicate, "team/other") {
			t.Errorf("a token for %s: %v", action, got)
		}
	}
}

// Whoever was not challenged finds all that is needed to get a token, as its own name for the gateway has it.
func TestChallenge(t *testing.T) {
	g := newGateway(t, nil)
	resp, _ := g.do("", "GET", "/v2/team/app/manifests/1", "")
	want := `Bearer realm="` + g.url + tokenPath + `",service="capelin",scope="repository:team/app:pull"`
	if got := resp.Header.Get("WWW-Authenticate"); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	resp, _ = g.do("", "GET", "/v2/", "", "X-Forwarded-Proto", "https")
	if got := resp.Header.Get("WWW-Authenticate"); !strings.HasPrefix(got, `Bearer realm="https://`) {
		t.Errorf("behind a proxy: %s", got)
	}
	req, err := http.NewRequestWithContext(t.Context(), "GET", g.url+"/v2/", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = "registry.example.com:5000"
	if resp, err = http.DefaultClient.Do(req); err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if got := resp.Header.Get("WWW-Authenticate"); !strings.HasPrefix(got, `Bearer realm="http://registry.example.com:5000/v2/_token"`) {
		t.Errorf("by another name: %s", got)
	}
}

// Names and passwords in a form, as containerd sends them.
func TestTokenByForm(t *testing.T) {
	g := newGateway(t, nil)
	post := func(v url.Values) (*http.Response, string) {
		v.Set("scope", "repository:team/app:pull,push")
		return g.do("", "POST", tokenPath, v.Encode(), "Content-Type", "application/x-www-form-urlencoded")
	}
	resp, body := post(url.Values{"grant_type": {"password"}, "username": {"bob"}, "password": {"pw-bob"}})
	if _, scope := g.given(resp, body); scope != "repository:team/app:pull" {
		t.Errorf("bob gets %q", scope)
	}
	resp, body = post(url.Values{"grant_type": {"refresh_token"}, "refresh_token": {"good"}})
	if _, scope := g.given(resp, body); scope != "repository:team/app:pull" {
		t.Errorf("a token of dave's gets %q", scope)
	}
	for _, v := range []url.Values{
		{"grant_type": {"password"}, "username": {"bob"}, "password": {"wrong"}},
		{"grant_type": {"refresh_token"}, "refresh_token": {"wrong"}},
		{"grant_type": {"authorization_code"}},
		{},
	} {
		if resp, body := post(v); resp.StatusCode != 401 {
			t.Errorf("%v: %s %s", v, resp.Status, body)
		}
	}
	if resp, _ := post(url.Values{"grant_type": {"password"}, "username": {strings.Repeat("x", maxTokenForm)}}); resp.StatusCode != 401 {
		t.Errorf("too large: %s", resp.Status)
	}
	// A token of the file's does for its user's password, and for nobody else's.
	for user, want := range map[string]int{"dave": 200, "alice": 401} {
		req, err := http.NewRequestWithContext(t.Context(), "GET", g.url+"/v2/", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.SetBasicAuth(user, "good")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("dave's token as the password of %s: %s", user, resp.Status)
		}
	}
}

// All gateways of a cluster believe a token, for its time, and nobody believes another one.
func TestTokensAreBelieved(t *testing.T) {
	x := newFakeIndex(newFakeOrigin())
	now := time.Now()
	gateways := []*tokens{newTokens(x), newTokens(x)}
	for _, g := range gateways {
		g.now = func() time.Time { return now }
	}
	ctx := t.Context()
	for range 3 { // while keys change
		a := access{{"repository", "team/app", []string{"pull"}}}
		raw, at, lasts, err := gateways[0].issue(ctx, owner{user: "x", also: []string{"y"}, all: true}, a)
		if err != nil || lasts != tokenFor || !at.Equal(now) {
			t.Fatal(err, lasts)
		}
		for i, g := range gateways {
			o, ok, err := g.verify(ctx, raw)
			if !ok || err != nil || o.user != "x" || !slices.Equal(o.also, []string{"y"}) || !o.all || !o.access.allows(Pull, "team/app") ||
				o.access.allows(Push, "team/app") || o.access.allows(Pull, "team") {
				t.Errorf("gateway %d reads %+v, %v, %v", i, o, ok, err)
			}
		}
		x.key(fmt.Sprint("key", now.Unix()))
		now = now.Add(lasts + tokenLeeway + time.Second)
		for i, g := range gateways {
			if _, ok, err := g.verify(ctx, raw); !ok || err != errExpired {
				t.Errorf("gateway %d, later: %v, %v", i, ok, err)
			}
		}
		now = now.Add(keysFor)
	}
	if x.asked > 10 {
		t.Errorf("the index was asked %d times", x.asked)
	}
	short := owner{user: "x", expires: now.Add(time.Minute)}
	if _, _, lasts, err := gateways[0].issue(ctx, short, nil); err != nil || lasts != time.Minute {
		t.Errorf("of who is known for a minute: %v, %v", lasts, err)
	}
	short.expires = now
	if _, _, _, err := gateways[0].issue(ctx, short, nil); err == nil {
		t.Error("who is not known any more got one")
	}
	forged := func(key []byte, id string, c jwt.Claims) string {
		signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.HS256, Key: key}, new(jose.SignerOptions).WithHeader("kid", id))
		if err != nil {
			t.Fatal(err)
		}
		raw, err := jwt.Signed(signer).Claims(c).Serialize()
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	good := jwt.Claims{Issuer: tokenService, Audience: jwt.Audience{tokenService}, Subject: "x",
		Expiry: jwt.NewNumericDate(now.Add(time.Minute))}
	key := x.keys[0]
	if _, ok, err := gateways[0].verify(ctx, forged(key.Secret, key.ID, good)); !ok || err != nil {
		t.Errorf("a good one: %v, %v", ok, err)
	}
	for what, change := range map[string]func(c *jwt.Claims) ([]byte, string){
		"another secret": func(*jwt.Claims) ([]byte, string) { return []byte(strings.Repeat("x", 32)), key.ID },
		"no expiry":      func(c *jwt.Claims) ([]byte, string) { c.Expiry = nil; return key.Secret, key.ID },
		"audience":       func(c *jwt.Claims) ([]byte, string) { c.Audience = jwt.Audience{"other"}; return key.Secret, key.ID },
		"issuer":         func(c *jwt.Claims) ([]byte, string) { c.Issuer = "other"; return key.Secret, key.ID },
		"nobody's":       func(c *jwt.Claims) ([]byte, string) { c.Subject = ""; return key.Secret, key.ID },
		"unknown key":    func(*jwt.Claims) ([]byte, string) { return key.Secret, "other" },
	} {
		c := good
		secret, id := change(&c)
		if o, ok, err := gateways[0].verify(ctx, forged(secret, id, c)); !ok || err == nil || o.user != "" {
			t.Errorf("%s: %+v, %v, %v", what, o, ok, err)
		}
	}
	for _, raw := range []string{"", "ey..", "good", "eyJhbGciOiJub25lIn0.eyJpc3MiOiJjYXBlbGluIn0.", strings.Repeat("ey.", 3)} {
		if _, ok, _ := gateways[0].verify(ctx, raw); ok {
			t.Errorf("%q was taken for a token", raw)
		}
	}
}

// Where the index gives no key, because it is older, or away, names and passwords do, as ever.
func TestNoKeys(t *testing.T) {
	g := newGateway(t, nil)
	g.index.keys = nil
	d := g.blob("team/app", "layer")
	for path, want := range map[string]int{"/v2/": 401, tokenPath: 503} {
		resp, body := g.do("", "GET", path, "")
		if c := resp.Header.Get("WWW-Authenticate"); resp.StatusCode != want || want == 401 && !strings.HasPrefix(c, "Basic ") {
			t.Errorf("%s: %s %s %s", path, resp.Status, c, body)
		}
	}
	if resp, body := g.do("bob", "GET", "/v2/team/app/blobs/"+d.String(), ""); resp.StatusCode != 200 {
		t.Errorf("with a password: %s %s", resp.Status, body)
	}
	if g.index.asked != 1 { // not with each request
		t.Errorf("the index was asked %d times", g.index.asked)
	}
}

// One asks for newer keys, and those that are known do meanwhile, however long that takes.
func TestOldKeysDo(t *testing.T) {
	x := newFakeIndex(newFakeOrigin())
	hangs := hanging{entered: make(chan struct{}), x: x}
	g := newTokens(x)
	now := time.Now()
	g.now = func() time.Time { return now }
	if !g.able(t.Context()) {
		t.Fatal("no key")
	}
	g.source, now = hangs, now.Add(keysFor)
	done := make(chan bool)
	go func() { done <- g.able(t.Context()) }()
	<-hangs.entered
	if !g.able(t.Context()) {
		t.Error("who comes second has no key")
	}
	hangs.entered <- struct{}{}
	if !<-done {
		t.Error("who has asked has no key")
	}
}

type hanging struct {
	entered chan struct{}
	x       *fakeIndex
}

func (h hanging) TokenKeys(ctx context.Context) ([]index.TokenKey, error) {
	h.entered <- struct{}{}
	<-h.entered
	return h.x.TokenKeys(ctx)
}

// Nothing that a stranger sends as a token or a scope makes the gateway panic, or somebody of him.
func FuzzToken(f *testing.F) {
	x := newFakeIndex(newFakeOrigin())
	g := newTokens(x)
	raw, _, _, err := g.issue(f.Context(), owner{user: "x"}, access{{"repository", "a", []string{"pull"}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw, "repository:a:pull")
	f.Add(raw[:len(raw)-2], "repository(x):a:*,pull registry:catalog:*")
	f.Add("eyJhbGciOiJIUzI1NiIsImtpZCI6Im9uZSJ9.e30.", "::")
	f.Fuzz(func(t *testing.T, token, scope string) {
		if o, _, err := g.verify(t.Context(), token); err == nil && o.user != "" && token != raw {
			t.Errorf("%q is a token of %s", token, o.user)
		}
		a, err := grant(&caller{owner: owner{user: "x"}}, []string{scope})
		if err == nil && slices.ContainsFunc(a, func(r resource) bool { return r.Type != typCatalog }) {
			t.Errorf("%q gives %v to who may do nothing", scope, a)
		}
	})
}
