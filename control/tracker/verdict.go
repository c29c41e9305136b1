package tracker

import "time"

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
		case a.state == pending && a.mute:
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
