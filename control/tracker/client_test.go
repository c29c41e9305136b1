package tracker_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/capelin-io/capelin/control/ring"
	"github.com/capelin-io/capelin/control/tracker"
	"github.com/capelin-io/capelin/control/tracker/trackertest"
	"github.com/capelin-io/capelin/control/trackerpb"
	"github.com/capelin-io/capelin/swarm/piece"
	"github.com/capelin-io/capelin/swarm/wire"
	"github.com/capelin-io/capelin/trackerd"
)

// These tests run a Client with its goroutines and streams in a bubble: against the
// real tracker, or one that follows a script.

// serve runs a real tracker until the returned function is called.
func serve(t *testing.T, n *trackertest.Net, addr string) (stop func()) {
	cfg := trackerd.DefaultConfig()
	cfg.Listener, cfg.Metrics = n.Listen(addr), ""
	cfg.Lease.Warmup = 0
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- trackerd.Run(ctx, cfg) }()
	return sync.OnceFunc(func() {
		n.Refuse(addr)
		cancel()
		if err := <-done; err != nil {
			t.Errorf("tracker: %v", err)
		}
	})
}

// node is a Client, and the Handler that notes what it is told.
type node struct {
	t    *testing.T
	c    *tracker.Client
	stop func()

	mu       sync.Mutex
	calls    []string
	verdicts map[piece.ID]tracker.VerdictKind
	statuses []tracker.TrackerStatus
	times    []time.Time // of statuses
}

func startNode(t *testing.T, cfg tracker.Config) *node {
	n := newNode(t, cfg)
	n.run()
	return n
}

func newNode(t *testing.T, cfg tracker.Config) *node {
	n := &node{t: t, verdicts: map[piece.ID]tracker.VerdictKind{}}
	if cfg.Hello.Node == "" {
		cfg.Hello.Node = "n"
	}
	cfg.Hello.Cluster, cfg.Hello.Addr, cfg.Hello.Role = "default", "10.0.0.1:7400", wire.RoleAgent
	cfg.OnStatus = func(st tracker.TrackerStatus) {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.statuses, n.times = append(n.statuses, st), append(n.times, time.Now())
	}
	n.c = tracker.New(cfg, n)
	return n
}

func (n *node) run() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.c.Run(ctx) }()
	n.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			n.t.Errorf("Run: %v", err)
		}
	})
}

func (n *node) told(format string, args ...any) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.calls = append(n.calls, fmt.Sprintf(format, args...))
}

func (n *node) Peers(_ piece.ID, peers []tracker.Peer) { n.told("peers %v", peers) }
func (n *node) PeersGone(_ piece.ID, nodes []string)   { n.told("gone %v", nodes) }
func (n *node) Share(_ piece.ID, share uint16)         { n.told("share %04x", share) }
func (n *node) Upstream(piece.ID, tracker.Upstream)    {}
func (n *node) SumsHash(_ piece.ID, h [32]byte)        { n.told("sums %02x", h[0]) }
func (n *node) Command(cmd *trackerpb.Command)         { n.told("command %d", cmd.Id) }
func (n *node) Verdict(id piece.ID, v tracker.Verdict) {
	n.told("verdict %v", v.Kind)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.verdicts[id] = v.Kind
}

func (n *node) Lookup(id piece.ID) {
	n.told("lookup")
	n.c.NotHere(id) // a Handler may call the Client
}

// get returns the last verdict on a blob; 0: there was none.
func (n *node) get(id piece.ID) tracker.VerdictKind {
	synctest.Wait()
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.verdicts[id]
}

func blobID(n int) piece.ID {
	id := piece.ID{Alg: piece.SHA256, Size: 1 << 20}
	id.Sum[0], id.Sum[1] = byte(n), byte(n>>8)
	return id
}

// firstOf returns a blob whose first tracker, of these, is the given one.
func firstOf(addr string, all []string) piece.ID {
	for n := 0; ; n++ {
		if id := blobID(n); ring.Top(all, id.Digest(), 2)[0] == addr {
			return id
		}
	}
}

