package swarm

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/capelin-io/capelin/swarm/piece"
	"github.com/capelin-io/capelin/swarm/wire"
)

// maxHaves is how many pieces one Have announces at most.
const maxHaves = 1024

// maxKnown bounds the peers that are remembered for one blob.
const maxKnown = 512

// blob is a joined swarm.
type blob struct {
	id       piece.ID
	n        int // pieces
	want     bool
	priority int
	joined   uint64        // order of joining
	began    time.Duration // when it was first wanted
	looked   time.Duration // when it last looked for more peers since none gave anything

	have     *piece.Bits
	proven   bool
	complete bool // ActComplete was returned
	stored   bool // something was stored
	progress time.Duration

	sums     *piece.Sums // replaced, never appended to, since the driver reads it
	segments []segment   // who supplied them; none if they are our own
	adopted  *piece.Sums // the list before, while sums is another and still empty
	hash     *[32]byte   // of the only acceptable list
	refusals []refusal
	summing  bool // ActComputeSums was returned

	known map[string]*known
	peers []*known // the same, in order of arrival
	links []*link

	pick     *picker       // nil unless wanted
	slots    []*link       // of pick; nil unless wanted
	seeds    uint64        // slots of complete peers
	common   uint64        // those of them that are neither origins nor sources
	near     uint64        // slots of peers of our own zone
	share    uint16        // of what comes from other zones, what we bring; see peer_zone.go
	helps    uint16        // what we have taken on beside that,
	helped   time.Duration // when,
	steps    int           // and how often
	attempts []*attempt    // by piece; nil unless wanted
	active   int           // attempts, second ones included, and AnyPiece requests
	anys     int           // those of them that are AnyPiece requests
	inflight int           // blocks requested and not arrived
	storing  map[int]*attempt
	suspects map[int][]suspect
	extra    int           // bytes asked a second time, of the budget for the end game
	endAt    time.Duration // when the end game looks again

	haveDue  time.Duration // when pieces are announced; never if nobody is to hear of any
	haveNext time.Duration // not before, the next time
	haveTurn int           // in links: who is told then
	sent     []uint32      // by piece: how often it was sent, or is being; nil before the first
	rechecks map[int]time.Duration

	in, out, redundant int64
}

// known is a peer that the tracker named for a blob.
type known struct {
	node *node
	info PeerInfo
}

// downloading reports whether pieces are still to come.
func (b *blob) downloading() bool { return b.want && !b.have.Full() }

// useful reports whether the peer may give us something we lack, now or later.
func (b *blob) useful(l *link) bool {
	return b.downloading() && l.open && !l.c.closed && (l.complete || l.want || l.useful > 0)
}

// verifiable returns how many leading pieces can be checked. A list of which
// only the hash would be acceptable counts when it is that.
func (b *blob) verifiable() int { return b.sums.Verifiable() }

// fetchable reports whether i is to be downloaded and not under way.
func (b *blob) fetchable(i int) bool {
	return b.want && i < b.verifiable() && !b.have.Has(i) && b.attempts[i] == nil && b.storing[i] == nil
}

// addWanted puts i among the wanted pieces if it is fetchable.
func (b *blob) addWanted(i int) {
	if b.pick == nil || b.pick.has(i) || !b.fetchable(i) {
		return
	}
	b.pick.add(i)
	b.count(i, 1)
}

func (b *blob) removeWanted(i int) {
	if b.pick == nil || !b.pick.has(i) {
		return
	}
	b.pick.remove(i)
	b.count(i, -1)
}

// count adjusts the useful counters of the neighbours that have i.
func (b *blob) count(i, d int) {
	for m := b.pick.at[i].mask; m != 0; m &= m - 1 {
		b.slots[trailingZeros(m)].useful += d
	}
}

