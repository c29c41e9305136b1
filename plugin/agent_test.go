package plugin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content/proxy"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/sirupsen/logrus"
	logtest "github.com/sirupsen/logrus/hooks/test"
	bolt "go.etcd.io/bbolt"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/capelin-io/capelin/content"
	"github.com/capelin-io/capelin/internal/daemon"
	"github.com/capelin-io/capelin/internal/daemon/config"
	"github.com/capelin-io/capelin/internal/daemon/identity"
	"github.com/capelin-io/capelin/plugin/fetch/fetchtest"
	"github.com/capelin-io/capelin/swarm/piece"
	"github.com/capelin-io/capelin/trackerd"
)

// testAgent is Run in this process.
type testAgent struct {
	cfg  Config
	stop context.CancelFunc
	done chan error
	conn *grpc.ClientConn
}

func testConfig(t testing.TB) Config {
	t.Helper()
	dir, err := os.MkdirTemp("", "a") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	cfg := DefaultConfig()
	cfg.Root = filepath.Join(dir, "content")
	cfg.Socket, cfg.Admin = filepath.Join(dir, "c.sock"), filepath.Join(dir, "a.sock")
	cfg.Listen, cfg.Metrics, cfg.Node = "127.0.0.1:0", "", filepath.Base(dir)
	cfg.Shim.Listen = ""
	// A busy machine is no reason to go to the registry.
	cfg.Wait.Find, cfg.Wait.Stall = config.Duration(maxFind), config.Duration(time.Hour)
	cfg.Cache.FreeFloor = -1
	cfg.Unpack = false // one agent of a process only may
	return cfg
}

func start(t testing.TB, cfg Config) *testAgent {
	t.Helper()
	return startWith(t, context.Background(), cfg)
}

// startWith is start with the logger of a context.
func startWith(t testing.TB, ctx context.Context, cfg Config) *testAgent {
	t.Helper()
	ctx, cancel := context.WithCancel(ctx)
	a := &testAgent{cfg: cfg, stop: cancel, done: make(chan error, 1)}
	go func() {
		a.done <- Run(ctx, cfg)
		close(a.done)
	}()
	t.Cleanup(func() { a.end(t) })
	var err error
	a.conn, err = grpc.NewClient("unix://"+cfg.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(defaults.DefaultMaxRecvMsgSize),
			grpc.MaxCallSendMsgSize(defaults.DefaultMaxSendMsgSize)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.conn.Close() })
	for {
		select {
		case err := <-a.done:
			t.Fatalf("the agent ended: %v", err)
		default:
		}
		resp, err := healthpb.NewHealthClient(a.conn).Check(t.Context(), &healthpb.HealthCheckRequest{})
		if err == nil && resp.Status == healthpb.HealthCheckResponse_SERVING && a.connected(t) {
			return a
		}
		time.Sleep(time.Millisecond)
	}
}

// connected reports whether the agent is connected to all of its trackers, or cannot be.
func (a *testAgent) connected(t testing.TB) bool {
	n, st := 0, a.status(t)
	for _, o := range st.Obstacles {
		if o.Key == "listen" || o.Key == "identity" {
			return true
		}
	}
	for _, tr := range st.Trackers {
		if tr.Connected {
			n++
		}
	}
	return n == len(a.cfg.Trackers)
}

// until polls the agent's status.
func (a *testAgent) until(t testing.TB, ok func(Status) bool) {
	t.Helper()
	for end := time.Now().Add(5 * time.Minute); ; time.Sleep(time.Millisecond) { // for hangs only
		st := a.status(t)
		if ok(st) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("status: %+v", st)
		}
	}
}

func (a *testAgent) end(t testing.TB) {
	t.Helper()
	if a.stop == nil {
		return
	}
	a.stop()
	a.stop = nil
	if a.conn != nil {
		a.conn.Close()
	}
	if err := <-a.done; err != nil {
		t.Errorf("Run: %v", err)
	}
}

