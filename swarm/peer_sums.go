package swarm

import (
	"bytes"
	"time"

	"github.com/capelin-io/capelin/swarm/piece"
	"github.com/capelin-io/capelin/swarm/wire"
)

// Sums: which list of chaining states a download goes by (DESIGN.md section 3).
//
// If the tracker has named the proven list's hash, only the list that has it
// counts, whoever sends it. Otherwise any list is provisional: it is taken from
// whoever has one, from a source before a peer that claims to have proven it
// before any other. A list that grows (its source is still receiving the blob)
// is asked for further as pieces beyond it are announced; a state that equals
// ours vouches for all before it, so each request overlaps by one.
//
// A provisional list falls when two sources send equal bytes that do not match
// it. Its supplier is convicted if it is a source or claimed to have proven the
// list; a relay may have been fooled itself.

// sumsState is what a link's peer has to do with our list.
type sumsState struct {
	asked bool          // a request is outstanding
	at    time.Duration // when it was sent, or not before which the next is
	bad   bool          // its list is not ours: not asked again, unless another list is named
	fresh *piece.Sums   // its list, while that is collected to be compared with the named hash
}

const (
	sumsTimeout = 3 * time.Second // an unanswered request is forgotten then
	sumsPause   = 500 * time.Millisecond
	sumsBurst   = 8 << 20 // bytes of states that a peer gets at once,
	sumsRate    = 1 << 20 // and per second from then on
)

// trust ranks a link as a supplier of provisional sums.
func (l *link) trust(proven bool) int {
	switch {
	case l.origin():
		return 2
	case proven:
		return 1
	}
	return 0
}

// askSums asks the peer of l for states that we lack, unless another was asked
// already and it is no better than that one.
func (p *Peer) askSums(l *link) {
	b := l.blob
	if b == nil || !b.downloading() || b.sums.Complete() || !l.open || !l.opened || l.sums.bad || l.c.closed {
		return
	}
	if l.sums.asked && p.now-l.sums.at > sumsTimeout {
		l.sums.asked = false
	}
	if l.sums.asked || p.now < l.sums.at {
		return
	}
	if have := b.sums.Len(); !l.complete && l.have.NextSet(have) < 0 && have > 0 && !l.origin() {
		return // nothing announced beyond our list
	}
	if !l.origin() {
		for _, o := range b.links {
			if o.sums.asked && p.now-o.sums.at <= sumsTimeout {
				return
			}
		}
	}
	from := max(0, b.sums.Len()-1)
	if l.sums.fresh != nil {
		from = l.sums.fresh.Len()
	}
	l.sums.asked, l.sums.at = true, p.now
	p.tell(l.c, &wire.SumsRequest{Blob: l.mine, From: uint32(from), Count: uint32(b.sums.MaxLen() - from)})
}

func (p *Peer) onSumsRequest(c *conn, m *wire.SumsRequest) {
	l := p.his(c, m.Blob)
	if l == nil {
		return
	}
	b := l.blob
	if b == nil || !l.opened {
		return
	}
	l.asked = true
	from := int(min(m.From, uint32(piece.MaxSize/piece.MinLength)))
	states := b.sums.Range(from, int(min(m.Count, wire.MaxSums)))
	// Requests are cheap to send and their answers are not.
	c.sumBytes = min(sumsBurst, c.sumBytes+(p.now-c.sumAt).Seconds()*sumsRate)
	c.sumAt = p.now
	if c.sumBytes < float64(len(states)) {
		states = nil
	}
	c.sumBytes -= float64(len(states))
	p.tell(c, &wire.Sums{Blob: l.mine, From: uint32(from), Proven: b.proven, States: states})
	if n := len(states) / b.id.Alg.Size(); from <= l.pushed {
		l.pushed = max(l.pushed, from+n)
	}
	if b.have.Full() && !b.sums.Complete() && !b.summing {
		b.summing = true
		p.act(ActComputeSums{b.id})
	}
}

