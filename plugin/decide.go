package plugin

import "time"

// tail is what containerd downloads itself of a blob that the registry has to
// authorize: one ranged request (DESIGN 6.15).
const tail = 64 << 10

// verdict is what the trackers say of a blob that this node wants.
type verdict int

const (
	verdictUnknown     verdict = iota // no answer yet
	verdictSources                    // somebody has it or is getting it
	verdictLease                      // this node is to fetch it upstream
	verdictNobody                     // nobody could have it
	verdictWait                       // the tracker is too young to know
	verdictUnreachable                // no tracker answers
)

func (v verdict) String() string {
	switch v {
	case verdictUnknown:
		return "unknown"
	case verdictSources:
		return "sources"
	case verdictLease:
		return "lease"
	case verdictNobody:
		return "nobody"
	case verdictWait:
		return "wait"
	case verdictUnreachable:
		return "unreachable"
	}
	return "invalid"
}

// situation is what decides how a waiting session is answered.
type situation struct {
	size     int64
	prefix   int64 // bytes verified without a gap from 0
	complete bool  // all of it verified and durable

	now      time.Time
	since    time.Time // when the session began to wait
	asked    time.Time // when the trackers were last asked
	progress time.Time // when the last byte was verified; zero: none since the fetch began

	verdict  verdict
	peers    bool // a connected peer may deliver, or a known one may still connect
	spread   bool // the connected peers have together all that is missing
	writing  bool // another session of this node writes the blob
	lease    bool // this node holds the lease, no session has taken it, and this one may
	draining bool // the agent is being stopped

	noRange       bool // a session that was told to continue at N > 0 brought nothing
	authorizeBlob bool

	find  time.Duration // how long to look for a source
	stall time.Duration // how long to wait for a verified byte
}

// decision answers a session, or says how long nothing can change by time alone.
type decision struct {
	answer bool
	offset int64         // where containerd is to continue; size: it has everything
	lease  bool          // the session takes the lease
	why    outcome       // for metrics
	wait   time.Duration // if !answer: decide again after that at the latest
}

// outcome labels how a session's waiting ended.
type outcome string

const (
	outcomeComplete outcome = "complete" // the swarm or the disk had all of it
	outcomeLease    outcome = "lease"    // this node downloads it for the cluster
	outcomeNobody   outcome = "nobody"   // nobody could have it
	outcomeStalled  outcome = "stalled"  // no verified byte for too long
	outcomeAlone    outcome = "alone"    // no tracker answers and no peer is known
	outcomeStopping outcome = "stopping" // the agent is being stopped
	outcomeSmall    outcome = "small"    // authorize = "blob", and the blob is not longer than the tail
	outcomeGone     outcome = "gone"     // the client went away
	outcomeFailed   outcome = "failed"   // an error of ours, such as a full disk
)

// decide is the policy of DESIGN 6.4 and 6.8: a session waits while somebody
// could deliver and bytes keep coming, and is otherwise sent to the registry for
// what is missing.
func decide(s situation) decision {
	switch {
	case s.authorizeBlob && s.size <= tail:
		return decision{answer: true, why: outcomeSmall}
	case s.complete:
		return decision{answer: true, offset: s.completeOffset(), why: outcomeComplete}
	case s.draining:
		return s.fallBack(outcomeStopping)
	case s.lease && !s.getsOn():
		d := s.fallBack(outcomeLease)
		d.lease = true
		return d
	}

	last := s.since
	if s.progress.After(last) {
		last = s.progress
	}
	left := last.Add(s.stall).Sub(s.now)
	if left <= 0 {
		return s.fallBack(outcomeStalled)
	}
	if s.writing || s.peers {
		return decision{wait: left}
	}
	switch s.verdict {
	case verdictSources, verdictWait:
		return decision{wait: left}
	case verdictNobody:
		return s.fallBack(outcomeNobody)
	case verdictUnreachable:
		return s.fallBack(outcomeAlone)
	}
	asked := s.since
	if s.asked.After(asked) {
		asked = s.asked
	}
	if d := asked.Add(s.find).Sub(s.now); d > 0 {
		return decision{wait: min(d, left)}
	}
	return s.fallBack(outcomeAlone)
}

// leasePatience is how long after a verified byte a lease waits for the next one,
// if the peers have all that is missing, or had it so long ago.
const leasePatience = time.Second

// getsOn reports whether the swarm needs no upstream: the last that had the whole
// blob is gone, but its pieces are not.
func (s situation) getsOn() bool {
	return s.peers && s.spread && s.now.Sub(s.progress) < leasePatience
}

// completeOffset is the answer for a blob that is all there.
func (s situation) completeOffset() int64 {
	switch {
	case !s.authorizeBlob:
		return s.size
	case s.noRange:
		return 0
	}
	return s.size - tail
}

func (s situation) fallBack(why outcome) decision {
	d := decision{answer: true, offset: s.prefix, why: why}
	if s.authorizeBlob {
		d.offset = min(d.offset, s.size-tail)
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
