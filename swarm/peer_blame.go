package swarm

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/capelin-io/capelin/swarm/piece"
	"github.com/capelin-io/capelin/swarm/wire"
)

// suspect is a node that sent a piece that did not verify, and the SHA-256 of
// what it sent.
type suspect struct {
	name  string
	hash  [32]byte
	known bool // hash is
	times int
	at    time.Duration // the last time
}

// retrySame is when a piece is asked again from whoever sent it wrong, if
// nobody else has sent it until then.
const retrySame = 2 * time.Second

// maxSuspects bounds the suspects of one piece.
const maxSuspects = 8

var (
	errBytes = errors.New("another source's bytes verified")
	errAlone = errors.New("sent a piece that does not verify again and again")
	errSums  = errors.New("its sums were disproved by equal bytes of two sources")
)

// suspected reports whether n has sent piece i wrong, just now.
func (p *Peer) suspected(b *blob, i int, n *node) bool {
	return slices.ContainsFunc(b.suspects[i], func(s suspect) bool { return s.name == n.name && p.now-s.at < retrySame })
}

// verified convicts those who sent a piece wrong that now came right, from
// somebody else.
func (p *Peer) verified(b *blob, i int, from *node) {
	ss := b.suspects[i]
	if len(ss) == 0 {
		return
	}
	p.clearSuspect(b, i)
	for _, s := range ss {
		if s.name == from.name {
			continue // a slip
		}
		p.convict(p.node(s.name), b, i, errBytes)
	}
}

// clearSuspect forgets who sent piece i wrong; clearSuspects, of all pieces.
func (p *Peer) clearSuspect(b *blob, i int) {
	for _, s := range b.suspects[i] {
		if n := p.nodes[s.name]; n != nil && n.doubt > 0 {
			n.doubt--
			p.doubts--
			p.forget(n)
		}
	}
	delete(b.suspects, i)
}

func (p *Peer) clearSuspects(b *blob) {
	for i := range b.suspects {
		p.clearSuspect(b, i)
	}
}

// mismatch decides who is to blame for a piece that did not verify: nobody
// until a second source has sent it.
func (p *Peer) mismatch(b *blob, a *attempt, ev EvStored) {
	i := ev.Piece
	p.act(ActReport{Report{Kind: ReportBadPiece, Node: a.node.name, ID: b.id, Piece: i, Err: ev.Err}})
	b.redundant += int64(a.size)
	if !a.l.c.closed && a.l.opened && a.l.blob == b {
		p.tell(a.l.c, &wire.Bad{Blob: a.l.mine, Piece: uint32(i)})
	}
	s := suspect{name: a.node.name, hash: ev.Hash, known: ev.Hash != [32]byte{}, times: 1, at: p.now}
	ss := b.suspects[i]
	equal, again := 1, false
	for k := range ss {
		switch {
		case ss[k].name == s.name:
			ss[k].at = p.now
			ss[k].times++
			again, s.times = true, ss[k].times
		case s.known && ss[k].known && ss[k].hash == s.hash:
			equal++
		}
	}
	if again {
		switch {
		case s.times < 3:
		case equal < 2:
			p.convict(p.node(s.name), b, i, errAlone)
		case s.times < maxSuspects && b.untried(i): // somebody may contradict
		default: // two insist, and nobody contradicts: rather without a swarm than without them
			p.fail(b, fmt.Errorf("piece %d of %s: %d sources insist on it against the named sums: %w", i, b.id.Digest(), equal, piece.ErrMismatch))
		}
		return
	}
	if len(ss) < maxSuspects {
		b.suspects[i] = append(ss, s)
		p.node(s.name).doubt++
		p.doubts++
	}
	if equal < 2 {
		return
	}
	if b.hash == nil && !b.proven {
		p.disproved(b, i)
		return
	}
	// The tracker vouches for the list: two may have conspired. Three are taken to be
	// right if nobody can contradict, and as many as are kept in any case; then the swarm
	// is not one that can be joined.
	if equal >= 3 && (!b.untried(i) || equal >= maxSuspects) {
		p.fail(b, fmt.Errorf("piece %d of %s: %d sources agree against the named sums: %w", i, b.id.Digest(), equal, piece.ErrMismatch))
	}
}

// untried reports whether somebody could send piece i who has not sent it wrong.
func (b *blob) untried(i int) bool {
	return slices.ContainsFunc(b.links, func(l *link) bool {
		return l.slot >= 0 && (l.complete || l.have.Has(i)) &&
			!slices.ContainsFunc(b.suspects[i], func(s suspect) bool { return s.name == l.c.node.name })
	})
}

// convict cuts a node off.
func (p *Peer) convict(n *node, b *blob, i int, why error) {
	if n.banned > p.now {
		return
	}
	n.banned = p.now + p.cfg.BanFor
	p.banned = append(p.banned, n)
	p.arm(&p.chores, p.now+choreEvery)
	p.act(ActReport{Report{Kind: ReportConvicted, Node: n.name, ID: b.id, Piece: i, Err: why}})
	if n.conn != nil {
		p.close(n.conn, wire.CodeConvicted, why.Error())
	}
}
