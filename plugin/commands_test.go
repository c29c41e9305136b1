package plugin

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/pkg/namespaces"

	"github.com/capelin-io/capelin/control/tracker"
	"github.com/capelin-io/capelin/control/trackerpb"
	"github.com/capelin-io/capelin/plugin/fetch"
	"github.com/capelin-io/capelin/plugin/fetch/fetchtest"
	"github.com/capelin-io/capelin/swarm/piece"
)

// operator gives commands to a node in a bubble.
type operator struct {
	w *fetchtest.World
	c *commands

	mu      sync.Mutex
	results map[uint64][]*trackerpb.CommandResult
}

func withCommands(t *testing.T, change func(*fetch.Config), f func(w *fetchtest.World, o *operator)) {
	fetchtest.Bubble(t, change, func(w *fetchtest.World) {
		o := &operator{w: w, results: map[uint64][]*trackerpb.CommandResult{}}
		o.c = newCommands(w.Fetches, w.Blobs, func(r *trackerpb.CommandResult) {
			o.mu.Lock()
			defer o.mu.Unlock()
			o.results[r.Id] = append(o.results[r.Id], r)
		})
		ctx, cancel := context.WithCancel(w.Context())
		done := make(chan struct{})
		go func() { o.c.run(ctx); close(done) }()
		f(w, o)
		cancel()
		<-done
	})
}

// wait returns a command's last result.
func (o *operator) wait(id uint64) *trackerpb.CommandResult {
	for range 10_000 {
		synctest.Wait()
		o.mu.Lock()
		if all := o.results[id]; len(all) > 0 && !all[len(all)-1].Running {
			o.mu.Unlock()
			return all[len(all)-1]
		}
		o.mu.Unlock()
		time.Sleep(50 * time.Millisecond)
	}
	o.w.Fatalf("command %d never ends", id)
	return nil
}

func (o *operator) preheat(id uint64, blobs ...piece.ID) {
	o.c.add(&trackerpb.Command{Id: id, Kind: &trackerpb.Command_Preheat{Preheat: &trackerpb.Preheat{Blobs: names(blobs)}}})
}

func names(ids []piece.ID) (blobs []*trackerpb.Blob) {
	for _, id := range ids {
		blobs = append(blobs, trackerpb.FromID(id))
	}
	return blobs
}

// TestPreheatMany: an image with more layers than may be fetched at once arrives
// bottom first, and the result comes when all of it is there.
func TestPreheatMany(t *testing.T) {
	withCommands(t, func(c *fetch.Config) { c.MaxPrefetch = 32 }, func(w *fetchtest.World, o *operator) {
		const n = 40
		var ids []piece.ID
		var total int64
		data := map[piece.ID][]byte{}
		for i := range n {
			id, d := fetchtest.Random(t, 3<<16, byte(10+i))
			ids, data[id] = append(ids, id), d
			total += id.Size
		}
		o.preheat(7, ids...)
		o.preheat(7, ids...) // the stream broke, and the tracker asks again
		var order []piece.ID
		most := 0
		for len(order) < n {
			time.Sleep(time.Second)
			synctest.Wait()
			joined := w.Peers.Joined()
			most = max(most, len(joined))
			if len(joined) == 0 {
				w.Fatalf("nothing is fetched after %d blobs", len(order))
			}
			next := slices.MinFunc(joined, func(a, b piece.ID) int { return slices.Index(ids, a) - slices.Index(ids, b) })
			w.Blobs.Deliver(next, data[next], 0, 1, 2)
			order = append(order, next)
		}
		if r := o.wait(7); r.Error != "" || !r.Supported || r.Bytes != total || len(r.Blobs) != 0 {
			w.Errorf("result %v", r)
		}
		if !slices.Equal(order, ids) || most != preheatAhead {
			w.Errorf("up to %d at once", most)
		}
		last := int64(-1)
		for _, r := range o.results[7] {
			if r.Bytes <= last && r.Running {
				w.Errorf("%d bytes were told twice", r.Bytes)
			}
			last = r.Bytes
		}
		if got := len(o.results[7]); got < 10 || got > 21 {
			w.Errorf("%d results in 40 s", got)
		}
		o.preheat(8, ids...)
		if r := o.wait(8); r.Error != "" || r.Bytes != total {
			w.Errorf("when all is there: %v", r)
		}
	})
}

