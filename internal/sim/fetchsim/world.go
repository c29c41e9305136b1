package fetchsim

import (
	"container/heap"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/capelin-io/capelin/control/tracker"
	"github.com/capelin-io/capelin/control/trackerpb"
	"github.com/capelin-io/capelin/plugin/fetch"
	"github.com/capelin-io/capelin/swarm"
	"github.com/capelin-io/capelin/swarm/piece"
	"github.com/capelin-io/capelin/swarm/wire"
	"github.com/capelin-io/capelin/trackerd/state"
)

// Config describes a run: nodes that are asked for the same blobs.
type Config struct {
	Seed     uint64
	Nodes    int
	Blobs    int
	Size     int64   // of each blob
	Registry float64 // bytes per second, for all nodes together
	Rate     float64 // bytes per second that each node takes from others
	Trackers int

	Spread   time.Duration // within which nodes are asked for each blob
	Prefetch float64       // how many of them expect it, up to Spread before
	GiveUp   float64       // how many clients give up while they wait, and come back
	Latency  time.Duration // one way, at most: each message takes as long as chance has it
	Breaks   float64       // streams to trackers that break, per node and second
	Refused  int           // nodes that the registry refuses
	Crashes  int           // nodes that crash 1 s after they began to write, for 10 s
	Silent   bool          // trackers answer nobody
	Full     int           // nodes, the last ones, that have everything
	Frozen   int           // nodes that have everything, and give nothing
	Trickle  float64       // or so many bytes per second to each who takes it from nobody else
	Known    float64       // bytes per second that nodes take a registry for; 0: 4 MB/s
	Each     bool          // Registry is for each download by itself
	Slow     float64       // bytes per second that the first node gets, which asks 100 ms before the others; 0: as the others
	Dead     int           // more nodes that have everything, and that nobody reaches,
	FoundOut time.Duration // which takes so long the first time
	Trace    func(at time.Duration, node int, what string, ev any)
}

// Result is what came out.
type Result struct {
	Registry int64 // bytes that left it
	Waited   []time.Duration
	Took     []time.Duration // whole pulls, the slow one excepted
	Leases   int             // answers with one
	Alone    int             // answers other than complete and with a lease
	Broken   []string
}

var base = time.Unix(1_000_000, 0)

const (
	find      = 200 * time.Millisecond
	stall     = 5 * time.Second
	tickEvery = 50 * time.Millisecond // in which bytes move
	gathers   = 1 << 20               // bytes that containerd collects before it writes them
	limit     = 10 * time.Minute
)

// Run runs a Config, and stops at the first thing that must not be.
func Run(cfg Config) Result {
	w := &world{cfg: cfg, rng: rand.New(rand.NewPCG(cfg.Seed, 1)), now: base}
	for i := range cfg.Trackers {
		w.trackers = append(w.trackers, &trackerd{
			name: fmt.Sprintf("t%d:1", i), t: state.New(state.Config{Cluster: "sim", Warmup: -1}, cfg.Seed, base), streams: map[state.Stream]*node{},
		})
	}
	for i := range cfg.Blobs {
		id := piece.ID{Alg: piece.SHA256, Size: cfg.Size}
		id.Sum[0] = byte(i + 1)
		w.blobs = append(w.blobs, id)
	}
	for i := range cfg.Nodes {
		n := &node{w: w, index: i, name: fmt.Sprintf("n%d", i), parts: map[piece.ID]*part{}}
		w.nodes = append(w.nodes, n)
		n.dead = i < cfg.Dead
		if n.frozen = i < cfg.Frozen; n.frozen || n.dead || i >= cfg.Nodes-cfg.Full {
			for _, id := range w.blobs {
				n.parts[id] = &part{have: id.Size, whole: true}
			}
		}
		n.start()
	}
	for _, id := range w.blobs {
		for _, n := range w.nodes {
			if n.dead {
				continue
			}
			at := time.Second + time.Duration(w.rng.Int64N(int64(cfg.Spread)+1))
			if cfg.Slow > 0 && n.index == 0 {
				at = 900 * time.Millisecond
			}
			if w.rng.Float64() < cfg.Prefetch {
				w.after(at-time.Duration(w.rng.Int64N(int64(min(at, cfg.Spread))+1)), func() { n.fetch(fetch.EvPrefetch{ID: id}) })
			}
			w.pulls++
			w.after(at, func() { n.pull(id) })
		}
	}
	w.after(tickEvery, w.tick)
	for w.pulls > 0 && len(w.queue) > 0 && len(w.res.Broken) == 0 {
		w.next()
	}
	if w.pulls > 0 {
		w.broken("%d pulls have not ended", w.pulls)
	}
	for end := w.now.Add(3 * time.Second); len(w.res.Broken) == 0 && len(w.queue) > 0 && w.queue[0].at.Before(end); {
		w.next()
	}
	for _, t := range w.trackers {
		if st := t.t.Stats(); st.Leases > 0 || st.Wants > 0 {
			w.broken("%s knows of %d leases and %d wants when all is done", t.name, st.Leases, st.Wants)
		}
	}
	return w.res
}

