package registry

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/capelin-io/capelin/internal/daemon/config"
)

// tokens is an authorization server: a user's password or a refresh token buys a
// token for one scope.
type tokens struct {
	*httptest.Server
	mu       sync.Mutex
	password string
	refresh  string
	valid    map[string]string // token to scope
	issued   int
	fail     int // answers 503 so often
	hang     chan struct{}
}

func newTokens(t *testing.T) *tokens {
	a := &tokens{password: "secret", refresh: "refresh-me", valid: map[string]string{}}
	a.Server = httptest.NewServer(a)
	t.Cleanup(a.Close)
	return a
}

func (a *tokens) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	hang := a.hang
	a.mu.Unlock()
	if hang != nil {
		hang <- struct{}{} // somebody is here
		<-hang
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.fail > 0 {
		a.fail--
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	_ = r.ParseForm()
	var ok bool
	if r.Method == http.MethodPost {
		ok = r.Form.Get("grant_type") == "refresh_token" && r.Form.Get("refresh_token") == a.refresh ||
			r.Form.Get("grant_type") == "password" && r.Form.Get("username") == "me" && r.Form.Get("password") == a.password
	} else {
		user, password, basic := r.BasicAuth()
		ok = basic && user == "me" && password == a.password
	}
	if !ok || r.Form.Get("service") != "the-registry" {
		refuse(w, http.StatusUnauthorized, "UNAUTHORIZED", "wrong password")
		return
	}
	a.issued++
	token := fmt.Sprintf("token-%d", a.issued)
	a.valid[token] = r.Form.Get("scope")
	fmt.Fprintf(w, `{"token":%q,"access_token":%q,"expires_in":300}`, token, token)
}

func (a *tokens) set(f func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	f()
}

// guard is what the registry does with them.
func (a *tokens) guard(w http.ResponseWriter, r *http.Request) bool {
	repo, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v2/"), "/blobs/")
	scope := "repository:" + repo + ":pull"
	token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	a.mu.Lock()
	defer a.mu.Unlock()
	if slices.Contains(strings.Fields(a.valid[token]), scope) {
		return false
	}
	challenge := fmt.Sprintf(`Bearer realm="%s/token",service="the-registry",scope="%s"`, a.URL, scope)
	if token != "" {
		challenge += `,error="invalid_token"`
	}
	w.Header().Set("WWW-Authenticate", challenge)
	refuse(w, http.StatusUnauthorized, "UNAUTHORIZED", "authentication required")
	return true
}

func dockerConfig(t *testing.T, content string) string {
	path := filepath.Join(t.TempDir(), "config.json")
	write(t, path, content)
	return path
}

func auths(host, user, password string) string {
	return fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, host, base64.StdEncoding.EncodeToString([]byte(user+":"+password)))
}

func TestBearer(t *testing.T) {
	a, f := newTokens(t), newFake(t)
	f.before = a.guard
	key, other := f.put("team/app", []byte("hello")), f.put("team/other", []byte("other"))
	path := dockerConfig(t, auths(f.host(), "me", "secret"))
	b := backend(t, Config{Host: f.host(), PlainHTTP: true, DockerConfig: path})
	check := func(key, want string) {
		t.Helper()
		if got, err := read(t, b, key, 0, -1); err != nil || string(got) != want {
			t.Errorf("%q, %v", got, err)
		}
	}
	check(key, "hello")
	check(key, "hello")
	if a.issued != 1 {
		t.Errorf("%d tokens were issued", a.issued)
	}
	check(other, "other") // a scope of its own
	check(key, "hello")
	if a.issued != 2 {
		t.Errorf("%d tokens were issued", a.issued)
	}
	// A token that is refused before its time is replaced.
	a.set(func() { clear(a.valid) })
	check(key, "hello")

	// A wrong password is refused, and a right one works without a restart.
	a.set(func() { clear(a.valid); a.password = "rotated" })
	if _, err := read(t, b, key, 0, -1); !errdefs.IsUnauthorized(err) {
		t.Errorf("with the old password: %v", err)
	}
	write(t, path, auths(f.host(), "me", "rotated"))
	check(key, "hello")

	// A token server that does not answer is no refusal, and is asked again.
	a.set(func() { clear(a.valid); a.fail = 100 })
	b.cfg.Retry = 1
	if _, err := read(t, b, key, 0, -1); !errdefs.IsUnavailable(err) || errdefs.IsUnauthorized(err) {
		t.Errorf("without a token server: %v", err)
	}
	b.cfg.Retry = config.Duration(time.Hour)
	a.set(func() { a.fail = 3 })
	check(key, "hello")

	// A broken file is told.
	a.set(func() { clear(a.valid) })
	write(t, path, "{")
	b.cfg.Retry = 1
	if _, err := read(t, b, key, 0, -1); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("with a broken file: %v", err)
	}

	b = backend(t, Config{Host: f.host(), PlainHTTP: true})
	if _, err := read(t, b, key, 0, -1); !errdefs.IsUnauthorized(err) {
		t.Errorf("without credentials: %v", err)
	}
}