// TestPreheatFails: what cannot be had is said, and does not keep the rest.
func TestPreheatFails(t *testing.T) {
	good, data := fetchtest.Random(t, 3<<16, 2)
	for _, tt := range []struct {
		name   string
		happen func(w *fetchtest.World, id piece.ID) // to the first blob, a second after the start
		want   string
		after  time.Duration
		state  trackerpb.State
	}{
		{"nobody", func(w *fetchtest.World, id piece.ID) { w.Finder.Tell(id, tracker.Nobody) },
			"no node and no origin has it", 10 * time.Second, trackerpb.State_STATE_GONE},
		{"silence", func(*fetchtest.World, piece.ID) {}, "nothing of it came for 1m0s", time.Minute, trackerpb.State_STATE_GONE},
		{"stalls", func(w *fetchtest.World, id piece.ID) { w.Blobs.Deliver(id, w.Data, 3) },
			"nothing of it came for 1m0s", time.Minute + time.Second, trackerpb.State_STATE_PARTIAL},
		{"disk full", func(w *fetchtest.World, id piece.ID) { w.Peers.Fail(id, fetchtest.ErrFull) },
			"disk full", time.Second, trackerpb.State_STATE_GONE},
		{"evicted", func(w *fetchtest.World, id piece.ID) {
			w.Blobs.Deliver(id, w.Data, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10)
			time.AfterFunc(time.Second, func() { _ = w.Blobs.Forget(w.Context(), id) })
		}, "evicted", 0, trackerpb.State_STATE_PARTIAL},
	} {
		t.Run(tt.name, func(t *testing.T) {
			withCommands(t, nil, func(w *fetchtest.World, o *operator) {
				o.preheat(1, w.ID, good)
				start := time.Now()
				time.Sleep(time.Second)
				tt.happen(w, w.ID)
				time.Sleep(2 * time.Second)
				w.Blobs.Deliver(good, data, 0, 1, 2)
				r := o.wait(1)
				if took := time.Since(start); tt.after > 0 && (took < tt.after || took > tt.after+3*time.Second) {
					w.Errorf("after %v, want %v", took, tt.after)
				}
				if !strings.Contains(r.Error, w.ID.Digest()) || !strings.Contains(r.Error, tt.want) {
					w.Errorf("error %q, want %s", r.Error, tt.want)
				}
				if len(r.Blobs) != 1 || r.Blobs[0].State != tt.state {
					w.Errorf("missing: %v, want one in state %v", r.Blobs, tt.state)
				}
				if !w.Blobs.Whole(good) {
					w.Error("the other one is not there")
				}
			})
		})
	}
}

// A fetch that fails between two looks at it, and has made room for another one, has failed.
func TestPreheatFailsBetweenLooks(t *testing.T) {
	withCommands(t, nil, func(w *fetchtest.World, o *operator) {
		looks := 0
		b := &preheated{id: w.ID, since: time.Now(), fetch: func() (st fetch.Status) {
			if looks++; looks > 1 {
				st.Failed = fetchtest.ErrFull
			}
			return st
		}}
		if err := o.c.lookAfter(b, 0, time.Now()); !errors.Is(err, fetchtest.ErrFull) {
			w.Errorf("%v, want %v", err, fetchtest.ErrFull)
		}
	})
}

func TestDropCommand(t *testing.T) {
	withCommands(t, nil, func(w *fetchtest.World, o *operator) {
		var ids []piece.ID
		for i := range 5 {
			id, data := fetchtest.Random(t, 3<<16, byte(20+i))
			ids = append(ids, id)
			w.Blobs.Deliver(id, data, 0)
		}
		committed, cached, part, pulled, fetching := ids[0], ids[1], ids[2], ids[3], ids[4]
		w.Blobs.Set(committed, func(st *fetchtest.State) { st.Done, st.Visible = true, true })
		w.Blobs.Set(cached, func(st *fetchtest.State) { st.Done = true })
		s := w.Fetches.Open(pulled, fetch.Client{})
		w.Fetches.Prefetch(fetching, 0)
		synctest.Wait()
		if !w.Fetches.Has(fetching) {
			w.Fatal("not prefetched")
		}
		o.c.add(&trackerpb.Command{Id: 3, Kind: &trackerpb.Command_Drop{Drop: &trackerpb.Drop{Blobs: names(ids)}}})
		r := o.wait(3)
		if r.Error != "" || len(r.Blobs) != 2 || r.Blobs[0].State != trackerpb.State_STATE_COMPLETE ||
			r.Blobs[1].State != trackerpb.State_STATE_PARTIAL {
			w.Errorf("result %v", r)
		}
		for i, id := range ids {
			if got, want := w.Blobs.Get(id).Dropped > 0, id == cached || id == part || id == fetching; got != want {
				w.Errorf("blob %d dropped: %t", i, got)
			}
		}
		synctest.Wait()
		if w.Fetches.Has(fetching) {
			w.Error("a dropped blob is fetched on")
		}
		s.Close()
	})
}

