package integration

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/coreos/go-oidc/v3/oidc/oidctest"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/capelin-io/capelin/integration/harness"
)

// public lets everybody pull what is public.
const public = "\n[[gateway.rule]]\nusers = [\"anonymous\", \"*\"]\nnamespaces = [\"^public/.*\"]\nactions = [\"pull\"]\n" +
	"[[gateway.rule]]\nusers = [\"alice\"]\nnamespaces = [\"^public/.*\"]\nactions = [\"push\"]\n"

// ask sends a request to a server's gateway, as a user or as nobody.
func (s *served) ask(t *testing.T, from *harness.Host, u harness.User, method, path string, header ...string) (*http.Response, string) {
	t.Helper()
	tr := &http.Transport{DialContext: from.DialContext, TLSClientConfig: get(s.pki.ClientTLS())(t)}
	defer tr.CloseIdleConnections()
	req := get(http.NewRequestWithContext(s.ctx, method, "https://"+s.server.Gateway+path, http.NoBody))(t)
	if u.Name != "" {
		req.SetBasicAuth(u.Name, u.Password)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp := get((&http.Client{Transport: tr}).Do(req))(t)
	defer resp.Body.Close()
	return resp, string(get(io.ReadAll(resp.Body))(t))
}

// Clients without a login pull what is public, beside what is not, whatever they make of the gateway's challenge; those that are logged in
// pull both. None of that is a refusal, in the log.
func TestAnonymousClients(t *testing.T) {
	s := newServed(t, public)
	img := s.image(t, harness.ImageOptions{Layers: 2})
	free, private := get(s.server.Push(s.ctx, img, "public/app:1", alice))(t), get(s.server.Push(s.ctx, img, "team/app:1", alice))(t)
	certs, auth, stored := filepath.Join(s.c.Dir, "certs"), filepath.Join(s.c.Dir, "auth.json"), filepath.Join(s.c.Dir, "storage")
	must(t, os.MkdirAll(certs, 0o755))
	must(t, os.WriteFile(filepath.Join(certs, "ca.crt"), get(os.ReadFile(s.pki.CA()))(t), 0o644))
	must(t, os.WriteFile(auth, []byte("{}"), 0o600))
	policy := filepath.Join(s.c.Dir, "policy.json")
	must(t, os.WriteFile(policy, []byte(`{"default": [{"type": "insecureAcceptAnything"}]}`), 0o600))
	run := func(args ...string) error {
		env := []string{"HTTPS_PROXY=", "https_proxy=", "REGISTRY_AUTH_FILE=" + auth}
		_, err := s.server.Command(s.ctx, env, args[0], args[1:]...)
		return err
	}
	vfs := []string{"--root", stored, "--runroot", stored + "-run", "--storage-driver", "vfs"}
	for name, pull := range map[string]func(ref, creds string) []string{
		"skopeo": func(ref, creds string) []string {
			return append([]string{"skopeo", "--policy", policy, "inspect", "--cert-dir", certs, "docker://" + ref}, creds)
		},
		"podman": func(ref, creds string) []string {
			args := append([]string{"podman"}, vfs...)
			return append(args, "pull", "--signature-policy", policy, "--cert-dir", certs, creds, ref)
		},
		"buildah": func(ref, creds string) []string {
			args := append([]string{"buildah"}, vfs...)
			return append(args, "pull", "--policy", "always", "--signature-policy", policy, "--cert-dir", certs, creds, ref)
		},
	} {
		t.Run(name, func(t *testing.T) {
			must(t, run(pull(free, "--tls-verify=true")...)) // nothing is said of who it is
			if err := run(pull(private, "--tls-verify=true")...); err == nil {
				t.Error("it pulled what is private")
			}
			must(t, run(pull(private, "--creds="+bob.Name+":"+bob.Password)...))
		})
	}
	t.Run("docker", func(t *testing.T) {
		n := s.node(t, "node", nil)
		d := get(n.StartDocker(s.ctx, harness.DockerOptions{Insecure: []string{"198.18.0.0/24"}}))(t)
		get(d.Run(s.ctx, "pull", free))(t)
		if id := get(d.ImageID(s.ctx, free))(t); id != img.Config {
			t.Errorf("docker has image %s, want %s", id, img.Config)
		}
		if out, err := d.Run(s.ctx, "pull", private); err == nil {
			t.Errorf("it pulled what is private:\n%s", out)
		}
		must(t, d.Login(s.server.Gateway, bob.Name, bob.Password))
		get(d.Run(s.ctx, "pull", private))(t)
		must(t, d.Stop())
		// And containerd, without a secret.
		must(t, n.PullCRI(s.ctx, free, nil))
		must(t, n.PullCRI(s.ctx, private, secret(bob)))
	})
	t.Run("go-containerregistry", func(t *testing.T) {
		o, done, err := s.server.Remote(s.ctx, harness.User{})
		must(t, err)
		defer done()
		get(remote.Image(get(name.ParseReference(free))(t), o...))(t)
		var refused *transport.Error
		if _, err := remote.Image(get(name.ParseReference(private))(t), o...); !errors.As(err, &refused) || refused.StatusCode != 401 {
			t.Errorf("what is private: %v", err)
		}
	})
}

// The catalog asks who it is, shows each caller what it may pull, and nobody what everybody may.
func TestCatalogAsks(t *testing.T) {
	s := newServed(t, public)
	img := s.image(t, harness.ImageOptions{Layers: 1})
	get(s.server.Push(s.ctx, img, "public/app:1", alice))(t)
	get(s.server.Push(s.ctx, img, "team/app:1", alice))(t)
	resp, body := s.ask(t, s.server.Host, harness.User{}, "GET", "/v2/_catalog")
	if resp.StatusCode != 401 || !strings.Contains(resp.Header.Get("WWW-Authenticate"), `scope="registry:catalog:*"`) {
		t.Errorf("without a word of who: %s %v %s", resp.Status, resp.Header, body)
	}
	for _, tt := range []struct {
		who  harness.User
		want string
	}{{harness.User{}, "public/app"}, {bob, "public/app,team/app"}, {carol, "public/app"}} {
		o, done, err := s.server.Remote(s.ctx, tt.who)
		must(t, err)
		repos, err := remote.Catalog(s.ctx, get(name.NewRegistry(s.server.Gateway))(t), o...)
		done()
		if got := strings.Join(repos, ","); err != nil || got != tt.want {
			t.Errorf("%q sees %s, %v; want %s", tt.who.Name, got, err, tt.want)
		}
	}
}

// A pull that goes as it should leaves no refusal in the log; who is refused does, once.
func TestAuditOfPulls(t *testing.T) {
	s := newServed(t, public)
	img := s.image(t, harness.ImageOptions{Layers: 2})
	refused := func() int { return strings.Count(s.server.Tail(10_000), "result=refused") }
	ref := get(s.server.Push(s.ctx, img, "team/app:1", alice))(t)
	n := s.node(t, "node", nil)
	must(t, n.PullCRI(s.ctx, ref, secret(bob)))
	if got := refused(); got != 0 {
		t.Errorf("a push and a pull left %d refusals:\n%s", got, s.server.Tail(100))
	}
	if resp, body := s.ask(t, s.server.Host, carol, "GET", "/v2/team/app/tags/list"); resp.StatusCode != 403 {
		t.Errorf("%s %s", resp.Status, body)
	}
	if got := refused(); got != 1 {
		t.Errorf("%d refusals, want carol's:\n%s", got, s.server.Tail(100))
	}
}

// Many guesses at once are told to come back later, and cost little; who logs in from elsewhere does, meanwhile. Guesses at
// who is no user cost as much as others.
func TestGuessing(t *testing.T) {
	s := newServed(t, public)
	n := get(s.c.NewHost("elsewhere"))(t)
	var mu sync.Mutex
	var wg sync.WaitGroup
	status := map[int]int{}
	for i := range 100 {
		wg.Go(func() {
			u := harness.User{Name: "alice", Password: fmt.Sprint("guess", i)}
			resp, _ := s.ask(t, s.server.Host, u, "GET", "/v2/")
			mu.Lock()
			defer mu.Unlock()
			status[resp.StatusCode]++
			if resp.StatusCode == 429 && resp.Header.Get("Retry-After") == "" {
				t.Error("it does not say when to come back")
			}
		})
	}
	wg.Wait()
	if status[429] < 50 || status[401]+status[429] != 100 {
		t.Errorf("of a hundred guesses %v", status)
	}
	if resp, body := s.ask(t, n, alice, "GET", "/v2/"); resp.StatusCode != 200 {
		t.Errorf("alice, from elsewhere: %s %s", resp.Status, body)
	}
	told := 0 // at the usual level of the log
	for line := range strings.Lines(s.server.Tail(10_000)) {
		if strings.Contains(line, "level=warning") && strings.Contains(line, "result=refused") {
			told++
		}
	}
	if log := s.server.Tail(10_000); told > 40 || !strings.Contains(log, `msg="too many wrong passwords"`) {
		t.Errorf("%d refusals in the log:\n%s", told, log)
	}

	// What guesses cost, at users whose hashes cost little: 16 of each kind, from addresses of their own.
	cost := func(who string) time.Duration {
		t.Helper()
		var used time.Duration
		for range 2 {
			from := get(s.c.NewHost("guesser-" + who + fmt.Sprint(used)))(t)
			before := get(s.server.CPU())(t)
			for i := range 8 {
				if resp, _ := s.ask(t, from, harness.User{Name: who, Password: fmt.Sprint(i, used)}, "GET", "/v2/"); resp.StatusCode != 401 {
					t.Errorf("a guess at %s: %s", who, resp.Status)
				}
			}
			used += get(s.server.CPU())(t) - before
		}
		return used
	}
	if user, stranger := cost("bob"), cost("mallory"); stranger > user+400*time.Millisecond { // of 16; once they were at 70 ms each
		t.Errorf("16 guesses at a user take %v of processor, at a stranger %v", user, stranger)
	}
}

// A job of a CI system pushes with the token that it was given, as a client that knows passwords only, and nobody else does with one of
// another repository or for another registry.
func TestJobPushes(t *testing.T) {
	const issuer = "http://127.0.0.1:9000"
	s := newServed(t, `
[[gateway.oidc]]
issuer = "`+issuer+`"
audiences = ["capelin.test"]
user = "ci:{repository}"
claims = ["ref=refs/heads/*"]
[[gateway.rule]]
users = ["ci:octo-org/*"]
namespaces = ["^octo-org/.*"]
actions = ["pull", "push"]
`)
	key := get(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	handler := &oidctest.Server{PublicKeys: []oidctest.PublicKey{{PublicKey: key.Public(), KeyID: "k", Algorithm: oidc.ES256}}}
	handler.SetIssuer(issuer)
	l := get(s.server.Listen("tcp", "127.0.0.1:9000"))(t) // of the server's host
	srv := &http.Server{Handler: handler, ReadHeaderTimeout: time.Minute}
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.Serve(l) })
	defer wg.Wait()
	defer srv.Close()
	token := func(audience, repository string) string {
		claims := get(json.Marshal(map[string]any{
			"iss": issuer, "aud": audience, "sub": "repo:" + repository, "repository": repository, "ref": "refs/heads/main",
			"exp": time.Now().Add(time.Hour).Unix(),
		}))(t)
		return oidctest.SignIDToken(key, "k", oidc.ES256, string(claims))
	}
	img := s.image(t, harness.ImageOptions{Layers: 2})
	job := harness.User{Name: "oidc", Password: token("capelin.test", "octo-org/app")}
	get(s.server.Push(s.ctx, img, "octo-org/app:1", job))(t)
	for name, password := range map[string]string{
		"another registry's": token("registry.example.com", "octo-org/app"), "another repository's": token("capelin.test", "evil/app"),
		"a broken one": job.Password[:len(job.Password)-4],
	} {
		if _, err := s.server.Push(s.ctx, img, "octo-org/app:2", harness.User{Name: "oidc", Password: password}); err == nil {
			t.Errorf("%s token pushed", name)
		}
	}
	if log := s.server.Tail(10_000); !strings.Contains(log, `user="ci:octo-org/app"`) {
		t.Errorf("the log does not say which job pushed:\n%s", log)
	}
}

