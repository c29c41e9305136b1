package origind

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/content"
	"github.com/capelin-io/capelin/control/origin"
	"github.com/capelin-io/capelin/origind/record"
	"github.com/capelin-io/capelin/origind/ringstate"
	"github.com/capelin-io/capelin/swarm/piece"
)

// member is this origin as a member of its ring, which may have no other. A ringstate.Ring decides; one goroutine tells it what
// happens, keeps what it decides, and has done what it says:
//
//	all turns that wait ─► what is here of their blobs, Step ─► keep: one sync for all of them ─► answer, ask, read and write elsewhere
//
// So nothing is answered before it is durable, and a turn sees what those before it have decided.
type member struct {
	memberParts
	name  string
	ring  *ringstate.Ring // of the goroutine, and of whoever makes the member
	began time.Time
	blind time.Duration // for which what was seen last counts; 0: for ever

	mu    sync.Mutex
	turns []turn        // that wait
	kick  chan struct{} // 1-buffered: there are some
	stop  chan struct{} // closed: no more
	ended chan struct{} // closed when the goroutine has ended
	err   error         // why it did; nil: by stop

	// Of the goroutine alone.
	id      uint64 // of calls
	calls   map[uint64]func(ringstate.Action)
	healing map[digest.Digest]*healing     // blobs of which pieces are wrong
	waiting map[digest.Digest][]chan error // who wants to know when a blob's backends have it
	warned  map[string]time.Time           // when it was said last that a member's clock is wrong
	let     delays                         // what may be evicted in a while
	fresh   delays                         // bytes of pushes that nobody may come to acknowledge
	heals   []ringstate.ActHeal            // that wait for their turn
	mending int                            // blobs of which pieces are being replaced
	lacking bool                           // the ring is being told what of a lost disk is not here
	looked  time.Time                      // when it was last looked whether lost disks are missed

	// Hold a token per ask, but for those of how a member is, and per erasure at a backend: of both there can be as many as blobs were
	// deleted while a member or a backend was away.
	asking, erasers chan struct{}

	sight atomic.Pointer[sight]
}

// memberParts are what a member needs to do what it decides.
type memberParts struct {
	ledger  *ledger
	bytes   blobBytes
	objects backendWorks
	copies  copyWorks
	asks    asker
	watch   watcher
	writers chan struct{} // as many places as blobs are written to backends at once
	tasks   *tasks
}

// blobBytes are the blobs' bytes: a content.Store.
type blobBytes interface {
	PresenceOf(d digest.Digest) content.Presence
	Pin(d digest.Digest) error
	Unpin(ctx context.Context, d digest.Digest) error
	Find(d digest.Digest) (piece.ID, content.Presence)
	DropCached(id piece.ID) error
	Whole() map[digest.Digest]content.Presence
	MakeRoom(ctx context.Context, need int64) (freed int64)
}

// backendWorks do what is to be done at backends: objects.
type backendWorks interface {
	do(ctx context.Context, do ringstate.BackendDo, rec *record.Record, at record.Place) (found bool, beside *record.Record, err error)
}

// copyWorks get bytes from other members: copies.
type copyWorks interface {
	take(ctx context.Context, d digest.Digest, size int64, sources []string) (release func(), err error)
	heal(ctx context.Context, d digest.Digest, size int64, pieces []int, from []string) (left []int)
	wrong(d digest.Digest, size int64) []int
}

// asker asks other members: peers.
type asker interface {
	ask(ctx context.Context, to string, q ringstate.Ask) (incarnation uint64, a ringstate.Answer, err error)
	// heard: a member has asked.
	heard(from origin.Asker)
}

// watcher is told what has changed. It must not block.
type watcher interface {
	// recorded: what is kept of a blob was that, and is this; either may be nil.
	recorded(d digest.Digest, was, is *record.Entry)
	// membersChanged: how the members are seen has changed.
	membersChanged(all []ringstate.Peer)
}

// sight is what others see of the member without asking it.
type sight struct {
	serving  bool
	at       time.Time
	peers    []ringstate.Peer
	storages map[string][]ringstate.Storage // behind the backends of others, by their names
}

// healing is how far it is with wrong pieces of a blob.
type healing struct {
	under bool          // members are being asked, or it pauses
	pause time.Duration // the last one
}

// turn is something that happens. It runs on the member's goroutine.
type turn func(b *batch)

