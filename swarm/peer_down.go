package swarm

import (
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"time"

	"github.com/capelin-io/capelin/swarm/piece"
	"github.com/capelin-io/capelin/swarm/wire"
)

func trailingZeros(m uint64) int { return bits.TrailingZeros64(m) }

const (
	minDepth = 2  // blocks outstanding on a connection to begin with
	maxDepth = 64 // and at most

	// windowTime is how much of the bandwidth may be under way at once when
	// pieces are small; it covers the round trip and what the driver takes.
	windowTime = 30 * time.Millisecond

	// maxRTT bounds what round trips add to the windows.
	maxRTT = 500 * time.Millisecond

	// patienceFor is how long stalls are found later after one that was none.
	patienceFor = 30 * time.Second

	endgameEvery = 50 * time.Millisecond
	endgameAfter = 200 * time.Millisecond // an attempt is slow if it brought nothing for so long
)

// downlink is the part of the Peer that all downloads share.
type downlink struct {
	meter    meter
	inflight int           // blocks requested and not arrived
	active   int           // attempts and AnyPiece requests, but for those at slow peers
	busy     time.Duration // when it was last seen that something comes; see help
	took     time.Duration // how long a piece takes in the middle; 0: none has come
	rtt      time.Duration // round trip to those that pieces come from, smoothed
}

// slowFactor: a peer whose pieces take so many times as long as those of all is
// slow. It gets one request at a time, which takes no place in the window: a few
// slow neighbours would fill that, and leave the others idle.
const slowFactor = 2

func (p *Peer) slow(c *conn) bool { return c.took > slowFactor*p.down.took }

// time notes how long a piece has taken.
func (p *Peer) time(a *attempt) {
	if a.began == never {
		return
	}
	d, c := p.now-a.began, a.l.c
	p.down.rtt += (c.rtt - p.down.rtt) / 8
	if c.took == 0 {
		c.took = d
	}
	c.took += (d - c.took) / 2
	switch t := &p.down.took; {
	case *t == 0:
		*t = d
	case d > *t: // towards the median: a few slow ones do not count by how slow they are
		*t += *t/16 + 1
	default:
		*t -= *t / 16
	}
}

// attempt is a piece on its way from one peer.
type attempt struct {
	b     *blob
	l     *link
	node  *node // of l, which may be gone when the piece has been stored
	i     int
	size  int
	next  int // what has been requested
	got   int
	open  int           // blocks outstanding
	busy  bool          // one was refused: over when the others are answered, too
	data  [][]byte      // by block
	began time.Duration // never if its first block was of the seeder's choosing
	slow  bool          // the peer was when it began
	last  time.Duration
	other *attempt // the second attempt at the same piece, in the end game

	sums *piece.Sums // against which the driver verifies it
}

// from returns the attempt over l, among the first and the second, or nil.
func (a *attempt) from(l *link) *attempt {
	switch {
	case a == nil || a.l == l:
		return a
	case a.other != nil && a.other.l == l:
		return a.other
	}
	return nil
}

// block returns the length of the blob's blocks but the last.
func (b *blob) block() int { return int(min(piece.MaxBlock, b.id.Length())) }

// travelling returns how many bytes are on their way while a request and its answer
// travel: they are asked for beyond what waits at the peers.
func (p *Peer) travelling() int { return int(p.down.meter.rate * p.down.rtt.Seconds()) }

// window returns how many blocks may be outstanding, over all connections.
func (p *Peer) window() int {
	w := 2*p.cfg.Window + p.travelling()/piece.MinLength
	if r := p.down.meter.rate; r > 0 {
		w = max(w, int(r*windowTime.Seconds())/piece.MaxBlock)
		w = min(w, max(2, int(r)/piece.MaxBlock)) // a second's worth on a slow link
	}
	return min(w, int(p.cfg.Memory/piece.MaxBlock))
}

