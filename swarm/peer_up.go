package swarm

import (
	"slices"
	"time"

	"github.com/capelin-io/capelin/swarm/piece"
	"github.com/capelin-io/capelin/swarm/wire"
)

func (p *Peer) onRequest(c *conn, m *wire.Request) {
	l := p.opened(c, m.Blob)
	if l == nil {
		return
	}
	any := m.Piece == wire.AnyPiece
	i, off, n := int(m.Piece), int(m.Offset), int(m.Length)
	switch {
	case any && (off != 0 || n != piece.MaxBlock),
		!any && (int64(m.Piece) >= int64(l.id.Pieces()) || n <= 0 || n > piece.MaxBlock ||
			int64(m.Offset)+int64(m.Length) > int64(l.id.PieceSize(i))):
		p.malformed(c, "a request for %d bytes at %d of piece %d", m.Length, m.Offset, m.Piece)
		return
	}
	b := l.blob
	if b == nil || !l.opened {
		return // our Close crossed it
	}
	if c.out.requests >= maxRequests {
		p.close(c, wire.CodeLimit, "too many requests open")
		return
	}
	var u *upload
	if any {
		if i = p.offer(b, l); i < 0 {
			p.tell(c, &wire.Lost{Blob: l.local, Piece: wire.AnyPiece})
			return
		}
		n = min(piece.MaxBlock, b.id.PieceSize(i))
	} else {
		if !b.have.Has(i) {
			p.tell(c, &wire.Lost{Blob: l.local, Piece: m.Piece})
			return
		}
		for _, o := range l.uploads {
			if o.i == i && o.asked+n <= o.size {
				u = o
			}
		}
	}
	if u == nil {
		// The blocks after one that was refused are refused too: their requester
		// is about to start over elsewhere.
		tail := off > 0 && l.refused == i && p.now-l.refusedAt < uploadIdle
		if tail || !p.up.admit(l, any, p.cfg.UpQueue) {
			if !any {
				l.refused, l.refusedAt = i, p.now
			}
			at := p.up.retryAt(&c.out, b.id.PieceSize(i), p.now)
			p.tell(c, &wire.Busy{
				Blob: l.local, Piece: m.Piece, Offset: m.Offset,
				Queue: p.up.load(), Retry: uint16(max(1, (at-p.now+time.Millisecond-1)/time.Millisecond)),
			})
			return
		}
		u = &upload{l: l, i: i, any: any, size: b.id.PieceSize(i)}
		p.up.add(u)
		b.sent.add(b.n, i)
		if !b.downloading() { // the peer announces what it gets to seeders only
			if l.unannounced == nil {
				l.unannounced = make(map[int32]bool)
			}
			l.unannounced[int32(i)] = true
		}
	}
	p.up.request(u, span{off, n}, p.now)
	p.send()
}

// offer chooses the piece for an AnyPiece request: the least often sent of
// those that the requester lacks, of equals as sendCounts says, or -1.
func (p *Peer) offer(b *blob, l *link) int {
	if l.complete {
		return -1
	}
	return b.sent.least(b.n, b.sent.first(b.n, p.rng), func(i int) bool {
		return b.have.Has(i) && !l.have.Has(i) && !l.unannounced[int32(i)]
	})
}

// send gives the driver what it has room for.
func (p *Peer) send() {
	for p.up.pending > 0 {
		if t := p.up.limit.ready(p.now); t > p.now {
			p.arm(&p.up.due, t)
			return
		}
		u := p.up.next(p.list, p.now)
		if u == nil {
			p.arm(&p.up.due, p.now+stuckAfter)
			return
		}
		c, b := u.l.c, u.l.blob
		s := p.up.take(u, p.now)
		b.traffic.out += int64(s.n)
		c.keep.spoke = p.now
		p.flushHaves(u.l)
		p.act(ActSendBlock{
			Conn: c.id, Handle: u.l.local, ID: b.id, Piece: u.i, Offset: s.off, Length: s.n, Queue: p.up.load(),
		})
	}
}

func (p *Peer) onBlockSent(ev EvBlockSent) {
	c := p.conn(ev.Conn)
	if c == nil || c.out.inDriver == 0 {
		return
	}
	if u := p.up.sent(&c.out, ev.N, p.now); u.over() {
		p.endUpload(u)
	}
	p.send()
}

// endUpload takes a piece out of the queue, sent or not.
func (p *Peer) endUpload(u *upload) {
	if !p.up.remove(u) || u.left() == 0 {
		return
	}
	delete(u.l.unannounced, int32(u.i))
	if b := u.l.blob; b != nil && u.sent == 0 {
		b.sent.takeBack(u.i)
	}
}

// expireUploads frees the places of requesters that ask for no more.
func (p *Peer) expireUploads() {
	for _, u := range slices.Clone(p.up.uploads) {
		if u.idle(p.now) {
			p.endUpload(u)
		}
	}
}

// dropUpload drops piece i from what l waits for.
func (p *Peer) dropUpload(l *link, i int) {
	for _, u := range slices.Clone(l.uploads) {
		if u.i == i {
			p.endUpload(u)
		}
	}
}

// withdraw drops everything that l waits for.
func (p *Peer) withdraw(l *link) {
	for len(l.uploads) > 0 {
		p.endUpload(l.uploads[len(l.uploads)-1])
	}
}

func (p *Peer) onCancel(c *conn, m *wire.Cancel) {
	l := p.opened(c, m.Blob)
	if l == nil {
		return
	}
	if m.Piece == wire.AnyPiece {
		for _, u := range slices.Clone(l.uploads) {
			if u.any && u.sent == 0 {
				p.endUpload(u)
			}
		}
		return
	}
	if int64(m.Piece) >= int64(l.id.Pieces()) {
		p.malformed(c, "a Cancel of piece %d of %d", m.Piece, l.id.Pieces())
		return
	}
	p.dropUpload(l, int(m.Piece))
}
