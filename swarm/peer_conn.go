package swarm

import (
	"slices"
	"time"

	"github.com/capelin-io/capelin/swarm/piece"
	"github.com/capelin-io/capelin/swarm/wire"
)

// Bounds on what one connection can make us keep or do.
const (
	maxForeign  = 4096 // swarms that a peer has open on a connection
	maxRequests = 256  // requests of a peer that wait here
)

// Delays between peers.
const (
	giveUpAfter  = 12 * time.Second // one that owes us blocks and is silent is closed
	snubFor      = 4 * time.Second  // a stalled peer is asked again then
	dialBackoff  = 500 * time.Millisecond
	maxBackoff   = 30 * time.Second
	surplusAfter = 2 * time.Second // a refused peer is dialed again then
	answerWithin = 5 * time.Second // a peer that does not open a swarm by then does not have it
	starveAfter  = 2 * time.Second // without a piece, further peers are tried
	tenure       = 8 * time.Second // a useful connection is not displaced before
	evictEvery   = time.Second
)

// node is what we know of another node, connected or not.
type node struct {
	name, addr, zone string
	role             wire.Role
	conn             *conn
	dialing          bool
	fails            int
	retry            time.Duration // not dialed before
	banned           time.Duration // cut off until then
	refs             int           // blobs that know it
	doubt            int           // pieces that it sent wrong and nobody has sent right
}

// conn is a connection.
type conn struct {
	// Downloading from this peer. What chooseAmong looks at comes first, and what it
	// looks at in every neighbour in the first 64 bytes.
	far         bool          // it is in another zone
	outstanding int           // blocks requested here and not arrived, AnyPiece included
	depth       int           // how many blocks may be outstanding
	part        int           // attempts whose blocks are not all requested
	claimed     uint64        // the round of pump in which a blob could use more of it,
	claimant    *blob         // and which; those after it stay away
	busy        time.Duration // not asked before
	snubbed     time.Duration // until then it is asked nothing; 0: it is not
	queue       int           // the last reported load, when, without our own
	queueAt     time.Duration
	took        time.Duration // how long its pieces take, smoothed; 0: none has come
	rtt         time.Duration // round trip; 0: not known
	attempts    []*attempt    // in order of their beginning
	ghosts      int           // blocks that may still come although we took the request back
	owed        time.Duration // since when it owes us something and was silent
	stalls      int           // in a row

	id      ConnID
	node    *node
	hello   wire.Hello
	inbound bool
	since   time.Duration
	closed  bool // ActClose was returned; nothing more is sent or heard
	code    wire.Code

	links   []*link               // every swarm that either side has opened here
	byID    map[piece.ID]*link    // the same
	theirs  map[wire.Handle]*link // by the peer's handle
	recent  *link                 // of the last message
	former  map[wire.Handle]bool  // handles that it has closed
	handles uint32                // the last handle we gave

	keep keepalive
	idle time.Duration // since when nobody wants anything here; never if somebody does

	// Uploading to this peer.
	requests int           // of this peer waiting here
	inDriver int           // blocks given to the driver and not sent
	sending  []*upload     // what they belong to, in order
	gave     time.Duration // when the driver last took one up
	refused  time.Duration // until then the peer was told to wait
	sumBytes float64
	sumAt    time.Duration
}

