package tracker

import (
	"cmp"
	"container/heap"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/capelin-io/capelin/control/ring"
	"github.com/capelin-io/capelin/control/trackerpb"
	"github.com/capelin-io/capelin/swarm/piece"
	"github.com/capelin-io/capelin/trackerd/state"
)

// seeds is how many clusters of a kind are tried; in a search for faults some hundreds.
var seeds = flag.Uint64("seeds", 10, "seeds of each randomized test")

// cluster is Machines and the trackers' own state machines in virtual time, with a
// network between them that is late, breaks and comes back. What happens depends on the
// seed alone.
type cluster struct {
	t        *testing.T
	seed     uint64
	rng      *rand.Rand
	start    time.Time
	now      time.Time
	events   eventHeap
	count    int
	policy   state.Config
	latency  func() time.Duration // of a message
	names    []string             // of the trackers there are
	nodes    []*simNode
	trackers map[string]*simTracker
	trace    strings.Builder
}

type simEvent struct {
	at    time.Time
	order int
	do    func()
}

type eventHeap []simEvent

func (h eventHeap) Len() int { return len(h) }
func (h eventHeap) Less(i, j int) bool {
	return cmp.Or(h[i].at.Compare(h[j].at), cmp.Compare(h[i].order, h[j].order)) < 0
}
func (h eventHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *eventHeap) Push(x any)   { *h = append(*h, x.(simEvent)) }
func (h *eventHeap) Pop() any {
	last := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return last
}

// simTracker is one tracker; m is another one after each start.
type simTracker struct {
	c      *cluster
	name   string
	m      *state.Tracker // nil: it is not running
	frozen bool           // it takes nothing in and says nothing
	next   state.Stream
	conns  map[state.Stream]*simConn
	tick   time.Time
}

// simConn is a stream. What is sent arrives in order, unless it breaks before.
type simConn struct {
	node            *simNode
	tracker         *simTracker
	id              state.Stream
	broken          bool
	toNode, toOther time.Time // when the last message arrives
}

// simNode is a Machine with its streams, and what its API was told.
type simNode struct {
	c       *cluster
	name    string
	m       *Machine
	names   []string
	conns   map[string]*simConn
	tick    time.Time
	state   map[piece.ID]State
	wants   map[piece.ID]*simWant
	verdict func(id piece.ID, v Verdict) // what the node does about one
}

type simWant struct {
	since time.Time // of the last call
	tag   uint64
	told  VerdictKind // the answer to that; 0: none yet
}

func newCluster(t *testing.T, seed uint64, nodes int, policy state.Config, trackers ...string) *cluster {
	c := &cluster{
		t: t, seed: seed, rng: rand.New(rand.NewPCG(seed, 15)), start: time.Unix(1_000_000, 0), now: time.Unix(1_000_000, 0),
		policy: policy, names: trackers, trackers: map[string]*simTracker{},
	}
	c.latency = func() time.Duration { return time.Duration(1+c.rng.IntN(30)) * time.Millisecond }
	for _, name := range trackers {
		c.trackers[name] = &simTracker{c: c, name: name, conns: map[state.Stream]*simConn{}}
		c.trackers[name].run()
	}
	for i := range nodes {
		n := &simNode{
			c: c, name: fmt.Sprint("n", i), m: NewMachine(fmt.Sprint("n", i)), conns: map[string]*simConn{},
			state: map[piece.ID]State{}, wants: map[piece.ID]*simWant{}, verdict: func(piece.ID, Verdict) {},
		}
		c.nodes = append(c.nodes, n)
		n.step(EvHandlerReady{})
		n.setNames(trackers)
	}
	return c
}

func (c *cluster) fatalf(format string, args ...any) {
	c.t.Helper()
	c.t.Fatalf("seed %d, %v: %s", c.seed, c.now.Sub(c.start), fmt.Sprintf(format, args...))
}

// at has something done at a time.
func (c *cluster) at(when time.Time, do func()) {
	c.count++
	heap.Push(&c.events, simEvent{when, c.count, do})
}

func (c *cluster) after(d time.Duration, do func()) { c.at(c.now.Add(d), do) }

