package state

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/capelin-io/capelin/control/trackerpb"
	"github.com/capelin-io/capelin/swarm/piece"
)

// TestChaos throws random events at a tracker, whose invariants are checked
// after each (world.step), and checks that at the end nothing is left; and that
// equal seeds give equal actions.
func TestChaos(t *testing.T) {
	for seed := range uint64(20) {
		first := chaos(t, seed)
		if second := chaos(t, seed); first != second {
			t.Fatalf("seed %d: two runs differ", seed)
		}
	}
}

func chaos(t *testing.T, seed uint64) string {
	rng := rand.New(rand.NewPCG(seed, 1))
	w := newWorld(t, Config{
		Warmup: time.Second, Enough: 3, Sample: 4, MinComplete: 2, OutsideZone: 1,
		MaxBlobs: 7, MaxWants: 4, MaxEntries: 40, MaxSwarms: 9, NobodyFor: 2 * time.Second, MaxHolders: 2,
	})
	live := map[string]Stream{}
	origin := map[Stream]bool{}
	next := Stream(0)
	told := map[string]map[string]bool{} // what each stream's end was told last, by blob
	for range 600 {
		node := fmt.Sprintf("n%d", rng.IntN(12))
		blob := trackerpb.FromID(testID(string(rune('A' + rng.IntN(12)))))
		s, ok := live[node]
		var acts []Action
		switch n := rng.IntN(24); {
		case !ok || n == 0:
			next++
			live[node] = next
			w.nodes[next] = node
			role := trackerpb.Role_ROLE_AGENT
			if rng.IntN(6) == 0 {
				role = trackerpb.Role_ROLE_ORIGIN
				origin[next] = true
			}
			told[fmt.Sprint(next)] = map[string]bool{}
			acts = w.step(EvOpen{Stream: next, Hello: hello(node, string(rune('x'+rng.IntN(2))), role)})
		case n == 1:
			delete(live, node)
			acts = w.step(EvClosed{s})
		case n < 5:
			acts = w.advance(time.Duration(rng.IntN(2000)) * time.Millisecond)
		default:
			b := &trackerpb.FromAgent{}
			switch n {
			case 5, 6, 7:
				a := &trackerpb.Announce{Blob: blob, State: trackerpb.State(rng.IntN(3))}
				if a.State == trackerpb.State_STATE_COMPLETE && rng.IntN(2) == 0 {
					a.SumsHash = make([]byte, 32)
					a.SumsHash[0] = byte(rng.IntN(3))
				}
				b.Announces = append(b.Announces, a)
			case 8, 9, 10, 11, 12:
				want := &trackerpb.Want{Blob: blob, Waiting: rng.IntN(3) > 0, Grant: rng.IntN(4) > 0}
				if rng.IntN(3) == 0 {
					for range 1 + rng.IntN(6) {
						want.Lost = append(want.Lost, fmt.Sprintf("n%d", rng.IntN(12)))
					}
				}
				want.Slow = rng.IntN(3) == 0
				b.Wants = append(b.Wants, want)
			case 13:
				b.Unwants = append(b.Unwants, blob)
			case 14, 15, 16:
				b.Progress = append(b.Progress, &trackerpb.LeaseProgress{Blob: blob, Bytes: rng.Int64N(1 << 20)})
			case 17, 18:
				b.Done = append(b.Done, &trackerpb.LeaseDone{Blob: blob, Outcome: trackerpb.Outcome(1 + rng.IntN(3))})
			case 19:
				h := make([]byte, 32)
				h[0] = byte(rng.IntN(3))
				b.Disproved = append(b.Disproved, &trackerpb.Disproved{Blob: blob, SumsHash: h})
			case 20, 21:
				b.NotHere = append(b.NotHere, blob)
			case 22, 23:
				id, _ := blob.ID()
				o := &trackerpb.Offer{}
				o.Add(id, &[32]byte{byte(rng.IntN(3))})
				b.Offers = append(b.Offers, o)
			}
			acts = w.step(EvBatch{Stream: s, Batch: b})
		}
		for _, act := range acts {
			m, ok := act.(ActSend)
			if !ok {
				continue
			}
			if len(m.Message.Lookups) > 0 && !origin[m.Stream] {
				t.Fatalf("%s, which is no origin, is asked", w.nodes[m.Stream])
			}
			known := told[fmt.Sprint(m.Stream)]
			for _, p := range m.Message.Peers {
				for _, g := range p.Gone {
					if !known[blobName(p.Blob)+" "+g] {
						t.Fatalf("%s is told that %s left %s, which it never heard of", w.nodes[m.Stream], g, blobName(p.Blob))
					}
				}
				for _, q := range p.Peers {
					known[blobName(p.Blob)+" "+q.Node] = true
					if q.Node == w.nodes[m.Stream] {
						t.Fatalf("%s is told of itself", q.Node)
					}
				}
			}
		}
	}
	for s := range next + 1 { // those closed already are ignored
		w.step(EvClosed{s})
	}
	w.advance(time.Minute)
	if st := w.m.Stats(); st.Streams+st.Swarms+st.Entries+st.Wants+st.Leases != 0 || len(w.m.due) != 0 {
		t.Fatalf("seed %d: left over: %+v", seed, st)
	}
	return w.out.String()
}