// Requests that wait for one token are not harmed by the end of the one that asked
// for it, and each ends with its own context.
func TestTokenOfACancelledRequest(t *testing.T) {
	a, f := newTokens(t), newFake(t)
	f.before = a.guard
	key := f.put("team/app", []byte("hello"))
	b := backend(t, Config{Host: f.host(), PlainHTTP: true, DockerConfig: dockerConfig(t, auths(f.host(), "me", "secret"))})
	hang := make(chan struct{})
	a.set(func() { a.hang = hang })
	ctx, cancel := context.WithCancel(t.Context())
	first, second := make(chan error), make(chan error)
	go func() {
		_, err := b.Stat(ctx, key)
		first <- err
	}()
	<-hang // it asks for a token
	go func() {
		_, err := b.Stat(t.Context(), key)
		second <- err
	}()
	cancel()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("the cancelled one: %v", err)
	}
	a.set(func() { a.hang = nil })
	hang <- struct{}{}
	if err := <-second; err != nil {
		t.Errorf("the other one: %v", err)
	}
}

func TestIdentityToken(t *testing.T) {
	a, f := newTokens(t), newFake(t)
	f.before = a.guard
	key := f.put("team/app", []byte("hello"))
	b := backend(t, Config{Host: f.host(), PlainHTTP: true,
		DockerConfig: dockerConfig(t, fmt.Sprintf(`{"auths":{%q:{"identitytoken":"refresh-me"}}}`, f.host()))})
	if got, err := read(t, b, key, 0, -1); err != nil || string(got) != "hello" {
		t.Errorf("%q, %v", got, err)
	}
	b = backend(t, Config{Host: f.host(), PlainHTTP: true, Retry: config.Duration(1),
		DockerConfig: dockerConfig(t, fmt.Sprintf(`{"auths":{%q:{"registrytoken":"x"}}}`, f.host()))})
	if _, err := read(t, b, key, 0, -1); err == nil || !strings.Contains(err.Error(), "registrytoken") {
		t.Errorf("a kind of token that is not supported: %v", err)
	}
}

// basic wants a name and a password with each request.
func basic(password *atomic.Value) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if user, p, _ := r.BasicAuth(); user == "me" && p == password.Load() {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
		refuse(w, http.StatusUnauthorized, "UNAUTHORIZED", "no")
		return true
	}
}