// mayStart reports whether another piece of b may be begun.
func (p *Peer) mayStart(b *blob, window int) bool {
	if p.down.inflight >= window {
		return false
	}
	length := b.id.Length()
	per := int((length + piece.MaxBlock - 1) / piece.MaxBlock)
	pieces := p.cfg.Window + min(p.travelling()/int(length), 2*p.cfg.Window)
	if w := window / per; w > 2*pieces {
		pieces = w
	}
	if p.down.active >= pieces {
		return false
	}
	held := int64(b.active + len(b.storing))
	return held < 2 || (held+1)*length <= p.cfg.BlobMemory && p.memory+length <= p.cfg.Memory
}

// pump asks for what there is room for.
func (p *Peer) pump() {
	p.pumpAt = never
	if !p.wanting() {
		return
	}
	window := p.window()
	if p.down.inflight >= window {
		return // a block or a refusal will bring us back
	}
	if t := p.dnCap.ready(p.now); t > p.now {
		p.arm(&p.pumpAt, t)
		return
	}
	p.fill(window)
	p.pumps++
	for _, b := range p.order {
		if !b.downloading() {
			continue
		}
		if b.pick.wanted() == 0 {
			if b.active > 0 && p.now >= b.endAt {
				p.endgame(b)
			}
			if b.active > 0 {
				p.arm(&p.pumpAt, b.endAt)
			}
			continue
		}
		for p.mayStart(b, window) {
			l := p.choose(b)
			if l == nil || !p.start(b, l) {
				break
			}
			if t := p.dnCap.ready(p.now); t > p.now {
				p.arm(&p.pumpAt, t)
				return
			}
		}
	}
}

// fill requests further blocks of the attempts that were begun.
func (p *Peer) fill(window int) {
	for k := 0; k < len(p.begun) && p.down.inflight < window; {
		a := p.begun[k]
		if c := a.l.c; c.outstanding >= c.depth {
			k++
			continue
		}
		if t := p.dnCap.ready(p.now); t > p.now {
			p.arm(&p.pumpAt, t)
			return
		}
		p.request(a) // takes it out with the last
	}
}

// request asks for the next block of an attempt.
func (p *Peer) request(a *attempt) {
	n := min(piece.MaxBlock, a.size-a.next)
	p.owe(a.l.c, n)
	a.b.inflight++
	a.open++
	p.flushHaves(a.l)
	p.tell(a.l.c, &wire.Request{Blob: a.l.mine, Piece: uint32(a.i), Offset: uint32(a.next), Length: uint32(n)})
	if a.next += n; a.next >= a.size {
		p.whole(a)
	}
}

// whole notes that no block of an attempt is left to be requested.
func (p *Peer) whole(a *attempt) {
	a.l.c.part--
	k := slices.Index(p.begun, a)
	p.begun = slices.Delete(p.begun, k, k+1)
}

// owe counts a block of n bytes that c now owes us.
func (p *Peer) owe(c *conn, n int) {
	if c.outstanding == 0 {
		c.owed = p.now
	}
	c.outstanding++
	if p.down.inflight == 0 {
		p.down.meter.start(p.now)
	}
	p.down.inflight++
	p.dnCap.take(n)
}

// settle is its inverse, for k blocks.
func (p *Peer) settle(c *conn, k int) {
	c.outstanding -= k
	p.down.inflight -= k
	if p.down.inflight == 0 {
		p.down.meter.stop(p.now)
	}
}

// load estimates how many blocks wait at the peer of c.
func (p *Peer) load(c *conn) float64 {
	q := float64(c.queue)
	if q > 0 {
		r := max(p.down.meter.rate, 1<<20)
		q = max(0, q-(p.now-c.queueAt).Seconds()*r/piece.MaxBlock)
	}
	return q + float64(c.outstanding)
}

// choose returns the least loaded neighbour that can be asked for a piece of b
// now, or nil. Ties are broken at random.
//
// Whoever has sent a piece wrong is asked only if there is nobody else.
func (p *Peer) choose(b *blob) *link {
	l, doubted := p.chooseAmong(b, false)
	if l == nil && doubted && b.inflight == 0 {
		l, _ = p.chooseAmong(b, true)
	}
	return l
}