// link is a swarm on a connection: what the peer opened, and what we did.
type link struct {
	c    *conn
	blob *blob // nil while we have not joined

	mine   wire.Handle // ours, if opened
	opened bool        // we have sent Open
	behind bool        // and pieces have come or gone since that the peer was not told of

	his      wire.Handle
	open     bool // the peer has sent Open
	want     bool
	complete bool
	source   bool          // the tracker says so
	dry      time.Duration // the peer, of another zone, has nothing for ours before this
	have     *piece.Bits   // nil if complete

	// Downloading.
	slot    int           // in blob.slots, or -1
	useful  int           // wanted pieces that a partial peer has
	any     int           // AnyPiece requests outstanding
	nothing time.Duration // until then it is not asked for AnyPiece: it said Lost
	sums    sumsState

	id    piece.ID
	since time.Duration // when we opened it, or the tracker named the peer

	// Uploading.
	haves     []uint32 // pieces to be announced
	muted     []uint32 // pieces we have not announced since the peer has them
	uploads   []*upload
	refused   int // the piece that was refused last, and when
	refusedAt time.Duration
	given     map[int32]bool // pieces sent, or being sent, and not yet announced by the peer
	pushed    int            // states of our list that we have sent, without a gap
	asked     bool           // the peer has asked for sums, and is told as they grow
}

// reset forgets what went over a link since one side opened it.
func (l *link) reset() {
	l.asked, l.pushed, l.given, l.haves, l.muted, l.sums = false, 0, nil, nil, nil, sumsState{}
}

// conn returns the connection of that number, or nil.
func (p *Peer) conn(id ConnID) *conn {
	if k := slices.Index(p.ids, id); k >= 0 {
		return p.list[k]
	}
	return nil
}

func (p *Peer) node(name string) *node {
	n := p.nodes[name]
	if n == nil {
		n = &node{name: name}
		p.nodes[name] = n
	}
	return n
}

// forget drops a node that nothing refers to.
func (p *Peer) forget(n *node) {
	if n.refs == 0 && n.conn == nil && !n.dialing && n.banned <= p.now && n.doubt == 0 && p.nodes[n.name] == n {
		delete(p.nodes, n.name)
	}
}

func (p *Peer) tell(c *conn, m wire.Message) {
	if c.closed {
		return
	}
	c.keep.spoke = p.now
	p.act(ActSend{c.id, m})
}

// close ends a connection. Its state is taken down at once: what it owed us
// is asked elsewhere without waiting for EvDisconnected.
func (p *Peer) close(c *conn, code wire.Code, text string) {
	if c.closed {
		return
	}
	p.act(ActClose{c.id, code, text})
	c.code = code
	p.drop(c)
}

// drop takes a connection's state down.
func (p *Peer) drop(c *conn) {
	c.closed = true
	for len(c.links) > 0 {
		p.unlink(c.links[len(c.links)-1])
	}
	if p.up.active -= c.inDriver; p.up.active == 0 {
		p.up.meter.stop(p.now)
	}
	c.inDriver = 0
	if k := slices.Index(p.ids, c.id); k >= 0 {
		p.list, p.ids = slices.Delete(p.list, k, k+1), slices.Delete(p.ids, k, k+1)
	}
	if c.node.conn == c {
		c.node.conn = nil
		p.backoff(c)
	}
	p.forget(c.node)
	p.arm(&p.pumpAt, p.now)
	p.send()
}

// backoff decides when a node whose connection ended may be dialed again.
func (p *Peer) backoff(c *conn) {
	n := c.node
	switch c.code {
	case wire.CodeSurplus:
		n.fails++
		n.retry = p.now + p.jitter(min(surplusAfter<<min(n.fails-1, 3), maxBackoff))
	case wire.CodeDuplicate:
	case wire.CodeIdle:
		n.retry = p.now + p.jitter(dialBackoff)
	default:
		if p.now-c.since > tenure {
			n.fails = 0
		}
		n.fails++
		n.retry = p.now + p.jitter(min(dialBackoff<<min(n.fails-1, 8), maxBackoff))
	}
	p.arm(&p.chores, p.now)
}

func (p *Peer) onDialFailed(ev EvDialFailed) {
	n := p.nodes[ev.Node]
	if n == nil || !n.dialing {
		return
	}
	n.dialing = false
	p.dialed--
	n.fails++
	n.retry = p.now + p.jitter(min(dialBackoff<<min(n.fails-1, 8), maxBackoff))
	p.forget(n)
	p.arm(&p.chores, p.now+choreEvery)
}

