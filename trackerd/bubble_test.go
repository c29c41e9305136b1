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

	"github.com/capelin-io/capelin/control/ring"
	"github.com/capelin-io/capelin/control/tracker"
	"github.com/capelin-io/capelin/control/tracker/trackertest"
	"github.com/capelin-io/capelin/swarm/piece"
)

// These tests run the daemon and its clients in a bubble, so that seconds of
// waiting cost nothing and times can be compared exactly.

// fakeNet is a network in memory with trackers and agents on it.
type fakeNet struct{ *trackertest.Net }

func newNet() *fakeNet { return &fakeNet{trackertest.NewNet()} }

// serve runs a tracker at an address until the returned function is called.
func (n *fakeNet) serve(t *testing.T, addr string, change func(*Config)) (stop func()) {
	cfg := DefaultConfig()
	cfg.Listener, cfg.Metrics = n.Listen(addr), ""
	cfg.Lease.Warmup = 0
	if change != nil {
		change(&cfg)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, cfg) }()
	return sync.OnceFunc(func() {
		n.Refuse(addr)
		cancel()
		if err := <-done; err != nil {
			t.Errorf("tracker: %v", err)
		}
	})
}

func (n *fakeNet) agent(t *testing.T, name string, trackers ...string) *agent {
	a := newAgent(t, name)
	a.run(tracker.Config{Trackers: trackers, Dial: n.Dial})
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
		holder.c.LeaseProgress(x, 1000, "")
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
			holder.c.LeaseProgress(x, 2000, "")
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
		h[0].c.LeaseProgress(id, 100, "")
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
		h2[0].c.LeaseProgress(id, 100, "")
		defer n.serve(t, "t1:1", func(c *Config) { c.Lease.Warmup = DefaultConfig().Lease.Warmup })()
		for i := range 50 {
			time.Sleep(100 * time.Millisecond)
			h2[0].c.LeaseProgress(id, int64(1000*i), "")
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
			a.run(tracker.Config{Trackers: trackers, Dial: n.Dial})
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
					return n.Dial(ctx, addr)
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
					a.c.LeaseProgress(id, 1, "")
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
