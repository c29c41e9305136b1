package state

import (
	"container/heap"
	"math"
	"slices"
)

// Before is posheap.Item's: which active swarm is due earlier.
func (s *swarm) Before(o *swarm) bool {
	if s.a.due != o.a.due {
		return s.a.due < o.a.due
	}
	return s.slot < o.slot
}

// Place is posheap.Item's.
func (s *swarm) Place() *int { return &s.a.heap }

// schedule sets when s is looked at next, or ends its being active.
func (t *Tracker) schedule(s *swarm) {
	a := s.a
	due := int64(math.MaxInt64)
	at := func(when int64) {
		if when > t.now {
			due = min(due, when)
		}
	}
	at(a.flushAt)
	at(a.backoffUntil)
	at(a.nobodyUntil)
	for _, f := range a.failed {
		at(f.until)
	}
	at(a.avail.until)
	at(a.rescue.until)
	at(a.slowAt)
	if len(a.look.asked) > 0 {
		at(a.look.until)
	}
	at(a.look.again)
	for i := range a.leases {
		at(t.leaseDeadline(&a.leases[i]))
	}
	if a.window != 0 && s.complete == 0 && len(a.wants) > 0 {
		at(a.window + int64(t.cfg.AddWindow))
	}
	if len(a.wants) == 0 {
		live := false
		for i := range a.leases {
			live = live || t.leaseDeadline(&a.leases[i]) > t.now
		}
		if !live && t.now >= a.backoffUntil && t.now >= a.nobodyUntil &&
			!slices.ContainsFunc(a.failed, func(f failed) bool { return t.now < f.until }) {
			t.deactivate(s)
			return
		}
	}
	a.due = due
	switch {
	case due == math.MaxInt64:
		if a.heap >= 0 {
			heap.Remove(&t.due, a.heap)
		}
	case a.heap >= 0:
		heap.Fix(&t.due, a.heap)
	default:
		heap.Push(&t.due, s)
	}
}
