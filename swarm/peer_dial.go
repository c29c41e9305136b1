package swarm

import (
	"slices"
	"time"

	"github.com/capelin-io/capelin/swarm/wire"
)

// node is what we know of another node, connected or not.
type node struct {
	name, addr, zone string
	others           []string // other addresses than addr
	role             wire.Role
	conn             *conn
	dialing          bool
	dialed           time.Duration // dialing: since when
	overdue          bool          // dialing: for too long
	fails            int
	retry            time.Duration // not dialed before
	banned           time.Duration // cut off until then
	refs             int           // blobs that know it
	doubt            int           // pieces that it sent wrong and nobody has sent right
}

// backoff counts a failure, and returns after how long to dial again: base, doubled with
// each failure so many times at most.
func (n *node) backoff(base time.Duration, doublings int) time.Duration {
	n.fails++
	return min(base<<min(n.fails-1, doublings), maxBackoff)
}

func (p *Peer) node(name string) *node {
	n := p.nodes[name]
	if n == nil {
		n = &node{name: name}
		if f := p.failures.of(name); f != nil {
			n.addr, n.others, n.retry = f.addr, f.others, f.next
		}
		p.nodes[name] = n
	}
	return n
}

// forget drops a node that nothing refers to.
func (p *Peer) forget(n *node) {
	if n.refs == 0 && n.conn == nil && !n.dialing && n.banned <= p.now && n.doubt == 0 && p.nodes[n.name] == n {
		delete(p.nodes, n.name)
	}
}

// moves notes where a node is reached, and reports whether there is a way that was not known.
// Two trackers may know different ones: the former come last.
func (n *node) moves(addr string, others []string) bool {
	if addr == "" {
		return false
	}
	known := append([]string{n.addr}, n.others...)
	told := append([]string{addr}, others...)
	is := func(s string) bool { return slices.Contains(known, s) }
	if !slices.ContainsFunc(told, func(s string) bool { return !is(s) }) {
		return false
	}
	for _, s := range known {
		if s != "" && !slices.Contains(told, s) {
			told = append(told, s)
		}
	}
	n.addr, n.others = told[0], told[1:min(len(told), maxWays)]
	return true
}

// backoff decides when a node whose connection ended may be dialed again.
func (p *Peer) backoff(c *conn) {
	n := c.node
	switch c.code {
	case wire.CodeSurplus:
		n.retry = p.now + p.jitter(n.backoff(surplusAfter, 3))
	case wire.CodeIdle, wire.CodeDuplicate: // there is another connection, or another machine has our name
		n.retry = p.now + p.jitter(dialBackoff)
	default:
		if p.now-c.since > tenure {
			n.fails = 0
		}
		n.retry = p.now + p.jitter(n.backoff(dialBackoff, 8))
	}
	p.arm(&p.chores, p.now)
}

func (p *Peer) onDialFailed(ev EvDialFailed) {
	n := p.nodes[ev.Node]
	if n == nil || !n.dialing {
		return
	}
	n.dialing = false
	p.dialed--
	if ev.Reason == "" {
		ev.Reason, ev.Err = ReasonOther, errNoAnswer
	}
	p.failed(n, ev.Reason, ev.Err)
	p.forget(n)
	p.arm(&p.chores, p.now+choreEvery)
}

// dial connects downloads with peers of their swarms, as far as they have too
// few.
func (p *Peer) dial() {
	for _, b := range p.order {
		if b.downloading() {
			p.dialFor(b)
		}
	}
}

func (p *Peer) dialFor(b *blob) {
	fed := false
	for _, l := range b.links {
		fed = fed || (!l.c.far || !b.share.none()) && b.useful(l)
	}
	starving := b.arrivals.starving(p.now, b.flight.blocks == 0)
	near := p.dialZone(b, false, p.cfg.DialConns, !fed || starving, starving)
	if !b.share.none() {
		// Whoever brings pieces into its zone has half as many connections to others
		// beside those inside it; or all, as far as there is nobody inside.
		goal := max(p.cfg.DialConns-near, (p.cfg.DialConns+1)/2)
		p.dialZone(b, true, goal, !fed || starving, starving)
	}
}

// dialZone connects b with peers of its own zone, or with those of others (far),
// until it has goal such connections, or one more than there are (further). It
// returns how many there are.
func (p *Peer) dialZone(b *blob, far bool, goal int, further, starving bool) int {
	linked, dialing := 0, 0
	for _, l := range b.links {
		if l.c.far == far && (l.open || p.now-l.since <= answerWithin/2) { // else it may come to take part, but does not now
			linked++
		}
	}
	for _, k := range b.known.list {
		if k.node.dialing && p.far(k.node) == far {
			dialing++
		}
	}
	if starving && dialing == 0 && !p.room(far, p.dialed) {
		if v := p.useless(b, far); v != nil {
			p.close(v, wire.CodeSurplus, "nothing to get")
		}
	}
	if further && p.room(far, p.dialed) && linked+dialing >= goal && dialing == 0 {
		goal = linked + 1 // starving: look further, one at a time
	}
	for n := linked + dialing; n < goal && p.dialed < 2*p.cfg.DialConns; n++ {
		if !p.room(far, p.dialed) {
			v := p.idlest(far)
			if v == nil {
				break
			}
			p.close(v, wire.CodeSurplus, "room for a download")
		}
		k := p.candidate(b, far)
		if k == nil {
			break
		}
		k.node.dialing, k.node.dialed, k.node.overdue = true, p.now, false
		p.dialed++
		p.tries(k.node)
		p.act(ActDial{k.node.name, k.node.addr, k.node.others})
	}
	return linked + dialing
}

// room reports whether there may be another connection, in our zone or to another,
// beside so many more.
func (p *Peer) room(far bool, more int) bool {
	n := more
	for _, c := range p.list {
		if c.far == far {
			n++
		}
	}
	if far {
		return n < (p.cfg.MaxConns+1)/2
	}
	return n < p.cfg.MaxConns
}

// idlest returns a connection over which nobody wants anything.
func (p *Peer) idlest(far bool) *conn {
	for _, o := range p.list {
		if o.far == far && o.idle != never && p.now-o.idle > time.Second {
			return o
		}
	}
	return nil
}

// useless returns a connection that gives nothing for b and takes nothing.
func (p *Peer) useless(b *blob, far bool) *conn {
	for _, o := range p.list {
		l := o.swarms.byID[b.id]
		if o.far == far && (l == nil || !l.complete && l.useful == 0) && o.out.requests == 0 && o.out.inDriver == 0 && o.pipe.outstanding == 0 {
			return o
		}
	}
	return nil
}

// candidate picks a peer to dial for b, in our zone or in another, at random:
// origins and sources first.
func (p *Peer) candidate(b *blob, far bool) *knownPeer {
	var best *knownPeer
	rank, seen := -1, 0
	for _, k := range b.known.list {
		n := k.node
		if n.conn != nil || n.dialing || n.addr == "" || n.name == p.cfg.Node || n.retry > p.now || n.banned > p.now || p.far(n) != far {
			continue
		}
		r := 1
		if k.info.Source || n.role == wire.RoleOrigin {
			r = 2
		}
		switch {
		case r > rank:
			best, rank, seen = k, r, 1
		case r == rank:
			if seen++; p.rng.IntN(seen) == 0 {
				best = k
			}
		}
	}
	return best
}
