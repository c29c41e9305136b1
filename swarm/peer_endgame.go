package swarm

import (
	"time"

	"github.com/capelin-io/capelin/swarm/piece"
)

// endgame is what a blob's second requests for a piece cost, and when they are looked at
// again. It belongs to the blob.
type endgame struct {
	spent int // bytes asked for a second time
	next  time.Duration
}

const (
	endgameEvery  = 50 * time.Millisecond
	endgameShare  = 250     // one in so many bytes of the blob may be asked for twice,
	endgameAtMost = 1 << 20 // or a piece, up to this
)

// affords reports whether a piece of size bytes may be asked for twice.
func (g *endgame) affords(id piece.ID, size int) bool {
	return g.spent+size <= max(int(id.Size/endgameShare), min(int(id.Length()), endgameAtMost))
}

// endgame starts second attempts at pieces that are slow to come when nothing
// else is left to ask for, within a budget of 0.4 % of the blob.
func (p *Peer) endgame(b *blob) {
	b.endgame.next = p.now + endgameEvery
	if b.pick.wanted() > 0 || b.flight.active == 0 {
		return
	}
	slow := p.down.lateAfter()
	var late []*attempt
	for _, c := range p.list {
		for _, a := range c.pipe.attempts {
			if a.b == b && a.other == nil && b.flight.attempts[a.i] == a && p.now-a.last > slow {
				late = append(late, a)
			}
		}
	}
	for _, a := range late {
		if !b.endgame.affords(b.id, a.size) || p.down.inflight >= p.down.window(&p.cfg) {
			return
		}
		l := p.second(b, a)
		if l == nil {
			continue
		}
		b.endgame.spent += a.size
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
		if l == a.l || l.slot < 0 || l.c.far && !a.l.c.far || c.pipe.full() || c.pipe.freeAt() > p.now ||
			!l.has(a.i) || p.suspected(b, a.i, c.node) {
			continue
		}
		if q := p.load(c); best == nil || q < least {
			best, least = l, q
		}
	}
	return best
}
