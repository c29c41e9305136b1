package ringstate

import (
	"container/heap"
	"slices"
	"time"

	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/origind/record"
)

// work is a home that is to get the blob, as this member sees it: it has the blob pinned
// for it, and has not seen it there itself since the last push.
//
//	wait ─ due ─► consult those before me ─► one of them is about it: wait
//	                                       └► none, or it has become too old: look
//	look ─► there: found; all homes found: unpin, tell the others
//	     └► not there, and nobody before me: write, then look
//
// After a removal an erasure may be under way somewhere, so what is seen counts only when
// each listed member has said that it erases nothing; until then the blob is written without
// a look, because what would be seen may be what is about to be erased.
type work struct {
	digest  digest.Digest
	place   record.Place
	pushed  record.Stamp // the last push
	removal record.Stamp // a removal that may not be done; 0: none
	by      string
	since   record.Stamp
	told    bool // somebody has seen it there
	found   bool
	gone    bool

	settled uint64       // slots of those who erase nothing of before
	wrote   record.Stamp // the push that was written from here
	first   bool         // nobody before this member is about to write
	rank    int          // how many are before it
	gen     int          // counts pushes and removals
	after   int64        // not before: who took the push asks once more whether it is pinned here
	due     int64
	pause   int64
	index   int // in the heap; -1: not in it
}

// atOnce is how many works are being done at once.
const atOnce = 64

// seen is a blob that is not pinned any more because it is in the backend.
type seen struct {
	pushed record.Stamp
	at     int64
}

// duties computes what is to be done about a pinned blob's homes.
func (r *Ring) duties(rec *record.Record, b *blob) {
	old := b.works
	b.works, b.kept, b.mine = nil, false, false
	for i := range rec.Homes {
		h := &rec.Homes[i]
		pushed := rec.PushedTo(h)
		if pushed == 0 {
			continue
		}
		b.mine = b.mine || h.By == r.cfg.Name
		if h.Key == "" {
			b.kept = true
			continue
		}
		j := slices.IndexFunc(old, func(w *work) bool { return w.place == h.Place })
		var w *work
		if j >= 0 {
			w = old[j]
			old = slices.Delete(old, j, j+1)
		} else {
			w = &work{digest: rec.Digest, place: h.Place, due: r.now, index: -1}
		}
		b.works = append(b.works, w)
		r.duty(w, rec, h, pushed)
	}
	for _, w := range old {
		w.gone = true
	}
}

func (r *Ring) duty(w *work, rec *record.Record, h *record.Home, pushed record.Stamp) {
	removal := removal(rec)
	if h.Written > removal {
		removal = 0
	}
	w.by, w.since = h.By, h.Since
	told := h.Written > pushed
	if pushed != w.pushed || removal > w.removal {
		if pushed != w.pushed && h.By != r.cfg.Name {
			w.after = r.now + 2*int64(r.cfg.Probe)
		}
		w.gen++
		w.found, w.settled, w.pause, w.due = false, 0, 0, max(r.now, w.after)
	} else if told && !w.told {
		w.pause, w.due = 0, max(r.now, w.after)
	}
	w.pushed, w.removal, w.told = pushed, removal, told
	r.plan(w, w.due)
}

// plan has a work be done at that time.
func (r *Ring) plan(w *work, due int64) {
	w.due = due
	switch {
	case w.index >= 0:
		heap.Fix(&r.works, w.index)
	case !w.found && !w.gone && w.index == -1:
		heap.Push(&r.works, w)
	}
}

// again has it be tried again, ever less often.
func (r *Ring) again(w *work) {
	r.free(w)
	w.pause = min(max(2*w.pause, int64(r.cfg.Retry)), int64(r.cfg.RetryMax))
	r.plan(w, r.now+w.pause)
}

// writes reports whether this member may change backends: it knows what was deleted.
func (r *Ring) writes() bool { return r.stale == 0 && !r.starting && r.me.listed() }

// work does what is due.
func (r *Ring) work() {
	if !r.writes() {
		return
	}
	for len(r.works) > 0 && r.works[0].due <= r.now && r.busy < atOnce {
		w := heap.Pop(&r.works).(*work)
		if !w.gone && !w.found {
			w.index = busy
			r.consult(w)
		}
	}
}

// busy is the index of a work that is being done.
const busy = -2

// free ends that. What has been learnt meanwhile may have planned it already.
func (r *Ring) free(w *work) {
	if w.index == busy {
		w.index = -1
	}
}

