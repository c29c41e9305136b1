package ringstate

import (
	"slices"

	"github.com/capelin-io/capelin/origind/record"
)

// deletion is a client's DELETE that is not acknowledged yet.
//
// It is when more than all but MinReplicas of the members have it durably, and so has
// everybody who is not down: then each MinReplicas members that can acknowledge a push, or
// take part in anything else, have one among them who knows of it.
type deletion struct {
	id    uint64
	entry record.Deletion
	place record.Place
	// blind: this member knew nothing of it, and the backend did not answer. It is acknowledged only
	// if somebody else knows something.
	blind bool
	since int64
	have  uint64           // slots
	seqs  map[uint8]uint64 // its number in the logs of those who have it
	heard uint64           // whom those have heard
	asked uint64           // who is being asked
	// erasers are those who see to it that backends hear of it: MinReplicas, because its disk may be lost.
	erasers uint64
}

// delete begins a deletion. What members knew of pushes they may have lost, so what is beside the object is looked at
// first: by whatever clock those were stamped, the removal is to be later.
func (r *Ring) delete(ev *EvDelete) {
	if !r.me.listed() {
		r.do(ActDone{ID: ev.ID, Why: WhyRemoved})
		return
	}
	d := &deletion{id: ev.ID, place: ev.Place, since: r.now}
	r.deletes = append(r.deletes, d)
	begin := func(l Local) {
		e := record.Deletion{
			Digest: ev.Digest, Namespace: ev.Namespace, Stamp: r.stamp(r.local(ev.Digest, l).Record),
		}
		r.remove(d, e, l)
	}
	if ev.Place.Kept() {
		begin(ev.Local)
		return
	}
	r.nextID++
	r.looks[r.nextID] = func(back *EvBackend) {
		if slices.Contains(r.deletes, d) {
			d.blind = !back.OK && back.Local.Record.Home(ev.Place) == nil
			r.merge(back.Local, Only(back.Beside, ev.Place))
			begin(back.Local)
		}
	}
	r.do(ActBackend{ID: r.nextID, Do: Stat, Digest: ev.Digest, Place: ev.Place})
}

// remove begins d, or begins it again with a later stamp.
func (r *Ring) remove(d *deletion, e record.Deletion, l Local) {
	d.entry, d.have, d.heard, d.asked, d.seqs = e, r.me.bit(), 0, 0, map[uint8]uint64{}
	d.erasers = r.me.bit()
	r.condemn(e, d.place, l)
	r.askDeleted(d)
}

// condemn takes a removal in, and has this member erase what is at a place, also if nobody knows any
// more that there is something.
func (r *Ring) condemn(e record.Deletion, at record.Place, l Local) (seq uint64, rec *record.Record) {
	if at.Kept() {
		return r.apply(e, l)
	}
	l = r.local(e.Digest, l)
	if l.Record.Home(at) == nil {
		// Removed at once: what lives has a size.
		l.Record = r.merge(l, record.Merge(record.Pushed(e.Digest, 0, at, e.Namespace, "", record.V1),
			record.Removed(e.Digest, e.Namespace, e.Stamp)))
	}
	seq, rec = r.apply(e, l)
	l = r.local(e.Digest, l)
	l.Wrote = true
	r.write(rec, l, r.blobs.get(e.Digest) != nil)
	r.erasable(rec, l)
	return seq, rec
}

func (r *Ring) askDeleted(d *deletion) {
	erasers := count(d.erasers)
	for _, m := range r.ordered(string(d.entry.Digest)) {
		q := Deleted{Entry: d.entry}
		if erasers < r.cfg.MinReplicas && d.erasers&m.bit() == 0 && r.hears(m) {
			erasers++
			q.Erase = d.place
		}
		if m == r.me || d.asked&m.bit() != 0 || d.have&m.bit() != 0 && q.Erase.Kept() {
			continue
		}
		d.asked |= m.bit()
		e := d.entry
		r.ask(m, q, func(a Answer, local []Local) {
			if d.entry != e || !slices.Contains(r.deletes, d) {
				return // what it says may be of a push after this deletion
			}
			d.asked &^= m.bit()
			if t, ok := a.(*Took); ok {
				if !q.Erase.Kept() {
					d.erasers |= m.bit()
				}
				r.tookDelete(d, m, t, local)
			}
		})
	}
	r.settleDelete(d)
}

// tookEntry answers Deleted.
func (r *Ring) tookEntry(q Deleted, l Local) *Took {
	seq, rec := r.condemn(q.Entry, q.Erase, l)
	t := &Took{Seq: seq, Record: rec}
	for m := range r.others() {
		if r.hears(m) {
			t.Heard = append(t.Heard, m.name)
		}
	}
	return t
}

func (r *Ring) tookDelete(d *deletion, m *member, t *Took, local []Local) {
	if t.Record != nil {
		rec := r.merge(local[0], t.Record)
		if rec.Outlives(d.entry.Namespace, d.entry.Stamp) != 0 {
			// A push of before, by a clock that is ahead, or one of meanwhile: it is to go, too.
			l := local[0]
			l.Record = rec
			e := d.entry
			e.Stamp = r.stamp(rec)
			r.remove(d, e, l)
			return
		}
	}
	if h := t.Record.Home(d.place); h != nil && h.Since > record.V1 {
		d.blind = false
	}
	d.have |= m.bit()
	d.seqs[m.slot] = t.Seq
	for _, name := range t.Heard {
		if o := r.find(name); o != nil {
			d.heard |= o.bit()
		}
	}
	r.settleDelete(d)
}

// confirmDeletes takes for confirmed what third members have read in m's log.
func (r *Ring) confirmDeletes(m *member, s *Status) {
	for _, d := range slices.Clone(r.deletes) {
		seq, ok := d.seqs[m.slot]
		if !ok {
			continue
		}
		for _, v := range s.Members {
			if o := r.find(v.Name); o != nil && o != m && v.ReadBy >= seq {
				d.have |= o.bit()
			}
		}
		r.settleDelete(d)
	}
}

// settleDelete acknowledges d when it may be.
func (r *Ring) settleDelete(d *deletion) {
	have, all := 0, 0
	for m := range r.listed() {
		all++
		if d.have&m.bit() != 0 {
			have++
		} else if (r.lives|d.heard)&m.bit() != 0 {
			return
		}
	}
	least := min(all, r.cfg.MinReplicas)
	if have <= all-r.cfg.MinReplicas || have < least || !d.place.Kept() && count(d.erasers) < least {
		return
	}
	if d.blind {
		r.endDelete(d, ActDone{ID: d.id, Why: "no member knows the blob, and the backend does not answer"})
		return
	}
	r.endDelete(d, ActDone{ID: d.id, OK: true, Copies: have})
}

func (r *Ring) endDelete(d *deletion, a ActDone) {
	i := slices.Index(r.deletes, d)
	if i < 0 {
		return
	}
	r.deletes = slices.Delete(r.deletes, i, i+1)
	r.do(a)
}

// deleteOn asks those again who have not answered, and ends what took too long.
func (r *Ring) deleteOn() {
	for _, d := range slices.Clone(r.deletes) {
		if !r.me.listed() {
			r.endDelete(d, ActDone{ID: d.id, Why: WhyRemoved})
			continue
		}
		if r.now-d.since < int64(r.cfg.Push) {
			if d.seqs != nil {
				r.askDeleted(d)
			}
			continue
		}
		a := ActDone{ID: d.id}
		for m := range r.listed() {
			if d.have&m.bit() == 0 {
				a.Missing = append(a.Missing, m.name)
			}
		}
		r.endDelete(d, a)
	}
}
