package state

import (
	"container/heap"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/capelin-io/capelin/control/trackerpb"
	"github.com/capelin-io/capelin/internal/posheap"
	"github.com/capelin-io/capelin/swarm/piece"
)

// Tracker is the state machine; see the package comment.
//
// # What is kept
//
// A swarm per blob that somebody announced or wants, with its members. A member
// is one agent in one swarm: 8 bytes in the swarm and a slot of the agent's map
// back to it, because in a large cluster these are what memory is spent on.
// Whatever concerns wanting and leases is in active, which idle swarms lack.
//
// # When things are decided
//
// While an event is taken in, swarms are only marked (touch). At the end of the
// Step each is settled once: who may fetch, what each wanting agent is told now,
// and when to look at it again. News for agents that already wait are collected
// until flushAt.
type Tracker struct {
	cfg  Config
	rng  *rand.Rand
	born int64 // nanoseconds, as all times in here
	now  int64
	busy int64 // when an agent last connected or announced much, see warmEnd

	agents    []*agent // by slot; nil: free
	freeAgent []uint32
	byStream  map[Stream]*agent
	byNode    map[string]*agent
	origins   []*agent // connected

	swarms    []*swarm // by slot; nil: free
	freeSwarm []uint32
	index     map[piece.ID]*swarm
	keys      map[uint64]keyed     // by trackerpb.BlobKey
	due       posheap.Heap[*swarm] // active swarms that have a deadline

	touched []*swarm
	actions []Action
	out     map[*agent]*trackerpb.ToAgent

	mark      uint64 // of sampling, see fill
	looks     uint64 // the same, see sample
	near, far []told // scratch memory of sample
	full      string // the limit that was last reported
	stats     Stats
}

// agent is a live stream.
type agent struct {
	// What sample looks at, of thousands.
	mark     uint64
	looked   uint64
	zone     uint64 // its zoneKey
	dialable bool   // by some at least, see reachable
	gone     bool   // the stream ended; told lists may still name it
	slot     uint32

	stream Stream
	hello  *trackerpb.Hello
	since  int64
	// entries: swarm slot → position in its members.
	entries   map[uint32]uint32
	wants     int
	unstarted int // leases held and not started
	machine   string
	from      string
	ousted    uint64                // the instance whose stream this one replaced; 0: none, or not known
	warned    int64                 // when a namesake was reported last; 0: never
	near      []string              // where those on the same machine reach it; none: as others
	pb        [2][4]*trackerpb.Peer // for others and those near, by peer flags; made when first needed, then shared by all messages
}

// Flags of a member. One without flags is removed.
const (
	fComplete uint8 = 1 << iota
	fPartial
	fWant
	fLease
)

// Flags of a Peer as told.
const (
	pComplete uint8 = 1 << iota
	pSource
)

// swarm is what is known of one blob.
type swarm struct {
	slot     uint32
	id       piece.ID
	members  []member // the complete ones first
	complete int      // how many are
	have     int      // complete or partial
	origins  []*agent // members of that role which have any of it
	hashed   bool
	vouched  bool // an origin gave the hash
	touched  bool
	hash     [32]byte // pinned, if hashed
	claims   *claims  // nil unless hashes were in dispute
	a        *active  // nil: nobody wants it, nobody fetches it
}

// New returns an empty tracker, born now. Zero fields of cfg take their
// defaults.
func New(cfg Config, seed uint64, now time.Time) *Tracker {
	return &Tracker{
		cfg:      cfg.WithDefaults(),
		rng:      rand.New(rand.NewPCG(seed, 0x6361_7065_6c69_6e00)),
		born:     now.UnixNano(),
		now:      now.UnixNano(),
		byStream: map[Stream]*agent{},
		byNode:   map[string]*agent{},
		index:    map[piece.ID]*swarm{},
		keys:     map[uint64]keyed{},
		out:      map[*agent]*trackerpb.ToAgent{},
	}
}

// Step takes an event in and returns what is to be done, valid until the next
// Step. Time never goes back: an earlier now counts as the last one.
func (t *Tracker) Step(now time.Time, ev Event) []Action {
	t.now = max(t.now, now.UnixNano())
	clear(t.actions)
	t.actions = t.actions[:0]
	switch ev := ev.(type) {
	case EvTick:
	case EvOpen:
		t.open(ev)
	case EvClosed:
		if a := t.byStream[ev.Stream]; a != nil {
			t.close(a)
		}
	case EvBatch:
		if a := t.byStream[ev.Stream]; a != nil {
			t.batch(a, ev.Batch)
		}
	case EvCommand:
		if a := t.byNode[ev.Node]; a != nil {
			m := t.send(a)
			m.Commands = append(m.Commands, ev.Command)
		}
	}
	for len(t.due) > 0 && t.due[0].a.due <= t.now {
		s := heap.Pop(&t.due).(*swarm)
		t.touch(s)
	}
	for _, s := range t.touched {
		t.settle(s)
		s.touched = false
	}
	clear(t.touched)
	t.touched = t.touched[:0]
	clear(t.out)
	return t.actions
}

