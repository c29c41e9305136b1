package swarm

import (
	"fmt"
	"strings"
	"time"

	"github.com/capelin-io/capelin/swarm/wire"
)

// This file is which sources have failed, and which downloads have none left.

// Unreachable returns the nodes that have failed as sources, ordered by name.
func (p *Peer) Unreachable() []Unreachable {
	all := p.failures.all()
	out := make([]Unreachable, len(all))
	for i, f := range all {
		out[i] = Unreachable{
			Node: f.node, Addr: strings.Join(append([]string{f.addr}, f.others...), ", "), Reason: f.reason, Err: f.err, Fails: f.fails,
			Since: p.epoch.Add(f.since), Next: p.epoch.Add(f.next),
		}
	}
	return out
}

// failed notes that a node has failed as a source.
func (p *Peer) failed(n *node, why Reason, err error) *failure {
	f, warn := p.failures.add(n.name, n.addr, n.others, why, err, p.now, p.jitter)
	n.retry = f.next
	at := strings.Join(append([]string{n.addr}, n.others...), ", ")
	r := Report{Kind: ReportUnreachable, Node: n.name, Reason: why, Repeated: !warn,
		Err: fmt.Errorf("cannot reach %s at %s: %w", n.name, at, err)}
	if why == ReasonSilent {
		r.Err = fmt.Errorf("%s at %s brings nothing: %w", n.name, at, err)
	}
	p.act(ActReport{r})
	p.doubtful = true
	return f
}

// reached notes that a node has connected with us, or we with it. That proves nothing of one
// from which nothing came while it was connected.
func (p *Peer) reached(n *node) {
	if f := p.failures.of(n.name); f != nil && (f.reason != ReasonSilent || f.mute) {
		p.failures.clear(n.name)
		p.doubtful = true
	}
}

// answers notes that the peer of c has brought something, or said that it will.
func (p *Peer) answers(c *conn) {
	if c.silent {
		c.pipe.snubbed = 0 // it need not be left alone any longer
		p.arm(&p.pumpAt, p.now)
	}
	if p.failures.clear(c.node.name) || c.silent {
		c.silent, p.doubtful = false, true
	}
}

// heardOf notes that a message came from the peer of c: of one that was mute that is enough.
func (p *Peer) heardOf(c *conn) {
	if f := p.failures.of(c.node.name); c.silent && (f == nil || f.mute) {
		p.answers(c)
	}
}

// asks notes that the peer of c is asked for something, and begins to owe us that. One that
// brought nothing before is given another chance when its time has come.
func (p *Peer) asks(c *conn) {
	if c.silent {
		f := p.failures.of(c.node.name)
		if f != nil && f.next > p.now {
			return
		}
		c.silent = false
		p.tries(c.node)
	}
	p.arm(&p.judgeAt, p.now+sourceWithin)
}

// tries notes that a node that may have failed before is tried again.
func (p *Peer) tries(n *node) {
	until := p.now + sourceWithin
	if f := p.failures.of(n.name); f != nil {
		f.tried = p.now
		until = f.hope()
		p.doubtful = true // there is hope again, and when that ends it is said again
	}
	p.arm(&p.judgeAt, until)
}

// judge finds out which sources have had their time, and when to look again.
func (p *Peer) judge() {
	p.judgeAt = never
	p.doubtful = true
	for _, b := range p.order {
		if !b.downloading() {
			continue
		}
		for _, k := range b.known.list {
			n := k.node
			switch due := n.dialed + sourceWithin; {
			case !n.dialing || n.overdue:
			case due > p.now:
				p.arm(&p.judgeAt, due)
			default: // it may still come
				n.overdue = true
				p.failed(n, ReasonTimeout, errNoAnswer)
			}
		}
	}
	for _, c := range p.list {
		p.judgeConn(c)
	}
}

// judgeConn finds out whether the peer of c brings nothing of what it was asked for.
func (p *Peer) judgeConn(c *conn) {
	since, _ := p.owes(c)
	if c.silent || c.listening || since == never {
		return
	}
	if due := max(since, c.keep.heard) + p.down.quietLimit(&p.cfg); due > p.now {
		p.arm(&p.judgeAt, due)
		return
	}
	c.listening = true // a part of a long message is something, and we do not see it
	p.act(ActListen{c.id})
}

