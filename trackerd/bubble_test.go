package trackerd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/test/bufconn"

	"github.com/capelin-io/capelin/control/ring"
	"github.com/capelin-io/capelin/control/tracker"
	"github.com/capelin-io/capelin/swarm/piece"
)

// These tests run the daemon and its clients in a bubble, so that seconds of
// waiting cost nothing and times can be compared exactly.

// fakeNet is a network in memory. Addresses that nobody listens on refuse.
type fakeNet struct {
	mu        sync.Mutex
	listeners map[string]*bufconn.Listener
	frozen    map[string]bool // packets to and from it vanish
	conns     map[string][]*freezeConn
}

func newNet() *fakeNet {
	return &fakeNet{listeners: map[string]*bufconn.Listener{}, frozen: map[string]bool{}, conns: map[string][]*freezeConn{}}
}

func (n *fakeNet) dial(ctx context.Context, addr string) (net.Conn, error) {
	n.mu.Lock()
	ln, frozen := n.listeners[addr], n.frozen[addr]
	n.mu.Unlock()
	if frozen {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if ln == nil {
		return nil, errors.New("connection refused")
	}
	c, err := ln.DialContext(ctx)
	if err != nil {
		return nil, err
	}
	f := &freezeConn{Conn: c, freeze: make(chan struct{}), closed: make(chan struct{})}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.conns[addr] = append(n.conns[addr], f)
	return f, nil
}

// freeze makes an address silent without closing anything, as if its machine
// had lost power.
func (n *fakeNet) freeze(addr string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.frozen[addr] = true
	for _, c := range n.conns[addr] {
		c.once.Do(func() { close(c.freeze) })
	}
}

type freezeConn struct {
	net.Conn
	once, closing  sync.Once
	freeze, closed chan struct{}
}

func (c *freezeConn) isFrozen() bool {
	select {
	case <-c.freeze:
		return true
	default:
		return false
	}
}

func (c *freezeConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if c.isFrozen() {
		<-c.closed
		return 0, net.ErrClosed
	}
	return n, err
}

func (c *freezeConn) Write(p []byte) (int, error) {
	if c.isFrozen() {
		return len(p), nil
	}
	return c.Conn.Write(p)
}

func (c *freezeConn) Close() error {
	c.closing.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// serve runs a tracker at an address until the returned function is called.
func (n *fakeNet) serve(t *testing.T, addr string, change func(*Config)) (stop func()) {
	ln := bufconn.Listen(256 << 10)
	n.mu.Lock()
	n.listeners[addr] = ln
	n.mu.Unlock()
	cfg := DefaultConfig()
	cfg.Listener, cfg.Metrics = ln, ""
	cfg.Lease.Warmup = 0
	if change != nil {
		change(&cfg)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, cfg) }()
	return sync.OnceFunc(func() {
		n.mu.Lock()
		delete(n.listeners, addr)
		n.mu.Unlock()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("tracker: %v", err)
		}
	})
}

func (n *fakeNet) agent(t *testing.T, name string, trackers ...string) *agent {
	a := newAgent(t, name)
	a.run(tracker.Config{Trackers: trackers, Dial: n.dial})
	return a
}

// get returns the last verdict that a was told about a blob.
func (a *agent) get(id piece.ID) tracker.VerdictKind {
	synctest.Wait()
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.last(id)
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
		n := newNet()
		for i, trackers := range [][]string{nil, {"t1:1"}, {"t1:1", "t2:1"}} {
			a := n.agent(t, fmt.Sprint(i), trackers...)
			start := time.Now()
			a.c.Want(blobID(1), tracker.Want{Waiting: true})
			if got := a.get(blobID(1)); got != tracker.Unreachable || time.Since(start) != 0 {
				t.Errorf("%v: %v after %v", trackers, got, time.Since(start))
			}
			a.stop()
		}
	})
}