func (p *Peer) chooseAmong(b *blob, last bool) (best *link, doubted bool) {
	least, seen, few := 0.0, 0, b.few(p)
	for _, l := range b.links {
		if l.slot < 0 || !l.complete && l.useful == 0 {
			continue
		}
		if l.c.far && !p.mayBring(b, l) {
			continue
		}
		c := l.c
		if c.claimed == p.pumps && c.claimant != b {
			continue // a blob with priority takes what it gives
		}
		if c.outstanding >= c.depth || c.part > 0 || c.outstanding > 0 && p.slow(c) {
			c.claimed, c.claimant = p.pumps, b
			continue
		}
		if p.doubts > 0 && c.node.doubt > 0 && !last {
			doubted = true
			continue
		}
		if t := max(c.busy, c.snubbed); t > p.now {
			p.arm(&p.pumpAt, t)
			continue
		}
		if l.any > 0 && (l.any >= c.depth-1 || few) {
			c.claimed, c.claimant = p.pumps, b
			continue
		}
		switch q := p.load(c); {
		case best == nil || q < least:
			best, least, seen = l, q, 1
		case q == least:
			if seen++; p.rng.IntN(seen) == 0 {
				best = l
			}
		}
	}
	return best, doubted
}

// few reports whether so few pieces are left that a seeder's choice could
// hardly be one that is not under way: they are asked for by number.
func (b *blob) few(p *Peer) bool {
	return b.pick.wanted() <= 2*p.cfg.Window && 2*b.pick.wanted() < b.n
}

// origin reports whether the peer of l is one that a whole swarm begins with.
func (l *link) origin() bool {
	return l.source || l.c.node.role == wire.RoleOrigin
}

// start asks l for a piece. It reports whether it did.
func (p *Peer) start(b *blob, l *link) bool {
	if b.anys >= b.pick.wanted() {
		return false // they are as many as there are pieces to come
	}
	if b.pick.wanted() > 1 && !b.few(p) && l.nothing <= p.now && p.chooser(b, l) {
		l.any++
		b.anys++
		b.active++
		b.inflight++
		p.down.active++
		p.memory += b.id.Length()
		p.owe(l.c, b.block())
		p.flushHaves(l)
		p.tell(l.c, &wire.Request{Blob: l.mine, Piece: wire.AnyPiece, Length: piece.MaxBlock})
		return true
	}
	i := p.rescue(b, l)
	if i < 0 {
		i = b.pick.pick(l.slot, l.complete, p.pickable(b, l))
	}
	if i < 0 {
		// Only pieces that it has sent wrong before.
		l.c.busy = p.now + choreEvery
		p.arm(&p.pumpAt, l.c.busy)
		return true
	}
	b.removeWanted(i)
	a := p.begin(b, l, i)
	b.attempts[i] = a
	p.request(a)
	return true
}

// chooser reports whether l is to choose the piece itself: if it is where the
// swarm's pieces come from, so that it hands out each once before any twice.
// Where there are many seeders, their choices would be the same too often.
func (p *Peer) chooser(b *blob, l *link) bool {
	if l.c.far && (b.seeds&b.near != 0 || !l.origin()) {
		return false // by our share
	}
	if !l.complete {
		return l.origin() && p.only(b, l)
	}
	return b.pick.rare() && (b.common == 0 || bits.OnesCount64(b.seeds) == 1)
}

// rescue returns a piece that somebody has sent wrong and that l can send, or
// -1: those come first, so that whoever is to blame is found soon.
func (p *Peer) rescue(b *blob, l *link) int {
	best := -1
	for i := range b.suspects {
		if (best < 0 || i < best) && b.pick.has(i) && (l.complete || l.have.Has(i)) && !p.suspected(b, i, l.c.node) {
			best = i
		}
	}
	return best
}

// pickable returns what is asked of a piece that l is to send beyond that it has
// it; nil: nothing.
func (p *Peer) pickable(b *blob, l *link) func(int) bool {
	switch {
	case l.c.far:
		mine, near := b.brings(), p.nearby(b)
		return func(i int) bool {
			return mine>>(i%piece.Shares)&1 != 0 && b.pick.at[i].mask&near == 0 && !p.suspected(b, i, l.c.node)
		}
	case len(b.suspects) > 0:
		return func(i int) bool { return !p.suspected(b, i, l.c.node) }
	}
	return nil
}