// before returns who is to write before this one: who took the push, then by score.
func (r *Ring) before(w *work) (all []*member) {
	if w.by == r.cfg.Name {
		return nil
	}
	if m := r.find(w.by); m != nil && m.listed() {
		all = append(all, m)
	}
	for _, m := range r.ordered(string(w.digest)) {
		if m == r.me {
			break
		}
		if m.name != w.by {
			all = append(all, m)
		}
	}
	return all
}

// consult asks those on whom it depends what this member does next.
func (r *Ring) consult(w *work) {
	r.busy++
	before := r.before(w)
	gen, open, blocked := w.gen, 0, uint64(0)
	for _, m := range before {
		if r.lives&m.bit() != 0 {
			blocked |= m.bit()
		}
	}
	end := func() {
		r.busy--
		if w.gone || w.gen != gen {
			r.again(w)
			return
		}
		w.first, w.rank = blocked == 0, len(before)
		r.decide(w)
	}
	for m := range r.others() {
		if blocked&m.bit() == 0 && (w.removal == 0 || w.settled&m.bit() != 0) || !r.hears(m) {
			continue
		}
		open++
		r.ask(m, &Consult{Digest: w.digest}, func(a Answer, local []Local) {
			if c, ok := a.(*Consulted); ok {
				if c.Record != nil {
					r.merge(local[0], c.Record)
				}
				if !c.Erasing && (c.Record == nil || removal(c.Record) >= w.removal) && w.gen == gen {
					w.settled |= m.bit()
				}
				if !slices.Contains(c.Pending, w.place) {
					blocked &^= m.bit()
				}
			}
			if open--; open == 0 {
				end()
			}
		})
	}
	if open == 0 {
		end()
	}
}

// age returns how many milliseconds ago a stamp was made.
func (r *Ring) age(s record.Stamp) time.Duration {
	return max(record.At(r.wall), r.clock.Last()).Time().Sub(s.Time())
}

// reach is how a backend answers this member.
type reach struct {
	works bool
	since int64 // when it began to
}

// mayLook reports whether it is this member's turn to see to a home: nobody before it is about to, or they
// have had the time to.
func (r *Ring) mayLook(w *work) bool {
	return r.writes() && (w.first || r.age(w.since) > time.Duration(w.rank)*r.cfg.Standby)
}

// mayWrite reports whether it may also write. Those before it have had no time while the backend did not
// answer: when it does again, not all are to write everything.
func (r *Ring) mayWrite(w *work) bool {
	at := r.reaches[w.place.Backend]
	return r.mayLook(w) && (w.first || at.works && r.now-at.since > int64(w.rank)*int64(r.cfg.Standby))
}

func (r *Ring) decide(w *work) {
	settled := r.settled(w)
	switch {
	case !r.writes():
		r.again(w)
	case !settled && r.mayWrite(w) && w.wrote != w.pushed:
		r.bring(w, Write)
	case !settled || !r.mayLook(w) && !w.told:
		r.again(w)
	default:
		r.stat(w)
	}
}

// settled reports whether nobody erases anything of before the last push any more, so that what is there is of that push.
func (r *Ring) settled(w *work) bool {
	if w.removal == 0 {
		return true
	}
	for m := range r.others() {
		if w.settled&m.bit() == 0 {
			return false
		}
	}
	return r.erases[w.digest] == nil
}

// backend has something done to w's object. f is called with how it went, unless there
// was a push or a removal since.
func (r *Ring) backend(do BackendDo, w *work, f func(*EvBackend)) {
	r.busy++
	gen := w.gen
	r.nextID++
	r.looks[r.nextID] = func(ev *EvBackend) {
		r.busy--
		if at := r.reaches[w.place.Backend]; at.works != ev.OK {
			r.reaches[w.place.Backend] = reach{ev.OK, r.now}
		}
		if w.gone || w.gen != gen || !ev.OK {
			r.again(w)
			return
		}
		f(ev)
	}
	r.do(ActBackend{ID: r.nextID, Do: do, Digest: w.digest, Place: w.place})
}

// bring writes the object, or only the record beside it. Who has written both has seen them.
func (r *Ring) bring(w *work, do BackendDo) {
	pushed, settled := w.pushed, r.settled(w)
	r.backend(do, w, func(ev *EvBackend) {
		w.wrote, w.pause = pushed, 0
		l := r.local(w.digest, ev.Local)
		if settled && ev.Found && named(w, l, ev.Beside) {
			r.foundIt(w, l, ev.Beside)
		} else {
			r.again(w)
		}
	})
}

