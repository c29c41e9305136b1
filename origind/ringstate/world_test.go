package ringstate

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/capelin-io/capelin/origind/record"

	digest "github.com/opencontainers/go-digest"
)

// world is a ring in virtual time: members with disks and clocks, a network, a backend, and
// clients. It is a function of its seed.
type world struct {
	t      testing.TB
	rng    *rand.Rand
	cfg    Config
	now    time.Duration
	seq    int
	events eventHeap
	nodes  []*node
	store  *backend
	loss   float64            // of messages
	slow   time.Duration      // most of a message's delay
	grace  time.Duration      // how long what is not pinned any more stays
	bare   bool               // mirrors do not get the bytes with a push
	stall  time.Duration      // of an erasure, between its look and the deletion
	cut    map[[2]string]bool // who does not reach whom
	wrong  time.Duration      // how wrong clocks are, at most, either way
	oracle oracle
	// crashes: one in as many actions is not done, because the member dies before it; 0: none.
	crashes int
	trace   *strings.Builder // nil: none
	nextID  uint64
}

type timed struct {
	at  time.Duration
	seq int
	f   func()
}

func (e timed) before(o timed) bool { return e.at < o.at || e.at == o.at && e.seq < o.seq }

// eventHeap is what is to happen, the first first: as container/heap has it, without an allocation for each.
type eventHeap []timed

func (h *eventHeap) push(e timed) {
	all := append(*h, e)
	i := len(all) - 1
	for up := (i - 1) / 2; i > 0 && e.before(all[up]); up = (i - 1) / 2 {
		all[i] = all[up]
		i = up
	}
	all[i] = e
	*h = all
}

func (h *eventHeap) pop() timed {
	all := *h
	first, n := all[0], len(all)-1
	e := all[n]
	all[n] = timed{}
	all = all[:n]
	i := 0
	for down := 1; down < n; down = 2*i + 1 {
		if down+1 < n && all[down+1].before(all[down]) {
			down++
		}
		if !all[down].before(e) {
			break
		}
		all[i] = all[down]
		i = down
	}
	if n > 0 {
		all[i] = e
	}
	*h = all
	return first
}

// disk is what survives a stop.
type disk struct {
	inc   uint64
	saved *Saved
	first uint64
	log   []record.Deletion
	recs  map[digest.Digest]Local
	bytes map[digest.Digest]*held
	full  bool
}

// held are a blob's bytes.
type held struct {
	pinned bool
	bad    []int         // pieces
	gone   bool          // the disk of several that had it has failed
	until  time.Duration // when they are evicted if they are not pinned
}

// node is a member.
type node struct {
	w        *world
	name     string
	zone     string
	disk     *disk
	skew     time.Duration
	store    *backend
	ring     *Ring // nil: stopped
	life     int
	frozen   bool
	old      bool     // it is of a release that answers every ask at once
	out      bool     // an operator has taken it out
	starting bool     // no crash then
	inbox    []func() // what comes while it is frozen
	tick     time.Duration
	calls    map[uint64]func(Action)  // clients that wait
	jobs     map[digest.Digest][]*job // at one object, one after the other
}

func newWorld(t testing.TB, seed uint64, names string, cfg Config) *world {
	w := &world{
		t: t, rng: rand.New(rand.NewPCG(seed, 17)), cfg: cfg.WithDefaults(), cut: map[[2]string]bool{},
		store: newBackend(), slow: 20 * time.Millisecond, grace: time.Minute,
	}
	w.oracle.init(w)
	var list []string
	for _, f := range strings.Fields(names) {
		name, zone, _ := strings.Cut(f, "=")
		list = append(list, name)
		w.nodes = append(w.nodes, &node{w: w, name: name, zone: zone, store: w.store, calls: map[uint64]func(Action){}})
	}
	w.cfg.Members = list
	return w
}

// begin starts all members, with new disks.
func (w *world) begin() *world {
	for _, n := range w.nodes {
		n.wipe()
		n.start()
	}
	return w
}

func (w *world) logf(format string, args ...any) {
	if w.trace != nil {
		fmt.Fprintf(w.trace, "%9.3f ", w.now.Seconds())
		fmt.Fprintf(w.trace, format+"\n", args...)
	}
}

func (w *world) fatalf(format string, args ...any) {
	w.t.Helper()
	if w.trace != nil {
		w.t.Log("\n" + w.trace.String())
	}
	w.t.Fatalf("at %v: "+format, append([]any{w.now}, args...)...)
}

func (w *world) node(name string) *node {
	for _, n := range w.nodes {
		if n.name == name {
			return n
		}
	}
	return nil
}

