package trackerd

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/capelin-io/capelin/control/tracker"
	"github.com/capelin-io/capelin/control/trackerpb"
	"github.com/capelin-io/capelin/internal/daemon/identity"
)

// from makes the context of a call by who has these roles in a certificate; none: a
// connection without one.
func from(ctx context.Context, name string, roles ...identity.Role) context.Context {
	state := tls.ConnectionState{}
	if len(roles) > 0 {
		id := identity.ID{Cluster: "c", Name: name, Roles: roles}
		state.PeerCertificates = []*x509.Certificate{{URIs: id.URIs()}}
	}
	return peer.NewContext(ctx, &peer.Peer{Addr: &net.TCPAddr{}, AuthInfo: credentials.TLSInfo{State: state}})
}

func TestEntitled(t *testing.T) {
	plain := peer.NewContext(t.Context(), &peer.Peer{Addr: &net.TCPAddr{}})
	for _, tt := range []struct {
		what string
		ctx  context.Context
		// What becomes of an agent and of an origin called n1, and of an operator.
		agent, origin, control codes.Code
	}{
		{"no identity here", plain, codes.OK, codes.OK, codes.OK},
		{"nobody", from(t.Context(), ""), codes.Unauthenticated, codes.Unauthenticated, codes.Unauthenticated},
		{"node", from(t.Context(), "n1", identity.RoleNode), codes.OK, codes.PermissionDenied, codes.PermissionDenied},
		{"another node", from(t.Context(), "n2", identity.RoleNode), codes.PermissionDenied, codes.PermissionDenied, codes.PermissionDenied},
		{"origin", from(t.Context(), "n1", identity.RoleOrigin), codes.PermissionDenied, codes.OK, codes.PermissionDenied},
		{"index", from(t.Context(), "n1", identity.RoleIndex), codes.PermissionDenied, codes.PermissionDenied, codes.PermissionDenied},
		{"admin", from(t.Context(), "n1", identity.RoleAdmin), codes.PermissionDenied, codes.PermissionDenied, codes.OK},
		{"gateway", from(t.Context(), "n1", identity.RoleGateway), codes.PermissionDenied, codes.PermissionDenied, codes.OK},
		{"tracker", from(t.Context(), "t", identity.RoleTracker), codes.PermissionDenied, codes.PermissionDenied, codes.OK},
		{"all in one", from(t.Context(), "n1", identity.RoleTracker, identity.RoleOrigin), codes.PermissionDenied, codes.OK, codes.OK},
	} {
		if err := entitled(tt.ctx, &trackerpb.Hello{Node: "n1", Role: trackerpb.Role_ROLE_AGENT}); status.Code(err) != tt.agent {
			t.Errorf("%s as an agent: %v", tt.what, err)
		}
		if err := entitled(tt.ctx, &trackerpb.Hello{Node: "n1", Role: trackerpb.Role_ROLE_ORIGIN}); status.Code(err) != tt.origin {
			t.Errorf("%s as an origin: %v", tt.what, err)
		}
		if _, err := caller(tt.ctx); status.Code(err) != tt.control {
			t.Errorf("%s as an operator: %v", tt.what, err)
		}
	}
}

// Where one end speaks TLS and the other does not, both say so.
func TestTLSOnOneSide(t *testing.T) {
	dir := t.TempDir()
	ca, err := identity.InitCA(filepath.Join(dir, "ca"), "default")
	if err != nil {
		t.Fatal(err)
	}
	both := identity.ID{Name: "x", Roles: []identity.Role{identity.RoleTracker, identity.RoleNode}}
	if err := ca.Issue(dir, both, nil, time.Hour); err != nil {
		t.Fatal(err)
	}
	cfg := identity.Config{CA: filepath.Join(dir, "ca.crt"), Cert: filepath.Join(dir, "tls.crt"), Key: filepath.Join(dir, "tls.key")}
	src, err := identity.Load(cfg, "default")
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name           string
		server         identity.Config
		client         *tls.Config
		agent, command string // what each says
	}{
		{"the tracker", cfg, nil,
			"as one does that speaks TLS: configure [identity]", "as one does that speaks TLS: give --ca, --cert and --key"},
		{"the client", identity.Config{}, src.ClientTLS(identity.RoleTracker), "it does not speak TLS", "it does not speak TLS"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := startTracker(t, func(c *Config) { c.Identity = tt.server })
			c, err := tracker.Dial([]string{p.addr}, tt.client)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if _, err := c.Nodes(t.Context()); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), tt.command) {
				t.Errorf("a command: got %v, want %q", err, tt.command)
			}
			n := newAgent(t, "x")
			n.run(tracker.Config{Trackers: []string{p.addr}, TLS: tt.client})
			n.wait(tt.agent, func() bool {
				err := n.trackers[p.addr].Err
				return err != nil && strings.Contains(err.Error(), tt.agent)
			})
		})
	}
}

