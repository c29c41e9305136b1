package main

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/capelin-io/capelin/internal/daemon/identity"
)

func TestCACommand(t *testing.T) {
	dir := t.TempDir()
	ca := filepath.Join(dir, "ca")
	call := func(args ...string) (string, error) {
		var out bytes.Buffer
		cmd := caCommand()
		cmd.SetOut(&out)
		cmd.SetErr(&out)
		cmd.SilenceUsage = true
		cmd.SetArgs(args)
		err := cmd.ExecuteContext(t.Context())
		return out.String(), err
	}
	want := func(args []string, texts ...string) {
		t.Helper()
		out, err := call(args...)
		if err != nil {
			t.Fatalf("%v: %v", args, err)
		}
		for _, text := range texts {
			if !strings.Contains(out, text) {
				t.Errorf("%v: no %q in\n%s", args, text, out)
			}
		}
	}
	refuse := func(text string, args ...string) {
		t.Helper()
		if _, err := call(args...); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("%v: %v, want %q", args, err, text)
		}
	}

	refuse("ca.crt", "issue", "--dir", ca, "--role", "node", "--name", "n")
	want([]string{"init", "--dir", ca, "--cluster", "prod"}, `authority of cluster "prod"`, "ca.key")
	refuse("an authority is there already", "init", "--dir", ca, "--cluster", "prod")

	out := filepath.Join(dir, "s")
	want([]string{"issue", "--dir", ca, "--role", "origin,gateway", "--name", "s", "--host", "images.example.org,10.0.0.1", "--host", "::1",
		"--out", out},
		"s (origin, gateway) of cluster prod", "[identity]", filepath.Join(out, "tls.crt"))
	for name, mode := range map[string]os.FileMode{"ca.crt": 0o644, "tls.crt": 0o644, "tls.key": 0o600} {
		if info, err := os.Stat(filepath.Join(out, name)); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
	t.Chdir(dir)
	want([]string{"issue", "--dir", ca, "--role", "gateway", "--name", "g"}, "without --host Docker and containerd refuse this gateway",
		`cert = "`+filepath.Join(dir, "g", "tls.crt")+`"`)
	want([]string{"issue", "--dir", ca, "--role", "admin", "--name", "me"},
		fmt.Sprintf("--ca %s/me/ca.crt --cert %[1]s/me/tls.crt --key %[1]s/me/tls.key", dir))
	want([]string{"show", filepath.Join(out, "tls.crt")}, "s (origin, gateway) of cluster prod", "364 days left",
		"images.example.org, 10.0.0.1, ::1", "Capelin CA of prod")
	want([]string{"show", filepath.Join(out, "ca.crt")}, "an authority", "prod")
	refuse("holds no certificate", "show", filepath.Join(out, "tls.key"))
	if _, err := identity.Load(identity.Config{CA: filepath.Join(out, "ca.crt"), Cert: filepath.Join(out, "tls.crt"),
		Key: filepath.Join(out, "tls.key")}, "prod"); err != nil {
		t.Error(err)
	}
	// What knows nothing of Capelin goes by the host.
	cert, _, err := identity.ReadCert(filepath.Join(out, "tls.crt"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	pem, err := os.ReadFile(filepath.Join(out, "ca.crt"))
	if err != nil || !roots.AppendCertsFromPEM(pem) {
		t.Fatal(err)
	}
	for host, ok := range map[string]bool{"images.example.org": true, "10.0.0.1": true, "s": false} {
		if _, err := cert.Verify(x509.VerifyOptions{Roots: roots, DNSName: host}); (err == nil) != ok {
			t.Errorf("%s: %v", host, err)
		}
	}

	refuse(`no such role: "king"`, "issue", "--dir", ca, "--role", "king", "--name", "n", "--out", out)
	refuse("only letters", "issue", "--dir", ca, "--role", "node", "--name", "a b", "--out", out)
	refuse("at least 1", "issue", "--dir", ca, "--role", "node", "--name", "n", "--days", "0", "--out", out)
	refuse("outlive", "issue", "--dir", ca, "--role", "node", "--name", "n", "--days", "4000", "--out", out)
	refuse(`"role"`, "issue", "--dir", ca, "--name", "n")
}
