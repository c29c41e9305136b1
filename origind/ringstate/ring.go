package ringstate

import (
	"slices"
	"time"

	"github.com/capelin-io/capelin/control/ring"
	"github.com/capelin-io/capelin/internal/posheap"
	"github.com/capelin-io/capelin/origind/record"

	digest "github.com/opencontainers/go-digest"
)

// Ring is one member's part in all decisions; see the package comment. It is for one goroutine at a time.
type Ring struct {
	cfg   Config
	now   int64 // nanoseconds of Instant.Mono, as all times in here
	wall  time.Time
	clock record.Clock // of pushes and removals
	order Order

	// Members.
	me       *member
	members  []*member // all that were ever known, by name
	slots    []*member // the same, by slot
	lost     []Lost    // by name and incarnation
	whole    Whole
	lowest   int // the lowest MinReplicas since whole
	born     int64
	starting bool
	stale    int64 // since when deletions may have been missed; 0: they have not
	view     View
	owners   []*member     // in the view
	place    []ring.Member // the same
	epoch    uint32        // counts what voids all that was confirmed
	changed  int64         // when it last did
	alive    uint64        // slots of those who gave a sign of life lately, to this member or one that it hears
	lives    uint64        // slots of those who are not down: these, and who may as well be alive since this one has just started

	log         deletions
	blobs       index
	give        gives
	works       posheap.Heap[*work]
	busy        int              // works that are being done
	reaches     map[string]reach // by backend
	looks       map[uint64]func(*EvBackend)
	puts        []*put
	deletes     []*deletion
	lookups     []*lookup
	takes       map[digest.Digest]*take
	waiters     []*waiter // who waits for a take, the first first
	wait        int64     // how long, at most
	erases      map[digest.Digest]*erase
	stated      map[digest.Digest]seen // what is in the backend, by an own Stat, and not pinned
	statedOrder []digest.Digest        // by when
	asks        map[uint64]*asked
	askOrder    []*asked // by when they time out
	nextID      uint64

	tickAt   int64
	storages []Storage // behind this member's backends

	dirty   bool                    // members changed: ActRing is to be made
	saved   map[digest.Digest]Local // what this Step has saved
	actions []Action
}

// asked is an ask whose answer is waited for.
type asked struct {
	id     uint64
	to     *member
	inc    uint64 // of to, at that time
	sent   int64
	about  []digest.Digest
	answer func(Answer, []Local) // nil: there is none
}

// New returns a member that has just started, with what its disk has kept: saved is nil
// on a new disk. EvHeld events come next.
func New(cfg Config, saved *Saved, log Log, now Instant) *Ring {
	r := &Ring{
		cfg: cfg.WithDefaults(), starting: true,
		looks: map[uint64]func(*EvBackend){}, reaches: map[string]reach{}, takes: map[digest.Digest]*take{}, erases: map[digest.Digest]*erase{},
		stated: map[digest.Digest]seen{}, asks: map[uint64]*asked{}, saved: map[digest.Digest]Local{},
	}
	r.wait = min(int64(waitFor), int64(r.cfg.Ask)/4)
	r.set(now)
	r.born, r.stale = r.now, r.now
	r.log.load(log, r.now)
	for _, e := range log.Entries {
		r.clock.See(r.wall, e.Stamp)
	}
	r.load(saved)
	for _, name := range r.cfg.Members {
		r.learn(name)
	}
	r.see()
	r.dirty = true
	return r
}

func (r *Ring) set(now Instant) {
	r.now = max(r.now, int64(now.Mono)+1) // 0 is never
	r.wall = now.Wall
}

// Step takes an event in and returns what is to be done, valid until the next Step.
func (r *Ring) Step(now Instant, ev Event) []Action {
	clear(r.actions)
	r.actions = r.actions[:0]
	clear(r.saved)
	last := r.now
	r.set(now)
	// Whoever was frozen has heard nobody, which says nothing of them.
	if gap := r.now - last; gap > 3*int64(r.cfg.Probe) {
		for _, m := range r.members {
			m.heard, m.live = later64(m.heard, gap), later64(m.live, gap)
		}
		r.born += gap
	}
	if ev, ok := ev.(EvHeld); ok {
		r.held(ev)
		return r.actions // of a million there is nothing else to do yet
	}
	r.judge()
	r.seen()
	r.on(ev)
	if r.now >= r.tickAt {
		r.tickAt = r.now + int64(r.cfg.Probe)
		r.tick()
	}
	r.waitOn()
	r.work()
	r.seen()
	r.placeOn()
	if r.dirty {
		r.dirty = false
		r.actions = slices.Insert(r.actions, 0, Action(ActRing{r.save()}))
	}
	return r.actions
}

func later64(t, d int64) int64 {
	if t == 0 {
		return 0
	}
	return t + d
}

