package main

import (
	"bytes"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"

	"github.com/capelin-io/capelin/gateway"
)

// A registry that knows alice is pushed to by --user, and by whoever has logged in, from a pipe or the environment.
func TestLoginCommands(t *testing.T) {
	docker := t.TempDir()
	t.Setenv("DOCKER_CONFIG", docker)
	t.Setenv("PATH", "") // no helper of this machine's
	h := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != "alice" || password != "secret" {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		h.ServeHTTP(w, r)
	}))
	defer s.Close()
	reg := strings.TrimPrefix(s.URL, "http://")
	run := func(stdin string, args ...string) (string, error) {
		t.Helper()
		var out bytes.Buffer
		cmd := command(nil)
		cmd.SetArgs(args)
		cmd.SetIn(strings.NewReader(stdin))
		cmd.SetOut(&out)
		cmd.SetErr(io.Discard)
		err := cmd.ExecuteContext(t.Context())
		return out.String(), err
	}
	if _, err := run("", "image", "ls", reg); err == nil || !strings.Contains(err.Error(), "401") {
		t.Errorf("nobody: %v", err)
	}
	for _, tt := range []struct {
		stdin, env string
		args       []string
		err        string
	}{
		{"secret\n", "", []string{"image", "ls", reg, "--user", "alice", "--password-stdin"}, ""},
		{"", "secret", []string{"image", "ls", reg, "-u", "alice"}, ""},
		{"wrong", "", []string{"image", "ls", reg, "-u", "alice", "--password-stdin"}, "401"},
		{"", "", []string{"login", reg}, "--user"},
		{"", "", []string{"login", reg, "-u", "alice"}, "--password-stdin"},
		{"wrong", "", []string{"login", reg, "-u", "alice", "--password-stdin"}, "401"},
		{"", "", []string{"logout", reg}, "no login"},
		{"secret\r\n", "", []string{"login", reg, "-u", "alice", "--password-stdin"}, ""},
		{"", "", []string{"image", "ls", reg}, ""},
		{"", "", []string{"logout", reg}, ""},
		{"", "", []string{"image", "ls", reg}, "401"},
		{"", "secret", []string{"login", reg, "-u", "alice", "--json"}, ""},
		{"", "", []string{"image", "ls", reg}, ""},
	} {
		t.Setenv(passwordVariable, tt.env)
		out, err := run(tt.stdin, tt.args...)
		if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%v: %v; want %q", tt.args, err, tt.err)
		}
		if strings.Contains(out, "secret") {
			t.Errorf("%v prints the password", tt.args)
		}
	}
	if info, err := os.Stat(filepath.Join(docker, "config.json")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("what it is kept in: %v, %v", info, err)
	}
}

// A server that is new says how to push to it, in three lines, with what that takes.
func TestHowToPush(t *testing.T) {
	c := defaultServerConfig()
	c.Address = "10.0.0.5"
	full, _ := c.fill()
	open := full.howToPush()
	full.Gateway.Users = "/etc/capelin/users"
	users := full.howToPush()
	full.Gateway.Identity.CA = "/pki/ca.crt"
	secure := full.howToPush()
	for text, want := range map[string][]string{
		open:   {"10.0.0.5:7500; everybody may", "image push docker://docker.io/library/alpine:3 10.0.0.5:7500/team/alpine:3\n"},
		users:  {"capelin login 10.0.0.5:7500\n", "docker pull 10.0.0.5:7500/team/alpine:3\n"},
		secure: {"capelin login 10.0.0.5:7500 --ca /pki/ca.crt\n", "10.0.0.5:7500/team/alpine:3 --ca /pki/ca.crt\n"},
	} {
		if strings.Count(text, "\n") != 3 {
			t.Errorf("not three lines: %s", text)
		}
		for _, w := range want {
			if !strings.Contains(text, w) {
				t.Errorf("no %q in %s", w, text)
			}
		}
	}
	full.Gateway = gateway.Config{Listen: ":7500"}
	if text := full.howToPush(); !strings.Contains(text, "takes pushes at 10.0.0.5:7500;") {
		t.Errorf("of one that listens everywhere: %s", text)
	}
}
