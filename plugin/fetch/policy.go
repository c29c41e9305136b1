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
	looking  bool      // the swarm has not said yet what peers and spread are
	peers    bool      // a connected peer may deliver, or a known one may still connect
	spread   bool      // the connected peers have together all that is missing
	lost     bool      // every source has failed, and trackers, who were told so, know no other
	writing  bool      // another session of this node writes the blob
	wrote    time.Time // since when; the last one, if there are several
	lease    bool      // this node holds the lease, no session has taken it, and this one may
	draining bool      // the agent is being stopped

	verified int64         // bytes, wherever they are
	began    time.Time     // when the first of them came since somebody waits; zero: none has
	rate     float64       // bytes per second of late, from the swarm
	mean     float64       // bytes per second since somebody waits
	lately   float64       // bytes per second in the last half second
	inAll    float64       // bytes per second of late from the swarm, of all blobs
	asksTurn bool          // the swarm has not said yet whether this one waits for its turn
	upstream float64       // bytes per second that the registry gives this node in all
	sharing  int           // blobs that sessions of this node wait for or write, this one included
	used     time.Duration // how long the session would have had the registry for itself by now, see grace
	paced    bool          // the tracker that grants leases gives them to those whose sources are slow, in turn
	ignored  time.Time     // since when it has not answered that they are; zero: it has, or was not told

	foreign       bool // what there is may come from another registry, and be false
	own           bool // somebody brings it from the session's own
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
	slow   bool          // if !answer: the trackers are to hear that the sources are slow
}

// Outcome labels how a session's waiting ended.
type Outcome string

