package fetch

import (
	"time"

	"github.com/capelin-io/capelin/control/tracker"
)

// Tail is what containerd downloads itself of a blob that the registry has to
// authorize: one ranged request.
const Tail = 64 << 10

// situation is what decides how a waiting session is answered.
type situation struct {
	size     int64
	prefix   int64 // bytes verified without a gap from 0
	complete bool  // all of it verified and durable

	now      time.Time
	since    time.Time // when the session began to wait
	asked    time.Time // when the trackers were last asked
	progress time.Time // when the last byte was verified; zero: none since the fetch began
	turn     time.Time // when a peer that has something of it last gave bytes of any blob, or said that it is busy
	reach    int64     // bytes without a gap from 0 that this node and connected peers have together

	verdict  tracker.VerdictKind
	looking  bool // the swarm has not said yet what peers and spread are
	peers    bool // a connected peer may deliver, or a known one may still connect
	spread   bool // the connected peers have together all that is missing
	lost     bool // every source has failed, and trackers, who were told so, know no other
	writing  bool // another session of this node writes the blob
	lease    bool // this node holds the lease, no session has taken it, and this one may
	draining bool // the agent is being stopped

	noRange       bool // the registry is not to be asked to continue at an offset
	asking        bool // which registry that is will be said, if it can be found out
	authorizeBlob bool

	find  time.Duration // how long to look for a source
	stall time.Duration // how long to wait for a verified byte
}

// decision answers a session, or says how long nothing can change by time alone.
type decision struct {
	answer bool
	offset int64         // where containerd is to continue; size: it has everything
	lease  bool          // the session takes the lease
	why    Outcome       // for metrics
	wait   time.Duration // if !answer: decide again after that at the latest
}

// Outcome labels how a session's waiting ended.
type Outcome string

const (
	OutcomeComplete Outcome = "complete" // the swarm or the disk had all of it
	OutcomeLease    Outcome = "lease"    // this node downloads it for the cluster
	OutcomeNobody   Outcome = "nobody"   // nobody could have it
	OutcomeStalled  Outcome = "stalled"  // no verified byte for too long
	OutcomeAlone    Outcome = "alone"    // no tracker answers and no peer is known
	OutcomeStopping Outcome = "stopping" // the agent is being stopped
	OutcomeSmall    Outcome = "small"    // authorize = "blob", and the blob is not longer than the tail
	OutcomeGone     Outcome = "gone"     // the client went away
	OutcomeFailed   Outcome = "failed"   // an error of ours, such as a full disk
)

// namePatience is how long a session that could be told to continue at an offset waits to
// hear which registry would have to.
const namePatience = 200 * time.Millisecond

// decide is the policy: a session waits while somebody could deliver and bytes keep
// coming, and is otherwise sent to the registry for what is missing.
func decide(s situation) decision {
	d := s.decide()
	if left := s.since.Add(namePatience).Sub(s.now); d.answer && d.offset > 0 && d.offset < s.size && s.asking && !s.draining && left > 0 {
		return decision{wait: left}
	}
	return d
}

func (s situation) decide() decision {
	switch {
	case s.authorizeBlob && s.size <= Tail:
		return decision{answer: true, why: OutcomeSmall}
	case s.complete:
		return decision{answer: true, offset: s.completeOffset(), why: OutcomeComplete}
	case s.draining:
		return s.fallBack(OutcomeStopping)
	case s.lease && !s.getsOn():
		d := s.fallBack(OutcomeLease)
		d.lease = true
		return d
	}

	last := s.since
	for _, t := range []time.Time{s.progress, s.turn} { // who waits for his turn is not stalled
		if t.After(last) {
			last = t
		}
	}
	left := last.Add(s.stall).Sub(s.now)
	if left <= 0 {
		return s.fallBack(OutcomeStalled)
	}
	if s.lost && s.verdict == tracker.Sources && !s.writing {
		return s.fallBack(OutcomeNobody)
	}
	if s.writing || s.peers || s.looking {
		return decision{wait: left}
	}
	switch s.verdict {
	case tracker.Sources, tracker.Wait:
		return decision{wait: left}
	case tracker.Nobody:
		return s.fallBack(OutcomeNobody)
	case tracker.Unreachable:
		return s.fallBack(OutcomeAlone)
	}
	asked := s.since
	if s.asked.After(asked) {
		asked = s.asked
	}
	if d := asked.Add(s.find).Sub(s.now); d > 0 {
		return decision{wait: min(d, left)}
	}
	return s.fallBack(OutcomeAlone)
}

// leasePatience is how long after a verified byte a lease waits for the next one,
// if the peers have all that is missing, or had it so long ago, or have what comes next.
const leasePatience = time.Second

// getsOn reports whether the swarm needs no upstream, or may need none: the last that
// had the whole blob is gone, but its pieces are not. Or it needs less of it later: peers have
// what the client would download first.
func (s situation) getsOn() bool {
	return (s.looking || s.peers && (s.spread || s.prefix < s.reach)) && s.now.Sub(s.progress) < leasePatience
}

// completeOffset is the answer for a blob that is all there.
func (s situation) completeOffset() int64 {
	switch {
	case !s.authorizeBlob:
		return s.size
	case s.noRange:
		return 0
	}
	return s.size - Tail
}

func (s situation) fallBack(why Outcome) decision {
	d := decision{answer: true, offset: s.prefix, why: why}
	if s.authorizeBlob {
		d.offset = min(d.offset, s.size-Tail)
	}
	// Nothing but the commit may follow an answer of size, and that needs
	// complete.
	if d.offset >= s.size {
		d.offset = s.size - 1
	}
	if s.noRange || d.offset < 0 {
		d.offset = 0
	}
	return d
}
