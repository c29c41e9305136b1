package trackerd

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/capelin-io/capelin/control/tracker"
	"github.com/capelin-io/capelin/control/trackerpb"
	"github.com/capelin-io/capelin/swarm/piece"
	"github.com/capelin-io/capelin/swarm/wire"
)

// office is an operator's place in a bubble: trackers, nodes, and a Control.
type office struct {
	*testing.T
	n        *fakeNet
	trackers []string
	stops    map[string]func()
	nodes    map[string]*agent
	c        *tracker.Control
}

func newOffice(t *testing.T, trackers ...string) *office {
	o := &office{T: t, n: newNet(), trackers: trackers, stops: map[string]func(){}, nodes: map[string]*agent{}}
	for _, addr := range trackers {
		o.stops[addr] = o.n.serve(t, addr, nil)
	}
	var err error
	o.c, err = tracker.NewControl(tracker.ControlConfig{Trackers: trackers, Dial: o.n.Dial})
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// node starts a node; a name with a zone is "zone/name", and an origin's begins
// with "o".
func (o *office) node(name string, obey func(*tracker.Client, *trackerpb.Command)) *agent {
	zone, base, ok := strings.Cut(name, "/")
	if !ok {
		zone, base = "", name
	}
	a := newAgent(o.T, base)
	a.zone, a.obey = zone, obey
	if base[0] == 'o' {
		a.lookup = (*tracker.Client).NotHere
	}
	a.run(tracker.Config{Trackers: o.trackers, Dial: o.n.Dial})
	o.nodes[base] = a
	return a
}

func (o *office) close() {
	o.c.Close()
	for _, a := range o.nodes {
		a.stop()
	}
	for _, stop := range o.stops {
		stop()
	}
}

func inOffice(t *testing.T, trackers []string, f func(o *office)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t, trackers...)
		defer o.close()
		f(o)
	})
}

// Ways to answer a command.
func result(r *trackerpb.CommandResult) func(*tracker.Client, *trackerpb.Command) {
	return func(c *tracker.Client, cmd *trackerpb.Command) {
		c.Result(&trackerpb.CommandResult{Id: cmd.Id, Supported: r.Supported, Error: r.Error, Blobs: r.Blobs, Running: r.Running, Bytes: r.Bytes})
	}
}

var (
	well  = &trackerpb.CommandResult{Supported: true}
	silly = &trackerpb.CommandResult{}
)

func later(d time.Duration, f func(*tracker.Client, *trackerpb.Command)) func(*tracker.Client, *trackerpb.Command) {
	return func(c *tracker.Client, cmd *trackerpb.Command) { time.AfterFunc(d, func() { f(c, cmd) }) }
}

func blobIDs(n int) (ids []piece.ID) {
	for i := range n {
		ids = append(ids, blobID(i))
	}
	return ids
}

// watch collects what an operation tells, and checks that it makes sense.
type watch struct {
	t    *testing.T
	last tracker.Progress
	all  int
	ends map[string]tracker.NodeResult
	at   map[string]time.Time
}

func (w *watch) told(p tracker.Progress) {
	if p.Done < w.last.Done || p.Failed < w.last.Failed || p.Bytes < w.last.Bytes || p.Done+p.Failed > p.Nodes || p.Bytes > p.Total {
		w.t.Errorf("progress goes wrong: %+v, then %+v", w.last, p)
	}
	w.last = p
	w.all++
	for _, r := range p.Results {
		if _, twice := w.ends[r.Node]; twice {
			w.t.Errorf("%s ends twice", r.Node)
		}
		w.ends[r.Node], w.at[r.Node] = r, time.Now()
	}
}

func (o *office) watch() *watch {
	return &watch{t: o.T, ends: map[string]tracker.NodeResult{}, at: map[string]time.Time{}}
}