const (
	OutcomeComplete Outcome = "complete" // the swarm or the disk had all of it
	OutcomeLease    Outcome = "lease"    // this node downloads it for the cluster
	OutcomeNobody   Outcome = "nobody"   // nobody could have it
	OutcomeStalled  Outcome = "stalled"  // no verified byte for too long
	OutcomeSlow     Outcome = "slow"     // the registry is faster than what there is
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
	case s.lease && s.prefix < s.size && (!s.getsOn() || s.slow()):
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
	if s.lease && s.prefix >= s.size {
		return decision{wait: left} // for this node's disk: there is nothing to fetch for anybody
	}
	if s.lost && s.verdict == tracker.Sources && !s.writing {
		return s.fallBack(OutcomeNobody)
	}
	if d, ok := s.hurry(); ok {
		d.wait = min(d.wait, left)
		return d
	}
	left = min(left, s.unhurried())
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

// A pull is never much worse than without the swarm. If the registry gives this node R bytes a
// second, a blob of S bytes is to be there after 1.2 × S/R + 2 s, whatever the sources do.
//
// So there is a last moment at which the session can still go to the registry and keep that: when
// 0.2 × S/R + 2 s are used up beyond the time that what it need not download, the prefix, is
// worth. Whoever gets the blob in order and as fast as the registry never comes to that moment.
// The others come to it, also those who get it fast, but at random. Then it is decided: if
// the swarm, at the rate of late, is done in time, the session stays with it, for downloading
// again what is there already helps nobody; and as soon as it is not, it goes. What goes on and
// on at a rate that would take several times as long is not waited for until the last moment.
//
// The registry is shared by all blobs that the node is waiting for or downloads. So what
// is counted is not time, but how much of it the session would have had the registry for itself.
const (
	over    = 0.2                     // of S/R
	grace   = 1500 * time.Millisecond // of the 2 s; time counts from then on
	reserve = 500 * time.Millisecond  // the rest: until the registry sends something, and for the end

	// A rate is hopeless if the pull would take so many times what it may, as is seen
	// when bytes have come for a while: at the rate of late, for a swarm may be slow to begin, and
	// at that since the beginning, for it may pause.
	hopeless     = 3
	unlikely     = 2
	seenAfter    = time.Second
	seenForWhile = 500 * time.Millisecond

	// gathered is what containerd collects before it writes any of it. A node that downloads for
	// others may have so much that they do not see yet, and more than that it has not: where
	// nothing came, the rate is at most that. It is judged when grace is over: until then
	// a source may just be slow to begin.
	gathered = 1 << 20

	// heedPatience is how long a tracker that gives leases in turn may take to answer.
	heedPatience = 300 * time.Millisecond
)

// allowed is for how long the session may have used the registry, and unneeded how much of
// that it need not.
func (s situation) allowed() (whole, unneeded time.Duration) {
	at := func(bytes int64) time.Duration { return seconds(float64(bytes) / s.upstream) }
	if !s.noRange && !s.foreign {
		unneeded = at(s.prefix)
	}
	return at(s.size), unneeded
}

// inTime reports whether the swarm is done within so many times what the pull may take, if it
// goes on at this rate.
func (s situation) inTime(rate, times float64) bool {
	if rate <= 0 {
		return false
	}
	whole, _ := s.allowed()
	rest := seconds(float64(s.size-s.verified) / rate / float64(max(s.sharing, 1)))
	return s.used+rest <= seconds(times*((1+over)*whole.Seconds()+reserve.Seconds()))
}

// lastMoment returns when the session has to decide; it moves as the prefix grows.
func (s situation) lastMoment() time.Time {
	whole, unneeded := s.allowed()
	left := seconds(over*whole.Seconds()) + unneeded - s.used
	return later(s.now, s.since.Add(grace)).Add(left * time.Duration(max(s.sharing, 1)))
}

// turnLasts is how long a source that gave others something, or was busy, is believed to
// come to this blob as well: longer than it may tell somebody to come back in, which is two seconds.
const turnLasts = 3 * time.Second

// rates returns at which rate the blob comes, of late, lately and since somebody waits. One that
// waits for its turn at a source loses nothing by that, if what the others get meanwhile is as
// much as the registry would give all of them.
func (s situation) rates() (late, lately, mean float64) {
	late, lately, mean = s.rate, s.lately, s.mean
	if s.asksTurn || s.now.Sub(s.turn) < turnLasts {
		share := s.inAll / float64(max(s.sharing, 1))
		late, lately, mean = max(late, share), max(lately, share), max(mean, share)
	}
	return late, lately, mean
}

// slow reports whether the registry is what keeps the session's time. What another registry than its
// own brings for others may turn out to be false when the last byte has come: nobody waits for that longer
// than grace, unless his own is already asked by somebody, who is as good a source.
func (s situation) slow() bool {
	late, lately, mean := s.rates()
	switch {
	case s.upstream <= 0 || s.verdict == tracker.Wait, s.verdict == tracker.Unknown && s.now.Before(later(s.since, s.asked).Add(s.find)):
		return false // who knows more has not spoken
	case s.now.Before(s.since.Add(seenAfter)):
		return false
	case s.foreign && !s.own && !s.now.Before(s.since.Add(grace)):
		return true
	case s.began.IsZero():
		if waited := s.now.Sub(s.since); waited >= grace && !s.inTime(max(late, gathered/waited.Seconds()), hopeless) {
			return true
		}
	case s.now.Sub(s.began) >= seenForWhile && !s.inTime(lately, hopeless) && !s.inTime(mean, unlikely):
		return true
	}
	return !s.now.Before(s.lastMoment()) && !s.inTime(late, 1)
}

// hurry decides about a session whose sources are slow. Many nodes find that at the same
// time, and if all of them went, the registry would be slow for all. So where a tracker gives
// leases beside slow sources, one node after the other, it is asked: whoever gets one is a
// source of the others. The node decides alone where nobody does that, and where it is its own
// other session that is slow.
func (s situation) hurry() (d decision, ok bool) {
	switch {
	case !s.slow(), s.writing && s.now.Before(s.wrote.Add(leastWindow)): // it has just begun
		return decision{}, false
	case !s.paced || s.writing, !s.ignored.IsZero() && s.now.Sub(s.ignored) >= heedPatience:
		return s.fallBack(OutcomeSlow), true
	case !s.ignored.IsZero():
		return decision{wait: s.ignored.Add(heedPatience).Sub(s.now), slow: true}, true
	}
	return decision{wait: poll, slow: true}, true
}

// unhurried returns when a session whose sources are not slow may find that they are.
func (s situation) unhurried() time.Duration {
	if s.upstream <= 0 {
		return s.stall
	}
	if d := s.since.Add(seenAfter).Sub(s.now); d > 0 {
		return d
	}
	if d := s.lastMoment().Sub(s.now); d > 0 {
		return min(d+time.Millisecond, poll)
	}
	return poll
}

func seconds(s float64) time.Duration { return time.Duration(min(s, 1e6) * 1e9) }

func later(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
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
	if s.noRange || s.foreign || d.offset < 0 {
		d.offset = 0
	}
	return d
}