func (p *Peer) onConnected(ev EvConnected) {
	if p.conn(ev.Conn) != nil {
		return
	}
	n := p.node(ev.Peer.Node)
	c := &conn{
		id: ev.Conn, node: n, hello: ev.Peer, inbound: ev.Inbound, since: p.now, rtt: min(ev.RTT, maxRTT),
		byID: make(map[piece.ID]*link), theirs: make(map[wire.Handle]*link),
		keep: keepalive{heard: p.now, spoke: p.now}, idle: p.now, owed: never, depth: minDepth, sumBytes: sumsBurst, sumAt: p.now,
	}
	if n.dialing && !ev.Inbound {
		n.dialing = false
		p.dialed--
	}
	n.role, n.zone = ev.Peer.Role, ev.Peer.Zone
	c.far = p.far(n)
	if ev.Peer.Addr != "" {
		n.addr = ev.Peer.Addr
	}
	refuse := func(code wire.Code, text string) {
		c.closed = true
		p.act(ActClose{c.id, code, text})
		p.forget(n)
	}
	switch {
	case n.name == p.cfg.Node:
		n.retry = never
		refuse(wire.CodeDuplicate, "connected to itself")
		return
	case n.banned > p.now:
		refuse(wire.CodeConvicted, "cut off")
		return
	}
	if old := n.conn; old != nil {
		// The connection that the smaller name dialed stays; of two dialed by the
		// same side, the newer: its dialer knows that the older is dead.
		dialer := func(c *conn) string {
			if c.inbound {
				return n.name
			}
			return p.cfg.Node
		}
		if dialer(old) < dialer(c) {
			refuse(wire.CodeDuplicate, "already connected")
			return
		}
		n.conn = nil
		p.close(old, wire.CodeDuplicate, "connected anew")
	} else if !p.room(c.far, 0) {
		if v := p.surplus(c); v != nil {
			p.close(v, wire.CodeSurplus, "displaced by a newcomer")
		} else {
			refuse(wire.CodeSurplus, "enough connections")
			return
		}
	}
	n = p.node(ev.Peer.Node) // closing the old connection may have dropped it
	n.role, n.zone, n.conn, c.node = ev.Peer.Role, ev.Peer.Zone, c, n
	if ev.Peer.Addr != "" {
		n.addr = ev.Peer.Addr
	}
	p.list, p.ids = append(p.list, c), append(p.ids, c.id)
	for _, b := range p.order {
		if b.downloading() && b.known[n.name] != nil {
			p.link(c, b.id)
			p.open(c, b)
		}
	}
	p.arm(&p.chores, p.now+choreEvery)
}

// surplus returns a connection that may be displaced by newcomer c, or nil:
// first one over which nobody wants anything, then an old one, at random, but
// not many in a row.
func (p *Peer) surplus(c *conn) *conn {
	var best *conn
	seen := 0
	if o := p.idlest(c.far); o != nil {
		return o
	}
	if p.now < p.evict || !c.inbound {
		return nil
	}
	for _, o := range p.list {
		if o.far != c.far || p.now-o.since < tenure || o.outstanding > 0 && p.cfg.Role != wire.RoleOrigin {
			continue
		}
		if seen++; p.rng.IntN(seen) == 0 {
			best = o
		}
	}
	if best != nil {
		p.evict = p.now + evictEvery
	}
	return best
}

func (p *Peer) onDisconnected(id ConnID) {
	if c := p.conn(id); c != nil {
		p.drop(c)
	}
}