func TestControlLists(t *testing.T) {
	for _, trackers := range [][]string{{"t1:1"}, {"t1:1", "t2:1"}, {"t1:1", "t2:1", "t3:1"}} {
		t.Run(fmt.Sprint(len(trackers)), func(t *testing.T) {
			inOffice(t, trackers, func(o *office) {
				o.node("z/a", nil)
				time.Sleep(time.Hour)
				b := o.node("b", nil)
				o.node("o", nil)
				synctest.Wait()
				since := time.Now()
				for i := range 100 {
					b.c.AnnounceComplete(blobID(i), nil)
				}
				o.nodes["a"].c.Announce(blobID(7), tracker.StatePartial)
				o.nodes["o"].c.Want(blobID(7), tracker.Want{})
				synctest.Wait()
				nodes, err := o.c.Nodes(o.Context())
				if err != nil {
					o.Fatal(err)
				}
				got := fmt.Sprintf("%d", len(nodes))
				for _, n := range nodes {
					got += fmt.Sprintf(" %s(%s,%d,%s):%d/%d", n.Name, n.Zone, n.Role, n.Addr, n.Blobs, n.Wants)
				}
				if want := "3 a(z,1,10.0.0.1:7400):1/0 b(,1,10.0.0.1:7400):100/0 o(,2,10.0.0.1:7400):1/1"; got != want {
					o.Errorf("got %s\nwant %s", got, want)
				}
				if d := since.Sub(nodes[0].Since); d < time.Hour || d > time.Hour+time.Second || nodes[0].Software != "test" {
					o.Errorf("a: %+v", nodes[0])
				}
				for _, away := range []string{"", "t1:1"} { // either of the two knows
					if away != "" && len(trackers) > 1 {
						o.stops[away]()
					}
					members, err := o.c.Members(o.Context(), blobID(7))
					const want = "[{a false true false false} {b true false false false} {o false false true false}]"
					if err != nil || fmt.Sprint(members) != want {
						o.Errorf("%v, %v; want %s", members, err, want)
					}
				}
				if m, err := o.c.Members(o.Context(), blobID(5000)); len(m) != 0 || err != nil {
					o.Errorf("nobody's: %v, %v", m, err)
				}
				for _, stop := range o.stops {
					stop()
				}
				if _, err := o.c.Nodes(o.Context()); status.Code(err) != codes.Unavailable {
					o.Errorf("without trackers: %v", err)
				}
			})
		})
	}
}

// TestPreheatResults: whatever nodes do, the operation ends, and says what each of
// them did.
func TestPreheatResults(t *testing.T) {
	inOffice(t, []string{"t1:1"}, func(o *office) {
		start := time.Now()
		o.node("fine", result(well))
		o.node("slow", later(time.Minute, result(well)))
		o.node("broken", result(&trackerpb.CommandResult{
			Supported: true, Error: "disk full\n" + strings.Repeat("!", 400),
			Blobs: []*trackerpb.Announce{{Blob: trackerpb.FromID(blobID(1))}},
		}))
		o.node("silly", result(silly))
		o.node("mute", nil)
		o.node("busy", func(c *tracker.Client, cmd *trackerpb.Command) {
			for i := range 60 {
				time.AfterFunc(time.Duration(i)*10*time.Second, func() {
					c.Result(&trackerpb.CommandResult{Id: cmd.Id, Supported: true, Running: i < 59, Bytes: int64(i) << 30})
				})
			}
		})
		o.node("dies", later(3*time.Second, func(*tracker.Client, *trackerpb.Command) { go o.nodes["dies"].stop() }))
		o.node("o", result(well))
		synctest.Wait()
		w := o.watch()
		last, err := o.c.Preheat(o.Context(), tracker.PreheatRequest{Blobs: blobIDs(5), Nodes: tracker.Selection{All: true}}, w.told)
		if err != nil {
			o.Fatal(err)
		}
		if last.Nodes != 7 || last.Done != 3 || last.Failed != 4 || last.Total != 7*5<<20 || last.Bytes != 3*5<<20 || len(last.Results) != 0 {
			o.Errorf("at last: %+v", last)
		}
		for node, want := range map[string]struct {
			err string
			at  time.Duration
		}{
			"fine": {"", 0}, "slow": {"", time.Minute}, "broken": {"disk full !!!", 0}, "silly": {"does not know", 0},
			"mute": {"nothing was heard of it for 2m0s", 2 * time.Minute}, "busy": {"", 590 * time.Second},
			"dies": {"its stream to the tracker broke", 33 * time.Second},
		} {
			r, ok := w.ends[node]
			at := w.at[node].Sub(start)
			if !ok || r.Error == "" != (want.err == "") || !strings.Contains(r.Error, want.err) || at < want.at || at > want.at+time.Second {
				o.Errorf("%s: %+v after %v, want %q after %v", node, r, at, want.err, want.at)
			}
		}
		if b := w.ends["broken"].Blobs; !slices.Equal(b, blobIDs(2)[1:]) {
			o.Errorf("broken misses %v", b)
		}
		if len(o.nodes["o"].commands) != 0 {
			o.Error("the origin was not selected")
		}
		if w.all > 100 { // it took ten minutes
			o.Errorf("told %d times", w.all)
		}
	})
}

