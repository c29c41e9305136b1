package fetch_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"

	"github.com/capelin-io/capelin/control/tracker"
	"github.com/capelin-io/capelin/plugin/fetch"
	"github.com/capelin-io/capelin/plugin/fetch/fetchtest"
	"github.com/capelin-io/capelin/swarm"
	"github.com/capelin-io/capelin/swarm/piece"
)

func TestFetchNobody(t *testing.T) {
	fetchtest.Bubble(t, nil, func(w *fetchtest.World) {
		w.Finder.Answer(w.ID, tracker.Nobody)
		g := <-w.Wait(w.Context())
		w.Want(g, 0, 0)
		g.Session.End(fetch.ErrNotWritten)
		g.Session.Close()
		w.WantEvents("want true", "unwant")
	})
}

func TestFetchSilentTracker(t *testing.T) {
	fetchtest.Bubble(t, nil, func(w *fetchtest.World) {
		g := <-w.Wait(w.Context())
		w.Want(g, 0, 200*time.Millisecond)
		g.Session.End(fetch.ErrNotWritten)
		g.Session.Close()
	})
}

func TestFetchWithoutTrackers(t *testing.T) {
	fetchtest.Bubble(t, nil, func(w *fetchtest.World) {
		w.Fetches.Connect(w.Peers, nil)
		g := <-w.Wait(w.Context())
		w.Want(g, 0, 0)
		g.Session.End(fetch.ErrNotWritten)
		g.Session.Close()
	})
}

func TestFetchComplete(t *testing.T) {
	fetchtest.Bubble(t, nil, func(w *fetchtest.World) {
		w.Finder.Answer(w.ID, tracker.Sources)
		ch := w.Wait(w.Context())
		w.Fetches.ShareTold(w.ID, 3) // perhaps before the swarm is joined
		synctest.Wait()
		if as, ok := w.Peers.As(w.ID); !ok || !as.Want {
			t.Fatalf("joined %v %t", as, ok)
		}
		w.Fetches.PeersFound(w.ID, []swarm.PeerInfo{{Node: "a"}})
		for i := range w.ID.Pieces() {
			time.Sleep(4 * time.Second) // 40 s in all, with progress
			w.Blobs.Deliver(w.ID, w.Data, i)
		}
		g := <-ch
		w.Want(g, w.ID.Size, 44*time.Second)
		named, share, _ := w.Peers.Told(w.ID)
		if len(named) != 1 {
			t.Error("the swarm was not told of the tracker's peer")
		}
		if share != 3 {
			t.Error("the swarm was not told of its share")
		}
		b, err := g.Session.Blob(w.Context())
		if err != nil || b.Publish(w.Context()) != nil {
			t.Error("cannot publish")
		}
		g.Session.Close()
		w.WantEvents("want true", "partial", "unwant")
		if _, _, proven := w.Peers.Told(w.ID); !proven {
			t.Error("the swarm was not told that the blob is whole")
		}
	})
}

func TestFetchStalls(t *testing.T) {
	fetchtest.Bubble(t, nil, func(w *fetchtest.World) {
		w.Finder.Answer(w.ID, tracker.Sources)
		ch := w.Wait(w.Context())
		time.Sleep(2 * time.Second)
		w.Blobs.Deliver(w.ID, w.Data, 0, 1, 5)
		synctest.Wait()
		if st := w.Fetches.Status(); len(st) != 1 || st[0].Verified != 3<<16 || st[0].Waiting != 1 {
			w.Errorf("status: %+v", st)
		}
		g := <-ch
		w.Want(g, 2<<16, 7*time.Second)
		g.Session.End(fetch.ErrNotWritten)
		g.Session.Close()
		w.WantEvents("want true", "partial", "unwant", "gone")
		if _, ok := w.Peers.As(w.ID); ok {
			t.Error("still joined")
		}
	})
}

