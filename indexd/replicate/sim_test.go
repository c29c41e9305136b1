package replicate

import (
	"container/heap"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

// The simulator: two clusters, each with a storage and several indexes over it, whose workers bring tags to the other one. All that
// moves does so in steps that take a while; processes die, are stopped for a while, and answers get lost. It is deterministic by seed.

type stamp struct {
	time    int64
	cluster string
}

func (s stamp) later(o stamp) bool {
	return s.time > o.time || s.time == o.time && s.cluster > o.cluster
}

type simTag struct {
	revision uint64
	stamp    stamp
	content  int // 0: deleted
}

// town is a cluster.
type town struct {
	name      string
	s         *sim
	foreign   bool // it takes tags as a registry that knows no stamps does
	forward   bool
	rule      string
	walks     time.Duration
	tags      map[string]simTag
	outbox    map[Key]map[uint64]time.Time
	parked    map[Key]bool
	lease     Lease
	leaseAt   int // its version
	cursor    string
	cursorOf  string
	manifests map[int]bool         // that are there
	signed    map[int]map[int]bool // signatures by the content's number
	down      bool                 // to who delivers to it
	refuses   map[string]bool      // tags
	puts      int
	delivers  int
	last      map[string]uint64 // foreign: the revision at the source that was put last
	hosts     []*host
}

// host is an index process.
type host struct {
	in      *town
	to      *town
	n, life int
	skew    time.Duration
	alive   bool
	frozen  time.Time // until then nothing happens in it
	w       *Worker
	tick    time.Time
}

type simEvent struct {
	at  time.Time
	seq int
	do  func()
}

type simEvents []simEvent

func (q simEvents) Len() int { return len(q) }
func (q simEvents) Less(i, j int) bool {
	return q[i].at.Before(q[j].at) || q[i].at.Equal(q[j].at) && q[i].seq < q[j].seq
}
func (q simEvents) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *simEvents) Push(x any)   { *q = append(*q, x.(simEvent)) }
func (q *simEvents) Pop() any {
	old := *q
	e := old[len(old)-1]
	*q = old[:len(old)-1]
	return e
}

type sim struct {
	t      *testing.T
	rnd    *rand.Rand
	now    time.Time
	start  time.Time
	seq    int
	events simEvents
	lossy  float64 // answers that get lost
	slow   time.Duration
	towns  [2]*town
	acked  map[string]map[string]stamp // by town, by tag
	trace  []string
	faults []string
}

func newSim(t *testing.T, seed uint64, hosts int) *sim {
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	s := &sim{t: t, rnd: rand.New(rand.NewPCG(seed, 19)), now: start, start: start, slow: 200 * time.Millisecond,
		acked: map[string]map[string]stamp{"a": {}, "b": {}}}
	for i, name := range []string{"a", "b"} {
		s.towns[i] = &town{name: name, s: s, rule: "1", walks: 20 * time.Minute, tags: map[string]simTag{},
			outbox: map[Key]map[uint64]time.Time{},
			parked: map[Key]bool{}, manifests: map[int]bool{}, signed: map[int]map[int]bool{}, refuses: map[string]bool{}, last: map[string]uint64{}}
	}
	for i, tn := range s.towns {
		for n := range hosts {
			h := &host{in: tn, to: s.towns[1-i], n: n, skew: time.Duration(i*10+n*3) * time.Second}
			tn.hosts = append(tn.hosts, h)
			h.boot()
		}
	}
	return s
}

func (s *sim) after(d time.Duration, do func()) {
	s.seq++
	heap.Push(&s.events, simEvent{s.now.Add(d), s.seq, do})
}

func (s *sim) delay() time.Duration {
	return time.Duration(s.rnd.Int64N(int64(s.slow))) + time.Millisecond
}

func (s *sim) log(format string, args ...any) {
	s.trace = append(s.trace, fmt.Sprintf("%8.3f ", s.now.Sub(s.start).Seconds())+fmt.Sprintf(format, args...))
	if len(s.trace) > 400 {
		s.trace = s.trace[200:]
	}
}

func (s *sim) fault(format string, args ...any) {
	s.faults = append(s.faults, fmt.Sprintf(format, args...))
}

// run lets time pass.
func (s *sim) run(d time.Duration) {
	end := s.now.Add(d)
	for len(s.events) > 0 && !s.events[0].at.After(end) {
		e := heap.Pop(&s.events).(simEvent)
		s.now = e.at
		e.do()
	}
	s.now = end
}

