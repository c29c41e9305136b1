package trackerd

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/capelin-io/capelin/control/trackerpb"
	"github.com/capelin-io/capelin/internal/daemon"
	"github.com/capelin-io/capelin/internal/daemon/config"
	"github.com/capelin-io/capelin/trackerd/state"
)

func dialRaw(t *testing.T, addr string, opts ...grpc.DialOption) *grpc.ClientConn {
	conn, err := grpc.NewClient("passthrough:///"+addr, append(opts, grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func helloMessage(node string) *trackerpb.Hello {
	return &trackerpb.Hello{Version: 1, Cluster: "default", Node: node, Addr: "h:1", Role: trackerpb.Role_ROLE_AGENT}
}

// What the protocol does not allow ends a stream with the status that
// PROTOCOL.md names, and leaves nothing behind.
func TestRefusals(t *testing.T) { synctest.Test(t, testRefusals) }

func testRefusals(t *testing.T) {
	n := newNet()
	defer n.serve(t, "t1:1", func(c *Config) { c.MaxStreams = 2 })()
	conn := dialRaw(t, "t1:1", grpc.WithContextDialer(n.Dial))
	defer conn.Close() // before the tracker ends
	long := strings.Repeat("x", 300)
	blob := trackerpb.FromID(blobID(1))
	many := &trackerpb.FromAgent{}
	for range 1001 {
		many.Unwants = append(many.Unwants, blob)
	}
	with := func(change func(*trackerpb.Hello)) *trackerpb.FromAgent {
		h := helloMessage("raw")
		change(h)
		return &trackerpb.FromAgent{Hello: h}
	}
	good := with(func(*trackerpb.Hello) {})
	for _, tt := range []struct {
		name string
		msgs []*trackerpb.FromAgent
		code codes.Code
		text string
	}{
		{"no hello", []*trackerpb.FromAgent{{}}, codes.InvalidArgument, "no hello"},
		{"version", []*trackerpb.FromAgent{with(func(h *trackerpb.Hello) { h.Version = 2 })}, codes.FailedPrecondition,
			"version 2 is not spoken here, only 1"},
		{"cluster", []*trackerpb.FromAgent{with(func(h *trackerpb.Hello) { h.Cluster = "other" })}, codes.FailedPrecondition,
			`this is cluster "default", not "other"`},
		{"no node", []*trackerpb.FromAgent{with(func(h *trackerpb.Hello) { h.Node = "" })}, codes.InvalidArgument, "node of 0 bytes"},
		{"long node", []*trackerpb.FromAgent{with(func(h *trackerpb.Hello) { h.Node = long })}, codes.InvalidArgument, "node of 300 bytes"},
		{"control character", []*trackerpb.FromAgent{with(func(h *trackerpb.Hello) { h.Zone = "a\nb" })}, codes.InvalidArgument,
			"control character"},
		{"addr", []*trackerpb.FromAgent{with(func(h *trackerpb.Hello) { h.Addr = "host" })}, codes.InvalidArgument, "addr"},
		{"port", []*trackerpb.FromAgent{with(func(h *trackerpb.Hello) { h.Addr = "host:99999" })}, codes.InvalidArgument, "not host:port"},
		{"role", []*trackerpb.FromAgent{with(func(h *trackerpb.Hello) { h.Role = 9 })}, codes.InvalidArgument, "role"},
		{"second hello", []*trackerpb.FromAgent{good, good}, codes.InvalidArgument, "second hello"},
		{"batch", []*trackerpb.FromAgent{good, many}, codes.InvalidArgument, "1001 elements"},
		{"digest",
			[]*trackerpb.FromAgent{good, {Wants: []*trackerpb.Want{{Blob: &trackerpb.Blob{Digest: make([]byte, 31), Size: 1}}}}},
			codes.InvalidArgument, "digest of 31 bytes"},
		{"size", []*trackerpb.FromAgent{good, {Announces: []*trackerpb.Announce{{Blob: &trackerpb.Blob{Digest: make([]byte, 32)}}}}},
			codes.InvalidArgument, "size 0"},
		{"no blob", []*trackerpb.FromAgent{good, {Done: []*trackerpb.LeaseDone{{Outcome: 1}}}}, codes.InvalidArgument, "digest of 0 bytes"},
		{"state", []*trackerpb.FromAgent{good, {Announces: []*trackerpb.Announce{{Blob: blob, State: 3}}}}, codes.InvalidArgument, "state 3"},
		{"hash", []*trackerpb.FromAgent{good, {Announces: []*trackerpb.Announce{{Blob: blob, State: 2, SumsHash: []byte{1}}}}},
			codes.InvalidArgument, "hash of 1 bytes"},
		{"hash of a partial",
			[]*trackerpb.FromAgent{good, {Announces: []*trackerpb.Announce{{Blob: blob, State: 1, SumsHash: make([]byte, 32)}}}},
			codes.InvalidArgument, "in state 1"},
		{"progress", []*trackerpb.FromAgent{good, {Progress: []*trackerpb.LeaseProgress{{Blob: blob, Bytes: 1<<20 + 1}}}},
			codes.InvalidArgument, "1048577 bytes"},
		{"outcome", []*trackerpb.FromAgent{good, {Done: []*trackerpb.LeaseDone{{Blob: blob}}}}, codes.InvalidArgument, "outcome 0"},
		{"too large", []*trackerpb.FromAgent{{Hello: &trackerpb.Hello{Software: strings.Repeat("x", 2<<20)}}},
			codes.ResourceExhausted, "larger than max"},
	} {
		s, err := trackerpb.NewTrackerClient(conn).Connect(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range tt.msgs {
			_ = s.Send(m)
		}
		for err == nil {
			_, err = s.Recv()
		}
		if status.Code(err) != tt.code || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%s: got %v, want %v, %s", tt.name, err, tt.code, tt.text)
		}
	}
	synctest.Wait() // until those that were refused are gone for the tracker, too
	var open []trackerpb.Tracker_ConnectClient
	for i := range 2 {
		s, err := trackerpb.NewTrackerClient(conn).Connect(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		_ = s.Send(&trackerpb.FromAgent{Hello: helloMessage(fmt.Sprint(i))})
		if m, err := s.Recv(); err != nil || m.Welcome == nil {
			t.Fatalf("%v %v", m, err)
		}
		open = append(open, s)
	}
	s, err := trackerpb.NewTrackerClient(conn).Connect(t.Context())
	if err == nil {
		_, err = s.Recv()
	}
	if status.Code(err) != codes.ResourceExhausted {
		t.Errorf("third stream of two: %v", err)
	}
	// One says good-bye, and there is room again.
	_ = open[0].CloseSend()
	if _, err := open[0].Recv(); err != io.EOF {
		t.Errorf("good-bye: %v", err)
	}
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	tr := &http.Transport{}
	defer tr.CloseIdleConnections()
	resp, err := tr.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body)
}

func TestHTTPAndHealth(t *testing.T) {
	p := startTracker(t, func(c *Config) {
		c.Lease.Unstarted, c.Lease.Stall = config.Duration(time.Hour), config.Duration(time.Hour)
	})
	s, err := trackerpb.NewTrackerClient(dialRaw(t, p.addr)).Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	blob := trackerpb.FromID(blobID(1))
	for _, m := range []*trackerpb.FromAgent{
		{Hello: helloMessage("a")},
		{Wants: []*trackerpb.Want{{Blob: blob, Waiting: true, Grant: true, Seq: 1}}},
		{
			Progress:  []*trackerpb.LeaseProgress{{Blob: blob, Bytes: 77}},
			Announces: []*trackerpb.Announce{{Blob: blob, State: trackerpb.State_STATE_COMPLETE}},
			Wants:     []*trackerpb.Want{{Blob: blob, Seq: 2}},
		},
	} {
		if err := s.Send(m); err != nil {
			t.Fatal(err)
		}
		// Each is answered: with a Welcome, a lease, sources.
		if _, err := s.Recv(); err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range []string{"/healthz", "/readyz"} {
		if code, body := get(t, "http://"+p.metrics+path); code != 200 || body != "ok\n" {
			t.Errorf("%s: %d %q", path, code, body)
		}
	}
	code, body := get(t, "http://"+p.metrics+"/metrics")
	if code != 200 {
		t.Fatalf("/metrics: %d", code)
	}
	for _, want := range []string{
		"capelin_tracker_streams 1", "capelin_tracker_blobs 1", "capelin_tracker_wants 1",
		`capelin_tracker_leases_granted_total{reason="first"} 1`,
		`capelin_tracker_leases_ended_total{outcome="completed"} 1`,
		`capelin_tracker_verdicts_total{verdict="lease"} 1`, "go_goroutines",
	} {
		if !strings.Contains(body, want) {
			t.Errorf("/metrics lacks %s", want)
		}
	}
	if code, _ := get(t, "http://"+p.metrics+"/debug/pprof/"); code != 404 {
		t.Errorf("the profiler is on where nobody asked for it: %d", code)
	}
	resp, err := grpc_health_v1.NewHealthClient(dialRaw(t, p.addr)).Check(t.Context(), &grpc_health_v1.HealthCheckRequest{})
	if err != nil || resp.Status != grpc_health_v1.HealthCheckResponse_SERVING {
		t.Errorf("health: %v %v", resp, err)
	}
}

func TestAddressTaken(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	cfg := DefaultConfig()
	for _, f := range []*string{&cfg.Metrics, &cfg.Listen} {
		cfg.Listen, cfg.Metrics = "127.0.0.1:0", "127.0.0.1:0"
		*f = ln.Addr().String()
		if err := Run(t.Context(), cfg); !errors.Is(err, daemon.ErrInUse) || !strings.Contains(err.Error(), "address "+ln.Addr().String()) {
			t.Errorf("%v", err)
		}
	}
}

// An agent that does not read is cut off before it costs much.
func TestSlowReader(t *testing.T) {
	st := &stream{wake: make(chan struct{}, 1)}
	m := &trackerpb.ToAgent{Peers: []*trackerpb.Peers{{Peers: make([]*trackerpb.Peer, 998)}}}
	for range maxPending / 1000 {
		st.push(m)
	}
	if st.end != nil {
		t.Fatalf("too early: %v", st.end)
	}
	st.push(m)
	if status.Code(st.end) != codes.ResourceExhausted || st.queue != nil {
		t.Errorf("%v, %d queued", st.end, len(st.queue))
	}
}

// How long an answer may take grows with the nodes, in steps.
func TestBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNet()
		var srv *server
		defer n.serve(t, "t1:1", func(c *Config) { c.onServer = func(s *server) { srv = s } })()
		is := func(streams int, want uint32) {
			t.Helper()
			srv.mu.Lock()
			defer srv.mu.Unlock()
			for i := range streams {
				srv.streams[state.Stream(1<<40+i)] = &stream{wake: make(chan struct{}, 1)}
			}
			srv.counted()
			if got := srv.busyMs.Load(); got != want {
				t.Errorf("%d streams: %d ms, want %d", streams, got, want)
			}
		}
		synctest.Wait()
		is(0, 100)
		is(1, 100)
		is(2700, 2700)
		is(2701, 2800)
	})
}

func TestSplit(t *testing.T) {
	m := &trackerpb.ToAgent{
		Welcome:  &trackerpb.Welcome{},
		Sums:     make([]*trackerpb.SumsHash, 3),
		Verdicts: make([]*trackerpb.Verdict, 4),
	}
	for range 250 {
		m.Peers = append(m.Peers, &trackerpb.Peers{})
	}
	var got []string
	for m != nil {
		var first *trackerpb.ToAgent
		first, m = split(m)
		got = append(got, fmt.Sprint(first.Welcome != nil, len(first.Sums), len(first.Peers), len(first.Verdicts)))
	}
	if want := "true 3 100 0|false 0 100 0|false 0 50 4"; strings.Join(got, "|") != want {
		t.Errorf("got %s, want %s", strings.Join(got, "|"), want)
	}
}

// Two nodes of one name: each replaces the other, slowly, and both are told. A node that is
// restarted is alone.
func TestSameName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNet()
		var srv *server
		defer n.serve(t, "t1:1", func(c *Config) { c.onServer = func(s *server) { srv = s } })()
		a, b := n.agent(t, "same", "t1:1"), n.agent(t, "same", "t1:1")
		time.Sleep(time.Minute)
		synctest.Wait()
		srv.mu.Lock()
		st := srv.machine.Stats()
		srv.mu.Unlock()
		if st.Streams != 1 || st.Replaced < 20 || st.Replaced > 61 {
			t.Errorf("%d streams, %d replaced in a minute", st.Streams, st.Replaced)
		}
		for _, x := range []*agent{a, b} {
			if got := x.c.Status()[0].Namesake; got != "10.0.0.1" {
				t.Errorf("a node is told of a namesake at %q", got)
			}
		}
		a.stop()
		b.stop()
		c := n.agent(t, "same", "t1:1")
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if got := c.c.Status()[0]; !got.Connected || got.Namesake != "" {
			t.Errorf("a node that is alone again: %+v", got)
		}
		c.stop()
	})
}

