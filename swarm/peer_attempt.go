package swarm

import (
	"fmt"
	"slices"
	"time"

	"github.com/capelin-io/capelin/swarm/piece"
	"github.com/capelin-io/capelin/swarm/wire"
)

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

// request asks for the next block of an attempt.
func (p *Peer) request(a *attempt) {
	n := min(piece.MaxBlock, a.size-a.next)
	p.owe(a.l.c, n)
	a.b.flight.blocks++
	a.open++
	p.flushHaves(a.l)
	p.tell(a.l.c, &wire.Request{Blob: a.l.local, Piece: uint32(a.i), Offset: uint32(a.next), Length: uint32(n)})
	if a.next += n; a.next >= a.size {
		p.whole(a)
	}
}

// whole notes that no block of an attempt is left to be requested.
func (p *Peer) whole(a *attempt) {
	a.l.c.pipe.part--
	k := slices.Index(p.begun, a)
	p.begun = slices.Delete(p.begun, k, k+1)
}

// begin makes an attempt.
func (p *Peer) begin(b *blob, l *link, i int) *attempt {
	size := b.id.PieceSize(i)
	a := &attempt{
		b: b, l: l, node: l.c.node, i: i, size: size, began: p.now, slow: p.slow(l.c), last: p.now,
		data: make([][]byte, (size+piece.MaxBlock-1)/piece.MaxBlock),
	}
	l.c.pipe.attempts = append(l.c.pipe.attempts, a)
	l.c.pipe.part++
	p.begun = append(p.begun, a)
	b.flight.active++
	if !a.slow {
		p.down.active++
	}
	p.down.memory += b.id.Length()
	return a
}