// run passes time.
func (c *cluster) run(d time.Duration) {
	end := c.now.Add(d)
	for len(c.events) > 0 && !c.events[0].at.After(end) {
		ev := heap.Pop(&c.events).(simEvent)
		c.now = ev.at
		ev.do()
	}
	c.now = end
}

func (s *simTracker) run() {
	s.m = state.New(s.c.policy, s.c.rng.Uint64(), s.c.now)
	s.frozen = false
}

// stop ends the tracker; its streams break.
func (s *simTracker) stop() {
	s.m = nil
	for _, id := range sortedStreams(s.conns) {
		s.conns[id].breakOff()
	}
}

func sortedStreams(conns map[state.Stream]*simConn) (ids []state.Stream) {
	for id := range conns {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// freeze makes the tracker silent, as if its machine had lost power: nodes find out by
// time.
func (s *simTracker) freeze() {
	s.frozen = true
	for _, id := range sortedStreams(s.conns) {
		conn := s.conns[id]
		s.c.after(silenceTimeout, conn.breakOff)
	}
}

func (s *simTracker) step(ev state.Event) {
	if s.m == nil || s.frozen {
		return
	}
	for _, act := range slices.Clone(s.m.Step(s.c.now, ev)) {
		switch act := act.(type) {
		case state.ActSend:
			if conn := s.conns[act.Stream]; conn != nil {
				conn.toNode = latest(conn.toNode, s.c.now.Add(s.c.latency()))
				s.c.at(conn.toNode, func() { conn.deliver(act.Message) })
			}
		case state.ActClose:
			if conn := s.conns[act.Stream]; conn != nil {
				delete(s.conns, act.Stream)
				s.c.after(s.c.latency(), conn.breakOff)
			}
		}
	}
	if due := s.m.Deadline(); !due.IsZero() && !due.Equal(s.tick) {
		s.tick = due
		m := s.m
		s.c.at(latest(due, s.c.now), func() {
			if s.m == m && s.tick.Equal(due) {
				s.tick = time.Time{}
				s.step(state.EvTick{})
			}
		})
	}
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// dial makes a stream to a tracker, or finds out that there is none.
func (n *simNode) dial(name string) {
	s := n.c.trackers[name]
	if !slices.Contains(n.names, name) || n.conns[name] != nil {
		return
	}
	again := func(err error, pause time.Duration) {
		n.c.after(pause, func() {
			if slices.Contains(n.names, name) && n.conns[name] == nil {
				n.step(EvDisconnected{Tracker: name, Err: err})
				n.c.after(time.Duration(50+n.c.rng.IntN(1950))*time.Millisecond, func() { n.dial(name) })
			}
		})
	}
	switch {
	case s.m == nil:
		again(errors.New("refused"), n.c.latency())
		return
	case s.frozen:
		again(errors.New("no answer"), connectTimeout)
		return
	}
	s.next++
	conn := &simConn{node: n, tracker: s, id: s.next}
	s.conns[conn.id] = conn
	n.conns[name] = conn
	conn.toOther = n.c.now.Add(n.c.latency())
	hello := &trackerpb.Hello{
		Version: 1, Cluster: "c", Node: n.name, Zone: n.name[1:2], Addr: n.name + ":1", Role: trackerpb.Role_ROLE_AGENT,
		Blobs: n.m.Announceable(name),
	}
	n.c.at(conn.toOther, func() {
		if !conn.broken {
			s.step(state.EvOpen{Stream: conn.id, Hello: hello})
		}
	})
}

// deliver gives a message to the node.
func (conn *simConn) deliver(m *trackerpb.ToAgent) {
	if conn.broken || conn.node.conns[conn.tracker.name] != conn {
		return
	}
	name := conn.tracker.name
	if m.Welcome != nil {
		conn.node.step(EvConnected{Tracker: name, Welcome: m.Welcome})
		conn.node.step(EvReady{Tracker: name})
	}
	conn.node.step(EvMessage{Tracker: name, Message: m})
}

// breakOff ends the stream for both, the tracker a little later. What is on its way is
// lost.
func (conn *simConn) breakOff() {
	if conn.broken {
		return
	}
	conn.broken = true
	n, s := conn.node, conn.tracker
	s.c.after(s.c.latency(), func() {
		if s.conns[conn.id] == conn {
			delete(s.conns, conn.id)
			s.step(state.EvClosed{Stream: conn.id})
		}
	})
	if n.conns[s.name] == conn {
		delete(n.conns, s.name)
		n.step(EvDisconnected{Tracker: s.name, Err: errors.New("broken")})
		s.c.after(time.Duration(50+s.c.rng.IntN(1950))*time.Millisecond, func() { n.dial(s.name) })
	}
}

// setNames is what a look-up of the trackers' names leads to.
func (n *simNode) setNames(names []string) {
	for _, name := range n.names {
		if conn := n.conns[name]; conn != nil && !slices.Contains(names, name) {
			delete(n.conns, name)
			defer conn.breakOff() // after EvTrackers, since nothing follows it
		}
	}
	n.names = names
	n.step(EvTrackers{Names: names})
	for _, name := range names {
		n.dial(name)
	}
}

func (n *simNode) step(ev Event) {
	for _, act := range slices.Clone(n.m.Step(n.c.now, ev)) {
		if send, ok := act.(ActSend); ok {
			n.send(send)
			continue
		}
		n.told(act)
		n.c.after(time.Duration(n.c.rng.IntN(3))*time.Millisecond, func() { n.step(EvHandlerReady{}) })
	}
	if due := n.m.Deadline(); !due.IsZero() && !due.Equal(n.tick) {
		n.tick = due
		n.c.at(latest(due, n.c.now), func() {
			if n.tick.Equal(due) {
				n.tick = time.Time{}
				n.step(EvTick{})
			}
		})
	}
}

func (n *simNode) send(send ActSend) {
	conn := n.conns[send.Tracker]
	if conn == nil {
		n.c.fatalf("%s sends to %s without a stream", n.name, send.Tracker)
	}
	if err := trackerpb.CheckBatch(send.Message); err != nil {
		n.c.fatalf("%s sends to %s: %v", n.name, send.Tracker, err)
	}
	conn.toOther = latest(conn.toOther, n.c.now.Add(n.c.latency()))
	n.c.at(conn.toOther, func() {
		if !conn.broken {
			conn.tracker.step(state.EvBatch{Stream: conn.id, Batch: send.Message})
		}
	})
	n.c.after(time.Millisecond, func() {
		if n.conns[send.Tracker] == conn {
			n.step(EvReady{Tracker: send.Tracker})
		}
	})
}

// told is a call of the Handler.
func (n *simNode) told(act Action) {
	v, ok := act.(ActVerdict)
	if !ok {
		return
	}
	fmt.Fprintln(&n.c.trace, n.c.now.Sub(n.c.start), n.name, v.ID.Size, v.Verdict)
	w := n.wants[v.ID]
	if w == nil || w.tag != v.Verdict.Tag {
		n.c.fatalf("%s is told %v of blob %d, to another Want or none", n.name, v.Verdict.Kind, v.ID.Size)
	}
	w.told = v.Verdict.Kind
	n.verdict(v.ID, v.Verdict)
}

func (n *simNode) announce(id piece.ID, s State) {
	n.state[id] = s
	n.step(EvAnnounce{ID: id, State: s})
}

// want wants a blob, and fails the test if no verdict comes in time.
func (n *simNode) want(id piece.ID, waiting bool) {
	n.c.count++
	w := &simWant{since: n.c.now, tag: uint64(n.c.count)}
	n.wants[id] = w
	n.step(EvWant{ID: id, Want: Want{Waiting: waiting, Tag: w.tag}})
	const handler = 500 * time.Millisecond // for all that it was told before
	n.c.after(busyTimeout+handler, func() {
		if n.wants[id] == w && w.told == 0 {
			n.c.fatalf("%s wants blob %d and is told nothing", n.name, id.Size)
		}
	})
}

func (n *simNode) unwant(id piece.ID) {
	delete(n.wants, id)
	n.step(EvUnwant{ID: id})
}

// simBlob returns the i-th blob.
func simBlob(i int) piece.ID {
	id := piece.ID{Alg: piece.SHA256, Size: int64(i) + 1000}
	id.Sum[0] = byte(i)
	return id
}

// TestClusterConverges: whatever nodes said in whatever order, while streams broke and
// trackers came, went, froze and changed, each Want is answered in time; and once it is
// quiet each tracker knows exactly what it should, nobody who waits is left waiting, and
// nothing is remembered of what is over.
func TestClusterConverges(t *testing.T) {
	for seed := range 3 * *seeds {
		first := converge(t, seed)
		if seed < 3 && converge(t, seed) != first {
			t.Fatalf("seed %d: two runs differ", seed)
		}
	}
}

func converge(t *testing.T, seed uint64) string {
	const blobs, nodes = 10, 4
	all := []string{"t1:1", "t2:1", "t3:1"}
	c := newCluster(t, seed, nodes, state.Config{Warmup: -1, Enough: 2, EnoughAgain: 20 * time.Second}, all...)
	c.latency = func() time.Duration {
		if c.rng.IntN(20) == 0 {
			return time.Duration(c.rng.IntN(1500)) * time.Millisecond
		}
		return time.Duration(1+c.rng.IntN(60)) * time.Millisecond
	}
	for range 300 {
		n, id, s := c.nodes[c.rng.IntN(nodes)], simBlob(c.rng.IntN(blobs)), c.trackers[all[c.rng.IntN(len(all))]]
		switch c.rng.IntN(13) {
		case 0, 1:
			n.announce(id, State(c.rng.IntN(3)))
		case 2, 3, 4:
			n.want(id, c.rng.IntN(3) > 0)
		case 5:
			n.unwant(id)
		case 6:
			n.step(EvLeaseProgress{ID: id, Bytes: c.rng.Int64N(1000)})
		case 7, 8:
			n.step(EvLeaseDone{ID: id, Err: []error{errors.New("503"), context.Canceled}[c.rng.IntN(2)]})
		case 9:
			switch {
			case s.m == nil:
				s.run()
			case s.frozen || c.rng.IntN(2) > 0:
				s.stop()
			default:
				s.freeze()
			}
		case 10:
			if conn := n.conns[s.name]; conn != nil {
				conn.breakOff()
			}
		case 11:
			c.rng.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
			c.names = slices.Clone(all[:1+c.rng.IntN(3)])
			names := c.names
			for _, n := range c.nodes {
				c.after(time.Duration(c.rng.IntN(3000))*time.Millisecond, func() { n.setNames(names) })
			}
		case 12:
			c.run(time.Duration(c.rng.IntN(4000)) * time.Millisecond)
		}
	}
	c.run(4 * time.Second)
	for _, name := range slices.Sorted(slices.Values(all)) {
		if s := c.trackers[name]; s.m == nil || s.frozen {
			s.stop()
			s.run()
		}
	}
	for _, n := range c.nodes {
		n.setNames(c.names)
	}
	c.run(90 * time.Second)
	// Downloads end, and leases that nobody used are given back.
	for _, n := range c.nodes {
		for i := range blobs {
			n.step(EvLeaseDone{ID: simBlob(i), Err: context.Canceled})
		}
	}
	c.run(45 * time.Second) // upstream failed too often: 30 s
	for i := range blobs {
		c.check(simBlob(i))
	}
	for _, n := range c.nodes {
		for i := range blobs {
			n.announce(simBlob(i), StateGone)
			n.unwant(simBlob(i))
		}
	}
	c.run(time.Minute)
	for _, n := range c.nodes {
		if n.m.Remembered()+len(n.m.active)+len(n.m.due.heap) != 0 {
			c.fatalf("%s remembers %d blobs, %d active, %d due", n.name, n.m.Remembered(), len(n.m.active), len(n.m.due.heap))
		}
	}
	for _, name := range c.names {
		if st := c.trackers[name].m.Stats(); st.Entries+st.Swarms+st.Leases != 0 {
			c.fatalf("%s: left over: %+v", name, st)
		}
	}
	return c.trace.String()
}

// check compares what trackers and nodes know of a blob with what was said.
func (c *cluster) check(id piece.ID) {
	owners := ring.Top(c.names, id.Digest(), 2)
	for name, s := range c.trackers {
		var want, got []string
		complete := 0
		for _, n := range c.nodes {
			if n.state[id] == StateComplete {
				complete++
			}
			if m := (state.Member{
				Node: n.name, Complete: n.state[id] == StateComplete, Partial: n.state[id] == StatePartial, Want: n.wants[id] != nil,
			}); slices.Contains(owners, name) && (m.Complete || m.Partial || m.Want) {
				want = append(want, fmt.Sprintf("%+v", m))
			}
		}
		for _, m := range s.m.Members(id) {
			m.Lease = false // of which there may be one
			got = append(got, fmt.Sprintf("%+v", m))
		}
		slices.Sort(got)
		// Two of the complete ones are enough.
		enough := complete > 2 && len(got) >= 2 && !slices.ContainsFunc(got, func(g string) bool { return !slices.Contains(want, g) })
		if !slices.Equal(got, want) && !enough {
			c.fatalf("%s (blob %d is of %v) knows of\n%v, want\n%v", name, id.Size, owners, got, want)
		}
	}
	for _, n := range c.nodes {
		if w := n.wants[id]; w != nil && (w.told == 0 || w.told == Wait || w.told == Unreachable) {
			c.fatalf("%s is left with %v on blob %d", n.name, w.told, id.Size)
		}
	}
}

// TestClusterLeases: while both trackers of a blob are connected and well, nodes that
// want it again and give it up at all times never fetch it twice at once.
func TestClusterLeases(t *testing.T) {
	for _, trackers := range [][]string{{"t1:1"}, {"t1:1", "t2:1"}, {"t1:1", "t2:1", "t3:1"}} {
		for seed := range *seeds {
			t.Run(fmt.Sprintf("%d trackers/seed %d", len(trackers), seed), func(t *testing.T) { leases(t, seed, trackers) })
		}
	}
}

func leases(t *testing.T, seed uint64, trackers []string) {
	const blobs, nodes = 4, 5
	c := newCluster(t, seed, nodes, state.Config{Warmup: -1, AddBelow: -1, Unstarted: time.Minute, Stall: time.Minute}, trackers...)
	holders := map[piece.ID]map[string]bool{}
	for i := range blobs {
		holders[simBlob(i)] = map[string]bool{}
	}
	fetched := 0
	for _, n := range c.nodes {
		n.verdict = func(id piece.ID, v Verdict) {
			if v.Kind != Lease || holders[id][n.name] {
				return
			}
			holders[id][n.name] = true
			fetched++
			if len(holders[id]) > 1 {
				c.fatalf("blob %d is fetched by %v", id.Size, holders[id])
			}
			c.after(time.Duration(c.rng.IntN(300))*time.Millisecond, func() { n.step(EvLeaseProgress{ID: id}) })
			c.after(time.Duration(300+c.rng.IntN(2000))*time.Millisecond, func() {
				delete(holders[id], n.name)
				switch c.rng.IntN(4) {
				case 0:
					n.announce(id, StateComplete)
					n.step(EvLeaseDone{ID: id})
				case 1:
					n.step(EvLeaseDone{ID: id, Err: errors.New("503")})
				default:
					n.step(EvLeaseDone{ID: id, Err: context.Canceled})
				}
			})
		}
	}
	c.run(time.Second) // all are connected
	for range 400 {
		n, id := c.nodes[c.rng.IntN(nodes)], simBlob(c.rng.IntN(blobs))
		switch c.rng.IntN(8) {
		case 0, 1, 2:
			n.want(id, c.rng.IntN(4) > 0)
		case 3:
			if !holders[id][n.name] { // which has somebody to fetch it for
				n.unwant(id)
			}
		case 4:
			n.announce(id, StateGone)
		default:
			c.run(time.Duration(c.rng.IntN(400)) * time.Millisecond)
		}
	}
	c.run(90 * time.Second)
	for _, n := range c.nodes {
		for id, w := range n.wants {
			if w.told != Sources && w.told != Lease && w.told != Nobody {
				c.fatalf("%s is left with %v on blob %d", n.name, w.told, id.Size)
			}
		}
	}
	if fetched < 10 {
		c.fatalf("only %d leases: the test shows nothing", fetched)
	}
}
