package state

import (
	"container/heap"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/capelin-io/capelin/control/trackerpb"
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
	keys      map[uint64]keyed // by trackerpb.BlobKey
	due       dueHeap          // active swarms that have a deadline

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
	dialable bool
	gone     bool // the stream ended; told lists may still name it
	slot     uint32

	stream Stream
	hello  *trackerpb.Hello
	since  int64
	// entries: swarm slot → position in its members.
	entries   map[uint32]uint32
	wants     int
	unstarted int                // leases held and not started
	pb        [4]*trackerpb.Peer // by peer flags; made when first needed, then shared by all messages
}

// member is one agent in one swarm.
type member struct {
	agent uint32
	flags uint8
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

// claims are other hashes of a swarm's sums than the pinned one.
type claims struct {
	alt       [32]byte // the last one that differed
	hasAlt    bool
	disproved [32]byte // never pinned again
	hasBad    bool
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

// Members returns the members of a blob's swarm, ordered by node.
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
	slices.SortFunc(all, func(a, b Member) int { return strings.Compare(a.Node, b.Node) })
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
	if old := t.byNode[ev.Hello.Node]; old != nil {
		t.stats.Replaced++
		t.report(ReportReplaced, old.hello.Node, piece.ID{}, old.hello.Addr)
		t.actions = append(t.actions, ActClose{old.stream})
		t.close(old)
	}
	a := &agent{
		zone: zoneKey(ev.Hello.Zone), dialable: ev.Hello.Addr != "",
		stream: ev.Stream, hello: ev.Hello, since: t.now, entries: map[uint32]uint32{},
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
		defer t.originCame(a) // after Welcome
	}
	t.send(a).Welcome = &trackerpb.Welcome{
		Version:  trackerpb.Version,
		Software: t.cfg.Software,
		Cluster:  t.cfg.Cluster,
		AgeMs:    uint32(min((t.now-t.born)/1e6, 1<<32-1)),
		PingMs:   uint32(t.cfg.PingInterval.Milliseconds()),
		MaxBlobs: uint32(t.cfg.MaxBlobs),
		MaxBatch: trackerpb.MaxBatch,
		Features: trackerpb.FeatureOffers,
	}
}

func (t *Tracker) close(a *agent) {
	a.gone = true
	delete(t.out, a)
	delete(t.byStream, a.stream)
	delete(t.byNode, a.hello.Node)
	if a.isOrigin() {
		t.originLeft(a)
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
			t.progress(a, id, m.Bytes)
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

// find returns the swarm of a blob, or nil.
func (t *Tracker) find(id piece.ID) *swarm { return t.index[id] }

// keyed is what a key of Offers stands for.
type keyed struct {
	s      *swarm // nil if there are, or were at once, several
	swarms int
}

// enter puts a swarm into the index. Blobs of one key, which whoever announces them
// can make as many of as he likes, are only counted.
func (t *Tracker) enter(s *swarm) {
	t.index[s.id] = s
	key := trackerpb.BlobKey(s.id)
	k := t.keys[key]
	if k.swarms++; k.swarms == 1 {
		k.s = s
	} else {
		k.s = nil
	}
	t.keys[key] = k
}

// remove takes a swarm out of the index.
func (t *Tracker) remove(s *swarm) {
	delete(t.index, s.id)
	key := trackerpb.BlobKey(s.id)
	k := t.keys[key]
	if k.swarms--; k.swarms == 0 {
		delete(t.keys, key)
	} else {
		t.keys[key] = k
	}
}

// admit returns the swarm of a blob that a is or will be a member of, or nil if
// a limit forbids that.
func (t *Tracker) admit(a *agent, id piece.ID) *swarm {
	return t.admitTo(a, id, t.find(id))
}

// admitTo is admit if the blob's swarm, or that there is none, is known.
func (t *Tracker) admitTo(a *agent, id piece.ID, s *swarm) *swarm {
	if s != nil {
		if _, ok := a.entries[s.slot]; ok {
			return s
		}
	}
	limit := ""
	switch {
	case len(a.entries) >= t.cfg.MaxBlobs && (s == nil || !s.asked(a)):
		limit = "blobs of one agent"
	case t.stats.Entries >= t.cfg.MaxEntries:
		limit = "announcements in all"
	case s == nil && len(t.index) >= t.cfg.MaxSwarms:
		limit = "blobs in all"
	}
	if limit != "" {
		t.stats.FullRefused++
		if t.full != limit {
			t.full = limit
			t.report(ReportFull, a.hello.Node, id, limit)
		}
		return nil
	}
	if s == nil {
		s = &swarm{id: id}
		if n := len(t.freeSwarm); n > 0 {
			s.slot = t.freeSwarm[n-1]
			t.freeSwarm = t.freeSwarm[:n-1]
			t.swarms[s.slot] = s
		} else {
			s.slot = uint32(len(t.swarms))
			t.swarms = append(t.swarms, s)
		}
		t.enter(s)
	}
	return s
}

// flags returns a's flags in s; 0 if it is no member.
func (t *Tracker) flags(a *agent, s *swarm) uint8 {
	if pos, ok := a.entries[s.slot]; ok {
		return s.members[pos].flags
	}
	return 0
}

// setFlags changes a's flags in s, which makes it a member or ends that.
func (t *Tracker) setFlags(a *agent, s *swarm, set, clr uint8) {
	pos, ok := a.entries[s.slot]
	var old uint8
	if ok {
		old = s.members[pos].flags
	}
	flags := old&^clr | set
	if flags == old {
		return
	}
	if !ok {
		pos = uint32(len(s.members))
		s.members = append(s.members, member{agent: a.slot})
		a.entries[s.slot] = pos
		t.stats.Entries++
	}
	s.members[pos].flags = flags
	has, had := flags&(fComplete|fPartial) != 0, old&(fComplete|fPartial) != 0
	if has != had {
		if has {
			s.have++
		} else {
			s.have--
		}
		if a.isOrigin() {
			if has {
				s.origins = append(s.origins, a)
			} else {
				i := slices.Index(s.origins, a)
				s.origins = slices.Delete(s.origins, i, i+1)
			}
		}
	}
	switch {
	case flags&^old&fComplete != 0:
		t.swap(s, int(pos), s.complete)
		s.complete++
	case old&^flags&fComplete != 0:
		s.complete--
		t.swap(s, int(pos), s.complete)
	}
	if flags == 0 {
		pos = a.entries[s.slot]
		t.swap(s, int(pos), len(s.members)-1)
		s.members = s.members[:len(s.members)-1]
		if n := cap(s.members); n > 64 && len(s.members) < n/4 {
			s.members = slices.Clip(slices.Clone(s.members))
		}
		delete(a.entries, s.slot)
		t.stats.Entries--
		if t.full != "" && t.stats.Entries < t.cfg.MaxEntries/10*9 {
			t.full = ""
		}
	}
	if s.a != nil {
		visible := fComplete | fLease
		if a.isOrigin() {
			visible |= fPartial
		}
		switch {
		case !ok:
			s.a.joined = true
			s.a.changed = s.a.changed || has && a.isOrigin()
		case flags == 0 || (flags^old)&visible != 0:
			s.a.changed = true
		}
	}
	t.touch(s)
}

func (t *Tracker) swap(s *swarm, i, j int) {
	if i == j {
		return
	}
	s.members[i], s.members[j] = s.members[j], s.members[i]
	t.agents[s.members[i].agent].entries[s.slot] = uint32(i)
	t.agents[s.members[j].agent].entries[s.slot] = uint32(j)
}

// announce takes in that a has a blob; sumsHash is of 32 bytes, or empty.
func (t *Tracker) announce(a *agent, id piece.ID, st trackerpb.State, sumsHash []byte) {
	t.stats.Announces++
	if st == trackerpb.State_STATE_GONE {
		if s := t.find(id); s != nil {
			t.setFlags(a, s, 0, fComplete|fPartial)
		}
		return
	}
	s := t.find(id)
	// Enough is said only to those who are not members: what wanting agents were
	// told of must not vanish because it finished.
	if st == trackerpb.State_STATE_COMPLETE && s != nil && s.complete >= t.cfg.Enough &&
		t.flags(a, s) == 0 && !a.isOrigin() {
		if len(sumsHash) == 32 {
			t.claim(a, s, [32]byte(sumsHash))
		}
		t.enough(a, id)
		return
	}
	if s = t.admitTo(a, id, s); s == nil {
		t.enough(a, id)
		return
	}
	t.found(s, a)
	if st == trackerpb.State_STATE_PARTIAL {
		t.setFlags(a, s, fPartial, fComplete)
		return
	}
	t.setFlags(a, s, fComplete, fPartial)
	if s.a != nil {
		if i := s.a.leaseOf(a); i >= 0 {
			t.leaseDone(s, i)
		}
	}
	if len(sumsHash) == 32 {
		t.claim(a, s, [32]byte(sumsHash))
	}
}

func (t *Tracker) enough(a *agent, id piece.ID) {
	t.stats.EnoughSent++
	m := t.send(a)
	if n := len(m.Enough); n > 0 && m.Enough[n-1].Blobs.Add(id) {
		return
	}
	e := &trackerpb.Enough{Blobs: &trackerpb.Blobs{}, AgainMs: t.againMs()}
	e.Blobs.Add(id)
	m.Enough = append(m.Enough, e)
}

// againMs returns after how many milliseconds what is not kept may be announced
// again: up to half of EnoughAgain later than that, so that a cluster does not come back
// at once.
func (t *Tracker) againMs() uint32 {
	again := t.cfg.EnoughAgain + time.Duration(t.rng.Int64N(int64(t.cfg.EnoughAgain)/2+1))
	return uint32(again.Milliseconds())
}

// offer accepts what is to be kept, or could tell something new of sums.
func (t *Tracker) offer(a *agent, o *trackerpb.Offer) {
	answer := &trackerpb.Accept{AgainMs: t.againMs()}
	for i, key := range o.Blobs {
		if s := t.keys[key].s; s == nil || !t.enoughOf(a, s, o.Sums[i]) {
			answer.Set(i)
			continue
		}
		t.stats.Announces++
		t.stats.EnoughSent++
	}
	m := t.send(a)
	m.Accepts = append(m.Accepts, answer)
}

// enoughOf reports whether an announcement that a is complete, with such a SumsKey,
// would be answered by Enough only.
func (t *Tracker) enoughOf(a *agent, s *swarm, sums uint64) bool {
	return s.complete >= t.cfg.Enough && !a.isOrigin() &&
		(sums == 0 || s.hashed && sums == trackerpb.SumsKey(&s.hash)) && t.flags(a, s) == 0
}

// claim takes the hash that a, which has the whole blob, gives of its sums. The
// first one is pinned; an origin's replaces that of a node, since a node that lies
// must not turn the others against the origin.
func (t *Tracker) claim(a *agent, s *swarm, hash [32]byte) {
	vouches := a.isOrigin()
	switch {
	case s.claims != nil && s.claims.hasBad && s.claims.disproved == hash:
		t.stats.HashConflicts++
		t.report(ReportHashConflict, a.hello.Node, s.id, "claims sums that were disproved")
	case !s.hashed:
		t.pin(s, hash, vouches)
	case s.hash == hash:
		s.vouched = s.vouched || vouches
	case vouches && !s.vouched:
		t.stats.HashReplaced++
		t.report(ReportHashReplaced, a.hello.Node, s.id, "an origin claims other sums")
		s.dispute().other(s.hash)
		t.pin(s, hash, true)
	default:
		t.stats.HashConflicts++
		t.report(ReportHashConflict, a.hello.Node, s.id, "the sums pinned first are kept")
		s.dispute().other(hash)
		m := t.send(a)
		m.Sums = append(m.Sums, &trackerpb.SumsHash{Blob: trackerpb.FromID(s.id), Hash: slices.Clone(s.hash[:])})
	}
}

// pin makes a hash the one that all are told.
func (t *Tracker) pin(s *swarm, hash [32]byte, vouched bool) {
	s.hashed, s.hash, s.vouched = true, hash, vouched
	if s.a != nil {
		s.a.rehash()
	}
	t.touch(s)
}

// dispute returns the swarm's claims, made if there were none.
func (s *swarm) dispute() *claims {
	if s.claims == nil {
		s.claims = &claims{}
	}
	return s.claims
}

// other notes a hash that differs from the pinned one.
func (c *claims) other(hash [32]byte) { c.alt, c.hasAlt = hash, true }

// disprove unpins a hash that a found to be false. A liar can only bring the
// swarm back to provisional sums with this: every link is verified anyway.
func (t *Tracker) disprove(a *agent, id piece.ID, hash [32]byte) {
	s := t.find(id)
	if s == nil || !s.hashed || s.hash != hash {
		return
	}
	t.stats.HashReplaced++
	t.report(ReportHashReplaced, a.hello.Node, id, "")
	c := s.dispute()
	c.disproved, c.hasBad = hash, true
	s.hashed, s.vouched = c.hasAlt && c.alt != hash, false
	if s.hashed {
		s.hash = c.alt
	}
	c.hasAlt = false
	if s.a != nil {
		s.a.rehash()
	}
	t.touch(s)
}
