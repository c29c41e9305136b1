package swarm

import (
	"slices"
	"time"

	"github.com/capelin-io/capelin/swarm/piece"
	"github.com/capelin-io/capelin/swarm/wire"
)

// How long queues here may be.
const (
	// queueTime: beyond PeerConfig.UpQueue pieces, as many more are admitted as
	// leave in this time, so that fast uplinks do not run dry between two
	// requests.
	queueTime = 4 * time.Millisecond
	// maxWait: no piece is admitted that would have to wait longer than this for
	// its first block, so that a requester need not take a queue for a stall.
	maxWait = 500 * time.Millisecond
	// uploadIdle is how long an admitted piece keeps its place while its
	// requester asks for no more of it.
	uploadIdle = time.Second
	// driverTime is how much is given to the driver at once.
	driverTime = 2 * time.Millisecond
	// stuckAfter: blocks that the driver has had for longer wait for their
	// receiver, not for our uplink, and do not hold others up.
	stuckAfter = 50 * time.Millisecond

	// maxUploads bounds the admitted pieces in any case.
	maxUploads = 256

	guessedRate = 100 << 20 // bytes per second, before anything was measured
)

// uplink is the part of the Peer that all uploads share: pieces in the order of
// their admission. The first that has a request waiting is served first, so
// that pieces are finished, and spread further, one after the other.
type uplink struct {
	uploads []*upload
	pending int   // blocks requested and not given to the driver
	left    int64 // bytes of admitted pieces that were not given to the driver, requested or not
	active  int   // blocks in the driver
	meter   meter
	due     time.Duration // when to look at the queue again
	retry   time.Duration // when the next refused requester may come back
}

// upload is a piece on its way to one peer.
type upload struct {
	l      *link
	i      int
	any    bool
	size   int
	sent   int // bytes given to the driver
	asked  int // bytes requested
	queue  []span
	driver int // blocks in the driver
	last   time.Duration
	dead   bool
}

type span struct{ off, n int }

// rate returns the measured or guessed bandwidth of the uplink, in bytes per
// second.
func (p *Peer) rate() float64 {
	r := p.up.meter.rate
	if r == 0 {
		r = guessedRate
	}
	if p.upCap.rate > 0 {
		r = min(r, p.upCap.rate)
	}
	return max(r, 1024)
}

// driverMax returns how many blocks the driver gets at once.
func (p *Peer) driverMax() int {
	return min(max(2, int(p.rate()*driverTime.Seconds())/piece.MaxBlock), 8)
}

func (p *Peer) onRequest(c *conn, m *wire.Request) {
	l := p.his(c, m.Blob)
	if l == nil {
		return
	}
	any := m.Piece == wire.AnyPiece
	i, off, n := int(m.Piece), int(m.Offset), int(m.Length)
	switch {
	case any && (off != 0 || n != piece.MaxBlock),
		!any && (int64(m.Piece) >= int64(l.id.Pieces()) || n <= 0 || n > piece.MaxBlock ||
			int64(m.Offset)+int64(m.Length) > int64(l.id.PieceSize(i))):
		p.malformed(c, "a request for %d bytes at %d of piece %d", m.Length, m.Offset, m.Piece)
		return
	}
	b := l.blob
	if b == nil || !l.opened {
		return // our Close crossed it
	}
	if c.requests >= maxRequests {
		p.close(c, wire.CodeLimit, "too many requests open")
		return
	}
	var u *upload
	if any {
		if i = p.offer(b, l); i < 0 {
			p.tell(c, &wire.Lost{Blob: l.mine, Piece: wire.AnyPiece})
			return
		}
		n = min(piece.MaxBlock, b.id.PieceSize(i))
	} else {
		if !b.have.Has(i) {
			p.tell(c, &wire.Lost{Blob: l.mine, Piece: m.Piece})
			return
		}
		for _, o := range l.uploads {
			if o.i == i && o.asked+n <= o.size {
				u = o
			}
		}
	}
	if u == nil {
		// The blocks after one that was refused are refused too: their requester
		// is about to start over elsewhere.
		tail := off > 0 && l.refused == i && p.now-l.refusedAt < uploadIdle
		if tail || !p.admit(l, any) {
			if !any {
				l.refused, l.refusedAt = i, p.now
			}
			p.tell(c, &wire.Busy{
				Blob: l.mine, Piece: m.Piece, Offset: m.Offset,
				Queue: p.queue(), Retry: p.retry(c, b.id.PieceSize(i)),
			})
			return
		}
		u = &upload{l: l, i: i, any: any, size: b.id.PieceSize(i)}
		l.uploads = append(l.uploads, u)
		p.up.uploads = append(p.up.uploads, u)
		p.up.left += int64(u.size)
		if b.sent == nil {
			b.sent = make([]uint32, b.n)
		}
		b.sent[i]++
		if !b.downloading() { // the peer announces what it gets to seeders only
			if l.given == nil {
				l.given = make(map[int32]bool)
			}
			l.given[int32(i)] = true
		}
	}
	u.asked += n
	u.last = p.now
	u.queue = append(u.queue, span{off, n})
	c.requests++
	p.up.pending++
	p.send()
}

