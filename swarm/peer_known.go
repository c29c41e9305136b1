package swarm

import (
	"slices"

	"github.com/capelin-io/capelin/swarm/wire"
)

// maxKnown bounds the peers that are remembered for one blob.
const maxKnown = 512

// known is a peer that the tracker named for a blob.
type known struct {
	node *node
	info PeerInfo
}

func (p *Peer) onPeers(ev EvPeers) {
	b := p.blobs[ev.ID]
	if b == nil {
		return
	}
	for _, info := range ev.Peers {
		if info.Node == "" || info.Node == p.cfg.Node {
			continue
		}
		k := b.known[info.Node]
		if k == nil {
			if len(b.peers) >= maxKnown && !p.forgetKnown(b) {
				continue
			}
			k = &known{node: p.node(info.Node)}
			k.node.refs++
			b.known[info.Node] = k
			b.peers = append(b.peers, k)
		}
		k.info = info
		n := k.node
		if info.Addr != "" && info.Addr != n.addr {
			n.addr = info.Addr
			n.fails, n.retry = 0, 0 // it moved
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

// forgetKnown makes room for one more peer of a blob: the oldest that is
// neither connected nor being dialed, and no source.
func (p *Peer) forgetKnown(b *blob) bool {
	for _, k := range b.peers {
		if k.node.conn == nil && !k.node.dialing && !k.info.Source && k.info.Role != wire.RoleOrigin {
			p.unknow(b, k)
			return true
		}
	}
	return false
}

func (p *Peer) unknow(b *blob, k *known) {
	delete(b.known, k.node.name)
	b.peers = slices.DeleteFunc(b.peers, func(o *known) bool { return o == k })
	k.node.refs--
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
		if k := b.known[name]; k != nil {
			p.unknow(b, k)
		}
	}
}
