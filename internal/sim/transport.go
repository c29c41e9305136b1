package sim

import (
	"time"

	"github.com/capelin-io/capelin/swarm"
	"github.com/capelin-io/capelin/swarm/piece"
	"github.com/capelin-io/capelin/swarm/wire"
)

type txBlock struct {
	c     *conn
	m     *wire.Block
	after []wire.Message
}

// conn is a connection; side 0 dialed it.
type conn struct {
	id     swarm.ConnID
	live   [2]bool // the side has it
	ends   [2]*host
	last   [2]int64 // when the last message of the side arrives
	queued [2]int   // its blocks in the uplink's queue
	dead   bool
}

// The shared bytes. The first byte of a block's data says what it is.
var bytesOf = [...][]byte{make([]byte, piece.MaxBlock), marked(1), marked(2)}

func marked(b byte) []byte {
	p := make([]byte, piece.MaxBlock)
	p[0] = b
	return p
}

func (h *host) data(n int) []byte {
	h.lied++
	if h.Lie&LieAll != 0 || h.Lie&LieBytes != 0 && h.lied%3 == 0 {
		return bytesOf[1+h.index%2][:n:n]
	}
	return bytesOf[0][:n:n]
}

// lie changes a message that a liar sends.
func (h *host) lie(m wire.Message) wire.Message {
	if h.Lie == 0 {
		return m
	}
	switch m := m.(type) {
	case *wire.Sums:
		if h.Lie&LieSums != 0 && len(m.States) > 0 {
			wrong := *m
			for _, b := range h.r.blobs {
				if b.sums.MaxLen() >= int(m.From)+len(m.States)/32 && string(b.sums.Range(int(m.From), len(m.States)/32)) == string(m.States) {
					wrong.States = b.wrong[int(m.From)*32:][:len(m.States)]
				}
			}
			wrong.Proven = true
			return &wrong
		}
	case *wire.Open:
		wrong := *m
		if h.Lie&LieHaves != 0 {
			wrong.Complete, wrong.Bits = true, nil
		}
		if h.Lie&LieSizes != 0 {
			wrong.ID.Size++
		}
		return &wrong
	}
	return m
}

// send delivers a small message after what was sent before it.
func (h *host) send(c *conn, m wire.Message) {
	if c.dead {
		return
	}
	h.small += h.r.cfg.MessageBytes
	s := c.side(h)
	if c.queued[s] > 0 {
		for k := len(h.queue) - 1; k >= 0; k-- {
			if h.queue[k].c == c {
				h.queue[k].after = append(h.queue[k].after, m)
				return
			}
		}
	}
	h.deliver(c, s, h.r.now+h.r.latency(c.ends[0], c.ends[1]), m)
}

func (h *host) deliver(c *conn, s int, at int64, m wire.Message) {
	at = max(at, c.last[s])
	c.last[s] = at
	h.r.queue.push(event{at: at, kind: kEvent, h: c.ends[1-s], conn: c, ev: swarm.EvMessage{Conn: c.id, Message: m}})
}

// transmit begins to send the next block.
func (h *host) transmit() {
	r := h.r
	for !h.busy && len(h.queue) > 0 {
		t := h.queue[0]
		h.queue = h.queue[1:]
		c := t.c
		s := c.side(h)
		c.queued[s]--
		if c.dead {
			continue
		}
		n := len(t.m.Data)
		to := c.ends[1-s]
		up := float64(n+h.small) / h.Up
		h.small = 0
		free := r.now + int64(up*1e9)
		sent := free // when the last byte has left the zone, or the host
		if h.zone != to.zone && r.cfg.ZoneRate > 0 {
			d := int64(float64(n) / r.cfg.ZoneRate * 1e9)
			h.zone.outFree = max(h.zone.outFree, r.now) + d
			to.zone.inFree = max(to.zone.inFree, r.now) + d
			sent = max(sent, h.zone.outFree, to.zone.inFree)
		}
		begin := max(sent-(free-r.now)+r.latency(h, to), to.downFree)
		end := max(sent+r.latency(h, to), begin+int64(float64(n)/to.Down*1e9))
		to.downFree = end
		h.busy = true
		h.res.Up += int64(n)
		to.res.Down += int64(n)
		if h.zone != to.zone {
			to.zone.in += int64(n)
		}
		if sent == free {
			r.queue.push(event{at: free, kind: kFree, h: h, conn: c, n: int32(n)})
		} else {
			r.queue.push(event{at: free, kind: kFree, h: h})
			r.queue.push(event{at: sent, kind: kSent, h: h, conn: c, n: int32(n)})
		}
		h.deliver(c, s, end, t.m)
		for _, m := range t.after {
			h.deliver(c, s, end, m)
		}
	}
}

func (h *host) dial(a swarm.ActDial) {
	r := h.r
	h.res.Dials++
	to := r.byName[a.Node]
	if to == nil {
		h.later(r.cfg.Latency, swarm.EvDialFailed{Node: a.Node, Addr: a.Addr})
		return
	}
	lat := r.latency(h, to)
	r.control(r.now+2*lat, func() {
		if !h.up {
			return
		}
		if !to.up || to.frozen {
			d := time.Duration(lat)
			if to.frozen {
				d = 5 * time.Second
			}
			h.later(d, swarm.EvDialFailed{Node: a.Node, Addr: a.Addr})
			return
		}
		c := &conn{id: swarm.ConnID(len(r.conns) + 1), ends: [2]*host{h, to}, live: [2]bool{true, true}}
		r.conns = append(r.conns, c)
		h.conns, to.conns = append(h.conns, c), append(to.conns, c)
		c.last[1] = r.now + lat // the acceptor's Hello comes first
		r.queue.push(event{at: r.now, kind: kEvent, h: to, conn: c,
			ev: swarm.EvConnected{Conn: c.id, Peer: h.hello(), Inbound: true, RTT: time.Duration(2 * lat)}})
		r.queue.push(event{at: r.now + lat, kind: kEvent, h: h, conn: c,
			ev: swarm.EvConnected{Conn: c.id, Peer: to.hello(), RTT: time.Duration(2 * lat)}})
	})
}

// hangUp tells the other side that a connection has ended.
func (h *host) hangUp(c *conn) {
	s := c.side(h)
	at := max(c.last[s], h.r.now+h.r.latency(c.ends[0], c.ends[1]))
	to := c.ends[1-s]
	h.r.control(at, func() { c.dead = true })
	h.r.queue.push(event{at: at, kind: kEvent, h: to, conn: c, ev: swarm.EvDisconnected{Conn: c.id}})
}