// end takes an attempt out of everything that counts it, but for the memory.
func (p *Peer) end(a *attempt) {
	c := a.l.c
	c.pipe.attempts = slices.DeleteFunc(c.pipe.attempts, func(o *attempt) bool { return o == a })
	if a.next < a.size && !a.busy {
		p.whole(a)
	}
	p.settle(c, a.open)
	a.b.flight.blocks -= a.open
	a.b.flight.active--
	if !a.slow {
		p.down.active--
	}
	b := a.b
	switch first := b.flight.attempts[a.i]; {
	case first == a:
		b.flight.attempts[a.i] = a.other
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
	p.down.memory -= a.b.id.Length()
	a.b.traffic.redundant += int64(a.got)
	if open > 0 {
		p.down.limit.give(open * a.b.block())
		c.pipe.withdrawn += open
		if cancel {
			p.tell(c, &wire.Cancel{Blob: a.l.local, Piece: uint32(a.i)})
		}
	}
	a.b.addWanted(a.i)
}

// abortAll gives up everything that l was asked for.
func (p *Peer) abortAll(l *link) {
	for _, a := range slices.Clone(l.c.pipe.attempts) {
		if a.l == l {
			p.abort(a, true)
		}
	}
	if l.any > 0 {
		l.c.pipe.withdrawn += l.any
		for l.any > 0 {
			p.endAny(l)
			p.down.limit.give(l.blob.block())
		}
		p.tell(l.c, &wire.Cancel{Blob: l.local, Piece: wire.AnyPiece})
	}
}

// endAny counts an AnyPiece request of l as answered.
func (p *Peer) endAny(l *link) {
	l.any--
	l.blob.flight.anys--
	l.blob.flight.active--
	l.blob.flight.blocks--
	p.down.active--
	p.down.memory -= l.blob.id.Length()
	p.settle(l.c, 1)
}

// cancelPiece gives up every attempt at a piece that came by another way.
func (p *Peer) cancelPiece(b *blob, i int) {
	if b.flight.attempts == nil {
		return
	}
	for b.flight.attempts[i] != nil {
		p.abort(b.flight.attempts[i], true)
	}
}

func (p *Peer) onBlock(c *conn, m *wire.Block) {
	if c.swarms.former[m.Blob] {
		return // it was under way when the peer closed the blob
	}
	l := p.opened(c, m.Blob)
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
	if b != nil && b.flight.attempts != nil {
		if a = b.flight.attempts[i].from(l); a != nil && (off >= a.next || a.data[off/piece.MaxBlock] != nil) {
			a = nil
		}
	}
	p.down.meter.add(len(m.Data), p.now)
	switch {
	case a != nil:
		a.open--
		b.flight.blocks--
		p.settle(c, 1)
	case b != nil && l.any > 0 && off == 0:
		p.endAny(l)
		if a = p.adoptAny(l, i); a == nil {
			b.traffic.redundant += int64(len(m.Data))
		}
	case c.pipe.withdrawn > 0:
		c.pipe.withdrawn--
		if c.pipe.stalls > 0 {
			p.down.patience.rewarded(p.now) // it was slow, not dead
		}
		if b != nil {
			b.traffic.redundant += int64(len(m.Data))
		}
	case b == nil || !l.opened:
		// Our Close crossed it.
	default:
		p.close(c, wire.CodeUnexpected, fmt.Sprintf("a block of piece %d that was not requested", i))
		return
	}
	p.answers(c)
	c.pipe.answered(p.now)
	c.pipe.reported(int(m.Queue), p.now)
	if b == nil {
		return
	}
	b.traffic.in += int64(len(m.Data))
	b.arrivals.fed = p.now
	if a != nil {
		c.gave = p.now
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
	if b.flight.attempts == nil || i >= b.sums.verifiable() || b.have.Has(i) || b.flight.storing[i] != nil || p.suspected(b, i, l.c.node) {
		return nil
	}
	if o := b.flight.attempts[i]; o != nil {
		if o.got > 0 && o.size > piece.MaxBlock {
			return nil // further on than this one
		}
		for b.flight.attempts[i] != nil {
			p.abort(b.flight.attempts[i], true)
		}
	}
	b.removeWanted(i)
	a := p.begin(b, l, i)
	b.flight.attempts[i] = a
	a.next, a.began = min(piece.MaxBlock, a.size), never
	if a.next == a.size {
		p.whole(a)
	}
	return a
}

// finish hands a whole piece to the driver.
func (p *Peer) finish(a *attempt) {
	b, i := a.b, a.i
	p.measure(a)
	p.end(a)
	for b.flight.attempts[i] != nil {
		p.abort(b.flight.attempts[i], true)
	}
	b.removeWanted(i)
	p.down.memory += int64(a.size) - b.id.Length() // freed by onStored
	b.flight.storing[i] = a
	data := a.data
	a.data = nil
	a.sums = b.sums.list
	p.act(ActStore{ID: b.id, Piece: i, Sums: a.sums, Data: data})
}

func (p *Peer) onBusy(c *conn, m *wire.Busy) {
	l := p.opened(c, m.Blob)
	if l == nil {
		return
	}
	if m.Piece != wire.AnyPiece && int64(m.Piece) >= int64(l.id.Pieces()) {
		p.malformed(c, "a Busy for piece %d of %d", m.Piece, l.id.Pieces())
		return
	}
	p.answers(c)
	c.pipe.answered(p.now)
	c.pipe.refused(int(m.Queue), time.Duration(max(m.Retry, 1))*time.Millisecond, p.now)
	p.arm(&p.pumpAt, c.pipe.busy)
	b := l.blob
	if b == nil {
		return
	}
	l.busyAt = p.now
	if hungry, _ := b.arrivals.hungry(p.now, p.jitter); hungry {
		p.down.turnAt = min(p.down.turnAt, p.now) // that was none
	}
	if m.Piece == wire.AnyPiece {
		if l.any > 0 {
			p.endAny(l)
			p.down.limit.give(b.block())
		}
	} else if b.flight.attempts != nil {
		if a := b.flight.attempts[m.Piece].from(l); a != nil && a.open > 0 {
			a.open--
			b.flight.blocks--
			p.settle(c, 1)
			p.down.limit.give(b.block())
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
