package shim

import (
	"crypto/tls"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/capelin-io/capelin/internal/daemon/identity"
)

// tlsServer is a server whose certificate a CA signed that was made for it.
func tlsServer(t *testing.T) (url string, ca []byte) {
	t.Helper()
	dir := t.TempDir()
	a, err := identity.InitCA(filepath.Join(dir, "ca"), "c")
	if err != nil {
		t.Fatal(err)
	}
	gw := identity.ID{Name: "gw", Roles: []identity.Role{identity.RoleGateway}}
	if err := a.Issue(dir, gw, []string{"127.0.0.1"}, time.Hour); err != nil {
		t.Fatal(err)
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, identity.Cert), filepath.Join(dir, identity.Key))
	if err != nil {
		t.Fatal(err)
	}
	if ca, err = os.ReadFile(filepath.Join(dir, identity.CACert)); err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	s.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	s.StartTLS()
	t.Cleanup(s.Close)
	return s.URL, ca
}

func TestTrusting(t *testing.T) {
	one, oneCA := tlsServer(t)
	two, twoCA := tlsServer(t)
	path := filepath.Join(t.TempDir(), "ca.crt")
	write := func(b []byte) {
		t.Helper()
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(oneCA)
	tr, err := newTrusting(path)
	if err != nil {
		t.Fatal(err)
	}
	defer tr.CloseIdleConnections()
	want := func(when string, oneOK, twoOK bool) {
		t.Helper()
		tr.Look()
		for url, ok := range map[string]bool{one: oneOK, two: twoOK} {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := tr.RoundTrip(req)
			if err == nil {
				resp.Body.Close()
			}
			if (err == nil) != ok {
				t.Errorf("%s: %v", when, err)
			}
		}
	}
	want("one CA", true, false)
	write(append(oneCA, twoCA...))
	want("both", true, true)
	write([]byte("nonsense"))
	want("a file that cannot be used", true, true)
	write(twoCA)
	want("the other", false, true)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	want("no file", false, true)
	for _, bad := range []string{path, os.DevNull} {
		if _, err := newTrusting(bad); err == nil {
			t.Errorf("CAs of %s", bad)
		}
	}
}