func TestNoTracker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := trackertest.NewNet()
		for _, trackers := range [][]string{nil, {"t1:1"}, {"t1:1", "t2:1"}} {
			n := startNode(t, tracker.Config{Trackers: trackers, Dial: net.Dial})
			synctest.Wait() // until they have refused
			start := time.Now()
			n.c.Want(blobID(1), tracker.Want{Waiting: true})
			if got := n.get(blobID(1)); got != tracker.Unreachable || time.Since(start) != 0 {
				t.Errorf("%v: %v after %v", trackers, got, time.Since(start))
			}
			n.stop()
		}
	})
}

// What was announced and wanted before there was a tracker is told when there is one.
func TestTrackerAppears(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := trackertest.NewNet()
		n := newNode(t, tracker.Config{Trackers: []string{"t1:1"}, Dial: net.Dial})
		n.c.Announce(blobID(2), tracker.StatePartial) // before Run
		n.run()
		time.Sleep(time.Minute)
		n.c.Want(blobID(1), tracker.Want{Waiting: true})
		if got := n.get(blobID(1)); got != tracker.Unreachable {
			t.Fatalf("before: %v", got)
		}
		defer serve(t, net, "t1:1")()
		time.Sleep(2 * time.Second) // the longest pause
		if got := n.get(blobID(1)); got != tracker.Lease {
			t.Errorf("2 s after: %v", got)
		}
		other := startNode(t, tracker.Config{Trackers: []string{"t1:1"}, Dial: net.Dial, Hello: tracker.Hello{Node: "other"}})
		other.c.Want(blobID(2), tracker.Want{})
		time.Sleep(time.Second)
		if got := other.get(blobID(2)); got != tracker.Sources {
			t.Errorf("another node: %v", got)
		}
		if got := n.c.Remembered(); got != 2 {
			t.Errorf("%d blobs are remembered, want 2", got)
		}
		other.stop()
		n.stop()
	})
}

// A tracker whose machine loses power, or which hangs, answers nothing. The first to want a blob
// of it waits 150 ms, and then the other tracker decides; if there is none it waits
// 1.2 s, since it may only be busy. Then nobody waits for it any more, and after 12 s it is known
// to be gone.
func TestFrozenTracker(t *testing.T) {
	for _, which := range []string{"first", "second", "both", "only"} {
		t.Run(which, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				net := trackertest.NewNet()
				trackers := []string{"t1:1", "t2:1"}
				if which == "only" {
					trackers = trackers[:1]
				}
				for _, addr := range trackers {
					defer serve(t, net, addr)()
				}
				a := startNode(t, tracker.Config{Trackers: trackers, Dial: net.Dial, Hello: tracker.Hello{Node: "a"}})
				b := startNode(t, tracker.Config{Trackers: trackers, Dial: net.Dial, Hello: tracker.Hello{Node: "b"}})
				defer a.stop()
				defer b.stop()
				synctest.Wait()
				id := firstOf("t1:1", trackers)
				freeze := map[string][]string{"first": {"t1:1"}, "second": {"t2:1"}, "both": trackers, "only": {"t1:1"}}[which]
				for _, addr := range freeze {
					net.Freeze(addr)
				}
				start := time.Now()
				a.c.Want(id, tracker.Want{Waiting: true})
				if got := a.get(id); got != 0 && which != "second" {
					t.Fatalf("at once: %v", got)
				}
				want, within := tracker.Lease, 195*time.Millisecond
				if which == "both" || which == "only" {
					want, within = tracker.Unreachable, 1200*time.Millisecond
				}
				time.Sleep(within)
				synctest.Wait()
				if got := a.get(id); got != want {
					t.Errorf("after %v: %v, want %v", time.Since(start), got, want)
				}
				if want == tracker.Unreachable {
					id.Size++ // the next layer, the next pull
					a.c.Want(id, tracker.Want{Waiting: true})
					synctest.Wait()
					if got := a.get(id); got != want {
						t.Errorf("once it is silent: %v, want %v at once", got, want)
					}
					for _, s := range a.c.Status() {
						if !s.Connected || s.Err == nil {
							t.Errorf("%s connected: %v, %v", s.Addr, s.Connected, s.Err)
						}
					}
				}
				if want == tracker.Lease {
					b.c.Want(id, tracker.Want{Waiting: true})
					time.Sleep(195 * time.Millisecond)
					if got := b.get(id); got != tracker.Sources {
						t.Errorf("the next one: %v", got)
					}
				}
				time.Sleep(12 * time.Second)
				synctest.Wait()
				for _, s := range a.c.Status() {
					if s.Connected != !slices.Contains(freeze, s.Addr) {
						t.Errorf("%s connected: %v, %v", s.Addr, s.Connected, s.Err)
					}
				}
				other := firstOf("t1:1", trackers[:1])
				other.Size++ // another swarm, same trackers
				b.c.Want(other, tracker.Want{Waiting: true})
				if got := b.get(other); got != want {
					t.Errorf("once it is known: %v, want %v at once", got, want)
				}
			})
		})
	}
}