func (h *host) boot() {
	h.life++
	h.alive = true
	h.w = NewWorker(fmt.Sprintf("%s%d.%d", h.in.name, h.n, h.life), h.in.ruleIs(), 64)
	h.step(Tick{})
}

func (t *town) ruleIs() RuleIs {
	return RuleIs{Version: t.rule, Parallel: 4, Rate: 100, Every: t.walks}
}

// every sets how long it is from one walk to the next.
func (s *sim) every(d time.Duration) {
	for _, t := range s.towns {
		t.walks = d
		for _, h := range t.hosts {
			h.step(t.ruleIs())
		}
	}
}

func (h *host) kill() { h.alive = false }

// in happens in the process after a while, if it lives then, and is not stopped.
func (h *host) later(d time.Duration, do func()) {
	life := h.life
	var try func()
	try = func() {
		switch {
		case !h.alive || h.life != life:
		case h.in.s.now.Before(h.frozen):
			h.in.s.after(h.frozen.Sub(h.in.s.now), try)
		default:
			do()
		}
	}
	h.in.s.after(d, try)
}

func (h *host) step(e Event) {
	s := h.in.s
	for _, a := range h.w.Step(s.now, e) {
		h.perform(a)
	}
	next := h.w.Next(s.now)
	if !next.Equal(h.tick) {
		h.tick = next
		h.later(max(next.Sub(s.now), 0)+time.Microsecond, func() {
			if h.tick.Equal(next) {
				h.tick = time.Time{}
				h.step(Tick{})
			}
		})
	}
}

// call does something at the storage, and has its answer come back, or get lost: then lost does.
func (h *host) call(do func() Event, lost Event) {
	s := h.in.s
	s.after(s.delay(), func() { // a request that was sent arrives, whatever becomes of the process
		e := do()
		if s.rnd.Float64() < s.lossy {
			e = lost
		}
		h.later(s.delay(), func() { h.step(e) })
	})
}

func (h *host) perform(a Action) {
	t := h.in
	switch a := a.(type) {
	case ReadLease:
		h.call(func() Event { return LeaseRead{Lease: t.lease, Version: fmt.Sprint(t.leaseAt)} }, LeaseRead{Failed: true})
	case WriteLease:
		h.call(func() Event {
			if a.Version != fmt.Sprint(t.leaseAt) {
				return LeaseWritten{Failed: true}
			}
			if a.Lease.Term != t.lease.Term {
				t.s.log("%s: lease of term %d to %q", t.name, a.Lease.Term, a.Lease.Holder)
			}
			t.lease = a.Lease
			t.leaseAt++
			return LeaseWritten{Version: fmt.Sprint(t.leaseAt)}
		}, LeaseWritten{Failed: true})
	case List:
		h.call(func() Event { return t.listed(a.From) }, Listed{Failed: true})
	case Deliver:
		h.deliver(a)
	case Remove:
		h.call(func() Event { t.remove(a); return Removed{Key: a.Key, Term: a.Term} }, Removed{Key: a.Key, Term: a.Term, Failed: true})
	case Park:
		h.call(func() Event { t.parked[a.Key] = true; t.remove(a.Remove); return Removed{Key: a.Key, Term: a.Term} },
			Removed{Key: a.Key, Term: a.Term, Failed: true})
	case LoadWalk:
		h.call(func() Event { return WalkIs{Cursor: t.cursor, Rule: t.cursorOf} }, WalkIs{Failed: true})
	case Walk:
		h.call(func() Event { return h.walk(a) }, Walked{Failed: true, Pass: a.Pass})
	case Unpark:
		h.call(func() Event {
			for k := range t.parked {
				t.intent(k, max(t.tags[k.Tag].revision, 1))
			}
			clear(t.parked)
			return Unparked{}
		}, Unparked{Failed: true})
	}
}

func (t *town) intent(k Key, revision uint64) {
	if t.outbox[k] == nil {
		t.outbox[k] = map[uint64]time.Time{}
	}
	t.outbox[k][revision] = t.s.now
}

func (t *town) remove(a Remove) {
	for _, r := range a.Revisions {
		delete(t.outbox[a.Key], r)
	}
	if len(t.outbox[a.Key]) == 0 {
		delete(t.outbox, a.Key)
	}
}

func name(k Key) string { return k.Tag + string(k.Digest) }

