package swarm

import (
	"cmp"
	"errors"
	"slices"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// Reason says how a peer has failed as a source.
type Reason string

// The reasons.
const (
	ReasonRefused   Reason = "refused"   // nobody listens there
	ReasonNoRoute   Reason = "no route"  // the network knows no way to it
	ReasonTimeout   Reason = "timeout"   // it does not answer, or its handshake does not end
	ReasonClosed    Reason = "closed"    // the connection ended before the handshake did: it is full or stops, or somebody is in between
	ReasonHandshake Reason = "handshake" // it is somebody else, or does not want us
	ReasonSilent    Reason = "silent"    // it is connected, and what we ask for does not come
	ReasonOther     Reason = "other"
)

// Reasons are all of them.
var Reasons = []Reason{ReasonRefused, ReasonNoRoute, ReasonTimeout, ReasonClosed, ReasonHandshake, ReasonSilent, ReasonOther}

// What a Peer finds out itself.
var (
	errNoAnswer = errors.New("no answer")
	errSilent   = errors.New("connected, and no answer")
)

// Unreachable is a peer that was named as a source and has failed as one: it cannot be
// reached, or it is connected and brings nothing. It is one until it connects or brings
// something.
type Unreachable struct {
	Node   string
	Addr   string // where it was tried; several with commas
	Reason Reason
	Err    error
	Since  time.Time // the first failure in a row
	Next   time.Time // it is not tried again before
	Fails  int       // in a row
}

const (
	// sourceWithin is how long a source may take to connect, or to bring anything of what
	// it was asked for, before it has failed.
	sourceWithin = 1200 * time.Millisecond
	// probeFor is how long one that has failed before is hoped for when it is tried again.
	probeFor = 50 * time.Millisecond

	maxFailures = 1024 // nodes that are remembered
	firstRetry  = 500 * time.Millisecond
	lastRetry   = 2 * time.Minute
	warnEvery   = time.Hour // about one node
)

// failures is which nodes have failed as sources: for the blob at hand, for the next ones
// and for the next pulls. It belongs to the Peer, and outlives blobs and connections.
type failures struct {
	nodes  *simplelru.LRU[string, *failure]
	warned *simplelru.LRU[string, time.Duration] // when a node was reported last
}

// failure is one node's.
type failure struct {
	node, addr string
	others     []string
	reason     Reason
	err        error
	mute       bool // silent: nothing at all is heard of it, so that a word disproves it
	fails      int
	since      time.Duration // the first failure in a row
	next       time.Duration // it is not tried before
	tried      time.Duration // when it was tried last since it failed; never if it was not
}

func newFailures() failures {
	nodes, err := simplelru.NewLRU[string, *failure](maxFailures, nil)
	if err != nil {
		panic(err) // only for a size of 0
	}
	warned, err := simplelru.NewLRU[string, time.Duration](maxFailures, nil)
	if err != nil {
		panic(err)
	}
	return failures{nodes, warned}
}

// of returns a node's failure, or nil.
func (s *failures) of(name string) *failure {
	if s.nodes.Len() == 0 {
		return nil
	}
	f, _ := s.nodes.Peek(name)
	return f
}

// add notes that a node has failed (again); jitter spreads the attempts. warn says that
// it was not reported lately.
func (s *failures) add(
	name, addr string, others []string, why Reason, err error, now time.Duration, jitter func(time.Duration) time.Duration,
) (f *failure, warn bool) {
	f = s.of(name)
	if f == nil {
		f = &failure{node: name, since: now}
	}
	s.nodes.Add(name, f)
	f.addr, f.others, f.reason, f.err, f.mute = addr, others, why, err, false
	f.fails++
	f.next, f.tried = now+jitter(min(firstRetry<<min(f.fails-1, 16), lastRetry)), never
	at, known := s.warned.Peek(name)
	if warn = !known || now-at >= warnEvery; warn {
		s.warned.Add(name, now)
	}
	return f, warn
}

// clear forgets that a node has failed, and reports whether it had.
func (s *failures) clear(name string) bool { return s.nodes.Len() > 0 && s.nodes.Remove(name) }

// all returns them by name.
func (s *failures) all() []*failure {
	return slices.SortedFunc(slices.Values(s.nodes.Values()), func(a, b *failure) int { return cmp.Compare(a.node, b.node) })
}

// hope returns until when a source that has failed is hoped for nevertheless: it is being
// tried again, or it may just be full.
func (f *failure) hope() time.Duration {
	until := time.Duration(0)
	if f.reason == ReasonClosed {
		until = f.since + sourceWithin
	}
	if f.tried != never {
		until = max(until, f.tried+probeFor)
	}
	return until
}
