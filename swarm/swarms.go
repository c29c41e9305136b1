package swarm

import (
	"slices"

	"github.com/capelin-io/capelin/swarm/piece"
	"github.com/capelin-io/capelin/swarm/wire"
)

// maxForeign bounds the swarms that a peer has open on a connection.
const maxForeign = 4096

// swarms is which swarms either side has open on a connection (PROTOCOL.md §3, "Blobs"): a
// link for each, and the handles by which each side calls them. It belongs to the conn.
type swarms struct {
	links  []*link
	byID   map[piece.ID]*link    // the same
	remote map[wire.Handle]*link // those that the peer has open, by its handle
	recent *link                 // of the last message
	former map[wire.Handle]bool  // handles that the peer has closed; of the last, if there are many
	weight int64                 // bytes of those that it has open and we have not joined: see Peer.reckon
	last   wire.Handle           // that we gave
}

func newSwarms() swarms {
	return swarms{byID: make(map[piece.ID]*link), remote: make(map[wire.Handle]*link)}
}

// add puts a new link in; remove takes one out.
func (s *swarms) add(l *link) {
	s.byID[l.id] = l
	s.links = append(s.links, l)
}

func (s *swarms) remove(l *link) {
	if l.open {
		delete(s.remote, l.remote)
	}
	s.recent = nil
	delete(s.byID, l.id)
	s.links = slices.DeleteFunc(s.links, func(o *link) bool { return o == l })
}

// find returns what the peer has open under a handle, or nil.
func (s *swarms) find(h wire.Handle) *link {
	if l := s.recent; l != nil && l.open && l.remote == h {
		return l
	}
	s.recent = s.remote[h]
	return s.recent
}

// full reports whether the peer may open no more.
func (s *swarms) full() bool { return len(s.remote) >= maxForeign }

// opened notes that the peer calls l by h; closed, that it does no more.
func (s *swarms) opened(l *link, h wire.Handle) {
	l.remote, l.open = h, true
	s.remote[h] = l
	delete(s.former, h)
}

func (s *swarms) closed(l *link) {
	delete(s.remote, l.remote)
	if s.former == nil || len(s.former) >= maxForeign {
		s.former = make(map[wire.Handle]bool)
	}
	s.former[l.remote] = true
	l.open = false
}

// next returns a handle that we have not given.
func (s *swarms) next() wire.Handle {
	s.last++
	return s.last
}
