package fetchsim

import (
	"slices"
	"time"

	"github.com/capelin-io/capelin/control/tracker"
	"github.com/capelin-io/capelin/plugin/fetch"
	"github.com/capelin-io/capelin/swarm"
	"github.com/capelin-io/capelin/swarm/piece"
)

// This file is what nodes' clients, disks and swarm do in Run, and what is checked.

func (n *node) progress(id piece.ID) fetch.EvProgress {
	p := n.part(id)
	return fetch.EvProgress{ID: id, Opening: p.opening, Progress: fetch.Progress{
		Verified: p.have, Prefix: p.have, Full: p.have == id.Size, Whole: p.whole,
	}}
}

// sources returns the nodes that this one was told of, and can reach, which take part.
func (n *node) sources(id piece.ID) (all []*node) {
	for _, o := range n.w.nodes {
		if o != n && !o.down && !o.dead && (n.knows(id, o) || o.knows(id, n)) && (o.part(id).joined || o.part(id).whole) {
			all = append(all, o)
		}
	}
	return all
}

// status is what a swarm.Peer would say.
func (n *node) status(id piece.ID) (st swarm.BlobStatus) {
	most := n.part(id).have
	for _, o := range n.sources(id) {
		if have := o.part(id).have; have > n.part(id).have || o.writes(id) {
			st.Useful++
			most = max(most, have)
		}
	}
	if st.Useful == 0 {
		st.DeadEnd, st.Lost = n.deadEnd(id)
	}
	st.Reach = most
	st.Missing = int((id.Size - most + id.Length() - 1) / id.Length())
	return st
}

// reach finds out whether a source that was named can be reached.
func (n *node) reach(id piece.ID, p swarm.PeerInfo) {
	w, life := n.w, n.life
	if !p.Complete || !slices.ContainsFunc(w.nodes, func(o *node) bool { return o.dead && o.name == p.Node }) {
		return
	}
	after := w.cfg.FoundOut
	if n.failed[p.Node] {
		after = 0
	}
	w.after(after, func() {
		if n.life != life {
			return
		}
		n.failed[p.Node] = true
		if n.status(id).DeadEnd {
			n.fetch(fetch.EvNoSource{ID: id})
		}
	})
}

// deadEnd is what a swarm.Peer says of sources, if no peer has anything.
func (n *node) deadEnd(id piece.ID) (dead bool, lost []string) {
	for _, o := range n.w.nodes {
		switch {
		// A holder may be named before it hears of its lease.
		case !n.knows(id, o) || !o.part(id).whole && !o.writes(id) && !n.named[id][o.name].Source:
		case !n.failed[o.name]:
			return false, nil
		default:
			lost = append(lost, o.name)
		}
	}
	return len(lost) > 0, lost
}

func (n *node) knows(id piece.ID, o *node) bool { return n.named[id][o.name].Node != "" }

func (n *node) writes(id piece.ID) bool {
	return slices.ContainsFunc(n.clients, func(c *client) bool { return c.id == id && c.writes })
}

func (n *node) client(s fetch.SessionID) *client {
	if i := slices.IndexFunc(n.clients, func(c *client) bool { return c.session == s }); i >= 0 {
		return n.clients[i]
	}
	return nil
}

func (n *node) holder(id piece.ID) *client {
	if i := slices.IndexFunc(n.clients, func(c *client) bool { return c.id == id && c.lease }); i >= 0 {
		return n.clients[i]
	}
	return nil
}

// pull has a client ask for a blob.
func (n *node) pull(id piece.ID) {
	w, life := n.w, n.life
	if n.down {
		w.after(time.Second, func() { n.pull(id) })
		return
	}
	w.sessions++
	c := &client{n: n, id: id, session: w.sessions, since: w.now, waits: true, refused: n.index >= w.cfg.Nodes-w.cfg.Refused}
	n.clients = append(n.clients, c)
	n.fetch(fetch.EvSessionOpened{ID: id, Session: c.session})
	n.fetch(fetch.EvSessionWaits{ID: id, Session: c.session})
	if w.rng.Float64() < w.cfg.GiveUp {
		w.after(time.Duration(w.rng.Int64N(int64(w.cfg.Latency)*3+1)), func() {
			if n.life == life && n.client(c.session) != nil && c.at == 0 {
				c.ends(fetch.ErrGivenUp)
				w.after(time.Second, func() { n.pull(id) })
			}
		})
	}
}

func (c *client) answered(a fetch.ActAnswer) {
	w := c.n.w
	w.res.Waited = append(w.res.Waited, w.now.Sub(c.since))
	c.waits = false
	if a.Answer.Offset == c.id.Size {
		w.after(0, func() { c.done() })
		return
	}
	if a.Answer.Lease {
		w.res.Leases++
		if h := c.n.holder(c.id); h != nil {
			w.broken("%s answers two sessions with the lease of blob %d", c.n.name, c.id.Sum[0])
		}
		c.lease = true
	} else {
		w.res.Alone++
	}
	c.writes, c.at, c.wrote = true, float64(a.Answer.Offset), a.Answer.Offset
	if w.crashes < w.cfg.Crashes {
		w.crashes++
		c.crash = w.now.Add(time.Second)
	}
}

func (c *client) done() {
	if w := c.n.w; c.n.client(c.session) == c {
		if w.cfg.Slow == 0 || c.n.index > 0 {
			w.res.Took = append(w.res.Took, w.now.Sub(c.since))
		}
		c.ends(nil)
		w.pulls--
	}
}

