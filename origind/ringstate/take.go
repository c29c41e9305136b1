package ringstate

import (
	"slices"
	"time"

	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/origind/record"
)

// take is a blob that is being fetched for another member.
type take struct {
	digest digest.Digest
	record *record.Record
}

// waiter is a Replica that is answered once its blob is here, so that whoever gives blobs waits for nothing else. It says then
// what it would say if it were asked then: it is as if the ask had taken longer to come.
type waiter struct {
	from   *member
	id     uint64
	ask    *Replica
	record *record.Record // the ask's, merged with what was here
	until  int64
}

const (
	// waitFor is how long an answer waits for a blob, far less than whoever asks waits for the answer.
	waitFor = time.Second
	// waitersMax are a part of the asks that a member takes at once, so that there is always room for others.
	waitersMax = 256
)

// replica answers whether this member has a blob pinned, and sees to it that it will.
func (r *Ring) replica(m *member, id uint64, q *Replica, l Local) {
	a, rec := r.pins(q, l)
	if a == nil {
		a = r.fetch(&waiter{m, id, q, rec, r.now + r.wait})
	}
	if a != nil {
		r.do(ActReply{m.name, id, a})
	}
}

// pins answers whether this member has a blob pinned. No answer: it has not, and is to take it, with that record.
func (r *Ring) pins(q *Replica, l Local) (*Replied, *record.Record) {
	l = r.local(q.Digest, l)
	if q.Record == nil || q.Record.Digest != q.Digest || !r.me.listed() || r.me.mode >= Draining || r.starting && !l.Have {
		return &Replied{Code: CodeLater}, nil
	}
	if q.Put {
		delete(r.stated, q.Digest)
	}
	rec, ok := merged(l.Record, q.Record)
	if !ok {
		return &Replied{Code: CodeFull}, nil
	}
	r.clock.See(r.wall, rec.Latest())
	if !rec.Live() {
		return &Replied{Code: CodeRemoved, Record: r.merge(l, q.Record)}, nil
	}
	owner := q.View == r.view && r.ownersOf(string(q.Digest))&r.me.bit() != 0
	switch b := r.blobs.get(q.Digest); {
	case b != nil && len(b.bad) == 0 && l.Have:
		return &Replied{CodePinned, owner, r.merge(l, q.Record)}, nil
	case b != nil || !owner && !q.Put && !q.Urgent:
		return &Replied{Code: CodeLater}, nil
	case !q.Put && r.written(rec):
		return &Replied{Code: CodeWritten, Record: r.merge(l, q.Record)}, nil
	case l.Have:
		r.keep(rec, l)
		return &Replied{CodePinned, owner, rec}, nil
	case r.me.full:
		return &Replied{Code: CodeFull}, nil
	}
	return nil, rec
}

// fetch has a blob be taken, when there is room for that, and answers w if that cannot wait.
func (r *Ring) fetch(w *waiter) *Replied {
	t, waits := r.takes[w.ask.Digest], r.wait > 0 && len(r.waiters) < waitersMax
	switch {
	case t != nil:
		if both, ok := merged(t.record, w.record); ok {
			t.record = both
		}
	case r.mayTake(w):
		r.take(w)
	case w.ask.Put || !waits: // others may have room for what a client waits for
		return &Replied{Code: CodeLater}
	}
	if !waits {
		return &Replied{Code: CodeTaking}
	}
	r.waiters = append(r.waiters, w)
	return nil
}

// mayTake reports whether there is not too much to take already.
func (r *Ring) mayTake(w *waiter) bool {
	limit := r.cfg.Parallel
	if w.ask.Urgent || w.ask.Put {
		limit *= 4
	}
	return len(r.takes) < limit
}

func (r *Ring) take(w *waiter) {
	d := w.ask.Digest
	r.takes[d] = &take{digest: d, record: w.record}
	r.do(ActTake{d, w.record.Size, w.ask.Sources})
}

// taken notes that a blob was fetched, or could not be.
func (r *Ring) taken(ev *EvTaken) {
	t := r.takes[ev.Digest]
	if t == nil {
		return
	}
	delete(r.takes, ev.Digest)
	l := r.local(ev.Digest, ev.Local)
	rec, ok := merged(l.Record, t.record)
	switch {
	case ev.Failed || !ok:
	case !rec.Live():
		r.merge(l, t.record)
	default:
		l.Have = true
		r.keep(rec, l)
	}
	r.tell(ev)
	for _, w := range r.waiters {
		if r.takes[w.ask.Digest] == nil && r.mayTake(w) && !r.me.full && r.me.mode < Draining {
			r.take(w)
		}
	}
}

// tell answers those who wait for a blob.
func (r *Ring) tell(ev *EvTaken) {
	about := func(w *waiter) bool { return w.ask.Digest == ev.Digest }
	for _, w := range r.waiters {
		if about(w) {
			r.do(ActReply{w.from.name, w.id, r.told(w, ev)})
		}
	}
	r.waiters = slices.DeleteFunc(r.waiters, about)
}

func (r *Ring) told(w *waiter, ev *EvTaken) Answer {
	if !w.from.listed() {
		return nil
	}
	l := ev.Local
	l.Have = l.Have && !ev.Failed // nothing keeps what is here otherwise from going
	a, _ := r.pins(w.ask, l)
	switch {
	case a != nil:
		return a
	case ev.Full:
		return &Replied{Code: CodeFull}
	}
	return &Replied{Code: CodeLater}
}

// waitOn answers those who have waited for long enough.
func (r *Ring) waitOn() {
	for len(r.waiters) > 0 && r.waiters[0].until <= r.now {
		r.do(ActReply{r.waiters[0].from.name, r.waiters[0].id, &Replied{Code: CodeTaking}})
		r.waiters = slices.Delete(r.waiters, 0, 1)
	}
}
