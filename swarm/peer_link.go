package swarm

import (
	"fmt"
	"slices"
	"time"

	"github.com/capelin-io/capelin/swarm/piece"
	"github.com/capelin-io/capelin/swarm/wire"
)

// origin reports whether the peer of l is one that a whole swarm begins with.
func (l *link) origin() bool {
	return l.source || l.c.node.role == wire.RoleOrigin
}

// link is a swarm on a connection: what the peer opened, and what we did.
type link struct {
	c    *conn
	blob *blob // nil while we have not joined

	local  wire.Handle // our handle, if opened
	opened bool        // we have sent Open
	news   news        // what it does not say of what we have

	remote   wire.Handle // the peer's, if open
	open     bool        // the peer has sent Open
	want     bool
	complete bool
	source   bool          // the tracker says so
	dryUntil time.Duration // the peer, of another zone, has nothing for ours before this
	have     *piece.Bits   // nil if complete

	// Downloading.
	slot       int           // in blob.seats, or -1
	useful     int           // wanted pieces that a partial peer has
	any        int           // AnyPiece requests outstanding
	emptyUntil time.Duration // until then it is not asked for AnyPiece: it said Lost
	sums       sumsQuery
	busyAt     time.Duration // when the peer last said that it is busy; 0: never

	id     piece.ID
	since  time.Duration // when we opened it, or the tracker named the peer
	weight int64         // as it counts in the connection's

	// Uploading.
	uploads     []*upload
	refused     int // the piece that was refused last, and when
	refusedAt   time.Duration
	unannounced map[int32]bool // pieces sent, or being sent, that the peer has not announced yet
	feed        sumsFeed
}

// reset forgets what went over a link since one side opened it.
func (l *link) reset() {
	l.feed, l.unannounced, l.sums = sumsFeed{}, nil, sumsQuery{}
}

// link returns the link of a swarm on a connection, made if needed.
func (p *Peer) link(c *conn, id piece.ID) *link {
	l := c.swarms.byID[id]
	if l == nil {
		l = &link{c: c, id: id, slot: -1}
		c.swarms.add(l)
		if b := p.blobs[id]; b != nil {
			p.bind(l, b)
		}
	}
	return l
}

// bind brings a link and its blob together.
func (p *Peer) bind(l *link, b *blob) {
	l.blob = b
	b.links = append(b.links, l)
	p.reckon(l)
	k := b.known.byName[l.c.node.name]
	l.source = k != nil && k.info.Source
}

// unlink removes a link and all that goes on over it.
func (p *Peer) unlink(l *link) {
	p.detach(l)
	l.c.swarms.remove(l)
	l.open = false
	p.reckon(l)
}

// strangeLink is what a swarm takes that is only a peer's, beside its bitfield.
const strangeLink = 1 << 10

// reckon counts the memory of a link, which has changed, if it is of a swarm that is only the
// peer's.
func (p *Peer) reckon(l *link) {
	n := int64(0)
	if l.open && l.blob == nil {
		n = strangeLink
		if l.have != nil {
			n += int64(l.have.Len()+7) / 8
		}
	}
	p.strange += n - l.weight
	l.c.swarms.weight += n - l.weight
	l.weight = n
}

// lighten closes the connections whose peers have the most open that is not ours, while it is
// too much.
func (p *Peer) lighten() {
	for p.strange > p.cfg.Strange {
		most := p.list[0]
		for _, c := range p.list {
			if c.swarms.weight > most.swarms.weight {
				most = c
			}
		}
		p.close(most, wire.CodeLimit, fmt.Sprintf("%d blobs are open that this node has no part in, and it has no memory for more",
			len(most.swarms.remote)))
	}
}

// detach parts a link from its blob.
func (p *Peer) detach(l *link) {
	if l.blob == nil {
		return
	}
	p.shut(l)
	b := l.blob
	b.links = slices.DeleteFunc(b.links, func(o *link) bool { return o == l })
	l.blob = nil
	p.reckon(l)
}

// shut ends what goes on over a link because the peer left the swarm: its
// requests, ours, and what it has.
func (p *Peer) shut(l *link) {
	p.withdraw(l)
	p.abortAll(l)
	l.unseat()
}

// open tells the peer that we take part in a blob's swarm, once.
func (p *Peer) open(c *conn, b *blob) {
	l := c.swarms.byID[b.id]
	if l == nil || l.opened || c.closed {
		return
	}
	l.local, l.opened, l.news, l.since = c.swarms.next(), true, news{}, p.now
	p.asks(c)
	m := &wire.Open{Blob: l.local, ID: b.id, Want: b.want, Complete: b.have.Full()}
	if !m.Complete {
		if b.have.Count() > 0 {
			m.Bits, _ = b.have.AppendBinary(nil)
		}
	}
	p.tell(c, m)
	p.askSums(l)
}
