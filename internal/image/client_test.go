package image

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/registry"
)

// Credentials and client certificates are presented, and errors say what is refused.
func TestAuth(t *testing.T) {
	reg := newRegistry(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if user, pass, _ := r.BasicAuth(); user != "me" || pass != "secret" {
				w.Header().Set("WWW-Authenticate", "Basic realm=x")
				http.Error(w, `{"errors":[{"code":"UNAUTHORIZED"}]}`, http.StatusUnauthorized)
				return
			}
			h.ServeHTTP(w, r)
		})
	})
	dir := newLayout(t, item{image: oneImage(t, "amd64")}, "")
	c := newClient(t, Config{})
	src, _ := c.Source(dir)
	dst, _ := c.Target(reg + "/a:b")
	for _, tt := range []struct {
		name        string
		credentials authn.Keychain
		want        string
	}{
		{"without credentials", authn.NewMultiKeychain(), "registry " + reg + ` wants to know who asks: "capelin login ` + reg + `"`},
		{"with wrong ones", keychain{"wrong"}, "registry " + reg + " does not accept the login"},
	} {
		c := newClient(t, Config{Credentials: tt.credentials})
		if _, err := c.Copy(t.Context(), src, dst, Options{}); err == nil || !strings.Contains(err.Error(), tt.want) ||
			!strings.Contains(err.Error(), "401 Unauthorized") {
			t.Errorf("%s: got %v, want %q", tt.name, err, tt.want)
		}
	}
	copyTo(t, newClient(t, Config{Credentials: keychain{"secret"}}), dir, reg+"/a:b", Options{})
}

// A push begins with HEAD, whose answer does not say why it is refused.
func TestSaysWhy(t *testing.T) {
	reg := newRegistry(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.Contains(r.URL.Path, "/blobs/") {
				http.Error(w, `{"errors":[{"code":"UNAVAILABLE","message":"origins b and c are down"}]}`, http.StatusServiceUnavailable)
				return
			}
			h.ServeHTTP(w, r)
		})
	})
	c := newClient(t, Config{})
	src, _ := c.Source(newLayout(t, item{image: oneImage(t, "amd64")}, ""))
	dst, _ := c.Target(reg + "/a:b")
	if _, err := c.Copy(t.Context(), src, dst, Options{}); err == nil || !strings.Contains(err.Error(), "origins b and c are down") {
		t.Errorf("got %v", err)
	}
}

type keychain struct{ password string }

func (k keychain) Resolve(authn.Resource) (authn.Authenticator, error) {
	return &authn.Basic{Username: "me", Password: k.password}, nil
}

func TestMutualTLS(t *testing.T) {
	dir := t.TempDir()
	cert, key := clientCert(t, dir)
	pool := x509.NewCertPool()
	text, err := os.ReadFile(cert)
	if err != nil || !pool.AppendCertsFromPEM(text) {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.TLS = &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool, MinVersion: tls.VersionTLS12}
	s.StartTLS()
	t.Cleanup(s.Close)
	ca := filepath.Join(dir, "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	to := strings.TrimPrefix(s.URL, "https://") + "/a:b"
	from := newLayout(t, item{image: oneImage(t, "amd64")}, "")
	copyTo(t, newClient(t, Config{CA: ca, Cert: cert, Key: key}), from, to, Options{})
	c := newClient(t, Config{CA: ca})
	src, _ := c.Source(from)
	dst, _ := c.Target(to)
	if _, err := c.Copy(t.Context(), src, dst, Options{}); err == nil {
		t.Error("without a certificate it works, too")
	}
	for _, bad := range []Config{{CA: dir}, {CA: key}, {Cert: cert}, {Cert: ca, Key: key}} {
		if _, err := New(bad); err == nil {
			t.Errorf("%+v is accepted", bad)
		}
	}
}

func clientCert(t *testing.T, dir string) (cert, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	kder, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(dir, "c.pem"), filepath.Join(dir, "k.pem")
	if err := errors.Join(
		os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600),
		os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: kder}), 0o600),
	); err != nil {
		t.Fatal(err)
	}
	return cert, key
}

// Blobs that a registry has elsewhere count as well.
func TestRedirect(t *testing.T) {
	reg := newRegistry(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") && !strings.HasPrefix(r.URL.Path, "/elsewhere") {
				http.Redirect(w, r, "/elsewhere"+r.URL.Path, http.StatusTemporaryRedirect)
				return
			}
			r.URL.Path = strings.TrimPrefix(r.URL.Path, "/elsewhere")
			h.ServeHTTP(w, r)
		})
	})
	c := newClient(t, Config{})
	copyTo(t, c, newLayout(t, item{image: oneImage(t, "amd64")}, ""), reg+"/a:b", Options{})
	if r := copyTo(t, c, reg+"/a:b", t.TempDir()+"/x/", Options{}); r.Bytes != r.Size || r.Skipped != 0 {
		t.Errorf("%+v", r)
	}
}

// A registry cannot send us in circles.
func TestCircle(t *testing.T) {
	reg := newRegistry(t, func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, r.URL.Path, http.StatusTemporaryRedirect)
		})
	})
	c := newClient(t, Config{})
	if _, err := c.Inspect(t.Context(), Place{Kind: Registry, Ref: mustRef(t, reg+"/a:b")}); err == nil ||
		!strings.Contains(err.Error(), "redirects") {
		t.Errorf("error %v", err)
	}
}

// A copy ends with its context.
func TestCancel(t *testing.T) {
	entered := make(chan struct{}, 1)
	reg := newRegistry(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.Contains(r.URL.Path, "/blobs/") {
				select {
				case entered <- struct{}{}:
				default:
				}
				_, _ = io.Copy(io.Discard, r.Body)
				<-r.Context().Done()
				return
			}
			h.ServeHTTP(w, r)
		})
	})
	c := newClient(t, Config{})
	src, _ := c.Source(newLayout(t, item{image: oneImage(t, "amd64")}, ""))
	dst, _ := c.Target(reg + "/a:b")
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-entered; cancel() }()
	if _, err := c.Copy(ctx, src, dst, Options{Progress: func(int64, int64) {}}); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}
