package swarm

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/capelin-io/capelin/swarm/piece"
	"github.com/capelin-io/capelin/swarm/wire"
)

// blob is a joined swarm.
type blob struct {
	id       piece.ID
	n        int // pieces
	want     bool
	priority int
	joined   uint64 // order of joining

	named   time.Duration // when a source was named last, or the blob began to be wanted
	deadEnd bool          // as the driver was told
	doubt   bool          // the same

	have     *piece.Bits
	complete bool // ActComplete was returned
	arrivals arrivals

	sums sumList

	known knownPeers
	links []*link

	pick    *picker   // nil unless wanted
	seats   seats     // who has a slot in pick
	share   zoneShare // of what comes from other zones, what we bring
	flight  flight    // what is on its way
	blame   blame
	endgame endgame

	announcing announcing
	sent       sendCounts
	given      int64 // bytes to peers, and what counts as such, by which blobs share the uplink
	rechecks   rechecks

	traffic traffic
}

// flight is the pieces of a blob that are on their way to the disk. It belongs to the blob,
// and is changed with every attempt and request for any piece (peer_attempt.go) and when
// the driver has stored a piece.
type flight struct {
	attempts []*attempt       // by piece; nil unless wanted
	storing  map[int]*attempt // whole, and in the driver's hands
	active   int              // attempts, second ones included, and AnyPiece requests
	anys     int              // those of them that are AnyPiece requests
	blocks   int              // requested and not arrived
}

// has reports whether piece i is on its way.
func (f *flight) has(i int) bool { return f.attempts[i] != nil || f.storing[i] != nil }

// held returns how many pieces are in memory, whole or in part.
func (f *flight) held() int { return f.active + len(f.storing) }

// traffic counts the bytes of a blob's blocks.
type traffic struct{ in, out, redundant int64 }

// downloading reports whether pieces are still to come.
func (b *blob) downloading() bool { return b.want && !b.have.Full() }

// doubtful reports whether what is stored may be false.
func (b *blob) doubtful() bool {
	return b.downloading() && !b.sums.proven && b.have.Count() > 0 && (!b.blame.none() || b.sums.fallen)
}

// useful reports whether the peer may give us something we lack, now or later.
func (b *blob) useful(l *link) bool {
	return b.downloading() && l.open && !l.c.closed && (l.complete || l.want || l.useful > 0)
}

func (p *Peer) onJoin(ev EvJoin) {
	if ev.ID.Validate() != nil {
		p.act(ActFail{ev.ID, fmt.Errorf("joining %s: %w", ev.ID, piece.ErrInvalid)})
		return
	}
	b := p.blobs[ev.ID]
	again := b != nil
	if b == nil {
		n := ev.ID.Pieces()
		b = &blob{
			id: ev.ID, n: n, known: newKnownPeers(), announcing: announcing{due: never},
			have: piece.NewBits(n), sums: sumList{list: piece.NewSums(ev.ID)},
		}
		if ev.Have != nil && ev.Have.Len() == n {
			b.have = ev.Have
		}
		if ev.Sums != nil && ev.Sums.ID() == ev.ID {
			b.sums.list = ev.Sums
		}
		b.sums.proven = ev.Proven && b.sums.list.Complete()
		if ev.Want && !b.sums.proven && b.sums.list.Len() > 0 {
			b.sums.suppliers = []supplier{{}} // from who knows whom, before a restart
		}
		p.blobs[ev.ID] = b
		p.joins++
		b.joined = p.joins
		for _, c := range p.list {
			if l := c.swarms.byID[ev.ID]; l != nil {
				p.bind(l, b)
			}
		}
	}
	wanted := b.want
	b.want, b.priority = ev.Want, ev.Priority
	p.order = slices.DeleteFunc(p.order, func(o *blob) bool { return o == b })
	if b.want {
		at, _ := slices.BinarySearchFunc(p.order, b, func(x, y *blob) int {
			return cmp.Or(cmp.Compare(x.priority, y.priority), cmp.Compare(x.joined, y.joined))
		})
		p.order = slices.Insert(p.order, at, b)
	}
	if again && wanted == b.want {
		p.arm(&p.pumpAt, p.now)
		return
	}
	if again {
		p.stopWanting(b)
		for _, l := range b.links {
			if l.opened { // say it anew
				p.tell(l.c, &wire.Close{Blob: l.local})
				l.opened, l.news = false, news{}
			}
		}
	}
	if b.want {
		p.startWanting(b)
	}
	for _, l := range slices.Clone(b.links) {
		p.attach(l)
	}
	for _, c := range slices.Clone(p.list) {
		if b.downloading() && b.known.has(c.node.name) {
			p.link(c, b.id)
			p.open(c, b)
		}
	}
	p.maybeComplete(b)
	p.arm(&p.chores, p.now)
	p.arm(&p.pumpAt, p.now)
}

// startWanting makes the state that a download needs.
func (p *Peer) startWanting(b *blob) {
	b.arrivals.began, b.named = p.now, p.now
	b.deadEnd, p.doubtful = false, true
	b.pick, b.seats = newPicker(b.n, p.rng), newSeats()
	b.flight.attempts = make([]*attempt, b.n)
	b.flight.storing = make(map[int]*attempt)
	for i := range b.sums.verifiable() {
		b.addWanted(i)
	}
	for _, l := range b.links {
		l.seat()
	}
}

// stopWanting drops it, with all requests.
func (p *Peer) stopWanting(b *blob) {
	if b.pick == nil {
		return
	}
	for _, l := range b.links {
		p.abortAll(l)
		l.slot, l.useful = -1, 0
	}
	for i := range b.flight.storing {
		p.down.memory -= int64(b.id.PieceSize(i))
	}
	p.clearAllSuspects(b)
	b.seats, b.pick, b.flight = seats{}, nil, flight{}
}

// attach brings a link to a blob that was joined after the peer opened it.
func (p *Peer) attach(l *link) {
	if l.open {
		p.open(l.c, l.blob)
		l.seat()
	}
}

func (p *Peer) onLeave(id piece.ID) {
	if b := p.blobs[id]; b != nil {
		p.leave(b)
	}
}

func (p *Peer) leave(b *blob) {
	p.stopWanting(b)
	for _, l := range slices.Clone(b.links) {
		if l.opened {
			p.tell(l.c, &wire.Close{Blob: l.local})
			l.opened, l.news = false, news{}
		}
		if l.open {
			p.detach(l)
			l.reset()
		} else {
			p.unlink(l)
		}
	}
	for _, k := range b.known.list {
		k.node.refs--
		p.forget(k.node)
	}
	delete(p.blobs, b.id)
	is := func(o *blob) bool { return o == b }
	p.order = slices.DeleteFunc(p.order, is)
	p.dirty = slices.DeleteFunc(p.dirty, is)
	p.arm(&p.pumpAt, p.now)
	p.send()
}

// fail gives a blob up.
func (p *Peer) fail(b *blob, err error) {
	p.leave(b)
	p.act(ActFail{b.id, err})
}

// tendBlobs looks after the downloads, every choreEvery.
func (p *Peer) tendBlobs() {
	for _, b := range p.order {
		p.askAllSums(b)
		if b.downloading() {
			p.standIn(b)
			p.endgame(b)
		}
	}
}
