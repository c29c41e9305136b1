package swarm

import (
	"slices"

	"github.com/capelin-io/capelin/swarm/wire"
)

// interested reports whether the peer of l wants to know what we get. Whoever
// does not is told when it opens the blob anew.
func (l *link) interested() bool {
	return l.open && (l.blob.want || !l.complete) && (l.want || l.complete)
}

// announce is a turn. It reports whether everybody has been told of everything.
func (p *Peer) announce(b *blob) bool {
	return b.announcing.round(len(b.links),
		func(j int) bool { return len(b.links[j].news.pending) > 0 },
		func(j int) { p.flushHaves(b.links[j]) },
		p.now+haveDelay(p.cfg.HaveDelay, b.id.Length(), p.down.meter.rate))
}

// flushHaves tells a peer what it was not told yet.
func (p *Peer) flushHaves(l *link) {
	if len(l.news.pending) == 0 {
		return
	}
	if !l.opened || !l.interested() {
		l.news.take(nil)
		l.news.miss()
		return
	}
	var has func(i int) bool
	if !l.complete {
		has = func(i int) bool { return l.announced(i) }
	}
	p.haves(l, l.news.take(has))
}

// flushWithheld tells a peer the rest, when we have everything.
func (p *Peer) flushWithheld(l *link) {
	if pieces := l.news.takeWithheld(); l.opened && l.open {
		p.haves(l, pieces)
	}
}

func (p *Peer) haves(l *link, pieces []uint32) {
	for some := range slices.Chunk(pieces, maxHaves) {
		p.tell(l.c, &wire.Have{Blob: l.local, Pieces: some})
	}
}