func (w *world) after(d time.Duration, f func()) {
	w.seq++
	w.events.push(timed{w.now + d, w.seq, f})
}

// run lets time pass.
func (w *world) run(d time.Duration) {
	end := w.now + d
	for len(w.events) > 0 && w.events[0].at <= end {
		e := w.events.pop()
		w.now = e.at
		e.f()
	}
	w.now = end
}

// until lets time pass until something is true.
func (w *world) until(limit time.Duration, what string, f func() bool) {
	w.t.Helper()
	for end := w.now + limit; !f(); {
		if w.now >= end {
			for _, n := range w.nodes {
				if n.ring != nil {
					_, why := n.ring.Proof()
					w.logf("%s is %v; to be whole: %v; it has %d works, %d erases, %d takes", n.name, n.ring.me.mode, why,
						len(n.ring.works), len(n.ring.erases), len(n.ring.takes))
				}
			}
			w.fatalf("in vain waited %v for: %s", limit, what)
		}
		w.run(250 * time.Millisecond)
	}
}

// --- members

func (n *node) wipe() {
	n.disk = &disk{inc: n.w.rng.Uint64() | 1, first: 1, recs: map[digest.Digest]Local{}, bytes: map[digest.Digest]*held{}}
}

func (n *node) instant() Instant {
	return Instant{Mono: n.w.now, Wall: time.UnixMilli(1_800_000_000_000).Add(n.w.now + n.skew)}
}

func (n *node) start() {
	cfg := n.w.cfg
	cfg.Name, cfg.Zone, cfg.Addr, cfg.Incarnation = n.name, n.zone, n.name+":7471", n.disk.inc
	n.life++
	n.frozen, n.inbox = false, nil
	n.starting = true
	n.ring = New(cfg, n.disk.saved, Log{n.disk.first, slices.Clone(n.disk.log)}, n.instant())
	if n.old {
		n.ring.wait = 0
	}
	n.calls, n.jobs = map[uint64]func(Action){}, map[digest.Digest][]*job{}
	for d := range n.disk.bytes { // what has no record was never acknowledged
		if n.disk.recs[d].Record == nil {
			delete(n.disk.bytes, d)
		}
	}
	for _, d := range sorted(n.disk.recs) {
		l, b := n.local(d), n.disk.bytes[d]
		if pinned := b != nil && b.pinned; pinned || l.Wrote {
			n.step(EvHeld{Local: l, Pinned: pinned})
		}
	}
	n.step(EvFull{n.disk.full})
	n.starting = false
	n.w.logf("%s starts", n.name)
	n.wake()
}

// stop is kill -9.
func (n *node) stop() {
	n.ring = nil
	n.life++
	n.frozen, n.inbox = false, nil
	n.w.logf("%s stops", n.name)
}

func (n *node) freeze() { n.frozen = true; n.w.logf("%s freezes", n.name) }

func (n *node) thaw() {
	n.w.logf("%s goes on", n.name)
	n.frozen = false
	in := n.inbox
	n.inbox = nil
	for _, f := range in {
		f()
	}
	if n.ring != nil {
		n.step(EvTick{})
	}
}

func (n *node) up() bool { return n.ring != nil && !n.frozen }

// later does something in this life of the member, when it is not frozen.
func (n *node) later(d time.Duration, f func()) { n.in(n.life, d, f) }

// in is later for another life.
func (n *node) in(life int, d time.Duration, f func()) {
	var do func()
	do = func() {
		switch {
		case n.life != life:
		case n.frozen:
			n.inbox = append(n.inbox, do)
		default:
			f()
		}
	}
	n.w.after(d, do)
}

// wake has the next tick happen.
func (n *node) wake() {
	at := n.ring.Deadline()
	if n.tick > n.w.now && n.tick <= at {
		return
	}
	n.tick = max(at, n.w.now)
	mine := n.tick
	n.later(n.tick-n.w.now, func() {
		if n.tick == mine {
			n.tick = 0
			n.step(EvTick{})
		}
	})
}

func (n *node) local(d digest.Digest) Local {
	l := n.disk.recs[d]
	b := n.disk.bytes[d]
	l.Have = b != nil && !b.gone && (b.pinned || b.until > n.w.now)
	return l
}

func (n *node) locals(ds []digest.Digest) (all []Local) {
	for _, d := range ds {
		all = append(all, n.local(d))
	}
	return all
}