// Deadline returns when an EvTick is due, as Instant.Mono.
func (r *Ring) Deadline() time.Duration {
	if r.blobs.placing() {
		return time.Duration(r.now)
	}
	at := r.tickAt
	if len(r.waiters) > 0 {
		at = min(at, r.waiters[0].until)
	}
	if len(r.works) > 0 && r.busy < atOnce && r.writes() {
		at = min(at, r.works[0].due)
	}
	return time.Duration(at)
}

func (r *Ring) on(ev Event) {
	switch ev := ev.(type) {
	case EvTick:
	case EvListed:
		for _, name := range ev.Names {
			r.learn(name)
		}
	case *EvAsked:
		if m := r.hear(ev.From, ev.Incarnation); m != nil {
			r.asked(m, ev)
		} else {
			r.do(ActReply{ev.From, ev.ID, nil})
		}
	case *EvAnswered:
		r.answered(ev)
	case *EvPut:
		r.put(ev)
	case *EvDelete:
		r.delete(ev)
	case *EvLookup:
		r.lookup(ev)
	case *EvTaken:
		r.taken(ev)
	case *EvBackend:
		if f := r.looks[ev.ID]; f != nil {
			delete(r.looks, ev.ID)
			f(ev)
		}
	case EvBad:
		r.bad(ev)
	case EvDrain:
		r.drain(ev)
	case EvMember:
		r.operate(ev)
	case EvFull:
		r.me.full = ev.Full
	case EvStorages:
		r.storages = ev.Storages
	}
}

// tick does what is done each second.
func (r *Ring) tick() {
	r.expire()
	for _, m := range r.members {
		if m != r.me && (m.listed() || r.hears(m)) {
			r.probe(m)
		}
	}
	r.pushOn()
	r.deleteOn()
	r.lookOn()
	r.forgetStated()
	r.eraseOn()
	r.compareOn()
	r.giveOn()
	r.drained()
	r.prove()
	r.trim()
}

// seen computes the view if members changed.
func (r *Ring) seen() {
	if r.dirty {
		r.see()
	}
}

func (r *Ring) do(a Action) { r.actions = append(r.actions, a) }

// ask asks a member; f gets the answer, or nil.
func (r *Ring) ask(to *member, q Ask, f func(Answer, []Local)) {
	r.nextID++
	a := &asked{r.nextID, to, to.inc, r.now, q.Digests(), f}
	r.asks[a.id] = a
	r.askOrder = append(r.askOrder, a)
	r.do(ActAsk{to.name, a.id, q})
}

func (r *Ring) answered(ev *EvAnswered) {
	a := r.asks[ev.ID]
	if a == nil {
		return
	}
	delete(r.asks, ev.ID)
	if ev.Answer == nil {
		a.answer(nil, nil)
		return
	}
	if r.hear(a.to.name, ev.Incarnation) == nil || a.inc != 0 && a.inc != a.to.inc {
		a.answer(nil, nil) // the disk that was asked is not the one that answers
		return
	}
	for _, d := range ev.Answer.Digests() {
		if len(a.about) > 0 && d != a.about[0] {
			a.answer(nil, nil) // it is about another blob
			return
		}
	}
	r.seen()
	a.answer(ev.Answer, ev.Local)
}

// expire ends asks that were not answered.
func (r *Ring) expire() {
	for len(r.askOrder) > 0 && r.now-r.askOrder[0].sent >= int64(r.cfg.Ask) {
		a := r.askOrder[0]
		r.askOrder = r.askOrder[1:]
		if r.asks[a.id] == a {
			delete(r.asks, a.id)
			a.answer(nil, nil)
		}
	}
}

// asked answers another member.
func (r *Ring) asked(m *member, ev *EvAsked) {
	r.seen()
	reply := func(a Answer) { r.do(ActReply{m.name, ev.ID, a}) }
	switch ev.Ask.(type) {
	case Probe:
		reply(r.Status())
		return
	case Have:
		l := ev.Local[0]
		reply(Has{Yes: r.readable(l) && r.Serving(), Unsure: !r.Serving() || r.misses(ev.Ask.(Have).Digest, l)})
		return
	}
	if !m.listed() {
		reply(nil) // who was removed may know what is true no more
		return
	}
	switch q := ev.Ask.(type) {
	case ReadLog:
		m.reads = max(m.reads, q.After)
		r.do(ActReplyLog{m.name, ev.ID, q.After})
	case Deleted:
		reply(r.tookEntry(q, ev.Local[0]))
	case *Replica:
		r.replica(m, ev.ID, q, ev.Local[0])
	case *Consult:
		reply(r.consulted(q, ev.Local[0]))
	case Compare:
		reply(r.compared(m, q))
	default:
		reply(nil)
	}
}
