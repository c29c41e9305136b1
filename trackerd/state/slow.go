package state

import "slices"

// This file is about agents whose sources deliver, but less than upstream would give them.
// Who says so gets a lease beside the sources: it is then one more of them, as fast as upstream
// is for it, and the others may do without. So the next one that says so gets one only when
// the last had time to show itself, and that time grows. When it is upstream
// that has become slow, for all of them, few download it beside each other; when one was granted a
// lease whose upstream is slow, on purpose even, the others wait some seconds, not for ever.

const (
	slower       = 4   // times as long is the pause after each
	longestPause = 256 // times Config.SlowPause, at most
)

// hurry notes whether what w's agent gets is too slow for it.
func (a *active) hurry(w *want, slow bool) {
	switch {
	case slow && !w.slow:
		a.slow = append(a.slow, w)
	case !slow && w.slow:
		a.slow = slices.DeleteFunc(a.slow, func(o *want) bool { return o == w })
	}
	w.slow = slow
}

// relieve grants a lease to one of those who get too little, if it is time, or finds out when.
func (t *Tracker) relieve(s *swarm) {
	a := s.a
	a.slowAt = 0
	if len(a.slow) == 0 {
		return
	}
	w, limited := t.candidate(s, a.slow, nil)
	if w == nil {
		if limited || slices.ContainsFunc(a.slow, func(w *want) bool { return a.refused(w.agent.hello.Node, t.now) }) {
			a.slowAt = t.now + limitRetry
		}
		return
	}
	first := int64(t.cfg.SlowPause)
	if a.lastGrant == 0 || t.now-a.lastGrant > 2*longestPause*first {
		a.pause = first
	}
	at := max(a.backoffUntil, a.nobodyUntil, t.warmEnd())
	if a.lastGrant != 0 {
		at = max(at, a.lastGrant+max(a.pause, first))
	}
	if t.now < at {
		a.slowAt = at
		return
	}
	t.stats.LeasesAdded++
	t.grant(s, w)
	a.pause = min(slower*max(a.pause, first), longestPause*first)
	a.flushAt = t.now // nobody who waits must wait for its name
}
