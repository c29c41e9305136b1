package registry

import (
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/capelin-io/capelin/internal/daemon/config"
)

// Who says what decides what is certain.
func TestMirrors(t *testing.T) {
	mirror, upstream := newFake(t), newFake(t)
	const name = "registry.example"
	key := upstream.put("team/app", []byte("hello"))
	status := func(n int) func(http.ResponseWriter, *http.Request) bool {
		if n == 0 {
			return nil
		}
		return func(w http.ResponseWriter, r *http.Request) bool {
			refuse(w, n, "X", "told so")
			return true
		}
	}
	for _, tt := range []struct {
		name             string
		mirror, upstream int // status; 0: as specified
		has              bool
		is               func(error) bool
	}{
		{"the mirror has it", 0, 500, true, nil},
		{"the mirror lacks it", 404, 0, false, nil},
		{"the mirror fails", 500, 0, false, nil},
		{"the mirror refuses", 403, 0, false, nil},
		{"both lack it", 404, 404, false, errdefs.IsNotFound},
		{"the mirror fails, upstream lacks it", 503, 404, false, errdefs.IsNotFound},
		{"the mirror lacks it, upstream fails", 404, 503, false,
			func(err error) bool { return errdefs.IsUnavailable(err) && !errdefs.IsNotFound(err) }},
		{"the mirror lacks it, upstream refuses", 404, 403, false,
			func(err error) bool { return errdefs.IsPermissionDenied(err) && !errdefs.IsNotFound(err) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			mirror.before, upstream.before = status(tt.mirror), status(tt.upstream)
			mirror.blobs = map[string][]byte{}
			if tt.has {
				mirror.put("team/app", []byte("hello"))
			}
			dir := hostsDir(t, name, fmt.Sprintf("server = %q\n[host.%q]\ncapabilities = [\"pull\"]\n", upstream.URL, mirror.URL))
			b := backend(t, Config{Host: name, HostsDir: dir, Retry: config.Duration(1)})
			got, err := read(t, b, key, 0, -1)
			if tt.is == nil && (err != nil || string(got) != "hello") || tt.is != nil && !tt.is(err) {
				t.Errorf("%q, %v", got, err)
			}
			if ns := mirror.last().URL.Query().Get("ns"); ns != name {
				t.Errorf("the mirror was asked for ns %q", ns)
			}
			if tt.is == nil {
				return
			}
			if !strings.Contains(err.Error(), mirror.host()) || !strings.Contains(err.Error(), upstream.host()) {
				t.Errorf("it does not tell the hosts: %v", err)
			}
		})
	}

	// What a tag is only those may say that are capable of it.
	mirror.before, upstream.before = nil, nil
	mirror.tags["team/app:v1"], upstream.tags["team/app:v1"] = []byte(`{"old":1}`), []byte(`{"new":1}`)
	dir := hostsDir(t, name, fmt.Sprintf("server = %q\n[host.%q]\ncapabilities = [\"pull\"]\n", upstream.URL, mirror.URL))
	b := backend(t, Config{Host: name, HostsDir: dir})
	if data, _, err := b.Manifest(t.Context(), "team/app", "v1"); err != nil || string(data) != `{"new":1}` {
		t.Errorf("%q, %v", data, err)
	}
	dir = hostsDir(t, name, fmt.Sprintf(
		"server = %q\ncapabilities = [\"resolve\"]\n[host.%q]\ncapabilities = [\"resolve\"]\n", upstream.URL, mirror.URL))
	b = backend(t, Config{Host: name, HostsDir: dir})
	if _, err := b.Stat(t.Context(), key); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("no host is capable: %v", err)
	}
}

func TestHostsFile(t *testing.T) {
	f := unstarted(t)
	f.Server = httptest.NewTLSServer(f)
	t.Cleanup(f.Close)
	const name = "registry.example:5000"
	key := f.put("team/app", []byte("hello"))
	ca := filepath.Join(t.TempDir(), "ca.pem")
	write(t, ca, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: f.Certificate().Raw})))
	f.before = func(w http.ResponseWriter, r *http.Request) bool {
		if rest, ok := strings.CutPrefix(r.URL.Path, "/other/root/"); ok {
			r.URL.Path = "/v2/" + rest
		}
		return false
	}
	for _, tt := range []struct {
		name, file string
		fails      func(error) bool // nil: it works
		path       string
	}{
		{"ca", fmt.Sprintf("server = %q\nca = %q\n", f.URL, ca), nil, "/v2/"},
		{"unknown ca", fmt.Sprintf("server = %q\n", f.URL), errdefs.IsUnavailable, ""},
		{"skip_verify", fmt.Sprintf("server = %q\nskip_verify = true\n", f.URL), nil, "/v2/"},
		{"override_path", fmt.Sprintf("server = \"%s/other/root\"\nskip_verify = true\noverride_path = true\n", f.URL), nil, "/other/root/"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := backend(t, Config{Host: name, HostsDir: hostsDir(t, name, tt.file), Retry: config.Duration(1)})
			got, err := read(t, b, key, 0, -1)
			if tt.fails != nil {
				if !tt.fails(err) {
					t.Errorf("%q, %v", got, err)
				}
				return
			}
			if err != nil || string(got) != "hello" {
				t.Errorf("%q, %v", got, err)
			}
			if p := f.last().URL.Path; !strings.HasPrefix(f.last().RequestURI, tt.path) {
				t.Errorf("asked for %s", p)
			}
		})
	}
	for _, file := range []string{"server = \n", fmt.Sprintf("server = %q\nca = \"missing.pem\"\n", f.URL)} {
		if _, err := Open(Config{Host: name, HostsDir: hostsDir(t, name, file)}); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("%q: %v", file, err)
		}
	}

	// It is read again, unless it is broken.
	dir := hostsDir(t, name, fmt.Sprintf("server = %q\n", f.URL))
	b := backend(t, Config{Host: name, HostsDir: dir, Retry: config.Duration(1)})
	path := filepath.Join(dir, "registry.example_5000_", "hosts.toml")
	if _, err := os.Stat(path); err != nil {
		t.Fatal(err)
	}
	expire := func() { b.mu.Lock(); b.hosts.loaded = b.hosts.loaded.Add(-reloadEvery); b.mu.Unlock() }
	write(t, path, fmt.Sprintf("server = %q\nskip_verify = true\n", f.URL))
	expire()
	if _, err := b.Stat(t.Context(), key); err != nil {
		t.Error(err)
	}
	write(t, path, "server = ")
	expire()
	if _, err := b.Stat(t.Context(), key); err != nil {
		t.Error(err)
	}
}

// A registry on this machine is asked over HTTP if it does not speak HTTPS, as
// containerd does; others are not.
func TestSchemes(t *testing.T) {
	f := newFake(t)
	key := f.put("team/app", []byte("hello"))
	b := backend(t, Config{Host: f.host()})
	if got, err := read(t, b, key, 0, -1); err != nil || string(got) != "hello" {
		t.Errorf("%q, %v", got, err)
	}
	for host, want := range map[string]string{
		"registry.example": "https", "registry.example:5000": "https", "localhost:80": "http", "localhost": "https",
	} {
		b := backend(t, Config{Host: host})
		if h := b.current().list; len(h) != 1 || h[0].Scheme != want || h[0].Host != host {
			t.Errorf("%s: %+v", host, h)
		}
	}
	b = backend(t, Config{Host: "registry.example", PlainHTTP: true})
	if h := b.current().list; h[0].Scheme != "http" {
		t.Errorf("%+v", h)
	}
}