type world struct {
	cfg      Config
	rng      *rand.Rand
	now      time.Time
	queue    queue
	seq      int
	nodes    []*node
	trackers []*trackerd
	blobs    []piece.ID
	streams  state.Stream
	sessions fetch.SessionID
	pulls    int // that have not ended
	crashes  int
	res      Result
}

type event struct {
	at  time.Time
	seq int
	f   func()
}

type queue []event

func (q queue) Len() int { return len(q) }
func (q queue) Less(i, j int) bool {
	return q[i].at.Before(q[j].at) || q[i].at.Equal(q[j].at) && q[i].seq < q[j].seq
}
func (q queue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *queue) Push(x any)   { *q = append(*q, x.(event)) }
func (q *queue) Pop() any {
	x := (*q)[len(*q)-1]
	*q = (*q)[:len(*q)-1]
	return x
}

func (w *world) after(d time.Duration, f func()) { w.at(w.now.Add(d), f) }

func (w *world) at(t time.Time, f func()) {
	w.seq++
	heap.Push(&w.queue, event{t, w.seq, f})
}

func (w *world) next() {
	e := heap.Pop(&w.queue).(event)
	w.now = e.at
	e.f()
	w.check()
	if w.now.Sub(base) > limit {
		w.broken("it does not end")
	}
}

func (w *world) late() time.Duration { return time.Duration(w.rng.Int64N(int64(w.cfg.Latency) + 1)) }

func (w *world) broken(format string, args ...any) {
	w.res.Broken = append(w.res.Broken, fmt.Sprintf("%v: ", w.now.Sub(base))+fmt.Sprintf(format, args...))
}

// trackerd is a tracker and the streams to it.
type trackerd struct {
	name    string
	t       *state.Tracker
	streams map[state.Stream]*node
	due     time.Time
	leases  map[string]time.Time // held by a node that has no use for them: since when
}

func (w *world) track(t *trackerd, ev state.Event) {
	for _, a := range t.t.Step(w.now, ev) {
		if a, ok := a.(state.ActSend); ok && !w.cfg.Silent {
			if n := t.streams[a.Stream]; n != nil {
				n.links[t.name].down.send(w, func() { n.track(tracker.EvMessage{Tracker: t.name, Message: a.Message}) })
			}
		}
	}
	if d := t.t.Deadline(); !d.IsZero() && !d.Equal(t.due) {
		t.due = d
		w.at(later(d, w.now), func() {
			if t.due.Equal(d) {
				t.due = time.Time{}
				w.track(t, state.EvTick{})
			}
		})
	}
}

