package replicate

import (
	"slices"
	"time"
)

// walkState is the walk through all tags that are the rule's: those that differ from the remote's get intents. It goes on where it
// was when the lease changes hands, and begins anew when the rule changes.
type walkState struct {
	busy    bool
	known   bool   // where it stands
	pass    uint64 // which walk this is
	from    string
	start   time.Time
	next    time.Time
	changed time.Time // when the rule did, as far as is known
	ended   time.Time // the last one; zero: none yet
}

func (s *walkState) load(now time.Time) {
	*s = walkState{busy: s.busy, pass: s.pass + 1, next: now, ended: s.ended}
}

func (s *walkState) anew(now time.Time) {
	s.pass++
	s.from, s.start, s.changed, s.next = "", now, now, now
}

func (w *Worker) runWalk(now time.Time) {
	s := &w.walk
	if s.busy || now.Before(s.next) {
		return
	}
	s.busy = true
	if !s.known {
		w.out = append(w.out, LoadWalk{})
		return
	}
	if s.from == "" {
		s.start = now
	}
	w.out = append(w.out, Walk{s.from, w.rule.Version, s.pass})
}

func (w *Worker) walkIs(now time.Time, e WalkIs) {
	s := &w.walk
	s.busy = false
	if e.Failed || !w.lease.mine {
		s.next = now.Add(leaseLook)
		return
	}
	s.known = true
	if e.Rule != w.rule.Version {
		s.anew(now)
		return
	}
	s.from, s.next = e.Cursor, now
	s.start = now
	if e.Cursor == "" { // it had come to its end
		s.next = now.Add(w.rule.Every)
	}
}

func (w *Worker) walked(now time.Time, e Walked) {
	s := &w.walk
	s.busy = false
	if e.Pass != s.pass {
		return // of an earlier walk
	}
	if e.Failed {
		s.next = now.Add(maxWait / 10)
		return
	}
	s.from = e.Next
	pause := time.Duration(0)
	if w.rule.Rate > 0 {
		pause = time.Duration(float64(e.Tags) / w.rule.Rate * float64(time.Second))
	}
	s.next = now.Add(pause)
	if e.Next != "" {
		return
	}
	s.ended = now
	s.next = now.Add(max(pause, w.rule.Every))
	if !s.changed.IsZero() && s.start.Before(s.changed.Add(rulesAge)) {
		// An index that did not know the rule yet may have written behind it.
		if again := s.changed.Add(rulesAge); again.Before(s.next) {
			s.next = again
		}
	}
}

// Status is what a worker says of itself.
type Status struct {
	Mine    bool
	Tasks   int           // keys with intents, as far as they were listed
	Running int           // deliveries
	Oldest  time.Duration // since when the oldest is waiting
	Walked  time.Time     // when the last walk ended; zero: not since this worker began
}

// Status says how things stand.
func (w *Worker) Status(now time.Time) Status {
	s := Status{Mine: w.lease.mine, Running: w.running, Walked: w.walk.ended}
	for _, t := range w.tasks {
		if t.state == finished || t.settled && slices.Max(t.revisions) > t.delivered && t.tries > 1 {
			continue // done, or waiting for a write that nobody may make
		}
		s.Tasks++
		s.Oldest = max(s.Oldest, now.Sub(t.since))
	}
	return s
}