// Who speaks no TLS is refused as aloud as one with a wrong certificate.
func TestPlainRefused(t *testing.T) {
	client, server := net.Pipe()
	defer client.Close()
	go func() { _, _ = client.Write([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")) }()
	var got []string
	r := refusals{
		credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS13}),
		&identity.Source{Refused: func(err error) { got = append(got, err.Error()) }},
	}
	if _, _, err := r.ServerHandshake(server); err == nil || len(got) != 1 || !strings.Contains(got[0], "does not speak TLS") {
		t.Errorf("error %v; told %q, want one that it does not speak TLS", err, got)
	}
}

// TestIdentity: over a real connection, an operator lists nodes, and a node is
// itself only and may not operate.
func TestIdentity(t *testing.T) {
	dir := t.TempDir()
	ca, err := identity.InitCA(filepath.Join(dir, "ca"), "default")
	if err != nil {
		t.Fatal(err)
	}
	source := func(name string, role identity.Role) (identity.Config, *identity.Source) {
		to := filepath.Join(dir, name)
		if err := ca.Issue(to, identity.ID{Cluster: "default", Name: name, Roles: []identity.Role{role}}, nil, time.Hour); err != nil {
			t.Fatal(err)
		}
		cfg := identity.Config{CA: filepath.Join(to, "ca.crt"), Cert: filepath.Join(to, "tls.crt"), Key: filepath.Join(to, "tls.key")}
		src, err := identity.Load(cfg, "default")
		if err != nil {
			t.Fatal(err)
		}
		return cfg, src
	}
	own, _ := source("t1", identity.RoleTracker)
	p := startTracker(t, func(c *Config) { c.Identity = own })
	_, node := source("n1", identity.RoleNode)
	n1 := newAgent(t, "n1")
	n1.run(tracker.Config{Trackers: []string{p.addr}, TLS: node.ClientTLS(identity.RoleTracker)})
	n1.wait("connected", func() bool { return n1.trackers[p.addr].Connected })
	n2 := newAgent(t, "n2") // with the certificate of n1
	n2.run(tracker.Config{Trackers: []string{p.addr}, TLS: node.ClientTLS(identity.RoleTracker)})
	n2.wait("refused", func() bool { return status.Code(n2.trackers[p.addr].Err) == codes.PermissionDenied })
	_, admin := source("me", identity.RoleAdmin)
	for src, want := range map[*identity.Source]codes.Code{admin: codes.OK, node: codes.PermissionDenied, nil: codes.Unavailable} {
		var conf *tls.Config
		if src != nil {
			conf = src.ClientTLS(identity.RoleTracker)
		}
		c, err := tracker.Dial([]string{p.addr}, conf)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		nodes, err := c.Nodes(t.Context())
		if status.Code(err) != want || want == codes.OK && (len(nodes) != 1 || nodes[0].Name != "n1") {
			t.Errorf("%v: %v, %v", want, nodes, err)
		}
		if _, err := c.Members(t.Context(), blobID(1)); status.Code(err) != want {
			t.Errorf("%v: members: %v", want, err)
		}
		if _, err := c.Drop(t.Context(), blobIDs(1), tracker.Selection{Nodes: []string{"x"}}, nil); status.Code(err) != want {
			t.Errorf("%v: drop: %v", want, err)
		}
		r := tracker.PreheatRequest{Blobs: blobIDs(1), Nodes: tracker.Selection{Nodes: []string{"x"}}}
		if _, err := c.Preheat(t.Context(), r, nil); status.Code(err) != want {
			t.Errorf("%v: preheat: %v", want, err)
		}
	}
}