func later(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

// way is one direction of a stream: messages arrive late and in order, or, once it
// is cut, not at all.
type way struct {
	last time.Time
	cut  bool
}

func (d *way) send(w *world, f func()) {
	d.last = later(w.now.Add(w.late()), d.last)
	w.at(d.last, func() {
		if !d.cut {
			f()
		}
	})
}

type link struct {
	stream   state.Stream // 0: down
	up, down *way
}

// node is a node: its fetches, its trackers' client, its disk and its clients.
type node struct {
	w       *world
	index   int
	name    string
	life    int // a crash begins another
	frozen  bool
	dead    bool
	down    bool
	m       *fetch.Machine
	c       *tracker.Machine
	links   map[string]*link
	due     time.Time
	dueC    time.Time
	clients []*client
	parts   map[piece.ID]*part // the disk, and the part in the swarm
	named   map[piece.ID]map[string]swarm.PeerInfo
	failed  map[string]bool // sources that are known not to be reached
}

type part struct {
	have    int64 // without a gap from 0
	moved   float64
	whole   bool
	opening fetch.Opening // 0: closed
	joined  bool
	as      swarm.JoinOptions
	grew    time.Time
}

// client is a pull.
type client struct {
	n       *node
	id      piece.ID
	session fetch.SessionID
	since   time.Time
	waits   bool
	writes  bool
	lease   bool
	at      float64 // where it downloads
	wrote   int64   // up to where it has written that
	refused bool
	crash   time.Time
}

func (n *node) part(id piece.ID) *part {
	if n.parts[id] == nil {
		n.parts[id] = &part{}
	}
	return n.parts[id]
}

// start begins a node's life, on the disk that it has.
func (n *node) start() {
	w := n.w
	n.down, n.named, n.links, n.clients, n.failed = false, map[piece.ID]map[string]swarm.PeerInfo{}, map[string]*link{}, nil, map[string]bool{}
	n.due, n.dueC = time.Time{}, time.Time{}
	n.m = fetch.NewMachine(fetch.Rules{Find: find, Stall: stall, Prefetch: time.Minute, MaxPrefetch: 32, Registry: w.cfg.Known})
	n.c = tracker.NewMachine(n.name)
	var names []string
	for _, t := range w.trackers {
		names = append(names, t.name)
		n.links[t.name] = &link{}
	}
	n.track(tracker.EvTrackers{Names: names})
	n.track(tracker.EvHandlerReady{})
	for _, t := range w.trackers {
		n.connect(t)
	}
	n.fetch(fetch.EvConnected{Swarm: true, Trackers: true})
	for _, id := range w.blobs {
		if p := n.part(id); p.whole {
			n.track(tracker.EvAnnounce{ID: id, State: tracker.StateComplete})
		}
	}
}

// connect makes a stream to a tracker, which may break.
func (n *node) connect(t *trackerd) {
	w := n.w
	if n.down {
		return
	}
	w.streams++
	l := &link{stream: w.streams, up: &way{}, down: &way{}}
	n.links[t.name] = l
	t.streams[l.stream] = n
	welcome := &trackerpb.Welcome{Version: trackerpb.Version, Cluster: "sim", MaxBatch: trackerpb.MaxBatch, Features: trackerpb.FeatureSlow}
	n.track(tracker.EvConnected{Tracker: t.name, Welcome: welcome})
	l.up.send(w, func() {
		w.track(t, state.EvOpen{Stream: l.stream, Hello: &trackerpb.Hello{
			Version: trackerpb.Version, Cluster: "sim", Node: n.name, Addr: n.name + ":1", Role: trackerpb.Role(wire.RoleAgent),
		}})
	})
	n.track(tracker.EvReady{Tracker: t.name})
	if w.cfg.Breaks > 0 {
		life := n.life
		w.after(time.Duration(w.rng.ExpFloat64()/w.cfg.Breaks*1e9), func() {
			if n.life == life {
				n.cut(t)
				n.track(tracker.EvDisconnected{Tracker: t.name, Err: errors.New("broken")})
				w.after(w.late()+100*time.Millisecond, func() {
					if n.life == life {
						n.connect(t)
					}
				})
			}
		})
	}
}

// cut ends a stream, and what is on its way is lost.
func (n *node) cut(t *trackerd) {
	l := n.links[t.name]
	l.up.cut, l.down.cut = true, true
	delete(t.streams, l.stream)
	n.w.track(t, state.EvClosed{Stream: l.stream})
	l.stream = 0
}

// crash ends a node's life; its clients come back when it does.
func (n *node) crash() {
	clients := n.clients
	n.life++
	for _, t := range n.w.trackers {
		n.cut(t)
	}
	n.down, n.clients = true, nil
	for _, p := range n.parts {
		p.joined, p.opening = false, 0
	}
	n.w.after(10*time.Second, func() {
		n.start()
		for _, c := range clients {
			n.pull(c.id)
		}
	})
}

// track has the trackers' client take an event in.
func (n *node) track(ev tracker.Event) {
	w, life := n.w, n.life
	if n.down {
		return
	}
	handled := func(f func()) { // what the Handler is told, it hands on a moment later
		w.after(w.late()/4, func() {
			if n.life == life {
				f()
				n.track(tracker.EvHandlerReady{})
			}
		})
	}
	for _, a := range slices.Clone(n.c.Step(w.now, ev)) {
		switch a := a.(type) {
		case tracker.ActSend:
			l, name := n.links[a.Tracker], a.Tracker
			i := slices.IndexFunc(w.trackers, func(t *trackerd) bool { return t.name == name })
			if l.stream != 0 {
				l.up.send(w, func() { w.track(w.trackers[i], state.EvBatch{Stream: l.stream, Batch: a.Message}) })
			}
			w.after(time.Millisecond, func() {
				if n.life == life && n.links[name] == l && l.stream != 0 {
					n.track(tracker.EvReady{Tracker: name})
				}
			})
		case tracker.ActPeers:
			handled(func() { n.fetch(fetch.EvPeersFound{ID: a.ID, Peers: a.Peers}) })
		case tracker.ActPeersGone:
			handled(func() {
				for _, name := range a.Nodes {
					delete(n.named[a.ID], name)
				}
			})
		case tracker.ActVerdict:
			handled(func() {
				n.fetch(fetch.EvVerdict{ID: a.ID, Ask: a.Verdict.Tag, Verdict: a.Verdict.Kind, Paced: a.Verdict.Paced, Heard: a.Verdict.Heard})
			})
		case tracker.ActShare:
			handled(func() { n.fetch(fetch.EvShareTold{ID: a.ID, Share: a.Share}) })
		default:
			handled(func() {})
		}
	}
	if d := n.c.Deadline(); !d.IsZero() && !d.Equal(n.dueC) {
		n.dueC = d
		w.at(later(d, w.now), func() {
			if n.life == life && n.dueC.Equal(d) {
				n.dueC = time.Time{}
				n.track(tracker.EvTick{})
			}
		})
	}
}

// fetch has the node's fetches take an event in, does what they say, and checks.
func (n *node) fetch(ev fetch.Event) {
	w, life := n.w, n.life
	if n.down {
		return
	}
	if w.cfg.Trace != nil {
		w.cfg.Trace(w.now.Sub(base), n.index, "event", ev)
	}
	var follow []fetch.Event
	for _, a := range slices.Clone(n.m.Step(w.now, ev)) {
		if w.cfg.Trace != nil {
			w.cfg.Trace(w.now.Sub(base), n.index, "action", a)
		}
		follow = append(follow, n.perform(a)...)
	}
	for _, ev := range follow {
		n.fetch(ev)
	}
	if d := n.m.Deadline(); !d.IsZero() && !d.Equal(n.due) {
		n.due = d
		w.at(later(d, w.now), func() {
			if n.life == life && n.due.Equal(d) {
				n.due = time.Time{}
				n.fetch(fetch.EvTick{})
			}
		})
	}
}

func (n *node) perform(a fetch.Action) []fetch.Event {
	w, life := n.w, n.life
	switch a := a.(type) {
	case fetch.ActOpen:
		n.part(a.ID).opening = a.Opening
		return []fetch.Event{n.progress(a.ID)}
	case fetch.ActComplete:
		p := n.part(a.ID)
		p.whole = true
		n.track(tracker.EvAnnounce{ID: a.ID, State: tracker.StateComplete})
		return []fetch.Event{n.progress(a.ID), fetch.EvCompleted{ID: a.ID, Opening: p.opening}}
	case fetch.ActClose:
		n.part(a.ID).opening = 0
	case fetch.ActJoin:
		p := n.part(a.ID)
		p.joined, p.as = true, a.As
	case fetch.ActLeave, fetch.ActKeep:
		// What is whole is given whether it is joined or not.
		if l, ok := a.(fetch.ActLeave); ok {
			n.part(l.ID).joined = false
		}
	case fetch.ActAddPeers:
		if n.named[a.ID] == nil {
			n.named[a.ID] = map[string]swarm.PeerInfo{}
		}
		for _, p := range a.Peers {
			n.named[a.ID][p.Node] = p
			n.reach(a.ID, p)
		}
	case fetch.ActSwarmStatus:
		st, opening := n.status(a.ID), n.part(a.ID).opening
		w.after(w.late()/4, func() {
			if n.life == life {
				n.fetch(fetch.EvSwarmStatus{ID: a.ID, Opening: opening, Status: st})
			}
		})
	case fetch.ActWant:
		n.track(tracker.EvWant{ID: a.ID, Want: tracker.Want{Waiting: a.Waiting, Tag: a.Ask, Lost: a.Lost, Slow: a.Slow}})
	case fetch.ActUnwant:
		n.track(tracker.EvUnwant{ID: a.ID})
	case fetch.ActAnnounce:
		n.track(tracker.EvAnnounce{ID: a.ID, State: a.State})
	case fetch.ActLeaseProgress:
		n.track(tracker.EvLeaseProgress{ID: a.ID, Bytes: a.Bytes})
	case fetch.ActLeaseDone:
		if c := n.holder(a.ID); c != nil {
			if c.writes {
				w.broken("%s gives the lease of blob %d back, which a session uses", n.name, a.ID.Sum[0])
			}
			c.lease = false
		}
		n.track(tracker.EvLeaseDone{ID: a.ID, Err: a.Err})
	case fetch.ActAnswer:
		if c := n.client(a.Session); c != nil && a.Why != fetch.OutcomeGone {
			c.answered(a)
		}
	}
	return nil
}
