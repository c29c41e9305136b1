package tracker

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/capelin-io/capelin/control/ring"
	"github.com/capelin-io/capelin/control/trackerpb"
	"github.com/capelin-io/capelin/swarm/piece"
)

// Timing; control/PROTOCOL.md, "Timing". What concerns streams is in stream.go.
const (
	answerTimeout    = 150 * time.Millisecond  // for a Verdict after a Want, before the second tracker is asked to grant
	busyTimeout      = 5 * time.Second         // for one of a tracker that is connected, if no other has anything better to say
	silentAfter      = 1200 * time.Millisecond // for anything at all that comes from it, at least; see link.silence
	silentAgain      = 100 * time.Millisecond  // of these, from the first look to the one that counts
	secondTimeout    = 40 * time.Millisecond   // for the second tracker, asked again because the first gave none
	progressInterval = time.Second

	// namesakeFor is how long a machine is said to have the node's name that does not show itself: it
	// would come back sooner.
	namesakeFor = time.Minute
)

// Machine is what a node says to its trackers and makes of what they say, as a value:
// Step takes an event in and returns what is to be done. It has no goroutine, lock or
// clock.
//
// # What is kept
//
// A blob per thing that the node has, wants or fetches from upstream; the latter two
// are active, which the many others lack. A link per tracker, whose outbox has what the
// tracker has not heard yet: nothing while no stream is up, because all is told anew
// on the next one. The calls that the Handler has not taken yet.
//
// # When things are decided
//
// Each event that concerns an active blob ends with settle: what the two trackers'
// answers come to, whether a report is due, and when to look again.
// Messages and calls are made at the end of a Step, for who is ready to take them.
type Machine struct {
	node string
	now  time.Time

	names []string // of all links, ordered
	// unresolved are names of trackers without an address.
	unresolved map[string]TrackerStatus
	links      map[string]*link
	blobs      map[piece.ID]*blob
	active     map[piece.ID]*active // those of blobs which are
	due        schedule             // of active
	seq        uint32               // numbers what is wanted, and what trackers are asked

	commands commands
	calls    calls
	actions  []Action
}

// link is what is known of a tracker.
type link struct {
	name   string
	up     bool // Welcome has come, and the stream has not ended
	paces  bool // the tracker heeds Want.Slow
	ready  bool // up, and the stream can take a message
	status TrackerStatus
	out    outbox

	heard     time.Time     // when something came from it last
	busy      time.Duration // how long it may take to answer, as it said; 0: it did not say
	suspected time.Time     // when it was found to be silent first
	silent    bool          // and again: its answers are not waited for until something comes from it
}

// blob is what the node has of one blob.
type blob struct {
	state  State
	hash   *[32]byte
	owners [2]*link // the one that grants leases first; nil: there are fewer trackers
	act    *active  // nil: it is neither wanted nor fetched
}

// active is the part of a blob that exists while it is wanted or fetched from upstream.
type active struct {
	id       piece.ID
	blob     *blob
	want     *want
	download *download
	due      time.Time // see schedule
	heap     int
}

// download is what comes from upstream, with or without a lease.
type download struct {
	bytes, told int64
	registry    string
	at          time.Time // when it was told; zero: not yet
}

// NewMachine returns a machine of the node with this name, which knows no tracker yet.
func NewMachine(node string) *Machine {
	return &Machine{
		node: node, unresolved: map[string]TrackerStatus{},
		links:    map[string]*link{},
		blobs:    map[piece.ID]*blob{},
		active:   map[piece.ID]*active{},
		commands: commands{},
	}
}

// Step takes an event in and returns what is to be done, valid until the next Step.
// Time never goes back: an earlier now counts as the last one.
func (m *Machine) Step(now time.Time, ev Event) []Action {
	if now.After(m.now) {
		m.now = now
	}
	clear(m.actions)
	m.actions = m.actions[:0]
	m.take(ev)
	for a := m.due.next(m.now); a != nil; a = m.due.next(m.now) {
		m.settle(a)
	}
	for _, name := range m.names {
		m.links[name].out.expire(m.now)
	}
	m.handOver()
	for _, name := range m.names {
		m.send(m.links[name])
	}
	return m.actions
}

