package swarm

import (
	"slices"
	"time"

	"github.com/capelin-io/capelin/swarm/piece"
	"github.com/capelin-io/capelin/swarm/wire"
)

// slowFactor: a peer whose pieces take so many times as long as those of all is
// slow. It gets one request at a time, which takes no place in the window: a few
// slow neighbours would fill that, and leave the others idle.
const slowFactor = 2

func (p *Peer) slow(c *conn) bool { return c.took > slowFactor*p.down.took }

// time notes how long a piece has taken.
func (p *Peer) time(a *attempt) {
	if a.began == never {
		return
	}
	d, c := p.now-a.began, a.l.c
	p.down.rtt += (c.rtt - p.down.rtt) / 8
	if c.took == 0 {
		c.took = d
	}
	c.took += (d - c.took) / 2
	switch t := &p.down.took; {
	case *t == 0:
		*t = d
	case d > *t: // towards the median: a few slow ones do not count by how slow they are
		*t += *t/16 + 1
	default:
		*t -= *t / 16
	}
}

// load estimates how many blocks wait at the peer of c.
func (p *Peer) load(c *conn) float64 {
	q := float64(c.queue)
	if q > 0 {
		r := max(p.down.meter.rate, 1<<20)
		q = max(0, q-(p.now-c.queueAt).Seconds()*r/piece.MaxBlock)
	}
	return q + float64(c.outstanding)
}

// alive notes that the peer of c has answered something.
func (p *Peer) alive(c *conn) {
	c.owed, c.stalls, c.snubbed = p.now, 0, 0
}

// depth adapts how many blocks may be outstanding on c to what its peer says:
// more when our requests leave its uplink without work, fewer while others wait
// there.
func (p *Peer) depth(c *conn, queue int) {
	others := max(0, queue-c.outstanding)
	switch {
	case queue == 0:
		c.depth = min(c.depth+max(1, c.depth/4), maxDepth)
	case others > 0 && c.depth > minDepth:
		c.depth--
	}
	c.queue, c.queueAt = others, p.now
}

// checkStall takes its requests from a peer that has been silent too long.
func (p *Peer) checkStall(c *conn) {
	if c.outstanding == 0 {
		if c.stalls > 0 && c.keep.silence(p.now) > giveUpAfter {
			p.close(c, wire.CodeTimeout, "silent for too long")
		}
		return
	}
	limit := p.cfg.StallAfter << p.patience
	if r := p.down.meter.rate; r > 0 {
		// All that is under way may share one slow link.
		limit = max(limit, time.Duration(min(2*float64(p.down.inflight*piece.MaxBlock)/r, 10)*1e9))
	}
	limit = min(limit<<min(c.stalls, 3), max(limit, giveUpAfter))
	if p.now-c.owed < limit {
		return
	}
	id := piece.ID{}
	for _, l := range c.links {
		if l.blob == nil {
			continue
		}
		if l.any > 0 || slices.ContainsFunc(c.attempts, func(a *attempt) bool { return a.l == l }) {
			id = l.id
			p.abortAll(l)
		}
	}
	c.stalls++
	c.depth = 1
	c.snubbed = p.now + snubFor
	p.act(ActReport{Report{Kind: ReportStalled, Node: c.node.name, ID: id}})
	p.arm(&p.pumpAt, p.now)
}