func (n *node) step(ev Event) {
	life := n.life
	for _, a := range n.ring.Step(n.instant(), ev) {
		if n.w.crashes > 0 && !n.starting && n.w.rng.IntN(n.w.crashes) == 0 {
			n.w.logf("%s dies before %T", n.name, a)
			n.stop()
			n.w.after(time.Duration(n.w.rng.Int64N(int64(30*time.Second))), func() {
				if n.ring == nil {
					n.start()
				}
			})
		}
		if n.life != life {
			return
		}
		n.do(a)
	}
	if n.life == life {
		n.wake()
	}
}

func (n *node) do(a Action) {
	w := n.w
	switch a := a.(type) {
	case ActRing:
		n.disk.saved = a.Saved
	case ActSave:
		n.save(a)
	case ActUnpin:
		w.logf("%s unpins %s", n.name, short(a.Digest))
		n.unpin(a.Digest)
		w.oracle.unpinned(n, a.Digest)
	case ActLog:
		n.disk.log = append(n.disk.log, a.Entry)
	case ActTrim:
		n.trim(a)
	case ActAsk:
		n.ask(a)
	case ActReply:
		n.call(a.ID, a)
	case ActReplyLog:
		n.call(a.ID, ActReply{a.To, a.ID, n.page(a.After)})
	case ActDone:
		n.call(a.ID, a)
	case ActFound:
		n.call(a.ID, a)
	case ActTake:
		n.fetch(a)
	case ActBackend:
		n.backend(a)
	case ActHeal:
		n.heal(a)
	}
}

func (n *node) call(id uint64, a Action) {
	f := n.calls[id]
	if f == nil {
		n.w.fatalf("%s answers a call that nobody made: %#v", n.name, a)
	}
	delete(n.calls, id)
	f(a)
}

func (n *node) save(a ActSave) {
	n.w.logf("%s saves %s, pinned %v, wrote %v: %v %v", n.name, short(a.Record.Digest), a.Pinned, a.Wrote, a.Record.Removed, a.Record.Homes)
	if err := a.Record.Check(); err != nil {
		n.w.fatalf("%s is to save what no disk takes: %v", n.name, err)
	}
	n.disk.recs[a.Record.Digest] = Local{Record: a.Record, Wrote: a.Wrote}
	b := n.disk.bytes[a.Record.Digest]
	switch {
	case a.Pinned && b == nil:
		n.w.fatalf("%s is to pin %s, and has no bytes", n.name, short(a.Record.Digest))
	case a.Pinned:
		b.pinned = true
	case b != nil && b.pinned:
		n.unpin(a.Record.Digest)
		n.w.oracle.unpinned(n, a.Record.Digest)
	}
}

func (n *node) unpin(d digest.Digest) {
	if b := n.disk.bytes[d]; b != nil && b.pinned {
		b.pinned, b.until = false, n.w.now+n.w.grace
	}
}

func (n *node) trim(a ActTrim) {
	for ; n.disk.first < a.First; n.disk.first++ {
		e := n.disk.log[0]
		n.disk.log = n.disk.log[1:]
		if l := n.disk.recs[e.Digest]; l.Record != nil && !l.Record.Live() && !l.Wrote && removal(l.Record) == e.Stamp {
			delete(n.disk.recs, e.Digest)
		}
	}
}

func (n *node) page(after uint64) *LogPage {
	p := &LogPage{First: n.disk.first, Next: max(after, n.disk.first-1)}
	for i, e := range n.disk.log {
		if seq := n.disk.first + uint64(i); seq > after && len(p.Entries) < LogPageMax {
			p.Entries = append(p.Entries, e)
			p.Next = seq
		}
	}
	return p
}

// fetch reads a blob from other members.
func (n *node) fetch(a ActTake) {
	n.later(n.w.delay()+time.Duration(a.Size)*time.Nanosecond, func() {
		ev := &EvTaken{Digest: a.Digest, Failed: true, Full: n.disk.full}
		for _, s := range a.Sources {
			m := n.w.node(s)
			if !n.disk.full && m != nil && m.up() && n.w.reaches(n.name, s) && m.local(a.Digest).Have {
				ev.Failed = false
			}
		}
		if !ev.Failed {
			n.has(a.Digest)
		}
		ev.Local = n.local(a.Digest)
		n.step(ev)
	})
}

// heal takes each piece that is wrong by then from the first member that has it right.
func (n *node) heal(a ActHeal) {
	n.later(n.w.delay(), func() {
		b := n.disk.bytes[a.Digest]
		wrong, left := b.bad, []int(nil)
		if b.gone {
			wrong = a.Pieces
		}
		for _, p := range wrong {
			if !slices.ContainsFunc(a.From, func(name string) bool {
				m := n.w.node(name)
				return m.up() && n.w.reaches(n.name, name) && m.local(a.Digest).Have && !slices.Contains(m.disk.bytes[a.Digest].bad, p)
			}) {
				left = append(left, p)
			}
		}
		if b.gone = b.gone && len(left) > 0; b.gone {
			left = a.Pieces // all of it has to come
		}
		b.bad = left
		n.step(EvBad{a.Digest, left})
	})
}

