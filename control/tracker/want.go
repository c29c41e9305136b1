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
}

// answer is what one tracker said to the last Want that it was sent.
type answer struct {
	state answerState
	seq   uint32      // of that Want
	kind  VerdictKind // if given
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
			*a = answer{state: pending, seq: a.seq, until: now.Add(answerTimeout)}
		}
	}
}

// late reports whether the tracker was asked and has not answered in time.
func (a answer) late(now time.Time) bool {
	return a.state == abandoned || a.state == pending && !a.until.After(now)
}

// grants reports whether the i-th tracker may grant a lease: the first, or the second
// while the first is away or does not answer.
func (w *want) grants(i int, now time.Time) bool {
	return i == 0 || w.answers[0].state == unasked || w.answers[0].late(now)
}

// needsSecond reports whether the second tracker, which said that it knows of nobody,
// is to be asked for a lease because the first does not answer.
func (w *want) needsSecond(now time.Time) bool {
	first, second := w.answers[0], w.answers[1]
	return w.Waiting && !w.lease && first.state == pending && first.late(now) && second.state == given && second.kind == Nobody
}

// merge makes one verdict of what the trackers say; its kind is 0 while there is
// nothing to say yet, which is never longer than busyTimeout, however often trackers
// come, go and are asked anew. next is when to look again if nothing else happens;
// zero: never.
//
// connecting: one of them is being connected with for the first time.
func (w *want) merge(now time.Time, connecting bool) (v Verdict, next time.Time) {
	var said [Unreachable + 1]bool
	var undecided bool
	var retry, busy, later time.Time // busy: when to give up one that is late; later: when something must be told
	if due := w.since.Add(answerTimeout); connecting && due.After(now) {
		// All of a cluster's nodes may have just been started: they are not to rush to
		// upstream.
		undecided, next = true, due
	}
	for _, a := range w.answers {
		switch {
		case a.state == pending && !a.late(now):
			undecided, next = true, earlier(next, a.until)
		case a.state == pending:
			// All of a cluster's nodes may have asked at once. One after the other is
			// told, and they are not to rush to upstream meanwhile.
			if due := a.until.Add(busyTimeout - answerTimeout); due.After(now) {
				busy = earlier(busy, due)
			}
		case a.state == given && a.kind == Wait:
			if due := a.until.Add(busyTimeout); due.After(now) {
				said[Wait], retry, next = true, earlier(retry, a.until), earlier(next, due)
			} else {
				said[Nobody] = true // it promised another answer and gave none
			}
		case a.state == given:
			said[a.kind] = true
		}
	}
	if w.verdict.Kind == 0 {
		if promised := w.since.Add(busyTimeout); promised.After(now) {
			later = promised
		} else {
			undecided, busy = false, time.Time{}
		}
	}
	v = Verdict{Waiting: w.Waiting, Tag: w.Tag}
	switch {
	case said[Lease] || w.lease:
		v.Kind = Lease
	case said[Sources]:
		v.Kind = Sources
	case undecided:
		return Verdict{}, earlier(next, later)
	case said[Wait]:
		v.Kind, v.Retry = Wait, max(retry.Sub(now), 0)
		if w.verdict.Kind == Wait {
			v.Retry = w.verdict.Retry // told already
		}
	case said[Nobody]:
		v.Kind = Nobody
	case !busy.IsZero():
		return Verdict{}, earlier(earlier(next, busy), later)
	default:
		v.Kind = Unreachable
	}
	return v, next
}

// move puts what the trackers said where they are now: the i-th is what was the
// from[i]-th, or new if that is -1. Nobody has been asked yet.
func (w *want) move(from [2]int) {
	w.answers = [2]answer{}
	w.peers.move(from)
	var shares [2]uint16
	for i, j := range from {
		if j >= 0 {
			shares[i] = w.shares[j]
		}
	}
	w.shares = shares
}
