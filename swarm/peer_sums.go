package swarm

import (
	"slices"

	"github.com/capelin-io/capelin/swarm/piece"
	"github.com/capelin-io/capelin/swarm/wire"
)

// askSums asks the peer of l for states that we lack, unless another was asked
// already and it is no better than that one. One that brings nothing is nobody to wait for,
// and is asked only if there is nobody else.
func (p *Peer) askSums(l *link) {
	b := l.blob
	if b == nil || !b.downloading() || b.sums.list.Complete() || !l.open || !l.opened || l.c.closed || !l.sums.ready(p.now) {
		return
	}
	if have := b.sums.list.Len(); !l.complete && l.have.NextSet(have) < 0 && have > 0 && !l.origin() {
		return // nothing announced beyond our list
	}
	if !l.origin() {
		for _, o := range b.links {
			if o.sums.pending(p.now) && !o.c.silent {
				return
			}
		}
	}
	if l.c.silent && slices.ContainsFunc(b.links, func(o *link) bool { return o.open && !o.c.silent && (o.complete || o.useful > 0) }) {
		return
	}
	from := l.sums.ask(b.sums.list.Len(), p.now)
	p.asks(l.c)
	p.tell(l.c, &wire.SumsRequest{Blob: l.local, From: uint32(from), Count: uint32(b.sums.list.MaxLen() - from)})
}

func (p *Peer) askAllSums(b *blob) {
	for _, l := range b.links {
		p.askSums(l)
	}
}

// askOthers asks the next peer when l had nothing new.
func (p *Peer) askOthers(b *blob, l *link) {
	for _, o := range b.links {
		if o != l {
			p.askSums(o)
		}
	}
}

func (p *Peer) onSumsRequest(c *conn, m *wire.SumsRequest) {
	l := p.opened(c, m.Blob)
	if l == nil {
		return
	}
	b := l.blob
	if b == nil || !l.opened {
		return
	}
	l.feed.wanted = true
	from := int(min(m.From, uint32(piece.MaxSize/piece.MinLength)))
	states := b.sums.list.Range(from, int(min(m.Count, wire.MaxSums)))
	if !c.sums.take(len(states), p.now) {
		states = nil
	}
	p.tell(c, &wire.Sums{Blob: l.local, From: uint32(from), Proven: b.sums.proven, States: states})
	l.feed.served(from, len(states)/b.id.Alg.Size())
	if b.have.Full() && !b.sums.list.Complete() && !b.sums.computing {
		b.sums.computing = true
		p.act(ActComputeSums{b.id})
	}
}

// flushSums sends what our own list has grown by to those who asked.
func (p *Peer) flushSums(b *blob) {
	for _, l := range b.links {
		if !l.opened || !l.open || !l.feed.wanted || l.complete {
			continue
		}
		for l.feed.sent < b.sums.list.Len() {
			// The last state that it has shows what this continues: nobody believes what he did not ask for.
			from := max(0, l.feed.sent-1)
			states := b.sums.list.Range(from, wire.MaxSums)
			p.tell(l.c, &wire.Sums{Blob: l.local, From: uint32(from), Proven: b.sums.proven, States: states})
			l.feed.served(from, len(states)/b.id.Alg.Size())
		}
	}
}

func (p *Peer) onSums(c *conn, m *wire.Sums) {
	l := p.opened(c, m.Blob)
	if l == nil {
		return
	}
	w := l.id.Alg.Size()
	n, limit := len(m.States)/w, l.id.Pieces()-1
	if len(m.States)%w != 0 || n > wire.MaxSums || int64(m.From) > int64(limit) || int(m.From)+n > limit {
		p.malformed(c, "states %d to %d of %d", m.From, int64(m.From)+int64(n), limit)
		return
	}
	b := l.blob
	asked := l.sums.answered(p.now)
	if b == nil || !b.downloading() || b.sums.list.Complete() || l.sums.bad {
		return
	}
	if l.sums.fresh != nil {
		p.collect(b, l, m)
		return
	}
	switch b.sums.compare(int(m.From), m.States, asked || l.origin()) {
	case relDiffers:
		p.conflict(b, l, m)
	case relKnown:
		p.askOthers(b, l)
	case relLonger:
		p.extend(b, l, m)
	}
}

// extend appends what l sent beyond our list to it.
func (p *Peer) extend(b *blob, l *link, m *wire.Sums) {
	from, have := int(m.From), b.sums.list.Len()
	list := b.sums.continued(from, m.States)
	switch {
	case list == nil:
		p.rejectSums(b, l)
		return
	case !b.sums.acceptable(list):
		p.setSums(b, piece.NewSums(b.id), true)
		p.rejectSums(b, l)
		return
	}
	b.sums.suppliers = append(b.sums.suppliers, supplier{have, l.c.node.name, l.trust(m.Proven)})
	p.setSums(b, list, false)
	l.sums.at = p.now
	if b.sums.whole(m.States) {
		p.askSums(l)
	}
	p.pump()
}

