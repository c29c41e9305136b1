package identity

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"io/fs"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/peer"
)

// hangs ends what does not end by itself.
const hangs = 5 * time.Minute

func newCA(t testing.TB, cluster string) *CA {
	t.Helper()
	ca, err := InitCA(filepath.Join(t.TempDir(), "ca"), cluster)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

// issue makes a certificate and returns it as a Config.
func (ca *CA) issue(t testing.TB, name string, valid time.Duration, roles ...Role) Config {
	t.Helper()
	dir := t.TempDir()
	if err := ca.Issue(dir, ID{Name: name, Roles: roles}, nil, valid); err != nil {
		t.Fatal(err)
	}
	return Config{CA: filepath.Join(dir, CACert), Cert: filepath.Join(dir, Cert), Key: filepath.Join(dir, Key)}
}

func load(t testing.TB, c Config, cluster string) *Source {
	t.Helper()
	s, err := Load(c, cluster)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// shake makes a connection and moves a byte both ways, which is when a TLS 1.3
// client hears of a refusal.
func shake(t *testing.T, server, client *tls.Config) (serverErr, clientErr error) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	done := make(chan error, 1)
	go func() {
		c, err := ln.Accept()
		if err != nil {
			done <- err
			return
		}
		defer c.Close()
		tc := tls.Server(c, server)
		_ = c.SetDeadline(time.Now().Add(hangs))
		if _, err = io.CopyN(io.Discard, tc, 1); err == nil {
			_, err = tc.Write([]byte{1})
		}
		done <- err
	}()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(hangs))
	tc := tls.Client(c, client)
	if _, clientErr = tc.Write([]byte{1}); clientErr == nil {
		_, clientErr = io.CopyN(io.Discard, tc, 1)
	}
	if clientErr != nil {
		c.Close()
	}
	return <-done, clientErr
}

// services are servers of each kind, by what reaches them. What returns is the
// client's error, and who the server says it was.
func services(t *testing.T, conf *tls.Config) map[string]func(client *tls.Config) (string, error) {
	t.Helper()
	listen := func() net.Listener {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ln.Close() })
		return ln
	}
	var wg sync.WaitGroup
	t.Cleanup(wg.Wait)

	raw := listen()
	wg.Go(func() {
		for {
			c, err := raw.Accept()
			if err != nil {
				return
			}
			_ = c.SetDeadline(time.Now().Add(hangs))
			tc := tls.Server(c, conf)
			if err := tc.Handshake(); err == nil {
				id, _ := PeerID(tc.ConnectionState())
				_, _ = io.WriteString(tc, id.Name)
			}
			tc.Close()
		}
	})
	hln := listen()
	h := &http.Server{
		ReadHeaderTimeout: hangs, TLSConfig: conf.Clone(), ErrorLog: log.New(io.Discard, "", 0),
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			id, _ := PeerID(*r.TLS)
			_, _ = io.WriteString(w, id.Name)
		}),
	}
	wg.Go(func() { _ = h.ServeTLS(hln, "", "") })
	t.Cleanup(func() { h.Close() })
	gln := listen()
	g := grpc.NewServer(grpc.Creds(credentials.NewTLS(conf)))
	healthpb.RegisterHealthServer(g, health.NewServer())
	wg.Go(func() { _ = g.Serve(gln) })
	t.Cleanup(g.Stop)

	return map[string]func(*tls.Config) (string, error){
		"tcp": func(client *tls.Config) (string, error) {
			c, err := tls.Dial("tcp", raw.Addr().String(), client)
			if err != nil {
				return "", err
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(hangs))
			who, err := io.ReadAll(c)
			return string(who), err
		},
		"http": func(client *tls.Config) (string, error) {
			tr := &http.Transport{TLSClientConfig: client, ForceAttemptHTTP2: true}
			defer tr.CloseIdleConnections()
			resp, err := (&http.Client{Transport: tr}).Get("https://" + hln.Addr().String())
			if err != nil {
				return "", err
			}
			defer resp.Body.Close()
			if resp.ProtoMajor != 2 {
				t.Errorf("spoke %s", resp.Proto)
			}
			who, err := io.ReadAll(resp.Body)
			return string(who), err
		},
		"grpc": func(client *tls.Config) (string, error) {
			conn, err := grpc.NewClient(gln.Addr().String(), grpc.WithTransportCredentials(credentials.NewTLS(client)))
			if err != nil {
				return "", err
			}
			defer conn.Close()
			var p peer.Peer
			_, err = healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{}, grpc.Peer(&p))
			return "", err
		},
	}
}