func (p *Peer) onJoin(ev EvJoin) {
	if ev.ID.Validate() != nil {
		p.act(ActFail{ev.ID, fmt.Errorf("joining %s: %w", ev.ID, piece.ErrInvalid)})
		return
	}
	b := p.blobs[ev.ID]
	again := b != nil
	if b == nil {
		n := ev.ID.Pieces()
		b = &blob{
			id: ev.ID, n: n, known: make(map[string]*known), haveDue: never,
			have: piece.NewBits(n), sums: piece.NewSums(ev.ID),
		}
		if ev.Have != nil && ev.Have.Len() == n {
			b.have = ev.Have
		}
		if ev.Sums != nil && ev.Sums.ID() == ev.ID {
			b.sums = ev.Sums
		}
		b.proven = ev.Proven && b.sums.Complete()
		if ev.Want && !b.proven && b.sums.Len() > 0 {
			b.segments = []segment{{}} // from who knows whom, before a restart
		}
		p.blobs[ev.ID] = b
		p.joins++
		b.joined = p.joins
		for _, c := range p.list {
			if l := c.byID[ev.ID]; l != nil {
				p.bind(l, b)
			}
		}
	}
	wanted := b.want
	b.want, b.priority = ev.Want, ev.Priority
	p.order = slices.DeleteFunc(p.order, func(o *blob) bool { return o == b })
	if b.want {
		at, _ := slices.BinarySearchFunc(p.order, b, func(x, y *blob) int {
			return cmp.Or(cmp.Compare(x.priority, y.priority), cmp.Compare(x.joined, y.joined))
		})
		p.order = slices.Insert(p.order, at, b)
	}
	if again && wanted == b.want {
		p.arm(&p.pumpAt, p.now)
		return
	}
	if again {
		p.stopWanting(b)
		for _, l := range b.links {
			if l.opened { // say it anew
				p.tell(l.c, &wire.Close{Blob: l.mine})
				l.opened, l.haves, l.muted = false, nil, nil
			}
		}
	}
	if b.want {
		p.startWanting(b)
	}
	for _, l := range slices.Clone(b.links) {
		p.attach(l)
	}
	for _, c := range slices.Clone(p.list) {
		if b.downloading() && b.known[c.node.name] != nil {
			p.link(c, b.id)
			p.open(c, b)
		}
	}
	p.maybeComplete(b)
	p.arm(&p.chores, p.now)
	p.arm(&p.pumpAt, p.now)
}

// startWanting makes the state that a download needs.
func (p *Peer) startWanting(b *blob) {
	b.began = p.now
	b.pick = newPicker(b.n, p.rng)
	b.slots = make([]*link, maxSlots)
	b.attempts = make([]*attempt, b.n)
	b.storing, b.suspects = make(map[int]*attempt), make(map[int][]suspect)
	for i := range b.verifiable() {
		b.addWanted(i)
	}
	for _, l := range b.links {
		p.seat(l)
	}
}

// stopWanting drops it, with all requests.
func (p *Peer) stopWanting(b *blob) {
	if b.pick == nil {
		return
	}
	for _, l := range b.links {
		p.abortAll(l)
		l.slot, l.useful = -1, 0
	}
	for i := range b.storing {
		p.memory -= int64(b.id.PieceSize(i))
	}
	p.clearSuspects(b)
	b.slots, b.seeds, b.common, b.near, b.pick, b.attempts, b.storing, b.suspects = nil, 0, 0, 0, nil, nil, nil, nil
}

// attach brings a link to a blob that was joined after the peer opened it.
func (p *Peer) attach(l *link) {
	if l.open {
		p.open(l.c, l.blob)
		p.seat(l)
	}
}

// seat gives the link a slot to download from, and counts what the peer has.
func (p *Peer) seat(l *link) {
	b := l.blob
	if b == nil || b.pick == nil || !l.open || l.slot >= 0 {
		return
	}
	for s := range b.slots {
		if b.slots[s] == nil {
			l.slot, b.slots[s] = s, l
			break
		}
	}
	if l.slot < 0 {
		return
	}
	if !l.c.far {
		b.near |= 1 << l.slot
	}
	l.useful = 0
	if l.complete {
		b.seeder(l)
		return
	}
	for i := l.have.NextSet(0); i >= 0; i = l.have.NextSet(i + 1) {
		p.gain(l, i)
	}
}

