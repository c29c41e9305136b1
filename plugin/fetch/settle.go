package fetch

import (
	"cmp"
	"slices"
	"time"

	"github.com/capelin-io/capelin/control/tracker"
	"github.com/capelin-io/capelin/plugin/registries"
	"github.com/capelin-io/capelin/swarm"
)

// This file is what a fetch does next, as it follows from its state.

// settle has the fetch do what follows from its state.
func (m *Machine) settle(f *fetch) {
	if m.stopped || len(f.sessions) == 0 && (f.settled() || !f.expected(m.now)) {
		m.end(f)
		return
	}
	m.measure(f)
	if f.disk.open || f.disk.failed != nil {
		m.complete(f)
		m.disown(f)
		for again := true; again; {
			take := m.takes(f)
			m.join(f, take)
			m.ask(f, take)
			m.look(f)
			again = m.answer(f) // what is wanted has changed then
		}
	}
	if busy := f.count(waiting)+f.count(writing) > 0; busy != f.busy {
		m.counts(f, busy)
	}
	f.due = m.nextDue(f)
}

// takes reports whether the fetch takes the blob from the swarm.
func (m *Machine) takes(f *fetch) bool {
	return !f.settled() && !m.draining && !f.swarm.gaveUp && !m.distrusted.Contains(f.id) &&
		(f.count(waiting) > 0 || f.expected(m.now) && f.count(writing) == 0)
}

// complete has a blob of which every piece is there made durable.
func (m *Machine) complete(f *fetch) {
	d := &f.disk
	if d.have.Full && !f.settled() && !d.completing && !m.now.Before(d.retry) {
		d.completing = true
		m.act(ActComplete{f.id})
	}
}

// join takes part in the swarm, to take or only to give what a session writes, and
// hands on what is for it.
func (m *Machine) join(f *fetch, take bool) {
	w := &f.swarm
	as := swarm.JoinOptions{Want: take, Priority: f.ahead.priority}
	if f.count(waiting) == 0 {
		as.Priority += behind
	}
	useful := (take || f.count(writing) > 0 && !f.settled()) && !f.disk.emptying
	if m.swarm && f.disk.open && useful && (!w.joined || as != w.as) {
		if !w.joined {
			w.stale, w.shareDue = true, w.shareDue || w.share != 0
		}
		m.joins++
		w.joined, w.join, w.as = true, m.joins, as
		m.act(ActJoin{ID: f.id, As: as, Join: w.join})
	}
	if !w.joined {
		return
	}
	if f.disk.have.Whole && !w.proven {
		w.proven = true
		m.act(ActProven{f.id})
	}
	if len(w.found) > 0 {
		m.act(ActAddPeers{f.id, w.found})
		w.found, w.stale = nil, true
	}
	if w.shareDue {
		w.shareDue = false
		m.act(ActShare{f.id, w.share})
	}
}

// ask tells the trackers what is wanted, again if their answer is used up, and
// announces what there is.
func (m *Machine) ask(f *fetch, take bool) {
	if !m.trackers {
		return
	}
	q := &f.question
	plead := take && f.swarm.pleads(q.verdict) && f.count(waiting) > 0
	slow := f.hurries && take && f.count(waiting) > 0
	hurry := slow != q.slow && f.lease != leaseTaken && (slow || m.now.Sub(q.slowAt) >= slowLasts)
	now, again := wantNothing, q.usedUp || plead || hurry
	q.usedUp = false
	switch {
	case take && f.count(waiting) > 0:
		now = wantWaiting
	case take:
		now = wantSome
	case f.lease == leaseTaken, f.lease == leaseGranted && m.distrusted.Contains(f.id):
		now = q.want // a holder that takes back its want would lose the lease
	}
	switch {
	case now == q.want && (now == wantNothing || !again):
	case now == wantNothing:
		m.act(ActUnwant{f.id})
	default:
		m.asks++
		q.ask, q.asked, q.heard = m.asks, m.now, false
		if slow != q.slow {
			q.slow, q.slowAt = slow, m.now
		}
		// What was said to somebody who was not waiting may change: a waiting
		// one can be granted a lease.
		if q.verdict != tracker.Sources || plead {
			q.verdict, f.swarm.stale = tracker.Unknown, true
		}
		f.swarm.pleaded = len(f.swarm.lost) > 0
		m.act(ActWant{ID: f.id, Waiting: now == wantWaiting, Ask: q.ask, Lost: f.swarm.lost, Slow: q.slow})
	}
	q.want = now
	if f.disk.have.Verified > 0 && !q.partial && f.swarm.joined && !f.settled() {
		q.partial = true
		m.act(ActAnnounce{f.id, tracker.StatePartial})
	}
}