// queue returns the load that replies carry.
func (p *Peer) queue() uint16 { return uint16(min(p.up.pending, 1<<16-1)) }

// admit decides whether another piece may wait here.
func (p *Peer) admit(l *link, any bool) bool {
	r := p.rate()
	n, mine := len(p.up.uploads), 0
	for _, o := range l.c.links {
		mine += len(o.uploads)
	}
	switch {
	case n >= maxUploads:
		return false
	case n == mine, p.up.pending == 0 && p.up.active < p.driverMax():
		return true // nobody else waits, or the uplink is running dry
	}
	wait := float64(p.up.left) / r
	if n >= p.cfg.UpQueue && wait > queueTime.Seconds() || wait > maxWait.Seconds() {
		return false
	}
	if any && l.c.far && slices.ContainsFunc(p.up.uploads, func(u *upload) bool { return !u.l.c.far }) {
		return false // what our own zone gets, others can have from there
	}
	if mine >= (n+1)/2+1 {
		return false // leave room for others
	}
	if any {
		// One at a time for each, as long as others wait.
		mine = 0
		for _, u := range l.uploads {
			if u.any && u.sent == 0 {
				mine++
			}
		}
		if mine > 0 && n > len(l.uploads) {
			return false
		}
	}
	return true
}

// retry returns after how many milliseconds a refused requester of a piece of
// size bytes is to come back: when half of what waits has gone, and not
// together with the others that were refused.
func (p *Peer) retry(c *conn, size int) uint16 {
	t := c.refused
	if t <= p.now {
		r := p.rate()
		t = p.now + time.Duration(float64(p.up.left)/4/r*1e9)
		t = min(max(t, p.up.retry), p.now+2*time.Second)
		p.up.retry = t + time.Duration(float64(size)/4/r*1e9)
		c.refused = t
	}
	return uint16(max(1, (t-p.now+time.Millisecond-1)/time.Millisecond))
}

// offer chooses the piece for an AnyPiece request: the least often sent of
// those that the requester lacks, at random among equals, or -1.
func (p *Peer) offer(b *blob, l *link) int {
	if l.complete {
		return -1
	}
	if b.sent == nil {
		b.sent = make([]uint32, b.n)
	}
	best, least := -1, ^uint32(0)
	start := p.rng.IntN(b.n)
	for k := range b.n {
		i := start + k
		if i >= b.n {
			i -= b.n
		}
		if s := b.sent[i]; s < least && b.have.Has(i) && !l.have.Has(i) && !l.given[int32(i)] {
			best, least = i, s
			if s == 0 {
				break
			}
		}
	}
	return best
}

