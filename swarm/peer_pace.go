package swarm

import (
	"slices"

	"github.com/capelin-io/capelin/swarm/piece"
	"github.com/capelin-io/capelin/swarm/wire"
)

// slow reports whether the peer of c is slower than most.
func (p *Peer) slow(c *conn) bool { return c.pipe.slow(p.down.took) }

// load estimates how many blocks wait at the peer of c.
func (p *Peer) load(c *conn) float64 { return c.pipe.load(p.now, p.down.blockRate()) }

// owe counts a block of n bytes that c now owes us; settle, k that it does not any more.
func (p *Peer) owe(c *conn, n int) {
	if c.pipe.outstanding == 0 {
		p.asks(c)
	}
	c.pipe.owe(p.now)
	p.down.owe(n, p.now)
}

func (p *Peer) settle(c *conn, k int) {
	c.pipe.settle(k)
	p.down.settle(k, p.now)
}

// measure notes how long a piece has taken.
func (p *Peer) measure(a *attempt) {
	if a.began == never {
		return
	}
	took, q := p.now-a.began, &a.l.c.pipe
	p.down.measured(took, q.rtt)
	q.measured(took)
}

// checkStall takes its requests from a peer that has been silent too long.
func (p *Peer) checkStall(c *conn) {
	switch {
	case c.pipe.hopeless(c.keep.silence(p.now)):
		p.close(c, wire.CodeTimeout, "silent for too long")
		return
	case !c.pipe.overdue(p.now, p.down.stallLimit(&p.cfg)):
		return
	}
	id := piece.ID{}
	for _, l := range c.swarms.links {
		if l.blob == nil {
			continue
		}
		if l.any > 0 || slices.ContainsFunc(c.pipe.attempts, func(a *attempt) bool { return a.l == l }) {
			id = l.id
			p.abortAll(l)
		}
	}
	c.pipe.stalled(p.now)
	p.act(ActReport{Report{Kind: ReportStalled, Node: c.node.name, ID: id}})
	p.arm(&p.pumpAt, p.now)
}
