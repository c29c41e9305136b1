package swarm

import (
	"slices"
	"time"
)

// Announcements wait until something else goes to the same peer, and otherwise
// for their turn: every now and then some peers have theirs, so that each is told of
// several pieces at once. More than those could not begin to get a new piece from
// us meanwhile, and messages to all of them for each piece would cost more than
// the pieces.
const (
	haveTurns   = 4    // until everybody had one
	haveAtOnce  = 4    // have one together in any case
	maxHaves    = 1024 // pieces that one Have announces at most
	havePieces  = 3    // as many as come in the time between two turns, at the present speed,
	haveDivisor = 20   // which is PeerConfig.HaveDelay at most and a 20th of that at least
)

// announcing is when a blob's new pieces are announced, and to whom of its links next.
// It belongs to its blob; what is announced to each is in the links' news.
type announcing struct {
	due  time.Duration // the next turn; never if nobody waits
	next time.Duration // not before, when somebody waits again
	turn int           // the first link of the next turn
}

// wait has a turn come. It reports whether none was to come before.
func (a *announcing) wait(now time.Duration) bool {
	if a.due != never {
		return false
	}
	a.due = max(now, a.next)
	return true
}

// round is a turn among n links, of which some wait: it tells a quarter of them, the
// next in order. It reports whether nobody waits any more.
func (a *announcing) round(n int, waits func(j int) bool, tell func(j int), next time.Duration) bool {
	quota, first, left := max(haveAtOnce, (n+haveTurns-1)/haveTurns), a.turn, false
	for k := range n {
		j := (first + k) % n
		switch {
		case !waits(j):
		case quota > 0:
			tell(j)
			if quota--; quota == 0 {
				a.turn = (j + 1) % n
			}
		default:
			left = true
		}
	}
	a.next = next
	if a.due = next; !left {
		a.due = never
	}
	return !left
}

// haveDelay returns the time between two turns: for some pieces of the given length at
// rate (bytes per second, 0: not known), within bounds.
func haveDelay(longest time.Duration, length int64, rate float64) time.Duration {
	if rate == 0 {
		return longest / 2 // the first pieces are news for all
	}
	return min(longest, max(longest/haveDivisor, time.Duration(havePieces*float64(length)/rate*1e9)))
}

// news is what the peer of a link has not been told of what we have, since our Open.
// It belongs to the link. A piece is pending until it is announced, or withheld while
// a downloader has it itself: then it is of no use to that peer but to know at the end
// that we have everything. Stale says that only another Open can tell the truth.
type news struct {
	pending  []uint32
	withheld []uint32
	stale    bool
}

// add makes a piece pending. It reports whether a message is full.
func (n *news) add(i int) bool {
	n.pending = append(n.pending, uint32(i))
	return len(n.pending) >= maxHaves
}

// miss says that the peer is not told of a change, by us or by its own choice.
func (n *news) miss() { n.stale = true }

// lose takes a piece back that is not there any more.
func (n *news) lose(i int) {
	n.pending = slices.DeleteFunc(n.pending, func(h uint32) bool { return h == uint32(i) })
}

// take returns the pieces to be announced now, which are not pending any more. Those
// that the peer has (nil: does not count) are withheld. The caller owns the slice.
func (n *news) take(has func(i int) bool) []uint32 {
	pieces := n.pending
	n.pending = nil
	if has == nil {
		return pieces
	}
	k := 0
	for _, i := range pieces {
		if has(int(i)) {
			n.withheld = append(n.withheld, i)
			continue
		}
		pieces[k] = i
		k++
	}
	return pieces[:k]
}

// takeWithheld returns what was withheld; the caller owns it.
func (n *news) takeWithheld() []uint32 {
	pieces := n.withheld
	n.withheld = nil
	return pieces
}

// peerClosed drops what was to be announced to a peer that has closed the blob.
func (n *news) peerClosed() {
	*n = news{stale: n.stale || len(n.pending)+len(n.withheld) > 0}
}