func TestWrongClusterIsSaid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNet()
		defer n.serve(t, "t1:1", func(c *Config) { c.Cluster = "blue" })()
		a := n.agent(t, "a", "t1:1")
		time.Sleep(35 * time.Second)
		synctest.Wait()
		st := a.c.Status()
		if len(st) != 1 || st[0].Connected || st[0].Err == nil || !strings.Contains(st[0].Err.Error(), `tracker t1:1: `) ||
			!strings.Contains(st[0].Err.Error(), `this is cluster "blue", not "default"`) {
			t.Errorf("%+v", st)
		}
		a.stop()
	})
}

func TestConfig(t *testing.T) {
	var b bytes.Buffer
	if err := config.Print(&b, DefaultConfig()); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "trackerd.toml")
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	var back Config
	if err := config.Load(path, &back); err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(back) != fmt.Sprint(DefaultConfig()) {
		t.Errorf("printed and read back: %+v", back)
	}
	for _, tt := range []struct{ doc, want string }{
		{"listen = \"7470\"", `F:1:1: listen: "7470" is not host:port`},
		{"pprof = true\nmetrics = \"0.0.0.0:6060\"", `F:1:1: pprof: is served on loopback only, and metrics is "0.0.0.0:6060"`},
		{"pprof = true\nmetrics = \":6060\"", `F:1:1: pprof: is served on loopback only, and metrics is ":6060"`},
		{"pprof = true\nmetrics = \"[::1]:6060\"", ""},
		{"[lease]\nstall = \"-1s\"\nmax_unstarted = -1\n[peers]\nsample = 201",
			"F:2:1: lease.stall: must not be negative, is -1s\nF:3:1: lease.max_unstarted: must be in 0..1000, is -1\n" +
				"F:5:1: peers.sample: must be in 0..200, is 201"},
		{"cluster = \"\"\nmax_streams = 0", "F:1:1: cluster: \"\" has 0 bytes, not 1 to 64\nF:2:1: max_streams: must be at least 1, is 0"},
		{"clutser = \"x\"", "F:1:1: clutser: no such key"},
	} {
		got := ""
		cfg := DefaultConfig()
		if err := config.Parse("F", []byte(tt.doc), &cfg); err != nil {
			got = err.Error()
		}
		if got != tt.want {
			t.Errorf("%s\ngot\n%s\nwant\n%s", tt.doc, got, tt.want)
		}
	}
}
