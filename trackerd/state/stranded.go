package state

import (
	"slices"

	"github.com/capelin-io/capelin/control/trackerpb"
)

// This file is about agents that no source delivers to, though there are some. What an
// agent says of who fails it changes what it is told itself, and nobody else: a liar
// unlists nobody.

// plead notes which sources have failed w's agent, which knows no other.
func (a *active) plead(w *want, lost []*agent) {
	switch {
	case len(lost) > 0 && len(w.lost) == 0:
		a.pleas = append(a.pleas, w)
	case len(lost) == 0 && len(w.lost) > 0:
		a.pleas = slices.DeleteFunc(a.pleas, func(o *want) bool { return o == w })
	}
	w.lost = lost
}

// named returns the connected agents of these names: others are no sources.
func (t *Tracker) named(nodes []string) (all []*agent) {
	for _, n := range nodes {
		if a := t.byNode[n]; a != nil {
			all = append(all, a)
		}
	}
	return all
}

// reaches reports whether a can deliver to w, as far as w has told.
func (w *want) reaches(a *agent) bool {
	return a != w.agent && a.reachable(w.agent) && (len(w.lost) == 0 || !slices.Contains(w.lost, a))
}

// delivers reports whether a source of the blob is one that may says can deliver.
func (t *Tracker) delivers(s *swarm, may func(*agent) bool) bool {
	for _, m := range s.members[:s.complete] {
		if may(t.agents[m.agent]) {
			return true
		}
	}
	return slices.ContainsFunc(s.origins, func(o *agent) bool { return t.flags(o, s)&fWant == 0 && may(o) }) ||
		slices.ContainsFunc(s.a.leases, func(l lease) bool { return t.leaseDeadline(&l) > t.now && may(l.agent) })
}

// stranded reports whether none of the blob's sources can deliver to w, which has it not.
func (t *Tracker) stranded(s *swarm, w *want) bool {
	return t.flags(w.agent, s)&(fComplete|fLease) == 0 && !t.delivers(s, w.reaches)
}

// rescue grants leases to stranded agents, beside the sources that fail them, until the
// others have one of the holders as a source; and says what the rest is told. Before that, origins
// that were not asked for the blob yet are.
func (t *Tracker) rescue(s *swarm) {
	a := s.a
	a.rescue = availability{kind: trackerpb.Verdict_KIND_NOBODY}
	among := a.pleas
	if !t.delivers(s, func(o *agent) bool { return o.hello.Addr != "" }) {
		among = a.wants // they cannot know whom they do not reach: nobody is named
	}
	may := func(w *want) bool { return w.waiting && w.grant && t.stranded(s, w) }
	if !slices.ContainsFunc(among, may) {
		return
	}
	wait := func(until int64) { a.rescue = availability{kind: trackerpb.Verdict_KIND_WAIT, until: until} }
	switch warm := t.warmEnd(); {
	case t.now < warm:
		wait(warm)
	case t.ask(s):
		wait(a.look.until)
	case t.now < a.nobodyUntil:
	case t.now < a.backoffUntil:
		wait(a.backoffUntil)
	default:
		for w, _ := t.candidate(s, among, may); w != nil; w, _ = t.candidate(s, among, may) {
			t.endStale(s)
			if len(a.leases) >= t.cfg.MaxHolders {
				return
			}
			t.grant(s, w)
			a.flushAt = t.now // nobody who waited must wait for its name
		}
	}
}
