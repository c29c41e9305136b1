package swarm

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
