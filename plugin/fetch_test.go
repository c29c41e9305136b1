package plugin

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"

	"github.com/capelin-io/capelin/swarm"
	"github.com/capelin-io/capelin/swarm/piece"
)

// world is everything around fetches, in a synctest bubble.
type world struct {
	*testing.T
	blobs    *fakeBlobs
	peers    *fakePeers
	finder   *fakeFinder
	fs       *fetches
	id       piece.ID
	data     []byte
	start    time.Time
	outcomes []outcome
	cancel   context.CancelFunc
}

func bubble(t *testing.T, change func(*fetchConfig), f func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		w := &world{T: t, blobs: newFakeBlobs(), peers: newFakePeers(), start: time.Now(), cancel: cancel}
		var mu sync.Mutex
		cfg := fetchConfig{
			Find: 200 * time.Millisecond, Stall: 5 * time.Second, Prefetch: time.Minute, MaxPrefetch: 4,
			OnAnswer: func(o outcome, _ time.Duration) {
				mu.Lock()
				defer mu.Unlock()
				w.outcomes = append(w.outcomes, o)
			},
		}
		if change != nil {
			change(&cfg)
		}
		w.id, w.data = testBlob(t, 10<<16+5, 1) // 11 pieces
		w.fs = newFetches(ctx, cfg, w.blobs)
		w.finder = newFakeFinder(w.fs)
		w.fs.connect(w.peers, w.finder)
		f(w)
		cancel()
		w.fs.wait()
		if n := w.blobs.get(w.id).opened; n != 0 {
			t.Errorf("%d handles of the blob are left", n)
		}
	})
}

type got struct {
	answer
	after time.Duration
	f     *fetch
}

// wait starts a session that waits; its result comes on the channel.
func (w *world) wait(ctx context.Context) <-chan got {
	ch := make(chan got, 1)
	f := w.fs.acquire(w.id)
	go func() {
		a, err := f.await(ctx, false)
		a.err = err
		ch <- got{a, time.Since(w.start), f}
	}()
	return ch
}

func (w *world) want(g got, offset int64, after time.Duration) {
	w.Helper()
	if g.err != nil || g.offset != offset || g.after != after {
		w.Errorf("answer %d (%v) after %v, want %d after %v", g.offset, g.err, g.after, offset, after)
	}
}

func (w *world) wantEvents(want ...string) {
	w.Helper()
	synctest.Wait()
	if got := w.finder.events(); !slices.Equal(got, want) {
		w.Errorf("the trackers heard %s; want %s", strings.Join(got, ", "), strings.Join(want, ", "))
	}
}

func TestFetchNobody(t *testing.T) {
	bubble(t, nil, func(w *world) {
		w.finder.answers[w.id] = verdictNobody
		g := <-w.wait(w.Context())
		w.want(g, 0, 0)
		g.f.endWriting(false, false, errNotWritten)
		g.f.release()
		w.wantEvents("want true", "unwant")
	})
}

func TestFetchSilentTracker(t *testing.T) {
	bubble(t, nil, func(w *world) {
		g := <-w.wait(w.Context())
		w.want(g, 0, 200*time.Millisecond)
		g.f.endWriting(false, false, errNotWritten)
		g.f.release()
	})
}

func TestFetchWithoutTrackers(t *testing.T) {
	bubble(t, nil, func(w *world) {
		w.fs.connect(w.peers, nil)
		g := <-w.wait(w.Context())
		w.want(g, 0, 0)
		g.f.endWriting(false, false, errNotWritten)
		g.f.release()
	})
}

func TestFetchComplete(t *testing.T) {
	bubble(t, nil, func(w *world) {
		w.finder.answers[w.id] = verdictSources
		ch := w.wait(w.Context())
		w.fs.shareTold(w.id, 3) // perhaps before the swarm is joined
		synctest.Wait()
		if as, ok := w.peers.as(w.id); !ok || !as.want {
			t.Fatalf("joined %v %t", as, ok)
		}
		w.fs.peersFound(w.id, []swarm.PeerInfo{{Node: "a"}})
		for i := range w.id.Pieces() {
			time.Sleep(4 * time.Second) // 40 s in all, with progress
			w.blobs.deliver(w.id, w.data, i)
		}
		g := <-ch
		w.want(g, w.id.Size, 44*time.Second)
		if len(w.peers.named[w.id]) != 1 {
			t.Error("the swarm was not told of the tracker's peer")
		}
		if w.peers.shares[w.id] != 3 {
			t.Error("the swarm was not told of its share")
		}
		b, err := g.f.open(w.Context())
		if err != nil || b.Publish(w.Context()) != nil {
			t.Error("cannot publish")
		}
		g.f.release()
		w.wantEvents("want true", "partial", "unwant")
		if !w.peers.proven[w.id] {
			t.Error("the swarm was not told that the blob is whole")
		}
	})
}

