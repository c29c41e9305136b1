package swarm

import "math/bits"

// seats are the neighbours from which a wanted blob is downloaded, each in the slot of its
// bit in the picker's masks. They belong to the blob: the Peer seats a link when its peer
// opens the blob, and takes the seat away when that closes it or we do not want it any more.
// A link knows its slot. Those beyond maxSlots have none: nothing is downloaded from them.
type seats struct {
	at     []*link // maxSlots of them
	seeds  uint64  // slots of peers that have everything
	common uint64  // those of them that are neither origins nor sources
	near   uint64  // slots of peers of our own zone
}

func newSeats() seats { return seats{at: make([]*link, maxSlots)} }

// take seats l, whose peer counts as partial, and reports whether there was a slot free.
func (s *seats) take(l *link) bool {
	for k := range s.at {
		if s.at[k] == nil {
			l.slot, s.at[k] = k, l
			if !l.c.far {
				s.near |= 1 << k
			}
			return true
		}
	}
	return false
}

// leave frees the slot of l.
func (s *seats) leave(l *link) {
	s.partial(l)
	s.near &^= 1 << l.slot
	s.at[l.slot] = nil
	l.slot = -1
}

// seeder notes that the peer of l has everything; partial, that it has not.
func (s *seats) seeder(l *link) {
	s.seeds |= 1 << l.slot
	if !l.origin() {
		s.common |= 1 << l.slot
	}
}

func (s *seats) partial(l *link) {
	s.seeds &^= 1 << l.slot
	s.common &^= 1 << l.slot
}

// fewSeeds reports whether the blob is only beginning to spread: all seeders are those that the
// swarm began with, or there is but one.
func (s *seats) fewSeeds() bool { return s.common == 0 || bits.OnesCount64(s.seeds) == 1 }

// nearSeeds returns the slots of seeders of our own zone.
func (s *seats) nearSeeds() uint64 { return s.seeds & s.near }