// What a stranger sends: a certificate, and no look at the server's.
func stranger(t *testing.T, c Config) *tls.Config {
	t.Helper()
	cert, err := tls.LoadX509KeyPair(c.Cert, c.Key)
	if err != nil {
		t.Fatal(err)
	}
	present := func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil }
	return &tls.Config{InsecureSkipVerify: true, GetClientCertificate: present} //nolint:gosec // a stranger
}

func TestWhoMayConnect(t *testing.T) {
	ours, other, wrong := newCA(t, "prod"), newCA(t, "prod"), newCA(t, "test")
	const day = 24 * time.Hour
	tracker := load(t, ours.issue(t, "tracker-1", day, RoleTracker), "prod")
	var mu sync.Mutex
	refused := ""
	tracker.Refused = func(err error) { mu.Lock(); defer mu.Unlock(); refused = err.Error() }
	node := load(t, ours.issue(t, "node-1", day, RoleNode), "prod")
	// The same authority's certificate for another cluster.
	misled := *ours
	misled.Cluster = "test"

	for kind, call := range services(t, tracker.ServerTLS(RoleNode, RoleOrigin)) {
		old := stranger(t, ours.issue(t, "node-1", day, RoleNode))
		old.MaxVersion = tls.VersionTLS12
		for _, tt := range []struct {
			name   string
			client *tls.Config
			refuse string // what the server says of it; "-" if only crypto/tls knows
		}{
			{"a node", node.ClientTLS(RoleTracker), ""},
			{"two roles, one right", load(t, ours.issue(t, "node-1", day, RoleIndex, RoleOrigin), "prod").ClientTLS(RoleTracker), ""},
			{"no certificate", &tls.Config{InsecureSkipVerify: true}, "-"}, //nolint:gosec // a stranger
			{"another CA's", stranger(t, other.issue(t, "node-1", day, RoleNode)),
				"certificate of node-1 (node) of cluster prod: x509: certificate signed by unknown authority"},
			{"another cluster's", stranger(t, wrong.issue(t, "node-1", day, RoleNode)), "unknown authority"},
			{"another cluster of the CA", stranger(t, misled.issue(t, "node-1", day, RoleNode)), "this is cluster prod"},
			{"expired", stranger(t, ours.issue(t, "node-1", -time.Minute, RoleNode)), "expired"},
			{"wrong role", stranger(t, ours.issue(t, "index-1", day, RoleIndex)),
				"certificate of index-1 (index) of cluster prod: it would have to be for node or origin"},
			{"TLS 1.2", old, "-"},
		} {
			t.Run(kind+"/"+tt.name, func(t *testing.T) {
				refused = ""
				who, err := call(tt.client)
				mu.Lock()
				defer mu.Unlock()
				switch {
				case tt.refuse == "" && (err != nil || kind != "grpc" && who != "node-1"):
					t.Errorf("%q, %v", who, err)
				case tt.refuse != "" && (err == nil || who != ""):
					t.Errorf("let in as %q, %v", who, err)
				case tt.refuse != "" && tt.refuse != "-" && !strings.Contains(refused, tt.refuse):
					t.Errorf("the server says %q, not %q", refused, tt.refuse)
				}
			})
		}
	}
	// Clients look at servers in the same way.
	for name, tt := range map[string]struct {
		server *Source
		want   string
	}{
		"a node":       {node, "it would have to be for tracker"},
		"another CA's": {load(t, other.issue(t, "tracker-1", day, RoleTracker), "prod"), "unknown authority"},
		"expired":      {load(t, ours.issue(t, "tracker-1", -time.Minute, RoleTracker), "prod"), "expired"},
	} {
		for kind, call := range services(t, tt.server.ServerTLS(RoleNode)) {
			if _, err := call(node.ClientTLS(RoleTracker)); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%s as a tracker by %s: %v", name, kind, err)
			}
		}
	}
}