// A lease is taken by one waiting session; the others take pieces from it.
func TestFetchLease(t *testing.T) {
	fetchtest.Bubble(t, nil, func(w *fetchtest.World) {
		w.Finder.Answer(w.ID, tracker.Lease)
		first := w.Wait(w.Context())
		g := <-first
		w.Want(g, 0, 0)
		if !g.Lease {
			t.Fatal("no lease")
		}
		second := w.Wait(w.Context())
		synctest.Wait()
		b, _ := g.Session.Blob(w.Context())
		app, _ := b.Append(w.Context(), 0)
		for off := 0; off < len(w.Data); off += 1 << 16 {
			time.Sleep(3 * time.Second)
			n, _ := app.Write(w.Data[off:min(off+1<<16, len(w.Data))])
			g.Session.Wrote(n, int64(off+n))
		}
		if err := app.Finish(w.Context()); err != nil {
			t.Fatal(err)
		}
		g.Session.End(nil)
		g2 := <-second
		w.Want(g2, w.ID.Size, 33*time.Second)
		g.Session.Close()
		g2.Session.Close()
		synctest.Wait()
		ev := w.Finder.Events()
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
	fetchtest.Bubble(t, nil, func(w *fetchtest.World) {
		w.Finder.Answer(w.ID, tracker.Lease)
		g := <-w.Wait(w.Context())
		second := w.Wait(w.Context())
		time.Sleep(time.Second)
		g.Session.End(fetch.ErrNotWritten)
		g.Session.Close()
		g2 := <-second
		w.Want(g2, 0, time.Second)
		if !g2.Lease {
			t.Error("no lease for the second")
		}
		g2.Session.End(fetch.ErrNotWritten)
		g2.Session.Close()
		w.WantEvents("want true", "done false", "want true", "done false", "unwant")
	})
}

// A lease that comes when nobody waits goes back.
func TestFetchLeaseTooLate(t *testing.T) {
	fetchtest.Bubble(t, nil, func(w *fetchtest.World) {
		ctx, cancel := context.WithCancel(w.Context())
		ch := w.Wait(ctx)
		time.Sleep(100 * time.Millisecond)
		cancel()
		g := <-ch
		if !errors.Is(g.Err, context.Canceled) {
			t.Errorf("cancelled: %v", g.Err)
		}
		w.Finder.Tell(w.ID, tracker.Lease)
		g.Session.Close()
		synctest.Wait()
		w.Finder.Tell(w.ID, tracker.Lease) // and when the fetch is gone
		if n := w.Fetches.Len(); n != 0 {
			t.Errorf("%d fetches left", n)
		}
		ev := w.Finder.Events()
		if n := len(slices.DeleteFunc(slices.Clone(ev), func(s string) bool { return s != "done false" })); n == 0 {
			t.Errorf("the lease did not go back: %v", ev)
		}
		if got := w.Outcomes(); !slices.Equal(got, []fetch.Outcome{fetch.OutcomeGone}) {
			t.Errorf("outcomes %v", got)
		}
	})
}

func TestFetchSourceGoes(t *testing.T) {
	fetchtest.Bubble(t, nil, func(w *fetchtest.World) {
		w.Finder.Answer(w.ID, tracker.Sources)
		ch := w.Wait(w.Context())
		time.Sleep(time.Second)
		w.Finder.Tell(w.ID, tracker.Nobody)
		g := <-ch
		w.Want(g, 0, time.Second)
		g.Session.End(fetch.ErrNotWritten)
		g.Session.Close()
	})
}

// «Nobody», which answers the Want of a prefetch, crosses with the Want of a
// session that waits, and must not send it to the registry: the session's own
// answer may be a source.
func TestFetchAnswersCross(t *testing.T) {
	fetchtest.Bubble(t, nil, func(w *fetchtest.World) {
		w.Fetches.Prefetch(w.ID, 0)
		synctest.Wait()
		old := w.Finder.Tag(w.ID)
		ch := w.Wait(w.Context())
		synctest.Wait()
		w.Fetches.Verdict(w.ID, tracker.Verdict{Kind: tracker.Nobody, Tag: old})
		synctest.Wait()
		w.Finder.Tell(w.ID, tracker.Sources)
		time.Sleep(time.Second)
		w.Finder.Tell(w.ID, tracker.Nobody)
		g := <-ch
		w.Want(g, 0, time.Second)
		g.Session.End(fetch.ErrNotWritten)
		g.Session.Close()
	})
}

// «Nobody», which the trackers said of a prefetch before, is no answer to a session that
// begins to wait.
func TestFetchWaiterComesLater(t *testing.T) {
	fetchtest.Bubble(t, nil, func(w *fetchtest.World) {
		w.Fetches.Prefetch(w.ID, 0)
		synctest.Wait()
		w.Finder.Tell(w.ID, tracker.Nobody)
		synctest.Wait()
		ch := w.Wait(w.Context())
		synctest.Wait()
		time.Sleep(100 * time.Millisecond)
		w.Finder.Tell(w.ID, tracker.Sources)
		time.Sleep(time.Second)
		w.Finder.Tell(w.ID, tracker.Nobody)
		g := <-ch
		if g.After < time.Second {
			t.Errorf("the session was answered after %v", g.After)
		}
		g.Session.End(fetch.ErrNotWritten)
		g.Session.Close()
	})
}

func TestFetchSwarmFails(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want error
	}{{errors.New("sums disproved"), nil}, {fetchtest.ErrFull, errdefs.ErrResourceExhausted}} {
		fetchtest.Bubble(t, nil, func(w *fetchtest.World) {
			w.Finder.Answer(w.ID, tracker.Sources)
			ch := w.Wait(w.Context())
			time.Sleep(time.Second)
			w.Peers.Fail(w.ID, tt.err)
			g := <-ch
			if !errors.Is(g.Err, tt.want) || g.After != time.Second {
				t.Errorf("%v: %+v", tt.err, g)
			}
			if g.Err == nil {
				g.Session.End(fetch.ErrNotWritten)
			}
			g.Session.Close()
			synctest.Wait()
			if dropped := w.Blobs.Get(w.ID).Dropped > 0; dropped != (tt.want != nil) {
				t.Errorf("%v: dropped %t", tt.err, dropped)
			}
		})
	}
}

// The swarm gives a blob up while it is joined otherwise. The end is of what was joined
// before: the fetch goes on, and takes back what it has joined anew.
func TestFetchJoinsAsSwarmFails(t *testing.T) {
	fetchtest.Bubble(t, nil, func(w *fetchtest.World) {
		w.Finder.Answer(w.ID, tracker.Sources)
		w.Fetches.Prefetch(w.ID, 1)
		synctest.Wait()
		joins := 0
		w.Peers.OnJoin(func(id piece.ID) error {
			if joins++; joins == 1 {
				w.Peers.Fail(id, errors.New("sums disproved"))
			}
			return nil
		})
		ctx, cancel := context.WithCancel(w.Context())
		ch := w.Wait(ctx)
		time.Sleep(time.Second)
		if as, ok := w.Peers.As(w.ID); !ok || !as.Want || joins != 1 {
			t.Errorf("joined %d times more, now %+v %t; want once, to take", joins, as, ok)
		}
		select {
		case g := <-ch:
			t.Fatalf("the session was answered: %+v", g)
		default:
		}
		cancel()
		g := <-ch
		w.Fetches.Abandon(w.ID)
		g.Session.Close()
		synctest.Wait()
		w.Fetches.Abandon(w.ID)
		synctest.Wait()
		if ids := w.Peers.Joined(); w.Fetches.Len() != 0 || len(ids) != 0 {
			t.Errorf("%d fetches, and %v is still joined", w.Fetches.Len(), ids)
		}
	})
}

// The end of a blob that is joined anew is heard.
// A blob that cannot be joined anew is left: nobody would hear of its part any more. Where there is no
// room for it the session fails: what containerd downloads would have no room either.
func TestFetchCannotJoin(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want error
	}{{errors.New("too late"), nil}, {fetchtest.ErrFull, errdefs.ErrResourceExhausted}} {
		fetchtest.Bubble(t, nil, func(w *fetchtest.World) {
			w.Finder.Answer(w.ID, tracker.Sources)
			w.Fetches.Prefetch(w.ID, 1)
			synctest.Wait()
			if _, ok := w.Peers.As(w.ID); !ok {
				t.Fatal("the blob is not joined")
			}
			w.Peers.OnJoin(func(piece.ID) error { return tt.err })
			g := <-w.Wait(w.Context())
			if !errors.Is(g.Err, tt.want) {
				t.Errorf("%v: %+v", tt.err, g)
			}
			if _, ok := w.Peers.As(w.ID); ok {
				t.Errorf("%v: the part that was joined before is not left", tt.err)
			}
			g.Session.End(fetch.ErrNotWritten)
			g.Session.Close()
		})
	}
}