const (
	// unpinAfter is how long what is needed no more stays: others may be about to read it, as it was said that it is here.
	unpinAfter = time.Minute
	// Pauses of healing, when nobody could.
	healPauseMin = time.Second
	healPauseMax = time.Minute
	// freshFor is how long bytes stay that came in a push which nobody has acknowledged.
	freshFor = 15 * time.Minute
	// healsAtOnce are how many blobs pieces are replaced of at a time.
	healsAtOnce = 16
	// turnsAtOnce bounds a batch, so that nobody waits long for its end.
	turnsAtOnce = 512
	// asksAtOnce are fewer than the asks that a member takes at once (maxAsks), from several others.
	asksAtOnce   = 256
	erasesAtOnce = 64
	warnEvery    = time.Hour
	// flushWithin is how long it is tried to keep what was decided, on a full disk, before the member gives up.
	flushWithin = 30 * time.Second
)

// newMember returns a member that knows what is here, and has not begun.
func newMember(ctx context.Context, cfg ringstate.Config, parts memberParts) (*member, error) {
	m := &member{
		memberParts: parts, name: cfg.Name, began: time.Now(),
		kick: make(chan struct{}, 1), stop: make(chan struct{}), ended: make(chan struct{}),
		calls: map[uint64]func(ringstate.Action){}, waiting: map[digest.Digest][]chan error{}, healing: map[digest.Digest]*healing{},
		warned: map[string]time.Time{},
		asking: make(chan struct{}, asksAtOnce), erasers: make(chan struct{}, erasesAtOnce), blind: blindFor(cfg.WithDefaults()),
	}
	saved, deleted := m.ledger.start()
	m.ring = ringstate.New(cfg, saved, deleted, m.now())
	m.sight.Store(&sight{})
	if err := m.load(ctx); err != nil {
		return nil, err
	}
	return m, nil
}

// blindFor returns for how long a member knows by what it saw last that others do not take it for down; 0: it does not depend on them.
func blindFor(cfg ringstate.Config) time.Duration {
	if cfg.MinReplicas == 1 {
		return 0
	}
	return cfg.Down - cfg.Probe
}

// load tells the ring what is here. What is pinned without a record was never acknowledged; what was removed goes.
func (m *member) load(ctx context.Context) error {
	whole := m.bytes.Whole()
	var gone, lacks []digest.Digest
	missing := m.ledger.missing()
	b := m.newBatch()
	err := m.ledger.each(func(e *record.Entry) error {
		d := e.Record.Digest
		p := whole[d]
		delete(whole, d)
		if p == content.Cached && e.Record.Pinned() { // a power cut can have undone that
			if err := m.pin(d); err != nil {
				return err
			}
			p = content.Pinned
		}
		if p >= content.Cached && !visible(e) {
			gone = append(gone, d)
		}
		lost := missing && p == content.Absent && e.Record.Pinned() // or others have it in its place: they will say so
		if lost {
			lacks = append(lacks, d)
		}
		if p == content.Pinned || lost || e.Wrote {
			l := ringstate.Local{Record: e.Record, Have: p >= content.Cached, Wrote: e.Wrote}
			b.step(ringstate.EvHeld{Local: l, Pinned: p == content.Pinned || lost})
		}
		if len(b.later) < 1000 {
			return ctx.Err()
		}
		err := m.end(ctx, b)
		b = m.newBatch()
		return err
	})
	if err != nil {
		return err
	}
	b.step(ringstate.EvTick{})
	if err := m.end(ctx, b); err != nil {
		return err
	}
	for d, p := range whole { // without an entry
		if p == content.Pinned {
			gone = append(gone, d)
		}
	}
	for _, d := range gone {
		m.letGo(d)
	}
	m.lacks(lacks)
	return nil
}

func (m *member) now() ringstate.Instant {
	now := time.Now()
	return ringstate.Instant{Mono: now.Sub(m.began), Wall: now}
}

// begin starts the member's goroutine. It ends after close, or when the disk does not keep what was decided.
func (m *member) begin(ctx context.Context) {
	go func() {
		defer close(m.ended)
		m.err = m.run(ctx)
	}()
}

func (m *member) run(ctx context.Context) error {
	for {
		turns, stopped := m.next()
		if stopped {
			return nil
		}
		b := m.newBatch()
		for _, t := range turns {
			t(b)
		}
		if m.ring.Deadline() <= m.now().Mono {
			b.step(ringstate.EvTick{})
		}
		if err := m.end(ctx, b); err != nil {
			return err
		}
	}
}

// failed returns why the member cannot go on, or nil when ctx is done.
func (m *member) failed(ctx context.Context) error {
	select {
	case <-m.ended:
		return m.err
	case <-ctx.Done():
		return nil
	}
}

