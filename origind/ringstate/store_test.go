package ringstate

import (
	"time"

	"github.com/capelin-io/capelin/origind/record"
)

// backend is a storage: objects, and the record beside each, which is replaced by compare-and-swap. What is away answers nothing.
type backend struct {
	objects map[string]bool           // by key
	beside  map[string]*record.Record // by key; another pointer is another version
	away    bool
	writes  int
}

func newBackend() *backend {
	return &backend{objects: map[string]bool{}, beside: map[string]*record.Record{}}
}

// backend does something with an object. It happens after a while, whether or not the
// member is still there to hear of it; one that is frozen before it has sent its request
// sends it when it goes on.
func (n *node) backend(a ActBackend) {
	n.w.oracle.backend(n, a)
	if a.Do == Write {
		l := n.disk.recs[a.Digest]
		l.Wrote = true
		n.disk.recs[a.Digest] = l
	}
	n.w.logf("%s: backend %d %s", n.name, a.Do, short(a.Digest))
	j := &job{n: n, st: n.store, a: a, life: n.life, inc: n.disk.inc, ev: &EvBackend{ID: a.ID, OK: true}}
	if j.rec = Only(n.disk.recs[a.Digest].Record, a.Place); j.rec == nil {
		j.rec = &record.Record{Digest: a.Digest}
	}
	if a.Do == Stat {
		j.start()
		return
	}
	n.jobs[a.Digest] = append(n.jobs[a.Digest], j)
	if len(n.jobs[a.Digest]) == 1 {
		j.start()
	}
}

// job is what is done with an object, as origind's objects does it: one request to the storage after the other,
// and others' between them; but for a Stat not beside another job of this member at the same object.
type job struct {
	n    *node
	st   *backend
	a    ActBackend
	life int
	inc  uint64
	rec  *record.Record // what is known here
	ev   *EvBackend
}

// request is one, which returns the next; nil: there is none.
type request func() request

func (j *job) start() {
	first := map[BackendDo]request{Stat: j.stat, Write: j.write, Note: j.note, Erase: j.erase}[j.a.Do]
	j.n.w.after(j.n.w.delay(), func() { j.send(first) })
}

// send makes a request, and those after it.
func (j *job) send(r request) {
	n, w := j.n, j.n.w
	switch {
	case n.life != j.life && w.rng.IntN(2) == 0:
		return // else the request was on its way
	case n.life == j.life && n.frozen && n.disk.inc == j.inc && w.rng.IntN(2) == 0:
		w.after(time.Second, func() { j.send(r) })
		return
	case r == nil || j.st.away:
		j.end(r == nil)
		return
	}
	next := r()
	pause := w.delay()
	if j.a.Do == Erase {
		pause += w.stall
	}
	w.after(pause, func() { j.send(next) })
}

func (j *job) end(ok bool) {
	n, w := j.n, j.n.w
	if ok && w.lose() {
		ok = false // it was done, and nobody says so
	}
	if !ok {
		j.ev = &EvBackend{ID: j.a.ID}
	}
	n.in(j.life, w.delay(), func() {
		if j.a.Do != Stat {
			left := n.jobs[j.a.Digest][1:]
			n.jobs[j.a.Digest] = left
			if len(left) > 0 {
				left[0].start()
			} else {
				delete(n.jobs, j.a.Digest)
			}
		}
		j.ev.Local = n.local(j.a.Digest)
		n.step(j.ev)
	})
}

func (j *job) key() string { return j.a.Place.Key }

// lives reports whether the object is to be there, as far as is known here.
func (j *job) lives() bool { return lives(j.rec, j.a.Place) }

func (j *job) stat() request {
	j.ev.Found = j.st.objects[j.key()]
	if !j.ev.Found && j.lives() {
		return nil
	}
	return func() request { j.ev.Beside = j.st.beside[j.key()]; return nil }
}

func (j *job) write() request {
	if !j.lives() {
		return nil
	}
	j.st.objects[j.key()], j.ev.Found = true, true
	j.st.writes++
	return func() request {
		if j.st.beside[j.key()] != nil {
			return j.note
		}
		j.put(j.rec)
		return nil
	}
}

func (j *job) put(r *record.Record) { j.st.beside[j.key()], j.ev.Beside = r, r }

// note merges what is known here into the record.
func (j *job) note() request {
	if !j.lives() {
		return nil
	}
	was := j.st.beside[j.key()]
	return j.replace(was, record.Merge(was, j.rec), j.note, nil)
}

// replace makes r the record, and then next, or does again what it depends on if it was changed since it was read.
func (j *job) replace(was, r *record.Record, again, next request) request {
	if was != nil && record.Equal(was, r) {
		j.ev.Beside = was
		return next
	}
	return func() request {
		if j.st.beside[j.key()] != was {
			return again
		}
		j.put(r)
		return next
	}
}

// erase has the removals be in the record, and then deletes the object, and the record last.
func (j *job) erase() request {
	was := j.st.beside[j.key()]
	all := record.Merge(was, j.rec)
	dead := !lives(all, j.a.Place)
	if was == nil && dead {
		return j.remove
	}
	r := &record.Record{Digest: all.Digest, Size: all.Size, Removed: all.Removed}
	next := request(nil)
	if dead {
		next = j.remove
	} else {
		r.Homes = all.Homes
	}
	return j.replace(was, r, j.erase, next)
}

func (j *job) remove() request {
	j.n.w.logf("%s erases %s", j.n.name, short(j.a.Digest))
	delete(j.st.objects, j.key())
	j.n.w.oracle.erased(j.a.Digest, j.n)
	if j.ev.Beside == nil {
		return nil
	}
	return func() request { delete(j.st.beside, j.key()); return nil }
}