func (a *testAgent) db(t testing.TB) *metadata.DB {
	t.Helper()
	b, err := bolt.Open(filepath.Join(t.TempDir(), "meta.db"), 0o600, &bolt.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return metadata.NewDB(b, proxy.NewContentStore(a.conn), nil)
}

func (a *testAgent) status(t testing.TB) Status {
	t.Helper()
	st, err := FetchStatus(t.Context(), a.cfg.Admin)
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// startTracker runs a tracker and returns its address.
func startTracker(t testing.TB, options ...func(*trackerd.Config)) string {
	t.Helper()
	addr := make(chan net.Addr, 1)
	cfg := trackerd.DefaultConfig()
	cfg.Listen, cfg.Metrics = "127.0.0.1:0", ""
	cfg.Lease.Warmup = 0
	cfg.OnListen = func(a, _ net.Addr) { addr <- a }
	for _, set := range options {
		set(&cfg)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- trackerd.Run(ctx, cfg) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("trackerd: %v", err)
		}
	})
	select {
	case a := <-addr:
		return a.String()
	case err := <-done:
		done <- err
		t.Fatal(err)
		return ""
	}
}

// One node downloads, the next takes it from there, and a third one, which has
// it from before it knew the swarm, seeds too.
func TestAgents(t *testing.T) {
	t.Parallel()
	tracker := startTracker(t)
	var agents []*testAgent
	for range 3 {
		cfg := testConfig(t)
		cfg.Trackers = []string{tracker}
		agents = append(agents, start(t, cfg))
	}
	ctx := namespaces.WithNamespace(t.Context(), "ns")
	id, data := fetchtest.Random(t, 33<<16+1, 50)
	r := &registry{blobs: map[string][]byte{id.Digest(): data}}
	if err := remotes.Fetch(ctx, agents[0].db(t).ContentStore(), r, layer(id)); err != nil {
		t.Fatal(err)
	}
	if got := r.requests(); len(got) != 1 {
		t.Errorf("the first node downloaded %v", got)
	}
	db := agents[1].db(t)
	if err := remotes.Fetch(ctx, db.ContentStore(), r, layer(id)); err != nil {
		t.Fatal(err)
	}
	if got := r.requests(); len(got) != 0 {
		t.Errorf("the second node downloaded %v", got)
	}
	agents[1].until(t, func(st Status) bool {
		return st.Bytes.FromPeers == id.Size && st.Bytes.FromRegistry == 0 && st.Store.Committed == 1
	})
	agents[0].until(t, func(st Status) bool { return st.Bytes.FromRegistry == id.Size && st.Bytes.ToPeers >= id.Size })

	// All at once, and nobody has it: it is downloaded once.
	id2, data2 := fetchtest.Random(t, 40<<16, 51)
	r = &registry{blobs: map[string][]byte{id2.Digest(): data2}}
	var wg sync.WaitGroup
	for _, a := range agents {
		db := a.db(t)
		wg.Go(func() {
			if err := remotes.Fetch(ctx, db.ContentStore(), r, layer(id2)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got := r.requests(); len(got) != 1 {
		t.Errorf("three nodes downloaded %v", got)
	}

	// What a node had before it was started, here by stopping all others.
	agents[0].end(t)
	agents[1].end(t)
	a := start(t, agents[1].cfg)
	fetchAnnounced(t, ctx, agents[2], id)
	a.until(t, func(st Status) bool { return st.Bytes.ToPeers >= id.Size })
}

// fetchAnnounced gets a blob from the swarm, once the tracker has heard of it.
func fetchAnnounced(t *testing.T, ctx context.Context, a *testAgent, id piece.ID) {
	t.Helper()
	cs := a.db(t).ContentStore()
	for {
		err := remotes.Fetch(ctx, cs, &registry{}, layer(id))
		if err == nil {
			return
		}
		if !errdefs.IsNotFound(err) {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
	}
}

// Two agents of one name, as of two machines, say so.
func TestAgentNamesake(t *testing.T) {
	t.Parallel()
	cfg, cfg2 := testConfig(t), testConfig(t)
	cfg.Trackers = []string{startTracker(t)}
	cfg2.Trackers, cfg2.Node = cfg.Trackers, cfg.Node
	said := make(chan struct{}, 2) // each says it once
	logger, _ := logtest.NewNullLogger()
	logger.AddHook(onWarn(func(message string) {
		if strings.HasPrefix(message, "another machine at ") {
			said <- struct{}{}
		}
	}))
	ctx := log.WithLogger(context.Background(), logrus.NewEntry(logger))
	a, b := startWith(t, ctx, cfg), startWith(t, ctx, cfg2)
	for range cap(said) {
		<-said
	}
	for _, x := range []*testAgent{a, b} {
		if st := x.status(t); st.Namesake == "" {
			t.Errorf("status: %+v", st)
		}
	}
}

// onWarn is a hook of a logger's warnings.
type onWarn func(message string)

func (onWarn) Levels() []logrus.Level { return []logrus.Level{logrus.WarnLevel} }

func (f onWarn) Fire(e *logrus.Entry) error { f(e.Message); return nil }

// What stock containerd pulled has no sums; they are computed when a peer wants
// it.
func TestAgentSeedsOldBlobs(t *testing.T) {
	t.Parallel()
	tracker := startTracker(t)
	id, data := fetchtest.Random(t, 21<<16+9, 52)
	cfg := testConfig(t)
	cfg.Trackers = []string{tracker}
	dir := filepath.Join(cfg.Root, "blobs", "sha256")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, id.Hex()), data, 0o444); err != nil {
		t.Fatal(err)
	}
	old := start(t, cfg)
	cfg2 := testConfig(t)
	cfg2.Trackers = []string{tracker}
	b := start(t, cfg2)
	ctx := namespaces.WithNamespace(t.Context(), "ns")
	fetchAnnounced(t, ctx, b, id)
	old.until(t, func(st Status) bool { return st.Bytes.ToPeers >= id.Size })
}

// A session that waits is answered when the agent stops, and can go on to the
// end of its download.
func TestAgentStops(t *testing.T) {
	t.Parallel()
	tracker := startTracker(t)
	cfg, cfg2 := testConfig(t), testConfig(t)
	cfg.Trackers, cfg2.Trackers = []string{tracker}, []string{tracker}
	cfg2.Wait.Stall, cfg2.Wait.Stop = config.Duration(time.Hour), config.Duration(time.Millisecond)
	a, b := start(t, cfg), start(t, cfg2)
	id, data := fetchtest.Random(t, 10<<16, 53)
	ctx := namespaces.WithNamespace(t.Context(), "ns")
	slow := &slowFetcher{data: data, started: make(chan struct{}), release: make(chan struct{})}
	errs := make(chan error, 2)
	adb, bdb := a.db(t).ContentStore(), b.db(t).ContentStore()
	go func() { errs <- remotes.Fetch(ctx, adb, slow, layer(id)) }()
	<-slow.started
	r := &registry{blobs: map[string][]byte{id.Digest(): data}}
	go func() { errs <- remotes.Fetch(ctx, bdb, r, layer(id)) }()
	b.until(t, func(st Status) bool { return len(st.Blobs) == 1 && st.Blobs[0].State == "waiting" })
	b.stop() // while the session waits
	if err := <-errs; err != nil {
		t.Errorf("the waiting session: %v", err)
	}
	if got := r.requests(); len(got) != 1 {
		t.Errorf("it downloaded %v", got)
	}
	b.end(t)
	close(slow.release)
	if err := <-errs; err != nil {
		t.Error(err)
	}
}

func TestAgentRefuses(t *testing.T) {
	cfg := testConfig(t)
	start(t, cfg)
	for _, tt := range []struct {
		name string
		set  func(*Config)
		want error
		text string
	}{
		{"content directory", func(c *Config) { c.Root = cfg.Root }, content.ErrLocked, cfg.Root},
		{"socket", func(c *Config) { c.Socket = cfg.Socket }, daemon.ErrInUse, cfg.Socket},
		{"admin socket", func(c *Config) { c.Admin = cfg.Admin }, daemon.ErrInUse, cfg.Admin},
		{"socket's place", func(c *Config) {
			c.Socket += ".txt"
			os.WriteFile(c.Socket, []byte("precious"), 0o600)
		}, nil, "not a socket"},
		{"configuration", func(c *Config) { c.Cluster = "" }, nil, "cluster"},
	} {
		c := testConfig(t)
		tt.set(&c)
		err := Run(t.Context(), c)
		if err == nil || tt.want != nil && !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%s: %v", tt.name, err)
		}
		if _, err := os.Stat(cfg.Socket); err != nil {
			t.Fatalf("%s: the running agent's socket: %v", tt.name, err)
		}
	}
}

// Ports that others have, and a certificate that cannot be used, keep from running what
// needs them, and nothing else: pulls come from the registry at once. When they are
// free, what was missing comes by itself.
func TestAgentObstacles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ca, err := identity.InitCA(filepath.Join(dir, "ca"), "default")
	if err != nil {
		t.Fatal(err)
	}
	issue := func(to, name string) {
		if err := ca.Issue(to, identity.ID{Name: name, Roles: []identity.Role{identity.RoleNode}}, nil, time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	var taken []net.Listener
	take := func() string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		taken = append(taken, l)
		return l.Addr().String()
	}
	cfg, certs := testConfig(t), filepath.Join(dir, "node")
	issue(certs, "another")
	cfg.Trackers = []string{take()}
	taken = nil // nobody answers, and that is no obstacle
	cfg.Identity = identity.Config{CA: filepath.Join(certs, identity.CACert), Cert: filepath.Join(certs, identity.Cert),
		Key: filepath.Join(certs, identity.Key)}
	cfg.Listen, cfg.Metrics, cfg.Shim.Listen, cfg.Shim.CA = take(), take(), take(), filepath.Join(dir, "shim-ca")
	a := start(t, cfg)
	keys := func(st Status) (keys string) {
		for _, o := range st.Obstacles {
			keys += o.Key + " "
		}
		return keys
	}
	a.until(t, func(st Status) bool { return keys(st) == "identity metrics shim " })
	st := a.status(t)
	if !strings.Contains(st.Obstacles[0].Error, `this is node "`+cfg.Node+`"`) ||
		!strings.Contains(st.Obstacles[1].Error, "metrics address "+cfg.Metrics+": this process itself has it") ||
		!strings.Contains(st.Obstacles[2].Error, "shim-ca") || st.Metrics != "" || st.Shim != "" || st.Advertise != "" ||
		!strings.HasPrefix(st.Swarm, "identity.cert: ") ||
		len(st.Trackers) != 1 || st.Trackers[0].Address != cfg.Trackers[0] || !strings.HasPrefix(st.Trackers[0].Error, "not asked") {
		t.Errorf("status %+v", st)
	}
	id, data := fetchtest.Random(t, 3<<16, 91)
	r := &registry{blobs: map[string][]byte{id.Digest(): data}}
	began := time.Now()
	if err := remotes.Fetch(namespaces.WithNamespace(t.Context(), "ns"), a.db(t).ContentStore(), r, layer(id)); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(began); d >= maxFind {
		t.Errorf("the pull waited %v for a swarm", d)
	}

	if err := os.RemoveAll(certs); err != nil {
		t.Fatal(err)
	}
	issue(certs, cfg.Node)
	if err := os.WriteFile(cfg.Shim.CA, readFile(t, cfg.Identity.CA), 0o600); err != nil {
		t.Fatal(err)
	}
	a.until(t, func(st Status) bool { return keys(st) == "listen metrics shim.listen " })
	for _, l := range taken {
		l.Close()
	}
	a.until(t, func(st Status) bool {
		return keys(st) == "" && st.Metrics == cfg.Metrics && st.Shim == cfg.Shim.Listen && st.Advertise == cfg.Listen && st.Swarm == "" &&
			len(st.Trackers) == 1 && !strings.HasPrefix(st.Trackers[0].Error, "not asked")
	})
	resp, err := http.Get("http://" + cfg.Metrics + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if text, err := io.ReadAll(resp.Body); err != nil || !strings.Contains(string(text), "\ncapelin_agent_shim_requests_total") ||
		!strings.Contains(string(text), "\ncapelin_certificate_expiry_timestamp_seconds") || strings.Contains(string(text), "capelin_obstacle{") {
		t.Errorf("the metrics lack the shim's or the certificate's, or still have an obstacle: %v", err)
	}
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestAgentReplacesStaleSocket(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	l, err := net.Listen("unix", cfg.Socket)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	a := start(t, cfg)
	if fi, err := os.Stat(cfg.Socket); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("the socket: %v %v", fi.Mode(), err)
	}
	a.end(t)
	if _, err := os.Stat(cfg.Socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after the end: %v", err)
	}
}

func TestAgentHTTP(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	cfg.Metrics, cfg.Pprof = "127.0.0.1:0", true
	reload := make(chan Config)
	cfg.Reload = reload
	a := start(t, cfg)
	reload <- Config{Limits: LimitsConfig{Upload: 1 << 20}}
	id, data := fetchtest.Random(t, 3<<16, 54)
	ctx := namespaces.WithNamespace(t.Context(), "ns")
	if err := remotes.Fetch(ctx, a.db(t).ContentStore(), &registry{blobs: map[string][]byte{id.Digest(): data}}, layer(id)); err != nil {
		t.Fatal(err)
	}
	metrics := a.status(t).Metrics
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	get := func(path string) (int, string) {
		resp, err := client.Get("http://" + metrics + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(b)
	}
	for _, path := range []string{"/healthz", "/readyz", "/debug/pprof/cmdline"} {
		if code, _ := get(path); code != http.StatusOK {
			t.Errorf("%s: %d", path, code)
		}
	}
	code, text := get("/metrics")
	for _, want := range []string{
		fmt.Sprintf("capelin_agent_bytes_total{source=\"registry\"} %d\n", id.Size),
		"capelin_agent_bytes_total{source=\"peer\"} 0\n",
		"capelin_agent_sessions_total{outcome=\"alone\"} 1\n",
		"capelin_agent_peer_bytes_total{direction=\"in\",zone=\"own\"} 0\n",
		"capelin_agent_blobs{place=\"containerd\"} 1\n",
		"capelin_agent_call_seconds_count{code=\"OK\",method=\"Write/commit\"} 1\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("/metrics (%d) lacks %s", code, want)
		}
	}
	var buf bytes.Buffer
	if err := json.NewEncoder(&buf).Encode(a.status(t)); err != nil || !strings.Contains(buf.String(), `"from_registry":`) {
		t.Errorf("status: %s %v", buf.String(), err)
	}
	if _, err := FetchStatus(t.Context(), cfg.Admin+"x"); err == nil {
		t.Error("status of no agent")
	}
}

// What operators copy says what the defaults say.
func TestContrib(t *testing.T) {
	cfg := DefaultConfig()
	b, err := os.ReadFile("../contrib/containerd/capelin.toml")
	if err != nil || string(b) != ContainerdConfig(cfg, Unpacking{}) {
		t.Errorf("the drop-in differs from what is printed (%v)", err)
	}
	b, err = os.ReadFile("../contrib/systemd/capelin-agent.socket")
	if err != nil || !strings.Contains(string(b), "ListenStream="+cfg.Socket+"\n") ||
		!strings.Contains(string(b), "ListenStream="+cfg.Admin+"\n") {
		t.Errorf("the socket unit has other sockets (%v)", err)
	}
}

func TestConfig(t *testing.T) {
	var buf bytes.Buffer
	if err := config.Print(&buf, DefaultConfig()); err != nil {
		t.Fatal(err)
	}
	cfg := DefaultConfig()
	if err := config.Parse("defaults", buf.Bytes(), &cfg); err != nil {
		t.Errorf("the printed defaults: %v", err)
	}
	for _, tt := range []struct{ doc, want string }{
		{`root = "x"`, "F:1:1: root: "},
		{`socket = "x"`, "F:1:1: socket: "},
		{"socket = \"/" + strings.Repeat("x", 120) + `"`, "F:1:1: socket: "},
		{"admin = \"/run/capelin/content.sock\"", "F:1:1: admin: "},
		{`cluster = ""`, "F:1:1: cluster: "},
		{`trackers = ["a"]`, "F:1:1: trackers: "},
		{`trackers = ["dns+a:7470", "b:1"]`, ""},
		{`trackers = ["a:0"]`, "F:1:1: trackers: "},
		{`trackers = ["a:1", "b:1", "a:1"]`, `F:1:1: trackers: "a:1" is there twice`},
		{`advertise = "h:70000"`, "F:1:1: advertise: "},
		{`metrics = "127.0.0.1:70000"`, "F:1:1: metrics: "},
		{`node = "a\tb"`, "F:1:1: node: "},
		{`zone = "a\nb"`, "F:1:1: zone: "},
		{`cluster = "a\nb"`, "F:1:1: cluster: "},
		{"[wait]\nfind = \"9s\"", "F:2:1: wait.find: 9s is more than 5s"},
		{"[wait]\nfind = \"5s\"", ""},
		{"listen = \"127.0.0.1:1\"\nmetrics = \"127.0.0.1:1\"", "F:2:1: metrics: "},
		{"[shim]\nlisten = \"127.0.0.1:7403\"", "F:2:1: shim.listen: "},
		{"[shim]\nlisten = \"127.0.0.1:99999\"", "F:2:1: shim.listen: "},
		{`listen = "7401"`, "F:1:1: listen: "},
		{`listen = ":7401"`, "F:1:1: listen: "},
		{"listen = \":7401\"\ninsecure = true", ""},
		{"listen = \":7401\"\n[identity]\nca = \"/a\"\ncert = \"/b\"\nkey = \"/c\"", ""},
		{"[identity]\nca = \"/a\"\ncert = \"/b\"", "F: identity.key: "},
		{`advertise = ":7401"`, "F:1:1: advertise: "},
		{`authorize = "no"`, "F:1:1: authorize: "},
		{"[cache]\nfree_floor = 20.0", "F:2:1: cache.free_floor: "},
		{"[limits]\nupload = \"-1MB/s\"", "F:2:1: limits.upload: "},
		{"[wait]\nstall = \"0s\"", "F:2:1: wait.stall: "},
		{"pprof = true", ""},
		{"pprof = true\nmetrics = \"0.0.0.0:1\"", "F:1:1: pprof: "},
		{"pprof = true\nmetrics = \"\"", "F:1:1: pprof: "},
		{"metrics = \"x\"", "F:1:1: metrics: "},
		{"[shim]\nlisten = \"0.0.0.0:7405\"", "F:2:1: shim.listen: "},
		{"insecure = true\n[shim]\nlisten = \"0.0.0.0:7405\"", ""},
		{"[shim]\nlisten = \"\"", ""},
		{"[shim]\nupstream = \"docker.io\"", "F:2:1: shim.upstream: "},
		{"[shim]\nupstream = \"https://gw:7500/v2\"", "F:2:1: shim.upstream: "},
		{"[shim]\nplain_http = [\"http://gw\"]", "F:2:1: shim.plain_http: "},
		{`log_level = "loud"`, "F:1:1: log_level: "},
		{`nope = 1`, "F:1:1: nope: "},
	} {
		cfg := DefaultConfig()
		err := config.Parse("F", []byte(tt.doc), &cfg)
		switch {
		case tt.want == "" && err != nil:
			t.Errorf("%s: %v", tt.doc, err)
		case tt.want != "" && (err == nil || !strings.HasPrefix(err.Error(), tt.want)):
			t.Errorf("%s: %v; want %s…", tt.doc, err, tt.want)
		}
	}
}