// Deadline returns when the next EvTick is due, or the zero time.
func (t *Tracker) Deadline() time.Time {
	if len(t.due) == 0 {
		return time.Time{}
	}
	return time.Unix(0, t.due[0].a.due)
}

// Stats returns counters and gauges.
func (t *Tracker) Stats() Stats {
	st := t.stats
	st.Streams = len(t.byStream)
	st.Swarms = len(t.index)
	return st
}

// Node is a connected node.
type Node struct {
	Stream Stream
	Hello  *trackerpb.Hello // not to be changed
	Since  time.Time
	Blobs  int // that it announced or wants
	Wants  int // of these
}

// Nodes returns the connected nodes, in no order.
func (t *Tracker) Nodes() []Node {
	all := make([]Node, 0, len(t.byStream))
	for _, a := range t.byStream {
		all = append(all, Node{Stream: a.stream, Hello: a.hello, Since: time.Unix(0, a.since), Blobs: len(a.entries), Wants: a.wants})
	}
	return all
}

// Member is what is known of one node in a swarm.
type Member struct {
	Node              string
	Complete, Partial bool
	Want, Lease       bool
}

// Members returns the members of a blob's swarm, in any order.
func (t *Tracker) Members(id piece.ID) []Member {
	s := t.find(id)
	if s == nil {
		return nil
	}
	all := make([]Member, 0, len(s.members))
	for _, m := range s.members {
		all = append(all, Member{
			Node:     t.agents[m.agent].hello.Node,
			Complete: m.flags&fComplete != 0, Partial: m.flags&fPartial != 0,
			Want: m.flags&fWant != 0, Lease: m.flags&fLease != 0,
		})
	}
	return all
}

// Warm returns since when, or from when on, the tracker is no longer too young to
// know who is there and what they have. Until then it may still move.
func (t *Tracker) Warm() time.Time { return time.Unix(0, t.warmEnd()) }

// Age returns how long the tracker has lived at its last Step.
func (t *Tracker) Age() time.Duration { return time.Duration(t.now - t.born) }

func (t *Tracker) report(kind ReportKind, node string, id piece.ID, text string) {
	t.actions = append(t.actions, ActReport{Report{Kind: kind, Node: node, ID: id, Text: text}})
}

// send returns the message to a that this Step is making.
func (t *Tracker) send(a *agent) *trackerpb.ToAgent {
	m := t.out[a]
	if m == nil {
		m = &trackerpb.ToAgent{}
		t.out[a] = m
		t.actions = append(t.actions, ActSend{Stream: a.stream, Message: m})
	}
	return m
}

func (t *Tracker) touch(s *swarm) {
	if !s.touched {
		s.touched = true
		t.touched = append(t.touched, s)
	}
}

// warmEnd returns until when the tracker is too young to know. While agents still
// come and announce it is longer than Warmup, but at most twice as long.
func (t *Tracker) warmEnd() int64 {
	if t.cfg.Warmup <= 0 {
		return t.born
	}
	end := t.born + int64(t.cfg.Warmup)
	return max(end, min(t.busy+quiet, end+int64(t.cfg.Warmup)))
}

const (
	quiet      = 300_000_000 // ns without news that end the warm-up
	manyAtOnce = 50          // announcements in a batch that are news in this sense
)

