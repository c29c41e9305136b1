package swarm

// endgame starts second attempts at pieces that are slow to come when nothing
// else is left to ask for, within a budget of 0.4 % of the blob.
func (p *Peer) endgame(b *blob) {
	b.endAt = p.now + endgameEvery
	if b.pick.wanted() > 0 || b.active == 0 {
		return
	}
	budget := max(int(b.id.Size/250), min(int(b.id.Length()), 1<<20))
	slow := p.down.lateAfter()
	var late []*attempt
	for _, c := range p.list {
		for _, a := range c.pipe.attempts {
			if a.b == b && a.other == nil && b.attempts[a.i] == a && p.now-a.last > slow {
				late = append(late, a)
			}
		}
	}
	for _, a := range late {
		if b.extra+a.size > budget || p.down.inflight >= p.down.window(&p.cfg) {
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