func TestFetchStalls(t *testing.T) {
	bubble(t, nil, func(w *world) {
		w.finder.answers[w.id] = verdictSources
		ch := w.wait(w.Context())
		time.Sleep(2 * time.Second)
		w.blobs.deliver(w.id, w.data, 0, 1, 5)
		synctest.Wait()
		if st := w.fs.status(); len(st) != 1 || st[0].Verified != 3<<16 || st[0].Waiting != 1 {
			w.Errorf("status: %+v", st)
		}
		g := <-ch
		w.want(g, 2<<16, 7*time.Second)
		g.f.endWriting(false, false, errNotWritten)
		g.f.release()
		w.wantEvents("want true", "partial", "unwant", "gone")
		if _, ok := w.peers.as(w.id); ok {
			t.Error("still joined")
		}
	})
}

// A lease is taken by one waiting session; the others take pieces from it.
func TestFetchLease(t *testing.T) {
	bubble(t, nil, func(w *world) {
		w.finder.answers[w.id] = verdictLease
		first := w.wait(w.Context())
		g := <-first
		w.want(g, 0, 0)
		if !g.lease {
			t.Fatal("no lease")
		}
		second := w.wait(w.Context())
		synctest.Wait()
		b, _ := g.f.open(w.Context())
		app, _ := b.Append(0)
		for off := 0; off < len(w.data); off += 1 << 16 {
			time.Sleep(3 * time.Second)
			n, _ := app.Write(w.data[off:min(off+1<<16, len(w.data))])
			g.f.wrote(n, int64(off+n))
		}
		if err := app.Finish(w.Context()); err != nil {
			t.Fatal(err)
		}
		g.f.endWriting(true, true, nil)
		g2 := <-second
		w.want(g2, w.id.Size, 33*time.Second)
		g.f.release()
		g2.f.release()
		synctest.Wait()
		ev := w.finder.events()
		if !slices.Contains(ev, "progress") {
			t.Error("the trackers heard of no progress")
		}
		ev = slices.DeleteFunc(ev, func(s string) bool { return s == "progress" })
		if want := []string{"want true", "partial", "done true", "unwant"}; !slices.Equal(ev, want) {
			t.Errorf("the trackers heard %v; want %v", ev, want)
		}
	})
}

// The lease holder fails; the session that waits asks again and gets the lease.
func TestFetchLeaseMoves(t *testing.T) {
	bubble(t, nil, func(w *world) {
		w.finder.answers[w.id] = verdictLease
		g := <-w.wait(w.Context())
		second := w.wait(w.Context())
		time.Sleep(time.Second)
		g.f.endWriting(true, false, errNotWritten)
		g.f.release()
		g2 := <-second
		w.want(g2, 0, time.Second)
		if !g2.lease {
			t.Error("no lease for the second")
		}
		g2.f.endWriting(true, false, errNotWritten)
		g2.f.release()
		w.wantEvents("want true", "done false", "want true", "done false", "unwant")
	})
}

// A lease that comes when nobody waits goes back.
func TestFetchLeaseTooLate(t *testing.T) {
	bubble(t, nil, func(w *world) {
		ctx, cancel := context.WithCancel(w.Context())
		ch := w.wait(ctx)
		time.Sleep(100 * time.Millisecond)
		cancel()
		g := <-ch
		if !errors.Is(g.err, context.Canceled) {
			t.Errorf("cancelled: %v", g.err)
		}
		w.finder.tell(w.id, verdictLease)
		g.f.release()
		synctest.Wait()
		w.finder.tell(w.id, verdictLease) // and when the fetch is gone
		if n := w.fs.count(); n != 0 {
			t.Errorf("%d fetches left", n)
		}
		ev := w.finder.events()
		if n := len(slices.DeleteFunc(slices.Clone(ev), func(s string) bool { return s != "done false" })); n == 0 {
			t.Errorf("the lease did not go back: %v", ev)
		}
		if !slices.Equal(w.outcomes, []outcome{outcomeGone}) {
			t.Errorf("outcomes %v", w.outcomes)
		}
	})
}

func TestFetchSourceGoes(t *testing.T) {
	bubble(t, nil, func(w *world) {
		w.finder.answers[w.id] = verdictSources
		ch := w.wait(w.Context())
		time.Sleep(time.Second)
		w.finder.tell(w.id, verdictNobody)
		g := <-ch
		w.want(g, 0, time.Second)
		g.f.endWriting(false, false, errNotWritten)
		g.f.release()
	})
}

// «Nobody», which answers the Want of a prefetch, crosses with the Want of a
// session that waits, and must not send it to the registry: the session's own
// answer may be a source.
func TestFetchAnswersCross(t *testing.T) {
	bubble(t, nil, func(w *world) {
		if !w.fs.prefetch(w.id, 0) {
			t.Fatal("not prefetched")
		}
		synctest.Wait()
		w.finder.mu.Lock()
		old := w.finder.asks[w.id]
		w.finder.mu.Unlock()
		ch := w.wait(w.Context())
		synctest.Wait()
		w.fs.verdict(w.id, old, verdictNobody)
		synctest.Wait()
		w.finder.tell(w.id, verdictSources)
		time.Sleep(time.Second)
		w.finder.tell(w.id, verdictNobody)
		g := <-ch
		w.want(g, 0, time.Second)
		g.f.endWriting(false, false, errNotWritten)
		g.f.release()
	})
}

