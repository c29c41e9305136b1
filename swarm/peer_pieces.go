package swarm

import (
	"errors"
	"fmt"

	"github.com/capelin-io/capelin/swarm/piece"
	"github.com/capelin-io/capelin/swarm/wire"
)

// onLocal: pieces came by another way than the swarm.
func (p *Peer) onLocal(ev EvLocal) {
	b := p.blobs[ev.ID]
	if b == nil || ev.From < 0 || ev.To > b.n || ev.From > ev.To {
		return
	}
	b.sums.computing = false
	if list := b.sums.withOwn(ev.From, ev.States); list != nil {
		p.setSums(b, list, true)
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
	if b == nil || !b.have.Full() || !b.sums.list.Complete() {
		return
	}
	b.sums.proven, b.sums.suppliers = true, nil
}

// gotPiece records that a piece is stored.
func (p *Peer) gotPiece(b *blob, i int) {
	b.removeWanted(i)
	if !b.have.Set(i) {
		return
	}
	b.arrivals.stored(p.now)
	b.rechecks.forget(i)
	for _, l := range b.links {
		switch {
		case !l.opened:
		case !l.interested():
			l.news.miss()
		default:
			if l.news.add(i) {
				p.flushHaves(l)
			}
			if b.announcing.wait(p.now) {
				p.next = min(p.next, b.announcing.due)
				p.dirty = append(p.dirty, b)
			}
		}
	}
}

// maybeComplete ends a download that has everything.
func (p *Peer) maybeComplete(b *blob) {
	if !b.want || b.complete || !b.have.Full() {
		return
	}
	b.complete = true
	for _, l := range b.links {
		p.flushHaves(l)
		p.flushWithheld(l)
	}
	p.act(ActComplete{b.id})
}

// onLost: a piece that was there is not.
func (p *Peer) onLost(id piece.ID, i int) {
	b := p.blobs[id]
	if b == nil || i < 0 || i >= b.n {
		return
	}
	b.rechecks.forget(i)
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
		l.news.lose(i)
		p.dropUpload(l, i)
		switch {
		case !l.opened:
		case l.open:
			p.tell(l.c, &wire.Lost{Blob: l.local, Piece: uint32(i)})
		default:
			l.news.miss()
		}
	}
}

func (p *Peer) onBad(c *conn, m *wire.Bad) {
	l := p.opened(c, m.Blob)
	if l == nil {
		return
	}
	if int64(m.Piece) >= int64(l.id.Pieces()) {
		p.malformed(c, "a Bad of piece %d of %d", m.Piece, l.id.Pieces())
		return
	}
	b, i := l.blob, int(m.Piece)
	if b == nil || !b.have.Has(i) || i >= b.sums.verifiable() {
		return
	}
	if b.rechecks.allow(i, p.now) {
		p.act(ActRecheck{b.id, i})
	}
}

func (p *Peer) onStored(ev EvStored) {
	b := p.blobs[ev.ID]
	if b == nil || b.flight.storing[ev.Piece] == nil {
		return
	}
	a := b.flight.storing[ev.Piece]
	delete(b.flight.storing, ev.Piece)
	p.doubtful = p.doubtful || b.flight.active == 0 && len(b.flight.storing) == 0
	p.down.memory -= int64(b.id.PieceSize(ev.Piece))
	stale := !a.sums.Agrees(b.sums.list, ev.Piece) // the list was replaced meanwhile
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