// close ends the goroutine, and waits for that.
func (m *member) close() {
	close(m.stop)
	<-m.ended
}

// next waits for turns, or until the ring wants to know the time.
func (m *member) next() (turns []turn, stopped bool) {
	var timer *time.Timer
	for {
		m.mu.Lock()
		n := min(len(m.turns), turnsAtOnce)
		turns = m.turns[:n:n]
		m.turns = m.turns[n:]
		m.mu.Unlock()
		wait := m.ring.Deadline() - m.now().Mono
		if n > 0 || wait <= 0 {
			return turns, false
		}
		if timer == nil {
			timer = time.NewTimer(wait)
			defer timer.Stop()
		}
		select {
		case <-m.kick:
		case <-timer.C:
			return nil, false
		case <-m.stop:
			return nil, true
		}
	}
}

// do has a turn taken, soon.
func (m *member) do(t turn) {
	m.mu.Lock()
	m.turns = append(m.turns, t)
	m.mu.Unlock()
	select {
	case m.kick <- struct{}{}:
	default:
	}
}

// wait waits for an answer.
func wait[A any](ctx context.Context, m *member, answer <-chan A) (a A, err error) {
	select {
	case a = <-answer:
		return a, nil
	case <-ctx.Done():
		return a, ctx.Err()
	case <-m.ended:
		if m.err != nil {
			return a, fmt.Errorf("this origin has to stop: %w: %w", m.err, errdefs.ErrUnavailable)
		}
		return a, fmt.Errorf("this origin is about to stop: %w", errdefs.ErrUnavailable)
	}
}

// call has f be given what the ring answers to an event of that id.
func (m *member) call(f func(ringstate.Action)) (id uint64) {
	m.id++
	m.calls[m.id] = f
	return m.id
}

func (m *member) answer(id uint64, a ringstate.Action) {
	if f := m.calls[id]; f != nil {
		delete(m.calls, id)
		f(a)
	}
}

// ask has an event happen that the ring answers with an A.
func askRing[A ringstate.Action](ctx context.Context, m *member, event func(b *batch, id uint64) ringstate.Event) (A, error) {
	answer := make(chan A, 1)
	m.do(func(b *batch) { b.step(event(b, m.call(func(a ringstate.Action) { answer <- a.(A) }))) })
	return wait(ctx, m, answer)
}

// look calls f between two turns.
func (m *member) look(ctx context.Context, f func(r *ringstate.Ring)) error {
	done := make(chan struct{}, 1)
	m.do(func(*batch) {
		f(m.ring)
		done <- struct{}{}
	})
	_, err := wait(ctx, m, done)
	return err
}

// serving reports whether what is here may be read. Whoever was frozen for so long that others have taken it for down does not
// know what they have deleted since.
func (m *member) serving() bool {
	s := m.sight.Load()
	return s.serving && (m.blind == 0 || time.Since(s.at) < m.blind)
}

// peers returns all members as this one sees them.
func (m *member) peers() []ringstate.Peer { return m.sight.Load().peers }

// out says that this member was taken out of the ring, so that it takes nothing from clients.
func (m *member) out() error {
	return fmt.Errorf("%s (`capelin origin ring readmit %s` has it be one again): %w", ringstate.WhyRemoved, m.name, errdefs.ErrUnavailable)
}

// takes reports why clients push to other members: an operator has taken this one out, and nobody would confirm what it has.
func (m *member) takes() error {
	if slices.ContainsFunc(m.peers(), func(p ringstate.Peer) bool { return p.Self && p.Out }) {
		return m.out()
	}
	return nil
}

// publish has others see what the ring has come to.
func (m *member) publish() {
	was, is := m.sight.Load(), &sight{m.ring.Serving(), time.Now(), m.ring.Peers(), m.ring.Storages()}
	same := slices.EqualFunc(was.peers, is.peers, func(a, b ringstate.Peer) bool {
		a.Silent, b.Silent, a.Under, b.Under, a.Skew, b.Skew = 0, 0, nil, nil, 0, 0
		return a == b
	})
	m.sight.Store(is)
	m.warn(is)
	if !same {
		m.watch.membersChanged(is.peers)
	}
}

// imports notes that a push's bytes are about to be here, pinned, and that nobody may come to acknowledge it.
func (m *member) imports(d digest.Digest) { m.do(func(*batch) { m.fresh.add(d, freshFor) }) }