// Trackers behind a name: those that appear are used within 30 s, those that
// vanish are left, and a name server that fails changes nothing.
func TestNames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := trackertest.NewNet()
		for _, addr := range []string{"10.0.0.1:7", "10.0.0.2:7", "10.0.0.3:7", "fixed:7"} {
			defer serve(t, net, addr)()
		}
		var mu sync.Mutex
		addrs, fail := []string{"10.0.0.1"}, error(nil)
		set := func(err error, to ...string) {
			mu.Lock()
			defer mu.Unlock()
			addrs, fail = to, err
		}
		lookup := func(_ context.Context, host string) ([]string, error) {
			if host != "trackers.example" {
				t.Errorf("looked up %q", host)
			}
			mu.Lock()
			defer mu.Unlock()
			return addrs, fail
		}
		set(errors.New("SERVFAIL"))
		cfg := tracker.Config{Trackers: []string{"fixed:7", "dns+trackers.example:7"}, Dial: net.Dial, LookupHost: lookup}
		n := startNode(t, cfg)
		defer n.stop()
		check := func(what string, after time.Duration, want ...string) {
			t.Helper()
			time.Sleep(after)
			synctest.Wait()
			var got []string
			for _, s := range n.c.Status() {
				if s.Connected {
					got = append(got, s.Addr)
				}
			}
			if !slices.Equal(got, want) {
				t.Errorf("%s: connected to %v, want %v", what, got, want)
			}
		}
		const soon, later = 2 * time.Second, 30 * time.Second
		unresolved := func(what, want string) {
			t.Helper()
			got := ""
			for _, s := range n.c.Status() {
				if strings.HasPrefix(s.Addr, "dns+") {
					got = fmt.Sprintf("%s: %v", s.Addr, s.Err)
				}
			}
			if got != want {
				t.Errorf("%s: the name's status is %q, want %q", what, got, want)
			}
		}
		check("no answer", soon, "fixed:7")
		unresolved("no answer", "dns+trackers.example:7: SERVFAIL")
		set(nil)
		check("no address", soon, "fixed:7")
		unresolved("no address", "dns+trackers.example:7: the name has no address")
		set(nil, "10.0.0.1")
		check("one", soon, "10.0.0.1:7", "fixed:7")
		unresolved("one", "")
		set(nil, "10.0.0.3", "10.0.0.2", "10.0.0.1")
		check("too early", later-time.Second, "10.0.0.1:7", "fixed:7")
		check("three", time.Second, "10.0.0.1:7", "10.0.0.2:7", "10.0.0.3:7", "fixed:7")
		set(nil, "10.0.0.2", "10.0.0.3")
		check("two others", later, "10.0.0.2:7", "10.0.0.3:7", "fixed:7")
		set(errors.New("SERVFAIL"))
		check("failure", later, "10.0.0.2:7", "10.0.0.3:7", "fixed:7")
		set(nil)
		check("nothing", later, "10.0.0.2:7", "10.0.0.3:7", "fixed:7")
		set(nil, "10.0.0.1", "10.0.0.2")
		check("one back", later, "10.0.0.1:7", "10.0.0.2:7", "fixed:7")
	})
}

