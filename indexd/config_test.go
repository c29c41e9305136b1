package indexd

import (
	"bytes"
	"context"
	"net"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/capelin-io/capelin/control/index"
	"github.com/capelin-io/capelin/internal/daemon/config"
	"github.com/capelin-io/capelin/internal/daemon/identity"
)

// What `capelin indexd config` prints is read back as the defaults.
func TestConfigPrintsAndParses(t *testing.T) {
	var b bytes.Buffer
	if err := config.Print(&b, DefaultConfig()); err != nil {
		t.Fatal(err)
	}
	var got Config
	if err := config.Parse("x", b.Bytes(), &got); err != nil || !reflect.DeepEqual(got, DefaultConfig()) {
		t.Errorf("%v\n%s", err, b.String())
	}
}

func TestValidate(t *testing.T) {
	for _, tt := range []struct {
		toml string
		want string // the key; empty: valid
	}{
		{"", ""},
		{"listen = \"127.0.0.1:0\"\nmetrics = \"\"\n", ""},
		{"listen = \":7490\"\n", "listen"},
		{"[[replicate]]\nname = \"west\"\nurl = \"https://west.example\"\nnamespaces = [\".*\"]\n", ""},
		{"[[replicate]]\nname = \"west\"\nurl = \"https://west.example/v2\"\nnamespaces = [\".*\"]\n", "replicate[0].url"},
		{"[[replicate]]\nname = \"west\"\nurl = \"https://west.example\"\nnamespaces = [\"(\"]\n", "replicate[0].namespaces"},
		{"listen = \":7490\"\ninsecure = true\n", ""},
		{"listen = \":7490\"\n[identity]\nca = \"/a\"\ncert = \"/b\"\nkey = \"/c\"\n", ""},
		{"[identity]\nca = \"/a\"\n", "identity.cert"},
		{"listen = \"x\"\n", "listen"},
		{"pprof = true\nmetrics = \":1\"\n", "pprof"},
		{"cluster = \"\"\n", "cluster"},
		{"log_level = \"loud\"\n", "log_level"},
		{"origins = []\n", "origins"},
		{"origins = [\"x\"]\n", "origins"},
		{"[storage]\nkind = \"registry\"\n", "storage.kind: \"registry\" cannot compare and swap"},
		{"[storage]\nkind = \"none\"\n", "storage.kind"},
		{"[next]\nkind = \"registry\"\n", "next.kind: \"registry\" cannot compare and swap"},
		{"[next]\nkind = \"file\"\nfile.path = \"/x\"\n", ""},
		{"[storage.file]\npath = \"relative\"\n", "storage.file.path"},
	} {
		cfg := DefaultConfig()
		err := config.Parse("x.toml", []byte(tt.toml), &cfg)
		if (tt.want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: %v, want %s", tt.toml, err, tt.want)
		}
	}
}

// The daemon from its configuration alone, with certificates: each role does what it
// may, and strangers do not get in.
func TestIdentity(t *testing.T) {
	issue := func(ca *identity.CA, roles ...identity.Role) identity.Config {
		dir := t.TempDir()
		if err := ca.Issue(dir, identity.ID{Name: "x", Roles: roles}, nil, time.Hour); err != nil {
			t.Fatal(err)
		}
		return identity.Config{
			CA: filepath.Join(dir, identity.CACert), Cert: filepath.Join(dir, identity.Cert), Key: filepath.Join(dir, identity.Key),
		}
	}
	newCA := func(cluster string) *identity.CA {
		ca, err := identity.InitCA(t.TempDir(), cluster)
		if err != nil {
			t.Fatal(err)
		}
		return ca
	}
	ours := newCA("here")
	w := newWorld(t)
	cfg := DefaultConfig()
	cfg.Listen, cfg.Metrics, cfg.Cluster, cfg.Origin = "127.0.0.1:0", "", "here", w.origins
	cfg.Storage.File.Path = t.TempDir()
	cfg.Identity = issue(ours, identity.RoleIndex)
	addr := make(chan string, 1)
	cfg.OnListen = func(a, _ net.Addr) { addr <- a.String() }
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, cfg) }()
	at := <-addr

	const reads, writes, nothing = "reads", "writes", "nothing"
	for _, tt := range []struct {
		name string
		ca   *identity.CA
		role identity.Role
		may  string
	}{
		{"gateway", ours, identity.RoleGateway, writes},
		{"admin", ours, identity.RoleAdmin, writes},
		{"index", ours, identity.RoleIndex, writes},
		{"node", ours, identity.RoleNode, reads},
		{"origin", ours, identity.RoleOrigin, nothing},
		{"tracker", ours, identity.RoleTracker, nothing},
		{"another CA", newCA("here"), identity.RoleGateway, nothing},
		{"another cluster", newCA("there"), identity.RoleGateway, nothing},
		{"no certificate", nil, "", nothing},
	} {
		t.Run(tt.name, func(t *testing.T) {
			conf := index.Config{Indexes: []string{at}}
			if tt.ca != nil {
				src, err := identity.Load(issue(tt.ca, tt.role), tt.ca.Cluster)
				if err != nil {
					t.Fatal(err)
				}
				conf.TLS = src.ClientTLS(identity.RoleIndex)
				if tt.may == nothing {
					conf.TLS.VerifyConnection = nil // only the server refuses
				}
			}
			c, err := index.New(conf)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			_, _, readErr := c.Repositories(t.Context(), "", 0)
			d := w.origins.add([]byte("blob"))
			writeErr := c.LinkBlob(t.Context(), "r", ocispec.Descriptor{Digest: d})
			if (readErr == nil) != (tt.may != nothing) || (writeErr == nil) != (tt.may == writes) {
				t.Errorf("reading: %v; writing: %v", readErr, writeErr)
			}
			if tt.may == reads && !errdefs.IsPermissionDenied(writeErr) {
				t.Errorf("writing: %v", writeErr)
			}
		})
	}
	// What is no index, such as a node's agent with the address of one, is not asked.
	src, err := identity.Load(issue(ours, identity.RoleGateway), "here")
	if err != nil {
		t.Fatal(err)
	}
	c, err := index.New(index.Config{Indexes: []string{at}, TLS: src.ClientTLS(identity.RoleOrigin)})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, _, err := c.Repositories(t.Context(), "", 0); !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "origin") {
		t.Errorf("a server of another role: %v", err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}

	// Files that do not fit are told at the start.
	cfg.Cluster = "there"
	if err := Run(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "cluster") {
		t.Errorf("another cluster's certificate: %v", err)
	}
}