// seeder notes that the peer in l's slot has everything; unseed, that it has not.
func (b *blob) seeder(l *link) {
	b.seeds |= 1 << l.slot
	if !l.origin() {
		b.common |= 1 << l.slot
	}
}

func (b *blob) unseed(l *link) {
	b.seeds &^= 1 << l.slot
	b.common &^= 1 << l.slot
}

// has reports whether a partial neighbour has i.
func (b *blob) has(l *link, i int) bool {
	if l.slot >= 0 {
		return b.pick.at[i].mask>>l.slot&1 != 0 // nearer than its own set
	}
	return l.have.Has(i)
}

// gain counts a piece that a partial neighbour has.
func (p *Peer) gain(l *link, i int) {
	b := l.blob
	if l.slot >= 0 && b.pick.gain(i, l.slot) && b.pick.has(i) {
		l.useful++
	}
}

func (p *Peer) onLeave(id piece.ID) {
	if b := p.blobs[id]; b != nil {
		p.leave(b)
	}
}

func (p *Peer) leave(b *blob) {
	p.stopWanting(b)
	for _, l := range slices.Clone(b.links) {
		if l.opened {
			p.tell(l.c, &wire.Close{Blob: l.mine})
			l.opened = false
		}
		if l.open {
			p.detach(l)
			l.reset()
		} else {
			p.unlink(l)
		}
	}
	for _, k := range b.peers {
		k.node.refs--
		p.forget(k.node)
	}
	delete(p.blobs, b.id)
	is := func(o *blob) bool { return o == b }
	p.order = slices.DeleteFunc(p.order, is)
	p.dirty = slices.DeleteFunc(p.dirty, is)
	p.arm(&p.pumpAt, p.now)
	p.send()
}

// fail gives a blob up.
func (p *Peer) fail(b *blob, err error) {
	p.leave(b)
	p.act(ActFail{b.id, err})
}

func (p *Peer) onPeers(ev EvPeers) {
	b := p.blobs[ev.ID]
	if b == nil {
		return
	}
	for _, info := range ev.Peers {
		if info.Node == "" || info.Node == p.cfg.Node {
			continue
		}
		k := b.known[info.Node]
		if k == nil {
			if len(b.peers) >= maxKnown && !p.forgetKnown(b) {
				continue
			}
			k = &known{node: p.node(info.Node)}
			k.node.refs++
			b.known[info.Node] = k
			b.peers = append(b.peers, k)
		}
		k.info = info
		n := k.node
		if info.Addr != "" && info.Addr != n.addr {
			n.addr = info.Addr
			n.fails, n.retry = 0, 0 // it moved
		}
		if n.conn == nil {
			n.zone = info.Zone
			if info.Role != 0 {
				n.role = info.Role
			}
			continue
		}
		if l := n.conn.byID[b.id]; l != nil {
			l.source = info.Source
		}
		if b.downloading() {
			p.link(n.conn, b.id)
			p.open(n.conn, b)
		}
	}
	for _, l := range b.links {
		p.askSums(l) // a source may have been named
	}
	p.arm(&p.chores, p.now)
}

// forgetKnown makes room for one more peer of a blob: the oldest that is
// neither connected nor being dialed, and no source.
func (p *Peer) forgetKnown(b *blob) bool {
	for _, k := range b.peers {
		if k.node.conn == nil && !k.node.dialing && !k.info.Source && k.info.Role != wire.RoleOrigin {
			p.unknow(b, k)
			return true
		}
	}
	return false
}

func (p *Peer) unknow(b *blob, k *known) {
	delete(b.known, k.node.name)
	b.peers = slices.DeleteFunc(b.peers, func(o *known) bool { return o == k })
	k.node.refs--
	p.forget(k.node)
}

// onPeersGone forgets peers of a blob. Connections stay: the peer's own Close
// or the end of the connection says that it is gone.
func (p *Peer) onPeersGone(ev EvPeersGone) {
	b := p.blobs[ev.ID]
	if b == nil {
		return
	}
	for _, name := range ev.Nodes {
		if k := b.known[name]; k != nil {
			p.unknow(b, k)
		}
	}
}

