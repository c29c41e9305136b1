package fetch

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/containerd/errdefs"

	"github.com/capelin-io/capelin/control/tracker"
	"github.com/capelin-io/capelin/plugin/registries"
	"github.com/capelin-io/capelin/swarm"
	"github.com/capelin-io/capelin/swarm/piece"
)

// Errors that a fetch gives to trackers and sessions.
var (
	// ErrNotWritten ends the writing of a session whose client closed it too early.
	ErrNotWritten = errors.New("containerd did not download the whole blob")
	// ErrGivenUp ends what nobody wants any more.
	ErrGivenUp = fmt.Errorf("the pull was given up: %w", context.Canceled)
	// ErrNoWaiter gives a lease back that came too late.
	ErrNoWaiter = fmt.Errorf("no client waits for the blob any more: %w", context.Canceled)
	// ErrStopped answers a session that waits when everything ends.
	ErrStopped = fmt.Errorf("the agent stops: %w", errdefs.ErrUnavailable)
)

const (
	// poll is how often the swarm is asked for peers that come and go without a word, and a
	// disk that could not complete a blob is asked again.
	poll = 250 * time.Millisecond
	// maxFound is how many of the peers that trackers named are kept until the blob is
	// joined. A tracker names a few dozen.
	maxFound = 200
	// behind is what is added to the priority of blobs that nobody waits for.
	behind = 1 << 16
)

// fetch is the state of one blob's fetch.
type fetch struct {
	id       piece.ID
	opening  Opening
	started  time.Time
	sessions []*session // in the order in which they opened
	ahead    ahead
	disk     disk
	swarm    part
	pace     pace
	question question
	lease    lease
	hurries  bool      // a session waits whose sources are slow
	busy     bool      // a session waits or writes
	due      time.Time // when time alone changes something; zero: never
}

// session is one client that has the blob open.
type session struct {
	id         SessionID
	authorized bool
	state      sessionState
	since      time.Time     // waiting, writing: since when
	graced     bool          // waiting: grace is over
	shared     time.Duration // waiting: the Machine's when it was
	offset     int64         // writing: from where
	brought    int64         // writing: how many bytes
	lease      bool          // writing: for the whole cluster

	registry string // where it downloads from; empty: not known
	asking   bool   // that will be said
	download registries.Download
}

type sessionState uint8

const (
	idle    sessionState = iota
	waiting              // → idle, writing
	writing              // → idle
)

// ahead is a prefetch.
type ahead struct {
	until    time.Time // zero: none
	priority int
}

// disk is what is known of the blob on disk.
type disk struct {
	open       bool
	have       Progress
	progress   time.Time // when Verified last grew
	written    int64     // bytes that sessions wrote
	failed     error     // the disk cannot take the blob
	completing bool
	emptying   bool      // ActEmpty is under way: nobody is answered
	distrust   bool      // afterwards the registry alone is believed
	retry      time.Time // when completing may be tried again
}

// part is the part that is taken in the blob's swarm.
type part struct {
	joined   bool
	join     uint64 // the last ActJoin; only the end of that counts
	as       swarm.JoinOptions
	proven   bool             // the swarm knows that the blob is whole
	gaveUp   bool             // it cannot deliver the blob
	found    []swarm.PeerInfo // named by trackers, and not handed to it yet
	share    uint16           // of what comes into the zone
	shareDue bool             // it was not told

	// What it can do for those who wait, see look.
	asked    bool      // ActSwarmStatus is under way
	stale    bool      // something has happened since that it had to hear first
	lookedAt time.Time // when it last said; zero: it has not, since it matters
	upTo     int64     // then: swarm.BlobStatus.Reach
	turn     time.Time // then: swarm.BlobStatus.Waits
	reach    bool      // then: a connected peer may deliver, or a known one may still connect
	spreadAt time.Time // when its peers last had together all that is missing
	doubt    bool      // its last source may have failed: what it says matters though trackers know sources
	lost     []string  // then: its sources, all of which have failed; none: it has one
	pleaded  bool      // the trackers were told so

	doubtful   bool     // what it has stored may be false
	registries []string // that it may come from, see tracker.Upstream
	disowned   bool     // it does come from one that sent something else
}