// send gives the driver what it has room for.
func (p *Peer) send() {
	for p.up.pending > 0 {
		if t := p.upCap.ready(p.now); t > p.now {
			p.arm(&p.up.due, t)
			return
		}
		limit := p.driverMax()
		full := p.up.active >= limit
		if full {
			// Do not let a receiver that takes nothing hold the others up.
			stuck := 0
			for _, c := range p.list {
				if c.inDriver > 0 && p.now-c.gave >= stuckAfter {
					stuck += c.inDriver
				}
			}
			full = p.up.active-stuck >= limit
		}
		if full {
			p.arm(&p.up.due, p.now+stuckAfter)
			return
		}
		var u *upload
		for _, o := range p.up.uploads {
			if len(o.queue) > 0 && o.l.c.inDriver < limit && (o.l.c.inDriver == 0 || p.now-o.l.c.gave < stuckAfter) {
				u = o
				break
			}
		}
		if u == nil {
			p.arm(&p.up.due, p.now+stuckAfter)
			return
		}
		s := u.queue[0]
		u.queue = u.queue[1:]
		c, b := u.l.c, u.l.blob
		c.requests--
		p.up.pending--
		p.up.left -= int64(min(s.n, max(0, u.size-u.sent)))
		u.sent += s.n
		u.driver++
		u.last = p.now
		if c.inDriver == 0 {
			c.gave = p.now
		}
		c.inDriver++
		c.sending = append(c.sending, u)
		if p.up.active == 0 {
			p.up.meter.start(p.now)
		}
		p.up.active++
		p.upCap.take(s.n)
		b.out += int64(s.n)
		c.keep.spoke = p.now
		p.flushHaves(u.l)
		p.act(ActSendBlock{
			Conn: c.id, Handle: u.l.mine, ID: b.id, Piece: u.i, Offset: s.off, Length: s.n, Queue: p.queue(),
		})
	}
}

func (p *Peer) onBlockSent(ev EvBlockSent) {
	c := p.conn(ev.Conn)
	if c == nil || c.inDriver == 0 {
		return
	}
	c.inDriver--
	c.gave = p.now
	p.up.active--
	u := c.sending[0]
	c.sending = c.sending[1:]
	u.driver--
	if u.sent >= u.size && len(u.queue) == 0 && u.driver == 0 {
		p.endUpload(u)
	}
	p.up.meter.add(ev.N, p.now)
	if p.up.active == 0 {
		p.up.meter.stop(p.now)
	}
	p.send()
}

// endUpload takes a piece out of the queue, sent or not.
func (p *Peer) endUpload(u *upload) {
	if u.dead {
		return
	}
	u.dead = true
	u.l.c.requests -= len(u.queue)
	p.up.pending -= len(u.queue)
	u.queue = nil
	p.up.left -= int64(max(0, u.size-u.sent))
	same := func(o *upload) bool { return o == u }
	p.up.uploads = slices.DeleteFunc(p.up.uploads, same)
	u.l.uploads = slices.DeleteFunc(u.l.uploads, same)
	if u.sent < u.size {
		delete(u.l.given, int32(u.i))
		if b := u.l.blob; b != nil && u.sent == 0 && b.sent[u.i] > 0 {
			b.sent[u.i]--
		}
	}
}

// expireUploads frees the places of requesters that ask for no more.
func (p *Peer) expireUploads() {
	for _, u := range slices.Clone(p.up.uploads) {
		if len(u.queue) == 0 && u.driver == 0 && p.now-u.last > uploadIdle {
			p.endUpload(u)
		}
	}
}

// dropUpload drops piece i from what l waits for.
func (p *Peer) dropUpload(l *link, i int) {
	for _, u := range slices.Clone(l.uploads) {
		if u.i == i {
			p.endUpload(u)
		}
	}
}

// withdraw drops everything that l waits for.
func (p *Peer) withdraw(l *link) {
	for len(l.uploads) > 0 {
		p.endUpload(l.uploads[len(l.uploads)-1])
	}
}

func (p *Peer) onCancel(c *conn, m *wire.Cancel) {
	l := p.his(c, m.Blob)
	if l == nil {
		return
	}
	if m.Piece == wire.AnyPiece {
		for _, u := range slices.Clone(l.uploads) {
			if u.any && u.sent == 0 {
				p.endUpload(u)
			}
		}
		return
	}
	if int64(m.Piece) >= int64(l.id.Pieces()) {
		p.malformed(c, "a Cancel of piece %d of %d", m.Piece, l.id.Pieces())
		return
	}
	p.dropUpload(l, int(m.Piece))
}