// tendConn looks after one connection, every choreEvery.
func (p *Peer) tendConn(c *conn) {
	p.checkStall(c)
	if c.closed {
		return
	}
	switch c.keep.verdict(p.now) {
	case aliveDead:
		p.close(c, wire.CodeTimeout, "nothing heard for too long")
		return
	case alivePing:
		p.tell(c, &wire.Ping{})
	}
	wanted := false
	for _, l := range c.links {
		if l.blob != nil && l.opened && l.open && (l.blob.downloading() || l.want && !l.complete) {
			wanted = true
			break
		}
		if l.blob != nil && l.blob.downloading() && l.opened && !l.open && p.now-l.since < answerWithin {
			wanted = true
			break
		}
	}
	switch {
	case wanted:
		c.idle = never
	case c.idle == never:
		c.idle = p.now
	case p.now-c.idle > p.cfg.IdleAfter:
		p.close(c, wire.CodeIdle, "nothing shared any more")
	}
}

// dial connects downloads with peers of their swarms, as far as they have too
// few.
func (p *Peer) dial() {
	for _, b := range p.order {
		if b.downloading() {
			p.dialFor(b)
		}
	}
}

func (p *Peer) dialFor(b *blob) {
	fed := false
	for _, l := range b.links {
		fed = fed || (!l.c.far || b.brings() != 0) && b.useful(l)
	}
	starving := p.now-max(b.progress, b.began, b.looked) > starveAfter && b.inflight == 0
	if starving {
		b.looked = p.now // once in a while: the source may just be slow
	}
	near := p.dialZone(b, false, p.cfg.DialConns, !fed || starving, starving)
	if b.brings() != 0 {
		// Whoever brings pieces into its zone has half as many connections to others
		// beside those inside it; or all, as far as there is nobody inside.
		goal := max(p.cfg.DialConns-near, (p.cfg.DialConns+1)/2)
		p.dialZone(b, true, goal, !fed || starving, starving)
	}
}

// dialZone connects b with peers of its own zone, or with those of others (far),
// until it has goal such connections, or one more than there are (further). It
// returns how many there are.
func (p *Peer) dialZone(b *blob, far bool, goal int, further, starving bool) int {
	linked, dialing := 0, 0
	for _, l := range b.links {
		if l.c.far == far && (l.open || p.now-l.since <= answerWithin/2) { // else it may come to take part, but does not now
			linked++
		}
	}
	for _, k := range b.peers {
		if k.node.dialing && p.far(k.node) == far {
			dialing++
		}
	}
	if starving && dialing == 0 && !p.room(far, p.dialed) {
		if v := p.useless(b, far); v != nil {
			p.close(v, wire.CodeSurplus, "nothing to get")
		}
	}
	if further && p.room(far, p.dialed) && linked+dialing >= goal && dialing == 0 {
		goal = linked + 1 // starving: look further, one at a time
	}
	for n := linked + dialing; n < goal && p.dialed < 2*p.cfg.DialConns; n++ {
		if !p.room(far, p.dialed) {
			v := p.idlest(far)
			if v == nil {
				break
			}
			p.close(v, wire.CodeSurplus, "room for a download")
		}
		k := p.candidate(b, far)
		if k == nil {
			break
		}
		k.node.dialing = true
		p.dialed++
		p.act(ActDial{k.node.name, k.node.addr})
	}
	return linked + dialing
}

// room reports whether there may be another connection, in our zone or to another,
// beside so many more.
func (p *Peer) room(far bool, more int) bool {
	n := more
	for _, c := range p.list {
		if c.far == far {
			n++
		}
	}
	if far {
		return n < (p.cfg.MaxConns+1)/2
	}
	return n < p.cfg.MaxConns
}

// idlest returns a connection over which nobody wants anything.
func (p *Peer) idlest(far bool) *conn {
	for _, o := range p.list {
		if o.far == far && o.idle != never && p.now-o.idle > time.Second {
			return o
		}
	}
	return nil
}

// useless returns a connection that gives nothing for b and takes nothing.
func (p *Peer) useless(b *blob, far bool) *conn {
	for _, o := range p.list {
		l := o.byID[b.id]
		if o.far == far && (l == nil || !l.complete && l.useful == 0) && o.requests == 0 && o.inDriver == 0 && o.outstanding == 0 {
			return o
		}
	}
	return nil
}

