package azure

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

const secret = "aHVzaCBodXNo" // "hush hush"

func write(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "credentials")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// open returns a backend whose storage answers with h.
func open(t *testing.T, credentials string, h http.HandlerFunc) *Backend {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	b, err := Open(Config{Account: "account", Container: "container", Prefix: "some/where/", Endpoint: s.URL, Credentials: credentials})
	if err != nil {
		t.Fatal(err)
	}
	b.pause, b.block = time.Microsecond, 1<<20
	t.Cleanup(func() { b.Close() })
	return b
}

func always(status int, code string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		if code != "" {
			w.Header().Set("x-ms-error-code", code)
		}
		w.WriteHeader(status)
	}
}

// calls are all that may be asked.
func calls(b *Backend) map[string]func(ctx context.Context) error {
	return map[string]func(ctx context.Context) error{
		"Check": b.Check,
		"Stat":  func(ctx context.Context) error { _, err := b.Stat(ctx, "a/key"); return err },
		"Open":  func(ctx context.Context) error { _, _, err := b.Open(ctx, "a/key", 5, 7); return err },
		"Write": func(ctx context.Context) error {
			_, err := b.Write(ctx, "a/key", 1, strings.NewReader("x"))
			return err
		},
		"Write large": func(ctx context.Context) error {
			_, err := b.Write(ctx, "a/key", -1, bytes.NewReader(make([]byte, b.block+1)))
			return err
		},
		"WriteIf": func(ctx context.Context) error { _, err := b.WriteIf(ctx, "a/key", nil, "0x7"); return err },
		"List":    func(ctx context.Context) error { _, _, err := b.List(ctx, "", "", 0); return err },
		"Delete":  func(ctx context.Context) error { return b.Delete(ctx, "a/key") },
	}
}

func TestClasses(t *testing.T) {
	for _, tt := range []struct {
		status int
		code   string
		want   error
	}{
		{401, "NoAuthenticationInformation", errdefs.ErrUnauthenticated},
		{403, "AuthenticationFailed", errdefs.ErrUnauthenticated},
		{403, "AuthorizationPermissionMismatch", errdefs.ErrPermissionDenied},
		{403, "", errdefs.ErrPermissionDenied},
		{404, "ContainerNotFound", errdefs.ErrFailedPrecondition},
		{404, "", errdefs.ErrUnavailable}, // not the storage's
		{400, "InvalidHeaderValue", errdefs.ErrUnavailable},
		{409, "ContainerBeingDeleted", errdefs.ErrUnavailable},
		{412, "LeaseIdMissing", errdefs.ErrUnavailable},
		{408, "", errdefs.ErrUnavailable},
		{429, "", errdefs.ErrUnavailable},
		{500, "OperationTimedOut", errdefs.ErrUnavailable},
		{503, "ServerBusy", errdefs.ErrUnavailable},
		{302, "", errdefs.ErrUnavailable},
	} {
		b := open(t, write(t, secret), always(tt.status, tt.code))
		for name, call := range calls(b) {
			err := call(t.Context())
			if !errors.Is(err, tt.want) || errdefs.IsNotFound(err) || errdefs.IsConflict(err) {
				t.Errorf("%s, status %d %s: %v", name, tt.status, tt.code, err)
				continue
			}
			if !strings.HasPrefix(err.Error(), "azure:account/container/some/where: ") || strings.Contains(err.Error(), "\n") {
				t.Errorf("%s: %v", name, err)
			}
			if name != "Check" && name != "List" && !strings.Contains(err.Error(), "a/key") {
				t.Errorf("%s does not name the key: %v", name, err)
			}
			if tt.code == "ContainerNotFound" && !strings.Contains(err.Error(), `no container "container"`) {
				t.Errorf("%s does not name the container: %v", name, err)
			}
		}
	}
	b := open(t, write(t, secret), always(404, "BlobNotFound"))
	if _, err := b.Stat(t.Context(), "x"); !errdefs.IsNotFound(err) {
		t.Error(err)
	}
	if _, err := b.WriteIf(t.Context(), "x", nil, "0x7"); !errdefs.IsConflict(err) {
		t.Error(err)
	}
	if err := b.Delete(t.Context(), "x"); err != nil {
		t.Error(err)
	}
}