func TestFetchSwarmFailsAfterJoins(t *testing.T) {
	fetchtest.Bubble(t, nil, func(w *fetchtest.World) {
		w.Finder.Answer(w.ID, tracker.Sources)
		w.Fetches.Prefetch(w.ID, 1)
		synctest.Wait()
		ch := w.Wait(w.Context()) // which is joined with another priority
		time.Sleep(time.Second)
		w.Peers.Fail(w.ID, errors.New("sums disproved"))
		g := <-ch
		w.Want(g, 0, time.Second)
		g.Session.End(fetch.ErrNotWritten)
		g.Session.Close()
	})
}

// What falls due of one blob costs nothing for the others.
func TestFetchTicksOneByOne(t *testing.T) {
	const blobs = 25 // each polled 4 times a second, at a time of its own
	fetchtest.Bubble(t, func(c *fetch.Config) { c.Find, c.Stall = time.Hour, time.Hour }, func(w *fetchtest.World) {
		ctx, cancel := context.WithCancel(w.Context())
		var waiters sync.WaitGroup
		var ids []piece.ID
		for i := range blobs {
			id, _ := fetchtest.Random(t, 1000+i, 9)
			ids = append(ids, id)
			w.Finder.Answer(id, tracker.Wait)
			w.Peers.Say(id, swarm.BlobStatus{Useful: 1})
			s := w.Fetches.Open(id, fetch.Client{})
			waiters.Go(func() { _, _ = s.Wait(ctx); s.Close() })
			time.Sleep(250 * time.Millisecond / blobs)
		}
		time.Sleep(time.Second)
		looks := func() (n int) {
			for _, id := range ids {
				n += w.Blobs.Get(id).Looks
			}
			return n
		}
		before := looks()
		time.Sleep(10 * time.Second)
		// At each poll the tick, its handle and the swarm's answer have one look each.
		if n, most := looks()-before, blobs*10*(4+1)*3; n == 0 || n > most {
			t.Errorf("%d blobs that nothing happens to were looked at %d times in 10 s, want 1 to %d", blobs, n, most)
		}
		cancel()
		waiters.Wait()
	})
}