// onLocal: pieces came by another way than the swarm.
func (p *Peer) onLocal(ev EvLocal) {
	b := p.blobs[ev.ID]
	if b == nil || ev.From < 0 || ev.To > b.n || ev.From > ev.To {
		return
	}
	b.summing = false
	w := b.id.Alg.Size()
	// States From..: those beyond our list extend it; those within it are ours
	// as well, and count more than anybody's.
	states := ev.States[:min(len(ev.States)/w*w, max(0, (b.sums.MaxLen()-ev.From)*w))]
	own := piece.NewSums(b.id)
	switch l := b.sums.Len(); {
	case ev.From > l:
		// Nothing to append to: wait for the list from elsewhere.
	case len(states) > 0:
		_ = own.Append(b.sums.Range(0, ev.From))
		if own.Append(states) == nil {
			if own.Len() < l {
				if b.sums.HasPrefix(own) {
					own = b.sums
				}
			}
			p.setSums(b, own, nil)
		}
	}
	for i := ev.From; i < ev.To; i++ {
		if b.have.Has(i) {
			continue
		}
		p.cancelPiece(b, i)
		p.gotPiece(b, i)
	}
	p.flushSums(b)
	p.maybeComplete(b)
	p.arm(&p.pumpAt, p.now)
}

func (p *Peer) onProven(id piece.ID) {
	b := p.blobs[id]
	if b == nil || !b.have.Full() || !b.sums.Complete() {
		return
	}
	b.proven, b.segments = true, nil
}

// gotPiece records that a piece is stored.
func (p *Peer) gotPiece(b *blob, i int) {
	b.removeWanted(i)
	if !b.have.Set(i) {
		return
	}
	b.progress, b.stored = p.now, true
	delete(b.rechecks, i)
	for _, l := range b.links {
		switch {
		case !l.opened:
		case !p.interested(l):
			l.behind = true
		default:
			if l.haves = append(l.haves, uint32(i)); len(l.haves) >= maxHaves {
				p.flushHaves(l)
			}
			if b.haveDue == never {
				b.haveDue = max(p.now, b.haveNext)
				p.next = min(p.next, b.haveDue)
				p.dirty = append(p.dirty, b)
			}
		}
	}
}

// interested reports whether the peer of l wants to know what we get. Whoever
// does not is told when it opens the blob anew.
func (p *Peer) interested(l *link) bool {
	return l.open && (l.blob.want || !l.complete) && (l.want || l.complete)
}

// maybeComplete ends a download that has everything.
func (p *Peer) maybeComplete(b *blob) {
	if !b.want || b.complete || !b.have.Full() {
		return
	}
	b.complete = true
	for _, l := range b.links {
		p.flushHaves(l)
		if l.opened && l.open {
			for pieces := range slices.Chunk(l.muted, maxHaves) {
				p.tell(l.c, &wire.Have{Blob: l.mine, Pieces: pieces})
			}
		}
		l.muted = nil
	}
	p.act(ActComplete{b.id})
}

// Announcements wait until something else goes to the same peer, and otherwise
// for their turn: every haveDelay some peers have theirs, so that each is told of
// several pieces at once. More than those could not begin to get a new piece from
// us meanwhile, and messages to all of them for each piece would cost more than
// the pieces.
const (
	haveTurns = 4 // until everybody had one
	haveFew   = 4 // have one together in any case
)

// announce is a turn. It reports whether everybody has been told of everything.
func (p *Peer) announce(b *blob) bool {
	n := len(b.links)
	k := max(haveFew, (n+haveTurns-1)/haveTurns)
	left, turn := false, b.haveTurn
	for j := range n {
		l := b.links[(turn+j)%n]
		switch {
		case len(l.haves) == 0:
		case k > 0:
			p.flushHaves(l)
			if k--; k == 0 {
				b.haveTurn = (turn + j + 1) % n
			}
		default:
			left = true
		}
	}
	b.haveNext = p.now + p.haveDelay(b)
	if b.haveDue = b.haveNext; !left {
		b.haveDue = never
	}
	return !left
}