// What answers and is no tracker is told apart from one that does not answer.
func TestAnotherPort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := trackertest.NewNet()
		ln := net.Listen("origin:7")
		srv := &http.Server{Handler: http.NotFoundHandler()} //nolint:gosec // nobody is slow here
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = srv.Serve(ln)
		}()
		n := startNode(t, tracker.Config{Trackers: []string{"origin:7"}, Dial: net.Dial})
		time.Sleep(time.Second)
		synctest.Wait()
		if st := n.c.Status(); len(st) != 1 || !strings.Contains(fmt.Sprint(st[0].Err), "something answers there that is no tracker") {
			t.Errorf("%+v", st)
		}
		n.stop()
		_ = srv.Close()
		<-done
	})
}

// script is a tracker that does with each stream what its function does.
type script struct {
	trackerpb.UnimplementedTrackerServer
	connect func(trackerpb.Tracker_ConnectServer) error
}

func (s *script) Connect(g trackerpb.Tracker_ConnectServer) error { return s.connect(g) }

func serveScript(net *trackertest.Net, addr string, connect func(trackerpb.Tracker_ConnectServer) error) (stop func()) {
	g := grpc.NewServer(grpc.WaitForHandlers(true))
	trackerpb.RegisterTrackerServer(g, &script{connect: connect})
	done := make(chan struct{})
	ln := net.Listen(addr)
	go func() {
		defer close(done)
		_ = g.Serve(ln)
	}()
	return func() {
		net.Refuse(addr)
		g.Stop()
		<-done
	}
}

var welcome = &trackerpb.ToAgent{Welcome: &trackerpb.Welcome{Version: trackerpb.Version, Software: "script", AgeMs: 5000}}

// Streams end in many ways; each is said, and the next attempt comes when the protocol
// says so.
func TestPausesBetweenStreams(t *testing.T) {
	const ms = time.Millisecond
	steps := []time.Duration{50 * ms, 100 * ms, 200 * ms, 400 * ms, 800 * ms, 1000 * ms, 1000 * ms}
	ends := []time.Duration{101 * ms, 201 * ms, 401 * ms, 801 * ms, 1601 * ms, 2001 * ms, 2001 * ms}
	long := []time.Duration{10 * time.Second}
	refuse := func(c codes.Code) func(trackerpb.Tracker_ConnectServer) error {
		return func(trackerpb.Tracker_ConnectServer) error { return status.Error(c, "go away") }
	}
	for _, tt := range []struct {
		name    string
		connect func(trackerpb.Tracker_ConnectServer) error // nil: nobody listens
		text    string                                      // in the status
		least   []time.Duration                             // between the first statuses of streams that ended
		most    []time.Duration
	}{
		{"nobody listens", nil, "connection refused", steps, ends},
		{"stops", refuse(codes.Unavailable), "go away", steps[:2], ends[:2]},
		{"another cluster", refuse(codes.FailedPrecondition), "go away", long, long},
		{"not allowed", refuse(codes.PermissionDenied), "go away", long, long},
		{"no identity", refuse(codes.Unauthenticated), "go away", long, long},
		{"a message it does not allow", refuse(codes.InvalidArgument), "go away", long, long},
		{"another of the name", refuse(codes.Aborted), "go away", steps[5:], ends[5:]},
		{"full", refuse(codes.ResourceExhausted), "go away", steps[5:], ends[5:]},
		{"says nothing", func(g trackerpb.Tracker_ConnectServer) error { <-g.Context().Done(); return nil }, "no answer",
			[]time.Duration{5050 * ms}, []time.Duration{5101 * ms}},
		{"another version", func(g trackerpb.Tracker_ConnectServer) error {
			return g.Send(&trackerpb.ToAgent{Welcome: &trackerpb.Welcome{Version: 2}})
		}, "protocol version 2 in Welcome, not 1", long, long},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				net := trackertest.NewNet()
				if tt.connect != nil {
					defer serveScript(net, "t1:1", tt.connect)()
				}
				n := startNode(t, tracker.Config{Trackers: []string{"t1:1"}, Dial: net.Dial})
				defer n.stop()
				time.Sleep(time.Minute)
				synctest.Wait()
				n.mu.Lock()
				defer n.mu.Unlock()
				if len(n.times) <= len(tt.least) {
					t.Fatalf("%d attempts in a minute", len(n.times))
				}
				for i := range tt.least {
					if d := n.times[i+1].Sub(n.times[i]); d < tt.least[i] || d > tt.most[i] {
						t.Errorf("attempt %d came after %v, want %v to %v", i+1, d, tt.least[i], tt.most[i])
					}
				}
				st := n.statuses[0]
				said := fmt.Sprint(st.Err)
				if st.Connected || st.Addr != "t1:1" || !strings.Contains(said, "tracker t1:1: ") || !strings.Contains(said, tt.text) {
					t.Errorf("status %+v, want %q", st, tt.text)
				}
			})
		})
	}
}