// rejectSums asks others than l from now on, whose list is not ours.
func (p *Peer) rejectSums(b *blob, l *link) {
	l.sums.reject()
	p.askOthers(b, l)
}

// collect takes the whole of a list that is not ours, and puts it in the place
// of ours, unless the tracker has named another.
func (p *Peer) collect(b *blob, l *link, m *wire.Sums) {
	f := l.sums.fresh
	if !l.sums.collect(int(m.From), m.States) {
		p.rejectSums(b, l)
		return
	}
	l.sums.at = p.now
	if !f.Complete() {
		p.askSums(l)
		return
	}
	l.sums.fresh = nil
	if !b.sums.acceptable(f) {
		p.rejectSums(b, l)
		return
	}
	b.sums.suppliers = []supplier{{0, l.c.node.name, l.trust(m.Proven)}}
	p.setSums(b, f, false)
	p.pump()
}

// conflict: l's list is another than ours. If the right one's hash is known,
// that decides. Otherwise the one from the more trusted supplier stays; with
// equal trust, the one we have. A list that can be had whole is collected beside
// ours first, so that pieces on which both agree are kept.
func (p *Peer) conflict(b *blob, l *link, m *wire.Sums) {
	s := &b.sums
	if s.proven || s.named == nil && (len(s.suppliers) == 0 || l.trust(m.Proven) <= s.trust()) {
		p.rejectSums(b, l)
		return
	}
	if s.named != nil || l.complete {
		for _, o := range b.links {
			if o.sums.fresh != nil {
				return // one at a time
			}
		}
		l.sums.fresh, l.sums.at = piece.NewSums(b.id), p.now
		p.askSums(l)
		return
	}
	p.setSums(b, piece.NewSums(b.id), true)
	l.sums.at = p.now
	p.askSums(l)
}

// setSums makes list the one that counts. Pieces verified against another are
// missing again. The driver is told of a list that is not our own (or none).
func (p *Peer) setSums(b *blob, list *piece.Sums, own bool) {
	if list == b.sums.list {
		return
	}
	change := b.sums.replace(list, own)
	if !change.grown {
		p.clearAllSuspects(b)
		for _, l := range b.links {
			l.feed.sent = 0
		}
		if b.pick != nil {
			for i := range b.n {
				b.removeWanted(i)
				for b.flight.attempts[i] != nil && i >= list.Verifiable() {
					p.abort(b.flight.attempts[i], true)
				}
			}
		}
	}
	if list.Len() == 0 && list.MaxLen() > 0 {
		return
	}
	if was := change.stale; was != nil {
		for i := b.have.NextSet(0); i >= 0; i = b.have.NextSet(i + 1) {
			if i < was.Verifiable() && !list.Agrees(was, i) {
				b.have.Clear(i)
				p.retract(b, i)
			}
		}
		for _, l := range b.links {
			// A peer that announced a piece beyond its list may have been asked for
			// its sums in vain.
			l.sums.at = p.now
		}
	}
	if change.tell {
		p.act(ActAdopt{b.id, list})
	}
	if b.pick != nil {
		for i := change.from; i < list.Verifiable(); i++ {
			b.addWanted(i)
		}
	}
}

// disproved drops a provisional list against which two sources sent equal bytes
// of piece i.
func (p *Peer) disproved(b *blob, i int) {
	last := b.sums.supplierOf(i)
	b.sums.refuse(i)
	p.act(ActReport{Report{Kind: ReportSumsReplaced, Node: last.name, ID: b.id, Piece: i, Err: errSums}})
	p.setSums(b, piece.NewSums(b.id), true)
	b.sums.fallen = true
	if last.name == "" {
		return
	}
	n := p.node(last.name)
	if n.conn != nil {
		if l := n.conn.swarms.byID[b.id]; l != nil {
			l.sums.bad = true
		}
	}
	if last.trust > 0 {
		p.convict(n, b, i, errSums)
	}
	p.askAllSums(b)
}

func (p *Peer) onSumsHash(ev EvSumsHash) {
	b := p.blobs[ev.ID]
	if b == nil || b.sums.named != nil && *b.sums.named == ev.Hash {
		return
	}
	h := ev.Hash
	b.sums.named = &h
	for _, l := range b.links {
		l.sums.bad = false
	}
	if !b.sums.proven && b.want && !b.sums.acceptable(b.sums.list) {
		p.setSums(b, piece.NewSums(b.id), true)
	}
	p.askAllSums(b)
}