func TestPeersAndUsers(t *testing.T) {
	ca := newCA(t, "prod")
	source := func(name string, role Role) *Source { return load(t, ca.issue(t, name, time.Hour, role), "prod") }
	node, origin, tracker := source("n", RoleNode), source("o", RoleOrigin), source("t", RoleTracker)
	if a, b := shake(t, node.PeerTLS(RoleNode, RoleOrigin), origin.PeerTLS(RoleNode, RoleOrigin)); a != nil || b != nil {
		t.Errorf("peers: server: %v, client: %v", a, b)
	}
	if a, b := shake(t, node.PeerTLS(RoleNode, RoleOrigin), tracker.PeerTLS(RoleNode, RoleOrigin)); a == nil && b == nil {
		t.Error("a tracker takes part in the swarm")
	}
	anybody := &tls.Config{InsecureSkipVerify: true} //nolint:gosec // a user
	if a, b := shake(t, tracker.ServerTLSOptional(RoleAdmin), anybody); a != nil || b != nil {
		t.Errorf("without a certificate: server: %v, client: %v", a, b)
	}
	if a, _ := shake(t, tracker.ServerTLSOptional(RoleAdmin), node.ClientTLS(RoleTracker)); a == nil {
		t.Error("a certificate of the wrong role was accepted")
	}

	cs := tls.ConnectionState{}
	if err := VerifyNode(cs, "o", RoleOrigin); err == nil {
		t.Error("nobody is an origin")
	}
	cs.PeerCertificates = []*x509.Certificate{{URIs: origin.ID().URIs()}}
	for _, tt := range []struct {
		name string
		role Role
		ok   bool
	}{{"o", RoleOrigin, true}, {"p", RoleOrigin, false}, {"o", RoleNode, false}, {"o", "other", false}} {
		if err := VerifyNode(cs, tt.name, tt.role); (err == nil) != tt.ok {
			t.Errorf("%s %s: %v", tt.role, tt.name, err)
		}
	}
}

// A session is resumed only by who would be let in anew.
func TestResumption(t *testing.T) {
	ca := newCA(t, "prod")
	cfg := ca.issue(t, "s", time.Hour, RoleTracker)
	server := load(t, cfg, "prod")
	call := services(t, server.ServerTLS(RoleNode))["tcp"]
	client := load(t, ca.issue(t, "n", time.Hour, RoleNode), "prod").ClientTLS(RoleTracker)
	client.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	for range 2 {
		if who, err := call(client); err != nil || who != "n" {
			t.Errorf("%q, %v", who, err)
		}
	}
	other := newCA(t, "prod")
	if err := other.Issue(filepath.Dir(cfg.Cert), ID{Name: "s", Roles: []Role{RoleTracker}}, nil, time.Hour); err != nil {
		t.Fatal(err)
	}
	server.files.Look()
	if who, err := call(client); err == nil {
		t.Errorf("%q came in with a session of the former CA", who)
	}
}

func TestLoadErrors(t *testing.T) {
	ca := newCA(t, "prod")
	good, foreign := ca.issue(t, "n", time.Hour, RoleNode), newCA(t, "prod").issue(t, "n", time.Hour, RoleNode)
	for _, tt := range []struct {
		name, cluster string
		c             Config
		want          string
	}{
		{"good", "prod", good, ""},
		{"other cluster", "test", good, "this is cluster test"},
		{"no file", "prod", Config{CA: good.CA, Cert: good.Cert + "x", Key: good.Key}, good.Cert + "x"},
		{"other key", "prod", Config{CA: good.CA, Cert: good.Cert, Key: foreign.Key}, foreign.Key},
		{"expired", "prod", ca.issue(t, "n", -time.Minute, RoleNode), ""},
		{"other CA", "prod", Config{CA: foreign.CA, Cert: good.Cert, Key: good.Key}, "unknown authority"},
		{"key for CA", "prod", Config{CA: good.Key, Cert: good.Cert, Key: good.Key}, "holds no certificate"},
	} {
		_, err := Load(tt.c, tt.cluster)
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
	if _, err := InitCA(t.TempDir(), "no spaces please"); err == nil {
		t.Error("an authority of a cluster with an impossible name")
	}
	dir := t.TempDir()
	if _, err := InitCA(dir, "prod"); err != nil {
		t.Fatal(err)
	}
	if _, err := InitCA(dir, "prod"); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a second authority: %v", err)
	}
	if info, err := os.Stat(filepath.Join(dir, CAKey)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the authority's key: %v, %v", info.Mode(), err)
	}
	for _, id := range []ID{{Name: "n"}, {Name: "..", Roles: []Role{RoleNode}}, {Name: "a/b", Roles: []Role{RoleNode}},
		{Name: "n", Roles: []Role{"king"}}, {Roles: []Role{RoleNode}}} {
		if err := ca.Issue(t.TempDir(), id, nil, time.Hour); err == nil {
			t.Errorf("issued for %+v", id)
		}
	}
	if err := ca.Issue(t.TempDir(), ID{Name: "n", Roles: []Role{RoleNode}}, nil, 20*365*24*time.Hour); err == nil {
		t.Error("a certificate outlives its authority")
	}
}

