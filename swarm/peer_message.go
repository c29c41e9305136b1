package swarm

import (
	"fmt"
	"time"

	"github.com/capelin-io/capelin/swarm/piece"
	"github.com/capelin-io/capelin/swarm/wire"
)

// Messages about a blob's swarm.

func (p *Peer) onMessage(id ConnID, m wire.Message) {
	c := p.conn(id)
	if c == nil || c.closed {
		return
	}
	c.keep.heard = p.now
	p.heardOf(c)
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

// opened returns the link of a handle that the peer gave, or closes the
// connection.
func (p *Peer) opened(c *conn, h wire.Handle) *link {
	l := c.swarms.find(h)
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
	if c.swarms.remote[m.Blob] != nil {
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
	if l := c.swarms.byID[m.ID]; l != nil && l.open {
		p.close(c, wire.CodeUnexpected, m.ID.Digest()+" is already open")
		return
	}
	if c.swarms.full() {
		p.close(c, wire.CodeLimit, "too many blobs open")
		return
	}
	l := p.link(c, m.ID)
	c.swarms.opened(l, m.Blob)
	l.want = m.Want
	l.complete, l.have = m.Complete || have.Full(), have
	if l.complete {
		l.have = nil
	}
	l.emptyUntil = 0
	if l.blob == nil {
		p.reckon(l)
		if m.Want {
			p.act(ActInvite{m.ID})
		}
		return
	}
	if l.opened && l.news.stale {
		p.tell(c, &wire.Close{Blob: l.local})
		l.opened, l.news = false, news{}
	}
	p.open(c, l.blob)
	l.seat()
	p.askSums(l)
	p.arm(&p.pumpAt, p.now)
}

func (p *Peer) onClose(c *conn, m *wire.Close) {
	l := p.opened(c, m.Blob)
	if l == nil {
		return
	}
	p.shut(l)
	c.swarms.closed(l)
	l.want, l.complete, l.have = false, false, nil
	p.reckon(l)
	l.news.peerClosed()
	l.reset()
	if !l.opened {
		p.unlink(l)
	}
	p.arm(&p.pumpAt, p.now)
}

func (p *Peer) onHave(c *conn, m *wire.Have) {
	l := p.opened(c, m.Blob)
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
	l.emptyUntil = 0
	beyond := false
	for _, i := range m.Pieces {
		if len(l.unannounced) > 0 {
			delete(l.unannounced, int32(i))
		}
		if l.complete || !l.have.Set(int(i)) {
			continue
		}
		if l.blob != nil {
			l.gain(int(i))
			if l.blob.have.Full() {
				l.blob.sent.elsewhere(l.blob.n, int(i))
			}
			beyond = beyond || int(i) >= l.blob.sums.verifiable()
		}
	}
	if beyond && !l.sums.bad {
		l.sums.hasMore(p.now)
		p.askSums(l)
	}
	if !l.complete && l.have.Full() {
		l.completed()
		p.reckon(l)
	}
	if b := l.blob; b != nil && b.pick != nil && (l.useful > 0 || l.complete) && p.mayStart(b, p.down.window(&p.cfg)) {
		p.pump()
	}
}

func (p *Peer) onLostMessage(c *conn, m *wire.Lost) {
	l := p.opened(c, m.Blob)
	if l == nil {
		return
	}
	b := l.blob
	if m.Piece == wire.AnyPiece {
		if l.any > 0 {
			p.endAny(l)
			p.down.limit.give(b.block())
			l.emptyUntil = p.now + emptyFor
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
		l.partial(i)
		p.reckon(l)
	} else {
		l.have.Clear(i)
	}
	if b == nil {
		return
	}
	l.lose(i)
	p.doubtful = true // it may be the last that had it
	if b.flight.attempts != nil {
		if a := b.flight.attempts[i].from(l); a != nil {
			p.abort(a, false)
		}
	}
	if b.have.Has(i) && l.opened {
		// It may never have been told, since it had the piece.
		p.tell(c, &wire.Have{Blob: l.local, Pieces: []uint32{m.Piece}})
	}
	p.arm(&p.pumpAt, p.now)
}

// emptyFor is how long a peer that has nothing for AnyPiece is asked by
// number only.
const emptyFor = 500 * time.Millisecond