// flushSums sends what our own list has grown by to those who asked.
func (p *Peer) flushSums(b *blob) {
	for _, l := range b.links {
		if !l.opened || !l.open || !l.asked || l.complete {
			continue
		}
		for l.pushed < b.sums.Len() {
			states := b.sums.Range(l.pushed, wire.MaxSums)
			p.tell(l.c, &wire.Sums{Blob: l.mine, From: uint32(l.pushed), Proven: b.proven, States: states})
			l.pushed += len(states) / b.id.Alg.Size()
		}
	}
}

func (p *Peer) onSums(c *conn, m *wire.Sums) {
	l := p.his(c, m.Blob)
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
	asked := l.sums.asked
	l.sums.asked, l.sums.at = false, p.now+sumsPause
	if b == nil || !b.downloading() || b.sums.Complete() || l.sums.bad {
		return
	}
	from, have := int(m.From), b.sums.Len()
	if l.sums.fresh != nil {
		p.collect(b, l, m)
		return
	}
	if from > have || from+n <= have && from+n != have {
		return
	}
	if from < have {
		// The overlap tells whether it is the same list.
		k := min(n, have-from)
		if !bytes.Equal(m.States[:k*w], b.sums.Range(from, k)) {
			p.conflict(b, l, m)
			return
		}
	} else if have > 0 && !asked && !l.origin() {
		return // unasked, and nothing says that it continues our list
	}
	if from+n <= have {
		p.askOthers(b, l)
		return
	}
	p.extend(b, l, m, from, have)
}

// askOthers asks the next peer when l had nothing new.
func (p *Peer) askOthers(b *blob, l *link) {
	for _, o := range b.links {
		if o != l {
			p.askSums(o)
		}
	}
}

// extend appends what l sent beyond our list to it.
func (p *Peer) extend(b *blob, l *link, m *wire.Sums, from, have int) {
	w := b.id.Alg.Size()
	if b.isRefused(from, m.States) {
		l.sums.bad = true
		p.askOthers(b, l)
		return
	}
	list := b.sums.Clone()
	if list.Append(m.States[(have-from)*w:]) != nil {
		return
	}
	if b.hash != nil && list.Complete() && list.Hash() != *b.hash {
		l.sums.bad = true
		p.setSums(b, piece.NewSums(b.id), nil)
		p.askOthers(b, l)
		return
	}
	b.segments = append(b.segments, segment{have, l.c.node.name, l.trust(m.Proven)})
	p.setSums(b, list, &l.c.node.name)
	l.sums.at = p.now
	if len(m.States) == wire.MaxSums*w {
		p.askSums(l) // there may be more already
	}
	p.pump()
}

// collect takes the whole of a list that is not ours, and puts it in the place
// of ours, unless the tracker has named another.
func (p *Peer) collect(b *blob, l *link, m *wire.Sums) {
	f := l.sums.fresh
	if int(m.From) != f.Len() || len(m.States) == 0 || f.Append(m.States) != nil {
		l.sums.fresh, l.sums.bad = nil, true
		p.askOthers(b, l)
		return
	}
	l.sums.at = p.now
	if !f.Complete() {
		p.askSums(l)
		return
	}
	l.sums.fresh = nil
	if b.hash != nil && f.Hash() != *b.hash {
		l.sums.bad = true
		p.askOthers(b, l)
		return
	}
	b.segments = []segment{{0, l.c.node.name, l.trust(m.Proven)}}
	p.setSums(b, f, &l.c.node.name)
	p.pump()
}

// conflict: l's list is another than ours. If the right one's hash is known,
// that decides. Otherwise the one from the more trusted supplier stays; with
// equal trust, the one we have. A list that can be had whole is collected beside
// ours first, so that pieces on which both agree are kept.
func (p *Peer) conflict(b *blob, l *link, m *wire.Sums) {
	best := 0
	for _, s := range b.segments {
		best = max(best, s.trust)
	}
	if b.proven || b.hash == nil && (len(b.segments) == 0 || l.trust(m.Proven) <= best) {
		l.sums.bad = true
		p.askOthers(b, l)
		return
	}
	if b.hash != nil || l.complete {
		for _, o := range b.links {
			if o.sums.fresh != nil {
				return // one at a time
			}
		}
		l.sums.fresh, l.sums.at = piece.NewSums(b.id), p.now
		p.askSums(l)
		return
	}
	p.setSums(b, piece.NewSums(b.id), nil)
	l.sums.at = p.now
	p.askSums(l)
}