func (t *Tracker) open(ev EvOpen) {
	t.busy = t.now
	a := &agent{
		zone: zoneKey(ev.Hello.Zone), dialable: ev.Hello.Addr != "" || len(ev.Near) > 0, machine: ev.Machine, near: ev.Near,
		stream: ev.Stream, hello: ev.Hello, since: t.now, entries: map[uint32]uint32{}, from: ev.From,
	}
	namesake := ""
	if old := t.byNode[a.hello.Node]; old != nil {
		namesake = t.replace(old, a)
	}
	if n := len(t.freeAgent); n > 0 {
		a.slot = t.freeAgent[n-1]
		t.freeAgent = t.freeAgent[:n-1]
		t.agents[a.slot] = a
	} else {
		a.slot = uint32(len(t.agents))
		t.agents = append(t.agents, a)
	}
	t.byStream[a.stream] = a
	t.byNode[a.hello.Node] = a
	if a.isOrigin() {
		defer t.originConnected(a) // after Welcome
	}
	t.send(a).Welcome = &trackerpb.Welcome{
		Version:  trackerpb.Version,
		Software: t.cfg.Software,
		Cluster:  t.cfg.Cluster,
		AgeMs:    uint32(min((t.now-t.born)/1e6, 1<<32-1)),
		PingMs:   uint32(t.cfg.PingInterval.Milliseconds()),
		MaxBlobs: uint32(t.cfg.MaxBlobs),
		MaxBatch: trackerpb.MaxBatch,
		Features: trackerpb.FeatureOffers | trackerpb.FeatureSlow,
		Namesake: namesake,
	}
}

// namesakeAgain is how often it is reported that two machines have one name.
const namesakeAgain = int64(time.Hour)

// replace ends the older stream of a's node. It returns where a namesake is, if there is one:
// a process that is back after another one took its place, which lives as well. A node that connects anew,
// by another way or after a restart, is none.
func (t *Tracker) replace(old, a *agent) (namesake string) {
	t.stats.Replaced++
	is, was := a.hello.Instance, old.hello.Instance
	a.ousted, a.warned = was, old.warned
	switch {
	case is == 0 || is == was || is != old.ousted:
		t.report(ReportReplaced, a.hello.Node, piece.ID{}, old.hello.Addr)
	default:
		namesake = old.from
		t.stats.Namesakes++
		if a.warned == 0 || t.now-a.warned >= namesakeAgain {
			a.warned = t.now
			t.report(ReportNamesake, a.hello.Node, piece.ID{}, a.from+" and "+old.from)
		}
	}
	t.actions = append(t.actions, ActClose{old.stream})
	t.close(old)
	return namesake
}

func (t *Tracker) close(a *agent) {
	a.gone = true
	delete(t.out, a)
	delete(t.byStream, a.stream)
	delete(t.byNode, a.hello.Node)
	if a.isOrigin() {
		t.originGone(a)
	}
	slots := make([]uint32, 0, len(a.entries))
	for slot := range a.entries {
		slots = append(slots, slot)
	}
	slices.Sort(slots) // the map's order would not be the same twice
	for _, slot := range slots {
		s := t.swarms[slot]
		if s.a != nil {
			if i := s.a.leaseOf(a); i >= 0 {
				t.endLease(s, i, "its stream broke")
				t.stats.LeasesGone++
			}
			t.dropWant(s, a)
		}
		t.setFlags(a, s, 0, ^uint8(0))
	}
	t.agents[a.slot] = nil
	t.freeAgent = append(t.freeAgent, a.slot)
}

func (t *Tracker) batch(a *agent, b *trackerpb.FromAgent) {
	if b.Announced() >= manyAtOnce {
		t.busy = t.now
	}
	for _, m := range b.Progress {
		if id, err := m.GetBlob().ID(); err == nil {
			t.progress(a, id, m)
		}
	}
	for _, m := range b.Done {
		if id, err := m.GetBlob().ID(); err == nil {
			t.done(a, id, m)
		}
	}
	for _, m := range b.Announces {
		if id, err := m.GetBlob().ID(); err == nil {
			t.announce(a, id, m.State, m.SumsHash)
		}
	}
	for _, v := range b.Inventory {
		for i := range v.GetBlobs().Len() {
			t.announce(a, v.Blobs.ID(i), trackerpb.State_STATE_COMPLETE, v.SumsHash(i))
		}
	}
	for _, o := range b.Offers {
		t.offer(a, o)
	}
	for _, m := range b.NotHere {
		if id, err := m.ID(); err == nil {
			if s := t.find(id); s != nil {
				t.notHere(s, a)
			}
		}
	}
	for _, m := range b.Disproved {
		if id, err := m.GetBlob().ID(); err == nil && len(m.SumsHash) == 32 {
			t.disprove(a, id, [32]byte(m.SumsHash))
		}
	}
	for _, m := range b.Unwants {
		if id, err := m.ID(); err == nil {
			if s := t.find(id); s != nil && s.a != nil {
				t.dropWant(s, a)
			}
		}
	}
	for _, m := range b.Wants {
		if id, err := m.GetBlob().ID(); err == nil {
			t.want(a, id, m)
		}
	}
}