// only reports whether the rarest piece that a partial l has for us is with
// nobody else we know.
func (p *Peer) only(b *blob, l *link) bool {
	i := b.pick.pick(l.slot, false, nil)
	return i >= 0 && b.pick.at[i].avail <= 1
}

// begin makes an attempt.
func (p *Peer) begin(b *blob, l *link, i int) *attempt {
	size := b.id.PieceSize(i)
	a := &attempt{
		b: b, l: l, node: l.c.node, i: i, size: size, began: p.now, slow: p.slow(l.c), last: p.now,
		data: make([][]byte, (size+piece.MaxBlock-1)/piece.MaxBlock),
	}
	l.c.attempts = append(l.c.attempts, a)
	l.c.part++
	p.begun = append(p.begun, a)
	b.active++
	if !a.slow {
		p.down.active++
	}
	p.memory += b.id.Length()
	return a
}

// end takes an attempt out of everything that counts it, but for the memory.
func (p *Peer) end(a *attempt) {
	c := a.l.c
	c.attempts = slices.DeleteFunc(c.attempts, func(o *attempt) bool { return o == a })
	if a.next < a.size && !a.busy {
		p.whole(a)
	}
	p.settle(c, a.open)
	a.b.inflight -= a.open
	a.b.active--
	if !a.slow {
		p.down.active--
	}
	b := a.b
	switch first := b.attempts[a.i]; {
	case first == a:
		b.attempts[a.i] = a.other
	case first != nil && first.other == a:
		first.other = nil
	}
	a.other = nil
}

// abort gives an attempt up; the piece is wanted again unless there is a second
// attempt. Requests still open are withdrawn if cancel.
func (p *Peer) abort(a *attempt, cancel bool) {
	c, open := a.l.c, a.open
	p.end(a)
	p.memory -= a.b.id.Length()
	a.b.redundant += int64(a.got)
	if open > 0 {
		p.dnCap.give(open * a.b.block())
		c.ghosts += open
		if cancel {
			p.tell(c, &wire.Cancel{Blob: a.l.mine, Piece: uint32(a.i)})
		}
	}
	a.b.addWanted(a.i)
}

// abortAll gives up everything that l was asked for.
func (p *Peer) abortAll(l *link) {
	for _, a := range slices.Clone(l.c.attempts) {
		if a.l == l {
			p.abort(a, true)
		}
	}
	if l.any > 0 {
		l.c.ghosts += l.any
		for l.any > 0 {
			p.endAny(l)
			p.dnCap.give(l.blob.block())
		}
		p.tell(l.c, &wire.Cancel{Blob: l.mine, Piece: wire.AnyPiece})
	}
}

// endAny counts an AnyPiece request of l as answered.
func (p *Peer) endAny(l *link) {
	l.any--
	l.blob.anys--
	l.blob.active--
	l.blob.inflight--
	p.down.active--
	p.memory -= l.blob.id.Length()
	p.settle(l.c, 1)
}

// cancelPiece gives up every attempt at a piece that came by another way.
func (p *Peer) cancelPiece(b *blob, i int) {
	if b.attempts == nil {
		return
	}
	for b.attempts[i] != nil {
		p.abort(b.attempts[i], true)
	}
}

// alive notes that the peer of c has answered something.
func (p *Peer) alive(c *conn) {
	c.owed, c.stalls, c.snubbed = p.now, 0, 0
}