// A stream that lived is made anew soon; one on which nothing comes is given up after
// 12 s, and one on which empty messages come is not.
func TestSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := trackertest.NewNet()
		var mu sync.Mutex
		var began []time.Time
		defer serveScript(net, "t1:1", func(g trackerpb.Tracker_ConnectServer) error {
			mu.Lock()
			began = append(began, time.Now())
			nth := len(began)
			mu.Unlock()
			_ = g.Send(welcome)
			for range 4 * nth { // 20 s, then 40 s
				select {
				case <-g.Context().Done():
					return nil
				case <-time.After(5 * time.Second):
					_ = g.Send(&trackerpb.ToAgent{})
				}
			}
			<-g.Context().Done()
			return nil
		})()
		n := startNode(t, tracker.Config{Trackers: []string{"t1:1"}, Dial: net.Dial})
		defer n.stop()
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if st := n.c.Status(); len(st) != 1 || !st[0].Connected || st[0].Age != 5*time.Second || st[0].Software != "script" || st[0].Err != nil {
			t.Errorf("status %+v", st)
		}
		time.Sleep(90 * time.Second)
		mu.Lock()
		defer mu.Unlock()
		if len(began) < 3 {
			t.Fatalf("%d streams", len(began))
		}
		for i, lived := range []time.Duration{20 * time.Second, 40 * time.Second} {
			if d := began[i+1].Sub(began[i]); d < lived+12*time.Second+50*time.Millisecond || d > lived+12*time.Second+101*time.Millisecond {
				t.Errorf("stream %d came after %v, want %v and 50 to 100 ms", i+1, d, lived+12*time.Second)
			}
		}
	})
}