// question is what the trackers were told and answered.
type question struct {
	want    want
	ask     uint64 // of the last Want; only answers to that count
	asked   time.Time
	verdict tracker.VerdictKind
	usedUp  bool      // the verdict is: ask again
	slow    bool      // they were told that the sources are
	slowAt  time.Time // when that changed last
	paced   bool      // one grants leases in turn to those whose sources are slow,
	heard   bool      // and has answered the last Want
	partial bool      // what there is was announced
}

type want uint8

const (
	wantNothing want = iota
	wantSome         // peers
	wantWaiting      // peers, or a lease
)

// lease is who may fetch the blob upstream for the cluster.
type lease uint8

const (
	leaseNone    lease = iota // somebody else, or nobody
	leaseGranted              // this node: no session has taken it
	leaseTaken                // this node: a session has, and writes
)

func (f *fetch) count(s sessionState) (n int) {
	for _, ses := range f.sessions {
		if ses.state == s {
			n++
		}
	}
	return n
}

func (f *fetch) session(id SessionID) *session {
	if i := slices.IndexFunc(f.sessions, func(s *session) bool { return s.id == id }); i >= 0 {
		return f.sessions[i]
	}
	return nil
}

// settled reports whether nothing more is to come of the blob.
func (f *fetch) settled() bool { return f.disk.have.Whole || f.disk.failed != nil }

// expected reports whether a prefetch is under way.
func (f *fetch) expected(now time.Time) bool { return now.Before(f.ahead.until) }

// isDue reports whether time has come to change something.
func (f *fetch) isDue(now time.Time) bool { return !f.due.IsZero() && !f.due.After(now) }

// take takes an event about the fetch in.
func (m *Machine) take(f *fetch, ev Event) {
	switch ev := ev.(type) {
	case EvSessionOpened:
		f.sessions = append(f.sessions, &session{id: ev.Session, authorized: ev.Authorized, registry: ev.Registry, asking: ev.Asking})
	case EvRegistry:
		if s := f.session(ev.Session); s != nil {
			s.registry, s.asking = ev.Registry, false
		}
	case EvSessionWaits:
		if s := f.session(ev.Session); s != nil && s.state == idle {
			s.state, s.since, s.graced = waiting, m.now, false
		}
	case EvSessionWrites:
		if s := f.session(ev.Session); s != nil && s.state == idle {
			s.writes(m.now, Answer{})
		}
	case EvSessionWrote:
		m.wrote(f, ev)
	case EvSessionEnded:
		if s := f.session(ev.Session); s != nil {
			m.ended(f, s, ev.Err)
		}
	case EvSessionClosed:
		if s := f.session(ev.Session); s != nil {
			m.ended(f, s, ErrGivenUp)
			f.sessions = slices.DeleteFunc(f.sessions, func(x *session) bool { return x == s })
		}
	case EvDiskFailed:
		f.fails(ev.Err)
	case EvProgress, EvOpenFailed, EvCompleted:
		m.diskSays(f, ev)
	case EvSwarmDone:
		if ev.Join == f.swarm.join {
			f.swarmDone(ev.Err)
		}
	case EvNoSource:
		f.swarm.doubt, f.swarm.stale = true, true
	case EvDoubt:
		f.swarm.doubtful = ev.On
	case EvEmptied:
		if ev.Opening == f.opening {
			m.emptied(f)
		}
	case EvSwarmStatus:
		if ev.Opening == f.opening {
			m.looked(f, ev.Status)
		}
	case EvVerdict:
		// An answer to an earlier Want crossed with this one: «nobody», said while no
		// session waited, would send one to the registry that was about to get a source.
		// Trackers answer each Want, a lease that stands included.
		if ev.Ask != f.question.ask {
			return
		}
		f.question.verdict, f.swarm.stale = ev.Verdict, true
		f.question.heard, f.question.paced = ev.Heard, ev.Paced
		switch { // it moves on if it was not taken
		case f.lease == leaseNone && ev.Verdict == tracker.Lease:
			f.lease = leaseGranted
		case f.lease == leaseGranted && ev.Verdict != tracker.Lease:
			f.lease = leaseNone
		}
	case EvPeersFound:
		f.swarm.found = append(f.swarm.found, ev.Peers...)
		f.swarm.found = f.swarm.found[max(0, len(f.swarm.found)-maxFound):]
	case EvShareTold:
		f.swarm.share, f.swarm.shareDue = ev.Share, true
	case EvUpstream:
		f.swarm.registries = ev.Upstream.Registries
		f.swarm.disowned = f.swarm.disowned || ev.Upstream.Mismatch
	case EvPrefetch:
		f.ahead = ahead{until: m.now.Add(m.rules.Prefetch), priority: ev.Priority}
	case EvProlong:
		if !f.ahead.until.IsZero() {
			f.ahead.until = m.now.Add(m.rules.Prefetch)
		}
	case EvAbandon:
		f.ahead.until = time.Time{}
	}
}