// warn says whose clocks are wrong, or that this one's is, once an hour each.
func (m *member) warn(is *sight) {
	for _, p := range is.peers {
		if last, ok := m.warned[p.Name]; p.Skew != 0 && (!ok || is.at.Sub(last) >= warnEvery) {
			m.warned[p.Name] = is.at
			log.G(m.tasks.ctx).WithField("member", p.Name).WithField("ahead", p.Skew.Round(time.Second)).
				Warn("its clock and this one's differ: what was pushed or deleted last may count as earlier than what was before")
		}
	}
}

// push has a blob, whose bytes are here, acknowledged by as many members as have to; ev.Mirrors should have them, too, and its size is
// looked up. It returns how many have. errdefs.ErrNotFound: the blob is not here any more.
func (m *member) push(ctx context.Context, ev ringstate.EvPut) (copies int, err error) {
	done, err := askRing[ringstate.ActDone](ctx, m, func(b *batch, id uint64) ringstate.Event {
		if t, ok := ctx.Deadline(); ok && time.Now().After(t) {
			m.answer(id, ringstate.ActDone{ID: id})
			return ringstate.EvTick{}
		}
		if m.bytes.PresenceOf(ev.Digest) < content.Pinned {
			err := m.bytes.Pin(ev.Digest)
			if e, eerr := b.entry(ev.Digest); err != nil {
				m.gone(id, ev.Digest, e, errors.Join(err, eerr))
				return ringstate.EvTick{}
			}
		}
		is, _ := m.bytes.Find(ev.Digest)
		ev.ID, ev.Size, ev.Local = id, is.Size, b.local(ev.Digest)
		b.came(ev.Digest)
		return &ev
	})
	switch {
	case err != nil:
		return 0, err
	case done.OK:
		return done.Copies, nil
	case done.Why == ringstate.WhyRemoved:
		return 0, fmt.Errorf("pushing %s: %w", ev.Digest, m.out())
	case done.Why == ringstate.WhyTooMuch:
		return 0, fmt.Errorf("%s: %s: %w", ev.Digest, done.Why, errdefs.ErrFailedPrecondition)
	case done.Why != "":
		return 0, fmt.Errorf("%s: %s: %w", ev.Digest, done.Why, errdefs.ErrNotFound)
	}
	return 0, fmt.Errorf("%s has %d copies, and no confirmation of %s yet: %w",
		ev.Digest, done.Copies, strings.Join(done.Missing, ", "), errdefs.ErrUnavailable)
}

// gone answers a push of a blob that was evicted since an earlier one: that may be, once a backend has it.
func (m *member) gone(id uint64, d digest.Digest, e *record.Entry, err error) {
	if e != nil && e.Record.Durable() && !e.Record.Pinned() {
		m.answer(id, ringstate.ActDone{ID: id, OK: true, Copies: 1})
		return
	}
	m.answer(id, ringstate.ActDone{ID: id, Why: fmt.Sprintf("it is not here any more: %v", err)})
}

// remove takes a blob from a namespace, from all if that is empty, also at a place where it may be. It returns when enough members
// know; backends hear of it afterwards.
func (m *member) remove(ctx context.Context, d digest.Digest, namespace string, at record.Place) error {
	done, err := askRing[ringstate.ActDone](ctx, m, func(b *batch, id uint64) ringstate.Event {
		return &ringstate.EvDelete{ID: id, Digest: d, Namespace: namespace, Place: at, Local: b.local(d)}
	})
	switch {
	case err != nil || done.OK:
		return err
	case done.Why == ringstate.WhyRemoved:
		return fmt.Errorf("deleting %s: %w", d, m.out())
	case done.Why != "":
		return fmt.Errorf("deleting %s: %s: %w", d, done.Why, errdefs.ErrUnavailable)
	}
	return fmt.Errorf("deleting %s: no confirmation of %s yet: %w", d, strings.Join(done.Missing, ", "), errdefs.ErrUnavailable)
}

// where returns where a blob can be read that is not here, as far as members know. hop: another member asks.
func (m *member) where(ctx context.Context, d digest.Digest, hop bool) (ringstate.ActFound, error) {
	return askRing[ringstate.ActFound](ctx, m, func(b *batch, id uint64) ringstate.Event {
		return &ringstate.EvLookup{ID: id, Digest: d, Local: b.local(d), Hop: hop}
	})
}

// reader returns the member that reads a blob from its backend; "" for this one.
func (m *member) reader(ctx context.Context, d digest.Digest) (name string, err error) {
	if len(m.peers()) == 1 {
		return "", nil
	}
	err = m.look(ctx, func(r *ringstate.Ring) { name = r.Reader(d) })
	return name, err
}

