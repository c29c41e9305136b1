package state

import (
	"slices"

	"github.com/capelin-io/capelin/control/trackerpb"
	"github.com/capelin-io/capelin/swarm/piece"
)

// lease is the right to fetch from upstream, or the fact of doing so.
type lease struct {
	agent   *agent
	self    bool // not granted: the agent said that it fetches
	since   int64
	started bool
	last    int64 // progress
	bytes   int64
}

func (a *active) leaseOf(ag *agent) int {
	for i := range a.leases {
		if a.leases[i].agent == ag {
			return i
		}
	}
	return -1
}

// granted reports whether ag holds a lease that was given to it.
func (a *active) granted(ag *agent) bool {
	i := a.leaseOf(ag)
	return i >= 0 && !a.leases[i].self
}

// progress takes in what a has of a blob from upstream. Whoever says so
// counts as a holder, with or without a lease, but is not told LEASE: that would
// look like one more download to make. It happens after a restart of the tracker,
// after its lease was given to another, or on the tracker that grants none.
func (t *Tracker) progress(a *agent, id piece.ID, m *trackerpb.LeaseProgress) {
	s := t.find(id)
	if s == nil || s.a == nil || s.a.leaseOf(a) < 0 {
		if s != nil && t.flags(a, s)&fComplete != 0 {
			return
		}
		if s = t.admit(a, id); s == nil {
			return
		}
		act := t.activate(s)
		act.leases = append(act.leases, lease{agent: a, self: true, since: t.now})
		a.unstarted++
		t.stats.Leases++
		t.stats.LeasesSelf++
		t.setFlags(a, s, fLease, 0)
		if w := act.byAgent[a]; w != nil {
			w.answered = true
		}
		act.changed = true
	}
	l := &s.a.leases[s.a.leaseOf(a)]
	if !l.started {
		l.started = true
		l.last = t.now
		a.unstarted--
		if s.a.window == 0 {
			s.a.window = t.now
		}
	}
	if s.a.upstream.add(m.Registry) {
		s.a.changed = true
	}
	if n := m.Bytes; n > l.bytes {
		s.a.windowBytes += n - l.bytes
		t.stats.UpstreamReported += n - l.bytes
		l.bytes = n
		l.last = t.now
		s.a.endRow(t.now)
	}
	t.touch(s)
}

// failed is a node that upstream has failed. Who may have whatever registry he likes: what
// fails one node does not fail the others, until it has failed several.
type failed struct {
	node  string
	times int   // since upstream last brought anything: in a row
	until int64 // it gets no lease before; then it begins anew
}

// fail notes that upstream failed a node, and returns how often, and how many nodes in a row.
func (a *active) fail(node string, now int64) (f *failed, nodes int) {
	a.failed = slices.DeleteFunc(a.failed, func(f failed) bool { return f.until != 0 && f.until <= now })
	i := slices.IndexFunc(a.failed, func(f failed) bool { return f.node == node })
	if i < 0 {
		i = len(a.failed)
		a.failed = append(a.failed, failed{node: node})
	}
	a.failed[i].times++
	for _, f := range a.failed {
		nodes += min(f.times, 1)
	}
	return &a.failed[i], nodes
}

// endRow notes that upstream brings something. Who is refused stays so.
func (a *active) endRow(now int64) {
	for i := range a.failed {
		a.failed[i].times = 0
	}
	a.failed = slices.DeleteFunc(a.failed, func(f failed) bool { return f.until <= now })
}

// refused reports whether a node gets no lease, because upstream has failed it too often.
func (a *active) refused(node string, now int64) bool {
	return slices.ContainsFunc(a.failed, func(f failed) bool { return f.node == node && now < f.until })
}

// done ends a's lease.
func (t *Tracker) done(a *agent, id piece.ID, m *trackerpb.LeaseDone) {
	s := t.find(id)
	if s == nil || s.a == nil {
		return
	}
	i := s.a.leaseOf(a)
	if i < 0 {
		return
	}
	switch m.Outcome {
	case trackerpb.Outcome_OUTCOME_COMPLETE:
		// The announcement with the hash follows; until then the blob must not
		// look as if nobody had it.
		t.setFlags(a, s, fComplete, fPartial)
		t.leaseDone(s, i)
	case trackerpb.Outcome_OUTCOME_CANCELLED:
		t.stats.LeasesCancelled++
		t.endLease(s, i, "given up by its holder")
	case trackerpb.Outcome_OUTCOME_FAILED:
		t.stats.LeasesFailed++
		s.a.lastGrant = 0 // it is Backoff that counts
		t.report(ReportFailed, a.hello.Node, id, m.Error)
		granted := !s.a.leases[i].self
		t.endLease(s, i, "")
		f, nodes := s.a.fail(a.hello.Node, t.now)
		if m.Mismatch && granted {
			t.distrust(s, f)
		}
		switch {
		case nodes >= t.cfg.MaxFailures:
			s.a.failed = nil
			s.a.nobodyUntil = t.now + int64(t.cfg.NobodyFor)
			t.report(ReportNobody, "", id, t.cfg.NobodyFor.String())
		case f.times >= t.cfg.MaxFailures:
			f.until = t.now + int64(t.cfg.NobodyFor)
			t.report(ReportNobody, f.node, id, t.cfg.NobodyFor.String())
		default:
			s.a.backoffUntil = t.now + int64(t.cfg.Backoff)<<(max(f.times, nodes)-1)
		}
	}
}