// Each gateway of a cluster believes what another has given, and goes on to after a restart.
func TestTokensOfSeveralGateways(t *testing.T) {
	ctx, c := newCluster(t)
	pki := get(c.NewPKI(ctx))(t)
	all := get(c.NewServers(ctx, harness.ServerOptions{PKI: pki, Users: []harness.User{alice}}, "one", "two"))(t)
	s := &served{ctx: ctx, c: c, pki: pki, server: all[0]}
	_, body := s.ask(t, all[0].Host, alice, "GET", "/v2/_token?scope=repository:team/app:pull")
	var v struct{ Token string }
	must(t, json.Unmarshal([]byte(body), &v))
	check := func(when string) {
		t.Helper()
		for _, g := range all {
			at := &served{ctx: ctx, c: c, pki: pki, server: g}
			resp, body := at.ask(t, g.Host, harness.User{}, "GET", "/v2/team/app/tags/list", "Authorization", "Bearer "+v.Token)
			if resp.StatusCode != 404 { // it may look, and nothing was pushed
				t.Errorf("%s, gateway %s: %s %s", when, g.Name, resp.Status, body)
			}
		}
	}
	check("at once")
	for _, g := range all {
		g.Kill()
		must(t, g.Start(ctx))
	}
	check("after a restart")
}
