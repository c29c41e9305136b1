package state

import (
	"math/bits"

	"github.com/capelin-io/capelin/swarm/piece"
)

// holders are who of a zone brings the pieces of a blob in from others, by share:
// all pieces are somebody's business, and each only one's (swarm/peer_zone.go).
// Those shares whose holder has everything have none: what they were for is in the
// zone now.
type holders [piece.Shares]*want

// deal gives w its part of the shares of its zone, one at least while not all have
// a holder of their own: those that nobody has, and then from whoever has most.
func (t *Tracker) deal(s *swarm, w *want) {
	zone := w.agent.hello.Zone
	if zone == "" || w.share != 0 {
		return
	}
	h := s.a.shares[zone]
	if h == nil {
		h = new(holders)
		if s.a.shares == nil {
			s.a.shares = map[string]*holders{}
		}
		s.a.shares[zone] = h
	}
	for {
		best, most := -1, bits.OnesCount16(w.share)+1
		for i, o := range h {
			if o == nil {
				best = i
				break
			}
			if n := bits.OnesCount16(o.share); n > most {
				best, most = i, n
			}
		}
		if best < 0 {
			return
		}
		t.give(s, h, best, w)
	}
}

// give makes w the holder of share i; nil: nobody.
func (t *Tracker) give(s *swarm, h *holders, i int, w *want) {
	if o := h[i]; o != nil {
		o.share &^= 1 << i
		s.a.dealt = append(s.a.dealt, o)
	}
	if h[i] = w; w != nil {
		w.share |= 1 << i
		s.a.dealt = append(s.a.dealt, w)
	}
}

// pass takes w's shares from it. Unless it has everything, others of its zone get
// them, those that have the fewest.
func (t *Tracker) pass(s *swarm, w *want) {
	h := s.a.shares[w.agent.hello.Zone]
	if h == nil || w.share == 0 {
		return
	}
	whole := t.flags(w.agent, s)&fComplete != 0
	for i, o := range h {
		if o != w {
			continue
		}
		var next *want
		if !whole {
			for _, c := range s.a.wants {
				if c != w && c.grant && c.agent.hello.Zone == w.agent.hello.Zone &&
					(next == nil || bits.OnesCount16(c.share) < bits.OnesCount16(next.share)) {
					if next = c; c.share == 0 {
						break
					}
				}
			}
		}
		t.give(s, h, i, next)
	}
}