// leaseDone ends a lease whose holder has the whole blob.
func (t *Tracker) leaseDone(s *swarm, i int) {
	t.stats.LeasesCompleted++
	t.report(ReportDone, s.a.leases[i].agent.hello.Node, s.id, "")
	t.endLease(s, i, "")
	s.a.failed, s.a.backoffUntil, s.a.nobodyUntil = nil, 0, 0
}

// endLease removes a lease; why is for the report, "" if the caller makes it.
func (t *Tracker) endLease(s *swarm, i int, why string) {
	l := s.a.leases[i]
	if !l.started {
		l.agent.unstarted--
	}
	if w := s.a.byAgent[l.agent]; w != nil {
		w.answered = true
		t.refresh(s, w)
	}
	s.a.leases = slices.Delete(s.a.leases, i, i+1)
	t.stats.Leases--
	if why != "" {
		t.report(ReportMoved, l.agent.hello.Node, s.id, why)
	}
	if len(s.a.leases) == 0 {
		s.a.window = 0
	}
	s.a.changed = true
	t.setFlags(l.agent, s, 0, fLease)
	t.touch(s)
}

func (t *Tracker) leaseDeadline(l *lease) int64 {
	if l.started {
		return l.last + int64(t.cfg.Stall)
	}
	return l.since + int64(t.cfg.Unstarted)
}

// candidate returns who should get the lease next: a waiting agent with the
// fewest tries, at random, among those that may have it (nil: all). limited reports that
// there are such agents but each holds all the un-started leases that it may.
func (t *Tracker) candidate(s *swarm, among []*want, may func(*want) bool) (best *want, limited bool) {
	n := 0
	for _, w := range among {
		if !w.waiting || !w.grant || w.answered || s.a.leaseOf(w.agent) >= 0 || may != nil && !may(w) ||
			s.a.refused(w.agent.hello.Node, t.now) {
			continue
		}
		if w.agent.unstarted >= t.cfg.MaxUnstarted {
			limited = true
			continue
		}
		switch {
		case best == nil || w.tries < best.tries:
			best, n = w, 1
		case w.tries == best.tries:
			n++
			if t.rng.IntN(n) == 0 {
				best = w
			}
		}
	}
	return best, limited && best == nil
}

func (t *Tracker) grant(s *swarm, w *want) {
	t.stats.Leases++
	t.stats.LeasesGranted++
	t.report(ReportGranted, w.agent.hello.Node, s.id, "")
	w.tries++
	w.agent.unstarted++
	s.a.lastGrant = t.now
	s.a.leases = append(s.a.leases, lease{agent: w.agent, since: t.now})
	s.a.changed = true
	t.setFlags(w.agent, s, fLease, 0)
	t.verdict(s, w)
}

// decide grants leases and finds out what can be said in general.
func (t *Tracker) decide(s *swarm) {
	a := s.a
	m := availability{kind: trackerpb.Verdict_KIND_SOURCES, have: min(s.have, 2)}
	t.giveUp(s)
	warm := t.warmEnd()
	live := 0
	for i := range a.leases {
		if t.leaseDeadline(&a.leases[i]) > t.now {
			live++
		}
	}
	switch {
	case s.complete > 0 || t.promised(s):
	case live > 0:
		if end := a.window + int64(t.cfg.AddWindow); a.window != 0 && t.now >= end {
			slow := t.cfg.AddBelow > 0 && float64(a.windowBytes) < float64(t.cfg.AddBelow)*float64(t.now-a.window)/1e9
			a.window, a.windowBytes = t.now, 0
			if slow && len(a.leases) < t.cfg.MaxHolders {
				if w, _ := t.candidate(s, a.wants, nil); w != nil {
					t.stats.LeasesAdded++
					t.grant(s, w)
				}
			}
		}
	case t.now < warm:
		m.kind, m.all, m.until = trackerpb.Verdict_KIND_WAIT, true, warm
	case t.ask(s):
		m.kind, m.all, m.until = trackerpb.Verdict_KIND_WAIT, true, a.look.until
	case t.now < a.nobodyUntil:
		m.kind, m.until = trackerpb.Verdict_KIND_NOBODY, a.nobodyUntil
	case t.now < a.backoffUntil:
		m.kind, m.until = trackerpb.Verdict_KIND_WAIT, a.backoffUntil
	default:
		w, limited := t.candidate(s, a.wants, nil)
		switch {
		case w != nil:
			t.endStale(s)
			t.grant(s, w)
		case len(a.leases) > 0: // nobody else would do it
			m.late = true
		case limited:
			m.kind, m.until = trackerpb.Verdict_KIND_WAIT, t.now+limitRetry
			if a.avail.kind == m.kind && a.avail.until > t.now {
				m.until = a.avail.until
			}
		default:
			m.kind = trackerpb.Verdict_KIND_NOBODY
		}
	}
	a.avail = m
	if m.kind == trackerpb.Verdict_KIND_SOURCES {
		t.rescue(s)
	}
	t.relieve(s)
}

// endStale ends the leases whose clocks have run out.
func (t *Tracker) endStale(s *swarm) {
	for i := len(s.a.leases) - 1; i >= 0; i-- {
		switch l := &s.a.leases[i]; {
		case t.leaseDeadline(l) > t.now:
		case l.started:
			t.stats.LeasesStalled++
			t.endLease(s, i, "no progress")
		default:
			t.stats.LeasesUnstarted++
			t.endLease(s, i, "not started in time")
		}
	}
}
