package tracker

import (
	"time"
)

// want is what is asked and known about a blob that is wanted. Indices are positions
// among the blob's trackers.
type want struct {
	Want
	number  uint32    // the call of Want: a verdict on an earlier one is not told
	since   time.Time // a verdict has been due
	answers [2]answer
	verdict Verdict // the last one told; zero: none since it was wanted (anew)
	lease   bool    // that was Lease, and it is not done
	peers   peers
	shares  [2]uint16
	// registries are those that Upstream.Registries is made of.
	registries [2][]string
}

// answer is what one tracker said to the last Want that it was sent.
type answer struct {
	state answerState
	seq   uint32      // of that Want
	kind  VerdictKind // if given
	asked time.Time
	// mute: nothing at all comes from the tracker, so that it is not waited for.
	mute bool
	// until is, of a pending answer, when it is no longer waited for; of a given Wait,
	// when another one is due.
	until time.Time
}

type answerState uint8

// The states of an answer. One is unasked until a stream is up, and again when that
// has ended; then pending, until it is given. The first tracker's is abandoned when it
// is late and the second one was asked to grant in its place; it may be given yet.
const (
	unasked answerState = iota
	pending
	abandoned
	given
)

// begin wants the blob (anew): a verdict is to be told, whatever was before.
func (w *want) begin(how Want, number uint32, now time.Time) {
	w.Want, w.number, w.since = how, number, now
	w.verdict, w.lease = Verdict{}, false
}

// leaseDone ends the lease: who granted it says what comes next, to the same Want, and
// that is told even if it is another lease. A verdict that the Handler has not taken yet
// is of the lease that is over.
func (w *want) leaseDone(number uint32, now time.Time) {
	w.number, w.since = number, now
	w.verdict, w.lease = Verdict{}, false
	for i := range w.answers {
		if a := &w.answers[i]; a.state == given && a.kind == Lease {
			*a = answer{state: pending, seq: a.seq, asked: now, until: now.Add(answerTimeout), mute: a.mute}
		}
	}
}

// forgetAway forgets what a tracker said that is away: it holds until another says something.
func (w *want) forgetAway(b *blob) {
	for i, l := range b.owners {
		if l != nil && !l.up {
			w.shares[i], w.registries[i] = 0, nil
		}
	}
}

// late reports whether the tracker was asked and has not answered in time.
func (a answer) late(now time.Time) bool {
	return a.state == abandoned || a.state == pending && (a.mute || !a.until.After(now))
}

// move puts what the trackers said where they are now: the i-th is what was the
// from[i]-th, or new if that is -1. Nobody has been asked yet.
func (w *want) move(from [2]int) {
	w.answers = [2]answer{}
	w.peers.move(from)
	shares, registries := w.shares, w.registries
	w.shares, w.registries = [2]uint16{}, [2][]string{}
	for i, j := range from {
		if j >= 0 {
			w.shares[i], w.registries[i] = shares[j], registries[j]
		}
	}
}