func TestBasicAndHelpers(t *testing.T) {
	var password atomic.Value
	password.Store("secret")
	f := newFake(t)
	f.before = basic(&password)
	key := f.put("team/app", []byte("hello"))

	// Helpers in $PATH, which answer as the protocol says.
	bin := t.TempDir()
	t.Setenv("PATH", bin+string(os.PathListSeparator)+os.Getenv("PATH"))
	helper := func(name, script string) {
		if err := os.WriteFile(filepath.Join(bin, "docker-credential-"+name), []byte("#!/bin/sh\nread url\n"+script), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	helper("good", `[ "$1 $url" = "get `+f.host()+`" ] && echo '{"ServerURL":"'$url'","Username":"me","Secret":"secret"}'`)
	helper("empty", `echo credentials not found in native keychain; exit 1`)
	helper("broken", `echo no network; exit 1`)

	for _, tt := range []struct {
		name, config string
		ok           bool
		text         string // of the error
	}{
		{"auths", auths(f.host(), "me", "secret"), true, ""},
		{"auths by URL", auths("https://"+f.host()+"/v1/", "me", "secret"), true, ""},
		{"wrong", auths(f.host(), "me", "wrong"), false, ""},
		{"another host's", auths("other.example", "me", "secret"), false, ""},
		{"credHelpers", fmt.Sprintf(`{"credHelpers":{%q:"good"}}`, f.host()), true, ""},
		{"credsStore", `{"credsStore":"good"}`, true, ""},
		{"credsStore without them", `{"credsStore":"empty"}`, false, "no basic auth credentials"},
		{"broken helper", fmt.Sprintf(`{"credHelpers":{%q:"broken"}}`, f.host()), false, "no network"},
		{"no helper", fmt.Sprintf(`{"credHelpers":{%q:"none"}}`, f.host()), false, "docker-credential-none"},
		{"credsStore without program", `{"credsStore":"none",` + auths(f.host(), "me", "secret")[1:], true, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := backend(t, Config{Host: f.host(), PlainHTTP: true, DockerConfig: dockerConfig(t, tt.config), Retry: config.Duration(1)})
			got, err := read(t, b, key, 0, -1)
			if tt.ok != (err == nil) || tt.ok && string(got) != "hello" || err != nil && !strings.Contains(err.Error(), tt.text) {
				t.Errorf("%q, %v", got, err)
			}
			if tt.text == "" && !tt.ok && !errdefs.IsUnauthorized(err) {
				t.Error(err)
			}
			if err != nil && strings.Contains(err.Error(), "secret") {
				t.Errorf("the password is told: %v", err)
			}
		})
	}

	path := dockerConfig(t, auths(f.host(), "me", "secret"))
	b := backend(t, Config{Host: f.host(), PlainHTTP: true, DockerConfig: path})
	if _, err := b.Stat(t.Context(), key); err != nil {
		t.Error(err)
	}
	password.Store("rotated")
	write(t, path, auths(f.host(), "me", "rotated"))
	if _, err := b.Stat(t.Context(), key); err != nil {
		t.Errorf("after the password was changed: %v", err)
	}
}

// Docker Hub's credentials are under names of their own.
func TestDockerHubCredentials(t *testing.T) {
	for _, name := range []string{"https://index.docker.io/v1/", "docker.io", "index.docker.io", "registry-1.docker.io"} {
		b := backend(t, Config{Host: "docker.io", DockerConfig: dockerConfig(t, auths(name, "me", "pw"))})
		if user, pw, err := b.credentials("registry-1.docker.io"); user != "me" || pw != "pw" || err != nil {
			t.Errorf("%s: %q, %q, %v", name, user, pw, err)
		}
		if h := b.current().list; len(h) != 1 || h[0].Host != "registry-1.docker.io" || h[0].Scheme != "https" {
			t.Errorf("hosts: %+v", h)
		}
	}
}

// A blob store that the registry points to sees neither credentials nor headers.
func TestRedirect(t *testing.T) {
	var password atomic.Value
	password.Store("secret")
	store, f := newFake(t), newFake(t)
	key := f.put("team/app", []byte("hello"))
	store.put("team/app", []byte("hello"))
	demands := false
	store.before = func(w http.ResponseWriter, r *http.Request) bool {
		if demands {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
		}
		return demands
	}
	check := basic(&password)
	f.before = func(w http.ResponseWriter, r *http.Request) bool {
		if check(w, r) {
			return true
		}
		if strings.HasPrefix(r.URL.Path, "/v2/") {
			http.Redirect(w, r, "/moved"+r.URL.Path, http.StatusTemporaryRedirect) // at home
			return true
		}
		http.Redirect(w, r, store.URL+strings.TrimPrefix(r.URL.Path, "/moved")+"?signature=s3cr3t", http.StatusTemporaryRedirect)
		return true
	}
	dir := hostsDir(t, f.host(), fmt.Sprintf("server = %q\n[header]\nX-Secret = \"x\"\n", f.URL))
	cfg := Config{Host: f.host(), HostsDir: dir, Retry: config.Duration(1),
		DockerConfig: dockerConfig(t, fmt.Sprintf(
			`{"auths":{%q:{"username":"me","password":"secret"},%q:{"username":"me","password":"secret"}}}`, f.host(), store.host()))}
	b := backend(t, cfg)
	if got, err := read(t, b, key, 1, 3); err != nil || string(got) != "ell" {
		t.Errorf("%q, %v", got, err)
	}
	if r := f.last(); r.Header.Get("Authorization") == "" || r.Header.Get("X-Secret") != "x" || !strings.HasPrefix(r.URL.Path, "/moved/") {
		t.Errorf("the registry saw %s with %v", r.URL, r.Header)
	}
	r := store.last()
	if r.Header.Get("Authorization") != "" || r.Header.Get("X-Secret") != "" || r.Header.Get("Range") == "" {
		t.Errorf("the store saw %v", r.Header)
	}
	demands = true
	if _, err := read(t, b, key, 0, -1); !errdefs.IsUnauthorized(err) {
		t.Error(err)
	}
	if r := store.last(); r.Header.Get("Authorization") != "" {
		t.Error("the store got credentials because it asked for them")
	}
	store.Close()
	if _, err := read(t, b, key, 0, -1); !errdefs.IsUnavailable(err) || strings.Contains(err.Error(), "s3cr3t") {
		t.Error(err)
	}
}
