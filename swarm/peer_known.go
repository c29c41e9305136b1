package swarm

func (p *Peer) onPeers(ev EvPeers) {
	b := p.blobs[ev.ID]
	if b == nil {
		return
	}
	p.doubtful = true
	for _, info := range ev.Peers {
		if info.Node == "" || info.Node == p.cfg.Node {
			continue
		}
		k := b.known.byName[info.Node]
		if k == nil {
			if b.known.full() {
				old := b.known.expendable()
				if old == nil {
					continue
				}
				p.dropKnown(b, old)
			}
			k = b.known.add(p.node(info.Node))
		}
		if k.info = info; k.source() {
			b.named = p.now
		}
		n := k.node
		if n.moves(info.Addr, info.Addrs) {
			n.fails, n.retry = 0, 0
			p.failures.clear(n.name)
		}
		if n.conn == nil {
			n.zone = info.Zone
			if info.Role != 0 {
				n.role = info.Role
			}
			continue
		}
		if l := n.conn.swarms.byID[b.id]; l != nil {
			l.source = info.Source
		}
		if b.downloading() {
			p.link(n.conn, b.id)
			p.open(n.conn, b)
		}
	}
	p.askAllSums(b) // a source may have been named
	p.arm(&p.chores, p.now)
}

// dropKnown forgets a peer of a blob.
func (p *Peer) dropKnown(b *blob, k *knownPeer) {
	b.known.remove(k)
	p.forget(k.node)
}

// onPeersGone forgets peers of a blob. Connections stay: the peer's own Close
// or the end of the connection says that it is gone.
func (p *Peer) onPeersGone(ev EvPeersGone) {
	b := p.blobs[ev.ID]
	if b == nil {
		return
	}
	for _, name := range ev.Nodes {
		if k := b.known.byName[name]; k != nil {
			p.dropKnown(b, k)
		}
	}
}
