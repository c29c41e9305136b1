package swarm

import (
	"math/bits"
	"time"

	"github.com/capelin-io/capelin/swarm/piece"
)

// Zones: what is between them is thin, or costs money, so that a piece is to
// enter a zone once. What a node of the own zone has is never asked for in
// another; and of the rest, each piece is the business of one node, by its
// number: the tracker gives some nodes of each zone a share of the pieces. They
// have connections to other zones; the rest have none.
//
// Whoever gets nothing for a while takes on the shares that come after its own as
// well, more and more of them: so one node stands in for another that does not do its
// part, before everybody does. Who has no share brings what is missing only when it
// has nobody in its zone, or when all of them together have failed it.

const (
	standInAfter = 500 * time.Millisecond // with nothing under way but at slow peers, others' shares are taken on,
	standInTimes = 4                      // or after so many times what a piece from another zone takes;
	aloneAfter   = starveAfter            // all, by whoever has no share and no peer in its zone,
	strandedFor  = 10 * time.Second       // or has some
)

// otherZone reports whether zone is another than own. Whoever is in none has no others.
func otherZone(own, zone string) bool { return own != "" && zone != own }

// zoneShare is which pieces of a blob we bring into our zone from others. It belongs
// to its blob: the tracker gives a share (give), and standIn, which the Peer asks with
// its chores, adds to it. Nobody else changes it.
type zoneShare struct {
	given  uint16        // by the tracker; bit i modulo piece.Shares stands for piece i
	extra  uint16        // taken on beside that, until the tracker gives another,
	steps  int           // in how many steps,
	grewAt time.Duration // the last of them when
}

// give makes the share the tracker's, and no more.
func (s *zoneShare) give(share uint16) { s.given, s.extra, s.steps = share, 0, 0 }

func (s *zoneShare) pieces() uint16    { return s.given | s.extra }
func (s *zoneShare) none() bool        { return s.pieces() == 0 }
func (s *zoneShare) all() bool         { return s.pieces() == allShares }
func (s *zoneShare) brings(i int) bool { return s.pieces()>>(i%piece.Shares)&1 != 0 }

const allShares = 1<<piece.Shares - 1

// supply is what comes for a blob, as the Peer sees it.
type supply struct {
	since   time.Duration // nothing has come since, but from slow peers
	far     bool          // a peer of another zone has something we lack;
	farTook time.Duration // so long takes a piece from the slowest of these
	near    bool          // there are peers of our own zone
}

// standIn takes on more of what others were to bring if nothing comes, and reports
// whether it did. Whoever has a share takes on one more, then two, four, and all;
// whoever has none, all.
func (s *zoneShare) standIn(now time.Duration, v supply) bool {
	idle := now - max(v.since, s.grewAt)
	switch {
	case s.given != 0:
		if !v.far || idle <= max(standInAfter, standInTimes*v.farTook) {
			return false
		}
		s.extra = s.pieces() | bits.RotateLeft16(s.pieces(), 1<<s.steps)
		s.steps++
	case idle > strandedFor || idle > aloneAfter && !v.near:
		s.extra = allShares
	default:
		return false
	}
	s.grewAt = now
	return true
}