func TestFetchCannotOpen(t *testing.T) {
	fetchtest.Bubble(t, nil, func(w *fetchtest.World) {
		w.Blobs.CannotOpen(fetchtest.ErrFull)
		g := <-w.Wait(w.Context())
		if !errors.Is(g.Err, fetchtest.ErrFull) {
			t.Errorf("%+v", g)
		}
		g.Session.Close()
		synctest.Wait()
		if w.Fetches.Len() != 0 {
			t.Error("the fetch lives on")
		}
	})
}

func TestFetchDrain(t *testing.T) {
	fetchtest.Bubble(t, nil, func(w *fetchtest.World) {
		w.Finder.Answer(w.ID, tracker.Sources)
		ch := w.Wait(w.Context())
		time.Sleep(time.Second)
		w.Blobs.Deliver(w.ID, w.Data, 0)
		w.Fetches.Drain()
		g := <-ch
		w.Want(g, 1<<16, time.Second)
		g2 := <-w.Wait(w.Context())
		w.Want(g2, 1<<16, time.Second)
		for _, g := range []fetchtest.Got{g, g2} {
			g.Session.End(fetch.ErrNotWritten)
			g.Session.Close()
		}
	})
}

func TestFetchNoRange(t *testing.T) {
	fetchtest.Bubble(t, nil, func(w *fetchtest.World) {
		w.Finder.Answer(w.ID, tracker.Nobody)
		w.Blobs.Deliver(w.ID, w.Data, 0)
		for _, want := range []int64{1 << 16, 0} {
			g := <-w.Wait(w.Context())
			w.Want(g, want, 0)
			g.Session.End(fetch.ErrNotWritten)
			g.Session.Close()
		}
	})
}