// listed is a page of three keys.
func (t *town) listed(from string) Listed {
	var l Listed
	keys := slices.SortedFunc(maps.Keys(t.outbox), func(a, b Key) int { return strings.Compare(name(a), name(b)) })
	n := 0
	for _, k := range keys {
		if name(k) <= from {
			continue
		}
		if n++; n > 3 {
			return l
		}
		for r, at := range t.outbox[k] {
			l.Intents = append(l.Intents, Intent{k, r, t.s.now.Sub(at)})
		}
		l.Next = name(k)
	}
	l.Next = ""
	return l
}

// walk compares a page of two tags.
func (h *host) walk(a Walk) Event {
	t := h.in
	n, next := 0, ""
	for _, tag := range slices.Sorted(maps.Keys(t.tags)) {
		if tag <= a.From {
			continue
		}
		if n++; n > 2 {
			break
		}
		next = tag
		if h.to.down {
			return Walked{Failed: true, Pass: a.Pass}
		}
		is, there := t.tags[tag], h.to.tags[tag]
		if is.stamp.cluster != t.name && !t.forward {
			continue
		}
		if h.to.foreign && is.content != there.content || !h.to.foreign && is.stamp.later(there.stamp) {
			t.intent(Key{Tag: tag}, is.revision)
		}
	}
	if n <= 2 {
		next = ""
	}
	t.cursor, t.cursorOf = next, a.Rule
	return Walked{Next: next, Tags: min(n, 2), Pass: a.Pass}
}

// deliver is a delivery in steps, any of which may be the last.
func (h *host) deliver(a Deliver) {
	s, t, to := h.in.s, h.in, h.to
	t.delivers++
	life := h.life
	answered := false
	done := func(d Delivered) {
		if answered {
			return
		}
		answered = true
		d.Key, d.Term, d.Foreign = a.Key, a.Term, to.foreign
		h.later(s.delay(), func() { h.step(d) })
	}
	s.after(30*time.Second, func() { done(Delivered{Outcome: Later}) }) // a request that nobody answers
	// then goes on, unless the process is gone or stopped; what it has sent arrives.
	then := func(do func()) {
		h.later(s.delay(), func() {
			if h.life != life {
				return
			}
			if to.down {
				done(Delivered{Outcome: Later})
				return
			}
			s.after(s.delay(), func() {
				if s.rnd.Float64() < s.lossy {
					done(Delivered{Outcome: Later}) // it arrives, and nobody knows
				}
				do()
			})
		})
	}
	if a.Key.Digest != "" {
		h.deliverSignature(a, then, done)
		return
	}
	then(func() {
		is := t.tags[a.Key.Tag]
		if is.revision == a.Known {
			done(Delivered{Revision: is.revision})
			return
		}
		sign := func() {
			for g := range t.signed[is.content] {
				if to.manifests[is.content] {
					to.sign(is.content, g)
				}
			}
		}
		then(func() {
			if to.refuses[a.Key.Tag] {
				done(Delivered{Revision: is.revision, Outcome: Refused, Reason: "denied"})
				return
			}
			if is.content != 0 {
				to.manifests[is.content] = true
			}
			sign()
			then(func() {
				to.put(h, a.Key.Tag, is, func() { then(func() { sign(); done(Delivered{Revision: is.revision}) }) })
			})
		})
	})
}

func (h *host) deliverSignature(a Deliver, then func(func()), done func(Delivered)) {
	var content, g int
	fmt.Sscanf(string(a.Key.Digest), "%d.%d", &content, &g)
	then(func() {
		if !h.in.signed[content][g] {
			done(Delivered{})
			return
		}
		then(func() {
			if h.to.manifests[content] {
				h.to.sign(content, g)
			}
			done(Delivered{Revision: 1})
		})
	})
}

func (t *town) sign(content, g int) {
	if t.signed[content] == nil {
		t.signed[content] = map[int]bool{}
	}
	t.signed[content][g] = true
}

// put is a tag that comes from elsewhere. In a Capelin it is written by one of its indexes.
func (t *town) put(from *host, tag string, is simTag, answer func()) {
	t.puts++
	if t.foreign {
		if t.last[tag] > is.revision {
			t.s.fault("tag %s of %s went back from revision %d to %d", tag, t.name, t.last[tag], is.revision)
		}
		t.last[tag] = is.revision
		t.tags[tag] = simTag{revision: t.tags[tag].revision + 1, content: is.content}
		answer()
		return
	}
	h := t.hosts[t.s.rnd.IntN(len(t.hosts))]
	h.write(tag, is.content, &is.stamp, func(stamp) { answer() })
}