// written waits until all backends that are to have a blob have it, or an attempt to bring it there has failed.
func (m *member) written(ctx context.Context, d digest.Digest) error {
	done := make(chan error, 1)
	m.do(func(b *batch) {
		if e, err := b.entry(d); err != nil || e == nil || !e.Record.Pending() {
			done <- err
			return
		}
		m.waiting[d] = append(m.waiting[d], done)
	})
	err, werr := wait(ctx, m, done)
	return errors.Join(err, werr)
}

func (m *member) tell(d digest.Digest, err error) {
	for _, c := range m.waiting[d] {
		c <- err
	}
	delete(m.waiting, d)
}

// found keeps that a read has found a blob at a place.
func (m *member) found(ctx context.Context, d digest.Digest, size int64, at record.Place) error {
	done := make(chan error, 1)
	m.do(func(b *batch) {
		e, err := b.entry(d)
		if err != nil && !errdefs.IsDataLoss(err) {
			done <- err
			return
		}
		if e != nil && (e.Record.Home(at) != nil || slices.Contains(e.Found, at)) {
			done <- nil
			return
		}
		is := record.Entry{Record: &record.Record{Digest: d, Size: size}}
		if e != nil {
			is = *e
		}
		if is.Record.Size == 0 {
			r := *is.Record
			r.Size, is.Record = size, &r
		}
		is.Found = append(slices.Clone(is.Found), at)
		if len(is.Found) > record.MaxHomes {
			is.Found = is.Found[1:]
		}
		b.put(&is)
		b.then(func() { done <- nil })
	})
	err, werr := wait(ctx, m, done)
	return errors.Join(err, werr)
}

// bad notes that pieces of a pinned blob are wrong here.
func (m *member) bad(d digest.Digest, pieces []int) {
	m.do(func(b *batch) { b.step(ringstate.EvBad{Digest: d, Pieces: pieces}) })
}

// asked answers another member.
func (m *member) asked(ctx context.Context, from origin.Asker, q ringstate.Ask) (ringstate.Answer, error) {
	answer := make(chan ringstate.Answer, 1)
	m.do(func(b *batch) {
		id := m.call(func(a ringstate.Action) { answer <- a.(ringstate.ActReply).Answer })
		ev := &ringstate.EvAsked{From: from.Name, Incarnation: from.Incarnation, ID: id, Ask: q}
		if r, ok := q.(*ringstate.Replica); ok {
			ev.Local = []ringstate.Local{b.localPinned(r.Digest)}
		} else {
			ev.Local = b.locals(q.Digests())
		}
		b.step(ev)
		if r, ok := q.(*ringstate.Replica); ok && m.ring.Pinned(r.Digest) {
			b.came(r.Digest)
		}
	})
	a, err := wait(ctx, m, answer)
	switch {
	case err != nil:
	case a == nil && slices.ContainsFunc(m.peers(), func(p ringstate.Peer) bool { return p.Name == from.Name && p.Removed }):
		err = fmt.Errorf("%s is no member of this ring any more: %w", from.Name, errdefs.ErrPermissionDenied)
	case a == nil:
		err = fmt.Errorf("%s is not answered just now: %w", from.Name, errdefs.ErrUnavailable)
	default:
		m.asks.heard(from)
	}
	return a, err
}

// drain begins to leave the ring, or ends that.
func (m *member) drain(ctx context.Context, on bool) error {
	done, err := askRing[ringstate.ActDone](ctx, m, func(_ *batch, id uint64) ringstate.Event { return ringstate.EvDrain{ID: id, On: on} })
	return refused(done, err)
}

// operate does what an operator says of a member.
func (m *member) operate(ctx context.Context, name string, do ringstate.MemberDo) error {
	done, err := askRing[ringstate.ActDone](ctx, m, func(_ *batch, id uint64) ringstate.Event {
		return ringstate.EvMember{ID: id, Name: name, Do: do}
	})
	return refused(done, err)
}

func refused(done ringstate.ActDone, err error) error {
	if err == nil && !done.OK {
		err = fmt.Errorf("%s: %w", done.Why, errdefs.ErrConflict)
	}
	return err
}

// listed tells the ring of members.
func (m *member) listed(names []string) {
	m.do(func(b *batch) { b.step(ringstate.EvListed{Names: names}) })
}

// full tells the ring whether there is room for pushes.
func (m *member) full(is bool) { m.do(func(b *batch) { b.step(ringstate.EvFull{Full: is}) }) }

// logged is an error of a task that nobody waits for.
func logged(ctx context.Context, err error, d digest.Digest, text string) {
	if err != nil && ctx.Err() == nil {
		log.G(ctx).WithError(err).WithField("digest", d).Warn(text)
	}
}