func TestTrackerAppears(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNet()
		a := n.agent(t, "a", "t1:1")
		time.Sleep(time.Minute)
		a.c.Want(blobID(1), tracker.Want{Waiting: true})
		if got := a.get(blobID(1)); got != tracker.Unreachable {
			t.Fatalf("before: %v", got)
		}
		defer n.serve(t, "t1:1", nil)()
		time.Sleep(2 * time.Second) // the longest pause
		if got := a.get(blobID(1)); got != tracker.Lease {
			t.Errorf("2 s after: %v", got)
		}
		a.stop()
	})
}

// A tracker whose machine loses power answers nothing. The first to want a blob
// of it waits 150 ms, and then the other tracker decides; if there is none it waits
// 5 s, since it may only be busy. After 12 s it is known to be gone, and nobody
// waits any more.
func TestFrozenTracker(t *testing.T) {
	for _, which := range []string{"first", "second", "both", "only"} {
		t.Run(which, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNet()
				trackers := []string{"t1:1", "t2:1"}
				if which == "only" {
					trackers = trackers[:1]
				}
				var stops []func()
				for _, addr := range trackers {
					stops = append(stops, n.serve(t, addr, nil))
				}
				a, b := n.agent(t, "a", trackers...), n.agent(t, "b", trackers...)
				synctest.Wait()
				id := firstOf("t1:1", trackers)
				freeze := map[string][]string{"first": {"t1:1"}, "second": {"t2:1"}, "both": trackers, "only": {"t1:1"}}[which]
				for _, addr := range freeze {
					n.freeze(addr)
				}
				start := time.Now()
				a.c.Want(id, tracker.Want{Waiting: true})
				if got := a.get(id); got != 0 && which != "second" {
					t.Fatalf("at once: %v", got)
				}
				want, within := tracker.Lease, 195*time.Millisecond
				if which == "both" || which == "only" {
					want, within = tracker.Unreachable, 5200*time.Millisecond
				}
				time.Sleep(within)
				if got := a.get(id); got != want {
					t.Errorf("after %v: %v, want %v", time.Since(start), got, want)
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
				a.stop()
				b.stop()
				for _, stop := range stops {
					stop()
				}
			})
		})
	}
}

// A restarted tracker is full again within two seconds, and says "wait" until
// then instead of granting leases for what somebody has.
func TestRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNet()
		warm := func(c *Config) { c.Lease.Warmup = DefaultConfig().Lease.Warmup }
		stop := n.serve(t, "t1:1", warm)
		const agents, blobs = 30, 200
		var all []*agent
		for i := range agents {
			a := n.agent(t, fmt.Sprint(i), "t1:1")
			for b := range blobs {
				a.c.AnnounceComplete(blobID(i*blobs+b), nil)
			}
			all = append(all, a)
		}
		holder, x := all[0], blobID(65000)
		time.Sleep(3 * time.Second)
		holder.c.Want(x, tracker.Want{Waiting: true})
		if got := holder.get(x); got != tracker.Lease {
			t.Fatalf("holder: %v", got)
		}
		holder.c.LeaseProgress(x, 1000)
		all[1].c.Want(x, tracker.Want{Waiting: true})
		if got := all[1].get(x); got != tracker.Sources {
			t.Fatalf("other: %v", got)
		}
		stop()
		time.Sleep(10 * time.Second)
		if got := all[1].get(x); got != tracker.Unreachable {
			t.Fatalf("tracker away: %v", got)
		}
		defer n.serve(t, "t1:1", warm)()
		for i, a := range all { // each wants what the next one has, as soon as it can
			a.c.Want(blobID((i+1)%agents*blobs+7), tracker.Want{Waiting: true})
		}
		for range 30 {
			time.Sleep(100 * time.Millisecond)
			holder.c.LeaseProgress(x, 2000)
		}
		for i, a := range all {
			id := blobID((i+1)%agents*blobs + 7)
			if got := a.get(id); got != tracker.Sources {
				t.Errorf("agent %d: %v", i, got)
			}
			a.mu.Lock()
			for _, v := range a.verdicts[id] {
				if v.Kind == tracker.Lease || v.Kind == tracker.Nobody {
					t.Errorf("agent %d: %v", i, a.verdicts[id])
				}
			}
			a.mu.Unlock()
		}
		if got := all[1].get(x); got != tracker.Sources {
			t.Errorf("the download under way: %v", got)
		}
		if got := holder.get(x); got != tracker.Lease {
			t.Errorf("its holder: %v", got)
		}
		for _, a := range all {
			a.stop()
		}
	})
}