// write is an index's write of a tag: read, intent, compare and swap. source is the stamp of a write elsewhere.
func (h *host) write(tag string, content int, source *stamp, acked func(stamp)) {
	t, s := h.in, h.in.s
	h.later(s.delay(), func() {
		before := t.tags[tag]
		is := simTag{before.revision + 1, stamp{max(s.now.Add(h.skew).UnixMilli(), before.stamp.time+1), t.name}, content}
		if source != nil {
			if is.stamp = *source; !source.later(before.stamp) {
				acked(before.stamp)
				return
			}
		}
		cas := func() {
			if t.tags[tag].revision != before.revision {
				h.write(tag, content, source, acked)
				return
			}
			if before.stamp.later(is.stamp) {
				s.fault("a stamp of %s went back", tag)
			}
			s.log("%s: tag %s is revision %d, content %d, stamp %v", t.name, tag, is.revision, content, is.stamp)
			t.tags[tag] = is
			h.step(Nudge{})
			if s.rnd.Float64() >= s.lossy {
				acked(is.stamp)
			}
		}
		if source != nil && !t.forward {
			h.later(s.delay(), cas)
			return
		}
		h.later(s.delay(), func() {
			t.intent(Key{Tag: tag}, is.revision)
			h.later(s.delay(), cas)
		})
	})
}

// push is a client's write of a tag.
func (s *sim) push(t *town, tag string, content int) {
	h := t.hosts[s.rnd.IntN(len(t.hosts))]
	if content != 0 {
		t.manifests[content] = true
	}
	h.write(tag, content, nil, func(st stamp) {
		if was := s.acked[t.name][tag]; st.later(was) {
			s.acked[t.name][tag] = st
		}
	})
}

// signs is a client's push of a signature: intent, record.
func (s *sim) signs(t *town, content, g int) {
	h := t.hosts[s.rnd.IntN(len(t.hosts))]
	h.later(s.delay(), func() {
		t.intent(Key{Digest: digestOf(content, g)}, 1)
		h.later(s.delay(), func() { t.sign(content, g) })
	})
}

// settle ends all mischief, and lets everything come to rest.
func (s *sim) settle(d time.Duration) {
	s.lossy = 0
	for _, t := range s.towns {
		t.down = false
		clear(t.refuses)
		for _, h := range t.hosts {
			h.frozen = time.Time{}
			if !h.alive {
				h.boot()
			}
		}
	}
	s.run(d)
}

// check looks for what must be so when all is at rest.
func (s *sim) check() {
	s.t.Helper()
	for i, t := range s.towns {
		to := s.towns[1-i]
		for tag, st := range s.acked[t.name] {
			is, there := t.tags[tag], to.tags[tag]
			switch {
			case st.later(is.stamp):
				s.fault("%s has lost its own %s", t.name, tag)
			case to.foreign && is.content != there.content:
				s.fault("tag %s: %s has content %d, %s %d", tag, t.name, is.content, to.name, there.content)
			case !to.foreign && st.later(there.stamp):
				s.fault("tag %s was acknowledged by %s at %v, %s has it at %v, content %d", tag, t.name, st, to.name, there.stamp, there.content)
			}
			if is.content != 0 && is.content == there.content {
				for g := range t.signed[is.content] {
					if !to.signed[is.content][g] {
						s.fault("%s lacks signature %d of %s, content %d", to.name, g, tag, is.content)
					}
				}
			}
			if there.content != 0 && !to.manifests[there.content] {
				s.fault("tag %s of %s names what is not there", tag, to.name)
			}
		}
		for k, revs := range t.outbox {
			for r := range revs {
				if k.Tag != "" && r <= t.tags[k.Tag].revision {
					s.fault("%s still has the intent of %s for revision %d", t.name, k.Tag, r)
				}
			}
			if len(revs) > 1 {
				s.fault("%s has %d intents of %v", t.name, len(revs), k)
			}
		}
		if len(t.parked) > 0 {
			s.fault("%s still has parked ones", t.name)
		}
	}
	for _, f := range s.faults {
		s.t.Error(f)
	}
	if len(s.faults) > 0 {
		s.t.Log(strings.Join(s.trace[max(0, len(s.trace)-60):], "\n"))
	}
}
