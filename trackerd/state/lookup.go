package state

import (
	"slices"

	"github.com/capelin-io/capelin/control/ring"
	"github.com/capelin-io/capelin/control/trackerpb"
)

// maxAsked is how many origins are asked for one blob: as many as replicas are
// kept of it by default.
const maxAsked = 3

// lookup is the question to origins whether they have a blob that nobody
// announced, or can get it: most of what they have lies in their storage and is
// not announced.
type lookup struct {
	asked []*agent // those that have not answered yet; none: no look-up is running
	until int64    // when a running one is given up
	again int64    // no other one begins before; 0: at any time
}

// ask begins a look-up of a wanted blob, unless there was one lately, and reports
// whether one is running. Only the tracker that grants the lease asks: an origin
// announces to both.
func (t *Tracker) ask(s *swarm) bool {
	l := &s.a.look
	if len(l.asked) > 0 {
		return true
	}
	if t.cfg.Lookup < 0 || t.now < l.again || !slices.ContainsFunc(s.a.wants, func(w *want) bool { return w.grant }) {
		return false
	}
	l.again = t.now + int64(t.cfg.LookupAgain)
	members := make([]ring.Member, 0, len(t.origins))
	for _, o := range t.origins {
		if t.flags(o, s)&fWant == 0 { // who asks for it does not have it
			members = append(members, ring.Member{Name: o.hello.Node, Zone: o.hello.Zone})
		}
	}
	for _, m := range ring.Place(members, s.id.Digest(), maxAsked) {
		t.askOrigin(s, t.byNode[m.Name])
	}
	if len(l.asked) == 0 {
		return false
	}
	l.until = t.now + int64(t.cfg.Lookup)
	t.stats.Lookups++
	return true
}

func (t *Tracker) askOrigin(s *swarm, o *agent) {
	s.a.look.asked = append(s.a.look.asked, o)
	m := t.send(o)
	m.Lookups = append(m.Lookups, s.a.blob)
}

// asked reports whether a owes an answer about s.
func (s *swarm) asked(a *agent) bool { return s.a != nil && slices.Contains(s.a.look.asked, a) }

// found ends the look-up of s if o was asked: it has the blob, or part of it.
func (t *Tracker) found(s *swarm, o *agent) {
	if s.asked(o) {
		t.stats.LookupsFound++
		s.a.look.asked = nil
	}
}

// notHere takes in that o does not have the blob. The look-up ends with the last
// one that says so.
func (t *Tracker) notHere(s *swarm, o *agent) {
	if !s.asked(o) {
		return
	}
	l := &s.a.look
	l.asked = slices.DeleteFunc(l.asked, func(a *agent) bool { return a == o })
	if len(l.asked) == 0 {
		t.stats.LookupsMissed++
		t.touch(s)
	}
}

// giveUp ends a look-up that has taken too long.
func (t *Tracker) giveUp(s *swarm) {
	if l := &s.a.look; len(l.asked) > 0 && t.now >= l.until {
		t.stats.LookupsLate++
		l.asked = nil
	}
}

// originConnected makes o be asked as well for what is being looked up, and everything
// that was not found be looked up anew.
func (t *Tracker) originConnected(o *agent) {
	t.origins = append(t.origins, o)
	for _, s := range t.due { // every blob that was looked up lately is there, for lookup.again
		switch l := &s.a.look; {
		case len(l.asked) > 0:
			t.askOrigin(s, o)
		case l.again > 0:
			l.again = 0
			t.touch(s)
		}
	}
}

// originGone makes nobody wait for o's answers.
func (t *Tracker) originGone(o *agent) {
	t.origins = slices.DeleteFunc(t.origins, func(a *agent) bool { return a == o })
	for _, s := range t.due {
		t.notHere(s, o)
	}
}

// promised reports whether an origin has part of the blob and means to have all of
// it soon. One that wants the blob itself depends on others for that.
func (t *Tracker) promised(s *swarm) bool {
	return slices.ContainsFunc(s.origins, func(o *agent) bool { return t.flags(o, s)&fWant == 0 })
}

// isOrigin reports whether a is an origin.
func (a *agent) isOrigin() bool { return a.hello.Role == trackerpb.Role_ROLE_ORIGIN }