// writes makes a session one that writes.
func (s *session) writes(now time.Time, a Answer) {
	s.since = now
	s.state, s.offset, s.brought, s.lease, s.download = writing, a.Offset, 0, a.Lease, registries.Download{}
}

func (m *Machine) wrote(f *fetch, ev EvSessionWrote) {
	f.disk.written += ev.Bytes
	s := f.session(ev.Session)
	if s == nil {
		return
	}
	s.brought += ev.Bytes
	m.registries.Brought(s.registry, &s.download, ev.Bytes, m.now)
	if m.trackers {
		m.act(ActLeaseProgress{ID: f.id, Bytes: ev.Offset, Registry: s.registry})
	}
}

// ended ends what a session does. An answer may have crossed with its end.
func (m *Machine) ended(f *fetch, s *session, err error) {
	was := s.state
	s.state = idle
	switch was {
	case waiting:
		m.act(ActAnswer{ID: f.id, Session: s.id, Err: err, Why: OutcomeGone, Waited: m.now.Sub(s.since), Verdict: f.question.verdict})
	case writing:
		m.remember(f, s, err)
		if errors.Is(err, piece.ErrMismatch) && s.offset == 0 && s.brought >= f.id.Offset(f.id.Pieces()-1) {
			err = fmt.Errorf("%w: %w", tracker.ErrMismatch, err) // all of it is the registry's own
		}
		if s.lease {
			s.lease = false
			m.endLease(f, err)
		} else if s.brought > 0 && (err == nil || f.count(writing) == 0) {
			m.leaseDone(f.id, err) // trackers hear of every download, since it makes this node a source
		}
	}
}

// remember learns from how a session's writing ended.
func (m *Machine) remember(f *fetch, s *session, err error) {
	m.registries.Over(s.registry, &s.download)
	m.rememberRanges(f, s, err)
	switch {
	case err == nil:
		m.trust(f.id)
	case errors.Is(err, piece.ErrMismatch):
		m.distrusted.Add(f.id, struct{}{})
	}
}

// rememberRanges learns whether the session's registry can continue a blob at an offset.
// containerd does not say why it brought nothing: that is seen when it begins at 0. Who
// downloads by himself knows what is wrong.
func (m *Machine) rememberRanges(f *fetch, s *session, err error) {
	failed, doubted := m.noRange.Peek(f.id)
	closed := errors.Is(err, ErrNotWritten)
	switch {
	case errors.Is(err, piece.ErrMismatch) || s.authorized:
	case s.offset > 0 && s.brought > 0:
		m.registries.Continued(s.registry)
	case s.offset > 0:
		m.noRange.Add(f.id, closed || failed)
		m.registries.Broke(s.registry, m.now)
	case doubted && s.brought == 0 && closed:
		m.noRange.Remove(f.id)
		m.registries.Refused(s.registry)
	case failed && err == nil:
		m.registries.Restored(s.registry, m.now)
	}
}