// matters reports whether what the swarm can do for the blob decides anything.
// Otherwise the swarm has better things to do than to say.
func (m *Machine) matters(f *fetch) bool {
	return f.swarm.joined && f.count(waiting) > 0 && !f.disk.have.Whole &&
		(f.question.verdict != tracker.Sources || f.swarm.doubt || !m.now.Before(f.quiet()))
}

// quietAfter is how long no byte comes, though trackers know sources, before the swarm is asked
// whether they have forgotten the blob, or others come first.
const quietAfter = 2 * time.Second

// quiet returns when that is so.
func (f *fetch) quiet() time.Time {
	last := f.disk.progress
	for _, s := range f.sessions {
		if s.state == waiting && s.since.After(last) {
			last = s.since
		}
	}
	return last.Add(quietAfter)
}

// pleads reports whether the trackers are to hear that the sources they speak of have failed.
func (w *part) pleads(verdict tracker.VerdictKind) bool {
	return len(w.lost) > 0 && !w.pleaded && verdict == tracker.Sources
}

// look asks the swarm what it can do for the blob, now and then.
func (m *Machine) look(f *fetch) {
	w := &f.swarm
	if !m.matters(f) {
		w.lookedAt, w.spreadAt = time.Time{}, time.Time{} // patience begins anew
		w.lost, w.pleaded = nil, false
		return
	}
	if !w.asked && (w.stale || w.lookedAt.IsZero() || !m.now.Before(w.lookedAt.Add(poll))) {
		w.asked, w.stale = true, false
		m.act(ActSwarmStatus{f.id})
	}
}

// looked takes in what the swarm says of itself.
func (m *Machine) looked(f *fetch, st swarm.BlobStatus) {
	w := &f.swarm
	w.asked = false
	if !m.matters(f) {
		return
	}
	w.lookedAt = m.now
	w.reach = st.Useful > 0 || st.Known > 0
	w.upTo, w.turn = st.Reach, st.Waits
	w.doubt, w.lost = st.DeadEnd, st.Lost
	w.pleaded = w.pleaded && st.DeadEnd
	// What the one that went away had just sent is not announced yet.
	if st.Missing == 0 || w.spreadAt.IsZero() {
		w.spreadAt = m.now
	}
}

// situation is what is the same for all sessions that wait.
func (m *Machine) situation(f *fetch) situation {
	w := &f.swarm
	distrusted := m.distrusted.Contains(f.id)
	s := situation{
		size: f.id.Size, prefix: f.disk.have.Prefix, complete: f.disk.have.Whole,
		now: m.now, asked: f.question.asked, progress: f.disk.progress, turn: w.turn,
		verdict: f.question.verdict, draining: m.draining,
		noRange: distrusted || m.noRange.Contains(f.id),
		find:    m.rules.Find, stall: m.rules.Stall,
		verified: f.disk.have.Verified, began: f.pace.began, rate: f.pace.rate(m.now, f.disk.have.Verified),
		mean:    f.pace.mean(m.now, f.disk.have.Verified),
		lately:  f.pace.over(m.now, f.disk.have.Verified, seenForWhile),
		sharing: max(m.busy, 1), paced: f.question.paced && !distrusted, inAll: m.taken.over(m.now, m.received, leastWindow),
	}
	s.asksTurn = !m.matters(f) || w.lookedAt.IsZero()
	if f.question.slow && !f.question.heard {
		s.ignored = f.question.asked
	}
	switch {
	case m.connected && !m.trackers:
		s.verdict = tracker.Unreachable
	case distrusted, w.gaveUp && s.verdict == tracker.Sources:
		s.verdict = tracker.Nobody
	}
	if m.matters(f) && !distrusted && !w.gaveUp {
		s.looking = w.asked || w.lookedAt.IsZero()
		s.peers = !s.looking && w.reach
		s.lost = !s.looking && w.pleaded
		s.reach = w.upTo
		s.spread = m.now.Sub(w.spreadAt) < leasePatience
	}
	return s
}