// named reports whether what is beside an object names all that was pushed there.
func named(w *work, l Local, beside *record.Record) bool {
	return beside != nil && l.Record != nil && beside.Covers(pushes(l.Record, w.place))
}

// stat looks whether the object is there, and whether what is beside it names all that was pushed.
func (r *Ring) stat(w *work) {
	r.backend(Stat, w, func(ev *EvBackend) {
		l := r.local(w.digest, ev.Local)
		switch {
		case ev.Found && named(w, l, ev.Beside):
			r.foundIt(w, l, ev.Beside)
		case !r.mayWrite(w):
			r.again(w)
		case ev.Found:
			r.bring(w, Note)
		default:
			r.bring(w, Write)
		}
	})
}

// foundIt notes that the backend has the blob: this member has seen it, after the last push
// and after all removals were done.
func (r *Ring) foundIt(w *work, l Local, beside *record.Record) {
	r.free(w)
	b := r.blobs.get(w.digest)
	if b == nil || l.Record.Home(w.place) == nil {
		return
	}
	known := record.Merge(l.Record, Only(beside, w.place))
	rec := r.merge(l, known.WithWritten(w.place, r.stamp(known)))
	if b = r.blobs.get(w.digest); b == nil || !lives(rec, w.place) {
		return // what is beside knows of a removal
	}
	w.found = true
	for m := range r.others() {
		if r.hears(m) {
			r.ask(m, &Consult{Digest: w.digest}, func(a Answer, local []Local) {
				if c, ok := a.(*Consulted); ok && c.Record != nil {
					r.merge(local[0], c.Record)
				}
			})
		}
	}
	if b.kept || slices.ContainsFunc(b.works, func(w *work) bool { return !w.found }) {
		return
	}
	if slices.ContainsFunc(r.puts, func(p *put) bool { return p.digest == w.digest }) {
		w.found = false
		r.again(w)
		return
	}
	r.leave(w.digest, b)
	r.unpin(w.digest)
	r.stated[w.digest] = seen{rec.Latest(), r.now}
	r.statedOrder = append(r.statedOrder, w.digest)
}

// forgetStated forgets what was seen long ago; who is asked then looks again.
func (r *Ring) forgetStated() {
	for len(r.statedOrder) > 0 {
		digest := r.statedOrder[0]
		if s, ok := r.stated[digest]; ok && r.now-s.at <= int64(statedFor) {
			return
		}
		delete(r.stated, digest)
		r.statedOrder = r.statedOrder[1:]
	}
}

const statedFor = 10 * time.Minute

// written reports whether all that the record asks for is in backends, as this member has seen itself.
func (r *Ring) written(rec *record.Record) bool {
	s, ok := r.stated[rec.Digest]
	if !ok {
		return false
	}
	for i := range rec.Homes {
		if p := rec.PushedTo(&rec.Homes[i]); p > 0 && (rec.Homes[i].Key == "" || p > s.pushed) {
			return false
		}
	}
	return true
}

// backendHas notes that an owner does not want a blob because it saw it in the backend.
func (r *Ring) backendHas(digest digest.Digest, m *member) {
	b := r.blobs.get(digest)
	if b == nil {
		return
	}
	b.lacks &^= m.bit()
	if b.owners&r.me.bit() != 0 {
		r.count(digest, b, -1)
		b.confirmed |= m.bit()
		r.count(digest, b, 1)
	}
}

// consulted answers Consult.
func (r *Ring) consulted(q *Consult, l Local) *Consulted {
	l = r.local(q.Digest, l)
	c := &Consulted{Record: l.Record}
	if q.Record != nil && q.Record.Digest == q.Digest && (l.Record != nil || len(q.Record.Removed) > 0) {
		c.Record = r.merge(l, q.Record)
	}
	if b := r.blobs.get(q.Digest); b != nil {
		for _, w := range b.works {
			if !w.found {
				c.Pending = append(c.Pending, w.place)
			}
		}
	}
	c.Erasing = r.erases[q.Digest] != nil
	return c
}

// Before and Place are posheap.Item's.
func (w *work) Before(o *work) bool { return w.due < o.due }
func (w *work) Place() *int         { return &w.index }
