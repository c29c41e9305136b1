package swarm

import (
	"bytes"
	"time"

	"github.com/capelin-io/capelin/swarm/piece"
	"github.com/capelin-io/capelin/swarm/wire"
)

// Sums: which list of chaining states a download goes by.
//
// If the tracker has named the proven list's hash, only the list that has it
// counts, whoever sends it. Otherwise any list is provisional: it is taken from
// whoever has one, from a source before a peer that claims to have proven it
// before any other. A list that grows (its source is still receiving the blob)
// is asked for further as pieces beyond it are announced; a state that equals
// ours vouches for all before it, so each request overlaps by one.
//
// A provisional list falls when two sources send equal bytes that do not match
// it. Its supplier is convicted if it is a source or claimed to have proven the
// list; a relay may have been fooled itself.

// sumList is the list that a blob's pieces count against, and where it is from. It
// belongs to the blob. The Peer replaces the list through replace only, which says what
// becomes of the pieces that were verified against the one before.
type sumList struct {
	list      *piece.Sums // never appended to, since the driver reads it
	proven    bool        // every link was verified here
	named     *[32]byte   // the hash of the only acceptable list; nil: not known
	suppliers []supplier  // none if the states are our own
	before    *piece.Sums // while list is empty: the one before it, against which the stored pieces count
	refused   []refusal   // of lists that were disproved
	computing bool        // ActComputeSums was returned
	fallen    bool        // a list that pieces were verified against was false, or a liar's, and there is no other yet
}

// supplier is who supplied the states from a number on.
type supplier struct {
	from  int
	name  string // empty: not known
	trust int    // see link.trust
}

// refusal is a state of a list that was disproved.
type refusal struct {
	i     int
	state piece.Sum
}

// maxRefusals bounds what is remembered of disproved lists.
const maxRefusals = 64

// verifiable returns how many leading pieces can be checked. A list of which
// only the hash would be acceptable counts when it is that.
func (s *sumList) verifiable() int { return s.list.Verifiable() }

// vouched reports whether the list is not ours to disprove. Of one that is not complete the named hash
// says nothing.
func (s *sumList) vouched() bool { return s.proven || s.named != nil && s.list.Complete() }

// acceptable reports whether list may be the one that was named, if one was.
func (s *sumList) acceptable(list *piece.Sums) bool {
	return s.named == nil || !list.Complete() || list.Hash() == *s.named
}

// trust returns how far the best of our suppliers is trusted.
func (s *sumList) trust() (best int) {
	for _, x := range s.suppliers {
		best = max(best, x.trust)
	}
	return best
}

// supplierOf returns who supplied what piece i is verified with.
func (s *sumList) supplierOf(i int) (last supplier) {
	for _, x := range s.suppliers {
		if x.from <= i {
			last = x
		}
	}
	return last
}

// relation is what states that somebody sent are to our list.
type relation uint8

const (
	relUnrelated relation = iota // nothing says that they continue it
	relDiffers                   // they are another list's
	relKnown                     // they are in it
	relLonger                    // they continue it
)

// compare relates states, which begin with number from, to our list. invited: they were
// asked for, or their sender need not be.
func (s *sumList) compare(from int, states []byte, invited bool) relation {
	w := s.list.ID().Alg.Size()
	n, have := len(states)/w, s.list.Len()
	switch {
	case from > have || from+n < have:
		return relUnrelated
	case from < have && !bytes.Equal(states[:(have-from)*w], s.list.Range(from, have-from)):
		return relDiffers // the overlap tells
	case from == have && have > 0 && !invited:
		return relUnrelated
	case from+n == have:
		return relKnown
	}
	return relLonger
}

// continued returns our list with states, which compare has found to be longer; nil: they
// were disproved, or are not a list.
func (s *sumList) continued(from int, states []byte) *piece.Sums {
	if s.isRefused(from, states) {
		return nil
	}
	w := s.list.ID().Alg.Size()
	list := s.list.Clone()
	if list.Append(states[(s.list.Len()-from)*w:]) != nil {
		return nil
	}
	return list
}

// withOwn returns our list with states that we have computed ourselves, which begin with
// number from and count more than anybody's; nil if nothing is known before them.
func (s *sumList) withOwn(from int, states []byte) *piece.Sums {
	w, have := s.list.ID().Alg.Size(), s.list.Len()
	states = states[:min(len(states)/w*w, max(0, (s.list.MaxLen()-from)*w))]
	if from > have || len(states) == 0 {
		return nil
	}
	own := piece.NewSums(s.list.ID())
	if own.Append(s.list.Range(0, from)) != nil || own.Append(states) != nil {
		return nil
	}
	if own.Len() < have && s.list.HasPrefix(own) {
		return s.list
	}
	return own
}

// change is what replacing a list means for the pieces.
type change struct {
	grown bool        // the new list continues the old one
	from  int         // pieces from here on can be verified that could not be before
	stale *piece.Sums // stored pieces count against this one until they are compared; nil: there is nothing to compare now
	tell  bool        // the driver does not know the list
}