func TestURIs(t *testing.T) {
	for _, tt := range []struct {
		uri string
		ok  bool
	}{
		{"spiffe://prod/capelin/node/n1", true},
		{"spiffe://prod/capelin/node/n1.example.org", true},
		{"spiffe://prod/capelin/king/n1", false},
		{"spiffe://prod/capelin/node/", false},
		{"spiffe://prod/capelin/node/a/b", false},
		{"spiffe://prod/capelin/node/a%2fb", false},
		{"spiffe://prod/capelin/node/a%20b", false},
		{"spiffe:///capelin/node/n1", false},
		{"spiffe://prod:80/capelin/node/n1", false},
		{"spiffe://u@prod/capelin/node/n1", false},
		{"spiffe://prod/capelin/node/n1?x", false},
		{"spiffe://prod/capelin/node/n1?", false},
		{"spiffe://prod/capelin/node/..", false},
		{"spiffe://prod/capelin//node/n1", false},
		{"spiffe://prod/capelin/Node/n1", false},
		{"spiffe://prod/%63apelin/node/n1", false},
		{"spiffe://prod/capelin/node/n1#x", false},
		{"https://prod/capelin/node/n1", false},
		{"spiffe://prod/ns/default/sa/x", false},
		{"spiffe:prod", false},
	} {
		u, err := url.Parse(tt.uri)
		if err != nil {
			t.Fatal(err)
		}
		if id, ok := parseURI(u); ok != tt.ok {
			t.Errorf("%s: %v %v", tt.uri, id, ok)
		}
	}
}

func TestPeerID(t *testing.T) {
	for _, tt := range []struct {
		uris []string
		want string // "": refused
	}{
		{nil, ""},
		{[]string{"https://example.org/", "spiffe://prod/ns/a/sa/b"}, ""},
		{[]string{"spiffe://prod/ns/a/sa/b", "spiffe://prod/capelin/node/n"}, "n (node) of cluster prod"},
		{[]string{"spiffe://prod/capelin/node/n", "spiffe://prod/capelin/origin/n", "spiffe://prod/capelin/node/n"},
			"n (node, origin) of cluster prod"},
		{[]string{"spiffe://prod/capelin/node/n", "spiffe://prod/capelin/origin/m"}, ""},
		{[]string{"spiffe://prod/capelin/node/n", "spiffe://test/capelin/node/n"}, ""},
		{[]string{"spiffe://prod/capelin/king/n"}, ""},
	} {
		c := &x509.Certificate{SerialNumber: big.NewInt(1)}
		for _, s := range tt.uris {
			u, err := url.Parse(s)
			if err != nil {
				t.Fatal(err)
			}
			c.URIs = append(c.URIs, u)
		}
		id, err := PeerID(tls.ConnectionState{PeerCertificates: []*x509.Certificate{c}})
		if (err == nil) != (tt.want != "") || err == nil && id.String() != tt.want {
			t.Errorf("%q: %v, %v", tt.uris, id, err)
		}
	}
	if _, err := PeerID(tls.ConnectionState{}); err == nil {
		t.Error("nobody is somebody")
	}
}

func FuzzURI(f *testing.F) {
	f.Add("spiffe://prod/capelin/node/n1")
	f.Add("spiffe://prod/capelin/node/%00")
	f.Fuzz(func(t *testing.T, s string) {
		u, err := url.Parse(s)
		if err != nil {
			return
		}
		id, ok := parseURI(u)
		if !ok {
			return
		}
		// What is accepted says the same when it is written again.
		again, ok := parseURI(id.URIs()[0])
		if !ok || again.String() != id.String() {
			t.Errorf("%q is %v, then %v", s, id, again)
		}
	})
}

func TestListen(t *testing.T) {
	for addr, want := range map[string]bool{"127.0.0.1:1": true, "localhost:1": true, "[::1]:1": true, ":1": false, "0.0.0.0:1": false,
		"10.0.0.1:1": false, "host:1": false} {
		if got := IsLoopback(addr); got != want {
			t.Errorf("%s: %v", addr, got)
		}
		if errs := (Config{}).CheckListen("listen", addr, false); (errs == nil) != want {
			t.Errorf("%s: %v", addr, errs)
		}
	}
	if (Config{}).CheckListen("listen", ":1", true) != nil || (Config{CA: "x"}).CheckListen("listen", ":1", false) != nil {
		t.Error("refused what was meant")
	}
}