func (p *Peer) onBlock(c *conn, m *wire.Block) {
	if c.former[m.Blob] {
		return // it was under way when the peer closed the blob
	}
	l := p.his(c, m.Blob)
	if l == nil {
		return
	}
	n := l.id.Pieces()
	i, off := int(m.Piece), int(m.Offset)
	if int64(m.Piece) >= int64(n) || off%piece.MaxBlock != 0 || off >= l.id.PieceSize(i) ||
		len(m.Data) != min(piece.MaxBlock, l.id.PieceSize(i)-off) {
		p.malformed(c, "a block of %d bytes at %d of piece %d", len(m.Data), m.Offset, m.Piece)
		return
	}
	b := l.blob
	var a *attempt
	if b != nil && b.attempts != nil {
		if a = b.attempts[i].from(l); a != nil && (off >= a.next || a.data[off/piece.MaxBlock] != nil) {
			a = nil
		}
	}
	p.down.meter.add(len(m.Data), p.now)
	switch {
	case a != nil:
		a.open--
		b.inflight--
		p.settle(c, 1)
	case b != nil && l.any > 0 && off == 0:
		p.endAny(l)
		if a = p.adoptAny(l, i); a == nil {
			b.redundant += int64(len(m.Data))
		}
	case c.ghosts > 0:
		c.ghosts--
		if c.stalls > 0 {
			p.patience, p.impatient = min(p.patience+1, 2), p.now+patienceFor // it was slow, not dead
		}
		if b != nil {
			b.redundant += int64(len(m.Data))
		}
	case b == nil || !l.opened:
		// Our Close crossed it.
	default:
		p.close(c, wire.CodeUnexpected, fmt.Sprintf("a block of piece %d that was not requested", i))
		return
	}
	p.alive(c)
	p.depth(c, int(m.Queue))
	if b == nil {
		return
	}
	b.in += int64(len(m.Data))
	if a != nil {
		a.data[off/piece.MaxBlock] = m.Data
		a.got += len(m.Data)
		a.last = p.now
		switch {
		case a.got == a.size:
			p.finish(a)
		case a.busy && a.open == 0:
			p.abort(a, false)
		}
	}
	p.pump()
}

// adoptAny makes an attempt of the first block of a piece that a seeder chose,
// or returns nil if that is of no use.
func (p *Peer) adoptAny(l *link, i int) *attempt {
	b := l.blob
	if b.attempts == nil || i >= b.verifiable() || b.have.Has(i) || b.storing[i] != nil || p.suspected(b, i, l.c.node) {
		return nil
	}
	if o := b.attempts[i]; o != nil {
		if o.got > 0 && o.size > piece.MaxBlock {
			return nil // further on than this one
		}
		for b.attempts[i] != nil {
			p.abort(b.attempts[i], true)
		}
	}
	b.removeWanted(i)
	a := p.begin(b, l, i)
	b.attempts[i] = a
	a.next, a.began = min(piece.MaxBlock, a.size), never
	if a.next == a.size {
		p.whole(a)
	}
	return a
}

// depth adapts how many blocks may be outstanding on c to what its peer says:
// more when our requests leave its uplink without work, fewer while others wait
// there.
func (p *Peer) depth(c *conn, queue int) {
	others := max(0, queue-c.outstanding)
	switch {
	case queue == 0:
		c.depth = min(c.depth+max(1, c.depth/4), maxDepth)
	case others > 0 && c.depth > minDepth:
		c.depth--
	}
	c.queue, c.queueAt = others, p.now
}

// finish hands a whole piece to the driver.
func (p *Peer) finish(a *attempt) {
	b, i := a.b, a.i
	p.time(a)
	p.end(a)
	for b.attempts[i] != nil {
		p.abort(b.attempts[i], true)
	}
	b.removeWanted(i)
	p.memory += int64(a.size) - b.id.Length() // freed by onStored
	b.storing[i] = a
	data := a.data
	a.data = nil
	a.sums = b.sums
	p.act(ActStore{ID: b.id, Piece: i, Sums: b.sums, Data: data})
}

