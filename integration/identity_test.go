package integration

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/capelin-io/capelin/integration/harness"
	"github.com/capelin-io/capelin/internal/daemon/identity"
	"github.com/capelin-io/capelin/plugin"
)

// Who may connect where: every port of a server and a node, for every role, and
// for certificates that prove nothing.
func TestWhoMayConnect(t *testing.T) {
	s := newServed(t, "")
	n := s.node(t, "node", nil)

	ours := get(identity.OpenCA(s.pki.Dir))(t)
	other := get(identity.InitCA(filepath.Join(s.c.Dir, "other"), "default"))(t)
	foreign := get(identity.InitCA(filepath.Join(s.c.Dir, "foreign"), "another"))(t)
	client := func(ca *identity.CA, name string, valid time.Duration, roles ...identity.Role) *tls.Config {
		dir := filepath.Join(t.TempDir(), name)
		must(t, ca.Issue(dir, identity.ID{Name: name, Roles: roles}, nil, valid))
		cert := get(tls.LoadX509KeyPair(filepath.Join(dir, identity.Cert), filepath.Join(dir, identity.Key)))(t)
		//nolint:gosec // what the server says of us is the question
		return &tls.Config{Certificates: []tls.Certificate{cert}, InsecureSkipVerify: true}
	}
	nobody := map[string]*tls.Config{
		"no certificate":    {InsecureSkipVerify: true}, //nolint:gosec // as above
		"another authority": client(other, "node", time.Hour, identity.RoleNode),
		"another cluster":   client(foreign, "node", time.Hour, identity.RoleNode),
		"expired":           client(ours, "node", -time.Minute, identity.RoleNode),
	}
	all := identity.Roles
	for _, p := range []struct {
		name, addr string
		allowed    []identity.Role
		anybody    bool // without a certificate, too
	}{
		{"tracker", s.server.Addr + ":7470",
			[]identity.Role{identity.RoleNode, identity.RoleOrigin, identity.RoleTracker, identity.RoleGateway, identity.RoleAdmin},
			false},
		{"origin", s.server.Addr + ":7480",
			[]identity.Role{identity.RoleNode, identity.RoleOrigin, identity.RoleIndex, identity.RoleGateway, identity.RoleAdmin},
			false},
		{"origin's swarm", s.server.Addr + ":7481", []identity.Role{identity.RoleNode, identity.RoleOrigin}, false},
		{"index", s.server.Addr + ":7490",
			[]identity.Role{identity.RoleNode, identity.RoleIndex, identity.RoleGateway, identity.RoleAdmin}, false},
		{"gateway", s.server.Addr + ":7500", all, true},
		{"node's swarm", n.Addr + ":7401", []identity.Role{identity.RoleNode, identity.RoleOrigin}, false},
	} {
		for who, conf := range nobody {
			want := p.anybody && who == "no certificate"
			if err := connects(t, s, p.addr, conf); (err == nil) != want {
				t.Errorf("%s at the %s: %v", who, p.name, err)
			}
		}
		for _, role := range all {
			if err := connects(t, s, p.addr, client(ours, "somebody", time.Hour, role)); (err == nil) != slices.Contains(p.allowed, role) {
				t.Errorf("a certificate for %s at the %s: %v", role, p.name, err)
			}
		}
	}

	// What those who may connect may do.
	const digest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	for _, tt := range []struct {
		port, method, path string
		allowed            []identity.Role
	}{
		{":7480", "GET", "/v1/blobs/" + digest,
			[]identity.Role{identity.RoleNode, identity.RoleOrigin, identity.RoleIndex, identity.RoleGateway, identity.RoleAdmin}},
		{":7480", "POST", "/v1/uploads?namespace=team/app", []identity.Role{identity.RoleOrigin, identity.RoleGateway, identity.RoleAdmin}},
		{":7480", "DELETE", "/v1/blobs/" + digest, []identity.Role{identity.RoleOrigin, identity.RoleGateway, identity.RoleAdmin}},
		{":7490", "GET", "/v1/repositories", []identity.Role{identity.RoleNode, identity.RoleIndex, identity.RoleGateway, identity.RoleAdmin}},
		{":7490", "DELETE", "/v1/tag?repository=team/app&name=x", []identity.Role{identity.RoleIndex, identity.RoleGateway, identity.RoleAdmin}},
	} {
		for _, role := range all {
			tr := &http.Transport{DialContext: s.c.Switch.DialContext, TLSClientConfig: client(ours, "somebody", time.Hour, role)}
			req := get(http.NewRequestWithContext(s.ctx, tt.method, "https://"+s.server.Addr+tt.port+tt.path, http.NoBody))(t)
			resp, err := (&http.Client{Transport: tr}).Do(req)
			may := err == nil && resp.StatusCode != http.StatusForbidden && resp.StatusCode != http.StatusUnauthorized
			if err == nil {
				resp.Body.Close()
			}
			tr.CloseIdleConnections()
			if may != slices.Contains(tt.allowed, role) {
				t.Errorf("%s %s by %s: %v, %v", tt.method, tt.path, role, may, err)
			}
		}
	}

	// Health is for everybody who reaches it, which with these addresses is the host.
	for _, path := range []string{"/healthz", "/readyz"} {
		if text, err := s.server.HTTP(s.ctx, "http://127.0.0.1:7501"+path); err != nil || !strings.HasPrefix(text, "ok") {
			t.Errorf("%s: %q, %v", path, text, err)
		}
	}
}