// flushHaves tells a peer what it was not told yet. Downloaders are told of what
// they have themselves only when we are complete: it is of no use to them but to
// know that.
func (p *Peer) flushHaves(l *link) {
	if len(l.haves) == 0 {
		return
	}
	ps := l.haves
	l.haves = nil
	if !l.opened {
		return
	}
	if !p.interested(l) {
		l.behind = true
		return
	}
	if !l.complete {
		k := 0
		for _, i := range ps {
			if l.blob.has(l, int(i)) {
				l.muted = append(l.muted, i)
				continue
			}
			ps[k] = i
			k++
		}
		ps = ps[:k]
	}
	if len(ps) > 0 {
		p.tell(l.c, &wire.Have{Blob: l.mine, Pieces: ps})
	}
}

// haveDelay returns how long announcements are collected: for about three
// pieces at the present speed, within bounds.
func (p *Peer) haveDelay(b *blob) time.Duration {
	d, r := p.cfg.HaveDelay, p.down.meter.rate
	if r == 0 {
		return d / 2 // the first pieces are news for all
	}
	return min(d, max(d/20, time.Duration(3*float64(b.id.Length())/r*1e9)))
}

// onLost: a piece that was there is not.
func (p *Peer) onLost(id piece.ID, i int) {
	b := p.blobs[id]
	if b == nil || i < 0 || i >= b.n {
		return
	}
	delete(b.rechecks, i)
	if !b.have.Clear(i) {
		return
	}
	p.retract(b, i)
	b.addWanted(i)
	p.arm(&p.pumpAt, p.now)
	p.arm(&p.chores, p.now+choreEvery)
}

// retract tells everybody that we do not have a piece any more.
func (p *Peer) retract(b *blob, i int) {
	b.complete = false
	for _, l := range b.links {
		l.haves = slices.DeleteFunc(l.haves, func(h uint32) bool { return h == uint32(i) })
		p.dropUpload(l, i)
		switch {
		case !l.opened:
		case l.open:
			p.tell(l.c, &wire.Lost{Blob: l.mine, Piece: uint32(i)})
		default:
			l.behind = true
		}
	}
}

// tendBlobs looks after the downloads, every choreEvery.
func (p *Peer) tendBlobs() {
	for _, b := range p.order {
		for _, l := range b.links {
			p.askSums(l)
		}
		if b.downloading() {
			p.help(b)
			p.endgame(b)
		}
	}
}

// Messages about a blob's swarm.

func (p *Peer) onMessage(id ConnID, m wire.Message) {
	c := p.conn(id)
	if c == nil || c.closed {
		return
	}
	c.keep.heard = p.now
	switch m := m.(type) {
	case *wire.Open:
		p.onOpen(c, m)
	case *wire.Close:
		p.onClose(c, m)
	case *wire.Have:
		p.onHave(c, m)
	case *wire.SumsRequest:
		p.onSumsRequest(c, m)
	case *wire.Sums:
		p.onSums(c, m)
	case *wire.Request:
		p.onRequest(c, m)
	case *wire.Block:
		p.onBlock(c, m)
	case *wire.Busy:
		p.onBusy(c, m)
	case *wire.Lost:
		p.onLostMessage(c, m)
	case *wire.Cancel:
		p.onCancel(c, m)
	case *wire.Bad:
		p.onBad(c, m)
	case *wire.Ping:
	case *wire.Error:
		c.code = m.Code
		if m.Code == wire.CodeConvicted {
			c.node.retry = max(c.node.retry, p.now+p.cfg.BanFor/10)
		}
		p.drop(c)
		p.act(ActClose{c.id, wire.CodeShutdown, "closed by the peer"})
	default:
		p.close(c, wire.CodeUnexpected, "unexpected message")
	}
}

// his returns the link of a handle that the peer gave, or closes the
// connection.
func (p *Peer) his(c *conn, h wire.Handle) *link {
	if l := c.recent; l != nil && l.open && l.his == h && l.c == c {
		return l
	}
	l := c.theirs[h]
	c.recent = l
	if l == nil {
		p.close(c, wire.CodeUnexpected, fmt.Sprintf("no blob with handle %d is open", h))
	}
	return l
}