// decide decides about one session that waits.
func (m *Machine) decide(f *fetch, ses *session, s situation) decision {
	s.since = ses.since
	for _, other := range f.sessions {
		if other.state == writing {
			s.writing, s.wrote = true, later(s.wrote, other.since)
		}
	}
	s.authorizeBlob = m.rules.AuthorizeBlob && !ses.authorized
	s.lease = f.lease == leaseGranted
	s.asking = ses.asking
	if s.upstream = cmp.Or(m.registries.Rate(ses.registry), m.rules.Registry, registries.Unknown); m.limit > 0 {
		s.upstream = min(s.upstream, m.limit)
	}
	if ses.graced {
		s.used = m.shared - ses.shared
	}
	s.noRange = s.noRange || !m.registries.Continues(ses.registry, m.now)
	s.foreign = m.foreign(f, ses)
	s.own = slices.ContainsFunc(f.swarm.registries, func(r string) bool { return registries.Same(r, ses.registry) })
	return decide(s)
}

// answer answers the sessions whose waiting is over, gives back a lease that nobody
// takes, and reports whether it did anything.
func (m *Machine) answer(f *fetch) (did bool) {
	s, hurries := m.situation(f), false
	for _, ses := range f.sessions {
		if ses.state != waiting {
			continue
		}
		a := ActAnswer{ID: f.id, Session: ses.id, Waited: m.now.Sub(ses.since), Verdict: s.verdict}
		if f.disk.failed != nil && !f.disk.have.Whole {
			a.Err, a.Why = f.disk.failed, OutcomeFailed
			ses.state = idle
		} else if f.disk.emptying {
			continue
		} else {
			d := m.decide(f, ses, s)
			if !d.answer {
				hurries = hurries || d.slow
				continue
			}
			if (f.swarm.doubtful || m.foreign(f, ses)) && f.mayEmpty() {
				m.empty(f, true)
				return did
			}
			a.Answer, a.Why = Answer{Offset: d.offset, Lease: d.lease}, d.why
			if d.lease {
				f.lease = leaseTaken
			}
			if d.offset < f.id.Size {
				ses.writes(m.now, a.Answer)
			} else {
				ses.state = idle
				m.trust(f.id)
			}
		}
		m.act(a)
		did = true
	}
	if hurries != f.hurries {
		f.hurries, did = hurries, true
	}
	if f.lease == leaseGranted && f.count(waiting) == 0 {
		var err error
		if !f.disk.have.Whole {
			err = ErrNoWaiter
		}
		m.endLease(f, err)
		did = true
	}
	return did
}

// nextDue returns when time alone changes something.
func (m *Machine) nextDue(f *fetch) (due time.Time) {
	at := func(t time.Time) {
		if due.IsZero() || t.Before(due) {
			due = t
		}
	}
	if f.expected(m.now) {
		at(f.ahead.until)
	}
	if !f.disk.open {
		return due
	}
	if f.disk.have.Full && !f.settled() && !f.disk.completing {
		at(f.disk.retry)
	}
	s := m.situation(f)
	for _, ses := range f.sessions {
		if ses.state == waiting && !f.disk.emptying {
			at(m.now.Add(m.decide(f, ses, s).wait))
		}
	}
	switch {
	case !m.matters(f):
		if f.swarm.joined && f.count(waiting) > 0 && !f.disk.have.Whole {
			at(f.quiet())
		}
	case !f.swarm.asked:
		at(f.swarm.lookedAt.Add(poll))
	}
	return due
}

// end ends the fetch. A blob that is whole is seeded on.
func (m *Machine) end(f *fetch) {
	delete(m.live, f.id)
	if f.busy {
		m.counts(f, false)
	}
	for _, s := range f.sessions { // only when all ends
		if s.state == waiting {
			m.ended(f, s, ErrStopped)
		}
		m.ended(f, s, ErrGivenUp)
	}
	d := &f.disk
	switch {
	case !f.swarm.joined:
	case d.have.Whole:
		m.act(ActKeep{f.id})
	default:
		m.act(ActLeave{f.id})
	}
	if f.lease == leaseGranted {
		m.endLease(f, ErrNoWaiter)
	}
	if f.question.want != wantNothing {
		m.act(ActUnwant{f.id})
	}
	if f.question.partial && !d.have.Whole {
		m.act(ActAnnounce{f.id, tracker.StateGone})
	}
	drop := d.have.Whole && !d.have.Full || !d.have.Whole && d.failed != nil
	m.act(ActClose{ID: f.id, Drop: drop && d.open, Err: d.failed})
}