// ends ends a client's session, and checks that a lease ends with it.
func (c *client) ends(err error) {
	n := c.n
	c.waits, c.writes = false, false
	n.fetch(fetch.EvSessionEnded{ID: c.id, Session: c.session, Err: err})
	if c.lease {
		n.w.broken("the session of %s has ended, and not its lease of blob %d", n.name, c.id.Sum[0])
	}
	n.fetch(fetch.EvSessionClosed{ID: c.id, Session: c.session})
	n.clients = slices.DeleteFunc(n.clients, func(x *client) bool { return x == c })
}

// grow adds bytes to a blob on the node's disk.
func (n *node) grow(id piece.ID, to int64) {
	p := n.part(id)
	if to = min(to, id.Size); to <= p.have {
		return
	}
	p.have, p.grew = to, n.w.now
	if p.opening != 0 {
		n.fetch(n.progress(id))
	}
}

// tick moves bytes.
func (w *world) tick() {
	dt := tickEvery.Seconds()
	writers := 0
	for _, n := range w.nodes {
		for _, c := range n.clients {
			if c.writes && !c.refused {
				writers++
			}
		}
	}
	for _, n := range w.nodes {
		for _, c := range slices.Clone(n.clients) {
			if c.writes && !n.down {
				c.download(w.upstream(n, writers) * dt)
			}
		}
		for _, id := range w.blobs {
			n.receive(id, w.cfg.Rate*dt)
		}
	}
	w.after(tickEvery, w.tick)
}

// upstream is what the registry gives a download of a node, of so many at once.
func (w *world) upstream(n *node, writers int) float64 {
	switch {
	case w.cfg.Slow > 0 && n.index == 0:
		return w.cfg.Slow
	case w.cfg.Each:
		return w.cfg.Registry
	}
	return w.cfg.Registry / float64(writers)
}

// download brings bytes of the registry.
func (c *client) download(most float64) {
	n, w := c.n, c.n.w
	switch {
	case !c.crash.IsZero() && !w.now.Before(c.crash):
		n.crash()
		return
	case c.refused:
		c.ends(fetch.ErrNotWritten)
		w.after(2*time.Second, func() { n.pull(c.id) })
		return
	}
	before := int64(c.at)
	c.at = min(c.at+most, float64(c.id.Size))
	w.res.Registry += int64(c.at) - before
	if int64(c.at) < c.id.Size && int64(c.at) < c.wrote+gathers {
		return
	}
	got := int64(c.at) - c.wrote
	c.wrote = int64(c.at)
	n.fetch(fetch.EvSessionWrote{ID: c.id, Session: c.session, Bytes: got, Offset: c.wrote})
	if c.wrote < c.id.Size {
		n.grow(c.id, c.wrote/c.id.Length()*c.id.Length())
		return
	}
	p := n.part(c.id)
	if !p.whole {
		p.whole, p.have, p.grew = true, c.id.Size, w.now
		n.fetch(n.progress(c.id))
		n.track(tracker.EvAnnounce{ID: c.id, State: tracker.StateComplete})
	}
	c.done()
}

// receive brings whole pieces of the best of the swarm's sources.
func (n *node) receive(id piece.ID, most float64) {
	p := n.part(id)
	if n.down || !p.joined || !p.as.Want || p.have == id.Size {
		return
	}
	best, trickles := p.have, p.have
	for _, o := range n.sources(id) {
		if !o.frozen {
			best = max(best, o.part(id).have)
		} else if n.w.cfg.Trickle > 0 {
			trickles = max(trickles, o.part(id).have)
		}
	}
	if best == p.have && trickles > best {
		best, most = trickles, n.w.cfg.Trickle*tickEvery.Seconds()
	}
	if p.moved += most; best == p.have {
		p.moved = 0
	}
	if pieces := int64(p.moved) / id.Length(); pieces > 0 {
		to := min(best, p.have+pieces*id.Length())
		p.moved -= float64(to - p.have)
		n.grow(id, to)
	}
}

// check looks for what must not be. It comes after each event.
func (w *world) check() {
	for _, n := range w.nodes {
		for _, c := range n.clients {
			if since := later(n.part(c.id).grew, c.since); c.waits && w.now.Sub(since) > stall {
				w.broken("a session of %s waits for blob %d since %v without a byte", n.name, c.id.Sum[0], w.now.Sub(since))
			}
		}
	}
	for _, t := range w.trackers {
		if t.t.Stats().Leases == 0 {
			t.leases = nil
			continue
		}
		held := map[string]time.Time{}
		for _, id := range w.blobs {
			for _, m := range t.t.Members(id) {
				if !m.Lease {
					continue
				}
				i := slices.IndexFunc(w.nodes, func(n *node) bool { return n.name == m.Node })
				n := w.nodes[i]
				if n.links[t.name].stream == 0 || slices.ContainsFunc(n.clients, func(c *client) bool { return c.id == id }) {
					continue
				}
				key := m.Node + string(id.Sum[:1])
				if held[key] = t.leases[key]; held[key].IsZero() {
					held[key] = w.now
				}
				// There, to the fetches behind what they are told before, and back again.
				if w.now.Sub(held[key]) > 3*w.cfg.Latency {
					w.broken("%s holds the lease of blob %d, and nobody there wants it, since %v", n.name, id.Sum[0], w.now.Sub(held[key]))
				}
			}
		}
		t.leases = held
	}
}
