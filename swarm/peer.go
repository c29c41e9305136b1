package swarm

import (
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/capelin-io/capelin/swarm/piece"
)

// Peer is a node's part in every swarm that it has joined, as a state machine:
// the driver tells it what happened with [Peer.Step] and performs the actions
// that it returns. It has no goroutine, clock or I/O, and its only randomness
// is PeerConfig.Seed, so the same events yield the same actions. It is not safe
// for concurrent use.
//
// # Time
//
// Step's now must not go backwards (an earlier one counts as the last). The
// driver sends EvTick when the time that [Peer.Deadline] returns has come.
//
// # Downloading
//
// A piece is downloaded in one attempt from one peer, its blocks in order; an
// attempt that stalls starts over at another peer. [PeerConfig.Window] bounds
// the attempts, pipe.depth the blocks outstanding on a connection, which is
// small while others wait at that peer and grows when our own requests leave
// its uplink dry. The next attempt goes to the least loaded neighbour that has
// something we lack, and asks for the rarest of it (see picker), or lets a
// seeder choose (wire.AnyPiece).
//
// # Uploading
//
// Admitted pieces are sent in the order of admission, one after the other as
// far as their requesters keep up; see peer_up.go.
//
// # Memory
//
// Bounded by the joined blobs and the connections: maxRequests waiting requests on each,
// one bitfield per joined blob, and PeerConfig.Strange bytes of all others that peers have open.
type Peer struct {
	cfg   PeerConfig
	rng   *rand.Rand
	epoch time.Time     // of the first Step; times inside are durations since then
	now   time.Duration // of the current Step
	next  time.Duration // the earliest time at which something may be due
	acts  []Action

	blobs map[piece.ID]*blob
	order []*blob  // those that are wanted, by priority, then by time of joining
	dirty []*blob  // those with pieces to announce
	list  []*conn  // connections, oldest first
	ids   []ConnID // theirs, in the same order: few enough to be searched
	nodes map[string]*node

	failures failures
	judgeAt  time.Duration // when a source may have had its time
	doubtful bool          // a download may have lost its last source in this Step

	up     uplink
	begun  []*attempt // whose blocks are not all requested, in order of their beginning
	down   downlink
	chores time.Duration // when the next round of chores is due
	pumpAt time.Duration // when asking again may succeed
	evict  time.Duration // not before, the next connection is displaced
	dialed int           // dials under way
	banned []*node       // cut off, in that order
	pumps  uint64        // rounds of pump
	joins  uint64        // blobs ever joined
	doubts int           // the sum of node.doubt

	strange int64 // bytes of the state of swarms that are only others': see reckon
}

const never = time.Duration(math.MaxInt64)

// choreEvery is the period of everything that needs no precision: stalls,
// dials, pings, idle connections.
const choreEvery = 250 * time.Millisecond

// NewPeer returns a Peer without blobs and connections.
func NewPeer(cfg PeerConfig) *Peer {
	cfg = cfg.withDefaults()
	h := uint64(14695981039346656037)
	for _, c := range []byte(cfg.Node) {
		h = (h ^ uint64(c)) * 1099511628211
	}
	p := &Peer{
		cfg:      cfg,
		rng:      rand.New(rand.NewPCG(cfg.Seed, h)),
		next:     never,
		chores:   never,
		pumpAt:   never,
		judgeAt:  never,
		failures: newFailures(),
		blobs:    make(map[piece.ID]*blob),
		nodes:    make(map[string]*node),
	}
	p.up.due, p.up.meter.since, p.down.meter.since = never, never, never
	p.up.limit.set(cfg.Up, 0)
	p.down.limit.set(cfg.Down, 0)
	return p
}

// Step takes one event at a time now and returns the actions that follow from
// it, in order. The slice is valid until the next Step.
func (p *Peer) Step(now time.Time, ev Event) []Action {
	if p.epoch.IsZero() {
		p.epoch = now
	}
	p.now = max(p.now, now.Sub(p.epoch))
	clear(p.acts)
	p.acts = p.acts[:0]
	switch ev := ev.(type) {
	case EvTick:
	case EvMessage:
		p.onMessage(ev.Conn, ev.Message)
	case EvBlockSent:
		p.onBlockSent(ev)
	case EvStored:
		p.onStored(ev)
	case EvConnected:
		p.onConnected(ev)
	case EvDisconnected:
		p.onDisconnected(ev.Conn)
	case EvDialFailed:
		p.onDialFailed(ev)
	case EvJoin:
		p.onJoin(ev)
	case EvLeave:
		p.onLeave(ev.ID)
	case EvLocal:
		p.onLocal(ev)
	case EvProven:
		p.onProven(ev.ID)
	case EvLost:
		p.onLost(ev.ID, ev.Piece)
	case EvIntact: // Whoever complained was wrong, and is not heard about it again for a while.
	case EvPeers:
		p.onPeers(ev)
	case EvPeersGone:
		p.onPeersGone(ev)
	case EvShare:
		p.onShare(ev)
	case EvSumsHash:
		p.onSumsHash(ev)
	case EvHeard:
		p.onHeard(ev)
	case EvLimits:
		p.up.limit.set(ev.Up, p.now)
		p.down.limit.set(ev.Down, p.now)
		p.arm(&p.pumpAt, p.now)
	}
	p.lighten()
	if p.now >= p.next {
		p.tick()
	}
	if p.doubtful {
		p.doubtful = false
		for _, b := range p.order {
			p.weigh(b)
		}
	}
	return p.acts
}