// trust forgets what went wrong with a blob, since its client has it.
func (m *Machine) trust(id piece.ID) {
	m.noRange.Remove(id)
	m.distrusted.Remove(id)
}

// endLease is where a lease that this node was granted ends, taken or not.
func (m *Machine) endLease(f *fetch, err error) {
	f.lease = leaseNone
	f.question.verdict, f.question.usedUp = tracker.Unknown, true
	m.leaseDone(f.id, err)
}

func (f *fetch) fails(err error) {
	if f.disk.failed == nil {
		f.disk.failed = err
	}
}

// diskSays is where a blob is learned to be whole.
func (m *Machine) diskSays(f *fetch, ev Event) {
	d := &f.disk
	switch ev := ev.(type) {
	case EvProgress:
		if ev.Opening != f.opening {
			return
		}
		p := ev.Progress
		if p.Whole = p.Whole || d.have.Whole; p.Whole {
			p.Verified = f.id.Size
		}
		if d.open && p.Verified > d.have.Verified {
			d.progress = m.now
			if f.count(writing) == 0 {
				m.received += p.Verified - d.have.Verified
				m.taken.note(m.now, m.received)
			}
		}
		d.open, d.have = true, p
	case EvOpenFailed:
		if ev.Opening == f.opening {
			f.fails(ev.Err)
		}
	case EvCompleted:
		if ev.Opening != f.opening {
			return
		}
		d.completing, d.retry = false, m.now.Add(poll)
		if errdefs.IsResourceExhausted(ev.Err) {
			f.fails(ev.Err)
		}
	}
}

// swarmDone takes in that the swarm ended its work.
func (f *fetch) swarmDone(err error) {
	f.swarm.joined = err == nil
	switch {
	case err == nil:
		f.swarm.proven = true
	case errdefs.IsResourceExhausted(err):
		f.fails(err)
	case errors.Is(err, swarm.ErrLeft): // it may be joined anew
	default:
		f.swarm.gaveUp = true
		f.swarm.doubtful = f.swarm.doubtful || errors.Is(err, piece.ErrMismatch)
	}
}

// foreign reports whether what is stored may come from another registry than the session's.
func (m *Machine) foreign(f *fetch, s *session) bool {
	if s.registry == "" || m.distrusted.Contains(f.id) {
		return false
	}
	return slices.ContainsFunc(f.swarm.registries, func(r string) bool { return !registries.Same(r, s.registry) })
}

// mayEmpty reports whether there is something that can be forgotten: neither proven nor what sessions wrote.
func (f *fetch) mayEmpty() bool {
	return f.disk.open && !f.disk.emptying && !f.disk.have.Whole && f.disk.have.Verified > 0 && f.count(writing) == 0
}

// disown forgets what came of a holder whose registry has sent something else. Somebody else is to bring it.
func (m *Machine) disown(f *fetch) {
	if f.swarm.disowned && f.mayEmpty() {
		m.empty(f, false)
	}
	f.swarm.disowned = false
}

// empty has what there is forgotten.
func (m *Machine) empty(f *fetch, distrust bool) {
	f.disk.emptying, f.disk.distrust = true, distrust
	if f.swarm.joined {
		f.swarm.joined, f.swarm.asked = false, false
		m.act(ActLeave{f.id})
	}
	m.act(ActEmpty{f.id})
}

// emptied goes on with nothing. Where the swarm has lied, or may have, the registry alone is believed.
func (m *Machine) emptied(f *fetch) {
	f.disk.emptying, f.swarm.doubtful, f.pace = false, false, pace{}
	if f.disk.distrust {
		m.distrusted.Add(f.id, struct{}{})
	}
}