// With two trackers nothing is lost when one goes and comes back.
func TestOneOfTwoAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNet()
		trackers := []string{"t1:1", "t2:1"}
		stop1 := n.serve(t, "t1:1", nil)
		defer n.serve(t, "t2:1", nil)()
		var all []*agent
		for i := range 10 {
			all = append(all, n.agent(t, fmt.Sprint(i), trackers...))
		}
		synctest.Wait()
		id := firstOf("t1:1", trackers)
		for _, a := range all {
			a.c.Want(id, tracker.Want{Waiting: true})
		}
		holders := func() (h []*agent) {
			for _, a := range all {
				switch a.get(id) {
				case tracker.Lease:
					h = append(h, a)
				case tracker.Sources:
				default:
					t.Errorf("%s: %v", a.name, a.verdicts[id])
				}
			}
			return h
		}
		h := holders()
		if len(h) != 1 {
			t.Fatalf("%d holders", len(h))
		}
		h[0].c.LeaseProgress(id, 100)
		synctest.Wait()
		stop1()
		time.Sleep(200 * time.Millisecond)
		if now := holders(); len(now) != 1 || now[0] != h[0] {
			t.Errorf("first tracker gone: %d holders", len(now))
		}
		h[0].stop()
		time.Sleep(200 * time.Millisecond)
		all = slices.DeleteFunc(all, func(a *agent) bool { return a == h[0] })
		h2 := holders()
		if len(h2) != 1 {
			t.Fatalf("holder gone as well: %d holders", len(h2))
		}
		h2[0].c.LeaseProgress(id, 100)
		defer n.serve(t, "t1:1", func(c *Config) { c.Lease.Warmup = DefaultConfig().Lease.Warmup })()
		for i := range 50 {
			time.Sleep(100 * time.Millisecond)
			h2[0].c.LeaseProgress(id, int64(1000*i))
		}
		if now := holders(); len(now) != 1 || now[0] != h2[0] {
			t.Errorf("first tracker back: %d holders", len(now))
		}
		for _, a := range all {
			a.stop()
		}
	})
}

// Every share of a blob has one holder in each zone, whichever tracker is away.
func TestShares(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNet()
		trackers := []string{"t1:1", "t2:1"}
		stop1 := n.serve(t, "t1:1", nil)
		defer n.serve(t, "t2:1", nil)()
		id := firstOf("t1:1", trackers)
		zones := map[string][]*agent{}
		for i := range 10 {
			a := newAgent(t, fmt.Sprint(i))
			a.zone = fmt.Sprint("z", i%2)
			a.run(tracker.Config{Trackers: trackers, Dial: n.dial})
			synctest.Wait()
			a.c.Want(id, tracker.Want{Waiting: true})
			zones[a.zone] = append(zones[a.zone], a)
		}
		check := func(when string) {
			t.Helper()
			synctest.Wait()
			for zone, all := range zones {
				var held uint16
				for _, a := range all {
					a.mu.Lock()
					share := a.shares[id]
					a.mu.Unlock()
					if share == 0 || held&share != 0 {
						t.Errorf("%s: %s of %s has %04x, others %04x", when, a.name, zone, share, held)
					}
					held |= share
				}
				if held != 0xffff {
					t.Errorf("%s: the shares held in %s are %04x", when, zone, held)
				}
			}
		}
		check("both trackers there")
		stop1()
		time.Sleep(time.Second)
		check("the first away")
		defer n.serve(t, "t1:1", nil)()
		time.Sleep(10 * time.Second)
		check("the first back")
		zones["z0"][0].stop()
		zones["z0"] = zones["z0"][1:]
		time.Sleep(time.Second)
		check("one agent less")
		for _, all := range zones {
			for _, a := range all {
				a.stop()
			}
		}
	})
}

