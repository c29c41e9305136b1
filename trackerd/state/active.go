package state

import (
	"container/heap"
	"slices"

	"github.com/capelin-io/capelin/control/trackerpb"
	"github.com/capelin-io/capelin/swarm/piece"
)

// active is the part of a swarm that exists while somebody wants the blob or
// fetches it from upstream.
type active struct {
	blob    *trackerpb.Blob // shared by all messages
	wants   []*want
	byAgent map[*agent]*want
	fresh   []*want // arrived in this Step, to be answered at its end
	leases  []lease
	shares  map[string]*holders // by zone
	dealt   []*want             // whose share has changed in this Step
	look    lookup
	avail   availability
	pleas   []*want      // those of wants whose agents were failed by every source they know
	slow    []*want      // those of wants whose agents get too little from theirs
	rescue  availability // while there are sources: what is said to those that none of them delivers to

	lastGrant int64 // when a lease was granted last; 0: none was
	pause     int64 // how long after that no other is granted beside sources that are slow
	slowAt    int64 // when one may be; 0: nobody waits for that

	failed       []failed // nodes that upstream has failed
	backoffUntil int64    // no lease is granted before
	nobodyUntil  int64    // nor before this, and the verdict is NOBODY

	upstream upstream

	window      int64 // when the current window of AddBelow began; 0: no holder has started
	windowBytes int64

	joined  bool  // there are members that wanting agents do not know
	changed bool  // what wanting agents were told is no longer so
	flushAt int64 // when to tell them (more); 0: nothing to tell
	// A flush goes through wants from the end, so many at a time that nobody has to
	// wait long for a verdict meanwhile.
	flushing int  // those not told yet in this flush
	flushAll bool // tell those as well whose samples are full

	due  int64 // when to settle again
	heap int   // position in Tracker.due, or -1
}

// want is an agent that wants the blob.
type want struct {
	agent     *agent
	pos       int // in active.wants
	seq       uint32
	waiting   bool
	grant     bool
	lost      []*agent // sources that have failed the agent, which knows no other
	slow      bool     // what they bring is less than upstream would give it
	answered  bool     // had a lease since it last asked, so its STAT is answered
	tries     int      // leases it had
	kind      trackerpb.Verdict_Kind
	retry     int64 // with WAIT: until when
	hashTold  bool
	share     uint16 // of what comes into its zone from others: see holders
	shareTold uint16
	told      []told
	upstream  upstream // as told
	mismatch  bool     // of a holder, not told yet
}

// told is a peer that an agent was told of.
type told struct {
	agent *agent
	flags uint8
}

// rehash makes every wanting agent be told the hash of the sums again.
func (a *active) rehash() {
	for _, w := range a.wants {
		w.hashTold = false
	}
	a.changed = true
}

// activate returns s.a, made if need be.
func (t *Tracker) activate(s *swarm) *active {
	if s.a == nil {
		s.a = &active{blob: trackerpb.FromID(s.id), byAgent: map[*agent]*want{}, heap: -1}
	}
	return s.a
}

func (t *Tracker) want(a *agent, id piece.ID, m *trackerpb.Want) {
	t.stats.WantsSeen++
	s := t.find(id)
	var w *want
	if s != nil && s.a != nil {
		w = s.a.byAgent[a]
	}
	if w == nil {
		if a.wants < t.cfg.MaxWants {
			s = t.admit(a, id)
		} else {
			s = nil
			t.stats.FullRefused++
		}
		if s == nil {
			t.stats.VerdictsNobody++
			msg := t.send(a)
			msg.Verdicts = append(msg.Verdicts, &trackerpb.Verdict{Blob: trackerpb.FromID(id), Kind: trackerpb.Verdict_KIND_NOBODY, Seq: m.Seq})
			return
		}
		act := t.activate(s)
		w = &want{agent: a, pos: len(act.wants)}
		act.wants = append(act.wants, w)
		act.byAgent[a] = w
		a.wants++
		t.stats.Wants++
		t.setFlags(a, s, fWant, 0)
		act.joined = true
	}
	w.waiting, w.grant, w.seq = m.Waiting, m.Grant, m.Seq
	s.a.plead(w, t.named(m.Lost))
	s.a.hurry(w, m.Slow)
	if m.Waiting && s.a.leaseOf(a) < 0 {
		w.answered = false
	}
	// Two trackers would give two nodes the same share.
	if m.Grant {
		t.deal(s, w)
	} else {
		t.pass(s, w)
	}
	t.refresh(s, w)
	t.touch(s)
}

