package fetch

import (
	"cmp"
	"slices"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"github.com/capelin-io/capelin/control/tracker"
	"github.com/capelin-io/capelin/plugin/registries"
	"github.com/capelin-io/capelin/swarm/piece"
)

// Rules are what a Machine goes by.
type Rules struct {
	// AuthorizeBlob: the registry decides blob by blob who may have it, so that of each one
	// containerd downloads the tail itself.
	AuthorizeBlob bool
	Find          time.Duration // to find out whether anybody could have a blob
	Stall         time.Duration // without a verified byte
	Prefetch      time.Duration // how long a blob that nobody opened is fetched on
	MaxPrefetch   int           // blobs fetched that nobody opened yet
	// Registry is how many bytes a second a registry gives of which nothing is known; 0:
	// registries.Unknown.
	Registry float64
}

// remembered is of how many blobs a Machine remembers what went wrong.
const remembered = 1024

// Machine is the state machine of an agent's fetches; see the package comment. It is for
// one goroutine at a time.
//
// Every event about a blob is taken in first, and then its fetch is settled: what it
// should do now follows from its state alone, and what it does not do yet becomes an action.
type Machine struct {
	rules Rules
	now   time.Time
	live  map[piece.ID]*fetch

	openings Opening // so far
	asks     uint64  // Wants so far, of all fetches
	joins    uint64  // ActJoins so far, of all fetches

	// shared is how long one of the blobs that sessions wait for or write would have had
	// for itself what is shared by all of them, such as a registry.
	shared time.Duration
	busy   int // how many these are now
	// received is how many bytes have come from the swarm, of all blobs, and taken how fast.
	received int64
	taken    pace
	limit    float64 // what is taken from the swarm at most, in bytes per second; 0: no limit

	connected bool // the next two are known
	swarm     bool
	trackers  bool
	draining  bool
	stopped   bool

	// registries is what sessions that wrote have shown of registries.
	registries *registries.Memory
	// noRange holds blobs of which a session was told to continue at N > 0 and
	// brought nothing, until one shows whether that was for the N: the next one begins at 0,
	// whatever is known of the registry. Its value: the client closed it, as after a
	// registry's error; else the pull was broken off, which convicts nobody.
	noRange memory[bool]
	// distrusted holds blobs of which what containerd downloaded contradicted what
	// the swarm had delivered, before either was proven. Until the blob is here,
	// it comes from the registry alone.
	distrusted memory[struct{}]

	actions []Action
}

// memory is something about a bounded number of blobs.
type memory[V any] struct {
	*simplelru.LRU[piece.ID, V]
}

func newMemory[V any]() memory[V] {
	l, err := simplelru.NewLRU[piece.ID, V](remembered, nil)
	if err != nil {
		panic(err) // only for a size of 0
	}
	return memory[V]{l}
}

// NewMachine returns a Machine without fetches.
func NewMachine(r Rules) *Machine {
	return &Machine{
		rules: r, live: map[piece.ID]*fetch{}, registries: registries.New(), noRange: newMemory[bool](), distrusted: newMemory[struct{}](),
	}
}

// Step takes an event in and returns what is to be done, valid until the next Step. Time
// never goes back: an earlier now counts as the last one.
func (m *Machine) Step(now time.Time, ev Event) []Action {
	if now.After(m.now) {
		if m.busy > 0 {
			m.shared += now.Sub(m.now) / time.Duration(m.busy)
		}
		m.now = now
	}
	clear(m.actions)
	m.actions = m.actions[:0]
	switch ev := ev.(type) {
	case EvTick:
		m.settleAll(func(f *fetch) bool { return f.isDue(m.now) })
	case EvConnected:
		m.connected, m.swarm, m.trackers = true, ev.Swarm, ev.Trackers
		m.settleAll(all)
	case EvLimit:
		m.limit = float64(ev.Rate)
	case EvDraining:
		m.draining = true
		m.settleAll(all)
	case EvStopping:
		m.stopped = true
		m.settleAll(all)
	default:
		m.one(ev)
	}
	return m.actions
}

// one takes in an event about one blob.
func (m *Machine) one(ev Event) {
	f := m.live[ev.blob()]
	switch ev := ev.(type) {
	case EvSessionOpened:
		if f == nil && !m.stopped {
			f = m.start(ev.ID)
		}
	case EvPrefetch:
		if f == nil && m.swarm && m.trackers && !m.draining && !m.stopped && m.prefetching() < m.rules.MaxPrefetch {
			f = m.start(ev.ID)
		}
	case EvVerdict:
		if f == nil && ev.Verdict == tracker.Lease {
			m.leaseDone(ev.ID, ErrNoWaiter)
		}
	}
	if f == nil {
		return
	}
	m.take(f, ev)
	m.settle(f)
}

// Deadline returns when the next EvTick is due, or the zero time.
func (m *Machine) Deadline() (next time.Time) {
	for _, f := range m.live {
		if !f.due.IsZero() && (next.IsZero() || f.due.Before(next)) {
			next = f.due
		}
	}
	return next
}

// Due returns the blobs that an EvTick at now is about.
func (m *Machine) Due(now time.Time) (ids []piece.ID) {
	for id, f := range m.live {
		if f.isDue(now) {
			ids = append(ids, id)
		}
	}
	return ids
}

// start begins a fetch.
func (m *Machine) start(id piece.ID) *fetch {
	m.openings++
	f := &fetch{id: id, opening: m.openings, started: m.now}
	m.live[id] = f
	m.act(ActOpen{ID: id, Opening: f.opening})
	return f
}

func all(*fetch) bool { return true }

// settleAll settles the fetches that which says, in the order in which they began.
func (m *Machine) settleAll(which func(*fetch) bool) {
	var chosen []*fetch
	for _, f := range m.live {
		if which(f) {
			chosen = append(chosen, f)
		}
	}
	slices.SortFunc(chosen, func(a, b *fetch) int { return cmp.Compare(a.opening, b.opening) })
	for _, f := range chosen {
		m.settle(f)
	}
}

// prefetching returns how many fetches no session has open.
func (m *Machine) prefetching() (n int) {
	for _, f := range m.live {
		if len(f.sessions) == 0 {
			n++
		}
	}
	return n
}

func (m *Machine) act(a Action) { m.actions = append(m.actions, a) }

// leaseDone tells the trackers, if there are any, that a lease or a download without one
// is over.
func (m *Machine) leaseDone(id piece.ID, err error) {
	if m.trackers {
		m.act(ActLeaseDone{ID: id, Err: err})
	}
}

// Status is what people see of a fetch.
type Status struct {
	ID       piece.ID
	Started  time.Time
	Verified int64
	Progress time.Time // zero: none since it started
	Sessions int       // that have it open
	Waiting  int
	Writing  int
	Lease    bool // a session has it
	Verdict  tracker.VerdictKind
	Registry int64 // bytes that sessions wrote
	Failed   error // why the disk cannot take it

	opening Opening
}

// Status returns the state of a blob's fetch, if there is one.
func (m *Machine) Status(id piece.ID) (Status, bool) {
	f := m.live[id]
	if f == nil {
		return Status{}, false
	}
	return Status{
		ID: id, Started: f.started, Verified: f.disk.have.Verified, Progress: f.disk.progress,
		Sessions: len(f.sessions), Waiting: f.count(waiting), Writing: f.count(writing),
		Lease: f.lease == leaseTaken, Verdict: f.question.verdict, Registry: f.disk.written, Failed: f.disk.failed,
		opening: f.opening,
	}, true
}