// Agents that see one tracker each get a lease each: leases promise nothing.
// When the partition heals, both are sources for everybody.
func TestPartition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNet()
		trackers := []string{"t1:1", "t2:1"}
		for _, addr := range trackers {
			defer n.serve(t, addr, nil)()
		}
		cut := make(chan struct{})
		var sides [2][]*agent
		for side := range sides {
			for i := range 3 {
				a := newAgent(t, fmt.Sprintf("%d-%d", side, i))
				a.run(tracker.Config{Trackers: trackers, Dial: func(ctx context.Context, addr string) (net.Conn, error) {
					select {
					case <-cut:
					default:
						if addr != trackers[side] {
							return nil, errors.New("no route to host")
						}
					}
					return n.dial(ctx, addr)
				}})
				sides[side] = append(sides[side], a)
			}
		}
		time.Sleep(time.Second)
		id := blobID(3)
		for side, agents := range sides {
			leases := 0
			for _, a := range agents {
				a.c.Want(id, tracker.Want{Waiting: true})
				switch a.get(id) {
				case tracker.Lease:
					leases++
					a.c.LeaseProgress(id, 1)
				case tracker.Sources:
				default:
					t.Errorf("%s: %v", a.name, a.verdicts[id])
				}
			}
			if leases != 1 {
				t.Errorf("side %d: %d leases", side, leases)
			}
		}
		close(cut)
		time.Sleep(2500 * time.Millisecond)
		synctest.Wait()
		for _, a := range slices.Concat(sides[0], sides[1]) {
			a.mu.Lock()
			sources := 0
			for _, p := range a.peers[id] {
				if p.Source {
					sources++
				}
			}
			want := 2
			if a.last(id) == tracker.Lease {
				want = 1
			}
			if sources != want || len(a.peers[id]) != 5 {
				t.Errorf("%s: %v; %v", a.name, a.peers[id], a.verdicts[id])
			}
			a.mu.Unlock()
		}
		for _, a := range slices.Concat(sides[0], sides[1]) {
			a.stop()
		}
	})
}

// Trackers behind a name: those that appear are used within 30 s, those that
// vanish are left, and a name server that fails changes nothing.
func TestNames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNet()
		for _, addr := range []string{"10.0.0.1:7", "10.0.0.2:7", "10.0.0.3:7"} {
			defer n.serve(t, addr, nil)()
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
		a, b := newAgent(t, "a"), newAgent(t, "b")
		for _, x := range []*agent{a, b} {
			x.run(tracker.Config{Trackers: []string{"dns+trackers.example:7"}, Dial: n.dial, LookupHost: lookup})
		}
		id := blobID(9)
		a.c.AnnounceComplete(id, &[32]byte{5})
		check := func(what string, want ...string) {
			t.Helper()
			time.Sleep(35 * time.Second)
			synctest.Wait()
			var got []string
			for _, s := range b.c.Status() {
				if s.Connected {
					got = append(got, s.Addr)
				}
			}
			if !slices.Equal(got, want) {
				t.Errorf("%s: connected to %v, want %v", what, got, want)
			}
			b.c.Want(id, tracker.Want{})
			kind := tracker.Sources
			if want == nil {
				kind = tracker.Unreachable
			}
			if got := b.get(id); got != kind {
				t.Errorf("%s: %v, want %v", what, got, kind)
			}
			b.c.Unwant(id)
		}
		check("no answer")
		set(nil, "10.0.0.1")
		check("one", "10.0.0.1:7")
		set(nil, "10.0.0.3", "10.0.0.2", "10.0.0.1")
		check("three", "10.0.0.1:7", "10.0.0.2:7", "10.0.0.3:7")
		set(nil, "10.0.0.2", "10.0.0.3")
		check("two others", "10.0.0.2:7", "10.0.0.3:7")
		set(errors.New("SERVFAIL"))
		check("failure", "10.0.0.2:7", "10.0.0.3:7")
		set(nil)
		check("nothing", "10.0.0.2:7", "10.0.0.3:7")
		a.stop()
		b.stop()
	})
}