// Deadline returns when the driver is to send EvTick, or zero if nothing is
// pending. It may change with every Step.
func (p *Peer) Deadline() time.Time {
	if p.next == never {
		return time.Time{}
	}
	return p.epoch.Add(p.next)
}

// Status reports on a blob; ok is false if it is not joined.
func (p *Peer) Status(id piece.ID) (s BlobStatus, ok bool) {
	b := p.blobs[id]
	if b == nil {
		return s, false
	}
	s = BlobStatus{
		Have: b.have.Count(), InFlight: b.flight.blocks, BytesIn: b.traffic.in, BytesOut: b.traffic.out, Redundant: b.traffic.redundant,
	}
	if b.arrivals.last > 0 || b.arrivals.some {
		s.Progress = p.epoch.Add(b.arrivals.last)
	}
	s.Reach = b.id.Size
	if b.pick != nil {
		var failed uint64 // slots of those of whom nothing is hoped
		var waits time.Duration
		for _, l := range b.links {
			if l.slot >= 0 && p.hopeless(l.c.node) {
				failed |= 1 << l.slot
			}
			if at := max(l.c.gave, l.busyAt); l.slot >= 0 && (l.complete || l.useful > 0) && at > waits {
				waits, s.Waits = at, p.epoch.Add(at)
			}
		}
		if b.seats.seeds&^failed == 0 {
			s.Missing, s.Reach = b.spread(failed)
		}
	}
	for _, l := range b.links {
		if !l.open {
			continue
		}
		s.Peers++
		if !p.hopeless(l.c.node) && (l.want && !l.complete || b.useful(l)) {
			s.Useful++
		}
	}
	for _, k := range b.known.list {
		if k.node.conn == nil && k.node.banned <= p.now && !p.hopeless(k.node) {
			s.Known++
		}
	}
	s.DeadEnd, s.Lost = p.deadEnd(b)
	return s, true
}

// act appends an action.
func (p *Peer) act(a Action) { p.acts = append(p.acts, a) }

// arm sets a due time to t if that is earlier, and sees to it that the driver
// comes back by then.
func (p *Peer) arm(due *time.Duration, t time.Duration) {
	*due = min(*due, t)
	p.next = min(p.next, t)
}

// tick does whatever is due and computes the next deadline afresh.
func (p *Peer) tick() {
	p.next = never
	p.dirty = slices.DeleteFunc(p.dirty, func(b *blob) bool {
		return p.now >= b.announcing.due && p.announce(b)
	})
	if p.now >= p.chores {
		p.chores = never
		p.housekeeping()
	}
	if p.now >= p.up.due {
		p.up.due = never
		p.send()
	}
	if p.now >= p.pumpAt {
		p.pump()
	}
	if p.now >= p.judgeAt {
		p.judge()
	}
	for _, b := range p.dirty {
		p.next = min(p.next, b.announcing.due)
	}
	p.next = min(p.next, p.chores, p.up.due, p.pumpAt, p.judgeAt)
}

// housekeeping runs every choreEvery while there is anything to look after.
func (p *Peer) housekeeping() {
	for _, c := range slices.Clone(p.list) {
		p.tendConn(c)
	}
	p.expireUploads()
	p.down.patience.fade(p.now)
	for len(p.banned) > 0 && p.banned[0].banned <= p.now {
		n := p.banned[0]
		p.banned = p.banned[1:]
		p.forget(n)
	}
	p.tendBlobs()
	p.dial()
	p.pump()
	if len(p.list) > 0 || p.wanting() || p.dialed > 0 || len(p.banned) > 0 {
		p.arm(&p.chores, p.now+choreEvery)
	}
}

// wanting reports whether any blob is being downloaded.
func (p *Peer) wanting() bool {
	for _, b := range p.order {
		if b.downloading() {
			return true
		}
	}
	return false
}

// jitter returns d with up to half of it added or taken away.
func (p *Peer) jitter(d time.Duration) time.Duration {
	return d/2 + time.Duration(p.rng.Int64N(int64(d)+1))
}