// refresh makes w get a verdict at the end of this Step, news or not.
func (t *Tracker) refresh(s *swarm, w *want) {
	w.kind = trackerpb.Verdict_KIND_UNSPECIFIED
	if !slices.Contains(s.a.fresh, w) {
		s.a.fresh = append(s.a.fresh, w)
	}
}

func (t *Tracker) dropWant(s *swarm, a *agent) {
	w := s.a.byAgent[a]
	if w == nil {
		return
	}
	t.pass(s, w)
	s.a.plead(w, nil)
	s.a.hurry(w, false)
	last := len(s.a.wants) - 1
	s.a.wants[w.pos] = s.a.wants[last]
	s.a.wants[w.pos].pos = w.pos
	s.a.wants[last] = nil
	s.a.wants = s.a.wants[:last]
	delete(s.a.byAgent, a)
	s.a.fresh = slices.DeleteFunc(s.a.fresh, func(f *want) bool { return f == w })
	a.wants--
	t.stats.Wants--
	t.setFlags(a, s, 0, fWant)
	t.touch(s)
}

// settle decides about a swarm and tells whoever must know at once.
func (t *Tracker) settle(s *swarm) {
	act := s.a
	if act != nil {
		before, rescue := act.avail, act.rescue
		t.decide(s)
		if act.avail != before || act.rescue != rescue {
			if act.avail.kind == trackerpb.Verdict_KIND_SOURCES && before.kind != 0 && before.kind != act.avail.kind {
				act.changed, act.flushAt = true, t.now // nobody who waited must wait for the first source's name
			}
			for _, w := range act.wants {
				t.verdict(s, w)
			}
		}
		for _, w := range act.pleas {
			was := w.kind
			if t.verdict(s, w); w.kind == trackerpb.Verdict_KIND_SOURCES && w.kind != was {
				t.fill(s, w) // it waits for a name
			}
		}
		for _, w := range act.fresh {
			t.fill(s, w)
			t.verdict(s, w)
		}
		for _, w := range act.dealt {
			if w.share != w.shareTold && act.byAgent[w.agent] == w {
				t.fill(s, w)
			}
		}
		clear(act.dealt)
		act.dealt = act.dealt[:0]
		clear(act.fresh)
		act.fresh = act.fresh[:0]
		t.flush(s)
		t.schedule(s)
	}
	if s.a == nil && len(s.members) == 0 {
		t.remove(s)
		t.swarms[s.slot] = nil
		t.freeSwarm = append(t.freeSwarm, s.slot)
	}
}

// flush tells wanting agents what they do not know yet, when it is time.
func (t *Tracker) flush(s *swarm) {
	a := s.a
	if a.flushAt == 0 && (a.joined || a.changed) {
		a.flushAt = t.now + int64(t.cfg.FlushInterval) + int64(len(a.wants))*50_000
	}
	if a.flushAt == 0 || a.flushAt > t.now {
		return
	}
	if a.flushing == 0 {
		a.flushing, a.flushAll = len(a.wants), a.changed
		a.joined, a.changed = false, false
	}
	a.flushing = min(a.flushing, len(a.wants))
	for n := 0; a.flushing > 0 && n < flushChunk; n++ {
		a.flushing--
		if w := a.wants[a.flushing]; a.flushAll || len(w.told) < t.cfg.Sample {
			t.fill(s, w)
		}
	}
	a.flushAt = 0
	if a.flushing > 0 {
		a.flushAt = t.now + flushPause
	} else if a.joined || a.changed {
		a.flushAt = t.now + int64(t.cfg.FlushInterval) + int64(len(a.wants))*50_000
	}
}

const (
	flushChunk = 1000      // agents told in one Step
	flushPause = 1_000_000 // ns between two such Steps
)

// limitRetry is how often a swarm is looked at whose waiting agents all hold as
// many un-started leases as they may.
const limitRetry = 250_000_000 // ns

// deactivate ends leases that nobody waits for and forgets complete members
// beyond Enough, now that no agent was told of them.
func (t *Tracker) deactivate(s *swarm) {
	for i := len(s.a.leases) - 1; i >= 0; i-- {
		if s.a.leases[i].started {
			t.stats.LeasesStalled++
		} else {
			t.stats.LeasesUnstarted++
		}
		t.endLease(s, i, "nobody waits")
	}
	if s.a.heap >= 0 {
		heap.Remove(&t.due, s.a.heap)
	}
	s.a = nil
	for i := s.complete; i > t.cfg.Enough; i-- {
		j := t.rng.IntN(s.complete)
		a := t.agents[s.members[j].agent]
		if a.isOrigin() {
			continue
		}
		t.enough(a, s.id)
		t.setFlags(a, s, 0, ^uint8(0))
	}
}