func (p *Peer) onBusy(c *conn, m *wire.Busy) {
	l := p.his(c, m.Blob)
	if l == nil {
		return
	}
	if m.Piece != wire.AnyPiece && int64(m.Piece) >= int64(l.id.Pieces()) {
		p.malformed(c, "a Busy for piece %d of %d", m.Piece, l.id.Pieces())
		return
	}
	p.alive(c)
	c.busy = p.now + time.Duration(max(m.Retry, 1))*time.Millisecond
	c.queue, c.queueAt = int(m.Queue), p.now
	if c.depth > minDepth {
		c.depth--
	}
	p.arm(&p.pumpAt, c.busy)
	b := l.blob
	if b == nil {
		return
	}
	if m.Piece == wire.AnyPiece {
		if l.any > 0 {
			p.endAny(l)
			p.dnCap.give(b.block())
		}
	} else if b.attempts != nil {
		if a := b.attempts[m.Piece].from(l); a != nil && a.open > 0 {
			a.open--
			b.inflight--
			p.settle(c, 1)
			p.dnCap.give(b.block())
			if !a.busy && a.next < a.size {
				p.whole(a)
			}
			a.busy = true
			if a.open == 0 {
				p.abort(a, false)
			}
		}
	}
	p.pump()
}

// checkStall takes its requests from a peer that has been silent too long.
func (p *Peer) checkStall(c *conn) {
	if c.outstanding == 0 {
		if c.stalls > 0 && c.keep.silence(p.now) > giveUpAfter {
			p.close(c, wire.CodeTimeout, "silent for too long")
		}
		return
	}
	limit := p.cfg.StallAfter << p.patience
	if r := p.down.meter.rate; r > 0 {
		// All that is under way may share one slow link.
		limit = max(limit, time.Duration(min(2*float64(p.down.inflight*piece.MaxBlock)/r, 10)*1e9))
	}
	limit = min(limit<<min(c.stalls, 3), max(limit, giveUpAfter))
	if p.now-c.owed < limit {
		return
	}
	id := piece.ID{}
	for _, l := range c.links {
		if l.blob == nil {
			continue
		}
		if l.any > 0 || slices.ContainsFunc(c.attempts, func(a *attempt) bool { return a.l == l }) {
			id = l.id
			p.abortAll(l)
		}
	}
	c.stalls++
	c.depth = 1
	c.snubbed = p.now + snubFor
	p.act(ActReport{Report{Kind: ReportStalled, Node: c.node.name, ID: id}})
	p.arm(&p.pumpAt, p.now)
}

// endgame starts second attempts at pieces that are slow to come when nothing
// else is left to ask for, within a budget of 0.4 % of the blob.
func (p *Peer) endgame(b *blob) {
	b.endAt = p.now + endgameEvery
	if b.pick.wanted() > 0 || b.active == 0 {
		return
	}
	budget := max(int(b.id.Size/250), min(int(b.id.Length()), 1<<20))
	slow := endgameAfter
	if r := p.down.meter.rate; r > 0 {
		slow = max(slow, time.Duration(4*float64(p.down.inflight*piece.MaxBlock)/r*1e9))
	}
	var late []*attempt
	for _, c := range p.list {
		for _, a := range c.attempts {
			if a.b == b && a.other == nil && b.attempts[a.i] == a && p.now-a.last > slow {
				late = append(late, a)
			}
		}
	}
	for _, a := range late {
		if b.extra+a.size > budget || p.down.inflight >= p.window() {
			return
		}
		l := p.second(b, a)
		if l == nil {
			continue
		}
		b.extra += a.size
		a.other = p.begin(b, l, a.i)
		p.request(a.other)
	}
}

// second returns the least loaded neighbour other than a's that has its piece.
func (p *Peer) second(b *blob, a *attempt) *link {
	var best *link
	least := 0.0
	for _, l := range b.links {
		c := l.c
		if l == a.l || l.slot < 0 || l.c.far && !a.l.c.far || c.outstanding >= c.depth || max(c.busy, c.snubbed) > p.now ||
			!l.complete && !l.have.Has(a.i) || p.suspected(b, a.i, c.node) {
			continue
		}
		if q := p.load(c); best == nil || q < least {
			best, least = l, q
		}
	}
	return best
}

// suspect is a node that sent a piece that did not verify, and the SHA-256 of
// what it sent.
type suspect struct {
	name  string
	hash  [32]byte
	known bool // hash is
	times int
	at    time.Duration // the last time
}

// retrySame is when a piece is asked again from whoever sent it wrong, if
// nobody else has sent it until then.
const retrySame = 2 * time.Second