// has has a blob's bytes be there, not pinned.
func (n *node) has(d digest.Digest) {
	if n.disk.bytes[d] == nil {
		n.disk.bytes[d] = &held{}
	}
	b := n.disk.bytes[d]
	b.until = max(b.until, n.w.now+time.Minute)
}

// --- the network

func (w *world) reaches(from, to string) bool { return !w.cut[[2]string{from, to}] }

func (w *world) delay() time.Duration {
	d := time.Duration(w.rng.Int64N(int64(w.slow))) + time.Millisecond
	if w.loss > 0 && w.rng.IntN(50) == 0 {
		d += time.Duration(w.rng.Int64N(int64(4 * time.Second)))
	}
	return d
}

func (w *world) lose() bool { return w.loss > 0 && w.rng.Float64() < w.loss }

func (n *node) ask(a ActAsk) {
	w := n.w
	q := a.Ask
	switch o := q.(type) {
	case *Replica:
		c := *o
		c.Record = n.disk.recs[o.Digest].Record
		q = &c
	case *Consult:
		q = &Consult{o.Digest, n.disk.recs[o.Digest].Record}
	}
	q = askByWire(w, q)
	inc, life := n.disk.inc, n.life
	m := w.node(a.To)
	refused := func() { n.later(w.delay(), func() { n.step(&EvAnswered{ID: a.ID}) }) }
	if m == nil || m.ring == nil {
		refused()
		return
	}
	if !w.reaches(n.name, a.To) || w.lose() {
		return
	}
	m.later(w.delay(), func() {
		if !w.reaches(n.name, a.To) {
			return
		}
		w.nextID++
		id := w.nextID
		m.calls[id] = func(r Action) {
			if r.(ActReply).Answer == nil {
				n.in(life, w.delay(), func() { n.step(&EvAnswered{ID: a.ID}) })
				return
			}
			answer := answerByWire(w, KindOf(q), r.(ActReply).Answer)
			if c, ok := answer.(*Replied); ok {
				w.logf("%s asks %s for %s: %+v", n.name, m.name, short(q.(*Replica).Digest), c)
			}
			minc := m.disk.inc
			if !w.reaches(n.name, a.To) || w.lose() {
				return
			}
			n.in(life, w.delay(), func() {
				if w.reaches(n.name, a.To) {
					n.step(&EvAnswered{ID: a.ID, Incarnation: minc, Answer: answer, Local: n.locals(answer.Digests())})
				}
			})
		}
		at := m.life
		m.step(&EvAsked{From: n.name, Incarnation: inc, ID: id, Ask: q, Local: m.locals(q.Digests())})
		if m.calls[id] != nil {
			m.in(at, waitFor+time.Millisecond, func() {
				if m.calls[id] != nil {
					w.fatalf("%s has not answered %s, who asks for %T", m.name, n.name, q)
				}
			})
		}
	})
}

// encodes reports whether a message is to be brought as members do: of statuses, which are most of them, and in long runs,
// some are.
func (w *world) encodes(k Kind) bool {
	one := 1
	if k == KindStatus {
		one *= 8
	}
	if *seeds > 0 {
		one *= 32
	}
	return w.seq%one == 0
}

func askByWire(w *world, q Ask) Ask {
	if !w.encodes(KindOf(q)) {
		return q
	}
	b, err := EncodeAsk(q)
	if err == nil {
		q, err = DecodeAsk(KindOf(q), b)
	}
	if err != nil {
		w.fatalf("%v", err)
	}
	return q
}

func answerByWire(w *world, k Kind, a Answer) Answer {
	if !w.encodes(k) {
		return a
	}
	b, err := EncodeAnswer(a)
	if err == nil {
		a, err = DecodeAnswer(k, b)
	}
	if err != nil {
		w.fatalf("%v", err)
	}
	return a
}

// cutOff has two members not reach each other, or do so again.
func (w *world) cutOff(a, b string, cut bool) {
	w.cut[[2]string{a, b}], w.cut[[2]string{b, a}] = cut, cut
}

// partition cuts between those who are named and the others; without names it is healed.
func (w *world) partition(names ...string) {
	w.logf("partition: %v", names)
	clear(w.cut)
	for _, a := range w.nodes {
		for _, b := range w.nodes {
			if slices.Contains(names, a.name) != slices.Contains(names, b.name) {
				w.cut[[2]string{a.name, b.name}] = true
			}
		}
	}
}
