package swarm

import (
	"slices"

	"github.com/capelin-io/capelin/swarm/piece"
	"github.com/capelin-io/capelin/swarm/wire"
)

// mayStart reports whether another piece of b may be begun.
func (p *Peer) mayStart(b *blob, window int) bool {
	return p.down.mayStart(&p.cfg, window, b.id.Length(), b.flight.held())
}

// pump asks for what there is room for.
func (p *Peer) pump() {
	p.pumpAt = never
	if !p.wanting() {
		return
	}
	window := p.down.window(&p.cfg)
	if p.down.inflight >= window {
		return // a block or a refusal will bring us back
	}
	if t := p.down.limit.ready(p.now); t > p.now {
		p.arm(&p.pumpAt, t)
		return
	}
	p.fill(window)
	p.pumps++
	p.turn(window)
	for _, b := range p.order {
		if !b.downloading() {
			continue
		}
		if b.pick.wanted() == 0 {
			if b.flight.active > 0 && p.now >= b.endgame.next {
				p.endgame(b)
			}
			if b.flight.active > 0 {
				p.arm(&p.pumpAt, b.endgame.next)
			}
			continue
		}
		for p.mayStart(b, window) {
			l := p.choose(b)
			if l == nil || !p.start(b, l) {
				break
			}
			if t := p.down.limit.ready(p.now); t > p.now {
				p.arm(&p.pumpAt, t)
				return
			}
		}
		if !b.blame.none() {
			p.arm(&p.pumpAt, p.now+retrySame)
		}
	}
}

// turn begins a piece of the first blob that has waited for one for too long, before all
// others. If it cannot, nobody behind it can have what it waits for either.
//
// It is asked from a peer that is downloading itself, if there is one that has something: if
// each had its turns from the seeder, those would be all that a swarm gets of it.
func (p *Peer) turn(window int) {
	if p.now < p.down.turnAt || len(p.order) < 2 {
		return
	}
	for _, b := range p.order {
		if !b.downloading() || b.flight.held() > 0 || b.pick.wanted() == 0 {
			continue
		}
		hungry, starved := b.arrivals.hungry(p.now, p.jitter)
		if !hungry {
			continue
		}
		sparing := !starved && slices.ContainsFunc(b.links, func(l *link) bool { return l.slot >= 0 && !l.complete && l.useful > 0 })
		l, _ := p.chooseAmong(b, choice{sparing: sparing})
		if l != nil && p.mayStart(b, window) && p.start(b, l) {
			p.down.tookTurn(b.id.Length(), p.now)
			return
		}
	}
}

// fill requests further blocks of the attempts that were begun.
func (p *Peer) fill(window int) {
	for k := 0; k < len(p.begun) && p.down.inflight < window; {
		a := p.begun[k]
		if a.l.c.pipe.full() {
			k++
			continue
		}
		if t := p.down.limit.ready(p.now); t > p.now {
			p.arm(&p.pumpAt, t)
			return
		}
		p.request(a) // takes it out with the last
	}
}

// choose returns the least loaded neighbour that can be asked for a piece of b
// now, or nil. Ties are broken at random.
//
// Whoever has sent a piece wrong is asked only if there is nobody else.
func (p *Peer) choose(b *blob) *link {
	l, doubted := p.chooseAmong(b, choice{})
	if l == nil && doubted && b.flight.blocks == 0 {
		l, _ = p.chooseAmong(b, choice{last: true})
	}
	return l
}

// choice is among whom is chosen.
type choice struct {
	last    bool // whoever has sent a piece wrong, too
	sparing bool // no seeders
}

func (p *Peer) chooseAmong(b *blob, among choice) (best *link, doubted bool) {
	least, seen, scarce := 0.0, 0, p.scarce(b)
	for _, l := range b.links {
		if l.slot < 0 || !l.complete && l.useful == 0 || l.complete && among.sparing {
			continue
		}
		if l.c.far && !p.mayBring(b, l) {
			continue
		}
		c := l.c
		if c.pipe.taken(p.pumps, b) {
			continue // a blob with priority takes what it gives
		}
		if c.pipe.full() || c.pipe.part > 0 || c.pipe.outstanding > 0 && p.slow(c) {
			c.pipe.claim(p.pumps, b)
			continue
		}
		if p.doubts > 0 && c.node.doubt > 0 && !among.last {
			doubted = true
			continue
		}
		if t := c.pipe.freeAt(); t > p.now {
			p.arm(&p.pumpAt, t)
			continue
		}
		if l.any > 0 && (l.any >= c.pipe.depth-1 || scarce) {
			c.pipe.claim(p.pumps, b)
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

// scarce reports whether so few pieces are left that a seeder's choice could
// hardly be one that is not under way: they are asked for by number.
func (p *Peer) scarce(b *blob) bool {
	return b.pick.wanted() <= 2*p.cfg.Window && 2*b.pick.wanted() < b.n
}

// start asks l for a piece. It reports whether it did.
func (p *Peer) start(b *blob, l *link) bool {
	if b.flight.anys >= b.pick.wanted() {
		return false // they are as many as there are pieces to come
	}
	if b.pick.wanted() > 1 && !p.scarce(b) && l.emptyUntil <= p.now && p.chooser(b, l) {
		l.any++
		b.flight.anys++
		b.flight.active++
		b.flight.blocks++
		p.down.active++
		p.down.memory += b.id.Length()
		p.owe(l.c, b.block())
		p.flushHaves(l)
		p.tell(l.c, &wire.Request{Blob: l.local, Piece: wire.AnyPiece, Length: piece.MaxBlock})
		return true
	}
	i := p.rescue(b, l)
	if i < 0 {
		i = b.pick.pick(l.slot, l.complete, p.pickable(b, l))
	}
	if i < 0 {
		// Only pieces that it has sent wrong before.
		l.c.pipe.busy = p.now + choreEvery
		p.arm(&p.pumpAt, l.c.pipe.busy)
		return true
	}
	b.removeWanted(i)
	a := p.begin(b, l, i)
	b.flight.attempts[i] = a
	p.request(a)
	return true
}

// chooser reports whether l is to choose the piece itself: if it is where the
// swarm's pieces come from, so that it hands out each once before any twice.
// Where there are many seeders, their choices would be the same too often.
func (p *Peer) chooser(b *blob, l *link) bool {
	if l.c.far && (b.seats.nearSeeds() != 0 || !l.origin()) {
		return false // by our share
	}
	if !l.complete {
		return l.origin() && p.only(b, l)
	}
	return b.pick.rare() && b.seats.fewSeeds()
}

// rescue returns a piece that somebody has sent wrong and that l can send, or
// -1: those come first, so that whoever is to blame is found soon.
func (p *Peer) rescue(b *blob, l *link) int {
	best := -1
	for i := range b.blame.suspects {
		if (best < 0 || i < best) && b.pick.has(i) && l.has(i) && !p.suspected(b, i, l.c.node) {
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
		near := p.nearby(b)
		return func(i int) bool {
			return b.share.brings(i) && b.pick.at[i].mask&near == 0 && !p.suspected(b, i, l.c.node)
		}
	case !b.blame.none():
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