// maxSuspects bounds the suspects of one piece.
const maxSuspects = 8

var (
	errBytes = errors.New("another source's bytes verified")
	errAlone = errors.New("sent a piece that does not verify again and again")
	errSums  = errors.New("its sums were disproved by equal bytes of two sources")
)

// suspected reports whether n has sent piece i wrong, just now.
func (p *Peer) suspected(b *blob, i int, n *node) bool {
	return slices.ContainsFunc(b.suspects[i], func(s suspect) bool { return s.name == n.name && p.now-s.at < retrySame })
}

// verified convicts those who sent a piece wrong that now came right, from
// somebody else.
func (p *Peer) verified(b *blob, i int, from *node) {
	ss := b.suspects[i]
	if len(ss) == 0 {
		return
	}
	p.clearSuspect(b, i)
	for _, s := range ss {
		if s.name == from.name {
			continue // a slip
		}
		p.convict(p.node(s.name), b, i, errBytes)
	}
}

// clearSuspect forgets who sent piece i wrong; clearSuspects, of all pieces.
func (p *Peer) clearSuspect(b *blob, i int) {
	for _, s := range b.suspects[i] {
		if n := p.nodes[s.name]; n != nil && n.doubt > 0 {
			n.doubt--
			p.doubts--
			p.forget(n)
		}
	}
	delete(b.suspects, i)
}

func (p *Peer) clearSuspects(b *blob) {
	for i := range b.suspects {
		p.clearSuspect(b, i)
	}
}

// mismatch decides who is to blame for a piece that did not verify: nobody
// until a second source has sent it.
func (p *Peer) mismatch(b *blob, a *attempt, ev EvStored) {
	i := ev.Piece
	p.act(ActReport{Report{Kind: ReportBadPiece, Node: a.node.name, ID: b.id, Piece: i, Err: ev.Err}})
	b.redundant += int64(a.size)
	if !a.l.c.closed && a.l.opened && a.l.blob == b {
		p.tell(a.l.c, &wire.Bad{Blob: a.l.mine, Piece: uint32(i)})
	}
	s := suspect{name: a.node.name, hash: ev.Hash, known: ev.Hash != [32]byte{}, times: 1, at: p.now}
	ss := b.suspects[i]
	equal, again := 1, false
	for k := range ss {
		switch {
		case ss[k].name == s.name:
			ss[k].at = p.now
			ss[k].times++
			again, s.times = true, ss[k].times
		case s.known && ss[k].known && ss[k].hash == s.hash:
			equal++
		}
	}
	if again {
		switch {
		case s.times < 3:
		case equal < 2:
			p.convict(p.node(s.name), b, i, errAlone)
		case s.times < maxSuspects && b.untried(i): // somebody may contradict
		default: // two insist, and nobody contradicts: rather without a swarm than without them
			p.fail(b, fmt.Errorf("piece %d of %s: %d sources insist on it against the named sums: %w", i, b.id.Digest(), equal, piece.ErrMismatch))
		}
		return
	}
	if len(ss) < maxSuspects {
		b.suspects[i] = append(ss, s)
		p.node(s.name).doubt++
		p.doubts++
	}
	if equal < 2 {
		return
	}
	if b.hash == nil && !b.proven {
		p.disproved(b, i)
		return
	}
	// The tracker vouches for the list: two may have conspired. Three are taken to be
	// right if nobody can contradict, and as many as are kept in any case; then the swarm
	// is not one that can be joined.
	if equal >= 3 && (!b.untried(i) || equal >= maxSuspects) {
		p.fail(b, fmt.Errorf("piece %d of %s: %d sources agree against the named sums: %w", i, b.id.Digest(), equal, piece.ErrMismatch))
	}
}

// untried reports whether somebody could send piece i who has not sent it wrong.
func (b *blob) untried(i int) bool {
	return slices.ContainsFunc(b.links, func(l *link) bool {
		return l.slot >= 0 && (l.complete || l.have.Has(i)) &&
			!slices.ContainsFunc(b.suspects[i], func(s suspect) bool { return s.name == l.c.node.name })
	})
}