// candidate picks a peer to dial for b, in our zone or in another, at random:
// origins and sources first.
func (p *Peer) candidate(b *blob, far bool) *known {
	var best *known
	rank, seen := -1, 0
	for _, k := range b.peers {
		n := k.node
		if n.conn != nil || n.dialing || n.addr == "" || n.name == p.cfg.Node || n.retry > p.now || n.banned > p.now || p.far(n) != far {
			continue
		}
		r := 1
		if k.info.Source || n.role == wire.RoleOrigin {
			r = 2
		}
		switch {
		case r > rank:
			best, rank, seen = k, r, 1
		case r == rank:
			if seen++; p.rng.IntN(seen) == 0 {
				best = k
			}
		}
	}
	return best
}

// convict cuts a node off.
func (p *Peer) convict(n *node, b *blob, i int, why error) {
	if n.banned > p.now {
		return
	}
	n.banned = p.now + p.cfg.BanFor
	p.banned = append(p.banned, n)
	p.arm(&p.chores, p.now+choreEvery)
	p.act(ActReport{Report{Kind: ReportConvicted, Node: n.name, ID: b.id, Piece: i, Err: why}})
	if n.conn != nil {
		p.close(n.conn, wire.CodeConvicted, why.Error())
	}
}

// link returns the link of a swarm on a connection, made if needed.
func (p *Peer) link(c *conn, id piece.ID) *link {
	l := c.byID[id]
	if l == nil {
		l = &link{c: c, id: id, slot: -1}
		c.byID[id] = l
		c.links = append(c.links, l)
		if b := p.blobs[id]; b != nil {
			p.bind(l, b)
		}
	}
	return l
}

// bind brings a link and its blob together.
func (p *Peer) bind(l *link, b *blob) {
	l.blob = b
	b.links = append(b.links, l)
	k := b.known[l.c.node.name]
	l.source = k != nil && k.info.Source
}

// unlink removes a link and all that goes on over it.
func (p *Peer) unlink(l *link) {
	p.detach(l)
	c := l.c
	if l.open {
		delete(c.theirs, l.his)
	}
	c.recent = nil
	delete(c.byID, l.id)
	c.links = slices.DeleteFunc(c.links, func(o *link) bool { return o == l })
}

// detach parts a link from its blob.
func (p *Peer) detach(l *link) {
	if l.blob == nil {
		return
	}
	p.shut(l)
	b := l.blob
	b.links = slices.DeleteFunc(b.links, func(o *link) bool { return o == l })
	l.blob = nil
}

// shut ends what goes on over a link because the peer left the swarm: its
// requests, ours, and what it has.
func (p *Peer) shut(l *link) {
	p.withdraw(l)
	p.abortAll(l)
	if b := l.blob; b != nil && l.slot >= 0 {
		if !l.complete {
			for i := l.have.NextSet(0); i >= 0; i = l.have.NextSet(i + 1) {
				b.pick.lose(i, l.slot)
			}
		}
		b.slots[l.slot] = nil
		b.unseed(l)
		b.near &^= 1 << l.slot
		l.slot, l.useful = -1, 0
	}
}

// open tells the peer that we take part in a blob's swarm, once.
func (p *Peer) open(c *conn, b *blob) {
	l := c.byID[b.id]
	if l == nil || l.opened || c.closed {
		return
	}
	c.handles++
	l.mine, l.opened, l.behind, l.since = wire.Handle(c.handles), true, false, p.now
	l.haves = nil
	m := &wire.Open{Blob: l.mine, ID: b.id, Want: b.want, Complete: b.have.Full()}
	if !m.Complete {
		if b.have.Count() > 0 {
			m.Bits, _ = b.have.AppendBinary(nil)
		}
	}
	p.tell(c, m)
	p.askSums(l)
}
