package gcs

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

// account writes the file of a service account that gets its tokens at a URL.
func account(t *testing.T, url string) string {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(map[string]string{
		"type": "service_account", "project_id": "p", "private_key_id": "1", "client_email": "capelin@p.iam.gserviceaccount.com",
		"private_key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})), "token_uri": url,
	})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "account.json")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestCredentials(t *testing.T) {
	status, tokens := http.StatusOK, 0
	issuer := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		tokens++
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		if status == http.StatusOK {
			fmt.Fprint(w, `{"access_token":"hush","expires_in":3600,"token_type":"Bearer"}`)
		} else {
			fmt.Fprint(w, `{"error":"invalid_grant","error_description":"hush"}`)
		}
	}))
	defer http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	f := newFake()
	s := httptest.NewTLSServer(f)
	t.Cleanup(s.Close)
	backend := func(credentials string) *Backend {
		t.Helper()
		b, err := Open(Config{Bucket: fakeBucket, Endpoint: s.URL, Credentials: credentials})
		if err != nil {
			t.Fatal(err)
		}
		b.pause = 1
		b.transport.base.TLSClientConfig = s.Client().Transport.(*http.Transport).TLSClientConfig
		t.Cleanup(func() { b.Close() })
		return b
	}

	file := account(t, issuer)
	b := backend(file)
	if err := b.Check(t.Context()); err != nil {
		t.Error(err)
	}
	if len(f.authorized) != 2 || f.authorized[0] != "Bearer hush" || tokens != 1 {
		t.Errorf("authorized by %q, with %d tokens", f.authorized, tokens)
	}

	for _, tt := range []struct {
		status int
		want   func(error) bool
	}{{400, errdefs.IsUnauthorized}, {403, errdefs.IsUnauthorized}, {429, errdefs.IsUnavailable}, {503, errdefs.IsUnavailable}} {
		status = tt.status
		if _, err := backend(file).Stat(t.Context(), "x"); !tt.want(err) || strings.Contains(err.Error(), "hush") {
			t.Errorf("the token's issuer says %d: %v", tt.status, err)
		}
	}

	// What was not there may be there later.
	missing := filepath.Join(t.TempDir(), "account.json")
	b = backend(missing)
	if _, err := b.Stat(t.Context(), "x"); !errdefs.IsUnauthorized(err) || !strings.Contains(err.Error(), missing) {
		t.Error(err)
	}
	if err := os.WriteFile(missing, []byte("{hush"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Stat(t.Context(), "x"); !errdefs.IsUnauthorized(err) || strings.Contains(err.Error(), "hush") {
		t.Error(err)
	}
	status = http.StatusOK
	if err := os.Rename(file, missing); err != nil {
		t.Fatal(err)
	}
	if err := b.Check(t.Context()); err != nil {
		t.Error(err)
	}

	// Over plain HTTP nobody is told a token.
	plain := newFake()
	b, err := Open(Config{Bucket: fakeBucket, Endpoint: serve(t, plain), Credentials: missing})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if err := b.Check(t.Context()); err != nil || strings.Join(plain.authorized, "") != "" {
		t.Errorf("authorized by %q: %v", plain.authorized, err)
	}
}

func TestConfig(t *testing.T) {
	ok := Config{Bucket: "capelin-blobs", Prefix: "a/b/", Endpoint: "https://storage-x.p.googleapis.com/", Credentials: "/x", Memory: 8 << 20}
	if errs := ok.Check("gcs."); errs != nil {
		t.Error(errs)
	}
	for key, change := range map[string]func(c *Config){
		"bucket":      func(c *Config) { c.Bucket = "Capelin/x" },
		"prefix":      func(c *Config) { c.Prefix = "a" },
		"credentials": func(c *Config) { c.Credentials = "x" },
		"endpoint":    func(c *Config) { c.Endpoint = "https://user:hush@host" },
		"memory":      func(c *Config) { c.Memory = 1 << 20 },
	} {
		bad := ok
		change(&bad)
		errs := bad.Check("gcs.")
		if len(errs) != 1 || !strings.Contains(errs[0].Error(), "gcs."+key) || strings.Contains(errs[0].Error(), "hush") {
			t.Errorf("%s: %v", key, errs)
		}
		if b, err := Open(bad); b != nil || !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", key, err)
		}
	}
}
