package ringstate

import (
	"slices"

	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/origind/record"
)

// erase is a blob whose object is to go because its home was removed.
//
// MinReplicas of those who take part in a deletion erase, because their disks may be lost, and whoever
// may have written the object, because a writer may have been asleep. First more than all but
// MinReplicas members say what they know of the blob:
// so a push to another namespace is not erased with it, and a later one finds the removal
// where it asks for copies, and waits with its unpinning until this is over.
type erase struct {
	digest digest.Digest
	record *record.Record // as it is here
	due    int64
	pause  int64
	busy   bool
}

// erasable notes that backends are to hear of a removal from this member.
func (r *Ring) erasable(rec *record.Record, l Local) {
	if l.Wrote && r.erases[rec.Digest] == nil {
		r.erases[rec.Digest] = &erase{digest: rec.Digest, record: rec, due: r.now}
	}
}

// eraseAtStart is erasable for what may have been begun before a restart, and may still happen.
func (r *Ring) eraseAtStart(rec *record.Record, l Local) {
	if l.Wrote && removal(rec) > 0 {
		r.erases[rec.Digest] = &erase{digest: rec.Digest, record: rec, due: r.now + int64(r.cfg.Grace)}
	}
}

// eraseOn erases what is due.
func (r *Ring) eraseOn() {
	if !r.writes() || len(r.erases) == 0 {
		return
	}
	for _, digest := range sorted(r.erases) {
		if e := r.erases[digest]; !e.busy && e.due <= r.now {
			r.tryErase(e)
		}
	}
}

func (r *Ring) eraseAgain(e *erase) {
	e.busy = false
	e.pause = min(2*e.pause+1e9, 60e9)
	e.due = r.now + e.pause
}

func (r *Ring) tryErase(e *erase) {
	e.busy = true
	open, said := 0, 1
	end := func() {
		if said <= r.size()-r.cfg.MinReplicas || !r.writes() {
			r.eraseAgain(e)
			return
		}
		r.eraseNow(e)
	}
	for m := range r.others() {
		if !r.hears(m) {
			continue
		}
		open++
		r.ask(m, &Consult{Digest: e.digest}, func(a Answer, local []Local) {
			if c, ok := a.(*Consulted); ok && c.Record != nil {
				said++
				r.merge(local[0], c.Record)
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

// eraseNow has the backends hear of the removals that are known here.
func (r *Ring) eraseNow(e *erase) {
	rec, left, failed := e.record, 0, false
	removed := removal(rec)
	for i := range rec.Homes {
		if rec.Homes[i].Key == "" {
			continue
		}
		left++
		r.nextID++
		r.looks[r.nextID] = func(ev *EvBackend) {
			failed = failed || !ev.OK
			l := r.local(e.digest, ev.Local)
			if ev.Beside != nil && l.Record != nil {
				r.merge(l, ev.Beside)
			}
			if left--; left > 0 {
				return
			}
			if failed {
				r.eraseAgain(e)
				return
			}
			r.erased(e, removed, ev.Local)
		}
		r.do(ActBackend{ID: r.nextID, Do: Erase, Digest: e.digest, Place: rec.Homes[i].Place})
	}
	if left == 0 {
		delete(r.erases, e.digest)
	}
}

// erased ends an erasure, or begins it again if there was another removal meanwhile.
func (r *Ring) erased(e *erase, removed record.Stamp, l Local) {
	l = r.local(e.digest, l)
	if l.Record != nil && removal(l.Record) > removed {
		e.busy, e.due = false, r.now
		return
	}
	delete(r.erases, e.digest)
	if l.Record == nil {
		return
	}
	l.Wrote = slices.ContainsFunc(l.Record.Homes, func(h record.Home) bool { return h.Key != "" && lives(l.Record, h.Place) })
	r.write(l.Record, l, r.blobs.get(e.digest) != nil)
}