// Two machines with one certificate: each says where the other is, once, and so does the tracker. A
// node that is restarted beside them is no namesake of itself.
func TestNamesakes(t *testing.T) {
	e := newSecureEnv(t)
	keys := get(e.pki.Issue(e.ctx, "twin", "node"))(t)
	keys["node"] = quote("twin")
	twins := []*harness.Node{
		e.stopped(t, "twin-a", harness.NodeOptions{Agent: keys}), e.stopped(t, "twin-b", harness.NodeOptions{Agent: keys}),
	}
	other := e.stopped(t, "other", harness.NodeOptions{})
	for _, n := range append(twins, other) {
		must(t, n.StartAgent(e.ctx))
	}
	must(t, other.AwaitTrackers(e.ctx))
	other.KillAgent()
	must(t, other.StartAgent(e.ctx))
	for i, n := range twins {
		where := twins[1-i].Addr
		e.poll(t, n.Name+" knows of the other", func() bool {
			st, err := n.Status(e.ctx)
			return err == nil && string(st.Namesake) == where
		})
		said := fmt.Sprintf("level=warning msg=%q", "another machine at "+where+" has this name")
		if log := n.Agent().Tail(10_000); strings.Count(log, said) != 1 {
			t.Errorf("%s says %d times that another has its name:\n%s", n.Name, strings.Count(log, said), log)
		}
	}
	must(t, other.AwaitTrackers(e.ctx))
	if st := get(other.Status(e.ctx))(t); st.Namesake != "" {
		t.Errorf("a node that was restarted: %v", st.Namesake)
	}
	if log := e.tracker.Tail(10_000); strings.Count(log, "two machines have one name") != 1 {
		t.Errorf("the tracker says:\n%s", log)
	}
}

// connects makes a TLS connection and sends something, which is when a TLS 1.3
// client hears of a refusal, and returns that. No server is silent then: HTTP answers,
// gRPC sends its settings or closes, and the swarm says that this is no Hello. Nobody
// there, or silence, decides nothing, and ends the test.
func connects(t *testing.T, s *served, addr string, conf *tls.Config) error {
	t.Helper()
	c := get(s.c.Switch.DialContext(s.ctx, "tcp", addr))(t)
	defer c.Close()
	hangs, _ := s.ctx.Deadline()
	_ = c.SetDeadline(hangs)
	tc := tls.Client(c, conf)
	err := tc.HandshakeContext(s.ctx)
	if err == nil {
		_, err = fmt.Fprintf(tc, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	}
	if err == nil {
		if _, err = tc.Read(make([]byte, 1)); errors.Is(err, io.EOF) {
			err = nil // closed, and no word of the certificate
		}
	}
	if errors.Is(err, os.ErrDeadlineExceeded) || s.ctx.Err() != nil {
		t.Fatalf("%s says nothing: %v", addr, err)
	}
	return err
}

// A node whose certificate is another node's does not take part, and says why.
func TestWrongName(t *testing.T) {
	s := newServed(t, "")
	keys := get(s.pki.Issue(s.ctx, "somebody", "node"))(t)
	n := get(s.c.NewNode("node", harness.NodeOptions{Trackers: []string{s.server.Tracker}, Agent: keys}))(t)
	must(t, n.StartAgent(s.ctx)) // containers start without a swarm
	var st plugin.Status
	must(t, await(s.ctx, "the agent says what is wrong", func() bool {
		st = get(n.Status(s.ctx))(t)
		return len(st.Obstacles) > 0
	}))
	if o := st.Obstacles[0]; o.Key != "identity" || !strings.Contains(o.Error, "somebody") || !strings.Contains(o.Error, "node") {
		t.Errorf("the agent with another's certificate says %+v", st.Obstacles)
	}
	for _, tr := range st.Trackers {
		if tr.Connected {
			t.Errorf("it is connected to %+v", tr)
		}
	}
}
