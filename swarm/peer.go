package swarm

import (
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/capelin-io/capelin/swarm/piece"
	"github.com/capelin-io/capelin/swarm/wire"
)

// PeerConfig configures a [Peer]. Only Node is required; a zero field takes the
// default that its comment states. Nobody else has to agree on any of them.
type PeerConfig struct {
	Node string    // this node's name, unique in the cluster
	Zone string    // peers in the same zone are preferred; may be empty
	Role wire.Role // default wire.RoleAgent
	Seed uint64    // of every random choice; peers should differ

	// MaxConns bounds the connections, inbound and outbound together; there may be
	// half as many again to other zones. Default: 24 for an agent, 64 for an origin.
	MaxConns int
	// DialConns is how many connections a downloader of a blob wants to peers of
	// its swarm and zone before it stops dialing; below MaxConns, so that late
	// joiners find room, but not far below: who comes last has no others than these.
	// Default: two thirds of MaxConns, at most 16.
	DialConns int
	// Window is how many pieces are downloaded at once, over all blobs, at
	// moderate speed; it grows with the bandwidth when pieces are small, and by what
	// travels meanwhile when peers are far. Peers that are
	// slower than others have a request each beside it.
	// Default 8.
	Window int
	// BlobMemory and Memory bound the bytes of unfinished pieces of one blob and
	// of all. Default 32 MiB and 64 MiB; two pieces of a blob always fit.
	BlobMemory, Memory int64
	// UpQueue is how many pieces wait or are being sent here at moderate speed;
	// a further request is answered with Busy. Default 6.
	UpQueue int
	// HaveDelay is the time between two announcements of pieces of a blob, each to
	// some of its peers; what comes meanwhile is collected. It is down to a twentieth of
	// that at high speed. Default 40 ms.
	HaveDelay time.Duration
	// StallAfter is how long a peer that owes us blocks may be silent before they
	// are asked from another; more on slow links. Default 1.5 s.
	StallAfter time.Duration
	// IdleAfter is when a connection over which neither side wants anything is
	// closed. Default 30 s.
	IdleAfter time.Duration
	// BanFor is how long a convicted node is cut off. Default 10 min.
	BanFor time.Duration
	// Up and Down are the initial bandwidth limits in bytes per second; 0: none.
	Up, Down int64
}

func (c PeerConfig) withDefaults() PeerConfig {
	def := func(v *int, d int) {
		if *v <= 0 {
			*v = d
		}
	}
	dur := func(v *time.Duration, d time.Duration) {
		if *v <= 0 {
			*v = d
		}
	}
	if c.Role == 0 {
		c.Role = wire.RoleAgent
	}
	if c.Role == wire.RoleOrigin {
		def(&c.MaxConns, 64)
	}
	def(&c.MaxConns, 24)
	def(&c.DialConns, max(1, min(16, c.MaxConns*2/3)))
	def(&c.Window, 8)
	def(&c.UpQueue, 6)
	if c.BlobMemory <= 0 {
		c.BlobMemory = 32 << 20
	}
	if c.Memory <= 0 {
		c.Memory = 64 << 20
	}
	dur(&c.HaveDelay, 40*time.Millisecond)
	dur(&c.StallAfter, 1500*time.Millisecond)
	dur(&c.IdleAfter, 30*time.Second)
	dur(&c.BanFor, 10*time.Minute)
	return c
}

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
// the attempts, conn.depth the blocks outstanding on a connection, which is
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
// Bounded by the joined blobs and the connections: maxForeign announced swarms,
// maxRequests waiting requests and one bitfield per announced swarm on each.
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

	up        uplink
	begun     []*attempt // whose blocks are not all requested, in order of their beginning
	down      downlink
	upCap     bucket
	dnCap     bucket
	chores    time.Duration // when the next round of chores is due
	pumpAt    time.Duration // when asking again may succeed
	evict     time.Duration // not before, the next connection is displaced
	dialed    int           // dials under way
	banned    []*node       // cut off, in that order
	patience  int           // doublings of every stall's time, since blocks came after all
	impatient time.Duration // when one of them is taken back
	pumps     uint64        // rounds of pump
	joins     uint64        // blobs ever joined
	doubts    int           // the sum of node.doubt
	memory    int64         // bytes of unfinished pieces and of those being stored
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
		cfg:    cfg,
		rng:    rand.New(rand.NewPCG(cfg.Seed, h)),
		next:   never,
		chores: never,
		pumpAt: never,
		blobs:  make(map[piece.ID]*blob),
		nodes:  make(map[string]*node),
	}
	p.up.due, p.up.meter.since, p.down.meter.since = never, never, never
	p.upCap.set(cfg.Up, 0)
	p.dnCap.set(cfg.Down, 0)
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
	case EvLimits:
		p.upCap.set(ev.Up, p.now)
		p.dnCap.set(ev.Down, p.now)
		p.arm(&p.pumpAt, p.now)
	}
	if p.now >= p.next {
		p.tick()
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
		Have: b.have.Count(), InFlight: b.inflight, BytesIn: b.in, BytesOut: b.out, Redundant: b.redundant,
	}
	if b.progress > 0 || b.stored {
		s.Progress = p.epoch.Add(b.progress)
	}
	if b.pick != nil && b.seeds == 0 {
		s.Missing = b.pick.nowhere()
	}
	for _, l := range b.links {
		if !l.open {
			continue
		}
		s.Peers++
		if l.want && !l.complete || b.useful(l) {
			s.Useful++
		}
	}
	for _, k := range b.known {
		if k.node.conn == nil && k.node.banned <= p.now {
			s.Known++
		}
	}
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
		return p.now >= b.haveDue && p.announce(b)
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
	for _, b := range p.dirty {
		p.next = min(p.next, b.haveDue)
	}
	p.next = min(p.next, p.chores, p.up.due, p.pumpAt)
}