// Progress goes out at once when a download starts, then once a second.
func TestProgressIsBatched(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNet()
		var srv *server
		defer n.serve(t, "t1:1", func(c *Config) { c.onServer = func(s *server) { srv = s } })()
		a := n.agent(t, "a", "t1:1")
		synctest.Wait()
		reported := func() int64 {
			synctest.Wait()
			srv.mu.Lock()
			defer srv.mu.Unlock()
			return srv.machine.Stats().UpstreamReported
		}
		a.c.LeaseProgress(blobID(1), 10)
		if got := reported(); got != 10 {
			t.Errorf("at once: %d", got)
		}
		for i := range 99 {
			a.c.LeaseProgress(blobID(1), 10+int64(i))
			time.Sleep(10 * time.Millisecond)
		}
		if got := reported(); got != 10 {
			t.Errorf("after 990 ms: %d", got)
		}
		time.Sleep(20 * time.Millisecond)
		if got := reported(); got != 108 {
			t.Errorf("after a second: %d", got)
		}
		a.stop()
	})
}

// What the tracker has enough of is announced again later.
func TestEnough(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNet()
		var srv *server
		defer n.serve(t, "t1:1", func(c *Config) {
			c.Peers.Enough = 2
			c.onServer = func(s *server) { srv = s }
		})()
		stats := func() (entries int, announces uint64) {
			synctest.Wait()
			srv.mu.Lock()
			defer srv.mu.Unlock()
			st := srv.machine.Stats()
			return st.Entries, st.Announces
		}
		var all []*agent
		for i := range 4 {
			a := n.agent(t, fmt.Sprint(i), "t1:1")
			synctest.Wait()
			a.c.AnnounceComplete(blobID(1), nil)
			all = append(all, a)
		}
		if e, an := stats(); e != 2 || an != 4 {
			t.Errorf("%d entries of %d announces", e, an)
		}
		all[0].c.Announce(blobID(1), tracker.StateGone)
		all[1].c.Announce(blobID(1), tracker.StateGone)
		all[3].c.Announce(blobID(1), tracker.StateComplete)
		if e, an := stats(); e != 0 || an != 6 {
			t.Errorf("%d entries of %d announces", e, an)
		}
		time.Sleep(46 * time.Minute)
		if e, an := stats(); e != 2 || an != 8 {
			t.Errorf("%d entries of %d announces", e, an)
		}
		for _, a := range all {
			a.stop()
		}
	})
}

// What agents have when a tracker comes is offered: it keeps of each blob as many as are
// enough and is told in full of hardly any more, and of one blob that vanished meanwhile
// nothing is left.
func TestOffered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const agents, blobs, enough = 8, 1200, 2
		n := newNet()
		var all []*agent
		for i := range agents {
			a := n.agent(t, fmt.Sprint(i), "t1:1")
			for j := range blobs {
				a.c.AnnounceComplete(blobID(j), nil)
			}
			all = append(all, a)
		}
		time.Sleep(time.Minute)
		var srv *server
		defer n.serve(t, "t1:1", func(c *Config) {
			c.Peers.Enough = enough
			c.onServer = func(s *server) { srv = s }
		})()
		synctest.Wait()
		for { // until some are connected
			srv.mu.Lock()
			st := srv.machine.Stats()
			srv.mu.Unlock()
			if st.Streams > 0 {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		for _, a := range all {
			a.c.Announce(blobID(7), tracker.StateGone)
		}
		time.Sleep(10 * time.Second)
		srv.mu.Lock()
		st, members := srv.machine.Stats(), len(srv.machine.Members(blobID(7)))
		srv.mu.Unlock()
		if want := enough * (blobs - 1); st.Entries != want || members != 0 {
			t.Errorf("%d entries, want %d; %d members of what nobody has", st.Entries, want, members)
		}
		for _, a := range all {
			a.stop()
		}
	})
}
