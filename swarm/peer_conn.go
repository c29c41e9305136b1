package swarm

import (
	"slices"
	"time"

	"github.com/capelin-io/capelin/swarm/wire"
)

const maxRequests = 256 // requests of a peer that wait here

// Delays between peers.
const (
	dialBackoff  = 500 * time.Millisecond
	maxBackoff   = 30 * time.Second
	surplusAfter = 2 * time.Second // a refused peer is dialed again then
	answerWithin = 5 * time.Second // a peer that does not open a swarm by then does not have it
	tenure       = 8 * time.Second // a useful connection is not displaced before
	evictEvery   = time.Second
)

// conn is a connection.
type conn struct {
	far  bool // it is in another zone
	pipe pipe

	id      ConnID
	node    *node
	hello   wire.Hello
	inbound bool
	since   time.Duration
	closed  bool // ActClose was returned; nothing more is sent or heard

	silent    bool // it has failed as a source: nothing comes of what is asked for
	listening bool // ActListen is under way

	code wire.Code

	swarms swarms

	keep keepalive
	gave time.Duration // when the peer last gave us a block that we asked for, of any blob; 0: never
	idle time.Duration // since when nobody wants anything here; never if somebody does

	out  outbox
	sums sumsAllowance // for what is sent of ours
}

// conn returns the connection of that number, or nil.
func (p *Peer) conn(id ConnID) *conn {
	if k := slices.Index(p.ids, id); k >= 0 {
		return p.list[k]
	}
	return nil
}

func (p *Peer) tell(c *conn, m wire.Message) {
	if c.closed {
		return
	}
	c.keep.spoke = p.now
	p.act(ActSend{c.id, m})
}

// close ends a connection. Its state is taken down at once: what it owed us
// is asked elsewhere without waiting for EvDisconnected.
func (p *Peer) close(c *conn, code wire.Code, text string) {
	if c.closed {
		return
	}
	p.act(ActClose{c.id, code, text})
	c.code = code
	p.drop(c)
}

// drop takes a connection's state down.
func (p *Peer) drop(c *conn) {
	c.closed = true
	for len(c.swarms.links) > 0 {
		p.unlink(c.swarms.links[len(c.swarms.links)-1])
	}
	p.up.drop(&c.out, p.now)
	if k := slices.Index(p.ids, c.id); k >= 0 {
		p.list, p.ids = slices.Delete(p.list, k, k+1), slices.Delete(p.ids, k, k+1)
	}
	if c.node.conn == c {
		c.node.conn = nil
		p.backoff(c)
	}
	p.forget(c.node)
	p.doubtful = true
	p.arm(&p.pumpAt, p.now)
	p.send()
}

func (p *Peer) onConnected(ev EvConnected) {
	if p.conn(ev.Conn) != nil {
		return
	}
	n := p.node(ev.Peer.Node)
	c := &conn{
		id: ev.Conn, node: n, hello: ev.Peer, inbound: ev.Inbound, since: p.now,
		pipe: newPipe(min(ev.RTT, maxRTT)), swarms: newSwarms(), sums: sumsAllowance{sumsBurst, p.now},
		keep: keepalive{heard: p.now, spoke: p.now}, idle: p.now,
	}
	p.reached(n)
	if n.dialing && !ev.Inbound {
		n.dialing = false
		p.dialed--
	}
	n.role, n.zone = ev.Peer.Role, ev.Peer.Zone
	c.far = p.far(n)
	n.moves(ev.Peer.Addr, nil)
	refuse := func(code wire.Code, text string) {
		c.closed = true
		p.act(ActClose{c.id, code, text})
		p.forget(n)
	}
	switch {
	case n.name == p.cfg.Node:
		n.retry = never
		refuse(wire.CodeDuplicate, "connected to itself")
		return
	case n.banned > p.now:
		refuse(wire.CodeConvicted, "cut off")
		return
	}
	if old := n.conn; old != nil {
		// The connection that the smaller name dialed stays; of two dialed by the
		// same side, the newer: its dialer knows that the older is dead.
		dialer := func(c *conn) string {
			if c.inbound {
				return n.name
			}
			return p.cfg.Node
		}
		if dialer(old) < dialer(c) {
			refuse(wire.CodeDuplicate, "already connected")
			return
		}
		n.conn = nil
		p.close(old, wire.CodeDuplicate, "connected anew")
	} else if !p.room(c.far, 0) {
		if v := p.surplus(c); v != nil {
			p.close(v, wire.CodeSurplus, "displaced by a newcomer")
		} else {
			refuse(wire.CodeSurplus, "enough connections")
			return
		}
	}
	n = p.node(ev.Peer.Node) // closing the old connection may have dropped it
	n.role, n.zone, n.conn, c.node = ev.Peer.Role, ev.Peer.Zone, c, n
	n.moves(ev.Peer.Addr, nil)
	p.list, p.ids = append(p.list, c), append(p.ids, c.id)
	for _, b := range p.order {
		if b.downloading() && b.known.has(n.name) {
			p.link(c, b.id)
			p.open(c, b)
		}
	}
	p.arm(&p.chores, p.now+choreEvery)
}

// surplus returns a connection that may be displaced by newcomer c, or nil:
// first one over which nobody wants anything, then an old one, at random, but
// not many in a row.
func (p *Peer) surplus(c *conn) *conn {
	var best *conn
	seen := 0
	if o := p.idlest(c.far); o != nil {
		return o
	}
	if p.now < p.evict || !c.inbound {
		return nil
	}
	for _, o := range p.list {
		if o.far != c.far || p.now-o.since < tenure || o.pipe.outstanding > 0 && p.cfg.Role != wire.RoleOrigin {
			continue
		}
		if seen++; p.rng.IntN(seen) == 0 {
			best = o
		}
	}
	if best != nil {
		p.evict = p.now + evictEvery
	}
	return best
}

func (p *Peer) onDisconnected(id ConnID) {
	if c := p.conn(id); c != nil {
		p.drop(c)
	}
}

// tendConn looks after one connection, every choreEvery.
func (p *Peer) tendConn(c *conn) {
	p.checkStall(c)
	if c.closed {
		return
	}
	switch c.keep.verdict(p.now) {
	case aliveDead:
		p.close(c, wire.CodeTimeout, "nothing heard for too long")
		return
	case alivePing:
		p.tell(c, &wire.Ping{})
	}
	wanted := false
	for _, l := range c.swarms.links {
		if l.blob != nil && l.opened && l.open && (l.blob.downloading() || l.want && !l.complete) {
			wanted = true
			break
		}
		if l.blob != nil && l.blob.downloading() && l.opened && !l.open && p.now-l.since < answerWithin {
			wanted = true
			break
		}
	}
	switch {
	case wanted:
		c.idle = never
	case c.idle == never:
		c.idle = p.now
	case p.now-c.idle > p.cfg.IdleAfter:
		p.close(c, wire.CodeIdle, "nothing shared any more")
	}
}
