package trackerd

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/capelin-io/capelin/control/ring"
	"github.com/capelin-io/capelin/control/tracker"
	"github.com/capelin-io/capelin/trackerd/state"
)

// TestConverge: whatever agents said in whatever order, while trackers came,
// went, froze and changed their names, once it is quiet each tracker knows
// exactly what it should, and whoever waits is not left waiting.
func TestConverge(t *testing.T) {
	for seed := range uint64(6) {
		synctest.Test(t, func(t *testing.T) { converge(t, seed) })
	}
}

func converge(t *testing.T, seed uint64) {
	const blobs, nodes = 10, 5
	rng := rand.New(rand.NewPCG(seed, 3))
	n := newNet()
	names := []string{"10.0.0.1:7", "10.0.0.2:7", "10.0.0.3:7"}
	servers, stops := map[string]*server{}, map[string]func(){}
	start := func(name string) {
		stops[name] = n.serve(t, name, func(c *Config) {
			c.onServer = func(s *server) { servers[name] = s }
		})
		synctest.Wait()
	}
	for _, name := range names {
		start(name)
	}
	var mu sync.Mutex
	ring3 := names
	lookup := func(context.Context, string) ([]string, error) {
		mu.Lock()
		defer mu.Unlock()
		var hosts []string
		for _, name := range ring3 {
			hosts = append(hosts, strings.TrimSuffix(name, ":7"))
		}
		return hosts, nil
	}
	type said struct {
		state       tracker.State
		want, lease bool
	}
	agents := make([]*agent, nodes)
	truth := make([][blobs]said, nodes)
	for i := range agents {
		agents[i] = newAgent(t, fmt.Sprintf("n%d", i))
		if i == 0 {
			agents[i].lookup = (*tracker.Client).NotHere // an origin
		}
		agents[i].run(tracker.Config{Trackers: []string{"dns+x:7"}, Dial: n.Dial, LookupHost: lookup})
	}
	for range 250 {
		i, b := rng.IntN(nodes), rng.IntN(blobs)
		a, id, s := agents[i].c, blobID(b), &truth[i][b]
		switch rng.IntN(12) {
		case 0, 1:
			s.state = tracker.State(rng.IntN(3))
			a.Announce(id, s.state)
		case 2, 3:
			s.want = true
			a.Want(id, tracker.Want{Waiting: rng.IntN(2) > 0})
		case 4:
			s.want = false
			a.Unwant(id)
		case 5:
			s.lease = true
			a.LeaseProgress(id, rng.Int64N(1<<20), "")
		case 6, 7:
			s.lease = false
			a.LeaseDone(id, []error{errors.New("503"), context.Canceled}[rng.IntN(2)])
		case 8:
			name := names[rng.IntN(len(names))]
			if stop := stops[name]; stop != nil {
				stop()
				stops[name] = nil
			} else {
				start(name)
			}
		case 9:
			mu.Lock()
			ring3 = slices.Clone(names)
			rng.Shuffle(3, func(i, j int) { ring3[i], ring3[j] = ring3[j], ring3[i] })
			ring3 = ring3[:1+rng.IntN(3)]
			mu.Unlock()
		case 10:
			time.Sleep(time.Duration(rng.IntN(20_000)) * time.Millisecond)
		case 11:
			synctest.Wait()
		}
	}
	for _, name := range names {
		if stops[name] == nil {
			start(name)
		}
	}
	time.Sleep(90 * time.Second)
	// Downloads end, and leases that nobody used are given back.
	for i := range agents {
		for b := range blobs {
			agents[i].c.LeaseDone(blobID(b), context.Canceled)
		}
	}
	time.Sleep(time.Second)
	synctest.Wait()
	mu.Lock()
	final := slices.Sorted(slices.Values(ring3))
	mu.Unlock()
	for _, name := range names {
		srv := servers[name]
		srv.mu.Lock()
		for b := range blobs {
			var want []string
			owner := slices.Contains(final, name) && slices.Contains(ring.Top(final, blobID(b).Digest(), 2), name)
			for i := range agents {
				s := truth[i][b]
				if owner && (s.state != tracker.StateGone || s.want) {
					want = append(want, describe(state.Member{
						Node:     agents[i].name,
						Complete: s.state == tracker.StateComplete, Partial: s.state == tracker.StatePartial, Want: s.want,
					}))
				}
			}
			var got []string
			for _, m := range srv.machine.Members(blobID(b)) {
				m.Lease = false // of which there may be one
				got = append(got, describe(m))
			}
			slices.Sort(got)
			if !slices.Equal(got, want) {
				t.Errorf("seed %d: %s (of %v) knows of blob %d: %v, want %v", seed, name, final, b, got, want)
			}
		}
		srv.mu.Unlock()
	}
	for _, a := range agents {
		a.mu.Lock()
		for b := range blobs {
			if id := blobID(b); truth[slices.Index(agents, a)][b].want &&
				(a.last(id) == 0 || a.last(id) == tracker.Wait || a.last(id) == tracker.Unreachable) {
				t.Errorf("seed %d: %s is left with %v on blob %d", seed, a.name, a.last(id), b)
			}
		}
		a.mu.Unlock()
	}
	for _, a := range agents {
		a.stop()
	}
	for _, stop := range stops {
		stop()
	}
}

func describe(m state.Member) string {
	s := m.Node
	for _, f := range []struct {
		on   bool
		text string
	}{{m.Complete, " complete"}, {m.Partial, " partial"}, {m.Want, " wants"}, {m.Lease, " leases"}} {
		if f.on {
			s += f.text
		}
	}
	return s
}
