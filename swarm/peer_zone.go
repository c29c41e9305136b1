package swarm

import (
	"math/bits"
	"time"

	"github.com/capelin-io/capelin/swarm/piece"
)

// Zones: what is between them is thin, or costs money, so that a piece is to
// enter a zone once. What a node of the own zone has is never asked for in
// another; and of the rest, each piece is the business of one node, by its
// number: the tracker gives some nodes of each zone a share of the pieces. They
// have connections to other zones; the rest have none.
//
// Whoever gets nothing for a while takes on the shares that come after its own as
// well, more and more of them: so one node stands in for another that does not do its
// part, before everybody does. Who has no share brings what is missing only when it
// has nobody in its zone, or when all of them together have failed it.

const (
	standInAfter = 500 * time.Millisecond // with nothing under way but at slow peers, others' shares are taken on,
	standInTimes = 4                      // or after so many times what a piece from another zone takes;
	aloneAfter   = starveAfter            // all, by whoever has no share and no peer in its zone,
	helpAfter    = 10 * time.Second       // or has some
)

func (p *Peer) onShare(ev EvShare) {
	if b := p.blobs[ev.ID]; b != nil {
		b.share, b.helps, b.steps = ev.Share, 0, 0
		p.arm(&p.chores, p.now)
		p.arm(&p.pumpAt, p.now)
	}
}

// otherZone reports whether zone is another than own. Whoever is in none has no others.
func otherZone(own, zone string) bool { return own != "" && zone != own }

// far reports whether n is in another zone.
func (p *Peer) far(n *node) bool { return otherZone(p.cfg.Zone, n.zone) }

// brings returns the shares of which we bring pieces into the zone.
func (b *blob) brings() uint16 { return b.share | b.helps }

// help takes on more shares if nothing comes, of any blob, but from slow peers, though
// somebody in another zone has something: one, then two more, four, and all. They are
// kept until the tracker gives out other ones.
func (p *Peer) help(b *blob) {
	const all = 1<<piece.Shares - 1
	if p.cfg.Zone == "" || b.brings() == all {
		return
	}
	for _, c := range p.list {
		if c.outstanding > 0 && p.now-c.owed < standInAfter && !p.slow(c) {
			p.down.busy = p.now
			return
		}
	}
	idle := p.now - max(b.began, b.helped, p.down.busy)
	switch {
	case b.share != 0:
		wait, any := standInAfter, false
		for _, l := range b.links {
			if l.c.far && l.slot >= 0 && (l.complete || l.useful > 0) {
				any = true
				wait = max(wait, standInTimes*l.c.took)
			}
		}
		if !any || idle <= wait {
			return
		}
		b.helps = b.brings() | bits.RotateLeft16(b.brings(), 1<<b.steps)
		b.steps++
	case idle > helpAfter || idle > aloneAfter && b.near == 0:
		b.helps = all
	default:
		return
	}
	b.helped = p.now
	p.arm(&p.pumpAt, p.now)
}

// mayBring reports whether anything may be asked from l, which is of another zone.
func (p *Peer) mayBring(b *blob, l *link) bool {
	if b.brings() == 0 || l.dry > p.now || p.seedNear(b) {
		return false
	}
	if p.chooser(b, l) || b.pick.pick(l.slot, l.complete, p.pickable(b, l)) >= 0 {
		return true
	}
	l.dry = p.now + dryFor
	return false
}

// nearby returns the slots of peers of our own zone that answer, and not slowly.
func (p *Peer) nearby(b *blob) uint64 {
	near := b.near
	for _, l := range b.links {
		if !l.c.far && l.slot >= 0 && (l.c.stalls > 0 || p.slow(l.c)) {
			near &^= 1 << l.slot
		}
	}
	return near
}

// seedNear reports whether a peer of our own zone that has everything can be asked
// now.
func (p *Peer) seedNear(b *blob) bool {
	for m := b.seeds & b.near; m != 0; m &= m - 1 {
		c := b.slots[trailingZeros(m)].c
		if c.outstanding < c.depth && max(c.busy, c.snubbed) <= p.now && !p.slow(c) {
			return true
		}
	}
	return false
}

// dryFor is how long a peer of another zone that had nothing for us is not looked
// at again.
const dryFor = 5 * time.Millisecond