func (m *Machine) take(ev Event) {
	switch ev := ev.(type) {
	case EvTick:
	case EvTrackers:
		m.setTrackers(ev.Names)
		m.setUnresolved(ev.Unresolved)
	case EvConnected:
		m.connected(m.links[ev.Tracker], ev.Welcome)
	case EvDisconnected:
		m.disconnected(m.links[ev.Tracker], ev.Err)
	case EvMessage:
		if l := m.links[ev.Tracker]; l != nil && l.up {
			m.heard(l, ev.Message)
			m.receive(l, ev.Message)
		}
	case EvReady:
		if l := m.links[ev.Tracker]; l != nil {
			l.ready = l.up
		}
	case EvHandlerReady:
		m.calls.ready = true
	case EvAnnounce:
		m.announce(ev.ID, ev.State, ev.SumsHash)
	case EvWant:
		m.want(ev.ID, ev.Want)
	case EvUnwant:
		m.unwant(ev.ID)
	case EvLeaseProgress:
		m.leaseProgress(ev.ID, ev.Bytes, ev.Registry)
	case EvLeaseDone:
		m.leaseDone(ev.ID, ev.Err)
	case EvDisproved:
		for _, l := range m.upOwners(ev.ID) {
			l.out.disproved = append(l.out.disproved, &trackerpb.Disproved{Blob: trackerpb.FromID(ev.ID), SumsHash: ev.SumsHash[:]})
		}
	case EvNotHere:
		for _, l := range m.upOwners(ev.ID) { // the one that did not ask ignores it
			l.out.notHere = append(l.out.notHere, trackerpb.FromID(ev.ID))
		}
	case EvResult:
		if l := m.commands.result(ev.Result); l != nil {
			l.out.results = append(l.out.results, ev.Result)
		}
	}
}

// Deadline returns when the next EvTick is due, or the zero time.
func (m *Machine) Deadline() time.Time {
	d := m.due.deadline()
	for _, name := range m.names {
		d = earlier(d, m.links[name].out.next)
	}
	return d
}

// Announceable returns how many blobs a tracker would be told of on a new stream.
func (m *Machine) Announceable(tracker string) (n uint32) {
	l := m.links[tracker]
	for _, b := range m.blobs {
		if b.state != StateGone && b.position(l) >= 0 {
			n++
		}
	}
	return n
}

// Status returns the state of each stream, ordered by address, and of names that have
// none.
func (m *Machine) Status() []TrackerStatus {
	all := make([]TrackerStatus, 0, len(m.names)+len(m.unresolved))
	for _, name := range m.names {
		m.links[name].forget(m.now)
		all = append(all, m.links[name].status)
	}
	for _, name := range slices.Sorted(maps.Keys(m.unresolved)) {
		all = append(all, m.unresolved[name])
	}
	return all
}

// Remembered returns of how many blobs something is remembered.
func (m *Machine) Remembered() int { return len(m.blobs) }

// ring returns the two trackers of a blob, the one that grants leases first.
func (m *Machine) ring(id piece.ID) (owners [2]*link) {
	for i, name := range ring.Top(m.names, id.Digest(), 2) {
		owners[i] = m.links[name]
	}
	return owners
}

// upOwners returns those of a blob's trackers that can be told something now.
func (m *Machine) upOwners(id piece.ID) []*link {
	var owners [2]*link
	if b := m.blobs[id]; b != nil {
		owners = b.owners
	} else {
		owners = m.ring(id)
	}
	return slices.DeleteFunc(owners[:], func(l *link) bool { return l == nil || !l.up })
}

// position returns which of the blob's trackers l is, or -1.
func (b *blob) position(l *link) int {
	if l == nil {
		return -1
	}
	return slices.Index(b.owners[:], l)
}

// mark makes a tracker hear of what changed, if it is there.
func (l *link) mark(id piece.ID, what news) {
	if l != nil && l.up {
		l.out.mark(id, what)
	}
}

// mark makes the blob's trackers hear of what changed.
func (m *Machine) mark(id piece.ID, b *blob, what news) {
	for _, l := range b.owners {
		l.mark(id, what)
	}
}

// blob returns what is known of a blob, made if there was nothing.
func (m *Machine) blob(id piece.ID) *blob {
	b := m.blobs[id]
	if b == nil {
		b = &blob{owners: m.ring(id)}
		m.blobs[id] = b
	}
	return b
}

// activate returns a blob's active part, made if need be.
func (m *Machine) activate(id piece.ID) *active {
	b := m.blob(id)
	if b.act == nil {
		b.act = &active{id: id, blob: b, heap: -1}
		m.active[id] = b.act
	}
	return b.act
}

