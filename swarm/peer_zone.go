package swarm

import (
	"math/bits"
	"time"
)

func (p *Peer) onShare(ev EvShare) {
	if b := p.blobs[ev.ID]; b != nil {
		b.share.give(ev.Share)
		p.arm(&p.chores, p.now)
		p.arm(&p.pumpAt, p.now)
	}
}

// far reports whether n is in another zone.
func (p *Peer) far(n *node) bool { return otherZone(p.cfg.Zone, n.zone) }

// standIn takes on more shares if nothing comes, of any blob, but from slow peers, though
// somebody in another zone has something.
func (p *Peer) standIn(b *blob) {
	if p.cfg.Zone == "" || b.share.all() {
		return
	}
	for _, c := range p.list {
		if c.pipe.outstanding > 0 && p.now-c.pipe.owed < standInAfter && !p.slow(c) {
			p.down.seen = p.now
			return
		}
	}
	v := supply{since: max(b.arrivals.began, p.down.seen), near: b.seats.near != 0}
	for _, l := range b.links {
		if l.c.far && l.slot >= 0 && (l.complete || l.useful > 0) {
			v.far = true
			v.farTook = max(v.farTook, l.c.pipe.took)
		}
	}
	if b.share.standIn(p.now, v) {
		p.arm(&p.pumpAt, p.now)
	}
}

// mayBring reports whether anything may be asked from l, which is of another zone.
func (p *Peer) mayBring(b *blob, l *link) bool {
	if b.share.none() || l.dryUntil > p.now || p.seedNear(b) {
		return false
	}
	if p.chooser(b, l) || b.pick.pick(l.slot, l.complete, p.pickable(b, l)) >= 0 {
		return true
	}
	l.dryUntil = p.now + dryFor
	return false
}

// nearby returns the slots of peers of our own zone that answer, and not slowly.
func (p *Peer) nearby(b *blob) uint64 {
	near := b.seats.near
	for _, l := range b.links {
		if !l.c.far && l.slot >= 0 && (l.c.pipe.stalls > 0 || p.slow(l.c)) {
			near &^= 1 << l.slot
		}
	}
	return near
}

// seedNear reports whether a peer of our own zone that has everything can be asked
// now.
func (p *Peer) seedNear(b *blob) bool {
	for m := b.seats.nearSeeds(); m != 0; m &= m - 1 {
		c := b.seats.at[bits.TrailingZeros64(m)].c
		if !c.pipe.full() && c.pipe.freeAt() <= p.now && !p.slow(c) {
			return true
		}
	}
	return false
}

// dryFor is how long a peer of another zone that had nothing for us is not looked
// at again.
const dryFor = 5 * time.Millisecond