// A session begins to wait just after the fetch has looked who waits, and before it
// answers them: «nobody», which the trackers said of a prefetch, is no answer to it.
func TestFetchWaiterComesInBetween(t *testing.T) {
	bubble(t, nil, func(w *world) {
		if !w.fs.prefetch(w.id, 0) {
			t.Fatal("not prefetched")
		}
		synctest.Wait()
		w.finder.tell(w.id, verdictNobody)
		synctest.Wait()
		var ch <-chan got
		w.finder.partial = func() {
			ch = w.wait(w.Context())
			for w.fs.status()[0].Waiting == 0 {
				time.Sleep(time.Millisecond)
			}
		}
		w.blobs.deliver(w.id, w.data, 1)
		synctest.Wait()
		time.Sleep(100 * time.Millisecond)
		w.finder.tell(w.id, verdictSources)
		time.Sleep(time.Second)
		w.finder.tell(w.id, verdictNobody)
		g := <-ch
		if g.after < time.Second {
			t.Errorf("the session was answered after %v", g.after)
		}
		g.f.endWriting(false, false, errNotWritten)
		g.f.release()
	})
}

func TestFetchSwarmFails(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want error
	}{{errors.New("sums disproved"), nil}, {errFull, errdefs.ErrResourceExhausted}} {
		bubble(t, nil, func(w *world) {
			w.finder.answers[w.id] = verdictSources
			ch := w.wait(w.Context())
			time.Sleep(time.Second)
			w.peers.fail(w.id, tt.err)
			g := <-ch
			if !errors.Is(g.err, tt.want) || g.after != time.Second {
				t.Errorf("%v: %+v", tt.err, g)
			}
			if g.err == nil {
				g.f.endWriting(false, false, errNotWritten)
			}
			g.f.release()
			synctest.Wait()
			if dropped := w.blobs.get(w.id).dropped > 0; dropped != (tt.want != nil) {
				t.Errorf("%v: dropped %t", tt.err, dropped)
			}
		})
	}
}

func TestFetchCannotOpen(t *testing.T) {
	bubble(t, nil, func(w *world) {
		w.blobs.openErr = errFull
		g := <-w.wait(w.Context())
		if !errors.Is(g.err, errFull) {
			t.Errorf("%+v", g)
		}
		g.f.release()
		synctest.Wait()
		if w.fs.count() != 0 {
			t.Error("the fetch lives on")
		}
	})
}

func TestFetchDrain(t *testing.T) {
	bubble(t, nil, func(w *world) {
		w.finder.answers[w.id] = verdictSources
		ch := w.wait(w.Context())
		time.Sleep(time.Second)
		w.blobs.deliver(w.id, w.data, 0)
		w.fs.drain()
		g := <-ch
		w.want(g, 1<<16, time.Second)
		g2 := <-w.wait(w.Context())
		w.want(g2, 1<<16, time.Second)
		for _, g := range []got{g, g2} {
			g.f.endWriting(false, false, errNotWritten)
			g.f.release()
		}
	})
}

func TestFetchNoRange(t *testing.T) {
	bubble(t, nil, func(w *world) {
		w.finder.answers[w.id] = verdictNobody
		w.blobs.deliver(w.id, w.data, 0)
		w.fs.noRange.Add(w.id, struct{}{})
		g := <-w.wait(w.Context())
		w.want(g, 0, 0)
		g.f.endWriting(false, false, errNotWritten)
		g.f.release()
	})
}

func TestPrefetch(t *testing.T) {
	bubble(t, nil, func(w *world) {
		w.finder.answers[w.id] = verdictLease // which a prefetch must not get
		w.fs.prefetch(w.id, 3)
		synctest.Wait()
		as, ok := w.peers.as(w.id)
		if !ok || !as.want || as.priority < 3 {
			t.Fatalf("joined %+v %t", as, ok)
		}
		time.Sleep(30 * time.Second)
		w.fs.prolong(w.id)
		time.Sleep(59 * time.Second)
		if w.fs.count() != 1 {
			t.Fatal("abandoned too early")
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if w.fs.count() != 0 {
			t.Error("not abandoned")
		}
		w.wantEvents("want false", "unwant")

		// A session that opens it asks as one that waits.
		w.fs.prefetch(w.id, 3)
		synctest.Wait()
		w.start = time.Now()
		g := <-w.wait(w.Context())
		w.want(g, 0, 0)
		if !g.lease {
			t.Error("no lease")
		}
		g.f.endWriting(true, false, errNotWritten)
		g.f.release()
	})
}

func TestPrefetchIsBounded(t *testing.T) {
	bubble(t, nil, func(w *world) {
		for i := range 20 {
			id, _ := testBlob(t, 1000+i, 9)
			w.fs.prefetch(id, i)
		}
		synctest.Wait()
		if n := w.fs.count(); n != 4 {
			t.Errorf("%d prefetches, want 4", n)
		}
	})
}