// forget drops what is no longer needed of a blob.
func (m *Machine) forget(id piece.ID, b *blob) {
	if a := b.act; a != nil && a.want == nil && a.download == nil {
		m.due.set(a, time.Time{})
		delete(m.active, id)
		b.act = nil
	}
	if b.state == StateGone && b.act == nil {
		delete(m.blobs, id)
	}
}

// wanted returns the want of a blob, or nil.
func (m *Machine) wanted(id piece.ID) *active {
	if a := m.active[id]; a != nil && a.want != nil {
		return a
	}
	return nil
}

func (m *Machine) announce(id piece.ID, s State, hash *[32]byte) {
	b := m.blob(id)
	if s != StateComplete {
		hash = nil
	} else if hash == nil {
		hash = b.hash
	}
	if b.state == s && s != StateGone && (b.hash == hash || b.hash != nil && hash != nil && *b.hash == *hash) {
		return
	}
	b.state, b.hash = s, nil
	if hash != nil {
		h := *hash // the caller may change its own
		b.hash = &h
	}
	m.mark(id, b, newsHave)
	m.forget(id, b)
}

func (m *Machine) want(id piece.ID, how Want) {
	a := m.activate(id)
	if a.want == nil {
		a.want = &want{peers: peers{}}
	}
	m.seq++
	how.Lost = slices.Clone(how.Lost[:min(len(how.Lost), trackerpb.MaxLost)])
	a.want.begin(how, m.seq, m.now)
	for i := range a.blob.owners {
		m.ask(a, i, answerTimeout)
	}
	m.settle(a)
}

func (m *Machine) unwant(id piece.ID) {
	a := m.wanted(id)
	if a == nil {
		return
	}
	a.want = nil
	m.mark(id, a.blob, newsWant)
	m.settle(a)
	m.forget(id, a.blob)
}

func (m *Machine) leaseProgress(id piece.ID, bytes int64, registry string) {
	a := m.activate(id)
	if a.download == nil {
		a.download = &download{told: -1}
	}
	a.download.bytes = min(max(a.download.bytes, bytes), id.Size)
	a.download.registry = printable(registry, trackerpb.MaxRegistry)
	m.settle(a)
}

func (m *Machine) leaseDone(id piece.ID, err error) {
	done := &trackerpb.LeaseDone{Blob: trackerpb.FromID(id), Outcome: trackerpb.Outcome_OUTCOME_COMPLETE}
	switch {
	case errors.Is(err, context.Canceled):
		done.Outcome = trackerpb.Outcome_OUTCOME_CANCELLED
	case err != nil:
		done.Outcome = trackerpb.Outcome_OUTCOME_FAILED
		done.Error = printable(err.Error(), trackerpb.MaxError)
		done.Mismatch = errors.Is(err, ErrMismatch)
	}
	m.tellDone(id, done)
	a := m.active[id]
	if a == nil {
		return
	}
	a.download = nil
	if w := a.want; w != nil && w.lease {
		m.seq++
		w.leaseDone(m.seq, m.now)
	} else if w != nil {
		// It was wanted (anew) since. If somebody waits, trackers were not told so while
		// the node was fetching anyhow; and an answer that is on its way may be the lease
		// that has just ended.
		for i := range a.blob.owners {
			m.ask(a, i, answerTimeout)
		}
	}
	m.settle(a)
	m.forget(id, a.blob)
}

func (m *Machine) tellDone(id piece.ID, done *trackerpb.LeaseDone) {
	for _, l := range m.upOwners(id) {
		l.out.done = append(l.out.done, done)
	}
}

// ask sends a Want to the blob's i-th tracker, and waits so long for its answer.
// Whatever it said before, or is saying, to another Want no longer counts.
func (m *Machine) ask(a *active, i int, timeout time.Duration) {
	l := a.blob.owners[i]
	if l == nil || !l.up {
		a.want.answers[i] = answer{}
		return
	}
	m.seq++
	a.want.answers[i] = answer{state: pending, seq: m.seq, asked: m.now, until: m.now.Add(timeout), mute: l.silent && !a.want.cutOff()}
	l.mark(a.id, newsWant)
}