func TestPreheatSelects(t *testing.T) {
	for _, tt := range []struct {
		sel  tracker.Selection
		want string // nodes that were asked, and names that failed
		code codes.Code
	}{
		{tracker.Selection{All: true}, "a b c", 0},
		{tracker.Selection{Zones: []string{"y"}}, "b c", 0},
		{tracker.Selection{Zones: []string{"x", "y"}, Roles: []wire.Role{wire.RoleOrigin}}, "o2", 0},
		{tracker.Selection{Roles: []wire.Role{wire.RoleOrigin}}, "o1 o2", 0},
		{tracker.Selection{Roles: []wire.Role{wire.RoleOrigin, wire.RoleAgent}}, "a b c o1 o2", 0},
		{tracker.Selection{Nodes: []string{"a", "o1"}}, "a o1", 0},
		{tracker.Selection{Nodes: []string{"a", "b"}, Zones: []string{"y"}}, "b", 0},
		{tracker.Selection{Nodes: []string{"a", "nowhere", "a"}}, "a !nowhere", 0},
		{tracker.Selection{Nodes: []string{"nowhere"}}, "!nowhere", 0},
		{tracker.Selection{Zones: []string{"q"}}, "", codes.NotFound},
		{tracker.Selection{}, "", codes.InvalidArgument},
		{tracker.Selection{Nodes: []string{""}}, "", codes.InvalidArgument},
		{tracker.Selection{Nodes: make([]string, 20_000)}, "", codes.InvalidArgument},
	} {
		inOffice(t, []string{"t1:1"}, func(o *office) {
			for _, name := range []string{"x/a", "y/b", "y/c", "o1", "y/o2"} {
				o.node(name, result(well))
			}
			synctest.Wait()
			w := o.watch()
			_, err := o.c.Preheat(o.Context(), tracker.PreheatRequest{Blobs: blobIDs(1), Nodes: tt.sel}, w.told)
			if status.Code(err) != tt.code {
				o.Errorf("%+v: %v", tt.sel, err)
			}
			var got []string
			for _, name := range []string{"a", "b", "c", "o1", "o2"} {
				if len(o.nodes[name].commands) == 1 {
					got = append(got, name)
				}
			}
			for name, r := range w.ends {
				if r.Error != "" {
					got = append(got, "!"+name)
				}
			}
			if strings.Join(got, " ") != tt.want {
				o.Errorf("%+v: %v, want %s", tt.sel, got, tt.want)
			}
		})
	}
	inOffice(t, []string{"t1:1"}, func(o *office) {
		for _, ids := range [][]piece.ID{nil, {{}}, make([]piece.ID, 1001)} {
			r := tracker.PreheatRequest{Blobs: ids, Nodes: tracker.Selection{All: true}}
			if _, err := o.c.Preheat(o.Context(), r, nil); status.Code(err) != codes.InvalidArgument {
				o.Errorf("%d blobs: %v", len(ids), err)
			}
		}
	})
}

// Many blobs are more than one command, one after the other; AtOnce bounds how many
// nodes work.
func TestPreheatInParts(t *testing.T) {
	inOffice(t, []string{"t1:1"}, func(o *office) {
		const nodes = 10
		var mu sync.Mutex
		working, most := 0, 0
		for i := range nodes {
			o.node(fmt.Sprint("n", i), func(c *tracker.Client, cmd *trackerpb.Command) {
				mu.Lock()
				defer mu.Unlock()
				working++
				most = max(most, working)
				time.AfterFunc(time.Second+time.Duration(i)*time.Millisecond, func() {
					mu.Lock()
					defer mu.Unlock()
					working--
					result(well)(c, cmd)
				})
			})
			synctest.Wait()
		}
		start := time.Now()
		r := tracker.PreheatRequest{Blobs: blobIDs(250), Nodes: tracker.Selection{All: true}, AtOnce: 3}
		last, err := o.c.Preheat(o.Context(), r, o.watch().told)
		if err != nil || last.Done != nodes || last.Bytes != last.Total {
			o.Errorf("%+v, %v", last, err)
		}
		if took := time.Since(start); most != 3 || took < 12*time.Second || took > 14*time.Second {
			o.Errorf("%d at once, %v", most, took)
		}
		for name, a := range o.nodes {
			n := 0
			for _, cmd := range a.commands {
				for _, b := range cmd.GetPreheat().Blobs {
					if id, _ := b.ID(); id != blobID(n) {
						o.Fatalf("%s: blob %d is %s", name, n, id)
					}
					n++
				}
			}
			if n != 250 || len(a.commands) != 3 {
				o.Errorf("%s: %d blobs in %d commands", name, n, len(a.commands))
			}
		}
	})
}