// replace makes list the one that counts. An empty list means that none is known now; own,
// that the states are ours, or none.
func (s *sumList) replace(list *piece.Sums, own bool) (c change) {
	old := s.list
	s.list = list
	if c.grown = list.HasPrefix(old); c.grown {
		c.from = old.Verifiable()
	} else {
		if own {
			s.suppliers = nil
		}
		s.before = old // there was none: while one waits, the list is empty, and any other continues it
		s.proven = false
	}
	if list.Len() == 0 && list.MaxLen() > 0 {
		return c
	}
	s.fallen = false
	c.stale, s.before = s.before, nil
	c.tell = !own || !c.grown
	return c
}

// refuse remembers that the list is wrong about piece i: a state beside it, of which the
// first may be right, but not together with the second.
func (s *sumList) refuse(i int) {
	if len(s.refused) >= maxRefusals {
		return
	}
	for _, k := range []int{i, i - 1} {
		if state := s.list.Range(k, 1); state != nil {
			r := refusal{i: k}
			copy(r.state[:], state)
			s.refused = append(s.refused, r)
			return
		}
	}
}

// isRefused reports whether states, which begin with number from, contain one
// that was disproved.
func (s *sumList) isRefused(from int, states []byte) bool {
	w := s.list.ID().Alg.Size()
	for _, r := range s.refused {
		if k := r.i - from; k >= 0 && (k+1)*w <= len(states) && bytes.Equal(states[k*w:(k+1)*w], r.state[:w]) {
			return true
		}
	}
	return false
}

const (
	sumsTimeout = 3 * time.Second // an unanswered request is forgotten then
	sumsPause   = 500 * time.Millisecond
	sumsBurst   = 8 << 20 // bytes of states that a peer gets at once,
	sumsRate    = 1 << 20 // and per second from then on
)

// sumsQuery is what a link's peer is asked of its list. It belongs to the link.
type sumsQuery struct {
	asked bool          // a request is outstanding
	at    time.Duration // when it was sent, or not before which the next is
	bad   bool          // its list is not ours: not asked again, unless another list is named
	fresh *piece.Sums   // its list, while that is collected to be compared with the named hash
}

// pending reports whether an answer may still come.
func (q *sumsQuery) pending(now time.Duration) bool { return q.asked && now-q.at <= sumsTimeout }

// ready reports whether the peer may be asked now.
func (q *sumsQuery) ready(now time.Duration) bool {
	q.asked = q.pending(now)
	return !q.bad && !q.asked && now >= q.at
}

// ask returns the first state to ask for, beyond our list of that length.
func (q *sumsQuery) ask(have int, now time.Duration) (from int) {
	q.asked, q.at = true, now
	if q.fresh != nil {
		return q.fresh.Len()
	}
	return max(0, have-1)
}

// answered notes that states came, and reports whether they were asked for.
func (q *sumsQuery) answered(now time.Duration) bool {
	asked := q.asked
	q.asked, q.at = false, now+sumsPause
	return asked
}

// hasMore notes that the peer has more states by now.
func (q *sumsQuery) hasMore(now time.Duration) { q.at = min(q.at, now) }

// reject ends the asking.
func (q *sumsQuery) reject() { q.fresh, q.bad = nil, true }

// collect adds states to fresh, and reports whether they continue it.
func (q *sumsQuery) collect(from int, states []byte) bool {
	return from == q.fresh.Len() && len(states) > 0 && q.fresh.Append(states) == nil
}

// sumsFeed is what a link's peer gets of our list while it grows. It belongs to the link.
type sumsFeed struct {
	wanted bool // the peer has asked for sums, and is told as they grow
	sent   int  // states of our list that it has, without a gap
}

// served notes that it was sent n states from a number on.
func (f *sumsFeed) served(from, n int) {
	if from <= f.sent {
		f.sent = max(f.sent, from+n)
	}
}

// sumsAllowance bounds the states that a peer gets: requests are cheap to send, and their
// answers are not. It belongs to the connection.
type sumsAllowance struct {
	bytes float64
	at    time.Duration
}

// take reports whether n bytes may be sent now.
func (a *sumsAllowance) take(n int, now time.Duration) bool {
	a.bytes = min(sumsBurst, a.bytes+(now-a.at).Seconds()*sumsRate)
	a.at = now
	if a.bytes < float64(n) {
		return false
	}
	a.bytes -= float64(n)
	return true
}

// trustSource is the trust of whom the tracker names as a source: what it brings may be a liar's registry's.
// trustOrigin is an origin's.
const trustSource, trustOrigin = 2, 3

// trust ranks a link as a supplier of provisional sums.
func (l *link) trust(proven bool) int {
	switch {
	case l.c.node.role == wire.RoleOrigin:
		return trustOrigin
	case l.source:
		return trustSource
	case proven:
		return 1
	}
	return 0
}

// whole reports whether a message of states is as long as one can be, so that there may
// be more already.
func (s *sumList) whole(states []byte) bool {
	return len(states) == wire.MaxSums*s.list.ID().Alg.Size()
}