// malformed closes a connection over which something came that no state
// allows.
func (p *Peer) malformed(c *conn, format string, args ...any) {
	p.close(c, wire.CodeMalformed, fmt.Sprintf(format, args...))
}

func (p *Peer) onOpen(c *conn, m *wire.Open) {
	if err := m.ID.Validate(); err != nil {
		p.malformed(c, "opening a blob: %v", err)
		return
	}
	if c.theirs[m.Blob] != nil {
		p.close(c, wire.CodeUnexpected, fmt.Sprintf("handle %d is in use", m.Blob))
		return
	}
	n := m.ID.Pieces()
	have := piece.NewBits(n)
	switch {
	case m.Complete && len(m.Bits) > 0:
		p.malformed(c, "a complete blob with a bitfield")
		return
	case len(m.Bits) > 0:
		var err error
		if have, err = piece.ParseBits(m.Bits, n); err != nil {
			p.malformed(c, "opening %s: %v", m.ID.Digest(), err)
			return
		}
	}
	if l := c.byID[m.ID]; l != nil && l.open {
		p.close(c, wire.CodeUnexpected, m.ID.Digest()+" is already open")
		return
	}
	if len(c.theirs) >= maxForeign {
		p.close(c, wire.CodeLimit, "too many blobs open")
		return
	}
	l := p.link(c, m.ID)
	l.his, l.open, l.want = m.Blob, true, m.Want
	l.complete, l.have = m.Complete || have.Full(), have
	if l.complete {
		l.have = nil
	}
	l.nothing = 0
	c.theirs[m.Blob] = l
	delete(c.former, m.Blob)
	if l.blob == nil {
		if m.Want {
			p.act(ActInvite{m.ID})
		}
		return
	}
	if l.opened && l.behind {
		p.tell(c, &wire.Close{Blob: l.mine})
		l.opened = false
	}
	p.open(c, l.blob)
	p.seat(l)
	p.askSums(l)
	p.arm(&p.pumpAt, p.now)
}

func (p *Peer) onClose(c *conn, m *wire.Close) {
	l := p.his(c, m.Blob)
	if l == nil {
		return
	}
	p.shut(l)
	delete(c.theirs, l.his)
	if c.former == nil || len(c.former) >= maxForeign {
		c.former = make(map[wire.Handle]bool)
	}
	c.former[l.his] = true
	l.open, l.want, l.complete, l.have = false, false, false, nil
	l.behind = l.behind || len(l.haves)+len(l.muted) > 0
	l.reset()
	if !l.opened {
		p.unlink(l)
	}
	p.arm(&p.pumpAt, p.now)
}

func (p *Peer) onHave(c *conn, m *wire.Have) {
	l := p.his(c, m.Blob)
	if l == nil {
		return
	}
	n := l.id.Pieces()
	for _, i := range m.Pieces {
		if int64(i) >= int64(n) {
			p.malformed(c, "a Have of piece %d of %d", i, n)
			return
		}
	}
	l.nothing = 0
	beyond := false
	for _, i := range m.Pieces {
		if len(l.given) > 0 {
			delete(l.given, int32(i))
		}
		if l.complete || !l.have.Set(int(i)) {
			continue
		}
		if l.blob != nil {
			p.gain(l, int(i))
			beyond = beyond || int(i) >= l.blob.verifiable()
		}
	}
	if beyond && !l.sums.bad {
		l.sums.at = min(l.sums.at, p.now) // it has more sums now
		p.askSums(l)
	}
	if !l.complete && l.have.Full() {
		p.completed(l)
	}
	if b := l.blob; b != nil && b.pick != nil && (l.useful > 0 || l.complete) && p.mayStart(b, p.window()) {
		p.pump()
	}
}

// completed makes a partial neighbour that has everything now a seeder.
func (p *Peer) completed(l *link) {
	if b := l.blob; b != nil && l.slot >= 0 {
		for i := range b.n {
			b.pick.lose(i, l.slot)
		}
		b.seeder(l)
		l.useful = 0
	}
	l.complete, l.have = true, nil
}