// TestEveryWaitingAgentProceeds: whatever upstream and holders do, a waiting
// agent is never left with nothing but Wait or a Sources that is not true.
func TestEveryWaitingAgentProceeds(t *testing.T) {
	for seed := range uint64(30) {
		rng := rand.New(rand.NewPCG(seed, 2))
		w := newWorld(t, Config{Warmup: -1})
		x := testID("X")
		b := trackerpb.FromID(x)
		waiting := map[Stream]bool{}
		// Origins that never answer, promise and take it back, have it not, or break
		// their streams must not keep anybody from upstream.
		for s := Stream(11); s <= 13; s++ {
			w.nodes[s] = fmt.Sprint(s)
			w.step(EvOpen{Stream: s, Hello: hello(fmt.Sprint(s), "", trackerpb.Role_ROLE_ORIGIN)})
		}
		origin := func(s Stream) {
			switch rng.IntN(20) {
			case 0:
				batch := &trackerpb.FromAgent{Announces: []*trackerpb.Announce{{Blob: b, State: trackerpb.State_STATE_PARTIAL}}}
				w.step(EvBatch{Stream: s, Batch: batch})
				w.advance(100 * time.Millisecond)
				w.step(EvBatch{Stream: s, Batch: &trackerpb.FromAgent{Announces: []*trackerpb.Announce{{Blob: b}}}})
			case 1:
				w.step(EvBatch{Stream: s, Batch: &trackerpb.FromAgent{NotHere: []*trackerpb.Blob{b}}})
			case 2:
				w.step(EvClosed{s})
			}
		}
		for s := Stream(1); s <= 10; s++ {
			w.nodes[s] = fmt.Sprint(s)
			w.step(EvOpen{Stream: s, Hello: hello(fmt.Sprint(s), "", trackerpb.Role_ROLE_AGENT)})
			w.step(EvBatch{Stream: s, Batch: &trackerpb.FromAgent{Wants: []*trackerpb.Want{{Blob: b, Waiting: true, Grant: true}}}})
			waiting[s] = true
		}
		// Each holder fails in one way or another: never starts, stalls, is refused,
		// dies. All ten must have had their turn, or have been told Nobody, before long.
		for range 1000 {
			if len(waiting) == 0 {
				break
			}
			sw := w.m.find(x)
			if sw == nil || sw.a == nil {
				t.Fatalf("seed %d: forgotten while %v wait", seed, waiting)
			}
			for s := range waiting {
				if wt := sw.a.byAgent[w.m.byStream[s]]; wt.kind == trackerpb.Verdict_KIND_NOBODY {
					delete(waiting, s)
				}
			}
			for _, l := range append([]lease(nil), sw.a.leases...) {
				if !waiting[l.agent.stream] {
					continue
				}
				s := l.agent.stream
				delete(waiting, s)
				switch rng.IntN(5) {
				case 0: // never starts
				case 1:
					w.step(EvBatch{Stream: s, Batch: &trackerpb.FromAgent{Progress: []*trackerpb.LeaseProgress{{Blob: b, Bytes: 10}}}})
				case 2:
					batch := &trackerpb.FromAgent{Done: []*trackerpb.LeaseDone{{Blob: b, Outcome: trackerpb.Outcome_OUTCOME_FAILED}}}
					w.step(EvBatch{Stream: s, Batch: batch})
				case 3:
					batch := &trackerpb.FromAgent{Done: []*trackerpb.LeaseDone{{Blob: b, Outcome: trackerpb.Outcome_OUTCOME_CANCELLED}}}
					w.step(EvBatch{Stream: s, Batch: batch})
				case 4:
					w.step(EvClosed{s})
				}
			}
			origin(Stream(11 + rng.IntN(3)))
			w.advance(100 * time.Millisecond)
		}
		if len(waiting) > 0 {
			t.Fatalf("seed %d: %v still wait after %v", seed, waiting, w.now.Sub(w.start))
		}
		if d := w.now.Sub(w.start); d > 40*time.Second {
			t.Errorf("seed %d: it took %v", seed, d)
		}
	}
}