// TestStands: a storage that does not answer, or does not end, is given up.
func TestStands(t *testing.T) {
	stop := make(chan struct{})
	b := open(t, write(t, secret), func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		<-stop
	})
	defer close(stop)
	b.transport.timeout = time.Millisecond
	for name, call := range calls(b) {
		if err := call(t.Context()); !errdefs.IsUnavailable(err) || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v", name, err)
		}
	}
	long := open(t, write(t, secret), func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		for r.Context().Err() == nil && r.Method != http.MethodHead {
			if _, err := w.Write(make([]byte, 64<<10)); err != nil {
				return
			}
		}
	})
	long.transport.longest = 64 << 10
	for _, name := range []string{"List", "Check"} {
		if err := calls(long)[name](t.Context()); !errdefs.IsUnavailable(err) {
			t.Errorf("%s: an answer that does not end: %v", name, err)
		}
	}
}

func TestCredentials(t *testing.T) {
	var mu sync.Mutex
	var authorized, queries []string
	record := func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		authorized, queries = append(authorized, r.Header.Get("Authorization")), append(queries, r.URL.RawQuery)
		always(404, "BlobNotFound")(w, r)
	}
	last := func(list []string) string { return list[len(list)-1] }

	b := open(t, write(t, secret+"\n"), record)
	if _, err := b.Stat(t.Context(), "x"); !errdefs.IsNotFound(err) || !strings.HasPrefix(last(authorized), "SharedKey account:") {
		t.Errorf("with a key: %q, %v", authorized, err)
	}

	file := write(t, "?sv=2025&sp=rcwdl&sig=hush%2Bhush%3D\n")
	b = open(t, file, record)
	if _, err := b.Stat(t.Context(), "x"); !errdefs.IsNotFound(err) || last(authorized) != "" ||
		!strings.Contains(last(queries), "sig=hush%2Bhush%3D") || !strings.Contains(last(queries), "sp=rcwdl") {
		t.Errorf("with a signature: %q, %v", queries, err)
	}
	if err := os.WriteFile(file, []byte("sv=2025&sig=another"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Stat(t.Context(), "x"); !errdefs.IsNotFound(err) || !strings.Contains(last(queries), "sig=another") {
		t.Errorf("with a signature that is new: %q, %v", queries, err)
	}
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Stat(t.Context(), "x"); !errdefs.IsUnauthorized(err) {
		t.Errorf("with a signature that is gone: %v", err)
	}
	if err := os.WriteFile(file, []byte("sig=another"), 0o600); err != nil {
		t.Fatal(err)
	}
	b.transport.base.CloseIdleConnections()
	b.cfg.Endpoint = "http://127.0.0.1:1"
	b.client = nil
	if _, err := b.Stat(t.Context(), "x"); !errdefs.IsUnavailable(err) || strings.Contains(err.Error(), "another") {
		t.Errorf("the signature is told: %v", err)
	}

	for _, text := range []string{"", "not base64, hush"} {
		b := open(t, write(t, text), record)
		if _, err := b.Stat(t.Context(), "x"); text != "" && (!errdefs.IsUnauthorized(err) || strings.Contains(err.Error(), "hush")) {
			t.Errorf("with %q: %v", text, err)
		}
	}
	b = open(t, filepath.Join(t.TempDir(), "none"), record)
	for name, call := range calls(b) {
		if err := call(t.Context()); !errdefs.IsUnauthorized(err) {
			t.Errorf("%s without the file: %v", name, err)
		}
	}

	// Nobody sends a token over plain HTTP.
	t.Setenv("AZURE_TENANT_ID", "00000000-0000-0000-0000-000000000000")
	t.Setenv("AZURE_CLIENT_ID", "00000000-0000-0000-0000-000000000000")
	t.Setenv("AZURE_CLIENT_SECRET", "hush")
	t.Setenv("AZURE_TOKEN_CREDENTIALS", "EnvironmentCredential")
	n := len(queries)
	b = open(t, "", record)
	_, err := b.Stat(t.Context(), "x")
	if err == nil || errdefs.IsNotFound(err) || len(queries) != n || strings.Contains(err.Error(), "hush") {
		t.Errorf("a token over plain HTTP: %v", err)
	}
}

func TestBlocks(t *testing.T) {
	for _, size := range []int64{-1, 0, 1, blockSize, 50_000 * blockSize, 50_000*blockSize + 1, 5 << 40, 190 << 40} {
		if block := blockOf(size, blockSize); block < blockSize || size > block*maxBlocks {
			t.Errorf("%d bytes in blocks of %d", size, block)
		}
	}
	w := &writing{nonce: strings.Repeat("A", 26)}
	ids := map[string]bool{}
	for _, n := range []int{0, 1, 9, 10, maxBlocks - 1} {
		id := w.blockID(n)
		if raw, err := base64.StdEncoding.DecodeString(id); err != nil || len(raw) > 64 || len(id) != len(w.blockID(0)) || ids[id] {
			t.Errorf("block %d is %q: %v", n, id, err)
		}
		ids[id] = true
	}
}

func TestVersions(t *testing.T) {
	for etag, want := range map[string]string{
		`"0x8D"`: "0x8D", "0x8D": "0x8D", "": "", "*": "", `"a"b"`: "", "a b": "", "a\r\nb": "", `"é"`: "",
	} {
		if got := versionOf(etag); got != want {
			t.Errorf("%q: %q, want %q", etag, got, want)
		}
	}
}

// TestOrder: an account with a hierarchical namespace lists in another order, which nobody is to believe.
func TestOrder(t *testing.T) {
	b := open(t, write(t, secret), func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/xml")
		fmt.Fprint(w, `<EnumerationResults><Blobs>`)
		for _, name := range []string{"a/b", "a-b"} {
			fmt.Fprintf(w, `<Blob><Name>some/where/%s</Name>`+
				`<Properties><Etag>0x1</Etag><Content-Length>1</Content-Length></Properties></Blob>`, name)
		}
		fmt.Fprint(w, `</Blobs><NextMarker/></EnumerationResults>`)
	})
	if _, _, err := b.List(t.Context(), "", "", 0); !errdefs.IsFailedPrecondition(err) {
		t.Error(err)
	}
}

func TestConfig(t *testing.T) {
	ok := Config{Account: "examplecapelin", Container: "blobs-1", Prefix: "a/b/", Endpoint: "https://x.blob.core.chinacloudapi.cn/",
		Credentials: "/x", Memory: 8 << 20}
	if errs := ok.Check("azure."); errs != nil {
		t.Error(errs)
	}
	for key, change := range map[string]func(c *Config){
		"account":     func(c *Config) { c.Account = "Account-1" },
		"container":   func(c *Config) { c.Container = "a--b" },
		"prefix":      func(c *Config) { c.Prefix = "a" },
		"credentials": func(c *Config) { c.Credentials = "x" },
		"endpoint":    func(c *Config) { c.Endpoint = "https://host/?sig=hush" },
		"memory":      func(c *Config) { c.Memory = 1 << 20 },
	} {
		bad := ok
		change(&bad)
		errs := bad.Check("azure.")
		if len(errs) != 1 || !strings.Contains(errs[0].Error(), "azure."+key) || strings.Contains(errs[0].Error(), "hush") {
			t.Errorf("%s: %v", key, errs)
		}
		if b, err := Open(bad); b != nil || !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", key, err)
		}
	}
}