// A node whose stream breaks is asked again when it is back; when the tracker goes
// away, another one carries on.
func TestPreheatGoesOn(t *testing.T) {
	inOffice(t, []string{"t1:1", "t2:1"}, func(o *office) {
		for i := range 3 {
			o.node(fmt.Sprint("n", i), later(10*time.Second, result(well)))
		}
		synctest.Wait()
		back := make(chan struct{})
		time.AfterFunc(5*time.Second, func() {
			o.nodes["n1"].stop()
			o.node("n1", later(10*time.Second, result(well)))
			close(back)
		})
		w := o.watch()
		last, err := o.c.Preheat(o.Context(), tracker.PreheatRequest{Blobs: blobIDs(1), Nodes: tracker.Selection{All: true}}, w.told)
		<-back
		if err != nil || last.Done != 3 || len(o.nodes["n1"].commands) != 1 {
			o.Errorf("%+v, %v", last, err)
		}

		time.AfterFunc(5*time.Second, func() { o.stops["t1:1"]() })
		last, err = o.c.Preheat(o.Context(), tracker.PreheatRequest{Blobs: blobIDs(2), Nodes: tracker.Selection{All: true}}, nil)
		if err != nil || last.Done != 3 {
			o.Errorf("one tracker left: %+v, %v", last, err)
		}
		o.stops["t2:1"]()
		r := tracker.PreheatRequest{Blobs: blobIDs(2), Nodes: tracker.Selection{All: true}}
		if _, err = o.c.Preheat(o.Context(), r, nil); status.Code(err) != codes.Unavailable {
			o.Errorf("none left: %v", err)
		}
	})
}

// An operation of a young tracker waits for the nodes.
func TestPreheatOfAYoungTracker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNet()
		defer n.serve(t, "t1:1", func(c *Config) { c.Lease.Warmup = DefaultConfig().Lease.Warmup })()
		c, _ := tracker.NewControl(tracker.ControlConfig{Trackers: []string{"t1:1"}, Dial: n.Dial})
		defer c.Close()
		a := newAgent(t, "a")
		a.obey = result(well)
		done := make(chan struct{})
		go func() {
			defer close(done)
			last, err := c.Preheat(t.Context(), tracker.PreheatRequest{Blobs: blobIDs(1), Nodes: tracker.Selection{All: true}}, nil)
			if err != nil || last.Done != 1 {
				t.Errorf("%+v, %v", last, err)
			}
		}()
		time.Sleep(time.Second)
		a.run(tracker.Config{Trackers: []string{"t1:1"}, Dial: n.Dial})
		<-done
		a.stop()
	})
}

func TestOperationsAreBounded(t *testing.T) {
	inOffice(t, []string{"t1:1"}, func(o *office) {
		o.node("mute", nil)
		synctest.Wait()
		ctx, cancel := context.WithCancel(o.Context())
		ends := make(chan error, 100)
		for range maxOperations {
			// A connection has room for 16 streams; operators have their own.
			c, err := tracker.NewControl(tracker.ControlConfig{Trackers: o.trackers, Dial: o.n.Dial})
			if err != nil {
				o.Fatal(err)
			}
			defer c.Close()
			go func() {
				_, err := c.Preheat(ctx, tracker.PreheatRequest{Blobs: blobIDs(1), Nodes: tracker.Selection{All: true}}, nil)
				ends <- err
			}()
		}
		synctest.Wait()
		drop := func() error {
			ctx, cancel := context.WithTimeout(o.Context(), time.Second)
			defer cancel()
			_, err := o.c.Drop(ctx, blobIDs(1), tracker.Selection{All: true}, nil)
			return err
		}
		if err := drop(); status.Code(err) != codes.ResourceExhausted {
			o.Errorf("one too many: %v", err)
		}
		cancel()
		for range maxOperations {
			if err := <-ends; status.Code(err) != codes.Canceled {
				o.Errorf("cancelled: %v", err)
			}
		}
		synctest.Wait()
		if err := drop(); status.Code(err) != codes.DeadlineExceeded {
			o.Errorf("room again: %v", err)
		}
	})
}

func TestDropResults(t *testing.T) {
	inOffice(t, []string{"t1:1"}, func(o *office) {
		var held []*trackerpb.Announce
		for _, id := range blobIDs(50) {
			held = append(held, &trackerpb.Announce{Blob: trackerpb.FromID(id), State: trackerpb.State_STATE_COMPLETE})
		}
		o.node("a", result(&trackerpb.CommandResult{Supported: true, Blobs: held}))
		o.node("b", result(well))
		synctest.Wait()
		w := o.watch()
		last, err := o.c.Drop(o.Context(), blobIDs(50), tracker.Selection{All: true}, w.told)
		if err != nil || last.Done != 2 || last.Total != 0 {
			o.Errorf("%+v, %v", last, err)
		}
		if got := w.ends["a"].Blobs; !slices.Equal(got, blobIDs(maxLeft)) || len(w.ends["b"].Blobs) != 0 {
			o.Errorf("%v, %v", got, w.ends["b"])
		}
		if d := o.nodes["b"].commands[0].GetDrop(); len(d.GetBlobs()) != 50 {
			o.Errorf("b was told %v", d)
		}
	})
}