// fillTracker connects agents that announce blobs each, of which the first
// shared ones are everybody's, and returns the number of announcements.
func fillTracker(m *Tracker, now time.Time, agents, blobs, shared int) int {
	n := 0
	for a := range agents {
		h := hello(fmt.Sprintf("node-%05d", a), fmt.Sprintf("rack-%d", a/40), trackerpb.Role_ROLE_AGENT)
		m.Step(now, EvOpen{Stream: Stream(a + 1), Hello: h})
		for at := 0; at < blobs; at += 500 {
			b := &trackerpb.FromAgent{Inventory: []*trackerpb.Inventory{{}}}
			for i := at; i < min(at+500, blobs); i++ {
				id := piece.ID{Alg: piece.SHA256, Size: 1 << 20}
				k := uint64(i)
				if i >= shared {
					k = uint64(a)<<20 | uint64(i)
				}
				for j := range 8 {
					id.Sum[j] = byte(k >> (8 * j))
				}
				b.Inventory[0].Add(id, nil)
				n++
			}
			m.Step(now, EvBatch{Stream: Stream(a + 1), Batch: b})
		}
	}
	return n
}

// BenchmarkRefill is a restarted tracker hearing everything anew, and what that
// costs in memory.
func BenchmarkRefill(b *testing.B) {
	for _, bb := range []struct {
		name                   string
		agents, blobs, shared  int
		enough, maxE, maxBlobs int
	}{
		{"15000x1000/all-shared", 15000, 1000, 1000, 0, 0, 0},
		{"15000x1000/all-shared-no-enough", 15000, 1000, 1000, 1 << 30, 0, 0},
		{"1000x1000/none-shared", 1000, 1000, 0, 0, 0, 0},
	} {
		b.Run(bb.name, func(b *testing.B) {
			now := time.Unix(1e6, 0)
			for b.Loop() {
				var before, after runtime.MemStats
				runtime.GC()
				runtime.ReadMemStats(&before)
				m := New(Config{Enough: bb.enough}, 1, now)
				start := time.Now()
				n := fillTracker(m, now, bb.agents, bb.blobs, bb.shared)
				el := time.Since(start)
				runtime.GC()
				runtime.ReadMemStats(&after)
				st := m.Stats()
				b.ReportMetric(float64(n)/el.Seconds(), "announces/s")
				b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/float64(st.Entries), "B/entry")
				b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/1e6, "MB")
				b.ReportMetric(float64(st.Entries), "entries")
			}
		})
	}
}

// threadTime is this thread's CPU time, which other processes do not disturb.
func threadTime(b *testing.B) time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		b.Fatal(err)
	}
	return time.Duration(ts.Nano())
}

// BenchmarkFanOut is n agents wanting one blob at once, fetching it, and
// finishing: tracker time per agent, all pushes included.
func BenchmarkFanOut(b *testing.B) {
	for _, n := range []int{300, 3000, 15000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			blob := trackerpb.FromID(testID("X"))
			runtime.LockOSThread() // for threadTime
			defer runtime.UnlockOSThread()
			for b.Loop() {
				now := time.Unix(1e6, 0)
				m := New(Config{Warmup: -1}, 1, now)
				for a := range n {
					h := hello(fmt.Sprintf("node-%05d", a), fmt.Sprintf("rack-%d", a/40), trackerpb.Role_ROLE_AGENT)
					m.Step(now, EvOpen{Stream: Stream(a + 1), Hello: h})
				}
				var longest time.Duration
				step := func(ev Event) {
					t0 := threadTime(b)
					m.Step(now, ev)
					longest = max(longest, threadTime(b)-t0)
				}
				start := threadTime(b)
				tick := func(d time.Duration) {
					now = now.Add(d)
					if dl := m.Deadline(); !dl.IsZero() && !dl.After(now) {
						step(EvTick{})
					}
				}
				for a := range n {
					step(EvBatch{Stream: Stream(a + 1), Batch: &trackerpb.FromAgent{Wants: []*trackerpb.Want{{Blob: blob, Waiting: true, Grant: true}}}})
					tick(2 * time.Second / time.Duration(n))
				}
				for a := range n {
					batch := &trackerpb.FromAgent{Announces: []*trackerpb.Announce{{Blob: blob, State: trackerpb.State_STATE_COMPLETE}}}
					step(EvBatch{Stream: Stream(a + 1), Batch: batch})
					tick(2 * time.Second / time.Duration(n))
				}
				for a := range n {
					step(EvBatch{Stream: Stream(a + 1), Batch: &trackerpb.FromAgent{Unwants: []*trackerpb.Blob{blob}}})
					tick(2 * time.Second / time.Duration(n))
				}
				b.ReportMetric(float64((threadTime(b)-start).Microseconds())/float64(n), "µs/agent")
				b.ReportMetric(longest.Seconds()*1e3, "ms-longest-step")
				b.ReportMetric(float64(m.Stats().PeersTold)/float64(n), "peers/agent")
			}
		})
	}
}