// settle decides what is to be told about an active blob, to the node and to its
// trackers, and when to look at it again.
func (m *Machine) settle(a *active) {
	var due time.Time
	if w := a.want; w != nil {
		silence := m.silence(a)
		if w.needsSecond(m.now) {
			w.answers[0].state = abandoned
			m.ask(a, 1, secondTimeout)
		}
		v, next := w.merge(m.now, a.blob.connecting())
		for i, l := range a.blob.owners {
			paces := l != nil && l.up && l.paces && w.grants(i, m.now)
			v.Paced = v.Paced || paces
			v.Heard = v.Heard || paces && w.answers[i].state == given
		}
		if v.Kind != 0 && v != w.verdict {
			w.verdict = v
			w.lease = w.lease || v.Kind == Lease
			m.calls.add(ActVerdict{ID: a.id, Verdict: v}, w.number)
		}
		due = earlier(next, silence)
	}
	if d := a.download; d != nil && d.bytes != d.told {
		if at := d.at.Add(progressInterval); d.at.IsZero() || !at.After(m.now) {
			d.at, d.told = m.now, d.bytes
			m.mark(a.id, a.blob, newsDownload)
		} else {
			due = earlier(due, at)
		}
	}
	m.due.set(a, due)
}

// connecting reports whether one of the blob's trackers is being connected with for the
// first time.
func (b *blob) connecting() bool {
	return slices.ContainsFunc(b.owners[:], func(l *link) bool { return l != nil && !l.up && l.status.Err == nil })
}

// handOver gives the Handler its next call, if it can take one. A verdict on what is
// no longer wanted, or was wanted anew since, is dropped, and a lease that came too
// late in this way goes back.
func (m *Machine) handOver() {
	for m.calls.ready {
		c, ok := m.calls.take()
		if !ok {
			return
		}
		if v, is := c.act.(ActVerdict); is {
			a := m.active[v.ID]
			unwanted := a == nil || a.want == nil
			if unwanted && v.Verdict.Kind == Lease && (a == nil || a.download == nil) {
				m.tellDone(v.ID, &trackerpb.LeaseDone{Blob: trackerpb.FromID(v.ID), Outcome: trackerpb.Outcome_OUTCOME_CANCELLED})
			}
			if unwanted || a.want.number != c.want {
				continue
			}
		}
		m.calls.ready = false
		m.actions = append(m.actions, c.act)
	}
}

// send makes the next message to a tracker, if it can take one.
func (m *Machine) send(l *link) {
	if !l.ready {
		return
	}
	if msg := l.out.message(m.now, func(id piece.ID) facts { return m.facts(l, id) }); msg != nil {
		l.ready = false
		m.actions = append(m.actions, ActSend{Tracker: l.name, Message: msg})
	}
}

// facts returns what a tracker is to know of a blob: nothing, if it is not one of the
// blob's two.
func (m *Machine) facts(l *link, id piece.ID) facts {
	f := facts{downloaded: -1}
	b := m.blobs[id]
	if b == nil {
		return f
	}
	i := b.position(l)
	if i < 0 {
		return f
	}
	f.state, f.hash = b.state, b.hash
	if b.act == nil {
		return f
	}
	if d := b.act.download; d != nil {
		f.downloaded, f.registry = d.told, d.registry
	}
	if w := b.act.want; w != nil {
		f.want = &trackerpb.Want{
			Blob:    trackerpb.FromID(id),
			Waiting: w.Waiting && !w.lease && b.act.download == nil,
			Grant:   w.grants(i, m.now),
			Seq:     w.answers[i].seq,
			Lost:    w.Lost,
			Slow:    w.Slow,
		}
	}
	return f
}

// sorted returns the keys of a map of blobs in an order that is the same each time.
func sorted[V any](blobs map[piece.ID]V) []piece.ID {
	return slices.SortedFunc(maps.Keys(blobs), compare)
}

func compare(a, b piece.ID) int {
	if x, y := binary.BigEndian.Uint64(a.Sum[:]), binary.BigEndian.Uint64(b.Sum[:]); x != y { // of 100,000 blobs
		return cmp.Compare(x, y)
	}
	return cmp.Or(bytes.Compare(a.Sum[:], b.Sum[:]), cmp.Compare(a.Size, b.Size), cmp.Compare(a.Alg, b.Alg))
}

// earlier returns the earlier of two times, either of which may be zero: never.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// printable cuts s to n bytes and removes what CheckBatch would refuse.
func printable(s string, n int) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if len(s) > n {
		s = strings.ToValidUTF8(s[:n], "")
	}
	return s
}