// partial makes a seeder that lost piece i a partial neighbour.
func (p *Peer) partial(l *link, i int) {
	have := piece.NewBits(l.id.Pieces())
	have.SetAll()
	have.Clear(i)
	l.complete, l.have = false, have
	if b := l.blob; b != nil && l.slot >= 0 {
		b.unseed(l)
		for j := have.NextSet(0); j >= 0; j = have.NextSet(j + 1) {
			p.gain(l, j)
		}
	}
}

func (p *Peer) onLostMessage(c *conn, m *wire.Lost) {
	l := p.his(c, m.Blob)
	if l == nil {
		return
	}
	b := l.blob
	if m.Piece == wire.AnyPiece {
		if l.any > 0 {
			p.endAny(l)
			p.dnCap.give(b.block())
			l.nothing = p.now + nothingFor
		}
		p.arm(&p.pumpAt, p.now)
		return
	}
	i := int(m.Piece)
	if int64(m.Piece) >= int64(l.id.Pieces()) {
		p.malformed(c, "a Lost of piece %d of %d", m.Piece, l.id.Pieces())
		return
	}
	if l.complete {
		p.partial(l, i)
	} else {
		l.have.Clear(i)
	}
	if b == nil {
		return
	}
	if l.slot >= 0 && b.pick.lose(i, l.slot) && b.pick.has(i) {
		l.useful--
	}
	if b.attempts != nil {
		if a := b.attempts[i].from(l); a != nil {
			p.abort(a, false)
		}
	}
	if b.have.Has(i) && l.opened {
		// It may never have been told, since it had the piece.
		p.tell(c, &wire.Have{Blob: l.mine, Pieces: []uint32{m.Piece}})
	}
	p.arm(&p.pumpAt, p.now)
}

func (p *Peer) onBad(c *conn, m *wire.Bad) {
	l := p.his(c, m.Blob)
	if l == nil {
		return
	}
	if int64(m.Piece) >= int64(l.id.Pieces()) {
		p.malformed(c, "a Bad of piece %d of %d", m.Piece, l.id.Pieces())
		return
	}
	b, i := l.blob, int(m.Piece)
	if b == nil || !b.have.Has(i) || i >= b.verifiable() {
		return
	}
	// Anybody can say so, so not more often than once a minute for a piece, and
	// not for many at once.
	if at, ok := b.rechecks[i]; ok && p.now-at < time.Minute {
		return
	}
	if len(b.rechecks) >= maxRechecks {
		for j, at := range b.rechecks {
			if p.now-at >= time.Minute {
				delete(b.rechecks, j)
			}
		}
		if len(b.rechecks) >= maxRechecks {
			return
		}
	}
	if b.rechecks == nil {
		b.rechecks = make(map[int]time.Duration)
	}
	b.rechecks[i] = p.now
	p.act(ActRecheck{b.id, i})
}

// maxRechecks bounds the pieces of a blob that others can make us read again
// within a minute.
const maxRechecks = 32

// nothingFor is how long a peer that has nothing for AnyPiece is asked by
// number only.
const nothingFor = 500 * time.Millisecond

func (p *Peer) onStored(ev EvStored) {
	b := p.blobs[ev.ID]
	if b == nil || b.storing[ev.Piece] == nil {
		return
	}
	a := b.storing[ev.Piece]
	delete(b.storing, ev.Piece)
	p.memory -= int64(b.id.PieceSize(ev.Piece))
	stale := !a.sums.Agrees(b.sums, ev.Piece) // the list was replaced meanwhile
	switch {
	case stale && (ev.Err == nil || errors.Is(ev.Err, piece.ErrMismatch)):
		b.addWanted(ev.Piece)
	case ev.Err == nil:
		p.gotPiece(b, ev.Piece)
		p.verified(b, ev.Piece, a.node)
		p.maybeComplete(b)
	case errors.Is(ev.Err, piece.ErrMismatch):
		p.mismatch(b, a, ev)
		if p.blobs[ev.ID] == b {
			b.addWanted(ev.Piece)
		}
	default:
		p.fail(b, fmt.Errorf("storing piece %d of %s: %w", ev.Piece, b.id.Digest(), ev.Err))
	}
	p.pump()
}
