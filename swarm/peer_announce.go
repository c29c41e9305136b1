package swarm

import (
	"time"

	"github.com/capelin-io/capelin/swarm/wire"
)

// maxHaves is how many pieces one Have announces at most.
const maxHaves = 1024

// interested reports whether the peer of l wants to know what we get. Whoever
// does not is told when it opens the blob anew.
func (p *Peer) interested(l *link) bool {
	return l.open && (l.blob.want || !l.complete) && (l.want || l.complete)
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