// housekeeping runs every choreEvery while there is anything to look after.
func (p *Peer) housekeeping() {
	for _, c := range slices.Clone(p.list) {
		p.tendConn(c)
	}
	p.expireUploads()
	if p.patience > 0 && p.now >= p.impatient {
		p.patience, p.impatient = p.patience-1, p.now+patienceFor
	}
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

// bucket is a token bucket in virtual time. Its level may go below zero by what
// was last taken, so that any size passes.
type bucket struct {
	rate  float64 // bytes per second; 0: unlimited
	level float64
	at    time.Duration
}

func (k *bucket) burst() float64 { return max(k.rate/20, 2*piece.MaxBlock) }

// set changes the rate; the level is kept within the new burst.
func (k *bucket) set(rate int64, now time.Duration) {
	k.refill(now)
	first := k.rate == 0
	k.rate = float64(max(rate, 0))
	if first {
		k.level = k.burst()
	}
	k.level = min(k.level, k.burst())
	k.level = max(k.level, -k.burst())
}

func (k *bucket) refill(now time.Duration) {
	if k.rate > 0 && now > k.at {
		k.level = min(k.burst(), k.level+k.rate*(now-k.at).Seconds())
	}
	k.at = max(k.at, now)
}

// ready returns when something may be taken: now, or later.
func (k *bucket) ready(now time.Duration) time.Duration {
	if k.rate == 0 {
		return now
	}
	k.refill(now)
	if k.level > 0 {
		return now
	}
	return now + time.Duration((1-k.level)/k.rate*1e9) + 1
}

func (k *bucket) take(n int) {
	if k.rate > 0 {
		k.level -= float64(n)
	}
}

// give returns what was taken for something that did not happen.
func (k *bucket) give(n int) {
	if k.rate > 0 {
		k.level = min(k.burst(), k.level+float64(n))
	}
}

// meter measures bytes per second over the time in which something was under
// way, smoothed over about a second.
type meter struct {
	rate  float64 // bytes per second; 0: not yet known
	bytes int
	busy  time.Duration // busy time that belongs to bytes
	since time.Duration // busy since; never while idle
}

const meterSpan = 100 * time.Millisecond

func (m *meter) start(now time.Duration) {
	if m.since == never {
		m.since = now
	}
}

func (m *meter) stop(now time.Duration) {
	if m.since != never {
		m.busy += now - m.since
		m.since = never
	}
}

// add counts n bytes that arrived or left at now.
func (m *meter) add(n int, now time.Duration) {
	m.bytes += n
	if m.since != never {
		m.busy += now - m.since
		m.since = now
	}
	span := meterSpan
	if m.rate == 0 {
		span /= 8
	}
	if m.busy < span || m.bytes < 2*piece.MinLength {
		return
	}
	r := float64(m.bytes) / m.busy.Seconds()
	if m.rate == 0 {
		m.rate = r
	} else {
		// The weight of a long span is higher.
		w := min(0.9, 0.2*m.busy.Seconds()/meterSpan.Seconds())
		m.rate += w * (r - m.rate)
	}
	m.bytes, m.busy = 0, 0
}
