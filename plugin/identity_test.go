package plugin

import (
	"crypto/tls"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/pkg/namespaces"

	"github.com/capelin-io/capelin/internal/daemon/identity"
	"github.com/capelin-io/capelin/plugin/fetch/fetchtest"
	"github.com/capelin-io/capelin/trackerd"
)

// With identity agents find each other and exchange blobs as without; what has no
// certificate of the cluster gets nothing.
func TestAgentsWithIdentity(t *testing.T) {
	dir := t.TempDir()
	ca, err := identity.InitCA(filepath.Join(dir, "ca"), "default")
	if err != nil {
		t.Fatal(err)
	}
	issue := func(name string, role identity.Role) identity.Config {
		to := filepath.Join(dir, name+"-"+string(role))
		if err := ca.Issue(to, identity.ID{Name: name, Roles: []identity.Role{role}}, nil, time.Hour); err != nil {
			t.Fatal(err)
		}
		return identity.Config{
			CA: filepath.Join(to, identity.CACert), Cert: filepath.Join(to, identity.Cert), Key: filepath.Join(to, identity.Key),
		}
	}
	tracker := startTracker(t, func(c *trackerd.Config) { c.Identity = issue("t", identity.RoleTracker) })
	secure := func() Config {
		cfg := testConfig(t)
		cfg.Trackers = []string{tracker}
		cfg.Identity = issue(cfg.Node, identity.RoleNode)
		return cfg
	}
	first := secure()
	first.Metrics = "127.0.0.1:0"
	agents := []*testAgent{start(t, first), start(t, secure())}
	ctx := namespaces.WithNamespace(t.Context(), "ns")
	id, data := fetchtest.Random(t, 33<<16+1, 90)
	r := &registry{blobs: map[string][]byte{id.Digest(): data}}
	if err := remotes.Fetch(ctx, agents[0].db(t).ContentStore(), r, layer(id)); err != nil {
		t.Fatal(err)
	}
	r.requests()
	if err := remotes.Fetch(ctx, agents[1].db(t).ContentStore(), r, layer(id)); err != nil {
		t.Fatal(err)
	}
	if got := r.requests(); len(got) != 0 {
		t.Errorf("the second node downloaded %v", got)
	}
	agents[1].until(t, func(st Status) bool { return st.Bytes.FromPeers == id.Size })

	// Metrics and health need no certificate.
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + agents[0].status(t).Metrics + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if text, err := io.ReadAll(resp.Body); err != nil ||
		!strings.Contains(string(text), "capelin_certificate_expiry_timestamp_seconds{role=\"agent\"} 1") {
		t.Errorf("no expiry among the metrics: %v", err)
	}
	// The swarm does.
	addr := agents[0].status(t).Advertise
	c, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // a stranger
	if err == nil {
		defer c.Close()
		if n, err := c.Read(make([]byte, 1)); err == nil {
			t.Errorf("a stranger heard %d bytes", n)
		}
	}

	// An agent is what its certificate says, or has no part in the swarm.
	for name, set := range map[string]func(*Config){
		"another's certificate": func(c *Config) { c.Identity = issue("other", identity.RoleNode) },
		"an origin's":           func(c *Config) { c.Identity = issue(c.Node, identity.RoleOrigin) },
		"another cluster":       func(c *Config) { c.Cluster = "test" },
		"no such file":          func(c *Config) { c.Identity.Key += "x" },
	} {
		cfg := secure()
		set(&cfg)
		a := start(t, cfg)
		a.until(t, func(st Status) bool { return len(st.Obstacles) == 1 })
		if st := a.status(t); st.Obstacles[0].Key != "identity" || st.Advertise != "" || st.Swarm == "" {
			t.Errorf("%s: %+v", name, st)
		}
		a.end(t)
	}
}