// segment says who supplied the states from a number on.
type segment struct {
	from  int
	name  string
	trust int
}

// refusal is a state of a list that was disproved.
type refusal struct {
	i     int
	state piece.Sum
}

// maxRefusals bounds what is remembered of disproved lists.
const maxRefusals = 64

// isRefused reports whether states, which begin with number from, contain one
// that was disproved.
func (b *blob) isRefused(from int, states []byte) bool {
	w := b.id.Alg.Size()
	for _, r := range b.refusals {
		if k := r.i - from; k >= 0 && (k+1)*w <= len(states) && bytes.Equal(states[k*w:(k+1)*w], r.state[:w]) {
			return true
		}
	}
	return false
}

// setSums makes list the one that counts. Pieces verified against another are
// missing again. An empty list means that none is known now; the driver is told
// when there is another. A supplier of nil says that the states are our own, or
// none.
func (p *Peer) setSums(b *blob, list *piece.Sums, supplier *string) {
	old := b.sums
	if list == old {
		return
	}
	b.sums = list
	grown := list.HasPrefix(old)
	if !grown {
		if supplier == nil {
			b.segments = nil
		}
		if b.adopted == nil {
			b.adopted = old
		}
		b.proven = false
		p.clearAllSuspects(b)
		for _, l := range b.links {
			l.pushed = 0
		}
		if b.pick != nil {
			for i := range b.n {
				b.removeWanted(i)
				for b.attempts[i] != nil && i >= list.Verifiable() {
					p.abort(b.attempts[i], true)
				}
			}
		}
	}
	if list.Len() == 0 && list.MaxLen() > 0 {
		return
	}
	if was := b.adopted; was != nil {
		b.adopted = nil
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
	if supplier != nil || !grown {
		p.act(ActAdopt{b.id, list})
	}
	if b.pick != nil {
		from := 0
		if grown {
			from = old.Verifiable()
		}
		for i := from; i < list.Verifiable(); i++ {
			b.addWanted(i)
		}
	}
}

// disproved drops a provisional list against which two sources sent equal bytes
// of piece i.
func (p *Peer) disproved(b *blob, i int) {
	var last segment
	for _, s := range b.segments {
		if s.from <= i {
			last = s
		}
	}
	w := b.id.Alg.Size()
	if len(b.refusals) < maxRefusals {
		// The states on both sides of the piece; the first may be right, but not
		// together with the second.
		if s := b.sums.Range(i, 1); s != nil {
			b.refusals = append(b.refusals, refusal{i, piece.Sum(append(s[:w:w], make([]byte, 64-w)...))})
		} else if s := b.sums.Range(i-1, 1); s != nil {
			b.refusals = append(b.refusals, refusal{i - 1, piece.Sum(append(s[:w:w], make([]byte, 64-w)...))})
		}
	}
	p.act(ActReport{Report{Kind: ReportSumsReplaced, Node: last.name, ID: b.id, Piece: i, Err: errSums}})
	p.setSums(b, piece.NewSums(b.id), nil)
	if last.name == "" {
		return
	}
	n := p.node(last.name)
	if n.conn != nil {
		if l := n.conn.byID[b.id]; l != nil {
			l.sums.bad = true
		}
	}
	if last.trust > 0 {
		p.convict(n, b, i, errSums)
	}
	for _, l := range b.links {
		p.askSums(l)
	}
}

func (p *Peer) onSumsHash(ev EvSumsHash) {
	b := p.blobs[ev.ID]
	if b == nil || b.hash != nil && *b.hash == ev.Hash {
		return
	}
	h := ev.Hash
	b.hash = &h
	for _, l := range b.links {
		l.sums.bad = false
	}
	if !b.proven && b.want && b.sums.Complete() && b.sums.Hash() != h {
		p.setSums(b, piece.NewSums(b.id), nil)
	}
	for _, l := range b.links {
		p.askSums(l)
	}
}
