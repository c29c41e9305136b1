package trackerd

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/capelin-io/capelin/control/tracker"
	"github.com/capelin-io/capelin/swarm/piece"
)

func (n *fakeNet) origin(t *testing.T, name string, lookup func(*tracker.Client, piece.ID), trackers ...string) *agent {
	a := newAgent(t, name)
	a.lookup = lookup
	a.run(tracker.Config{Trackers: trackers, Dial: n.Dial})
	return a
}

// decided returns the first verdict other than Wait that a was told, and how long
// after start that was.
func (a *agent) decided(id piece.ID, start time.Time) (tracker.VerdictKind, time.Duration) {
	for {
		if v := a.get(id); v != 0 && v != tracker.Wait {
			return v, time.Since(start)
		}
		if time.Since(start) > time.Second {
			return 0, time.Second
		}
		time.Sleep(time.Millisecond)
	}
}

// TestLookupTiming: whatever origins do, who waits has a verdict at once, and its
// decision within the 200 ms that it has for finding out.
func TestLookupTiming(t *testing.T) {
	notHere := (*tracker.Client).NotHere
	never := func(*tracker.Client, piece.ID) {}
	after := func(d time.Duration, f func(*tracker.Client, piece.ID)) func(*tracker.Client, piece.ID) {
		return func(c *tracker.Client, id piece.ID) { time.AfterFunc(d, func() { f(c, id) }) }
	}
	has := func(c *tracker.Client, id piece.ID) { c.Announce(id, tracker.StatePartial) }
	for _, tt := range []struct {
		name     string
		origins  []func(*tracker.Client, piece.ID)
		waiting  bool
		want     tracker.VerdictKind
		min, max time.Duration
	}{
		{"no origins", nil, true, tracker.Lease, 0, 0},
		{"not here", []func(*tracker.Client, piece.ID){notHere, notHere}, true, tracker.Lease, 0, 0},
		{"found at once", []func(*tracker.Client, piece.ID){notHere, has}, true, tracker.Sources, 0, 0},
		{"found in the end", []func(*tracker.Client, piece.ID){never, after(90*time.Millisecond, has)}, true, tracker.Sources,
			90 * time.Millisecond, 91 * time.Millisecond},
		{"no answer", []func(*tracker.Client, piece.ID){never, notHere}, true, tracker.Lease, 100 * time.Millisecond, 101 * time.Millisecond},
		{"prefetch found", []func(*tracker.Client, piece.ID){after(50*time.Millisecond, has)}, false, tracker.Sources,
			50 * time.Millisecond, 51 * time.Millisecond},
		{"prefetch not found", []func(*tracker.Client, piece.ID){after(50*time.Millisecond, notHere)}, false, tracker.Nobody,
			50 * time.Millisecond, 51 * time.Millisecond},
		{"prefetch no answer", []func(*tracker.Client, piece.ID){never}, false, tracker.Nobody, 100 * time.Millisecond, 101 * time.Millisecond},
	} {
		for _, trackers := range [][]string{{"t1:1"}, {"t1:1", "t2:1"}} {
			t.Run(fmt.Sprintf("%s, %d trackers", tt.name, len(trackers)), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					n := newNet()
					for _, addr := range trackers {
						defer n.serve(t, addr, nil)()
					}
					all := []*agent{n.agent(t, "a", trackers...)}
					for i, f := range tt.origins {
						all = append(all, n.origin(t, fmt.Sprint("o", i), f, trackers...))
					}
					synctest.Wait()
					a, id, start := all[0], blobID(1), time.Now()
					a.c.Want(id, tracker.Want{Waiting: tt.waiting})
					if a.get(id) == 0 {
						t.Error("not even told to wait")
					}
					got, took := a.decided(id, start)
					if got != tt.want || took < tt.min || took > tt.max {
						t.Errorf("%v after %v, want %v within %v..%v; %v", got, took, tt.want, tt.min, tt.max, a.verdicts[id])
					}
					if got == tracker.Sources && len(a.peers[id]) != 1 {
						t.Errorf("the source is not named: %v", a.peers[id])
					}
					for _, o := range all[1:] {
						if len(o.lookups) != 1 {
							t.Errorf("%s was asked %d times", o.name, len(o.lookups))
						}
					}
					for _, x := range all {
						x.stop()
					}
				})
			})
		}
	}
}

// When the first tracker is frozen, the second one asks origins.
func TestLookupOfTheSecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNet()
		trackers := []string{"t1:1", "t2:1"}
		for _, addr := range trackers {
			defer n.serve(t, addr, nil)()
		}
		o := n.origin(t, "o", func(c *tracker.Client, id piece.ID) { c.Announce(id, tracker.StatePartial) }, trackers...)
		a := n.agent(t, "a", trackers...)
		synctest.Wait()
		n.Freeze("t1:1")
		id, start := firstOf("t1:1", trackers), time.Now()
		a.c.Want(id, tracker.Want{Waiting: true})
		if got, took := a.decided(id, start); got != tracker.Sources || took > 200*time.Millisecond {
			t.Errorf("%v after %v", got, took)
		}
		a.stop()
		o.stop()
	})
}

// An origin that has announced a blob answers by itself, even if the tracker had
// refused to keep that.
func TestLookupOfRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNet()
		defer n.serve(t, "t1:1", func(c *Config) { c.Limits.BlobsPerNode = 1 })()
		o := n.origin(t, "o", (*tracker.Client).NotHere, "t1:1")
		synctest.Wait()
		for i := range 3 {
			o.c.AnnounceComplete(blobID(i), nil)
		}
		a := n.agent(t, "a", "t1:1")
		synctest.Wait()
		for i := range 3 {
			a.c.Want(blobID(i), tracker.Want{Waiting: true})
			if got := a.get(blobID(i)); got != tracker.Sources {
				t.Errorf("blob %d: %v", i, got)
			}
			a.c.Unwant(blobID(i))
		}
		if len(o.lookups) != 0 {
			t.Errorf("asked for %v", o.lookups)
		}
		a.stop()
		o.stop()
	})
}
