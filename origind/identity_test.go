package origind

import (
	"bytes"
	"crypto/tls"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/content"
	"github.com/capelin-io/capelin/control/origin"
	"github.com/capelin-io/capelin/internal/daemon/identity"
	"github.com/capelin-io/capelin/swarm"
)

// issue makes an identity of a cluster's authority.
func issue(t *testing.T, ca *identity.CA, name string, roles ...identity.Role) identity.Config {
	t.Helper()
	dir := t.TempDir()
	if err := ca.Issue(dir, identity.ID{Name: name, Roles: roles}, nil, time.Hour); err != nil {
		t.Fatal(err)
	}
	return identity.Config{
		CA: filepath.Join(dir, identity.CACert), Cert: filepath.Join(dir, identity.Cert), Key: filepath.Join(dir, identity.Key),
	}
}

func load(t *testing.T, c identity.Config) *identity.Source {
	t.Helper()
	s, err := identity.Load(c, "default")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func authority(t *testing.T) *identity.CA {
	t.Helper()
	ca, err := identity.InitCA(t.TempDir(), "default")
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

// Who may do what; and who may not even connect.
func TestRoles(t *testing.T) {
	ca, otherCA := authority(t), authority(t)
	cfg := testConfig(t, t.TempDir(), nil)
	cfg.Identity = issue(t, ca, "origin", identity.RoleOrigin)
	o := start(t, cfg)
	data, d := testBlob(300_000, 1)
	ref := origin.Ref{Digest: d}
	client := func(c *tls.Config) *running {
		oc, err := origin.New(origin.Config{Origins: []string{o.addr}, TLS: c})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(oc.Close)
		return &running{t: t, addr: o.addr, client: oc}
	}
	of := func(ca *identity.CA, r identity.Role) *running {
		return client(load(t, issue(t, ca, "somebody", r)).ClientTLS(identity.RoleOrigin))
	}
	if _, err := of(ca, identity.RoleGateway).push("any/app", data, d); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		who         string
		c           *running
		read, write string
	}{
		{"node", of(ca, identity.RoleNode), "ok", "permission_denied"},
		{"index", of(ca, identity.RoleIndex), "ok", "permission_denied"},
		{"origin", of(ca, identity.RoleOrigin), "ok", "ok"},
		{"gateway", of(ca, identity.RoleGateway), "ok", "ok"},
		{"admin", of(ca, identity.RoleAdmin), "ok", "ok"},
		{"tracker", of(ca, identity.RoleTracker), "unavailable", "unavailable"},
		{"an admin of another authority", of(otherCA, identity.RoleAdmin), "unavailable", "unavailable"},
		{"nobody", client(&tls.Config{InsecureSkipVerify: true}), "unavailable", "unavailable"},
		{"plain", client(nil), "unavailable", "unavailable"},
	} {
		_, err := tt.c.client.Stat(t.Context(), ref)
		if class(err) != tt.read {
			t.Errorf("%s: stat: %v, want %s", tt.who, err, tt.read)
		}
		got, _, err := tt.c.read(ref, 0, -1)
		if class(err) != tt.read || err == nil && !bytes.Equal(got, data) {
			t.Errorf("%s: read: %v, want %s", tt.who, err, tt.read)
		}
		_, err = tt.c.push("any/other", data, d)
		if class(err) != tt.write {
			t.Errorf("%s: push: %v, want %s", tt.who, err, tt.write)
		}
		id := "00000000-" + strings.Repeat("0", 32)
		if _, err := tt.c.client.UploadOffset(t.Context(), id); err == nil {
			t.Errorf("%s: an upload of nobody", tt.who)
		}
		err = tt.c.client.Delete(t.Context(), origin.Ref{Namespace: "any/none", Digest: d})
		if class(err) != tt.write {
			t.Errorf("%s: delete: %v, want %s", tt.who, err, tt.write)
		}
	}
	// A client of another cluster's origin does not talk to this one.
	if _, err := of(otherCA, identity.RoleNode).client.Stat(t.Context(), ref); !errdefs.IsUnavailable(err) {
		t.Errorf("got %v", err)
	}
}

// HTTP/2 is spoken to those who want it.
func TestHTTP2(t *testing.T) {
	ca := authority(t)
	cfg := testConfig(t, t.TempDir(), nil)
	cfg.Identity = issue(t, ca, "origin", identity.RoleOrigin)
	o := start(t, cfg)
	id := load(t, issue(t, ca, "gateway", identity.RoleGateway))
	oc, err := origin.New(origin.Config{Origins: []string{o.addr}, TLS: id.ClientTLS(identity.RoleOrigin)})
	if err != nil {
		t.Fatal(err)
	}
	defer oc.Close()
	data, d := testBlob(1<<20, 1)
	if _, err := (&running{t: t, client: oc}).push("any/app", data, d); err != nil {
		t.Fatal(err)
	}
	tr := &http.Transport{TLSClientConfig: id.ClientTLS(identity.RoleOrigin), ForceAttemptHTTP2: true}
	defer tr.CloseIdleConnections()
	resp, err := (&http.Client{Transport: tr}).Get("https://" + o.addr + origin.PathBlobs + "/" + string(d))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var got bytes.Buffer
	if _, err := got.ReadFrom(resp.Body); err != nil || resp.ProtoMajor != 2 || digest.FromBytes(got.Bytes()) != d {
		t.Errorf("HTTP/%d: %d bytes, %v", resp.ProtoMajor, got.Len(), err)
	}
}

// The swarm is mutual TLS as well.
func TestSwarmWithIdentity(t *testing.T) {
	ca := authority(t)
	cfg := testConfig(t, t.TempDir(), nil)
	cfg.Identity = issue(t, ca, "origin", identity.RoleOrigin)
	o := start(t, cfg)
	oc, err := origin.New(origin.Config{Origins: []string{o.addr},
		TLS: load(t, issue(t, ca, "g", identity.RoleGateway)).ClientTLS(identity.RoleOrigin)})
	if err != nil {
		t.Fatal(err)
	}
	defer oc.Close()
	data, d := testBlob(1<<20, 1)
	if _, err := (&running{t: t, client: oc}).push("any/app", data, d); err != nil {
		t.Fatal(err)
	}
	node := load(t, issue(t, ca, "node", identity.RoleNode))
	p := newPeerWith(t, node, func(*swarm.NodeConfig) {})
	id := idOf(t, data)
	p.want(t, o, id)
	if err := <-p.node.Done(id); err != nil {
		t.Fatal(err)
	}
	if p.store.Presence(id) != content.Cached {
		t.Error("the blob is not there")
	}
}

func TestNameAndRole(t *testing.T) {
	ca := authority(t)
	for _, tt := range []struct{ node, name, want string }{
		{"", "a", "a"}, {"a", "a", "a"}, {"b", "a", ""},
	} {
		cfg := DefaultConfig()
		cfg.Node = tt.node
		got, err := cfg.node(load(t, issue(t, ca, tt.name, identity.RoleOrigin)))
		if got != tt.want || (err == nil) != (tt.want != "") {
			t.Errorf("%+v: %q, %v", tt, got, err)
		}
	}
	cfg := DefaultConfig()
	if _, err := cfg.node(load(t, issue(t, ca, "a", identity.RoleNode))); err == nil {
		t.Error("a node's certificate made an origin")
	}
}
