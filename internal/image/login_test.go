package image

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
)

// guarded asks for alice's password with each request, or gives tokens for it.
func guarded(t *testing.T, bearer bool) string {
	t.Helper()
	return newRegistry(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			user, password, basic := r.BasicAuth()
			ok := user == "alice" && password == "secret"
			switch {
			case r.URL.Path == "/token" && (ok || !basic):
				fmt.Fprintf(w, `{"token":"%s"}`, map[bool]string{true: "good", false: "nobody"}[ok])
			case r.URL.Path != "/token" && (bearer && r.Header.Get("Authorization") == "Bearer good" || !bearer && ok):
				h.ServeHTTP(w, r)
			default:
				c := `Basic realm="x"`
				if bearer && r.URL.Path != "/token" {
					c = `Bearer realm="http://` + r.Host + `/token",service="x"`
				}
				w.Header().Set("WWW-Authenticate", c)
				w.WriteHeader(http.StatusUnauthorized)
			}
		})
	})
}

// A login is proved, and then where Docker looks for it; others' logins stay.
func TestLogin(t *testing.T) {
	for _, bearer := range []bool{false, true} {
		dir := t.TempDir()
		t.Setenv("DOCKER_CONFIG", dir)
		t.Setenv("PATH", "") // no helper of this machine's
		file := filepath.Join(dir, "config.json")
		const others = `{"auths":{"other.example.com":{"auth":"eDp5"}},"psFormat":"x"}`
		if err := os.WriteFile(file, []byte(others), 0o600); err != nil {
			t.Fatal(err)
		}
		reg := guarded(t, bearer)
		c := newClient(t, Config{})
		for _, wrong := range []string{"", "guess"} {
			if _, err := c.Login(t.Context(), reg, "alice", wrong); err == nil || !strings.Contains(err.Error(), reg) {
				t.Errorf("a wrong password: %v", err)
			}
		}
		if got, err := os.ReadFile(file); err != nil || string(got) != others {
			t.Errorf("after that there is %s, %v", got, err)
		}
		if got, err := c.Login(t.Context(), reg, "alice", "secret"); err != nil || got != file {
			t.Errorf("%s, %v", got, err)
		}
		auth := func(of string) *authn.AuthConfig {
			r, err := name.NewRegistry(of, name.Insecure)
			if err != nil {
				t.Fatal(err)
			}
			a, err := authn.DefaultKeychain.Resolve(r)
			if err != nil {
				t.Fatal(err)
			}
			cfg, err := a.Authorization()
			if err != nil {
				t.Fatal(err)
			}
			return cfg
		}
		if a := auth(reg); a.Username != "alice" || a.Password != "secret" {
			t.Errorf("who asks for it finds %+v", a)
		}
		if a := auth("other.example.com"); a.Username != "x" {
			t.Errorf("another's login is %+v", a)
		}
		var kept map[string]any
		raw, _ := os.ReadFile(file)
		if err := json.Unmarshal(raw, &kept); err != nil || kept["psFormat"] != "x" {
			t.Errorf("what else was there: %s, %v", raw, err)
		}
		if _, err := c.Logout(reg); err != nil {
			t.Error(err)
		}
		if a := auth(reg); a.Username != "" {
			t.Errorf("after a logout there is %+v", a)
		}
		if _, err := c.Logout(reg); err == nil || !strings.Contains(err.Error(), reg) {
			t.Errorf("twice: %v", err)
		}
		if err := os.WriteFile(file, []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Login(t.Context(), reg, "alice", "secret"); err == nil || !strings.Contains(err.Error(), file) {
			t.Errorf("with a file that is damaged: %v", err)
		}
		if raw, _ := os.ReadFile(file); string(raw) != "{" {
			t.Errorf("it has been written over: %s", raw)
		}
	}
}

// Credentials for one registry are shown to no other one.
func TestAs(t *testing.T) {
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	k := As("reg.example.com:5000", "alice", "secret")
	for of, want := range map[string]string{
		"reg.example.com:5000": "alice", "reg.example.com": "", "docker.io": "", "reg.example.com:5001": "",
	} {
		r, err := name.NewRegistry(of)
		if err != nil {
			t.Fatal(err)
		}
		a, err := k.Resolve(r)
		if err != nil {
			t.Fatal(err)
		}
		if cfg, err := a.Authorization(); err != nil || cfg.Username != want {
			t.Errorf("%s is shown %+v, %v", of, cfg, err)
		}
	}
	for ref, want := range map[string]string{
		"server-1:7500/team/app:2": "server-1:7500", "docker://server-1:7500/a": "server-1:7500", "server-1:7500": "server-1:7500",
		"alpine": "index.docker.io", "oci:dir": "index.docker.io", "a b": "",
		"localhost:5000/x@sha256:" + strings.Repeat("0", 64): "localhost:5000",
	} {
		if got := RegistryOf(ref); got != want {
			t.Errorf("%s is at %q, want %q", ref, got, want)
		}
	}
}