// Every call of the Handler, in the order of the messages, and every method of the
// Client on the stream.
func TestCallsAndMessages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := trackertest.NewNet()
		id := blobID(1)
		blob := trackerpb.FromID(id)
		var mu sync.Mutex
		var got trackerpb.FromAgent
		defer serveScript(net, "t1:1", func(g trackerpb.Tracker_ConnectServer) error {
			first := true
			for {
				m, err := g.Recv()
				if err != nil {
					return err
				}
				mu.Lock()
				mergeInto(&got, m)
				mu.Unlock()
				if first {
					first = false
					_ = g.Send(welcome)
				}
				for _, w := range m.Wants {
					share := uint32(0x00f0)
					peer := &trackerpb.Peer{Node: "p", Addr: "p:1", Zone: "z", Role: trackerpb.Role_ROLE_ORIGIN, Complete: true}
					_ = g.Send(&trackerpb.ToAgent{
						Sums:     []*trackerpb.SumsHash{{Blob: blob, Hash: append([]byte{7}, make([]byte, 31)...)}},
						Peers:    []*trackerpb.Peers{{Blob: blob, Peers: []*trackerpb.Peer{peer}, Share: &share}},
						Verdicts: []*trackerpb.Verdict{{Blob: blob, Kind: trackerpb.Verdict_KIND_SOURCES, Seq: w.Seq}},
					})
					_ = g.Send(&trackerpb.ToAgent{
						Peers:    []*trackerpb.Peers{{Blob: blob, Gone: []string{"p"}}},
						Lookups:  []*trackerpb.Blob{trackerpb.FromID(blobID(2))},
						Commands: []*trackerpb.Command{{Id: 9}},
					})
				}
			}
		})()
		n := startNode(t, tracker.Config{Trackers: []string{"t1:1"}, Dial: net.Dial})
		synctest.Wait()
		n.c.Want(id, tracker.Want{Waiting: true})
		synctest.Wait()
		n.mu.Lock()
		want := []string{"sums 07", "peers [{p p:1 [] z origin true false}]", "share 00f0", "verdict sources", "gone [p]", "lookup", "command 9"}
		if !slices.Equal(n.calls, want) {
			t.Errorf("the Handler was told\n%q, want\n%q", n.calls, want)
		}
		n.mu.Unlock()
		n.c.Result(&trackerpb.CommandResult{Id: 9, Error: "no\x00"})
		n.c.Disproved(id, [32]byte{7})
		n.c.LeaseProgress(id, 5, "")
		synctest.Wait() // or it would be over before it was told
		n.c.AnnounceComplete(id, &[32]byte{8})
		n.c.LeaseDone(id, nil)
		n.c.Announce(blobID(3), tracker.StatePartial)
		n.c.Unwant(id)
		time.Sleep(time.Second)
		mu.Lock()
		defer mu.Unlock()
		if h := got.Hello; h.GetNode() != "n" || h.Cluster != "default" || h.Version != trackerpb.Version {
			t.Errorf("hello: %v", h)
		}
		if len(got.NotHere) != 1 || len(got.Results) != 1 || got.Results[0].Error != "no " || len(got.Disproved) != 1 || len(got.Progress) != 1 ||
			got.Announced() != 2 || len(got.Done) != 1 || len(got.Unwants) != 1 {
			t.Errorf("the tracker was told %v", &got)
		}
		n.stop()
		n.c.Want(id, tracker.Want{}) // after the end: does no harm
	})
}

// The methods of a Client are for any goroutine, while streams come and go.
func TestConcurrentCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := trackertest.NewNet()
		trackers := []string{"t1:1", "t2:1"}
		for _, addr := range trackers {
			defer serve(t, net, addr)()
		}
		n := startNode(t, tracker.Config{Trackers: trackers, Dial: net.Dial})
		defer n.stop()
		var wg sync.WaitGroup
		for g := range 8 {
			wg.Go(func() {
				for i := range 50 {
					id := blobID(g*50 + i)
					n.c.Want(id, tracker.Want{Waiting: true})
					n.c.LeaseProgress(id, 1, "")
					n.c.Status()
					n.c.AnnounceComplete(id, nil)
					n.c.LeaseDone(id, nil)
					n.c.Unwant(id)
					time.Sleep(time.Millisecond)
					n.c.Announce(id, tracker.StateGone)
				}
			})
		}
		wg.Wait()
		time.Sleep(10 * time.Second)
		if got := n.c.Remembered(); got != 0 {
			t.Errorf("%d blobs are remembered", got)
		}
	})
}

// mergeInto appends what a message has to all that came.
func mergeInto(all, m *trackerpb.FromAgent) {
	if m.Hello != nil {
		all.Hello = m.Hello
	}
	all.NotHere = append(all.NotHere, m.NotHere...)
	all.Results = append(all.Results, m.Results...)
	all.Disproved = append(all.Disproved, m.Disproved...)
	all.Progress = append(all.Progress, m.Progress...)
	all.Announces = append(all.Announces, m.Announces...)
	all.Inventory = append(all.Inventory, m.Inventory...)
	all.Done = append(all.Done, m.Done...)
	all.Wants = append(all.Wants, m.Wants...)
	all.Unwants = append(all.Unwants, m.Unwants...)
}