func TestReportCommand(t *testing.T) {
	withCommands(t, nil, func(w *fetchtest.World, o *operator) {
		var ids []piece.ID
		for i := range 900 {
			id := piece.ID{Alg: piece.SHA256, Size: 1}
			id.Sum[0], id.Sum[1] = byte(i), byte(i>>8)
			ids = append(ids, id)
			w.Blobs.Deliver(id, []byte{1}, 0)
			w.Blobs.Set(id, func(st *fetchtest.State) { st.Done = i%2 == 0 })
		}
		o.c.add(&trackerpb.Command{Id: 1, Kind: &trackerpb.Command_Report{Report: &trackerpb.Report{}}})
		o.wait(1)
		seen, whole := map[string]bool{}, 0
		for _, r := range o.results[1] {
			if trackerpb.CheckBatch(&trackerpb.FromAgent{Results: []*trackerpb.CommandResult{r}}) != nil {
				w.Errorf("a result that trackers refuse: %d blobs", len(r.Blobs))
			}
			for _, b := range r.Blobs {
				seen[string(b.Blob.Digest)] = true
				if b.State == trackerpb.State_STATE_COMPLETE {
					whole++
				}
			}
		}
		if len(seen) != 900 || whole != 450 || len(o.results[1]) != 3 {
			w.Errorf("%d blobs, %d whole, in %d results", len(seen), whole, len(o.results[1]))
		}
		other, _ := fetchtest.Random(t, 100, 1)
		some := &trackerpb.Report{Blobs: names([]piece.ID{ids[0], ids[1], other})}
		o.c.add(&trackerpb.Command{Id: 2, Kind: &trackerpb.Command_Report{Report: some}})
		var got []string
		for _, b := range o.wait(2).Blobs {
			got = append(got, b.State.String())
		}
		if want := "[STATE_COMPLETE STATE_PARTIAL STATE_GONE]"; fmt.Sprint(got) != want {
			w.Errorf("got %v, want %s", got, want)
		}
		o.c.add(&trackerpb.Command{Id: 3})
		if r := o.wait(3); r.Supported {
			w.Errorf("unknown command: %v", r)
		}
	})
}

// TestCommandsAreBounded: a tracker cannot make a node remember or do more than so
// much, and Drop does not wait for Preheats.
func TestCommandsAreBounded(t *testing.T) {
	withCommands(t, nil, func(w *fetchtest.World, o *operator) {
		for i := range uint64(maxPreheats) {
			o.preheat(i, w.ID)
		}
		synctest.Wait() // these are begun
		for i := range uint64(maxQueued + 10) {
			o.preheat(100+i, w.ID)
		}
		synctest.Wait()
		refused := 0
		for _, all := range o.results {
			if strings.Contains(all[0].Error, "too many commands") {
				refused++
			}
		}
		if refused != 10 {
			w.Errorf("%d refused, want 10", refused)
		}
		o.c.add(&trackerpb.Command{Id: 9999, Kind: &trackerpb.Command_Drop{Drop: &trackerpb.Drop{}}})
		synctest.Wait()
		if len(o.results[9999]) != 1 {
			w.Error("Drop waits")
		}
	})
}

// TestOperator: nodes fetch what one of them has because an operator says so, and
// forget it again; what containerd holds stays.
func TestOperator(t *testing.T) {
	t.Parallel()
	addr := startTracker(t)
	var agents []*testAgent
	for range 3 {
		cfg := testConfig(t)
		cfg.Trackers = []string{addr}
		agents = append(agents, start(t, cfg))
	}
	ctx := namespaces.WithNamespace(t.Context(), "ns")
	r := &registry{blobs: map[string][]byte{}}
	db := agents[0].db(t)
	var ids []piece.ID
	var size int64
	for i := range 12 { // more than are fetched at once
		id, data := fetchtest.Random(t, 5<<16+i, byte(i))
		r.blobs[id.Digest()] = data
		if err := remotes.Fetch(ctx, db.ContentStore(), r, layer(id)); err != nil {
			t.Fatal(err)
		}
		ids, size = append(ids, id), size+id.Size
	}
	c, err := tracker.Dial([]string{addr}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	all := tracker.Selection{All: true}
	last, err := c.Preheat(t.Context(), tracker.PreheatRequest{Blobs: ids, Nodes: all}, nil)
	if err != nil || last.Done != 3 || last.Bytes != 3*size {
		t.Fatalf("preheat: %+v, %v", last, err)
	}
	for i, a := range agents[1:] {
		if st := a.status(t); st.Store.Cached != len(ids) {
			t.Errorf("node %d: %+v", i+1, st.Store)
		}
	}
	var kept []tracker.NodeResult
	last, err = c.Drop(t.Context(), ids, all, func(p tracker.Progress) { kept = append(kept, p.Results...) })
	if err != nil || last.Done != 3 || len(kept) != 3 {
		t.Fatalf("drop: %+v, %v, %v", last, err, kept)
	}
	for _, r := range kept {
		if first := r.Node == agents[0].cfg.Node; first != (len(r.Blobs) == len(ids)) || r.Error != "" {
			t.Errorf("%s kept %d blobs: %s", r.Node, len(r.Blobs), r.Error)
		}
	}
	for i, a := range agents[1:] {
		if st := a.status(t); st.Store.Cached != 0 {
			t.Errorf("node %d: %+v", i+1, st.Store)
		}
	}
	if m, err := c.Members(t.Context(), ids[0]); err != nil || len(m) == 0 || !m[0].Complete {
		t.Errorf("members: %v, %v", m, err)
	}
	nodes, err := c.Nodes(t.Context())
	if err != nil || len(nodes) != 3 {
		t.Errorf("nodes: %v, %v", nodes, err)
	}
}