func TestPrefetch(t *testing.T) {
	fetchtest.Bubble(t, nil, func(w *fetchtest.World) {
		w.Finder.Answer(w.ID, tracker.Lease) // which a prefetch must not get
		w.Fetches.Prefetch(w.ID, 3)
		synctest.Wait()
		as, ok := w.Peers.As(w.ID)
		if !ok || !as.Want || as.Priority < 3 {
			t.Fatalf("joined %+v %t", as, ok)
		}
		time.Sleep(30 * time.Second)
		w.Fetches.Prolong(w.ID)
		time.Sleep(59 * time.Second)
		if w.Fetches.Len() != 1 {
			t.Fatal("abandoned too early")
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if w.Fetches.Len() != 0 {
			t.Error("not abandoned")
		}
		w.WantEvents("want false", "unwant")

		// A session that opens it asks as one that waits.
		w.Fetches.Prefetch(w.ID, 3)
		synctest.Wait()
		w.Start = time.Now()
		g := <-w.Wait(w.Context())
		w.Want(g, 0, 0)
		if !g.Lease {
			t.Error("no lease")
		}
		g.Session.End(fetch.ErrNotWritten)
		g.Session.Close()
	})
}

func TestPrefetchIsBounded(t *testing.T) {
	fetchtest.Bubble(t, nil, func(w *fetchtest.World) {
		for i := range 20 {
			id, _ := fetchtest.Random(t, 1000+i, 9)
			w.Fetches.Prefetch(id, i)
		}
		synctest.Wait()
		if n := w.Fetches.Len(); n != 4 {
			t.Errorf("%d prefetches, want 4", n)
		}
	})
}

// When room is needed what nobody waits for is left and closed, then and there; what a
// session has open goes on.
func TestGiveUp(t *testing.T) {
	fetchtest.Bubble(t, nil, func(w *fetchtest.World) {
		ahead, _ := fetchtest.Random(t, 10<<16, 2)
		for _, id := range []piece.ID{w.ID, ahead} {
			w.Finder.Answer(id, tracker.Sources)
		}
		ch := w.Wait(w.Context())
		w.Fetches.Prefetch(ahead, 1)
		synctest.Wait()
		if n := len(w.Peers.Joined()); n != 2 || w.Blobs.Get(ahead).Opened != 1 {
			t.Fatalf("%d blobs are joined", n)
		}
		before := time.Now()
		w.Fetches.GiveUp(w.Context())
		if n := w.Blobs.Get(ahead).Opened; n != 0 || w.Fetches.Has(ahead) || time.Since(before) != 0 {
			t.Errorf("the other is open %d times after %v", n, time.Since(before))
		}
		if a, b := w.Blobs.Get(ahead).GivenUp, w.Blobs.Get(w.ID).GivenUp; a != 1 || b != 0 {
			t.Errorf("the other was given up %d times, and what is waited for %d times", a, b)
		}
		if joined := w.Peers.Joined(); len(joined) != 1 || joined[0] != w.ID {
			t.Errorf("joined: %v", joined)
		}
		w.Blobs.Deliver(w.ID, w.Data, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10)
		g := <-ch
		w.Want(g, w.ID.Size, 0)
		g.Session.Close()
	})
}