func (p *Peer) onHeard(ev EvHeard) {
	c := p.conn(ev.Conn)
	if c == nil || c.closed || !c.listening {
		return
	}
	c.listening = false
	c.keep.heard = max(c.keep.heard, p.now-ev.Ago)
	since, mute := p.owes(c)
	if since == never {
		return
	}
	if due := max(since, c.keep.heard) + p.down.quietLimit(&p.cfg); due > p.now {
		p.arm(&p.judgeAt, due)
		return
	}
	c.silent = true
	f := p.failed(c.node, ReasonSilent, errSilent)
	f.mute = mute
	c.pipe.snub(f.next)
	for _, l := range c.swarms.links {
		if l.blob != nil {
			p.askAllSums(l.blob)
		}
	}
}

// owes returns since when the peer of c owes us an answer, or never; mute says that it is
// none but to our Open of what it should have.
func (p *Peer) owes(c *conn) (since time.Duration, mute bool) {
	since = never
	if c.pipe.outstanding > 0 {
		since = c.pipe.owed
	}
	opening := never
	for _, l := range c.swarms.links {
		b := l.blob
		switch {
		case b == nil || !l.opened || !b.downloading():
		case l.open && l.sums.pending(p.now):
			since = min(since, l.sums.at)
		case !l.open && b.known.isSource(c.node.name):
			opening = min(opening, l.since)
		}
	}
	if since == never {
		return opening, opening != never
	}
	return min(since, opening), false
}

// weigh tells the driver when the last source of a download has failed, and whether what it
// has brought is in doubt.
func (p *Peer) weigh(b *blob) {
	if doubt := b.doubtful(); doubt != b.doubt {
		b.doubt = doubt
		p.act(ActDoubt{b.id, doubt})
	}
	dead, _ := p.deadEnd(b)
	if dead && !b.deadEnd {
		p.act(ActNoSource{b.id})
	}
	b.deadEnd = dead
}

// deadEnd reports whether b can have nothing more of anybody, since those who could deliver
// it have failed; their names are in lost, of at most maxLost.
func (p *Peer) deadEnd(b *blob) (dead bool, lost []string) {
	if !b.downloading() {
		return false, nil
	}
	for _, l := range b.links {
		if l.open && !p.hopeless(l.c.node) && (l.complete || l.source || l.useful > 0) {
			return false, nil
		}
	}
	for _, k := range b.known.list {
		if !k.source() {
			continue
		}
		if p.mayDeliver(b, k) {
			return false, nil
		}
		if len(lost) < maxLost {
			lost = append(lost, k.node.name)
		}
	}
	return len(lost) > 0, lost
}

// hopeless reports whether n has failed and is not being tried again.
func (p *Peer) hopeless(n *node) bool {
	if f := p.failures.of(n.name); f != nil {
		return f.hope() <= p.now
	}
	return n.conn != nil && n.conn.silent
}

// maxLost bounds the names of sources that have failed a blob.
const maxLost = 32

// mayDeliver reports whether k, a source, is connected and takes part, or may yet.
func (p *Peer) mayDeliver(b *blob, k *knownPeer) bool {
	n := k.node
	if n.banned > p.now || n.name == p.cfg.Node {
		return false
	}
	hope := func(until time.Duration) bool {
		if until <= p.now {
			return false
		}
		p.arm(&p.judgeAt, until)
		return true
	}
	f := p.failures.of(n.name)
	switch {
	case f != nil:
		return hope(f.hope())
	case n.conn != nil && n.conn.silent:
		return false
	case n.conn != nil:
		l := n.conn.swarms.byID[b.id]
		switch {
		case l == nil:
			return false
		case l.open:
			return l.complete || l.source || l.want || l.useful > 0 || b.flight.active > 0 || len(b.flight.storing) > 0
		}
		return hope(max(l.since, n.conn.since) + sourceWithin)
	case n.addr == "":
		return false
	case n.dialing || n.retry > p.now: // judge looks after the first; the second is there, and full
		return true
	}
	return hope(b.named + 2*sourceWithin) // its turn comes, unless there are too many before it
}

// source reports whether k should be able to deliver the whole blob.
func (k *knownPeer) source() bool {
	return k.info.Complete || k.info.Source || k.info.Role == wire.RoleOrigin
}
