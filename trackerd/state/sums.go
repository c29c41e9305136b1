package state

import (
	"slices"

	"github.com/capelin-io/capelin/control/trackerpb"
	"github.com/capelin-io/capelin/swarm/piece"
)

// claims are other hashes of a swarm's sums than the pinned one.
type claims struct {
	alt       [32]byte // the last one that differed
	hasAlt    bool
	disproved [32]byte // never pinned again
	hasBad    bool
}

// claim takes the hash that a, which has the whole blob, gives of its sums. The
// first one is pinned; an origin's replaces that of a node, since a node that lies
// must not turn the others against the origin.
func (t *Tracker) claim(a *agent, s *swarm, hash [32]byte) {
	vouches := a.isOrigin()
	switch {
	case s.claims != nil && s.claims.hasBad && s.claims.disproved == hash:
		t.stats.HashConflicts++
		t.report(ReportHashConflict, a.hello.Node, s.id, "claims sums that were disproved")
	case !s.hashed:
		t.pin(s, hash, vouches)
	case s.hash == hash:
		s.vouched = s.vouched || vouches
	case vouches && !s.vouched:
		t.stats.HashReplaced++
		t.report(ReportHashReplaced, a.hello.Node, s.id, "an origin claims other sums")
		s.dispute().other(s.hash)
		t.pin(s, hash, true)
	default:
		t.stats.HashConflicts++
		t.report(ReportHashConflict, a.hello.Node, s.id, "the sums pinned first are kept")
		s.dispute().other(hash)
		m := t.send(a)
		m.Sums = append(m.Sums, &trackerpb.SumsHash{Blob: trackerpb.FromID(s.id), Hash: slices.Clone(s.hash[:])})
	}
}

// pin makes a hash the one that all are told.
func (t *Tracker) pin(s *swarm, hash [32]byte, vouched bool) {
	s.hashed, s.hash, s.vouched = true, hash, vouched
	if s.a != nil {
		s.a.rehash()
	}
	t.touch(s)
}

// dispute returns the swarm's claims, made if there were none.
func (s *swarm) dispute() *claims {
	if s.claims == nil {
		s.claims = &claims{}
	}
	return s.claims
}

// other notes a hash that differs from the pinned one.
func (c *claims) other(hash [32]byte) { c.alt, c.hasAlt = hash, true }

// disprove unpins a hash that a found to be false. A liar can only bring the
// swarm back to provisional sums with this: every link is verified anyway.
func (t *Tracker) disprove(a *agent, id piece.ID, hash [32]byte) {
	s := t.find(id)
	if s == nil || !s.hashed || s.hash != hash {
		return
	}
	t.stats.HashReplaced++
	t.report(ReportHashReplaced, a.hello.Node, id, "")
	c := s.dispute()
	c.disproved, c.hasBad = hash, true
	s.hashed, s.vouched = c.hasAlt && c.alt != hash, false
	if s.hashed {
		s.hash = c.alt
	}
	c.hasAlt = false
	if s.a != nil {
		s.a.rehash()
	}
	t.touch(s)
}
