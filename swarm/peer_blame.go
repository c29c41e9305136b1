package swarm

import (
	"errors"
	"fmt"
	"slices"

	"github.com/capelin-io/capelin/swarm/piece"
	"github.com/capelin-io/capelin/swarm/wire"
)

// suspected reports whether n has sent piece i wrong, just now.
func (p *Peer) suspected(b *blob, i int, n *node) bool { return b.blame.avoided(i, n.name, p.now) }

// verified convicts those who sent a piece wrong that now came right, from
// somebody else. What verifies against a provisional list is only what its supplier has, or who
// relays that. So it proves nothing against those who contradict the supplier, nor, as long as there is another source, which
// may have other bytes, against who may have them from there.
func (p *Peer) verified(b *blob, i int, from *node) {
	if last := b.sums.supplierOf(i); !b.sums.vouched() && last.trust < trustOrigin &&
		(last.name == from.name || b.known.sourceBeside(last.name, from.name)) {
		return
	}
	for _, s := range p.clearSuspects(b, i) {
		if s.name != from.name { // else it was a slip
			p.convict(p.node(s.name), b, i, errBytes)
		}
	}
}

// clearSuspects forgets who sent piece i wrong, and returns them.
func (p *Peer) clearSuspects(b *blob, i int) []suspect {
	all := b.blame.cleared(i)
	p.doubtful = p.doubtful || len(all) > 0
	for _, s := range all {
		if n := p.nodes[s.name]; n != nil && n.doubt > 0 {
			n.doubt--
			p.doubts--
			p.forget(n)
		}
	}
	return all
}

func (p *Peer) clearAllSuspects(b *blob) {
	for i := range b.blame.suspects {
		p.clearSuspects(b, i)
	}
}

// mismatch deals with a piece that did not verify.
func (p *Peer) mismatch(b *blob, a *attempt, ev EvStored) {
	i := ev.Piece
	p.act(ActReport{Report{Kind: ReportBadPiece, Node: a.node.name, ID: b.id, Piece: i, Err: ev.Err}})
	b.traffic.redundant += int64(a.size)
	if !a.l.c.closed && a.l.opened && a.l.blob == b {
		p.tell(a.l.c, &wire.Bad{Blob: a.l.local, Piece: uint32(i)})
	}
	p.doubtful = true
	verdict, agree, added := b.blame.mismatch(i, a.node.name, ev.Hash, p.now, b.sums.vouched(), func() bool { return b.untried(i) })
	if added {
		p.node(a.node.name).doubt++
		p.doubts++
	}
	switch verdict {
	case judgeSender:
		p.convict(p.node(a.node.name), b, i, errAlone)
	case judgeSums:
		p.disproved(b, i)
	case judgeHopeless:
		p.fail(b, fmt.Errorf("piece %d of %s: %d sources agree against the named sums: %w", i, b.id.Digest(), agree, piece.ErrMismatch))
	}
}

// untried reports whether somebody could send piece i who has not sent it wrong.
func (b *blob) untried(i int) bool {
	return slices.ContainsFunc(b.links, func(l *link) bool {
		return l.slot >= 0 && l.has(i) && !b.blame.accused(i, l.c.node.name)
	})
}

// convict cuts a node off.
func (p *Peer) convict(n *node, b *blob, i int, why error) {
	if n.banned > p.now {
		return
	}
	n.banned = p.now + p.cfg.BanFor
	p.doubtful = true
	p.banned = append(p.banned, n)
	p.arm(&p.chores, p.now+choreEvery)
	p.act(ActReport{Report{Kind: ReportConvicted, Node: n.name, ID: b.id, Piece: i, Err: why}})
	p.doubtful = true
	if n.conn != nil {
		p.close(n.conn, wire.CodeConvicted, why.Error())
	}
	if !errors.Is(why, errBytes) { // else somebody else's bytes agree with the list
		p.distrustSums(b)
	}
}

// distrustSums drops a provisional list of which nothing is left but what nodes that are cut off
// have supplied.
func (p *Peer) distrustSums(b *blob) {
	s := &b.sums
	if p.blobs[b.id] != b || !b.want || s.vouched() || s.list.Len() == 0 || len(s.suppliers) == 0 {
		return
	}
	for _, x := range s.suppliers {
		if n := p.nodes[x.name]; n == nil || n.banned <= p.now {
			return
		}
	}
	p.setSums(b, piece.NewSums(b.id), true)
	s.fallen = true
	p.askAllSums(b)
}
