package swarm

import (
	"slices"

	"github.com/capelin-io/capelin/swarm/wire"
)

// maxKnown bounds the peers that are remembered for one blob.
const maxKnown = 512

// knownPeers is whom the tracker has named for a blob, in order of arrival. It belongs to
// the blob, and counts itself in each node's refs.
type knownPeers struct {
	list   []*knownPeer
	byName map[string]*knownPeer // the same
}

// knownPeer is a peer that the tracker named.
type knownPeer struct {
	node *node
	info PeerInfo
}

func newKnownPeers() knownPeers { return knownPeers{byName: make(map[string]*knownPeer)} }

func (s *knownPeers) has(name string) bool { return s.byName[name] != nil }
func (s *knownPeers) isSource(name string) bool {
	k := s.byName[name]
	return k != nil && k.source()
}

// sourceBeside reports whether there is a source that has none of these names.
func (s *knownPeers) sourceBeside(names ...string) bool {
	return slices.ContainsFunc(s.list, func(k *knownPeer) bool { return k.source() && !slices.Contains(names, k.node.name) })
}

func (s *knownPeers) full() bool { return len(s.list) >= maxKnown }

// add returns a new one.
func (s *knownPeers) add(n *node) *knownPeer {
	k := &knownPeer{node: n}
	n.refs++
	s.byName[n.name] = k
	s.list = append(s.list, k)
	return k
}

func (s *knownPeers) remove(k *knownPeer) {
	delete(s.byName, k.node.name)
	s.list = slices.DeleteFunc(s.list, func(o *knownPeer) bool { return o == k })
	k.node.refs--
}

// expendable returns the one that makes room for another: the oldest that is neither
// connected nor being dialed, and no source; or nil.
func (s *knownPeers) expendable() *knownPeer {
	for _, k := range s.list {
		if k.node.conn == nil && !k.node.dialing && !k.info.Source && k.info.Role != wire.RoleOrigin {
			return k
		}
	}
	return nil
}
