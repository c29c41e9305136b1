package swarm

import (
	"fmt"
	"slices"
)

// check verifies what must hold of a Peer between events: every counter is the
// sum of its parts.
func (p *Peer) check() error {
	var outstanding, active, inflight, attempts, inDriver, requests, uploads int
	var memory, left int64
	var strange int64
	for _, c := range p.list {
		weight := int64(0)
		for _, l := range c.swarms.links {
			if l.open && l.blob == nil {
				weight += strangeLink
				if l.have != nil {
					weight += int64(l.have.Len()+7) / 8
				}
			}
		}
		if strange += weight; weight != c.swarms.weight {
			return fmt.Errorf("connection %d weighs %d, not %d", c.id, weight, c.swarms.weight)
		}
		if p.conn(c.id) != c || c.closed || c.node.conn != c || p.nodes[c.node.name] != c.node {
			return fmt.Errorf("connection %d is not where it belongs", c.id)
		}
		open, part, reqs := 0, 0, 0
		for _, a := range c.pipe.attempts {
			open += a.open
			if a.next < a.size && !a.busy {
				part++
			}
			if a.l.c != c || a.l.blob != a.b || a.b.flight.attempts == nil || a.b.flight.attempts[a.i].from(a.l) != a {
				return fmt.Errorf("an attempt at piece %d is not its blob's", a.i)
			}
			if a.b.have.Has(a.i) || a.b.flight.storing[a.i] != nil || a.b.pick.has(a.i) {
				return fmt.Errorf("piece %d is under way and had, being stored or wanted", a.i)
			}
		}
		for _, a := range c.pipe.attempts {
			if !a.slow {
				attempts++
			}
		}
		anys := 0
		for _, l := range c.swarms.links {
			if c.swarms.byID[l.id] != l || l.open && c.swarms.remote[l.remote] != l {
				return fmt.Errorf("a link is lost")
			}
			anys += l.any
			for _, u := range l.uploads {
				reqs += len(u.queue)
				left += int64(max(0, u.size-u.sent))
			}
			uploads += len(l.uploads)
			if l.blob == nil && (l.any > 0 || len(l.uploads) > 0 || l.slot >= 0) {
				return fmt.Errorf("a link without a blob is at work")
			}
			if b := l.blob; b != nil && l.slot >= 0 {
				if near := b.seats.near>>l.slot&1 != 0; near == l.c.far {
					return fmt.Errorf("slot %d is near: %v, its peer is far: %v", l.slot, near, l.c.far)
				}
				if b.seats.at[l.slot] != l {
					return fmt.Errorf("slot %d is another's", l.slot)
				}
				n := 0
				for _, i := range b.pick.order {
					if b.pick.at[i].mask&(1<<l.slot) != 0 {
						n++
					}
				}
				if !l.complete && n != l.useful {
					return fmt.Errorf("%d useful pieces counted, there are %d", l.useful, n)
				}
			}
		}
		active += anys
		if open+anys != c.pipe.outstanding || part != c.pipe.part || reqs != c.out.requests || len(c.out.sending) != c.out.inDriver {
			return fmt.Errorf("connection %d: outstanding %d+%d=%d, part %d=%d, requests %d=%d, driver %d=%d",
				c.id, open, anys, c.pipe.outstanding, part, c.pipe.part, reqs, c.out.requests, len(c.out.sending), c.out.inDriver)
		}
		if len(c.swarms.remote) > maxForeign || c.out.requests > maxRequests {
			return fmt.Errorf("connection %d is beyond its bounds", c.id)
		}
		outstanding += c.pipe.outstanding
		inDriver += c.out.inDriver
		requests += c.out.requests
	}
	if strange != p.strange || strange > p.cfg.Strange {
		return fmt.Errorf("what is strange weighs %d, not %d", strange, p.strange)
	}
	active += attempts
	if len(p.list) != len(p.ids) || len(p.list) > p.cfg.MaxConns+(p.cfg.MaxConns+1)/2 {
		return fmt.Errorf("%d connections of %d", len(p.list), p.cfg.MaxConns)
	}
	for _, b := range p.blobs {
		inflight += b.flight.blocks
		counted := 0
		for _, l := range b.links {
			if l.blob != b || l.c.swarms.byID[b.id] != l {
				return fmt.Errorf("a link is not its blob's")
			}
			counted += l.any
			for _, a := range l.c.pipe.attempts {
				if a.b == b {
					counted++
				}
			}
		}
		if anys := b.countAnys(); anys != b.flight.anys {
			return fmt.Errorf("%d AnyPiece requests counted, there are %d", b.flight.anys, anys)
		}
		if counted != b.flight.active {
			return fmt.Errorf("%d attempts counted, there are %d", b.flight.active, counted)
		}
		memory += int64(counted) * b.id.Length()
		for i := range b.flight.storing {
			memory += int64(b.id.PieceSize(i))
		}
		if b.pick != nil {
			if len(p.order) == 0 || !slices.Contains(p.order, b) {
				return fmt.Errorf("a wanted blob is not in order")
			}
			for i := range b.n {
				if b.fetchable(i) != b.pick.has(i) {
					return fmt.Errorf("piece %d: wanted %v, should be %v", i, b.pick.has(i), b.fetchable(i))
				}
			}
			if err := b.pick.check(); err != nil {
				return err
			}
		}
	}
	switch {
	case outstanding != p.down.inflight || inflight != p.down.inflight:
		return fmt.Errorf("in flight %d, by connections %d, by blobs %d", p.down.inflight, outstanding, inflight)
	case active != p.down.active:
		return fmt.Errorf("active %d, should be %d", p.down.active, active)
	case memory != p.down.memory:
		return fmt.Errorf("memory %d, should be %d", p.down.memory, memory)
	case inDriver != p.up.active || requests != p.up.pending || uploads != len(p.up.uploads) || left != p.up.left:
		return fmt.Errorf("uplink: driver %d=%d, pending %d=%d, uploads %d=%d, left %d=%d",
			inDriver, p.up.active, requests, p.up.pending, uploads, len(p.up.uploads), left, p.up.left)
	}
	return nil
}

func (b *blob) countAnys() (n int) {
	for _, l := range b.links {
		n += l.any
	}
	return n
}

func (k *picker) check() error {
	for i, h := range k.at {
		at := h.pos
		if at >= 0 && (int(at) >= len(k.order) || k.order[at] != int32(i)) {
			return fmt.Errorf("picker: piece %d is not at %d", i, at)
		}
	}
	if k.start[0] != 0 || int(k.start[maxSlots+1]) != len(k.order) {
		return fmt.Errorf("picker: bounds %d..%d of %d", k.start[0], k.start[maxSlots+1], len(k.order))
	}
	for a := range maxSlots + 1 {
		for at := k.start[a]; at < k.start[a+1]; at++ {
			if got := int(k.at[k.order[at]].avail); got != a {
				return fmt.Errorf("picker: a piece with %d holders is among those with %d", got, a)
			}
		}
	}
	return nil
}
